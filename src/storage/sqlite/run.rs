//! One task within an operation: loaded as far as an event touches it, moved
//! by the state machine, written back.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _};

use super::{
    audit::Changed,
    error::{broken, damaged},
    row,
    steps::{self, StepRow},
    tasks::TaskRow,
    templates,
    writer::Operation,
};
use crate::{
    domain::{
        Json, LeaseId, Namespace, StepNo, TaskId, Timestamp,
        advance::{self, Event, Refused},
        audit::Detail,
        history::{Cause, Change, Stamp},
        ids::NamespaceNo,
        principal::Identity,
        task::{Held, StepState},
    },
    storage::{Leased, Result, Revocation, Seat},
};

/// The most bytes of context and results that a lease carries.
const INPUT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The longest text of an error that is kept.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// Results of parents by their names.
type Results = Vec<(Arc<str>, Json)>;

/// An attempt that ended other than by completion.
struct Ended {
    attempt: u32,
    held: Held,
    outcome: Cause,
    error: Option<String>,
}

pub(super) struct Run {
    pub(super) ns: NamespaceNo,
    pub(super) namespace: Namespace,
    pub(super) task: TaskRow,
    /// The steps that are loaded, by number.
    steps: Vec<StepRow>,
    changes: Vec<Change>,
    touched: Vec<StepNo>,
    ready: Vec<StepNo>,
    ended: Vec<Ended>,
    /// Queues with an older step than one of ours, each with a seat for it.
    elsewhere: Vec<(Arc<str>, Seat)>,
    /// The context, when it is at hand anyway.
    context: Option<Json>,
}

impl Run {
    pub(super) fn load(
        conn: &Connection,
        namespace: Namespace,
        id: TaskId,
    ) -> Result<Option<Self>> {
        let Some(task) = TaskRow::load(conn, id)? else { return Ok(None) };
        Ok(Some(Self::of(namespace, task)))
    }

    fn of(namespace: Namespace, task: TaskRow) -> Self {
        Self {
            ns: task.core.id.namespace_no(),
            namespace,
            task,
            steps: Vec::new(),
            changes: Vec::new(),
            touched: Vec::new(),
            ready: Vec::new(),
            ended: Vec::new(),
            elsewhere: Vec::new(),
            context: None,
        }
    }

    /// A task that is being made.
    pub(super) fn begin(
        namespace: Namespace,
        task: TaskRow,
        steps: Vec<StepRow>,
        begun: advance::Advanced,
        context: Json,
    ) -> Self {
        let mut run = Self::of(namespace, task);
        run.task.core = begun.task;
        run.steps = steps;
        run.changes = begun.changes;
        run.ready = begun.ready;
        run.context = Some(context);
        run
    }

    pub(super) fn id(&self) -> TaskId {
        self.task.core.id
    }

    pub(super) fn step(&self, no: StepNo) -> Option<&StepRow> {
        let at = self.steps.binary_search_by_key(&no, |step| step.core.no).ok()?;
        self.steps.get(at)
    }

    /// Loads a step; none when there is no such step.
    pub(super) fn load_step(&mut self, conn: &Connection, no: StepNo) -> Result<bool> {
        let Err(place) = self.steps.binary_search_by_key(&no, |step| step.core.no) else {
            return Ok(true);
        };
        let Some(step) = StepRow::load(conn, self.id(), no)? else { return Ok(false) };
        self.steps.insert(place, step);
        Ok(true)
    }

    /// Loads the steps that wait for this one.
    pub(super) fn load_dependants(&mut self, conn: &Connection, no: StepNo) -> Result<()> {
        let dependants = self.step(no).map(|step| step.core.dependants.clone());
        for dependant in dependants.iter().flat_map(|numbers| numbers.iter()) {
            if !self.load_step(conn, *dependant)? {
                return Err(damaged("the edge of a step"));
            }
        }
        Ok(())
    }

    /// Loads every step that is not final.
    pub(super) fn load_open(&mut self, conn: &Connection) -> Result<()> {
        self.steps = StepRow::load_open(conn, self.id())?;
        Ok(())
    }

