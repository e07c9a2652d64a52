//! Jobs, rules and runs.

mod counts;
mod due;
#[cfg(test)]
mod tests;

pub(super) use self::counts::Counted;

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::{json, value::to_raw_value};

use super::{Sqlite, audit::Changed, error::damaged, row, rule_row, writer::Operation};
use crate::{
    domain::{
        Scope, Timestamp,
        audit::Detail,
        history::Stamp,
        namespace::{NameRange, range_of},
        schedule::{Identifier, Job, JobStatus, Nanos, Rule, Run, RunOutcome},
    },
    storage::{
        JobChange, JobCounts, Listed, NextState, Page, RUNS_KEPT, Result, RunEnd, ScheduleStore,
    },
};

const JOB: &str = "id, execution, due, status, recurrence, reason, attempts, version";
const RUN: &str = "number, execution, attempt, rule, started_at, ended_at, outcome, error, output";

fn identifier(found: &Row<'_>, column: usize) -> Result<Identifier> {
    Identifier::parse(&row::text(found, column)?).map_err(|_| damaged("an identifier"))
}

fn job(found: &Row<'_>) -> Result<Job> {
    Ok(Job {
        id: identifier(found, 0)?,
        execution: Nanos(found.get(1)?),
        due: Nanos(found.get(2)?),
        status: JobStatus::from_code(found.get(3)?).ok_or_else(|| damaged("a job's status"))?,
        recurrence: row::text_if_any(found, 4)?,
        reason: row::text_if_any(found, 5)?,
        attempts: found.get(6)?,
        version: found.get(7)?,
    })
}

fn run(found: &Row<'_>) -> Result<Run> {
    let outcome = row::text(found, 6)?;
    let outcome = RunOutcome::ALL.iter().copied().find(|known| known.as_str() == &*outcome);
    Ok(Run {
        number: found.get(0)?,
        execution: Nanos(found.get(1)?),
        attempt: found.get(2)?,
        rule: row::text(found, 3)?,
        started_at: row::time(found, 4)?,
        ended_at: row::time_if_any(found, 5)?,
        outcome: outcome.ok_or_else(|| damaged("a run's outcome"))?,
        error: found.get(7)?,
        output: found.get(8)?,
    })
}

fn find(conn: &Connection, id: &Identifier) -> Result<Option<Job>> {
    let mut select = conn.prepare_cached(&format!("SELECT {JOB} FROM job WHERE id = ?1"))?;
    let mut rows = select.query([id.as_str()])?;
    rows.next()?.map(job).transpose()
}

/// Who set jobs, by a number: identities are long and few.
fn setter(conn: &Connection, identity: &str) -> Result<i64> {
    let found: Option<i64> = conn
        .prepare_cached("SELECT no FROM job_setter WHERE identity = ?1")?
        .query_row([identity], |found| found.get(0))
        .optional()?;
    if let Some(no) = found {
        return Ok(no);
    }
    conn.prepare_cached("INSERT INTO job_setter (identity) VALUES (?1)")?.execute([identity])?;
    Ok(conn.last_insert_rowid())
}

fn change(
    operation: &mut Operation<'_>,
    change: &JobChange,
    by: i64,
    now: Timestamp,
) -> Result<Option<Job>> {
    let conn = operation.conn;
    let version = operation.shared.job_version(now);
    match change {
        JobChange::Set { id, execution, recurrence, status } => {
            let status = match status {
                // It was under way elsewhere, and nothing of it is here.
                JobStatus::Planned | JobStatus::Triggered => JobStatus::Planned,
                JobStatus::Executed | JobStatus::Failed | JobStatus::Held => *status,
            };
            let new = Job {
                id: id.clone(),
                execution: *execution,
                due: *execution,
                status,
                recurrence: recurrence.clone(),
                reason: None,
                attempts: 0,
                version,
            };
            set(operation, new, by, now).map(Some)
        }
        JobChange::Remove(id) => {
            let sql = format!("DELETE FROM job WHERE id = ?1 RETURNING {JOB}");
            let removed = one(&mut conn.prepare_cached(&sql)?, params![id.as_str()])?;
            if let Some(removed) = &removed {
                operation.job_counts.moved(id.segment(), Some(removed.status), None);
                conn.prepare_cached("DELETE FROM job_run WHERE job = ?1")?
                    .execute([id.as_str()])?;
            }
            Ok(removed)
        }
        JobChange::Resume(id) => {
            let mut update = conn.prepare_cached(&format!(
                "UPDATE job SET status = 0, reason = NULL, due = ?2, attempts = 0, \
                 version = max(version + 1, ?3) WHERE id = ?1 AND status = 4 RETURNING {JOB}"
            ))?;
            let resumed = one(&mut update, params![id.as_str(), Nanos::from(now).0, version])?;
            if resumed.is_some() {
                let (from, to) = (Some(JobStatus::Held), Some(JobStatus::Planned));
                operation.job_counts.moved(id.segment(), from, to);
            }
            Ok(resumed)
        }
    }
}

