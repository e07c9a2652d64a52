//! Real servers for tests: each a process of its own with its own folder and
//! free ports, known by what it prints. Tests talk to it as its users do.

pub mod api;
pub mod credentials;
pub mod envoy;
pub mod process;
pub mod rabbitmq;
pub mod redis;
pub mod run;
pub mod wire;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bailiwick_client::{Auth, Client};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Status, metadata::MetadataMap, transport::Channel};

pub use self::{
    api::Api,
    credentials::ROOT_KEY,
    envoy::Envoy,
    process::Process,
    run::{Ran, alone, program, run},
};

use crate::auth_matrix::call;

/// The program under test.
pub const BAILIWICK: &str = env!("CARGO_BIN_EXE_bailiwick");
/// How long anything may take before a test gives up; wide, as machines are
/// shared.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Whether authentication is on, with the keys of [`credentials`].
    pub auth: bool,
    /// More lines for `[server]`.
    pub server: String,
    /// More lines for `[auth]`, and tables after it.
    pub rest: String,
    /// More environment.
    pub environment: Vec<(String, String)>,
    /// Where it listens; by default on ports that the kernel picks.
    pub ports: [u16; 2],
    /// A shell command that runs first, in mount namespaces of the server's
    /// own; `$DATA` is the data folder.
    pub mounts: Option<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            auth: true,
            server: String::new(),
            rest: String::new(),
            environment: Vec::new(),
            ports: [0, 0],
            mounts: None,
        }
    }
}

impl Setup {
    /// For a server that is started again: on ports that the kernel gives to
    /// no outgoing connection, so that they can be had again.
    pub fn steady() -> Self {
        Self { ports: [steady_port(), steady_port()], ..Self::default() }
    }

    /// Leases of so many seconds.
    pub fn lease_seconds(mut self, seconds: u32) -> Self {
        let variable = ("BAILIWICK__LIMITS__LEASE_SECONDS".to_owned(), seconds.to_string());
        self.environment.push(variable);
        self
    }

