//! What is due.

use std::{collections::HashSet, sync::Arc};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{find, identifier};
use crate::{
    domain::schedule::{Identifier, Job, Nanos},
    storage::Result,
};

/// So many jobs that are skipped are passed before the segments are asked one
/// by one.
const PASSED_MAX: usize = 1_000;
/// Of so many segments; with more of them passing is cheaper after all.
const SEGMENTS_MAX: usize = 10_000;

pub(super) const DUE: &str = "SELECT id, due FROM job WHERE status = 0 AND due <= ?1 ORDER BY due";
pub(super) const SHARE: &str = "SELECT id, due FROM job WHERE status = 0 AND segment = ?1 \
                                AND due <= ?2 ORDER BY due LIMIT ?3";
pub(super) const SEGMENT: &str = "SELECT segment, due FROM job WHERE status = 0 \
                                  AND segment >= ?1 ORDER BY segment, due LIMIT 1";
pub(super) const NEXT: &str =
    "SELECT due FROM job WHERE status = 0 AND due > ?1 ORDER BY due LIMIT 1";

/// A search for jobs that are due, one more than are wanted.
struct Search<'a> {
    conn: &'a Connection,
    now: Nanos,
    skip: HashSet<&'a str>,
    wanted: usize,
}

type Found = Vec<(Nanos, Identifier)>;

pub(super) fn due(
    conn: &Connection,
    now: Nanos,
    skip: &[Arc<str>],
    limit: usize,
) -> Result<(Vec<Job>, Option<Nanos>)> {
    let skip = skip.iter().map(AsRef::as_ref).collect();
    let search = Search { conn, now, skip, wanted: limit.saturating_add(1) };
    let found = match search.in_order(PASSED_MAX)? {
        Some(found) => Some(found),
        None => search.by_segment()?,
    };
    let found = match found {
        Some(found) => found,
        None => search.in_order(usize::MAX)?.unwrap_or_default(),
    };
    let next = match found.get(limit) {
        Some((due, _)) => Some(*due),
        None => conn
            .prepare_cached(NEXT)?
            .query_row([now.0], |found| found.get(0))
            .optional()?
            .map(Nanos),
    };
    let mut jobs = Vec::new();
    for (_, id) in found.iter().take(limit) {
        jobs.extend(find(conn, id)?);
    }
    Ok((jobs, next))
}

impl Search<'_> {
    fn skips(&self, segment: &str) -> bool {
        self.skip.contains(segment)
    }

    /// In the order of time; none when more than so many were passed.
    fn in_order(&self, passed_max: usize) -> Result<Option<Found>> {
        let mut select = self.conn.prepare_cached(DUE)?;
        let mut rows = select.query([self.now.0])?;
        let (mut found, mut passed) = (Found::new(), 0);
        while found.len() < self.wanted
            && let Some(row) = rows.next()?
        {
            let id = identifier(row, 0)?;
            if !self.skips(id.segment()) {
                found.push((Nanos(row.get(1)?), id));
                continue;
            }
            passed += 1;
            if passed > passed_max {
                return Ok(None);
            }
        }
        Ok(Some(found))
    }

    /// From each segment that is not skipped its first ones; none when there
    /// are too many segments.
    fn by_segment(&self) -> Result<Option<Found>> {
        let mut from = String::new();
        let mut found = Found::new();
        let mut next = self.conn.prepare_cached(SEGMENT)?;
        let mut share = self.conn.prepare_cached(SHARE)?;
        for _ in 0..SEGMENTS_MAX {
            let first: Option<(String, i64)> =
                next.query_row([&from], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            let Some((segment, first)) = first else {
                found.sort();
                found.truncate(self.wanted);
                return Ok(Some(found));
            };
            if first <= self.now.0 && !self.skips(&segment) {
                let wanted = i64::try_from(self.wanted).unwrap_or(i64::MAX);
                let mut rows = share.query(params![segment, self.now.0, wanted])?;
                while let Some(row) = rows.next()? {
                    found.push((Nanos(row.get(1)?), identifier(row, 0)?));
                }
                if found.len() > self.wanted.saturating_mul(4) {
                    found.sort();
                    found.truncate(self.wanted);
                }
            }
            // Nothing sorts between a name and itself with a NUL.
            from = segment + "\0";
        }
        Ok(None)
    }
}
