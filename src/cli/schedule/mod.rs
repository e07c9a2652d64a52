//! `bailiwick schedule …`.

mod import;
mod rules;
mod view;

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};

use super::{Connection, Error, Format, Result, credentials::incomplete, duration, output};
use crate::{domain::Clock as _, pb::v1 as pb, server::SystemClock};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Set a job, new or in place of the one of its id
    #[command(after_help = SET_EXAMPLES)]
    Set(Set),
    /// Show a job
    #[command(
        after_help = "Examples:\n  bailiwick schedule get backup.daily\n  bailiwick schedule get backup.daily --format json"
    )]
    Get {
        /// The job's id
        id: String,
    },
    /// List jobs by id
    #[command(
        after_help = "Examples:\n  bailiwick schedule list\n  bailiwick schedule list --prefix backup. --format json"
    )]
    List(List),
    /// Remove a job with its history
    #[command(after_help = "Examples:\n  bailiwick schedule remove backup.daily")]
    Remove {
        /// The job's id
        id: String,
    },
    /// Plan a job that is held again, due at once
    #[command(
        after_help = "A job is held when it is due and the one who set its rule may not any more; set the\nrule anew first, else the job is held again.\n\nExamples:\n  bailiwick schedule resume backup.daily"
    )]
    Resume {
        /// The job's id
        id: String,
    },
    /// Show how a job's latest runs went, the latest first
    #[command(
        after_help = "Examples:\n  bailiwick schedule runs backup.daily\n  bailiwick schedule runs backup.daily --format json | jq -r '.runs[0].output'"
    )]
    Runs {
        /// The job's id
        id: String,
        /// How many at most
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Rules: what is done with jobs that are due
    #[command(subcommand)]
    Rules(rules::Command),
    /// Count jobs and rules
    #[command(after_help = "Examples:\n  bailiwick schedule stats")]
    Stats,
    /// Show when a job, or a recurrence that is not set yet, is due next
    #[command(after_help = NEXT_EXAMPLES)]
    Next(Next),
    /// Take over the jobs and rules of another scheduler
    #[command(after_help = import::EXAMPLES)]
    Import(import::Args),
}

const SET_EXAMPLES: &str = "\
Times are RFC 3339 (2026-04-10T12:00:00Z), 2026-04-10 12:00:00 or 2026-04-10 (UTC), or
nanoseconds since 1970. With --at or --in beside a recurrence the first time is that one.

Examples:
  bailiwick schedule set deploy.release.v1.2.3 --at '2026-04-01 12:00:00'
  bailiwick schedule set reminder.7 --in 15m
  bailiwick schedule set backup.daily --cron '0 3 * * *' --tz Europe/Berlin
  bailiwick schedule set poll.orders --every 15m
  bailiwick schedule set report.month --rrule 'FREQ=MONTHLY;BYDAY=-1FR' --at 2026-04-24T16:00:00Z";

const NEXT_EXAMPLES: &str = "\
Examples:
  bailiwick schedule next backup.daily
  bailiwick schedule next --cron '0 0 3 * * MON-FRI' --tz Europe/Berlin -n 10
  bailiwick schedule next --rrule 'FREQ=MONTHLY;BYDAY=-1FR'";

/// When something recurs.
#[derive(Args, Debug)]
#[group(skip)]
struct Recurrence {
    /// Again and again after so much time, as 90s, 15m, 1h30m, 2d
    #[arg(long, value_name = "SPAN", conflicts_with_all = ["cron", "rrule", "tz"])]
    every: Option<String>,
    /// By a cron expression of five fields, of six with the seconds first, or @daily
    #[arg(long, value_name = "EXPRESSION", conflicts_with = "rrule")]
    cron: Option<String>,
    /// By an RRULE of RFC 5545
    #[arg(long, value_name = "RRULE")]
    rrule: Option<String>,
    /// The time zone of --cron or --rrule, as Europe/Berlin; UTC by default
    #[arg(long, value_name = "ZONE", requires = "zoned")]
    tz: Option<String>,
}

impl Recurrence {
    /// As the API takes it.
    fn text(self) -> Option<String> {
        let zoned = |text: String| match &self.tz {
            Some(zone) => format!("CRON_TZ={zone} {text}"),
            None => text,
        };
        let every = self.every.map(|span| format!("every {span}"));
        every.or_else(|| self.cron.or(self.rrule).map(zoned))
    }
}

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("zoned").args(["cron", "rrule"]))]
#[command(group = ArgGroup::new("when").args(["at", "after", "every", "cron", "rrule"]).required(true).multiple(true))]
pub(super) struct Set {
    /// The job's id; what it begins with says which rule counts
    id: String,
    /// When
    #[arg(long, value_name = "TIME", conflicts_with = "after")]
    at: Option<String>,
    /// In how much time, as 30s, 15m or 2h
    #[arg(long = "in", id = "after", value_name = "DURATION", value_parser = duration::duration)]
    after: Option<Duration>,
    #[command(flatten)]
    recurrence: Recurrence,
}

