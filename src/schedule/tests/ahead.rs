//! Jobs that are read a moment before their time.

use super::house::{House, START, claim, id, task_runner};
use crate::{
    domain::{
        permission::right::SchedulesWrite,
        schedule::{JobStatus, Nanos, RunOutcome},
    },
    schedule::{
        When, ahead,
        jobs::{self, Plan},
    },
};

/// So many milliseconds after the beginning.
fn soon(after: i64) -> Nanos {
    Nanos(START * 1_000_000_000 + after * 1_000_000)
}

async fn plan(house: &House, name: &str, after: i64) {
    let when = When::parse(&soon(after).0.to_string()).unwrap();
    let permit = claim::<SchedulesWrite>(&house.owner).over(&id(name)).unwrap();
    let plan = Plan { when: Some(when), recurrence: None };
    jobs::set(&house.scheduler, &permit, &plan).await.unwrap();
}

/// A house whose scheduler holds two jobs that are due in a moment.
async fn held() -> House {
    let house = House::new().await;
    house.rule("r", "shop.", task_runner()).await;
    plan(&house, "shop.a", 20).await;
    plan(&house, "shop.b", 30).await;
    plan(&house, "shop.far", 5_000).await;
    assert_eq!(house.look().await, Some(soon(20)));
    // Not before their time.
    assert_eq!(ahead::start(&house.scheduler), Some(soon(20)));
    assert_eq!(house.scheduler.figures().inflight, 0);
    house
}

#[tokio::test]
async fn issue5_a_job_read_ahead_starts_without_another_look() {
    let house = held().await;
    house.turn(1);
    assert_eq!(ahead::start(&house.scheduler), None);
    house.settled().await;
    assert_eq!(house.outcomes("shop.a").await, [RunOutcome::Executed]);
    assert_eq!(house.outcomes("shop.b").await, [RunOutcome::Executed]);
    // Nor does the next look bring them again.
    assert_eq!(house.look().await, Some(soon(5_000)));
    house.settled().await;
    assert_eq!(house.tasks().await.len(), 2);
}

#[tokio::test]
async fn issue5_a_job_changed_in_the_last_moment_runs_as_it_was_changed() {
    let house = held().await;
    house.remove("shop.a").await;
    plan(&house, "shop.b", 3_000).await;
    house.turn(1);
    ahead::start(&house.scheduler);
    house.settle().await;
    assert!(house.tasks().await.is_empty());
    assert_eq!(house.status("shop.b").await, JobStatus::Planned);
    house.turn(2);
    house.settle().await;
    assert_eq!(house.tasks().await.len(), 1);
}

#[tokio::test]
async fn issue5_a_job_read_ahead_whose_rule_went_away_fails() {
    let house = House::new().await;
    plan(&house, "lost", 20).await;
    house.look().await;
    house.turn(1);
    ahead::start(&house.scheduler);
    house.settled().await;
    let job = house.get("lost").await;
    assert_eq!((job.status, job.reason.as_deref()), (JobStatus::Failed, Some("no_rule")));
}
