//! Work: lease steps, keep leases, report on them.
//!
//! Not here: who gets which step (`floor`), what ends a lease (`loops`).

use std::{sync::Arc, time::Duration};

use rand::Rng as _;
use tracing::instrument;

pub use super::workers::WorkerInfo;
use super::{
    Engine, Error, Session, fields, figures,
    floor::{Sitting, Stay},
    session, workers,
};
use crate::{
    authz::Claim,
    domain::{Area, LeaseId, permission::right::WorkLease, task::StepState},
    storage::{Heartbeat, Leased, Report, Reported, Tenure},
};

/// How many steps one call may lease.
pub const LEASES_MAX: u32 = 100;
/// How long a call may wait for its first step.
pub const WAIT_MAX: Duration = Duration::from_mins(1);
/// How many leases one message may extend.
pub const HEARTBEATS_MAX: usize = 1_000;
/// Jitter on the pause before another attempt, in per mille.
pub(super) const JITTER: std::ops::RangeInclusive<i32> = -100..=100;

/// What a call for work asks for.
#[derive(Clone, Debug, Default)]
pub struct LeaseRequest {
    /// The handlers that the worker can run.
    pub handlers: Vec<String>,
    /// How many steps at most; 0 means 1.
    pub max_leases: u32,
    /// How long to wait for the first one.
    pub wait: Duration,
    /// The worker's name, in its own words.
    pub worker: Option<String>,
}

/// What a worker says about a failed attempt.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What went wrong; what is too long is cut.
    pub error: String,
    /// Whether another attempt makes sense.
    pub retryable: bool,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The same report had been taken before.
    pub already: bool,
    /// The step's state now.
    pub state: StepState,
}

/// Leases ready steps; with a wait it waits for the first one. Dropping the
/// call at any time loses no step: what was leased meanwhile is given back.
#[instrument(name = "engine.work.lease", skip_all, fields(area = %area))]
pub async fn lease(
    engine: &Arc<Engine>,
    claim: &Claim<WorkLease>,
    area: Area,
    request: LeaseRequest,
) -> Result<Vec<Leased>, Error> {
    workers::covers(claim, &area)?;
    let LeaseRequest { handlers, max_leases, wait, worker } = request;
    fields::handlers(&handlers)?;
    fields::label("worker", worker.as_deref().unwrap_or_default())?;
    if max_leases > LEASES_MAX {
        return Err(fields::invalid("max_leases", format!("at most {LEASES_MAX}")));
    }
    if wait > WAIT_MAX {
        return Err(fields::invalid("wait_ms", format!("at most {}", WAIT_MAX.as_millis())));
    }
    let stay = engine.floor.enter(Sitting {
        area,
        handlers: workers::shared(&handlers),
        holder: claim.identity().clone(),
        worker: worker.map(Into::into),
        session: None,
    });
    stay.credit(max_leases.max(1));
    wait_for_leases(engine, &stay, wait).await?;
    Ok(stay.take_leases())
}

/// Until there is a lease in the mail, or the time is over.
async fn wait_for_leases(engine: &Arc<Engine>, stay: &Stay, wait: Duration) -> Result<(), Error> {
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        if let Some(order) = stay.order() {
            session::dispatch(engine, stay.ticket(), &order).await?;
            // The store has told the floor before it answers.
            continue;
        }
        if stay.has_lease() || wait.is_zero() {
            return Ok(());
        }
        tokio::select! {
            () = stay.bell().notified() => {}
            () = tokio::time::sleep_until(deadline) => return Ok(()),
            () = engine.closing.cancelled() => return Err(Error::ShuttingDown),
        }
    }
}

