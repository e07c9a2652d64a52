//! `bailiwick audit …`: search, follow, export; and verify, without a server.

mod export;
mod verify;
mod view;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::{Connection, Error, Format, Result, duration, output};
use crate::{domain::Clock as _, pb::v1 as pb, server::SystemClock};

/// How many records a search shows when nothing is said.
const LIMIT: usize = 50;
/// How many records one call asks for at most.
const PAGE_SIZE: usize = 500;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Search the audit, the latest record first
    #[command(after_help = SEARCH_EXAMPLES)]
    Search(Search),
    /// Show new records as they come
    #[command(
        after_help = "Examples:\n  bailiwick audit tail\n  bailiwick audit tail --outcome denied --format json | jq .actor.subject"
    )]
    Tail(Tail),
    /// Print the key that verifies exports
    #[command(
        name = "public-key",
        after_help = "Keep the key, and a checkpoint now and then, where the server cannot write.\n\nExamples:\n  bailiwick audit public-key --out audit.pem\n  bailiwick audit public-key --format json | jq -r .checkpoint"
    )]
    PublicKey(export::PublicKey),
    /// Write the audit to a file that can be verified without the server
    #[command(after_help = export::EXAMPLES)]
    Export(export::Export),
    /// Verify an export; asks no server
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::Verify),
}

const SEARCH_EXAMPLES: &str = "\
A caller with `audit:read` sees the chains of its scope; the server's own chain `*` needs
the scope `*`. --since and --until take a time, or how long ago: 2026-11-23T08:00:00Z, 90m, 7d.

Examples:
  bailiwick audit search --since 1h --outcome denied
  bailiwick audit search --actor alice --permission tasks:cancel --namespace shop
  bailiwick audit search --request-id 6f1c… --format json | jq '.records[0].record'
  bailiwick audit search --credential 1a2b3c4d5e6f --limit 500";

/// Which records.
#[derive(Args, Debug)]
struct Filter {
    /// Only what this subject did, or what was asked about its credential
    #[arg(long, value_name = "SUBJECT")]
    actor: Option<String>,
    /// Only this RPC, by its full name or what stands behind the slash
    #[arg(long)]
    rpc: Option<String>,
    /// Only where this permission was asked for, or about
    #[arg(long)]
    permission: Option<String>,
    /// Only this namespace and those below it
    #[arg(long)]
    namespace: Option<String>,
    /// Only what was about this id or name
    #[arg(long, value_name = "ID")]
    object: Option<String>,
    /// Only what came out so
    #[arg(long, value_enum)]
    outcome: Option<Outcome>,
    /// Only by this credential, or about it: its public id, or its fingerprint
    #[arg(long, value_name = "ID")]
    credential: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct Search {
    #[command(flatten)]
    filter: Filter,
    /// Only this call
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Only from this time on
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Moment>,
    /// Only before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Moment>,
    /// How many at most
    #[arg(long, default_value_t = LIMIT)]
    limit: usize,
}

#[derive(Args, Debug)]
pub(super) struct Tail {
    #[command(flatten)]
    filter: Filter,
    /// Go on behind this record instead of with the next new one
    #[arg(long, value_name = "SEQ")]
    after_seq: Option<i64>,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Outcome {
    /// Allowed, and done.
    Allowed,
    /// Refused for want of a credential, a permission or a namespace.
    Denied,
    /// Allowed and then not done.
    Failed,
}

impl From<Outcome> for pb::AuditOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Allowed => Self::Allowed,
            Outcome::Denied => Self::Denied,
            Outcome::Failed => Self::Failed,
        }
    }
}

/// A time, as the API takes it.
pub(super) type Moment = prost_types::Timestamp;

/// A time of RFC 3339, or how long ago.
pub(super) fn moment(text: &str) -> std::result::Result<Moment, String> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(Moment { seconds: at.as_second(), nanos: at.subsec_nanosecond().max(0) });
    }
    let ago = duration::duration(text).map_err(|_| {
        "a time is 2026-11-23T08:00:00Z, or how long ago: a whole number and s, m, h or d"
            .to_owned()
    })?;
    let ago = i64::try_from(ago.as_secs()).unwrap_or(i64::MAX);
    Ok(Moment { seconds: SystemClock.now().seconds().saturating_sub(ago), nanos: 0 })
}

#[derive(Serialize)]
struct Records {
    records: Vec<view::Record>,
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> Result {
    match command {
        Command::Search(args) => search(args, connection, format).await,
        Command::Tail(args) => tail(args, connection, format).await,
        Command::PublicKey(args) => export::public_key(&args, connection, format).await,
        Command::Export(args) => export::export(args, connection, format).await,
        Command::Verify(args) => verify::verify(&args, format),
    }
}

async fn search(args: Search, connection: &Connection, format: Format) -> Result {
    let Search { filter, request_id, since, until, limit } = args;
    let mut request = pb::SearchAuditRequest {
        actor: filter.actor,
        rpc: filter.rpc,
        permission: filter.permission,
        namespace: filter.namespace,
        object: filter.object,
        outcome: filter.outcome.map_or(0, |outcome| pb::AuditOutcome::from(outcome).into()),
        credential: filter.credential,
        request_id,
        since,
        until,
        ..pb::SearchAuditRequest::default()
    };
    let mut audit = connection.client().await?.audit();
    let mut records: Vec<view::Record> = Vec::new();
    while records.len() < limit {
        let left = (limit - records.len()).min(PAGE_SIZE);
        request.page_size = u32::try_from(left).unwrap_or(u32::MAX);
        let page = audit.search_audit(request.clone()).await?.into_inner();
        records.extend(page.records.into_iter().map(Into::into));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    match format {
        Format::Json => output::json(&Records { records }),
        Format::Table => view::table(&records),
    }
}

async fn tail(args: Tail, connection: &Connection, format: Format) -> Result {
    let Tail { filter, after_seq } = args;
    let request = pb::StreamAuditRequest {
        actor: filter.actor,
        rpc: filter.rpc,
        permission: filter.permission,
        namespace: filter.namespace,
        object: filter.object,
        outcome: filter.outcome.map_or(0, |outcome| pb::AuditOutcome::from(outcome).into()),
        credential: filter.credential,
        after_seq,
    };
    let mut audit = connection.client().await?.audit();
    let mut records = audit.stream_audit(request).await?.into_inner();
    while let Some(answer) = records.message().await? {
        let Some(record) = answer.record else { continue };
        let record = view::Record::from(record);
        match format {
            Format::Json => output::json_line(&record)?,
            Format::Table => output::line(record.words())?,
        }
    }
    Err(Error::Failed("the server ended the stream".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_one_or_how_long_ago() {
        let at = moment("1970-01-01T00:00:01.5Z").unwrap();
        assert_eq!((at.seconds, at.nanos), (1, 500_000_000));
        let now = SystemClock.now().seconds();
        let ago = now - moment("2h").unwrap().seconds;
        assert!((7199..=7201).contains(&ago), "{ago}");
        for wrong in ["", "yesterday", "2026-11-23", "1.5h"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }
}
