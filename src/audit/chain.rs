//! What is hashed and what is signed: the same for the server that seals and
//! exports, and for whoever verifies an export without it.
//!
//! Each record has a number over all chains (`seq`) and one in its chain
//! (`number`), and its hash covers both, the chain's name, the hash of the
//! record before it in its chain, and its JSON byte for byte. A checkpoint
//! covers a run of numbers: it signs the leaf of each chain that grew there
//! and the hash of the checkpoint before. A leaf tells nothing of its chain to
//! who does not have the chain's records.
//!
//! The lines of an export, each one JSON object in this order of keys:
//!
//! ```text
//! {"seq":7,"chain":"shop","number":3,"prev":"<hex>","hash":"<hex>","record":{…}}
//! {"seq":8,"checkpoint":{…},"signature":"<base64>"}
//! {"closing":{…},"signature":"<base64>"}
//! ```

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// SHA-256.
pub type Hash = [u8; 32];

/// What stands for the record before the first one of a chain, and for the
/// checkpoint before the first.
pub const BEGINNING: Hash = [0; 32];

/// What is put before a checkpoint's JSON when it is signed.
pub const CHECKPOINT_TAG: &[u8] = b"bailiwick audit checkpoint 1\n";
/// What is put before a closing record's JSON when it is signed.
pub const CLOSING_TAG: &[u8] = b"bailiwick audit closing 1\n";
const RECORD_TAG: &[u8] = b"bailiwick audit record 1\n";
const LEAF_TAG: &[u8] = b"bailiwick audit leaf 1\n";

/// The hash of a record in its chain.
#[must_use]
pub fn record(seq: i64, chain: &str, number: i64, prev: &Hash, body: &str) -> Hash {
    let mut hash = Sha256::new_with_prefix(RECORD_TAG);
    hash.update(seq.to_be_bytes());
    place(&mut hash, chain, number);
    hash.update(prev);
    hash.update(body.as_bytes());
    hash.finalize().into()
}

/// What a checkpoint says of a chain: its name, how many records it has had,
/// and the hash of the last one.
#[must_use]
pub fn leaf(chain: &str, number: i64, head: &Hash) -> Hash {
    let mut hash = Sha256::new_with_prefix(LEAF_TAG);
    place(&mut hash, chain, number);
    hash.update(head);
    hash.finalize().into()
}

/// The hash of a checkpoint, by which the next one names it.
#[must_use]
pub fn checkpoint(json: &str) -> Hash {
    let mut hash = Sha256::new_with_prefix(CHECKPOINT_TAG);
    hash.update(json.as_bytes());
    hash.finalize().into()
}

/// The length comes first, so that no name runs into the number behind it.
fn place(hash: &mut Sha256, chain: &str, number: i64) {
    hash.update(u64::try_from(chain.len()).unwrap_or(u64::MAX).to_be_bytes());
    hash.update(chain.as_bytes());
    hash.update(number.to_be_bytes());
}

/// What a checkpoint says; its JSON is what is signed, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Its number among the checkpoints, from 1.
    pub number: i64,
    /// When it was made, RFC 3339.
    pub at: String,
    /// The first number over all chains that it covers.
    pub first: i64,
    /// The last one.
    pub last: i64,
    /// The hash of the checkpoint before it.
    pub prev: String,
    /// A leaf for each chain that grew there, in order.
    pub leaves: Vec<String>,
    /// The id of the key that signs.
    pub key: String,
}

/// What the end of an export says, so that a cut shows; its JSON is what is
/// signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closing {
    /// When the export was made, RFC 3339.
    pub at: String,
    /// How many lines stand before this one.
    pub lines: u64,
    /// The SHA-256 of those lines with their line ends.
    pub sha256: String,
    /// The first number over all chains that the export asked for.
    pub first: i64,
    /// The last one.
    pub last: i64,
    /// The chains that were asked for, and those below them; empty is all.
    pub chains: Vec<String>,
    /// The last checkpoint, as `number:hash`.
    pub checkpoint: String,
    /// The id of the key that signs.
    pub key: String,
}

/// Lower-case hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn se_44_whatever_is_changed_changes_the_hash(
            seq in 1_i64..1 << 40, number in 1_i64..1 << 40, chain in "[a-z.]{1,9}",
            body in "[ -~]{1,40}", other in "[ -~]{1,40}",
        ) {
            let hash = record(seq, &chain, number, &BEGINNING, &body);
            prop_assert_ne!(hash, record(seq + 1, &chain, number, &BEGINNING, &body));
            prop_assert_ne!(hash, record(seq, &chain, number + 1, &BEGINNING, &body));
            prop_assert_ne!(hash, record(seq, &chain, number, &hash, &body));
            prop_assert_ne!(hash, record(seq, &format!("{chain}a"), number, &BEGINNING, &body));
            prop_assert_eq!(body == other, hash == record(seq, &chain, number, &BEGINNING, &other));
            prop_assert_ne!(leaf(&chain, number, &hash), leaf(&chain, number + 1, &hash));
        }
    }

    #[test]
    fn hex_has_two_digits_a_byte() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
    }
}