/// Plans a job, new or anew. Two plain statements cost half of one that does
/// either and returns the row: it would keep the pages as they were before.
fn set(operation: &mut Operation<'_>, new: Job, by: i64, now: Timestamp) -> Result<Job> {
    let conn = operation.conn;
    let old = find(conn, &new.id)?;
    let version = old.as_ref().map_or(new.version, |old| new.version.max(old.version + 1));
    let new = Job { version, ..new };
    let sql = if old.is_some() {
        "UPDATE job SET execution = ?2, due = ?2, status = ?3, recurrence = ?4, reason = NULL, \
         attempts = 0, version = ?7, set_by = ?5, set_at = ?6 WHERE id = ?1"
    } else {
        "INSERT INTO job (id, execution, due, status, recurrence, attempts, version, set_by, \
         set_at) VALUES (?1, ?2, ?2, ?3, ?4, 0, ?7, ?5, ?6)"
    };
    let (id, status) = (new.id.as_str(), new.status.code());
    let values =
        params![id, new.execution.0, status, new.recurrence, by, now.micros(), new.version];
    conn.prepare_cached(sql)?.execute(values)?;
    let was = old.map(|old| old.status);
    operation.job_counts.moved(new.id.segment(), was, Some(new.status));
    Ok(new)
}

/// Keeps the record of a change: its chain is the name's first segment.
fn record(
    operation: &mut Operation<'_>,
    stamp: &Stamp,
    (id, what): (&Identifier, &str),
    now: Timestamp,
) -> Result<()> {
    let detail = Some(Detail::Change(what));
    let changed = Changed { place: Some(id.segment()), object: id.as_str(), detail };
    operation.audit(stamp, changed, now)
}

/// The same of a rule. A conventional prefix of its name is nobody's: it lies
/// where the call was allowed.
fn record_rule(
    operation: &mut Operation<'_>,
    stamp: &Stamp,
    (id, what): (&Identifier, &str),
    now: Timestamp,
) -> Result<()> {
    let allowed = stamp.origin().and_then(|origin| origin.place());
    let place = Some(allowed.unwrap_or_else(|| id.segment()));
    let changed = Changed { place, object: id.as_str(), detail: Some(Detail::Change(what)) };
    operation.audit(stamp, changed, now)
}

/// The row that a change answers with; it is done at the statement's end.
fn one(
    statement: &mut rusqlite::CachedStatement<'_>,
    values: impl rusqlite::Params,
) -> Result<Option<Job>> {
    let mut rows = statement.query(values)?;
    let Some(found) = rows.next()? else { return Ok(None) };
    let found = job(found)?;
    while rows.next()?.is_some() {}
    Ok(Some(found))
}

fn begin(
    operation: &mut Operation<'_>,
    (id, version, rule, started_at): &(Identifier, i64, Arc<str>, Timestamp),
) -> Result<Option<i64>> {
    let conn = operation.conn;
    let mut update = conn.prepare_cached(
        "UPDATE job SET status = 1, attempts = attempts + 1 \
         WHERE id = ?1 AND version = ?2 AND status = 0 RETURNING execution, attempts",
    )?;
    let found: Option<(i64, u32)> = update
        .query_row((id.as_str(), version), |found| Ok((found.get(0)?, found.get(1)?)))
        .optional()?;
    let Some((execution, attempt)) = found else { return Ok(None) };
    let (from, to) = (Some(JobStatus::Planned), Some(JobStatus::Triggered));
    operation.job_counts.moved(id.segment(), from, to);
    let number = next_number(conn, id)?;
    conn.prepare_cached(&format!(
        "INSERT INTO job_run (job, {RUN}, version) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, NULL, ?7, NULL, NULL, ?8)"
    ))?
    .execute(params![
        id.as_str(),
        number,
        execution,
        attempt,
        &**rule,
        started_at.micros(),
        RunOutcome::Running.as_str(),
        version,
    ])?;
    Ok(Some(number))
}

