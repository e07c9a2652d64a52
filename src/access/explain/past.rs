//! What is known of a decision: from memory, or as far as the audit says it.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Actor, Explainer, Refusal, Subject,
    judged::{Answer, RecordedJudged},
    may_know, unavailable,
};
use crate::{
    access::decisions::{By, Decision},
    domain::{
        Permission, Principal, RequestId, Timestamp,
        audit::{Outcome, SERVER_CHAIN},
        principal::{GrantRef, Identity, Method, Source},
    },
    storage::{AuditRow, Store},
};

/// How many records one look takes.
const PAGE: usize = 1_000;
/// How many looks there are.
const PAGES: usize = 50;
/// How long they take at most.
const TIME_MAX: Duration = Duration::from_secs(1);
/// The record of a credential in use, which is no decision.
pub(in crate::access) const CREDENTIAL: &str = "credential";

/// What is known of a decision.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) request: RequestId,
    pub(super) at: Timestamp,
    pub(super) outcome: Outcome,
    pub(super) reason: Option<Box<str>>,
    pub(super) rpc: Arc<str>,
    pub(super) permission: Option<Permission>,
    pub(super) actor: Option<Actor>,
    /// The caller with what it held, or holds now.
    pub(super) principal: Option<Arc<Principal>>,
    pub(super) held_now: bool,
    /// Where it was allowed.
    pub(super) place: Option<Arc<str>>,
    /// What it asked for when it was refused.
    pub(super) asked: Vec<Arc<str>>,
    pub(super) object: Option<Box<str>>,
    /// What was wrong with its credential.
    pub(super) fault: Option<Box<str>>,
    /// The chain that its record lies in.
    pub(super) chain: Arc<str>,
    /// What it answered about a credential of somebody else.
    pub(super) answer: Option<Answer>,
}

impl From<Decision> for Facts {
    fn from(decision: Decision) -> Self {
        let request = decision.request();
        let Decision { at, by, outcome, reason, object } = decision;
        let facts = Self {
            request,
            at,
            outcome,
            reason,
            rpc: "".into(),
            permission: None,
            actor: None,
            principal: None,
            held_now: false,
            place: None,
            asked: Vec::new(),
            object,
            fault: None,
            chain: SERVER_CHAIN.into(),
            answer: None,
        };
        match by {
            By::Stranger(stranger) => Self {
                rpc: Arc::clone(&stranger.rpc),
                fault: Some(stranger.shown().into()),
                ..facts
            },
            By::Caller(origin) => {
                let place: Option<Arc<str>> = origin.place().map(Into::into);
                let chain = match (outcome, &place) {
                    (Outcome::Allowed | Outcome::Failed, Some(place)) => Arc::clone(place),
                    (Outcome::Allowed | Outcome::Failed | Outcome::Denied, _) => origin.own_chain(),
                };
                let Principal { identity, method, credential_id, .. } = &*origin.principal;
                let denied = outcome == Outcome::Denied;
                // What is done later in its name goes by what lasts.
                let judged = origin.lasting.as_ref().filter(|_| denied && origin.is_lacking());
                let principal = Arc::clone(judged.unwrap_or(&origin.principal));
                Self {
                    rpc: Arc::clone(&origin.rpc),
                    permission: if denied { origin.wanted() } else { origin.permission },
                    actor: Some(Actor {
                        identity: identity.clone(),
                        method: *method,
                        credential_id: Arc::clone(credential_id),
                    }),
                    principal: Some(principal),
                    place: place.filter(|_| !denied),
                    asked: origin.asked().to_vec(),
                    chain,
                    answer: Answer::of(&origin).filter(|_| outcome == Outcome::Allowed),
                    ..facts
                }
            }
        }
    }
}

impl Explainer {
    /// A decision that somebody may know of, out of the last records of the
    /// audit. Others are passed over, as if they were not there.
    pub(super) async fn recorded(
        &self,
        asker: &Principal,
        request: RequestId,
    ) -> Result<Option<Facts>, Refusal> {
        let Some(store) = &self.gate.0.credentials else { return Ok(None) };
        let Some(facts) = self.scan(self.look(asker, request, &**store)).await? else {
            return Ok(None);
        };
        // Nobody keeps a JWT, but what it claimed is seen.
        let jwt = facts.actor.as_ref().filter(|actor| actor.identity.source == Source::Idp);
        let Some(actor) = jwt.filter(|_| facts.principal.is_none()) else {
            return Ok(Some(facts));
        };
        let seen = match &*actor.credential_id {
            "" => None,
            credential => self.seen(credential).await?,
        };
        let seen = match seen {
            None => self.seen(&actor.identity.to_string()).await?,
            seen @ Some(_) => seen,
        };
        Ok(Some(Facts { principal: seen.map(|subject| subject.principal), ..facts }))
    }

