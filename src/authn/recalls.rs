//! JWTs that were taken back before their end: those of an issuer, or of one
//! of its subjects, that were issued until a moment (SE-47).

use std::{
    collections::HashMap,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    domain::{Timestamp, principal::Identity},
    storage::Recall,
};

/// Until when an issuer's tokens count no more.
#[derive(Debug, Default)]
struct Recalled {
    everybody: Option<Timestamp>,
    subjects: HashMap<String, Timestamp>,
}

/// What was taken back.
#[derive(Debug, Default)]
pub struct Recalls {
    /// Spares most servers the look-up.
    any: AtomicBool,
    issuers: RwLock<HashMap<String, Recalled>>,
}

impl Recalls {
    /// Takes one up that is on disk now.
    pub fn insert(&self, recall: Recall) {
        let Recall { issuer, subject, until } = recall;
        let mut issuers = self.issuers.write().unwrap_or_else(PoisonError::into_inner);
        let recalled = issuers.entry(issuer).or_default();
        let kept = match subject {
            Some(subject) => recalled.subjects.entry(subject).or_insert(until),
            None => recalled.everybody.get_or_insert(until),
        };
        *kept = until.max(*kept);
        self.any.store(true, Ordering::Release);
    }

    /// Whether a token of this identity that was issued then counts no more.
    /// One that does not say when it was issued counts as old.
    #[must_use]
    pub fn covers(&self, identity: &Identity, issued_at: Option<Timestamp>) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let issuers = self.issuers.read().unwrap_or_else(PoisonError::into_inner);
        let Some(recalled) = issuers.get(&*identity.issuer) else { return false };
        let covers = |until: &Timestamp| issued_at.is_none_or(|at| at <= *until);
        recalled.everybody.as_ref().is_some_and(covers)
            || recalled.subjects.get(&*identity.subject).is_some_and(covers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::principal::Source;

    #[test]
    fn se_47_what_was_issued_before_counts_no_more() {
        let recalls = Recalls::default();
        let at = Timestamp::from_seconds;
        let whom = |issuer: &str, subject: &str| Identity {
            source: Source::Idp,
            issuer: issuer.into(),
            subject: subject.into(),
        };
        let recall = |issuer: &str, subject: Option<&str>, until| Recall {
            issuer: issuer.to_owned(),
            subject: subject.map(str::to_owned),
            until: at(until),
        };
        assert!(!recalls.covers(&whom("i", "s"), Some(at(5))));
        recalls.insert(recall("i", Some("s"), 10));
        recalls.insert(recall("i", Some("s"), 8));
        assert!(recalls.covers(&whom("i", "s"), Some(at(10))));
        assert!(recalls.covers(&whom("i", "s"), None));
        assert!(!recalls.covers(&whom("i", "s"), Some(at(11))));
        assert!(!recalls.covers(&whom("i", "t"), Some(at(5))));
        assert!(!recalls.covers(&whom("j", "s"), Some(at(5))));
        recalls.insert(recall("i", None, 20));
        assert!(recalls.covers(&whom("i", "t"), Some(at(20))));
        assert!(recalls.covers(&whom("i", "s"), Some(at(11))));
    }
}
