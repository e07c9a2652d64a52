//! The scheduler: setting jobs over the line protocol, firing them, and what
//! a million of them cost.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bailiwick_client::pb::v1 as pb;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use tokio::time::sleep;

use super::{Bench, REST, ROUNDS};
use crate::{
    disk,
    error::{Result, Tried as _, refused, wrong},
    figure::{Figure, Measured, float, median},
    line::Line,
    load::{Caller, Window},
    process::{Process, free_address},
    server::{Access, NAMESPACE, ONE_STEP, Setup},
};

/// Far ahead: a job that is set and does not run.
const FAR: Duration = Duration::from_hours(24 * 365);
/// Planned jobs where there are many.
const MANY: u64 = 1_000_000;
/// Where there are few.
const FEW: u64 = 1_000;
/// Jobs that one QUERY lists.
const ASKED: u64 = 100;
/// Connections of `set_64`.
const CALLERS: usize = 64;
/// Connections that do nothing.
const IDLE: usize = 10_000;
/// Jobs that are due one after the other.
const FIRED: u64 = 1_000;
/// How far apart, in nanoseconds: no two share a commit.
const APART: i64 = 5_000_000;
/// Jobs that are due within one second.
const DUE: u64 = 10_000;
/// From the setting of the last job until the first is due.
const LEAD: Duration = Duration::from_secs(3);

/// A server with a line protocol, and the folder of its data.
struct Scheduler {
    process: Process,
    line: SocketAddr,
    setup: Setup,
    took: Duration,
}

impl Scheduler {
    async fn start(bench: &Bench, data: Option<&Path>) -> Result<Self> {
        let setup = Setup::new(&bench.places, Access::Open, data)?;
        let line = setup.with_line()?;
        let (process, took) = setup.serve(&bench.places).await?;
        Ok(Self { process, line, setup, took })
    }

    /// Makes jobs, spread over a year that begins in a year.
    async fn plan(&self, prefix: &'static str, count: u64) -> Result {
        let begin = nanos(SystemTime::now() + FAR);
        let jobs = (0..count).map(move |number| {
            // Their times are in another order than their names.
            let place = number.wrapping_mul(7_919) % count.max(1);
            let at = i64::try_from(place).unwrap_or(0).saturating_mul(30_000_000_000);
            (format!("{prefix}{number:07}"), begin.saturating_add(at))
        });
        Line::connect(self.line).await?.pipeline(jobs).await?;
        Ok(())
    }

    async fn rule(&self, pattern: &str) -> Result {
        let mut line = Line::connect(self.line).await?;
        let text = format!("r RULE SET bench.rule {pattern} task {NAMESPACE}/{ONE_STEP}@1.0.0\n");
        match line.ask(&text).await? {
            "r OK" => Ok(()),
            answer => Err(wrong(format!("RULE SET: {answer}"))),
        }
    }
}

fn nanos(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The line echo in a process of its own.
struct Echo {
    process: Process,
    address: SocketAddr,
    _folder: TempDir,
}

impl Echo {
    async fn start(bench: &Bench) -> Result<Self> {
        let folder = bench.places.folder()?;
        let address = free_address()?;
        let args = ["line-echo", "--listen", &address.to_string()];
        let log = folder.path().join("echo.log");
        let mut process = Process::start(&bench.places.bench, &args, &log)?;
        process.listening(address).await?;
        Ok(Self { process, address, _folder: folder })
    }
}

/// Sets jobs of its own, each one awaited.
struct Setter {
    line: Line,
    numbers: Arc<AtomicU64>,
    begin: i64,
}

impl Setter {
    async fn all(address: SocketAddr, count: usize, numbers: &Arc<AtomicU64>) -> Result<Vec<Self>> {
        let begin = nanos(SystemTime::now() + FAR);
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            let line = Line::connect(address).await?;
            all.push(Self { line, numbers: Arc::clone(numbers), begin });
        }
        Ok(all)
    }
}

