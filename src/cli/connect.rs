//! Where the server is and which credential goes with the calls: flags, then
//! the environment, then the client's file (TK-49). The file's credential goes
//! to the file's own address alone, and none goes in plain text to another
//! machine.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use bailiwick_client::{Auth, Client, ClientBuilder, Endpoint};
use clap::Args;
use serde::Deserialize;
use zeroize::Zeroize as _;

use super::{
    error::{Error, Result},
    output,
};

/// Where a server listens unless told otherwise.
const URL_DEFAULT: &str = "http://127.0.0.1:9190";
/// Where a worker process listens unless told otherwise.
const WORKER_URL_DEFAULT: &str = "http://127.0.0.1:9191";

/// Names the header of an API key, wherever the key comes from.
const API_KEY_HEADER_VARIABLE: &str = "BAILIWICK_API_KEY_HEADER";

/// Flags of every command that talks to a server.
#[derive(Args, Clone)]
pub(crate) struct Connection {
    /// The server's gRPC address with its scheme
    #[arg(
        long,
        global = true,
        env = "BAILIWICK_URL",
        value_name = "URL",
        help_heading = "Connection"
    )]
    url: Option<String>,
    /// A token, sent as `Authorization: Bearer`; --token-file keeps it out of
    /// the list of processes
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        hide_env_values = true,
        help_heading = "Connection"
    )]
    token: Option<String>,
    /// A file that holds the token
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        conflicts_with = "token",
        help_heading = "Connection"
    )]
    token_file: Option<PathBuf>,
    /// An API key
    #[arg(long, global = true, value_name = "KEY", conflicts_with_all = ["token", "token_file"], help_heading = "Connection")]
    api_key: Option<String>,
    /// The header that carries the API key [default: X-API-Key]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Connection")]
    api_key_header: Option<String>,
    /// The authority of an https server, a PEM file; the system's by default
    #[arg(
        long,
        global = true,
        env = "BAILIWICK_TLS_CA",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    tls_ca: Option<PathBuf>,
    /// A client certificate for an https server, a PEM file; with --tls-key
    #[arg(
        long,
        global = true,
        env = "BAILIWICK_TLS_CERT",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, a PEM file
    #[arg(
        long,
        global = true,
        env = "BAILIWICK_TLS_KEY",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    tls_key: Option<PathBuf>,
    /// Send a credential over http:// to another machine, where anybody on the
    /// way can read it
    #[arg(
        long,
        global = true,
        env = "BAILIWICK_ALLOW_PLAINTEXT",
        value_parser = clap::builder::BoolishValueParser::new(),
        help_heading = "Connection"
    )]
    allow_plaintext: bool,
}

/// Shows which flags are set, never their secrets.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("url", &self.url).finish_non_exhaustive()
    }
}

/// The client's file, `~/.config/bailiwick/config.toml`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    url: Option<String>,
    /// For commands about a worker process.
    worker_url: Option<String>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    api_key: Option<String>,
    api_key_header: Option<String>,
    tls_ca: Option<PathBuf>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    /// Whether the credentials may go to this file's addresses over http://.
    #[serde(default)]
    allow_plaintext: bool,
}

/// A server, and what it gets to see.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    url: String,
    auth: Auth,
    /// Whether the file has a credential that is for another address.
    left_out: bool,
}

impl Connection {
    /// Connects to the server.
    pub(crate) async fn client(&self) -> Result<Client> {
        let builder = self.builder(Endpoint::Orchestration, self.url.as_deref())?;
        Ok(builder.user_agent("bailiwick-cli").connect().await?)
    }

    /// Connects to a worker process, at this address before the file's.
    pub(crate) async fn worker_client(&self, url: Option<&str>) -> Result<Client> {
        let builder = self.builder(Endpoint::Worker, url)?;
        Ok(builder.user_agent("bailiwick-cli").connect().await?)
    }

    /// Connects with another token than the caller's own.
    pub(crate) async fn client_with(&self, token: &str) -> Result<Client> {
        let token = Some(token.to_owned());
        let mut this = Self { token, token_file: None, api_key: None, ..self.clone() };
        let client = this.client().await;
        this.token.zeroize();
        client
    }

    /// Whether a secret is the caller's own credential.
    pub(crate) fn is_own(&self, secret: &str) -> bool {
        self.own().is_ok_and(|auth| {
            matches!(auth, Auth::Bearer(own) | Auth::ApiKey { key: own, .. } if own == secret)
        })
    }

