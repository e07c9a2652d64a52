//! The answers to other services that were shown a credential: introspection
//! (RFC 7662) and checks.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::status::Error;
use crate::{
    access::{
        Caller, Gate, Guessing, Inspected, Reason, Refusal, TOKEN_INACTIVE, Verdict, verdict,
    },
    authz::Claim,
    domain::{
        Area, Principal, Scope, Timestamp,
        judged::{Judged, Judgement, Question},
        permission::right::TokensIntrospect,
        principal::Method,
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

impl Asker<'_> {
    /// Notes what it is told, for the record of its call.
    pub(super) fn judges(&self, judgement: Judgement) {
        self.caller.origin().judges(judgement);
    }
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
        asker.judges(Judgement::of(self.judged(shown, found.as_ref())));
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
        let (answer, verdict) = self.decided(found.as_ref(), permission, area.as_ref());
        let questions = vec![Question::new(Some(permission), namespace.as_deref(), verdict)];
        asker.judges(Judgement::of(Judged { questions, ..self.judged(shown, found.as_ref()) }));
        Ok(answer)
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
        let mut known: Vec<(Shown<'_>, Option<Inspected>, Vec<Question>)> = Vec::new();
        let mut answers = Vec::with_capacity(questions.len());
        for (place, question) in questions.iter().enumerate() {
            let field = |name: &str| format!("questions[{place}].{name}");
            let named = question.token.as_deref().or(token.as_deref()).unwrap_or_default();
            let named = present(&field("token"), named)?;
            let area = area(&field("namespace"), question.namespace.as_deref())?;
            let at = match known.iter().position(|(shown, ..)| shown.token == named) {
                Some(at) => at,
                None => {
                    let shown = Shown { token: named, client };
                    known.push((shown, self.look(asker, shown).await?, Vec::new()));
                    known.len() - 1
                }
            };
            let found = known.get(at).and_then(|(_, found, _)| found.as_ref());
            let permission = &question.permission;
            let (answer, verdict) = self.decided(found, permission, area.as_ref());
            answers.push(answer);
            if let Some((.., asked)) = known.get_mut(at) {
                let namespace = question.namespace.as_deref();
                asked.push(Question::new(Some(permission), namespace, verdict));
            }
        }
        let mut judgement = Judgement::default();
        for (shown, found, questions) in known {
            judgement.take(Judged { questions, ..self.judged(shown, found.as_ref()) });
        }
        asker.judges(judgement);
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
    ) -> (pb::CheckResponse, &'static str) {
        let Some(found) = found else {
            let reason = pb::CheckReason::TokenInactive.into();
            let answer = pb::CheckResponse { allowed: false, reason, principal: None };
            return (answer, TOKEN_INACTIVE);
        };
        let principal = &found.session.principal;
        let verdict = verdict(principal, &self.declared, permission, area);
        let reason = match verdict {
            Verdict::Allowed => pb::CheckReason::Allowed,
            Verdict::PermissionMissing => pb::CheckReason::PermissionMissing,
            Verdict::NamespaceNotHeld => pb::CheckReason::NamespaceNotHeld,
            Verdict::PermissionUnknown => pb::CheckReason::PermissionUnknown,
        };
        let answer = pb::CheckResponse {
            allowed: verdict == Verdict::Allowed,
            reason: reason.into(),
            principal: Some(checked(principal)),
        };
        (answer, verdict.as_str())
    }

    /// What the record says of a credential.
    fn judged(&self, shown: Shown<'_>, found: Option<&Inspected>) -> Judged {
        Judged {
            principal: found.map(|found| Arc::clone(&found.session.principal)),
            fingerprint: self.gate.fingerprint_of(shown.token),
            client: shown.client,
            active: Some(found.is_some()),
            questions: Vec::new(),
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
