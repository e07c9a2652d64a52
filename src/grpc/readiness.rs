//! Whether the server can take work, and how `grpc.health.v1` hears of it.
//!
//! Not here: how the parts of the engine do; they say it themselves.

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    access::{Kind, Reason, Refusal},
    admin::Admin,
    engine::Engine,
    pb::{envoy::service::auth::v3::authorization_server::AuthorizationServer, v1 as pb},
};

pub use crate::engine::Health;

/// How long a start waits for the first rounds of its parts, and how often
/// it looks.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);
const BEGIN_LOOK: Duration = Duration::from_millis(1);
/// How often a server that is well is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often one that is not: probes shall soon hear of its cure, and at the
/// start of its first breath.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// When another try makes sense for who finds the server not ready.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The full names of the services that `grpc.health.v1` knows.
pub const SERVICES: [&str; 11] = [
    <pb::task_service_server::TaskServiceServer<()> as NamedService>::NAME,
    <pb::step_service_server::StepServiceServer<()> as NamedService>::NAME,
    <pb::template_service_server::TemplateServiceServer<()> as NamedService>::NAME,
    <pb::worker_service_server::WorkerServiceServer<()> as NamedService>::NAME,
    <pb::schedule_service_server::ScheduleServiceServer<()> as NamedService>::NAME,
    <pb::audit_service_server::AuditServiceServer<()> as NamedService>::NAME,
    <pb::access_service_server::AccessServiceServer<()> as NamedService>::NAME,
    <pb::auth_admin_service_server::AuthAdminServiceServer<()> as NamedService>::NAME,
    <pb::system_service_server::SystemServiceServer<()> as NamedService>::NAME,
    <pb::health_service_server::HealthServiceServer<()> as NamedService>::NAME,
    <AuthorizationServer<()> as NamedService>::NAME,
];

/// The same of what a worker process serves.
pub const WORKER_SERVICES: [&str; 2] = [
    <pb::health_service_server::HealthServiceServer<()> as NamedService>::NAME,
    <pb::worker_process_service_server::WorkerProcessServiceServer<()> as NamedService>::NAME,
];

/// What the readiness of a process follows from.
pub trait Watched: fmt::Debug + Send + Sync {
    /// How each part does, by name.
    fn health(&self) -> Vec<(&'static str, Health)>;

    /// Whether each part has done its first round.
    fn has_begun(&self) -> bool {
        true
    }
}

/// The parts of a server. No text of theirs comes from a tenant (SE-11).
#[derive(Debug)]
struct Server {
    engine: Arc<Engine>,
    admin: Arc<Admin>,
}

impl Watched for Server {
    fn health(&self) -> Vec<(&'static str, Health)> {
        let mut parts = self.engine.health();
        let token_file = self.admin.token_file_is_well().map(|well| {
            if well {
                Health::Healthy("works")
            } else {
                Health::Unhealthy("cannot be read; see the log")
            }
        });
        parts.extend(token_file.map(|health| ("token_file", health)));
        parts
    }

    fn has_begun(&self) -> bool {
        self.engine.has_begun()
    }
}

/// Where the process stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Something that it needs is not there yet, as keys.
    Starting,
    /// It takes calls.
    Serving,
    /// It goes down and finishes what runs.
    Draining,
}

/// A handle to whether the server is ready; clones are the same one.
#[derive(Clone, Debug)]
pub struct Readiness {
    watched: Vec<Arc<dyn Watched>>,
    what: &'static str,
    services: &'static [&'static str],
    phase: Arc<watch::Sender<Phase>>,
    reporter: HealthReporter,
}

impl Readiness {
    /// Of a server that starts.
    #[must_use]
    pub fn new(engine: Arc<Engine>, admin: Arc<Admin>) -> Self {
        Self::of(Arc::new(Server { engine, admin }), "server", &SERVICES)
    }

    /// Of a worker process that starts.
    #[must_use]
    pub fn of_worker(watched: Arc<dyn Watched>) -> Self {
        Self::of(watched, "worker", &WORKER_SERVICES)
    }

    fn of(
        watched: Arc<dyn Watched>,
        what: &'static str,
        services: &'static [&'static str],
    ) -> Self {
        let phase = Arc::new(watch::Sender::new(Phase::Starting));
        let watched = vec![watched];
        Self { watched, what, services, phase, reporter: HealthReporter::new() }
    }

    /// Watches something besides.
    #[must_use]
    pub fn watching(mut self, more: Arc<dyn Watched>) -> Self {
        self.watched.push(more);
        self
    }

    /// Says where the process stands now.
    pub fn set(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Waits until each part has done its first round, 5 s at most.
    pub async fn begun(&self) {
        let begun = async {
            while !self.watched.iter().all(|part| part.has_begun()) {
                tokio::time::sleep(BEGIN_LOOK).await;
            }
        };
        // A part that hangs shows in the answers of health.
        let _ = tokio::time::timeout(BEGIN_WITHIN, begun).await;
    }

    /// Whether the server can take work; says why not.
    pub fn check(&self) -> Result<(), Refusal> {
        let phase = *self.phase.borrow();
        let (reason, message) = match phase {
            Phase::Starting => (Reason::NotReady, format!("The {} is starting", self.what)),
            Phase::Draining => (Reason::ShuttingDown, format!("The {} is going down", self.what)),
            Phase::Serving if self.is_well() => return Ok(()),
            Phase::Serving => {
                (Reason::NotReady, format!("A part of the {} is unhealthy", self.what))
            }
        };
        let refusal = Refusal::new(Kind::Unavailable, reason, message);
        Err(Refusal { retry_after: Some(RETRY_AFTER), ..refusal })
    }

    /// Tells `grpc.health.v1` until the shutdown, and that at once.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut phases = self.phase.subscribe();
        loop {
            self.report().await;
            let pause = if self.check().is_ok() { LOOK_EVERY } else { LOOK_AGAIN };
            tokio::select! {
                _ = phases.changed() => {}
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => {
                    self.set(Phase::Draining);
                    return self.report().await;
                }
            }
        }
    }

    /// Tells `grpc.health.v1` once; before the first time it knows no name.
    pub async fn report(&self) {
        let serving = |yes| if yes { ServingStatus::Serving } else { ServingStatus::NotServing };
        let ready = serving(self.check().is_ok());
        let started = serving(*self.phase.borrow() != Phase::Starting);
        let reporter = &self.reporter;
        reporter.set_service_status("liveness", ServingStatus::Serving).await;
        reporter.set_service_status("startup", started).await;
        for name in ["", "readiness"].into_iter().chain(self.services.iter().copied()) {
            reporter.set_service_status(name, ready).await;
        }
    }

    pub(super) fn parts(&self) -> Vec<(&'static str, Health)> {
        self.watched.iter().flat_map(|part| part.health()).collect()
    }

    pub(super) fn reporter(&self) -> HealthReporter {
        self.reporter.clone()
    }

    fn is_well(&self) -> bool {
        let parts = self.parts();
        !parts.iter().any(|(_, health)| matches!(health, Health::Unhealthy(_)))
    }
}
