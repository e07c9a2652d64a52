//! What the cases share: a clock and a desk that they hold, a store, and the
//! checks that end each case.

use crate::domain::{Principal, RequestId, audit::Origin};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
};

use super::Engine;
use crate::{
    domain::{
        Area, Clock, Json, LeaseId, Namespace, Scope, StepId, StepNo, TaskId, Timestamp,
        history::{Change, Event, Stamp},
        principal::{Identity, Source},
        task::{Labels, StepCounts, StepState, Task, TaskState},
        template::Template,
    },
    storage::{
        Created, Desk, Effects, Leased, NewTask, Page, Registered, Report, Reported, Revocation,
        Seat, Step, Store, TaskFilter, TemplateRecord,
    },
};

/// A clock that the case moves.
#[derive(Debug)]
pub(crate) struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

impl Default for TestClock {
    fn default() -> Self {
        Self(AtomicI64::new(1_700_000_000_000_000))
    }
}

impl TestClock {
    fn advance_ms(&self, ms: i64) {
        self.0.fetch_add(ms * 1_000, Ordering::SeqCst);
    }
}

#[derive(Debug, Default)]
struct Papers {
    waiting: VecDeque<(Namespace, String, Seat)>,
    given_back: Vec<Seat>,
    effects: Effects,
}

/// A desk whose seats the case places.
#[derive(Debug, Default)]
pub(crate) struct TestDesk {
    papers: Mutex<Papers>,
    tickets: AtomicU64,
    /// Panics when a seat for this handler is asked for.
    pub(crate) breaks_on: Mutex<Option<String>>,
}

impl Desk for TestDesk {
    fn take(&self, namespace: &Namespace, handler: &str) -> Option<Seat> {
        let broken = self.breaks_on.lock().unwrap().as_deref() == Some(handler);
        assert!(!broken, "the desk breaks as the case wants it");
        let mut papers = self.papers.lock().unwrap();
        let fits =
            |(ns, wanted, _): &(Namespace, String, Seat)| ns == namespace && wanted == handler;
        let place = papers.waiting.iter().position(fits)?;
        papers.waiting.remove(place).map(|(_, _, seat)| seat)
    }

    fn give_back(&self, seat: Seat) {
        self.papers.lock().unwrap().given_back.push(seat);
    }

    fn committed(&self, effects: Effects) {
        let mut papers = self.papers.lock().unwrap();
        let Effects { granted, revoked, changed, unserved, due, finished, expired } = effects;
        papers.effects.granted.extend(granted);
        papers.effects.revoked.extend(revoked);
        papers.effects.changed.extend(changed);
        papers.effects.unserved.extend(unserved);
        papers.effects.finished.extend(finished);
        papers.effects.expired += expired;
        papers.effects.due = due.or(papers.effects.due);
    }
}

impl TestDesk {
    /// What the commits since the last call did.
    pub(crate) fn effects(&self) -> Effects {
        std::mem::take(&mut self.papers.lock().unwrap().effects)
    }

    pub(crate) fn given_back(&self) -> Vec<u64> {
        self.papers.lock().unwrap().given_back.iter().map(|seat| seat.ticket).collect()
    }

    pub(crate) fn still_waiting(&self) -> usize {
        self.papers.lock().unwrap().waiting.len()
    }
}

pub(crate) const LEASE_MS: i64 = 30_000;

pub(crate) struct House<E> {
    engine: Option<E>,
    pub(crate) desk: Arc<TestDesk>,
    pub(crate) clock: Arc<TestClock>,
    entropy: AtomicU32,
    templates: HashMap<String, Arc<TemplateRecord>>,
}

pub(crate) fn ns(name: &str) -> Namespace {
    Namespace::parse(name).unwrap()
}

pub(crate) fn scope(prefix: &str) -> Scope {
    Scope::parse(&[prefix]).unwrap()
}

pub(crate) fn who(subject: &str) -> Identity {
    Identity { source: Source::Idp, issuer: "https://issuer".into(), subject: subject.into() }
}

pub(crate) fn stamp(subject: &str) -> Stamp {
    let principal = Principal {
        identity: who(subject),
        credential_id: "key-1".into(),
        ..Principal::auth_off()
    };
    let request = RequestId::from_random([9; 16]);
    Stamp::of(Arc::new(Origin::new(Arc::new(principal), "test".into(), request)))
}

pub(crate) fn page(size: usize, after: Option<String>) -> Page {
    Page { size, after }
}

