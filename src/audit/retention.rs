//! Lets go what is older, or more, than the settings keep.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use metrics::Gauge;
use tokio_util::sync::CancellationToken;

use crate::{
    authz::System,
    domain::{Clock, Timestamp},
    storage::{self, AuditKept, AuditLetGo, Store, Untold},
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
    /// For how many days they stay however much that is: who makes many
    /// records does not push out those of others.
    pub min_days: u32,
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
    let mut excess = Excess::new();
    while !shutdown.is_cancelled() {
        let now = clock.now();
        let since = retention.days.map(|days| before(now, days.get()));
        let spared = (retention.min_days > 0).then(|| before(now, retention.min_days));
        let let_go = async {
            let untold = untold(&retention, &*store, now).await?;
            store.let_audit_go(&AuditKept { since, bytes, spared, untold }, now).await
        };
        let done = let_go.await;
        if let Ok(AuditLetGo { excess: bytes, .. }) = done {
            excess.is(bytes);
        }
        match done {
            Ok(AuditLetGo { rows: 0, .. }) => {}
            // There may be more.
            Ok(AuditLetGo { rows: records, .. }) => {
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
    let since = before(now, retention.sinks_wait_days);
    Ok(first.map(|first| Untold { first, since }))
}

fn before(now: Timestamp, days: u32) -> Timestamp {
    now.plus_ms(i64::from(days).saturating_mul(DAY_MS).saturating_neg())
}

/// How much there is beyond the size that is to be kept.
struct Excess {
    gauge: Gauge,
    told: bool,
}

impl Excess {
    fn new() -> Self {
        let gauge = metrics::gauge!("bailiwick_audit_excess_mib");
        gauge.set(0.0);
        Self { gauge, told: false }
    }

    fn is(&mut self, bytes: u64) {
        let mib = bytes.div_ceil(MIB.unsigned_abs());
        self.gauge.set(f64::from(u32::try_from(mib).unwrap_or(u32::MAX)));
        if mib > 0 && !self.told {
            tracing::warn!(
                mib,
                "the audit is larger than `audit.retention_mb`: `audit.retention_min_days` keeps it"
            );
        }
        self.told = mib > 0;
    }
}
