//! Makes a checkpoint over what is not sealed yet: pure, without a store.

use std::{collections::HashMap, sync::Arc};

use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;

use super::{
    chain::{self, BEGINNING, CHECKPOINT_TAG, Checkpoint, Hash, hex},
    key::AuditKey,
};
use crate::{
    domain::{Timestamp, audit::rfc3339_text},
    storage::{AuditRow, AuditSeal, AuditState, ChainHead},
};

/// Why what is kept cannot be sealed: it was changed behind the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    /// A number is missing, or the rows are not those behind the last seal.
    #[error("record {0} of the audit is not where it should be")]
    Gap(i64),
    /// A checkpoint that is no checkpoint.
    #[error("checkpoint {0} of the audit cannot be read")]
    Checkpoint(i64),
    /// Other records are kept than those that it covers.
    #[error("checkpoint {0} of the audit covers other records than those that are there")]
    Leaves(i64),
}

/// A checkpoint as its row and its line have it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed<'a> {
    /// What is signed, byte for byte.
    #[serde(borrow)]
    pub checkpoint: &'a RawValue,
    /// The signature in Base64.
    pub signature: &'a str,
}

impl<'a> Signed<'a> {
    /// Reads a row's text.
    #[must_use]
    pub fn read(body: &'a str) -> Option<Self> {
        serde_json::from_str(body).ok()
    }

    /// The hash by which the next checkpoint names it.
    #[must_use]
    pub fn hash(&self) -> Hash {
        chain::checkpoint(self.checkpoint.get())
    }
}

/// The last checkpoint, by its number and hash.
pub fn last_checkpoint(checkpoint: Option<&(i64, Box<str>)>) -> Result<(i64, Hash), SealError> {
    let Some((number, body)) = checkpoint else { return Ok((0, BEGINNING)) };
    let hash = Signed::read(body).ok_or(SealError::Checkpoint(*number))?.hash();
    Ok((*number, hash))
}

/// Seals rows, which are those behind the last sealed one; none when there is
/// no record among them that was not sealed.
pub fn seal(
    state: &AuditState,
    rows: &[AuditRow],
    key: &AuditKey,
    now: Timestamp,
) -> Result<Option<AuditSeal>, SealError> {
    let first = state.sealed.saturating_add(1);
    let mut grown = Grown::new(&state.heads);
    let mut links = Vec::with_capacity(rows.len() * size_of::<Hash>());
    let mut last = state.sealed;
    for row in rows {
        let next = last.saturating_add(1);
        if row.seq != next {
            return Err(SealError::Gap(next));
        }
        last = next;
        let link = match &row.chain {
            Some(chain) => grown.add(row.seq, chain, &row.body),
            None => Signed::read(&row.body).ok_or(SealError::Checkpoint(row.seq))?.hash(),
        };
        links.extend_from_slice(&link);
    }
    let heads = grown.heads;
    if heads.is_empty() {
        return Ok(None);
    }
    let (number, prev) = last_checkpoint(state.checkpoint.as_ref())?;
    let checkpoint = Checkpoint {
        number: number.saturating_add(1),
        at: rfc3339_text(now),
        first,
        last,
        prev: hex(&prev),
        leaves: heads
            .iter()
            .map(|head| hex(&chain::leaf(&head.chain, head.number, &head.hash)))
            .collect(),
        key: key.public().id().to_owned(),
    };
    // Strings and numbers alone: nothing in it can fail.
    let json = serde_json::to_string(&checkpoint).unwrap_or_default();
    let signature = key.sign(CHECKPOINT_TAG, &json);
    let body = format!("{{\"checkpoint\":{json},\"signature\":\"{signature}\"}}").into();
    Ok(Some(AuditSeal { number: checkpoint.number, covers: first..=last, body, links, heads }))
}

/// The chains that grow, in the order in which they first did.
struct Grown<'a> {
    before: &'a HashMap<Arc<str>, (i64, Hash)>,
    places: HashMap<Arc<str>, usize>,
    heads: Vec<ChainHead>,
}

impl<'a> Grown<'a> {
    fn new(before: &'a HashMap<Arc<str>, (i64, Hash)>) -> Self {
        Self { before, places: HashMap::new(), heads: Vec::new() }
    }

