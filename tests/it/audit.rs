//! The audit by the front door: who did what, where it stands, how it is
//! sealed, and what becomes of it when the server goes down.

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::{
    harness::{PATIENCE, ROOT_KEY, Server, Setup, credentials::Token},
    line::{DENIED, DEPLOY, LATER, Lines},
};

/// The records that hold so far, as their chain and their JSON.
fn records(server: &Server) -> Vec<(String, Value)> {
    records_in(&server.path("data/bailiwick.db"))
}

fn records_in(path: &Path) -> Vec<(String, Value)> {
    let audit = database(path);
    let mut select = audit
        .prepare("SELECT chain, body FROM audit WHERE chain IS NOT NULL ORDER BY seq")
        .unwrap();
    let rows = select.query_map([], |row| {
        let body: String = row.get(1)?;
        Ok((row.get(0)?, serde_json::from_str(&body).unwrap()))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

fn database(path: &Path) -> Connection {
    let database = Connection::open(path).unwrap();
    database.busy_timeout(PATIENCE).unwrap();
    database
}

/// Waits for a record that fits.
async fn record(server: &Server, fits: impl Fn(&Value) -> bool) -> (String, Value) {
    record_in(&server.path("data/bailiwick.db"), fits).await
}

async fn record_in(path: &Path, fits: impl Fn(&Value) -> bool) -> (String, Value) {
    let found = async {
        loop {
            if let Some(found) = records_in(path).into_iter().find(|(_, record)| fits(record)) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found)
        .await
        .unwrap_or_else(|_| panic!("no such record in {:#?}", records_in(path)))
}

fn is(record: &Value, rpc: &str, outcome: &str) -> bool {
    record["rpc"].as_str().is_some_and(|full| full.ends_with(rpc)) && record["outcome"] == outcome
}

async fn with(server: &Server, token: &str, verb: &str, path: &str) -> u16 {
    let bearer = format!("Bearer {token}");
    server.json(verb, path, &[("authorization", &bearer)], None).await.0
}

#[tokio::test]
async fn se_44_a_record_says_who_what_where_and_by_which_credential() {
    let server = Server::start().await.with_template().await;
    let task = server.order(json!({"card": "4111-1111"})).await;
    let (chain, created) = record(&server, |one| is(one, "/CreateTask", "allowed")).await;
    assert_eq!(chain, "shop");
    assert_eq!(created["object"], task.as_str());
    assert_eq!(created["permission"], "tasks:create");
    assert_eq!(created["actor"]["source"], "config");
    assert_eq!(created["peer"], "127.0.0.1");
    let (chain, read) = {
        server.as_root("GET", &format!("/v1/tasks/{task}"), None).await;
        record(&server, |one| is(one, "/GetTask", "allowed")).await
    };
    assert_eq!((chain.as_str(), &read["object"]), ("*", &json!(task)));
    // The same credential has the same fingerprint, another one another, and
    // none of them can be tried out by who has its digest alone.
    let fingerprint = |record: &Value| record["actor"]["fingerprint"].as_str().unwrap().to_owned();
    assert_eq!(fingerprint(&read), fingerprint(&created));
    assert_eq!(fingerprint(&read).len(), 16);
    let token = Token::new("reader", &["tasks:read"]).within(&["shop"]).sign();
    assert_eq!(with(&server, &token, "GET", &format!("/v1/tasks/{task}")).await, 200);
    let reader = |one: &Value| one["actor"]["subject"] == "reader";
    let (_, other) = record(&server, |one| reader(one) && is(one, "/GetTask", "allowed")).await;
    assert_ne!(fingerprint(&other), fingerprint(&read));
    // What the token claims, once; the token and payloads never.
    let (chain, claims) = record(&server, |one| reader(one) && one["rpc"] == "credential").await;
    assert_eq!(chain, "*");
    assert_eq!(claims["detail"]["claims"]["permissions"], json!(["tasks:read"]));
    let all = format!("{:?}", records(&server));
    for secret in ["4111-1111", ROOT_KEY, token.rsplit_once('.').unwrap().1] {
        assert!(!all.contains(secret));
    }
}

#[tokio::test]
async fn se_44_denials_lie_in_the_callers_chain_and_create_none() {
    let server = Server::start().await.with_template().await;
    let task = server.order(json!({})).await;
    let token = Token::new("mallory", &["tasks:read"]).within(&["elsewhere"]).sign();
    let mine = |one: &Value| one["actor"]["subject"] == "mallory";
    // Hidden, not permitted, and beyond its namespace.
    assert_eq!(with(&server, &token, "GET", &format!("/v1/tasks/{task}")).await, 404);
    assert_eq!(with(&server, &token, "GET", "/v1/tasks").await, 403);
    let (chain, hidden) = record(&server, |one| mine(one) && is(one, "/GetTask", "denied")).await;
    assert_eq!((chain.as_str(), &hidden["reason"]), ("elsewhere", &json!("NOT_FOUND")));
    let (chain, denied) = record(&server, |one| mine(one) && is(one, "/ListTasks", "denied")).await;
    assert_eq!((chain.as_str(), &denied["reason"]), ("elsewhere", &json!("PERMISSION_MISSING")));
    assert_eq!(denied["permission"], "tasks:list");
    // A message that cannot be read never came to its handler.
    let (status, _) =
        server.as_root("POST", "/v1/tasks", Some(json!({"namespace": 7, "name": []}))).await;
    assert_eq!(status, 400);
    record(&server, |one| is(one, "/CreateTask", "failed")).await;
    assert!(records(&server).iter().all(|(chain, record)| chain != "shop" || !mine(record)));
}

#[tokio::test]
async fn se_44_a_rule_lies_in_the_chain_of_whose_it_is() {
    let server = Server::start().await.with_template().await;
    let owner = Token::new("owner", &["rules:write", "tasks:create"]).within(&["shop"]).sign();
    let header = format!("Bearer {owner}");
    let header = [("authorization", header.as_str())];
    let rule = json!({"pattern": "shop.r.", "runner": {"type": "task", "template": "shop/order"}});
    for (verb, rpc, body) in [("PUT", "/SetRule", Some(rule)), ("DELETE", "/RemoveRule", None)] {
        let (status, answer) = server.json(verb, "/rules/rule.shop.r", &header, body).await;
        assert!((200..300).contains(&status), "{rpc}: {answer}");
        let (chain, kept) = record(&server, |one| is(one, rpc, "allowed")).await;
        assert_eq!((&*chain, &kept["object"]), ("shop", &json!("rule.shop.r")), "{kept}");
    }
}

#[tokio::test]
async fn se_44_what_is_asked_of_namespaces_that_are_not_there_makes_no_chains() {
    let server = Server::start().await.with_template().await;
    let may = ["templates:validate", "tasks:create"];
    let token = Token::new("maker", &may).within(&["shop."]).sign();
    let bearer = format!("Bearer {token}");
    let bearer = [("authorization", bearer.as_str())];
    let definition = |namespace: &str| {
        format!(
            "name: t\nnamespace_name: {namespace}\nversion: 1.0.0\nsteps:\n  - name: s\n    \
             handler: {{callable: h}}\n"
        )
    };
    for number in 0..5 {
        let namespace = format!("shop.r{number}");
        let body = json!({"namespace": namespace, "definition": definition(&namespace)});
        let (status, said) =
            server.json("POST", "/v1/templates/validate", &bearer, Some(body)).await;
        assert_eq!((status, &said["valid"]), (200, &json!(true)), "{said}");
        let body = json!({"namespace": namespace, "name": "none", "context": {}});
        assert_ne!(server.json("POST", "/v1/tasks", &bearer, Some(body)).await.0, 201);
        let there = |one: &Value| one["object"] == namespace || one["namespace"] == namespace;
        let checked = |one: &Value| there(one) && is(one, "/ValidateTemplate", "allowed");
        assert_eq!(record(&server, checked).await.0, "shop");
        let of_task = |one: &Value| there(one) && one["rpc"].to_string().contains("/CreateTask");
        assert_eq!(record(&server, of_task).await.0, "shop");
    }
    // Where something is registered, its records lie.
    let body = json!({"namespace": "shop.r0", "definition": definition("shop.r0")});
    let (status, said) = server.as_root("POST", "/v1/templates", Some(body.clone())).await;
    assert_eq!(status, 201, "{said}");
    assert_eq!(server.json("POST", "/v1/templates/validate", &bearer, Some(body)).await.0, 200);
    let found = |(chain, one): &(String, Value)| {
        chain == "shop.r0" && is(one, "/ValidateTemplate", "allowed")
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !records(&server).iter().any(found) {
        assert!(tokio::time::Instant::now() < deadline, "{:#?}", records(&server));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let chains = records(&server).into_iter().map(|(chain, _)| chain);
    let chains: std::collections::BTreeSet<String> = chains.collect();
    assert!(
        !chains.iter().any(|chain| chain.starts_with("shop.") && chain != "shop.r0"),
        "{chains:?}"
    );
}

#[tokio::test]
async fn se_44_strangers_share_a_record_a_minute() {
    let server = Server::start().await;
    for number in 0..20 {
        let key = format!("guess-{number}");
        let (status, _) = server.json("GET", "/v1/tasks", &[("x-api-key", &key)], None).await;
        assert_eq!(status, 401);
    }
    assert_eq!(server.json("GET", "/v1/tasks", &[], None).await.0, 401);
    record(&server, |one| one["reason"] == "CREDENTIALS_MISSING").await;
    // The rest of the flood comes with its end.
    let server = server.again_gently().await;
    let guesses = |(_, one): &(String, Value)| {
        (one["reason"] == "CREDENTIALS_INVALID").then(|| one["detail"]["count"].as_u64().unwrap())
    };
    let counts: Vec<u64> = records(&server).iter().filter_map(guesses).collect();
    assert_eq!(counts, [1, 19]);
    assert!(records(&server).iter().all(|(chain, one)| one["actor"].is_object() || chain == "*"));
}

#[tokio::test]
async fn se_44_the_key_is_the_owners_alone_and_none_of_the_data() {
    let server = Server::start().await.with_template().await;
    let key = server.path("keys/audit.key");
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&key), 0o600);
    let before = std::fs::read(&key).unwrap();
    let server = server.again_gently().await;
    assert_eq!(std::fs::read(&key).unwrap(), before, "it is made once");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let folder = server.folder.clone();
    drop(server);
    let (code, said) = crate::harness::refused_in(folder.path(), &Setup::default()).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("audit.key") && said.contains("others can read it"), "{said}");
}

/// The checkpoints so far: number, first and last.
fn checkpoints(server: &Server) -> Vec<(i64, i64, i64)> {
    let audit = database(&server.path("data/bailiwick.db"));
    let mut select = audit
        .prepare(
            "SELECT body ->> '$.checkpoint.number', body ->> '$.checkpoint.first', \
             body ->> '$.checkpoint.last' FROM audit WHERE chain IS NULL ORDER BY seq",
        )
        .unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

#[tokio::test]
async fn se_44_what_was_answered_is_recorded_and_sealed_when_the_server_ends() {
    let server = Server::start().await.with_template().await;
    let order = server.order(json!({})).await;
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let path = format!("/v1/tasks/{order}");
            let server = &server;
            async move { server.as_root("GET", &path, None).await.0 }
        })
        .collect();
    let answered = futures::future::join_all(calls).await;
    assert!(answered.iter().all(|status| *status == 200));
    let server = server.again_gently().await;
    let read = records(&server).iter().filter(|(_, one)| is(one, "/GetTask", "allowed")).count();
    assert_eq!(read, 50);
    let sealed = checkpoints(&server);
    assert!(!sealed.is_empty());
    let mut next = 1;
    for (place, (number, first, last)) in (1..).zip(&sealed) {
        assert_eq!((*number, *first), (place, next), "{sealed:?}");
        next = last + 1;
    }
    let unsealed: i64 = database(&server.path("data/bailiwick.db"))
        .query_row(
            "SELECT count(*) FROM audit WHERE chain IS NOT NULL AND seq >= ?1",
            [next],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(unsealed, 0, "what came last is sealed as well");
    let (status, health) = server.as_root("GET", "/health/detailed", None).await;
    assert_eq!(status, 200, "{health}");
    assert!(health.to_string().contains("every record is kept and sealed"), "{health}");
}

#[tokio::test]
async fn se_44_a_store_that_was_changed_while_the_server_was_down_shows_at_once() {
    let steady = Setup::steady();
    let mut server = Server::with(steady.clone()).await.with_template().await;
    server.order(json!({})).await;
    server.process.terminate();
    server.process.exit().await;
    let changed = database(&server.path("data/bailiwick.db"))
        .execute(
            "UPDATE audit SET body = replace(body, '/CreateTask', '/CancelTask') \
             WHERE body LIKE '%/CreateTask%'",
            [],
        )
        .unwrap();
    assert!(changed > 0);
    let server = server.again().await;
    server
        .logged("the audit is not as it was sealed; `bailiwick audit verify` an export of it", &[])
        .await;
    // Work goes on; under fail-closed the server is not ready.
    server.order(json!({})).await;
    assert_eq!(server.json("GET", "/health/ready", &[], None).await.0, 200);
    let mut closed = steady;
    closed.rest = "[audit]\nfail_closed = true\n".to_owned();
    let server = server.again_with(closed).await;
    assert_eq!(server.json("GET", "/health/ready", &[], None).await.0, 503);
}

#[tokio::test]
async fn se_44_what_was_instructed_by_line_is_recorded_by_its_token() {
    let server = Lines::guarded().await;
    let mut wire = server.with(DEPLOY).await;
    assert_eq!(wire.ask(&format!("r1 SET deploy.app {LATER}")).await, "r1 OK\n");
    assert_eq!(wire.ask(&format!("r1 SET backup.app {LATER}")).await, DENIED);
    assert!(wire.rows("QUERY deploy.").await.len() == 1);
    let path = server.folder.path().join("data/bailiwick.db");
    let (_, set) = record_in(&path, |one| is(one, "SET", "allowed")).await;
    assert_eq!(
        (&set["actor"]["subject"], &set["object"]),
        (&json!("deploy"), &json!("deploy.app"))
    );
    let (chain, refused) = record_in(&path, |one| is(one, "SET", "denied")).await;
    assert_eq!(chain, "deploy", "the chain of who was refused");
    assert_eq!(refused["actor"]["subject"], "deploy");
    record_in(&path, |one| is(one, "QUERY", "allowed")).await;
    assert!(!std::fs::read_dir(server.folder.path().join("data")).unwrap().any(|file| {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        bytes.windows(DEPLOY.len()).any(|part| part == DEPLOY.as_bytes())
    }));
}

#[tokio::test]
async fn se_44_the_audit_can_be_off_and_reads_can_be_left_out() {
    let off = Setup { rest: "[audit]\nenabled = false\n".to_owned(), ..Setup::default() };
    let server = Server::with(off).await.with_template().await;
    server.order(json!({})).await;
    assert!(records(&server).is_empty() && !server.path("keys/audit.key").exists());
    let silent = Setup { rest: "[audit]\nrecord_reads = false\n".to_owned(), ..Setup::default() };
    let server = Server::with(silent).await.with_template().await;
    let task = server.order(json!({})).await;
    server.as_root("GET", &format!("/v1/tasks/{task}"), None).await;
    server.as_root("GET", "/v1/tasks/00000000-0000-4000-8000-000000000000", None).await;
    record(&server, |one| is(one, "/GetTask", "denied")).await;
    // What is said about credentials is recorded all the same.
    let asked = json!({"token": "nobody's"});
    server.as_root("POST", "/v1/auth/introspect", Some(asked)).await;
    let (chain, told) = record(&server, |one| is(one, "/Introspect", "allowed")).await;
    assert_eq!((&*chain, &told["detail"]["judged"][0]["active"]), ("*", &json!(false)), "{told}");
    assert!(!records(&server).iter().any(|(_, one)| is(one, "/GetTask", "allowed")));
}

#[tokio::test]
async fn se_44_under_fail_closed_a_read_waits_for_its_record() {
    let closed = Setup { rest: "[audit]\nfail_closed = true\n".to_owned(), ..Setup::default() };
    let server = Server::with(closed).await.with_template().await;
    let task = server.order(json!({})).await;
    let path = format!("/v1/tasks/{task}");
    let reads = |server: &Server| {
        records(server).iter().filter(|(_, one)| is(one, "/GetTask", "allowed")).count()
    };
    for count in 1..=3 {
        assert_eq!(server.as_root("GET", &path, None).await.0, 200);
        assert_eq!(reads(&server), count, "it is on disk before the answer");
    }
    // A store that takes nothing: nothing is read either.
    let blocker = database(&server.path("data/bailiwick.db"));
    blocker.execute_batch("DROP TABLE audit_head; ALTER TABLE audit RENAME TO gone").unwrap();
    let (status, answer) = server.as_root("GET", &path, None).await;
    assert_eq!(status, 503, "{answer}");
    // What is refused stays refused.
    let nobody = Token::new("nobody", &["steps:read"]).sign();
    assert_eq!(with(&server, &nobody, "GET", &path).await, 403);
}

#[tokio::test]
async fn se_44_what_is_older_than_retention_days_is_let_go() {
    let server = Server::with(Setup::steady()).await.with_template().await;
    let sealed = |server: &Server| -> i64 {
        let audit = database(&server.path("data/bailiwick.db"));
        audit.query_row("SELECT count(*) FROM audit_seal", [], |row| row.get(0)).unwrap()
    };
    let until = tokio::time::Instant::now() + PATIENCE;
    while sealed(&server) < 3 {
        assert!(tokio::time::Instant::now() < until, "it is sealed each second");
        server.order(json!({})).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let path = server.path("data/bailiwick.db");
    // The clock cannot be turned from here: the oldest two checkpoints are.
    let old = "2020-01-01T00:00:00.000000Z";
    let turned = database(&path)
        .execute(
            "UPDATE audit SET body = json_set(body, '$.checkpoint.at', ?1) \
             WHERE seq IN (SELECT seq FROM audit_seal ORDER BY last LIMIT 2)",
            [old],
        )
        .unwrap();
    assert_eq!(turned, 2);
    let first: i64 = database(&path)
        .query_row("SELECT last FROM audit_seal ORDER BY last LIMIT 1 OFFSET 1", [], |row| {
            row.get(0)
        })
        .unwrap();
    let rest = "[audit]\nretention_days = 1\n".to_owned();
    let server = server.again_with(Setup { rest, ..Setup::steady() }).await;
    let (chain, told) = record(&server, |one| one["detail"]["change"] == "audit let go").await;
    assert_eq!((&*chain, &told["detail"]["through"]), ("*", &json!(first)), "{told}");
    let left: i64 = database(&path)
        .query_row("SELECT count(*) FROM audit WHERE seq <= ?1", [first], |row| row.get(0))
        .unwrap();
    assert_eq!(left, 0);
    assert!(sealed(&server) >= 1, "what is younger stays");
}

#[tokio::test]
async fn se_44_signing_keys_have_the_record_of_their_change() {
    let mut setup = Setup::steady();
    setup.server = format!("public_url = \"http://127.0.0.1:{}\"", setup.ports[1]);
    setup.rest = "[audit]\nrecord_reads = false\n".to_owned();
    let server = Server::with(setup).await;
    let keys = "/v1/auth/signing-keys";
    let (_, listed) = server.as_root("GET", keys, None).await;
    let first = listed["keys"][0]["kid"].as_str().unwrap().to_owned();
    assert_eq!(server.as_root("POST", keys, Some(json!({}))).await.0, 201);
    let (status, _) =
        server.as_root("POST", &format!("{keys}/{first}/retire"), Some(json!({}))).await;
    assert_eq!(status, 200);
    for (rpc, what) in [("CreateSigningKey", "created"), ("RetireSigningKey", "retired")] {
        let (chain, found) = record(&server, |one| is(one, rpc, "allowed")).await;
        assert_eq!((&*chain, found["detail"]["change"].as_str()), ("*", Some(what)), "{found}");
    }
    let (_, own) = record(&server, |one| one["object"] == first.as_str()).await;
    assert_eq!(own["detail"]["change"], "created", "the server's own first key");
}
