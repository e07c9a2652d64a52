//! Tasks: rows, creation, cancellation, cures by hand.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _};

use super::{
    Sqlite,
    error::damaged,
    events, lineage, row,
    run::{self, Run},
    steps::{StepRow, one_row},
    templates, views,
    writer::Operation,
};
use crate::{
    domain::{
        Json, Namespace, Scope, StepId, TaskId, Timestamp,
        advance::{self, Event as Happens},
        history::{Attempt, Event, Stamp},
        ids::NamespaceNo,
        principal::Identity,
        task::{Task, TaskCore, TaskState},
    },
    storage::{
        Cancelled, Created, Cure, Cured, Listed, NewTask, Order, Page, Result, Step, StepBrief,
        TaskFilter, TaskStore,
    },
};

/// How often an id is composed anew when two fall on the same microsecond
/// and random bits.
const ID_TRIES: u32 = 8;

/// What the operations on a task need of its row.
pub(super) struct TaskRow {
    pub(super) core: TaskCore,
    pub(super) template: u32,
    pub(super) priority: i32,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
    pub(super) completed_at: Option<Timestamp>,
    pub(super) traceparent: Option<Arc<str>>,
}

impl TaskRow {
    /// The priority with its sign turned, as queues sort by it.
    pub(super) fn rank(&self) -> i32 {
        -self.priority
    }

    pub(super) fn load(conn: &Connection, id: TaskId) -> Result<Option<Self>> {
        let mut select = conn.prepare_cached(
            "SELECT state, counts, started, last_seq, template, priority, created_at, \
             updated_at, completed_at, traceparent FROM task WHERE ns = ?1 AND task = ?2",
        )?;
        let mut rows = select.query((id.namespace_no().0, id.as_bytes()))?;
        let Some(found) = rows.next()? else { return Ok(None) };
        let counts = found.get_ref(1)?.as_blob().map_err(|_| damaged("a task's counts"))?;
        Ok(Some(Self {
            core: TaskCore {
                id,
                state: row::task_state(found.get(0)?)?,
                counts: row::counts(counts)?,
                started: found.get(2)?,
                last_seq: found.get(3)?,
            },
            template: found.get(4)?,
            priority: found.get(5)?,
            created_at: row::time(found, 6)?,
            updated_at: row::time(found, 7)?,
            completed_at: row::time_if_any(found, 8)?,
            traceparent: row::text_if_any(found, 9)?,
        }))
    }

    /// Takes its new values.
    pub(super) fn moved(&mut self, core: TaskCore, now: Timestamp) {
        self.updated_at = now;
        if core.state.is_final() && self.completed_at.is_none() {
            self.completed_at = Some(now);
        }
        self.core = core;
    }

