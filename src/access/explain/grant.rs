//! The smallest grant that would let a call pass, and who can give it.

use std::sync::Arc;

use super::Explainer;
use crate::{
    authn::known::{self, Bearer, Kind},
    domain::{Area, Namespace, Permission, Principal, Scope, principal::Source},
};

/// The most that are named who can give a grant.
const GRANTERS_MAX: usize = 50;

/// A grant that would help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suggestion {
    /// The permission, of this server or of another service.
    pub permission: Arc<str>,
    /// Where; nothing is the namespace of the call, which is not known.
    pub namespaces: Vec<String>,
    /// Whether the places are those of the caller's other grants.
    pub assumed: bool,
    /// What to do.
    pub text: String,
}

/// What can give a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GranterKind {
    /// Who edits the configuration.
    Configuration,
    /// The issuer of JWTs.
    Issuer,
    /// Root.
    Root,
    /// An administrator of API keys.
    ApiKeyAdmin,
    /// Who edits the token file.
    TokenFile,
    /// Who edits the auth file of the line protocol.
    AuthFile,
    /// Who writes the step's template.
    Template,
}

impl GranterKind {
    /// As it is shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Issuer => "issuer",
            Self::Root => "root",
            Self::ApiKeyAdmin => "api_key_admin",
            Self::TokenFile => "token_file",
            Self::AuthFile => "auth_file",
            Self::Template => "template",
        }
    }
}

/// Somebody or something that can give a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granter {
    /// What it is.
    pub kind: GranterKind,
    /// Its name.
    pub name: Option<Arc<str>>,
    /// Its credential.
    pub credential_id: Option<Arc<str>>,
    /// How.
    pub text: String,
}

/// The smallest grant that a principal lacks for a permission in places; none
/// where a grant beside what it has would not help.
pub(super) fn missing(
    principal: &Principal,
    permission: &str,
    places: &[Arc<str>],
    global: bool,
) -> Option<Suggestion> {
    let leases = permission == Permission::WorkLease.name();
    let narrowed = |place: &str| match (&principal.worker_scope, leases) {
        (Some(scope), true) => !known::covers(scope, place),
        _ => false,
    };
    let scope = principal.scope_of_named(permission);
    let (namespaces, assumed) = if global {
        (vec!["*".to_owned()], false)
    } else if places.is_empty() {
        let own = only_place(principal).filter(|place| !narrowed(place));
        (own.clone().into_iter().collect(), own.is_some())
    } else {
        let lacking = places.iter().filter(|place| !known::covers(&scope, place));
        let mut lacking: Vec<String> = lacking.map(|place| smallest(place)).collect();
        lacking.sort_unstable();
        lacking.dedup();
        if lacking.is_empty() {
            return None;
        }
        (lacking, false)
    };
    if namespaces.iter().any(|place| narrowed(place)) {
        return None;
    }
    let text = match namespaces.as_slice() {
        [] => format!("add `{permission}` in the namespace of the call"),
        [all] if all == "*" => format!("add `{permission}` everywhere"),
        some => format!("add `{permission}` in `{}`", some.join("`, `")),
    };
    Some(Suggestion { permission: permission.into(), namespaces, assumed, text })
}

/// The only place where somebody holds what it holds.
fn only_place(principal: &Principal) -> Option<String> {
    let mut scopes = principal.grants.iter().map(|grant| grant.scope.to_strings());
    let first = scopes.next()?;
    let [only] = first.as_slice() else { return None };
    (only != "*" && scopes.all(|scope| scope == first)).then(|| only.clone())
}

/// The smallest scope that has a place: itself where it is a namespace or an
/// area, or else what stands before one of its dots.
fn smallest(place: &str) -> String {
    if place == "*" || Area::parse(place).is_ok() {
        return place.to_owned();
    }
    let dots = place.rmatch_indices('.').filter_map(|(at, _)| place.get(..at));
    dots.filter(|start| Namespace::parse(start).is_ok())
        .map(|start| format!("{start}."))
        .find(|start| Scope::parse(&[start]).is_ok_and(|scope| scope.contains_text(place)))
        .unwrap_or_else(|| "*".to_owned())
}

