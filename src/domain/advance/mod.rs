//! The state machine of tasks and steps. Pure: the parts of a task that an
//! event touches go in, their new values come out. Each store calls it inside
//! its own operation, so that no two of them can disagree.
//!
//! Not here: time and chance, which come as parameters; what is on disk.

#[cfg(test)]
mod tests;

use thiserror::Error;

use super::{
    LeaseId, StepNo, TaskId, Timestamp,
    history::{Cause, Change},
    task::{Backoff, Held, RetryPolicy, StepCore, StepCounts, StepState, TaskCore, TaskState},
    template::Template,
};

/// What happens to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A worker takes a ready step.
    Leased {
        /// Which step.
        step: StepNo,
        /// Under which lease.
        held: Box<Held>,
    },
    /// The worker that holds the lease is done.
    Completed {
        /// Which step.
        step: StepNo,
    },
    /// The worker that holds the lease failed.
    Failed {
        /// Which step.
        step: StepNo,
        /// Whether another attempt makes sense.
        retryable: bool,
        /// −100 to 100: per mille added to the pause before the next attempt.
        jitter: i32,
    },
    /// The lease expired, or the attempt timed out.
    LeaseEnded {
        /// Which step.
        step: StepNo,
        /// −100 to 100: per mille added to the pause before the next attempt.
        jitter: i32,
    },
    /// The lease never reached its worker.
    Released {
        /// Which step.
        step: StepNo,
    },
    /// The pause before the next attempt is over.
    RetryDue {
        /// Which step.
        step: StepNo,
    },
    /// Somebody cancels the task; every step that is not final is loaded.
    Cancelled,
    /// An operator grants new attempts.
    Reset {
        /// Which step.
        step: StepNo,
    },
    /// An operator goes on without the step.
    Resolved {
        /// Which step.
        step: StepNo,
    },
    /// An operator completes the step.
    CompletedByHand {
        /// Which step.
        step: StepNo,
    },
}

/// Why an event cannot happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// The task is final.
    #[error("the task is final: {}", .0.as_str())]
    TaskFinal(TaskState),
    /// The step's state does not allow it.
    #[error("a step that is {} cannot be {}", .state.as_str(), .wanted)]
    StepState {
        /// Where the step stands.
        state: StepState,
        /// What was wanted of it.
        wanted: &'static str,
    },
    /// The step was not loaded, or does not exist.
    #[error("step {} is not there", .0.0)]
    NoSuchStep(StepNo),
}

/// A task after an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advanced {
    /// The task.
    pub task: TaskCore,
    /// The steps that were loaded; [`Self::touched`] says which changed.
    pub steps: Vec<StepCore>,
    /// The numbers of the steps that changed, in any way, without repeats.
    pub touched: Vec<StepNo>,
    /// The steps that became ready.
    pub ready: Vec<StepNo>,
    /// The leases that ended, but for that of a worker's own report.
    pub revoked: Vec<LeaseId>,
    /// The changes, in the order of their places in the history; the last one
    /// has the place `task.last_seq`.
    pub changes: Vec<Change>,
}

impl Advanced {
    /// A loaded step by its number.
    #[must_use]
    pub fn step(&self, no: StepNo) -> Option<&StepCore> {
        self.steps.iter().find(|step| step.no == no)
    }
}

/// A task as it begins: steps without dependencies are ready.
#[must_use]
pub fn begin(id: TaskId, template: &Template) -> Advanced {
    let numbers: Vec<StepNo> = (0..=u16::MAX).map(StepNo).take(template.steps.len()).collect();
    let mut dependants = vec![Vec::new(); template.steps.len()];
    for (spec, no) in template.steps.iter().zip(&numbers) {
        for &parent in &spec.depends_on {
            if let Some(children) = dependants.get_mut(parent) {
                children.push(*no);
            }
        }
    }
    let task = TaskCore {
        id,
        state: TaskState::Pending,
        counts: StepCounts::default(),
        started: false,
        last_seq: 0,
    };
    let mut begun = Transition::new(task, Vec::with_capacity(numbers.len()));
    begun.change(Change::Task(TaskState::Pending));
    for ((spec, &no), dependants) in template.steps.iter().zip(&numbers).zip(dependants) {
        let deps_left = u16::try_from(spec.depends_on.len()).unwrap_or(u16::MAX);
        let state = if deps_left == 0 { StepState::Ready } else { StepState::Pending };
        begun.out.steps.push(StepCore {
            no,
            state,
            deps_left,
            dependants: dependants.into(),
            attempts: 0,
            attempts_allowed: spec.retry.max_attempts.max(1),
            retry: spec.retry,
            timeout_ms: spec.timeout_ms,
            lease: None,
            retry_at: None,
        });
        begun.out.task.counts.add(state, 1);
        begun.out.touched.push(no);
        begun.change(Change::Step { no, state, attempts: 0, cause: Cause::Created });
        if state == StepState::Ready {
            begun.out.ready.push(no);
        }
    }
    begun.out
}

