//! `bailiwick config`, `handlers` and `health`.

use bailiwick_client::Client;
use clap::{Args, ValueEnum};
use serde::Serialize;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{Connection, Error, Format, Result, output, view};
use crate::pb::v1 as pb;

#[derive(Args, Debug)]
pub(super) struct HandlersArgs {
    /// Only handlers of this namespace
    #[arg(long)]
    namespace: Option<String>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  bailiwick health\n  bailiwick health --probe readiness")]
pub(super) struct HealthArgs {
    /// Ask grpc.health.v1 for this service alone; exit 1 unless it serves
    #[arg(long, value_enum)]
    probe: Option<Probe>,
}

/// What a supervisor asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Probe {
    /// The process lives.
    Liveness,
    /// The server can take work.
    Readiness,
    /// The server has started.
    Startup,
}

impl Probe {
    const fn service(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
        }
    }
}

/// One part of a server.
#[derive(Serialize)]
struct Part {
    name: String,
    status: String,
    message: String,
}

pub(super) async fn config(connection: &Connection) -> Result {
    let client = connection.client().await?;
    let answer = client.system().get_config(pb::GetConfigRequest {}).await?.into_inner();
    let config: serde_json::Value = serde_json::from_str(&answer.config)
        .map_err(|error| Error::Failed(format!("the server's answer is not JSON: {error}")))?;
    output::json(&config)
}

pub(super) async fn handlers(
    args: HandlersArgs,
    connection: &Connection,
    format: Format,
) -> Result {
    let client = connection.client().await?;
    let mut handlers: Vec<view::Handler> = Vec::new();
    let mut request = pb::ListHandlersRequest {
        namespace: args.namespace,
        page_size: 500,
        page_token: String::new(),
    };
    loop {
        let page = client.system().list_handlers(request.clone()).await?.into_inner();
        handlers.extend(page.handlers.into_iter().map(view::Handler::from));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if format == Format::Json {
        return output::json(&serde_json::json!({ "handlers": handlers }));
    }
    let rows: Vec<Vec<String>> = handlers
        .into_iter()
        .map(|handler| {
            let counts = [handler.templates.to_string(), handler.workers.to_string()];
            [handler.namespace, handler.name].into_iter().chain(counts).collect()
        })
        .collect();
    output::table(&["NAMESPACE", "HANDLER", "TEMPLATES", "WORKERS"], &rows)
}

pub(super) async fn health(args: HealthArgs, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    if let Some(probe) = args.probe {
        let request = HealthCheckRequest { service: probe.service().to_owned() };
        let mut health = HealthClient::new(client.transport());
        let status = health.check(request).await?.into_inner().status();
        return match status {
            ServingStatus::Serving => match format {
                Format::Json => output::json(&serde_json::json!({ "status": "serving" })),
                Format::Table => output::line("serving"),
            },
            ServingStatus::Unknown | ServingStatus::NotServing | ServingStatus::ServiceUnknown => {
                Err(Error::Failed(format!("{}: not serving", probe.service())))
            }
        };
    }
    detailed(&client, format, "server").await
}

/// How each part of a server or a worker process does.
pub(super) async fn detailed(client: &Client, format: Format, what: &str) -> Result {
    let request = pb::CheckDetailedHealthRequest {};
    let answer = client.health().check_detailed_health(request).await?.into_inner();
    let mut parts: Vec<Part> = answer
        .checks
        .into_iter()
        .map(|(name, part)| Part { name, status: part.status, message: part.message })
        .collect();
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    match format {
        Format::Json => output::json(&serde_json::json!({
            "status": answer.status,
            "version": answer.version,
            "uptime_seconds": answer.uptime_seconds,
            "checks": parts,
        }))?,
        Format::Table => {
            output::line(format!("{} (bailiwick {})", answer.status, answer.version))?;
            let rows: Vec<Vec<String>> =
                parts.into_iter().map(|part| vec![part.name, part.status, part.message]).collect();
            output::table(&["PART", "STATUS", "MESSAGE"], &rows)?;
        }
    }
    if answer.status == "healthy" {
        Ok(())
    } else {
        Err(Error::Failed(format!("the {what} is not well")))
    }
}
