//! The API's messages as the command line shows them as JSON: the same names
//! and forms as REST, payloads in place.

use std::collections::BTreeMap;

use prost_types::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::pb::v1 as pb;

/// RFC 3339, in UTC, with 0, 3, 6 or 9 digits below the second, as JSON of
/// protos has it.
pub(crate) fn time(at: &Timestamp) -> String {
    let Ok(moment) = jiff::Timestamp::new(at.seconds, at.nanos) else {
        return "out of range".to_owned();
    };
    let digits = match at.nanos {
        0 => 0,
        nanos if nanos % 1_000_000 == 0 => 3,
        nanos if nanos % 1_000 == 0 => 6,
        _ => 9,
    };
    format!("{moment:.digits$}")
}

pub(crate) fn times(at: Option<&Timestamp>) -> Option<String> {
    at.map(time)
}

/// JSON text in place; what cannot be read is shown as the text that it is.
#[derive(Clone, Debug)]
pub(crate) struct Payload(String);

impl Payload {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::from_str::<&RawValue>(&self.0) {
            Ok(raw) => raw.serialize(serializer),
            Err(_) => serializer.serialize_str(&self.0),
        }
    }
}

/// A task.
#[derive(Debug, Serialize)]
pub(crate) struct Task {
    pub(crate) task_uuid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) state: &'static str,
    priority: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    initiator: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_system: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
    created_by: String,
    pub(crate) created_at: Option<String>,
    updated_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_task_uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root_task_uuid: Option<String>,
    pub(crate) steps: StepCounts,
}

/// How many steps stand where.
#[derive(Debug, Default, Serialize)]
pub(crate) struct StepCounts {
    pub(crate) total: u32,
    pending: u32,
    ready: u32,
    in_progress: u32,
    waiting_for_retry: u32,
    pub(crate) complete: u32,
    error: u32,
    cancelled: u32,
    resolved_manually: u32,
}

impl From<pb::Task> for Task {
    fn from(task: pb::Task) -> Self {
        let state = task_state(task.state());
        let counts = task.steps.unwrap_or_default();
        Self {
            state,
            parent_task_uuid: task.parent_task_uuid,
            root_task_uuid: task.root_task_uuid,
            task_uuid: task.task_uuid,
            namespace: task.namespace,
            name: task.name,
            version: task.version,
            priority: task.priority,
            initiator: task.initiator,
            source_system: task.source_system,
            reason: task.reason,
            tags: task.tags,
            correlation_id: task.correlation_id,
            idempotency_key: task.idempotency_key,
            created_by: task.created_by,
            created_at: times(task.created_at.as_ref()),
            updated_at: times(task.updated_at.as_ref()),
            completed_at: times(task.completed_at.as_ref()),
            steps: StepCounts {
                total: counts.total,
                pending: counts.pending,
                ready: counts.ready,
                in_progress: counts.in_progress,
                waiting_for_retry: counts.waiting_for_retry,
                complete: counts.complete,
                error: counts.error,
                cancelled: counts.cancelled,
                resolved_manually: counts.resolved_manually,
            },
        }
    }
}

/// The short word of a task's state.
pub(crate) fn task_state(state: pb::TaskState) -> &'static str {
    match state {
        pb::TaskState::Unspecified => "unspecified",
        pb::TaskState::Pending => "pending",
        pb::TaskState::InProgress => "in_progress",
        pb::TaskState::WaitingForRetry => "waiting_for_retry",
        pb::TaskState::BlockedByFailures => "blocked_by_failures",
        pb::TaskState::Complete => "complete",
        pb::TaskState::Error => "error",
        pb::TaskState::Cancelled => "cancelled",
        pb::TaskState::ResolvedManually => "resolved_manually",
    }
}

/// The short word of a step's state.
pub(crate) fn step_state(state: pb::StepState) -> &'static str {
    match state {
        pb::StepState::Unspecified => "unspecified",
        pb::StepState::Pending => "pending",
        pb::StepState::Ready => "ready",
        pb::StepState::InProgress => "in_progress",
        pb::StepState::WaitingForRetry => "waiting_for_retry",
        pb::StepState::Complete => "complete",
        pb::StepState::Error => "error",
        pb::StepState::Cancelled => "cancelled",
        pb::StepState::ResolvedManually => "resolved_manually",
    }
}

/// A step.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    pub(crate) step_uuid: String,
    task_uuid: String,
    pub(crate) name: String,
    pub(crate) handler: String,
    pub(crate) state: &'static str,
    pub(crate) attempts: u32,
    pub(crate) max_attempts: u32,
    depends_on: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Payload>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_error: Option<String>,
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_at: Option<String>,
}

