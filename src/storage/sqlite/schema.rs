//! Numbered migrations. A released one is never edited.

use std::fmt::Write as _;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use sha2::{Digest, Sha256};

use super::open::OpenError;
use crate::domain::Timestamp;

/// Marks our files: "Bail".
pub(super) const APPLICATION_ID: i32 = 0x4261_696c;

pub(super) struct Migration {
    pub(super) number: u32,
    pub(super) name: &'static str,
    pub(super) sql: &'static str,
}

pub(super) const MIGRATIONS: &[Migration] = &[
    Migration { number: 1, name: "first", sql: include_str!("migrations/0001_first.sql") },
    Migration {
        number: 2,
        name: "credentials",
        sql: include_str!("migrations/0002_credentials.sql"),
    },
    Migration { number: 3, name: "schedules", sql: include_str!("migrations/0003_schedules.sql") },
    Migration { number: 4, name: "audit", sql: include_str!("migrations/0004_audit.sql") },
    Migration {
        number: 5,
        name: "step_tokens",
        sql: include_str!("migrations/0005_step_tokens.sql"),
    },
    Migration { number: 6, name: "elevation", sql: include_str!("migrations/0006_elevation.sql") },
];

fn checksum(sql: &str) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(sql.as_bytes()) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Brings the schema up to date; each migration is one transaction.
pub(super) fn migrate(conn: &mut Connection, now: Timestamp) -> Result<(), OpenError> {
    conn.execute_batch(
        "CREATE TABLE IF NOT EXISTS migration (number INTEGER PRIMARY KEY, name TEXT NOT NULL, \
         checksum TEXT NOT NULL, applied_at INTEGER NOT NULL)",
    )?;
    let found: u32 =
        conn.query_row("SELECT coalesce(max(number), 0) FROM migration", [], |row| row.get(0))?;
    let known = MIGRATIONS.iter().map(|migration| migration.number).max().unwrap_or(0);
    if found > known {
        return Err(OpenError::Newer { found, known });
    }
    for migration in MIGRATIONS {
        let sum = checksum(migration.sql);
        let applied: Option<String> = conn
            .query_row(
                "SELECT checksum FROM migration WHERE number = ?1",
                [migration.number],
                |row| row.get(0),
            )
            .optional()?;
        match applied {
            Some(applied) if applied == sum => {}
            Some(_) => return Err(OpenError::Changed { number: migration.number }),
            None => {
                let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
                transaction.execute_batch(migration.sql)?;
                transaction.execute(
                    "INSERT INTO migration (number, name, checksum, applied_at) \
                     VALUES (?1, ?2, ?3, ?4)",
                    (migration.number, migration.name, sum, now.micros()),
                )?;
                transaction.commit()?;
            }
        }
    }
    Ok(())
}
