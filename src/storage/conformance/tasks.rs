//! Tasks, their steps and their history.

use std::collections::BTreeSet;

use super::{
    Engine,
    house::{DIAMOND, House, ns, page, scope, stamp, who},
};
use crate::{
    domain::{
        Json, Scope, StepNo, TaskId,
        history::{Cause, Change},
        ids::NamespaceNo,
        task::{Labels, StepState, TaskState},
    },
    storage::{Cancelled, Created, Cure, Cured, Order, Revocation, TaskFilter},
};

pub(crate) async fn a_task_reads_back_whole<E: Engine>(house: &mut House<E>) {
    house.template("shop", "diamond", DIAMOND, "timeout_seconds: 9").await;
    let mut new = house.new_task("shop/diamond");
    new.labels = Labels {
        initiator: Some("me \"quoted\"".into()),
        source_system: Some("crm".into()),
        reason: Some("ünïcode\n".into()),
        tags: vec!["a".into(), String::new()],
        correlation_id: Some("c-1".into()),
        idempotency_key: Some("k".into()),
    };
    new.priority = -7;
    let labels = new.labels.clone();
    let Created::New(made) = house.create_task(new).await else { panic!() };
    let kept = house.task(made.core.id).await;
    assert_eq!(kept, *made);
    assert_eq!((kept.labels, kept.priority, kept.created_by), (labels, -7, who("creator")));
    assert_eq!((&*kept.name, &*kept.version), ("diamond", "1.0.0"));
    assert_eq!((kept.created_at, kept.completed_at), (house.now(), None));
    let context = house.store().context(&scope("shop"), made.core.id).await.unwrap().unwrap();
    assert_eq!((context.0, context.1.as_str()), (ns("shop"), r#"{"order":7}"#));
    let step = house.step(made.core.id, 3).await;
    assert_eq!((&*step.name, &*step.handler, step.core.timeout_ms), ("d", "hd", 9_000));
    assert_eq!(step.depends_on, [std::sync::Arc::<str>::from("b"), "c".into()]);
    assert_eq!((step.result, step.last_error, step.started_at), (None, None, None));
}

pub(crate) async fn hidden_and_absent_are_one<E: Engine>(house: &mut House<E>) {
    for namespace in ["a", "a.b"] {
        house.one_step(namespace, "").await;
    }
    let made = house.create("a.b/one").await.core.id;
    let absent = TaskId::compose(house.now(), made.namespace_no(), 0x3fff_ffff);
    let nowhere = TaskId::compose(house.now(), NamespaceNo(4_000_000_000), 5);
    let step = made.step(StepNo(0));
    let order =
        |id: TaskId| Order { step: id.step(StepNo(0)), cure: Cure::Resolve, reason: "r".into() };
    for (scope, id) in [
        (scope("b"), made),
        (scope("a.bc"), made),
        (scope("a.b."), made),
        (Scope::NOWHERE, made),
        (Scope::Everything, absent),
        (Scope::Everything, nowhere),
    ] {
        let (store, by, now) = (house.store(), stamp("x"), house.now());
        let own = id.step(StepNo(0));
        assert!(store.task(&scope, id).await.unwrap().is_none());
        assert!(store.context(&scope, id).await.unwrap().is_none());
        assert!(store.snapshot(&scope, id).await.unwrap().is_none());
        assert!(store.steps(&scope, id, &page(9, None)).await.unwrap().is_none());
        assert!(store.step(&scope, id, own).await.unwrap().is_none());
        assert!(store.events(&scope, id, 0, 9).await.unwrap().is_none());
        assert!(store.step_history(&scope, id, own).await.unwrap().is_none());
        assert!(store.cancel(&scope, id, None, &by, now).await.unwrap().is_none());
        assert!(store.cure(&scope, id, order(id), &by, now).await.unwrap().is_none());
    }
    assert_eq!(house.state(made).await, TaskState::Pending);
    for scope in [scope("a"), scope("a."), scope("a.b"), Scope::Everything] {
        assert!(house.store().task(&scope, made).await.unwrap().is_some());
        assert!(house.store().step(&scope, made, step).await.unwrap().is_some());
    }
}

pub(crate) async fn children_hang_on_their_parent<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "").await;
    let (mine, theirs) =
        (house.create("shop/one").await.core.id, house.create("shop/one").await.core.id);
    let (everything, by, now) = (Scope::Everything, stamp("x"), house.now());
    for step in [theirs.step(StepNo(0)), mine.step(StepNo(1))] {
        assert!(house.step_by_id(mine, step).await.is_none());
        let history = house.store().step_history(&everything, mine, step).await.unwrap();
        assert!(history.is_none());
        let order = Order { step, cure: Cure::Resolve, reason: "r".into() };
        assert!(house.store().cure(&everything, mine, order, &by, now).await.unwrap().is_none());
    }
}

