//! The way from a call that the gate let through to a proof. Which proof a
//! handler gets follows from the type of its request: `build.rs` writes one
//! implementation for each RPC from its rule, so a handler cannot ask for
//! another method's right, and one without a rule does not compile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    decisions::{By, Decision, Decisions},
    limits::RateState,
    refusal::{Kind, Reason, Refusal, Unauthenticated, reason_name},
};
use crate::{
    audit::{Journal, Lost, Repetition},
    authn::Session,
    authz::{self, Claim, Permit, Root},
    domain::{
        Area, Clock, Namespace, Principal, RequestId, Scope, Timestamp,
        audit::{Origin, Outcome, Record},
        permission::Right,
        schedule::Identifier,
    },
    storage::AuditDraft,
};

/// The request of an RPC whose rule names a permission.
pub trait Guarded {
    /// The permission, as a type.
    type Right: Right;
}

/// A permission rule with `namespace_field`.
pub trait Namespaced: Guarded {
    /// What the field says.
    fn namespace_text(&self) -> &str;
}

/// A permission rule whose `namespace_field` is repeated: each one counts, and
/// none means everywhere.
pub trait NamespacedMany: Guarded {
    /// What the field says.
    fn namespace_texts(&self) -> &[String];
}

/// A permission rule with `namespace_field` and `identifier`: the field names
/// a job, which is its own namespace.
pub trait Identified: Guarded {
    /// What the field says.
    fn identifier_text(&self) -> &str;
}

/// The same for a rule of the scheduler. Its name counts without a prefix that
/// the settings say, and its pattern counts too: the use case compares both.
pub trait OfRule: Guarded {
    /// What the field says.
    fn identifier_text(&self) -> &str;
}

/// What a request is about, for its record in the audit.
pub trait Recorded {
    /// An id or a name; empty where there is no single one.
    fn object_text(&self) -> &str;
}

/// The request of an RPC for root alone.
pub trait RootOnly {}

/// A permission rule with `object` or `filtered`: look-ups go by the scope.
pub trait Scoped: Guarded {}

/// A permission rule with `global`.
pub trait Global: Guarded {}

/// The request of an RPC that is open to every authenticated caller.
pub trait Authenticated {}

include!(concat!(env!("OUT_DIR"), "/rules.rs"));

/// How much of what a request names is recorded, in bytes.
const OBJECT_BYTES_MAX: usize = 512;

/// Who calls: made by the gate alone, and carried in the request's extensions.
#[derive(Clone, Debug)]
pub struct Caller {
    session: Arc<Session>,
    /// The call, as proofs and the audit know it.
    origin: Arc<Origin>,
    clock: Arc<dyn Clock>,
    rate: Option<RateState>,
    proven: Proven,
    journal: Option<Journal>,
    decisions: Option<Arc<Decisions>>,
}

/// What became of a call.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    /// How it ended.
    pub outcome: Outcome,
    /// The stable reason, where it was refused or failed.
    pub reason: Option<&'a str>,
    /// What it was about; empty where there is no single thing.
    pub object: &'a str,
}

/// Whether a proof was given.
#[derive(Debug, Default)]
struct Proven(AtomicBool);

impl Clone for Proven {
    fn clone(&self) -> Self {
        Self(AtomicBool::new(self.0.load(Ordering::Relaxed)))
    }
}

