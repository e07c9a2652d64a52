//! Workers and handlers.

use super::{
    Engine,
    house::{House, definition, ns, page, scope, who},
};
use crate::{
    domain::{Area, Scope},
    storage::WorkerRecord,
};

pub(super) fn worker<E: Engine>(
    house: &House<E>,
    area: &str,
    name: &str,
    subject: &str,
) -> WorkerRecord {
    WorkerRecord {
        area: Area::parse(area).unwrap(),
        name: name.to_owned(),
        handlers: vec!["h".into(), "g \"x\"".into()],
        version: Some("1.2".into()),
        identity: who(subject),
        registered_at: house.now(),
        last_seen_at: house.now(),
        leases: 0,
    }
}

pub(crate) async fn a_worker_is_one_by_area_name_and_principal<E: Engine>(house: &mut House<E>) {
    let first = worker(house, "shop", "w-1", "worker");
    assert_eq!(house.store().register_worker(first.clone(), None).await.unwrap(), first);
    house.one_step("shop", "").await;
    house.create("shop/one").await;
    house.lease("shop", "h").await;
    house.wait_ms(10);
    let mut again = worker(house, "shop", "w-1", "worker");
    again.handlers = vec!["h".into()];
    again.version = None;
    let kept = house.store().register_worker(again.clone(), None).await.unwrap();
    let wanted = WorkerRecord { registered_at: first.registered_at, leases: 1, ..again };
    assert_eq!(kept, wanted);
    for (area, name, subject) in
        [("shop.", "w-1", "worker"), ("shop", "w-2", "worker"), ("shop", "w-1", "another")]
    {
        let other = worker(house, area, name, subject);
        assert_eq!(house.store().register_worker(other.clone(), None).await.unwrap(), other);
    }
    let all = house.store().workers(&Scope::Everything, None, &page(9, None)).await.unwrap();
    assert_eq!(all.items.len(), 4);
    assert_eq!(all.items.iter().map(|worker| worker.leases).sum::<u32>(), 1);
}

pub(crate) async fn lists_are_scoped_and_paged<E: Engine>(house: &mut House<E>) {
    let mut made = Vec::new();
    for (place, area) in ["a", "a.", "a.b", "b", "aX", "a"].iter().enumerate() {
        house.wait_ms(i64::try_from(place % 2).unwrap());
        let one = worker(house, area, &format!("w {place}"), "worker");
        made.push(house.store().register_worker(one, None).await.unwrap());
    }
    let all = house.store().workers(&Scope::Everything, None, &page(9, None)).await.unwrap();
    assert!(all.items.is_sorted_by(|a, b| a.last_seen_at >= b.last_seen_at));
    assert_eq!((all.items.len(), all.next), (made.len(), None));
    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let one = house.store().workers(&Scope::Everything, None, &page(2, after)).await.unwrap();
        paged.extend(one.items);
        after = one.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(paged, all.items);
    let list = async |within: &str, only: Option<&str>| {
        let only = only.map(|only| Area::parse(only).unwrap());
        let listed = house.store().workers(&scope(within), only.as_ref(), &page(9, None)).await;
        let mut names: Vec<_> =
            listed.unwrap().items.into_iter().map(|worker| worker.name).collect();
        names.sort();
        names
    };
    assert_eq!(list("a", None).await, ["w 0", "w 1", "w 2", "w 5"]);
    assert_eq!(list("a.", None).await, ["w 1", "w 2"]);
    assert_eq!(list("a.b", None).await, ["w 2"], "an area must lie in the scope as a whole");
    assert_eq!(list("a", Some("a")).await, ["w 0", "w 5"]);
    assert_eq!(list("a", Some("a.")).await, ["w 1", "w 2"]);
    assert!(list("a", Some("b")).await.is_empty());
}

pub(crate) async fn handlers_are_counted_and_paged<E: Engine>(house: &mut House<E>) {
    for (namespace, name, version, steps) in [
        ("a", "one", "1.0.0", &["s h", "t h", "u g"][..]),
        ("a", "one", "1.0.1", &["s h"][..]),
        ("a", "two", "1.0.0", &["s h", "t f"][..]),
        ("a.b", "one", "1.0.0", &["s h"][..]),
        ("b", "one", "1.0.0", &["s h"][..]),
    ] {
        house.register_text(namespace, &definition(namespace, name, version, steps, "")).await;
    }
    let list = async |within: &str, only: Option<&str>, size: usize| {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let only = only.map(ns);
            let page = page(size, after);
            let listed =
                house.store().handlers(&scope(within), only.as_ref(), &page).await.unwrap();
            assert!(listed.items.len() <= size);
            all.extend(listed.items);
            after = listed.next;
            if after.is_none() {
                return all
                    .into_iter()
                    .map(|one| format!("{}/{} {}", one.namespace, one.name, one.templates))
                    .collect::<Vec<_>>();
            }
        }
    };
    let everything = ["a/f 1", "a/g 1", "a/h 2", "a.b/h 1", "b/h 1"];
    for size in [1, 2, 3, 5, 50] {
        assert_eq!(list("*", None, size).await, everything);
    }
    assert_eq!(list("a", None, 50).await, everything[..4]);
    assert_eq!(list("a", Some("a.b"), 50).await, everything[3..4]);
    assert!(list("a", Some("b"), 50).await.is_empty());
}

pub(crate) async fn a_check_reaches_the_disk<E: Engine>(house: &mut House<E>) {
    house.store().check().await.unwrap();
    house.reopen().await;
    house.store().check().await.unwrap();
}
