//! The line protocol at the front door: ztick's rows, over real sockets.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufReader,
    },
    net::TcpStream,
    process::Command,
    time::{Instant, sleep, timeout},
};

use crate::harness::{PATIENCE, Process, process};

/// ztick's example.
pub const THREE: &str = "[token.deploy]\nsecret = \"sk_deploy_a1b2c3d4e5f6\"\nnamespace = \"deploy.\"\n\
     [token.backup]\nsecret = \"sk_backup_f6e5d4c3b2a1\"\nnamespace = \"backup.\"\n\
     [token.admin]\nsecret = \"sk_admin_x9y8z7w6v5u4\"\nnamespace = \"*\"\n";
pub const DEPLOY: &str = "sk_deploy_a1b2c3d4e5f6";
pub const BACKUP: &str = "sk_backup_f6e5d4c3b2a1";
pub const ADMIN: &str = "sk_admin_x9y8z7w6v5u4";
/// Long after any test.
pub const LATER: &str = "2099-04-01 12:00:00";
pub const LATER_NS: &str = "4078728000000000000";
pub const DENIED: &str = "r1 ERROR auth_denied insufficient namespace scope\n";

/// A runner that is enabled.
const HOOK: &str = "http POST https://hooks.example/x";

/// A server that speaks it, in a folder of its own.
#[derive(Debug)]
pub struct Lines {
    pub folder: Arc<TempDir>,
    pub at: SocketAddr,
    pub http: SocketAddr,
    pub process: Process,
}

/// The configuration of a server, with these lines of `[controller]` and
/// tables behind it.
pub fn configuration(controller: &str) -> String {
    format!(
        "[server]\ngrpc_listen = \"127.0.0.1:0\"\nhttp_listen = \"127.0.0.1:0\"\n\
         [storage]\nurl = \"sqlite:data/bailiwick.db\"\n\
         [telemetry]\nlog_format = \"json\"\nlog_level = \"debug\"\n\
         [controller]\nlisten = \"127.0.0.1:0\"\n{controller}"
    )
}

/// A folder with an auth file, private as it should be.
pub fn folder(auth_file: &str) -> Arc<TempDir> {
    let folder = tempfile::tempdir().unwrap();
    write_private(&folder.path().join("auth.toml"), auth_file);
    Arc::new(folder)
}

pub fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

impl Lines {
    /// With ztick's three tokens.
    pub async fn guarded() -> Self {
        Self::with_tokens(THREE).await
    }

    /// With this auth file.
    pub async fn with_tokens(auth_file: &str) -> Self {
        Self::start(folder(auth_file), "auth_file = \"auth.toml\"\n").await
    }

    /// Without an auth file.
    pub async fn open() -> Self {
        Self::start(folder(""), "").await
    }

    /// In a folder, with these lines of `[controller]`.
    pub async fn start(folder: Arc<TempDir>, controller: &str) -> Self {
        let config = folder.path().join("bailiwick.toml");
        fs::write(&config, configuration(controller)).unwrap();
        let mut command = process::bailiwick();
        command.arg("-c").arg(&config).arg("serve");
        let process = Process::start(command);
        let serving = process.err.wait_for(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["message"] == "serving").then_some(line)
        });
        let serving = serving.await.unwrap_or_else(|| {
            panic!("the server did not start:\n{}", process.err.all().join("\n"))
        });
        let address = |name: &str| serving[name].as_str().unwrap().parse().unwrap();
        Self { folder, at: address("controller"), http: address("http"), process }
    }

    /// The same folder again.
    pub async fn again(mut self, controller: &str) -> Self {
        self.process.kill();
        Self::start(Arc::clone(&self.folder), controller).await
    }

    /// A connection that has said nothing yet.
    pub async fn wire(&self) -> Wire<TcpStream> {
        Wire::new(TcpStream::connect(self.at).await.unwrap())
    }

    /// A connection that is authenticated.
    pub async fn with(&self, secret: &str) -> Wire<TcpStream> {
        let mut wire = self.wire().await;
        assert_eq!(wire.ask(&format!("AUTH {secret}")).await, "OK\n");
        wire
    }

    /// What a new connection is told that sends this, up to its end.
    pub async fn told(&self, sent: &[u8]) -> String {
        let mut wire = self.wire().await;
        wire.send(sent).await;
        wire.end().await
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.process.err.all().join("\n")
    }
}

