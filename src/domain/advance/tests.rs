use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::domain::{
    Namespace,
    ids::NamespaceNo,
    principal::{Identity, Source},
};

const LEASE_MS: i64 = 30_000;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000).plus_ms(ms)
}

fn template(parents: &[Vec<usize>], max_attempts: u32) -> Template {
    let mut steps = String::new();
    for (no, parents) in parents.iter().enumerate() {
        let depends_on: Vec<String> = parents.iter().map(|parent| format!("s{parent}")).collect();
        let (retry, depends_on) = (max_attempts, depends_on.join(", "));
        writeln!(
            steps,
            "  - name: s{no}\n    handler: {{callable: h}}\n    retry: {{max_attempts: {retry}}}\n    \
             depends_on: [{depends_on}]"
        )
        .unwrap();
    }
    let yaml = format!("name: t\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n{steps}");
    Template::parse(&Namespace::parse("shop").unwrap(), &yaml).unwrap().template
}

/// A whole task in memory: loads for each event what a store would load.
struct Run {
    task: TaskCore,
    steps: BTreeMap<StepNo, StepCore>,
    parents: Vec<Vec<usize>>,
    leases: u64,
    now: i64,
}

impl Run {
    fn new(parents: &[Vec<usize>], max_attempts: u32) -> Self {
        let id = TaskId::compose(at(0), NamespaceNo(1), 7);
        let begun = begin(id, &template(parents, max_attempts));
        assert_eq!(begun.task.last_seq, i64::try_from(begun.changes.len()).unwrap());
        Self {
            task: begun.task,
            steps: begun.steps.into_iter().map(|step| (step.no, step)).collect(),
            parents: parents.to_vec(),
            leases: 0,
            now: 0,
        }
    }

    fn held(&mut self, step: StepNo, orphaned: bool) -> Held {
        self.leases += 1;
        Held {
            id: LeaseId { task: self.task.id, step, epoch: 1, counter: self.leases, random: 5 },
            holder: Identity { source: Source::Config, issuer: "".into(), subject: "w".into() },
            worker: Some(Arc::from("w")),
            started_at: at(self.now),
            expires_at: at(self.now + LEASE_MS),
            timeout_at: at(self.now + 60_000),
            orphaned,
        }
    }

    fn apply(&mut self, event: Event) -> Result<Advanced, Refused> {
        let named = match &event {
            Event::Leased { step, .. }
            | Event::Completed { step }
            | Event::Failed { step, .. }
            | Event::LeaseEnded { step, .. }
            | Event::Released { step }
            | Event::RetryDue { step }
            | Event::Reset { step }
            | Event::Resolved { step }
            | Event::CompletedByHand { step } => Some(*step),
            Event::Cancelled => None,
        };
        let loaded: Vec<StepCore> = match named {
            Some(no) => {
                let step = self.steps[&no].clone();
                let dependants = step.dependants.iter().map(|no| self.steps[no].clone());
                std::iter::once(step.clone()).chain(dependants.collect::<Vec<_>>()).collect()
            }
            None => self.steps.values().filter(|step| !step.state.is_final()).cloned().collect(),
        };
        let before = (self.task.clone(), self.steps.clone());
        let done = advance(self.task.clone(), loaded, event, at(self.now))?;
        self.task = done.task.clone();
        for step in &done.steps {
            let old = self.steps.insert(step.no, step.clone());
            assert!(done.touched.contains(&step.no) || old.as_ref() == Some(step), "untouched");
        }
        self.check(&before, &done);
        Ok(done)
    }

    fn check(&self, before: &(TaskCore, BTreeMap<StepNo, StepCore>), done: &Advanced) {
        let mut counts = StepCounts::default();
        for step in self.steps.values() {
            counts.add(step.state, 1);
            let old = &before.1[&step.no];
            assert!(step.attempts >= old.attempts, "an attempt's number is given once");
            assert!(!old.state.is_final() || old.state == step.state, "final is final");
            assert_eq!(step.lease.is_some(), step.state == StepState::InProgress);
            assert_eq!(step.retry_at.is_some(), step.state == StepState::WaitingForRetry);
            let unmet = self.parents[usize::from(step.no.0)]
                .iter()
                .filter(|parent| {
                    let no = StepNo(u16::try_from(**parent).unwrap());
                    !self.steps[&no].state.satisfies()
                })
                .count();
            assert_eq!(usize::from(step.deps_left), unmet);
            let waits = matches!(step.state, StepState::Pending);
            assert!(waits != (unmet == 0) || step.state.is_final(), "{step:?}");
            assert!(step.attempts <= step.attempts_allowed);
        }
        assert_eq!(counts, self.task.counts);
        let grown = i64::try_from(done.changes.len()).unwrap();
        assert_eq!(self.task.last_seq, before.0.last_seq + grown);
        for no in &done.ready {
            assert_eq!(self.steps[no].state, StepState::Ready);
        }
        if !self.task.state.is_final() {
            assert_eq!(self.task.state, state_of(&counts, self.task.started));
        }
    }

