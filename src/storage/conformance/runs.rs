//! Runs of jobs: begun, ended, interrupted, kept.

use super::{
    Engine,
    house::{House, page},
    schedules::{begin, change, end, end_of, id, job, over, plan, runs, set_as},
};
use crate::{
    domain::schedule::{Job, JobStatus, Nanos, Run, RunOutcome},
    storage::{JobChange, NextState, RUNS_KEPT, RunEnd},
};

pub(crate) async fn a_run_begins_once_and_only_as_planned<E: Engine>(house: &mut House<E>) {
    let planned = plan(house, "a", 5).await;
    assert_eq!(begin(house, &planned).await, Some(1));
    let begun = job(house, "a").await.unwrap();
    assert_eq!(begun, Job { status: JobStatus::Triggered, attempts: 1, ..planned.clone() });
    assert_eq!(
        runs(house, "a").await,
        [Run {
            number: 1,
            execution: Nanos(5),
            attempt: 1,
            rule: "rule".into(),
            started_at: house.now(),
            ended_at: None,
            outcome: RunOutcome::Running,
            error: None,
            output: None,
        }]
    );
    assert_eq!(begin(house, &planned).await, None, "it runs already");
    let anew = plan(house, "b", 5).await;
    let newer = plan(house, "b", 5).await;
    assert_eq!(begin(house, &anew).await, None, "it was set anew");
    assert_eq!(begin(house, &newer).await, Some(1));
    let gone = plan(house, "c", 5).await;
    change(house, vec![JobChange::Remove(id("c"))]).await;
    assert_eq!(begin(house, &gone).await, None, "it was removed");
    let back = plan(house, "c", 9).await;
    assert_eq!(begin(house, &gone).await, None, "it is another one");
    assert_eq!(job(house, "c").await, Some(back));
    for status in [JobStatus::Executed, JobStatus::Failed, JobStatus::Held] {
        let rests = change(house, vec![set_as("d", 5, status)]).await.pop().flatten().unwrap();
        assert_eq!(begin(house, &rests).await, None, "{status:?}");
    }
    // Several are answered one by one.
    let (one, two) = (plan(house, "e", 1).await, plan(house, "f", 1).await);
    let entry = |job: &Job, version| (job.id.clone(), version, "".into(), house.now());
    let begun = vec![entry(&one, one.version - 1), entry(&two, two.version)];
    assert_eq!(house.store().begin_runs(begun).await.unwrap(), [None, Some(1)]);
}

pub(crate) async fn a_run_that_ended_says_what_becomes_of_its_job<E: Engine>(house: &mut House<E>) {
    let rests = |status, reason: Option<&str>| NextState::Rests(status, reason.map(Into::into));
    let cases = [
        (rests(JobStatus::Executed, None), JobStatus::Executed, (5, 5), 1),
        (rests(JobStatus::Failed, Some("no_rule")), JobStatus::Failed, (5, 5), 1),
        (rests(JobStatus::Held, Some("revoked")), JobStatus::Held, (5, 5), 1),
        (NextState::Retry(Nanos(70)), JobStatus::Planned, (5, 70), 1),
        (NextState::Recurs(Nanos(80)), JobStatus::Planned, (80, 80), 0),
    ];
    for (no, (next, status, times, attempts)) in cases.into_iter().enumerate() {
        let name = format!("job.{no}");
        let planned = plan(house, &name, 5).await;
        let run = begin(house, &planned).await;
        let started_at = house.now();
        house.wait_ms(10);
        let ended = RunEnd {
            started_at,
            outcome: RunOutcome::Failed,
            error: Some("it went wrong".to_owned()),
            output: Some("so far".to_owned()),
            ..end_of(house, &planned, run, next.clone())
        };
        end(house, ended.clone()).await;
        house.reopen().await;
        let found = job(house, &name).await.unwrap();
        assert_eq!(found.status, status, "{next:?}");
        assert_eq!((found.execution.0, found.due.0), times, "{next:?}");
        assert_eq!((found.attempts, found.version), (attempts, planned.version), "{next:?}");
        let reason = match &next {
            NextState::Rests(_, reason) => reason.clone(),
            NextState::Retry(_) | NextState::Recurs(_) => None,
        };
        assert_eq!(found.reason, reason);
        let history = runs(house, &name).await;
        assert_eq!(
            history,
            [Run {
                number: 1,
                execution: Nanos(5),
                attempt: 1,
                rule: "rule".into(),
                started_at,
                ended_at: Some(house.now()),
                outcome: RunOutcome::Failed,
                error: ended.error.clone(),
                output: ended.output.clone(),
            }]
        );
        // An end that comes twice changes nothing more.
        let again = RunEnd { error: None, next: NextState::Retry(Nanos(99)), ..ended };
        end(house, again.clone()).await;
        assert_eq!(runs(house, &name).await, history);
        assert_eq!(job(house, &name).await, Some(found.clone()));
        if status == JobStatus::Planned {
            assert_eq!(begin(house, &found).await, Some(2));
            let attempt = runs(house, &name).await[0].attempt;
            assert_eq!(attempt, attempts + 1, "{next:?}");
            // Nor while the next one runs, under the same version.
            let running = job(house, &name).await;
            end(house, again).await;
            assert_eq!(job(house, &name).await, running);
        }
    }
}