/// Applies an event. `steps` holds the step that the event names and its
/// dependants; for [`Event::Cancelled`] every step that is not final.
pub fn advance(
    task: TaskCore,
    steps: Vec<StepCore>,
    event: Event,
    now: Timestamp,
) -> Result<Advanced, Refused> {
    if task.state.is_final() {
        return Err(Refused::TaskFinal(task.state));
    }
    let mut on = Transition::new(task, steps);
    match event {
        Event::Leased { step, held } => on.lease(step, *held)?,
        Event::Completed { step } => {
            on.held(step, "completed")?;
            on.satisfy(step, StepState::Complete, Cause::Completed)?;
        }
        Event::Failed { step, retryable, jitter } => {
            on.held(step, "failed")?;
            on.fail(step, Cause::Failed, retryable, jitter, now)?;
        }
        Event::LeaseEnded { step, jitter } => on.lease_ended(step, jitter, now)?,
        Event::Released { step } => {
            on.revoke(step, "released")?;
            on.grant_one_more(step);
            on.shift(step, StepState::Ready, Cause::ServerRestarted);
        }
        Event::RetryDue { step } => {
            on.expect(step, &[StepState::WaitingForRetry], "retried")?;
            on.shift(step, StepState::Ready, Cause::RetryDue);
        }
        Event::Cancelled => on.cancel(),
        Event::Reset { step } => on.reset(step)?,
        Event::Resolved { step } => {
            on.open(step, "resolved")?;
            on.satisfy(step, StepState::ResolvedManually, Cause::ResolveManually)?;
        }
        Event::CompletedByHand { step } => {
            on.open(step, "completed by hand")?;
            on.satisfy(step, StepState::Complete, Cause::CompleteManually)?;
        }
    }
    on.settle();
    Ok(on.out)
}

/// The pause before the attempt after the `used`th, with its jitter.
#[must_use]
pub fn pause_ms(policy: &RetryPolicy, used: u32, jitter: i32) -> i64 {
    let base = u64::from(policy.base_ms);
    let grown = match policy.backoff {
        Backoff::Fixed => base,
        Backoff::Linear => base.saturating_mul(u64::from(used.max(1))),
        Backoff::Exponential => 1_u64
            .checked_shl(used.max(1) - 1)
            .map_or(u64::MAX, |factor| base.saturating_mul(factor)),
    };
    let pause = i64::from(u32::try_from(grown).unwrap_or(u32::MAX).min(policy.max_ms));
    pause + pause * i64::from(jitter.clamp(-100, 100)) / 1_000
}

/// A transition under way.
struct Transition {
    out: Advanced,
}

impl Transition {
    fn new(task: TaskCore, steps: Vec<StepCore>) -> Self {
        Self {
            out: Advanced {
                task,
                steps,
                touched: Vec::new(),
                ready: Vec::new(),
                revoked: Vec::new(),
                changes: Vec::new(),
            },
        }
    }

    fn change(&mut self, change: Change) {
        self.out.task.last_seq += 1;
        self.out.changes.push(change);
    }

    fn step(&mut self, no: StepNo) -> Option<&mut StepCore> {
        self.out.steps.iter_mut().find(|step| step.no == no)
    }

    fn touch(&mut self, no: StepNo) {
        if !self.out.touched.contains(&no) {
            self.out.touched.push(no);
        }
    }

    fn expect(
        &mut self,
        no: StepNo,
        states: &[StepState],
        wanted: &'static str,
    ) -> Result<&mut StepCore, Refused> {
        let step = self.step(no).ok_or(Refused::NoSuchStep(no))?;
        if states.contains(&step.state) {
            Ok(step)
        } else {
            Err(Refused::StepState { state: step.state, wanted })
        }
    }

    /// A worker's own report ends its lease; nobody needs to be told.
    fn held(&mut self, no: StepNo, wanted: &'static str) -> Result<(), Refused> {
        self.expect(no, &[StepState::InProgress], wanted)?.lease = None;
        Ok(())
    }

    /// Ends a lease that its worker still counts on.
    fn revoke(&mut self, no: StepNo, wanted: &'static str) -> Result<Option<Held>, Refused> {
        let held = self.expect(no, &[StepState::InProgress], wanted)?.lease.take();
        self.out.revoked.extend(held.as_ref().map(|held| held.id));
        Ok(held)
    }

    /// Any step that is not final may be cured; a lease on it ends.
    fn open(&mut self, no: StepNo, wanted: &'static str) -> Result<(), Refused> {
        let step = self.step(no).ok_or(Refused::NoSuchStep(no))?;
        if step.state.is_final() {
            return Err(Refused::StepState { state: step.state, wanted });
        }
        if let Some(held) = step.lease.take() {
            self.out.revoked.push(held.id);
        }
        Ok(())
    }

    /// Moves a step to another state and writes it down.
    fn shift(&mut self, no: StepNo, to: StepState, cause: Cause) {
        let Some(step) = self.step(no) else { return };
        let (from, attempts) = (step.state, step.attempts);
        step.state = to;
        if to != StepState::WaitingForRetry {
            step.retry_at = None;
        }
        self.out.task.counts.shift(from, to);
        self.touch(no);
        self.change(Change::Step { no, state: to, attempts, cause });
        if to == StepState::Ready {
            self.out.ready.push(no);
        }
    }

