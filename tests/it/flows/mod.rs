//! Tasks from their creation to their end, as callers and workers see it.

mod leases;
mod lists;
mod templates;
mod watching;

use std::{collections::BTreeMap, time::Duration};

use bailiwick::pb::v1::{self as pb, StepAction, StepState, TaskState};
use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;
use tonic::Code;

use crate::harness::{
    Api, PATIENCE, Server,
    api::{self, DIAMOND, NAMESPACE, reason, refusal, yaml},
};

/// A server with these templates, and root's calls.
async fn house(templates: &[&str]) -> (Server, Api) {
    let server = Server::start().await;
    let api = Api::root(&server).await;
    for definition in templates {
        api.register(definition).await;
    }
    (server, api)
}

/// One step with two attempts and a short pause.
fn retried() -> String {
    let retry = "retry: {max_attempts: 2, backoff: fixed, backoff_base_ms: 50}";
    yaml("retried", &format!("  - name: only\n    handler: {{callable: work}}\n    {retry}\n"))
}

fn results(lease: &pb::Lease) -> BTreeMap<&str, &str> {
    lease.results.iter().map(|(name, result)| (name.as_str(), result.as_str())).collect()
}

/// A REST call with JSON in and out.
async fn rest(server: &Server, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    let mut call = server.rest(method, path);
    if let Some(body) = body {
        call = call.json(&body);
    }
    let answer = call.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn a_diamond_passes_results_on_to_its_end() {
    let (_server, api) = house(&[DIAMOND]).await;
    let request =
        pb::CreateTaskRequest { context: "{\"order\": 7.10}".into(), ..api::request("diamond") };
    let task = api.try_create(request).await.unwrap();
    assert_eq!((task.state(), task.steps.unwrap().total), (TaskState::Pending, 4));
    let id = task.task_uuid;

    let top = api.lease("top").await;
    assert_eq!((top.context.as_str(), top.attempt), ("{\"order\": 7.10}", 1));
    assert!(top.lease_id.len() >= 16);
    assert!(top.results.is_empty());
    assert!(api.lease_now("left").await.is_empty(), "it waits for the top");
    assert_eq!(api.task(&id).await.state(), TaskState::InProgress);
    api.complete(&top, "{\"n\": 1.50}").await;

    let (left, right) = (api.lease("left").await, api.lease("right").await);
    assert_eq!(results(&left), BTreeMap::from([("top", "{\"n\": 1.50}")]));
    api.complete(&left, "2").await;
    assert!(api.lease_now("bottom").await.is_empty(), "it waits for both");
    api.complete(&right, "").await;
    let bottom = api.lease("bottom").await;
    assert_eq!(results(&bottom), BTreeMap::from([("left", "2"), ("right", "null")]));
    api.complete(&bottom, "\"done\"").await;

    let task = api.task(&id).await;
    assert_eq!((task.state(), task.steps.unwrap().complete), (TaskState::Complete, 4));
    assert!(task.completed_at.is_some());
    let steps = api.steps(&id).await;
    let shown: Vec<_> = steps.iter().map(|step| (step.name.as_str(), step.result())).collect();
    assert_eq!(
        shown,
        [("top", "{\"n\": 1.50}"), ("left", "2"), ("right", "null"), ("bottom", "\"done\"")]
    );
}

#[tokio::test]
async fn a_diamond_runs_over_rest_too() {
    let (server, _api) = house(&[]).await;
    let body = json!({ "namespace": NAMESPACE, "definition": DIAMOND });
    let (code, registered) = rest(&server, Method::POST, "/v1/templates", Some(body)).await;
    assert_eq!(code, 201, "{registered}");
    assert_eq!(registered["unchanged"], false);
    let body = json!({ "namespace": NAMESPACE, "name": "diamond", "context": {"order": 7} });
    let (code, task) = rest(&server, Method::POST, "/v1/tasks", Some(body)).await;
    assert_eq!((code, &task["state"]), (201, &json!("pending")), "{task}");
    let id = task["task_uuid"].as_str().unwrap().to_owned();

    let mut results = BTreeMap::new();
    for name in ["top", "left", "right", "bottom"] {
        let body = json!({ "namespace": NAMESPACE, "handlers": [name], "wait_ms": 30_000 });
        let (code, leased) = rest(&server, Method::POST, "/v1/work/lease", Some(body)).await;
        assert_eq!(code, 200, "{leased}");
        let lease = &leased["leases"][0];
        assert_eq!(lease["context"], json!({ "order": 7 }));
        results.insert(name, lease["results"].clone());
        let body = json!({ "lease_id": lease["lease_id"] });
        let (_, beat) = rest(&server, Method::POST, "/v1/work/heartbeat", Some(body)).await;
        assert_eq!(beat["state"], "held");
        let body = json!({ "lease_id": lease["lease_id"], "result": { "by": name } });
        for already in [false, true] {
            let told = rest(&server, Method::POST, "/v1/work/complete", Some(body.clone())).await;
            assert_eq!(told, (200, json!({ "already": already })));
        }
    }
    let of_top = json!({ "top": {"by": "top"} });
    assert_eq!((&results["left"], &results["right"]), (&of_top, &of_top));
    assert_eq!(results["bottom"], json!({ "left": {"by": "left"}, "right": {"by": "right"} }));
    let (_, task) = rest(&server, Method::GET, &format!("/v1/tasks/{id}"), None).await;
    assert_eq!((&task["state"], &task["steps"]["complete"]), (&json!("complete"), &json!(4)));
    let path = format!("/v1/tasks/{id}/workflow_steps");
    let (_, listed) = rest(&server, Method::GET, &path, None).await;
    assert_eq!(listed["steps"][3]["result"], json!({ "by": "bottom" }));
    let again = rest(&server, Method::DELETE, &format!("/v1/tasks/{id}"), None).await;
    assert_eq!((again.0, &again.1["reason"]), (400, &json!("TASK_FINAL")), "{}", again.1);
}

#[tokio::test]
async fn retries_wait_and_say_why_until_a_reset_cures() {
    let (server, api) = house(&[&retried()]).await;
    let id = api.create("retried").await.task_uuid;
    let first = api.lease("work").await;
    let failed_at = jiff::Timestamp::now();
    assert_eq!(api.fail(&first, "once", true).await, "waiting_for_retry");
    let second = api.lease("work").await;
    let waited = jiff::Timestamp::now().duration_since(failed_at);
    assert!(waited.as_millis() >= 45, "50 ms less the jitter: {waited:?}");
    assert_eq!(second.attempt, 2);
    let step = api.step(&id, "only").await;
    assert_eq!((step.last_error(), step.attempts, step.max_attempts), ("once", 2, 2));
    assert_eq!(api.fail(&second, "twice", true).await, "error");

    assert_eq!(api.task(&id).await.state(), TaskState::BlockedByFailures);
    let step = api.step(&id, "only").await;
    assert_eq!((step.state(), step.last_error()), (StepState::Error, "twice"));
    // The same cure over REST.
    let path = format!("/v1/tasks/{id}/workflow_steps/{}", step.step_uuid);
    let body = json!({ "action_type": "reset_for_retry", "reason": "the disk was changed" });
    let (code, cured) = rest(&server, Method::PATCH, &path, Some(body)).await;
    assert_eq!((code, &cured["max_attempts"]), (200, &json!(4)), "{cured}");
    let third = api.lease("work").await;
    assert_eq!(third.attempt, 3);
    api.complete(&third, "3").await;
    assert_eq!(api.task(&id).await.state(), TaskState::Complete);

    let causes = api.causes(&id, &step.step_uuid).await;
    assert_eq!(causes.iter().filter(|cause| *cause == "failed").count(), 2, "{causes:?}");
    let entries = api.audit(&id, &step.step_uuid).await;
    let reset = entries.iter().find(|entry| entry.cause == "reset_for_retry").unwrap();
    assert_eq!(reset.reason(), "the disk was changed");
    assert!(!reset.actor.is_empty());
    let errors: Vec<_> = entries.iter().filter_map(|entry| entry.error.as_deref()).collect();
    assert_eq!(errors, ["once", "twice"]);
}

#[tokio::test]
async fn a_permanent_failure_is_not_tried_again() {
    let (_server, api) = house(&[&retried()]).await;
    let id = api.create("retried").await.task_uuid;
    let lease = api.lease("work").await;
    assert_eq!(api.fail(&lease, "never", false).await, "error");
    let step = api.step(&id, "only").await;
    let broken = api.resolve(&step, StepAction::CompleteManually, Some("{no json")).await;
    assert_eq!(reason(broken), "PAYLOAD_INVALID");
    let done = api.resolve(&step, StepAction::CompleteManually, Some("{\"by\": \"hand\"}")).await;
    assert_eq!(done.unwrap().result(), "{\"by\": \"hand\"}");
    assert_eq!(api.task(&id).await.state(), TaskState::Complete);
    for action in
        [StepAction::ResetForRetry, StepAction::ResolveManually, StepAction::CompleteManually]
    {
        let refused = refusal(api.resolve(&step, action, None).await);
        assert_eq!(refused.code, Code::FailedPrecondition, "{action:?}");
        assert_eq!(refused.reason.as_deref(), Some("STEP_STATE"));
    }
}

#[tokio::test]
async fn a_step_resolved_by_hand_gives_null() {
    let (_server, api) = house(&[DIAMOND]).await;
    let id = api.create("diamond").await.task_uuid;
    let top = api.lease("top").await;
    api.complete(&top, "1").await;
    let (left, right) = (api.lease("left").await, api.lease("right").await);
    api.fail(&left, "no", false).await;
    assert_eq!(api.task(&id).await.state(), TaskState::InProgress, "the right one can run");
    api.complete(&right, "2").await;
    assert_eq!(api.task(&id).await.state(), TaskState::BlockedByFailures);
    let step = api.step(&id, "left").await;
    let resolved = api.resolve(&step, StepAction::ResolveManually, None).await.unwrap();
    assert_eq!(resolved.state(), StepState::ResolvedManually);
    let bottom = api.lease("bottom").await;
    assert_eq!(results(&bottom), BTreeMap::from([("left", "null"), ("right", "2")]));
    api.complete(&bottom, "3").await;
    assert_eq!(api.task(&id).await.state(), TaskState::ResolvedManually);
    assert_eq!(reason(api.cancel(&id).await), "TASK_FINAL");
}

#[tokio::test]
async fn cancelling_ends_open_steps_and_refuses_late_results() {
    let (_server, api) = house(&[DIAMOND]).await;
    let id = api.create("diamond").await.task_uuid;
    let top = api.lease("top").await;
    let cancelled = api.cancel(&id).await.unwrap();
    assert_eq!((cancelled.state(), cancelled.steps.unwrap().cancelled), (TaskState::Cancelled, 4));
    assert_eq!(api.cancel(&id).await.unwrap().state(), TaskState::Cancelled, "twice is OK");
    assert_eq!(api.heartbeat(&top).await.state(), pb::LeaseState::Cancelled);
    let late = refusal(api.try_complete(&top, "1").await);
    assert_eq!((late.code, late.reason.as_deref()), (Code::FailedPrecondition, Some("LEASE_LOST")));
    let late = api.try_fail(&top, "too late", true).await;
    assert_eq!(reason(late), "LEASE_LOST");
    let step = api.step(&id, "top").await;
    assert_eq!((step.state(), step.result), (StepState::Cancelled, None));
    let causes = api.causes(&id, &top.step_uuid).await;
    assert_eq!(causes[..3], ["created", "leased", "cancelled"]);
    assert!(causes[3..].contains(&"stale_result_refused".to_owned()), "{causes:?}");
    assert!(api.lease_now("top").await.is_empty());

    let id = api.create("diamond").await.task_uuid;
    for name in ["top", "left", "right", "bottom"] {
        let lease = api.lease(name).await;
        api.complete(&lease, "1").await;
    }
    let refused = refusal(api.cancel(&id).await);
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert_eq!(refused.reason.as_deref(), Some("TASK_FINAL"));
}

#[tokio::test]
async fn priorities_are_obeyed_and_age_decides_among_equals() {
    let (_server, api) = house(&[&api::one("work")]).await;
    let mut created = Vec::new();
    for priority in [0, -100, 5, 100, 5, 0] {
        let request = pb::CreateTaskRequest { priority, ..api::request("work") };
        created.push((priority, api.try_create(request).await.unwrap().task_uuid));
    }
    let mut expected = created.clone();
    expected.sort_by_key(|(priority, _)| -priority);
    for (priority, id) in expected {
        assert_eq!(api.lease("work").await.task_uuid, id, "of priority {priority}");
    }
    for priority in [-101, 101] {
        let request = pb::CreateTaskRequest { priority, ..api::request("work") };
        assert_eq!(reason(api.try_create(request).await), "FIELD_INVALID");
    }
}

#[tokio::test]
async fn an_idempotency_key_makes_one_task() {
    let (_server, api) = house(&[&api::one("work"), &api::one("other")]).await;
    let keyed = |context: &str| pb::CreateTaskRequest {
        context: context.into(),
        idempotency_key: Some("order-7".into()),
        ..api::request("work")
    };
    let callers = (0..20).map(|_| api.try_create(keyed("{\"n\": 1}")));
    let tasks = join_all(callers).await;
    let first = tasks[0].as_ref().unwrap().task_uuid.clone();
    assert!(tasks.iter().all(|task| task.as_ref().unwrap().task_uuid == first));
    assert_eq!(api.list(pb::ListTasksRequest::default()).await.len(), 1);

    let lease = api.lease("work").await;
    api.complete(&lease, "1").await;
    let late = api.try_create(keyed("{\"n\": 1}")).await.unwrap();
    assert_eq!((late.task_uuid.as_str(), late.state()), (first.as_str(), TaskState::Complete));
    let other = refusal(api.try_create(keyed("{\"n\": 2}")).await);
    assert_eq!(other.code, Code::AlreadyExists);
    assert_eq!(other.reason.as_deref(), Some("IDEMPOTENCY_CONFLICT"));
    let of_another = pb::CreateTaskRequest { name: "other".into(), ..keyed("{\"n\": 1}") };
    assert_ne!(api.try_create(of_another).await.unwrap().task_uuid, first, "per template");
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_times_out() {
    let steps = "  - name: only\n    handler: {callable: work}\n    timeout_seconds: 1\n    \
                 retry: {max_attempts: 2, backoff: fixed, backoff_base_ms: 50}\n";
    let (_server, api) = house(&[&yaml("slow", steps)]).await;
    let id = api.create("slow").await.task_uuid;
    let first = api.lease("work").await;
    // Heartbeats do not move the timeout.
    let mut beats = 0;
    while api.heartbeat(&first).await.state() == pb::LeaseState::Held {
        beats += 1;
        sleep(Duration::from_millis(100)).await;
    }
    assert!(beats >= 5, "it held for {beats} beats");
    let second = api.lease("work").await;
    assert_eq!(second.attempt, 2);
    assert_eq!(reason(api.try_complete(&first, "1").await), "LEASE_LOST");
    api.complete(&second, "2").await;
    assert_eq!(api.step(&id, "only").await.result(), "2");
    let causes = api.causes(&id, &first.step_uuid).await;
    for cause in ["timed_out", "retry_due", "stale_result_refused", "completed"] {
        assert!(causes.contains(&cause.to_owned()), "{cause} in {causes:?}");
    }
}

#[tokio::test]
async fn bad_requests_are_refused_in_words_and_change_nothing() {
    let (server, api) = house(&[&api::one("work")]).await;
    let tasks = |body: Vec<u8>| {
        let call = server.rest(Method::POST, "/v1/tasks");
        call.header("content-type", "application/json").body(body).send()
    };
    let deep = format!("{}{}", "[".repeat(129), "]".repeat(129));
    let deep = format!("{{\"namespace\":\"shop\",\"name\":\"work\",\"context\":{{\"a\":{deep}}}}}");
    for (body, code, expected) in [
        (b"{\"namespace\": \"shop\", ".to_vec(), 400, "REQUEST_MALFORMED"),
        (
            b"{\"namespace\":\"shop\",\"name\":\"work\",\"nmae\":1}".to_vec(),
            400,
            "REQUEST_MALFORMED",
        ),
        (b"{\"namespace\":\"shop\",\"name\":\"\xff\"}".to_vec(), 400, "REQUEST_MALFORMED"),
        (deep.into_bytes(), 400, "PAYLOAD_INVALID"),
    ] {
        let start = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let answer = tasks(body).await.unwrap();
        assert_eq!(answer.status().as_u16(), code, "{start}");
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["reason"], expected, "{start}: {answer}");
        assert!(answer["request_id"].is_string());
    }
    for context in ["[]", "{\"a\": }", "7"] {
        let request = pb::CreateTaskRequest { context: context.into(), ..api::request("work") };
        assert_eq!(reason(api.try_create(request).await), "PAYLOAD_INVALID", "{context}");
    }
    let large = format!("{{\"a\": \"{}\"}}", "x".repeat(1 << 20));
    let request = pb::CreateTaskRequest { context: large, ..api::request("work") };
    assert_eq!(reason(api.try_create(request).await), "PAYLOAD_INVALID");
    assert_eq!(reason(api.try_create(api::request("absent")).await), "NOT_FOUND");
    let header = reqwest::header::HeaderValue::from_bytes(b"\xff\xfe").unwrap();
    let answer = server.rest(Method::GET, "/v1/tasks").header("x-api-key", header).send();
    assert_eq!(answer.await.unwrap().status(), StatusCode::UNAUTHORIZED);

    assert!(api.list(pb::ListTasksRequest::default()).await.is_empty());
    api.create("work").await;
    assert!(server.logs().iter().all(|line| !line.to_string().contains("panicked")));
}
