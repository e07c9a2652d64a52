//! Credentials that other services were shown: what they are worth, for a
//! caller that may know (SE-42). What does not count answers alike, whatever
//! the cause, and costs the caller.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use http::HeaderMap;
use sha2::{Digest as _, Sha256};

use super::{call::Caller, counters::Limited, gate::Gate, refusal::Refusal};
pub use crate::authn::Inspected;
use crate::{
    authn::{Fault, Unauthenticated},
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

impl Verdict {
    /// As records say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::PermissionMissing => "permission_missing",
            Self::NamespaceNotHeld => "namespace_not_held",
            Self::PermissionUnknown => "permission_unknown",
        }
    }
}

/// What records say of a question about a credential that does not count.
pub const TOKEN_INACTIVE: &str = "token_inactive";

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
    /// The one credential among the headers of a request that another server
    /// got.
    pub fn shown_in<'h>(&self, headers: &'h HeaderMap) -> Result<&'h str, Unauthenticated> {
        self.inner().authenticator.shown_in(headers)
    }

    /// What records call a credential by that another server was shown; none
    /// without an audit.
    #[must_use]
    pub fn fingerprint_of(&self, token: &str) -> Option<Arc<str>> {
        let journal = self.inner().journal.as_ref()?;
        Some(journal.fingerprint(&Sha256::digest(token.as_bytes()).into()))
    }

    /// Whether a credential is the very one that a call was made with.
    #[must_use]
    pub fn is_own(&self, caller: &Caller, token: &str) -> bool {
        let inner = self.inner();
        let now = inner.clock.now();
        inner.authenticator.inspect(token, caller.origin().peer, now).is_ok_and(|found| {
            let (own, other) = (caller.principal(), &found.session.principal);
            own.identity == other.identity && own.credential_id == other.credential_id
        })
    }

    /// What a credential is worth in a call now, with the rights that its holder
    /// has for a while; none when it is not worth anything.
    pub async fn inspect(
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
        let found = match inner.authenticator.inspect(token, client, now) {
            Ok(found) => self.tied(caller, found).await?,
            Err(fault) => Err(fault),
        };
        match found {
            Ok(found) => {
                let session = inner.authenticator.raised(found.session, None, now);
                Ok(Some(Inspected { session, ..found }))
            }
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

    /// A step's token counts while its lease does (SE-42, SE-32).
    async fn tied(
        &self,
        caller: &Caller,
        found: Inspected,
    ) -> Result<Result<Inspected, Fault>, Refusal> {
        let Some(tie) = &found.tie else { return Ok(Ok(found)) };
        let inner = self.inner();
        let tenure = inner.tenure(tie, caller.request()).await?;
        // It may have ended while it was looked up.
        let now = inner.clock.now();
        let tied = inner.authenticator.tied_session(&found.session, tie, tenure.as_ref(), now);
        Ok(tied.map(|session| Inspected { session, ..found }))
    }

    fn limited(&self, taken: Result<(), Refusal>) -> Result<(), Refusal> {
        if taken.is_err() {
            self.inner().counters.limited(Limited::Inspections);
        }
        taken
    }
}
