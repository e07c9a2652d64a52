//! The auth file of the line protocol, TLS, and what guards it (SE-60): at the
//! front door.

use std::{
    fmt::Write as _, fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpStream, process::Command, time::Instant};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::Code;

use crate::{
    harness::{self, BAILIWICK, ROOT_KEY, Server, Setup, process},
    line::{
        ADMIN, BACKUP, DENIED, DEPLOY, LATER, LATER_NS, Lines, THREE, Wire, folder, refused,
        refused_by, write_private,
    },
    tls,
};

const AUTH_FILE: &str = "auth_file = \"auth.toml\"\n";

#[tokio::test]
async fn zt_08_zt_12_zt_41_the_three_tokens_of_the_example() {
    let server = Lines::guarded().await;
    for (secret, own, other) in
        [(DEPLOY, "deploy.x", "backup.x"), (BACKUP, "backup.x", "deploy.x"), (ADMIN, "a", "z")]
    {
        let mut wire = server.with(secret).await;
        assert_eq!(wire.ask(&format!("r1 SET {own} {LATER}")).await, "r1 OK\n");
        let said = wire.ask(&format!("r1 SET {other} {LATER}")).await;
        assert_eq!(said, if secret == ADMIN { "r1 OK\n" } else { DENIED });
    }
}

#[tokio::test]
async fn zt_09_zt_10_the_configuration_names_listener_and_auth_file() {
    // The file is named relative to the configuration, which `-c` names; the
    // server runs in another folder.
    let folder = folder(THREE);
    fs::create_dir(folder.path().join("secrets")).unwrap();
    fs::rename(folder.path().join("auth.toml"), folder.path().join("secrets/auth.toml")).unwrap();
    let server = Lines::start(folder, "auth_file = \"secrets/auth.toml\"\n").await;
    server.with(DEPLOY).await;
}

#[tokio::test]
async fn zt_11_a_secret_is_any_string() {
    let file = "[token.blanks]\nsecret = \"my secret\"\nnamespace = \"a.\"\n\
                [token.quotes]\nsecret = 'a\"b\\c'\nnamespace = \"b.\"\n\
                [token.letters]\nsecret = \"schlüssel-🔑\"\nnamespace = \"c.\"\n";
    let server = Lines::with_tokens(file).await;
    for (auth, job) in [
        ("my secret", "a.x"),
        ("\"my secret\"", "a.x"),
        ("my secret ", "a.x"),
        ("\"a\\\"b\\\\c\"", "b.x"),
        ("a\"b\\c", "b.x"),
        ("schlüssel-🔑", "c.x"),
        ("my secret\r", "a.x"),
    ] {
        let mut wire = server.with(auth).await;
        assert_eq!(wire.ask(&format!("r1 SET {job} {LATER}")).await, "r1 OK\n", "{auth}");
    }
    for wrong in ["my", "mysecret", "\"my secret", "\"my\" secret", "my  secret", "MY SECRET"] {
        let said = server.told(format!("AUTH {wrong}\n").as_bytes()).await;
        assert_eq!(said, "ERROR auth_failed\n", "{wrong}");
    }
}

#[tokio::test]
async fn zt_13_any_number_of_tokens() {
    for count in [1, 10_000] {
        let mut file = String::new();
        for number in 0..count {
            let _ = write!(
                file,
                "[token.t{number}]\nsecret = \"s-{number}\"\nnamespace = \"n{number}.\"\n"
            );
        }
        let server = Lines::with_tokens(&file).await;
        let last = count - 1;
        let mut wire = server.with(&format!("s-{last}")).await;
        assert_eq!(wire.ask(&format!("r1 SET n{last}.x {LATER}")).await, "r1 OK\n");
        assert_eq!(wire.ask(&format!("r1 SET n{count}.x {LATER}")).await, DENIED);
        assert_eq!(
            server.told(format!("AUTH s-{count}\n").as_bytes()).await,
            "ERROR auth_failed\n"
        );
    }
}

