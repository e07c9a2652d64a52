use rusqlite::Connection;

use super::{
    JOB, JOBS,
    due::{DUE, NEXT, SEGMENT, SHARE},
};
use crate::{domain::Timestamp, storage::sqlite::schema};

/// How the planner does a statement, step by step.
fn plan(conn: &Connection, sql: &str) -> Vec<String> {
    let mut explain = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let none = vec![rusqlite::types::Null; explain.parameter_count()];
    let steps = explain.query_map(rusqlite::params_from_iter(none), |row| row.get(3)).unwrap();
    steps.map(|step: rusqlite::Result<String>| step.unwrap()).collect()
}

#[test]
fn the_hot_path_of_schedules_neither_scans_nor_sorts() {
    let mut conn = Connection::open_in_memory().unwrap();
    schema::migrate(&mut conn, Timestamp::from_micros(0)).unwrap();
    let covering = |index: &str| format!("SEARCH job USING COVERING INDEX {index}");
    let key = "SEARCH job USING PRIMARY KEY (id";
    let of_run = "SEARCH job_run USING PRIMARY KEY (job=? AND number";
    let list = format!("SELECT {JOB} FROM job {JOBS}");
    for (sql, wanted) in [
        (DUE, vec![covering("job_due (due<?)")]),
        (NEXT, vec![covering("job_due (due>?)")]),
        // These read the rows too, which are few.
        (SHARE, vec!["SEARCH job USING INDEX job_share (segment=? AND due<?)".to_owned()]),
        (SEGMENT, vec!["SEARCH job USING INDEX job_share (segment>?)".to_owned()]),
        (&list, vec![format!("{key}>? AND id<?)")]),
        (&format!("SELECT {JOB} FROM job WHERE id = ?1"), vec![format!("{key}=?)")]),
        (
            "UPDATE job SET status = 1 WHERE id = ?1 AND version = ?2 AND status = 0",
            vec![format!("{key}=?)")],
        ),
        (
            "SELECT * FROM job_run WHERE job = ?1 AND number < ?2 ORDER BY number DESC LIMIT ?3",
            vec![format!("{of_run}<?)")],
        ),
        (
            "SELECT max(number) FROM job_run WHERE job = ?1",
            vec!["SEARCH job_run USING PRIMARY KEY (job=?)".to_owned()],
        ),
        (
            "SELECT status, jobs FROM job_count WHERE segment = ?1",
            vec!["SEARCH job_count USING PRIMARY KEY (segment=?)".to_owned()],
        ),
    ] {
        assert_eq!(plan(&conn, sql), wanted, "{sql}");
    }
    // At start only what is under way is looked at.
    for sql in [super::INTERRUPTED_JOBS, super::INTERRUPTED_RUNS] {
        let steps = plan(&conn, sql).join("; ");
        assert!(steps.contains("INDEX job_run_open"), "{sql}: {steps}");
        assert!(!steps.contains("SCAN job;") && !steps.ends_with("SCAN job"), "{sql}: {steps}");
    }
}
