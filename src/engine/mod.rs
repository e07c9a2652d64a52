//! The use cases about templates, tasks, steps and work, and the loops that
//! keep tasks moving. Each use case takes a proof, not a caller.
//!
//! Not here: the state machine (`domain::advance`), what is on disk
//! (`storage`), any transport.

mod fields;
mod figures;
mod floor;
pub mod handlers;
pub mod loops;
pub(crate) mod page;
mod session;
mod spawns;
pub mod steps;
pub mod tasks;
pub mod templates;
pub mod watch;
pub mod work;
pub mod workers;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use thiserror::Error as ThisError;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::loops::Pulse;
pub use self::{
    floor::Floor,
    page::{PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, PageRequest, Paged},
    session::{CREDIT_MAX, Offer, Session},
};
/// What the use cases take and answer with; transports know no store.
pub use crate::storage::{
    Error as StoreError, Heartbeat, LeaseTerms, Leased, Revocation, Step, StepBrief, TaskFilter,
    TemplateRecord, Tenure,
};
use crate::{
    domain::{
        Clock, Permission, Timestamp, json, rights::StepRights, task::TaskState, template::Finding,
    },
    storage::{self, Store},
};

/// How many checks of contexts that may take long run at once.
const CHECKS_AT_ONCE: usize = 2;

/// What the use cases work with.
#[derive(Debug)]
pub struct Engine {
    store: Arc<dyn Store>,
    floor: Arc<Floor>,
    clock: Arc<dyn Clock>,
    terms: LeaseTerms,
    closing: CancellationToken,
    pulse: Pulse,
    /// Room for checks of contexts that may take long.
    checks: Arc<Semaphore>,
    /// What steps may get at all.
    rights: Arc<StepRights>,
}

impl Engine {
    /// Over a store whose desk is the floor.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        floor: Arc<Floor>,
        clock: Arc<dyn Clock>,
        terms: LeaseTerms,
    ) -> Arc<Self> {
        Self::with_rights(store, floor, clock, terms, Arc::default())
    }

    /// The same where steps have tokens.
    #[must_use]
    pub fn with_rights(
        store: Arc<dyn Store>,
        floor: Arc<Floor>,
        clock: Arc<dyn Clock>,
        terms: LeaseTerms,
        rights: Arc<StepRights>,
    ) -> Arc<Self> {
        let pulse = Pulse::default();
        Arc::new(Self {
            store,
            floor,
            clock,
            terms,
            closing: CancellationToken::new(),
            pulse,
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
            rights,
        })
    }

    /// The terms of leases, which a worker is told.
    #[must_use]
    pub fn terms(&self) -> LeaseTerms {
        self.terms
    }

    /// How each part does: `storage`, `dispatcher` and `timer`. No text of it
    /// comes from a tenant (SE-11).
    #[must_use]
    pub fn health(&self) -> Vec<(&'static str, Health)> {
        self.pulse.health()
    }

    /// Whether each part has done its first round.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.pulse.has_begun()
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// How a part of the engine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Well; what is known about it.
    Healthy(&'static str),
    /// Not well, and still the process can take work; why.
    Degraded(&'static str),
    /// Not well; why.
    Unhealthy(&'static str),
}

/// Why a use case did not happen.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The namespace is outside of the caller's scope.
    #[error("namespace not found: {0}")]
    NamespaceNotFound(String),
    /// No such task in the caller's scope.
    #[error("task not found: {0}")]
    TaskNotFound(String),
    /// No such step of this task.
    #[error("step not found: {0}")]
    StepNotFound(String),
    /// No such template or version.
    #[error("template not found: {0}")]
    TemplateNotFound(String),
    /// The caller never had this lease.
    #[error("lease not found")]
    LeaseNotFound,
    /// The definition has faults.
    #[error("the template has faults: {}", first(.0))]
    TemplateInvalid(Vec<Finding>),
    /// The version exists with other content.
    #[error("template {0} exists with other content; register it under a new version")]
    TemplateExists(String),
    /// A step asks for a permission that its registrar does not hold there.
    #[error("{step}: {permission} is more than the registrar holds in this namespace")]
    RightMissing {
        /// Which step.
        step: String,
        /// What it asks for.
        permission: Permission,
    },
    /// A step may not make tasks of this template.
    #[error("the step's template does not list {0} in `spawns`: its token makes no task of that")]
    SpawnRefused(String),
    /// The context does not fit the template's input schema.
    #[error("the context does not fit the template's input_schema: {}", .0.join("; "))]
    ContextInvalid(Vec<String>),
    /// A JSON payload is refused.
    #[error("{field}: {source}")]
    PayloadInvalid {
        /// The request's field.
        field: &'static str,
        /// Why.
        source: json::Error,
    },
    /// A field has a value that is not allowed.
    #[error("{field}: {message}")]
    FieldInvalid {
        /// The request's field.
        field: &'static str,
        /// Why, and what is allowed.
        message: String,
    },
    /// The idempotency key was used for another request.
    #[error("the idempotency_key was used for another request; choose a new one")]
    IdempotencyConflict,
    /// The lease has ended; the result was not taken.
    #[error("the lease has ended; the result was not taken")]
    LeaseLost,
    /// The task is final.
    #[error("the task is final: {}", .0.as_str())]
    TaskFinal(TaskState),
    /// The step's state does not allow it.
    #[error("{0}")]
    StepState(String),
    /// The page token is not for this query or caller.
    #[error("page_token: not for this query; begin without one")]
    PageToken,
    /// The server is going down.
    #[error("the server is going down; try another or try again")]
    ShuttingDown,
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

fn first(findings: &[Finding]) -> &str {
    findings.first().map_or("", |finding| finding.message.as_str())
}
