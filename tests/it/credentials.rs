//! Tokens and API keys that the server gives out: DKG's and Zentinel's rows
//! about them, over gRPC and REST.

use std::time::Duration;

use bailiwick::{domain::secret, pb::v1 as pb};
use bailiwick_client::{Auth, Error};
use serde_json::{Value, json};

use crate::harness::{
    Api, PATIENCE, ROOT_KEY, Server, Setup,
    api::{reason, refusal},
    credentials::{READER_KEY, Token},
};

const TOKENS: &str = "/api/auth/tokens";

fn bearer(token: &str) -> [(&'static str, String); 1] {
    [("authorization", format!("Bearer {token}"))]
}

/// A REST call with a bearer; answers the status and the body.
async fn with(
    server: &Server,
    token: &str,
    verb: &str,
    path: &str,
    body: Option<Value>,
) -> (u16, Value) {
    let [(name, value)] = bearer(token);
    server.json(verb, path, &[(name, &value)], body).await
}

/// Mints a token as root; answers it with its prefix.
async fn mint(server: &Server, body: Value) -> (String, String) {
    let (status, minted) = server.as_root("POST", TOKENS, Some(body)).await;
    assert_eq!(status, 201, "{minted}");
    let text = |name: &str| minted[name].as_str().unwrap().to_owned();
    (text("token"), text("prefix"))
}

async fn listed(server: &Server) -> Vec<Value> {
    let (status, list) = server.as_root("GET", TOKENS, None).await;
    assert_eq!(status, 200);
    list["tokens"].as_array().unwrap().clone()
}

#[tokio::test]
async fn dk_20_22_26_30_a_token_is_shown_once_and_works_at_once() {
    let mut server = Server::start().await;
    let body = json!({"scopes": ["tasks:list", "tasks:read"]});
    let (status, minted) = server.as_root("POST", TOKENS, Some(body)).await;
    assert_eq!(status, 201);
    let keys: Vec<&String> = minted.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["createdAt", "prefix", "scopes", "token"], "{minted}");
    let token = minted["token"].as_str().unwrap();
    assert_eq!(secret::id(token), minted["prefix"].as_str());
    assert_eq!(with(&server, token, "GET", "/v1/tasks", None).await.0, 200);
    let named = json!({"scopes": "tasks:list", "name": "ci", "namespaces": ["shop"],
        "expires_in_seconds": 60, "max_uses": 5, "client_networks": ["127.0.0.0/8"]});
    let (_, minted) = server.as_root("POST", "/v1/auth/tokens", Some(named)).await;
    for (name, wanted) in [
        ("name", json!("ci")),
        ("namespaces", json!(["shop"])),
        ("max_uses", json!(5)),
        ("client_networks", json!(["127.0.0.0/8"])),
    ] {
        assert_eq!(minted[name], wanted, "{minted}");
    }
    assert!(minted["expires_at"].is_string());
    // DK-51: the secret is nowhere but in the answer to its minting.
    let (_, list) = server.as_root("GET", TOKENS, None).await;
    let (_, one) = server
        .as_root("GET", &format!("{TOKENS}/{}", minted["prefix"].as_str().unwrap()), None)
        .await;
    assert_eq!(one["name"], "ci");
    for text in [list.to_string(), one.to_string(), format!("{:?}", server.logs())] {
        assert!(!text.contains(token) && !text.contains(minted["token"].as_str().unwrap()));
    }
    server.assert_sound();
}

#[tokio::test]
async fn dk_21_scopes_come_in_three_shapes() {
    let server = Server::start().await;
    for shape in [json!("tasks:list,tasks:read"), json!(["tasks:list", "tasks:read"])] {
        let (_, minted) = server.as_root("POST", TOKENS, Some(json!({"scopes": shape}))).await;
        assert_eq!(minted["scopes"], json!(["tasks:list", "tasks:read"]));
    }
    let (_, minted) = server.as_root("POST", TOKENS, Some(json!({"scopes": "tasks:read"}))).await;
    assert_eq!(minted["scopes"], json!(["tasks:read"]));
}

