//! One attempt of a step as a child process: inputs on stdin, the result on
//! stdout, the failure in the exit status and on stderr.
//!
//! The child has a process group of its own, a clean environment and no open
//! files but its three pipes. Nothing from a template is ever a variable's
//! name, an argument or a path.

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStrExt, process::ExitStatusExt},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use bailiwick_client::{Error, HandlerError, StepContext, worker::RESULT_BYTES_MAX};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Child,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use self::tokens::TokenFiles;
use super::trace;
use crate::process::{self, Tail};

/// How long the client library waits for a stopped handler: the child's own
/// grace, and time to collect what it leaves.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(10);
/// From SIGTERM to SIGKILL.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// How long the pipes may stay open when all of the child's group is dead.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);
const GROUP_POLL: Duration = Duration::from_millis(20);
/// Exit status of a failure that every attempt would meet (`EX_DATAERR`).
const EXIT_PERMANENT: i32 = 65;
const STDERR_BYTES_KEPT: usize = 64 * 1024;
const STDERR_BYTES_IN_ERROR: usize = 8 * 1024;
const PATH_FALLBACK: &str = "/usr/local/bin:/usr/bin:/bin";
const FIRST_BEYOND_STDIO: i32 = 3;

/// What every handler of this process gets: chosen variables, and no files.
#[derive(Debug)]
pub struct Environment {
    variables: Vec<(OsString, OsString)>,
}

impl Environment {
    /// Takes PATH, HOME, the locale and the named variables of this process.
    pub fn from_process(pass: &[String]) -> Result<Self, Error> {
        if let Some(name) = pass.iter().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(Error::Setting(format!("`{name}` is not the name of a variable")));
        }
        keep_files_from_children();
        process::hide();
        Ok(Self { variables: chosen(env::vars_os(), pass) })
    }
}

/// Rust opens every file close-on-exec; one that came from this process's
/// parent may not be, and a handler would get it.
fn keep_files_from_children() {
    close_fds::set_fds_cloexec_threadsafe(FIRST_BEYOND_STDIO, &[]);
}

fn chosen(
    all: impl Iterator<Item = (OsString, OsString)>,
    pass: &[String],
) -> Vec<(OsString, OsString)> {
    let mut variables: Vec<_> = all
        .filter(|(name, _)| {
            name == "PATH"
                || name == "HOME"
                || name == "LANG"
                || name.as_bytes().starts_with(b"LC_")
                || pass.iter().any(|passed| OsStr::new(passed) == name)
        })
        .collect();
    if !variables.iter().any(|(name, _)| name == "PATH") {
        variables.push(("PATH".into(), PATH_FALLBACK.into()));
    }
    variables
}

/// A handler's shell command.
#[derive(Debug)]
pub struct Command {
    script: String,
    environment: Arc<Environment>,
    timeout: Option<Duration>,
}

/// What the child reads.
#[derive(Serialize)]
struct Input<'a> {
    context: &'a RawValue,
    results: BTreeMap<&'a str, &'a RawValue>,
    step: StepInput<'a>,
}

#[derive(Serialize)]
struct StepInput<'a> {
    task_uuid: &'a str,
    step_uuid: &'a str,
    name: &'a str,
    attempt: u32,
    namespace: &'a str,
    handler: &'a str,
    method: Option<&'a str>,
    template_name: &'a str,
    template_version: &'a str,
    initialization: &'a RawValue,
    deadline: Option<String>,
    timeout_at: Option<String>,
    /// The W3C trace context that the handler continues.
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
}

/// Why a child was not left to end by itself.
#[derive(Debug, Clone, Copy)]
enum Stopped {
    Cancelled,
    TimedOut(Duration),
    TooMuchOutput,
}

/// More came on stdout than a result may have.
#[derive(Debug)]
struct TooMuchOutput;

impl Command {
    /// A command for `/bin/sh -c`, in this environment; `timeout` bounds it
    /// beside the template's own.
    pub fn new(
        handler: &str,
        command: &str,
        environment: Arc<Environment>,
        timeout: Option<Duration>,
    ) -> Result<Self, Error> {
        if command.contains('\0') {
            return Err(Error::Setting(format!("the command of `{handler}` holds a NUL byte")));
        }
        Ok(Self { script: command.to_owned(), environment, timeout })
    }

