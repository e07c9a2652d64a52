//! Credentials at the front door: what is taken, what is refused, and what
//! the caller, the log and the figures say of it. Each permission at each RPC
//! and route is the matter of `auth_matrix`.

use std::{path::Path, process::Stdio};

use bailiwick::authn::tokens::{self, Claims, KeyKind, KeyPairPem};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{
    self, ROOT_KEY, Server, Setup,
    credentials::{self, AUDIENCE, ISSUER, READER_KEY, Token},
    wire,
};

/// What a credential gets by REST and by gRPC; the two always agree (TK-64,
/// TK-69, TK-70).
async fn list(server: &Server, headers: &[(&str, &str)]) -> (u16, Value) {
    let (status, body) = server.json("GET", "/v1/tasks", headers, None).await;
    let grpc = server.grpc("TaskService/ListTasks", json!({}), headers).await;
    let code = grpc.as_ref().map_or_else(tonic::Status::code, |_| Code::Ok);
    let wanted = match status {
        200 => Code::Ok,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        other => panic!("{other} {body}"),
    };
    assert_eq!(code, wanted, "{grpc:?} for {body}");
    if let Err(refused) = grpc {
        assert_eq!(refused.message(), body["message"]);
    }
    (status, body)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

async fn with_token(server: &Server, token: &str) -> (u16, String) {
    let (status, body) = list(server, &[("authorization", &bearer(token))]).await;
    (status, body["reason"].as_str().unwrap_or_default().to_owned())
}

fn lister() -> Token {
    Token::new("lister", &["tasks:list"])
}

fn environment(pairs: &[(&str, &str)]) -> Setup {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Setup { environment: pairs.iter().map(owned).collect(), ..Setup::default() }
}

fn auth_lines(lines: &str) -> Setup {
    Setup { rest: lines.to_owned(), ..Setup::default() }
}

/// An `[auth]` table of one's own.
fn own_auth(lines: &str) -> Setup {
    Setup { auth: false, rest: lines.to_owned(), ..Setup::default() }
}

#[tokio::test]
async fn tk_01_auth_is_off_by_default_and_on_loopback_only() {
    let off = own_auth("");
    let server = Server::with(off.clone()).await;
    assert_eq!(list(&server, &[]).await.0, 200);

    // An address of nobody: it is never listened on.
    let said = harness::refused_on(&off, "192.0.2.1:0").await;
    assert!(said.contains("auth.allow_unauthenticated_remote"), "{said}");
    let allowed = own_auth("allow_unauthenticated_remote = true\n");
    let said = harness::refused_on(&allowed, "192.0.2.1:0").await;
    assert!(said.contains("cannot listen on 192.0.2.1"), "{said}");
}

#[tokio::test]
async fn tk_02_and_tk_56_turning_it_on_asks_everybody_for_credentials() {
    let off = Server::with(own_auth("")).await;
    assert_eq!(list(&off, &[]).await.0, 200);
    let server = Server::start().await;
    let (status, body) = list(&server, &[]).await;
    assert_eq!((status, &body["reason"]), (401, &json!("CREDENTIALS_MISSING")));
}

#[tokio::test]
async fn tk_09_and_tk_67_bearers_and_keys_open_both_surfaces() {
    let server = Server::start().await;
    let token = lister().sign();
    assert_eq!(with_token(&server, &token).await.0, 200);
    assert_eq!(list(&server, &[("x-api-key", READER_KEY)]).await.0, 200);
    // A key may come as a bearer too.
    assert_eq!(with_token(&server, READER_KEY).await.0, 200);
    for scheme in ["bearer", "BEARER", "bEaReR"] {
        let value = format!("{scheme} {token}");
        assert_eq!(list(&server, &[("authorization", &value)]).await.0, 200, "{scheme}");
    }
    for value in ["", "Bearer", "Bearer ", &token, "Basic cm9vdDpyb290", "Token x", "Bearer a b"] {
        assert_eq!(list(&server, &[("authorization", value)]).await.0, 401, "{value:?}");
    }
}

#[tokio::test]
async fn tk_09_a_bearer_wins_over_a_key_and_never_falls_back_to_it() {
    let server = Server::start().await;
    let good = bearer(&lister().sign());
    let both = |authorization| [("authorization", authorization), ("x-api-key", ROOT_KEY)];
    assert_eq!(list(&server, &both(&good)).await.0, 200);
    // Root's key would open this; the bearer that decides does not.
    let (status, body) = server.json("GET", "/v1/workers", &both(&good), None).await;
    assert_eq!(
        (status, &body["message"]),
        (403, &json!("Missing required permission: nodes:read"))
    );
    let expired = lister().claim("exp", (credentials::now() - 1).into()).sign();
    for bad in ["Bearer garbage", "Bearer a.b.c", "Basic x", &bearer(&expired)] {
        assert_eq!(list(&server, &both(bad)).await.0, 401, "{bad}");
    }
    let (status, _) = list(&server, &[("authorization", &good), ("x-api-key", "garbage")]).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn tk_31_to_33_and_se_23_issuer_audience_times_and_claims() {
    let server = Server::start().await;
    let now = credentials::now();
    let invalid = "CREDENTIALS_INVALID";
    let cases = [
        ("as it should be", lister(), 200, ""),
        ("TK-31 another issuer", lister().claim("iss", "other".into()), 401, invalid),
        ("TK-31 no issuer", lister().without("iss"), 401, invalid),
        ("TK-31 a list of issuers", lister().claim("iss", json!([ISSUER])), 401, invalid),
        ("TK-32 another audience", lister().claim("aud", "other".into()), 401, invalid),
        ("TK-32 no audience", lister().without("aud"), 401, invalid),
        ("TK-32 an empty list", lister().claim("aud", json!([])), 401, invalid),
        ("TK-32 in a list", lister().claim("aud", json!(["other", AUDIENCE])), 200, ""),
        ("TK-32 a list of others", lister().claim("aud", json!(["other"])), 401, invalid),
        ("TK-32 a list with a number", lister().claim("aud", json!([AUDIENCE, 1])), 401, invalid),
        ("TK-33 past", lister().claim("exp", (now - 1).into()), 401, "CREDENTIALS_EXPIRED"),
        ("TK-33 no end", lister().without("exp"), 401, invalid),
        ("nbf to come", lister().claim("nbf", (now + 60).into()), 401, "CREDENTIALS_NOT_YET_VALID"),
        ("nbf past", lister().claim("nbf", (now - 60).into()), 200, ""),
        ("SE-23 exp as text", lister().claim("exp", "4102444800".into()), 401, invalid),
        ("SE-23 exp with a fraction", lister().claim("exp", json!(4_102_444_800.5)), 401, invalid),
        ("SE-23 exp below zero", lister().claim("exp", json!(-1)), 401, invalid),
        ("SE-23 exp beyond all years", lister().claim("exp", json!(u64::MAX)), 401, invalid),
        ("SE-23 exp null", lister().claim("exp", Value::Null), 401, invalid),
        ("SE-23 nbf as text", lister().claim("nbf", "0".into()), 401, invalid),
        ("SE-23 iat as text", lister().claim("iat", "0".into()), 401, invalid),
        ("SE-23 no subject", lister().without("sub"), 401, invalid),
        ("SE-23 an empty subject", lister().claim("sub", "".into()), 401, invalid),
        ("SE-23 a number as subject", lister().claim("sub", 7.into()), 401, invalid),
        ("SE-23 permissions as number", lister().claim("permissions", 7.into()), 401, invalid),
    ];
    for (what, token, status, reason) in cases {
        assert_eq!(with_token(&server, &token.sign()).await, (status, reason.to_owned()), "{what}");
    }
    let nothing = lister().without("permissions").sign();
    assert_eq!(with_token(&server, &nothing).await.0, 403);
}

#[tokio::test]
async fn tk_33_the_leeway_is_five_seconds_at_most() {
    let server = Server::with(environment(&[("BAILIWICK__AUTH__JWT_LEEWAY_SECONDS", "5")])).await;
    let ended = |seconds: i64| lister().claim("exp", (credentials::now() - seconds).into()).sign();
    assert_eq!(with_token(&server, &ended(1)).await.0, 200);
    assert_eq!(with_token(&server, &ended(6)).await.0, 401);
    let said =
        harness::refused(&environment(&[("BAILIWICK__AUTH__JWT_LEEWAY_SECONDS", "6")])).await;
    assert!(said.contains("auth.jwt_leeway_seconds"), "{said}");
}

/// A token whose header says what it is told, signed by nothing that counts
/// unless a signature is given.
fn forged(header: &Value, signature: &str) -> String {
    let part =
        |value: &Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({
        "sub": "forger", "iss": ISSUER, "aud": AUDIENCE, "exp": credentials::now() + 600,
        "permissions": ["*"],
    });
    format!("{}.{}.{signature}", part(header), part(&claims))
}

fn claims() -> Claims {
    Claims {
        sub: "lister".to_owned(),
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        iat: credentials::now(),
        exp: credentials::now() + 600,
        permissions: vec!["tasks:list".to_owned()],
        namespaces: None,
        worker_namespaces: Vec::new(),
    }
}

/// Each kind of key takes its own algorithm alone, whatever a token says.
#[tokio::test]
async fn tk_31_rs256_es256_and_eddsa_are_bound_to_their_keys() {
    let kinds = [KeyKind::Rsa(2048), KeyKind::P256, KeyKind::Ed25519];
    let pairs: Vec<KeyPairPem> = kinds.map(|kind| tokens::generate(kind).unwrap()).into();
    let signed: Vec<String> =
        pairs.iter().map(|pair| tokens::sign(&pair.private, &claims()).unwrap()).collect();
    for (number, pair) in pairs.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        std::fs::write(&path, &pair.public).unwrap();
        let setup = environment(&[("BAILIWICK_JWT_PUBLIC_KEY_PATH", path.to_str().unwrap())]);
        let server = Server::with(setup).await;
        for (other, token) in signed.iter().enumerate() {
            let wanted = if number == other { 200 } else { 401 };
            assert_eq!(with_token(&server, token).await.0, wanted, "key {number}, token {other}");
        }
        // The public key as an HMAC's secret, and no signature at all.
        let secret = jsonwebtoken::EncodingKey::from_secret(pair.public.as_bytes());
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
        let confused = jsonwebtoken::encode(&header, &claims(), &secret).unwrap();
        assert_eq!(with_token(&server, &confused).await.0, 401, "HS256");
        for algorithm in ["none", "None", "", "RS256", "ES256", "EdDSA", "PS256", "RS512"] {
            let token = forged(&json!({"alg": algorithm, "typ": "JWT"}), "");
            assert_eq!(with_token(&server, &token).await.0, 401, "{algorithm:?}");
        }
    }
}

#[tokio::test]
async fn se_23_headers_of_tokens_that_ask_for_more_are_refused() {
    let server = Server::start().await;
    let key = jsonwebtoken::EncodingKey::from_ed_pem(credentials::issuer().private.as_bytes());
    let key = key.unwrap();
    let good = lister().sign();
    let payload = good.split('.').nth(1).unwrap();
    let with = |header: Value| {
        let head = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header.to_string());
        let message = format!("{head}.{payload}");
        let algorithm = jsonwebtoken::Algorithm::EdDSA;
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
        format!("{message}.{signature}")
    };
    assert_eq!(with_token(&server, &with(json!({"alg": "EdDSA"}))).await.0, 200, "signs rightly");
    for header in [
        json!({"alg": "EdDSA", "crit": ["exp"], "exp": 1}),
        json!({"alg": "EdDSA", "crit": []}),
        json!({"alg": "EdDSA", "b64": false}),
        json!({"alg": "EdDSA", "typ": "bwk-step+jwt"}),
        json!({"alg": "EdDSA", "typ": "bwk-node+jwt"}),
        json!({"alg": ["EdDSA"]}),
        json!({"typ": "JWT"}),
    ] {
        let (status, reason) = with_token(&server, &with(header.clone())).await;
        assert_eq!((status, &*reason), (401, "CREDENTIALS_INVALID"), "{header}");
    }
    // A key within the token means nothing.
    let own = json!({"alg": "EdDSA", "kid": "x", "jku": "http://127.0.0.1:1/", "jwk": {}});
    assert_eq!(with_token(&server, &with(own)).await.0, 200);
}

