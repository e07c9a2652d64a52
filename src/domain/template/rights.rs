//! What a step asks for: permissions and audiences of its token, and the
//! templates of which it may make tasks. Whether its registrar may ask for
//! that is not decided here (`engine`).

use std::{collections::BTreeSet, sync::Arc};

use super::{
    super::{
        Permission, PermissionSet,
        rights::{OWN_AUDIENCE, is_audience, is_declarable},
    },
    check::NAME_MARKS,
    fields::{Field, Fields},
    findings::{Findings, shown},
};

/// What a step asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The permissions of its token.
    pub permissions: PermissionSet,
    /// The short names of the audiences outside for which it gets a token.
    pub audiences: Vec<Arc<str>>,
    /// The names of the templates of its namespace into which it may create
    /// tasks.
    pub spawns: Vec<Arc<str>>,
}

impl Asked {
    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// How many audiences and how many templates one step names.
const NAMES_MAX: usize = 100;

pub(super) fn read(fields: &Fields<'_>, findings: &mut Findings) -> Asked {
    let mut permissions = PermissionSet::empty();
    each(fields, "permissions", findings, |field, text, findings| {
        permission(field, text, &mut permissions, findings);
    });
    let mut audiences = Vec::new();
    each(fields, "audiences", findings, |field, text, findings| {
        if is_audience(text) {
            audiences.push(text.into());
        } else if text == OWN_AUDIENCE {
            field.fault("a step has its token for this server without that; take it out", findings);
        } else {
            let message = format!(
                "`{}` is not the short name of an audience: lower-case letters, digits and `_`, \
                 as `auth.namespaces` of the server names it",
                shown(text)
            );
            field.fault(message, findings);
        }
    });
    let mut spawns = Vec::new();
    each(fields, "spawns", findings, |field, _, findings| {
        spawns.extend(field.name(NAME_MARKS, findings).map(Into::into));
    });
    Asked { permissions, audiences, spawns }
}

/// SE-30: each by its name, so that what a reader sees is what a token has.
fn permission(
    field: &Field<'_>,
    text: &str,
    permissions: &mut PermissionSet,
    findings: &mut Findings,
) {
    match Permission::parse(text) {
        Some(found) if is_declarable(found) => {
            permissions.add(text, &BTreeSet::new());
        }
        Some(_) => {
            let message = format!("no step can have `{text}`; take it out");
            field.fault(message, findings);
        }
        None if text.ends_with('*') => {
            let text = shown(text);
            let message = format!("`{text}` is a wildcard; name each permission by itself");
            field.fault(message, findings);
        }
        None => {
            let hint = findings.suggestion(text, Permission::ALL.iter().map(|known| known.name()));
            field.fault(format!("`{}` is not a permission{hint}", shown(text)), findings);
        }
    }
}

/// The texts of a list, each once.
fn each(
    fields: &Fields<'_>,
    name: &str,
    findings: &mut Findings,
    mut take: impl FnMut(&Field<'_>, &str, &mut Findings),
) {
    let Some(field) = fields.get(name) else { return };
    let Some(items) = field.list(findings) else { return };
    if items.len() > NAMES_MAX {
        field.fault(format!("{} names; at most {NAMES_MAX} are taken", items.len()), findings);
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        let item = field.item(index, item);
        let Some(text) = item.text(findings) else { continue };
        if seen.insert(text) {
            take(&item, text, findings);
        } else {
            item.fault(format!("`{}` is given twice", shown(text)), findings);
        }
    }
}
