//! Where the server is and which credential goes with the calls: flags, then
//! the environment, then the client's file (TK-49).

use std::{
    fmt,
    path::{Path, PathBuf},
};

use bailiwick_client::{Auth, Client, ClientBuilder, Endpoint};
use clap::Args;
use serde::Deserialize;
use zeroize::Zeroize as _;

use super::error::{Error, Result};

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
}

impl Connection {
    /// Connects to the server.
    pub(crate) async fn client(&self) -> Result<Client> {
        Ok(self.builder()?.user_agent("bailiwick-cli").connect().await?)
    }

    /// Connects to a worker process, at this address before the file's.
    pub(crate) async fn worker_client(&self, url: Option<&str>) -> Result<Client> {
        let profile = profile_path();
        let url = match url {
            Some(url) => url.to_owned(),
            None => {
                read_profile(&profile)?.worker_url.unwrap_or_else(|| WORKER_URL_DEFAULT.to_owned())
            }
        };
        let auth = self.auth(Endpoint::Worker, |name| std::env::var(name).ok(), &profile)?;
        let builder = self.tls(Client::builder(&url).auth(auth), &url, &profile)?;
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
        let resolved = self.resolve(|name| std::env::var(name).ok(), &profile_path());
        resolved.is_ok_and(|(_, auth)| {
            matches!(auth, Auth::Bearer(own) | Auth::ApiKey { key: own, .. } if own == secret)
        })
    }

    /// The token alone, for commands that look at it.
    pub(crate) fn token(&self) -> Result<String> {
        match self.resolve(|name| std::env::var(name).ok(), &profile_path())?.1 {
            Auth::Bearer(token) => Ok(token),
            Auth::None | Auth::ApiKey { .. } => Err(Error::Usage(
                "no token is given; use --token, --token-file or BAILIWICK_AUTH_TOKEN".to_owned(),
            )),
        }
    }

    /// A client that connects with its first call: a worker waits for its
    /// server.
    pub(crate) fn lazy_client(&self) -> Result<Client> {
        Ok(self.builder()?.user_agent("bailiwick-worker").connect_lazy()?)
    }

    fn builder(&self) -> Result<ClientBuilder> {
        let profile = profile_path();
        let (url, auth) = self.resolve(|name| std::env::var(name).ok(), &profile)?;
        self.tls(Client::builder(&url).auth(auth), &url, &profile)
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

    fn resolve(
        &self,
        environment: impl Fn(&str) -> Option<String>,
        profile: &Path,
    ) -> Result<(String, Auth)> {
        let file = read_profile(profile)?;
        let url = self.url.clone().or(file.url).unwrap_or_else(|| URL_DEFAULT.to_owned());
        Ok((url, self.auth(Endpoint::Orchestration, environment, profile)?))
    }

    fn auth(
        &self,
        endpoint: Endpoint,
        environment: impl Fn(&str) -> Option<String>,
        profile: &Path,
    ) -> Result<Auth> {
        let file = read_profile(profile)?;
        // The header is a setting of its own: a key from elsewhere goes in it
        // too.
        let header = self
            .api_key_header
            .clone()
            .or_else(|| environment(API_KEY_HEADER_VARIABLE).filter(|name| !name.trim().is_empty()))
            .or_else(|| file.api_key_header.clone());
        let auth = match self.flags()? {
            Some(auth) => auth,
            None => match Auth::from_env(endpoint, environment) {
                Some(auth) => auth,
                None => file.auth(profile)?,
            },
        };
        Ok(match auth {
            Auth::ApiKey { key, .. } => Auth::ApiKey { key, header },
            Auth::None | Auth::Bearer(_) => auth,
        })
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
    fn auth(self, path: &Path) -> Result<Auth> {
        if let Some(token) = self.token {
            return Ok(Auth::Bearer(token));
        }
        if let Some(file) = self.token_file {
            // Relative to the file that names it.
            let folder = path.parent().unwrap_or_else(|| Path::new("."));
            return read_secret(&folder.join(file)).map(Auth::Bearer);
        }
        Ok(self.api_key.map_or(Auth::None, |key| Auth::ApiKey { key, header: None }))
    }
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
             api_key_header, tls_ca, tls_cert and tls_key, each a string",
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
        }
    }

    fn resolve(flags: &Connection, environment: &[(&str, &str)], profile: &str) -> (String, Auth) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, profile).unwrap();
        std::fs::write(folder.path().join("token"), "from-token-file\n").unwrap();
        let find = |name: &str| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        flags.resolve(find, &path).unwrap()
    }

    #[test]
    fn tk_49_the_nearest_credential_wins() {
        let all = [
            ("BAILIWICK_ORCHESTRATION_AUTH_TOKEN", "own"),
            ("BAILIWICK_AUTH_TOKEN", "global"),
            ("BAILIWICK_API_KEY", "key"),
        ];
        let profile = "token = 'file'\nurl = 'http://profile:1'";
        let bearer = |text: &str| Auth::Bearer(text.to_owned());
        let key = Auth::ApiKey { key: "key".to_owned(), header: None };
        assert_eq!(resolve(&flags(), &all, profile).1, bearer("own"));
        assert_eq!(resolve(&flags(), &all[1..], profile).1, bearer("global"));
        assert_eq!(resolve(&flags(), &all[2..], profile).1, key);
        assert_eq!(
            resolve(&flags(), &[], profile),
            ("http://profile:1".to_owned(), bearer("file"))
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

    #[test]
    fn a_broken_profile_names_the_line_and_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "url = 'http://x'\ntokn = 'very-secret'\n").unwrap();
        let error = flags().resolve(|_| None, &path).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("very-secret"), "{error}");
    }
}
