//! `bailiwick auth scan`: what it finds, what it asks and takes back, and
//! that no secret leaves it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Stdio,
};

use bailiwick::domain::secret::{self, Secret};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::harness::{
    Ran, Server, Setup,
    process::{bailiwick, quiet},
    run,
};

/// A secret that no server gave out.
fn made_up(id: u64) -> Secret {
    Secret::new(id, &[u8::try_from(id % 200).unwrap(); 32])
}

/// A scan in a folder, without a server.
async fn scan(folder: &Path, args: &[&str]) -> Ran {
    let mut command = bailiwick();
    command.current_dir(folder).args(["auth", "scan"]).args(args);
    run(command).await
}

/// A scan as root of a server.
async fn scan_with(server: &Server, folder: &Path, args: &[&str]) -> Ran {
    let mut command = server.cli();
    command.current_dir(folder).args(["auth", "scan", "--format", "json"]).args(args);
    run(command).await
}

/// The findings of a scan that found something.
#[track_caller]
fn findings(ran: &Ran) -> Vec<Value> {
    assert_eq!(ran.code, Some(1), "{ran}");
    let out: Value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error} {ran}"));
    out["findings"].as_array().unwrap().clone()
}

fn fields<'f>(findings: &'f [Value], name: &str) -> Vec<&'f str> {
    findings.iter().map(|finding| finding[name].as_str().unwrap_or("-")).collect()
}

async fn git(folder: &Path, args: &[&str]) -> String {
    let mut command = quiet("git");
    let who = ["-c", "user.name=t", "-c", "user.email=t@t.example", "-c", "commit.gpgsign=false"];
    command.current_dir(folder).args(who).args(args).env("GIT_CONFIG_NOSYSTEM", "1");
    run(command).await.good()
}

async fn commit(folder: &Path, message: &str) -> String {
    git(folder, &["add", "-A"]).await;
    git(folder, &["commit", "-q", "--allow-empty", "-m", message]).await;
    git(folder, &["rev-parse", "HEAD"]).await.trim().to_owned()
}

#[tokio::test]
async fn dk_47_secrets_in_files_are_named_by_place_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (one, two, outside) = (made_up(1), made_up(2), made_up(3));
    fs::create_dir_all(at("deep/er/.git")).unwrap();
    fs::write(at("deep/er/.git/config"), outside.expose()).unwrap();
    fs::write(at(".env"), format!("# keys\nKEY={}\n", one.expose())).unwrap();
    fs::write(at("deep/program"), [&b"\x7fELF\0\xff"[..], two.expose().as_bytes()].concat())
        .unwrap();
    fs::write(at("deep/er/again"), format!("{} {}", one.expose(), one.expose())).unwrap();
    fs::write(at(format!("named-{}", two.expose()).as_str()), "").unwrap();
    let wrong = one.expose().replacen("000000000001", "000000000009", 1);
    fs::write(at("wrong"), &wrong).unwrap();
    // Links lead out of what is searched, and round in it.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("secret"), outside.expose()).unwrap();
    symlink(elsewhere.path(), at("folder-link")).unwrap();
    symlink(elsewhere.path().join("secret"), at("file-link")).unwrap();
    symlink("..", at("deep/loop")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();

    let table = scan(folder.path(), &["--verbose"]).await;
    assert_eq!(table.code, Some(1), "{table}");
    let rows: Vec<Vec<&str>> =
        table.out.lines().map(|line| line.split_whitespace().collect()).collect();
    let (first, second) = ("000000000001", "000000000002");
    assert_eq!(
        rows,
        [
            ["PLACE", "CREDENTIAL", "STATE"],
            [".env:2:5", first, "unchecked"],
            ["deep/er/again:1:1", first, "unchecked"],
            ["deep/er/again:1:68", first, "unchecked"],
            ["deep/program:1:7", second, "unchecked"],
            ["named-bwk_000000000002_…", second, "unchecked"],
        ]
    );
    assert!(table.err.contains("2 secrets found in 5 places"), "{table}");
    assert!(table.err.contains("1 string of the form without a fitting checksum"), "{table}");
    let listed = scan(folder.path(), &["--format", "json"]).await;
    let found = findings(&listed);
    assert_eq!(
        found[0],
        json!({"place": ".env:2:5", "path": ".env", "line": 2, "column": 5,
            "credential": first, "checksum": "valid", "state": "unchecked"})
    );
    let missing = scan(folder.path(), &[&format!("no-{}", one.expose())]).await;
    assert_eq!(missing.code, Some(2), "{missing}");
    assert!(missing.err.contains("no-bwk_000000000001_…: "), "{missing}");
    for ran in [table, listed, missing] {
        for secret in [one.expose(), two.expose(), outside.expose(), &wrong] {
            assert!(!ran.said().contains(&secret[17..60]), "{ran}");
        }
    }
}