#[tokio::test]
async fn tk_35_the_path_wins_over_the_inline_key() {
    let stranger = &credentials::stranger().public;
    let server = Server::with(auth_lines(&format!("jwt_public_key = '''{stranger}'''\n"))).await;
    assert_eq!(with_token(&server, &lister().sign()).await.0, 200);
    let other = lister().sign_with(credentials::stranger());
    assert_eq!(with_token(&server, &other).await.0, 401);
}

/// The inner part of an RSA key's SPKI is its PKCS#1.
fn pkcs1(spki: &str) -> String {
    let base64: String = spki.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(base64).unwrap();
    let inner = STANDARD.encode(&der[24..]);
    let lines: Vec<&str> =
        inner.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let text = lines.join("\n");
    format!("-----BEGIN RSA PUBLIC KEY-----\n{text}\n-----END RSA PUBLIC KEY-----\n")
}

#[tokio::test]
async fn tk_36_inline_keys_may_be_spki_or_pkcs1() {
    let pair = tokens::generate(KeyKind::Rsa(2048)).unwrap();
    let token = tokens::sign(&pair.private, &claims()).unwrap();
    for pem in [pair.public.clone(), pkcs1(&pair.public)] {
        let server = Server::with(own_auth(&format!(
            "enabled = true\njwt_issuer = \"{ISSUER}\"\njwt_audience = \"{AUDIENCE}\"\n\
             jwt_public_key = '''\n{pem}'''\n"
        )))
        .await;
        assert_eq!(with_token(&server, &token).await.0, 200, "{pem}");
        assert_eq!(with_token(&server, &lister().sign()).await.0, 401, "{pem}");
    }
    for bad in ["nothing", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
        let said = harness::refused(&own_auth(&format!(
            "enabled = true\njwt_issuer = \"i\"\njwt_audience = \"a\"\njwt_public_key = '''{bad}'''\n"
        )))
        .await;
        assert!(said.contains("auth.jwt_public_key"), "{said}");
    }
}

