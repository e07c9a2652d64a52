//! The two stages between the server and a command, each this program under a
//! hidden name: the supervisor, which stays, and the entrance, which puts
//! rights down and becomes the command.
//!
//! They have one thread when it matters and none of the server's files,
//! variables or memory.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{self, ExitCode, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use nix::{
    sys::{prctl, signal},
    unistd::{setgid, setgroups, setuid},
};
use rustix::{
    fs::Mode,
    io::Errno,
    process::{
        Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, getpid,
        getuid, kill_process, kill_process_group, setrlimit, setsid, umask, wait, waitid,
    },
};

#[cfg(target_os = "linux")]
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities,
};

use super::{RunAs, run_as::Ids};

const SUPERVISE: &str = "__supervise";
const ENTER: &str = "__enter";
/// The text of ids that stay as they are.
const AS_IS: &str = "-";
/// From SIGTERM to SIGKILL.
const KILL_AFTER: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
const FIRST_BEYOND_STDIO: i32 = 3;
/// The exit status of what cannot be set up, as a shell has it.
const CANNOT_RUN: u8 = 126;
/// The exit status of a program that is not there.
const NOT_FOUND: u8 = 127;
/// What a shell adds to the number of a signal.
const BY_SIGNAL: i32 = 128;

/// What stands before a command so that it is supervised.
pub(super) fn arguments(run_as: &RunAs) -> [String; 2] {
    [SUPERVISE.to_owned(), run_as.ids().map_or_else(|| AS_IS.to_owned(), Ids::to_text)]
}

/// Does what this process was started for when it is one of the stages; the
/// first thing that `main` asks.
#[must_use]
pub fn entry() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    let stage = arguments.next()?;
    let command: Vec<OsString> = arguments.collect();
    if stage == SUPERVISE {
        Some(supervise(&command))
    } else if stage == ENTER {
        Some(enter(&command))
    } else {
        None
    }
}

/// The running program itself, even when its file was replaced since.
pub(super) fn own_program() -> io::Result<PathBuf> {
    let own = PathBuf::from("/proc/self/exe");
    if own.exists() { Ok(own) } else { env::current_exe() }
}

fn say(what: &str, error: &dyn std::fmt::Display) {
    // There is nobody else to tell.
    let _ = writeln!(io::stderr(), "bailiwick: {what}: {error}");
}

/// How far the end of a command has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It runs, as the leader of this group.
    Runs(Pid),
    /// It was told to end, and has a while for it.
    Stopping(Pid),
    /// Nothing has a while any more.
    Killing,
    /// The leader ended by itself.
    Ended,
}

static STAGE: Mutex<Stage> = Mutex::new(Stage::Ended);

fn stage() -> MutexGuard<'static, Stage> {
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the second stage and stays with it; its exit status is ours.
fn supervise(command: &[OsString]) -> ExitCode {
    match start(command).and_then(attend) {
        Ok(status) => as_it_ended(status),
        Err(error) => {
            say("the command cannot be supervised", &error);
            ExitCode::from(CANNOT_RUN)
        }
    }
}

fn start(command: &[OsString]) -> io::Result<Pid> {
    // No terminal, and no signals that are for the server.
    setsid()?;
    // What the server got from its own parent may be open still.
    close_fds::set_fds_cloexec_threadsafe(FIRST_BEYOND_STDIO, &[]);
    // What leaves the group comes to us when its parent ends.
    #[cfg(target_os = "linux")]
    prctl::set_child_subreaper(true)?;
    let child = process::Command::new(own_program()?)
        .arg0("bailiwick")
        .arg(ENTER)
        .args(command)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other("it has no process id"))
}

