//! A Bailiwick server of the bench's own: its folder, its configuration and
//! the credentials that it takes.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bailiwick::authn::tokens::{self, Claims, KeyKind, KeyPairPem};
use bailiwick_client::{Auth, Client, connect_with_auth, pb::v1 as pb};
use tempfile::TempDir;

use crate::{
    error::{Result, Tried as _, refused, wrong},
    line::SECRET,
    process::{Process, free_address},
};

/// Where the bench's tasks live.
pub(crate) const NAMESPACE: &str = "bench";
/// A template of one step.
pub(crate) const ONE_STEP: &str = "one_step";
/// A template of four steps, one behind the other.
pub(crate) const LINEAR: &str = "linear_4";
/// The handler of every step.
pub(crate) const HANDLER: &str = "work";

const ONE_STEP_YAML: &str = "\
name: one_step
namespace_name: bench
version: 1.0.0
steps:
  - name: work
    handler: { callable: work }
";
const LINEAR_YAML: &str = "\
name: linear_4
namespace_name: bench
version: 1.0.0
steps:
  - name: first
    handler: { callable: work }
  - name: second
    handler: { callable: work }
    dependencies: [first]
  - name: third
    handler: { callable: work }
    dependencies: [second]
  - name: fourth
    handler: { callable: work }
    dependencies: [third]
";

/// Whose JWTs the servers take.
pub(crate) const ISSUER: &str = "bailiwick-bench";
/// More calls than anybody makes.
const LIMITS: &str = "[limits]\nrequests_per_second = 1000000\n\n";
/// More connections than there are.
const LINE_LIMITS: &str = "connections = 20000\nconnections_per_address = 20000\n";
const TOKEN_LIFE: Duration = Duration::from_hours(1);

/// Whether a server asks for credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody may do everything.
    Open,
    /// An API key or a JWT.
    Secured,
}

/// Where things are: the programs and the folder for what is made.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The server's program.
    pub(crate) server: PathBuf,
    /// This program, for the baselines.
    pub(crate) bench: PathBuf,
    /// On the file system that is measured.
    pub(crate) work: PathBuf,
    /// Whether servers count calls against a limit.
    pub(crate) limits: bool,
}

impl Places {
    /// A fresh folder; it goes with its handle.
    pub(crate) fn folder(&self) -> Result<TempDir> {
        let made = tempfile::Builder::new().prefix("bench-run-").tempdir_in(&self.work);
        made.tried(format!("make a folder in {}", self.work.display()))
    }
}

/// Configuration and credentials, laid down in a folder.
#[derive(Debug)]
pub(crate) struct Setup {
    _folder: TempDir,
    config: PathBuf,
    log: PathBuf,
    grpc: SocketAddr,
    http: SocketAddr,
    api_key: Auth,
    jwt: Auth,
    root: Auth,
    jwt_key: Option<KeyPairPem>,
}

impl Setup {
    /// With the data in the same folder, or in one that is kept.
    pub(crate) fn new(places: &Places, access: Access, data: Option<&Path>) -> Result<Self> {
        let folder = places.folder()?;
        let path = folder.path();
        let (grpc, http) = (free_address()?, free_address()?);
        let data = data.map_or_else(|| path.join("data"), Path::to_owned);
        let limits = if places.limits { LIMITS } else { "" };
        let mut text = format!(
            "{limits}[server]\ngrpc_listen = \"{grpc}\"\nhttp_listen = \"{http}\"\n\n\
             [storage]\nurl = \"sqlite:{}\"\n\n[auth]\nenabled = {}\n",
            data.join("bailiwick.db").display(),
            access == Access::Secured,
        );
        let (mut api_key, mut jwt, mut root) = (Auth::None, Auth::None, Auth::None);
        let mut jwt_key = None;
        if access == Access::Secured {
            let pair =
                tokens::generate(KeyKind::Ed25519).map_err(|error| wrong(error.to_string()))?;
            fs::write(path.join("jwt.pem"), &pair.public).tried("write the public key")?;
            let key = format!("bench-{:032x}", rand::random::<u128>());
            let root_key = format!("root-{:032x}", rand::random::<u128>());
            text = format!(
                "{text}jwt_public_key_path = \"jwt.pem\"\njwt_issuer = \"{ISSUER}\"\n\
                 jwt_audience = \"{ISSUER}\"\n\n[[auth.api_keys]]\nkey = \"{key}\"\n\
                 permissions = [\"*\"]\nnamespaces = [\"{NAMESPACE}\"]\ndescription = \"bench\"\n\n\
                 [[auth.api_keys]]\nkey = \"{root_key}\"\npermissions = [\"*\"]\n\
                 namespaces = [\"*\"]\ndescription = \"root\"\n"
            );
            jwt = Auth::Bearer(token(&pair.private, "bench")?);
            api_key = Auth::ApiKey { key, header: None };
            root = Auth::ApiKey { key: root_key, header: None };
            jwt_key = Some(pair);
        }
        let config = path.join("bailiwick.toml");
        fs::write(&config, text).tried("write the configuration")?;
        let log = path.join("server.log");
        Ok(Self { _folder: folder, config, log, grpc, http, api_key, jwt, root, jwt_key })
    }

