//! A rule as it lies in its row: JSON with names that stay when the types
//! change.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{error::damaged, row};
use crate::{
    domain::{
        Grant, Namespace, PermissionSet, Scope, Timestamp,
        namespace::Prefix,
        principal::{GrantRef, Method},
        schedule::{HttpMethod, Identifier, RedisCommand, Rule, Runner},
        task::RetryPolicy,
    },
    storage::Result,
};

/// The three columns of JSON.
pub(super) struct Written {
    pub(super) runner: String,
    pub(super) retry: String,
    pub(super) owner: String,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum RunnerRow {
    Task { namespace: String, template: String, version: Option<String> },
    Http { method: String, url: String },
    Shell { command: String },
    Direct { executable: String, args: Vec<String> },
    Awf { workflow: String, args: Vec<String> },
    Amqp { dsn: String, exchange: String, routing_key: String },
    Redis { url: String, command: String, key: String },
}

#[derive(Serialize, Deserialize)]
struct RetryRow {
    retryable: bool,
    max_attempts: u32,
    backoff: u8,
    base_ms: u32,
    max_ms: u32,
}

/// A prefix as it is parsed, with `*` for everything; or the start of texts,
/// which is never parsed.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PrefixRow {
    Name(String),
    Text { text: String },
    Exactly { exactly: String },
}

#[derive(Serialize, Deserialize)]
struct OwnerRow {
    identity: String,
    method: String,
    credential_id: String,
    grants: Vec<(Vec<String>, Vec<PrefixRow>)>,
    set_at: i64,
    issued_at: Option<i64>,
    until: Option<i64>,
}

const METHODS: [Method; 5] =
    [Method::ApiKey, Method::Jwt, Method::Token, Method::Certificate, Method::None];

pub(super) fn write(rule: &Rule) -> Result<Written> {
    let RetryPolicy { retryable, max_attempts, backoff, base_ms, max_ms } = rule.retry;
    let backoff = row::backoff_code(backoff);
    let retry = RetryRow { retryable, max_attempts, backoff, base_ms, max_ms };
    Ok(Written {
        runner: json(&runner_row(&rule.runner))?,
        retry: json(&retry)?,
        owner: owner_text(&rule.owner)?,
    })
}

/// Who stands behind something, as JSON.
pub(super) fn owner_text(owner: &GrantRef) -> Result<String> {
    let GrantRef { identity, method, credential_id, grants, set_at, issued_at, until } = owner;
    let grants = grants.iter().map(|grant| (grant.permissions.names(), scope_row(&grant.scope)));
    let owner = OwnerRow {
        identity: row::identity_text(identity),
        method: method.as_str().to_owned(),
        credential_id: credential_id.to_string(),
        grants: grants.collect(),
        set_at: set_at.micros(),
        issued_at: issued_at.map(Timestamp::micros),
        until: until.map(Timestamp::micros),
    };
    json(&owner)
}

/// Reads back what [`owner_text`] wrote.
pub(super) fn owner(text: &str) -> Result<GrantRef> {
    as_owner(serde_json::from_str(text).map_err(|_| damaged("a grant"))?)
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|_| damaged("a rule"))
}

pub(super) fn read(
    id: Identifier,
    pattern: Arc<str>,
    runner: &str,
    retry: &str,
    owner_: &str,
) -> Result<Rule> {
    let wrong = |_| damaged("a rule");
    let retry: RetryRow = serde_json::from_str(retry).map_err(wrong)?;
    let RetryRow { retryable, max_attempts, backoff, base_ms, max_ms } = retry;
    let backoff = row::backoff(backoff)?;
    let runner: RunnerRow = serde_json::from_str(runner).map_err(wrong)?;
    Ok(Rule {
        id,
        pattern,
        runner: as_runner(runner).ok_or_else(|| damaged("a rule's runner"))?,
        retry: RetryPolicy { retryable, max_attempts, backoff, base_ms, max_ms },
        owner: owner(owner_)?,
    })
}

