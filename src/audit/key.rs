//! The key of the audit: Ed25519, none of the keys that sign tokens (SE-44).
//! The private half signs checkpoints and exports; the public one is for
//! whoever verifies them.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    digest::{SHA256, digest},
    encoding::{AsBigEndian as _, Curve25519SeedBin},
    hkdf, hmac,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use thiserror::Error;
use zeroize::Zeroizing;

use super::chain::hex;

/// What stands before the 32 bytes of an Ed25519 key in its SPKI.
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";
/// What the key of fingerprints is derived for.
const FINGERPRINTS: &[u8] = b"bailiwick audit fingerprints 1";
/// How many bytes of its hash name a key.
const ID_BYTES: usize = 8;

/// Why a key is not taken. Never shows the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// No private key of Ed25519.
    #[error("this is no private key of Ed25519 in PKCS#8")]
    Private,
    /// No public key of Ed25519.
    #[error("this is no public key of Ed25519 as `bailiwick audit public-key` prints it")]
    Public,
    /// No key could be made.
    #[error("the system gave no random numbers for a key")]
    Random,
}

/// The private half: signs.
pub struct AuditKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl AuditKey {
    /// A new one, as PKCS#8 for its file.
    pub fn generate() -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Random)?;
        let document = pair.to_pkcs8().map_err(|_| KeyError::Random)?;
        Ok(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// From PKCS#8.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, KeyError> {
        Self::of(Ed25519KeyPair::from_pkcs8(bytes).map_err(|_| KeyError::Private)?)
    }

    /// From 32 bytes of a seed.
    pub fn from_seed(seed: &[u8]) -> Result<Self, KeyError> {
        Self::of(Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyError::Private)?)
    }

    fn of(pair: Ed25519KeyPair) -> Result<Self, KeyError> {
        let public = PublicKey::from_bytes(pair.public_key().as_ref())?;
        Ok(Self { pair, public })
    }

    /// What makes fingerprints of credentials: a key of its own, which follows
    /// from this one and from which this one does not follow.
    pub fn fingerprints(&self) -> Result<Fingerprints, KeyError> {
        let seed = self.pair.seed().map_err(|_| KeyError::Private)?;
        let seed: Curve25519SeedBin<'_> = seed.as_be_bytes().map_err(|_| KeyError::Private)?;
        let mut bytes = Zeroizing::new([0; 32]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, &[])
            .extract(seed.as_ref())
            .expand(&[FINGERPRINTS], hkdf::HKDF_SHA256)
            .and_then(|made| made.fill(bytes.as_mut_slice()))
            .map_err(|_| KeyError::Private)?;
        Ok(Fingerprints(hmac::Key::new(hmac::HMAC_SHA256, bytes.as_slice())))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The signature over a text behind a tag, in Base64.
    #[must_use]
    pub fn sign(&self, tag: &[u8], text: &str) -> String {
        STANDARD.encode(self.pair.sign(&[tag, text.as_bytes()].concat()))
    }
}

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditKey({})", self.public.id)
    }
}

/// Makes fingerprints of credentials: who has the records cannot try which
/// credential has which.
pub struct Fingerprints(hmac::Key);

impl Fingerprints {
    /// The fingerprint of a credential with this digest: 16 hex digits.
    #[must_use]
    pub fn of(&self, digest: &[u8; 32]) -> Arc<str> {
        let tag = hmac::sign(&self.0, digest);
        hex(tag.as_ref().get(..ID_BYTES).unwrap_or_default()).into()
    }
}

impl fmt::Debug for Fingerprints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprints")
    }
}

/// The public half: verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    bytes: [u8; 32],
    id: String,
}

impl PublicKey {
    /// From its 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| KeyError::Public)?;
        let hash = digest(&SHA256, &bytes);
        let id = hex(hash.as_ref().get(..ID_BYTES).unwrap_or_default());
        Ok(Self { bytes, id })
    }

    /// From PEM, as [`Self::to_pem`] writes it.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let inner = text.trim().strip_prefix(BEGIN).and_then(|text| text.strip_suffix(END));
        let base64: String = inner.ok_or(KeyError::Public)?.split_ascii_whitespace().collect();
        let spki = STANDARD.decode(base64).map_err(|_| KeyError::Public)?;
        Self::from_bytes(spki.strip_prefix(&SPKI).ok_or(KeyError::Public)?)
    }

    /// As PEM (SPKI).
    #[must_use]
    pub fn to_pem(&self) -> String {
        let spki = [&SPKI[..], &self.bytes].concat();
        format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(spki))
    }

    /// By what checkpoints name it: the first 16 hex digits of the SHA-256 of
    /// its bytes.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether a signature is the key's over a text behind a tag. Only one
    /// spelling of its Base64 counts.
    #[must_use]
    pub fn verifies(&self, tag: &[u8], text: &str, signature: &str) -> bool {
        let message = [tag, text.as_bytes()].concat();
        STANDARD.decode(signature).is_ok_and(|signature| {
            UnparsedPublicKey::new(&ED25519, self.bytes).verify(&message, &signature).is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn se_44_a_signature_holds_for_its_key_tag_and_text_alone() {
        let key = AuditKey::from_seed(&[7; 32]).unwrap();
        let other = AuditKey::from_pkcs8(&AuditKey::generate().unwrap()).unwrap();
        let signature = key.sign(b"tag\n", "text");
        assert!(key.public().verifies(b"tag\n", "text", &signature));
        assert!(!key.public().verifies(b"tag\n", "texu", &signature));
        assert!(!key.public().verifies(b"tah\n", "text", &signature));
        assert!(!other.public().verifies(b"tag\n", "text", &signature));
        assert!(!key.public().verifies(b"tag\n", "text", signature.trim_end_matches('=')));
        assert_ne!(key.public().id(), other.public().id());
    }

    #[test]
    fn se_44_a_fingerprint_follows_from_key_and_credential() {
        let of = |seed: u8| AuditKey::from_seed(&[seed; 32]).unwrap().fingerprints().unwrap();
        let one = of(7).of(&[1; 32]);
        assert_eq!((one.len(), &one), (16, &of(7).of(&[1; 32])));
        assert_ne!(one, of(7).of(&[2; 32]));
        assert_ne!(one, of(8).of(&[1; 32]));
    }

    #[test]
    fn a_public_key_is_read_as_it_is_written() {
        let key = AuditKey::from_seed(&[7; 32]).unwrap();
        let pem = key.public().to_pem();
        assert_eq!(PublicKey::from_pem(&pem).as_ref(), Ok(key.public()));
        assert_eq!(key.public().id().len(), 16);
        for wrong in ["", "x", &pem[1..], &pem.replace("MCowBQYDK2VwAyEA", "MCowBQYDK2VuAyEA")] {
            assert_eq!(PublicKey::from_pem(wrong), Err(KeyError::Public), "{wrong}");
        }
        assert_eq!(AuditKey::from_pkcs8(b"no key").err(), Some(KeyError::Private));
        assert!(!format!("{key:?}").contains("07"));
    }
}
