//! `bailiwick worker run` against a server: shell commands as the handlers of
//! steps, end to end.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use bailiwick::pb::v1 as pb;
use serde_json::{Value, json};
use tokio::{process::Command, time::Instant};

use crate::harness::{PATIENCE, Process, ROOT_KEY, Server};

/// A worker of the namespace `shop`, once its stream is open.
async fn worker(server: &Server, args: &[&str]) -> Process {
    start(server.cli(), args).await
}

async fn start(mut command: Command, args: &[&str]) -> Process {
    command.args(["worker", "run", "--namespace", "shop"]).args(args);
    let worker = Process::start(command);
    assert!(says(&worker, "the stream is open").await, "{:?}", worker.err.all());
    worker
}

async fn says(process: &Process, text: &str) -> bool {
    process.err.wait_for(|line| line.contains(text).then_some(())).await.is_some()
}

/// Waits until a file is there and holds something; the handlers of these
/// tests tell what they do by files.
async fn file(path: &Path) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        match fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text,
            _ => assert!(Instant::now() < until, "{} is never written", path.display()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const DIAMOND: &str = "  - {name: a, handler: {callable: start}}
  - {name: b, handler: {callable: add}, dependencies: [a]}
  - {name: c, handler: {callable: add}, dependencies: [a]}
  - {name: d, handler: {callable: join}, dependencies: [b, c]}";

/// One step of a handler, with one attempt.
fn single(callable: &str, more: &str) -> String {
    format!(
        "  - name: only\n    handler: {{callable: {callable}}}\n    retry: {{max_attempts: 1}}\n{more}"
    )
}

#[tokio::test]
async fn results_of_parents_reach_their_children() {
    let server = Server::start().await;
    server.template("diamond", DIAMOND).await;
    let script =
        |code: &str| format!("python3 -c 'import json, sys; i = json.load(sys.stdin); {code}'");
    let begin = format!("start={}", script(r#"print(json.dumps({"n": i["context"]["n"]}))"#));
    let add = format!(
        "add={}",
        script(
            r#"print(json.dumps({"n": i["results"]["a"]["n"] + len(i["step"]["name"]), "who": i["step"]["name"]}))"#
        )
    );
    let join = format!("join={}", script("print(json.dumps(i))"));
    let args = ["--handler", &begin, "--handler", &add, "--handler", &join, "--name", "w"];
    let mut worker = worker(&server, &args).await;
    let task = server.task("diamond", r#"{"n": 41}"#).await;
    assert_eq!(server.ended(&task).await["state"], "complete");
    let seen = server.step(&task, "d").await["result"].clone();
    assert_eq!(seen["context"], json!({"n": 41}));
    let parents = json!({"b": {"n": 42, "who": "b"}, "c": {"n": 42, "who": "c"}});
    assert_eq!(seen["results"], parents, "the direct parents alone");
    let step = &seen["step"];
    assert_eq!((&step["task_uuid"], &step["name"]), (&json!(task), &json!("d")));
    assert_eq!((&step["attempt"], &step["namespace"]), (&json!(1), &json!("shop")));
    let listed = server.run_json(&["worker", "list"]).await;
    assert_eq!(listed["workers"][0]["connected"], true, "{listed}");
    worker.terminate();
    assert_eq!(worker.exit().await, Some(0));
}

#[tokio::test]
async fn se_19_a_handler_sees_a_clean_environment() {
    let server = Server::start().await;
    server.template("env", &single("show", "")).await;
    let mut command = server.cli();
    command.env("WANTED", "yes").env("SECRET_OF_OPERATOR", "no").env("LC_ALL", "C.UTF-8");
    command.env("BAILIWICK_WORKER_AUTH_TOKEN", "worker-secret");
    let dump = server.path("environment");
    let show = format!("show=cat /proc/$$/environ > {}", dump.display());
    let _worker = start(command, &["--pass-env", "WANTED", "--handler", &show]).await;
    let task = server.task("env", r#"{"PATH": "evil", "LD_PRELOAD": "evil"}"#).await;
    assert_eq!(server.ended(&task).await["state"], "complete");
    let dump = fs::read_to_string(dump).unwrap();
    let seen: BTreeMap<&str, &str> =
        dump.split_terminator('\0').map(|variable| variable.split_once('=').unwrap()).collect();
    let names: Vec<&str> = seen.keys().copied().collect();
    let expected = ["HOME", "LC_ALL", "PATH", "WANTED"];
    assert_eq!(names, expected);
    assert_eq!(seen["WANTED"], "yes");
    assert!(!seen.values().any(|value| value.contains(ROOT_KEY) || value.contains("secret")));
}

#[tokio::test]
async fn failures_say_the_exit_code_and_the_end_of_stderr() {
    let server = Server::start().await;
    let twice = "  - name: only\n    handler: {callable: CALL}\n    retry: {max_attempts: 2, backoff: fixed, backoff_base_ms: 10}";
    for name in ["exit3", "exit65", "signal", "garbage", "flaky"] {
        server.template(name, &twice.replace("CALL", name)).await;
    }
    let flaky = r#"flaky=grep -q '"attempt":2' || { echo later >&2; exit 1; }; echo '"done"'"#;
    let args = [
        "--handler",
        "exit3=echo no paper >&2; exit 3",
        "--handler",
        "exit65=echo never >&2; exit 65",
        "--handler",
        "signal=kill -9 $$",
        "--handler",
        "garbage=echo this is no JSON",
        "--handler",
        flaky,
    ];
    let _worker = worker(&server, &args).await;
    for (name, attempts, error) in [
        ("exit3", 2, "exit status 3: no paper"),
        ("exit65", 1, "exit status 65: never"),
        ("signal", 2, "killed by signal 9"),
        ("garbage", 1, "the handler's output is not JSON"),
    ] {
        let task = server.task(name, "{}").await;
        assert_eq!(server.ended(&task).await["state"], "blocked_by_failures", "{name}");
        let step = server.step(&task, "only").await;
        assert_eq!(
            (&step["state"], &step["attempts"]),
            (&json!("error"), &json!(attempts)),
            "{step}"
        );
        assert!(step["last_error"].as_str().unwrap().contains(error), "{step}");
    }
    let task = server.task("flaky", "{}").await;
    assert_eq!(server.ended(&task).await["state"], "complete");
    let step = server.step(&task, "only").await;
    assert_eq!((&step["result"], &step["attempts"]), (&json!("done"), &json!(2)));
    let history = server.run_json(&["step", "history", &task, "only"]).await.to_string();
    assert!(history.contains("exit status 1: later"), "{history}");
}

#[tokio::test]
async fn a_timeout_ends_the_attempt_and_its_processes() {
    let server = Server::start().await;
    server.template("slow", &single("slow", "    timeout_seconds: 1")).await;
    server.template("bound", &single("bound", "")).await;
    let (slow, bound) = (server.path("slow"), server.path("bound"));
    let script =
        |pid: &Path| format!("sleep 300 & echo $! > {}; echo begun >&2; wait", pid.display());
    let handlers = [format!("slow={}", script(&slow)), format!("bound={}", script(&bound))];
    let args = ["--timeout", "2s", "--handler", &handlers[0], "--handler", &handlers[1]];
    let _worker = worker(&server, &args).await;
    // The template's own bound: whoever of server and worker sees it first.
    let task = server.task("slow", "{}").await;
    assert_eq!(server.ended(&task).await["state"], "blocked_by_failures");
    let error = server.step(&task, "only").await["last_error"].as_str().unwrap().to_owned();
    let server_says = error == "the attempt took longer than 1000 ms";
    assert!(server_says || error == "timed out after 1 s: begun", "{error}");
    gone(file(&slow).await.trim()).await;
    // The worker's own bound.
    let task = server.task("bound", "{}").await;
    assert_eq!(server.ended(&task).await["state"], "blocked_by_failures");
    let error = server.step(&task, "only").await["last_error"].clone();
    assert_eq!(error, "timed out after 2 s: begun");
    gone(file(&bound).await.trim()).await;
}

/// Waits until a process has ended.
async fn gone(pid: &str) {
    let until = Instant::now() + PATIENCE;
    let status = Path::new("/proc").join(pid).join("stat");
    // A zombie has ended too.
    let alive = || fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z "));
    while alive() {
        assert!(Instant::now() < until, "the process {pid} is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_cancel_ends_the_whole_process_group() {
    let server = Server::start().await;
    server.template("long", &single("long", "")).await;
    let (pid, told) = (server.path("pid"), server.path("told"));
    let long = format!(
        "long=trap 'echo told > {}; exit 1' TERM; sleep 300 & echo $! > {}; wait",
        told.display(),
        pid.display()
    );
    let _worker = worker(&server, &["--handler", &long]).await;
    let task = server.task("long", "{}").await;
    let child = file(&pid).await;
    let cancelled = Instant::now();
    server.run(&["task", "cancel", &task]).await.good();
    gone(child.trim()).await;
    assert!(cancelled.elapsed() < Duration::from_secs(20), "by the message, not by a heartbeat");
    assert_eq!(file(&told).await, "told\n", "SIGTERM came first");
    assert_eq!(server.step(&task, "only").await["state"], "cancelled");
}

/// Ten steps side by side.
fn wide(callable: &str) -> String {
    let step = |number| format!("  - {{name: s{number}, handler: {{callable: {callable}}}}}");
    (0..10).map(step).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn no_more_steps_run_at_once_than_concurrency_says() {
    let server = Server::start().await;
    server.template("wide", &wide("work")).await;
    let folder = server.path("running");
    fs::create_dir(&folder).unwrap();
    // Each counts those that run beside it, itself included.
    let work = format!("work=cd {}; touch $$; sleep 0.3; ls | wc -l; rm $$", folder.display());
    let _worker = worker(&server, &["--concurrency", "3", "--handler", &work]).await;
    let task = server.task("wide", "{}").await;
    assert_eq!(server.ended(&task).await["state"], "complete");
    let steps = server.run_json(&["step", "list", &task]).await;
    let counts = steps["steps"].as_array().unwrap().iter().map(|step| step["result"].as_u64());
    assert_eq!(counts.max().unwrap(), Some(3), "{steps}");
}

#[tokio::test]
async fn sigterm_drains_what_runs_and_takes_nothing_new() {
    let server = Server::start().await;
    server.template("long", &single("long", "")).await;
    let (begun, end) = (server.path("begun"), server.path("end"));
    let long = format!(
        "long=echo $$ >> {}; while ! test -e {}; do sleep 0.05; done; echo '\"drained\"'",
        begun.display(),
        end.display()
    );
    let mut worker = worker(&server, &["--handler", &long, "--drain-grace", "60s"]).await;
    let task = server.task("long", "{}").await;
    file(&begun).await;
    worker.terminate();
    assert!(says(&worker, "the worker drains").await);
    let later = server.task("long", "{}").await;
    fs::write(&end, "").unwrap();
    assert_eq!(worker.exit().await, Some(0), "{:?}", worker.err.all());
    let step = server.step(&task, "only").await;
    assert_eq!((&step["state"], &step["result"]), (&json!("complete"), &json!("drained")));
    assert_eq!(server.run_json(&["task", "get", &later]).await["state"], "pending");
}

#[tokio::test]
async fn a_second_signal_kills_what_runs() {
    let server = Server::start().await;
    server.template("long", &single("long", "")).await;
    let pid = server.path("pid");
    let long = format!("long=echo $$ > {}; trap '' TERM; sleep 300", pid.display());
    let mut worker = worker(&server, &["--handler", &long]).await;
    server.task("long", "{}").await;
    let child = file(&pid).await;
    worker.terminate();
    assert!(says(&worker, "the worker drains").await);
    worker.interrupt();
    worker.exit().await;
    gone(child.trim()).await;
}

#[tokio::test]
async fn a_worker_comes_back_after_the_server_does() {
    let server = Server::start().await;
    server.template("long", &single("long", "")).await;
    server.template("quick", &single("quick", "")).await;
    let (begun, end) = (server.path("begun"), server.path("end"));
    let long = format!(
        "long=echo begun > {}; while ! test -e {}; do sleep 0.05; done; echo 1",
        begun.display(),
        end.display()
    );
    let worker = worker(&server, &["--handler", &long, "--handler", "quick=echo 2"]).await;
    let task = server.task("long", "{}").await;
    file(&begun).await;
    let server = server.again().await;
    fs::write(&end, "").unwrap();
    // Its one attempt was lost to the restart, which uses none up.
    assert_eq!(server.ended(&task).await["state"], "complete", "{:?}", worker.err.all());
    let task = server.task("quick", "{}").await;
    assert_eq!(server.ended(&task).await["state"], "complete");
    let open = worker.err.all().iter().filter(|line| line.contains("the stream is open")).count();
    assert_eq!(open, 2, "{:?}", worker.err.all());
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn the_callers_trace_reaches_the_handler() {
    let server = Server::start().await;
    server.template("trace", &single("trace", "")).await;
    let _worker = worker(&server, &["--handler", r#"trace=grep -o '"00-[0-9a-f-]*"'"#]).await;
    let body = json!({"namespace": "shop", "name": "trace"});
    let created = server.rest(reqwest::Method::POST, "/v1/tasks").json(&body);
    let created: Value =
        created.header("traceparent", PARENT).send().await.unwrap().json().await.unwrap();
    let by_rest = created["task_uuid"].as_str().unwrap().to_owned();

    let mut request = tonic::Request::new(pb::CreateTaskRequest {
        namespace: "shop".into(),
        name: "trace".into(),
        ..Default::default()
    });
    request.metadata_mut().insert("traceparent", PARENT.parse().unwrap());
    let created = server.root().await.tasks().create_task(request).await.unwrap().into_inner();
    let by_grpc = created.task.unwrap().task_uuid;
    for task in [by_rest, by_grpc] {
        assert_eq!(server.ended(&task).await["state"], "complete");
        let seen = server.step(&task, "only").await["result"].clone();
        let parts: Vec<&str> = seen.as_str().unwrap().split('-').collect();
        assert_eq!((parts[1], parts[3]), (TRACE, "01"), "{seen}");
        assert_ne!(parts[2], "b7ad6b7169203331", "the parent is a span of ours");
    }
    // Without a caller's trace the server begins one.
    let task = server.task("trace", "{}").await;
    server.ended(&task).await;
    let seen = server.step(&task, "only").await["result"].clone();
    assert_eq!(seen.as_str().unwrap().split('-').nth(1).unwrap().len(), 32, "{seen}");
}

#[tokio::test]
async fn higher_priority_goes_first_and_then_age() {
    let server = Server::start().await;
    server.template("one", &single("note", "")).await;
    let order = server.path("order");
    let priorities = ["0", "-100", "50", "0", "100", "-1"];
    for (number, priority) in priorities.iter().enumerate() {
        let context = format!("{{\"n\": {number}}}");
        let create = ["task", "create", "shop/one", "--context", &context, "--priority", priority];
        server.run(&create).await.good();
    }
    let note = format!(
        "note=python3 -c 'import json, sys; print(json.load(sys.stdin)[\"context\"][\"n\"])' >> {}",
        order.display()
    );
    let _worker = worker(&server, &["--concurrency", "1", "--handler", &note]).await;
    for task in server.run_json(&["task", "list"]).await["tasks"].as_array().unwrap() {
        server.ended(task["task_uuid"].as_str().unwrap()).await;
    }
    let order = fs::read_to_string(order).unwrap();
    assert_eq!(order.split_whitespace().collect::<Vec<_>>(), ["4", "2", "0", "3", "5", "1"]);
}

/// Longer than a lease of 30 s: without heartbeats it would expire and the
/// step would run twice.
#[tokio::test]
async fn heartbeats_keep_a_lease_alive() {
    let server = Server::start().await;
    server.template("long", &single("long", "")).await;
    let begun = server.path("begun");
    let long = format!("long=echo begun >> {}; sleep 34; echo true", begun.display());
    let _worker = worker(&server, &["--handler", &long]).await;
    let task = server.task("long", "{}").await;
    assert_eq!(server.ended(&task).await["state"], "complete");
    assert_eq!(file(&begun).await, "begun\n", "once");
    assert_eq!(server.step(&task, "only").await["attempts"], 1);
}

#[tokio::test]
async fn two_workers_share_the_work() {
    let server = Server::start().await;
    server.template("wide", &wide("work")).await;
    let handler = |name: &str| format!("work=sleep 0.2; echo '\"{name}\"'");
    let (first, second) = (handler("first"), handler("second"));
    let args = ["--concurrency", "2", "--handler"];
    let _first = worker(&server, &[&args[..], &[&first]].concat()).await;
    let _second = worker(&server, &[&args[..], &[&second]].concat()).await;
    let task = server.task("wide", "{}").await;
    assert_eq!(server.ended(&task).await["state"], "complete");
    let steps = server.run_json(&["step", "list", &task]).await;
    let steps = steps["steps"].as_array().unwrap();
    for name in ["first", "second"] {
        assert!(steps.iter().any(|step| step["result"] == name), "{name}: {steps:?}");
    }
    assert!(steps.iter().all(|step| step["attempts"] == 1), "{steps:?}");
}

#[tokio::test]
async fn a_worker_that_the_server_refuses_says_why_and_ends() {
    let server = Server::start().await;
    let token = crate::harness::credentials::Token::new("nobody", &["tasks:list"]).sign();
    let mut command = crate::harness::process::bailiwick();
    command.args(["worker", "run", "--namespace", "shop", "--handler", "work=true"]);
    command.env("BAILIWICK_URL", server.grpc_url()).env("BAILIWICK_AUTH_TOKEN", &token);
    let refused = crate::harness::run(command).await;
    assert_eq!(refused.code, Some(1), "{refused}");
    assert!(refused.err.contains("work:lease"), "{refused}");
    for wrong in ["work", "=true", "work="] {
        let args = ["worker", "run", "--namespace", "shop", "--handler", wrong];
        let wrong = crate::harness::alone(&args).await;
        assert_eq!(wrong.code, Some(2), "{wrong}");
    }
}
