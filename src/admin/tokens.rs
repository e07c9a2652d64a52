//! Minted tokens, which root alone manages.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

pub use super::tighten::{Tighten, Tightened, tighten};
use super::{
    Admin, Error, PageRequest, Paged, Result, Tokens, check_name, invalid, maker,
    page::{newest_first, page},
    token_file::TokenId,
};
use crate::{
    access::{Caller, Kind, Reason, Refusal},
    authn::{ANCESTORS_MAX, ConfiguredKey, Issue},
    authz::Root,
    domain::{Network, Scope, Timestamp, history::Stamp, principal::Source, secret::Secret},
    storage::{CredentialKind, CredentialRecord, Recall},
};

/// The longest overlap of a rotation.
const OVERLAP_SECONDS_MAX: u32 = 24 * 60 * 60;
/// The most entries of a list in a request.
const LIST_MAX: usize = 100;

/// Why a restriction is refused with a token file.
const NOT_IN_FILE: &str = "cannot be kept in the token file; it needs the setting \
    `auth.token_store = \"database\"`";

/// A token to be minted.
#[derive(Clone, Debug, Default)]
pub struct NewToken {
    /// The permissions.
    pub scopes: Vec<String>,
    /// What it is called.
    pub name: Option<String>,
    /// Where the permissions hold; everywhere when empty.
    pub namespaces: Vec<String>,
    /// After how many seconds it ends.
    pub expires_in_seconds: Option<u32>,
    /// How many calls it opens.
    pub max_uses: Option<u32>,
    /// The networks that it may be used from; all when empty.
    pub client_networks: Vec<String>,
    /// The token that it descends from.
    pub parent: Option<String>,
}

/// A token that was minted: the only moment at which it is known.
#[derive(Debug)]
pub struct Minted {
    /// The token.
    pub secret: Secret,
    /// What is kept of it.
    pub record: CredentialRecord,
}

/// A token or key as it is shown.
#[derive(Clone, Debug)]
pub enum Shown {
    /// Of the token store, at this moment.
    Minted(Arc<Issue>, Timestamp),
    /// Of the configuration.
    Configured(ConfiguredKey),
}

impl Shown {
    /// Where it stands in the list: minted ones first.
    fn place(&self) -> String {
        match self {
            Self::Minted(issue, _) => format!("0 {}", newest_first(&issue.record)),
            Self::Configured(key) => format!("1 {}", key.id),
        }
    }
}

/// Mints a token; it works from this moment on (DK-30).
pub async fn mint(
    admin: &Admin,
    caller: &Caller,
    root: &Root,
    mut new: NewToken,
) -> Result<Minted> {
    let scopes = admin.expanded(std::mem::take(&mut new.scopes));
    check_scopes(admin, &scopes)?;
    let namespaces = check_restrictions(admin, &new)?;
    let _turn = admin.turn(caller).await?;
    let now = admin.now();
    let parent = match new.parent.as_deref().filter(|parent| !parent.is_empty()) {
        Some(prefix) => Some(fit_parent(admin, prefix, now)?),
        None => None,
    };
    let (created_by, created_with) = maker(&root.stamp());
    let descent = descent(admin, [Some(&created_with), parent.as_ref()])?;
    let life = |seconds: u32| now.plus(Duration::from_secs(seconds.into()));
    let record = CredentialRecord {
        id: "".into(),
        digest: [0; 32],
        kind: CredentialKind::Token,
        name: new.name,
        scopes,
        namespaces: namespaces.to_strings(),
        networks: new.client_networks,
        created_by,
        created_with,
        created_at: now,
        expires_at: new.expires_in_seconds.map(life),
        max_uses: new.max_uses,
        uses: 0,
        parent,
        family: "".into(),
        descent,
        revoked_at: None,
        last_used_at: None,
    };
    let (secret, record) = match &admin.tokens {
        Tokens::Database => admin.issue(record, None, &root.stamp()).await?,
        Tokens::File(tokens) => {
            tokens.issue(admin, record, None, &root.stamp()).await?.ok_or_else(|| absent(""))?
        }
    };
    tracing::info!(credential = &*record.id, by = %record.created_by, "token minted");
    Ok(Minted { secret, record })
}

