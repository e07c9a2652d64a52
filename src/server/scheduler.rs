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
    let tools = Tools::new(Arc::new(egress));
    let settings = schedule::Settings {
        runners: settings.scheduler.runners.clone(),
        max_concurrent_runs: settings.scheduler.max_concurrent_runs,
        jwt_grant_hours: settings.scheduler.jwt_grant_hours.map_or(0, NonZeroU64::get),
        rule_id_prefixes: settings.rule_id_prefixes(),
    };
    let (store, engine, clock) = (Arc::clone(store), Arc::clone(engine), Arc::clone(clock));
    Ok(Scheduler::open(store, engine, owners, clock, settings, tools).await?)
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
