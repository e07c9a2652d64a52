//! The keys that sign: each with one purpose and for one organisation
//! (SE-32). The newest one signs; the former ones still verify until they are
//! retired.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use aws_lc_rs::{
    digest, hmac,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, ParsedPublicKey},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;
use tokio::sync::Mutex;

use super::{
    hex_text,
    master::{Error, Master},
};
use crate::{
    config::KeySource,
    domain::{
        Clock, LeaseId, Timestamp,
        history::Stamp,
        principal::{Identity, Source},
    },
    storage::{SigningKeyRecord, Store},
};

/// The one organisation so far.
pub const ORGANISATION: &str = "default";
/// How much of a lease's tag stands in a token.
const TAG_BYTES: usize = 16;

/// A key that verifies, and perhaps signs.
pub struct Key {
    kid: Arc<str>,
    purpose: Arc<str>,
    pair: Ed25519KeyPair,
    public: ParsedPublicKey,
    tags: hmac::Key,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.kid)
    }
}

impl Key {
    fn new(record: &SigningKeyRecord, private: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(private).ok()?;
        if pair.public_key().as_ref() != record.public_key {
            return None;
        }
        let public = ParsedPublicKey::new(&ED25519, &record.public_key).ok()?;
        let mut seed = digest::Context::new(&digest::SHA256);
        seed.update(b"bailiwick tags of leases\0");
        seed.update(private);
        let tags = hmac::Key::new(hmac::HMAC_SHA256, seed.finish().as_ref());
        let (kid, purpose) = (Arc::clone(&record.kid), Arc::clone(&record.purpose));
        Some(Self { kid, purpose, pair, public, tags })
    }

    /// Its public id.
    #[must_use]
    pub fn kid(&self) -> &Arc<str> {
        &self.kid
    }

    /// Signs a message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }

    /// Whether the signature is this key's over the message.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.public.verify_sig(message, signature).is_ok()
    }

    /// Binds a token to the very lease without showing the lease's id.
    #[must_use]
    pub fn tag(&self, nonce: &[u8], lease: LeaseId) -> Vec<u8> {
        let tag = hmac::sign(&self.tags, &[nonce, &lease.to_bytes()].concat());
        tag.as_ref().iter().copied().take(TAG_BYTES).collect()
    }
}

/// Whether a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It signs, and verifies.
    Signs,
    /// It verifies what it signed before.
    Verifies,
    /// It counts no more.
    Retired,
}

/// The keys as they are.
#[derive(Debug, Default)]
struct Ring {
    keys: Vec<Arc<Key>>,
    records: Vec<SigningKeyRecord>,
}

/// All keys that sign.
pub struct SigningKeys {
    store: Arc<dyn Store>,
    source: KeySource,
    clock: Arc<dyn Clock>,
    ring: RwLock<Arc<Ring>>,
    /// Disk and memory change in the same order.
    order: Mutex<()>,
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKeys({})", self.ring().keys.len())
    }
}

impl SigningKeys {
    /// What the store holds. Where that are keys that count, what decrypts
    /// them must be there and be the right one.
    pub async fn open(
        store: Arc<dyn Store>,
        source: KeySource,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, Error> {
        let (ring, order) = (RwLock::default(), Mutex::default());
        let this = Self { store, source, clock, ring, order };
        this.load().await?;
        Ok(Arc::new(this))
    }

    /// None yet, for tests of what is around.
    #[cfg(test)]
    pub(crate) fn none(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (ring, order) = (RwLock::default(), Mutex::default());
        let source = KeySource::Given(zeroize::Zeroizing::new([7; 32]));
        Arc::new(Self { store, source, clock, ring, order })
    }

    async fn load(&self) -> Result<(), Error> {
        let records = self.store.signing_keys().await?;
        let mut keys = Vec::new();
        if records.iter().any(|key| key.retired_at.is_none()) {
            let master = self.master(Master::open).await?.ok_or_else(|| match &self.source {
                KeySource::File(path) | KeySource::Within(path) => Error::Missing(path.clone()),
                KeySource::Given(_) => Error::Library("take the key that encrypts signing keys"),
            })?;
            for record in &records {
                if record.retired_at.is_some() {
                    continue;
                }
                keys.push(Arc::new(unsealed(&master, record)?));
            }
        }
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(Ring { keys, records });
        Ok(())
    }

    /// A key that was retired counts no more, whatever else fails.
    fn forget(&self, kid: &str, now: Timestamp) {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        let keys = ring.keys.iter().filter(|key| *key.kid != *kid).cloned().collect();
        let mut records = ring.records.clone();
        for record in records.iter_mut().filter(|record| *record.kid == *kid) {
            record.private_key.clear();
            record.retired_at = Some(now);
        }
        *ring = Arc::new(Ring { keys, records });
    }

    /// Reads and makes files: not on a thread that calls wait for.
    async fn master<T: Send + 'static>(
        &self,
        get: impl FnOnce(&KeySource) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let source = self.source.clone();
        tokio::task::spawn_blocking(move || get(&source))
            .await
            .map_err(|_| Error::Library("read the key that encrypts signing keys"))?
    }

    fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The key that signs for a purpose.
    #[must_use]
    pub fn signer(&self, purpose: &str) -> Option<Arc<Key>> {
        self.ring().keys.iter().rev().find(|key| *key.purpose == *purpose).cloned()
    }

