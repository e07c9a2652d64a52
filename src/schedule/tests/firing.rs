//! What becomes of jobs that are due.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::house::{House, OWNER, at, caller, claim, id, probe_runner, task_runner, within};
use crate::{
    authz::System,
    domain::{
        Principal,
        principal::Source,
        schedule::{AUTHORIZATION_REVOKED, JobStatus, RunOutcome},
    },
    engine::{self, Health},
    schedule::{Settings, runners::Ended},
};

fn good() -> Ended {
    Ended { output: Some("done".to_owned()), ..Ended::default() }
}

#[tokio::test]
async fn issue5_a_job_fires_once_and_makes_a_task() {
    let house = House::new().await;
    house.rule("r", "shop.", task_runner()).await;
    house.job("shop.a", 10).await;
    assert_eq!(house.look().await, Some(at(10)));
    assert_eq!(house.tasks().await.len(), 0);
    house.turn(10);
    house.settle().await;
    house.settle().await;
    let tasks = house.tasks().await;
    assert_eq!(tasks.len(), 1);
    let labels = &tasks[0].labels;
    assert_eq!(labels.source_system.as_deref(), Some("bailiwick-scheduler"));
    assert_eq!(labels.reason.as_deref(), Some("the job shop.a was due"));
    assert_eq!(tasks[0].created_by, house.owner.identity);
    let reader = caller("r", &["tasks:*"], "*");
    let context =
        engine::tasks::context(&house.engine, &claim(&reader), tasks[0].core.id).await.unwrap();
    assert_eq!(
        context.as_str(),
        r#"{"attempt":1,"execution":"2023-11-14T22:13:30.000000000Z","job_id":"shop.a"}"#
    );
    assert_eq!(house.status("shop.a").await, JobStatus::Executed);
    let runs = house.runs("shop.a").await;
    assert_eq!(runs.len(), 1);
    assert_eq!((runs[0].outcome, runs[0].attempt, &*runs[0].rule), (RunOutcome::Executed, 1, "r"));
    assert_eq!(runs[0].output, Some(tasks[0].core.id.to_string()));
    assert_eq!(runs[0].execution, at(10));
}