fn attend(leader: Pid) -> io::Result<WaitStatus> {
    *stage() = Stage::Runs(leader);
    thread::Builder::new().spawn(end_with_the_server)?;
    // It is not reaped yet: until it is, its group's id is nobody else's.
    while let Err(error) =
        waitid(WaitId::Pid(leader), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
    {
        if error != Errno::INTR {
            return Err(error.into());
        }
    }
    let by_itself = {
        let mut stage = stage();
        match *stage {
            Stage::Runs(_) => {
                *stage = Stage::Ended;
                // An error says that it is gone already.
                let _gone = kill_process_group(leader, Signal::KILL);
                true
            }
            Stage::Stopping(_) | Stage::Killing | Stage::Ended => false,
        }
    };
    reap(leader, by_itself)
}

/// Waits until all that the command started is gone, and sees to it when it
/// has no time left.
fn reap(leader: Pid, by_itself: bool) -> io::Result<WaitStatus> {
    let mut ended = None;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                if pid == leader {
                    ended = Some(status);
                }
            }
            Ok(None) => {
                if by_itself || *stage() == Stage::Killing {
                    kill_children();
                }
                thread::sleep(POLL);
            }
            Err(Errno::INTR) => {}
            Err(Errno::CHILD) => break,
            Err(error) => return Err(error.into()),
        }
    }
    ended.ok_or_else(|| io::Error::other("its end is unknown"))
}

/// Every child of ours: what lost its parent in between is one, too.
fn kill_children() {
    let own = getpid();
    for child in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = child.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else { continue };
        let stat = fs::read_to_string(child.path().join("stat")).unwrap_or_default();
        // `PID (NAME) STATE PARENT …`, where the name may hold anything.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if parent.and_then(|parent| parent.parse().ok()).and_then(Pid::from_raw) == Some(own) {
            let _gone = kill_process(pid, Signal::KILL);
        }
    }
}

/// Nothing comes on stdin: it is open as long as the server wants the command
/// to run, and is there to want it.
fn end_with_the_server() {
    let mut byte = [0];
    loop {
        match io::stdin().lock().read(&mut byte) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    {
        let mut stage = stage();
        if let Stage::Runs(leader) = *stage {
            *stage = Stage::Stopping(leader);
            let _gone = kill_process_group(leader, Signal::TERM);
        }
    }
    thread::sleep(KILL_AFTER);
    let mut stage = stage();
    if let Stage::Stopping(leader) = *stage {
        *stage = Stage::Killing;
        let _gone = kill_process_group(leader, Signal::KILL);
    }
}

/// The server sees of us what we saw of the command.
fn as_it_ended(status: WaitStatus) -> ExitCode {
    if let Some(signal) = status.terminating_signal().and_then(Signal::from_named_raw) {
        // A signal that is ignored here, as SIGPIPE is, comes back.
        let _comes_back = kill_process(getpid(), signal);
    }
    let code = status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| BY_SIGNAL + signal))
        .and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Puts rights down and becomes the command. Nothing is run when one of them
/// cannot be put down.
fn enter(command: &[OsString]) -> ExitCode {
    let Some(([ids, program], arguments)) = command.split_first_chunk() else {
        say("the command cannot be run", &"there is none");
        return ExitCode::from(CANNOT_RUN);
    };
    if let Err(error) = put_down(ids) {
        say("the rights of the server cannot be put down", &error);
        return ExitCode::from(CANNOT_RUN);
    }
    let error = process::Command::new(program).args(arguments).exec();
    say(&format!("{} cannot be started", program.to_string_lossy()), &error);
    let missing = error.kind() == io::ErrorKind::NotFound;
    ExitCode::from(if missing { NOT_FOUND } else { CANNOT_RUN })
}

fn put_down(ids: &OsStr) -> io::Result<()> {
    umask(Mode::RWXG | Mode::RWXO);
    // Memory may hold secrets, and so would a core file. Sandboxes that forbid
    // to set limits have them of their own.
    let _set = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    if ids != AS_IS {
        let ids: Option<Ids> = ids.to_str().and_then(|ids| ids.parse().ok());
        let ids = ids.ok_or(io::ErrorKind::InvalidInput)?;
        setgroups(&ids.groups)?;
        setgid(ids.gid)?;
        setuid(ids.uid)?;
    }
    // What the server was given beyond its user, as by a unit file, is not for
    // commands.
    #[cfg(target_os = "linux")]
    if !getuid().is_root() {
        let none = CapabilitySet::empty();
        clear_ambient_capability_set()?;
        set_capabilities(
            None,
            CapabilitySets { effective: none, permitted: none, inheritable: none },
        )?;
    }
    // A program with the set-user-id bit is none here, so the rights stay down.
    #[cfg(target_os = "linux")]
    prctl::set_no_new_privs()?;
    // Last, as becoming somebody else forgets it: without its supervisor a
    // command has no bounds.
    #[cfg(target_os = "linux")]
    prctl::set_pdeathsig(signal::Signal::SIGKILL)?;
    Ok(())
}
