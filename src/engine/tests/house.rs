//! A house for tests: the engine over its own folder, and its callers.

use crate::domain::audit::Origin;
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    authz::{self, Claim, Permit},
    domain::{
        Area, Clock, Json, Namespace, PermissionSet, RequestId, Scope, StepId, TaskId, Timestamp,
        permission::Right,
        principal::{Grant, Identity, Principal, Source},
        task::{StepState, Task, TaskState},
    },
    engine::{
        Engine, Error, Floor, PageRequest, loops,
        steps::{self, Action, History, Resolution},
        tasks::{self, NewTask},
        templates,
        work::{self, Failure, LeaseRequest, Taken},
    },
    storage::{
        Desk, Effects, Heartbeat, LeaseTerms, Leased, Seat, Step,
        sqlite::{Settings, Sqlite},
    },
};

/// One step.
pub(super) const ONE: &str = "\
name: one
namespace_name: shop
version: 1.0.0
steps:
  - name: work
    handler: {callable: work}
";

/// One step with two attempts.
pub(super) const RETRIED: &str = "\
name: retried
namespace_name: shop
version: 1.0.0
steps:
  - name: work
    handler: {callable: work}
    retry: {max_attempts: 2, backoff: fixed, backoff_base_ms: 1000}
";

/// Four steps.
pub(super) const DIAMOND: &str = "\
name: diamond
namespace_name: shop
version: 1.0.0
steps:
  - name: top
    handler: {callable: top}
  - name: left
    handler: {callable: left}
    dependencies: [top]
  - name: right
    handler: {callable: right}
    dependencies: [top]
  - name: bottom
    handler: {callable: bottom}
    dependencies: [left, right]
";

/// A template of the namespace `shop` with these steps.
pub(super) fn yaml(name: &str, steps: &str) -> String {
    format!("name: {name}\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n{steps}")
}

/// A clock that moves when a test says so.
#[derive(Debug)]
struct Hands(AtomicI64);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

/// The floor, with a ledger of what it was told to count.
#[derive(Debug)]
pub(super) struct Ledger {
    floor: Arc<Floor>,
    pub(super) finished: Mutex<Vec<TaskState>>,
    pub(super) expired: AtomicUsize,
}

impl Desk for Ledger {
    fn take(&self, namespace: &Namespace, handler: &str) -> Option<Seat> {
        self.floor.take(namespace, handler)
    }

    fn give_back(&self, seat: Seat) {
        self.floor.give_back(seat);
    }

    fn committed(&self, effects: Effects) {
        self.finished.lock().unwrap().extend(&effects.finished);
        self.expired.fetch_add(effects.expired, Ordering::SeqCst);
        self.floor.committed(effects);
    }
}

pub(super) struct House {
    pub(super) ledger: Arc<Ledger>,
    pub(super) engine: Arc<Engine>,
    pub(super) floor: Arc<Floor>,
    hands: Arc<Hands>,
    _folder: TempDir,
}

