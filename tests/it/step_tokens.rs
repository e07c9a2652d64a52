//! The tokens of steps: what they say, what they open, when they end, and how
//! their keys are kept.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Stdio, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, time::sleep};

use crate::harness::{
    Envoy, ORDER, ROOT_KEY, Server, Setup,
    credentials::{self, Token, now},
    refused, refused_in,
};

const RIGHTS: &str = "[[auth.namespaces]]\nprefix = \"shop\"\nceiling = [\"tasks:*\"]\n\
                      audiences = {vault = \"https://vault.example\", sts = \"sts.example.com\"}\n";

/// A template with one step for the handler `work` that asks for this.
fn asking(name: &str, asked: &str) -> String {
    format!(
        "name: {name}\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n  - name: only\n    \
         handler: {{callable: work}}\n    retry: {{max_attempts: 3, backoff_base_ms: 0}}\n    {asked}\n"
    )
}

/// The settings of a server with step tokens.
fn setup() -> Setup {
    let mut setup = Setup::steady();
    setup.server = format!("public_url = \"http://127.0.0.1:{}\"", setup.ports[1]);
    setup.rest = RIGHTS.to_owned();
    setup
}

async fn register(server: &Server, key: (&str, &str), definition: &str) -> (u16, Value) {
    let body = json!({"namespace": "shop", "definition": definition});
    server.json("POST", "/v1/templates", &[key], Some(body)).await
}

/// With [`ORDER`] and a template `parent` that asks for this.
async fn house(setup: Setup, asked: &str) -> Server {
    let server = Server::with(setup).await.with_template().await;
    let (status, answer) =
        register(&server, ("x-api-key", ROOT_KEY), &asking("parent", asked)).await;
    assert_eq!(status, 201, "{answer}");
    server
}

async fn create(server: &Server, name: &str) -> String {
    let body = json!({"namespace": "shop", "name": name, "context": {}});
    let (status, task) = server.as_root("POST", "/v1/tasks", Some(body)).await;
    assert_eq!(status, 201, "{task}");
    task["task_uuid"].as_str().unwrap().to_owned()
}

async fn lease(server: &Server) -> Value {
    let body = json!({"namespace": "shop", "handlers": ["work"], "wait_ms": 20_000});
    let (status, answer) = server.as_root("POST", "/v1/work/lease", Some(body)).await;
    assert_eq!(status, 200, "{answer}");
    answer["leases"][0].clone()
}

/// A lease of a new task of `parent`.
async fn leased(server: &Server) -> Value {
    create(server, "parent").await;
    lease(server).await
}

fn own(lease: &Value) -> String {
    lease["tokens"]["bailiwick"].as_str().unwrap_or_else(|| panic!("{lease}")).to_owned()
}

