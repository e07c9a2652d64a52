//! Keys as PEM: which kind a key is, and so which algorithm it signs with.
//! The algorithm never comes from a token.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair,
    Ed25519KeyPair, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, VerificationAlgorithm,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::EncodingKey;
use zeroize::Zeroizing;

use crate::config::Algorithm;

const KINDS: &str = "RSA with 2048 to 8192 bits, EC P-256, or Ed25519";

/// A public key that verifies tokens, bound to one algorithm. It is parsed
/// once, for every token that is to come.
#[derive(Clone)]
pub struct PublicKey {
    algorithm: Algorithm,
    key: ParsedPublicKey,
}

impl PublicKey {
    /// Reads SPKI (`PUBLIC KEY`) and PKCS#1 (`RSA PUBLIC KEY`). An error says
    /// what is wrong and never shows the text.
    pub fn from_pem(text: &str) -> Result<Self, String> {
        let (label, der) = decode(text)?;
        let wrong = || format!("not a key that is taken: {KINDS}");
        match label.as_str() {
            "RSA PUBLIC KEY" => Self::of(Algorithm::Rs256, &der).ok_or_else(wrong),
            "PUBLIC KEY" => Algorithm::ALL
                .into_iter()
                .find_map(|algorithm| Self::of(algorithm, &der))
                .ok_or_else(wrong),
            label if label.ends_with("PRIVATE KEY") => {
                Err("this is a private key; give the public one and keep this one away".to_owned())
            }
            label => Err(format!("a PEM of `{label}` where `PUBLIC KEY` is needed")),
        }
    }

    /// From a modulus and an exponent.
    pub(super) fn from_rsa(n: &[u8], e: &[u8]) -> Option<Self> {
        Self::of(Algorithm::Rs256, &sequence(&[integer(n)?, integer(e)?].concat())?)
    }

    /// From a point of P-256.
    pub(super) fn from_p256(x: &[u8], y: &[u8]) -> Option<Self> {
        let whole = x.len() == 32 && y.len() == 32;
        whole.then(|| Self::of(Algorithm::Es256, &[&[4], x, y].concat())).flatten()
    }

    /// From a point of Ed25519.
    pub(super) fn from_ed25519(x: &[u8]) -> Option<Self> {
        (x.len() == 32).then(|| Self::of(Algorithm::EdDsa, x)).flatten()
    }

    fn of(algorithm: Algorithm, key: &[u8]) -> Option<Self> {
        let kind: &'static dyn VerificationAlgorithm = match algorithm {
            Algorithm::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Algorithm::Es256 => &ECDSA_P256_SHA256_FIXED,
            Algorithm::EdDsa => &ED25519,
        };
        ParsedPublicKey::new(kind, key).ok().map(|key| Self { algorithm, key })
    }

    /// What it verifies.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether the signature is this key's over the message.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.key.verify_sig(message, signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.algorithm)
    }
}

/// A private key and the algorithm that it signs with.
pub(super) fn private_key(text: &str) -> Result<(Algorithm, EncodingKey), String> {
    let (label, der) = decode(text)?;
    let wrong = || format!("not a private key that is taken: {KINDS}");
    let library = |key: Result<EncodingKey, jsonwebtoken::errors::Error>| key.map_err(|_| wrong());
    let pem = text.as_bytes();
    match label.as_str() {
        "RSA PRIVATE KEY" => {
            RsaKeyPair::from_der(&der).map_err(|_| wrong())?;
            Ok((Algorithm::Rs256, EncodingKey::from_rsa_der(&der)))
        }
        "EC PRIVATE KEY" => {
            let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
                .map_err(|_| wrong())?;
            let pkcs8 = pair.to_pkcs8v1().map_err(|_| wrong())?;
            Ok((Algorithm::Es256, EncodingKey::from_ec_der(pkcs8.as_ref())))
        }
        "PRIVATE KEY" if RsaKeyPair::from_pkcs8(&der).is_ok() => {
            Ok((Algorithm::Rs256, library(EncodingKey::from_rsa_pem(pem))?))
        }
        "PRIVATE KEY"
            if EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).is_ok() =>
        {
            Ok((Algorithm::Es256, EncodingKey::from_ec_der(&der)))
        }
        "PRIVATE KEY" if Ed25519KeyPair::from_pkcs8(&der).is_ok() => {
            Ok((Algorithm::EdDsa, EncodingKey::from_ed_der(&der)))
        }
        "PRIVATE KEY" => Err(wrong()),
        "ENCRYPTED PRIVATE KEY" => {
            Err("the key is encrypted; decrypt it with `openssl pkey` first".to_owned())
        }
        label => Err(format!("a PEM of `{label}` where a private key is needed")),
    }
}

/// A DER integer above zero.
fn integer(bytes: &[u8]) -> Option<Vec<u8>> {
    let start = bytes.iter().position(|byte| *byte != 0)?;
    let bytes = bytes.get(start..)?;
    let sign: &[u8] = if bytes.first()? & 0x80 == 0 { &[] } else { &[0] };
    tagged(2, &[sign, bytes].concat())
}

fn sequence(content: &[u8]) -> Option<Vec<u8>> {
    tagged(0x30, content)
}

fn tagged(tag: u8, content: &[u8]) -> Option<Vec<u8>> {
    let [high, low] = u16::try_from(content.len()).ok()?.to_be_bytes();
    let head = match (high, low) {
        (0, 0..=0x7f) => vec![tag, low],
        (0, 0x80..) => vec![tag, 0x81, low],
        (1.., _) => vec![tag, 0x82, high, low],
    };
    Some([head, content.to_vec()].concat())
}

/// The library's name of an algorithm.
pub(super) fn algorithm(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    match algorithm {
        Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
        Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
    }
}

/// A PEM of these bytes, in lines of 64.
pub(super) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut pem = Zeroizing::new(format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    pem
}

/// The label and the bytes of the one PEM in a text.
fn decode(text: &str) -> Result<(String, Zeroizing<Vec<u8>>), String> {
    const NONE: &str = "not a PEM: it must begin with `-----BEGIN …`";
    // Variables of an environment often spell line breaks as `\n`.
    let text = Zeroizing::new(text.replace("\\n", "\n"));
    let (_, rest) = text.split_once("-----BEGIN ").ok_or(NONE)?;
    let (label, rest) = rest.split_once("-----").ok_or(NONE)?;
    let (body, rest) = rest
        .split_once(&format!("-----END {label}-----"))
        .ok_or("the PEM has no end; was it cut off?")?;
    if rest.contains("-----BEGIN ") {
        return Err("more than one PEM; give exactly one key".to_owned());
    }
    let body: Zeroizing<String> =
        Zeroizing::new(body.chars().filter(|letter| !letter.is_ascii_whitespace()).collect());
    let der = STANDARD.decode(body.as_bytes()).map_err(|_| "the PEM is damaged".to_owned())?;
    Ok((label.to_owned(), Zeroizing::new(der)))
}