/// Tries to start a server that must refuse to; answers what it says.
pub async fn refused(folder: &Path, controller: &str) -> String {
    refused_by(process::bailiwick(), folder, controller).await
}

/// The same of a command that becomes the server.
pub async fn refused_by(mut command: Command, folder: &Path, controller: &str) -> String {
    let config = folder.join("bailiwick.toml");
    // A port that a server which did start would be found on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = configuration(controller).replace(
        "[controller]\nlisten = \"127.0.0.1:0\"",
        &format!("[controller]\nlisten = \"{free}\""),
    );
    fs::write(&config, text).unwrap();
    command.arg("-c").arg(&config).arg("serve");
    let mut process = Process::start(command);
    let code = process.exit().await;
    let said = process.err.all().join("\n");
    assert!(code.is_some_and(|code| code != 0), "exit {code:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(TcpStream::connect(free).await.is_err(), "it listens: {said}");
    said
}

/// One connection.
#[derive(Debug)]
pub struct Wire<S>(BufReader<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub fn new(stream: S) -> Self {
        Self(BufReader::new(stream))
    }

    pub fn into_inner(self) -> S {
        self.0.into_inner()
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).await.unwrap();
        self.0.get_mut().flush().await.unwrap();
    }

    /// The next line with its end.
    pub async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.0.read_line(&mut line)).await.expect("a line").unwrap();
        assert!(read > 0, "the connection has ended");
        line
    }

    /// Sends a line and answers the next one.
    pub async fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\n").as_bytes()).await;
        self.line().await
    }

    /// Sends a line with the request id r1 and answers all lines up to its
    /// `OK` or `ERROR`, without the id.
    pub async fn rows(&mut self, line: &str) -> Vec<String> {
        self.send(format!("r1 {line}\n").as_bytes()).await;
        let mut rows = Vec::new();
        loop {
            let line = self.line().await;
            let row = line.strip_prefix("r1 ").unwrap().trim_end_matches('\n').to_owned();
            if row == "OK" || row.starts_with("ERROR") {
                assert_eq!(row, "OK");
                return rows;
            }
            rows.push(row);
        }
    }

    /// The jobs that QUERY lists.
    pub async fn jobs(&mut self, query: &str) -> Vec<String> {
        let rows = self.rows(query).await;
        rows.iter().map(|row| row.split(' ').next().unwrap().to_owned()).collect()
    }

    /// Whatever comes up to the end.
    pub async fn end(&mut self) -> String {
        let mut rest = Vec::new();
        timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.expect("an end").unwrap();
        String::from_utf8(rest).unwrap()
    }
}

#[tokio::test]
async fn zt_01_with_auth_off_the_first_command_is_served() {
    let server = Lines::open().await;
    let mut wire = server.wire().await;
    assert_eq!(wire.ask("r1 SET a.b 2026-04-01 12:00:00").await, "r1 OK\n");
    assert_eq!(wire.ask(&format!("r2 SET a.c {LATER}")).await, "r2 OK\n");
    assert_eq!(wire.ask("r3 GET a.c").await, format!("r3 OK planned {LATER_NS}\n"));
    // AUTH is harmless, as often as it comes.
    assert_eq!(wire.ask("AUTH whatever").await, "OK\n");
    assert_eq!(wire.ask("AUTH").await, "OK\n");
    assert_eq!(
        wire.rows("STAT").await.iter().find(|row| row.starts_with("auth")).unwrap(),
        "auth_enabled false"
    );
}