impl House {
    pub(super) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hands = Arc::new(Hands(AtomicI64::new(1_700_000_000_000_000)));
        let floor = Floor::new();
        let clock: Arc<dyn Clock> = Arc::<Hands>::clone(&hands);
        let terms = LeaseTerms::default();
        let settings = Settings::new(folder.path().join("data/bailiwick.db")).with_terms(terms);
        let ledger = Arc::new(Ledger {
            floor: Arc::clone(&floor),
            finished: Mutex::default(),
            expired: AtomicUsize::new(0),
        });
        let desk: Arc<dyn Desk> = Arc::<Ledger>::clone(&ledger);
        let store = Sqlite::open(settings, desk, Arc::clone(&clock)).await.unwrap();
        let engine = Engine::new(store, Arc::clone(&floor), clock, terms);
        Self { ledger, engine, floor, hands, _folder: folder }
    }

    pub(super) async fn with(definition: &str) -> Self {
        let house = Self::new().await;
        house.register(definition).await.unwrap();
        house
    }

    /// Time passes.
    pub(super) fn turn(&self, time: Duration) {
        let micros = i64::try_from(time.as_micros()).unwrap();
        self.hands.0.fetch_add(micros, Ordering::SeqCst);
    }

    /// Time passes, and the timer does what is due.
    pub(super) async fn pass(&self, time: Duration) {
        self.turn(time);
        loops::expire_once(&self.engine).await.unwrap();
    }

    /// Leases that reached nobody go back, as the loop would do.
    pub(super) async fn give_back(&self) {
        loops::give_back_once(&self.engine).await.unwrap();
    }

    pub(super) fn claim<R: Right>(&self, scope: &str) -> Claim<R> {
        self.claim_as("worker", scope)
    }

    #[expect(clippy::unused_self, reason = "reads as what the house offers")]
    pub(super) fn claim_as<R: Right>(&self, subject: &str, scope: &str) -> Claim<R> {
        let mut permissions = PermissionSet::empty();
        assert!(permissions.add(R::PERMISSION.name(), &BTreeSet::new()));
        let identity =
            Identity { source: Source::Idp, issuer: "test".into(), subject: subject.into() };
        let scope = Scope::parse(&[scope]).unwrap();
        let principal = Principal {
            identity,
            grants: vec![Grant { permissions, scope }],
            ..Principal::auth_off()
        };
        authz::claim(&Arc::new(Origin::new(
            Arc::new(principal),
            "test".into(),
            RequestId::from_random([7; 16]),
        )))
        .unwrap()
    }

    pub(super) fn permit<R: Right>(&self, namespace: &str) -> Permit<R> {
        self.claim(namespace).permit(&Namespace::parse(namespace).unwrap()).unwrap()
    }

    pub(super) async fn register(
        &self,
        definition: &str,
    ) -> Result<templates::Registration, Error> {
        self.register_in("shop", definition).await
    }

    pub(super) async fn register_in(
        &self,
        namespace: &str,
        definition: &str,
    ) -> Result<templates::Registration, Error> {
        templates::register(&self.engine, &self.permit(namespace), definition.to_owned()).await
    }

    #[expect(clippy::unused_self, reason = "reads as what the house offers")]
    pub(super) fn new_task(&self, name: &str, context: &str) -> NewTask {
        NewTask { name: name.to_owned(), context: context.to_owned(), ..NewTask::default() }
    }

    pub(super) async fn try_create(&self, task: NewTask) -> Result<Task, Error> {
        self.create_in("shop", task).await
    }

    pub(super) async fn create_in(&self, namespace: &str, task: NewTask) -> Result<Task, Error> {
        tasks::create(&self.engine, &self.permit(namespace), task).await
    }

    pub(super) async fn create(&self, name: &str, context: &str) -> Task {
        self.try_create(self.new_task(name, context)).await.unwrap()
    }

    pub(super) async fn task(&self, id: TaskId) -> Task {
        tasks::get(&self.engine, &self.claim("shop"), id).await.unwrap()
    }

    pub(super) async fn cancel(&self, id: TaskId) -> Result<Task, Error> {
        let reason = Some("enough".to_owned());
        tasks::cancel(&self.engine, &self.claim("shop"), id, reason).await
    }

    pub(super) async fn steps(&self, id: TaskId) -> Vec<Step> {
        let request = PageRequest::default();
        steps::list(&self.engine, &self.claim("shop"), id, &request).await.unwrap().items
    }

    pub(super) async fn resolve(
        &self,
        id: TaskId,
        step: StepId,
        action: Action,
    ) -> Result<Step, Error> {
        let resolution = Resolution { step, action, reason: "because".to_owned() };
        steps::resolve(&self.engine, &self.claim("shop"), id, resolution).await
    }

    pub(super) async fn history(&self, id: TaskId, step: StepId) -> History {
        steps::history(&self.engine, &self.claim("shop"), id, step).await.unwrap()
    }

    /// What is ready now for a handler, one step at most.
    pub(super) async fn lease(&self, handler: &str) -> Vec<Leased> {
        self.lease_waiting(handler, Duration::ZERO).await.unwrap()
    }

    pub(super) async fn lease_waiting(
        &self,
        handler: &str,
        wait: Duration,
    ) -> Result<Vec<Leased>, Error> {
        let request = LeaseRequest {
            handlers: vec![handler.to_owned()],
            max_leases: 1,
            wait,
            worker: Some("w".to_owned()),
        };
        work::lease(&self.engine, &self.claim("shop"), area("shop"), request).await
    }

    pub(super) async fn lease_one(&self, handler: &str) -> Leased {
        let mut leases = self.lease(handler).await;
        assert_eq!(leases.len(), 1, "a step for {handler}");
        leases.remove(0)
    }

    pub(super) async fn try_complete(&self, lease: &Leased, result: &str) -> Result<Taken, Error> {
        work::complete(&self.engine, &self.claim("shop"), lease.id, result).await
    }

    pub(super) async fn complete(&self, lease: &Leased, result: &str) {
        let taken = self.try_complete(lease, result).await.unwrap();
        assert_eq!((taken.already, taken.state), (false, StepState::Complete));
    }

    pub(super) async fn fail(&self, lease: &Leased, error: &str, retryable: bool) -> StepState {
        let failure = Failure { error: error.to_owned(), retryable };
        work::fail(&self.engine, &self.claim("shop"), lease.id, failure).await.unwrap().state
    }

    pub(super) async fn heartbeat(&self, lease: &Leased) -> Result<Heartbeat, Error> {
        work::heartbeat(&self.engine, &self.claim("shop"), lease.id).await
    }

    /// Waits until so many seats wait.
    pub(super) async fn seated(&self, seats: usize) {
        within(async {
            while self.floor.figures().1 != seats {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

pub(super) fn area(text: &str) -> Area {
    Area::parse(text).unwrap()
}

/// Fails rather than hangs; the bound says nothing about speed.
pub(super) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
}

pub(super) fn json(results: &[(Arc<str>, Json)]) -> Vec<(&str, &str)> {
    results.iter().map(|(name, json)| (name.as_ref(), json.as_str())).collect()
}

pub(super) fn error_of<T: std::fmt::Debug>(result: Result<T, String>) -> String {
    result.expect_err("it is refused")
}
