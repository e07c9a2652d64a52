//! What can go wrong with a call, sorted by what the caller can do about it.

use std::{collections::BTreeMap, error::Error as StdError, fmt, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// What a call of the client ends with when it does not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting of the client cannot be used: correct it.
    #[error("{0}")]
    Setting(String),
    /// No server answered: look whether it runs and whether the url is right.
    #[error("the server cannot be reached: {reason}")]
    Unreachable {
        /// The innermost cause, in words.
        reason: String,
        /// The error behind it.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The server answered, and refused.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The server broke the protocol, which no setting can cure.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
}

/// A refusal as the server states it.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// gRPC's code.
    pub code: Code,
    /// The stable reason, as `PERMISSION_MISSING`, where the server names one.
    pub reason: Option<String>,
    /// What went wrong, for people.
    pub message: String,
    /// The id of the call in the server's logs.
    pub request_id: Option<String>,
    /// When it makes sense to try again.
    pub retry_after: Option<Duration>,
    /// The faults of single fields.
    pub fields: Vec<FieldFault>,
    /// What else the server says, by name.
    pub details: BTreeMap<String, String>,
}

/// What is wrong with one field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldFault {
    /// The path of the field.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

impl FieldFault {
    /// Whether a message names the field and its fault already.
    fn is_told_by(&self, message: &str) -> bool {
        let Self { field, description } = self;
        message.contains(&format!("{field}: {description}"))
            || message.contains(&format!("`{field}`")) && message.contains(description)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = if self.message.is_empty() { self.code.description() } else { &self.message };
        f.write_str(message)?;
        for fault in self.fields.iter().filter(|fault| !fault.is_told_by(message)) {
            match fault.field.as_str() {
                "" => write!(f, "; {}", fault.description)?,
                field => write!(f, "; {field}: {}", fault.description)?,
            }
        }
        match &self.reason {
            Some(reason) => write!(f, " ({reason}")?,
            None => write!(f, " ({:?}", self.code)?,
        }
        if let Some(id) = &self.request_id {
            write!(f, ", request {id}")?;
        }
        f.write_str(")")
    }
}

impl Error {
    pub(crate) fn unreachable(
        url: &str,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let reason = format!("{url}: {}", innermost(source.as_ref()));
        Self::Unreachable { reason, source }
    }

    /// gRPC's code of a refusal.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::Setting(_) | Self::Unreachable { .. } | Self::Protocol(_) => None,
        }
    }

    /// The stable reason of a refusal.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => refusal.reason.as_deref(),
            Self::Setting(_) | Self::Unreachable { .. } | Self::Protocol(_) => None,
        }
    }
}

impl From<Status> for Error {
    /// A status that this side made because the connection failed says that
    /// the server is out of reach; every other one is the server's refusal.
    fn from(status: Status) -> Self {
        if status.source().is_some() {
            let reason = innermost(&status);
            return Self::Unreachable { reason, source: Box::new(status) };
        }
        Self::Refused(Box::new(Refusal::from(&status)))
    }
}

impl From<&Status> for Refusal {
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let request_id = status
            .metadata()
            .get("x-request-id")
            .and_then(|id| id.to_str().ok())
            .map(str::to_owned)
            .or_else(|| details.request_info().map(|info| info.request_id.clone()))
            .or_else(|| info.and_then(|info| info.metadata.get("request_id").cloned()));
        let violations = details.bad_request().map(|bad| bad.field_violations.as_slice());
        Self {
            code: status.code(),
            reason: info.map(|info| info.reason.clone()),
            message: status.message().to_owned(),
            request_id,
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            fields: violations
                .unwrap_or_default()
                .iter()
                .map(|violation| FieldFault {
                    field: violation.field.clone(),
                    description: violation.description.clone(),
                })
                .collect(),
            details: info
                .map(|info| info.metadata.clone().into_iter().collect())
                .unwrap_or_default(),
        }
    }
}

/// The last error of the chain: "Connection refused", not "transport error".
pub(crate) fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_refusal_keeps_what_the_server_said() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info(
                "PERMISSION_MISSING",
                "bailiwick",
                HashMap::from([("permission".to_owned(), "tasks:create".to_owned())]),
            )
            .set_request_info("req-1", "")
            .set_retry_info(Some(Duration::from_secs(2)))
            .add_bad_request_violation("page_size", "at most 500");
        let status = Status::with_error_details(
            Code::PermissionDenied,
            "Missing required permission: tasks:create",
            details,
        );
        let error = Error::from(status);
        assert_eq!(error.code(), Some(Code::PermissionDenied));
        assert_eq!(error.reason(), Some("PERMISSION_MISSING"));
        assert_eq!(
            error.to_string(),
            "Missing required permission: tasks:create; page_size: at most 500 \
             (PERMISSION_MISSING, request req-1)"
        );
        let Error::Refused(refusal) = error else { panic!("not a refusal: {error}") };
        assert_eq!(refusal.details["permission"], "tasks:create");
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(2)));
    }

    #[test]
    fn a_fault_that_the_message_tells_is_told_once() {
        let shown = |message: &str, faults: &[(&str, &str)]| {
            let mut details = ErrorDetails::new();
            for (field, description) in faults {
                details.add_bad_request_violation(*field, *description);
            }
            let status = Status::with_error_details(Code::InvalidArgument, message, details);
            Error::from(status).to_string()
        };
        let fault = ("scopes", "`*` cannot be minted");
        assert_eq!(
            shown("scopes: `*` cannot be minted", &[fault]),
            "scopes: `*` cannot be minted (InvalidArgument)"
        );
        assert_eq!(
            shown(
                "scopes: `*` cannot be minted",
                &[fault, ("name", "too long"), ("", "and 3 more")]
            ),
            "scopes: `*` cannot be minted; name: too long; and 3 more (InvalidArgument)"
        );
        assert_eq!(
            shown(
                "the template is not valid",
                &[("steps[0]", "too long"), ("steps[1]", "too long")]
            ),
            "the template is not valid; steps[0]: too long; steps[1]: too long (InvalidArgument)"
        );
    }

    #[test]
    fn a_bare_status_is_a_refusal_too() {
        let error = Error::from(Status::not_found("no such task"));
        assert_eq!(error.to_string(), "no such task (NotFound)");
        assert_eq!(error.reason(), None);
    }
}
