//! Many jobs at once: whose turn it is, and how many run.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Semaphore;

use super::house::{House, OWNER, caller, probe_runner, task_runner, within};
use crate::{
    domain::schedule::{JobStatus, RunOutcome},
    schedule::{Settings, runners::Ended},
};

/// Runs that wait to be let go, each of which is written down.
#[derive(Debug)]
struct Doors {
    open: Semaphore,
    begun: Mutex<Vec<String>>,
    most: AtomicUsize,
    now: AtomicUsize,
}

impl Doors {
    fn of(house: &House) -> Arc<Self> {
        let doors = Arc::new(Self {
            open: Semaphore::new(0),
            begun: Mutex::default(),
            most: AtomicUsize::new(0),
            now: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&doors);
        house.probe(move |firing| {
            let doors = Arc::clone(&shared);
            async move {
                let now = doors.now.fetch_add(1, Ordering::SeqCst) + 1;
                doors.most.fetch_max(now, Ordering::SeqCst);
                doors.begun.lock().unwrap().push(firing.job.to_string());
                doors.open.acquire().await.unwrap().forget();
                doors.now.fetch_sub(1, Ordering::SeqCst);
                Ended::default()
            }
        });
        doors
    }

    fn begun(&self) -> Vec<String> {
        self.begun.lock().unwrap().clone()
    }

    async fn until(&self, begun: impl Fn(&[String]) -> bool) {
        within(async {
            while !begun(&self.begun()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn issue5_one_segments_slow_runs_keep_no_other_waiting() {
    let house = House::new().await;
    house.rule("r", "", probe_runner()).await;
    let doors = Doors::of(&house);
    for job in 0..500 {
        house.job(&format!("hog.{job}"), 0).await;
    }
    house.look().await;
    doors.until(|begun| begun.len() >= 40).await;
    house.job("other.a", 0).await;
    house.look().await;
    doors.until(|begun| begun.iter().any(|job| job == "other.a")).await;
    assert!(doors.begun().len() <= 64);
    doors.open.add_permits(10_000);
    house.settled().await;
    assert_eq!(doors.begun().len(), 501);
    assert!(doors.most.load(Ordering::SeqCst) <= 64);
}

#[tokio::test]
async fn issue5_a_full_segment_hides_nobody_and_loses_nobody() {
    let settings = Settings { max_concurrent_runs: 8, ..Settings::default() };
    let house = House::with(settings).await;
    house.rule("r", "", probe_runner()).await;
    house.rule("t", "quick.", task_runner()).await;
    let doors = Doors::of(&house);
    for job in 0..2_200 {
        house.job(&format!("hog.{job}"), 0).await;
    }
    // What waits is bounded; the rest stays on disk.
    for _ in 0..3 {
        house.look().await;
    }
    assert_eq!(house.scheduler.figures().pending + house.scheduler.figures().inflight, 1_000);
    house.job("quick.a", 0).await;
    house.look().await;
    within(async {
        while house.tasks().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    doors.open.add_permits(10_000);
    within(async {
        while doors.begun().len() < 2_200 {
            house.look().await;
            house.settled().await;
        }
    })
    .await;
    house.settled().await;
    let mut times = BTreeMap::new();
    for job in doors.begun() {
        *times.entry(job).or_insert(0) += 1;
    }
    assert_eq!((times.len(), times.values().max()), (2_200, Some(&1)));
}

#[tokio::test]
async fn issue5_a_job_removed_or_set_anew_before_its_turn_does_not_run() {
    let settings = Settings { max_concurrent_runs: 1, ..Settings::default() };
    let house = House::with(settings).await;
    house.rule("r", "", probe_runner()).await;
    let doors = Doors::of(&house);
    house.job("a", 0).await;
    house.look().await;
    doors.until(|begun| begun == ["a"]).await;
    for job in ["b", "c", "d"] {
        house.job(job, 0).await;
    }
    house.look().await;
    assert_eq!(house.scheduler.figures().pending, 3);
    assert_eq!(house.status("b").await, JobStatus::Planned);
    house.remove("b").await;
    house.job("c", 100).await;
    doors.open.add_permits(10);
    house.settled().await;
    assert_eq!(doors.begun(), ["a", "d"]);
    assert_eq!(house.status("c").await, JobStatus::Planned);
    house.turn(100);
    house.settle().await;
    assert_eq!(house.outcomes("c").await, [RunOutcome::Executed]);
}

#[tokio::test]
async fn issue5_many_jobs_due_at_one_instant_all_fire_once() {
    let house = House::new().await;
    house.rule("r", "", task_runner()).await;
    for job in 0..450 {
        house.job(&format!("s{}.{job}", job % 3), 0).await;
    }
    house.settle().await;
    house.settle().await;
    assert_eq!(house.tasks().await.len(), 450);
    assert_eq!(house.status("s2.449").await, JobStatus::Executed);
}

#[tokio::test]
async fn issue5_an_owner_of_fifty_segments_starves_nobody() {
    let settings = Settings { max_concurrent_runs: 8, ..Settings::default() };
    let house = House::with(settings).await;
    for name in ["hog", "other"] {
        let owner = caller(name, OWNER, "*");
        house.owners.put(&owner);
        house.rule_of(&owner, name, name, probe_runner(), 1).await.unwrap();
    }
    let doors = Doors::of(&house);
    for job in 0..1_000 {
        house.job(&format!("hog{}.{job}", job % 50), 0).await;
    }
    house.look().await;
    doors.until(|begun| begun.len() >= 7).await;
    for job in 0..3 {
        house.job(&format!("other.{job}"), 0).await;
    }
    house.look().await;
    // The other one has each second place that is given back.
    doors.open.add_permits(6);
    doors.until(|begun| begun.len() >= 13).await;
    let begun = doors.begun();
    let others = begun.iter().filter(|job| job.starts_with("other")).count();
    assert_eq!(others, 3, "{begun:?}");
    doors.open.add_permits(10_000);
    within(async {
        while doors.begun().len() < 1_003 {
            house.look().await;
            house.settled().await;
        }
    })
    .await;
}

#[tokio::test]
async fn issue5_tasks_have_places_among_the_other_runs() {
    let settings = Settings { max_concurrent_runs: 4, ..Settings::default() };
    let house = House::with(settings).await;
    house.rule("t", "", task_runner()).await;
    house.rule("r", "slow.", probe_runner()).await;
    let doors = Doors::of(&house);
    for job in 0..300 {
        house.job(&format!("s{}.{job}", job % 3), 0).await;
    }
    house.look().await;
    assert_eq!(house.scheduler.figures().inflight, 4);
    assert_eq!(house.scheduler.figures().pending, 296);
    house.settled().await;
    assert_eq!(house.tasks().await.len(), 300);
    // No task begins while others have all the places.
    for job in 0..4 {
        house.job(&format!("slow.{job}"), 0).await;
    }
    house.look().await;
    doors.until(|begun| begun.len() == 4).await;
    house.job("late", 0).await;
    house.look().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(house.status("late").await, JobStatus::Planned);
    doors.open.add_permits(1);
    within(async {
        while house.tasks().await.len() == 300 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    doors.open.add_permits(10);
    house.settled().await;
    assert_eq!(house.status("late").await, JobStatus::Executed);
}

#[tokio::test]
async fn issue5_slow_runs_leave_places_to_tasks_and_tasks_to_them() {
    let house = House::new().await;
    house.rule("t", "", task_runner()).await;
    let doors = Doors::of(&house);
    for owner in 0..20 {
        let name = format!("slow{owner}");
        let of = caller(&name, OWNER, "*");
        house.owners.put(&of);
        house.rule_of(&of, &name, &format!("{name}."), probe_runner(), 1).await.unwrap();
        for job in 0..10 {
            house.job(&format!("{name}.{job}"), 0).await;
        }
    }
    house.look().await;
    doors.until(|begun| begun.len() == 56).await;
    for job in 0..100 {
        house.job(&format!("quick.{job}"), 0).await;
    }
    house.look().await;
    within(async {
        while house.tasks().await.len() < 100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(doors.most.load(Ordering::SeqCst), 56);
    doors.open.add_permits(10_000);
    house.settled().await;
    assert_eq!(doors.begun().len(), 200);
}
