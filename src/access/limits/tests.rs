use std::collections::BTreeSet;

use super::*;
use crate::domain::{Grant, PermissionSet, Scope, principal::Method};

const START: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn rate(per_second: u32, burst: u32) -> Rate {
    let [per_second, burst] = [per_second, burst].map(|number| NonZeroU32::new(number).unwrap());
    Rate { per_second, burst }
}

fn rates() -> Rates {
    Rates {
        standard: Some(rate(10, 20)),
        heavy: Some(rate(1, 1)),
        work: None,
        credentials: Some(rate(3, 3)),
        failed_auth_per_minute: NonZeroU32::new(5),
        failed_introspections_per_minute: NonZeroU32::new(2),
    }
}

fn principal(source: Source, subject: &str, credential: &str) -> Principal {
    let mut permissions = PermissionSet::empty();
    assert!(permissions.add("tasks:read", &BTreeSet::new()));
    Principal {
        identity: Identity { source, issuer: "idp".into(), subject: subject.into() },
        method: Method::Jwt,
        grants: vec![Grant { permissions, scope: Scope::Everything }],
        not_after: None,
        credential_id: credential.into(),
        worker_scope: None,
        issued_at: None,
    }
}

fn key(credential: &str) -> Principal {
    principal(Source::Config, "same description", credential)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// How many calls go through at once.
fn passed(limits: &Limits, who: &Principal, peer: &str, at: Timestamp) -> usize {
    let take = || limits.take(RateClass::Standard, who, Some(address(peer)), at);
    (0..1000).take_while(|_| take().is_ok()).count()
}

#[test]
fn ze_45_a_burst_then_as_many_as_come_back() {
    let limits = Limits::new(&rates());
    let who = key("a");
    assert_eq!(passed(&limits, &who, "192.0.2.1", START), 20);
    assert_eq!(passed(&limits, &who, "192.0.2.1", START.plus_ms(99)), 0);
    assert_eq!(passed(&limits, &who, "192.0.2.1", START.plus_ms(100)), 1);
    assert_eq!(passed(&limits, &who, "192.0.2.1", START.plus_ms(1100)), 10);
    // Never more than a whole bucket.
    assert_eq!(passed(&limits, &who, "192.0.2.1", START.plus_ms(3_600_000)), 20);
}

#[test]
fn ze_45_over_a_long_time_the_rate_holds() {
    let limits = Limits::new(&rates());
    let who = key("a");
    let take = |ms| limits.take(RateClass::Credentials, &who, None, START.plus_ms(ms)).is_ok();
    let taken = (0..100_000).step_by(10).filter(|ms| take(*ms)).count();
    // Three at once and three a second for a hundred seconds.
    assert!((302..=303).contains(&taken), "{taken}");
}

#[test]
fn ze_46_credentials_and_classes_are_apart() {
    let limits = Limits::new(&rates());
    assert_eq!(passed(&limits, &key("a"), "192.0.2.1", START), 20);
    assert_eq!(passed(&limits, &key("b"), "192.0.2.1", START), 20);
    // The same key from elsewhere is the same key.
    assert_eq!(passed(&limits, &key("a"), "198.51.100.1", START), 0);
    let heavy = || limits.take(RateClass::Heavy, &key("a"), None, START);
    assert!(heavy().is_ok());
    assert!(heavy().is_err());
    // A class without a limit has none, and says nothing.
    assert_eq!(limits.take(RateClass::Work, &key("a"), None, START).unwrap(), None);
}

#[test]
fn se_43_another_token_of_the_same_subject_is_no_new_bucket() {
    let limits = Limits::new(&rates());
    assert_eq!(passed(&limits, &principal(Source::Idp, "x", "1"), "192.0.2.1", START), 20);
    assert_eq!(passed(&limits, &principal(Source::Idp, "x", "2"), "192.0.2.1", START), 0);
    assert_eq!(passed(&limits, &principal(Source::Idp, "y", "3"), "192.0.2.1", START), 20);
}

#[test]
fn ze_46_with_auth_off_the_address_counts_and_of_ipv6_its_network() {
    let limits = Limits::new(&rates());
    let anybody = Principal::auth_off();
    let passed = |peer| passed(&limits, &anybody, peer, START);
    assert_eq!(passed("192.0.2.1"), 20);
    assert_eq!(passed("::ffff:192.0.2.1"), 0);
    assert_eq!(passed("192.0.2.2"), 20);
    assert_eq!(passed("2001:db8:0:1::1"), 20);
    assert_eq!(passed("2001:db8:0:1:ffff::2"), 0);
    assert_eq!(passed("2001:db8:0:2::1"), 20);
}

#[test]
fn ze_47_what_is_left_is_said() {
    let limits = Limits::new(&rates());
    let take = |at| limits.take(RateClass::Standard, &key("a"), None, at);
    let state = |limit, remaining, reset| RateState { limit, remaining, reset };
    assert_eq!(take(START).unwrap(), Some(state(20, 19, 1)));
    for _ in 0..14 {
        take(START).unwrap();
    }
    assert_eq!(limits.look(RateClass::Standard, &key("a"), None, START), Some(state(20, 5, 2)));
    assert_eq!(take(START).unwrap(), Some(state(20, 4, 2)));
    let later = START.plus_ms(60_000);
    assert_eq!(limits.look(RateClass::Standard, &key("a"), None, later), Some(state(20, 20, 0)));
}

#[test]
fn ze_48_an_excess_says_when_to_come_again() {
    let limits = Limits::new(&rates());
    let take = |at| limits.take(RateClass::Heavy, &key("a"), None, at);
    take(START).unwrap();
    let refusal = take(START.plus_ms(300)).unwrap_err();
    assert_eq!((refusal.kind, refusal.reason), (Kind::TooMany, Reason::RateLimited));
    assert_eq!(refusal.retry_after, Some(Duration::from_millis(700)));
    assert_eq!(refusal.rate, Some(RateState { limit: 1, remaining: 0, reset: 1 }));
    // To come too early costs nothing.
    assert!(take(START.plus_ms(999)).is_err());
    assert!(take(START.plus_ms(1000)).is_ok());
}

#[test]
fn se_43_failures_have_a_bucket_per_address() {
    let limits = Limits::new(&rates());
    let fail = |peer, at| limits.fail(Some(address(peer)), at);
    for left in (0..5).rev() {
        let state = fail("2001:db8::1", START).unwrap().unwrap();
        assert_eq!((state.limit, state.remaining), (5, left));
    }
    assert!(fail("2001:db8::2", START).is_err());
    assert!(fail("192.0.2.1", START).is_ok());
    assert!(fail("2001:db8::1", START.plus_ms(12_000)).is_ok());
    assert!(fail("2001:db8::1", START.plus_ms(12_001)).is_err());
    let off = Limits::new(&Rates::default());
    assert!((0..1000).all(|_| off.fail(Some(address("192.0.2.1")), START).unwrap().is_none()));
}

#[test]
fn without_limits_nothing_is_counted_or_said() {
    let only_failures = Rates { failed_auth_per_minute: NonZeroU32::new(1), ..Rates::default() };
    let limits = Limits::new(&only_failures);
    assert_eq!(limits.take(RateClass::Standard, &key("a"), None, START).unwrap(), None);
    assert_eq!(limits.look(RateClass::Standard, &key("a"), None, START), None);
    assert_eq!(limits.look_failed(None, START), None);
    assert_eq!(limits.fail(None, START).unwrap(), None);
    assert_eq!(limits.fail(None, START).unwrap_err().rate, None);
    assert!(limits.calls.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
}

#[test]
fn a_clock_set_back_shuts_nobody_out() {
    let limits = Limits::new(&rates());
    assert_eq!(passed(&limits, &key("a"), "192.0.2.1", START), 20);
    let earlier = START.plus_ms(-3_600_000);
    assert_eq!(passed(&limits, &key("a"), "192.0.2.1", earlier), 0);
    assert_eq!(passed(&limits, &key("a"), "192.0.2.1", earlier.plus_ms(1000)), 10);
}

#[test]
fn ze_45_a_keys_own_limit_holds_in_every_class_and_for_it_alone() {
    let own = |id: &str, rate| ConfiguredKey { id: id.into(), principal: key(id).into(), rate };
    let keys = [
        own("slow", OwnRate::Limited(rate(1, 2))),
        own("free", OwnRate::Unlimited),
        own("plain", OwnRate::None),
    ];
    let limits = Limits::new(&rates()).with_keys(&keys);
    let passed = |id: &str| passed(&limits, &key(id), "192.0.2.1", START);
    assert_eq!([passed("slow"), passed("free"), passed("plain")], [2, 1000, 20]);
    let heavy = |id: &str| {
        let take = || limits.take(RateClass::Heavy, &key(id), None, START).is_ok();
        (0..50).take_while(|_| take()).count()
    };
    assert_eq!([heavy("slow"), heavy("free"), heavy("plain")], [2, 50, 1]);
    // Of the same id, but no key of the configuration.
    let other = principal(Source::Database, "x", "slow");
    assert!(limits.take(RateClass::Standard, &other, None, START).unwrap().unwrap().limit == 20);
    let alone = Limits::new(&Rates::default()).with_keys(&keys);
    assert!(alone.shown, "answers say what is left");
}

#[test]
fn se_43_the_table_is_bounded_and_keeps_the_emptiest() {
    let buckets: Buckets<u32> = Buckets::new(SHARDS * 8);
    let quota = Quota::per_second(rate(1, 10));
    let held = || buckets.shards.iter().map(|shard| shard.lock().unwrap().len()).sum::<usize>();
    let spend = |key, times| {
        for _ in 0..times {
            buckets.take(key, quota, START).unwrap();
        }
    };
    spend(0, 10);
    for stranger in 1..10_000 {
        spend(stranger, 1);
        assert!(held() <= SHARDS * 8);
    }
    // The flood of others did not give its calls back.
    assert!(buckets.take(0, quota, START).is_err());
    // Buckets that are full again go first, and all at once.
    for other in 20_000..22_000 {
        buckets.take(other, quota, START.plus_ms(20_000)).unwrap();
    }
    assert!(held() <= SHARDS * 8);
    let stale = buckets.shards.iter().any(|shard| shard.lock().unwrap().contains_key(&0));
    assert!(!stale, "a full bucket is still held");
}
