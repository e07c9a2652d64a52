//! Jobs, runs and rules as REST has them.

use serde::Serialize;

use super::super::{output, view::times};
use crate::pb::v1 as pb;

/// A job.
#[derive(Debug, Serialize)]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) execution: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) recurrence: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
}

impl From<pb::Job> for Job {
    fn from(job: pb::Job) -> Self {
        Self {
            status: word(job.status().as_str_name(), "JOB_STATUS_"),
            id: job.id,
            execution: job.execution,
            recurrence: job.recurrence,
            due: job.due,
            reason: job.reason,
            attempts: job.attempts,
        }
    }
}

/// One run of a job.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    number: i64,
    execution: i64,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(skip)]
    duration: Option<String>,
}

impl From<pb::JobRun> for Run {
    fn from(run: pb::JobRun) -> Self {
        let moment = |at: &prost_types::Timestamp| jiff::Timestamp::new(at.seconds, at.nanos).ok();
        let begun = run.started_at.as_ref().and_then(moment);
        let ended = run.ended_at.as_ref().and_then(moment);
        let duration = begun.zip(ended).map(|(begun, ended)| {
            let took = ended.duration_since(begun);
            if took.as_secs() < 10 {
                format!("{} ms", took.as_millis())
            } else {
                format!("{} s", took.as_secs())
            }
        });
        Self {
            outcome: word(run.outcome().as_str_name(), "RUN_OUTCOME_"),
            number: run.number,
            execution: run.execution,
            attempt: run.attempt,
            rule: run.rule,
            started_at: times(run.started_at.as_ref()),
            ended_at: times(run.ended_at.as_ref()),
            error: run.error,
            output: run.output,
            duration,
        }
    }
}

