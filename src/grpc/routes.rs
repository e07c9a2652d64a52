//! Every service with its limits, as one tower service.
//!
//! Not here: the gate and the rest of the stack in front (`server`).

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use tokio_util::task::TaskTracker;
use tonic::{codec::CompressionEncoding, service::Routes};

use super::{
    access_service::AccessService,
    audit_service::AuditService,
    auth_admin_service::AuthAdminService,
    ext_authz::ExtAuthz,
    health_service::HealthService,
    readiness::Readiness,
    schedule_service::ScheduleService,
    step_service::StepService,
    step_tokens::Tokens,
    system_service::SystemService,
    task_service::TaskService,
    template_service::TemplateService,
    transport::Rendered,
    worker_process_service::{KnownTemplates, WorkerProcessService},
    worker_service::WorkerService,
};
use crate::{
    access::{Gate, explain::Explainer},
    admin::{Admin, elevation::Elevating},
    audit::Ledger,
    domain::Permission,
    engine::Engine,
    pb::{
        self,
        envoy::service::auth::v3::authorization_server::AuthorizationServer,
        v1::{
            access_service_server::AccessServiceServer, audit_service_server::AuditServiceServer,
            auth_admin_service_server::AuthAdminServiceServer,
            health_service_server::HealthServiceServer,
            schedule_service_server::ScheduleServiceServer, step_service_server::StepServiceServer,
            system_service_server::SystemServiceServer, task_service_server::TaskServiceServer,
            template_service_server::TemplateServiceServer,
            worker_process_service_server::WorkerProcessServiceServer,
            worker_service_server::WorkerServiceServer,
        },
    },
    schedule::Scheduler,
    signing::StepTokens,
};

/// The longest reply. A lease carries at most 16 MiB of inputs, and one reply
/// several leases.
const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;

macro_rules! limited {
    ($body_bytes:expr, $server:ident, $service:expr) => {
        $server::new($service)
            .max_decoding_message_size($body_bytes)
            .max_encoding_message_size(REPLY_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
    };
}

/// What the services work with.
#[derive(Debug)]
pub struct Parts {
    /// The use cases.
    pub engine: Arc<Engine>,
    /// The use cases about jobs and rules.
    pub scheduler: Arc<Scheduler>,
    /// The use cases about credentials.
    pub admin: Arc<Admin>,
    /// The audit, to be read; none where it is off.
    pub ledger: Option<Arc<Ledger>>,
    /// Where steps have tokens, what makes them.
    pub tokens: Option<Arc<StepTokens>>,
    /// What explains decisions.
    pub explainer: Explainer,
    /// Whether the server is ready.
    pub readiness: Readiness,
    /// Where the tasks of streams run; the shutdown waits for it.
    pub streams: TaskTracker,
    /// The longest message that is taken, in bytes.
    pub body_bytes: usize,
    /// The redacted configuration as a JSON object; none when the settings
    /// turn the endpoint off.
    pub config: Option<Arc<str>>,
    /// The foreign permissions of the configuration.
    pub declared: BTreeSet<Arc<str>>,
    /// Knows what credentials are worth.
    pub gate: Gate,
    /// The use cases about more rights for a while.
    pub elevating: Arc<Elevating>,
    /// The RPCs that each permission opens, by their full names.
    pub opens: Vec<(Permission, String)>,
    /// When the process began.
    pub started: Instant,
}

/// What the services of a worker process work with.
#[derive(Debug)]
pub struct WorkerParts {
    /// Whether the worker is ready.
    pub readiness: Readiness,
    /// Where the templates come from that it knows.
    pub templates: Arc<dyn KnownTemplates>,
    /// The longest message that is taken, in bytes.
    pub body_bytes: usize,
    /// The redacted configuration as a JSON object; none when the settings
    /// turn the endpoint off.
    pub config: Option<Arc<str>>,
    /// When the process began.
    pub started: Instant,
}

/// The services, `grpc.health.v1` and reflection.
pub fn routes(parts: Parts) -> Result<Rendered<Routes>, tonic_reflection::server::Error> {
    let Parts {
        engine,
        scheduler,
        admin,
        ledger,
        tokens,
        explainer,
        readiness,
        streams,
        body_bytes,
        config,
        declared,
        gate,
        elevating,
        opens,
        started,
    } = parts;
    let health = tonic_health::server::HealthService::from_health_reporter(readiness.reporter());
    let mut routes = Routes::builder();
    routes
        .add_service(limited!(body_bytes, TaskServiceServer, TaskService::new(Arc::clone(&engine))))
        .add_service(limited!(body_bytes, StepServiceServer, StepService::new(Arc::clone(&engine))))
        .add_service(limited!(
            body_bytes,
            TemplateServiceServer,
            TemplateService::new(Arc::clone(&engine))
        ))
        .add_service(limited!(
            body_bytes,
            WorkerServiceServer,
            WorkerService::new(Arc::clone(&engine), Tokens::new(tokens), streams)
        ))
        .add_service(limited!(
            body_bytes,
            AccessServiceServer,
            AccessService::new(opens, declared.clone(), explainer, gate.clone())
        ))
        .add_service(limited!(
            body_bytes,
            AuthorizationServer,
            ExtAuthz::new(gate.clone(), declared)
        ))
        .add_service(limited!(
            body_bytes,
            AuthAdminServiceServer,
            AuthAdminService::new(admin, gate, elevating)
        ))
        .add_service(limited!(body_bytes, AuditServiceServer, AuditService::new(ledger)))
        .add_service(limited!(body_bytes, ScheduleServiceServer, ScheduleService::new(scheduler)))
        .add_service(limited!(body_bytes, SystemServiceServer, SystemService::new(engine, config)))
        .add_service(limited!(
            body_bytes,
            HealthServiceServer,
            HealthService::new(readiness, started)
        ))
        .add_service(tonic_health::pb::health_server::HealthServer::new(health))
        .add_service(reflection(pb::FILE_DESCRIPTOR_SET).build_v1()?)
        .add_service(reflection(pb::FILE_DESCRIPTOR_SET).build_v1alpha()?);
    Ok(Rendered(routes.routes().prepare()))
}

/// The same of a worker process.
pub fn worker_routes(
    parts: WorkerParts,
) -> Result<Rendered<Routes>, tonic_reflection::server::Error> {
    let WorkerParts { readiness, templates, body_bytes, config, started } = parts;
    let health = tonic_health::server::HealthService::from_health_reporter(readiness.reporter());
    let mut routes = Routes::builder();
    routes
        .add_service(limited!(
            body_bytes,
            WorkerProcessServiceServer,
            WorkerProcessService::new(config, templates)
        ))
        .add_service(limited!(
            body_bytes,
            HealthServiceServer,
            HealthService::new(readiness, started)
        ))
        .add_service(tonic_health::pb::health_server::HealthServer::new(health))
        .add_service(reflection(pb::WORKER_FILE_DESCRIPTOR_SET).build_v1()?)
        .add_service(reflection(pb::WORKER_FILE_DESCRIPTOR_SET).build_v1alpha()?);
    Ok(Rendered(routes.routes().prepare()))
}

/// Serves our own descriptors, which hold those of error details as well, and
/// both versions of reflection by either.
fn reflection(own: &'static [u8]) -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(own)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        .include_reflection_service(false)
}
