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
    authn::Authenticator,
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
    /// The permissions of other services.
    declared: BTreeSet<Arc<str>>,
    /// By what an exchanged token was traded, by its public id.
    traded: HashMap<Arc<str>, Trade>,
}

/// What an exchanged token was traded for.
#[derive(Debug)]
struct Trade {
    by: Actor,
    /// What it holds, where the records say so; none that they do not.
    held: Option<Held>,
}

/// What a token holds.
#[derive(Debug)]
enum Held {
    This(Grant),
    /// Something that there is no more: by name.
    Unheard(String),
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
        let declared = settings.auth.extra_permissions.clone();
        Self { tokens, steps, declared, traded: HashMap::new() }
    }

    /// Notes by what a token was traded, and what it holds and where, if that
    /// is known.
    pub(super) fn trade(&mut self, token: &str, by: Actor, held: Option<(Vec<&str>, Vec<&str>)>) {
        let held = held.and_then(|(scopes, places)| self.held(&scopes, &places));
        self.traded.insert(token.into(), Trade { by, held });
    }

    fn held(&self, scopes: &[&str], places: &[&str]) -> Option<Held> {
        let scope = Scope::parse(places).ok()?;
        let mut permissions = PermissionSet::empty();
        let unheard = scopes.iter().find(|name| !permissions.add(name, &self.declared));
        Some(match unheard {
            Some(name) => Held::Unheard((*name).to_owned()),
            None => Held::This(Grant { permissions, scope }),
        })
    }

    /// Who would call with what the server gave out.
    pub(super) fn given_out(&self, authenticator: &Authenticator, act: &Act) -> Holder {
        let (mut method, mut credential) = (act.method, &act.credential);
        for _ in 0..DEPTH_MAX {
            if method == Method::ApiKey {
                let off = || gone("API keys do not count: `auth.api_keys_enabled`");
                return if authenticator.takes_api_keys() { Holder::Same } else { off() };
            }
            let Some(Trade { by, held }) = self.traded.get(credential) else { break };
            match by.identity.source {
                Source::Database => (method, credential) = (by.method, &by.credential_id),
                Source::Idp => return promised(authenticator, &by.identity, held.as_ref(), act),
                Source::Config => {
                    return configured(authenticator, &by.credential_id, held.as_ref(), act);
                }
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
        let Some(permission) = &act.permission else { return Holder::Same };
        let place = act.actor.subject.strip_prefix("step:").unwrap_or_default();
        let place = place.split('/').next().and_then(|place| Namespace::parse(place).ok());
        if place.is_some_and(|place| !has(&self.steps.ceiling(&place), permission)) {
            return Holder::Gone(format!(
                "the ceiling of `[[auth.namespaces]]` leaves its step no `{permission}`"
            ));
        }
        Holder::Unknown("it hangs on whether who registered its template still holds it".to_owned())
    }
}

/// Traded for a JWT, whose claims it took with it. At the next start it ends
/// as a whole where its issuer may not have all that it holds any more.
fn promised(
    authenticator: &Authenticator,
    by: &Identity,
    held: Option<&Held>,
    act: &Act,
) -> Holder {
    let Some(ceiling) = authenticator.issuer_ceiling(&by.issuer) else {
        return Holder::Gone(format!(
            "it was traded for a token of {}, which is not in the configuration",
            by.issuer
        ));
    };
    let beyond = || {
        Holder::Gone(format!(
            "it was traded for a token of {}, whose ceiling does not reach so far",
            by.issuer
        ))
    };
    let Grant { permissions, scope } = ceiling;
    let reach = |name: &str| if has(&permissions, name) { scope.clone() } else { Scope::NOWHERE };
    backed(held, act, reach, beyond)
}

/// Traded for a key of the configuration, which must still hold all of it.
fn configured(authenticator: &Authenticator, id: &str, held: Option<&Held>, act: &Act) -> Holder {
    let key = authenticator.configured_keys().into_iter().find(|key| *key.id == *id);
    let Some(key) = key else {
        return gone("it was traded for an API key that is not in the configuration");
    };
    let less = || gone("it was traded for an API key that does not hold as much any more");
    backed(held, act, |name| key.principal.scope_of_named(name), less)
}

/// Whether what stands behind a token, by permission, holds all that the token
/// does; where that is not on record, whether it holds what was used.
fn backed(
    held: Option<&Held>,
    act: &Act,
    reach: impl Fn(&str) -> Scope,
    less: impl Fn() -> Holder,
) -> Holder {
    match held {
        Some(Held::Unheard(name)) => Holder::Gone(format!("it holds `{name}`, which is none")),
        Some(Held::This(Grant { permissions, scope })) => {
            let all = permissions.names().iter().all(|name| reach(name).covers(scope));
            if all { Holder::Same } else { less() }
        }
        None => {
            let used = |permission: &Arc<str>| {
                let reach = reach(permission);
                reach != Scope::NOWHERE && act.place.lies_in(&reach)
            };
            let everything =
                |permission: &Permission| reach(permission.name()) == Scope::Everything;
            if !act.permission.as_ref().is_none_or(used) {
                less()
            } else if Permission::ALL.iter().all(everything) {
                Holder::Same
            } else {
                Holder::Unknown("it may hold more than it used, and then ends".to_owned())
            }
        }
    }
}

fn has(permissions: &PermissionSet, name: &str) -> bool {
    match Permission::parse(name) {
        Some(own) => permissions.contains(own),
        None => permissions.contains_foreign(name),
    }
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
