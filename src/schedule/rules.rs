//! Rules: set, list, remove (SE-62, SE-63).

use std::sync::Arc;

use super::{Error, PageRequest, Paged, Scheduler, table::RuleTable};
use crate::{
    authz::{self, Claim},
    domain::{
        Permission, RequestId,
        permission::right::{RulesRead, RulesWrite},
        principal::{GrantRef, Source},
        schedule::{IDENTIFIER_BYTES_MAX, Identifier, Rule, Runner},
        task::RetryPolicy,
    },
};

/// A rule to be set.
#[derive(Clone, Debug)]
pub struct NewRule {
    /// Its name.
    pub id: Identifier,
    /// What identifiers begin with.
    pub pattern: String,
    /// What is done.
    pub runner: Runner,
    /// What a failure is followed by.
    pub retry: RetryPolicy,
}

/// Sets a rule, new or in place of the one of its name.
pub async fn set(
    scheduler: &Scheduler,
    claim: &Claim<RulesWrite>,
    new: NewRule,
) -> Result<Arc<Rule>, Error> {
    let NewRule { id, pattern, runner, retry } = new;
    in_scope(scheduler, claim, &id, &pattern)?;
    if pattern.len() > IDENTIFIER_BYTES_MAX || pattern.chars().any(char::is_control) {
        let message = format!("at most {IDENTIFIER_BYTES_MAX} bytes and no control characters");
        return Err(Error::FieldInvalid { field: "pattern", message });
    }
    may_run(scheduler, claim, &pattern, &runner)?;
    scheduler.tools.check(&runner)?;
    let owner = owner(scheduler, claim);
    let rule = Rule { id, pattern: pattern.into(), runner, retry, owner };

    let _one_by_one = scheduler.order.lock().await;
    let replaces = scheduler.table().get(&rule.id);
    if let Some(old) = &replaces {
        may_change(scheduler, claim, old)?;
    }
    let replaces = replaces.map(|old| (*old).clone());
    let now = scheduler.now();
    if !scheduler.store.set_rule(rule.clone(), replaces, &claim.stamp(), now).await? {
        return Err(changed());
    }
    let rule = Arc::new(rule);
    scheduler.replace(|table| table.with(Arc::clone(&rule)));
    Ok(rule)
}

/// One rule whose name lies in the scope.
pub fn get(
    scheduler: &Scheduler,
    claim: &Claim<RulesRead>,
    id: &Identifier,
) -> Result<Arc<Rule>, Error> {
    if !claim.scope().contains_text(scheduler.bare(id)) {
        return Err(Error::OutsideScope(id.to_string()));
    }
    scheduler.table().get(id).ok_or_else(|| Error::RuleNotFound(id.to_string()))
}

/// The rules whose names lie in the scope and begin with a text, by name.
pub fn list(
    scheduler: &Scheduler,
    claim: &Claim<RulesRead>,
    prefix: &str,
    request: &PageRequest,
) -> Result<Paged<Arc<Rule>>, Error> {
    let query = crate::engine::page::Query::new("rules", claim.identity()).with(prefix);
    let page = query.page(request).map_err(super::jobs::paging)?;
    let table = scheduler.table();
    let after = page.after.as_deref();
    let mut items: Vec<Arc<Rule>> = table
        .by_name()
        .filter(|rule| rule.id.as_str().starts_with(prefix))
        .filter(|rule| after.is_none_or(|after| rule.id.as_str() > after))
        .filter(|rule| claim.scope().contains_text(scheduler.bare(&rule.id)))
        .take(page.size.saturating_add(1))
        .cloned()
        .collect();
    let more = items.len() > page.size;
    items.truncate(page.size);
    let next = items.last().filter(|_| more).map(|rule| rule.id.to_string());
    Ok(query.paged(crate::storage::Listed { items, next }))
}

/// Removes a rule.
pub async fn remove(
    scheduler: &Scheduler,
    claim: &Claim<RulesWrite>,
    id: &Identifier,
) -> Result<Arc<Rule>, Error> {
    if !claim.scope().contains_text(scheduler.bare(id)) {
        return Err(Error::OutsideScope(id.to_string()));
    }
    let _one_by_one = scheduler.order.lock().await;
    let rule = scheduler.table().get(id).ok_or_else(|| Error::RuleNotFound(id.to_string()))?;
    may_change(scheduler, claim, &rule)?;
    let now = scheduler.now();
    if !scheduler.store.remove_rule((*rule).clone(), &claim.stamp(), now).await? {
        return Err(changed());
    }
    scheduler.replace(|table| table.without(id));
    Ok(rule)
}

