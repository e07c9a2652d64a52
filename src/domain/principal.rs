//! Who acts: every credential becomes a principal.

use std::{fmt, sync::Arc};

use super::{Area, Namespace, Permission, PermissionSet, Scope, Timestamp};

/// Where a credential comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The configuration.
    Config,
    /// An identity provider: a JWT.
    Idp,
    /// The database.
    Database,
    /// The token file.
    File,
    /// The auth file of the line protocol.
    Line,
    /// A registered agent or node.
    Agent,
    /// A lease: a step token.
    Lease,
    /// A web session.
    Session,
    /// A client certificate.
    Certificate,
    /// Auth is off.
    Disabled,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Config,
        Self::Idp,
        Self::Database,
        Self::File,
        Self::Line,
        Self::Agent,
        Self::Lease,
        Self::Session,
        Self::Certificate,
        Self::Disabled,
    ];

    /// The one that is shown so.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == text)
    }

    /// As it is shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Idp => "idp",
            Self::Database => "database",
            Self::File => "file",
            Self::Line => "line",
            Self::Agent => "agent",
            Self::Lease => "lease",
            Self::Session => "session",
            Self::Certificate => "certificate",
            Self::Disabled => "disabled",
        }
    }
}

/// How a credential was presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// An API key.
    ApiKey,
    /// A JWT as bearer.
    Jwt,
    /// Another token as bearer.
    Token,
    /// A client certificate.
    Certificate,
    /// Nothing: auth is off.
    None,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::ApiKey, Self::Jwt, Self::Token, Self::Certificate, Self::None];

    /// The one that is shown so.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == text)
    }

    /// As it is shown, and the label of metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::Jwt => "jwt",
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::None => "none",
        }
    }
}

/// Permissions and where they hold (SE-01).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What.
    pub permissions: PermissionSet,
    /// Where.
    pub scope: Scope,
}

impl Grant {
    /// Whether it has a permission by its name, of this server or of another
    /// service.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match Permission::parse(name) {
            Some(own) => self.permissions.contains(own),
            None => self.permissions.contains_foreign(name),
        }
    }
}

/// Who a principal is: the subject counts only together with where it comes
/// from (SE-02).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Where the credential comes from.
    pub source: Source,
    /// The issuer of a JWT; empty for other sources.
    pub issuer: Arc<str>,
    /// The subject.
    pub subject: Arc<str>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.source.as_str())?;
        if !self.issuer.is_empty() {
            write!(f, "{}#", self.issuer)?;
        }
        f.write_str(&self.subject)
    }
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Who.
    pub identity: Identity,
    /// How the credential was presented.
    pub method: Method,
    /// What it holds.
    pub grants: Vec<Grant>,
    /// When the credential ends.
    pub not_after: Option<Timestamp>,
    /// The public id of the credential; never the credential.
    pub credential_id: Arc<str>,
    /// Narrows the RPCs of workers further (`worker_namespaces`).
    pub worker_scope: Option<Scope>,
    /// When a JWT was issued, where it says so.
    pub issued_at: Option<Timestamp>,
}

impl Principal {
    /// The principal of auth off, which may do everything. Made here alone.
    #[must_use]
    pub fn auth_off() -> Self {
        Self {
            identity: Identity {
                source: Source::Disabled,
                issuer: "".into(),
                subject: "anonymous".into(),
            },
            method: Method::None,
            grants: vec![Grant { permissions: PermissionSet::star(), scope: Scope::Everything }],
            not_after: None,
            credential_id: "".into(),
            worker_scope: None,
            issued_at: None,
        }
    }

    /// Root: `*` with scope everything from a configuration key or a line of
    /// the token file, or auth off; nothing else (SE-05).
    #[must_use]
    pub fn is_root(&self) -> bool {
        match self.identity.source {
            Source::Config | Source::File | Source::Disabled => self
                .grants
                .iter()
                .any(|grant| grant.permissions.is_star() && grant.scope == Scope::Everything),
            Source::Idp
            | Source::Database
            | Source::Line
            | Source::Agent
            | Source::Lease
            | Source::Session
            | Source::Certificate => false,
        }
    }

