//! Headers, one `name: value` on each line, at a gate that knows one key of
//! the configuration, one API key and one token that it gave out itself. And
//! each value as a secret that a scanner reads.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bailiwick::{
    authn::{Authenticator, Evidence, Unauthenticated},
    config::{ApiKey, Auth, Certificates, Credentials, Mode, OwnRate, TokenStore},
    domain::{
        PermissionSet, Scope, Timestamp,
        principal::{Identity, Method, Source},
        secret::{self, Secret},
    },
    storage::{CredentialKind, CredentialRecord},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};

const CONFIGURED: &str = "sk-configured-1";
const KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

struct Gate {
    authenticator: Authenticator,
    key: String,
    token: String,
}

fn open() -> Gate {
    let configured = ApiKey {
        subject: "configured".into(),
        digest: Sha256::digest(CONFIGURED).into(),
        permissions: PermissionSet::star(),
        scope: Scope::Everything,
        rate: OwnRate::None,
    };
    let credentials = Credentials {
        issuers: Vec::new(),
        api_key_header: KEY_HEADER,
        api_keys_enabled: true,
        api_keys: vec![configured],
        certificates: Certificates::default(),
    };
    let authenticator = Authenticator::new(&Auth {
        mode: Mode::On(Box::new(credentials)),
        extra_permissions: BTreeSet::new(),
        jwt_token_expiry: Duration::from_hours(1),
        disable_unused_after_days: None,
        token_store: TokenStore::Database,
    });
    let authenticator = authenticator.unwrap();
    let give = |number: u64, kind: CredentialKind| {
        let secret = Secret::new(number, &[7; 32]);
        authenticator.issued().insert(CredentialRecord {
            id: secret.id(),
            digest: secret.digest(),
            kind,
            name: None,
            scopes: vec!["tasks:read".to_owned()],
            namespaces: vec!["*".to_owned()],
            networks: Vec::new(),
            created_by: Identity {
                source: Source::Config,
                issuer: "".into(),
                subject: "configured".into(),
            },
            created_with: Arc::from("root"),
            created_at: Timestamp::default(),
            expires_at: None,
            max_uses: None,
            uses: 0,
            parent: None,
            family: secret.id(),
            descent: Vec::new(),
            revoked_at: None,
            last_used_at: None,
        });
        secret.expose().to_owned()
    };
    let (key, token) = (give(1, CredentialKind::ApiKey), give(2, CredentialKind::Token));
    Gate { authenticator, key, token }
}

pub fn run(data: &[u8]) {
    static GATE: LazyLock<Gate> = LazyLock::new(open);
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii_start());
        read_as_secret(value);
        let name = HeaderName::from_bytes(name);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    decide(&GATE, &headers);
}

/// What the gate says must be what the headers say, read in another way.
fn decide(gate: &Gate, headers: &HeaderMap) {
    let values = |name: &str| -> Vec<&[u8]> {
        headers.get_all(name).iter().map(HeaderValue::as_bytes).collect()
    };
    let (bearers, keys) = (values("authorization"), values("x-api-key"));
    let evidence = Evidence { headers, certificate: None, peer: None };
    let answer = gate.authenticator.authenticate(evidence, Timestamp::from_seconds(1_800_000_000));
    let doubled = |values: &[&[u8]]| values.len() > 1 || values.concat().contains(&b',');
    let Ok(accepted) = answer else {
        let rejected = answer.unwrap_err();
        let wanted = if doubled(&bearers) || doubled(&keys) {
            Unauthenticated::Ambiguous
        } else if bearers.is_empty() && keys.is_empty() {
            Unauthenticated::Missing
        } else {
            Unauthenticated::Invalid
        };
        assert_eq!(rejected.why, wanted, "{headers:?}");
        assert!(!rejected.fault.to_string().is_empty());
        // What stands as it should be is never refused.
        for secret in [CONFIGURED, &gate.key] {
            let alone = bearers.is_empty() && keys == [secret.as_bytes()];
            assert!(!alone, "refused: {secret}");
        }
        for secret in [CONFIGURED, &gate.key, &gate.token] {
            let bearer = format!("Bearer {secret}");
            assert!(doubled(&keys) || bearers != [bearer.as_bytes()], "refused: {secret}");
        }
        return;
    };
    assert!(!doubled(&bearers) && !doubled(&keys), "one of two: {headers:?}");
    // One secret, whole, and nothing but the scheme beside it.
    let shown = match (&*bearers, &*keys) {
        ([bearer], _) => {
            let (scheme, secret) = bearer.split_at(7);
            assert!(scheme.eq_ignore_ascii_case(b"bearer "), "{bearer:?}");
            secret.trim_ascii_start()
        }
        ([], [key]) => key,
        _ => panic!("accepted without a credential"),
    };
    let subject = &*accepted.session.principal.identity.subject;
    let wanted = match subject {
        "configured" => CONFIGURED,
        "000000000001" => &gate.key,
        "000000000002" => &gate.token,
        other => panic!("nobody is {other}"),
    };
    assert_eq!(shown, wanted.as_bytes(), "taken for {subject}");
    if bearers.is_empty() {
        assert_ne!(accepted.session.principal.method, Method::Token, "a token came as a key");
    }
}

/// A text of our form says its id; a slip in it is seen.
fn read_as_secret(value: &[u8]) {
    let Ok(text) = std::str::from_utf8(value) else { return };
    let Some(id) = secret::id(text) else { return };
    assert_eq!(text.len(), secret::LENGTH);
    assert_eq!(text.split('_').nth(1), Some(id));
    assert!(id.len() == 12 && id.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()));
    for at in 0..text.len() {
        let mut slip = text.as_bytes().to_vec();
        slip[at] = if slip[at] == b'0' { b'1' } else { b'0' };
        assert_eq!(secret::id(std::str::from_utf8(&slip).unwrap()), None, "a slip at {at}");
    }
    assert_eq!(secret::id(&text.to_ascii_uppercase()), None);
}
