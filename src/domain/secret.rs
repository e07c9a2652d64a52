//! The secrets that the server gives out: `bwk_<id>_<secret><checksum>`. The
//! id is public, the checksum lets a scanner tell a secret from noise without
//! asking anybody.
//!
//! Not here: where digests are kept (`storage`), where random bits come from.

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// What scanners for leaked secrets look for.
pub const PATTERN: &str = "bwk_[0-9a-z]{12}_[0-9A-Za-z_-]{43}[0-9A-Za-z]{6}";

const PREFIX: &str = "bwk_";
const ID_LETTERS: usize = 12;
const SECRET_LETTERS: usize = 43;
const CHECKSUM_LETTERS: usize = 6;
/// How long a secret is, in bytes.
pub const LENGTH: usize = PREFIX.len() + ID_LETTERS + 1 + SECRET_LETTERS + CHECKSUM_LETTERS;
const BASE36: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A fresh secret. It has no `Debug` of its own that shows it, and is wiped
/// from memory when it goes.
pub struct Secret {
    text: Zeroizing<String>,
}

impl Secret {
    /// Made of random bits: 64 for the public id, 256 for the secret part
    /// (ZE-05).
    #[must_use]
    pub fn new(id: u64, secret: &[u8; 32]) -> Self {
        let mut text = format!("{PREFIX}{}_{}", digits(id, BASE36, ID_LETTERS), *encoded(secret));
        text.push_str(&checksum(&text));
        Self { text: Zeroizing::new(text) }
    }

    /// The whole secret, to be shown once.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// The public id (DK-49).
    #[must_use]
    pub fn id(&self) -> Arc<str> {
        id(&self.text).unwrap_or_default().into()
    }

    /// What is kept of it: its SHA-256 (ZE-06).
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.text.as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.id())
    }
}

/// The public id of a text in our format whose checksum fits; none for any
/// other text.
#[must_use]
pub fn id(text: &str) -> Option<&str> {
    if text.len() != LENGTH || !text.is_ascii() {
        return None;
    }
    let (body, sum) = text.split_at_checked(LENGTH - CHECKSUM_LETTERS)?;
    let (id, secret) = body.strip_prefix(PREFIX)?.split_at_checked(ID_LETTERS)?;
    let secret = secret.strip_prefix('_')?;
    let fits = id.bytes().all(|byte| BASE36.contains(&byte))
        && URL_SAFE_NO_PAD.decode(secret).is_ok_and(|bytes| bytes.len() == 32)
        && checksum(body) == sum;
    fits.then_some(id)
}

/// The public id of a secret that is not in our format (SE-37): the first
/// twelve hex digits of its SHA-256.
#[must_use]
pub fn id_of_stranger(digest: &[u8; 32]) -> Arc<str> {
    let number = digest.iter().take(6).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    format!("{number:012x}").into()
}

fn encoded(secret: &[u8; 32]) -> Zeroizing<String> {
    Zeroizing::new(URL_SAFE_NO_PAD.encode(secret))
}

/// CRC-32 (IEEE) of all that stands before it, as six digits.
fn checksum(body: &str) -> String {
    digits(crc32fast::hash(body.as_bytes()).into(), BASE62, CHECKSUM_LETTERS)
}

/// The last digits of a number, the highest first.
fn digits(mut number: u64, alphabet: &[u8], count: usize) -> String {
    let base = u64::try_from(alphabet.len()).unwrap_or(1);
    let mut letters = Vec::with_capacity(count);
    for _ in 0..count {
        let digit = usize::try_from(number % base).unwrap_or(0);
        letters.push(alphabet.get(digit).copied().unwrap_or(b'0'));
        number /= base;
    }
    letters.reverse();
    letters.into_iter().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ze_05_the_secret_part_is_32_bytes_in_43_letters() {
        let secret = Secret::new(7, &[0xab; 32]);
        let part = &secret.expose()[17..60];
        assert_eq!(URL_SAFE_NO_PAD.decode(part).unwrap(), [0xab; 32]);
        assert_eq!(&*secret.id(), "000000000007");
        assert!(!format!("{secret:?}").contains(part));
    }

    proptest! {
        #[test]
        fn dk_49_every_secret_reads_back_and_a_slip_is_seen(
            number: u64, bytes: [u8; 32], place in 4_usize..LENGTH, letter in "[0-9a-z]"
        ) {
            let secret = Secret::new(number, &bytes);
            let text = secret.expose().to_owned();
            prop_assert_eq!(id(&text), Some(&*secret.id()));
            let mut slip = text.clone();
            slip.replace_range(place..=place, &letter);
            prop_assert_eq!(id(&slip).is_some(), slip == text);
        }
    }
}
