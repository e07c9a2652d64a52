//! `bailiwick schedule import`: what a logfile of ztick says, through the
//! public API, as whoever runs the command.

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use bailiwick_client::{Client, Error as ClientError};
use futures::{StreamExt as _, stream};
use serde::Serialize;

use super::{
    super::{
        Connection, Error, Format, Result, output,
        ztick::{self, Logfile, Status},
    },
    view::moment,
};
use crate::pb::v1 as pb;

pub(super) const EXAMPLES: &str = "\
Rules are set first, then the jobs that have not run; those that ran or failed are left out,
and said. What was taken over already is set once more: an import that was interrupted can
be run again. Stop ztick first. Refused records are listed, the others go on (exit 1).

Examples:
  bailiwick schedule import --ztick /var/lib/ztick/logfile --dry-run
  bailiwick schedule import --ztick /var/lib/ztick/logfile
  bailiwick schedule import --ztick logfile --prefix deploy. --format json";

/// How many calls are under way at once: the server writes them together.
const AT_ONCE: usize = 32;
/// How often one record is tried when the server asks to come again.
const TRIES: u32 = 20;
/// The longest pause that a server is granted.
const PAUSE_MAX: Duration = Duration::from_mins(1);
/// How many records stand between two reports on a terminal.
const REPORT_EVERY: usize = 100;

#[derive(clap::Args, Debug)]
pub(in crate::cli) struct Args {
    /// The logfile of a ztick; - is standard input
    #[arg(long, value_name = "FILE", required = true)]
    ztick: PathBuf,
    /// Show what would be set; asks no server
    #[arg(long)]
    dry_run: bool,
    /// Only jobs whose ids, and rules whose patterns, begin with this
    #[arg(long, default_value = "")]
    prefix: String,
}

/// A record to be set.
#[derive(Clone, Debug)]
enum Record {
    Rule(Box<pb::SetRuleRequest>),
    Job(pb::SetJobRequest),
}

impl Record {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Rule(_) => "rule",
            Self::Job(_) => "job",
        }
    }

    fn id(&self) -> &str {
        match self {
            Self::Rule(rule) => &rule.id,
            Self::Job(job) => &job.id,
        }
    }
}

/// What the file says, sorted.
#[derive(Debug, Default)]
struct Plan {
    /// In the order in which they are set.
    records: Vec<Record>,
    /// Each record in words.
    words: Vec<String>,
    rules: usize,
    jobs: usize,
    executed: usize,
    failed: usize,
    other_prefix: usize,
}

/// A record that was not set.
#[derive(Debug, Serialize)]
struct Refused {
    kind: &'static str,
    id: String,
    reason: String,
    message: String,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    executed: usize,
    failed: usize,
    other_prefix: usize,
}

