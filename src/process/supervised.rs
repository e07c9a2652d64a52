//! The server's side of a command: start its supervisor, take what it says,
//! bound its time.

use std::{
    ffi::OsStr,
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{net::unix::pipe::Receiver, process::Child, time::timeout};

use super::{PATH, RunAs, Tail, stages};

/// How long a supervisor may take to end a command that is stopped: longer
/// than it waits itself.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long the pipe may stay open when all that the command started is dead.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);
/// How much of the output is kept.
const OUTPUT_BYTES: usize = 4 * 1024;

/// Starts commands, all as the same user.
#[derive(Clone, Debug)]
pub struct Launcher {
    program: PathBuf,
    run_as: RunAs,
    time_max: Duration,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Why it was no success.
    pub ended: Result<(), String>,
    /// The end of what it wrote, without control characters.
    pub output: String,
}

impl Launcher {
    /// Commands run as this user, and no longer than this. Those of the
    /// server's own user cannot look into this process from now on.
    pub fn new(run_as: RunAs, time_max: Duration) -> io::Result<Self> {
        if run_as.is_server() {
            super::hide();
        }
        Ok(Self::by(stages::own_program()?, run_as, time_max))
    }

    /// The same by another file of this program.
    #[must_use]
    pub const fn by(program: PathBuf, run_as: RunAs, time_max: Duration) -> Self {
        Self { program, run_as, time_max }
    }

    /// Whether commands can be run as they should; says why not.
    pub async fn probe(&self) -> Result<(), String> {
        let Report { ended, output } = self.run(&["/bin/sh", "-c", ":"], &[]).await;
        ended.map_err(|error| if output.is_empty() { error } else { format!("{error}: {output}") })
    }

    /// Runs a program with its arguments to its end; what has no slash is
    /// looked up in [`PATH`]. When the future is dropped, the command and all
    /// that it started ends.
    pub async fn run<A: AsRef<OsStr>>(
        &self,
        command: &[A],
        variables: &[(&str, String)],
    ) -> Report {
        let failed = |error: io::Error| Report {
            ended: Err(format!("no process can be started: {error}")),
            output: String::new(),
        };
        let (mut child, mut pipe) = match self.spawn(command, variables) {
            Ok(started) => started,
            Err(error) => return failed(error),
        };
        let mut tail = Tail::new(OUTPUT_BYTES);
        let ended = self.attend(&mut child, tail.fill(&mut pipe)).await;
        Report { ended, output: tail.text(OUTPUT_BYTES) }
    }

    fn spawn<A: AsRef<OsStr>>(
        &self,
        command: &[A],
        variables: &[(&str, String)],
    ) -> io::Result<(Child, Receiver)> {
        // One pipe for both, so that the lines stay in order.
        let (read, write) = io::pipe()?;
        let read = Receiver::from_owned_fd(OwnedFd::from(read))?;
        let child = tokio::process::Command::new(&self.program)
            .args(stages::arguments(&self.run_as))
            .args(command)
            .env_clear()
            .env("PATH", PATH)
            .env("LANG", "C.UTF-8")
            .env("HOME", self.run_as.home())
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(write.try_clone()?)
            .stderr(write)
            .spawn()?;
        Ok((child, read))
    }

    async fn attend(
        &self,
        child: &mut Child,
        output: impl Future<Output = ()>,
    ) -> Result<(), String> {
        // The supervisor ends the command when this is closed: by us, or by
        // the system when we are gone.
        let lifeline = child.stdin.take();
        tokio::pin!(output);
        let mut open = true;
        let status = {
            let ended = async {
                tokio::select! {
                    status = child.wait() => Some(status),
                    () = tokio::time::sleep(self.time_max) => None,
                }
            };
            along(ended, &mut output, &mut open).await
        };
        let verdict = if let Some(status) = status {
            status.map_err(|error| format!("its end is unknown: {error}")).and_then(verdict)
        } else {
            drop(lifeline);
            if along(timeout(STOP_PATIENCE, child.wait()), &mut output, &mut open).await.is_err() {
                // An error says that it is gone already.
                let _gone = child.start_kill();
            }
            Err(format!("timed out after {} s", self.time_max.as_secs()))
        };
        if open {
            // What got away from its supervisor may hold the pipe.
            let _late = timeout(DRAIN_PATIENCE, output).await;
        }
        verdict
    }
}

/// Waits for one thing while the output is taken.
async fn along<T>(
    what: impl Future<Output = T>,
    output: &mut (impl Future<Output = ()> + Unpin),
    open: &mut bool,
) -> T {
    tokio::pin!(what);
    loop {
        tokio::select! {
            done = &mut what => return done,
            () = &mut *output, if *open => *open = false,
        }
    }
}

fn verdict(status: ExitStatus) -> Result<(), String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(format!("exit status {code}")),
        (None, Some(signal)) => Err(format!("killed by signal {signal}")),
        (None, None) => Err(status.to_string()),
    }
}
