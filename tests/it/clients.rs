//! Clients that others wrote: grpcurl, grpc-health-probe, curl and h2spec.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::harness::{
    ROOT_KEY, Ran, Server,
    credentials::{READER_KEY, Token},
    program, run,
};

const ONE: &str = "  - name: only\n    handler: {callable: work}";
/// How long h2spec waits for each answer, in seconds.
const H2SPEC_PATIENCE: &str = "5";

async fn grpcurl(args: &[&str]) -> Ran {
    run(program("grpcurl", &[&["-plaintext"], args].concat())).await
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).collect()
}

#[tokio::test]
async fn grpcurl_lists_and_describes_by_reflection() {
    let server = Server::start().await;
    let address = server.grpc.to_string();
    let listed = grpcurl(&[&address, "list"]).await.good();
    for service in [
        "bailiwick.v1.AccessService",
        "bailiwick.v1.HealthService",
        "bailiwick.v1.StepService",
        "bailiwick.v1.SystemService",
        "bailiwick.v1.TaskService",
        "bailiwick.v1.TemplateService",
        "bailiwick.v1.WorkerService",
        "grpc.health.v1.Health",
    ] {
        assert!(lines(&listed).contains(&service), "{service} is not in\n{listed}");
    }
    let described = grpcurl(&[&address, "describe", "bailiwick.v1.TaskService"]).await.good();
    assert!(
        described.contains("rpc CreateTask ( .bailiwick.v1.CreateTaskRequest )"),
        "{described}"
    );
    let described = grpcurl(&[&address, "describe", "bailiwick.v1.CreateTaskRequest"]).await.good();
    assert!(described.contains("string namespace ="), "{described}");
    let details = grpcurl(&[&address, "describe", "google.rpc.ErrorInfo"]).await.good();
    assert!(details.contains("map<string, string> metadata"), "{details}");
}

