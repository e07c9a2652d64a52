//! May this principal do this here: a pure function, and the only maker of
//! proofs. A use case takes a proof, not a caller.
//!
//! Not here: who the principal is (`authn`), which rule a call has (`access`).

use std::{fmt, marker::PhantomData, sync::Arc};

use crate::domain::{
    Area, Namespace, Principal, RequestId, Scope, history::Stamp, permission::Right,
    principal::Identity,
};

/// Who calls and by which request: what every proof remembers.
#[derive(Clone, Debug)]
struct Call {
    principal: Arc<Principal>,
    request: RequestId,
}

impl Call {
    fn stamp(&self) -> Stamp {
        Stamp {
            actor: Some(self.principal.identity.clone()),
            credential_id: Arc::clone(&self.principal.credential_id),
            request: Some(self.request),
        }
    }
}

/// Proof that a caller has the right `R` within a scope: enough to look for
/// objects there, which the store does under that scope.
pub struct Claim<R> {
    call: Call,
    scope: Scope,
    right: PhantomData<fn() -> R>,
}

/// Proof that a caller has the right `R` in one namespace.
pub struct Permit<R> {
    call: Call,
    namespace: Namespace,
    right: PhantomData<fn() -> R>,
}

/// Decides whether a principal has a right anywhere; where, the claim knows.
#[must_use]
pub fn claim<R: Right>(principal: &Arc<Principal>, request: RequestId) -> Option<Claim<R>> {
    principal.holds(R::PERMISSION).then(|| Claim {
        call: Call { principal: Arc::clone(principal), request },
        scope: principal.scope_of(R::PERMISSION),
        right: PhantomData,
    })
}

/// Proof that root calls (SE-05).
#[derive(Clone)]
pub struct Root(Call);

/// Decides whether a principal is root.
#[must_use]
pub fn root(principal: &Arc<Principal>, request: RequestId) -> Option<Root> {
    principal.is_root().then(|| Root(Call { principal: Arc::clone(principal), request }))
}

impl Root {
    /// Who calls.
    #[must_use]
    pub fn principal(&self) -> &Arc<Principal> {
        &self.0.principal
    }

    /// What a write stores about its maker.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        self.0.stamp()
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({})", self.0.principal.identity)
    }
}

impl<R: Right> Claim<R> {
    /// Who claims, with all that it holds.
    #[must_use]
    pub fn principal(&self) -> &Arc<Principal> {
        &self.call.principal
    }

    /// Where the right holds.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Who claims.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.call.principal.identity
    }

    /// What a write stores about its maker.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        self.call.stamp()
    }

    /// The permit for a namespace of the scope; none outside of it (SE-01:
    /// the scope comes from grants that have the right).
    #[must_use]
    pub fn permit(&self, namespace: &Namespace) -> Option<Permit<R>> {
        self.scope.contains(namespace).then(|| Permit {
            call: self.call.clone(),
            namespace: namespace.clone(),
            right: PhantomData,
        })
    }

    /// The claim cut down to an area that lies in the scope as a whole.
    #[must_use]
    pub fn within(&self, area: &Area) -> Option<Self> {
        self.scope.contains_area(area).then(|| Self {
            call: self.call.clone(),
            scope: Scope::from(area),
            right: PhantomData,
        })
    }
}

impl<R: Right> Permit<R> {
    /// The namespace it holds in.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Who holds it.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.call.principal.identity
    }

    /// What a write stores about its maker.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        self.call.stamp()
    }
}

/// Proof that the server itself acts, in its loops; made by the composition
/// root alone.
#[derive(Clone, Copy, Debug)]
pub struct System(());

impl System {
    /// For the composition root.
    #[must_use]
    pub fn permit() -> Self {
        Self(())
    }
}

impl<R: Right> fmt::Debug for Claim<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claim<{}>({} in {:?})", R::PERMISSION, self.identity(), self.scope)
    }
}

impl<R: Right> fmt::Debug for Permit<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit<{}>({} in {})", R::PERMISSION, self.identity(), self.namespace)
    }
}
