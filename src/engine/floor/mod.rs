//! Where workers wait and watchers listen: the store's desk. Everything here
//! answers at once, under locks that no `await` holds.
//!
//! Not here: ready steps, which lie in the store's queues; here are only the
//! seats that wait for them.

mod bells;
mod seats;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use tokio::sync::Notify;

pub(super) use self::{
    bells::Bell,
    seats::{DispatchOrder, Sitting, Waiting},
};
use self::{bells::Bells, seats::Seats};
use super::{figures, session::Offer};
use crate::{
    domain::{LeaseId, Namespace, TaskId, Timestamp},
    storage::{Desk, Effects, Leased, Seat, WorkerRecord},
};

/// Made before the store is opened, which asks it for seats; the engine's
/// sessions and calls sit on it.
pub struct Floor {
    seats: Mutex<Seats>,
    bells: Arc<Bells>,
    /// The earliest moment that the timer must not miss, in microseconds.
    due: AtomicI64,
    due_sooner: Notify,
    orphaned: Notify,
}

impl Floor {
    /// An empty floor.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            seats: Mutex::default(),
            bells: Arc::default(),
            due: AtomicI64::new(i64::MAX),
            due_sooner: Notify::new(),
            orphaned: Notify::new(),
        })
    }

    /// A panic under the lock is a bug that must not take the others along:
    /// each change under it is complete before anything can fail.
    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody waits for work; leaves by dropping the stay.
    pub(super) fn enter(self: &Arc<Self>, sitting: Sitting) -> Stay {
        let bell = Arc::new(Notify::new());
        let sitter = self.seats().enter(sitting, Arc::clone(&bell));
        Stay { floor: Arc::clone(self), sitter, bell }
    }

    /// A dispatch for a sitter is over; `drained` when it found less than it
    /// might have taken.
    pub(super) fn dispatched(&self, sitter: u64, order: &DispatchOrder, drained: bool) {
        self.seats().dispatched(sitter, order, drained);
    }

    /// The lease has ended by its holder's own report.
    pub(super) fn forget(&self, lease: LeaseId) {
        self.seats().forget(lease);
    }

    /// Listens for changes of a task.
    pub(super) fn listen(&self, task: TaskId) -> Bell {
        Bells::listen(&self.bells, task)
    }

    pub(super) fn is_connected(&self, worker: &WorkerRecord) -> bool {
        self.seats().is_connected(worker)
    }

    /// The workers of open sessions.
    pub(super) fn connected(&self) -> Vec<WorkerRecord> {
        self.seats().connected()
    }

    /// How many open sessions offer a handler in a namespace.
    pub(super) fn workers_offering(&self, namespace: &Namespace, handler: &str) -> u32 {
        self.seats().workers_offering(namespace, handler)
    }

    /// The handlers that open sessions offer in exactly one namespace each.
    pub(super) fn handlers_offered(
        &self,
        within: impl Fn(&Namespace) -> bool,
    ) -> BTreeMap<(String, String), Namespace> {
        self.seats().handlers_offered(within)
    }

    /// Which queues have waiting seats.
    pub(super) fn waiting(&self) -> Vec<Waiting> {
        self.seats().waiting()
    }

    /// How many sessions are open, and how many seats wait.
    pub(super) fn figures(&self) -> (usize, usize) {
        self.seats().figures()
    }

    /// Whether nobody waits any more.
    pub(super) fn is_empty(&self) -> bool {
        self.seats().is_empty()
    }

    /// Leases that reached nobody, to be given back.
    pub(super) fn take_orphans(&self) -> Vec<LeaseId> {
        self.seats().take_orphans()
    }

    /// They could not be given back yet.
    pub(super) fn keep_orphans(&self, leases: Vec<LeaseId>) {
        self.seats().keep_orphans(leases);
    }

    /// Resolves when there may be orphans.
    pub(super) async fn orphaned(&self) {
        self.orphaned.notified().await;
    }

    /// Forgets what was due, before the store is asked anew.
    pub(super) fn disarm(&self) {
        self.due.store(i64::MAX, Ordering::SeqCst);
    }

    /// Something is due then.
    pub(super) fn arm(&self, due: Timestamp) {
        if due.micros() < self.due.fetch_min(due.micros(), Ordering::SeqCst) {
            self.due_sooner.notify_one();
        }
    }

    /// The earliest moment that is known to be due.
    pub(super) fn due(&self) -> Timestamp {
        Timestamp::from_micros(self.due.load(Ordering::SeqCst))
    }

    /// Resolves when something is due sooner than was known.
    pub(super) async fn due_sooner(&self) {
        self.due_sooner.notified().await;
    }
}

impl Desk for Floor {
    fn take(&self, namespace: &Namespace, handler: &str) -> Option<Seat> {
        self.seats().take(namespace, handler)
    }

    fn give_back(&self, seat: Seat) {
        self.seats().give_back(&seat);
    }

    fn committed(&self, effects: Effects) {
        let Effects { granted, revoked, changed, unserved, due, finished, expired } = effects;
        finished.into_iter().for_each(figures::task_finished);
        if expired > 0 {
            figures::leases_expired(expired);
        }
        let orphans = {
            let mut seats = self.seats();
            if !granted.is_empty() {
                figures::steps_leased(granted.len());
            }
            for (seat, leased) in granted {
                seats.grant(&seat, leased);
            }
            for (lease, why) in revoked {
                seats.revoke(lease, why);
            }
            for (namespace, handler) in unserved {
                seats.unserved(&namespace, &handler);
            }
            seats.has_orphans()
        };
        if orphans {
            self.orphaned.notify_one();
        }
        self.bells.ring(&changed);
        if let Some(due) = due {
            self.arm(due);
        }
    }
}

impl fmt::Debug for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sessions, seats) = self.figures();
        write!(f, "Floor({sessions} sessions, {seats} seats)")
    }
}

/// Somebody's stay on the floor. Dropping it ends the wait: what was leased
/// for it and not fetched goes back.
pub(super) struct Stay {
    floor: Arc<Floor>,
    sitter: u64,
    bell: Arc<Notify>,
}

impl Stay {
    pub(super) fn ticket(&self) -> u64 {
        self.sitter
    }

    /// Rings when there is mail or a reason to dispatch.
    pub(super) fn bell(&self) -> &Notify {
        &self.bell
    }

    pub(super) fn credit(&self, steps: u32) {
        self.floor.seats().credit(self.sitter, steps);
        self.bell.notify_one();
    }

    /// Takes all credit back, and gives back what was not fetched.
    pub(super) fn recall(&self) {
        self.floor.seats().recall(self.sitter);
        self.floor.orphaned.notify_one();
    }

    /// What to look for in the queues, when there is a reason to.
    pub(super) fn order(&self) -> Option<DispatchOrder> {
        self.floor.seats().order(self.sitter)
    }

    pub(super) fn next_offer(&self) -> Option<Offer> {
        self.floor.seats().next_offer(self.sitter)
    }

    pub(super) fn has_lease(&self) -> bool {
        self.floor.seats().has_lease(self.sitter)
    }

    /// Leaves with the leases that came.
    pub(super) fn take_leases(self) -> Vec<Leased> {
        let mut leases = Vec::new();
        let mut seats = self.floor.seats();
        while let Some(offer) = seats.next_offer(self.sitter) {
            if let Offer::Lease(lease) = offer {
                leases.push(*lease);
            }
        }
        drop(seats);
        leases
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.floor.seats().leave(self.sitter);
        self.floor.orphaned.notify_one();
    }
}