#[tokio::test]
async fn grpcurl_asks_both_versions_of_reflection() {
    let server = Server::start().await;
    let address = server.grpc.to_string();
    for version in ["v1", "v1alpha"] {
        let method = format!("grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        let asked = grpcurl(&["-d", r#"{"list_services": ""}"#, &address, &method]).await.good();
        let answer: Value = serde_json::from_str(&asked).unwrap();
        let services = answer["listServicesResponse"]["service"].as_array().unwrap();
        let has = |name: &str| services.iter().any(|service| service["name"] == name);
        assert!(has("bailiwick.v1.TaskService"), "{version}: {asked}");
        let symbol = r#"{"file_containing_symbol": "bailiwick.v1.TaskService"}"#;
        let asked = grpcurl(&["-d", symbol, &address, &method]).await.good();
        assert!(asked.contains("fileDescriptorProto"), "{version}: {asked}");
    }
}

#[tokio::test]
async fn tk_66_67_grpcurl_calls_with_a_token_and_with_a_key() {
    let server = Server::start().await;
    server.template("one", ONE).await;
    let address = server.grpc.to_string();
    let token = Token::new("ci", &["tasks:create", "tasks:list"]).sign();
    let bearer = format!("authorization: Bearer {token}");
    let body =
        r#"{"namespace": "shop", "name": "one", "context": "{\"order\": 12345678901234567890}"}"#;
    let create = "bailiwick.v1.TaskService/CreateTask";
    let list = "bailiwick.v1.TaskService/ListTasks";

    let created = grpcurl(&["-H", &bearer, "-d", body, &address, create]).await.json();
    let task = created["task"]["taskUuid"].as_str().unwrap();
    let context = server.run_json(&["task", "context", task]).await;
    assert_eq!(context["context"].to_string(), r#"{"order":12345678901234567890}"#);

    for header in [bearer, format!("x-api-key: {READER_KEY}"), format!("X-Api-Key: {ROOT_KEY}")] {
        let listed = grpcurl(&["-H", &header, &address, list]).await.json();
        assert_eq!(listed["tasks"][0]["taskUuid"], task, "{listed}");
    }
    let bare = grpcurl(&[&address, list]).await;
    assert_ne!(bare.code, Some(0));
    assert!(bare.err.contains("Code: Unauthenticated"), "{bare}");
    let header = format!("x-api-key: {READER_KEY}");
    let denied = grpcurl(&["-H", &header, "-d", body, &address, create]).await;
    assert_ne!(denied.code, Some(0));
    assert!(denied.err.contains("Code: PermissionDenied"), "{denied}");
    assert!(denied.err.contains("Missing required permission: tasks:create"), "{denied}");
}

#[tokio::test]
async fn grpcurl_prints_the_details_of_an_error() {
    let server = Server::start().await;
    let address = server.grpc.to_string();
    let header = format!("x-api-key: {ROOT_KEY}");
    let create = "bailiwick.v1.TaskService/CreateTask";
    let absent = r#"{"namespace": "shop", "name": "absent"}"#;
    let refused = grpcurl(&["-H", &header, "-d", absent, &address, create]).await;
    assert!(refused.err.contains("Code: NotFound"), "{refused}");
    assert!(refused.err.contains("google.rpc.ErrorInfo"), "{refused}");
    assert!(refused.err.contains(r#""reason": ""#), "{refused}");
    assert!(refused.err.contains(r#""domain": "bailiwick"#), "{refused}");

    let template = r#"{"namespace": "shop", "definition": "name: x\nnamespace_name: shop\n"}"#;
    let register = "bailiwick.v1.TemplateService/RegisterTemplate";
    let refused = grpcurl(&["-H", &header, "-d", template, &address, register]).await;
    assert!(refused.err.contains("Code: InvalidArgument"), "{refused}");
    assert!(refused.err.contains("google.rpc.BadRequest"), "{refused}");
    assert!(refused.err.contains("fieldViolations"), "{refused}");
}

#[tokio::test]
async fn grpc_health_probe_knows_every_name() {
    let server = Server::start().await;
    let address = format!("-addr={}", server.grpc);
    let probe = async |service: &str| {
        let service = format!("-service={service}");
        run(program("grpc-health-probe", &[&address, &service])).await
    };
    let listed = grpcurl(&[&server.grpc.to_string(), "list"]).await.good();
    let services = lines(&listed).into_iter().filter(|name| name.starts_with("bailiwick."));
    for service in ["", "liveness", "readiness", "startup"].into_iter().chain(services) {
        let probed = probe(service).await;
        assert_eq!(probed.code, Some(0), "`{service}`: {probed}");
        assert!(probed.err.contains("status: SERVING"), "`{service}`: {probed}");
    }
    for unknown in ["shop", "Liveness", "bailiwick.v1", "bailiwick.v1.NoService"] {
        let probed = probe(unknown).await;
        assert_ne!(probed.code, Some(0), "`{unknown}`: {probed}");
        assert!(probed.err.contains("NotFound"), "`{unknown}`: {probed}");
    }
}

async fn curl(args: &[&str]) -> Ran {
    run(program("curl", &[&["-sS", "--max-time", "30"], args].concat())).await
}

/// Each port with each version of HTTP, and what curl calls the version.
fn ways(server: &Server) -> Vec<(SocketAddr, &'static str, &'static str)> {
    let ports = [server.http, server.grpc];
    let versions = [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")];
    ports.into_iter().flat_map(|port| versions.map(|(flag, shown)| (port, flag, shown))).collect()
}

#[tokio::test]
async fn curl_speaks_rest_on_both_ports_in_both_versions() {
    let server = Server::start().await;
    server.template("one", ONE).await;
    let key = format!("X-API-Key: {ROOT_KEY}");
    for (port, flag, shown) in ways(&server) {
        let base = format!("http://{port}");
        let write = "\n%{http_code} %{http_version}";
        let ask = async |args: &[&str]| {
            let answer = curl(&[&[flag, "-w", write], args].concat()).await.good();
            let (body, tail) = answer.rsplit_once('\n').unwrap();
            let (code, version) = tail.split_once(' ').unwrap();
            assert_eq!(version, shown, "{port} {flag}: {answer}");
            let body: Value = serde_json::from_str(body).unwrap();
            (code.to_owned(), body)
        };
        let (code, body) = ask(&[&format!("{base}/health")]).await;
        assert_eq!((code.as_str(), &body["status"]), ("200", &json!("healthy")));
        let tasks = format!("{base}/v1/tasks");
        let (code, body) = ask(&[&tasks]).await;
        assert_eq!((code.as_str(), &body["error"]), ("401", &json!("unauthorized")));
        let json = "Content-Type: application/json";
        let data = r#"{"namespace": "shop", "name": "one", "context": {"a": 1.50}}"#;
        let (code, task) = ask(&["-H", &key, "-H", json, "-d", data, &tasks]).await;
        assert_eq!((code.as_str(), &task["state"]), ("201", &json!("pending")), "{task}");
        let uuid = task["task_uuid"].as_str().unwrap();
        let (code, body) = ask(&["-H", &key, &format!("{tasks}/{uuid}")]).await;
        assert_eq!((code.as_str(), &body["task_uuid"]), ("200", &json!(uuid)));
        let (code, body) = ask(&["-H", &key, "-X", "PUT", "-d", "{}", &tasks]).await;
        assert_eq!((code.as_str(), &body["error"]), ("405", &json!("method_not_allowed")));
        // An early refusal of a body that is still under way.
        let big = server.path("big");
        std::fs::write(&big, vec![b' '; 900 * 1024]).unwrap();
        let data = format!("@{}", big.display());
        for _ in 0..5 {
            let (code, body) = ask(&["-H", json, "--data-binary", &data, &tasks]).await;
            assert_eq!((code.as_str(), &body["error"]), ("401", &json!("unauthorized")));
            let (code, _) = ask(&["-H", &key, "--data-binary", &data, &tasks]).await;
            assert_eq!(code, "415");
        }
    }
}

#[tokio::test]
async fn curl_reads_streams_as_ndjson_and_as_events() {
    let server = Server::start().await;
    server.template("one", ONE).await;
    let key = format!("X-API-Key: {ROOT_KEY}");
    for (port, flag, _) in ways(&server) {
        let task = server.task("one", "{}").await;
        server.run(&["task", "cancel", &task]).await.good();
        let url = format!("http://{port}/v1/tasks/{task}/watch?after_seq=0");
        let watch = async |accept: &str| {
            let accept = format!("Accept: {accept}");
            curl(&[flag, "-i", "-N", "-H", &key, "-H", &accept, &url]).await.good()
        };
        let ndjson = watch("application/x-ndjson").await;
        let (head, body) = ndjson.split_once("\r\n\r\n").unwrap();
        assert!(head.to_ascii_lowercase().contains("content-type: application/x-ndjson"), "{head}");
        let events: Vec<Value> =
            body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(has_end(&events), "{ndjson}");

        let sse = watch("text/event-stream").await;
        let (head, body) = sse.split_once("\r\n\r\n").unwrap();
        assert!(head.to_ascii_lowercase().contains("content-type: text/event-stream"), "{head}");
        let data = body.lines().filter_map(|line| line.strip_prefix("data:"));
        let same: Vec<Value> = data.map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(has_end(&same), "{sse}");
    }
}

/// Whether the task's last event is among these.
fn has_end(events: &[Value]) -> bool {
    events.iter().any(|event| event["task"]["state"] == "cancelled")
}

/// A tonic server as its documentation shows it: the measure for h2spec.
async fn bare_tonic() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serving =
        tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming);
    #[expect(clippy::disallowed_methods, reason = "the test's runtime ends with the test")]
    tokio::spawn(serving);
    address
}

/// h2spec's cases against an address, each with whether it passed.
async fn h2spec(address: SocketAddr, report: &Path) -> BTreeMap<String, bool> {
    let port = address.port().to_string();
    let report_name = report.to_str().unwrap();
    let args = ["-h", "127.0.0.1", "-p", &port, "-o", H2SPEC_PATIENCE, "-j", report_name];
    // Its exit code says whether any case failed; the report says which.
    let ran = tokio::time::timeout(
        Duration::from_mins(10),
        program("h2spec", &args).kill_on_drop(true).output(),
    );
    let ran = ran.await.expect("h2spec ends").unwrap_or_else(|error| {
        panic!("h2spec: {error}; `make test` installs what the tests need")
    });
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    let report = std::fs::read_to_string(report).unwrap_or_else(|error| panic!("{error}: {said}"));
    let mut cases = BTreeMap::new();
    for case in report.split("<testcase ").skip(1) {
        let (head, rest) = case.split_once('>').unwrap();
        let attribute = |name: &str| {
            let (_, value) = head.split_once(&format!("{name}=\"")).unwrap();
            value.split_once('"').unwrap().0.to_owned()
        };
        let failed = rest.contains("<failure") || rest.contains("<error");
        let name = format!("{} {}", attribute("package"), attribute("classname"));
        // Two cases of one name pass together.
        *cases.entry(name).or_insert(true) &= !failed;
    }
    assert!(cases.len() > 100, "h2spec has run {} cases: {said}", cases.len());
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn h2spec_fails_no_case_that_a_bare_tonic_server_passes() {
    let server = Server::start().await;
    let (bare, grpc, http) = (server.path("bare"), server.path("grpc"), server.path("http"));
    let tonic = bare_tonic().await;
    let (bare, grpc, http) =
        tokio::join!(h2spec(tonic, &bare), h2spec(server.grpc, &grpc), h2spec(server.http, &http));
    assert!(bare.values().filter(|passed| **passed).count() > 100, "{bare:#?}");
    for (port, ours) in [("grpc", grpc), ("http", http)] {
        assert!(ours.keys().eq(bare.keys()), "{port}: other cases");
        let worse: Vec<&String> =
            ours.iter().filter(|(name, passed)| !**passed && bare[*name]).map(|(n, _)| n).collect();
        assert!(worse.is_empty(), "{port} fails what tonic passes: {worse:#?}");
    }
    let health = curl(&[&server.url("/health")]).await.json();
    assert_eq!(health["status"], "healthy");
}
