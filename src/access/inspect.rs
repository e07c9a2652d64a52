//! Credentials that other services were shown: what they are worth, for a
//! caller that may know (SE-42). What does not count answers alike, whatever
//! the cause, and costs the caller.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{call::Caller, counters::Limited, gate::Gate, refusal::Refusal};
use crate::{
    authn::Inspected,
    authz::Claim,
    domain::{Area, Permission, Principal, permission::right::TokensIntrospect},
};

/// Whether failed look-ups of this caller shut out the good ones too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guessing {
    /// They do: who has asked about too many bad credentials waits.
    Stops,
    /// They do not: strangers choose what a proxy asks about, and must not
    /// shut out its good clients.
    GoesOn,
}

/// How a question about a credential that counts is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// It lacks the permission everywhere.
    PermissionMissing,
    /// It has the permission, but not there.
    NamespaceNotHeld,
    /// There is no such permission.
    PermissionUnknown,
}

/// Decides whether a principal has a permission of this server, or one of the
/// `declared` ones of others, in a whole area; anywhere without one.
#[must_use]
pub fn verdict(
    principal: &Principal,
    declared: &BTreeSet<Arc<str>>,
    name: &str,
    area: Option<&Area>,
) -> Verdict {
    let (held, there) = match Permission::parse(name) {
        Some(own) => {
            (principal.holds(own), area.is_none_or(|area| principal.may_in_area(own, area)))
        }
        None if !declared.contains(name) => return Verdict::PermissionUnknown,
        None => {
            let mut grants =
                principal.grants.iter().filter(|grant| grant.permissions.contains_foreign(name));
            let held = grants.clone().next().is_some();
            let within = |area: &Area| grants.any(|grant| grant.scope.contains_area(area));
            (held, area.is_none_or(within))
        }
    };
    match (held, there) {
        (true, true) => Verdict::Allowed,
        (true, false) => Verdict::NamespaceNotHeld,
        (false, _) => Verdict::PermissionMissing,
    }
}

impl Gate {
    /// What a credential is worth; none when it is not worth anything.
    pub fn inspect(
        &self,
        caller: &Caller,
        _: &Claim<TokensIntrospect>,
        token: &str,
        client: Option<IpAddr>,
        guessing: Guessing,
    ) -> Result<Option<Inspected>, Refusal> {
        let inner = self.inner();
        let (asker, now) = (caller.principal(), inner.clock.now());
        if guessing == Guessing::Stops {
            self.limited(inner.limits.look_inspection(asker, now))?;
        }
        match inner.authenticator.inspect(token, client, now) {
            Ok(inspected) => Ok(Some(inspected)),
            Err(fault) => {
                tracing::debug!(
                    reason = fault.label(),
                    by = %asker.identity,
                    request_id = %caller.request(),
                    "a credential that was asked about does not count"
                );
                self.limited(inner.limits.fail_inspection(asker, now))?;
                Ok(None)
            }
        }
    }

    fn limited(&self, taken: Result<(), Refusal>) -> Result<(), Refusal> {
        if taken.is_err() {
            self.inner().counters.limited(Limited::Inspections);
        }
        taken
    }
}
