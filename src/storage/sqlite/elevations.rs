//! Elevations.

use async_trait::async_trait;
use rusqlite::{Connection, Row, params};
use serde_json::{json, value::to_raw_value};

use super::{Sqlite, audit::Changed, error::damaged, row, writer::Operation};
use crate::{
    domain::{
        Permission, Timestamp,
        audit::{Detail, Origin, SERVER_CHAIN},
        elevation::{Elevation, ElevationState},
        history::Stamp,
    },
    storage::{ElevationStore, Result},
};

const COLUMNS: &str = "id, requester, requested_with, permissions, namespace, seconds, reason, \
                       requested_at, state, decided_by, decided_at, until, ended_at";

fn read(found: &Row<'_>) -> Result<Elevation> {
    let names: Vec<String> = serde_json::from_str(&row::text(found, 3)?)
        .map_err(|_| damaged("an elevation's permissions"))?;
    let state = ElevationState::parse(&row::text(found, 8)?);
    let decided_by = row::text_if_any(found, 9)?;
    Ok(Elevation {
        id: row::text(found, 0)?,
        requester: row::identity(&row::text(found, 1)?)?,
        requested_with: row::text(found, 2)?,
        // One that is no permission any more is nothing that could be given.
        permissions: names.iter().filter_map(|name| Permission::parse(name)).collect(),
        namespace: found.get(4)?,
        seconds: found.get(5)?,
        reason: found.get(6)?,
        requested_at: row::time(found, 7)?,
        state: state.ok_or_else(|| damaged("an elevation's state"))?,
        decided_by: decided_by.map(|text| row::identity(&text)).transpose()?,
        decided_at: row::time_if_any(found, 10)?,
        until: row::time_if_any(found, 11)?,
        ended_at: row::time_if_any(found, 12)?,
    })
}

fn names(elevation: &Elevation) -> Vec<&'static str> {
    elevation.permissions.iter().map(|permission| permission.name()).collect()
}

/// The record of a change, that of a request with its reason. Where
/// nobody has decided, its place is the requester's own chain, as nobody fills
/// another's (SE-44); a decision, and the end of what was approved, stand where
/// the rights hold.
fn record(
    operation: &mut Operation<'_>,
    elevation: &Elevation,
    stamp: &Stamp,
    now: Timestamp,
) -> Result<()> {
    let Elevation { requester, namespace, seconds, state, until, .. } = elevation;
    let mut detail = json!({
        "elevation": state.as_str(),
        "requester": requester.to_string(),
        "permissions": names(elevation),
        "namespace": namespace,
        "seconds": seconds,
        "until": until.map(Timestamp::seconds),
        "reason": (*state == ElevationState::Pending).then_some(&elevation.reason),
    });
    if let Some(detail) = detail.as_object_mut() {
        detail.retain(|_, value| !value.is_null());
    }
    let own = stamp.origin().map(Origin::own_chain);
    let place = match elevation.decided_by {
        Some(_) => Some(namespace.trim_end_matches('.')),
        None => own.as_deref(),
    };
    let place = place.filter(|place| !place.is_empty() && *place != SERVER_CHAIN);
    let detail = to_raw_value(&detail).map_err(|_| damaged("a record's detail"))?;
    let detail = Some(Detail::Object(&detail));
    operation.audit(stamp, Changed { place, object: &elevation.id, detail }, now)
}

fn add(operation: &mut Operation<'_>, elevation: &Elevation, forget: Timestamp) -> Result<bool> {
    operation
        .conn
        .prepare_cached("DELETE FROM elevation WHERE ended_at < ?1")?
        .execute([forget.micros()])?;
    let permissions = serde_json::to_string(&names(elevation))
        .map_err(|_| damaged("an elevation's permissions"))?;
    let mut insert = operation.conn.prepare_cached(&format!(
        "INSERT INTO elevation ({COLUMNS}) VALUES \
         (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) ON CONFLICT DO NOTHING"
    ))?;
    let added = insert.execute(params![
        &*elevation.id,
        row::identity_text(&elevation.requester),
        &*elevation.requested_with,
        permissions,
        elevation.namespace,
        elevation.seconds,
        elevation.reason,
        elevation.requested_at.micros(),
        elevation.state.as_str(),
        elevation.decided_by.as_ref().map(row::identity_text),
        elevation.decided_at.map(Timestamp::micros),
        elevation.until.map(Timestamp::micros),
        elevation.ended_at.map(Timestamp::micros),
    ])?;
    Ok(added == 1)
}

fn move_on(
    operation: &mut Operation<'_>,
    from: ElevationState,
    elevation: &Elevation,
) -> Result<bool> {
    let mut update = operation.conn.prepare_cached(
        "UPDATE elevation SET state = ?3, decided_by = ?4, decided_at = ?5, until = ?6, \
         ended_at = ?7 WHERE id = ?1 AND state = ?2",
    )?;
    let moved = update.execute(params![
        &*elevation.id,
        from.as_str(),
        elevation.state.as_str(),
        elevation.decided_by.as_ref().map(row::identity_text),
        elevation.decided_at.map(Timestamp::micros),
        elevation.until.map(Timestamp::micros),
        elevation.ended_at.map(Timestamp::micros),
    ])?;
    Ok(moved == 1)
}

fn all(conn: &Connection) -> Result<Vec<Elevation>> {
    let mut select =
        conn.prepare_cached(&format!("SELECT {COLUMNS} FROM elevation ORDER BY requested_at, id"))?;
    let mut rows = select.query([])?;
    let mut all = Vec::new();
    while let Some(found) = rows.next()? {
        all.push(read(found)?);
    }
    Ok(all)
}

#[async_trait]
impl ElevationStore for Sqlite {
    async fn add_elevation(
        &self,
        elevation: &Elevation,
        forget: Timestamp,
        stamp: &Stamp,
    ) -> Result<bool> {
        let (elevation, stamp) = (elevation.clone(), stamp.clone());
        self.write(move |operation| {
            let added = add(operation, &elevation, forget)?;
            if added {
                record(operation, &elevation, &stamp, elevation.requested_at)?;
            }
            Ok(added)
        })
        .await
    }

    async fn move_elevation(
        &self,
        from: ElevationState,
        elevation: &Elevation,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<bool> {
        let (elevation, stamp) = (elevation.clone(), stamp.clone());
        self.write(move |operation| {
            let moved = move_on(operation, from, &elevation)?;
            if moved {
                record(operation, &elevation, &stamp, now)?;
            }
            Ok(moved)
        })
        .await
    }

    async fn elevations(&self) -> Result<Vec<Elevation>> {
        self.read(|conn, _| all(conn)).await
    }
}
