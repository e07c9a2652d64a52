//! Tasks and steps as they are shown.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::{
    error::damaged,
    namespaces::Numbered,
    row,
    steps::{self, StepRow},
    tasks::stored_result,
};
use crate::{
    domain::{
        Json, Namespace, StepNo, TaskId,
        ids::NamespaceNo,
        task::{Lineage, StepState, Task, TaskCore},
    },
    storage::{Listed, Page, Result, Step, StepBrief, TaskFilter},
};

/// A page of steps ends early when their results pass this many bytes.
const RESULT_BYTES_MAX: usize = 8 * 1024 * 1024;

pub(super) fn task(conn: &Connection, namespace: &Namespace, id: TaskId) -> Result<Option<Task>> {
    let mut select = conn.prepare_cached(
        "SELECT t.state, t.counts, t.started, t.last_seq, m.name, m.version, t.priority, l.body, \
         t.created_by, t.created_at, t.updated_at, t.completed_at, g.parent, g.root, g.depth \
         FROM task t \
         JOIN template m ON m.ns = t.ns AND m.no = t.template \
         LEFT JOIN payload l ON l.ns = t.ns AND l.task = t.task AND l.slot = -1 \
         LEFT JOIN lineage g ON g.ns = t.ns AND g.task = t.task \
         WHERE t.ns = ?1 AND t.task = ?2",
    )?;
    let mut rows = select.query((id.namespace_no().0, id.as_bytes()))?;
    rows.next()?.map(|found| read_task(found, namespace, id)).transpose()
}

fn read_task(found: &Row<'_>, namespace: &Namespace, id: TaskId) -> Result<Task> {
    let counts = found.get_ref(1)?.as_blob().map_err(|_| damaged("a task's counts"))?;
    let labels = found.get_ref(7)?.as_blob_or_null().map_err(|_| damaged("labels"))?;
    Ok(Task {
        core: TaskCore {
            id,
            state: row::task_state(found.get(0)?)?,
            counts: row::counts(counts)?,
            started: found.get(2)?,
            last_seq: found.get(3)?,
        },
        namespace: namespace.clone(),
        name: row::text(found, 4)?,
        version: row::text(found, 5)?,
        priority: found.get(6)?,
        labels: row::labels(labels)?,
        created_by: row::identity(&row::text(found, 8)?)?,
        created_at: row::time(found, 9)?,
        updated_at: row::time(found, 10)?,
        completed_at: row::time_if_any(found, 11)?,
        lineage: lineage(found)?,
    })
}

fn lineage(found: &Row<'_>) -> Result<Option<Lineage>> {
    let Some(parent) = found.get::<_, Option<[u8; 16]>>(12)? else { return Ok(None) };
    let (parent, root) = (TaskId::from_bytes(parent), TaskId::from_bytes(found.get(13)?));
    Ok(Some(Lineage { parent, root, depth: found.get(14)? }))
}

/// Tasks of several namespaces, newest first. Ids sort by time in every
/// namespace, so the page is the greatest ids of all of them.
pub(super) fn tasks(
    conn: &Connection,
    within: &[Numbered],
    filter: &TaskFilter,
    page: &Page,
) -> Result<Listed<Task>> {
    let before = match &page.after {
        Some(after) => {
            *TaskId::parse(after).ok_or_else(|| damaged("a place in a list"))?.as_bytes()
        }
        None => [u8::MAX; 16],
    };
    let wanted = page.size.saturating_add(1);
    let mut newest: BTreeMap<[u8; 16], &Namespace> = BTreeMap::new();
    for (ns, namespace) in within {
        // Once the page is full only what is newer than its end matters.
        let floor = if newest.len() < wanted { None } else { newest.keys().next().copied() };
        for id in candidates(conn, *ns, filter, (before, floor.unwrap_or_default()), wanted)? {
            newest.insert(id, namespace);
            if newest.len() > wanted {
                newest.pop_first();
            }
        }
    }
    let more = newest.len() > page.size;
    let mut items = Vec::with_capacity(newest.len());
    for (id, namespace) in newest.into_iter().rev().take(page.size) {
        let id = TaskId::from_bytes(id);
        items.push(task(conn, namespace, id)?.ok_or_else(|| damaged("a task"))?);
    }
    let next = items.last().filter(|_| more).map(|last| last.core.id.to_string());
    Ok(Listed { items, next })
}