#[derive(Debug, Serialize)]
struct CutRecord {
    offset: usize,
    bytes: usize,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Summary {
    dry_run: bool,
    records: usize,
    rules: usize,
    jobs: usize,
    left_out: LeftOut,
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<CutRecord>,
    refused: Vec<Refused>,
}

pub(super) async fn run(args: Args, connection: &Connection, format: Format) -> Result {
    let Args { ztick: path, dry_run, prefix } = args;
    let file = read(&path)?;
    let logfile = ztick::parse(&file)
        .map_err(|fault| Error::Usage(format!("{}: {fault}", path.display())))?;
    let plan = Plan::of(&logfile, &prefix);
    if let Some(cut) = logfile.cut {
        let ztick::Cut { offset, bytes } = cut;
        output::note(format!(
            "warning: {}: the last record is cut, {bytes} bytes at byte {offset}; it is skipped",
            path.display()
        ));
    }
    let mut summary = Summary {
        dry_run,
        records: logfile.records,
        rules: plan.rules,
        jobs: plan.jobs,
        left_out: LeftOut {
            executed: plan.executed,
            failed: plan.failed,
            other_prefix: plan.other_prefix,
        },
        cut: logfile.cut.map(|ztick::Cut { offset, bytes }| CutRecord { offset, bytes }),
        refused: Vec::new(),
    };
    if dry_run {
        if format == Format::Table {
            plan.words.iter().try_for_each(|words| output::line(output::word(words)))?;
        }
    } else {
        summary.refused = set_all(plan.records, &connection.client().await?).await?;
        let refused = |kind| summary.refused.iter().filter(|one| one.kind == kind).count();
        (summary.rules, summary.jobs) =
            (summary.rules - refused("rule"), summary.jobs - refused("job"));
    }
    summary.show(format)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    read.map_err(|error| Error::Usage(format!("{}: {error}", path.display())))
}

impl Plan {
    fn of(logfile: &Logfile<'_>, prefix: &str) -> Self {
        let mut plan = Self::default();
        for (id, rule) in &logfile.rules {
            if !rule.pattern.starts_with(prefix) {
                plan.other_prefix += 1;
                continue;
            }
            plan.rules += 1;
            let (pattern, kind) = (rule.pattern, rule.runner.kind());
            plan.words.push(format!("rule {id}: pattern `{pattern}`, runner {kind}"));
            plan.records.push(Record::Rule(Box::new(pb::SetRuleRequest {
                id: (*id).to_owned(),
                pattern: pattern.to_owned(),
                runner: Some(runner(&rule.runner)),
                retry: None,
            })));
        }
        for (id, job) in &logfile.jobs {
            if !id.starts_with(prefix) {
                plan.other_prefix += 1;
                continue;
            }
            match job.status {
                Status::Executed => plan.executed += 1,
                Status::Failed => plan.failed += 1,
                Status::Planned | Status::Triggered => {
                    plan.jobs += 1;
                    plan.words.push(format!("job {id}: {}", moment(job.execution)));
                    plan.records.push(Record::Job(pb::SetJobRequest {
                        id: (*id).to_owned(),
                        execution: job.execution.to_string(),
                        recurrence: None,
                    }));
                }
            }
        }
        plan
    }
}

fn runner(runner: &ztick::Runner<'_>) -> pb::Runner {
    let of = |kind: pb::RunnerType| pb::Runner { r#type: kind.into(), ..Default::default() };
    let some = |text: &str| Some(text.to_owned());
    match runner {
        ztick::Runner::Shell(command) => {
            pb::Runner { command: some(command), ..of(pb::RunnerType::Shell) }
        }
        ztick::Runner::Amqp { dsn, exchange, routing_key } => pb::Runner {
            dsn: some(dsn),
            exchange: some(exchange),
            routing_key: some(routing_key),
            ..of(pb::RunnerType::Amqp)
        },
        ztick::Runner::Direct { executable, args } => pb::Runner {
            executable: some(executable),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            ..of(pb::RunnerType::Direct)
        },
        ztick::Runner::Awf { workflow, inputs } => pb::Runner {
            workflow: some(workflow),
            args: inputs.iter().flat_map(|&input| flagged(input)).collect(),
            ..of(pb::RunnerType::Awf)
        },
        ztick::Runner::Http { method, url } => {
            pb::Runner { method: some(method), url: some(url), ..of(pb::RunnerType::Http) }
        }
        ztick::Runner::Redis { url, command, key } => pb::Runner {
            url: some(url),
            command: some(command),
            key: some(key),
            ..of(pb::RunnerType::Redis)
        },
    }
}

/// An input as awf takes it, which a file may have with its flag or without.
fn flagged(input: &str) -> impl Iterator<Item = String> {
    let flag = (!input.starts_with('-')).then(|| "--input".to_owned());
    flag.into_iter().chain([input.to_owned()])
}

/// Sets rules, then jobs: none is due without its rule. Answers what was
/// refused; ends early when nothing further can succeed.
async fn set_all(records: Vec<Record>, client: &Client) -> Result<Vec<Refused>> {
    let total = records.len();
    let progress = std::io::stderr().is_terminal();
    let (rules, jobs): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| matches!(record, Record::Rule(_)));
    let (mut done, mut refused) = (0_usize, Vec::new());
    for (part, at_once) in [(rules, 1), (jobs, AT_ONCE)] {
        let calls = part.into_iter().map(|record| async move {
            let answer = set(&record, client).await;
            (record, answer)
        });
        let mut answers = stream::iter(calls).buffered(at_once);
        while let Some((record, answer)) = answers.next().await {
            if let Err(error) = answer {
                let Some(fault) = of_record(&record, &error) else {
                    report(progress, "\n");
                    let what = format!("{done} of {total} records were set; run it again for all");
                    output::note(what);
                    return Err(error.into());
                };
                refused.push(fault);
            }
            done += 1;
            if done.is_multiple_of(REPORT_EVERY) || done == total {
                report(progress, &format!("\r{done} of {total} records"));
            }
        }
    }
    report(progress && total > 0, "\n");
    Ok(refused)
}

/// For people who wait; our own figures alone.
fn report(on_terminal: bool, text: &str) {
    if on_terminal {
        let mut out = std::io::stderr().lock();
        // When standard error is gone there is nobody to tell.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// One record; waits when the server asks to come again.
async fn set(record: &Record, client: &Client) -> std::result::Result<(), ClientError> {
    let mut tries = 0;
    loop {
        let answer = match record {
            Record::Rule(rule) => client.schedules().set_rule((**rule).clone()).await.map(|_| ()),
            Record::Job(job) => client.schedules().set_job(job.clone()).await.map(|_| ()),
        };
        let Err(status) = answer else { return Ok(()) };
        let error = ClientError::from(status);
        tries += 1;
        let ClientError::Refused(refusal) = &error else { return Err(error) };
        let Some(pause) = refusal.retry_after.filter(|_| tries < TRIES) else {
            return Err(error);
        };
        tokio::time::sleep(pause.min(PAUSE_MAX)).await;
    }
}

/// A refusal that is about the record; none when the others would end alike.
fn of_record(record: &Record, error: &ClientError) -> Option<Refused> {
    let ClientError::Refused(refusal) = error else { return None };
    let reason = refusal.reason.clone().unwrap_or_default();
    let of_caller = reason.starts_with("CREDENTIALS_")
        || refusal.retry_after.is_some()
        || ["UNKNOWN_METHOD", "STORAGE_FULL", "INTERNAL", ""].contains(&&*reason);
    (!of_caller).then(|| Refused {
        kind: record.kind(),
        id: record.id().to_owned(),
        reason,
        message: refusal.message.clone(),
    })
}

impl Summary {
    fn show(&self, format: Format) -> Result {
        let Self { dry_run, records, rules, jobs, left_out, cut: _, refused } = self;
        if format == Format::Json {
            output::json(self)?;
        } else {
            for Refused { kind, id, reason, message } in refused {
                let what = format!("refused: {kind} {id}: {message} ({reason})");
                output::line(output::word(&what))?;
            }
            let LeftOut { executed, failed, other_prefix } = left_out;
            let verb = if *dry_run { "would be set" } else { "set" };
            let others = match other_prefix {
                0 => String::new(),
                number => format!(", {number} of another prefix"),
            };
            output::line(format!(
                "{verb}: {rules} rules, {jobs} jobs, of {records} records; left out: {executed} \
                 executed and {failed} failed jobs{others}"
            ))?;
        }
        let count = refused.len();
        if count == 0 {
            return Ok(());
        }
        let disabled = refused.iter().any(|one| one.reason == "RUNNER_DISABLED");
        let hint = if disabled {
            "; `[scheduler] runners` of the server lists the runners that rules may have"
        } else {
            "; `bailiwick auth whoami` shows what you hold and where"
        };
        Err(Error::Failed(format!("{count} records were refused{hint}")))
    }
}
