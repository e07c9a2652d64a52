//! The conformance suite, and what this engine alone can show.

use std::{fs, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use rusqlite::Connection;
use tempfile::TempDir;

use super::{OpenError, Settings, Sqlite, error::broken, schema};
use crate::{
    domain::{Json, Scope},
    storage::{
        Error, Store, TaskStore as _,
        conformance::{
            self, Engine,
            house::{House, TestClock, TestDesk, stamp},
        },
    },
};

struct Case {
    store: Arc<Sqlite>,
    desk: Arc<TestDesk>,
    clock: Arc<TestClock>,
    folder: TempDir,
}

async fn open(folder: &TempDir, desk: Arc<TestDesk>, clock: Arc<TestClock>) -> Arc<Sqlite> {
    Sqlite::open(Settings::new(folder.path().join("x.db")), desk, clock).await.unwrap()
}

#[async_trait]
impl Engine for Case {
    async fn fresh(desk: Arc<TestDesk>, clock: Arc<TestClock>) -> Self {
        let folder = TempDir::new().unwrap();
        let store = open(&folder, Arc::clone(&desk), Arc::clone(&clock)).await;
        Self { store, desk, clock, folder }
    }

    async fn reopen(self) -> Self {
        let Self { store, desk, clock, folder } = self;
        store.close().await;
        drop(store);
        let store = open(&folder, Arc::clone(&desk), Arc::clone(&clock)).await;
        Self { store, desk, clock, folder }
    }

    fn store(&self) -> &dyn Store {
        &*self.store
    }

    async fn verify(&self) {
        let conn = Connection::open(self.folder.path().join("x.db")).unwrap();
        let sound: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
        for (what, query) in WRONG_ROWS {
            let wrong: i64 = conn.query_row(query, [], |row| row.get(0)).unwrap();
            assert_eq!(wrong, 0, "{what}");
        }
    }
}

/// Foreign keys are off in the hot path; these count what they would refuse,
/// and what the partial indexes lean on.
const WRONG_ROWS: &[(&str, &str)] = &[
    ("a run's job", "SELECT count(*) FROM job_run WHERE job NOT IN (SELECT id FROM job)"),
    ("a job's setter", "SELECT count(*) FROM job WHERE set_by NOT IN (SELECT no FROM job_setter)"),
    (
        "a count of jobs",
        "SELECT count(*) FROM (SELECT segment, status, count(*) FROM job GROUP BY 1, 2 \
         EXCEPT SELECT segment, status, jobs FROM job_count)",
    ),
    (
        "a count without jobs",
        "SELECT count(*) FROM (SELECT segment, status, jobs FROM job_count \
         EXCEPT SELECT segment, status, count(*) FROM job GROUP BY 1, 2)",
    ),
    (
        "a triggered job's run",
        "SELECT count(*) FROM job WHERE status = 1 AND NOT EXISTS (SELECT 1 FROM job_run r \
         WHERE r.job = job.id AND r.version = job.version AND r.ended_at IS NULL)",
    ),
    (
        "a template's namespace",
        "SELECT count(*) FROM template WHERE ns NOT IN (SELECT no FROM namespace)",
    ),
    (
        "a task's template",
        "SELECT count(*) FROM task t WHERE NOT EXISTS \
         (SELECT 1 FROM template m WHERE m.ns = t.ns AND m.no = t.template)",
    ),
    (
        "a step's task",
        "SELECT count(*) FROM step s WHERE NOT EXISTS \
         (SELECT 1 FROM task t WHERE t.ns = s.ns AND t.task = s.task AND t.priority = -s.rank)",
    ),
    (
        "a payload's task",
        "SELECT count(*) FROM payload p WHERE NOT EXISTS \
         (SELECT 1 FROM task t WHERE t.ns = p.ns AND t.task = p.task)",
    ),
    (
        "a result's step",
        "SELECT count(*) FROM payload p WHERE slot > 0 AND NOT EXISTS (SELECT 1 FROM step s \
         WHERE s.ns = p.ns AND s.task = p.task AND s.no = p.slot - 1 AND s.state = 5)",
    ),
    (
        "a task's context",
        "SELECT count(*) FROM task t WHERE NOT EXISTS (SELECT 1 FROM payload p \
         WHERE p.ns = t.ns AND p.task = t.task AND p.slot = 0)",
    ),
    (
        "an attempt's step",
        "SELECT count(*) FROM attempt a WHERE NOT EXISTS (SELECT 1 FROM step s \
         WHERE s.ns = a.ns AND s.task = a.task AND s.no = a.no AND s.attempts >= a.attempt)",
    ),
    (
        "an event's task",
        "SELECT count(*) FROM event e WHERE NOT EXISTS (SELECT 1 FROM task t \
         WHERE t.ns = e.ns AND t.task = e.task AND t.last_seq >= e.last_seq)",
    ),
    (
        "a key's task",
        "SELECT count(*) FROM idempotency i WHERE NOT EXISTS \
         (SELECT 1 FROM task t WHERE t.ns = i.ns AND t.task = i.task)",
    ),
    (
        "a handler's template",
        "SELECT count(*) FROM template_handler h WHERE NOT EXISTS \
         (SELECT 1 FROM template m WHERE m.ns = h.ns AND m.no = h.template)",
    ),
    (
        "the due time of what the timer must look at",
        "SELECT count(*) FROM step WHERE (due_at IS NOT NULL) <> (state IN (3, 4))",
    ),
    ("the age of what is ready", "SELECT count(*) FROM step WHERE state = 2 AND ready_at IS NULL"),
    (
        "the lease of what is in progress",
        "SELECT count(*) FROM step WHERE state = 3 AND (counter IS NULL OR holder IS NULL)",
    ),
    (
        "final steps of open tasks alone",
        "SELECT count(*) FROM step s JOIN task t ON t.ns = s.ns AND t.task = s.task \
         WHERE t.state IN (5, 7, 8) AND s.state IN (1, 2, 3, 4)",
    ),
];

conformance::suite!(Case);

/// Opens the store of a folder with a desk and a clock of its own.
async fn try_open(folder: &Path) -> Result<Arc<Sqlite>, OpenError> {
    let (desk, clock) = (Arc::new(TestDesk::default()), Arc::new(TestClock::default()));
    Sqlite::open(Settings::new(folder.join("x.db")), desk, clock).await
}

/// Opens and closes a store, so that its file is there.
async fn made() -> TempDir {
    let folder = TempDir::new().unwrap();
    try_open(folder.path()).await.unwrap().close().await;
    folder
}

fn edit(folder: &TempDir, sql: &str) {
    Connection::open(folder.path().join("x.db")).unwrap().execute_batch(sql).unwrap();
}

#[tokio::test]
async fn a_missing_folder_is_made_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = TempDir::new().unwrap();
    let folder = parent.path().join("data/deep");
    let store = try_open(&folder).await.unwrap();
    store.check().await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    store.close().await;
}