pub(crate) async fn an_end_without_a_run_makes_an_entry<E: Engine>(house: &mut House<E>) {
    let planned = plan(house, "a", 5).await;
    let failed = NextState::Rests(JobStatus::Failed, Some("no_rule".into()));
    let ended = RunEnd {
        rule: "".into(),
        outcome: RunOutcome::Failed,
        error: Some("no rule matches".to_owned()),
        ..end_of(house, &planned, None, failed)
    };
    end(house, ended.clone()).await;
    let found = job(house, "a").await.unwrap();
    assert_eq!((found.status, found.reason.as_deref()), (JobStatus::Failed, Some("no_rule")));
    let history = runs(house, "a").await;
    assert_eq!(
        history,
        [Run {
            number: 1,
            execution: Nanos(5),
            attempt: 1,
            rule: "".into(),
            started_at: house.now(),
            ended_at: Some(house.now()),
            outcome: RunOutcome::Failed,
            error: Some("no rule matches".to_owned()),
            output: None,
        }]
    );
    // Set anew or removed meanwhile, it is as if nothing had happened.
    let anew = plan(house, "a", 9).await;
    end(house, ended.clone()).await;
    assert_eq!(job(house, "a").await, Some(anew));
    assert_eq!(runs(house, "a").await, history);
    change(house, vec![JobChange::Remove(id("a"))]).await;
    end(house, ended).await;
    assert_eq!(job(house, "a").await, None);
}

pub(crate) async fn a_job_set_anew_while_it_runs_keeps_what_was_set<E: Engine>(
    house: &mut House<E>,
) {
    let nexts = [over(), NextState::Retry(Nanos(70)), NextState::Recurs(Nanos(80))];
    for (no, next) in nexts.into_iter().enumerate() {
        let name = format!("job.{no}");
        let planned = plan(house, &name, 5).await;
        let run = begin(house, &planned).await;
        let anew = plan(house, &name, 9).await;
        assert_eq!((anew.status, anew.attempts), (JobStatus::Planned, 0));
        // It may run again before the older run ends.
        assert_eq!(begin(house, &anew).await, Some(2));
        end(house, end_of(house, &planned, run, next)).await;
        house.reopen().await;
        let found = job(house, &name).await.unwrap();
        assert_eq!(found, Job { status: JobStatus::Triggered, attempts: 1, ..anew.clone() });
        let outcomes: Vec<_> = runs(house, &name).await.iter().map(|run| run.outcome).collect();
        assert_eq!(outcomes, [RunOutcome::Running, RunOutcome::Executed]);
        end(house, end_of(house, &anew, Some(2), over())).await;
        assert_eq!(job(house, &name).await.unwrap().status, JobStatus::Executed);
    }
}

