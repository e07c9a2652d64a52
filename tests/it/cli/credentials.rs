//! Which credential goes with a call, as a stub server sees it.

use std::{
    convert::Infallible,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
};

use bailiwick::config::Settings;
use bailiwick_client::Auth;
use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use crate::harness::{
    ROOT_KEY, Ran, Server,
    credentials::{self, Token},
    process::bailiwick,
    run,
};

/// A server that records the headers of every call and refuses each.
#[derive(Clone, Default)]
struct Stub {
    seen: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Stub {
    async fn start() -> (Self, SocketAddr) {
        let (this, listener) = (Self::default(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        #[expect(clippy::disallowed_methods, reason = "the test's runtime ends with the test")]
        tokio::spawn(this.clone().serve(listener));
        (this, address)
    }

    async fn serve(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = Arc::clone(&self.seen);
            let service =
                hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    seen.lock().unwrap().push(request.headers().clone());
                    let refused = Response::builder()
                        .header("content-type", "application/grpc")
                        .header("grpc-status", "16")
                        .body(Empty::<Bytes>::new());
                    async move { Ok::<_, Infallible>(refused.unwrap()) }
                });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            #[expect(clippy::disallowed_methods, reason = "the test's runtime ends with the test")]
            tokio::spawn(connection);
        }
    }

    /// The headers of the one call since the last look.
    fn call(&self) -> HeaderMap {
        let mut seen = self.seen.lock().unwrap();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.pop().unwrap()
    }
}

/// Lists tasks with this environment, these arguments and this home.
async fn list(environment: &[(&str, &str)], args: &[&str], home: &str) -> Ran {
    let mut command = bailiwick();
    command.env("HOME", home).envs(environment.iter().copied()).args(["task", "list"]).args(args);
    run(command).await
}

#[tokio::test]
async fn tk_49_the_nearest_credential_goes_with_the_call() {
    let (stub, address) = Stub::start().await;
    let url = format!("http://{address}");
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/bailiwick");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.toml"), format!("url = '{url}'\ntoken_file = 'secret'\n"))
        .unwrap();
    fs::write(folder.join("secret"), "from-profile\n").unwrap();
    let file = home.path().join("token");
    fs::write(&file, "from-token-file\n").unwrap();
    let file = file.to_str().unwrap();
    let home = home.path().to_str().unwrap();
    let sent = async |environment: &[(&str, &str)], args: &[&str]| {
        let ran = list(environment, args, home).await;
        assert_eq!(ran.code, Some(1), "{ran}");
        let headers = stub.call();
        let one = |name: &str| {
            assert!(headers.get_all(name).iter().count() < 2, "{headers:?}");
            headers.get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        (one("authorization"), one("x-api-key"))
    };
    let bearer = |token: &str| (Some(format!("Bearer {token}")), None);
    let key = |key: &str| (None, Some(key.to_owned()));
    assert_eq!(sent(ALL, &[]).await, bearer("own"));
    assert_eq!(sent(&ALL[1..], &[]).await, bearer("global"), "TK-08");
    assert_eq!(sent(&ALL[2..], &[]).await, key("key"));
    assert_eq!(sent(&ALL[3..], &[]).await, bearer("from-profile"));
    assert_eq!(sent(&[], &[]).await, bearer("from-profile"));
    assert_eq!(sent(ALL, &["--token", "flag"]).await, bearer("flag"));
    assert_eq!(sent(ALL, &["--token-file", file]).await, bearer("from-token-file"));
    assert_eq!(sent(ALL, &["--api-key", "flag"]).await, key("flag"));
}

/// All variables, the nearest first.
const ALL: &[(&str, &str)] = &[
    ("BAILIWICK_ORCHESTRATION_AUTH_TOKEN", "own"),
    ("BAILIWICK_AUTH_TOKEN", "global"),
    ("BAILIWICK_API_KEY", "key"),
    ("BAILIWICK_WORKER_AUTH_TOKEN", "workers"),
];

#[tokio::test]
async fn tk_50_the_header_of_the_key_has_a_name() {
    let (stub, address) = Stub::start().await;
    let url = format!("http://{address}");
    let url = ("BAILIWICK_URL", url.as_str());
    let key = ("BAILIWICK_API_KEY", "key");
    list(&[url, key], &[], "/nonexistent").await;
    assert_eq!(stub.call()["x-api-key"], "key");
    list(&[url, key, ("BAILIWICK_API_KEY_HEADER", "X-Corp-Key")], &[], "/nonexistent").await;
    let headers = stub.call();
    assert_eq!((&headers["x-corp-key"], headers.get("x-api-key")), (&"key".parse().unwrap(), None));
    let flags = ["--api-key", "flag", "--api-key-header", "X-Flag-Key"];
    list(&[url], &flags, "/nonexistent").await;
    assert_eq!(stub.call()["x-flag-key"], "flag");
}