#[tokio::test]
async fn tk_37_the_environment_wins_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stranger.pem");
    std::fs::write(&path, &credentials::stranger().public).unwrap();
    let server = Server::with(environment(&[
        ("BAILIWICK_JWT_PUBLIC_KEY_PATH", path.to_str().unwrap()),
        ("BAILIWICK__AUTH__JWT_ISSUER", "another"),
        ("BAILIWICK__AUTH__JWT_AUDIENCE", "others"),
        ("BAILIWICK__AUTH__API_KEY_HEADER", "X-Other-Key"),
    ]))
    .await;
    let token = lister().claim("iss", "another".into()).claim("aud", "others".into());
    assert_eq!(with_token(&server, &token.sign_with(credentials::stranger())).await.0, 200);
    assert_eq!(with_token(&server, &token.sign()).await.0, 401, "the file's key");
    assert_eq!(with_token(&server, &lister().sign()).await.0, 401);
    assert_eq!(list(&server, &[("x-other-key", READER_KEY)]).await.0, 200);
    assert_eq!(list(&server, &[("x-api-key", READER_KEY)]).await.0, 401);

    let off = Server::with(environment(&[("BAILIWICK__AUTH__ENABLED", "false")])).await;
    assert_eq!(list(&off, &[]).await.0, 200);
    let said = harness::refused(&environment(&[("BAILIWICK__AUTH__ENABLED", "perhaps")])).await;
    assert!(said.contains("`BAILIWICK__AUTH__ENABLED`: expected a boolean"), "{said}");
}

