//! Token exchange (RFC 8693): a caller trades its credential for a token that
//! holds less and ends sooner.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    Admin, Error, Result, Tokens,
    api_keys::{holds_all, reaches},
    invalid, maker,
    tokens::{Minted, descent},
};
use crate::{
    access::{Caller, Kind, Reason, Refusal},
    authn::Issue,
    domain::{
        Permission, PermissionSet, Principal, Scope, Timestamp,
        history::Stamp,
        principal::{Identity, Source},
    },
    storage::{self, CredentialKind, CredentialRecord},
};

/// What alone is served.
const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// What alone is given.
pub const TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:access_token";
/// The longest life of a token, and the usual one, in seconds.
const LIFE_MAX: u32 = 60 * 60;
const LIFE_USUAL: u32 = 10 * 60;
/// How often a token that came from an exchange is exchanged again.
const DEPTH_MAX: usize = 4;
/// How many a caller has at once, with all that were traded for these.
const HELD_MAX: usize = 100;
/// The most entries of a list in a request.
const LIST_MAX: usize = 100;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// What is to be done.
    pub grant_type: String,
    /// What is wanted, where that is said.
    pub requested_token_type: Option<String>,
    /// The permissions, separated by spaces.
    pub scope: String,
    /// Where they hold; where all of them are held when empty.
    pub namespaces: Vec<String>,
    /// After how many seconds it ends.
    pub expires_in: Option<u32>,
}

/// A token that was given for another one.
#[derive(Debug)]
pub struct Exchanged {
    /// The token, and what is kept of it.
    pub minted: Minted,
    /// After how many seconds it ends.
    pub expires_in: u32,
}

/// Trades the caller's credential. `own` is whether the one that the request
/// names, if any, is the caller's.
pub async fn exchange(
    admin: &Admin,
    caller: &Caller,
    own: bool,
    asked: Exchange,
) -> Result<Exchanged> {
    if let Tokens::File(_) = &admin.tokens {
        let message = "Exchanged tokens cannot be kept in the token file; they need the setting \
                       `auth.token_store = \"database\"`";
        return Err(state(message));
    }
    check_form(&asked, own)?;
    let _turn = admin.turn(caller).await?;
    let principal = &**caller.lasting();
    let parent = parent(admin, principal)?;
    let scopes: Vec<String> = asked.scope.split_ascii_whitespace().map(str::to_owned).collect();
    let scopes = admin.expanded(scopes);
    if scopes.is_empty() || scopes.len() > LIST_MAX {
        return Err(invalid("scope", format!("name 1 to {LIST_MAX} permissions")));
    }
    if scopes.iter().any(|name| name == "*") {
        return Err(invalid("scope", "`*` is not given; name what the token needs"));
    }
    let permissions = admin.permissions(&scopes)?;
    let scope = if asked.namespaces.is_empty() {
        common(principal, &permissions)
    } else {
        Scope::parse(&asked.namespaces).map_err(|error| invalid("namespaces", error))?
    };
    if scope == Scope::NOWHERE {
        let message = "There is no namespace in which all of these permissions are held";
        caller.origin().lacks_some();
        return Err(Refusal::new(Kind::Forbidden, Reason::PermissionMissing, message).into());
    }
    reaches(caller.origin(), principal, &permissions, &scope)?;

    let now = admin.now();
    let stamp = Stamp::of(Arc::clone(caller.origin()));
    let (created_by, created_with) = maker(&stamp);
    check_count(admin, parent.as_ref(), &created_by, now)?;
    let life = Duration::from_secs(asked.expires_in.unwrap_or(LIFE_USUAL).into());
    let end = principal.not_after.map_or_else(|| now.plus(life), |end| end.min(now.plus(life)));
    let expires_in = u32::try_from(now.until(end).as_secs()).unwrap_or(0);
    let record = CredentialRecord {
        id: "".into(),
        digest: [0; 32],
        kind: CredentialKind::Exchanged,
        name: None,
        scopes,
        namespaces: scope.to_strings(),
        networks: Vec::new(),
        descent: descent(admin, [Some(&created_with), None])?,
        created_by,
        created_with,
        created_at: now,
        expires_at: Some(end),
        max_uses: None,
        uses: 0,
        parent: parent.map(|parent| Arc::clone(&parent.record.id)),
        family: "".into(),
        revoked_at: None,
        last_used_at: None,
    };
    let (secret, record) = admin.issue(record, None, &stamp).await?;
    tracing::info!(credential = &*record.id, by = %record.created_by, "token exchanged");
    Ok(Exchanged { minted: Minted { secret, record }, expires_in })
}

