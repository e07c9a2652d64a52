//! Tasks and steps as the state machine sees them.

use std::{sync::Arc, time::Duration};

use super::{LeaseId, Namespace, StepNo, TaskId, Timestamp, principal::Identity};

/// The lowest and highest priority of a task.
pub const PRIORITY_RANGE: std::ops::RangeInclusive<i32> = -100..=100;

macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal, $code:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// As it is shown.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// As it is stored; never changed once released.
            #[must_use]
            pub const fn code(self) -> u8 {
                match self { $(Self::$variant => $code,)* }
            }

            /// From how it is stored.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }

            /// From how it is shown.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

states! {
    /// Where a task stands.
    TaskState {
        /// No step has been leased yet.
        Pending = "pending", 1;
        /// Something can run.
        InProgress = "in_progress", 2;
        /// Only backoff remains.
        WaitingForRetry = "waiting_for_retry", 3;
        /// A step is in error and nothing can run; curable, not final.
        BlockedByFailures = "blocked_by_failures", 4;
        /// Every step is complete.
        Complete = "complete", 5;
        /// Given up by an operator or by a deadline.
        Error = "error", 6;
        /// Cancelled.
        Cancelled = "cancelled", 7;
        /// Ended with at least one step that an operator resolved.
        ResolvedManually = "resolved_manually", 8;
    }
}

impl TaskState {
    /// Whether nothing will change any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Complete | Self::Error | Self::Cancelled | Self::ResolvedManually => true,
            Self::Pending | Self::InProgress | Self::WaitingForRetry | Self::BlockedByFailures => {
                false
            }
        }
    }
}

states! {
    /// Where a step stands.
    StepState {
        /// Waits for other steps.
        Pending = "pending", 1;
        /// Waits for a worker.
        Ready = "ready", 2;
        /// Leased by a worker.
        InProgress = "in_progress", 3;
        /// Waits for its next attempt.
        WaitingForRetry = "waiting_for_retry", 4;
        /// Done.
        Complete = "complete", 5;
        /// Failed for good, until an operator acts.
        Error = "error", 6;
        /// Cancelled with its task.
        Cancelled = "cancelled", 7;
        /// Resolved by an operator; its dependants see null.
        ResolvedManually = "resolved_manually", 8;
    }
}

impl StepState {
    /// Whether its dependants need not wait for it any more.
    #[must_use]
    pub const fn satisfies(self) -> bool {
        matches!(self, Self::Complete | Self::ResolvedManually)
    }

    /// Whether nothing will change any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Complete | Self::Cancelled | Self::ResolvedManually)
    }
}

/// How many steps of a task are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCounts([u32; StepState::ALL.len()]);

impl StepCounts {
    /// How many are in a state.
    #[must_use]
    pub fn of(&self, state: StepState) -> u32 {
        self.0.get(slot(state)).copied().unwrap_or(0)
    }

    /// How many there are in all.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.0.iter().sum()
    }

    /// Counts a step that is made.
    pub fn add(&mut self, state: StepState, steps: u32) {
        if let Some(count) = self.0.get_mut(slot(state)) {
            *count += steps;
        }
    }

    /// Moves one step between states.
    pub fn shift(&mut self, from: StepState, to: StepState) {
        if let Some(count) = self.0.get_mut(slot(from)) {
            *count = count.saturating_sub(1);
        }
        self.add(to, 1);
    }
}

fn slot(state: StepState) -> usize {
    usize::from(state.code() - 1)
}

/// How the pause before the next attempt grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backoff {
    /// base × 2ⁿ⁻¹ after the nth attempt.
    Exponential,
    /// base × n after the nth attempt.
    Linear,
    /// base.
    Fixed,
}

/// When a failed attempt is followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RetryPolicy {
    /// Whether failures are retried at all.
    pub retryable: bool,
    /// All attempts together, the first one too; at least 1.
    pub max_attempts: u32,
    /// How the pause grows.
    pub backoff: Backoff,
    /// The first pause, in milliseconds.
    pub base_ms: u32,
    /// The longest pause, in milliseconds.
    pub max_ms: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            retryable: true,
            max_attempts: 3,
            backoff: Backoff::Exponential,
            base_ms: 1_000,
            max_ms: 30_000,
        }
    }
}