/// A rule.
#[derive(Debug, Serialize)]
pub(super) struct Rule {
    pub(super) id: String,
    pub(super) pattern: String,
    runner: Runner,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<Retry>,
    set_by: String,
    set_at: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Runner {
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    executable: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dsn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exchange: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routing_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<String>,
}

impl From<pb::Runner> for Runner {
    fn from(runner: pb::Runner) -> Self {
        Self {
            r#type: word(runner.r#type().as_str_name(), "RUNNER_TYPE_"),
            command: runner.command,
            executable: runner.executable,
            args: runner.args,
            method: runner.method,
            url: runner.url,
            workflow: runner.workflow,
            dsn: runner.dsn,
            exchange: runner.exchange,
            routing_key: runner.routing_key,
            key: runner.key,
            template: runner.template,
        }
    }
}

impl Runner {
    /// As the line protocol has it, without the type.
    fn words(&self) -> String {
        let Self { r#type, exchange, .. } = self;
        let (first, second) = (&self.command, &self.key);
        let parts = match r#type.as_str() {
            // The command stands behind the address.
            "redis" => [&self.url, first, second],
            "amqp" => [&self.dsn, exchange, &self.routing_key],
            "http" => [&self.method, &self.url, &None],
            "task" => [&self.template, &None, &None],
            _ => [first, &self.executable, &self.workflow],
        };
        let parts = parts.into_iter().flatten().chain(&self.args);
        let parts: Vec<&str> =
            parts.map(|part| if part.is_empty() { "\"\"" } else { part.as_str() }).collect();
        parts.join(" ")
    }
}

#[derive(Debug, Serialize)]
struct Retry {
    max_attempts: Option<u32>,
    backoff: String,
    backoff_base_ms: Option<u32>,
    max_backoff_ms: Option<u32>,
}

impl From<pb::RetryPolicy> for Retry {
    fn from(retry: pb::RetryPolicy) -> Self {
        Self {
            max_attempts: retry.max_attempts,
            backoff: word(retry.backoff().as_str_name(), "RETRY_BACKOFF_"),
            backoff_base_ms: retry.backoff_base_ms,
            max_backoff_ms: retry.max_backoff_ms,
        }
    }
}

impl From<pb::Rule> for Rule {
    fn from(rule: pb::Rule) -> Self {
        Self {
            id: rule.id,
            pattern: rule.pattern,
            runner: rule.runner.unwrap_or_default().into(),
            retry: rule.retry.map(Into::into),
            set_by: rule.set_by,
            set_at: times(rule.set_at.as_ref()),
        }
    }
}

/// The figures of a scheduler.
#[derive(Debug, Serialize)]
pub(super) struct Stats {
    jobs_total: u64,
    jobs_planned: u64,
    jobs_triggered: u64,
    jobs_executed: u64,
    jobs_failed: u64,
    jobs_held: u64,
    rules_total: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    executions_pending: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    executions_inflight: Option<u64>,
}

impl From<pb::GetSchedulerStatsResponse> for Stats {
    fn from(stats: pb::GetSchedulerStatsResponse) -> Self {
        Self {
            jobs_total: stats.jobs_total,
            jobs_planned: stats.jobs_planned,
            jobs_triggered: stats.jobs_triggered,
            jobs_executed: stats.jobs_executed,
            jobs_failed: stats.jobs_failed,
            jobs_held: stats.jobs_held,
            rules_total: stats.rules_total,
            executions_pending: stats.executions_pending,
            executions_inflight: stats.executions_inflight,
        }
    }
}

/// An enum's value as REST has it.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

/// Nanoseconds since 1970 as RFC 3339 in UTC.
pub(super) fn moment(nanos: i64) -> String {
    // The whole range of nanoseconds lies in that of moments.
    jiff::Timestamp::from_nanosecond(nanos.into())
        .map_or_else(|_| nanos.to_string(), |at| at.to_string())
}

pub(super) fn show_jobs(jobs: Vec<Job>) -> super::Result {
    let rows: Vec<Vec<String>> = jobs
        .into_iter()
        .map(|job| {
            let status = match job.reason {
                Some(reason) => format!("{}: {reason}", job.status),
                None => job.status,
            };
            let due = job.due.map(|due| format!(", next attempt {}", moment(due)));
            vec![
                job.id,
                moment(job.execution),
                job.recurrence.unwrap_or_else(|| "once".to_owned()),
                status + &due.unwrap_or_default(),
            ]
        })
        .collect();
    output::table(&["JOB", "EXECUTION", "RECURRENCE", "STATUS"], &rows)
}

pub(super) fn show_runs(runs: Vec<Run>) -> super::Result {
    let rows: Vec<Vec<String>> = runs
        .into_iter()
        .map(|run| {
            vec![
                run.number.to_string(),
                moment(run.execution),
                run.started_at.unwrap_or_default(),
                run.duration.unwrap_or_default(),
                run.attempt.to_string(),
                run.outcome,
                run.rule.unwrap_or_default(),
                tail(&run.error.or(run.output).unwrap_or_default()),
            ]
        })
        .collect();
    let headings =
        ["RUN", "EXECUTION", "STARTED", "DURATION", "ATTEMPT", "OUTCOME", "RULE", "RESULT"];
    output::table(&headings, &rows)
}

/// The last line that says something, cut to what a table holds.
fn tail(text: &str) -> String {
    const LETTERS: usize = 80;
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    match last.char_indices().nth(LETTERS) {
        Some((end, _)) => format!("{}…", last.get(..end).unwrap_or_default()),
        None => last.to_owned(),
    }
}

pub(super) fn show_rules(rules: Vec<Rule>) -> super::Result {
    let rows: Vec<Vec<String>> = rules
        .into_iter()
        .map(|rule| {
            let words = rule.runner.words();
            let attempts = rule.retry.and_then(|retry| retry.max_attempts).unwrap_or(1);
            vec![
                rule.id,
                if rule.pattern.is_empty() { "(all)".to_owned() } else { rule.pattern },
                rule.runner.r#type,
                words,
                attempts.to_string(),
                rule.set_by,
            ]
        })
        .collect();
    output::table(&["RULE", "PATTERN", "RUNNER", "WHAT", "ATTEMPTS", "SET BY"], &rows)
}

pub(super) fn show_stats(stats: &Stats) -> super::Result {
    let headings = ["JOBS", "PLANNED", "TRIGGERED", "EXECUTED", "FAILED", "HELD", "RULES"];
    let row = [
        stats.jobs_total,
        stats.jobs_planned,
        stats.jobs_triggered,
        stats.jobs_executed,
        stats.jobs_failed,
        stats.jobs_held,
        stats.rules_total,
    ];
    output::table(&headings, &[row.iter().map(u64::to_string).collect()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_results_fit_a_table() {
        assert_eq!(moment(1_605_457_800_000_000_000), "2020-11-15T16:30:00Z");
        assert_eq!(moment(-1), "1969-12-31T23:59:59.999999999Z");
        assert!(!moment(i64::MAX).is_empty() && !moment(i64::MIN).is_empty());
        assert_eq!(tail("one\n two \n\n"), "two");
        assert_eq!(tail(&"ü".repeat(81)), format!("{}…", "ü".repeat(80)));
    }

    #[test]
    fn a_runner_is_shown_as_it_is_written() {
        let some = |text: &str| Some(text.to_owned());
        let redis = Runner {
            r#type: "redis".into(),
            url: some("redis://***@h"),
            command: some("SET"),
            key: some("k"),
            ..Runner::default()
        };
        assert_eq!(redis.words(), "redis://***@h SET k");
        let amqp = Runner {
            r#type: "amqp".into(),
            dsn: some("amqp://h"),
            exchange: some(""),
            routing_key: some("k"),
            ..Runner::default()
        };
        assert_eq!(amqp.words(), "amqp://h \"\" k");
        let direct = Runner {
            r#type: "direct".into(),
            executable: some("/bin/x"),
            args: vec!["a".into()],
            ..Runner::default()
        };
        assert_eq!(direct.words(), "/bin/x a");
    }
}
