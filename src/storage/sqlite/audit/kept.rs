//! How the audit lets go what is not to be kept any more: whole checkpoints
//! from the beginning. The chains' ends there stay, so that what is left can
//! be proven from them on.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{Connection, OptionalExtension as _};
use serde_json::{json, value::to_raw_value};

use super::Changed;
use crate::{
    domain::{
        Timestamp,
        audit::{Detail, rfc3339_text},
        history::Stamp,
    },
    storage::{
        AuditKept, AuditLetGo, Result,
        sqlite::{error::damaged, row, writer::Operation},
    },
};

/// How many rows go at once.
const ROWS_MAX: u64 = 16 * 1024;

/// The oldest checkpoint that is still kept.
struct Oldest {
    first: i64,
    last: i64,
    bytes: i64,
    at: String,
    links: Vec<u8>,
}

pub(super) fn let_go(
    operation: &mut Operation<'_>,
    keep: AuditKept,
    now: Timestamp,
) -> Result<AuditLetGo> {
    let conn = operation.conn;
    let since = keep.since.map(rfc3339_text);
    let spared = keep.spared.map(rfc3339_text);
    let mut bytes: i64 = conn
        .prepare_cached("SELECT coalesce(sum(bytes), 0) FROM audit_seal")?
        .query_row([], |found| found.get(0))?;
    let (mut gone, mut excess, mut through) = (0, 0, None);
    while gone < ROWS_MAX {
        let Some(oldest) = oldest(conn)? else { break };
        let old = since.as_ref().is_some_and(|since| oldest.at < *since);
        let over = keep.bytes.map_or(0, |most| bytes.saturating_sub(most));
        let young = spared.as_ref().is_some_and(|spared| oldest.at >= *spared);
        let awaited = keep.untold.is_some_and(|untold| {
            oldest.last >= untold.first && oldest.at >= rfc3339_text(untold.since)
        });
        if !old && over > 0 && young {
            excess = u64::try_from(over).unwrap_or_default();
        }
        if awaited || !old && (young || over <= 0) {
            break;
        }
        bytes = bytes.saturating_sub(oldest.bytes);
        gone += remove(conn, &oldest)?;
        through = Some(oldest.last);
    }
    if let Some(through) = through {
        let detail = json!({ "change": "audit let go", "through": through, "records": gone });
        let detail = to_raw_value(&detail).map_err(|_| damaged("a record's detail"))?;
        let changed =
            Changed { place: None, object: "audit", detail: Some(Detail::Object(&detail)) };
        operation.audit(&Stamp::system(), changed, now)?;
    }
    Ok(AuditLetGo { rows: gone, excess })
}

/// None while it is the only one.
fn oldest(conn: &Connection) -> Result<Option<Oldest>> {
    let mut select = conn.prepare_cached(
        "SELECT s.first, s.last, s.bytes, a.body ->> '$.checkpoint.at', s.links \
         FROM audit_seal s JOIN audit a ON a.seq = s.seq \
         WHERE s.last < (SELECT max(last) FROM audit_seal) ORDER BY s.last LIMIT 1",
    )?;
    let found = select.query_row([], |found| {
        Ok(Oldest {
            first: found.get(0)?,
            last: found.get(1)?,
            bytes: found.get(2)?,
            at: found.get(3)?,
            links: found.get(4)?,
        })
    });
    Ok(found.optional()?)
}

fn remove(conn: &Connection, oldest: &Oldest) -> Result<u64> {
    let (links, _) = oldest.links.as_chunks::<32>();
    let mut ends: HashMap<Arc<str>, (i64, [u8; 32])> = HashMap::new();
    let mut select = conn.prepare_cached(
        "SELECT seq, chain FROM audit WHERE seq BETWEEN ?1 AND ?2 AND chain IS NOT NULL \
         ORDER BY seq",
    )?;
    let mut rows = select.query((oldest.first, oldest.last))?;
    while let Some(found) = rows.next()? {
        let seq: i64 = found.get(0)?;
        let place = usize::try_from(seq.saturating_sub(oldest.first)).ok();
        let link = place.and_then(|place| links.get(place));
        let link = link.ok_or_else(|| damaged("a seal of the audit"))?;
        let end = ends.entry(row::text(found, 1)?).or_insert((0, *link));
        *end = (end.0.saturating_add(1), *link);
    }
    let mut update = conn.prepare_cached(
        "UPDATE audit_head SET base_number = base_number + ?2, base_hash = ?3 WHERE chain = ?1",
    )?;
    for (chain, (count, link)) in ends {
        update.execute((&*chain, count, link))?;
    }
    let gone = conn
        .prepare_cached("DELETE FROM audit WHERE seq BETWEEN ?1 AND ?2")?
        .execute((oldest.first, oldest.last))?;
    conn.prepare_cached("DELETE FROM audit_seal WHERE last = ?1")?.execute([oldest.last])?;
    Ok(u64::try_from(gone).unwrap_or(u64::MAX))
}
