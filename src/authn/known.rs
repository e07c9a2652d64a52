//! The credentials that the server knows, as those who look after them see
//! them: who could do something, and what cuts what somebody holds. Never a
//! secret.
//!
//! Not here: who may see it (`access::explain`).

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Authenticator, Fault, Known, jwt::Policy};
use crate::{
    config::{CertificateRule, ClaimRule},
    domain::{
        Area, Grant, Permission, PermissionSet, Principal, Scope, Timestamp,
        principal::{Identity, Method, Source},
    },
    storage::CredentialKind,
};

/// What a credential is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An API key of the configuration.
    ConfiguredKey,
    /// An API key that the server gave out.
    ApiKey,
    /// A minted token, in the database or the token file.
    Token,
    /// A token that another credential was traded for.
    Exchanged,
    /// A token of the line protocol's auth file.
    LineToken,
    /// Client certificates of a name.
    Certificate,
}

impl Kind {
    /// As it is shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfiguredKey => "configured_key",
            Self::ApiKey => "api_key",
            Self::Token => "token",
            Self::Exchanged => "exchanged_token",
            Self::LineToken => "line_token",
            Self::Certificate => "certificate",
        }
    }
}

/// A credential that counts now.
#[derive(Clone, Debug)]
pub struct Bearer {
    /// What it is.
    pub kind: Kind,
    /// What it is called.
    pub name: Option<Arc<str>>,
    /// Who calls with it.
    pub principal: Arc<Principal>,
}

/// What tokens of an issuer can hold of a permission.
#[derive(Clone, Debug)]
pub struct IssuerReach {
    /// The issuer.
    pub issuer: Arc<str>,
    /// What a token must say.
    pub how: String,
    /// Where it then holds at most.
    pub scope: Scope,
}

impl Authenticator {
    /// Every credential that counts now, by kind, name and id; JWTs are not
    /// known before they are shown.
    #[must_use]
    pub fn bearers(&self, now: Timestamp) -> Vec<Bearer> {
        let configured = self.configured_keys().into_iter().map(|key| Bearer {
            kind: Kind::ConfiguredKey,
            name: Some(Arc::clone(&key.principal.identity.subject)),
            principal: key.principal,
        });
        let keys_off = matches!(&self.known, Known::Holders(all) if !all.api_keys_enabled);
        let issued = self.issued.live(now).into_iter().filter_map(|issue| {
            let kind = match issue.record.kind {
                CredentialKind::Token => Kind::Token,
                CredentialKind::ApiKey if keys_off => return None,
                CredentialKind::ApiKey => Kind::ApiKey,
                CredentialKind::Exchanged => Kind::Exchanged,
            };
            let name = issue.record.name.as_deref().map(Arc::from);
            Some(Bearer { kind, name, principal: Arc::clone(issue.principal()) })
        });
        let line = self.line_principals().map(|principal| Bearer {
            kind: Kind::LineToken,
            name: Some(Arc::clone(&principal.identity.subject)),
            principal,
        });
        let mut all: Vec<Bearer> =
            configured.chain(issued).chain(line).chain(self.certificates()).collect();
        all.sort_by(|a, b| {
            let key = |bearer: &Bearer| {
                let Principal { identity, credential_id, .. } = &*bearer.principal;
                (bearer.kind, Arc::clone(&identity.subject), Arc::clone(credential_id))
            };
            key(a).cmp(&key(b))
        });
        all
    }

    fn certificates(&self) -> Vec<Bearer> {
        let Known::Holders(holders) = &self.known else { return Vec::new() };
        let bearer = |rule: &CertificateRule| Bearer {
            kind: Kind::Certificate,
            name: Some(Arc::clone(&rule.spiffe)),
            principal: mapped(rule, &rule.spiffe),
        };
        holders.certificates.rules().map(bearer).collect()
    }

    fn policies(&self) -> impl Iterator<Item = &Policy> {
        let jwt = match &self.known {
            Known::Everybody(_) => None,
            Known::Holders(holders) => holders.jwt.as_ref(),
        };
        jwt.into_iter().flat_map(|jwt| jwt.verifier.issuers.iter().map(|issuer| &issuer.policy))
    }

    /// By what claims tokens of which issuers hold a permission in an area;
    /// nothing where the issuer's ceiling cuts it.
    #[must_use]
    pub fn issuers_reaching(&self, permission: Permission, area: &Area) -> Vec<IssuerReach> {
        let mut reaching = Vec::new();
        for policy in self.policies() {
            let Some(issuer) = policy.issuer.clone() else { continue };
            let scope = policy.namespaces_ceiling.clone();
            if !policy.permissions_ceiling.contains(permission) || !scope.contains_area(area) {
                continue;
            }
            reaching.push(IssuerReach {
                issuer: Arc::clone(&issuer),
                how: listed(policy, permission),
                scope: scope.clone(),
            });
            let rules = policy.rules.iter().filter(|rule| rule.permissions.contains(permission));
            for rule in rules {
                let how = ruled(rule);
                reaching.push(IssuerReach {
                    issuer: Arc::clone(&issuer),
                    how,
                    scope: scope.clone(),
                });
            }
        }
        reaching
    }

    /// The principal of a JWT with these claims, as this configuration judges
    /// them at a moment, whoever's key signed it.
    pub fn judged(
        &self,
        claims: &Map<String, Value>,
        credential_id: Arc<str>,
        at: Timestamp,
    ) -> Result<Principal, Fault> {
        let name = claims.get("iss").and_then(Value::as_str);
        let mut policies = self.policies();
        let policy = policies.find(|policy| policy.issuer.as_deref() == name);
        let policy = policy.ok_or(Fault::Issuer)?;
        let mut faults = Vec::new();
        let judged = policy.check(claims, at, &mut faults);
        match (faults.into_iter().next(), judged) {
            (None, Some(claims)) => Ok(claims.into_principal(credential_id)),
            (Some(fault), _) => Err(fault),
            (None, None) => Err(Fault::Malformed("claims")),
        }
    }

