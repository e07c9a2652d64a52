//! What a configuration decides about credentials that it does not hold:
//! tokens and API keys of the store, what was traded, the token file, steps.
//! Their grants stay as they are; whether they count is the settings' word.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{Act, Holder};
use crate::{
    access::explain::Actor,
    authn::{Authenticator, known},
    config::{Settings, TokenStore},
    domain::{
        Grant, Namespace, Permission, PermissionSet, Principal, Scope,
        principal::{Identity, Method, Source},
        rights::StepRights,
    },
    storage::token_file::TokenFile,
};

/// How often what was traded is looked for behind what it was traded for.
const DEPTH_MAX: usize = 8;

/// What a configuration says of them, and what the records do.
#[derive(Debug)]
pub(super) struct Stored {
    tokens: Tokens,
    steps: Arc<StepRights>,
    /// By what an exchanged token was traded, by its public id.
    traded: HashMap<Arc<str>, Actor>,
}

/// Where tokens that are minted count.
#[derive(Debug)]
enum Tokens {
    Database,
    /// Those of the token file; none where it cannot be read here.
    File(Option<HashMap<Arc<str>, PermissionSet>>),
}

impl Stored {
    pub(super) fn new(settings: &Settings) -> Self {
        let tokens = match &settings.auth.token_store {
            TokenStore::Database => Tokens::Database,
            TokenStore::File(path) => {
                let foreign = &settings.auth.extra_permissions;
                // No file is an empty one for a server, and here somebody else's.
                let file =
                    path.exists().then(|| TokenFile::new(path.clone(), foreign.clone()).read());
                Tokens::File(file.and_then(Result::ok).map(|file| {
                    let line = |line: &crate::storage::token_file::TokenLine| {
                        (Arc::clone(&line.id), named(&line.scopes, foreign))
                    };
                    file.tokens.iter().map(line).collect()
                }))
            }
        };
        let steps = Arc::clone(&settings.step_tokens.rights);
        Self { tokens, steps, traded: HashMap::new() }
    }

    /// Notes by what a token was traded.
    pub(super) fn trade(&mut self, token: &str, by: Actor) {
        self.traded.insert(token.into(), by);
    }

    /// Who would call with what the server gave out.
    pub(super) fn given_out(&self, authenticator: &Authenticator, act: &Act) -> Holder {
        let (mut method, mut credential) = (act.method, &act.credential);
        for _ in 0..DEPTH_MAX {
            if method == Method::ApiKey {
                let off = || gone("API keys do not count: `auth.api_keys_enabled`");
                return if authenticator.takes_api_keys() { Holder::Same } else { off() };
            }
            let Some(by) = self.traded.get(credential) else { break };
            match by.identity.source {
                Source::Database => (method, credential) = (by.method, &by.credential_id),
                Source::Idp => return promised(authenticator, &by.identity, act),
                Source::Config => return configured(authenticator, &by.credential_id, act),
                Source::File
                | Source::Line
                | Source::Agent
                | Source::Lease
                | Source::Session
                | Source::Certificate
                | Source::Disabled => return gone("what it was traded for does not count"),
            }
        }
        match &self.tokens {
            Tokens::Database => Holder::Same,
            Tokens::File(_) => gone("tokens of the database do not count: `auth.token_store`"),
        }
    }

    /// Who would call with a token of the file.
    pub(super) fn of_file(&self, act: &Act) -> Holder {
        match &self.tokens {
            Tokens::Database => gone("the token file does not count: `auth.token_store`"),
            Tokens::File(None) => Holder::Unknown("the token file cannot be read here".to_owned()),
            Tokens::File(Some(all)) => all.get(&act.credential).map_or_else(
                || gone("the token is not in the token file"),
                |permissions| Holder::Now(Arc::new(of_line(act, permissions.clone()))),
            ),
        }
    }

    /// Who would call with a step's token.
    pub(super) fn of_step(&self, act: &Act) -> Holder {
        if self.steps.issuer().is_none() {
            return gone("steps get no tokens: `server.public_url`");
        }
        let Some(permission) = act.permission else { return Holder::Same };
        let place = act.actor.subject.strip_prefix("step:").unwrap_or_default();
        let place = place.split('/').next().and_then(|place| Namespace::parse(place).ok());
        if place.is_some_and(|place| !self.steps.ceiling(&place).contains(permission)) {
            return Holder::Gone(format!(
                "the ceiling of `[[auth.namespaces]]` leaves its step no `{permission}`"
            ));
        }
        Holder::Unknown("it hangs on whether who registered its template still holds it".to_owned())
    }
}

/// Traded for a JWT, whose claims it took with it.
fn promised(authenticator: &Authenticator, by: &Identity, act: &Act) -> Holder {
    let Some(ceiling) = authenticator.issuer_ceiling(&by.issuer) else {
        return Holder::Gone(format!(
            "it was traded for a token of {}, which is not in the configuration",
            by.issuer
        ));
    };
    match act.permission {
        Some(permission) if !within(&ceiling, permission, act.place.as_deref()) => {
            Holder::Gone(format!(
                "it was traded for a token of {}, whose ceiling does not reach so far",
                by.issuer
            ))
        }
        Some(_) | None => Holder::Same,
    }
}

/// Traded for a key of the configuration.
fn configured(authenticator: &Authenticator, id: &str, act: &Act) -> Holder {
    let key = authenticator.configured_keys().into_iter().find(|key| *key.id == *id);
    let Some(key) = key else {
        return gone("it was traded for an API key that is not in the configuration");
    };
    let held = |permission: Permission| match &act.place {
        Some(place) => known::covers(&key.principal.scope_of(permission), place),
        None => key.principal.holds(permission),
    };
    if act.permission.is_none_or(held) {
        Holder::Same
    } else {
        gone("it was traded for an API key that does not hold as much any more")
    }
}

fn within(ceiling: &Grant, permission: Permission, place: Option<&str>) -> bool {
    ceiling.permissions.contains(permission)
        && place.is_none_or(|place| known::covers(&ceiling.scope, place))
}

/// Who calls with a token of the file.
fn of_line(act: &Act, permissions: PermissionSet) -> Principal {
    Principal {
        identity: act.actor.clone(),
        method: act.method,
        grants: vec![Grant { permissions, scope: Scope::Everything }],
        not_after: None,
        credential_id: Arc::clone(&act.credential),
        worker_scope: None,
        issued_at: None,
    }
}

fn named(scopes: &[String], foreign: &BTreeSet<Arc<str>>) -> PermissionSet {
    let mut permissions = PermissionSet::empty();
    for name in scopes {
        permissions.add(name, foreign);
    }
    permissions
}

fn gone(why: &str) -> Holder {
    Holder::Gone(why.to_owned())
}
