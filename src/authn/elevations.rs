//! Rights that somebody has for a while besides those of its credential. They
//! are decided here at each call and kept by nothing beyond it: not by what is
//! made with them, and not by streams, which end with them (SE-17).
//!
//! Not here: who asks and who approves (`admin`).

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

use super::{Authenticator, Session};
use crate::domain::{
    Grant, Permission, Principal, Timestamp,
    elevation::Elevation,
    principal::{Identity, Source},
};

/// One that was approved.
#[derive(Clone, Debug)]
struct Raised {
    id: Arc<str>,
    /// The public id of the credential that asked.
    with: Arc<str>,
    grant: Grant,
    until: Timestamp,
    ended: CancellationToken,
}

/// Those that hold.
#[derive(Debug, Default)]
pub struct Elevations {
    /// Spares most calls the look-up.
    any: AtomicBool,
    by_identity: RwLock<HashMap<Identity, Vec<Raised>>>,
}

impl Elevations {
    /// Takes up one that is on disk as approved.
    pub fn begin(&self, elevation: &Elevation) {
        let Some(until) = elevation.until else { return };
        let raised = Raised {
            id: Arc::clone(&elevation.id),
            with: Arc::clone(&elevation.requested_with),
            grant: elevation.grant(),
            until,
            ended: CancellationToken::new(),
        };
        let mut all = self.by_identity.write().unwrap_or_else(PoisonError::into_inner);
        all.entry(elevation.requester.clone()).or_default().push(raised);
        self.any.store(true, Ordering::Release);
    }

    /// Ends one, and the streams that go by it.
    pub fn end(&self, elevation: &Elevation) {
        let mut all = self.by_identity.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = all.get_mut(&elevation.requester) {
            held.retain(|raised| {
                let ends = raised.id == elevation.id;
                if ends {
                    raised.ended.cancel();
                }
                !ends
            });
            if held.is_empty() {
                all.remove(&elevation.requester);
            }
        }
        self.any.store(!all.is_empty(), Ordering::Release);
    }

    /// What somebody has now that its credential lacks; where a permission is
    /// wanted, only what adds to that.
    fn of(&self, base: &Principal, wanted: Option<Permission>, now: Timestamp) -> Vec<Raised> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let all = self.by_identity.read().unwrap_or_else(PoisonError::into_inner);
        // Keys of the configuration can share a name.
        let its = |raised: &Raised| {
            base.identity.source != Source::Config || raised.with == base.credential_id
        };
        let helps = |raised: &&Raised| {
            now < raised.until
                && its(raised)
                && wanted.is_none_or(|permission| {
                    raised.grant.permissions.contains(permission)
                        && !base.scope_of(permission).covers(&raised.grant.scope)
                })
        };
        all.get(&base.identity).into_iter().flatten().filter(helps).cloned().collect()
    }
}

impl Session {
    /// Who calls, without the rights that it has for a while: what is made and
    /// what is decided about others goes by these (SE-40).
    #[must_use]
    pub fn lasting(&self) -> &Arc<Principal> {
        self.lasting.as_ref().unwrap_or(&self.principal)
    }

    /// By whose recall it ends.
    pub(super) fn recalled_by(&self) -> &Identity {
        self.traded_for.as_ref().unwrap_or(&self.principal.identity)
    }
}

/// A principal with what it has for a while, until the first of it ends; none
/// without any.
fn with(base: &Principal, raised: &[Raised]) -> Option<Principal> {
    let first = raised.iter().map(|raised| raised.until).min()?;
    let mut principal = base.clone();
    principal.grants.extend(raised.iter().map(|raised| raised.grant.clone()));
    principal.not_after = Some(base.not_after.map_or(first, |end| end.min(first)));
    Some(principal)
}

impl Authenticator {
    /// Who calls, with the rights that it has for a while; none without any.
    #[must_use]
    pub fn elevated(&self, base: &Principal, now: Timestamp) -> Option<Arc<Principal>> {
        with(base, &self.elevations.of(base, None, now)).map(Arc::new)
    }

    /// The rights that hold for a while.
    #[must_use]
    pub fn elevations(&self) -> &Arc<Elevations> {
        &self.elevations
    }

    /// A session with the rights that its caller has for a while, where they
    /// add to the permission that a call needs, or to any. It ends with the
    /// first of them.
    #[must_use]
    pub fn raised(
        &self,
        session: Arc<Session>,
        wanted: Option<Permission>,
        now: Timestamp,
    ) -> Arc<Session> {
        let raised = self.elevations.of(&session.principal, wanted, now);
        let base = &session.principal;
        let Some(principal) = with(base, &raised) else { return session };
        Arc::new(Session {
            principal: Arc::new(principal),
            revoked: session.revoked.clone(),
            recall: session.recall.clone(),
            usage: session.usage.clone(),
            digest: session.digest,
            fingerprint: session.fingerprint.clone(),
            evidence: session.evidence.clone(),
            traded_for: session.traded_for.clone(),
            lasting: Some(Arc::clone(base)),
            ends: raised.into_iter().map(|raised| raised.ended).collect(),
        })
    }
}
