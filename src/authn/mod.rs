//! From a credential to a principal: API keys of the configuration, JWTs of
//! several issuers, by a public key or by a key set that is fetched, client
//! certificates, and the credentials that the server itself gave out.
//!
//! Not here: whether the principal may do what it asks for (`access`).

mod cache;
mod certificate;
mod claims;
mod digest;
mod elevations;
mod headers;
mod inspect;
mod issued;
mod json;
mod jwks;
mod jwt;
mod jwt_holders;
pub mod known;
mod line;
mod pem;
mod recalls;
mod standing;
mod step;
pub mod tokens;
mod usage;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    sync::{Arc, OnceLock, atomic::AtomicI64},
};

use http::{HeaderMap, HeaderName};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

pub use self::{
    certificate::ClientCertificate,
    elevations::Elevations,
    inspect::Inspected,
    issued::{ANCESTORS_MAX, Issue, Issued},
    jwks::Ring,
    jwt::Fault,
    pem::PublicKey,
    recalls::Recalls,
    step::Tie,
};
use self::{
    certificate::Mapping,
    digest::Digest,
    headers::Presented,
    jwt_holders::JwtHolders,
    line::LineTokens,
    step::Steps,
    usage::{Usage, is_due},
};
use crate::{
    config::{ApiKey, Auth, Credentials, Mode, OwnRate, TokenStore},
    domain::{
        Clock, Grant, Permission, Principal, Timestamp,
        principal::{Identity, Method, Source},
        secret,
    },
    egress,
    storage::{self, CredentialKind},
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
    /// It has been used as often as it may.
    UsedUp,
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
    /// No key set can be fetched at all.
    #[error("the keys of JWT issuers cannot be fetched: {0}")]
    Egress(#[from] egress::Error),
}

/// A credential that is in force, and the principal that it makes.
#[derive(Debug)]
pub struct Session {
    /// Who calls.
    pub principal: Arc<Principal>,
    /// Cancelled when the credential is taken back.
    pub revoked: CancellationToken,
    /// For a JWT: what is taken back by subject, and when it was issued.
    recall: Option<(Arc<Recalls>, Option<Timestamp>)>,
    /// For a credential that the server gave out: where its uses are noted.
    usage: Option<Arc<Usage>>,
    /// The digest of the credential; none where there is no credential.
    digest: Option<[u8; 32]>,
    /// What the audit calls the credential by, once it was asked for.
    fingerprint: OnceLock<Arc<str>>,
    /// For a JWT: what of its claims the audit keeps.
    pub evidence: Option<Box<RawValue>>,
    /// For a token that a JWT was traded for: whose that was.
    traded_for: Option<Identity>,
    /// The principal without the rights that it has for a while.
    lasting: Option<Arc<Principal>>,
    /// What ends those rights, and the session with them.
    ends: Vec<CancellationToken>,
}

impl Session {
    /// Of a credential that ends with this token.
    #[must_use]
    pub fn new(principal: Arc<Principal>, revoked: CancellationToken) -> Self {
        Self {
            principal,
            revoked,
            recall: None,
            usage: None,
            digest: None,
            fingerprint: OnceLock::new(),
            evidence: None,
            traded_for: None,
            lasting: None,
            ends: Vec::new(),
        }
    }

    /// Of a credential with this digest.
    #[must_use]
    pub fn with_digest(self, digest: &[u8; 32]) -> Self {
        Self { digest: Some(*digest), ..self }
    }

    /// What the audit calls the credential by; made once.
    pub fn fingerprint(&self, make: impl FnOnce(&[u8; 32]) -> Arc<str>) -> Option<Arc<str>> {
        let digest = self.digest.as_ref()?;
        Some(Arc::clone(self.fingerprint.get_or_init(|| make(digest))))
    }

    /// Notes that a permission was exercised.
    pub fn exercised(&self, permission: Permission, clock: &dyn Clock) {
        if let Some(usage) = &self.usage {
            usage.exercised(permission, clock.now());
        }
    }

    /// Whether the credential was taken back.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.revoked.is_cancelled()
            || self.ends.iter().any(CancellationToken::is_cancelled)
            || self
                .recall
                .as_ref()
                .is_some_and(|(recalls, at)| recalls.covers(self.recalled_by(), *at))
    }
}

