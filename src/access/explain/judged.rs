//! Explains what a call answered about a credential that another service was
//! shown (SE-42): to who holds that credential, to who asked, and to who may
//! read the audit of it. Where it was asked for its holder is not told.

use std::sync::Arc;

use serde::Deserialize;

use super::{Actor, Decider, Explainer, Explanation, Facts, may_read, past::RecordedActor};
use crate::{
    access::refusal::{Reason, reason_name},
    domain::{
        Grant, Permission, Principal,
        audit::{Origin, Outcome},
        judged::{Judged, Question},
        principal::Source,
    },
};

/// What a call answered to the only question that it asked.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// Whose credential it was; none where it does not count.
    actor: Option<Actor>,
    /// With what it held, or holds now.
    principal: Option<Arc<Principal>>,
    permission: Option<Arc<str>>,
    namespace: Option<Arc<str>>,
    verdict: Box<str>,
}

impl Answer {
    /// Out of memory.
    pub(super) fn of(origin: &Origin) -> Option<Self> {
        let (Judged { principal, .. }, question) = origin.judged()?.only()?;
        let Question { permission, namespace, verdict } = question;
        let actor = principal.as_deref().map(|principal| Actor {
            identity: principal.identity.clone(),
            method: principal.method,
            credential_id: Arc::clone(&principal.credential_id),
        });
        Some(Self {
            actor,
            principal: principal.clone(),
            permission: permission.as_deref().map(Into::into),
            namespace: namespace.as_deref().map(Into::into),
            verdict: (**verdict).into(),
        })
    }

    /// Out of the audit.
    pub(super) fn read(
        recorded: &[RecordedJudged],
        now: impl FnOnce(&Actor) -> Option<Arc<Principal>>,
    ) -> Option<Self> {
        let [RecordedJudged { actor, questions, .. }] = recorded else { return None };
        let [RecordedQuestion { permission, namespace, verdict }] = questions.as_slice() else {
            return None;
        };
        let actor = actor.as_ref().and_then(Actor::read);
        Some(Self {
            principal: actor.as_ref().and_then(now),
            actor,
            permission: permission.as_deref().map(Into::into),
            namespace: namespace.as_deref().map(Into::into),
            verdict: verdict.as_str().into(),
        })
    }

    /// Whether it was about a credential of this one. Keys of the configuration
    /// can share a name.
    pub(super) fn is_about(&self, asker: &Principal) -> bool {
        self.actor.as_ref().is_some_and(|actor| {
            actor.identity == asker.identity
                && (asker.identity.source != Source::Config
                    || actor.credential_id == asker.credential_id)
        })
    }

    fn decider(&self) -> Decider {
        match &*self.verdict {
            "allowed" | "permission_missing" => Decider::Permission,
            "namespace_not_held" => Decider::Namespace,
            "permission_unknown" | "route_invalid" | "request_malformed" => Decider::Request,
            "token_inactive" => Decider::Credential,
            "rate_limited" => Decider::Rate,
            other if other.starts_with("credentials_") => Decider::Credential,
            _ => Decider::Unknown,
        }
    }

    /// The stable reason, as a proxy's client was told it.
    fn reason(&self) -> Option<Box<str>> {
        Some(match &*self.verdict {
            "allowed" => return None,
            "permission_missing" | "namespace_not_held" | "permission_unknown"
            | "route_invalid" => reason_name(Reason::PermissionMissing).into(),
            "token_inactive" => reason_name(Reason::CredentialsInvalid).into(),
            other => other.to_ascii_uppercase().into(),
        })
    }

    /// The grants that have to do with it: those with the permission, or else
    /// all.
    fn held(&self) -> Vec<Grant> {
        let Some(principal) = &self.principal else { return Vec::new() };
        let name = self.permission.as_deref().unwrap_or_default();
        let with = principal.grants.iter().filter(|grant| grant.has(name));
        let with: Vec<Grant> = with.cloned().collect();
        if with.is_empty() { principal.grants.clone() } else { with }
    }

