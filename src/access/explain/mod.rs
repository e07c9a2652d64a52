//! Explains decisions: which rule decided, what the caller has, the smallest
//! grant that would help, and who can give it; each to those who may know
//! (SE-41). What a caller was not told it does not learn here either.
//!
//! Not here: deciding (`gate`, `authz`), and how it is shown (`grpc`).

mod grant;
mod judged;
pub(super) mod past;
mod who;

use std::sync::{Arc, LazyLock};

use tokio::sync::Semaphore;

use self::{grant::missing, past::Facts};
pub use self::{
    grant::{Granter, GranterKind, Suggestion},
    who::{Able, Subject, WhoCan},
};
use super::{
    gate::{Denial, Gate, decide},
    refusal::{Kind, Reason, Refusal, Unauthenticated, reason_name},
    table::{MethodRule, Mode, Rule, Table},
};
use crate::{
    authn::known,
    config::Roles,
    domain::{
        Grant, Permission, Principal, RequestId, Scope, TaskId, Timestamp,
        audit::{Outcome, SERVER_CHAIN},
        principal::{Identity, Method},
    },
};

/// Explains decisions.
#[derive(Clone, Debug)]
pub struct Explainer {
    pub(super) gate: Gate,
    table: Arc<Table>,
    roles: Roles,
    /// One look through the audit at a time: others read from the store, too.
    scans: Arc<Semaphore>,
}

/// Who called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Who.
    pub identity: Identity,
    /// How the credential was presented.
    pub method: Method,
    /// The credential's public id.
    pub credential_id: Arc<str>,
}

/// What decided about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decider {
    /// The permission of the RPC's rule, which no grant has.
    Permission,
    /// Where the permission holds.
    Namespace,
    /// One of the two, which is not told (SE-10).
    NotFoundOrHidden,
    /// There is no such thing, or not any more.
    NotFound,
    /// The RPC is root's.
    Root,
    /// The RPC is for nodes.
    Node,
    /// The RPC is not for step tokens.
    Step,
    /// The RPC is for every caller.
    Authenticated,
    /// The credential.
    Credential,
    /// A limit on calls.
    Rate,
    /// The request, or the state of what it is about.
    Request,
    /// The record does not say.
    Unknown,
}

impl Decider {
    /// As it is shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permission => "permission",
            Self::Namespace => "namespace",
            Self::NotFoundOrHidden => "not_found_or_hidden",
            Self::NotFound => "not_found",
            Self::Root => "root",
            Self::Node => "node",
            Self::Step => "step",
            Self::Authenticated => "authenticated",
            Self::Credential => "credential",
            Self::Rate => "rate",
            Self::Request => "request",
            Self::Unknown => "unknown",
        }
    }
}

/// What there is to say about a decision.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The call's id.
    pub request: RequestId,
    /// When it was decided.
    pub at: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
    /// The stable reason.
    pub reason: Option<Box<str>>,
    /// The RPC.
    pub rpc: Arc<str>,
    /// Who called; none is somebody unknown.
    pub actor: Option<Actor>,
    /// What decided.
    pub decider: Decider,
    /// The permission that the RPC needs.
    pub permission: Option<Permission>,
    /// A permission of another service that was asked about.
    pub foreign: Option<Arc<str>>,
    /// How it finds its namespace.
    pub mode: Option<&'static str>,
    /// The rule in words.
    pub rule: String,
    /// Where it was allowed, or what it asked for.
    pub places: Vec<Arc<str>>,
    /// What it was about.
    pub object: Option<Box<str>>,
    /// What the caller held.
    pub held: Vec<Grant>,
    /// Whether that is what it holds now.
    pub held_now: bool,
    /// What cuts its grants.
    pub limits: Vec<String>,
    /// The smallest grant that would help.
    pub suggestion: Option<Suggestion>,
    /// Who can give it.
    pub granters: Vec<Granter>,
    /// All of it in one sentence.
    pub summary: String,
    /// Whether all is told.
    pub complete: bool,
}

