//! The audit as it is sent outside: to files, syslog and collectors, from
//! where it stood, and never with a secret.

mod network;

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bailiwick::audit::chain;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{PATIENCE, ROOT_KEY, Server, Setup, credentials::Token};

/// A server with this in `[audit]`.
fn setup(audit: &str) -> Setup {
    Setup { rest: format!("[audit]\n{audit}"), ..Setup::steady() }
}

fn file_sink(path: &Path) -> String {
    let path = path.display();
    format!("[[audit.sinks]]\nname = \"archive\"\nkind = \"file\"\npath = \"{path}\"\n")
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    (folder, path)
}

/// What lines hold, by their numbers; the same again is the same.
#[derive(Debug, Default)]
struct Sent(BTreeMap<i64, Value>);

impl Sent {
    fn of(path: &Path) -> Self {
        let mut sent = Self::default();
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            // The last one may be on its way.
            if let Ok(line) = serde_json::from_str(line) {
                sent.add(&line);
            }
        }
        sent
    }

    fn add(&mut self, line: &Value) {
        let seq = line["seq"].as_i64().unwrap();
        if let Some(before) = self.0.insert(seq, line.clone()) {
            assert_eq!(before, *line, "the same number is the same record");
        }
    }

    /// The records of creations that were allowed, by their tasks.
    fn created(&self) -> Vec<String> {
        let created = |line: &Value| {
            let record = &line["record"];
            let rpc = record["rpc"].as_str()?;
            let fits = rpc.ends_with("/CreateTask") && record["outcome"] == "allowed";
            fits.then(|| record["object"].as_str().unwrap().to_owned())
        };
        self.0.values().filter_map(created).collect()
    }

    /// Every number from the first on, each record behind the one before it
    /// in its chain.
    fn assert_whole(&self, first: i64) {
        let mut heads: BTreeMap<String, (i64, String)> = BTreeMap::new();
        for (line, seq) in self.0.values().zip(first..) {
            assert_eq!(line["seq"], seq, "a gap: {:?}", self.0.keys());
            let Some(name) = line["chain"].as_str() else {
                assert!(line["checkpoint"].is_object() && line["signature"].is_string(), "{line}");
                continue;
            };
            let begin = (0, chain::hex(&chain::BEGINNING));
            let (number, prev) = heads.get(name).cloned().unwrap_or(begin);
            assert_eq!(line["number"], number + 1, "{line}");
            assert_eq!(line["prev"], prev, "{line}");
            let hash = line["hash"].as_str().unwrap().to_owned();
            heads.insert(name.to_owned(), (number + 1, hash));
        }
    }
}

async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Waits until the file has the creation of this task.
async fn in_file(path: &Path, task: &str) -> Sent {
    eventually(&format!("{task} in {}", path.display()), || {
        let sent = Sent::of(path);
        sent.created().contains(&task.to_owned()).then_some(sent)
    })
    .await
}

#[tokio::test]
async fn se_44_a_file_gets_each_sealed_record_and_no_secret() {
    let (_folder, path) = folder();
    let server = Server::with(setup(&file_sink(&path))).await.with_template().await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let task = server.order(json!({"card": "4111-1111"})).await;
    let token = Token::new("mallory", &["tasks:read"]).within(&["elsewhere"]).sign();
    let bearer = format!("Bearer {token}");
    let denied = server.json("GET", "/v1/tasks", &[("authorization", &bearer)], None).await;
    assert_eq!(denied.0, 403);
    in_file(&path, &task).await;
    // What came last is there when the server has ended.
    let last = server.order(json!({})).await;
    let server = server.again_gently().await;
    let sent = Sent::of(&path);
    assert!(sent.created().contains(&last));
    sent.assert_whole(1);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("PERMISSION_MISSING") && text.ends_with("}\n"));
    for secret in ["4111-1111", ROOT_KEY, token.rsplit_once('.').unwrap().1] {
        assert!(!text.contains(secret), "{secret}");
    }
    // They are the lines of an export.
    let out = server.path("export.jsonl");
    server.run(&["audit", "export", "--out", out.to_str().unwrap()]).await.good();
    let export = std::fs::read_to_string(&out).unwrap();
    let mut compared = 0;
    for line in text.lines() {
        assert!(export.contains(line), "{line}");
        compared += 1;
    }
    assert!(compared > 4);
    // What was sent is not sent again.
    let next = server.order(json!({})).await;
    in_file(&path, &next).await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), Sent::of(&path).0.len());
    assert!(
        server.figure("bailiwick_audit_sink_records_total{sink=\"archive\"}").await > Some(0.0)
    );
}

