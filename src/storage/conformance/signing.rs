//! Signing keys, who stands behind a template, and live leases.

use super::{
    Engine,
    house::{House, ns, page, scope, stamp, who},
};
use crate::{
    domain::{
        LeaseId, Scope, StepNo,
        principal::{GrantRef, Method},
        rights::SPAWN_DEPTH_MAX,
        task::{Lineage, TaskState},
        template::Template,
    },
    storage::{
        Cancelled, Created, NewTask, NotSpawned, Registered, SigningKeyRecord, Spawn, TaskFilter,
    },
};

pub(crate) async fn a_signing_key_reads_back_until_it_is_retired<E: Engine>(house: &mut House<E>) {
    let key = |kid: &str, house: &House<E>| SigningKeyRecord {
        kid: kid.into(),
        purpose: "step".into(),
        organisation: "default".into(),
        public_key: vec![1; 32],
        private_key: vec![2; 60],
        sealed_by: "0a".into(),
        created_by: who("keeper"),
        created_at: house.now(),
        activated_at: house.now(),
        retired_at: None,
    };
    let first = key("b", house);
    house.store().add_signing_key(first.clone(), &stamp("keeper")).await.unwrap();
    house.wait_ms(5);
    let second = key("a", house);
    house.store().add_signing_key(second.clone(), &stamp("keeper")).await.unwrap();
    assert!(house.store().add_signing_key(second.clone(), &stamp("keeper")).await.is_err());
    house.reopen().await;
    assert_eq!(house.store().signing_keys().await.unwrap(), [first.clone(), second.clone()]);
    let at = house.now();
    for (kid, done) in [("b", true), ("b", false), ("none", false)] {
        let retired = house.store().retire_signing_key(kid, &stamp("keeper"), at).await;
        assert_eq!(retired.unwrap(), done, "{kid}");
    }
    let retired = SigningKeyRecord { retired_at: Some(at), private_key: Vec::new(), ..first };
    assert_eq!(house.store().signing_keys().await.unwrap(), [retired, second]);
}

pub(crate) async fn who_registered_a_template_is_kept<E: Engine>(house: &mut House<E>) {
    let owner = GrantRef {
        identity: who("registrar"),
        method: Method::Jwt,
        credential_id: "c".into(),
        grants: Vec::new(),
        set_at: house.now(),
        issued_at: Some(house.now()),
        until: None,
    };
    let shop = ns("shop");
    let text = |name: &str| {
        format!(
            "name: {name}\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n  - {{name: a, handler: {{callable: h}}}}\n"
        )
    };
    for (name, registrar) in [("with", Some(owner.clone())), ("without", None)] {
        let template = Template::parse(&shop, &text(name)).unwrap().template.into();
        let (stamp, now) = (stamp("registrar"), house.now());
        let text = text(name).into();
        let done =
            house.store().register(&shop, template, text, registrar.clone(), &stamp, now).await;
        let Registered::New(record) = done.unwrap() else { panic!("it was there") };
        assert_eq!(record.registrar, registrar);
    }
    house.reopen().await;
    let found = house.store().template(&shop, "with", None).await.unwrap().unwrap();
    assert_eq!(found.registrar, Some(owner));
    let found = house.store().template(&shop, "without", None).await.unwrap().unwrap();
    assert_eq!(found.registrar, None);
}

pub(crate) async fn a_lease_is_seen_as_long_as_it_lives<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "").await;
    let task = house.create("shop/one").await.core.id;
    let place = [(task, StepNo(0))];
    let everywhere = Scope::Everything;
    assert!(house.store().tenures(&everywhere, &place).await.unwrap()[0].is_none());
    let lease = house.lease("shop", "h").await;
    let found = house.store().tenures(&scope("shop"), &place).await.unwrap().remove(0).unwrap();
    assert_eq!((found.id, found.attempt, &found.name), (lease.id, 1, &lease.name));
    assert_eq!((found.step, &found.namespace), (lease.step, &lease.namespace));
    assert_eq!((found.expires_at, found.timeout_at), (lease.expires_at, lease.timeout_at));
    assert_eq!(found.template.row, lease.template.row);
    assert!(house.store().tenures(&scope("bank"), &place).await.unwrap()[0].is_none());
    let other = [(task, StepNo(1))];
    assert!(house.store().tenures(&everywhere, &other).await.unwrap()[0].is_none());
    house.fail(lease.id, "no").await;
    assert!(house.store().tenures(&everywhere, &place).await.unwrap()[0].is_none());
}

