//! What a restart leaves.

use std::collections::HashSet;

use super::{
    Engine,
    house::{House, LEASE_MS, stamp, who},
};
use crate::{
    domain::{
        Scope,
        history::{Cause, Change},
        task::{StepState, TaskState},
    },
    storage::{Error, Heartbeat, Reported},
};

pub(crate) async fn orphaned_leases_hold_for_a_while<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "retry: {max_attempts: 1}").await;
    let id = house.create("shop/one").await.core.id;
    let lease = house.lease("shop", "h").await;
    let other = house.create("shop/one").await.core.id;
    let told = house.lease("shop", "h").await;
    // Longer than the lease: what the server missed counts against nobody.
    house.wait_ms(LEASE_MS * 2);
    house.reopen().await;
    assert_eq!(house.expire().await, Some(house.now().plus_ms(LEASE_MS)));
    let held = house.step(id, 0).await.core.lease.unwrap();
    assert!(held.orphaned && held.id == lease.id);
    assert_eq!(house.complete(told.id, "1").await, Some(Reported::Done(StepState::Complete)));
    assert_eq!(house.state(other).await, TaskState::Complete);
    house.wait_ms(LEASE_MS);
    house.expire().await;
    let step = house.step(id, 0).await;
    assert_eq!((step.core.state, step.core.attempts), (StepState::Ready, 1));
    let last = house.events(id).await.pop().unwrap();
    let restarted = Cause::ServerRestarted;
    assert!(matches!(last.change, Change::Step { cause, .. } if cause == restarted));
    let second = house.lease("shop", "h").await;
    assert_eq!(second.attempt, 2, "the number is not given again");
    assert_eq!(house.complete(lease.id, "1").await, Some(Reported::Dead));
    assert_eq!(house.complete(second.id, "1").await, Some(Reported::Done(StepState::Complete)));
}

pub(crate) async fn a_heartbeat_adopts_an_orphan<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "retry: {max_attempts: 1}").await;
    let id = house.create("shop/one").await.core.id;
    let lease = house.lease("shop", "h").await;
    house.reopen().await;
    let (everything, worker) = (Scope::Everything, who("worker"));
    let beats = house.store().heartbeat(&everything, &worker, &[lease.id], house.now()).await;
    assert!(matches!(beats.unwrap()[..], [Some(Heartbeat::Held(_))]));
    assert!(!house.step(id, 0).await.core.lease.unwrap().orphaned);
    house.wait_ms(LEASE_MS);
    house.expire().await;
    assert_eq!(house.step(id, 0).await.core.state, StepState::Error, "it used up its attempt");
}

pub(crate) async fn no_lease_is_given_twice<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "").await;
    let (mut ids, mut epochs) = (HashSet::new(), HashSet::new());
    for _ in 0..4 {
        for _ in 0..3 {
            house.create("shop/one").await;
            let lease = house.lease("shop", "h").await;
            epochs.insert(lease.id.epoch);
            assert!(ids.insert((lease.id.epoch, lease.id.counter)));
        }
        house.reopen().await;
    }
    assert_eq!(epochs.len(), 4, "each start has its own epoch");
}

pub(crate) async fn what_was_acknowledged_is_there<E: Engine>(house: &mut House<E>) {
    house.template("shop", "line", &["a h", "b h a"], "").await;
    let done = house.create("shop/line").await.core.id;
    for _ in 0..2 {
        let lease = house.lease("shop", "h").await;
        house.complete(lease.id, r#"{"n":1}"#).await;
    }
    let open = house.create("shop/line").await.core.id;
    let before = (house.task(done).await, house.task(open).await, house.events(done).await);
    house.reopen().await;
    let after = (house.task(done).await, house.task(open).await, house.events(done).await);
    assert_eq!(after, before);
    assert_eq!(house.step(done, 1).await.result.unwrap().as_str(), r#"{"n":1}"#);
    assert_eq!(house.lease("shop", "h").await.id.task, open, "the queue is still there");
}

pub(crate) async fn closing_refuses_what_comes_later<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "").await;
    let id = house.create("shop/one").await.core.id;
    house.store().close().await;
    let late = house.store().create(house.new_task("shop/one"), &stamp("c"), house.now()).await;
    assert!(matches!(late, Err(Error::Unavailable(_))), "{late:?}");
    assert!(matches!(house.store().check().await, Err(Error::Unavailable(_))));
    let read = house.store().task(&Scope::Everything, id).await;
    assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
    house.store().close().await;
    house.reopen().await;
    assert_eq!(house.all_tasks().await.len(), 1);
}