/// SE-39: children of a token whose uses are counted would not be counted.
fn fit_parent(admin: &Admin, prefix: &str, now: Timestamp) -> Result<Arc<str>> {
    let parent = live_token(admin, prefix, now)
        .ok_or_else(|| invalid("parent", "no token that counts has this prefix"))?;
    if parent.record.max_uses.is_some() {
        return Err(invalid("parent", "its uses are counted; such a token has no children"));
    }
    Ok(Arc::clone(&parent.record.id))
}

/// The lines that a new credential descends from by these credentials.
pub(super) fn descent(admin: &Admin, ancestors: [Option<&Arc<str>>; 2]) -> Result<Vec<Arc<str>>> {
    let lines = ancestors.into_iter().flatten().flat_map(|id| admin.descent(id));
    let lines: BTreeSet<Arc<str>> = lines.collect();
    if lines.len() >= ANCESTORS_MAX {
        let message = format!("A credential descends from {ANCESTORS_MAX} others at most");
        return Err(state(&message));
    }
    Ok(lines.into_iter().collect())
}

/// Checks all but the scopes; answers the namespaces.
fn check_restrictions(admin: &Admin, new: &NewToken) -> Result<Scope> {
    if let Some(name) = &new.name {
        check_name(name)?;
    }
    for (field, list) in
        [("namespaces", &new.namespaces), ("client_networks", &new.client_networks)]
    {
        if list.len() > LIST_MAX {
            return Err(invalid(field, format!("has at most {LIST_MAX} entries")));
        }
    }
    let namespaces = if new.namespaces.is_empty() {
        Scope::Everything
    } else {
        Scope::parse(&new.namespaces).map_err(|error| invalid("namespaces", error))?
    };
    if let Some(bad) = new.client_networks.iter().find(|text| Network::parse(text).is_err()) {
        let what = format!("`{}` is no network, as 10.1.0.0/16", bad.escape_default());
        return Err(invalid("client_networks", what));
    }
    for (field, value) in
        [("expires_in_seconds", new.expires_in_seconds), ("max_uses", new.max_uses)]
    {
        if value == Some(0) {
            return Err(invalid(field, "must be at least 1; leave it out for no limit"));
        }
    }
    if let Tokens::File(_) = &admin.tokens {
        check_fits_file(new, &namespaces)?;
    }
    Ok(namespaces)
}

/// SE-34: what a line of the file cannot say, its token would lose.
fn check_fits_file(new: &NewToken, namespaces: &Scope) -> Result<()> {
    let asked = [
        ("namespaces", *namespaces != Scope::Everything),
        ("expires_in_seconds", new.expires_in_seconds.is_some()),
        ("max_uses", new.max_uses.is_some()),
        ("client_networks", !new.client_networks.is_empty()),
        ("parent", new.parent.as_deref().is_some_and(|parent| !parent.is_empty())),
    ];
    match asked.into_iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(invalid(field, NOT_IN_FILE)),
        None => Ok(()),
    }
}

/// DK-23, DK-24, SE-35: never everything, never the power to mint.
fn check_scopes(admin: &Admin, scopes: &[String]) -> Result<()> {
    if scopes.is_empty() || scopes.len() > LIST_MAX {
        return Err(invalid("scopes", format!("name 1 to {LIST_MAX} permissions")));
    }
    if scopes.iter().any(|scope| scope == "*") {
        return Err(invalid("scopes", "`*` cannot be minted; name what the token needs"));
    }
    if scopes.iter().any(|scope| scope == "auth:tokens" || scope.starts_with("auth:tokens:")) {
        return Err(invalid("scopes", "managing tokens is for root alone and cannot be minted"));
    }
    admin.permissions(scopes).map(|_| ())
}

/// Tokens that count, minted and exchanged, newest first; then the keys of the
/// configuration (DK-46).
pub fn list(admin: &Admin, root: &Root, request: &PageRequest) -> Result<Paged<Shown>> {
    let now = admin.now();
    let mut given = admin.issued.all(CredentialKind::Token);
    given.extend(admin.issued.all(CredentialKind::Exchanged));
    given.sort_by_key(|issue| newest_first(&issue.record));
    let mut configured = admin.configured.clone();
    configured.sort_by(|a, b| a.id.cmp(&b.id));
    let all = given
        .into_iter()
        .filter(|issue| issue.is_live(now))
        .map(|issue| Shown::Minted(issue, now))
        .chain(configured.into_iter().map(Shown::Configured))
        .collect();
    page("tokens", &root.principal().identity, request, all, Shown::place)
}