#[tokio::test]
async fn the_file_is_marked_at_creation() {
    let folder = made().await;
    let conn = Connection::open(folder.path().join("x.db")).unwrap();
    let pragma = |name: &str| -> String {
        conn.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
            .map(|value| match value {
                rusqlite::types::Value::Integer(number) => number.to_string(),
                rusqlite::types::Value::Text(text) => text,
                other @ (rusqlite::types::Value::Null
                | rusqlite::types::Value::Real(_)
                | rusqlite::types::Value::Blob(_)) => panic!("{other:?}"),
            })
            .unwrap()
    };
    assert_eq!(pragma("application_id"), schema::APPLICATION_ID.to_string());
    assert_eq!(pragma("page_size"), "4096");
    assert_eq!(pragma("auto_vacuum"), "2");
    assert_eq!(pragma("journal_mode"), "wal");
}

#[tokio::test]
async fn a_second_server_on_the_folder_is_refused() {
    let folder = TempDir::new().unwrap();
    let first = try_open(folder.path()).await.unwrap();
    let second = try_open(folder.path()).await.unwrap_err();
    assert!(matches!(second, OpenError::Locked { .. }));
    let told = second.to_string();
    assert!(told.contains(&*folder.path().to_string_lossy()), "{told}");
    first.check().await.unwrap();
    first.close().await;
    try_open(folder.path()).await.unwrap().close().await;
}