    /// Runs the command for one step.
    pub async fn run(&self, step: StepContext) -> Result<Box<RawValue>, HandlerError> {
        let input = input(&step)?;
        let began = Instant::now();
        let until = step.timeout_at();
        let until = self.timeout.map_or(until, |own| until.min(began + own));
        let renewed = step.tokens();
        let tokens = Arc::clone(&renewed.borrow());
        let files = TokenFiles::new(&tokens).map_err(|error| {
            HandlerError::retryable(format!("the step's tokens cannot be kept: {error}"))
        })?;
        let mut child = self.spawn(files.variables(&tokens))?;
        let group = Group::of(&child)?;
        let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(HandlerError::retryable("the child has no pipes"));
        };

        let (mut output, mut errors) = (Vec::new(), Tail::new(STDERR_BYTES_KEPT));
        let feed = async move {
            // A child need not read its inputs.
            let _closed = stdin.write_all(&input).await;
            drop(stdin);
            Ok(())
        };
        let pipes = async {
            let errors = async {
                errors.fill(&mut stderr).await;
                Ok(())
            };
            tokio::try_join!(feed, collect(&mut stdout, &mut output), errors).map(|_| ())
        };
        let limits = Limits { began, until, cancelled: step.cancelled() };
        let (status, stopped) = tokio::select! {
            ended = attend(&mut child, group, pipes, limits) => ended,
            never = files.follow(renewed) => match never {},
        };
        verdict(status, stopped, &output, &errors, &step)
    }

    fn spawn(&self, tokens: Vec<(OsString, OsString)>) -> Result<Child, HandlerError> {
        let mut command = tokio::process::Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(&self.script)
            .env_clear()
            .envs(self.environment.variables.iter().map(|(name, value)| (name, value)))
            .envs(tokens)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
            .spawn()
            .map_err(|error| HandlerError::retryable(format!("/bin/sh cannot be started: {error}")))
    }
}

/// When a child is stopped.
struct Limits<'a> {
    began: Instant,
    until: Instant,
    cancelled: &'a CancellationToken,
}

/// Stays with the child to its end, which comes by itself or by us.
async fn attend(
    child: &mut Child,
    group: Group,
    pipes: impl Future<Output = Result<(), TooMuchOutput>>,
    limits: Limits<'_>,
) -> (std::io::Result<ExitStatus>, Option<Stopped>) {
    let Limits { began, until, cancelled } = limits;
    tokio::pin!(pipes);
    let mut piping = true;
    let mut stopped = loop {
        tokio::select! {
            _exited = child.wait() => break None,
            piped = &mut pipes, if piping => {
                piping = false;
                if piped.is_err() {
                    break Some(Stopped::TooMuchOutput);
                }
            }
            () = sleep_until(until) => break Some(Stopped::TimedOut(until - began)),
            // At its timeout the library cancels the token, too.
            () = cancelled.cancelled() => break Some(if Instant::now() >= until {
                Stopped::TimedOut(until - began)
            } else {
                Stopped::Cancelled
            }),
        }
    };
    if stopped.is_some() {
        let ended = async { tokio::join!(child.wait(), group.terminate()) };
        tokio::pin!(ended);
        // The pipes go on: a child that cleans up may have much to say.
        let both = async {
            loop {
                tokio::select! {
                    _ended = &mut ended => break,
                    _piped = &mut pipes, if piping => piping = false,
                }
            }
        };
        let _late = timeout(KILL_AFTER, both).await;
    }
    // Also after a good end: what the child left in its group goes with it.
    group.finish();
    let status = child.wait().await;
    // What left the group may hold the pipes; what came, came.
    if piping && let Ok(Err(TooMuchOutput)) = timeout(DRAIN_PATIENCE, &mut pipes).await {
        stopped = stopped.or(Some(Stopped::TooMuchOutput));
    }
    (status, stopped)
}

fn input(step: &StepContext) -> Result<Vec<u8>, HandlerError> {
    let lease = step.lease();
    let time = |at: Option<prost_types::Timestamp>| {
        at.and_then(|at| jiff::Timestamp::new(at.seconds, at.nanos).ok()).map(|at| at.to_string())
    };
    let input = Input {
        context: raw("the context", step.context_json())?,
        results: step
            .results()
            .iter()
            .map(|(parent, text)| Ok((parent.as_str(), raw("a parent's result", text)?)))
            .collect::<Result<_, HandlerError>>()?,
        step: StepInput {
            task_uuid: step.task_uuid(),
            step_uuid: step.step_uuid(),
            name: step.name(),
            attempt: step.attempt(),
            namespace: step.namespace(),
            handler: step.handler(),
            method: lease.method.as_deref(),
            template_name: &lease.template_name,
            template_version: &lease.template_version,
            initialization: raw("the initialization", &lease.initialization)?,
            deadline: time(lease.deadline),
            timeout_at: time(lease.timeout_at),
            traceparent: trace::traceparent(step),
        },
    };
    serde_json::to_vec(&input)
        .map_err(|error| HandlerError::permanent(format!("the inputs cannot be written: {error}")))
}

