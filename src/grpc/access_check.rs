//! The answers to other services that were shown a credential: introspection
//! (RFC 7662) and checks.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::status::Error;
use crate::{
    access::{Caller, Gate, Guessing, Inspected, Reason, Refusal, Verdict, verdict},
    authz::Claim,
    domain::{
        Area, Principal, Scope, Timestamp, permission::right::TokensIntrospect, principal::Method,
    },
    pb::v1 as pb,
};

/// How many questions one call may ask.
const QUESTIONS_MAX: usize = 100;

/// What the answers need.
#[derive(Clone, Debug)]
pub(super) struct Checks {
    gate: Gate,
    declared: Arc<BTreeSet<Arc<str>>>,
}

/// Who asks, with the leave to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    pub(super) caller: &'a Caller,
    pub(super) claim: &'a Claim<TokensIntrospect>,
}

/// A credential with its client's address.
#[derive(Clone, Copy, Debug)]
struct Shown<'a> {
    token: &'a str,
    client: Option<IpAddr>,
}

impl Checks {
    pub(super) fn new(gate: Gate, declared: Arc<BTreeSet<Arc<str>>>) -> Self {
        Self { gate, declared }
    }

    pub(super) async fn introspect(
        &self,
        asker: Asker<'_>,
        request: &pb::IntrospectRequest,
    ) -> Result<pb::IntrospectResponse, Error> {
        let client = address(request.client_address.as_deref())?;
        let shown = Shown { token: present("token", &request.token)?, client };
        let found = self.look(asker, shown).await?;
        Ok(found.as_ref().map_or_else(pb::IntrospectResponse::default, introspected))
    }

    pub(super) async fn check(
        &self,
        asker: Asker<'_>,
        request: &pb::CheckRequest,
    ) -> Result<pb::CheckResponse, Error> {
        let pb::CheckRequest { token, permission, namespace, client_address } = request;
        let shown =
            Shown { token: present("token", token)?, client: address(client_address.as_deref())? };
        let area = area("namespace", namespace.as_deref())?;
        let found = self.look(asker, shown).await?;
        Ok(self.decided(found.as_ref(), permission, area.as_ref()))
    }

    pub(super) async fn check_batch(
        &self,
        asker: Asker<'_>,
        request: &pb::CheckBatchRequest,
    ) -> Result<pb::CheckBatchResponse, Error> {
        let pb::CheckBatchRequest { token, questions, client_address } = request;
        if questions.is_empty() || questions.len() > QUESTIONS_MAX {
            let what = format!("ask 1 to {QUESTIONS_MAX} questions");
            return Err(Refusal::invalid(Reason::FieldInvalid, "questions", what).into());
        }
        let client = address(client_address.as_deref())?;
        // Each credential is looked up once, so that it costs once.
        let mut known: Vec<(&str, Option<Inspected>)> = Vec::new();
        let mut answers = Vec::with_capacity(questions.len());
        for (place, question) in questions.iter().enumerate() {
            let field = |name: &str| format!("questions[{place}].{name}");
            let named = question.token.as_deref().or(token.as_deref()).unwrap_or_default();
            let named = present(&field("token"), named)?;
            let area = area(&field("namespace"), question.namespace.as_deref())?;
            let at = match known.iter().position(|(token, _)| *token == named) {
                Some(at) => at,
                None => {
                    let shown = Shown { token: named, client };
                    known.push((named, self.look(asker, shown).await?));
                    known.len() - 1
                }
            };
            let found = known.get(at).and_then(|(_, found)| found.as_ref());
            answers.push(self.decided(found, &question.permission, area.as_ref()));
        }
        Ok(pb::CheckBatchResponse { answers })
    }

    async fn look(&self, asker: Asker<'_>, shown: Shown<'_>) -> Result<Option<Inspected>, Error> {
        let Shown { token, client } = shown;
        Ok(self.gate.inspect(asker.caller, asker.claim, token, client, Guessing::Stops).await?)
    }