#[tokio::test]
async fn zt_02_to_05_auth_comes_first_and_is_right() {
    let server = Lines::guarded().await;
    let mut wire = server.wire().await;
    assert_eq!(wire.ask(&format!("AUTH {DEPLOY}")).await, "OK\n");
    // ZT-02: a second one is an error, and the connection stays.
    assert_eq!(wire.ask(&format!("AUTH {ADMIN}")).await, "ERROR\n");
    assert_eq!(wire.ask(&format!("r1 SET backup.x {LATER}")).await, DENIED);

    // ZT-03
    let said = server.told(format!("r1 SET deploy.early {LATER}\n").as_bytes()).await;
    assert_eq!(said, "ERROR auth_required\n");
    assert_eq!(wire.ask("r1 GET deploy.early").await, "r1 ERROR\n");
    let said =
        server.told(format!("r1 SET deploy.early {LATER}\nAUTH {DEPLOY}\n").as_bytes()).await;
    assert_eq!(said, "ERROR auth_required\n");
    for other in ["\n", "garbage\n", "r1 AUTH x\n", "auth x\n", "AUTHx\n", "\u{fffd}\n"] {
        assert_eq!(server.told(other.as_bytes()).await, "ERROR auth_required\n", "{other:?}");
    }
    // ZT-04
    for none in ["AUTH\n", "AUTH \n", "AUTH    \n", "AUTH\r\n"] {
        assert_eq!(server.told(none.as_bytes()).await, "ERROR auth_required\n", "{none:?}");
    }
    // ZT-05
    for wrong in ["wrong", "", "sk_deploy_a1b2c3d4e5f", "SK_DEPLOY_A1B2C3D4E5F6", "\"\"", "deploy"]
    {
        let expected =
            if wrong.is_empty() { "ERROR auth_required\n" } else { "ERROR auth_failed\n" };
        assert_eq!(server.told(format!("AUTH {wrong}\n").as_bytes()).await, expected, "{wrong}");
    }
    let pipelined = format!("AUTH wrong\nr1 SET deploy.early {LATER}\n");
    assert_eq!(server.told(pipelined.as_bytes()).await, "ERROR auth_failed\n");
    assert_eq!(wire.ask("r1 GET deploy.early").await, "r1 ERROR\n");

    let log = server.log();
    assert!(log.contains("authentication failed") && log.contains("credential accepted"), "{log}");
    for secret in [DEPLOY, ADMIN, "wrong\""] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[tokio::test]
async fn zt_06_there_are_five_seconds_to_authenticate_and_no_more() {
    let server = Lines::guarded().await;
    let silent = async {
        let (mut wire, began) = (server.wire().await, Instant::now());
        (wire.end().await, began.elapsed())
    };
    let stalled = async {
        let (mut wire, began) = (server.wire().await, Instant::now());
        wire.send(b"AUT").await;
        (wire.end().await, began.elapsed())
    };
    let dripping = async {
        let stream = TcpStream::connect(server.at).await.unwrap();
        let began = Instant::now();
        let (mut reader, mut writer) = stream.into_split();
        let drip = async {
            for byte in b"AUTH sk_deploy" {
                if writer.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_secs(1)).await;
            }
            std::future::pending::<()>().await;
        };
        let mut said = Vec::new();
        // It may be reset: it sends after the end.
        tokio::select! { _ = reader.read_to_end(&mut said) => {}, () = drip => {} }
        (String::from_utf8(said).unwrap(), began.elapsed())
    };
    let (silent, stalled, dripping) = tokio::join!(silent, stalled, dripping);
    for (said, took) in [silent, stalled, dripping] {
        assert_eq!(said, "");
        assert!((4.9..7.0).contains(&took.as_secs_f64()), "{took:?}");
    }
    // Who is authenticated is not hurried.
    let mut wire = server.with(DEPLOY).await;
    sleep(Duration::from_millis(5600)).await;
    assert_eq!(wire.ask("r1 GET deploy.x").await, "r1 ERROR\n");
}

#[tokio::test]
async fn zt_07_auth_is_per_connection() {
    let server = Lines::guarded().await;
    let first = server.with(DEPLOY).await;
    let mut second = server.with(BACKUP).await;
    assert_eq!(server.told(b"r1 GET deploy.x\n").await, "ERROR auth_required\n");
    drop(first);
    assert_eq!(second.ask(&format!("r1 SET backup.x {LATER}")).await, "r1 OK\n");
    assert_eq!(
        second.ask(&format!("r2 SET deploy.x {LATER}")).await,
        "r2 ERROR auth_denied insufficient namespace scope\n"
    );
}

