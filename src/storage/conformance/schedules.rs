//! Jobs, rules and runs of the scheduler.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Engine,
    house::{House, ns, page, scope, stamp, who},
};
use crate::{
    domain::{
        Grant, PermissionSet, Scope, Timestamp,
        namespace::Prefix,
        principal::{GrantRef, Identity, Method, Source},
        schedule::{
            HttpMethod, Identifier, Job, JobStatus, Nanos, RedisCommand, Rule, Run, RunOutcome,
            Runner, RunnerKind,
        },
        task::{Backoff, RetryPolicy},
    },
    storage::{JobChange, NextState, RUNS_KEPT, RunEnd, ScheduleCounts},
};

fn id(name: &str) -> Identifier {
    Identifier::parse(name).unwrap()
}

fn set_as(name: &str, at: i64, status: JobStatus) -> JobChange {
    JobChange::Set { id: id(name), execution: Nanos(at), recurrence: None, status }
}

fn set(name: &str, at: i64) -> JobChange {
    set_as(name, at, JobStatus::Planned)
}

async fn change<E: Engine>(house: &House<E>, changes: Vec<JobChange>) -> Vec<Option<Job>> {
    house.store().change_jobs(changes, &stamp("setter"), house.now()).await.unwrap()
}

/// Plans one job and answers with it.
async fn plan<E: Engine>(house: &House<E>, name: &str, at: i64) -> Job {
    change(house, vec![set(name, at)]).await.pop().flatten().unwrap()
}

async fn job<E: Engine>(house: &House<E>, name: &str) -> Option<Job> {
    house.store().job(&id(name)).await.unwrap()
}

async fn begin<E: Engine>(house: &House<E>, job: &Job) -> Option<i64> {
    let begun = vec![(job.id.clone(), job.version, "rule".into(), house.now())];
    house.store().begin_runs(begun).await.unwrap().pop().unwrap()
}

fn end_of<E: Engine>(house: &House<E>, job: &Job, run: Option<i64>, next: NextState) -> RunEnd {
    RunEnd {
        id: job.id.clone(),
        version: job.version,
        run,
        execution: job.execution,
        attempt: job.attempts + 1,
        rule: "rule".into(),
        started_at: house.now(),
        outcome: RunOutcome::Executed,
        error: None,
        output: None,
        next,
    }
}

async fn end<E: Engine>(house: &House<E>, end: RunEnd) {
    house.store().end_runs(vec![end], house.now()).await.unwrap();
}

fn over() -> NextState {
    NextState::Rests(JobStatus::Executed, None)
}

async fn runs<E: Engine>(house: &House<E>, name: &str) -> Vec<Run> {
    house.store().runs(&id(name), &page(1_000, None)).await.unwrap().unwrap().items
}

/// Every name of a list, taken in pages of so many.
async fn names<E: Engine>(
    house: &House<E>,
    scope: &Scope,
    prefix: &str,
    size: usize,
) -> Vec<String> {
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let listed = house.store().jobs(scope, prefix, &page(size, after)).await.unwrap();
        assert!(listed.items.len() <= size);
        assert!(listed.next.is_none() || listed.items.len() == size);
        names.extend(listed.items.iter().map(|job| job.id.to_string()));
        after = listed.next;
        if after.is_none() {
            return names;
        }
    }
}

async fn due<E: Engine>(
    house: &House<E>,
    now: i64,
    skip: &[&str],
    limit: usize,
) -> (Vec<String>, Option<i64>) {
    let skip: Vec<Arc<str>> = skip.iter().map(|segment| Arc::from(*segment)).collect();
    let (jobs, next) = house.store().jobs_due(Nanos(now), &skip, limit).await.unwrap();
    (jobs.iter().map(|job| job.id.to_string()).collect(), next.map(|next| next.0))
}