#[derive(Args, Debug)]
pub(super) struct List {
    /// Only jobs whose ids begin with this
    #[arg(long, default_value = "")]
    prefix: String,
    /// How many at most
    #[arg(long, default_value_t = 500)]
    limit: usize,
}

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("zoned").args(["cron", "rrule"]))]
#[command(group = ArgGroup::new("what").args(["id", "every", "cron", "rrule"]).required(true))]
pub(super) struct Next {
    /// The job's id
    id: Option<String>,
    #[command(flatten)]
    recurrence: Recurrence,
    /// What a recurrence is counted from, as `set` takes times; now by default
    #[arg(long, value_name = "TIME", conflicts_with = "id")]
    from: Option<String>,
    /// How many times, at most 100
    #[arg(short, long, default_value_t = 5)]
    number: u32,
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> Result {
    match command {
        Command::Set(args) => set(args, connection, format).await,
        Command::Get { id } => {
            let mut schedules = connection.client().await?.schedules();
            let answer = schedules.get_job(pb::GetJobRequest { id }).await?.into_inner();
            show(answer.job, format)
        }
        Command::List(args) => list(args, connection, format).await,
        Command::Remove { id } => {
            let request = pb::RemoveJobRequest { id: id.clone() };
            connection.client().await?.schedules().remove_job(request).await?;
            removed(&id, format)
        }
        Command::Resume { id } => {
            let mut schedules = connection.client().await?.schedules();
            let answer = schedules.resume_job(pb::ResumeJobRequest { id }).await?.into_inner();
            show(answer.job, format)
        }
        Command::Runs { id, limit } => runs(id, limit, connection, format).await,
        Command::Rules(command) => rules::run(command, connection, format).await,
        Command::Stats => {
            let mut schedules = connection.client().await?.schedules();
            let request = pb::GetSchedulerStatsRequest {};
            let stats = schedules.get_scheduler_stats(request).await?.into_inner().into();
            match format {
                Format::Json => output::json(&stats),
                Format::Table => view::show_stats(&stats),
            }
        }
        Command::Next(args) => next(args, connection, format).await,
        Command::Import(args) => import::run(args, connection, format).await,
    }
}

fn show(job: Option<pb::Job>, format: Format) -> Result {
    let job = view::Job::from(job.ok_or_else(|| incomplete("job"))?);
    match format {
        Format::Json => output::json(&job),
        Format::Table => view::show_jobs(vec![job]),
    }
}

fn removed(id: &str, format: Format) -> Result {
    match format {
        Format::Json => output::json(&serde_json::json!({ "removed": [id] })),
        Format::Table => output::line(format!("removed {id}")),
    }
}

async fn set(args: Set, connection: &Connection, format: Format) -> Result {
    let Set { id, at, after, recurrence } = args;
    let execution = match after {
        Some(after) => {
            let micros = SystemClock.now().plus(after).micros();
            micros.checked_mul(1_000).ok_or_else(|| too_far(after))?.to_string()
        }
        None => at.unwrap_or_default(),
    };
    let request = pb::SetJobRequest { id, execution, recurrence: recurrence.text() };
    let answer = connection.client().await?.schedules().set_job(request).await?.into_inner();
    show(answer.job, format)
}

fn too_far(after: Duration) -> Error {
    Error::Usage(format!("--in: {} s from now is too far; times end in 2262", after.as_secs()))
}

async fn list(args: List, connection: &Connection, format: Format) -> Result {
    let mut schedules = connection.client().await?.schedules();
    let mut request = pb::ListJobsRequest { prefix: args.prefix, ..Default::default() };
    let mut jobs: Vec<view::Job> = Vec::new();
    while jobs.len() < args.limit {
        request.page_size = page_size(args.limit - jobs.len());
        let page = schedules.list_jobs(request.clone()).await?.into_inner();
        jobs.extend(page.jobs.into_iter().map(Into::into));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    more(&request.page_token, args.limit);
    match format {
        Format::Json => output::json(&serde_json::json!({ "jobs": jobs })),
        Format::Table => view::show_jobs(jobs),
    }
}

fn page_size(left: usize) -> u32 {
    u32::try_from(left.min(500)).unwrap_or(500)
}

/// Says that a list is not all.
fn more(next_page_token: &str, limit: usize) {
    if !next_page_token.is_empty() {
        output::note(format!("there are more; --limit was {limit}"));
    }
}

async fn runs(id: String, limit: usize, connection: &Connection, format: Format) -> Result {
    let mut schedules = connection.client().await?.schedules();
    // A job keeps fewer runs than a page has.
    let request =
        pb::ListJobRunsRequest { id, page_size: page_size(limit.max(1)), ..Default::default() };
    let page = schedules.list_job_runs(request).await?.into_inner();
    let runs: Vec<view::Run> = page.runs.into_iter().map(Into::into).collect();
    match format {
        Format::Json => output::json(&serde_json::json!({ "runs": runs })),
        Format::Table => view::show_runs(runs),
    }
}

async fn next(args: Next, connection: &Connection, format: Format) -> Result {
    let Next { id, recurrence, from, number } = args;
    let mut schedules = connection.client().await?.schedules();
    let mut request = pb::PreviewRecurrenceRequest {
        recurrence: String::new(),
        execution: from.unwrap_or_default(),
        count: number.max(1),
    };
    let mut executions = None;
    if let Some(id) = id {
        let answer = schedules.get_job(pb::GetJobRequest { id }).await?.into_inner();
        let job = answer.job.ok_or_else(|| incomplete("job"))?;
        request.execution = job.execution.to_string();
        if let Some(recurrence) = job.recurrence {
            request.recurrence = recurrence;
        } else if job.status() == pb::JobStatus::Planned {
            executions = Some(vec![job.execution]);
        } else {
            let job = view::Job::from(job);
            let (id, status) = (job.id, job.status);
            let what = format!(
                "{id} is {status} and does not recur; `bailiwick schedule set` plans it anew"
            );
            return Err(Error::Failed(what));
        }
    } else {
        request.recurrence = recurrence.text().unwrap_or_default();
    }
    let executions = match executions {
        Some(executions) => executions,
        None => schedules.preview_recurrence(request).await?.into_inner().executions,
    };
    match format {
        Format::Json => output::json(&serde_json::json!({ "executions": executions })),
        Format::Table => executions.iter().try_for_each(|at| output::line(view::moment(*at))),
    }
}
