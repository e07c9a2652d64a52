//! What happens to a job that is due: its rule is found, its rule's owner is
//! decided about again, it waits for its turn, it runs, and its end is kept.
//!
//! A job is `planned` on disk while it waits for its turn and `triggered`
//! while it runs: so one that is set anew or removed before its turn comes
//! does not run. The `task` runner needs no such mark; it is exact by its key.

use std::{
    collections::{HashSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::{
    Error, Scheduler, ahead,
    ends::{End, RUNNER_DISABLED},
    figures,
    figures::Figures,
    lanes::{Lanes, Place, Turn},
    lines::Lines,
    runners::{Ended, Firing, task},
    timer::{self, PAUSE},
};
use crate::{
    authz::System,
    domain::{
        Permission,
        schedule::{AUTHORIZATION_REVOKED, Identifier, Job, Nanos, Rule, Runner, RunnerKind},
    },
    storage::NextState,
};

/// How many jobs one round takes up.
const ROUND_MAX: usize = 2_048;
/// How many jobs may be taken up at once.
const TAKEN_MAX: usize = 32_768;
/// So many are much.
const TAKEN_MUCH: usize = 256;
/// One of so many places is for tasks alone: making one takes a moment, and
/// slow runs must not hold it up.
const QUICK: usize = 8;
/// How many jobs wait in a lane, for tasks and for other runs.
const WAITING_MAX: (usize, usize) = (2_048, 1_000);
/// How many ends one operation of the store takes.
const ENDS_MAX: usize = 256;
/// How long runs may go on when the server goes down.
const GRACE: Duration = Duration::from_secs(2);

/// A job as it was when it was taken up.
type Key = (Identifier, i64);

/// What is due and taken up.
#[derive(Debug)]
pub(super) struct Work {
    /// Until their ends are on disk: the store shows them as planned.
    taken: HashSet<Key>,
    /// Let go since the store was asked last, so what it says may be old.
    released: HashSet<Key>,
    /// How many run at once, tasks and others together.
    places: usize,
    tasks: Lanes<Job>,
    runs: Lanes<Job>,
    /// Which of the two has the next free place.
    way: Way,
    ends: VecDeque<End>,
    lines: Lines,
}

impl Work {
    pub(super) fn new(max_concurrent_runs: usize) -> Self {
        Self {
            taken: HashSet::new(),
            released: HashSet::new(),
            places: max_concurrent_runs.max(1),
            tasks: Lanes::new(WAITING_MAX.0),
            runs: Lanes::new(WAITING_MAX.1),
            way: Way::Task,
            ends: VecDeque::new(),
            lines: Lines::default(),
        }
    }

    fn lanes(&mut self, way: Way) -> &mut Lanes<Job> {
        match way {
            Way::Task => &mut self.tasks,
            Way::Run => &mut self.runs,
        }
    }

    /// Whose turn it is: tasks and other runs alternate while both wait.
    fn next(&mut self) -> Option<(Way, Turn<Job>)> {
        for _ in 0..2 {
            let way = self.way;
            self.way = way.other();
            let free = self.free(way);
            if let Some(turn) = self.lanes(way).next(free) {
                return Some((way, turn));
            }
        }
        None
    }

    /// How many places of a way are free.
    fn free(&self, way: Way) -> usize {
        let runs = self.runs.running();
        let free = self.places.saturating_sub(runs).saturating_sub(self.tasks.running());
        match way {
            Way::Task => free,
            Way::Run => {
                let most = self.places.saturating_sub(self.places / QUICK);
                free.min(most.saturating_sub(runs))
            }
        }
    }

    /// Whether it is taken up, or was since the store was asked.
    pub(super) fn knows(&self, job: &Job) -> bool {
        let key = (job.id.clone(), job.version);
        self.taken.contains(&key) || self.released.contains(&key)
    }

    /// These are over; their ends are to be kept.
    pub(super) fn end(&mut self, ends: Vec<End>) {
        for end in ends {
            self.taken.insert((end.end.id.clone(), end.end.version));
            self.ends.push_back(end);
        }
    }

    fn release(&mut self, key: Key) {
        self.taken.remove(&key);
        self.released.insert(key);
    }

    /// Whether the store shows much that is taken up already.
    pub(super) fn is_much(&self) -> bool {
        self.taken.len() > TAKEN_MUCH
    }

    #[cfg(test)]
    pub(super) fn ends(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn figures(&self) -> Figures {
        Figures {
            pending: self.tasks.waiting().saturating_add(self.runs.waiting()),
            inflight: self.tasks.running().saturating_add(self.runs.running()),
        }
    }
}

/// What a job waits for a place for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Task,
    Run,
}

impl Way {
    fn of(runner: &Runner) -> Self {
        if runner.kind() == RunnerKind::Task { Self::Task } else { Self::Run }
    }

    fn other(self) -> Self {
        match self {
            Self::Task => Self::Run,
            Self::Run => Self::Task,
        }
    }
}

/// What came of a job's turn.
enum Came {
    End(End),
    /// It did not run, and the store knows better what is with it.
    Nothing,
}

/// Runs until the shutdown; runs under way then have a short grace.
pub(super) async fn run(scheduler: Arc<Scheduler>, _system: System, shutdown: CancellationToken) {
    let watch = timer::Watch::start(&scheduler);
    let looking = async {
        tokio::select! {
            () = timer::look(&scheduler) => {}
            () = shutdown.cancelled() => {}
        }
        // No run begins any more. What takes longer than the grace runs again
        // after the next start.
        scheduler.closing.cancel();
        scheduler.tracker.close();
        if tokio::time::timeout(GRACE, scheduler.tracker.wait()).await.is_err() {
            tracing::warn!("some runs did not end in time; they run again at the next start");
        }
        scheduler.stopping.cancel();
        scheduler.tracker.wait().await;
    };
    tokio::select! {
        () = looking => {}
        () = keep(&scheduler) => {}
    }
    drop(watch);
    while !scheduler.work().ends.is_empty() {
        if let Err(error) = keep_once(&scheduler).await {
            tracing::warn!(error = %error, "the ends of some runs were not kept; they run again");
            break;
        }
    }
    scheduler.pulse.stop();
}

/// Takes up what is due, and answers when something is due next.
pub(super) async fn round(scheduler: &Arc<Scheduler>) -> Result<Option<Nanos>, Error> {
    let (skip, limit, much) = {
        let mut work = scheduler.work();
        work.released.clear();
        let full: HashSet<&Arc<str>> = work.tasks.full().chain(work.runs.full()).collect();
        let skip: Vec<Arc<str>> = full.into_iter().cloned().collect();
        (skip, work.taken.len().saturating_add(ROUND_MAX), work.is_much())
    };
    if limit > TAKEN_MAX {
        // Each end that is kept makes room, and rings.
        return Ok(None);
    }
    scheduler.ahead().ask();
    let until = ahead::horizon(scheduler.now().into(), much);
    let (jobs, next) = scheduler.store.jobs_due(until, &skip, limit).await?;
    let (lost, next) = scheduler.sort_out(jobs, (until, next));
    dispatch(scheduler);
    figures::stand(scheduler.figures());
    for ends in lost.chunks(ENDS_MAX) {
        let now = scheduler.now();
        let kept = ends.iter().map(|end| end.end.clone()).collect();
        scheduler.store.end_runs(kept, now).await?;
        for end in ends {
            settled(scheduler, end);
        }
    }
    Ok(next)
}

impl Scheduler {
    pub(super) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn line(&self) -> Option<u64> {
        let now = self.now();
        self.work().lines.admit(now)
    }

    async fn ran(&self, firing: &Firing) -> Ended {
        #[cfg(test)]
        if let Some(ended) = self.probe.run(firing).await {
            return ended;
        }
        self.tools.run(firing).await
    }

    /// Puts jobs into their lanes; answers with the ends of those that no
    /// rule is for.
    pub(super) fn take(&self, jobs: Vec<Job>) -> Vec<End> {
        let table = self.table();
        let mut work = self.work();
        let mut lost = Vec::new();
        for job in jobs {
            if work.knows(&job) {
                continue;
            }
            let key = (job.id.clone(), job.version);
            let Some(rule) = table.of_job(&job.id) else {
                lost.push(self.lost(&job));
                continue;
            };
            let segment: Arc<str> = job.id.segment().into();
            // Of a full lane the job stays where it is: on disk.
            if work.lanes(Way::of(&rule.runner)).push(&rule.owner.identity, &segment, job) {
                work.taken.insert(key);
            }
        }
        lost
    }

    /// Whether the rule's owner may still do what the rule does, and the
    /// runner is still enabled; if not, why.
    fn decide(&self, job: &Identifier, rule: &Rule) -> Result<Decided, &'static str> {
        let owner = self.standing.standing(&rule.owner, self.now());
        let owner = owner.ok_or(AUTHORIZATION_REVOKED)?;
        let covers = |permission| owner.scope_of(permission).contains_text(job.as_str());
        let may = covers(Permission::RulesWrite)
            && (!rule.runner.kind().starts_processes() || covers(Permission::CommandsExecute));
        if !may {
            return Err(AUTHORIZATION_REVOKED);
        }
        let decided = match &rule.runner {
            Runner::Task { namespace, .. } => {
                let permit = task::permit(&owner, namespace).ok_or(AUTHORIZATION_REVOKED)?;
                Decided::Task(permit)
            }
            Runner::Http { .. }
            | Runner::Shell { .. }
            | Runner::Direct { .. }
            | Runner::Awf { .. }
            | Runner::Amqp { .. }
            | Runner::Redis { .. } => Decided::Run,
        };
        if self.settings.runners.contains(&rule.runner.kind()) {
            Ok(decided)
        } else {
            Err(RUNNER_DISABLED)
        }
    }
}

/// A job that may run.
enum Decided {
    Task(task::MayCreate),
    Run,
}

/// Starts those whose turn it is.
pub(super) fn dispatch(scheduler: &Arc<Scheduler>) {
    if scheduler.closing.is_cancelled() {
        return;
    }
    let mut room = false;
    loop {
        let Some((way, turn)) = scheduler.work().next() else { break };
        room |= turn.room;
        scheduler.tracker.spawn(fire(Arc::clone(scheduler), way, turn.item, turn.place));
    }
    if room {
        scheduler.alarm.ring();
    }
}

/// One job's turn, until its place is free again.
async fn fire(scheduler: Arc<Scheduler>, way: Way, job: Job, place: Place) {
    let came = tokio::select! {
        biased;
        () = scheduler.stopping.cancelled() => return,
        came = turn(&scheduler, way, &job) => came,
    };
    let again = matches!(came, Came::Nothing);
    {
        let mut work = scheduler.work();
        work.lanes(way).done(&place);
        match came {
            Came::End(end) => work.ends.push_back(end),
            Came::Nothing => work.release((job.id, job.version)),
        }
    }
    scheduler.ended.notify_one();
    if again {
        scheduler.alarm.ring();
    }
    dispatch(&scheduler);
}

async fn turn(scheduler: &Scheduler, way: Way, job: &Job) -> Came {
    // The rules may have changed while it waited.
    let Some(rule) = scheduler.table().of_job(&job.id).cloned() else {
        return Came::End(scheduler.lost(job));
    };
    if Way::of(&rule.runner) != way {
        return Came::Nothing;
    }
    let decided = match scheduler.decide(&job.id, &rule) {
        Ok(decided) => decided,
        Err(why) => return Came::End(scheduler.held(job, &rule, why)),
    };
    let came = match decided {
        Decided::Task(permit) => create(scheduler, job, &rule, permit).await,
        Decided::Run => begin(scheduler, job, &rule).await,
    };
    match came {
        Ok(came) => came,
        Err(error) => {
            if let Some(suppressed) = scheduler.line() {
                tracing::error!(error = %error, job = ?job.id, suppressed, "a job could not begin yet");
            }
            tokio::time::sleep(PAUSE.0).await;
            Came::Nothing
        }
    }
}

fn firing(job: &Job, rule: &Arc<Rule>) -> Firing {
    Firing {
        job: job.id.clone(),
        execution: job.execution,
        attempt: job.attempts.saturating_add(1),
        rule: Arc::clone(rule),
    }
}

/// The `task` runner: its key makes it exact.
async fn create(
    scheduler: &Scheduler,
    job: &Job,
    rule: &Arc<Rule>,
    permit: task::MayCreate,
) -> Result<Came, Error> {
    let started_at = scheduler.now();
    figures::late(job.due, started_at.into());
    let firing = firing(job, rule);
    let ran = AssertUnwindSafe(task::run(&scheduler.engine, permit, &firing, job.version));
    let ended = ran.catch_unwind().await.unwrap_or_else(|_| Ok(broke_off()))?;
    Ok(Came::End(scheduler.ended(job, rule, (None, started_at), ended)))
}

/// The other runners: what was marked on disk before runs again after a crash.
async fn begin(scheduler: &Scheduler, job: &Job, rule: &Arc<Rule>) -> Result<Came, Error> {
    let started_at = scheduler.now();
    let mark = (job.id.clone(), job.version, rule.id.as_str().into(), started_at);
    let begun = scheduler.store.begin_runs(vec![mark]).await?;
    // It was set anew or removed.
    let Some(run) = begun.into_iter().next().flatten() else { return Ok(Came::Nothing) };
    figures::late(job.due, scheduler.now().into());
    let firing = firing(job, rule);
    let ran = AssertUnwindSafe(scheduler.ran(&firing)).catch_unwind().await;
    let ended = ran.unwrap_or_else(|_| broke_off());
    Ok(Came::End(scheduler.ended(job, rule, (Some(run), started_at), ended)))
}

/// A fault of a runner's must not take its place for ever.
fn broke_off() -> Ended {
    Ended::failed("the runner broke off; see the log")
}

/// Keeps the ends of runs, and goes on until it can.
async fn keep(scheduler: &Scheduler) {
    let mut pause = PAUSE.0;
    loop {
        scheduler.ended.notified().await;
        while !scheduler.work().ends.is_empty() {
            if let Err(error) = keep_once(scheduler).await {
                tracing::error!(error = %error, "the ends of runs cannot be kept yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            } else {
                pause = PAUSE.0;
            }
        }
    }
}

/// Keeps some ends; those that could not be kept stay.
pub(super) async fn keep_once(scheduler: &Scheduler) -> Result<(), Error> {
    let ends: Vec<End> = scheduler.work().ends.iter().take(ENDS_MAX).cloned().collect();
    let kept = ends.iter().map(|end| end.end.clone()).collect();
    scheduler.store.end_runs(kept, scheduler.now()).await?;
    let full = {
        let mut work = scheduler.work();
        let full = work.taken.len().saturating_add(ROUND_MAX) > TAKEN_MAX;
        work.ends.drain(..ends.len());
        for end in &ends {
            work.release((end.end.id.clone(), end.end.version));
        }
        full
    };
    for end in &ends {
        settled(scheduler, end);
    }
    figures::stand(scheduler.figures());
    if full {
        scheduler.alarm.ring();
    }
    Ok(())
}

/// An end is on disk.
fn settled(scheduler: &Scheduler, end: &End) {
    figures::ran(end.runner, end.end.outcome);
    match &end.end.next {
        NextState::Retry(due) | NextState::Recurs(due) => {
            scheduler.alarm.arm(ahead::asked_at(*due));
        }
        NextState::Rests(..) => {}
    }
}