impl Caller {
    pub(in crate::access) fn new(
        session: Arc<Session>,
        origin: Arc<Origin>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            session,
            origin,
            clock,
            rate: None,
            proven: Proven::default(),
            journal: None,
            decisions: None,
        }
    }

    pub(in crate::access) fn with_decisions(self, decisions: &Arc<Decisions>) -> Self {
        Self { decisions: Some(Arc::clone(decisions)), ..self }
    }

    pub(in crate::access) fn with_journal(self, journal: Option<Journal>) -> Self {
        Self { journal, ..self }
    }

    pub(in crate::access) fn with_rate(self, rate: Option<RateState>) -> Self {
        Self { rate, ..self }
    }

    /// What the caller may still call; none where that has no limit.
    #[must_use]
    pub fn rate(&self) -> Option<RateState> {
        self.rate
    }

    /// As the gate makes one; for tests of what is behind it.
    #[cfg(test)]
    pub(crate) fn in_test(
        session: Arc<Session>,
        request: RequestId,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let origin = Origin::new(Arc::clone(&session.principal), "test".into(), request);
        Self::new(session, Arc::new(origin), clock)
    }

    /// The request's id, which is also the decision's.
    #[must_use]
    pub fn request(&self) -> RequestId {
        self.origin.request
    }

    /// Who calls.
    pub(in crate::access) fn principal(&self) -> &Principal {
        &self.session.principal
    }

    /// Who calls, without the rights that it has for a while.
    #[must_use]
    pub fn lasting(&self) -> &Arc<Principal> {
        self.session.lasting()
    }

    /// The call, as the audit knows it.
    #[must_use]
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// The caller itself, for an RPC that every authenticated caller may call.
    pub fn authenticated<Q: Authenticated>(&self, _: &Q) -> Result<&Principal, Refusal> {
        self.still_valid()?;
        Ok(&self.session.principal)
    }

    /// The permit for the namespace that the request names.
    pub fn permit<Q: Namespaced>(&self, request: &Q) -> Result<Permit<Q::Right>, Refusal> {
        let text = request.namespace_text();
        let namespace = Namespace::parse(text)
            .map_err(|error| Refusal::invalid(Reason::FieldInvalid, "namespace", error))?;
        let permit =
            self.any_claim::<Q::Right>()?.permit(&namespace).ok_or_else(|| self.outside([text]))?;
        self.exercised();
        Ok(permit)
    }

    /// The permit over the identifier that the request names.
    pub fn identified<Q: Identified>(
        &self,
        request: &Q,
    ) -> Result<Permit<Q::Right, Identifier>, Refusal> {
        let identifier = identifier(request.identifier_text())?;
        let permit = self
            .any_claim::<Q::Right>()?
            .over(&identifier)
            .ok_or_else(|| self.outside([identifier.as_str()]))?;
        self.exercised();
        Ok(permit)
    }

    /// The rule's name, and the claim under whose scope the use case looks at
    /// it and at its pattern.
    pub fn of_rule<Q: OfRule>(
        &self,
        request: &Q,
    ) -> Result<(Identifier, Claim<Q::Right>), Refusal> {
        let identifier = identifier(request.identifier_text())?;
        let claim = self.any_claim()?;
        self.exercised();
        self.origin.asked_for([identifier.as_str()]);
        Ok((identifier, claim))
    }

    /// The claim for the area that a worker's request names (SE-18).
    pub fn area<Q: Namespaced>(&self, request: &Q) -> Result<(Area, Claim<Q::Right>), Refusal> {
        let text = request.namespace_text();
        let area = Area::parse(text)
            .map_err(|error| Refusal::invalid(Reason::FieldInvalid, "namespace", error))?;
        let claim =
            self.any_claim::<Q::Right>()?.within(&area).ok_or_else(|| self.outside([text]))?;
        self.exercised();
        Ok((area, claim))
    }

    /// The claim with the scope that the request names, which lies in the
    /// claim's as a whole; no namespace means everything.
    pub fn scoped<Q: NamespacedMany>(
        &self,
        request: &Q,
    ) -> Result<(Scope, Claim<Q::Right>), Refusal> {
        let texts = request.namespace_texts();
        if texts.len() > Scope::PLACES_MAX {
            let what = format!("has at most {} entries", Scope::PLACES_MAX);
            return Err(Refusal::invalid(Reason::FieldInvalid, "namespaces", what));
        }
        let scope = if texts.is_empty() {
            Scope::Everything
        } else {
            Scope::parse(texts)
                .map_err(|error| Refusal::invalid(Reason::FieldInvalid, "namespaces", error))?
        };
        let claim = self.any_claim::<Q::Right>()?;
        if claim.scope().covers(&scope) {
            self.exercised();
            return Ok((scope, claim));
        }
        let is_outside =
            |text: &&str| Scope::parse(&[text]).is_ok_and(|one| !claim.scope().covers(&one));
        let outside: Vec<&str> = texts.iter().map(String::as_str).filter(is_outside).collect();
        Err(self.outside(if outside.is_empty() { vec!["*"] } else { outside }))
    }

    /// The refusal of places outside of the scope; the first one is named.
    fn outside<'a>(&self, places: impl IntoIterator<Item = &'a str>) -> Refusal {
        let mut places = places.into_iter().peekable();
        let first = places.peek().copied().unwrap_or_default();
        self.origin.asked_for(places);
        Refusal::namespace_not_found(first)
    }

    /// The proof that root calls.
    pub fn root<Q: RootOnly>(&self, _: &Q) -> Result<Root, Refusal> {
        self.still_valid()?;
        authz::root(&self.origin).ok_or_else(Refusal::root_required)
    }

    /// The claim under whose scope objects are looked up or listed.
    pub fn claim<Q: Scoped>(&self, _: &Q) -> Result<Claim<Q::Right>, Refusal> {
        let claim = self.any_claim()?;
        self.exercised();
        Ok(claim)
    }

    /// The claim for what belongs to the whole server.
    pub fn global<Q: Global>(&self, _: &Q) -> Result<Claim<Q::Right>, Refusal> {
        let claim = self.any_claim::<Q::Right>()?;
        if *claim.scope() == Scope::Everything {
            self.exercised();
            Ok(claim)
        } else {
            Err(Refusal::permission_missing(Q::Right::PERMISSION))
        }
    }

    /// Resolves once the credential has expired or was revoked (SE-17).
    pub async fn ended(&self) -> Refusal {
        loop {
            if let Err(refusal) = self.still_valid() {
                return refusal;
            }
            // A stream that stays open is in use, once it was allowed.
            if self.proven.0.load(Ordering::Relaxed) {
                self.exercised();
            }
            // The wall clock may jump: look again at least every second, and
            // when the credential expires.
            let _ = tokio::time::timeout(self.look_again(), self.session.revoked.cancelled()).await;
        }
    }

    /// Records what became of the call. A change that was made has its record
    /// in its own transaction; everything else gets one here.
    pub async fn record(&self, ending: Ending<'_>) -> Result<(), Refusal> {
        self.origin.was_settled();
        self.decided(ending);
        let Some(journal) = &self.journal else { return Ok(()) };
        let Ending { outcome, reason, object } = ending;
        let done = outcome == Outcome::Allowed;
        // What a service was told about a credential is no mere read.
        let unwanted = !journal.takes_reads() && self.origin.judged().is_none();
        if done && (self.origin.is_recorded() || unwanted) {
            return Ok(());
        }
        let now = self.clock.now();
        let object = bounded(object);
        let known = match outcome {
            Outcome::Denied => Record::of_refused(&self.origin, now),
            Outcome::Allowed | Outcome::Failed => Record::of(&self.origin, now),
        };
        let record = Record { outcome, reason, object, ..known };
        let own = self.origin.own_chain();
        let draft = match (outcome, self.origin.place()) {
            (Outcome::Allowed | Outcome::Failed, Some(place)) => {
                // Somebody's place need not be there.
                AuditDraft { otherwise: Some(own), ..AuditDraft::new(place.into(), &record) }
            }
            (Outcome::Allowed | Outcome::Failed | Outcome::Denied, _) => {
                AuditDraft::new(own, &record)
            }
        };
        let kept = journal.note(draft).await;
        kept.map_err(|Lost| {
            let message =
                "The audit cannot be written now, so the call cannot be answered; try again";
            Refusal::new(Kind::Unavailable, Reason::StorageUnavailable, message)
        })
    }

    /// Notes what became of the call, so that it can be explained at once.
    fn decided(&self, Ending { outcome, reason, object }: Ending<'_>) {
        let Some(decisions) = &self.decisions else { return };
        decisions.note(Decision {
            at: self.clock.now(),
            by: By::Caller(Arc::clone(&self.origin)),
            outcome,
            reason: reason.map(Into::into),
            object: bounded(object).map(Into::into),
        });
    }

    /// The same caller by another call of its connection.
    pub(in crate::access) fn asking(&self, origin: Arc<Origin>) -> Self {
        Self { origin, ..self.clone() }
    }

    /// Records that the call was refused before it came to its use case.
    pub(in crate::access) async fn refused(&self, refusal: &Refusal) {
        let outcome = match refusal.kind {
            Kind::Unauthenticated | Kind::Forbidden | Kind::NotFound => Outcome::Denied,
            Kind::TooMany => return self.turned_away(reason_name(refusal.reason)),
            Kind::UnknownMethod
            | Kind::Invalid
            | Kind::Conflict
            | Kind::Precondition
            | Kind::Unavailable
            | Kind::Deadline
            | Kind::Internal => Outcome::Failed,
        };
        let reason = Some(reason_name(refusal.reason));
        // What was refused stays so, recorded or not.
        let _ = self.record(Ending { outcome, reason, object: "" }).await;
    }

    /// Records that a stream was cut off, which had been let in.
    pub async fn cut_off(&self, refusal: &Refusal) {
        self.refused(refusal).await;
    }

    /// Records a refusal of a kind that one caller can have many of: by their
    /// number.
    pub fn turned_away(&self, reason: &str) {
        self.origin.was_settled();
        self.decided(Ending { outcome: Outcome::Denied, reason: Some(reason), object: "" });
        let Some(journal) = &self.journal else { return };
        let (reason, now) = (reason.into(), self.clock.now());
        let (origin, rpc) = (Some(Arc::clone(&self.origin)), Arc::clone(&self.origin.rpc));
        let one = Repetition { reason, fault: "", rpc, peer: self.origin.peer, origin };
        journal.repeated(one, now);
    }

    /// Records a call that no handler of ours has answered. One that failed:
    /// its message could not be read, it took too long, or there was no room
    /// for it.
    pub async fn unanswered(&self, reason: Option<&str>) {
        let outcome = if reason.is_some() { Outcome::Failed } else { Outcome::Allowed };
        let ending = Ending { outcome, reason, object: "" };
        // It has failed already.
        let _ = self.record(ending).await;
    }

    /// Notes what was allowed; a refused call exercises nothing.
    fn exercised(&self) {
        self.proven.0.store(true, Ordering::Relaxed);
        if let Some(right) = self.origin.permission {
            self.session.exercised(right, &*self.clock);
        }
    }

    fn look_again(&self) -> Duration {
        const AT_MOST: Duration = Duration::from_millis(500);
        let left = self.session.principal.not_after.map(|end| self.clock.now().until(end));
        left.map_or(AT_MOST, |left| left.min(AT_MOST))
    }

    /// The claim of an instruction of the line protocol, which has no request
    /// type of its own.
    pub(in crate::access) fn claimed<R: Right>(
        &self,
        origin: Arc<Origin>,
    ) -> Result<Claim<R>, Refusal> {
        let caller = Self { origin, ..self.clone() };
        let claim = caller.any_claim()?;
        caller.exercised();
        Ok(claim)
    }

    fn any_claim<R: Right>(&self) -> Result<Claim<R>, Refusal> {
        self.still_valid()?;
        authz::claim(&self.origin).ok_or_else(|| Refusal::permission_missing(R::PERMISSION))
    }

    /// Once more behind the body, which may have taken its time (SE-16).
    pub fn still_valid(&self) -> Result<(), Refusal> {
        if self.session.is_revoked() {
            return Err(Refusal::unauthenticated(Unauthenticated::Revoked));
        }
        let expired = |end: Timestamp| end <= self.clock.now();
        if self.session.principal.not_after.is_some_and(expired) {
            return Err(Refusal::unauthenticated(Unauthenticated::Expired));
        }
        Ok(())
    }
}

