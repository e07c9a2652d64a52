//! Rules that call over HTTP, through the front door: what is allowed is
//! called, and nothing else (SE-64).

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bailiwick::server::spawn;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    harness::{PATIENCE, ROOT_KEY, Server, Setup, http, run, steady_port},
    line::{THREE, folder},
    schedule_process::{OVER, job, rule, run as ended},
};

/// The same in nanoseconds.
const OVER_NS: i64 = 1_767_323_045_000_000_007;
const LOOPBACK: &str = "[limits]\negress_allow = [\"127.0.0.1/32\"]\n";
const USER: &str = "hook-user";
const PASSWORD: &str = "hook-p4ssw0rd";
const KEY: &str = "hook-s3cret-key";

/// Takes requests: `/moved` leads to `/landed`, all else is well.
#[derive(Clone, Debug)]
struct Hooks {
    at: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Hooks {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self { at: listener.local_addr().unwrap(), seen: Arc::default() };
        let serving = this.clone();
        spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                spawn(serving.clone().answer(stream));
            }
        });
        this
    }

    async fn answer(self, mut stream: TcpStream) {
        let mut request = Vec::new();
        let whole = loop {
            match stream.read_u8().await {
                Ok(byte) => request.push(byte),
                // A connection counts, whatever comes over it.
                Err(_) => break false,
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() == length.map_or(0, |length| length.parse().unwrap()) {
                break true;
            }
        };
        let text = String::from_utf8(request).unwrap();
        let answer = if text.contains(" /moved ") {
            format!("302 Found\r\nlocation: http://{}/landed", self.at)
        } else {
            "200 OK".to_owned()
        };
        self.seen.lock().unwrap().push(text);
        if whole {
            let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    /// The requests since the last look.
    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }
}

fn calls(method: &str, url: &str) -> Value {
    json!({"type": "http", "method": method, "url": url})
}

/// A rule of this address is not taken, and what is said shows none.
async fn assert_refused(server: &Server, url: &str) {
    let body = json!({"pattern": "refused.", "runner": calls("POST", url)});
    let (status, answer) = server.as_root("PUT", "/rules/refused", Some(body)).await;
    assert_eq!((status, &answer["reason"]), (400, &json!("FIELD_INVALID")), "{url}: {answer}");
    let message = answer["message"].as_str().unwrap();
    assert!(message.starts_with("runner.http.url: the address is not allowed"), "{url}: {message}");
    assert_eq!(server.as_root("GET", "/rules/refused", None).await.0, 404, "{url}");
}

/// A job of this rule is due; what its run said.
async fn outcome(server: &Server, id: &str, method: &str, url: &str) -> (Value, Value) {
    rule(server, id, calls(method, url)).await;
    let id = format!("{id}.a");
    job(server, &id).await;
    let ran = ended(server, &id).await;
    (ran["outcome"].clone(), ran["error"].clone())
}

/// What each of so many runs of a job said.
async fn tries(server: &Server, job: &str, count: usize) -> Vec<(Value, Value)> {
    let began = tokio::time::Instant::now();
    loop {
        let path = format!("/v1/jobs/{job}/runs");
        let (status, answer) = server.as_root("GET", &path, None).await;
        assert_eq!(status, 200, "{answer}");
        let runs = answer["runs"].as_array().unwrap();
        if runs.len() >= count {
            return runs.iter().map(|ran| (ran["outcome"].clone(), ran["error"].clone())).collect();
        }
        assert!(began.elapsed() < PATIENCE, "{answer}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn not_allowed() -> (Value, Value) {
    (json!("failed"), json!("no connection"))
}

#[tokio::test]
async fn se_64_a_rule_calls_what_is_allowed_and_nothing_else() {
    let (hooks, tokens) = (Hooks::start().await, folder(THREE));
    let auth_file = tokens.path().join("auth.toml");
    let rest = format!(
        "{LOOPBACK}[controller]\nlisten = \"127.0.0.1:0\"\nauth_file = {:?}\n",
        auth_file.display().to_string()
    );
    let mut server = Server::with(Setup { rest, ..Setup::default() }).await;

    let path = "/hooks/in?from=bailiwick&a=%20b";
    let done = (json!("executed"), Value::Null);
    assert_eq!(outcome(&server, "hook", "POST", &hooks.url(path)).await, done);
    let taken = hooks.taken();
    assert_eq!(taken.len(), 1, "{taken:?}");
    let (head, body) = taken[0].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("POST {path} HTTP/1.1\r\n")), "{head}");
    let lines: Vec<&str> = head.lines().collect();
    for line in [
        format!("host: {}", hooks.at),
        "content-type: application/json".to_owned(),
        format!("x-bailiwick-run: hook.a/{OVER_NS}/1"),
    ] {
        assert!(lines.contains(&&*line), "{line} in {head}");
    }
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body, json!({"job_id": "hook.a", "execution": OVER_NS}), "{OVER}");

    // Where an answer leads nobody goes.
    let moved = (json!("failed"), json!("status 302"));
    assert_eq!(outcome(&server, "moved", "GET", &hooks.url("/moved")).await, moved);
    let taken = hooks.taken();
    assert!(taken.len() == 1 && taken[0].starts_with("GET /moved "), "{taken:?}");

    let serving = server.logged("serving", &[]).await;
    let lines: SocketAddr = serving["controller"].as_str().unwrap().parse().unwrap();
    for url in [
        "http://169.254.169.254/",
        "http://10.0.0.1/",
        "http://[::ffff:10.0.0.1]/",
        "http://[::1]/",
        "http://127.0.0.2/",
        "http://0.0.0.0/",
        &format!("http://{}/", server.http),
        &format!("http://{}/", server.grpc),
        &format!("http://{lines}/"),
        &format!("http://2130706433:{}/", server.http.port()),
        &format!("http://[::ffff:127.0.0.1]:{}/", server.http.port()),
        &format!("http://[::ffff:127.0.0.1]:{}/", server.grpc.port()),
    ] {
        assert_refused(&server, url).await;
    }

    // A name is looked up when it is called, and leads to the server itself.
    let tasks = "bailiwick_requests_total{method=\"bailiwick.v1.TaskService/ListTasks\",\
                 surface=\"rest\",code=\"UNAUTHENTICATED\"}";
    let of_listener = format!("http://localhost:{}/v1/tasks", server.http.port());
    assert_eq!(outcome(&server, "own", "GET", &of_listener).await, not_allowed());
    assert_eq!(server.figure(tasks).await, None);
    // What would have arrived is seen.
    assert_eq!(http().get(server.url("/v1/tasks")).send().await.unwrap().status(), 401);
    assert_eq!(server.figure(tasks).await, Some(1.0));
    for (id, port) in [("grpc", server.grpc.port()), ("lines", lines.port())] {
        let url = format!("http://localhost:{port}/");
        assert_eq!(outcome(&server, id, "GET", &url).await, not_allowed(), "{id}");
    }
    assert_eq!(hooks.taken(), Vec::<String>::new());
    server.assert_sound();
}

