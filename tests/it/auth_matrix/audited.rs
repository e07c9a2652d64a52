//! Every RPC leaves a record, whoever calls it and whatever becomes of it.

use std::time::Duration;

use rusqlite::Connection;

use super::{
    callers::{self, Caller},
    world::World,
};
use crate::harness::{PATIENCE, credentials::Token};

/// How many records there are of an RPC with this outcome.
fn records(audit: &Connection, rpc: &str, outcome: &str) -> i64 {
    let sql = "SELECT count(*) FROM audit WHERE chain IS NOT NULL \
               AND body ->> '$.rpc' = ?1 AND body ->> '$.outcome' = ?2";
    audit.query_row(sql, (rpc, outcome), |found| found.get(0)).unwrap()
}

/// Waits for one more.
async fn one_more(audit: &Connection, rpc: &str, outcome: &str, before: i64) -> bool {
    let more = async {
        while records(audit, rpc, outcome) <= before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, more).await.is_ok()
}

fn named(name: &str) -> Caller {
    let all = callers::all();
    all.into_iter().find(|caller| caller.name == name).unwrap()
}

/// Also the denied ones, and those of strangers, which share theirs.
#[tokio::test(flavor = "multi_thread")]
async fn se_44_every_rpc_leaves_a_record() {
    let world = World::build().await;
    let audit = Connection::open(world.database()).unwrap();
    audit.busy_timeout(PATIENCE).unwrap();
    let nobody = Token::new("matrix-nobody", &[]).sign();
    let nobody = Caller {
        name: "no permission".to_owned(),
        permissions: Vec::new(),
        header: Some(("authorization", format!("Bearer {nobody}"))),
        ..named("root key")
    };
    let root = named("root key");
    let rows = super::written();
    let mut without = Vec::new();
    for target in World::targets() {
        let row = &rows[&target.rpc];
        if row.mode == "public" {
            continue;
        }
        world.heartbeat().await;
        let mut callers = vec![(&root, true, "allowed")];
        if row.mode == "root" || row.permission.is_some() {
            callers.push((&nobody, false, "denied"));
        }
        for (caller, succeeds, outcome) in callers {
            let before = records(&audit, &target.rpc, outcome);
            world.call(&target, caller, succeeds).await;
            if !one_more(&audit, &target.rpc, outcome, before).await {
                without.push(format!("{} {} {outcome}", target.rpc, target.surface));
            }
        }
    }
    assert!(without.is_empty(), "no record of:\n{}", without.join("\n"));
}
