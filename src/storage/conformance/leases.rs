//! Leases: who may report, what counts once, what ends.

use super::{
    Engine,
    house::{House, LEASE_MS, scope, stamp, who},
};
use crate::{
    domain::{
        Json, LeaseId, Scope, StepNo, TaskId,
        history::{Cause, Change},
        task::{StepState, TaskState},
    },
    storage::{Cancelled, Heartbeat, Leased, Report, Reported, Revocation},
};

async fn leased<E: Engine>(house: &mut House<E>, more: &str) -> (TaskId, Leased) {
    house.one_step("shop", more).await;
    let id = house.create("shop/one").await.core.id;
    (id, house.lease("shop", "h").await)
}

async fn beat<E: Engine>(house: &House<E>, lease: LeaseId) -> Option<Heartbeat> {
    let (everything, worker) = (Scope::Everything, who("worker"));
    let beats = house.store().heartbeat(&everything, &worker, &[lease], house.now()).await;
    beats.unwrap().remove(0)
}

fn refusals(events: &[crate::domain::history::Event]) -> usize {
    let stale =
        |change: Change| matches!(change, Change::Step { cause: Cause::StaleResultRefused, .. });
    events.iter().filter(|event| stale(event.change)).count()
}

pub(crate) async fn a_lease_belongs_to_its_holder<E: Engine>(house: &mut House<E>) {
    let (id, lease) = leased(house, "").await;
    let (store, now) = (house.store(), house.now());
    let never = [
        LeaseId { random: lease.id.random ^ 1, ..lease.id },
        LeaseId { counter: lease.id.counter + 1, ..lease.id },
        LeaseId { epoch: lease.id.epoch + 1, ..lease.id },
        LeaseId { step: StepNo(1), ..lease.id },
        LeaseId { task: TaskId::compose(now, id.namespace_no(), 99_999), ..lease.id },
    ];
    let done = || Report::Complete(Json::null());
    for other in never {
        assert_eq!(house.report_as("worker", other, done()).await, None);
        assert_eq!(beat(house, other).await, None);
    }
    assert_eq!(house.report_as("another", lease.id, done()).await, None);
    let mut issuer = who("worker");
    issuer.issuer = "https://other".into();
    for (within, holder) in [(scope("shops"), who("worker")), (Scope::Everything, issuer)] {
        let by = stamp("worker");
        let reported = store.report(&within, &holder, lease.id, done(), &by, now).await;
        assert_eq!(reported.unwrap(), None);
        let beats = store.heartbeat(&within, &holder, &[lease.id], now).await;
        assert_eq!(beats.unwrap(), [None]);
    }
    assert_eq!(refusals(&house.events(id).await), 0);
    assert_eq!(house.complete(lease.id, "1").await, Some(Reported::Done(StepState::Complete)));
}

pub(crate) async fn a_completion_counts_once<E: Engine>(house: &mut House<E>) {
    let (id, lease) = leased(house, "").await;
    assert_eq!(house.complete(lease.id, "1").await, Some(Reported::Done(StepState::Complete)));
    let seq = house.task(id).await.core.last_seq;
    assert_eq!(house.complete(lease.id, "1").await, Some(Reported::Already(StepState::Complete)));
    house.reopen().await;
    assert_eq!(house.complete(lease.id, "1").await, Some(Reported::Already(StepState::Complete)));
    assert_eq!(house.task(id).await.core.last_seq, seq);
    // Somebody else learns nothing of it.
    let report = Report::Complete(Json::null());
    assert_eq!(house.report_as("another", lease.id, report).await, None);
    // Another result, or a failure, after it is stale.
    assert_eq!(house.complete(lease.id, "2").await, Some(Reported::Dead));
    assert_eq!(house.fail(lease.id, "late").await, Some(Reported::Dead));
    assert_eq!(house.fail(lease.id, "late").await, Some(Reported::Dead));
    assert_eq!(refusals(&house.events(id).await), 1);
    assert_eq!(house.complete(lease.id, "1").await, Some(Reported::Already(StepState::Complete)));
    let step = house.step(id, 0).await;
    assert_eq!((step.result.unwrap().as_str(), step.last_error), ("1", None));
}

pub(crate) async fn concurrent_completions_count_once<E: Engine>(house: &mut House<E>) {
    let (_, lease) = leased(house, "").await;
    let (a, b) =
        futures::future::join(house.complete(lease.id, "1"), house.complete(lease.id, "1")).await;
    let mut both = [a.unwrap(), b.unwrap()];
    both.sort_by_key(|reported| matches!(reported, Reported::Already(_)));
    let (done, already) =
        (Reported::Done(StepState::Complete), Reported::Already(StepState::Complete));
    assert_eq!(both, [done, already]);
}

