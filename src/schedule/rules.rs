//! Rules: set, list, remove (SE-62, SE-63).

use std::sync::{Arc, PoisonError};

use tokio::sync::OwnedMutexGuard;

use super::{Error, PageRequest, Paged, Scheduler, table::RuleTable};
use crate::{
    authz::{self, Claim},
    domain::{
        Permission, Scope,
        permission::right::{RulesRead, RulesWrite},
        principal::{GrantRef, Source},
        schedule::{IDENTIFIER_BYTES_MAX, Identifier, Rule, Runner, is_plain},
        task::RetryPolicy,
    },
};

/// How many rules there are at most: all of them are in memory.
const RULES_MAX: usize = 10_000;

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
    scheduler: &Arc<Scheduler>,
    claim: &Claim<RulesWrite>,
    new: NewRule,
) -> Result<Arc<Rule>, Error> {
    let NewRule { id, pattern, runner, retry } = new;
    in_scope(scheduler, claim, &id, &pattern)?;
    if pattern.len() > IDENTIFIER_BYTES_MAX || !is_plain(&pattern) {
        let message = format!(
            "at most {IDENTIFIER_BYTES_MAX} bytes, no control characters or line separators"
        );
        return Err(Error::FieldInvalid { field: "pattern", message });
    }
    may_run(scheduler, claim, &pattern, &runner)?;
    scheduler.tools.check(&runner)?;
    let owner = owner(scheduler, claim);
    let rule = Rule { id, pattern: pattern.into(), runner, retry, owner };

    let turn = Arc::clone(&scheduler.order).lock_owned().await;
    let table = scheduler.table();
    let replaces = table.get(&rule.id);
    match &replaces {
        Some(old) => may_change(scheduler, claim, old)?,
        None if table.len() >= RULES_MAX => {
            let message = format!("there are {RULES_MAX} rules, which is the most; remove some");
            return Err(Error::FieldInvalid { field: "id", message });
        }
        None => {}
    }
    let replaces = replaces.map(|old| (*old).clone());
    let (stamp, now, rule) = (claim.stamp(), scheduler.now(), Arc::new(rule));
    let (owned, set) = (Arc::clone(scheduler), Arc::clone(&rule));
    let change = async move {
        let done = owned.store.set_rule((*set).clone(), replaces, &stamp, now).await;
        owned.settle(turn, done, |table| table.with(set)).await
    };
    whole(scheduler, change).await?;
    Ok(rule)
}

/// Makes a change to its end, whether or not its caller still waits: what is
/// on disk and what is in memory must not part.
async fn whole(
    scheduler: &Scheduler,
    change: impl Future<Output = Result<(), Error>> + Send + 'static,
) -> Result<(), Error> {
    let done = scheduler.changes.spawn(change).await;
    done.unwrap_or_else(|error| {
        tracing::error!(%error, "a change of a rule broke");
        Err(changed())
    })
}

