//! What other services ask about credentials that they were shown: RFC 7662
//! and checks (SE-42).

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Server, Setup,
    credentials::{self, READER_KEY, ROOT_KEY, Token},
    http,
};

const TOKENS: &str = "/v1/auth/tokens";
const INTROSPECT: &str = "/v1/auth/introspect";
const CHECK: &str = "/v1/check";
const BATCH: &str = "/v1/check-batch";

async fn server(limits: &str) -> Server {
    let rest =
        format!("extra_permissions = [\"bundles:read\", \"bundles:write\"]\n[limits]\n{limits}\n");
    Server::with(Setup { rest, ..Setup::steady() }).await
}

/// A service that may ask.
fn asker() -> String {
    format!("Bearer {}", Token::new("gateway", &["tokens:introspect"]).sign())
}

async fn ask(server: &Server, path: &str, body: Value) -> (u16, Value) {
    server.json("POST", path, &[("authorization", &asker())], Some(body)).await
}

async fn introspect(server: &Server, token: &str) -> Value {
    let (status, answer) = ask(server, INTROSPECT, json!({"token": token})).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn mint(server: &Server, body: Value) -> (String, String) {
    let (status, minted) = server.as_root("POST", TOKENS, Some(body)).await;
    assert_eq!(status, 201, "{minted}");
    let text = |name: &str| minted[name].as_str().unwrap().to_owned();
    (text("token"), text("prefix"))
}

#[tokio::test]
async fn se_42_every_kind_of_credential_is_introspected() {
    let server = server("").await;
    let key = introspect(&server, READER_KEY).await;
    assert_eq!((&key["active"], &key["source"]), (&json!(true), &json!("config")));
    assert_eq!(key["scope"], "tasks:read tasks:list");
    assert_eq!(key["namespaces"], json!(["*"]));
    assert_eq!(key["token_type"], "ApiKey");

    let body = json!({"scopes": "tasks:read,bundles:*", "namespaces": "shop", "name": "ci",
                      "expires_in_seconds": 600});
    let (token, prefix) = mint(&server, body).await;
    let minted = introspect(&server, &token).await;
    assert_eq!(minted["credential_id"], *prefix);
    assert_eq!(minted["sub"], *prefix);
    assert_eq!(minted["username"], "ci");
    assert_eq!(minted["scope"], "tasks:read bundles:read bundles:write");
    assert_eq!(minted["namespaces"], json!(["shop"]));
    let (exp, iat) = (minted["exp"].as_i64().unwrap(), minted["iat"].as_i64().unwrap());
    assert_eq!(exp - iat, 600);
    assert!((credentials::now() - iat).abs() < 60);

    let body = json!({"name": "k", "scopes": "tasks:list"});
    let (status, made) = server.as_root("POST", "/v1/api-keys", Some(body)).await;
    assert_eq!(status, 201, "{made}");
    let made = introspect(&server, made["key"].as_str().unwrap()).await;
    assert_eq!((&made["active"], &made["token_type"]), (&json!(true), &json!("ApiKey")));

    let jwt = Token::new("alice", &["tasks:read"]).within(&["shop", "lab."]);
    let jwt = introspect(&server, &jwt.sign()).await;
    assert_eq!((&jwt["sub"], &jwt["iss"]), (&json!("alice"), &json!(credentials::ISSUER)));
    assert_eq!(jwt["aud"], json!([credentials::AUDIENCE]));
    assert_eq!(jwt["source"], "idp");
    assert_eq!(jwt["token_type"], "Bearer");
    assert!(jwt["exp"].is_i64());
}

#[tokio::test]
async fn se_42_what_does_not_count_answers_alike() {
    let server = server("").await;
    let (revoked, prefix) = mint(&server, json!({"scopes": "tasks:read"})).await;
    let (status, _) = server.as_root("DELETE", &format!("{TOKENS}/{prefix}"), None).await;
    assert_eq!(status, 204);
    let (short, _) = mint(&server, json!({"scopes": "tasks:read", "expires_in_seconds": 1})).await;
    let (near, _) =
        mint(&server, json!({"scopes": "tasks:read", "client_networks": "10.0.0.0/8"})).await;
    let (once, _) = mint(&server, json!({"scopes": "tasks:list", "max_uses": 1})).await;
    let bearer = format!("Bearer {once}");
    assert_eq!(server.json("GET", "/v1/tasks", &[("authorization", &bearer)], None).await.0, 200);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let alice = Token::new("alice", &["*"]);
    let bad = [
        "garbage".to_owned(),
        "two words".to_owned(),
        "a.b.c".to_owned(),
        revoked,
        short,
        near.clone(),
        once,
        alice.clone().claim("exp", (credentials::now() - 1).into()).sign(),
        alice.sign_with(credentials::stranger()),
        alice.clone().claim("iss", "https://another.example".into()).sign(),
    ];
    let mut raw = Vec::new();
    for token in &bad {
        let answer = http()
            .post(server.url(INTROSPECT))
            .header("authorization", asker())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("token={}&token_type_hint=access_token", token.replace(' ', "+")))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200, "{token}");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        raw.push(answer.text().await.unwrap());
        let body = json!({"token": token, "permission": "tasks:read", "namespace": "shop"});
        let (status, checked) = ask(&server, CHECK, body).await;
        assert_eq!(status, 200);
        assert_eq!(checked["allowed"], false, "{token}");
        assert_eq!(checked["reason"], "token_inactive", "{token}");
        assert!(checked.get("principal").is_none_or(Value::is_null), "{checked}");
    }
    assert_eq!(raw, vec!["{\"active\":false}".to_owned(); bad.len()]);
    // Where its client's address is known, it counts there.
    for (address, active) in [("10.1.2.3", true), ("11.1.2.3", false)] {
        let body = json!({"token": near, "client_address": address});
        assert_eq!(ask(&server, INTROSPECT, body).await.1["active"], active);
    }
    // None of them stands in the log.
    let log = server.process.err.all().join("\n");
    for token in bad.iter().filter(|token| token.len() > 12) {
        assert!(!log.contains(token.as_str()));
    }
}

