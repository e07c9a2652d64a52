//! The states of tasks, steps and leases.

use crate::{
    domain::task::{StepState, TaskState},
    engine::{Heartbeat, Revocation},
    pb::v1 as pb,
};

impl From<TaskState> for pb::TaskState {
    fn from(state: TaskState) -> Self {
        match state {
            TaskState::Pending => Self::Pending,
            TaskState::InProgress => Self::InProgress,
            TaskState::WaitingForRetry => Self::WaitingForRetry,
            TaskState::BlockedByFailures => Self::BlockedByFailures,
            TaskState::Complete => Self::Complete,
            TaskState::Error => Self::Error,
            TaskState::Cancelled => Self::Cancelled,
            TaskState::ResolvedManually => Self::ResolvedManually,
        }
    }
}

/// None for what is not stated.
pub(super) fn task_state(state: pb::TaskState) -> Option<TaskState> {
    Some(match state {
        pb::TaskState::Unspecified => return None,
        pb::TaskState::Pending => TaskState::Pending,
        pb::TaskState::InProgress => TaskState::InProgress,
        pb::TaskState::WaitingForRetry => TaskState::WaitingForRetry,
        pb::TaskState::BlockedByFailures => TaskState::BlockedByFailures,
        pb::TaskState::Complete => TaskState::Complete,
        pb::TaskState::Error => TaskState::Error,
        pb::TaskState::Cancelled => TaskState::Cancelled,
        pb::TaskState::ResolvedManually => TaskState::ResolvedManually,
    })
}

impl From<StepState> for pb::StepState {
    fn from(state: StepState) -> Self {
        match state {
            StepState::Pending => Self::Pending,
            StepState::Ready => Self::Ready,
            StepState::InProgress => Self::InProgress,
            StepState::WaitingForRetry => Self::WaitingForRetry,
            StepState::Complete => Self::Complete,
            StepState::Error => Self::Error,
            StepState::Cancelled => Self::Cancelled,
            StepState::ResolvedManually => Self::ResolvedManually,
        }
    }
}

impl From<Heartbeat> for pb::LeaseState {
    fn from(heartbeat: Heartbeat) -> Self {
        match heartbeat {
            Heartbeat::Held(_) => Self::Held,
            Heartbeat::Cancelled => Self::Cancelled,
            Heartbeat::Lost => Self::Lost,
        }
    }
}

impl From<Revocation> for pb::LeaseState {
    fn from(revocation: Revocation) -> Self {
        match revocation {
            Revocation::Cancelled => Self::Cancelled,
            Revocation::Lost => Self::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names must agree too: REST prints the message's, the log ours.
    #[test]
    fn states_keep_their_names_both_ways() {
        for state in TaskState::ALL {
            let message = pb::TaskState::from(*state);
            assert_eq!(task_state(message), Some(*state));
            let name = message.as_str_name().strip_prefix("TASK_STATE_").unwrap();
            assert_eq!(name.to_lowercase(), state.as_str());
        }
        assert_eq!(task_state(pb::TaskState::Unspecified), None);
        for state in StepState::ALL {
            let name = pb::StepState::from(*state).as_str_name();
            assert_eq!(name.strip_prefix("STEP_STATE_").unwrap().to_lowercase(), state.as_str());
        }
    }
}