impl From<pb::Step> for Step {
    fn from(step: pb::Step) -> Self {
        let state = step_state(step.state());
        Self {
            state,
            step_uuid: step.step_uuid,
            task_uuid: step.task_uuid,
            name: step.name,
            handler: step.handler,
            attempts: step.attempts,
            max_attempts: step.max_attempts,
            depends_on: step.depends_on,
            result: step.result.map(Payload),
            last_error: step.last_error,
            created_at: times(step.created_at.as_ref()),
            started_at: times(step.started_at.as_ref()),
            completed_at: times(step.completed_at.as_ref()),
            retry_at: times(step.retry_at.as_ref()),
        }
    }
}

/// One entry of a step's history.
#[derive(Debug, Serialize)]
pub(crate) struct StepAuditEntry {
    pub(crate) seq: i64,
    pub(crate) time: Option<String>,
    pub(crate) state: &'static str,
    pub(crate) attempt: u32,
    pub(crate) cause: String,
    pub(crate) actor: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl From<pb::StepAuditEntry> for StepAuditEntry {
    fn from(entry: pb::StepAuditEntry) -> Self {
        let state = step_state(entry.state());
        Self {
            state,
            seq: entry.seq,
            time: times(entry.time.as_ref()),
            attempt: entry.attempt,
            cause: entry.cause,
            actor: entry.actor,
            reason: entry.reason,
            error: entry.error,
        }
    }
}

/// A task's context.
#[derive(Debug, Serialize)]
pub(crate) struct Context {
    pub(crate) task_uuid: String,
    pub(crate) context: Payload,
}

impl From<pb::GetTaskContextResponse> for Context {
    fn from(answer: pb::GetTaskContextResponse) -> Self {
        Self { task_uuid: answer.task_uuid, context: Payload(answer.context) }
    }
}

/// One event of a watch.
#[derive(Debug, Serialize)]
pub(crate) struct Event {
    pub(crate) seq: i64,
    pub(crate) time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<Snapshot>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<TaskChanged>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) step: Option<StepChanged>,
}

/// A task and its steps as they stand.
#[derive(Debug, Serialize)]
pub(crate) struct Snapshot {
    pub(crate) task: Option<Task>,
    pub(crate) steps: Vec<StepChanged>,
}

/// A task's new state.
#[derive(Debug, Serialize)]
pub(crate) struct TaskChanged {
    task_uuid: String,
    pub(crate) state: &'static str,
}

/// A step's new state.
#[derive(Debug, Serialize)]
pub(crate) struct StepChanged {
    step_uuid: String,
    pub(crate) name: String,
    pub(crate) state: &'static str,
    pub(crate) attempts: u32,
}

impl From<pb::StepChanged> for StepChanged {
    fn from(step: pb::StepChanged) -> Self {
        let state = step_state(step.state());
        Self { state, step_uuid: step.step_uuid, name: step.name, attempts: step.attempts }
    }
}

impl From<pb::WatchTaskResponse> for Event {
    fn from(event: pb::WatchTaskResponse) -> Self {
        use pb::watch_task_response::Event as Kind;
        let mut view = Self {
            seq: event.seq,
            time: times(event.time.as_ref()),
            snapshot: None,
            task: None,
            step: None,
        };
        match event.event {
            Some(Kind::Snapshot(snapshot)) => {
                view.snapshot = Some(Snapshot {
                    task: snapshot.task.map(Task::from),
                    steps: snapshot.steps.into_iter().map(StepChanged::from).collect(),
                });
            }
            Some(Kind::Task(task)) => {
                let state = task_state(task.state());
                view.task = Some(TaskChanged { task_uuid: task.task_uuid, state });
            }
            Some(Kind::Step(step)) => view.step = Some(step.into()),
            None => {}
        }
        view
    }
}

/// A template.
#[derive(Debug, Serialize)]
pub(crate) struct Template {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) version: String,
    description: String,
    pub(crate) steps: Vec<String>,
    handlers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) definition: Option<String>,
    registered_by: String,
    pub(crate) registered_at: Option<String>,
}

impl From<pb::Template> for Template {
    fn from(template: pb::Template) -> Self {
        Self {
            namespace: template.namespace,
            name: template.name,
            version: template.version,
            description: template.description,
            steps: template.steps,
            handlers: template.handlers,
            definition: template.definition,
            registered_by: template.registered_by,
            registered_at: times(template.registered_at.as_ref()),
        }
    }
}

