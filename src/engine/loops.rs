//! The loops that keep tasks moving: the timer, the dispatcher's safety net,
//! the way back for leases that reached nobody, and the pulse of the store.
//!
//! Not here: what a due lease becomes (`domain::advance`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use rand::Rng as _;
use tokio_util::sync::CancellationToken;

use super::{Engine, Error, Floor, Health, fields::HANDLERS_MAX, figures, work};
use crate::{authz::System, domain::LeaseId, storage};

/// How often waiting seats look in the queues without being told.
const ROUND: Duration = Duration::from_secs(1);
/// The longest sleep of the timer.
const TIMER_MAX: Duration = Duration::from_secs(1);
/// The shortest, so that it never spins.
const TIMER_MIN: Duration = Duration::from_millis(1);
/// How much the timer does at once.
const EXPIRE_MAX: usize = 256;
/// How much one round dispatches in an area.
const ROUND_MAX: usize = 1_000;
/// How often workers with an open session count as seen.
const SEEN: Duration = Duration::from_secs(30);
/// How often the store proves that it can write.
const CHECK: Duration = Duration::from_secs(10);
/// How often after it could not: its cure shall soon be known.
const CHECK_AGAIN: Duration = Duration::from_secs(1);
/// How long the store may take for one of these before it counts as failing.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long sessions have to end when the server goes down.
const LEAVE: Duration = Duration::from_secs(2);
/// How many leases go back at once.
const RELEASE_MAX: usize = 500;
/// The first and the longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How the loops did last.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    storage: Part,
    dispatcher: Part,
    timer: Part,
}

/// 0 not started, 1 well, 2 failing, 3 stopped.
#[derive(Debug, Default)]
pub(crate) struct Part(AtomicU8);

impl Part {
    pub(crate) fn beat<T, E>(&self, result: &Result<T, E>) {
        self.0.store(if result.is_ok() { 1 } else { 2 }, Ordering::Relaxed);
    }

    pub(crate) fn stop(&self) {
        self.0.store(3, Ordering::Relaxed);
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn health(&self) -> Health {
        match self.0.load(Ordering::Relaxed) {
            0 => Health::Unhealthy("not started"),
            1 => Health::Healthy("works"),
            2 => Health::Unhealthy("the store refuses its work; see the log"),
            _ => Health::Unhealthy("stopped"),
        }
    }
}

impl Pulse {
    pub(super) fn health(&self) -> Vec<(&'static str, Health)> {
        vec![
            ("storage", self.storage.health()),
            ("dispatcher", self.dispatcher.health()),
            ("timer", self.timer.health()),
        ]
    }

