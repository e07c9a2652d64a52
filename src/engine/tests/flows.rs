//! Tasks from their creation to their end, by single calls.

use std::time::Duration;

use super::house::{DIAMOND, House, ONE, RETRIED, error_of, json, yaml};
use crate::{
    domain::{
        history::Cause,
        task::{Labels, StepState, TaskState},
    },
    engine::{
        Error, steps,
        tasks::{self, NewTask},
        templates, work,
    },
    storage::Heartbeat,
};

#[tokio::test]
async fn a_diamond_runs_to_its_end_and_passes_results_on() {
    let house = House::with(DIAMOND).await;
    let task = house.create("diamond", r#"{"order": 7}"#).await;
    assert_eq!((task.core.state, task.core.counts.total()), (TaskState::Pending, 4));

    let top = house.lease_one("top").await;
    assert_eq!((top.context.as_str(), top.attempt), (r#"{"order": 7}"#, 1));
    assert!(top.results.is_empty());
    assert!(house.lease("left").await.is_empty());
    house.complete(&top, r#"{"n": 1.50}"#).await;

    let (left, right) = (house.lease_one("left").await, house.lease_one("right").await);
    assert_eq!(json(&left.results), [("top", r#"{"n": 1.50}"#)]);
    house.complete(&left, "2").await;
    assert!(house.lease("bottom").await.is_empty());
    house.complete(&right, "").await;

    let bottom = house.lease_one("bottom").await;
    let mut results = json(&bottom.results);
    results.sort_unstable();
    assert_eq!(results, [("left", "2"), ("right", "null")]);
    assert_eq!(house.task(task.core.id).await.core.state, TaskState::InProgress);
    house.complete(&bottom, r#""done""#).await;

    let task = house.task(task.core.id).await;
    assert_eq!(task.core.state, TaskState::Complete);
    assert_eq!(task.core.counts.of(StepState::Complete), 4);
    assert!(task.completed_at.is_some());
    let steps = house.steps(task.core.id).await;
    assert_eq!(steps[3].result.as_ref().unwrap().as_str(), r#""done""#);
}

#[tokio::test]
async fn a_failing_step_is_retried_until_it_blocks_and_a_reset_cures_it() {
    let house = House::with(RETRIED).await;
    let id = house.create("retried", "").await.core.id;

    let first = house.lease_one("work").await;
    assert_eq!(house.fail(&first, "once", true).await, StepState::WaitingForRetry);
    assert_eq!(house.task(id).await.core.state, TaskState::WaitingForRetry);
    assert!(house.lease("work").await.is_empty());
    house.pass(Duration::from_millis(1_200)).await;

    let second = house.lease_one("work").await;
    assert_eq!(second.attempt, 2);
    assert_eq!(house.fail(&second, "twice", true).await, StepState::Error);
    assert_eq!(house.task(id).await.core.state, TaskState::BlockedByFailures);

    let step = house.steps(id).await.remove(0);
    assert_eq!(step.last_error.as_deref(), Some("twice"));
    let cured = house.resolve(id, step.id, steps::Action::ResetForRetry).await.unwrap();
    assert_eq!(cured.core.state, StepState::Ready);
    let third = house.lease_one("work").await;
    assert_eq!(third.attempt, 3);
    house.complete(&third, "{}").await;
    assert_eq!(house.task(id).await.core.state, TaskState::Complete);

    let history = house.history(id, step.id).await;
    let errors: Vec<_> = history.attempts.iter().map(|one| one.error.as_deref()).collect();
    assert_eq!(errors, [Some("once"), Some("twice"), None]);
    let again = house.resolve(id, step.id, steps::Action::ResetForRetry).await;
    assert!(matches!(again, Err(Error::StepState(_))));
}

#[tokio::test]
async fn a_failure_that_is_not_retryable_ends_the_attempts() {
    let house = House::with(RETRIED).await;
    let id = house.create("retried", "").await.core.id;
    let lease = house.lease_one("work").await;
    assert_eq!(house.fail(&lease, "never", false).await, StepState::Error);
    let step = house.steps(id).await.remove(0);
    let done = steps::Action::CompleteManually { result: r#"{"by": "hand"}"#.to_owned() };
    let cured = house.resolve(id, step.id, done).await.unwrap();
    assert_eq!(cured.result.unwrap().as_str(), r#"{"by": "hand"}"#);
    assert_eq!(house.task(id).await.core.state, TaskState::Complete);
}

#[tokio::test]
async fn a_resolved_step_gives_null_and_the_task_says_so() {
    let house = House::with(DIAMOND).await;
    let id = house.create("diamond", "").await.core.id;
    let top = house.lease_one("top").await;
    house.complete(&top, "1").await;
    let (left, right) = (house.lease_one("left").await, house.lease_one("right").await);
    house.fail(&left, "no", false).await;
    house.complete(&right, "2").await;
    house.resolve(id, left.step, steps::Action::ResolveManually).await.unwrap();
    let bottom = house.lease_one("bottom").await;
    let mut results = json(&bottom.results);
    results.sort_unstable();
    assert_eq!(results, [("left", "null"), ("right", "2")]);
    house.complete(&bottom, "3").await;
    assert_eq!(house.task(id).await.core.state, TaskState::ResolvedManually);
}

#[tokio::test]
async fn a_lease_without_heartbeats_ends_and_its_result_is_refused() {
    let house = House::with(RETRIED).await;
    let id = house.create("retried", "").await.core.id;
    let lost = house.lease_one("work").await;
    house.pass(Duration::from_secs(20)).await;
    assert!(matches!(house.heartbeat(&lost).await.unwrap(), Heartbeat::Held(_)));
    house.pass(Duration::from_secs(20)).await;
    assert!(house.lease("work").await.is_empty());
    house.pass(Duration::from_secs(11)).await;
    // The pause before the next attempt begins with the end of the lease.
    house.pass(Duration::from_millis(1_200)).await;
    let held = house.lease_one("work").await;
    assert_eq!(held.attempt, 2);

    assert_eq!(house.heartbeat(&lost).await.unwrap(), Heartbeat::Lost);
    let late = house.try_complete(&lost, "1").await;
    assert!(matches!(late, Err(Error::LeaseLost)), "{late:?}");
    assert!(!house.try_complete(&held, "2").await.unwrap().already);
    assert!(house.try_complete(&held, "2").await.unwrap().already);

    let history = house.history(id, held.step).await;
    let causes: Vec<_> = history
        .events
        .iter()
        .filter_map(|event| match event.change {
            crate::domain::history::Change::Step { cause, .. } => Some(cause),
            crate::domain::history::Change::Task(_) => None,
        })
        .collect();
    for cause in [Cause::Leased, Cause::LeaseExpired, Cause::RetryDue, Cause::StaleResultRefused] {
        assert!(causes.contains(&cause), "{cause:?} in {causes:?}");
    }
}

#[tokio::test]
async fn an_attempt_times_out_whatever_its_heartbeats_say() {
    let house = House::with(&yaml(
        "short",
        "  - name: work\n    handler: {callable: work}\n    timeout_seconds: 60\n    retry: {max_attempts: 1}\n",
    ))
    .await;
    let id = house.create("short", "").await.core.id;
    let lease = house.lease_one("work").await;
    for _ in 0..2 {
        house.pass(Duration::from_secs(25)).await;
        assert!(matches!(house.heartbeat(&lease).await.unwrap(), Heartbeat::Held(_)));
    }
    house.pass(Duration::from_secs(11)).await;
    assert_eq!(house.heartbeat(&lease).await.unwrap(), Heartbeat::Lost);
    assert_eq!(house.steps(id).await[0].core.state, StepState::Error);
    assert_eq!(house.task(id).await.core.state, TaskState::BlockedByFailures);
}

#[tokio::test]
async fn higher_priorities_go_first_and_equals_by_age() {
    let house = House::with(ONE).await;
    let mut tasks = Vec::new();
    for (context, priority) in
        [("{\"n\":0}", 0), ("{\"n\":1}", -5), ("{\"n\":2}", 100), ("{\"n\":3}", 0)]
    {
        let new = NewTask { priority, ..house.new_task("one", context) };
        tasks.push(house.try_create(new).await.unwrap().core.id);
        house.pass(Duration::from_millis(1)).await;
    }
    let mut order = Vec::new();
    for _ in 0..4 {
        order.push(house.lease_one("work").await.context.as_str().to_owned());
    }
    assert_eq!(order, [r#"{"n":2}"#, r#"{"n":0}"#, r#"{"n":3}"#, r#"{"n":1}"#]);
}

#[tokio::test]
async fn a_repeated_request_answers_with_the_first_task() {
    let house = House::with(ONE).await;
    let labels = |key: &str| Labels { idempotency_key: Some(key.to_owned()), ..Labels::default() };
    let new =
        |context: &str, key| NewTask { labels: labels(key), ..house.new_task("one", context) };
    let first = house.try_create(new(r#"{"a": 1}"#, "k")).await.unwrap();
    let again = house.try_create(new(r#"{"a":1}"#, "k")).await.unwrap();
    assert_eq!(first.core.id, again.core.id);
    let conflict = house.try_create(new(r#"{"a": 2}"#, "k")).await;
    assert!(matches!(conflict, Err(Error::IdempotencyConflict)));
    let other = house.try_create(new(r#"{"a": 2}"#, "l")).await.unwrap();
    assert_ne!(first.core.id, other.core.id);
}

#[tokio::test]
async fn a_cancel_ends_leases_and_is_fine_twice() {
    let house = House::with(ONE).await;
    let id = house.create("one", "").await.core.id;
    let lease = house.lease_one("work").await;
    for _ in 0..2 {
        assert_eq!(house.cancel(id).await.unwrap().core.state, TaskState::Cancelled);
    }
    assert_eq!(house.heartbeat(&lease).await.unwrap(), Heartbeat::Cancelled);
    assert!(matches!(house.try_complete(&lease, "1").await, Err(Error::LeaseLost)));
    let done = house.create("one", "").await.core.id;
    let lease = house.lease_one("work").await;
    house.complete(&lease, "1").await;
    let late = house.cancel(done).await;
    assert!(matches!(late, Err(Error::TaskFinal(TaskState::Complete))), "{late:?}");
}

#[tokio::test]
async fn a_lease_belongs_to_who_took_it() {
    let house = House::with(ONE).await;
    house.create("one", "").await;
    let lease = house.lease_one("work").await;
    let stranger = house.claim_as("mallory", "shop");
    let engine = &house.engine;
    let taken = work::complete(engine, &stranger, lease.id, "1").await;
    assert!(matches!(taken, Err(Error::LeaseNotFound)), "{taken:?}");
    let held = work::heartbeat(engine, &stranger, lease.id).await;
    assert!(matches!(held, Err(Error::LeaseNotFound)), "{held:?}");
    // The same principal under a grant that has shrunk since.
    let elsewhere = house.claim("elsewhere");
    let taken = work::complete(engine, &elsewhere, lease.id, "1").await;
    assert!(matches!(taken, Err(Error::LeaseNotFound)), "{taken:?}");
    house.complete(&lease, "1").await;
}

#[tokio::test]
async fn what_lies_outside_of_the_scope_reads_as_absent() {
    let house = House::with(ONE).await;
    let hidden = house.create("one", "").await.core.id;
    let step = house.steps(hidden).await[0].id;
    let absent = crate::domain::TaskId::parse("018f0000-0000-7000-8000-000000000000").unwrap();
    let engine = &house.engine;
    for id in [hidden, absent] {
        let message = |error: Error| error.to_string();
        assert_eq!(
            error_of(tasks::get(engine, &house.claim("other"), id).await.map_err(message)),
            format!("task not found: {id}")
        );
        assert_eq!(
            error_of(tasks::context(engine, &house.claim("other"), id).await.map_err(message)),
            format!("task not found: {id}")
        );
        assert_eq!(
            error_of(tasks::cancel(engine, &house.claim("other"), id, None).await.map_err(message)),
            format!("task not found: {id}")
        );
        assert_eq!(
            error_of(steps::get(engine, &house.claim("other"), id, step).await.map_err(message)),
            format!("step not found: {step}")
        );
    }
    // A step of mine under another task of mine (SE-09).
    let mine = house.create("one", "").await.core.id;
    let found = steps::get(engine, &house.claim("shop"), mine, step).await;
    assert!(matches!(found, Err(Error::StepNotFound(_))), "{found:?}");
}

#[tokio::test]
async fn a_creation_names_what_is_wrong() {
    let house = House::with(&format!(
        "{ONE}input_schema: {{type: object, required: [order], properties: {{order: {{type: integer}}}}}}\n"
    ))
    .await;
    let attempt = |change: &dyn Fn(&mut NewTask)| {
        let mut new = house.new_task("one", r#"{"order": 1}"#);
        change(&mut new);
        house.try_create(new)
    };
    assert!(attempt(&|_| ()).await.is_ok());
    let absent = attempt(&|new| new.name = "two".to_owned()).await;
    assert!(matches!(absent, Err(Error::TemplateNotFound(_))), "{absent:?}");
    let absent = attempt(&|new| new.version = Some("9.0.0".to_owned())).await;
    assert!(matches!(absent, Err(Error::TemplateNotFound(_))), "{absent:?}");
    let odd = attempt(&|new| new.version = Some("nine".to_owned())).await;
    assert!(matches!(odd, Err(Error::FieldInvalid { field: "version", .. })), "{odd:?}");
    let unfit = attempt(&|new| new.context = "{}".to_owned()).await;
    assert!(matches!(unfit, Err(Error::ContextInvalid(_))), "{unfit:?}");
    let list = attempt(&|new| new.context = "[]".to_owned()).await;
    assert!(matches!(list, Err(Error::PayloadInvalid { field: "context", .. })), "{list:?}");
    let high = attempt(&|new| new.priority = 101).await;
    assert!(matches!(high, Err(Error::FieldInvalid { field: "priority", .. })), "{high:?}");
}

#[tokio::test]
async fn templates_are_immutable_and_the_newest_release_counts() {
    let house = House::with(ONE).await;
    assert!(house.register(ONE).await.unwrap().unchanged);
    let other = ONE.replace("callable: work", "callable: other");
    assert!(matches!(house.register(&other).await, Err(Error::TemplateExists(_))));
    for version in ["1.10.0", "1.9.0", "2.0.0-rc.1"] {
        let newer = other.replace("1.0.0", version);
        assert!(!house.register(&newer).await.unwrap().unchanged);
    }
    let task = house.create("one", "").await;
    assert_eq!(&*task.version, "1.10.0");
    let permit = house.permit("shop");
    let found = templates::get(&house.engine, &permit, "one", "2.0.0-rc.1").await.unwrap();
    assert_eq!(*found.definition, *other.replace("1.0.0", "2.0.0-rc.1"));

    let faults = house.register("name: [").await;
    assert!(matches!(faults, Err(Error::TemplateInvalid(faults)) if !faults.is_empty()));
    let checked = templates::validate(&house.permit("shop"), "name: [".to_owned()).await.unwrap();
    assert!(!checked.errors.is_empty());
}

#[tokio::test]
async fn ends_of_tasks_and_expiries_are_counted_once() {
    let house = House::with(ONE).await;
    for _ in 0..2 {
        house.create("one", "").await;
        let lease = house.lease_one("work").await;
        house.complete(&lease, "1").await;
        assert!(house.try_complete(&lease, "1").await.unwrap().already);
    }
    let id = house.create("one", "").await.core.id;
    house.lease_one("work").await;
    house.pass(Duration::from_secs(31)).await;
    house.cancel(id).await.unwrap();
    house.cancel(id).await.unwrap();
    let finished = house.ledger.finished.lock().unwrap().clone();
    assert_eq!(finished, [TaskState::Complete, TaskState::Complete, TaskState::Cancelled]);
    assert_eq!(house.ledger.expired.load(std::sync::atomic::Ordering::SeqCst), 1);
}
