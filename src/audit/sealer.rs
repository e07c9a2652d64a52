//! Seals what was recorded: a loop that makes a checkpoint each second in
//! which there is something new, and whoever cannot wait for it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, Gauge};
use thiserror::Error;
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio_util::sync::CancellationToken;

use super::{
    key::AuditKey,
    seal::{SealError, seal},
    sealed,
};
use crate::{
    authz::System,
    domain::Clock,
    storage::{self, AuditSeal, AuditState, Store},
};

/// How often something new is looked for.
const PAUSE: Duration = Duration::from_secs(1);
/// How many records one checkpoint covers at most.
const ROWS_MAX: usize = 8192;

/// Why the audit could not be sealed.
#[derive(Debug, Error)]
pub enum Unsealed {
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// What is kept was changed behind the server.
    #[error(transparent)]
    Changed(#[from] SealError),
}

/// Seals the audit of a store.
pub struct Sealer {
    store: Arc<dyn Store>,
    key: Arc<AuditKey>,
    clock: Arc<dyn Clock>,
    state: Mutex<AuditState>,
    /// The last number that is sealed, for who waits for it.
    sealed: watch::Sender<i64>,
    /// Whether all that was sealed before is as it was.
    intact: AtomicBool,
    /// Whether the last round went well.
    works: AtomicBool,
    records: Counter,
    unsealed: Gauge,
}

impl Sealer {
    /// Goes on where the last start ended, and looks whether what was sealed
    /// last is as it was.
    pub async fn open(
        store: Arc<dyn Store>,
        key: Arc<AuditKey>,
        clock: Arc<dyn Clock>,
    ) -> storage::Result<Arc<Self>> {
        let state = store.audit_state().await?;
        let checked = sealed::check(&state, &*store, key.public()).await?;
        if let Err(fault) = &checked {
            tracing::error!(
                %fault,
                "the audit is not as it was sealed; `bailiwick audit verify` an export of it"
            );
        }
        Ok(Arc::new(Self {
            store,
            key,
            clock,
            sealed: watch::Sender::new(state.sealed),
            state: Mutex::new(state),
            intact: AtomicBool::new(checked.is_ok()),
            works: AtomicBool::new(true),
            records: metrics::counter!("bailiwick_audit_records_total"),
            unsealed: metrics::gauge!("bailiwick_audit_unsealed"),
        }))
    }

    /// The key that signs.
    #[must_use]
    pub fn key(&self) -> &Arc<AuditKey> {
        &self.key
    }

    /// The last number that is sealed, now and whenever it changes.
    #[must_use]
    pub fn sealed(&self) -> watch::Receiver<i64> {
        self.sealed.subscribe()
    }

    /// Whether what was sealed before this start is as it was.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.intact.load(Ordering::Relaxed)
    }

    /// Whether the last round went well.
    #[must_use]
    pub fn works(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }

    /// Seals up to the present.
    pub async fn now(&self) -> Result<(), Unsealed> {
        let mut state = self.state.lock().await;
        while self.round(&mut state).await? {}
        Ok(())
    }

    /// Seals until the end, and then what came last.
    pub async fn run(self: Arc<Self>, _: System, end: CancellationToken) {
        loop {
            self.once().await;
            if end.is_cancelled() {
                return;
            }
            // The time is up or the server goes down: both mean to look again.
            let _ = tokio::time::timeout(PAUSE, end.cancelled()).await;
        }
    }

    async fn once(&self) {
        let mut state = self.state.lock().await;
        let done = loop {
            match self.round(&mut state).await {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let worked = self.works.swap(done.is_ok(), Ordering::Relaxed);
        match done {
            Ok(()) if !worked => tracing::info!("the audit is sealed again"),
            Ok(()) => {}
            Err(error) if worked => tracing::error!(%error, "the audit could not be sealed"),
            Err(error) => tracing::debug!(%error, "the audit could not be sealed"),
        }
    }

    /// One checkpoint; whether there may be more to seal.
    async fn round(&self, state: &mut MutexGuard<'_, AuditState>) -> Result<bool, Unsealed> {
        let rows = self.store.audit_from(state.sealed.saturating_add(1), ROWS_MAX).await?;
        let records = rows.iter().filter(|row| row.chain.is_some()).count();
        self.unsealed.set(f64::from(u32::try_from(records).unwrap_or(u32::MAX)));
        let Some(made) = seal(state, &rows, &self.key, self.clock.now())? else { return Ok(false) };
        if !self.store.seal_audit(made.clone()).await? {
            **state = self.store.audit_state().await?;
            self.sealed.send_replace(state.sealed);
            return Ok(true);
        }
        self.records.increment(u64::try_from(records).unwrap_or(u64::MAX));
        self.unsealed.set(0.0);
        advance(state, made);
        self.sealed.send_replace(state.sealed);
        Ok(rows.len() == ROWS_MAX)
    }
}

fn advance(state: &mut AuditState, made: AuditSeal) {
    let AuditSeal { number, covers, body, heads, .. } = made;
    state.sealed = *covers.end();
    state.checkpoint = Some((number, body));
    for grown in heads {
        state.heads.insert(grown.chain, (grown.number, grown.hash));
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("key", &self.key).finish_non_exhaustive()
    }
}