fn part(token: &str, place: usize) -> Value {
    let part = token.split('.').nth(place).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

async fn bearer(
    server: &Server,
    token: &str,
    verb: &str,
    path: &str,
    body: Option<Value>,
) -> (u16, Value) {
    let value = format!("Bearer {token}");
    server.json(verb, path, &[("authorization", &value)], body).await
}

/// Creates a task of [`ORDER`] by a token.
async fn order(server: &Server, token: &str) -> (u16, Value) {
    let body = json!({"namespace": "shop", "name": "order", "context": {}});
    bearer(server, token, "POST", "/v1/tasks", Some(body)).await
}

async fn assert_dead(server: &Server, token: &str, why: &str) {
    let (status, answer) = order(server, token).await;
    assert_eq!(status, 401, "{why}: {answer}");
}

async fn assert_alive(server: &Server, token: &str, why: &str) {
    let (status, answer) = order(server, token).await;
    assert_eq!(status, 201, "{why}: {answer}");
}

const SPAWNS: &str = "permissions: [tasks:create]\n    spawns: [order]";

#[tokio::test]
async fn se_31_a_token_says_who_the_step_is_and_not_its_lease() {
    let asked = "permissions: [tasks:create, tasks:read]\n    audiences: [vault]";
    let server = house(setup(), asked).await;
    let lease = leased(&server).await;
    let token = own(&lease);
    let issuer = server.url("");
    let header = part(&token, 0);
    assert_eq!((&header["typ"], &header["alg"]), (&json!("bwk-step+jwt"), &json!("EdDSA")));
    let claims = part(&token, 1);
    assert_eq!((&claims["iss"], &claims["aud"]), (&json!(issuer), &json!(issuer)));
    let task = lease["task_uuid"].as_str().unwrap();
    assert_eq!(claims["sub"], format!("step:shop/{task}/only"));
    for name in ["task_uuid", "step_uuid", "namespace", "attempt"] {
        assert_eq!(claims[name], lease[name], "{name}");
    }
    assert_eq!(claims["permissions"], json!(["tasks:create", "tasks:read"]));
    let left = claims["exp"].as_i64().unwrap() - now();
    assert!((20..=30).contains(&left), "as long as the lease: {left}");
    let whole = lease["lease_id"].as_str().unwrap();
    for place in [0, 1] {
        let text = part(&token, place).to_string();
        // The counter and the random part of the lease's id.
        assert!(!text.contains(&whole[44..]) && !text.contains(&whole[60..]), "{text}");
    }

    let vault = lease["tokens"]["vault"].as_str().unwrap();
    let outside = part(vault, 1);
    assert_eq!(outside["aud"], "https://vault.example");
    assert!(outside.get("permissions").is_none(), "{outside}");
    assert_ne!(outside["jti"], claims["jti"]);
    assert!(lease["tokens"].get("sts").is_none(), "it did not ask for it");
}

#[tokio::test]
async fn se_31_a_token_opens_only_what_is_for_steps() {
    let server = house(setup(), SPAWNS).await;
    let (status, answer) =
        register(&server, ("x-api-key", ROOT_KEY), &ORDER.replace("order", "other")).await;
    assert_eq!(status, 201, "{answer}");
    let lease = leased(&server).await;
    let token = own(&lease);
    let (status, task) = order(&server, &token).await;
    assert_eq!(status, 201, "{task}");
    let made = format!("step:shop/{}/only", lease["task_uuid"].as_str().unwrap());
    assert!(task["created_by"].as_str().unwrap().contains(&made), "{task}");
    assert_eq!(task["parent_task_uuid"], lease["task_uuid"], "{task}");

    let id = task["task_uuid"].as_str().unwrap();
    for (verb, path) in [
        ("GET", "/v1/whoami".to_owned()),
        ("GET", format!("/v1/tasks/{id}")),
        ("GET", "/v1/tasks".to_owned()),
        ("GET", "/v1/api-keys".to_owned()),
        ("GET", "/v1/workers".to_owned()),
        ("GET", "/v1/auth/tokens".to_owned()),
    ] {
        let (status, answer) = bearer(&server, &token, verb, &path, None).await;
        assert_eq!(status, 403, "{verb} {path}: {answer}");
    }
    let into = |namespace: &str, name: &str| json!({"namespace": namespace, "name": name});
    let (status, answer) =
        bearer(&server, &token, "POST", "/v1/tasks", Some(into("shop", "other"))).await;
    assert_eq!(status, 403, "a template that is not listed: {answer}");
    for namespace in ["bank", "shop.eu"] {
        let body = Some(into(namespace, "order"));
        let (status, answer) = bearer(&server, &token, "POST", "/v1/tasks", body).await;
        assert_eq!(status, 404, "{namespace}: {answer}");
    }
    // Not by the header for API keys.
    let body = Some(into("shop", "order"));
    let (status, _) = server.json("POST", "/v1/tasks", &[("x-api-key", &token)], body).await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn se_31_a_token_dies_the_moment_its_lease_ends() {
    let server = house(setup().lease_seconds(5), SPAWNS).await;
    for end in ["complete", "fail", "cancel", "expiry"] {
        let lease = leased(&server).await;
        let token = own(&lease);
        assert_alive(&server, &token, end).await;
        let id = json!({"lease_id": lease["lease_id"]});
        let (path, body) = match end {
            "complete" => ("/v1/work/complete".to_owned(), Some(id)),
            "fail" => ("/v1/work/fail".to_owned(), Some(id)),
            "cancel" => (format!("/v1/tasks/{}", lease["task_uuid"].as_str().unwrap()), None),
            _ => (String::new(), None),
        };
        if path.is_empty() {
            sleep(Duration::from_millis(5_500)).await;
        } else {
            let verb = if end == "cancel" { "DELETE" } else { "POST" };
            let (status, answer) = server.as_root(verb, &path, body).await;
            assert_eq!(status, 200, "{end}: {answer}");
        }
        assert_dead(&server, &token, end).await;
        // The next attempt has a token of its own, and the old one stays dead.
        if matches!(end, "fail" | "expiry") {
            let next = lease_of(&server, &lease).await;
            assert_eq!(next["attempt"], 2, "{end}");
            assert_alive(&server, &own(&next), end).await;
            assert_dead(&server, &token, end).await;
            let id = json!({"lease_id": next["lease_id"]});
            let (status, _) = server.as_root("POST", "/v1/work/complete", Some(id)).await;
            assert_eq!(status, 200);
        }
        drain(&server).await;
    }
}

/// Completes what the tokens have made.
async fn drain(server: &Server) {
    loop {
        let body = json!({"namespace": "shop", "handlers": ["work"], "max_leases": 100});
        let (_, answer) = server.as_root("POST", "/v1/work/lease", Some(body)).await;
        let leases = answer["leases"].as_array().cloned().unwrap_or_default();
        if leases.is_empty() {
            return;
        }
        for lease in leases {
            let id = json!({"lease_id": lease["lease_id"]});
            server.as_root("POST", "/v1/work/complete", Some(id)).await;
        }
    }
}

/// The next lease of the same step; others are completed on the way.
async fn lease_of(server: &Server, of: &Value) -> Value {
    loop {
        let next = lease(server).await;
        if next["step_uuid"] == of["step_uuid"]
            || of["step_uuid"].is_null() && next["task_uuid"] == of["task_uuid"]
        {
            return next;
        }
        let id = json!({"lease_id": next["lease_id"]});
        server.as_root("POST", "/v1/work/complete", Some(id)).await;
    }
}

#[tokio::test]
async fn se_31_a_token_lives_five_minutes_however_long_its_lease() {
    let server = house(setup().lease_seconds(3_600), SPAWNS).await;
    let lease = leased(&server).await;
    let claims = part(&own(&lease), 1);
    let life = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert!((295..=300).contains(&life), "{claims}");
}

#[tokio::test]
async fn se_31_a_heartbeat_brings_fresh_tokens() {
    let asked = "permissions: [tasks:create]\n    spawns: [order]\n    audiences: [sts]";
    let server = house(setup().lease_seconds(5), asked).await;
    let lease = leased(&server).await;
    let first = own(&lease);
    sleep(Duration::from_secs(3)).await;
    let body = json!({"lease_id": lease["lease_id"]});
    let (status, beat) = server.as_root("POST", "/v1/work/heartbeat", Some(body.clone())).await;
    assert_eq!((status, &beat["state"]), (200, &json!("held")), "{beat}");
    let second = own(&beat);
    assert!(part(&second, 1)["exp"].as_i64() > part(&first, 1)["exp"].as_i64());
    assert_eq!(part(beat["tokens"]["sts"].as_str().unwrap(), 1)["aud"], "sts.example.com");
    sleep(Duration::from_secs(3)).await;
    assert_dead(&server, &first, "its own time is over").await;
    assert_alive(&server, &second, "renewed").await;
    let metadata = [("x-api-key", ROOT_KEY)];
    let beat = server.grpc("WorkerService/HeartbeatStep", body, &metadata).await.unwrap();
    assert_alive(&server, beat["tokens"]["bailiwick"].as_str().unwrap(), "by gRPC").await;
}

#[tokio::test]
async fn se_31_a_token_for_outside_is_worth_nothing_here() {
    let asked = "permissions: [tasks:create]\n    spawns: [order]\n    audiences: [vault]";
    let server = house(setup(), asked).await;
    let lease = leased(&server).await;
    assert_dead(&server, lease["tokens"]["vault"].as_str().unwrap(), "for the vault").await;
    assert_alive(&server, &own(&lease), "for us").await;
}

#[tokio::test]
async fn se_30_a_step_without_rights_has_an_identity_alone() {
    let server = house(setup(), "description: none").await;
    let lease = leased(&server).await;
    let token = own(&lease);
    assert_eq!(part(&token, 1)["permissions"], json!([]));
    let (status, answer) = order(&server, &token).await;
    assert_eq!(status, 403, "{answer}");
}

#[tokio::test]
async fn se_30_a_template_asks_only_for_what_its_registrar_holds() {
    let server = Server::with(setup()).await.with_template().await;
    let token = Token::new("registrar", &["templates:register", "tasks:read"]).sign();
    let value = format!("Bearer {token}");
    let key = ("authorization", value.as_str());
    let (status, answer) = register(&server, key, &asking("a", "permissions: [tasks:read]")).await;
    assert_eq!(status, 201, "{answer}");
    let asked = "permissions: [tasks:read, tasks:create]";
    let (status, answer) = register(&server, key, &asking("b", asked)).await;
    assert_eq!(status, 403, "{answer}");
    assert!(answer.to_string().contains("tasks:create"), "{answer}");
    let elsewhere = Token::new("elsewhere", &["templates:register"]);
    let elsewhere = elsewhere.claim("permissions", json!(["templates:register", "tasks:create"]));
    let elsewhere = format!("Bearer {}", elsewhere.within(&["shop.eu", "bank"]).sign());
    let (status, _) = register(&server, ("authorization", &elsewhere), &asking("b", SPAWNS)).await;
    assert_eq!(status, 404, "it does not reach the namespace at all");
    let root = ("x-api-key", ROOT_KEY);
    for asked in [
        "permissions: [\"*\"]",
        "permissions: [api_keys:admin]",
        "permissions: [templates:register]",
        "permissions: [rules:write]",
        "permissions: [commands:execute]",
        "permissions: [work:lease]",
        "audiences: [elsewhere]",
    ] {
        let (status, answer) = register(&server, root, &asking("c", asked)).await;
        assert_eq!(status, 400, "{asked}: {answer}");
    }
    let other = asking("c", "audiences: [vault]").replace("shop", "bank");
    let body = json!({"namespace": "bank", "definition": other});
    let (status, answer) = server.as_root("POST", "/v1/templates", Some(body)).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.to_string().contains("auth.namespaces"), "{answer}");
}

#[tokio::test]
async fn se_30_what_the_registrar_loses_its_steps_lose() {
    let server = Server::with(setup()).await.with_template().await;
    let body = json!({"scopes": ["templates:register", "tasks:create"], "namespaces": ["shop"]});
    let (status, minted) = server.as_root("POST", "/v1/auth/tokens", Some(body)).await;
    assert_eq!(status, 201, "{minted}");
    let value = format!("Bearer {}", minted["token"].as_str().unwrap());
    let (status, answer) =
        register(&server, ("authorization", &value), &asking("parent", SPAWNS)).await;
    assert_eq!(status, 201, "{answer}");
    let lease = leased(&server).await;
    assert_alive(&server, &own(&lease), "the registrar holds it").await;
    let server = server.again().await;
    assert_alive(&server, &own(&lease), "after a restart").await;
    let path = format!("/v1/auth/tokens/{}", minted["prefix"].as_str().unwrap());
    let (status, answer) = server.as_root("DELETE", &path, None).await;
    assert_eq!(status, 204, "{answer}");
    let (status, answer) = order(&server, &own(&lease)).await;
    assert_eq!(status, 403, "at once, also by a token from before: {answer}");
    let body = json!({"lease_id": lease["lease_id"]});
    let (_, beat) = server.as_root("POST", "/v1/work/heartbeat", Some(body)).await;
    assert_eq!(part(&own(&beat), 1)["permissions"], json!([]));
}

#[tokio::test]
async fn se_30_the_ceiling_of_the_namespace_cuts() {
    let mut narrow = setup();
    narrow.rest = RIGHTS.replace("tasks:*", "tasks:read");
    let server = house(narrow, SPAWNS).await;
    let lease = leased(&server).await;
    assert_eq!(part(&own(&lease), 1)["permissions"], json!([]));
    let (status, _) = order(&server, &own(&lease)).await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn without_a_public_url_steps_have_no_tokens() {
    let server = Server::start().await.with_template().await;
    server.order(json!({})).await;
    let lease = lease(&server).await;
    assert_eq!(lease["tokens"], json!({}));
    for asked in ["permissions: [tasks:read]", "audiences: [vault]", "spawns: [order]"] {
        let (status, answer) =
            register(&server, ("x-api-key", ROOT_KEY), &asking("a", asked)).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer.to_string().contains("server.public_url"), "{answer}");
    }
    for page in ["/.well-known/openid-configuration", "/.well-known/jwks.json"] {
        assert_eq!(server.json("GET", page, &[], None).await.0, 404, "{page}");
    }
    assert!(!server.path("keys/master.key").exists(), "no key comes to be");
}

/// A JWT of the tests' issuer with another header.
fn forged(header: &Value, claims: &Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_ed_pem(credentials::issuer().private.as_bytes());
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", encode(header), encode(claims));
    let algorithm = jsonwebtoken::Algorithm::EdDSA;
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key.unwrap(), algorithm);
    format!("{message}.{}", signature.unwrap())
}