impl Explainer {
    /// About what this gate decides by these rules.
    #[must_use]
    pub fn new(gate: Gate, table: Arc<Table>, roles: Roles) -> Self {
        Self { gate, table, roles, scans: Arc::new(Semaphore::new(1)) }
    }

    /// Explains a decision to somebody. One that is not for them is absent:
    /// the same answer after the same work.
    pub async fn explain(&self, asker: &Principal, id: &str) -> Result<Explanation, Refusal> {
        let absent = || Refusal::not_found("decision", id);
        let request = RequestId::parse(id).ok_or_else(absent)?;
        let recent = self.gate.0.decisions.get(request).map(Facts::from);
        let facts = match recent.filter(|facts| may_know(asker, facts)) {
            Some(facts) => facts,
            None => self.recorded(asker, request).await?.ok_or_else(absent)?,
        };
        Ok(match facts.answer.clone() {
            Some(answer) => self.answered(asker, facts, &answer),
            None => self.explained(asker, facts).await,
        })
    }

    async fn explained(&self, asker: &Principal, facts: Facts) -> Explanation {
        let rule = self.table.get(&format!("/{}", facts.rpc)).map(|method| &**method);
        let further = needs_more(rule, &facts);
        let denial = match (rule, &facts.principal) {
            // The call had come further than its rule.
            (Some(rule), Some(principal)) if !further => decide(rule, principal).err(),
            (None | Some(_), None | Some(_)) => None,
        };
        let target = self.target(asker, &facts, denial).await;
        let complete = may_read(asker, target.readers());
        let decider = decider(rule, &facts, denial, complete.then_some(&target));
        let places = match (&facts.place, &target) {
            (Some(place), _) => vec![Arc::clone(place)],
            (None, Target::Found(found)) if decider == Decider::Namespace && facts.hides() => {
                found.clone()
            }
            (None, _) => facts.asked.clone(),
        };
        // What is held is not what was missing.
        let held_there = decider == Decider::Permission
            && facts.outcome == Outcome::Denied
            && denial.is_none()
            && facts.holds();
        let permission = facts.permission.filter(|_| !held_there);
        let mut explanation = Explanation {
            request: facts.request,
            at: facts.at,
            outcome: facts.outcome,
            reason: facts.reason.clone(),
            rpc: Arc::clone(&facts.rpc),
            actor: facts.actor.clone(),
            decider,
            permission,
            foreign: None,
            mode: rule.and_then(mode),
            rule: words(rule, &facts),
            places,
            object: facts.object.clone(),
            held: held(&facts),
            held_now: facts.held_now,
            limits: Vec::new(),
            suggestion: None,
            granters: Vec::new(),
            summary: String::new(),
            complete,
        };
        if let Some(principal) = &facts.principal {
            self.propose(&mut explanation, principal, rule, denial);
        }
        explanation.summary = summary(&explanation, &facts);
        explanation
    }

    /// What would help, and who can do it.
    fn propose(
        &self,
        explanation: &mut Explanation,
        principal: &Principal,
        rule: Option<&MethodRule>,
        denial: Option<Denial>,
    ) {
        if explanation.outcome != Outcome::Denied {
            return;
        }
        let wanted = match (explanation.decider, denial) {
            (Decider::Permission | Decider::Namespace, _) => explanation.permission,
            _ => None,
        };
        let Some(permission) = wanted else { return };
        let places = &explanation.places;
        let authenticator = &self.gate.0.authenticator;
        explanation.limits = authenticator.limits_on(principal, permission, places);
        let global = rule.is_some_and(|rule| match &rule.rule {
            Rule::Permission { permission: own, mode: Mode::Global(_) } => *own == permission,
            Rule::Permission { .. }
            | Rule::Public(_)
            | Rule::Authenticated(_)
            | Rule::Root
            | Rule::Node => false,
        });
        explanation.suggestion = missing(principal, permission.name(), places, global);
        if let Some(suggestion) = &explanation.suggestion {
            explanation.granters = self.granters(principal, suggestion, explanation.complete);
        }
    }