    pub(super) fn insert(&self, conn: &Connection, created_by: &Identity) -> Result<()> {
        let Self { core, .. } = self;
        let mut insert = conn.prepare_cached(
            "INSERT INTO task (ns, task, state, counts, started, last_seq, template, priority, \
             created_by, created_at, updated_at, completed_at, traceparent) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?;
        insert.execute((
            core.id.namespace_no().0,
            core.id.as_bytes(),
            core.state.code(),
            row::counts_blob(&core.counts),
            core.started,
            core.last_seq,
            self.template,
            self.priority,
            row::identity_text(created_by),
            self.created_at.micros(),
            self.updated_at.micros(),
            self.completed_at.map(Timestamp::micros),
            self.traceparent.as_deref(),
        ))?;
        Ok(())
    }

    pub(super) fn update(&self, conn: &Connection) -> Result<()> {
        let Self { core, .. } = self;
        let mut update = conn.prepare_cached(
            "UPDATE task SET state = ?3, counts = ?4, started = ?5, last_seq = ?6, \
             updated_at = ?7, completed_at = ?8 WHERE ns = ?1 AND task = ?2",
        )?;
        one_row(update.execute((
            core.id.namespace_no().0,
            core.id.as_bytes(),
            core.state.code(),
            row::counts_blob(&core.counts),
            core.started,
            core.last_seq,
            self.updated_at.micros(),
            self.completed_at.map(Timestamp::micros),
        ))?)
    }
}

/// An id that no task has.
fn fresh_id(conn: &Connection, new: &NewTask, ns: NamespaceNo, now: Timestamp) -> Result<TaskId> {
    let mut select = conn.prepare_cached("SELECT 1 FROM task WHERE ns = ?1 AND task = ?2")?;
    for again in 0..ID_TRIES {
        let id = TaskId::compose(now, ns, new.entropy.wrapping_add(again));
        if !select.exists((ns.0, id.as_bytes()))? {
            return Ok(id);
        }
    }
    Err(damaged("the randomness of ids"))
}

/// What an idempotency key stands for already.
fn made_before(conn: &Connection, new: &NewTask, ns: NamespaceNo) -> Result<Option<Created>> {
    let Some(key) = &new.labels.idempotency_key else { return Ok(None) };
    let template = &new.template.template;
    let found: Option<([u8; 16], [u8; 32])> = conn
        .prepare_cached(
            "SELECT task, fingerprint FROM idempotency WHERE ns = ?1 AND name = ?2 AND key = ?3",
        )?
        .query_row((ns.0, &*template.name, key), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((task, fingerprint)) = found else { return Ok(None) };
    if fingerprint != new.fingerprint {
        return Ok(Some(Created::IdempotencyConflict));
    }
    let id = TaskId::from_bytes(task);
    let task = views::task(conn, &new.template.namespace, id)?;
    task.map(|task| Some(Created::Existing(Box::new(task))))
        .ok_or_else(|| damaged("the task of an idempotency key"))
}

fn keep_key(conn: &Connection, new: &NewTask, id: TaskId) -> Result<()> {
    let Some(key) = &new.labels.idempotency_key else { return Ok(()) };
    let kept = conn
        .prepare_cached(
            "INSERT INTO idempotency (ns, name, key, task, fingerprint) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute((
            id.namespace_no().0,
            &*new.template.template.name,
            key,
            id.as_bytes(),
            new.fingerprint,
        ));
    match kept {
        Ok(_) => Ok(()),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            Err(damaged("an idempotency key"))
        }
        Err(error) => Err(error.into()),
    }
}

fn create(
    operation: &mut Operation<'_>,
    new: &NewTask,
    stamp: &Stamp,
    now: Timestamp,
) -> Result<Created> {
    let conn = operation.conn;
    let ns = templates::namespace_of(&new.template)?;
    if let Some(before) = made_before(conn, new, ns)? {
        return Ok(before);
    }
    let place = match new.spawn.as_ref().map(|spawn| lineage::place(conn, spawn)).transpose()? {
        Some(Ok(place)) => Some(place),
        Some(Err(why)) => return Ok(Created::NotSpawned(why)),
        None => None,
    };
    let id = fresh_id(conn, new, ns, now)?;
    let template = &new.template.template;
    let mut begun = advance::begin(id, template);
    let steps = std::mem::take(&mut begun.steps)
        .into_iter()
        .zip(&template.steps)
        .map(|(core, spec)| StepRow::new(core, spec, now))
        .collect();
    let task = TaskRow {
        core: begun.task.clone(),
        template: templates::number_of(&new.template)?,
        priority: new.priority,
        created_at: now,
        updated_at: now,
        completed_at: None,
        traceparent: new.traceparent.clone(),
    };
    let created_by = stamp.actor().cloned().unwrap_or_else(row::server);
    let namespace = new.template.namespace.clone();
    let mut run = Run::begin(namespace.clone(), task, steps, begun, new.context.clone());
    run.hand_off(operation, now)?;
    run.insert(operation, &created_by, stamp, now)?;
    if let Some(labels) = row::labels_body(&new.labels)? {
        run::put_payload(conn, id, run::LABELS, &labels)?;
    }
    if let Some(place) = place {
        lineage::insert(conn, id, place)?;
    }
    keep_key(conn, new, id)?;
    let created = Task {
        core: run.task.core.clone(),
        namespace,
        name: Arc::clone(&template.name),
        version: template.version.to_string().into(),
        priority: new.priority,
        labels: new.labels.clone(),
        created_by,
        created_at: now,
        updated_at: run.task.updated_at,
        completed_at: run.task.completed_at,
        lineage: place,
    };
    run.serve_elsewhere(operation, now)?;
    Ok(Created::New(Box::new(created)))
}

