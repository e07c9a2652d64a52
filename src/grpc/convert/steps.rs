//! Steps, their cures and their history.

use super::{owned, time};
use crate::{
    access::{Reason, Refusal},
    domain::{
        TaskId,
        history::{Attempt, Cause, Change, Event},
    },
    engine::{
        Step,
        steps::{Action, History},
    },
    pb::v1 as pb,
};

/// A step of this task as it is shown.
pub(in crate::grpc) fn step(task: TaskId, step: Step) -> pb::Step {
    pb::Step {
        step_uuid: step.id.to_string(),
        task_uuid: task.to_string(),
        name: owned(&step.name),
        handler: owned(&step.handler),
        state: pb::StepState::from(step.core.state).into(),
        attempts: step.core.attempts,
        max_attempts: step.core.attempts_allowed,
        depends_on: step.depends_on.iter().map(|name| owned(name)).collect(),
        result: step.result.map(|result| owned(result.as_str())),
        last_error: step.last_error,
        created_at: Some(time(step.created_at)),
        started_at: step.started_at.map(time),
        completed_at: step.completed_at.map(time),
        retry_at: step.core.retry_at.map(time),
    }
}

impl TryFrom<&mut pb::ResolveStepRequest> for Action {
    type Error = Refusal;

    /// Takes the result out of the request.
    fn try_from(request: &mut pb::ResolveStepRequest) -> Result<Self, Refusal> {
        let wrong = |field, what| Err(Refusal::invalid(Reason::FieldInvalid, field, what));
        let data = request.completion_data.take();
        let action = match request.action_type() {
            pb::StepAction::Unspecified => {
                return wrong(
                    "action_type",
                    "choose reset_for_retry, resolve_manually or complete_manually",
                );
            }
            pb::StepAction::ResetForRetry => Self::ResetForRetry,
            pb::StepAction::ResolveManually => Self::ResolveManually,
            pb::StepAction::CompleteManually => {
                let result = data.map(|data| data.result).unwrap_or_default();
                return Ok(Self::CompleteManually { result });
            }
        };
        // A result that is dropped silently would look like one that counts.
        match data {
            None => Ok(action),
            Some(_) => wrong("completion_data", "goes with complete_manually alone"),
        }
    }
}

/// The history of a step as it is shown.
pub(in crate::grpc) fn audit(history: History) -> pb::GetStepAuditResponse {
    let History { events, attempts } = history;
    let entries = events.into_iter().filter_map(|event| entry(event, &attempts)).collect();
    pb::GetStepAuditResponse { entries }
}

fn entry(event: Event, finished: &[Attempt]) -> Option<pb::StepAuditEntry> {
    let Change::Step { state, attempts, cause, .. } = event.change else { return None };
    let error = ends_attempt(cause)
        .then(|| finished.iter().find(|attempt| attempt.attempt == attempts))
        .flatten()
        .and_then(|attempt| attempt.error.clone());
    Some(pb::StepAuditEntry {
        seq: event.seq,
        time: Some(time(event.at)),
        state: pb::StepState::from(state).into(),
        attempt: attempts,
        cause: owned(cause.as_str()),
        actor: event.actor.map(|actor| owned(&actor.subject)).unwrap_or_default(),
        reason: event.reason,
        error,
    })
}

/// Whether the attempt's error belongs to this entry of the history.
fn ends_attempt(cause: Cause) -> bool {
    match cause {
        Cause::Failed | Cause::LeaseExpired | Cause::TimedOut | Cause::ServerRestarted => true,
        Cause::Created
        | Cause::DependenciesMet
        | Cause::Leased
        | Cause::Completed
        | Cause::RetryDue
        | Cause::Cancelled
        | Cause::ResetForRetry
        | Cause::ResolveManually
        | Cause::CompleteManually
        | Cause::StaleResultRefused => false,
    }
}

#[cfg(test)]
mod tests {
    use pb::StepAction::{CompleteManually, ResetForRetry, ResolveManually, Unspecified};

    use super::*;
    use crate::domain::{Principal, StepNo, Timestamp, task::StepState};

    fn request(action: pb::StepAction, result: Option<&str>) -> pb::ResolveStepRequest {
        pb::ResolveStepRequest {
            action_type: action.into(),
            completion_data: result.map(|result| pb::CompletionData { result: result.to_owned() }),
            ..pb::ResolveStepRequest::default()
        }
    }

    #[test]
    fn a_result_goes_with_completion_alone() {
        let action = |action, result| Action::try_from(&mut request(action, result));
        assert!(matches!(action(ResetForRetry, None), Ok(Action::ResetForRetry)));
        assert!(matches!(action(ResolveManually, None), Ok(Action::ResolveManually)));
        for (given, expected) in [(None, ""), (Some("{}"), "{}")] {
            let Ok(Action::CompleteManually { result }) = action(CompleteManually, given) else {
                panic!("{given:?}")
            };
            assert_eq!(result, expected);
        }
        for (kind, result, field) in [
            (ResetForRetry, Some("1"), "completion_data"),
            (ResolveManually, Some(""), "completion_data"),
            (Unspecified, None, "action_type"),
        ] {
            assert_eq!(action(kind, result).unwrap_err().fields[0].0, field);
        }
        let mut foreign = pb::ResolveStepRequest { action_type: 99, ..Default::default() };
        assert!(Action::try_from(&mut foreign).is_err());
    }

    #[test]
    fn an_attempts_error_stands_where_the_attempt_ended() {
        let event = |seq, attempts, cause| Event {
            seq,
            at: Timestamp::from_micros(seq),
            actor: (seq == 4).then(|| Principal::auth_off().identity),
            reason: None,
            change: Change::Step { no: StepNo(0), state: StepState::Ready, attempts, cause },
        };
        let history = History {
            events: vec![
                event(1, 0, Cause::Created),
                event(2, 1, Cause::Leased),
                event(3, 1, Cause::Failed),
                event(4, 1, Cause::RetryDue),
                event(5, 2, Cause::TimedOut),
            ],
            attempts: vec![
                Attempt { attempt: 1, error: Some("boom".to_owned()) },
                Attempt { attempt: 2, error: Some("too slow".to_owned()) },
            ],
        };
        let errors: Vec<_> = audit(history).entries.into_iter().map(|entry| entry.error).collect();
        let expected = [None, None, Some("boom"), None, Some("too slow")];
        assert_eq!(errors, expected.map(|error| error.map(str::to_owned)));
    }
}
