//! How many jobs there are.

use rusqlite::{Connection, Row};

use super::{find, ranges};
use crate::{
    domain::{Scope, namespace::NameRange, schedule::Identifier},
    storage::{JobCounts, Result, sqlite::error::damaged},
};

pub(super) fn counts(conn: &Connection, scope: &Scope) -> Result<JobCounts> {
    let mut counts = JobCounts::default();
    let mut all = conn.prepare_cached("SELECT status, sum(jobs) FROM job_count GROUP BY status")?;
    let mut of_segment =
        conn.prepare_cached("SELECT status, jobs FROM job_count WHERE segment = ?1")?;
    let mut by_status = conn
        .prepare_cached("SELECT status, count(*) FROM job WHERE id >= ?1 AND id < ?2 GROUP BY 1")?;
    if scope.ranges().is_none() {
        add(&mut counts, all.query([])?)?;
        return Ok(counts);
    }
    for range in ranges(scope, "") {
        match segment_below(&range) {
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
    }
    Ok(counts)
}

/// The segment, where a range is all that is below one: those are counted.
fn segment_below((from, to): &NameRange) -> Option<&str> {
    let segment = from.strip_suffix('.')?;
    (!segment.is_empty() && !segment.contains('.') && to.strip_suffix('/') == Some(segment))
        .then_some(segment)
}

fn slot(counts: &mut JobCounts, status: u8) -> Result<&mut u64> {
    counts.get_mut(usize::from(status)).ok_or_else(|| damaged("a job's status"))
}

fn add(counts: &mut JobCounts, mut rows: rusqlite::Rows<'_>) -> Result<()> {
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
