//! What a handler sees of the step that it does.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use serde::de::DeserializeOwned;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::handler::HandlerError;
use crate::pb::v1::Lease;

/// A leased step: its inputs, and when to stop.
#[derive(Clone)]
pub struct StepContext {
    lease: Arc<Lease>,
    cancelled: CancellationToken,
    timeout_at: Instant,
    tokens: watch::Receiver<Tokens>,
}

/// A step's tokens by the short names of their audiences.
pub(super) type Tokens = Arc<HashMap<String, String>>;

/// The audience of the token for Bailiwick itself.
const OWN_AUDIENCE: &str = "bailiwick";

impl fmt::Debug for StepContext {
    /// Neither the lease's id nor tokens nor payloads: they are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepContext")
            .field("task_uuid", &self.lease.task_uuid)
            .field("step_uuid", &self.lease.step_uuid)
            .field("handler", &self.lease.handler)
            .field("attempt", &self.lease.attempt)
            .finish_non_exhaustive()
    }
}

impl StepContext {
    /// A step out of its lease: for the test of a handler by itself.
    #[must_use]
    pub fn new(
        lease: impl Into<Arc<Lease>>,
        cancelled: CancellationToken,
        timeout_at: Instant,
    ) -> Self {
        let lease = lease.into();
        let (_, tokens) = watch::channel(Arc::new(lease.tokens.clone()));
        Self { lease, cancelled, timeout_at, tokens }
    }

    /// With tokens that are renewed.
    pub(super) fn renewed_by(self, tokens: watch::Receiver<Tokens>) -> Self {
        Self { tokens, ..self }
    }

    /// The step's token for Bailiwick itself as it is now; heartbeats renew it,
    /// so ask again before each use. None where the server has no
    /// `public_url`.
    #[must_use]
    pub fn token(&self) -> Option<String> {
        self.token_for(OWN_AUDIENCE)
    }

    /// The step's token for an audience outside, by the short name that the
    /// template and the server's operator have for it.
    #[must_use]
    pub fn token_for(&self, audience: &str) -> Option<String> {
        self.tokens.borrow().get(audience).cloned()
    }

    /// All tokens, by the short names of their audiences, and every renewal.
    #[must_use]
    pub fn tokens(&self) -> watch::Receiver<Arc<HashMap<String, String>>> {
        self.tokens.clone()
    }

    /// The lease as the server sent it. Its id is a secret of this worker.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The task's id.
    #[must_use]
    pub fn task_uuid(&self) -> &str {
        &self.lease.task_uuid
    }

    /// The step's id: the same in every attempt, so a good idempotency key.
    #[must_use]
    pub fn step_uuid(&self) -> &str {
        &self.lease.step_uuid
    }

    /// The task's namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.lease.namespace
    }

    /// The step's name in its template.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.lease.name
    }

    /// The handler's name.
    #[must_use]
    pub fn handler(&self) -> &str {
        &self.lease.handler
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.lease.attempt
    }

    /// The W3C trace context of the task.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.lease.traceparent.as_deref()
    }

    /// The trace's id out of [`traceparent`](Self::traceparent).
    #[must_use]
    pub fn trace_id(&self) -> Option<&str> {
        let id = self.traceparent()?.split('-').nth(1)?;
        (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
    }

    /// The task's context as a type of yours. One that does not fit fails the
    /// step for good: another attempt would see the same.
    pub fn context<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        parse("the context", &self.lease.context)
    }

    /// The task's context as JSON text.
    #[must_use]
    pub fn context_json(&self) -> &str {
        or_null(&self.lease.context)
    }

    /// The result of a direct parent as a type of yours.
    pub fn result<T: DeserializeOwned>(&self, parent: &str) -> Result<T, HandlerError> {
        let text = self.lease.results.get(parent).ok_or_else(|| {
            HandlerError::permanent(format!("the step does not depend on `{parent}`"))
        })?;
        parse(&format!("the result of `{parent}`"), text)
    }

    /// The results of the direct parents as JSON text, by the parents' names.
    #[must_use]
    pub fn results(&self) -> &HashMap<String, String> {
        &self.lease.results
    }

    /// The handler's settings from the template as a type of yours.
    pub fn initialization<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        parse("the initialization", &self.lease.initialization)
    }

    /// When the attempt times out, on this machine's clock.
    #[must_use]
    pub fn timeout_at(&self) -> Instant {
        self.timeout_at
    }

    /// How much time the attempt has left.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.timeout_at.saturating_duration_since(Instant::now())
    }

    /// Ends when the step is to stop: cancelled, timed out, its lease lost, or
    /// the worker going down. A handler that goes on is dropped a little later.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }
}

fn or_null(text: &str) -> &str {
    if text.is_empty() { "null" } else { text }
}

fn parse<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, HandlerError> {
    serde_json::from_str(or_null(text))
        .map_err(|error| HandlerError::permanent(format!("{what} does not fit: {error}")))
}
