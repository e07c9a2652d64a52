//! The audit as it is kept: records in one numbered row over all chains, and
//! the checkpoints that seal them.

use std::{collections::HashMap, ops::RangeInclusive, sync::Arc};

use async_trait::async_trait;
use serde_json::{Value, value::to_raw_value};

use super::Result;
use crate::domain::{
    Timestamp,
    audit::{Detail, Record, SERVER_CHAIN},
    history::Stamp,
};

/// A record on its way into the audit; it has its number once it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditDraft {
    /// The chain: a namespace, the first segment of a job's name, or `*`.
    pub chain: Arc<str>,
    /// The chain that it goes to when that one would only come to be by it and
    /// there is no such namespace either: nobody makes chains by asking.
    pub otherwise: Option<Arc<str>>,
    /// Its JSON, which is hashed as it is.
    pub body: Box<str>,
}

impl AuditDraft {
    /// Of a change outside of the store, in the server's chain.
    #[must_use]
    pub fn of_change(stamp: &Stamp, object: &str, detail: &Value, now: Timestamp) -> Self {
        let detail = to_raw_value(detail).ok();
        let detail = detail.as_deref().map(Detail::Object);
        let record = stamp.origin().map_or_else(
            || Record::of_server(now),
            |origin| {
                origin.was_recorded();
                Record::of(origin, now)
            },
        );
        let record = Record { object: Some(object), detail, ..record };
        Self::new(SERVER_CHAIN.into(), &record)
    }

    /// A record in a chain, whether that is new or not.
    #[must_use]
    pub fn new(chain: Arc<str>, record: &Record<'_>) -> Self {
        Self { chain, otherwise: None, body: record.to_json().into() }
    }
}

/// A record as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// Its number over all chains and checkpoints, from 1, without gaps.
    pub seq: i64,
    /// Its chain; none for a checkpoint.
    pub chain: Option<Arc<str>>,
    /// Its JSON.
    pub body: Box<str>,
}

/// Where a chain stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainHead {
    /// Which.
    pub chain: Arc<str>,
    /// How many records it has had.
    pub number: i64,
    /// The hash of the last one.
    pub hash: [u8; 32],
}

/// What seals the records up to a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditSeal {
    /// The checkpoint's number, from 1.
    pub number: i64,
    /// Which records and checkpoints it covers, by their numbers.
    pub covers: RangeInclusive<i64>,
    /// What is signed, as JSON; kept as a row of its own in the audit.
    pub body: Box<str>,
    /// The hash of each number it covers, 32 bytes each, in order.
    pub links: Vec<u8>,
    /// The chains that grew, as they stand now.
    pub heads: Vec<ChainHead>,
}

/// Where sealing stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditState {
    /// The last number that is sealed; 0 before the first checkpoint.
    pub sealed: i64,
    /// The last checkpoint's number, and its JSON.
    pub checkpoint: Option<(i64, Box<str>)>,
    /// Every chain, with how many records it has had and the last one's hash.
    pub heads: HashMap<Arc<str>, (i64, [u8; 32])>,
    /// The first number that is still kept.
    pub first: i64,
    /// Where the chains stood before that, when older ones were let go.
    pub base: Vec<ChainHead>,
}

/// How much of the audit is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditKept {
    /// Not what was sealed before this moment.
    pub since: Option<Timestamp>,
    /// Not more than so many bytes of records.
    pub bytes: Option<i64>,
    /// What was sealed since this moment stays, however many bytes it has.
    pub spared: Option<Timestamp>,
    /// What stays all the same: who is to be told of it was not yet.
    pub untold: Option<Untold>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditLetGo {
    /// How many rows went.
    pub rows: u64,
    /// How many bytes there are too many, because they are too new to go.
    pub excess: u64,
}

/// What somebody outside is still to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untold {
    /// The first number of it.
    pub first: i64,
    /// What was sealed before this moment has waited long enough.
    pub since: Timestamp,
}

/// The audit. Changes bring their records by their [`Stamp`]; what is here is
/// for everything else.
///
/// [`Stamp`]: crate::domain::history::Stamp
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// Keeps records of reads and refusals.
    async fn append_audit(&self, records: Vec<AuditDraft>) -> Result<()>;

    /// Where sealing stands, with every chain.
    async fn audit_state(&self) -> Result<AuditState>;

    /// The last checkpoint's number and its JSON.
    async fn audit_checkpoint(&self) -> Result<Option<(i64, Box<str>)>>;

    /// The first number that is still kept; 1 before there is any.
    async fn audit_first(&self) -> Result<i64>;

    /// Records and checkpoints from a number on, at most `limit`, in order.
    async fn audit_from(&self, seq: i64, limit: usize) -> Result<Vec<AuditRow>>;

    /// The same backwards: those before a number, the latest first.
    async fn audit_before(&self, seq: i64, limit: usize) -> Result<Vec<AuditRow>>;

    /// Keeps a checkpoint; false when another has sealed from there already.
    async fn seal_audit(&self, seal: AuditSeal) -> Result<bool>;

    /// The seal that covers a number; none while it is not sealed.
    async fn audit_seal(&self, seq: i64) -> Result<Option<AuditSeal>>;

    /// Lets go what is not to be kept any more, whole checkpoints from the
    /// beginning and a bounded number at once, never the last one; where each
    /// chain stands there is kept, so that the rest can still be proven, and so
    /// is a record of it.
    async fn let_audit_go(&self, keep: &AuditKept, now: Timestamp) -> Result<AuditLetGo>;

    /// Up to which number a sink outside has been told; none for a new one.
    async fn audit_sink(&self, name: &str) -> Result<Option<i64>>;

    /// Notes up to which number a sink has been told.
    async fn told_audit_sink(&self, name: &str, seq: i64) -> Result<()>;
}
