//! Credentials that the server gave out.

use std::sync::Arc;

use super::{
    Engine,
    house::{House, who},
};
use crate::{
    domain::{Permission, history::Stamp},
    storage::{CredentialKind, CredentialRecord, LastUses, PermissionUse, Recall},
};

pub(super) fn record<E: Engine>(house: &House<E>, id: &str) -> CredentialRecord {
    let mut digest = [0; 32];
    for (place, byte) in digest.iter_mut().zip(id.bytes()) {
        *place = byte;
    }
    CredentialRecord {
        id: id.into(),
        digest,
        kind: CredentialKind::Token,
        name: Some("a name".to_owned()),
        scopes: vec!["tasks:read".to_owned()],
        namespaces: vec!["shop".to_owned()],
        networks: vec!["10.0.0.0/8".to_owned()],
        created_by: who("root"),
        created_with: "with".into(),
        created_at: house.now(),
        expires_at: None,
        max_uses: None,
        uses: 0,
        parent: Some("parent".into()),
        family: id.into(),
        descent: vec!["parent".into(), "maker".into()],
        revoked_at: None,
        last_used_at: None,
    }
}

async fn all<E: Engine>(house: &House<E>) -> Vec<CredentialRecord> {
    let mut all = house.store().credentials().await.unwrap();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    all
}

pub(crate) async fn a_credential_reads_back_after_a_restart<E: Engine>(house: &mut House<E>) {
    let one = record(house, "one");
    assert!(
        house.store().add_credential(one.clone(), None, &Stamp::system()).await.unwrap().is_some()
    );
    let two = CredentialRecord { max_uses: Some(2), ..record(house, "two") };
    assert!(
        house.store().add_credential(two.clone(), None, &Stamp::system()).await.unwrap().is_some()
    );
    // Neither an id nor a digest is given twice.
    let other = CredentialRecord { digest: [9; 32], ..one.clone() };
    assert!(house.store().add_credential(other, None, &Stamp::system()).await.unwrap().is_none());
    let other = CredentialRecord { id: "three".into(), ..one.clone() };
    assert!(house.store().add_credential(other, None, &Stamp::system()).await.unwrap().is_none());
    house.reopen().await;
    assert_eq!(all(house).await, [one, two]);
}

pub(crate) async fn a_successor_ends_its_predecessor<E: Engine>(house: &mut House<E>) {
    let end = house.now().plus_ms(5_000);
    let one = CredentialRecord { expires_at: Some(end), ..record(house, "one") };
    assert!(house.store().add_credential(one, None, &Stamp::system()).await.unwrap().is_some());
    for (id, later, wanted) in [("two", 9_000, 5_000), ("three", 1_000, 1_000)] {
        let replaces = Some(("one".into(), house.now().plus_ms(later)));
        let next = record(house, id);
        assert!(
            house.store().add_credential(next, replaces, &Stamp::system()).await.unwrap().is_some()
        );
        let one = all(house).await.into_iter().find(|one| &*one.id == "one").unwrap();
        assert_eq!(one.expires_at, Some(house.now().plus_ms(wanted)), "never longer");
    }
    // Where nothing was added nothing ends.
    let replaces = Some(("one".into(), house.now()));
    let again = record(house, "two");
    assert!(
        house.store().add_credential(again, replaces, &Stamp::system()).await.unwrap().is_none()
    );
    let one = all(house).await.into_iter().find(|one| &*one.id == "one").unwrap();
    assert_eq!(one.expires_at, Some(house.now().plus_ms(1_000)));
}

pub(crate) async fn uses_are_counted_to_the_last<E: Engine>(house: &mut House<E>) {
    let one = CredentialRecord { max_uses: Some(5), ..record(house, "one") };
    assert!(house.store().add_credential(one, None, &Stamp::system()).await.unwrap().is_some());
    let endless = record(house, "endless");
    assert!(house.store().add_credential(endless, None, &Stamp::system()).await.unwrap().is_some());
    let uses = (0..20).map(|_| house.store().use_credential("one", house.now()));
    let used = futures::future::join_all(uses).await;
    assert_eq!(used.into_iter().filter(|used| *used.as_ref().unwrap()).count(), 5);
    house.reopen().await;
    assert!(!house.store().use_credential("one", house.now()).await.unwrap());
    assert!(
        !house.store().use_credential("endless", house.now()).await.unwrap(),
        "nothing to count"
    );
    assert!(!house.store().use_credential("absent", house.now()).await.unwrap());
    let used = vec![("one".into(), house.now()), ("absent".into(), house.now())];
    let used = LastUses { credentials: used, ..LastUses::default() };
    house.store().credentials_used(used).await.unwrap();
    let earlier = vec![("one".into(), house.now().plus_ms(-1))];
    let earlier = LastUses { credentials: earlier, ..LastUses::default() };
    house.store().credentials_used(earlier).await.unwrap();
    let one = all(house).await.pop().unwrap();
    assert_eq!((one.uses, one.last_used_at), (5, Some(house.now())));
}