impl Caller for Setter {
    async fn call(&mut self) -> Result {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let at = i64::try_from(number).unwrap_or(0).saturating_mul(1_000_000);
        self.line.set(&format!("bench.set.{number}"), self.begin.saturating_add(at)).await
    }
}

/// `set_serial`: one connection against the bare disk.
pub(super) async fn set_serial(bench: &Bench) -> Result<Measured> {
    let (echo, server) = (Echo::start(bench).await?, Scheduler::start(bench, None).await?);
    let folder = bench.places.folder()?;
    let numbers = Arc::default();
    let (mut base, mut real, mut echoed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        base.push(disk::appends(folder.path(), bench.window).await?.rate);
        sleep(REST).await;
        let callers = Setter::all(echo.address, 1, &numbers).await?;
        echoed.push(bench.window(callers, echo.process.pid(), &AtomicU64::new(0)).await?);
        let callers = Setter::all(server.line, 1, &numbers).await?;
        real.push(bench.window(callers, server.process.pid(), &AtomicU64::new(0)).await?);
    }
    echo.process.stop().await?;
    server.process.stop().await?;
    Ok(Measured::new(Figure::SetSerial, rate(&real), median(&base))
        .note(super::shown("echo", &echoed))
        .note(super::shown("server", &real)))
}

/// `set_64`: as many connections, against the echo.
pub(super) async fn set_64(bench: &Bench) -> Result<Measured> {
    let (echo, server) = (Echo::start(bench).await?, Scheduler::start(bench, None).await?);
    let numbers = Arc::default();
    let (mut base, mut real) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let callers = Setter::all(echo.address, CALLERS, &numbers).await?;
        base.push(bench.window(callers, echo.process.pid(), &AtomicU64::new(0)).await?);
        let callers = Setter::all(server.line, CALLERS, &numbers).await?;
        real.push(bench.window(callers, server.process.pid(), &AtomicU64::new(0)).await?);
    }
    echo.process.stop().await?;
    server.process.stop().await?;
    Ok(Measured::new(Figure::Set64, rate(&real), rate(&base))
        .note(super::shown("echo", &base))
        .note(super::shown("server", &real))
        .note(on_disk(bench).await?))
}

/// What the bare disk does, in a line.
async fn on_disk(bench: &Bench) -> Result<String> {
    let folder = bench.places.folder()?;
    let disk = disk::appends(folder.path(), Duration::from_secs(1)).await?;
    Ok(format!("disk: {:.0} appends each second", disk.rate))
}

fn rate(windows: &[Window]) -> f64 {
    super::middle(windows, |window| window.rate)
}

/// `set_pipelined`: one connection that does not wait, against the echo.
pub(super) async fn set_pipelined(bench: &Bench) -> Result<Measured> {
    const LINES: u64 = 100_000;
    let (echo, server) = (Echo::start(bench).await?, Scheduler::start(bench, None).await?);
    let (mut base, mut real) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for (address, rates) in [(echo.address, &mut base), (server.line, &mut real)] {
            let line = Line::connect(address).await?;
            let begin = nanos(SystemTime::now() + FAR);
            let jobs = (0..LINES).map(move |number| {
                (format!("bench.{round}.{number}"), begin + i64::try_from(number).unwrap_or(0))
            });
            let begun = Instant::now();
            line.pipeline(jobs).await?;
            rates.push(float(LINES) / begun.elapsed().as_secs_f64());
            sleep(REST).await;
        }
    }
    echo.process.stop().await?;
    server.process.stop().await?;
    let shown: Vec<_> = real.iter().map(|rate| format!("{rate:.0}")).collect();
    Ok(Measured::new(Figure::SetPipelined, median(&real), median(&base))
        .note(format!("server: {} a second, {LINES} lines each", shown.join(", ")))
        .note(on_disk(bench).await?))
}

