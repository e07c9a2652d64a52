//! What is kept of the scheduler: jobs, rules and the history of runs.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Listed, Page, Result};
use crate::domain::{
    Scope, Timestamp,
    history::Stamp,
    schedule::{Identifier, Job, JobStatus, Nanos, Rule, Run, RunOutcome},
};

/// How many runs of a job its history holds; older ones go.
pub const RUNS_KEPT: i64 = 100;

/// A change of jobs.
#[derive(Clone, Debug)]
pub enum JobChange {
    /// Plans a job, new or anew.
    Set {
        /// Its name.
        id: Identifier,
        /// When.
        execution: Nanos,
        /// When it recurs, as it was written.
        recurrence: Option<Arc<str>>,
        /// Where it stands; anything but `Planned` comes from an import.
        /// `Triggered` is kept as `Planned`: its run is not here.
        status: JobStatus,
    },
    /// Removes a job with its history.
    Remove(Identifier),
    /// Plans a job that is held again, due now; its attempts begin anew.
    Resume(Identifier),
}

impl JobChange {
    /// The name of the job that it changes.
    #[must_use]
    pub fn id(&self) -> &Identifier {
        match self {
            Self::Set { id, .. } | Self::Remove(id) | Self::Resume(id) => id,
        }
    }

    /// What it is called in the audit.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Set { .. } => "job set",
            Self::Remove(_) => "job removed",
            Self::Resume(_) => "job resumed",
        }
    }
}

/// How a run that was begun ended, and what becomes of its job. A job that was
/// set anew meanwhile keeps what was set; its history has the run. For one
/// that was removed meanwhile nothing is kept, be it set again or not.
#[derive(Clone, Debug)]
pub struct RunEnd {
    /// The job.
    pub id: Identifier,
    /// The job's version when the run began.
    pub version: i64,
    /// The run; none for one that was never begun, which makes the entry.
    pub run: Option<i64>,
    /// Which occurrence it was of.
    pub execution: Nanos,
    /// Which attempt of it, from 1.
    pub attempt: u32,
    /// The rule that matched; empty when none did.
    pub rule: Arc<str>,
    /// When it began.
    pub started_at: Timestamp,
    /// How it ended.
    pub outcome: RunOutcome,
    /// What went wrong, bounded by the caller.
    pub error: Option<String>,
    /// What it wrote, bounded by the caller.
    pub output: Option<String>,
    /// Where the job stands now.
    pub next: NextState,
}

/// What becomes of a job after a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextState {
    /// It is over: `Executed` or `Failed`, with a reason; or `Held`.
    Rests(JobStatus, Option<Arc<str>>),
    /// Another attempt of the same occurrence.
    Retry(Nanos),
    /// The next occurrence.
    Recurs(Nanos),
}

/// How many jobs stand where, in the order of [`JobStatus::ALL`].
pub type JobCounts = [u64; 5];

/// Jobs, rules and runs. Identifiers are compared byte by byte and listed in
/// that order.
#[async_trait]
pub trait ScheduleStore: Send + Sync {
    /// Makes the changes in their order, all of them or none; answers for each
    /// one with the job as it is then, or none where there was no such job (or
    /// for `Resume` none that is held). A removed job is answered as it was.
    async fn change_jobs(
        &self,
        changes: Vec<JobChange>,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<Vec<Option<Job>>>;

    /// One job.
    async fn job(&self, id: &Identifier) -> Result<Option<Job>>;

    /// The jobs in the scope whose names begin with a text.
    async fn jobs(&self, scope: &Scope, prefix: &str, page: &Page) -> Result<Listed<Job>>;

    /// Planned jobs that are due, the ones due first first, without those
    /// whose names' first segments are among `skip`. And when to look again:
    /// at or before `now` where the limit left one out, which then is due;
    /// otherwise when the first job of all is due that is not yet (none
    /// without one). Those that were skipped do not count as long as they are
    /// skipped: nothing is to be waited for but the end of their runs.
    async fn jobs_due(
        &self,
        now: Nanos,
        skip: &[Arc<str>],
        limit: usize,
    ) -> Result<(Vec<Job>, Option<Nanos>)>;

    /// Marks planned jobs as triggered and makes an entry in their history,
    /// each by name, version, the rule that matched and when it began; answers
    /// for each one with the run's number, or none when it was changed
    /// meanwhile and must not run. Attempts count up.
    async fn begin_runs(
        &self,
        begun: Vec<(Identifier, i64, Arc<str>, Timestamp)>,
    ) -> Result<Vec<Option<i64>>>;

    /// Takes the ends of runs.
    async fn end_runs(&self, ends: Vec<RunEnd>, now: Timestamp) -> Result<()>;

    /// At start: runs that were under way when the server went away get
    /// `Interrupted` in their history and their jobs are planned again, due as
    /// they were; the attempt is not used up. Answers how many runs.
    async fn interrupted_runs(&self, now: Timestamp) -> Result<usize>;

    /// A job's history, the latest first; none without such a job.
    async fn runs(&self, id: &Identifier, page: &Page) -> Result<Option<Listed<Run>>>;

    /// Keeps a rule; it replaces the one of the same name if that still is
    /// `replaces`, which the caller has checked. Answers whether it did.
    async fn set_rule(
        &self,
        rule: Rule,
        replaces: Option<Rule>,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<bool>;

    /// Removes a rule if it still is as the caller saw it.
    async fn remove_rule(&self, rule: Rule, stamp: &Stamp, now: Timestamp) -> Result<bool>;

    /// All rules: there are few, and the scheduler holds them in memory.
    async fn rules(&self) -> Result<Vec<Rule>>;

    /// Counts the jobs within the scope.
    async fn job_counts(&self, scope: &Scope) -> Result<JobCounts>;
}