    /// What a decision is about, as far as its asker's rights let it be
    /// looked for.
    async fn target(&self, asker: &Principal, facts: &Facts, denial: Option<Denial>) -> Target {
        if denial.is_some() || !facts.hides() {
            let place = facts.place.as_ref().unwrap_or(&facts.chain);
            return Target::Found(vec![Arc::clone(place)]);
        }
        // Who may read no audit learns nothing of what is looked up here.
        if !asker.holds(Permission::AuditRead) {
            return Target::Absent;
        }
        if !facts.asked.is_empty() {
            return Target::Found(facts.asked.clone());
        }
        self.whereabouts(facts).await.map_or(Target::Absent, |place| Target::Found(vec![place]))
    }

    /// Where the object of a call is.
    async fn whereabouts(&self, facts: &Facts) -> Option<Arc<str>> {
        let object = facts.object.as_deref()?;
        if let Some(task) = TaskId::parse(object) {
            let store = self.gate.0.credentials.as_ref()?;
            let task = store.task(&Scope::Everything, task).await.ok()??;
            return Some(task.namespace.as_str().into());
        }
        let issue = self.gate.0.authenticator.issued().get(object)?;
        match issue.record.namespaces.as_slice() {
            [only] => Some(only.as_str().into()),
            _ => None,
        }
    }
}

/// What a decision is about.
enum Target {
    /// It is, or would be, in these places.
    Found(Vec<Arc<str>>),
    /// It is nowhere, or was not looked for.
    Absent,
}

impl Target {
    /// Of which places somebody must be allowed to read the audit to know all
    /// about the decision.
    fn readers(&self) -> &[Arc<str>] {
        static EVERYWHERE: LazyLock<[Arc<str>; 1]> = LazyLock::new(|| [SERVER_CHAIN.into()]);
        match self {
            Self::Found(places) => places,
            Self::Absent => &*EVERYWHERE,
        }
    }
}

impl Facts {
    /// Whether the reply said no more than that something is not there.
    fn hides(&self) -> bool {
        let is = |reason| self.reason.as_deref() == Some(reason_name(reason));
        is(Reason::NotFound) || is(Reason::NamespaceNotFound)
    }

    /// Whether its caller has the permission that was asked for, somewhere.
    fn holds(&self) -> bool {
        match (&self.principal, self.permission) {
            (Some(principal), Some(permission)) => principal.holds(permission),
            _ => false,
        }
    }

    /// Whether it was this one's call.
    fn is_by(&self, identity: &Identity) -> bool {
        self.actor.as_ref().is_some_and(|actor| actor.identity == *identity)
    }

    fn is(&self, reason: Reason) -> bool {
        self.reason.as_deref() == Some(reason_name(reason))
    }
}

/// Whether somebody may know of a decision at all: its caller, whose
/// credential it was about, and who may read the audit of the chain that it
/// lies in.
fn may_know(asker: &Principal, facts: &Facts) -> bool {
    let about = facts.answer.as_ref().is_some_and(|answer| answer.is_about(asker));
    about || facts.is_by(&asker.identity) || may_read(asker, std::slice::from_ref(&facts.chain))
}

fn may_read(asker: &Principal, places: &[Arc<str>]) -> bool {
    let scope = asker.scope_of(Permission::AuditRead);
    asker.holds(Permission::AuditRead) && places.iter().all(|place| known::covers(&scope, place))
}

