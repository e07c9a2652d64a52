//! `[auth]`: what may be presented, and what it is worth.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::HeaderName;
use sha2::{Digest, Sha256};

use super::{
    Certificates, Error, Jwt, OwnRate, Reach, Roles, given, issuers, limits::own_rate, number, raw,
};
use crate::domain::{Permission, PermissionSet, Scope};

/// Keys that stand in the documentation and in examples: everybody knows
/// them, so they open nothing beyond this machine (SE-21).
pub const DOCUMENTED_KEYS: &[&str] =
    &["sk-prod-key-1", "sk-prod-key-2", "sk-test-key-1", "sk-example-key", "your-api-key"];

/// The token file where none is named.
const TOKEN_FILE: &str = "auth.token";
/// The most days without use.
const DAYS_MAX: u64 = 36_500;
/// The longest API key.
const API_KEY_BYTES_MAX: usize = 1024;
/// The longest description of a key.
const DESCRIPTION_BYTES_MAX: usize = 256;

/// Who may call.
#[derive(Clone, Debug)]
pub struct Auth {
    /// Whether callers need credentials.
    pub mode: Mode,
    /// Permissions of other services, which this one only answers about.
    pub extra_permissions: BTreeSet<Arc<str>>,
    /// How long generated tokens live.
    pub jwt_token_expiry: Duration,
    /// Where minted tokens are kept.
    pub token_store: TokenStore,
    /// After how many days without use a credential that the server gave out
    /// is revoked; none is never.
    pub disable_unused_after_days: Option<NonZeroU32>,
}

/// Where minted tokens are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenStore {
    /// In the store, as all else.
    Database,
    /// In this file.
    File(PathBuf),
}

/// Whether callers need credentials.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Everybody is the one principal of auth off.
    Off,
    /// Callers need one of these.
    On(Box<Credentials>),
}

/// The credentials that count.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The issuers whose JWTs are taken, each by its own keys.
    pub issuers: Vec<Jwt>,
    /// The header that carries an API key.
    pub api_key_header: HeaderName,
    /// Whether API keys are taken.
    pub api_keys_enabled: bool,
    /// The keys that count; none while they are disabled.
    pub api_keys: Vec<ApiKey>,
    /// Whom client certificates make.
    pub certificates: Certificates,
}

/// The algorithms of signatures that are taken at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA with PKCS#1 v1.5 and SHA-256.
    Rs256,
    /// ECDSA over P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rs256, Self::Es256, Self::EdDsa];

    /// As a JWT names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An API key. The key itself is gone: its digest is all that is needed.
#[derive(Clone)]
pub struct ApiKey {
    /// The subject: the description, or `api-key-N` by its place.
    pub subject: Arc<str>,
    /// The SHA-256 of the key.
    pub digest: [u8; 32],
    /// What it may.
    pub permissions: PermissionSet,
    /// Where.
    pub scope: Scope,
    /// The limit on its calls.
    pub rate: OwnRate,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({})", self.subject)
    }
}

/// Validates the table.
pub(super) fn auth(
    raw: &raw::Auth,
    base: &Path,
    roles: &Roles,
    reach: Reach,
    warnings: &mut Vec<String>,
) -> Result<Auth, Error> {
    let extra_permissions = extra_permissions(&raw.extra_permissions)?;
    let api_key_header = api_key_header(&raw.api_key_header)?;
    let issuers = issuers::issuers(raw, base, roles, &extra_permissions, warnings)?;
    let api_keys = api_keys(&raw.api_keys, roles, &extra_permissions, reach)?;
    let jwt_token_expiry = token_expiry(raw)?;
    let token_store = token_store(raw, base)?;
    let mode = if raw.enabled {
        let api_keys = if raw.api_keys_enabled { api_keys } else { Vec::new() };
        if issuers.is_empty() && api_keys.is_empty() && raw.certificates.is_empty() {
            warnings.push(
                "auth is on, and no API key, JWT issuer or certificate is configured: nobody \
                 gets in but by a token or key that the store holds already"
                    .to_owned(),
            );
        }
        Mode::On(Box::new(Credentials {
            issuers,
            api_key_header,
            api_keys_enabled: raw.api_keys_enabled,
            api_keys,
            certificates: Certificates::default(),
        }))
    } else {
        check_auth_off(raw.allow_unauthenticated_remote, reach, warnings)?;
        Mode::Off
    };
    let disable_unused_after_days =
        number("auth.disable_unused_after_days", raw.disable_unused_after_days, 0, DAYS_MAX)
            .map(NonZeroU32::new)?;
    Ok(Auth { mode, extra_permissions, jwt_token_expiry, token_store, disable_unused_after_days })
}

/// How long generated tokens live.
pub(super) fn token_expiry(raw: &raw::Auth) -> Result<Duration, Error> {
    number("auth.jwt_token_expiry_hours", raw.jwt_token_expiry_hours, 1, 8760)
        .map(|hours: u64| Duration::from_secs(hours * 3600))
}

/// The file's path counts from the configuration's folder.
fn token_store(raw: &raw::Auth, base: &Path) -> Result<TokenStore, Error> {
    const FILE: &str = "auth.token_file";
    let file = given(raw.token_file.clone());
    match raw.token_store.as_str() {
        "database" if file.is_some() => Err(Error::invalid(
            FILE,
            "counts only with `auth.token_store = \"file\"`; set that, or take this one out",
        )),
        "database" => Ok(TokenStore::Database),
        "file" => {
            let path = base.join(file.as_deref().unwrap_or(TOKEN_FILE));
            if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
                return Err(Error::invalid(FILE, "must be the path of a file"));
            }
            Ok(TokenStore::File(path))
        }
        other => {
            let problem = format!("`{other}` is neither `database` nor `file`");
            Err(Error::invalid("auth.token_store", problem))
        }
    }
}

