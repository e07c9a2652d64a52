//! The processes that are measured: started with a configuration of their
//! own on free loopback ports, watched, and each ended by its own id.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    error::{Error, Result, Tried as _, wrong},
    figure::float,
};

/// How long a process may take to come up.
const START_MAX: Duration = Duration::from_mins(1);
/// How long it may take to go down.
const STOP_MAX: Duration = Duration::from_secs(30);
/// Small against the times that are measured.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A process under measurement; killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid: u32,
    log: PathBuf,
    begun: Instant,
}

impl Process {
    /// Starts a program; what it prints goes to the log.
    pub(crate) fn start(program: &Path, args: &[&str], log: &Path) -> Result<Self> {
        let name = program.display();
        let file = File::create(log).tried(format!("make {}", log.display()))?;
        let errors = file.try_clone().tried("the log")?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(file).stderr(errors).kill_on_drop(true);
        // What is measured is set in the file alone.
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("BAILIWICK") {
                command.env_remove(key);
            }
        }
        let begun = Instant::now();
        let child = command.spawn().tried(format!("start {name}"))?;
        let pid = child.id().ok_or_else(|| wrong(format!("{name} has ended at once")))?;
        Ok(Self { child, pid, log: log.to_owned(), begun })
    }

    /// Waits until the gRPC port says that it serves; answers how long that
    /// took from the start on.
    pub(crate) async fn serving(&mut self, address: SocketAddr) -> Result<Duration> {
        self.listening(address).await?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| wrong(error.to_string()))?;
        let mut health = HealthClient::new(endpoint.connect_lazy());
        while self.begun.elapsed() < START_MAX {
            let answer = health.check(HealthCheckRequest::default()).await;
            if answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving) {
                return Ok(self.begun.elapsed());
            }
            self.still_runs()?;
            sleep(LOOK_EVERY).await;
        }
        Err(self.failed("the process does not become ready"))
    }

    /// Waits until a port takes connections.
    pub(crate) async fn listening(&mut self, address: SocketAddr) -> Result {
        while self.begun.elapsed() < START_MAX {
            if TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            self.still_runs()?;
            sleep(LOOK_EVERY).await;
        }
        Err(self.failed("the process does not listen"))
    }

    fn still_runs(&mut self) -> Result {
        match self.child.try_wait().tried("wait for the process")? {
            None => Ok(()),
            Some(status) => Err(self.failed(format!("the process ended with {status}"))),
        }
    }

    /// Ends it by SIGTERM and waits until it has gone.
    pub(crate) async fn stop(mut self) -> Result {
        self.still_runs()?;
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| wrong("a process without an id"))?;
        kill_process(pid, Signal::TERM).map_err(std::io::Error::from).tried("end the process")?;
        match timeout(STOP_MAX, self.child.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            Ok(status) => {
                // A baseline has no handler for SIGTERM: that end is its own.
                let status = status.tried("wait for the process")?;
                let by_signal = std::os::unix::process::ExitStatusExt::signal(&status);
                if by_signal == Some(Signal::TERM.as_raw()) {
                    return Ok(());
                }
                Err(self.failed(format!("the process ended with {status}")))
            }
            Err(_) => Err(self.failed("the process does not end")),
        }
    }

    /// The log is kept when something went wrong.
    fn failed(&self, what: impl Into<String>) -> Error {
        let kept = std::env::temp_dir().join(format!("bailiwick-bench-{}.log", self.pid));
        let log = if fs::copy(&self.log, &kept).is_ok() { kept } else { self.log.clone() };
        Error::Process { what: what.into(), log }
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Resident memory.
    pub(crate) fn resident_mib(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.pid);
        let text = fs::read_to_string(&path).tried(format!("read {path}"))?;
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next())
            .and_then(|kib| kib.parse::<u64>().ok())
            .ok_or_else(|| wrong(format!("{path} has no VmRSS")))?;
        Ok(float(kib) / 1024.0)
    }
}

/// The time that a process has computed so far, in user and kernel.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let read = || {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name may hold spaces; behind it come numbers.
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_whitespace().skip(11);
        let user: u64 = fields.next()?.parse().ok()?;
        let kernel: u64 = fields.next()?.parse().ok()?;
        let micros_per_tick = 1_000_000 / rustix::param::clock_ticks_per_second().max(1);
        Some(Duration::from_micros((user + kernel) * micros_per_tick))
    };
    read().unwrap_or_default()
}

/// An address that nothing listens on now.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).tried("find a free port")?;
    listener.local_addr().tried("find a free port")
}