#[tokio::test]
async fn se_64_nothing_inside_is_called_unless_it_is_allowed() {
    let hooks = Hooks::start().await;
    let mut server = Server::with(Setup::steady()).await;
    let port = hooks.at.port();
    for host in ["127.0.0.1", "127.1", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0"] {
        assert_refused(&server, &format!("http://{host}:{port}/")).await;
    }
    let name = format!("http://localhost:{port}/");
    assert_eq!(outcome(&server, "name", "POST", &name).await, not_allowed());
    assert_eq!(hooks.taken(), Vec::<String>::new());
    // Which names there are inside is not told: one that does not exist and one
    // that leads there look the same, in how often they are tried too.
    let mut told = Vec::new();
    for (id, host) in [("absent", "no.such.invalid"), ("inside", "localhost")] {
        let runner = calls("POST", &format!("http://{host}:{port}/"));
        let retry = json!({"max_attempts": 2, "backoff_base_ms": 1, "max_backoff_ms": 1});
        let body = json!({"pattern": format!("{id}."), "runner": runner, "retry": retry});
        let (status, set) = server.as_root("PUT", &format!("/rules/{id}"), Some(body)).await;
        assert_eq!(status, 200, "{set}");
        job(&server, &format!("{id}.a")).await;
        ended(&server, &format!("{id}.a")).await;
        told.push(tries(&server, &format!("{id}.a"), 2).await);
    }
    assert_eq!(told, [vec![not_allowed(), not_allowed()], vec![not_allowed(), not_allowed()]]);

    // It is decided when it is called: a rule outlives what was allowed.
    let open = Setup { rest: LOOPBACK.to_owned(), ..Setup::steady() };
    server = server.again_with(open).await;
    let done = (json!("executed"), Value::Null);
    assert_eq!(outcome(&server, "written", "POST", &hooks.url("/")).await, done);
    assert_eq!(outcome(&server, "name", "POST", &name).await, done);
    assert_eq!(hooks.taken().len(), 2);
    server = server.again_with(Setup::steady()).await;
    job(&server, "written.b").await;
    let ran = ended(&server, "written.b").await;
    assert_eq!((ran["outcome"].clone(), ran["error"].clone()), not_allowed());
    assert_eq!(hooks.taken(), Vec::<String>::new());
    server.assert_sound();
}

