//! Lists page by page, within the caller's scope.

use super::house::{House, ONE, area};
use crate::{
    domain::{Namespace, task::TaskState},
    engine::{
        Error, PageRequest, Paged, handlers, tasks, templates,
        work::{self, WorkerInfo},
        workers,
    },
    storage::TaskFilter,
};

fn page(size: u32, token: &str) -> PageRequest {
    PageRequest { size, token: token.to_owned() }
}

#[tokio::test]
async fn pages_hold_each_task_once_newest_first() {
    let house = House::with(ONE).await;
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(house.create("one", "").await.core.id);
        house.pass(std::time::Duration::from_millis(1)).await;
    }
    made.reverse();
    let (mut listed, mut token) = (Vec::new(), String::new());
    loop {
        let Paged { items, next_token } = tasks::list(
            &house.engine,
            &house.claim("shop"),
            TaskFilter::default(),
            &page(3, &token),
        )
        .await
        .unwrap();
        listed.extend(items.iter().map(|task| task.core.id));
        if next_token.is_empty() {
            break;
        }
        token = next_token;
    }
    assert_eq!(listed, made);
}

#[tokio::test]
async fn a_page_token_is_for_its_query_and_caller() {
    let house = House::with(ONE).await;
    for _ in 0..3 {
        house.create("one", "").await;
    }
    let engine = &house.engine;
    let filter = || TaskFilter { name: Some("one".to_owned()), ..TaskFilter::default() };
    let first = tasks::list(engine, &house.claim("shop"), filter(), &page(2, "")).await.unwrap();
    let token = &first.next_token;
    assert!(!token.is_empty());
    let rest = tasks::list(engine, &house.claim("shop"), filter(), &page(2, token)).await.unwrap();
    assert_eq!((rest.items.len(), rest.next_token.as_str()), (1, ""));

    let shop = Namespace::parse("shop").unwrap();
    let others = [
        TaskFilter::default(),
        TaskFilter { namespace: Some(shop), ..filter() },
        TaskFilter { states: vec![TaskState::Pending], ..filter() },
    ];
    for other in others {
        let refused = tasks::list(engine, &house.claim("shop"), other, &page(2, token)).await;
        assert!(matches!(refused, Err(Error::PageToken)), "{refused:?}");
    }
    let stranger = house.claim_as("mallory", "shop");
    let refused = tasks::list(engine, &stranger, filter(), &page(2, token)).await;
    assert!(matches!(refused, Err(Error::PageToken)), "{refused:?}");
    let many = tasks::list(engine, &house.claim("shop"), filter(), &page(501, "")).await;
    assert!(matches!(many, Err(Error::FieldInvalid { field: "page_size", .. })));
}

#[tokio::test]
async fn a_filter_narrows_and_a_foreign_namespace_is_empty() {
    let house = House::with(ONE).await;
    let first = house.create("one", "").await.core.id;
    house.cancel(first).await.unwrap();
    let second = house.create("one", "").await.core.id;
    let ask = |filter: TaskFilter, scope: &'static str| {
        let house = &house;
        async move {
            let claim = house.claim(scope);
            let listed = tasks::list(&house.engine, &claim, filter, &page(0, "")).await.unwrap();
            listed.items.iter().map(|task| task.core.id).collect::<Vec<_>>()
        }
    };
    let all = TaskFilter::default;
    let states = vec![TaskState::Pending, TaskState::InProgress];
    assert_eq!(ask(TaskFilter { states, ..all() }, "shop").await, [second]);
    assert!(ask(TaskFilter { name: Some("two".to_owned()), ..all() }, "shop").await.is_empty());
    assert!(ask(all(), "other").await.is_empty());
    let namespace = Some(Namespace::parse("shop").unwrap());
    assert!(ask(TaskFilter { namespace, ..all() }, "other").await.is_empty());
}

#[tokio::test]
async fn templates_are_listed_within_the_scope() {
    let house = House::with(ONE).await;
    house.register(&ONE.replace("1.0.0", "1.1.0")).await.unwrap();
    let ask = |filter: templates::Filter, scope: &'static str| {
        let house = &house;
        async move {
            let claim = house.claim(scope);
            let listed = templates::list(&house.engine, &claim, &filter, &page(0, "")).await;
            listed.unwrap().items.len()
        }
    };
    assert_eq!(ask(templates::Filter::default(), "shop").await, 2);
    assert_eq!(ask(templates::Filter::default(), "other").await, 0);
    let name = Some("none".to_owned());
    assert_eq!(ask(templates::Filter { name, ..templates::Filter::default() }, "shop").await, 0);
}

#[tokio::test]
async fn workers_and_handlers_show_who_is_connected() {
    let house = House::with(ONE).await;
    let info = |name: &str, handlers: &[&str]| WorkerInfo {
        name: name.to_owned(),
        handlers: handlers.iter().map(ToString::to_string).collect(),
        version: None,
    };
    let engine = &house.engine;
    let idle = info("idle", &["work"]);
    workers::register(engine, &house.claim("shop"), area("shop"), idle).await.unwrap();
    let busy = info("busy", &["work", "a", "z"]);
    let session = work::session(engine, house.claim("shop"), area("shop"), busy).await.unwrap();
    session.credit(1);
    house.create("one", "").await;
    let wide = info("wide", &["work"]);
    let below = work::session(engine, house.claim("shop"), area("shop."), wide).await.unwrap();

    let listed = workers::list(engine, &house.claim("shop"), None, &page(0, "")).await.unwrap();
    let mut shown: Vec<_> =
        listed.items.iter().map(|worker| (worker.record.name.as_str(), worker.connected)).collect();
    shown.sort_unstable();
    assert_eq!(shown, [("busy", true), ("idle", false), ("wide", true)]);
    let none = workers::list(engine, &house.claim("other"), None, &page(0, "")).await.unwrap();
    assert!(none.items.is_empty());

    // One by one, so that the merge crosses pages.
    let (mut shown, mut token) = (Vec::new(), String::new());
    loop {
        let Paged { items, next_token } =
            handlers::list(engine, &house.claim("shop"), None, &page(1, &token)).await.unwrap();
        shown.extend(items.into_iter().map(|one| (one.name, one.templates, one.workers)));
        if next_token.is_empty() {
            break;
        }
        token = next_token;
    }
    let expected = [("a", 0, 1), ("work", 1, 1), ("z", 0, 1)];
    assert_eq!(
        shown,
        expected.map(|(name, templates, workers)| (name.to_owned(), templates, workers))
    );
    drop((session, below));
    let listed = handlers::list(engine, &house.claim("shop"), None, &page(0, "")).await.unwrap();
    assert_eq!((listed.items.len(), listed.items[0].workers), (1, 0));
    let none = handlers::list(engine, &house.claim("other"), None, &page(0, "")).await.unwrap();
    assert!(none.items.is_empty());
}