/// What a call brings along.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its connection's certificate.
    pub certificate: Option<&'a ClientCertificate>,
    /// The client's address.
    pub peer: Option<IpAddr>,
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
    /// A credential whose uses are counted: one must be before the call goes
    /// on.
    pub counted: Option<Arc<Issue>>,
    /// A step's token, which holds nothing before its lease is looked up.
    pub tie: Option<Tie>,
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
    issued: Arc<Issued>,
    recalls: Arc<Recalls>,
    /// The rights that hold for a while.
    elevations: Arc<Elevations>,
    /// The tokens of the auth file, where there is one.
    line: Option<LineTokens>,
    /// What the tokens of steps are looked at with, where steps have any.
    steps: Option<Steps>,
    /// The parent of every session's token.
    revoked: CancellationToken,
}

/// An API key of the configuration as it is shown.
#[derive(Clone, Debug)]
pub struct ConfiguredKey {
    /// Its public id: twelve hex digits of its digest (SE-37).
    pub id: Arc<str>,
    /// Who calls with it.
    pub principal: Arc<Principal>,
    /// The limit on its calls that replaces the one of every class.
    pub rate: OwnRate,
}

enum Known {
    /// Auth is off: everybody is this one.
    Everybody(Arc<Session>),
    Holders(Box<Holders>),
}

struct Holders {
    api_key_header: HeaderName,
    api_keys_enabled: bool,
    api_keys: HashMap<Digest, KeyHolder>,
    jwt: Option<JwtHolders>,
    certificates: Mapping,
}

struct KeyHolder {
    session: Arc<Session>,
    rate: OwnRate,
    logged_at: AtomicI64,
}
impl Authenticator {
    /// For these settings. The recorder of metrics must be installed before.
    pub fn new(auth: &Auth) -> Result<Self, Error> {
        let revoked = CancellationToken::new();
        let known = match &auth.mode {
            Mode::Off => Known::Everybody(Arc::new(Session::new(
                Arc::new(Principal::auth_off()),
                revoked.child_token(),
            ))),
            Mode::On(credentials) => Known::Holders(Box::new(Holders::new(
                credentials,
                &auth.extra_permissions,
                &revoked,
            )?)),
        };
        let tokens = match auth.token_store {
            TokenStore::Database => Source::Database,
            TokenStore::File(_) => Source::File,
        };
        let recalls = Arc::<Recalls>::default();
        let issued = Issued::new(
            auth.extra_permissions.clone(),
            tokens,
            Arc::clone(&recalls),
            revoked.clone(),
        );
        let issued = Arc::new(issued);
        let elevations = Arc::default();
        Ok(Self { known, issued, recalls, elevations, line: None, steps: None, revoked })
    }

    /// The credentials that the server gave out; empty until they are loaded.
    #[must_use]
    pub fn issued(&self) -> &Arc<Issued> {
        &self.issued
    }

    /// The JWTs that were taken back.
    #[must_use]
    pub fn recalls(&self) -> &Arc<Recalls> {
        &self.recalls
    }

    /// The keys of the configuration, in no order.
    #[must_use]
    pub fn configured_keys(&self) -> Vec<ConfiguredKey> {
        let Known::Holders(holders) = &self.known else { return Vec::new() };
        let shown = |holder: &KeyHolder| ConfiguredKey {
            id: Arc::clone(&holder.session.principal.credential_id),
            principal: Arc::clone(&holder.session.principal),
            rate: holder.rate,
        };
        holders.api_keys.values().map(shown).collect()
    }

    /// The principal behind a call's headers, or behind its connection's
    /// certificate when they hold no credential at all.
    pub fn authenticate(
        &self,
        evidence: Evidence<'_>,
        now: Timestamp,
    ) -> Result<Accepted, Rejected> {
        let holders = match &self.known {
            Known::Everybody(session) => {
                // A step's token is narrow: it is not widened to everything.
                if let Some(step) = self.step_bearer(evidence.headers, now) {
                    return step;
                }
                let line = self.line_bearer(evidence.headers, now);
                return Ok(line.unwrap_or_else(|| Accepted {
                    session: Arc::clone(session),
                    fresh: false,
                    unknown_permissions: Vec::new(),
                    counted: None,
                    tie: None,
                }));
            }
            Known::Holders(holders) => holders,
        };
        let Evidence { headers, certificate, peer } = evidence;
        let presented = headers::presented(headers, &holders.api_key_header);
        if let (Err(Rejected { why: Unauthenticated::Missing, .. }), Some(certificate)) =
            (&presented, certificate)
        {
            return holders.certificates.accept(certificate, now, &self.revoked);
        }
        let accepted = match presented? {
            Presented::ApiKey(key) => {
                let digest = Sha256::digest(key.as_bytes()).into();
                holders
                    .api_key(&digest, now)
                    .map_or_else(|| self.given_out(key, &digest, Method::ApiKey, peer, now), Ok)
            }
            Presented::Bearer(token) => {
                let digest = Sha256::digest(token.as_bytes()).into();
                let line = || self.line.as_ref()?.accept(&digest, now);
                if let Some(accepted) = holders.api_key(&digest, now).or_else(line) {
                    return Ok(accepted);
                }
                if step::is_step(token) {
                    return self.step(token, now);
                }
                if token.contains('.') && !self.issued.knows_stranger(&digest) {
                    holders.jwt(token, &digest, now, &self.recalls)
                } else {
                    self.given_out(token, &digest, Method::Token, peer, now)
                }
            }
        }?;
        if accepted.session.is_revoked() {
            let method = accepted.session.principal.method;
            return Err(Rejected { why: Unauthenticated::Revoked, method, fault: Fault::Revoked });
        }
        Ok(accepted)
    }