#[tokio::test]
async fn se_64_the_credentials_of_an_address_are_shown_to_nobody() {
    let hooks = Hooks::start().await;
    let setup = Setup { rest: LOOPBACK.to_owned(), ..Setup::default() };
    let mut server = Server::with(setup).await;
    let login = format!("{USER}:{PASSWORD}");
    let url = format!("http://{login}@{}/in?key={KEY}&to=", hooks.at);
    let shown = format!("http://***@{}/in?key=***&to=", hooks.at);
    let basic = STANDARD.encode(&login);
    let mut said = String::new();

    let body = json!({"pattern": "hook.", "runner": calls("PUT", &url)});
    let (status, set) = server.as_root("PUT", "/rules/hook", Some(body)).await;
    assert_eq!((status, &set["runner"]["url"]), (200, &json!(shown)), "{set}");
    job(&server, "hook.a").await;
    assert_eq!(ended(&server, "hook.a").await["outcome"], "executed");
    let taken = hooks.taken();
    assert!(taken.len() == 1 && taken[0].contains(&format!("Basic {basic}\r\n")), "{taken:?}");
    assert!(taken[0].starts_with(&format!("PUT /in?key={KEY}&to= HTTP/1.1\r\n")), "{taken:?}");

    for path in ["/rules/hook", "/v1/rules/hook", "/rules", "/v1/rules"] {
        let (status, answer) = server.as_root("GET", path, None).await;
        assert_eq!(status, 200, "{answer}");
        assert!(answer.to_string().contains(&shown), "{path}: {answer}");
        said.push_str(&answer.to_string());
    }
    let key = [("x-api-key", ROOT_KEY)];
    let listed = server.grpc("ScheduleService/ListRules", json!({}), &key).await.unwrap();
    assert!(listed.to_string().contains(&shown), "{listed}");
    let mut command = server.cli();
    command.args(["schedule", "rules", "list"]);
    let table = run(command).await.good();
    assert!(table.contains(&shown), "{table}");

    // Nor what is wrong with it, when it is set and when it is called.
    let gone = format!("http://{login}@127.0.0.1:{}/", steady_port());
    let failed = (json!("failed"), json!("no connection"));
    assert_eq!(outcome(&server, "gone", "POST", &gone).await, failed);
    let own = format!("http://{login}@localhost:{}/", server.http.port());
    assert_eq!(outcome(&server, "own", "POST", &own).await, not_allowed());
    assert_refused(&server, &format!("http://{login}@10.0.0.1/")).await;
    let half = shown.replace("***@", "");
    for url in [format!("ftp://{login}@h/"), format!("http://{login}@h/ x"), shown.clone(), half] {
        let body = json!({"pattern": "hook.", "runner": calls("PUT", &url)});
        let (status, answer) = server.as_root("PUT", "/rules/wrong", Some(body)).await;
        assert_eq!(status, 400, "{answer}");
        said.push_str(&answer.to_string());
    }
    for path in ["/v1/jobs/gone.a/runs", "/v1/jobs/hook.a/runs", "/v1/jobs"] {
        said.push_str(&server.as_root("GET", path, None).await.1.to_string());
    }
    server.assert_sound();
    let log = [server.process.err.all(), server.process.out.all()].concat().join("\n");
    assert!(log.contains("serving"), "{log}");
    for secret in [USER, PASSWORD, KEY, &basic] {
        for text in [&said, &set.to_string(), &listed.to_string(), &table, &log] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}
