//! What somebody did or was refused, as the audit has it, and what a
//! configuration would say to that.
//!
//! Not here: who somebody would be.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    access::{
        explain::{
            Actor,
            past::{Recorded, RecordedOutcome},
        },
        gate::{
            decide,
            line::{Get, History, Instruction, Remove, RemoveRule, Resume, RuleSet, Schedule, Set},
        },
        inspect::{Verdict, verdict},
        refusal::{Reason, reason_name},
        table::{MethodRule, Rule, Table},
    },
    authn::known,
    authz,
    domain::{
        Area, Namespace, Permission, Principal, Scope,
        principal::{Identity, Method},
    },
};

/// What the audit says made the tasks of the scheduler's rules.
const SCHEDULER: &str = "scheduler";
/// What becomes of a worker that is new; its record names an area.
const WORKER: &str = "worker registered";
/// The instructions of the line protocol that name a job.
const OF_JOBS: [&str; 6] =
    [Set::NAME, Schedule::NAME, Get::NAME, Remove::NAME, Resume::NAME, History::NAME];
/// And those that name a rule.
const OF_RULES: [&str; 2] = [RuleSet::NAME, RemoveRule::NAME];

/// What somebody did, was refused, or was asked about by another service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Act {
    pub(super) actor: Identity,
    pub(super) method: Method,
    pub(super) credential: Arc<str>,
    pub(super) rpc: Arc<str>,
    /// What it went by, or what was missing; for a question of another service
    /// maybe one of its own.
    pub(super) permission: Option<Arc<str>>,
    pub(super) place: Place,
    pub(super) end: End,
}

/// Where it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// In no single place, or in none that is on record.
    Unsaid,
    /// In each of these namespaces or areas.
    Each(Vec<Arc<str>>),
    /// In a namespace or below it: the record does not tell.
    Around(Arc<str>),
    /// Over a job of this first segment, whose name is not on record.
    Somewhere(Arc<str>),
    /// Over a job, by its name.
    Job(Arc<str>),
    /// Over a rule, by its name as scopes see it.
    Rule(Arc<str>),
    /// Over everything that begins with each of these; `*` is everything.
    Starts(Vec<Arc<str>>),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum End {
    Allowed,
    Refused(Lack),
    /// Another service asked whether it may, and was told so.
    Asked {
        allowed: bool,
    },
}

/// What it was refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lack {
    Permission,
    Root,
    Place,
}

/// What a configuration knows of calls.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) table: Table,
    /// The permissions of other services.
    pub(super) declared: BTreeSet<Arc<str>>,
    /// What is taken off the names of the scheduler's rules.
    pub(super) prefixes: Vec<String>,
}

/// Why somebody would be refused.
#[derive(Clone, Debug)]
pub(super) struct Miss {
    pub(super) why: String,
    /// Whether it names one of many things of a place.
    pub(super) of_one: bool,
}

impl Place {
    /// As a change shows it: the names of jobs and rules by their first segment.
    pub(super) fn shown(&self) -> Option<Arc<str>> {
        match self {
            Self::Unsaid => None,
            Self::Each(places) | Self::Starts(places) => match places.as_slice() {
                [] => None,
                [one] => Some(Arc::clone(one)),
                several => Some(several.join(", ").into()),
            },
            Self::Around(place) | Self::Somewhere(place) => Some(Arc::clone(place)),
            Self::Job(name) | Self::Rule(name) => name.split('.').next().map(Arc::from),
        }
    }

    /// Whether it lies in a scope, as far as is known.
    pub(super) fn lies_in(&self, scope: &Scope) -> bool {
        match self {
            Self::Unsaid => true,
            Self::Each(places) => places.iter().all(|place| known::covers(scope, place)),
            Self::Around(place) => {
                known::covers(scope, place) || known::covers(scope, &format!("{place}."))
            }
            Self::Somewhere(segment) => {
                scope.intersection(&Scope::beginning_with(segment)) != Scope::NOWHERE
            }
            Self::Job(name) | Self::Rule(name) => scope.contains_text(name),
            Self::Starts(texts) => texts.iter().all(|text| match &**text {
                "*" => *scope == Scope::Everything,
                text => scope.contains_all_of(text),
            }),
        }
    }

