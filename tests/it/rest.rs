//! REST as its users see it: the order of answers, every route, what bodies
//! and lists look like, streams, and the document of the API.

use std::{collections::BTreeSet, path::Path, process::Command};

use futures::future::join_all;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{
    self, ORDER, ROOT_KEY, Server, Setup,
    credentials::{self, READER_KEY, Token},
    wire::{self, Wire},
};

const ROOT: (&str, &str) = ("x-api-key", ROOT_KEY);
const READER: (&str, &str) = ("x-api-key", READER_KEY);
const ABSENT: &str = "018f0000-0000-7000-8000-000000000000";
const BODY_BYTES: usize = 4 << 20;

async fn shop() -> Server {
    Server::start().await.with_template().await
}

fn with_config() -> Setup {
    Setup { server: "config_endpoint_enabled = true\n".to_owned(), ..Setup::default() }
}

/// A line, headers and a body; a status and a reason.
type Case<'c> = (&'c str, [(&'c str, &'c str); 3], &'c str, u16, &'c str);

#[tokio::test]
async fn order_of_answers() {
    let server = shop().await;
    let scoped = format!("Bearer {}", Token::new("a", &["tasks:*"]).within(&["mine"]).sign());
    let scoped = ("authorization", &*scoped);
    let text = ("content-type", "text/plain");
    let huge = (BODY_BYTES + 1).to_string();
    let huge = ("content-length", &*huge);
    let none = ("x", "x");
    let odd = r#"{"namespace": "other", "name": "none", "context": []}"#;
    let absent = r#"{"namespace": "shop", "name": "none"}"#;
    let invalid = r#"{"namespace": "shop", "name": "order", "context": []}"#;
    let cases: [Case<'_>; 14] = [
        // What is not there comes before who asks.
        ("POST /v1/nothing", [none, text, huge], "x", 404, "UNKNOWN_METHOD"),
        ("PUT /v1/tasks", [none, text, huge], "x", 405, "VERB_NOT_ALLOWED"),
        // Who asks, before what they may, before what they send.
        ("POST /v1/tasks", [none, text, huge], "x", 401, "CREDENTIALS_MISSING"),
        ("POST /v1/tasks?x=y", [none, none, none], "{", 401, "CREDENTIALS_MISSING"),
        ("POST /v1/tasks", [READER, text, huge], "x", 403, "PERMISSION_MISSING"),
        ("GET /v1/workers?x=y", [READER, none, none], "", 403, "PERMISSION_MISSING"),
        ("POST /v1/tasks", [ROOT, text, huge], "x", 415, "CONTENT_TYPE_NOT_SUPPORTED"),
        ("POST /v1/tasks", [ROOT, none, huge], "x", 413, "BODY_TOO_LARGE"),
        ("POST /v1/tasks", [ROOT, none, none], "{", 400, "REQUEST_MALFORMED"),
        ("POST /v1/tasks", [scoped, none, none], "{\"x\": 1}", 400, "REQUEST_MALFORMED"),
        // The namespace before any look-up.
        ("POST /v1/tasks", [scoped, none, none], odd, 404, "NAMESPACE_NOT_FOUND"),
        ("POST /v1/tasks", [scoped, none, none], invalid, 404, "NAMESPACE_NOT_FOUND"),
        // Then the use case.
        ("POST /v1/tasks", [ROOT, none, none], invalid, 400, "PAYLOAD_INVALID"),
        ("DELETE /v1/tasks/x", [ROOT, none, none], "", 404, "NOT_FOUND"),
    ];
    for (line, headers, body, status, reason) in cases {
        let mut wire = Wire::open(server.http).await;
        let request = if line.starts_with("GET") || line.starts_with("DELETE") {
            wire::head(line, &headers).into_bytes()
        } else {
            wire::post(line, &headers, body)
        };
        wire.write(request).await.unwrap();
        let answer = wire.answer(false).await.unwrap();
        assert_eq!((answer.status, &*answer.reason()), (status, reason), "{line} {body}");
        let allow = (status == 405).then_some("GET, HEAD, POST");
        assert_eq!(answer.header("allow"), allow);
        let challenge = (status == 401).then_some("Bearer");
        assert_eq!(answer.header("www-authenticate"), challenge);
        is_whole(&answer);
    }
    let answer = wire::send(server.http, wire::post("POST /v1/tasks", &[ROOT], absent)).await;
    assert_eq!((answer.status, &*answer.reason()), (404, "NOT_FOUND"));
    let body = json!({"namespace": "other", "name": "none"});
    let refused = server.grpc("TaskService/CreateTask", body, &[scoped]).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "namespace not found: other"));
    assert!(refused.metadata().contains_key("x-request-id"));
}