/// The definition of a template: steps as `name handler parent,parent`, and
/// more lines for each step.
pub(crate) fn definition(
    namespace: &str,
    name: &str,
    version: &str,
    steps: &[&str],
    more: &str,
) -> String {
    let mut text =
        format!("name: {name}\nnamespace_name: {namespace}\nversion: {version}\nsteps:\n");
    for step in steps {
        let mut parts = step.split(' ');
        let (name, handler) = (parts.next().unwrap(), parts.next().unwrap());
        writeln!(text, "  - name: {name}\n    handler: {{callable: {handler}}}").unwrap();
        if let Some(parents) = parts.next() {
            writeln!(text, "    depends_on: [{parents}]").unwrap();
        }
        for line in more.lines() {
            writeln!(text, "    {line}").unwrap();
        }
    }
    text
}

pub(crate) const DIAMOND: &[&str] = &["a ha", "b hb a", "c hc a", "d hd b,c"];

impl<E: Engine> House<E> {
    pub(crate) async fn new() -> Self {
        let desk = Arc::new(TestDesk::default());
        let clock = Arc::new(TestClock::default());
        let engine = E::fresh(Arc::clone(&desk), Arc::clone(&clock)).await;
        Self {
            engine: Some(engine),
            desk,
            clock,
            entropy: AtomicU32::new(0),
            templates: HashMap::new(),
        }
    }

    pub(crate) fn engine(&self) -> &E {
        self.engine.as_ref().unwrap()
    }

