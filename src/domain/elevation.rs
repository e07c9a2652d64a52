//! More rights for a while: asked for with a reason, approved by somebody
//! else, over by themselves.
//!
//! Not here: who may approve (`admin`), and what a call gets of it (`authn`).

use std::sync::Arc;

use super::{Grant, Permission, PermissionSet, Scope, Timestamp, principal::Identity};

/// Where an elevation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElevationState {
    /// Nobody has decided yet.
    Pending,
    /// It was approved and is not over.
    Active,
    /// Somebody said no.
    Denied,
    /// It was taken back.
    Revoked,
    /// Its time is over, or nobody decided in time.
    Expired,
}

impl ElevationState {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Active, Self::Denied, Self::Revoked, Self::Expired];

    /// As it is kept.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Denied => "denied",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }

    /// From how it is kept.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A request for more rights, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elevation {
    /// Its id.
    pub id: Arc<str>,
    /// Who asks, and gets it.
    pub requester: Identity,
    /// The public id of the credential that asked.
    pub requested_with: Arc<str>,
    /// The permissions.
    pub permissions: Vec<Permission>,
    /// Where they hold, as it was written: a namespace or a prefix.
    pub namespace: String,
    /// For how many seconds.
    pub seconds: u32,
    /// Why, in the requester's words.
    pub reason: String,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// Where it stands.
    pub state: ElevationState,
    /// Who approved or denied it.
    pub decided_by: Option<Identity>,
    /// When.
    pub decided_at: Option<Timestamp>,
    /// Until when it holds, once it is approved.
    pub until: Option<Timestamp>,
    /// When it came to its end.
    pub ended_at: Option<Timestamp>,
}

impl Elevation {
    /// Where the permissions hold; nowhere when that cannot be read any more.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope::parse(&[&self.namespace]).unwrap_or(Scope::NOWHERE)
    }

    /// What it gives while it is active.
    #[must_use]
    pub fn grant(&self) -> Grant {
        let mut permissions = PermissionSet::empty();
        for permission in &self.permissions {
            permissions.add(permission.name(), &std::collections::BTreeSet::new());
        }
        Grant { permissions, scope: self.scope() }
    }
}
