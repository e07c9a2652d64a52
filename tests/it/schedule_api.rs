//! Jobs and rules over gRPC and REST: what ztick's clients and our own see.

use serde_json::{Value, json};
use tonic::Code;

use crate::{
    auth::grpcurl,
    harness::{self, PATIENCE, ROOT_KEY, Server, Setup, credentials::Token},
};

/// 2199-04-10T12:00:00Z.
const LATER: &str = "2199-04-10T12:00:00Z";
const LATER_NS: i64 = 7_235_179_200_000_000_000;

/// With all runners but `redis`.
async fn server() -> Server {
    let runners = r#"["task", "http", "shell", "direct", "awf", "amqp"]"#;
    let rest = format!("[scheduler]\nrunners = {runners}\nrun_as = \"self\"\n");
    Server::with(Setup { rest, ..Setup::default() }).await
}

/// A caller's header: these permissions in this scope.
fn bearer(permissions: &[&str], scope: &str) -> String {
    format!("Bearer {}", Token::new("alice", permissions).within(&[scope]).sign())
}

/// A REST call in somebody's name.
async fn rest(server: &Server, auth: &str, line: &str, body: Option<Value>) -> (u16, Value) {
    let (verb, path) = line.split_once(' ').unwrap();
    server.json(verb, path, &[("authorization", auth)], body).await
}

async fn set(server: &Server, id: &str) {
    let (status, job) =
        server.as_root("PUT", &format!("/jobs/{id}"), Some(json!({"execution": LATER}))).await;
    assert_eq!(status, 200, "{job}");
}

fn shell(pattern: &str) -> Value {
    json!({"pattern": pattern, "runner": {"type": "shell", "command": "true"}})
}

#[tokio::test]
async fn zt_43_set_job_has_zticks_shapes() {
    let server = server().await;
    let path = "/jobs/deploy.release.v1.2.3";
    let planned = |execution: i64| json!({"id": "deploy.release.v1.2.3", "status": "planned", "execution": execution});
    for (written, execution) in [
        (LATER, LATER_NS),
        ("2199-04-10T14:00:00+02:00", LATER_NS),
        ("2199-04-10 12:00:00", LATER_NS),
        ("2199-04-10", LATER_NS - 43_200_000_000_000),
        ("7235179200000000001", LATER_NS + 1),
    ] {
        let body = Some(json!({"execution": written}));
        let answer = server.as_root("PUT", path, body.clone()).await;
        assert_eq!(answer, (200, planned(execution)), "{written}");
        assert_eq!(server.as_root("GET", path, None).await, (200, planned(execution)));
        let answer = server.as_root("PUT", &format!("/v1{path}"), body).await;
        assert_eq!(answer, (200, planned(execution)), "{written}");
    }
    assert_eq!(server.as_root("GET", "/jobs", None).await, (200, json!([planned(LATER_NS + 1)])));
    assert_eq!(
        server.as_root("GET", "/v1/jobs", None).await,
        (200, json!({"jobs": [planned(LATER_NS + 1)], "next_page_token": ""}))
    );
    for prefix in ["backup.", "deploy.release.v1.2.3."] {
        let listed = server.as_root("GET", &format!("/jobs?prefix={prefix}"), None).await;
        assert_eq!(listed, (200, json!([])));
    }
    assert_eq!(server.as_root("DELETE", path, None).await, (204, json!("")));
    let (status, gone) = server.as_root("DELETE", path, None).await;
    assert_eq!((status, &gone["reason"]), (404, &json!("NOT_FOUND")));
    assert_eq!(gone["message"], "job not found: deploy.release.v1.2.3");
    assert_eq!(server.as_root("GET", path, None).await.0, 404);
}