/// A home whose client's file says this, beside a file `secret`.
fn home(profile: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/bailiwick");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.toml"), profile).unwrap();
    fs::write(folder.join("secret"), "from-profile\n").unwrap();
    home
}

#[tokio::test]
async fn the_credential_of_the_file_stays_with_its_own_address() {
    let ((own, own_address), (other, other_address)) = (Stub::start().await, Stub::start().await);
    let (own_url, other_url) = (format!("http://{own_address}"), format!("http://{other_address}"));
    for credential in
        ["token = 'from-profile'", "token_file = 'secret'", "api_key = 'from-profile'"]
    {
        let home = home(&format!("url = '{own_url}'\n{credential}\n"));
        let home = home.path().to_str().unwrap();
        let silent = |headers: &HeaderMap| {
            !headers.values().any(|value| value.to_str().unwrap().contains("from-profile"))
        };
        for args in [&[][..], &["--url", &own_url]] {
            let ran = list(&[], args, home).await;
            assert!(!silent(&own.call()) && !ran.err.contains("note:"), "{ran}");
        }
        let (flag, variable) = (["--url", &*other_url], [("BAILIWICK_URL", &*other_url)]);
        for (environment, args) in [(&[][..], &flag[..]), (&variable, &[])] {
            let ran = list(environment, args, home).await;
            assert!(silent(&other.call()), "{ran}");
            let told = ran.err.contains("is not sent to") && ran.err.contains(&other_url);
            assert!(told && !ran.err.contains("from-profile"), "{ran}");
        }
        // What is given for the call goes with it, and needs no note.
        let ran = list(&[("BAILIWICK_AUTH_TOKEN", "given")], &flag, home).await;
        assert_eq!(other.call()["authorization"], "Bearer given", "{ran}");
        assert!(!ran.err.contains("note:"), "{ran}");

        // A worker's address is none of the server's, unless the file says so.
        let worker = async |home: &str, args: &[&str]| {
            let mut command = bailiwick();
            command.env("HOME", home).args(["worker", "templates"]).args(args);
            run(command).await
        };
        let ran = worker(home, &["--worker-url", &other_url]).await;
        assert!(silent(&other.call()) && ran.err.contains("`worker_url`"), "{ran}");
        let both =
            self::home(&format!("url = '{own_url}'\nworker_url = '{other_url}'\n{credential}\n"));
        let both = both.path().to_str().unwrap();
        for args in [&[][..], &["--worker-url", &other_url]] {
            let ran = worker(both, args).await;
            assert!(!silent(&other.call()) && !ran.err.contains("note:"), "{ran}");
        }
        worker(both, &["--worker-url", &own_url]).await;
        assert!(silent(&own.call()));
    }
}

#[tokio::test]
async fn no_credential_goes_over_the_network_in_plain_text() {
    let (stub, address) = Stub::start().await;
    // Not a loopback address, and yet this machine.
    let url = format!("http://0.0.0.0:{}", address.port());
    let flag = ["--url", &*url];
    let token = [("BAILIWICK_AUTH_TOKEN", "very-secret")];
    let file = home(&format!("url = '{url}'\ntoken = 'very-secret'\n"));
    let allowing = home(&format!("url = '{url}'\ntoken = 'very-secret'\nallow_plaintext = true\n"));
    let (file, allowing) = (file.path().to_str().unwrap(), allowing.path().to_str().unwrap());
    let nobody = "/nonexistent";
    for (environment, args, home) in [
        (&token[..], &flag[..], nobody),
        (&[("BAILIWICK_API_KEY", "very-secret")], &flag, nobody),
        (&[], &[flag[0], flag[1], "--token", "very-secret"], nobody),
        (&[], &[], file),
    ] {
        let refused = list(environment, args, home).await;
        assert_eq!(refused.code, Some(2), "{refused}");
        let told = refused.err.contains("--allow-plaintext") && refused.err.contains(&url);
        assert!(told && !refused.err.contains("very-secret"), "{refused}");
    }
    assert!(stub.seen.lock().unwrap().is_empty(), "nothing was called");

    let allowed = ("BAILIWICK_ALLOW_PLAINTEXT", "true");
    for (environment, args, home) in [
        (&token[..], &[flag[0], flag[1], "--allow-plaintext"][..], nobody),
        (&[token[0], allowed], &flag, nobody),
        (&[allowed], &[], file),
        (&[], &[], allowing),
    ] {
        let ran = list(environment, args, home).await;
        assert_eq!(stub.call()["authorization"], "Bearer very-secret", "{ran}");
    }
    // Without a credential there is nothing to read.
    let ran = list(&[], &flag, nobody).await;
    assert!(stub.call().get("authorization").is_none(), "{ran}");
}

