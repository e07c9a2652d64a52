//! Records of reads and refusals on their way to the disk: a bounded queue
//! that is emptied in batches. Nobody waits for it unless the audit is to fail
//! closed; what finds no room is counted, and the count is recorded.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    authz::System,
    domain::{
        Clock,
        audit::{Record, SERVER_CHAIN},
    },
    storage::{AuditDraft, Store},
};

/// How many records wait at most.
const QUEUE_MAX: usize = 16 * 1024;
/// How many one batch holds at most.
const BATCH_MAX: usize = 1024;
/// How long a batch gathers.
const GATHER: Duration = Duration::from_millis(50);

/// The record is not kept, and the call must not go on without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

type Waiting = (AuditDraft, Option<oneshot::Sender<()>>);

/// Takes records.
#[derive(Clone)]
pub struct Journal(Arc<Inner>);

struct Inner {
    queue: mpsc::Sender<Waiting>,
    /// Whether a call waits until its record is on disk.
    fail_closed: bool,
    /// How many records found no room since the last batch.
    lost: AtomicU64,
}

impl Journal {
    /// The journal, and what [`run`] empties.
    #[must_use]
    pub fn new(fail_closed: bool) -> (Self, Inbox) {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let inner = Arc::new(Inner { queue, fail_closed, lost: AtomicU64::new(0) });
        (Self(Arc::clone(&inner)), Inbox { waiting, inner })
    }

    /// Keeps a record: at once and soon on disk, or under fail-closed once it
    /// is there.
    pub async fn note(&self, draft: AuditDraft) -> Result<(), Lost> {
        if self.0.fail_closed {
            let (kept, answer) = oneshot::channel();
            self.0.queue.send((draft, Some(kept))).await.map_err(|_| Lost)?;
            return answer.await.map_err(|_| Lost);
        }
        self.push(draft);
        Ok(())
    }

    /// Keeps a record without waiting.
    pub fn push(&self, draft: AuditDraft) {
        if self.0.queue.try_send((draft, None)).is_err() {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("fail_closed", &self.0.fail_closed).finish_non_exhaustive()
    }
}

/// What waits to be kept.
pub struct Inbox {
    waiting: mpsc::Receiver<Waiting>,
    inner: Arc<Inner>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

/// Empties the inbox until the shutdown, and what is left then.
pub async fn run(
    mut inbox: Inbox,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    _: System,
    shutdown: CancellationToken,
) {
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => inbox.waiting.close(),
            taken = inbox.waiting.recv_many(&mut batch, BATCH_MAX) => {
                if taken == 0 {
                    return;
                }
            }
        }
        if batch.len() < BATCH_MAX && !shutdown.is_cancelled() && !inbox.inner.fail_closed {
            // The time is up or the server goes down: both mean to go on.
            let _ = tokio::time::timeout(GATHER, shutdown.cancelled()).await;
        }
        while batch.len() < BATCH_MAX {
            let Ok(one) = inbox.waiting.try_recv() else { break };
            batch.push(one);
        }
        if batch.is_empty() {
            if inbox.waiting.is_closed() && inbox.waiting.is_empty() {
                return;
            }
            continue;
        }
        keep(&inbox.inner, batch, &*store, &*clock).await;
    }
}

async fn keep(inner: &Inner, batch: Vec<Waiting>, store: &dyn Store, clock: &dyn Clock) {
    let lost = inner.lost.swap(0, Ordering::Relaxed);
    let (mut drafts, waiting): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
    if lost > 0 {
        drafts.push(gap(lost, clock));
    }
    match store.append_audit(drafts).await {
        Ok(()) => {
            for kept in waiting.into_iter().flatten() {
                // Nobody waits for it any more when this fails.
                let _ = kept.send(());
            }
        }
        Err(error) => {
            let records = u64::try_from(waiting.len()).unwrap_or(u64::MAX);
            inner.lost.fetch_add(records.saturating_add(lost), Ordering::Relaxed);
            tracing::error!(%error, records, "records of the audit could not be kept");
        }
    }
}

/// Says how many records are missing.
fn gap(lost: u64, clock: &dyn Clock) -> AuditDraft {
    let detail = format!("{{\"records_lost\":{lost}}}");
    let detail = serde_json::from_str(&detail).ok();
    let record = Record { detail, ..Record::of_server(clock.now()) };
    AuditDraft { chain: SERVER_CHAIN.into(), body: record.to_json().into() }
}