    fn summary(&self, told: &Explanation) -> String {
        let who = self
            .actor
            .as_ref()
            .map_or_else(|| "the caller".to_owned(), |actor| format!("`{}`", actor.identity));
        let name = self.permission.as_deref().unwrap_or_default();
        let place = told.places.first();
        let there = place.map(|place| format!(" in `{place}`")).unwrap_or_default();
        let advice =
            told.suggestion.as_ref().map(|one| format!("; {}", one.text)).unwrap_or_default();
        match &*self.verdict {
            "allowed" => format!("allowed: {who} may do this by `{name}`{there}"),
            "permission_missing" => format!("{who} does not hold `{name}`{advice}"),
            "namespace_not_held" if place.is_none() => {
                format!("{who} holds `{name}`, but not where it was asked for")
            }
            "namespace_not_held" => format!("{who} holds `{name}`, but not{there}{advice}"),
            "permission_unknown" => format!(
                "there is no permission `{name}`: it is neither built in nor in \
                 `auth.extra_permissions`"
            ),
            "route_invalid" => "the proxy's route names no permission, or no valid namespace, in \
                                its `context_extensions`"
                .to_owned(),
            "request_malformed" => {
                "the request that the proxy showed cannot be read, or its path is not in its \
                 normal form"
                    .to_owned()
            }
            "token_inactive" => "the credential that was shown does not count: it is unknown, \
                                 expired, revoked, used up, or of a step that has ended"
                .to_owned(),
            "credentials_missing" => "the request brought no credential".to_owned(),
            "credentials_ambiguous" => "the request brought more than one credential".to_owned(),
            "rate_limited" => "the credential does not count, like too many before it that were \
                               asked about; good ones still pass"
                .to_owned(),
            other => format!("the answer was `{other}`"),
        }
    }
}

/// A credential in a record that was asked about.
#[derive(Debug, Deserialize)]
pub(in crate::access) struct RecordedJudged {
    #[serde(flatten)]
    pub(in crate::access) actor: Option<RecordedActor>,
    /// Whether it counts; none where it was not looked up.
    pub(in crate::access) active: Option<bool>,
    #[serde(default)]
    pub(in crate::access) questions: Vec<RecordedQuestion>,
}

/// A question about it.
#[derive(Debug, Deserialize)]
pub(in crate::access) struct RecordedQuestion {
    pub(in crate::access) permission: Option<String>,
    pub(in crate::access) namespace: Option<String>,
    pub(in crate::access) verdict: String,
}

impl Explainer {
    /// What was answered, as far as its asker may know.
    pub(super) fn answered(&self, asker: &Principal, facts: Facts, answer: &Answer) -> Explanation {
        let auditor = may_read(asker, std::slice::from_ref(&facts.chain));
        let holder = answer.is_about(asker);
        let own = facts.is_by(&asker.identity);
        // Who asked was shown the credential then, and not now.
        let sees = auditor || holder || (own && !facts.held_now);
        let own_permission = answer.permission.as_deref().and_then(Permission::parse);
        let places: Vec<Arc<str>> =
            answer.namespace.iter().filter(|_| auditor || own).cloned().collect();
        let hidden = answer.namespace.is_some() && places.is_empty();
        let mut told = Explanation {
            request: facts.request,
            at: facts.at,
            outcome: if &*answer.verdict == "allowed" { Outcome::Allowed } else { Outcome::Denied },
            reason: answer.reason(),
            rule: words(&facts.rpc, answer, hidden),
            rpc: facts.rpc,
            actor: answer.actor.clone(),
            decider: answer.decider(),
            permission: own_permission,
            foreign: answer.permission.clone().filter(|_| own_permission.is_none()),
            mode: None,
            places,
            object: None,
            held: if sees { answer.held() } else { Vec::new() },
            held_now: facts.held_now,
            limits: Vec::new(),
            suggestion: None,
            granters: Vec::new(),
            summary: String::new(),
            complete: auditor,
        };
        if let Some(principal) = answer.principal.as_deref().filter(|_| sees) {
            self.propose_answer(&mut told, answer, principal, hidden);
        }
        told.summary = answer.summary(&told);
        told
    }

    /// What would help, and who can do it.
    fn propose_answer(
        &self,
        told: &mut Explanation,
        answer: &Answer,
        principal: &Principal,
        hidden: bool,
    ) {
        let Some(name) = &answer.permission else { return };
        let lacks = told.outcome == Outcome::Denied && told.decider == Decider::Permission;
        if !lacks && (hidden || told.decider != Decider::Namespace) {
            return;
        }
        if let Some(permission) = told.permission {
            let authenticator = &self.gate.0.authenticator;
            told.limits = authenticator.limits_on(principal, permission, &told.places);
        }
        told.suggestion = super::missing(principal, name, &told.places, false);
        if let Some(suggestion) = &told.suggestion {
            told.granters = self.granters(principal, suggestion, told.complete);
        }
    }
}

/// What was asked, in words.
fn words(rpc: &str, answer: &Answer, hidden: bool) -> String {
    let asker = if rpc.starts_with("envoy.") {
        "the proxy's route needs"
    } else {
        "another service asked for"
    };
    let Some(name) = &answer.permission else { return format!("{asker} no permission") };
    match &answer.namespace {
        Some(_) if hidden => format!("{asker} `{name}` in a namespace of its choice"),
        Some(place) => format!("{asker} `{name}` in `{place}`"),
        None => format!("{asker} `{name}` anywhere"),
    }
}
