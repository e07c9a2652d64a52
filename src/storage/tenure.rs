//! Leases: their terms, and one as the tokens of its step name it.

use std::{sync::Arc, time::Duration};

use super::{Leased, TemplateRecord};
use crate::domain::{LeaseId, Namespace, StepId, Timestamp};

/// How long the token of a step lives at most (SE-31).
pub const TOKEN_LIFE: Duration = Duration::from_mins(5);

/// A lease that holds, as its tokens name it.
#[derive(Clone, Debug)]
pub struct Tenure {
    /// Proves the lease.
    pub id: LeaseId,
    /// The task's namespace.
    pub namespace: Namespace,
    /// The step's id.
    pub step: StepId,
    /// The step's name.
    pub name: Arc<str>,
    /// Which attempt this is.
    pub attempt: u32,
    /// The template, with who stands behind it.
    pub template: Arc<TemplateRecord>,
    /// When the lease ends unless a heartbeat extends it.
    pub expires_at: Timestamp,
    /// When the attempt times out.
    pub timeout_at: Timestamp,
}

impl From<&Leased> for Tenure {
    fn from(leased: &Leased) -> Self {
        Self {
            id: leased.id,
            namespace: leased.namespace.clone(),
            step: leased.step,
            name: Arc::clone(&leased.name),
            attempt: leased.attempt,
            template: Arc::clone(&leased.template),
            expires_at: leased.expires_at,
            timeout_at: leased.timeout_at,
        }
    }
}

impl Tenure {
    /// When it ends, if nothing extends it.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        self.expires_at.min(self.timeout_at)
    }
}

/// The step that makes a task by its token.
#[derive(Clone, Copy, Debug)]
pub struct Spawn {
    /// Its lease, which must hold.
    pub lease: LeaseId,
    /// How many tasks may descend from one root.
    pub budget: u32,
}

/// Why a step made no task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSpawned {
    /// Its lease has ended.
    LeaseEnded,
    /// Its task is as far from its root as one can be.
    TooDeep,
    /// As many as may be descend from the root.
    BudgetSpent,
}

/// The terms of leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    /// How long a lease lasts without a heartbeat.
    pub lease: Duration,
    /// How often workers send one.
    pub heartbeat: Duration,
}

impl LeaseTerms {
    /// Leases of this length, with two heartbeats that may be lost before the
    /// lease ends, or the tokens that it carries (SE-31).
    #[must_use]
    pub fn lasting(lease: Duration) -> Self {
        Self { lease, heartbeat: lease.min(TOKEN_LIFE) / 3 }
    }
}

impl Default for LeaseTerms {
    fn default() -> Self {
        Self::lasting(Duration::from_secs(30))
    }
}
