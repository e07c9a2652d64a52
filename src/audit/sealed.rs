//! Whether what was sealed last is still as it was: a look at the start, so
//! that a store that was changed while the server was down shows at once. The
//! whole is for who verifies an export.

use std::collections::{HashMap, HashSet};

use thiserror::Error;

use super::{
    chain::{self, BEGINNING, CHECKPOINT_TAG, Checkpoint, Hash, hex},
    key::PublicKey,
    seal::Signed,
};
use crate::storage::{self, AuditRow, AuditSeal, AuditState, Store};

/// What is wrong with what was sealed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Fault {
    #[error("checkpoint {0} is gone, or is none")]
    Checkpoint(i64),
    #[error("checkpoint {0} is not signed by the key of this server")]
    Signature(i64),
    #[error("checkpoint {0} says something else than what is kept with it")]
    Seal(i64),
    #[error("record {0} was changed, or is gone")]
    Record(i64),
    #[error("the end of a chain is not where checkpoint {0} has it")]
    Head(i64),
}

/// Looks at the last checkpoint and at what it covers.
pub(super) async fn check(
    state: &AuditState,
    store: &dyn Store,
    key: &PublicKey,
) -> storage::Result<Result<(), Fault>> {
    let Some((number, body)) = &state.checkpoint else {
        let empty = state.sealed == 0 && state.heads.is_empty();
        return Ok(if empty { Ok(()) } else { Err(Fault::Checkpoint(0)) });
    };
    let said = match said(*number, body, key) {
        Ok(said) => said,
        Err(fault) => return Ok(Err(fault)),
    };
    let Some(seal) = store.audit_seal(state.sealed).await? else {
        return Ok(Err(Fault::Seal(*number)));
    };
    let length = seal.links.len() / size_of::<Hash>();
    let rows = store.audit_from(said.first, length).await?;
    Ok(compare(state, &said, &seal, &rows))
}

fn said(number: i64, body: &str, key: &PublicKey) -> Result<Checkpoint, Fault> {
    let signed = Signed::read(body).ok_or(Fault::Checkpoint(number))?;
    let json = signed.checkpoint.get();
    if !key.verifies(CHECKPOINT_TAG, json, signed.signature) {
        return Err(Fault::Signature(number));
    }
    serde_json::from_str(json).map_err(|_| Fault::Checkpoint(number))
}

fn compare(
    state: &AuditState,
    said: &Checkpoint,
    seal: &AuditSeal,
    rows: &[AuditRow],
) -> Result<(), Fault> {
    let number = said.number;
    if said.last != state.sealed || seal.covers != (said.first..=said.last) {
        return Err(Fault::Seal(number));
    }
    let (links, rest) = seal.links.as_chunks::<{ size_of::<Hash>() }>();
    let seqs = said.first..=said.last;
    let whole = i64::try_from(links.len()).is_ok_and(|count| count == said.last - said.first + 1);
    if !whole || !rest.is_empty() {
        return Err(Fault::Seal(number));
    }
    let mut grown: HashMap<&str, i64> = HashMap::new();
    for chain in rows.iter().filter_map(|row| row.chain.as_deref()) {
        let count = grown.entry(chain).or_default();
        *count = count.saturating_add(1);
    }
    // Where each chain stood before: its end less what it grew by.
    let mut at: HashMap<&str, (i64, Option<Hash>)> = HashMap::new();
    for (chain, count) in &grown {
        if let Some((number, _)) = state.heads.get(*chain) {
            let before = number.saturating_sub(*count);
            at.insert(chain, (before, (before == 0).then_some(BEGINNING)));
        }
    }
    let mut rows = rows.iter();
    for (seq, link) in seqs.zip(links) {
        let row = rows.next().filter(|row| row.seq == seq).ok_or(Fault::Record(seq))?;
        let Some(chain) = &row.chain else { continue };
        let place = at.get_mut(&**chain).ok_or(Fault::Record(seq))?;
        let number = place.0.saturating_add(1);
        // The one before the first of a chain is another checkpoint's matter.
        let good =
            place.1.is_none_or(|prev| chain::record(seq, chain, number, &prev, &row.body) == *link);
        if !good {
            return Err(Fault::Record(seq));
        }
        *place = (number, Some(*link));
    }
    let leaves: HashSet<&str> = said.leaves.iter().map(String::as_str).collect();
    let stands = grown.keys().all(|chain| {
        state.heads.get(*chain).is_some_and(|(number, hash)| {
            let leaf = hex(&chain::leaf(chain, *number, hash));
            at.get(chain) == Some(&(*number, Some(*hash))) && leaves.contains(leaf.as_str())
        })
    });
    if stands && grown.len() == said.leaves.len() { Ok(()) } else { Err(Fault::Head(number)) }
}
