//! What the worker counts. No figure has a label by tenant (SE-11), handlers
//! included.

use bailiwick_client::HandlerError;
use tokio::time::Instant;

const RUNNING: &str = "bailiwick_worker_leases_running";

pub(super) fn connected(open: bool) {
    metrics::gauge!("bailiwick_worker_connected").set(if open { 1.0 } else { 0.0 });
    // It shows from the beginning, and keeps its value.
    metrics::gauge!(RUNNING).increment(0.0);
}

/// A lease whose handler runs.
#[derive(Debug)]
pub(super) struct Run {
    began: Instant,
    outcome: &'static str,
}

impl Run {
    pub(super) fn begin() -> Self {
        metrics::gauge!(RUNNING).increment(1.0);
        // Who drops it leaves it at that.
        Self { began: Instant::now(), outcome: "dropped" }
    }

    /// Counts how the handler ended, and hands its result on.
    pub(super) fn ended<T>(mut self, result: Result<T, HandlerError>) -> Result<T, HandlerError> {
        self.outcome = match &result {
            Ok(_) => "complete",
            Err(error) if error.is_retryable() => "failed",
            Err(_) => "failed_for_good",
        };
        result
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        metrics::gauge!(RUNNING).decrement(1.0);
        metrics::counter!("bailiwick_worker_handlers_total", "outcome" => self.outcome)
            .increment(1);
        metrics::histogram!("bailiwick_worker_handler_duration_seconds")
            .record(self.began.elapsed());
    }
}
