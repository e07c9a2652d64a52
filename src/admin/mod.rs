//! Use cases about credentials: mint, list, revoke, rotate tokens, and the
//! life of API keys. What is on disk changes first, then what the gate sees.
//!
//! Not here: what a credential is worth in a call (`authn`), how secrets look
//! (`domain::secret`).

pub mod api_keys;
pub mod elevation;
pub mod exchange;
mod page;
pub mod signing_keys;
mod tighten;
mod token_file;
pub mod tokens;
mod uses;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::Arc,
};

use rand::Rng as _;
use thiserror::Error as ThisError;
use tokio::sync::{Mutex, MutexGuard};

pub use self::{
    page::{PageRequest, Paged},
    token_file::{FileTokens, Tokens, watch},
    uses::{Exercised, Uses, note_uses},
};
use crate::{
    access::{Caller, Reason, Refusal},
    authn::{ConfiguredKey, Issue, Issued, Recalls},
    domain::{
        Clock, Grant, PermissionSet, Timestamp,
        history::Stamp,
        principal::{Identity, Source},
        secret::Secret,
    },
    signing::{self, SigningKeys},
    storage::{self, CredentialRecord, Store},
};

/// How often another id is tried when one is taken (DK-49).
const TRIES: usize = 8;
/// The longest name of a credential, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// What the use cases work with.
#[derive(Debug)]
pub struct Admin {
    /// Where credentials are kept.
    pub store: Arc<dyn Store>,
    /// Where minted tokens are kept.
    pub tokens: Tokens,
    /// What the gate sees of them.
    pub issued: Arc<Issued>,
    /// What it sees of JWTs that were taken back.
    pub recalls: Arc<Recalls>,
    /// The keys that sign what the server vouches for.
    pub keys: Arc<SigningKeys>,
    /// The keys of the configuration, which are shown and not changed.
    pub configured: Vec<ConfiguredKey>,
    /// Permissions of other services.
    pub foreign: BTreeSet<Arc<str>>,
    /// What each role, as `role:NAME`, stands for when something is minted.
    pub roles: BTreeMap<String, Vec<String>>,
    /// After how many days without use a credential is revoked.
    pub unused_after_days: Option<NonZeroU32>,
    /// The issuers whose JWTs are taken, with what these hold at most.
    pub issuers: BTreeMap<Arc<str>, Grant>,
    /// Whether API keys are taken.
    pub api_keys_enabled: bool,
    /// Whether callers need credentials.
    pub auth_on: bool,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Disk and memory change in the same order.
    pub order: Mutex<()>,
}

/// Why a use case did not happen.
#[derive(Debug, ThisError)]
pub enum Error {
    /// Refused; says why.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The token file cannot be read or written; nothing has changed.
    #[error(transparent)]
    TokenFile(#[from] storage::token_file::Error),
    /// The signing keys cannot be used; nothing has changed.
    #[error("{0}")]
    Signing(signing::Error),
}

impl From<signing::Error> for Error {
    fn from(error: signing::Error) -> Self {
        match error {
            signing::Error::Storage(error) => Self::Storage(error),
            error @ (signing::Error::Missing(_)
            | signing::Error::Wrong { .. }
            | signing::Error::Exposed { .. }
            | signing::Error::Within(_)
            | signing::Error::Content(_)
            | signing::Error::File { .. }
            | signing::Error::Damaged(_)
            | signing::Error::Library(_)) => Self::Signing(error),
        }
    }
}

type Result<T> = std::result::Result<T, Error>;

impl Admin {
    /// Takes up what the store and the token file hold; nothing is served
    /// before.
    pub async fn load(&self) -> Result<()> {
        let uses = self.store.permission_uses().await?;
        let records = self.backed(self.store.credentials().await?).await?;
        self.issued.load(self.counting(records), &uses);
        for recall in self.store.recalls().await? {
            self.recalls.insert(recall);
        }
        if let Tokens::File(tokens) = &self.tokens {
            tokens.load(self).await?;
        }
        Ok(self.disable_unused().await?)
    }