fn check_form(asked: &Exchange, own: bool) -> Result<()> {
    if asked.grant_type != GRANT_TYPE {
        return Err(invalid("grant_type", format!("must be `{GRANT_TYPE}`")));
    }
    if asked.requested_token_type.as_deref().is_some_and(|wanted| wanted != TOKEN_TYPE) {
        return Err(invalid("requested_token_type", format!("must be `{TOKEN_TYPE}`")));
    }
    if !own {
        let what = "must be the credential that the call is made with; leave it out";
        return Err(invalid("subject_token", what));
    }
    if asked.namespaces.len() > LIST_MAX {
        return Err(invalid("namespaces", format!("has at most {LIST_MAX} entries")));
    }
    match asked.expires_in {
        Some(seconds) if seconds == 0 || seconds > LIFE_MAX => {
            Err(invalid("expires_in", format!("must be 1 to {LIFE_MAX} seconds")))
        }
        Some(_) | None => Ok(()),
    }
}

/// The credential of ours that the new one hangs on; none where the caller's
/// is another's. Those that nothing could end again trade nothing.
fn parent(admin: &Admin, principal: &Principal) -> Result<Option<Arc<Issue>>> {
    match principal.identity.source {
        Source::Config | Source::Idp => return Ok(None),
        Source::Database => {}
        Source::File
        | Source::Line
        | Source::Agent
        | Source::Lease
        | Source::Session
        | Source::Certificate
        | Source::Disabled => {
            return Err(state("A credential of this kind cannot be exchanged"));
        }
    }
    let own = admin.issued.get(&principal.credential_id);
    let own = own.ok_or_else(|| state("The credential is not there any more"))?;
    if own.record.max_uses.is_some() {
        return Err(state("A credential whose uses are counted cannot be exchanged"));
    }
    if chain(admin, &own).len() >= DEPTH_MAX {
        let message = format!("A token is exchanged {DEPTH_MAX} times at most");
        return Err(state(&message));
    }
    Ok(Some(own))
}

/// A credential with those that it was traded for, back to the first exchange.
fn chain(admin: &Admin, issue: &Arc<Issue>) -> Vec<Arc<Issue>> {
    let before = |issue: &Arc<Issue>| admin.issued.get(issue.record.parent.as_deref()?);
    std::iter::successors(Some(Arc::clone(issue)), before)
        .take_while(|issue| issue.record.kind == CredentialKind::Exchanged)
        .take(DEPTH_MAX)
        .collect()
}

/// Who made the first exchange behind a token.
fn first_maker(admin: &Admin, issue: &Arc<Issue>) -> Option<Identity> {
    chain(admin, issue).last().map(|first| first.record.created_by.clone())
}

fn check_count(
    admin: &Admin,
    parent: Option<&Arc<Issue>>,
    maker: &Identity,
    now: Timestamp,
) -> Result<()> {
    let first = parent.and_then(|own| first_maker(admin, own)).unwrap_or_else(|| maker.clone());
    let held = admin.issued.all(CredentialKind::Exchanged).into_iter();
    let held = held.filter(|issue| {
        issue.is_live(now) && first_maker(admin, issue).is_some_and(|maker| maker == first)
    });
    if held.count() >= HELD_MAX {
        let message =
            format!("A caller has {HELD_MAX} exchanged tokens at most; wait until some end");
        return Err(Refusal::new(Kind::TooMany, Reason::RateLimited, message).into());
    }
    Ok(())
}

