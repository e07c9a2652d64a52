//! The scheduler: jobs, rules, the timer and the runners. Each use case takes
//! a proof, not a caller; what is done later is decided again when it is due.
//!
//! Not here: what is on disk (`storage`), the line protocol (`line`), tasks
//! (`engine`).

mod ahead;
mod ends;
mod figures;
mod firing;
pub mod jobs;
mod lanes;
mod lines;
mod preview;
mod recurrence;
pub mod rules;
mod runners;
mod table;
mod timer;
mod when;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use thiserror::Error as ThisError;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{ahead::Ahead, firing::Work, table::RuleTable, timer::Alarm};
pub use self::{
    figures::Figures,
    preview::preview,
    recurrence::Recurrence,
    runners::{Ended, Firing, Tools},
    when::When,
};
use crate::{
    authz::{Claim, Standing, System},
    domain::{
        Clock, Permission, Timestamp, permission::right::SchedulesRead, schedule::RunnerKind,
    },
    engine::{Engine, Health, loops::Part},
    storage::{self, JobCounts, Store},
};
pub use crate::{
    engine::{PageRequest, Paged},
    storage::Error as StoreError,
};

/// What jobs and rules there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScheduleCounts {
    /// Jobs, in the order of [`JobStatus::ALL`](crate::domain::schedule::JobStatus::ALL).
    pub jobs: JobCounts,
    /// Rules, by their names.
    pub rules: u64,
}

/// `[scheduler]`, and what of `[controller]` is about rules.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The runners that rules may have.
    pub runners: Vec<RunnerKind>,
    /// How many runs there are at once, over all namespaces; at least 1.
    pub max_concurrent_runs: usize,
    /// How long a JWT's grants stand behind a rule; 0 is until it is revoked.
    pub jwt_grant_hours: u64,
    /// What is taken off a rule's name, once, before it is compared with a
    /// scope (ZT-32).
    pub rule_id_prefixes: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            runners: vec![RunnerKind::Task, RunnerKind::Http],
            max_concurrent_runs: 64,
            jwt_grant_hours: 0,
            rule_id_prefixes: vec!["rule.".to_owned()],
        }
    }
}

/// What the use cases work with.
#[derive(Debug)]
pub struct Scheduler {
    store: Arc<dyn Store>,
    engine: Arc<Engine>,
    standing: Arc<dyn Standing>,
    clock: Arc<dyn Clock>,
    settings: Settings,
    tools: Tools,
    rules: RwLock<Arc<RuleTable>>,
    /// Rules are changed one after the other.
    order: Arc<tokio::sync::Mutex<()>>,
    /// Recurrences are read one at a time.
    reading: tokio::sync::Mutex<()>,
    /// Changes of rules that go on without their callers.
    changes: TaskTracker,
    alarm: Alarm,
    ahead: Mutex<Ahead>,
    work: Mutex<Work>,
    /// Rings when a run has ended.
    ended: Notify,
    /// The runs under way.
    tracker: TaskTracker,
    /// No run begins any more, and later: those under way are dropped.
    closing: CancellationToken,
    stopping: CancellationToken,
    pulse: Part,
    #[cfg(test)]
    probe: runners::Probe,
}

/// Why a use case did not happen.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The identifier, the pattern or what it aims at is outside of the
    /// caller's scope.
    #[error("namespace not found: {0}")]
    OutsideScope(String),
    /// No such job.
    #[error("job not found: {0}")]
    JobNotFound(String),
    /// No such rule.
    #[error("rule not found: {0}")]
    RuleNotFound(String),
    /// A field has a value that is not allowed.
    #[error("{field}: {message}")]
    FieldInvalid {
        /// The request's field.
        field: &'static str,
        /// Why, and what is allowed.
        message: String,
    },
    /// `[scheduler] runners` does not list it.
    #[error("the runner `{}` is not enabled; `[scheduler] runners` lists those that are", .0.as_str())]
    RunnerDisabled(RunnerKind),
    /// The runner needs a permission that the caller has not got.
    #[error("Missing required permission: {0}")]
    PermissionMissing(Permission),
    /// The page token is not for this query or caller.
    #[error("page_token: not for this query; begin without one")]
    PageToken,
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl Scheduler {
    /// Over a store; its rules are taken up, and runs that were under way when
    /// the server went away are planned again.
    pub async fn open(
        store: Arc<dyn Store>,
        engine: Arc<Engine>,
        standing: Arc<dyn Standing>,
        clock: Arc<dyn Clock>,
        settings: Settings,
        tools: Tools,
    ) -> Result<Arc<Self>, Error> {
        let interrupted = store.interrupted_runs(clock.now()).await?;
        if interrupted > 0 {
            tracing::warn!(interrupted, "runs were interrupted by the last stop; they run again");
        }
        let rules = RuleTable::new(store.rules().await?);
        let work = Work::new(settings.max_concurrent_runs);
        Ok(Arc::new(Self {
            store,
            engine,
            standing,
            clock,
            settings,
            tools,
            rules: RwLock::new(Arc::new(rules)),
            order: Arc::default(),
            reading: tokio::sync::Mutex::default(),
            changes: TaskTracker::new(),
            alarm: Alarm::default(),
            ahead: Mutex::default(),
            work: Mutex::new(work),
            ended: Notify::new(),
            tracker: TaskTracker::new(),
            closing: CancellationToken::new(),
            stopping: CancellationToken::new(),
            pulse: Part::default(),
            #[cfg(test)]
            probe: runners::Probe::default(),
        }))
    }

    /// Fires what is due until the shutdown.
    pub async fn run(self: Arc<Self>, system: System, shutdown: CancellationToken) {
        firing::run(self, system, shutdown).await;
    }

    /// How the part `scheduler` does.
    #[must_use]
    pub fn health(&self) -> Health {
        self.pulse.health()
    }

    /// Whether it has looked for what is due.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.pulse.has_begun()
    }

    /// How many jobs are due and not done, over all namespaces.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.work().figures()
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn table(&self) -> Arc<RuleTable> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What jobs and rules there are in the caller's scope.
    pub async fn counts(&self, claim: &Claim<SchedulesRead>) -> Result<ScheduleCounts, Error> {
        let rules = self.rules_in(claim.scope());
        Ok(ScheduleCounts { jobs: self.store.job_counts(claim.scope()).await?, rules })
    }
}
