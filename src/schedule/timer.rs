//! Wakes the scheduler when something is due.
//!
//! The timer of the runtime is coarse, a millisecond: a thread of its own
//! waits instead. It waits by the monotonic clock and never long, and reads
//! the wall clock each time, by which jobs are due: a clock that jumps neither
//! loses a job nor runs one twice.

use std::{
    num::NonZeroU64,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{Error, Scheduler, ahead, firing};
use crate::domain::{Clock, schedule::Nanos};

/// The longest wait of the thread: so soon it learns that the clock jumped.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// How often the store is asked without being told.
const LOOK: Duration = Duration::from_secs(1);
/// The longest pause between two looks while much is under way: the store
/// shows that again each time.
const BREATH_MAX: Duration = Duration::from_millis(50);
/// How long the store may take before it counts as failing.
const PATIENCE: Duration = Duration::from_secs(5);
/// The first and the longest pause after a failure.
pub(super) const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// When the scheduler looks next.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    state: Mutex<State>,
    changed: Condvar,
    rings: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// When the store is asked.
    due: Option<Nanos>,
    /// When the first is due that is held.
    held: Option<Nanos>,
    closed: bool,
}

impl Alarm {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is due then; wakes the timer when that is sooner than what
    /// it waits for.
    pub(super) fn arm(&self, due: Nanos) {
        let mut state = self.state();
        if state.due.is_none_or(|armed| due < armed) {
            state.due = Some(due);
            self.changed.notify_one();
        }
    }

    /// A job that is held is due then.
    pub(super) fn hold(&self, due: Nanos) {
        let mut state = self.state();
        if state.held.is_none_or(|held| due < held) {
            state.held = Some(due);
            self.changed.notify_one();
        }
    }

    /// The scheduler looks now.
    pub(super) fn ring(&self) {
        self.rings.notify_one();
    }

    /// Before the store is asked: a hint that comes meanwhile must count.
    fn disarm(&self) {
        self.state().due = None;
    }

    async fn rang(&self) {
        self.rings.notified().await;
    }

    fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// Rings when what is armed is due and starts what is held, until it is
    /// closed: the thread.
    fn watch(&self, clock: &dyn Clock, start: impl Fn() -> Option<Nanos>) {
        let mut state = self.state();
        while !state.closed {
            let mut wait = WAIT_MAX;
            if let Some(due) = state.held {
                let left = clock.now().until(due.timestamp());
                if left.is_zero() {
                    state.held = None;
                    drop(state);
                    if let Some(next) = start() {
                        self.hold(next);
                    }
                    state = self.state();
                    continue;
                }
                wait = left.min(WAIT_MAX);
            }
            if let Some(due) = state.due {
                let left = clock.now().until(due.timestamp());
                if left.is_zero() {
                    state.due = None;
                    self.ring();
                    continue;
                }
                wait = left.min(wait);
            }
            let waited = self.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The thread, which ends with this.
pub(super) struct Watch(Arc<Scheduler>);

impl Watch {
    pub(super) fn start(scheduler: &Arc<Scheduler>) -> Self {
        let watch = Arc::clone(scheduler);
        let thread = std::thread::Builder::new().name("schedule-clock".to_owned());
        let runtime = tokio::runtime::Handle::current();
        let run = move || {
            let _entered = runtime.enter();
            // The kernel may wake a thread 50 µs late to save power. Where it
            // does not let itself be told jobs start that much later.
            #[cfg(target_os = "linux")]
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
            watch.alarm.watch(&*watch.clock, || ahead::start(&watch));
        };
        if let Err(error) = thread.spawn(run) {
            tracing::error!(%error, "the clock of the scheduler did not start; jobs run up to 1 s late");
        }
        Self(Arc::clone(scheduler))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.alarm.close();
    }
}

/// Looks for what is due, again and again.
pub(super) async fn look(scheduler: &Arc<Scheduler>) {
    let mut pause = PAUSE.0;
    loop {
        scheduler.alarm.disarm();
        let begun = tokio::time::Instant::now();
        match round(scheduler).await {
            Ok(_) => {
                pause = PAUSE.0;
                if scheduler.work().is_much() {
                    // Looking takes a quarter of the time, not all of it.
                    tokio::time::sleep((begun.elapsed() * 3).min(BREATH_MAX)).await;
                }
                // The time is up or it rang: both mean to look.
                let _ = tokio::time::timeout(LOOK, scheduler.alarm.rang()).await;
            }
            Err(error) => {
                tracing::error!(error = %error, "the scheduler could not look for what is due");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

/// One round, which is never broken off; one that hangs shows as one that
/// fails.
async fn round(scheduler: &Arc<Scheduler>) -> Result<Option<Nanos>, Error> {
    let mut round = std::pin::pin!(firing::round(scheduler));
    let looked = match tokio::time::timeout(PATIENCE, &mut round).await {
        Ok(looked) => looked,
        Err(elapsed) => {
            scheduler.pulse.beat(&Err::<(), _>(elapsed));
            round.await
        }
    };
    scheduler.pulse.beat(&looked);
    looked
}