pub(crate) async fn a_job_is_set_and_set_anew<E: Engine>(house: &mut House<E>) {
    assert_eq!(job(house, "a.b").await, None);
    let first = JobChange::Set {
        id: id("a.b"),
        execution: Nanos(i64::MIN),
        recurrence: Some("every 1h".into()),
        status: JobStatus::Failed,
    };
    let first = change(house, vec![first]).await.pop().flatten().unwrap();
    let wanted = Job {
        id: id("a.b"),
        execution: Nanos(i64::MIN),
        due: Nanos(i64::MIN),
        status: JobStatus::Failed,
        recurrence: Some("every 1h".into()),
        reason: None,
        attempts: 0,
        version: first.version,
    };
    assert_eq!(first, wanted);
    house.reopen().await;
    assert_eq!(job(house, "a.b").await, Some(wanted.clone()));
    // Attempts and a reason go with a new setting.
    let again = plan(house, "a.b", 5).await;
    let run = begin(house, &again).await;
    let why = NextState::Rests(JobStatus::Failed, Some("why".into()));
    end(house, end_of(house, &again, run, why)).await;
    let failed = job(house, "a.b").await.unwrap();
    assert_eq!((failed.attempts, failed.reason.as_deref()), (1, Some("why")));
    assert_eq!((failed.status, failed.version), (JobStatus::Failed, again.version));
    let last = plan(house, "a.b", i64::MAX).await;
    assert!(wanted.version < again.version && again.version < last.version);
    let wanted = Job {
        execution: Nanos(i64::MAX),
        due: Nanos(i64::MAX),
        status: JobStatus::Planned,
        recurrence: None,
        version: last.version,
        ..wanted
    };
    assert_eq!(last, wanted);
    assert_eq!(runs(house, "a.b").await.len(), 1, "the history stays");
    // One that was under way elsewhere waits for its turn here.
    let there = change(house, vec![set_as("c", 7, JobStatus::Triggered)]).await;
    assert_eq!(there[0].as_ref().unwrap().status, JobStatus::Planned);
    house.reopen().await;
    assert_eq!(job(house, "a.b").await, Some(wanted));
    assert!(plan(house, "a.b", 1).await.version > last.version);
}

pub(crate) async fn a_removed_job_leaves_nothing<E: Engine>(house: &mut House<E>) {
    let planned = plan(house, "a", 1).await;
    let run = begin(house, &planned).await;
    end(house, end_of(house, &planned, run, over())).await;
    let present = job(house, "a").await;
    assert_eq!(change(house, vec![JobChange::Remove(id("a"))]).await, [present]);
    assert_eq!(change(house, vec![JobChange::Remove(id("a"))]).await, [None]);
    assert_eq!(job(house, "a").await, None);
    assert!(house.store().runs(&id("a"), &page(9, None)).await.unwrap().is_none());
    house.reopen().await;
    assert_eq!(job(house, "a").await, None);
    plan(house, "a", 1).await;
    assert_eq!(runs(house, "a").await, []);
}

pub(crate) async fn only_held_jobs_are_resumed<E: Engine>(house: &mut House<E>) {
    for status in JobStatus::ALL {
        change(house, vec![set_as("a", 5, *status)]).await;
        let before = job(house, "a").await.unwrap();
        let resumed = change(house, vec![JobChange::Resume(id("a"))]).await.pop().unwrap();
        if *status == JobStatus::Held {
            let resumed = resumed.unwrap();
            assert_eq!((resumed.status, resumed.execution), (JobStatus::Planned, Nanos(5)));
            assert_eq!((resumed.due, resumed.reason.clone()), (Nanos::from(house.now()), None));
            assert!(resumed.version > before.version);
            assert_eq!(job(house, "a").await, Some(resumed));
        } else {
            assert_eq!(resumed, None, "{status:?}");
            assert_eq!(job(house, "a").await, Some(before), "{status:?}");
        }
    }
    assert_eq!(change(house, vec![JobChange::Resume(id("absent"))]).await, [None]);
    // What made it held does not count as an attempt any more.
    let planned = plan(house, "b", 1).await;
    let held = NextState::Rests(JobStatus::Held, Some("revoked".into()));
    end(house, end_of(house, &planned, None, held)).await;
    let held = job(house, "b").await.unwrap();
    assert_eq!((held.status, held.reason.as_deref()), (JobStatus::Held, Some("revoked")));
    change(house, vec![JobChange::Resume(id("b"))]).await;
    assert_eq!(job(house, "b").await.unwrap().attempts, 0);
}

