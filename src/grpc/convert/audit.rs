//! The audit.

use super::{owned, time};
use crate::{
    access::{Reason, Refusal},
    audit::{Entry, ExportRequest, Filter, Found, Who},
    domain::{Timestamp, audit::Outcome},
    pb::v1 as pb,
};

impl TryFrom<pb::SearchAuditRequest> for Filter {
    type Error = Refusal;

    fn try_from(request: pb::SearchAuditRequest) -> Result<Self, Refusal> {
        let outcome = outcome(request.outcome)?;
        Ok(Self {
            actor: request.actor,
            rpc: request.rpc,
            permission: request.permission,
            namespace: request.namespace,
            object: request.object,
            outcome,
            credential: request.credential,
            request_id: request.request_id,
            since: when("since", request.since)?,
            until: when("until", request.until)?,
        })
    }
}

impl TryFrom<pb::StreamAuditRequest> for Filter {
    type Error = Refusal;

    fn try_from(request: pb::StreamAuditRequest) -> Result<Self, Refusal> {
        let outcome = outcome(request.outcome)?;
        Ok(Self {
            actor: request.actor,
            rpc: request.rpc,
            permission: request.permission,
            namespace: request.namespace,
            object: request.object,
            outcome,
            credential: request.credential,
            request_id: None,
            since: None,
            until: None,
        })
    }
}

impl TryFrom<pb::ExportAuditRequest> for ExportRequest {
    type Error = Refusal;

    fn try_from(request: pb::ExportAuditRequest) -> Result<Self, Refusal> {
        let pb::ExportAuditRequest { since, until, namespaces } = request;
        Ok(Self { since: when("since", since)?, until: when("until", until)?, namespaces })
    }
}

fn outcome(number: i32) -> Result<Option<Outcome>, Refusal> {
    match pb::AuditOutcome::try_from(number) {
        Ok(pb::AuditOutcome::Unspecified) => Ok(None),
        Ok(pb::AuditOutcome::Allowed) => Ok(Some(Outcome::Allowed)),
        Ok(pb::AuditOutcome::Denied) => Ok(Some(Outcome::Denied)),
        Ok(pb::AuditOutcome::Failed) => Ok(Some(Outcome::Failed)),
        Err(_) => {
            let what = "allowed, denied or failed";
            Err(Refusal::invalid(Reason::FieldInvalid, "outcome", what))
        }
    }
}

fn when(field: &str, at: Option<prost_types::Timestamp>) -> Result<Option<Timestamp>, Refusal> {
    let Some(prost_types::Timestamp { seconds, nanos }) = at else { return Ok(None) };
    let micros = seconds.checked_mul(1_000_000).filter(|_| (0..1_000_000_000).contains(&nanos));
    let micros = micros.and_then(|micros| micros.checked_add(i64::from(nanos) / 1_000));
    let invalid = || Refusal::invalid(Reason::FieldInvalid, field, "not a time");
    micros.map(Timestamp::from_micros).map(Some).ok_or_else(invalid)
}

impl From<&Found> for pb::AuditRecord {
    fn from(found: &Found) -> Self {
        let whole = Self {
            seq: found.seq,
            chain: owned(&found.chain),
            record: owned(&found.body),
            ..Self::default()
        };
        // What is found was read before.
        let Some(entry) = Entry::read(&found.body) else { return whole };
        let text = |text: &Option<std::borrow::Cow<'_, str>>| text.as_deref().map(owned);
        let outcome = match &*entry.outcome {
            "allowed" => pb::AuditOutcome::Allowed,
            "denied" => pb::AuditOutcome::Denied,
            "failed" => pb::AuditOutcome::Failed,
            _ => pb::AuditOutcome::Unspecified,
        };
        Self {
            at: entry.time().map(time),
            rpc: owned(&entry.rpc),
            outcome: outcome.into(),
            reason: text(&entry.reason),
            request_id: text(&entry.request_id),
            actor: entry.actor.as_ref().map(Into::into),
            permission: text(&entry.permission),
            namespace: text(&entry.namespace),
            asked: entry.asked.iter().map(|place| owned(place)).collect(),
            object: text(&entry.object),
            peer: text(&entry.peer),
            ..whole
        }
    }
}

impl From<&Who<'_>> for pb::AuditActor {
    fn from(who: &Who<'_>) -> Self {
        let some = |text: &str| Some(owned(text)).filter(|text| !text.is_empty());
        Self {
            subject: owned(&who.subject),
            source: owned(&who.source),
            issuer: some(&who.issuer),
            method: owned(&who.method),
            credential: some(&who.credential),
            fingerprint: who.fingerprint.as_deref().map(owned),
        }
    }
}
