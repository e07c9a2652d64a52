//! Who could do something, among the credentials that the server knows.

use std::sync::Arc;

use super::{Explainer, may_read};
use crate::{
    access::refusal::{Reason, Refusal},
    authn::known::{Bearer, Kind},
    domain::{Area, Grant, Permission, Principal, Scope, Timestamp, audit::SERVER_CHAIN},
};

/// The most credentials of one answer.
const BEARERS_MAX: usize = 500;

/// Somebody who could.
#[derive(Clone, Debug)]
pub struct Able {
    /// What the credential is; none for JWTs of an issuer.
    pub kind: Option<Kind>,
    /// What it is called; for JWTs the issuer.
    pub name: Option<Arc<str>>,
    /// Who calls with it; none for JWTs, which are not known before they come.
    pub principal: Option<Arc<Principal>>,
    /// By what it could.
    pub how: String,
}

/// Who could do something.
#[derive(Clone, Debug)]
pub struct WhoCan {
    /// The credentials.
    pub able: Vec<Able>,
    /// How many there are besides.
    pub left_out: usize,
    /// The roles that hold the permission.
    pub roles: Vec<String>,
}

impl Explainer {
    /// Lists who could do something in an area, for who may read its audit.
    pub fn who_can(
        &self,
        asker: &Principal,
        permission: &str,
        namespace: &str,
    ) -> Result<WhoCan, Refusal> {
        let area = over(asker, namespace)?;
        let permission = Permission::parse(permission).ok_or_else(|| {
            let what = "no permission; `bailiwick auth show-permissions` lists them";
            Refusal::invalid(Reason::FieldInvalid, "permission", what)
        })?;
        let authenticator = &self.gate.0.authenticator;
        // Of what lies elsewhere the asker learns nothing.
        let seen = asker.scope_of(Permission::AuditRead);
        let now = self.gate.0.clock.now();
        let bearers = authenticator.bearers(now).into_iter().filter_map(|bearer| {
            if bearer.principal.may_in_area(permission, &area) {
                return Some(of(bearer, permission, &seen, ""));
            }
            let principal = authenticator.elevated(&bearer.principal, now)?;
            let there = principal.may_in_area(permission, &area);
            there.then(|| of(Bearer { principal, ..bearer }, permission, &seen, "for a while; "))
        });
        let mut able: Vec<Able> = bearers.collect();
        able.extend(authenticator.issuers_reaching(permission, &area).into_iter().map(|reach| {
            let ceiling = reach.scope.intersection(&seen).to_strings().join(", ");
            Able {
                kind: None,
                name: Some(reach.issuer),
                principal: None,
                how: format!("its subjects, where {}; at most in {ceiling}", reach.how),
            }
        }));
        let left_out = able.len().saturating_sub(BEARERS_MAX);
        able.truncate(BEARERS_MAX);
        let roles = self.roles.iter().filter(|(_, set)| set.contains(permission));
        let roles = roles.map(|(name, _)| format!("role:{name}")).collect();
        Ok(WhoCan { able, left_out, roles })
    }

    /// A subject as the audit and `WhoAmI` print it, with what it holds now;
    /// a JWT's as it was seen last. Only who may read the audit of all that is
    /// asked about learns of it, and of nobody who holds nothing there.
    pub async fn subject(
        &self,
        asker: &Principal,
        text: &str,
        places: impl Iterator<Item = Option<&str>>,
    ) -> Result<Subject, Refusal> {
        for place in places {
            match place {
                Some(place) => {
                    over(asker, place)?;
                }
                None if may_read(asker, &[SERVER_CHAIN.into()]) => {}
                None => return Err(Refusal::permission_missing(Permission::AuditRead)),
            }
        }
        let (authenticator, now) = (&self.gate.0.authenticator, self.gate.0.clock.now());
        let all = authenticator.bearers(now);
        let named = all.into_iter().find(|bearer| {
            let Principal { identity, credential_id, .. } = &*bearer.principal;
            identity.to_string() == text || !text.is_empty() && **credential_id == *text
        });
        let named = named.map(|bearer| Subject { principal: bearer.principal, last_seen_at: None });
        let found = match named {
            Some(subject) => Some(subject),
            None => self.seen(text).await?,
        };
        let seen = asker.scope_of(Permission::AuditRead);
        let reaches = |grant: &Grant| grant.scope.intersection(&seen) != Scope::NOWHERE;
        found
            .map(|Subject { principal, last_seen_at }| {
                let principal = authenticator.elevated(&principal, now).unwrap_or(principal);
                Subject { principal, last_seen_at }
            })
            .filter(|subject| {
                seen == Scope::Everything || subject.principal.grants.iter().any(reaches)
            })
            .ok_or_else(|| Refusal::not_found("subject", text))
    }
}

/// Somebody that the server knows.
#[derive(Clone, Debug)]
pub struct Subject {
    /// With what it holds.
    pub principal: Arc<Principal>,
    /// When a JWT of it was seen last; none where it is known by itself.
    pub last_seen_at: Option<Timestamp>,
}

/// The area that somebody may ask about.
pub(super) fn over(asker: &Principal, namespace: &str) -> Result<Area, Refusal> {
    let area = Area::parse(namespace)
        .map_err(|error| Refusal::invalid(Reason::FieldInvalid, "namespace", error))?;
    if !asker.holds(Permission::AuditRead) {
        return Err(Refusal::permission_missing(Permission::AuditRead));
    }
    if !may_read(asker, &[namespace.into()]) {
        return Err(Refusal::namespace_not_found(namespace));
    }
    Ok(area)
}

fn of(bearer: Bearer, permission: Permission, seen: &Scope, lasts: &str) -> Able {
    let scope = bearer.principal.scope_of(permission).intersection(seen);
    let root = if bearer.principal.is_root() { "root; " } else { "" };
    let how = format!("{root}{lasts}holds it in {}", scope.to_strings().join(", "));
    Able { kind: Some(bearer.kind), name: bearer.name, principal: Some(bearer.principal), how }
}
