//! The server is killed fifty times in the middle of many tasks. The test
//! keeps its own ledger of what it was told, and compares it with what is
//! there in the end: nothing acknowledged is lost, nothing is done twice.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bailiwick::pb::v1::{
    self as pb, stream_work_request::Message as Up, stream_work_response::Message as Down,
};
use bailiwick_client::{Error, HandlerError, StepContext, Worker};
use futures::{StreamExt as _, stream};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rusqlite::Connection;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::harness::{
    Api, PATIENCE, Server, Setup,
    api::{self, NAMESPACE},
};

const KILLS: u32 = 50;
const SEED: u64 = 20_260_301;
/// The shortest: orphaned leases end this long after the last start.
const LEASE_SECONDS: u32 = 5;
/// Rounds long enough for leases that a kill orphaned to end in them.
const LONG_ROUNDS: [u32; 2] = [16, 33];
const CREATORS: usize = 4;
const POLLERS: usize = 3;
const STREAMS: usize = 2;
const HANDLERS: [&str; 5] = ["top", "left", "right", "bottom", "only"];
/// Before a call that found no server is made again.
const PAUSE: Duration = Duration::from_millis(20);
const RETRY: &str = "retry: {max_attempts: 100, backoff: fixed, backoff_base_ms: 20}";

/// What was seen and acknowledged.
#[derive(Debug, Default)]
struct Ledger {
    /// Tasks by idempotency key.
    created: BTreeMap<String, String>,
    /// What leases said of their parents, by step and attempt.
    leased: HashMap<(String, u32), HashMap<String, String>>,
    /// Results that workers gave, acknowledged or not.
    given: HashSet<String>,
    /// Acknowledged results by step, and whether they had been taken before.
    completed: HashMap<String, Vec<(String, bool)>>,
    /// Acknowledged failures by step and attempt.
    failed: BTreeSet<(String, u32)>,
    /// Results that were refused for good, by step.
    refused: Vec<(String, String)>,
    /// By which way results were given.
    ways: BTreeMap<&'static str, usize>,
    /// Calls that a kill cut off.
    cut: usize,
    /// What must not have happened.
    faults: Vec<String>,
}

/// The ledger, the calls and how they end, for one of the load's parts.
#[derive(Clone, Debug)]
struct Part {
    api: Api,
    ledger: Arc<Mutex<Ledger>>,
    stop: CancellationToken,
}

/// What a worker tells of an attempt.
#[derive(Clone, Debug)]
enum Outcome {
    Complete(String),
    Fail,
}

impl Outcome {
    /// A fifth of all attempts fails; a result is told apart from any other.
    fn of(lease: &pb::Lease, way: &str) -> Self {
        let sum: u32 = lease.step_uuid.bytes().map(u32::from).sum();
        if (sum + lease.attempt).is_multiple_of(5) {
            return Self::Fail;
        }
        Self::Complete(format!("\"{way} {} {}\"", lease.step_uuid, lease.attempt))
    }
}

impl Ledger {
    fn take_lease(&mut self, lease: &pb::Lease, way: &'static str, outcome: &Outcome) {
        let attempt = (lease.step_uuid.clone(), lease.attempt);
        if self.leased.insert(attempt, lease.results.clone()).is_some() {
            self.faults.push(format!("given twice: {} of {}", lease.attempt, lease.step_uuid));
        }
        *self.ways.entry(way).or_default() += 1;
        if let Outcome::Complete(result) = outcome {
            self.given.insert(result.clone());
        }
    }

    fn acknowledge(&mut self, lease: &pb::Lease, outcome: Outcome, already: bool) {
        let step = lease.step_uuid.clone();
        match outcome {
            Outcome::Complete(result) => {
                self.completed.entry(step).or_default().push((result, already));
            }
            Outcome::Fail => {
                self.failed.insert((step, lease.attempt));
            }
        }
    }

    fn refuse(&mut self, lease: &pb::Lease, outcome: Outcome, reason: &str) {
        if reason != "LEASE_LOST" {
            self.faults.push(format!("a result was refused with {reason}"));
        }
        if let Outcome::Complete(result) = outcome {
            self.refused.push((lease.step_uuid.clone(), result));
        }
    }
}

impl Part {
    fn ledger<T>(&self, write: impl FnOnce(&mut Ledger) -> T) -> T {
        write(&mut self.ledger.lock().unwrap())
    }

    /// A call that a kill cut off may be made again; anything else is a fault.
    async fn cut_off(&self, error: &Error) {
        let away =
            matches!(error, Error::Unreachable { .. }) || error.code() == Some(Code::Unavailable);
        self.ledger(|ledger| {
            ledger.cut += 1;
            if !away {
                ledger.faults.push(format!("{error:?}"));
            }
        });
        sleep(PAUSE).await;
    }