pub(crate) async fn a_successor_takes_the_uses_over<E: Engine>(house: &mut House<E>) {
    let old = CredentialRecord { max_uses: Some(5), ..record(house, "old") };
    assert_eq!(
        house.store().add_credential(old.clone(), None, &Stamp::system()).await.unwrap(),
        Some(0)
    );
    let now = house.now();
    for _ in 0..3 {
        assert!(house.store().use_credential("old", now).await.unwrap());
    }
    // What the caller knew about the uses was older.
    let new = CredentialRecord { uses: 1, ..record(house, "new") };
    let new = CredentialRecord { max_uses: Some(5), family: "old".into(), ..new };
    let replaces = Some(("old".into(), now));
    assert_eq!(
        house.store().add_credential(new, replaces, &Stamp::system()).await.unwrap(),
        Some(3)
    );
    assert!(!house.store().use_credential("old", now).await.unwrap(), "it is over");
    for left in [true, true, false] {
        assert_eq!(house.store().use_credential("new", now).await.unwrap(), left);
    }
}

pub(crate) async fn last_uses_of_permissions_only_move_on<E: Engine>(house: &mut House<E>) {
    let (one, next) = (record(house, "one"), record(house, "next"));
    assert!(
        house.store().add_credential(one.clone(), None, &Stamp::system()).await.unwrap().is_some()
    );
    let next = CredentialRecord { family: "one".into(), ..next };
    assert!(house.store().add_credential(next, None, &Stamp::system()).await.unwrap().is_some());
    let used = |family: &str, permission, ms| PermissionUse {
        family: family.into(),
        permission,
        at: house.now().plus_ms(ms),
    };
    let read = |ms| used("one", Permission::TasksRead, ms);
    let list = used("one", Permission::TasksList, 3);
    let batches = [
        vec![read(0), list.clone()],
        vec![read(9), used("absent", Permission::TasksRead, 0)],
        vec![read(5)],
    ];
    for permissions in batches {
        let uses = LastUses { permissions, ..LastUses::default() };
        house.store().credentials_used(uses).await.unwrap();
    }
    let wanted = [read(9), list];
    house.reopen().await;
    let all = |mut uses: Vec<PermissionUse>| {
        uses.sort_by_key(|used| used.permission);
        uses
    };
    assert_eq!(all(house.store().permission_uses().await.unwrap()), wanted);
    // They stay as long as one of the line does.
    assert!(house.store().delete_credential("one", &Stamp::system(), house.now()).await.unwrap());
    assert_eq!(all(house.store().permission_uses().await.unwrap()), wanted);
    assert!(house.store().delete_credential("next", &Stamp::system(), house.now()).await.unwrap());
    assert_eq!(house.store().permission_uses().await.unwrap(), []);
}

pub(crate) async fn what_is_revoked_stays_so<E: Engine>(house: &mut House<E>) {
    for id in ["one", "two"] {
        let one = CredentialRecord { max_uses: Some(9), ..record(house, id) };
        assert!(house.store().add_credential(one, None, &Stamp::system()).await.unwrap().is_some());
    }
    let at = house.now();
    let both: [Arc<str>; 2] = ["one".into(), "absent".into()];
    house.store().revoke_credentials(&both, &Stamp::system(), at).await.unwrap();
    house.wait_ms(10);
    house.store().revoke_credentials(&both, &Stamp::system(), house.now()).await.unwrap();
    assert!(!house.store().use_credential("one", house.now()).await.unwrap());
    assert!(house.store().use_credential("two", house.now()).await.unwrap());
    house.reopen().await;
    let revoked: Vec<_> = all(house).await.into_iter().map(|one| one.revoked_at).collect();
    assert_eq!(revoked, [Some(at), None]);
    assert!(house.store().delete_credential("one", &Stamp::system(), house.now()).await.unwrap());
    assert!(!house.store().delete_credential("one", &Stamp::system(), house.now()).await.unwrap());
    assert_eq!(all(house).await.len(), 1);
}

pub(crate) async fn recalls_only_move_on<E: Engine>(house: &mut House<E>) {
    let recall = |subject: Option<&str>, until| Recall {
        issuer: "issuer".to_owned(),
        subject: subject.map(str::to_owned),
        until,
    };
    let (early, late) = (house.now(), house.now().plus_ms(1_000));
    for (subject, until) in [(None, late), (None, early), (Some("a"), early), (Some("a"), late)] {
        house.store().recall(&recall(subject, until), &Stamp::system()).await.unwrap();
    }
    house.reopen().await;
    let mut all = house.store().recalls().await.unwrap();
    all.sort_by(|a, b| a.subject.cmp(&b.subject));
    assert_eq!(all, [recall(None, late), recall(Some("a"), late)]);
}
