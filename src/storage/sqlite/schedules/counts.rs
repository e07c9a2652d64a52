//! How many jobs there are.

use std::collections::HashMap;

use rusqlite::{Connection, Row, params};

use super::{find, ranges};
use crate::{
    domain::{
        Scope,
        namespace::NameRange,
        schedule::{Identifier, JobStatus},
    },
    storage::{JobCounts, Result, sqlite::error::damaged},
};

/// How many more or fewer jobs of a status there are, by segment, since the
/// commit began.
#[derive(Debug, Default)]
pub(in crate::storage::sqlite) struct Counted(HashMap<Box<str>, HashMap<u8, i64>>);

impl Counted {
    /// A job of this segment left one status, if any, for another, if any.
    pub(super) fn moved(&mut self, segment: &str, from: Option<JobStatus>, to: Option<JobStatus>) {
        if from == to {
            return;
        }
        if let Some(from) = from {
            self.add(segment, from.code(), -1);
        }
        if let Some(to) = to {
            self.add(segment, to.code(), 1);
        }
    }

    fn add(&mut self, segment: &str, status: u8, jobs: i64) {
        if !self.0.contains_key(segment) {
            self.0.insert(segment.into(), HashMap::new());
        }
        if let Some(by_status) = self.0.get_mut(segment) {
            *by_status.entry(status).or_default() += jobs;
        }
    }

    /// Takes over what was counted apart.
    pub(in crate::storage::sqlite) fn absorb(&mut self, other: Self) {
        for (segment, by_status) in other.0 {
            for (status, jobs) in by_status {
                self.add(&segment, status, jobs);
            }
        }
    }

    /// Writes it down, for it is about to be committed.
    pub(in crate::storage::sqlite) fn keep(&self, conn: &Connection) -> Result<()> {
        for (segment, by_status) in &self.0 {
            for (status, jobs) in by_status.iter().filter(|(_, jobs)| **jobs != 0) {
                conn.prepare_cached(
                    "INSERT INTO job_count (segment, status, jobs) VALUES (?1, ?2, ?3) \
                     ON CONFLICT (segment, status) DO UPDATE SET jobs = jobs + ?3",
                )?
                .execute(params![segment, status, jobs])?;
                if *jobs < 0 {
                    conn.prepare_cached(
                        "DELETE FROM job_count WHERE segment = ?1 AND status = ?2 AND jobs = 0",
                    )?
                    .execute(params![segment, status])?;
                }
            }
        }
        Ok(())
    }
}

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
