//! `StreamWork`: its protocol, its answers and its ends.

use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::{House, SOON, reason};
use crate::{
    access::Caller,
    pb::v1::{
        self, stream_work_request::Message as Up, stream_work_response::Message as Down,
        task_service_client::TaskServiceClient, worker_service_client::WorkerServiceClient,
    },
};

/// A worker's end of a stream.
struct Worker {
    up: mpsc::Sender<v1::StreamWorkRequest>,
    down: Streaming<v1::StreamWorkResponse>,
}

fn open() -> Up {
    Up::Open(v1::WorkOpen {
        namespace: "shop".to_owned(),
        name: "w1".to_owned(),
        handlers: vec!["work".to_owned()],
        version: None,
    })
}

fn complete(lease_id: &str, result: &str) -> Up {
    Up::Complete(v1::CompleteStepRequest {
        lease_id: lease_id.to_owned(),
        result: result.to_owned(),
    })
}

fn credit(steps: u32) -> Up {
    Up::Credit(v1::WorkCredit { steps })
}

impl Worker {
    async fn begin(house: &House, caller: Caller, first: Up) -> Result<Self, Status> {
        let (up, messages) = mpsc::channel(2_000);
        let first = v1::StreamWorkRequest { message: Some(first) };
        up.send(first).await.unwrap();
        let mut workers = WorkerServiceClient::new(house.through(Some(caller)));
        let down = workers.stream_work(ReceiverStream::new(messages)).await?.into_inner();
        Ok(Self { up, down })
    }

    async fn open(house: &House, caller: Caller) -> Self {
        let mut worker = Self::begin(house, caller, open()).await.unwrap();
        let Down::Opened(terms) = worker.next().await else { panic!("not opened") };
        assert_eq!((terms.lease_ms, terms.heartbeat_ms), (30_000, 10_000));
        worker
    }

    async fn send(&self, message: Up) {
        self.up.send(v1::StreamWorkRequest { message: Some(message) }).await.unwrap();
    }

    async fn receive(&mut self) -> Option<Result<v1::StreamWorkResponse, Status>> {
        tokio::time::timeout(SOON * 5, self.down.next()).await.unwrap()
    }

    async fn next(&mut self) -> Down {
        self.receive().await.unwrap().unwrap().message.unwrap()
    }

    async fn lease(&mut self) -> v1::Lease {
        let message = self.next().await;
        let Down::Lease(lease) = message else { panic!("{message:?}") };
        lease
    }

    async fn result(&mut self) -> v1::WorkResult {
        let message = self.next().await;
        let Down::Result(result) = message else { panic!("{message:?}") };
        result
    }

    /// The error that ends the stream.
    async fn end(&mut self) -> Status {
        loop {
            match self.receive().await.unwrap() {
                Ok(_) => {}
                Err(status) => return status,
            }
        }
    }
}

fn worker(house: &House) -> (Caller, CancellationToken) {
    house.caller(&["work:lease"], &["shop"])
}