    fn in_state(&self, state: StepState) -> Vec<StepNo> {
        self.steps.values().filter(|step| step.state == state).map(|step| step.no).collect()
    }

    fn lease(&mut self, no: StepNo) {
        let held = self.held(no, false);
        self.apply(Event::Leased { step: no, held: Box::new(held) }).unwrap();
    }

    fn finish(&mut self) {
        while !self.task.state.is_final() {
            for no in self.in_state(StepState::Ready) {
                self.lease(no);
            }
            for no in self.in_state(StepState::InProgress) {
                self.apply(Event::Completed { step: no }).unwrap();
            }
            for no in self.in_state(StepState::WaitingForRetry) {
                self.apply(Event::RetryDue { step: no }).unwrap();
            }
            for no in self.in_state(StepState::Error) {
                self.apply(Event::Reset { step: no }).unwrap();
            }
        }
    }
}

fn diamond() -> Vec<Vec<usize>> {
    vec![vec![], vec![0], vec![0], vec![1, 2]]
}

const A: StepNo = StepNo(0);

#[test]
fn a_diamond_runs_in_the_order_of_its_edges() {
    let mut run = Run::new(&diamond(), 3);
    assert_eq!((run.task.state, run.in_state(StepState::Ready)), (TaskState::Pending, vec![A]));
    run.lease(A);
    assert_eq!(run.task.state, TaskState::InProgress);
    let done = run.apply(Event::Completed { step: A }).unwrap();
    assert_eq!(done.ready, [StepNo(1), StepNo(2)]);
    run.finish();
    assert_eq!(run.task.state, TaskState::Complete);
}

#[test]
fn attempts_run_out_and_a_reset_grants_as_many_again() {
    let mut run = Run::new(&[vec![], vec![0]], 3);
    for attempt in 1..=3 {
        run.lease(A);
        run.apply(Event::Failed { step: A, retryable: true, jitter: 0 }).unwrap();
        assert_eq!(run.steps[&A].attempts, attempt);
        if attempt < 3 {
            assert_eq!(run.task.state, TaskState::WaitingForRetry);
            let pause = 1_000 << (attempt - 1);
            assert_eq!(run.steps[&A].retry_at, Some(at(run.now + pause)));
            run.apply(Event::RetryDue { step: A }).unwrap();
        }
    }
    assert_eq!(run.task.state, TaskState::BlockedByFailures);
    run.apply(Event::Reset { step: A }).unwrap();
    assert_eq!((run.steps[&A].attempts, run.steps[&A].attempts_allowed), (3, 6));
    run.lease(A);
    run.apply(Event::Failed { step: A, retryable: true, jitter: 0 }).unwrap();
    assert_eq!(run.steps[&A].retry_at, Some(at(run.now + 1_000)), "the pause begins anew");
}

#[test]
fn a_permanent_failure_is_not_retried() {
    let mut run = Run::new(&[vec![]], 3);
    run.lease(A);
    run.apply(Event::Failed { step: A, retryable: false, jitter: 0 }).unwrap();
    assert_eq!(run.steps[&A].state, StepState::Error);
}

#[test]
fn an_expired_lease_uses_up_an_attempt_and_one_lost_to_a_restart_does_not() {
    let mut run = Run::new(&[vec![]], 1);
    let held = run.held(A, true);
    run.apply(Event::Leased { step: A, held: Box::new(held) }).unwrap();
    run.now = LEASE_MS;
    let done = run.apply(Event::LeaseEnded { step: A, jitter: 0 }).unwrap();
    assert_eq!((done.revoked.len(), run.steps[&A].state), (1, StepState::Ready));
    run.lease(A);
    assert_eq!(run.steps[&A].attempts, 2, "the number is not given again");
    run.now += LEASE_MS;
    run.apply(Event::LeaseEnded { step: A, jitter: 0 }).unwrap();
    assert_eq!(run.steps[&A].state, StepState::Error);
}

