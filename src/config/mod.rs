//! Settings: parsed, then validated into types that cannot be wrong.
//!
//! Not here: reading a public key's contents (`authn`), listening, and the
//! settings of clients (`cli`).

mod audit;
mod audit_sinks;
mod auth;
pub mod auth_file;
mod controller;
mod issuers;
mod limits;
mod raw;
mod redacted;
mod roles;
mod scheduler;
mod source;
pub(crate) mod step_tokens;
mod tls;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use audit::Audit;
pub use audit_sinks::{AuditFormat, AuditSink, AuditTarget, SyslogAddress};
pub use auth::{Algorithm, ApiKey, Auth, Credentials, DOCUMENTED_KEYS, Mode, TokenStore};
pub use auth_file::LineToken;
pub use controller::{Controller, RULE_ID_PREFIX};
pub use issuers::{Authorities, ClaimRule, Jwks, Jwt, Keys, Pattern, Place};
pub use limits::{Egress, OwnRate, Rate, Rates};
pub use roles::Roles;
pub use scheduler::Scheduler;
pub use step_tokens::{KeySource, StepTokens};
use thiserror::Error;
pub use tls::{CertificateRule, Certificates, ClientAuthority, Tls, spiffe_trust_domain};
use zeroize::Zeroizing;

use crate::domain::Network;

/// Why the settings are refused. No variant holds a value that may be secret.
#[derive(Debug, Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{what} `{}` cannot be read: {source}", path.display())]
    Read {
        /// What the file is.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What is wrong, without the text that stands there.
        message: String,
    },
    /// There is no such setting.
    #[error("unknown setting `{key}`{}", nearest.as_ref().map_or_else(String::new, |name| format!("; did you mean `{name}`?")))]
    Unknown {
        /// As it was written.
        key: String,
        /// The known one that looks most like it.
        nearest: Option<String>,
    },
    /// The setting belongs to a later version; without effect it would only
    /// pretend.
    #[error("`{key}` is not supported by this version yet; take it out of the configuration")]
    NotYet {
        /// The setting.
        key: String,
    },
    /// The value is of a wrong type.
    #[error("`{key}`: expected {expected}")]
    Type {
        /// The setting.
        key: String,
        /// What it must be.
        expected: String,
    },
    /// The value is not allowed.
    #[error("`{key}`: {problem}")]
    Invalid {
        /// The setting.
        key: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl Error {
    pub(in crate::config) fn invalid(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { key: key.into(), problem: problem.into() }
    }
}

/// A server's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[server]`.
    pub server: Server,
    /// `[storage]`.
    pub storage: Storage,
    /// `[auth]`.
    pub auth: Auth,
    /// `[[auth.namespaces]]` and the key that encrypts signing keys.
    pub step_tokens: StepTokens,
    /// How long more rights last at most that are given for a while.
    pub elevation_max: Duration,
    /// The roles, built in and of `[auth.roles]`.
    pub roles: Roles,
    /// `[controller]`; without it the line protocol is not spoken.
    pub controller: Option<Controller>,
    /// `[limits]`.
    pub limits: Limits,
    /// `[scheduler]`.
    pub scheduler: Scheduler,
    /// `[telemetry]`.
    pub telemetry: Telemetry,
    /// `[audit]`.
    pub audit: Audit,
    /// What is allowed and yet worth a line in the log at start.
    pub warnings: Vec<String>,
}

/// Where and how the server listens.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where gRPC listens.
    pub grpc_listen: SocketAddr,
    /// Where REST listens.
    pub http_listen: SocketAddr,
    /// Whether `GetConfig` answers.
    pub config_endpoint_enabled: bool,
    /// Names that the Host header may have besides localhost (SE-15).
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages that may call; none means no CORS.
    pub allowed_origins: Vec<String>,
    /// The address under which clients know the server, without a slash at
    /// its end.
    pub public_url: Option<String>,
    /// How long calls may still run when the server goes down.
    pub shutdown_grace: Duration,
    /// The files of TLS; plain text without them.
    pub tls: Option<Tls>,
}

/// Where tasks are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// The embedded store, in this file.
    Sqlite(PathBuf),
}

