//! The vocabulary of permissions, and sets of them.

use std::{collections::BTreeSet, fmt, sync::Arc};

macro_rules! vocabulary {
    ($($variant:ident = $name:literal, $description:literal;)*) => {
        /// One permission of the vocabulary, `resource:action`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Permission {
            $(#[doc = $description] $variant,)*
        }

        impl Permission {
            /// All of them, in the order in which they are shown.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name, as `tasks:create`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it allows, one sentence.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => $description,)* }
            }

            /// The permission of this name.
            #[must_use]
            pub fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            /// Its place in [`Self::ALL`].
            #[expect(clippy::as_conversions, reason = "the discriminant of an enum without fields")]
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }

            const fn bit(self) -> u64 {
                1 << self.index()
            }
        }

        /// One type for each permission, for the proofs of `authz`.
        pub mod right {
            $(#[doc = $description] #[derive(Clone, Copy, Debug)] pub enum $variant {})*
            $(impl super::Right for $variant {
                const PERMISSION: super::Permission = super::Permission::$variant;
            })*
        }
    };
}

/// A permission as a type.
pub trait Right: Send + Sync + 'static {
    /// The permission.
    const PERMISSION: Permission;
}

vocabulary! {
    TasksCreate = "tasks:create", "Create tasks.";
    TasksRead = "tasks:read", "Read and watch tasks.";
    TasksList = "tasks:list", "List tasks.";
    TasksCancel = "tasks:cancel", "Cancel tasks.";
    TasksContextRead = "tasks:context_read", "Read the context that a task was created with.";
    StepsRead = "steps:read", "Read steps with their results, errors and history.";
    StepsResolve = "steps:resolve", "Reset, resolve or complete steps by hand.";
    DlqRead = "dlq:read", "Read dead letters.";
    DlqUpdate = "dlq:update", "Work on dead letters.";
    DlqStats = "dlq:stats", "Read figures about dead letters.";
    TemplatesRead = "templates:read", "List and read templates.";
    TemplatesValidate = "templates:validate", "Check template definitions.";
    TemplatesRegister = "templates:register", "Register templates.";
    SystemConfigRead = "system:config_read", "Read the server's configuration, redacted.";
    SystemHandlersRead = "system:handlers_read", "List handlers.";
    SystemAnalyticsRead = "system:analytics_read", "Read analytics.";
    WorkerConfigRead = "worker:config_read", "Read a worker's configuration, redacted.";
    WorkerTemplatesRead = "worker:templates_read", "Read the templates that a worker knows.";
    WorkLease = "work:lease", "Be a worker: lease steps and report on them.";
    SchedulesRead = "schedules:read", "Read jobs and the scheduler's figures.";
    SchedulesWrite = "schedules:write", "Set and remove jobs.";
    RulesRead = "rules:read", "Read the scheduler's rules.";
    RulesWrite = "rules:write", "Set and remove the scheduler's rules.";
    CommandsExecute = "commands:execute", "Attach runners that start processes.";
    TokensIntrospect = "tokens:introspect", "Introspect tokens and check access for other services.";
    NodesRead = "nodes:read", "List and read nodes and workers.";
    NodesWrite = "nodes:write", "Register and remove nodes.";
    KafkaEndpointRead = "kafka:endpoint:read", "Read event endpoints.";
    KafkaEndpointWrite = "kafka:endpoint:write", "Register, verify and remove event endpoints.";
    ApiKeysAdmin = "api_keys:admin", "Create, revoke and delete API keys.";
    MembersAdmin = "members:admin", "Manage an organisation's members.";
    SigningKeysAdmin = "signing_keys:admin", "Create, rotate and retire signing keys.";
    AuditRead = "audit:read", "Read the audit log and explain others' decisions.";
}

impl Permission {
    /// The resource: what stands before the last colon.
    #[must_use]
    pub fn resource(self) -> &'static str {
        self.name().rsplit_once(':').map_or("", |(resource, _)| resource)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of permissions: those of the vocabulary as bits, foreign ones by
/// name, and whether it was written `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PermissionSet {
    bits: u64,
    star: bool,
    foreign: BTreeSet<Arc<str>>,
}

impl PermissionSet {
    /// Nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// `*`: every permission.
    #[must_use]
    pub fn star() -> Self {
        Self { bits: u64::MAX, star: true, foreign: BTreeSet::new() }
    }

    /// Adds one permission, `resource:*` or `*`. `foreign` are the names that
    /// configuration declares besides. Answers whether the name was known.
    pub fn add(&mut self, name: &str, foreign: &BTreeSet<Arc<str>>) -> bool {
        if name == "*" {
            *self = Self::star();
            return true;
        }
        if let Some(permission) = Permission::parse(name) {
            self.bits |= permission.bit();
            return true;
        }
        if let Some(known) = foreign.get(name) {
            self.foreign.insert(Arc::clone(known));
            return true;
        }
        let Some(resource) = name.strip_suffix(":*") else { return false };
        let covered = Permission::ALL.iter().filter(|permission| permission.resource() == resource);
        let bits = covered.fold(0, |bits, permission| bits | permission.bit());
        let strangers: Vec<_> = foreign
            .iter()
            .filter(|name| name.rsplit_once(':').is_some_and(|(of, _)| of == resource))
            .cloned()
            .collect();
        self.bits |= bits;
        let known = bits != 0 || !strangers.is_empty();
        self.foreign.extend(strangers);
        known
    }

