//! Jobs that are due in a moment, read ahead: when their time comes the clock
//! starts them, and no look at the store stands between.
//!
//! A job that is changed meanwhile is let go before its change is answered, so
//! that none runs as it was before.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Scheduler, ends::End, firing};
use crate::domain::schedule::{Identifier, Job, Nanos};

/// How far ahead the store is asked.
const HORIZON: Duration = Duration::from_millis(50);
/// How long before its time a job is asked for.
const LEAD: Duration = Duration::from_millis(10);

/// What is due in a moment.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    jobs: BTreeMap<(Nanos, Identifier), Job>,
    times: HashMap<Identifier, Nanos>,
    /// Changed since the store was asked that has not answered yet: what it
    /// says may be old.
    changed: Option<HashSet<Identifier>>,
}

impl Ahead {
    /// The store is asked from here on.
    pub(super) fn ask(&mut self) {
        self.changed = Some(HashSet::new());
    }

    /// A job was changed, or may have been; answers when it was due.
    fn forget(&mut self, id: &Identifier) -> Option<Nanos> {
        if let Some(changed) = &mut self.changed {
            changed.insert(id.clone());
        }
        let due = self.times.remove(id)?;
        self.jobs.remove(&(due, id.clone()));
        Some(due)
    }

    /// Takes what the store said in the place of what it said before; answers
    /// with what is due already and when the first is due that was changed
    /// since.
    fn put(&mut self, jobs: Vec<Job>, now: Nanos) -> (Vec<Job>, Option<Nanos>) {
        self.jobs.clear();
        self.times.clear();
        let changed = self.changed.take().unwrap_or_default();
        let (mut due, mut again) = (Vec::new(), None);
        for job in jobs {
            if changed.contains(&job.id) {
                again = [again, Some(job.due)].into_iter().flatten().min();
            } else if job.due <= now {
                due.push(job);
            } else {
                self.times.insert(job.id.clone(), job.due);
                self.jobs.insert((job.due, job.id.clone()), job);
            }
        }
        (due, again)
    }

    fn first(&self) -> Option<Nanos> {
        self.jobs.first_key_value().map(|((due, _), _)| *due)
    }

    /// Takes out what is due.
    fn due(&mut self, now: Nanos) -> Vec<Job> {
        let mut due = Vec::new();
        while self.first().is_some_and(|first| first <= now)
            && let Some((_, job)) = self.jobs.pop_first()
        {
            self.times.remove(&job.id);
            due.push(job);
        }
        due
    }
}

fn away(from: Nanos, by: Duration) -> Nanos {
    Nanos(from.0.saturating_add(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX)))
}

/// When the store is asked for what is due then.
pub(super) fn asked_at(due: Nanos) -> Nanos {
    Nanos(due.0.saturating_sub(away(Nanos(0), LEAD).0))
}

/// Up to when the store is asked; not ahead where the work piles up.
pub(super) fn horizon(now: Nanos, much: bool) -> Nanos {
    if much { now } else { away(now, HORIZON) }
}

impl Scheduler {
    pub(super) fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up what is due of what the store said, and holds the rest; answers
    /// with the ends of those that no rule is for and when the first of the
    /// others is due. `next` is when the first is due that the store left out.
    pub(super) fn sort_out(
        &self,
        mut jobs: Vec<Job>,
        (until, next): (Nanos, Option<Nanos>),
    ) -> (Vec<End>, Option<Nanos>) {
        let now = Nanos::from(self.now());
        let mut ahead = self.ahead();
        {
            let work = self.work();
            jobs.retain(|job| !work.knows(job));
        }
        let (due, again) = ahead.put(jobs, now);
        let first = ahead.first();
        let lost = self.take(due);
        drop(ahead);
        // What lies behind the horizon is asked for in time; what was left out
        // before it, when it is due.
        let ask = next.map(|next| if next > until && until > now { asked_at(next) } else { next });
        if let Some(ask) = [ask, again].into_iter().flatten().min() {
            self.alarm.arm(ask);
        }
        if let Some(first) = first {
            self.alarm.hold(first);
        }
        (lost, [first, again, next].into_iter().flatten().min())
    }

