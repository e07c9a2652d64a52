//! What a command ends with: the exit code says what a script can do about it.

use std::{borrow::Cow, process::ExitCode};

use bailiwick_client::Refusal;
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
    pub(crate) fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Client(bailiwick_client::Error::Unreachable { reason, .. }) => {
                Some(unreachable(reason).into())
            }
            Self::Client(bailiwick_client::Error::Refused(refusal)) => refused(refusal),
            Self::Client(_) | Self::Failed(_) | Self::Usage(_) | Self::Output(_) => None,
        }
    }
}

/// What an unreachable server's reason, as TLS and HTTP/2 word it, calls for.
fn unreachable(reason: &str) -> &'static str {
    // A refused connection or a name that is not found says none of these.
    let says = |parts: &[&str]| parts.iter().any(|part| reason.contains(part));
    if says(&["UnknownIssuer", "BadSignature"]) {
        "no authority that is trusted here made the server's certificate; --tls-ca or BAILIWICK_TLS_CA names the authority's file"
    } else if says(&["invalid peer certificate"]) {
        "the server runs, but its certificate does not fit: --url must name the server as the certificate does, and the certificate must be valid now"
    } else if says(&["InvalidContentType", "corrupt message", "tls handshake eof"]) {
        "the server does not seem to speak TLS: then its url begins with http://"
    } else if says(&["closed", "broken pipe", "reset by peer", "connection reset", "canceled"]) {
        "the server ended the connection; when it speaks TLS, its url begins with https://"
    } else {
        "is the server running? `bailiwick serve` starts one; --url or BAILIWICK_URL says where it is"
    }
}

fn refused(refusal: &Refusal) -> Option<Cow<'static, str>> {
    match refusal.reason.as_deref() {
        Some("CREDENTIALS_MISSING") => {
            Some("give --token-file, or set BAILIWICK_AUTH_TOKEN or BAILIWICK_API_KEY".into())
        }
        Some("CREDENTIALS_EXPIRED") => Some(
            "for a JWT: `bailiwick auth generate-token`, or its issuer, makes a new one; for bwk_…: `bailiwick auth mint-token` or `auth api-key create`"
                .into(),
        ),
        Some("PERMISSION_MISSING" | "ROOT_REQUIRED" | "NOT_FOUND" | "NAMESPACE_NOT_FOUND") => {
            let id = refusal.request_id.as_ref()?;
            Some(format!("`bailiwick auth why-denied {id}` tells why, and what would help").into())
        }
        _ => {
            let wait = refusal.retry_after?;
            // Never too early.
            let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
            Some(format!("try again in {seconds} s").into())
        }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Client(status.into())
    }
}

pub(crate) type Result<T = ()> = std::result::Result<T, Error>;