    /// Creates tasks one after the other, each until it is acknowledged.
    async fn create(self, creator: usize) {
        for number in 0.. {
            if self.stop.is_cancelled() {
                return;
            }
            let key = format!("{creator}-{number}");
            let name = if number % 2 == 0 { "diamond" } else { "single" };
            let request = pb::CreateTaskRequest {
                context: format!("{{\"key\": \"{key}\"}}"),
                idempotency_key: Some(key.clone()),
                priority: number % 3,
                ..api::request(name)
            };
            let task = self.create_one(request.clone()).await;
            if number % 10 == 0 {
                let again = self.create_one(request).await;
                assert_eq!(again, task, "the same key is the same task");
            }
            self.ledger(|ledger| ledger.created.insert(key, task));
            sleep(Duration::from_millis(40)).await;
        }
    }

    async fn create_one(&self, request: pb::CreateTaskRequest) -> String {
        loop {
            match self.api.try_create(request.clone()).await {
                Ok(task) => return task.task_uuid,
                Err(error) => self.cut_off(&error).await,
            }
        }
    }

    /// Works by unary calls.
    async fn poll(self) {
        while !self.stop.is_cancelled() {
            let wait = Duration::from_millis(200);
            match self.api.try_lease(&HANDLERS, 2, wait).await {
                Ok(leases) => {
                    let works = leases.into_iter().map(|lease| self.work(lease));
                    futures::future::join_all(works).await;
                }
                Err(error) => self.cut_off(&error).await,
            }
        }
    }

    async fn work(&self, lease: pb::Lease) {
        let outcome = Outcome::of(&lease, "poll");
        self.ledger(|ledger| ledger.take_lease(&lease, "poll", &outcome));
        spend().await;
        loop {
            let told = match &outcome {
                Outcome::Complete(result) => self.api.try_complete(&lease, result).await,
                Outcome::Fail => {
                    let failed = self.api.try_fail(&lease, "on purpose", true).await;
                    failed.map(|answer| answer.already)
                }
            };
            match told {
                Ok(already) => {
                    return self.ledger(|ledger| ledger.acknowledge(&lease, outcome, already));
                }
                Err(Error::Refused(refusal)) if refusal.code == Code::FailedPrecondition => {
                    let reason = refusal.reason.unwrap();
                    return self.ledger(|ledger| ledger.refuse(&lease, outcome, &reason));
                }
                Err(error) => self.cut_off(&error).await,
            }
        }
    }

    /// Works over streams, one after the other.
    async fn stream(self, name: String) {
        let mut untold = HashMap::new();
        while !self.stop.is_cancelled() {
            if let Err(status) = self.one_stream(&name, &mut untold).await {
                self.cut_off(&status.into()).await;
            }
        }
    }

    /// `untold` holds what was done and not acknowledged, by lease.
    async fn one_stream(
        &self,
        name: &str,
        untold: &mut HashMap<String, (pb::Lease, Outcome)>,
    ) -> Result<(), tonic::Status> {
        let (up, messages) = mpsc::channel(64);
        let send = async |message| {
            // When nobody takes it any more, the other direction says why.
            let _ = up.send(pb::StreamWorkRequest { message: Some(message) }).await;
        };
        send(Up::Open(pb::WorkOpen {
            namespace: NAMESPACE.into(),
            name: name.to_owned(),
            handlers: HANDLERS.map(str::to_owned).to_vec(),
            version: None,
        }))
        .await;
        let messages = ReceiverStream::new(messages);
        let mut down = self.api.client.workers().stream_work(messages).await?.into_inner();
        for (lease, outcome) in untold.values() {
            send(report(lease, outcome)).await;
        }
        send(Up::Credit(pb::WorkCredit { steps: 4 })).await;
        loop {
            let received = tokio::select! {
                received = down.message() => received?,
                () = self.stop.cancelled() => return Ok(()),
            };
            let Some(pb::StreamWorkResponse { message: Some(message) }) = received else {
                return Ok(());
            };
            match message {
                Down::Lease(lease) => {
                    let outcome = Outcome::of(&lease, "stream");
                    self.ledger(|ledger| ledger.take_lease(&lease, "stream", &outcome));
                    spend().await;
                    send(report(&lease, &outcome)).await;
                    untold.insert(lease.lease_id.clone(), (lease, outcome));
                    send(Up::Credit(pb::WorkCredit { steps: 1 })).await;
                }
                Down::Result(result) => {
                    let Some((lease, outcome)) = untold.remove(&result.lease_id) else { continue };
                    self.ledger(|ledger| match &result.refusal {
                        None => ledger.acknowledge(&lease, outcome, result.already),
                        Some(refusal) => ledger.refuse(&lease, outcome, &refusal.reason),
                    });
                }
                Down::Opened(_) | Down::Heartbeat(_) | Down::Revoked(_) => {}
            }
        }
    }

