//! The gate: one for gRPC and REST, before a body is read. Who calls, and
//! may they at all; whether they may *here* is for the proofs that a
//! [`Caller`] gives.

use std::{fmt, net::IpAddr, sync::Arc};

use http::HeaderMap;
use serde_json::{json, value::to_raw_value};

use super::{
    call::Caller,
    counters::{Counters, Limited, Outcome},
    decisions::{By, Decision, Decisions, Stranger},
    limits::{Limits, RateState},
    refusal::{Kind, Reason, Refusal, Unauthenticated, reason_name},
    table::{MethodRule, Mode, Rule},
    throttle::Throttle,
};
use crate::{
    audit::{Journal, Repetition},
    authn::{Accepted, Authenticator, Evidence, Fault, Issue, Rejected, Session, Tie},
    authz::Standing,
    config::Rates,
    domain::{
        Clock, Permission, Principal, RequestId, Scope, Timestamp,
        audit::{self, Detail, Origin, Record, SERVER_CHAIN},
        principal::{GrantRef, Source},
    },
    storage::{AuditDraft, Store, Tenure},
};

pub mod line;

/// What the record of a credential that is in use is called.
const CREDENTIAL: &str = "credential";

/// Lets calls through, or refuses them.
#[derive(Clone)]
pub struct Gate(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) authenticator: Authenticator,
    /// Where uses are counted.
    pub(super) credentials: Option<Arc<dyn Store>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) counters: Counters,
    failures: Throttle,
    denials: Throttle,
    pub(super) limits: Limits,
    excesses: Throttle,
    /// Where decisions are recorded; none in a process without a store.
    pub(super) journal: Option<Journal>,
    /// What was decided lately.
    pub(super) decisions: Arc<Decisions>,
}

/// What a log line says about a call.
#[derive(Clone, Copy)]
struct Call<'a> {
    rpc: &'a str,
    request: RequestId,
    peer: Option<IpAddr>,
    /// The line connection that an instruction came by.
    connection: Option<RequestId>,
    now: Timestamp,
}

/// A caller, and the credential whose uses are counted.
type Admitted = (Caller, Option<Arc<Issue>>);

/// Who is turned away, and why; no caller is somebody unknown.
#[derive(Debug)]
struct Turned {
    refusal: Refusal,
    caller: Option<Caller>,
}

/// Why a known caller is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    Permission(Permission),
    Root,
    Node,
    /// A step token at an RPC that is not for steps (SE-31).
    Step,
}

impl Gate {
    /// With these credentials, whose uses are counted in the store where one
    /// has a limit, and these limits on calls. The recorder of metrics must be
    /// installed before.
    #[must_use]
    pub fn new(
        authenticator: Authenticator,
        credentials: Option<Arc<dyn Store>>,
        rates: &Rates,
        clock: Arc<dyn Clock>,
        journal: Option<Journal>,
    ) -> Self {
        let keys = authenticator.configured_keys();
        Self(Arc::new(Inner {
            authenticator,
            credentials,
            clock,
            counters: Counters::new(&Fault::LABELS),
            failures: Throttle::default(),
            denials: Throttle::default(),
            limits: Limits::new(rates).with_keys(&keys),
            excesses: Throttle::default(),
            journal,
            decisions: Arc::default(),
        }))
    }

    /// Decides about a call by what comes with it, before its body is read. A
    /// public RPC has no caller, whatever credential comes with it (TK-53).
    pub async fn enter(
        &self,
        method: &MethodRule,
        evidence: Evidence<'_>,
        request: RequestId,
    ) -> Result<Option<Caller>, Refusal> {
        if let Rule::Public(_) = method.rule {
            return Ok(None);
        }
        let (call, headers) = (self.call(method, &evidence, request), evidence.headers);
        let accepted = self.known(call, evidence)?;
        let accepted = self.0.tied(call, accepted).await?;
        let (caller, counted) = match self.decided(method, call, headers, accepted) {
            Ok(admitted) => admitted,
            Err(turned) => {
                let Turned { refusal, caller } = *turned;
                if let Some(caller) = caller {
                    caller.refused(&refusal).await;
                }
                return Err(refusal);
            }
        };
        if let Some(issue) = counted
            && let Err(refusal) = self.0.count(&issue, request).await
        {
            caller.refused(&refusal).await;
            return Err(refusal);
        }
        Ok(Some(caller))
    }