#[tokio::test]
async fn a_clean_scan_ends_well_and_an_unread_file_does_not() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("clean"), "bwk_nothing").unwrap();
    let clean = scan(folder.path(), &[]).await;
    assert_eq!((clean.code, &*clean.out), (Some(0), ""), "{clean}");
    let clean = scan(folder.path(), &["clean", "--format", "json"]).await.json();
    assert_eq!(clean, json!({"findings": []}));

    fs::write(folder.path().join("found"), made_up(1).expose()).unwrap();
    let partly = scan(folder.path(), &["missing", ".", "--format", "json"]).await;
    assert_eq!(partly.code, Some(2), "{partly}");
    assert!(partly.err.contains("missing: No such file"), "{partly}");
    assert!(partly.out.contains("found:1:1"), "the rest is searched: {partly}");
    let closed = folder.path().join("closed");
    fs::write(&closed, "").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads everything.
    if fs::File::open(&closed).is_err() {
        let ran = scan(folder.path(), &["."]).await;
        assert_eq!(ran.code, Some(2), "{ran}");
        assert!(ran.err.contains("closed: Permission denied"), "{ran}");
    }
    for wrong in [&["--revoke", "--url", "http://127.0.0.1:1"][..], &["--yes"], &["--cascade"]] {
        let ran = scan(folder.path(), wrong).await;
        assert_eq!(ran.code, Some(2), "{ran}");
    }
    let away = scan(folder.path(), &["--check", "--url", "http://127.0.0.1:1"]).await;
    assert_eq!(away.code, Some(3), "{away}");
}