pub(crate) async fn a_key_makes_a_task_once<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "").await;
    let keyed = |house: &House<E>, fingerprint| {
        let mut new = house.new_task("shop/one");
        new.labels.idempotency_key = Some("order-7".into());
        new.fingerprint = [fingerprint; 32];
        new
    };
    let Created::New(first) = house.create_task(keyed(house, 1)).await else { panic!() };
    house.desk.effects();
    house.wait_ms(5);
    house.sit("shop", "h");
    let Created::Existing(again) = house.create_task(keyed(house, 1)).await else { panic!() };
    assert_eq!(again, first);
    let other = house.create_task(keyed(house, 2)).await;
    assert!(matches!(other, Created::IdempotencyConflict));
    assert_eq!(house.desk.still_waiting(), 1, "nothing was made for it");
    house.reopen().await;
    assert!(matches!(house.create_task(keyed(house, 1)).await, Created::Existing(_)));
    assert_eq!(house.all_tasks().await.len(), 1);
}

pub(crate) async fn keys_belong_to_a_namespace_and_a_template<E: Engine>(house: &mut House<E>) {
    house.one_step("a", "").await;
    house.one_step("b", "").await;
    house.template("a", "two", &["s h"], "").await;
    for template in ["a/one", "b/one", "a/two"] {
        let mut new = house.new_task(template);
        new.labels.idempotency_key = Some("k".into());
        assert!(matches!(house.create_task(new).await, Created::New(_)), "{template}");
    }
}

pub(crate) async fn concurrent_creations_under_a_key_make_one<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "").await;
    let creations = (0..20).map(|_| {
        let mut new = house.new_task("shop/one");
        new.labels.idempotency_key = Some("k".into());
        house.create_task(new)
    });
    let made = futures::future::join_all(creations).await;
    assert_eq!(made.iter().filter(|made| matches!(made, Created::New(_))).count(), 1);
    assert_eq!(made.iter().filter(|made| matches!(made, Created::Existing(_))).count(), 19);
    assert_eq!(house.all_tasks().await.len(), 1);
}

pub(crate) async fn lists_page_exactly_over_namespaces<E: Engine>(house: &mut House<E>) {
    for namespace in ["a", "a.x", "b", "c"] {
        house.one_step(namespace, "").await;
    }
    let mut made = Vec::new();
    for place in 0..23 {
        // Some fall on one microsecond.
        house.wait_ms(i64::from(place % 3 == 0));
        let namespace = ["a", "b", "a.x", "a", "c"][place % 5];
        made.push(house.create(&format!("{namespace}/one")).await.core.id);
    }
    made.sort();
    made.reverse();
    for (scope, size) in [
        (Scope::Everything, 1),
        (Scope::Everything, 4),
        (Scope::Everything, 23),
        (scope("a"), 3),
        (scope("a."), 2),
        (Scope::parse(&["a", "a.x", "c"]).unwrap(), 5),
        (Scope::NOWHERE, 5),
    ] {
        let filter = TaskFilter::default();
        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let listed = house.store().tasks(&scope, &filter, &page(size, after)).await.unwrap();
            assert!(listed.items.len() == size || listed.next.is_none());
            paged.extend(listed.items.into_iter().map(|task| (task.core.id, task.namespace)));
            after = listed.next;
            if after.is_none() {
                break;
            }
        }
        assert!(paged.iter().all(|(_, namespace)| scope.contains(namespace)));
        let mut wanted = Vec::new();
        for id in &made {
            if scope.contains(&house.task(*id).await.namespace) {
                wanted.push(*id);
            }
        }
        assert_eq!(paged.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), wanted);
    }
}

