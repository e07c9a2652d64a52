//! Every change brings its record, and what was sealed goes on.

use std::sync::Arc;

use serde_json::Value;

use super::{
    Engine, credentials,
    house::{House, scope, stamp},
    rules::rule,
    schedules::{begin, change, end, end_of, id, over, plan, set},
    workers::worker,
};
use crate::{
    domain::{Scope, audit::rfc3339_text, schedule::JobStatus},
    storage::{
        AuditDraft, AuditKept, AuditLetGo, AuditRow, AuditSeal, ChainHead, Cure, JobChange, Order,
        Recall, Report, RunEnd, Untold,
    },
};

/// The records behind a number: chain, object, detail.
async fn behind<E: Engine>(house: &House<E>, seq: i64) -> Vec<(String, String, Value)> {
    let rows = house.store().audit_from(seq + 1, 1000).await.unwrap();
    rows.iter()
        .filter_map(|row| {
            let record: Value = serde_json::from_str(&row.body).unwrap();
            let object = record["object"].as_str().unwrap_or_default().to_owned();
            Some((row.chain.as_ref()?.to_string(), object, record["detail"].clone()))
        })
        .collect()
}

async fn last<E: Engine>(house: &House<E>) -> i64 {
    let rows = house.store().audit_before(i64::MAX, 1).await.unwrap();
    rows.first().map_or(0, |row| row.seq)
}

/// How many records a change brought, all of them in this chain.
macro_rules! brings {
    ($house:ident, $chain:literal, $count:literal, $change:expr) => {{
        let before = last($house).await;
        let made = $change;
        let records = behind($house, before).await;
        let chains: Vec<&str> = records.iter().map(|(chain, ..)| chain.as_str()).collect();
        assert_eq!(chains, vec![$chain; $count], "{}: {records:?}", stringify!($change));
        made
    }};
}

pub(crate) async fn se_44_every_change_of_a_task_brings_its_record<E: Engine>(
    house: &mut House<E>,
) {
    house.one_step("shop", "").await;
    let (store, by, now) = (house.engine().store(), stamp("maker"), house.now());
    let everything = Scope::Everything;
    // Templates and tasks.
    let text = "name: two\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n  - name: s\n    handler: {callable: h}\n";
    brings!(house, "shop", 1, house.register_text("shop", text).await);
    let task = brings!(house, "shop", 1, house.create("shop/one").await).core.id;
    // Leases that the server gives have their record too.
    let lease = brings!(house, "shop", 1, house.lease("shop", "h").await);
    brings!(house, "shop", 1, house.fail(lease.id, "a secret text").await);
    house.wait_ms(3_600_000);
    brings!(house, "shop", 1, house.expire().await);
    let lease = brings!(house, "shop", 1, house.lease("shop", "h").await);
    brings!(house, "shop", 1, store.release(&[lease.id], house.now()).await.unwrap());
    brings!(
        house,
        "shop",
        1,
        store.cancel(&everything, task, Some("why"), &by, house.now()).await.unwrap()
    );
    let other = house.create("shop/one").await.core.id;
    let step = other.step(crate::domain::StepNo(0));
    let order = Order { step, cure: Cure::Resolve, reason: "r".to_owned() };
    brings!(house, "shop", 1, store.cure(&everything, other, order, &by, now).await.unwrap());
    house.create("shop/one").await;
    let lease = house.lease("shop", "h").await;
    let before = last(house).await;
    brings!(house, "shop", 1, house.complete(lease.id, "{\"card\":4111}").await);
    let (_, object, detail) = behind(house, before).await.remove(0);
    assert_eq!(object, lease.id.task.to_string());
    assert_eq!(
        detail,
        serde_json::json!({"changes": [
            {"step": 0, "state": "complete", "cause": "completed"}, {"task": "complete"},
        ]})
    );
    // None of them says what a payload, an error or an operator says.
    let all = format!("{:?}", house.store().audit_from(1, 1000).await.unwrap());
    for secret in ["4111", "a secret text", "why"] {
        assert!(!all.contains(secret), "{secret}");
    }
}

