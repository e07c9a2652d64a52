//! Bad input at the front door: each is a clear error, nothing is lost, no
//! part panics, and others are served meanwhile.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{
    self, ORDER, ROOT_KEY, Server, Setup,
    wire::{self, Wire},
};

const ROOT: (&str, &str) = ("x-api-key", ROOT_KEY);
const CREATE: &str = "POST /v1/tasks";

/// A server with one task, and somebody who goes on using it.
struct Besieged {
    server: Server,
    task: String,
    served: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    other: tokio::task::JoinHandle<()>,
}

impl Besieged {
    async fn begin(setup: Setup) -> Self {
        let server = Server::with(setup).await.with_template().await;
        let task = server.order(json!({"kept": true})).await;
        let (served, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, ending) = (Arc::clone(&served), Arc::clone(&stop));
        let url = server.url(&format!("/v1/tasks/{task}"));
        #[expect(clippy::disallowed_methods, reason = "the test waits for it at its end")]
        let other = tokio::spawn(async move {
            let client = harness::http();
            while !ending.load(Ordering::Relaxed) {
                let answer = client.get(&url).header(ROOT.0, ROOT.1).send().await.unwrap();
                assert_eq!(answer.status(), 200, "somebody else is not served");
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { server, task, served, stop, other }
    }

    /// Others were served all along, nothing is lost, nothing panicked.
    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.other).await.unwrap();
        assert!(self.served.load(Ordering::Relaxed) > 0);
        let (_, list) = self.server.as_root("GET", "/v1/tasks", None).await;
        assert_eq!(list["tasks"].as_array().unwrap().len(), 1, "{list}");
        let path = format!("/v1/tasks/{}/context", self.task);
        let (_, context) = self.server.as_root("GET", &path, None).await;
        assert_eq!(context["context"], json!({"kept": true}));
        self.server.assert_sound();
    }

    /// A body that is refused with a text that says why.
    async fn refused(&self, line: &str, body: impl AsRef<[u8]>) -> (u16, Value) {
        let body = body.as_ref();
        let answer = wire::send(self.server.http, wire::post(line, &[ROOT], body)).await;
        let start = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let json = answer.json();
        assert!((400..500).contains(&answer.status), "{start}: {json}");
        assert!(json["message"].as_str().is_some_and(|text| text.len() > 8), "{start}: {json}");
        assert_eq!(json["request_id"].as_str(), answer.header("x-request-id"));
        (answer.status, json)
    }
}

#[tokio::test]
async fn malformed_json_and_unknown_fields() {
    let siege = Besieged::begin(Setup::default()).await;
    for body in [
        "{",
        "}",
        "[",
        "[]",
        "null",
        "1",
        "\"text\"",
        "{}{}",
        "{\"namespace\"}",
        "{\"namespace\": }",
        "{\"namespace\": \"shop\",}",
        "{'namespace': 'shop'}",
        "{namespace: \"shop\"}",
        "nul",
        "\u{feff}{}",
        "{\"namespace\": \"shop\" \"name\": \"order\"}",
        "{\"a\": NaN}",
        "{\"priority\": 01}",
        "{\"namespace\": \"\\ud800\"}",
        "{\"namespace\": \"a\nb\"}",
        "/* */{}",
        "\0",
        " \t\r\n",
        "{\"priority\": 1.5}",
        "{\"priority\": \"x\"}",
        "{\"priority\": 99999999999}",
        "{\"tags\": {}}",
        "{\"tags\": [1]}",
        "{\"tags\": [null]}",
        "{\"namespace\": 1}",
        "{\"name\": {}}",
        "{\"unknown\": 1}",
        "{\"namespace\": \"shop\", \"name\": \"order\", \"conText\": {}}",
        "{\"\": 1}",
        "{\"task.name\": 1}",
    ] {
        let (status, answer) = siege.refused(CREATE, body).await;
        assert_eq!(status, 400, "{body:?}: {answer}");
        assert_eq!(answer["code"], "INVALID_ARGUMENT", "{body:?}");
    }
    for body in
        [&b"{\"namespace\": \"\xff\"}"[..], b"\xfe\xff\x00{", b"{\"namespace\": \"\xc3\x28\"}"]
    {
        assert_eq!(siege.refused(CREATE, body).await.0, 400, "{body:?}");
    }
    // No answer echoes a kilobyte of rubbish.
    let (_, answer) = siege.refused(CREATE, format!("{{\"{}\": 1}}", "x".repeat(100_000))).await;
    assert!(answer.to_string().len() < 2_000, "{answer}");
    // gRPC: bytes that are no message, and JSON that is none within one.
    for context in ["{", "[]", "1", "{\"a\":1,\"a\":2}x", "\u{0}"] {
        let request = json!({"namespace": "shop", "name": "order", "context": context});
        let refused = siege.server.grpc("TaskService/CreateTask", request, &[ROOT]).await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument, "{context:?}");
    }
    siege.end().await;
}