/// Makes a task by the lease of a step.
async fn spawned<E: Engine>(house: &House<E>, lease: LeaseId, budget: u32) -> Created {
    let task = NewTask { spawn: Some(Spawn { lease, budget }), ..house.new_task("shop/one") };
    house.create_task(task).await
}

pub(crate) async fn se_45_what_steps_make_is_bounded_in_depth_and_number<E: Engine>(
    house: &mut House<E>,
) {
    house.one_step("shop", "").await;
    let root = house.create("shop/one").await;
    assert_eq!(root.lineage, None);
    let (mut parent, mut above) = (root.core.id, Vec::new());
    for depth in 1..=SPAWN_DEPTH_MAX {
        let lease = house.lease("shop", "h").await;
        assert_eq!(lease.id.task, parent);
        let Created::New(child) = spawned(house, lease.id, 9).await else { panic!("{depth}") };
        let lineage = Lineage { parent, root: root.core.id, depth };
        assert_eq!(child.lineage, Some(lineage));
        assert_eq!(house.task(child.core.id).await.lineage, Some(lineage));
        above.push(lease.id);
        parent = child.core.id;
    }
    let lease = house.lease("shop", "h").await;
    let deep = spawned(house, lease.id, 9).await;
    assert!(matches!(deep, Created::NotSpawned(NotSpawned::TooDeep)), "{deep:?}");
    let Created::New(_) = spawned(house, above[0], 9).await else { panic!("the ninth") };
    let tenth = spawned(house, above[0], 9).await;
    assert!(matches!(tenth, Created::NotSpawned(NotSpawned::BudgetSpent)), "{tenth:?}");
    house.complete(above[0], "1").await;
    let ended = spawned(house, above[0], 99).await;
    assert!(matches!(ended, Created::NotSpawned(NotSpawned::LeaseEnded)), "{ended:?}");

    let all = async |filter: TaskFilter| {
        let found = house.store().tasks(&Scope::Everything, &filter, &page(99, None)).await;
        found.unwrap().items.len()
    };
    let id = Some(root.core.id);
    assert_eq!(all(TaskFilter { root: id, ..TaskFilter::default() }).await, 9);
    assert_eq!(all(TaskFilter { parent: id, ..TaskFilter::default() }).await, 2);
    assert_eq!(all(TaskFilter::default()).await, 10);
}

pub(crate) async fn se_45_a_cancel_reaches_all_that_descends<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "").await;
    let root = house.create("shop/one").await.core.id;
    let other = house.create("shop/one").await.core.id;
    let of_root = house.lease("shop", "h").await;
    assert_eq!(of_root.id.task, root);
    let Created::New(child) = spawned(house, of_root.id, 9).await else { panic!("a child") };
    let of_other = house.lease("shop", "h").await;
    assert_eq!(of_other.id.task, other);
    let of_child = house.lease("shop", "h").await;
    assert_eq!(of_child.id.task, child.core.id);
    let Created::New(deep) = spawned(house, of_child.id, 9).await else { panic!("a grandchild") };
    let (by, now) = (stamp("creator"), house.now());
    let cancelled = house.store().cancel(&Scope::Everything, root, Some("why"), &by, now).await;
    assert!(matches!(cancelled.unwrap(), Some(Cancelled::Done(_))));
    for id in [root, child.core.id, deep.core.id] {
        assert_eq!(house.state(id).await, TaskState::Cancelled);
    }
    assert_eq!(house.state(other).await, TaskState::InProgress);
    let mut revoked: Vec<_> = house.revoked().into_iter().map(|(lease, _)| lease.task).collect();
    revoked.sort();
    assert_eq!(revoked, [root, child.core.id]);
    let late = spawned(house, of_child.id, 9).await;
    assert!(matches!(late, Created::NotSpawned(NotSpawned::LeaseEnded)), "{late:?}");
}