pub(crate) async fn a_job_removed_and_set_while_it_runs_is_another<E: Engine>(
    house: &mut House<E>,
) {
    let old = plan(house, "a", 5).await;
    let run = begin(house, &old).await;
    change(house, vec![JobChange::Remove(id("a"))]).await;
    end(house, end_of(house, &old, run, over())).await;
    assert_eq!(job(house, "a").await, None);
    let new = plan(house, "a", 9).await;
    assert_eq!(begin(house, &new).await, Some(1));
    end(house, end_of(house, &old, run, NextState::Recurs(Nanos(1)))).await;
    let found = job(house, "a").await.unwrap();
    assert_eq!(found, Job { status: JobStatus::Triggered, attempts: 1, ..new });
    assert_eq!(runs(house, "a").await[0].outcome, RunOutcome::Running);
}

pub(crate) async fn interrupted_runs_are_planned_again<E: Engine>(house: &mut House<E>) {
    assert_eq!(house.store().interrupted_runs(house.now()).await.unwrap(), 0);
    let one = plan(house, "one", 5).await;
    begin(house, &one).await;
    // In its second attempt.
    let two = plan(house, "two", 5).await;
    let run = begin(house, &two).await;
    end(house, end_of(house, &two, run, NextState::Retry(Nanos(7)))).await;
    begin(house, &two).await;
    // Set anew and removed while they ran, and two that do not run.
    let anew = plan(house, "anew", 5).await;
    begin(house, &anew).await;
    let anew = plan(house, "anew", 9).await;
    let gone = plan(house, "gone", 5).await;
    begin(house, &gone).await;
    change(house, vec![JobChange::Remove(id("gone"))]).await;
    let ended = plan(house, "ended", 5).await;
    let run = begin(house, &ended).await;
    end(house, end_of(house, &ended, run, over())).await;
    let waits = plan(house, "waits", 5).await;
    house.reopen().await;
    house.wait_ms(10);
    assert_eq!(house.store().interrupted_runs(house.now()).await.unwrap(), 3);
    assert_eq!(house.store().interrupted_runs(house.now()).await.unwrap(), 0);
    assert_eq!(job(house, "one").await, Some(one.clone()));
    let found = job(house, "two").await.unwrap();
    assert_eq!(found, Job { due: Nanos(7), attempts: 1, ..two });
    assert_eq!(job(house, "anew").await, Some(anew));
    assert_eq!(job(house, "ended").await.unwrap().status, JobStatus::Executed);
    assert_eq!(job(house, "waits").await, Some(waits));
    for name in ["one", "two", "anew"] {
        let last = runs(house, name).await[0].clone();
        let wanted = (RunOutcome::Interrupted, Some(house.now()));
        assert_eq!((last.outcome, last.ended_at), wanted, "{name}");
    }
    assert_eq!(begin(house, &one).await, Some(2));
    assert_eq!(runs(house, "one").await[0].attempt, 1, "the attempt was given back");
}

pub(crate) async fn a_history_is_bounded_and_paged<E: Engine>(house: &mut House<E>) {
    let planned = plan(house, "a", 0).await;
    let other = plan(house, "a.b", 0).await;
    begin(house, &other).await;
    assert!(house.store().runs(&id("absent"), &page(9, None)).await.unwrap().is_none());
    let all = RUNS_KEPT + 20;
    for no in 1..=all {
        let now = Job { execution: Nanos(no - 1), ..planned.clone() };
        // Those that were never begun count too.
        let run = if no % 3 == 0 { None } else { begin(house, &now).await };
        assert_eq!(run.unwrap_or(no), no);
        end(house, end_of(house, &now, run, NextState::Recurs(Nanos(no)))).await;
    }
    house.reopen().await;
    let numbers: Vec<_> = runs(house, "a").await.iter().map(|run| run.number).collect();
    assert_eq!(numbers, (all - RUNS_KEPT + 1..=all).rev().collect::<Vec<_>>());
    assert_eq!(runs(house, "a.b").await.len(), 1);
    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let listed = house.store().runs(&id("a"), &page(30, after)).await.unwrap().unwrap();
        paged.extend(listed.items.iter().map(|run| run.number));
        after = listed.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(paged, numbers);
}
