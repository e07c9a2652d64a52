//! API keys in the store, which administrators of keys manage within their
//! namespaces.

use std::sync::Arc;

use super::{
    Admin, Error, PageRequest, Paged, Result, check_name, invalid, maker,
    page::{newest_first, page},
    tokens::{descent, shown_id, take_back},
};
use crate::{
    access::{Caller, Kind, Reason, Refusal},
    authn::Issue,
    authz::Claim,
    domain::{
        Namespace, Permission, PermissionSet, Principal, Scope, Timestamp, audit::Origin,
        permission::right::ApiKeysAdmin, secret::Secret,
    },
    storage::{CredentialKind, CredentialRecord},
};

/// The most permissions of one key.
const SCOPES_MAX: usize = 100;

/// An API key to be made.
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    /// What it is called.
    pub name: String,
    /// The permissions.
    pub scopes: Vec<String>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// Every permission.
    pub full_access: bool,
}

/// An API key that was made: the only moment at which it is known.
#[derive(Debug)]
pub struct Made {
    /// The key.
    pub secret: Secret,
    /// What is kept of it.
    pub record: CredentialRecord,
}

/// Whether an API key counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It counts.
    Active,
    /// It was taken back.
    Revoked,
    /// Its time is over.
    Expired,
}

/// An API key as it is shown.
#[derive(Clone, Debug)]
pub struct Key {
    /// What is known about it.
    pub issue: Arc<Issue>,
    /// Whether it counts now.
    pub state: State,
    /// Now.
    pub at: Timestamp,
}

impl Key {
    fn new(issue: Arc<Issue>, now: Timestamp) -> Self {
        let state = if issue.record.revoked_at.is_some() {
            State::Revoked
        } else if issue.is_live(now) {
            State::Active
        } else {
            State::Expired
        };
        Self { issue, state, at: now }
    }

    fn scope(&self) -> Scope {
        Scope::parse(&self.issue.record.namespaces).unwrap_or(Scope::Everything)
    }
}

/// Makes a key that holds no more than its maker (SE-40).
pub async fn create(
    admin: &Admin,
    caller: &Caller,
    claim: &Claim<ApiKeysAdmin>,
    scope: Scope,
    new: NewKey,
) -> Result<Made> {
    check_name(&new.name)?;
    let now = admin.now();
    if new.expires_at.is_some_and(|end| end <= now) {
        return Err(invalid("expires_at", "is in the past"));
    }
    match (new.scopes.is_empty(), new.full_access) {
        (true, false) => {
            let what = "name what the key may do, or say full_access for everything";
            return Err(invalid("scopes", what));
        }
        (false, true) => {
            return Err(invalid("full_access", "cannot stand beside scopes"));
        }
        (true, true) | (false, false) => {}
    }
    let scopes = admin.expanded(new.scopes);
    if !new.full_access && scopes.is_empty() {
        return Err(invalid("scopes", "these roles hold nothing"));
    }
    if scopes.len() > SCOPES_MAX || scopes.iter().any(|name| name == "*") {
        let what = format!("name 1 to {SCOPES_MAX} permissions; `*` is full_access");
        return Err(invalid("scopes", what));
    }
    let permissions =
        if new.full_access { PermissionSet::star() } else { admin.permissions(&scopes)? };
    reaches(caller.origin(), claim.lasting(), &permissions, &scope)?;
    let (created_by, created_with) = maker(&claim.stamp());
    let _turn = admin.turn(caller).await?;
    let Bounds { networks, end } = bounds(admin, &created_with, new.expires_at)?;
    let descent = descent(admin, [Some(&created_with), None])?;
    let record = CredentialRecord {
        id: "".into(),
        digest: [0; 32],
        kind: CredentialKind::ApiKey,
        name: Some(new.name),
        scopes: if new.full_access { vec!["*".to_owned()] } else { scopes },
        namespaces: scope.to_strings(),
        networks,
        created_by,
        created_with,
        created_at: now,
        expires_at: end,
        max_uses: None,
        uses: 0,
        parent: None,
        family: "".into(),
        descent,
        revoked_at: None,
        last_used_at: None,
    };
    let (secret, record) = admin.issue(record, None, &claim.stamp()).await?;
    tracing::info!(credential = &*record.id, by = %record.created_by, "API key created");
    Ok(Made { secret, record })
}

/// What a key has from its maker besides rights.
struct Bounds {
    networks: Vec<String>,
    end: Option<Timestamp>,
}

/// SE-40: a key made by a credential of ours lives no longer and reaches no
/// further than that one.
fn bounds(admin: &Admin, maker: &str, end: Option<Timestamp>) -> Result<Bounds> {
    let Some(maker) = admin.issued.get(maker) else {
        return Ok(Bounds { networks: Vec::new(), end });
    };
    if maker.record.max_uses.is_some() {
        return Err(forbidden("A credential whose uses are counted makes no keys"));
    }
    if maker.network_limits() > usize::from(!maker.record.networks.is_empty()) {
        return Err(forbidden(
            "This credential is bound to the networks of the one that it descends from, which a \
             key cannot be; use another one",
        ));
    }
    let networks = maker.record.networks.clone();
    let end = [end, maker.principal().not_after].into_iter().flatten().min();
    Ok(Bounds { networks, end })
}

