//! What an attacker, a careless tenant or a stolen credential would try at
//! the front door: the rows of the security decisions that concern gate and
//! gateway. SE-10 and SE-22 are in `auth_matrix`, the token forms of SE-23 in
//! `auth`.

use std::time::Duration;

use bailiwick::pb::v1 as pb;
use bailiwick_client::Auth;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::Code;

use crate::harness::{
    self, ORDER, ROOT_KEY, Server, Setup,
    credentials::{self, READER_KEY, Token},
    wire::{self, Wire},
};

const ROOT: [(&str, &str); 1] = [("x-api-key", ROOT_KEY)];

fn bearer(token: &Token) -> String {
    format!("Bearer {}", token.sign())
}

fn off(server: &str) -> Setup {
    Setup { auth: false, server: server.to_owned(), ..Setup::default() }
}

fn auth_lines(lines: &str) -> Setup {
    Setup { rest: lines.to_owned(), ..Setup::default() }
}

#[tokio::test]
async fn se_05_root_is_a_key_of_the_configuration_with_everything() {
    let server = Server::with(auth_lines(
        "[[auth.api_keys]]\nkey = \"narrow\"\npermissions = [\"*\"]\nnamespaces = [\"shop\"]\n\
         [[auth.api_keys]]\nkey = \"wide\"\npermissions = [\"tasks:*\"]\n",
    ))
    .await;
    let everywhere = bearer(&Token::new("jwt", &["*"]).within(&["*"]));
    for (name, value, root) in [
        ("x-api-key", ROOT_KEY, true),
        ("x-api-key", "narrow", false),
        ("x-api-key", "wide", false),
        ("authorization", &everywhere, false),
    ] {
        let (status, me) = server.json("GET", "/v1/whoami", &[(name, value)], None).await;
        assert_eq!((status, &me["root"]), (200, &json!(root)), "{value}: {me}");
        let me = server.grpc("AccessService/WhoAmI", json!({}), &[(name, value)]).await.unwrap();
        assert_eq!(me["root"].as_bool().unwrap_or_default(), root, "{value}: {me}");
    }
    let server = Server::with(off("")).await;
    let (_, me) = server.json("GET", "/v1/whoami", &[], None).await;
    assert_eq!(me["root"], true, "{me}");
}

#[tokio::test]
async fn se_06_odd_scopes_are_refused() {
    let server = Server::start().await.with_template().await;
    server.order(json!({})).await;
    let lister = Token::new("scoped", &["tasks:list", "tasks:create"]);
    let tasks = async |token: &Token| {
        let headers = [("authorization", &*bearer(token))];
        let (status, body) = server.json("GET", "/v1/tasks", &headers, None).await;
        let grpc = server.grpc("TaskService/ListTasks", json!({}), &headers).await;
        assert_eq!(grpc.is_ok(), status == 200, "{body}");
        (status, body["tasks"].as_array().map_or(0, Vec::len))
    };
    for odd in [
        json!([""]),
        json!(["deploy.*"]),
        json!([" shop"]),
        json!(["shop "]),
        json!(["*", ""]),
        json!(["**"]),
        json!(["*.shop"]),
        json!("shop"),
        json!("*"),
        json!(null),
        json!(1),
        json!({"shop": true}),
        json!(["shop", 1]),
        json!([["shop"]]),
        json!(["sh\u{43e}p"]),
        json!(["shop..x"]),
        json!([".shop"]),
        json!(["a".repeat(129)]),
        json!(["sh\u{0}p"]),
    ] {
        let token = lister.clone().claim("namespaces", odd.clone());
        assert_eq!(tasks(&token).await, (401, 0), "{odd}");
        let token = lister.clone().claim("worker_namespaces", odd.clone());
        assert_eq!(tasks(&token).await, (401, 0), "worker_namespaces {odd}");
    }
    assert_eq!(tasks(&lister.clone().within(&["shop"])).await, (200, 1));
    assert_eq!(tasks(&lister.clone().within(&["*"])).await, (200, 1));
    assert_eq!(tasks(&lister).await, (200, 1), "a missing claim takes the issuer's scope");
    let nowhere = lister.clone().within(&[]);
    assert_eq!(tasks(&nowhere).await, (200, 0), "an empty list means none");
    let headers = [("authorization", &*bearer(&nowhere))];
    let body = json!({"namespace": "shop", "name": "order"});
    let (status, body) = server.json("POST", "/v1/tasks", &headers, Some(body)).await;
    assert_eq!((status, &body["message"]), (404, &json!("namespace not found: shop")));

    for odd in ["[\"\"]", "[\"deploy.*\"]", "[\" shop\"]", "[\"shop\", \"\"]"] {
        let said = harness::refused(&auth_lines(&format!(
            "[[auth.api_keys]]\nkey = \"odd-key-secret\"\npermissions = [\"*\"]\nnamespaces = {odd}\n"
        )))
        .await;
        assert!(said.contains("auth.api_keys") && !said.contains("odd-key-secret"), "{said}");
        let said = harness::refused(&auth_lines(&format!("jwt_namespaces = {odd}\n"))).await;
        assert!(said.contains("auth.jwt_namespaces"), "{said}");
    }
}