    /// Lets an event happen; `error` is what a failed attempt said.
    pub(super) fn advance(
        &mut self,
        operation: &mut Operation<'_>,
        event: Event,
        error: Option<&str>,
        now: Timestamp,
    ) -> std::result::Result<(), Refused> {
        // A lease touches its own step alone; a new task may have many.
        let loaded = if let Event::Leased { step, .. } = &event {
            self.step(*step).map(|step| step.core.clone()).into_iter().collect()
        } else {
            self.steps.iter().map(|step| step.core.clone()).collect()
        };
        let reported = matches!(event, Event::Completed { .. });
        let lease_ended = matches!(event, Event::LeaseEnded { .. });
        let revocation =
            if event == Event::Cancelled { Revocation::Cancelled } else { Revocation::Lost };
        let out = advance::advance(self.task.core.clone(), loaded, event, now)?;
        for core in out.steps.iter().filter(|core| out.touched.contains(&core.no)) {
            let cause = cause_of(&out.changes, core.no);
            self.touch(core.no);
            let Ok(at) = self.steps.binary_search_by_key(&core.no, |step| step.core.no) else {
                continue;
            };
            let Some(step) = self.steps.get_mut(at) else { continue };
            if let (Some(held), None) = (&step.core.lease, &core.lease) {
                if reported && core.state == StepState::Complete {
                    step.completed_under = Some(held.clone());
                } else {
                    self.ended.push(Ended {
                        attempt: core.attempts,
                        held: held.clone(),
                        outcome: cause,
                        error: what_it_said(error, cause, core.timeout_ms),
                    });
                }
            }
            step.moved(core.clone(), now);
        }
        self.changes.extend(out.changes);
        self.ready.retain(|no| !out.touched.contains(no));
        self.ready.extend(out.ready);
        if out.task.state.is_final() {
            operation.effects.finished.push(out.task.state);
        }
        operation.effects.expired += usize::from(lease_ended);
        operation.effects.revoked.extend(out.revoked.into_iter().map(|id| (id, revocation)));
        self.task.moved(out.task, now);
        Ok(())
    }

    fn touch(&mut self, no: StepNo) {
        if let Err(place) = self.touched.binary_search(&no) {
            self.touched.insert(place, no);
        }
    }

    /// Writes down that a result came under a dead lease.
    pub(super) fn refuse_stale(&mut self, no: StepNo, now: Timestamp) {
        let Some(step) = self.step(no) else { return };
        let (state, attempts) = (step.core.state, step.core.attempts);
        self.task.core.last_seq += 1;
        self.task.updated_at = now;
        self.changes.push(Change::Step { no, state, attempts, cause: Cause::StaleResultRefused });
    }

    /// Offers the steps that became ready to waiting workers. Where a queue
    /// has a step that goes before, that one shall get the seat.
    pub(super) fn hand_off(&mut self, operation: &mut Operation<'_>, now: Timestamp) -> Result<()> {
        for no in std::mem::take(&mut self.ready) {
            let Some(handler) = self.step(no).map(|step| Arc::clone(&step.handler)) else {
                continue;
            };
            let Some(seat) = operation.take_seat(&self.namespace, &handler) else {
                let queue = (self.namespace.clone(), handler);
                if !operation.effects.unserved.contains(&queue) {
                    operation.effects.unserved.push(queue);
                }
                continue;
            };
            let first = steps::first_ready(operation.conn, self.ns, &handler)?;
            if first.is_some_and(|first| first.rank <= self.task.rank()) {
                self.elsewhere.push((handler, seat));
            } else {
                self.lease(operation, no, seat, now)?;
            }
        }
        Ok(())
    }

    /// Leases a ready step to a seat.
    pub(super) fn lease(
        &mut self,
        operation: &mut Operation<'_>,
        no: StepNo,
        seat: Seat,
        now: Timestamp,
    ) -> Result<()> {
        let shared = operation.shared;
        let timeout_ms = self.step(no).map_or(0, |step| step.core.timeout_ms);
        let counter = shared.leases.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id = LeaseId {
            task: self.id(),
            step: no,
            epoch: shared.epoch,
            counter,
            random: seat.entropy,
        };
        let held = Held {
            id,
            holder: seat.holder.clone(),
            worker: seat.worker.clone(),
            started_at: now,
            expires_at: now.plus(shared.settings.terms.lease),
            timeout_at: now.plus_ms(i64::from(timeout_ms)),
            orphaned: false,
        };
        let (expires_at, timeout_at) = (held.expires_at, held.timeout_at);
        let event = Event::Leased { step: no, held: Box::new(held) };
        self.advance(operation, event, None, now).map_err(|refused| broken(refused.to_string()))?;
        let (name, handler, attempt, parents) = self
            .step(no)
            .map(|step| {
                let StepRow { name, handler, parents, core, .. } = step;
                (Arc::clone(name), Arc::clone(handler), core.attempts, Arc::clone(parents))
            })
            .ok_or_else(|| damaged("a step"))?;
        let context = self.context(operation.conn)?;
        let Some(results) = self.results(operation.conn, &parents, context.as_str().len())? else {
            return self.fail_for_size(operation, no, seat, now);
        };
        let namespace = (self.ns, &self.namespace);
        let template = templates::record(operation.conn, shared, namespace, self.task.template)?;
        let leased = Leased {
            id,
            namespace: self.namespace.clone(),
            step: self.id().step(no),
            name,
            handler,
            attempt,
            context,
            results,
            template,
            expires_at,
            timeout_at,
            traceparent: self.task.traceparent.clone(),
        };
        operation.grant(seat, leased);
        Ok(())
    }

