//! `bailiwick task …`.

use std::io::IsTerminal as _;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Connection, Error, Format, Result, output, read_json, view};
use crate::pb::v1 as pb;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a task from a template
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// Show a task
    #[command(
        after_help = "Examples:\n  bailiwick task get 0192…\n  bailiwick task get 0192… --format json"
    )]
    Get {
        /// The task's id
        task_uuid: String,
    },
    /// List tasks, newest first
    #[command(
        after_help = "Examples:\n  bailiwick task list --namespace shop --limit 10\n  bailiwick task list --state error --state blocked_by_failures"
    )]
    List(List),
    /// Show what happens to a task until it ends
    #[command(
        after_help = "Examples:\n  bailiwick task watch 0192…\n  bailiwick task watch 0192… --format json | jq .step"
    )]
    Watch(Watch),
    /// Cancel a task and all that its steps made: open steps at once
    #[command(after_help = "Examples:\n  bailiwick task cancel 0192… --reason 'ordered twice'")]
    Cancel {
        /// The task's id
        task_uuid: String,
        /// Why; kept in the history
        #[arg(long)]
        reason: Option<String>,
    },
    /// Show the context that a task was created with
    #[command(after_help = "Examples:\n  bailiwick task context 0192…")]
    Context {
        /// The task's id
        task_uuid: String,
    },
}

const CREATE_EXAMPLES: &str = "\
Examples:
  bailiwick task create shop/order_fulfillment --context '{\"order_id\": \"o-1\"}'
  bailiwick task create shop/order_fulfillment@1.2.0 --context @order.json --wait
  bailiwick task create shop/order_fulfillment --idempotency-key o-1 --priority 10";

#[derive(Args, Debug)]
pub(super) struct Create {
    /// The template, as NAMESPACE/NAME or NAMESPACE/NAME@VERSION
    #[arg(value_name = "TEMPLATE", required_unless_present_all = ["namespace", "name"])]
    template: Option<String>,
    /// The template's namespace, instead of TEMPLATE
    #[arg(long, requires = "name", conflicts_with = "template")]
    namespace: Option<String>,
    /// The template's name, instead of TEMPLATE
    #[arg(long, requires = "namespace", conflicts_with = "template")]
    name: Option<String>,
    /// The template's version; the newest by default
    #[arg(long, value_name = "VERSION", conflicts_with = "template")]
    version: Option<String>,
    /// The JSON object to work on, @FILE, or - for standard input
    #[arg(long, value_name = "JSON")]
    context: Option<String>,
    /// Higher goes first, -100 to 100
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Makes a repeated creation safe
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Who asks, in your words
    #[arg(long)]
    initiator: Option<String>,
    /// Which system asks
    #[arg(long)]
    source_system: Option<String>,
    /// Why
    #[arg(long)]
    reason: Option<String>,
    /// A label; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Ties tasks of several systems together
    #[arg(long, value_name = "ID")]
    correlation_id: Option<String>,
    /// Wait for the end; exit 1 unless the task completes
    #[arg(long)]
    wait: bool,
}

