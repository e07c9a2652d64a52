use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bailiwick_client::{
    Client, Error, HandlerError, StepContext, Worker,
    pb::v1::{
        Lease, LeaseState, stream_work_request::Message as Up,
        stream_work_response::Message as Down,
    },
    worker::WorkerBuilder,
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::fake::{Fake, PATIENCE, Relay, lease};

/// Long enough that no lease runs out while a test is slow.
const LONG_MS: i64 = 600_000;

fn worker(url: &str) -> WorkerBuilder {
    let client = Client::builder(url).connect_lazy().unwrap();
    Worker::builder(client)
        .namespace("shop")
        .name("w-1")
        .concurrency(2)
        .cancel_grace(Duration::from_millis(50))
        .handler("echo", |step: StepContext| async move { step.context::<Value>() })
}

struct Running {
    shutdown: CancellationToken,
    cut: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

fn start(worker: WorkerBuilder) -> Running {
    let worker = worker.build().unwrap();
    let (shutdown, cut) = (CancellationToken::new(), CancellationToken::new());
    let task = tokio::spawn(worker.run_until(shutdown.clone(), cut.clone()));
    Running { shutdown, cut, task }
}

impl Running {
    async fn ended(self) -> Result<(), Error> {
        timeout(PATIENCE, self.task).await.expect("the worker does not end").unwrap()
    }
}

/// Tells when it begins; then waits until it is cancelled.
fn waiting()
-> (impl Fn(StepContext) -> WaitingFuture + Send + Sync, mpsc::UnboundedReceiver<&'static str>) {
    let (tell, told) = mpsc::unbounded_channel();
    let handler = move |step: StepContext| -> WaitingFuture {
        let tell = tell.clone();
        Box::pin(async move {
            tell.send("began").unwrap();
            step.cancelled().cancelled().await;
            tell.send("cancelled").unwrap();
            Err(HandlerError::retryable("stopped"))
        })
    };
    (handler, told)
}

type WaitingFuture = futures::future::BoxFuture<'static, Result<Value, HandlerError>>;

async fn told(told: &mut mpsc::UnboundedReceiver<&'static str>) -> &'static str {
    timeout(PATIENCE, told.recv()).await.expect("the handler says nothing").unwrap()
}

#[tokio::test]
async fn a_step_is_done_and_its_inputs_are_seen() {
    let mut fake = Fake::start().await;
    let running = start(worker(&fake.url()).handler("look", |step: StepContext| async move {
        assert!(step.remaining() > Duration::from_secs(1));
        Ok(json!({
            "sku": step.context::<Value>()?["sku"],
            "parent": step.result::<Vec<u8>>("validate")?,
            "stranger": step.result::<Value>("nobody").unwrap_err().is_retryable(),
            "settings": step.initialization::<Value>()?,
            "trace": step.trace_id(),
            "debug": format!("{step:?}").contains("secret"),
        }))
    }));
    let (mut stream, open) = fake.opened(LONG_MS, LONG_MS).await;
    assert_eq!((open.namespace.as_str(), open.name.as_str()), ("shop", "w-1"));
    assert_eq!(open.handlers, ["echo", "look"]);
    assert_eq!(stream.credit().await, 2);
    let secret = Lease { lease_id: "secret".to_owned(), ..lease("l-1", "look") };
    stream.send(Down::Lease(secret)).await;
    let done = stream.completed().await;
    assert_eq!(done.lease_id, "secret");
    assert_eq!(
        serde_json::from_str::<Value>(&done.result).unwrap(),
        json!({
            "sku": "A1", "parent": [1, 2], "stranger": false, "settings": null,
            "trace": "0af7651916cd43dd8448eb211c80319c", "debug": false,
        })
    );
    stream.acknowledge("secret", false).await;
    running.shutdown.cancel();
    running.ended().await.unwrap();
}

#[tokio::test]
async fn credit_bounds_what_runs() {
    let mut fake = Fake::start().await;
    let most = Arc::new(AtomicUsize::new(0));
    let (now, seen) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&most));
    let running = start(worker(&fake.url()).handler("busy", move |_| {
        let (now, seen) = (Arc::clone(&now), Arc::clone(&seen));
        async move {
            seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    }));
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    let (mut credit, mut given, mut done) = (0, 0, 0);
    while done < 50 {
        while credit > 0 && given < 50 {
            stream.lease(&format!("l-{given}"), "busy").await;
            (credit, given) = (credit - 1, given + 1);
        }
        match stream.next().await {
            Up::Credit(more) => credit += more.steps,
            Up::Complete(complete) => {
                stream.acknowledge(&complete.lease_id, false).await;
                done += 1;
            }
            other => panic!("unexpected {other:?}"),
        }
        assert!(credit + given - done <= 2 + 50, "more credit than slots");
        assert!(credit <= 2, "more credit than slots: {credit}");
    }
    assert!(most.load(Ordering::SeqCst) <= 2);
    running.shutdown.cancel();
    running.ended().await.unwrap();
}

#[tokio::test]
async fn results_without_acknowledgement_hold_credit_back() {
    let mut fake = Fake::start().await;
    let running = start(worker(&fake.url()));
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    let mut credit = stream.credit().await;
    let mut sent = Vec::new();
    // Two slots, four results each: at eight no further credit may come.
    while sent.len() < 8 {
        assert!(credit > 0, "credit ended after {}", sent.len());
        credit -= 1;
        let id = format!("l-{}", sent.len());
        stream.lease(&id, "echo").await;
        loop {
            match stream.next().await {
                Up::Credit(more) => credit += more.steps,
                Up::Complete(complete) => {
                    assert_eq!(complete.lease_id, id);
                    break;
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        sent.push(id);
    }
    // The server speaks first now: an acknowledgement sets credit free.
    let before = credit;
    assert!(before < 2, "credit was given although nothing was acknowledged");
    stream.acknowledge(&sent[0], false).await;
    assert_eq!(before + stream.credit().await, 2);
    running.cut.cancel();
    running.ended().await.unwrap();
}

#[tokio::test]
async fn a_step_without_credit_ends_the_stream() {
    let mut fake = Fake::start().await;
    let (handler, mut began) = waiting();
    let running = start(worker(&fake.url()).concurrency(1).handler("wait", handler));
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    assert_eq!(stream.credit().await, 1);
    stream.lease("l-1", "wait").await;
    assert_eq!(told(&mut began).await, "began");
    stream.lease("l-2", "echo").await;
    // It comes back with what it was given rightly, and no free slot.
    let (mut again, _) = fake.opened(LONG_MS, LONG_MS).await;
    assert_eq!(again.heartbeat().await, ["l-1"]);
    again.revoke("l-1").await;
    assert_eq!(told(&mut began).await, "cancelled");
    assert_eq!(again.credit().await, 1);
    running.cut.cancel();
    running.ended().await.unwrap();
}

#[tokio::test]
async fn a_lost_connection_loses_no_result() {
    let mut fake = Fake::start().await;
    let relay = Relay::start(fake.address).await;
    let (handler, mut began) = waiting();
    let running = start(worker(&relay.url).handler("wait", handler));
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    assert_eq!(stream.credit().await, 2);
    stream.lease("l-1", "echo").await;
    stream.lease("l-2", "wait").await;
    assert_eq!(stream.completed().await.lease_id, "l-1");
    assert_eq!(told(&mut began).await, "began");
    relay.cut();

    // No acknowledgement came: it is told again, and the lease that still
    // runs is kept alive and keeps its slot.
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    let mut beats = stream.heartbeat().await;
    beats.sort();
    assert_eq!(beats, ["l-1", "l-2"]);
    assert_eq!(stream.credit().await, 1, "the running step keeps its slot");
    let again = stream.completed().await;
    assert_eq!((again.lease_id.as_str(), again.result.as_str()), ("l-1", r#"{"sku":"A1"}"#));
    stream.acknowledge("l-1", true).await;

    // The same over an orderly end of the stream, and over one by status.
    stream.end(Status::unavailable("the server goes down")).await;
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    assert_eq!(stream.heartbeat().await, ["l-2"]);
    stream.revoke("l-2").await;
    assert_eq!(told(&mut began).await, "cancelled");
    running.shutdown.cancel();
    while stream.try_next().await.is_some() {}
    running.ended().await.unwrap();
}

#[tokio::test]
async fn a_server_that_comes_late_is_waited_for() {
    let mut fake =
        Fake::refusing(vec![Status::unavailable("warming up"), Status::internal("oops")]).await;
    let running = start(worker(&fake.url()));
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    assert_eq!(stream.credit().await, 2);
    running.shutdown.cancel();
    running.ended().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_may_not_work_is_told_so() {
    let fake = Fake::refusing(vec![Status::permission_denied("work:lease is missing")]).await;
    let error = start(worker(&fake.url())).ended().await.unwrap_err();
    assert_eq!(error.code(), Some(Code::PermissionDenied));
    assert!(error.to_string().contains("work:lease"), "{error}");
}

#[tokio::test]
async fn a_refused_credential_is_tried_again_more_slowly() {
    let mut fake = Fake::refusing(vec![Status::unauthenticated("expired")]).await;
    let running = start(worker(&fake.url()));
    fake.refused().await;
    let refused_at = tokio::time::Instant::now();
    // It pauses for 15 to 30 s, then the renewed credential is accepted.
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    assert!(refused_at.elapsed() > Duration::from_secs(10));
    assert_eq!(stream.credit().await, 2);
    running.shutdown.cancel();
    running.ended().await.unwrap();
}

#[tokio::test]
async fn shutdown_is_heard_while_the_server_is_away() {
    let running = start(worker("http://127.0.0.1:1"));
    running.shutdown.cancel();
    running.ended().await.unwrap();
}

#[tokio::test]
async fn heartbeats_name_every_held_lease_and_their_answers_count() {
    let mut fake = Fake::start().await;
    let (handler, mut began) = waiting();
    let running = start(worker(&fake.url()).handler("wait", handler));
    let (mut stream, _) = fake.opened(LONG_MS, 20).await;
    stream.credit().await;
    stream.lease("l-1", "wait").await;
    stream.lease("l-2", "wait").await;
    assert_eq!(told(&mut began).await, "began");
    assert_eq!(told(&mut began).await, "began");
    let mut beats = stream.heartbeat().await;
    while beats.len() < 2 {
        beats = stream.heartbeat().await;
    }
    stream.answer("l-1", LeaseState::Held).await;
    stream.answer("l-2", LeaseState::Cancelled).await;
    assert_eq!(told(&mut began).await, "cancelled");
    // The cancelled one has no result; its slot is free again.
    assert_eq!(stream.credit().await, 1);
    while stream.heartbeat().await != ["l-1"] {}
    stream.answer("l-1", LeaseState::Lost).await;
    assert_eq!(told(&mut began).await, "cancelled");
    running.shutdown.cancel();
    running.ended().await.unwrap();
}

#[tokio::test]
async fn a_lease_that_nobody_extends_ends_here_too() {
    let mut fake = Fake::start().await;
    let (handler, mut began) = waiting();
    let running = start(worker(&fake.url()).handler("wait", handler));
    let (mut stream, _) = fake.opened(300, 50).await;
    stream.credit().await;
    stream.lease("l-1", "wait").await;
    assert_eq!(told(&mut began).await, "began");
    // The server is silent: after the lease's time the handler is stopped.
    assert_eq!(told(&mut began).await, "cancelled");
    assert_eq!(stream.credit().await, 1);
    running.shutdown.cancel();
    running.ended().await.unwrap();
}

#[tokio::test]
async fn failures_keep_their_kind_and_a_panic_is_tried_again() {
    let mut fake = Fake::start().await;
    let running = start(
        worker(&fake.url())
            .handler("busy", |_| async { Err::<(), _>(HandlerError::retryable("come back")) })
            .handler("wrong", |_| async { Err::<(), _>(HandlerError::permanent("never")) })
            .handler("panic", |_| async {
                if true { panic!("lost my {}", "keys") } else { Ok(()) }
            })
            .handler("early", |step: StepContext| {
                assert!(step.attempt() > 1, "before the first await");
                async { Ok(()) }
            })
            .handler("large", |_| async { Ok("x".repeat(2 * 1024 * 1024)) }),
    );
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    assert_eq!(stream.credit().await, 2);
    for (handler, error, retryable) in [
        ("busy", "come back", true),
        ("wrong", "never", false),
        ("panic", "the handler panicked: lost my keys", true),
        ("early", "the handler panicked: before the first await", true),
        ("large", "the result has 2097154 bytes, more than 1048576", false),
        ("unknown", "this worker has no handler `unknown`", true),
    ] {
        // The credit of each comes before its result: there is always some.
        stream.lease(handler, handler).await;
        let fail = stream.failed().await;
        assert_eq!((fail.error.as_str(), fail.retryable), (error, Some(retryable)), "{handler}");
        stream.acknowledge(handler, false).await;
    }
    running.shutdown.cancel();
    running.ended().await.unwrap();
}

#[tokio::test]
async fn a_timed_out_handler_is_stopped_and_reported() {
    let mut fake = Fake::start().await;
    let running = start(
        worker(&fake.url()).handler("deaf", |_| std::future::pending::<Result<(), HandlerError>>()),
    );
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    stream.credit().await;
    let soon = std::time::SystemTime::now() + Duration::from_millis(200);
    let mut short = lease("l-1", "deaf");
    (short.deadline, short.timeout_at) = (Some(soon.into()), Some(soon.into()));
    stream.send(Down::Lease(short)).await;
    let fail = stream.failed().await;
    assert!(fail.error.contains("timed out and did not stop"), "{}", fail.error);
    assert_eq!(fail.retryable, Some(true));
    stream.acknowledge("l-1", false).await;
    running.shutdown.cancel();
    running.ended().await.unwrap();
}

#[tokio::test]
async fn a_refused_result_is_told_again_turned_or_dropped() {
    let mut fake = Fake::start().await;
    let running = start(worker(&fake.url()));
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    stream.credit().await;

    // The server's trouble: the same completion comes again.
    stream.lease("l-1", "echo").await;
    let first = stream.completed().await;
    stream.refuse("l-1", Code::Unavailable, "STORAGE_UNAVAILABLE").await;
    assert_eq!(stream.completed().await, first);
    stream.acknowledge("l-1", false).await;

    // The result's own fault: the step ends with a reason.
    stream.lease("l-2", "echo").await;
    stream.completed().await;
    stream.refuse("l-2", Code::InvalidArgument, "PAYLOAD_INVALID").await;
    let fail = stream.failed().await;
    assert_eq!((fail.lease_id.as_str(), fail.retryable), ("l-2", Some(false)));
    assert!(fail.error.contains("PAYLOAD_INVALID"), "{}", fail.error);
    stream.acknowledge("l-2", false).await;

    // The lease is dead: nothing more is said, and nothing is left to drain.
    stream.lease("l-3", "echo").await;
    stream.completed().await;
    stream.refuse("l-3", Code::FailedPrecondition, "LEASE_LOST").await;
    running.shutdown.cancel();
    while let Some(message) = stream.try_next().await {
        assert!(matches!(message, Up::Credit(_)), "{message:?}");
    }
    running.ended().await.unwrap();
}

#[tokio::test]
async fn shutdown_drains() {
    let mut fake = Fake::start().await;
    let (finish, finished) = tokio::sync::watch::channel(false);
    let running = start(worker(&fake.url()).handler("slow", move |_| {
        let mut finished = finished.clone();
        async move {
            finished.wait_for(|finished| *finished).await?;
            Ok("slowly done")
        }
    }));
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    assert_eq!(stream.credit().await, 2);
    stream.lease("l-1", "slow").await;
    running.shutdown.cancel();
    assert_eq!(stream.credit().await, 0, "all credit is taken back");
    // This one crossed the farewell: it is done, not lost.
    stream.lease("l-2", "echo").await;
    assert_eq!(stream.completed().await.lease_id, "l-2");
    stream.acknowledge("l-2", false).await;
    finish.send(true).unwrap();
    assert_eq!(stream.completed().await.result, r#""slowly done""#);
    assert!(!running.task.is_finished(), "it waits for the acknowledgement");
    stream.acknowledge("l-1", false).await;
    assert!(stream.try_next().await.is_none(), "nothing follows");
    running.ended().await.unwrap();
}

#[tokio::test]
async fn after_the_grace_handlers_are_stopped_and_told() {
    let mut fake = Fake::start().await;
    let (handler, mut began) = waiting();
    let running =
        start(worker(&fake.url()).handler("wait", handler).drain_grace(Duration::from_millis(50)));
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    stream.credit().await;
    stream.lease("l-1", "wait").await;
    assert_eq!(told(&mut began).await, "began");
    running.shutdown.cancel();
    let fail = stream.failed().await;
    assert_eq!((fail.error.as_str(), fail.retryable), ("stopped", Some(true)));
    stream.acknowledge("l-1", false).await;
    running.ended().await.unwrap();
}

#[tokio::test]
async fn a_cut_ends_at_once_and_drops_handlers() {
    let mut fake = Fake::start().await;
    let (dropped, was_dropped) = tokio::sync::oneshot::channel::<()>();
    let guard = std::sync::Mutex::new(Some(dropped));
    let (began, mut has_begun) = mpsc::unbounded_channel();
    let running = start(worker(&fake.url()).handler("deaf", move |_| {
        let guard = guard.lock().unwrap().take();
        began.send("began").unwrap();
        async move {
            let _guard = guard;
            std::future::pending::<Result<(), HandlerError>>().await
        }
    }));
    let (mut stream, _) = fake.opened(LONG_MS, LONG_MS).await;
    stream.credit().await;
    stream.lease("l-1", "deaf").await;
    assert_eq!(told(&mut has_begun).await, "began");
    running.shutdown.cancel();
    assert_eq!(stream.credit().await, 0);
    running.cut.cancel();
    running.ended().await.unwrap();
    timeout(PATIENCE, was_dropped).await.expect("the handler lives on").unwrap_err();
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_before_the_start() {
    let client = || Client::builder("http://127.0.0.1:1").connect_lazy().unwrap();
    let nothing = |_: StepContext| async { Ok(()) };
    let base = || Worker::builder(client()).namespace("shop").name("w").handler("a", nothing);
    for (builder, expected) in [
        (base().namespace(""), "namespace"),
        (base().name(""), "name"),
        (Worker::builder(client()).namespace("shop").name("w"), "at least one handler"),
        (base().handler("a", nothing), "twice"),
        (base().handler("", nothing), "needs a name"),
        (base().concurrency(0), "concurrency"),
        (base().concurrency(1_001), "concurrency"),
    ] {
        let error = builder.build().unwrap_err();
        assert!(matches!(error, Error::Setting(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(base().build().is_ok());
}
