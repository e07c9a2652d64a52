//! `bailiwick worker …`.

use std::{ffi::OsString, num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use clap::{Args, Subcommand};

use super::{
    Connection, Error, Format, Result,
    duration::duration,
    output,
    serve::{Signals, signals},
    view,
    worker_process::{self, Target},
};
use crate::{
    config::{LogFormat, Mode, Settings, Telemetry, TokenStore},
    pb::v1 as pb,
    server::{
        telemetry,
        worker_api::{self, GRPC_LISTEN, HTTP_LISTEN},
    },
    worker::{self, Link, Options, Stop, Templates},
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
    /// Show the configuration that a worker process runs with, redacted
    #[command(
        after_help = "Examples:\n  bailiwick worker config\n  bailiwick worker config --worker-url http://127.0.0.1:9191"
    )]
    Config(Target),
    /// List the templates that a worker process knows
    #[command(
        after_help = "Examples:\n  bailiwick worker templates\n  BAILIWICK_WORKER_URL=http://127.0.0.1:9191 bailiwick worker templates --format json"
    )]
    Templates(Target),
    /// Ask whether a worker process is well
    #[command(
        after_help = "Examples:\n  bailiwick worker health\n  bailiwick worker health --worker-url http://127.0.0.1:9191"
    )]
    Health(Target),
}

const RUN_HELP: &str = "\
A handler gets {\"context\": …, \"results\": {…}, \"step\": {…}} as JSON on standard
input and prints its result as JSON. Exit 65 means that another attempt makes
no sense; any other exit but 0 is retried. The end of standard error goes into
the step's error. A handler sees PATH, HOME, the locale and what --pass-env
names, never the worker's credential.

The worker itself serves gRPC and REST: its health, /metrics, /config and
/v1/templates. --config names the file whose [auth], [limits] and TLS count
there; without it everything but health and metrics is refused.

Examples:
  bailiwick worker run --namespace shop --handler reserve_stock='./reserve.sh'
  bailiwick worker run --namespace shop. --handler charge='python3 charge.py' \\
      --handler ship=./ship --concurrency 16 --pass-env PAYMENT_URL
  bailiwick -c bailiwick.toml worker run --namespace shop --handler ship=./ship \\
      --grpc-listen 127.0.0.1:9291 --http-listen 127.0.0.1:8181";

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
    /// Where the worker's own gRPC listens [default: 127.0.0.1:9191, or a free
    /// port when it is taken]
    #[arg(long, value_name = "ADDRESS")]
    grpc_listen: Option<String>,
    /// Where its REST listens [default: 127.0.0.1:8081, or a free port when it
    /// is taken]
    #[arg(long, value_name = "ADDRESS")]
    http_listen: Option<String>,
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

pub(super) async fn run(
    command: Command,
    config: Option<&Path>,
    connection: &Connection,
    format: Format,
) -> Result {
    match command {
        Command::Run(args) => work(args, config, connection).await,
        Command::Config(target) => worker_process::config(&target, connection).await,
        Command::Templates(target) => worker_process::templates(&target, connection, format).await,
        Command::Health(target) => worker_process::health(&target, connection, format).await,
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

/// The variables that place the server's listeners, not a worker's.
const GRPC_VARIABLE: &str = "BAILIWICK__SERVER__GRPC_LISTEN";
const HTTP_VARIABLE: &str = "BAILIWICK__SERVER__HTTP_LISTEN";
const AUTH_VARIABLE: &str = "BAILIWICK__AUTH__ENABLED";

/// The server's settings with the worker's own addresses, so that the rules
/// about who may reach what hold for these. Without a file nobody has said
/// that everybody may call: then it is closed.
fn listeners(args: &Run, config: Option<&Path>) -> Result<Settings> {
    let place = |own: &Option<String>, usual: &str| OsString::from(own.as_deref().unwrap_or(usual));
    let mut environment: Vec<(OsString, OsString)> = std::env::vars_os()
        .filter(|(name, _)| name != GRPC_VARIABLE && name != HTTP_VARIABLE)
        .collect();
    environment.push((GRPC_VARIABLE.into(), place(&args.grpc_listen, GRPC_LISTEN)));
    environment.push((HTTP_VARIABLE.into(), place(&args.http_listen, HTTP_LISTEN)));
    if config.is_none() && !environment.iter().any(|(name, _)| name == AUTH_VARIABLE) {
        environment.push((AUTH_VARIABLE.into(), "true".into()));
    }
    Settings::load(config, environment).map_err(|error| {
        let text = error
            .to_string()
            .replace("`server.grpc_listen`", "--grpc-listen")
            .replace("`server.http_listen`", "--http-listen");
        Error::Usage(format!("the configuration is refused: {text}"))
    })
}

/// What the file of a server may promise and a worker cannot keep.
const NOT_HERE: &str = "a worker opens no database and no token file: minted tokens, API keys that \
    a server made and revocations do not count at this worker's own ports";

/// What a worker shows of its flags. Commands may hold secrets.
fn shown(args: &Run, name: &str) -> serde_json::Value {
    let handlers: Vec<&str> = args.handlers.iter().map(|(name, _)| name.as_str()).collect();
    serde_json::json!({
        "name": name,
        "namespace": args.namespace,
        "handlers": handlers,
        "concurrency": args.concurrency,
        "pass_env": args.pass_env,
        "timeout_seconds": args.timeout.map(|timeout| timeout.as_secs_f64()),
        "drain_grace_seconds": args.drain_grace.map(|grace| grace.as_secs_f64()),
        "log_level": args.log_level,
    })
}

async fn work(args: Run, config: Option<&Path>, connection: &Connection) -> Result {
    let own = listeners(&args, config)?;
    let name = args.name.clone().unwrap_or_else(worker::default_name);
    let shown = shown(&args, &name);
    let settings = Telemetry {
        log_format: if args.log_json { LogFormat::Json } else { LogFormat::Text },
        log_level: args.log_level,
        otlp_endpoint: args.otlp_endpoint,
        service_name: "bailiwick-worker".to_owned(),
    };
    let guard = telemetry::init(&settings).map_err(|error| Error::Usage(error.to_string()))?;
    let client = connection.lazy_client()?;
    let link = Link::default();
    let handlers = args.handlers.iter().map(|(name, _)| name.clone()).collect();
    let templates = Templates::new(client.clone(), args.namespace.clone(), handlers);
    let Signals { first, second } = signals()?;
    if config.is_some() {
        for warning in &own.warnings {
            tracing::warn!("{warning}");
        }
    }
    let stored = config.is_some() || own.auth.token_store != TokenStore::Database;
    if stored && matches!(own.auth.mode, Mode::On(_)) {
        tracing::warn!("{NOT_HERE}");
    }
    let listening = worker_api::start(worker_api::Setup {
        settings: &own,
        grpc_given: args.grpc_listen.is_some(),
        http_given: args.http_listen.is_some(),
        shown,
        watched: Arc::new(link.clone()),
        templates: Arc::new(templates),
        drain: first.clone(),
    });
    let listening = listening.await.map_err(|error| Error::Failed(error.to_string()))?;
    let options = Options {
        client,
        namespace: args.namespace,
        name: Some(name),
        handlers: args.handlers,
        concurrency: args.concurrency.get(),
        pass_env: args.pass_env,
        timeout: args.timeout,
        drain_grace: args.drain_grace,
        link,
    };
    let worked = worker::run(options, Stop { drain: first, cut: second.clone() }).await;
    listening.stop(second).await;
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
