//! `bailiwick work …`: a worker's calls one by one, for scripts.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Connection, Error, Format, Result, duration::duration, output, read_json, view};
use crate::pb::v1 as pb;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lease ready steps
    #[command(
        after_help = "Examples:\n  bailiwick work lease --namespace shop --handler reserve_stock --wait 30s --format json"
    )]
    Lease(Lease),
    /// Extend a lease
    #[command(after_help = "Examples:\n  bailiwick work heartbeat LEASE")]
    Heartbeat {
        /// The lease's id
        lease_id: String,
    },
    /// Complete a leased step
    #[command(
        after_help = "Examples:\n  bailiwick work complete LEASE --result '{\"paid\": true}'\n  bailiwick work complete LEASE --result @result.json"
    )]
    Complete {
        /// The lease's id
        lease_id: String,
        /// The JSON result, @FILE, or - for standard input; null by default
        #[arg(long, value_name = "JSON")]
        result: Option<String>,
    },
    /// Report that an attempt failed
    #[command(
        after_help = "Examples:\n  bailiwick work fail LEASE --error 'the gateway did not answer'\n  bailiwick work fail LEASE --error 'no such order' --permanent"
    )]
    Fail {
        /// The lease's id
        lease_id: String,
        /// What went wrong
        #[arg(long)]
        error: String,
        /// Another attempt makes no sense
        #[arg(long)]
        permanent: bool,
    },
}

#[derive(Args, Debug)]
pub(super) struct Lease {
    /// The namespace; one that ends in a dot takes those below it
    #[arg(long)]
    namespace: String,
    /// A handler that you run; may be given several times
    #[arg(long = "handler", required = true, value_name = "NAME")]
    handlers: Vec<String>,
    /// How many steps at most
    #[arg(long, default_value_t = 1)]
    max: u32,
    /// How long to wait for the first one, at most 60s
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = duration)]
    wait: Duration,
    /// The worker's name
    #[arg(long)]
    worker: Option<String>,
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    match command {
        Command::Lease(args) => lease(args, &client, format).await,
        Command::Heartbeat { lease_id } => {
            let request = pb::HeartbeatStepRequest { lease_id };
            let answer = client.workers().heartbeat_step(request).await?.into_inner();
            match answer.state() {
                pb::LeaseState::Held => {
                    let deadline = view::times(answer.deadline.as_ref()).unwrap_or_default();
                    match format {
                        Format::Json => output::json(&serde_json::json!({
                            "lease_id": answer.lease_id,
                            "state": "held",
                            "deadline": deadline,
                        })),
                        Format::Table => output::line(format!("held until {deadline}")),
                    }
                }
                pb::LeaseState::Cancelled => {
                    Err(Error::Failed("the task was cancelled: stop".to_owned()))
                }
                pb::LeaseState::Lost | pb::LeaseState::Unspecified => {
                    Err(Error::Failed("the lease has ended: stop".to_owned()))
                }
            }
        }
        Command::Complete { lease_id, result } => {
            let result = result.as_deref().map(read_json).transpose()?.unwrap_or_default();
            let request = pb::CompleteStepRequest { lease_id, result };
            let answer = client.workers().complete_step(request).await?.into_inner();
            match format {
                Format::Json => output::json(&serde_json::json!({ "already": answer.already })),
                Format::Table => {
                    output::line(if answer.already { "completed before" } else { "completed" })
                }
            }
        }
        Command::Fail { lease_id, error, permanent } => {
            let retryable = Some(!permanent);
            let request = pb::FailStepRequest { lease_id, error, retryable };
            let answer = client.workers().fail_step(request).await?.into_inner();
            match format {
                Format::Json => output::json(&serde_json::json!({
                    "already": answer.already,
                    "step_state": answer.step_state,
                })),
                Format::Table => output::line(format!("the step is {}", answer.step_state)),
            }
        }
    }
}

async fn lease(args: Lease, client: &bailiwick_client::Client, format: Format) -> Result {
    let request = pb::LeaseStepsRequest {
        namespace: args.namespace,
        handlers: args.handlers,
        max_leases: args.max,
        wait_ms: u32::try_from(args.wait.as_millis()).unwrap_or(u32::MAX),
        worker: args.worker,
    };
    let answer = client.workers().lease_steps(request).await?.into_inner();
    let leases: Vec<view::Lease> = answer.leases.into_iter().map(view::Lease::from).collect();
    if format == Format::Json {
        return output::json(&serde_json::json!({ "leases": leases }));
    }
    let rows: Vec<Vec<String>> = leases
        .into_iter()
        .map(|lease| {
            vec![
                lease.lease_id,
                lease.task_uuid,
                lease.name,
                lease.handler,
                lease.attempt.to_string(),
                lease.deadline.unwrap_or_default(),
            ]
        })
        .collect();
    output::table(&["LEASE", "TASK", "STEP", "HANDLER", "ATTEMPT", "DEADLINE"], &rows)
}