#[tokio::test]
async fn tk_38_other_methods_of_verification_are_refused_at_start() {
    for (method, hint) in
        [("guess", "public_key"), ("JWKS", "public_key"), ("Public_Key", "`jwks`")]
    {
        let said =
            harness::refused(&auth_lines(&format!("jwt_verification_method = \"{method}\"\n")))
                .await;
        assert!(said.contains("auth.jwt_verification_method") && said.contains(hint), "{said}");
    }
    for missing in ["jwt_issuer", "jwt_audience"] {
        let variable = format!("BAILIWICK__AUTH__{}", missing.to_uppercase());
        let said = harness::refused(&environment(&[(&variable, "")])).await;
        assert!(said.contains(&format!("auth.{missing}")), "{said}");
    }
}

#[tokio::test]
async fn tk_41_the_claim_of_permissions_has_a_name() {
    let server = Server::with(environment(&[("BAILIWICK__AUTH__PERMISSIONS_CLAIM", "scp")])).await;
    let token = lister().without("permissions").claim("scp", json!(["tasks:list"]));
    assert_eq!(with_token(&server, &token.sign()).await.0, 200);
    assert_eq!(with_token(&server, &lister().sign()).await.0, 403, "the other claim is nothing");
}

#[tokio::test]
async fn tk_42_and_tk_43_unknown_permissions_are_refused_or_named() {
    let token = Token::new("odd", &["tasks:list", "foo:bar"]).sign();
    let strict = Server::start().await;
    assert_eq!(with_token(&strict, &token).await.0, 401);
    let line = strict.logged("authentication failed", &[("reason", "unknown_permissions")]).await;
    assert!(line["detail"].as_str().unwrap().contains("foo:bar"), "{line}");

    let lax = Server::with(environment(&[("BAILIWICK__AUTH__STRICT_VALIDATION", "false")])).await;
    assert_eq!(with_token(&lax, &token).await.0, 200);
    let message = "the token names unknown permissions; they count for nothing";
    let line = lax.logged(message, &[("subject", "odd"), ("permissions", "foo:bar")]).await;
    assert_eq!(line["level"], "WARN");
    // Strict or not, a wildcard over nothing known opens nothing.
    let foreign = Token::new("odd", &["foo:*"]).sign();
    assert_eq!(with_token(&lax, &foreign).await.0, 403);

    let quiet = Server::with(environment(&[
        ("BAILIWICK__AUTH__STRICT_VALIDATION", "false"),
        ("BAILIWICK__AUTH__LOG_UNKNOWN_PERMISSIONS", "false"),
    ]))
    .await;
    assert_eq!(with_token(&quiet, &token).await.0, 200);
    assert!(!quiet.process.err.all().join("\n").contains("foo:bar"));
}

