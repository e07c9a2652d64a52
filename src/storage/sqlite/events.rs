//! Reading the history of tasks and steps.

use rusqlite::{Connection, Row};

use super::{error::damaged, row, steps::StepRow};
use crate::{
    domain::{
        StepNo, TaskId,
        history::{Attempt, Change, Event},
    },
    storage::Result,
};

/// Calls `take` for each event behind a place until it answers false.
fn walk(
    conn: &Connection,
    id: TaskId,
    after: i64,
    mut take: impl FnMut(Event) -> bool,
) -> Result<()> {
    let mut select = conn.prepare_cached(
        "SELECT last_seq, at, actor, reason, changes FROM event \
         WHERE ns = ?1 AND task = ?2 AND last_seq > ?3 ORDER BY last_seq",
    )?;
    let mut rows = select.query((id.namespace_no().0, id.as_bytes(), after))?;
    while let Some(found) = rows.next()? {
        for event in expand(found)? {
            if event.seq > after && !take(event) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The events of one operation.
fn expand(found: &Row<'_>) -> Result<impl Iterator<Item = Event>> {
    let changes = row::changes(&row::text(found, 4)?)?;
    let count = i64::try_from(changes.len()).map_err(|_| damaged("a list of changes"))?;
    let first = found.get::<_, i64>(0)? - count + 1;
    let at = row::time(found, 1)?;
    let actor = row::text_if_any(found, 2)?.map(|actor| row::identity(&actor)).transpose()?;
    let reason: Option<String> = found.get(3)?;
    Ok((first..).zip(changes).map(move |(seq, change)| Event {
        seq,
        at,
        actor: actor.clone(),
        reason: reason.clone(),
        change,
    }))
}

/// The events behind a place, oldest first.
pub(super) fn behind(
    conn: &Connection,
    id: TaskId,
    after: i64,
    limit: usize,
) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    if limit > 0 {
        walk(conn, id, after, |event| {
            events.push(event);
            events.len() < limit
        })?;
    }
    Ok(events)
}

/// The events of one step, oldest first.
pub(super) fn of_step(conn: &Connection, id: TaskId, step: StepNo) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    walk(conn, id, 0, |event| {
        if matches!(event.change, Change::Step { no, .. } if no == step) {
            events.push(event);
        }
        true
    })?;
    Ok(events)
}

/// The attempts of a step that have ended, oldest first.
pub(super) fn attempts(conn: &Connection, id: TaskId, step: &StepRow) -> Result<Vec<Attempt>> {
    let mut select = conn.prepare_cached(
        "SELECT attempt, error FROM attempt WHERE ns = ?1 AND task = ?2 AND no = ?3 \
         ORDER BY attempt",
    )?;
    let mut rows = select.query((id.namespace_no().0, id.as_bytes(), step.core.no.0))?;
    let mut attempts = Vec::new();
    while let Some(found) = rows.next()? {
        attempts.push(Attempt { attempt: found.get(0)?, error: found.get(1)? });
    }
    // The one that completed the step lies in the step's own row.
    let last = step.core.attempts;
    if step.completed_under.is_some()
        && attempts.last().is_none_or(|attempt: &Attempt| attempt.attempt != last)
    {
        attempts.push(Attempt { attempt: last, error: None });
    }
    Ok(attempts)
}
