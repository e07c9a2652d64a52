//! What a command ends with: the exit code says what a script can do about it.

use std::process::ExitCode;

use thiserror::Error as ThisError;

/// Why a command failed.
#[derive(Debug, ThisError)]
pub(crate) enum Error {
    /// The server answered no; exit 1.
    #[error(transparent)]
    Client(#[from] bailiwick_client::Error),
    /// What was asked for did not come out well; exit 1.
    #[error("{0}")]
    Failed(String),
    /// The command line or a file named on it is wrong; exit 2.
    #[error("{0}")]
    Usage(String),
    /// Standard output went away; nobody is left to tell.
    #[error("standard output: {0}")]
    Output(#[from] std::io::Error),
}

impl Error {
    /// 0 done, 1 refused or not found, 2 wrong usage, 3 server unreachable.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Client(bailiwick_client::Error::Unreachable { .. }) => ExitCode::from(3),
            Self::Client(bailiwick_client::Error::Setting(_)) | Self::Usage(_) => ExitCode::from(2),
            Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                ExitCode::SUCCESS
            }
            Self::Client(_) | Self::Failed(_) | Self::Output(_) => ExitCode::from(1),
        }
    }

    /// What to do next, where a line more helps.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Client(bailiwick_client::Error::Unreachable { .. }) => Some(
                "is the server running? `bailiwick serve` starts one; --url or BAILIWICK_URL says where it is",
            ),
            Self::Client(error) => match error.reason() {
                Some("CREDENTIALS_MISSING") => {
                    Some("give --token-file, or set BAILIWICK_AUTH_TOKEN or BAILIWICK_API_KEY")
                }
                Some("CREDENTIALS_EXPIRED") => {
                    Some("`bailiwick auth generate-token` makes a new one")
                }
                Some("PERMISSION_MISSING") => Some("`bailiwick auth whoami` shows what you hold"),
                _ => None,
            },
            Self::Failed(_) | Self::Usage(_) | Self::Output(_) => None,
        }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Client(status.into())
    }
}

pub(crate) type Result<T = ()> = std::result::Result<T, Error>;
