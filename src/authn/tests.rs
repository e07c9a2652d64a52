use std::{sync::OnceLock, time::Duration};

use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    signature::KeyPair as _,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::HeaderValue;
use serde_json::{Value, json};

use super::{tokens::KeyKind, *};
use crate::{
    config::{self, Algorithm, Jwt},
    domain::{Area, Namespace, Permission, PermissionSet, Scope, secret::Secret},
    storage::{CredentialKind, CredentialRecord},
};

const NOW: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_seconds(NOW)
}

struct KeyTexts {
    private: String,
    public: String,
}

fn keys(kind: KeyKind) -> &'static KeyTexts {
    static RSA: OnceLock<KeyTexts> = OnceLock::new();
    static EC: OnceLock<KeyTexts> = OnceLock::new();
    static ED: OnceLock<KeyTexts> = OnceLock::new();
    let make = || {
        let pair = tokens::generate(kind).unwrap();
        KeyTexts { private: pair.private.to_string(), public: pair.public }
    };
    match kind {
        KeyKind::Rsa(_) => RSA.get_or_init(make),
        KeyKind::P256 => EC.get_or_init(make),
        KeyKind::Ed25519 => ED.get_or_init(make),
    }
}

fn rsa() -> &'static KeyTexts {
    keys(KeyKind::Rsa(2048))
}

const KINDS: [KeyKind; 3] = [KeyKind::Rsa(2048), KeyKind::P256, KeyKind::Ed25519];

fn jwt_settings(public_key: &str) -> Jwt {
    let keys = config::Keys::Pem { text: public_key.to_owned(), origin: "a test".to_owned() };
    Jwt::new(keys, "bailiwick", "bailiwick-api")
}

fn api_key(key: &str, subject: &str, permission: &str) -> ApiKey {
    let mut permissions = PermissionSet::empty();
    assert!(permissions.add(permission, &BTreeSet::new()));
    ApiKey {
        subject: subject.into(),
        digest: Sha256::digest(key.as_bytes()).into(),
        permissions,
        scope: Scope::Everything,
        rate: OwnRate::None,
    }
}

fn authenticator(jwt: Option<Jwt>, api_keys: Vec<ApiKey>) -> Authenticator {
    try_authenticator(jwt, api_keys).unwrap()
}

fn try_authenticator(jwt: Option<Jwt>, api_keys: Vec<ApiKey>) -> Result<Authenticator, Error> {
    Authenticator::new(&Auth {
        mode: Mode::On(Box::new(Credentials {
            certificates: config::Certificates::default(),
            issuers: jwt.into_iter().collect(),
            api_key_header: HeaderName::from_static("x-api-key"),
            api_keys_enabled: true,
            api_keys,
        })),
        extra_permissions: BTreeSet::from([Arc::from("bundles:read")]),
        jwt_token_expiry: Duration::from_hours(1),
        token_store: TokenStore::Database,
        disable_unused_after_days: None,
    })
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn bearer(token: &str) -> HeaderMap {
    headers(&[("authorization", &format!("Bearer {token}"))])
}

/// Headers without a certificate, from nowhere.
fn alone(headers: &HeaderMap) -> Evidence<'_> {
    Evidence { headers, certificate: None, peer: None }
}

fn claims() -> Value {
    json!({
        "sub": "alice", "iss": "bailiwick", "aud": "bailiwick-api",
        "iat": NOW - 10, "exp": NOW + 3600,
        "permissions": ["tasks:read"], "worker_namespaces": [],
    })
}

/// A token from header and claims as they stand, signed by a key.
fn signed(header: &str, claims: &str, private: &str) -> String {
    let (algorithm, key) = pem::private_key(private).unwrap();
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), &key, pem::algorithm(algorithm)).unwrap();
    format!("{message}.{signature}")
}