#[tokio::test]
async fn tk_44_the_header_of_keys_has_a_name_without_case() {
    let setup = auth_lines("api_key_header = \"X-Bailiwick-Key\"\n");
    let server = Server::with(setup).await;
    for name in ["x-bailiwick-key", "X-BAILIWICK-KEY", "X-Bailiwick-Key"] {
        let answer =
            wire::send(server.http, wire::head("GET /v1/tasks", &[(name, READER_KEY)])).await;
        assert_eq!(answer.status, 200, "{name}");
    }
    assert_eq!(list(&server, &[("x-bailiwick-key", READER_KEY)]).await.0, 200);
    assert_eq!(list(&server, &[("x-api-key", READER_KEY)]).await.0, 401);
    for name in ["authorization", "x key", "", "grpc-timeout", "key-bin"] {
        let said = harness::refused(&auth_lines(&format!("api_key_header = \"{name}\"\n"))).await;
        assert!(said.contains("auth.api_key_header"), "{said}");
    }
}

#[tokio::test]
async fn tk_45_keys_can_be_turned_off() {
    let server = Server::with(auth_lines("api_keys_enabled = false\n")).await;
    assert_eq!(list(&server, &[("x-api-key", ROOT_KEY)]).await.0, 401);
    assert_eq!(with_token(&server, ROOT_KEY).await.0, 401);
    assert_eq!(with_token(&server, &lister().sign()).await.0, 200);
}

#[tokio::test]
async fn tk_46_and_tk_47_a_key_has_permissions_and_a_name_in_the_log() {
    let server = Server::with(own_auth(
        "enabled = true\n[[auth.api_keys]]\nkey = \"sk-prod-key-1\"\n\
         permissions = [\"tasks:read\", \"tasks:list\"]\ndescription = \"Production monitoring\"\n",
    ))
    .await;
    let key = [("x-api-key", "sk-prod-key-1")];
    assert_eq!(list(&server, &key).await.0, 200);
    let body = json!({"namespace": "shop", "name": "order"});
    let (status, body) = server.json("POST", "/v1/tasks", &key, Some(body)).await;
    assert_eq!(
        (status, &body["message"]),
        (403, &json!("Missing required permission: tasks:create"))
    );
    server.logged("credential accepted", &[("subject", "Production monitoring")]).await;
    server.logged("permission denied", &[("subject", "Production monitoring")]).await;
    assert!(!server.process.err.all().join("\n").contains("sk-prod-key-1"));
}

