//! The gate of the line protocol: a session by AUTH, and for each instruction
//! the claim of its own right and no other.

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Call, Caller, Denial, Gate, Refusal};
use crate::{
    access::{call::Ending, counters::Limited, table::RateClass},
    authn::Accepted,
    authz::Claim,
    domain::{
        Principal, RequestId,
        audit::Origin,
        permission::{
            Right,
            right::{RulesRead, RulesWrite, SchedulesRead, SchedulesWrite},
        },
        principal::Identity,
    },
};

/// What a connection is called in the audit before its first instruction.
const LINE: &str = "AUTH";

mod sealed {
    pub trait Sealed {}
}

/// An instruction of the line protocol, and the right that it needs.
pub trait Instruction: sealed::Sealed {
    /// The right, as a type.
    type Right: Right;
    /// As it is written.
    const NAME: &'static str;
}

macro_rules! instructions {
    ($($(#[$doc:meta])* $type:ident = $name:literal: $right:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub enum $type {}

        impl sealed::Sealed for $type {}

        impl Instruction for $type {
            type Right = $right;
            const NAME: &'static str = $name;
        }
    )*};
}

instructions! {
    /// Plans a job.
    Set = "SET": SchedulesWrite;
    /// Plans a job that recurs.
    Schedule = "SCHEDULE": SchedulesWrite;
    /// Removes a job.
    Remove = "REMOVE": SchedulesWrite;
    /// Plans a job that is held again.
    Resume = "RESUME": SchedulesWrite;
    /// Shows a job.
    Get = "GET": SchedulesRead;
    /// Lists jobs.
    Query = "QUERY": SchedulesRead;
    /// Shows a job's runs.
    History = "HISTORY": SchedulesRead;
    /// Shows figures.
    Stat = "STAT": SchedulesRead;
    /// Sets a rule.
    RuleSet = "RULE SET": RulesWrite;
    /// Removes a rule.
    RemoveRule = "REMOVERULE": RulesWrite;
    /// Lists rules.
    ListRules = "LISTRULES": RulesRead;
}

/// A connection of the line protocol that was let in.
#[derive(Clone)]
pub struct Session {
    gate: Gate,
    caller: Caller,
    principal: Arc<Principal>,
    peer: IpAddr,
    /// The instruction that was let in or refused last.
    asked: Arc<Mutex<Option<Asked>>>,
}

/// An instruction as the audit knows it, until its end is recorded.
#[derive(Clone, Debug)]
pub struct Asked(Arc<Origin>);

impl Asked {
    /// Its id, which is also the decision's.
    #[must_use]
    pub fn request(&self) -> RequestId {
        self.0.request
    }
}

impl Gate {
    /// A session by the secret that AUTH says, which may read in several ways.
    pub fn line(
        &self,
        secrets: &[&str],
        request: RequestId,
        peer: IpAddr,
    ) -> Result<Session, Refusal> {
        let call = self.0.line_call("AUTH", request, peer);
        let accepted = self.0.authenticator.line(secrets, call.now);
        let accepted = accepted.map_err(|rejected| self.0.reject(call, &rejected))?;
        self.0.accept(call, &accepted);
        Ok(self.session(accepted, call.request, peer))
    }

    /// A session without AUTH, where nothing asks for a credential.
    #[must_use]
    pub fn line_open(&self, request: RequestId, peer: IpAddr) -> Option<Session> {
        let session = self.0.authenticator.line_open()?;
        let (fresh, unknown_permissions) = (false, Vec::new());
        let accepted = Accepted { session, fresh, unknown_permissions, counted: None, tie: None };
        self.0.accept(self.0.line_call("connect", request, peer), &accepted);
        Some(self.session(accepted, request, peer))
    }

    /// The principal of the auth file's token of this name.
    #[must_use]
    pub fn line_principal(&self, name: &str) -> Option<Arc<Principal>> {
        self.0.authenticator.line_principal(name)
    }

    /// Whether an auth file guards jobs and rules: the principal of auth off
    /// does not stand behind any then (SE-60).
    #[must_use]
    pub fn has_line_tokens(&self) -> bool {
        self.0.authenticator.has_line_tokens()
    }

    /// Whether a session begins without AUTH.
    #[must_use]
    pub fn line_is_open(&self) -> bool {
        self.0.authenticator.line_open().is_some()
    }

    fn session(&self, accepted: Accepted, request: RequestId, peer: IpAddr) -> Session {
        let principal = Arc::clone(&accepted.session.principal);
        let origin = Origin {
            peer: Some(peer),
            fingerprint: self.0.fingerprint(&accepted.session),
            ..Origin::new(Arc::clone(&principal), LINE.into(), request)
        };
        let caller = Caller::new(accepted.session, Arc::new(origin), Arc::clone(&self.0.clock))
            .with_journal(self.0.journal.clone())
            .with_decisions(&self.0.decisions);
        Session { gate: self.clone(), caller, principal, peer, asked: Arc::default() }
    }
}

impl super::Inner {
    fn line_call<'a>(&self, rpc: &'a str, request: RequestId, peer: IpAddr) -> Call<'a> {
        Call { rpc, request, peer: Some(peer), connection: None, now: self.clock.now() }
    }
}