    /// Works with the library's worker, which reconnects by itself.
    async fn library(self, name: String) {
        let mut worker = Worker::builder(self.api.client.clone()).namespace(NAMESPACE).name(name);
        for handler in HANDLERS {
            let part = self.clone();
            worker = worker.handler(handler, move |step: StepContext| {
                let part = part.clone();
                async move {
                    let outcome = Outcome::of(step.lease(), "library");
                    part.ledger(|ledger| ledger.take_lease(step.lease(), "library", &outcome));
                    spend().await;
                    match outcome {
                        Outcome::Complete(result) => Ok(serde_json::from_str::<String>(&result)?),
                        Outcome::Fail => Err(HandlerError::retryable("on purpose")),
                    }
                }
            });
        }
        let worker = worker.concurrency(3).build().unwrap();
        worker.run(self.stop.clone()).await.unwrap();
    }
}

fn report(lease: &pb::Lease, outcome: &Outcome) -> Up {
    let lease_id = lease.lease_id.clone();
    match outcome {
        Outcome::Complete(result) => {
            Up::Complete(pb::CompleteStepRequest { lease_id, result: result.clone() })
        }
        Outcome::Fail => {
            Up::Fail(pb::FailStepRequest { lease_id, error: "on purpose".into(), retryable: None })
        }
    }
}

