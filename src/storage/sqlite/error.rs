//! What a failure of `SQLite` means for a caller.

use rusqlite::{ErrorCode, ffi};
use thiserror::Error as ThisError;

use crate::storage::Error;

/// A row that cannot be right.
#[derive(Debug, ThisError)]
#[error("{0} on disk cannot be read")]
struct Damaged(&'static str);

pub(super) fn damaged(what: &'static str) -> Error {
    Error::Broken(Box::new(Damaged(what)))
}

/// Why an operation was not done, for the log.
#[derive(Debug, ThisError)]
#[error("{0}")]
struct Told(String);

pub(super) fn broken(why: impl Into<String>) -> Error {
    Error::Broken(Box::new(Told(why.into())))
}

pub(super) fn unavailable(why: impl Into<String>) -> Error {
    Error::Unavailable(Box::new(Told(why.into())))
}

/// The same failure for another caller of the same batch.
pub(super) fn same(error: &Error) -> Error {
    let (make, source): (fn(_) -> Error, _) = match error {
        Error::Full(source) => (Error::Full, source),
        Error::ReadOnly(source) => (Error::ReadOnly, source),
        Error::Unavailable(source) => (Error::Unavailable, source),
        Error::Broken(source) => (Error::Broken, source),
    };
    make(Box::new(Told(source.to_string())))
}

/// Whether the store as a whole cannot write now, so that trying each
/// operation alone would not help.
pub(super) fn is_of_the_store(error: &Error) -> bool {
    match error {
        Error::Full(_) | Error::ReadOnly(_) | Error::Unavailable(_) => true,
        Error::Broken(_) => false,
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        // A full disk shows here when the index of the log cannot grow.
        if error.sqlite_extended_error_code() == Some(ffi::SQLITE_IOERR_SHMSIZE) {
            return Self::Full(Box::new(error));
        }
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full(Box::new(error)),
            Some(ErrorCode::ReadOnly) => Self::ReadOnly(Box::new(error)),
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::OutOfMemory
                | ErrorCode::OperationInterrupted,
            ) => Self::Unavailable(Box::new(error)),
            Some(_) | None => Self::Broken(Box::new(error)),
        }
    }
}
