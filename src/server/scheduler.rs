//! The scheduler in the server: who stands behind its rules, and how it does
//! as a part of the process's health.

use std::{net::SocketAddr, num::NonZeroU64, sync::Arc};

use super::Error;
use crate::{
    access::Gate,
    authz::Standing,
    config,
    domain::{
        Clock, Principal, Timestamp,
        principal::{GrantRef, Source},
    },
    egress::Egress,
    engine::Engine,
    grpc::{Health, Watched},
    process::Launcher,
    schedule::{self, Scheduler, Tools},
    storage::Store,
};

/// The part's name.
const PART: &str = "scheduler";

/// Who set rules, as of now.
#[derive(Debug)]
pub(super) struct Owners {
    gate: Gate,
}

impl Owners {
    /// The credentials of the server alone.
    pub(super) fn new(gate: Gate) -> Self {
        Self { gate }
    }
}

impl Standing for Owners {
    fn standing(&self, grant: &GrantRef, now: Timestamp) -> Option<Arc<Principal>> {
        match grant.identity.source {
            Source::Line => self.gate.line_principal(&grant.identity.subject),
            // An auth file guards jobs and rules: the principal of auth off does
            // not stand behind them then (SE-60).
            Source::Disabled if self.gate.has_line_tokens() => None,
            Source::Config
            | Source::Idp
            | Source::Database
            | Source::File
            | Source::Agent
            | Source::Lease
            | Source::Session
            | Source::Certificate
            | Source::Disabled => self.gate.standing(grant, now),
        }
    }
}

/// Over what the server has opened; `own` is where it listens.
pub(super) async fn open(
    settings: &config::Settings,
    own: Vec<SocketAddr>,
    store: &Arc<dyn Store>,
    engine: &Arc<Engine>,
    gate: &Gate,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<Scheduler>, Error> {
    let owners = Arc::new(Owners::new(gate.clone()));
    let egress = Egress::new(&settings.limits.egress)?;
    egress.never_to(own);
    let tools = tools(Tools::default().with_egress(Arc::new(egress)), &settings.scheduler).await?;
    let settings = schedule::Settings {
        runners: settings.scheduler.runners.clone(),
        max_concurrent_runs: settings.scheduler.max_concurrent_runs,
        jwt_grant_hours: settings.scheduler.jwt_grant_hours.map_or(0, NonZeroU64::get),
        rule_id_prefixes: settings.rule_id_prefixes(),
    };
    let (store, engine, clock) = (Arc::clone(store), Arc::clone(engine), Arc::clone(clock));
    Ok(Scheduler::open(store, engine, owners, clock, settings, tools).await?)
}

/// With what starts processes, when a runner that does is listed. A command is
/// tried, so that a server which cannot run them as it should does not start.
async fn tools(tools: Tools, settings: &config::Scheduler) -> Result<Tools, Error> {
    let Some(run_as) = settings.run_as.clone() else { return Ok(tools) };
    let launcher = Launcher::new(run_as, settings.command_timeout)
        .map_err(|error| Error::Commands(error.to_string()))?;
    launcher.probe().await.map_err(Error::Commands)?;
    Ok(tools.with_processes(launcher))
}

/// How the scheduler does.
#[derive(Debug)]
pub(super) struct Part(pub(super) Arc<Scheduler>);

impl Watched for Part {
    fn health(&self) -> Vec<(&'static str, Health)> {
        vec![(PART, self.0.health())]
    }

    fn has_begun(&self) -> bool {
        self.0.has_begun()
    }
}

/// Whether any enabled runner starts processes: then tokens of the line
/// protocol hold `commands:execute`.
pub(super) fn commands(settings: &config::Settings) -> bool {
    settings.scheduler.runners.iter().any(|kind| kind.starts_processes())
}
