//! Workers, and the handlers that templates name.

use std::collections::HashMap;

use async_trait::async_trait;
use rusqlite::{Connection, Row};

use super::{
    Shared, Sqlite, audit::Changed, error::damaged, namespaces::Numbered, row, writer::Operation,
};
use crate::{
    domain::{
        Area, Namespace, Scope,
        audit::{Detail, Origin, SERVER_CHAIN},
        history::Stamp,
        ids::NamespaceNo,
    },
    storage::{HandlerRecord, Listed, Page, Result, WorkerRecord, WorkerStore},
};

/// How many steps each worker holds, by holder, name and namespace.
type Held = HashMap<(String, String), Vec<NamespaceNo>>;

/// Reads the leases that hold now; only those lie in this index.
fn held(conn: &Connection) -> Result<Held> {
    let mut select = conn.prepare_cached(
        "SELECT holder, worker, ns FROM step INDEXED BY step_due \
         WHERE due_at IS NOT NULL AND state = 3 AND worker IS NOT NULL",
    )?;
    let mut rows = select.query([])?;
    let mut held = Held::new();
    while let Some(found) = rows.next()? {
        let worker = (found.get(0)?, found.get(1)?);
        held.entry(worker).or_default().push(NamespaceNo(found.get(2)?));
    }
    Ok(held)
}

fn read(found: &Row<'_>, held: &Held, shared: &Shared) -> Result<WorkerRecord> {
    let area = Area::parse(&row::text(found, 0)?).map_err(|_| damaged("a worker's area"))?;
    let handlers =
        serde_json::from_str(&row::text(found, 3)?).map_err(|_| damaged("a worker's handlers"))?;
    let (name, identity): (String, String) = (found.get(1)?, found.get(2)?);
    let within = |ns: &&NamespaceNo| {
        shared.namespaces.name(**ns).is_some_and(|namespace| area.contains(&namespace))
    };
    let leases = held
        .get(&(identity.clone(), name.clone()))
        .map_or(0, |leases| leases.iter().filter(within).count());
    Ok(WorkerRecord {
        name,
        handlers,
        version: found.get(4)?,
        identity: row::identity(&identity)?,
        registered_at: row::time(found, 5)?,
        last_seen_at: row::time(found, 6)?,
        leases: u32::try_from(leases).unwrap_or(u32::MAX),
        area,
    })
}

const COLUMNS: &str = "area, name, identity, handlers, version, registered_at, last_seen_at";

fn register(operation: &mut Operation<'_>, worker: &WorkerRecord) -> Result<WorkerRecord> {
    let conn = operation.conn;
    let handlers =
        serde_json::to_string(&worker.handlers).map_err(|_| damaged("a worker's handlers"))?;
    let mut upsert = conn.prepare_cached(&format!(
        "INSERT INTO worker ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
         ON CONFLICT (area, name, identity) DO UPDATE SET handlers = excluded.handlers, \
         version = excluded.version, last_seen_at = max(last_seen_at, excluded.last_seen_at) \
         RETURNING {COLUMNS}"
    ))?;
    let mut rows = upsert.query((
        worker.area.to_string(),
        &worker.name,
        row::identity_text(&worker.identity),
        handlers,
        worker.version.as_deref(),
        worker.registered_at.micros(),
        worker.last_seen_at.micros(),
    ))?;
    let found = rows.next()?.ok_or_else(|| damaged("a worker"))?;
    let kept = read(found, &held(conn)?, operation.shared)?;
    // A statement with RETURNING is done once it is read to its end.
    while rows.next()?.is_some() {}
    Ok(kept)
}

/// The place in a list of workers: when it was seen, and its key.
fn place(worker: &WorkerRecord) -> String {
    let WorkerRecord { area, name, identity, last_seen_at, .. } = worker;
    let identity = row::identity_text(identity);
    format!("{} {area} {} {identity}{name}", last_seen_at.micros(), identity.len())
}

fn read_place(place: &str) -> Option<(i64, String, String, String)> {
    let (at, rest) = place.split_once(' ')?;
    let (area, rest) = rest.split_once(' ')?;
    let (length, rest) = rest.split_once(' ')?;
    let (identity, name) = rest.split_at_checked(length.parse().ok()?)?;
    Some((at.parse().ok()?, area.to_owned(), name.to_owned(), identity.to_owned()))
}

