//! What a credential would be worth in a call, for other services that were
//! shown it: nothing of the look-up stays, no use, no last use, no entry in a
//! cache, no line in the log (SE-42).

use std::{net::IpAddr, sync::Arc};

use http::{HeaderMap, HeaderName};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{
    Authenticator, Digest, Fault, Holders, Known, Session, Unauthenticated,
    headers::{self, Presented},
    jwt::{Good, Token},
    step::{self, Tie},
};
use crate::{
    domain::{Timestamp, secret},
    storage::CredentialKind,
};

/// A credential that counts now.
#[derive(Debug)]
pub struct Inspected {
    /// What a call with it would get.
    pub session: Arc<Session>,
    /// When it was issued, where that is known.
    pub issued_at: Option<Timestamp>,
    /// What it is called, where it has a name.
    pub name: Option<String>,
    /// Whom a JWT is for.
    pub audience: Vec<String>,
    /// A step's token, which is worth nothing before its lease is looked up.
    pub tie: Option<Tie>,
}

impl Inspected {
    fn of(session: Arc<Session>) -> Self {
        let issued_at = session.principal.issued_at;
        Self { session, issued_at, name: None, audience: Vec::new(), tie: None }
    }
}

/// Where API keys stand while auth is off.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

impl Authenticator {
    /// The one credential among the headers of a request that another server
    /// got.
    pub fn shown_in<'h>(&self, headers: &'h HeaderMap) -> Result<&'h str, Unauthenticated> {
        let name = match &self.known {
            Known::Everybody(_) => &API_KEY,
            Known::Holders(holders) => &holders.api_key_header,
        };
        match headers::presented(headers, name) {
            Ok(Presented::Bearer(token) | Presented::ApiKey(token)) => Ok(token),
            Err(rejected) => Err(rejected.why),
        }
    }

    /// What a credential is worth that was shown to somebody else, however it
    /// was presented there. One that counts in some networks alone counts when
    /// its client's address is known and lies there.
    pub fn inspect(
        &self,
        token: &str,
        client: Option<IpAddr>,
        now: Timestamp,
    ) -> Result<Inspected, Fault> {
        let visible = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        if !visible {
            return Err(Fault::Malformed("not one word of visible ASCII"));
        }
        let digest = Sha256::digest(token.as_bytes()).into();
        let found = self.inspected(token, &digest, client, now)?;
        if found.session.is_revoked() { Err(Fault::Revoked) } else { Ok(found) }
    }

    fn inspected(
        &self,
        token: &str,
        digest: &[u8; 32],
        client: Option<IpAddr>,
        now: Timestamp,
    ) -> Result<Inspected, Fault> {
        let holders = match &self.known {
            Known::Everybody(_) => None,
            Known::Holders(holders) => Some(&**holders),
        };
        let configured = holders.and_then(|holders| holders.api_keys.get(&Digest::from(digest)));
        let configured = configured.map(|key| Arc::clone(&key.session));
        let line = || self.line.as_ref()?.inspect(digest);
        if let Some(session) = configured.or_else(line) {
            return Ok(Inspected::of(session));
        }
        if self.steps.is_some() && step::is_step(token) {
            let accepted = self.step(token, now).map_err(|rejected| rejected.fault)?;
            return Ok(Inspected { tie: accepted.tie, ..Inspected::of(accepted.session) });
        }
        if token.contains('.') && !self.issued.knows_stranger(digest) {
            return holders.ok_or(Fault::NoJwtKey)?.inspect_jwt(self, token, digest, now);
        }
        let possible = secret::id(token).is_some() || self.issued.has_strangers();
        let taken = |kind: CredentialKind| match kind {
            CredentialKind::Token | CredentialKind::Exchanged => true,
            CredentialKind::ApiKey => holders.is_none_or(|holders| holders.api_keys_enabled),
        };
        let found = possible.then(|| self.issued.inspect(digest, taken, client, now)).flatten();
        let issue = found.ok_or(Fault::UnknownToken)??;
        Ok(Inspected {
            session: Arc::clone(issue.session()),
            issued_at: Some(issue.record.created_at),
            name: issue.record.name.clone(),
            audience: Vec::new(),
            tie: None,
        })
    }
}

impl Holders {
    /// Verified anew: what calls left in the cache is neither asked nor moved.
    fn inspect_jwt(
        &self,
        authenticator: &Authenticator,
        token: &str,
        digest: &[u8; 32],
        now: Timestamp,
    ) -> Result<Inspected, Fault> {
        let jwt = self.jwt.as_ref().ok_or(Fault::NoJwtKey)?;
        let Good { claims, revoked, evidence: _ } = jwt.verifier.verify(token, now)?;
        let recall = Some((Arc::clone(&authenticator.recalls), claims.issued_at));
        let principal = claims.into_principal(secret::id_of_stranger(digest));
        let session = Session::new(Arc::new(principal), revoked.child_token());
        let audience = match Token::parse(token)?.claims.remove("aud") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(all)) => {
                all.iter().filter_map(Value::as_str).map(str::to_owned).collect()
            }
            None | Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
                Vec::new()
            }
        };
        Ok(Inspected { audience, ..Inspected::of(Arc::new(Session { recall, ..session })) })
    }
}
