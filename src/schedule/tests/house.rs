//! A house for tests: the scheduler over its own folder, a clock that tests
//! hold, owners whose credentials tests take away, and runners that tests
//! hold up.

use crate::domain::audit::Origin;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    authz::{self, Claim, Standing},
    domain::{
        Clock, Namespace, PermissionSet, RequestId, Scope, Timestamp,
        permission::{Right, right::SchedulesWrite},
        principal::{Grant, GrantRef, Identity, Principal, Source},
        schedule::{HttpMethod, Identifier, Job, JobStatus, Nanos, Run, RunOutcome, Runner},
        task::{RetryPolicy, Task},
    },
    engine::{self, Engine, Floor, TaskFilter},
    schedule::{
        Error, PageRequest, Scheduler, Settings, Tools, When, firing,
        jobs::{self, Plan},
        rules::{self, NewRule},
        runners::{Ended, Firing},
    },
    storage::{
        LeaseTerms, Store,
        sqlite::{self, Sqlite},
    },
};

/// When the tests begin, in whole seconds.
pub(super) const START: i64 = 1_700_000_000;

const TEMPLATE: &str = "\
name: one
namespace_name: shop
version: 1.0.0
steps:
  - name: work
    handler: {callable: work}
";

/// A clock that moves when a test says so.
#[derive(Debug)]
struct Hands(AtomicI64);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

/// Who stands behind rules, by the id of their credentials.
#[derive(Debug, Default)]
pub(super) struct Owners(Mutex<HashMap<Arc<str>, Arc<Principal>>>);

impl Owners {
    pub(super) fn put(&self, principal: &Arc<Principal>) {
        let id = Arc::clone(&principal.credential_id);
        self.0.lock().unwrap().insert(id, Arc::clone(principal));
    }

    pub(super) fn revoke(&self, credential: &str) {
        self.0.lock().unwrap().remove(credential);
    }
}

impl Standing for Owners {
    fn standing(&self, grant: &GrantRef, now: Timestamp) -> Option<Arc<Principal>> {
        if grant.until.is_some_and(|until| until <= now) {
            return None;
        }
        self.0.lock().unwrap().get(&grant.credential_id).cloned()
    }
}

/// A caller of these rights.
pub(super) fn caller(credential: &str, rights: &[&str], scope: &str) -> Arc<Principal> {
    let mut permissions = PermissionSet::empty();
    for right in rights {
        assert!(permissions.add(right, &BTreeSet::new()), "{right}");
    }
    let scope = Scope::parse(&[scope]).unwrap();
    Arc::new(Principal {
        identity: Identity {
            source: Source::Database,
            issuer: "".into(),
            subject: credential.into(),
        },
        grants: vec![Grant { permissions, scope }],
        credential_id: credential.into(),
        ..Principal::auth_off()
    })
}

pub(super) const OWNER: &[&str] = &["rules:*", "schedules:*", "tasks:*", "commands:execute"];

pub(super) fn id(text: &str) -> Identifier {
    Identifier::parse(text).unwrap()
}

pub(super) fn claim<R: Right>(principal: &Arc<Principal>) -> Claim<R> {
    authz::claim(&Arc::new(Origin::new(
        Arc::clone(principal),
        "test".into(),
        RequestId::from_random([7; 16]),
    )))
    .unwrap()
}

pub(super) fn task_runner() -> Runner {
    Runner::Task {
        namespace: Namespace::parse("shop").unwrap(),
        template: "one".into(),
        version: None,
    }
}

/// What the house's own runner does, when a test has put one.
pub(super) fn probe_runner() -> Runner {
    Runner::Http { method: HttpMethod::Get, url: "http://probe.example/".into() }
}

pub(super) struct House {
    pub(super) scheduler: Arc<Scheduler>,
    pub(super) engine: Arc<Engine>,
    pub(super) store: Arc<dyn Store>,
    pub(super) owners: Arc<Owners>,
    pub(super) owner: Arc<Principal>,
    hands: Arc<Hands>,
    settings: Settings,
    _folder: Arc<TempDir>,
}

