//! The audit as it is read: searched, followed, exported. A caller sees the
//! chains of its scope and of the others no more than leaves.

use std::{borrow::Cow, fmt, sync::Arc};

use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;

use super::{
    chain::{Checkpoint, hex},
    key::PublicKey,
    seal::{self, SealError, Signed},
    sealer::{Sealer, Unsealed},
};
use crate::{
    domain::{Clock, Scope, Timestamp, audit::SERVER_CHAIN},
    storage::{self, AuditRow, AuditState, Store},
};

/// How many rows are read at once.
pub(super) const BATCH: usize = 1000;
/// How far the order of times may differ from the order of numbers: a record
/// of a read waits a moment before it is kept.
const SLACK_MICROS: i64 = 60_000_000;

/// Why the audit cannot be read.
#[derive(Debug, Error)]
pub enum Error {
    /// A namespace that the caller does not see.
    #[error("the namespace `{0}` is not found")]
    OutsideScope(String),
    /// A field that cannot be taken.
    #[error("{field}: {message}")]
    FieldInvalid {
        /// Which.
        field: &'static str,
        /// Why.
        message: String,
    },
    /// What is kept was changed behind the server.
    #[error("the audit is damaged: {0}")]
    Damaged(#[from] SealError),
    /// Records were let go while they were being read.
    #[error("old records were let go meanwhile; begin again")]
    LetGo,
    /// The store.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl From<Unsealed> for Error {
    fn from(error: Unsealed) -> Self {
        match error {
            Unsealed::Storage(error) => Self::Storage(error),
            Unsealed::Changed(error) => Self::Damaged(error),
        }
    }
}

/// What readers of the audit work with.
pub struct Ledger {
    pub(super) store: Arc<dyn Store>,
    pub(super) sealer: Arc<Sealer>,
    pub(super) clock: Arc<dyn Clock>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ledger({:?})", self.sealer)
    }
}

impl Ledger {
    /// Over a store, with what seals it.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, sealer: Arc<Sealer>, clock: Arc<dyn Clock>) -> Self {
        Self { store, sealer, clock }
    }

    /// What verifies checkpoints and exports.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        self.sealer.key().public()
    }

    /// The last checkpoint as `number:hash`; number 0 before the first.
    pub async fn last_checkpoint(&self) -> Result<String, Error> {
        Ok(checkpoint_text(self.store.audit_checkpoint().await?.as_ref())?)
    }

    /// Seals what is there now; answers where the audit stands then.
    pub(super) async fn sealed(&self) -> Result<AuditState, Error> {
        self.sealer.now().await?;
        // What was let go is known to the store.
        Ok(self.store.audit_state().await?)
    }

    /// The first number from `first` on whose record may be as late as a time;
    /// behind `last` when none is.
    pub(super) async fn seek(&self, first: i64, last: i64, at: Timestamp) -> Result<i64, Error> {
        let at = at.micros().saturating_sub(SLACK_MICROS);
        let (mut low, mut high) = (first, last.saturating_add(1));
        while low < high {
            let middle = low + (high - low) / 2;
            let rows = self.store.audit_from(middle, 1).await?;
            let when = rows.first().and_then(time);
            if when.is_some_and(|when| when.micros() < at) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

pub(super) fn checkpoint_text(checkpoint: Option<&(i64, Box<str>)>) -> Result<String, SealError> {
    let (number, hash) = seal::last_checkpoint(checkpoint)?;
    Ok(format!("{number}:{}", hex(&hash)))
}

/// Whether a caller with this scope sees a chain.
pub(super) fn sees(scope: &Scope, chain: &str) -> bool {
    match scope {
        Scope::Everything => true,
        Scope::Under(_) => chain != SERVER_CHAIN && scope.contains_text(chain),
    }
}

/// When a record or a checkpoint was made.
pub(super) fn time(row: &AuditRow) -> Option<Timestamp> {
    if row.chain.is_some() {
        return Entry::read(&row.body)?.time();
    }
    let checkpoint = Signed::read(&row.body)?.checkpoint;
    let checkpoint: Checkpoint = serde_json::from_str(checkpoint.get()).ok()?;
    parse_time(&checkpoint.at)
}

fn parse_time(text: &str) -> Option<Timestamp> {
    let at: jiff::Timestamp = text.parse().ok()?;
    Some(Timestamp::from_micros(at.as_microsecond()))
}

/// What is shown and searched of a record; what else its JSON has stays there.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry<'a> {
    /// When.
    #[serde(borrow)]
    pub at: Cow<'a, str>,
    /// By which RPC.
    #[serde(borrow)]
    pub rpc: Cow<'a, str>,
    /// What became of it.
    #[serde(borrow)]
    pub outcome: Cow<'a, str>,
    /// The stable reason of a refusal or failure.
    #[serde(borrow, default)]
    pub reason: Option<Cow<'a, str>>,
    /// The call's id.
    #[serde(borrow, default)]
    pub request_id: Option<Cow<'a, str>>,
    /// Who.
    #[serde(borrow, default)]
    pub actor: Option<Who<'a>>,
    /// The permission that was asked for.
    #[serde(borrow, default)]
    pub permission: Option<Cow<'a, str>>,
    /// Where.
    #[serde(borrow, default)]
    pub namespace: Option<Cow<'a, str>>,
    /// The places that it asked for, where it was refused for them.
    #[serde(borrow, default)]
    pub asked: Vec<Cow<'a, str>>,
    /// What it was about.
    #[serde(borrow, default)]
    pub object: Option<Cow<'a, str>>,
    /// The client's address.
    #[serde(borrow, default)]
    pub peer: Option<Cow<'a, str>>,
    /// What else belongs to it.
    #[serde(borrow, default)]
    detail: Option<&'a RawValue>,
}

/// What was answered about credentials of others, as it is searched.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Answered<'a> {
    #[serde(borrow, default)]
    pub(super) judged: Vec<About<'a>>,
}