    fn missed(&self, permission: &str) -> Miss {
        let (why, of_one) = match self {
            Self::Job(name) | Self::Rule(name) => {
                (format!("it does not hold `{permission}` over `{name}`"), true)
            }
            Self::Unsaid
            | Self::Each(_)
            | Self::Around(_)
            | Self::Somewhere(_)
            | Self::Starts(_) => {
                let place = self.shown();
                let place = place.map(|place| format!(" in `{place}`")).unwrap_or_default();
                (format!("it does not hold `{permission}`{place}"), false)
            }
        };
        Miss { why, of_one }
    }
}

impl Act {
    /// Whether it was allowed.
    pub(super) fn was_allowed(&self) -> bool {
        match self.end {
            End::Allowed => true,
            End::Refused(_) => false,
            End::Asked { allowed } => allowed,
        }
    }

    /// What is shown of it.
    pub(super) fn what(&self) -> Arc<str> {
        Arc::clone(self.permission.as_ref().unwrap_or(&self.rpc))
    }

    /// Whether an auth file of the line protocol guards it.
    pub(super) fn is_of_scheduler(&self) -> bool {
        let own = self.permission.as_deref().and_then(Permission::parse);
        own.is_some_and(|own| matches!(own.resource(), "schedules" | "rules"))
    }
}

impl Rules {
    /// What a call's record says that its caller did; none where that is no
    /// decision, or one that is not known well enough.
    pub(super) fn call(&self, record: &Recorded, actor: &Actor) -> Option<Act> {
        // It went by rights that had an end, and no configuration gives them.
        if record.elevated {
            return None;
        }
        let (end, place) = match record.outcome {
            RecordedOutcome::Allowed => (End::Allowed, self.place_of(record, true)),
            RecordedOutcome::Failed => (End::Allowed, self.place_of(record, false)),
            RecordedOutcome::Denied => {
                let (lack, place) = (lack(record)?, self.asked_of(record));
                if lack == Lack::Place && place == Place::Unsaid {
                    return None;
                }
                (End::Refused(lack), place)
            }
        };
        let permission = record.permission.as_deref().map(Into::into);
        let rpc = record.rpc.as_str().into();
        Some(Act { rpc, permission, place, end, ..Act::by(actor) })
    }

    /// What a call's record says that was answered about credentials of others.
    pub(super) fn questions(record: &Recorded) -> Vec<Act> {
        let mut acts = Vec::new();
        let allowed = matches!(record.outcome, RecordedOutcome::Allowed);
        let Some(detail) = record.detail.as_ref().filter(|_| allowed) else { return acts };
        for judged in &detail.judged {
            let Some(actor) = judged.actor.as_ref().and_then(Actor::read) else { continue };
            let act = Act { rpc: record.rpc.as_str().into(), ..Act::by(&actor) };
            if judged.questions.is_empty() && judged.active == Some(true) {
                acts.push(act);
                continue;
            }
            for question in &judged.questions {
                let Some(allowed) = answered(&question.verdict) else { continue };
                let Some(permission) = &question.permission else { continue };
                let place = match &question.namespace {
                    Some(place) if Area::parse(place).is_err() => continue,
                    Some(place) => Place::Each(vec![place.as_str().into()]),
                    None => Place::Unsaid,
                };
                let (permission, end) = (Some(permission.as_str().into()), End::Asked { allowed });
                acts.push(Act { permission, place, end, ..act.clone() });
            }
        }
        acts
    }

    /// Where something was that was allowed; `done` is whether it was done, too.
    fn place_of(&self, record: &Recorded, done: bool) -> Place {
        let place = || record.namespace.as_deref().map(Arc::from);
        let object = record.object.as_deref().filter(|object| !object.is_empty());
        match self.named(&record.rpc) {
            // The proof says the name's first segment: it was over this name.
            Some(Named::Job) => match (place(), object) {
                (Some(_), Some(object)) => Place::Job(object.into()),
                (Some(segment), None) => Place::Somewhere(segment),
                (None, _) => Place::Unsaid,
            },
            Some(Named::Rule) => match object {
                Some(object) if done => Place::Rule(self.bare(object).into()),
                Some(_) | None => Place::Unsaid,
            },
            None => match place() {
                Some(place) if is_around(record) => Place::Around(place),
                Some(place) => Place::Each(vec![place]),
                None => Place::Unsaid,
            },
        }
    }

