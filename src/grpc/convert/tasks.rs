//! Tasks and their events.

use super::{ids::namespace_filter, owned, states::task_state, time};
use crate::{
    access::{Reason, Refusal},
    domain::{
        TaskId,
        history::{Change, Event},
        task::{Labels, StepCounts, StepState, Task, TaskState},
    },
    engine::{StepBrief, TaskFilter, tasks::NewTask, watch::Item},
    pb::v1 as pb,
};

impl From<pb::CreateTaskRequest> for NewTask {
    fn from(request: pb::CreateTaskRequest) -> Self {
        Self {
            name: request.name,
            version: request.version,
            context: request.context,
            labels: Labels {
                initiator: request.initiator,
                source_system: request.source_system,
                reason: request.reason,
                tags: request.tags,
                correlation_id: request.correlation_id,
                idempotency_key: request.idempotency_key,
            },
            priority: request.priority,
            traceparent: None,
        }
    }
}

/// Which tasks a list's request asks for.
pub(in crate::grpc) fn task_filter(request: &pb::ListTasksRequest) -> Result<TaskFilter, Refusal> {
    let state = |number: &i32| {
        pb::TaskState::try_from(*number).ok().and_then(task_state).ok_or_else(|| {
            Refusal::invalid(
                Reason::FieldInvalid,
                "state",
                format!("{number} is no state of a task"),
            )
        })
    };
    Ok(TaskFilter {
        namespace: namespace_filter(request.namespace.as_deref())?,
        name: request.name.clone(),
        states: request.state.iter().map(state).collect::<Result<_, _>>()?,
        parent: relative("parent_task_uuid", request.parent_task_uuid.as_deref())?,
        root: relative("root_task_uuid", request.root_task_uuid.as_deref())?,
    })
}

fn relative(field: &str, text: Option<&str>) -> Result<Option<TaskId>, Refusal> {
    let parse = |text: &str| {
        let wrong = || Refusal::invalid(Reason::FieldInvalid, field, "not the id of a task");
        TaskId::parse(text).ok_or_else(wrong)
    };
    text.filter(|text| !text.is_empty()).map(parse).transpose()
}

impl From<Task> for pb::Task {
    fn from(task: Task) -> Self {
        let Labels { initiator, source_system, reason, tags, correlation_id, idempotency_key } =
            task.labels;
        Self {
            task_uuid: task.core.id.to_string(),
            namespace: task.namespace.to_string(),
            name: owned(&task.name),
            version: owned(&task.version),
            state: pb::TaskState::from(task.core.state).into(),
            priority: task.priority,
            initiator,
            source_system,
            reason,
            tags,
            correlation_id,
            idempotency_key,
            created_by: owned(&task.created_by.subject),
            created_at: Some(time(task.created_at)),
            updated_at: Some(time(task.updated_at)),
            completed_at: task.completed_at.map(time),
            steps: Some((&task.core.counts).into()),
            parent_task_uuid: task.lineage.map(|lineage| lineage.parent.to_string()),
            root_task_uuid: task.lineage.map(|lineage| lineage.root.to_string()),
        }
    }
}

impl From<&StepCounts> for pb::StepCounts {
    fn from(counts: &StepCounts) -> Self {
        Self {
            total: counts.total(),
            pending: counts.of(StepState::Pending),
            ready: counts.of(StepState::Ready),
            in_progress: counts.of(StepState::InProgress),
            waiting_for_retry: counts.of(StepState::WaitingForRetry),
            complete: counts.of(StepState::Complete),
            error: counts.of(StepState::Error),
            cancelled: counts.of(StepState::Cancelled),
            resolved_manually: counts.of(StepState::ResolvedManually),
        }
    }
}

impl From<StepBrief> for pb::StepChanged {
    fn from(step: StepBrief) -> Self {
        Self {
            step_uuid: step.id.to_string(),
            name: owned(&step.name),
            state: pb::StepState::from(step.core.state).into(),
            attempts: step.core.attempts,
        }
    }
}

/// One message of a watch. Actor and reason of an event stay behind: only
/// `steps:read` shows them (SE-11).
pub(in crate::grpc) fn watched(id: TaskId, item: Item) -> pb::WatchTaskResponse {
    use pb::watch_task_response::Event as Message;
    match item {
        Item::Snapshot { seq, task, steps } => pb::WatchTaskResponse {
            seq,
            time: Some(time(task.updated_at)),
            event: Some(Message::Snapshot(pb::TaskSnapshot {
                task: Some((*task).into()),
                steps: steps.into_iter().map(Into::into).collect(),
            })),
        },
        Item::Event { event: Event { seq, at, change, .. }, step } => {
            let event = match change {
                Change::Task(state) => Message::Task(changed(id, state)),
                Change::Step { no, state, attempts, .. } => {
                    let (step_uuid, name) = match step {
                        Some((step, name)) => (step.to_string(), owned(&name)),
                        None => (id.step(no).to_string(), String::new()),
                    };
                    let state = pb::StepState::from(state).into();
                    Message::Step(pb::StepChanged { step_uuid, name, state, attempts })
                }
            };
            pb::WatchTaskResponse { seq, time: Some(time(at)), event: Some(event) }
        }
    }
}

fn changed(id: TaskId, state: TaskState) -> pb::TaskChanged {
    pb::TaskChanged { task_uuid: id.to_string(), state: pb::TaskState::from(state).into() }
}