#[tokio::test]
async fn zt_19_to_24_a_token_reaches_what_begins_with_its_namespace() {
    let server = Lines::guarded().await;
    let mut deploy = server.with(DEPLOY).await;
    let mut admin = server.with(ADMIN).await;
    for id in ["backup.daily", "monitoring.alert", "app.task"] {
        assert_eq!(admin.ask(&format!("r1 SET {id} {LATER}")).await, "r1 OK\n");
    }
    // ZT-19
    for id in ["deploy.daily", "deploy.release.v1.2.3", "deploy.weekly", "deploy."] {
        assert_eq!(deploy.ask(&format!("r1 SET {id} {LATER}")).await, "r1 OK\n", "{id}");
    }
    for id in ["deploy", "Deploy.x", "xdeploy.y", "\"deploy\"", "\" deploy.x\""] {
        assert_eq!(deploy.ask(&format!("r1 SET {id} {LATER}")).await, DENIED, "{id}");
    }
    // ZT-20, ZT-21: the same for what is there and what is not.
    assert_eq!(deploy.ask("r1 SET backup.daily 2026-04-01 12:00:00").await, DENIED);
    assert_eq!(deploy.ask("r1 SET backup.daily not-a-time").await, DENIED);
    for id in ["app.task", "app.nothing"] {
        assert_eq!(deploy.ask(&format!("r1 GET {id}")).await, DENIED);
        assert_eq!(deploy.ask(&format!("r1 REMOVE {id}")).await, DENIED);
        assert_eq!(deploy.ask(&format!("r1 RESUME {id}")).await, DENIED);
        assert_eq!(deploy.ask(&format!("r1 HISTORY {id}")).await, DENIED);
        assert_eq!(deploy.ask(&format!("r1 SCHEDULE {id} every 1h")).await, DENIED);
    }
    // ZT-22, ZT-23
    assert_eq!(deploy.ask("r1 REMOVE monitoring.alert").await, DENIED);
    assert_eq!(deploy.ask("r2 REMOVE deploy.weekly").await, "r2 OK\n");
    assert_eq!(deploy.ask("r2 REMOVE deploy.weekly").await, "r2 ERROR\n");
    for id in ["backup.daily", "monitoring.alert", "app.task"] {
        let expected = format!("r3 OK planned {LATER_NS}\n");
        assert_eq!(admin.ask(&format!("r3 GET {id}")).await, expected);
    }
    // ZT-24, ZT-41
    assert_eq!(admin.ask("r4 REMOVE deploy.daily").await, "r4 OK\n");
    assert_eq!(
        admin.ask("r5 RULE SET any app. http POST https://hooks.example/x").await,
        "r5 OK\n"
    );
    assert_eq!(
        admin.ask("r6 RULE SET all \"\" http POST https://hooks.example/x").await,
        "r6 OK\n"
    );
    assert_eq!(admin.ask("r7 REMOVERULE any").await, "r7 OK\n");
    assert_eq!(admin.ask("r8 REMOVERULE any").await, "r8 ERROR\n");
}