pub(crate) async fn se_44_what_serves_work_brings_its_record<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "").await;
    let (store, by, now) = (house.engine().store(), stamp("maker"), house.now());
    // Workers; a sight of one changes nothing of its.
    let one = worker(house, "shop", "w", "worker");
    brings!(house, "shop", 1, store.register_worker(one.clone(), Some(&by)).await.unwrap());
    brings!(house, "shop", 0, store.register_worker(one, None).await.unwrap());
    // Credentials.
    let one = credentials::record(house, "one");
    brings!(house, "*", 1, store.add_credential(one, None, &by).await.unwrap());
    let two = credentials::record(house, "two");
    let replaces = Some(("one".into(), now));
    brings!(house, "*", 1, store.add_credential(two, replaces, &by).await.unwrap());
    let both: [Arc<str>; 2] = ["one".into(), "two".into()];
    brings!(house, "*", 2, store.revoke_credentials(&both, &by, now).await.unwrap());
    brings!(house, "*", 1, store.delete_credential("one", &by, now).await.unwrap());
    let recall = Recall { issuer: "i".into(), subject: None, until: now };
    brings!(house, "*", 1, store.recall(&recall, &by).await.unwrap());
    // Jobs, their runs, and rules.
    let job = brings!(house, "deploy", 1, plan(house, "deploy.a", 5).await);
    let run = begin(house, &job).await;
    assert!(run.is_some());
    brings!(house, "deploy", 1, end(house, end_of(house, &job, run, over())).await);
    let job = plan(house, "deploy.a", 6).await;
    brings!(house, "deploy", 1, end(house, end_of(house, &job, None, over())).await);
    let job = plan(house, "deploy.a", 7).await;
    begin(house, &job).await;
    brings!(house, "deploy", 1, store.interrupted_runs(now).await.unwrap());
    let held = JobChange::Set {
        id: id("deploy.a"),
        execution: job.execution,
        recurrence: None,
        status: JobStatus::Held,
    };
    brings!(house, "deploy", 1, change(house, vec![held]).await);
    brings!(house, "deploy", 1, change(house, vec![JobChange::Resume(id("deploy.a"))]).await);
    brings!(house, "deploy", 1, change(house, vec![JobChange::Remove(id("deploy.a"))]).await);
    let one = rule("deploy.r", "x", now);
    brings!(house, "deploy", 1, store.set_rule(one.clone(), None, &by, now).await.unwrap());
    brings!(house, "deploy", 1, store.remove_rule(one, &by, now).await.unwrap());
}

pub(crate) async fn se_44_a_change_that_is_not_made_brings_none<E: Engine>(house: &mut House<E>) {
    house.one_step("shop", "").await;
    let (store, by, now) = (house.engine().store(), stamp("maker"), house.now());
    let task = house.create("shop/one").await.core.id;
    brings!(house, "shop", 0, store.cancel(&scope("other."), task, None, &by, now).await.unwrap());
    brings!(house, "*", 0, store.delete_credential("none", &by, now).await.unwrap());
    let none: [Arc<str>; 1] = ["none".into()];
    brings!(house, "*", 0, store.revoke_credentials(&none, &by, now).await.unwrap());
    let absent = vec![JobChange::Remove(id("deploy.none")), JobChange::Resume(id("deploy.none"))];
    brings!(house, "deploy", 0, change(house, absent).await);
    let one = rule("deploy.r", "x", now);
    assert!(!brings!(house, "deploy", 0, store.remove_rule(one, &by, now).await.unwrap()));
    let job = plan(house, "deploy.a", 5).await;
    let ended: RunEnd = end_of(house, &job, Some(99), over());
    brings!(house, "deploy", 0, end(house, ended).await);
    let lease = house.lease("shop", "h").await;
    let report = Report::Complete(crate::domain::Json::null());
    brings!(house, "shop", 0, house.report_as("stranger", lease.id, report).await);
}