#[tokio::test]
async fn dk_23_24_se_35_what_cannot_be_minted() {
    let server = Server::start().await;
    for body in [
        json!({}),
        json!({"scopes": []}),
        json!({"scopes": "*"}),
        json!({"scopes": ["tasks:read", "*"]}),
        json!({"scopes": "auth:tokens:mint"}),
        json!({"scopes": "auth:tokens:*"}),
        json!({"scopes": "nothing:known"}),
        json!({"scopes": "tasks:read\n"}),
        json!({"scopes": "tasks:read", "name": ""}),
        json!({"scopes": "tasks:read", "name": "a\u{7}b"}),
        json!({"scopes": "tasks:read", "namespaces": ["deploy.*"]}),
        json!({"scopes": "tasks:read", "namespaces": [" shop"]}),
        json!({"scopes": "tasks:read", "expires_in_seconds": 0}),
        json!({"scopes": "tasks:read", "max_uses": 0}),
        json!({"scopes": "tasks:read", "client_networks": ["10.0.0.0/40"]}),
        json!({"scopes": "tasks:read", "parent": "000000000000"}),
        json!({"scopes": "tasks:read", "owner": "me"}),
    ] {
        let (status, answer) = server.as_root("POST", TOKENS, Some(body.clone())).await;
        assert_eq!(status, 400, "{body}: {answer}");
    }
    assert!(listed(&server).await.iter().all(|token| token["source"] == "config"));
}

#[tokio::test]
async fn dk_25_43_only_root_manages_tokens() {
    let server = Server::start().await;
    let (token, prefix) = mint(&server, json!({"scopes": "tasks:*"})).await;
    let jwt = Token::new("star", &["*"]).sign();
    let one = format!("{TOKENS}/{prefix}");
    for caller in [&token, &jwt, READER_KEY] {
        for (verb, path) in [("POST", TOKENS), ("GET", TOKENS), ("GET", &*one), ("DELETE", &*one)] {
            let body = (verb == "POST").then(|| json!({"scopes": "tasks:read"}));
            let (status, answer) = with(&server, caller, verb, path, body).await;
            assert_eq!((status, answer["reason"].as_str()), (403, Some("ROOT_REQUIRED")));
        }
    }
    // DK-19: no credential is 401 before any 403.
    assert_eq!(server.json("GET", TOKENS, &[], None).await.0, 401);
}

#[tokio::test]
async fn dk_27_28_29_46_revoked_is_refused_on_the_next_call() {
    let server = Server::start().await;
    let (token, prefix) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let path = format!("{TOKENS}/{prefix}");
    assert_eq!(server.as_root("DELETE", &format!("{TOKENS}/{}", &prefix[..11]), None).await.0, 404);
    assert_eq!(server.as_root("DELETE", &path, None).await.0, 204);
    let (status, answer) = with(&server, &token, "GET", "/v1/tasks", None).await;
    assert_eq!((status, answer["reason"].as_str()), (401, Some("CREDENTIALS_REVOKED")));
    assert_eq!(server.as_root("DELETE", &path, None).await.0, 404);
    assert_eq!(server.as_root("GET", &path, None).await.0, 404);
    // Keys of the configuration are shown and stay; one is this call's own.
    for token in listed(&server).await {
        assert_eq!(token["source"], "config");
        let path = format!("{TOKENS}/{}", token["prefix"].as_str().unwrap());
        let (status, answer) = server.as_root("DELETE", &path, None).await;
        assert_eq!((status, answer["reason"].as_str()), (400, Some("CREDENTIAL_STATE")));
    }
}

#[tokio::test]
async fn dk_06_07_15_to_17_52_scopes_are_exact() {
    let server = Server::start().await.with_template().await;
    let (reader, prefix) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let (writer, _) = mint(&server, json!({"scopes": "tasks:create"})).await;
    let body = || Some(json!({"namespace": "shop", "name": "order"}));
    assert_eq!(with(&server, &writer, "POST", "/v1/tasks", body()).await.0, 201);
    assert_eq!(with(&server, &reader, "GET", "/v1/tasks", None).await.0, 200);
    assert_eq!(with(&server, &reader, "POST", "/v1/tasks", body()).await.0, 403);
    let [(name, value)] = bearer(&writer);
    let call = crate::harness::http().get(server.url("/v1/tasks")).header(name, value);
    let answer = call.send().await.unwrap();
    assert_eq!(answer.status(), 403);
    assert!(!answer.headers().contains_key("www-authenticate"), "DK-15");
    server.as_root("DELETE", &format!("{TOKENS}/{prefix}"), None).await;
    assert_eq!(with(&server, &reader, "GET", "/v1/tasks", None).await.0, 401);
}