/// A credential that was asked about.
#[derive(Debug, Deserialize)]
pub(super) struct About<'a> {
    #[serde(borrow, default)]
    pub(super) subject: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) credential: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) fingerprint: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) questions: Vec<Asked<'a>>,
}

/// A question about it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Asked<'a> {
    #[serde(borrow, default)]
    pub(super) permission: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) namespace: Option<Cow<'a, str>>,
}

/// Who acted, by which credential.
#[derive(Clone, Debug, Deserialize)]
pub struct Who<'a> {
    /// Where the credential comes from.
    #[serde(borrow)]
    pub source: Cow<'a, str>,
    /// The issuer of a JWT.
    #[serde(borrow, default)]
    pub issuer: Cow<'a, str>,
    /// The subject.
    #[serde(borrow)]
    pub subject: Cow<'a, str>,
    /// How the credential was presented.
    #[serde(borrow)]
    pub method: Cow<'a, str>,
    /// Its public id.
    #[serde(borrow, default)]
    pub credential: Cow<'a, str>,
    /// Its keyed fingerprint.
    #[serde(borrow, default)]
    pub fingerprint: Option<Cow<'a, str>>,
}

impl<'a> Entry<'a> {
    /// Reads a record's JSON.
    #[must_use]
    pub fn read(body: &'a str) -> Option<Self> {
        serde_json::from_str(body).ok()
    }

    /// The credentials of others that were asked about.
    pub(super) fn answered(&self) -> Vec<About<'a>> {
        let detail = self.detail.map(RawValue::get);
        let detail = detail.filter(|detail| detail.starts_with("{\"judged\":"));
        detail
            .and_then(|detail| serde_json::from_str::<Answered<'a>>(detail).ok())
            .unwrap_or_default()
            .judged
    }

    /// When, as a time.
    #[must_use]
    pub fn time(&self) -> Option<Timestamp> {
        parse_time(&self.at)
    }
}