    /// What was asked for by what was refused.
    fn asked_of(&self, record: &Recorded) -> Place {
        let object = record.object.as_deref().filter(|object| !object.is_empty());
        let name = object.or_else(|| record.asked.first().map(String::as_str));
        let asked = || record.asked.iter().map(|place| place.as_str().into()).collect();
        match (self.named(&record.rpc), name) {
            (Some(Named::Job), Some(name)) => Place::Job(name.into()),
            (Some(Named::Rule), Some(name)) => {
                let own = |place: &String| *place == name || *place == self.bare(name);
                let needed = record.permission.as_deref().and_then(Permission::parse);
                let needed = needed.filter(|_| !record.asked.is_empty());
                if needed == Some(Permission::TasksCreate) {
                    Place::Each(asked())
                } else if needed != Some(Permission::CommandsExecute)
                    && record.asked.iter().all(own)
                {
                    Place::Rule(self.bare(name).into())
                } else {
                    Place::Starts(asked())
                }
            }
            (Some(Named::Job | Named::Rule), None) => Place::Unsaid,
            (None, _) if !record.asked.is_empty() => Place::Each(asked()),
            (None, _) => {
                let place = record.namespace.as_deref().map(Arc::from);
                place.map_or(Place::Unsaid, |place| Place::Each(vec![place]))
            }
        }
    }

    fn named(&self, rpc: &str) -> Option<Named> {
        if OF_JOBS.contains(&rpc) {
            return Some(Named::Job);
        }
        if OF_RULES.contains(&rpc) {
            return Some(Named::Rule);
        }
        let method = self.method(rpc).filter(|method| method.identifier)?;
        let of_rules = own_right(method).is_some_and(|right| right.resource() == "rules");
        Some(if of_rules { Named::Rule } else { Named::Job })
    }

    fn method(&self, rpc: &str) -> Option<&Arc<MethodRule>> {
        self.table.get(&format!("/{rpc}"))
    }

    /// The name of a rule of the scheduler as scopes see it.
    fn bare<'n>(&self, name: &'n str) -> &'n str {
        let mut prefixes = self.prefixes.iter();
        prefixes.find_map(|prefix| name.strip_prefix(prefix.as_str())).unwrap_or(name)
    }

    /// What they would say to somebody, and why not.
    pub(super) fn judge(&self, act: &Act, principal: &Principal) -> Result<(), Miss> {
        let End::Asked { .. } = act.end else { return self.judge_call(act, principal) };
        let Some(permission) = &act.permission else { return Ok(()) };
        let area = match &act.place {
            Place::Each(places) => places.first().and_then(|place| Area::parse(place).ok()),
            Place::Unsaid
            | Place::Around(_)
            | Place::Somewhere(_)
            | Place::Job(_)
            | Place::Rule(_)
            | Place::Starts(_) => None,
        };
        match verdict(principal, &self.declared, permission, area.as_ref()) {
            Verdict::Allowed => Ok(()),
            Verdict::PermissionMissing => Err(Place::Unsaid.missed(permission)),
            Verdict::NamespaceNotHeld => Err(act.place.missed(permission)),
            Verdict::PermissionUnknown => {
                let why = format!("`auth.extra_permissions` does not declare `{permission}`");
                Err(Miss { why, of_one: false })
            }
        }
    }

    fn judge_call(&self, act: &Act, principal: &Principal) -> Result<(), Miss> {
        let method = self.method(&act.rpc);
        if let Some(method) = method
            && decide(method, principal).is_err()
        {
            return Err(refused(method, act));
        }
        if act.end == End::Refused(Lack::Root) && !principal.is_root() {
            return Err(Miss { why: "it is not root".to_owned(), of_one: false });
        }
        let Some(permission) = &act.permission else {
            // What else an open call was refused for is not on record.
            let open = |method: &Arc<MethodRule>| matches!(method.rule, Rule::Root | Rule::Node);
            return if act.was_allowed() || method.is_some_and(open) {
                Ok(())
            } else {
                Err(Miss { why: "what it lacked is not on record".to_owned(), of_one: false })
            };
        };
        if *act.rpc == *SCHEDULER {
            return of_scheduler(act, permission, principal);
        }
        let scope = principal.scope_of_named(permission);
        if scope == Scope::NOWHERE {
            return Err(Place::Unsaid.missed(permission));
        }
        let own = method.and_then(|method| own_right(method));
        let second = own.is_some_and(|own| own.name() != &**permission);
        let there = match (&act.place, act.end) {
            // Where it was needed is not on record.
            (Place::Unsaid, End::Refused(Lack::Permission)) if second => scope == Scope::Everything,
            (place, _) => place.lies_in(&scope),
        };
        if !there {
            return Err(act.place.missed(permission));
        }
        // It may have been refused for who set the rule before, too.
        if act.end == End::Refused(Lack::Place)
            && matches!(act.place, Place::Rule(_))
            && **permission == *Permission::RulesWrite.name()
            && scope != Scope::Everything
        {
            return Err(act.place.missed(permission));
        }
        Ok(())
    }
}

