//! How runs end: what is written down of one, and what becomes of its job.

use std::sync::Arc;

use super::{Recurrence, Scheduler, runners::Ended};
use crate::{
    domain::{
        Timestamp,
        advance::pause_ms,
        schedule::{Job, JobStatus, Rule, RunOutcome, RunnerKind},
    },
    storage::{NextState, RunEnd},
};

/// How much of an error is kept, in bytes.
const ERROR_BYTES_MAX: usize = 4 * 1024;
/// How far a retry's pause strays, in thousandths.
const JITTER: std::ops::RangeInclusive<i32> = -100..=100;

/// Why a job rests that did not run as it should.
const NO_RULE: &str = "no_rule";
pub(super) const RUNNER_DISABLED: &str = "runner_disabled";
const REFUSED: &str = "refused";
const FAILED: &str = "failed";

/// An end that is to be kept.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) end: RunEnd,
    pub(super) runner: Option<RunnerKind>,
}

impl Scheduler {
    pub(super) fn lost(&self, job: &Job) -> End {
        let text = "no rule's pattern is what the job's name begins with".to_owned();
        let next = self.after(job, JobStatus::Failed, Some(NO_RULE));
        let end = RunEnd {
            outcome: RunOutcome::Failed,
            error: Some(text),
            next,
            ..entry(job, "".into(), self.now())
        };
        End { end, runner: None }
    }

    pub(super) fn held(&self, job: &Job, rule: &Rule, why: &'static str) -> End {
        let owner = &rule.owner;
        if let Some(suppressed) = self.line() {
            tracing::warn!(
                job = ?job.id,
                rule = ?rule.id,
                owner = ?owner.identity.to_string(),
                credential = &*owner.credential_id,
                reason = why,
                suppressed,
                "a job is held"
            );
        }
        let text = if why == RUNNER_DISABLED {
            format!("`[scheduler] runners` does not list `{}`", rule.runner.kind().as_str())
        } else {
            "who set the rule may not any more".to_owned()
        };
        let end = RunEnd {
            // It did not begin: once it is resumed it has all its attempts.
            attempt: job.attempts,
            outcome: RunOutcome::Held,
            error: Some(text),
            next: NextState::Rests(JobStatus::Held, Some(why.into())),
            ..entry(job, rule.id.as_str().into(), self.now())
        };
        End { end, runner: Some(rule.runner.kind()) }
    }

    /// How a run ended, and what comes after it.
    pub(super) fn ended(
        &self,
        job: &Job,
        rule: &Rule,
        begun: (Option<i64>, Timestamp),
        ended: Ended,
    ) -> End {
        let (run, started_at) = begun;
        let attempt = job.attempts.saturating_add(1);
        let retry = &rule.retry;
        let again = ended.retryable && retry.retryable && attempt < retry.max_attempts;
        let (outcome, next) = if ended.error.is_none() {
            (RunOutcome::Executed, self.after(job, JobStatus::Executed, None))
        } else if again {
            let pause = pause_ms(retry, attempt, rand::Rng::random_range(&mut rand::rng(), JITTER));
            (RunOutcome::Failed, NextState::Retry(self.now().plus_ms(pause).into()))
        } else {
            let task = rule.runner.kind() == RunnerKind::Task;
            let why = if task { REFUSED } else { FAILED };
            (RunOutcome::Failed, self.after(job, JobStatus::Failed, Some(why)))
        };
        let end = RunEnd {
            run,
            outcome,
            error: ended.error.map(cut),
            output: ended.output.map(cut),
            next,
            ..entry(job, rule.id.as_str().into(), started_at)
        };
        End { end, runner: Some(rule.runner.kind()) }
    }

    /// The next occurrence of a job that recurs, however this one ended; else
    /// it rests. Those that were missed are missed.
    fn after(&self, job: &Job, status: JobStatus, why: Option<&'static str>) -> NextState {
        let rests = || NextState::Rests(status, why.map(Arc::from));
        let Some(text) = &job.recurrence else { return rests() };
        match Recurrence::parse(text, job.execution) {
            Ok(recurrence) => {
                // A clock that was set back must not bring this one again.
                let after = job.execution.max(self.now().into());
                recurrence.next_after(after).map_or_else(rests, NextState::Recurs)
            }
            Err(problem) => {
                tracing::error!(job = ?job.id, problem, "a job's recurrence cannot be read");
                rests()
            }
        }
    }
}

/// An entry in a job's history, of a run that was not marked.
fn entry(job: &Job, rule: Arc<str>, started_at: Timestamp) -> RunEnd {
    RunEnd {
        id: job.id.clone(),
        version: job.version,
        run: None,
        execution: job.execution,
        attempt: job.attempts.saturating_add(1),
        rule,
        started_at,
        outcome: RunOutcome::Failed,
        error: None,
        output: None,
        next: NextState::Rests(JobStatus::Failed, None),
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}