#[tokio::test]
async fn a_worker_does_a_task_over_its_stream() {
    let house = House::with_pair().await;
    let mut worker = Worker::open(&house, worker(&house).0).await;
    worker.send(credit(2)).await;
    let id = house.create().await.task_uuid;
    let first = worker.lease().await;
    assert_eq!((first.name.as_str(), first.task_uuid.as_str()), ("first", id.as_str()));
    worker.send(complete(&first.lease_id, r#"{"a":1}"#)).await;
    let (mut result, mut second) = (None, None);
    while result.is_none() || second.is_none() {
        match worker.next().await {
            Down::Result(taken) => result = Some(taken),
            Down::Lease(lease) => second = Some(lease),
            other @ (Down::Opened(_) | Down::Heartbeat(_) | Down::Revoked(_)) => {
                panic!("{other:?}")
            }
        }
    }
    let (result, second) = (result.unwrap(), second.unwrap());
    assert_eq!((result.lease_id, result.already), (first.lease_id.clone(), false));
    assert_eq!(result.refusal, None);
    assert_eq!((second.name.as_str(), second.results["first"].as_str()), ("second", r#"{"a":1}"#));

    // The same again, and another answer under a lease that is done with.
    worker.send(complete(&first.lease_id, r#"{"a":1}"#)).await;
    assert!(worker.result().await.already);
    let fail = v1::FailStepRequest {
        lease_id: second.lease_id,
        error: "no".to_owned(),
        retryable: Some(false),
    };
    worker.send(Up::Fail(fail)).await;
    assert_eq!(worker.result().await.refusal, None);
    let steps = house.steps(&id).await;
    assert_eq!(
        (steps[0].state(), steps[1].state()),
        (v1::StepState::Complete, v1::StepState::Error)
    );
    assert_eq!(steps[1].last_error.as_deref(), Some("no"));
}

#[tokio::test]
async fn a_refused_result_says_why_and_the_stream_goes_on() {
    let house = House::with_pair().await;
    let mut worker = Worker::open(&house, worker(&house).0).await;
    worker.send(credit(1)).await;
    house.create().await;
    let lease = worker.lease().await.lease_id;
    let foreign = lease.replace(|digit: char| digit.is_ascii_digit(), "9");
    for (lease, result, code, expected) in [
        ("x", "1", Code::NotFound, "NOT_FOUND"),
        (foreign.as_str(), "1", Code::NotFound, "NOT_FOUND"),
        (lease.as_str(), "{", Code::InvalidArgument, "PAYLOAD_INVALID"),
    ] {
        worker.send(complete(lease, result)).await;
        let answer = worker.result().await;
        assert_eq!((answer.lease_id.as_str(), answer.already), (lease, false));
        let refusal = answer.refusal.unwrap();
        assert_eq!((refusal.code, refusal.reason.as_str()), (code.into(), expected));
        assert!(!refusal.message.is_empty());
    }
    let lease_ids = vec!["x".to_owned(), lease.clone(), foreign];
    worker.send(Up::Heartbeat(v1::WorkHeartbeat { lease_ids: lease_ids.clone() })).await;
    let expected = [v1::LeaseState::Lost, v1::LeaseState::Held, v1::LeaseState::Lost];
    for (lease_id, state) in lease_ids.into_iter().zip(expected) {
        let Down::Heartbeat(beat) = worker.next().await else { panic!("no heartbeat") };
        assert_eq!((&beat.lease_id, beat.state()), (&lease_id, state));
        assert_eq!(beat.deadline.is_some(), state == v1::LeaseState::Held);
    }
    worker.send(complete(&lease, "1")).await;
    assert_eq!(worker.result().await.refusal, None);
}

#[tokio::test]
async fn a_cancelled_task_revokes_its_lease() {
    let house = House::with_pair().await;
    let mut worker = Worker::open(&house, worker(&house).0).await;
    worker.send(credit(1)).await;
    let task_uuid = house.create().await.task_uuid;
    let lease = worker.lease().await.lease_id;
    let mut tasks = TaskServiceClient::new(house.through(Some(house.root())));
    tasks.cancel_task(v1::CancelTaskRequest { task_uuid, reason: None }).await.unwrap();
    let Down::Revoked(revoked) = worker.next().await else { panic!("not revoked") };
    assert_eq!((&revoked.lease_id, revoked.reason()), (&lease, v1::LeaseState::Cancelled));
    worker.send(complete(&lease, "1")).await;
    let refusal = worker.result().await.refusal.unwrap();
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::FailedPrecondition.into(), "LEASE_LOST")
    );
}

#[tokio::test]
async fn the_first_message_opens_and_no_other() {
    let house = House::with_pair().await;
    for first in [credit(1), complete("x", "")] {
        let status = Worker::begin(&house, worker(&house).0, first).await.err().unwrap();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "STREAM_PROTOCOL")
        );
    }
    let wrong = |namespace: &str, handlers: &[&str]| {
        Up::Open(v1::WorkOpen {
            namespace: namespace.to_owned(),
            name: "w1".to_owned(),
            handlers: handlers.iter().map(ToString::to_string).collect(),
            version: None,
        })
    };
    for (first, expected) in [
        (wrong("shop", &[]), "FIELD_INVALID"),
        (wrong("*", &["work"]), "FIELD_INVALID"),
        (wrong("other", &["work"]), "NAMESPACE_NOT_FOUND"),
    ] {
        let status = Worker::begin(&house, worker(&house).0, first).await.err().unwrap();
        assert_eq!(reason(&status), expected);
    }
    for message in [open(), credit(1_001)] {
        let mut worker = Worker::open(&house, worker(&house).0).await;
        worker.send(message).await;
        let status = worker.end().await;
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "STREAM_PROTOCOL")
        );
    }
    let mut worker = Worker::open(&house, worker(&house).0).await;
    worker.up.send(v1::StreamWorkRequest { message: None }).await.unwrap();
    assert_eq!(reason(&worker.end().await), "STREAM_PROTOCOL");
}

