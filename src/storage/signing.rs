//! Keys that sign what the server itself vouches for. Of a private key only
//! what is encrypted comes here.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Result, fmt};
use crate::domain::{Timestamp, history::Stamp, principal::Identity};

/// A signing key as it is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKeyRecord {
    /// Its public id, as `kid` in headers and key sets.
    pub kid: Arc<str>,
    /// What alone it signs.
    pub purpose: Arc<str>,
    /// For whom alone it signs.
    pub organisation: Arc<str>,
    /// The public key's 32 bytes.
    pub public_key: Vec<u8>,
    /// The private key, encrypted; empty once the key is retired.
    pub private_key: Vec<u8>,
    /// The fingerprint of the key that encrypts it.
    pub sealed_by: Arc<str>,
    /// Who made it.
    pub created_by: Identity,
    /// When.
    pub created_at: Timestamp,
    /// Since when it signs; the newest one that is not retired does.
    pub activated_at: Timestamp,
    /// Since when nothing that it signed counts.
    pub retired_at: Option<Timestamp>,
}

impl fmt::Debug for SigningKeyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKeyRecord({})", self.kid)
    }
}

/// Signing keys.
#[async_trait]
pub trait SigningKeyStore: Send + Sync {
    /// All of them, oldest first, the retired ones too.
    async fn signing_keys(&self) -> Result<Vec<SigningKeyRecord>>;

    /// Keeps a new one.
    async fn add_signing_key(&self, key: SigningKeyRecord, stamp: &Stamp) -> Result<()>;

    /// Retires a key and forgets its private part; false when there is none
    /// to retire.
    async fn retire_signing_key(&self, kid: &str, stamp: &Stamp, now: Timestamp) -> Result<bool>;
}
