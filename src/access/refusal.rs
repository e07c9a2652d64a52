//! How the gate, and every use case, says no. Knows no transport:
//! `grpc/status.rs` renders it.

use std::{fmt, time::Duration};

use super::limits::RateState;
use crate::domain::Permission;
pub use crate::{authn::Unauthenticated, pb::v1::Reason};

/// A reason as it is shown and recorded.
#[must_use]
pub fn reason_name(reason: Reason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("REASON_").unwrap_or(name)
}

/// The kinds of refusal, by what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bring a credential, or a good one: 401.
    Unauthenticated,
    /// Known but not allowed: 403.
    Forbidden,
    /// Not there, or hidden: 404.
    NotFound,
    /// The method or path does not exist.
    UnknownMethod,
    /// The request is wrong: 400.
    Invalid,
    /// It exists with other content: 409.
    Conflict,
    /// The state does not allow it: 400.
    Precondition,
    /// Too many calls: 429.
    TooMany,
    /// Try again later: 503.
    Unavailable,
    /// It took too long: 504.
    Deadline,
    /// Our own fault: 500.
    Internal,
}

impl Unauthenticated {
    /// The stable reason.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Missing => Reason::CredentialsMissing,
            Self::Invalid => Reason::CredentialsInvalid,
            Self::Expired => Reason::CredentialsExpired,
            Self::Revoked => Reason::CredentialsRevoked,
            Self::NotYetValid => Reason::CredentialsNotYetValid,
            Self::Ambiguous => Reason::CredentialsAmbiguous,
            Self::UsedUp => Reason::CredentialsUsedUp,
        }
    }

    const fn message(self) -> &'static str {
        match self {
            Self::Missing => "Missing authentication credentials",
            Self::Invalid => "Invalid authentication credentials",
            Self::Expired => "The credential has expired; get a new one",
            Self::Revoked => "The credential has been revoked",
            Self::NotYetValid => "The credential is not valid yet",
            Self::Ambiguous => "Send one credential, once",
            Self::UsedUp => "The credential has been used as often as it may",
        }
    }
}

/// A refusal: a public text with a stable reason; detail for the log is apart.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The kind.
    pub kind: Kind,
    /// The stable reason.
    pub reason: Reason,
    /// For the caller: what is wrong and what to do.
    pub message: String,
    /// The fields that are wrong, and what is wrong with each.
    pub fields: Vec<(String, String)>,
    /// The permission that is missing.
    pub permission: Option<Permission>,
    /// When another try makes sense.
    pub retry_after: Option<Duration>,
    /// What the caller may still call, where the gate knows.
    pub rate: Option<RateState>,
    /// For the log alone, never sent.
    pub detail: Option<String>,
}

impl Refusal {
    /// A refusal of a kind with its reason and public text.
    pub fn new(kind: Kind, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            kind,
            reason,
            message: message.into(),
            fields: Vec::new(),
            permission: None,
            retry_after: None,
            rate: None,
            detail: None,
        }
    }

    /// No credential, or a bad one.
    #[must_use]
    pub fn unauthenticated(why: Unauthenticated) -> Self {
        Self::new(Kind::Unauthenticated, why.reason(), why.message())
    }

    /// Known, but the permission is missing.
    #[must_use]
    pub fn permission_missing(permission: Permission) -> Self {
        Self {
            permission: Some(permission),
            ..Self::new(
                Kind::Forbidden,
                Reason::PermissionMissing,
                format!("Missing required permission: {permission}"),
            )
        }
    }

    /// Known, but not root.
    #[must_use]
    pub fn root_required() -> Self {
        Self::new(
            Kind::Forbidden,
            Reason::RootRequired,
            "Only root may do this: a configured API key with `*` in every namespace",
        )
    }

    /// The namespace is outside the caller's scope, or does not exist.
    #[must_use]
    pub fn namespace_not_found(text: &str) -> Self {
        Self::new(Kind::NotFound, Reason::NamespaceNotFound, format!("namespace not found: {text}"))
    }

    /// An object is hidden or absent; both read alike (SE-10).
    #[must_use]
    pub fn not_found(what: &str, id: &str) -> Self {
        Self::new(Kind::NotFound, Reason::NotFound, format!("{what} not found: {id}"))
    }

    /// A field of the request is wrong.
    pub fn invalid(reason: Reason, field: &str, what: impl fmt::Display) -> Self {
        Self {
            fields: vec![(field.to_owned(), what.to_string())],
            ..Self::new(Kind::Invalid, reason, format!("{field}: {what}"))
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}