#[tokio::test]
async fn tk_48_a_key_that_is_taken_out_is_refused() {
    let server = Server::start().await;
    assert_eq!(list(&server, &[("x-api-key", READER_KEY)]).await.0, 200);
    let without = own_auth(&format!(
        "enabled = true\n[[auth.api_keys]]\nkey = \"{ROOT_KEY}\"\npermissions = [\"*\"]\n"
    ));
    let server = server.again_with(without).await;
    assert_eq!(list(&server, &[("x-api-key", READER_KEY)]).await.0, 401);
    assert_eq!(list(&server, &[("x-api-key", ROOT_KEY)]).await.0, 200);
}

#[tokio::test]
async fn tk_53_public_pages_need_nothing_and_mind_no_bad_credential() {
    let server = Server::start().await;
    let paths = [
        "/health",
        "/health/live",
        "/health/ready",
        "/health/detailed",
        "/metrics",
        "/openapi.json",
        "/docs",
    ];
    let credentials: [&[(&str, &str)]; 4] = [
        &[],
        &[("authorization", "Bearer garbage")],
        &[("x-api-key", "garbage")],
        &[("authorization", "Basic x"), ("x-api-key", "a,b")],
    ];
    for path in paths {
        for headers in credentials {
            assert_eq!(server.json("GET", path, headers, None).await.0, 200, "{path} {headers:?}");
        }
    }
}

#[tokio::test]
async fn tk_54_the_answer_to_no_credential() {
    let server = Server::start().await;
    let answer = wire::send(server.http, wire::head("GET /v1/tasks", &[])).await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    let body = answer.json();
    assert_eq!(body["error"], "unauthorized");
    assert_eq!(body["message"], "Missing authentication credentials");
    assert_eq!(body["code"], "UNAUTHENTICATED");
    assert_eq!(body["reason"], "CREDENTIALS_MISSING");
    assert_eq!(body["request_id"].as_str(), answer.header("x-request-id"));
    assert_eq!(body["details"][0]["reason"], "CREDENTIALS_MISSING", "{body}");
}

#[tokio::test]
async fn tk_55_the_answer_to_a_missing_permission() {
    let server = Server::start().await;
    let request = wire::post("POST /v1/tasks", &[("x-api-key", READER_KEY)], "{}");
    let answer = wire::send(server.http, request).await;
    assert_eq!(answer.status, 403);
    assert_eq!(answer.header("www-authenticate"), None);
    let body = answer.json();
    assert_eq!(body["error"], "forbidden");
    assert_eq!(body["message"], "Missing required permission: tasks:create");
    assert_eq!(body["code"], "PERMISSION_DENIED");
    assert_eq!(body["reason"], "PERMISSION_MISSING");
    assert_eq!(body["request_id"].as_str(), answer.header("x-request-id"));
    let refused = server
        .grpc("TaskService/CreateTask", json!({}), &[("x-api-key", READER_KEY)])
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), "Missing required permission: tasks:create");
}