pub(crate) async fn changes_are_made_in_their_order<E: Engine>(house: &mut House<E>) {
    let changes = vec![
        set("a", 1),
        set("a", 2),
        JobChange::Remove(id("a")),
        JobChange::Remove(id("a")),
        set_as("a", 3, JobStatus::Held),
        JobChange::Resume(id("a")),
        set("b", 4),
    ];
    let answers = change(house, changes).await;
    let times: Vec<_> =
        answers.iter().map(|job| job.as_ref().map(|job| (job.execution.0, job.status))).collect();
    let planned = |at| Some((at, JobStatus::Planned));
    let held = Some((3, JobStatus::Held));
    assert_eq!(times, [planned(1), planned(2), planned(2), None, held, planned(3), planned(4)]);
    let versions: BTreeSet<_> = answers.iter().flatten().map(|job| job.version).collect();
    assert_eq!(versions.len(), 5, "a removal answers as it was, all else is new");
    assert_eq!(change(house, Vec::new()).await, []);
    house.reopen().await;
    assert_eq!(names(house, &Scope::Everything, "", 9).await, ["a", "b"]);
    assert_eq!(job(house, "a").await, answers[5]);
}

pub(crate) async fn lists_are_exact_within_a_scope_and_a_prefix<E: Engine>(house: &mut House<E>) {
    let all = [
        "app",
        "app-x",
        "app.",
        "app..",
        "app.1",
        "app.2",
        "app.sub",
        "app.sub.1",
        "app/x",
        "app0",
        "apple",
        "ap",
        "b",
        "zoo.1",
    ];
    let mut sorted = all;
    sorted.sort_unstable();
    change(house, all.iter().map(|name| set(name, 1)).collect()).await;
    house.reopen().await;
    let text = |text: &str| Prefix::Text(text.into());
    let tree = |name: &str| Prefix::Tree(ns(name));
    let below = |name: &str| Prefix::Below(ns(name));
    let under = Scope::Under;
    let scopes = [
        Scope::Everything,
        Scope::NOWHERE,
        under(vec![tree("app")]),
        under(vec![below("app")]),
        under(vec![text("app")]),
        under(vec![text("")]),
        under(vec![text("app.s"), text("app."), tree("app.sub"), below("app"), tree("app")]),
        under(vec![tree("zoo"), tree("b"), text("ap"), text("apple"), tree("app")]),
        under(vec![tree("absent"), text("app/")]),
    ];
    for scope in &scopes {
        for prefix in ["", "a", "app", "app.", "app.s", "app.sub.1", "zoo", "c", "\u{10ffff}"] {
            let fits = |name: &&str| scope.contains_text(name) && name.starts_with(prefix);
            let wanted: Vec<_> = sorted.iter().copied().filter(fits).collect();
            for size in [1, 2, 3, 100] {
                let found = names(house, scope, prefix, size).await;
                assert_eq!(found, wanted, "{scope:?} {prefix:?} by {size}");
            }
        }
    }
    // A page goes on behind a name that is gone meanwhile.
    let first = house.store().jobs(&Scope::Everything, "app", &page(3, None)).await.unwrap();
    change(house, vec![JobChange::Remove(first.items[2].id.clone())]).await;
    let rest = house.store().jobs(&Scope::Everything, "app", &page(9, first.next)).await.unwrap();
    assert_eq!(rest.items[0].id.as_str(), sorted[4]);
}

