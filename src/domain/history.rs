//! What happened to a task, event by event. Events never hold payloads.

use std::sync::Arc;

use super::{
    RequestId, StepNo, Timestamp,
    audit::Origin,
    principal::Identity,
    task::{StepState, TaskState},
};

/// Why something changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The task was created.
    Created,
    /// The last step that it waited for is done.
    DependenciesMet,
    /// A worker took it.
    Leased,
    /// Its worker completed it.
    Completed,
    /// Its worker reported a failure.
    Failed,
    /// No heartbeat came in time.
    LeaseExpired,
    /// The attempt took too long.
    TimedOut,
    /// The lease was lost to a restart of the server.
    ServerRestarted,
    /// The pause before the next attempt is over.
    RetryDue,
    /// Somebody cancelled the task.
    Cancelled,
    /// An operator reset the step.
    ResetForRetry,
    /// An operator resolved the step.
    ResolveManually,
    /// An operator completed the step.
    CompleteManually,
    /// A result came under a dead lease and was refused.
    StaleResultRefused,
}

impl Cause {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Created,
        Self::DependenciesMet,
        Self::Leased,
        Self::Completed,
        Self::Failed,
        Self::LeaseExpired,
        Self::TimedOut,
        Self::ServerRestarted,
        Self::RetryDue,
        Self::Cancelled,
        Self::ResetForRetry,
        Self::ResolveManually,
        Self::CompleteManually,
        Self::StaleResultRefused,
    ];

    /// As it is shown and stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::DependenciesMet => "dependencies_met",
            Self::Leased => "leased",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::LeaseExpired => "lease_expired",
            Self::TimedOut => "timed_out",
            Self::ServerRestarted => "server_restarted",
            Self::RetryDue => "retry_due",
            Self::Cancelled => "cancelled",
            Self::ResetForRetry => "reset_for_retry",
            Self::ResolveManually => "resolve_manually",
            Self::CompleteManually => "complete_manually",
            Self::StaleResultRefused => "stale_result_refused",
        }
    }

    /// From how it is stored.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|cause| cause.as_str() == text)
    }
}

/// One change that the state machine made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The task has a new state.
    Task(TaskState),
    /// A step has a new state.
    Step {
        /// Which step.
        no: StepNo,
        /// Its state now.
        state: StepState,
        /// How many attempts have begun.
        attempts: u32,
        /// Why.
        cause: Cause,
    },
}

/// A change with its place in the task's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place, from 1.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// Who did it; none is the server itself.
    pub actor: Option<Identity>,
    /// The operator's reason; shown by `steps:read` alone.
    pub reason: Option<String>,
    /// What changed.
    pub change: Change,
}

/// How a finished attempt of a step went; shown by `steps:read` alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its number, from 1.
    pub attempt: u32,
    /// What it failed with, when it failed.
    pub error: Option<String>,
}

/// Who makes a change, by which call: stored with the change itself.
#[derive(Clone, Debug)]
pub struct Stamp(Option<Arc<Origin>>);

impl Stamp {
    /// The server itself acts.
    #[must_use]
    pub const fn system() -> Self {
        Self(None)
    }

    /// By a call.
    #[must_use]
    pub const fn of(origin: Arc<Origin>) -> Self {
        Self(Some(origin))
    }

    /// The call; none is the server itself.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.0.as_deref()
    }

    /// Who; none is the server itself.
    #[must_use]
    pub fn actor(&self) -> Option<&Identity> {
        self.origin().map(|origin| &origin.principal.identity)
    }

    /// The public id of the credential, never the credential.
    #[must_use]
    pub fn credential_id(&self) -> &str {
        self.origin().map_or("", |origin| &origin.principal.credential_id)
    }

    /// The call's id, which is also the decision's.
    #[must_use]
    pub fn request(&self) -> Option<RequestId> {
        self.origin().map(|origin| origin.request)
    }
}
