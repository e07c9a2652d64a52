//! What the server keeps, and the use cases over it: built in the one order in
//! which they need each other.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use super::{Error, auditor::Auditor, scheduler};
use crate::{
    access::Gate,
    admin::{
        Admin, FileTokens, Tokens,
        elevation::{Bounds, Elevating},
    },
    authn::Authenticator,
    config::{Jwt, Mode, Settings, Storage, TokenStore},
    domain::{Clock, Grant, PermissionSet},
    engine::{Engine, Floor},
    schedule::Scheduler,
    signing::{STEP, SigningKeys, StepTokens},
    storage::{LeaseTerms, Store, sqlite, token_file::TokenFile},
};

/// What the server keeps, and who gets at it.
pub(super) struct Core {
    pub(super) store: Arc<dyn Store>,
    pub(super) admin: Arc<Admin>,
    pub(super) elevating: Arc<Elevating>,
    pub(super) gate: Gate,
    pub(super) engine: Arc<Engine>,
    pub(super) scheduler: Arc<Scheduler>,
    pub(super) auditor: Auditor,
    pub(super) keys: Arc<SigningKeys>,
    pub(super) tokens: Option<Arc<StepTokens>>,
}

/// Opens the store and builds the use cases over it.
pub(super) async fn core(
    settings: &Settings,
    own: Vec<SocketAddr>,
    authenticator: Authenticator,
    clock: &Arc<dyn Clock>,
) -> Result<Core, Error> {
    let floor = Floor::new();
    let store = open(settings, Arc::clone(&floor), Arc::clone(clock)).await?;
    let rights = &settings.step_tokens.rights;
    let keys = signing_keys(settings, &store, clock).await?;
    let authenticator = authenticator.with_step_tokens(&keys, rights);
    let admin =
        admin(&authenticator, settings, (Arc::clone(&store), &keys), Arc::clone(clock)).await?;
    let credentials = Some(Arc::clone(&store));
    let rates = &settings.limits.rates;
    let service = &settings.telemetry.service_name;
    let auditor = Auditor::open(&settings.audit, service, &store, clock).await?;
    let journal = auditor.journal.clone();
    let elevating = elevating(&authenticator, settings, &store, clock).await?;
    let gate = Gate::new(authenticator, credentials, rates, Arc::clone(clock), journal);
    let standing = Arc::new(gate.clone());
    let tokens =
        StepTokens::new(Arc::clone(&keys), Arc::clone(rights), standing, Arc::clone(clock));
    let (terms, rights) = (lease_terms(settings), Arc::clone(rights));
    let engine = Engine::with_rights(Arc::clone(&store), floor, Arc::clone(clock), terms, rights);
    let scheduler = scheduler::open(settings, own, &store, &engine, &gate, clock).await?;
    Ok(Core { store, admin, elevating, gate, engine, scheduler, auditor, keys, tokens })
}

/// The keys that sign, with a first one where steps have tokens.
async fn signing_keys(
    settings: &Settings,
    store: &Arc<dyn Store>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<SigningKeys>, Error> {
    let source = settings.step_tokens.key.clone();
    let keys = SigningKeys::open(Arc::clone(store), source, Arc::clone(clock)).await?;
    if settings.step_tokens.rights.issuer().is_some() {
        keys.ensure(STEP).await?;
    }
    Ok(keys)
}

async fn open(
    settings: &Settings,
    floor: Arc<Floor>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Store>, Error> {
    let Storage::Sqlite(path) = &settings.storage;
    let store = sqlite::Settings::new(path.clone()).with_terms(lease_terms(settings));
    let store = store.audited(settings.audit.enabled);
    Ok(sqlite::Sqlite::open(store, floor, clock).await?)
}

/// More rights for a while, with what the store holds taken up.
async fn elevating(
    authenticator: &Authenticator,
    settings: &Settings,
    store: &Arc<dyn Store>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<Elevating>, Error> {
    let (raised, issued) = (authenticator.elevations(), authenticator.issued());
    let opened = Elevating::open(
        Arc::clone(store),
        Arc::clone(raised),
        Arc::clone(issued),
        Arc::clone(clock),
        Bounds { longest: settings.elevation_max, issuers: issuers(&settings.auth.mode) },
    );
    opened.await.map_err(Error::Credentials)
}

/// The use cases about credentials, with what the store holds taken up.
async fn admin(
    authenticator: &Authenticator,
    settings: &Settings,
    (store, keys): (Arc<dyn Store>, &Arc<SigningKeys>),
    clock: Arc<dyn Clock>,
) -> Result<Arc<Admin>, Error> {
    let foreign = &settings.auth.extra_permissions;
    let tokens = match &settings.auth.token_store {
        TokenStore::Database => Tokens::Database,
        TokenStore::File(path) => {
            Tokens::File(FileTokens::new(TokenFile::new(path.clone(), foreign.clone())))
        }
    };
    let admin = Admin {
        store,
        tokens,
        issued: Arc::clone(authenticator.issued()),
        recalls: Arc::clone(authenticator.recalls()),
        keys: Arc::clone(keys),
        configured: authenticator.configured_keys(),
        foreign: foreign.clone(),
        issuers: issuers(&settings.auth.mode),
        api_keys_enabled: authenticator.takes_api_keys(),
        auth_on: !matches!(settings.auth.mode, Mode::Off),
        roles: role_names(settings),
        clock,
        unused_after_days: settings.auth.disable_unused_after_days,
        order: tokio::sync::Mutex::default(),
    };
    admin.load().await.map_err(Error::Credentials)?;
    Ok(Arc::new(admin))
}

/// The issuers, with the ceilings of their tokens.
fn issuers(mode: &Mode) -> BTreeMap<Arc<str>, Grant> {
    let ceiling = |jwt: &Jwt| Grant {
        permissions: jwt.permissions_ceiling.clone(),
        scope: jwt.namespaces_ceiling.clone(),
    };
    match mode {
        Mode::Off => BTreeMap::new(),
        Mode::On(known) => {
            known.issuers.iter().map(|jwt| (Arc::clone(&jwt.issuer), ceiling(jwt))).collect()
        }
    }
}

/// What each `role:NAME` stands for.
fn role_names(settings: &Settings) -> BTreeMap<String, Vec<String>> {
    let named = |(name, set): (&str, &PermissionSet)| (format!("role:{name}"), set.names());
    settings.roles.iter().map(named).collect()
}

fn lease_terms(settings: &Settings) -> LeaseTerms {
    LeaseTerms::lasting(settings.limits.lease)
}