pub(crate) async fn odd_names_are_names<E: Engine>(house: &mut House<E>) {
    let long = "x".repeat(512);
    let highest = "\u{10ffff}".repeat(128);
    let odd = [
        " ",
        "%",
        "*",
        "ü",
        "ü.ö",
        "ü\u{10ffff}",
        "a b.c d",
        "'; --",
        "\u{d7ff}",
        "\u{e000}",
        "\u{10ffff}",
        "\u{10ffff}.x",
        &long,
        &highest,
        "A",
        "a",
        "ａ",
        "e\u{301}",
        "é",
    ];
    let mut sorted = odd;
    sorted.sort_unstable();
    change(house, odd.iter().map(|name| set(name, 1)).collect()).await;
    house.reopen().await;
    for size in [1, 5, 100] {
        assert_eq!(names(house, &Scope::Everything, "", size).await, sorted);
    }
    for name in odd {
        assert_eq!(job(house, name).await.unwrap().id.as_str(), name);
        let wanted: Vec<_> = sorted.iter().filter(|other| other.starts_with(name)).collect();
        let within = Scope::beginning_with(name);
        for found in [
            names(house, &Scope::Everything, name, 2).await,
            names(house, &within, "", 2).await,
            names(house, &within, name, 2).await,
        ] {
            assert_eq!(found.iter().collect::<Vec<_>>(), wanted, "{name:?}");
        }
        let counts = house.store().schedule_counts(&within).await.unwrap();
        assert_eq!(counts.jobs, [u64::try_from(wanted.len()).unwrap(), 0, 0, 0, 0], "{name:?}");
    }
    let (found, next) = due(house, 1, &["ü", "a b", "\u{10ffff}"], 100).await;
    assert_eq!((found.len(), next), (odd.len() - 5, None), "{found:?}");
}

pub(crate) async fn what_is_due_comes_in_order<E: Engine>(house: &mut House<E>) {
    assert_eq!(due(house, i64::MAX, &[], 9).await, (vec![], None));
    let changes = vec![
        set("c.3", 30),
        set("a.1", 10),
        set("b", 20),
        set("a.4", 40),
        set_as("a.held", 5, JobStatus::Held),
        set_as("a.over", 5, JobStatus::Executed),
        set_as("a.failed", 5, JobStatus::Failed),
        set("a.same", 30),
        set("early", -7),
    ];
    change(house, changes).await;
    house.reopen().await;
    let found = |names: &[&str], next| (names.iter().map(ToString::to_string).collect(), next);
    assert_eq!(due(house, -8, &[], 9).await, found(&[], Some(-7)));
    assert_eq!(due(house, 29, &[], 9).await, found(&["early", "a.1", "b"], Some(30)));
    let all = ["early", "a.1", "b", "a.same", "c.3", "a.4"];
    assert_eq!(due(house, i64::MAX, &[], 9).await, found(&all, None));
    assert_eq!(due(house, 30, &["a", "c"], 9).await, found(&["early", "b"], Some(40)));
    // A segment is skipped as a whole, and no other that begins like it.
    assert_eq!(due(house, 30, &["a.1", "earl", ""], 9).await, due(house, 30, &[], 9).await);
    // What begins is gone from it.
    let first = job(house, "early").await.unwrap();
    begin(house, &first).await.unwrap();
    assert_eq!(due(house, 10, &[], 9).await, found(&["a.1"], Some(20)));
}

pub(crate) async fn the_next_time_is_never_missed<E: Engine>(house: &mut House<E>) {
    let jobs = [("a.1", 10), ("b.1", 20), ("a.2", 30), ("c.1", 40), ("a.3", 50), ("b.2", 60)];
    change(house, jobs.iter().map(|(name, at)| set(name, *at)).collect()).await;
    for now in (5..=65).step_by(5) {
        for skip in [&[][..], &["a"], &["b"], &["a", "c"], &["a", "b", "c"]] {
            for limit in 0..=7 {
                let skipped = |name: &str| skip.contains(&name.split_once('.').unwrap().0);
                let mut left = jobs.iter().filter(|(name, at)| *at <= now && !skipped(name));
                let wanted: Vec<_> =
                    left.by_ref().take(limit).map(|(name, _)| (*name).to_owned()).collect();
                let left_out = left.next().map(|(_, at)| *at);
                let to_come = jobs.iter().map(|(_, at)| *at).find(|at| *at > now);
                assert_eq!(
                    due(house, now, skip, limit).await,
                    (wanted, left_out.or(to_come)),
                    "{now} {skip:?} {limit}"
                );
            }
        }
    }
}

