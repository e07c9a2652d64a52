//! `bailiwick worker …`.

use std::{num::NonZeroUsize, time::Duration};

use clap::{Args, Subcommand};

use super::{
    Connection, Error, Format, Result, output,
    serve::{Signals, signals},
    view,
    work::duration,
};
use crate::{
    config::{LogFormat, Telemetry},
    pb::v1 as pb,
    server::telemetry,
    worker::{self, Options, Stop},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a worker whose handlers are shell commands
    #[command(after_help = RUN_HELP)]
    Run(Run),
    /// List workers, the ones seen last first
    #[command(
        after_help = "Examples:\n  bailiwick worker list\n  bailiwick worker list --namespace shop --format json"
    )]
    List {
        /// Only workers of this namespace
        #[arg(long)]
        namespace: Option<String>,
    },
    /// Make a worker known that leases step by step
    #[command(
        after_help = "Examples:\n  bailiwick worker register --namespace shop --name till-1 --handler reserve_stock"
    )]
    Register {
        /// The namespace; one that ends in a dot takes those below it
        #[arg(long)]
        namespace: String,
        /// The worker's name
        #[arg(long)]
        name: String,
        /// A handler that it offers; may be given several times
        #[arg(long = "handler", required = true, value_name = "NAME")]
        handlers: Vec<String>,
    },
}

const RUN_HELP: &str = "\
A handler gets {\"context\": …, \"results\": {…}, \"step\": {…}} as JSON on standard
input and prints its result as JSON. Exit 65 means that another attempt makes
no sense; any other exit but 0 is retried. The end of standard error goes into
the step's error. A handler sees PATH, HOME, the locale and what --pass-env
names, never the worker's credential.

Examples:
  bailiwick worker run --namespace shop --handler reserve_stock='./reserve.sh'
  bailiwick worker run --namespace shop. --handler charge='python3 charge.py' \\
      --handler ship=./ship --concurrency 16 --pass-env PAYMENT_URL";

#[derive(Args, Debug)]
pub(super) struct Run {
    /// The namespace; one that ends in a dot takes those below it
    #[arg(long)]
    namespace: String,
    /// A handler and its shell command; may be given several times
    #[arg(long = "handler", required = true, value_name = "NAME=COMMAND", value_parser = worker::parse_handler)]
    handlers: Vec<(String, String)>,
    /// How many steps at once
    #[arg(long, default_value = "8")]
    concurrency: NonZeroUsize,
    /// The worker's name [default: the host's name and the process's id]
    #[arg(long)]
    name: Option<String>,
    /// A variable of this environment that handlers see; may be given several
    /// times
    #[arg(long = "pass-env", value_name = "NAME")]
    pass_env: Vec<String>,
    /// A bound on each attempt beside the template's own, as 90s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    /// How long running steps may take after SIGTERM, as 30s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    drain_grace: Option<Duration>,
    /// What to log: error, warn, info, debug or trace
    #[arg(long, default_value = "info", env = "BAILIWICK_LOG", value_name = "LEVEL")]
    log_level: String,
    /// Log JSON
    #[arg(long)]
    log_json: bool,
    /// Send traces to this OTLP collector
    #[arg(long, env = "BAILIWICK_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> Result {
    match command {
        Command::Run(args) => work(args, connection).await,
        Command::List { namespace } => list(namespace, connection, format).await,
        Command::Register { namespace, name, handlers } => {
            let client = connection.client().await?;
            let version = Some(env!("CARGO_PKG_VERSION").to_owned());
            let request = pb::RegisterWorkerRequest { namespace, name, handlers, version };
            let worker = client.workers().register_worker(request).await?.into_inner().worker;
            let worker: view::Worker = worker
                .ok_or_else(|| Error::Failed("the server's answer has no worker".to_owned()))?
                .into();
            match format {
                Format::Json => output::json(&worker),
                Format::Table => rows(vec![worker]),
            }
        }
    }
}

async fn work(args: Run, connection: &Connection) -> Result {
    let settings = Telemetry {
        log_format: if args.log_json { LogFormat::Json } else { LogFormat::Text },
        log_level: args.log_level,
        otlp_endpoint: args.otlp_endpoint,
        service_name: "bailiwick-worker".to_owned(),
    };
    let guard = telemetry::init(&settings).map_err(|error| Error::Usage(error.to_string()))?;
    let options = Options {
        client: connection.lazy_client()?,
        namespace: args.namespace,
        name: args.name,
        handlers: args.handlers,
        concurrency: args.concurrency.get(),
        pass_env: args.pass_env,
        timeout: args.timeout,
        drain_grace: args.drain_grace,
    };
    let Signals { first, second } = signals()?;
    let worked = worker::run(options, Stop { drain: first, cut: second }).await;
    guard.flush();
    Ok(worked?)
}

async fn list(namespace: Option<String>, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let mut workers: Vec<view::Worker> = Vec::new();
    let mut request =
        pb::ListWorkersRequest { namespace, page_size: 500, page_token: String::new() };
    loop {
        let page = client.workers().list_workers(request.clone()).await?.into_inner();
        workers.extend(page.workers.into_iter().map(view::Worker::from));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    match format {
        Format::Json => output::json(&serde_json::json!({ "workers": workers })),
        Format::Table => rows(workers),
    }
}

fn rows(workers: Vec<view::Worker>) -> Result {
    let rows: Vec<Vec<String>> = workers
        .into_iter()
        .map(|worker| {
            vec![
                worker.namespace,
                worker.name,
                worker.handlers.join(","),
                worker.subject,
                worker.leases.to_string(),
                worker.last_seen_at.unwrap_or_default(),
                if worker.connected { "connected" } else { "away" }.to_owned(),
            ]
        })
        .collect();
    let headings = ["NAMESPACE", "WORKER", "HANDLERS", "SUBJECT", "LEASES", "SEEN", "STATE"];
    output::table(&headings, &rows)
}
