//! The command line: a client of the public API, and the entry to `server`
//! and `worker`. Exit codes: 0 done, 1 refused or not found, 2 wrong usage,
//! 3 server unreachable.

mod access;
mod api_keys;
mod audit;
mod auth;
mod certs;
mod connect;
mod credentials;
mod duration;
mod elevation;
mod error;
mod introspect;
mod output;
mod quickstart;
mod replay;
mod scan;
mod schedule;
mod serve;
mod signing_keys;
mod step;
mod system;
mod task;
mod template;
mod view;
mod work;
mod worker;
mod worker_process;
pub mod ztick;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use connect::Connection;
use error::{Error, Result};
use output::Format;

use crate::process;

/// Durable task orchestration with authority built in.
#[derive(Debug, Parser)]
#[command(name = "bailiwick", version, about, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    /// The configuration that `serve` and `worker run` read, and `auth show-permissions`,
    /// `generate-token`, `validate-token` and `replay`
    #[arg(short, long, global = true, value_name = "FILE", env = "BAILIWICK_CONFIG")]
    config: Option<PathBuf>,
    /// How to print results
    #[arg(long, global = true, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  bailiwick quickstart                           see a task run, secured, in a minute
  bailiwick -c bailiwick.toml serve              run a server
  bailiwick template register order.yaml         make a template known
  bailiwick task create shop/order_fulfillment --context '{\"order_id\": \"o-1\"}' --wait
  bailiwick task list --namespace shop --format json
  bailiwick worker run --namespace shop --handler reserve_stock='./reserve.sh'
  bailiwick schedule set backup.daily --cron '0 3 * * *'

Exit codes: 0 done, 1 refused or not found, 2 wrong usage, 3 server unreachable.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a server
    Serve(serve::Args),
    /// Start a secured server, run a real task on it and show how to go on
    Quickstart(quickstart::Args),
    /// Tasks: runs of a template
    #[command(subcommand)]
    Task(task::Command),
    /// Steps of a task
    #[command(subcommand)]
    Step(step::Command),
    /// Templates: graphs of steps
    #[command(subcommand)]
    Template(template::Command),
    /// Workers: run one, list them
    #[command(subcommand)]
    Worker(worker::Command),
    /// Jobs at a time and what is done with them
    #[command(subcommand)]
    Schedule(schedule::Command),
    /// Lease steps and report on them, call by call
    #[command(subcommand)]
    Work(work::Command),
    /// Credentials and rights
    #[command(subcommand)]
    Auth(auth::Command),
    /// The audit: search, follow, export and verify it
    #[command(subcommand)]
    Audit(audit::Command),
    /// Show the configuration that a server runs with, redacted
    #[command(after_help = "Examples:\n  bailiwick config")]
    Config,
    /// List the handlers that templates name and workers offer
    #[command(
        after_help = "Examples:\n  bailiwick handlers\n  bailiwick handlers --namespace shop --format json"
    )]
    Handlers(system::HandlersArgs),
    /// Ask whether a server is well
    Health(system::HealthArgs),
    /// Print a shell's completion script
    #[command(
        after_help = "Examples:\n  bailiwick completions bash > /etc/bash_completion.d/bailiwick"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(code) = process::entry() {
        return code;
    }
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(format!("error: the runtime cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            if code != ExitCode::SUCCESS {
                output::note(format!("error: {error}"));
                if let Some(hint) = error.hint() {
                    output::note(format!("hint: {hint}"));
                }
            }
            code
        }
    }
}

async fn run(cli: Cli) -> Result {
    let Cli { config, format, connection, command } = cli;
    match command {
        Command::Serve(args) => serve::run(args, config.as_deref()).await,
        Command::Quickstart(args) => Box::pin(quickstart::run(args, format)).await,
        Command::Task(command) => task::run(command, &connection, format).await,
        Command::Step(command) => step::run(command, &connection, format).await,
        Command::Template(command) => template::run(command, &connection, format).await,
        Command::Worker(command) => {
            Box::pin(worker::run(command, config.as_deref(), &connection, format)).await
        }
        Command::Work(command) => work::run(command, &connection, format).await,
        Command::Schedule(command) => schedule::run(command, &connection, format).await,
        Command::Auth(command) => auth::run(command, config.as_deref(), &connection, format).await,
        Command::Audit(command) => audit::run(command, &connection, format).await,
        Command::Config => system::config(&connection).await,
        Command::Handlers(args) => system::handlers(args, &connection, format).await,
        Command::Health(args) => system::health(args, &connection, format).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "bailiwick", &mut script);
            output::line(String::from_utf8_lossy(&script))
        }
    }
}

/// Reads a file, or standard input for `-`.
fn read_text(path: &std::path::Path) -> Result<String> {
    let read = if path.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    read.map_err(|error| Error::Usage(format!("{}: {error}", path.display())))
}

/// JSON given as text, as `@FILE`, or as `-` for standard input.
fn read_json(text: &str) -> Result<String> {
    match text.strip_prefix('@') {
        Some(path) => read_text(path.as_ref()),
        None if text == "-" => read_text(text.as_ref()),
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        let mut command = Cli::command();
        // Global flags reach the commands below when all is built.
        command.build();
        command.debug_assert();
    }
}
