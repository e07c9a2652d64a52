//! What operators see: logs, figures and traces.

use std::{collections::BTreeSet, fmt::Write as _, net::SocketAddr, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value,
    trace::v1::Span,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tonic::{Request, Response, Status};

use crate::harness::{
    PATIENCE, Process, ROOT_KEY, Server, Setup,
    credentials::{Token, stranger},
    http, process,
};

const ONE: &str = "  - name: only\n    handler: {callable: work}";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn json_logs_bear_the_ids_that_the_caller_sees() {
    let server = Server::start().await;
    let token = Token::new("eve", &["steps:read"]).sign();
    let ask = http().get(server.url("/v1/tasks")).bearer_auth(&token);
    let denied = ask.header("traceparent", PARENT).send().await.unwrap();
    assert_eq!(denied.status(), 403);
    let id = denied.headers()["x-request-id"].to_str().unwrap().to_owned();
    let body: Value = denied.json().await.unwrap();
    assert_eq!(body["request_id"], json!(id));

    let found = server.process.err.wait_for(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        let ours = line["request_id"] == json!(id) || line["span"]["request_id"] == json!(id);
        (ours && line["level"] == "WARN").then_some(line)
    });
    let line = found.await.expect("the denial is logged under its id");
    assert_eq!(line["span"]["trace_id"], TRACE, "{line}");
    assert_eq!(line["span"]["method"], "bailiwick.v1.TaskService/ListTasks", "{line}");
    assert_eq!(line["subject"], "eve", "{line}");
    assert_eq!(line["required"], "tasks:list", "{line}");
    for name in ["timestamp", "level", "message", "target"] {
        assert!(line[name].is_string(), "{name}: {line}");
    }

    // gRPC's callers see the id as metadata.
    let mut tasks = server.root().await.tasks();
    let listed = tasks.list_tasks(bailiwick::pb::v1::ListTasksRequest::default()).await.unwrap();
    let id = listed.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
    let logged = server.process.err.wait_for(|line| line.contains(&id).then_some(()));
    assert!(logged.await.is_some(), "{id}");
    assert_ne!(json!(id), body["request_id"]);
}

#[tokio::test]
async fn tk_57_58_a_first_success_and_every_failure_are_logged() {
    let server = Server::start().await;
    let token = Token::new("eve", &["tasks:list"]).sign();
    let forged = Token::new("mallory", &["tasks:list"]).sign_with(stranger());
    let ask = async |token: &str| {
        let answer = http().get(server.url("/v1/tasks")).bearer_auth(token).send().await.unwrap();
        answer.headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    for (token, level, message) in [
        (&token, "INFO", "credential accepted"),
        (&token, "DEBUG", "authenticated"),
        (&forged, "WARN", "authentication failed"),
    ] {
        let id = ask(token).await;
        let found = server.process.err.wait_for(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            (line["request_id"] == json!(id) && line["message"] == message).then_some(line)
        });
        let line = found.await.unwrap_or_else(|| panic!("{message}: {:?}", server.logs().last()));
        assert_eq!(line["level"], level, "{line}");
        assert_eq!(line["method"], "jwt", "{line}");
        if level == "WARN" {
            assert_eq!(line["reason"], "signature", "{line}");
        } else {
            assert_eq!(line["subject"], "eve", "{line}");
        }
    }
    let logs = server.process.err.all().join("\n");
    let part = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    assert!(!logs.contains(&part(&token)) && !logs.contains(&part(&forged)), "no token");
    assert!(!logs.contains("mallory"), "what a forged token claims is not believed");
}