/// What a request names is its caller's text: some of it will do.
fn bounded(object: &str) -> Option<&str> {
    let end =
        (0..=object.len().min(OBJECT_BYTES_MAX)).rev().find(|at| object.is_char_boundary(*at));
    end.and_then(|end| object.get(..end)).filter(|object| !object.is_empty())
}

fn identifier(text: &str) -> Result<Identifier, Refusal> {
    Identifier::parse(text).map_err(|error| Refusal::invalid(Reason::FieldInvalid, "id", error))
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[derive(Debug)]
    struct At(Timestamp);

    impl Clock for At {
        fn now(&self) -> Timestamp {
            self.0
        }
    }

    #[test]
    fn se_17_the_end_of_a_credential_is_looked_for_when_it_comes() {
        let end = Timestamp::from_seconds(1_000);
        let pause = |not_after, now| {
            let principal = Arc::new(Principal { not_after, ..Principal::auth_off() });
            let session = Session::new(principal, CancellationToken::new());
            Caller::in_test(Arc::new(session), RequestId::from_random([1; 16]), Arc::new(At(now)))
                .look_again()
        };
        assert_eq!(pause(Some(end), end.plus_ms(-30)), Duration::from_millis(30));
        assert_eq!(pause(Some(end), end.plus_ms(-10_000)), Duration::from_millis(500));
        assert_eq!(pause(None, end), Duration::from_millis(500));
    }
}