    fn decided(
        &self,
        found: Option<&Inspected>,
        permission: &str,
        area: Option<&Area>,
    ) -> pb::CheckResponse {
        let Some(found) = found else {
            let reason = pb::CheckReason::TokenInactive.into();
            return pb::CheckResponse { allowed: false, reason, principal: None };
        };
        let principal = &found.session.principal;
        let verdict = verdict(principal, &self.declared, permission, area);
        let reason = match verdict {
            Verdict::Allowed => pb::CheckReason::Allowed,
            Verdict::PermissionMissing => pb::CheckReason::PermissionMissing,
            Verdict::NamespaceNotHeld => pb::CheckReason::NamespaceNotHeld,
            Verdict::PermissionUnknown => pb::CheckReason::PermissionUnknown,
        };
        pb::CheckResponse {
            allowed: verdict == Verdict::Allowed,
            reason: reason.into(),
            principal: Some(checked(principal)),
        }
    }
}

/// A credential that was named. What stands there is said nowhere.
fn present<'t>(field: &str, token: &'t str) -> Result<&'t str, Refusal> {
    if token.is_empty() {
        return Err(Refusal::invalid(Reason::FieldInvalid, field, "name a credential"));
    }
    Ok(token)
}

fn address(text: Option<&str>) -> Result<Option<IpAddr>, Refusal> {
    let parse = |text: &str| {
        text.parse().map_err(|_| {
            let what = "is no address, as 10.1.2.3";
            Refusal::invalid(Reason::FieldInvalid, "client_address", what)
        })
    };
    text.map(parse).transpose()
}

fn area(field: &str, text: Option<&str>) -> Result<Option<Area>, Refusal> {
    let area = text.map(Area::parse).transpose();
    area.map_err(|error| Refusal::invalid(Reason::FieldInvalid, field, error))
}

fn issuer(principal: &Principal) -> Option<String> {
    let issuer = &principal.identity.issuer;
    (!issuer.is_empty()).then(|| issuer.to_string())
}

fn checked(principal: &Principal) -> pb::CheckedPrincipal {
    pb::CheckedPrincipal {
        subject: principal.identity.subject.to_string(),
        source: principal.identity.source.as_str().to_owned(),
        issuer: issuer(principal),
        credential_id: principal.credential_id.to_string(),
    }
}

/// Where each of its grants holds, as every permission of `scope` does there
/// (SE-01); what holds where exactly is in `grants`.
pub(super) fn common_scope(principal: &Principal) -> Scope {
    let mut scopes = principal.grants.iter().map(|grant| grant.scope.clone());
    let first = scopes.next().unwrap_or(Scope::NOWHERE);
    scopes.fold(first, |common, scope| common.intersection(&scope))
}

fn introspected(found: &Inspected) -> pb::IntrospectResponse {
    let principal = &*found.session.principal;
    let mut names: Vec<String> = Vec::new();
    for name in principal.grants.iter().flat_map(|grant| grant.permissions.names()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let grants = principal.grants.iter().map(|grant| pb::Grant {
        permissions: grant.permissions.names(),
        namespaces: grant.scope.to_strings(),
    });
    let id = principal.credential_id.to_string();
    let kind = match principal.method {
        Method::ApiKey => "ApiKey",
        Method::Jwt | Method::Token | Method::Certificate | Method::None => "Bearer",
    };
    pb::IntrospectResponse {
        active: true,
        sub: Some(principal.identity.subject.to_string()),
        iss: issuer(principal),
        source: Some(principal.identity.source.as_str().to_owned()),
        credential_id: Some(id.clone()),
        client_id: Some(id),
        username: found.name.clone(),
        token_type: Some(kind.to_owned()),
        exp: principal.not_after.map(Timestamp::seconds),
        iat: found.issued_at.map(Timestamp::seconds),
        scope: Some(names.join(" ")),
        namespaces: common_scope(principal).to_strings(),
        grants: grants.collect(),
        aud: found.audience.clone(),
    }
}