/// A fault or a warning about a template.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) message: String,
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) path: String,
}

impl From<pb::TemplateFinding> for Finding {
    fn from(finding: pb::TemplateFinding) -> Self {
        Self {
            message: finding.message,
            line: finding.line,
            column: finding.column,
            path: finding.path,
        }
    }
}

/// A worker.
#[derive(Debug, Serialize)]
pub(crate) struct Worker {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) handlers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    pub(crate) subject: String,
    pub(crate) connected: bool,
    pub(crate) leases: u32,
    registered_at: Option<String>,
    pub(crate) last_seen_at: Option<String>,
}

impl From<pb::Worker> for Worker {
    fn from(worker: pb::Worker) -> Self {
        Self {
            namespace: worker.namespace,
            name: worker.name,
            handlers: worker.handlers,
            version: worker.version,
            subject: worker.subject,
            connected: worker.connected,
            leases: worker.leases,
            registered_at: times(worker.registered_at.as_ref()),
            last_seen_at: times(worker.last_seen_at.as_ref()),
        }
    }
}

/// A leased step.
#[derive(Debug, Serialize)]
pub(crate) struct Lease {
    pub(crate) lease_id: String,
    pub(crate) task_uuid: String,
    step_uuid: String,
    namespace: String,
    pub(crate) name: String,
    pub(crate) handler: String,
    pub(crate) attempt: u32,
    context: Payload,
    results: BTreeMap<String, Payload>,
    initialization: Payload,
    pub(crate) deadline: Option<String>,
    timeout_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    template_name: String,
    template_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
}

impl From<pb::Lease> for Lease {
    fn from(lease: pb::Lease) -> Self {
        Self {
            lease_id: lease.lease_id,
            task_uuid: lease.task_uuid,
            step_uuid: lease.step_uuid,
            namespace: lease.namespace,
            name: lease.name,
            handler: lease.handler,
            attempt: lease.attempt,
            context: Payload(lease.context),
            results: lease.results.into_iter().map(|(name, text)| (name, Payload(text))).collect(),
            initialization: Payload(lease.initialization),
            deadline: times(lease.deadline.as_ref()),
            timeout_at: times(lease.timeout_at.as_ref()),
            traceparent: lease.traceparent,
            template_name: lease.template_name,
            template_version: lease.template_version,
            method: lease.method,
        }
    }
}

/// A handler.
#[derive(Debug, Serialize)]
pub(crate) struct Handler {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) templates: u32,
    pub(crate) workers: u32,
}

impl From<pb::Handler> for Handler {
    fn from(handler: pb::Handler) -> Self {
        Self {
            namespace: handler.namespace,
            name: handler.name,
            templates: handler.templates,
            workers: handler.workers,
        }
    }
}

/// Who the caller is.
#[derive(Debug, Serialize)]
pub(crate) struct Identity {
    pub(crate) subject: String,
    pub(crate) source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    pub(crate) method: String,
    pub(crate) grants: Vec<Grant>,
    pub(crate) root: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<String>,
}

/// Permissions and where they hold.
#[derive(Debug, Serialize)]
pub(crate) struct Grant {
    pub(crate) permissions: Vec<String>,
    pub(crate) namespaces: Vec<String>,
}

impl From<pb::Grant> for Grant {
    fn from(grant: pb::Grant) -> Self {
        Self { permissions: grant.permissions, namespaces: grant.namespaces }
    }
}

impl From<pb::WhoAmIResponse> for Identity {
    fn from(answer: pb::WhoAmIResponse) -> Self {
        let grants = answer.grants.into_iter();
        Self {
            subject: answer.subject,
            source: answer.source,
            issuer: answer.issuer,
            method: answer.method,
            grants: grants.map(Into::into).collect(),
            root: answer.root,
            expires_at: times(answer.expires_at.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_as_many_digits_as_in_rest() {
        for (nanos, shown) in [
            (0, "1970-01-01T00:00:01Z"),
            (500_000_000, "1970-01-01T00:00:01.500Z"),
            (263_040_000, "1970-01-01T00:00:01.263040Z"),
            (1, "1970-01-01T00:00:01.000000001Z"),
        ] {
            assert_eq!(time(&Timestamp { seconds: 1, nanos }), shown);
        }
        assert_eq!(time(&Timestamp { seconds: i64::MAX, nanos: 0 }), "out of range");
    }
}