impl House {
    pub(super) async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    pub(super) async fn with(settings: Settings) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let hands = Arc::new(Hands(AtomicI64::new(START * 1_000_000)));
        let clock: Arc<dyn Clock> = Arc::<Hands>::clone(&hands);
        let terms = LeaseTerms::default();
        let floor = Floor::new();
        let place =
            sqlite::Settings::new(folder.path().join("data/bailiwick.db")).with_terms(terms);
        let desk = Arc::clone(&floor);
        let store: Arc<dyn Store> = Sqlite::open(place, desk, Arc::clone(&clock)).await.unwrap();
        let engine = Engine::new(Arc::clone(&store), floor, clock, terms);
        let owners = Arc::new(Owners::default());
        let owner = caller("owner", OWNER, "*");
        owners.put(&owner);
        let scheduler = open(&store, &engine, &owners, &hands, &settings).await;
        let house =
            Self { scheduler, engine, store, owners, owner, hands, settings, _folder: folder };
        let templates = caller("t", &["templates:*"], "*");
        let permit = claim(&templates).permit(&Namespace::parse("shop").unwrap()).unwrap();
        engine::templates::register(&house.engine, &permit, TEMPLATE.to_owned()).await.unwrap();
        house
    }

    /// The server goes away at once and another takes up what is on disk.
    pub(super) async fn restart(&mut self) {
        self.scheduler.stopping.cancel();
        self.scheduler.closing.cancel();
        self.scheduler =
            open(&self.store, &self.engine, &self.owners, &self.hands, &self.settings).await;
    }

    /// Time passes, or is set back.
    pub(super) fn turn(&self, seconds: i64) {
        self.hands.0.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }

    pub(super) async fn rule(&self, name: &str, pattern: &str, runner: Runner) {
        self.rule_of(&self.owner, name, pattern, runner, 1).await.unwrap();
    }

    pub(super) async fn rule_of(
        &self,
        owner: &Arc<Principal>,
        name: &str,
        pattern: &str,
        runner: Runner,
        attempts: u32,
    ) -> Result<(), Error> {
        let retry = RetryPolicy {
            retryable: attempts > 1,
            max_attempts: attempts,
            ..RetryPolicy::default()
        };
        let new = NewRule { id: id(name), pattern: pattern.to_owned(), runner, retry };
        rules::set(&self.scheduler, &claim(owner), new).await.map(drop)
    }

    /// Plans a job so many seconds after the beginning.
    pub(super) async fn job(&self, name: &str, after: i64) -> Job {
        self.plan(name, Some(after), None).await
    }

    pub(super) async fn plan(&self, name: &str, after: Option<i64>, every: Option<&str>) -> Job {
        let when = after.map(|after| When::parse(&at(after).0.to_string()).unwrap());
        let plan = Plan { when, recurrence: every.map(str::to_owned) };
        let permit = claim::<SchedulesWrite>(&self.owner).over(&id(name)).unwrap();
        jobs::set(&self.scheduler, &permit, &plan).await.unwrap()
    }

    pub(super) async fn remove(&self, name: &str) -> Job {
        let permit = claim(&self.owner).over(&id(name)).unwrap();
        jobs::remove(&self.scheduler, &permit).await.unwrap()
    }

    pub(super) async fn resume(&self, name: &str) -> Result<Job, Error> {
        let permit = claim(&self.owner).over(&id(name)).unwrap();
        jobs::resume(&self.scheduler, &permit).await
    }

    pub(super) async fn get(&self, name: &str) -> Job {
        let permit = claim(&self.owner).over(&id(name)).unwrap();
        jobs::get(&self.scheduler, &permit).await.unwrap()
    }

    pub(super) async fn status(&self, name: &str) -> JobStatus {
        self.get(name).await.status
    }

    /// The latest first.
    pub(super) async fn runs(&self, name: &str) -> Vec<Run> {
        let permit = claim(&self.owner).over(&id(name)).unwrap();
        jobs::runs(&self.scheduler, &permit, &PageRequest::default()).await.unwrap().items
    }

    pub(super) async fn outcomes(&self, name: &str) -> Vec<RunOutcome> {
        self.runs(name).await.iter().map(|run| run.outcome).collect()
    }

    /// The tasks that were made.
    pub(super) async fn tasks(&self) -> Vec<Task> {
        let reader = caller("r", &["tasks:*"], "*");
        let request = PageRequest { size: 500, ..PageRequest::default() };
        let (claim, all) = (claim(&reader), TaskFilter::default());
        engine::tasks::list(&self.engine, &claim, all, &request).await.unwrap().items
    }

    /// One look for what is due; answers when it is due next.
    pub(super) async fn look(&self) -> Option<Nanos> {
        firing::round(&self.scheduler).await.unwrap()
    }

    /// Looks, and waits until all that was due has ended and is kept.
    pub(super) async fn settle(&self) {
        self.look().await;
        self.settled().await;
    }

    pub(super) async fn settled(&self) {
        self.until(|figures, ends| figures == (0, 0) && ends == 0).await;
    }

    /// Keeps what ends, until so many wait and run.
    pub(super) async fn until(&self, done: impl Fn((usize, usize), usize) -> bool) {
        within(async {
            loop {
                let ends = self.scheduler.work().ends();
                if ends > 0 {
                    firing::keep_once(&self.scheduler).await.unwrap();
                    continue;
                }
                let figures = self.scheduler.figures();
                if done((figures.pending, figures.inflight), ends)
                    && self.scheduler.work().ends() == 0
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    /// What `http` rules do from now on.
    pub(super) fn probe<F, R>(&self, run: F)
    where
        F: Fn(Firing) -> R + Send + Sync + 'static,
        R: Future<Output = Ended> + Send + 'static,
    {
        self.scheduler.probe.put(run);
    }
}

async fn open(
    store: &Arc<dyn Store>,
    engine: &Arc<Engine>,
    owners: &Arc<Owners>,
    hands: &Arc<Hands>,
    settings: &Settings,
) -> Arc<Scheduler> {
    let (owners, clock) = (Arc::<Owners>::clone(owners), Arc::<Hands>::clone(hands));
    Scheduler::open(
        Arc::clone(store),
        Arc::clone(engine),
        owners,
        clock,
        settings.clone(),
        Tools::default(),
    )
    .await
    .unwrap()
}

/// So many seconds after the beginning.
pub(super) fn at(after: i64) -> Nanos {
    Nanos((START + after) * 1_000_000_000)
}

/// Fails rather than hangs; the bound says nothing about speed.
pub(super) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
}