    fn addresses(&self) -> [SocketAddr; 2] {
        self.ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

/// A free port below those of outgoing connections.
pub fn steady_port() -> u16 {
    let mut tries = std::iter::repeat_with(|| rand::random_range(10_000..32_000));
    tries
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("an endless row")
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Its folder: configuration, keys and data.
    pub folder: Arc<TempDir>,
    /// Where gRPC listens.
    pub grpc: SocketAddr,
    /// Where REST listens.
    pub http: SocketAddr,
    /// The process.
    pub process: Process,
    setup: Setup,
}

impl Server {
    /// With authentication on.
    pub async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    /// Set up like this.
    pub async fn with(setup: Setup) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let [grpc, http] = setup.addresses();
        Self::launch(folder, setup, grpc, http).await
    }

    /// The same folder and ports again, after a stop or a kill.
    pub async fn again(mut self) -> Self {
        self.process.kill();
        Self::launch(Arc::clone(&self.folder), self.setup.clone(), self.grpc, self.http).await
    }

    /// The same after it was asked to end, and did.
    pub async fn again_gently(mut self) -> Self {
        self.process.terminate();
        self.process.exit().await;
        let [grpc, http] = self.setup.addresses();
        Self::launch(Arc::clone(&self.folder), self.setup.clone(), grpc, http).await
    }

    /// The same folder and ports, set up in another way.
    pub async fn again_with(mut self, setup: Setup) -> Self {
        self.setup = setup;
        self.again().await
    }

    async fn launch(
        folder: Arc<TempDir>,
        setup: Setup,
        grpc: SocketAddr,
        http: SocketAddr,
    ) -> Self {
        let config = configure(folder.path(), "bailiwick.toml", &setup, [grpc, http]);
        let process = serve(&config, &setup);
        let serving = process.err.wait_for(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["message"] == "serving").then_some(line)
        });
        let serving = serving.await.unwrap_or_else(|| {
            panic!("the server did not start:\n{}", process.err.all().join("\n"))
        });
        let address = |name: &str| serving[name].as_str().unwrap().parse().unwrap();
        Self { folder, grpc: address("grpc"), http: address("http"), process, setup }
    }

    /// The gRPC address with its scheme.
    pub fn grpc_url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// A REST url.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// A gRPC client with a credential.
    pub async fn client(&self, auth: Auth) -> Client {
        bailiwick_client::connect_with_auth(&self.grpc_url(), auth).await.unwrap()
    }

    /// A gRPC client that may do everything.
    pub async fn root(&self) -> Client {
        let key = ROOT_KEY.to_owned();
        self.client(Auth::ApiKey { key, header: None }).await
    }

    /// A REST call that may do everything.
    pub fn rest(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        http().request(method, self.url(path)).header("x-api-key", ROOT_KEY)
    }

    /// A gRPC call by its name and descriptor, with this metadata; answers the
    /// first message as JSON.
    pub async fn grpc(
        &self,
        rpc: &str,
        request: Value,
        metadata: &[(&str, &str)],
    ) -> Result<Value, Status> {
        let mut map = MetadataMap::new();
        for (name, value) in metadata {
            let name: tonic::metadata::AsciiMetadataKey = name.parse().unwrap();
            map.append(name, value.parse().unwrap());
        }
        let channel = Channel::from_shared(self.grpc_url()).unwrap().connect().await.unwrap();
        let rpc = format!("bailiwick.v1.{rpc}");
        let answer = call::grpc_with(&channel, &rpc, &request, map).await?;
        Ok(serde_json::to_value(&answer).unwrap())
    }

    /// A gRPC call of any path with an empty message; answers the status that
    /// its headers have.
    pub async fn grpc_raw(&self, path: &str, headers: &[(&str, &str)]) -> Option<tonic::Code> {
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let mut call = client.post(format!("{}{path}", self.grpc_url())).body(vec![0; 5]);
        call = call.header("content-type", "application/grpc").header("te", "trailers");
        for (name, value) in headers {
            call = call.header(*name, *value);
        }
        let answer = call.send().await.unwrap();
        let status = answer.headers().get("grpc-status")?.to_str().unwrap();
        Some(tonic::Code::from_i32(status.parse().unwrap()))
    }

    /// A REST call with these headers; answers the status and the body.
    pub async fn json(
        &self,
        verb: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> (u16, Value) {
        let mut call = http().request(verb.parse().unwrap(), self.url(path));
        for (name, value) in headers {
            call = call.header(*name, *value);
        }
        if let Some(body) = body {
            call = call.json(&body);
        }
        let answer = call.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// The same as root.
    pub async fn as_root(&self, verb: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.json(verb, path, &[("x-api-key", ROOT_KEY)], body).await
    }

    /// Registers [`ORDER`] in the namespace `shop`.
    pub async fn with_template(self) -> Self {
        let body = json!({"namespace": "shop", "definition": ORDER});
        let (status, answer) = self.as_root("POST", "/v1/templates", Some(body)).await;
        assert_eq!(status, 201, "{answer}");
        self
    }

    /// A task of [`ORDER`] with this context.
    pub async fn order(&self, context: Value) -> String {
        let body = json!({"namespace": "shop", "name": "order", "context": context});
        let (status, task) = self.as_root("POST", "/v1/tasks", Some(body)).await;
        assert_eq!(status, 201, "{task}");
        task["task_uuid"].as_str().unwrap().to_owned()
    }

    /// The number in `/metrics` on the line that begins like this.
    pub async fn figure(&self, line: &str) -> Option<f64> {
        let text = http().get(self.url("/metrics")).send().await.unwrap().text().await.unwrap();
        let value = text.lines().find_map(|known| known.strip_prefix(line)?.strip_prefix(' '))?;
        Some(value.parse().unwrap())
    }

    /// Waits until the log has a line with this message and these fields.
    pub async fn logged(&self, message: &str, fields: &[(&str, &str)]) -> Value {
        let found = self.process.err.wait_for(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            let fits = fields.iter().all(|(name, value)| line[*name] == **value);
            (line["message"] == message && fits).then_some(line)
        });
        found.await.unwrap_or_else(|| {
            panic!("no line {message} {fields:?} in\n{}", self.process.err.all().join("\n"))
        })
    }

    /// Fails when anything in the server has panicked.
    pub fn assert_sound(&mut self) {
        let log = self.process.err.all().join("\n");
        assert!(!log.contains("panicked"), "{log}");
        assert!(self.process.is_running(), "the server has ended:\n{log}");
    }

    /// `bailiwick` with this server and root's key in its environment.
    pub fn cli(&self) -> tokio::process::Command {
        let mut command = process::bailiwick();
        command.env("BAILIWICK_URL", self.grpc_url()).env("BAILIWICK_API_KEY", ROOT_KEY);
        command
    }

    /// A file of the server's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The log lines so far, as JSON.
    pub fn logs(&self) -> Vec<Value> {
        let lines = self.process.err.all();
        lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// A template with one step for the handler `work`.
pub const ORDER: &str = "name: order\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n  - name: only\n    handler: {callable: work}\n";

/// Tries to start a server that must refuse to; answers what it says.
pub async fn refused(setup: &Setup) -> String {
    refused_on(setup, "127.0.0.1:0").await
}

/// The same with another REST address.
pub async fn refused_on(setup: &Setup, http: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let [grpc, _] = setup.addresses();
    let listen = [grpc, http.parse().unwrap()];
    let (code, said) = refusal(folder.path(), setup, listen).await;
    assert!(code.is_some_and(|code| code != 0), "exit {code:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// An HTTP client that follows nothing and waits no longer than a test does.
pub fn http() -> reqwest::Client {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build()
        .unwrap()
}

/// Starts a server on a folder that is to refuse it; answers its exit code and
/// what it says.
pub async fn refused_in(folder: &Path, setup: &Setup) -> (Option<i32>, String) {
    refusal(folder, setup, setup.addresses()).await
}

async fn refusal(folder: &Path, setup: &Setup, listen: [SocketAddr; 2]) -> (Option<i32>, String) {
    let config = configure(folder, "refused.toml", setup, listen);
    let mut process = serve(&config, setup);
    let code = process.exit().await;
    // Closed by now: waits for the reader alone.
    let _ = process.err.wait_for::<()>(|_| None).await;
    (code, process.err.all().join("\n"))
}

fn serve(config: &Path, setup: &Setup) -> Process {
    let mut command = match &setup.mounts {
        None => process::bailiwick(),
        Some(mounts) => {
            let data = config.with_file_name("data");
            std::fs::create_dir_all(&data).unwrap();
            let mut command = process::quiet("unshare");
            let script = format!("set -e\n{mounts}\nexec \"$0\" \"$@\"");
            command.args(["--map-root-user", "--mount", "sh", "-c", &script]).arg(BAILIWICK);
            command.env("DATA", data);
            command
        }
    };
    command.arg("-c").arg(config).arg("serve").envs(setup.environment.clone());
    Process::start(command)
}

fn configure(folder: &Path, name: &str, setup: &Setup, listen: [SocketAddr; 2]) -> PathBuf {
    let [grpc, http] = listen;
    let auth = if setup.auth { credentials::configuration(folder) } else { "[auth]\n".to_owned() };
    let text = format!(
        "[server]\ngrpc_listen = \"{grpc}\"\nhttp_listen = \"{http}\"\n{}\n\
         [storage]\nurl = \"sqlite:data/bailiwick.db\"\n\
         [telemetry]\nlog_format = \"json\"\nlog_level = \"debug\"\n{auth}{}\n",
        setup.server, setup.rest
    );
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}