fn cancel(
    operation: &mut Operation<'_>,
    (scope, id): (&Scope, TaskId),
    reason: Option<&str>,
    stamp: &Stamp,
    now: Timestamp,
) -> Result<Option<Cancelled>> {
    let conn = operation.conn;
    let Some(namespace) = operation.shared.locate(scope, id) else { return Ok(None) };
    let Some(mut run) = Run::load(conn, namespace.clone(), id)? else { return Ok(None) };
    let state = run.task.core.state;
    if state.is_final() && state != TaskState::Cancelled {
        return Ok(Some(Cancelled::Final(state)));
    }
    if state != TaskState::Cancelled {
        run.load_open(conn)?;
        if run.advance(operation, Happens::Cancelled, None, now).is_err() {
            return Ok(Some(Cancelled::Final(run.task.core.state)));
        }
        run.write(operation, stamp, reason, now)?;
    }
    for below in lineage::descendants(conn, id)? {
        let Some(mut run) = Run::load(conn, namespace.clone(), below)? else { continue };
        if run.task.core.state.is_final() {
            continue;
        }
        run.load_open(conn)?;
        if run.advance(operation, Happens::Cancelled, None, now).is_ok() {
            run.write(operation, stamp, reason, now)?;
        }
    }
    let task = views::task(conn, &namespace, id)?.ok_or_else(|| damaged("a task"))?;
    Ok(Some(Cancelled::Done(Box::new(task))))
}

fn cure(
    operation: &mut Operation<'_>,
    (scope, id): (&Scope, TaskId),
    order: &Order,
    stamp: &Stamp,
    now: Timestamp,
) -> Result<Option<Cured>> {
    let conn = operation.conn;
    let Some(namespace) = operation.shared.locate(scope, id) else { return Ok(None) };
    let Some(no) = id.step_no(order.step) else { return Ok(None) };
    let Some(mut run) = Run::load(conn, namespace, id)? else { return Ok(None) };
    if !run.load_step(conn, no)? {
        return Ok(None);
    }
    run.load_dependants(conn, no)?;
    let event = match &order.cure {
        Cure::Reset => Happens::Reset { step: no },
        Cure::Resolve => Happens::Resolved { step: no },
        Cure::Complete(_) => Happens::CompletedByHand { step: no },
    };
    if let Err(refused) = run.advance(operation, event, None, now) {
        return Ok(Some(Cured::Refused(refused.to_string())));
    }
    if let Cure::Complete(result) = &order.cure {
        put_result(conn, id, no, result)?;
    }
    run.hand_off(operation, now)?;
    run.write(operation, stamp, Some(&order.reason), now)?;
    run.serve_elsewhere(operation, now)?;
    let step = views::step(conn, id, no)?.ok_or_else(|| damaged("a step"))?;
    Ok(Some(Cured::Done(Box::new(step))))
}

/// Keeps a step's result; null is none.
pub(super) fn put_result(
    conn: &Connection,
    id: TaskId,
    no: crate::domain::StepNo,
    result: &Json,
) -> Result<()> {
    if result.as_str() == "null" {
        return Ok(());
    }
    run::put_payload(conn, id, run::result_slot(no), result.as_str().as_bytes())
}

/// The result of a complete step.
pub(super) fn stored_result(
    conn: &Connection,
    id: TaskId,
    no: crate::domain::StepNo,
) -> Result<Json> {
    Ok(run::payload(conn, id, run::result_slot(no))?.unwrap_or_else(Json::null))
}

#[async_trait]
impl TaskStore for Sqlite {
    async fn create(&self, task: NewTask, stamp: &Stamp, now: Timestamp) -> Result<Created> {
        let stamp = stamp.clone();
        self.write(move |operation| create(operation, &task, &stamp, now)).await
    }

    async fn made_before(&self, task: NewTask) -> Result<Option<Created>> {
        let ns = templates::namespace_of(&task.template)?;
        self.read(move |conn, _| made_before(conn, &task, ns)).await
    }