    /// Whether the token file can be read; none where there is no such file.
    #[must_use]
    pub fn token_file_is_well(&self) -> Option<bool> {
        match &self.tokens {
            Tokens::Database => None,
            Tokens::File(tokens) => Some(tokens.is_well()),
        }
    }

    /// Without what anybody could make while auth was off (SE-40).
    fn counting(&self, mut records: Vec<CredentialRecord>) -> Vec<CredentialRecord> {
        let all = records.len();
        if self.auth_on {
            records.retain(|record| record.created_by.source != Source::Disabled);
        }
        let ignored = all - records.len();
        if ignored > 0 {
            tracing::warn!(ignored, "credentials that were made while auth was off do not count");
        }
        records
    }

    /// The caller's turn to change something. Its credential may have been
    /// taken back while it waited: what comes after that must not count.
    async fn turn(&self, caller: &Caller) -> Result<MutexGuard<'_, ()>> {
        let turn = self.order.lock().await;
        caller.still_valid()?;
        Ok(turn)
    }

    /// The lines of rotations behind a credential, its own one last.
    fn descent(&self, id: &str) -> Vec<Arc<str>> {
        let line = |issue: Arc<Issue>| {
            let record = &issue.record;
            record.descent.iter().chain([&record.family]).cloned().collect()
        };
        self.issued.get(id).map(line).unwrap_or_default()
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Keeps a new credential under a fresh secret. `record` gets its id,
    /// digest and, when it begins a line of its own, its family from it.
    async fn issue(
        &self,
        mut record: CredentialRecord,
        replaces: Option<(Arc<str>, Timestamp)>,
        stamp: &Stamp,
    ) -> Result<(Secret, CredentialRecord)> {
        let begins = record.family.is_empty();
        for _ in 0..TRIES {
            let (id, bytes): (u64, [u8; 32]) = rand::rng().random();
            let secret = Secret::new(id, &bytes);
            record.id = secret.id();
            record.digest = secret.digest();
            if begins {
                record.family = Arc::clone(&record.id);
            }
            let added = self.store.add_credential(record.clone(), replaces.clone(), stamp).await?;
            if let Some(uses) = added {
                record.uses = uses;
                self.issued.insert(record.clone());
                return Ok((secret, record));
            }
        }
        Err(Error::Storage(storage::Error::Unavailable("no free id was found".into())))
    }

    /// Names without repetitions, with the permissions of a role in the place
    /// of its name: what is given out keeps them when the role changes.
    fn expanded(&self, names: Vec<String>) -> Vec<String> {
        let expand = |name: String| self.roles.get(&name).cloned().unwrap_or_else(|| vec![name]);
        distinct(distinct(names).into_iter().flat_map(expand).collect())
    }

    /// The permissions of these names, each of which must be known.
    fn permissions(&self, scopes: &[String]) -> Result<PermissionSet> {
        let mut permissions = PermissionSet::empty();
        for name in scopes {
            if !permissions.add(name, &self.foreign) {
                let kind = if name.starts_with("role:") { "role" } else { "permission" };
                let name: String = name.chars().take(80).flat_map(char::escape_default).collect();
                let what =
                    format!("`{name}` is no {kind}; `bailiwick auth show-permissions` lists them");
                return Err(invalid("scopes", what));
            }
        }
        Ok(permissions)
    }
}

fn maker(stamp: &Stamp) -> (Identity, Arc<str>) {
    let nobody = || Identity { source: Source::Disabled, issuer: "".into(), subject: "".into() };
    (stamp.actor().cloned().unwrap_or_else(nobody), stamp.credential_id().into())
}

fn invalid(field: &str, what: impl std::fmt::Display) -> Error {
    Refusal::invalid(Reason::FieldInvalid, field, what).into()
}

/// Checks the name of a credential.
fn check_name(name: &str) -> Result<()> {
    let good = !name.trim().is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.chars().any(char::is_control);
    if good {
        Ok(())
    } else {
        let what = format!("must have 1 to {NAME_BYTES_MAX} bytes and no control characters");
        Err(invalid("name", what))
    }
}

/// Names without repetitions, in their order.
fn distinct(names: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names.into_iter().filter(|name| seen.insert(name.clone())).collect()
}