#[tokio::test]
async fn dk_08_09_nobody_holds_an_empty_permission_and_strangers_hold_none() {
    let server = Server::start().await;
    let (scoped, _) = mint(&server, json!({"scopes": "tasks:*"})).await;
    for action in [json!({"permission": ""}), json!({"permission": null}), json!({})] {
        let body = json!({"actions": [action]});
        let root = server.as_root("POST", "/v1/can-i", Some(body.clone())).await;
        let scoped = with(&server, &scoped, "POST", "/v1/can-i", Some(body)).await;
        for (status, answer) in [root, scoped] {
            assert_eq!(
                (status, &answer["answers"][0]["allowed"]),
                (200, &json!(false)),
                "{answer}"
            );
        }
    }
    let unknown = secret::Secret::new(7, &[7; 32]);
    let body = || Some(json!({"actions": [{"permission": "tasks:list"}]}));
    assert_eq!(with(&server, unknown.expose(), "POST", "/v1/can-i", body()).await.0, 401);
    assert_eq!(server.json("POST", "/v1/can-i", &[], body()).await.0, 401);
}

#[tokio::test]
async fn dk_19_without_a_token_it_is_401_before_any_403() {
    let server = Server::start().await;
    let (scoped, prefix) = mint(&server, json!({"scopes": "templates:read"})).await;
    let token = format!("{TOKENS}/{prefix}");
    for (verb, path) in [("GET", "/v1/tasks"), ("GET", TOKENS), ("DELETE", token.as_str())] {
        assert_eq!(server.json(verb, path, &[], None).await.0, 401, "{verb} {path}");
        assert_eq!(with(&server, &scoped, verb, path, None).await.0, 403, "{verb} {path}");
    }
}

#[tokio::test]
async fn dk_40_51_parallel_mints_survive_a_restart_and_hold_no_secret() {
    let server = Server::with(Setup::steady()).await;
    let mints = (0..10).map(|_| mint(&server, json!({"scopes": "tasks:list"})));
    let tokens = futures::future::join_all(mints).await;
    let (revoked, revoked_prefix) = mint(&server, json!({"scopes": "tasks:list"})).await;
    server.as_root("DELETE", &format!("{TOKENS}/{revoked_prefix}"), None).await;
    let server = server.again().await;
    for (token, _) in &tokens {
        assert_eq!(with(&server, token, "GET", "/v1/tasks", None).await.0, 200);
    }
    assert_eq!(with(&server, &revoked, "GET", "/v1/tasks", None).await.0, 401);
    let data = std::fs::read(server.path("data/bailiwick.db")).unwrap();
    let log = std::fs::read(server.path("data/bailiwick.db-wal")).unwrap_or_default();
    for (token, prefix) in &tokens {
        let secret = &token.as_bytes()[17..];
        for bytes in [&data, &log] {
            assert!(!bytes.windows(secret.len()).any(|part| part == secret), "{prefix}");
        }
    }
}

#[tokio::test]
async fn dk_41_auth_off_bypasses_the_root_gate() {
    let server = Server::with(Setup { auth: false, ..Setup::default() }).await;
    let body = Some(json!({"scopes": "tasks:list"}));
    assert_eq!(server.json("POST", TOKENS, &[], body).await.0, 201);
    assert_eq!(server.json("GET", TOKENS, &[], None).await.0, 200);
}

#[tokio::test]
async fn se_39_a_child_never_holds_more_than_its_line() {
    let server = Server::start().await;
    let (_, parent) = mint(
        &server,
        json!({"scopes": "tasks:read,tasks:list", "namespaces": ["shop"], "expires_in_seconds": 60}),
    )
    .await;
    let (child, prefix) = mint(
        &server,
        json!({"scopes": "tasks:*,steps:read", "namespaces": ["shop.a", "bank"], "parent": parent}),
    )
    .await;
    let who = with(&server, &child, "GET", "/v1/whoami", None).await.1;
    let grant = json!([{"permissions": ["tasks:read", "tasks:list"], "namespaces": ["shop.a"]}]);
    assert_eq!(who["grants"], grant);
    assert!(who["expires_at"].is_string(), "its end is its parent's: {who}");
    // A rotation of the parent is no end of the child.
    let (status, next) =
        server.as_root("POST", &format!("/v1/auth/tokens/{parent}/rotate"), Some(json!({}))).await;
    assert_eq!(status, 201, "{next}");
    assert_eq!(with(&server, &child, "GET", "/v1/tasks", None).await.0, 200);
    let next = next["prefix"].as_str().unwrap();
    let (status, _) = server.as_root("DELETE", &format!("{TOKENS}/{next}"), None).await;
    assert_eq!(status, 204);
    assert_eq!(with(&server, &child, "GET", "/v1/tasks", None).await.0, 200, "no cascade");
    // With a cascade those that descend from it go too.
    let (grandchild, _) = mint(&server, json!({"scopes": "tasks:list", "parent": prefix})).await;
    let (other, _) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let path = format!("{TOKENS}/{prefix}?cascade=true");
    assert_eq!(server.as_root("DELETE", &path, None).await.0, 204);
    for gone in [&child, &grandchild] {
        assert_eq!(with(&server, gone, "GET", "/v1/tasks", None).await.0, 401);
    }
    assert_eq!(with(&server, &other, "GET", "/v1/tasks", None).await.0, 200);
}

