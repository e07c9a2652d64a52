//! The embedded store: `SQLite` with one writer thread that commits in groups,
//! and a few connections that only read.
//!
//! Not here: the rules of tasks (`domain::advance`), who may do what, and when
//! leases are looked at.

mod audit;
mod credentials;
mod elevations;
mod error;
mod events;
mod lineage;
mod namespaces;
mod open;
mod readers;
mod row;
mod rule_row;
mod run;
mod schedules;
mod schema;
mod signing;
mod steps;
mod tasks;
mod templates;
mod views;
mod work;
mod workers;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;

use self::{
    error::unavailable, namespaces::Namespaces, readers::Readers, templates::Shelf,
    writer::Operation, writer::Writer,
};
use super::{Desk, LeaseTerms, Result, Store};
use crate::domain::{Clock, Namespace, Scope, TaskId, Timestamp};

pub use self::open::OpenError;

/// Where the store lies and on which terms it leases.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The database file. Its folder is the data folder: made when it is
    /// missing, and used by one server alone.
    pub path: PathBuf,
    /// How long leases last.
    pub terms: LeaseTerms,
    /// Whether each change is kept with its record of the audit.
    pub audited: bool,
}

impl Settings {
    /// The usual terms.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, terms: LeaseTerms::default(), audited: true }
    }

    /// Other terms.
    #[must_use]
    pub fn with_terms(self, terms: LeaseTerms) -> Self {
        Self { terms, ..self }
    }

    /// Without records of the audit.
    #[must_use]
    pub fn audited(self, audited: bool) -> Self {
        Self { audited, ..self }
    }
}

/// What the writer and the readers share.
struct Shared {
    settings: Settings,
    desk: Arc<dyn Desk>,
    namespaces: Namespaces,
    shelf: Shelf,
    /// Raised durably by this start.
    epoch: u32,
    /// Counts the leases of this epoch.
    leases: AtomicU64,
    /// The newest version of a job that this server gave.
    job_versions: AtomicI64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Shared {
    /// The namespace that a task's id points at, if the scope covers it. One
    /// path for hidden and absent (SE-10).
    fn locate(&self, scope: &Scope, id: TaskId) -> Option<Namespace> {
        let namespace = self.namespaces.name(id.namespace_no())?;
        scope.contains(&namespace).then_some(namespace)
    }

    /// A version that no job had since the start: one that is removed and set
    /// again is not taken for the one whose run is under way.
    fn job_version(&self, now: Timestamp) -> i64 {
        let newer = |last: i64| Some(now.micros().max(last.saturating_add(1)));
        let order = Ordering::Relaxed;
        let last = self.job_versions.fetch_update(order, order, newer).unwrap_or_else(|last| last);
        newer(last).unwrap_or(last)
    }
}

/// The embedded store.
#[derive(Debug)]
pub struct Sqlite {
    shared: Arc<Shared>,
    writer: Writer,
    readers: Readers,
}

impl Sqlite {
    /// Opens the store, which no other server may have open.
    pub async fn open(
        settings: Settings,
        desk: Arc<dyn Desk>,
        clock: Arc<dyn Clock>,
    ) -> std::result::Result<Arc<Self>, OpenError> {
        let path = settings.path.clone();
        tokio::task::spawn_blocking(move || Self::open_blocking(settings, desk, &*clock))
            .await
            .map_err(|error| OpenError::Thread(error.into()))?
            .map_err(|error| error.at(&path))
    }

    fn open_blocking(
        settings: Settings,
        desk: Arc<dyn Desk>,
        clock: &dyn Clock,
    ) -> std::result::Result<Arc<Self>, OpenError> {
        let lock = open::lock(&settings.path)?;
        let mut conn = open::writer(&settings.path, clock.now())?;
        let epoch = open::start(&mut conn, settings.terms.lease, clock.now())?;
        let namespaces = Namespaces::load(&conn)?;
        let checkpointer = open::checkpointer(&settings.path)?;
        let readers = Readers::new(settings.path.clone());
        let shared = Arc::new(Shared {
            settings,
            desk,
            namespaces,
            shelf: Shelf::new(),
            epoch,
            leases: AtomicU64::new(0),
            job_versions: AtomicI64::new(0),
        });
        let writer = Writer::start(Arc::clone(&shared), conn, checkpointer, lock)
            .map_err(OpenError::Thread)?;
        Ok(Arc::new(Self { shared, writer, readers }))
    }

    /// Runs an operation on the writer; answers once it is on disk.
    async fn write<T, F>(&self, operation: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Operation<'_>) -> Result<T> + Send + 'static,
    {
        self.writer.run(operation).await
    }

    /// Reads, all at one moment.
    async fn read<T, F>(&self, query: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection, &Shared) -> Result<T> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        self.readers.run(move |conn| query(conn, &shared)).await
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn check(&self) -> Result<()> {
        self.write(|operation| {
            let mut beat =
                operation.conn.prepare_cached("UPDATE store SET beat = beat + 1 WHERE one = 1")?;
            if beat.execute([])? == 1 { Ok(()) } else { Err(unavailable("no row to write")) }
        })
        .await
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}