    /// [`Self::enter`] without what waits for the store.
    #[cfg(test)]
    fn admit(
        &self,
        method: &MethodRule,
        evidence: Evidence<'_>,
        request: RequestId,
    ) -> Result<Option<Admitted>, Box<Turned>> {
        if let Rule::Public(_) = method.rule {
            return Ok(None);
        }
        let (call, headers) = (self.call(method, &evidence, request), evidence.headers);
        let stranger = |refusal| Box::new(Turned { refusal, caller: None });
        let accepted = self.known(call, evidence).map_err(stranger)?;
        self.decided(method, call, headers, accepted).map(Some)
    }

    fn call<'a>(
        &self,
        method: &'a MethodRule,
        evidence: &Evidence<'_>,
        request: RequestId,
    ) -> Call<'a> {
        let (peer, now) = (evidence.peer, self.0.clock.now());
        Call { rpc: &method.full_name, request, peer, connection: None, now }
    }

    fn known(&self, call: Call<'_>, evidence: Evidence<'_>) -> Result<Accepted, Refusal> {
        let known = self.0.authenticator.authenticate(evidence, call.now);
        known.map_err(|rejected| self.0.reject(call, &rejected))
    }

    /// All behind the credential but what waits for the store.
    fn decided(
        &self,
        method: &MethodRule,
        call: Call<'_>,
        headers: &HeaderMap,
        accepted: Accepted,
    ) -> Result<Admitted, Box<Turned>> {
        let stranger = |rejected: Rejected| {
            Box::new(Turned { refusal: self.0.reject(call, &rejected), caller: None })
        };
        if self.0.is_shut(method, &accepted.session.principal) {
            return Err(stranger(self.0.authenticator.line_missing(headers)));
        }
        self.0.accept(call, &accepted);

        let permission = match method.rule {
            Rule::Permission { permission, .. } => Some(permission),
            Rule::Public(_) | Rule::Authenticated(_) | Rule::Root | Rule::Node => None,
        };
        let session = match method.rule {
            Rule::Permission { .. } | Rule::Authenticated(_) => {
                self.0.authenticator.raised(accepted.session, permission, call.now)
            }
            Rule::Public(_) | Rule::Root | Rule::Node => accepted.session,
        };
        let principal = Arc::clone(&session.principal);
        let origin = Origin {
            permission,
            peer: call.peer,
            fingerprint: self.0.fingerprint(&session),
            lasting: Some(Arc::clone(session.lasting())),
            ..Origin::new(Arc::clone(&principal), Arc::clone(&method.full_name), call.request)
        };
        let caller = Caller::new(session, Arc::new(origin), Arc::clone(&self.0.clock))
            .with_journal(self.0.journal.clone())
            .with_decisions(&self.0.decisions);
        let decided = decide(method, &principal)
            .map_err(|denial| self.0.deny(call, &principal, denial))
            .map_err(|refusal| self.0.with_rate(refusal, method, call, &principal))
            .and_then(|()| self.0.take(method, call, &principal));
        match decided {
            Ok(rate) => Ok((caller.with_rate(rate), accepted.counted)),
            Err(refusal) => Err(Box::new(Turned { refusal, caller: Some(caller) })),
        }
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }

    /// Takes back every credential that was accepted so far; their streams
    /// end within a second.
    pub fn revoke_all(&self) {
        self.0.authenticator.revoke_all();
    }
}

impl Standing for Gate {
    fn standing(&self, grant: &GrantRef, now: Timestamp) -> Option<Arc<Principal>> {
        self.0.authenticator.standing(grant, now)
    }
}

/// Whether a principal may call an RPC at all: a pure function.
pub(super) fn decide(method: &MethodRule, principal: &Principal) -> Result<(), Denial> {
    if principal.identity.source == Source::Lease && !method.step {
        return Err(Denial::Step);
    }
    match &method.rule {
        Rule::Public(_) | Rule::Authenticated(_) => Ok(()),
        Rule::Root if principal.is_root() => Ok(()),
        Rule::Root => Err(Denial::Root),
        Rule::Node if principal.identity.source == Source::Agent => Ok(()),
        Rule::Node => Err(Denial::Node),
        Rule::Permission { permission, mode } => {
            let may = match mode {
                Mode::Namespace(_) | Mode::Object(_) | Mode::Filtered => {
                    principal.holds(*permission)
                }
                Mode::Global(_) => principal.scope_of(*permission) == Scope::Everything,
            };
            if may { Ok(()) } else { Err(Denial::Permission(*permission)) }
        }
    }
}

