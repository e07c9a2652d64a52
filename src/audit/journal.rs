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

use metrics::Counter;
use serde_json::value::to_raw_value;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    key::Fingerprints,
    repeated::{Repeated, Repetition},
};
use crate::{
    authz::System,
    domain::{
        Clock, Timestamp,
        audit::{Detail, Record, SERVER_CHAIN},
    },
    storage::{AuditDraft, Store},
};

/// How many records wait at most.
const QUEUE_MAX: usize = 16 * 1024;
/// How many one batch holds at most.
const BATCH_MAX: usize = 1024;
/// How long a batch gathers.
const GATHER: Duration = Duration::from_millis(50);
/// How often what repeats itself is looked at.
const REPEATED: Duration = Duration::from_secs(5);

/// The record is not kept, and the call must not go on without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

type Waiting = (AuditDraft, Option<oneshot::Sender<()>>);

/// What the settings say of it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether a call waits until its record is on disk.
    pub fail_closed: bool,
    /// Whether calls that only read are recorded.
    pub reads: bool,
}

/// Takes records.
#[derive(Clone)]
pub struct Journal(Arc<Inner>);

struct Inner {
    queue: mpsc::Sender<Waiting>,
    options: Options,
    fingerprints: Fingerprints,
    repeated: Repeated,
    /// How many records found no room since the last batch.
    lost: AtomicU64,
    lost_total: Counter,
}

impl Journal {
    /// The journal, and what [`run`] empties. The recorder of metrics must be
    /// installed before.
    #[must_use]
    pub fn new(options: Options, fingerprints: Fingerprints) -> (Self, Inbox) {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let inner = Arc::new(Inner {
            queue,
            options,
            fingerprints,
            repeated: Repeated::default(),
            lost: AtomicU64::new(0),
            lost_total: metrics::counter!("bailiwick_audit_lost_total"),
        });
        (Self(Arc::clone(&inner)), Inbox { waiting, inner })
    }

    /// Whether calls that only read are recorded.
    #[must_use]
    pub fn takes_reads(&self) -> bool {
        self.0.options.reads
    }

    /// What records call a credential by.
    #[must_use]
    pub fn fingerprint(&self, digest: &[u8; 32]) -> Arc<str> {
        self.0.fingerprints.of(digest)
    }

    /// Keeps a record: at once and soon on disk, or under fail-closed once it
    /// is there.
    pub async fn note(&self, draft: AuditDraft) -> Result<(), Lost> {
        if self.0.options.fail_closed {
            let (kept, answer) = oneshot::channel();
            self.0.queue.send((draft, Some(kept))).await.map_err(|_| Lost)?;
            return answer.await.map_err(|_| Lost);
        }
        self.push(draft);
        Ok(())
    }

    /// Keeps a record without waiting.
    pub fn push(&self, draft: AuditDraft) {
        self.0.push(draft);
    }

    /// Keeps a refusal of a kind that comes in floods: one record a minute for
    /// all that are alike.
    pub fn repeated(&self, repetition: Repetition, now: Timestamp) {
        if let Some(draft) = self.0.repeated.note(repetition, now) {
            self.0.push(draft);
        }
    }
}

impl Inner {
    fn push(&self, draft: AuditDraft) {
        if self.queue.try_send((draft, None)).is_err() {
            self.lose(1);
        }
    }

    fn lose(&self, records: u64) {
        self.lost.fetch_add(records, Ordering::Relaxed);
        self.lost_total.increment(records);
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("options", &self.0.options).finish_non_exhaustive()
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

/// Empties the inbox until the end, and what is left then. The end comes when
/// no call is under way any more: each that was answered has its record.
pub async fn run(
    mut inbox: Inbox,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    _: System,
    end: CancellationToken,
) {
    let mut look = tokio::time::interval(REPEATED);
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            () = end.cancelled() => break,
            _ = look.tick() => {
                for draft in inbox.inner.repeated.due(clock.now()) {
                    inbox.inner.push(draft);
                }
                continue;
            }
            taken = inbox.waiting.recv_many(&mut batch, BATCH_MAX) => {
                if taken == 0 {
                    return;
                }
            }
        }
        if batch.len() < BATCH_MAX && !inbox.inner.options.fail_closed {
            // The time is up or the server goes down: both mean to go on.
            let _ = tokio::time::timeout(GATHER, end.cancelled()).await;
        }
        inbox.fill(&mut batch);
        keep(&inbox.inner, batch, &*store, &*clock).await;
    }
    for draft in inbox.inner.repeated.all() {
        inbox.inner.push(draft);
    }
    inbox.waiting.close();
    loop {
        let mut batch = Vec::new();
        inbox.fill(&mut batch);
        if batch.is_empty() && inbox.inner.lost.load(Ordering::Relaxed) == 0 {
            return;
        }
        let last = batch.is_empty();
        keep(&inbox.inner, batch, &*store, &*clock).await;
        if last {
            return;
        }
    }
}

impl Inbox {
    /// What waits, up to a batch.
    fn fill(&mut self, batch: &mut Vec<Waiting>) {
        while batch.len() < BATCH_MAX {
            let Ok(one) = self.waiting.try_recv() else { break };
            batch.push(one);
        }
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
            inner.lose(records);
            inner.lost.fetch_add(lost, Ordering::Relaxed);
            tracing::error!(%error, records, "records of the audit could not be kept");
        }
    }
}

/// Says how many records are missing.
fn gap(lost: u64, clock: &dyn Clock) -> AuditDraft {
    let detail = to_raw_value(&serde_json::json!({ "records_lost": lost })).ok();
    let detail = detail.as_deref().map(Detail::Object);
    let record = Record { detail, ..Record::of_server(clock.now()) };
    AuditDraft::new(SERVER_CHAIN.into(), &record)
}
