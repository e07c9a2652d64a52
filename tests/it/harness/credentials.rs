//! The credentials of tests: one issuer for all of them, whose public key
//! every server with authentication has, and a root key.

use std::{path::Path, sync::OnceLock};

use bailiwick::authn::tokens::{self, KeyKind, KeyPairPem};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value, json};

/// A key that is root.
pub const ROOT_KEY: &str = "test-root-key-1f0c7f2f9a";
/// A key that reads tasks in every namespace.
pub const READER_KEY: &str = "test-reader-key-77ab12";
pub const ISSUER: &str = "bailiwick";
pub const AUDIENCE: &str = "bailiwick-api";

/// The issuer's keys.
pub fn issuer() -> &'static KeyPairPem {
    static PAIR: OnceLock<KeyPairPem> = OnceLock::new();
    PAIR.get_or_init(|| tokens::generate(KeyKind::Ed25519).unwrap())
}

/// Somebody else's keys.
pub fn stranger() -> &'static KeyPairPem {
    static PAIR: OnceLock<KeyPairPem> = OnceLock::new();
    PAIR.get_or_init(|| tokens::generate(KeyKind::Ed25519).unwrap())
}

/// The `[auth]` table of servers, with its key beside the configuration.
pub fn configuration(folder: &Path) -> String {
    std::fs::write(folder.join("jwt-public-key.pem"), &issuer().public).unwrap();
    format!(
        "[[auth.api_keys]]\nkey = \"{ROOT_KEY}\"\npermissions = [\"*\"]\ndescription = \"root of the tests\"\n\
         [[auth.api_keys]]\nkey = \"{READER_KEY}\"\npermissions = [\"tasks:read\", \"tasks:list\"]\n\
         description = \"reader of the tests\"\n\
         [auth]\nenabled = true\njwt_public_key_path = \"jwt-public-key.pem\"\n\
         jwt_issuer = \"{ISSUER}\"\njwt_audience = \"{AUDIENCE}\"\n"
    )
}

/// Seconds since 1970.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// A JWT in the making.
#[derive(Clone, Debug)]
pub struct Token {
    claims: Map<String, Value>,
}

impl Token {
    /// Good for an hour, in every namespace.
    pub fn new(subject: &str, permissions: &[&str]) -> Self {
        let claims = json!({
            "sub": subject, "iss": ISSUER, "aud": AUDIENCE, "iat": now(), "exp": now() + 3600,
            "permissions": permissions, "worker_namespaces": [],
        });
        let Value::Object(claims) = claims else { unreachable!() };
        Self { claims }
    }

    /// Only in these namespaces.
    pub fn within(self, namespaces: &[&str]) -> Self {
        self.claim("namespaces", json!(namespaces))
    }

    /// With another claim.
    pub fn claim(mut self, name: &str, value: Value) -> Self {
        self.claims.insert(name.to_owned(), value);
        self
    }

    /// Without a claim.
    pub fn without(mut self, name: &str) -> Self {
        self.claims.remove(name);
        self
    }

    /// Signed by the issuer.
    pub fn sign(&self) -> String {
        self.sign_with(issuer())
    }

    /// Signed by somebody.
    pub fn sign_with(&self, keys: &KeyPairPem) -> String {
        let key = EncodingKey::from_ed_pem(keys.private.as_bytes()).unwrap();
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &self.claims, &key).unwrap()
    }
}