fn workers(
    conn: &Connection,
    shared: &Shared,
    scope: &Scope,
    only: Option<&Area>,
    page: &Page,
) -> Result<Listed<WorkerRecord>> {
    let (at, area, name, identity) = match &page.after {
        Some(after) => read_place(after).ok_or_else(|| damaged("a place in a list"))?,
        None => (i64::MAX, String::new(), String::new(), String::new()),
    };
    let mut select = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM worker WHERE last_seen_at < ?1 \
         OR (last_seen_at = ?1 AND (area, name, identity) > (?2, ?3, ?4)) \
         ORDER BY last_seen_at DESC, area, name, identity"
    ))?;
    let mut rows = select.query((at, area, name, identity))?;
    let held = held(conn)?;
    let mut items: Vec<WorkerRecord> = Vec::new();
    while let Some(found) = rows.next()? {
        let worker = read(found, &held, shared)?;
        let wanted = scope.contains_area(&worker.area)
            && only.is_none_or(|only| {
                Scope::from(only).contains_area(&worker.area)
                    && (matches!(only, Area::Below(_)) || *only == worker.area)
            });
        if !wanted {
            continue;
        }
        if items.len() == page.size {
            let next = items.last().map(place);
            return Ok(Listed { items, next });
        }
        items.push(worker);
    }
    Ok(Listed { items, next: None })
}

fn handlers(conn: &Connection, within: &[Numbered], page: &Page) -> Result<Listed<HandlerRecord>> {
    // Neither part of the place holds a space before the first one.
    let after = match &page.after {
        Some(after) => after.split_once(' ').ok_or_else(|| damaged("a place in a list"))?,
        None => ("", ""),
    };
    let mut select = conn.prepare_cached(
        "SELECT h.handler, count(DISTINCT m.name) FROM template_handler h \
         JOIN template m ON m.ns = h.ns AND m.no = h.template \
         WHERE h.ns = ?1 AND h.handler > ?2 GROUP BY h.handler ORDER BY h.handler LIMIT ?3",
    )?;
    let mut items: Vec<HandlerRecord> = Vec::new();
    for (ns, namespace) in within.iter().filter(|(_, ns)| ns.as_str() >= after.0) {
        let behind = if namespace.as_str() == after.0 { after.1 } else { "" };
        let room = page.size.saturating_add(1).saturating_sub(items.len());
        let mut rows = select.query((ns.0, behind, i64::try_from(room).unwrap_or(i64::MAX)))?;
        while let Some(found) = rows.next()? {
            if items.len() == page.size {
                let next = items
                    .last()
                    .map(|last: &HandlerRecord| format!("{} {}", last.namespace, last.name));
                return Ok(Listed { items, next });
            }
            items.push(HandlerRecord {
                namespace: namespace.clone(),
                name: found.get(0)?,
                templates: found.get(1)?,
            });
        }
    }
    Ok(Listed { items, next: None })
}

#[async_trait]
impl WorkerStore for Sqlite {
    async fn register_worker(
        &self,
        worker: WorkerRecord,
        stamp: Option<&Stamp>,
    ) -> Result<WorkerRecord> {
        let stamp = stamp.cloned();
        self.write(move |operation| {
            let kept = register(operation, &worker)?;
            if let Some(stamp) = &stamp {
                let area = kept.area.to_string();
                let place = area.trim_end_matches('.');
                let detail = Some(Detail::Change("worker registered"));
                let changed = Changed { place: Some(place), object: &kept.name, detail };
                // Who registers where nothing is makes no chain by it.
                let own = stamp.origin().map(Origin::own_chain);
                let chain = if operation.has_chain(place)? { Some(place) } else { own.as_deref() };
                let chain = chain.unwrap_or(SERVER_CHAIN);
                operation.audit_in(chain, stamp, changed, worker.last_seen_at)?;
            }
            Ok(kept)
        })
        .await
    }

    async fn workers(
        &self,
        scope: &Scope,
        namespace: Option<&Area>,
        page: &Page,
    ) -> Result<Listed<WorkerRecord>> {
        let (scope, only, page) = (scope.clone(), namespace.cloned(), page.clone());
        self.read(move |conn, shared| workers(conn, shared, &scope, only.as_ref(), &page)).await
    }

    async fn handlers(
        &self,
        scope: &Scope,
        namespace: Option<&Namespace>,
        page: &Page,
    ) -> Result<Listed<HandlerRecord>> {
        let within = self.shared.namespaces.within(scope, namespace);
        let page = page.clone();
        self.read(move |conn, _| handlers(conn, &within, &page)).await
    }
}