    /// What is in this set, in that one, or in both.
    pub fn extend(&mut self, other: &Self) {
        if self.star || other.star {
            *self = Self::star();
        } else {
            self.bits |= other.bits;
            self.foreign.extend(other.foreign.iter().cloned());
        }
    }

    /// What is in both; `*` only when both are.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        match (self.star, other.star) {
            (true, _) => other.clone(),
            (_, true) => self.clone(),
            (false, false) => Self {
                bits: self.bits & other.bits,
                star: false,
                foreign: self.foreign.intersection(&other.foreign).cloned().collect(),
            },
        }
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.star && self.bits == 0 && self.foreign.is_empty()
    }

    /// Whether a permission is in it.
    #[must_use]
    pub fn contains(&self, permission: Permission) -> bool {
        self.star || self.bits & permission.bit() != 0
    }

    /// Whether a foreign permission is in it.
    #[must_use]
    pub fn contains_foreign(&self, name: &str) -> bool {
        self.star || self.foreign.contains(name)
    }

    /// Its permissions of the vocabulary.
    pub fn own(&self) -> impl Iterator<Item = Permission> + '_ {
        Permission::ALL.iter().copied().filter(|permission| self.contains(*permission))
    }

    /// Its permissions of other services.
    pub fn foreign(&self) -> impl Iterator<Item = &Arc<str>> {
        self.foreign.iter()
    }

    /// Whether it was written `*`.
    #[must_use]
    pub fn is_star(&self) -> bool {
        self.star
    }

    /// The names in the vocabulary's order; `*` alone for everything.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        if self.star {
            return vec!["*".to_owned()];
        }
        let own = Permission::ALL.iter().filter(|permission| self.contains(**permission));
        own.map(|permission| permission.name().to_owned())
            .chain(self.foreign.iter().map(|name| name.as_ref().to_owned()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> PermissionSet {
        let mut set = PermissionSet::empty();
        for name in names {
            assert!(set.add(name, &BTreeSet::new()), "{name}");
        }
        set
    }

    #[test]
    fn every_name_finds_its_permission() {
        assert!(Permission::ALL.len() <= 64);
        for permission in Permission::ALL {
            assert_eq!(Permission::parse(permission.name()), Some(*permission));
            assert_eq!(Permission::ALL[permission.index()], *permission);
            assert_eq!(set(&[permission.name()]).names(), [permission.name()]);
        }
    }

    #[test]
    fn tk_27_to_29_a_wildcard_covers_its_resource_and_nothing_else() {
        let tasks = set(&["tasks:*"]);
        for permission in Permission::ALL {
            assert_eq!(tasks.contains(*permission), permission.resource() == "tasks");
        }
        assert!(!set(&["tasks:read"]).add("tasks", &BTreeSet::new()));
        assert!(!set(&["tasks:read"]).add("task*:*", &BTreeSet::new()));
    }

    #[test]
    fn se_03_old_wildcards_gain_nothing_new() {
        for old in ["tasks:*", "steps:*", "dlq:*", "system:*"] {
            for new in [
                Permission::WorkLease,
                Permission::CommandsExecute,
                Permission::TokensIntrospect,
                Permission::TemplatesRegister,
            ] {
                assert!(!set(&[old]).contains(new), "{old} {new}");
            }
        }
    }

    #[test]
    fn se_02_a_ceiling_cuts_and_star_stays_star_under_star_alone() {
        let star = PermissionSet::star();
        let some = set(&["tasks:read", "steps:read"]);
        assert!(star.intersection(&star).is_star());
        for cut in [star.intersection(&some), some.intersection(&star)] {
            assert_eq!(cut, some);
            assert!(!cut.is_star());
        }
        assert_eq!(some.intersection(&set(&["tasks:*"])), set(&["tasks:read"]));
        assert!(some.intersection(&set(&["dlq:read"])).is_empty());

        let declared = BTreeSet::from([Arc::from("bundles:read"), Arc::from("bundles:write")]);
        let mut both = PermissionSet::empty();
        assert!(both.add("bundles:*", &declared));
        let mut one = PermissionSet::empty();
        assert!(one.add("bundles:read", &declared));
        assert_eq!(both.intersection(&one), one);
        assert_eq!(star.intersection(&one), one);
        one.extend(&some);
        assert!(one.contains_foreign("bundles:read") && one.contains(Permission::StepsRead));
    }

    #[test]
    fn foreign_permissions_are_known_only_when_declared() {
        let declared = BTreeSet::from([Arc::from("bundles:read")]);
        let mut holder = PermissionSet::empty();
        assert!(holder.add("bundles:*", &declared) && holder.contains_foreign("bundles:read"));
        assert!(!holder.add("bundles:*", &BTreeSet::new()));
    }
}