#[tokio::test]
async fn zt_25_to_28_query_shows_the_namespace_alone() {
    let server = Lines::guarded().await;
    let mut deploy = server.with(DEPLOY).await;
    let mut admin = server.with(ADMIN).await;
    for id in ["deploy.x", "backup.y", "app.z"] {
        admin.ask(&format!("r1 SET {id} {LATER}")).await;
    }
    let row = |id: &str| format!("{id} planned {LATER_NS}");
    assert_eq!(deploy.rows("QUERY").await, [row("deploy.x")]);
    assert_eq!(deploy.rows("QUERY deploy.").await, [row("deploy.x")]);
    assert_eq!(deploy.rows("QUERY dep").await, [row("deploy.x")]);
    assert_eq!(deploy.rows("QUERY backup.").await, Vec::<String>::new());
    assert_eq!(admin.rows("QUERY").await, [row("app.z"), row("backup.y"), row("deploy.x")]);
    assert_eq!(admin.rows("QUERY backup.").await, [row("backup.y")]);
    // What STAT counts is the namespace's too.
    let figure = |rows: Vec<String>, key: &str| {
        let row = rows.into_iter().find(|row| row.starts_with(&format!("{key} ")));
        row.unwrap().split_once(' ').unwrap().1.to_owned()
    };
    assert_eq!(figure(deploy.rows("STAT").await, "jobs_total"), "1");
    assert_eq!(figure(admin.rows("STAT").await, "jobs_planned"), "3");
    let keys: Vec<String> = admin
        .rows("STAT")
        .await
        .iter()
        .map(|row| row.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(
        keys,
        [
            "uptime_ns",
            "connections",
            "jobs_total",
            "jobs_planned",
            "jobs_triggered",
            "jobs_executed",
            "jobs_failed",
            "rules_total",
            "executions_pending",
            "executions_inflight",
            "persistence",
            "compression",
            "auth_enabled",
            "tls_enabled",
            "framerate",
        ]
    );
    assert_eq!(figure(admin.rows("STAT").await, "connections"), "2");
    assert_eq!(figure(admin.rows("STAT").await, "auth_enabled"), "true");
}

#[tokio::test]
async fn zt_29_to_31_se_62_a_rule_lies_inside_as_a_whole() {
    let server = Lines::guarded().await;
    let mut deploy = server.with(DEPLOY).await;
    let mut admin = server.with(ADMIN).await;
    let set = |names: &str| format!("r1 RULE SET {names} {HOOK}");
    assert_eq!(deploy.ask(&set("deploy.rule1 deploy.")).await, "r1 OK\n");
    assert_eq!(deploy.ask(&set("backup.rule backup.")).await, DENIED);
    assert_eq!(deploy.ask(&set("deploy.rule backup.")).await, DENIED);
    assert_eq!(deploy.ask(&set("backup.rule deploy.")).await, DENIED);
    // SE-62: shorter patterns catch neighbours' jobs.
    for short in ["deploy", "d", "\"\""] {
        assert_eq!(deploy.ask(&set(&format!("deploy.rule {short}"))).await, DENIED, "{short}");
    }
    assert_eq!(admin.ask(&set("deploy.wide \"\"")).await, "r1 OK\n");
    // The stored pattern counts for who overwrites or removes.
    assert_eq!(deploy.ask(&set("deploy.wide deploy.")).await, DENIED);
    assert_eq!(deploy.ask("r1 REMOVERULE deploy.wide").await, DENIED);
    assert_eq!(deploy.ask("r1 REMOVERULE backup.rule").await, DENIED);
    assert_eq!(
        deploy.rows("LISTRULES").await,
        [format!("deploy.rule1 deploy. {HOOK}"), format!("deploy.wide \"\" {HOOK}")]
    );
    assert_eq!(
        deploy.rows("LISTRULES deploy.w").await,
        [format!("deploy.wide \"\" {HOOK}")],
        "those with this beginning"
    );
    assert_eq!(deploy.rows("LISTRULES backup.").await, Vec::<String>::new());
    assert_eq!(deploy.ask("r1 REMOVERULE deploy.rule1").await, "r1 OK\n");
    assert_eq!(deploy.rows("LISTRULES").await.len(), 1);
    // A runner that is not listed, and none at all.
    assert_eq!(
        deploy.ask("r1 RULE SET deploy.rule deploy. shell echo hi").await,
        "r1 ERROR runner_disabled shell\n"
    );
    assert_eq!(
        deploy.ask("r1 RULE SET deploy.rule deploy. bash x").await,
        "r1 ERROR unknown_runner\n"
    );
    // SE-63: a task in somebody else's namespace.
    for outside in ["backup.eu/t", "deploy/t", "shop/t"] {
        let line = format!("r1 RULE SET deploy.rule deploy. task {outside}");
        let expected = if outside == "deploy/t" { "r1 OK\n" } else { DENIED };
        assert_eq!(deploy.ask(&line).await, expected, "{outside}");
    }
}

#[tokio::test]
async fn zt_32_the_conventional_prefix_of_rules_is_taken_off_once() {
    let server = Lines::guarded().await;
    let mut deploy = server.with(DEPLOY).await;
    let set = |id: &str| format!("r1 RULE SET {id} deploy. {HOOK}");
    assert_eq!(deploy.ask(&set("rule.deploy.")).await, "r1 OK\n");
    assert_eq!(deploy.ask(&set("rule.rule.deploy.")).await, DENIED);
    assert_eq!(deploy.ask(&set("rule.backup.")).await, DENIED);
    assert_eq!(deploy.rows("LISTRULES").await, [format!("rule.deploy. deploy. {HOOK}")]);
    assert_eq!(server.with(BACKUP).await.rows("LISTRULES").await, Vec::<String>::new());
    assert_eq!(deploy.ask("r1 REMOVERULE rule.deploy.").await, "r1 OK\n");

    let server = server.again("auth_file = \"auth.toml\"\nrule_id_prefixes = []\n").await;
    let mut deploy = server.with(DEPLOY).await;
    assert_eq!(deploy.ask(&set("rule.deploy.")).await, DENIED);
    assert_eq!(deploy.ask(&set("deploy.rule")).await, "r1 OK\n");
}

#[tokio::test]
async fn zt_33_zt_34_replies_have_their_ids_and_their_order() {
    let server = Lines::guarded().await;
    let all = format!(
        "AUTH {DEPLOY}\nr1 SET deploy.daily {LATER}\nr2 GET deploy.daily\nr3 SET backup.x 1\n\
         a-b:c SET deploy.a {LATER}\nr5 REMOVE deploy.daily\nr6 GET deploy.daily\nr7 NOPE\n\
         r8 SET deploy.b soon\nr9\n\n\"\nr10 SET deploy.\"b {LATER}\nr11 SET deploy.c {LATER}\n"
    );
    let mut wire = server.wire().await;
    wire.send(all.as_bytes()).await;
    let expected = format!(
        "OK\nr1 OK\nr2 OK planned {LATER_NS}\nr3 ERROR auth_denied insufficient namespace scope\n\
         a-b:c OK\nr5 OK\nr6 ERROR\nr7 ERROR unknown_command\nr8 ERROR invalid_time "
    );
    let mut said = String::new();
    while !said.contains("r11 ") {
        said.push_str(&wire.line().await);
    }
    assert!(said.starts_with(&expected), "{said}");
    let rest: Vec<&str> = said[expected.len()..].lines().skip(1).collect();
    assert_eq!(
        rest,
        [
            "r9 ERROR malformed",
            "ERROR malformed",
            "ERROR malformed",
            "r10 ERROR malformed",
            "r11 OK"
        ]
    );
    // The example, to the byte.
    let mut wire = server.wire().await;
    wire.send(format!("AUTH {DEPLOY}\nr1 SET deploy.daily 2099-04-01 12:00:00\n").as_bytes()).await;
    assert_eq!(wire.line().await + &wire.line().await, "OK\nr1 OK\n");
}

#[tokio::test]
async fn zt_34_a_long_pipeline_is_answered_in_order() {
    let server = Lines::guarded().await;
    let stream = TcpStream::connect(server.at).await.unwrap();
    let (reader, mut writer) = stream.into_split();
    let mut all = format!("AUTH {DEPLOY}\n");
    for number in 0..5_000 {
        let _ = writeln!(all, "s{number} SET deploy.{number} {LATER}");
        if number % 1_000 == 999 {
            let _ = writeln!(all, "g{number} GET deploy.{number}");
        }
    }
    let writing = async { writer.write_all(all.as_bytes()).await.unwrap() };
    let reading = async {
        let mut lines = BufReader::new(reader).lines();
        let mut next =
            async || timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        assert_eq!(next().await, "OK");
        for number in 0..5_000 {
            assert_eq!(next().await, format!("s{number} OK"));
            if number % 1_000 == 999 {
                assert_eq!(next().await, format!("g{number} OK planned {LATER_NS}"));
            }
        }
    };
    tokio::join!(writing, reading);
    // More than a page, over a pattern of its own.
    let mut wire = server.with(DEPLOY).await;
    assert_eq!(wire.jobs("QUERY").await.len(), 5_000);
    assert_eq!(wire.jobs("QUERY deploy.12").await.len(), 111);
}

#[tokio::test]
async fn zt_40_zt_41_tenants_do_not_see_one_another() {
    const TENANTS: [&str; 3] = ["billing", "shipping", "inventory"];
    let mut file = "[token.admin]\nsecret = \"s-admin\"\nnamespace = \"*\"\n".to_owned();
    for tenant in TENANTS {
        let _ =
            write!(file, "[token.{tenant}]\nsecret = \"s-{tenant}\"\nnamespace = \"{tenant}.\"\n");
    }
    let server = Lines::with_tokens(&file).await;
    let mut admin = server.with("s-admin").await;
    for tenant in TENANTS {
        assert_eq!(admin.ask(&format!("r1 SET {tenant}.there {LATER}")).await, "r1 OK\n");
        let rule = format!("r1 RULE SET {tenant}.rule {tenant}. http GET https://hooks.example");
        assert_eq!(admin.ask(&rule).await, "r1 OK\n");
    }
    for caller in TENANTS {
        let mut wire = server.with(&format!("s-{caller}")).await;
        for owner in TENANTS {
            let own = caller == owner;
            let expected = |good: &str| if own { good.to_owned() } else { DENIED.to_owned() };
            let planned = format!("r1 OK planned {LATER_NS}\n");
            assert_eq!(wire.ask(&format!("r1 SET {owner}.new {LATER}")).await, expected("r1 OK\n"));
            assert_eq!(wire.ask(&format!("r1 GET {owner}.there")).await, expected(&planned));
            assert_eq!(wire.ask(&format!("r1 REMOVE {owner}.new")).await, expected("r1 OK\n"));
            let jobs = wire.jobs(&format!("QUERY {owner}.")).await;
            assert_eq!(jobs, if own { vec![format!("{owner}.there")] } else { Vec::new() });
            let rule = format!("r1 RULE SET {owner}.mine {owner}. http GET https://hooks.example");
            assert_eq!(wire.ask(&rule).await, expected("r1 OK\n"));
        }
        assert_eq!(wire.rows("LISTRULES").await.len(), 2, "the administrator's and its own");
    }
    assert_eq!(admin.jobs("QUERY").await.len(), 3);
    assert_eq!(admin.rows("LISTRULES").await.len(), 6);
}

#[tokio::test]
async fn zt_43_times_are_of_three_kinds() {
    let server = Lines::open().await;
    let mut wire = server.wire().await;
    for (time, ns) in [
        ("2099-04-01 12:00:00", LATER_NS),
        ("\"2099-04-01 12:00:00\"", LATER_NS),
        (LATER_NS, LATER_NS),
        ("2099-04-01", "4078684800000000000"),
        ("2099-04-01T12:00:00Z", LATER_NS),
    ] {
        assert_eq!(wire.ask(&format!("r1 SET deploy.release.v1.2.3 {time}")).await, "r1 OK\n");
        let planned = format!("r1 OK planned {ns}\n");
        assert_eq!(wire.ask("r1 GET deploy.release.v1.2.3").await, planned, "{time}");
    }
    // What is no time plans nothing, least of all for 1970.
    for wrong in ["tomorrow", "2099-13-01", "12:00:00", "99999999999999999999"] {
        let said = wire.ask(&format!("r1 SET x {wrong}")).await;
        assert!(said.starts_with("r1 ERROR invalid_time "), "{said}");
    }
    assert_eq!(wire.ask("r1 GET x").await, "r1 ERROR\n");
    for malformed in ["SET x", "SET x 2099-04-01 12:00:00 UTC", "SET", "GET", "GET x y"] {
        assert_eq!(wire.ask(&format!("r1 {malformed}")).await, "r1 ERROR malformed\n");
    }
    let long = "x".repeat(513);
    assert_eq!(wire.ask(&format!("r1 SET {long} 1")).await, "r1 ERROR invalid_identifier\n");
    // Recurring, which ztick has not.
    assert_eq!(
        wire.ask("r1 SCHEDULE backup.nightly every 24h AT 2099-04-01 12:00:00").await,
        "r1 OK\n"
    );
    assert_eq!(wire.ask("r1 GET backup.nightly").await, format!("r1 OK planned {LATER_NS}\n"));
    let said = wire.ask("r1 SCHEDULE backup.nightly now and then").await;
    assert!(said.starts_with("r1 ERROR invalid_recurrence "), "{said}");
    // Planned already, as after a first RESUME.
    assert_eq!(wire.ask("r1 RESUME backup.nightly").await, "r1 OK\n");
    assert_eq!(wire.ask("r1 RESUME nothing").await, "r1 ERROR\n");
    assert_eq!(wire.rows("HISTORY backup.nightly").await, Vec::<String>::new());
    assert_eq!(wire.ask("r1 HISTORY nothing").await, "r1 ERROR\n");
}

#[tokio::test]
async fn zt_45_a_small_client_sees_whole_lines() {
    let server = Lines::guarded().await;
    let mut stream = TcpStream::connect(server.at).await.unwrap();
    let mut recv = async |sent: &str| {
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut buffer = [0; 1024];
        let read = timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        String::from_utf8(buffer[..read].to_vec()).unwrap()
    };
    assert_eq!(recv(&format!("AUTH {DEPLOY}\n")).await, "OK\n");
    assert_eq!(recv(&format!("r1 SET deploy.a {LATER}\r\n")).await, "r1 OK\n");
    assert_eq!(recv("r2 GET deploy.a\n").await, format!("r2 OK planned {LATER_NS}\n"));
    assert_eq!(recv("r3 QUERY\n").await, format!("r3 deploy.a planned {LATER_NS}\nr3 OK\n"));
    // Several lines that came together are answered together.
    let both = format!("r4 SET deploy.b {LATER}\nr5 SET deploy.c {LATER}\n");
    assert_eq!(recv(&both).await, "r4 OK\nr5 OK\n");
}

#[tokio::test]
async fn zt_29_to_31_se_61_commands_are_set_where_their_runner_is_listed() {
    let controller = "auth_file = \"auth.toml\"\n[scheduler]\nrunners = [\"shell\", \"direct\"]\nrun_as = \"self\"\n";
    let server = Lines::start(folder(THREE), controller).await;
    let mut deploy = server.with(DEPLOY).await;
    let set = |rest: &str| format!("r1 RULE SET {rest}");
    assert_eq!(deploy.ask(&set("deploy.rule1 deploy. shell echo \"a  b\" | cat")).await, "r1 OK\n");
    assert_eq!(deploy.ask(&set("deploy.rule2 deploy.x shell \"echo \\\"c\\\"\"")).await, "r1 OK\n");
    assert_eq!(
        deploy.ask(&set("rule.deploy. deploy.y direct /bin/echo \"a b\" c")).await,
        "r1 OK\n"
    );
    assert_eq!(
        deploy.rows("LISTRULES").await,
        [
            "deploy.rule1 deploy. shell \"echo \\\"a  b\\\" | cat\"",
            "deploy.rule2 deploy.x shell \"echo \\\"c\\\"\"",
            "rule.deploy. deploy.y direct /bin/echo \"a b\" c",
        ]
    );
    for outside in
        ["backup.rule backup. shell x", "deploy.rule backup. shell x", "deploy.r deploy shell x"]
    {
        assert_eq!(deploy.ask(&set(outside)).await, DENIED, "{outside}");
    }
    assert_eq!(
        deploy.ask(&set("deploy.rule1 deploy. http GET https://x.example")).await,
        "r1 ERROR runner_disabled http\n"
    );
}