    /// Looks through the audit in turn. Who does not come to an end in time,
    /// alone or behind others, finds nothing.
    async fn scan<T>(
        &self,
        look: impl Future<Output = Result<Option<T>, Refusal>>,
    ) -> Result<Option<T>, Refusal> {
        let in_turn = async {
            let Ok(_turn) = self.scans.acquire().await else { return Ok(None) };
            look.await
        };
        tokio::time::timeout(TIME_MAX, in_turn).await.unwrap_or(Ok(None))
    }

    async fn look(
        &self,
        asker: &Principal,
        request: RequestId,
        store: &dyn Store,
    ) -> Result<Option<Facts>, Refusal> {
        let needle = format!("\"request_id\":\"{request}\"");
        let mut before = i64::MAX;
        for _ in 0..PAGES {
            let rows = store.audit_before(before, PAGE).await.map_err(|error| {
                tracing::error!(%error, "the audit cannot be read");
                unavailable()
            })?;
            let found = rows
                .iter()
                .filter(|row| row.body.contains(&needle))
                .filter_map(|row| self.facts(request, row))
                .find(|facts| may_know(asker, facts));
            match (found, rows.last()) {
                (Some(facts), _) => return Ok(Some(facts)),
                (None, None) => break,
                (None, Some(last)) => before = last.seq,
            }
        }
        Ok(None)
    }

    /// The subject of a JWT as its claims were seen last, judged as now.
    pub(super) async fn seen(&self, text: &str) -> Result<Option<Subject>, Refusal> {
        let Some(store) = &self.gate.0.credentials else { return Ok(None) };
        self.scan(self.look_for_subject(text, &**store)).await
    }

    async fn look_for_subject(
        &self,
        text: &str,
        store: &dyn Store,
    ) -> Result<Option<Subject>, Refusal> {
        let needle = format!("\"rpc\":\"{CREDENTIAL}\"");
        let mut before = i64::MAX;
        for _ in 0..PAGES {
            let rows = store.audit_before(before, PAGE).await.map_err(|error| {
                tracing::error!(%error, "the audit cannot be read");
                unavailable()
            })?;
            let mut rows_with = rows.iter().filter(|row| row.body.contains(&needle));
            if let Some(subject) = rows_with.find_map(|row| self.shown(text, row)) {
                return Ok(Some(subject));
            }
            match rows.last() {
                Some(last) => before = last.seq,
                None => break,
            }
        }
        Ok(None)
    }

    fn shown(&self, text: &str, row: &AuditRow) -> Option<Subject> {
        let record: Recorded = serde_json::from_str(&row.body).ok()?;
        let actor = record.actor.as_ref().and_then(Actor::read)?;
        let named = actor.identity.to_string() == text || *actor.credential_id == *text;
        let claims = record.detail.filter(|_| named && record.rpc == CREDENTIAL)?.claims?;
        let at = read_time(&record.at)?;
        let authenticator = &self.gate.0.authenticator;
        let principal = authenticator.judged(&claims, actor.credential_id, at).ok()?;
        Some(Subject { principal: Arc::new(principal), last_seen_at: Some(at) })
    }

    fn facts(&self, request: RequestId, row: &AuditRow) -> Option<Facts> {
        let chain = row.chain.clone()?;
        let record: Recorded = serde_json::from_str(&row.body).ok()?;
        if record.rpc == CREDENTIAL || record.request_id != request.to_string() {
            return None;
        }
        let actor = record.actor.as_ref().and_then(Actor::read);
        let at = read_time(&record.at)?;
        let permission = record.permission.as_deref().and_then(Permission::parse);
        let outcome = record.outcome.into();
        let judged = record.detail.filter(|_| outcome == Outcome::Allowed);
        let judged = judged.filter(|detail| detail.left_out == 0).map(|detail| detail.judged);
        let answer = judged.and_then(|judged| Answer::read(&judged, |actor| self.now(actor)));
        Some(Facts {
            request,
            at,
            outcome,
            reason: record.reason.map(Into::into),
            rpc: record.rpc.into(),
            permission,
            principal: actor.as_ref().and_then(|actor| self.now(actor)),
            held_now: true,
            actor,
            place: record.namespace.map(Into::into),
            asked: record.asked.into_iter().map(Into::into).collect(),
            object: record.object.map(Into::into),
            fault: None,
            chain,
            answer,
        })
    }

