//! How many calls each caller has (ZE-45, SE-43): a bucket per credential,
//! else per address, for each class of calls. Nothing that a caller may choose
//! makes a bucket of its own: only what was verified, and the address.
//!
//! Not here: which address a call comes from (`server`), and how the state is
//! shown (`server`).

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hash, RandomState},
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    refusal::{Kind, Reason, Refusal},
    table::RateClass,
};
use crate::{
    authn::ConfiguredKey,
    config::{OwnRate, Rate, Rates},
    domain::{
        Principal, Timestamp,
        network::client,
        principal::{Identity, Source},
    },
};

/// The most buckets that a table holds.
const BUCKETS_MAX: usize = 100_000;
/// Parts of a table, each with a lock of its own.
const SHARDS: usize = 16;
const SHARDS_U64: u64 = 16;
const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// What is left in a caller's bucket, for the headers of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateState {
    /// How many calls may come at once.
    pub limit: u32,
    /// How many may still come now.
    pub remaining: u32,
    /// Seconds until the bucket is full again, rounded up.
    pub reset: u32,
}

/// Whose bucket it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    /// One credential of perhaps many of an identity.
    Credential(Identity, Arc<str>),
    /// All credentials of an identity: who can have new ones made at will
    /// has no new bucket with each.
    Identity(Identity),
    /// Auth is off.
    Address(IpAddr),
    /// Auth is off, and where the call comes from is not known.
    Nowhere,
}

/// The limits in force.
pub(super) struct Limits {
    classes: [(RateClass, Option<Quota>); 4],
    /// Of configured keys with a limit of their own, in place of their
    /// classes', by id.
    own: HashMap<Arc<str>, Option<Quota>>,
    calls: Buckets<(Who, RateClass)>,
    failed: Option<Quota>,
    failures: Buckets<Option<IpAddr>>,
    inspected: Option<Quota>,
    inspections: Buckets<Who>,
    /// Whether answers say what is left.
    shown: bool,
}

impl Limits {
    pub(super) fn new(rates: &Rates) -> Self {
        let classes = [
            (RateClass::Standard, rates.standard),
            (RateClass::Heavy, rates.heavy),
            (RateClass::Work, rates.work),
            (RateClass::Credentials, rates.credentials),
        ]
        .map(|(class, rate)| (class, rate.map(Quota::per_second)));
        Self {
            shown: classes.iter().any(|(_, quota)| quota.is_some()),
            classes,
            own: HashMap::new(),
            calls: Buckets::new(BUCKETS_MAX),
            failed: rates.failed_auth_per_minute.map(Quota::per_minute),
            failures: Buckets::new(BUCKETS_MAX),
            inspected: rates.failed_introspections_per_minute.map(Quota::per_minute),
            inspections: Buckets::new(BUCKETS_MAX),
        }
    }

    /// With the limits that these keys have of their own.
    pub(super) fn with_keys(self, keys: &[ConfiguredKey]) -> Self {
        let own = keys.iter().filter_map(|key| match key.rate {
            OwnRate::None => None,
            OwnRate::Unlimited => Some((Arc::clone(&key.id), None)),
            OwnRate::Limited(rate) => Some((Arc::clone(&key.id), Some(Quota::per_second(rate)))),
        });
        let own: HashMap<_, _> = own.collect();
        Self { shown: self.shown || own.values().any(Option::is_some), own, ..self }
    }

    /// Takes one call out of the caller's bucket.
    pub(super) fn take(
        &self,
        class: RateClass,
        principal: &Principal,
        peer: Option<IpAddr>,
        now: Timestamp,
    ) -> Result<Option<RateState>, Refusal> {
        let Some(quota) = self.quota(class, principal) else { return Ok(None) };
        let taken = self.calls.take((who(principal, peer), class), quota, now);
        taken.map(Some).map_err(|over| self.too_many(over, "Too many calls; try again later"))
    }

