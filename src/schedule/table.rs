//! The rules in memory: which one is a job's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::domain::schedule::{Identifier, Rule};

/// All rules, by name and by pattern.
#[derive(Debug, Default)]
pub(super) struct RuleTable {
    by_name: BTreeMap<Identifier, Arc<Rule>>,
    /// Of several rules with one pattern the first by name.
    by_pattern: HashMap<Arc<str>, Arc<Rule>>,
    /// How long the patterns are, in bytes: as many look-ups find a rule.
    lengths: BTreeSet<usize>,
}

impl RuleTable {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        Self::of(rules.into_iter().map(|rule| (rule.id.clone(), Arc::new(rule))).collect())
    }

    fn of(by_name: BTreeMap<Identifier, Arc<Rule>>) -> Self {
        let mut by_pattern = HashMap::new();
        let mut lengths = BTreeSet::new();
        for rule in by_name.values() {
            lengths.insert(rule.pattern.len());
            by_pattern.entry(Arc::clone(&rule.pattern)).or_insert_with(|| Arc::clone(rule));
        }
        Self { by_name, by_pattern, lengths }
    }

    /// The table with one rule more, or another of this name.
    pub(super) fn with(&self, rule: Arc<Rule>) -> Self {
        let mut by_name = self.by_name.clone();
        by_name.insert(rule.id.clone(), rule);
        Self::of(by_name)
    }

    pub(super) fn without(&self, id: &Identifier) -> Self {
        let mut by_name = self.by_name.clone();
        by_name.remove(id);
        Self::of(by_name)
    }

    pub(super) fn get(&self, id: &Identifier) -> Option<Arc<Rule>> {
        self.by_name.get(id).cloned()
    }

    pub(super) fn by_name(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.by_name.values()
    }

    /// The rule with the longest pattern that a job's name begins with.
    pub(super) fn of_job(&self, job: &Identifier) -> Option<&Arc<Rule>> {
        self.lengths
            .iter()
            .rev()
            .filter_map(|length| job.as_str().get(..*length))
            .find_map(|start| self.by_pattern.get(start))
    }
}
