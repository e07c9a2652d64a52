//! The audit: records of changes in their own transactions, batches of the
//! others, and seals.

mod kept;

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, Row};

use super::{Sqlite, row, writer::Operation};
use crate::{
    domain::{
        Timestamp,
        audit::{Detail, Record, SERVER_CHAIN},
        history::Stamp,
    },
    storage::{
        AuditDraft, AuditKept, AuditLetGo, AuditRow, AuditSeal, AuditState, AuditStore, ChainHead,
        Result,
    },
};

/// What a change was about, for its record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changed<'a> {
    /// The chain that it belongs to; none is the server's.
    pub(super) place: Option<&'a str>,
    /// An id or a name.
    pub(super) object: &'a str,
    /// What was done.
    pub(super) detail: Option<Detail<'a>>,
}

impl Operation<'_> {
    /// Keeps the record of a change within the transaction of the change.
    pub(super) fn audit(
        &mut self,
        stamp: &Stamp,
        changed: Changed<'_>,
        now: Timestamp,
    ) -> Result<()> {
        self.audit_in(changed.place.unwrap_or(SERVER_CHAIN), stamp, changed, now)
    }

    /// The same in another chain than that of its place.
    pub(super) fn audit_in(
        &mut self,
        chain: &str,
        stamp: &Stamp,
        changed: Changed<'_>,
        now: Timestamp,
    ) -> Result<()> {
        if !self.shared.settings.audited {
            return Ok(());
        }
        let Changed { place, object, detail } = changed;
        let record = match stamp.origin() {
            Some(origin) => Record::of(origin, now),
            None => Record::of_server(now),
        };
        let record = Record {
            namespace: place.or(record.namespace),
            object: Some(object),
            detail,
            ..record
        };
        insert(self.conn, chain, &record.to_json())?;
        if let Some(origin) = stamp.origin() {
            origin.was_recorded();
        }
        Ok(())
    }
}

impl Operation<'_> {
    /// Keeps a record that is no change of something that exists.
    fn append(&self, record: &AuditDraft) -> Result<()> {
        let AuditDraft { chain, otherwise, body } = record;
        let chain = match otherwise {
            Some(otherwise) if !self.has_chain(chain)? => otherwise,
            Some(_) | None => chain,
        };
        insert(self.conn, chain, body)
    }

    /// Whether there is a namespace of this name, or a chain of jobs.
    pub(super) fn has_chain(&self, name: &str) -> Result<bool> {
        if name == SERVER_CHAIN || self.shared.namespaces.has(name) {
            return Ok(true);
        }
        let mut select = self.conn.prepare_cached("SELECT 1 FROM audit_head WHERE chain = ?1")?;
        Ok(select.exists([name])?)
    }
}

fn insert(conn: &Connection, chain: &str, body: &str) -> Result<()> {
    conn.prepare_cached("INSERT INTO audit (chain, body) VALUES (?1, ?2)")?
        .execute((chain, body))?;
    Ok(())
}

fn read(found: &Row<'_>) -> Result<AuditRow> {
    Ok(AuditRow {
        seq: found.get(0)?,
        chain: row::text_if_any(found, 1)?,
        body: row::text(found, 2)?.as_ref().into(),
    })
}

fn rows(conn: &Connection, sql: &str, seq: i64, limit: usize) -> Result<Vec<AuditRow>> {
    let mut select = conn.prepare_cached(sql)?;
    let mut rows = select.query((seq, i64::try_from(limit).unwrap_or(i64::MAX)))?;
    let mut all = Vec::new();
    while let Some(found) = rows.next()? {
        all.push(read(found)?);
    }
    Ok(all)
}

fn state(conn: &Connection) -> Result<AuditState> {
    let sealed: Option<(i64, i64, i64)> = conn
        .prepare_cached("SELECT last, number, seq FROM audit_seal ORDER BY last DESC LIMIT 1")?
        .query_row([], |found| Ok((found.get(0)?, found.get(1)?, found.get(2)?)))
        .optional()?;
    let first = first(conn)?;
    let (mut heads, mut base) = (HashMap::new(), Vec::new());
    let mut select =
        conn.prepare_cached("SELECT chain, number, hash, base_number, base_hash FROM audit_head")?;
    let mut found = select.query([])?;
    while let Some(found) = found.next()? {
        let chain = row::text(found, 0)?;
        heads.insert(Arc::clone(&chain), (found.get(1)?, found.get(2)?));
        if let Some(hash) = found.get(4)? {
            base.push(ChainHead { chain, number: found.get(3)?, hash });
        }
    }
    let checkpoint = sealed
        .map(|(_, number, seq)| {
            let body = conn
                .prepare_cached("SELECT body FROM audit WHERE seq = ?1")?
                .query_row([seq], |found| found.get::<_, String>(0))?;
            Result::Ok((number, body.into()))
        })
        .transpose()?;
    let sealed = sealed.map_or(0, |(last, ..)| last);
    Ok(AuditState { sealed, checkpoint, heads, first, base })
}

fn first(conn: &Connection) -> Result<i64> {
    let mut select = conn.prepare_cached("SELECT min(seq) FROM audit")?;
    let first: Option<i64> = select.query_row([], |found| found.get(0))?;
    Ok(first.unwrap_or(1))
}

