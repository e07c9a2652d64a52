//! Long polls and sessions: who gets what, and what becomes of the rest.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::join_all};
use tokio_util::sync::CancellationToken;

use super::house::{DIAMOND, House, ONE, RETRIED, area, within};
use crate::{
    authz::System,
    domain::LeaseId,
    engine::{
        CREDIT_MAX, Error, Health, Offer, Session, loops,
        work::{self, LeaseRequest, WorkerInfo},
    },
    storage::{Leased, Revocation},
};

const LONG: Duration = Duration::from_mins(1);

fn info(name: &str, handlers: &[&str]) -> WorkerInfo {
    WorkerInfo {
        name: name.to_owned(),
        handlers: handlers.iter().map(ToString::to_string).collect(),
        version: Some("1".to_owned()),
    }
}

async fn open(house: &House, name: &str, handlers: &[&str]) -> Session {
    let claim = house.claim("shop");
    work::session(&house.engine, claim, area("shop"), info(name, handlers)).await.unwrap()
}

async fn next(session: &mut Session) -> Offer {
    within(session.next()).await.unwrap()
}

async fn next_lease(session: &mut Session) -> Leased {
    match next(session).await {
        Offer::Lease(lease) => *lease,
        Offer::Revoked(lease, why) => panic!("{lease:?} revoked: {why:?}"),
    }
}

async fn next_revoked(session: &mut Session) -> (LeaseId, Revocation) {
    match next(session).await {
        Offer::Lease(lease) => panic!("{lease:?}"),
        Offer::Revoked(lease, why) => (lease, why),
    }
}