/// As long as a piece of work takes.
async fn spend() {
    sleep(Duration::from_millis(rand::random_range(0..8))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_lose_nothing_and_do_nothing_twice() {
    let mut setup = Setup::steady().lease_seconds(LEASE_SECONDS);
    // Debug lines of so many calls would only cost time.
    let quiet = ("BAILIWICK__TELEMETRY__LOG_LEVEL".to_owned(), "info".to_owned());
    setup.environment.push(quiet);
    let mut server = Server::with(setup).await;
    let part = |api| Part { api, ledger: Arc::default(), stop: CancellationToken::new() };
    let root = part(Api::root(&server).await);
    register(&root.api).await;

    let creating = Part { stop: CancellationToken::new(), ..root.clone() };
    let (mut creators, mut workers) = (JoinSet::new(), JoinSet::new());
    for creator in 0..CREATORS {
        creators.spawn(creating.clone().create(creator));
    }
    for _ in 0..POLLERS {
        workers.spawn(Part { api: Api::root(&server).await, ..root.clone() }.poll());
    }
    for number in 0..STREAMS {
        let part = Part { api: Api::root(&server).await, ..root.clone() };
        workers.spawn(part.stream(format!("stream-{number}")));
    }

    let mut random = StdRng::seed_from_u64(SEED);
    let mut library = None;
    for kill in 0..KILLS {
        // A worker that is cut off so often waits longer and longer; every
        // few rounds another one takes its place while it drains.
        if kill % 5 == 0 {
            let stop = root.stop.child_token();
            let part = Part { api: Api::root(&server).await, stop: stop.clone(), ..root.clone() };
            workers.spawn(part.library(format!("library-{kill}")));
            let before = library.replace(stop);
            before.iter().for_each(CancellationToken::cancel);
        }
        let round = if LONG_ROUNDS.contains(&kill) {
            Duration::from_secs(u64::from(LEASE_SECONDS) + 1)
        } else {
            Duration::from_millis(random.random_range(20..400))
        };
        sleep(round).await;
        assert_calm(&server);
        server = server.again().await;
    }

    creating.stop.cancel();
    while let Some(done) = creators.join_next().await {
        done.unwrap();
    }
    drain(&root.api).await;
    root.stop.cancel();
    while let Some(done) = workers.join_next().await {
        done.unwrap();
    }
    let ledger = std::mem::take(&mut *root.ledger.lock().unwrap());
    compare(&root.api, &ledger).await;
    assert_calm(&server);

    server.process.terminate();
    assert_eq!(server.process.exit().await, Some(0));
    assert_sound(&server);
}

async fn register(api: &Api) {
    let retried = |definition: &str| definition.replace("}\n", &format!("}}\n    {RETRY}\n"));
    api.register(&retried(api::DIAMOND)).await;
    let single = api::yaml("single", "  - name: only\n    handler: {callable: only}\n");
    api.register(&retried(&single)).await;
}

fn assert_calm(server: &Server) {
    for line in server.process.err.all() {
        assert!(!line.contains("panicked") && !line.contains("\"ERROR\""), "{line}");
    }
}

/// Waits until no task is open.
async fn drain(api: &Api) {
    let open = [pb::TaskState::Pending, pb::TaskState::InProgress, pb::TaskState::WaitingForRetry];
    let drained = async {
        loop {
            let filter = pb::ListTasksRequest {
                state: open.map(i32::from).to_vec(),
                page_size: 1,
                ..Default::default()
            };
            let page = api.client.tasks().list_tasks(filter).await.unwrap().into_inner();
            if page.tasks.is_empty() {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, drained).await.expect("all tasks end");
}

async fn compare(api: &Api, ledger: &Ledger) {
    assert!(ledger.faults.is_empty(), "{:#?}", ledger.faults);
    let tasks = api.list(pb::ListTasksRequest { page_size: 500, ..Default::default() }).await;
    // The storm must have been one.
    assert!(tasks.len() >= 200, "only {} tasks", tasks.len());
    assert!(ledger.cut >= usize::try_from(KILLS).unwrap(), "only {} calls cut", ledger.cut);
    for way in ["poll", "stream", "library"] {
        assert!(ledger.ways.get(way).is_some_and(|&leases| leases >= 50), "{:?}", ledger.ways);
    }

    let there: BTreeSet<&String> = tasks.iter().map(|task| &task.task_uuid).collect();
    let acknowledged: BTreeSet<&String> = ledger.created.values().collect();
    assert_eq!(there, acknowledged, "one task for each acknowledged key, and no other");
    assert_eq!(acknowledged.len(), ledger.created.len(), "one key, one task");
    for task in &tasks {
        assert_eq!(task.state(), pb::TaskState::Complete, "{task:?}");
    }

    let results: HashMap<String, String> = stream::iter(&tasks)
        .map(|task| compare_task(api, ledger, &task.task_uuid))
        .buffer_unordered(8)
        .flat_map(stream::iter)
        .collect()
        .await;
    for (step, told) in &ledger.completed {
        let first = told.iter().filter(|(_, already)| !already).count();
        assert!(first <= 1, "{step} was completed twice: {told:?}");
        for (result, _) in told {
            assert_eq!(Some(result), results.get(step), "an acknowledged result is the result");
        }
    }
    for (step, result) in &ledger.refused {
        assert_ne!(Some(result), results.get(step), "a refused result is not the result");
    }
    let already = ledger.completed.values().flatten().filter(|(_, already)| *already).count();
    #[expect(clippy::print_stderr, reason = "says how hard the storm was")]
    let () = eprintln!(
        "{} tasks, {} leases {:?}, {} results acknowledged ({already} of them before the kill), \
         {} refused, {} calls cut off",
        tasks.len(),
        ledger.leased.len(),
        ledger.ways,
        ledger.completed.len(),
        ledger.refused.len(),
        ledger.cut
    );
}

/// Compares one task; answers its steps' results.
async fn compare_task(api: &Api, ledger: &Ledger, task: &str) -> Vec<(String, String)> {
    let steps = api.steps(task).await;
    let by_name: HashMap<&str, &pb::Step> =
        steps.iter().map(|step| (step.name.as_str(), step)).collect();
    for step in &steps {
        assert_eq!(step.state(), pb::StepState::Complete, "{step:?}");
        assert!(ledger.given.contains(step.result()), "nobody gave {step:?}");
        let history = api.audit(task, &step.step_uuid).await;
        let of = |cause: &str| -> Vec<u32> {
            let entries = history.iter().filter(|entry| entry.cause == cause);
            entries.map(|entry| entry.attempt).collect()
        };
        let completed = of("completed");
        assert_eq!(completed.len(), 1, "completed once: {history:#?}");
        assert!(step.result().ends_with(&format!(" {}\"", completed[0])), "{step:?}");
        let leased = of("leased");
        assert!(leased.is_sorted_by(|a, b| a < b), "attempts only grow: {history:#?}");
        let failed = of("failed");
        for attempt in 1..=step.attempts {
            let key = (step.step_uuid.clone(), attempt);
            let Some(inputs) = ledger.leased.get(&key) else { continue };
            assert!(leased.contains(&attempt), "a lease without history: {key:?}");
            assert!(!ledger.failed.contains(&key) || failed.contains(&attempt), "{key:?}");
            let parents: HashMap<String, String> = step
                .depends_on
                .iter()
                .map(|name| (name.clone(), by_name[name.as_str()].result().to_owned()))
                .collect();
            assert_eq!(inputs, &parents, "a lease bears its parents' results");
        }
        let seen = ledger.leased.keys().filter(|(id, _)| *id == step.step_uuid);
        assert!(seen.map(|(_, attempt)| *attempt).max() <= Some(step.attempts));
    }
    steps.iter().map(|step| (step.step_uuid.clone(), step.result().to_owned())).collect()
}

/// The file is whole, and no row points at nothing.
fn assert_sound(server: &Server) {
    let conn = Connection::open(server.path("data/bailiwick.db")).unwrap();
    let verdict: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let mut orphans = conn.prepare("PRAGMA foreign_key_check").unwrap();
    assert!(!orphans.exists([]).unwrap(), "a row points at nothing");
}
