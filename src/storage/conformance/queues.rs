//! How ready steps find their workers.

use std::sync::Arc;

use super::{
    Engine,
    house::{DIAMOND, House, ns, stamp},
};
use crate::{
    domain::{
        Area,
        task::{StepState, TaskState},
    },
    storage::Error,
};

pub(crate) async fn a_waiting_seat_gets_a_new_step_at_once<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "timeout_seconds: 60").await;
    let ticket = house.sit("shop", "h");
    let mut new = house.new_task("shop/one");
    new.traceparent = Some("00-trace".into());
    let crate::storage::Created::New(task) = house.create_task(new).await else { panic!() };
    assert_eq!(task.core.state, TaskState::InProgress);
    let effects = house.desk.effects();
    let [(seat, leased)] = &effects.granted[..] else { panic!("{:?}", effects.granted) };
    assert_eq!((seat.ticket, leased.id.random), (ticket, seat.entropy));
    assert_eq!((leased.attempt, &*leased.name, &*leased.handler), (1, "a", "h"));
    assert_eq!(leased.context.as_str(), r#"{"order":7}"#);
    assert_eq!(leased.traceparent.as_deref(), Some("00-trace"));
    assert_eq!(leased.expires_at, house.now().plus_ms(30_000));
    assert_eq!(leased.timeout_at, house.now().plus_ms(60_000));
    assert_eq!(leased.step, task.core.id.step(leased.id.step));
    assert_eq!(&*leased.template.template.name, "one");
    assert_eq!((effects.changed, effects.due), (vec![task.core.id], Some(leased.expires_at)));
    assert!(effects.unserved.is_empty());
    assert_eq!(house.step(task.core.id, 0).await.core.state, StepState::InProgress);
}

pub(crate) async fn a_completion_hands_on_with_results<E: Engine>(house: &mut House<E>) {
    house.template("shop", "line", &["a ha", "b hb a", "c hc b"], "").await;
    house.sit("shop", "ha");
    house.sit("shop", "hb");
    let task = house.create("shop/line").await;
    let a = house.granted().remove(0);
    house.complete(a.id, r#"{"from":"a"}"#).await;
    let b = house.granted().remove(0);
    assert_eq!((&*b.name, b.attempt), ("b", 1));
    let [(name, result)] = &b.results[..] else { panic!("{:?}", b.results) };
    assert_eq!((&**name, result.as_str()), ("a", r#"{"from":"a"}"#));
    house.complete(b.id, "null").await;
    let c = house.lease("shop", "hc").await;
    assert_eq!((&*c.results[0].0, c.results[0].1.as_str()), ("b", "null"));
    assert_eq!(c.context.as_str(), r#"{"order":7}"#);
    house.complete(c.id, "3").await;
    assert_eq!(house.state(task.core.id).await, TaskState::Complete);
    assert_eq!(house.step(task.core.id, 1).await.result.unwrap().as_str(), "null");
    assert_eq!(house.step(task.core.id, 2).await.result.unwrap().as_str(), "3");
}

pub(crate) async fn dispatch_goes_by_priority_and_age<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "").await;
    let mut made = Vec::new();
    for priority in [0, -100, 5, 0, 5, 100] {
        let mut new = house.new_task("shop/one");
        new.priority = priority;
        house.create_task(new).await;
        made.push(house.all_tasks().await[0].core.id);
        house.wait_ms(1);
    }
    let mut order = Vec::new();
    for _ in 0..made.len() {
        let leased = house.lease("shop", "h").await;
        order.push(made.iter().position(|id| *id == leased.id.task).unwrap());
    }
    assert_eq!(order, [5, 2, 4, 0, 3, 1]);
}

pub(crate) async fn the_older_step_goes_before_the_new_one<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "").await;
    let older = house.create("shop/one").await.core.id;
    house.wait_ms(1);
    house.sit("shop", "h");
    let newer = house.create("shop/one").await;
    assert_eq!(newer.core.state, TaskState::Pending);
    let granted = house.granted();
    assert_eq!(granted.iter().map(|leased| leased.id.task).collect::<Vec<_>>(), [older]);
    // A more urgent one goes before what waits.
    house.sit("shop", "h");
    let mut urgent = house.new_task("shop/one");
    urgent.priority = 9;
    house.create_task(urgent).await;
    let granted = house.granted();
    assert_eq!(granted.len(), 1);
    assert!(granted[0].id.task != newer.core.id && granted[0].id.task != older);
    assert_eq!(house.desk.still_waiting(), 0);
}