#[tokio::test]
async fn bodies_over_the_limit() {
    let siege = Besieged::begin(Setup::default()).await;
    let text = "x".repeat(4 << 20);
    let body = json!({"namespace": "shop", "name": "order", "reason": text}).to_string();
    // The length says it: the answer is there before the body is.
    let request = wire::post(CREATE, &[ROOT], &body);
    let answer = wire::send(siege.server.http, &request[..1 << 20]).await;
    assert_eq!((answer.status, &*answer.reason()), (413, "BODY_TOO_LARGE"));
    assert!(answer.json()["message"].as_str().unwrap().contains("4194304"), "{answer:?}");
    // Without a length beforehand.
    let mut wire = Wire::open(siege.server.http).await;
    let headers = [ROOT, ("content-type", "application/json"), ("transfer-encoding", "chunked")];
    wire.write(wire::head(CREATE, &headers)).await.unwrap();
    for part in body.as_bytes().chunks(64 << 10) {
        let mut chunk = format!("{:x}\r\n", part.len()).into_bytes();
        chunk.extend_from_slice(part);
        chunk.extend_from_slice(b"\r\n");
        if wire.write(chunk).await.is_err() {
            break;
        }
    }
    // The rest may be cut off: the answer is there all the same.
    let _ = wire.write("0\r\n\r\n").await;
    let answer = wire.answer(false).await.unwrap();
    assert_eq!((answer.status, &*answer.reason()), (413, "BODY_TOO_LARGE"));

    let request = json!({"namespace": "shop", "name": "order", "reason": text});
    let refused = siege.server.grpc("TaskService/CreateTask", request, &[ROOT]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(String::from_utf8_lossy(refused.details()).contains("BODY_TOO_LARGE"), "{refused:?}");
    // Within the body's limit and over the context's.
    let context =
        json!({"namespace": "shop", "name": "order", "context": {"a": "x".repeat(1 << 20)}});
    let (status, answer) = siege.refused(CREATE, context.to_string()).await;
    assert_eq!(status, 400, "{answer}");
    // What takes no body gets none.
    let (status, _) = siege.refused("DELETE /v1/tasks/x", "{}").await;
    assert_eq!(status, 400);
    siege.end().await;
}

fn nested(depth: usize, open: &str, close: &str) -> String {
    format!("{}1{}", open.repeat(depth), close.repeat(depth))
}

#[tokio::test]
async fn json_nested_too_deep() {
    let siege = Besieged::begin(Setup::default()).await;
    let body = |context: &str| {
        format!("{{\"namespace\":\"shop\",\"name\":\"none\",\"context\":{context}}}")
    };
    // At the limit it is the template that is missing.
    let (status, answer) = siege.refused(CREATE, body(&nested(128, "{\"a\":", "}"))).await;
    assert_eq!((status, &answer["code"]), (404, &json!("NOT_FOUND")), "{answer}");
    for depth in [129, 1_000, 200_000] {
        let (status, answer) = siege.refused(CREATE, body(&nested(depth, "{\"a\":", "}"))).await;
        assert_eq!(status, 400, "{depth}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains("128"), "{answer}");
        let context = format!("{{\"a\":{}}}", nested(depth, "[", "]"));
        assert_eq!(siege.refused(CREATE, body(&context)).await.0, 400, "{depth}");
        let request = json!({"namespace": "shop", "name": "none", "context": context});
        let refused = siege.server.grpc("TaskService/CreateTask", request, &[ROOT]).await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument, "{depth}");
    }
    for body in ["[".repeat(1 << 20), "{\"a\":".repeat(1 << 19), nested(1 << 19, "[", "]")] {
        assert_eq!(siege.refused(CREATE, body).await.0, 400);
    }
    // In a field that is unknown, and in a lease's result.
    let (status, _) = siege.refused(CREATE, format!("{{\"x\":{}}}", nested(300, "[", "]"))).await;
    assert_eq!(status, 400);
    let result = format!("{{\"lease_id\":\"x\",\"result\":{}}}", nested(129, "[", "]"));
    assert_eq!(siege.refused("POST /v1/work/complete", result).await.0, 400);
    siege.end().await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one list of attacks")]
async fn headers_and_targets_that_are_no_text() {
    let siege = Besieged::begin(Setup::default()).await;
    let get =
        |header: &[u8]| [b"GET /v1/tasks HTTP/1.1\r\nhost: x\r\n", header, b"\r\n\r\n"].concat();
    let http = siege.server.http;
    for header in [
        &b"authorization: Bearer \xff\xfe"[..],
        b"authorization: \xff",
        b"x-api-key: \xc3\x28",
        b"x-api-key: test-root-key-1f0c7f2f9a\xff",
        b"authorization: Bearer \x80.\x80.\x80",
    ] {
        let answer = wire::send(http, get(header)).await;
        assert_eq!((answer.status, &*answer.reason()), (401, "CREDENTIALS_INVALID"), "{header:?}");
    }
    let key = format!("x-api-key: {ROOT_KEY}\r\n");
    let root = |header: &[u8]| get(&[key.as_bytes(), header].concat());
    // What means nothing to us, or is only passed on, does no harm.
    for header in [
        &b"x-anything: \xff\xfe"[..],
        b"user-agent: \xff",
        b"traceparent: \xff",
        b"accept: \xff",
        b"tracestate: \xff=\xff",
        b"x-request-id: \xff",
        b"origin: \xff",
        b"cookie: \xff",
    ] {
        assert_eq!(wire::send(http, root(header)).await.status, 200, "{header:?}");
    }
    let request = [
        b"POST /v1/tasks HTTP/1.1\r\nhost: x\r\n",
        key.as_bytes(),
        b"content-type: \xff\r\ncontent-length: 2\r\n\r\n{}",
    ];
    assert_eq!(wire::send(http, request.concat()).await.status, 415);
    // Not HTTP: refused, and the connection is closed.
    for request in [
        root(b"bad name: x"),
        root(b"x\xff: y"),
        root(b"x: a\x00b"),
        root(b": x"),
        root(b"x : y"),
        b"GET /v1/tasks\xff HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        root(b"content-length: 1\r\ncontent-length: 2"),
        root(b"content-length: x"),
        get(&[b"x: ".as_slice(), &b"a".repeat(200_000)].concat()),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
    ] {
        let mut wire = Wire::open(http).await;
        let _ = wire.write(&request).await;
        if let Some(answer) = wire.answer(false).await {
            assert!((400..500).contains(&answer.status), "{request:?}: {answer:?}");
        }
        assert!(wire.closes_within(Duration::from_secs(20)).await, "{request:?}");
    }
    for target in [
        "/v1/tasks/%ff",
        "/v1/tasks/%zz",
        "/v1/tasks?name=%ff",
        "/v1/tasks?%zz=1",
        "/v1/tasks?name=%f",
    ] {
        let answer = wire::send(http, wire::head(&format!("GET {target}"), &[ROOT])).await;
        assert!(matches!(answer.status, 400 | 404), "{target}: {}", answer.status);
    }
    // The same by HTTP/2.
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let bad = reqwest::header::HeaderValue::from_bytes(b"Bearer \xff").unwrap();
    let call = client.get(siege.server.url("/v1/tasks")).header("authorization", bad.clone());
    assert_eq!(call.send().await.unwrap().status(), 401);
    let path = format!("{}/bailiwick.v1.TaskService/ListTasks", siege.server.grpc_url());
    let call = client.post(path).header("authorization", bad).body(vec![0; 5]);
    let answer = call.header("content-type", "application/grpc").send().await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "16");
    siege.end().await;
}

#[tokio::test]
async fn grpc_bytes_that_are_no_message() {
    let siege = Besieged::begin(Setup::default()).await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .timeout(harness::PATIENCE)
        .build()
        .unwrap();
    let path = format!("{}/bailiwick.v1.TaskService/GetTask", siege.server.grpc_url());
    let frame = |flag: u8, length: u32, message: &[u8]| {
        let mut frame = vec![flag];
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(message);
        frame
    };
    for body in [
        frame(0, 3, b"\x0a\xff\xff"),
        frame(0, 2, b"\x0f\x00"),
        frame(0, 4, b"\x0a\x02\xff\xfe"),
        frame(1, 3, b"abc"),
        frame(9, 3, b"abc"),
        frame(0, u32::MAX, b"abc"),
        frame(0, 100, b"abc"),
        b"\0\0".to_vec(),
        Vec::new(),
    ] {
        let call = client.post(&path).header(ROOT.0, ROOT.1).header("te", "trailers");
        let call = call.header("content-type", "application/grpc").body(body.clone());
        let answer = call.send().await.unwrap();
        let status = answer.headers().get("grpc-status").map(|status| status.to_str().unwrap());
        assert!(status.is_some_and(|status| status != "0"), "{body:?}: {answer:?}");
        // Theirs, not ours.
        assert!(!matches!(status, Some("2" | "14" | "15")), "{body:?}: {answer:?}");
    }
    siege.end().await;
}

/// Each level names the one before it nine times.
fn bomb() -> String {
    let mut text = String::from(
        "name: bomb\nnamespace_name: shop\nversion: 1.0.0\nmetadata:\n  a0: &a0 lol\n",
    );
    for level in 1..30 {
        let before = level - 1;
        let aliases = vec![format!("*a{before}"); 9].join(", ");
        let _ = writeln!(text, "  a{level}: &a{level} [{aliases}]");
    }
    text + "steps:\n  - name: only\n    handler: {callable: work}\n"
}

#[tokio::test]
async fn templates_that_are_too_much() {
    let setup = Setup { rest: "[limits]\nbody_bytes = 67108864\n".to_owned(), ..Setup::default() };
    let siege = Besieged::begin(setup).await;
    let comment = format!("{ORDER}# {}\n", "x".repeat(10 << 20));
    let mut steps = String::new();
    for step in 0..180_000 {
        let _ = writeln!(steps, "  - {{name: s{step}, handler: {{callable: work}}}}");
    }
    let many = format!("name: many\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n{steps}");
    let long = ORDER.replace("only", &"x".repeat(10 << 20));
    let deep = format!("{ORDER}metadata: {}\n", nested(100_000, "[", "]"));
    let cyclic = format!("{ORDER}metadata: &a [*a]\n");
    let keys = format!("{ORDER}metadata: {{? {} : 1}}\n", nested(5_000, "[", "]"));
    for (what, definition) in [
        ("10 MB of comment", comment),
        ("10 MB of steps", many),
        ("10 MB of a name", long),
        ("an alias bomb", bomb()),
        ("deep", deep),
        ("a cycle of aliases", cyclic),
        ("deep keys", keys),
        ("no YAML", "\t\0: [".to_owned()),
        ("nothing", String::new()),
    ] {
        let begun = tokio::time::Instant::now();
        let body = json!({"namespace": "shop", "definition": definition});
        let (status, answer) = siege.refused("POST /v1/templates", body.to_string()).await;
        assert_eq!(status, 400, "{what}: {answer}");
        assert!(answer.to_string().len() < 20_000, "{what}: the answer is long");
        let (status, answer) =
            siege.server.as_root("POST", "/v1/templates/validate", Some(body)).await;
        let found = status == 200 && answer["valid"] == false && answer["errors"][0].is_object();
        assert!(found || status == 400, "{what}: {status} {answer}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}: {:?}", begun.elapsed());
    }
    let (_, list) = siege.server.as_root("GET", "/v1/templates", None).await;
    assert_eq!(list["templates"].as_array().unwrap().len(), 1);
    siege.end().await;
}

#[tokio::test]
async fn ten_megabytes_by_the_usual_limit() {
    let siege = Besieged::begin(Setup::default()).await;
    let definition = format!("{ORDER}# {}\n", "x".repeat(10 << 20));
    let body = json!({"namespace": "shop", "definition": definition});
    // Over one MiB is not drained: the answer may be lost to who goes on writing.
    let mut wire = Wire::open(siege.server.http).await;
    let request = wire::post("POST /v1/templates", &[ROOT], body.to_string());
    let end = request.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
    wire.write(&request[..end]).await.unwrap();
    let answer = wire.answer(false).await.unwrap();
    assert_eq!((answer.status, &*answer.reason()), (413, "BODY_TOO_LARGE"));
    let refused = siege.server.grpc("TemplateService/RegisterTemplate", body, &[ROOT]).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    siege.end().await;
}

#[tokio::test]
async fn a_second_server_on_the_same_folder_is_refused() {
    let siege = Besieged::begin(Setup::default()).await;
    let data = siege.server.path("data/bailiwick.db");
    let url = format!("sqlite:{}", data.display());
    let setup = Setup {
        environment: vec![("BAILIWICK__STORAGE__URL".to_owned(), url)],
        ..Setup::default()
    };
    let said = harness::refused(&setup).await;
    assert!(said.contains("bailiwick.db") || said.contains("data"), "{said}");
    assert!(said.contains("another") || said.contains("in use") || said.contains("lock"), "{said}");
    siege.end().await;
}