impl Inner {
    /// Whether an auth file guards what the principal of auth off asks for.
    fn is_shut(&self, method: &MethodRule, principal: &Principal) -> bool {
        principal.identity.source == Source::Disabled
            && self.authenticator.has_line_tokens()
            && match method.rule {
                Rule::Permission { permission, .. } => {
                    matches!(permission.resource(), "schedules" | "rules")
                }
                Rule::Public(_) | Rule::Authenticated(_) | Rule::Root | Rule::Node => false,
            }
    }

    fn accept(&self, call: Call<'_>, accepted: &Accepted) {
        let Principal { identity, method, credential_id, .. } = &*accepted.session.principal;
        self.counters.authenticated(*method, Outcome::Success);
        let (subject, method) = (&*identity.subject, method.as_str());
        if accepted.fresh {
            self.note_credential(call, &accepted.session);
            tracing::info!(
                subject,
                method,
                source = identity.source.as_str(),
                issuer = &*identity.issuer,
                credential = &**credential_id,
                rpc = call.rpc,
                request_id = %call.request,
                "credential accepted"
            );
        } else {
            tracing::debug!(subject, method, rpc = call.rpc, request_id = %call.request, "authenticated");
        }
        if !accepted.unknown_permissions.is_empty()
            && let Some(suppressed) = self.failures.admit(call.now)
        {
            tracing::warn!(
                subject,
                permissions = shown(&accepted.unknown_permissions),
                suppressed,
                request_id = %call.request,
                "the token names unknown permissions; they count for nothing"
            );
        }
    }

    /// What the audit calls a credential by.
    fn fingerprint(&self, session: &Session) -> Option<Arc<str>> {
        let journal = self.journal.as_ref()?;
        session.fingerprint(|digest| journal.fingerprint(digest))
    }

    /// Records that a credential is in use, and what a JWT claims by which it
    /// is judged: once a minute, as it is logged.
    fn note_credential(&self, call: Call<'_>, session: &Session) {
        let Some(journal) = &self.journal else { return };
        let detail = session.evidence.as_ref().map(|claims| json!({ "claims": claims }));
        let detail = detail.and_then(|detail| to_raw_value(&detail).ok());
        let origin = Origin {
            peer: call.peer,
            fingerprint: self.fingerprint(session),
            ..Origin::new(Arc::clone(&session.principal), CREDENTIAL.into(), call.request)
        };
        let detail = detail.as_deref().map(Detail::Object);
        let record = Record { detail, ..Record::of(&origin, call.now) };
        journal.push(AuditDraft::new(SERVER_CHAIN.into(), &record));
    }

    /// Looks up the lease of a step's token, at each call anew (SE-38).
    async fn tied(&self, call: Call<'_>, mut accepted: Accepted) -> Result<Accepted, Refusal> {
        let Some(tie) = accepted.tie.take() else { return Ok(accepted) };
        let tenure = self.tenure(&tie, call.request).await?;
        // It may have ended while it was looked up.
        let now = self.clock.now();
        self.authenticator
            .tied(accepted, &tie, tenure.as_ref(), now)
            .map_err(|rejected| self.reject(call, &rejected))
    }

    /// The lease that a step's token hangs on; none when it is over.
    pub(super) async fn tenure(
        &self,
        tie: &Tie,
        request: RequestId,
    ) -> Result<Option<Tenure>, Refusal> {
        let found = match &self.credentials {
            Some(store) => store.tenures(&tie.scope(), &[tie.step()]).await.ok(),
            None => None,
        };
        let Some(found) = found else {
            tracing::error!(request_id = %request, "the lease of a step's token cannot be looked up");
            return Err(Refusal::new(
                Kind::Unavailable,
                Reason::StorageUnavailable,
                "The lease of the step cannot be looked up now; try again",
            ));
        };
        Ok(found.into_iter().next().flatten())
    }

    /// One use of a credential that has a limit; it counts once it is on disk.
    async fn count(&self, issue: &Issue, request: RequestId) -> Result<(), Refusal> {
        let counted = match &self.credentials {
            Some(store) => self.authenticator.count(issue, &**store, self.clock.now()).await.ok(),
            None => None,
        };
        match counted {
            Some(true) => Ok(()),
            Some(false) => {
                self.counters.failed(Fault::UsedUp.label());
                Err(Refusal::unauthenticated(Unauthenticated::UsedUp))
            }
            None => {
                tracing::error!(request_id = %request, "a use of a credential cannot be counted");
                Err(Refusal::new(
                    Kind::Unavailable,
                    Reason::StorageUnavailable,
                    "The use of the credential cannot be counted now; try again",
                ))
            }
        }
    }