    fn context(&mut self, conn: &Connection) -> Result<Json> {
        if let Some(context) = &self.context {
            return Ok(context.clone());
        }
        let context =
            payload(conn, self.id(), CONTEXT)?.ok_or_else(|| damaged("a task's context"))?;
        self.context = Some(context.clone());
        Ok(context)
    }

    /// A step whose inputs no lease can carry fails: waiting would not make
    /// them smaller.
    fn fail_for_size(
        &mut self,
        operation: &mut Operation<'_>,
        no: StepNo,
        seat: Seat,
        now: Timestamp,
    ) -> Result<()> {
        operation.give_back(seat);
        let error = format!(
            "the context and the results of the step's parents have more than {INPUT_BYTES_MAX} \
             bytes; let the parents return less"
        );
        let event = Event::Failed { step: no, retryable: false, jitter: 0 };
        self.advance(operation, event, Some(&error), now)
            .map_err(|refused| broken(refused.to_string()))
    }

    /// The results of the parents; none when they are too large together.
    fn results(
        &self,
        conn: &Connection,
        parents: &[StepNo],
        mut bytes: usize,
    ) -> Result<Option<Results>> {
        let mut results = Vec::with_capacity(parents.len());
        for parent in parents {
            let name = match self.step(*parent) {
                Some(step) => Arc::clone(&step.name),
                None => steps::name(conn, self.id(), *parent)?,
            };
            let result = payload(conn, self.id(), result_slot(*parent))?;
            let result = result.unwrap_or_else(Json::null);
            bytes += result.as_str().len();
            if bytes > INPUT_BYTES_MAX {
                return Ok(None);
            }
            results.push((name, result));
        }
        Ok(Some(results))
    }