/// `query_prefix`: with a million jobs outside the prefix against a thousand.
pub(super) async fn query_prefix(bench: &Bench) -> Result<Measured> {
    const QUERIES: u64 = 500;
    let few = Scheduler::start(bench, None).await?;
    few.plan("other.", FEW).await?;
    few.plan("asked.", ASKED).await?;
    let million = million(bench).await?;
    let many = Scheduler::start(bench, Some(&million.data)).await?;
    many.plan("asked.", ASKED).await?;
    let (mut base, mut real) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (server, times) in [(&few, &mut base), (&many, &mut real)] {
            let mut line = Line::connect(server.line).await?;
            let begun = Instant::now();
            for _ in 0..QUERIES {
                let listed = line.query("asked.").await?;
                if u64::try_from(listed).ok() != Some(ASKED) {
                    return Err(wrong(format!("QUERY listed {listed} jobs")));
                }
            }
            times.push(begun.elapsed().as_secs_f64() * 1e6 / float(QUERIES));
        }
    }
    few.process.stop().await?;
    many.process.stop().await?;
    Ok(Measured::new(Figure::QueryPrefix, median(&real), median(&base)))
}

/// A folder with a million planned jobs, made over the line protocol once and
/// copied for whoever changes it.
async fn million(bench: &Bench) -> Result<Million> {
    let kept = bench.target.join("bench-data").join(format!("jobs-{}", super::life::schema()?));
    let whole = kept.join("whole");
    if !whole.exists() {
        let _ = std::fs::remove_dir_all(&kept);
        std::fs::create_dir_all(&kept).tried("make the folder of the jobs")?;
        let server = Scheduler::start(bench, Some(&kept.join("data"))).await?;
        server.plan("many.", MANY).await?;
        server.process.stop().await?;
        std::fs::write(&whole, "").tried("mark the folder as whole")?;
    }
    let copy = bench.places.folder()?;
    let data = copy.path().join("data");
    std::fs::create_dir_all(&data).tried("make a folder")?;
    for entry in std::fs::read_dir(kept.join("data")).tried("read the jobs")? {
        let entry = entry.tried("read the jobs")?;
        std::fs::copy(entry.path(), data.join(entry.file_name())).tried("copy the jobs")?;
    }
    Ok(Million { data, _folder: copy })
}

/// A million planned jobs; they go with their handle.
struct Million {
    data: PathBuf,
    _folder: TempDir,
}

/// `job_bytes`: resident memory of a server with a million planned jobs that
/// has fired some, above one without, for each job.
pub(super) async fn job_bytes(bench: &Bench) -> Result<Measured> {
    let settle = Duration::from_secs(3);
    let empty = Scheduler::start(bench, None).await?;
    let million = million(bench).await?;
    let full = Scheduler::start(bench, Some(&million.data)).await?;
    for server in [&empty, &full] {
        server.plan("asked.", ASKED).await?;
        Line::connect(server.line).await?.query("asked.").await?;
    }
    sleep(settle).await;
    let (base, real) = (empty.process.resident_mib()?, full.process.resident_mib()?);
    empty.process.stop().await?;
    full.process.stop().await?;
    let bytes = (real - base).max(0.0) * f64::from(1 << 20) / float(MANY);
    Ok(Measured::new(Figure::JobBytes, bytes, base)
        .note(format!("resident: {real:.1} MiB with a million jobs, {base:.1} MiB without")))
}

/// `idle_connections_mib`: ten thousand connections that have authenticated.
pub(super) async fn idle_connections(bench: &Bench) -> Result<Measured> {
    let (echo, server) = (Echo::start(bench).await?, Scheduler::start(bench, None).await?);
    let mut grown = Vec::new();
    for (process, address) in [(&echo.process, echo.address), (&server.process, server.line)] {
        let before = process.resident_mib()?;
        let mut open = Vec::with_capacity(IDLE);
        for _ in 0..IDLE {
            open.push(Line::connect(address).await?);
        }
        sleep(Duration::from_secs(1)).await;
        grown.push(process.resident_mib()? - before);
        drop(open);
    }
    echo.process.stop().await?;
    server.process.stop().await?;
    let grown = |at: usize| grown.get(at).copied().unwrap_or(f64::NAN);
    Ok(Measured::new(Figure::IdleConnections, grown(1), grown(0)))
}

