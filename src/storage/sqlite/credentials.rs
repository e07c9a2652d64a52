//! Credentials that the server gave out.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::Serialize;
use serde_json::{Value, value::to_raw_value};

use super::{Sqlite, audit::Changed, error::damaged, row, writer::Operation};
use crate::{
    domain::{Permission, Timestamp, audit::Detail, history::Stamp},
    storage::{
        CredentialKind, CredentialRecord, CredentialStore, LastUses, PermissionUse, Recall, Result,
    },
};

const COLUMNS: &str = "id, digest, kind, name, scopes, namespaces, networks, created_by, \
                       created_with, created_at, expires_at, max_uses, uses, parent, family, \
                       revoked_at, last_used_at, descent";

fn list(found: &Row<'_>, column: usize) -> Result<Vec<String>> {
    serde_json::from_str(&row::text(found, column)?).map_err(|_| damaged("a credential's list"))
}

fn list_text<T: Serialize>(list: &[T]) -> Result<String> {
    serde_json::to_string(list).map_err(|_| damaged("a credential's list"))
}

fn read(found: &Row<'_>) -> Result<CredentialRecord> {
    let kind = match &*row::text(found, 2)? {
        "token" => CredentialKind::Token,
        "api_key" => CredentialKind::ApiKey,
        "exchanged" => CredentialKind::Exchanged,
        _ => return Err(damaged("a credential's kind")),
    };
    Ok(CredentialRecord {
        id: row::text(found, 0)?,
        digest: found.get(1)?,
        kind,
        name: found.get(3)?,
        scopes: list(found, 4)?,
        namespaces: list(found, 5)?,
        networks: list(found, 6)?,
        created_by: row::identity(&row::text(found, 7)?)?,
        created_with: row::text(found, 8)?,
        created_at: row::time(found, 9)?,
        expires_at: row::time_if_any(found, 10)?,
        max_uses: found.get(11)?,
        uses: found.get(12)?,
        parent: row::text_if_any(found, 13)?,
        family: row::text(found, 14)?,
        revoked_at: row::time_if_any(found, 15)?,
        last_used_at: row::time_if_any(found, 16)?,
        descent: list(found, 17)?.into_iter().map(Into::into).collect(),
    })
}

fn add(
    operation: &mut Operation<'_>,
    made: &CredentialRecord,
    replaces: Option<&(Arc<str>, Timestamp)>,
    stamp: &Stamp,
) -> Result<Option<u32>> {
    let conn = operation.conn;
    let mut uses = made.uses;
    if let Some((old, _)) = replaces {
        let mut select = conn.prepare_cached("SELECT uses FROM credential WHERE id = ?1")?;
        uses = select.query_row([&**old], |found| found.get(0)).optional()?.unwrap_or(uses);
    }
    let descent: Vec<&str> = made.descent.iter().map(AsRef::as_ref).collect();
    let mut insert = conn.prepare_cached(&format!(
        "INSERT INTO credential ({COLUMNS}) VALUES \
         (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18) \
         ON CONFLICT DO NOTHING"
    ))?;
    let added = insert.execute(params![
        &*made.id,
        made.digest,
        made.kind.as_str(),
        made.name,
        list_text(&made.scopes)?,
        list_text(&made.namespaces)?,
        list_text(&made.networks)?,
        row::identity_text(&made.created_by),
        &*made.created_with,
        made.created_at.micros(),
        made.expires_at.map(Timestamp::micros),
        made.max_uses,
        uses,
        made.parent.as_deref(),
        &*made.family,
        made.revoked_at.map(Timestamp::micros),
        made.last_used_at.map(Timestamp::micros),
        list_text(&descent)?,
    ])? == 1;
    if let (true, Some((id, end))) = (added, replaces) {
        // Never longer than before.
        conn.prepare_cached(
            "UPDATE credential SET expires_at = min(coalesce(expires_at, ?2), ?2) WHERE id = ?1",
        )?
        .execute((&**id, end.micros()))?;
    }
    if added {
        let detail = made.given_out(replaces.map(|(id, _)| &**id));
        record(operation, stamp, &made.id, &detail, made.created_at)?;
    }
    Ok(added.then_some(uses))
}

/// Keeps the record of a change in the server's chain.
fn record(
    operation: &mut Operation<'_>,
    stamp: &Stamp,
    object: &str,
    detail: &Value,
    now: Timestamp,
) -> Result<()> {
    let detail = to_raw_value(detail).map_err(|_| damaged("a record's detail"))?;
    let detail = Some(Detail::Object(&detail));
    operation.audit(stamp, Changed { place: None, object, detail }, now)
}

fn revoke(
    operation: &mut Operation<'_>,
    ids: &[Arc<str>],
    stamp: &Stamp,
    now: Timestamp,
) -> Result<()> {
    let mut update = operation.conn.prepare_cached(
        "UPDATE credential SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL",
    )?;
    for id in ids {
        if update.execute((&**id, now.micros()))? == 1 {
            let detail = Some(Detail::Change("revoked"));
            operation.audit(stamp, Changed { place: None, object: id, detail }, now)?;
        }
    }
    Ok(())
}

