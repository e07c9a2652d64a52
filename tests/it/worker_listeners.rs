//! A worker process's own listeners: who may ask it what, and what it says of
//! itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use bailiwick::{
    access::{Rule, Table, table::Mode},
    domain::Permission,
    pb::{self, v1},
};
use bailiwick_client::{Auth, Client};
use prost_reflect::DescriptorPool;
use serde_json::{Value, json};
use tokio::{process::Command, time::Instant};
use tonic::Code;

use crate::harness::{
    PATIENCE, Process, ROOT_KEY, Server, Setup, credentials::Token, http, process, run,
};
use crate::tls;

/// What each RPC of a worker process needs, written by hand (SE-22): the RPC,
/// its permission and mode, and its REST paths.
const RPCS: &[(&str, &str, &str, &[&str])] = &[
    (
        "bailiwick.v1.WorkerProcessService/GetWorkerConfig",
        "worker:config_read",
        "global",
        &["/config", "/v1/config"],
    ),
    (
        "bailiwick.v1.WorkerProcessService/ListWorkerTemplates",
        "worker:templates_read",
        "filtered",
        &["/v1/templates"],
    ),
    (
        "bailiwick.v1.WorkerProcessService/GetWorkerTemplate",
        "worker:templates_read",
        "namespace_field:namespace",
        &["/v1/templates/shop/order/1.0.0"],
    ),
    ("bailiwick.v1.HealthService/CheckHealth", "-", "public", &["/health"]),
    ("bailiwick.v1.HealthService/CheckLiveness", "-", "public", &["/health/live"]),
    ("bailiwick.v1.HealthService/CheckReadiness", "-", "public", &["/health/ready"]),
    ("bailiwick.v1.HealthService/CheckDetailedHealth", "-", "public", &["/health/detailed"]),
    ("grpc.health.v1.Health/Check", "-", "public", &[]),
    ("grpc.health.v1.Health/Watch", "-", "public", &[]),
    ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "-", "public", &[]),
    ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "-", "public", &[]),
];

/// A worker process with its addresses.
struct Own {
    process: Process,
    grpc: SocketAddr,
    http: SocketAddr,
}

