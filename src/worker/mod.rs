//! The worker process: runs an operator's shell commands as the handlers of
//! steps. Not in here: the stream to the server, which is `bailiwick-client`'s.

pub mod exec;
mod figures;
mod link;
mod templates;
mod trace;

use std::{fs, process, sync::Arc, time::Duration};

use bailiwick_client::{Client, Error, StepContext, Worker};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::{
    exec::{Command, Environment},
    figures::Run,
};
pub use self::{link::Link, templates::Templates};

/// What a worker process runs, and for whom.
#[derive(Debug)]
pub struct Options {
    /// The connection, with the worker's credential.
    pub client: Client,
    /// The namespace; one that ends in a dot takes those below it.
    pub namespace: String,
    /// The worker's name; host and process id when absent.
    pub name: Option<String>,
    /// Handlers by name, each with its shell command.
    pub handlers: Vec<(String, String)>,
    /// How many steps run at once.
    pub concurrency: usize,
    /// Variables of this process that handlers get too.
    pub pass_env: Vec<String>,
    /// A bound on each attempt, beside the template's own.
    pub timeout: Option<Duration>,
    /// How long running steps may take after the shutdown; the client
    /// library's default when absent.
    pub drain_grace: Option<Duration>,
    /// Hears whether the stream to the server is open.
    pub link: Link,
}

/// When a worker stops.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Takes no new steps and lets running ones end: the first signal.
    pub drain: CancellationToken,
    /// Ends at once, running handlers are killed: the second signal. A process
    /// that exits instead leaves them behind.
    pub cut: CancellationToken,
}

impl From<CancellationToken> for Stop {
    /// One signal, which drains.
    fn from(drain: CancellationToken) -> Self {
        Self { drain, cut: CancellationToken::new() }
    }
}

/// Runs until it is told to stop. An error says that a setting cannot be used
/// or that the server refuses this worker for good.
pub async fn run(options: Options, stop: impl Into<Stop>) -> Result<(), Error> {
    let stop = stop.into();
    let environment = Arc::new(Environment::from_process(&options.pass_env)?);
    let name = options.name.unwrap_or_else(default_name);
    let handlers: Vec<&str> = options.handlers.iter().map(|(name, _)| name.as_str()).collect();
    info!(
        url = options.client.url(),
        namespace = options.namespace,
        name,
        ?handlers,
        concurrency = options.concurrency,
        "the worker starts"
    );
    let mut builder = Worker::builder(options.client)
        .namespace(options.namespace)
        .name(name)
        .version(env!("CARGO_PKG_VERSION"))
        .concurrency(options.concurrency)
        .cancel_grace(exec::STOP_GRACE)
        .span(trace::step_span);
    let link = options.link;
    link.set(false);
    builder = builder.on_connection(move |open| link.set(open));
    if let Some(grace) = options.drain_grace {
        builder = builder.drain_grace(grace);
    }
    for (handler, text) in options.handlers {
        let command =
            Arc::new(Command::new(&handler, &text, Arc::clone(&environment), options.timeout)?);
        builder = builder.handler(handler, move |step: StepContext| {
            let command = Arc::clone(&command);
            async move {
                let run = Run::begin();
                run.ended(command.run(step).await)
            }
        });
    }
    Box::pin(builder.build()?.run_until(stop.drain, stop.cut)).await
}

/// Splits `name='command'` as the command line takes it.
pub fn parse_handler(text: &str) -> Result<(String, String), Error> {
    match text.split_once('=') {
        Some((name, command)) if !name.trim().is_empty() && !command.trim().is_empty() => {
            Ok((name.trim().to_owned(), command.to_owned()))
        }
        _ => Err(Error::Setting(format!(
            "`{text}` is not a handler: write name='command', as in reserve_stock='./reserve.sh'"
        ))),
    }
}

/// The host's name and this process's id: unique enough to be told apart.
#[must_use]
pub fn default_name() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|host| host.trim().to_owned())
        .filter(|host| !host.is_empty())
        .unwrap_or_else(|| "worker".to_owned());
    format!("{host}-{}", process::id())
}

#[cfg(test)]
mod tests;
