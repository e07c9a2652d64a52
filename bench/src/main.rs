//! Benchmarks of Bailiwick, each beside its baseline. The load client is this
//! process; what it measures are processes of their own.

mod axum_server;
mod callers;
mod disk;
mod echo;
mod error;
mod figure;
mod gate;
mod line;
mod load;
mod machine;
mod measure;
mod process;
mod report;
mod rest;
mod server;
mod worker;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    error::{Result, Tried as _, wrong},
    figure::{Figure, Measured},
    measure::Bench,
    server::Places,
};

/// Measure Bailiwick, each figure beside its baseline
#[derive(Debug, Parser)]
#[command(name = "bailiwick-bench", version)]
struct Cli {
    /// Measure these figures alone
    #[arg(long, value_name = "NAME", num_args = 1.., value_enum)]
    only: Vec<Figure>,
    /// How long each window of a measurement is
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Where the figures are written; target/bench.json by default
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The server's program; the one beside this program by default
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// Have the servers count the calls of each caller against a limit that
    /// nobody reaches
    #[arg(long)]
    limits: bool,
    /// End with 1 when a figure misses its floor
    #[arg(long)]
    check: bool,
    /// List the figures and end
    #[arg(long)]
    list: bool,
    #[command(subcommand)]
    baseline: Option<Baseline>,
}

/// The baselines and what is measured in this program, each a process of its
/// own that the bench starts.
#[derive(Debug, Subcommand)]
enum Baseline {
    /// Serve the raw tonic echo
    EchoServer {
        /// Where it listens
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Serve the line echo
    LineEcho {
        /// Where it listens
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Serve the hand-written axum routes
    AxumServer {
        /// The configuration of a server
        #[arg(long)]
        config: PathBuf,
    },
    /// Measure the gate alone and print what each look showed
    Gate {
        /// Which of its figures
        #[arg(long, value_enum)]
        part: gate::Part,
        /// Where keys and configurations are written
        #[arg(long)]
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        report::names();
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            report::line(format!("the runtime cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(code) => code,
        Err(error) => {
            report::line(format!("failed: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode> {
    match cli.baseline {
        Some(Baseline::EchoServer { listen }) => {
            return echo::serve(listen).await.map(|()| ExitCode::SUCCESS);
        }
        Some(Baseline::LineEcho { listen }) => {
            return line::echo(listen).await.map(|()| ExitCode::SUCCESS);
        }
        Some(Baseline::AxumServer { config }) => {
            return axum_server::serve(&config).await.map(|()| ExitCode::SUCCESS);
        }
        Some(Baseline::Gate { part, folder }) => {
            return gate::run(part, &folder).await.map(|()| ExitCode::SUCCESS);
        }
        None => {}
    }
    let (places, target) = places(cli.server, cli.limits)?;
    let json = cli.json.unwrap_or_else(|| target.join("bench.json"));
    for line in machine::description(&places.work) {
        report::line(line);
    }
    let wanted: Vec<Figure> =
        Figure::ALL.into_iter().filter(|f| cli.only.is_empty() || cli.only.contains(f)).collect();
    let bench = Bench { places, window: Duration::from_secs(cli.seconds), target };
    let mut terminate = signal(SignalKind::terminate()).tried("wait for SIGTERM")?;
    // Dropping the measurement ends the processes that it has started.
    let (measured, failed) = tokio::select! {
        measured = measure_all(&bench, &wanted) => measured,
        _ = tokio::signal::ctrl_c() => return Err(wrong("interrupted")),
        _ = terminate.recv() => return Err(wrong("told to end")),
    };
    report::line("");
    report::table(&measured);
    report::file(&json, &measured)?;
    report::line(format!("\nwritten to {}", json.display()));
    let missed = measured.iter().any(|figure| figure.reached() == Some(false));
    Ok(if failed || (cli.check && missed) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One that fails does not keep the others from being measured.
async fn measure_all(bench: &Bench, wanted: &[Figure]) -> (Vec<Measured>, bool) {
    let (mut measured, mut failed) = (Vec::new(), false);
    for figure in wanted {
        report::line(format!("measuring {} …", figure.name()));
        match bench.measure(*figure).await {
            Ok(figure) => measured.push(figure),
            Err(error) => {
                report::line(format!("{} failed: {error}", figure.name()));
                failed = true;
            }
        }
    }
    (measured, failed)
}

/// The programs lie in `target/release`; what is made goes below `target`, so
/// that it is on the file system of a build and never in memory.
fn places(server: Option<PathBuf>, limits: bool) -> Result<(Places, PathBuf)> {
    let bench = std::env::current_exe().tried("find this program")?;
    let folder = bench.parent().ok_or_else(|| wrong("this program lies nowhere"))?;
    let target = folder.parent().unwrap_or(folder).to_owned();
    let server = server.unwrap_or_else(|| folder.join("bailiwick"));
    if !server.is_file() {
        return Err(wrong(format!(
            "{} is missing: build it with `cargo build --release`, or name it with --server",
            server.display()
        )));
    }
    Ok((Places { server, bench: bench.clone(), work: target.clone(), limits }, target))
}