impl Own {
    async fn start(mut command: Command, args: &[&str]) -> Self {
        command.args(["worker", "run", "--log-json", "--namespace", "shop"]);
        if !args.contains(&"--handler") {
            command.args(["--handler", "work=echo 1"]);
        }
        let process = Process::start(command_with(command, args));
        let serving = process.err.wait_for(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["message"] == "the worker's own listeners serve").then_some(line)
        });
        let serving = serving.await.unwrap_or_else(|| panic!("{:?}", process.err.all()));
        let address = |name: &str| serving[name].as_str().unwrap().parse().unwrap();
        Self { grpc: address("grpc"), http: address("http"), process }
    }

    /// With the server's own configuration, on ports that the kernel picks.
    async fn with_config(server: &Server, args: &[&str]) -> Self {
        let mut command = server.cli();
        command.arg("-c").arg(server.path("bailiwick.toml"));
        let own = Self::start(command, &[args, &PORTS].concat()).await;
        own.ready(200).await;
        own
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        let mut call = http().get(format!("http://{}{path}", self.http));
        for (name, value) in headers {
            call = call.header(*name, *value);
        }
        let answer = call.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn as_root(&self, path: &str) -> (u16, Value) {
        self.get(path, &[("x-api-key", ROOT_KEY)]).await
    }

    async fn client(&self, auth: Auth) -> Client {
        bailiwick_client::connect_with_auth(&format!("http://{}", self.grpc), auth).await.unwrap()
    }

    /// Waits until its readiness answers this.
    async fn ready(&self, status: u16) {
        let until = Instant::now() + PATIENCE;
        while self.get("/health/ready", &[]).await.0 != status {
            assert!(Instant::now() < until, "{:?}", self.process.err.all());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The number in `/metrics` on the line that begins like this.
    async fn figure(&self, line: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics", &[]).await;
        let text = text.as_str().unwrap().to_owned();
        let value = text.lines().find_map(|known| known.strip_prefix(line)?.strip_prefix(' '))?;
        Some(value.parse().unwrap())
    }
}

const PORTS: [&str; 4] = ["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];

fn command_with(mut command: Command, args: &[&str]) -> Command {
    command.args(args);
    command
}

fn showing() -> Setup {
    Setup { server: "config_endpoint_enabled = true".to_owned(), ..Setup::default() }
}

fn bearer(token: &str) -> Auth {
    Auth::Bearer(token.to_owned())
}

/// Calls an RPC of the table; panics for one that it does not know.
async fn call(client: &Client, rpc: &str) -> Result<(), Code> {
    let (mut own, mut health) = (client.worker_process(), client.health());
    let answer = match rpc.strip_prefix("bailiwick.v1.").unwrap() {
        "WorkerProcessService/GetWorkerConfig" => {
            own.get_worker_config(v1::GetWorkerConfigRequest {}).await.map(drop)
        }
        "WorkerProcessService/ListWorkerTemplates" => {
            own.list_worker_templates(v1::ListWorkerTemplatesRequest {}).await.map(drop)
        }
        "WorkerProcessService/GetWorkerTemplate" => {
            let request = v1::GetWorkerTemplateRequest {
                namespace: "shop".to_owned(),
                name: "order".to_owned(),
                version: "1.0.0".to_owned(),
            };
            own.get_worker_template(request).await.map(drop)
        }
        "HealthService/CheckHealth" => {
            health.check_health(v1::CheckHealthRequest {}).await.map(drop)
        }
        "HealthService/CheckLiveness" => {
            health.check_liveness(v1::CheckLivenessRequest {}).await.map(drop)
        }
        "HealthService/CheckReadiness" => {
            health.check_readiness(v1::CheckReadinessRequest {}).await.map(drop)
        }
        "HealthService/CheckDetailedHealth" => {
            health.check_detailed_health(v1::CheckDetailedHealthRequest {}).await.map(drop)
        }
        other => panic!("no call for {other}"),
    };
    answer.map_err(|status| status.code())
}

#[test]
fn se_22_the_rules_of_a_worker_are_what_was_written_down_by_hand() {
    let pool = DescriptorPool::decode(pb::WORKER_FILE_DESCRIPTOR_SET).unwrap();
    let table = Table::from_pool(&pool, &BTreeSet::new()).unwrap();
    let described: BTreeMap<String, (String, String)> = table
        .iter()
        .map(|rule| {
            let row = match &rule.rule {
                Rule::Permission { permission, mode } => {
                    let mode = match mode {
                        Mode::Namespace(field) => format!("namespace_field:{field}"),
                        Mode::Object(field) => format!("object:{field}"),
                        Mode::Filtered => "filtered".to_owned(),
                        Mode::Global(_) => "global".to_owned(),
                    };
                    (permission.to_string(), mode)
                }
                Rule::Public(_) => ("-".to_owned(), "public".to_owned()),
                Rule::Authenticated(_) => ("-".to_owned(), "authenticated".to_owned()),
                Rule::Root => ("-".to_owned(), "root".to_owned()),
                Rule::Node => ("-".to_owned(), "node".to_owned()),
            };
            (rule.full_name.to_string(), row)
        })
        .collect();
    let written: BTreeMap<String, (String, String)> = RPCS
        .iter()
        .map(|(rpc, permission, mode, _)| {
            ((*rpc).to_owned(), ((*permission).to_owned(), (*mode).to_owned()))
        })
        .collect();
    assert_eq!(described, written);
}

/// Every RPC and route of a worker with each permission alone, with wildcards
/// and without a good credential.
#[tokio::test]
async fn tk_03_tk_25_tk_26_each_permission_opens_its_operations_alone() {
    let server = Server::with(showing()).await.with_template().await;
    let own = Own::with_config(&server, &[]).await;
    let mut callers: Vec<(String, Vec<String>)> = Permission::ALL
        .iter()
        .map(|permission| (permission.to_string(), vec![permission.to_string()]))
        .collect();
    for wildcard in ["*", "worker:*", "system:*", "templates:*"] {
        callers.push((wildcard.to_owned(), vec![wildcard.to_owned()]));
    }
    let ours = || RPCS.iter().filter(|(rpc, ..)| rpc.starts_with("bailiwick."));
    for (name, permissions) in &callers {
        let held: Vec<&str> = permissions.iter().map(String::as_str).collect();
        let token = Token::new(&format!("sub-{name}"), &held).sign();
        let header = format!("Bearer {token}");
        let client = own.client(bearer(&token)).await;
        for (rpc, permission, _, paths) in ours() {
            let opens = *permission == "-"
                || name == permission
                || name == "*"
                || (name == "worker:*" && permission.starts_with("worker:"));
            let (code, status) =
                if opens { (Ok(()), 200) } else { (Err(Code::PermissionDenied), 403) };
            assert_eq!(call(&client, rpc).await, code, "{rpc} with {name}");
            for path in *paths {
                let (found, body) = own.get(path, &[("authorization", &header)]).await;
                assert_eq!(found, status, "{path} with {name}: {body}");
                if status == 403 {
                    let message = format!("Missing required permission: {permission}");
                    assert_eq!(body["message"], message, "{path} with {name}");
                }
            }
        }
    }
    let stale = Token::new("stale", &["*"]).claim("exp", json!(1)).sign();
    let foreign = Token::new("foreign", &["*"]).sign_with(crate::harness::credentials::stranger());
    for auth in [Auth::None, bearer(&stale), bearer(&foreign), bearer("nonsense")] {
        let client = own.client(auth.clone()).await;
        let header = match &auth {
            Auth::Bearer(token) => Some(format!("Bearer {token}")),
            Auth::None | Auth::ApiKey { .. } => None,
        };
        let headers: Vec<(&str, &str)> =
            header.iter().map(|header| ("authorization", header.as_str())).collect();
        for (rpc, permission, _, paths) in ours() {
            let public = *permission == "-";
            let (code, status) =
                if public { (Ok(()), 200) } else { (Err(Code::Unauthenticated), 401) };
            assert_eq!(call(&client, rpc).await, code, "{rpc}");
            for path in *paths {
                let (found, body) = own.get(path, &headers).await;
                assert_eq!(found, status, "{path}: {body}");
            }
        }
        assert_eq!(own.get("/metrics", &headers).await.0, 200);
    }
    assert_eq!(own.get("/v1/tasks", &[("x-api-key", ROOT_KEY)]).await.0, 404);
}

#[tokio::test]
async fn se_12_neither_process_serves_what_is_the_others() {
    let server = Server::with(showing()).await.with_template().await;
    let own = Own::with_config(&server, &[]).await;
    let root = Auth::ApiKey { key: ROOT_KEY.to_owned(), header: None };
    let client = own.client(root.clone()).await;
    let refused = client.tasks().list_tasks(v1::ListTasksRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let refused = client.system().get_config(v1::GetConfigRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let server_client = server.client(root).await;
    for (rpc, ..) in RPCS.iter().filter(|(rpc, ..)| rpc.contains("WorkerProcess")) {
        assert_eq!(call(&server_client, rpc).await, Err(Code::Unimplemented), "{rpc}");
    }
}

#[tokio::test]
async fn tk_03_without_a_configuration_all_but_the_public_pages_is_closed() {
    let server = Server::start().await.with_template().await;
    let own = Own::start(server.cli(), &PORTS).await;
    own.ready(200).await;
    for headers in [&[][..], &[("x-api-key", ROOT_KEY)], &[("authorization", "Bearer x")]] {
        for path in ["/health", "/health/live", "/health/ready", "/health/detailed", "/metrics"] {
            assert_eq!(own.get(path, headers).await.0, 200, "{path}");
        }
        for path in ["/config", "/v1/config", "/v1/templates", "/v1/templates/shop/order/1.0.0"] {
            let (status, body) = own.get(path, headers).await;
            assert_eq!((status, &body["error"]), (401, &json!("unauthorized")), "{path}");
        }
    }
}

/// What only the server's store or token file knows is refused, and said.
#[tokio::test]
async fn tk_03_what_a_worker_cannot_know_is_said_at_its_start() {
    const SAYS: &str = "a worker opens no database and no token file";
    let rest = "token_store = \"file\"\ntoken_file = \"auth.token\"\n".to_owned();
    let server = Server::with(Setup { rest, ..Setup::default() }).await;
    let minted = server.run_json(&["auth", "mint-token", "--scope", "worker:*"]).await;
    let bearer = format!("Bearer {}", minted["token"].as_str().unwrap());
    let own = Own::with_config(&server, &[]).await;
    let (status, _) = own.get("/v1/templates", &[("authorization", &bearer)]).await;
    assert_eq!(status, 401);
    assert!(own.process.err.all().iter().any(|line| line.contains(SAYS)));
    let bare = Own::start(server.cli(), &PORTS).await;
    assert!(!bare.process.err.all().iter().any(|line| line.contains(SAYS)), "nobody is known");
}

#[tokio::test]
async fn tk_01_auth_off_is_for_loopback_alone_on_a_worker_too() {
    let server = Server::with(Setup { auth: false, ..showing() }).await;
    let own = Own::with_config(&server, &[]).await;
    assert_eq!(own.get("/v1/templates", &[]).await, (200, json!({"templates": []})));
    let mut command = server.cli();
    command.arg("-c").arg(server.path("bailiwick.toml")).args(["worker", "run"]);
    command.args(["--namespace", "shop", "--handler", "work=true", "--http-listen", "0.0.0.0:0"]);
    let mut refused = Process::start(command);
    assert_eq!(refused.exit().await, Some(2));
    let said = refused.err.all().join("\n");
    assert!(said.contains("beyond loopback"), "{said}");
}

/// The server's TLS and its rules about certificates hold for the worker too.
#[tokio::test]
async fn tk_03_se_46_a_worker_speaks_tls_and_knows_certificates() {
    let certs = tls::generated(&["--spiffe", "spiffe://shop.example/probe"]).await;
    let folder = certs.path();
    let setup = Setup {
        server: format!(
            "{}client_ca = \"{}\"\n",
            tls::files(folder),
            folder.join("ca.pem").display()
        ),
        rest: tls::rule("spiffe://shop.example/probe"),
        ..Setup::default()
    };
    let server = Server::with(setup).await;
    let mut command = server.cli();
    command.arg("-c").arg(server.path("bailiwick.toml"));
    command.env("BAILIWICK_URL", format!("https://{}", server.grpc));
    command.env("BAILIWICK_TLS_CA", folder.join("ca.pem"));
    let own = Own::start(command, &PORTS).await;
    let ca = tls::read(&certs, "ca.pem");
    let (cert, key) = (tls::read(&certs, "client.pem"), tls::read(&certs, "client-key.pem"));
    let nobody = tls::rest(&ca, None).build().unwrap();
    let probe = tls::rest(&ca, Some((&cert, &key))).build().unwrap();
    for (client, status) in [(&nobody, 401), (&probe, 200)] {
        let url = format!("https://{}", own.http);
        let ready = async {
            while client.get(format!("{url}/health/ready")).send().await.unwrap().status() != 200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.unwrap();
        let answer = client.get(format!("{url}/v1/templates")).send().await.unwrap();
        assert_eq!(answer.status(), status);
    }
    assert!(http().get(format!("http://{}/health", own.http)).send().await.is_err());
    let mut command = process::bailiwick();
    command.args(["worker", "templates", "--worker-url", &format!("https://{}", own.grpc)]);
    command.env("BAILIWICK_TLS_CA", folder.join("ca.pem"));
    command.env("BAILIWICK_TLS_CERT", folder.join("client.pem"));
    command.env("BAILIWICK_TLS_KEY", folder.join("client-key.pem"));
    let listed = run(command).await.good();
    assert!(listed.starts_with("NAMESPACE"), "{listed}");
}

#[tokio::test]
async fn tk_25_the_configuration_shows_no_secret() {
    let server = Server::with(showing()).await;
    let handler = "work=PASSWORD=command-secret true";
    let own = Own::with_config(&server, &["--handler", handler, "--name", "w-1"]).await;
    let (status, config) = own.as_root("/config").await;
    assert_eq!(status, 200, "{config}");
    assert_eq!(config["worker"]["name"], "w-1");
    assert_eq!(config["worker"]["handlers"], json!(["work"]));
    assert_eq!(config["server"]["http_listen"], own.http.to_string());
    assert_eq!(config["server"]["grpc_listen"], own.grpc.to_string());
    assert_eq!(config["auth"]["enabled"], true);
    assert_eq!(config["storage"], Value::Null);
    let text = config.to_string();
    for secret in [ROOT_KEY, "command-secret", "PUBLIC KEY"] {
        assert!(!text.contains(secret), "{text}");
    }
    // What the whole worker has is not for who has a part of the namespaces.
    let narrow = Token::new("narrow", &["worker:config_read"]).within(&["shop"]).sign();
    let header = format!("Bearer {narrow}");
    assert_eq!(own.get("/config", &[("authorization", &header)]).await.0, 403);
}

#[tokio::test]
async fn tk_25_the_configuration_is_hidden_unless_the_settings_show_it() {
    let server = Server::start().await;
    let own = Own::with_config(&server, &[]).await;
    assert_eq!(own.as_root("/config").await.0, 404);
    assert_eq!(own.get("/config", &[]).await.0, 401);
}

#[tokio::test]
async fn tk_26_a_caller_sees_the_workers_templates_of_its_own_namespaces() {
    let server = Server::start().await.with_template().await;
    for (namespace, name, callable) in
        [("shop", "other", "elsewhere"), ("shop.eu", "below", "work"), ("bank", "order", "work")]
    {
        let definition = format!(
            "name: {name}\nnamespace_name: {namespace}\nversion: 1.0.0\nsteps:\n  - name: only\n    \
             handler: {{callable: {callable}}}\n"
        );
        let body = json!({"namespace": namespace, "definition": definition});
        let (status, answer) = server.as_root("POST", "/v1/templates", Some(body)).await;
        assert_eq!(status, 201, "{answer}");
    }
    let own = Own::with_config(&server, &[]).await;
    let order = json!(
        {"namespace": "shop", "name": "order", "version": "1.0.0", "handlers": ["work"]}
    );
    let (status, all) = own.as_root("/v1/templates").await;
    assert_eq!((status, all), (200, json!({"templates": [order]})));
    let (status, one) = own.as_root("/v1/templates/shop/order/1.0.0").await;
    assert_eq!((status, one), (200, order.clone()));
    for path in ["shop/other/1.0.0", "shop/order/2.0.0", "bank/order/1.0.0", "shop.eu/below/1.0.0"]
    {
        assert_eq!(own.as_root(&format!("/v1/templates/{path}")).await.0, 404, "{path}");
    }
    for (namespaces, seen) in [(&["shop"][..], 1), (&["bank"], 0), (&["shop.eu"], 0), (&[], 0)] {
        let token = Token::new("reader", &["worker:templates_read"]).within(namespaces).sign();
        let header = format!("Bearer {token}");
        let headers = [("authorization", header.as_str())];
        let (status, list) = own.get("/v1/templates", &headers).await;
        assert_eq!(status, 200, "{list}");
        assert_eq!(list["templates"].as_array().unwrap().len(), seen, "{namespaces:?}: {list}");
        let (status, _) = own.get("/v1/templates/shop/order/1.0.0", &headers).await;
        assert_eq!(status, if seen == 1 { 200 } else { 404 }, "{namespaces:?}");
    }
}

#[tokio::test]
async fn tk_26_a_worker_that_may_not_read_templates_says_so() {
    let server = Server::start().await.with_template().await;
    let mut command = process::bailiwick();
    let token = Token::new("w", &["work:lease"]).within(&["shop"]).sign();
    command.env("BAILIWICK_URL", server.grpc_url()).env("BAILIWICK_AUTH_TOKEN", token);
    command.arg("-c").arg(server.path("bailiwick.toml"));
    let own = Own::start(command, &PORTS).await;
    own.ready(200).await;
    let (status, body) = own.as_root("/v1/templates").await;
    assert_eq!(status, 503, "{body}");
    assert!(body["message"].as_str().unwrap().contains("templates:read"), "{body}");
}

#[tokio::test]
async fn tk_65_taken_usual_ports_are_replaced_and_said_but_not_given_ones() {
    // Whoever holds them now: they are taken for the worker.
    let _taken = ["127.0.0.1:9191", "127.0.0.1:8081"].map(std::net::TcpListener::bind);
    let server = Server::start().await;
    let own = Own::start(server.cli(), &[]).await;
    let log: Vec<Value> =
        own.process.err.all().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for (what, taken, instead) in
        [("gRPC", "127.0.0.1:9191", own.grpc), ("REST", "127.0.0.1:8081", own.http)]
    {
        let line = log.iter().find(|line| {
            line["message"].as_str().unwrap().starts_with(&format!("the usual {what} port"))
        });
        let line = line.unwrap_or_else(|| panic!("{log:?}"));
        assert_eq!(
            (&line["taken"], &line["instead"]),
            (&json!(taken), &json!(instead.to_string()))
        );
    }
    own.ready(200).await;
    for (flag, address) in [("--grpc-listen", own.grpc), ("--http-listen", own.http)] {
        let mut command = server.cli();
        command.args(["worker", "run", "--namespace", "shop", "--handler", "work=true"]);
        let mut refused = Process::start(command_with(command, &[flag, &address.to_string()]));
        assert_eq!(refused.exit().await, Some(1), "{flag}");
        let said = refused.err.all().join("\n");
        assert!(said.contains(&format!("cannot listen on {address}")), "{said}");
    }
    let mut command = server.cli();
    command.args(["worker", "run", "--namespace", "shop", "--handler", "work=true"]);
    let mut refused = Process::start(command_with(command, &["--grpc-listen", "here"]));
    assert_eq!(refused.exit().await, Some(2));
    let said = refused.err.all().join("\n");
    assert!(said.contains("--grpc-listen") && !said.contains("server.grpc_listen"), "{said}");
}

#[tokio::test]
async fn readiness_follows_the_stream_to_the_server() {
    let server = Server::with(Setup::steady()).await;
    let own = Own::with_config(&server, &[]).await;
    assert_eq!(own.figure("bailiwick_worker_connected").await, Some(1.0));
    let mut server = server;
    server.process.kill();
    own.ready(503).await;
    let (_, body) = own.get("/health/ready", &[]).await;
    assert_eq!(body["reason"], "NOT_READY", "{body}");
    assert_eq!(own.get("/health", &[]).await.0, 200);
    assert_eq!(own.get("/health/live", &[]).await.0, 200);
    let (_, detailed) = own.get("/health/detailed", &[]).await;
    assert_eq!(detailed["checks"]["server"]["status"], "unhealthy", "{detailed}");
    assert_eq!(own.figure("bailiwick_worker_connected").await, Some(0.0));
    let _server = server.again().await;
    own.ready(200).await;
}

#[tokio::test]
async fn a_worker_that_drains_is_not_ready_and_answers_to_its_end() {
    let server = Server::start().await.with_template().await;
    let gate = server.path("gate");
    let handler = format!("work=while [ ! -e {} ]; do sleep 0.05; done", gate.display());
    let mut own = Own::with_config(&server, &["--handler", &handler]).await;
    let task = server.order(json!({})).await;
    let until = Instant::now() + PATIENCE;
    while own.figure("bailiwick_worker_leases_running").await != Some(1.0) {
        assert!(Instant::now() < until, "{:?}", own.process.err.all());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    own.process.terminate();
    own.ready(503).await;
    let (_, body) = own.get("/health/ready", &[]).await;
    assert_eq!(body["reason"], "SHUTTING_DOWN", "{body}");
    assert_eq!(own.get("/health/live", &[]).await.0, 200);
    std::fs::write(gate, "").unwrap();
    assert_eq!(own.process.exit().await, Some(0));
    assert_eq!(server.ended(&task).await["state"], "complete");
}

#[tokio::test]
async fn se_11_the_figures_of_a_worker_name_no_tenant() {
    let server = Server::start().await.with_template().await;
    let own = Own::with_config(&server, &["--handler", "work=exit 65"]).await;
    let task = server.order(json!({})).await;
    server.ended(&task).await;
    let line = "bailiwick_worker_handlers_total{outcome=\"failed_for_good\"}";
    assert_eq!(own.figure(line).await, Some(1.0));
    assert_eq!(own.figure("bailiwick_worker_handler_duration_seconds_count").await, Some(1.0));
    assert_eq!(own.figure("bailiwick_worker_leases_running").await, Some(0.0));
    let (_, text) = own.get("/metrics", &[]).await;
    let text = text.as_str().unwrap();
    let ours: Vec<&str> =
        text.lines().filter(|line| line.starts_with("bailiwick_worker_")).collect();
    assert!(!ours.is_empty() && !ours.iter().any(|line| line.contains("shop")), "{ours:?}");
}

#[tokio::test]
async fn the_command_line_asks_a_worker_by_its_own_address_and_token() {
    let server = Server::with(showing()).await.with_template().await;
    let own = Own::with_config(&server, &[]).await;
    let url = format!("http://{}", own.grpc);
    let reader = Token::new("r", &["worker:templates_read"]).sign();
    let asks = |args: &[&str], environment: &[(&str, &str)]| {
        let mut command = process::bailiwick();
        command.arg("worker").args(args).envs(environment.iter().copied());
        async move {
            let ran = run(command).await;
            (ran.code, ran.out, ran.err)
        }
    };
    let address = ("BAILIWICK_WORKER_URL", url.as_str());
    // The worker's own token wins over the one for all (TK-49).
    let both =
        [address, ("BAILIWICK_WORKER_AUTH_TOKEN", &*reader), ("BAILIWICK_AUTH_TOKEN", "nonsense")];
    let (code, out, err) = asks(&["templates", "--format", "json"], &both).await;
    assert_eq!(code, Some(0), "{err}");
    let listed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(listed["templates"][0]["name"], "order", "{listed}");
    let (code, out, _) = asks(&["templates", "--worker-url", &url], &both[1..]).await;
    assert_eq!(code, Some(0));
    assert!(out.starts_with("NAMESPACE") && out.contains("order"), "{out}");
    let (code, _, err) = asks(&["config"], &both).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("worker:config_read"), "{err}");
    let key = [address, ("BAILIWICK_API_KEY", ROOT_KEY)];
    let (code, out, err) = asks(&["config"], &key).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("\"namespace\": \"shop\""), "{out}");
    let (code, out, err) = asks(&["health"], &[address]).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("healthy") && out.contains("server"), "{out}");
    // The file says where the worker is, too.
    let home = server.path("home");
    std::fs::create_dir_all(home.join("bailiwick")).unwrap();
    let profile = format!("worker_url = '{url}'\ntoken = '{reader}'\n");
    std::fs::write(home.join("bailiwick/config.toml"), profile).unwrap();
    let file = [("XDG_CONFIG_HOME", home.to_str().unwrap())];
    let (code, out, err) = asks(&["templates"], &file).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("order"), "{out}");
}