#[tokio::test]
async fn se_39_rotation_keeps_rights_and_end() {
    let server = Server::start().await;
    let body = json!({"scopes": "tasks:list", "namespaces": ["shop"], "expires_in_seconds": 600, "name": "n"});
    let (old, prefix) = mint(&server, body).await;
    let path = format!("/v1/auth/tokens/{prefix}/rotate");
    let old_end = listed(&server).await[0]["expires_at"].clone();
    let (status, next) = server.as_root("POST", &path, Some(json!({"overlap_seconds": 2}))).await;
    assert_eq!(status, 201, "{next}");
    assert_eq!((&next["expires_at"], &next["name"]), (&old_end, &json!("n")));
    let new = next["token"].as_str().unwrap();
    for token in [&*old, new] {
        assert_eq!(with(&server, token, "GET", "/v1/tasks", None).await.0, 200, "the overlap");
    }
    let subject = |who: Value| who["subject"].clone();
    let (first, second) = (
        subject(with(&server, &old, "GET", "/v1/whoami", None).await.1),
        subject(with(&server, new, "GET", "/v1/whoami", None).await.1),
    );
    assert_eq!(first, second, "a family is one principal");
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let (status, answer) = with(&server, &old, "GET", "/v1/tasks", None).await;
    assert_eq!((status, answer["reason"].as_str()), (401, Some("CREDENTIALS_EXPIRED")));
    assert_eq!(with(&server, new, "GET", "/v1/tasks", None).await.0, 200);
}

#[tokio::test]
async fn se_39_uses_are_counted_under_contention() {
    let server = Server::start().await;
    let (token, prefix) = mint(&server, json!({"scopes": "tasks:list", "max_uses": 7})).await;
    let calls = (0..40).map(|_| with(&server, &token, "GET", "/v1/tasks", None));
    let answers = futures::future::join_all(calls).await;
    assert_eq!(answers.iter().filter(|(status, _)| *status == 200).count(), 7);
    let (_, used) = answers.iter().find(|(status, _)| *status == 401).unwrap();
    assert_eq!(used["reason"], "CREDENTIALS_USED_UP");
    let (_, shown) = server.as_root("GET", &format!("{TOKENS}/{prefix}"), None).await;
    assert_eq!((&shown["uses"], &shown["max_uses"]), (&json!(7), &json!(7)));
}

#[tokio::test]
async fn a_token_works_from_its_networks_alone() {
    let server = Server::start().await;
    let token = |networks: &str| json!({"scopes": "tasks:list", "client_networks": networks});
    let (near, _) = mint(&server, token("127.0.0.0/8")).await;
    let (far, _) = mint(&server, token("192.0.2.0/24,2001:db8::/32")).await;
    assert_eq!(with(&server, &near, "GET", "/v1/tasks", None).await.0, 200);
    let (status, answer) = with(&server, &far, "GET", "/v1/tasks", None).await;
    assert_eq!((status, answer["reason"].as_str()), (401, Some("CREDENTIALS_INVALID")));
}

#[tokio::test]
async fn se_17_open_streams_and_parked_polls_end_with_their_token() {
    let server = Server::start().await;
    let root = Api::root(&server).await;
    root.register(&crate::harness::api::one("wait")).await;
    let task = root.create("wait").await.task_uuid;
    let (token, prefix) =
        mint(&server, json!({"scopes": "tasks:read,work:lease", "namespaces": ["shop"]})).await;
    let api = Api::of(&server, Auth::Bearer(token)).await;
    let poll = async {
        let error = api.try_lease(&["nothing"], 1, PATIENCE).await.unwrap_err();
        reason(Err::<(), Error>(error))
    };
    let watch = async {
        let request = pb::WatchTaskRequest { task_uuid: task.clone(), ..Default::default() };
        let mut stream = api.client.tasks().watch_task(request).await.unwrap().into_inner();
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the watch ended well"),
                Err(status) => return status.code(),
            }
        }
    };
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (status, _) = server.as_root("DELETE", &format!("{TOKENS}/{prefix}"), None).await;
        assert_eq!(status, 204);
    };
    let all = async { tokio::join!(poll, watch, revoke) };
    // One second is what is promised; machines are shared.
    let (poll, watch, ()) = tokio::time::timeout(Duration::from_secs(5), all).await.unwrap();
    assert_eq!((&*poll, watch), ("CREDENTIALS_REVOKED", tonic::Code::Unauthenticated));
}

