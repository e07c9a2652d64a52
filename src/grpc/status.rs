//! How every error and refusal is rendered: the only place where a
//! `tonic::Status` is made. What a caller may read goes out with a stable
//! reason and the request's id; the cause stays in the log.
//!
//! Not here: what HTTP makes of a status (`gateway/status.rs`).

use std::{collections::HashMap, fmt::Write as _, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub use crate::access::reason_name;
use crate::{
    access::{Kind, Reason, Refusal},
    admin, audit,
    domain::{RequestId, audit::Outcome, template::Finding},
    engine, schedule,
};

/// The domain of every reason.
pub const DOMAIN: &str = "bailiwick";
/// The longest message, in bytes. Statuses travel in HTTP/2 headers, of which
/// some clients take 8 KiB in all.
const MESSAGE_BYTES_MAX: usize = 512;
/// How many bytes the violations of fields have together; see above.
const VIOLATIONS_BYTES_MAX: usize = 2048;
/// The longest text of a caller's that an answer repeats, in bytes.
const ECHO_BYTES_MAX: usize = 256;
/// When another try makes sense after the store could not take a change.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a call has no answer: refused on the way in, or by its use case.
#[derive(Debug)]
pub enum Error {
    /// Refused before the use case.
    Refused(Refusal),
    /// The use case did not happen.
    Failed(engine::Error),
    /// Nor did one about jobs and rules.
    Unscheduled(schedule::Error),
    /// Nor did one about tokens: their file cannot be changed.
    TokenFile(String),
    /// Nor did one about signing keys: what encrypts them cannot be used.
    SigningKeys(String),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<engine::Error> for Error {
    fn from(error: engine::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<schedule::Error> for Error {
    fn from(error: schedule::Error) -> Self {
        Self::Unscheduled(error)
    }
}

impl From<admin::Error> for Error {
    fn from(error: admin::Error) -> Self {
        match error {
            admin::Error::Refused(refusal) => Self::Refused(refusal),
            admin::Error::Storage(error) => Self::Failed(error.into()),
            admin::Error::TokenFile(error) => Self::TokenFile(error.to_string()),
            admin::Error::Signing(error) => Self::SigningKeys(error.to_string()),
        }
    }
}

impl From<audit::Error> for Error {
    fn from(error: audit::Error) -> Self {
        match error {
            audit::Error::OutsideScope(name) => Refusal::namespace_not_found(&name).into(),
            audit::Error::FieldInvalid { field, message } => {
                Refusal::invalid(Reason::FieldInvalid, field, message).into()
            }
            audit::Error::Storage(error) => Self::Failed(error.into()),
            audit::Error::LetGo => {
                let message = "Old records were let go meanwhile; begin again";
                Refusal::new(Kind::Unavailable, Reason::StorageUnavailable, message).into()
            }
            audit::Error::Damaged(error) => Refusal {
                detail: Some(error.to_string()),
                ..Refusal::new(Kind::Internal, Reason::Internal, "The audit is damaged")
            }
            .into(),
        }
    }
}

impl Error {
    /// The code, the reason and the public text, as a stream reports them
    /// message by message. Logs what must not be sent.
    #[must_use]
    pub fn brief(self, request: Option<RequestId>) -> (Code, Reason, String) {
        let public = self.public(request);
        (public.code, public.reason, public.message)
    }

    /// The status. Logs what must not be sent.
    #[must_use]
    pub fn status(self, request: Option<RequestId>) -> Status {
        self.public(request).status(request)
    }

    /// What the audit says about it, and the status. Logs what must not be
    /// sent.
    #[must_use]
    pub fn verdict(self, request: Option<RequestId>) -> (Outcome, Reason, Status) {
        let public = self.public(request);
        let denied =
            matches!(public.code, Code::Unauthenticated | Code::PermissionDenied | Code::NotFound);
        let outcome = if denied { Outcome::Denied } else { Outcome::Failed };
        (outcome, public.reason, public.status(request))
    }

    fn public(self, request: Option<RequestId>) -> Public {
        match self {
            Self::Refused(refusal) => Public::refused(refusal, request),
            Self::Failed(error) => Public::failed(error, request),
            Self::Unscheduled(error) => Public::unscheduled(error, request),
            Self::TokenFile(error) => Public::not_in_file(&error, request),
            Self::SigningKeys(error) => Public::unsigned(&error, request),
        }
    }
}

/// What a caller may read of an error.
#[derive(Debug)]
struct Public {
    code: Code,
    reason: Reason,
    message: String,
    permission: Option<&'static str>,
    fields: Vec<(String, String)>,
    precondition: Option<&'static str>,
    resource: Option<(&'static str, String)>,
    retry_after: Option<Duration>,
}

impl Public {
    fn new(code: Code, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: bounded(message.into(), MESSAGE_BYTES_MAX),
            permission: None,
            fields: Vec::new(),
            precondition: None,
            resource: None,
            retry_after: None,
        }
    }

    fn invalid(reason: Reason, message: impl Into<String>, field: &str, what: String) -> Self {
        let fields = vec![(field.to_owned(), what)];
        Self { fields, ..Self::new(Code::InvalidArgument, reason, message) }
    }

    /// Hidden and absent alike (SE-10): nothing here may depend on which.
    fn absent(kind: &'static str, name: &str) -> Self {
        let name = bounded(name.to_owned(), ECHO_BYTES_MAX);
        let message = if name.is_empty() {
            format!("{kind} not found")
        } else {
            format!("{kind} not found: {name}")
        };
        Self {
            resource: Some((kind, name)),
            ..Self::new(Code::NotFound, Reason::NotFound, message)
        }
    }

    fn exists(reason: Reason, message: String, kind: &'static str, name: &str) -> Self {
        let resource = Some((kind, bounded(name.to_owned(), ECHO_BYTES_MAX)));
        Self { resource, ..Self::new(Code::AlreadyExists, reason, message) }
    }

    fn precondition(reason: Reason, message: String, subject: &'static str) -> Self {
        let precondition = Some(subject);
        Self { precondition, ..Self::new(Code::FailedPrecondition, reason, message) }
    }

    fn again(reason: Reason, message: impl Into<String>) -> Self {
        let retry_after = Some(RETRY_AFTER);
        Self { retry_after, ..Self::new(Code::Unavailable, reason, message) }
    }

    fn refused(refusal: Refusal, request: Option<RequestId>) -> Self {
        if let Some(detail) = &refusal.detail {
            tracing::warn!(
                request_id = request.map(tracing::field::display),
                reason = reason_name(refusal.reason),
                detail,
                "refused"
            );
        }
        Self {
            permission: refusal.permission.map(crate::domain::Permission::name),
            fields: refusal.fields,
            precondition: (refusal.kind == Kind::Precondition).then_some("request"),
            retry_after: refusal.retry_after,
            ..Self::new(code(refusal.kind), refusal.reason, refusal.message)
        }
    }

    fn failed(error: engine::Error, request: Option<RequestId>) -> Self {
        use engine::Error;
        let message = error.to_string();
        match error {
            Error::NamespaceNotFound(name) => {
                Self::refused(Refusal::namespace_not_found(&name), request)
            }
            Error::TaskNotFound(id) => Self::absent("task", &id),
            Error::StepNotFound(id) => Self::absent("step", &id),
            Error::TemplateNotFound(name) => Self::absent("template", &name),
            Error::LeaseNotFound => Self::absent("lease", ""),
            Error::TemplateInvalid(findings) => Self {
                fields: findings.into_iter().map(violation).collect(),
                ..Self::new(Code::InvalidArgument, Reason::TemplateInvalid, message)
            },
            Error::RightMissing { permission, .. } => Self {
                permission: Some(permission.name()),
                ..Self::new(Code::PermissionDenied, Reason::PermissionMissing, message)
            },
            Error::SpawnRefused(_) => {
                Self::new(Code::PermissionDenied, Reason::PermissionMissing, message)
            }
            Error::TemplateExists(name) => {
                Self::exists(Reason::TemplateExists, message, "template", &name)
            }
            Error::ContextInvalid(faults) => Self {
                fields: faults.into_iter().map(|fault| ("context".to_owned(), fault)).collect(),
                ..Self::new(Code::InvalidArgument, Reason::ContextInvalid, message)
            },
            Error::PayloadInvalid { field, source } => {
                Self::invalid(Reason::PayloadInvalid, message, field, source.to_string())
            }
            Error::FieldInvalid { field, message: what } => {
                Self::invalid(Reason::FieldInvalid, message, field, what)
            }
            Error::PageToken => {
                let what = "not for this query; begin without one".to_owned();
                Self::invalid(Reason::PageTokenInvalid, message, "page_token", what)
            }
            Error::IdempotencyConflict => {
                Self::exists(Reason::IdempotencyConflict, message, "task", "")
            }
            Error::LeaseLost => Self::precondition(Reason::LeaseLost, message, "lease"),
            Error::TaskFinal(_) => Self::precondition(Reason::TaskFinal, message, "task"),
            Error::StepState(_) => Self::precondition(Reason::StepState, message, "step"),
            Error::ShuttingDown => Self::again(Reason::ShuttingDown, message),
            Error::Storage(error) => Self::unstored(&error, request),
        }
    }

    fn unscheduled(error: schedule::Error, request: Option<RequestId>) -> Self {
        use schedule::Error;
        let message = error.to_string();
        match error {
            Error::OutsideScope(name) => {
                Self::refused(Refusal::namespace_not_found(&name), request)
            }
            Error::JobNotFound(id) => Self::absent("job", &id),
            Error::RuleNotFound(id) => Self::absent("rule", &id),
            Error::FieldInvalid { field, message: what } => {
                Self::invalid(Reason::FieldInvalid, message, field, what)
            }
            Error::RunnerDisabled(_) => {
                Self::precondition(Reason::RunnerDisabled, message, "runner")
            }
            Error::PermissionMissing(permission) => {
                Self::refused(Refusal::permission_missing(permission), request)
            }
            Error::PageToken => Self::failed(engine::Error::PageToken, request),
            Error::Storage(error) => Self::unstored(&error, request),
        }
    }

    fn unstored(error: &engine::StoreError, request: Option<RequestId>) -> Self {
        use engine::StoreError as Error;
        tracing::error!(
            request_id = request.map(tracing::field::display),
            error = chain(error),
            "the store failed"
        );
        match error {
            Error::Full(_) => Self::new(
                Code::ResourceExhausted,
                Reason::StorageFull,
                "The disk of the server's data folder is full; free room there and try again",
            ),
            Error::ReadOnly(_) => Self::again(
                Reason::StorageUnavailable,
                "The server's data folder is read-only; make it writable and try again",
            ),
            Error::Unavailable(_) => Self::again(
                Reason::StorageUnavailable,
                "The store cannot take the change now; try again",
            ),
            Error::Broken(_) => Self::internal(),
        }
    }

    fn not_in_file(error: &str, request: Option<RequestId>) -> Self {
        tracing::error!(
            request_id = request.map(tracing::field::display),
            error,
            "the token file could not be changed"
        );
        let message = "The server cannot change its token file; its log says why under the \
                       request id";
        Self::new(Code::Internal, Reason::Internal, message)
    }

    fn unsigned(error: &str, request: Option<RequestId>) -> Self {
        tracing::error!(
            request_id = request.map(tracing::field::display),
            error,
            "the signing keys cannot be used"
        );
        let message = "The server cannot use the key that encrypts its signing keys; its log says \
                       why under the request id";
        Self::new(Code::Internal, Reason::Internal, message)
    }

    fn internal() -> Self {
        Self::new(
            Code::Internal,
            Reason::Internal,
            "Internal error; the server's log says more under the request id",
        )
    }

    fn status(self, request: Option<RequestId>) -> Status {
        let mut details = ErrorDetails::new();
        let mut metadata = HashMap::new();
        if let Some(request) = request {
            let id = request.to_string();
            details.set_request_info(id.clone(), "");
            metadata.insert("request_id".to_owned(), id);
        }
        if let Some(permission) = self.permission {
            metadata.insert("permission".to_owned(), permission.to_owned());
        }
        let reason = reason_name(self.reason);
        details.set_error_info(reason, DOMAIN, metadata);
        add_violations(&mut details, self.fields);
        if let Some(subject) = self.precondition {
            details.add_precondition_failure_violation(reason, subject, self.message.as_str());
        }
        if let Some((kind, name)) = self.resource {
            details.set_resource_info(kind, name, "", self.message.as_str());
        }
        if self.retry_after.is_some() {
            details.set_retry_info(self.retry_after);
        }
        Status::with_error_details(self.code, self.message, details)
    }
}

/// A fault of the wiring: what the gate always puts there is not there.
pub(super) fn no_caller() -> Status {
    tracing::error!("a call reached its service without a caller: a route is not behind the gate");
    Public::internal().status(None)
}

/// A worker's stream did what its protocol does not allow.
pub(super) fn protocol(what: &str) -> Error {
    Error::Refused(Refusal::new(Kind::Invalid, Reason::StreamProtocol, what))
}

/// Renders what tonic itself answers, when it cannot read a message or finds
/// no method, as our own errors are. A status with details is ours already.
#[must_use]
pub fn transport(status: Status, request: Option<RequestId>) -> Status {
    match unreadable(&status) {
        Some(error) if status.details().is_empty() => error.status(request),
        _ => status,
    }
}

/// What tonic means by its own statuses; none for one that needs no words of
/// ours, as when the client went away.
pub(super) fn unreadable(status: &Status) -> Option<Error> {
    let (code, message) = (status.code(), status.message());
    // A frame over the limit, as it came or after it was decompressed.
    let too_large = code == Code::OutOfRange
        || code == Code::ResourceExhausted && message.starts_with("Error decompressing");
    let refusal = if too_large {
        let message = "The message is over the limit of this server";
        Refusal::new(Kind::Invalid, Reason::BodyTooLarge, message)
    } else if code == Code::Internal {
        // A frame or a protobuf message that cannot be read: every other
        // fault of the server's own is rendered here, with details.
        let public = "The message cannot be read as its type";
        Refusal {
            detail: Some(bounded(message.to_owned(), ECHO_BYTES_MAX)),
            ..Refusal::new(Kind::Invalid, Reason::RequestMalformed, public)
        }
    } else if code == Code::Unimplemented && message.is_empty() {
        Refusal::new(Kind::UnknownMethod, Reason::UnknownMethod, "No such method")
    } else if code == Code::Unimplemented {
        // A compression that is not known.
        Refusal::new(Kind::UnknownMethod, Reason::RequestMalformed, message)
    } else {
        return None;
    };
    Some(Error::Refused(refusal))
}

/// gRPC's code for a kind of refusal.
#[must_use]
pub const fn code(kind: Kind) -> Code {
    match kind {
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::Forbidden => Code::PermissionDenied,
        Kind::NotFound => Code::NotFound,
        Kind::UnknownMethod => Code::Unimplemented,
        Kind::Invalid => Code::InvalidArgument,
        Kind::Conflict => Code::AlreadyExists,
        Kind::Precondition => Code::FailedPrecondition,
        Kind::TooMany => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::Deadline => Code::DeadlineExceeded,
        Kind::Internal => Code::Internal,
    }
}

fn violation(finding: Finding) -> (String, String) {
    let Finding { message, line, column, path } = finding;
    match line {
        0 => (path, message),
        _ => (path, format!("line {line}, column {column}: {message}")),
    }
}

fn add_violations(details: &mut ErrorDetails, fields: Vec<(String, String)>) {
    let (mut bytes, mut left_out) = (0, 0_usize);
    for (field, what) in fields {
        bytes += field.len() + what.len();
        // At least the first one, as far as it fits.
        if bytes <= VIOLATIONS_BYTES_MAX {
            details.add_bad_request_violation(field, what);
        } else if !details.has_bad_request_violations() {
            details.add_bad_request_violation(
                bounded(field, ECHO_BYTES_MAX),
                bounded(what, MESSAGE_BYTES_MAX),
            );
        } else {
            left_out += 1;
        }
    }
    if left_out > 0 {
        details.add_bad_request_violation("", format!("and {left_out} more"));
    }
}

/// At most so many bytes, cut between characters.
fn bounded(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// An error with its causes, for the log alone.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