#[tokio::test]
async fn text_logs_bear_the_same_ids() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = process::bailiwick();
    command.arg("serve").current_dir(folder.path());
    command.env("BAILIWICK__SERVER__GRPC_LISTEN", "127.0.0.1:0");
    command.env("BAILIWICK__SERVER__HTTP_LISTEN", "127.0.0.1:0");
    command.env("BAILIWICK__TELEMETRY__LOG_FORMAT", "text");
    command.env("BAILIWICK__TELEMETRY__LOG_LEVEL", "debug");
    let mut server = Process::start(command);
    let address = server.err.wait_for(|line| {
        let (_, rest) = line.split_once("http=").filter(|_| line.contains("serving"))?;
        rest.split_whitespace().next().map(str::to_owned)
    });
    let address = address.await.unwrap_or_else(|| panic!("{:?}", server.err.all()));
    assert!(serde_json::from_str::<Value>(&server.err.all()[0]).is_err(), "text, not JSON");
    let url = format!("http://{address}/v1/tasks/0199aaaa-0000-7000-8000-000000000000");
    let absent = http().get(url).header("traceparent", PARENT).send().await.unwrap();
    assert_eq!(absent.status(), 404);
    let id = absent.headers()["x-request-id"].to_str().unwrap().to_owned();
    let logged = server.err.wait_for(|line| line.contains(&id).then(|| line.to_owned()));
    let line = logged.await.expect("a line with the request's id");
    assert!(line.contains(TRACE) && !line.contains('\x1b'), "{line:?}");
    server.interrupt();
    assert_eq!(server.exit().await, Some(0));
}