#[tokio::test]
async fn a_closed_half_finishes_what_is_on_its_way_and_ends_well() {
    let house = House::with_pair().await;
    let mut worker = Worker::open(&house, worker(&house).0).await;
    worker.send(credit(10)).await;
    house.create().await;
    let lease = worker.lease().await.lease_id;
    worker.send(complete(&lease, "1")).await;
    worker.up = mpsc::channel(1).0;
    assert_eq!(worker.result().await.refusal, None);
    assert!(worker.receive().await.is_none());
    // What nobody took stays for others.
    assert_eq!(house.lease(house.root(), 1_000).await.unwrap()[0].name, "second");
}

#[tokio::test]
async fn credit_that_is_taken_back_leases_nothing() {
    let house = House::with_pair().await;
    let mut worker = Worker::open(&house, worker(&house).0).await;
    worker.send(credit(1)).await;
    worker.send(credit(0)).await;
    // An answer behind it shows that both were taken in.
    worker.send(complete("x", "")).await;
    assert!(worker.result().await.refusal.is_some());
    house.create().await;
    assert_eq!(house.lease(house.root(), 0).await.unwrap().len(), 1);
}

#[tokio::test]
async fn se_17_a_stream_ends_with_its_credential_and_leases_no_more() {
    let house = House::with_pair().await;
    let (caller, revoke) = worker(&house);
    let mut worker = Worker::open(&house, caller).await;
    worker.send(credit(5)).await;
    revoke.cancel();
    let status = tokio::time::timeout(SOON, worker.end()).await.unwrap();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unauthenticated, "CREDENTIALS_REVOKED")
    );
    house.create().await;
    assert_eq!(house.lease(house.root(), 0).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_reader_that_never_reads_holds_nobody_up() {
    let house = House::with_pair().await;
    let (caller, revoke) = worker(&house);
    let lazy = Worker::begin(&house, caller, open()).await.unwrap();
    lazy.send(credit(1_000)).await;
    for _ in 0..1_000 {
        lazy.send(complete("x", "")).await;
    }
    // Another worker's answers come all the same.
    let mut busy = Worker::open(&house, worker(&house).0).await;
    busy.send(complete("x", "")).await;
    assert!(busy.result().await.refusal.is_some());
    // Its own task ends with its credential, with its queue still full.
    assert_eq!(house.streams.len(), 2);
    revoke.cancel();
    let ended = async {
        while house.streams.len() == 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, ended).await.unwrap();
    let rest: Vec<_> = lazy.down.collect().await;
    assert!(rest.len() < 100, "{}", rest.len());
    assert_eq!(rest.last().unwrap().as_ref().unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_worker_that_hangs_up_leaves_no_task_behind() {
    let house = House::with_pair().await;
    let worker = Worker::open(&house, worker(&house).0).await;
    worker.send(credit(5)).await;
    drop(worker);
    house.streams.close();
    tokio::time::timeout(SOON, house.streams.wait()).await.unwrap();
    house.create().await;
    assert_eq!(house.lease(house.root(), 1_000).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_server_that_goes_down_says_so() {
    let house = House::with_pair().await;
    let mut worker = Worker::open(&house, worker(&house).0).await;
    house.shutdown.cancel();
    let status = worker.end().await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
}
