//! Commands of others as processes: as whom, in what environment, with what
//! bounds, and never longer than they may.
//!
//! A command has a supervisor between itself and the server: this program
//! under a hidden name ([`entry`]). It ends all that the command started when
//! the command ends, when it is told to, and when the server is gone.
//!
//! Not here: what a command is for (`schedule`, `worker`).

mod run_as;
mod stages;
mod supervised;
mod tail;

pub use self::{
    run_as::{RunAs, RunAsError},
    stages::entry,
    supervised::{Launcher, Report},
    tail::Tail,
};

/// A child of the same user could read this process's environment, and the
/// credential in it, through `/proc`, or trace it (SE-19).
pub fn hide() {
    #[cfg(target_os = "linux")]
    if let Err(error) =
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        tracing::warn!(%error, "commands can look into this process");
    }
}

/// Where commands are looked up.
pub const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
