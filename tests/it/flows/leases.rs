//! Leases: who holds them, how they end, and who is told.

use bailiwick::pb::v1::{
    stream_work_request::Message as Up, stream_work_response::Message as Down,
};
use bailiwick_client::Auth;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::*;
use crate::harness::{Setup, credentials::Token};

#[tokio::test]
async fn a_lease_without_heartbeats_ends_and_is_fenced() {
    let server = Server::with(Setup::default().lease_seconds(5)).await;
    let api = Api::root(&server).await;
    api.register(&retried()).await;
    let id = api.create("retried").await.task_uuid;
    let lost = api.lease("work").await;
    let second = api.lease("work").await;
    assert_eq!((second.attempt, second.step_uuid == lost.step_uuid), (2, true));
    assert_ne!(second.lease_id, lost.lease_id);

    assert_eq!(api.heartbeat(&lost).await.state(), pb::LeaseState::Lost);
    assert_eq!(reason(api.try_complete(&lost, "1").await), "LEASE_LOST");
    let beat = api.heartbeat(&second).await;
    assert_eq!(beat.state(), pb::LeaseState::Held);
    assert!(beat.deadline.unwrap().seconds >= second.deadline.unwrap().seconds);
    api.complete(&second, "2").await;
    assert!(api.try_complete(&second, "2").await.unwrap(), "the same completion again");
    assert_eq!(reason(api.try_complete(&second, "3").await), "LEASE_LOST", "another one");
    assert_eq!(api.step(&id, "only").await.result(), "2");
    let causes = api.causes(&id, &lost.step_uuid).await;
    for cause in ["lease_expired", "retry_due", "stale_result_refused", "completed"] {
        assert!(causes.contains(&cause.to_owned()), "{cause} in {causes:?}");
    }
}

#[tokio::test]
async fn heartbeats_keep_a_lease_past_its_length() {
    let server = Server::with(Setup::default().lease_seconds(5)).await;
    let api = Api::root(&server).await;
    api.register(&api::one("work")).await;
    let id = api.create("work").await.task_uuid;
    let lease = api.lease("work").await;
    for _ in 0..7 {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(api.heartbeat(&lease).await.state(), pb::LeaseState::Held);
    }
    api.complete(&lease, "1").await;
    let step = api.step(&id, "only").await;
    assert_eq!((step.attempts, step.result()), (1, "1"));
}

#[tokio::test]
async fn another_workers_lease_is_not_there() {
    let (server, api) = house(&[&api::one("work")]).await;
    api.create("work").await;
    let lease = api.lease("work").await;
    let token = Token::new("somebody-else", &["work:lease"]).sign();
    let other = Api::of(&server, Auth::Bearer(token)).await;
    let hidden = refusal(other.try_complete(&lease, "1").await);
    assert_eq!(hidden.code, Code::NotFound);
    let mut absent = lease.clone();
    absent.lease_id = absent.lease_id.chars().rev().collect();
    let not_there = refusal(other.try_complete(&absent, "1").await);
    assert_eq!((not_there.code, not_there.message), (Code::NotFound, hidden.message));
    assert_eq!(refusal(other.try_fail(&lease, "no", true).await).code, Code::NotFound);
    api.complete(&lease, "2").await;
}

#[tokio::test]
async fn a_long_poll_is_woken_by_a_creation() {
    let (_server, api) = house(&[&api::one("work")]).await;
    let started = jiff::Timestamp::now();
    let poll = api.try_lease(&["work"], 1, PATIENCE);
    let create = async {
        sleep(Duration::from_millis(300)).await;
        api.create("work").await.task_uuid
    };
    let (leases, id) = tokio::join!(poll, create);
    assert_eq!(leases.unwrap()[0].task_uuid, id);
    let waited = jiff::Timestamp::now().duration_since(started);
    assert!(waited.as_secs() < 20, "woken, not timed out: {waited:?}");
    let none = api.try_lease(&["work"], 1, Duration::from_millis(100)).await.unwrap();
    assert!(none.is_empty());
}

async fn send(up: &mpsc::Sender<pb::StreamWorkRequest>, message: Up) {
    up.send(pb::StreamWorkRequest { message: Some(message) }).await.unwrap();
}

async fn received(down: &mut Streaming<pb::StreamWorkResponse>) -> Down {
    let message = timeout(PATIENCE, down.message()).await.unwrap().unwrap();
    message.unwrap().message.unwrap()
}

#[tokio::test]
async fn a_stream_hands_out_steps_and_tells_of_a_cancel() {
    let (_server, api) = house(&[&api::one("work")]).await;
    let (up, messages) = mpsc::channel(16);
    let open = pb::WorkOpen {
        namespace: NAMESPACE.into(),
        name: "streamer".into(),
        handlers: vec!["work".into()],
        version: None,
    };
    send(&up, Up::Open(open)).await;
    let stream = api.client.workers().stream_work(ReceiverStream::new(messages)).await;
    let mut down = stream.unwrap().into_inner();
    let Down::Opened(terms) = received(&mut down).await else { panic!("not opened") };
    assert_eq!((terms.lease_ms, terms.heartbeat_ms), (30_000, 10_000));

    let ids = [api.create("work").await.task_uuid, api.create("work").await.task_uuid];
    send(&up, Up::Credit(pb::WorkCredit { steps: 1 })).await;
    let Down::Lease(first) = received(&mut down).await else { panic!("no lease") };
    assert_eq!(first.task_uuid, ids[0]);
    // Without credit nothing comes: the next message is the answer to this.
    let beat = pb::WorkHeartbeat { lease_ids: vec![first.lease_id.clone()] };
    send(&up, Up::Heartbeat(beat)).await;
    let Down::Heartbeat(beat) = received(&mut down).await else { panic!("no beat") };
    assert_eq!(beat.state(), pb::LeaseState::Held);

    api.cancel(&ids[0]).await.unwrap();
    let Down::Revoked(revoked) = received(&mut down).await else { panic!("not told") };
    assert_eq!(
        (revoked.lease_id.as_str(), revoked.reason()),
        (first.lease_id.as_str(), pb::LeaseState::Cancelled)
    );
    let late = pb::CompleteStepRequest { lease_id: first.lease_id.clone(), result: "1".into() };
    send(&up, Up::Complete(late)).await;
    let Down::Result(result) = received(&mut down).await else { panic!("no result") };
    assert_eq!(result.refusal.unwrap().reason, "LEASE_LOST");

    send(&up, Up::Credit(pb::WorkCredit { steps: 1 })).await;
    let Down::Lease(second) = received(&mut down).await else { panic!("no lease") };
    assert_eq!(second.task_uuid, ids[1]);
    let done = pb::CompleteStepRequest { lease_id: second.lease_id.clone(), result: "2".into() };
    for already in [false, true] {
        send(&up, Up::Complete(done.clone())).await;
        let Down::Result(result) = received(&mut down).await else { panic!("no result") };
        assert_eq!((result.already, result.refusal), (already, None));
    }
    assert_eq!(api.step(&ids[1], "only").await.result(), "2");
}