/// Limits on what one server takes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest body of a request.
    pub body_bytes: usize,
    /// The largest header of a request, all fields together.
    pub header_bytes: u32,
    /// Connections open at once.
    pub connections: usize,
    /// Calls running at once.
    pub concurrent_calls: usize,
    /// Streams of one HTTP/2 connection.
    pub concurrent_streams: u32,
    /// How long a unary call may take.
    pub request_timeout: Duration,
    /// How long a whole body may take to arrive (SE-16).
    pub body_timeout: Duration,
    /// How long the header of a request may take to arrive.
    pub header_timeout: Duration,
    /// How long a worker holds a step without a heartbeat.
    pub lease: Duration,
    /// How many calls are taken of whom.
    pub rates: Rates,
    /// Proxies whose `X-Forwarded-For` counts (SE-43).
    pub trusted_proxies: Vec<Network>,
    /// Where runners may connect to (SE-64).
    pub egress: Egress,
}

/// Logs and traces.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// How a line of the log looks.
    pub log_format: LogFormat,
    /// What is logged: a level or `tracing` directives.
    pub log_level: String,
    /// Where traces go.
    pub otlp_endpoint: Option<String>,
    /// The service's name in traces.
    pub service_name: String,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For eyes.
    Text,
    /// One JSON object a line.
    Json,
}

/// The longest life of a call that a setting may allow.
const SECONDS_MAX: u64 = 24 * 60 * 60;

