//! Commands of others as processes: as whom they run.
//!
//! Not here: what a command is for (`schedule`, `worker`).

mod run_as;

pub use self::run_as::{RunAs, RunAsError};