    /// The token alone, for commands that look at it.
    pub(crate) fn token(&self) -> Result<String> {
        match self.own()? {
            Auth::Bearer(token) => Ok(token),
            Auth::None | Auth::ApiKey { .. } => Err(Error::Usage(
                "no token is given; use --token, --token-file or BAILIWICK_AUTH_TOKEN".to_owned(),
            )),
        }
    }

    /// A client that connects with its first call: a worker waits for its
    /// server.
    pub(crate) fn lazy_client(&self) -> Result<Client> {
        let builder = self.builder(Endpoint::Orchestration, self.url.as_deref())?;
        Ok(builder.user_agent("bailiwick-worker").connect_lazy()?)
    }

    fn builder(&self, endpoint: Endpoint, url: Option<&str>) -> Result<ClientBuilder> {
        let path = profile_path();
        let target = self.target(endpoint, url, |name| std::env::var(name).ok(), &path)?;
        let Target { url, auth, left_out } = target;
        if left_out {
            let key = match endpoint {
                Endpoint::Orchestration => "url",
                Endpoint::Worker => "worker_url",
            };
            output::note(format!(
                "note: the credential in {} is for its own `{key}` and is not sent to {}; give \
                 --token-file or BAILIWICK_AUTH_TOKEN, or set that `{key}`",
                path.display(),
                shown(&url)
            ));
        }
        self.tls(Client::builder(&url).auth(auth), &url, &path)
    }

    /// The files of TLS; a certificate and its key come from one place.
    fn tls(&self, builder: ClientBuilder, url: &str, profile: &Path) -> Result<ClientBuilder> {
        let named = self.tls_ca.is_some() || self.tls_cert.is_some() || self.tls_key.is_some();
        if !url.starts_with("https://") {
            if named {
                return Err(Error::Usage(format!(
                    "--tls-ca, --tls-cert and --tls-key are for an https:// server, not {url}"
                )));
            }
            return Ok(builder);
        }
        let file = read_profile(profile)?;
        // Relative to the file that names it.
        let folder = profile.parent().unwrap_or_else(|| Path::new("."));
        let beside = |path: PathBuf| folder.join(path);
        let builder = match self.tls_ca.clone().or_else(|| file.tls_ca.map(beside)) {
            Some(path) => builder.ca_certificate(read_file(&path)?),
            None => builder,
        };
        let own = (self.tls_cert.clone(), self.tls_key.clone());
        let pair = match own {
            (None, None) => (file.tls_cert.map(beside), file.tls_key.map(beside)),
            own => own,
        };
        match pair {
            (Some(cert), Some(key)) => {
                Ok(builder.client_identity(read_file(&cert)?, read_file(&key)?))
            }
            (None, None) => Ok(builder),
            (Some(_), None) => Err(half("tls-cert", "tls-key")),
            (None, Some(_)) => Err(half("tls-key", "tls-cert")),
        }
    }

    /// Where to, and with which credential.
    fn target(
        &self,
        endpoint: Endpoint,
        url: Option<&str>,
        environment: impl Fn(&str) -> Option<String>,
        path: &Path,
    ) -> Result<Target> {
        let file = read_profile(path)?;
        let home = file.home(endpoint);
        let url = url
            .or_else(|| file.named(endpoint))
            .unwrap_or_else(|| default_url(endpoint))
            .to_owned();
        let at_home = home.is_some_and(|home| same_origin(home, &url));
        let (auth, left_out) = match self.given(endpoint, &environment)? {
            Some(auth) => (auth, false),
            None if at_home => (file.auth(path)?, false),
            None => (Auth::None, file.has_credential()),
        };
        let allowed = self.allow_plaintext || (at_home && file.allow_plaintext);
        if auth != Auth::None && !allowed && leaves_in_plain_text(&url) {
            return Err(Error::Usage(format!(
                "a credential is not sent to {}: over http:// anybody on the way can read it; \
                 use https://, or --allow-plaintext (BAILIWICK_ALLOW_PLAINTEXT=true) where the \
                 network is your own",
                shown(&url)
            )));
        }
        Ok(Target { url, auth: self.in_header(auth, environment, &file), left_out })
    }