/// How long an attempt may take unless the template says otherwise.
pub const STEP_TIMEOUT_DEFAULT: Duration = Duration::from_mins(5);

/// The part of a task that the state machine reads and changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskCore {
    /// Its id.
    pub id: TaskId,
    /// Where it stands.
    pub state: TaskState,
    /// Where its steps stand; always the sums over its steps.
    pub counts: StepCounts,
    /// Whether any step has ever been leased.
    pub started: bool,
    /// The place of the last event in its history.
    pub last_seq: i64,
}

/// The part of a step that the state machine reads and changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepCore {
    /// Its number in the task.
    pub no: StepNo,
    /// Where it stands.
    pub state: StepState,
    /// How many of the steps that it waits for are not done.
    pub deps_left: u16,
    /// The steps that wait for it.
    pub dependants: Arc<[StepNo]>,
    /// How many attempts have begun; the number of the present or last one.
    /// Never falls, so no number is given twice.
    pub attempts: u32,
    /// The attempt after which none follows. Starts at the policy's
    /// `max_attempts`; a reset or a lease lost to a restart raises it.
    pub attempts_allowed: u32,
    /// When a failed attempt is followed by another.
    pub retry: RetryPolicy,
    /// How long an attempt may take, in milliseconds.
    pub timeout_ms: u32,
    /// The lease, while it is in progress.
    pub lease: Option<Held>,
    /// When the next attempt is due, while it waits for it.
    pub retry_at: Option<Timestamp>,
}

/// The lease that a step in progress is under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The lease.
    pub id: LeaseId,
    /// The principal that took it (SE-18).
    pub holder: Identity,
    /// The worker's name, in its own words.
    pub worker: Option<Arc<str>>,
    /// When the attempt began.
    pub started_at: Timestamp,
    /// When it ends unless a heartbeat extends it.
    pub expires_at: Timestamp,
    /// When the attempt times out.
    pub timeout_at: Timestamp,
    /// Whether a server restart came over it and no heartbeat since: its end
    /// then uses up no attempt.
    pub orphaned: bool,
}

impl Held {
    /// When the timer must look at it.
    #[must_use]
    pub fn due_at(&self) -> Timestamp {
        self.expires_at.min(self.timeout_at)
    }
}

/// A task as it is shown, without its context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// What the state machine sees.
    pub core: TaskCore,
    /// Its namespace.
    pub namespace: Namespace,
    /// The template's name.
    pub name: Arc<str>,
    /// The template's version.
    pub version: Arc<str>,
    /// −100 to 100, higher first.
    pub priority: i32,
    /// What the caller said about it.
    pub labels: Labels,
    /// Who created it.
    pub created_by: Identity,
    /// When.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it became final.
    pub completed_at: Option<Timestamp>,
    /// Where it comes from, when a step made it.
    pub lineage: Option<Lineage>,
}

/// Where a task comes from that a step made by its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// The task whose step made it.
    pub parent: TaskId,
    /// The first of them all, which no step made.
    pub root: TaskId,
    /// How far from the root, from 1.
    pub depth: u32,
}

/// What a caller says about a task; nothing depends on it but the
/// idempotency key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Who asks.
    pub initiator: Option<String>,
    /// Which system asks.
    pub source_system: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// Free labels.
    pub tags: Vec<String>,
    /// Ties tasks of several systems together.
    pub correlation_id: Option<String>,
    /// Unique per namespace and template.
    pub idempotency_key: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_read_back() {
        for state in TaskState::ALL {
            assert_eq!(TaskState::from_code(state.code()), Some(*state));
            assert_eq!(TaskState::parse(state.as_str()), Some(*state));
        }
        for state in StepState::ALL {
            assert_eq!(StepState::from_code(state.code()), Some(*state));
            assert_eq!(StepState::parse(state.as_str()), Some(*state));
        }
    }
}