#[tokio::test]
async fn standard_input_is_searched_in_bounded_memory() {
    let secret = made_up(5);
    let mut command = bailiwick();
    command.args(["auth", "scan", "-"]).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What the program needs anyway, and far less than it is given to read.
    let mut child = command.spawn().unwrap();
    let pid = child.id().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let noise = vec![b'b'; 1 << 20];
    for _ in 0..96 {
        stdin.write_all(&noise).await.unwrap();
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 80 * 1024, "{peak} kB");
    stdin.write_all(format!("\n{}", secret.expose()).as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(out.contains("-:2:1   000000000005   unchecked"), "{out}");
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn dk_47_a_history_gives_up_what_was_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    git(at, &["init", "-q", "-b", "main"]).await;
    let [kept, gone, said, side, dangling, merged, tagged] = [1, 2, 3, 4, 5, 6, 7].map(made_up);
    fs::create_dir(at.join("a b")).unwrap();
    fs::write(at.join("a b/gone.env"), format!("x\n{}", gone.expose())).unwrap();
    fs::write(at.join("kept"), kept.expose()).unwrap();
    let first = commit(at, "first").await;
    // Another version holds the same secret; the first counts.
    fs::write(at.join("a b/gone.env"), format!("x\ny\n{}", gone.expose())).unwrap();
    commit(at, "second").await;
    fs::remove_dir_all(at.join("a b")).unwrap();
    let third = commit(at, &format!("remove {}", said.expose())).await;
    git(at, &["checkout", "-q", "-b", "side", &first]).await;
    fs::write(at.join("side"), side.expose()).unwrap();
    let fourth = commit(at, "side").await;
    // Only in the merge itself.
    git(at, &["merge", "-q", "--no-commit", "--no-ff", "main"]).await;
    fs::write(at.join("kept"), format!("{} {}", kept.expose(), merged.expose())).unwrap();
    let merge = commit(at, "merge").await;
    git(at, &["tag", "-a", "v1", "-m", tagged.expose()]).await;
    let tag = git(at, &["rev-parse", "v1"]).await.trim().to_owned();
    fs::write(at.join("loose"), dangling.expose()).unwrap();
    let blob = git(at, &["hash-object", "-w", "loose"]).await.trim().to_owned();
    fs::remove_file(at.join("loose")).unwrap();

    let without = scan(at, &["--format", "json"]).await;
    assert_eq!(fields(&findings(&without), "place"), ["kept:1:1", "kept:1:68", "side:1:1"]);
    let with = scan(at, &["--history", "--format", "json"]).await;
    let found = findings(&with);
    let mut places = fields(&found, "place");
    places.sort_unstable();
    let mut wanted = vec![
        format!("{first}:a b/gone.env:2"),
        format!("{first}:kept:1"),
        format!("{third}:(message)"),
        format!("{fourth}:side:1"),
        format!("{merge}:kept:1"),
        format!("{tag}:(message)"),
        format!("blob {blob}:1:1"),
        "kept:1:1".to_owned(),
        "kept:1:68".to_owned(),
        "side:1:1".to_owned(),
    ];
    wanted.sort_unstable();
    assert_eq!(places, wanted);
    for secret in [kept, gone, said, side, dangling, merged, tagged] {
        assert!(!with.said().contains(&secret.expose()[17..60]), "{with}");
    }
    // From below, and from beside: once.
    fs::create_dir(at.join("below")).unwrap();
    let both = scan(&at.join("below"), &["--history", ".", ".."]).await;
    assert_eq!(both.out.matches("(message)").count(), 2, "{both}");
}

#[tokio::test]
async fn a_repository_cannot_make_the_scan_run_its_programs() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    git(at, &["init", "-q", "-b", "main"]).await;
    fs::write(at.join(".gitattributes"), "* diff=evil filter=evil\n").unwrap();
    fs::write(at.join("file"), made_up(1).expose()).unwrap();
    commit(at, "one").await;
    let trap = format!("touch {}", at.join("sprung").display());
    for key in [
        "core.fsmonitor",
        "diff.evil.textconv",
        "diff.evil.command",
        "diff.external",
        "filter.evil.smudge",
        "filter.evil.clean",
        "core.pager",
        "core.sshCommand",
        "alias.rev-list",
    ] {
        git(at, &["config", key, &trap]).await;
    }
    let found = findings(&scan(at, &["--history", "--format", "json"]).await);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(!at.join("sprung").exists());
}

#[tokio::test]
async fn a_history_that_cannot_be_had_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let none = scan(folder.path(), &["--history"]).await;
    assert_eq!(none.code, Some(2), "{none}");
    assert!(none.err.contains("not a git repository"), "{none}");
    let mut command = bailiwick();
    command.current_dir(folder.path()).env("PATH", folder.path());
    command.args(["auth", "scan", "--history"]);
    let none = run(command).await;
    assert_eq!(none.code, Some(2), "{none}");
    assert!(none.err.contains("needs git, which is not installed"), "{none}");
}

/// Makes a token or a key; answers its secret and its id.
async fn make(server: &Server, path: &str, body: Value) -> (String, String) {
    let (status, made) = server.as_root("POST", path, Some(body)).await;
    assert_eq!(status, 201, "{made}");
    let secret = made["token"].as_str().or_else(|| made["key"].as_str()).unwrap();
    (secret.to_owned(), secret::id(secret).unwrap().to_owned())
}

