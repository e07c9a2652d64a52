//! What is sent, and how it is written.

use super::*;
use crate::{
    audit::tests::House,
    domain::Timestamp,
    storage::{AuditKept, AuditStore as _},
};

/// A record with this chain and outcome.
pub(in crate::audit::sink) fn record(seq: i64, chain: &str, outcome: &str) -> Sealed {
    let body = format!(
        "{{\"at\":\"2026-04-01T12:00:00.000001Z\",\"rpc\":\"bailiwick.v1.TaskService/CreateTask\",\
         \"outcome\":\"{outcome}\",\"reason\":\"PERMISSION_MISSING\",\"request_id\":\"6f1c\",\
         \"actor\":{{\"source\":\"idp\",\"issuer\":\"https://idp\",\"subject\":\"ci\",\
         \"method\":\"jwt\",\"credential\":\"abc\"}},\"permission\":\"tasks:create\",\
         \"namespace\":\"shop\",\"object\":\"order\",\"peer\":\"10.0.0.7\"}}"
    );
    let place = Place { chain: chain.into(), number: 3, prev: [1; 32], hash: [2; 32] };
    Sealed { seq, place: Some(place), body: body.into() }
}

/// A checkpoint.
pub(in crate::audit::sink) fn checkpoint(seq: i64) -> Sealed {
    let body = "{\"checkpoint\":{\"number\":1,\"at\":\"2026-04-01T12:00:01.000000Z\"},\
                \"signature\":\"c2ln\"}";
    Sealed { seq, place: None, body: body.into() }
}

async fn feed(house: &House, told: Option<i64>) -> Feed {
    let store: Arc<dyn Store> = Arc::<storage::sqlite::Sqlite>::clone(&house.store);
    Feed::open(store, told, "test").await.unwrap()
}

async fn rest(feed: &mut Feed) -> Vec<Sealed> {
    let mut all = Vec::new();
    loop {
        let batch = feed.batch().await.unwrap().expect("nothing was let go");
        if batch.is_empty() {
            return all;
        }
        all.extend(batch);
    }
}

fn text(records: &[Sealed]) -> String {
    records.iter().map(|record| Format::Lines.line(record)).collect()
}

/// An export without its closing line.
async fn exported(house: &House) -> Vec<String> {
    let export = house.all().await;
    let mut lines: Vec<String> = export.lines().map(|line| format!("{line}\n")).collect();
    lines.pop();
    lines
}

#[tokio::test]
async fn se_44_from_each_position_come_the_lines_of_an_export() {
    let house = House::filled().await;
    let lines = exported(&house).await;
    assert!(lines.len() > 60);
    for told in [None, Some(0)] {
        assert_eq!(text(&rest(&mut feed(&house, told).await).await), lines.concat());
    }
    for told in 1..=lines.len() {
        let position = Some(i64::try_from(told).unwrap());
        let got = rest(&mut feed(&house, position).await).await;
        assert_eq!(text(&got), lines[told..].concat(), "behind {told}");
    }
}

#[tokio::test]
async fn se_44_only_what_is_sealed_is_sent() {
    let house = House::filled().await;
    let mut feed = feed(&house, None).await;
    let before = rest(&mut feed).await;
    house.keep(5).await;
    assert!(rest(&mut feed).await.is_empty());
    house.seal().await;
    let after = rest(&mut feed).await;
    assert_eq!(after.iter().filter(|record| record.place.is_some()).count(), 5);
    assert_eq!(text(&[before, after].concat()), exported(&house).await.concat());
}

#[tokio::test]
async fn se_44_what_was_let_go_before_it_was_sent_is_a_gap_and_no_end() {
    let house = House::filled().await;
    let mut open = feed(&house, Some(2)).await;
    let keep = AuditKept { since: None, bytes: Some(1), spared: None, untold: None };
    let now = Timestamp::from_micros(0);
    assert!(house.store.let_audit_go(&keep, now).await.unwrap().rows > 20);
    assert!(open.batch().await.unwrap().is_none(), "it is told that they are gone");
    house.seal().await;
    let lines = exported(&house).await;
    let got = rest(&mut feed(&house, Some(2)).await).await;
    assert_eq!(text(&got), lines.concat(), "the chains go on as they stood");
    assert!(got[0].seq > 3);
}

#[tokio::test]
async fn se_44_a_record_that_was_taken_away_is_no_retention() {
    let house = House::filled().await;
    let conn = rusqlite::Connection::open(house.folder.path().join("bailiwick.db")).unwrap();
    conn.execute("DELETE FROM audit WHERE seq = 20", []).unwrap();
    let mut feed = feed(&house, None).await;
    let mut last = 0;
    let stuck = loop {
        match feed.batch().await {
            Ok(batch) => last = batch.expect("they were not let go").last().unwrap().seq,
            Err(stuck) => break stuck,
        }
    };
    assert!(matches!(stuck, Stuck::Damaged(seq) if seq == last + 1 && seq <= 20), "{stuck}");
}
