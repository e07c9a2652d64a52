//! `bailiwick auth replay`: what a changed configuration would have decided.

use std::{collections::BTreeSet, path::Path};

use clap::Args;
use prost_reflect::DescriptorPool;
use serde::Serialize;

use super::{Connection, Error, Format, Result, audit::Moment, output};
use crate::{
    access::{
        Table,
        replay::{Change, Fate, Replay},
    },
    authn::Authenticator,
    config::Settings,
    pb::{self, v1},
};

pub(super) const EXAMPLES: &str = "\
Runs the decisions of the audit through the keys, roles and claim rules of a configuration and
lists who would lose or gain what. What the store holds, tokens and API keys, holds as much as
before, where the settings still let it count. JWTs are judged by the claims that the audit has
kept, which takes audit:read everywhere. What cannot be told is unknown.
Exit 1 when someone who acted would be refused.

Examples:
  bailiwick auth replay --config new.toml --since 7d
  bailiwick auth replay --config new.toml --since 2026-11-01T00:00:00Z --until 1d --format json";

/// How many records one call brings.
const PAGE: u32 = 500;
/// How long a traded token lives at most.
const TRADED_SECONDS_MAX: i64 = 60 * 60;

#[derive(Args, Debug)]
pub(super) struct Window {
    /// From this time on: a time, or how long ago, as 7d
    #[arg(long, value_name = "TIME", value_parser = super::audit::moment)]
    since: Moment,
    /// Until this time: a time, or how long ago
    #[arg(long, value_name = "TIME", value_parser = super::audit::moment)]
    until: Option<Moment>,
}

#[derive(Serialize)]
struct Shown {
    change: &'static str,
    identity: String,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    times: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_at: Option<String>,
    why: String,
}

impl From<Change> for Shown {
    fn from(change: Change) -> Self {
        let at = jiff::Timestamp::from_microsecond(change.last_at.micros());
        Self {
            change: change.fate.as_str(),
            identity: change.identity.to_string(),
            what: change.what.to_string(),
            namespace: change.place.map(|place| place.to_string()),
            times: change.times,
            last_at: at.ok().map(|at| format!("{at:.0}")),
            why: change.why,
        }
    }
}

pub(super) async fn run(
    args: Window,
    config: Option<&Path>,
    connection: &Connection,
    format: Format,
) -> Result {
    let Some(config) = config else {
        let message = "--config names the changed configuration";
        return Err(Error::Usage(message.to_owned()));
    };
    let mut replay = changed(config)?;
    let decisions = fetch(&mut replay, args, connection).await?;
    let changes = replay.changes();
    let lost = changes.iter().filter(|change| change.fate == Fate::Lost).count();
    let unknown = changes.iter().filter(|change| change.fate == Fate::Unknown).count();
    let shown: Vec<Shown> = changes.into_iter().map(Into::into).collect();
    match format {
        Format::Json => {
            let all = serde_json::json!({ "records": decisions, "changes": shown });
            output::json(&all)?;
        }
        Format::Table => {
            let row = |one: &Shown| {
                vec![
                    one.change.to_owned(),
                    one.identity.clone(),
                    one.what.clone(),
                    one.namespace.clone().unwrap_or_default(),
                    one.times.to_string(),
                    one.last_at.clone().unwrap_or_default(),
                    one.why.clone(),
                ]
            };
            let rows: Vec<Vec<String>> = shown.iter().map(row).collect();
            let heads = ["CHANGE", "WHO", "WHAT", "NAMESPACE", "TIMES", "LAST", "WHY"];
            output::table(&heads, &rows)?;
            output::note(format!("{decisions} records replayed, {lost} lost, {unknown} unknown"));
        }
    }
    if lost > 0 {
        let message = format!("{lost} of the acts on record would be refused");
        return Err(Error::Failed(message));
    }
    Ok(())
}

/// The configuration to try. It listens nowhere and fetches nothing.
fn changed(config: &Path) -> Result<Replay> {
    let refused = |error: &dyn std::fmt::Display| {
        Error::Usage(format!("the configuration is refused: {error}"))
    };
    let settings =
        Settings::load(Some(config), std::env::vars_os()).map_err(|error| refused(&error))?;
    let authenticator = Authenticator::new(&settings.auth).map_err(|error| refused(&error))?;
    let tokens = settings.controller.as_ref().and_then(|line| line.tokens.as_deref());
    let commands = settings.scheduler.runners.iter().any(|kind| kind.starts_processes());
    let authenticator = match tokens {
        Some(tokens) => authenticator.with_line_tokens(tokens, commands),
        None => authenticator,
    };
    let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).map_err(|error| refused(&error))?;
    let foreign: BTreeSet<_> = settings.auth.extra_permissions.clone();
    let table = Table::from_pool(&pool, &foreign)
        .map_err(|faults| refused(&faults.first().map(ToString::to_string).unwrap_or_default()))?;
    Ok(Replay::new(authenticator, table, &settings))
}

/// Takes the records in; answers how many.
async fn fetch(replay: &mut Replay, args: Window, connection: &Connection) -> Result<u64> {
    let request = v1::SearchAuditRequest {
        since: Some(args.since),
        until: args.until,
        page_size: PAGE,
        ..v1::SearchAuditRequest::default()
    };
    // What was traded just before may act within the window.
    let exchanges = v1::SearchAuditRequest {
        rpc: Some("ExchangeToken".to_owned()),
        since: Some(Moment { seconds: args.since.seconds - TRADED_SECONDS_MAX, ..args.since }),
        until: Some(args.since),
        ..request.clone()
    };
    each(exchanges, connection, |record| replay.take_exchange(record)).await?;
    each(request, connection, |record| replay.take(record)).await
}

/// Shows each record that is found to somebody; answers how many.
async fn each(
    mut request: v1::SearchAuditRequest,
    connection: &Connection,
    mut take: impl FnMut(&str) -> bool,
) -> Result<u64> {
    let mut audit = connection.client().await?.audit();
    let mut records = 0;
    loop {
        let page = audit.search_audit(request.clone()).await?.into_inner();
        for record in &page.records {
            take(&record.record);
        }
        records += u64::try_from(page.records.len()).unwrap_or(0);
        if page.next_page_token.is_empty() {
            return Ok(records);
        }
        request.page_token = page.next_page_token;
    }
}
