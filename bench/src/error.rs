//! Why a measurement failed.

use std::path::PathBuf;

use thiserror::Error as ThisError;

/// Why a measurement failed.
#[derive(Debug, ThisError)]
pub(crate) enum Error {
    /// A file or a socket.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A call was refused.
    #[error("{what}: {} ({:?})", .status.message(), .status.code())]
    Call {
        /// Which call.
        what: &'static str,
        /// The answer.
        status: Box<tonic::Status>,
    },
    /// The client library.
    #[error(transparent)]
    Client(#[from] bailiwick_client::Error),
    /// The client's side of HTTP.
    #[error("http: {0}")]
    Http(#[from] hyper::Error),
    /// A process that did not come up or go down.
    #[error("{what}; its log is {}", .log.display())]
    Process {
        /// What happened.
        what: String,
        /// Where its log is.
        log: PathBuf,
    },
    /// An answer that does not say that the work is done.
    #[error("{0}")]
    Wrong(String),
}

/// What every measurement answers with.
pub(crate) type Result<T = (), E = Error> = std::result::Result<T, E>;

/// Says what was tried when a file or a socket fails.
pub(crate) trait Tried<T> {
    /// Adds it.
    fn tried(self, what: impl Into<String>) -> Result<T>;
}

impl<T> Tried<T> for std::io::Result<T> {
    fn tried(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Io { what: what.into(), source })
    }
}

/// Says which call was refused.
pub(crate) fn refused(what: &'static str) -> impl FnOnce(tonic::Status) -> Error {
    move |status| Error::Call { what, status: Box::new(status) }
}

/// An answer that is not what it must be.
pub(crate) fn wrong(what: impl Into<String>) -> Error {
    Error::Wrong(what.into())
}