/// Seals all that is there, with hashes that count up.
async fn seal<E: Engine>(house: &House<E>, number: i64, heads: &[(&str, i64, u8)]) -> AuditSeal {
    let state = house.store().audit_state().await.unwrap();
    let rows = house.store().audit_from(state.sealed + 1, 1000).await.unwrap();
    let covers = state.sealed + 1..=rows.last().unwrap().seq;
    let links = rows.iter().flat_map(|row| [u8::try_from(row.seq).unwrap(); 32]).collect();
    let at = rfc3339_text(house.now());
    let body = format!("{{\"checkpoint\":{{\"number\":{number},\"at\":\"{at}\"}}}}").into();
    let heads = heads
        .iter()
        .map(|(chain, number, byte)| ChainHead {
            chain: (*chain).into(),
            number: *number,
            hash: [*byte; 32],
        })
        .collect();
    let seal = AuditSeal { number, covers, body, links, heads };
    assert!(house.store().seal_audit(seal.clone()).await.unwrap());
    seal
}

pub(crate) async fn se_44_seals_go_on_where_the_last_one_ended<E: Engine>(house: &mut House<E>) {
    change(house, vec![set("deploy.a", 1), set("other.b", 1)]).await;
    let first = seal(house, 1, &[("deploy", 1, 1), ("other", 1, 2)]).await;
    assert_eq!(first.covers, 1..=2);
    // What was sealed is not sealed again.
    assert!(!house.store().seal_audit(first.clone()).await.unwrap());
    change(house, vec![set("deploy.a", 2)]).await;
    let second = seal(house, 2, &[("deploy", 2, 4)]).await;
    assert_eq!(second.covers, 3..=4, "the checkpoint itself, and the new record");
    house.reopen().await;
    let state = house.store().audit_state().await.unwrap();
    assert_eq!((state.sealed, state.first), (4, 1));
    assert_eq!(state.checkpoint, Some((2, second.body.clone())));
    let found = house.store().audit_seal(2).await.unwrap().unwrap();
    assert_eq!((found.number, found.links), (1, first.links));
    assert_eq!(house.store().audit_seal(5).await.unwrap(), None);
}

pub(crate) async fn se_44_what_is_let_go_leaves_the_ends_of_its_chains<E: Engine>(
    house: &mut House<E>,
) {
    change(house, vec![set("deploy.a", 1), set("deploy.b", 1), set("other.b", 1)]).await;
    seal(house, 1, &[("deploy", 2, 2), ("other", 1, 3)]).await;
    house.wait_ms(10_000);
    change(house, vec![set("deploy.a", 2)]).await;
    seal(house, 2, &[("deploy", 3, 5)]).await;
    house.wait_ms(10_000);
    let now = house.now();
    let all =
        AuditKept { since: Some(now.plus_ms(-30_000)), bytes: None, spared: None, untold: None };
    assert_eq!(house.store().let_audit_go(&all, now).await.unwrap().rows, 0);
    let some =
        AuditKept { since: Some(now.plus_ms(-15_000)), bytes: None, spared: None, untold: None };
    assert_eq!(house.store().let_audit_go(&some, now).await.unwrap().rows, 3);
    let state = house.store().audit_state().await.unwrap();
    assert_eq!((state.first, state.sealed), (4, 5));
    let mut base = state.base;
    base.sort_by(|a, b| a.chain.cmp(&b.chain));
    let stood =
        |chain: &str, number, byte| ChainHead { chain: chain.into(), number, hash: [byte; 32] };
    assert_eq!(base, [stood("deploy", 2, 2), stood("other", 1, 3)]);
    // It is in the audit itself.
    let rows: Vec<AuditRow> = house.store().audit_before(i64::MAX, 1).await.unwrap();
    assert!(rows[0].body.contains("\"change\":\"audit let go\""), "{rows:?}");
    // The last checkpoint stays, however much is asked for.
    let none = AuditKept { since: Some(now), bytes: Some(0), spared: None, untold: None };
    assert_eq!(house.store().let_audit_go(&none, now).await.unwrap().rows, 0);
    change(house, vec![set("deploy.a", 3)]).await;
    seal(house, 3, &[("*", 1, 7), ("deploy", 4, 8)]).await;
    // What is still to be told stays, but not for ever.
    let now = house.now();
    let untold = |ms| Some(Untold { first: 5, since: now.plus_ms(ms) });
    let waiting = AuditKept { since: None, bytes: Some(1), spared: None, untold: untold(-60_000) };
    assert_eq!(house.store().let_audit_go(&waiting, now).await.unwrap().rows, 0);
    // And so does what is young, whoever made how much of it; that is said.
    let young = AuditKept { spared: Some(now.plus_ms(-60_000)), untold: None, ..waiting };
    let kept = house.store().let_audit_go(&young, now).await.unwrap();
    assert!(kept.rows == 0 && kept.excess > 100, "{kept:?}");
    let aged = AuditKept { since: Some(now.plus_ms(-30_000)), bytes: Some(1 << 30), ..young };
    assert_eq!(house.store().let_audit_go(&aged, now).await.unwrap(), AuditLetGo::default());
    let little = AuditKept { untold: untold(1), ..waiting };
    assert_eq!(house.store().let_audit_go(&little, now).await.unwrap().rows, 2);
    let state = house.store().audit_state().await.unwrap();
    assert!(state.base.contains(&stood("deploy", 3, 5)), "{:?}", state.base);
}

