//! The runners: what a rule does with a job that is due.

use crate::domain::schedule::Runner;

use super::Error;

/// What runners work with.
#[derive(Debug, Default)]
pub struct Tools {}

impl Tools {
    /// Whether a runner can be used as it is written; looked at when a rule is
    /// set.
    #[expect(clippy::unused_self, reason = "runners with settings look at them")]
    pub(super) fn check(&self, _runner: &Runner) -> Result<(), Error> {
        Ok(())
    }
}