impl Settings {
    /// Reads the file, lets the environment win over it, and checks it all.
    /// `environment` is what `std::env::vars_os` gives.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Error> {
        let (environment, variable) = with_key(environment);
        let raw = source::read(path, environment)?;
        // A path within the file means what it means to its reader.
        let base = path.and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
        let mut warnings = Vec::new();
        let extra = auth::extra_permissions(&raw.auth.extra_permissions)?;
        let roles = Roles::with(&raw.auth.roles, &extra)?;
        let certificates = tls::certificates(&raw.server, &raw.auth, &roles, &extra)?;
        let server = server(raw.server, &certificates, &base)?;
        let storage = storage(&raw.storage.url, &base)?;
        let step_tokens = step_tokens::step_tokens(
            &raw.auth,
            &server,
            (&base, &storage),
            (&roles, &extra),
            variable.as_ref(),
            raw.limits.spawned_tasks_per_root,
        )?;
        let mut auth = auth::auth(&raw.auth, &base, &roles, Reach::of(&server), &mut warnings)?;
        if let Mode::On(credentials) = &mut auth.mode {
            credentials.certificates = certificates;
        }
        step_tokens::refuse_own_issuer(&server, &auth.mode)?;
        let elevation_max =
            number("auth.elevation_max_minutes", raw.auth.elevation_max_minutes, 1, 24 * 60)
                .map(|minutes: u64| Duration::from_secs(minutes * 60))?;
        let guard = controller::Guard {
            auth_on: raw.auth.enabled,
            open_remote: raw.auth.allow_unauthenticated_remote,
            beyond: Reach::of(&server) == Reach::Beyond,
        };
        let controller = raw.controller;
        let controller = controller
            .map(|raw| controller::controller(raw, &base, guard, &mut warnings))
            .transpose()?;
        Ok(Self {
            server,
            auth,
            step_tokens,
            elevation_max,
            roles,
            controller,
            limits: limits(&raw.limits, &base)?,
            scheduler: scheduler::scheduler(raw.scheduler, &mut warnings)?,
            telemetry: telemetry(raw.telemetry)?,
            audit: audit::audit(raw.audit, &base, &storage, &mut warnings)?,
            storage,
            warnings,
        })
    }

    /// How long generated tokens live (TK-34), without the rest: who makes a
    /// token need not be able to read the server's key files.
    pub fn token_expiry(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Duration, Error> {
        auth::token_expiry(&source::read(path, environment)?.auth)
    }

    /// The permissions of other services and the roles, without the rest, for
    /// the same reason.
    pub fn vocabulary(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(BTreeSet<Arc<str>>, Roles), Error> {
        let raw = source::read(path, environment)?.auth;
        let extra = auth::extra_permissions(&raw.extra_permissions)?;
        let roles = Roles::with(&raw.roles, &extra)?;
        Ok((extra, roles))
    }

    /// What is taken off a rule's name before it is compared with a scope
    /// (ZT-32), on every surface.
    #[must_use]
    pub fn rule_id_prefixes(&self) -> Vec<String> {
        let controller = self.controller.as_ref();
        controller.map_or_else(
            || vec![RULE_ID_PREFIX.to_owned()],
            |controller| controller.rule_id_prefixes.clone(),
        )
    }

    /// The settings in force as JSON, for `GetConfig`: an allow-list, so that a
    /// setting which is added later stays hidden until it is named (SE-11).
    #[must_use]
    pub fn redacted(&self) -> serde_json::Value {
        redacted::redacted(self)
    }
}

/// Takes the key that encrypts signing keys out of the environment: it is no
/// setting, and nothing else may see it.
fn with_key(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> (Vec<(OsString, OsString)>, Option<Zeroizing<String>>) {
    let (keys, others): (Vec<_>, Vec<_>) =
        environment.into_iter().partition(|(name, _)| name == step_tokens::KEY_VARIABLE);
    // One that is no text is no key either, and is refused as such.
    let text = |(_, value): (OsString, OsString)| Zeroizing::new(value.to_string_lossy().into());
    (others, keys.into_iter().next().map(text))
}

/// Who can reach the listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Programs on this machine.
    Loopback,
    /// Others too.
    Beyond,
}

impl Reach {
    fn of(server: &Server) -> Self {
        let loopback = |listen: SocketAddr| listen.ip().to_canonical().is_loopback();
        if loopback(server.grpc_listen) && loopback(server.http_listen) {
            Self::Loopback
        } else {
            Self::Beyond
        }
    }
}

fn server(raw: raw::Server, certificates: &Certificates, base: &Path) -> Result<Server, Error> {
    Ok(Server {
        tls: tls::tls(&raw, certificates, base)?,
        grpc_listen: listen("server.grpc_listen", &raw.grpc_listen)?,
        http_listen: listen("server.http_listen", &raw.http_listen)?,
        config_endpoint_enabled: raw.config_endpoint_enabled,
        allowed_hosts: raw
            .allowed_hosts
            .iter()
            .map(|host| allowed_host(host))
            .collect::<Result<_, _>>()?,
        allowed_origins: raw
            .allowed_origins
            .iter()
            .map(|origin| allowed_origin(origin))
            .collect::<Result<_, _>>()?,
        public_url: given(raw.public_url).map(|url| public_url(&url)).transpose()?,
        shutdown_grace: seconds("server.shutdown_grace_seconds", raw.shutdown_grace_seconds, 0)?,
    })
}

/// An empty text is as good as none: environments and templates of
/// configuration files can often not leave a key out.
fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

fn listen(key: &str, text: &str) -> Result<SocketAddr, Error> {
    if let Some(port) = text.strip_prefix("localhost:")
        && let Ok(port) = port.parse()
    {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| {
        Error::invalid(key, format!("`{text}` is not an address with a port, as 127.0.0.1:9190"))
    })
}

fn allowed_host(text: &str) -> Result<String, Error> {
    let name = text.to_ascii_lowercase();
    let address = name.parse::<IpAddr>().is_ok();
    let dns = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-');
    if address || dns {
        Ok(name)
    } else {
        Err(Error::invalid(
            "server.allowed_hosts",
            format!("`{text}` is not a host name (no scheme, port or wildcard)"),
        ))
    }
}

fn allowed_origin(text: &str) -> Result<String, Error> {
    let wrong = || {
        Error::invalid(
            "server.allowed_origins",
            format!("`{text}` is not an origin, as https://console.example.org; `*` is refused"),
        )
    };
    let origin = text.to_ascii_lowercase();
    let uri: http::Uri = origin.parse().map_err(|_| wrong())?;
    let http = matches!(uri.scheme_str(), Some("http" | "https"));
    // The parser adds the path `/` where there is none.
    let bare = uri.authority().is_some_and(|authority| {
        !authority.as_str().contains('@') && origin.ends_with(authority.as_str())
    });
    if http && bare { Ok(origin) } else { Err(wrong()) }
}

fn public_url(text: &str) -> Result<String, Error> {
    const KEY: &str = "server.public_url";
    let url = http_url(KEY, text)?.trim_end_matches('/').to_owned();
    let uri: http::Uri = url.parse().map_err(|_| Error::invalid(KEY, "is not an address"))?;
    let address = |host: &str| host.trim_matches(['[', ']']).parse::<IpAddr>();
    let loopback = uri.host().is_some_and(|host| {
        host == "localhost" || address(host).is_ok_and(|ip| ip.to_canonical().is_loopback())
    });
    // What trusts it fetches keys there.
    if uri.scheme_str() == Some("https") || loopback {
        return Ok(url);
    }
    Err(Error::invalid(KEY, "must be https://; http:// is taken for loopback alone"))
}

fn http_url(key: &str, text: &str) -> Result<String, Error> {
    let wrong = || Error::invalid(key, "not an http:// or https:// address without a query");
    let uri: http::Uri = text.parse().map_err(|_| wrong())?;
    let http = matches!(uri.scheme_str(), Some("http" | "https"));
    // A user or password in it would end up in logs.
    let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    if http && plain && uri.query().is_none() { Ok(text.to_owned()) } else { Err(wrong()) }
}

fn storage(url: &str, base: &Path) -> Result<Storage, Error> {
    const KEY: &str = "storage.url";
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return Err(Error::NotYet { key: format!("{KEY} = \"postgres://…\"") });
    }
    let Some(path) = url.strip_prefix("sqlite:") else {
        return Err(Error::invalid(KEY, "must be sqlite:PATH"));
    };
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.is_empty() || path.starts_with(':') || path.contains('?') || path.ends_with('/') {
        return Err(Error::invalid(
            KEY,
            "must be sqlite:PATH with the path of a file; a store in memory would lose tasks",
        ));
    }
    Ok(Storage::Sqlite(base.join(path)))
}

