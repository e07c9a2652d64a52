//! The tonic services, and how every error is rendered.
//!
//! Not here: who calls and whether it may (`access`), what happens then
//! (`engine`), REST (`gateway`). A handler converts, takes the proof, calls
//! one use case and converts back.

mod access_service;
mod auth_admin_service;
mod call;
mod convert;
mod health_service;
mod readiness;
mod routes;
pub mod status;
mod step_service;
mod system_service;
mod task_service;
mod template_service;
#[cfg(test)]
mod tests;
mod trace;
mod transport;
mod work_stream;
mod worker_service;

pub use self::{
    readiness::{Phase, Readiness, SERVICES},
    routes::{Parts, routes},
    trace::TraceParent,
    transport::Rendered,
};
