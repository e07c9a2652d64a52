//! Tokens that are kept in a file, which operators edit: DKG's rows about it.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use bailiwick::{domain::secret, pb::v1 as pb};
use bailiwick_client::Auth;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::harness::{Api, PATIENCE, ROOT_KEY, Server, Setup, refused_in};

const TOKENS: &str = "/api/auth/tokens";
/// Tests ask with tokens that do not count yet, again and again.
const LIMITS: &str = "[limits]\nfailed_auth_per_minute = 0\n";
const LEGACY: &str = "legacy.token.of-long-ago_0123456789";

/// With the token file where it is by default, beside the configuration.
fn setup() -> Setup {
    let rest = format!("token_store = \"file\"\ntoken_file = \"auth.token\"\n{LIMITS}");
    Setup { rest, ..Setup::default() }
}

/// A folder with a token file, and the setup that names it.
fn prepared(text: &str) -> (TempDir, PathBuf, Setup) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let rest = format!("token_store = \"file\"\ntoken_file = {path:?}\n{LIMITS}");
    let setup = Setup { rest, ..Setup::steady() };
    (folder, path, setup)
}

async fn with(
    server: &Server,
    token: &str,
    verb: &str,
    path: &str,
    body: Option<Value>,
) -> (u16, Value) {
    let value = format!("Bearer {token}");
    server.json(verb, path, &[("authorization", &value)], body).await
}

/// What a call to the list of tasks answers.
async fn tasks(server: &Server, token: &str) -> u16 {
    with(server, token, "GET", "/v1/tasks", None).await.0
}

async fn mint(server: &Server, body: Value) -> (String, String) {
    let (status, minted) = server.as_root("POST", TOKENS, Some(body)).await;
    assert_eq!(status, 201, "{minted}");
    let text = |name: &str| minted[name].as_str().unwrap().to_owned();
    (text("token"), text("prefix"))
}

async fn revoke(server: &Server, prefix: &str) -> (u16, Value) {
    server.as_root("DELETE", &format!("{TOKENS}/{prefix}"), None).await
}

/// The tokens of the list that come from the file.
async fn listed(server: &Server) -> Vec<Value> {
    let (status, list) = server.as_root("GET", TOKENS, None).await;
    assert_eq!(status, 200);
    let of_file = |token: &&Value| token["source"] == "file";
    list["tokens"].as_array().unwrap().iter().filter(of_file).cloned().collect()
}