    pub(super) fn has_begun(&self) -> bool {
        [&self.storage, &self.dispatcher, &self.timer].iter().all(|part| part.has_begun())
    }
}

/// Runs until the shutdown; then sessions, polls and watches end too.
pub async fn run(engine: Arc<Engine>, _system: System, shutdown: CancellationToken) {
    let loops = async {
        tokio::join!(
            time(&engine),
            round(&engine),
            give_back(&engine),
            see_workers(&engine),
            check(&engine),
        )
    };
    tokio::select! {
        _ = loops => {}
        () = shutdown.cancelled() => {}
    }
    engine.closing.cancel();
    let emptied = async {
        while !engine.floor.is_empty() {
            engine.floor.orphaned().await;
        }
    };
    if tokio::time::timeout(LEAVE, emptied).await.is_err() {
        tracing::warn!("workers' sessions did not end in time");
    }
    // What nobody fetched goes back while the store still stands.
    if let Err(error) = give_back_once(&engine).await {
        tracing::warn!(error = %error, "undelivered leases were not given back; they expire");
    }
    for part in [&engine.pulse.storage, &engine.pulse.dispatcher, &engine.pulse.timer] {
        part.stop();
    }
}

/// A store that hangs must show as one that fails.
async fn in_time(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let late = |_| Error::Storage(storage::Error::Unavailable("no answer in time".into()));
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}

/// One timer over everything that is due.
async fn time(engine: &Engine) {
    let mut pause = PAUSE.0;
    loop {
        let expired = in_time(expire_once(engine)).await;
        engine.pulse.timer.beat(&expired);
        if let Err(error) = expired {
            tracing::error!(error = %error, "the timer could not do what is due");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
            continue;
        }
        pause = PAUSE.0;
        tokio::time::sleep(TIMER_MIN).await;
        until_due(engine).await;
    }
}

/// Does what is due now, and arms the timer for the next.
pub(super) async fn expire_once(engine: &Engine) -> Result<(), Error> {
    // Before the store is asked: a hint that comes meanwhile must count.
    engine.floor.disarm();
    let jitter = rand::rng().random_range(work::JITTER);
    let next = engine.store.expire(EXPIRE_MAX, jitter, engine.now()).await?;
    if let Some(next) = next {
        engine.floor.arm(next);
    }
    Ok(())
}

/// The wall clock may jump, and another server may make something due: looks
/// again after a while in any case.
async fn until_due(engine: &Engine) {
    let latest = tokio::time::Instant::now() + TIMER_MAX;
    loop {
        let left = engine.now().until(engine.floor.due());
        let wake = latest.min(tokio::time::Instant::now() + left.min(TIMER_MAX));
        tokio::select! {
            () = tokio::time::sleep_until(wake) => return,
            () = engine.floor.due_sooner() => {}
        }
    }
}

/// The safety net below the hints.
async fn round(engine: &Engine) {
    let mut pause = PAUSE.0;
    loop {
        let dispatched = in_time(dispatch_once(engine)).await;
        engine.pulse.dispatcher.beat(&dispatched);
        if let Err(error) = dispatched {
            tracing::error!(error = %error, "the dispatcher's round failed");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
            continue;
        }
        pause = PAUSE.0;
        tokio::time::sleep(ROUND).await;
    }
}

/// Every area with waiting seats looks in its queues.
pub(super) async fn dispatch_once(engine: &Engine) -> Result<(), Error> {
    let (sessions, seats) = engine.floor.figures();
    figures::workers_connected(sessions);
    figures::seats_waiting(seats);
    for waiting in engine.floor.waiting() {
        let limit = waiting.seats.min(ROUND_MAX);
        for handlers in waiting.handlers.chunks(HANDLERS_MAX) {
            engine.store.dispatch(&waiting.area, handlers, limit, engine.now()).await?;
        }
    }
    Ok(())
}

async fn give_back(engine: &Engine) {
    let mut pause = PAUSE.0;
    loop {
        if let Err(error) = give_back_once(engine).await {
            tracing::warn!(error = %error, "undelivered leases could not be given back yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
            continue;
        }
        pause = PAUSE.0;
        engine.floor.orphaned().await;
    }
}

/// Leases that reached nobody: their attempt is not used up.
pub(super) async fn give_back_once(engine: &Engine) -> Result<(), Error> {
    let mut orphans = Orphans { floor: &engine.floor, leases: engine.floor.take_orphans() };
    while !orphans.leases.is_empty() {
        let some = orphans.leases.len().min(RELEASE_MAX);
        let now = engine.now();
        engine.store.release(orphans.leases.get(..some).unwrap_or_default(), now).await?;
        orphans.leases.drain(..some);
    }
    Ok(())
}

/// Keeps on the floor what was not given back, also when the loop ends
/// halfway; a lease that went back twice is no fault.
struct Orphans<'a> {
    floor: &'a Floor,
    leases: Vec<LeaseId>,
}

impl Drop for Orphans<'_> {
    fn drop(&mut self) {
        if !self.leases.is_empty() {
            self.floor.keep_orphans(std::mem::take(&mut self.leases));
        }
    }
}

async fn see_workers(engine: &Engine) {
    loop {
        tokio::time::sleep(SEEN).await;
        for mut worker in engine.floor.connected() {
            worker.last_seen_at = engine.now();
            if let Err(error) = engine.store.register_worker(worker, None).await {
                tracing::warn!(error = %error, "a worker's last sight was not kept");
                break;
            }
        }
    }
}

async fn check(engine: &Engine) {
    loop {
        let checked = in_time(async { Ok(engine.store.check().await?) }).await;
        engine.pulse.storage.beat(&checked);
        let pause = if checked.is_ok() { CHECK } else { CHECK_AGAIN };
        if let Err(error) = checked {
            tracing::error!(error = %error, "the store does not take changes");
        }
        tokio::time::sleep(pause).await;
    }
}
