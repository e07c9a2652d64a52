//! Rules of the scheduler.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Engine,
    house::{House, ns, scope, stamp, who},
    schedules::id,
};
use crate::domain::{
    Grant, PermissionSet, Scope, Timestamp,
    namespace::Prefix,
    principal::{GrantRef, Identity, Method, Source},
    schedule::{HttpMethod, RedisCommand, Rule, Runner, RunnerKind},
    task::{Backoff, RetryPolicy},
};

fn owner(at: Timestamp) -> GrantRef {
    GrantRef {
        identity: who("owner"),
        method: Method::Token,
        credential_id: "credential".into(),
        grants: Vec::new(),
        set_at: at,
        issued_at: None,
        until: None,
    }
}

pub(super) fn rule(name: &str, command: &str, at: Timestamp) -> Rule {
    Rule {
        id: id(name),
        pattern: "deploy.".into(),
        runner: Runner::Shell { command: command.into() },
        retry: RetryPolicy {
            retryable: false,
            max_attempts: 1,
            backoff: Backoff::Fixed,
            base_ms: 0,
            max_ms: 0,
        },
        owner: owner(at),
    }
}

pub(crate) async fn rules_change_only_as_they_were_seen<E: Engine>(house: &mut House<E>) {
    let by = stamp("setter");
    let now = house.now();
    let (one, two) = (rule("r", "one", now), rule("r", "two", now));
    let set = async |house: &House<E>, rule: &Rule, seen: Option<&Rule>| {
        house.store().set_rule(rule.clone(), seen.cloned(), &by, house.now()).await.unwrap()
    };
    assert!(!set(house, &two, Some(&one)).await, "there is none yet");
    assert!(set(house, &one, None).await);
    assert!(!set(house, &two, None).await, "there is one");
    assert!(!set(house, &two, Some(&two)).await, "it is another one");
    let same = Rule { owner: owner(now.plus_ms(1)), ..one.clone() };
    assert!(!set(house, &two, Some(&same)).await, "of somebody else");
    assert_eq!(house.store().rules().await.unwrap(), std::slice::from_ref(&one));
    house.reopen().await;
    assert!(set(house, &two, Some(&one)).await);
    assert!(set(house, &two, Some(&two)).await, "the same again");
    assert!(!house.store().remove_rule(one.clone(), &by, now).await.unwrap());
    assert!(!house.store().remove_rule(rule("absent", "one", now), &by, now).await.unwrap());
    assert!(set(house, &rule("q ü", "three", now), None).await);
    assert!(house.store().remove_rule(two.clone(), &by, now).await.unwrap());
    assert!(!house.store().remove_rule(two, &by, now).await.unwrap());
    house.reopen().await;
    assert_eq!(house.store().rules().await.unwrap(), [rule("q ü", "three", now)]);
}

fn runners() -> Vec<Runner> {
    let args: Vec<Arc<str>> = vec!["".into(), "a b".into(), "\"ü'".into()];
    let mut all = vec![
        Runner::Task { namespace: ns("shop.a"), template: "t".into(), version: None },
        Runner::Task { namespace: ns("shop"), template: "t".into(), version: Some("1.2".into()) },
        Runner::Shell { command: "echo \"$1\"\n".into() },
        Runner::Direct { executable: "/bin/true".into(), args: args.clone() },
        Runner::Direct { executable: "x".into(), args: Vec::new() },
        Runner::Awf { workflow: "w".into(), args },
        Runner::Amqp {
            dsn: "amqp://u:p@host/v".into(),
            exchange: "e".into(),
            routing_key: "k.#".into(),
        },
    ];
    all.extend(
        HttpMethod::ALL
            .iter()
            .map(|method| Runner::Http { method: *method, url: "https://u:p@host/?a=b".into() }),
    );
    all.extend(RedisCommand::ALL.iter().map(|command| Runner::Redis {
        url: "redis://:p@host".into(),
        command: *command,
        key: "k".into(),
    }));
    let kinds: BTreeSet<_> = all.iter().map(Runner::kind).collect();
    assert_eq!(kinds, RunnerKind::ALL.iter().copied().collect());
    all
}

fn owners(now: Timestamp) -> Vec<GrantRef> {
    let foreign: BTreeSet<Arc<str>> = std::iter::once("orders:read".into()).collect();
    let permissions = |names: &[&str]| {
        let mut set = PermissionSet::empty();
        for name in names {
            assert!(set.add(name, &foreign), "{name}");
        }
        set
    };
    let texts = ["", "dep", "deploy.", "with space ü", "*", "\u{10ffff}"];
    let texts = texts.into_iter().map(|text| Prefix::Text(text.into())).collect();
    let grant = |names: &[&str], scope| Grant { permissions: permissions(names), scope };
    let all = vec![
        grant(&["*"], Scope::Everything),
        grant(&["schedules:*", "commands:execute"], scope("deploy")),
        grant(&["tasks:read", "orders:read"], Scope::parse(&["a.", "b"]).unwrap()),
        grant(&["schedules:write"], Scope::Under(texts)),
        grant(&[], Scope::NOWHERE),
    ];
    let identity =
        |source| Identity { source, issuer: "https://issuer ü/1 2".into(), subject: "a b".into() };
    let mut owners = vec![owner(now)];
    let methods = [Method::ApiKey, Method::Jwt, Method::Token, Method::Certificate, Method::None];
    let sources = [Source::Line, Source::Idp, Source::Database, Source::Disabled, Source::File];
    owners.extend(methods.into_iter().zip(sources).map(|(method, source)| GrantRef {
        identity: identity(source),
        method,
        grants: all.clone(),
        until: Some(now.plus_ms(5)),
        ..owner(now)
    }));
    owners
}

pub(crate) async fn every_runner_and_owner_reads_back<E: Engine>(house: &mut House<E>) {
    let now = house.now();
    let mut rules = Vec::new();
    for (no, runner) in runners().into_iter().enumerate() {
        let retry = RetryPolicy {
            retryable: true,
            max_attempts: 7,
            backoff: [Backoff::Exponential, Backoff::Linear, Backoff::Fixed][no % 3],
            base_ms: u32::MAX,
            max_ms: 12,
        };
        let pattern = if no == 0 { "" } else { "ü ." };
        let plain = rule(&format!("runner {no:02}"), "", now);
        rules.push(Rule { runner, retry, pattern: pattern.into(), ..plain });
    }
    for (no, owner) in owners(now).into_iter().enumerate() {
        rules.push(Rule { owner, ..rule(&format!("s {no}"), "x", now) });
    }
    for rule in &rules {
        let set = house.store().set_rule(rule.clone(), None, &stamp("setter"), now).await;
        assert!(set.unwrap(), "{rule:?}");
    }
    house.reopen().await;
    let mut found = house.store().rules().await.unwrap();
    found.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(found, rules);
    // What was read is what is there.
    for rule in found {
        assert!(house.store().remove_rule(rule, &stamp("setter"), now).await.unwrap());
    }
    assert_eq!(house.store().rules().await.unwrap(), []);
}