/// An OTLP collector that hands on what it gets: the service's name with each
/// span.
struct Collector {
    got: mpsc::UnboundedSender<(String, Span)>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let name = attributes.into_iter().find(|one| one.key == "service.name").unwrap();
            let Some(any_value::Value::StringValue(service)) = name.value.unwrap().value else {
                panic!("the service's name is no text")
            };
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                // The test may have seen enough.
                let _ = self.got.send((service.clone(), span));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> (SocketAddr, mpsc::UnboundedReceiver<(String, Span)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (got, spans) = mpsc::unbounded_channel();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = TraceServiceServer::from_arc(Arc::new(Collector { got }));
    let serving =
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
    #[expect(clippy::disallowed_methods, reason = "the test's runtime ends with the test")]
    tokio::spawn(serving);
    (address, spans)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[tokio::test]
async fn one_trace_runs_from_the_caller_through_server_and_worker_to_the_collector() {
    let (collector, mut spans) = collector().await;
    let endpoint = format!("http://{collector}");
    let setting = ("BAILIWICK__TELEMETRY__OTLP_ENDPOINT".to_owned(), endpoint.clone());
    let server = Server::with(Setup { environment: vec![setting], ..Setup::default() }).await;
    server.template("one", ONE).await;
    let mut command = server.cli();
    command.args(["worker", "run", "--namespace", "shop", "--otlp-endpoint", &endpoint]);
    command.args(["--handler", r#"work=grep -o '"00-[0-9a-f-]*"'"#]);
    let mut worker = Process::start(command);

    let body = json!({"namespace": "shop", "name": "one"});
    let create = server.rest(reqwest::Method::POST, "/v1/tasks").json(&body);
    let created: Value =
        create.header("traceparent", PARENT).send().await.unwrap().json().await.unwrap();
    let task = created["task_uuid"].as_str().unwrap();
    assert_eq!(server.ended(task).await["state"], "complete");
    let seen = server.step(task, "only").await["result"].as_str().unwrap().to_owned();
    worker.terminate();
    assert_eq!(worker.exit().await, Some(0), "what is left is sent at the end");

    let mut ours: Vec<(String, Span)> = Vec::new();
    let whole = async {
        let mut missing = BTreeSet::from(["request", "engine.tasks.create", "worker.step"]);
        while !missing.is_empty() {
            let (service, span) = spans.recv().await.unwrap();
            if hex(&span.trace_id) == TRACE {
                missing.remove(span.name.as_str());
                ours.push((service, span));
            }
        }
    };
    let arrived = timeout(PATIENCE, whole).await;
    assert!(arrived.is_ok(), "{ours:#?} {:?}", server.process.err.all().last());
    let of = |service: &str, span: &str| {
        let mut spans = ours.iter().filter(|(name, one)| name == service && one.name == span);
        &spans.next().unwrap_or_else(|| panic!("no {span}: {ours:#?}")).1
    };
    let request = of("bailiwick", "request");
    let created = of("bailiwick", "engine.tasks.create");
    let step = of("bailiwick-worker", "worker.step");
    assert_eq!(created.parent_span_id, request.span_id);
    assert_eq!(hex(&request.parent_span_id), "b7ad6b7169203331", "the caller's span");
    assert_eq!(step.parent_span_id, request.span_id, "the server's span");
    let expected = format!("00-{TRACE}-{}-01", hex(&step.span_id));
    assert_eq!(seen, expected, "the handler goes on from the worker's span");
}

#[tokio::test]
async fn a_collector_that_is_away_disturbs_nobody() {
    let setting =
        ("BAILIWICK__TELEMETRY__OTLP_ENDPOINT".to_owned(), "http://127.0.0.1:1".to_owned());
    let server = Server::with(Setup { environment: vec![setting], ..Setup::default() }).await;
    server.template("one", ONE).await;
    let task = server.task("one", "{}").await;
    assert_eq!(server.run_json(&["task", "get", &task]).await["state"], "pending");
}

/// The value of a series of `/metrics`, 0 when it is not there.
fn value(metrics: &str, series: &str) -> f64 {
    let line = metrics
        .lines()
        .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn tk_60_63_figures_count_requests_credentials_and_work() {
    let server = Server::start().await;
    let figures = async || {
        let answer = http().get(server.url("/metrics")).send().await.unwrap();
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
        answer.text().await.unwrap()
    };
    let before = figures().await;
    server.template("one", ONE).await;
    let task = server.task("one", "{}").await;
    let lease = ["work", "lease", "--namespace", "shop", "--handler", "work"];
    let lease = server.run_json(&lease).await;
    let lease = lease["leases"][0]["lease_id"].as_str().unwrap();
    server.run(&["work", "complete", lease]).await.good();
    assert_eq!(server.ended(&task).await["state"], "complete");
    let tasks = server.url("/v1/tasks");
    assert_eq!(http().get(&tasks).send().await.unwrap().status(), 401);
    let forged = Token::new("eve", &["tasks:list"]).sign_with(stranger());
    assert_eq!(http().get(&tasks).bearer_auth(forged).send().await.unwrap().status(), 401);
    let narrow = Token::new("eve", &["steps:read"]).sign();
    assert_eq!(http().get(&tasks).bearer_auth(narrow).send().await.unwrap().status(), 403);
    let after = figures().await;
    let grew = |series: &str| value(&after, series) - value(&before, series);

    let create = "method=\"bailiwick.v1.TaskService/CreateTask\"";
    let list = "method=\"bailiwick.v1.TaskService/ListTasks\"";
    for (series, by) in [
        (format!("bailiwick_requests_total{{{create},surface=\"grpc\",code=\"OK\"}}"), 1.0),
        (
            format!("bailiwick_requests_total{{{list},surface=\"rest\",code=\"UNAUTHENTICATED\"}}"),
            2.0,
        ),
        (
            format!(
                "bailiwick_requests_total{{{list},surface=\"rest\",code=\"PERMISSION_DENIED\"}}"
            ),
            1.0,
        ),
        (format!("bailiwick_request_duration_seconds_count{{{create}}}"), 1.0),
        ("bailiwick_permission_denials_total{permission=\"tasks:list\"}".to_owned(), 1.0),
        ("bailiwick_tasks_created_total".to_owned(), 1.0),
        ("bailiwick_tasks_finished_total{state=\"complete\"}".to_owned(), 1.0),
        ("bailiwick_steps_leased_total".to_owned(), 1.0),
        ("bailiwick_steps_finished_total{outcome=\"complete\"}".to_owned(), 1.0),
    ] {
        assert!((grew(&series) - by).abs() < 0.5, "{series} grew by {}:\n{after}", grew(&series));
    }
    for name in [
        "bailiwick_auth_requests_total{",
        "bailiwick_auth_failures_total{",
        "bailiwick_auth_jwt_verification_duration_seconds_bucket{",
    ] {
        assert!(after.lines().any(|line| line.starts_with(name)), "{name}:\n{after}");
    }
    for secret in ["shop", "eve", ROOT_KEY, &task] {
        assert!(!after.contains(secret), "{secret} is no label:\n{after}");
    }
}