    fn reject(&self, call: Call<'_>, rejected: &Rejected) -> Refusal {
        let Rejected { why, method, fault } = rejected;
        let reason = fault.label();
        self.decisions.note(Decision {
            at: call.now,
            by: By::Stranger(Arc::new(Stranger {
                request: call.request,
                rpc: call.rpc.into(),
                method: *method,
                fault: reason,
                peer: call.peer,
            })),
            outcome: audit::Outcome::Denied,
            reason: Some(reason_name(why.reason()).into()),
            object: None,
        });
        if let Some(journal) = &self.journal {
            let one = Repetition {
                reason: reason_name(why.reason()).into(),
                fault: reason,
                rpc: call.rpc.into(),
                peer: call.peer,
                origin: None,
            };
            journal.repeated(one, call.now);
        }
        // No detail: it is logged here, where a flood is cut.
        let refusal = Refusal::unauthenticated(*why);
        if *why == Unauthenticated::Missing {
            // A missing credential is no failed authentication.
            self.counters.authenticated(*method, Outcome::Missing);
            tracing::debug!(rpc = call.rpc, request_id = %call.request, "no credential");
            return Refusal { rate: self.limits.look_failed(call.peer, call.now), ..refusal };
        }
        self.counters.authenticated(*method, Outcome::Failure);
        self.counters.failed(reason);
        if let Some(suppressed) = self.failures.admit(call.now) {
            tracing::warn!(
                reason,
                detail = %fault,
                method = method.as_str(),
                rpc = call.rpc,
                peer = call.peer.map(tracing::field::display),
                suppressed,
                request_id = %call.request,
                "authentication failed"
            );
        }
        // After it failed, never before: nobody's failures block a good one.
        match self.limits.fail(call.peer, call.now) {
            Ok(rate) => Refusal { rate, ..refusal },
            Err(too_many) => {
                self.counters.limited(Limited::FailedAuth);
                too_many
            }
        }
    }

    /// Takes the call out of what the caller may call.
    fn take(
        &self,
        method: &MethodRule,
        call: Call<'_>,
        principal: &Principal,
    ) -> Result<Option<RateState>, Refusal> {
        let taken = self.limits.take(method.rate_class, principal, call.peer, call.now);
        if taken.is_err() {
            self.counters.limited(Limited::Calls(method.rate_class));
            if let Some(suppressed) = self.excesses.admit(call.now) {
                tracing::warn!(
                    subject = &*principal.identity.subject,
                    credential = &*principal.credential_id,
                    rpc = call.rpc,
                    peer = call.peer.map(tracing::field::display),
                    suppressed,
                    request_id = %call.request,
                    "too many calls"
                );
            }
        }
        taken
    }

    /// A call that is refused costs nothing, and its answer says what is left.
    fn with_rate(
        &self,
        refusal: Refusal,
        method: &MethodRule,
        call: Call<'_>,
        principal: &Principal,
    ) -> Refusal {
        let rate = self.limits.look(method.rate_class, principal, call.peer, call.now);
        Refusal { rate, ..refusal }
    }

    fn deny(&self, call: Call<'_>, principal: &Principal, denial: Denial) -> Refusal {
        let (required, refusal) = match denial {
            Denial::Permission(permission) => {
                (permission.name(), Refusal::permission_missing(permission))
            }
            Denial::Root => ("root", Refusal::root_required()),
            Denial::Node => ("node", forbidden("Only a registered node may do this")),
            Denial::Step => ("step", forbidden("A step token does not open this")),
        };
        self.counters.denied(required);
        if let Some(suppressed) = self.denials.admit(call.now) {
            tracing::warn!(
                subject = &*principal.identity.subject,
                method = principal.method.as_str(),
                credential = &*principal.credential_id,
                required,
                rpc = call.rpc,
                peer = call.peer.map(tracing::field::display),
                suppressed,
                request_id = %call.request,
                connection = call.connection.map(tracing::field::display),
                "permission denied"
            );
        }
        refusal
    }
}

fn forbidden(message: &str) -> Refusal {
    Refusal::new(Kind::Forbidden, Reason::PermissionMissing, message)
}

/// How many unknown permissions a line names.
const SHOWN_MAX: usize = 20;

fn shown(names: &[String]) -> String {
    let mut text = names.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN_MAX {
        text.push_str(", …");
    }
    text
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gate({:?})", self.0.authenticator)
    }
}

#[cfg(test)]
mod tests;