/// `start_ready_1m_jobs_ms`.
pub(super) async fn start(bench: &Bench) -> Result<Measured> {
    let million = million(bench).await?;
    let (mut base, mut real) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (data, times) in [(None, &mut base), (Some(&*million.data), &mut real)] {
            let server = Scheduler::start(bench, data).await?;
            times.push(server.took.as_secs_f64() * 1e3);
            server.process.stop().await?;
        }
    }
    Ok(Measured::new(Figure::StartJobs, median(&real), median(&base)))
}

/// `firing_p99_ms`: a job each 5 ms among a million planned ones.
pub(super) async fn firing(bench: &Bench) -> Result<Measured> {
    let late = fired(bench, FIRED, APART).await?;
    let folder = bench.places.folder()?;
    let disk = disk::appends(folder.path(), Duration::from_secs(1)).await?;
    let at = |percent: usize| {
        let index = (late.len() * percent / 100).min(late.len().saturating_sub(1));
        late.get(index).copied().unwrap_or(f64::NAN)
    };
    Ok(Measured::new(Figure::Firing, at(99), disk.p50_ms).note(format!(
        "p50 {:.3} ms, longest {:.3} ms, of {} jobs",
        at(50),
        at(100),
        late.len()
    )))
}

/// `due_10k`: from the first due time until the last of ten thousand began.
pub(super) async fn due(bench: &Bench) -> Result<Measured> {
    let second: i64 = 1_000_000_000;
    let apart = second / i64::try_from(DUE).unwrap_or(1);
    let late = fired(bench, DUE, apart).await?;
    let folder = bench.places.folder()?;
    let disk = disk::appends(folder.path(), Duration::from_secs(1)).await?;
    let longest = late.last().copied().unwrap_or(f64::NAN);
    Ok(Measured::new(Figure::Due, 1_000.0 + longest, disk.p50_ms)
        .note(format!("each began at most {longest:.1} ms after its time")))
}

/// How late each of some jobs began, in milliseconds, sorted; all must have
/// run. A million others are planned.
async fn fired(bench: &Bench, count: u64, apart: i64) -> Result<Vec<f64>> {
    let million = million(bench).await?;
    let server = Scheduler::start(bench, Some(&million.data)).await?;
    server.setup.register(&bailiwick_client::Auth::None).await?;
    server.rule("fire.").await?;
    let begin = nanos(SystemTime::now() + LEAD);
    let jobs = (0..count).map(move |number| {
        (format!("fire.{number:07}"), begin + apart * i64::try_from(number).unwrap_or(0))
    });
    Line::connect(server.line).await?.pipeline(jobs).await?;
    let last = Duration::from_nanos(apart.unsigned_abs() * count);
    sleep(LEAD + last + Duration::from_secs(5)).await;
    let client = server.setup.connect(&bailiwick_client::Auth::None).await?;
    let request = pb::ListTasksRequest::default();
    client.tasks().list_tasks(request).await.map_err(refused("ListTasks"))?;
    server.process.stop().await?;
    let late = tokio::task::spawn_blocking(move || lateness(&million.data)).await;
    let late = late.map_err(|error| wrong(format!("the look at the history broke: {error}")))??;
    if u64::try_from(late.len()).ok() != Some(count) {
        return Err(wrong(format!("{} of {count} jobs ran", late.len())));
    }
    Ok(late)
}

/// What the history of the stopped server says.
fn lateness(data: &Path) -> Result<Vec<f64>> {
    let look = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let conn = Connection::open_with_flags(data.join("bailiwick.db"), flags)?;
        let mut select = conn.prepare(
            "SELECT (started_at * 1000 - execution) / 1e6 FROM job_run \
             WHERE job >= 'fire.' AND job < 'fire/' AND outcome = 'executed' ORDER BY 1",
        )?;
        let late: rusqlite::Result<Vec<f64>> = select.query_map([], |row| row.get(0))?.collect();
        late
    };
    look().map_err(|error| wrong(format!("the history cannot be read: {error}")))
}