/// Waits until the list of tasks answers so, and says how long that took.
async fn until(server: &Server, token: &str, status: u16) -> Duration {
    let began = Instant::now();
    let reached = async {
        while tasks(server, token).await != status {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never {status}"));
    began.elapsed()
}

fn append(path: &Path, text: &str) {
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[tokio::test]
async fn dk_01_45_46_a_minted_token_is_a_line_that_works_at_once_and_after_a_restart() {
    let server = Server::with(Setup { rest: setup().rest, ..Setup::steady() }).await;
    let path = server.path("auth.token");
    assert!(!path.exists() && listed(&server).await.is_empty());
    let body = json!({"scopes": "tasks:list,tasks:read", "name": "the CI"});
    let (status, minted) = server.as_root("POST", TOKENS, Some(body)).await;
    assert_eq!(status, 201, "{minted}");
    let token = minted["token"].as_str().unwrap();
    assert_eq!(tasks(&server, token).await, 200, "DK-30");
    let text = fs::read_to_string(&path).unwrap();
    let (line, written) = text.trim_end().rsplit_once('\t').unwrap();
    assert_eq!(line, format!("{token}\ttasks:list,tasks:read\tthe CI"));
    // The same moment; REST writes its digits in threes.
    let moment = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
    assert_eq!(moment(written), moment(minted["createdAt"].as_str().unwrap()));
    assert_eq!(mode(&path), 0o600, "DK-37");
    let shown = listed(&server).await;
    let [shown] = shown.as_slice() else { panic!("{shown:?}") };
    assert_eq!(shown["prefix"].as_str(), secret::id(token));
    assert_eq!((&shown["name"], &shown["createdAt"]), (&json!("the CI"), &minted["createdAt"]));
    assert!(!shown.to_string().contains(token), "DK-26");
    let (_, me) = with(&server, token, "GET", "/v1/whoami", None).await;
    assert_eq!((&me["source"], &me["root"]), (&json!("file"), &json!(false)), "{me}");
    let server = server.again().await;
    assert_eq!(tasks(&server, token).await, 200);
    let again = listed(&server).await;
    for name in ["prefix", "scopes", "name", "createdAt", "family"] {
        assert_eq!(again[0][name], shown[name]);
    }
    // DK-46: a key of the configuration is none of the file's.
    let (_, list) = server.as_root("GET", TOKENS, None).await;
    let mut all = list["tokens"].as_array().unwrap().iter();
    let config = all.find(|t| t["source"] == "config" && t["name"] == "reader of the tests");
    let (status, answer) = revoke(&server, config.unwrap()["prefix"].as_str().unwrap()).await;
    assert_eq!((status, &answer["reason"]), (400, &json!("CREDENTIAL_STATE")));
    assert!(answer.to_string().contains("configuration"), "{answer}");
    assert!(!server.process.err.all().join("\n").contains(token), "DK-51");
}

#[tokio::test]
async fn dk_02_06_18_43_48_a_legacy_line_is_root_and_rotates_alone() {
    let (_folder, path, setup) = prepared(&format!("# of long ago\n{LEGACY}\n"));
    let server = Server::with(setup).await;
    for (verb, route, body) in [
        ("GET", "/v1/tasks", None),
        ("GET", "/v1/workers", None),
        ("GET", "/v1/templates", None),
        ("GET", "/v1/api-keys", None),
        ("GET", TOKENS, None),
        ("POST", "/v1/tasks", Some(json!({"namespace": "shop", "name": "nothing"}))),
        ("POST", TOKENS, Some(json!({"scopes": "tasks:list"}))),
    ] {
        let (status, answer) = with(&server, LEGACY, verb, route, body).await;
        assert!(status != 401 && status != 403, "{verb} {route}: {status} {answer}");
    }
    assert_eq!(server.json("GET", "/v1/tasks", &[("x-api-key", LEGACY)], None).await.0, 401);
    let minted = listed(&server).await;
    assert_eq!(minted.len(), 2);
    let root = minted.iter().find(|token| token["scopes"] == json!(["*"])).unwrap();
    let prefix = root["prefix"].as_str().unwrap();
    // SE-37: twelve hex digits of the digest; nothing says when it was made.
    let digest = <sha2::Sha256 as sha2::Digest>::digest(LEGACY);
    let digits = format!("{digest:x}");
    assert_eq!((prefix, &root["createdAt"]), (&digits[..12], &Value::Null));
    let (scoped, _) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let rotate = |seconds: u32| json!({"overlap_seconds": seconds});
    let path_of = |prefix: &str| format!("/v1/auth/tokens/{prefix}/rotate");
    let (status, answer) = server.as_root("POST", &path_of(prefix), Some(rotate(5))).await;
    assert_eq!(status, 400);
    assert!(answer.to_string().contains("auth.token_store"), "SE-34: {answer}");
    let (status, rotated) = with(&server, LEGACY, "POST", &path_of(prefix), Some(rotate(0))).await;
    assert!(matches!(status, 200 | 201), "{rotated}");
    let minted = if rotated["token"].is_object() { &rotated["token"] } else { &rotated };
    let new = minted["token"].as_str().unwrap();
    assert_eq!(minted["scopes"], json!(["*"]), "DK-23");
    assert_eq!(with(&server, new, "GET", TOKENS, None).await.0, 200, "still root");
    let (status, answer) = with(&server, LEGACY, "GET", "/v1/tasks", None).await;
    assert_eq!((status, &answer["reason"]), (401, &json!("CREDENTIALS_REVOKED")));
    assert_eq!(tasks(&server, &scoped).await, 200, "DK-48");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with(&format!("# of long ago\n{new}\t*\t\t")), "in its place");
    assert_eq!(text.lines().count(), 4);
}

#[tokio::test]
async fn dk_03_04_05_se_35_what_cannot_be_read_stays_and_is_never_shown() {
    let torn = "bwk_000000000001_torn-and-secret";
    let text = format!(
        "# first\n\n{LEGACY}\ttasks:list\tops\n   \nbad secret line\n{torn}\n{LEGACY}2\t\n\
         {LEGACY}3\ttasks:list,nothing:known\n{LEGACY}4\ttasks:list\tn\t2026-01-01T00:00:00Z\tshop\n\
         # last\n{LEGACY}5"
    );
    let (_folder, path, setup) = prepared(&text);
    let server = Server::with(setup).await;
    assert_eq!(tasks(&server, LEGACY).await, 200);
    for unread in ["2", "3", "4", "5"] {
        assert_eq!(tasks(&server, &format!("{LEGACY}{unread}")).await, 401, "{unread}");
    }
    assert_eq!(tasks(&server, torn).await, 401);
    let (token, prefix) = mint(&server, json!({"scopes": "tasks:read"})).await;
    let now = fs::read_to_string(&path).unwrap();
    let line = now.lines().find(|line| line.starts_with(&*token)).unwrap();
    assert_eq!(now, text.replace(&format!("{LEGACY}5"), &format!("{line}\n{LEGACY}5")));
    assert_eq!(revoke(&server, &prefix).await.0, 204);
    assert_eq!(fs::read_to_string(&path).unwrap(), text, "as it was");
    let lines: Vec<Value> = server
        .logs()
        .iter()
        .filter(|line| line["message"].as_str().is_some_and(|m| m.contains("counts for nothing")))
        .map(|line| line["line"].clone())
        .collect();
    // Said again only when the last line has moved.
    assert_eq!(lines[..6], [5, 6, 7, 8, 9, 11].map(|line| json!(line)));
    let log = server.process.err.all().join("\n");
    for secret in [LEGACY, torn, "bad secret line", &token] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn se_34_what_a_line_cannot_say_is_refused_and_names_the_setting() {
    let server = Server::with(setup()).await;
    for (field, value) in [
        ("namespaces", json!(["shop"])),
        ("expires_in_seconds", json!(60)),
        ("max_uses", json!(3)),
        ("client_networks", json!(["127.0.0.0/8"])),
        ("parent", json!("000000000000")),
    ] {
        let body = json!({"scopes": "tasks:read", field: value});
        let (status, answer) = server.as_root("POST", TOKENS, Some(body)).await;
        assert_eq!(status, 400, "{field}: {answer}");
        let said = answer.to_string();
        assert!(said.contains(field) && said.contains("auth.token_store"), "{said}");
    }
    // SE-35: nothing that a line would read in another way.
    for body in [
        json!({"scopes": "tasks:read", "name": "a\tb"}),
        json!({"scopes": "tasks:read", "name": "a\nlegacy"}),
        json!({"scopes": ["tasks:read\n"]}),
        json!({"scopes": ["tasks:read\t"]}),
        json!({"scopes": "*"}),
    ] {
        assert_eq!(server.as_root("POST", TOKENS, Some(body.clone())).await.0, 400, "{body}");
    }
    assert!(!server.path("auth.token").exists(), "nothing was written");
    let everywhere = json!({"scopes": "tasks:read", "namespaces": ["*"]});
    mint(&server, everywhere).await;
}

#[tokio::test]
async fn dk_27_to_29_se_36_a_revoked_line_is_gone_and_does_not_come_back() {
    let server = Server::with(setup()).await;
    let path = server.path("auth.token");
    let (kept, _) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let (token, prefix) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let before = fs::read_to_string(&path).unwrap();
    assert_eq!(revoke(&server, &prefix[..11]).await.0, 404, "SE-37: the whole id alone");
    assert_eq!(revoke(&server, &prefix).await.0, 204);
    let (status, answer) = with(&server, &token, "GET", "/v1/tasks", None).await;
    assert_eq!((status, &answer["reason"]), (401, &json!("CREDENTIALS_REVOKED")));
    assert_eq!(revoke(&server, &prefix).await.0, 404);
    assert!(!fs::read_to_string(&path).unwrap().contains(&token));
    // An editor saves what it had read before, and somebody else adds a line.
    fs::write(&path, format!("{before}{LEGACY}\ttasks:list\n")).unwrap();
    until(&server, LEGACY, 200).await;
    assert_eq!(tasks(&server, &token).await, 401, "revoked stays revoked");
    let line = before.lines().find(|line| line.starts_with(&*token)).unwrap();
    let left = format!("{before}{LEGACY}\ttasks:list\n").replace(&format!("{line}\n"), "");
    let cleaned = async {
        while fs::read_to_string(&path).unwrap() != left {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, cleaned).await.expect("its line goes again");
    assert_eq!(tasks(&server, &kept).await, 200);
    // The next change of the server's keeps what others wrote.
    mint(&server, json!({"scopes": "tasks:list"})).await;
    assert!(fs::read_to_string(&path).unwrap().starts_with(&left));
}

#[tokio::test]
async fn an_edit_in_place_or_by_rename_counts_within_two_seconds_and_ends_streams() {
    let (folder, path, setup) = prepared("# none yet\n");
    let server = Server::with(setup).await;
    let root = Api::root(&server).await;
    root.register(&crate::harness::api::one("wait")).await;
    let task = root.create("wait").await.task_uuid;
    // Two seconds are promised; machines are shared, so it is the best of
    // three that counts.
    let mut best = Duration::MAX;
    for round in 0..3 {
        append(&path, &format!("{LEGACY}{round}\ttasks:read,tasks:list\n"));
        best = best.min(until(&server, &format!("{LEGACY}{round}"), 200).await);
    }
    assert!(best < Duration::from_secs(2), "{best:?}");
    let token = format!("{LEGACY}0");
    let api = Api::of(&server, Auth::Bearer(token.clone())).await;
    let request = pb::WatchTaskRequest { task_uuid: task, ..Default::default() };
    let mut stream = api.client.tasks().watch_task(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let renamed = folder.path().join("new");
    fs::write(&renamed, format!("{LEGACY}1\ttasks:read\n{LEGACY}2\ttasks:list\n")).unwrap();
    fs::rename(&renamed, &path).unwrap();
    let ended = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the watch ended well"),
                Err(status) => return status.code(),
            }
        }
    };
    let code = timeout(Duration::from_secs(5), ended).await.unwrap();
    assert_eq!(code, tonic::Code::Unauthenticated);
    assert_eq!(tasks(&server, &token).await, 401);
    assert_eq!(tasks(&server, &format!("{LEGACY}1")).await, 403, "narrower now");
    assert_eq!(tasks(&server, &format!("{LEGACY}2")).await, 200, "untouched");
    fs::remove_file(&path).unwrap();
    until(&server, &format!("{LEGACY}2"), 401).await;
    // Who took a line out may put it back.
    fs::write(&path, format!("{token}\ttasks:list\n")).unwrap();
    until(&server, &token, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dk_36_37_no_moment_has_a_wider_mode() {
    let (folder, path, setup) = prepared("");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let setup = Setup { mounts: Some("umask 000".into()), ..setup };
    let server = Server::with(setup).await;
    mint(&server, json!({"scopes": "tasks:list"})).await;
    assert_eq!(mode(&path), 0o600, "narrowed by the first change");
    let (done, seen) = (AtomicBool::new(false), AtomicU32::new(0));
    let names = std::thread::scope(|scope| {
        let look = scope.spawn(|| {
            let mut names = std::collections::BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                for entry in fs::read_dir(folder.path()).unwrap() {
                    let entry = entry.unwrap();
                    // One that is gone again tells nothing.
                    let Ok(about) = fs::symlink_metadata(entry.path()) else { continue };
                    assert_eq!(about.mode() & 0o077, 0, "{:?}", entry.file_name());
                    names.insert(entry.file_name().into_string().unwrap());
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            }
            names
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                for _ in 0..20 {
                    mint(&server, json!({"scopes": "tasks:list"})).await;
                }
            });
        });
        done.store(true, Ordering::Relaxed);
        look.join().unwrap()
    });
    assert!(seen.load(Ordering::Relaxed) > 100 && names.contains("tokens.tmp"), "{names:?}");
    assert_eq!(listed(&server).await.len(), 21);
}

#[tokio::test]
async fn dk_38_39_a_full_disk_changes_neither_the_file_nor_who_may_call() {
    let disk = "mount -t tmpfs -o size=16m,mode=700 tmpfs \"$DATA\"";
    let rest = "token_store = \"file\"\ntoken_file = \"data/tokens\"\n";
    let setup = Setup { mounts: Some(disk.into()), rest: rest.into(), ..Setup::default() };
    let server = Server::with(setup).await;
    let data = server.path("data");
    let inside = data.strip_prefix("/").unwrap();
    let disk = PathBuf::from(format!("/proc/{}/root", server.process.id())).join(inside);
    // One that stays: a file that gets empty needs no room.
    mint(&server, json!({"scopes": "tasks:list"})).await;
    let (token, prefix) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let before = fs::read(disk.join("tokens")).unwrap();
    let mut ballast = fs::File::create(disk.join("ballast")).unwrap();
    for piece in [64 * 1024, 4096] {
        while ballast.write_all(&vec![1; piece]).is_ok() {}
    }
    let (status, answer) =
        server.as_root("POST", TOKENS, Some(json!({"scopes": "tasks:list"}))).await;
    assert_eq!((status, &answer["reason"]), (500, &json!("INTERNAL")), "{answer}");
    let (status, answer) = revoke(&server, &prefix).await;
    assert_eq!(status, 500, "{answer}");
    let rotate = format!("/v1/auth/tokens/{prefix}/rotate");
    assert_eq!(server.as_root("POST", &rotate, Some(json!({}))).await.0, 500);
    assert_eq!(tasks(&server, &token).await, 200);
    assert_eq!(listed(&server).await.len(), 2);
    assert_eq!(fs::read(disk.join("tokens")).unwrap(), before);
    assert!(!disk.join("tokens.tmp").exists());
    drop(ballast);
    fs::remove_file(disk.join("ballast")).unwrap();
    assert_eq!(revoke(&server, &prefix).await.0, 204);
}

/// Two servers with databases of their own over one token file.
async fn pair(setup: Setup) -> (Server, Server) {
    tokio::join!(
        Server::with(setup.clone()),
        Server::with(Setup { ports: Setup::steady().ports, ..setup })
    )
}

#[tokio::test]
async fn dk_50_two_servers_over_one_file_see_one_store() {
    let (_folder, _, setup) = prepared("");
    let (a, b) = pair(setup).await;
    let (token, prefix) = mint(&a, json!({"scopes": "tasks:list"})).await;
    until(&b, &token, 200).await;
    assert_eq!(revoke(&b, &prefix).await.0, 204);
    assert_eq!(tasks(&b, &token).await, 401);
    until(&a, &token, 401).await;
}

#[tokio::test]
async fn dk_40_parallel_mints_of_two_servers_lose_nothing() {
    let (_folder, path, setup) = prepared("# shared\n");
    let (a, b) = pair(setup).await;
    let mints =
        (0..10).map(|n| mint(if n % 2 == 0 { &a } else { &b }, json!({"scopes": "tasks:list"})));
    let minted = futures::future::join_all(mints).await;
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 11);
    for (token, _) in &minted {
        assert_eq!(text.matches(&**token).count(), 1);
        until(&a, token, 200).await;
        until(&b, token, 200).await;
    }
    for line in [a.logs(), b.logs()].concat() {
        let said = line["message"].as_str().unwrap_or_default();
        assert!(!said.contains("token file") || line["level"] != "WARN", "{line}");
    }
}

#[tokio::test]
async fn se_36_a_file_that_others_could_have_written_stops_the_start() {
    let (folder, path, setup) = prepared(&format!("{LEGACY}\n"));
    let place = folder.path().join("place");
    fs::create_dir(&place).unwrap();
    let refused = async || {
        let (code, said) = refused_in(&place, &setup).await;
        assert!(code.is_some_and(|code| code != 0), "{said}");
        assert!(!said.contains(LEGACY) && !said.contains("panicked"), "{said}");
        said
    };
    fs::set_permissions(&path, fs::Permissions::from_mode(0o622)).unwrap();
    assert!(refused().await.contains("chmod 600"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let real = folder.path().join("real");
    fs::rename(&path, &real).unwrap();
    symlink(&real, &path).unwrap();
    assert!(refused().await.contains("symbolic link"));
    fs::remove_file(&path).unwrap();
    fs::rename(&real, &path).unwrap();
    // Root alone can give a file away; without that there is nothing to see.
    if std::os::unix::fs::chown(&path, Some(12_345), None).is_ok() {
        assert!(refused().await.contains("chown"));
    }
}

#[tokio::test]
async fn se_36_a_refused_reload_makes_the_server_not_ready_until_it_is_cured() {
    let (_folder, path, setup) = prepared(&format!("{LEGACY}\ttasks:list\n"));
    let server = Server::with(setup).await;
    let ready = async |wanted: u16| {
        let reached = async {
            while server.json("GET", "/health/ready", &[], None).await.0 != wanted {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never {wanted}"));
    };
    ready(200).await;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    append(&path, &format!("{LEGACY}2\n"));
    ready(503).await;
    let began = Instant::now();
    assert_eq!(tasks(&server, LEGACY).await, 200, "for now");
    assert_eq!(tasks(&server, &format!("{LEGACY}2")).await, 401);
    let (_, detailed) = server.json("GET", "/health/detailed", &[], None).await;
    assert_eq!(detailed["checks"]["token_file"]["status"], "unhealthy", "{detailed}");
    let body = json!({"scopes": "tasks:list"});
    assert_eq!(server.as_root("POST", TOKENS, Some(body)).await.0, 500);
    // SE-36: not ready at once, refused after a minute.
    sleep(Duration::from_secs(55).saturating_sub(began.elapsed())).await;
    assert_eq!(tasks(&server, LEGACY).await, 200, "for a minute");
    sleep(Duration::from_secs(63).saturating_sub(began.elapsed())).await;
    assert_eq!(tasks(&server, LEGACY).await, 401);
    assert_eq!(server.as_root("GET", "/v1/tasks", None).await.0, 200, "keys are not of the file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    until(&server, LEGACY, 200).await;
    until(&server, &format!("{LEGACY}2"), 200).await;
    ready(200).await;
}

#[tokio::test]
async fn api_keys_stay_in_the_database_and_its_tokens_do_not_count() {
    let server = Server::with(Setup::steady()).await;
    let (token, prefix) = mint(&server, json!({"scopes": "tasks:list"})).await;
    let key = json!({"name": "n", "scopes": "tasks:list"});
    let (_, made) = server.as_root("POST", "/v1/api-keys", Some(key)).await;
    let key = made["key"].as_str().unwrap().to_owned();
    let ports = [server.grpc.port(), server.http.port()];
    let server = server.again_with(Setup { ports, ..setup() }).await;
    assert_eq!(tasks(&server, &token).await, 401);
    assert_eq!(revoke(&server, &prefix).await.0, 404);
    assert_eq!(tasks(&server, &key).await, 200);
    assert!(!server.path("auth.token").exists());
    assert_eq!(with(&server, ROOT_KEY, "GET", TOKENS, None).await.0, 200);
}

#[tokio::test]
async fn dk_47_no_command_shows_what_the_file_holds() {
    let (_folder, path, setup) = prepared(&format!("{LEGACY}\ttasks:list\told\n"));
    let server = Server::with(setup).await;
    let run = async |arguments: &[&str]| {
        let ran = server.cli().args(arguments).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (ran.status.code().unwrap(), text(&ran.stdout), text(&ran.stderr))
    };
    let (code, token, _) = run(&["auth", "mint-token", "--scope", "tasks:list"]).await;
    assert_eq!(code, 0);
    let prefix = secret::id(token.trim()).unwrap();
    for listing in [&["auth", "list-tokens"][..], &["auth", "show"], &["auth", "show", prefix]] {
        let (code, text, said) = run(listing).await;
        assert_eq!(code, 0, "{said}");
        assert!(text.contains(prefix) && text.contains("file"), "{text}");
        assert!(!text.contains(token.trim()) && !text.contains(LEGACY), "{text}");
    }
    let (code, rotated, _) = run(&["auth", "rotate-token", prefix]).await;
    assert_eq!(code, 0);
    let prefix = secret::id(rotated.trim()).unwrap();
    assert_eq!(run(&["auth", "revoke-token", prefix]).await.0, 0);
    assert_eq!(run(&["auth", "revoke-token", prefix]).await.0, 1);
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{LEGACY}\ttasks:list\told\n"));
}
