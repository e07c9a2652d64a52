//! Templates, and the shelf that keeps the ones in use in memory.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use moka::sync::Cache;
use rusqlite::{Connection, OptionalExtension as _, Row};
use semver::Version;

use super::{
    Shared, Sqlite, audit::Changed, error::damaged, namespaces, row, rule_row, writer::Operation,
};
use crate::{
    domain::{
        Namespace, Scope, Timestamp, history::Stamp, ids::NamespaceNo, principal::GrantRef,
        template::Template,
    },
    storage::{Listed, Page, Registered, Result, TemplateRecord, TemplateStore},
};

/// How many bytes of definitions are kept in memory.
const SHELF_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// How many names of templates have their versions in memory.
const SHELF_NAMES_MAX: usize = 4096;

/// The versions of a template with their numbers.
type Versions = Arc<[(Version, u32)]>;

#[derive(Default)]
struct VersionLists {
    /// Raised by each registration, so that a list that was read before it is
    /// not kept behind it.
    generation: u64,
    lists: HashMap<NamespaceNo, HashMap<Arc<str>, Versions>>,
    names: usize,
}

pub(super) struct Shelf {
    records: Cache<i64, Arc<TemplateRecord>>,
    versions: RwLock<VersionLists>,
}

impl Shelf {
    pub(super) fn new() -> Self {
        let weigh = |_: &i64, record: &Arc<TemplateRecord>| {
            // A parsed definition takes a few times its text.
            u32::try_from(record.definition.len().saturating_mul(4)).unwrap_or(u32::MAX)
        };
        Self {
            records: Cache::builder().max_capacity(SHELF_BYTES_MAX).weigher(weigh).build(),
            versions: RwLock::default(),
        }
    }

    /// A registration is on disk.
    pub(super) fn forget_versions(&self, ns: NamespaceNo, name: &str) {
        let mut all = self.versions.write().unwrap_or_else(PoisonError::into_inner);
        all.generation += 1;
        if all.lists.get_mut(&ns).and_then(|names| names.remove(name)).is_some() {
            all.names -= 1;
        }
    }

    /// The versions as far as they are known, and the generation.
    fn versions(&self, ns: NamespaceNo, name: &str) -> (Option<Versions>, u64) {
        let all = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        (all.lists.get(&ns).and_then(|names| names.get(name)).cloned(), all.generation)
    }

    fn keep_versions(&self, ns: NamespaceNo, name: &str, versions: &Versions, generation: u64) {
        let mut all = self.versions.write().unwrap_or_else(PoisonError::into_inner);
        if all.generation != generation {
            return;
        }
        if all.names >= SHELF_NAMES_MAX {
            all.lists.clear();
            all.names = 0;
        }
        let names = all.lists.entry(ns).or_default();
        if names.insert(name.into(), Arc::clone(versions)).is_none() {
            all.names += 1;
        }
    }
}

/// A template's number over all namespaces.
fn row_number(ns: NamespaceNo, no: u32) -> i64 {
    i64::from(ns.0) << 32 | i64::from(no)
}

/// The number of a template within its namespace.
pub(super) fn number_of(record: &TemplateRecord) -> Result<u32> {
    u32::try_from(record.row & i64::from(u32::MAX)).map_err(|_| damaged("a template's number"))
}

/// The number of the namespace of a template.
pub(super) fn namespace_of(record: &TemplateRecord) -> Result<NamespaceNo> {
    u32::try_from(record.row >> 32).map(NamespaceNo).map_err(|_| damaged("a template's number"))
}

/// A template by its number; it must be there.
pub(super) fn record(
    conn: &Connection,
    shared: &Shared,
    (ns, namespace): (NamespaceNo, &Namespace),
    no: u32,
) -> Result<Arc<TemplateRecord>> {
    let key = row_number(ns, no);
    if let Some(record) = shared.shelf.records.get(&key) {
        return Ok(record);
    }
    let mut select = conn.prepare_cached(
        "SELECT t.registered_by, t.registered_at, t.definition, r.owner FROM template t \
         LEFT JOIN template_registrar r ON r.ns = t.ns AND r.template = t.no \
         WHERE t.ns = ?1 AND t.no = ?2",
    )?;
    let mut rows = select.query((ns.0, no))?;
    let found = rows.next()?.ok_or_else(|| damaged("the template of a task"))?;
    let record = Arc::new(read_record(found, key, namespace)?);
    shared.shelf.records.insert(key, Arc::clone(&record));
    Ok(record)
}

