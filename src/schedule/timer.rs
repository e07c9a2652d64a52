//! Wakes the scheduler when something is due.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::domain::schedule::Nanos;

/// When the scheduler looks next.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    due: Mutex<Option<Nanos>>,
    sooner: Notify,
}

impl Alarm {
    /// Something is due then; wakes the timer when that is sooner than what
    /// it waits for.
    pub(super) fn arm(&self, due: Nanos) {
        let mut armed = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if armed.is_none_or(|armed| due < armed) {
            *armed = Some(due);
            self.sooner.notify_one();
        }
    }
}
