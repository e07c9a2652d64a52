//! Values as they lie in columns.

use std::{fmt::Write as _, sync::Arc};

use rusqlite::Row;
use serde::{Deserialize, Serialize};

use super::error::damaged;
use crate::{
    domain::{
        Json, StepNo, Timestamp,
        history::{Cause, Change},
        principal::{Identity, Source},
        task::{Backoff, Labels, StepCounts, StepState, TaskState},
    },
    storage::Result,
};

const SOURCES: [Source; 10] = [
    Source::Config,
    Source::Idp,
    Source::Database,
    Source::File,
    Source::Line,
    Source::Agent,
    Source::Lease,
    Source::Session,
    Source::Certificate,
    Source::Disabled,
];

/// `source issuer-length issuersubject`: reads back whatever the texts hold.
pub(super) fn identity_text(identity: &Identity) -> String {
    let Identity { source, issuer, subject } = identity;
    format!("{} {} {issuer}{subject}", source.as_str(), issuer.len())
}

pub(super) fn identity(text: &str) -> Result<Identity> {
    let read = || {
        let (source, rest) = text.split_once(' ')?;
        let (length, rest) = rest.split_once(' ')?;
        let (issuer, subject) = rest.split_at_checked(length.parse().ok()?)?;
        let source = SOURCES.into_iter().find(|known| known.as_str() == source)?;
        Some(Identity { source, issuer: issuer.into(), subject: subject.into() })
    };
    read().ok_or_else(|| damaged("an identity"))
}

/// The server itself, where a record must name somebody.
pub(super) fn server() -> Identity {
    Identity { source: Source::Config, issuer: "".into(), subject: "server".into() }
}

pub(super) fn task_state(code: u8) -> Result<TaskState> {
    TaskState::from_code(code).ok_or_else(|| damaged("a task's state"))
}

pub(super) fn step_state(code: u8) -> Result<StepState> {
    StepState::from_code(code).ok_or_else(|| damaged("a step's state"))
}

pub(super) fn time(row: &Row<'_>, column: usize) -> Result<Timestamp> {
    Ok(Timestamp::from_micros(row.get(column)?))
}

pub(super) fn time_if_any(row: &Row<'_>, column: usize) -> Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_micros))
}

pub(super) fn text(row: &Row<'_>, column: usize) -> Result<Arc<str>> {
    let text = row.get_ref(column)?.as_str().map_err(|_| damaged("a text"))?;
    Ok(text.into())
}

pub(super) fn text_if_any(row: &Row<'_>, column: usize) -> Result<Option<Arc<str>>> {
    let text = row.get_ref(column)?.as_str_or_null().map_err(|_| damaged("a text"))?;
    Ok(text.map(Into::into))
}

/// A payload that is not encrypted; its text was checked when it came.
pub(super) fn json(body: Vec<u8>) -> Result<Json> {
    String::from_utf8(body).map(Json::checked_before).map_err(|_| damaged("a payload"))
}

const COUNTS_BYTES: usize = 4 * StepState::ALL.len();

pub(super) fn counts_blob(counts: &StepCounts) -> [u8; COUNTS_BYTES] {
    let mut blob = [0; COUNTS_BYTES];
    for (slot, state) in blob.chunks_exact_mut(4).zip(StepState::ALL) {
        slot.copy_from_slice(&counts.of(*state).to_be_bytes());
    }
    blob
}

pub(super) fn counts(blob: &[u8]) -> Result<StepCounts> {
    if blob.len() != COUNTS_BYTES {
        return Err(damaged("a task's counts"));
    }
    let mut counts = StepCounts::default();
    let (slots, _) = blob.as_chunks::<4>();
    for (slot, state) in slots.iter().zip(StepState::ALL) {
        counts.add(*state, u32::from_be_bytes(*slot));
    }
    Ok(counts)
}

pub(super) fn numbers_blob(numbers: &[StepNo]) -> Vec<u8> {
    numbers.iter().flat_map(|no| no.0.to_be_bytes()).collect()
}

pub(super) fn numbers(row: &Row<'_>, column: usize) -> Result<Arc<[StepNo]>> {
    let blob = row.get_ref(column)?.as_blob().map_err(|_| damaged("step numbers"))?;
    let (pairs, rest) = blob.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(damaged("step numbers"));
    }
    Ok(pairs.iter().map(|pair| StepNo(u16::from_be_bytes(*pair))).collect())
}

pub(super) const fn backoff_code(backoff: Backoff) -> u8 {
    match backoff {
        Backoff::Exponential => 1,
        Backoff::Linear => 2,
        Backoff::Fixed => 3,
    }
}

