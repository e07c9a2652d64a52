//! What the engine counts. No figure has a label by tenant (SE-11).

use crate::domain::task::TaskState;

pub(super) fn task_created() {
    metrics::counter!("bailiwick_tasks_created_total").increment(1);
}

pub(super) fn task_finished(state: TaskState) {
    metrics::counter!("bailiwick_tasks_finished_total", "state" => state.as_str()).increment(1);
}

pub(super) fn steps_leased(steps: usize) {
    metrics::counter!("bailiwick_steps_leased_total").increment(count(steps));
}

pub(super) fn step_finished(outcome: &'static str) {
    metrics::counter!("bailiwick_steps_finished_total", "outcome" => outcome).increment(1);
}

pub(super) fn leases_expired(leases: usize) {
    metrics::counter!("bailiwick_lease_expirations_total").increment(count(leases));
}

pub(super) fn workers_connected(workers: usize) {
    metrics::gauge!("bailiwick_workers_connected").set(gauge(workers));
}

pub(super) fn seats_waiting(seats: usize) {
    metrics::gauge!("bailiwick_seats_waiting").set(gauge(seats));
}

fn count(items: usize) -> u64 {
    u64::try_from(items).unwrap_or(u64::MAX)
}

fn gauge(items: usize) -> f64 {
    u32::try_from(items).unwrap_or(u32::MAX).into()
}