/// Where all of these permissions are held.
fn common(principal: &Principal, wanted: &PermissionSet) -> Scope {
    let own = wanted.own().map(|permission: Permission| principal.scope_of(permission));
    let foreign = wanted.foreign().map(|name| {
        let grants = principal.grants.iter();
        let grants = grants.filter(|grant| grant.permissions.contains_foreign(name));
        grants.fold(Scope::NOWHERE, |all, grant| all.union(grant.scope.clone()))
    });
    own.chain(foreign).reduce(|common, scope| common.intersection(&scope)).unwrap_or(Scope::NOWHERE)
}

fn state(message: &str) -> Error {
    Refusal::new(Kind::Invalid, Reason::CredentialState, message).into()
}

impl Admin {
    /// Whether an exchanged token of an earlier start still stands for what it
    /// was traded for: a key that is still configured, an issuer that is still
    /// trusted with as much. Those of the database hang on their parents;
    /// `keys` are the API keys among these, which may not count any more.
    fn still_backed(&self, record: &CredentialRecord, keys: &BTreeSet<Arc<str>>) -> bool {
        let scope = Scope::parse(&record.namespaces).unwrap_or(Scope::Everything);
        let held = self.permissions(&record.scopes);
        match record.created_by.source {
            Source::Database => record
                .parent
                .as_ref()
                .is_some_and(|parent| self.api_keys_enabled || !keys.contains(parent)),
            Source::Idp => {
                let ceiling = self.issuers.get(&record.created_by.issuer);
                ceiling.is_some_and(|ceiling| {
                    ceiling.scope.covers(&scope)
                        && held.is_ok_and(|held| held.names().iter().all(|name| ceiling.has(name)))
                })
            }
            Source::Config => self.configured.iter().any(|key| {
                *key.id == *record.created_with
                    && held
                        .as_ref()
                        .is_ok_and(|held| holds_all(&key.principal, held, &scope).is_ok())
            }),
            Source::File
            | Source::Line
            | Source::Agent
            | Source::Lease
            | Source::Session
            | Source::Certificate
            | Source::Disabled => false,
        }
    }

    /// What the store holds, without exchanged tokens of an earlier start that
    /// do not count any more; those are removed.
    pub(super) async fn backed(
        &self,
        records: Vec<CredentialRecord>,
    ) -> storage::Result<Vec<CredentialRecord>> {
        let now = self.now();
        let keys = records.iter().filter(|record| record.kind == CredentialKind::ApiKey);
        let keys: BTreeSet<Arc<str>> = keys.map(|record| Arc::clone(&record.id)).collect();
        let (kept, gone): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| {
            record.kind != CredentialKind::Exchanged
                || (self.still_backed(record, &keys)
                    && record.expires_at.is_some_and(|end| end > now))
        });
        for record in gone {
            self.store.delete_credential(&record.id, &Stamp::system(), now).await?;
        }
        Ok(kept)
    }

    /// Removes exchanged tokens whose time is over.
    pub(super) async fn forget_exchanged(&self) -> storage::Result<()> {
        let now = self.now();
        let over = |issue: &Arc<Issue>| issue.record.expires_at.is_some_and(|end| end <= now);
        let over: Vec<Arc<Issue>> =
            self.issued.all(CredentialKind::Exchanged).into_iter().filter(over).collect();
        if over.is_empty() {
            return Ok(());
        }
        let _order = self.order.lock().await;
        for issue in over {
            self.store.delete_credential(&issue.record.id, &Stamp::system(), now).await?;
            self.issued.remove(&issue.record.id);
        }
        Ok(())
    }
}