fn decider(
    rule: Option<&MethodRule>,
    facts: &Facts,
    denial: Option<Denial>,
    known: Option<&Target>,
) -> Decider {
    const CREDENTIALS: [Unauthenticated; 7] = [
        Unauthenticated::Missing,
        Unauthenticated::Invalid,
        Unauthenticated::Expired,
        Unauthenticated::Revoked,
        Unauthenticated::NotYetValid,
        Unauthenticated::Ambiguous,
        Unauthenticated::UsedUp,
    ];
    if facts.fault.is_some() || CREDENTIALS.iter().any(|why| facts.is(why.reason())) {
        return Decider::Credential;
    }
    if facts.is(Reason::RateLimited) {
        return Decider::Rate;
    }
    match (facts.outcome, denial) {
        (Outcome::Failed, _) => return Decider::Request,
        (Outcome::Denied, Some(Denial::Permission(_))) => return Decider::Permission,
        (Outcome::Denied, Some(Denial::Root)) => return Decider::Root,
        (Outcome::Denied, Some(Denial::Node)) => return Decider::Node,
        (Outcome::Denied, Some(Denial::Step)) => return Decider::Step,
        (Outcome::Denied, None) if facts.hides() => {
            return match known {
                None => Decider::NotFoundOrHidden,
                Some(Target::Found(places)) if is_outside(facts, places) => Decider::Namespace,
                Some(Target::Found(_) | Target::Absent) => Decider::NotFound,
            };
        }
        (Outcome::Denied, None) if facts.is(Reason::PermissionMissing) => {
            let elsewhere = facts.holds() && is_outside(facts, &facts.asked);
            return if elsewhere { Decider::Namespace } else { Decider::Permission };
        }
        (Outcome::Denied, None) if facts.is(Reason::RootRequired) => return Decider::Root,
        (Outcome::Denied, None) => return Decider::Unknown,
        (Outcome::Allowed, _) => {}
    }
    match rule.map(|rule| &rule.rule) {
        Some(Rule::Permission { .. }) => Decider::Permission,
        Some(Rule::Public(_) | Rule::Authenticated(_)) => Decider::Authenticated,
        Some(Rule::Root) => Decider::Root,
        Some(Rule::Node) => Decider::Node,
        None if facts.permission.is_some() => Decider::Permission,
        None => Decider::Unknown,
    }
}

/// Whether places lie outside of where a call's caller has the permission.
fn is_outside(facts: &Facts, places: &[Arc<str>]) -> bool {
    match (&facts.principal, facts.permission) {
        (Some(principal), Some(permission)) => {
            let scope = principal.scope_of(permission);
            places.iter().any(|place| !known::covers(&scope, place))
        }
        // Nobody knows what it held; the refusal says where that was not.
        (None, Some(_)) => facts.is(Reason::NamespaceNotFound) && !facts.asked.is_empty(),
        (None | Some(_), None) => false,
    }
}

/// Whether a call was refused for want of something else than its rule names:
/// what it asked for needs more.
fn needs_more(rule: Option<&MethodRule>, facts: &Facts) -> bool {
    let named = rule.is_some_and(|rule| match &rule.rule {
        Rule::Permission { permission, .. } => facts.permission != Some(*permission),
        Rule::Public(_) | Rule::Authenticated(_) | Rule::Root | Rule::Node => {
            facts.permission.is_some()
        }
    });
    named && facts.outcome == Outcome::Denied && facts.fault.is_none()
}

fn mode(rule: &MethodRule) -> Option<&'static str> {
    match &rule.rule {
        Rule::Permission { mode, .. } => Some(match mode {
            Mode::Namespace(_) => "namespace",
            Mode::Object(_) => "object",
            Mode::Filtered => "filtered",
            Mode::Global(_) => "global",
        }),
        Rule::Public(_) | Rule::Authenticated(_) | Rule::Root | Rule::Node => None,
    }
}

/// The rule of an RPC in words.
fn words(rule: Option<&MethodRule>, facts: &Facts) -> String {
    let Some(rule) = rule else {
        return match facts.permission {
            Some(permission) => format!("{} needs `{permission}`", facts.rpc),
            None => "the rule is not known any more".to_owned(),
        };
    };
    let name = rule.full_name.rsplit(['.', '/']).next().unwrap_or(&rule.full_name);
    let own = own_words(name, rule);
    match facts.permission.filter(|_| needs_more(Some(rule), facts)) {
        Some(more) => format!("{own}; what it asked for needs `{more}`, too"),
        None => own,
    }
}

