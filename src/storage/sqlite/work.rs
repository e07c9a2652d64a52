//! The queue and its leases.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _};

use super::{
    Shared, Sqlite,
    error::damaged,
    row,
    run::{AttemptRow, Run, serve_first},
    steps::{self, StepRow, one_row},
    tasks::{TaskRow, put_result, stored_result},
    templates,
    writer::Operation,
};
use crate::{
    domain::{
        Area, LeaseId, Scope, StepNo, TaskId, Timestamp,
        advance::Event,
        history::{Cause, Stamp},
        principal::Identity,
        task::{Held, StepState},
    },
    storage::{Heartbeat, Report, Reported, Result, Tenure, WorkStore},
};

fn dispatch(
    operation: &mut Operation<'_>,
    area: &Area,
    handlers: &[Arc<str>],
    limit: usize,
    now: Timestamp,
) -> Result<usize> {
    let mut served = 0;
    for (ns, namespace) in operation.shared.namespaces.of_area(area) {
        for handler in handlers {
            while served < limit && steps::first_ready(operation.conn, ns, handler)?.is_some() {
                let Some(seat) = operation.take_seat(&namespace, handler) else { break };
                let queue = (ns, &namespace);
                if let Some(seat) = serve_first(operation, queue, handler, seat, now)? {
                    operation.give_back(seat);
                    break;
                }
                served += 1;
            }
        }
    }
    Ok(served)
}

/// A lease that has ended, as its attempt is kept.
struct Past {
    outcome: Option<Cause>,
    refused: bool,
    attempt: u32,
}

/// Looks for a lease among the attempts that ended.
fn past(conn: &Connection, lease: LeaseId, holder: &Identity) -> Result<Option<Past>> {
    let mut select = conn.prepare_cached(
        "SELECT attempt, holder, outcome, refused FROM attempt \
         WHERE ns = ?1 AND task = ?2 AND no = ?3 AND epoch = ?4 AND counter = ?5 AND random = ?6",
    )?;
    let mut rows = select.query((
        lease.task.namespace_no().0,
        lease.task.as_bytes(),
        lease.step.0,
        lease.epoch,
        lease.counter.cast_signed(),
        lease.random.cast_signed(),
    ))?;
    let Some(found) = rows.next()? else { return Ok(None) };
    if row::identity(&row::text(found, 1)?)? != *holder {
        return Ok(None);
    }
    Ok(Some(Past {
        attempt: found.get(0)?,
        outcome: Cause::parse(&row::text(found, 2)?),
        refused: found.get(3)?,
    }))
}

/// Whether this is that lease, and the holder's.
fn is_that(held: Option<&Held>, lease: LeaseId, holder: &Identity) -> bool {
    held.is_some_and(|held| held.id == lease && held.holder == *holder)
}

/// A worker's report as it came in.
struct Incoming {
    scope: Scope,
    holder: Identity,
    lease: LeaseId,
    report: Report,
    stamp: Stamp,
    now: Timestamp,
}

fn report(operation: &mut Operation<'_>, incoming: &Incoming) -> Result<Option<Reported>> {
    let Incoming { scope, holder, lease, now, .. } = incoming;
    let conn = operation.conn;
    let Some(namespace) = operation.shared.locate(scope, lease.task) else { return Ok(None) };
    let Some(mut run) = Run::load(conn, namespace, lease.task)? else { return Ok(None) };
    if !run.load_step(conn, lease.step)? {
        return Ok(None);
    }
    let Some(step) = run.step(lease.step) else { return Ok(None) };
    if is_that(step.core.lease.as_ref(), *lease, holder) {
        return take(operation, run, incoming).map(Some);
    }
    let state = step.core.state;
    let attempts = step.core.attempts;
    let completed = step.completed_under.clone();
    if is_that(completed.as_ref(), *lease, holder) {
        if let Report::Complete(result) = &incoming.report
            && *result == stored_result(conn, lease.task, lease.step)?
        {
            return Ok(Some(Reported::Already(state)));
        }
        if let Some(held) =
            completed.filter(|_| past(conn, *lease, holder).is_ok_and(|p| p.is_none()))
        {
            let outcome = Cause::Completed.as_str();
            let record =
                AttemptRow { attempt: attempts, held: &held, outcome, error: None, refused: true };
            record.insert(conn, *now)?;
            refuse(operation, run, incoming)?;
        }
        return Ok(Some(Reported::Dead));
    }
    let Some(past) = past(conn, *lease, holder)? else { return Ok(None) };
    if past.outcome == Some(Cause::Failed) && matches!(incoming.report, Report::Fail { .. }) {
        return Ok(Some(Reported::Already(state)));
    }
    if !past.refused {
        let mut mark = conn.prepare_cached(
            "UPDATE attempt SET refused = 1 \
             WHERE ns = ?1 AND task = ?2 AND no = ?3 AND attempt = ?4",
        )?;
        let ns = lease.task.namespace_no().0;
        one_row(mark.execute((ns, lease.task.as_bytes(), lease.step.0, past.attempt))?)?;
        refuse(operation, run, incoming)?;
    }
    Ok(Some(Reported::Dead))
}

