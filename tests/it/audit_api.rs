//! The audit as its readers see it: search, stream, export, verify.

use std::{fs, path::Path};

use bailiwick::pb::v1 as pb;
use bailiwick_client::Auth;
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::harness::{
    Server, Setup, alone,
    credentials::{ROOT_KEY, Token},
    http,
    run::Ran,
};

/// A server with a task of root's, one denied call of alice's, and her token.
async fn lived_in() -> (Server, String) {
    let server = Server::start().await.with_template().await;
    server.order(json!({"n": 1})).await;
    let alice = Token::new("alice", &["audit:read", "tasks:read"]).within(&["shop"]).sign();
    let (status, _) = bearer(&server, &alice, "GET", "/v1/tasks?namespace=shop").await;
    assert_eq!(status, 403);
    found(&server, &["--actor", "alice", "--outcome", "denied"]).await;
    (server, alice)
}

async fn bearer(server: &Server, token: &str, verb: &str, path: &str) -> (u16, Value) {
    let bearer = format!("Bearer {token}");
    server.json(verb, path, &[("authorization", &bearer)], None).await
}

/// Searches until there is something: reads are kept a moment later.
pub(crate) async fn found(server: &Server, filter: &[&str]) -> Value {
    for _ in 0..200 {
        let answer = server.run_json(&[&["audit", "search"], filter].concat()).await;
        if !answer["records"].as_array().unwrap().is_empty() {
            return answer["records"].clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("nothing found: {filter:?}");
}

/// Verifies a file as somebody without a server.
async fn verify(server: &Server, file: &Path, more: &[&str]) -> Ran {
    let key = server.path("audit.pem");
    let args = ["audit", "verify", file.to_str().unwrap(), "--public-key", key.to_str().unwrap()];
    alone(&[&args[..], more].concat()).await
}

async fn public_key(server: &Server) {
    let file = server.path("audit.pem");
    server.run(&["audit", "public-key", "--out", file.to_str().unwrap()]).await.good();
}

/// Exports; answers the file and what the command says.
async fn export(server: &Server, name: &str, more: &[&str]) -> (std::path::PathBuf, Value) {
    let file = server.path(name);
    let args = ["audit", "export", "--out", file.to_str().unwrap()];
    let said = server.run_json(&[&args[..], more].concat()).await;
    (file, said)
}

#[tokio::test]
async fn se_44_an_export_verifies_without_the_server_and_shows_each_touch() {
    let (server, _) = lived_in().await;
    public_key(&server).await;
    let (file, said) = export(&server, "all.jsonl", &[]).await;
    let held = verify(&server, &file, &["--format", "json"]).await.json();
    assert_eq!(held["holds"], true);
    assert_eq!(held["checkpoint"], said["checkpoint"]);
    assert!(held["records"].as_u64().unwrap() >= 3, "{held}");
    let noted = said["checkpoint"].as_str().unwrap();
    verify(&server, &file, &["--expect", noted]).await.good();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("bailiwick.v1.TaskService/CreateTask"), "{text}");
    for secret in [ROOT_KEY, "Bearer"] {
        assert!(!text.contains(secret), "{text}");
    }

    // Each touch is found, and its line is said.
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let edited = text.replacen("allowed", "refused", 1);
    let touched = [
        ("edited", edited),
        ("removed", lines[1..].concat()),
        ("cut", lines[..lines.len() - 1].concat()),
        ("twice", [&lines[..1], &lines[..]].concat().concat()),
    ];
    for (how, text) in touched {
        let file = server.path(how);
        fs::write(&file, text).unwrap();
        let ran = verify(&server, &file, &[]).await;
        assert_eq!(ran.code, Some(1), "{how}");
        assert!(ran.said().contains("line "), "{how}: {}", ran.said());
    }
    // The server goes on and the noted checkpoint is still there.
    server.order(json!({"n": 2})).await;
    let (file, later) = export(&server, "later.jsonl", &[]).await;
    assert_ne!(later["checkpoint"], said["checkpoint"]);
    verify(&server, &file, &["--expect", noted]).await.good();
    // Another server's audit is not this one's.
    let other = Server::start().await;
    let (foreign, _) = export(&other, "all.jsonl", &[]).await;
    let ran = verify(&server, &foreign, &[]).await;
    assert!(ran.code == Some(1) && ran.said().contains("signed by the key"), "{}", ran.said());
    // It is the same one after a restart.
    let server = server.again().await;
    let (file, _) = export(&server, "again.jsonl", &["--since", "1d"]).await;
    verify(&server, &file, &["--expect", noted]).await.good();
    // What cannot be read is wrong usage, not a verdict.
    let ran = verify(&server, &server.path("none"), &[]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.said());
}

#[tokio::test]
async fn se_44_a_tenant_reads_its_own_chains_alone() {
    let (server, alice) = lived_in().await;
    let (status, page) = bearer(&server, &alice, "GET", "/v1/audit/records").await;
    assert_eq!(status, 200, "{page}");
    let chains = page["records"].as_array().unwrap();
    assert!(!chains.is_empty() && chains.iter().all(|record| record["chain"] == "shop"), "{page}");
    public_key(&server).await;
    let client = server.client(Auth::Bearer(alice.clone())).await;
    let mut lines = String::new();
    let request = pb::ExportAuditRequest::default();
    let mut answers = client.audit().export_audit(request).await.unwrap().into_inner();
    while let Some(answer) = answers.message().await.unwrap() {
        lines.push_str(&answer.lines);
    }
    assert!(!lines.contains("\"chain\":\"*\""), "{lines}");
    let file = server.path("shop.jsonl");
    fs::write(&file, &lines).unwrap();
    let held = verify(&server, &file, &["--format", "json"]).await.json();
    assert_eq!(held["namespaces"], json!(["shop"]));
    let namespaces = vec!["other".to_owned()];
    let request = pb::ExportAuditRequest { namespaces, ..Default::default() };
    let refused = client.audit().export_audit(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);
    // Who has no audit:read gets the key and nothing else.
    let bob = Token::new("bob", &["tasks:read"]).within(&["shop"]).sign();
    for (path, wanted) in [
        ("/v1/audit/records", 403),
        ("/v1/audit/stream", 403),
        ("/v1/audit/export", 403),
        ("/v1/audit/public-key", 200),
    ] {
        assert_eq!(bearer(&server, &bob, "GET", path).await.0, wanted, "{path}");
    }
    assert_eq!(server.json("GET", "/v1/audit/public-key", &[], None).await.0, 401);
}

#[tokio::test]
async fn search_audit_tells_who_did_what() {
    let (server, _) = lived_in().await;
    let records = found(&server, &["--rpc", "CreateTask", "--namespace", "shop"]).await;
    let record = &records[0];
    assert_eq!(record["rpc"], "bailiwick.v1.TaskService/CreateTask");
    assert_eq!((&record["outcome"], &record["chain"]), (&json!("allowed"), &json!("shop")));
    assert_eq!(record["record"]["rpc"], record["rpc"]);
    let request = record["request_id"].as_str().unwrap();
    let same = found(&server, &["--request-id", request]).await;
    assert_eq!(same[0]["seq"], record["seq"]);
    let denied = found(&server, &["--permission", "tasks:list", "--since", "1h"]).await;
    assert_eq!(
        (&denied[0]["actor"]["subject"], &denied[0]["outcome"]),
        (&json!("alice"), &json!("denied"))
    );
    let table = server.run(&["audit", "search", "--actor", "alice"]).await.good();
    assert!(table.contains("ListTasks") && table.contains("PERMISSION_MISSING"), "{table}");
    let none = server.run_json(&["audit", "search", "--until", "1d"]).await;
    assert_eq!(none["records"], json!([]));

    // Page by page over REST, with times and names of outcomes as there.
    let query = "/v1/audit/records?page_size=1&outcome=allowed&since=2020-01-01T00:00:00Z";
    let (status, first) = server.as_root("GET", query, None).await;
    assert_eq!(status, 200, "{first}");
    assert_eq!(first["records"].as_array().unwrap().len(), 1);
    let token = first["next_page_token"].as_str().unwrap();
    let (status, next) = server.as_root("GET", &format!("{query}&page_token={token}"), None).await;
    assert_eq!(status, 200, "{next}");
    assert!(next["records"][0]["seq"].as_i64() < first["records"][0]["seq"].as_i64());
    let (status, _) = server.as_root("GET", "/v1/audit/records?page_token=x", None).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn stream_audit_sends_new_records_until_the_end() {
    let (server, _) = lived_in().await;
    let request = pb::StreamAuditRequest {
        rpc: Some("CreateTask".to_owned()),
        ..pb::StreamAuditRequest::default()
    };
    let client = server.root().await;
    let mut records = client.audit().stream_audit(request).await.unwrap().into_inner();
    let task = server.order(json!({"n": 3})).await;
    let record = records.message().await.unwrap().unwrap().record.unwrap();
    assert_eq!((record.chain.as_str(), record.object.as_deref()), ("shop", Some(&*task)));
    // As NDJSON, from the first record on.
    let url = server.url("/v1/audit/stream?after_seq=0");
    let call = http().get(url).header("x-api-key", ROOT_KEY);
    let mut answer = call.send().await.unwrap();
    let first = answer.chunk().await.unwrap().unwrap();
    let first = first.split(|byte| *byte == b'\n').next().unwrap();
    let first: Value = serde_json::from_slice(first).unwrap();
    assert_eq!(first["record"]["seq"], 1, "{first}");
}

#[tokio::test]
async fn get_audit_public_key_says_that_the_audit_is_off() {
    let rest = "[audit]\nenabled = false\n".to_owned();
    let server = Server::with(Setup { rest, ..Setup::default() }).await;
    let (status, answer) = server.as_root("GET", "/v1/audit/public-key", None).await;
    assert_eq!(status, 404, "{answer}");
    assert!(answer.to_string().contains("audit.enabled"), "{answer}");
}

#[tokio::test]
async fn se_44_what_retention_leaves_still_verifies() {
    let steady = Setup::steady();
    let server = Server::with(steady.clone()).await.with_template().await;
    let task = server.order(json!({})).await;
    // More than a MiB of records, under several checkpoints.
    let root = server.root().await;
    for _ in 0..4 {
        let reads = (0..1_000).map(|_| {
            let request = pb::GetTaskRequest { task_uuid: task.clone() };
            async { root.tasks().get_task(request).await.map(drop).unwrap() }
        });
        futures::stream::iter(reads).buffer_unordered(32).collect::<()>().await;
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    }
    public_key(&server).await;
    let (file, all) = export(&server, "all.jsonl", &[]).await;
    let whole = verify(&server, &file, &["--format", "json"]).await.json();
    // By default a day's records stay, and that is said.
    let mut few = steady;
    few.rest = "[audit]\nretention_mb = 1\n".to_owned();
    let server = server.again_with(few.clone()).await;
    let warning =
        "the audit is larger than `audit.retention_mb`: `audit.retention_min_days` keeps it";
    server.logged(warning, &[]).await;
    assert!(server.figure("bailiwick_audit_excess_mib").await >= Some(1.0));
    few.rest = "[audit]\nretention_mb = 1\nretention_min_days = 0\n".to_owned();
    let server = server.again_with(few).await;
    server.logged("records of the audit were let go", &[]).await;
    let (file, _) = export(&server, "left.jsonl", &[]).await;
    let left = verify(&server, &file, &["--format", "json"]).await.json();
    assert_eq!(left["holds"], true);
    assert!(left["records"].as_u64() < whole["records"].as_u64(), "{left} of {whole}");
    // The chain goes on from what was noted before.
    let noted = all["checkpoint"].as_str().unwrap();
    verify(&server, &file, &["--expect", noted]).await.good();
    // And a record says what went.
    let records = found(&server, &["--rpc", "server"]).await;
    assert!(records.to_string().contains("audit let go"), "{records}");
}