/// A record of a call that named a place.
async fn ask<E: Engine>(house: &House<E>, chain: &str) {
    let draft = AuditDraft {
        chain: chain.into(),
        otherwise: Some("own".into()),
        body: format!("{{\"object\":\"{chain}\"}}").into(),
    };
    house.store().append_audit(vec![draft]).await.unwrap();
}

pub(crate) async fn se_44_nobody_makes_chains_by_asking<E: Engine>(house: &mut House<E>) {
    for _ in 0..2 {
        brings!(house, "own", 1, ask(house, "shop").await);
        brings!(house, "own", 1, ask(house, "deploy").await);
    }
    house.one_step("shop", "").await;
    brings!(house, "shop", 1, ask(house, "shop").await);
    brings!(house, "own", 1, ask(house, "shop.r1").await);
    brings!(house, "*", 1, ask(house, "*").await);
    // Jobs are where nobody registers anything.
    plan(house, "deploy.a", 5).await;
    seal(house, 1, &[("own", 5, 1), ("shop", 2, 2), ("*", 1, 3), ("deploy", 1, 4)]).await;
    brings!(house, "deploy", 1, ask(house, "deploy").await);
    house.reopen().await;
    brings!(house, "shop", 1, ask(house, "shop").await);
    // Workers may be there before there is work for them.
    let (store, by) = (house.store(), stamp("maker"));
    let one = worker(house, "shop.r1", "w", "worker");
    brings!(house, "*", 1, store.register_worker(one, Some(&by)).await.unwrap());
    let one = worker(house, "shop", "w", "worker");
    brings!(house, "shop", 1, store.register_worker(one, Some(&by)).await.unwrap());
    let state = store.audit_state().await.unwrap();
    assert_eq!(store.audit_checkpoint().await.unwrap(), state.checkpoint);
    assert_eq!(store.audit_first().await.unwrap(), state.first);
    assert_eq!(state.heads.get("deploy"), Some(&(1, [4; 32])));
}

pub(crate) async fn a_sink_goes_on_where_it_was_told<E: Engine>(house: &mut House<E>) {
    assert_eq!(house.store().audit_sink("file").await.unwrap(), None);
    for seq in [5, 9] {
        house.store().told_audit_sink("file", seq).await.unwrap();
    }
    house.store().told_audit_sink("syslog", 2).await.unwrap();
    house.reopen().await;
    assert_eq!(house.store().audit_sink("file").await.unwrap(), Some(9));
    assert_eq!(house.store().audit_sink("syslog").await.unwrap(), Some(2));
}