#[derive(Args, Debug)]
pub(super) struct List {
    /// Only tasks of this namespace
    #[arg(long)]
    namespace: Option<String>,
    /// Only tasks of the template with this name
    #[arg(long)]
    name: Option<String>,
    /// Only tasks in this state; may be given several times
    #[arg(long = "state", value_name = "STATE")]
    states: Vec<String>,
    /// How many at most
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Only tasks that steps of this task made
    #[arg(long, value_name = "TASK_UUID")]
    parent: Option<String>,
    /// Only tasks that descend from this one
    #[arg(long, value_name = "TASK_UUID")]
    root: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct Watch {
    /// The task's id
    task_uuid: String,
    /// Exit 1 unless the task completes, also when it is blocked by failures
    #[arg(long)]
    wait: bool,
    /// Go on behind this event instead of beginning with a snapshot
    #[arg(long, value_name = "SEQ")]
    after_seq: Option<i64>,
}

#[derive(Serialize)]
struct Tasks {
    tasks: Vec<view::Task>,
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> Result {
    match command {
        Command::Create(args) => create(args, connection, format).await,
        Command::Get { task_uuid } => {
            let mut tasks = connection.client().await?.tasks();
            let answer = tasks.get_task(pb::GetTaskRequest { task_uuid }).await?.into_inner();
            show(answer.task, format)
        }
        Command::List(args) => list(args, connection, format).await,
        Command::Watch(args) => watch(args, connection, format).await,
        Command::Cancel { task_uuid, reason } => {
            let mut tasks = connection.client().await?.tasks();
            let request = pb::CancelTaskRequest { task_uuid, reason };
            show(tasks.cancel_task(request).await?.into_inner().task, format)
        }
        Command::Context { task_uuid } => {
            let mut tasks = connection.client().await?.tasks();
            let request = pb::GetTaskContextRequest { task_uuid };
            let context: view::Context = tasks.get_task_context(request).await?.into_inner().into();
            match format {
                Format::Json => output::json(&context),
                Format::Table => output::json(&context.context),
            }
        }
    }
}

fn missing(what: &str) -> Error {
    Error::Failed(format!("the server's answer has no {what}"))
}

fn show(task: Option<pb::Task>, format: Format) -> Result {
    let task: view::Task = task.ok_or_else(|| missing("task"))?.into();
    match format {
        Format::Json => output::json(&task),
        Format::Table => rows(&[task]),
    }
}

fn rows(tasks: &[view::Task]) -> Result {
    let rows: Vec<Vec<String>> = tasks
        .iter()
        .map(|task| {
            vec![
                task.task_uuid.clone(),
                format!("{}/{}@{}", task.namespace, task.name, task.version),
                format!("{}/{}", task.steps.complete, task.steps.total),
                task.created_at.clone().unwrap_or_default(),
                task.state.to_owned(),
            ]
        })
        .collect();
    output::table(&["TASK", "TEMPLATE", "STEPS", "CREATED", "STATE"], &rows)
}

/// `NAMESPACE/NAME[@VERSION]`.
pub(super) fn template_name(text: &str) -> Result<(String, String, Option<String>)> {
    let wrong =
        || Error::Usage(format!("`{text}` is not NAMESPACE/NAME or NAMESPACE/NAME@VERSION"));
    let (namespace, rest) = text.split_once('/').ok_or_else(wrong)?;
    let (name, version) = match rest.split_once('@') {
        Some((name, version)) => (name, Some(version.to_owned())),
        None => (rest, None),
    };
    let empty = namespace.is_empty() || name.is_empty() || version.as_deref() == Some("");
    if empty { Err(wrong()) } else { Ok((namespace.to_owned(), name.to_owned(), version)) }
}

async fn create(args: Create, connection: &Connection, format: Format) -> Result {
    let (namespace, name, version) = match &args.template {
        Some(template) => template_name(template)?,
        None => (args.namespace.unwrap_or_default(), args.name.unwrap_or_default(), args.version),
    };
    let context = args.context.as_deref().map(read_json).transpose()?.unwrap_or_default();
    let client = connection.client().await?;
    let request = pb::CreateTaskRequest {
        namespace,
        name,
        version,
        context,
        initiator: args.initiator,
        source_system: args.source_system,
        reason: args.reason,
        tags: args.tags,
        correlation_id: args.correlation_id,
        priority: args.priority,
        idempotency_key: args.idempotency_key,
    };
    let answer = client.tasks().create_task(request).await?.into_inner();
    let task = answer.task.ok_or_else(|| missing("task"))?;
    if !args.wait {
        return show(Some(task), format);
    }
    if format == Format::Table {
        rows(&[task.clone().into()])?;
    }
    let watch = Watch { task_uuid: task.task_uuid.clone(), wait: true, after_seq: None };
    let outcome = follow(watch, &client, format).await;
    if format == Format::Json {
        let request = pb::GetTaskRequest { task_uuid: task.task_uuid };
        show(client.tasks().get_task(request).await?.into_inner().task, format)?;
    }
    outcome
}

async fn list(args: List, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let mut request = pb::ListTasksRequest {
        namespace: args.namespace,
        name: args.name,
        state: args.states.iter().map(|state| parse_state(state)).collect::<Result<_>>()?,
        page_size: 0,
        page_token: String::new(),
        parent_task_uuid: args.parent,
        root_task_uuid: args.root,
    };
    let mut tasks: Vec<view::Task> = Vec::new();
    while tasks.len() < args.limit {
        request.page_size = u32::try_from((args.limit - tasks.len()).min(500)).unwrap_or(500);
        let page = client.tasks().list_tasks(request.clone()).await?.into_inner();
        tasks.extend(page.tasks.into_iter().map(view::Task::from));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    match format {
        Format::Json => output::json(&Tasks { tasks }),
        Format::Table => rows(&tasks),
    }
}

fn parse_state(text: &str) -> Result<i32> {
    pb::TaskState::from_str_name(&format!("TASK_STATE_{}", text.to_ascii_uppercase()))
        .filter(|state| *state != pb::TaskState::Unspecified)
        .map(i32::from)
        .ok_or_else(|| {
            let known: Vec<&str> =
                crate::domain::task::TaskState::ALL.iter().map(|state| state.as_str()).collect();
            Error::Usage(format!("`{text}` is no state; the states are {}", known.join(", ")))
        })
}

async fn watch(args: Watch, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    follow(args, &client, format).await
}

/// Shows a task's events until it is final; with `wait` the exit code says
/// how it ended, and being blocked by failures is an end too.
async fn follow(args: Watch, client: &bailiwick_client::Client, format: Format) -> Result {
    let Watch { task_uuid, wait, after_seq } = args;
    let request = pb::WatchTaskRequest { task_uuid, after_seq };
    let mut events = client.tasks().watch_task(request).await?.into_inner();
    let mut last = None;
    while let Some(event) = events.message().await? {
        let event: view::Event = event.into();
        let state = event
            .task
            .as_ref()
            .map(|task| task.state)
            .or_else(|| event.snapshot.as_ref()?.task.as_ref().map(|task| task.state));
        match format {
            // `--wait` prints the task alone: one JSON value.
            Format::Json if wait && after_seq.is_none() => {}
            Format::Json => output::json_line(&event)?,
            Format::Table => show_event(&event)?,
        }
        last = state.or(last);
        if wait && last == Some("blocked_by_failures") {
            break;
        }
    }
    match last {
        _ if !wait => Ok(()),
        Some("complete" | "resolved_manually") => Ok(()),
        Some(state) => Err(Error::Failed(format!("the task is {state}"))),
        None => Err(Error::Failed("the watch ended before the task did".to_owned())),
    }
}

/// The part of a time that matters while one looks on.
fn clock(time: &str) -> &str {
    time.split_once('T').map_or(time, |(_, clock)| clock.get(..12).unwrap_or(clock))
}

pub(super) fn show_event(event: &view::Event) -> Result {
    let time = event.time.as_deref().map(clock).unwrap_or_default();
    if let Some(snapshot) = &event.snapshot {
        if let Some(task) = &snapshot.task {
            let name = output::word(&task.name);
            output::line_of_state(&format!("{time}  task {name:<24} "), task.state, "")?;
        }
        for step in &snapshot.steps {
            show_step(time, step)?;
        }
    }
    if let Some(step) = &event.step {
        show_step(time, step)?;
    }
    if let Some(task) = &event.task {
        output::line_of_state(&format!("{time}  task {:<24} ", ""), task.state, "")?;
    }
    Ok(())
}

fn show_step(time: &str, step: &view::StepChanged) -> Result {
    let mark = match step.state {
        "complete" => "✓",
        "error" => "✗",
        "in_progress" => "▸",
        "waiting_for_retry" => "↻",
        _ => "·",
    };
    let mark = if std::io::stdout().is_terminal() { mark } else { "-" };
    let attempt = match step.attempts {
        0 | 1 => String::new(),
        attempts => format!("  (attempt {attempts})"),
    };
    let name = output::word(&step.name);
    output::line_of_state(&format!("{time}  {mark} {name:<27} "), step.state, &attempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_named_in_one_word() {
        let name = |text| template_name(text).ok();
        let own = str::to_owned;
        assert_eq!(name("shop/order"), Some((own("shop"), own("order"), None)));
        assert_eq!(
            name("shop.eu/order@1.2.0"),
            Some((own("shop.eu"), own("order"), Some(own("1.2.0"))))
        );
        for bad in ["shop", "/order", "shop/", "shop/order@", ""] {
            assert_eq!(name(bad), None, "{bad}");
        }
    }

    #[test]
    fn states_are_the_short_words() {
        assert_eq!(parse_state("blocked_by_failures").ok(), Some(4));
        assert!(parse_state("unspecified").is_err() && parse_state("done").is_err());
    }
}