#[tokio::test]
async fn se_32_nobody_else_makes_a_steps_token_and_ours_is_no_users() {
    let server = house(setup(), SPAWNS).await;
    let lease = leased(&server).await;
    let token = own(&lease);
    let (header, claims) = (part(&token, 0), part(&token, 1));
    assert_dead(&server, &forged(&header, &claims), "signed by the tests' issuer").await;
    // A good user's JWT that says it is a step's.
    let user = Token::new("user", &["tasks:create"]).sign();
    assert_alive(&server, &user, "as a user").await;
    let mut typed = part(&user, 0);
    for typ in ["bwk-step+jwt", "BWK-STEP+JWT"] {
        typed["typ"] = json!(typ);
        assert_dead(&server, &forged(&typed, &part(&user, 1)), typ).await;
        typed["kid"] = header["kid"].clone();
        assert_dead(&server, &forged(&typed, &part(&user, 1)), typ).await;
    }
    // A user's JWT in our own name.
    let mut named = part(&user, 1);
    named["iss"] = claims["iss"].clone();
    assert_dead(&server, &forged(&part(&user, 0), &named), "our own issuer").await;
    // Ours with another type, no key, no algorithm, or another word.
    let [_, body, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("{token}") };
    for (name, value) in [
        ("typ", json!("JWT")),
        ("typ", json!("at+jwt")),
        ("kid", json!("x")),
        ("alg", json!("none")),
    ] {
        let mut other = header.clone();
        other[name] = value;
        let other = URL_SAFE_NO_PAD.encode(other.to_string());
        assert_dead(&server, &format!("{other}.{body}.{signature}"), name).await;
    }
    let mut wider = claims.clone();
    wider["permissions"] = json!(["tasks:create", "tasks:read"]);
    let head = token.split('.').next().unwrap();
    let wider = URL_SAFE_NO_PAD.encode(wider.to_string());
    assert_dead(&server, &format!("{head}.{wider}.{signature}"), "changed").await;
    assert_alive(&server, &token, "as it is").await;
}

