//! Opening the data folder: its lock, the file's marks, what a restart means
//! for leases.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, config::DbConfig};
use rustix::fs::{FlockOperation, flock};
use thiserror::Error as ThisError;

use super::schema;
use crate::domain::Timestamp;

const LOCK_NAME: &str = "bailiwick.lock";
const PAGE_BYTES: i64 = 4096;
const WRITER_CACHE_KIB: i64 = 8 * 1024;
const READER_CACHE_KIB: i64 = 1024;
const STATEMENTS_CACHED: usize = 64;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the store could not be opened; says what to do.
#[derive(Debug, ThisError)]
pub enum OpenError {
    /// The folder cannot be made or used.
    #[error("the data folder {} cannot be used: {source}; name another one or change its rights", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another server has it.
    #[error("another server uses the data folder {}; stop it or name another folder", .path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// Some other program's file.
    #[error("{} is no database of Bailiwick; name another data folder", .path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// Written by a newer release.
    #[error("the data is of schema {found}, this release knows {known}; use the newer release")]
    Newer {
        /// What the file says.
        found: u32,
        /// What we know.
        known: u32,
    },
    /// Written by a release whose schema had the same number and other content.
    #[error(
        "migration {number} of the data differs from this release's; use the release that made it"
    )]
    Changed {
        /// Which migration.
        number: u32,
    },
    /// The database is not whole any more.
    #[error(
        "the database {} is damaged: {source}; put a backup in its place or name another data \
         folder", .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What `SQLite` found.
        source: rusqlite::Error,
    },
    /// The database could not be read or written.
    #[error("the database in the data folder cannot be opened: {0}")]
    Database(#[from] rusqlite::Error),
    /// What is in the database cannot be right.
    #[error("the database in the data folder cannot be read: {0}")]
    Content(#[from] crate::storage::Error),
    /// No thread for it.
    #[error("a thread for the store could not be started: {0}")]
    Thread(#[source] io::Error),
}

impl OpenError {
    /// Names the file of a database that is damaged.
    pub(super) fn at(self, path: &Path) -> Self {
        let corrupt = Some(rusqlite::ErrorCode::DatabaseCorrupt);
        if let Self::Database(source) = self {
            if source.sqlite_error_code() == corrupt {
                Self::Damaged { path: path.to_owned(), source }
            } else {
                Self::Database(source)
            }
        } else {
            self
        }
    }
}

/// The kernel's lock on the folder; ends with the process.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// The data folder of a database file.
fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    }
}

/// Makes the folder when it is missing and locks it.
pub(super) fn lock(file: &Path) -> Result<Lock, OpenError> {
    let folder = folder_of(file);
    let failed = |source| OpenError::Folder { path: folder.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let file = private_file(&folder.join(LOCK_NAME)).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked { path: folder.to_owned() }),
        Err(errno) => Err(failed(errno.into())),
    }
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// The writer's connection, with the schema up to date.
pub(super) fn writer(path: &Path, now: Timestamp) -> Result<Connection, OpenError> {
    // The log's files take their rights from this one.
    private_file(path)
        .map_err(|source| OpenError::Folder { path: folder_of(path).to_owned(), source })?;
    let mut conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    tune(&conn, WRITER_CACHE_KIB).map_err(|error| not_ours(error, path))?;
    if is_empty(&conn).map_err(|error| not_ours(error, path))? {
        conn.pragma_update(None, "page_size", PAGE_BYTES)?;
        conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        conn.pragma_update(None, "application_id", schema::APPLICATION_ID)?;
    }
    let application: i32 = conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if application != schema::APPLICATION_ID {
        return Err(OpenError::NotOurs { path: path.to_owned() });
    }
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    // Checkpoints are the writer's own business.
    conn.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    schema::migrate(&mut conn, now)?;
    Ok(conn)
}

/// A connection that only reads.
pub(super) fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    tune(&conn, READER_CACHE_KIB)?;
    Ok(conn)
}

/// A connection for checkpoints beside the writer.
pub(super) fn checkpointer(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    tune(&conn, READER_CACHE_KIB)?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    Ok(conn)
}

fn tune(conn: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    // Without it a statement on a partial index is planned anew each time
    // that a parameter is bound.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    conn.pragma_update(None, "foreign_keys", false)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    conn.pragma_update(None, "cache_size", -cache_kib)
}

fn is_empty(conn: &Connection) -> rusqlite::Result<bool> {
    let pages: i64 = conn.pragma_query_value(None, "page_count", |row| row.get(0))?;
    Ok(pages == 0)
}

fn not_ours(error: rusqlite::Error, path: &Path) -> OpenError {
    if error.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) {
        OpenError::NotOurs { path: path.to_owned() }
    } else {
        error.into()
    }
}

/// What a start changes: the epoch rises, and the leases of earlier epochs
/// stay valid for the length of a lease, whatever the server missed.
pub(super) fn start(
    conn: &mut Connection,
    lease: Duration,
    now: Timestamp,
) -> rusqlite::Result<u32> {
    let transaction = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let epoch = transaction
        .query_row("UPDATE store SET epoch = epoch + 1 RETURNING epoch", [], |row| row.get(0))
        .optional()?
        .ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    transaction.execute(
        "UPDATE step INDEXED BY step_due SET orphaned = 1, expires_at = ?1, due_at = ?1 \
         WHERE due_at IS NOT NULL AND state = 3",
        [now.plus(lease).micros()],
    )?;
    transaction.commit()?;
    Ok(epoch)
}