/// Makes room in a job's history and answers with the next number.
fn next_number(conn: &Connection, id: &Identifier) -> Result<i64> {
    let last: Option<i64> = conn
        .prepare_cached("SELECT max(number) FROM job_run WHERE job = ?1")?
        .query_row([id.as_str()], |found| found.get(0))?;
    let number = last.unwrap_or(0) + 1;
    if number > RUNS_KEPT {
        conn.prepare_cached("DELETE FROM job_run WHERE job = ?1 AND number <= ?2")?
            .execute((id.as_str(), number - RUNS_KEPT))?;
    }
    Ok(number)
}

fn end(operation: &mut Operation<'_>, end: &RunEnd, now: Timestamp) -> Result<()> {
    let conn = operation.conn;
    if let Some(number) = end.run {
        // One that ended already, or is of a job that is gone, ends nothing.
        let ended = conn
            .prepare_cached(
                "UPDATE job_run SET ended_at = ?3, outcome = ?4, error = ?5, output = ?6 \
                 WHERE job = ?1 AND number = ?2 AND version = ?7 AND ended_at IS NULL",
            )?
            .execute(params![
                end.id.as_str(),
                number,
                now.micros(),
                end.outcome.as_str(),
                end.error,
                end.output,
                end.version
            ])?;
        if ended == 1 {
            goes_on(operation, end, JobStatus::Triggered)?;
            run_ended(operation, &end.id, number, end.outcome, now)?;
        }
    } else if goes_on(operation, end, JobStatus::Planned)? {
        let number = next_number(conn, &end.id)?;
        conn.prepare_cached(&format!(
            "INSERT INTO job_run (job, {RUN}, version) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
        ))?
        .execute(params![
            end.id.as_str(),
            number,
            end.execution.0,
            end.attempt,
            &*end.rule,
            end.started_at.micros(),
            now.micros(),
            end.outcome.as_str(),
            end.error,
            end.output,
            end.version
        ])?;
        run_ended(operation, &end.id, number, end.outcome, now)?;
    }
    Ok(())
}

/// Keeps the record of a run that is over.
fn run_ended(
    operation: &mut Operation<'_>,
    id: &Identifier,
    run: i64,
    outcome: RunOutcome,
    now: Timestamp,
) -> Result<()> {
    let detail = json!({ "change": "run ended", "run": run, "outcome": outcome.as_str() });
    let detail = to_raw_value(&detail).map_err(|_| damaged("a record's detail"))?;
    let detail = Some(Detail::Object(&detail));
    let changed = Changed { place: Some(id.segment()), object: id.as_str(), detail };
    operation.audit(&Stamp::system(), changed, now)
}

/// What becomes of the job; one that was set anew meanwhile, or that is gone,
/// stays as it is. Answers whether it was still the same.
fn goes_on(operation: &mut Operation<'_>, end: &RunEnd, from: JobStatus) -> Result<bool> {
    let (status, due, execution, reason) = match &end.next {
        NextState::Rests(status, reason) => (*status, None, None, reason.clone()),
        NextState::Retry(due) => (JobStatus::Planned, Some(due.0), None, None),
        NextState::Recurs(due) => (JobStatus::Planned, Some(due.0), Some(due.0), None),
    };
    let changed = operation
        .conn
        .prepare_cached(
            "UPDATE job SET status = ?3, due = coalesce(?4, due), \
             execution = coalesce(?5, execution), reason = ?6, \
             attempts = CASE WHEN ?5 IS NULL THEN max(attempts, ?7) ELSE 0 END \
             WHERE id = ?1 AND version = ?2 AND status = ?8",
        )?
        .execute(params![
            end.id.as_str(),
            end.version,
            status.code(),
            due,
            execution,
            reason,
            end.attempt,
            from.code()
        ])?;
    if changed == 1 {
        operation.job_counts.moved(end.id.segment(), Some(from), Some(status));
    }
    Ok(changed == 1)
}

/// It was no failure of its own: the attempt is given back. A job that was set
/// anew meanwhile is not triggered.
const INTERRUPTED_JOBS: &str = "UPDATE job SET status = 0, attempts = max(attempts - 1, 0) \
     WHERE status = 1 AND id IN (SELECT job FROM job_run WHERE ended_at IS NULL)";
const INTERRUPTED_RUNS: &str =
    "UPDATE job_run SET ended_at = ?1, outcome = ?2 WHERE ended_at IS NULL";