#[tokio::test]
async fn wrong_credentials_on_the_command_line_are_wrong_usage() {
    let (stub, address) = Stub::start().await;
    let url = format!("http://{address}");
    let url = [("BAILIWICK_URL", url.as_str())];
    let home = tempfile::tempdir().unwrap();
    let empty = home.path().join("empty");
    fs::write(&empty, "\n").unwrap();
    for wrong in [
        &["--token", "a", "--api-key", "b"][..],
        &["--token", "a", "--token-file", "b"],
        &["--token-file", "/nonexistent/token"],
        &["--token-file", empty.to_str().unwrap()],
        &["--token", "two\nlines"],
    ] {
        let refused = list(&url, wrong, "/nonexistent").await;
        assert_eq!(refused.code, Some(2), "{wrong:?}: {refused}");
        assert!(!refused.said().contains("two\nlines"), "{refused}");
    }
    let folder = home.path().join(".config/bailiwick");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.toml"), "token = 'very-secret'\ntokn = 'very-secret'\n").unwrap();
    let refused = list(&url, &[], home.path().to_str().unwrap()).await;
    assert_eq!(refused.code, Some(2), "{refused}");
    assert!(refused.err.contains("line 2") && !refused.err.contains("very-secret"), "{refused}");
    assert!(stub.seen.lock().unwrap().is_empty(), "nothing was called");
}

#[tokio::test]
async fn tk_08_the_token_of_the_environment_opens_the_server() {
    let server = Server::start().await;
    let token = Token::new("ci", &["tasks:list"]).sign();
    let environment = [("BAILIWICK_URL", &*server.grpc_url()), ("BAILIWICK_AUTH_TOKEN", &token)];
    list(&environment, &[], "/nonexistent").await.good();
    let file = server.path("token");
    fs::write(&file, &token).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let args = ["--token-file", file.to_str().unwrap()];
    list(&environment[..1], &args, "/nonexistent").await.good();
}

#[tokio::test]
async fn no_output_holds_a_secret() {
    let server = Server::start().await;
    let token = Token::new("ci", &["steps:read"]).sign();
    let url = server.grpc_url();
    let secret = token.rsplit('.').next().unwrap();
    for args in [
        &["task", "list"][..],
        &["auth", "whoami"],
        &["auth", "whoami", "--format", "json"],
        &["config"],
        &["health"],
        &["task", "list", "--help"],
        &["task", "list", "--no-such-flag"],
        &["worker", "run", "--namespace", "shop", "--handler", "work=true"],
    ] {
        let mut command = bailiwick();
        command.env("BAILIWICK_URL", &url).env("BAILIWICK_AUTH_TOKEN", &token).args(args);
        let ran = run(command).await;
        assert!(!ran.said().contains(secret), "{args:?}: {ran}");
        let mut command = bailiwick();
        command.args(args).args(["--url", &url, "--api-key", ROOT_KEY]);
        if args[0] != "worker" {
            let ran = run(command).await;
            assert!(!ran.said().contains(ROOT_KEY), "{args:?}: {ran}");
        }
    }
    let logs = server.process.err.all().join("\n");
    assert!(logs.contains("\"subject\":\"ci\""), "the caller is named: {logs}");
    assert!(!logs.contains(secret) && !logs.contains(ROOT_KEY), "{logs}");
}

#[test]
fn no_debug_output_holds_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bailiwick.toml");
    fs::write(&path, credentials::configuration(folder.path())).unwrap();
    let settings = Settings::load(Some(&path), std::iter::empty()).unwrap();
    let key = ROOT_KEY.to_owned();
    let shown = [
        format!("{settings:#?}"),
        format!("{:?}", Auth::Bearer(key.clone())),
        format!("{:?}", Auth::ApiKey { key, header: None }),
        format!("{:?}", credentials::issuer()),
    ];
    let private = credentials::issuer().private.lines().nth(1).unwrap();
    for shown in shown {
        assert!(!shown.contains(ROOT_KEY) && !shown.contains(private), "{shown}");
    }
}