#[tokio::test]
async fn se_32_the_issuer_is_the_setting_and_never_the_host() {
    let server = Server::with(setup()).await;
    let issuer = server.url("");
    for host in [None, Some("localhost")] {
        let headers: Vec<_> = host.iter().map(|host| ("host", *host)).collect();
        let page = "/.well-known/openid-configuration";
        let (status, found) = server.json("GET", page, &headers, None).await;
        assert_eq!((status, &found["issuer"]), (200, &json!(issuer)), "{found}");
        assert_eq!(found["jwks_uri"], format!("{issuer}/.well-known/jwks.json"));
    }
    let (status, set) = server.json("GET", "/.well-known/jwks.json", &[], None).await;
    assert_eq!((status, set["keys"].as_array().unwrap().len()), (200, 1), "{set}");
    assert_eq!(set["keys"][0]["crv"], "Ed25519");
    assert!(set["keys"][0].get("d").is_none(), "{set}");
}

#[tokio::test]
async fn se_48_the_key_of_keys_is_made_outside_the_data_and_needed_again() {
    let server = Server::with(setup()).await;
    let file = server.path("keys/master.key");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let key = fs::read_to_string(&file).unwrap();
    let (_, before) = server.json("GET", "/.well-known/jwks.json", &[], None).await;
    let server = server.again().await;
    let (_, after) = server.json("GET", "/.well-known/jwks.json", &[], None).await;
    assert_eq!(before, after, "the same keys after a restart");
    let folder = std::sync::Arc::clone(&server.folder);
    let mut server = server;
    server.process.terminate();
    server.process.exit().await;

    let says = async |setup: &Setup| {
        let (code, said) = refused_in(folder.path(), setup).await;
        assert!(code.is_some_and(|code| code != 0), "{said}");
        said
    };
    let with = |value: &str| {
        let mut setup = setup();
        setup.environment.push(("BAILIWICK_KEY_ENCRYPTION_KEY".to_owned(), value.to_owned()));
        setup
    };
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(says(&setup()).await.contains("chmod 600"));
    fs::remove_file(&file).unwrap();
    let said = says(&setup()).await;
    assert!(said.contains("key_encryption_key_file") && said.contains("put it back"), "{said}");
    // Also where steps have no tokens any more.
    assert!(says(&Setup::steady()).await.contains("put it back"));
    assert!(!file.exists(), "nothing is made in its place");
    let said = says(&with(&"ab".repeat(32))).await;
    assert!(said.contains("wrong key"), "{said}");
    let said = says(&with("short")).await;
    assert!(said.contains("64 hex digits"), "{said}");
    let mut within = setup();
    within.rest = "key_encryption_key_file = \"data/master.key\"".to_owned();
    within.auth = false;
    assert!(refused(&within).await.contains("within the data folder"));

    let server = server.again_with(with(key.trim())).await;
    let (_, now) = server.json("GET", "/.well-known/jwks.json", &[], None).await;
    assert_eq!(now, before, "by the same key from the environment");
}