#[tokio::test]
async fn zt_14_to_18_zt_44_a_bad_auth_file_stops_the_start() {
    let twice = "[token.one]\nsecret = \"s3cret-x\" # the first\nnamespace = \"a.\"\n\
                 [token.two]\nsecret = \"s3cret-x\" # the second\nnamespace = \"b.\"\n";
    for (file, words) in [
        (twice, &["`one` of line 2", "`two`", "auth.toml:5"][..]),
        (
            "[token.one]\nsecret = \"s3cret-x\"\nnamespace = \"\"\n",
            &["`one`", "`namespace`", "auth.toml:3"],
        ),
        ("[token.one]\nnamespace = \"a.\"\n", &["`one`", "`secret` is missing", "auth.toml:1"]),
        (
            "[token.one]\nsecret = \"s3cret-x\"\n",
            &["`one`", "`namespace` is missing", "auth.toml:1"],
        ),
        ("[token.one]\nsecret = \"s3cret-x\nnamespace = \"a.\"\n", &["auth.toml:2"]),
        ("[token.one]\nsecret = \"s3cret-x\"\nnamespace = \"rule.a.\"\n", &["`rule.`"]),
        ("", &["holds no token"]),
    ] {
        let folder = folder(file);
        let said = refused(folder.path(), AUTH_FILE).await;
        for word in words.iter().chain(&["auth.toml"]) {
            assert!(said.contains(word), "{word} not in {said}");
        }
        assert!(!said.contains("s3cret"), "{said}");
    }
    // ZT-18, ZT-44: absent, a folder, and one that cannot be read.
    let folder = folder(THREE);
    for name in ["absent.toml", "."] {
        let said = refused(folder.path(), &format!("auth_file = \"{name}\"\n")).await;
        assert!(said.contains("the auth file"), "{said}");
    }
    fs::write(folder.path().join("binary.toml"), b"\xff\xfe\x00").unwrap();
    assert!(
        refused(folder.path(), "auth_file = \"binary.toml\"\n").await.contains("the auth file")
    );
    let path = folder.path().join("auth.toml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    let said = refused_by(powerless(), folder.path(), AUTH_FILE).await;
    assert!(said.contains("the auth file") && said.contains("denied"), "{said}");
}

/// A server that files' modes bind, also where the tests run as root.
fn powerless() -> Command {
    if !rustix::process::geteuid().is_root() {
        return process::bailiwick();
    }
    let mut command = process::quiet("setpriv");
    command.args(["--bounding-set", "-dac_override,-dac_read_search", BAILIWICK]);
    command
}

fn tls_files(folder: &Path) -> String {
    tls::files(folder)
}

async fn secured(server: &Lines, ca: &[u8]) -> Wire<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.at).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    Wire::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap())
}

