//! How each figure is measured: baseline and server in turns, several times,
//! and the median of each, because machines are noisy.

mod access;
mod audit;
mod explain;
mod gate;
mod latency;
mod life;
mod rest;
mod revoke;
mod schedule;
mod throughput;
mod verify;

use std::{path::PathBuf, sync::atomic::AtomicU64, time::Duration};

use tokio::time::sleep;

use crate::{
    error::Result,
    figure::{Figure, Measured, median},
    load::{self, Caller, Plan, Window},
    server::Places,
};

/// Baseline and server take turns this often.
const ROUNDS: usize = 3;
/// Calls before a window, which do not count.
const WARM_UP: Duration = Duration::from_secs(1);
/// What one window leaves behind must not weigh on the next.
const REST: Duration = Duration::from_millis(300);

/// A run of the bench.
#[derive(Debug)]
pub(crate) struct Bench {
    /// Where programs and data are.
    pub(crate) places: Places,
    /// How long a window is.
    pub(crate) window: Duration,
    /// The folder of the build.
    pub(crate) target: PathBuf,
}

impl Bench {
    /// Measures one figure.
    pub(crate) async fn measure(&self, figure: Figure) -> Result<Measured> {
        match figure {
            Figure::CreateTask => Box::pin(throughput::create_task(self)).await,
            Figure::OneStepTasks => Box::pin(throughput::one_step_tasks(self)).await,
            Figure::Linear => Box::pin(latency::linear(self)).await,
            Figure::AuthApiKey | Figure::AuthCachedJwt => {
                Box::pin(access::measure(self, figure)).await
            }
            Figure::IdleResident => Box::pin(life::idle(self)).await,
            Figure::StartReady => Box::pin(life::start(self)).await,
            Figure::RestGet | Figure::RestPost => Box::pin(rest::measure(self, figure)).await,
            Figure::GateCached => gate::cached(self).await,
            Figure::GateJwt => gate::jwt(self).await,
            Figure::GateTokens => gate::tokens(self).await,
            Figure::RevokeSeen => Box::pin(revoke::seen(self)).await,
            Figure::SetSerial => Box::pin(schedule::set_serial(self)).await,
            Figure::SetPipelined => Box::pin(schedule::set_pipelined(self)).await,
            Figure::Set64 => Box::pin(schedule::set_64(self)).await,
            Figure::QueryPrefix => Box::pin(schedule::query_prefix(self)).await,
            Figure::Firing => Box::pin(schedule::firing(self)).await,
            Figure::Due => Box::pin(schedule::due(self)).await,
            Figure::JobBytes => Box::pin(schedule::job_bytes(self)).await,
            Figure::IdleConnections => Box::pin(schedule::idle_connections(self)).await,
            Figure::StartJobs => Box::pin(schedule::start(self)).await,
            Figure::AuditCost => Box::pin(audit::cost(self)).await,
            Figure::VerifyRate => verify::rate(self).await,
            Figure::Explain => Box::pin(explain::explain(self)).await,
            Figure::StepTokenCost => Box::pin(audit::step_tokens(self)).await,
        }
    }

    /// One window of load on a process.
    async fn window<C: Caller>(
        &self,
        callers: Vec<C>,
        server: u32,
        counter: &AtomicU64,
    ) -> Result<Window> {
        let plan = Plan { warm_up: WARM_UP, window: self.window, server };
        let window = load::run(callers, plan, counter).await?;
        sleep(REST).await;
        Ok(window)
    }
}

/// The median of one number of all windows.
fn middle(windows: &[Window], of: impl Fn(&Window) -> f64) -> f64 {
    median(&windows.iter().map(of).collect::<Vec<_>>())
}

/// What the windows of one side showed, in a line.
fn shown(side: &str, windows: &[Window]) -> String {
    let rates: Vec<_> = windows.iter().map(|window| format!("{:.0}", window.rate)).collect();
    format!(
        "{side}: {} calls/s; p50 {:.2} ms, p99 {:.2} ms; CPU per call: server {:.1} us, client {:.1} us",
        rates.join(", "),
        middle(windows, |window| window.p50_ms),
        middle(windows, |window| window.p99_ms),
        middle(windows, |window| window.server_us),
        middle(windows, |window| window.client_us),
    )
}
