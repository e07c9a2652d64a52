//! Leases by single calls, and workers.

use tonic::Code;

use super::{House, SOON, reason};
use crate::pb::v1::{self, worker_service_client::WorkerServiceClient};

#[tokio::test]
async fn a_lease_carries_what_the_handler_needs() {
    let house = House::with_pair().await;
    let task = house.create().await;
    let lease = house.lease(house.root(), 0).await.unwrap().remove(0);
    assert_eq!(lease.task_uuid, task.task_uuid);
    assert_eq!((lease.namespace.as_str(), lease.handler.as_str()), ("shop", "work"));
    assert_eq!((lease.name.as_str(), lease.attempt, lease.method), ("first", 1, None));
    assert_eq!(lease.context, r#"{"order": 12345678901234567890.10}"#);
    assert_eq!(lease.initialization, r#"{"n":1}"#);
    assert_eq!((lease.template_name.as_str(), lease.template_version.as_str()), ("pair", "1.0.0"));
    assert!(lease.lease_id.len() >= 16 && lease.deadline.is_some() && lease.timeout_at.is_some());

    let mut workers = WorkerServiceClient::new(house.through(Some(house.root())));
    let beat = v1::HeartbeatStepRequest { lease_id: lease.lease_id.clone() };
    let beat = workers.heartbeat_step(beat).await.unwrap().into_inner();
    assert_eq!(beat.state(), v1::LeaseState::Held);
    let complete =
        v1::CompleteStepRequest { lease_id: lease.lease_id, result: r#"{"id": 7}"#.to_owned() };
    for already in [false, true] {
        let taken = workers.complete_step(complete.clone()).await.unwrap().into_inner();
        assert_eq!(taken.already, already);
    }
    let second = house.lease(house.root(), 1_000).await.unwrap().remove(0);
    assert_eq!(second.results["first"], r#"{"id": 7}"#);
    assert_eq!(second.method.as_deref(), Some("finish"));
    let fail = v1::FailStepRequest {
        lease_id: second.lease_id,
        error: "no".to_owned(),
        retryable: Some(false),
    };
    let failed = workers.fail_step(fail).await.unwrap().into_inner();
    assert_eq!((failed.already, failed.step_state.as_str()), (false, "error"));
}

#[tokio::test]
async fn se_18_a_lease_is_its_holders_alone() {
    let house = House::with_pair().await;
    house.create().await;
    let lease = house.lease(house.root(), 0).await.unwrap().remove(0);
    let (other, _) = house.caller_named("bob", &["*"], &["*"]);
    let mut workers = WorkerServiceClient::new(house.through(Some(other)));
    for lease_id in [lease.lease_id.as_str(), "no lease"] {
        let lease_id = lease_id.to_owned();
        let complete = v1::CompleteStepRequest { lease_id, result: String::new() };
        let status = workers.complete_step(complete).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::NotFound, "lease not found"));
    }
}

#[tokio::test]
async fn a_poll_waits_for_work_and_se_17_ends_with_its_credential() {
    let house = House::with_pair().await;
    let (caller, revoke) = house.caller(&["work:lease"], &["shop"]);
    let (leases, _) = tokio::join!(house.lease(caller.clone(), 10_000), house.create());
    assert_eq!(leases.unwrap().len(), 1);

    let poll = house.lease(caller, 10_000);
    let end = async {
        tokio::task::yield_now().await;
        revoke.cancel();
    };
    let (refused, ()) =
        tokio::time::timeout(SOON, async { tokio::join!(poll, end) }).await.unwrap();
    let status = refused.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unauthenticated, "CREDENTIALS_REVOKED")
    );
    // Its seat is free: the next step goes to who still may.
    house.create().await;
    assert_eq!(house.lease(house.root(), 1_000).await.unwrap().len(), 1);
}

#[tokio::test]
async fn workers_and_handlers_are_listed() {
    let house = House::with_pair().await;
    let mut workers = WorkerServiceClient::new(house.through(Some(house.root())));
    let register = v1::RegisterWorkerRequest {
        namespace: "shop.".to_owned(),
        name: "w1".to_owned(),
        handlers: vec!["work".to_owned()],
        version: Some("1".to_owned()),
    };
    let worker = workers.register_worker(register).await.unwrap().into_inner().worker.unwrap();
    assert_eq!((worker.namespace.as_str(), worker.subject.as_str()), ("shop.", "alice"));
    assert!(!worker.connected);
    let list = |namespace: Option<&str>| v1::ListWorkersRequest {
        namespace: namespace.map(str::to_owned),
        ..v1::ListWorkersRequest::default()
    };
    let listed = workers.list_workers(list(None)).await.unwrap().into_inner().workers;
    assert_eq!(listed, [worker]);
    let status = workers.list_workers(list(Some(".."))).await.unwrap_err();
    assert_eq!(reason(&status), "FIELD_INVALID");

    let mut system =
        v1::system_service_client::SystemServiceClient::new(house.through(Some(house.root())));
    let handlers = system.list_handlers(v1::ListHandlersRequest::default()).await.unwrap();
    let handlers = handlers.into_inner().handlers;
    assert_eq!(handlers.len(), 1);
    assert_eq!((handlers[0].name.as_str(), handlers[0].templates), ("work", 1));
}