    fn add(&mut self, seq: i64, chain: &Arc<str>, body: &str) -> Hash {
        let place = *self.places.entry(Arc::clone(chain)).or_insert_with(|| {
            let (number, hash) = self.before.get(chain).copied().unwrap_or((0, BEGINNING));
            self.heads.push(ChainHead { chain: Arc::clone(chain), number, hash });
            self.heads.len() - 1
        });
        let Some(head) = self.heads.get_mut(place) else { return BEGINNING };
        head.number = head.number.saturating_add(1);
        head.hash = chain::record(seq, chain, head.number, &head.hash, body);
        head.hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seq: i64, chain: &str, body: &str) -> AuditRow {
        AuditRow { seq, chain: Some(chain.into()), body: body.into() }
    }

    fn key() -> AuditKey {
        AuditKey::from_seed(&[1; 32]).unwrap()
    }

    #[test]
    fn se_44_a_checkpoint_covers_each_chain_that_grew_and_names_the_one_before() {
        let (key, now) = (key(), Timestamp::from_micros(1_000_001));
        let rows = [row(1, "shop", "{}"), row(2, "*", "{}"), row(3, "shop", "{}")];
        let first = seal(&AuditState::default(), &rows, &key, now).unwrap().unwrap();
        let one = chain::record(1, "shop", 1, &BEGINNING, "{}");
        let three = chain::record(3, "shop", 2, &one, "{}");
        let two = chain::record(2, "*", 1, &BEGINNING, "{}");
        assert_eq!(first.links, [one, two, three].concat());
        assert_eq!((first.number, first.covers.clone()), (1, 1..=3));
        let signed = Signed::read(&first.body).unwrap();
        assert!(key.public().verifies(CHECKPOINT_TAG, signed.checkpoint.get(), signed.signature));
        let said: Checkpoint = serde_json::from_str(signed.checkpoint.get()).unwrap();
        let leaves =
            [chain::leaf("shop", 2, &three), chain::leaf("*", 1, &two)].map(|leaf| hex(&leaf));
        assert_eq!(said.leaves, leaves);
        assert_eq!(
            (said.prev.as_str(), said.at.as_str()),
            (&*hex(&BEGINNING), "1970-01-01T00:00:01.000001Z")
        );

        let state = AuditState {
            sealed: 3,
            checkpoint: Some((1, first.body.clone())),
            heads: first
                .heads
                .iter()
                .map(|head| (Arc::clone(&head.chain), (head.number, head.hash)))
                .collect(),
            ..AuditState::default()
        };
        let hash = hex(&signed.hash());
        let checkpoint = AuditRow { seq: 4, chain: None, body: first.body };
        let second = seal(&state, &[checkpoint.clone(), row(5, "*", "{}")], &key, now);
        let second = second.unwrap().unwrap();
        let said = Signed::read(&second.body).unwrap();
        let said: Checkpoint = serde_json::from_str(said.checkpoint.get()).unwrap();
        assert_eq!((said.number, said.first, said.last), (2, 4, 5));
        assert_eq!(said.prev, hash);
        assert_eq!(second.heads.iter().map(|head| head.number).collect::<Vec<_>>(), [2]);
        // A checkpoint alone needs no other.
        assert_eq!(seal(&state, &[checkpoint], &key, now), Ok(None));
    }

    #[test]
    fn se_44_what_was_changed_behind_the_server_is_not_sealed() {
        let rows = [row(1, "shop", "{}"), row(3, "shop", "{}")];
        let now = Timestamp::default();
        assert_eq!(seal(&AuditState::default(), &rows, &key(), now), Err(SealError::Gap(2)));
        let broken = AuditRow { seq: 1, chain: None, body: "{}".into() };
        let sealed = seal(&AuditState::default(), &[broken], &key(), now);
        assert_eq!(sealed, Err(SealError::Checkpoint(1)));
        let state = AuditState { checkpoint: Some((7, "x".into())), ..AuditState::default() };
        let sealed = seal(&state, &[row(1, "shop", "{}")], &key(), now);
        assert_eq!(sealed, Err(SealError::Checkpoint(7)));
    }
}