/// What an identifier names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Job,
    Rule,
}

impl Act {
    /// Nothing yet, of somebody.
    fn by(actor: &Actor) -> Self {
        Self {
            actor: actor.identity.clone(),
            method: actor.method,
            credential: Arc::clone(&actor.credential_id),
            rpc: "".into(),
            permission: None,
            place: Place::Unsaid,
            end: End::Asked { allowed: true },
        }
    }
}

/// What a call was refused for, where a configuration could have a say in it.
fn lack(record: &Recorded) -> Option<Lack> {
    let reason = record.reason.as_deref()?;
    [
        (Reason::PermissionMissing, Lack::Permission),
        (Reason::RootRequired, Lack::Root),
        (Reason::NamespaceNotFound, Lack::Place),
    ]
    .into_iter()
    .find_map(|(known, lack)| (reason == reason_name(known)).then_some(lack))
}

/// Whether a question was answered by what the credential holds.
fn answered(said: &str) -> Option<bool> {
    [
        Verdict::Allowed,
        Verdict::PermissionMissing,
        Verdict::NamespaceNotHeld,
        Verdict::PermissionUnknown,
    ]
    .into_iter()
    .find_map(|verdict| (said == verdict.as_str()).then_some(verdict == Verdict::Allowed))
}

/// Whether a record names the namespace above an area.
fn is_around(record: &Recorded) -> bool {
    record.detail.as_ref().is_some_and(|detail| {
        let change = detail.change.as_ref().and_then(|change| change.as_str());
        change == Some(WORKER) || detail.elevation.is_some()
    })
}

fn own_right(method: &MethodRule) -> Option<Permission> {
    match &method.rule {
        Rule::Permission { permission, .. } => Some(*permission),
        Rule::Public(_) | Rule::Authenticated(_) | Rule::Root | Rule::Node => None,
    }
}

fn refused(method: &MethodRule, act: &Act) -> Miss {
    let why = match (&method.rule, &act.permission) {
        (Rule::Root, _) => "it is not root".to_owned(),
        (_, Some(permission)) => format!("it does not hold `{permission}`"),
        (_, None) => "the rule refuses it".to_owned(),
    };
    Miss { why, of_one: false }
}

/// A rule's owner makes tasks by other rules than a caller does.
fn of_scheduler(act: &Act, permission: &str, principal: &Principal) -> Result<(), Miss> {
    let Some(place) = act.place.shown() else { return Ok(()) };
    let may = Namespace::parse(&place).map(|place| authz::may_create_tasks(principal, &place));
    if may.unwrap_or(true) { Ok(()) } else { Err(act.place.missed(permission)) }
}