pub(crate) async fn a_failure_counts_once<E: Engine>(house: &mut House<E>) {
    let (id, lease) = leased(house, "").await;
    let waiting = StepState::WaitingForRetry;
    assert_eq!(house.fail(lease.id, "no").await, Some(Reported::Done(waiting)));
    assert_eq!(house.fail(lease.id, "no").await, Some(Reported::Already(waiting)));
    assert_eq!(house.complete(lease.id, "1").await, Some(Reported::Dead));
    assert_eq!(house.step(id, 0).await.core.attempts, 1);
    assert_eq!(house.state(id).await, TaskState::WaitingForRetry);
}

pub(crate) async fn failures_back_off_until_error<E: Engine>(house: &mut House<E>) {
    let retry = "retry: {max_attempts: 3, backoff: exponential, backoff_base_ms: 1000}";
    let (id, first) = leased(house, retry).await;
    house.fail(first.id, "one").await;
    let due = house.now().plus_ms(1_000);
    assert_eq!(house.desk.effects().due, Some(due));
    assert_eq!(house.expire().await, Some(due));
    house.wait_ms(999);
    assert_eq!(house.expire().await, Some(due));
    house.sit("shop", "h");
    house.wait_ms(1);
    house.expire().await;
    let second = house.granted().remove(0);
    assert_eq!(second.attempt, 2);
    house.fail(second.id, "two").await;
    house.wait_ms(2_000);
    assert_eq!(house.expire().await, None);
    let third = house.lease("shop", "h").await;
    assert_eq!(house.fail(third.id, "three").await, Some(Reported::Done(StepState::Error)));
    let step = house.step(id, 0).await;
    assert_eq!((step.last_error.as_deref(), step.core.attempts), (Some("three"), 3));
    assert_eq!((step.completed_at, step.core.retry_at), (None, None));
    assert_eq!(house.state(id).await, TaskState::BlockedByFailures);
    assert_eq!(house.expire().await, None);
}

pub(crate) async fn a_permanent_failure_is_not_retried<E: Engine>(house: &mut House<E>) {
    let (id, lease) = leased(house, "").await;
    let report = Report::Fail { error: "never".into(), retryable: false, jitter: 0 };
    let reported = house.report_as("worker", lease.id, report).await;
    assert_eq!(reported, Some(Reported::Done(StepState::Error)));
    assert_eq!(house.state(id).await, TaskState::BlockedByFailures);
}

pub(crate) async fn heartbeats_extend<E: Engine>(house: &mut House<E>) {
    let (id, lease) = leased(house, "").await;
    for _ in 0..5 {
        house.wait_ms(LEASE_MS - 1);
        let until = house.now().plus_ms(LEASE_MS);
        assert_eq!(beat(house, lease.id).await, Some(Heartbeat::Held(until)));
        assert_eq!(house.expire().await, Some(until));
    }
    assert_eq!(house.complete(lease.id, "1").await, Some(Reported::Done(StepState::Complete)));
    assert_eq!(beat(house, lease.id).await, Some(Heartbeat::Lost));
    assert_eq!(house.step(id, 0).await.core.attempts, 1);
}

pub(crate) async fn an_expired_lease_is_dead<E: Engine>(house: &mut House<E>) {
    let (id, lease) = leased(house, "retry: {max_attempts: 2}").await;
    house.wait_ms(LEASE_MS);
    house.desk.effects();
    house.expire().await;
    assert_eq!(house.revoked(), [(lease.id, Revocation::Lost)]);
    assert_eq!(beat(house, lease.id).await, Some(Heartbeat::Lost));
    let step = house.step(id, 0).await;
    assert_eq!(step.core.state, StepState::WaitingForRetry, "it used up an attempt");
    assert!(step.last_error.unwrap().contains("expired"));
    house.wait_ms(60_000);
    house.expire().await;
    let second = house.lease("shop", "h").await;
    assert_eq!(second.attempt, 2);
    assert_eq!(house.complete(lease.id, "1").await, Some(Reported::Dead));
    assert_eq!(house.fail(lease.id, "no").await, Some(Reported::Dead));
    assert_eq!(house.complete(second.id, "2").await, Some(Reported::Done(StepState::Complete)));
    assert_eq!(house.step(id, 0).await.result.unwrap().as_str(), "2");
}

pub(crate) async fn a_timeout_is_fixed<E: Engine>(house: &mut House<E>) {
    let (id, lease) = leased(house, "timeout_seconds: 40\nretry: {max_attempts: 1}").await;
    let timeout = house.now().plus_ms(40_000);
    house.wait_ms(25_000);
    assert!(matches!(beat(house, lease.id).await, Some(Heartbeat::Held(_))));
    assert_eq!(house.expire().await, Some(timeout), "a heartbeat does not move it");
    house.wait_ms(15_000);
    house.expire().await;
    let step = house.step(id, 0).await;
    assert_eq!(step.core.state, StepState::Error);
    assert!(step.last_error.unwrap().contains("40000 ms"));
}

