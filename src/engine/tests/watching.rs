//! Watches: a snapshot, then every event once and in order.

use std::{pin::Pin, time::Duration};

use futures::{FutureExt as _, Stream, StreamExt as _, future::join_all};

use super::house::{DIAMOND, House, ONE, RETRIED, within};
use crate::{
    domain::{
        TaskId,
        history::Change,
        task::{StepState, TaskState},
    },
    engine::{
        Error, steps,
        watch::{self, Item},
    },
};

type Watch = Pin<Box<dyn Stream<Item = Result<Item, Error>> + Send>>;

async fn open(house: &House, id: TaskId, after: Option<i64>) -> Watch {
    Box::pin(watch::watch(&house.engine, house.claim("shop"), id, after).await.unwrap())
}

/// Everything until the end, and the places of its events.
async fn all(watch: Watch) -> (Vec<Item>, Vec<i64>) {
    let items: Vec<Item> = within(watch.map(Result::unwrap).collect()).await;
    let places = items
        .iter()
        .filter_map(|item| match item {
            Item::Event { event, .. } => Some(event.seq),
            Item::Snapshot { .. } => None,
        })
        .collect();
    (items, places)
}

async fn run(house: &House) {
    for (handler, times) in [("top", 1), ("left", 1), ("right", 1), ("bottom", 1)] {
        for _ in 0..times {
            let lease = house.lease_one(handler).await;
            house.complete(&lease, "1").await;
        }
    }
}

#[tokio::test]
async fn a_watch_shows_a_snapshot_and_every_event_to_the_end() {
    let house = House::with(DIAMOND).await;
    let id = house.create("diamond", "").await.core.id;
    let watch = open(&house, id, None).await;
    let ((items, places), ()) = tokio::join!(all(watch), run(&house));
    let Item::Snapshot { seq, task, steps } = &items[0] else { panic!("{:?}", items[0]) };
    assert_eq!((task.core.id, steps.len()), (id, 4));
    let last = house.task(id).await.core.last_seq;
    assert_eq!(places, (seq + 1..=last).collect::<Vec<_>>());
    let mut finals = items.iter().filter_map(|item| match item {
        Item::Event { event, step: None } => match event.change {
            Change::Task(state) => Some(state),
            Change::Step { .. } => panic!("a step without its name"),
        },
        Item::Event { .. } | Item::Snapshot { .. } => None,
    });
    assert_eq!(finals.next_back(), Some(TaskState::Complete));
    let named = items.iter().any(|item| {
        matches!(item, Item::Event { step: Some((step, name)), .. }
            if name.as_ref() == "bottom" && *step == steps[3].id)
    });
    assert!(named);
}

#[tokio::test]
async fn a_watch_resumes_behind_an_event_and_ends_when_nothing_is_left() {
    let house = House::with(DIAMOND).await;
    let id = house.create("diamond", "").await.core.id;
    run(&house).await;
    let last = house.task(id).await.core.last_seq;
    for after in 0..=last {
        let (items, places) = all(open(&house, id, Some(after)).await).await;
        assert_eq!(places, (after + 1..=last).collect::<Vec<_>>());
        assert_eq!(items.len(), places.len());
    }
    let (items, places) = all(open(&house, id, None).await).await;
    assert!(matches!(items[..], [Item::Snapshot { .. }]) && places.is_empty());
    for odd in [-1, last + 1] {
        let refused = watch::watch(&house.engine, house.claim("shop"), id, Some(odd)).await.err();
        assert!(matches!(refused, Some(Error::FieldInvalid { field: "after_seq", .. })), "{odd}");
    }
}

#[tokio::test]
async fn many_watches_begun_at_any_time_miss_nothing() {
    let house = House::with(DIAMOND).await;
    let id = house.create("diamond", "").await.core.id;
    let watchers = join_all((0..30).map(|nth| {
        let house = &house;
        async move {
            for _ in 0..nth {
                tokio::task::yield_now().await;
            }
            let after = (nth % 2 == 0).then_some(0);
            all(open(house, id, after).await).await
        }
    }));
    let (watched, ()) = within(async { tokio::join!(watchers, run(&house)) }).await;
    let last = house.task(id).await.core.last_seq;
    for (items, places) in watched {
        let begin = match &items[0] {
            Item::Snapshot { seq, .. } => *seq,
            Item::Event { event, .. } => event.seq - 1,
        };
        assert_eq!(places, (begin + 1..=last).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_blocked_task_is_watched_on_and_a_reason_stays_hidden() {
    let house = House::with(RETRIED).await;
    let id = house.create("retried", "").await.core.id;
    let mut watch = open(&house, id, None).await;
    let lease = house.lease_one("work").await;
    house.fail(&lease, "no", false).await;
    let blocked = within(async {
        loop {
            if let Item::Event { event, .. } = watch.next().await.unwrap().unwrap()
                && event.change == Change::Task(TaskState::BlockedByFailures)
            {
                return;
            }
        }
    });
    blocked.await;
    assert!(watch.next().now_or_never().is_none());
    house.resolve(id, lease.step, steps::Action::ResolveManually).await.unwrap();
    let (items, _) = all(watch).await;
    let mut resolved = false;
    for item in &items {
        let Item::Event { event, .. } = item else { panic!("{item:?}") };
        assert_eq!(event.reason, None);
        resolved |= matches!(event.change, Change::Step { state: StepState::ResolvedManually, .. });
    }
    assert!(resolved);
    let history = house.history(id, lease.step).await;
    assert!(history.events.iter().any(|event| event.reason.as_deref() == Some("because")));
}

#[tokio::test]
async fn no_stream_without_the_task() {
    let house = House::with(ONE).await;
    let hidden = house.create("one", "").await.core.id;
    let refused = watch::watch(&house.engine, house.claim("other"), hidden, None).await.err();
    assert!(matches!(refused, Some(Error::TaskNotFound(_))));
}

#[tokio::test]
async fn a_retry_is_seen_when_it_is_due() {
    let house = House::with(RETRIED).await;
    let id = house.create("retried", "").await.core.id;
    let mut watch = open(&house, id, Some(0)).await;
    let lease = house.lease_one("work").await;
    house.fail(&lease, "once", true).await;
    house.pass(Duration::from_millis(1_200)).await;
    let mut states = Vec::new();
    within(async {
        while states.last() != Some(&StepState::Ready) || states.len() < 2 {
            if let Item::Event { event, .. } = watch.next().await.unwrap().unwrap()
                && let Change::Step { state, .. } = event.change
            {
                states.push(state);
            }
        }
    })
    .await;
    assert_eq!(
        states,
        [StepState::Ready, StepState::InProgress, StepState::WaitingForRetry, StepState::Ready]
    );
}