#[tokio::test]
async fn se_42_a_look_up_leaves_nothing_behind() {
    let server = server("").await;
    let (token, prefix) = mint(&server, json!({"scopes": "tasks:list", "max_uses": 2})).await;
    for _ in 0..5 {
        assert_eq!(introspect(&server, &token).await["active"], true);
        let body = json!({"token": token, "permission": "tasks:list"});
        assert_eq!(ask(&server, CHECK, body).await.1["allowed"], true);
    }
    let path = format!("{TOKENS}/{prefix}");
    let shown = server.as_root("GET", &path, None).await.1;
    assert_eq!(shown["uses"], 0, "{shown}");
    assert!(shown.get("last_used_at").is_none_or(Value::is_null), "{shown}");
    assert_eq!(shown["unused_permissions"], json!(["tasks:list"]));
    // The first call with a credential is worth a line, and still is one.
    let jwt = Token::new("first-use", &["tasks:list"]).sign();
    assert_eq!(introspect(&server, &jwt).await["active"], true);
    let seen = |server: &Server| {
        let lines = server.logs();
        lines.iter().filter(|line| line["subject"] == "first-use").count()
    };
    assert_eq!(seen(&server), 0);
    let bearer = format!("Bearer {jwt}");
    assert_eq!(server.json("GET", "/v1/tasks", &[("authorization", &bearer)], None).await.0, 200);
    server.logged("credential accepted", &[("subject", "first-use")]).await;
}

#[tokio::test]
async fn se_42_only_who_may_introspect_everywhere_asks() {
    let server = server("").await;
    let narrow = Token::new("narrow", &["tokens:introspect"]).within(&["shop"]).sign();
    let other = Token::new("other", &["tasks:*", "system:*"]).sign();
    for (credential, wanted) in [(None, 401), (Some(narrow), 403), (Some(other), 403)] {
        let bearer = credential.map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> =
            bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        for (path, body) in [
            (INTROSPECT, json!({"token": ROOT_KEY})),
            (CHECK, json!({"token": ROOT_KEY, "permission": "tasks:read"})),
            (BATCH, json!({"token": ROOT_KEY, "questions": [{"permission": "tasks:read"}]})),
        ] {
            let (status, answer) = server.json("POST", path, &headers, Some(body)).await;
            assert_eq!(status, wanted, "{path} {answer}");
            assert!(!answer.to_string().contains(ROOT_KEY));
        }
    }
}