pub(crate) async fn a_flood_that_is_skipped_hides_nothing<E: Engine>(house: &mut House<E>) {
    let flood = (0..2_500).map(|no| set(&format!("flood.{no}"), no));
    change(house, flood.collect()).await;
    change(house, vec![set("late", 9_000), set("b.2", 2_400), set("a.1", 2_450)]).await;
    let few = |names: &[&str], next| (names.iter().map(ToString::to_string).collect(), next);
    let skip = ["flood"];
    assert_eq!(due(house, 3_000, &skip, 5).await, few(&["b.2", "a.1"], Some(9_000)));
    assert_eq!(due(house, 3_000, &skip, 1).await, few(&["b.2"], Some(2_450)));
    assert_eq!(due(house, 3_000, &skip, 0).await, few(&[], Some(2_400)));
    assert_eq!(due(house, 2_399, &skip, 5).await, few(&[], Some(2_400)));
    assert_eq!(due(house, 2_600, &["flood", "a"], 5).await, few(&["b.2"], Some(9_000)));
    // Among more segments than are asked one by one too.
    let many = (0..10_100).map(|no| set(&format!("other{no}.x"), 9_500));
    change(house, many.collect()).await;
    assert_eq!(due(house, 3_000, &skip, 5).await, few(&["b.2", "a.1"], Some(9_000)));
    assert_eq!(due(house, 3_000, &skip, 1).await, few(&["b.2"], Some(2_450)));
}

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

fn owner(at: Timestamp) -> GrantRef {
    GrantRef {
        identity: who("owner"),
        method: Method::Token,
        credential_id: "credential".into(),
        grants: Vec::new(),
        set_at: at,
        until: None,
    }
}

fn rule(name: &str, command: &str, at: Timestamp) -> Rule {
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

pub(crate) async fn counts_are_of_a_scope<E: Engine>(house: &mut House<E>) {
    let count =
        async |house: &House<E>, scope: &Scope| house.store().schedule_counts(scope).await.unwrap();
    assert_eq!(count(house, &Scope::Everything).await, ScheduleCounts::default());
    let mut jobs = Vec::new();
    let names = ["app", "app.1", "app.2", "app.sub.1", "app-x", "apple", "b", "b.1", ".", "..x"];
    for (no, name) in names.into_iter().enumerate() {
        jobs.push((name, JobStatus::ALL[no % 5]));
    }
    let triggered = |status| status == JobStatus::Triggered;
    for (name, status) in &jobs {
        let change_to = if triggered(*status) { JobStatus::Planned } else { *status };
        let set = change(house, vec![set("gone", 1), set_as(name, 1, change_to)]).await;
        if triggered(*status) {
            begin(house, set[1].as_ref().unwrap()).await.unwrap();
        }
    }
    change(house, vec![JobChange::Remove(id("gone")), JobChange::Remove(id("gone"))]).await;
    for name in ["app", "app.r", "c"] {
        let rule = rule(name, "x", house.now());
        house.store().set_rule(rule, None, &stamp("setter"), house.now()).await.unwrap();
    }
    let scopes = [
        (Scope::Everything, 3),
        (Scope::NOWHERE, 0),
        (scope("app"), 2),
        (scope("app."), 1),
        (scope("app.sub"), 0),
        (Scope::parse(&["app", "app.", "app.sub", "b"]).unwrap(), 2),
        (Scope::beginning_with("app"), 2),
        (Scope::beginning_with("app."), 1),
        (Scope::beginning_with("."), 0),
        (Scope::beginning_with(""), 3),
        (scope("absent"), 0),
    ];
    for _ in 0..2 {
        for (scope, rules) in &scopes {
            let mut wanted = ScheduleCounts { rules: *rules, ..ScheduleCounts::default() };
            for (_, status) in jobs.iter().filter(|(name, _)| scope.contains_text(name)) {
                wanted.jobs[usize::from(status.code())] += 1;
            }
            assert_eq!(count(house, scope).await, wanted, "{scope:?}");
        }
        house.reopen().await;
    }
}