#[tokio::test]
async fn create_signing_key_signs_and_retire_signing_key_ends_what_was_signed() {
    let server = house(setup(), SPAWNS).await;
    let lease = leased(&server).await;
    let old = own(&lease);
    let first = part(&old, 0)["kid"].as_str().unwrap().to_owned();
    let path = |kid: &str| format!("/v1/auth/signing-keys/{kid}/retire");
    let (status, answer) = server.as_root("POST", &path(&first), Some(json!({}))).await;
    assert_eq!(status, 400, "the one that signs is not retired: {answer}");

    let body = Some(json!({"purpose": "step"}));
    let (status, made) = server.as_root("POST", "/v1/auth/signing-keys", body).await;
    assert_eq!((status, &made["state"]), (201, &json!("signs")), "{made}");
    let body = json!({"lease_id": lease["lease_id"]});
    let (_, beat) = server.as_root("POST", "/v1/work/heartbeat", Some(body)).await;
    assert_eq!(part(&own(&beat), 0)["kid"], made["kid"]);
    let (_, set) = server.json("GET", "/.well-known/jwks.json", &[], None).await;
    assert_eq!(set["keys"].as_array().unwrap().len(), 2, "{set}");
    assert_alive(&server, &old, "the former key verifies").await;

    let (status, retired) = server.as_root("POST", &path(&first), Some(json!({}))).await;
    assert_eq!((status, &retired["state"]), (200, &json!("retired")), "{retired}");
    assert_dead(&server, &old, "its key is retired").await;
    assert_alive(&server, &own(&beat), "by the new key").await;
    let (_, set) = server.json("GET", "/.well-known/jwks.json", &[], None).await;
    assert_eq!(set["keys"].as_array().unwrap().len(), 1, "{set}");
    let server = server.again().await;
    assert_alive(&server, &own(&beat), "after a restart").await;
    assert_dead(&server, &old, "after a restart").await;
    let (_, listed) = server.as_root("GET", "/v1/auth/signing-keys", None).await;
    let states: Vec<_> = listed["keys"].as_array().unwrap().iter().map(|k| &k["state"]).collect();
    assert_eq!(states, ["signs", "retired"], "{listed}");
    assert!(!listed.to_string().contains("private"), "{listed}");

    for (verb, path, body) in [
        ("POST", "/v1/auth/signing-keys", json!({"purpose": "audit"})),
        ("POST", "/v1/auth/signing-keys/none/retire", json!({})),
    ] {
        let (status, answer) = server.as_root(verb, path, Some(body)).await;
        assert!(matches!(status, 400 | 404), "{path}: {status} {answer}");
    }
    // Everywhere or not at all.
    let token = Token::new("keeper", &["signing_keys:admin"]).within(&["shop"]).sign();
    let (status, _) = bearer(&server, &token, "GET", "/v1/auth/signing-keys", None).await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn signing_keys_are_managed_by_the_command_line() {
    let server = house(setup(), SPAWNS).await;
    let old = own(&leased(&server).await);
    let run = async |args: &[&str]| {
        let args = [&["auth", "signing-keys"], args].concat();
        server.run_json(&args).await["keys"].as_array().unwrap().clone()
    };
    assert_eq!(run(&["list"]).await.len(), 1);
    assert_eq!(run(&["create"]).await[0]["state"], "signs");
    let rotated = run(&["rotate"]).await;
    let states: Vec<_> = rotated.iter().map(|key| key["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["signs", "verifies", "verifies"]);
    let kid = rotated[1]["kid"].as_str().unwrap();
    assert_eq!(run(&["retire", kid]).await[0]["state"], "retired");
    assert_alive(&server, &old, "its key verifies").await;
    let rotated = run(&["rotate", "--retire"]).await;
    assert!(rotated[1..].iter().all(|key| key["state"] == "retired"), "{rotated:?}");
    assert_dead(&server, &old, "its key is retired").await;
}

#[tokio::test]
async fn se_19_a_handler_finds_its_tokens_and_their_renewals() {
    let asked = "permissions: [tasks:create]\n    audiences: [vault]\n    spawns: [order]\n    \
                 metadata: {}";
    let server = house(setup().lease_seconds(5), asked).await;
    let out = server.path("said");
    let script = format!(
        "work=env >{out}.env; cat $BAILIWICK_STEP_TOKEN_FILE >{out}.first; \
         ls -l $BAILIWICK_STEP_TOKEN_FILE >{out}.mode; sleep 8; \
         cat $BAILIWICK_STEP_TOKEN_FILE >{out}.last; cat $BAILIWICK_TOKEN_VAULT_FILE >{out}.vault",
        out = out.display()
    );
    let mut command = server.cli();
    command.args(["worker", "run", "--namespace", "shop", "--handler", &script]);
    let _worker = crate::harness::Process::start(command);
    let task = create(&server, "parent").await;
    let ended = async {
        loop {
            let (_, found) = server.as_root("GET", &format!("/v1/tasks/{task}"), None).await;
            if found["state"] == "complete" {
                return;
            }
            assert_ne!(found["state"], "blocked_by_failures", "{found}");
            sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(crate::harness::PATIENCE, ended).await.unwrap();
    let read = |name: &str| fs::read_to_string(format!("{}.{name}", out.display())).unwrap();
    let env = read("env");
    let found: std::collections::BTreeMap<_, _> =
        env.lines().filter_map(|line| line.split_once('=')).collect();
    let ours: Vec<_> = found.keys().filter(|name| name.starts_with("BAILIWICK")).collect();
    assert_eq!(
        ours,
        [
            &"BAILIWICK_STEP_TOKEN",
            &"BAILIWICK_STEP_TOKEN_FILE",
            &"BAILIWICK_TOKEN_VAULT",
            &"BAILIWICK_TOKEN_VAULT_FILE"
        ]
    );
    let (first, last) = (read("first"), read("last"));
    assert_eq!(first, found["BAILIWICK_STEP_TOKEN"]);
    assert!(read("mode").starts_with("-rw-------"), "{}", read("mode"));
    assert!(part(&last, 1)["exp"].as_i64() > part(&first, 1)["exp"].as_i64(), "renewed");
    assert_eq!(part(&read("vault"), 1)["aud"], "https://vault.example");
    assert!(!fs::exists(found["BAILIWICK_STEP_TOKEN_FILE"]).unwrap(), "gone with its step");
    assert_dead(&server, &last, "the step is done").await;
}

/// A library of others, each with the script of a user of it.
const STRANGERS: [(&str, &str); 2] = [
    ("pyjwt-python", include_str!("../fixtures/verify_with_pyjwt.py")),
    ("jose-node", include_str!("../fixtures/verify_with_jose.mjs")),
];

/// What it makes of a token.
async fn stranger(
    (name, script): (&str, &str),
    issuer: &str,
    audience: &str,
    token: &str,
) -> Result<Value, String> {
    let mut command = crate::harness::process::quiet(name);
    if name == "pyjwt-python" {
        command.arg("-");
    }
    command.args([issuer, audience, token]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| {
        panic!(
            "{name}: {error}: run `tools/install.sh verifiers`, then the tests with \
             `PATH=\"$(tools/install.sh --path):$PATH\"`, or `make test`, which does both"
        )
    });
    child.stdin.take().unwrap().write_all(script.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[tokio::test]
async fn strangers_verify_the_tokens_of_steps() {
    let server = house(setup(), "audiences: [vault]").await;
    let lease = leased(&server).await;
    let issuer = server.url("");
    let (ours, vault) = (own(&lease), lease["tokens"]["vault"].as_str().unwrap());
    let rotated = server.as_root("POST", "/v1/auth/signing-keys", Some(json!({}))).await;
    assert_eq!(rotated.0, 201);
    let body = json!({"lease_id": lease["lease_id"]});
    let (_, beat) = server.as_root("POST", "/v1/work/heartbeat", Some(body)).await;
    let fresh = beat["tokens"]["vault"].as_str().unwrap();
    for library in STRANGERS {
        let name = library.0;
        for (audience, token) in
            [(&*issuer, &*ours), ("https://vault.example", vault), ("https://vault.example", fresh)]
        {
            let claims = stranger(library, &issuer, audience, token).await.unwrap();
            assert_eq!(claims["task_uuid"], lease["task_uuid"], "{name}: {claims}");
            assert_eq!((&claims["step"], &claims["attempt"]), (&json!("only"), &json!(1)));
        }
        let other = stranger(library, &issuer, "https://other.example", vault).await;
        assert!(other.unwrap_err().to_lowercase().contains("aud"), "{name}");
        let end = vault.rfind('.').unwrap();
        let forged = format!("{}.{}", &vault[..end], &ours[ours.rfind('.').unwrap() + 1..]);
        let said = stranger(library, &issuer, "https://vault.example", &forged).await.unwrap_err();
        assert!(said.to_lowercase().contains("signature"), "{name}: {said}");
    }
}

#[tokio::test]
async fn envoy_lets_steps_in_by_their_tokens() {
    let server = house(setup(), "audiences: [vault]").await;
    let here = format!("127.0.0.1:{}", server.http.port());
    let port = format!("port_value: {}", server.http.port());
    let places = [("127.0.0.1:8080", &*here), ("port_value: 8080", &*port)];
    let envoy = Envoy::start("step-tokens.yaml", &places).await;
    let lease = leased(&server).await;
    let (ours, vault) = (own(&lease), lease["tokens"]["vault"].as_str().unwrap());

    assert_eq!(envoy.answer(Some(vault)).await, (200, "let in\n".to_owned()));
    assert_eq!(envoy.answer(None).await.0, 401);
    let (status, said) = envoy.answer(Some(&ours)).await;
    assert_eq!(status, 403, "a token for Bailiwick itself is not for the service: {said}");
    assert!(said.contains("Audiences"), "{said}");
    let end = vault.rfind('.').unwrap();
    let forged = format!("{}.{}", &vault[..end], &ours[ours.rfind('.').unwrap() + 1..]);
    let (status, said) = envoy.answer(Some(&forged)).await;
    assert_eq!(status, 401, "{said}");
    assert!(said.contains("verification fails"), "{said}");

    let others = [places[0], places[1], ("exact: shop", "exact: till")];
    let envoy = Envoy::start("step-tokens.yaml", &others).await;
    let (status, said) = envoy.answer(Some(vault)).await;
    assert_eq!((status, &*said), (403, "RBAC: access denied"), "of another namespace");
}

#[tokio::test]
async fn se_45_children_are_bounded_listed_and_cancelled_with_their_root() {
    let mut few = setup();
    few.environment.push(("BAILIWICK__LIMITS__SPAWNED_TASKS_PER_ROOT".to_owned(), "3".to_owned()));
    // A template that lists itself.
    let server = house(few, "permissions: [tasks:create]\n    spawns: [parent, order]").await;
    let first = leased(&server).await;
    let root = first["task_uuid"].as_str().unwrap().to_owned();
    let body = json!({"namespace": "shop", "name": "parent"});
    let (status, child) =
        bearer(&server, &own(&first), "POST", "/v1/tasks", Some(body.clone())).await;
    assert_eq!(status, 201, "{child}");
    let second =
        lease_of(&server, &json!({"step_uuid": null, "task_uuid": child["task_uuid"]})).await;
    let (status, deep) = bearer(&server, &own(&second), "POST", "/v1/tasks", Some(body)).await;
    assert_eq!(status, 201, "{deep}");
    assert_eq!(deep["parent_task_uuid"], child["task_uuid"]);
    assert_eq!(deep["root_task_uuid"], json!(root));
    assert_alive(&server, &own(&first), "the third").await;
    let (status, answer) = order(&server, &own(&second)).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.to_string().contains("spawned_tasks_per_root"), "{answer}");

    let (_, listed) =
        server.as_root("GET", &format!("/v1/tasks?root_task_uuid={root}"), None).await;
    assert_eq!(listed["tasks"].as_array().unwrap().len(), 3, "{listed}");
    let shown = server.run_json(&["task", "list", "--parent", &root]).await;
    assert_eq!(shown["tasks"].as_array().unwrap().len(), 2, "{shown}");
    let (status, _) = server.as_root("DELETE", &format!("/v1/tasks/{root}"), None).await;
    assert_eq!(status, 200);
    for id in [&json!(root), &child["task_uuid"], &deep["task_uuid"]] {
        let path = format!("/v1/tasks/{}", id.as_str().unwrap());
        let (_, task) = server.as_root("GET", &path, None).await;
        assert_eq!(task["state"], "cancelled", "{task}");
    }
    assert_dead(&server, &own(&second), "its root was cancelled").await;
}