    /// The caller's own credential, which goes nowhere.
    fn own(&self) -> Result<Auth> {
        let given = self.given(Endpoint::Orchestration, |name| std::env::var(name).ok())?;
        let path = profile_path();
        given.map_or_else(|| read_profile(&path)?.auth(&path), Ok)
    }

    /// What flags and environment say; they are meant for this very call.
    fn given(
        &self,
        endpoint: Endpoint,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Auth>> {
        Ok(self.flags()?.or_else(|| Auth::from_env(endpoint, environment)))
    }

    /// The header is a setting of its own: a key from elsewhere goes in it too.
    fn in_header(
        &self,
        auth: Auth,
        environment: impl Fn(&str) -> Option<String>,
        file: &Profile,
    ) -> Auth {
        let header = self
            .api_key_header
            .clone()
            .or_else(|| environment(API_KEY_HEADER_VARIABLE).filter(|name| !name.trim().is_empty()))
            .or_else(|| file.api_key_header.clone());
        match auth {
            Auth::ApiKey { key, .. } => Auth::ApiKey { key, header },
            Auth::None | Auth::Bearer(_) => auth,
        }
    }

    fn flags(&self) -> Result<Option<Auth>> {
        if let Some(token) = &self.token {
            return Ok(Some(Auth::Bearer(token.clone())));
        }
        if let Some(path) = &self.token_file {
            return read_secret(path).map(Auth::Bearer).map(Some);
        }
        Ok(self.api_key.clone().map(|key| Auth::ApiKey { key, header: None }))
    }
}

impl Profile {
    /// The address that the file names.
    fn named(&self, endpoint: Endpoint) -> Option<&str> {
        match endpoint {
            Endpoint::Orchestration => self.url.as_deref(),
            Endpoint::Worker => self.worker_url.as_deref(),
        }
    }

    /// The address that the file's credential is for. One that names none is
    /// for those on this machine; one that names the other is for that alone.
    fn home(&self, endpoint: Endpoint) -> Option<&str> {
        let none = self.url.is_none() && self.worker_url.is_none();
        self.named(endpoint).or_else(|| none.then(|| default_url(endpoint)))
    }

    fn has_credential(&self) -> bool {
        self.token.is_some() || self.token_file.is_some() || self.api_key.is_some()
    }

    fn auth(&self, path: &Path) -> Result<Auth> {
        if let Some(token) = &self.token {
            return Ok(Auth::Bearer(token.clone()));
        }
        if let Some(file) = &self.token_file {
            // Relative to the file that names it.
            let folder = path.parent().unwrap_or_else(|| Path::new("."));
            return read_secret(&folder.join(file)).map(Auth::Bearer);
        }
        let key = self.api_key.clone();
        Ok(key.map_or(Auth::None, |key| Auth::ApiKey { key, header: None }))
    }
}

const fn default_url(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Orchestration => URL_DEFAULT,
        Endpoint::Worker => WORKER_URL_DEFAULT,
    }
}

/// Scheme, host and port of a server's address; none when it is no such.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: http::Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().or(match scheme.as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    })?;
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// An address without the user that it must not hold.
fn shown(url: &str) -> String {
    origin(url).map_or_else(
        || "this address".to_owned(),
        |(scheme, host, port)| format!("{scheme}://{host}:{port}"),
    )
}

fn same_origin(one: &str, other: &str) -> bool {
    origin(one).is_some_and(|one| origin(other) == Some(one))
}

/// Whether what is sent there can be read on the way.
fn leaves_in_plain_text(url: &str) -> bool {
    // The client refuses an address that is none.
    let Some((scheme, host, _)) = origin(url) else { return false };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let here = bare == "localhost"
        || bare.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    scheme != "https" && !here
}

fn half(given: &str, missing: &str) -> Error {
    Error::Usage(format!("--{given} needs --{missing} beside it, from the same place"))
}

fn profile_path() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    folder.unwrap_or_default().join("bailiwick/config.toml")
}

fn read_profile(path: &Path) -> Result<Profile> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Profile::default()),
        Err(error) => return Err(Error::Usage(format!("{}: {error}", path.display()))),
    };
    // The parser's own message would quote the line, which may be the secret.
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(0, |span| {
            text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
        });
        Error::Usage(format!(
            "{}, line {line}: it may hold url, worker_url, token, token_file, api_key, \
             api_key_header, tls_ca, tls_cert and tls_key, each a string, and allow_plaintext, \
             true or false",
            path.display()
        ))
    })
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::Usage(format!("{}: {error}", path.display())))
}