impl Session {
    /// The claim of an instruction's right, for one instruction: it is taken
    /// out of what the caller may call.
    pub fn instructed<I: Instruction>(&self) -> Result<Claim<I::Right>, Refusal> {
        let origin = self.origin::<I>();
        let call = self.call(&origin);
        *self.asked() = Some(Asked(Arc::clone(&origin)));
        let claim = self.caller.claimed::<I::Right>(Arc::clone(&origin)).map_err(|refusal| {
            if self.principal.holds(I::Right::PERMISSION) {
                refusal
            } else {
                self.gate.0.deny(call, &self.principal, Denial::Permission(I::Right::PERMISSION))
            }
        })?;
        let class = RateClass::Standard;
        let limits = &self.gate.0.limits;
        if let Err(refusal) = limits.take(class, &self.principal, Some(self.peer), call.now) {
            self.gate.0.counters.limited(Limited::Calls(class));
            return Err(refusal);
        }
        Ok(claim)
    }

    /// Who was let in.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.principal.identity
    }

    /// Notes that an instruction aimed outside of the caller's scope, and at
    /// what.
    pub fn outside<I: Instruction>(&self, place: &str) {
        let asked = self.asked().as_ref().map(|Asked(origin)| Arc::clone(origin));
        let origin = asked.unwrap_or_else(|| self.origin::<I>());
        origin.asked_for([place]);
        let permission = Denial::Permission(origin.wanted().unwrap_or(I::Right::PERMISSION));
        // The answer is the protocol's own.
        let _ = self.gate.0.deny(self.call(&origin), &self.principal, permission);
    }

    /// The instruction that was let in or refused last, once.
    #[must_use]
    pub fn take_asked(&self) -> Option<Asked> {
        self.asked().take()
    }

    /// Records how an instruction ended. Under fail-closed it must not be
    /// answered when that fails.
    pub async fn ended(&self, asked: Option<Asked>, ending: Ending<'_>) -> Result<(), Refusal> {
        let Some(Asked(origin)) = asked else { return Ok(()) };
        self.caller.asking(origin).record(ending).await
    }

    /// The same for one of many refusals that are alike.
    pub fn turned_away(&self, asked: Option<Asked>, reason: &str) {
        if let Some(Asked(origin)) = asked {
            self.caller.asking(origin).turned_away(reason);
        }
    }

    fn asked(&self) -> MutexGuard<'_, Option<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An instruction as the audit knows it: each is a decision of its own.
    fn origin<I: Instruction>(&self) -> Arc<Origin> {
        let connection = self.caller.origin();
        let request = RequestId::from_random(rand::random());
        Arc::new(Origin {
            permission: Some(I::Right::PERMISSION),
            fingerprint: connection.fingerprint.clone(),
            peer: connection.peer,
            ..Origin::new(Arc::clone(&self.principal), I::NAME.into(), request)
        })
    }

    fn call<'a>(&self, origin: &'a Origin) -> Call<'a> {
        let call = self.gate.0.line_call(&origin.rpc, origin.request, self.peer);
        Call { connection: Some(self.caller.request()), ..call }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({} from {})", self.principal.identity, self.peer)
    }
}
