//! The command line as its users type it: what it prints, how it ends.

mod auth;
mod credentials;
mod help;
mod lending;
mod refusals;
mod schedule;
mod tokens;

use std::{ffi::OsString, fs, path::PathBuf};

use serde_json::{Value, json};

use crate::harness::{
    PATIENCE, Process, Server, Setup, alone, credentials::Token, process, program, run,
};

const ONE: &str = "  - name: only\n    handler: {callable: work}";
const ONCE: &str = "  - name: only\n    handler: {callable: work}\n    retry: {max_attempts: 1}\n  - name: after\n    handler: {callable: work}\n    dependencies: [only]";

/// Leases the one ready step of `work`; answers the lease's id.
async fn lease(server: &Server) -> String {
    let args = ["work", "lease", "--namespace", "shop", "--handler", "work", "--wait", "20s"];
    let leased = server.run_json(&args).await;
    leased["leases"][0]["lease_id"].as_str().unwrap().to_owned()
}

/// The words of each line of a table.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[tokio::test]
async fn task_commands_print_tables_and_json() {
    let server = Server::start().await;
    server.template("one", ONE).await;
    let created = server
        .run_json(&[
            "task",
            "create",
            "shop/one@1.0.0",
            "--context",
            r#"{"n": 1.50}"#,
            "--priority",
            "-3",
            "--tag",
            "a",
            "--tag",
            "b",
            "--initiator",
            "eve",
            "--source-system",
            "till",
            "--reason",
            "why",
            "--correlation-id",
            "c-1",
            "--idempotency-key",
            "k-1",
        ])
        .await;
    let task = created["task_uuid"].as_str().unwrap();
    assert_eq!((&created["state"], &created["priority"]), (&json!("pending"), &json!(-3)));
    assert_eq!((&created["tags"], &created["initiator"]), (&json!(["a", "b"]), &json!("eve")));
    assert_eq!((&created["source_system"], &created["reason"]), (&json!("till"), &json!("why")));
    assert!(created.get("context").is_none(), "{created}");
    let flags = ["--namespace", "shop", "--name", "one", "--version", "1.0.0"];
    server.run(&[&["task", "create"], &flags[..]].concat()).await.good();

    let table = server.run(&["task", "get", task]).await.good();
    let table = rows(&table);
    assert_eq!(table[0], ["TASK", "TEMPLATE", "STEPS", "CREATED", "STATE"]);
    assert_eq!(table[1][..3], [task, "shop/one@1.0.0", "0/1"]);
    assert_eq!(server.run_json(&["task", "get", task]).await["task_uuid"], task);

    let context = server.run(&["task", "context", task]).await.good();
    assert_eq!(context.split_whitespace().collect::<String>(), r#"{"n":1.50}"#);
    assert_eq!(server.run_json(&["task", "context", task]).await["task_uuid"], task);

    let all = server.run_json(&["task", "list", "--namespace", "shop"]).await;
    assert_eq!(all["tasks"].as_array().unwrap().len(), 2);
    assert_eq!(all["tasks"][1]["task_uuid"], task, "newest first");
    let one = server.run_json(&["task", "list", "--limit", "1", "--state", "pending"]).await;
    assert_eq!(one["tasks"].as_array().unwrap().len(), 1);
    let none = server.run_json(&["task", "list", "--state", "complete", "--state", "error"]).await;
    assert_eq!(none["tasks"], json!([]));
    let table = server.run(&["task", "list"]).await.good();
    assert_eq!(rows(&table).len(), 3);

    let cancelled = server.run_json(&["task", "cancel", task, "--reason", "no"]).await;
    assert_eq!(cancelled["state"], "cancelled");
    let again = server.run(&["task", "cancel", task]).await.good();
    assert!(rows(&again)[1].contains(&"cancelled"), "{again}");
}

#[tokio::test]
async fn a_context_comes_from_a_file_or_from_standard_input() {
    let server = Server::start().await;
    server.template("one", ONE).await;
    let file = server.path("context.json");
    fs::write(&file, r#"{"from": "file"}"#).unwrap();
    let task = server.task("one", &format!("@{}", file.display())).await;
    let context = server.run_json(&["task", "context", &task]).await;
    assert_eq!(context["context"], json!({"from": "file"}));

    let line = "echo '{\"from\": \"pipe\"}' | $0 task create shop/one --context - --format json";
    let mut command = program("sh", &["-c", line, process::path()]);
    command.envs(variables(&server));
    let created = run(command).await.json();
    let task = created["task_uuid"].as_str().unwrap();
    let context = server.run_json(&["task", "context", task]).await;
    assert_eq!(context["context"], json!({"from": "pipe"}));

    let absent = server.run(&["task", "create", "shop/one", "--context", "@/nonexistent/x"]).await;
    assert_eq!(absent.code, Some(2), "{absent}");
    assert!(absent.err.contains("/nonexistent/x"), "{absent}");
}

/// What `Server::cli` sets, for programs around `bailiwick`.
fn variables(server: &Server) -> Vec<(OsString, OsString)> {
    let command = server.cli();
    let set = command.as_std().get_envs();
    set.filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect()
}

#[tokio::test]
async fn create_with_wait_ends_with_the_task() {
    let server = Server::start().await;
    server.template("one", ONE).await;
    let mut command = server.cli();
    command.args(["task", "create", "shop/one", "--wait", "--format", "json"]);
    let mut waiting = Process::start(command);
    let held = lease(&server).await;
    let out = server.run(&["work", "complete", &held, "--result", r#"{"ok": true}"#]).await.good();
    assert_eq!(out.trim(), "completed");
    assert_eq!(waiting.exit().await, Some(0));
    let task: Value = serde_json::from_str(&waiting.out.all().join("\n")).unwrap();
    assert_eq!((&task["state"], &task["steps"]["complete"]), (&json!("complete"), &json!(1)));

    server.template("once", ONCE).await;
    for format in ["json", "table"] {
        let mut command = server.cli();
        command.args(["task", "create", "shop/once", "--wait", "--format", format]);
        let mut waiting = Process::start(command);
        let held = lease(&server).await;
        let failed = server.run(&["work", "fail", &held, "--error", "broken"]).await;
        failed.good();
        assert_eq!(waiting.exit().await, Some(1), "blocked by failures");
        let said = waiting.err.all().join("\n");
        assert!(said.contains("error: the task is blocked_by_failures"), "{said}");
    }
}

#[tokio::test]
async fn watch_shows_events_until_the_end() {
    let server = Server::start().await;
    server.template("one", ONE).await;
    let task = server.task("one", "{}").await;
    let watch = |extra: &[&str]| {
        let mut command = server.cli();
        command.args(["task", "watch", &task]).args(extra);
        Process::start(command)
    };
    let (mut json, mut table) = (watch(&["--format", "json"]), watch(&[]));
    let begun = |line: &str| line.contains("only").then_some(());
    assert!(json.out.wait_for(begun).await.is_some() && table.out.wait_for(begun).await.is_some());
    let held = lease(&server).await;
    let completed = server.run_json(&["work", "complete", &held]).await;
    assert_eq!(completed, json!({"already": false}));
    assert_eq!((json.exit().await, table.exit().await), (Some(0), Some(0)));

    let events: Vec<Value> =
        json.out.all().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["snapshot"]["task"]["task_uuid"], json!(task));
    let seqs: Vec<i64> = events.iter().map(|event| event["seq"].as_i64().unwrap()).collect();
    assert!(seqs.is_sorted(), "{seqs:?}");
    assert_eq!(events.last().unwrap()["task"]["state"], "complete");
    let shown = table.out.all();
    assert!(
        shown.iter().any(|line| line.contains("- only") && line.ends_with("complete")),
        "{shown:?}"
    );
    assert!(shown.last().unwrap().ends_with("complete"), "{shown:?}");

    let last = (seqs.last().unwrap() - 1).to_string();
    let after = ["task", "watch", &task, "--after-seq", &last, "--format", "json"];
    let rest = server.run(&after).await.good();
    assert_eq!(rest.lines().count(), 1, "{rest}");
}

#[tokio::test]
async fn steps_are_listed_shown_and_cured() {
    let server = Server::start().await;
    server.template("once", ONCE).await;
    let task = server.task("once", "{}").await;
    let held = lease(&server).await;
    server.run(&["work", "fail", &held, "--error", "no paper", "--permanent"]).await.good();

    let table = server.run(&["step", "list", &task]).await.good();
    assert_eq!(rows(&table)[0], ["STEP", "HANDLER", "ATTEMPTS", "ID", "STATE"]);
    assert!(table.lines().nth(1).unwrap().ends_with("error"), "{table}");
    let list = server.run_json(&["step", "list", &task]).await;
    assert_eq!(list["steps"][1]["depends_on"], json!(["only"]));
    let shown = server.run(&["step", "get", &task, "only"]).await.good();
    assert!(shown.contains("last error: no paper"), "{shown}");
    let uuid = list["steps"][0]["step_uuid"].as_str().unwrap();
    assert_eq!(server.step(&task, uuid).await["last_error"], "no paper");
    let absent = server.run(&["step", "get", &task, "onyl"]).await;
    assert_eq!(absent.code, Some(1));
    assert!(absent.err.contains("it has only, after"), "{absent}");

    let resolve = async |step: &str, args: &[&str]| {
        let args = [&["step", "resolve", &task, step, "--reason", "by hand", "--action"], args];
        server.run(&args.concat()).await
    };
    let wrong = resolve("only", &["reset", "--result", "1"]).await;
    assert_eq!(wrong.code, Some(2), "{wrong}");
    resolve("only", &["reset"]).await.good();
    let held = lease(&server).await;
    let fail = ["work", "fail", &held, "--error", "still", "--permanent"];
    let failed = server.run_json(&fail).await;
    assert_eq!(failed, json!({"already": false, "step_state": "error"}));
    let done = resolve("only", &["complete", "--result", r#"{"paid": true}"#]).await.good();
    assert!(done.contains("complete"), "{done}");
    let refused = resolve("only", &["resolve"]).await;
    assert_eq!(refused.code, Some(1), "acting on a complete step: {refused}");
    let leased = ["work", "lease", "--namespace", "shop", "--handler", "work", "--wait", "20s"];
    let leased = server.run_json(&leased).await;
    assert_eq!(leased["leases"][0]["results"]["only"], json!({"paid": true}));
    let held = leased["leases"][0]["lease_id"].as_str().unwrap();
    server.run(&["work", "fail", held, "--error", "x", "--permanent"]).await.good();
    resolve("after", &["resolve"]).await.good();
    assert_eq!(server.ended(&task).await["state"], "resolved_manually");

    let history = server.run_json(&["step", "history", &task, "only"]).await;
    let entries = history["entries"].as_array().unwrap();
    assert!(entries.iter().any(|entry| entry["reason"] == "by hand"), "{history}");
    assert!(entries.iter().any(|entry| entry["error"] == "no paper"), "{history}");
    let table = server.run(&["step", "history", &task, "only"]).await.good();
    assert_eq!(rows(&table)[0], ["SEQ", "TIME", "ATTEMPT", "STATE", "CAUSE", "ACTOR", "WHY"]);
}

#[tokio::test]
async fn a_lease_is_held_and_lost_call_by_call() {
    let server = Server::start().await;
    server.template("one", ONE).await;
    let task = server.task("one", "{}").await;
    let empty = ["work", "lease", "--namespace", "shop", "--handler", "other"];
    assert_eq!(server.run_json(&empty).await["leases"], json!([]));
    let args = ["work", "lease", "--namespace", "shop", "--handler", "work", "--worker", "me"];
    let table = server.run(&args).await.good();
    let table = rows(&table);
    assert_eq!(table[0], ["LEASE", "TASK", "STEP", "HANDLER", "ATTEMPT", "DEADLINE"]);
    let held = table[1][0];
    let beat = server.run(&["work", "heartbeat", held]).await.good();
    assert!(beat.starts_with("held until 2"), "{beat}");
    let beat = server.run_json(&["work", "heartbeat", held]).await;
    assert_eq!((&beat["state"], &beat["lease_id"]), (&json!("held"), &json!(held)), "{beat}");
    let serving = server.run_json(&["health", "--probe", "readiness"]).await;
    assert_eq!(serving, json!({"status": "serving"}));
    server.run(&["task", "cancel", &task]).await.good();
    let beat = server.run(&["work", "heartbeat", held]).await;
    assert_eq!(beat.code, Some(1), "{beat}");
    assert!(beat.err.contains("stop"), "{beat}");
    let late = server.run(&["work", "complete", held]).await;
    assert_eq!(late.code, Some(1), "{late}");
    assert!(late.err.contains("LEASE_LOST"), "{late}");
}

fn template(server: &Server, name: &str, text: &str) -> PathBuf {
    let file = server.path(name);
    fs::write(&file, text).unwrap();
    file
}

#[tokio::test]
async fn templates_are_registered_listed_and_shown() {
    let server = Server::start().await;
    let text = format!("name: one\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n{ONE}\n");
    let file = template(&server, "one.yaml", &text);
    let file = file.to_str().unwrap();
    let first = server.run(&["template", "register", file]).await.good();
    assert_eq!(first.trim(), "shop/one@1.0.0 registered");
    let again = server.run(&["template", "register", file]).await.good();
    assert_eq!(again.trim(), "shop/one@1.0.0 unchanged");
    assert_eq!(server.run_json(&["template", "register", file]).await["unchanged"], true);
    fs::write(file, text.replace("work", "toil")).unwrap();
    let other = server.run(&["template", "register", file]).await;
    assert_eq!(other.code, Some(1), "{other}");
    assert!(other.err.contains("TEMPLATE_EXISTS"), "{other}");

    let table = server.run(&["template", "list"]).await.good();
    assert_eq!(rows(&table)[1][..4], ["shop", "one", "1.0.0", "1"]);
    let list = server.run_json(&["template", "list", "--namespace", "shop", "--name", "one"]).await;
    assert_eq!(list["templates"][0]["steps"], json!(["only"]));
    let none = server.run_json(&["template", "list", "--namespace", "other"]).await;
    assert_eq!(none["templates"], json!([]));
    let shown = server.run(&["template", "get", "shop/one@1.0.0"]).await.good();
    assert_eq!(shown.trim_end(), text.trim_end());
    let shown = server.run_json(&["template", "get", "shop/one@1.0.0"]).await;
    assert_eq!(shown["definition"], json!(text));
    assert_eq!(server.run(&["template", "get", "shop/one"]).await.code, Some(2), "no version");
    assert_eq!(server.run(&["template", "get", "shop/one@9.0.0"]).await.code, Some(1));
}

#[tokio::test]
async fn template_validate_names_every_fault_by_line_and_column() {
    let server = Server::start().await;
    let text = "name: bad\nnamespace_name: shop\nversion: one\nsteps:\n  - name: a\n    handler: {callable: work}\n    dependencies: [b]\n  - name: b\n    handler: {callable: work}\n    dependencies: [a, c]\n    colour: red\n";
    let file = template(&server, "bad.yaml", text);
    let name = file.to_str().unwrap();
    let refused = server.run(&["template", "validate", name]).await;
    assert_eq!(refused.code, Some(1), "{refused}");
    let errors: Vec<&str> = refused.out.lines().filter(|l| l.starts_with("error: ")).collect();
    assert!(errors.len() >= 4, "version, cycle, unknown dependency, unknown field: {refused}");
    for (line, what) in [(3, "version"), (10, "`c`"), (11, "colour")] {
        let place = format!("error: {name}:{line}:");
        let found = errors.iter().any(|error| {
            let column = error.strip_prefix(&place).and_then(|rest| rest.split(':').next());
            column.is_some_and(|column| column.parse::<u32>().is_ok_and(|column| column > 0))
                && error.contains(what)
        });
        assert!(found, "line {line} about {what}: {refused}");
    }
    assert!(errors.iter().any(|error| error.contains("cycle")), "{refused}");
    let json = server.run(&["template", "validate", name, "--format", "json"]).await;
    assert_eq!(json.code, Some(1));
    let checked: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(checked["valid"], false);
    assert_eq!(checked["errors"].as_array().unwrap().len(), errors.len());
    let refused = server.run(&["template", "register", name]).await;
    assert_eq!(refused.code, Some(1), "{refused}");
    assert!(refused.err.contains("colour"), "{refused}");
    assert_eq!(server.run_json(&["template", "list"]).await["templates"], json!([]));

    let good = format!("name: good\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n{ONE}\n");
    let good = template(&server, "good.yaml", &good);
    let both = server.run(&["template", "validate", good.to_str().unwrap(), name]).await;
    assert_eq!(both.code, Some(1), "{both}");
    assert!(both.out.contains("good.yaml: valid"), "{both}");
    let odd = template(&server, "odd.yaml", "steps: [\n");
    let odd = server.run(&["template", "validate", odd.to_str().unwrap()]).await;
    assert_eq!(odd.code, Some(2), "{odd}");
    assert!(odd.err.contains("odd.yaml"), "{odd}");
}

#[tokio::test]
async fn workers_handlers_configuration_and_health_are_shown() {
    let setup = Setup { server: "config_endpoint_enabled = true\n".to_owned(), ..Setup::default() };
    let server = Server::with(setup).await;
    server.template("one", ONE).await;
    let register =
        ["worker", "register", "--namespace", "shop", "--name", "w1", "--handler", "work"];
    let worker = server.run_json(&register).await;
    assert_eq!((&worker["name"], &worker["handlers"]), (&json!("w1"), &json!(["work"])));
    let table = server.run(&["worker", "list", "--namespace", "shop"]).await.good();
    assert_eq!(rows(&table)[0][..3], ["NAMESPACE", "WORKER", "HANDLERS"]);
    assert_eq!(rows(&table)[1][..3], ["shop", "w1", "work"]);
    assert_eq!(server.run_json(&["worker", "list"]).await["workers"][0]["name"], "w1");

    let table = server.run(&["handlers"]).await.good();
    assert_eq!(rows(&table)[0], ["NAMESPACE", "HANDLER", "TEMPLATES", "WORKERS"]);
    assert_eq!(rows(&table)[1], ["shop", "work", "1", "0"], "no worker is connected");
    let handlers = server.run_json(&["handlers", "--namespace", "shop"]).await;
    assert_eq!(handlers["handlers"][0]["name"], "work");

    let config = server.run(&["config"]).await.json();
    assert_eq!(config["server"]["config_endpoint_enabled"], true, "{config}");
    assert!(!config.to_string().contains(crate::harness::ROOT_KEY), "{config}");

    let health = server.run(&["health"]).await.good();
    assert!(health.starts_with("healthy (bailiwick "), "{health}");
    assert_eq!(server.run_json(&["health"]).await["status"], "healthy");
    for probe in ["liveness", "readiness", "startup"] {
        let url = server.grpc_url();
        // Readiness may lapse for a moment where other tests keep the disk busy.
        let serving = async {
            while alone(&["health", "--probe", probe, "--url", &url]).await.out.trim() != "serving"
            {
            }
        };
        tokio::time::timeout(PATIENCE, serving).await.expect("the probe says serving");
    }
}

#[tokio::test]
async fn whoami_and_can_i_answer_for_the_caller() {
    let server = Server::start().await;
    let who = server.run_json(&["auth", "whoami"]).await;
    assert_eq!(who["root"], true);
    let url = server.grpc_url();
    let token = Token::new("ci", &["tasks:create"]).within(&["shop"]).sign();
    let as_ci = ["--url", &url, "--token", &token];
    let who = alone(&[&["auth", "whoami"], &as_ci[..]].concat()).await.good();
    assert!(who.starts_with("ci (") && who.contains("tasks:create"), "{who}");
    let ask = async |args: &[&str]| alone(&[&["auth", "can-i"], args, &as_ci[..]].concat()).await;
    let yes = ask(&["tasks:create", "--namespace", "shop"]).await.good();
    assert_eq!(rows(&yes)[1], ["tasks:create", "shop", "yes"]);
    let no = ask(&["tasks:create", "--namespace", "till"]).await;
    assert_eq!(no.code, Some(1), "{no}");
    let mixed = ask(&["tasks:create", "steps:read", "--format", "json"]).await;
    assert_eq!(mixed.code, Some(1), "{mixed}");
    let answers: Value = serde_json::from_str(&mixed.out).unwrap();
    assert_eq!(answers["answers"][1]["allowed"], false);
}

#[tokio::test]
async fn the_exit_code_and_a_hint_say_what_to_do() {
    let server = Server::start().await;
    let url = server.grpc_url();
    let list =
        async |args: &[&str]| alone(&[&["task", "list", "--url", &url], args].concat()).await;
    let missing = list(&[]).await;
    assert_eq!(missing.code, Some(1), "{missing}");
    assert!(missing.err.contains("hint: give --token-file"), "{missing}");
    let now = crate::harness::credentials::now();
    let old = Token::new("ci", &["tasks:list"]).claim("exp", json!(now - 10)).sign();
    let expired = list(&["--token", &old]).await;
    assert_eq!(expired.code, Some(1), "{expired}");
    assert!(expired.err.contains("hint: for a JWT: `bailiwick auth generate-token`"), "{expired}");
    assert!(expired.err.contains("for bwk_…: `bailiwick auth mint-token`"), "{expired}");
    let narrow = list(&["--token", &Token::new("ci", &["steps:read"]).sign()]).await;
    assert_eq!(narrow.code, Some(1), "{narrow}");
    assert!(narrow.err.contains("Missing required permission: tasks:list"), "{narrow}");
    assert!(narrow.err.contains("hint: `bailiwick auth why-denied "), "{narrow}");
    let absent = server.run(&["task", "get", "0199aaaa-0000-7000-8000-000000000000"]).await;
    assert_eq!(absent.code, Some(1), "{absent}");
    let state = list(&["--state", "done"]).await;
    assert_eq!(state.code, Some(2), "{state}");
    assert!(state.err.contains("the states are pending"), "{state}");
    for wrong in [&["task", "list", "--limit", "many"][..], &["task", "lst"], &["task"], &[]] {
        let wrong = alone(wrong).await;
        assert_eq!(wrong.code, Some(2), "{wrong}");
    }
    let wrong = alone(&["task", "create", "one"]).await;
    assert_eq!(wrong.code, Some(2), "{wrong}");
    for nobody in ["http://127.0.0.1:1", "http://host.invalid:9190"] {
        let nobody = alone(&["task", "list", "--url", nobody]).await;
        assert_eq!(nobody.code, Some(3), "{nobody}");
        assert!(nobody.err.contains("hint: is the server running?"), "{nobody}");
        assert_eq!(nobody.out, "", "{nobody}");
    }
    let url = alone(&["task", "list", "--url", "not a url"]).await;
    assert_eq!(url.code, Some(2), "{url}");
}

#[tokio::test]
async fn colours_are_for_terminals_only() {
    let server = Server::start().await;
    server.template("one", ONE).await;
    let task = server.task("one", "{}").await;
    server.run(&["task", "cancel", &task]).await.good();
    let plain = server.run(&["task", "list"]).await.good();
    assert!(plain.contains("cancelled") && !plain.contains('\x1b'), "{plain:?}");
    let line = format!("{} task list", process::path());
    let on_terminal = async |set: &[(&str, &str)]| {
        let mut command = program("script", &["-qec", &line, "/dev/null"]);
        command.env_clear().envs(variables(&server)).envs(set.iter().copied());
        run(command).await.good()
    };
    let coloured = on_terminal(&[]).await;
    assert!(coloured.contains("\x1b[35mcancelled\x1b[0m"), "{coloured:?}");
    let plain = on_terminal(&[("NO_COLOR", "1")]).await;
    assert!(plain.contains("cancelled") && !plain.contains('\x1b'), "{plain:?}");
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_failure() {
    let line =
        format!("{} auth show-permissions | head -n 1; echo ${{PIPESTATUS[0]}}", process::path());
    let said = run(program("bash", &["-c", &line])).await.good();
    assert_eq!(said.lines().last(), Some("0"), "{said}");
}