fn read_secret(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::Usage(format!("{}: {error}", path.display())))?;
    let secret = text.trim();
    if secret.is_empty() {
        return Err(Error::Usage(format!("{} is empty; it must hold a token", path.display())));
    }
    Ok(secret.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Connection {
        Connection {
            url: None,
            token: None,
            token_file: None,
            api_key: None,
            api_key_header: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            allow_plaintext: false,
        }
    }

    fn resolve(flags: &Connection, environment: &[(&str, &str)], profile: &str) -> (String, Auth) {
        let Target { url, auth, .. } =
            target(flags, Endpoint::Orchestration, environment, profile).unwrap();
        (url, auth)
    }

    fn target(
        flags: &Connection,
        endpoint: Endpoint,
        environment: &[(&str, &str)],
        profile: &str,
    ) -> Result<Target> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, profile).unwrap();
        std::fs::write(folder.path().join("token"), "from-token-file\n").unwrap();
        let find = |name: &str| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        flags.target(endpoint, flags.url.as_deref(), find, &path)
    }

    #[test]
    fn tk_49_the_nearest_credential_wins() {
        let all = [
            ("BAILIWICK_ORCHESTRATION_AUTH_TOKEN", "own"),
            ("BAILIWICK_AUTH_TOKEN", "global"),
            ("BAILIWICK_API_KEY", "key"),
        ];
        let profile = "token = 'file'\nurl = 'https://profile:1'";
        let bearer = |text: &str| Auth::Bearer(text.to_owned());
        let key = Auth::ApiKey { key: "key".to_owned(), header: None };
        assert_eq!(resolve(&flags(), &all, profile).1, bearer("own"));
        assert_eq!(resolve(&flags(), &all[1..], profile).1, bearer("global"));
        assert_eq!(resolve(&flags(), &all[2..], profile).1, key);
        assert_eq!(
            resolve(&flags(), &[], profile),
            ("https://profile:1".to_owned(), bearer("file"))
        );
        assert_eq!(resolve(&flags(), &[], "token_file = 'token'").1, bearer("from-token-file"));
        assert_eq!(resolve(&flags(), &[], ""), (URL_DEFAULT.to_owned(), Auth::None));
        let flag = Connection { token: Some("flag".to_owned()), ..flags() };
        assert_eq!(resolve(&flag, &all, profile).1, bearer("flag"));
    }

    #[test]
    fn tk_50_the_nearest_header_goes_with_any_key() {
        let header = |flags: &Connection, environment: &[(&str, &str)], profile: &str| {
            let Auth::ApiKey { header, .. } = resolve(flags, environment, profile).1 else {
                panic!("no key");
            };
            header
        };
        let (key, named) =
            (("BAILIWICK_API_KEY", "key"), ("BAILIWICK_API_KEY_HEADER", "X-Environment"));
        let key_flag = Connection { api_key: Some("key".to_owned()), ..flags() };
        let header_flag = Connection { api_key_header: Some("X-Flag".to_owned()), ..flags() };
        let profile = "api_key = 'key'\napi_key_header = 'X-Profile'";
        assert_eq!(header(&header_flag, &[key, named], profile).as_deref(), Some("X-Flag"));
        assert_eq!(header(&header_flag, &[], profile).as_deref(), Some("X-Flag"));
        assert_eq!(header(&key_flag, &[named], profile).as_deref(), Some("X-Environment"));
        assert_eq!(header(&flags(), &[named], profile).as_deref(), Some("X-Environment"));
        assert_eq!(header(&flags(), &[key], profile).as_deref(), Some("X-Profile"));
        assert_eq!(header(&flags(), &[], profile).as_deref(), Some("X-Profile"));
        assert_eq!(header(&key_flag, &[], ""), None);
    }

    fn at(url: &str) -> Connection {
        Connection { url: Some(url.to_owned()), ..flags() }
    }

    #[test]
    fn the_files_credential_goes_to_the_files_own_address_alone() {
        let home =
            "token = 'file'\nurl = 'https://home.example'\nworker_url = 'https://w.example:1'";
        let (server, worker) = (Endpoint::Orchestration, Endpoint::Worker);
        for (endpoint, url, profile, sent) in [
            (server, "https://home.example", home, true),
            (server, "https://HOME.example:443/", home, true),
            (server, "https://home.example:444", home, false),
            (server, "https://home.example.evil", home, false),
            (server, "https://evil.example", home, false),
            (server, "http://home.example", home, false),
            (server, "http://home.example:443", home, false),
            (server, "https://w.example:1", home, false),
            (server, "home.example", home, false),
            (worker, "https://w.example:1", home, true),
            (worker, "https://home.example", home, false),
            (worker, "https://w.example", home, false),
            // The defaults, when the file names no address at all.
            (server, URL_DEFAULT, "token = 'file'", true),
            (server, WORKER_URL_DEFAULT, "token = 'file'", false),
            (server, "http://localhost:9190", "token = 'file'", false),
            (worker, WORKER_URL_DEFAULT, "token = 'file'", true),
            (worker, WORKER_URL_DEFAULT, "api_key = 'file'\nurl = 'https://home.example'", false),
            (server, URL_DEFAULT, "api_key = 'file'\nworker_url = 'https://w.example'", false),
            // Not even read.
            (server, "https://evil.example", "token_file = 'absent'", false),
        ] {
            let found = target(&at(url), endpoint, &[], profile).unwrap();
            assert_eq!(
                (found.auth != Auth::None, found.left_out),
                (sent, !sent),
                "{url} {profile}"
            );
            // One that is given for the call goes where the call goes.
            if !url.starts_with("http://home") {
                let given = [("BAILIWICK_AUTH_TOKEN", "given")];
                let found = target(&at(url), endpoint, &given, profile).unwrap();
                assert_eq!(found.auth, Auth::Bearer("given".to_owned()), "{url}");
                assert!(!found.left_out);
            }
        }
        let nothing = target(&at("https://a"), server, &[], "url = 'https://b'").unwrap();
        assert!(!nothing.left_out);
        // Without a flag the file says both.
        let found = target(&flags(), worker, &[], home).unwrap();
        assert_eq!((found.url.as_str(), found.left_out), ("https://w.example:1", false));
    }

    #[test]
    fn no_credential_goes_to_another_machine_in_plain_text() {
        let token = [("BAILIWICK_AUTH_TOKEN", "very-secret")];
        let server = Endpoint::Orchestration;
        for url in [
            "http://127.0.0.1:9190",
            "http://127.9.9.9",
            "http://[::1]:9190",
            "http://localhost:9190",
            "http://LOCALHOST",
            "https://home.example",
            "https://192.0.2.1:9190",
        ] {
            assert!(target(&at(url), server, &token, "").is_ok(), "{url}");
        }
        for url in [
            "http://home.example:9190",
            "HTTP://home.example",
            "http://192.0.2.1:9190",
            "http://0.0.0.0:9190",
            "http://[2001:db8::1]:9190",
            "http://127.0.0.1.evil.example",
            "http://localhost.evil.example",
            "http://me:very-secret@home.example",
        ] {
            let given = Connection { token: Some("very-secret".to_owned()), ..at(url) };
            for (flags, environment, profile) in [
                (&given, &[][..], String::new()),
                (&at(url), &token, String::new()),
                (&at(url), &[("BAILIWICK_API_KEY", "very-secret")], String::new()),
                (&flags(), &[], format!("url = '{url}'\ntoken = 'very-secret'")),
            ] {
                let error = target(flags, server, environment, &profile).unwrap_err();
                assert!(matches!(error, Error::Usage(_)), "{error}");
                let said = error.to_string();
                assert!(said.contains("--allow-plaintext") && !said.contains("secret"), "{said}");
                let allowed = Connection { allow_plaintext: true, ..flags.clone() };
                assert!(target(&allowed, server, environment, &profile).is_ok(), "{url}");
                // The file speaks for its own address.
                let profile = format!("{profile}\nallow_plaintext = true");
                let own = target(flags, server, environment, &profile).is_ok();
                assert_eq!(own, flags.url.is_none(), "{url}");
            }
            // Without a credential there is nothing to read.
            assert!(target(&at(url), server, &[], "").is_ok(), "{url}");
        }
    }

    #[test]
    fn a_broken_profile_names_the_line_and_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "url = 'http://x'\ntokn = 'very-secret'\n").unwrap();
        let error = flags().target(Endpoint::Orchestration, None, |_| None, &path);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("very-secret"), "{error}");
    }
}
