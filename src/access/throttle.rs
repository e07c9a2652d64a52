//! Keeps an attacker from filling the log.

use std::sync::{Mutex, PoisonError};

use crate::domain::Timestamp;

/// How many lines may come at once.
const BURST: i64 = 100;
/// How long one line's worth takes to come back.
const MICROS_PER_LINE: i64 = 100_000;

/// A bucket of lines.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<Bucket>);

#[derive(Debug, Default)]
struct Bucket {
    /// When the bucket is full again; in the past it is full now.
    full_at: i64,
    suppressed: u64,
}

impl Throttle {
    /// Whether a line may be written now, and how many were not since the
    /// one before.
    pub(super) fn admit(&self, now: Timestamp) -> Option<u64> {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now.micros();
        let owed = BURST * MICROS_PER_LINE;
        // A clock that was set back must not silence the log.
        let full_at = bucket.full_at.max(now).min(now.saturating_add(owed));
        bucket.full_at = full_at;
        if full_at.saturating_add(MICROS_PER_LINE) > now.saturating_add(owed) {
            bucket.suppressed += 1;
            return None;
        }
        bucket.full_at = full_at.saturating_add(MICROS_PER_LINE);
        Some(std::mem::take(&mut bucket.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let throttle = Throttle::default();
        let at = Timestamp::from_seconds(1_000_000);
        let admitted = (0..250).filter(|_| throttle.admit(at).is_some()).count();
        assert_eq!(admitted, 100);
        assert_eq!(throttle.admit(at.plus_ms(99)), None);
        assert_eq!(throttle.admit(at.plus_ms(100)), Some(151));
        assert_eq!(throttle.admit(at.plus_ms(100)), None);
    }

    #[test]
    fn a_clock_set_back_does_not_silence_the_log() {
        let throttle = Throttle::default();
        assert!(throttle.admit(Timestamp::from_seconds(2_000_000)).is_some());
        let earlier = Timestamp::from_seconds(1_000_000);
        assert_eq!(throttle.admit(earlier), None);
        assert!(throttle.admit(earlier.plus_ms(100)).is_some());
    }
}
