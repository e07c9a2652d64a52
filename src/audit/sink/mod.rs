//! Sends what is sealed outside: each sink has a loop of its own and a
//! position in the store. At least once, in order, and never in the way of who
//! records or seals.

mod feed;
mod file;
mod format;
mod ocsf;
mod otlp;
mod syslog;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use metrics::{Counter, Gauge};
use thiserror::Error;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use self::feed::Feed;
pub use self::{
    feed::{Place, Sealed},
    file::{FileError, FileSink},
    format::Format,
    otlp::{Otlp, OtlpError},
    syslog::{Syslog, Transport},
};
use super::sealer::Sealer;
use crate::{
    authz::System,
    storage::{self, Store},
};

/// How long what is left may take when the server goes down.
const FLUSH_MAX: Duration = Duration::from_secs(5);
/// The first pause after a failure; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Why something was not sent. Says nothing of what was to be sent.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Unsent(String);

impl Unsent {
    pub(super) fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}

impl From<std::io::Error> for Unsent {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Where sealed records go.
#[async_trait]
pub trait Sink: Send {
    /// Hands records over, in order. When it fails they come again, all of
    /// them.
    async fn send(&mut self, records: &[Sealed]) -> Result<(), Unsent>;
}

/// Why a round came to nothing.
#[derive(Debug, Error)]
enum Stuck {
    #[error("{0}")]
    Unsent(#[from] Unsent),
    #[error("the store: {0}")]
    Storage(#[from] storage::Error),
    #[error("record {0} of the audit is not as it was sealed")]
    Damaged(i64),
}

/// A sink with what it is sent from.
pub struct Outlet {
    name: String,
    sink: Box<dyn Sink>,
    store: Arc<dyn Store>,
    sealed: watch::Receiver<i64>,
    /// Up to where it has been told.
    told: i64,
    works: bool,
    lag: Gauge,
    records: Counter,
    failures: Counter,
}

impl Outlet {
    /// For the sink of this name.
    #[must_use]
    pub fn new(name: &str, sink: Box<dyn Sink>, store: Arc<dyn Store>, sealer: &Sealer) -> Self {
        let label = || name.to_owned();
        Self {
            name: label(),
            sink,
            store,
            sealed: sealer.sealed(),
            told: 0,
            works: true,
            lag: metrics::gauge!("bailiwick_audit_sink_lag_records", "sink" => label()),
            records: metrics::counter!("bailiwick_audit_sink_records_total", "sink" => label()),
            failures: metrics::counter!("bailiwick_audit_sink_failures_total", "sink" => label()),
        }
    }

    /// Sends until the end, and then what is left, within some seconds.
    pub async fn run(mut self, _: System, end: CancellationToken) {
        self.failures.increment(0);
        let name = self.name.clone();
        let late = async {
            end.cancelled().await;
            sleep(FLUSH_MAX).await;
        };
        tokio::select! {
            biased;
            () = self.rounds(&end) => {}
            () = late => tracing::warn!(
                sink = name,
                "the audit was not sent whole before the end; the next start goes on there"
            ),
        }
    }

    async fn rounds(&mut self, end: &CancellationToken) {
        let (mut feed, mut waiting, mut pause) = (None, Vec::new(), PAUSE_MIN);
        loop {
            let last = end.is_cancelled();
            match self.round(&mut feed, &mut waiting).await {
                Ok(true) => pause = PAUSE_MIN,
                Ok(false) if last => return,
                Ok(false) => {
                    // Something new or the end: both mean to look again. The
                    // sealer itself is there until this loop has ended.
                    tokio::select! {
                        _ = self.sealed.changed() => {}
                        () = end.cancelled() => {}
                    }
                }
                Err(stuck) => {
                    self.failed(&stuck);
                    if last {
                        return;
                    }
                    self.wait(jittered(pause), end).await;
                    pause = pause.saturating_mul(2).min(PAUSE_MAX);
                }
            }
            self.show_lag();
        }
    }

    /// Whether anything was sent; what could not be is kept for the next one.
    async fn round(
        &mut self,
        feed: &mut Option<Feed>,
        waiting: &mut Vec<Sealed>,
    ) -> Result<bool, Stuck> {
        let source = match feed {
            Some(feed) => feed,
            None => {
                let told = self.store.audit_sink(&self.name).await?;
                self.told = told.unwrap_or_default();
                feed.insert(Feed::open(Arc::clone(&self.store), told, &self.name).await?)
            }
        };
        if waiting.is_empty() {
            match source.batch().await {
                Ok(Some(batch)) => *waiting = batch,
                // Records were let go: the chains go on elsewhere.
                Ok(None) => {
                    *feed = None;
                    return Ok(true);
                }
                Err(stuck) => {
                    *feed = None;
                    return Err(stuck);
                }
            }
        }
        let Some(seq) = waiting.last().map(|last| last.seq) else { return Ok(false) };
        self.send(waiting).await?;
        self.store.told_audit_sink(&self.name, seq).await?;
        self.told = seq;
        self.records.increment(u64::try_from(waiting.len()).unwrap_or(u64::MAX));
        waiting.clear();
        if !self.works {
            self.works = true;
            tracing::info!(sink = self.name, "the audit is sent again");
        }
        Ok(true)
    }

    /// The figure goes on while it takes its time.
    async fn send(&mut self, records: &[Sealed]) -> Result<(), Unsent> {
        let mut sealed = self.sealed.clone();
        let lag = (self.lag.clone(), self.told);
        let mut sending = self.sink.send(records);
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => return sent,
                seen = sealed.changed() => {
                    if seen.is_err() {
                        return sending.await;
                    }
                    show_lag(&lag.0, *sealed.borrow(), lag.1);
                }
            }
        }
    }

    fn failed(&mut self, stuck: &Stuck) {
        self.failures.increment(1);
        if self.works {
            self.works = false;
            tracing::warn!(sink = self.name, error = %stuck, "the audit cannot be sent; it is tried again");
        } else {
            tracing::debug!(sink = self.name, error = %stuck, "the audit cannot be sent");
        }
    }

    /// Until the time is up or the end; the figure goes on meanwhile.
    async fn wait(&mut self, pause: Duration, end: &CancellationToken) {
        let mut up = std::pin::pin!(sleep(pause));
        loop {
            tokio::select! {
                biased;
                () = &mut up => return,
                () = end.cancelled() => return,
                seen = self.sealed.changed() => {
                    if seen.is_err() {
                        return;
                    }
                    self.show_lag();
                }
            }
        }
    }

    fn show_lag(&self) {
        show_lag(&self.lag, *self.sealed.borrow(), self.told);
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("name", &self.name).finish_non_exhaustive()
    }
}

fn show_lag(figure: &Gauge, sealed: i64, told: i64) {
    // Behind what is sealed there may be a checkpoint that was sent.
    let lag = sealed.saturating_sub(told).max(0);
    figure.set(f64::from(u32::try_from(lag).unwrap_or(u32::MAX)));
}

/// Between half of a pause and all of it, so that sinks do not come together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.0))
}

#[cfg(test)]
mod tests;
