//! The successor of a token with what it uses, and nothing besides.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Admin, Error, Result, Tokens, distinct, invalid,
    tokens::{Minted, rotatable, succeed},
};
use crate::{
    access::{Caller, Kind, Reason, Refusal},
    authn::Issue,
    authz::Root,
    domain::{Permission, PermissionSet, Timestamp},
};

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tighten {
    /// For how long the old token still counts.
    pub overlap_seconds: u32,
    /// Only what was used in the last so many seconds counts as used.
    pub since_seconds: Option<u32>,
    /// Nothing is changed.
    pub dry_run: bool,
}

/// What comes of it.
#[derive(Debug)]
pub struct Tightened {
    /// The successor; none in a dry run.
    pub minted: Option<Minted>,
    /// The scopes of the successor.
    pub kept: Vec<String>,
    /// The permissions that it lacks.
    pub dropped: Vec<String>,
}

/// Mints the successor of a token with only the permissions that it, what it
/// was rotated from, or a token that descends from it exercised. What other
/// services ask for is not seen here and stays.
pub async fn tighten(
    admin: &Admin,
    caller: &Caller,
    root: &Root,
    prefix: &str,
    asked: Tighten,
) -> Result<Tightened> {
    if asked.since_seconds == Some(0) {
        return Err(invalid("since_seconds", "must be at least 1; leave it out for any time"));
    }
    if let Tokens::File(_) = admin.tokens {
        return Err(precondition(
            "What tokens of a file are used for is noted in memory alone, since the server's \
             start; write its line with fewer scopes instead",
        ));
    }
    let _turn = admin.turn(caller).await?;
    let old = rotatable(admin, prefix, asked.overlap_seconds)?;
    let now = admin.now();
    let since = |seconds: u32| {
        let back = i64::from(seconds).saturating_mul(1_000_000);
        Timestamp::from_micros(now.micros().saturating_sub(back))
    };
    let since = asked.since_seconds.map(since);
    let used = |permission: Permission| {
        let at = admin.issued.exercised_below(&old, permission);
        at.is_some_and(|at| since.is_none_or(|since| at >= since))
    };
    let used: BTreeSet<Permission> = old.named().own().filter(|one| used(*one)).collect();
    let kept = reduced(&old, &used, &admin.foreign);
    let dropped: Vec<String> = old
        .named()
        .own()
        .filter(|permission| !used.contains(permission))
        .map(|permission| permission.name().to_owned())
        .collect();
    if kept.is_empty() {
        return Err(precondition(
            "None of its permissions was used in that time, so nothing would be left; revoke the \
             token instead, or look further back",
        ));
    }
    if dropped.is_empty() {
        return Err(precondition(
            "It uses every permission that it has; there is nothing to drop. Rotate it for a new \
             secret",
        ));
    }
    let minted = if asked.dry_run {
        None
    } else {
        let minted = succeed(admin, root, &old, asked.overlap_seconds, kept.clone()).await?;
        admin.issued.bound_below(&minted.record.family);
        tracing::info!(
            credential = prefix,
            successor = &*minted.record.id,
            dropped = dropped.join(", "),
            "token tightened"
        );
        Some(minted)
    };
    Ok(Tightened { minted, kept, dropped })
}

/// The scopes in their order, each cut down to what was used of it.
fn reduced(old: &Issue, used: &BTreeSet<Permission>, foreign: &BTreeSet<Arc<str>>) -> Vec<String> {
    let cut = |scope: &String| {
        let mut one = PermissionSet::empty();
        one.add(scope, foreign);
        if one.own().next().is_none() {
            // Another service's.
            return vec![scope.clone()];
        }
        let own = one.own().filter(|permission| used.contains(permission));
        own.map(|permission| permission.name().to_owned()).collect()
    };
    distinct(old.record.scopes.iter().flat_map(cut).collect())
}

fn precondition(message: &str) -> Error {
    Refusal::new(Kind::Precondition, Reason::CredentialState, message).into()
}