fn forbidden(message: &str) -> Error {
    Refusal::new(Kind::Forbidden, Reason::PermissionMissing, message).into()
}

/// [`holds_all`], and what is lacking is noted with the call.
pub(super) fn reaches(
    call: &Origin,
    maker: &Principal,
    wanted: &PermissionSet,
    scope: &Scope,
) -> Result<()> {
    holds_all(maker, wanted, scope).inspect_err(|_| match lacking(maker, wanted, scope) {
        Some(missing) => {
            let places = scope.to_strings();
            call.lacks(missing, places.iter().map(String::as_str));
        }
        None => call.lacks_some(),
    })
}

/// The first right of ours that its maker does not hold in all of a scope.
fn lacking(maker: &Principal, wanted: &PermissionSet, scope: &Scope) -> Option<Permission> {
    let mut own = wanted.own().filter(|_| !wanted.is_star());
    own.find(|right| !maker.scope_of(*right).covers(scope))
}

/// SE-40: each right of the key must be its maker's, in all of the key's
/// namespaces; everything only from who holds everything everywhere.
pub(super) fn holds_all(maker: &Principal, wanted: &PermissionSet, scope: &Scope) -> Result<()> {
    if wanted.is_star() {
        let everything = maker
            .grants
            .iter()
            .any(|grant| grant.permissions.is_star() && grant.scope == Scope::Everything);
        if everything && maker.worker_scope.is_none() {
            return Ok(());
        }
        return Err(forbidden("full_access needs `*` in every namespace"));
    }
    if let Some(missing) = lacking(maker, wanted, scope) {
        return Err(Refusal::permission_missing(missing).into());
    }
    let foreign_scope = |name: &str| {
        let grants = maker.grants.iter().filter(|grant| grant.permissions.contains_foreign(name));
        grants.fold(Scope::NOWHERE, |all, grant| all.union(grant.scope.clone()))
    };
    match wanted.foreign().find(|name| !foreign_scope(name).covers(scope)) {
        Some(name) => Err(forbidden(&format!("Missing required permission: {name}"))),
        None => Ok(()),
    }
}

/// Keys that lie in the scope as a whole, newest first.
pub fn list(
    admin: &Admin,
    claim: &Claim<ApiKeysAdmin>,
    namespace: Option<&Namespace>,
    request: &PageRequest,
) -> Result<Paged<Key>> {
    let now = admin.now();
    let wanted = |key: &Key| {
        let scope = key.scope();
        claim.scope().covers(&scope) && namespace.is_none_or(|namespace| scope.contains(namespace))
    };
    let keys = admin.issued.all(CredentialKind::ApiKey).into_iter();
    let keys = keys.map(|issue| Key::new(issue, now)).filter(wanted).collect();
    let list = format!("api_keys {}", namespace.map_or("", Namespace::as_str));
    page(&list, claim.identity(), request, keys, |key| newest_first(&key.issue.record))
}

/// One key; hidden and absent answer alike.
pub fn get(admin: &Admin, claim: &Claim<ApiKeysAdmin>, id: &str) -> Result<Key> {
    admin
        .issued
        .get(id)
        .filter(|issue| issue.record.kind == CredentialKind::ApiKey)
        .map(|issue| Key::new(issue, admin.now()))
        .filter(|key| claim.scope().covers(&key.scope()))
        .ok_or_else(|| absent(id))
}

/// Takes a key back, with `cascade` also what it made; a second time changes
/// nothing.
pub async fn revoke(
    admin: &Admin,
    caller: &Caller,
    claim: &Claim<ApiKeysAdmin>,
    id: &str,
    cascade: bool,
) -> Result<Key> {
    let _turn = admin.turn(caller).await?;
    let key = get(admin, claim, id)?;
    let record = &key.issue.record;
    let ids = if cascade {
        admin.issued.below(&[Arc::clone(&record.family)])
    } else if key.state == State::Revoked {
        Vec::new()
    } else {
        vec![Arc::clone(&record.id)]
    };
    if !ids.is_empty() {
        take_back(admin, &ids, &claim.stamp(), admin.now()).await?;
        tracing::info!(credential = id, count = ids.len(), by = %claim.identity(), "API key revoked");
    }
    get(admin, claim, id)
}

/// Removes a key that counts no more (ZE-22).
pub async fn delete(
    admin: &Admin,
    caller: &Caller,
    claim: &Claim<ApiKeysAdmin>,
    id: &str,
) -> Result<()> {
    let _turn = admin.turn(caller).await?;
    if get(admin, claim, id)?.state == State::Active {
        let message = "The key still counts; revoke it first";
        return Err(Refusal::new(Kind::Precondition, Reason::CredentialState, message).into());
    }
    admin.store.delete_credential(id, &claim.stamp(), admin.now()).await?;
    admin.issued.remove(id);
    Ok(())
}

fn absent(id: &str) -> Error {
    Refusal::not_found("API key", shown_id(id)).into()
}
