//! What is sealed, read from a position on, with each record's place in its
//! chain.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::{
        chain::{BEGINNING, Hash},
        ledger::BATCH,
    },
    Stuck,
};
use crate::storage::{AuditRow, AuditSeal, AuditState, ChainHead, Store};

/// How many bytes of records are sent at once, about.
const BYTES_MAX: usize = 1 << 20;

/// A record that is sealed, or a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Its number over all chains and checkpoints.
    pub seq: i64,
    /// Its place in its chain; none for a checkpoint.
    pub place: Option<Place>,
    /// Its JSON.
    pub body: Box<str>,
}

/// A record's place in its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The chain.
    pub chain: Arc<str>,
    /// Its number there.
    pub number: i64,
    /// The hash of the record before it.
    pub prev: Hash,
    /// Its own, as it was sealed.
    pub hash: Hash,
}

/// Reads on from a position.
pub(super) struct Feed {
    store: Arc<dyn Store>,
    next: i64,
    heads: HashMap<Arc<str>, (i64, Hash)>,
    seal: Option<AuditSeal>,
}

impl Feed {
    /// Behind what a sink has been told; a new one begins with the first
    /// record that is kept.
    pub(super) async fn open(
        store: Arc<dyn Store>,
        told: Option<i64>,
        sink: &str,
    ) -> Result<Self, Stuck> {
        let state = store.audit_state().await?;
        let next = told.unwrap_or_default().saturating_add(1);
        if next < state.first && told.is_some() {
            let (first, kept) = (next, state.first);
            tracing::warn!(sink, first, kept, "records were let go before they were sent");
        }
        let next = next.max(state.first);
        let AuditState { sealed, heads, first, base, .. } = state;
        // Behind what is sealed there are only checkpoints yet, which are in
        // no chain.
        let known = if next > sealed { heads } else { by_chain(base) };
        let begin = if next > sealed { next } else { first };
        let mut feed = Self { store, next: begin, heads: known, seal: None };
        // What was sent before only counts in the chains.
        while feed.next < next {
            let limit = usize::try_from(next.saturating_sub(feed.next)).unwrap_or(BATCH).min(BATCH);
            let missing = Stuck::Damaged(feed.next);
            let rows = feed.rows(limit).await?.filter(|rows| !rows.is_empty()).ok_or(missing)?;
            for row in rows {
                feed.take(row)?;
            }
        }
        Ok(feed)
    }

    /// What is sealed next, some at once; nothing when all was read, and none
    /// when what was to come has been let go.
    pub(super) async fn batch(&mut self) -> Result<Option<Vec<Sealed>>, Stuck> {
        let (mut batch, mut bytes) = (Vec::new(), 0_usize);
        while batch.len() < BATCH && bytes < BYTES_MAX {
            let Some(rows) = self.rows(BATCH - batch.len()).await? else {
                if batch.is_empty() && self.store.audit_first().await? <= self.next {
                    return Err(Stuck::Damaged(self.next));
                }
                return Ok((!batch.is_empty()).then_some(batch));
            };
            if rows.is_empty() {
                break;
            }
            for row in rows {
                bytes = bytes.saturating_add(row.body.len());
                batch.push(self.take(row)?);
                if bytes >= BYTES_MAX {
                    break;
                }
            }
        }
        Ok(Some(batch))
    }

    /// The next rows that are sealed: all under one seal, or a checkpoint
    /// behind it, which proves itself. None when they have been let go.
    async fn rows(&mut self, limit: usize) -> Result<Option<Vec<AuditRow>>, Stuck> {
        let next = self.next;
        if self.seal.as_ref().is_none_or(|seal| !seal.covers.contains(&next)) {
            self.seal = self.store.audit_seal(next).await?;
        }
        let Some(seal) = &self.seal else {
            let mut rows = self.store.audit_from(next, 1).await?;
            rows.retain(|row| row.chain.is_none() && row.seq == next);
            return Ok(Some(rows));
        };
        let left = seal.covers.end().saturating_sub(next).saturating_add(1);
        let rows = self.store.audit_from(next, usize::try_from(left).unwrap_or(limit).min(limit));
        let rows = rows.await?;
        let whole = rows.iter().zip(next..).all(|(row, seq)| row.seq == seq);
        Ok((seal.covers.contains(&next) && whole && !rows.is_empty()).then_some(rows))
    }

    fn take(&mut self, row: AuditRow) -> Result<Sealed, Stuck> {
        let AuditRow { seq, chain, body } = row;
        let place = match chain {
            None => None,
            Some(chain) => {
                let hash = self.link(seq).ok_or(Stuck::Damaged(seq))?;
                let (number, prev) = self.heads.get(&chain).copied().unwrap_or((0, BEGINNING));
                let number = number.saturating_add(1);
                self.heads.insert(Arc::clone(&chain), (number, hash));
                Some(Place { chain, number, prev, hash })
            }
        };
        self.next = seq.saturating_add(1);
        Ok(Sealed { seq, place, body })
    }

    /// The hash of a record as it was sealed.
    fn link(&self, seq: i64) -> Option<Hash> {
        let seal = self.seal.as_ref().filter(|seal| seal.covers.contains(&seq))?;
        let place = usize::try_from(seq.saturating_sub(*seal.covers.start())).ok()?;
        let (links, _) = seal.links.as_chunks::<32>();
        links.get(place).copied()
    }
}

fn by_chain(heads: Vec<ChainHead>) -> HashMap<Arc<str>, (i64, Hash)> {
    heads.into_iter().map(|head| (head.chain, (head.number, head.hash))).collect()
}