/// Writes down that a result came under a dead lease, once for each lease.
fn refuse(operation: &mut Operation<'_>, mut run: Run, incoming: &Incoming) -> Result<()> {
    run.refuse_stale(incoming.lease.step, incoming.now);
    run.write(operation, &incoming.stamp, None, incoming.now)
}

/// Takes a report under a lease that holds.
fn take(operation: &mut Operation<'_>, mut run: Run, incoming: &Incoming) -> Result<Reported> {
    let Incoming { lease, stamp, now, .. } = incoming;
    let conn = operation.conn;
    let step = lease.step;
    let (event, error) = match &incoming.report {
        Report::Complete(result) => {
            run.load_dependants(conn, step)?;
            put_result(conn, lease.task, step, result)?;
            (Event::Completed { step }, None)
        }
        Report::Fail { error, retryable, jitter } => {
            let event = Event::Failed { step, retryable: *retryable, jitter: *jitter };
            (event, Some(error.as_str()))
        }
    };
    run.advance(operation, event, error, *now).map_err(|_| damaged("a step under a lease"))?;
    run.hand_off(operation, *now)?;
    run.write(operation, stamp, None, *now)?;
    let state = run.step(step).map_or(StepState::Complete, |step| step.core.state);
    run.serve_elsewhere(operation, *now)?;
    Ok(Reported::Done(state))
}

fn heartbeat(
    operation: &mut Operation<'_>,
    scope: &Scope,
    holder: &Identity,
    lease: LeaseId,
    now: Timestamp,
) -> Result<Option<Heartbeat>> {
    let conn = operation.conn;
    if operation.shared.locate(scope, lease.task).is_none() {
        return Ok(None);
    }
    let Some(step) = StepRow::load(conn, lease.task, lease.step)? else { return Ok(None) };
    if let Some(held) = step.core.lease.as_ref().filter(|held| is_that(Some(held), lease, holder)) {
        let expires_at = now.plus(operation.shared.settings.terms.lease);
        let due_at = expires_at.min(held.timeout_at);
        let mut update = conn.prepare_cached(
            "UPDATE step SET expires_at = ?4, due_at = ?5, orphaned = 0 \
             WHERE ns = ?1 AND task = ?2 AND no = ?3",
        )?;
        let ns = lease.task.namespace_no().0;
        let (expires, due) = (expires_at.micros(), due_at.micros());
        one_row(update.execute((ns, lease.task.as_bytes(), lease.step.0, expires, due))?)?;
        operation.due(due_at);
        return Ok(Some(Heartbeat::Held(expires_at)));
    }
    if is_that(step.completed_under.as_ref(), lease, holder) {
        return Ok(Some(Heartbeat::Lost));
    }
    Ok(past(conn, lease, holder)?.map(|past| match past.outcome {
        Some(Cause::Cancelled) => Heartbeat::Cancelled,
        Some(_) | None => Heartbeat::Lost,
    }))
}

fn tenure(
    conn: &Connection,
    shared: &Shared,
    scope: &Scope,
    (task, no): (TaskId, StepNo),
) -> Result<Option<Tenure>> {
    let Some(namespace) = shared.locate(scope, task) else { return Ok(None) };
    let Some(step) = StepRow::load(conn, task, no)? else { return Ok(None) };
    let Some(held) = step.core.lease else { return Ok(None) };
    let of = TaskRow::load(conn, task)?.ok_or_else(|| damaged("the task of a step"))?.template;
    let template = templates::record(conn, shared, (task.namespace_no(), &namespace), of)?;
    Ok(Some(Tenure {
        id: held.id,
        namespace,
        step: task.step(no),
        name: step.name,
        attempt: step.core.attempts,
        template,
        expires_at: held.expires_at,
        timeout_at: held.timeout_at,
    }))
}

fn release(operation: &mut Operation<'_>, lease: LeaseId, now: Timestamp) -> Result<()> {
    let conn = operation.conn;
    let Some(namespace) = operation.shared.namespaces.name(lease.task.namespace_no()) else {
        return Ok(());
    };
    let Some(mut run) = Run::load(conn, namespace, lease.task)? else { return Ok(()) };
    run.load_step(conn, lease.step)?;
    let holds = run
        .step(lease.step)
        .is_some_and(|step| step.core.lease.as_ref().is_some_and(|held| held.id == lease));
    if holds {
        let event = Event::Released { step: lease.step };
        move_on(operation, run, event, now)?;
    }
    Ok(())
}

