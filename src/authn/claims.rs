//! Reading what a token claims, and whether a rule holds for it.

use std::sync::Arc;

use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

use super::Fault;
use crate::{
    config::{ClaimRule, Pattern},
    domain::{
        Grant, Principal, Scope, Timestamp,
        principal::{Identity, Method, Source},
    },
};

/// What a good token says.
#[derive(Debug)]
pub(super) struct Claims {
    pub(super) issuer: Arc<str>,
    pub(super) subject: Arc<str>,
    pub(super) not_after: Timestamp,
    pub(super) issued_at: Option<Timestamp>,
    pub(super) grants: Vec<Grant>,
    pub(super) worker_scope: Option<Scope>,
    pub(super) unknown_permissions: Vec<String>,
}

impl Claims {
    /// Who calls with it.
    pub(super) fn into_principal(self, credential_id: Arc<str>) -> Principal {
        Principal {
            identity: Identity { source: Source::Idp, issuer: self.issuer, subject: self.subject },
            method: Method::Jwt,
            grants: self.grants,
            not_after: Some(self.not_after),
            credential_id,
            worker_scope: self.worker_scope,
            issued_at: self.issued_at,
        }
    }
}

/// The claims by which rights can be given: those that say who a token is for
/// and what it may, never what else is known of a person.
const EVIDENCE: &[&str] = &[
    "iss",
    "sub",
    "aud",
    "azp",
    "client_id",
    "iat",
    "exp",
    "scope",
    "scp",
    "roles",
    "role",
    "groups",
    "permissions",
    "namespaces",
    "worker_namespaces",
    "entitlements",
    "realm_access",
    "resource_access",
    "repository",
    "ref",
    "environment",
    "kubernetes.io",
];
/// The most that the audit keeps of a token's claims, in bytes.
const EVIDENCE_BYTES_MAX: usize = 4096;

/// What the audit keeps of a token's claims, so that what was allowed can be
/// looked at again under other rules; nothing of a token that says too much.
pub(super) fn evidence(claims: &Map<String, Value>, read: &[&str]) -> Option<Box<RawValue>> {
    let is_read = |name: &str| {
        read.iter().any(|path| {
            path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    let kept: Map<String, Value> = claims
        .iter()
        .filter(|(name, _)| EVIDENCE.contains(&name.as_str()) || is_read(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let text = to_raw_value(&kept).ok()?;
    (text.get().len() <= EVIDENCE_BYTES_MAX).then_some(text)
}

/// The scope that a rule gives; nothing when the token is not as the rule
/// wants it. A rule without a scope gives that by default.
pub(super) fn applies(
    rule: &ClaimRule,
    claims: &Map<String, Value>,
    by_default: &Scope,
) -> Option<Scope> {
    let fits = |(name, pattern): &(String, Pattern)| match claim(claims, name) {
        Some(Value::String(text)) => pattern.matches(text),
        Some(Value::Array(items)) => {
            items.iter().filter_map(Value::as_str).any(|item| pattern.matches(item))
        }
        None | Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => false,
    };
    if !rule.claims.iter().all(fits) {
        return None;
    }
    let Some(places) = &rule.namespaces else { return Some(by_default.clone()) };
    let text = |name: &str| claim(claims, name).and_then(Value::as_str);
    places.iter().try_fold(Scope::NOWHERE, |scope, place| Some(scope.union(place.fill(text)?)))
}

/// A claim by its name or, when there is none of the whole name, by its path:
/// names joined by dots, some of which may have dots of their own.
fn claim<'c>(claims: &'c Map<String, Value>, path: &str) -> Option<&'c Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    path.rmatch_indices('.').find_map(|(at, _)| {
        let (name, rest) = (path.get(..at)?, path.get(at + 1..)?);
        claim(claims.get(name)?.as_object()?, rest)
    })
}

/// The names in a claim: a list, or a text with spaces between them.
pub(super) fn names<'c>(
    claims: &'c Map<String, Value>,
    path: &str,
    faults: &mut Vec<Fault>,
) -> Option<Vec<&'c str>> {
    let value = claim(claims, path)?;
    if let Some(text) = value.as_str() {
        return Some(text.split(' ').filter(|name| !name.is_empty()).collect());
    }
    strings_of(value, path, faults)
}

/// A list of strings, when the claim is there.
pub(super) fn strings<'c>(
    claims: &'c Map<String, Value>,
    name: &str,
    faults: &mut Vec<Fault>,
) -> Option<Vec<&'c str>> {
    strings_of(claims.get(name)?, name, faults)
}

fn strings_of<'c>(value: &'c Value, name: &str, faults: &mut Vec<Fault>) -> Option<Vec<&'c str>> {
    let strings = value
        .as_array()
        .and_then(|items| items.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    if strings.is_none() {
        faults.push(Fault::ClaimInvalid(name.to_owned(), "a list of strings"));
    }
    strings
}
