//! A text as a JWT. The private key of `key.pem` is gone, so that one token
//! alone is good: the one that was signed with it before.

use std::sync::LazyLock;

use bailiwick::{
    authn::{
        PublicKey,
        tokens::{Expectations, inspect},
    },
    domain::Timestamp,
};

const GOOD: &str = include_str!("../../corpus/jwt/good");

pub fn run(data: &[u8]) {
    static KEY: LazyLock<PublicKey> =
        LazyLock::new(|| PublicKey::from_pem(include_str!("../../key.pem")).unwrap());
    let Ok(text) = std::str::from_utf8(data) else { return };
    let expected = Expectations {
        issuer: Some("bailiwick".to_owned()),
        audience: Some("bailiwick-api".to_owned()),
        ..Expectations::default()
    };
    let seen = inspect(text, &KEY, &expected, Timestamp::from_seconds(1_800_000_000));
    assert_eq!(seen.faults.is_empty(), text == GOOD, "{:?}", seen.faults);
    for fault in seen.faults {
        assert!(!fault.to_string().is_empty());
    }
}