#[tokio::test]
async fn tk_57_to_59_success_failure_and_denial_are_logged_without_secrets() {
    // A flood of failures is 401 to its end here, and still cut in the log.
    let unlimited = environment(&[("BAILIWICK__LIMITS__FAILED_AUTH_PER_MINUTE", "0")]);
    let server = Server::with(unlimited).await;
    let token = Token::new("clerk@example.com", &["tasks:list"]).sign();
    let authorization = bearer(&token);
    let headers = [("authorization", &*authorization)];
    for _ in 0..3 {
        assert_eq!(server.json("GET", "/v1/tasks", &headers, None).await.0, 200);
    }
    let known = [("subject", "clerk@example.com"), ("method", "jwt")];
    let line = server.logged("credential accepted", &known).await;
    assert_eq!(line["level"], "INFO");
    let line = server.logged("authenticated", &known).await;
    assert_eq!(line["level"], "DEBUG");
    let accepted: Vec<Value> = server
        .logs()
        .into_iter()
        .filter(|line| {
            line["message"] == "credential accepted" && line["subject"] == "clerk@example.com"
        })
        .collect();
    assert_eq!(accepted.len(), 1, "once: {accepted:?}");

    assert_eq!(server.json("GET", "/v1/workers", &headers, None).await.0, 403);
    let denied = [("subject", "clerk@example.com"), ("required", "nodes:read"), ("level", "WARN")];
    server.logged("permission denied", &denied).await;

    let (rest, last) = token.split_at(token.len() - 10);
    let forged = format!("{rest}{}{}", if last.starts_with('A') { "B" } else { "A" }, &last[1..]);
    let expired = lister().claim("exp", (credentials::now() - 1).into()).sign();
    for (credential, reason) in
        [(&*forged, "signature"), (&*expired, "expired"), ("sk-secret-guess", "unknown_token")]
    {
        assert_eq!(with_token(&server, credential).await.0, 401);
        server.logged("authentication failed", &[("reason", reason), ("level", "WARN")]).await;
    }
    assert_eq!(list(&server, &[("x-api-key", "sk-other-guess")]).await.0, 401);
    server.logged("authentication failed", &[("reason", "unknown_key")]).await;
    // No stranger fills the log: failures at `warn` are limited.
    let begun = tokio::time::Instant::now();
    let mut flood = wire::Wire::open(server.http).await;
    for _ in 0..600 {
        flood.write(wire::head("GET /v1/tasks", &[("x-api-key", "no")])).await.unwrap();
        assert_eq!(flood.answer(false).await.unwrap().status, 401);
    }
    let warnings = server.logs().iter().filter(|line| line["level"] == "WARN").count();
    let most = 110 + 10 * usize::try_from(begun.elapsed().as_secs() + 1).unwrap();
    assert!(warnings < most && most < 600, "{warnings} warnings");
    let log = server.process.err.all().join("\n");
    for secret in [&*token, &forged, &expired, "sk-secret-guess", "sk-other-guess", ROOT_KEY] {
        assert!(!log.contains(secret), "a secret is in the log");
        let signature = secret.rsplit('.').next().unwrap();
        assert!(!log.contains(signature), "a part of a secret is in the log");
    }
}

#[tokio::test]
async fn tk_60_to_63_the_figures_of_credentials() {
    let server = Server::start().await;
    let token = lister().sign();
    let forged = lister().sign_with(credentials::stranger());
    // Each by REST and by gRPC.
    assert_eq!(list(&server, &[]).await.0, 401);
    assert_eq!(list(&server, &[("x-api-key", READER_KEY)]).await.0, 200);
    assert_eq!(list(&server, &[("x-api-key", "garbage")]).await.0, 401);
    assert_eq!(with_token(&server, &token).await.0, 200);
    assert_eq!(with_token(&server, &forged).await.0, 401);
    let headers = [("x-api-key", READER_KEY)];
    assert_eq!(server.json("GET", "/v1/workers", &headers, None).await.0, 403);
    // Public calls ask for no credential, and count for none.
    assert_eq!(server.json("GET", "/health", &[], None).await.0, 200);

    let requests = |method: &str, result: &str| {
        format!("bailiwick_auth_requests_total{{method=\"{method}\",result=\"{result}\"}}")
    };
    for (line, wanted) in [
        (requests("none", "missing"), 2.0),
        (requests("api_key", "success"), 3.0),
        (requests("api_key", "failure"), 2.0),
        (requests("jwt", "success"), 2.0),
        (requests("jwt", "failure"), 2.0),
        ("bailiwick_auth_failures_total{reason=\"unknown_key\"}".to_owned(), 2.0),
        ("bailiwick_auth_failures_total{reason=\"signature\"}".to_owned(), 2.0),
        ("bailiwick_auth_failures_total{reason=\"expired\"}".to_owned(), 0.0),
        ("bailiwick_permission_denials_total{permission=\"nodes:read\"}".to_owned(), 1.0),
        ("bailiwick_permission_denials_total{permission=\"tasks:create\"}".to_owned(), 0.0),
    ] {
        assert_eq!(server.figure(&line).await, Some(wanted), "{line}");
    }
    let duration = "bailiwick_auth_jwt_verification_duration_seconds";
    // A token that is known is not verified again; a bad one is, each time.
    for (result, wanted) in [("success", 1.0), ("failure", 2.0)] {
        let count = server.figure(&format!("{duration}_count{{result=\"{result}\"}}")).await;
        assert_eq!(count, Some(wanted), "{result}");
        let sum = server.figure(&format!("{duration}_sum{{result=\"{result}\"}}")).await;
        assert!(sum.is_some_and(|sum| sum > 0.0 && sum < 60.0), "{sum:?}");
        let all = format!("{duration}_bucket{{result=\"{result}\",le=\"+Inf\"}}");
        assert_eq!(server.figure(&all).await, Some(wanted));
    }
    let (_, text) = server.json("GET", "/metrics", &[], None).await;
    let text = text.as_str().unwrap();
    let buckets = text.lines().filter(|line| line.starts_with(&format!("{duration}_bucket")));
    assert!(buckets.count() > 6, "{text}");
    for kind in [
        "# TYPE bailiwick_auth_requests_total counter",
        "# TYPE bailiwick_auth_failures_total counter",
        "# TYPE bailiwick_permission_denials_total counter",
        "# TYPE bailiwick_auth_jwt_verification_duration_seconds histogram",
    ] {
        assert!(text.contains(kind), "{kind}");
    }
    assert!(!text.contains("lister") && !text.contains("/v1/"), "{text}");
}

