//! Credentials that the server itself gave out: minted tokens and API keys.
//! A digest is all that is kept of a secret.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Result, fmt};
use crate::domain::{Permission, Timestamp, history::Stamp, principal::Identity};

/// What a credential was given out as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// A minted token, which root manages.
    Token,
    /// An API key, which administrators of keys manage.
    ApiKey,
    /// A token that a caller traded for its own credential; ends with it.
    Exchanged,
}

impl CredentialKind {
    /// As it is kept and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::ApiKey => "api_key",
            Self::Exchanged => "exchanged",
        }
    }
}

/// A credential as it is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct CredentialRecord {
    /// Its public id.
    pub id: Arc<str>,
    /// The SHA-256 of the secret.
    pub digest: [u8; 32],
    /// What it is.
    pub kind: CredentialKind,
    /// What it is called.
    pub name: Option<String>,
    /// The permissions as they were written.
    pub scopes: Vec<String>,
    /// Where they hold, as it was written; `*` is everything.
    pub namespaces: Vec<String>,
    /// The networks that it may be used from; all when empty.
    pub networks: Vec<String>,
    /// Who made it.
    pub created_by: Identity,
    /// By which credential.
    pub created_with: Arc<str>,
    /// When.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// How many calls it opens.
    pub max_uses: Option<u32>,
    /// How many it has opened, where they are counted.
    pub uses: u32,
    /// The token that it descends from.
    pub parent: Option<Arc<str>>,
    /// The id of the first token of its line of rotations.
    pub family: Arc<str>,
    /// The lines of rotations that it descends from: its parent's, its
    /// maker's, and theirs. They stand here though those may be gone.
    pub descent: Vec<Arc<str>>,
    /// When it was taken back.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used.
    pub last_used_at: Option<Timestamp>,
}

impl CredentialRecord {
    /// What the audit says of one that is given out, in the place of another
    /// one: all that it may, and nothing by which it could be used.
    #[must_use]
    pub fn given_out(&self, replaces: Option<&str>) -> serde_json::Value {
        serde_json::json!({
            "change": if replaces.is_some() { "rotated" } else { "given out" },
            "kind": self.kind.as_str(),
            "scopes": self.scopes,
            "namespaces": self.namespaces,
            "networks": self.networks,
            "expires_at": self.expires_at.map(Timestamp::seconds),
            "max_uses": self.max_uses,
            "parent": self.parent.as_deref(),
            "replaces": replaces,
        })
    }
}

impl fmt::Debug for CredentialRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CredentialRecord({} {})", self.kind.as_str(), self.id)
    }
}

/// When the credentials of a line of rotations last exercised a permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermissionUse {
    /// The line.
    pub family: Arc<str>,
    /// The permission.
    pub permission: Permission,
    /// When.
    pub at: Timestamp,
}

/// A batch of last uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastUses {
    /// Of credentials, by their ids.
    pub credentials: Vec<(Arc<str>, Timestamp)>,
    /// Of permissions.
    pub permissions: Vec<PermissionUse>,
}

/// JWTs that are taken back: those of an issuer, or of one of its subjects,
/// that were issued until a moment (SE-47).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Recall {
    /// The issuer.
    pub issuer: String,
    /// The subject; none is every one.
    pub subject: Option<String>,
    /// Until when.
    pub until: Timestamp,
}

/// Credentials.
#[async_trait]
pub trait CredentialStore: Send + Sync {
    /// Keeps a new one; answers how many uses it has had, none when its id or
    /// digest is taken. With a predecessor, that one ends at the given moment
    /// in the same step, and its uses are taken over.
    async fn add_credential(
        &self,
        record: CredentialRecord,
        replaces: Option<(Arc<str>, Timestamp)>,
        stamp: &Stamp,
    ) -> Result<Option<u32>>;

    /// All of them, also those that were taken back.
    async fn credentials(&self) -> Result<Vec<CredentialRecord>>;

    /// Takes these back; those that were before keep their moment.
    async fn revoke_credentials(
        &self,
        ids: &[Arc<str>],
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<()>;

    /// Removes one, and its uses with the last of its line; false when it is
    /// not there.
    async fn delete_credential(&self, id: &str, stamp: &Stamp, now: Timestamp) -> Result<bool>;

    /// Counts one use; false when it has none left, is revoked, over by `now`
    /// or unknown.
    async fn use_credential(&self, id: &str, now: Timestamp) -> Result<bool>;

    /// Writes down when credentials were last used, and for what. A moment
    /// only moves on; what belongs to no credential is dropped.
    async fn credentials_used(&self, uses: LastUses) -> Result<()>;

    /// When each permission was last exercised.
    async fn permission_uses(&self) -> Result<Vec<PermissionUse>>;

    /// Takes JWTs back; an earlier recall of the same is moved on.
    async fn recall(&self, recall: &Recall, stamp: &Stamp) -> Result<()>;

    /// Every recall.
    async fn recalls(&self) -> Result<Vec<Recall>>;
}