fn own_words(name: &str, rule: &MethodRule) -> String {
    match &rule.rule {
        Rule::Permission { permission, mode } => match mode {
            Mode::Namespace(field) => {
                format!("{name} needs `{permission}` in the namespace that its `{field}` names")
            }
            Mode::Object(field) => {
                format!("{name} needs `{permission}` in the namespace of its `{field}`")
            }
            Mode::Filtered => {
                format!("{name} needs `{permission}` somewhere and shows what lies there")
            }
            Mode::Global(why) => format!("{name} needs `{permission}` everywhere: {why}"),
        },
        Rule::Public(why) => format!("{name} is public: {why}"),
        Rule::Authenticated(why) => format!("{name} is open to every caller: {why}"),
        Rule::Root => format!("{name} is for root alone"),
        Rule::Node => format!("{name} is for registered nodes"),
    }
}

/// The grants that have to do with it: those with the permission, or else all.
fn held(facts: &Facts) -> Vec<Grant> {
    let Some(principal) = &facts.principal else { return Vec::new() };
    let having = |grant: &&Grant| {
        facts.permission.is_some_and(|permission| grant.permissions.contains(permission))
    };
    let with: Vec<Grant> = principal.grants.iter().filter(having).cloned().collect();
    if with.is_empty() { principal.grants.clone() } else { with }
}

fn summary(told: &Explanation, facts: &Facts) -> String {
    let who = told
        .actor
        .as_ref()
        .map_or_else(|| "the caller".to_owned(), |actor| format!("`{}`", actor.identity));
    let needed = told.permission.map(Permission::name).unwrap_or_default();
    let places = told.places.iter().map(|place| format!("`{place}`")).collect::<Vec<_>>();
    let places = places.join(", ");
    if told.outcome == Outcome::Allowed {
        let by = if needed.is_empty() { String::new() } else { format!(" by `{needed}`") };
        let at = if places.is_empty() { String::new() } else { format!(" in {places}") };
        return format!("allowed: {who} may do this{by}{at}");
    }
    let advice = told.suggestion.as_ref().map(|one| format!("; {}", one.text)).unwrap_or_default();
    match told.decider {
        Decider::Permission if needed.is_empty() => {
            format!("what was asked for is more than {who} holds")
        }
        Decider::Permission => format!("{who} does not hold `{needed}`{advice}"),
        Decider::Namespace if places.is_empty() => {
            format!("{who} holds `{needed}`, but not there{advice}")
        }
        Decider::Namespace => format!("{who} holds `{needed}`, but not in {places}{advice}"),
        Decider::NotFoundOrHidden => {
            "not_found_or_hidden: it does not exist, or lies outside of the caller's namespaces; \
             who may read the audit there can say more"
                .to_owned()
        }
        Decider::NotFound => {
            "not_found: there is no such thing, or it is not where the call looked for it"
                .to_owned()
        }
        Decider::Root => format!("{who} is not root, and only root may do this: no grant helps"),
        Decider::Node => format!("{who} is no registered node: no grant helps"),
        Decider::Step => format!("{who} calls with a step token, which does not open this"),
        Decider::Credential => match &facts.fault {
            Some(fault) => format!("the credential was refused: {fault}"),
            None => "the credential does not count any more; get a new one".to_owned(),
        },
        Decider::Rate => "too many calls; try again later".to_owned(),
        Decider::Authenticated => format!("every caller may do this, and {who} was allowed"),
        Decider::Request => format!(
            "allowed, and then not done: {}",
            told.reason.as_deref().unwrap_or("the request or the state was wrong")
        ),
        Decider::Unknown => "the record does not say which rule decided".to_owned(),
    }
}

/// The store cannot be asked.
fn unavailable() -> Refusal {
    let message = "The audit cannot be read now; try again";
    Refusal::new(Kind::Unavailable, Reason::StorageUnavailable, message)
}

#[cfg(test)]
mod tests;