#[tokio::test]
async fn se_07_a_namespace_is_itself_and_nothing_that_looks_like_it() {
    let server = Server::start().await.with_template().await;
    server.order(json!({})).await;
    let token = Token::new("scoped", &["*"]).within(&["sh_p", "Shop", "shopX", "shop-"]);
    let headers = [("authorization", &*bearer(&token))];
    let (_, list) = server.json("GET", "/v1/tasks", &headers, None).await;
    assert_eq!(list["tasks"], json!([]), "neither `_`, case nor prefix is a wildcard");
    for near in ["Shop", "sh_p", "shopX", "shop-", "SHOP", "s", "shop.x"] {
        let (_, list) = server.as_root("GET", &format!("/v1/tasks?namespace={near}"), None).await;
        assert_eq!(list["tasks"], json!([]), "{near}");
        let body = json!({"namespace": near, "name": "order"});
        let (status, body) = server.as_root("POST", "/v1/tasks", Some(body)).await;
        assert_eq!(status, 404, "{near}: {body}");
    }
    // The scope covers what is beneath it, and nothing beside it.
    let within = Token::new("scoped", &["*"]).within(&["shop"]);
    let headers = [("authorization", &*bearer(&within))];
    let can = async |namespace: &str| {
        let body = json!({"actions": [{"permission": "tasks:create", "namespace": namespace}]});
        let (_, body) = server.json("POST", "/v1/can-i", &headers, Some(body)).await;
        body["answers"][0]["allowed"].as_bool()
    };
    assert_eq!(can("shop").await, Some(true));
    assert_eq!(can("shopX").await, Some(false));
    assert_eq!(can("Shop").await, Some(false));
    for bad in ["", " shop", "sh op", "sh\u{43e}p", "shop.", ".shop", "-shop", "*", "shop/x", "a%b"]
    {
        let body = json!({"namespace": bad, "name": "order"});
        let (status, answer) = server.as_root("POST", "/v1/tasks", Some(body.clone())).await;
        assert_eq!(status, 400, "{bad:?}: {answer}");
        let refused = server.grpc("TaskService/CreateTask", body, &ROOT).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}");
    }
    let long = json!({"namespace": "a".repeat(129), "name": "order"});
    assert_eq!(server.as_root("POST", "/v1/tasks", Some(long)).await.0, 400);
}