/// One rule whose name lies in the scope.
pub fn get(
    scheduler: &Scheduler,
    claim: &Claim<RulesRead>,
    id: &Identifier,
) -> Result<Arc<Rule>, Error> {
    let bare = scheduler.bare(id);
    if !claim.covers_name(bare) {
        claim.lacks(Permission::RulesRead, [bare]);
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
    scheduler: &Arc<Scheduler>,
    claim: &Claim<RulesWrite>,
    id: &Identifier,
) -> Result<Arc<Rule>, Error> {
    let bare = scheduler.bare(id);
    if !claim.covers_name(bare) {
        claim.lacks(Permission::RulesWrite, [bare]);
        return Err(Error::OutsideScope(id.to_string()));
    }
    let turn = Arc::clone(&scheduler.order).lock_owned().await;
    let rule = scheduler.table().get(id).ok_or_else(|| Error::RuleNotFound(id.to_string()))?;
    may_change(scheduler, claim, &rule)?;
    let (stamp, now, id) = (claim.stamp(), scheduler.now(), id.clone());
    let (owned, gone) = (Arc::clone(scheduler), (*rule).clone());
    let change = async move {
        let done = owned.store.remove_rule(gone, &stamp, now).await;
        owned.settle(turn, done, |table| table.without(&id)).await
    };
    whole(scheduler, change).await?;
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
    let bare = scheduler.bare(id);
    if !claim.covers_name(bare) {
        claim.lacks(Permission::RulesWrite, [bare]);
        return Err(Error::OutsideScope(id.to_string()));
    }
    if !claim.scope().contains_all_of(pattern) {
        claim.lacks(Permission::RulesWrite, [all_of(pattern)]);
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

/// Where a pattern matches, as a place: an empty one everywhere.
fn all_of(pattern: &str) -> &str {
    if pattern.is_empty() { "*" } else { pattern }
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
    let principal = claim.lasting();
    if runner.kind().starts_processes() {
        let commands = Permission::CommandsExecute;
        if !principal.holds(commands) {
            return Err(Error::PermissionMissing(claim.lacks(commands, [all_of(pattern)])));
        }
        if !principal.scope_of(commands).contains_all_of(pattern) {
            claim.lacks(commands, [all_of(pattern)]);
            return Err(Error::OutsideScope(pattern.to_owned()));
        }
    }
    if let Runner::Task { namespace, .. } = runner
        && !authz::may_create_tasks(principal, namespace)
    {
        let tasks = Permission::TasksCreate;
        let place = namespace.as_str();
        if principal.identity.source == Source::Line {
            // Its prefix must hold the namespace as a whole.
            claim.lacks(Permission::RulesWrite, [&*format!("{place}.")]);
        } else if !principal.holds(tasks) {
            return Err(Error::PermissionMissing(claim.lacks(tasks, [place])));
        } else {
            claim.lacks(tasks, [place]);
        }
        return Err(Error::OutsideScope(namespace.to_string()));
    }
    Ok(())
}

fn owner(scheduler: &Scheduler, claim: &Claim<RulesWrite>) -> GrantRef {
    let set_at = scheduler.now();
    let hours = scheduler.settings.jwt_grant_hours;
    let until = (hours > 0)
        .then(|| set_at.plus(std::time::Duration::from_secs(hours.saturating_mul(3600))));
    GrantRef::of(claim.lasting(), set_at, until)
}

fn changed() -> Error {
    Error::FieldInvalid { field: "id", message: "the rule was changed meanwhile; try again".into() }
}

impl Scheduler {
    /// How many rules' names lie in a scope.
    pub(super) fn rules_in(&self, scope: &Scope) -> u64 {
        let table = self.table();
        let held = table.by_name().filter(|rule| scope.contains_text(self.bare(&rule.id)));
        u64::try_from(held.count()).unwrap_or(u64::MAX)
    }

    /// A rule's name as scopes see it.
    fn bare<'a>(&self, id: &'a Identifier) -> &'a str {
        let mut prefixes = self.settings.rule_id_prefixes.iter();
        let bare = prefixes.find_map(|prefix| id.as_str().strip_prefix(prefix.as_str()));
        bare.unwrap_or(id.as_str())
    }

    /// Brings the rules in memory to where the store is. When it is not sure
    /// what is on disk, the rules are read again.
    async fn settle(
        &self,
        turn: OwnedMutexGuard<()>,
        done: crate::storage::Result<bool>,
        change: impl FnOnce(&RuleTable) -> RuleTable,
    ) -> Result<(), Error> {
        let (table, answer) = match done {
            Ok(true) => (change(&self.table()), Ok(())),
            Ok(false) => (RuleTable::new(self.store.rules().await?), Err(changed())),
            Err(error) => (RuleTable::new(self.store.rules().await?), Err(error.into())),
        };
        // Made before: whoever looks a rule up waits for the exchange alone.
        let table = Arc::new(table);
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = table;
        drop(turn);
        answer
    }
}