    /// The key of this id, when it is for this purpose and counts.
    #[must_use]
    pub fn verifier(&self, kid: &str, purpose: &str) -> Option<Arc<Key>> {
        let fits = |key: &&Arc<Key>| *key.kid == *kid && *key.purpose == *purpose;
        self.ring().keys.iter().find(fits).cloned()
    }

    /// Every key, newest first, with whether it signs.
    #[must_use]
    pub fn list(&self) -> Vec<(SigningKeyRecord, State)> {
        let ring = self.ring();
        let state = |record: &SigningKeyRecord| {
            let signs = ring.keys.iter().rev().find(|key| key.purpose == record.purpose);
            match record.retired_at {
                Some(_) => State::Retired,
                None if signs.is_some_and(|key| key.kid == record.kid) => State::Signs,
                None => State::Verifies,
            }
        };
        ring.records.iter().rev().map(|record| (record.clone(), state(record))).collect()
    }

    /// Makes the first key of a purpose where there is none.
    pub async fn ensure(&self, purpose: &str) -> Result<(), Error> {
        let turn = self.order.lock().await;
        if self.signer(purpose).is_none() {
            let key = self.add(purpose, &Stamp::system()).await?;
            tracing::info!(kid = &*key.kid, purpose, "made the first signing key");
        }
        drop(turn);
        Ok(())
    }

    /// Makes a key that signs from now on.
    pub async fn create(&self, purpose: &str, stamp: &Stamp) -> Result<SigningKeyRecord, Error> {
        let turn = self.order.lock().await;
        let made = self.add(purpose, stamp).await;
        drop(turn);
        made
    }

    async fn add(&self, purpose: &str, stamp: &Stamp) -> Result<SigningKeyRecord, Error> {
        let master = self.master(Master::open_or_make).await?;
        let library = |_| Error::Library("make a signing key");
        let pair = Ed25519KeyPair::generate().map_err(library)?;
        let private = pair.to_pkcs8v1().map_err(library)?;
        let public_key = pair.public_key().as_ref().to_vec();
        let kid = kid(purpose, &public_key);
        let sealed = master.seal(&name(&kid, purpose, ORGANISATION), private.as_ref())?;
        // Of two within a microsecond the second is the newer one.
        let last = self.ring().records.last().map(|key| key.activated_at);
        let now = self.clock.now();
        let at = last.map_or(now, |last| now.max(Timestamp::from_micros(last.micros() + 1)));
        let nobody =
            Identity { source: Source::Config, issuer: "".into(), subject: "server".into() };
        let record = SigningKeyRecord {
            kid,
            purpose: purpose.into(),
            organisation: ORGANISATION.into(),
            public_key,
            private_key: sealed,
            sealed_by: Arc::clone(&master.fingerprint),
            created_by: stamp.actor().cloned().unwrap_or(nobody),
            created_at: now,
            activated_at: at,
            retired_at: None,
        };
        self.store.add_signing_key(record.clone(), stamp).await?;
        self.load().await?;
        Ok(record)
    }

    /// Retires a key: nothing that it signed counts any more. Answers what it
    /// was; the one that signs is not retired, nor one that is not there.
    pub async fn retire(
        &self,
        kid: &str,
        stamp: &Stamp,
    ) -> Result<Option<(SigningKeyRecord, State)>, Error> {
        let turn = self.order.lock().await;
        let found = self.list().into_iter().find(|(key, _)| *key.kid == *kid);
        if let Some((_, State::Verifies)) = found {
            let now = self.clock.now();
            self.store.retire_signing_key(kid, stamp, now).await?;
            self.forget(kid, now);
        }
        drop(turn);
        let now = self.list().into_iter().find(|(key, _)| *key.kid == *kid);
        Ok(found.and_then(|(_, before)| now.map(|(key, _)| (key, before))))
    }

    /// The public keys of a purpose as a JSON Web Key Set.
    #[must_use]
    pub fn key_set(&self, purpose: &str) -> String {
        let ring = self.ring();
        let keys: Vec<_> = ring
            .records
            .iter()
            .rev()
            .filter(|key| key.retired_at.is_none() && *key.purpose == *purpose)
            .map(|key| {
                json!({
                    "kty": "OKP",
                    "crv": "Ed25519",
                    "x": URL_SAFE_NO_PAD.encode(&key.public_key),
                    "kid": &*key.kid,
                    "alg": "EdDSA",
                    "use": "sig",
                })
            })
            .collect();
        json!({ "keys": keys }).to_string()
    }
}

fn unsealed(master: &Master, record: &SigningKeyRecord) -> Result<Key, Error> {
    if record.sealed_by != master.fingerprint {
        return Err(Error::Wrong {
            origin: master.origin.clone(),
            found: Arc::clone(&master.fingerprint),
            wanted: Arc::clone(&record.sealed_by),
        });
    }
    let name = name(&record.kid, &record.purpose, &record.organisation);
    master
        .unseal(&name, &record.private_key)
        .and_then(|private| Key::new(record, &private))
        .ok_or_else(|| Error::Damaged(Arc::clone(&record.kid)))
}

/// What a sealed key is: no key can be put in another one's place.
fn name(kid: &str, purpose: &str, organisation: &str) -> String {
    format!("{organisation}\n{purpose}\n{kid}")
}

/// Says the purpose to whoever reads it; the rest is of the public key.
fn kid(purpose: &str, public: &[u8]) -> Arc<str> {
    let digest = digest::digest(&digest::SHA256, public);
    let short = hex_text(digest.as_ref().iter().take(8));
    format!("{purpose}-{short}").into()
}