fn note_uses(operation: &mut Operation<'_>, uses: &LastUses) -> Result<()> {
    let mut update = operation.conn.prepare_cached(
        "UPDATE credential SET last_used_at = max(coalesce(last_used_at, ?2), ?2) WHERE id = ?1",
    )?;
    for (id, at) in &uses.credentials {
        update.execute((&**id, at.micros()))?;
    }
    // Not of a credential that was deleted meanwhile.
    let mut upsert = operation.conn.prepare_cached(
        "INSERT INTO credential_use (family, permission, at) SELECT ?1, ?2, ?3 \
         WHERE EXISTS (SELECT 1 FROM credential WHERE family = ?1) \
         ON CONFLICT (family, permission) DO UPDATE SET at = max(at, excluded.at)",
    )?;
    for PermissionUse { family, permission, at } in &uses.permissions {
        upsert.execute((&**family, permission.name(), at.micros()))?;
    }
    Ok(())
}

fn permission_uses(conn: &Connection) -> Result<Vec<PermissionUse>> {
    let mut select = conn.prepare_cached("SELECT family, permission, at FROM credential_use")?;
    let mut rows = select.query([])?;
    let mut all = Vec::new();
    while let Some(found) = rows.next()? {
        // One that is no permission any more says nothing about those that are.
        let Some(permission) = Permission::parse(&row::text(found, 1)?) else { continue };
        all.push(PermissionUse {
            family: row::text(found, 0)?,
            permission,
            at: row::time(found, 2)?,
        });
    }
    Ok(all)
}

fn delete(operation: &mut Operation<'_>, id: &str) -> Result<bool> {
    let conn = operation.conn;
    let mut delete =
        conn.prepare_cached("DELETE FROM credential WHERE id = ?1 RETURNING family")?;
    let mut rows = delete.query([id])?;
    let Some(found) = rows.next()? else { return Ok(false) };
    let family = row::text(found, 0)?;
    // To the end: only then it is done.
    while rows.next()?.is_some() {}
    conn.prepare_cached(
        "DELETE FROM credential_use WHERE family = ?1 \
         AND NOT EXISTS (SELECT 1 FROM credential WHERE family = ?1)",
    )?
    .execute([&*family])?;
    Ok(true)
}

fn recalls(conn: &Connection) -> Result<Vec<Recall>> {
    let mut select = conn.prepare_cached("SELECT issuer, subject, until FROM recall")?;
    let mut rows = select.query([])?;
    let mut all = Vec::new();
    while let Some(found) = rows.next()? {
        let subject: String = found.get(1)?;
        all.push(Recall {
            issuer: found.get(0)?,
            subject: Some(subject).filter(|subject| !subject.is_empty()),
            until: row::time(found, 2)?,
        });
    }
    Ok(all)
}

#[async_trait]
impl CredentialStore for Sqlite {
    async fn add_credential(
        &self,
        record: CredentialRecord,
        replaces: Option<(Arc<str>, Timestamp)>,
        stamp: &Stamp,
    ) -> Result<Option<u32>> {
        let stamp = stamp.clone();
        self.write(move |operation| add(operation, &record, replaces.as_ref(), &stamp)).await
    }

    async fn credentials(&self) -> Result<Vec<CredentialRecord>> {
        self.read(|conn, _| {
            let mut select = conn.prepare_cached(&format!("SELECT {COLUMNS} FROM credential"))?;
            let mut rows = select.query([])?;
            let mut all = Vec::new();
            while let Some(found) = rows.next()? {
                all.push(read(found)?);
            }
            Ok(all)
        })
        .await
    }

    async fn revoke_credentials(
        &self,
        ids: &[Arc<str>],
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<()> {
        let (ids, stamp) = (ids.to_vec(), stamp.clone());
        self.write(move |operation| revoke(operation, &ids, &stamp, now)).await
    }

    async fn delete_credential(&self, id: &str, stamp: &Stamp, now: Timestamp) -> Result<bool> {
        let (id, stamp) = (id.to_owned(), stamp.clone());
        self.write(move |operation| {
            let deleted = delete(operation, &id)?;
            if deleted {
                let detail = Some(Detail::Change("deleted"));
                operation.audit(&stamp, Changed { place: None, object: &id, detail }, now)?;
            }
            Ok(deleted)
        })
        .await
    }

    async fn use_credential(&self, id: &str, now: Timestamp) -> Result<bool> {
        let id = id.to_owned();
        self.write(move |operation| {
            let mut update = operation.conn.prepare_cached(
                "UPDATE credential SET uses = uses + 1 \
                 WHERE id = ?1 AND revoked_at IS NULL AND uses < max_uses \
                 AND coalesce(expires_at, ?2 + 1) > ?2",
            )?;
            Ok(update.execute((&id, now.micros()))? == 1)
        })
        .await
    }

    async fn credentials_used(&self, uses: LastUses) -> Result<()> {
        self.write(move |operation| note_uses(operation, &uses)).await
    }

    async fn permission_uses(&self) -> Result<Vec<PermissionUse>> {
        self.read(|conn, _| permission_uses(conn)).await
    }

    async fn recall(&self, recall: &Recall, stamp: &Stamp) -> Result<()> {
        let Recall { issuer, subject, until } = recall.clone();
        let stamp = stamp.clone();
        self.write(move |operation| {
            let mut upsert = operation.conn.prepare_cached(
                "INSERT INTO recall (issuer, subject, until) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (issuer, subject) DO UPDATE SET until = max(until, excluded.until)",
            )?;
            upsert.execute((&issuer, subject.as_deref().unwrap_or(""), until.micros()))?;
            let detail =
                serde_json::json!({ "change": "recalled", "issuer": issuer, "subject": subject });
            record(operation, &stamp, subject.as_deref().unwrap_or(&issuer), &detail, until)
        })
        .await
    }

    async fn recalls(&self) -> Result<Vec<Recall>> {
        self.read(|conn, _| recalls(conn)).await
    }
}
