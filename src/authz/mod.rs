//! May this principal do this here: a pure function, and the only maker of
//! proofs. A use case takes a proof, not a caller.
//!
//! Not here: who the principal is (`authn`), which rule a call has (`access`).

use std::{fmt, marker::PhantomData, sync::Arc};

use crate::domain::{
    Area, Namespace, Permission, Principal, Scope, Timestamp,
    audit::Origin,
    history::Stamp,
    permission::{Right, right::TasksCreate},
    principal::{GrantRef, Identity, Source},
    schedule::Identifier,
};

/// Who calls, by which request: what every proof remembers.
type Call = Arc<Origin>;

/// Proof that a caller has the right `R` within a scope: enough to look for
/// objects there, which the store does under that scope.
pub struct Claim<R> {
    call: Call,
    scope: Scope,
    right: PhantomData<fn() -> R>,
}

/// Proof that a caller has the right `R` in one namespace, or over one
/// identifier of the scheduler, which is its own namespace.
pub struct Permit<R, P = Namespace> {
    call: Call,
    place: P,
    right: PhantomData<fn() -> R>,
}

/// Decides whether a principal has a right anywhere; where, the claim knows.
#[must_use]
pub fn claim<R: Right>(call: &Arc<Origin>) -> Option<Claim<R>> {
    call.principal.holds(R::PERMISSION).then(|| Claim {
        call: Arc::clone(call),
        scope: call.principal.scope_of(R::PERMISSION),
        right: PhantomData,
    })
}

/// Proof that root calls (SE-05).
#[derive(Clone)]
pub struct Root(Call);

/// Decides whether a principal is root.
#[must_use]
pub fn root(call: &Arc<Origin>) -> Option<Root> {
    call.principal.is_root().then(|| Root(Arc::clone(call)))
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
        Stamp::of(Arc::clone(&self.0))
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

    /// Who claims, without the rights that it has for a while: what is done
    /// later, in its name, goes by these.
    #[must_use]
    pub fn lasting(&self) -> &Arc<Principal> {
        self.call.lasting.as_ref().unwrap_or(&self.call.principal)
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
        Stamp::of(Arc::clone(&self.call))
    }

    /// Notes that the call is refused for want of another permission, and
    /// where; answers that permission.
    pub fn lacks<'a>(
        &self,
        permission: Permission,
        places: impl IntoIterator<Item = &'a str>,
    ) -> Permission {
        self.call.lacks(permission, places);
        permission
    }

    /// The permit for a namespace of the scope; none outside of it (SE-01:
    /// the scope comes from grants that have the right).
    #[must_use]
    pub fn permit(&self, namespace: &Namespace) -> Option<Permit<R>> {
        self.scope.contains(namespace).then(|| {
            self.call.allowed_in(namespace.as_str());
            self.at(namespace.clone())
        })
    }

    /// The permit over an identifier of the scope; none outside of it.
    #[must_use]
    pub fn over(&self, identifier: &Identifier) -> Option<Permit<R, Identifier>> {
        self.scope.contains_text(identifier.as_str()).then(|| {
            self.call.allowed_in(identifier.segment());
            self.at(identifier.clone())
        })
    }

    /// Whether a name lies in the scope; then its first segment is where the
    /// call was allowed.
    #[must_use]
    pub fn covers_name(&self, name: &str) -> bool {
        let covered = self.scope.contains_text(name);
        if covered {
            self.call.allowed_in(name.split_once('.').map_or(name, |(segment, _)| segment));
        }
        covered
    }

    fn at<P>(&self, place: P) -> Permit<R, P> {
        Permit { call: self.call.clone(), place, right: PhantomData }
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
        &self.place
    }
}

impl<R: Right> Permit<R, Identifier> {
    /// The identifier it holds over.
    #[must_use]
    pub fn identifier(&self) -> &Identifier {
        &self.place
    }
}

impl<R: Right, P> Permit<R, P> {
    /// Who holds it, with all that it holds.
    #[must_use]
    pub fn principal(&self) -> &Arc<Principal> {
        &self.call.principal
    }

    /// Who holds it, without the rights that it has for a while: what is done
    /// later, in its name, goes by these.
    #[must_use]
    pub fn lasting(&self) -> &Arc<Principal> {
        self.call.lasting.as_ref().unwrap_or(&self.call.principal)
    }

    /// Who holds it.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.call.principal.identity
    }

    /// What a write stores about its maker.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp::of(Arc::clone(&self.call))
    }

    /// Notes that the call is refused for want of another permission, and
    /// where; answers that permission.
    pub fn lacks<'a>(
        &self,
        permission: Permission,
        places: impl IntoIterator<Item = &'a str>,
    ) -> Permission {
        self.call.lacks(permission, places);
        permission
    }
}

/// Says who stands behind work that was set earlier, as of now.
pub trait Standing: Send + Sync + fmt::Debug {
    /// The principal with what it holds now; none when its credential was
    /// taken back, has ended or is no more.
    fn standing(&self, grant: &GrantRef, now: Timestamp) -> Option<Arc<Principal>>;
}

/// Whether the scheduler may create tasks in a namespace for a rule's owner,
/// also asked when the rule is set (SE-63): `tasks:create` in the namespace. A
/// token of the line protocol has no such permission; for it the namespace
/// must lie under its prefix, which ends in a dot, or it has everything.
#[must_use]
pub fn may_create_tasks(owner: &Principal, namespace: &Namespace) -> bool {
    if owner.identity.source != Source::Line {
        return owner.may(Permission::TasksCreate, namespace);
    }
    match owner.scope_of(Permission::RulesWrite) {
        Scope::Everything => true,
        // Only a text that ends in a dot holds what is behind its dot.
        scope @ Scope::Under(_) => {
            scope.to_strings().iter().all(|text| text.ends_with('.'))
                && scope.contains_text(&format!("{namespace}."))
        }
    }
}

/// The permit by which the scheduler creates a task for a rule's owner.
#[must_use]
pub fn task_for(call: &Arc<Origin>, namespace: &Namespace) -> Option<Permit<TasksCreate>> {
    may_create_tasks(&call.principal, namespace).then(|| {
        call.allowed_in(namespace.as_str());
        Permit { call: Arc::clone(call), place: namespace.clone(), right: PhantomData }
    })
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

impl<R: Right, P: fmt::Debug> fmt::Debug for Permit<R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit<{}>({} in {:?})", R::PERMISSION, self.identity(), self.place)
    }
}