fn limits(raw: &raw::Limits, base: &Path) -> Result<Limits, Error> {
    Ok(Limits {
        body_bytes: number("limits.body_bytes", raw.body_bytes, 1024, 256 << 20)?,
        // A token may have 16 KiB, and there are other fields.
        header_bytes: number("limits.header_bytes", raw.header_bytes, 4096, 1 << 20)?,
        connections: number("limits.connections", raw.connections, 1, 1_000_000)?,
        concurrent_calls: number("limits.concurrent_calls", raw.concurrent_calls, 1, 1_000_000)?,
        concurrent_streams: number("limits.concurrent_streams", raw.concurrent_streams, 1, 65_536)?,
        request_timeout: seconds("limits.request_timeout_seconds", raw.request_timeout_seconds, 1)?,
        body_timeout: seconds("limits.body_timeout_seconds", raw.body_timeout_seconds, 1)?,
        header_timeout: seconds("limits.header_timeout_seconds", raw.header_timeout_seconds, 1)?,
        // Workers beat three times within it; shorter ones would end by
        // a slow network alone, longer ones hold a dead worker's steps.
        lease: number("limits.lease_seconds", raw.lease_seconds, 5, 3600)
            .map(Duration::from_secs)?,
        rates: limits::rates(raw)?,
        trusted_proxies: limits::networks("limits.trusted_proxies", &raw.trusted_proxies)?,
        egress: limits::egress(raw, base)?,
    })
}

fn number<T: TryFrom<u64>>(key: &str, value: u64, least: u64, most: u64) -> Result<T, Error> {
    let fits = (least..=most).contains(&value).then(|| T::try_from(value).ok()).flatten();
    fits.ok_or_else(|| Error::invalid(key, format!("{value} is not within {least} to {most}")))
}

fn seconds(key: &str, value: u64, least: u64) -> Result<Duration, Error> {
    number(key, value, least, SECONDS_MAX).map(Duration::from_secs)
}

fn telemetry(raw: raw::Telemetry) -> Result<Telemetry, Error> {
    const FORMAT: &str = "telemetry.log_format";
    let log_format = match raw.log_format.as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => {
            return Err(Error::invalid(FORMAT, format!("`{other}` is neither `text` nor `json`")));
        }
    };
    tracing_subscriber::EnvFilter::try_new(&raw.log_level).map_err(|error| {
        Error::invalid("telemetry.log_level", format!("neither a level nor directives: {error}"))
    })?;
    let endpoint = given(raw.otlp_endpoint);
    Ok(Telemetry {
        log_format,
        log_level: raw.log_level,
        otlp_endpoint: endpoint.map(|url| http_url("telemetry.otlp_endpoint", &url)).transpose()?,
        service_name: raw.service_name,
    })
}

#[cfg(test)]
mod tests;
