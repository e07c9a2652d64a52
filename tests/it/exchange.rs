//! Token exchange (RFC 8693): less, shorter, and gone with what it came from
//! (SE-39).

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Server, Setup,
    credentials::{self, ROOT_KEY, Token},
    http,
};

const TOKENS: &str = "/v1/auth/tokens";
const TOKEN: &str = "/v1/auth/token";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

async fn server() -> Server {
    let rest = "[limits]\nfailed_auth_per_minute = 0\n".to_owned();
    Server::with(Setup { rest, ..Setup::steady() }).await
}

async fn as_bearer(
    server: &Server,
    token: &str,
    verb: &str,
    path: &str,
    body: Option<Value>,
) -> (u16, Value) {
    server.json(verb, path, &[("authorization", &format!("Bearer {token}"))], body).await
}

async fn try_exchange(server: &Server, token: &str, more: Value) -> (u16, Value) {
    let mut body = json!({"grant_type": GRANT, "scope": "tasks:list"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    as_bearer(server, token, "POST", TOKEN, Some(body)).await
}

async fn exchange(server: &Server, token: &str, more: Value) -> Value {
    let (status, given) = try_exchange(server, token, more).await;
    assert_eq!(status, 200, "{given}");
    given
}

fn secret(given: &Value) -> String {
    given["access_token"].as_str().unwrap().to_owned()
}

async fn mint(server: &Server, body: Value) -> (String, String) {
    let (status, minted) = server.as_root("POST", TOKENS, Some(body)).await;
    assert_eq!(status, 201, "{minted}");
    let text = |name: &str| minted[name].as_str().unwrap().to_owned();
    (text("token"), text("prefix"))
}

async fn lists(server: &Server, token: &str) -> u16 {
    as_bearer(server, token, "GET", "/v1/tasks", None).await.0
}

#[tokio::test]
async fn exchange_token_gives_less_for_a_shorter_time() {
    let server = server().await;
    let (token, _) = mint(
        &server,
        json!({"scopes": "tasks:*", "namespaces": "shop,lab.", "expires_in_seconds": 300}),
    )
    .await;
    let answer = http()
        .post(server.url(TOKEN))
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!(
            "grant_type={}&subject_token={token}&scope=tasks:list+tasks:read&namespaces=shop\
             &expires_in=60&subject_token_type=urn:ietf:params:oauth:token-type:access_token",
            GRANT.replace(':', "%3A")
        ))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let given: Value = answer.json().await.unwrap();
    assert_eq!(given["token_type"], "Bearer");
    assert_eq!(given["issued_token_type"], "urn:ietf:params:oauth:token-type:access_token");
    assert_eq!(
        (&given["scope"], &given["expires_in"]),
        (&json!("tasks:list tasks:read"), &json!(60))
    );
    let who = as_bearer(&server, &secret(&given), "GET", "/v1/whoami", None).await.1;
    let grants = json!([{"permissions": ["tasks:read", "tasks:list"], "namespaces": ["shop"]}]);
    assert_eq!((&who["grants"], &who["root"]), (&grants, &json!(false)));
    // Never beyond the end of the other one.
    let given = exchange(&server, &token, json!({"expires_in": 3600})).await;
    assert!(given["expires_in"].as_u64().unwrap() <= 300);
    assert_eq!(given["namespaces"], json!(["shop", "lab."]));
}

#[tokio::test]
async fn se_40_exchange_token_gives_nothing_that_is_not_held() {
    let server = server().await;
    let (token, _) = mint(&server, json!({"scopes": "tasks:*", "namespaces": "shop"})).await;
    let narrower = secret(&exchange(&server, &token, json!({"scope": "tasks:list"})).await);
    for (token, more, wanted) in [
        (&token, json!({"scope": "steps:read"}), 403),
        (&token, json!({"scope": "tasks:list steps:read"}), 403),
        (&token, json!({"namespaces": ["bank"]}), 403),
        (&token, json!({"namespaces": ["shopping"]}), 403),
        (&token, json!({"namespaces": ["*"]}), 403),
        (&narrower, json!({"scope": "tasks:read"}), 403),
        (&token, json!({"scope": "*"}), 400),
        (&token, json!({"scope": ""}), 400),
        (&token, json!({"scope": "tasks:paint"}), 400),
        (&token, json!({"grant_type": "client_credentials"}), 400),
        (&token, json!({"expires_in": 3601}), 400),
        (&token, json!({"expires_in": 0}), 400),
        (&token, json!({"subject_token": "garbage"}), 400),
        (&token, json!({"subject_token": ROOT_KEY}), 400),
        (&token, json!({"requested_token_type": "urn:x"}), 400),
    ] {
        let (status, answer) = try_exchange(&server, token, more.clone()).await;
        assert_eq!(status, wanted, "{more} {answer}");
        assert!(!answer.to_string().contains(ROOT_KEY));
    }
    // Root trades for what it names, and the result is not root.
    let body = json!({"grant_type": GRANT, "scope": "tasks:list tokens:introspect"});
    let (status, given) = server.as_root("POST", TOKEN, Some(body)).await;
    assert_eq!(status, 200, "{given}");
    let given = secret(&given);
    assert_eq!(lists(&server, &given).await, 200);
    assert_eq!(as_bearer(&server, &given, "GET", TOKENS, None).await.0, 403);
    assert_eq!(as_bearer(&server, &given, "GET", "/v1/whoami", None).await.1["root"], false);
}

#[tokio::test]
async fn se_39_an_exchanged_token_ends_with_what_it_came_from() {
    let mut server = server().await;
    let (token, prefix) = mint(&server, json!({"scopes": "tasks:*"})).await;
    let (other, _) = mint(&server, json!({"scopes": "tasks:*"})).await;
    let first = secret(&exchange(&server, &token, json!({})).await);
    let second = secret(&exchange(&server, &first, json!({})).await);
    let others = secret(&exchange(&server, &other, json!({})).await);
    for token in [&first, &second, &others] {
        assert_eq!(lists(&server, token).await, 200);
    }
    server = server.again().await;
    for token in [&first, &second, &others] {
        assert_eq!(lists(&server, token).await, 200, "also after a restart");
    }
    assert_eq!(server.as_root("DELETE", &format!("{TOKENS}/{prefix}"), None).await.0, 204);
    for again in [false, true] {
        if again {
            server = server.again().await;
        }
        assert_eq!(lists(&server, &first).await, 401, "no cascade was asked for");
        assert_eq!(lists(&server, &second).await, 401);
        assert_eq!(lists(&server, &others).await, 200);
    }
    // Nothing of a token whose uses are counted, and nothing too deep.
    let (once, _) = mint(&server, json!({"scopes": "tasks:*", "max_uses": 9})).await;
    assert_eq!(try_exchange(&server, &once, json!({})).await.0, 400);
    let mut deep = other;
    for _ in 0..4 {
        deep = secret(&exchange(&server, &deep, json!({})).await);
    }
    assert_eq!(try_exchange(&server, &deep, json!({})).await.0, 400);
}

#[tokio::test]
async fn se_39_rotation_ends_what_the_former_token_was_traded_for() {
    let server = server().await;
    let (token, prefix) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let traded = secret(&exchange(&server, &token, json!({})).await);
    assert_eq!(lists(&server, &traded).await, 200);
    let rotate = format!("{TOKENS}/{prefix}/rotate");
    let (status, new) = server.as_root("POST", &rotate, Some(json!({}))).await;
    assert!(matches!(status, 200 | 201), "{new}");
    assert_eq!(lists(&server, &token).await, 401);
    assert_eq!(lists(&server, &traded).await, 401);
}

#[tokio::test]
async fn se_47_a_recall_ends_what_a_jwt_was_traded_for() {
    let server = server().await;
    let jwt = Token::new("alice", &["tasks:*"]).claim("exp", (credentials::now() + 90).into());
    let given = exchange(&server, &jwt.sign(), json!({"expires_in": 600})).await;
    assert!(given["expires_in"].as_u64().unwrap() <= 90);
    let first = secret(&given);
    let second = secret(&exchange(&server, &first, json!({})).await);
    let bob = Token::new("bob", &["tasks:*"]).sign();
    let bobs = secret(&exchange(&server, &bob, json!({})).await);
    let body = json!({"issuer": credentials::ISSUER, "subject": "alice"});
    assert_eq!(server.as_root("POST", "/v1/auth/revoke-subject", Some(body)).await.0, 200);
    assert_eq!(lists(&server, &first).await, 401);
    assert_eq!(lists(&server, &second).await, 401);
    assert_eq!(lists(&server, &bobs).await, 200);
    let server = server.again().await;
    assert_eq!(lists(&server, &first).await, 401);
    assert_eq!(lists(&server, &second).await, 401);
    assert_eq!(lists(&server, &bobs).await, 200);
}

#[tokio::test]
async fn se_39_a_start_ends_what_the_configuration_lets_nobody_have_any_more() {
    let server = server().await;
    let alice = Token::new("alice", &["tasks:*"]).sign();
    let of_jwt = secret(&exchange(&server, &alice, json!({})).await);
    let body = json!({"name": "k", "scopes": ["tasks:list"], "namespaces": ["shop"]});
    let (status, key) = server.as_root("POST", "/v1/api-keys", Some(body)).await;
    assert_eq!(status, 201, "{key}");
    let key = key["key"].as_str().unwrap().to_owned();
    let of_key = secret(&exchange(&server, &key, json!({"scope": "tasks:list"})).await);
    let again = secret(&exchange(&server, &of_key, json!({"scope": "tasks:list"})).await);
    let (minted, _) = mint(&server, json!({"scopes": "tasks:*"})).await;
    let of_minted = secret(&exchange(&server, &minted, json!({})).await);
    let server = server.again().await;
    for token in [&of_jwt, &key, &of_key, &again, &of_minted] {
        assert_eq!(lists(&server, token).await, 200);
    }
    // API keys are switched off, those of the configuration too.
    let rest = "api_keys_enabled = false\n[limits]\nfailed_auth_per_minute = 0\n".to_owned();
    let server = server.again_with(Setup { rest, ..Setup::steady() }).await;
    for (token, wanted) in
        [(&of_jwt, 200), (&key, 401), (&of_key, 401), (&again, 401), (&of_minted, 200)]
    {
        assert_eq!(lists(&server, token).await, wanted);
    }
}

#[tokio::test]
async fn se_39_a_start_ends_what_a_ceiling_or_a_missing_issuer_leaves_nobody() {
    let with = |issuer: &str, more: &str| {
        let rest = format!(
            "[[auth.issuers]]\nissuer = \"{issuer}\"\naudience = \"{}\"\n\
             public_key_path = \"jwt-public-key.pem\"\n{more}\n[limits]\nfailed_auth_per_minute = 0\n",
            credentials::AUDIENCE
        );
        Setup { rest, ..Setup::steady() }
    };
    let second = "https://second.example";
    let jwt = || Token::new("alice", &["tasks:*"]).claim("iss", second.into()).sign();
    for (setup, wanted) in [
        (with(second, ""), 200),
        (with(second, "permissions_ceiling = [\"tasks:read\"]"), 401),
        (with(second, "namespaces_ceiling = [\"shop\"]"), 401),
        (with("https://third.example", ""), 401),
    ] {
        let server = Server::with(with(second, "")).await;
        let traded = secret(&exchange(&server, &jwt(), json!({})).await);
        assert_eq!(lists(&server, &traded).await, 200);
        let server = server.again_with(setup).await;
        assert_eq!(lists(&server, &traded).await, wanted);
    }
}

#[tokio::test]
async fn exchanged_tokens_are_bounded_in_number_and_time() {
    let server = server().await;
    let (token, _) = mint(&server, json!({"scopes": "tasks:*"})).await;
    let first = secret(&exchange(&server, &token, json!({})).await);
    for _ in 1..100 {
        exchange(&server, &token, json!({})).await;
    }
    assert_eq!(try_exchange(&server, &token, json!({})).await.0, 429);
    assert_eq!(try_exchange(&server, &first, json!({})).await.0, 429, "nor by what it has");
    let (other, _) = mint(&server, json!({"scopes": "tasks:*"})).await;
    let short = secret(&exchange(&server, &other, json!({"expires_in": 1})).await);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(lists(&server, &short).await, 401);
}

#[tokio::test]
async fn exchange_token_needs_the_database_and_a_credential() {
    let rest = "token_store = \"file\"\ntoken_file = \"auth.token\"\n".to_owned();
    let server = Server::with(Setup { rest, ..Setup::default() }).await;
    let body = json!({"grant_type": GRANT, "scope": "tasks:list"});
    let (status, answer) = server.as_root("POST", TOKEN, Some(body.clone())).await;
    assert_eq!(status, 400);
    assert!(answer["message"].as_str().unwrap().contains("auth.token_store"), "{answer}");
    let open = Server::with(Setup { auth: false, ..Setup::default() }).await;
    let (status, answer) = open.json("POST", TOKEN, &[], Some(body)).await;
    assert_eq!((status, &answer["reason"]), (400, &json!("CREDENTIAL_STATE")), "{answer}");
}

/// The prefixes that root sees, with who traded for those that were.
async fn listed(server: &Server) -> Vec<(String, Option<String>)> {
    let (status, answer) = server.as_root("GET", TOKENS, None).await;
    assert_eq!(status, 200, "{answer}");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let tokens = answer["tokens"].as_array().unwrap().iter();
    tokens.map(|one| (text(&one["prefix"]).unwrap(), text(&one["exchanged_by"]))).collect()
}

#[tokio::test]
async fn se_39_root_sees_and_takes_back_exchanged_tokens() {
    let server = server().await;
    let (token, prefix) = mint(&server, json!({"scopes": "tasks:*"})).await;
    let jwt = Token::new("alice", &["tasks:*"]).sign();
    let from_token = exchange(&server, &token, json!({})).await;
    let from_jwt = exchange(&server, &jwt, json!({"namespaces": "shop"})).await;
    let id = |given: &Value| given["credential_id"].as_str().unwrap().to_owned();
    let all = listed(&server).await;
    let by = |id: &str| all.iter().find(|(prefix, _)| prefix == id).unwrap().1.clone();
    assert_eq!(by(&prefix), None, "minted, not traded for");
    assert!(by(&id(&from_token)).unwrap().starts_with("database:"), "{all:?}");
    assert!(by(&id(&from_jwt)).unwrap().ends_with("#alice"), "{all:?}");
    let path = format!("{TOKENS}/{}", id(&from_token));
    let (status, shown) = server.as_root("GET", &path, None).await;
    assert_eq!((status, &shown["parent"]), (200, &json!(prefix)), "{shown}");
    assert!(!shown.to_string().contains(&secret(&from_token)), "never the secret");
    // It is no token that could be rotated, nor a parent of minted ones.
    assert_eq!(server.as_root("POST", &format!("{path}/rotate"), None).await.0, 404);
    let body = json!({"scopes": "tasks:list", "parent": id(&from_token)});
    assert_eq!(server.as_root("POST", TOKENS, Some(body)).await.0, 400);

    assert_eq!(server.as_root("DELETE", &path, None).await.0, 204);
    assert_eq!(lists(&server, &secret(&from_token)).await, 401);
    assert_eq!(lists(&server, &token).await, 200, "what it came from stays");
    assert_eq!(lists(&server, &secret(&from_jwt)).await, 200);
    assert_eq!(server.as_root("DELETE", &path, None).await.0, 404, "it is gone");
}

#[tokio::test]
async fn se_39_exchanged_tokens_are_removed_when_their_time_is_over() {
    let server = server().await;
    let (token, _) = mint(&server, json!({"scopes": "tasks:*"})).await;
    let short = exchange(&server, &token, json!({"expires_in": 1})).await;
    let long = exchange(&server, &token, json!({})).await;
    let id = short["credential_id"].as_str().unwrap();
    let path = format!("/v1/audit/records?object={id}");
    let deadline = tokio::time::Instant::now() + crate::harness::PATIENCE;
    let records = loop {
        let answer = server.as_root("GET", &path, None).await.1;
        let records = answer["records"].as_array().unwrap().clone();
        if records.len() > 1 {
            break records;
        }
        assert!(tokio::time::Instant::now() < deadline, "not removed: {answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    // By the server itself; and it was made by an exchange.
    assert_eq!(records[0]["rpc"], "server");
    assert_eq!(records[0]["record"]["detail"]["change"], "deleted");
    assert_eq!(records[1]["rpc"], "bailiwick.v1.AuthAdminService/ExchangeToken");
    assert!(!Value::from(records).to_string().contains(&secret(&short)));
    let all: Vec<String> = listed(&server).await.into_iter().map(|(prefix, _)| prefix).collect();
    assert!(!all.iter().any(|prefix| prefix == id));
    assert!(all.iter().any(|prefix| *prefix == long["credential_id"]), "{all:?}");
}