#[tokio::test]
async fn se_38_no_call_in_flight_outlives_a_revocation() {
    // Refused calls are counted against their address.
    let rest = "[limits]\nfailed_auth_per_minute = 0\n".to_owned();
    let server = Server::with(Setup { rest, ..Setup::default() }).await;
    let (token, prefix) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let calls = async {
        let mut revoked = false;
        for _ in 0..6 {
            let calls = (0..50).map(|_| with(&server, &token, "GET", "/v1/tasks", None));
            for (status, _) in futures::future::join_all(calls).await {
                assert!(status == 200 || status == 401);
                revoked |= status == 401;
            }
        }
        revoked
    };
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.as_root("DELETE", &format!("{TOKENS}/{prefix}"), None).await.0
    };
    let (seen, status) = tokio::join!(calls, revoke);
    assert_eq!(status, 204);
    let after = with(&server, &token, "GET", "/v1/tasks", None).await.0;
    assert!(seen || after == 401);
    assert_eq!(after, 401);
}

/// What is on disk holds in memory too, when the caller hangs up meanwhile.
#[tokio::test]
async fn se_38_a_revocation_whose_caller_hangs_up_counts() {
    let rest = "[limits]\nfailed_auth_per_minute = 0\n".to_owned();
    let server = Server::with(Setup { rest, ..Setup::default() }).await;
    let root = server.root().await;
    let mut minted = Vec::new();
    for _ in 0..24 {
        minted.push(mint(&server, json!({"scopes": "tasks:list"})).await);
    }
    for ((_, prefix), tenths) in minted.iter().zip(0_u64..) {
        let request = pb::RevokeTokenRequest { prefix: prefix.clone(), cascade: false };
        let mut admin = root.auth_admin();
        // Dropped, the client resets the stream.
        let wait = Duration::from_micros(100 * tenths);
        let _ = tokio::time::timeout(wait, admin.revoke_token(request)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let database = rusqlite::Connection::open(server.path("data/bailiwick.db")).unwrap();
    let mut revoked = 0;
    for (token, prefix) in &minted {
        let on_disk: bool = database
            .query_row(
                "SELECT revoked_at IS NOT NULL FROM credential WHERE id = ?1",
                [prefix],
                |row| row.get(0),
            )
            .unwrap();
        let status = with(&server, token, "GET", "/v1/tasks", None).await.0;
        assert_eq!(status, if on_disk { 401 } else { 200 }, "{prefix}");
        revoked += usize::from(on_disk);
    }
    assert!(revoked > 0, "none of them came so far");
}

#[tokio::test]
async fn se_40_a_list_of_places_is_bounded() {
    let server = Server::start().await;
    let many: Vec<String> = (0..101).map(|number| format!("n{number}")).collect();
    let body = json!({"name": "wide", "scopes": ["tasks:read"], "namespaces": many});
    let (status, answer) = server.as_root("POST", "/v1/api-keys", Some(body)).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.to_string().contains("at most 100"), "{answer}");
    let list = many.join(",");
    let path = format!("/v1/audit/export?namespaces={list}");
    let (status, answer) = server.as_root("GET", &path, None).await;
    assert_eq!(status, 400, "{answer}");
}

#[tokio::test]
async fn se_45_a_namespace_begins_for_who_has_a_grant_that_covers_it() {
    let server = Server::start().await;
    let permissions = ["templates:register", "templates:read", "tasks:create"];
    let below = Token::new("below", &permissions).within(&["shop."]).sign();
    let tree = Token::new("tree", &permissions).within(&["shop"]).sign();
    for (who, namespace, wanted) in [
        (&below, "shop", 404),
        (&below, "shops", 404),
        (&tree, "shops", 404),
        (&tree, "bank.shop", 404),
        (&below, "shop.eu.north", 201),
        (&tree, "shop", 201),
    ] {
        let definition = format!(
            "name: order\nnamespace_name: {namespace}\nversion: 1.0.0\nsteps:\n  - name: only\n    \
             handler: {{callable: work}}\n"
        );
        let body = json!({"namespace": namespace, "definition": definition});
        let (status, answer) = with(&server, who, "POST", "/v1/templates", Some(body)).await;
        assert_eq!(status, wanted, "{namespace}: {answer}");
        let body = json!({"namespace": namespace, "name": "order"});
        let (status, answer) = with(&server, who, "POST", "/v1/tasks", Some(body)).await;
        assert_eq!(status, wanted, "{namespace}: {answer}");
    }
    let (_, found) = server.as_root("GET", "/v1/templates", None).await;
    let found: Vec<_> = found["templates"].as_array().unwrap().iter().collect();
    assert_eq!(found.len(), 2, "nothing began elsewhere: {found:?}");
}

#[tokio::test]
async fn se_47_the_jwts_of_a_subject_are_taken_back() {
    let server = Server::with(Setup::steady()).await;
    let issued = |subject: &str, ago: i64| {
        let at = crate::harness::credentials::now() - ago;
        Token::new(subject, &["tasks:list"]).claim("iat", json!(at))
    };
    let (one, two) = (issued("one", 10).sign(), issued("two", 10).sign());
    let undated = Token::new("one", &["tasks:list"]).without("iat").sign();
    for token in [&one, &two, &undated] {
        assert_eq!(with(&server, token, "GET", "/v1/tasks", None).await.0, 200);
    }
    let body = json!({"issuer": "bailiwick", "subject": "one"});
    let (status, answer) = server.as_root("POST", "/v1/auth/revoke-subject", Some(body)).await;
    assert_eq!(status, 200, "{answer}");
    let server = {
        for token in [&one, &undated] {
            let (status, answer) = with(&server, token, "GET", "/v1/tasks", None).await;
            assert_eq!((status, answer["reason"].as_str()), (401, Some("CREDENTIALS_REVOKED")));
        }
        server.again().await
    };
    assert_eq!(with(&server, &one, "GET", "/v1/tasks", None).await.0, 401, "after a restart");
    assert_eq!(with(&server, &two, "GET", "/v1/tasks", None).await.0, 200);
    // What is issued later counts again; it may not be dated ahead.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let later = issued("one", 0).sign();
    assert_eq!(with(&server, &later, "GET", "/v1/tasks", None).await.0, 200);
    let (status, _) = server
        .as_root("POST", "/v1/auth/revoke-subject", Some(json!({"issuer": "bailiwick"})))
        .await;
    assert_eq!(status, 200);
    for token in [&two, &later] {
        assert_eq!(with(&server, token, "GET", "/v1/tasks", None).await.0, 401);
    }
}

#[tokio::test]
async fn ze_05_to_08_17_to_22_the_life_of_an_api_key() {
    let server = Server::start().await;
    let create = async |body: Value| server.as_root("POST", "/v1/api-keys", Some(body)).await;
    let body = json!({"name": "ci", "scopes": ["tasks:list"], "namespaces": ["shop"]});
    let (status, made) = create(body).await;
    assert_eq!((status, &made["state"]), (201, &json!("active")), "{made}");
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert_eq!(secret::id(key), Some(id));
    let by_header = [("x-api-key", key)];
    assert_eq!(server.json("GET", "/v1/tasks", &by_header, None).await.0, 200);
    assert_eq!(with(&server, key, "GET", "/v1/tasks", None).await.0, 200, "as a bearer too");
    assert_eq!(server.json("GET", "/v1/workers", &by_header, None).await.0, 403);
    // ZE-07: outside of its namespaces there is nothing.
    let foreign = json!({"namespace": "bank", "name": "order"});
    let (writer, _) = mint(&server, json!({"scopes": "tasks:create", "namespaces": "shop"})).await;
    assert_eq!(with(&server, &writer, "POST", "/v1/tasks", Some(foreign)).await.0, 404);
    let (_, list) = server.as_root("GET", "/v1/api-keys", None).await;
    assert_eq!(list["api_keys"][0]["id"], id);
    assert!(!list.to_string().contains(key));
    let path = format!("/v1/api-keys/{id}");
    assert_eq!(server.as_root("DELETE", &path, None).await.0, 400, "it still counts");
    let (status, revoked) =
        server.as_root("POST", &format!("{path}/revoke"), Some(json!({}))).await;
    assert_eq!((status, &revoked["state"]), (200, &json!("revoked")));
    let (status, answer) = server.json("GET", "/v1/tasks", &by_header, None).await;
    assert_eq!((status, answer["reason"].as_str()), (401, Some("CREDENTIALS_REVOKED")));
    assert_eq!(server.as_root("DELETE", &path, None).await.0, 204);
    assert_eq!(server.as_root("GET", &path, None).await.0, 404);
    // ZE-18: nothing means everything only where that is said.
    assert_eq!(create(json!({"name": "n"})).await.0, 400);
    assert_eq!(
        create(json!({"name": "n", "scopes": "tasks:list", "full_access": true})).await.0,
        400
    );
    let (status, full) = create(json!({"name": "n", "full_access": true})).await;
    assert_eq!((status, &full["scopes"]), (201, &json!(["*"])));
    let key = full["key"].as_str().unwrap();
    assert_eq!(with(&server, key, "GET", "/v1/workers", None).await.0, 200);
    assert_eq!(with(&server, key, "GET", TOKENS, None).await.0, 403, "SE-05: never root");
    // ZE-08, ZE-21.
    let end = jiff::Timestamp::now() + Duration::from_millis(1_500);
    let body = json!({"name": "n", "scopes": "tasks:list", "expires_at": end.to_string()});
    let (status, short) = create(body).await;
    assert_eq!(status, 201, "{short}");
    let key = short["key"].as_str().unwrap();
    assert_eq!(with(&server, key, "GET", "/v1/tasks", None).await.0, 200);
    tokio::time::sleep(Duration::from_millis(1_600)).await;
    let (status, answer) = with(&server, key, "GET", "/v1/tasks", None).await;
    assert_eq!((status, answer["reason"].as_str()), (401, Some("CREDENTIALS_EXPIRED")));
    let path = format!("/v1/api-keys/{}", short["id"].as_str().unwrap());
    assert_eq!(server.as_root("GET", &path, None).await.1["state"], "expired");
}

#[tokio::test]
async fn se_40_nobody_makes_a_key_beyond_own_grants() {
    let server = Server::start().await;
    let admin =
        Token::new("admin", &["api_keys:admin", "tasks:read"]).within(&["shop", "bank."]).sign();
    let create =
        async |body: Value| with(&server, &admin, "POST", "/v1/api-keys", Some(body)).await;
    let key = |scopes: &str, namespaces: Value| json!({"name": "n", "scopes": scopes, "namespaces": namespaces});
    assert_eq!(create(key("tasks:read", json!(["shop.a", "bank.x"]))).await.0, 201);
    for (body, wanted) in [
        (key("tasks:create", json!(["shop"])), 403),
        (key("tasks:*", json!(["shop"])), 403),
        (key("tasks:read", json!(["shop", "other"])), 404),
        (key("tasks:read", json!(["bank"])), 404),
        (key("tasks:read", json!(["*"])), 404),
        (key("tasks:read", json!([])), 404),
        (json!({"name": "n", "full_access": true, "namespaces": ["shop"]}), 403),
        (key("*", json!(["shop"])), 400),
    ] {
        let (status, answer) = create(body.clone()).await;
        assert_eq!(status, wanted, "{body}: {answer}");
    }
    // Keys beyond the scope are hidden from it.
    let (_, made) =
        server.as_root("POST", "/v1/api-keys", Some(key("tasks:read", json!(["bank"])))).await;
    let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    assert_eq!(with(&server, &admin, "GET", &path, None).await.0, 404);
    let (_, list) = with(&server, &admin, "GET", "/v1/api-keys", None).await;
    assert_eq!(list["api_keys"].as_array().unwrap().len(), 1);
}

/// The rule for agents and nodes, by what is made here: keys and tokens.
#[tokio::test]
async fn se_33_what_is_made_has_what_its_maker_holds_and_is_never_root() {
    let server = Server::start().await;
    let wide = |name: &str| json!({"name": name, "full_access": true, "namespaces": ["*"]});
    let everywhere = Token::new("star", &["*"]).sign();
    let in_shop = Token::new("shop", &["*"]).within(&["shop"]).sign();
    let most = Token::new("most", &["api_keys:*", "tasks:*"]).sign();
    for (who, wanted) in [(&in_shop, 404), (&most, 403), (&everywhere, 201)] {
        let (status, answer) = with(&server, who, "POST", "/v1/api-keys", Some(wide("k"))).await;
        assert_eq!(status, wanted, "{answer}");
    }
    let body = json!({"name": "k", "full_access": true, "namespaces": ["shop"]});
    let (status, answer) = with(&server, &in_shop, "POST", "/v1/api-keys", Some(body)).await;
    assert_eq!(status, 403, "`*` in its namespaces alone: {answer}");
    let (status, made) = server.as_root("POST", "/v1/api-keys", Some(wide("all"))).await;
    assert_eq!(status, 201, "{made}");
    let key = made["key"].as_str().unwrap();
    assert_eq!(with(&server, key, "GET", "/v1/tasks", None).await.0, 200);
    let (status, answer) = with(&server, key, "GET", TOKENS, None).await;
    assert_eq!((status, answer["reason"].as_str()), (403, Some("ROOT_REQUIRED")), "{answer}");
    let star = json!({"scopes": "*", "name": "all"});
    assert_eq!(server.as_root("POST", TOKENS, Some(star)).await.0, 400, "tokens never have it");
}

#[tokio::test]
async fn dk_31_to_35_47_the_command_line_shows_a_secret_once() {
    let server = Server::start().await;
    let run = async |arguments: &[&str]| {
        let ran = server.cli().args(arguments).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (ran.status.code().unwrap(), text(&ran.stdout), text(&ran.stderr))
    };
    let (code, token, note) =
        run(&["auth", "mint-token", "--scope", "tasks:list", "--name", "ci"]).await;
    assert_eq!((code, token.lines().count()), (0, 1), "{note}");
    let token = token.trim();
    let prefix = secret::id(token).unwrap();
    assert!(note.contains("save this — it won't be shown again") && !note.contains(token));
    for listing in [&["auth", "list-tokens"][..], &["auth", "show"], &["auth", "show", prefix]] {
        let (code, text, _) = run(listing).await;
        assert_eq!(code, 0);
        assert!(text.contains("PREFIX") && text.contains("NAME / CREATED"), "{text}");
        assert!(text.contains(prefix) && !text.contains(token), "{text}");
    }
    let mut other = server.cli();
    other.args(["--token", token, "auth", "list-tokens"]);
    let ran = other.output().await.unwrap();
    assert_eq!(ran.status.code(), Some(1), "DK-32");
    assert!(String::from_utf8_lossy(&ran.stderr).contains("root token required"));
    let (code, rotated, _) = run(&["auth", "rotate-token", prefix]).await;
    assert_eq!(code, 0);
    let prefix = secret::id(rotated.trim()).unwrap();
    assert_eq!(run(&["auth", "revoke-token", prefix]).await.0, 0);
    assert_eq!(run(&["auth", "revoke-token", prefix]).await.0, 1);
    let (code, key, _) =
        run(&["auth", "api-key", "create", "--name", "n", "--scope", "tasks:list"]).await;
    let id = secret::id(key.trim()).unwrap();
    assert_eq!(code, 0);
    assert!(run(&["auth", "api-key", "list"]).await.1.contains(id));
    assert_eq!(run(&["auth", "api-key", "delete", id]).await.0, 1, "it still counts");
    assert!(run(&["auth", "api-key", "revoke", id]).await.1.contains("revoked"));
    assert_eq!(run(&["auth", "api-key", "delete", id]).await.0, 0);
    assert_eq!(run(&["auth", "api-key", "get", id]).await.0, 1);
    assert_eq!(run(&["auth", "revoke-subject", "--issuer", "bailiwick"]).await.0, 0);
    assert_eq!(run(&["auth", "whoami"]).await.0, 0);
}

#[tokio::test]
async fn the_secrets_of_tokens_come_as_bearers_and_pages_are_bound() {
    let server = Server::start().await;
    let (token, _) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let header = [("x-api-key", &*token)];
    assert_eq!(server.json("GET", "/v1/tasks", &header, None).await.0, 401);
    for _ in 0..4 {
        mint(&server, json!({"scopes": "tasks:list"})).await;
    }
    let (mut seen, mut page) = (Vec::new(), String::new());
    loop {
        let path = format!("{TOKENS}?page_size=2&page_token={page}");
        let (status, list) = server.as_root("GET", &path, None).await;
        assert_eq!(status, 200, "{list}");
        seen.extend(list["tokens"].as_array().unwrap().iter().map(|token| token["prefix"].clone()));
        page = list["next_page_token"].as_str().unwrap().to_owned();
        if page.is_empty() {
            break;
        }
    }
    let all: Vec<Value> =
        listed(&server).await.iter().map(|token| token["prefix"].clone()).collect();
    assert_eq!(seen, all);
    let (status, _) = server.as_root("GET", &format!("{TOKENS}?page_token=abc"), None).await;
    assert_eq!(status, 400);
    let api = Api::of(&server, Auth::ApiKey { key: ROOT_KEY.into(), header: None }).await;
    let request = pb::MintTokenRequest { scopes: vec!["*".into()], ..Default::default() };
    let refused = api.client.auth_admin().mint_token(request).await.map_err(Error::from);
    assert_eq!(refusal(refused).reason.as_deref(), Some("FIELD_INVALID"));
}
