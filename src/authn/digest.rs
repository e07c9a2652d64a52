//! The SHA-256 of a secret as what it is found by. The hash of a table tells
//! nothing about a digest, nor a digest about its secret; the comparison that
//! decides takes the same time for any.

use std::hash::{Hash, Hasher};

use subtle::ConstantTimeEq as _;

#[derive(Clone, Copy)]
pub(super) struct Digest([u8; 32]);

impl From<&[u8; 32]> for Digest {
    fn from(bytes: &[u8; 32]) -> Self {
        Self(*bytes)
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        #[cfg(test)]
        COMPARED.with(|count| count.set(count.get() + 1));
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Digest {}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

#[cfg(test)]
thread_local! {
    /// How often two were compared in this thread.
    pub(super) static COMPARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}
