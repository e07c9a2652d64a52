//! Reads the fields of a map and complains of what is not understood.
//!
//! Not here: which fields there are; that is `check`.

use std::{collections::BTreeSet, str::FromStr};

use super::{
    document::{Node, Value, checked_key},
    findings::{Findings, Path, Place, shown},
};

/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// A map whose keys are all known.
pub(super) struct Fields<'a> {
    place: Place,
    path: Path,
    entries: Vec<(&'a str, &'a Node)>,
}

/// A field that is written, with its path.
pub(super) struct Field<'a> {
    pub(super) node: &'a Node,
    pub(super) path: Path,
}

impl<'a> Fields<'a> {
    /// Reads a map; every key that is not known, or is there twice, is a fault.
    pub(super) fn read(
        node: &'a Node,
        path: &Path,
        known: &[&str],
        findings: &mut Findings,
    ) -> Option<Self> {
        let Value::Map(written) = &node.value else {
            let message = format!("expected a map, found {}", node.kind());
            findings.error(node.place, path, message);
            return None;
        };
        let mut seen = BTreeSet::new();
        let mut entries = Vec::with_capacity(written.len());
        for (key, value) in written {
            let Some(name) = checked_key(key, path, findings) else { continue };
            let below = path.field(&name);
            if !seen.insert(name.clone()) {
                findings.error(key.place, &below, format!("`{}` is given twice", shown(&name)));
                continue;
            }
            if let Value::Text(name) = &key.value
                && known.contains(&name.as_str())
            {
                entries.push((name.as_str(), value));
            } else {
                let hint = findings.suggestion(&name, known.iter().copied());
                let message = format!("`{}` is not a field here{hint}", shown(&name));
                findings.error(key.place, &below, message);
            }
        }
        Some(Self { place: node.place, path: path.clone(), entries })
    }

    /// The field, if it is written and not null.
    pub(super) fn get(&self, name: &str) -> Option<Field<'a>> {
        let (_, node) = self.entries.iter().find(|(known, _)| *known == name)?;
        (!node.is_null()).then(|| Field { node, path: self.path.field(name) })
    }

    /// The field; without it a fault.
    pub(super) fn require(&self, name: &str, findings: &mut Findings) -> Option<Field<'a>> {
        let field = self.get(name);
        if field.is_none() {
            let place = self.entries.iter().find(|(known, _)| *known == name);
            let place = place.map_or(self.place, |(_, node)| node.place);
            findings.error(place, &self.path.field(name), format!("`{name}` is required"));
        }
        field
    }

    /// The one of two spellings that is written; both are a fault.
    pub(super) fn either(
        &self,
        name: &str,
        synonym: &str,
        findings: &mut Findings,
    ) -> Option<Field<'a>> {
        let (first, second) = (self.get(name), self.get(synonym));
        if let (Some(_), Some(second)) = (&first, &second) {
            let message = format!("`{synonym}` says the same as `{name}`: give only one of them");
            findings.error(second.node.place, &second.path, message);
        }
        first.or(second)
    }

    /// The text of a field, if it is written.
    pub(super) fn text(&self, name: &str, findings: &mut Findings) -> Option<&'a str> {
        self.get(name).and_then(|field| field.text(findings))
    }

    /// Warns of those fields that have no effect yet.
    pub(super) fn warn_without_effect(&self, names: &[&str], findings: &mut Findings) {
        for name in names {
            if let Some(field) = self.get(name) {
                let message = format!("`{name}` is understood but has no effect yet");
                findings.warning(field.node.place, &field.path, message);
            }
        }
    }
}

impl<'a> Field<'a> {
    /// Adds a fault of this field.
    pub(super) fn fault(&self, message: impl Into<String>, findings: &mut Findings) {
        findings.error(self.node.place, &self.path, message);
    }

    /// Its text.
    pub(super) fn text(&self, findings: &mut Findings) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Number(number) => {
                let number = shown(number);
                self.fault(
                    format!("expected text, found the number {number}: put it in quotes"),
                    findings,
                );
                None
            }
            Value::Null | Value::Bool(_) | Value::List(_) | Value::Map(_) => {
                self.fault(format!("expected text, found {}", self.node.kind()), findings);
                None
            }
        }
    }

    /// Its text as a name: what the grammar allows, and not too long.
    pub(super) fn name(&self, punctuation: &str, findings: &mut Findings) -> Option<&'a str> {
        let text = self.text(findings)?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || punctuation.contains(c);
        if !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.chars().all(allowed) {
            return Some(text);
        }
        let marks: Vec<String> = punctuation.chars().map(|c| format!("`{c}`")).collect();
        self.fault(
            format!(
                "`{}` is not a name: 1 to {NAME_BYTES_MAX} ASCII letters, digits and {}",
                shown(text),
                marks.join(" ")
            ),
            findings,
        );
        None
    }

    /// Its truth value.
    pub(super) fn truth(&self, findings: &mut Findings) -> Option<bool> {
        if let Value::Bool(value) = self.node.value {
            return Some(value);
        }
        self.fault(format!("expected true or false, found {}", self.node.kind()), findings);
        None
    }

    /// Its whole number in a range.
    pub(super) fn whole(
        &self,
        range: std::ops::RangeInclusive<u32>,
        findings: &mut Findings,
    ) -> Option<u32> {
        let (lowest, highest) = range.clone().into_inner();
        if let Value::Number(text) = &self.node.value {
            if let Some(number) = u32::from_str(text).ok().filter(|number| range.contains(number)) {
                return Some(number);
            }
            let text = shown(text);
            let message = format!("{text} is not a whole number from {lowest} to {highest}");
            self.fault(message, findings);
        } else {
            let kind = self.node.kind();
            let message =
                format!("expected a whole number from {lowest} to {highest}, found {kind}");
            self.fault(message, findings);
        }
        None
    }

    /// Its items.
    pub(super) fn list(&self, findings: &mut Findings) -> Option<&'a [Node]> {
        if let Value::List(items) = &self.node.value {
            return Some(items);
        }
        self.fault(format!("expected a list, found {}", self.node.kind()), findings);
        None
    }

    /// The fields of its map.
    pub(super) fn fields(&self, known: &[&str], findings: &mut Findings) -> Option<Fields<'a>> {
        Fields::read(self.node, &self.path, known, findings)
    }

    /// An item of its list.
    pub(super) fn item(&self, index: usize, node: &'a Node) -> Self {
        Self { node, path: self.path.item(index) }
    }
}
