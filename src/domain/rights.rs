//! What steps may get at all: by namespace a ceiling on the permissions of
//! their tokens, and the audiences outside for which they may get one.
//!
//! Not here: what a template declares (`template`), what its registrar holds
//! (`authz`), how a token looks (`signing`).

use std::{collections::BTreeMap, sync::Arc};

use super::{Namespace, Permission, PermissionSet, Scope, StepId, TaskId};

/// The key of the token for our own API among the tokens of a lease; no
/// audience has this short name.
pub const OWN_AUDIENCE: &str = "bailiwick";
/// How far from its root a task that steps made can be.
pub const SPAWN_DEPTH_MAX: u32 = 8;
/// The longest short name of an audience.
pub const AUDIENCE_BYTES_MAX: usize = 64;

/// Whether a text can be the short name of an audience. Upper-cased it is
/// part of a variable's name (SE-19).
#[must_use]
pub fn is_audience(name: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.len() <= AUDIENCE_BYTES_MAX
        && name.bytes().all(rest)
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
        && name != OWN_AUDIENCE
        // The variable of one name would be that of the file of another.
        && !name.ends_with("_file")
}

/// The subject of a step's token.
#[must_use]
pub fn step_subject(namespace: &Namespace, task: TaskId, step: &str) -> String {
    format!("step:{namespace}/{task}/{step}")
}

/// The task of a step by the subject of its token.
#[must_use]
pub fn task_of_step(subject: &str) -> Option<TaskId> {
    let mut parts = subject.strip_prefix("step:")?.split('/');
    let (_, task, step) = (parts.next()?, parts.next()?, parts.next());
    step.and_then(|_| TaskId::parse(task))
}

/// The public id of the tokens of one attempt: `<step id>#<attempt>`.
#[must_use]
pub fn attempt_id(step: StepId, attempt: u32) -> String {
    format!("{step}#{attempt}")
}

/// The step and the attempt of such an id.
#[must_use]
pub fn attempt_of(id: &str) -> Option<(StepId, u32)> {
    let (step, attempt) = id.split_once('#')?;
    Some((StepId::parse(step)?, attempt.parse().ok()?))
}

/// Whether a template may declare the permission for a step at all (SE-30).
#[must_use]
pub fn is_declarable(permission: Permission) -> bool {
    let never = [Permission::TemplatesRegister, Permission::CommandsExecute, Permission::WorkLease];
    !never.contains(&permission)
        && permission.resource() != "rules"
        && !permission.name().ends_with(":admin")
}

/// What steps of a namespace and those below it may get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceRights {
    /// Where it counts, as it was written.
    pub prefix: Arc<str>,
    /// The same as a scope.
    pub scope: Scope,
    /// What their tokens may hold at most.
    pub ceiling: PermissionSet,
    /// The audiences outside, by their short names.
    pub audiences: BTreeMap<Arc<str>, Arc<str>>,
}

/// What steps may get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepRights {
    issuer: Option<Arc<str>>,
    namespaces: Vec<NamespaceRights>,
    spawn_budget: u32,
}

impl StepRights {
    /// With an issuer steps have tokens; without one they have none.
    #[must_use]
    pub fn new(
        issuer: Option<Arc<str>>,
        mut namespaces: Vec<NamespaceRights>,
        spawn_budget: u32,
    ) -> Self {
        // The nearest one counts: longest first.
        namespaces.sort_by_key(|rights| std::cmp::Reverse(rights.prefix.len()));
        Self { issuer, namespaces, spawn_budget }
    }

    /// How many tasks may descend from one.
    #[must_use]
    pub fn spawn_budget(&self) -> u32 {
        self.spawn_budget
    }

    /// Who issues the tokens, which is also our own audience; none when steps
    /// have no tokens.
    #[must_use]
    pub fn issuer(&self) -> Option<&Arc<str>> {
        self.issuer.as_ref()
    }

    fn of(&self, namespace: &Namespace) -> Option<&NamespaceRights> {
        self.namespaces.iter().find(|rights| rights.scope.contains(namespace))
    }

    /// What the token of a step of this namespace may hold at most. Without
    /// an entry the registrar's own rights are the bound.
    #[must_use]
    pub fn ceiling(&self, namespace: &Namespace) -> PermissionSet {
        self.of(namespace).map_or_else(PermissionSet::star, |rights| rights.ceiling.clone())
    }

    /// The audience outside with this short name, where steps of the
    /// namespace may have a token for it.
    #[must_use]
    pub fn audience(&self, namespace: &Namespace, name: &str) -> Option<&Arc<str>> {
        self.of(namespace)?.audiences.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(prefix: &str, ceiling: &[&str], audience: &str) -> NamespaceRights {
        let mut set = PermissionSet::empty();
        assert!(ceiling.iter().all(|name| set.add(name, &std::collections::BTreeSet::new())));
        NamespaceRights {
            prefix: prefix.into(),
            scope: Scope::parse(&[prefix]).unwrap(),
            ceiling: set,
            audiences: BTreeMap::from([("vault".into(), audience.into())]),
        }
    }

    #[test]
    fn the_nearest_namespace_counts() {
        let of = vec![rights("shop", &["tasks:*"], "a"), rights("shop.eu", &["tasks:read"], "b")];
        let all = StepRights::new(Some("https://b.example".into()), of, 1);
        let at = |name: &str| Namespace::parse(name).unwrap();
        assert!(all.ceiling(&at("shop")).contains(Permission::TasksCreate));
        assert!(!all.ceiling(&at("shop.eu.x")).contains(Permission::TasksCreate));
        assert_eq!(all.audience(&at("shop.eu"), "vault").map(|url| &**url), Some("b"));
        assert_eq!(all.audience(&at("shop.us"), "vault").map(|url| &**url), Some("a"));
        assert_eq!(all.audience(&at("bank"), "vault"), None);
        assert!(all.ceiling(&at("bank")).is_star());
    }

    #[test]
    fn se_30_what_a_template_may_never_declare() {
        let never: Vec<&str> = Permission::ALL
            .iter()
            .filter(|permission| !is_declarable(**permission))
            .map(|permission| permission.name())
            .collect();
        assert_eq!(
            never,
            [
                "templates:register",
                "work:lease",
                "rules:read",
                "rules:write",
                "commands:execute",
                "api_keys:admin",
                "members:admin",
                "signing_keys:admin",
            ]
        );
    }

    #[test]
    fn se_19_the_short_name_of_an_audience_is_part_of_a_variable() {
        for good in ["vault", "aws_sts", "s3"] {
            assert!(is_audience(good), "{good}");
        }
        for bad in ["", "Vault", "3s", "_x", "a-b", "a b", "bailiwick", "x_file", "ä", "x\n", "a=b"]
        {
            assert!(!is_audience(bad), "{bad}");
        }
        assert!(!is_audience(&"x".repeat(65)));
    }
}
