//! How a record is written for who reads it elsewhere.

use serde::Deserialize;

use super::{super::chain::hex, Sealed, ocsf};
use crate::audit::line::{write_checkpoint, write_record};

/// How a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As the line of an export.
    Lines,
    /// As an event of OCSF.
    Ocsf,
}

impl Format {
    /// One line, with its end.
    #[must_use]
    pub fn line(self, record: &Sealed) -> String {
        match self {
            Self::Lines => line(record),
            Self::Ocsf => {
                let mut text = ocsf::event(record).to_string();
                text.push('\n');
                text
            }
        }
    }

    /// The same without its end.
    #[must_use]
    pub(super) fn text(self, record: &Sealed) -> String {
        let mut text = self.line(record);
        text.pop();
        text
    }
}

fn line(record: &Sealed) -> String {
    let Sealed { seq, place, body } = record;
    let mut text = String::with_capacity(body.len() + 256);
    match place {
        Some(place) => write_record(
            &mut text,
            (*seq, &place.chain, place.number),
            &hex(&place.prev),
            &hex(&place.hash),
            body,
        ),
        None => write_checkpoint(&mut text, *seq, body),
    }
    text
}

/// What sinks tell apart without a look at the rest.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    pub(super) at: String,
    pub(super) rpc: String,
    pub(super) outcome: String,
    pub(super) reason: Option<String>,
    pub(super) request_id: Option<String>,
    pub(super) actor: Option<Actor>,
    pub(super) permission: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) asked: Vec<String>,
    pub(super) object: Option<String>,
    pub(super) peer: Option<String>,
    checkpoint: Option<At>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Actor {
    pub(super) source: String,
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) method: String,
    pub(super) credential: String,
}

#[derive(Debug, Default, Deserialize)]
struct At {
    at: String,
}

/// How bad it is, for who sorts by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    Allowed,
    Failed,
    Denied,
}

impl Fields {
    /// Of a record or a checkpoint; what cannot be read is empty.
    pub(super) fn of(record: &Sealed) -> Self {
        let mut read: Self = serde_json::from_str(&record.body).unwrap_or_default();
        if let Some(checkpoint) = read.checkpoint.take() {
            read.at = checkpoint.at;
        }
        read
    }

    pub(super) fn weight(&self) -> Weight {
        match self.outcome.as_str() {
            "denied" => Weight::Denied,
            "failed" => Weight::Failed,
            _ => Weight::Allowed,
        }
    }

    /// Since 1970, in microseconds.
    pub(super) fn micros(&self) -> i64 {
        self.at.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_microsecond)
    }

    /// The service and the method of the RPC.
    pub(super) fn operation(&self) -> (Option<&str>, &str) {
        match self.rpc.rsplit_once('/') {
            Some((service, method)) => (Some(service), method),
            None => (None, &self.rpc),
        }
    }
}