#[tokio::test]
async fn zt_35_zt_36_tls_and_no_plain_text_beside_it() {
    let certs = tls::generated(&[]).await;
    let controller = format!("{AUTH_FILE}{}", tls_files(certs.path()));
    let server = Lines::start(folder(THREE), &controller).await;
    let ca = tls::read(&certs, "ca.pem");
    let mut wire = secured(&server, &ca).await;
    assert_eq!(wire.ask(&format!("AUTH {DEPLOY}")).await, "OK\n");
    assert_eq!(wire.ask(&format!("r1 SET deploy.x {LATER}")).await, "r1 OK\n");
    assert_eq!(wire.ask("r2 GET deploy.x").await, format!("r2 OK planned {LATER_NS}\n"));
    assert!(wire.rows("STAT").await.contains(&"tls_enabled true".to_owned()));
    let mut wire = secured(&server, &ca).await;
    assert_eq!(wire.ask("AUTH wrong").await, "ERROR auth_failed\n");
    assert_eq!(wire.end().await, "");
    // ZT-36
    for plain in ["AUTH x\n", "r1 GET x\n", "\n", "GET / HTTP/1.1\r\n\r\n"] {
        assert_eq!(server.told(plain.as_bytes()).await, "", "{plain:?}");
    }
    // The time to authenticate runs within the handshake too.
    let mut wire = server.wire().await;
    let began = Instant::now();
    wire.send(&[22, 3, 1]).await;
    assert_eq!(wire.end().await, "");
    assert!((4.9..7.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    for half in ["tls_cert = \"x.pem\"\n", "tls_cert = \"x.pem\"\ntls_key = \"y.pem\"\n"] {
        let said = refused(folder(THREE).path(), &format!("{AUTH_FILE}{half}")).await;
        assert!(said.contains("controller.tls_"), "{said}");
    }
}

#[tokio::test]
async fn se_15_a_tls_client_on_the_plain_port_is_closed() {
    let server = Lines::guarded().await;
    let began = Instant::now();
    assert_eq!(server.told(&[22, 3, 1, 0, 200, 1]).await, "");
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn zt_37_zt_38_the_auth_file_counts_as_it_was_at_start() {
    let server = Lines::guarded().await;
    let path = server.folder.path().join("auth.toml");
    write_private(&path, &THREE.replace(DEPLOY, "sk_new"));
    server.with(DEPLOY).await;
    assert_eq!(server.told(b"AUTH sk_new\n").await, "ERROR auth_failed\n");
    fs::remove_file(&path).unwrap();
    server.with(DEPLOY).await;
    write_private(&path, &THREE.replace(DEPLOY, "sk_new"));
    let server = server.again(AUTH_FILE).await;
    server.with("sk_new").await;
    assert_eq!(server.told(format!("AUTH {DEPLOY}\n").as_bytes()).await, "ERROR auth_failed\n");
    // ZT-38
    let server = server.again("").await;
    assert_eq!(server.wire().await.ask(&format!("r1 SET any.job {LATER}")).await, "r1 OK\n");
}

#[tokio::test]
async fn zt_39_an_auth_file_that_others_may_read_is_told_or_refused() {
    let wide = |folder: &TempDir| {
        let path = folder.path().join("auth.toml");
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    };
    let lax = folder(THREE);
    wide(&lax);
    let server = Lines::start(lax, AUTH_FILE).await;
    assert!(server.log().contains("chmod 600"), "{}", server.log());
    server.with(DEPLOY).await;
    let strict = folder(THREE);
    wide(&strict);
    let controller = format!("{AUTH_FILE}strict_file_mode = true\n");
    assert!(refused(strict.path(), &controller).await.contains("chmod 600"));
    let private = Lines::start(folder(THREE), &controller).await;
    assert!(!private.log().contains("chmod"), "{}", private.log());
}

#[tokio::test]
async fn zt_42_a_variable_in_the_file_is_a_literal() {
    let file = "[token.ci]\nsecret = \"${ZTICK_TOKEN}\"\nnamespace = \"ci.\"\n";
    let server = Lines::with_tokens(file).await;
    server.with("${ZTICK_TOKEN}").await;
    let log = server.log();
    assert!(log.contains("token `ci`") && log.contains("as it stands"), "{log}");
    assert!(!log.contains("ZTICK_TOKEN"), "{log}");
}

#[tokio::test]
async fn se_60_an_open_line_port_does_not_stand_beside_a_locked_api() {
    let open_beside_locked =
        Setup { rest: "[controller]\nlisten = \"127.0.0.1:0\"\n".to_owned(), ..Setup::default() };
    assert!(harness::refused(&open_beside_locked).await.contains("controller.auth_file"));
    let open_to_all = Setup {
        auth: false,
        rest: "[controller]\nlisten = \"0.0.0.0:0\"\n".to_owned(),
        ..Setup::default()
    };
    assert!(harness::refused(&open_to_all).await.contains("controller.listen"));

    // Beside a locked API the tokens of the file are all that opens the line.
    let (server, _file) = beside(true).await;
    let serving = server.logged("serving", &[]).await;
    let at: std::net::SocketAddr = serving["controller"].as_str().unwrap().parse().unwrap();
    let mut wire = Wire::new(TcpStream::connect(at).await.unwrap());
    assert_eq!(wire.ask(&format!("AUTH {ROOT_KEY}")).await, "ERROR auth_failed\n");
    let mut wire = Wire::new(TcpStream::connect(at).await.unwrap());
    assert_eq!(wire.ask(&format!("AUTH {DEPLOY}")).await, "OK\n");
    // A line's secret is a bearer for jobs and rules alone.
    let bearer = format!("Bearer {DEPLOY}");
    let tasks = server.json("GET", "/v1/tasks", &[("authorization", &bearer)], None).await;
    assert_eq!(tasks.0, 403, "{tasks:?}");
    let (status, me) = server.json("GET", "/v1/whoami", &[("authorization", &bearer)], None).await;
    assert_eq!((status, &me["subject"]), (200, &json!("deploy")), "{me}");
    let held = ["schedules:read", "schedules:write", "rules:read", "rules:write"];
    let grants = json!([{"permissions": held, "namespaces": ["deploy."]}]);
    assert_eq!(me["grants"], grants);
}

/// With ztick's three tokens beside `[auth]`, on or off.
async fn beside(auth: bool) -> (Server, tempfile::NamedTempFile) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(THREE.as_bytes()).unwrap();
    let path = file.path().display();
    let rest = format!("[controller]\nlisten = \"127.0.0.1:0\"\nauth_file = \"{path}\"\n");
    (Server::with(Setup { auth, rest, ..Setup::default() }).await, file)
}

#[tokio::test]
async fn se_60_tokens_of_the_auth_file_guard_jobs_over_rest_and_grpc() {
    for auth in [false, true] {
        let (server, _file) = beside(auth).await;
        let bearer = |secret: &str| ("authorization", format!("Bearer {secret}"));
        let wrong = format!("{DEPLOY}7");
        let plan = json!({"execution": "2099-04-01T12:00:00Z"});
        for (credential, inside, outside) in [
            (None, (401, "CREDENTIALS_MISSING"), (401, "CREDENTIALS_MISSING")),
            (Some(bearer(&wrong)), (401, "CREDENTIALS_INVALID"), (401, "CREDENTIALS_INVALID")),
            (Some(bearer(DEPLOY)), (200, ""), (404, "NAMESPACE_NOT_FOUND")),
        ] {
            let header: Vec<(&str, &str)> =
                credential.iter().map(|(name, value)| (*name, &**value)).collect();
            for (job, (status, reason)) in [("deploy.x", inside), ("backup.x", outside)] {
                let place = format!("auth {auth}, {header:?}, {job}");
                for path in [format!("/jobs/{job}"), format!("/v1/jobs/{job}")] {
                    for (verb, body) in [("PUT", Some(plan.clone())), ("GET", None)] {
                        let (code, said) = server.json(verb, &path, &header, body).await;
                        let told = said["reason"].as_str().unwrap_or_default();
                        assert_eq!((code, told), (status, reason), "{place}, {verb} {path}");
                    }
                }
                let request = json!({"id": job, "execution": "2099-04-01T12:00:00Z"});
                let said = server.grpc("ScheduleService/SetJob", request, &header).await;
                let code = said.as_ref().map_or_else(tonic::Status::code, |_| Code::Ok);
                let expected = match status {
                    200 => Code::Ok,
                    404 => Code::NotFound,
                    _ => Code::Unauthenticated,
                };
                assert_eq!(code, expected, "{place}: {said:?}");
            }
        }
        // Of all that nothing but the job inside has come to be.
        let (name, admin) = bearer(ADMIN);
        let (_, jobs) = server.json("GET", "/jobs", &[(name, &admin)], None).await;
        let ids: Vec<_> = jobs.as_array().unwrap().iter().map(|job| &job["id"]).collect();
        assert_eq!(ids, ["deploy.x"]);
    }
}

#[tokio::test]
async fn se_60_an_auth_file_leaves_what_is_not_jobs_and_rules_as_open_as_it_was() {
    let server = Lines::guarded().await;
    let tasks = format!("http://{}/v1/tasks", server.http);
    let call = async |secret: Option<&str>| {
        let mut call = harness::http().get(&tasks);
        if let Some(secret) = secret {
            call = call.bearer_auth(secret);
        }
        call.send().await.unwrap().status().as_u16()
    };
    assert_eq!(call(None).await, 200);
    assert_eq!(call(Some("no secret of the file")).await, 200);
    // A token of the file is for jobs and rules only, whatever its namespace.
    assert_eq!(call(Some(ADMIN)).await, 403);
}

/// Makes one task, where its template is.
const MAKES_A_TASK: &str = "r1 RULE SET deploy.rule deploy. task deploy/t";
/// Comes to nothing, as egress goes to no loopback; it needs its pattern alone.
const CALLS: &str = "r1 RULE SET deploy.call deploy.call http POST http://localhost:9/";

/// The answer to GET, once it begins like this.
async fn becomes(wire: &mut Wire<TcpStream>, job: &str, state: &str) {
    let reached = tokio::time::timeout(harness::PATIENCE, async {
        while !wire.ask(&format!("r1 GET {job}")).await.starts_with(&format!("r1 OK {state} ")) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let said = reached.await;
    assert!(said.is_ok(), "{job} is not {state}: {}", wire.ask(&format!("r1 GET {job}")).await);
}

/// A rule and a job that is due soon, set by the token `deploy` or, without an
/// auth file, by nobody; then the same folder with this auth file.
async fn due_after_a_restart(server: Lines, secret: Option<&str>, file: &str) -> Lines {
    let template = "name: t\nnamespace_name: deploy\nversion: 1.0.0\nsteps:\n  \
                    - name: only\n    handler: {callable: t}\n";
    let body = json!({"namespace": "deploy", "definition": template});
    let made = harness::http().post(format!("http://{}/v1/templates", server.http)).json(&body);
    assert_eq!(made.send().await.unwrap().status(), 201);
    let mut wire = match secret {
        Some(secret) => server.with(secret).await,
        None => server.wire().await,
    };
    assert_eq!(wire.ask(MAKES_A_TASK).await, "r1 OK\n");
    assert_eq!(wire.ask(CALLS).await, "r1 OK\n");
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let due = (since + Duration::from_secs(4)).as_nanos();
    assert_eq!(wire.ask(&format!("r1 SET deploy.x {due}")).await, "r1 OK\n");
    assert_eq!(wire.ask(&format!("r1 SET deploy.call {due}")).await, "r1 OK\n");
    assert_eq!(wire.ask("r1 GET deploy.x").await, format!("r1 OK planned {due}\n"));
    drop(wire);
    write_private(&server.folder.path().join("auth.toml"), file);
    server.again(AUTH_FILE).await
}

/// How many tasks there are; reading them needs no credential here.
async fn tasks(server: &Lines) -> usize {
    let call = harness::http().get(format!("http://{}/v1/tasks?namespace=deploy", server.http));
    let page: Value = call.send().await.unwrap().json().await.unwrap();
    page["tasks"].as_array().unwrap().len()
}

/// The job is held, and runs only when the administrator has set its rule.
async fn is_held(server: Lines) {
    let mut admin = server.with(ADMIN).await;
    becomes(&mut admin, "deploy.call", "held").await;
    becomes(&mut admin, "deploy.x", "held").await;
    // Resumed alone it comes to nothing again.
    assert_eq!(admin.ask("r1 RESUME deploy.x").await, "r1 OK\n");
    becomes(&mut admin, "deploy.x", "held").await;
    let runs = admin.rows("HISTORY deploy.x").await;
    let outcomes: Vec<_> = runs.iter().map(|run| run.split(' ').nth(2).unwrap()).collect();
    assert_eq!(outcomes, ["held", "held"], "{runs:?}");
    assert_eq!(tasks(&server).await, 0);
    assert!(server.log().contains("authorization_revoked"), "{}", server.log());

    for line in [MAKES_A_TASK, CALLS, "r1 RESUME deploy.x", "r1 RESUME deploy.call"] {
        assert_eq!(admin.ask(line).await, "r1 OK\n");
    }
    becomes(&mut admin, "deploy.call", "failed").await;
    becomes(&mut admin, "deploy.x", "executed").await;
    assert_eq!(tasks(&server).await, 1);
}

#[tokio::test]
async fn se_63_a_job_of_a_line_token_is_held_when_the_token_is_gone_or_narrower() {
    let gone = THREE.split_once("[token.backup]").unwrap().1;
    let gone = format!("[token.backup]{gone}");
    assert!(!gone.contains("deploy"));
    let moved = THREE.replace("\"deploy.\"", "\"elsewhere.\"");
    let narrower = THREE.replace("\"deploy.\"", "\"deploy.only.\"");
    let after =
        async |file: &str| due_after_a_restart(Lines::guarded().await, Some(DEPLOY), file).await;
    let held = async |file: &str| is_held(after(file).await).await;
    // With another secret it is the same token: its jobs run.
    let renewed = THREE.replace(DEPLOY, "sk_new");
    let kept = async {
        let server = after(&renewed).await;
        becomes(&mut server.with(ADMIN).await, "deploy.x", "executed").await;
        becomes(&mut server.with(ADMIN).await, "deploy.call", "failed").await;
        assert_eq!(tasks(&server).await, 1);
    };
    tokio::join!(held(&gone), held(&moved), held(&narrower), kept);
}

#[tokio::test]
async fn se_60_se_63_a_job_of_nobody_is_held_once_there_is_an_auth_file() {
    is_held(due_after_a_restart(Lines::open().await, None, THREE).await).await;
}

#[tokio::test]
async fn se_62_a_rule_of_a_wider_owner_stays_as_it_is() {
    const MINE: &str = "deploy.mine deploy. http POST https://hooks.example/x";
    let mut server = Lines::guarded().await;
    let set = format!("r1 RULE SET {MINE}");
    assert_eq!(server.with(ADMIN).await.ask(&set).await, "r1 OK\n");
    // As it was set, and as it is read from the disk.
    for _ in 0..2 {
        let mut deploy = server.with(DEPLOY).await;
        for change in [
            &*set,
            "r1 RULE SET deploy.mine deploy. http POST https://other.example/x",
            "r1 RULE SET deploy.mine deploy.x http POST https://hooks.example/x",
            "r1 RULE SET deploy.mine deploy. task deploy/t",
            "r1 REMOVERULE deploy.mine",
        ] {
            assert_eq!(deploy.ask(change).await, DENIED, "{change}");
            assert_eq!(deploy.rows("LISTRULES").await, [MINE], "{change}");
        }
        server = server.again(AUTH_FILE).await;
    }
    // Without it the name is free; what is the token's own it may change, and
    // so may the administrator.
    let (mut admin, mut deploy) = (server.with(ADMIN).await, server.with(DEPLOY).await);
    assert_eq!(admin.ask("r1 REMOVERULE deploy.mine").await, "r1 OK\n");
    assert_eq!(deploy.ask(MAKES_A_TASK).await, "r1 OK\n");
    for wire in [&mut deploy, &mut admin] {
        assert_eq!(wire.ask(&set).await, "r1 OK\n");
    }
    assert_eq!(deploy.ask("r1 REMOVERULE deploy.mine").await, DENIED);
}
