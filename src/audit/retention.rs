//! Lets go what is older, or more, than the settings keep.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    authz::System,
    domain::{Clock, Timestamp},
    storage::{self, AuditKept, Store, Untold},
};

/// How often it is looked at.
const PAUSE: Duration = Duration::from_mins(1);
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
const MIB: i64 = 1 << 20;

/// How much of the audit is kept; all of it by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// For so many days.
    pub days: Option<NonZeroU32>,
    /// As much as has room in so many MiB.
    pub mib: Option<NonZeroU32>,
    /// The sinks that are to be told of it first.
    pub sinks: Vec<String>,
    /// For how many days that is waited for.
    pub sinks_wait_days: u32,
}

/// Keeps the audit within its bounds until the shutdown.
pub async fn retain(
    retention: Retention,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    _: System,
    shutdown: CancellationToken,
) {
    if retention.days.is_none() && retention.mib.is_none() {
        return;
    }
    let bytes = retention.mib.map(|mib| i64::from(mib.get()).saturating_mul(MIB));
    while !shutdown.is_cancelled() {
        let now = clock.now();
        let since = retention
            .days
            .map(|days| now.plus_ms(i64::from(days.get()).saturating_mul(DAY_MS).saturating_neg()));
        let let_go = async {
            let untold = untold(&retention, &*store, now).await?;
            store.let_audit_go(&AuditKept { since, bytes, untold }, now).await
        };
        match let_go.await {
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

/// What some sink has not been told yet.
async fn untold(
    retention: &Retention,
    store: &dyn Store,
    now: Timestamp,
) -> storage::Result<Option<Untold>> {
    let mut first = None;
    for sink in &retention.sinks {
        let next = store.audit_sink(sink).await?.unwrap_or_default().saturating_add(1);
        first = Some(first.map_or(next, |first: i64| first.min(next)));
    }
    let waited = i64::from(retention.sinks_wait_days).saturating_mul(DAY_MS);
    let since = now.plus_ms(waited.saturating_neg());
    Ok(first.map(|first| Untold { first, since }))
}
