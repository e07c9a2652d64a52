//! `bailiwick schedule …` as its users type it.

use std::fs;

use serde_json::{Value, json};

use super::rows;
use crate::harness::{Server, alone, credentials::Token};

const LATER: &str = "2199-04-10T12:00:00Z";
const LATER_NS: i64 = 7_235_179_200_000_000_000;

fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

fn job(id: &str, execution: i64, status: u8) -> Vec<u8> {
    framed(&[&[0], &*text(id), &execution.to_be_bytes(), &[status]].concat())
}

fn rule(id: &str, pattern: &str, runner: u8, fields: &[&str]) -> Vec<u8> {
    let fields: Vec<u8> = fields.iter().flat_map(|field| text(field)).collect();
    framed(&[&[1], &*text(id), &text(pattern), &[runner], &fields].concat())
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn schedule_commands_print_tables_and_json() {
    let server = Server::start().await;
    let set = server.run(&["schedule", "set", "backup.daily", "--at", LATER]).await.good();
    let set = rows(&set);
    assert_eq!(set[0], ["JOB", "EXECUTION", "RECURRENCE", "STATUS"]);
    assert_eq!(set[1], ["backup.daily", LATER, "once", "planned"]);
    let plain = json!({"id": "backup.daily", "status": "planned", "execution": LATER_NS});
    assert_eq!(server.run_json(&["schedule", "get", "backup.daily"]).await, plain);

    let flags = ["--every", "15m", "--at", LATER];
    let poll = server.run_json(&[&["schedule", "set", "poll.x"], &flags[..]].concat()).await;
    assert_eq!((&poll["recurrence"], &poll["execution"]), (&json!("every 15m"), &json!(LATER_NS)));
    let before = jiff::Timestamp::now().as_nanosecond();
    let soon = server.run_json(&["schedule", "set", "soon", "--in", "2h"]).await;
    let ahead = i128::from(soon["execution"].as_i64().unwrap()) - before;
    assert!((7_200_000_000_000..7_260_000_000_000).contains(&ahead), "{soon}");

    let all = server.run_json(&["schedule", "list"]).await;
    assert_eq!(ids(&all["jobs"]), ["backup.daily", "poll.x", "soon"]);
    let some = server.run_json(&["schedule", "list", "--prefix", "po"]).await;
    assert_eq!(ids(&some["jobs"]), ["poll.x"]);
    let first = server.run(&["schedule", "list", "--limit", "1"]).await;
    assert!(first.err.contains("there are more"), "{first}");
    assert_eq!(first.good().lines().count(), 2);

    let next = server.run(&["schedule", "next", "poll.x", "-n", "3"]).await.good();
    let next: Vec<&str> = next.lines().collect();
    assert_eq!(next, [LATER, "2199-04-10T12:15:00Z", "2199-04-10T12:30:00Z"]);
    let next = server.run_json(&["schedule", "next", "backup.daily"]).await;
    assert_eq!(next, json!({"executions": [LATER_NS]}));
    let preview = ["schedule", "next", "--every", "1h", "--from", LATER, "-n", "2"];
    let next = server.run_json(&preview).await;
    assert_eq!(next, json!({"executions": [LATER_NS, LATER_NS + 3_600_000_000_000_i64]}));

    let stats = server.run_json(&["schedule", "stats"]).await;
    assert_eq!((&stats["jobs_total"], &stats["rules_total"]), (&json!(3), &json!(0)));
    assert_eq!(stats["executions_inflight"], 0);
    let stats = server.run(&["schedule", "stats"]).await.good();
    assert_eq!(rows(&stats)[1], ["3", "3", "0", "0", "0", "0", "0"]);

    assert_eq!(server.run(&["schedule", "remove", "soon"]).await.good().trim(), "removed soon");
    let gone = server.run(&["schedule", "remove", "soon"]).await;
    assert_eq!(gone.code, Some(1), "{gone}");
    assert!(gone.err.contains("job not found: soon"), "{gone}");
    let resumed = server.run(&["schedule", "resume", "backup.daily"]).await.good();
    assert!(resumed.contains("planned"), "{resumed}");
}

#[tokio::test]
async fn schedule_runs_tell_why_a_job_failed() {
    let server = Server::start().await;
    server.run(&["schedule", "set", "late.x", "--at", "2020-01-01"]).await.good();
    let failed = async {
        loop {
            let job = server.run_json(&["schedule", "get", "late.x"]).await;
            if job["status"] == "failed" {
                break job;
            }
        }
    };
    let job = tokio::time::timeout(crate::harness::PATIENCE, failed).await.unwrap();
    let runs = server.run_json(&["schedule", "runs", "late.x"]).await;
    let run = &runs["runs"][0];
    assert_eq!((&run["outcome"], &run["execution"]), (&json!("failed"), &job["execution"]));
    assert!(run.get("rule").is_none() && run["error"].is_string(), "{run}");
    let table = server.run(&["schedule", "runs", "late.x"]).await.good();
    assert_eq!(rows(&table)[0][..4], ["RUN", "EXECUTION", "STARTED", "DURATION"]);
    assert!(table.lines().nth(1).unwrap().contains("failed"), "{table}");
    let over = server.run(&["schedule", "next", "late.x"]).await;
    assert_eq!(over.code, Some(1), "{over}");
    assert!(over.err.contains("late.x is failed"), "{over}");
}

#[tokio::test]
async fn schedule_rules_print_tables_and_json() {
    let server = Server::start().await;
    let set = ["schedule", "rules", "set", "rule.ping", "--pattern", "ping."];
    let secret = server.path("url");
    fs::write(&secret, "https://u:s3cret@example.com/x\n").unwrap();
    let url = format!("@{}", secret.display());
    let http = ["--http", "POST", &url, "--max-attempts", "5", "--backoff", "fixed"];
    let rule = server.run_json(&[&set[..], &http, &["--backoff-base", "2s"]].concat()).await;
    let runner = json!({"type": "http", "method": "POST", "url": "https://***@example.com/x"});
    assert_eq!(rule["runner"], runner, "{rule}");
    let retry = json!({
        "max_attempts": 5, "backoff": "fixed", "backoff_base_ms": 2000, "max_backoff_ms": 30000,
    });
    assert_eq!(rule["retry"], retry);
    assert_eq!(server.run_json(&["schedule", "rules", "get", "rule.ping"]).await, rule);
    let table = server.run(&["schedule", "rules", "list"]).await.good();
    let table = rows(&table);
    let row = ["rule.ping", "ping.", "http", "POST", "https://***@example.com/x", "5"];
    assert_eq!(table[1][..6], row);

    let task = server.run_json(&[&set[..], &["--task", "shop/order@1.0.0"]].concat()).await;
    assert_eq!(task["runner"], json!({"type": "task", "template": "shop/order@1.0.0"}));
    assert!(task.get("retry").is_none(), "{task}");
    let listed = server.run_json(&["schedule", "rules", "list", "--prefix", "rule."]).await;
    assert_eq!(listed, json!({"rules": [task]}));

    let refused = server.run(&[&set[..], &["--redis", "redis://h", "SET", "k"]].concat()).await;
    assert_eq!(refused.code, Some(1), "{refused}");
    assert!(refused.err.contains("`redis` is not enabled"), "{refused}");
    assert!(refused.err.contains("[scheduler] runners"), "{refused}");
    server.run(&["schedule", "rules", "remove", "rule.ping"]).await.good();
    assert_eq!(server.run(&["schedule", "rules", "get", "rule.ping"]).await.code, Some(1));
}

#[tokio::test]
async fn schedule_set_and_next_take_time_zones() {
    let server = Server::start().await;
    let cron = ["--cron", "0 3 * * *", "--tz", "Europe/Berlin"];
    let set = server.run_json(&[&["schedule", "set", "backup.daily"], &cron[..]].concat()).await;
    assert_eq!(set["recurrence"], "CRON_TZ=Europe/Berlin 0 3 * * *");
    let rule = ["--rrule", "FREQ=DAILY;BYHOUR=3;BYMINUTE=0;BYSECOND=0", "--tz", "Europe/Berlin"];
    for recurrence in [cron, rule] {
        let next = [&["schedule", "next", "-n", "2"], &recurrence[..]].concat();
        let next = server.run(&next).await.good();
        // 03:00 in Berlin is 01:00 or 02:00 in UTC.
        let hours = next.lines().filter(|line| line.contains("T01:00") || line.contains("T02:00"));
        assert_eq!(hours.count(), 2, "{next}");
    }
    let absent = ["schedule", "set", "a", "--cron", "@daily", "--tz", "Europe/Nowhere"];
    assert_eq!(server.run(&absent).await.code, Some(1));
}

#[tokio::test]
async fn schedule_commands_refuse_wrong_usage() {
    for args in [
        &["schedule", "set", "a"][..],
        &["schedule", "set", "a", "--at", LATER, "--in", "1m"],
        &["schedule", "set", "a", "--every", "1m", "--cron", "@daily"],
        &["schedule", "set", "a", "--every", "1m", "--tz", "UTC"],
        &["schedule", "set", "a", "--at", LATER, "--tz", "Europe/Berlin"],
        &["schedule", "set", "a", "--cron", "@daily", "--rrule", "FREQ=DAILY"],
        &["schedule", "set", "a", "--in", "soon"],
        &["schedule", "next"],
        &["schedule", "next", "a", "--cron", "@daily"],
        &["schedule", "rules", "set", "r", "--pattern", "a."],
        &["schedule", "rules", "set", "r", "--pattern", "a.", "--http", "GET"],
        &["schedule", "rules", "set", "r", "--pattern", "a.", "--shell", "x", "--task", "a/b"],
        &["schedule", "import"],
        &["schedule", "import", "--ztick", "/nowhere/logfile"],
    ] {
        let ran = alone(args).await;
        assert_eq!(ran.code, Some(2), "{args:?}: {ran}");
    }
    let server = Server::start().await;
    let refused = server.run(&["schedule", "set", "a", "--at", "tomorrow"]).await;
    assert_eq!(refused.code, Some(1), "{refused}");
    assert!(refused.err.contains("execution: `tomorrow` is not a time"), "{refused}");
}

/// Two rules that can be set and one that cannot, two jobs that are to come,
/// one that was due, and three that are over or gone.
fn logfile() -> Vec<u8> {
    [
        rule("rule.ping", "ping.", 4, &["POST", "https://example.com/"]),
        rule("rule.redis", "cache.", 5, &["redis://:s3cret@h", "SET", "k"]),
        rule("rule.gone", "gone.", 0, &["true"]),
        job("ping.a", LATER_NS, 0),
        job("other.b", 1, 0),
        job("other.b", LATER_NS + 1, 0),
        job("ping.due", LATER_NS + 2, 1),
        job("ping.done", 1_605_457_800_000_000_000, 2),
        job("ping.failed", 1_605_457_800_000_000_000, 3),
        job("ping.gone", LATER_NS, 0),
        framed(&[&[2], &*text("ping.gone")].concat()),
        framed(&[&[3], &*text("rule.gone")].concat()),
    ]
    .concat()
}

#[tokio::test]
async fn schedule_import_takes_a_ztick_over() {
    let server = Server::start().await;
    let path = server.path("logfile");
    fs::write(&path, [logfile(), job("ping.cut", 1, 0)[..9].to_vec()].concat()).unwrap();
    let import = ["schedule", "import", "--ztick", path.to_str().unwrap()];

    let dry = server.run(&[&import[..], &["--dry-run"]].concat()).await;
    assert!(dry.err.contains("the last record is cut, 9 bytes at byte"), "{dry}");
    let dry = dry.good();
    let mut lines: Vec<&str> = dry.lines().collect();
    let summary = lines.pop().unwrap();
    assert_eq!(
        lines,
        [
            "rule rule.ping: pattern `ping.`, runner http",
            "rule rule.redis: pattern `cache.`, runner redis",
            "job other.b: 2199-04-10T12:00:00.000000001Z",
            "job ping.a: 2199-04-10T12:00:00Z",
            "job ping.due: 2199-04-10T12:00:00.000000002Z",
        ]
    );
    assert!(summary.starts_with("would be set: 2 rules, 3 jobs, of 13 records"), "{summary}");
    assert_eq!(server.run_json(&["schedule", "list"]).await, json!({"jobs": []}));

    // One record is refused; the others go on.
    let ran = server.run(&import).await;
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(ran.out.contains("refused: rule rule.redis: the runner `redis`"), "{ran}");
    assert!(ran.out.contains("set: 1 rules, 3 jobs"), "{ran}");
    assert!(ran.out.contains("1 executed and 1 failed"), "{ran}");
    assert!(ran.err.contains("[scheduler] runners"), "{ran}");
    assert!(!ran.said().contains("s3cret") && !dry.contains("s3cret"), "{ran}");
    let jobs = server.run_json(&["schedule", "list"]).await;
    assert_eq!(ids(&jobs["jobs"]), ["other.b", "ping.a", "ping.due"]);
    assert_eq!(jobs["jobs"][0]["execution"], LATER_NS + 1);
    let rules = server.run_json(&["schedule", "rules", "list"]).await;
    assert_eq!(ids(&rules["rules"]), ["rule.ping"]);

    // Once more, a part of it: as it was.
    let part = [&import[..], &["--prefix", "ping.", "--format", "json"]].concat();
    let again = server.run(&part).await.json();
    assert_eq!((&again["rules"], &again["jobs"]), (&json!(1), &json!(2)), "{again}");
    assert_eq!(again["left_out"], json!({"executed": 1, "failed": 1, "other_prefix": 2}));
    assert_eq!(again["cut"]["bytes"], 9);
    assert_eq!(server.run_json(&["schedule", "list"]).await, jobs);
}

#[tokio::test]
async fn schedule_import_keeps_to_the_callers_scope_and_names_damage() {
    let server = Server::start().await;
    let path = server.path("logfile");
    fs::write(&path, logfile()).unwrap();
    let token = Token::new("tenant", &["schedules:*", "rules:*"]).within(&["ping"]).sign();
    let import = ["--token", &token, "schedule", "import", "--ztick", path.to_str().unwrap()];
    let ran = server.run(&import).await;
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(ran.out.contains("refused: job other.b: namespace not found: other.b"), "{ran}");
    assert!(ran.out.contains("refused: rule rule.redis: namespace not found"), "{ran}");
    let jobs = server.run_json(&["schedule", "list"]).await;
    assert_eq!(ids(&jobs["jobs"]), ["ping.a", "ping.due"]);

    let mut damaged = logfile();
    let first = rule("rule.ping", "ping.", 4, &["POST", "https://example.com/"]).len();
    damaged[first + 4] = 9;
    fs::write(&path, &damaged).unwrap();
    let ran = server.run(&["schedule", "import", "--ztick", path.to_str().unwrap()]).await;
    assert_eq!(ran.code, Some(2), "{ran}");
    let what = format!("byte {}: the type of record 9 is not known", first + 4);
    assert!(ran.err.contains(&what), "{ran}");

    // Nothing is there to take it.
    fs::write(&path, logfile()).unwrap();
    let nobody = ["--url", "http://127.0.0.1:1", "schedule", "import", "--ztick"];
    let ran = alone(&[&nobody[..], &[path.to_str().unwrap()]].concat()).await;
    assert_eq!(ran.code, Some(3), "{ran}");
}
