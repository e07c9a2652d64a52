//! The tonic services, and how every error is rendered.
//!
//! Not here: who calls and whether it may (`access`), what happens then
//! (`engine`), REST (`gateway`). A handler converts, takes the proof, calls
//! one use case and converts back.

mod access_check;
mod access_service;
mod audit_service;
mod auth_admin_service;
mod call;
mod convert;
mod ext_authz;
mod health_service;
mod readiness;
mod routes;
mod schedule_service;
pub mod status;
mod step_service;
mod step_tokens;
mod system_service;
mod task_service;
mod template_service;
#[cfg(test)]
mod tests;
mod trace;
mod transport;
mod work_stream;
mod worker_process_service;
mod worker_service;

pub use self::{
    readiness::{Health, Phase, Readiness, SERVICES, WORKER_SERVICES, Watched},
    routes::{Parts, WorkerParts, routes, worker_routes},
    trace::TraceParent,
    transport::Rendered,
    worker_process_service::KnownTemplates,
};
