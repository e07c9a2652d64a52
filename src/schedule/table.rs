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

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        Timestamp,
        principal::{GrantRef, Identity, Method, Source},
        schedule::Runner,
        task::{Backoff, RetryPolicy},
    };

    fn id(name: &str) -> Identifier {
        Identifier::parse(name).unwrap()
    }

    fn rule(name: &str, pattern: &str) -> Rule {
        let (retryable, max_attempts) = (false, 1);
        let (backoff, base_ms, max_ms) = (Backoff::Fixed, 0, 0);
        Rule {
            id: id(name),
            pattern: pattern.into(),
            runner: Runner::Shell { command: "true".into() },
            retry: RetryPolicy { retryable, max_attempts, backoff, base_ms, max_ms },
            owner: GrantRef {
                identity: Identity {
                    source: Source::Config,
                    issuer: "".into(),
                    subject: "owner".into(),
                },
                method: Method::Token,
                credential_id: "credential".into(),
                grants: Vec::new(),
                set_at: Timestamp::from_micros(0),
                issued_at: None,
                until: None,
            },
        }
    }

    fn found(table: &RuleTable, job: &str) -> Option<String> {
        table.of_job(&id(job)).map(|rule| rule.id.to_string())
    }

    #[test]
    fn the_longest_pattern_counts() {
        let rules = [("a", "deploy."), ("b", "deploy.release."), ("c", "dep"), ("ü", "ü.ö")];
        let table = RuleTable::new(rules.map(|(name, pattern)| rule(name, pattern)).to_vec());
        for (job, wanted) in [
            ("deploy.x", Some("a")),
            ("deploy.", Some("a")),
            ("deploy.release.1", Some("b")),
            ("deploy.releas", Some("a")),
            ("deploy", Some("c")),
            ("de", None),
            ("Deploy.x", None),
            // A pattern's length may end within a character of a job's name.
            ("ü.ö1", Some("ü")),
            ("üü", None),
            ("de\u{10ffff}\u{10ffff}", None),
        ] {
            assert_eq!(found(&table, job).as_deref(), wanted, "{job}");
        }
        let table = table.with(Arc::new(rule("all", "")));
        assert_eq!(found(&table, "de").as_deref(), Some("all"));
        assert_eq!(found(&table, "deploy.x").as_deref(), Some("a"));
        assert_eq!(found(&RuleTable::default(), "de"), None);
    }

    #[test]
    fn of_rules_with_one_pattern_the_first_by_name_counts() {
        let table = RuleTable::new(vec![rule("b", "x."), rule("a", "x."), rule("c", "x")]);
        assert_eq!(found(&table, "x.1").as_deref(), Some("a"));
        let without = table.without(&id("a"));
        assert_eq!(found(&without, "x.1").as_deref(), Some("b"));
        assert_eq!(found(&without.without(&id("b")), "x.1").as_deref(), Some("c"));
        assert_eq!(found(&table, "x.1").as_deref(), Some("a"), "the older table stays");
        // A rule that is replaced leaves its pattern.
        let other = table.with(Arc::new(rule("a", "y.")));
        assert_eq!(found(&other, "x.1").as_deref(), Some("b"));
        assert_eq!(found(&other, "y.1").as_deref(), Some("a"));
        assert_eq!(other.get(&id("a")).map(|rule| rule.pattern.to_string()).as_deref(), Some("y."));
        assert!(other.without(&id("a")).get(&id("a")).is_none());
        assert_eq!(other.by_name().count(), 3);
    }
}