fn rs256(claims: &Value) -> String {
    signed(r#"{"alg":"RS256","typ":"JWT"}"#, &claims.to_string(), &rsa().private)
}

fn with(name: &str, value: Value) -> Value {
    let mut changed = claims();
    changed[name] = value;
    changed
}

fn without(name: &str) -> Value {
    let mut changed = claims();
    changed.as_object_mut().unwrap().remove(name);
    changed
}

fn accept(settings: Jwt, token: &str) -> Result<Accepted, Rejected> {
    authenticator(Some(settings), Vec::new()).authenticate(alone(&bearer(token)), now())
}

fn fault(claims: &Value) -> Fault {
    accept(jwt_settings(&rsa().public), &rs256(claims)).unwrap_err().fault
}

fn good(claims: &Value) -> Arc<Principal> {
    let accepted = accept(jwt_settings(&rsa().public), &rs256(claims)).unwrap();
    Arc::clone(&accepted.session.principal)
}

#[test]
fn tk_09_tk_36_each_kind_of_key_verifies_its_own_algorithm() {
    for kind in KINDS {
        let KeyTexts { private, public } = keys(kind);
        let settings = jwt_settings(public);
        let token = tokens::sign(
            private,
            &tokens::Claims {
                sub: "alice".to_owned(),
                iss: "bailiwick".to_owned(),
                aud: "bailiwick-api".to_owned(),
                iat: NOW,
                exp: NOW + 60,
                permissions: vec!["tasks:create".to_owned()],
                namespaces: Some(vec!["shop".to_owned()]),
                worker_namespaces: Vec::new(),
            },
        )
        .unwrap();
        let accepted = accept(settings, &token).unwrap();
        let principal = &accepted.session.principal;
        assert!(accepted.fresh);
        assert_eq!(&*principal.identity.subject, "alice");
        assert_eq!(&*principal.identity.issuer, "bailiwick");
        assert_eq!(principal.identity.source, Source::Idp);
        assert_eq!(principal.scope_of(Permission::TasksCreate).to_strings(), ["shop"]);
        assert_eq!(principal.not_after, Some(Timestamp::from_seconds(NOW + 60)));
        assert_eq!(principal.credential_id.len(), 12);
        // Every other kind of key refuses it.
        for other in KINDS.into_iter().filter(|other| *other != kind) {
            let refused = accept(jwt_settings(&keys(other).public), &token).unwrap_err();
            assert!(matches!(refused.fault, Fault::Algorithm(_)), "{:?}", refused.fault);
        }
    }
}

#[test]
fn tk_36_pkcs1_and_spki_are_both_read() {
    // The PKCS#1 form is the bit string within the SPKI: 24 bytes in.
    let spki: String = rsa().public.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(spki).unwrap();
    let pkcs1 = pem::encode("RSA PUBLIC KEY", &der[24..]);
    let key = PublicKey::from_pem(&pkcs1).unwrap();
    assert_eq!(key.algorithm(), Algorithm::Rs256);
    assert!(accept(jwt_settings(&pkcs1), &rs256(&claims())).is_ok());
    let escaped = pkcs1.replace('\n', "\\n");
    assert!(accept(jwt_settings(&escaped), &rs256(&claims())).is_ok());
}

#[test]
fn a_key_that_is_none_stops_the_start_without_being_shown() {
    let body = pem::encode("PUBLIC KEY", b"not a key");
    let two = format!("{}{}", rsa().public, rsa().public);
    let cut = rsa().public.replace("-----END PUBLIC KEY-----", "");
    let p384 = aws_lc_rs::signature::EcdsaKeyPair::generate(
        &aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED_SIGNING,
    )
    .unwrap();
    let p384: PublicKeyX509Der<'_> = p384.public_key().as_der().unwrap();
    let p384 = pem::encode("PUBLIC KEY", p384.as_ref());
    for (pem, says) in [
        (rsa().private.as_str(), "private key"),
        ("secret words", "not a PEM"),
        (&body, "RSA with 2048"),
        (&two, "more than one"),
        (&cut, "no end"),
        (&p384, "EC P-256"),
    ] {
        let error = try_authenticator(Some(jwt_settings(pem)), Vec::new()).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("a test"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    let mut settings = jwt_settings(&rsa().public);
    settings.algorithms = Some(vec![Algorithm::EdDsa]);
    let error = try_authenticator(Some(settings), Vec::new()).unwrap_err().to_string();
    assert!(error.contains("RS256") && error.contains("jwt_allowed_algorithms"), "{error}");
}

#[test]
fn se_23_the_algorithm_comes_from_the_key_never_from_the_token() {
    let settings = || jwt_settings(&rsa().public);
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let claims = claims().to_string();

    let none = format!("{}.{}.", encode(r#"{"alg":"none"}"#), encode(&claims));
    assert!(matches!(accept(settings(), &none).unwrap_err().fault, Fault::Algorithm("RS256")));
    let absent = signed("{}", &claims, &rsa().private);
    assert!(matches!(accept(settings(), &absent).unwrap_err().fault, Fault::Algorithm(_)));

    // HS256 with the public key as the secret.
    let message = format!("{}.{}", encode(r#"{"alg":"HS256","typ":"JWT"}"#), encode(&claims));
    for secret in [rsa().public.as_bytes(), rsa().public.trim().as_bytes()] {
        let key = jsonwebtoken::EncodingKey::from_secret(secret);
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256)
                .unwrap();
        let forged = format!("{message}.{signature}");
        assert!(matches!(accept(settings(), &forged).unwrap_err().fault, Fault::Algorithm(_)));
    }
    // RS512 over the right key is not what the key is bound to.
    let rs512 = signed(r#"{"alg":"RS512"}"#, &claims, &rsa().private);
    assert!(matches!(accept(settings(), &rs512).unwrap_err().fault, Fault::Algorithm(_)));
}

#[test]
fn se_23_keys_within_a_token_mean_nothing() {
    let stranger = tokens::generate(KeyKind::Rsa(2048)).unwrap();
    let claims = claims().to_string();
    for header in [
        r#"{"alg":"RS256","jwk":{"kty":"RSA","e":"AQAB","n":"AQAB"}}"#,
        r#"{"alg":"RS256","jku":"https://evil.example/keys"}"#,
        r#"{"alg":"RS256","x5u":"https://evil.example/cert"}"#,
        r#"{"alg":"RS256","kid":"../../../../dev/null"}"#,
    ] {
        let forged = signed(header, &claims, &stranger.private);
        let refused = accept(jwt_settings(&rsa().public), &forged).unwrap_err();
        assert_eq!((refused.fault, refused.why), (Fault::Signature, Unauthenticated::Invalid));
        // And they do not hurt a genuine one.
        let genuine = signed(header, &claims, &rsa().private);
        assert!(accept(jwt_settings(&rsa().public), &genuine).is_ok());
    }
}

#[test]
fn se_23_se_32_headers_that_demand_or_pretend_are_refused() {
    let claims = claims().to_string();
    for (header, expected) in [
        (r#"{"alg":"RS256","crit":["exp"]}"#, Fault::Critical),
        (r#"{"alg":"RS256","crit":[]}"#, Fault::Critical),
        (r#"{"alg":"RS256","b64":false}"#, Fault::Critical),
        (r#"{"alg":"RS256","typ":"bwk-step+jwt"}"#, Fault::Type),
        (r#"{"alg":"RS256","typ":"bwk-node+jwt"}"#, Fault::Type),
        (r#"{"alg":"RS256","typ":"secevent+jwt"}"#, Fault::Type),
        (r#"{"alg":"RS256","typ":7}"#, Fault::Type),
        (r#"{"alg":"RS256","typ":null}"#, Fault::Type),
    ] {
        let token = signed(header, &claims, &rsa().private);
        assert_eq!(accept(jwt_settings(&rsa().public), &token).unwrap_err().fault, expected);
    }
    for header in [
        r#"{"alg":"RS256"}"#,
        r#"{"alg":"RS256","typ":"jwt"}"#,
        r#"{"alg":"RS256","typ":"at+jwt"}"#,
    ] {
        let token = signed(header, &claims, &rsa().private);
        assert!(accept(jwt_settings(&rsa().public), &token).is_ok(), "{header}");
    }
}

#[test]
fn se_23_a_name_that_stands_twice_is_refused() {
    let text = claims().to_string();
    let twice = text.replacen('{', r#"{"permissions":["*"],"#, 1);
    let nested = text.replacen('{', r#"{"x":{"a":1,"a":2},"#, 1);
    let header = r#"{"alg":"RS256"}"#;
    for token in [
        signed(header, &twice, &rsa().private),
        signed(header, &nested, &rsa().private),
        signed(r#"{"alg":"RS256","alg":"RS256"}"#, &text, &rsa().private),
        signed(header, "[]", &rsa().private),
        signed(header, "{} {}", &rsa().private),
    ] {
        let refused = accept(jwt_settings(&rsa().public), &token).unwrap_err();
        assert!(matches!(refused.fault, Fault::Malformed(_)), "{:?}", refused.fault);
    }
}

#[test]
fn se_23_only_one_spelling_of_a_token_counts() {
    let token = rs256(&claims());
    let settings = || jwt_settings(&rsa().public);
    let (message, signature) = token.rsplit_once('.').unwrap();
    for changed in [
        format!("{token}="),
        format!("{token}."),
        format!("{token}.x"),
        format!(".{token}"),
        format!("{message}."),
        message.to_owned(),
        token.replace('.', ".."),
        format!("{message}.{}", signature.replace(['_', '-'], "+")),
    ] {
        if changed != token {
            assert!(accept(settings(), &changed).is_err(), "{changed}");
        }
    }
    // A signature of 256 bytes leaves four bits over, which must be zero.
    let last = signature.chars().last().unwrap();
    let twin = char::from_u32(u32::from(last) + 1).unwrap();
    let twin = format!("{message}.{}{twin}", &signature[..signature.len() - 1]);
    assert!(accept(settings(), &twin).is_err());
    let long = "a".repeat(17 * 1024);
    let refused = accept(settings(), &rs256(&with("sub", json!(long)))).unwrap_err();
    assert_eq!(refused.fault, Fault::Malformed("too long"));
}

#[test]
fn tk_31_the_issuer_must_be_ours() {
    assert_eq!(fault(&with("iss", json!("other"))), Fault::Issuer);
    assert_eq!(fault(&with("iss", json!("Bailiwick"))), Fault::Issuer);
    assert_eq!(fault(&without("iss")), Fault::ClaimMissing("iss"));
    assert!(matches!(fault(&with("iss", json!(["bailiwick"]))), Fault::ClaimInvalid(..)));
}

#[test]
fn tk_32_the_audience_must_be_ours_or_hold_ours() {
    assert_eq!(fault(&with("aud", json!("other"))), Fault::Audience);
    assert_eq!(fault(&with("aud", json!([]))), Fault::Audience);
    assert_eq!(fault(&with("aud", json!(["a", "b"]))), Fault::Audience);
    assert_eq!(fault(&without("aud")), Fault::ClaimMissing("aud"));
    for odd in [json!(null), json!(1), json!(["bailiwick-api", 1]), json!({"bailiwick-api": 1})] {
        assert!(matches!(fault(&with("aud", odd)), Fault::ClaimInvalid(..)));
    }
    good(&with("aud", json!(["x", "bailiwick-api"])));
}

#[test]
fn tk_33_expiry_is_required_and_counts() {
    for past in [0, NOW - 1, NOW] {
        let refused =
            accept(jwt_settings(&rsa().public), &rs256(&with("exp", json!(past)))).unwrap_err();
        assert_eq!((refused.fault, refused.why), (Fault::Expired, Unauthenticated::Expired));
    }
    good(&with("exp", json!(NOW + 1)));
    assert_eq!(fault(&without("exp")), Fault::ClaimMissing("exp"));
}

#[test]
fn tk_33_expiry_is_told_only_behind_a_good_signature() {
    let token = rs256(&with("exp", json!(NOW - 1)));
    let (message, _) = token.rsplit_once('.').unwrap();
    let (_, signature) =
        rs256(&claims()).rsplit_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let refused =
        accept(jwt_settings(&rsa().public), &format!("{message}.{signature}")).unwrap_err();
    assert_eq!(refused.why, Unauthenticated::Invalid);
}

#[test]
fn se_23_times_are_integers_in_range() {
    for name in ["exp", "nbf", "iat"] {
        for odd in [
            json!("1900000000"),
            json!(1.9e9),
            json!(1_900_000_000.5),
            json!(-1),
            json!(253_402_300_800_i64),
            json!(u64::MAX),
            json!(null),
            json!([NOW]),
        ] {
            let found = fault(&with(name, odd.clone()));
            assert!(matches!(&found, Fault::ClaimInvalid(of, _) if of == name), "{name} {odd}");
        }
    }
}

#[test]
fn se_23_a_token_is_not_taken_before_its_time() {
    let refused =
        accept(jwt_settings(&rsa().public), &rs256(&with("nbf", json!(NOW + 1)))).unwrap_err();
    assert_eq!((refused.fault, refused.why), (Fault::NotYetValid, Unauthenticated::NotYetValid));
    good(&with("nbf", json!(NOW)));
}

#[test]
fn se_23_the_leeway_moves_both_ends_and_the_principals_end() {
    let settings = || Jwt { leeway: Duration::from_secs(5), ..jwt_settings(&rsa().public) };
    assert!(accept(settings(), &rs256(&with("exp", json!(NOW - 5)))).is_err());
    let accepted = accept(settings(), &rs256(&with("exp", json!(NOW - 4)))).unwrap();
    assert_eq!(accepted.session.principal.not_after, Some(Timestamp::from_seconds(NOW + 1)));
    assert!(accept(settings(), &rs256(&with("nbf", json!(NOW + 5)))).is_ok());
    assert!(accept(settings(), &rs256(&with("nbf", json!(NOW + 6)))).is_err());
}

#[test]
fn se_23_a_subject_is_required_and_fit_for_a_log() {
    assert_eq!(fault(&without("sub")), Fault::ClaimMissing("sub"));
    for odd in [json!(""), json!(7), json!("a\nb"), json!("x".repeat(257))] {
        assert!(matches!(fault(&with("sub", odd)), Fault::ClaimInvalid(..)));
    }
}

#[test]
fn tk_41_the_permissions_claim_has_the_configured_name() {
    let mut changed = without("permissions");
    changed["scp"] = json!(["tasks:list"]);
    let settings = Jwt { permissions_claim: "scp".to_owned(), ..jwt_settings(&rsa().public) };
    let accepted = accept(settings, &rs256(&changed)).unwrap();
    assert!(accepted.session.principal.holds(Permission::TasksList));
    // Without the claim a token is known and holds nothing.
    let nothing = good(&changed);
    assert!(Permission::ALL.iter().all(|permission| !nothing.holds(*permission)));
}

#[test]
fn tk_42_tk_43_unknown_permissions_are_refused_or_ignored() {
    let token = rs256(&with("permissions", json!(["tasks:read", "foo:bar", "foo:\n*"])));
    let unknown = || vec!["foo:bar".to_owned(), "foo:\\n*".to_owned()];
    let strict = accept(jwt_settings(&rsa().public), &token).unwrap_err();
    assert_eq!(strict.fault, Fault::UnknownPermissions(unknown()));
    assert_eq!(strict.why, Unauthenticated::Invalid);

    let lenient = || Jwt { strict: false, ..jwt_settings(&rsa().public) };
    let accepted = accept(lenient(), &token).unwrap();
    assert_eq!(accepted.unknown_permissions, unknown());
    assert_eq!(accepted.session.principal.grants[0].permissions.names(), ["tasks:read"]);

    let quiet = Jwt { log_unknown: false, ..lenient() };
    assert!(accept(quiet, &token).unwrap().unknown_permissions.is_empty());
    let quiet = Jwt { log_unknown: false, ..jwt_settings(&rsa().public) };
    assert_eq!(accept(quiet, &token).unwrap_err().fault, Fault::UnknownPermissions(Vec::new()));
}

#[test]
fn tk_42_permissions_of_a_wrong_type_are_refused_in_both_modes() {
    for odd in [json!(7), json!(null), json!({"tasks:read": true}), json!(["a", 1])] {
        let token = rs256(&with("permissions", odd));
        for strict in [true, false] {
            let settings = Jwt { strict, ..jwt_settings(&rsa().public) };
            assert!(matches!(accept(settings, &token).unwrap_err().fault, Fault::ClaimInvalid(..)));
        }
    }
}

#[test]
fn tk_30_se_05_a_star_in_a_token_opens_everything_and_is_not_root() {
    let principal = good(&with("permissions", json!(["*"])));
    assert!(Permission::ALL.iter().all(|permission| principal.holds(*permission)));
    assert!(!principal.is_root());
    let foreign = good(&with("permissions", json!(["bundles:read"])));
    assert!(foreign.grants[0].permissions.contains_foreign("bundles:read"));
}

#[test]
fn se_06_the_namespaces_claim_scopes_the_token() {
    let scope = |principal: &Principal| principal.scope_of(Permission::TasksRead);
    assert_eq!(scope(&good(&claims())), Scope::Everything);
    assert_eq!(scope(&good(&with("namespaces", json!([])))), Scope::NOWHERE);
    assert_eq!(scope(&good(&with("namespaces", json!(["*"])))), Scope::Everything);
    assert_eq!(scope(&good(&with("namespaces", json!(["a", "b."])))).to_strings(), ["a", "b."]);
    for odd in [
        json!(""),
        json!("shop"),
        json!(null),
        json!([""]),
        json!(["deploy.*"]),
        json!([" shop"]),
        json!([1]),
        json!({}),
    ] {
        for name in ["namespaces", "worker_namespaces"] {
            let found = fault(&with(name, odd.clone()));
            assert!(matches!(&found, Fault::ClaimInvalid(of, _) if of == name), "{name} {odd}");
        }
    }
    let narrow =
        Jwt { default_scope: Scope::parse(&["shop"]).unwrap(), ..jwt_settings(&rsa().public) };
    let accepted = accept(narrow, &rs256(&claims())).unwrap();
    assert_eq!(scope(&accepted.session.principal).to_strings(), ["shop"]);
}

#[test]
fn tk_51_worker_namespaces_narrow_worker_calls_when_not_empty() {
    let mut changed = with("permissions", json!(["work:lease", "tasks:read"]));
    let shop = Area::Exactly(Namespace::parse("shop").unwrap());
    let other = Area::Exactly(Namespace::parse("other").unwrap());
    assert!(good(&changed).may_in_area(Permission::WorkLease, &other));
    changed["worker_namespaces"] = json!(["shop"]);
    let narrowed = good(&changed);
    assert!(narrowed.may_in_area(Permission::WorkLease, &shop));
    assert!(!narrowed.may_in_area(Permission::WorkLease, &other));
    assert!(narrowed.may_in_area(Permission::TasksRead, &other));
}

#[test]
fn tk_44_to_47_an_api_key_is_a_principal_by_its_description() {
    let authenticator = authenticator(None, vec![api_key("k-1", "Monitoring", "tasks:read")]);
    for presented in [
        headers(&[("X-API-KEY", "k-1")]),
        headers(&[("authorization", "bearer k-1")]),
        headers(&[("authorization", "BEARER   k-1")]),
    ] {
        let accepted = authenticator.authenticate(alone(&presented), now()).unwrap();
        let principal = &accepted.session.principal;
        assert_eq!(&*principal.identity.subject, "Monitoring");
        assert_eq!(principal.identity.source, Source::Config);
        assert_eq!(principal.method, Method::ApiKey);
        assert_eq!(
            &*principal.credential_id,
            &secret::id_of_stranger(&Sha256::digest(b"k-1").into())[..]
        );
        assert_eq!(principal.credential_id.len(), 12);
    }
    let refused =
        authenticator.authenticate(alone(&headers(&[("x-api-key", "k-2")])), now()).unwrap_err();
    assert_eq!((refused.why, refused.method), (Unauthenticated::Invalid, Method::ApiKey));
    let refused = authenticator.authenticate(alone(&bearer("k-2")), now()).unwrap_err();
    assert_eq!((refused.why, refused.method), (Unauthenticated::Invalid, Method::Token));
    let refused = authenticator.authenticate(alone(&bearer("a.b.c")), now()).unwrap_err();
    assert_eq!((refused.fault, refused.method), (Fault::NoJwtKey, Method::Jwt));
}

#[test]
fn se_14_doubled_joined_and_odd_credentials_are_refused() {
    use Unauthenticated::{Ambiguous, Invalid, Missing};
    let authenticator = authenticator(None, vec![api_key("good", "A", "tasks:read")]);
    let why = |pairs: &[(&str, &str)]| {
        authenticator.authenticate(alone(&headers(pairs)), now()).map(|_| ()).map_err(|no| no.why)
    };
    let cases: &[(&[(&str, &str)], Unauthenticated)] = &[
        (&[], Missing),
        (&[("authorization", "Bearer good"), ("authorization", "Bearer good")], Ambiguous),
        (&[("authorization", "Bearer good, Bearer good")], Ambiguous),
        (&[("authorization", "Bearer good,good")], Ambiguous),
        (&[("x-api-key", "good"), ("x-api-key", "good")], Ambiguous),
        (&[("x-api-key", "good,good")], Ambiguous),
        (&[("authorization", "Bearer good"), ("x-api-key", "a"), ("x-api-key", "b")], Ambiguous),
        // A bearer wins and never falls back to the key.
        (&[("authorization", "Bearer bad"), ("x-api-key", "good")], Invalid),
        (&[("authorization", "Bearer"), ("x-api-key", "good")], Invalid),
        (&[("authorization", "Basic Z29vZA=="), ("x-api-key", "good")], Invalid),
        (&[("authorization", ""), ("x-api-key", "good")], Invalid),
        (&[("authorization", "good")], Invalid),
        (&[("authorization", "Bearer\tgood")], Invalid),
        (&[("authorization", "Bearer good good")], Invalid),
        (&[("authorization", "Bearer go\tod")], Invalid),
        (&[("authorization", "Bearer g\u{f6}\u{f6}d")], Invalid),
        (&[("x-api-key", "")], Invalid),
        (&[("x-api-key", "good ")], Invalid),
        (&[("x-api-key", "\u{f6}")], Invalid),
    ];
    for (pairs, expected) in cases {
        assert_eq!(why(pairs), Err(*expected), "{pairs:?}");
    }
    assert_eq!(why(&[("authorization", "Bearer good"), ("x-api-key", "bad")]), Ok(()));
}

#[test]
fn se_38_the_cache_does_not_forget_how_a_token_came() {
    let authenticator = authenticator(Some(jwt_settings(&rsa().public)), Vec::new());
    let token = rs256(&claims());
    assert!(authenticator.authenticate(alone(&bearer(&token)), now()).is_ok());
    // Also not from the cache.
    let refused = authenticator.authenticate(alone(&headers(&[("x-api-key", &token)])), now());
    assert_eq!(refused.unwrap_err().fault, Fault::UnknownKey);
}

#[test]
fn tk_57_a_credential_is_fresh_once_a_minute() {
    let authenticator =
        authenticator(Some(jwt_settings(&rsa().public)), vec![api_key("k", "A", "tasks:read")]);
    let token = rs256(&claims());
    for presented in [headers(&[("x-api-key", "k")]), bearer(&token)] {
        let fresh: Vec<bool> = [0, 1, 59, 60, 61, 119, 120]
            .into_iter()
            .map(|after| {
                let at = Timestamp::from_seconds(NOW + after);
                authenticator.authenticate(alone(&presented), at).unwrap().fresh
            })
            .collect();
        assert_eq!(fresh, [true, false, false, true, false, false, true]);
    }
}

#[test]
fn se_16_a_cached_token_ends_when_it_expires() {
    let authenticator = authenticator(Some(jwt_settings(&rsa().public)), Vec::new());
    let presented = bearer(&rs256(&with("exp", json!(NOW + 10))));
    let at =
        |after| authenticator.authenticate(alone(&presented), Timestamp::from_seconds(NOW + after));
    let first = at(0).unwrap();
    let second = at(9).unwrap();
    assert!(Arc::ptr_eq(&first.session, &second.session));
    assert_eq!(at(10).unwrap_err().why, Unauthenticated::Expired);
}

#[test]
fn se_16_revoked_credentials_are_refused_from_the_cache_too() {
    let authenticator =
        authenticator(Some(jwt_settings(&rsa().public)), vec![api_key("k", "A", "tasks:read")]);
    let token = bearer(&rs256(&claims()));
    let session = authenticator.authenticate(alone(&token), now()).unwrap().session;
    assert!(!session.revoked.is_cancelled());
    authenticator.revoke_all();
    assert!(session.revoked.is_cancelled());
    for presented in [token, headers(&[("x-api-key", "k")])] {
        let refused = authenticator.authenticate(alone(&presented), now()).unwrap_err();
        assert_eq!(refused.why, Unauthenticated::Revoked);
    }
}

#[test]
fn tk_01_auth_off_is_one_explicit_principal() {
    let off = Authenticator::new(&Auth {
        mode: Mode::Off,
        extra_permissions: BTreeSet::new(),
        jwt_token_expiry: Duration::from_secs(1),
        token_store: TokenStore::Database,
        disable_unused_after_days: None,
    })
    .unwrap();
    for presented in [HeaderMap::new(), bearer("garbage")] {
        let accepted = off.authenticate(alone(&presented), now()).unwrap();
        assert_eq!(*accepted.session.principal, Principal::auth_off());
    }
}

#[test]
fn tk_07_inspection_lists_every_fault() {
    let key = PublicKey::from_pem(&rsa().public).unwrap();
    let expected = tokens::Expectations {
        issuer: Some("bailiwick".to_owned()),
        audience: Some("bailiwick-api".to_owned()),
        ..tokens::Expectations::default()
    };
    let good = tokens::inspect(&rs256(&claims()), &key, &expected, now());
    assert_eq!(good.faults, []);
    assert_eq!(good.claims["sub"], "alice");

    let stranger = tokens::generate(KeyKind::Rsa(2048)).unwrap();
    let bad = json!({
        "sub": "alice", "iss": "other", "aud": "other", "exp": NOW - 1, "permissions": ["foo:bar"],
    });
    let token = signed(r#"{"alg":"RS256","typ":"x"}"#, &bad.to_string(), &stranger.private);
    let found = tokens::inspect(&token, &key, &expected, now());
    assert_eq!(
        found.faults,
        [
            Fault::Type,
            Fault::Signature,
            Fault::Issuer,
            Fault::Audience,
            Fault::Expired,
            Fault::UnknownPermissions(vec!["foo:bar".to_owned()]),
        ]
    );
    let unchecked = tokens::inspect(&token, &key, &tokens::Expectations::default(), now());
    assert!(!unchecked.faults.contains(&Fault::Issuer));
    assert!(matches!(
        tokens::inspect("a.b", &key, &expected, now()).faults[..],
        [Fault::Malformed(_)]
    ));
}

#[test]
fn tk_04_openssl_reads_the_keys_and_we_read_openssls() {
    use std::process::Command;
    let folder = tempfile::tempdir().unwrap();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .expect("this test needs the openssl program");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for (kind, says) in [
        (KeyKind::Rsa(2048), "2048 bit"),
        (KeyKind::P256, "256 bit"),
        (KeyKind::Ed25519, "ED25519"),
    ] {
        let KeyTexts { private, public } = keys(kind);
        std::fs::write(folder.path().join("private.pem"), private).unwrap();
        std::fs::write(folder.path().join("public.pem"), public).unwrap();
        let shown = openssl(&["pkey", "-in", "private.pem", "-noout", "-text"]);
        assert!(shown.contains(says), "{shown}");
        openssl(&["pkey", "-pubin", "-in", "public.pem", "-noout"]);
        assert_eq!(&openssl(&["pkey", "-in", "private.pem", "-pubout"]), public);
    }
    for arguments in [
        &["genrsa", "-out", "own.pem", "2048"][..],
        &["genrsa", "-traditional", "-out", "own.pem", "2048"],
        &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "own.pem"],
        &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "own.pem"],
        &["genpkey", "-algorithm", "ed25519", "-out", "own.pem"],
    ] {
        openssl(arguments);
        let private = std::fs::read_to_string(folder.path().join("own.pem")).unwrap();
        let public = openssl(&["pkey", "-in", "own.pem", "-pubout"]);
        let key = PublicKey::from_pem(&public).unwrap();
        let header = format!(r#"{{"alg":"{}"}}"#, key.algorithm());
        let token = signed(&header, &claims().to_string(), &private);
        assert!(accept(jwt_settings(&public), &token).is_ok(), "{arguments:?}");
    }
}

#[test]
fn weak_rsa_keys_are_neither_made_nor_taken() {
    assert!(matches!(tokens::generate(KeyKind::Rsa(1024)), Err(tokens::Error::KeySize(1024))));
    assert!(matches!(
        tokens::sign("nonsense", &serde_json_claims()),
        Err(tokens::Error::PrivateKey(_))
    ));
}

fn serde_json_claims() -> tokens::Claims {
    tokens::Claims {
        sub: String::new(),
        iss: String::new(),
        aud: String::new(),
        iat: 0,
        exp: 0,
        permissions: Vec::new(),
        namespaces: None,
        worker_namespaces: Vec::new(),
    }
}

#[test]
fn nothing_secret_is_in_debug_texts() {
    let authenticator = authenticator(
        Some(jwt_settings(&rsa().public)),
        vec![api_key("k-secret", "A", "tasks:read")],
    );
    assert_eq!(format!("{authenticator:?}"), "Authenticator(1 API keys, JWT on)");
    let pair = tokens::generate(KeyKind::Ed25519).unwrap();
    assert_eq!(format!("{pair:?}"), "KeyPairPem");
}

#[test]
fn tk_41_the_claim_may_be_a_text_or_lie_deeper() {
    let named =
        |name: &str| Jwt { permissions_claim: name.to_owned(), ..jwt_settings(&rsa().public) };
    let held = |settings: Jwt, claims: &Value| {
        let accepted = accept(settings, &rs256(claims)).unwrap();
        accepted.session.principal.grants[0].permissions.names()
    };
    let text = with("scope", json!("tasks:read  steps:read"));
    assert_eq!(held(named("scope"), &text), ["tasks:read", "steps:read"]);
    let deep = with("realm_access", json!({"roles": ["role:task-submitter"]}));
    let path = "realm_access.roles";
    assert_eq!(held(named(path), &deep), ["tasks:create", "tasks:read", "tasks:list"]);
    // The claim of the whole name comes first.
    let mut both = deep;
    both[path] = json!(["dlq:read"]);
    assert_eq!(held(named(path), &both), ["dlq:read"]);
    let odd = with("realm_access", json!(["roles"]));
    assert!(held(named(path), &odd).is_empty());
    // An unknown role is an unknown permission.
    let unknown = rs256(&with("permissions", json!(["role:nobody"])));
    let fault = accept(jwt_settings(&rsa().public), &unknown).unwrap_err().fault;
    assert_eq!(fault, Fault::UnknownPermissions(vec!["role:nobody".to_owned()]));
}

/// A token or an API key that the server gave out.
fn given(number: u64, kind: CredentialKind) -> (Secret, CredentialRecord) {
    let secret = Secret::new(number, &[7; 32]);
    let record = CredentialRecord {
        id: secret.id(),
        digest: secret.digest(),
        kind,
        name: None,
        scopes: vec!["tasks:read".to_owned()],
        namespaces: vec!["*".to_owned()],
        networks: Vec::new(),
        created_by: Identity { source: Source::Config, issuer: "".into(), subject: "root".into() },
        created_with: "root".into(),
        created_at: now(),
        expires_at: None,
        max_uses: None,
        uses: 0,
        parent: None,
        family: secret.id(),
        descent: Vec::new(),
        revoked_at: None,
        last_used_at: None,
    };
    (secret, record)
}

/// A search would compare thousands of digests. In a hash table a few are,
/// by chance, however many there are.
#[test]
fn se_10_se_23_a_look_up_compares_no_more_among_ten_thousand_credentials() {
    const MANY: u64 = 5_000;
    const FEW_COMPARISONS: usize = 8;
    let gate = |count: u64| {
        let configured = |number| format!("sk-key-{number}");
        let api_keys = (0..count)
            .map(|number| api_key(&configured(number), &configured(number), "tasks:read"));
        let gate = authenticator(None, api_keys.collect());
        for number in 0..count {
            let kind = if number % 2 == 0 { CredentialKind::Token } else { CredentialKind::ApiKey };
            gate.issued().insert(given(number, kind).1);
        }
        gate
    };
    let (few, many) = (gate(2), gate(MANY));
    let key = |text: &str| headers(&[("x-api-key", text)]);
    let secret = |number, kind| given(number, kind).0.expose().to_owned();
    let stranger = Secret::new(MANY - 2, &[8; 32]).expose().to_owned();
    for (what, headers, good) in [
        ("the first key of the configuration", key("sk-key-0"), true),
        ("its last key", key("sk-key-4999"), true),
        ("near its last key", key("sk-key-499x"), false),
        ("an unknown key", key("zz-zzz-zzzz"), false),
        ("an unknown bearer", bearer("zz-zzz-zzzz"), false),
        ("the first token", bearer(&secret(0, CredentialKind::Token)), true),
        ("the last token", bearer(&secret(MANY - 2, CredentialKind::Token)), true),
        ("the last API key", key(&secret(MANY - 1, CredentialKind::ApiKey)), true),
        ("a secret of the next id", bearer(&secret(MANY, CredentialKind::Token)), false),
        ("a known id with another secret", bearer(&stranger), false),
    ] {
        let compared = |gate: &Authenticator| {
            digest::COMPARED.set(0);
            let answer = gate.authenticate(alone(&headers), now());
            (digest::COMPARED.get(), answer.is_ok())
        };
        let (more, accepted) = compared(&many);
        assert_eq!(accepted, good, "{what}");
        assert!(usize::from(good) <= more && more <= FEW_COMPARISONS, "{what}: {more}");
        assert!(compared(&few).0 <= FEW_COMPARISONS, "{what}");
    }
}

/// Whoever has an id from a list, and not the secret, learns nothing of it:
/// the refusal is that of an id that never was.
#[test]
fn se_10_dk_49_a_known_id_with_another_secret_is_unknown() {
    let gate = authenticator(None, Vec::new());
    let over = |record: CredentialRecord| {
        let early = Timestamp::from_seconds(NOW - 1);
        [
            record.clone(),
            CredentialRecord { revoked_at: Some(early), ..record.clone() },
            CredentialRecord { expires_at: Some(early), ..record.clone() },
            CredentialRecord { max_uses: Some(1), uses: 1, ..record.clone() },
            CredentialRecord { networks: vec!["192.0.2.0/24".to_owned()], ..record },
        ]
    };
    for kind in [CredentialKind::Token, CredentialKind::ApiKey] {
        for record in over(given(1, kind).1) {
            gate.issued().insert(record);
            for (number, bytes) in [(1, [8; 32]), (2, [7; 32])] {
                let guess = Secret::new(number, &bytes);
                let refused = |headers: &HeaderMap| {
                    gate.authenticate(alone(headers), now()).map(drop).unwrap_err()
                };
                let by_bearer = refused(&bearer(guess.expose()));
                assert_eq!(by_bearer.why, Unauthenticated::Invalid);
                assert_eq!(by_bearer.fault, Fault::UnknownToken);
                let by_key = refused(&headers(&[("x-api-key", guess.expose())]));
                assert_eq!(
                    (by_key.why, by_key.fault),
                    (Unauthenticated::Invalid, Fault::UnknownKey)
                );
            }
        }
    }
}