    fn lease(&mut self, no: StepNo, held: Held) -> Result<(), Refused> {
        let step = self.expect(no, &[StepState::Ready], "leased")?;
        step.attempts = step.attempts.saturating_add(1);
        step.lease = Some(held);
        self.out.task.started = true;
        self.out.ready.retain(|ready| *ready != no);
        self.shift(no, StepState::InProgress, Cause::Leased);
        Ok(())
    }

    fn grant_one_more(&mut self, no: StepNo) {
        if let Some(step) = self.step(no) {
            step.attempts_allowed = step.attempts_allowed.saturating_add(1);
        }
    }

    /// A lease that a restart of the server came over uses up no attempt.
    fn lease_ended(&mut self, no: StepNo, jitter: i32, now: Timestamp) -> Result<(), Refused> {
        let held = self.revoke(no, "ended")?;
        match held {
            Some(held) if held.orphaned && now < held.timeout_at => {
                self.grant_one_more(no);
                self.shift(no, StepState::Ready, Cause::ServerRestarted);
                Ok(())
            }
            Some(held) if now >= held.timeout_at => {
                self.fail(no, Cause::TimedOut, true, jitter, now)
            }
            Some(_) | None => self.fail(no, Cause::LeaseExpired, true, jitter, now),
        }
    }

    fn fail(
        &mut self,
        no: StepNo,
        cause: Cause,
        retryable: bool,
        jitter: i32,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let step = self.step(no).ok_or(Refused::NoSuchStep(no))?;
        let left = step.attempts_allowed.saturating_sub(step.attempts);
        if retryable && step.retry.retryable && left > 0 {
            // Within what the last reset granted, not since the beginning.
            let used = step.retry.max_attempts.saturating_sub(left);
            step.retry_at = Some(now.plus_ms(pause_ms(&step.retry, used, jitter)));
            self.shift(no, StepState::WaitingForRetry, cause);
        } else {
            self.shift(no, StepState::Error, cause);
        }
        Ok(())
    }

    /// The step is done with; those that wait for it come closer.
    fn satisfy(&mut self, no: StepNo, to: StepState, cause: Cause) -> Result<(), Refused> {
        self.shift(no, to, cause);
        let dependants = self.step(no).map(|step| step.dependants.clone()).unwrap_or_default();
        for &dependant in dependants.iter() {
            let step = self.step(dependant).ok_or(Refused::NoSuchStep(dependant))?;
            step.deps_left = step.deps_left.saturating_sub(1);
            let met = step.deps_left == 0 && step.state == StepState::Pending;
            self.touch(dependant);
            if met {
                self.shift(dependant, StepState::Ready, Cause::DependenciesMet);
            }
        }
        Ok(())
    }

    /// A failed step stays as it is: the history says why the task stood.
    fn cancel(&mut self) {
        let open: Vec<StepNo> = self
            .out
            .steps
            .iter()
            .filter(|step| !step.state.is_final() && step.state != StepState::Error)
            .map(|step| step.no)
            .collect();
        for no in open {
            if let Some(held) = self.step(no).and_then(|step| step.lease.take()) {
                self.out.revoked.push(held.id);
            }
            self.shift(no, StepState::Cancelled, Cause::Cancelled);
        }
        self.out.task.state = TaskState::Cancelled;
        self.change(Change::Task(TaskState::Cancelled));
    }

    fn reset(&mut self, no: StepNo) -> Result<(), Refused> {
        let curable = [StepState::Error, StepState::WaitingForRetry];
        let step = self.expect(no, &curable, "reset for retry")?;
        step.attempts_allowed = step.attempts.saturating_add(step.retry.max_attempts.max(1));
        self.shift(no, StepState::Ready, Cause::ResetForRetry);
        Ok(())
    }

    /// The task's state follows from where its steps stand.
    fn settle(&mut self) {
        let task = &self.out.task;
        if task.state.is_final() {
            return;
        }
        let state = state_of(&task.counts, task.started);
        if state != task.state {
            self.out.task.state = state;
            self.change(Change::Task(state));
        }
    }
}

/// The state of a task that nobody has cancelled or given up.
fn state_of(counts: &StepCounts, started: bool) -> TaskState {
    let any = |states: &[StepState]| states.iter().any(|state| counts.of(*state) > 0);
    let runnable = [StepState::Ready, StepState::InProgress];
    if !any(&runnable) && !any(&[StepState::Pending, StepState::WaitingForRetry, StepState::Error])
    {
        if any(&[StepState::ResolvedManually]) {
            TaskState::ResolvedManually
        } else {
            TaskState::Complete
        }
    } else if !started {
        TaskState::Pending
    } else if any(&runnable) {
        TaskState::InProgress
    } else if any(&[StepState::WaitingForRetry]) {
        TaskState::WaitingForRetry
    } else if any(&[StepState::Error]) {
        TaskState::BlockedByFailures
    } else {
        // Steps that wait for each other alone: the template's check holds
        // cycles off.
        TaskState::InProgress
    }
}