/// A rule's name without the conventional prefix counts, and its pattern as a
/// whole.
fn in_scope(
    scheduler: &Scheduler,
    claim: &Claim<RulesWrite>,
    id: &Identifier,
    pattern: &str,
) -> Result<(), Error> {
    if !claim.scope().contains_text(scheduler.bare(id)) {
        return Err(Error::OutsideScope(id.to_string()));
    }
    if !claim.scope().contains_all_of(pattern) {
        return Err(Error::OutsideScope(pattern.to_owned()));
    }
    Ok(())
}

/// What is there may be changed by those whose scope holds its pattern, and
/// who are no narrower than the one who set it and still may (SE-62).
fn may_change(scheduler: &Scheduler, claim: &Claim<RulesWrite>, rule: &Rule) -> Result<(), Error> {
    in_scope(scheduler, claim, &rule.id, &rule.pattern)?;
    if rule.owner.identity == *claim.identity() {
        return Ok(());
    }
    let owner = scheduler.standing.standing(&rule.owner, scheduler.now());
    let wider = |owner: Arc<crate::domain::Principal>| {
        !claim.scope().covers(&owner.scope_of(Permission::RulesWrite))
    };
    if owner.is_some_and(wider) {
        return Err(Error::OutsideScope(rule.id.to_string()));
    }
    Ok(())
}

/// What the runner needs besides `rules:write`.
fn may_run(
    scheduler: &Scheduler,
    claim: &Claim<RulesWrite>,
    pattern: &str,
    runner: &Runner,
) -> Result<(), Error> {
    if !scheduler.settings.runners.contains(&runner.kind()) {
        return Err(Error::RunnerDisabled(runner.kind()));
    }
    let principal = claim.principal();
    if runner.kind().starts_processes() {
        let commands = Permission::CommandsExecute;
        if !principal.holds(commands) {
            return Err(Error::PermissionMissing(commands));
        }
        if !principal.scope_of(commands).contains_all_of(pattern) {
            return Err(Error::OutsideScope(pattern.to_owned()));
        }
    }
    if let Runner::Task { namespace, .. } = runner
        && authz::task_for(principal, no_request(), namespace).is_none()
    {
        let holds =
            principal.identity.source == Source::Line || principal.holds(Permission::TasksCreate);
        return Err(if holds {
            Error::OutsideScope(namespace.to_string())
        } else {
            Error::PermissionMissing(Permission::TasksCreate)
        });
    }
    Ok(())
}

/// Only asks; what is created later has an id of its own.
fn no_request() -> RequestId {
    RequestId::from_random([0; 16])
}

fn owner(scheduler: &Scheduler, claim: &Claim<RulesWrite>) -> GrantRef {
    let principal = claim.principal();
    let set_at = scheduler.now();
    let jwt = principal.identity.source == Source::Idp;
    let hours = scheduler.settings.jwt_grant_hours;
    let until = (jwt && hours > 0)
        .then(|| set_at.plus(std::time::Duration::from_secs(hours.saturating_mul(3600))));
    GrantRef {
        identity: principal.identity.clone(),
        method: principal.method,
        credential_id: Arc::clone(&principal.credential_id),
        grants: if jwt { principal.grants.clone() } else { Vec::new() },
        set_at,
        until,
    }
}

fn changed() -> Error {
    Error::FieldInvalid { field: "id", message: "the rule was changed meanwhile; try again".into() }
}

impl Scheduler {
    /// A rule's name as scopes see it.
    fn bare<'a>(&self, id: &'a Identifier) -> &'a str {
        let mut prefixes = self.settings.rule_id_prefixes.iter();
        let bare = prefixes.find_map(|prefix| id.as_str().strip_prefix(prefix.as_str()));
        bare.unwrap_or(id.as_str())
    }

    fn replace(&self, change: impl FnOnce(&RuleTable) -> RuleTable) {
        let mut rules = self.rules.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *rules = Arc::new(change(&rules));
    }
}