/// One token or key by its whole public id.
pub fn get(admin: &Admin, _: &Root, prefix: &str) -> Result<Shown> {
    let configured = admin.configured.iter().find(|key| *key.id == *prefix).cloned();
    let now = admin.now();
    let exchanged = || {
        let found = admin.issued.get(prefix)?;
        let shown = found.record.kind == CredentialKind::Exchanged && found.is_live(now);
        shown.then_some(found)
    };
    live_token(admin, prefix, now)
        .or_else(exchanged)
        .map(|issue| Shown::Minted(issue, now))
        .or_else(|| configured.map(Shown::Configured))
        .ok_or_else(|| absent(prefix))
}

/// Takes a token back; answers the public ids of all that went with it.
pub async fn revoke(
    admin: &Admin,
    caller: &Caller,
    root: &Root,
    prefix: &str,
    cascade: bool,
) -> Result<Vec<Arc<str>>> {
    if *root.principal().credential_id == *prefix {
        return Err(state(
            "This is the credential of this very call; use another one to revoke it",
        ));
    }
    if admin.configured.iter().any(|key| *key.id == *prefix) {
        return Err(state(
            "This key comes from the configuration; take it out there and restart the server",
        ));
    }
    let _turn = admin.turn(caller).await?;
    let now = admin.now();
    let found = admin.issued.get(prefix);
    if found.as_ref().is_some_and(|issue| issue.record.kind == CredentialKind::ApiKey) {
        return Err(state("This is an API key, not a token; revoke it as one"));
    }
    let ids = if cascade {
        // Also when the token itself is over or gone.
        let family = found.map_or_else(|| prefix.into(), |it| Arc::clone(&it.record.family));
        admin.issued.below(&[family])
    } else {
        // The last possibility is one that was exchanged.
        let token = found.filter(|issue| issue.is_live(now));
        token.iter().map(|token| Arc::clone(&token.record.id)).collect()
    };
    if ids.is_empty() {
        return Err(absent(prefix));
    }
    take_back(admin, &ids, &root.stamp(), now).await?;
    tracing::info!(credential = prefix, count = ids.len(), by = %root.principal().identity, "token revoked");
    Ok(ids)
}

/// The file last: what fails before can be tried again. The caller has its
/// turn.
pub(super) async fn take_back(
    admin: &Admin,
    ids: &[Arc<str>],
    stamp: &Stamp,
    now: Timestamp,
) -> Result<()> {
    let mut in_database = ids.to_vec();
    let mut of_file: Vec<TokenId> = Vec::new();
    if let Tokens::File(_) = &admin.tokens {
        // API keys that a token made are in the database all the same.
        let found = ids.iter().filter_map(|id| admin.issued.get(id));
        let tokens = found.filter(|issue| issue.record.kind == CredentialKind::Token);
        of_file.extend(tokens.map(|issue| TokenId::from(&issue.record)));
        in_database.retain(|id| of_file.iter().all(|token| token.id != *id));
    }
    if !in_database.is_empty() {
        admin.store.revoke_credentials(&in_database, stamp, now).await?;
    }
    for id in &in_database {
        admin.issued.change(id, |record| record.revoked_at = record.revoked_at.or(Some(now)));
    }
    match (&admin.tokens, of_file.first()) {
        (Tokens::File(tokens), Some(first)) if !tokens.revoke(admin, &of_file, stamp).await? => {
            Err(absent(&first.id))
        }
        (Tokens::File(_) | Tokens::Database, _) => Ok(()),
    }
}

/// Mints the successor of a token: the same rights, the same end, the same
/// family (SE-39).
pub async fn rotate(
    admin: &Admin,
    caller: &Caller,
    root: &Root,
    prefix: &str,
    overlap_seconds: u32,
) -> Result<Minted> {
    let _turn = admin.turn(caller).await?;
    let old = rotatable(admin, prefix, overlap_seconds)?;
    let scopes = old.record.scopes.clone();
    succeed(admin, root, &old, overlap_seconds, scopes).await
}

