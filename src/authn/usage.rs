//! What credentials were used for: noted in memory by every call, and now and
//! then taken from there to be written down.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use crate::domain::{Permission, Timestamp};

/// Uses that lie closer together are one.
const APART_MICROS: i64 = 1_000_000;

/// When a line of rotations last exercised each permission. A successor goes
/// on with it: that a secret was replaced says nothing about what is needed.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// In microseconds; 0 is never. Not there before the first use.
    at: OnceLock<Box<[AtomicI64; Permission::ALL.len()]>>,
    /// What was exercised since it was last written down, as bits.
    fresh: AtomicU64,
}

impl Line {
    fn exercised(&self, permission: Permission, at: Timestamp) {
        let slots = self.at.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicI64::new(0))));
        let Some(slot) = slots.get(permission.index()) else { return };
        if note(slot, at) {
            self.fresh.fetch_or(1 << permission.index(), Ordering::Release);
        }
    }

    /// As it was written down.
    pub(super) fn restore(&self, permission: Permission, at: Timestamp) {
        let fresh = self.fresh.load(Ordering::Relaxed);
        self.exercised(permission, at);
        self.fresh.store(fresh, Ordering::Relaxed);
    }

    /// When a permission was last exercised.
    pub(super) fn last(&self, permission: Permission) -> Option<Timestamp> {
        let at = self.at.get()?.get(permission.index())?.load(Ordering::Relaxed);
        (at > 0).then(|| Timestamp::from_micros(at))
    }

    /// What was exercised since the last call, with its moments.
    pub(super) fn take(&self) -> impl Iterator<Item = (Permission, Timestamp)> + '_ {
        let fresh = match self.fresh.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.fresh.swap(0, Ordering::Acquire),
        };
        let set = Permission::ALL.iter().filter(move |one| fresh & (1 << one.index()) != 0);
        set.filter_map(|one| Some((*one, self.last(*one)?)))
    }

    /// It was not written down after all.
    pub(super) fn put_back(&self, permission: Permission) {
        self.fresh.fetch_or(1 << permission.index(), Ordering::Release);
    }
}

/// When a credential was last used, and for what.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// In microseconds; 0 is never in the life of this process.
    at: AtomicI64,
    pub(super) line: Arc<Line>,
}

impl Usage {
    pub(super) fn new(line: Arc<Line>) -> Self {
        Self { at: AtomicI64::new(0), line }
    }

    pub(super) fn used(&self, at: Timestamp) {
        note(&self.at, at);
    }

    pub(super) fn exercised(&self, permission: Permission, at: Timestamp) {
        self.used(at);
        self.line.exercised(permission, at);
    }

    pub(super) fn last(&self) -> Option<Timestamp> {
        let at = self.at.load(Ordering::Relaxed);
        (at > 0).then(|| Timestamp::from_micros(at))
    }
}

/// Moves a moment on; most calls only read it.
fn note(slot: &AtomicI64, at: Timestamp) -> bool {
    let known = slot.load(Ordering::Relaxed);
    let later = known == 0 || at.micros().saturating_sub(known) >= APART_MICROS;
    later && slot.fetch_max(at.micros(), Ordering::Relaxed) < at.micros()
}

/// Whether a line in the log is due; then only one caller hears so.
pub(super) fn is_due(logged_at: &AtomicI64, now: Timestamp, every_seconds: i64) -> bool {
    let last = logged_at.load(Ordering::Relaxed);
    now.seconds().saturating_sub(last) >= every_seconds
        && logged_at
            .compare_exchange(last, now.seconds(), Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_exercised_is_taken_once_and_kept() {
        let line = Line::default();
        let at = Timestamp::from_seconds(1_000);
        assert_eq!(line.last(Permission::TasksRead), None);
        assert_eq!(line.take().count(), 0);
        for permission in Permission::ALL {
            line.exercised(*permission, at);
        }
        line.exercised(Permission::TasksRead, at.plus_ms(10));
        let all: Vec<_> = line.take().collect();
        assert_eq!(all.len(), Permission::ALL.len());
        assert!(all.iter().all(|(_, taken)| *taken == at), "a moment later is no other use");
        assert_eq!(line.take().count(), 0);
        line.exercised(Permission::TasksRead, at.plus_ms(-5_000));
        assert_eq!(line.take().count(), 0, "never back");
        line.exercised(Permission::TasksRead, at.plus_ms(5_000));
        let read = (Permission::TasksRead, at.plus_ms(5_000));
        assert_eq!(line.take().collect::<Vec<_>>(), [read]);
        line.put_back(Permission::TasksRead);
        assert_eq!(line.take().collect::<Vec<_>>(), [read]);
    }

    #[test]
    fn what_is_restored_is_not_written_again() {
        let line = Line::default();
        let at = Timestamp::from_seconds(1_000);
        line.restore(Permission::TasksRead, at);
        assert_eq!(line.last(Permission::TasksRead), Some(at));
        assert_eq!(line.take().count(), 0);
    }
}