    /// These are changed, or were.
    fn forget<'a>(&self, ids: impl Iterator<Item = &'a Identifier>) {
        let mut ahead = self.ahead();
        let due = ids.filter_map(|id| ahead.forget(id)).min();
        drop(ahead);
        if let Some(due) = due {
            // As it is on disk it may still be due then.
            self.alarm.arm(due);
        }
    }
}

/// Starts what was held and is due; answers when the next one is.
pub(super) fn start(scheduler: &Arc<Scheduler>) -> Option<Nanos> {
    let mut ahead = scheduler.ahead();
    let due = ahead.due(scheduler.now().into());
    let first = ahead.first();
    if due.is_empty() {
        return first;
    }
    // Taken up before anyone can hold them again.
    let lost = scheduler.take(due);
    drop(ahead);
    firing::dispatch(scheduler);
    if !lost.is_empty() {
        scheduler.work().end(lost);
        scheduler.ended.notify_one();
    }
    first
}

/// Lets go of jobs at its end: when their change is on disk, and when its
/// caller goes away meanwhile.
#[derive(Debug)]
pub(super) struct Changing<'a> {
    pub(super) scheduler: &'a Scheduler,
    pub(super) ids: Vec<Identifier>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.scheduler.forget(self.ids.iter());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::schedule::JobStatus;

    fn job(name: &str, due: i64) -> Job {
        Job {
            id: Identifier::parse(name).unwrap(),
            execution: Nanos(due),
            due: Nanos(due),
            status: JobStatus::Planned,
            recurrence: None,
            reason: None,
            attempts: 0,
            version: 1,
        }
    }

    fn names(jobs: &[Job]) -> Vec<&str> {
        jobs.iter().map(|job| job.id.as_str()).collect()
    }

    #[test]
    fn issue5_what_is_held_comes_out_in_time_and_order() {
        let mut ahead = Ahead::default();
        ahead.ask();
        let read = vec![job("a", 1), job("d", 30), job("b", 10), job("c", 20)];
        let (due, again) = ahead.put(read, Nanos(5));
        assert_eq!((names(&due), again), (vec!["a"], None));
        assert_eq!(ahead.first(), Some(Nanos(10)));
        assert_eq!(names(&ahead.due(Nanos(9))), Vec::<&str>::new());
        assert_eq!(names(&ahead.due(Nanos(20))), ["b", "c"]);
        assert_eq!(ahead.first(), Some(Nanos(30)));
        // The next answer is in the place of this one.
        assert_eq!(ahead.put(vec![job("e", 40)], Nanos(20)), (Vec::new(), None));
        assert_eq!(names(&ahead.due(Nanos(50))), ["e"]);
    }

    #[test]
    fn issue5_what_is_changed_is_not_held() {
        let mut ahead = Ahead::default();
        ahead.ask();
        ahead.put(vec![job("a", 10), job("b", 10)], Nanos(0));
        assert_eq!(ahead.forget(&job("a", 0).id), Some(Nanos(10)));
        assert_eq!(ahead.forget(&job("a", 0).id), None);
        assert_eq!(names(&ahead.due(Nanos(10))), ["b"]);
        // An answer that was asked for before the change is old.
        ahead.ask();
        assert_eq!(ahead.forget(&job("c", 0).id), None);
        let (due, again) = ahead.put(vec![job("c", 5), job("d", 6)], Nanos(10));
        assert_eq!((names(&due), again), (vec!["d"], Some(Nanos(5))));
        ahead.ask();
        let (due, again) = ahead.put(vec![job("c", 5)], Nanos(10));
        assert_eq!((names(&due), again), (vec!["c"], None));
    }
}
