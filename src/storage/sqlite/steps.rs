//! Rows of steps, and the queues of those that are ready.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::{error::damaged, row};
use crate::{
    domain::{
        LeaseId, StepNo, TaskId, Timestamp,
        ids::NamespaceNo,
        task::{Held, RetryPolicy, StepCore, StepState},
        template::StepSpec,
    },
    storage::Result,
};

/// A step as it lies on disk.
pub(super) struct StepRow {
    pub(super) core: StepCore,
    pub(super) name: Arc<str>,
    pub(super) handler: Arc<str>,
    pub(super) parents: Arc<[StepNo]>,
    pub(super) created_at: Timestamp,
    pub(super) ready_at: Option<Timestamp>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) completed_at: Option<Timestamp>,
    /// The lease under which its worker completed it.
    pub(super) completed_under: Option<Held>,
}

/// The columns of [`StepRow::read`], in its order.
pub(super) const COLUMNS: &str = "no, state, name, handler, deps_left, dependants, parents, \
     attempts, attempts_allowed, retryable, max_attempts, backoff, base_ms, max_ms, timeout_ms, \
     created_at, ready_at, started_at, completed_at, retry_at, epoch, counter, random, holder, \
     worker, expires_at, timeout_at, orphaned";

impl StepRow {
    pub(super) fn new(core: StepCore, spec: &StepSpec, now: Timestamp) -> Self {
        let parents = spec.depends_on.iter().filter_map(|no| u16::try_from(*no).ok());
        Self {
            name: Arc::clone(&spec.name),
            handler: Arc::clone(&spec.handler),
            parents: parents.map(StepNo).collect(),
            created_at: now,
            ready_at: (core.state == StepState::Ready).then_some(now),
            started_at: None,
            completed_at: None,
            completed_under: None,
            core,
        }
    }

    /// Takes its new values.
    pub(super) fn moved(&mut self, core: StepCore, now: Timestamp) {
        if core.state == StepState::Ready && self.core.state != StepState::Ready {
            self.ready_at = Some(now);
        }
        if let Some(held) = &core.lease {
            self.started_at = Some(held.started_at);
        }
        if core.state.is_final() && self.completed_at.is_none() {
            self.completed_at = Some(now);
        }
        self.core = core;
    }

    /// When the timer must look at it.
    pub(super) fn due_at(&self) -> Option<Timestamp> {
        self.core.lease.as_ref().map(Held::due_at).or(self.core.retry_at)
    }

