//! Tasks, steps, templates and watches.

use tokio_stream::StreamExt as _;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{House, PAIR, SOON, reason};
use crate::pb::v1::{
    self, step_service_client::StepServiceClient, task_service_client::TaskServiceClient,
    template_service_client::TemplateServiceClient, watch_task_response::Event,
    worker_service_client::WorkerServiceClient,
};

fn get(id: &str) -> v1::GetTaskRequest {
    v1::GetTaskRequest { task_uuid: id.to_owned() }
}

#[tokio::test]
async fn a_task_is_shown_without_its_context() {
    let house = House::with_pair().await;
    let task = house.create().await;
    assert_eq!(task.state(), v1::TaskState::Pending);
    assert_eq!((task.namespace.as_str(), task.name.as_str()), ("shop", "pair"));
    assert_eq!((task.version.as_str(), task.created_by.as_str()), ("1.0.0", "alice"));
    let counts = task.steps.unwrap();
    assert_eq!((counts.total, counts.ready, counts.pending), (2, 1, 1));

    let mut tasks = TaskServiceClient::new(house.through(Some(house.root())));
    let again = tasks.get_task(get(&task.task_uuid)).await.unwrap().into_inner().task.unwrap();
    assert_eq!(again, task);
    let list = v1::ListTasksRequest {
        state: vec![v1::TaskState::Pending.into()],
        ..v1::ListTasksRequest::default()
    };
    assert_eq!(
        tasks.list_tasks(list).await.unwrap().into_inner().tasks,
        std::slice::from_ref(&task)
    );
    let id = v1::GetTaskContextRequest { task_uuid: task.task_uuid };
    let context = tasks.get_task_context(id).await.unwrap().into_inner().context;
    assert_eq!(context, r#"{"order": 12345678901234567890.10}"#);
}

#[tokio::test]
async fn se_10_hidden_absent_and_malformed_read_alike() {
    let house = House::with_pair().await;
    let task = house.create().await;
    let step = house.steps(&task.task_uuid).await.remove(0).step_uuid;
    let absent = task.task_uuid.replace(|digit: char| digit.is_ascii_digit(), "9");
    let stranger = house.caller(&["*"], &["other"]).0;
    let mut theirs = TaskServiceClient::new(house.through(Some(stranger.clone())));
    let mut ours = TaskServiceClient::new(house.through(Some(house.root())));
    let parts = |status: Status, id: &str| {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "NOT_FOUND"));
        let details = format!("{:?}", status.get_error_details());
        (status.message().replace(id, "ID"), details.replace(id, "ID"))
    };
    let hidden = theirs.get_task(get(&task.task_uuid)).await.unwrap_err();
    let hidden = parts(hidden, &task.task_uuid);
    for id in [absent.as_str(), "no-uuid"] {
        let status = ours.get_task(get(id)).await.unwrap_err();
        assert_eq!(parts(status, id), hidden, "{id}");
    }

    // SE-09: a step under a foreign parent, and under none.
    let other = house.create().await.task_uuid;
    let mut steps = StepServiceClient::new(house.through(Some(house.root())));
    let mut hidden = StepServiceClient::new(house.through(Some(stranger)));
    let ask =
        |task: &str| v1::GetStepRequest { task_uuid: task.to_owned(), step_uuid: step.clone() };
    assert!(steps.get_step(ask(&task.task_uuid)).await.is_ok());
    let expected = parts(hidden.get_step(ask(&task.task_uuid)).await.unwrap_err(), &step);
    for task in [other.as_str(), absent.as_str(), "x"] {
        let status = steps.get_step(ask(task)).await.unwrap_err();
        assert_eq!(parts(status, &step), expected, "{task}");
    }
}

