//! Templates.

use semver::Version;

use super::{
    Engine,
    house::{House, definition, ns, page, scope},
};
use crate::storage::Registered;

pub(crate) async fn a_template_registers_once<E: Engine>(house: &mut House<E>) {
    let text = definition("shop", "one", "1.0.0", &["a h"], "");
    let Registered::New(new) = house.register_text("shop", &text).await else { panic!() };
    house.wait_ms(1);
    let Registered::Unchanged(kept) = house.register_text("shop", &text).await else { panic!() };
    assert_eq!((kept.row, kept.registered_at), (new.row, new.registered_at));
    assert_eq!(kept.registered_by, new.registered_by);
    let other = definition("shop", "one", "1.0.0", &["a h2"], "");
    assert!(matches!(house.register_text("shop", &other).await, Registered::Conflict));
    // The same name elsewhere is another template.
    let text = definition("shop2", "one", "1.0.0", &["a h2"], "");
    let Registered::New(elsewhere) = house.register_text("shop2", &text).await else { panic!() };
    assert_ne!(elsewhere.row, new.row);
}

pub(crate) async fn the_newest_release_wins<E: Engine>(house: &mut House<E>) {
    let shop = ns("shop");
    for (version, newest) in [
        ("2.0.0-rc.1", "2.0.0-rc.1"),
        ("2.0.0-rc.10", "2.0.0-rc.10"),
        ("2.0.0-rc.9", "2.0.0-rc.10"),
        ("1.10.0", "1.10.0"),
        ("1.9.0", "1.10.0"),
        ("2.0.0", "2.0.0"),
        ("3.0.0-a", "2.0.0"),
    ] {
        house.register_text("shop", &definition("shop", "one", version, &["a h"], "")).await;
        // Asked before and after, so that nothing old is remembered.
        let found = house.store().template(&shop, "one", None).await.unwrap().unwrap();
        assert_eq!(found.template.version.to_string(), newest);
    }
    let wanted = Version::parse("1.9.0").unwrap();
    let found = house.store().template(&shop, "one", Some(&wanted)).await.unwrap().unwrap();
    assert_eq!(found.template.version, wanted);
    let absent = Version::parse("9.9.9").unwrap();
    assert!(house.store().template(&shop, "one", Some(&absent)).await.unwrap().is_none());
    assert!(house.store().template(&shop, "two", None).await.unwrap().is_none());
    assert!(house.store().template(&ns("other"), "one", None).await.unwrap().is_none());
}

pub(crate) async fn lists_are_exact_and_scoped<E: Engine>(house: &mut House<E>) {
    let mut wanted = Vec::new();
    for (place, namespace) in ["a", "a.b", "aX", "a", "b"].iter().enumerate() {
        // Some fall on one moment.
        house.wait_ms(i64::try_from(place % 2).unwrap());
        let name = format!("t{place}");
        house.register_text(namespace, &definition(namespace, &name, "1.0.0", &["s h"], "")).await;
        wanted.push(name);
    }
    let store = house.store();
    let everything = crate::domain::Scope::Everything;
    let whole = store.templates(&everything, None, None, &page(10, None)).await.unwrap();
    let names = |items: &[std::sync::Arc<crate::storage::TemplateRecord>]| {
        items.iter().map(|item| item.template.name.to_string()).collect::<Vec<_>>()
    };
    let mut sorted = names(&whole.items);
    assert_eq!((sorted[0].as_str(), whole.next), (names(&whole.items)[0].as_str(), None));
    assert!(whole.items.is_sorted_by(|a, b| a.registered_at >= b.registered_at));
    sorted.sort();
    assert_eq!(sorted, wanted);
    let mut paged = Vec::new();
    let mut after = None;
    loop {
        let one = store.templates(&everything, None, None, &page(2, after)).await.unwrap();
        paged.extend(names(&one.items));
        after = one.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(paged, names(&whole.items));
    let under_a = store.templates(&scope("a"), None, None, &page(10, None)).await.unwrap();
    let mut under_a = names(&under_a.items);
    under_a.sort();
    assert_eq!(under_a, ["t0", "t1", "t3"]);
    let foreign = store.templates(&scope("a"), Some(&ns("b")), None, &page(10, None)).await;
    assert!(foreign.unwrap().items.is_empty());
    let named = store.templates(&everything, None, Some("t4"), &page(10, None)).await.unwrap();
    assert_eq!(names(&named.items), ["t4"]);
}

pub(crate) async fn they_survive_a_restart<E: Engine>(house: &mut House<E>) {
    let text = definition("shop", "one", "1.0.0", &["a h"], "");
    let Registered::New(new) = house.register_text("shop", &text).await else { panic!() };
    house.reopen().await;
    let kept = house.store().template(&ns("shop"), "one", None).await.unwrap().unwrap();
    assert_eq!((kept.row, &*kept.definition), (new.row, text.as_str()));
    assert_eq!(kept.template.steps.len(), 1);
    assert!(matches!(house.register_text("shop", &text).await, Registered::Unchanged(_)));
}