    pub(super) fn load(conn: &Connection, task: TaskId, no: StepNo) -> Result<Option<Self>> {
        let mut select = conn.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM step WHERE ns = ?1 AND task = ?2 AND no = ?3"
        ))?;
        let mut rows = select.query((task.namespace_no().0, task.as_bytes(), no.0))?;
        rows.next()?.map(|found| Self::read(found, task)).transpose()
    }

    /// Every step that is not final, by number.
    pub(super) fn load_open(conn: &Connection, task: TaskId) -> Result<Vec<Self>> {
        let mut select = conn.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM step WHERE ns = ?1 AND task = ?2 AND state IN (1, 2, 3, 4, 6) \
             ORDER BY no"
        ))?;
        let mut rows = select.query((task.namespace_no().0, task.as_bytes()))?;
        let mut steps = Vec::new();
        while let Some(found) = rows.next()? {
            steps.push(Self::read(found, task)?);
        }
        Ok(steps)
    }

    pub(super) fn read(found: &Row<'_>, task: TaskId) -> Result<Self> {
        let no = StepNo(found.get(0)?);
        let state = row::step_state(found.get(1)?)?;
        let held = held(found, task, no)?;
        let (lease, completed_under) = if state == StepState::InProgress {
            (Some(held.ok_or_else(|| damaged("the lease of a step"))?), None)
        } else {
            (None, held)
        };
        Ok(Self {
            core: StepCore {
                no,
                state,
                deps_left: found.get(4)?,
                dependants: row::numbers(found, 5)?,
                attempts: found.get(7)?,
                attempts_allowed: found.get(8)?,
                retry: RetryPolicy {
                    retryable: found.get(9)?,
                    max_attempts: found.get(10)?,
                    backoff: row::backoff(found.get(11)?)?,
                    base_ms: found.get(12)?,
                    max_ms: found.get(13)?,
                },
                timeout_ms: found.get(14)?,
                lease,
                retry_at: row::time_if_any(found, 19)?,
            },
            name: row::text(found, 2)?,
            handler: row::text(found, 3)?,
            parents: row::numbers(found, 6)?,
            created_at: row::time(found, 15)?,
            ready_at: row::time_if_any(found, 16)?,
            started_at: row::time_if_any(found, 17)?,
            completed_at: row::time_if_any(found, 18)?,
            completed_under,
        })
    }

    pub(super) fn insert(&self, conn: &Connection, task: TaskId, rank: i32) -> Result<()> {
        let Self { core, .. } = self;
        let RetryPolicy { retryable, max_attempts, backoff, base_ms, max_ms } = core.retry;
        let held = self.held();
        let mut insert = conn.prepare_cached(
            "INSERT INTO step (ns, task, no, state, name, handler, rank, deps_left, dependants, \
             parents, attempts, attempts_allowed, retryable, max_attempts, backoff, base_ms, \
             max_ms, timeout_ms, created_at, ready_at, due_at, retry_at, epoch, counter, random, \
             holder, worker, orphaned, started_at, expires_at, timeout_at, completed_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, \
             ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30, ?31, ?32)",
        )?;
        insert.execute(rusqlite::params![
            task.namespace_no().0,
            task.as_bytes(),
            core.no.0,
            core.state.code(),
            &*self.name,
            &*self.handler,
            rank,
            core.deps_left,
            row::numbers_blob(&core.dependants),
            row::numbers_blob(&self.parents),
            core.attempts,
            core.attempts_allowed,
            retryable,
            max_attempts,
            row::backoff_code(backoff),
            base_ms,
            max_ms,
            core.timeout_ms,
            self.created_at.micros(),
            self.ready_at.map(Timestamp::micros),
            self.due_at().map(Timestamp::micros),
            core.retry_at.map(Timestamp::micros),
            held.map(|held| held.id.epoch),
            held.map(|held| held.id.counter.cast_signed()),
            held.map(|held| held.id.random.cast_signed()),
            held.map(|held| row::identity_text(&held.holder)),
            held.and_then(|held| held.worker.as_deref()),
            held.is_some_and(|held| held.orphaned),
            self.started_at.map(Timestamp::micros),
            held.map(|held| held.expires_at.micros()),
            held.map(|held| held.timeout_at.micros()),
            self.completed_at.map(Timestamp::micros),
        ])?;
        Ok(())
    }

    /// The lease that stays with its row.
    fn held(&self) -> Option<&Held> {
        self.core.lease.as_ref().or(self.completed_under.as_ref())
    }

    pub(super) fn update(&self, conn: &Connection, task: TaskId) -> Result<()> {
        let Self { core, .. } = self;
        let held = self.held();
        let mut update = conn.prepare_cached(
            "UPDATE step SET state = ?4, deps_left = ?5, attempts = ?6, attempts_allowed = ?7, \
             ready_at = ?8, due_at = ?9, retry_at = ?10, epoch = ?11, counter = ?12, \
             random = ?13, holder = ?14, worker = ?15, orphaned = ?16, started_at = ?17, \
             expires_at = ?18, timeout_at = ?19, completed_at = ?20 \
             WHERE ns = ?1 AND task = ?2 AND no = ?3",
        )?;
        let updated = update.execute(rusqlite::params![
            task.namespace_no().0,
            task.as_bytes(),
            core.no.0,
            core.state.code(),
            core.deps_left,
            core.attempts,
            core.attempts_allowed,
            self.ready_at.map(Timestamp::micros),
            self.due_at().map(Timestamp::micros),
            core.retry_at.map(Timestamp::micros),
            held.map(|held| held.id.epoch),
            held.map(|held| held.id.counter.cast_signed()),
            held.map(|held| held.id.random.cast_signed()),
            held.map(|held| row::identity_text(&held.holder)),
            held.and_then(|held| held.worker.as_deref()),
            held.is_some_and(|held| held.orphaned),
            self.started_at.map(Timestamp::micros),
            held.map(|held| held.expires_at.micros()),
            held.map(|held| held.timeout_at.micros()),
            self.completed_at.map(Timestamp::micros),
        ])?;
        one_row(updated)
    }
}

/// A write that must hit one row.
pub(super) fn one_row(rows: usize) -> Result<()> {
    if rows == 1 { Ok(()) } else { Err(damaged("a row that must be there")) }
}

fn held(found: &Row<'_>, task: TaskId, step: StepNo) -> Result<Option<Held>> {
    let Some(counter) = found.get::<_, Option<i64>>(21)? else { return Ok(None) };
    Ok(Some(Held {
        id: LeaseId {
            task,
            step,
            epoch: found.get(20)?,
            counter: counter.cast_unsigned(),
            random: found.get::<_, i64>(22)?.cast_unsigned(),
        },
        holder: row::identity(&row::text(found, 23)?)?,
        worker: row::text_if_any(found, 24)?,
        started_at: row::time(found, 17)?,
        expires_at: row::time(found, 25)?,
        timeout_at: row::time(found, 26)?,
        orphaned: found.get(27)?,
    }))
}

pub(super) fn name(conn: &Connection, task: TaskId, no: StepNo) -> Result<Arc<str>> {
    let mut select =
        conn.prepare_cached("SELECT name FROM step WHERE ns = ?1 AND task = ?2 AND no = ?3")?;
    let mut rows = select.query((task.namespace_no().0, task.as_bytes(), no.0))?;
    row::text(rows.next()?.ok_or_else(|| damaged("the edge of a step"))?, 0)
}

/// The head of a queue.
#[derive(Clone, Copy)]
pub(super) struct First {
    pub(super) task: TaskId,
    pub(super) no: StepNo,
    pub(super) rank: i32,
}

/// The first ready step of a queue, by priority and age: the one chooser.
pub(super) fn first_ready(
    conn: &Connection,
    ns: NamespaceNo,
    handler: &str,
) -> Result<Option<First>> {
    let mut select = conn.prepare_cached(
        "SELECT task, no, rank FROM step INDEXED BY step_ready \
         WHERE ns = ?1 AND handler = ?2 AND state = 2 ORDER BY rank, ready_at, task, no LIMIT 1",
    )?;
    let first = select
        .query_row((ns.0, handler), |row| {
            let task = TaskId::from_bytes(row.get(0)?);
            Ok(First { task, no: StepNo(row.get(1)?), rank: row.get(2)? })
        })
        .optional()?;
    Ok(first)
}