pub(crate) async fn a_stale_result_is_recorded_once<E: Engine>(house: &mut House<E>) {
    let (id, lease) = leased(house, "").await;
    house.wait_ms(LEASE_MS);
    house.expire().await;
    for _ in 0..3 {
        assert_eq!(house.complete(lease.id, "1").await, Some(Reported::Dead));
    }
    let events = house.events(id).await;
    assert_eq!(refusals(&events), 1);
    assert_eq!(events.last().unwrap().actor, Some(who("worker")));
    assert_eq!(house.step(id, 0).await.result, None);
}

pub(crate) async fn a_released_lease_costs_nothing<E: Engine>(house: &mut House<E>) {
    let (id, lease) = leased(house, "retry: {max_attempts: 1}").await;
    house.store().release(&[lease.id, lease.id], house.now()).await.unwrap();
    let step = house.step(id, 0).await;
    assert_eq!((step.core.state, step.core.attempts), (StepState::Ready, 1));
    assert_eq!(step.core.attempts_allowed, 2);
    assert_eq!(house.complete(lease.id, "1").await, Some(Reported::Dead));
    let second = house.lease("shop", "h").await;
    assert_eq!(second.attempt, 2, "the number is not given again");
    assert_eq!(house.complete(second.id, "1").await, Some(Reported::Done(StepState::Complete)));
    house.store().release(&[second.id], house.now()).await.unwrap();
    assert_eq!(house.state(id).await, TaskState::Complete);
}

pub(crate) async fn a_cancelled_lease_learns_why<E: Engine>(house: &mut House<E>) {
    let (id, lease) = leased(house, "").await;
    let cancelled =
        house.store().cancel(&Scope::Everything, id, None, &stamp("o"), house.now()).await;
    assert!(matches!(cancelled.unwrap(), Some(Cancelled::Done(_))));
    assert_eq!(beat(house, lease.id).await, Some(Heartbeat::Cancelled));
    assert_eq!(house.complete(lease.id, "1").await, Some(Reported::Dead));
    assert_eq!(house.state(id).await, TaskState::Cancelled);
    assert_eq!(house.expire().await, None, "nothing of it is due");
}

pub(crate) async fn expiry_is_bounded_and_tells_the_next<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "").await;
    for _ in 0..5 {
        house.create("shop/one").await;
        house.lease("shop", "h").await;
        house.wait_ms(10);
    }
    house.wait_ms(LEASE_MS);
    let store = house.store();
    let first = store.expire(2, 0, house.now()).await.unwrap().unwrap();
    assert!(first <= house.now(), "there is more to do");
    assert_eq!(house.revoked().len(), 2);
    store.expire(100, 0, house.now()).await.unwrap();
    assert_eq!(house.revoked().len(), 3);
}

pub(crate) async fn attempts_are_told_in_order<E: Engine>(house: &mut House<E>) {
    let retry = "retry: {max_attempts: 3, backoff: fixed, backoff_base_ms: 1}";
    let (id, first) = leased(house, retry).await;
    house.fail(first.id, "one").await;
    house.wait_ms(1);
    house.expire().await;
    let second = house.lease("shop", "h").await;
    house.fail(second.id, "two").await;
    house.wait_ms(1);
    house.expire().await;
    let third = house.lease("shop", "h").await;
    house.complete(third.id, "1").await;
    let step = id.step(StepNo(0));
    let history = house.store().step_history(&Scope::Everything, id, step).await.unwrap();
    let (_, events, attempts) = history.unwrap();
    let told: Vec<_> = attempts.iter().map(|a| (a.attempt, a.error.as_deref())).collect();
    assert_eq!(told, [(1, Some("one")), (2, Some("two")), (3, None)]);
    let causes: Vec<_> = events
        .iter()
        .filter_map(|event| match event.change {
            Change::Step { cause, .. } => Some(cause),
            Change::Task(_) => None,
        })
        .collect();
    let round = [Cause::Leased, Cause::Failed, Cause::RetryDue];
    let mut wanted = vec![Cause::Created];
    wanted.extend(round.iter().chain(&round).copied());
    wanted.extend([Cause::Leased, Cause::Completed]);
    assert_eq!(causes, wanted);
    assert_eq!(house.step(id, 0).await.last_error.as_deref(), Some("two"));
}

pub(crate) async fn texts_of_errors_are_bounded<E: Engine>(house: &mut House<E>) {
    let (id, lease) = leased(house, "").await;
    house.fail(lease.id, &"é".repeat(200_000)).await;
    let said = house.step(id, 0).await.last_error.unwrap();
    assert!(said.len() <= 64 * 1024 && said.len() > 60 * 1024 && said.starts_with('é'));
}
