//! The tokens of the line protocol's auth file. On a line they are what AUTH
//! says; over gRPC and REST they are bearers, whatever `[auth]` says.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, atomic::AtomicI64},
};

use http::{HeaderMap, HeaderName, header::AUTHORIZATION};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    Accepted, Authenticator, Digest, Fault, Known, LOGGED_EVERY_SECONDS, Rejected, Session,
    headers::{self, Presented},
    is_due,
};
use crate::{
    config::LineToken,
    domain::{
        Grant, PermissionSet, Principal, Timestamp,
        principal::{Identity, Method, Source},
        secret,
    },
};

/// What every token of the file holds in its namespace.
const PERMISSIONS: [&str; 2] = ["schedules:*", "rules:*"];
/// And where runners that start processes are enabled.
const COMMANDS: &str = "commands:execute";

/// The tokens of one auth file.
pub(super) struct LineTokens {
    by_digest: HashMap<Digest, Holder>,
    by_name: HashMap<Arc<str>, Arc<Principal>>,
}

struct Holder {
    session: Arc<Session>,
    logged_at: AtomicI64,
}

impl LineTokens {
    fn new(tokens: &[LineToken], commands: bool, revoked: &CancellationToken) -> Self {
        let mut permissions = PermissionSet::empty();
        for name in PERMISSIONS.into_iter().chain(commands.then_some(COMMANDS)) {
            permissions.add(name, &BTreeSet::new());
        }
        let mut by_digest = HashMap::with_capacity(tokens.len());
        let mut by_name = HashMap::with_capacity(tokens.len());
        for token in tokens {
            let grant = Grant { permissions: permissions.clone(), scope: token.scope.clone() };
            let principal = Arc::new(Principal {
                identity: Identity {
                    source: Source::Line,
                    issuer: "".into(),
                    subject: Arc::clone(&token.name),
                },
                method: Method::Token,
                grants: vec![grant],
                not_after: None,
                credential_id: secret::id_of_stranger(&token.digest),
                worker_scope: None,
                issued_at: None,
            });
            by_name.insert(Arc::clone(&token.name), Arc::clone(&principal));
            let session = Session::new(principal, revoked.child_token());
            let session = Arc::new(session.with_digest(&token.digest));
            let holder = Holder { session, logged_at: AtomicI64::new(i64::MIN) };
            by_digest.insert(Digest::from(&token.digest), holder);
        }
        Self { by_digest, by_name }
    }

    pub(super) fn inspect(&self, digest: &[u8; 32]) -> Option<Arc<Session>> {
        let holder = self.by_digest.get(&Digest::from(digest))?;
        Some(Arc::clone(&holder.session))
    }

    pub(super) fn accept(&self, digest: &[u8; 32], now: Timestamp) -> Option<Accepted> {
        let holder = self.by_digest.get(&Digest::from(digest))?;
        Some(Accepted {
            session: Arc::clone(&holder.session),
            fresh: is_due(&holder.logged_at, now, LOGGED_EVERY_SECONDS),
            unknown_permissions: Vec::new(),
            counted: None,
            tie: None,
        })
    }
}

impl Authenticator {
    /// With the tokens of an auth file. `commands` is whether any enabled
    /// runner starts processes.
    #[must_use]
    pub fn with_line_tokens(self, tokens: &[LineToken], commands: bool) -> Self {
        let line = Some(LineTokens::new(tokens, commands, &self.revoked));
        Self { line, ..self }
    }

    /// Whether there is an auth file, which guards jobs and rules on every
    /// surface (SE-60).
    #[must_use]
    pub fn has_line_tokens(&self) -> bool {
        self.line.is_some()
    }

    /// The principals of all tokens of the file, in no order.
    pub(super) fn line_principals(&self) -> impl Iterator<Item = Arc<Principal>> + '_ {
        self.line.iter().flat_map(|line| line.by_name.values().cloned())
    }

    /// The principal of the token of this name.
    #[must_use]
    pub fn line_principal(&self, name: &str) -> Option<Arc<Principal>> {
        self.line.as_ref()?.by_name.get(name).cloned()
    }

    /// The principal of the first of these secrets that is one: a line can
    /// read as several.
    pub fn line(&self, secrets: &[&str], now: Timestamp) -> Result<Accepted, Rejected> {
        let line = self.line.as_ref();
        let found = secrets.iter().find_map(|secret| {
            line.and_then(|line| line.accept(&Sha256::digest(secret.as_bytes()).into(), now))
        });
        let unknown = || Rejected {
            why: Fault::UnknownToken.why(),
            method: Method::Token,
            fault: Fault::UnknownToken,
        };
        found.filter(|accepted| !accepted.session.is_revoked()).ok_or_else(unknown)
    }

    /// The session of everybody, where neither `[auth]` nor an auth file asks
    /// for a credential.
    #[must_use]
    pub fn line_open(&self) -> Option<Arc<Session>> {
        match &self.known {
            Known::Everybody(session) if self.line.is_none() => Some(Arc::clone(session)),
            Known::Everybody(_) | Known::Holders(_) => None,
        }
    }

    /// The token of the auth file that a call brings while auth is off.
    pub(super) fn line_bearer(&self, headers: &HeaderMap, now: Timestamp) -> Option<Accepted> {
        let line = self.line.as_ref()?;
        // No API key means anything here.
        match headers::presented(headers, &NO_HEADER) {
            Ok(Presented::Bearer(token)) => {
                line.accept(&Sha256::digest(token.as_bytes()).into(), now)
            }
            Ok(Presented::ApiKey(_)) | Err(_) => None,
        }
    }

    /// Why the principal of auth off does not reach jobs and rules (SE-60):
    /// no token of the auth file came along, or none that is known.
    #[must_use]
    pub fn line_missing(&self, headers: &HeaderMap) -> Rejected {
        let rejected = |method, fault: Fault| Rejected { why: fault.why(), method, fault };
        match headers::presented(headers, &NO_HEADER) {
            Ok(_) => rejected(Method::Token, Fault::UnknownToken),
            Err(rejected) if headers.contains_key(AUTHORIZATION) => rejected,
            Err(_) => rejected(Method::None, Fault::Missing),
        }
    }
}

/// A header that no request has by this meaning.
const NO_HEADER: HeaderName = HeaderName::from_static("x-bailiwick-no-api-key");
