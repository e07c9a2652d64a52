//! Which task made which: parents, roots and how deep (SE-45). All tasks of a
//! root lie in its namespace.

use rusqlite::{Connection, OptionalExtension as _};

use super::steps::StepRow;
use crate::{
    domain::{
        TaskId,
        rights::SPAWN_DEPTH_MAX,
        task::{Lineage, StepState},
    },
    storage::{NotSpawned, Result, Spawn},
};

/// The place of a task that a step makes now, or why it may not.
pub(super) fn place(
    conn: &Connection,
    spawn: &Spawn,
) -> Result<std::result::Result<Lineage, NotSpawned>> {
    let parent = spawn.lease.task;
    let step = StepRow::load(conn, parent, spawn.lease.step)?;
    // Within the transaction: no child of a task that was cancelled meanwhile.
    let holds = step.is_some_and(|step| {
        step.core.state == StepState::InProgress
            && step.core.lease.is_some_and(|held| held.id == spawn.lease)
    });
    if !holds {
        return Ok(Err(NotSpawned::LeaseEnded));
    }
    let ns = parent.namespace_no().0;
    let above: Option<([u8; 16], u32)> = conn
        .prepare_cached("SELECT root, depth FROM lineage WHERE ns = ?1 AND task = ?2")?
        .query_row((ns, parent.as_bytes()), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (root, depth) =
        above.map_or((parent, 0), |(root, depth)| (TaskId::from_bytes(root), depth));
    if depth >= SPAWN_DEPTH_MAX {
        return Ok(Err(NotSpawned::TooDeep));
    }
    let made: u32 = conn
        .prepare_cached("SELECT count(*) FROM lineage WHERE ns = ?1 AND root = ?2")?
        .query_row((ns, root.as_bytes()), |row| row.get(0))?;
    if made >= spawn.budget {
        return Ok(Err(NotSpawned::BudgetSpent));
    }
    Ok(Ok(Lineage { parent, root, depth: depth + 1 }))
}

pub(super) fn insert(conn: &Connection, task: TaskId, place: Lineage) -> Result<()> {
    let Lineage { parent, root, depth } = place;
    conn.prepare_cached(
        "INSERT INTO lineage (ns, task, parent, root, depth) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute((
        task.namespace_no().0,
        task.as_bytes(),
        parent.as_bytes(),
        root.as_bytes(),
        depth,
    ))?;
    Ok(())
}

/// All that descends from a task, oldest first.
pub(super) fn descendants(conn: &Connection, task: TaskId) -> Result<Vec<TaskId>> {
    let found = conn
        .prepare_cached(
            "WITH RECURSIVE below (task) AS ( \
             SELECT task FROM lineage WHERE ns = ?1 AND parent = ?2 UNION \
             SELECT l.task FROM lineage l JOIN below b ON l.ns = ?1 AND l.parent = b.task) \
             SELECT task FROM below ORDER BY task",
        )?
        .query_map((task.namespace_no().0, task.as_bytes()), |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<[u8; 16]>>>()?;
    Ok(found.into_iter().map(TaskId::from_bytes).collect())
}