    pub(crate) fn store(&self) -> &dyn Store {
        self.engine().store()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn wait_ms(&self, ms: i64) {
        self.clock.advance_ms(ms);
    }

    /// The server goes away and comes back.
    pub(crate) async fn reopen(&mut self) {
        self.engine = Some(self.engine.take().unwrap().reopen().await);
    }

    pub(crate) async fn register_text(&self, namespace: &str, text: &str) -> Registered {
        let namespace = ns(namespace);
        let template = Template::parse(&namespace, text).unwrap().template;
        self.store()
            .register(
                &namespace,
                Arc::new(template),
                text.into(),
                None,
                &stamp("registrar"),
                self.now(),
            )
            .await
            .unwrap()
    }

    /// Registers version 1.0.0 of a template and remembers it as
    /// `namespace/name`.
    pub(crate) async fn template(
        &mut self,
        namespace: &str,
        name: &str,
        steps: &[&str],
        more: &str,
    ) {
        let text = definition(namespace, name, "1.0.0", steps, more);
        let Registered::New(record) = self.register_text(namespace, &text).await else {
            panic!("it was there");
        };
        self.templates.insert(format!("{namespace}/{name}"), record);
    }

    /// A template of one step `a` for handler `h`.
    pub(crate) async fn one_step(&mut self, namespace: &str, more: &str) {
        self.template(namespace, "one", &["a h"], more).await;
    }

    pub(crate) fn new_task(&self, template: &str) -> NewTask {
        NewTask {
            template: Arc::clone(&self.templates[template]),
            labels: Labels::default(),
            priority: 0,
            context: Json::parse_object(r#"{"order":7}"#).unwrap(),
            traceparent: None,
            fingerprint: [7; 32],
            entropy: self.entropy.fetch_add(1, Ordering::SeqCst),
            spawn: None,
        }
    }

    pub(crate) async fn create_task(&self, task: NewTask) -> Created {
        self.store().create(task, &stamp("creator"), self.now()).await.unwrap()
    }

    pub(crate) async fn create(&self, template: &str) -> Task {
        let Created::New(task) = self.create_task(self.new_task(template)).await else {
            panic!("it was there");
        };
        *task
    }

    /// Places a seat of this holder's worker.
    pub(crate) fn sit_as(&self, namespace: &str, handler: &str, holder: &str) -> u64 {
        let ticket = self.desk.tickets.fetch_add(1, Ordering::SeqCst);
        let seat = Seat {
            ticket,
            holder: who(holder),
            worker: Some("w-1".into()),
            entropy: 0xdead_0000_0000_0000 | ticket,
        };
        let place = (ns(namespace), handler.to_owned(), seat);
        self.desk.papers.lock().unwrap().waiting.push_back(place);
        ticket
    }

    pub(crate) fn sit(&self, namespace: &str, handler: &str) -> u64 {
        self.sit_as(namespace, handler, "worker")
    }

    /// The leases granted since the last look.
    pub(crate) fn granted(&self) -> Vec<Leased> {
        self.desk.effects().granted.into_iter().map(|(_, leased)| leased).collect()
    }

    /// Leases the next ready step of a handler.
    pub(crate) async fn lease(&self, namespace: &str, handler: &str) -> Leased {
        self.sit(namespace, handler);
        let area = Area::Exactly(ns(namespace));
        self.store().dispatch(&area, &[handler.into()], 1, self.now()).await.unwrap();
        let mut granted = self.granted();
        assert_eq!(granted.len(), 1, "one step of {handler} is ready");
        granted.remove(0)
    }

    pub(crate) async fn report_as(
        &self,
        holder: &str,
        lease: LeaseId,
        report: Report,
    ) -> Option<Reported> {
        self.store()
            .report(&Scope::Everything, &who(holder), lease, report, &stamp(holder), self.now())
            .await
            .unwrap()
    }

    pub(crate) async fn complete(&self, lease: LeaseId, result: &str) -> Option<Reported> {
        let report = Report::Complete(Json::parse(result).unwrap());
        self.report_as("worker", lease, report).await
    }

    pub(crate) async fn fail(&self, lease: LeaseId, error: &str) -> Option<Reported> {
        let report = Report::Fail { error: error.to_owned(), retryable: true, jitter: 0 };
        self.report_as("worker", lease, report).await
    }

    pub(crate) async fn expire(&self) -> Option<Timestamp> {
        self.store().expire(1_000, 0, self.now()).await.unwrap()
    }

    pub(crate) async fn task(&self, id: TaskId) -> Task {
        self.store().task(&Scope::Everything, id).await.unwrap().unwrap()
    }

    pub(crate) async fn state(&self, id: TaskId) -> TaskState {
        self.task(id).await.core.state
    }

    pub(crate) async fn step(&self, task: TaskId, no: u16) -> Step {
        self.step_by_id(task, task.step(StepNo(no))).await.unwrap()
    }

    pub(crate) async fn step_by_id(&self, task: TaskId, step: StepId) -> Option<Step> {
        let found = self.store().step(&Scope::Everything, task, step).await.unwrap();
        found.map(|(_, step)| step)
    }

    pub(crate) async fn events(&self, task: TaskId) -> Vec<Event> {
        let events = self.store().events(&Scope::Everything, task, 0, 10_000).await.unwrap();
        events.unwrap()
    }

    pub(crate) async fn all_tasks(&self) -> Vec<Task> {
        let all = TaskFilter::default();
        self.store().tasks(&Scope::Everything, &all, &page(10_000, None)).await.unwrap().items
    }

    pub(crate) fn revoked(&self) -> Vec<(LeaseId, Revocation)> {
        self.desk.effects().revoked
    }

    /// What holds at the end of every case, for every task. A store that a
    /// case closed is opened again.
    pub(crate) async fn verify(&mut self) {
        self.reopen().await;
        for task in self.all_tasks().await {
            self.verify_task(&task).await;
        }
        self.engine().verify().await;
    }

    async fn verify_task(&self, task: &Task) {
        let id = task.core.id;
        let everything = Scope::Everything;
        let (seen, briefs) = self.store().snapshot(&everything, id).await.unwrap().unwrap();
        assert_eq!(seen, *task);
        let mut counts = StepCounts::default();
        for brief in &briefs {
            counts.add(brief.core.state, 1);
        }
        assert_eq!(counts, task.core.counts, "counts equal sums");
        let steps = self.store().steps(&everything, id, &page(10_000, None)).await.unwrap();
        let steps = steps.unwrap().1.items;
        let by_name: BTreeMap<_, _> = steps.iter().map(|step| (&step.name, step)).collect();
        for (step, brief) in steps.iter().zip(&briefs) {
            assert_eq!((&step.core, step.id, &step.name), (&brief.core, brief.id, &brief.name));
            let left = step.depends_on.iter().filter(|name| !by_name[name].core.state.satisfies());
            assert_eq!(usize::from(step.core.deps_left), left.count(), "deps_left is right");
            for parent in &step.depends_on {
                assert!(by_name[parent].core.dependants.contains(&step.core.no));
            }
            let leased = step.core.state == StepState::InProgress;
            assert_eq!(step.core.lease.is_some(), leased);
        }
        self.verify_events(task, &steps).await;
    }

    async fn verify_events(&self, task: &Task, steps: &[Step]) {
        let events = self.events(task.core.id).await;
        let places: Vec<i64> = events.iter().map(|event| event.seq).collect();
        let wanted: Vec<i64> = (1..=task.core.last_seq).collect();
        assert_eq!(places, wanted, "events are contiguous");
        let mut state = None;
        let mut last: HashMap<StepNo, (StepState, u32)> = HashMap::new();
        let mut leased = HashMap::new();
        for event in &events {
            match event.change {
                Change::Task(now) => state = Some(now),
                Change::Step { no, state, attempts, .. } => {
                    let before = last.insert(no, (state, attempts));
                    if state == StepState::InProgress && before.is_none_or(|b| b.0 != state) {
                        let again = leased.insert((no, attempts), event.seq);
                        assert_eq!(again, None, "no attempt number is given twice");
                    }
                }
            }
        }
        assert_eq!(state, Some(task.core.state));
        for step in steps {
            assert_eq!(last[&step.core.no], (step.core.state, step.core.attempts));
        }
    }
}