fn as_owner(row: OwnerRow) -> Result<GrantRef> {
    let OwnerRow { identity, method, credential_id, grants, set_at, issued_at, until } = row;
    let method = METHODS.into_iter().find(|known| known.as_str() == method);
    let grants = grants.into_iter().map(|(names, scope)| {
        // One that is no permission of ours (any more) grants nothing here.
        let foreign: BTreeSet<Arc<str>> = names.iter().map(|name| Arc::from(&**name)).collect();
        let mut permissions = PermissionSet::empty();
        for name in &names {
            permissions.add(name, &foreign);
        }
        let scope = as_scope(scope).ok_or_else(|| damaged("a grant's scope"))?;
        Ok(Grant { permissions, scope })
    });
    Ok(GrantRef {
        identity: row::identity(&identity)?,
        method: method.ok_or_else(|| damaged("a credential's method"))?,
        credential_id: credential_id.into(),
        grants: grants.collect::<Result<_>>()?,
        set_at: Timestamp::from_micros(set_at),
        issued_at: issued_at.map(Timestamp::from_micros),
        until: until.map(Timestamp::from_micros),
    })
}

fn scope_row(scope: &Scope) -> Vec<PrefixRow> {
    let Scope::Under(prefixes) = scope else { return vec![PrefixRow::Name("*".to_owned())] };
    let row = |prefix: &Prefix| match prefix {
        Prefix::Tree(_) | Prefix::Below(_) => PrefixRow::Name(prefix.to_string()),
        Prefix::Exactly(name) => PrefixRow::Exactly { exactly: name.to_string() },
        Prefix::Text(text) => PrefixRow::Text { text: text.to_string() },
    };
    prefixes.iter().map(row).collect()
}

fn as_scope(rows: Vec<PrefixRow>) -> Option<Scope> {
    let mut under = Vec::new();
    for row in rows {
        match row {
            PrefixRow::Text { text } => under.push(Prefix::Text(text.into())),
            PrefixRow::Exactly { exactly } => {
                under.push(Prefix::Exactly(Namespace::parse(&exactly).ok()?));
            }
            PrefixRow::Name(name) => match Scope::parse(&[name]).ok()? {
                Scope::Everything => return Some(Scope::Everything),
                Scope::Under(prefixes) => under.extend(prefixes),
            },
        }
    }
    Some(Scope::Under(under))
}

fn texts(all: &[Arc<str>]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

fn shared(all: Vec<String>) -> Vec<Arc<str>> {
    all.into_iter().map(Into::into).collect()
}

fn runner_row(runner: &Runner) -> RunnerRow {
    match runner {
        Runner::Task { namespace, template, version } => RunnerRow::Task {
            namespace: namespace.to_string(),
            template: template.to_string(),
            version: version.as_deref().map(str::to_owned),
        },
        Runner::Http { method, url } => {
            RunnerRow::Http { method: method.as_str().to_owned(), url: url.to_string() }
        }
        Runner::Shell { command } => RunnerRow::Shell { command: command.to_string() },
        Runner::Direct { executable, args } => {
            RunnerRow::Direct { executable: executable.to_string(), args: texts(args) }
        }
        Runner::Awf { workflow, args } => {
            RunnerRow::Awf { workflow: workflow.to_string(), args: texts(args) }
        }
        Runner::Amqp { dsn, exchange, routing_key } => RunnerRow::Amqp {
            dsn: dsn.to_string(),
            exchange: exchange.to_string(),
            routing_key: routing_key.to_string(),
        },
        Runner::Redis { url, command, key } => RunnerRow::Redis {
            url: url.to_string(),
            command: command.as_str().to_owned(),
            key: key.to_string(),
        },
    }
}

fn as_runner(row: RunnerRow) -> Option<Runner> {
    Some(match row {
        RunnerRow::Task { namespace, template, version } => Runner::Task {
            namespace: Namespace::parse(&namespace).ok()?,
            template: template.into(),
            version: version.map(Into::into),
        },
        RunnerRow::Http { method, url } => Runner::Http {
            method: HttpMethod::ALL.iter().copied().find(|known| known.as_str() == method)?,
            url: url.into(),
        },
        RunnerRow::Shell { command } => Runner::Shell { command: command.into() },
        RunnerRow::Direct { executable, args } => {
            Runner::Direct { executable: executable.into(), args: shared(args) }
        }
        RunnerRow::Awf { workflow, args } => {
            Runner::Awf { workflow: workflow.into(), args: shared(args) }
        }
        RunnerRow::Amqp { dsn, exchange, routing_key } => Runner::Amqp {
            dsn: dsn.into(),
            exchange: exchange.into(),
            routing_key: routing_key.into(),
        },
        RunnerRow::Redis { url, command, key } => Runner::Redis {
            url: url.into(),
            command: RedisCommand::ALL.iter().copied().find(|known| known.as_str() == command)?,
            key: key.into(),
        },
    })
}
