//! Signing keys.

use async_trait::async_trait;
use rusqlite::{Row, params};

use super::{Sqlite, audit::Changed, row};
use crate::{
    domain::{Timestamp, audit::Detail, history::Stamp},
    storage::{Result, SigningKeyRecord, SigningKeyStore},
};

const COLUMNS: &str = "kid, purpose, organisation, public_key, private_key, sealed_by, \
                       created_by, created_at, activated_at, retired_at";

fn read(found: &Row<'_>) -> Result<SigningKeyRecord> {
    Ok(SigningKeyRecord {
        kid: row::text(found, 0)?,
        purpose: row::text(found, 1)?,
        organisation: row::text(found, 2)?,
        public_key: found.get(3)?,
        private_key: found.get(4)?,
        sealed_by: row::text(found, 5)?,
        created_by: row::identity(&row::text(found, 6)?)?,
        created_at: row::time(found, 7)?,
        activated_at: row::time(found, 8)?,
        retired_at: row::time_if_any(found, 9)?,
    })
}

#[async_trait]
impl SigningKeyStore for Sqlite {
    async fn signing_keys(&self) -> Result<Vec<SigningKeyRecord>> {
        self.read(|conn, _| {
            let mut select = conn.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM signing_key ORDER BY activated_at, kid"
            ))?;
            let mut rows = select.query([])?;
            let mut all = Vec::new();
            while let Some(found) = rows.next()? {
                all.push(read(found)?);
            }
            Ok(all)
        })
        .await
    }

    async fn add_signing_key(&self, key: SigningKeyRecord, stamp: &Stamp) -> Result<()> {
        let stamp = stamp.clone();
        self.write(move |operation| {
            let mut insert = operation.conn.prepare_cached(&format!(
                "INSERT INTO signing_key ({COLUMNS}) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
            ))?;
            insert.execute(params![
                &*key.kid,
                &*key.purpose,
                &*key.organisation,
                key.public_key,
                key.private_key,
                &*key.sealed_by,
                row::identity_text(&key.created_by),
                key.created_at.micros(),
                key.activated_at.micros(),
                key.retired_at.map(Timestamp::micros),
            ])?;
            let detail = Some(Detail::Change("created"));
            operation.audit(
                &stamp,
                Changed { place: None, object: &key.kid, detail },
                key.created_at,
            )
        })
        .await
    }

    async fn retire_signing_key(&self, kid: &str, stamp: &Stamp, now: Timestamp) -> Result<bool> {
        let (kid, stamp) = (kid.to_owned(), stamp.clone());
        self.write(move |operation| {
            let mut update = operation.conn.prepare_cached(
                "UPDATE signing_key SET retired_at = ?2, private_key = x'' \
                 WHERE kid = ?1 AND retired_at IS NULL",
            )?;
            let retired = update.execute((&kid, now.micros()))? == 1;
            if retired {
                let detail = Some(Detail::Change("retired"));
                operation.audit(&stamp, Changed { place: None, object: &kid, detail }, now)?;
            }
            Ok(retired)
        })
        .await
    }
}