#[tokio::test]
async fn set_job_takes_every_identifier_and_refuses_what_is_none() {
    let server = server().await;
    let long = "x".repeat(512);
    for (encoded, id) in [
        ("a%2Fb%2F..%2Fc", "a/b/../c"),
        ("with%20space", "with space"),
        ("%C3%BCn%C3%AF%E2%82%AC", "ünï€"),
        ("100%25%3F%23%26%3D", "100%?#&="),
        ("Deploy.%7Bx%7D%3Aresume", "Deploy.{x}:resume"),
        (&*long, &*long),
    ] {
        let path = format!("/jobs/{encoded}");
        let body = Some(json!({"execution": LATER}));
        let (status, job) = server.as_root("PUT", &path, body).await;
        assert_eq!((status, &job["id"]), (200, &json!(id)), "{encoded}: {job}");
        assert_eq!(server.as_root("GET", &format!("/v1{path}/runs"), None).await.0, 200, "{id}");
        assert_eq!(server.as_root("DELETE", &path, None).await.0, 204, "{id}");
    }
    for encoded in ["a%0Ab", "a%00", &format!("x{long}")] {
        let body = Some(json!({"execution": LATER}));
        let (status, refused) = server.as_root("PUT", &format!("/jobs/{encoded}"), body).await;
        assert_eq!((status, &refused["reason"]), (400, &json!("FIELD_INVALID")), "{refused}");
        assert!(refused["message"].as_str().unwrap().starts_with("id: "), "{refused}");
    }
    for (body, field) in [
        (json!({}), "execution"),
        (json!({"execution": "tomorrow"}), "execution"),
        (json!({"execution": "2026-02-30"}), "execution"),
        (json!({"recurrence": "sometimes"}), "recurrence"),
        (json!({"execution": LATER, "recurrence": "every -1m"}), "recurrence"),
    ] {
        let (status, refused) = server.as_root("PUT", "/jobs/a", Some(body.clone())).await;
        assert_eq!((status, &refused["reason"]), (400, &json!("FIELD_INVALID")), "{body}");
        let message = refused["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("{field}: ")), "{body}: {message}");
    }
    for body in [json!({"execution": 1}), json!({"at": LATER}), json!({"id": "b"})] {
        let (status, refused) = server.as_root("PUT", "/jobs/a", Some(body.clone())).await;
        assert_eq!(status, 400, "{body}: {refused}");
    }
    assert_eq!(server.as_root("GET", "/jobs", None).await, (200, json!([])));
}

#[tokio::test]
async fn set_rule_has_zticks_shapes() {
    let server = server().await;
    let body = json!({"pattern": "deploy.", "runner": {
        "type": "direct", "executable": "/bin/echo", "args": ["a", "b"],
    }});
    for path in ["/rules/rule.deploy", "/v1/rules/rule.deploy"] {
        let (status, rule) = server.as_root("PUT", path, Some(body.clone())).await;
        assert_eq!(status, 200, "{rule}");
        assert_eq!(rule["id"], "rule.deploy");
        assert_eq!((&rule["pattern"], &rule["runner"]), (&body["pattern"], &body["runner"]));
        assert_eq!(rule.get("retry"), None, "{rule}");
        assert_eq!(server.as_root("GET", path, None).await, (200, rule.clone()));
        assert_eq!(server.as_root("GET", "/rules", None).await, (200, json!([rule])));
        let wrapped = json!({"rules": [rule], "next_page_token": ""});
        assert_eq!(server.as_root("GET", "/v1/rules?prefix=rule.", None).await, (200, wrapped));
        assert_eq!(server.as_root("GET", "/rules?prefix=x", None).await, (200, json!([])));
        assert_eq!(server.as_root("DELETE", path, None).await, (204, json!("")));
        let (status, gone) = server.as_root("DELETE", path, None).await;
        assert_eq!((status, &gone["message"]), (404, &json!("rule not found: rule.deploy")));
    }
}

#[tokio::test]
async fn set_rule_keeps_to_the_fields_of_its_runner() {
    let server = server().await;
    for (runner, shown) in [
        (json!({"type": "shell", "command": "true"}), None),
        (json!({"type": "direct", "executable": "/bin/true"}), None),
        (json!({"type": "awf", "workflow": "w", "args": ["--input", "k=v"]}), None),
        (json!({"type": "http", "method": "POST", "url": "https://example.com/x"}), None),
        (
            json!({"type": "http", "method": "get", "url": "https://u:s3cret@example.com/"}),
            Some(json!({"type": "http", "method": "GET", "url": "https://***@example.com/"})),
        ),
        (
            json!({"type": "amqp", "dsn": "amqp://u:s3cret@example.com/v", "exchange": "",
                   "routing_key": "k"}),
            Some(json!({"type": "amqp", "dsn": "amqp://***@example.com/v", "exchange": "",
                        "routing_key": "k"})),
        ),
        (json!({"type": "task", "template": "shop/order"}), None),
        (json!({"type": "task", "template": "shop/order@1.0.0"}), None),
    ] {
        let body = json!({"pattern": "deploy.", "runner": runner});
        let (status, rule) = server.as_root("PUT", "/rules/deploy", Some(body)).await;
        assert_eq!(status, 200, "{runner}: {rule}");
        assert_eq!(rule["runner"], shown.unwrap_or(runner));
        assert!(!rule.to_string().contains("s3cret"), "{rule}");
        let (_, listed) = server.as_root("GET", "/rules", None).await;
        assert_eq!(listed, json!([rule]));
    }
    for (runner, field) in [
        (json!({}), "runner.type"),
        (json!({"type": "shell"}), "runner.command"),
        (json!({"type": "shell", "command": ""}), "runner.command"),
        (json!({"type": "shell", "command": "true", "url": "x"}), "runner.url"),
        (json!({"type": "direct", "args": ["a"]}), "runner.executable"),
        (json!({"type": "http", "method": "PATCH", "url": "https://e.com/"}), "runner.method"),
        (json!({"type": "http", "method": "GET"}), "runner.url"),
        // What was shown is not what is known.
        (json!({"type": "http", "method": "GET", "url": "https://***@e.com/"}), "runner.url"),
        (json!({"type": "amqp", "dsn": "amqp://***", "routing_key": "k"}), "runner.dsn"),
        (json!({"type": "amqp", "dsn": "amqp://h/"}), "runner.routing_key"),
        (
            json!({"type": "redis", "url": "redis://h", "command": "GET", "key": "k"}),
            "runner.command",
        ),
        (json!({"type": "task", "template": "order"}), "runner.template"),
        (json!({"type": "task", "template": "shop/order@"}), "runner.template"),
        (json!({"type": "task", "template": "a..b/order"}), "runner.template"),
    ] {
        let body = json!({"pattern": "deploy.", "runner": runner});
        let (status, refused) = server.as_root("PUT", "/rules/bad", Some(body)).await;
        assert_eq!((status, &refused["reason"]), (400, &json!("FIELD_INVALID")), "{runner}");
        let message = refused["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("{field}: ")), "{runner}: {message}");
    }
    let (status, _) = server.as_root("PUT", "/rules/bad", Some(json!({"pattern": "a."}))).await;
    assert_eq!((status, server.as_root("GET", "/rules/bad", None).await.0), (400, 404));
}

#[tokio::test]
async fn list_jobs_never_cuts_a_bare_list_silently() {
    let server = server().await;
    let client = server.root().await;
    for number in 0..502 {
        let request = bailiwick::pb::v1::SetJobRequest {
            id: format!("many.{number:03}"),
            execution: LATER.into(),
            ..Default::default()
        };
        client.schedules().set_job(request).await.unwrap();
    }
    let page = |query: String| {
        let call = server.rest(reqwest::Method::GET, &format!("/jobs?{query}"));
        async move {
            let answer = call.send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let next = answer.headers().get("x-next-page-token").cloned();
            let jobs: Vec<Value> = answer.json().await.unwrap();
            let last = jobs.last().map(|job| job["id"].as_str().unwrap().to_owned());
            (jobs.len(), last.unwrap_or_default(), next.map(|it| it.to_str().unwrap().to_owned()))
        }
    };
    let (count, last, next) = page("prefix=many.".into()).await;
    assert_eq!((count, &*last), (500, "many.499"));
    let next = next.expect("a token of the next page");
    let rest = page(format!("prefix=many.&page_token={next}")).await;
    assert_eq!(rest, (2, "many.501".to_owned(), None));
    let (status, refused) =
        server.as_root("GET", &format!("/jobs?prefix=other.&page_token={next}"), None).await;
    assert_eq!((status, &refused["reason"]), (400, &json!("PAGE_TOKEN_INVALID")));
    let (count, _, next) = page("prefix=many.0&page_size=99".into()).await;
    assert_eq!((count, next.is_some()), (99, true));
    assert_eq!(server.as_root("GET", "/jobs?page_size=501", None).await.0, 400);
    let (_, wrapped) = server.as_root("GET", "/v1/jobs?page_size=2", None).await;
    assert_eq!(wrapped["jobs"].as_array().unwrap().len(), 2);
    assert!(!wrapped["next_page_token"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn se_10_jobs_outside_of_the_scope_are_as_if_they_were_not() {
    let server = server().await;
    let all = ["schedules:*", "rules:*", "commands:execute"];
    let deploy = bearer(&all, "deploy");
    for id in ["deploy.daily", "deploy", "deployment.x", "backup.daily"] {
        set(&server, id).await;
    }
    for line in [
        "GET /jobs/{}",
        "GET /v1/jobs/{}",
        "DELETE /jobs/{}",
        "GET /v1/jobs/{}/runs",
        "POST /v1/jobs/{}/resume",
        "GET /rules/{}",
        "DELETE /v1/rules/{}",
    ] {
        for id in ["backup.daily", "backup.absent", "deployment.x"] {
            let body = line.starts_with("POST").then(|| json!({}));
            let (status, refused) = rest(&server, &deploy, &line.replace("{}", id), body).await;
            assert_eq!((status, &refused["reason"]), (404, &json!("NAMESPACE_NOT_FOUND")));
            assert_eq!(refused["message"], json!(format!("namespace not found: {id}")));
        }
    }
    let body = Some(json!({"execution": "2198-01-01"}));
    let refused = rest(&server, &deploy, "PUT /jobs/backup.daily", body.clone()).await;
    assert_eq!((refused.0, &refused.1["reason"]), (404, &json!("NAMESPACE_NOT_FOUND")));
    let (_, job) = server.as_root("GET", "/jobs/backup.daily", None).await;
    assert_eq!(job["execution"], LATER_NS, "nothing has changed");
    assert_eq!(rest(&server, &deploy, "PUT /jobs/deploy.daily", body).await.0, 200);

    let ids = |jobs: &Value| {
        let jobs = jobs.as_array().unwrap().iter();
        jobs.map(|job| job["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (_, mine) = rest(&server, &deploy, "GET /jobs", None).await;
    assert_eq!(ids(&mine), ["deploy", "deploy.daily"]);
    let (status, none) = rest(&server, &deploy, "GET /jobs?prefix=backup.", None).await;
    assert_eq!((status, none), (200, json!([])));
    let (_, stats) = rest(&server, &deploy, "GET /v1/scheduler/stats", None).await;
    assert_eq!((&stats["jobs_total"], &stats["jobs_planned"]), (&json!(2), &json!(2)));
    let (_, stats) = server.as_root("GET", "/v1/scheduler/stats", None).await;
    assert_eq!((&stats["jobs_total"], &stats["rules_total"]), (&json!(4), &json!(0)));

    let reads = bearer(&["schedules:read"], "deploy");
    let (status, refused) = rest(&server, &reads, "DELETE /jobs/deploy.daily", None).await;
    assert_eq!(
        (status, &refused["message"]),
        (403, &json!("Missing required permission: schedules:write"))
    );
}

#[tokio::test]
async fn se_62_a_pattern_is_in_a_scope_only_with_all_that_begins_with_it() {
    let server = server().await;
    let all = ["rules:*", "commands:execute"];
    let deploy = bearer(&all, "deploy");
    for (id, pattern, there) in [
        ("rule.deploy", "deploy.", true),
        ("rule.deploy.x", "deploy.x", true),
        ("deploy.x", "deploy.", true),
        ("rule.deploy", "deploy", false),
        ("rule.deploy", "dep", false),
        ("rule.deploy", "", false),
        ("rule.deploy", "deployment.", false),
        ("rule.deploy", "backup.", false),
        ("rule.backup", "deploy.", false),
        ("rule.rule.deploy", "deploy.", false),
        ("rule.deployment", "deploy.", false),
    ] {
        let answer =
            rest(&server, &deploy, &format!("PUT /rules/{id}"), Some(shell(pattern))).await;
        let (status, reason) = (answer.0, &answer.1["reason"]);
        let wanted = if there { (200, &Value::Null) } else { (404, &json!("NAMESPACE_NOT_FOUND")) };
        assert_eq!((status, reason), wanted, "{id} {pattern}: {}", answer.1);
    }
    // What is there is judged too: by its pattern, and by who set it.
    let body = Some(shell("backup."));
    assert_eq!(server.as_root("PUT", "/rules/deploy.wide", body).await.0, 200);
    for line in ["PUT /rules/deploy.wide", "DELETE /rules/deploy.wide"] {
        let body = line.starts_with("PUT").then(|| shell("deploy."));
        let (status, refused) = rest(&server, &deploy, line, body).await;
        assert_eq!((status, &refused["reason"]), (404, &json!("NAMESPACE_NOT_FOUND")), "{line}");
    }
    let (_, rule) = server.as_root("GET", "/rules/deploy.wide", None).await;
    assert_eq!(rule["pattern"], "backup.");
}

#[tokio::test]
async fn se_62_processes_need_commands_execute() {
    let server = server().await;
    let without = bearer(&["rules:write"], "deploy");
    for runner in [
        json!({"type": "shell", "command": "true"}),
        json!({"type": "direct", "executable": "/bin/true"}),
        json!({"type": "awf", "workflow": "w"}),
    ] {
        let body = Some(json!({"pattern": "deploy.", "runner": runner}));
        let (status, refused) = rest(&server, &without, "PUT /rules/deploy.r", body).await;
        assert_eq!((status, &refused["reason"]), (403, &json!("PERMISSION_MISSING")), "{runner}");
        assert_eq!(refused["message"], "Missing required permission: commands:execute");
    }
    let http = json!({"type": "http", "method": "GET", "url": "https://example.com/"});
    let body = Some(json!({"pattern": "deploy.", "runner": http}));
    assert_eq!(rest(&server, &without, "PUT /rules/deploy.r", body).await.0, 200);
}

#[tokio::test]
async fn se_63_a_task_runner_needs_tasks_create_where_it_aims() {
    let server = server().await;
    let body = |target: &str| {
        Some(json!({"pattern": "deploy.", "runner": {"type": "task", "template": target}}))
    };
    let without = bearer(&["rules:write"], "deploy");
    let (status, refused) = rest(&server, &without, "PUT /rules/deploy.r", body("deploy/t")).await;
    assert_eq!((status, &refused["reason"]), (403, &json!("PERMISSION_MISSING")));
    assert_eq!(refused["message"], "Missing required permission: tasks:create");
    let with = bearer(&["rules:write", "tasks:create"], "deploy");
    for (target, status) in [("deploy/t", 200), ("deploy.sub/t", 200), ("shop/t", 404)] {
        let answer = rest(&server, &with, "PUT /rules/deploy.r", body(target)).await;
        assert_eq!(answer.0, status, "{target}: {}", answer.1);
        if status == 404 {
            assert_eq!(answer.1["message"], "namespace not found: shop");
        }
    }
}

#[tokio::test]
async fn set_rule_says_which_runner_is_not_enabled() {
    let server = server().await;
    let runner = json!({"type": "redis", "url": "redis://h", "command": "SET", "key": "k"});
    let body = json!({"pattern": "a.", "runner": runner});
    let (status, refused) = server.as_root("PUT", "/rules/a", Some(body)).await;
    assert_eq!((status, &refused["reason"]), (400, &json!("RUNNER_DISABLED")), "{refused}");
    assert_eq!(refused["code"], "FAILED_PRECONDITION");
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("`redis`") && message.contains("[scheduler] runners"), "{message}");
}

#[tokio::test]
async fn preview_recurrence_tells_the_next_times() {
    let server = server().await;
    let query = "recurrence=every%2015m&execution=2199-04-10&count=3";
    let (status, next) =
        server.as_root("GET", &format!("/v1/scheduler/preview?{query}"), None).await;
    let first = LATER_NS - 43_200_000_000_000;
    let step = 900_000_000_000_i64;
    assert_eq!(
        (status, next),
        (200, json!({"executions": [first, first + step, first + 2 * step]}))
    );
    for query in ["recurrence=x", "", "recurrence=every%2015m&count=101"] {
        let path = format!("/v1/scheduler/preview?{query}");
        assert_eq!(server.as_root("GET", &path, None).await.0, 400, "{query}");
    }
}

#[tokio::test]
async fn resume_job_is_for_jobs_that_are_held() {
    let server = server().await;
    set(&server, "a.b").await;
    // As after a resume that was heard of twice.
    let (status, job) = server.as_root("POST", "/v1/jobs/a.b/resume", Some(json!({}))).await;
    assert_eq!(
        (status, &job["status"], &job["execution"]),
        (200, &json!("planned"), &json!(LATER_NS))
    );
    let (status, gone) = server.as_root("POST", "/v1/jobs/a.c/resume", Some(json!({}))).await;
    assert_eq!((status, &gone["message"]), (404, &json!("job not found: a.c")));
}

#[tokio::test]
async fn set_job_over_grpc_is_the_same_job() {
    let server = server().await;
    let root = [("x-api-key", ROOT_KEY)];
    let request = json!({"id": "a.b", "recurrence": "every 15m", "execution": LATER});
    let answer = server.grpc("ScheduleService/SetJob", request, &root).await.unwrap();
    assert_eq!(answer["job"]["recurrence"], "every 15m");
    let (_, job) = server.as_root("GET", "/jobs/a.b", None).await;
    assert_eq!(
        job,
        json!({"id": "a.b", "status": "planned", "execution": LATER_NS, "recurrence": "every 15m"})
    );
    let request = json!({"id": "", "execution": LATER});
    let refused = server.grpc("ScheduleService/SetJob", request, &root).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("id: "), "{}", refused.message());
    let request = json!({"id": "a.c"});
    let refused = server.grpc("ScheduleService/GetJob", request, &root).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "job not found: a.c"));
}

#[tokio::test]
async fn set_rule_takes_a_retry_policy() {
    let server = server().await;
    let body = |retry: Value| {
        let runner = json!({"type": "shell", "command": "false"});
        Some(json!({"pattern": "a.", "runner": runner, "retry": retry}))
    };
    for (retry, shown) in [
        (
            json!({"max_attempts": 3}),
            json!({"max_attempts": 3, "backoff": "exponential", "backoff_base_ms": 1000,
                   "max_backoff_ms": 30000}),
        ),
        (
            json!({"max_attempts": 2, "backoff": "linear", "backoff_base_ms": 5,
                   "max_backoff_ms": 50}),
            json!({"max_attempts": 2, "backoff": "linear", "backoff_base_ms": 5,
                   "max_backoff_ms": 50}),
        ),
        (json!({"max_attempts": 1}), Value::Null),
        (json!({"max_attempts": 0, "backoff": "fixed"}), Value::Null),
    ] {
        let (status, rule) = server.as_root("PUT", "/rules/a", body(retry.clone())).await;
        assert_eq!((status, &rule["retry"]), (200, &shown), "{retry}: {rule}");
    }
    for retry in [json!({"backoff": "never"}), json!({"max_attempts": -1}), json!({"tries": 1})] {
        assert_eq!(server.as_root("PUT", "/rules/a", body(retry.clone())).await.0, 400, "{retry}");
    }
}

#[tokio::test]
async fn list_job_runs_tells_what_was_done() {
    let server = server().await;
    set_due(&server, "nobody.x").await;
    until(&server, "nobody.x", "failed").await;
    let (_, runs) = server.as_root("GET", "/v1/jobs/nobody.x/runs", None).await;
    let run = &runs["runs"][0];
    assert_eq!(run["outcome"], "failed");
    assert_eq!((&run["number"], &run["attempt"]), (&json!(1), &json!(1)), "{run}");
    assert_eq!(run["execution"], 1_577_836_800_000_000_000_i64);
    assert!(run["started_at"].is_string() && run["ended_at"].is_string(), "{run}");
    assert!(run["error"].is_string() && run.get("rule").is_none(), "{run}");
    let (_, job) = server.as_root("GET", "/jobs/nobody.x", None).await;
    assert_eq!(job["status"], "failed");
    assert!(job["reason"].is_string(), "{job}");
    // What is over is not held.
    let (status, refused) =
        server.as_root("POST", "/v1/jobs/nobody.x/resume", Some(json!({}))).await;
    assert_eq!((status, &refused["reason"]), (400, &json!("FIELD_INVALID")), "{refused}");
    let (_, stats) = server.as_root("GET", "/v1/scheduler/stats", None).await;
    assert_eq!((&stats["jobs_failed"], &stats["jobs_planned"]), (&json!(1), &json!(0)));
    assert_eq!(stats["executions_pending"], 0);
    // How busy the others are is nothing for a tenant (SE-11).
    let tenant = bearer(&["schedules:read"], "deploy");
    let (_, stats) = rest(&server, &tenant, "GET /v1/scheduler/stats", None).await;
    assert_eq!((stats["jobs_total"].as_i64(), stats.get("executions_pending")), (Some(0), None));
}

async fn set_due(server: &Server, id: &str) {
    let body = Some(json!({"execution": "2020-01-01"}));
    let (status, job) = server.as_root("PUT", &format!("/jobs/{id}"), body).await;
    assert_eq!(status, 200, "{job}");
}

/// The one who set a rule is revoked: its jobs are held, seen and resumed.
#[tokio::test]
async fn resume_job_goes_on_once_somebody_stands_behind_the_rule() {
    let server = server().await.with_template().await;
    let body = json!({"scopes": ["rules:write", "tasks:create"]});
    let (_, minted) = server.as_root("POST", "/v1/auth/tokens", Some(body)).await;
    let owner = format!("Bearer {}", minted["token"].as_str().unwrap());
    let rule = json!({"pattern": "shop.", "runner": {"type": "task", "template": "shop/order"}});
    let (status, _) = rest(&server, &owner, "PUT /rules/rule.shop", Some(rule.clone())).await;
    assert_eq!(status, 200);
    let prefix = minted["prefix"].as_str().unwrap();
    server.as_root("DELETE", &format!("/v1/auth/tokens/{prefix}"), None).await;
    set_due(&server, "shop.order").await;
    let job = until(&server, "shop.order", "held").await;
    assert_eq!(job["reason"], "authorization_revoked");
    let resume = || server.as_root("POST", "/v1/jobs/shop.order/resume", Some(json!({})));
    assert_eq!(resume().await.0, 200);
    until(&server, "shop.order", "held").await;
    assert_eq!(server.as_root("PUT", "/rules/rule.shop", Some(rule)).await.0, 200);
    assert_eq!(resume().await.0, 200);
    until(&server, "shop.order", "executed").await;
    let (_, runs) = server.as_root("GET", "/v1/jobs/shop.order/runs", None).await;
    let outcomes: Vec<&Value> =
        runs["runs"].as_array().unwrap().iter().map(|run| &run["outcome"]).collect();
    assert_eq!(outcomes, ["executed", "held", "held"], "{runs}");
}

async fn until(server: &Server, id: &str, status: &str) -> Value {
    let reached = async {
        loop {
            let (_, job) = server.as_root("GET", &format!("/jobs/{id}"), None).await;
            if job["status"] == status {
                break job;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.expect("in time")
}

#[tokio::test]
async fn set_job_with_grpcurl_in_one_line() {
    let server = server().await;
    let mut command = grpcurl();
    command.args(["-plaintext", "-H", &format!("x-api-key: {ROOT_KEY}")]);
    let job = json!({"id": "a.b", "execution": LATER}).to_string();
    command.args(["-d", &job, &server.grpc.to_string()]);
    command.arg("bailiwick.v1.ScheduleService/SetJob");
    let said = harness::run(command).await.good();
    assert!(said.contains("JOB_STATUS_PLANNED") && said.contains(&LATER_NS.to_string()), "{said}");
}