fn read_record(found: &Row<'_>, key: i64, namespace: &Namespace) -> Result<TemplateRecord> {
    let definition = row::text(found, 2)?;
    let parsed =
        Template::parse(namespace, &definition).map_err(|_| damaged("the text of a template"))?;
    Ok(TemplateRecord {
        row: key,
        namespace: namespace.clone(),
        template: Arc::new(parsed.template),
        definition,
        registered_by: row::identity(&row::text(found, 0)?)?,
        registered_at: row::time(found, 1)?,
        registrar: row::text_if_any(found, 3)?.map(|text| rule_row::owner(&text)).transpose()?,
    })
}

fn load_versions(conn: &Connection, ns: NamespaceNo, name: &str) -> Result<Versions> {
    let mut select =
        conn.prepare_cached("SELECT version, no FROM template WHERE ns = ?1 AND name = ?2")?;
    let mut rows = select.query((ns.0, name))?;
    let mut versions = Vec::new();
    while let Some(found) = rows.next()? {
        let version = Version::parse(&row::text(found, 0)?).map_err(|_| damaged("a version"))?;
        versions.push((version, found.get(1)?));
    }
    Ok(versions.into())
}

/// The wanted version; with none the highest, releases before pre-releases.
fn choose(versions: &[(Version, u32)], wanted: Option<&Version>) -> Option<u32> {
    let chosen = match wanted {
        Some(wanted) => versions.iter().find(|(version, _)| version == wanted),
        None => versions.iter().max_by_key(|(version, _)| (version.pre.is_empty(), version)),
    };
    chosen.map(|(_, no)| *no)
}

/// What a registration brings.
struct Registration {
    namespace: Namespace,
    template: Arc<Template>,
    definition: Arc<str>,
    registrar: Option<GrantRef>,
    stamp: Stamp,
    now: Timestamp,
}

