//! Signing keys, who stands behind a template, and live leases.

use super::{
    Engine,
    house::{House, ns, scope, stamp, who},
};
use crate::{
    domain::{
        Scope, StepNo,
        principal::{GrantRef, Method},
        template::Template,
    },
    storage::{Registered, SigningKeyRecord},
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