    /// What is left of the caller's, for an answer that costs nothing.
    pub(super) fn look(
        &self,
        class: RateClass,
        principal: &Principal,
        peer: Option<IpAddr>,
        now: Timestamp,
    ) -> Option<RateState> {
        let quota = self.quota(class, principal)?;
        Some(self.calls.look(&(who(principal, peer), class), quota, now))
    }

    /// Counts a failed authentication. Never asked about a good credential,
    /// so nobody is locked out by another's failures (SE-43).
    pub(super) fn fail(
        &self,
        peer: Option<IpAddr>,
        now: Timestamp,
    ) -> Result<Option<RateState>, Refusal> {
        let Some(quota) = self.failed else { return Ok(None) };
        match self.failures.take(peer.map(client), quota, now) {
            Ok(state) => Ok(self.shown.then_some(state)),
            Err(over) => {
                Err(self.too_many(over, "Too many failed authentications; try again later"))
            }
        }
    }

    /// What is left of the failed authentications of an address.
    pub(super) fn look_failed(&self, peer: Option<IpAddr>, now: Timestamp) -> Option<RateState> {
        let quota = self.failed.filter(|_| self.shown)?;
        Some(self.failures.look(&peer.map(client), quota, now))
    }

    /// Counts a look-up of a credential that does not count (SE-42).
    pub(super) fn fail_inspection(&self, by: &Principal, now: Timestamp) -> Result<(), Refusal> {
        let Some(quota) = self.inspected else { return Ok(()) };
        let taken = self.inspections.take(who(by, None), quota, now);
        taken.map(drop).map_err(|over| self.too_many_bad(over))
    }

    /// Whether one more may fail.
    pub(super) fn look_inspection(&self, by: &Principal, now: Timestamp) -> Result<(), Refusal> {
        let Some(quota) = self.inspected else { return Ok(()) };
        let state = self.inspections.look(&who(by, None), quota, now);
        if state.remaining > 0 {
            return Ok(());
        }
        let wait = u64::try_from(quota.interval).unwrap_or(0);
        Err(self.too_many_bad(Over { retry_after: Duration::from_nanos(wait), state }))
    }

    fn too_many_bad(&self, over: Over) -> Refusal {
        let message = "Too many of the credentials that were asked about do not count; \
                       try again later";
        self.too_many(over, message)
    }

    fn quota(&self, class: RateClass, principal: &Principal) -> Option<Quota> {
        if !self.own.is_empty()
            && principal.identity.source == Source::Config
            && let Some(own) = self.own.get(&principal.credential_id)
        {
            return *own;
        }
        self.classes.iter().find(|(known, _)| *known == class).and_then(|(_, quota)| *quota)
    }

    fn too_many(&self, over: Over, message: &str) -> Refusal {
        Refusal {
            retry_after: Some(over.retry_after),
            rate: self.shown.then_some(over.state),
            ..Refusal::new(Kind::TooMany, Reason::RateLimited, message)
        }
    }
}

/// Whose bucket a call is taken from.
fn who(principal: &Principal, peer: Option<IpAddr>) -> Who {
    let Principal { identity, credential_id, .. } = principal;
    match identity.source {
        Source::Disabled => peer.map_or(Who::Nowhere, |peer| Who::Address(client(peer))),
        Source::Config => Who::Credential(identity.clone(), Arc::clone(credential_id)),
        // Successors by rotation share the bucket of their family.
        Source::Database
        | Source::File
        | Source::Line
        | Source::Idp
        | Source::Agent
        | Source::Lease
        | Source::Session
        | Source::Certificate => Who::Identity(identity.clone()),
    }
}

/// How large a bucket is, and how fast it fills.
#[derive(Clone, Copy, Debug)]
struct Quota {
    burst: u32,
    /// How long one call takes to come back.
    interval: i64,
}

impl Quota {
    fn per_second(Rate { per_second, burst }: Rate) -> Self {
        Self { burst: burst.get(), interval: NANOS_PER_SECOND / i64::from(per_second.get()) }
    }