fn register(operation: &mut Operation<'_>, new: &Registration) -> Result<Registered> {
    let Registration { namespace, template, definition, registrar, stamp, now } = new;
    let conn = operation.conn;
    let (ns, is_new) = namespaces::number_or_new(conn, namespace)?;
    let version = template.version.to_string();
    let found: Option<(u32, String)> = conn
        .prepare_cached(
            "SELECT no, definition FROM template WHERE ns = ?1 AND name = ?2 AND version = ?3",
        )?
        .query_row((ns.0, &*template.name, &version), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some((no, kept)) = found {
        return Ok(if kept == **definition {
            Registered::Unchanged(record(conn, operation.shared, (ns, namespace), no)?)
        } else {
            Registered::Conflict
        });
    }
    let registered_by = stamp.actor().cloned().unwrap_or_else(row::server);
    let no: u32 = conn
        .prepare_cached(
            "INSERT INTO template (ns, no, name, version, registered_by, registered_at, \
             credential, request, definition) SELECT ?1, coalesce(max(no), 0) + 1, ?2, ?3, ?4, \
             ?5, ?6, ?7, ?8 FROM template WHERE ns = ?1 RETURNING no",
        )?
        .query_row(
            (
                ns.0,
                &*template.name,
                &version,
                row::identity_text(&registered_by),
                now.micros(),
                stamp.credential_id(),
                stamp.request().map(|request| request.to_string()),
                &**definition,
            ),
            |row| row.get(0),
        )?;
    let handlers: HashSet<&str> = template.steps.iter().map(|step| &*step.handler).collect();
    let mut insert = conn.prepare_cached(
        "INSERT INTO template_handler (ns, handler, template) VALUES (?1, ?2, ?3)",
    )?;
    for handler in handlers {
        insert.execute((ns.0, handler, no))?;
    }
    if let Some(registrar) = registrar {
        conn.prepare_cached(
            "INSERT INTO template_registrar (ns, template, owner) VALUES (?1, ?2, ?3)",
        )?
        .execute((ns.0, no, rule_row::owner_text(registrar)?))?;
    }
    let object = format!("{}/{version}", template.name);
    let changed = Changed { place: Some(namespace.as_str()), object: &object, detail: None };
    operation.audit(stamp, changed, *now)?;
    if is_new {
        operation.namespaces.push((ns, namespace.clone()));
    }
    operation.templates.push((ns, Arc::clone(&template.name)));
    Ok(Registered::New(Arc::new(TemplateRecord {
        row: row_number(ns, no),
        namespace: namespace.clone(),
        template: Arc::clone(template),
        definition: Arc::clone(definition),
        registered_by,
        registered_at: *now,
        registrar: registrar.clone(),
    })))
}

/// The place in a list of templates: when it was registered, and its row.
fn place(after: Option<&String>) -> Result<(i64, u32, u32)> {
    let Some(after) = after else { return Ok((i64::MAX, u32::MAX, u32::MAX)) };
    let mut parts = after.split('.');
    let mut read = || {
        let place =
            (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(place)
    };
    read().ok_or_else(|| damaged("a place in a list"))
}

fn list(
    conn: &Connection,
    shared: &Shared,
    within: &HashMap<NamespaceNo, Namespace>,
    name: Option<&str>,
    page: &Page,
) -> Result<Listed<Arc<TemplateRecord>>> {
    let mut select = conn.prepare_cached(
        "SELECT registered_at, ns, no, name FROM template INDEXED BY template_age \
         WHERE (registered_at, ns, no) < (?1, ?2, ?3) \
         ORDER BY registered_at DESC, ns DESC, no DESC",
    )?;
    let mut rows = select.query(place(page.after.as_ref())?)?;
    let mut items = Vec::new();
    let mut last = None;
    while let Some(found) = rows.next()? {
        let (ns, no) = (NamespaceNo(found.get(1)?), found.get(2)?);
        let Some(namespace) = within.get(&ns) else { continue };
        if name.is_some_and(|name| found.get_ref(3).map(|kept| kept.as_str()) != Ok(Ok(name))) {
            continue;
        }
        if items.len() == page.size {
            return Ok(Listed { items, next: last });
        }
        items.push(record(conn, shared, (ns, namespace), no)?);
        last = Some(format!("{}.{}.{no}", found.get::<_, i64>(0)?, ns.0));
    }
    Ok(Listed { items, next: None })
}

#[async_trait]
impl TemplateStore for Sqlite {
    async fn register(
        &self,
        namespace: &Namespace,
        template: Arc<Template>,
        definition: Arc<str>,
        registrar: Option<GrantRef>,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<Registered> {
        let (namespace, stamp) = (namespace.clone(), stamp.clone());
        let new = Registration { namespace, template, definition, registrar, stamp, now };
        self.write(move |operation| register(operation, &new)).await
    }

    async fn template(
        &self,
        namespace: &Namespace,
        name: &str,
        version: Option<&Version>,
    ) -> Result<Option<Arc<TemplateRecord>>> {
        let Some(ns) = self.shared.namespaces.number(namespace) else { return Ok(None) };
        let (versions, generation) = self.shared.shelf.versions(ns, name);
        if let Some(versions) = versions {
            let Some(no) = choose(&versions, version) else { return Ok(None) };
            if let Some(record) = self.shared.shelf.records.get(&row_number(ns, no)) {
                return Ok(Some(record));
            }
        }
        let (namespace, name, version) = (namespace.clone(), name.to_owned(), version.cloned());
        self.read(move |conn, shared| {
            let versions = load_versions(conn, ns, &name)?;
            let Some(no) = choose(&versions, version.as_ref()) else { return Ok(None) };
            shared.shelf.keep_versions(ns, &name, &versions, generation);
            record(conn, shared, (ns, &namespace), no).map(Some)
        })
        .await
    }

    async fn templates(
        &self,
        scope: &Scope,
        namespace: Option<&Namespace>,
        name: Option<&str>,
        page: &Page,
    ) -> Result<Listed<Arc<TemplateRecord>>> {
        let within = self.shared.namespaces.within(scope, namespace).into_iter().collect();
        let (name, page) = (name.map(ToOwned::to_owned), page.clone());
        self.read(move |conn, shared| list(conn, shared, &within, name.as_deref(), &page)).await
    }
}