const TOKENS: &str = "/v1/auth/tokens";

#[tokio::test]
async fn dk_47_a_check_tells_what_still_lives_and_spends_no_use() {
    let mut server = Server::start().await;
    let (live, _) = make(&server, TOKENS, json!({"scopes": "tasks:list", "max_uses": 1})).await;
    let (used, _) = make(&server, TOKENS, json!({"scopes": "tasks:list", "max_uses": 1})).await;
    let (gone, prefix) = make(&server, TOKENS, json!({"scopes": "tasks:list"})).await;
    let (over, _) =
        make(&server, TOKENS, json!({"scopes": "tasks:list", "expires_in_seconds": 1})).await;
    let (far, _) =
        make(&server, TOKENS, json!({"scopes": "tasks:list", "client_networks": ["192.0.2.0/24"]}))
            .await;
    let (key, _) = make(&server, "/v1/api-keys", json!({"name": "k", "full_access": true})).await;
    let bearer = |token: &str| format!("Bearer {token}");
    let call = async |token: &str| {
        server.json("GET", "/v1/tasks", &[("authorization", &bearer(token))], None).await.0
    };
    assert_eq!((call(&used).await, call(&used).await), (200, 401));
    server.run(&["auth", "revoke-token", &prefix]).await.good();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;

    let folder = tempfile::tempdir().unwrap();
    let unknown = made_up(9);
    let secrets = [&*live, &used, &gone, &over, &far, &key, unknown.expose()];
    fs::write(folder.path().join("f"), format!("{}\n{live}", secrets.join("\n"))).unwrap();
    let ran = scan_with(&server, folder.path(), &["--check"]).await;
    let states = ["live", "used_up", "revoked", "expired", "unknown", "live", "unknown", "live"];
    assert_eq!(fields(&findings(&ran), "state"), states, "{ran}");
    let again = scan_with(&server, folder.path(), &["--check"]).await;
    assert_eq!(again.out, ran.out);
    // The one use is still there.
    assert_eq!((call(&live).await, call(&live).await), (200, 401));
    for secret in secrets {
        assert!(!ran.said().contains(&secret[17..60]), "{ran}");
        assert!(!server.process.err.all().join("\n").contains(&secret[17..60]));
    }
    server.assert_sound();
}

#[tokio::test]
async fn a_server_that_asks_for_no_credentials_proves_nothing() {
    let server = Server::with(Setup { auth: false, ..Setup::default() }).await;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("f"), made_up(1).expose()).unwrap();
    let ran = scan_with(&server, folder.path(), &["--revoke", "--yes"]).await;
    assert_eq!(fields(&findings(&ran), "state"), ["unchecked"]);
}

#[tokio::test]
async fn se_43_a_check_of_many_dead_secrets_waits_as_it_is_told() {
    let rest = "[limits]\nfailed_auth_per_minute = 15\n".to_owned();
    let server = Server::with(Setup { rest, ..Setup::default() }).await;
    let folder = tempfile::tempdir().unwrap();
    let secrets: Vec<String> = (0..17).map(|id| made_up(id).expose().to_owned()).collect();
    fs::write(folder.path().join("f"), secrets.join("\n")).unwrap();
    let ran = scan_with(&server, folder.path(), &["--check"]).await;
    assert_eq!(fields(&findings(&ran), "state"), ["unknown"; 17]);
    assert!(ran.err.contains("the server asks to wait for "), "the limit was reached: {ran}");
}