fn raw<'a>(what: &str, text: &'a str) -> Result<&'a RawValue, HandlerError> {
    serde_json::from_str(if text.is_empty() { "null" } else { text })
        .map_err(|error| HandlerError::permanent(format!("{what} is not JSON: {error}")))
}

fn verdict(
    status: std::io::Result<ExitStatus>,
    stopped: Option<Stopped>,
    output: &[u8],
    errors: &Tail,
    step: &StepContext,
) -> Result<Box<RawValue>, HandlerError> {
    let said = errors.text(STDERR_BYTES_KEPT);
    if !said.is_empty() {
        debug!(step_uuid = step.step_uuid(), stderr = said, "the handler said");
    }
    let with_stderr = |what: String| match errors.text(STDERR_BYTES_IN_ERROR) {
        said if said.is_empty() => what,
        said => format!("{what}: {said}"),
    };
    match stopped {
        Some(Stopped::Cancelled) => {
            return Err(HandlerError::retryable(with_stderr("cancelled".to_owned())));
        }
        Some(Stopped::TimedOut(after)) => {
            let what = format!("timed out after {} s", after.as_secs_f64().round());
            return Err(HandlerError::retryable(with_stderr(what)));
        }
        Some(Stopped::TooMuchOutput) => {
            let what = format!("the handler wrote more than {RESULT_BYTES_MAX} bytes on stdout");
            return Err(HandlerError::permanent(with_stderr(what)));
        }
        None => {}
    }
    let status = status
        .map_err(|error| HandlerError::retryable(format!("the child's end is unknown: {error}")))?;
    match (status.code(), status.signal()) {
        (Some(0), _) => result(output).map_err(|what| HandlerError::permanent(with_stderr(what))),
        (Some(EXIT_PERMANENT), _) => {
            Err(HandlerError::permanent(with_stderr(format!("exit status {EXIT_PERMANENT}"))))
        }
        (Some(code), _) => Err(HandlerError::retryable(with_stderr(format!("exit status {code}")))),
        (None, Some(signal)) => {
            Err(HandlerError::retryable(with_stderr(format!("killed by signal {signal}"))))
        }
        (None, None) => Err(HandlerError::retryable(with_stderr(status.to_string()))),
    }
}

fn result(output: &[u8]) -> Result<Box<RawValue>, String> {
    let text = std::str::from_utf8(output)
        .map_err(|_| "the handler's output is not UTF-8".to_owned())?
        .trim();
    serde_json::from_str(if text.is_empty() { "null" } else { text })
        .map_err(|error| format!("the handler's output is not JSON: {error}"))
}

async fn collect(
    pipe: &mut (impl AsyncRead + Unpin),
    output: &mut Vec<u8>,
) -> Result<(), TooMuchOutput> {
    let mut piece = vec![0; 64 * 1024];
    // A pipe that cannot be read has ended as far as we are concerned.
    while let Ok(read @ 1..) = pipe.read(&mut piece).await {
        output.extend(piece.iter().take(read));
        if output.len() > RESULT_BYTES_MAX {
            return Err(TooMuchOutput);
        }
    }
    Ok(())
}

/// The child's process group: dead when this is dropped, whatever happens.
#[derive(Debug)]
struct Group(Pid);

impl Group {
    fn of(child: &Child) -> Result<Self, HandlerError> {
        child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .map(Self)
            .ok_or_else(|| HandlerError::retryable("the child has no process id"))
    }

    /// Asks the group to end and waits until it is gone.
    async fn terminate(&self) {
        // An error says that it is gone already.
        let _gone = kill_process_group(self.0, Signal::TERM);
        while test_kill_process_group(self.0).is_ok() {
            sleep(GROUP_POLL).await;
        }
    }

    /// Kills what is left, once: later the id may be another's.
    fn finish(self) {
        drop(self);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _gone = kill_process_group(self.0, Signal::KILL);
    }
}

#[cfg(test)]
mod tests;
mod tokens;