    /// Adds the line protocol, for one token that may do everything and as
    /// many connections as there are; answers where it listens.
    pub(crate) fn with_line(&self) -> Result<SocketAddr> {
        let line = free_address()?;
        let folder = self.config.parent().unwrap_or(&self.config);
        let tokens = format!("[token.bench]\nsecret = \"{SECRET}\"\nnamespace = \"*\"\n");
        fs::write(folder.join("auth.toml"), tokens).tried("write the auth file")?;
        let text = fs::read_to_string(&self.config).tried("read the configuration")?;
        let text = format!(
            "{text}\n[controller]\nlisten = \"{line}\"\nauth_file = \"auth.toml\"\n{LINE_LIMITS}"
        );
        fs::write(&self.config, text).tried("write the configuration")?;
        Ok(line)
    }

    /// Turns the audit off.
    pub(crate) fn without_audit(&self) -> Result {
        let text = fs::read_to_string(&self.config).tried("read the configuration")?;
        let text = format!("{text}\n[audit]\nenabled = false\n");
        fs::write(&self.config, text).tried("write the configuration")
    }

    /// Gives the server an issuer's address, so that each lease has a token.
    pub(crate) fn with_step_tokens(&self) -> Result {
        let text = fs::read_to_string(&self.config).tried("read the configuration")?;
        let section = format!("[server]\npublic_url = \"http://{}\"\n", self.http);
        fs::write(&self.config, text.replacen("[server]\n", &section, 1))
            .tried("write the configuration")
    }

    /// Starts a server and waits until it serves.
    pub(crate) async fn serve(&self, places: &Places) -> Result<(Process, Duration)> {
        let config = text(&self.config)?;
        let mut process = Process::start(&places.server, &["-c", config, "serve"], &self.log)?;
        let took = process.serving(self.grpc).await?;
        Ok((process, took))
    }

    /// Starts the axum baseline over the same folder and credentials.
    pub(crate) async fn serve_axum(&self, places: &Places) -> Result<Process> {
        let args = ["axum-server", "--config", text(&self.config)?];
        let mut process = Process::start(&places.bench, &args, &self.log)?;
        process.listening(self.http).await?;
        Ok(process)
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self, auth: &Auth) -> Result<Client> {
        Ok(connect_with_auth(&format!("http://{}", self.grpc), auth.clone()).await?)
    }

    /// Makes the templates known.
    pub(crate) async fn register(&self, auth: &Auth) -> Result {
        let mut templates = self.connect(auth).await?.templates();
        for definition in [ONE_STEP_YAML, LINEAR_YAML] {
            let request = pb::RegisterTemplateRequest {
                namespace: NAMESPACE.to_owned(),
                definition: definition.to_owned(),
            };
            templates.register_template(request).await.map_err(refused("RegisterTemplate"))?;
        }
        Ok(())
    }

    /// The key that may do everything everywhere.
    pub(crate) fn root(&self) -> &Auth {
        &self.root
    }

    /// A JWT of another subject.
    pub(crate) fn jwt_of(&self, subject: &str) -> Result<Auth> {
        let key = self.jwt_key.as_ref().ok_or_else(|| wrong("JWTs are not taken"))?;
        token(&key.private, subject).map(Auth::Bearer)
    }

    /// Where REST listens.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// The API key; none where everybody may do everything.
    pub(crate) fn api_key(&self) -> &Auth {
        &self.api_key
    }

    /// The JWT; none where everybody may do everything.
    pub(crate) fn jwt(&self) -> &Auth {
        &self.jwt
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| wrong(format!("{} is not UTF-8", path.display())))
}

fn token(private_key: &str, subject: &str) -> Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let claims = Claims {
        sub: subject.to_owned(),
        iss: ISSUER.to_owned(),
        aud: ISSUER.to_owned(),
        iat: seconds(now),
        exp: seconds(now + TOKEN_LIFE),
        permissions: vec!["*".to_owned()],
        namespaces: Some(vec![NAMESPACE.to_owned()]),
        worker_namespaces: Vec::new(),
    };
    tokens::sign(private_key, &claims).map_err(|error| wrong(error.to_string()))
}
