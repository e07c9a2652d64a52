//! How much the log says about single jobs.

use crate::domain::Timestamp;

/// How many lines a second the log gets about single jobs.
const LINES_MAX: u32 = 20;

/// Keeps a flood of jobs out of the log.
#[derive(Debug, Default)]
pub(super) struct Lines {
    second: i64,
    written: u32,
    suppressed: u64,
}

impl Lines {
    /// Whether another line may be written, and how many were not before.
    pub(super) fn admit(&mut self, now: Timestamp) -> Option<u64> {
        if self.second != now.seconds() {
            (self.second, self.written) = (now.seconds(), 0);
        }
        if self.written >= LINES_MAX {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.written = self.written.saturating_add(1);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_jobs_is_kept_out_of_the_log() {
        let mut lines = Lines::default();
        let at = Timestamp::from_seconds;
        let written = (0..100).filter(|_| lines.admit(at(7)).is_some()).count();
        assert_eq!(written, 20);
        assert_eq!(lines.admit(at(8)), Some(80));
        assert_eq!(lines.admit(at(8)), Some(0));
    }
}