    /// What a credential holds now.
    fn now(&self, actor: &Actor) -> Option<Arc<Principal>> {
        let now = self.gate.0.clock.now();
        let authenticator = &self.gate.0.authenticator;
        if actor.identity.source == Source::Line {
            return authenticator.line_principal(&actor.identity.subject);
        }
        // Nobody keeps a JWT.
        if actor.identity.source == Source::Idp {
            return None;
        }
        let grant = GrantRef {
            identity: actor.identity.clone(),
            method: actor.method,
            credential_id: Arc::clone(&actor.credential_id),
            grants: Vec::new(),
            set_at: now,
            issued_at: None,
            until: None,
        };
        authenticator.standing(&grant, now)
    }
}

/// A time as records have it.
pub(in crate::access) fn read_time(text: &str) -> Option<Timestamp> {
    let at = text.parse::<jiff::Timestamp>().ok()?;
    Some(Timestamp::from_micros(at.as_microsecond()))
}

/// A record of the audit as it is read again.
#[derive(Debug, Deserialize)]
pub(in crate::access) struct Recorded {
    pub(in crate::access) at: String,
    pub(in crate::access) rpc: String,
    pub(in crate::access) outcome: RecordedOutcome,
    pub(in crate::access) reason: Option<String>,
    #[serde(default)]
    request_id: String,
    pub(in crate::access) actor: Option<RecordedActor>,
    pub(in crate::access) permission: Option<String>,
    #[serde(default)]
    pub(in crate::access) elevated: bool,
    pub(in crate::access) namespace: Option<String>,
    /// The places that it asked for, where it was refused for them.
    #[serde(default)]
    pub(in crate::access) asked: Vec<String>,
    pub(in crate::access) object: Option<String>,
    pub(in crate::access) detail: Option<RecordedDetail>,
}

/// What else a record says, as far as it counts here.
#[derive(Debug, Deserialize)]
pub(in crate::access) struct RecordedDetail {
    /// What a JWT claimed.
    pub(in crate::access) claims: Option<Map<String, Value>>,
    /// Credentials of somebody else that it answered about.
    #[serde(default)]
    pub(in crate::access) judged: Vec<RecordedJudged>,
    /// How many questions about them have no room here.
    #[serde(default)]
    left_out: u64,
    /// What became of something, where that is one word.
    pub(in crate::access) change: Option<Value>,
    /// What became of rights for a while.
    pub(in crate::access) elevation: Option<Value>,
    /// What a credential that was given out holds.
    scopes: Option<Value>,
    /// And where.
    namespaces: Option<Value>,
}

impl RecordedDetail {
    /// What a credential that was given out holds, and where; none where that
    /// is not said.
    pub(in crate::access) fn held(&self) -> Option<(Vec<&str>, Vec<&str>)> {
        Some((texts(self.scopes.as_ref()?)?, texts(self.namespaces.as_ref()?)?))
    }
}

fn texts(list: &Value) -> Option<Vec<&str>> {
    list.as_array()?.iter().map(Value::as_str).collect()
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::access) enum RecordedOutcome {
    Allowed,
    Denied,
    Failed,
}

impl From<RecordedOutcome> for Outcome {
    fn from(outcome: RecordedOutcome) -> Self {
        match outcome {
            RecordedOutcome::Allowed => Self::Allowed,
            RecordedOutcome::Denied => Self::Denied,
            RecordedOutcome::Failed => Self::Failed,
        }
    }
}

#[derive(Debug, Deserialize)]
pub(in crate::access) struct RecordedActor {
    source: String,
    #[serde(default)]
    issuer: String,
    subject: String,
    method: String,
    #[serde(default)]
    credential: String,
}

impl Actor {
    pub(in crate::access) fn read(recorded: &RecordedActor) -> Option<Self> {
        Some(Self {
            identity: Identity {
                source: Source::parse(&recorded.source)?,
                issuer: recorded.issuer.as_str().into(),
                subject: recorded.subject.as_str().into(),
            },
            method: Method::parse(&recorded.method)?,
            credential_id: recorded.credential.as_str().into(),
        })
    }
}