fn checkpoint(conn: &Connection) -> Result<Option<(i64, Box<str>)>> {
    let mut select = conn.prepare_cached(
        "SELECT number, body FROM audit_seal JOIN audit USING (seq) ORDER BY last DESC LIMIT 1",
    )?;
    let found = select.query_row([], |found| Ok((found.get(0)?, found.get::<_, String>(1)?)));
    Ok(found.optional()?.map(|(number, body)| (number, body.into())))
}

fn seal(operation: &mut Operation<'_>, seal: &AuditSeal) -> Result<bool> {
    let conn = operation.conn;
    let (first, last) = seal.covers.clone().into_inner();
    let sealed: i64 = conn
        .prepare_cached("SELECT coalesce(max(last), 0) FROM audit_seal")?
        .query_row([], |found| found.get(0))?;
    if sealed >= first {
        return Ok(false);
    }
    conn.prepare_cached("INSERT INTO audit (chain, body) VALUES (NULL, ?1)")?
        .execute([&*seal.body])?;
    let seq = conn.last_insert_rowid();
    // The length stands in the head of a row: no text is read.
    conn.prepare_cached(
        "INSERT INTO audit_seal (last, first, number, seq, links, bytes) \
         SELECT ?1, ?2, ?3, ?4, ?5, coalesce(sum(octet_length(body)), 0) \
         FROM audit WHERE seq BETWEEN ?2 AND ?1",
    )?
    .execute((last, first, seal.number, seq, &seal.links))?;
    let mut upsert = conn.prepare_cached(
        "INSERT INTO audit_head (chain, number, hash) VALUES (?1, ?2, ?3) \
         ON CONFLICT (chain) DO UPDATE SET number = excluded.number, hash = excluded.hash",
    )?;
    for ChainHead { chain, number, hash } in &seal.heads {
        upsert.execute((&**chain, number, hash))?;
    }
    Ok(true)
}

fn seal_of(conn: &Connection, seq: i64) -> Result<Option<AuditSeal>> {
    let mut select = conn.prepare_cached(
        "SELECT last, first, number, links, body FROM audit_seal \
         JOIN audit USING (seq) WHERE last >= ?1 ORDER BY last LIMIT 1",
    )?;
    let mut rows = select.query([seq])?;
    let Some(found) = rows.next()? else { return Ok(None) };
    let (last, first): (i64, i64) = (found.get(0)?, found.get(1)?);
    Ok(Some(AuditSeal {
        number: found.get(2)?,
        covers: first..=last,
        body: row::text(found, 4)?.as_ref().into(),
        links: found.get(3)?,
        heads: Vec::new(),
    }))
}

#[async_trait]
impl AuditStore for Sqlite {
    async fn append_audit(&self, records: Vec<AuditDraft>) -> Result<()> {
        if !self.shared.settings.audited {
            return Ok(());
        }
        self.write(move |operation| records.iter().try_for_each(|one| operation.append(one))).await
    }

    async fn audit_state(&self) -> Result<AuditState> {
        self.read(|conn, _| state(conn)).await
    }

    async fn audit_checkpoint(&self) -> Result<Option<(i64, Box<str>)>> {
        self.read(|conn, _| checkpoint(conn)).await
    }

    async fn audit_first(&self) -> Result<i64> {
        self.read(|conn, _| first(conn)).await
    }

    async fn audit_from(&self, seq: i64, limit: usize) -> Result<Vec<AuditRow>> {
        const SQL: &str =
            "SELECT seq, chain, body FROM audit WHERE seq >= ?1 ORDER BY seq LIMIT ?2";
        self.read(move |conn, _| rows(conn, SQL, seq, limit)).await
    }

    async fn audit_before(&self, seq: i64, limit: usize) -> Result<Vec<AuditRow>> {
        const SQL: &str =
            "SELECT seq, chain, body FROM audit WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2";
        self.read(move |conn, _| rows(conn, SQL, seq, limit)).await
    }

    async fn seal_audit(&self, checkpoint: AuditSeal) -> Result<bool> {
        self.write(move |operation| seal(operation, &checkpoint)).await
    }

    async fn audit_seal(&self, seq: i64) -> Result<Option<AuditSeal>> {
        self.read(move |conn, _| seal_of(conn, seq)).await
    }

    async fn let_audit_go(&self, keep: &AuditKept, now: Timestamp) -> Result<AuditLetGo> {
        let keep = *keep;
        self.write(move |operation| kept::let_go(operation, keep, now)).await
    }

    async fn audit_sink(&self, name: &str) -> Result<Option<i64>> {
        let name = name.to_owned();
        self.read(move |conn, _| {
            let mut select = conn.prepare_cached("SELECT seq FROM audit_sink WHERE name = ?1")?;
            Ok(select.query_row([name], |found| found.get(0)).optional()?)
        })
        .await
    }

    async fn told_audit_sink(&self, name: &str, seq: i64) -> Result<()> {
        let name = name.to_owned();
        self.write(move |operation| {
            let mut upsert = operation.conn.prepare_cached(
                "INSERT INTO audit_sink (name, seq) VALUES (?1, ?2) \
                 ON CONFLICT (name) DO UPDATE SET seq = excluded.seq",
            )?;
            upsert.execute((&name, seq))?;
            Ok(())
        })
        .await
    }
}
