//! What credentials were used for: per permission, across restarts and
//! rotations, and what is made of it: reduced successors, and tokens that are
//! disabled when nobody uses them.

use std::time::Duration;

use bailiwick::domain::secret;
use rusqlite::Connection;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{PATIENCE, Server, Setup};

const TOKENS: &str = "/v1/auth/tokens";
const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

/// A REST call with a bearer; answers the status and the body.
async fn with(
    server: &Server,
    token: &str,
    verb: &str,
    path: &str,
    body: Option<Value>,
) -> (u16, Value) {
    let bearer = format!("Bearer {token}");
    server.json(verb, path, &[("authorization", &bearer)], body).await
}

/// Mints a token as root; answers it with its prefix.
async fn mint(server: &Server, body: Value) -> (String, String) {
    let (status, minted) = server.as_root("POST", TOKENS, Some(body)).await;
    assert_eq!(status, 201, "{minted}");
    let text = |name: &str| minted[name].as_str().unwrap().to_owned();
    (text("token"), text("prefix"))
}

async fn shown(server: &Server, prefix: &str) -> Value {
    let (status, token) = server.as_root("GET", &format!("{TOKENS}/{prefix}"), None).await;
    assert_eq!(status, 200, "{token}");
    token
}

/// The permissions that were exercised, by what a token or key shows.
fn exercised(shown: &Value) -> Vec<&str> {
    let uses = shown["permission_uses"].as_array().unwrap().iter();
    let used = uses.filter(|used| used["last_used_at"].is_string());
    used.map(|used| used["permission"].as_str().unwrap()).collect()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

fn database(server: &Server) -> Connection {
    let database = Connection::open(server.folder.path().join("data/bailiwick.db")).unwrap();
    database.busy_timeout(PATIENCE).unwrap();
    database
}

/// Waits until so many uses of permissions are on disk.
async fn written(server: &Server, many: i64) {
    let database = database(server);
    let count = || {
        let count = "SELECT count(*) FROM credential_use";
        database.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let begun = tokio::time::Instant::now();
    while count() < many {
        assert!(begun.elapsed() < PATIENCE, "{} of {many}", count());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn tighten(server: &Server, prefix: &str, body: Value) -> (u16, Value) {
    server.as_root("POST", &format!("{TOKENS}/{prefix}/tighten"), Some(body)).await
}

#[tokio::test]
async fn what_a_token_exercised_is_seen_after_restarts_and_rotations() {
    let rest = "extra_permissions = [\"orders:read\"]\n".to_owned();
    let server = Server::with(Setup { rest, ..Setup::steady() }).await;
    let scopes = json!(["tasks:*", "templates:read", "orders:read"]);
    let (token, prefix) = mint(&server, json!({"scopes": scopes, "namespaces": ["shop"]})).await;
    let fresh = shown(&server, &prefix).await;
    assert!(exercised(&fresh).is_empty(), "{fresh}");
    assert!(fresh["idle_seconds"].as_u64().unwrap() <= PATIENCE.as_secs());
    let foreign = json!({"permission": "orders:read", "observable": false});
    assert!(fresh["permission_uses"].as_array().unwrap().contains(&foreign), "{fresh}");

    assert_eq!(with(&server, &token, "GET", "/v1/tasks", None).await.0, 200);
    // What is refused exercises nothing: there, and at all.
    let body = json!({"namespace": "bank", "name": "order"});
    assert_eq!(with(&server, &token, "POST", "/v1/tasks", Some(body)).await.0, 404);
    assert_eq!(with(&server, &token, "GET", "/v1/workers", None).await.0, 403);
    let used = shown(&server, &prefix).await;
    assert_eq!(exercised(&used), ["tasks:list"]);
    let unused =
        ["tasks:create", "tasks:read", "tasks:cancel", "tasks:context_read", "templates:read"];
    assert_eq!(names(&used["unused_permissions"]), unused, "never `orders:read`: it is not seen");

    written(&server, 1).await;
    let server = server.again().await;
    let again = shown(&server, &prefix).await;
    assert_eq!(exercised(&again), ["tasks:list"]);
    assert_eq!(again["permission_uses"], used["permission_uses"], "to the same moment");

    let (status, rotated) =
        server.as_root("POST", &format!("{TOKENS}/{prefix}/rotate"), Some(json!({}))).await;
    assert_eq!(status, 201, "{rotated}");
    let successor = shown(&server, rotated["prefix"].as_str().unwrap()).await;
    assert_eq!(exercised(&successor), ["tasks:list"]);
    assert_eq!(successor["last_used_at"], Value::Null, "the secret itself was not used");
    let listed = server.grpc(
        "AuthAdminService/ListTokens",
        json!({}),
        &[("x-api-key", crate::harness::ROOT_KEY)],
    );
    let listed = listed.await.unwrap();
    let text = listed.to_string();
    assert!(text.contains("permission") && text.contains("tasks:list"), "{text}");
}

#[tokio::test]
async fn api_keys_show_what_they_exercised_and_configured_keys_nothing() {
    let server = Server::start().await;
    let body = json!({"name": "n", "scopes": ["tasks:list", "tasks:read"]});
    let (_, made) = server.as_root("POST", "/v1/api-keys", Some(body)).await;
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert_eq!(server.json("GET", "/v1/tasks", &[("x-api-key", key)], None).await.0, 200);
    let (_, shown) = server.as_root("GET", &format!("/v1/api-keys/{id}"), None).await;
    assert_eq!(exercised(&shown), ["tasks:list"]);
    assert_eq!(names(&shown["unused_permissions"]), ["tasks:read"]);
    let (_, list) = server.as_root("GET", TOKENS, None).await;
    for configured in list["tokens"].as_array().unwrap() {
        assert_eq!(configured["source"], "config");
        assert_eq!(configured["permission_uses"], json!([]));
        assert_eq!(configured["idle_seconds"], Value::Null);
    }
    // Its uses go with it.
    written(&server, 1).await;
    let path = format!("/v1/api-keys/{id}");
    assert_eq!(server.as_root("POST", &format!("{path}/revoke"), Some(json!({}))).await.0, 200);
    assert_eq!(server.as_root("DELETE", &path, None).await.0, 204);
    let left = "SELECT count(*) FROM credential_use";
    assert_eq!(database(&server).query_row(left, [], |row| row.get(0)), Ok(0));
}

#[tokio::test]
async fn tighten_token_mints_a_successor_with_what_is_used() {
    let server = Server::start().await;
    let scopes = json!(["tasks:*", "templates:read"]);
    let (token, prefix) = mint(&server, json!({"scopes": scopes, "name": "ci"})).await;
    let child = json!({"scopes": ["tasks:read", "tasks:cancel"], "parent": prefix});
    let (child, _) = mint(&server, child).await;

    let (status, answer) = tighten(&server, &prefix, json!({})).await;
    assert_eq!((status, &answer["reason"]), (400, &json!("CREDENTIAL_STATE")), "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("revoke"), "{answer}");

    assert_eq!(with(&server, &token, "GET", "/v1/tasks", None).await.0, 200);
    // What a child uses its parent must keep; there is no such task.
    let task = "/v1/tasks/01890000-0000-7000-8000-000000000000";
    assert_eq!(with(&server, &child, "GET", task, None).await.0, 404);
    let kept = json!(["tasks:read", "tasks:list"]);
    let dropped = json!(["tasks:create", "tasks:cancel", "tasks:context_read", "templates:read"]);
    let (status, dry) = tighten(&server, &prefix, json!({"dry_run": true})).await;
    assert_eq!((status, &dry["scopes"], &dry["dropped"]), (200, &kept, &dropped), "{dry}");
    assert_eq!(dry["token"], Value::Null);
    assert_eq!(with(&server, &token, "GET", "/v1/templates", None).await.0, 200, "nothing changed");

    let (status, answer) = tighten(&server, &prefix, json!({"overlap_seconds": 600})).await;
    assert_eq!(status, 200, "{answer}");
    let kept = json!(["tasks:read", "tasks:list", "templates:read"]);
    assert_eq!((&answer["scopes"], &answer["token"]["scopes"]), (&kept, &kept));
    assert_eq!(answer["token"]["name"], "ci");
    let next = answer["token"]["token"].as_str().unwrap();
    let next_prefix = answer["token"]["prefix"].as_str().unwrap();
    for token in [next, &token] {
        assert_eq!(with(&server, token, "GET", "/v1/tasks", None).await.0, 200);
    }
    let body = json!({"namespace": "shop", "name": "order"});
    assert_eq!(with(&server, next, "POST", "/v1/tasks", Some(body)).await.0, 403);
    assert_eq!(with(&server, &child, "GET", task, None).await.0, 404, "the child goes on");
    let cancel = with(&server, &child, "DELETE", task, None).await;
    assert_eq!(cancel.0, 403, "within its parent: {}", cancel.1);
    let (old, new) = (shown(&server, &prefix).await, shown(&server, next_prefix).await);
    assert_eq!(old["family"], new["family"]);

    let (status, answer) = tighten(&server, next_prefix, json!({})).await;
    assert_eq!((status, &answer["reason"]), (400, &json!("CREDENTIAL_STATE")), "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("nothing to drop"), "{answer}");
}

#[tokio::test]
async fn tighten_token_keeps_what_it_cannot_see_and_looks_back_as_far_as_told() {
    let rest = "extra_permissions = [\"orders:read\", \"orders:write\"]\n".to_owned();
    let server = Server::with(Setup { rest, ..Setup::default() }).await;
    let scopes = json!(["tasks:list", "templates:*", "orders:*"]);
    let (token, prefix) = mint(&server, json!({"scopes": scopes})).await;
    assert_eq!(with(&server, &token, "GET", "/v1/tasks", None).await.0, 200);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    assert_eq!(with(&server, &token, "GET", "/v1/templates", None).await.0, 200);
    let body = json!({"since_seconds": 2, "dry_run": true});
    let (status, answer) = tighten(&server, &prefix, body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["scopes"], json!(["templates:read", "orders:*"]));
    let (_, answer) = tighten(&server, &prefix, json!({})).await;
    let prefix = answer["token"]["prefix"].as_str().unwrap();
    assert_eq!(answer["scopes"], json!(["tasks:list", "templates:read", "orders:*"]));
    assert_eq!(with(&server, &token, "GET", "/v1/tasks", None).await.0, 401, "no overlap");

    for (prefix, body, wanted) in [
        (prefix, json!({"since_seconds": 0}), 400),
        (prefix, json!({"overlap_seconds": 86_401}), 400),
        ("000000000000", json!({}), 404),
    ] {
        let (status, answer) = tighten(&server, prefix, body.clone()).await;
        assert_eq!(status, wanted, "{body}: {answer}");
    }
    let (_, list) = server.as_root("GET", TOKENS, None).await;
    let tokens = list["tokens"].as_array().unwrap();
    let configured = tokens.iter().find(|token| token["source"] == "config").unwrap();
    let (status, _) = tighten(&server, configured["prefix"].as_str().unwrap(), json!({})).await;
    assert_eq!(status, 400, "it is changed in the configuration");
    let refused = server
        .grpc(
            "AuthAdminService/TightenToken",
            json!({"prefix": prefix}),
            &[("x-api-key", crate::harness::credentials::READER_KEY)],
        )
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn the_command_line_lists_what_is_unused_and_tightens() {
    let server = Server::start().await;
    let run = async |arguments: &[&str]| {
        let ran = server.cli().args(arguments).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (ran.status.code().unwrap(), text(&ran.stdout), text(&ran.stderr))
    };
    let (token, prefix) = mint(&server, json!({"scopes": ["tasks:list", "nodes:read"]})).await;
    let (busy, busy_prefix) = mint(&server, json!({"scopes": ["tasks:list"]})).await;
    for token in [&token, &busy] {
        assert_eq!(with(&server, token, "GET", "/v1/tasks", None).await.0, 200);
    }
    let (code, all, _) = run(&["auth", "list-tokens"]).await;
    assert_eq!(code, 0);
    let heading: Vec<&str> = all.lines().next().unwrap().split_whitespace().collect();
    assert!(heading.starts_with(&["PREFIX", "SOURCE", "SCOPES", "NAME"]), "DK-34: {all}");
    assert!(heading.ends_with(&["LAST", "USED", "UNUSED"]), "{all}");
    let line = all.lines().find(|line| line.starts_with(&*prefix)).unwrap();
    assert!(line.trim_end().ends_with("nodes:read"), "{all}");
    let (_, unused, _) = run(&["auth", "list-tokens", "--unused"]).await;
    assert!(unused.contains(&prefix) && !unused.contains(&busy_prefix), "{unused}");
    let (_, idle, _) = run(&["auth", "list-tokens", "--idle", "30d"]).await;
    assert!(!idle.contains(&prefix), "{idle}");
    let (_, idle, _) = run(&["auth", "list-tokens", "--idle", "0s", "--format", "json"]).await;
    let idle: Value = serde_json::from_str(&idle).unwrap();
    assert_eq!(idle["tokens"].as_array().unwrap().len(), 2, "configured keys are not judged");
    assert_eq!(idle["tokens"][0]["permission_uses"][0]["permission"], "tasks:list");

    let (code, dry, _) = run(&["auth", "tighten-token", &prefix, "--dry-run"]).await;
    assert_eq!((code, &*dry), (0, "would keep tasks:list\nwould drop nodes:read\n"));
    let (code, next, note) =
        run(&["auth", "tighten-token", &prefix, "--since", "30d", "--overlap", "1h"]).await;
    assert_eq!((code, next.lines().count()), (0, 1), "{note}");
    assert!(note.contains("save this") && note.contains("dropped nodes:read"), "{note}");
    assert!(!note.contains(next.trim()));
    assert_eq!(with(&server, next.trim(), "GET", "/v1/tasks", None).await.0, 200);
    let prefix = secret::id(next.trim()).unwrap();
    let (code, _, note) = run(&["auth", "tighten-token", prefix]).await;
    assert_eq!(code, 1);
    assert!(note.contains("nothing to drop"), "{note}");
}

#[tokio::test]
async fn what_nobody_used_for_days_is_disabled_at_the_start() {
    let server = Server::with(Setup::steady()).await;
    let (never, never_id) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let (lately, lately_id) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let (ahead, ahead_id) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let body = json!({"name": "n", "scopes": ["tasks:list"]});
    let (_, made) = server.as_root("POST", "/v1/api-keys", Some(body)).await;
    let (key, key_id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    let ids = [&*never_id, &lately_id, &ahead_id, key_id];
    // The second start has the setting off, the third on.
    let mut server = server;
    server.process.kill();
    let now = jiff::Timestamp::now().as_microsecond();
    let uses =
        [None, Some(now - 29 * DAY_MICROS), Some(now + DAY_MICROS), Some(now - 31 * DAY_MICROS)];
    {
        let database = database(&server);
        for (id, used) in ids.iter().zip(uses) {
            let update = "UPDATE credential SET created_at = ?2, last_used_at = ?3 WHERE id = ?1";
            let changed = database.execute(update, (id, now - 40 * DAY_MICROS, used)).unwrap();
            assert_eq!(changed, 1);
        }
    }
    let server = server.again().await;
    let (_, list) = server.as_root("GET", TOKENS, None).await;
    let seen = list.to_string();
    assert!(ids[..3].iter().all(|id| seen.contains(id)), "{seen}");
    let idle = shown(&server, &never_id).await["idle_seconds"].as_u64().unwrap();
    assert!((40 * 86_400..40 * 86_400 + 3_600).contains(&idle), "{idle}");

    let rest = "disable_unused_after_days = 30\n".to_owned();
    let server = server.again_with(Setup { rest, ..Setup::steady() }).await;
    for (token, id, wanted) in [
        (&*never, &*never_id, 401),
        (&lately, &lately_id, 200),
        (&ahead, &ahead_id, 200),
        (key, key_id, 401),
    ] {
        let (status, answer) = with(&server, token, "GET", "/v1/tasks", None).await;
        assert_eq!(status, wanted, "{answer}");
        let reason = (wanted == 401).then_some("CREDENTIALS_REVOKED");
        assert_eq!(answer["reason"].as_str(), reason);
        let revoked = "SELECT revoked_at IS NOT NULL FROM credential WHERE id = ?1";
        let revoked: bool = database(&server).query_row(revoked, [id], |row| row.get(0)).unwrap();
        assert_eq!(revoked, wanted == 401, "in the store too");
        if wanted == 401 {
            server.logged("token disabled: unused for 30 days", &[("credential", id)]).await;
        }
    }
    let (_, shown) = server.as_root("GET", &format!("/v1/api-keys/{key_id}"), None).await;
    assert_eq!(shown["state"], "revoked");
}
