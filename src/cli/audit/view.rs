//! Records as they are shown.

use serde::Serialize;

use super::super::{output, view};
use crate::pb::v1 as pb;

#[derive(Debug, Serialize)]
struct Actor {
    subject: String,
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    method: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
}

/// One record.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    seq: i64,
    chain: String,
    at: Option<String>,
    rpc: String,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<Actor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    permission: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    asked: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    record: view::Payload,
}

impl From<pb::AuditRecord> for Record {
    fn from(record: pb::AuditRecord) -> Self {
        let outcome = match record.outcome() {
            pb::AuditOutcome::Unspecified => "",
            pb::AuditOutcome::Allowed => "allowed",
            pb::AuditOutcome::Denied => "denied",
            pb::AuditOutcome::Failed => "failed",
        };
        Self {
            seq: record.seq,
            chain: record.chain,
            at: view::times(record.at.as_ref()),
            rpc: record.rpc,
            outcome,
            reason: record.reason,
            request_id: record.request_id,
            actor: record.actor.map(|actor| Actor {
                subject: actor.subject,
                source: actor.source,
                issuer: actor.issuer,
                method: actor.method,
                credential: actor.credential,
                fingerprint: actor.fingerprint,
            }),
            permission: record.permission,
            namespace: record.namespace,
            asked: record.asked,
            object: record.object,
            peer: record.peer,
            record: view::Payload::new(record.record),
        }
    }
}

impl Record {
    /// The RPC without its package and service.
    fn method(&self) -> &str {
        self.rpc.rsplit_once('/').map_or(&self.rpc, |(_, method)| method)
    }

    fn who(&self) -> &str {
        self.actor.as_ref().map_or("-", |actor| &actor.subject)
    }

    fn place(&self) -> &str {
        let asked = self.asked.first().map(String::as_str);
        self.namespace.as_deref().or(asked).unwrap_or(&self.chain)
    }

    fn result(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{} ({})", self.outcome, output::word(reason)),
            None => self.outcome.to_owned(),
        }
    }

    /// On one line, of which nothing that a caller wrote can make two.
    pub(super) fn words(&self) -> String {
        format!(
            "{}  {}  {} {}  in {}  {}  {}",
            self.at.as_deref().unwrap_or("-"),
            self.seq,
            output::quoted(self.who()),
            output::quoted(self.method()),
            output::quoted(self.place()),
            self.object.as_deref().map_or_else(|| "-".into(), output::quoted),
            self.result(),
        )
    }
}

/// A table of them.
pub(super) fn table(records: &[Record]) -> super::Result {
    let rows: Vec<Vec<String>> = records
        .iter()
        .map(|record| {
            vec![
                record.seq.to_string(),
                record.at.clone().unwrap_or_default(),
                record.who().to_owned(),
                record.method().to_owned(),
                record.place().to_owned(),
                record.object.clone().unwrap_or_else(|| "-".to_owned()),
                record.result(),
                record.request_id.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    let headings = ["SEQ", "AT", "WHO", "WHAT", "WHERE", "OBJECT", "OUTCOME", "REQUEST"];
    output::table(&headings, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn se_44_what_a_caller_names_makes_no_second_record_of_a_line() {
        let forged = "-  denied\n2026-01-01T00:00:00Z  8  alice CancelTask  in shop  -";
        let record: Record = pb::AuditRecord {
            seq: 7,
            chain: "shop".to_owned(),
            rpc: "bailiwick.v1.TaskService/GetTask".to_owned(),
            object: Some(forged.to_owned()),
            reason: Some("NOT_FOUND\n".to_owned()),
            ..pb::AuditRecord::default()
        }
        .into();
        assert_eq!(
            record.words(),
            "-  7  - GetTask  in shop  \"-  denied\\n2026-01-01T00:00:00Z  8  alice CancelTask  in \
             shop  -\"   (NOT_FOUND\\n)"
        );
    }
}
