//! Workers, leases, reports and handlers.

use std::{collections::HashMap, time::Duration};

use super::{owned, time};
use crate::{
    domain::{LeaseId, RequestId},
    engine::{
        self, Heartbeat, LeaseTerms, Leased, Revocation,
        handlers::Handler,
        work::{Failure, LeaseRequest, Taken, WorkerInfo},
        workers::Worker,
    },
    grpc::status::{Error, reason_name},
    pb::v1 as pb,
};

impl From<pb::RegisterWorkerRequest> for WorkerInfo {
    fn from(request: pb::RegisterWorkerRequest) -> Self {
        let pb::RegisterWorkerRequest { namespace: _, name, handlers, version } = request;
        Self { name, handlers, version }
    }
}

impl From<pb::WorkOpen> for WorkerInfo {
    fn from(open: pb::WorkOpen) -> Self {
        let pb::WorkOpen { namespace: _, name, handlers, version } = open;
        Self { name, handlers, version }
    }
}

impl From<Worker> for pb::Worker {
    fn from(worker: Worker) -> Self {
        let Worker { record, connected } = worker;
        Self {
            namespace: record.area.to_string(),
            name: record.name,
            handlers: record.handlers,
            version: record.version,
            subject: owned(&record.identity.subject),
            connected,
            leases: record.leases,
            registered_at: Some(time(record.registered_at)),
            last_seen_at: Some(time(record.last_seen_at)),
        }
    }
}

impl From<Handler> for pb::Handler {
    fn from(handler: Handler) -> Self {
        let Handler { namespace, name, templates, workers } = handler;
        Self { namespace: namespace.to_string(), name, templates, workers }
    }
}

impl From<pb::LeaseStepsRequest> for LeaseRequest {
    fn from(request: pb::LeaseStepsRequest) -> Self {
        Self {
            handlers: request.handlers,
            max_leases: request.max_leases,
            wait: Duration::from_millis(request.wait_ms.into()),
            worker: request.worker,
        }
    }
}

/// A step to do, with its tokens.
pub(in crate::grpc) fn lease(lease: &Leased, tokens: HashMap<String, String>) -> pb::Lease {
    let template = &lease.template.template;
    let spec = template.steps.iter().find(|step| step.name == lease.name);
    pb::Lease {
        lease_id: lease.id.to_string(),
        task_uuid: lease.id.task.to_string(),
        step_uuid: lease.step.to_string(),
        namespace: lease.namespace.to_string(),
        name: owned(&lease.name),
        handler: owned(&lease.handler),
        attempt: lease.attempt,
        context: owned(lease.context.as_str()),
        results: lease
            .results
            .iter()
            .map(|(parent, result)| (owned(parent), owned(result.as_str())))
            .collect(),
        initialization: spec
            .map_or_else(|| owned("{}"), |spec| owned(spec.initialization.as_str())),
        deadline: Some(time(lease.expires_at)),
        timeout_at: Some(time(lease.timeout_at)),
        traceparent: lease.traceparent.as_deref().map(owned),
        tokens,
        template_name: owned(&template.name),
        template_version: template.version.to_string(),
        method: spec.and_then(|spec| spec.method.as_deref()).map(owned),
    }
}

impl From<pb::FailStepRequest> for Failure {
    fn from(request: pb::FailStepRequest) -> Self {
        Self { error: request.error, retryable: request.retryable.unwrap_or(true) }
    }
}

impl From<Taken> for pb::CompleteStepResponse {
    fn from(taken: Taken) -> Self {
        Self { already: taken.already }
    }
}

impl From<Taken> for pb::FailStepResponse {
    fn from(taken: Taken) -> Self {
        Self { already: taken.already, step_state: owned(taken.state.as_str()) }
    }
}

/// What became of a result on a stream.
pub(in crate::grpc) fn work_result(
    lease_id: String,
    taken: Result<Taken, engine::Error>,
    request: RequestId,
) -> pb::WorkResult {
    match taken {
        Ok(taken) => pb::WorkResult { lease_id, already: taken.already, refusal: None },
        Err(error) => {
            let (code, reason, message) = Error::from(error).brief(Some(request));
            let (code, reason) = (code.into(), reason_name(reason).to_owned());
            let refusal = Some(pb::WorkRefusal { code, reason, message });
            pb::WorkResult { lease_id, already: false, refusal }
        }
    }
}

/// Where a lease stands.
pub(in crate::grpc) fn heartbeat(
    lease_id: String,
    beat: Heartbeat,
    tokens: HashMap<String, String>,
) -> pb::HeartbeatStepResponse {
    let deadline = match beat {
        Heartbeat::Held(until) => Some(time(until)),
        Heartbeat::Cancelled | Heartbeat::Lost => None,
    };
    let state = pb::LeaseState::from(beat).into();
    pb::HeartbeatStepResponse { lease_id, state, deadline, tokens }
}

/// The answer on a stream for a lease that its sender does not have. It does
/// not tell a foreign lease from none (SE-18).
pub(in crate::grpc) fn lost(lease_id: String) -> pb::HeartbeatStepResponse {
    heartbeat(lease_id, Heartbeat::Lost, HashMap::new())
}

/// Tells a worker to stop.
pub(in crate::grpc) fn revoked(lease: LeaseId, why: Revocation) -> pb::WorkRevoked {
    pb::WorkRevoked { lease_id: lease.to_string(), reason: pb::LeaseState::from(why).into() }
}

impl From<LeaseTerms> for pb::WorkOpened {
    fn from(terms: LeaseTerms) -> Self {
        let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self { lease_ms: ms(terms.lease), heartbeat_ms: ms(terms.heartbeat) }
    }
}