/// The tools that `make test` installs.
pub fn grpcurl() -> tokio::process::Command {
    let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/install.sh");
    let said = std::process::Command::new(install).arg("--path").output().unwrap();
    assert!(said.status.success());
    let tools = String::from_utf8(said.stdout).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = tokio::process::Command::new("env");
    command.arg(format!("PATH={}:{path}", tools.trim())).arg("grpcurl");
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

#[tokio::test]
async fn tk_66_grpcurl_lists_tasks_with_a_bearer() {
    let server = Server::start().await.with_template().await;
    let task = server.order(json!({})).await;
    let call = async |header: Option<String>| {
        let mut command = grpcurl();
        command.arg("-plaintext");
        if let Some(header) = header {
            command.arg("-H").arg(header);
        }
        command.args([&server.grpc.to_string(), "bailiwick.v1.TaskService/ListTasks"]);
        let output = command.output().await.unwrap();
        let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
        (output.status.success(), said)
    };
    let (done, said) = call(Some(format!("authorization: {}", bearer(&lister().sign())))).await;
    assert!(done && said.contains(&task), "{said}; `make test` installs grpcurl");
    let (done, said) = call(Some(format!("x-api-key: {READER_KEY}"))).await;
    assert!(done && said.contains(&task), "{said}");
    let (done, said) = call(None).await;
    assert!(!done && said.contains("Unauthenticated"), "{said}");
    // The details of errors are printed, as their types are in reflection.
    assert!(said.contains("CREDENTIALS_MISSING"), "{said}");
}

#[tokio::test]
async fn tk_71_and_tk_72_codes_agree_with_statuses() {
    let server = Server::with(Setup {
        rest: "[limits]\nconcurrent_calls = 1\n".to_owned(),
        ..Setup::default()
    })
    .await;
    let root = [("x-api-key", ROOT_KEY)];
    let absent = "018f0000-0000-7000-8000-000000000000";
    let (status, body) = server.as_root("GET", &format!("/v1/tasks/{absent}"), None).await;
    assert_eq!((status, &body["code"]), (404, &json!("NOT_FOUND")));
    let request = json!({"task_uuid": absent});
    let refused = server.grpc("TaskService/GetTask", request, &root).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);

    // A parked call takes the only room.
    let parked = json!({"namespace": "shop", "handlers": ["work"], "wait_ms": 60_000});
    let mut holder = wire::Wire::open(server.http).await;
    let body = parked.to_string();
    holder.write(wire::post("POST /v1/work/lease", &root, body)).await.unwrap();
    // `/metrics` takes no room.
    let waiting = async { while server.figure("bailiwick_seats_waiting").await != Some(1.0) {} };
    tokio::time::timeout(harness::PATIENCE, waiting).await.expect("a parked call");
    let answer = wire::send(server.http, wire::head("GET /v1/tasks", &root)).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["code"], "UNAVAILABLE");
    assert!(answer.header("retry-after").is_some());
    let refused = server.grpc("TaskService/ListTasks", json!({}), &root).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test]
async fn tk_73_to_76_health_answers_without_metadata() {
    let server = Server::start().await;
    for method in ["CheckHealth", "CheckLiveness", "CheckReadiness", "CheckDetailedHealth"] {
        let rpc = format!("HealthService/{method}");
        for metadata in [&[][..], &[("authorization", "Bearer garbage")]] {
            let answer = server.grpc(&rpc, json!({}), metadata).await.unwrap();
            assert!(answer["status"].as_str().is_some_and(|status| !status.is_empty()), "{answer}");
        }
    }
}
