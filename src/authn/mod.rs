//! From a credential to a principal: API keys of the configuration, and JWTs
//! by a static public key.
//!
//! Not here: whether the principal may do what it asks for (`access`,
//! `authz`), and how a refusal is told (`access`).

mod cache;
mod headers;
mod json;
mod jwt;
mod pem;
pub mod tokens;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};

use http::{HeaderMap, HeaderName};
use metrics::Histogram;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use self::{
    cache::{Cache, Verified},
    headers::Presented,
    jwt::{Policy, Verifier},
};
pub use self::{jwt::Fault, pem::PublicKey};
use crate::{
    config::{ApiKey, Auth, Credentials, Mode},
    domain::{
        Grant, Principal, Timestamp,
        principal::{Identity, Method, Source},
    },
};

/// A credential in steady use is worth one line of the log this often.
const LOGGED_EVERY_SECONDS: i64 = 60;

/// What is wrong with a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unauthenticated {
    /// There is none.
    Missing,
    /// Not known or not genuine; says no more to a stranger.
    Invalid,
    /// It was good.
    Expired,
    /// It was taken back.
    Revoked,
    /// It will be good.
    NotYetValid,
    /// There are two, or one that can be read in two ways (SE-14).
    Ambiguous,
}

/// Why the credentials of the configuration cannot be used.
#[derive(Debug, Error)]
pub enum Error {
    /// The JWT public key is none, or of a kind that is not taken.
    #[error("the JWT public key in {origin}: {problem}")]
    PublicKey {
        /// Where it was found.
        origin: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// A credential that is in force, and the principal that it makes.
#[derive(Debug)]
pub struct Session {
    /// Who calls.
    pub principal: Arc<Principal>,
    /// Cancelled when the credential is taken back.
    pub revoked: CancellationToken,
}

/// A caller that is known.
#[derive(Debug)]
pub struct Accepted {
    /// The credential's session.
    pub session: Arc<Session>,
    /// First accepted, or verified again: worth a line in the log (TK-57).
    pub fresh: bool,
    /// Names in the token that are no permissions here (TK-43).
    pub unknown_permissions: Vec<String>,
}

/// A caller that is not known, and why.
#[derive(Debug)]
pub struct Rejected {
    /// What the caller is told.
    pub why: Unauthenticated,
    /// How a credential was presented.
    pub method: Method,
    /// What the log and the metrics say.
    pub fault: Fault,
}

/// Makes principals of credentials.
pub struct Authenticator {
    known: Known,
    /// The parent of every session's token.
    revoked: CancellationToken,
}

enum Known {
    /// Auth is off: everybody is this one.
    Everybody(Arc<Session>),
    Holders(Box<Holders>),
}

struct Holders {
    api_key_header: HeaderName,
    api_keys: HashMap<[u8; 32], KeyHolder>,
    jwt: Option<JwtHolders>,
}

struct KeyHolder {
    digest: [u8; 32],
    session: Arc<Session>,
    logged_at: AtomicI64,
}

struct JwtHolders {
    verifier: Verifier,
    log_unknown: bool,
    cache: Cache,
    succeeded: Histogram,
    failed: Histogram,
}

impl Authenticator {
    /// For these settings. The recorder of metrics must be installed before.
    pub fn new(auth: &Auth) -> Result<Self, Error> {
        let revoked = CancellationToken::new();
        let known = match &auth.mode {
            Mode::Off => Known::Everybody(Arc::new(Session {
                principal: Arc::new(Principal::auth_off()),
                revoked: revoked.child_token(),
            })),
            Mode::On(credentials) => Known::Holders(Box::new(Holders::new(
                credentials,
                &auth.extra_permissions,
                &revoked,
            )?)),
        };
        Ok(Self { known, revoked })
    }

    /// The principal behind a call's headers.
    pub fn authenticate(&self, headers: &HeaderMap, now: Timestamp) -> Result<Accepted, Rejected> {
        let holders = match &self.known {
            Known::Everybody(session) => {
                return Ok(Accepted {
                    session: Arc::clone(session),
                    fresh: false,
                    unknown_permissions: Vec::new(),
                });
            }
            Known::Holders(holders) => holders,
        };
        let accepted = match headers::presented(headers, &holders.api_key_header)? {
            Presented::ApiKey(key) => {
                holders.api_key(&Sha256::digest(key.as_bytes()).into(), now).ok_or(Rejected {
                    why: Unauthenticated::Invalid,
                    method: Method::ApiKey,
                    fault: Fault::UnknownKey,
                })
            }
            Presented::Bearer(token) => holders.bearer(token, now, &self.revoked),
        }?;
        if accepted.session.revoked.is_cancelled() {
            let method = accepted.session.principal.method;
            return Err(Rejected { why: Unauthenticated::Revoked, method, fault: Fault::Revoked });
        }
        Ok(accepted)
    }

    /// Takes every session back, as when the credentials are replaced.
    pub fn revoke_all(&self) {
        self.revoked.cancel();
    }
}

impl Holders {
    fn new(
        credentials: &Credentials,
        foreign: &BTreeSet<Arc<str>>,
        revoked: &CancellationToken,
    ) -> Result<Self, Error> {
        let api_keys = credentials
            .api_keys
            .iter()
            .map(|key| (key.digest, KeyHolder::new(key, revoked)))
            .collect();
        let jwt = credentials.jwt.as_ref().map(|jwt| {
            let wrong = |problem: String| Error::PublicKey { origin: jwt.origin.clone(), problem };
            let key = PublicKey::from_pem(&jwt.public_key).map_err(wrong)?;
            if let Some(allowed) = &jwt.algorithms
                && !allowed.contains(&key.algorithm())
            {
                return Err(wrong(format!(
                    "it signs with {}, which `auth.jwt_allowed_algorithms` does not list",
                    key.algorithm()
                )));
            }
            let time = |result| {
                metrics::histogram!(
                    "bailiwick_auth_jwt_verification_duration_seconds", "result" => result)
            };
            Ok(JwtHolders {
                verifier: Verifier::new(key, Policy::new(jwt, foreign.clone())),
                log_unknown: jwt.log_unknown,
                cache: Cache::new(),
                succeeded: time("success"),
                failed: time("failure"),
            })
        });
        let jwt = jwt.transpose()?;
        Ok(Self { api_key_header: credentials.api_key_header.clone(), api_keys, jwt })
    }

    fn api_key(&self, digest: &[u8; 32], now: Timestamp) -> Option<Accepted> {
        let holder = self.api_keys.get(digest)?;
        // The look-up is by a digest, which tells nothing about the key; the
        // comparison that decides takes the same time for any.
        bool::from(holder.digest.ct_eq(digest)).then(|| Accepted {
            session: Arc::clone(&holder.session),
            fresh: holder.is_due(now),
            unknown_permissions: Vec::new(),
        })
    }

    fn bearer(
        &self,
        token: &str,
        now: Timestamp,
        revoked: &CancellationToken,
    ) -> Result<Accepted, Rejected> {
        let digest = Sha256::digest(token.as_bytes()).into();
        if let Some(accepted) = self.api_key(&digest, now) {
            return Ok(accepted);
        }
        let rejected = |method, fault: Fault| Rejected { why: fault.why(), method, fault };
        if !token.contains('.') {
            return Err(rejected(Method::Token, Fault::UnknownToken));
        }
        let Some(jwt) = &self.jwt else {
            return Err(rejected(Method::Jwt, Fault::NoJwtKey));
        };
        jwt.accept(token, &digest, now, revoked).map_err(|fault| rejected(Method::Jwt, fault))
    }
}

impl KeyHolder {
    fn new(key: &ApiKey, revoked: &CancellationToken) -> Self {
        let principal = Principal {
            identity: Identity {
                source: Source::Config,
                issuer: "".into(),
                subject: Arc::clone(&key.subject),
            },
            method: Method::ApiKey,
            grants: vec![Grant { permissions: key.permissions.clone(), scope: key.scope.clone() }],
            not_after: None,
            credential_id: credential_id(&key.digest),
            worker_scope: None,
        };
        Self {
            digest: key.digest,
            session: Arc::new(Session {
                principal: Arc::new(principal),
                revoked: revoked.child_token(),
            }),
            logged_at: AtomicI64::new(i64::MIN),
        }
    }

    /// Whether a line in the log is due; then only one caller hears so.
    fn is_due(&self, now: Timestamp) -> bool {
        let last = self.logged_at.load(Ordering::Relaxed);
        now.seconds().saturating_sub(last) >= LOGGED_EVERY_SECONDS
            && self
                .logged_at
                .compare_exchange(last, now.seconds(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl JwtHolders {
    fn accept(
        &self,
        token: &str,
        digest: &[u8; 32],
        now: Timestamp,
        revoked: &CancellationToken,
    ) -> Result<Accepted, Fault> {
        if let Some(session) = self.cache.get(digest, now) {
            return Ok(Accepted { session, fresh: false, unknown_permissions: Vec::new() });
        }
        let started = now_for_figures();
        let claims = self.verifier.verify(token, now);
        let timer = if claims.is_ok() { &self.succeeded } else { &self.failed };
        timer.record(started.elapsed());
        let claims = claims.map_err(|fault| self.without_names(fault))?;
        let unknown_permissions =
            if self.log_unknown { claims.unknown_permissions.clone() } else { Vec::new() };
        let principal = claims.into_principal(credential_id(digest));
        let not_after = principal.not_after;
        let session =
            Arc::new(Session { principal: Arc::new(principal), revoked: revoked.child_token() });
        let (session, fresh) =
            self.cache.insert(digest, Verified::new(session, now, not_after), now);
        Ok(Accepted { session, fresh, unknown_permissions })
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

/// Tells credentials apart in logs and records, and gives none away: the
/// first twelve hex digits of the digest.
fn credential_id(digest: &[u8; 32]) -> Arc<str> {
    let number = digest.iter().take(6).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    format!("{number:012x}").into()
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.known {
            Known::Everybody(_) => f.write_str("Authenticator(off)"),
            Known::Holders(holders) => write!(
                f,
                "Authenticator({} API keys, JWT {})",
                holders.api_keys.len(),
                if holders.jwt.is_some() { "on" } else { "off" }
            ),
        }
    }
}

#[cfg(test)]
mod tests;

#[expect(clippy::disallowed_methods, reason = "measures how long a verification takes")]
fn now_for_figures() -> Instant {
    Instant::now()
}