fn interrupted(operation: &mut Operation<'_>, now: Timestamp) -> Result<usize> {
    let conn = operation.conn;
    let mut select =
        conn.prepare_cached("SELECT job, number FROM job_run WHERE ended_at IS NULL")?;
    let mut rows = select.query([])?;
    while let Some(found) = rows.next()? {
        let (id, number) = (identifier(found, 0)?, found.get(1)?);
        run_ended(operation, &id, number, RunOutcome::Interrupted, now)?;
    }
    let mut jobs = conn.prepare(&format!("{INTERRUPTED_JOBS} RETURNING segment"))?;
    let mut rows = jobs.query([])?;
    while let Some(found) = rows.next()? {
        let (from, to) = (Some(JobStatus::Triggered), Some(JobStatus::Planned));
        operation.job_counts.moved(&row::text(found, 0)?, from, to);
    }
    let outcome = RunOutcome::Interrupted.as_str();
    Ok(conn.execute(INTERRUPTED_RUNS, params![now.micros(), outcome])?)
}

/// The ranges of names in a scope that begin with a text.
fn ranges(scope: &Scope, prefix: &str) -> Vec<NameRange> {
    let asked = range_of(prefix);
    let Some(held) = scope.ranges() else { return vec![asked] };
    let mut both: Vec<NameRange> = held
        .into_iter()
        .map(|(from, to)| (from.max(asked.0.clone()), to.min(asked.1.clone())))
        .filter(|(from, to)| from < to)
        .collect();
    both.sort();
    // One that overlaps the one before goes on where that ends.
    let mut merged: Vec<NameRange> = Vec::new();
    for (from, to) in both {
        match merged.last_mut() {
            Some((_, end)) if from <= *end => {
                if to > *end {
                    *end = to;
                }
            }
            _ => merged.push((from, to)),
        }
    }
    merged
}

const JOBS: &str = "WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3";

fn jobs(conn: &Connection, scope: &Scope, prefix: &str, page: &Page) -> Result<Listed<Job>> {
    let mut items = Vec::new();
    let mut select = conn.prepare_cached(&format!("SELECT {JOB} FROM job {JOBS}"))?;
    let wanted = page.size.saturating_add(1);
    // Nothing sorts between a name and itself with a NUL.
    let after = page.after.as_ref().map(|after| format!("{after}\0"));
    for (from, to) in ranges(scope, prefix) {
        let left = wanted.saturating_sub(items.len());
        if left == 0 {
            break;
        }
        let from = after.as_ref().filter(|after| **after > from).unwrap_or(&from);
        let limit = i64::try_from(left).unwrap_or(i64::MAX);
        let mut rows = select.query(params![from, to, limit])?;
        while let Some(found) = rows.next()? {
            items.push(job(found)?);
        }
    }
    let more = items.len() > page.size;
    items.truncate(page.size);
    let next = items.last().filter(|_| more).map(|job| job.id.to_string());
    Ok(Listed { items, next })
}

fn runs(conn: &Connection, id: &Identifier, page: &Page) -> Result<Option<Listed<Run>>> {
    if find(conn, id)?.is_none() {
        return Ok(None);
    }
    let before = match &page.after {
        Some(after) => after.parse().map_err(|_| damaged("a page's place"))?,
        None => i64::MAX,
    };
    let mut select = conn.prepare_cached(&format!(
        "SELECT {RUN} FROM job_run WHERE job = ?1 AND number < ?2 ORDER BY number DESC LIMIT ?3"
    ))?;
    let limit = i64::try_from(page.size.saturating_add(1)).unwrap_or(i64::MAX);
    let mut rows = select.query(params![id.as_str(), before, limit])?;
    let mut items = Vec::new();
    while let Some(found) = rows.next()? {
        items.push(run(found)?);
    }
    let more = items.len() > page.size;
    items.truncate(page.size);
    let next = items.last().filter(|_| more).map(|run| run.number.to_string());
    Ok(Some(Listed { items, next }))
}

fn set_rule(operation: &mut Operation<'_>, rule: &Rule, old: Option<&Rule>) -> Result<bool> {
    let conn = operation.conn;
    if !still_is(conn, &rule.id, old)? {
        return Ok(false);
    }
    let written = rule_row::write(rule)?;
    conn.prepare_cached(
        "INSERT OR REPLACE INTO schedule_rule (id, pattern, runner, retry, owner) \
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        rule.id.as_str(),
        &*rule.pattern,
        written.runner,
        written.retry,
        written.owner
    ])?;
    Ok(true)
}

fn rule(found: &Row<'_>) -> Result<Rule> {
    let text = |column| row::text(found, column);
    rule_row::read(identifier(found, 0)?, text(1)?, &text(2)?, &text(3)?, &text(4)?)
}

const RULE: &str = "SELECT id, pattern, runner, retry, owner FROM schedule_rule";

