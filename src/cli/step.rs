//! `bailiwick step …`.

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::{Connection, Error, Format, Result, output, read_json, view};
use crate::pb::v1 as pb;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List a task's steps
    #[command(after_help = "Examples:\n  bailiwick step list 0192…")]
    List {
        /// The task's id
        task_uuid: String,
    },
    /// Show one step with its result
    #[command(
        after_help = "Examples:\n  bailiwick step get 0192… charge_payment\n  bailiwick step get 0192… charge_payment --format json"
    )]
    Get {
        /// The task's id
        task_uuid: String,
        /// The step's id or name
        step: String,
    },
    /// Show everything that happened to a step
    #[command(after_help = "Examples:\n  bailiwick step history 0192… charge_payment")]
    History {
        /// The task's id
        task_uuid: String,
        /// The step's id or name
        step: String,
    },
    /// Cure a step by hand
    #[command(after_help = RESOLVE_EXAMPLES)]
    Resolve(Resolve),
}

const RESOLVE_EXAMPLES: &str = "\
Examples:
  bailiwick step resolve TASK charge_payment --action reset --reason 'gateway is back'
  bailiwick step resolve TASK send_confirmation --action resolve --reason 'sent by hand'
  bailiwick step resolve TASK charge_payment --action complete --result '{\"paid\": true}' --reason 'paid in cash'";

#[derive(Args, Debug)]
pub(super) struct Resolve {
    /// The task's id
    task_uuid: String,
    /// The step's id or name
    step: String,
    /// How
    #[arg(long, value_enum)]
    action: Action,
    /// Why; kept in the history
    #[arg(long)]
    reason: String,
    /// The JSON result for `complete`, @FILE, or - for standard input
    #[arg(long, value_name = "JSON")]
    result: Option<String>,
}

/// How an operator cures a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Grant as many attempts again as the template says
    #[value(alias = "reset_for_retry")]
    Reset,
    /// Go on without it; its dependants see null
    #[value(alias = "resolve_manually")]
    Resolve,
    /// Complete it with a result
    #[value(alias = "complete_manually")]
    Complete,
}

#[derive(Serialize)]
struct Steps {
    steps: Vec<view::Step>,
}

#[derive(Serialize)]
struct Entries {
    entries: Vec<view::StepAuditEntry>,
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    match command {
        Command::List { task_uuid } => {
            let steps: Vec<view::Step> =
                all(&client, task_uuid).await?.into_iter().map(view::Step::from).collect();
            match format {
                Format::Json => output::json(&Steps { steps }),
                Format::Table => rows(&steps),
            }
        }
        Command::Get { task_uuid, step } => {
            let step_uuid = find(&client, &task_uuid, step).await?;
            let request = pb::GetStepRequest { task_uuid, step_uuid };
            show(client.steps().get_step(request).await?.into_inner().step, format)
        }
        Command::History { task_uuid, step } => {
            let step_uuid = find(&client, &task_uuid, step).await?;
            let request = pb::GetStepAuditRequest { task_uuid, step_uuid };
            let answer = client.steps().get_step_audit(request).await?.into_inner();
            let entries = answer.entries.into_iter().map(view::StepAuditEntry::from).collect();
            history(entries, format)
        }
        Command::Resolve(args) => {
            if args.result.is_some() && args.action != Action::Complete {
                return Err(Error::Usage("--result goes with --action complete".to_owned()));
            }
            let step_uuid = find(&client, &args.task_uuid, args.step).await?;
            let result = args.result.as_deref().map(read_json).transpose()?;
            let request = pb::ResolveStepRequest {
                task_uuid: args.task_uuid,
                step_uuid,
                action_type: i32::from(match args.action {
                    Action::Reset => pb::StepAction::ResetForRetry,
                    Action::Resolve => pb::StepAction::ResolveManually,
                    Action::Complete => pb::StepAction::CompleteManually,
                }),
                reason: args.reason,
                completion_data: result.map(|result| pb::CompletionData { result }),
            };
            show(client.steps().resolve_step(request).await?.into_inner().step, format)
        }
    }
}

/// All of a task's steps, page by page.
pub(super) async fn all(
    client: &bailiwick_client::Client,
    task_uuid: String,
) -> Result<Vec<pb::Step>> {
    let mut steps = Vec::new();
    let mut request = pb::ListStepsRequest { task_uuid, page_size: 500, page_token: String::new() };
    loop {
        let page = client.steps().list_steps(request.clone()).await?.into_inner();
        steps.extend(page.steps);
        if page.next_page_token.is_empty() {
            return Ok(steps);
        }
        request.page_token = page.next_page_token;
    }
}

/// People know steps by name; the API knows them by id.
async fn find(client: &bailiwick_client::Client, task_uuid: &str, step: String) -> Result<String> {
    if crate::domain::StepId::parse(&step).is_some() {
        return Ok(step);
    }
    let steps = all(client, task_uuid.to_owned()).await?;
    match steps.iter().find(|known| known.name == step) {
        Some(known) => Ok(known.step_uuid.clone()),
        None => {
            let names: Vec<&str> = steps.iter().map(|step| step.name.as_str()).collect();
            let known = names.join(", ");
            Err(Error::Failed(format!("the task has no step `{step}`; it has {known}")))
        }
    }
}

fn show(step: Option<pb::Step>, format: Format) -> Result {
    let step = step.ok_or_else(|| Error::Failed("the server's answer has no step".to_owned()))?;
    let step: view::Step = step.into();
    match format {
        Format::Json => output::json(&step),
        Format::Table => {
            rows(std::slice::from_ref(&step))?;
            if let Some(error) = &step.last_error {
                output::line(format!("last error: {}", output::word(error)))?;
            }
            step.result.as_ref().map_or(Ok(()), output::json)
        }
    }
}

pub(super) fn rows(steps: &[view::Step]) -> Result {
    let rows: Vec<Vec<String>> = steps
        .iter()
        .map(|step| {
            vec![
                step.name.clone(),
                step.handler.clone(),
                format!("{}/{}", step.attempts, step.max_attempts),
                step.step_uuid.clone(),
                step.state.to_owned(),
            ]
        })
        .collect();
    output::table(&["STEP", "HANDLER", "ATTEMPTS", "ID", "STATE"], &rows)
}

fn history(entries: Vec<view::StepAuditEntry>, format: Format) -> Result {
    if format == Format::Json {
        return output::json(&Entries { entries });
    }
    let rows: Vec<Vec<String>> = entries
        .into_iter()
        .map(|entry| {
            vec![
                entry.seq.to_string(),
                entry.time.unwrap_or_default(),
                entry.attempt.to_string(),
                entry.state.to_owned(),
                entry.cause,
                entry.actor,
                entry.reason.or(entry.error).unwrap_or_default(),
            ]
        })
        .collect();
    output::table(&["SEQ", "TIME", "ATTEMPT", "STATE", "CAUSE", "ACTOR", "WHY"], &rows)
}