#[tokio::test]
async fn a_foreign_namespace_is_not_found_in_requests_and_empty_in_lists() {
    let house = House::with_pair().await;
    house.create().await;
    let (caller, _) = house.caller(&["*"], &["other"]);
    let mut tasks = TaskServiceClient::new(house.through(Some(caller)));
    let create = v1::CreateTaskRequest {
        namespace: "shop".to_owned(),
        name: "pair".to_owned(),
        ..v1::CreateTaskRequest::default()
    };
    let status = tasks.create_task(create).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "namespace not found: shop"));
    let list = |namespace: &str| v1::ListTasksRequest {
        namespace: Some(namespace.to_owned()),
        ..v1::ListTasksRequest::default()
    };
    assert_eq!(tasks.list_tasks(list("shop")).await.unwrap().into_inner().tasks, []);
    let status = tasks.list_tasks(list("sh op")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "FIELD_INVALID"));
    let state = v1::ListTasksRequest { state: vec![77], ..v1::ListTasksRequest::default() };
    let status = tasks.list_tasks(state).await.unwrap_err();
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "state");
}

#[tokio::test]
async fn payloads_and_keys_are_refused_with_their_reasons() {
    let house = House::with_pair().await;
    let mut tasks = TaskServiceClient::new(house.through(Some(house.root())));
    let base = v1::CreateTaskRequest {
        namespace: "shop".to_owned(),
        name: "pair".to_owned(),
        idempotency_key: Some("k".to_owned()),
        ..v1::CreateTaskRequest::default()
    };
    let first = tasks.create_task(base.clone()).await.unwrap().into_inner();
    assert_eq!(tasks.create_task(base.clone()).await.unwrap().into_inner(), first);
    let with = |context: &str| v1::CreateTaskRequest {
        context: context.to_owned(),
        idempotency_key: None,
        ..base.clone()
    };
    let absent = v1::CreateTaskRequest { name: "none".to_owned(), ..base.clone() };
    let clash = v1::CreateTaskRequest { priority: 1, ..base.clone() };
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    for (request, code, expected) in [
        (with("{"), Code::InvalidArgument, "PAYLOAD_INVALID"),
        (with("[]"), Code::InvalidArgument, "PAYLOAD_INVALID"),
        (with(&format!(r#"{{"a":{deep}}}"#)), Code::InvalidArgument, "PAYLOAD_INVALID"),
        (
            v1::CreateTaskRequest { priority: 101, ..with("") },
            Code::InvalidArgument,
            "FIELD_INVALID",
        ),
        (absent, Code::NotFound, "NOT_FOUND"),
        (clash, Code::AlreadyExists, "IDEMPOTENCY_CONFLICT"),
    ] {
        let status = tasks.create_task(request).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (code, expected), "{status:?}");
    }
}

#[tokio::test]
async fn templates_come_with_every_fault_placed() {
    let house = House::with_pair().await;
    assert!(house.register(PAIR).await.unwrap().unchanged);
    let status = house.register(&PAIR.replace("{n: 1}", "{n: 2}")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::AlreadyExists, "TEMPLATE_EXISTS"));
    let faulty = PAIR.replace("[first]", "[frist]").replace("method:", "metod:");
    let status = house.register(&faulty).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::InvalidArgument, "TEMPLATE_INVALID")
    );
    let violations = status.get_details_bad_request().unwrap().field_violations;
    assert!(violations.iter().any(|fault| fault.description.starts_with("line 8, column ")));

    let mut templates = TemplateServiceClient::new(house.through(Some(house.root())));
    let validate = v1::ValidateTemplateRequest { namespace: "shop".to_owned(), definition: faulty };
    let validation = templates.validate_template(validate).await.unwrap().into_inner();
    assert!(!validation.valid && validation.errors.len() >= 2, "{validation:?}");
    let get = v1::GetTemplateRequest {
        namespace: "shop".to_owned(),
        name: "pair".to_owned(),
        version: "1.0.0".to_owned(),
    };
    let template = templates.get_template(get).await.unwrap().into_inner().template.unwrap();
    assert_eq!(template.definition.as_deref(), Some(PAIR));
    assert_eq!(
        (template.steps, template.handlers),
        (vec!["first".to_owned(), "second".to_owned()], vec!["work".to_owned()])
    );
    let list = templates.list_templates(v1::ListTemplatesRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().templates[0].definition, None);
}