    /// Whether any grant has the permission, wherever it holds.
    #[must_use]
    pub fn holds(&self, permission: Permission) -> bool {
        self.grants.iter().any(|grant| grant.permissions.contains(permission))
    }

    /// Where the permission holds: the union over the grants that have it,
    /// for a worker's permission cut by `worker_scope`.
    #[must_use]
    pub fn scope_of(&self, permission: Permission) -> Scope {
        let scope = self
            .grants
            .iter()
            .filter(|grant| grant.permissions.contains(permission))
            .fold(Scope::NOWHERE, |scope, grant| scope.union(grant.scope.clone()));
        match (&self.worker_scope, permission) {
            (Some(worker), Permission::WorkLease) => scope.intersection(worker),
            _ => scope,
        }
    }

    /// The same for a permission by its name, of this server or of another
    /// service.
    #[must_use]
    pub fn scope_of_named(&self, name: &str) -> Scope {
        match Permission::parse(name) {
            Some(own) => self.scope_of(own),
            None => self
                .grants
                .iter()
                .filter(|grant| grant.has(name))
                .fold(Scope::NOWHERE, |scope, grant| scope.union(grant.scope.clone())),
        }
    }

    /// Whether one single grant has the permission in the namespace (SE-01).
    #[must_use]
    pub fn may(&self, permission: Permission, namespace: &Namespace) -> bool {
        self.scope_of(permission).contains(namespace)
    }

    /// Whether the permission holds in a whole area.
    #[must_use]
    pub fn may_in_area(&self, permission: Permission, area: &Area) -> bool {
        self.scope_of(permission).contains_area(area)
    }
}

/// Who stands behind work that is done later, kept with it, so that it can be
/// decided again when the time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRef {
    /// Who set the work.
    pub identity: Identity,
    /// How the credential was presented.
    pub method: Method,
    /// The public id of the credential.
    pub credential_id: Arc<str>,
    /// What the credential held: all that is known later of a JWT, which
    /// nobody keeps. Empty where the credential itself can be looked up.
    pub grants: Vec<Grant>,
    /// When the work was set.
    pub set_at: Timestamp,
    /// When the credential was issued, as a JWT says it: one that was issued
    /// before its subject was revoked stands for nothing any more.
    pub issued_at: Option<Timestamp>,
    /// Until when a JWT's grants count; none is until they are taken back.
    pub until: Option<Timestamp>,
}

impl GrantRef {
    /// Who stands behind what this principal sets now. Of a JWT, which nobody
    /// keeps, what it held is kept, for that long.
    #[must_use]
    pub fn of(principal: &Principal, set_at: Timestamp, until: Option<Timestamp>) -> Self {
        let jwt = principal.identity.source == Source::Idp;
        Self {
            identity: principal.identity.clone(),
            method: principal.method,
            credential_id: Arc::clone(&principal.credential_id),
            grants: if jwt { principal.grants.clone() } else { Vec::new() },
            set_at,
            issued_at: principal.issued_at,
            until: until.filter(|_| jwt),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(permission: &str, scope: &str) -> Grant {
        let mut permissions = PermissionSet::empty();
        assert!(permissions.add(permission, &std::collections::BTreeSet::new()));
        let scope = Scope::parse(&[scope]).unwrap_or(Scope::NOWHERE);
        Grant { permissions, scope }
    }

    #[test]
    fn se_01_grants_do_not_mix() {
        let mut principal = Principal::auth_off();
        principal.grants = vec![grant("*", "a"), grant("tasks:read", "b")];
        let b = Namespace::parse("b").unwrap_or_else(|error| unreachable!("{error}"));
        assert!(principal.holds(Permission::TasksCreate));
        assert!(!principal.may(Permission::TasksCreate, &b));
        assert!(principal.may(Permission::TasksRead, &b));
    }

    #[test]
    fn se_05_se_33_only_configuration_makes_root() {
        let mut principal = Principal::auth_off();
        assert!(principal.is_root());
        for source in [Source::Idp, Source::Database, Source::Agent, Source::Session] {
            principal.identity.source = source;
            assert!(!principal.is_root(), "{source:?}");
        }
        principal.identity.source = Source::Config;
        principal.grants = vec![grant("*", "shop")];
        assert!(!principal.is_root());
    }
}