pub(crate) async fn lists_filter_by_state_and_name<E: Engine>(house: &mut House<E>) {
    house.one_step("a", "").await;
    house.one_step("b", "").await;
    house.template("a", "two", &["s g"], "").await;
    let pending = house.create("a/one").await.core.id;
    let two = house.create("a/two").await.core.id;
    let done = house.create("b/one").await.core.id;
    let leased = house.lease("b", "h").await;
    house.complete(leased.id, "1").await;
    let list = async |filter: TaskFilter| {
        let listed =
            house.store().tasks(&Scope::Everything, &filter, &page(9, None)).await.unwrap();
        listed.items.into_iter().map(|task| task.core.id).collect::<BTreeSet<_>>()
    };
    let by = |namespace: Option<&str>, name: Option<&str>, states: &[TaskState]| TaskFilter {
        namespace: namespace.map(ns),
        name: name.map(ToOwned::to_owned),
        states: states.to_vec(),
        ..TaskFilter::default()
    };
    assert_eq!(list(by(None, None, &[])).await, [pending, two, done].into());
    assert_eq!(list(by(None, None, &[TaskState::Pending])).await, [pending, two].into());
    assert_eq!(list(by(None, None, &[TaskState::Complete])).await, [done].into());
    let both = [TaskState::Complete, TaskState::Pending];
    assert_eq!(list(by(None, Some("one"), &both)).await, [pending, done].into());
    assert_eq!(list(by(Some("a"), None, &both)).await, [pending, two].into());
    assert_eq!(list(by(Some("a"), Some("two"), &[])).await, [two].into());
    assert_eq!(list(by(Some("nowhere"), None, &[])).await, [].into());
    assert_eq!(list(by(None, Some("%"), &[])).await, [].into());
}