#[tokio::test]
async fn se_08_one_value_given_twice_is_refused_and_nothing_done() {
    let mut server = Server::start().await.with_template().await;
    let task = server.order(json!({})).await;
    let create = "POST /v1/tasks";
    let body = r#"{"namespace": "shop", "name": "order"}"#;
    let steps = format!("/v1/tasks/{task}/workflow_steps");
    let (_, list) = server.as_root("GET", &steps, None).await;
    let step = list["steps"][0]["step_uuid"].as_str().unwrap().to_owned();
    let patch = format!("PATCH {steps}/{step}");
    let resolve = r#""action_type": "resolve_manually", "reason": "r""#;
    let bodies = [
        // A repeated key, at every depth that is ours.
        (create, r#"{"namespace": "shop", "name": "order", "name": "order"}"#.to_owned()),
        (create, r#"{"namespace": "shop", "name": "a", "n\u0061me": "order"}"#.to_owned()),
        (create, r#"{"namespace": "shop", "namespace": "shop", "name": "order"}"#.to_owned()),
        (
            create,
            r#"{"namespace": "shop", "name": "order", "priority": null, "priority": 1}"#.to_owned(),
        ),
        // Both spellings.
        (
            create,
            r#"{"namespace": "shop", "name": "order", "source_system": "a", "sourceSystem": "a"}"#
                .to_owned(),
        ),
        // In the path and in the body.
        (&patch, format!(r#"{{{resolve}, "task_uuid": "{task}"}}"#)),
        (&patch, format!(r#"{{{resolve}, "stepUuid": "{step}"}}"#)),
        // In the query and in the body.
        ("POST /v1/tasks?name=order", body.to_owned()),
        ("POST /v1/tasks?source_system=x", body.to_owned()),
        // The request's namespace against the template's.
        ("POST /v1/templates", json!({"namespace": "other", "definition": ORDER}).to_string()),
        // A key of our own message within the actions.
        (
            "POST /v1/can-i",
            r#"{"actions": [{"permission": "tasks:read", "permission": "tasks:list"}]}"#.to_owned(),
        ),
    ];
    for (line, body) in &bodies {
        let answer = wire::send(server.http, wire::post(line, &ROOT, body)).await;
        assert_eq!(answer.status, 400, "{line} {body}: {}", answer.json());
        assert_eq!(answer.json()["code"], "INVALID_ARGUMENT");
    }
    for target in [
        "/v1/tasks?page_size=1&page_size=1",
        "/v1/tasks?page_size=1&pageSize=1",
        "/v1/tasks?namespace=shop&namespace=shop",
        "/v1/tasks?namespace=shop&n%61mespace=other",
        &format!("/v1/tasks/{task}?task_uuid={task}"),
        &format!("{steps}?taskUuid={task}"),
    ] {
        let (status, answer) = server.as_root("GET", target, None).await;
        assert_eq!(status, 400, "{target}: {answer}");
    }
    // A list may be repeated.
    let (status, list) =
        server.as_root("GET", "/v1/tasks?state=pending&state=complete", None).await;
    assert_eq!((status, list["tasks"].as_array().unwrap().len()), (200, 1), "nothing was done");
    let (_, list) = server.as_root("GET", &steps, None).await;
    assert_eq!(list["steps"][0]["attempts"], 0);
    assert_ne!(list["steps"][0]["state"], "resolved_manually");
    let (_, templates) = server.as_root("GET", "/v1/templates?namespace=other", None).await;
    assert_eq!(templates["templates"], json!([]));
    let template = json!({"namespace": "other", "definition": ORDER});
    let refused = server.grpc("TemplateService/RegisterTemplate", template, &ROOT).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    server.assert_sound();
}

#[tokio::test]
async fn se_09_a_step_under_a_foreign_task_is_absent() {
    let server = Server::start().await.with_template().await;
    let (mine, theirs) = (server.order(json!({})).await, server.order(json!({})).await);
    let steps = |task: &str| format!("/v1/tasks/{task}/workflow_steps");
    let (_, list) = server.as_root("GET", &steps(&theirs), None).await;
    let step = list["steps"][0]["step_uuid"].as_str().unwrap();
    let foreign = format!("{}/{step}", steps(&mine));
    let last = if step.ends_with('0') { "1" } else { "0" };
    let missing = format!("{}{last}", &step[..step.len() - 1]);
    let absent = format!("{}/{missing}", steps(&mine));
    let act = json!({"action_type": "resolve_manually", "reason": "r"});
    for (verb, suffix, body) in
        [("GET", "", None), ("GET", "/audit", None), ("PATCH", "", Some(act.clone()))]
    {
        let (status, mut one) =
            server.as_root(verb, &format!("{foreign}{suffix}"), body.clone()).await;
        let (_, mut other) = server.as_root(verb, &format!("{absent}{suffix}"), body).await;
        assert_eq!(status, 404, "{verb} {suffix}: {one}");
        for (answer, id) in [(&mut one, step), (&mut other, &*missing)] {
            let request = answer["request_id"].as_str().unwrap().to_owned();
            let text = answer.to_string().replace(&request, "REQUEST").replace(id, "STEP");
            *answer = serde_json::from_str(&text).unwrap();
        }
        assert_eq!(one, other);
    }
    for method in ["GetStep", "GetStepAudit", "ResolveStep"] {
        let mut request = json!({"task_uuid": mine, "step_uuid": step});
        if method == "ResolveStep" {
            request["action_type"] = "STEP_ACTION_RESOLVE_MANUALLY".into();
            request["reason"] = "r".into();
        }
        let refused = server.grpc(&format!("StepService/{method}"), request, &ROOT).await;
        assert_eq!(refused.unwrap_err().code(), Code::NotFound, "{method}");
    }
    let (_, list) = server.as_root("GET", &steps(&theirs), None).await;
    assert_ne!(list["steps"][0]["state"], "resolved_manually");
}

#[tokio::test]
async fn se_11_payloads_leave_by_their_own_permissions_alone() {
    let server = Server::start().await.with_template().await;
    let (context, result, error) = ("canary-context", "canary-result", "canary-error");
    let body = json!({"namespace": "shop", "name": "order", "context": {"key": context}});
    let (_, created) = server.as_root("POST", "/v1/tasks", Some(body)).await;
    let task = created["task_uuid"].as_str().unwrap().to_owned();
    let lease = json!({"namespace": "shop", "handlers": ["work"], "max_leases": 1});
    let (_, leased) = server.as_root("POST", "/v1/work/lease", Some(lease.clone())).await;
    let id = &leased["leases"][0]["lease_id"];
    let body = json!({"lease_id": id, "result": {"key": result}});
    let (status, done) = server.as_root("POST", "/v1/work/complete", Some(body)).await;
    assert_eq!(status, 200, "{done}");

    let failing = server.order(json!({})).await;
    let (_, leased) = server.as_root("POST", "/v1/work/lease", Some(lease)).await;
    let id = &leased["leases"][0]["lease_id"];
    let body = json!({"lease_id": id, "error": error, "retryable": false});
    assert_eq!(server.as_root("POST", "/v1/work/fail", Some(body)).await.0, 200);

    let reader = bearer(&Token::new("reader", &["tasks:read", "tasks:list", "templates:read"]));
    let reader = [("authorization", &*reader)];
    let mut seen = created.to_string();
    for path in [
        "/v1/tasks".to_owned(),
        format!("/v1/tasks/{task}"),
        format!("/v1/tasks/{task}/summary"),
        format!("/v1/tasks/{task}/watch"),
        format!("/v1/tasks/{task}/watch?after_seq=0"),
        "/v1/templates".to_owned(),
    ] {
        let (status, body) = server.json("GET", &path, &reader, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        seen.push_str(&body.to_string());
    }
    // The failed task is not final: its watch goes on.
    let mut call =
        harness::http().get(server.url(&format!("/v1/tasks/{failing}/watch?after_seq=0")));
    call = call.header("authorization", reader[0].1);
    let mut watch = call.send().await.unwrap();
    let mut events = String::new();
    while !events.contains("blocked_by_failures") {
        let part = watch.chunk().await.unwrap().expect("the watch goes on");
        events.push_str(&String::from_utf8_lossy(&part));
    }
    seen.push_str(&events);
    for request in [json!({"task_uuid": task}), json!({"task_uuid": failing})] {
        let answer = server.grpc("TaskService/GetTask", request, &reader).await.unwrap();
        seen.push_str(&answer.to_string());
    }
    for public in ["/health", "/health/detailed", "/health/ready", "/metrics", "/openapi.json"] {
        let (_, body) = server.json("GET", public, &[], None).await;
        let body = body.to_string();
        assert!(!body.contains("shop") && !body.contains("\"order\""), "{public}: {body}");
        seen.push_str(&body);
    }
    for canary in [context, result, error] {
        assert!(!seen.contains(canary), "{canary} in {seen}");
    }
    // Each is there for whom it is for.
    let steps = bearer(&Token::new("steps", &["steps:read"]));
    let steps = [("authorization", &*steps)];
    let text = async |task: &str, headers: &[(&str, &str)], part: &str| {
        server.json("GET", &format!("/v1/tasks/{task}/{part}"), headers, None).await.1.to_string()
    };
    let listed = text(&task, &steps, "workflow_steps").await;
    assert!(listed.contains(result) && !listed.contains(context), "{listed}");
    assert!(text(&failing, &steps, "workflow_steps").await.contains(error));
    let contexts = bearer(&Token::new("contexts", &["tasks:context_read"]));
    let shown = text(&task, &[("authorization", &*contexts)], "context").await;
    assert!(shown.contains(context) && !shown.contains(result), "{shown}");
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one list of attacks")]
async fn se_12_gate_and_router_agree_about_the_call() {
    let mut server = Server::start().await.with_template().await;
    let task = server.order(json!({})).await;
    // Public routes match exactly.
    for path in [
        "/health/",
        "/Health",
        "//health",
        "/health%2f",
        "/health%2F",
        "/health//live",
        "/./health",
        "/health/.",
        "/health/../v1/tasks",
        "/v1/../health",
        "/%68ealth",
        "/health;x",
        "/health%00",
        "/health%20",
        "/metrics/",
        "/%6detrics",
        "/METRICS",
        "/docs/",
        "/docs/../v1/tasks",
        "/openapi.json/",
        "/health/live/",
        "/health/live/v1/tasks",
        "/v1/tasks/",
        "/v1//tasks",
        "//v1/tasks",
        "/V1/tasks",
        "/v1/tasks%2f",
        "/v1/%74asks",
        "/v1/tasks;x=1",
        "*",
        "/",
        "/bailiwick.v1.TaskService/ListTasks",
        "/grpc.health.v1.Health/Check",
    ] {
        let answer = wire::send(server.http, wire::head(&format!("GET {path}"), &ROOT)).await;
        assert!(matches!(answer.status, 400 | 404), "{path}: {}", answer.status);
    }
    // No verb but the line's own.
    let target = format!("/v1/tasks/{task}");
    for (line, headers) in [
        (format!("GET {target}"), ("x-http-method-override", "DELETE")),
        (format!("GET {target}"), ("x-http-method", "DELETE")),
        (format!("GET {target}"), ("x-method-override", "DELETE")),
    ] {
        let answer = wire::send(server.http, wire::head(&line, &[ROOT[0], headers])).await;
        assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("pending")));
    }
    let line = format!("GET {target}?_method=DELETE");
    assert_eq!(wire::send(server.http, wire::head(&line, &ROOT)).await.status, 400);
    let answer = wire::send(server.http, wire::head(&format!("POST {target}"), &ROOT)).await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("DELETE, GET, HEAD")));
    for verb in ["TRACE", "CONNECT", "PROPFIND", "PUT", "OPTIONS", "get"] {
        let line = if verb == "CONNECT" {
            "CONNECT localhost:80".to_owned()
        } else {
            format!("{verb} {target}")
        };
        let answer = wire::send(server.http, wire::head(&line, &ROOT)).await;
        assert!(matches!(answer.status, 400 | 404 | 405), "{verb}: {}", answer.status);
    }
    // An upgrade is ignored: the answer comes over HTTP/1.1, once.
    let upgrade = [
        ROOT[0],
        ("connection", "Upgrade, HTTP2-Settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
    ];
    let answer = wire::send(server.http, wire::head("GET /v1/tasks", &upgrade)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("upgrade"), None);
    let upgrade: Vec<_> = upgrade[1..].to_vec();
    let answer = wire::send(server.http, wire::head("GET /v1/tasks", &upgrade)).await;
    assert_eq!(answer.status, 401);
    // Credentials in a query are none.
    for name in ["access_token", "api_key", "token", "x-api-key", "authorization", "Authorization"]
    {
        for value in [ROOT_KEY, &format!("Bearer%20{ROOT_KEY}")] {
            let line = format!("GET /v1/tasks?{name}={value}");
            assert_eq!(wire::send(server.http, wire::head(&line, &[])).await.status, 401, "{name}");
        }
    }
    // A cookie is none either.
    let cookie = [("cookie", &*format!("x-api-key={ROOT_KEY}; token={ROOT_KEY}"))];
    assert_eq!(wire::send(server.http, wire::head("GET /v1/tasks", &cookie)).await.status, 401);
    // The absolute form is the same call, gate and all.
    let line = "GET http://other.example/v1/tasks";
    assert_eq!(wire::send(server.http, wire::head(line, &[])).await.status, 401);
    // What only looks like gRPC is REST, and the other way about.
    for kind in ["application/grpcx", "application/json", "text/plain"] {
        let path = "POST /bailiwick.v1.TaskService/ListTasks";
        let answer =
            wire::send(server.http, wire::post(path, &[("content-type", kind)], "{}")).await;
        assert_eq!(answer.status, 404, "{kind}");
    }
    let unknown = server.grpc_raw("/bailiwick.v1.TaskService/listTasks", &[]).await;
    assert_eq!(unknown, Some(Code::Unimplemented));
    for path in [
        "/bailiwick.v1.TaskService/ListTasks/",
        "/bailiwick.v1.taskservice/ListTasks",
        "//bailiwick.v1.TaskService/ListTasks",
        "/bailiwick.v1.TaskService%2fListTasks",
        "/bailiwick.v1.TaskService/ListTasks?x=y",
        "/v1/tasks",
        "/health",
    ] {
        assert_eq!(server.grpc_raw(path, &ROOT).await, Some(Code::Unimplemented), "{path}");
    }
    let (_, list) = server.as_root("GET", &target, None).await;
    assert_eq!(list["state"], "pending");
    server.assert_sound();
}

#[tokio::test]
async fn se_13_headers_are_not_smuggled_through_the_gateway() {
    let server = Server::start().await;
    for name in [
        "grpc-metadata-x-api-key",
        "grpc-metadata-authorization",
        "x-bailiwick-subject",
        "x-bailiwick-principal",
        "x-forwarded-user",
        "x-forwarded-authorization",
        "proxy-authorization",
    ] {
        let headers = [(name, ROOT_KEY)];
        assert_eq!(server.json("GET", "/v1/tasks", &headers, None).await.0, 401, "{name}");
        let refused = server.grpc("TaskService/ListTasks", json!({}), &headers).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated, "{name}");
    }
    for (name, value) in [
        ("grpc-timeout", "1n"),
        ("grpc-encoding", "gzip"),
        ("grpc-accept-encoding", "gzip"),
        ("te", "trailers"),
        ("grpc-metadata-x", "y"),
    ] {
        let (status, body) = server.json("GET", "/v1/tasks", &[ROOT[0], (name, value)], None).await;
        assert_eq!(status, 200, "{name}: {body}");
    }
    // Identity is the credential's, whatever else is said.
    let headers =
        [("x-api-key", READER_KEY), ("x-bailiwick-subject", "root"), ("x-request-id", "chosen")];
    let (_, me) = server.json("GET", "/v1/whoami", &headers, None).await;
    assert_eq!(me["subject"], "reader of the tests");
    let answer = wire::send(server.http, wire::head("GET /v1/whoami", &headers)).await;
    assert_ne!(answer.header("x-request-id"), Some("chosen"));
}

#[tokio::test]
async fn se_14_doubled_and_joined_credentials_are_refused() {
    let server = Server::start().await;
    let good = bearer(&Token::new("lister", &["tasks:list"]));
    let joined = format!("{good}, {good}");
    let keys = format!("{ROOT_KEY},{ROOT_KEY}");
    let cases: [&[(&str, &str)]; 8] = [
        &[("authorization", &good), ("authorization", &good)],
        &[("authorization", &good), ("authorization", "Bearer garbage")],
        &[("x-api-key", ROOT_KEY), ("x-api-key", ROOT_KEY)],
        &[("x-api-key", ROOT_KEY), ("x-api-key", "garbage")],
        &[("authorization", &joined)],
        &[("x-api-key", &keys)],
        &[("authorization", &good), ("x-api-key", ROOT_KEY), ("x-api-key", ROOT_KEY)],
        &[("authorization", &good), ("x-api-key", &keys)],
    ];
    for headers in cases {
        let answer = wire::send(server.http, wire::head("GET /v1/tasks", headers)).await;
        assert_eq!(
            (answer.status, &*answer.reason()),
            (401, "CREDENTIALS_AMBIGUOUS"),
            "{headers:?}"
        );
        let refused = server.grpc("TaskService/ListTasks", json!({}), headers).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{headers:?}");
        assert_eq!(refused.message(), "Send one credential, once");
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one list of attacks")]
async fn se_15_a_browser_on_the_machine_gets_nowhere() {
    let server = Server::with(off(
        "allowed_hosts = [\"bailiwick.internal\"]\nallowed_origins = [\"https://console.example\"]\n",
    ))
    .await;
    let body = r#"{"namespace": "shop", "name": "order"}"#;
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain;application/json",
        "application/jsonx",
        "application/json;charset=utf-16",
        "",
    ] {
        let request = wire::post("POST /v1/tasks", &[("content-type", kind)], body);
        let answer = wire::send(server.http, request).await;
        assert_eq!(answer.status, 415, "{kind:?}");
        assert_eq!(answer.reason(), "CONTENT_TYPE_NOT_SUPPORTED");
    }
    let length = body.len().to_string();
    let request = wire::head("POST /v1/tasks", &[("content-length", &length)]) + body;
    assert_eq!(wire::send(server.http, request).await.status, 415, "without a type");

    // DNS rebinding: the name is the attacker's, the address is ours.
    for path in ["/v1/tasks", "/health", "/metrics", "/docs", "/openapi.json", "/nothing"] {
        for host in [
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
        ] {
            let request = wire::head(&format!("GET {path}"), &[("host", host)]);
            let answer = wire::send(server.http, request).await;
            assert_eq!(
                (answer.status, &*answer.reason()),
                (421, "HOST_NOT_ALLOWED"),
                "{host}{path}"
            );
        }
        for headers in [
            [("origin", "https://evil.example"), ("x", "x")],
            [("origin", "null"), ("x", "x")],
            [("origin", "http://localhost.evil.example"), ("x", "x")],
            [("sec-fetch-site", "cross-site"), ("x", "x")],
        ] {
            let answer =
                wire::send(server.http, wire::head(&format!("GET {path}"), &headers)).await;
            assert_eq!(
                (answer.status, &*answer.reason()),
                (403, "ORIGIN_NOT_ALLOWED"),
                "{headers:?}{path}"
            );
        }
    }
    let line = "GET http://evil.example/v1/tasks";
    assert_eq!(
        wire::send(server.http, wire::head(line, &[])).await.status,
        421,
        "the absolute form"
    );
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:80", "Bailiwick.Internal:8080"] {
        let answer = wire::send(server.http, wire::head("GET /v1/tasks", &[("host", host)])).await;
        assert_eq!(answer.status, 200, "{host}");
    }
    for headers in [
        [("origin", "http://localhost:8080"), ("sec-fetch-site", "same-origin")],
        [("origin", "https://console.example"), ("sec-fetch-site", "cross-site")],
        [("x", "x"), ("sec-fetch-site", "none")],
    ] {
        let answer = wire::send(server.http, wire::head("GET /v1/tasks", &headers)).await;
        assert_eq!(answer.status, 200, "{headers:?}");
        let allowed = answer.header("access-control-allow-origin");
        let wanted = (headers[0].1 == "https://console.example").then_some(headers[0].1);
        assert_eq!(allowed, wanted, "{headers:?}");
    }
    // gRPC is turned away in the same way.
    let refused =
        server.grpc("TaskService/ListTasks", json!({}), &[("origin", "https://evil.example")]);
    assert_eq!(refused.await.unwrap_err().code(), Code::PermissionDenied);
    let (_, list) = server.json("GET", "/v1/tasks", &[], None).await;
    assert_eq!(list["tasks"], json!([]));

    // CORS is off by default.
    let server = Server::start().await;
    let page = [("origin", "https://console.example"), ("access-control-request-method", "GET")];
    let answer = wire::send(server.http, wire::head("OPTIONS /v1/tasks", &page)).await;
    assert_eq!(answer.status, 405);
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn se_16_a_slow_body_neither_lasts_nor_outlives_its_credential() {
    let server = Server::with(auth_lines("[limits]\nbody_timeout_seconds = 4\n")).await;
    let server = server.with_template().await;
    let body = r#"{"namespace": "shop", "name": "order"}"#;
    let (first, second) = body.split_at(12);
    let token = Token::new("slow", &["tasks:create"]).claim("exp", (credentials::now() + 2).into());
    let expiring = bearer(&token);
    let request = |authorization: (&str, &str)| {
        let whole = wire::post("POST /v1/tasks", &[authorization], body);
        whole[..whole.len() - second.len()].to_vec()
    };
    assert!(request(ROOT[0]).ends_with(first.as_bytes()));

    let mut late = Wire::open(server.http).await;
    late.write(request(("authorization", &expiring))).await.unwrap();
    let mut never = Wire::open(server.http).await;
    never.write(request(ROOT[0])).await.unwrap();
    let begun = Instant::now();
    // Beyond the token's end, within the body's time.
    tokio::time::sleep(Duration::from_millis(2_600)).await;
    late.write(second).await.unwrap();
    let answer = late.answer(false).await.unwrap();
    assert_eq!((answer.status, &*answer.reason()), (401, "CREDENTIALS_EXPIRED"));

    let answer = never.answer(false).await.unwrap();
    assert_eq!((answer.status, &*answer.reason()), (408, "DEADLINE"));
    let elapsed = begun.elapsed();
    assert!(elapsed > Duration::from_secs(3) && elapsed < Duration::from_secs(20), "{elapsed:?}");
    let (_, list) = server.as_root("GET", "/v1/tasks", None).await;
    assert_eq!(list["tasks"], json!([]), "nothing was done");
}

#[tokio::test]
async fn se_17_streams_and_long_polls_end_with_their_credential() {
    let server = Server::start().await.with_template().await;
    let task = server.order(json!({})).await;
    let end = credentials::now() + 5;
    let token = Token::new("brief", &["*"]).claim("exp", end.into());
    let authorization = bearer(&token);
    let client = server.client(Auth::Bearer(token.sign())).await;

    let mut watch = client
        .tasks()
        .watch_task(pb::WatchTaskRequest { task_uuid: task.clone(), after_seq: None })
        .await
        .unwrap()
        .into_inner();
    let open = pb::WorkOpen {
        namespace: "shop".into(),
        name: "w".into(),
        handlers: vec!["other".into()],
        version: None,
    };
    let open =
        pb::StreamWorkRequest { message: Some(pb::stream_work_request::Message::Open(open)) };
    let up = futures::stream::iter([open]).chain(futures::stream::pending());
    let mut work = client.workers().stream_work(up).await.unwrap().into_inner();
    let park = pb::LeaseStepsRequest {
        namespace: "shop".into(),
        handlers: vec!["other".into()],
        max_leases: 1,
        wait_ms: 60_000,
        worker: None,
    };
    let mut workers = client.workers();
    let parked = async { workers.lease_steps(park).await.unwrap_err() };
    let watched = async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the watch ended well"),
                Err(status) => break status,
            }
        }
    };
    let worked = async {
        loop {
            match work.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the work ended well"),
                Err(status) => break status,
            }
        }
    };
    let url = server.url(&format!("/v1/tasks/{task}/watch"));
    let lines = async {
        let call = harness::http().get(url).header("authorization", &authorization);
        call.send().await.unwrap().text().await.unwrap()
    };
    let park = json!({"namespace": "shop", "handlers": ["other"], "wait_ms": 60_000});
    let headers = [("authorization", &*authorization)];
    let polled = server.json("POST", "/v1/work/lease", &headers, Some(park));
    let (watched, worked, parked, lines, polled) =
        tokio::join!(timed(watched), timed(worked), timed(parked), timed(lines), timed(polled));
    for (what, (status, at)) in [("watch", watched), ("work", worked), ("lease", parked)] {
        assert_eq!(status.code(), Code::Unauthenticated, "{what}: {status:?}");
        assert!(status.message().contains("expired"), "{what}: {status:?}");
        within(what, at, end);
    }
    let last: Value = serde_json::from_str(lines.0.lines().last().unwrap()).unwrap();
    assert_eq!(last["reason"], "CREDENTIALS_EXPIRED", "{last}");
    within("NDJSON", lines.1, end);
    assert_eq!(polled.0.0, 401, "{:?}", polled.0.1);
    within("REST lease", polled.1, end);
}

/// What came, and when, in milliseconds since 1970.
async fn timed<T>(what: impl Future<Output = T>) -> (T, i64) {
    let what = tokio::time::timeout(harness::PATIENCE, what).await.expect("an end");
    (what, jiff::Timestamp::now().as_millisecond())
}

/// Within a second of the end; the machine may be busy for half a one more.
fn within(what: &str, at: i64, end: i64) {
    let late = at - end * 1000;
    assert!((0..1_500).contains(&late), "{what} ended {late} ms after its credential");
}

#[tokio::test]
async fn se_18_a_lease_belongs_to_who_took_it() {
    let server = Server::start().await.with_template().await;
    let task = server.order(json!({})).await;
    let mine = bearer(&Token::new("mine", &["work:lease"]));
    let other = bearer(&Token::new("other", &["*"]));
    let lease = json!({"namespace": "shop", "handlers": ["work"], "max_leases": 1});
    let (status, leased) =
        server.json("POST", "/v1/work/lease", &[("authorization", &mine)], Some(lease)).await;
    assert_eq!(status, 200, "{leased}");
    let id = leased["leases"][0]["lease_id"].as_str().unwrap().to_owned();
    for (name, value) in [("authorization", &*other), ROOT[0]] {
        for (what, more) in [
            ("heartbeat", json!({})),
            ("complete", json!({"result": {"by": "other"}})),
            ("fail", json!({"error": "other"})),
        ] {
            let mut body = more;
            body["lease_id"] = id.clone().into();
            let path = format!("/v1/work/{what}");
            let (status, answer) = server.json("POST", &path, &[(name, value)], Some(body)).await;
            assert_eq!(status, 404, "{what}: {answer}");
        }
    }
    // No read shows it, not even to root.
    let mut seen = String::new();
    let steps = format!("/v1/tasks/{task}/workflow_steps");
    let (_, list) = server.as_root("GET", &steps, None).await;
    let step = list["steps"][0]["step_uuid"].as_str().unwrap();
    for path in [
        "/v1/tasks".to_owned(),
        format!("/v1/tasks/{task}"),
        format!("/v1/tasks/{task}/context"),
        steps.clone(),
        format!("{steps}/{step}"),
        format!("{steps}/{step}/audit"),
        "/v1/workers".to_owned(),
        "/v1/handlers".to_owned(),
        "/metrics".to_owned(),
    ] {
        let (status, body) = server.as_root("GET", &path, None).await;
        assert_eq!(status, 200, "{path}");
        seen.push_str(&body.to_string());
    }
    assert!(!seen.contains(&id), "{seen}");
    let body = json!({"lease_id": id, "result": {"by": "me"}});
    let (status, done) =
        server.json("POST", "/v1/work/complete", &[("authorization", &mine)], Some(body)).await;
    assert_eq!(status, 200, "{done}");
    let (_, list) = server.as_root("GET", &steps, None).await;
    assert_eq!(list["steps"][0]["result"], json!({"by": "me"}));

    // A worker's namespace is exact: what is within the scope and not asked for stays.
    let narrow = Token::new("narrow", &["work:lease"]).claim("worker_namespaces", json!(["depot"]));
    let narrow = bearer(&narrow);
    let lease = json!({"namespace": "shop", "handlers": ["work"]});
    let (status, body) =
        server.json("POST", "/v1/work/lease", &[("authorization", &narrow)], Some(lease)).await;
    assert_eq!((status, &body["message"]), (404, &json!("namespace not found: shop")));
}

#[tokio::test]
async fn se_20_no_proxy_keeps_an_answer() {
    let server = Server::start().await.with_template().await;
    let task = server.order(json!({})).await;
    let absent = "/v1/tasks/018f0000-0000-7000-8000-000000000000".to_owned();
    for (line, status, root) in [
        ("GET /v1/tasks".to_owned(), 200, true),
        ("GET /v1/tasks".to_owned(), 401, false),
        (format!("GET /v1/tasks/{task}"), 200, true),
        (format!("HEAD /v1/tasks/{task}"), 200, true),
        (format!("GET {absent}"), 404, true),
        ("GET /nothing".to_owned(), 404, true),
        ("POST /v1/whoami".to_owned(), 405, true),
        ("GET /v1/tasks?nothing=1".to_owned(), 400, true),
        ("GET /health".to_owned(), 200, false),
    ] {
        let headers: &[(&str, &str)] = if root { &ROOT } else { &[] };
        let answer = wire::send(server.http, wire::head(&line, headers)).await;
        assert_eq!(answer.status, status, "{line}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{line}");
        let vary = answer.header("vary").unwrap_or_default().to_ascii_lowercase();
        assert!(vary.contains("authorization") && vary.contains("x-api-key"), "{line}: {vary}");
        let id = answer.header("x-request-id").unwrap_or_default();
        assert!(!id.is_empty(), "{line}");
    }
    let url = server.url(&format!("/v1/tasks/{task}/watch"));
    let watch = harness::http().get(url).header("x-api-key", ROOT_KEY).send().await.unwrap();
    assert_eq!(watch.headers()["cache-control"], "no-store");
    assert!(watch.headers().contains_key("x-request-id"));
}

#[tokio::test]
async fn se_21_keys_of_the_documentation_are_refused_beyond_loopback() {
    for key in bailiwick::config::DOCUMENTED_KEYS {
        let setup = auth_lines(&format!(
            "[[auth.api_keys]]\nkey = \"{key}\"\npermissions = [\"tasks:read\"]\n"
        ));
        // An address of nobody: it is never listened on.
        let said = harness::refused_on(&setup, "192.0.2.1:0").await;
        assert!(said.contains("documentation") && !said.contains(key), "{said}");
    }
    let setup =
        auth_lines("[[auth.api_keys]]\nkey = \"sk-prod-key-1\"\npermissions = [\"tasks:list\"]\n");
    let server = Server::with(setup).await;
    let headers = [("x-api-key", "sk-prod-key-1")];
    assert_eq!(server.json("GET", "/v1/tasks", &headers, None).await.0, 200);
}