pub(super) fn backoff(code: u8) -> Result<Backoff> {
    match code {
        1 => Ok(Backoff::Exponential),
        2 => Ok(Backoff::Linear),
        3 => Ok(Backoff::Fixed),
        _ => Err(damaged("a backoff")),
    }
}

/// Compact JSON: `[5]` is the task's state, `[0,3,1,"leased"]` a step's number,
/// state, attempts and cause. Written by hand as it is on the hot path.
pub(super) fn changes_text(changes: &[Change]) -> String {
    let mut text = String::with_capacity(2 + changes.len() * 24);
    text.push('[');
    for (place, change) in changes.iter().enumerate() {
        if place > 0 {
            text.push(',');
        }
        // Writing to a string cannot fail.
        let _ = match change {
            Change::Task(state) => write!(text, "[{}]", state.code()),
            Change::Step { no, state, attempts, cause } => {
                write!(text, "[{},{},{attempts},\"{}\"]", no.0, state.code(), cause.as_str())
            }
        };
    }
    text.push(']');
    text
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ChangeRow<'a> {
    Step(u16, u8, u32, #[serde(borrow)] &'a str),
    Task((u8,)),
}

pub(super) fn changes(text: &str) -> Result<Vec<Change>> {
    let rows: Vec<ChangeRow<'_>> =
        serde_json::from_str(text).map_err(|_| damaged("a list of changes"))?;
    rows.into_iter()
        .map(|row| match row {
            ChangeRow::Task((state,)) => Ok(Change::Task(task_state(state)?)),
            ChangeRow::Step(no, state, attempts, cause) => Ok(Change::Step {
                no: StepNo(no),
                state: step_state(state)?,
                attempts,
                cause: Cause::parse(cause).ok_or_else(|| damaged("a cause"))?,
            }),
        })
        .collect()
}

#[derive(Serialize, Deserialize)]
struct LabelsRow {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    initiator: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source_system: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
}

/// None for labels that say nothing: most tasks need no row for them.
pub(super) fn labels_body(labels: &Labels) -> Result<Option<Vec<u8>>> {
    if *labels == Labels::default() {
        return Ok(None);
    }
    let Labels { initiator, source_system, reason, tags, correlation_id, idempotency_key } =
        labels.clone();
    let row = LabelsRow { initiator, source_system, reason, tags, correlation_id, idempotency_key };
    serde_json::to_vec(&row).map(Some).map_err(|_| damaged("labels"))
}

pub(super) fn labels(body: Option<&[u8]>) -> Result<Labels> {
    let Some(body) = body else { return Ok(Labels::default()) };
    let LabelsRow { initiator, source_system, reason, tags, correlation_id, idempotency_key } =
        serde_json::from_slice(body).map_err(|_| damaged("labels"))?;
    Ok(Labels { initiator, source_system, reason, tags, correlation_id, idempotency_key })
}

/// Cuts a text at a character's border.
pub(super) fn bounded(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_whatever_it_holds() {
        for (issuer, subject) in [("", ""), ("https://é x", "a b 3 c"), ("", "7 ü"), ("1 2", "")]
        {
            for source in SOURCES {
                let one = Identity { source, issuer: issuer.into(), subject: subject.into() };
                assert_eq!(identity(&identity_text(&one)).unwrap(), one);
            }
        }
        assert!(identity("config 9 short").is_err() && identity("nobody 0 x").is_err());
    }

    #[test]
    fn changes_read_back() {
        let mut all: Vec<Change> = TaskState::ALL.iter().copied().map(Change::Task).collect();
        for cause in Cause::ALL {
            for state in StepState::ALL {
                all.push(Change::Step {
                    no: StepNo(65_535),
                    state: *state,
                    attempts: 7,
                    cause: *cause,
                });
            }
        }
        assert_eq!(changes(&changes_text(&all)).unwrap(), all);
        assert!(changes("[[9]]").is_err() && changes("[[1,2]]").is_err());
    }

    #[test]
    fn counts_and_labels_read_back() {
        let mut sums = StepCounts::default();
        sums.add(StepState::Ready, 65_536);
        sums.add(StepState::ResolvedManually, 3);
        assert_eq!(counts(&counts_blob(&sums)).unwrap(), sums);
        let said =
            Labels { tags: vec!["a".into()], reason: Some("\"".into()), ..Labels::default() };
        assert_eq!(labels(labels_body(&said).unwrap().as_deref()).unwrap(), said);
        assert_eq!(labels_body(&Labels::default()).unwrap(), None);
        assert_eq!(bounded("aé", 2), "a");
    }
}
