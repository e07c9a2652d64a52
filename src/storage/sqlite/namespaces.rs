//! Namespaces and their numbers, all of them in memory. A namespace comes to
//! be with its first template and stays.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{PoisonError, RwLock},
};

use rusqlite::{Connection, OptionalExtension as _};

use super::error::damaged;
use crate::{
    domain::{Area, Namespace, Scope, ids::NamespaceNo},
    storage::Result,
};

#[derive(Default)]
struct Maps {
    names: HashMap<NamespaceNo, Namespace>,
    numbers: BTreeMap<String, (NamespaceNo, Namespace)>,
}

impl Maps {
    fn insert(&mut self, no: NamespaceNo, namespace: Namespace) {
        self.numbers.insert(namespace.as_str().to_owned(), (no, namespace.clone()));
        self.names.insert(no, namespace);
    }
}

pub(super) struct Namespaces {
    maps: RwLock<Maps>,
}

/// A namespace with its number.
pub(super) type Numbered = (NamespaceNo, Namespace);

impl Namespaces {
    pub(super) fn load(conn: &Connection) -> Result<Self> {
        let mut maps = Maps::default();
        let mut select = conn.prepare("SELECT no, name FROM namespace")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(1)?;
            let namespace = Namespace::parse(&name).map_err(|_| damaged("a namespace"))?;
            maps.insert(NamespaceNo(row.get(0)?), namespace);
        }
        Ok(Self { maps: RwLock::new(maps) })
    }

    fn maps(&self) -> std::sync::RwLockReadGuard<'_, Maps> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called once its row is on disk.
    pub(super) fn publish(&self, no: NamespaceNo, namespace: Namespace) {
        self.maps.write().unwrap_or_else(PoisonError::into_inner).insert(no, namespace);
    }

    pub(super) fn name(&self, no: NamespaceNo) -> Option<Namespace> {
        self.maps().names.get(&no).cloned()
    }

    pub(super) fn has(&self, namespace: &str) -> bool {
        self.maps().numbers.contains_key(namespace)
    }

    pub(super) fn number(&self, namespace: &Namespace) -> Option<NamespaceNo> {
        self.maps().numbers.get(namespace.as_str()).map(|(no, _)| *no)
    }

    /// The namespaces of a scope by name; with `only` that one at most. The
    /// names are compared byte by byte in the scope's own ranges (SE-07).
    pub(super) fn within(&self, scope: &Scope, only: Option<&Namespace>) -> Vec<Numbered> {
        let maps = self.maps();
        if let Some(only) = only {
            let found = maps.numbers.get(only.as_str()).filter(|_| scope.contains(only));
            return found.cloned().into_iter().collect();
        }
        let Some(ranges) = scope.ranges() else {
            return maps.numbers.values().cloned().collect();
        };
        let mut found = BTreeMap::new();
        for (from, to) in ranges {
            let range = (Bound::Included(from.as_str()), Bound::Excluded(to.as_str()));
            found.extend(maps.numbers.range::<str, _>(range));
        }
        found.into_values().cloned().collect()
    }

    /// The namespaces of a worker's area.
    pub(super) fn of_area(&self, area: &Area) -> Vec<Numbered> {
        match area {
            Area::Exactly(namespace) => {
                self.maps().numbers.get(namespace.as_str()).cloned().into_iter().collect()
            }
            Area::Below(_) => self.within(&Scope::from(area), None),
        }
    }
}

/// The number of a namespace within an operation; makes it when it is new.
pub(super) fn number_or_new(
    conn: &Connection,
    namespace: &Namespace,
) -> Result<(NamespaceNo, bool)> {
    let mut select = conn.prepare_cached("SELECT no FROM namespace WHERE name = ?1")?;
    let found: Option<u32> = select.query_row([namespace.as_str()], |row| row.get(0)).optional()?;
    if let Some(no) = found {
        return Ok((NamespaceNo(no), false));
    }
    let no: u32 = conn.query_row(
        "INSERT INTO namespace (no, name) SELECT coalesce(max(no), 0) + 1, ?1 FROM namespace \
         RETURNING no",
        [namespace.as_str()],
        |row| row.get(0),
    )?;
    Ok((NamespaceNo(no), true))
}