    /// A credential of ours, or none that is known. API keys come by either
    /// header, tokens as a bearer alone.
    fn given_out(
        &self,
        text: &str,
        digest: &[u8; 32],
        presented: Method,
        peer: Option<IpAddr>,
        now: Timestamp,
    ) -> Result<Accepted, Rejected> {
        let unknown = match presented {
            Method::ApiKey => Fault::UnknownKey,
            Method::Jwt | Method::Token | Method::Certificate | Method::None => Fault::UnknownToken,
        };
        let rejected = |fault: Fault| Rejected { why: fault.why(), method: presented, fault };
        // The checksum spares the look-up for what is none of ours.
        let possible = secret::id(text).is_some() || self.issued.has_strangers();
        let keys_off = matches!(&self.known, Known::Holders(holders) if !holders.api_keys_enabled);
        let taken = |kind: CredentialKind| match kind {
            CredentialKind::Token | CredentialKind::Exchanged => presented != Method::ApiKey,
            CredentialKind::ApiKey => !keys_off,
        };
        let found = possible.then(|| self.issued.accept(digest, taken, peer, now)).flatten();
        found.ok_or_else(|| rejected(unknown))?.map_err(rejected)
    }

    /// Counts one use of a credential, on disk; it may have none left.
    pub async fn count(
        &self,
        issue: &Issue,
        store: &dyn storage::CredentialStore,
        now: Timestamp,
    ) -> storage::Result<bool> {
        let counted = store.use_credential(&issue.record.id, now).await?;
        issue.counted(counted);
        Ok(counted)
    }

    /// The key sets that must be kept fresh, each by a task of its own.
    #[must_use]
    pub fn rings(&self) -> Vec<Arc<Ring>> {
        let jwt = match &self.known {
            Known::Everybody(_) => None,
            Known::Holders(holders) => holders.jwt.as_ref(),
        };
        jwt.map(|jwt| jwt.verifier.rings().cloned().collect()).unwrap_or_default()
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
            .map(|key| (Digest::from(&key.digest), KeyHolder::new(key, revoked)))
            .collect();
        let jwt = JwtHolders::new(&credentials.issuers, foreign, revoked)?;
        let certificates = Mapping::new(&credentials.certificates);
        let api_key_header = credentials.api_key_header.clone();
        let api_keys_enabled = credentials.api_keys_enabled;
        Ok(Self { api_key_header, api_keys_enabled, api_keys, jwt, certificates })
    }

    fn api_key(&self, digest: &[u8; 32], now: Timestamp) -> Option<Accepted> {
        let holder = self.api_keys.get(&Digest::from(digest))?;
        Some(Accepted {
            session: Arc::clone(&holder.session),
            fresh: is_due(&holder.logged_at, now, LOGGED_EVERY_SECONDS),
            unknown_permissions: Vec::new(),
            counted: None,
            tie: None,
        })
    }

    fn jwt(
        &self,
        token: &str,
        digest: &[u8; 32],
        now: Timestamp,
        recalls: &Arc<Recalls>,
    ) -> Result<Accepted, Rejected> {
        let rejected = |fault: Fault| Rejected { why: fault.why(), method: Method::Jwt, fault };
        let Some(jwt) = &self.jwt else {
            return Err(rejected(Fault::NoJwtKey));
        };
        jwt.accept(token, digest, now, recalls).map_err(rejected)
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
            credential_id: secret::id_of_stranger(&key.digest),
            worker_scope: None,
            issued_at: None,
        };
        Self {
            session: Arc::new(
                Session::new(Arc::new(principal), revoked.child_token()).with_digest(&key.digest),
            ),
            rate: key.rate,
            logged_at: AtomicI64::new(i64::MIN),
        }
    }
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