#[tokio::test]
async fn se_44_a_file_that_is_moved_away_is_made_again() {
    let (folder, path) = folder();
    let server = Server::with(setup(&file_sink(&path))).await.with_template().await;
    let first = server.order(json!({})).await;
    in_file(&path, &first).await;
    let moved = folder.path().join("audit.jsonl.1");
    std::fs::rename(&path, &moved).unwrap();
    let second = server.order(json!({})).await;
    in_file(&path, &second).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut both = Sent::of(&moved);
    assert!(both.created().contains(&first) && !both.created().contains(&second));
    Sent::of(&path).0.values().for_each(|line| both.add(line));
    both.assert_whole(1);
}

#[tokio::test]
async fn se_44_a_killed_server_leaves_no_gap() {
    let (_folder, path) = folder();
    let mut server = Server::with(setup(&file_sink(&path))).await.with_template().await;
    let mut tasks = Vec::new();
    for round in 0..3 {
        for _ in 0..20 {
            tasks.push(server.order(json!({})).await);
        }
        if round == 1 {
            // As a crash in the middle of a line leaves it.
            in_file(&path, tasks.last().unwrap()).await;
            server.process.kill();
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, format!("{text}{{\"seq\":12,\"cha")).unwrap();
        }
        server = server.again().await;
    }
    tasks.push(server.order(json!({})).await);
    let sent = in_file(&path, tasks.last().unwrap()).await;
    sent.assert_whole(1);
    let created = sent.created();
    assert!(tasks.iter().all(|task| created.contains(task)), "each one arrived");
    let text = std::fs::read_to_string(&path).unwrap();
    let torn: Vec<&str> =
        text.lines().filter(|line| serde_json::from_str::<Value>(line).is_err()).collect();
    assert_eq!(torn, ["{\"seq\":12,\"cha"], "it ended with itself");
}

#[tokio::test]
async fn se_44_a_sink_that_cannot_be_used_stops_the_start() {
    let (folder, path) = folder();
    let inside = folder.path().join("absent/audit.jsonl");
    for (audit, words) in [
        (file_sink(folder.path()), "it is not a regular file"),
        (file_sink(&inside), "No such file"),
        (file_sink(Path::new("audit.jsonl")), "absolute"),
        (file_sink(&path).replace("file\"", "kafka\""), "audit.sinks #1: kind"),
    ] {
        let refused = crate::harness::refused(&setup(&audit)).await;
        assert!(refused.contains(words) && refused.contains("audit.sinks"), "{refused}");
    }
}

#[tokio::test]
async fn se_44_retention_waits_for_a_sink() {
    let (folder, path) = folder();
    // Nobody listens there.
    let away = format!("tcp://127.0.0.1:{}", crate::harness::steady_port());
    let siem =
        format!("[[audit.sinks]]\nname = \"siem\"\nkind = \"syslog\"\naddress = \"{away}\"\n");
    let audit = format!("retention_mb = 1\nretention_min_days = 0\n{}{siem}", file_sink(&path));
    let server = Server::with(setup(&audit)).await.with_template().await;
    let first = server.order(json!({})).await;
    in_file(&path, &first).await;
    // More than is to be kept, as if it had come long ago.
    fatten(&server);
    let oldest = |server: &Server| -> i64 {
        let sql = "SELECT min(seq) FROM audit";
        database(server).query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let server = server.again_gently().await;
    server.order(json!({})).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(oldest(&server), 1, "one sink has it and one has not");
    // Without the one that is away nothing waits.
    let setup = setup(&format!("retention_mb = 1\nretention_min_days = 0\n{}", file_sink(&path)));
    let server = server.again_with(setup).await;
    eventually("old records go", || (oldest(&server) > 1).then_some(())).await;
    drop(folder);
}

fn database(server: &Server) -> rusqlite::Connection {
    let database = rusqlite::Connection::open(server.path("data/bailiwick.db")).unwrap();
    database.busy_timeout(PATIENCE).unwrap();
    database
}

/// Lets every checkpoint count for a MiB.
fn fatten(server: &Server) {
    database(server).execute("UPDATE audit_seal SET bytes = 1048577", []).unwrap();
}