fn check_auth_off(
    allowed_remote: bool,
    reach: Reach,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    match (reach, allowed_remote) {
        (Reach::Loopback, _) => {
            warnings.push("auth is off: every local program may do everything".to_owned());
        }
        (Reach::Beyond, true) => {
            warnings.push("auth is off beyond loopback: everybody may do everything".to_owned());
        }
        (Reach::Beyond, false) => {
            return Err(Error::invalid(
                "auth.enabled",
                "auth is off and a listener is reachable beyond loopback: set `auth.enabled = \
                 true`, listen on 127.0.0.1, or, if everybody may do everything, set \
                 `auth.allow_unauthenticated_remote = true`",
            ));
        }
    }
    Ok(())
}

/// SE-42, SE-03: foreign names stay apart from the vocabulary, so that none
/// of its wildcards gains anything.
pub(super) fn extra_permissions(names: &[String]) -> Result<BTreeSet<Arc<str>>, Error> {
    let segment = |segment: &str| {
        !segment.is_empty()
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    };
    let mut extra = BTreeSet::new();
    for name in names {
        let wrong = |problem: &str| {
            Err(Error::invalid("auth.extra_permissions", format!("`{name}` {problem}")))
        };
        let Some((resource, _)) = name.rsplit_once(':') else {
            return wrong("is not of the form `resource:action`");
        };
        if !name.split(':').all(segment) {
            return wrong("is not of the form `resource:action`; wildcards cannot be declared");
        }
        let built_in = Permission::ALL.iter().any(|permission| permission.resource() == resource);
        if built_in || resource == "auth" || resource.starts_with("auth:") {
            return wrong("belongs to a resource of Bailiwick itself");
        }
        extra.insert(Arc::from(name.as_str()));
    }
    Ok(extra)
}

fn api_key_header(name: &str) -> Result<HeaderName, Error> {
    const TAKEN: &[&str] = &[
        "authorization",
        "accept",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "forwarded",
        "host",
        "origin",
        "te",
        "trailer",
        "traceparent",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-forwarded-for",
        "x-request-id",
    ];
    const KEY: &str = "auth.api_key_header";
    let header = HeaderName::try_from(name)
        .map_err(|_| Error::invalid(KEY, format!("`{name}` is not a header's name")))?;
    // gRPC decodes `-bin` from base64 and keeps `grpc-` for itself.
    let grpc = header.as_str().starts_with("grpc-") || header.as_str().ends_with("-bin");
    if grpc || TAKEN.contains(&header.as_str()) {
        return Err(Error::invalid(KEY, format!("`{name}` has another meaning already")));
    }
    Ok(header)
}

fn api_keys(
    raw: &[raw::ApiKey],
    roles: &Roles,
    extra: &BTreeSet<Arc<str>>,
    reach: Reach,
) -> Result<Vec<ApiKey>, Error> {
    let mut places: BTreeMap<[u8; 32], String> = BTreeMap::new();
    let mut keys = Vec::with_capacity(raw.len());
    for (entry, number) in raw.iter().zip(1_usize..) {
        let description = given(entry.description.clone());
        let place = match &description {
            Some(description) => {
                format!("auth.api_keys #{number} ({})", description.escape_debug())
            }
            None => format!("auth.api_keys #{number}"),
        };
        let mut key = api_key(entry, number, description, roles, extra)
            .map_err(|problem| Error::invalid(place.as_str(), problem))?;
        key.rate = own_rate(&place, entry)?;
        if reach == Reach::Beyond && DOCUMENTED_KEYS.contains(&entry.key.as_str()) {
            return Err(Error::invalid(
                place,
                "this key stands in the documentation, so everybody knows it; it is refused while \
                 a listener is reachable beyond loopback",
            ));
        }
        if let Some(other) = places.get(&key.digest) {
            return Err(Error::invalid(place, format!("has the same key as {other}")));
        }
        places.insert(key.digest, place);
        keys.push(key);
    }
    Ok(keys)
}

/// A problem never shows the key.
fn api_key(
    entry: &raw::ApiKey,
    number: usize,
    description: Option<String>,
    roles: &Roles,
    extra: &BTreeSet<Arc<str>>,
) -> Result<ApiKey, String> {
    let subject = description.unwrap_or_else(|| format!("api-key-{number}"));
    if subject.len() > DESCRIPTION_BYTES_MAX || subject.chars().any(char::is_control) {
        return Err(format!(
            "`description` must have at most {DESCRIPTION_BYTES_MAX} bytes and no control characters"
        ));
    }
    // A comma would read as two keys (SE-14).
    let sendable = |byte: u8| byte.is_ascii_graphic() && byte != b',';
    if entry.key.is_empty()
        || entry.key.len() > API_KEY_BYTES_MAX
        || !entry.key.bytes().all(sendable)
    {
        return Err(format!(
            "`key` must be 1 to {API_KEY_BYTES_MAX} visible ASCII characters without a comma"
        ));
    }
    let permissions = roles.set(&entry.permissions, extra)?;
    let scope = entry.namespaces.as_ref().map_or(Ok(Scope::Everything), |names| {
        Scope::parse(names).map_err(|error| error.to_string())
    })?;
    let digest = Sha256::digest(entry.key.as_bytes()).into();
    Ok(ApiKey { subject: subject.into(), digest, permissions, scope, rate: OwnRate::None })
}
