//! Jobs of the scheduler: set, listed, due, counted.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Engine,
    house::{House, ns, page, scope, stamp},
};
use crate::{
    domain::{
        Scope,
        namespace::Prefix,
        schedule::{Identifier, Job, JobStatus, Nanos, Run, RunOutcome},
    },
    storage::{JobChange, JobCounts, NextState, RunEnd},
};

pub(super) fn id(name: &str) -> Identifier {
    Identifier::parse(name).unwrap()
}

pub(super) fn set_as(name: &str, at: i64, status: JobStatus) -> JobChange {
    JobChange::Set { id: id(name), execution: Nanos(at), recurrence: None, status }
}

pub(super) fn set(name: &str, at: i64) -> JobChange {
    set_as(name, at, JobStatus::Planned)
}

pub(super) async fn change<E: Engine>(
    house: &House<E>,
    changes: Vec<JobChange>,
) -> Vec<Option<Job>> {
    house.store().change_jobs(changes, &stamp("setter"), house.now()).await.unwrap()
}

/// Plans one job and answers with it.
pub(super) async fn plan<E: Engine>(house: &House<E>, name: &str, at: i64) -> Job {
    change(house, vec![set(name, at)]).await.pop().flatten().unwrap()
}

pub(super) async fn job<E: Engine>(house: &House<E>, name: &str) -> Option<Job> {
    house.store().job(&id(name)).await.unwrap()
}

pub(super) async fn begin<E: Engine>(house: &House<E>, job: &Job) -> Option<i64> {
    let begun = vec![(job.id.clone(), job.version, "rule".into(), house.now())];
    house.store().begin_runs(begun).await.unwrap().pop().unwrap()
}

pub(super) fn end_of<E: Engine>(
    house: &House<E>,
    job: &Job,
    run: Option<i64>,
    next: NextState,
) -> RunEnd {
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

pub(super) async fn end<E: Engine>(house: &House<E>, end: RunEnd) {
    house.store().end_runs(vec![end], house.now()).await.unwrap();
}

pub(super) fn over() -> NextState {
    NextState::Rests(JobStatus::Executed, None)
}

pub(super) async fn runs<E: Engine>(house: &House<E>, name: &str) -> Vec<Run> {
    house.store().runs(&id(name), &page(1_000, None)).await.unwrap().unwrap().items
}

/// Every name of a list, taken in pages of so many.
pub(super) async fn names<E: Engine>(
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

pub(super) async fn due<E: Engine>(
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
        let counts = house.store().job_counts(&within).await.unwrap();
        assert_eq!(counts, [u64::try_from(wanted.len()).unwrap(), 0, 0, 0, 0], "{name:?}");
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

pub(crate) async fn counts_are_of_a_scope<E: Engine>(house: &mut House<E>) {
    let count =
        async |house: &House<E>, scope: &Scope| house.store().job_counts(scope).await.unwrap();
    assert_eq!(count(house, &Scope::Everything).await, JobCounts::default());
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
    let scopes = [
        Scope::Everything,
        Scope::NOWHERE,
        scope("app"),
        scope("app."),
        scope("app.sub"),
        Scope::parse(&["app", "app.", "app.sub", "b"]).unwrap(),
        Scope::beginning_with("app"),
        Scope::beginning_with("app."),
        Scope::beginning_with("."),
        Scope::beginning_with(""),
        scope("absent"),
    ];
    for _ in 0..2 {
        for scope in &scopes {
            let mut wanted = JobCounts::default();
            for (_, status) in jobs.iter().filter(|(name, _)| scope.contains_text(name)) {
                wanted[usize::from(status.code())] += 1;
            }
            assert_eq!(count(house, scope).await, wanted, "{scope:?}");
        }
        house.reopen().await;
    }
}