#[tokio::test]
async fn a_folder_that_is_none_is_refused() {
    let parent = TempDir::new().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "x").unwrap();
    let refused = try_open(&file).await.unwrap_err();
    assert!(matches!(&refused, OpenError::Folder { .. }), "{refused:?}");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let folder = made().await;
    edit(&folder, "INSERT INTO migration VALUES (999, 'later', 'x', 0)");
    let refused = try_open(folder.path()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Newer { found: 999, known } if known < 999));
    assert!(refused.to_string().contains("newer release"));
}

#[tokio::test]
async fn a_changed_migration_is_refused() {
    let folder = made().await;
    edit(&folder, "UPDATE migration SET checksum = 'x' WHERE number = 1");
    let refused = try_open(folder.path()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Changed { number: 1 }), "{refused:?}");
}

#[tokio::test]
async fn foreign_and_spoilt_files_are_refused_and_left_alone() {
    let folder = made().await;
    edit(&folder, "PRAGMA application_id = 7");
    assert!(matches!(try_open(folder.path()).await, Err(OpenError::NotOurs { .. })));
    let text = "no database at all ".repeat(1_000);
    fs::write(folder.path().join("x.db"), &text).unwrap();
    assert!(matches!(try_open(folder.path()).await, Err(OpenError::NotOurs { .. })));
    assert_eq!(fs::read_to_string(folder.path().join("x.db")).unwrap(), text);
}

#[tokio::test]
async fn a_damaged_row_is_one_caller_s_trouble() {
    let mut house = House::<Case>::new().await;
    house.one_step("shop", "").await;
    let (spoilt, sound) = (house.create("shop/one").await, house.create("shop/one").await);
    edit(
        &house.engine().folder,
        &format!(
            "UPDATE task SET counts = x'00' WHERE hex(task) = '{}'",
            spoilt.core.id.to_string().replace('-', "").to_uppercase()
        ),
    );
    let everything = Scope::Everything;
    let read = house.store().task(&everything, spoilt.core.id).await;
    assert!(matches!(read, Err(Error::Broken(_))), "{read:?}");
    // In one batch the others' changes still count.
    let (by, now) = (stamp("o"), house.now());
    let (bad, good) = futures::future::join(
        house.store().cancel(&everything, spoilt.core.id, None, &by, now),
        house.store().cancel(&everything, sound.core.id, None, &by, now),
    )
    .await;
    assert!(matches!(bad, Err(Error::Broken(_))), "{bad:?}");
    assert!(good.unwrap().is_some());
}

#[tokio::test]
async fn one_failure_or_panic_undoes_that_operation_alone() {
    let folder = TempDir::new().unwrap();
    let store = try_open(folder.path()).await.unwrap();
    let add = |row: u32, end: fn() -> crate::storage::Result<()>| {
        store.write(move |operation| {
            operation
                .conn
                .execute("INSERT INTO namespace (no, name) VALUES (?1, 'n' || ?1)", [row])?;
            end()
        })
    };
    let all = futures::future::join_all([
        add(1, || Ok(())),
        add(2, || Err(broken("as the case wants it"))),
        add(3, || panic!("as the case wants it")),
        add(4, || Ok(())),
    ])
    .await;
    let done: Vec<bool> = all.iter().map(Result::is_ok).collect();
    assert_eq!(done, [true, false, false, true]);
    store.close().await;
    let conn = Connection::open(folder.path().join("x.db")).unwrap();
    let kept: String = conn
        .query_row("SELECT group_concat(no ORDER BY no) FROM namespace", [], |row| row.get(0))
        .unwrap();
    assert_eq!(kept, "1,4");
}