#[test]
fn a_resolved_step_lets_its_dependants_go_and_marks_the_task() {
    let mut run = Run::new(&diamond(), 3);
    run.apply(Event::Resolved { step: A }).unwrap();
    run.finish();
    assert_eq!(run.task.state, TaskState::ResolvedManually);
    let refused = run.apply(Event::Resolved { step: A });
    assert_eq!(refused, Err(Refused::TaskFinal(TaskState::ResolvedManually)));
}

#[test]
fn a_complete_step_is_left_alone() {
    let mut run = Run::new(&diamond(), 3);
    run.apply(Event::CompletedByHand { step: A }).unwrap();
    for event in [
        Event::Reset { step: A },
        Event::Resolved { step: A },
        Event::CompletedByHand { step: A },
        Event::Completed { step: A },
    ] {
        assert!(matches!(run.apply(event), Err(Refused::StepState { .. })));
    }
}

#[test]
fn cancel_ends_open_steps_and_their_leases() {
    let mut run = Run::new(&diamond(), 3);
    run.lease(A);
    let done = run.apply(Event::Cancelled).unwrap();
    assert_eq!(done.revoked.len(), 1);
    assert_eq!(run.in_state(StepState::Cancelled).len(), 4);
    assert_eq!(run.task.state, TaskState::Cancelled);
}

#[test]
fn pauses_grow_as_the_policy_says_and_stay_bounded() {
    let policy = |backoff| RetryPolicy { backoff, ..RetryPolicy::default() };
    let pauses = |backoff| [1, 2, 3, 40].map(|used| pause_ms(&policy(backoff), used, 0));
    assert_eq!(pauses(Backoff::Exponential), [1_000, 2_000, 4_000, 30_000]);
    assert_eq!(pauses(Backoff::Linear), [1_000, 2_000, 3_000, 30_000]);
    assert_eq!(pauses(Backoff::Fixed), [1_000; 4]);
    assert_eq!(pause_ms(&policy(Backoff::Exponential), u32::MAX, 100), 33_000);
    assert_eq!(pause_ms(&policy(Backoff::Fixed), 1, -100), 900);
}

fn graphs() -> impl Strategy<Value = Vec<Vec<usize>>> {
    (1_usize..8).prop_flat_map(|size| {
        (0..size)
            .map(|no| proptest::collection::btree_set(0..no.max(1), 0..=no.min(3)))
            .collect::<Vec<_>>()
            .prop_map(|sets| {
                let parents = |(no, set): (usize, std::collections::BTreeSet<usize>)| {
                    set.into_iter().filter(|parent| *parent < no).collect()
                };
                sets.into_iter().enumerate().map(parents).collect()
            })
    })
}

proptest! {
    /// Any order of events, possible or not, keeps every invariant, and from
    /// wherever it leads the task can be brought to an end.
    #[test]
    fn every_history_keeps_the_invariants_and_can_end(
        parents in graphs(),
        events in proptest::collection::vec((0_u8..10, any::<u16>(), any::<bool>()), 0..60),
    ) {
        let mut run = Run::new(&parents, 2);
        for (kind, step, flag) in events {
            let step = StepNo(step % u16::try_from(parents.len()).unwrap());
            run.now += 7_000;
            let event = match kind {
                0..=2 => { let held = run.held(step, flag); Event::Leased { step, held: Box::new(held) } }
                3 | 4 => Event::Completed { step },
                5 => Event::Failed { step, retryable: flag, jitter: 50 },
                6 => Event::LeaseEnded { step, jitter: -50 },
                7 => Event::RetryDue { step },
                8 if flag => Event::Released { step },
                8 => Event::Reset { step },
                _ if flag => Event::Resolved { step },
                _ => Event::CompletedByHand { step },
            };
            let _ = run.apply(event);
        }
        run.finish();
        prop_assert!(run.task.state == TaskState::Complete || run.task.state == TaskState::ResolvedManually);
    }
}
