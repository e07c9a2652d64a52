//! How many jobs and rules there are.

use rusqlite::{Connection, Row};

use super::{find, ranges};
use crate::{
    domain::{Scope, namespace::NameRange, schedule::Identifier},
    storage::{Result, ScheduleCounts, sqlite::error::damaged},
};

pub(super) fn counts(conn: &Connection, scope: &Scope) -> Result<ScheduleCounts> {
    let mut counts = ScheduleCounts::default();
    let mut all = conn.prepare_cached("SELECT status, sum(jobs) FROM job_count GROUP BY status")?;
    let mut of_segment =
        conn.prepare_cached("SELECT status, jobs FROM job_count WHERE segment = ?1")?;
    let mut by_status = conn
        .prepare_cached("SELECT status, count(*) FROM job WHERE id >= ?1 AND id < ?2 GROUP BY 1")?;
    let mut of_rules =
        conn.prepare_cached("SELECT count(*) FROM schedule_rule WHERE id >= ?1 AND id < ?2")?;
    let everything = scope.ranges().is_none();
    if everything {
        add(&mut counts, all.query([])?)?;
    }
    for range in ranges(scope, "") {
        match segment_below(&range) {
            _ if everything => {}
            Some(segment) => {
                add(&mut counts, of_segment.query([segment])?)?;
                // The one that is named as the segment is not below it.
                let itself = Identifier::parse(segment).map_err(|_| damaged("a segment"))?;
                if let Some(job) = find(conn, &itself)? {
                    *slot(&mut counts, job.status.code())? -= 1;
                }
            }
            None => add(&mut counts, by_status.query((&range.0, &range.1))?)?,
        }
        let rules = of_rules.query_row((&range.0, &range.1), |found| found.get(0))?;
        counts.rules += count(rules);
    }
    Ok(counts)
}

/// The segment, where a range is all that is below one: those are counted.
fn segment_below((from, to): &NameRange) -> Option<&str> {
    let segment = from.strip_suffix('.')?;
    (!segment.is_empty() && !segment.contains('.') && to.strip_suffix('/') == Some(segment))
        .then_some(segment)
}

fn slot(counts: &mut ScheduleCounts, status: u8) -> Result<&mut u64> {
    counts.jobs.get_mut(usize::from(status)).ok_or_else(|| damaged("a job's status"))
}

fn add(counts: &mut ScheduleCounts, mut rows: rusqlite::Rows<'_>) -> Result<()> {
    while let Some(found) = rows.next()? {
        *slot(counts, status(found)?)? += count(found.get(1)?);
    }
    Ok(())
}

fn status(found: &Row<'_>) -> Result<u8> {
    Ok(found.get(0)?)
}

fn count(rows: i64) -> u64 {
    u64::try_from(rows).unwrap_or(0)
}