    fn per_minute(calls: NonZeroU32) -> Self {
        Self { burst: calls.get(), interval: 60 * NANOS_PER_SECOND / i64::from(calls.get()) }
    }

    /// How long an empty bucket takes to fill.
    fn capacity(self) -> i64 {
        self.interval.saturating_mul(self.burst.into())
    }

    fn state(self, full_at: i64, now: i64) -> RateState {
        let owed = full_at.saturating_sub(now).max(0);
        let left = self.capacity().saturating_sub(owed).checked_div(self.interval).unwrap_or(0);
        let reset = owed.saturating_add(NANOS_PER_SECOND - 1) / NANOS_PER_SECOND;
        RateState {
            limit: self.burst,
            remaining: u32::try_from(left.max(0)).unwrap_or(u32::MAX).min(self.burst),
            reset: u32::try_from(reset).unwrap_or(u32::MAX),
        }
    }
}

/// The bucket is empty.
#[derive(Clone, Copy, Debug)]
struct Over {
    retry_after: Duration,
    state: RateState,
}

/// When each bucket is full again, in nanoseconds since 1970; one that is not
/// there is full.
struct Buckets<K> {
    shards: [Mutex<HashMap<K, i64>>; SHARDS],
    hasher: RandomState,
    /// The most buckets of one shard.
    shard_max: usize,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(max: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            shard_max: (max / SHARDS).max(1),
        }
    }

    fn take(&self, key: K, quota: Quota, now: Timestamp) -> Result<RateState, Over> {
        let now = nanos(now);
        let mut shard = self.shard(&key);
        let full_at = clamped(shard.get(&key).copied(), quota, now);
        let after = full_at.saturating_add(quota.interval);
        let over = after.saturating_sub(now).saturating_sub(quota.capacity());
        if over > 0 {
            // It fills from here on, also where the clock was set back.
            if let Some(held) = shard.get_mut(&key) {
                *held = full_at;
            }
            let retry_after = Duration::from_nanos(u64::try_from(over).unwrap_or(0));
            return Err(Over { retry_after, state: quota.state(full_at, now) });
        }
        if shard.len() >= self.shard_max && !shard.contains_key(&key) {
            make_room(&mut shard, self.shard_max, now);
        }
        shard.insert(key, after);
        Ok(quota.state(after, now))
    }

    fn look(&self, key: &K, quota: Quota, now: Timestamp) -> RateState {
        let now = nanos(now);
        let full_at = self.shard(key).get(key).copied();
        quota.state(clamped(full_at, quota, now), now)
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, HashMap<K, i64>> {
        let [first, ..] = &self.shards;
        let at = usize::try_from(self.hasher.hash_one(key) % SHARDS_U64).unwrap_or(0);
        self.shards.get(at).unwrap_or(first).lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A clock that was set back must not shut anybody out for longer than an
/// empty bucket takes.
fn clamped(full_at: Option<i64>, quota: Quota, now: i64) -> i64 {
    full_at.unwrap_or(now).max(now).min(now.saturating_add(quota.capacity()))
}

/// Drops the buckets that are full again, for they are as good as none; else
/// the eighth that is fullest, which is the oldest, so that the cost is spread.
fn make_room<K: Eq + Hash>(shard: &mut HashMap<K, i64>, max: usize, now: i64) {
    shard.retain(|_, full_at| *full_at > now);
    if shard.len() < max {
        return;
    }
    let mut ends: Vec<i64> = shard.values().copied().collect();
    let mut surplus = max / 8 + 1;
    let (_, last, _) = ends.select_nth_unstable(surplus.saturating_sub(1).min(shard.len() - 1));
    let last = *last;
    shard.retain(|_, full_at| {
        let stays = *full_at > last || surplus == 0;
        surplus -= usize::from(!stays);
        stays
    });
}

fn nanos(at: Timestamp) -> i64 {
    at.micros().saturating_mul(1_000)
}

#[cfg(test)]
mod tests;