#[tokio::test]
async fn a_full_store_loses_nothing_and_recovers() {
    let mut house = House::<Case>::new().await;
    house.one_step("shop", "").await;
    let kept = house.create("shop/one").await.core.id;
    let store = Arc::clone(&house.engine().store);
    // As on a full disk: no page more than there are.
    let limit = |pages: u32| {
        store.write(move |operation| {
            let sql = format!("PRAGMA max_page_count = {pages}");
            Ok(operation.conn.query_row(&sql, [], |_| Ok(()))?)
        })
    };
    limit(1).await.unwrap();
    let big = Json::parse(&format!("{{\"x\":\"{}\"}}", "y".repeat(500_000))).unwrap();
    let mut lost = Vec::new();
    for _ in 0..3 {
        let mut new = house.new_task("shop/one");
        new.context = big.clone();
        let ticket = house.sit("shop", "h");
        let full = house.store().create(new, &stamp("c"), house.now()).await;
        assert!(matches!(full, Err(Error::Full(_))), "{full:?}");
        lost.push(ticket);
    }
    assert_eq!(house.desk.given_back(), lost, "no seat is lost");
    assert!(house.desk.effects().granted.is_empty());
    // It goes on reading, and writes again once there is room.
    assert_eq!(house.task(kept).await.core.id, kept);
    limit(1_000_000).await.unwrap();
    let mut new = house.new_task("shop/one");
    new.context = big;
    house.create_task(new).await;
    assert_eq!(house.all_tasks().await.len(), 2);
    drop(store);
    house.verify().await;
}

#[tokio::test]
async fn what_is_queued_at_the_end_is_done() {
    let mut house = House::<Case>::new().await;
    house.one_step("shop", "").await;
    let store = Arc::clone(&house.engine().store);
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (store, new, now) = (Arc::clone(&store), house.new_task("shop/one"), house.now());
        waiting.spawn(async move { store.create(new, &stamp("c"), now).await });
    }
    tokio::task::yield_now().await;
    store.close().await;
    let mut acknowledged = 0;
    while let Some(made) = waiting.join_next().await {
        acknowledged += usize::from(made.unwrap().is_ok());
    }
    drop(store);
    house.reopen().await;
    assert_eq!(house.all_tasks().await.len(), acknowledged);
    assert!(acknowledged > 0);
}

#[tokio::test]
async fn a_caller_who_goes_away_undoes_nothing() {
    let mut house = House::<Case>::new().await;
    house.one_step("shop", "").await;
    house.sit("shop", "h");
    let (new, by, now) = (house.new_task("shop/one"), stamp("c"), house.now());
    let creating = house.store().create(new, &by, now);
    // Dropped as soon as it waits for the writer.
    let _ = tokio::time::timeout(Duration::ZERO, creating).await;
    house.store().check().await.unwrap();
    assert_eq!(house.all_tasks().await.len(), 1);
    assert_eq!(house.granted().len(), 1);
}

#[tokio::test]
async fn the_log_stays_within_bounds() {
    let mut house = House::<Case>::new().await;
    house.one_step("shop", "").await;
    let body = Json::parse(&format!("{{\"x\":\"{}\"}}", "y".repeat(900_000))).unwrap();
    for _ in 0..110 {
        let mut new = house.new_task("shop/one");
        new.context = body.clone();
        house.create_task(new).await;
    }
    let log = house.engine().folder.path().join("x.db-wal");
    let bytes = fs::metadata(&log).unwrap().len();
    assert!(bytes < 80 << 20, "{bytes}");
    assert!(fs::metadata(house.engine().folder.path().join("x.db")).unwrap().len() > 60 << 20);
    let store = Arc::clone(&house.engine().store);
    store.close().await;
    assert!(!log.exists() || fs::metadata(&log).unwrap().len() == 0);
}