pub(crate) async fn steps_page_by_number<E: Engine>(house: &mut House<E>) {
    let steps: Vec<String> = (0..12).map(|no| format!("s{no} h")).collect();
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    house.template("shop", "wide", &steps, "").await;
    let id = house.create("shop/wide").await.core.id;
    let (mut names, mut after) = (Vec::new(), None);
    loop {
        let listed = house.store().steps(&Scope::Everything, id, &page(5, after)).await.unwrap();
        let (namespace, listed) = listed.unwrap();
        assert_eq!(namespace, ns("shop"));
        names.extend(listed.items.into_iter().map(|step| step.name.to_string()));
        after = listed.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(names, (0..12).map(|no| format!("s{no}")).collect::<Vec<_>>());
}

pub(crate) async fn events_go_on_behind_a_place<E: Engine>(house: &mut House<E>) {
    house.template("shop", "diamond", DIAMOND, "").await;
    house.sit("shop", "ha");
    let id = house.create("shop/diamond").await.core.id;
    let a = house.granted().remove(0);
    house.complete(a.id, "1").await;
    let all = house.events(id).await;
    assert!(all.len() > 6);
    for after in 0..=all.len() {
        for limit in [0, 1, 3, 100] {
            let place = i64::try_from(after).unwrap();
            let some = house.store().events(&Scope::Everything, id, place, limit).await.unwrap();
            let wanted: Vec<_> = all.iter().skip(after).take(limit).cloned().collect();
            assert_eq!(some.unwrap(), wanted);
        }
    }
}

pub(crate) async fn a_snapshot_agrees_with_the_events<E: Engine>(house: &mut House<E>) {
    house.template("shop", "line", &["a h", "b h a", "c h b", "d h c"], "").await;
    let id = house.create("shop/line").await.core.id;
    let watch = async {
        loop {
            let (task, steps) =
                house.store().snapshot(&Scope::Everything, id).await.unwrap().unwrap();
            let events = house.events(id).await;
            let upto = usize::try_from(task.core.last_seq).unwrap();
            for step in &steps {
                let last = events[..upto].iter().rev().find_map(|event| match event.change {
                    Change::Step { no, state, .. } if no == step.core.no => Some(state),
                    Change::Step { .. } | Change::Task(_) => None,
                });
                assert_eq!(last, Some(step.core.state), "one moment is seen");
            }
            if task.core.state.is_final() {
                break;
            }
        }
    };
    let work = async {
        for _ in 0..4 {
            let leased = house.lease("shop", "h").await;
            house.complete(leased.id, "1").await;
        }
    };
    futures::future::join(watch, work).await;
}

pub(crate) async fn cancelling_ends_leases_and_is_repeatable<E: Engine>(house: &mut House<E>) {
    house.template("shop", "diamond", DIAMOND, "").await;
    let id = house.create("shop/diamond").await.core.id;
    let a = house.lease("shop", "ha").await;
    let cancel = async || {
        let by = stamp("operator");
        let everything = Scope::Everything;
        house.store().cancel(&everything, id, Some("enough"), &by, house.now()).await.unwrap()
    };
    let Some(Cancelled::Done(task)) = cancel().await else { panic!() };
    assert_eq!((task.core.state, task.completed_at), (TaskState::Cancelled, Some(house.now())));
    assert_eq!(house.revoked(), [(a.id, Revocation::Cancelled)]);
    let seq = task.core.last_seq;
    house.wait_ms(5);
    let Some(Cancelled::Done(again)) = cancel().await else { panic!() };
    assert_eq!((again.core.last_seq, again.completed_at), (seq, task.completed_at));
    let steps = house.store().snapshot(&Scope::Everything, id).await.unwrap().unwrap().1;
    assert!(steps.iter().all(|step| step.core.state == StepState::Cancelled));
    // Another end stays.
    house.one_step("shop", "").await;
    let done = house.create("shop/one").await.core.id;
    let leased = house.lease("shop", "h").await;
    house.complete(leased.id, "1").await;
    let late = house.store().cancel(&Scope::Everything, done, None, &stamp("o"), house.now()).await;
    assert!(matches!(late.unwrap(), Some(Cancelled::Final(TaskState::Complete))));
}

async fn cure<E: Engine>(house: &House<E>, id: TaskId, no: u16, cure: Cure) -> Cured {
    let order = Order { step: id.step(StepNo(no)), cure, reason: "because".into() };
    let (everything, by) = (Scope::Everything, stamp("operator"));
    house.store().cure(&everything, id, order, &by, house.now()).await.unwrap().unwrap()
}

pub(crate) async fn cures_take_effect_or_say_why_not<E: Engine>(house: &mut House<E>) {
    house.template("shop", "line", &["a ha", "b hb a", "c hc b"], "").await;
    let id = house.create("shop/line").await.core.id;
    assert!(matches!(cure(house, id, 0, Cure::Reset).await, Cured::Refused(_)), "it is ready");
    let a = house.lease("shop", "ha").await;
    let by_hand = Cure::Complete(Json::parse(r#"{"by":"hand"}"#).unwrap());
    let Cured::Done(step) = cure(house, id, 0, by_hand.clone()).await else { panic!() };
    assert_eq!((step.core.state, step.completed_at), (StepState::Complete, Some(house.now())));
    assert_eq!(step.result.unwrap().as_str(), r#"{"by":"hand"}"#);
    assert_eq!(house.revoked(), [(a.id, Revocation::Lost)]);
    for again in [by_hand, Cure::Resolve, Cure::Reset] {
        assert!(matches!(cure(house, id, 0, again).await, Cured::Refused(_)), "it is complete");
    }
    house.sit("shop", "hc");
    let Cured::Done(step) = cure(house, id, 1, Cure::Resolve).await else { panic!() };
    assert_eq!((step.core.state, step.result), (StepState::ResolvedManually, None));
    let c = house.granted().remove(0);
    assert_eq!((&*c.results[0].0, c.results[0].1.as_str()), ("b", "null"));
    house.complete(c.id, "1").await;
    assert_eq!(house.state(id).await, TaskState::ResolvedManually);
    assert!(matches!(cure(house, id, 2, Cure::Resolve).await, Cured::Refused(_)));
}

pub(crate) async fn a_reset_grants_new_attempts<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "retry: {max_attempts: 1}").await;
    let id = house.create("shop/one").await.core.id;
    let first = house.lease("shop", "h").await;
    house.fail(first.id, "broken").await;
    assert_eq!(house.state(id).await, TaskState::BlockedByFailures);
    house.sit("shop", "h");
    let Cured::Done(step) = cure(house, id, 0, Cure::Reset).await else { panic!() };
    assert_eq!(
        (step.core.state, step.last_error.as_deref()),
        (StepState::InProgress, Some("broken"))
    );
    let second = house.granted().remove(0);
    assert_eq!(second.attempt, 2);
    house.complete(second.id, "1").await;
    assert_eq!(house.state(id).await, TaskState::Complete);
}

pub(crate) async fn stamps_and_reasons_are_kept<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "").await;
    let id = house.create("shop/one").await.core.id;
    house.lease("shop", "h").await;
    cure(house, id, 0, Cure::Resolve).await;
    let events = house.events(id).await;
    assert_eq!(events[0].actor, Some(who("creator")));
    let of = |cause| {
        events
            .iter()
            .find(|event| matches!(event.change, Change::Step { cause: c, .. } if c == cause))
            .unwrap()
    };
    assert_eq!((of(Cause::Leased).actor.clone(), of(Cause::Leased).reason.clone()), (None, None));
    let resolved = of(Cause::ResolveManually);
    assert_eq!(resolved.actor, Some(who("operator")));
    assert_eq!((resolved.reason.as_deref(), resolved.at), (Some("because"), house.now()));
}