/// The server itself moves a step.
fn move_on(
    operation: &mut Operation<'_>,
    mut run: Run,
    event: Event,
    now: Timestamp,
) -> Result<()> {
    run.advance(operation, event, None, now).map_err(|_| damaged("a step that is due"))?;
    run.hand_off(operation, now)?;
    run.write(operation, &Stamp::system(), None, now)?;
    run.serve_elsewhere(operation, now)
}

/// A jitter of each step's own, so that the steps of a dead worker do not
/// come back all at once.
fn own_jitter(seed: i32, id: TaskId, step: StepNo) -> i32 {
    let low = id.as_bytes().iter().rev().take(4).map(|byte| i32::from(*byte)).sum::<i32>();
    (seed + 100 + low + i32::from(step.0) * 37) % 201 - 100
}

fn expire(
    operation: &mut Operation<'_>,
    limit: usize,
    jitter: i32,
    now: Timestamp,
) -> Result<Option<Timestamp>> {
    let conn = operation.conn;
    let due: Vec<([u8; 16], u16)> = conn
        .prepare_cached(
            "SELECT task, no FROM step INDEXED BY step_due \
             WHERE due_at IS NOT NULL AND due_at <= ?1 ORDER BY due_at LIMIT ?2",
        )?
        .query_map((now.micros(), i64::try_from(limit).unwrap_or(i64::MAX)), |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    for (id, step) in due {
        let (id, step) = (TaskId::from_bytes(id), StepNo(step));
        let namespace = operation
            .shared
            .namespaces
            .name(id.namespace_no())
            .ok_or_else(|| damaged("the namespace of a step"))?;
        let mut run =
            Run::load(conn, namespace, id)?.ok_or_else(|| damaged("the task of a step"))?;
        run.load_step(conn, step)?;
        let event = match run.step(step).map(|step| step.core.state) {
            Some(StepState::InProgress) => {
                Event::LeaseEnded { step, jitter: own_jitter(jitter, id, step) }
            }
            Some(StepState::WaitingForRetry) => Event::RetryDue { step },
            Some(_) | None => continue,
        };
        move_on(operation, run, event, now)?;
    }
    let next: Option<i64> = conn
        .prepare_cached(
            "SELECT due_at FROM step INDEXED BY step_due WHERE due_at IS NOT NULL \
             ORDER BY due_at LIMIT 1",
        )?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(next.map(Timestamp::from_micros))
}

#[async_trait]
impl WorkStore for Sqlite {
    async fn dispatch(
        &self,
        area: &Area,
        handlers: &[Arc<str>],
        limit: usize,
        now: Timestamp,
    ) -> Result<usize> {
        let (area, handlers) = (area.clone(), handlers.to_vec());
        self.write(move |operation| dispatch(operation, &area, &handlers, limit, now)).await
    }

    async fn report(
        &self,
        scope: &Scope,
        holder: &Identity,
        lease: LeaseId,
        report_: Report,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<Option<Reported>> {
        let incoming = Incoming {
            scope: scope.clone(),
            holder: holder.clone(),
            lease,
            report: report_,
            stamp: stamp.clone(),
            now,
        };
        self.write(move |operation| report(operation, &incoming)).await
    }

    async fn heartbeat(
        &self,
        scope: &Scope,
        holder: &Identity,
        leases: &[LeaseId],
        now: Timestamp,
    ) -> Result<Vec<Option<Heartbeat>>> {
        let (scope, holder, leases) = (scope.clone(), holder.clone(), leases.to_vec());
        self.write(move |operation| {
            leases.iter().map(|lease| heartbeat(operation, &scope, &holder, *lease, now)).collect()
        })
        .await
    }

    async fn tenures(
        &self,
        scope: &Scope,
        steps: &[(TaskId, StepNo)],
    ) -> Result<Vec<Option<Tenure>>> {
        let (scope, steps) = (scope.clone(), steps.to_vec());
        self.read(move |conn, shared| {
            steps.iter().map(|step| tenure(conn, shared, &scope, *step)).collect()
        })
        .await
    }

    async fn release(&self, leases: &[LeaseId], now: Timestamp) -> Result<()> {
        let leases = leases.to_vec();
        self.write(move |operation| {
            leases.iter().try_for_each(|lease| release(operation, *lease, now))
        })
        .await
    }

    async fn expire(&self, limit: usize, jitter: i32, now: Timestamp) -> Result<Option<Timestamp>> {
        self.write(move |operation| expire(operation, limit, jitter, now)).await
    }
}