/// Nothing comes, and what there was to look for has been looked for.
async fn nothing(session: &mut Session) {
    for _ in 0..100 {
        assert!(session.next().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_long_poll_is_woken_by_a_creation() {
    let house = House::with(ONE).await;
    let (leases, task) = within(async {
        tokio::join!(house.lease_waiting("work", LONG), async {
            house.seated(1).await;
            house.create("one", r#"{"n": 1}"#).await
        })
    })
    .await;
    let leases = leases.unwrap();
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].id.task, task.core.id);
    assert_eq!((leases[0].attempt, leases[0].context.as_str()), (1, r#"{"n": 1}"#));
    house.complete(&leases[0], "").await;
    assert_eq!(house.floor.figures(), (0, 0));
}

#[tokio::test]
async fn a_long_poll_is_woken_by_the_step_that_becomes_ready() {
    let house = House::with(DIAMOND).await;
    house.create("diamond", "").await;
    let top = house.lease_one("top").await;
    let (leases, ()) = within(async {
        tokio::join!(house.lease_waiting("left", LONG), async {
            house.seated(1).await;
            house.complete(&top, "1").await;
        })
    })
    .await;
    assert_eq!(&*leases.unwrap()[0].name, "left");
}

#[tokio::test]
async fn a_poll_takes_what_is_there_up_to_its_number() {
    let house = House::with(ONE).await;
    for _ in 0..5 {
        house.create("one", "").await;
    }
    let engine = &house.engine;
    let ask = |max_leases| {
        let handlers = vec!["work".to_owned(), "other".to_owned()];
        let request = LeaseRequest { handlers, max_leases, ..LeaseRequest::default() };
        let claim = house.claim("shop");
        async move { work::lease(engine, &claim, area("shop"), request).await }
    };
    assert_eq!(ask(0).await.unwrap().len(), 1);
    assert_eq!(ask(3).await.unwrap().len(), 3);
    assert_eq!(ask(100).await.unwrap().len(), 1);
    assert!(ask(100).await.unwrap().is_empty());
    assert!(matches!(ask(101).await, Err(Error::FieldInvalid { field: "max_leases", .. })));
}

#[tokio::test]
async fn a_poll_has_a_handler_a_bound_and_a_scope() {
    let house = House::with(ONE).await;
    let engine = &house.engine;
    let ask = |handlers: &[&str], wait, at: &str| {
        let handlers = handlers.iter().map(ToString::to_string).collect();
        let request = LeaseRequest { handlers, wait, ..LeaseRequest::default() };
        let (claim, area) = (house.claim("shop"), area(at));
        async move { work::lease(engine, &claim, area, request).await }
    };
    let none = ask(&[], Duration::ZERO, "shop").await;
    assert!(matches!(none, Err(Error::FieldInvalid { field: "handlers", .. })));
    let long = ask(&["work"], LONG + Duration::from_millis(1), "shop").await;
    assert!(matches!(long, Err(Error::FieldInvalid { field: "wait_ms", .. })));
    for outside in ["other", "other.", "shopping"] {
        let hidden = ask(&["work"], Duration::ZERO, outside).await;
        assert!(matches!(hidden, Err(Error::NamespaceNotFound(_))), "{outside}");
    }
}

#[tokio::test]
async fn a_dropped_poll_gives_its_lease_back_unused() {
    let house = House::with(ONE).await;
    {
        let mut poll = Box::pin(house.lease_waiting("work", LONG));
        within(async {
            while house.floor.figures().1 == 0 {
                assert!((&mut poll).now_or_never().is_none());
                tokio::task::yield_now().await;
            }
        })
        .await;
        // Until its look in the queue is over, so that the seat is its own.
        for _ in 0..1_000 {
            assert!((&mut poll).now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        house.create("one", "").await;
        assert!(house.lease("work").await.is_empty());
    }
    assert!(house.lease("work").await.is_empty());
    house.give_back().await;
    // No number is given twice, and an attempt more is allowed.
    let again = house.lease_one("work").await;
    let step = house.steps(again.id.task).await.remove(0);
    assert_eq!((again.attempt, step.core.attempts_allowed), (2, 4));
}

#[tokio::test]
async fn a_session_gets_as_many_steps_as_it_has_credit_for() {
    let house = House::with(ONE).await;
    house.create("one", "").await;
    let mut session = open(&house, "w", &["work"]).await;
    nothing(&mut session).await;
    session.credit(2);
    house.complete(&next_lease(&mut session).await, "").await;
    nothing(&mut session).await;
    for _ in 0..3 {
        house.create("one", "").await;
    }
    let second = next_lease(&mut session).await;
    nothing(&mut session).await;
    session.credit(5);
    let (third, fourth) = (next_lease(&mut session).await, next_lease(&mut session).await);
    nothing(&mut session).await;
    for lease in [second, third, fourth] {
        house.complete(&lease, "").await;
    }
    assert_eq!(house.floor.figures(), (1, 3));
}

#[tokio::test]
async fn a_cancel_reaches_the_session_that_holds_the_lease() {
    let house = House::with(ONE).await;
    let mut session = open(&house, "w", &["work"]).await;
    let mut bystander = open(&house, "v", &["work"]).await;
    session.credit(1);
    let id = house.create("one", "").await.core.id;
    let lease = next_lease(&mut session).await;
    house.cancel(id).await.unwrap();
    assert_eq!(next_revoked(&mut session).await, (lease.id, Revocation::Cancelled));
    nothing(&mut session).await;
    nothing(&mut bystander).await;
}

#[tokio::test]
async fn an_expired_lease_is_told_and_a_completed_one_is_not() {
    let house = House::with(ONE).await;
    let mut session = open(&house, "w", &["work"]).await;
    session.credit(2);
    house.create("one", "").await;
    let done = next_lease(&mut session).await;
    house.complete(&done, "").await;
    house.create("one", "").await;
    let lost = next_lease(&mut session).await;
    house.pass(Duration::from_secs(31)).await;
    assert_eq!(next_revoked(&mut session).await, (lost.id, Revocation::Lost));
    nothing(&mut session).await;
}

#[tokio::test]
async fn a_cancel_before_the_fetch_frees_the_seat() {
    let house = House::with(ONE).await;
    let mut session = open(&house, "w", &["work"]).await;
    session.credit(1);
    nothing(&mut session).await;
    let id = house.create("one", "").await.core.id;
    house.cancel(id).await.unwrap();
    assert_eq!(house.floor.figures(), (1, 1));
    let other = house.create("one", "").await.core.id;
    assert_eq!(next_lease(&mut session).await.id.task, other);
}

#[tokio::test]
async fn a_dropped_session_gives_back_what_it_did_not_hand_out() {
    let house = House::with(ONE).await;
    let mut session = open(&house, "w", &["work"]).await;
    session.credit(2);
    nothing(&mut session).await;
    house.create("one", "").await;
    let held = next_lease(&mut session).await;
    let waiting = house.create("one", "").await.core.id;
    drop(session);
    assert_eq!(house.floor.figures(), (0, 0));
    assert!(house.lease("work").await.is_empty());
    house.give_back().await;
    let again = house.lease_one("work").await;
    assert_eq!((again.id.task, again.attempt), (waiting, 2));
    // What it had handed out is its worker's still.
    house.complete(&held, "").await;
}

#[tokio::test]
async fn taking_credit_back_returns_what_was_not_fetched() {
    let house = House::with(ONE).await;
    let mut session = open(&house, "w", &["work"]).await;
    session.credit(3);
    nothing(&mut session).await;
    house.create("one", "").await;
    session.credit(0);
    nothing(&mut session).await;
    house.give_back().await;
    assert_eq!(house.lease_one("work").await.attempt, 2);
    session.credit(u32::MAX);
    assert_eq!(house.floor.figures().1, usize::try_from(CREDIT_MAX).unwrap());
}

#[tokio::test]
async fn two_sessions_share_the_work() {
    let house = House::with(ONE).await;
    let mut first = open(&house, "a", &["work"]).await;
    let mut second = open(&house, "b", &["work"]).await;
    first.credit(10);
    nothing(&mut first).await;
    second.credit(10);
    nothing(&mut second).await;
    for _ in 0..6 {
        house.create("one", "").await;
    }
    for session in [&mut first, &mut second] {
        for _ in 0..3 {
            next_lease(session).await;
        }
        nothing(session).await;
    }
}

#[tokio::test]
async fn a_worker_of_an_area_gets_what_is_below_it_alone() {
    let house = House::with(ONE).await;
    for namespace in ["shop.a", "shop.a.b", "shopping"] {
        let definition =
            ONE.replace("namespace_name: shop", &format!("namespace_name: {namespace}"));
        house.register_in(namespace, &definition).await.unwrap();
    }
    let claim = house.claim("shop");
    let mut session =
        work::session(&house.engine, claim, area("shop."), info("w", &["work"])).await.unwrap();
    session.credit(10);
    for namespace in ["shop", "shopping", "shop.a", "shop.a.b"] {
        house.create_in(namespace, house.new_task("one", "")).await.unwrap();
    }
    let mut got = vec![
        next_lease(&mut session).await.namespace.to_string(),
        next_lease(&mut session).await.namespace.to_string(),
    ];
    got.sort_unstable();
    assert_eq!(got, ["shop.a", "shop.a.b"]);
    nothing(&mut session).await;
}

#[tokio::test]
async fn a_call_dropped_again_and_again_loses_no_step() {
    let house = House::with(ONE).await;
    let mut session = open(&house, "w", &["work"]).await;
    for _ in 0..20 {
        house.create("one", "").await;
    }
    let mut got = 0;
    while got < 20 {
        session.credit(1);
        within(async {
            loop {
                if let Some(offer) = session.next().now_or_never() {
                    assert!(matches!(offer.unwrap(), Offer::Lease(_)));
                    got += 1;
                    break;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    assert!(house.lease("work").await.is_empty());
}

#[tokio::test]
async fn many_pollers_get_each_step_once() {
    let house = House::with(ONE).await;
    let pollers = join_all((0..20).map(|_| house.lease_waiting("work", LONG)));
    let makers = async { join_all((0..20).map(|_| house.create("one", ""))).await.len() };
    let (leases, made) = within(async { tokio::join!(pollers, makers) }).await;
    let mut tasks: Vec<_> = Vec::new();
    for lease in leases.into_iter().flat_map(Result::unwrap) {
        assert_eq!(lease.attempt, 1);
        tasks.push(lease.id.task);
    }
    tasks.sort_unstable();
    tasks.dedup();
    assert_eq!((tasks.len(), made), (20, 20));
}

#[tokio::test]
async fn the_loops_serve_and_a_shutdown_ends_sessions_and_polls() {
    let house = House::with(ONE).await;
    let well = |house: &House| {
        house.engine.health().iter().all(|(_, health)| matches!(health, Health::Healthy(_)))
    };
    assert!(!well(&house));
    let shutdown = CancellationToken::new();
    let running = loops::run(Arc::clone(&house.engine), System::permit(), shutdown.clone());
    let script = async {
        while !well(&house) {
            tokio::task::yield_now().await;
        }
        // What a dropped session held goes back by the loop.
        let mut session = open(&house, "w", &["work"]).await;
        session.credit(1);
        nothing(&mut session).await;
        house.create("one", "").await;
        drop(session);
        let leases = house.lease_waiting("work", LONG).await.unwrap();
        assert_eq!(leases[0].attempt, 2);

        let mut session = open(&house, "w", &["work"]).await;
        let ends = async {
            let end = session.next().await;
            drop(session);
            end
        };
        let stop = async {
            house.seated(1).await;
            shutdown.cancel();
        };
        tokio::join!(house.lease_waiting("work", LONG), ends, stop)
    };
    let ((), (poll, end, ())) = within(async { tokio::join!(running, script) }).await;
    assert!(matches!(poll, Err(Error::ShuttingDown)));
    assert!(matches!(end, Err(Error::ShuttingDown)));
    assert!(!well(&house));
}

#[tokio::test]
async fn the_timer_fires_by_itself() {
    let house = House::with(RETRIED).await;
    let id = house.create("retried", "").await.core.id;
    let shutdown = CancellationToken::new();
    let running = loops::run(Arc::clone(&house.engine), System::permit(), shutdown.clone());
    let script = async {
        let lease = house.lease_one("work").await;
        house.fail(&lease, "once", true).await;
        house.turn(Duration::from_millis(1_200));
        let again = house.lease_waiting("work", LONG).await.unwrap();
        assert_eq!((again[0].attempt, again[0].id.task), (2, id));
        shutdown.cancel();
    };
    within(async { tokio::join!(running, script) }).await;
}

/// A worker that comes and goes: some sessions end with work unfetched.
async fn roam(house: &House, name: String, left: &std::sync::atomic::AtomicUsize) {
    use std::sync::atomic::Ordering::SeqCst;
    while left.load(SeqCst) > 0 {
        let mut session = open(house, &name, &["top", "left", "right", "bottom"]).await;
        session.credit(rand::random_range(1..4));
        for _ in 0..rand::random_range(1..20) {
            // Ends with the last step, which another worker may do.
            let offer = tokio::select! {
                offer = session.next() => offer.unwrap(),
                () = async { while left.load(SeqCst) > 0 { tokio::task::yield_now().await } } => return,
            };
            let Offer::Lease(lease) = offer else { panic!("{offer:?}") };
            session.credit(rand::random_range(1..3));
            house.complete(&lease, "{}").await;
            left.fetch_sub(1, SeqCst);
        }
        session.credit(0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn workers_that_come_and_go_do_every_step_once() {
    const TASKS: usize = 100;
    let house = House::with(DIAMOND).await;
    let left = std::sync::atomic::AtomicUsize::new(TASKS * 4);
    let shutdown = CancellationToken::new();
    let running = loops::run(Arc::clone(&house.engine), System::permit(), shutdown.clone());
    let script = async {
        let makers = join_all((0..TASKS).map(|_| house.create("diamond", "")));
        let workers = join_all((0..8).map(|nth| roam(&house, format!("w{nth}"), &left)));
        let (tasks, _) = tokio::join!(makers, workers);
        shutdown.cancel();
        tasks
    };
    let ((), tasks) = within(async { tokio::join!(running, script) }).await;
    for task in tasks {
        let task = house.task(task.core.id).await;
        assert_eq!(task.core.state, crate::domain::task::TaskState::Complete);
        for step in house.steps(task.core.id).await {
            // Each attempt that was begun in vain was allowed once more.
            assert_eq!(step.core.attempts_allowed - step.core.attempts, 2);
        }
    }
    assert_eq!(house.floor.figures(), (0, 0));
    assert!(house.floor.take_orphans().is_empty());
}
