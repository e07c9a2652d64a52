//! Callers and what they may.

use super::{owned, time};
use crate::{
    access::explain::{Able, Actor, Explanation, Granter, Suggestion, WhoCan},
    domain::{Grant, Permission, Principal},
    pb::v1 as pb,
};

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl From<&Grant> for pb::Grant {
    fn from(grant: &Grant) -> Self {
        Self { permissions: grant.permissions.names(), namespaces: grant.scope.to_strings() }
    }
}

impl From<&Principal> for pb::WhoAmIResponse {
    fn from(principal: &Principal) -> Self {
        let identity = &principal.identity;
        let grants = principal.grants.iter().map(pb::Grant::from);
        Self {
            subject: owned(&identity.subject),
            source: owned(identity.source.as_str()),
            issuer: Some(&identity.issuer).filter(|text| !text.is_empty()).map(|text| owned(text)),
            method: owned(principal.method.as_str()),
            grants: grants.collect(),
            root: principal.is_root(),
            expires_at: principal.not_after.map(time),
        }
    }
}

impl From<Actor> for pb::Subject {
    fn from(actor: Actor) -> Self {
        Self {
            source: owned(actor.identity.source.as_str()),
            issuer: given(&actor.identity.issuer),
            subject: owned(&actor.identity.subject),
            method: owned(actor.method.as_str()),
            credential_id: given(&actor.credential_id),
        }
    }
}

impl From<Suggestion> for pb::SuggestedGrant {
    fn from(suggestion: Suggestion) -> Self {
        let Suggestion { permission, namespaces, assumed, text } = suggestion;
        Self { permission: owned(&permission), namespaces, assumed, text }
    }
}

impl From<Granter> for pb::Granter {
    fn from(granter: Granter) -> Self {
        Self {
            kind: owned(granter.kind.as_str()),
            name: granter.name.as_deref().and_then(given),
            credential_id: granter.credential_id.as_deref().and_then(given),
            text: granter.text,
        }
    }
}

impl From<Explanation> for pb::ExplainDecisionResponse {
    fn from(told: Explanation) -> Self {
        Self {
            request_id: told.request.to_string(),
            decided_at: Some(time(told.at)),
            outcome: owned(told.outcome.as_str()),
            reason: told.reason.map(String::from),
            rpc: owned(&told.rpc),
            subject: told.actor.map(Into::into),
            rule: Some(pb::DecidingRule {
                kind: owned(told.decider.as_str()),
                permission: told
                    .permission
                    .map(|permission| owned(Permission::name(permission)))
                    .or_else(|| told.foreign.as_deref().map(owned)),
                mode: told.mode.map(owned),
                text: told.rule,
            }),
            namespaces: told.places.iter().map(|place| owned(place)).collect(),
            object: told.object.map(String::from),
            held: told.held.iter().map(Into::into).collect(),
            held_now: told.held_now,
            limits: told.limits,
            suggestion: told.suggestion.map(Into::into),
            granters: told.granters.into_iter().map(Into::into).collect(),
            summary: told.summary,
            complete: told.complete,
        }
    }
}

impl From<Able> for pb::AbleCredential {
    fn from(able: Able) -> Self {
        let subject = able.principal.map(|principal| Actor {
            identity: principal.identity.clone(),
            method: principal.method,
            credential_id: std::sync::Arc::clone(&principal.credential_id),
        });
        Self {
            kind: owned(able.kind.map_or("jwt", |kind| kind.as_str())),
            name: able.name.as_deref().and_then(given),
            subject: subject.map(Into::into),
            text: able.how,
        }
    }
}

impl From<WhoCan> for pb::WhoCanResponse {
    fn from(who: WhoCan) -> Self {
        Self {
            credentials: who.able.into_iter().map(Into::into).collect(),
            left_out: u32::try_from(who.left_out).unwrap_or(u32::MAX),
            roles: who.roles,
        }
    }
}
