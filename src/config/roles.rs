//! `[auth.roles]`: names for permissions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Error, raw};
use crate::domain::PermissionSet;

/// The roles that every server knows (TK-52).
const BUILT_IN: &[(&str, &[&str])] = &[
    (
        "read-only-operator",
        &[
            "tasks:read",
            "tasks:list",
            "steps:read",
            "templates:read",
            "nodes:read",
            "system:handlers_read",
        ],
    ),
    ("task-submitter", &["tasks:create", "tasks:read", "tasks:list"]),
    ("ops-admin", &["tasks:*", "steps:*", "templates:*", "nodes:read", "system:*"]),
    ("worker-service", &["work:lease"]),
    ("superuser", &["*"]),
];

/// What the names of roles mean.
#[derive(Clone, Debug)]
pub struct Roles(Arc<BTreeMap<String, PermissionSet>>);

impl Default for Roles {
    fn default() -> Self {
        let known = BUILT_IN.iter().map(|(name, permissions)| {
            let mut set = PermissionSet::empty();
            for permission in *permissions {
                set.add(permission, &BTreeSet::new());
            }
            ((*name).to_owned(), set)
        });
        Self(Arc::new(known.collect()))
    }
}

impl Roles {
    pub(super) fn with(
        raw: &BTreeMap<String, raw::Role>,
        foreign: &BTreeSet<Arc<str>>,
    ) -> Result<Self, Error> {
        let built_in = Self::default();
        let mut all = built_in.0.as_ref().clone();
        for (name, role) in raw {
            let wrong = |problem: String| {
                Err(Error::invalid(format!("auth.roles.{}", name.escape_debug()), problem))
            };
            if !Self::is_name(name) {
                return wrong("a role's name is of the letters a-z, digits and `-`".to_owned());
            }
            if built_in.0.contains_key(name) {
                return wrong("this role is built in; give yours another name".to_owned());
            }
            let mut set = PermissionSet::empty();
            for permission in &role.permissions {
                if !set.add(permission, foreign) {
                    return wrong(format!("unknown permission `{}`", permission.escape_debug()));
                }
            }
            all.insert(name.clone(), set);
        }
        Ok(Self(Arc::new(all)))
    }

    /// Adds a permission or, as `role:NAME`, those of a role. Answers whether
    /// the name was known.
    pub fn add(&self, set: &mut PermissionSet, name: &str, foreign: &BTreeSet<Arc<str>>) -> bool {
        match name.strip_prefix("role:").and_then(|role| self.0.get(role)) {
            Some(role) => {
                set.extend(role);
                true
            }
            None => set.add(name, foreign),
        }
    }

    /// Whether a role may be called so.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        !name.is_empty() && name.bytes().all(|byte| letter(byte) || byte == b'-')
    }

    /// Every role with what it holds, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &PermissionSet)> {
        self.0.iter().map(|(name, set)| (name.as_str(), set))
    }

    pub(super) fn set(
        &self,
        names: &[String],
        foreign: &BTreeSet<Arc<str>>,
    ) -> Result<PermissionSet, String> {
        let mut set = PermissionSet::empty();
        for name in names {
            if !self.add(&mut set, name, foreign) {
                let what = if name.starts_with("role:") { "role" } else { "permission" };
                return Err(format!("unknown {what} `{}`", name.escape_debug()));
            }
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tk_52_built_in_roles() {
        let roles = Roles::default();
        let none = BTreeSet::new();
        for (name, permissions) in BUILT_IN {
            let set = roles.set(&[format!("role:{name}")], &none).unwrap();
            let plain: Vec<String> = permissions.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(set, roles.set(&plain, &none).unwrap(), "{name}");
            assert!(!set.is_empty());
        }
        assert!(roles.set(&["role:nobody".to_owned()], &none).is_err());
    }
}