    /// Whether everybody may do everything.
    #[must_use]
    pub fn is_off(&self) -> bool {
        matches!(self.known, Known::Everybody(_))
    }

    /// Whether API keys that the server gave out are taken.
    #[must_use]
    pub fn takes_api_keys(&self) -> bool {
        match &self.known {
            Known::Everybody(_) => true,
            Known::Holders(holders) => holders.api_keys_enabled,
        }
    }

    /// The principal of a certificate's name.
    #[must_use]
    pub fn certificate_principal(&self, uri: &str) -> Option<Arc<Principal>> {
        let Known::Holders(holders) = &self.known else { return None };
        holders.certificates.rule(uri).map(|rule| mapped(rule, uri))
    }

    /// What an issuer's tokens hold at most; none where it is not trusted.
    #[must_use]
    pub fn issuer_ceiling(&self, issuer: &str) -> Option<Grant> {
        let mut policies = self.policies();
        let found = policies.find(|policy| policy.issuer.as_deref() == Some(issuer))?;
        Some(Grant {
            permissions: found.permissions_ceiling.clone(),
            scope: found.namespaces_ceiling.clone(),
        })
    }

    /// By which claim an issuer's tokens list their permissions.
    #[must_use]
    pub fn permissions_claim(&self, issuer: &str) -> Option<&str> {
        let mut policies = self.policies();
        let found = policies.find(|policy| policy.issuer.as_deref() == Some(issuer))?;
        Some(&found.permissions_claim)
    }

    /// What keeps a principal from holding a permission in places, whatever it
    /// is given beside what it has.
    #[must_use]
    pub fn limits_on(
        &self,
        principal: &Principal,
        permission: Permission,
        places: &[Arc<str>],
    ) -> Vec<String> {
        let mut limits = Vec::new();
        let identity = &principal.identity;
        let lacks = |scope: &Scope| places.iter().any(|place| !covers(scope, place));
        if let (Some(scope), Permission::WorkLease) = (&principal.worker_scope, permission)
            && lacks(scope)
        {
            limits.push(format!(
                "its claim `worker_namespaces` narrows `work:lease` to {}",
                shown(scope)
            ));
        }
        let policy =
            self.policies().find(|policy| policy.issuer.as_deref() == Some(&*identity.issuer));
        if let (Source::Idp, Some(policy)) = (identity.source, policy) {
            if !policy.permissions_ceiling.contains(permission) {
                limits.push(format!(
                    "the ceiling of the issuer {} leaves no `{permission}`",
                    identity.issuer
                ));
            }
            if lacks(&policy.namespaces_ceiling) {
                limits.push(format!(
                    "the ceiling of the issuer {} is {}",
                    identity.issuer,
                    shown(&policy.namespaces_ceiling)
                ));
            }
        }
        if let Some(issue) = self.issued.get(&principal.credential_id)
            && matches!(identity.source, Source::Database | Source::File)
            && issue.named().contains(permission)
            && !principal.holds(permission)
        {
            limits.push(format!(
                "it names `{permission}`, but a credential that it descends from does not hold it"
            ));
        }
        limits
    }
}

/// Who calls with a certificate of this name.
fn mapped(rule: &CertificateRule, uri: &str) -> Arc<Principal> {
    let identity = Identity { source: Source::Certificate, issuer: "".into(), subject: uri.into() };
    Arc::new(Principal {
        identity,
        method: Method::Certificate,
        grants: vec![Grant { permissions: rule.permissions.clone(), scope: rule.scope.clone() }],
        not_after: None,
        credential_id: "".into(),
        worker_scope: None,
        issued_at: None,
    })
}

/// Whether a scope has a place: a namespace, an area, an identifier or `*`.
#[must_use]
pub fn covers(scope: &Scope, place: &str) -> bool {
    match Scope::parse(&[place]) {
        Ok(Scope::Everything) => *scope == Scope::Everything,
        Ok(other) => match Area::parse(place) {
            Ok(area) => scope.contains_area(&area),
            Err(_) => scope.covers(&other),
        },
        Err(_) => scope.contains_text(place),
    }
}

fn shown(scope: &Scope) -> String {
    let places = scope.to_strings();
    if places.is_empty() { "nowhere".to_owned() } else { format!("`{}`", places.join("`, `")) }
}

/// The roles of an issuer's vocabulary that hold a permission.
fn listed(policy: &Policy, permission: Permission) -> String {
    let holds = |(_, set): &(&str, &PermissionSet)| set.contains(permission);
    let roles: Vec<String> =
        policy.roles.iter().filter(holds).map(|(name, _)| format!("`role:{name}`")).collect();
    let or = if roles.is_empty() { String::new() } else { format!(" or {}", roles.join(", ")) };
    format!("the claim `{}` lists `{permission}`{or}", policy.permissions_claim)
}

fn ruled(rule: &ClaimRule) -> String {
    let claims: Vec<String> =
        rule.claims.iter().map(|(name, pattern)| format!("`{name}` is `{pattern}`")).collect();
    let places = rule.namespaces.as_ref().map(|places| {
        places.iter().map(|place| format!("`{place}`")).collect::<Vec<_>>().join(", ")
    });
    let places = places.map(|places| format!(", in {places}")).unwrap_or_default();
    format!("a claim rule: {}{places}", claims.join(" and "))
}