#[tokio::test]
async fn se_42_failed_look_ups_count_against_who_asks() {
    let server = server("failed_introspections_per_minute = 3").await;
    for _ in 0..3 {
        assert_eq!(introspect(&server, "guess").await, json!({"active": false}));
    }
    let headers = asker();
    let answer = http()
        .post(server.url(INTROSPECT))
        .header("authorization", &headers)
        .json(&json!({"token": READER_KEY}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 429, "also for one that counts");
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(answer.json::<Value>().await.unwrap()["reason"], "RATE_LIMITED");
    let body = json!({"token": READER_KEY, "permission": "tasks:read"});
    assert_eq!(ask(&server, CHECK, body.clone()).await.0, 429);
    // Others ask on, and the one itself calls on.
    assert_eq!(server.as_root("POST", CHECK, Some(body)).await.0, 200);
    let whoami = server.json("GET", "/v1/whoami", &[("authorization", &headers)], None).await;
    assert_eq!(whoami.0, 200);
    let figure = "bailiwick_rate_limited_total{class=\"failed_introspections\"}";
    assert_eq!(server.figure(figure).await, Some(2.0));
}

#[tokio::test]
async fn se_42_checks_know_foreign_permissions_and_namespaces() {
    let server = server("").await;
    let (token, prefix) =
        mint(&server, json!({"scopes": "bundles:read,tasks:create", "namespaces": "shop,lab."}))
            .await;
    let cases = [
        ("bundles:read", Some("shop"), "allowed"),
        ("bundles:read", None, "allowed"),
        ("bundles:read", Some("lab.a"), "allowed"),
        ("bundles:read", Some("bank"), "namespace_not_held"),
        ("bundles:write", Some("shop"), "permission_missing"),
        ("tasks:create", Some("shop"), "allowed"),
        ("tasks:create", Some("bank"), "namespace_not_held"),
        ("tasks:read", Some("shop"), "permission_missing"),
        ("bundles:paint", Some("shop"), "permission_unknown"),
        ("bundles:*", Some("shop"), "permission_unknown"),
        ("*", None, "permission_unknown"),
    ];
    let mut questions = Vec::new();
    for (permission, namespace, reason) in cases {
        let mut body = json!({"permission": permission});
        if let Some(namespace) = namespace {
            body["namespace"] = namespace.into();
        }
        questions.push(body.clone());
        body["token"] = token.clone().into();
        let (status, answer) = ask(&server, CHECK, body).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["reason"], reason, "{permission} {namespace:?}");
        assert_eq!(answer["allowed"], reason == "allowed");
        assert_eq!(answer["principal"]["credential_id"], *prefix);
    }
    questions.push(json!({"permission": "bundles:write", "namespace": "bank", "token": ROOT_KEY}));
    questions.push(json!({"permission": "tasks:read", "token": "garbage"}));
    let body = json!({"token": token, "questions": questions});
    let (status, answer) = ask(&server, BATCH, body).await;
    assert_eq!(status, 200, "{answer}");
    let reasons = answer["answers"].as_array().unwrap().iter().map(|answer| &answer["reason"]);
    let wanted = cases.iter().map(|(_, _, reason)| *reason).chain(["allowed", "token_inactive"]);
    assert_eq!(reasons.collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
    for count in [0, 101] {
        let questions = vec![json!({"permission": "tasks:read"}); count];
        let body = json!({"token": token, "questions": questions});
        assert_eq!(ask(&server, BATCH, body).await.0, 400);
    }
}

#[tokio::test]
async fn se_42_foreign_permissions_are_never_our_own() {
    for name in ["*", "auth:*", "tasks:create", "tokens:introspect", "tasks:*"] {
        let rest = format!("extra_permissions = [\"{name}\"]\n");
        let said = crate::harness::refused(&Setup { rest, ..Setup::default() }).await;
        assert!(said.contains("extra_permissions"), "{name}: {said}");
    }
}

#[tokio::test]
async fn se_42_a_steps_token_counts_while_its_lease_does() {
    let mut setup = Setup::steady();
    setup.server = format!("public_url = \"http://127.0.0.1:{}\"", setup.ports[1]);
    setup.rest = "[[auth.namespaces]]\nprefix = \"shop\"\nceiling = [\"tasks:*\"]\n\
                  audiences = {vault = \"https://vault.example\"}\n"
        .to_owned();
    let server = Server::with(setup).await;
    let definition = "name: asks\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n  - name: only\n    \
                      handler: {callable: work}\n    permissions: [tasks:read]\n    \
                      audiences: [vault]\n";
    let body = json!({"namespace": "shop", "definition": definition});
    assert_eq!(server.as_root("POST", "/v1/templates", Some(body)).await.0, 201);
    let body = json!({"namespace": "shop", "name": "asks", "context": {}});
    assert_eq!(server.as_root("POST", "/v1/tasks", Some(body)).await.0, 201);
    let body = json!({"namespace": "shop", "handlers": ["work"], "wait_ms": 20_000});
    let (status, answer) = server.as_root("POST", "/v1/work/lease", Some(body)).await;
    assert_eq!(status, 200, "{answer}");
    let lease = &answer["leases"][0];
    let token = lease["tokens"]["bailiwick"].as_str().unwrap();
    let told = introspect(&server, token).await;
    assert_eq!((&told["active"], &told["scope"]), (&json!(true), &json!("tasks:read")), "{told}");
    assert_eq!(told["namespaces"], json!(["shop"]));
    assert!(told["sub"].as_str().unwrap().starts_with("step:shop/"), "{told}");
    let body = json!({"token": token, "permission": "tasks:read", "namespace": "shop"});
    assert_eq!(ask(&server, CHECK, body.clone()).await.1["reason"], "allowed");
    let inactive = json!({"active": false});
    let vault = lease["tokens"]["vault"].as_str().unwrap();
    assert_eq!(introspect(&server, vault).await, inactive, "for somebody else");
    let forged = format!("{}x", &token[..token.len() - 1]);
    assert_eq!(introspect(&server, &forged).await, inactive);

    let done = json!({"lease_id": lease["lease_id"], "result": {}});
    assert_eq!(server.as_root("POST", "/v1/work/complete", Some(done)).await.0, 200);
    assert_eq!(introspect(&server, token).await, inactive, "its lease has ended");
    assert_eq!(ask(&server, CHECK, body).await.1["reason"], "token_inactive");
}

/// What the record of the last call of an RPC says of credentials, once it is
/// there: with this subject, or whatever else is looked for.
async fn recorded(server: &Server, rpc: &str, more: &[&str]) -> Value {
    let records = crate::audit_api::found(server, &[&["--rpc", rpc], more].concat()).await;
    assert_eq!(records[0]["actor"]["subject"], "gateway", "{records}");
    assert_eq!(records[0]["outcome"], "allowed", "{records}");
    records[0]["record"]["detail"].clone()
}

#[tokio::test]
async fn se_42_se_44_records_say_whose_credential_was_judged_and_how() {
    let server = server("").await;
    let token = Token::new("alice", &["bundles:read"]).within(&["shop"]).sign();
    assert_eq!(introspect(&server, &token).await["active"], true);
    let told = recorded(&server, "Introspect", &["--actor", "alice"]).await;
    let one = &told["judged"][0];
    assert_eq!((&one["subject"], &one["source"]), (&json!("alice"), &json!("idp")), "{told}");
    assert_eq!((&one["active"], one.get("questions")), (&json!(true), None), "{told}");
    let (id, print) = (one["credential"].as_str().unwrap(), one["fingerprint"].as_str().unwrap());
    assert_eq!(id.len(), 12);

    let body = json!({"token": token, "permission": "bundles:read", "namespace": "bank",
                      "client_address": "10.1.2.3"});
    assert_eq!(ask(&server, CHECK, body).await.1["reason"], "namespace_not_held");
    for by in [
        &["--actor", "alice"][..],
        &["--credential", id],
        &["--credential", print],
        &["--actor", "alice", "--permission", "bundles:read", "--namespace", "bank"],
    ] {
        let told = recorded(&server, "bailiwick.v1.AccessService/Check", by).await;
        let one = &told["judged"][0];
        assert_eq!((&one["subject"], &one["client"]), (&json!("alice"), &json!("10.1.2.3")));
        let question = json!({"permission": "bundles:read", "namespace": "bank",
                              "verdict": "namespace_not_held"});
        assert_eq!(one["questions"], json!([question]), "{told}");
    }
    let one = ["--rpc", "bailiwick.v1.AccessService/Check"];
    let records = crate::audit_api::found(&server, &one).await;
    let path = format!("/v1/decisions/{}", records[0]["request_id"].as_str().unwrap());
    let (status, told) = server.as_root("GET", &path, None).await;
    assert_eq!((status, &told["rule"]["kind"]), (200, &json!("namespace")), "{told}");
    assert_eq!(told["rule"]["text"], "another service asked for `bundles:read` in `bank`");
    assert_eq!(
        (&told["subject"]["subject"], &told["outcome"]),
        (&json!("alice"), &json!("denied"))
    );
    // What is asked for in one record is not put together out of two.
    let none = ["audit", "search", "--actor", "alice", "--permission", "tokens:introspect"];
    assert_eq!(server.run_json(&none).await["records"], json!([]));

    // The same credential has the same name where it calls by itself.
    let bearer = format!("Bearer {token}");
    server.json("GET", "/v1/whoami", &[("authorization", &bearer)], None).await;
    let own = crate::audit_api::found(&server, &["--rpc", "WhoAmI", "--actor", "alice"]).await;
    assert_eq!(own[0]["actor"]["fingerprint"], *print);
}

#[tokio::test]
async fn se_44_the_record_of_a_batch_counts_and_is_bounded() {
    let server = server("").await;
    let token = Token::new("alice", &["bundles:read"]).within(&["shop"]).sign();
    let mut questions = vec![
        json!({"permission": "bundles:read", "namespace": "shop"}),
        json!({"permission": "bundles:write"}),
        json!({"permission": "bundles:read", "token": "bwk_garbage"}),
    ];
    let body = json!({"token": token, "questions": questions});
    assert_eq!(ask(&server, BATCH, body).await.0, 200);
    let told = recorded(&server, "CheckBatch", &["--actor", "alice"]).await;
    assert_eq!((&told["allowed"], &told["denied"]), (&json!(1), &json!(2)), "{told}");
    assert_eq!(told["judged"][0]["questions"].as_array().unwrap().len(), 2, "{told}");
    assert_eq!(told["judged"][1]["questions"][0]["verdict"], "token_inactive", "{told}");
    assert_eq!(
        (&told["judged"][1]["active"], told["judged"][1].get("subject")),
        (&json!(false), None),
        "{told}"
    );

    questions.resize_with(100, || json!({"permission": "\u{1}".repeat(5_000), "token": token}));
    questions[0]["namespace"] = "till".into();
    let body = json!({"token": "bwk_garbage", "questions": questions});
    assert_eq!(ask(&server, BATCH, body).await.0, 200);
    let told = recorded(&server, "CheckBatch", &["--namespace", "till"]).await;
    assert_eq!((&told["allowed"], &told["denied"]), (&json!(0), &json!(100)), "{told}");
    assert!(told["left_out"].as_u64().unwrap() > 50, "{told}");
    assert!(told.to_string().len() < 4_300, "{}", told.to_string().len());
    // Neither the audit nor the log has what was shown.
    let all = server.run_json(&["audit", "search"]).await.to_string();
    let log = server.process.err.all().join("\n");
    for secret in [token.as_str(), "bwk_garbage"] {
        assert!(!all.contains(secret) && !log.contains(secret));
    }
}
