//! Those who come with a JWT: the issuers, their keys and the tokens that were
//! good before.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use metrics::Histogram;
use tokio_util::sync::CancellationToken;

use super::{
    Accepted, Error, Session,
    cache::{Cache, Verified},
    jwks::Ring,
    jwt::{Fault, Good, Issuer, Keys, Policy, Verifier},
    pem::PublicKey,
    recalls::Recalls,
};
use crate::{
    config::{self, Jwt},
    domain::{Timestamp, secret},
};

pub(super) struct JwtHolders {
    pub(super) verifier: Verifier,
    log_unknown: bool,
    cache: Cache,
    succeeded: Histogram,
    failed: Histogram,
}

impl JwtHolders {
    pub(super) fn new(
        issuers: &[Jwt],
        foreign: &BTreeSet<Arc<str>>,
        revoked: &CancellationToken,
    ) -> Result<Option<Self>, Error> {
        let Some(first) = issuers.first() else { return Ok(None) };
        let log_unknown = first.log_unknown;
        let issuers: Result<Vec<Issuer>, Error> = issuers
            .iter()
            .map(|jwt| {
                let keys = match &jwt.keys {
                    config::Keys::Pem { text, origin } => {
                        Keys::Fixed(fixed(jwt, text, origin)?, revoked.clone())
                    }
                    config::Keys::Jwks(jwks) => {
                        Keys::Ring(Arc::new(Ring::new(jwt, jwks, revoked)?))
                    }
                };
                Ok(Issuer { keys, policy: Policy::new(jwt, foreign.clone()) })
            })
            .collect();
        let time = |result| {
            metrics::histogram!(
                "bailiwick_auth_jwt_verification_duration_seconds", "result" => result)
        };
        Ok(Some(Self {
            verifier: Verifier::new(issuers?),
            log_unknown,
            cache: Cache::new(),
            succeeded: time("success"),
            failed: time("failure"),
        }))
    }

    pub(super) fn accept(
        &self,
        token: &str,
        digest: &[u8; 32],
        now: Timestamp,
        recalls: &Arc<Recalls>,
    ) -> Result<Accepted, Fault> {
        if let Some(session) = self.cache.get(digest, now) {
            return Ok(Accepted {
                session,
                fresh: false,
                unknown_permissions: Vec::new(),
                counted: None,
                tie: None,
            });
        }
        let started = now_for_figures();
        let good = self.verifier.verify(token, now);
        let timer = if good.is_ok() { &self.succeeded } else { &self.failed };
        timer.record(started.elapsed());
        let Good { claims, revoked, evidence } = good.map_err(|fault| self.without_names(fault))?;
        let unknown_permissions =
            if self.log_unknown { claims.unknown_permissions.clone() } else { Vec::new() };
        let issued_at = claims.issued_at;
        let principal = claims.into_principal(secret::id_of_stranger(digest));
        let not_after = principal.not_after;
        let session = Arc::new(Session {
            recall: Some((Arc::clone(recalls), issued_at)),
            evidence,
            ..Session::new(Arc::new(principal), revoked.child_token()).with_digest(digest)
        });
        let (session, fresh) =
            self.cache.insert(digest, Verified::new(session, now, not_after), now);
        Ok(Accepted { session, fresh, unknown_permissions, counted: None, tie: None })
    }

    /// Names of unknown permissions are logged only where that is wished.
    fn without_names(&self, fault: Fault) -> Fault {
        if !self.log_unknown && matches!(fault, Fault::UnknownPermissions(_)) {
            Fault::UnknownPermissions(Vec::new())
        } else {
            fault
        }
    }
}

fn fixed(jwt: &Jwt, text: &str, origin: &str) -> Result<PublicKey, Error> {
    let wrong = |problem: String| Error::PublicKey { origin: origin.to_owned(), problem };
    let key = PublicKey::from_pem(text).map_err(wrong)?;
    match &jwt.algorithms {
        Some(allowed) if !allowed.contains(&key.algorithm()) => Err(wrong(format!(
            "it signs with {}, which `auth.jwt_allowed_algorithms` does not list",
            key.algorithm()
        ))),
        Some(_) | None => Ok(key),
    }
}

#[expect(clippy::disallowed_methods, reason = "measures how long a verification takes")]
fn now_for_figures() -> Instant {
    Instant::now()
}
