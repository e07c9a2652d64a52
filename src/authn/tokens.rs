//! Making tokens and keys, and looking at tokens: for `bailiwick auth` and
//! the quickstart. The server itself only verifies.

use std::{collections::BTreeSet, sync::Arc};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair,
    },
};
use jsonwebtoken::Header;
use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;
use zeroize::Zeroizing;

pub use super::jwt::Fault;
use super::{
    PublicKey,
    jwt::{Policy, Token},
    pem,
};
use crate::{
    config::Roles,
    domain::{PermissionSet, Scope, Timestamp},
};

/// Why a key or a token cannot be made.
#[derive(Debug, Error)]
pub enum Error {
    /// The key cannot be used.
    #[error("the private key: {0}")]
    PrivateKey(String),
    /// Keys of this size are not made.
    #[error("RSA keys have 2048, 3072, 4096 or 8192 bits, not {0}")]
    KeySize(u32),
    /// The library failed.
    #[error("the cryptographic library failed to {0}")]
    Library(&'static str),
}

/// What a token says (TK-51).
#[derive(Clone, Debug, Serialize)]
pub struct Claims {
    /// The subject.
    pub sub: String,
    /// The issuer.
    pub iss: String,
    /// The audience.
    pub aud: String,
    /// When it was made, in seconds.
    pub iat: i64,
    /// When it ends, in seconds.
    pub exp: i64,
    /// The permissions.
    pub permissions: Vec<String>,
    /// Where they hold; none leaves it to the server's configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<String>>,
    /// Narrows the RPCs of workers further when it is not empty.
    pub worker_namespaces: Vec<String>,
}

/// Signs a token with a private key; its kind decides the algorithm.
pub fn sign(private_key_pem: &str, claims: &Claims) -> Result<String, Error> {
    let (algorithm, key) = pem::private_key(private_key_pem).map_err(Error::PrivateKey)?;
    jsonwebtoken::encode(&Header::new(pem::algorithm(algorithm)), claims, &key)
        .map_err(|_| Error::Library("sign"))
}

/// The kinds of keys that are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA with this many bits.
    Rsa(u32),
    /// EC over P-256.
    P256,
    /// Ed25519.
    Ed25519,
}

/// A fresh pair of keys.
pub struct KeyPairPem {
    /// The private key, PKCS#8.
    pub private: Zeroizing<String>,
    /// The public key, SPKI.
    pub public: String,
}

impl std::fmt::Debug for KeyPairPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyPairPem")
    }
}

/// Makes a pair of keys.
pub fn generate(kind: KeyKind) -> Result<KeyPairPem, Error> {
    match kind {
        KeyKind::Rsa(bits) => {
            let size = match bits {
                2048 => KeySize::Rsa2048,
                3072 => KeySize::Rsa3072,
                4096 => KeySize::Rsa4096,
                8192 => KeySize::Rsa8192,
                other => return Err(Error::KeySize(other)),
            };
            let pair = RsaKeyPair::generate(size).map_err(|_| Error::Library("make a key"))?;
            let private: Pkcs8V1Der<'_> =
                pair.as_der().map_err(|_| Error::Library("encode a key"))?;
            pair_pem(private.as_ref(), pair.public_key())
        }
        KeyKind::P256 => {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
                .map_err(|_| Error::Library("make a key"))?;
            let private = pair.to_pkcs8v1().map_err(|_| Error::Library("encode a key"))?;
            pair_pem(private.as_ref(), pair.public_key())
        }
        KeyKind::Ed25519 => {
            let pair = Ed25519KeyPair::generate().map_err(|_| Error::Library("make a key"))?;
            // Version 1, which every openssl reads.
            let private = pair.to_pkcs8v1().map_err(|_| Error::Library("encode a key"))?;
            pair_pem(private.as_ref(), pair.public_key())
        }
    }
}

fn pair_pem(
    private: &[u8],
    public: &impl AsDer<PublicKeyX509Der<'static>>,
) -> Result<KeyPairPem, Error> {
    let public = public.as_der().map_err(|_| Error::Library("encode a key"))?;
    Ok(KeyPairPem {
        private: pem::encode("PRIVATE KEY", private),
        public: pem::encode("PUBLIC KEY", public.as_ref()).to_string(),
    })
}

/// What a token is looked at with.
#[derive(Clone, Debug, Default)]
pub struct Expectations {
    /// What `iss` must be; unchecked when none.
    pub issuer: Option<String>,
    /// What `aud` must be or contain; unchecked when none.
    pub audience: Option<String>,
    /// Permissions of other services.
    pub foreign: BTreeSet<Arc<str>>,
    /// What the names of roles mean.
    pub roles: Roles,
}

/// What a token says, and everything that is wrong with it.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The header, when it can be read.
    pub header: Map<String, Value>,
    /// The claims, when they can be read.
    pub claims: Map<String, Value>,
    /// Every fault; none means that the token is good.
    pub faults: Vec<Fault>,
}

/// Looks at a token and lists every fault it finds, not the first.
#[must_use]
pub fn inspect(
    token: &str,
    key: &PublicKey,
    expected: &Expectations,
    now: Timestamp,
) -> Inspection {
    let token = match Token::parse(token) {
        Ok(token) => token,
        Err(fault) => {
            return Inspection { header: Map::new(), claims: Map::new(), faults: vec![fault] };
        }
    };
    let mut faults = Vec::new();
    token.check_header(key, &mut faults);
    if !token.is_signed_by(key) {
        faults.push(Fault::Signature);
    }
    let policy = Policy {
        issuer: expected.issuer.as_deref().map(Arc::from),
        audience: expected.audience.clone(),
        leeway_seconds: 0,
        permissions_claim: "permissions".to_owned(),
        strict: true,
        default_scope: Scope::Everything,
        permissions_ceiling: PermissionSet::star(),
        namespaces_ceiling: Scope::Everything,
        roles: expected.roles.clone(),
        rules: Vec::new(),
        foreign: expected.foreign.clone(),
    };
    // Only the faults are asked for.
    let _ = policy.check(&token.claims, now, &mut faults);
    Inspection { header: token.header, claims: token.claims, faults }
}
