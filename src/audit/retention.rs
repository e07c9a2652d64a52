//! Lets go what is older, or more, than the settings keep.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    authz::System,
    domain::Clock,
    storage::{AuditKept, Store},
};

/// How often it is looked at.
const PAUSE: Duration = Duration::from_mins(1);
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
const MIB: i64 = 1 << 20;

/// How much of the audit is kept; all of it by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// For so many days.
    pub days: Option<NonZeroU32>,
    /// As much as has room in so many MiB.
    pub mib: Option<NonZeroU32>,
}

/// Keeps the audit within its bounds until the shutdown.
pub async fn retain(
    retention: Retention,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    _: System,
    shutdown: CancellationToken,
) {
    if retention == Retention::default() {
        return;
    }
    let bytes = retention.mib.map(|mib| i64::from(mib.get()).saturating_mul(MIB));
    while !shutdown.is_cancelled() {
        let now = clock.now();
        let since = retention
            .days
            .map(|days| now.plus_ms(i64::from(days.get()).saturating_mul(DAY_MS).saturating_neg()));
        match store.let_audit_go(&AuditKept { since, bytes, untold: None }, now).await {
            Ok(0) => {}
            // There may be more.
            Ok(records) => {
                tracing::info!(records, "records of the audit were let go");
                continue;
            }
            Err(error) => tracing::warn!(%error, "old records of the audit were not let go"),
        }
        // The time is up or the server goes down: both mean to look again.
        let _ = tokio::time::timeout(PAUSE, shutdown.cancelled()).await;
    }
}