/// The newest ids of one namespace between two ids, at most `limit`.
fn candidates(
    conn: &Connection,
    ns: NamespaceNo,
    filter: &TaskFilter,
    (before, floor): ([u8; 16], [u8; 16]),
    limit: usize,
) -> Result<Vec<[u8; 16]>> {
    let mut states = 0_u32;
    for state in &filter.states {
        states |= 1 << state.code();
    }
    if states == 0 {
        states = u32::MAX;
    }
    // Where only unfinished tasks are wanted their own index serves.
    let open = filter.states.iter().all(|state| !state.is_final()) && !filter.states.is_empty();
    let only_open = if open { "INDEXED BY task_open" } else { "NOT INDEXED" };
    let open = if open { "AND state <= 4" } else { "" };
    let mut select = conn.prepare_cached(&format!(
        "SELECT task FROM task {only_open} WHERE ns = ?1 AND task < ?2 AND task > ?3 {open} \
         AND (1 << state) & ?4 <> 0 \
         AND (?5 IS NULL OR template IN (SELECT no FROM template WHERE ns = ?1 AND name = ?5)) \
         AND (?7 IS NULL OR task IN \
         (SELECT task FROM lineage WHERE ns = ?1 AND parent = ?7)) \
         AND (?8 IS NULL OR task IN (SELECT task FROM lineage WHERE ns = ?1 AND root = ?8)) \
         ORDER BY task DESC LIMIT ?6"
    ))?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let ids = select
        .query_map(
            (
                ns.0,
                before,
                floor,
                states,
                filter.name.as_deref(),
                limit,
                filter.parent.as_ref().map(TaskId::as_bytes),
                filter.root.as_ref().map(TaskId::as_bytes),
            ),
            |row| row.get(0),
        )?
        .collect::<rusqlite::Result<_>>()?;
    Ok(ids)
}

/// A task's steps without payloads, by number.
pub(super) fn briefs(conn: &Connection, id: TaskId) -> Result<Vec<StepBrief>> {
    let mut select = conn.prepare_cached(&format!(
        "SELECT {} FROM step WHERE ns = ?1 AND task = ?2 ORDER BY no",
        steps::COLUMNS
    ))?;
    let mut rows = select.query((id.namespace_no().0, id.as_bytes()))?;
    let mut briefs = Vec::new();
    while let Some(found) = rows.next()? {
        let StepRow { core, name, .. } = StepRow::read(found, id)?;
        briefs.push(StepBrief { id: id.step(core.no), name, core });
    }
    Ok(briefs)
}

pub(super) fn step(conn: &Connection, id: TaskId, no: StepNo) -> Result<Option<Step>> {
    let Some(step) = StepRow::load(conn, id, no)? else { return Ok(None) };
    show(conn, id, step, &mut HashMap::new()).map(Some)
}

/// A page of a task's steps by number.
pub(super) fn steps(conn: &Connection, id: TaskId, page: &Page) -> Result<Listed<Step>> {
    let after: i64 = match &page.after {
        Some(after) => after.parse().map_err(|_| damaged("a place in a list"))?,
        None => -1,
    };
    let mut select = conn.prepare_cached(&format!(
        "SELECT {} FROM step WHERE ns = ?1 AND task = ?2 AND no > ?3 ORDER BY no",
        steps::COLUMNS
    ))?;
    let mut rows = select.query((id.namespace_no().0, id.as_bytes(), after))?;
    let (mut items, mut bytes) = (Vec::new(), 0);
    let mut names = HashMap::new();
    let mut last = None;
    while let Some(found) = rows.next()? {
        if items.len() == page.size || bytes > RESULT_BYTES_MAX {
            return Ok(Listed { items, next: last });
        }
        let step = show(conn, id, StepRow::read(found, id)?, &mut names)?;
        bytes += step.result.as_ref().map_or(0, |result| result.as_str().len());
        last = Some(step.core.no.0.to_string());
        items.push(step);
    }
    Ok(Listed { items, next: None })
}

fn show(
    conn: &Connection,
    id: TaskId,
    step: StepRow,
    names: &mut HashMap<StepNo, Arc<str>>,
) -> Result<Step> {
    let no = step.core.no;
    names.insert(no, Arc::clone(&step.name));
    let mut depends_on = Vec::with_capacity(step.parents.len());
    for parent in step.parents.iter() {
        let name = match names.get(parent) {
            Some(name) => Arc::clone(name),
            None => steps::name(conn, id, *parent)?,
        };
        names.insert(*parent, Arc::clone(&name));
        depends_on.push(name);
    }
    Ok(Step {
        id: id.step(no),
        result: result(conn, id, &step)?,
        last_error: last_error(conn, id, no)?,
        core: step.core,
        name: step.name,
        handler: step.handler,
        depends_on,
        created_at: step.created_at,
        started_at: step.started_at,
        completed_at: step.completed_at,
    })
}

fn result(conn: &Connection, id: TaskId, step: &StepRow) -> Result<Option<Json>> {
    if step.core.state == StepState::Complete {
        stored_result(conn, id, step.core.no).map(Some)
    } else {
        Ok(None)
    }
}

/// What the newest attempt that failed said.
fn last_error(conn: &Connection, id: TaskId, no: StepNo) -> Result<Option<String>> {
    let mut select = conn.prepare_cached(
        "SELECT error FROM attempt WHERE ns = ?1 AND task = ?2 AND no = ?3 \
         AND error IS NOT NULL ORDER BY attempt DESC LIMIT 1",
    )?;
    let error = select
        .query_row((id.namespace_no().0, id.as_bytes(), no.0), |row| row.get(0))
        .optional()?;
    Ok(error)
}
