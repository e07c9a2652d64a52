//! Tokens that were verified a moment ago. Only good ones are kept, for at
//! most a minute and never beyond their end; the key is the digest of a
//! token that was presented as a bearer, the only way a JWT can come.

use std::{sync::Arc, time::Duration};

use super::Session;
use crate::domain::Timestamp;

/// How many tokens are kept.
const TOKENS_MAX: u64 = 10_000;
/// How long one is kept.
const LIFE: Duration = Duration::from_mins(1);

/// A token's session, and until when it need not be verified again.
#[derive(Clone)]
pub(super) struct Verified {
    session: Arc<Session>,
    until: Timestamp,
}

impl Verified {
    pub(super) fn new(session: Arc<Session>, now: Timestamp, not_after: Option<Timestamp>) -> Self {
        let until = now.plus(LIFE);
        Self { session, until: not_after.map_or(until, |end| until.min(end)) }
    }
}

pub(super) struct Cache(moka::sync::Cache<[u8; 32], Verified>);

impl Cache {
    pub(super) fn new() -> Self {
        // The life by moka's own clock holds when the wall clock jumps back.
        Self(moka::sync::Cache::builder().max_capacity(TOKENS_MAX).time_to_live(LIFE).build())
    }

    pub(super) fn get(&self, digest: &[u8; 32], now: Timestamp) -> Option<Arc<Session>> {
        let verified = self.0.get(digest)?;
        (now < verified.until && !verified.session.is_revoked()).then_some(verified.session)
    }

    /// The session that is kept from now on, and whether it is this one:
    /// of calls that verify one token at the same time only one is fresh.
    pub(super) fn insert(
        &self,
        digest: &[u8; 32],
        verified: Verified,
        now: Timestamp,
    ) -> (Arc<Session>, bool) {
        let stale = |kept: &Verified| kept.until <= now || kept.session.is_revoked();
        let entry = self.0.entry_by_ref(digest).or_insert_with_if(|| verified, stale);
        let fresh = entry.is_fresh();
        (entry.into_value().session, fresh)
    }
}