#[tokio::test]
async fn a_watch_shows_a_snapshot_and_events_and_ends() {
    let house = House::with_pair().await;
    let id = house.create().await.task_uuid;
    let mut tasks = TaskServiceClient::new(house.through(Some(house.root())));
    let watch = v1::WatchTaskRequest { task_uuid: id.clone(), after_seq: None };
    let mut events = tasks.watch_task(watch).await.unwrap().into_inner();
    let Some(Event::Snapshot(snapshot)) = events.next().await.unwrap().unwrap().event else {
        panic!("no snapshot")
    };
    assert_eq!(snapshot.steps.len(), 2);

    let mut workers = WorkerServiceClient::new(house.through(Some(house.root())));
    for name in ["first", "second"] {
        let lease = house.lease(house.root(), 1_000).await.unwrap().remove(0);
        assert_eq!(lease.name, name);
        let complete = v1::CompleteStepRequest {
            lease_id: lease.lease_id,
            result: format!(r#"{{"did": "{name}"}}"#),
        };
        workers.complete_step(complete).await.unwrap();
    }
    let seen: Vec<_> = events.map(|event| event.unwrap()).collect().await;
    assert!(seen.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    let Some(Event::Task(last)) = &seen.last().unwrap().event else { panic!("{seen:?}") };
    assert_eq!((last.task_uuid.as_str(), last.state()), (id.as_str(), v1::TaskState::Complete));

    let resumed = v1::WatchTaskRequest { task_uuid: id, after_seq: Some(seen[0].seq) };
    let rest = tasks.watch_task(resumed).await.unwrap().into_inner();
    let rest: Vec<_> = rest.map(|event| event.unwrap()).collect().await;
    assert_eq!(rest, seen[1..]);
}

#[tokio::test]
async fn se_17_a_watch_ends_with_its_credential() {
    let house = House::with_pair().await;
    let id = house.create().await.task_uuid;
    let (caller, revoke) = house.caller(&["tasks:read"], &["shop"]);
    let mut tasks = TaskServiceClient::new(house.through(Some(caller)));
    let watch = |id: &str| v1::WatchTaskRequest { task_uuid: id.to_owned(), after_seq: None };
    let status = tasks.watch_task(watch("absent")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let mut events = tasks.watch_task(watch(&id)).await.unwrap().into_inner();
    assert!(events.next().await.unwrap().is_ok());
    revoke.cancel();
    let status = tokio::time::timeout(SOON, events.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unauthenticated, "CREDENTIALS_REVOKED")
    );
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn an_operator_cures_a_step() {
    let house = House::with_pair().await;
    let id = house.create().await.task_uuid;
    let step = house.steps(&id).await.remove(0).step_uuid;
    let mut steps = StepServiceClient::new(house.through(Some(house.root())));
    let resolve = v1::ResolveStepRequest {
        task_uuid: id.clone(),
        step_uuid: step.clone(),
        action_type: v1::StepAction::CompleteManually.into(),
        reason: "by hand".to_owned(),
        completion_data: Some(v1::CompletionData { result: "[1]".to_owned() }),
    };
    let cured = steps.resolve_step(resolve.clone()).await.unwrap().into_inner().step.unwrap();
    assert_eq!((cured.state(), cured.result.as_deref()), (v1::StepState::Complete, Some("[1]")));
    let status = steps.resolve_step(resolve).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "STEP_STATE"));
    let audit = v1::GetStepAuditRequest { task_uuid: id, step_uuid: step };
    let entries = steps.get_step_audit(audit).await.unwrap().into_inner().entries;
    let last = entries.last().unwrap();
    assert_eq!((last.cause.as_str(), last.actor.as_str()), ("complete_manually", "alice"));
    assert_eq!(last.reason.as_deref(), Some("by hand"));
}
