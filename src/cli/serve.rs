//! `bailiwick serve`: a server until it is told to stop.

use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Error, Result};
use crate::{
    config::Settings,
    server::{self, telemetry},
};

/// The exit code of a process that was told twice to stop.
const INTERRUPTED: i32 = 130;

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  bailiwick serve                       without authentication, on loopback\n  bailiwick -c bailiwick.toml serve\n  BAILIWICK__SERVER__HTTP_LISTEN=127.0.0.1:9000 bailiwick serve"
)]
pub(super) struct Args {}

pub(super) async fn run(_: Args, config: Option<&Path>) -> Result {
    let settings = Settings::load(config, std::env::vars_os())
        .map_err(|error| Error::Usage(format!("the configuration is refused: {error}")))?;
    let guard = telemetry::init(&settings.telemetry)
        .map_err(|error| Error::Usage(format!("the configuration is refused: {error}")))?;
    let stop = until_told()?;
    let running =
        server::start(&settings).await.map_err(|error| Error::Failed(error.to_string()))?;
    stop.cancelled().await;
    tracing::info!("going down");
    running.stop().await;
    guard.flush();
    Ok(())
}

/// What a first and a second SIGINT or SIGTERM cancel.
pub(super) struct Signals {
    pub(super) first: CancellationToken,
    pub(super) second: CancellationToken,
}

pub(super) fn signals() -> Result<Signals> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    let tokens = [first.clone(), second.clone()];
    server::spawn(async move {
        for token in tokens {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            token.cancel();
        }
    });
    Ok(Signals { first, second })
}

/// Cancelled by the first signal; the second one ends the process at once.
pub(super) fn until_told() -> Result<CancellationToken> {
    let Signals { first, second } = signals()?;
    server::spawn(async move {
        second.cancelled().await;
        std::process::exit(INTERRUPTED);
    });
    Ok(first)
}
