//! Rules that start processes, through the front door: from a rule and a job
//! to the run in the job's history (SE-61).

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::harness::{PATIENCE, Server, Setup, credentials::Token};

/// A time that is over, so that the job is due at once.
pub const OVER: &str = "2026-01-02T03:04:05.000000007Z";

fn setup(more: &str) -> Setup {
    let rest = format!(
        "[scheduler]\nrunners = [\"shell\", \"direct\", \"awf\"]\nrun_as = \"self\"\n{more}"
    );
    Setup { rest, ..Setup::steady() }
}

pub async fn rule(server: &Server, id: &str, runner: Value) {
    let body = json!({"pattern": format!("{id}."), "runner": runner});
    let (status, answer) = server.as_root("PUT", &format!("/rules/{id}"), Some(body)).await;
    assert_eq!(status, 200, "{answer}");
}

pub async fn job(server: &Server, id: &str) {
    let body = json!({"execution": OVER});
    let (status, answer) = server.as_root("PUT", &format!("/jobs/{id}"), Some(body)).await;
    assert_eq!(status, 200, "{answer}");
}

/// The latest run of a job, once it has ended.
pub async fn run(server: &Server, id: &str) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let (status, answer) = server.as_root("GET", &format!("/v1/jobs/{id}/runs"), None).await;
        assert_eq!(status, 200, "{answer}");
        if answer["runs"][0]["ended_at"].is_string() {
            return answer["runs"][0].clone();
        }
        assert!(Instant::now() < until, "no run of {id} ends: {answer}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The first line of a file, once it is there.
async fn line(file: &Path) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        match fs::read_to_string(file) {
            Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
            _ => assert!(Instant::now() < until, "{} is never written", file.display()),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn se_61_a_job_runs_its_rules_command_with_itself_as_data() {
    let server = Server::with(setup("")).await;
    let command = "echo \"$BAILIWICK_JOB_ID|$BAILIWICK_JOB_EXECUTION|$BAILIWICK_JOB_ATTEMPT\"";
    rule(&server, "sh", json!({"type": "shell", "command": command})).await;
    rule(&server, "env", json!({"type": "direct", "executable": "env"})).await;
    // `sh.$(touch owned)'"`, as a path has it.
    let mark = server.path("owned");
    let id = format!("sh.$(touch {})'\"", mark.display());
    let in_path = percent_encoding::utf8_percent_encode(&id, percent_encoding::NON_ALPHANUMERIC);
    let in_path = in_path.to_string();
    job(&server, &in_path).await;
    let ran = run(&server, &in_path).await;
    assert_eq!(ran["outcome"], "executed", "{ran}");
    assert_eq!(ran["output"], format!("{id}|{OVER}|1"));
    assert!(!mark.exists());

    job(&server, "env.a").await;
    let ran = run(&server, "env.a").await;
    let mut names: Vec<&str> = ran["output"]
        .as_str()
        .unwrap()
        .lines()
        .map(|line| line.split_once('=').unwrap().0)
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "BAILIWICK_JOB_ATTEMPT",
            "BAILIWICK_JOB_EXECUTION",
            "BAILIWICK_JOB_ID",
            "HOME",
            "LANG",
            "PATH"
        ]
    );
}

#[tokio::test]
async fn an_awf_rule_runs_the_workflow_by_the_command_on_the_path() {
    // A stand-in where commands are looked up, seen by this server alone.
    let stand_in = "mkdir \"$DATA/../bin\"\n\
                    printf '#!/bin/sh\\necho \"$0|$*|$BAILIWICK_JOB_ID\"\\n' > \"$DATA/../bin/awf\"\n\
                    chmod 755 \"$DATA/../bin/awf\"\n\
                    mount --bind \"$DATA/../bin\" /usr/local/bin";
    let server = Server::with(Setup { mounts: Some(stand_in.to_owned()), ..setup("") }).await;
    let runner = json!({"type": "awf", "workflow": "deploy", "args": ["--input", "k=a b"]});
    rule(&server, "flow", runner).await;
    job(&server, "flow.a").await;
    let ran = run(&server, "flow.a").await;
    assert_eq!(ran["outcome"], "executed", "{ran}");
    assert_eq!(ran["output"], "/usr/local/bin/awf|run deploy --input k=a b|flow.a");
}

#[tokio::test]
async fn failures_and_the_time_limit_stand_in_the_history() {
    let server = Server::with(setup("command_timeout_seconds = 1\n")).await;
    for (id, runner, error) in [
        ("three", json!({"type": "shell", "command": "echo no >&2; exit 3"}), "exit status 3"),
        (
            "long",
            json!({"type": "direct", "executable": "sleep", "args": ["3600"]}),
            "timed out after 1 s",
        ),
        ("absent", json!({"type": "awf", "workflow": "w"}), "exit status 127"),
    ] {
        rule(&server, id, runner).await;
        let id = format!("{id}.a");
        job(&server, &id).await;
        let ran = run(&server, &id).await;
        assert_eq!((&ran["outcome"], &ran["error"]), (&json!("failed"), &json!(error)), "{ran}");
    }
    assert_eq!(run(&server, "three.a").await["output"], "no");
}

#[tokio::test]
async fn se_61_rules_need_their_runner_and_the_permission() {
    let server = Server::with(setup("")).await;
    let shell = json!({"pattern": "a.", "runner": {"type": "shell", "command": "true"}});
    let without = format!("Bearer {}", Token::new("alice", &["rules:write"]).sign());
    let header = [("authorization", without.as_str())];
    let (status, answer) = server.json("PUT", "/rules/a", &header, Some(shell.clone())).await;
    assert_eq!(status, 403, "{answer}");
    assert!(answer.to_string().contains("commands:execute"), "{answer}");
    for runner in [
        json!({"type": "shell", "command": " "}),
        json!({"type": "shell", "command": "x".repeat(5000)}),
        json!({"type": "direct", "executable": "./tool"}),
        json!({"type": "awf", "workflow": "--help"}),
    ] {
        let body = json!({"pattern": "a.", "runner": runner});
        let (status, answer) = server.as_root("PUT", "/rules/a", Some(body)).await;
        assert_eq!(status, 400, "{answer}");
    }
    let server = Server::with(Setup::default()).await;
    let (status, answer) = server.as_root("PUT", "/rules/a", Some(shell)).await;
    assert!((400..500).contains(&status), "{answer}");
    assert!(answer.to_string().contains("`shell` is not enabled"), "{answer}");
}

#[tokio::test]
async fn se_61_commands_end_when_the_server_is_killed_and_run_again() {
    let mut server = Server::with(setup("")).await;
    let file = server.path("pid");
    let command = format!("sleep 3600 & echo $! >> {}; wait", file.display());
    rule(&server, "long", json!({"type": "shell", "command": command})).await;
    job(&server, "long.a").await;
    let pid = line(&file).await;
    server.process.kill();
    let stat = format!("/proc/{pid}/stat");
    let until = Instant::now() + PATIENCE;
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < until, "process {pid} lives on");
        sleep(Duration::from_millis(20)).await;
    }
    fs::remove_file(&file).unwrap();
    let server = server.again().await;
    assert_ne!(line(&file).await, pid);
    let (_, answer) = server.as_root("GET", "/v1/jobs/long.a/runs", None).await;
    assert_eq!(answer["runs"][0]["outcome"], "running", "{answer}");
    assert_eq!(answer["runs"][1]["outcome"], "interrupted", "{answer}");
}
