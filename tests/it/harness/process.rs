//! Child processes whose output a test can wait for, and which end with it.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    sync::Notify,
    time::timeout,
};

use super::{BAILIWICK, PATIENCE};

/// `bailiwick` with nothing of this process's environment but the path.
pub fn bailiwick() -> Command {
    quiet(BAILIWICK)
}

/// A program with nothing of this process's environment but the path.
pub fn quiet(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", "/nonexistent").kill_on_drop(true);
    command
}

/// Where `bailiwick` is, for a shell.
pub fn path() -> &'static str {
    BAILIWICK
}

/// The lines that a process has printed so far.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    lines: Arc<Mutex<(Vec<String>, bool)>>,
    grown: Arc<Notify>,
}

impl Lines {
    fn read(source: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let this = Self::default();
        let (lines, grown) = (Arc::clone(&this.lines), Arc::clone(&this.grown));
        #[expect(clippy::disallowed_methods, reason = "the test's runtime ends with the test")]
        tokio::spawn(async move {
            let mut source = BufReader::new(source).lines();
            while let Ok(Some(line)) = source.next_line().await {
                lines.lock().unwrap().0.push(line);
                grown.notify_waiters();
            }
            lines.lock().unwrap().1 = true;
            grown.notify_waiters();
        });
        this
    }

    /// All of them.
    pub fn all(&self) -> Vec<String> {
        self.lines.lock().unwrap().0.clone()
    }

    /// Whether there will be no more.
    pub fn ended(&self) -> bool {
        self.lines.lock().unwrap().1
    }

    /// Waits for the first line for which `find` has something; none when the
    /// process closes its output or patience ends.
    pub async fn wait_for<T>(&self, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        let mut seen = 0;
        let look = async {
            loop {
                let mut grown = std::pin::pin!(self.grown.notified());
                grown.as_mut().enable();
                let (found, ended) = {
                    let lines = self.lines.lock().unwrap();
                    let found = lines.0[seen..].iter().find_map(|line| find(line));
                    seen = lines.0.len();
                    (found, lines.1)
                };
                if found.is_some() || ended {
                    return found;
                }
                grown.await;
            }
        };
        timeout(PATIENCE, look).await.ok().flatten()
    }
}

/// A process that ends with the test.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Its standard output.
    pub out: Lines,
    /// Its standard error.
    pub err: Lines,
}

impl Process {
    /// Starts it.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let out = Lines::read(child.stdout.take().unwrap());
        let err = Lines::read(child.stderr.take().unwrap());
        Self { child, out, err }
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.start_kill();
        while matches!(self.child.try_wait(), Ok(None)) {
            std::thread::yield_now();
        }
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Sends SIGINT, as Ctrl-C does.
    pub fn interrupt(&self) {
        self.signal(rustix::process::Signal::INT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end and for all that it printed; answers the exit code.
    pub async fn exit(&mut self) -> Option<i32> {
        let ended = timeout(PATIENCE, self.child.wait()).await.expect("the process ends").unwrap();
        for lines in [&self.out, &self.err] {
            lines.wait_for(|_| None::<()>).await;
        }
        ended.code()
    }
}