#[tokio::test]
async fn issue5_an_end_that_was_not_kept_makes_no_second_task() {
    let mut house = House::new().await;
    house.rule("r", "", task_runner()).await;
    let long = format!("shop.{}", "x".repeat(500));
    for job in ["shop.a", &long] {
        house.job(job, 0).await;
    }
    house.look().await;
    within(async {
        while house.scheduler.figures().inflight > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!((house.tasks().await.len(), house.status("shop.a").await), (2, JobStatus::Planned));
    house.restart().await;
    house.settle().await;
    assert_eq!(house.tasks().await.len(), 2);
    assert_eq!(house.outcomes("shop.a").await, [RunOutcome::Executed]);
    // Set again for the same time it is another run, also after a removal.
    house.job("shop.a", 0).await;
    house.settle().await;
    assert_eq!(house.tasks().await.len(), 3);
    house.remove("shop.a").await;
    house.turn(1);
    house.job("shop.a", 0).await;
    house.settle().await;
    assert_eq!(house.tasks().await.len(), 4);
}

#[tokio::test]
async fn issue5_the_longest_pattern_counts_and_none_is_a_failure() {
    let house = House::new().await;
    for (rule, pattern) in [("all", "shop."), ("long", "shop.a."), ("other", "shop.a.b.c")] {
        house.rule(rule, pattern, task_runner()).await;
    }
    for job in ["shop.a.b", "shop.b", "elsewhere"] {
        house.job(job, 0).await;
    }
    house.settle().await;
    assert_eq!(&*house.runs("shop.a.b").await[0].rule, "long");
    assert_eq!(&*house.runs("shop.b").await[0].rule, "all");
    let job = house.get("elsewhere").await;
    assert_eq!((job.status, job.reason.as_deref()), (JobStatus::Failed, Some("no_rule")));
    let run = &house.runs("elsewhere").await[0];
    assert_eq!((run.outcome, &*run.rule), (RunOutcome::Failed, ""));
    assert!(run.error.as_deref().is_some_and(|text| text.contains("no rule")));
}

#[tokio::test]
async fn issue5_a_clock_that_jumps_neither_loses_nor_doubles_a_job() {
    let house = House::new().await;
    house.rule("r", "", task_runner()).await;
    house.job("shop.once", 60).await;
    house.plan("shop.often", Some(60), Some("every 60s")).await;
    // A day ahead: once, not once for each minute.
    house.turn(86_400);
    house.settle().await;
    house.settle().await;
    assert_eq!(house.tasks().await.len(), 2);
    assert_eq!(house.get("shop.often").await.execution, at(86_460));
    // Back to before: what ran does not run again, what is planned stays.
    house.turn(-86_390);
    house.settle().await;
    assert_eq!(house.tasks().await.len(), 2);
    house.job("shop.later", 70).await;
    house.turn(60);
    house.settle().await;
    assert_eq!(house.tasks().await.len(), 3);
    // A clock set back while an occurrence runs must not bring it again.
    house.turn(86_390);
    house.look().await;
    house.turn(-3_600);
    house.settled().await;
    assert_eq!(house.get("shop.often").await.execution, at(86_520));
}

#[tokio::test]
async fn issue5_what_was_due_while_down_fires_once_at_start() {
    let mut house = House::new().await;
    house.rule("r", "", task_runner()).await;
    house.job("shop.a", 10).await;
    house.plan("shop.b", Some(10), Some("every 10s")).await;
    house.turn(1_000);
    house.restart().await;
    house.settle().await;
    house.settle().await;
    assert_eq!(house.tasks().await.len(), 2);
    assert_eq!(house.get("shop.b").await.execution, at(1_010));
}

#[tokio::test]
async fn issue5_an_interrupted_run_is_run_again_and_its_history_says_so() {
    let mut house = House::new().await;
    house.rule("r", "", probe_runner()).await;
    house.job("a", 0).await;
    house.probe(|_| std::future::pending());
    house.look().await;
    within(async {
        while house.status("a").await != JobStatus::Triggered {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(house.outcomes("a").await, [RunOutcome::Running]);
    house.restart().await;
    assert_eq!(house.status("a").await, JobStatus::Planned);
    house.probe(|firing| async move {
        assert_eq!(firing.attempt, 1);
        good()
    });
    house.settle().await;
    assert_eq!(house.outcomes("a").await, [RunOutcome::Executed, RunOutcome::Interrupted]);
    assert_eq!(house.status("a").await, JobStatus::Executed);
}

#[tokio::test]
async fn issue5_a_recurring_job_goes_on_also_after_a_failure() {
    let house = House::new().await;
    house.rule("r", "", probe_runner()).await;
    house.plan("a", Some(10), Some("every 10s")).await;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    house.probe(move |_| {
        let second = counted.fetch_add(1, Ordering::SeqCst) == 1;
        async move { if second { Ended::failed("it broke") } else { good() } }
    });
    for round in 1..=3_i64 {
        house.turn(10);
        house.settle().await;
        let job = house.get("a").await;
        assert_eq!((job.status, job.execution), (JobStatus::Planned, at(10 + round * 10)));
        assert_eq!((job.due, job.attempts), (job.execution, 0));
    }
    let outcomes = [RunOutcome::Executed, RunOutcome::Failed, RunOutcome::Executed];
    assert_eq!(house.outcomes("a").await, outcomes);
    let failed = house.runs("a").await.remove(1);
    assert_eq!((failed.error.as_deref(), failed.execution), (Some("it broke"), at(20)));
}

#[tokio::test]
async fn issue5_a_failure_is_tried_again_as_the_rule_says() {
    let house = House::new().await;
    house.rule_of(&house.owner, "r", "", probe_runner(), 3).await.unwrap();
    house.job("a", 0).await;
    house.probe(|firing| async move { Ended::failed(format!("attempt {}", firing.attempt)) });
    for attempt in 1..=3_u32 {
        house.settle().await;
        let job = house.get("a").await;
        assert_eq!((job.attempts, job.execution), (attempt, at(0)));
        if attempt < 3 {
            assert_eq!(job.status, JobStatus::Planned);
            assert!(job.due > at(0));
            house.settle().await;
            assert_eq!(house.runs("a").await.len(), usize::try_from(attempt).unwrap());
        } else {
            assert_eq!((job.status, job.reason.as_deref()), (JobStatus::Failed, Some("failed")));
        }
        house.turn(30);
    }
    let errors: Vec<_> = house.runs("a").await.into_iter().filter_map(|run| run.error).collect();
    assert_eq!(errors, ["attempt 3", "attempt 2", "attempt 1"]);
    // What no other attempt can mend is not tried again.
    let house = House::new().await;
    house.rule_of(&house.owner, "r", "", probe_runner(), 3).await.unwrap();
    house.probe(|_| async { Ended { retryable: false, ..Ended::failed("for good") } });
    house.job("a", 0).await;
    house.settle().await;
    assert_eq!(house.status("a").await, JobStatus::Failed);
}

#[tokio::test]
async fn issue5_a_task_that_is_refused_is_a_failure_with_its_text() {
    let house = House::new().await;
    let mut runner = task_runner();
    if let crate::domain::schedule::Runner::Task { template, .. } = &mut runner {
        *template = "missing".into();
    }
    house.rule("r", "", runner).await;
    house.job("a", 0).await;
    house.settle().await;
    let job = house.get("a").await;
    assert_eq!((job.status, job.reason.as_deref()), (JobStatus::Failed, Some("refused")));
    let run = house.runs("a").await.remove(0);
    assert_eq!(run.error.as_deref(), Some("template not found: missing"));
}

#[tokio::test]
async fn se_63_a_rule_of_a_jwt_stands_for_the_hours_of_the_settings() {
    const HOUR: i64 = 60 * 60;
    for (hours, source, late) in [
        (1, Source::Idp, JobStatus::Held),
        (2, Source::Idp, JobStatus::Executed),
        (0, Source::Idp, JobStatus::Executed),
        // Other credentials are looked up, and count until they are taken back.
        (1, Source::Database, JobStatus::Executed),
    ] {
        let house = House::with(Settings { jwt_grant_hours: hours, ..Settings::default() }).await;
        let mut owner = Principal::clone(&caller("token", OWNER, "*"));
        owner.identity.source = source;
        let owner = Arc::new(owner);
        house.owners.put(&owner);
        house.rule_of(&owner, "r", "", task_runner(), 1).await.unwrap();
        house.job("shop.early", HOUR - 1).await;
        house.job("shop.late", HOUR).await;
        house.turn(HOUR - 1);
        house.settle().await;
        assert_eq!(house.status("shop.early").await, JobStatus::Executed, "{hours} {source:?}");
        house.turn(1);
        house.settle().await;
        let job = house.get("shop.late").await;
        assert_eq!(job.status, late, "{hours} {source:?}");
        let reason = (late == JobStatus::Held).then_some(AUTHORIZATION_REVOKED);
        assert_eq!(job.reason.as_deref(), reason);
    }
}

#[tokio::test]
async fn se_63_a_job_is_held_when_its_rules_owner_may_not_any_more() {
    let house = House::new().await;
    let key = caller("key", OWNER, "*");
    house.owners.put(&key);
    house.rule_of(&key, "r", "", task_runner(), 1).await.unwrap();
    for job in ["shop.a", "shop.b"] {
        house.job(job, 0).await;
    }
    house.plan("shop.c", Some(0), Some("every 10s")).await;
    house.owners.revoke("key");
    house.settle().await;
    for job in ["shop.a", "shop.b", "shop.c"] {
        let held = house.get(job).await;
        assert_eq!(held.status, JobStatus::Held);
        assert_eq!(held.reason.as_deref(), Some(AUTHORIZATION_REVOKED));
        assert_eq!(house.outcomes(job).await, [RunOutcome::Held]);
    }
    assert_eq!(house.tasks().await.len(), 0);
    // Resumed, it is decided again.
    house.resume("shop.a").await.unwrap();
    house.settle().await;
    assert_eq!(house.status("shop.a").await, JobStatus::Held);
    house.rule("r", "", task_runner()).await;
    for job in ["shop.a", "shop.c"] {
        house.resume(job).await.unwrap();
        assert_eq!(house.status(job).await, JobStatus::Planned);
    }
    house.settle().await;
    assert_eq!(house.tasks().await.len(), 2);
    assert_eq!(house.status("shop.a").await, JobStatus::Executed);
    assert_eq!(
        house.outcomes("shop.a").await,
        [RunOutcome::Executed, RunOutcome::Held, RunOutcome::Held]
    );
    assert_eq!(house.status("shop.b").await, JobStatus::Held);
    assert_eq!(house.status("shop.c").await, JobStatus::Planned);
    assert!(house.resume("shop.a").await.is_err(), "it is not held");
}

#[tokio::test]
async fn se_63_each_right_and_scope_is_decided_again() {
    for (rights, scope, runs) in [
        (&["rules:*", "tasks:create"][..], "shop", true),
        (&["rules:*"][..], "shop", false),
        (&["tasks:create"][..], "shop", false),
        (&["rules:*", "tasks:create"][..], "other", false),
        // The job lies in the scope, and the task's namespace does not.
        (&["rules:*", "tasks:create"][..], "shop.", false),
    ] {
        let house = House::new().await;
        let key = caller("key", OWNER, "*");
        house.owners.put(&key);
        house.rule_of(&key, "r", "shop.", task_runner(), 1).await.unwrap();
        house.job("shop.a", 0).await;
        house.owners.put(&caller("key", rights, scope));
        house.settle().await;
        let expected = if runs { JobStatus::Executed } else { JobStatus::Held };
        assert_eq!(house.status("shop.a").await, expected, "{rights:?} in {scope}");
    }
}

#[tokio::test]
async fn se_61_a_runner_that_is_not_listed_any_more_does_not_run() {
    let house = House::new().await;
    house.rule("r", "", probe_runner()).await;
    house.job("a", 0).await;
    let rules = house.store.rules().await.unwrap();
    let mut settings = Settings::default();
    settings.runners.retain(|kind| *kind != rules[0].runner.kind());
    let other = House::with(settings).await;
    let stamp = crate::domain::history::Stamp::system();
    let now = other.scheduler.now();
    assert!(other.store.set_rule(rules[0].clone(), None, &stamp, now).await.unwrap());
    let mut other = other;
    other.restart().await;
    other.probe(|_| async { unreachable!("it must not run") });
    other.job("a", 0).await;
    other.settle().await;
    let job = other.get("a").await;
    assert_eq!((job.status, job.reason.as_deref()), (JobStatus::Held, Some("runner_disabled")));
}

#[tokio::test]
async fn issue5_a_job_set_anew_while_it_runs_keeps_what_was_set() {
    let house = House::new().await;
    house.rule("r", "", probe_runner()).await;
    let go = CancellationToken::new();
    let gate = go.clone();
    house.probe(move |_| {
        let gate = gate.clone();
        async move {
            gate.cancelled().await;
            good()
        }
    });
    for job in ["a", "b", "c"] {
        house.job(job, 0).await;
    }
    house.look().await;
    within(async {
        while house.status("c").await != JobStatus::Triggered
            || house.status("b").await != JobStatus::Triggered
            || house.status("a").await != JobStatus::Triggered
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    house.job("a", 500).await;
    house.remove("b").await;
    house.remove("c").await;
    house.turn(1);
    house.job("c", 600).await;
    go.cancel();
    house.settled().await;
    let job = house.get("a").await;
    assert_eq!((job.status, job.due, job.attempts), (JobStatus::Planned, at(500), 0));
    assert_eq!(house.outcomes("a").await, [RunOutcome::Executed]);
    assert_eq!(house.store.job(&id("b")).await.unwrap(), None);
    // Another job of the name: nothing of the old one's is its own.
    let job = house.get("c").await;
    assert_eq!((job.status, job.due, job.attempts), (JobStatus::Planned, at(600), 0));
    assert_eq!(house.outcomes("c").await, []);
}

#[tokio::test]
async fn issue5_a_runner_that_panics_fails_and_leaves_its_place() {
    let house = House::with(Settings { max_concurrent_runs: 1, ..Settings::default() }).await;
    house.rule("r", "", probe_runner()).await;
    house.probe(|firing| async move {
        assert!(firing.job.as_str() != "a", "on purpose");
        good()
    });
    house.job("a", 0).await;
    house.settle().await;
    house.job("b", 0).await;
    house.settle().await;
    assert_eq!(house.status("a").await, JobStatus::Failed);
    assert_eq!(house.status("b").await, JobStatus::Executed);
}

#[tokio::test]
async fn issue5_the_loop_fires_by_itself_and_ends_with_the_shutdown() {
    let house = House::new().await;
    house.rule("r", "", task_runner()).await;
    let shutdown = CancellationToken::new();
    let scheduler = Arc::clone(&house.scheduler);
    assert_eq!(scheduler.health(), Health::Unhealthy("not started"));
    let running = crate::server::spawn(scheduler.run(System::permit(), shutdown.clone()));
    house.job("shop.a", 0).await;
    house.job("shop.b", 100).await;
    let executed = async |job: &str| {
        within(async {
            while house.status(job).await != JobStatus::Executed {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    };
    executed("shop.a").await;
    assert_eq!(house.status("shop.b").await, JobStatus::Planned);
    assert_eq!(house.scheduler.health(), Health::Healthy("works"));
    // Nobody tells it that the clock was put forward.
    house.turn(100);
    executed("shop.b").await;
    house.plan("shop.c", None, Some("every 10s")).await;
    house.turn(10);
    within(async {
        while house.runs("shop.c").await.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    shutdown.cancel();
    within(running).await.unwrap();
    assert_eq!(house.scheduler.health(), Health::Unhealthy("stopped"));
    assert_eq!(house.tasks().await.len(), 3);
}

#[tokio::test]
async fn issue5_the_end_of_a_run_within_the_grace_is_kept() {
    let house = House::new().await;
    house.rule("r", "", probe_runner()).await;
    house.probe(|firing| async move {
        let long = firing.job.as_str() == "long";
        tokio::time::sleep(Duration::from_millis(if long { 60_000 } else { 300 })).await;
        good()
    });
    let shutdown = CancellationToken::new();
    let running = Arc::clone(&house.scheduler).run(System::permit(), shutdown.clone());
    let running = crate::server::spawn(running);
    for job in ["long", "short"] {
        house.job(job, 0).await;
    }
    within(async {
        while house.scheduler.figures().inflight < 2
            || house.status("long").await != JobStatus::Triggered
            || house.status("short").await != JobStatus::Triggered
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    shutdown.cancel();
    within(running).await.unwrap();
    assert_eq!(house.status("short").await, JobStatus::Executed);
    assert_eq!(house.status("long").await, JobStatus::Triggered);
}