pub(crate) async fn dispatch_stays_in_its_area<E: Engine>(house: &mut House<E>) {
    for namespace in ["a", "a.b", "a.c", "aX"] {
        house.one_step(namespace, "").await;
        house.create(&format!("{namespace}/one")).await;
    }
    house.desk.effects();
    for namespace in ["a", "a.b", "a.c", "aX"] {
        house.sit(namespace, "h");
    }
    let handlers: [Arc<str>; 2] = ["other".into(), "h".into()];
    let (store, now) = (house.store(), house.now());
    let below = Area::Below(ns("a"));
    assert_eq!(store.dispatch(&below, &handlers, 1, now).await.unwrap(), 1);
    assert_eq!(store.dispatch(&below, &handlers, 9, now).await.unwrap(), 1);
    let mut got: Vec<_> = house.granted().into_iter().map(|leased| leased.namespace).collect();
    got.sort();
    assert_eq!(got, [ns("a.b"), ns("a.c")]);
    let exactly = Area::Exactly(ns("a"));
    assert_eq!(store.dispatch(&exactly, &handlers, 9, now).await.unwrap(), 1);
    let nowhere = Area::Exactly(ns("nowhere"));
    assert_eq!(store.dispatch(&nowhere, &handlers, 9, now).await.unwrap(), 0);
    assert_eq!(house.desk.still_waiting(), 1);
}

pub(crate) async fn a_diamond_joins_once<E: Engine>(house: &mut House<E>) {
    house.template("shop", "diamond", DIAMOND, "").await;
    let id = house.create("shop/diamond").await.core.id;
    let a = house.lease("shop", "ha").await;
    house.complete(a.id, "1").await;
    let b = house.lease("shop", "hb").await;
    let c = house.lease("shop", "hc").await;
    house.sit("shop", "hd");
    house.complete(c.id, r#""c""#).await;
    assert!(house.granted().is_empty(), "it waits for both");
    assert_eq!(house.step(id, 3).await.core.deps_left, 1);
    house.complete(b.id, r#""b""#).await;
    let d = house.granted().remove(0);
    let results: Vec<_> = d.results.iter().map(|(n, r)| (&**n, r.as_str())).collect();
    assert_eq!(results, [("b", r#""b""#), ("c", r#""c""#)]);
    house.complete(d.id, "{}").await;
    assert_eq!(house.state(id).await, TaskState::Complete);
}

pub(crate) async fn a_queue_without_a_seat_is_told<E: Engine>(house: &mut House<E>) {
    house.template("shop", "wide", &["a h", "b h", "c g"], "").await;
    house.create("shop/wide").await;
    let mut unserved = house.desk.effects().unserved;
    unserved.sort();
    assert_eq!(unserved, [(ns("shop"), "g".into()), (ns("shop"), "h".into())]);
}

pub(crate) async fn a_seat_of_a_failed_operation_goes_back<E: Engine>(house: &mut House<E>) {
    house.template("shop", "two", &["a h", "b g"], "").await;
    house.one_step("shop", "").await;
    *house.desk.breaks_on.lock().unwrap() = Some("g".to_owned());
    let ticket = house.sit("shop", "h");
    let new = house.new_task("shop/two");
    let failed = house.store().create(new, &stamp("creator"), house.now()).await;
    assert!(matches!(failed, Err(Error::Broken(_))), "{failed:?}");
    assert_eq!(house.desk.given_back(), [ticket]);
    assert!(house.desk.effects().granted.is_empty());
    assert!(house.all_tasks().await.is_empty());
    // The store serves others.
    house.create("shop/one").await;
    assert_eq!(house.all_tasks().await.len(), 1);
}

pub(crate) async fn inputs_that_no_lease_carries_fail_the_step<E: Engine>(house: &mut House<E>) {
    let parents: Vec<String> = (0..17).map(|no| format!("p{no}")).collect();
    let mut steps: Vec<String> = parents.iter().map(|name| format!("{name} hp")).collect();
    steps.push(format!("child hc {}", parents.join(",")));
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    house.template("shop", "wide", &steps, "").await;
    let task = house.create("shop/wide").await;
    let large = format!("\"{}\"", "x".repeat(1024 * 1024 - 2));
    for _ in &parents {
        let lease = house.lease("shop", "hp").await;
        house.complete(lease.id, &large).await;
    }
    house.sit("shop", "hc");
    let area = Area::parse("shop").unwrap();
    house.store().dispatch(&area, &["hc".into()], 1, house.now()).await.unwrap();
    assert!(house.granted().is_empty());
    let child = house.step(task.core.id, 17).await;
    assert_eq!((child.core.state, child.core.attempts), (StepState::Error, 1));
    assert!(child.last_error.unwrap().contains("let the parents return less"));
    assert_eq!(house.state(task.core.id).await, TaskState::BlockedByFailures);
    assert_eq!(house.desk.given_back().len(), 1);
}
