//! What the scheduler counts. No figure has a label by tenant (SE-11).

use crate::domain::schedule::{Nanos, RunOutcome, RunnerKind};

/// How many jobs are due and not done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Due, and waiting for their turn.
    pub pending: usize,
    /// Runs under way.
    pub inflight: usize,
}

pub(super) fn ran(runner: Option<RunnerKind>, outcome: RunOutcome) {
    let runner = runner.map_or("none", RunnerKind::as_str);
    metrics::counter!(
        "bailiwick_schedule_runs_total", "runner" => runner, "outcome" => outcome.as_str())
    .increment(1);
}

/// A run begins that was due then.
#[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "a figure")]
pub(super) fn late(due: Nanos, now: Nanos) {
    let late = now.0.saturating_sub(due.0).max(0) as f64 / 1e9;
    metrics::histogram!("bailiwick_schedule_lateness_seconds").record(late);
}

pub(super) fn stand(figures: Figures) {
    let gauge = |items: usize| f64::from(u32::try_from(items).unwrap_or(u32::MAX));
    metrics::gauge!("bailiwick_schedule_pending_runs").set(gauge(figures.pending));
    metrics::gauge!("bailiwick_schedule_inflight_runs").set(gauge(figures.inflight));
}