/// Whether a rule is on disk as a caller saw it, or is not there as none saw
/// it.
fn still_is(conn: &Connection, id: &Identifier, seen: Option<&Rule>) -> Result<bool> {
    let mut select = conn.prepare_cached(&format!("{RULE} WHERE id = ?1"))?;
    let mut rows = select.query([id.as_str()])?;
    let (found, seen) = match (rows.next()?, seen) {
        (Some(found), Some(seen)) => (found, seen),
        (found, seen) => return Ok(found.is_none() && seen.is_none()),
    };
    let written = rule_row::write(seen)?;
    let seen = [&*seen.pattern, &written.runner, &written.retry, &written.owner];
    for (column, seen) in (1..).zip(seen) {
        if *row::text(found, column)? != *seen {
            return Ok(false);
        }
    }
    Ok(true)
}

#[async_trait]
impl ScheduleStore for Sqlite {
    async fn change_jobs(
        &self,
        changes: Vec<JobChange>,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<Vec<Option<Job>>> {
        let by = row::identity_text(&stamp.actor().cloned().unwrap_or_else(row::server));
        let stamp = stamp.clone();
        self.write(move |operation| {
            let by = setter(operation.conn, &by)?;
            let mut jobs = Vec::with_capacity(changes.len());
            for one in &changes {
                let job = change(operation, one, by, now)?;
                if let Some(job) = &job {
                    record(operation, &stamp, (&job.id, one.name()), now)?;
                }
                jobs.push(job);
            }
            Ok(jobs)
        })
        .await
    }

    async fn job(&self, id: &Identifier) -> Result<Option<Job>> {
        let id = id.clone();
        self.read(move |conn, _| find(conn, &id)).await
    }

    async fn jobs(&self, scope: &Scope, prefix: &str, page: &Page) -> Result<Listed<Job>> {
        let (scope, prefix, page) = (scope.clone(), prefix.to_owned(), page.clone());
        self.read(move |conn, _| jobs(conn, &scope, &prefix, &page)).await
    }

    async fn jobs_due(
        &self,
        now: Nanos,
        skip: &[Arc<str>],
        limit: usize,
    ) -> Result<(Vec<Job>, Option<Nanos>)> {
        let skip = skip.to_vec();
        self.read(move |conn, _| due::due(conn, now, &skip, limit)).await
    }

    async fn begin_runs(
        &self,
        begun: Vec<(Identifier, i64, Arc<str>, Timestamp)>,
    ) -> Result<Vec<Option<i64>>> {
        self.write(move |operation| begun.iter().map(|one| begin(operation, one)).collect()).await
    }

    async fn end_runs(&self, ends: Vec<RunEnd>, now: Timestamp) -> Result<()> {
        self.write(move |operation| ends.iter().try_for_each(|one| end(operation, one, now))).await
    }

    async fn interrupted_runs(&self, now: Timestamp) -> Result<usize> {
        self.write(move |operation| interrupted(operation, now)).await
    }

    async fn runs(&self, id: &Identifier, page: &Page) -> Result<Option<Listed<Run>>> {
        let (id, page) = (id.clone(), page.clone());
        self.read(move |conn, _| runs(conn, &id, &page)).await
    }

    async fn set_rule(
        &self,
        rule: Rule,
        replaces: Option<Rule>,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<bool> {
        let stamp = stamp.clone();
        self.write(move |operation| {
            let done = set_rule(operation, &rule, replaces.as_ref())?;
            if done {
                record_rule(operation, &stamp, (&rule.id, "rule set"), now)?;
            }
            Ok(done)
        })
        .await
    }

    async fn remove_rule(&self, rule: Rule, stamp: &Stamp, now: Timestamp) -> Result<bool> {
        let stamp = stamp.clone();
        self.write(move |operation| {
            if !still_is(operation.conn, &rule.id, Some(&rule))? {
                return Ok(false);
            }
            let mut delete =
                operation.conn.prepare_cached("DELETE FROM schedule_rule WHERE id = ?1")?;
            let done = delete.execute([rule.id.as_str()])? == 1;
            if done {
                record_rule(operation, &stamp, (&rule.id, "rule removed"), now)?;
            }
            Ok(done)
        })
        .await
    }

    async fn rules(&self) -> Result<Vec<Rule>> {
        self.read(|conn, _| {
            let mut select = conn.prepare_cached(RULE)?;
            let mut rows = select.query([])?;
            let mut all = Vec::new();
            while let Some(found) = rows.next()? {
                all.push(rule(found)?);
            }
            Ok(all)
        })
        .await
    }

    async fn job_counts(&self, scope: &Scope) -> Result<JobCounts> {
        let scope = scope.clone();
        self.read(move |conn, _| counts::counts(conn, &scope)).await
    }
}