/// Opens a worker's session: credits go in, leases come out. Dropping it
/// gives back what it has not handed out.
#[instrument(name = "engine.work.session", skip_all, fields(area = %area))]
pub async fn session(
    engine: &Arc<Engine>,
    claim: Claim<WorkLease>,
    area: Area,
    info: WorkerInfo,
) -> Result<Session, Error> {
    if engine.closing.is_cancelled() {
        return Err(Error::ShuttingDown);
    }
    let record = workers::record(engine, &claim, area, info)?;
    let record = engine.store.register_worker(record, Some(&claim.stamp())).await?;
    let stay = engine.floor.enter(Sitting {
        area: record.area.clone(),
        handlers: workers::shared(&record.handlers),
        holder: claim.identity().clone(),
        worker: Some(record.name.as_str().into()),
        session: Some(record),
    });
    Ok(Session::new(Arc::clone(engine), stay))
}

/// Extends a lease.
#[instrument(name = "engine.work.heartbeat", skip_all, fields(task = %lease.task))]
pub async fn heartbeat(
    engine: &Engine,
    claim: &Claim<WorkLease>,
    lease: LeaseId,
) -> Result<Heartbeat, Error> {
    let answers = heartbeats(engine, claim, &[lease]).await?;
    answers.into_iter().next().flatten().ok_or(Error::LeaseNotFound)
}

/// The leases that hold and are this caller's to extend, for their tokens.
pub async fn tenures(
    engine: &Engine,
    claim: &Claim<WorkLease>,
    leases: &[LeaseId],
) -> Result<Vec<Tenure>, Error> {
    let steps: Vec<_> = leases.iter().map(|lease| (lease.task, lease.step)).collect();
    let found = engine.store.tenures(claim.scope(), &steps).await?;
    let same = |(lease, found): (&LeaseId, Option<Tenure>)| found.filter(|one| one.id == *lease);
    Ok(leases.iter().zip(found).filter_map(same).collect())
}

/// Extends leases; for each one where it stands, none for one that this
/// caller never had.
#[instrument(name = "engine.work.heartbeats", skip_all, fields(leases = leases.len()))]
pub async fn heartbeats(
    engine: &Engine,
    claim: &Claim<WorkLease>,
    leases: &[LeaseId],
) -> Result<Vec<Option<Heartbeat>>, Error> {
    if leases.len() > HEARTBEATS_MAX {
        return Err(fields::invalid("lease_ids", format!("at most {HEARTBEATS_MAX}")));
    }
    let store = &engine.store;
    Ok(store.heartbeat(claim.scope(), claim.identity(), leases, engine.now()).await?)
}

/// Completes a leased step with a JSON result; empty is null.
#[instrument(name = "engine.work.complete", skip_all, fields(task = %lease.task))]
pub async fn complete(
    engine: &Engine,
    claim: &Claim<WorkLease>,
    lease: LeaseId,
    result: &str,
) -> Result<Taken, Error> {
    let result = fields::payload("result", result)?;
    let taken = report(engine, claim, lease, Report::Complete(result)).await?;
    if !taken.already {
        figures::step_finished("complete");
    }
    Ok(taken)
}

/// Reports that an attempt failed.
#[instrument(name = "engine.work.fail", skip_all, fields(task = %lease.task))]
pub async fn fail(
    engine: &Engine,
    claim: &Claim<WorkLease>,
    lease: LeaseId,
    failure: Failure,
) -> Result<Taken, Error> {
    let Failure { error, retryable } = failure;
    let error = fields::error_text(error);
    let jitter = rand::rng().random_range(JITTER);
    let taken = report(engine, claim, lease, Report::Fail { error, retryable, jitter }).await?;
    if !taken.already {
        figures::step_finished("failed");
    }
    Ok(taken)
}

async fn report(
    engine: &Engine,
    claim: &Claim<WorkLease>,
    lease: LeaseId,
    report: Report,
) -> Result<Taken, Error> {
    let (stamp, now) = (claim.stamp(), engine.now());
    let reported = engine
        .store
        .report(claim.scope(), claim.identity(), lease, report, &stamp, now)
        .await?
        .ok_or(Error::LeaseNotFound)?;
    engine.floor.forget(lease);
    match reported {
        Reported::Done(state) => Ok(Taken { already: false, state }),
        Reported::Already(state) => Ok(Taken { already: true, state }),
        Reported::Dead => Err(Error::LeaseLost),
    }
}