impl Explainer {
    /// Who can give a grant. Others' credentials are named only to those who
    /// may know them.
    pub(super) fn granters(
        &self,
        principal: &Principal,
        suggestion: &Suggestion,
        named: bool,
    ) -> Vec<Granter> {
        let mut granters: Vec<Granter> = self.source(principal, suggestion).into_iter().collect();
        let minted = matches!(principal.identity.source, Source::Database | Source::File);
        let place = suggestion.namespaces.join("`, `");
        let place =
            if place.is_empty() { "the namespace".to_owned() } else { format!("`{place}`") };
        let permission = &suggestion.permission;
        let by_key = format!(
            "gives out an API key: it holds `api_keys:admin` and `{permission}` in {place}"
        );
        let by_root = "mints a token that holds it".to_owned();
        let plain = |kind, text| Granter { kind, name: None, credential_id: None, text };
        if !named {
            if minted {
                granters.push(plain(GranterKind::Root, by_root));
            }
            let who = format!("an administrator of API keys who holds `{permission}` in {place}");
            granters.push(plain(GranterKind::ApiKeyAdmin, who));
            return granters;
        }
        for bearer in self.gate.0.authenticator.bearers(self.gate.0.clock.now()) {
            let (kind, text) = match gives(&bearer, suggestion) {
                Some(kind @ GranterKind::Root) => (kind, &by_root),
                Some(kind) => (kind, &by_key),
                None => continue,
            };
            granters.push(Granter {
                kind,
                name: bearer.name.clone(),
                credential_id: Some(Arc::clone(&bearer.principal.credential_id)),
                text: text.clone(),
            });
        }
        granters.truncate(GRANTERS_MAX);
        granters
    }

    /// What the caller's own credential comes from.
    fn source(&self, principal: &Principal, suggestion: &Suggestion) -> Option<Granter> {
        let identity = &principal.identity;
        let subject = &identity.subject;
        let add = &suggestion.text;
        let granter = |kind, name: &Arc<str>, text| Granter {
            kind,
            name: (!name.is_empty()).then(|| Arc::clone(name)),
            credential_id: None,
            text,
        };
        Some(match identity.source {
            Source::Config => granter(
                GranterKind::Configuration,
                subject,
                format!("who edits the configuration: `[[auth.api_keys]]` of `{subject}`; {add}"),
            ),
            Source::Certificate => granter(
                GranterKind::Configuration,
                subject,
                format!(
                    "who edits the configuration: `[[auth.certificates]]` for `{subject}`; {add}"
                ),
            ),
            Source::Idp => {
                let claim = self.gate.0.authenticator.permissions_claim(&identity.issuer);
                let claim = claim.unwrap_or("permissions");
                granter(
                    GranterKind::Issuer,
                    &identity.issuer,
                    format!(
                        "the identity provider {} by the claim `{claim}`, within the ceiling that \
                         the configuration gives it",
                        identity.issuer
                    ),
                )
            }
            Source::File => {
                granter(GranterKind::TokenFile, subject, format!("who edits the token file: {add}"))
            }
            Source::Line => granter(
                GranterKind::AuthFile,
                subject,
                format!("who edits the auth file of the line protocol: the token `{subject}`"),
            ),
            Source::Lease => granter(
                GranterKind::Template,
                subject,
                "who writes the template of the step".to_owned(),
            ),
            Source::Database | Source::Agent | Source::Session | Source::Disabled => return None,
        })
    }
}

/// As what a credential can give a grant.
fn gives(bearer: &Bearer, suggestion: &Suggestion) -> Option<GranterKind> {
    let principal = &bearer.principal;
    if principal.is_root() {
        return Some(GranterKind::Root);
    }
    // A token of the line protocol manages no keys.
    if bearer.kind == Kind::LineToken {
        return None;
    }
    let both = |place: &str| {
        [Permission::ApiKeysAdmin.name(), &suggestion.permission]
            .into_iter()
            .all(|permission| known::covers(&principal.scope_of_named(permission), place))
    };
    let admin = if suggestion.namespaces.is_empty() {
        principal.holds(Permission::ApiKeysAdmin)
            && principal.grants.iter().any(|grant| grant.has(&suggestion.permission))
    } else {
        suggestion.namespaces.iter().all(|place| both(place))
    };
    admin.then_some(GranterKind::ApiKeyAdmin)
}