    /// Writes back what changed, with its history.
    pub(super) fn write(
        &mut self,
        operation: &mut Operation<'_>,
        stamp: &Stamp,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<()> {
        let conn = operation.conn;
        self.task.update(conn)?;
        for no in std::mem::take(&mut self.touched) {
            let step = self.step(no).ok_or_else(|| damaged("a step"))?;
            step.update(conn, self.id())?;
            if let Some(due) = step.due_at() {
                operation.due(due);
            }
        }
        self.write_history(operation, stamp, reason, now)
    }

    /// Writes a task that is being made, with all of its steps.
    pub(super) fn insert(
        &mut self,
        operation: &mut Operation<'_>,
        created_by: &Identity,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<()> {
        let conn = operation.conn;
        self.task.insert(conn, created_by)?;
        let context = self.context.clone().unwrap_or_else(Json::null);
        put_payload(conn, self.id(), CONTEXT, context.as_str().as_bytes())?;
        for step in &self.steps {
            step.insert(conn, self.id(), self.task.rank())?;
            if let Some(due) = step.due_at() {
                operation.due(due);
            }
        }
        self.touched.clear();
        self.write_history(operation, stamp, None, now)
    }

    fn write_history(
        &mut self,
        operation: &mut Operation<'_>,
        stamp: &Stamp,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<()> {
        let conn = operation.conn;
        for ended in self.ended.drain(..) {
            let Ended { attempt, held, outcome, error } = ended;
            let record = AttemptRow {
                attempt,
                held: &held,
                outcome: outcome.as_str(),
                error,
                refused: false,
            };
            record.insert(conn, now)?;
        }
        if self.changes.is_empty() {
            return Ok(());
        }
        let mut insert = conn.prepare_cached(
            "INSERT INTO event (ns, task, last_seq, at, actor, credential, request, reason, \
             changes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?;
        insert.execute((
            self.ns.0,
            self.id().as_bytes(),
            self.task.core.last_seq,
            now.micros(),
            stamp.actor().map(row::identity_text),
            stamp.credential_id(),
            stamp.request().map(|request| request.to_string()),
            reason,
            row::changes_text(&self.changes),
        ))?;
        let changed = Changed {
            place: Some(self.namespace.as_str()),
            object: &self.id().to_string(),
            detail: Some(Detail::Changes(&self.changes)),
        };
        operation.audit(stamp, changed, now)?;
        self.changes.clear();
        operation.effects.changed.push(self.id());
        Ok(())
    }

    /// Serves the queues that go before ours, once ours are written.
    pub(super) fn serve_elsewhere(
        self,
        operation: &mut Operation<'_>,
        now: Timestamp,
    ) -> Result<()> {
        for (handler, seat) in self.elsewhere {
            if let Some(seat) =
                serve_first(operation, (self.ns, &self.namespace), &handler, seat, now)?
            {
                operation.give_back(seat);
            }
        }
        Ok(())
    }
}

/// Leases the first step of a queue to a seat; gives the seat back when the
/// queue is empty.
pub(super) fn serve_first(
    operation: &mut Operation<'_>,
    (ns, namespace): (NamespaceNo, &Namespace),
    handler: &str,
    seat: Seat,
    now: Timestamp,
) -> Result<Option<Seat>> {
    let Some(first) = steps::first_ready(operation.conn, ns, handler)? else {
        return Ok(Some(seat));
    };
    let mut run = Run::load(operation.conn, namespace.clone(), first.task)?
        .ok_or_else(|| damaged("the task of a step"))?;
    run.load_step(operation.conn, first.no)?;
    run.lease(operation, first.no, seat, now)?;
    run.write(operation, &Stamp::system(), None, now)?;
    Ok(None)
}

fn cause_of(changes: &[Change], step: StepNo) -> Cause {
    changes
        .iter()
        .find_map(|change| match change {
            Change::Step { no, cause, .. } if *no == step => Some(*cause),
            Change::Step { .. } | Change::Task(_) => None,
        })
        .unwrap_or(Cause::Failed)
}

fn what_it_said(error: Option<&str>, cause: Cause, timeout_ms: u32) -> Option<String> {
    match cause {
        Cause::Failed => error.map(|error| row::bounded(error, ERROR_BYTES_MAX).to_owned()),
        Cause::LeaseExpired => Some("the lease expired: no heartbeat came in time".to_owned()),
        Cause::TimedOut => Some(format!("the attempt took longer than {timeout_ms} ms")),
        Cause::Created
        | Cause::DependenciesMet
        | Cause::Leased
        | Cause::Completed
        | Cause::ServerRestarted
        | Cause::RetryDue
        | Cause::Cancelled
        | Cause::ResetForRetry
        | Cause::ResolveManually
        | Cause::CompleteManually
        | Cause::StaleResultRefused => None,
    }
}

/// The row of an attempt.
pub(super) struct AttemptRow<'a> {
    pub(super) attempt: u32,
    pub(super) held: &'a Held,
    pub(super) outcome: &'a str,
    pub(super) error: Option<String>,
    pub(super) refused: bool,
}

impl AttemptRow<'_> {
    pub(super) fn insert(&self, conn: &Connection, now: Timestamp) -> Result<()> {
        let Held { id, holder, worker, started_at, .. } = self.held;
        let mut insert = conn.prepare_cached(
            "INSERT INTO attempt (ns, task, no, attempt, epoch, counter, random, holder, worker, \
             started_at, ended_at, outcome, error, refused) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )?;
        insert.execute((
            id.task.namespace_no().0,
            id.task.as_bytes(),
            id.step.0,
            self.attempt,
            id.epoch,
            id.counter.cast_signed(),
            id.random.cast_signed(),
            row::identity_text(holder),
            worker.as_deref(),
            started_at.micros(),
            now.micros(),
            self.outcome,
            self.error.as_deref(),
            self.refused,
        ))?;
        Ok(())
    }
}

/// The slot of a task's labels.
pub(super) const LABELS: i64 = -1;
/// The slot of a task's context.
pub(super) const CONTEXT: i64 = 0;

/// The slot of a step's result.
pub(super) fn result_slot(no: StepNo) -> i64 {
    i64::from(no.0) + 1
}

pub(super) fn payload(conn: &Connection, id: TaskId, slot: i64) -> Result<Option<Json>> {
    let mut select = conn.prepare_cached(
        "SELECT body FROM payload WHERE ns = ?1 AND task = ?2 AND slot = ?3 AND key_id IS NULL",
    )?;
    let body: Option<Vec<u8>> = select
        .query_row((id.namespace_no().0, id.as_bytes(), slot), |row| row.get(0))
        .optional()?;
    body.map(row::json).transpose()
}

pub(super) fn put_payload(conn: &Connection, id: TaskId, slot: i64, body: &[u8]) -> Result<()> {
    let mut insert = conn.prepare_cached(
        "INSERT INTO payload (ns, task, slot, key_id, body) VALUES (?1, ?2, ?3, NULL, ?4)",
    )?;
    insert.execute((id.namespace_no().0, id.as_bytes(), slot, body))?;
    Ok(())
}