/// Every error has all its parts, and they agree.
fn is_whole(answer: &wire::Answer) {
    let body = answer.json();
    for part in ["error", "message", "code", "reason", "request_id"] {
        assert!(body[part].as_str().is_some_and(|text| !text.is_empty()), "{part} in {body}");
    }
    assert_eq!(body["request_id"].as_str(), answer.header("x-request-id"), "{body}");
    let info = &body["details"][0];
    assert_eq!(info["@type"], "type.googleapis.com/google.rpc.ErrorInfo", "{body}");
    assert_eq!(info["reason"], body["reason"], "{body}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(answer.header("vary").is_some());
}

#[tokio::test]
async fn the_401_comes_before_the_body_is_read() {
    let server = Server::start().await;
    let mebibyte = vec![b' '; 1 << 20];
    // The whole body is under way: the answer is read all the same.
    let answer = wire::send(server.http, wire::post("POST /v1/tasks", &[], &mebibyte)).await;
    assert_eq!(answer.status, 401);
    // It never comes.
    let request = wire::post("POST /v1/tasks", &[], &mebibyte);
    let begun = tokio::time::Instant::now();
    let answer = wire::send(server.http, &request[..2_000]).await;
    assert_eq!(answer.status, 401);
    assert!(begun.elapsed().as_secs() < 15, "far less than the body's own time");
    // Nobody is asked for it.
    let headers = [("expect", "100-continue"), ("content-length", "1048576")];
    let kind = ("content-type", "application/json");
    for (line, first, status) in [
        ("POST /v1/tasks", kind, 401),
        ("POST /v1/nothing", kind, 404),
        ("POST /v1/whoami", kind, 405),
        ("POST /v1/tasks", READER, 403),
    ] {
        let request = wire::head(line, &[first, headers[0], headers[1]]);
        assert_eq!(wire::send(server.http, request).await.status, status, "{line}");
    }
    let request =
        wire::head("POST /v1/can-i", &[kind, READER, headers[0], ("content-length", "43")]);
    let mut asked = Wire::open(server.http).await;
    asked.write(request).await.unwrap();
    assert_eq!(asked.answer(true).await.unwrap().status, 100, "who may is asked");
    asked.write(r#"{"actions": [{"permission": "tasks:read"}]}"#).await.unwrap();
    assert_eq!(asked.answer(false).await.unwrap().status, 200);
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let server = shop().await;
    let task = server.order(json!({})).await;
    for (path, headers) in [
        ("/health".to_owned(), [READER]),
        (format!("/v1/tasks/{task}"), [READER]),
        ("/v1/tasks".to_owned(), [READER]),
        ("/v1/workers".to_owned(), [READER]),
        (format!("/v1/tasks/{ABSENT}"), [READER]),
        ("/v1/tasks".to_owned(), [("x-api-key", "garbage")]),
    ] {
        let get = wire::send(server.http, wire::head(&format!("GET {path}"), &headers)).await;
        let mut wire = Wire::open(server.http).await;
        wire.write(wire::head(&format!("HEAD {path}"), &headers)).await.unwrap();
        let head = wire.answer(true).await.unwrap();
        assert_eq!(
            (head.status, head.header("content-type")),
            (get.status, get.header("content-type"))
        );
        assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
        // The connection is where it should be: nothing of a body came.
        wire.write(wire::head("GET /health", &[])).await.unwrap();
        assert_eq!(wire.answer(false).await.unwrap().status, 200, "{path}");
    }
}

/// Each route of the behaviours, as root, on what is there.
#[tokio::test]
async fn every_route_answers_as_it_should() {
    let server = Server::with(with_config()).await.with_template().await;
    let task = server.order(json!({"order": 7})).await;
    let steps = format!("/v1/tasks/{task}/workflow_steps");
    let (_, list) = server.as_root("GET", &steps, None).await;
    let step = list["steps"][0]["step_uuid"].as_str().unwrap().to_owned();
    for (path, there) in [
        ("/health", "status"),
        ("/health/live", "status"),
        ("/health/ready", "status"),
        ("/health/detailed", "checks"),
        ("/openapi.json", "openapi"),
        ("/v1/tasks", "tasks"),
        (&*format!("/v1/tasks/{task}"), "task_uuid"),
        (&format!("/v1/tasks/{task}/summary"), "task_uuid"),
        (&format!("/v1/tasks/{task}/context"), "context"),
        (&steps, "steps"),
        (&format!("{steps}/{step}"), "step_uuid"),
        (&format!("{steps}/{step}/audit"), "entries"),
        ("/v1/templates", "templates"),
        ("/v1/templates/shop/order/1.0.0", "version"),
        ("/v1/workers", "workers"),
        ("/v1/handlers", "handlers"),
        ("/v1/permissions", "permissions"),
        ("/v1/whoami", "subject"),
        ("/config", "auth"),
        ("/v1/config", "auth"),
    ] {
        let (status, body) = server.as_root("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        assert!(body.get(there).is_some(), "{path}: {body}");
    }
    let (_, one) = server.as_root("GET", &format!("/v1/tasks/{task}"), None).await;
    let (_, summary) = server.as_root("GET", &format!("/v1/tasks/{task}/summary"), None).await;
    assert_eq!(one, summary);
    let (_, context) = server.as_root("GET", &format!("/v1/tasks/{task}/context"), None).await;
    assert_eq!(context["context"], json!({"order": 7}), "in place, not as text");

    let patch = json!({"action_type": "complete_manually", "reason": "by hand", "completion_data": {"result": {"ok": true}}});
    let (status, resolved) = server.as_root("PATCH", &format!("{steps}/{step}"), Some(patch)).await;
    assert_eq!((status, &resolved["state"]), (200, &json!("complete")), "{resolved}");
    assert_eq!(resolved["result"], json!({"ok": true}));
    let (_, audit) = server.as_root("GET", &format!("{steps}/{step}/audit"), None).await;
    assert!(audit["entries"].to_string().contains("by hand"), "{audit}");

    let other = server.order(json!({})).await;
    for _ in 0..2 {
        let (status, body) = server.as_root("DELETE", &format!("/v1/tasks/{other}"), None).await;
        assert_eq!((status, &body["state"]), (200, &json!("cancelled")), "{body}");
    }
    let (status, body) = server.as_root("DELETE", &format!("/v1/tasks/{task}"), None).await;
    assert_eq!((status, &body["reason"]), (400, &json!("TASK_FINAL")), "{body}");

    let template = json!({"namespace": "shop", "definition": ORDER});
    let (status, body) =
        server.as_root("POST", "/v1/templates/validate", Some(template.clone())).await;
    assert_eq!((status, &body["valid"]), (200, &json!(true)));
    let (status, body) = server.as_root("POST", "/v1/templates", Some(template)).await;
    assert_eq!(body["unchanged"], true, "{status} {body}");
    let changed = json!({"namespace": "shop", "definition": ORDER.replace("work", "play")});
    let (status, body) = server.as_root("POST", "/v1/templates", Some(changed)).await;
    assert_eq!((status, &body["code"]), (409, &json!("ALREADY_EXISTS")));
    let worker = json!({"namespace": "shop", "name": "w", "handlers": ["work"]});
    let (status, body) = server.as_root("POST", "/v1/workers", Some(worker)).await;
    assert_eq!((status, &body["name"]), (201, &json!("w")));
    let actions = json!({"actions": [{"permission": "tasks:read"}]});
    assert_eq!(server.as_root("POST", "/v1/can-i", Some(actions)).await.0, 200);
}

#[tokio::test]
async fn work_over_rest() {
    let server = shop().await;
    let task = server.order(json!({"item": "lamp"})).await;
    let lease = json!({"namespace": "shop", "handlers": ["work"], "max_leases": 5, "wait_ms": 0});
    let (status, leased) = server.as_root("POST", "/v1/work/lease", Some(lease.clone())).await;
    assert_eq!(status, 200, "{leased}");
    let leases = leased["leases"].as_array().unwrap();
    assert_eq!(leases.len(), 1);
    assert_eq!((&leases[0]["task_uuid"], &leases[0]["attempt"]), (&json!(task), &json!(1)));
    assert_eq!((&leases[0]["name"], &leases[0]["handler"]), (&json!("only"), &json!("work")));
    assert_eq!(
        (&leases[0]["context"], &leases[0]["results"]),
        (&json!({"item": "lamp"}), &json!({}))
    );
    assert!(
        leases[0]["lease_id"].as_str().unwrap().len() >= 16 && leases[0]["deadline"].is_string()
    );
    let beat = json!({"lease_id": leases[0]["lease_id"]});
    let (status, beaten) = server.as_root("POST", "/v1/work/heartbeat", Some(beat)).await;
    assert_eq!((status, &beaten["state"]), (200, &json!("held")));
    let done = json!({"lease_id": leases[0]["lease_id"], "result": {"sum": 3}});
    for already in [false, true] {
        let (status, body) = server.as_root("POST", "/v1/work/complete", Some(done.clone())).await;
        assert_eq!((status, &body["already"]), (200, &json!(already)), "{body}");
    }
    let (_, body) = server.as_root("GET", &format!("/v1/tasks/{task}"), None).await;
    assert_eq!(body["state"], "complete");
    let (status, leased) = server.as_root("POST", "/v1/work/lease", Some(lease)).await;
    assert_eq!((status, leased), (200, json!({"leases": []})));
    for (wrong, field) in [
        (json!({"namespace": "shop"}), "handlers"),
        (json!({"handlers": ["work"]}), "namespace"),
        (json!({"namespace": "shop", "handlers": ["work"], "wait_ms": 60_001}), "wait_ms"),
    ] {
        let (status, body) = server.as_root("POST", "/v1/work/lease", Some(wrong)).await;
        assert_eq!(status, 400, "{field}: {body}");
        assert!(body["message"].as_str().unwrap().contains(field), "{body}");
    }
}

#[tokio::test]
async fn the_configuration_is_shown_when_it_may_and_without_secrets() {
    let off = Server::start().await;
    for path in ["/config", "/v1/config"] {
        assert_eq!(off.json("GET", path, &[], None).await.0, 401);
        assert_eq!(off.json("GET", path, &[READER], None).await.0, 403);
        let (status, body) = off.as_root("GET", path, None).await;
        assert_eq!((status, &body["code"]), (404, &json!("NOT_FOUND")), "{body}");
    }
    let rpc = "SystemService/GetConfig";
    let code = async |headers: &[(&str, &str)]| {
        off.grpc(rpc, json!({}), headers).await.unwrap_err().code()
    };
    assert_eq!(code(&[]).await, Code::Unauthenticated);
    assert_eq!(code(&[READER]).await, Code::PermissionDenied);
    assert_eq!(code(&[ROOT]).await, Code::NotFound);

    let server = Server::with(with_config()).await;
    let (status, config) = server.as_root("GET", "/config", None).await;
    assert_eq!(status, 200);
    assert_eq!(config["auth"]["enabled"], true);
    assert_eq!(config["auth"]["api_keys"][0]["description"], "root of the tests");
    let grpc = server.grpc(rpc, json!({}), &[ROOT]).await.unwrap();
    let folder = server.folder.path().to_str().unwrap();
    for text in [config.to_string(), grpc.to_string()] {
        for secret in [ROOT_KEY, READER_KEY, "BEGIN", folder, "bailiwick.db"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    let narrow = Token::new("narrow", &["system:config_read"]).within(&["shop"]).sign();
    let narrow = format!("Bearer {narrow}");
    let (status, _) = server.json("GET", "/config", &[("authorization", &narrow)], None).await;
    assert_eq!(status, 403, "it belongs to the whole server");
}

/// Tools of Python that `make test` installs.
fn python_tool(name: &str) -> Command {
    let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/install.sh");
    let said = Command::new(install).arg("--path").output().unwrap();
    assert!(said.status.success());
    let tools = String::from_utf8(said.stdout).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("env");
    command.arg(format!("PATH={}:{path}", tools.trim())).arg(name);
    command
}

#[tokio::test]
async fn the_document_is_valid_openapi_and_says_what_is_served() {
    let server = shop().await;
    let (status, document) = server.json("GET", "/openapi.json", &[], None).await;
    assert_eq!(status, 200);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    let file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
    std::fs::write(file.path(), document.to_string()).unwrap();
    let output = python_tool("openapi-spec-validator").arg(file.path()).output().unwrap();
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{said}; `make test` installs the validator");

    // Each operation is there, and asks for what it says.
    let nobody = format!("Bearer {}", Token::new("nobody", &[]).sign());
    let nobody = [("authorization", &*nobody)];
    let refused = wire::send(server.http, wire::head("GET /v1/tasks", &nobody)).await;
    let decision = refused.header("x-request-id").unwrap().to_owned();
    let mut seen = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (verb, operation) in operations.as_object().unwrap() {
            let filled = path.replace("{task_uuid}", ABSENT).replace("{step_uuid}", ABSENT);
            let filled = filled.replace("{namespace}", "n").replace("{name}", "x");
            let filled = filled.replace("{version}", "1.0.0");
            let filled = filled.replace("{prefix}", "p").replace("{id}", "i");
            let filled = filled.replace("{request_id}", &decision);
            let line = format!("{} {filled}", verb.to_uppercase());
            let answer = wire::send(server.http, wire::head(&line, &[("accept", "*/*")])).await;
            let public = operation["x-access"] == "public";
            let wanted = if public { 200 } else { 401 };
            assert_eq!(answer.status, wanted, "{line}: {operation}");
            let answer = wire::send(server.http, wire::head(&line, &nobody)).await;
            match operation.get("x-required-permission") {
                Some(permission) => {
                    assert_eq!(answer.status, 403, "{line}");
                    let message =
                        format!("Missing required permission: {}", permission.as_str().unwrap());
                    assert_eq!(answer.json()["message"], message, "{line}");
                    assert!(operation.get("x-access").is_none(), "{line}");
                }
                None if operation["x-access"] == "root" => {
                    assert_eq!(answer.status, 403, "{line}");
                    assert_eq!(answer.json()["reason"], "ROOT_REQUIRED", "{line}");
                }
                // Who may is decided about the elevation, and here there is none.
                None if path.starts_with("/v1/auth/elevations/") => {
                    assert_eq!(answer.status, 404, "{line}");
                }
                None => assert!(!matches!(answer.status, 401 | 403 | 404 | 405), "{line}"),
            }
            seen.insert(format!("{} {path}", verb.to_uppercase()));
        }
    }
    for wanted in [
        "POST /v1/tasks",
        "GET /v1/tasks",
        "GET /v1/tasks/{task_uuid}",
        "GET /v1/tasks/{task_uuid}/summary",
        "DELETE /v1/tasks/{task_uuid}",
        "GET /v1/tasks/{task_uuid}/context",
        "GET /v1/tasks/{task_uuid}/watch",
        "GET /v1/tasks/{task_uuid}/workflow_steps",
        "GET /v1/tasks/{task_uuid}/workflow_steps/{step_uuid}",
        "PATCH /v1/tasks/{task_uuid}/workflow_steps/{step_uuid}",
        "GET /v1/tasks/{task_uuid}/workflow_steps/{step_uuid}/audit",
        "GET /v1/templates",
        "POST /v1/templates",
        "POST /v1/templates/validate",
        "GET /v1/templates/{namespace}/{name}/{version}",
        "GET /v1/handlers",
        "GET /config",
        "GET /v1/workers",
        "POST /v1/work/lease",
        "POST /v1/work/complete",
        "POST /v1/work/fail",
        "POST /v1/work/heartbeat",
        "GET /v1/whoami",
        "POST /v1/can-i",
        "GET /health",
        "GET /health/live",
        "GET /health/ready",
        "GET /health/detailed",
    ] {
        assert!(seen.contains(wanted), "{wanted} is not in {seen:?}");
    }
}

#[tokio::test]
async fn the_docs_come_from_the_binary_alone() {
    let server = Server::start().await;
    let (status, page) = server.json("GET", "/docs", &[], None).await;
    let page = page.as_str().unwrap();
    assert_eq!(status, 200);
    let mut linked = 0;
    for attribute in ["src=\"", "href=\""] {
        for link in page.split(attribute).skip(1) {
            let link = link.split('"').next().unwrap();
            if link.starts_with('#') || link.starts_with("data:") {
                continue;
            }
            assert!(!link.contains("//"), "{link} is elsewhere");
            let path = format!("/{}", link.trim_start_matches("./").trim_start_matches('/'));
            assert_eq!(server.json("GET", &path, &[], None).await.0, 200, "{path}");
            linked += 1;
        }
    }
    assert!(linked >= 2, "{page}");
}

/// A finished task, and its watch's lines.
async fn finished(server: &Server) -> String {
    let task = server.order(json!({})).await;
    let lease = json!({"namespace": "shop", "handlers": ["work"], "max_leases": 1});
    let (_, leased) = server.as_root("POST", "/v1/work/lease", Some(lease)).await;
    let done = json!({"lease_id": leased["leases"][0]["lease_id"], "result": 1});
    assert_eq!(server.as_root("POST", "/v1/work/complete", Some(done)).await.0, 200);
    task
}

#[tokio::test]
async fn a_watch_is_lines_or_events_and_resumes() {
    let server = shop().await;
    let task = finished(&server).await;
    let watch = async |query: &str, accept: &str| {
        let url = server.url(&format!("/v1/tasks/{task}/watch{query}"));
        let call = harness::http().get(url).header(ROOT.0, ROOT.1).header("accept", accept);
        let answer = call.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        (kind, answer.text().await.unwrap())
    };
    let parse = |text: &str| -> Vec<Value> {
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    for accept in [
        "application/x-ndjson",
        "*/*",
        "application/json",
        "text/event-stream;q=0.1, application/x-ndjson",
    ] {
        let (kind, text) = watch("", accept).await;
        assert_eq!(kind, "application/x-ndjson", "{accept}");
        let events = parse(&text);
        let task = &events[0]["snapshot"]["task"];
        assert_eq!((&task["state"], events.len()), (&json!("complete"), 1), "{text}");
    }
    let (kind, text) = watch("?after_seq=0", "text/event-stream").await;
    assert_eq!(kind, "text/event-stream");
    let (_, all) = watch("?after_seq=0", "application/x-ndjson").await;
    let data: Vec<&str> =
        text.lines().filter(|line| !line.is_empty()).map(|line| &line["data: ".len()..]).collect();
    assert!(text.lines().all(|line| line.is_empty() || line.starts_with("data: ")), "{text}");
    assert_eq!(data, all.lines().collect::<Vec<_>>());

    let events = parse(&all);
    assert!(events.len() >= 4, "{all}");
    let seqs: Vec<i64> = events.iter().map(|event| event["seq"].as_i64().unwrap()).collect();
    assert!(seqs.is_sorted_by(|before, after| before < after), "{seqs:?}");
    assert_eq!(events.last().unwrap()["task"]["state"], "complete");
    for (index, seq) in seqs.iter().enumerate() {
        for name in ["after_seq", "afterSeq"] {
            let (_, rest) = watch(&format!("?{name}={seq}"), "*/*").await;
            assert_eq!(parse(&rest), events[index + 1..], "after {seq}");
        }
    }
    // No header leaves before the look-up.
    for (path, status) in [
        (format!("/v1/tasks/{ABSENT}/watch"), 404),
        (format!("/v1/tasks/{task}/watch?after_seq=x"), 400),
        (format!("/v1/tasks/{task}/watch?after_seq=-1"), 400),
    ] {
        let (got, body) =
            server.json("GET", &path, &[ROOT, ("accept", "text/event-stream")], None).await;
        assert_eq!(got, status, "{path}: {body}");
    }
}

#[tokio::test]
async fn create_answers_201_and_a_key_makes_it_idempotent() {
    let server = shop().await;
    let body = json!({"namespace": "shop", "name": "order", "context": {"a": 1}, "idempotency_key": "k",
        "tags": ["x", "y"], "priority": -3, "initiator": "somebody", "source_system": "web"});
    let (status, first) = server.as_root("POST", "/v1/tasks", Some(body.clone())).await;
    assert_eq!(status, 201, "{first}");
    assert_eq!((&first["namespace"], &first["version"]), (&json!("shop"), &json!("1.0.0")));
    assert_eq!((&first["state"], &first["priority"]), (&json!("pending"), &json!(-3)));
    assert_eq!(first["created_by"], "root of the tests");
    assert_eq!((&first["initiator"], &first["tags"]), (&json!("somebody"), &json!(["x", "y"])));
    // Defaults are printed, what is unset is left out.
    assert_eq!(first["steps"]["complete"], 0);
    assert!(first.get("completed_at").is_none() && first.get("reason").is_none(), "{first}");

    let retries = join_all((0..8).map(|_| server.as_root("POST", "/v1/tasks", Some(body.clone()))));
    for (status, again) in retries.await {
        assert_eq!((status, &again["task_uuid"]), (201, &first["task_uuid"]), "{again}");
    }
    let mut other = body.clone();
    other["context"] = json!({"a": 2});
    let (status, clash) = server.as_root("POST", "/v1/tasks", Some(other.clone())).await;
    assert_eq!((status, &clash["code"]), (409, &json!("ALREADY_EXISTS")));
    assert_eq!(clash["reason"], "IDEMPOTENCY_CONFLICT");
    other["context"] = "{\"a\": 2}".into();
    let refused = server.grpc("TaskService/CreateTask", other, &[ROOT]).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    let (_, list) = server.as_root("GET", "/v1/tasks", None).await;
    assert_eq!(list["tasks"].as_array().unwrap().len(), 1);
    for (field, value) in [
        ("priority", json!(101)),
        ("priority", json!(-101)),
        ("context", json!([])),
        ("context", json!("text")),
        ("context", json!(null)),
        ("tags", json!("x")),
        ("version", json!("one")),
    ] {
        let mut wrong = json!({"namespace": "shop", "name": "order"});
        wrong[field] = value.clone();
        let (status, answer) = server.as_root("POST", "/v1/tasks", Some(wrong)).await;
        assert_eq!(status, 400, "{field}: {value}: {answer}");
    }
}

#[tokio::test]
async fn pages_are_exact_and_their_tokens_bound_to_query_and_caller() {
    let server = shop().await;
    let mut made = Vec::new();
    for _ in 0..6 {
        made.push(server.order(json!({})).await);
    }
    made.reverse();
    for size in [1, 2, 3, 4, 6, 7] {
        let mut listed = Vec::new();
        let mut token = String::new();
        let mut pages = 0_usize;
        loop {
            let path = format!("/v1/tasks?page_size={size}&page_token={token}");
            let (status, page) = server.as_root("GET", &path, None).await;
            assert_eq!(status, 200, "{page}");
            let tasks = page["tasks"].as_array().unwrap();
            assert!(!tasks.is_empty() && tasks.len() <= size, "{page}");
            listed.extend(tasks.iter().map(|task| task["task_uuid"].as_str().unwrap().to_owned()));
            pages += 1;
            token = page["next_page_token"].as_str().unwrap().to_owned();
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(listed, made, "newest first, each once, by {size}");
        assert_eq!(pages, 6_usize.div_ceil(size), "no empty page at the end");
    }
    let (_, page) = server.as_root("GET", "/v1/tasks?page_size=2", None).await;
    let token = page["next_page_token"].as_str().unwrap();
    let with = |query: &str| format!("/v1/tasks?page_size=2&page_token={token}{query}");
    assert_eq!(server.as_root("GET", &with(""), None).await.0, 200);
    for query in ["&namespace=shop", "&name=order", "&state=pending"] {
        let (status, body) = server.as_root("GET", &with(query), None).await;
        assert_eq!(
            (status, &body["reason"]),
            (400, &json!("PAGE_TOKEN_INVALID")),
            "{query}: {body}"
        );
    }
    let (status, body) = server.json("GET", &with(""), &[READER], None).await;
    assert_eq!((status, &body["reason"]), (400, &json!("PAGE_TOKEN_INVALID")), "{body}");
    let other = format!("/v1/templates?page_token={token}");
    assert_eq!(server.as_root("GET", &other, None).await.0, 400);
    let request = json!({"page_size": 2, "page_token": token});
    let refused = server.grpc("TaskService/ListTasks", request.clone(), &[READER]).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    assert!(server.grpc("TaskService/ListTasks", request, &[ROOT]).await.is_ok());
    for wrong in ["x", "%00", &"A".repeat(5000), &token[1..]] {
        let (status, _) =
            server.as_root("GET", &format!("/v1/tasks?page_token={wrong}"), None).await;
        assert_eq!(status, 400, "{wrong}");
    }
    for (size, status) in [
        ("0", 200),
        ("500", 200),
        ("501", 400),
        ("-1", 400),
        ("x", 400),
        ("4294967296", 400),
        ("1.5", 400),
    ] {
        let (got, body) = server.as_root("GET", &format!("/v1/tasks?page_size={size}"), None).await;
        assert_eq!(got, status, "{size}: {body}");
    }
    for (state, count) in [("pending", 6), ("complete", 0)] {
        let (_, list) = server.as_root("GET", &format!("/v1/tasks?state={state}"), None).await;
        assert_eq!(list["tasks"].as_array().unwrap().len(), count, "{state}");
    }
    assert_eq!(server.as_root("GET", "/v1/tasks?state=unheard_of", None).await.0, 400);
}

#[tokio::test]
async fn numbers_keep_every_digit_and_text_every_character() {
    let server = shop().await;
    let context = "{\"big\":123456789012345678901234567890,\"exact\":1.10000000000000000000001,\"e\":1e400,\"zero\":-0.0,\"text\":\"\u{1f980}\\u0000\\\"\u{e9}\"}";
    let body = format!("{{\"namespace\":\"shop\",\"name\":\"order\",\"context\":{context}}}");
    let answer = wire::send(server.http, wire::post("POST /v1/tasks", &[ROOT], body)).await;
    assert_eq!(answer.status, 201, "{}", answer.json());
    let task = answer.json()["task_uuid"].as_str().unwrap().to_owned();
    let line = format!("GET /v1/tasks/{task}/context");
    let shown = wire::send(server.http, wire::head(&line, &[ROOT])).await;
    let shown = String::from_utf8(shown.body).unwrap();
    for digits in ["123456789012345678901234567890", "1.10000000000000000000001", "1e400", "-0.0"] {
        assert!(shown.contains(digits), "{digits} in {shown}");
    }
    assert!(shown.contains('\u{1f980}') && shown.contains("\\u0000"), "{shown}");
    let lease = r#"{"namespace":"shop","handlers":["work"],"max_leases":1}"#;
    let leased = wire::send(server.http, wire::post("POST /v1/work/lease", &[ROOT], lease)).await;
    let text = String::from_utf8(leased.body.clone()).unwrap();
    assert!(text.contains("123456789012345678901234567890"), "{text}");
    // 1e400 is more than this test's own reader takes.
    let id = text.split("\"lease_id\":\"").nth(1).unwrap().split('"').next().unwrap();
    let done = format!("{{\"lease_id\":\"{id}\",\"result\":0.30000000000000000000000000000004}}");
    let answer = wire::send(server.http, wire::post("POST /v1/work/complete", &[ROOT], done)).await;
    assert_eq!(answer.status, 200);
    let line = format!("GET /v1/tasks/{task}/workflow_steps");
    let steps = wire::send(server.http, wire::head(&line, &[ROOT])).await;
    let steps = String::from_utf8(steps.body).unwrap();
    assert!(steps.contains("\"result\":0.30000000000000000000000000000004"), "{steps}");
}

#[tokio::test]
async fn both_spellings_go_in_and_one_comes_out() {
    let server = shop().await;
    for field in ["source_system", "sourceSystem"] {
        let mut body = json!({"namespace": "shop", "name": "order"});
        body[field] = "web".into();
        let (status, task) = server.as_root("POST", "/v1/tasks", Some(body)).await;
        assert_eq!((status, &task["source_system"]), (201, &json!("web")));
        assert!(task.get("sourceSystem").is_none());
    }
    for query in ["page_size=1", "pageSize=1"] {
        let (_, list) = server.as_root("GET", &format!("/v1/tasks?{query}"), None).await;
        assert_eq!(list["tasks"].as_array().unwrap().len(), 1, "{query}");
    }
    let body = json!({"namespace": "shop", "name": "order", "contxt": {}});
    let (status, answer) = server.as_root("POST", "/v1/tasks", Some(body)).await;
    assert_eq!(status, 400);
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("contxt") && message.contains("`context`"), "{message}");
    let (status, answer) = server.as_root("GET", "/v1/tasks?pagesize=1", None).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("`page_size`"), "{answer}");
}

#[tokio::test]
async fn both_ports_serve_both_surfaces() {
    let server = shop().await;
    let answer = wire::send(server.grpc, wire::head("GET /v1/tasks", &[READER])).await;
    assert_eq!(answer.status, 200);
    let mut swapped = shop().await;
    std::mem::swap(&mut swapped.grpc, &mut swapped.http);
    let answer = swapped.grpc("TaskService/ListTasks", json!({}), &[READER]).await;
    assert!(answer.is_ok(), "{answer:?}");
    let expired = Token::new("late", &["*"]).claim("exp", (credentials::now() - 1).into()).sign();
    let expired = format!("Bearer {expired}");
    let late = [("authorization", &*expired)];
    let refused = swapped.grpc("TaskService/ListTasks", json!({}), &late);
    assert_eq!(refused.await.unwrap_err().code(), Code::Unauthenticated);
}