/// A token that counts and may have a successor with this overlap.
pub(super) fn rotatable(admin: &Admin, prefix: &str, overlap_seconds: u32) -> Result<Arc<Issue>> {
    if overlap_seconds > OVERLAP_SECONDS_MAX {
        let what = format!("at most {OVERLAP_SECONDS_MAX} seconds");
        return Err(invalid("overlap_seconds", what));
    }
    if overlap_seconds > 0 && matches!(admin.tokens, Tokens::File(_)) {
        return Err(invalid("overlap_seconds", NOT_IN_FILE));
    }
    if admin.configured.iter().any(|key| *key.id == *prefix) {
        return Err(state("This key comes from the configuration; change it there"));
    }
    let old = live_token(admin, prefix, admin.now()).ok_or_else(|| absent(prefix))?;
    if old.record.max_uses.is_some() && overlap_seconds > 0 {
        let what = "a token whose uses are counted has no overlap: both would count";
        return Err(invalid("overlap_seconds", what));
    }
    Ok(old)
}

/// Mints the successor, with these scopes. The caller holds the order.
pub(super) async fn succeed(
    admin: &Admin,
    root: &Root,
    old: &Issue,
    overlap_seconds: u32,
    scopes: Vec<String>,
) -> Result<Minted> {
    let now = admin.now();
    let end = now.plus(Duration::from_secs(overlap_seconds.into()));
    let (created_by, created_with) = maker(&root.stamp());
    let record = CredentialRecord {
        created_by,
        created_with,
        created_at: now,
        scopes,
        uses: old.uses(),
        last_used_at: None,
        ..old.record.clone()
    };
    let (secret, record) = match &admin.tokens {
        Tokens::Database => {
            let replaces = Some((Arc::clone(&old.record.id), end));
            let issued = admin.issue(record, replaces, &root.stamp()).await?;
            admin.issued.change(&old.record.id, |old| {
                old.expires_at = Some(old.expires_at.map_or(end, |known| known.min(end)));
            });
            issued
        }
        Tokens::File(tokens) => {
            let id = TokenId::from(&old.record);
            let issued = tokens.issue(admin, record, Some(&id), &root.stamp()).await?;
            issued.ok_or_else(|| absent(&old.record.id))?
        }
    };
    tracing::info!(
        credential = &*old.record.id,
        successor = &*record.id,
        by = %record.created_by,
        "token rotated"
    );
    Ok(Minted { secret, record })
}

/// Takes back every JWT of an issuer, or of one of its subjects, that was
/// issued until now (SE-47), with `cascade` also what they made; answers that
/// moment and the public ids of what went with them.
pub async fn revoke_subject(
    admin: &Admin,
    caller: &Caller,
    root: &Root,
    issuer: String,
    subject: Option<String>,
    cascade: bool,
) -> Result<(Timestamp, Vec<Arc<str>>)> {
    if !admin.issuers.contains_key(issuer.as_str()) {
        let known: Vec<&str> = admin.issuers.keys().map(AsRef::as_ref).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let what = format!("is no issuer that this server takes tokens of; there are: {known}");
        return Err(invalid("issuer", what));
    }
    if subject.as_deref() == Some("") {
        return Err(invalid("subject", "is empty; leave it out to revoke the whole issuer"));
    }
    let _turn = admin.turn(caller).await?;
    let recall = Recall { issuer, subject, until: admin.now() };
    admin.store.recall(&recall, &root.stamp()).await?;
    let until = recall.until;
    tracing::info!(
        issuer = recall.issuer,
        subject = recall.subject,
        by = %root.principal().identity,
        "JWTs revoked"
    );
    admin.recalls.insert(recall.clone());
    if !cascade {
        return Ok((until, Vec::new()));
    }
    let made = admin.issued.made_by(|maker| {
        maker.source == Source::Idp
            && *maker.issuer == *recall.issuer
            && recall.subject.as_deref().is_none_or(|subject| *maker.subject == *subject)
    });
    let ids = admin.issued.below(&made);
    take_back(admin, &ids, &root.stamp(), until).await?;
    Ok((until, ids))
}

fn live_token(admin: &Admin, prefix: &str, now: Timestamp) -> Option<Arc<Issue>> {
    admin
        .issued
        .get(prefix)
        .filter(|issue| issue.record.kind == CredentialKind::Token && issue.is_live(now))
}

/// What stands in the place of an id may be the secret itself: only what has
/// the form of an id is said again.
pub(super) fn shown_id(id: &str) -> &str {
    let fits = id.len() <= 16 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if fits { id } else { "what was given is no public id, which has 12 letters and digits" }
}

fn absent(prefix: &str) -> Error {
    Refusal::not_found("token", shown_id(prefix)).into()
}

fn state(message: &str) -> Error {
    Refusal::new(Kind::Invalid, Reason::CredentialState, message).into()
}