#[tokio::test]
async fn se_37_what_lives_is_taken_back_and_an_id_alone_takes_back_nothing() {
    let server = Server::start().await;
    let (token, prefix) = make(&server, TOKENS, json!({"scopes": "tasks:list"})).await;
    let (child, _) = make(&server, TOKENS, json!({"scopes": "tasks:list", "parent": prefix})).await;
    let (key, _) =
        make(&server, "/v1/api-keys", json!({"name": "k", "scopes": ["tasks:list"]})).await;
    let (victim, id) = make(&server, TOKENS, json!({"scopes": "tasks:list"})).await;
    // Anybody can put somebody else's id into a secret of their own.
    let number = id.bytes().fold(0_u128, |sum, byte| {
        sum * 36 + u128::from(if byte.is_ascii_digit() { byte - b'0' } else { byte - b'a' + 10 })
    });
    let planted = Secret::new(u64::try_from(number).unwrap(), &[9; 32]);
    assert_eq!(&*planted.id(), id);
    let folder = tempfile::tempdir().unwrap();
    let text = format!("{token}\n{key}\n{}\n{token}", planted.expose());
    fs::write(folder.path().join("f"), text).unwrap();

    // A caller without rights takes nothing back.
    let mut command = server.cli();
    command.env_remove("BAILIWICK_API_KEY").env("BAILIWICK_AUTH_TOKEN", &victim);
    command.current_dir(folder.path());
    command.args(["auth", "scan", "--revoke", "--yes", "--format", "json"]);
    let refused = run(command).await;
    let found = findings(&refused);
    assert_eq!(fields(&found, "state"), ["live", "live", "unknown", "live"]);
    assert!(found[0]["revocation"].as_str().unwrap().contains("api_keys:admin"), "{refused}");

    let ran = scan_with(&server, folder.path(), &["--revoke", "--yes", "--cascade"]).await;
    let found = findings(&ran);
    assert_eq!(fields(&found, "state"), ["revoked", "revoked", "unknown", "revoked"], "{ran}");
    assert_eq!(fields(&found, "revocation"), ["done", "done", "-", "done"], "{ran}");
    for (secret, wanted) in [(&token, 401), (&child, 401), (&key, 401), (&victim, 200)] {
        let bearer = format!("Bearer {secret}");
        let (status, _) =
            server.json("GET", "/v1/tasks", &[("authorization", &bearer)], None).await;
        assert_eq!(status, wanted);
        assert!(!ran.said().contains(&secret[17..60]), "{ran}");
    }
}

#[tokio::test]
async fn the_callers_own_key_is_taken_back_last() {
    let server = Server::start().await;
    let keys = "/v1/api-keys";
    let body = json!({"name": "own", "scopes": ["api_keys:admin", "tasks:list"]});
    let (own, _) = make(&server, keys, body).await;
    let (other, _) = make(&server, keys, json!({"name": "k", "scopes": ["tasks:list"]})).await;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("f"), format!("{own}\n{other}")).unwrap();
    let mut command = server.cli();
    command.env("BAILIWICK_API_KEY", &own).current_dir(folder.path());
    // A place that is named twice is listed once.
    command.args(["auth", "scan", "--revoke", "--yes", "--format", "json", ".", "f"]);
    let found = findings(&run(command).await);
    assert_eq!(fields(&found, "state"), ["revoked", "revoked"]);
    assert_eq!(fields(&found, "revocation"), ["done", "done"]);
}

#[tokio::test]
async fn what_was_found_counts_when_nobody_reads_on() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("f"), made_up(1).expose()).unwrap();
    let mut command = bailiwick();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.args(["auth", "scan"]).arg(folder.path()).stdin(Stdio::null()).stdout(writer);
    assert_eq!(command.status().await.unwrap().code(), Some(1));
}

#[test]
fn the_docs_hold_the_pattern_for_scanners() {
    let docs = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/security.md"));
    let docs = docs.unwrap();
    let lines = docs.lines().filter(|line| line.contains(secret::PATTERN)).count();
    assert!(lines >= 2, "the pattern and the rule of gitleaks: {lines}");
    assert!(!docs.replace(secret::PATTERN, "").contains("bwk_["), "another pattern");
}
