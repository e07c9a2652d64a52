//! Tasks created, and tasks run through, against the raw tonic echo.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bailiwick_client::{Auth, Client, connect_with_auth, pb::v1 as pb};
use tempfile::TempDir;
use tokio::{sync::Semaphore, time::sleep};

use super::{Bench, ROUNDS, middle, shown};
use crate::{
    callers::{Creator, Orders},
    disk,
    error::{Result, refused, wrong},
    figure::{Figure, Measured},
    load::{CONNECTIONS, Window},
    process::{Process, free_address},
    server::{Access, NAMESPACE, ONE_STEP, Setup},
    worker::{Tally, Worker},
};

/// Tasks that are created and not complete yet: bounded, so that a figure is
/// of a steady state and not of a growing backlog.
const UNDER_WAY: usize = 256;
/// How long the tasks under way may take at the end of a window.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// The disk's own figure is only for orientation here.
const DISK_WINDOW: Duration = Duration::from_secs(1);

/// The echo, and connections to it.
pub(super) struct Echo {
    pub(super) process: Process,
    connections: Vec<Client>,
    _folder: TempDir,
}

impl Echo {
    pub(super) async fn start(bench: &Bench) -> Result<Self> {
        let folder = bench.places.folder()?;
        let address = free_address()?;
        let args = ["echo-server", "--listen", &address.to_string()];
        let log = folder.path().join("echo.log");
        let mut process = Process::start(&bench.places.bench, &args, &log)?;
        process.listening(address).await?;
        let mut connections = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            connections.push(connect_with_auth(&format!("http://{address}"), Auth::None).await?);
        }
        Ok(Self { process, connections, _folder: folder })
    }

    async fn window(&self, bench: &Bench, orders: &Orders) -> Result<Window> {
        let callers = Creator::all(&self.connections, ONE_STEP, orders, None);
        bench.window(callers, self.process.pid(), &AtomicU64::new(0)).await
    }
}

/// Several connections with one credential.
pub(super) async fn connect(setup: &Setup, auth: &Auth) -> Result<Vec<Client>> {
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        connections.push(setup.connect(auth).await?);
    }
    Ok(connections)
}

/// `create_task_64`.
pub(super) async fn create_task(bench: &Bench) -> Result<Measured> {
    let echo = Echo::start(bench).await?;
    let setup = Setup::new(&bench.places, Access::Open, None)?;
    let (server, _) = setup.serve(&bench.places).await?;
    setup.register(&Auth::None).await?;
    let connections = connect(&setup, &Auth::None).await?;
    let orders = Orders::default();

    let (mut base, mut real) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        base.push(echo.window(bench, &orders).await?);
        let callers = Creator::all(&connections, ONE_STEP, &orders, None);
        real.push(bench.window(callers, server.pid(), &AtomicU64::new(0)).await?);
    }
    let folder = bench.places.folder()?;
    let disk = disk::appends(folder.path(), DISK_WINDOW).await?;
    server.stop().await?;
    echo.process.stop().await?;
    let (value, baseline) = (middle(&real, |w| w.rate), middle(&base, |w| w.rate));
    Ok(Measured::new(Figure::CreateTask, value, baseline)
        .note(shown("server", &real))
        .note(shown("echo", &base))
        .note(format!(
            "disk: {:.0} appends of 4 KiB with fdatasync each second, p50 {:.3} ms",
            disk.rate, disk.p50_ms
        )))
}

/// `one_step_tasks`.
pub(super) async fn one_step_tasks(bench: &Bench) -> Result<Measured> {
    let echo = Echo::start(bench).await?;
    let setup = Setup::new(&bench.places, Access::Open, None)?;
    let (server, _) = setup.serve(&bench.places).await?;
    setup.register(&Auth::None).await?;
    let run = Run::start(&setup, false).await?;
    let orders = Orders::default();

    let (mut base, mut real) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        base.push(echo.window(bench, &orders).await?);
        let callers = Creator::all(&run.connections, ONE_STEP, &orders, Some(&run.tally.room));
        real.push(bench.window(callers, server.pid(), &run.tally.acknowledged).await?);
        run.drain().await?;
    }
    run.finish().await?;
    server.stop().await?;
    echo.process.stop().await?;
    let (value, baseline) = (middle(&real, |w| w.counted_rate), middle(&base, |w| w.rate));
    let rates: Vec<_> = real.iter().map(|w| format!("{:.0}", w.counted_rate)).collect();
    Ok(Measured::new(Figure::OneStepTasks, value, baseline)
        .note(format!(
            "server: {} tasks/s; CPU per task: server {:.1} us, client and worker {:.1} us; \
             {CONNECTIONS} streams, {UNDER_WAY} tasks under way",
            rates.join(", "),
            middle(&real, |w| w.server_us),
            middle(&real, |w| w.client_us),
        ))
        .note(shown("echo", &base)))
}

/// Callers' connections and workers on connections of their own.
pub(super) struct Run {
    pub(super) connections: Vec<Client>,
    pub(super) tally: Tally,
    workers: Vec<Worker>,
}

impl Run {
    /// `tokens`: whether each lease must bring one.
    pub(super) async fn start(setup: &Setup, tokens: bool) -> Result<Self> {
        let connections = connect(setup, &Auth::None).await?;
        let room = Arc::new(Semaphore::new(UNDER_WAY));
        let tally = Tally { acknowledged: Arc::default(), room, tokens };
        let mut workers = Vec::with_capacity(CONNECTIONS);
        for number in 0..CONNECTIONS {
            let client = setup.connect(&Auth::None).await?;
            let name = format!("bench-{number}");
            workers.push(Worker::start(&client, name, tally.clone()).await?);
        }
        Ok(Self { connections, tally, workers })
    }

    /// Waits until every task that was created is acknowledged.
    pub(super) async fn drain(&self) -> Result {
        let begun = Instant::now();
        while self.tally.room.available_permits() < UNDER_WAY {
            if begun.elapsed() > DRAIN_MAX || self.tally.room.is_closed() {
                let left = UNDER_WAY - self.tally.room.available_permits();
                return Err(wrong(format!("{left} tasks were created and never completed")));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Ends the workers and asks the server whether all tasks are complete.
    pub(super) async fn finish(self) -> Result {
        for worker in self.workers {
            worker.stop().await?;
        }
        let client = self.connections.first().ok_or_else(|| wrong("no connection"))?;
        let others = pb::ListTasksRequest {
            namespace: Some(NAMESPACE.to_owned()),
            state: [
                pb::TaskState::Pending,
                pb::TaskState::InProgress,
                pb::TaskState::WaitingForRetry,
                pb::TaskState::BlockedByFailures,
                pb::TaskState::Error,
            ]
            .map(i32::from)
            .to_vec(),
            page_size: 1,
            ..pb::ListTasksRequest::default()
        };
        let reply = client.tasks().list_tasks(others).await.map_err(refused("ListTasks"))?;
        match reply.into_inner().tasks.first() {
            None => Ok(()),
            Some(task) => Err(wrong(format!("a task is not complete: {task:?}"))),
        }
    }

    /// How many completions are acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.tally.acknowledged.load(Ordering::Relaxed)
    }
}
