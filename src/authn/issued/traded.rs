//! Tokens that others were traded for: they end with what they came from.

use std::sync::Arc;

use super::{Index, Issue, Issued, Recalls, lineage};
use crate::{
    domain::{
        Timestamp,
        principal::{Identity, Source},
    },
    storage::{CredentialKind, CredentialRecord},
};

/// What may take a session back, and when it was issued.
type Recalled = (Arc<Recalls>, Option<Timestamp>);

impl Issue {
    /// Who traded its credential for it; none where it was given out.
    #[must_use]
    pub fn exchanged_by(&self) -> Option<&Identity> {
        (self.record.kind == CredentialKind::Exchanged).then_some(&self.record.created_by)
    }
}

impl Issued {
    /// What a credential was traded for ends with it, and is worked out again
    /// where it changed.
    pub(super) fn renew_traded(&self, index: &mut Index, id: &str) {
        let traded = |record: &CredentialRecord| {
            record.kind == CredentialKind::Exchanged && record.parent.as_deref() == Some(id)
        };
        let issues = index.by_id.values().map(|issue| &issue.record);
        let below: Vec<Arc<str>> =
            issues.filter(|record| traded(record)).map(|record| Arc::clone(&record.id)).collect();
        for id in below {
            self.renew(index, &id, |_| {});
        }
    }

    /// By whose recall a traded token ends: of the JWT at its beginning, which
    /// was issued before it.
    pub(super) fn recall_of(
        &self,
        index: &Index,
        record: &CredentialRecord,
    ) -> (Option<Recalled>, Option<Identity>) {
        if record.kind != CredentialKind::Exchanged {
            return (None, None);
        }
        if record.created_by.source == Source::Idp {
            let recall = (Arc::clone(&self.recalls), Some(record.created_at));
            return (Some(recall), Some(record.created_by.clone()));
        }
        let parent = record.parent.as_ref().and_then(|parent| index.by_id.get(parent));
        parent.map_or((None, None), |parent| {
            (parent.session.recall.clone(), parent.session.traded_for.clone())
        })
    }
}

/// When a credential ends: with its line, and a traded one with the very
/// credential that it came from, whatever succeeds that.
pub(super) fn end(index: &Index, record: &CredentialRecord) -> Option<Timestamp> {
    let exchanged = record.kind == CredentialKind::Exchanged;
    let parent = record.parent.as_ref().filter(|_| exchanged);
    let parent = parent.and_then(|parent| index.by_id.get(parent)?.session.principal.not_after);
    lineage(index, record).filter_map(|record| record.expires_at).chain(parent).min()
}

/// Whether a traded token hangs on a credential that was taken back or is gone.
pub(super) fn lost_parent(index: &Index, record: &CredentialRecord) -> bool {
    let exchanged = record.kind == CredentialKind::Exchanged;
    let Some(parent) = record.parent.as_ref().filter(|_| exchanged) else { return false };
    index.by_id.get(parent).is_none_or(|parent| parent.session.revoked.is_cancelled())
}
