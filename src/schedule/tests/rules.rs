//! What rules are refused, and that memory and disk stay one.

use std::time::Duration;

use super::house::{House, caller, claim, id, within};
use crate::{
    domain::{
        permission::right::{RulesWrite, SchedulesRead},
        schedule::{HttpMethod, RedisCommand, Runner, RunnerKind},
        task::RetryPolicy,
    },
    schedule::{
        Error, Settings,
        rules::{self, NewRule},
    },
};

fn http() -> Runner {
    Runner::Http { method: HttpMethod::Get, url: "https://example.com/".into() }
}

fn new(name: &str, runner: Runner) -> NewRule {
    NewRule { id: id(name), pattern: "shop.".to_owned(), runner, retry: RetryPolicy::default() }
}

/// The names of the rules on disk and in memory, once nothing changes them.
async fn names(house: &House) -> (Vec<String>, Vec<String>) {
    let _turn = house.scheduler.order.lock().await;
    let on_disk = house.store.rules().await.unwrap();
    let table = house.scheduler.table();
    let name = |rule: &crate::domain::schedule::Rule| rule.id.to_string();
    (on_disk.iter().map(name).collect(), table.by_name().map(|rule| name(rule)).collect())
}

#[tokio::test]
async fn se_62_a_change_of_a_rule_goes_on_without_its_caller() {
    let house = House::new().await;
    let owner = caller("key", &["rules:write"], "shop");
    let right = claim::<RulesWrite>(&owner);
    for round in 0..40_u64 {
        let name = format!("shop.{round}");
        let set = rules::set(&house.scheduler, &right, new(&name, http()));
        // Gone before, while or after it is on disk.
        let _gone = tokio::time::timeout(Duration::from_micros(round * 50), set).await;
        let (on_disk, in_memory) = within(names(&house)).await;
        assert_eq!(on_disk, in_memory);
        let identifier = id(&name);
        let remove = rules::remove(&house.scheduler, &right, &identifier);
        let _gone = tokio::time::timeout(Duration::from_micros(round * 50), remove).await;
        let (on_disk, in_memory) = within(names(&house)).await;
        assert_eq!(on_disk, in_memory);
    }
}

#[tokio::test]
async fn se_62_no_text_of_a_rule_is_more_than_a_line() {
    let runners = vec![RunnerKind::Http, RunnerKind::Redis, RunnerKind::Amqp];
    let house = House::with(Settings { runners, ..Settings::default() }).await;
    let owner = caller("key", &["rules:write"], "shop");
    let right = claim::<RulesWrite>(&owner);
    for text in ["x\nr1 OK", "x\r", "\u{1b}[2J", "a\u{2028}b", "\u{202e}a"] {
        let redis = Runner::Redis {
            url: "redis://example.com".into(),
            command: RedisCommand::Set,
            key: text.into(),
        };
        let amqp = Runner::Amqp {
            dsn: "amqp://example.com".into(),
            exchange: "".into(),
            routing_key: text.into(),
        };
        for runner in [redis, amqp] {
            let refused = rules::set(&house.scheduler, &right, new("shop.a", runner)).await;
            assert!(matches!(refused, Err(Error::FieldInvalid { .. })), "{text:?}: {refused:?}");
        }
        let rule = NewRule { pattern: format!("shop.{text}"), ..new("shop.a", http()) };
        let refused = rules::set(&house.scheduler, &right, rule).await;
        assert!(
            matches!(refused, Err(Error::FieldInvalid { field: "pattern", .. })),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn se_62_counts_are_of_the_callers_scope() {
    let house = House::new().await;
    for name in ["app", "rule.app.r", "c"] {
        house.rule(name, "x.", http()).await;
    }
    for name in ["app", "app.1", "b.1"] {
        house.job(name, 9).await;
    }
    for (scope, jobs, rules) in
        [("*", 3, 3), ("app", 2, 2), ("app.r", 0, 1), ("b", 1, 0), ("c", 0, 1), ("absent", 0, 0)]
    {
        let reader = caller("reader", &["schedules:read"], scope);
        let counts = house.scheduler.counts(&claim::<SchedulesRead>(&reader)).await.unwrap();
        assert_eq!((counts.jobs, counts.rules), ([jobs, 0, 0, 0, 0], rules), "{scope}");
    }
}