    async fn task(&self, scope: &Scope, id: TaskId) -> Result<Option<Task>> {
        let Some(namespace) = self.shared.locate(scope, id) else { return Ok(None) };
        self.read(move |conn, _| views::task(conn, &namespace, id)).await
    }

    async fn context(&self, scope: &Scope, id: TaskId) -> Result<Option<(Namespace, Json)>> {
        let Some(namespace) = self.shared.locate(scope, id) else { return Ok(None) };
        self.read(move |conn, _| {
            let context = run::payload(conn, id, run::CONTEXT)?;
            Ok(context.map(|context| (namespace, context)))
        })
        .await
    }

    async fn tasks(&self, scope: &Scope, filter: &TaskFilter, page: &Page) -> Result<Listed<Task>> {
        let within = self.shared.namespaces.within(scope, filter.namespace.as_ref());
        let (filter, page) = (filter.clone(), page.clone());
        self.read(move |conn, _| views::tasks(conn, &within, &filter, &page)).await
    }

    async fn snapshot(&self, scope: &Scope, id: TaskId) -> Result<Option<(Task, Vec<StepBrief>)>> {
        let Some(namespace) = self.shared.locate(scope, id) else { return Ok(None) };
        self.read(move |conn, _| {
            let Some(task) = views::task(conn, &namespace, id)? else { return Ok(None) };
            Ok(Some((task, views::briefs(conn, id)?)))
        })
        .await
    }

    async fn steps(
        &self,
        scope: &Scope,
        id: TaskId,
        page: &Page,
    ) -> Result<Option<(Namespace, Listed<Step>)>> {
        let Some(namespace) = self.shared.locate(scope, id) else { return Ok(None) };
        let page = page.clone();
        self.read(move |conn, _| {
            if TaskRow::load(conn, id)?.is_none() {
                return Ok(None);
            }
            Ok(Some((namespace, views::steps(conn, id, &page)?)))
        })
        .await
    }

    async fn step(
        &self,
        scope: &Scope,
        id: TaskId,
        step: StepId,
    ) -> Result<Option<(Namespace, Step)>> {
        let Some(namespace) = self.shared.locate(scope, id) else { return Ok(None) };
        let Some(no) = id.step_no(step) else { return Ok(None) };
        self.read(move |conn, _| Ok(views::step(conn, id, no)?.map(|step| (namespace, step)))).await
    }

    async fn events(
        &self,
        scope: &Scope,
        id: TaskId,
        after: i64,
        limit: usize,
    ) -> Result<Option<Vec<Event>>> {
        if self.shared.locate(scope, id).is_none() {
            return Ok(None);
        }
        self.read(move |conn, _| {
            if TaskRow::load(conn, id)?.is_none() {
                return Ok(None);
            }
            events::behind(conn, id, after, limit).map(Some)
        })
        .await
    }

    async fn step_history(
        &self,
        scope: &Scope,
        id: TaskId,
        step: StepId,
    ) -> Result<Option<(Namespace, Vec<Event>, Vec<Attempt>)>> {
        let Some(namespace) = self.shared.locate(scope, id) else { return Ok(None) };
        let Some(no) = id.step_no(step) else { return Ok(None) };
        self.read(move |conn, _| {
            let Some(step) = StepRow::load(conn, id, no)? else { return Ok(None) };
            let attempts = events::attempts(conn, id, &step)?;
            Ok(Some((namespace, events::of_step(conn, id, no)?, attempts)))
        })
        .await
    }

    async fn cancel(
        &self,
        scope: &Scope,
        id: TaskId,
        reason: Option<&str>,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<Option<Cancelled>> {
        let (scope, reason, stamp) = (scope.clone(), reason.map(ToOwned::to_owned), stamp.clone());
        self.write(move |operation| cancel(operation, (&scope, id), reason.as_deref(), &stamp, now))
            .await
    }

    async fn cure(
        &self,
        scope: &Scope,
        id: TaskId,
        order: Order,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<Option<Cured>> {
        let (scope, stamp) = (scope.clone(), stamp.clone());
        self.write(move |operation| cure(operation, (&scope, id), &order, &stamp, now)).await
    }
}
