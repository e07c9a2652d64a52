//! The line protocol: ztick's, with a few instructions of our own. One
//! connection is one caller; what it pipelines is answered in its order, and
//! a row of SET and REMOVE goes to disk as one.
//!
//! Not here: who may (`access`), what jobs and rules do (`schedule`), how a
//! connection comes about (`server`).

mod answer;
mod batch;
mod connection;
pub mod instruction;
mod reply;
mod shares;
pub mod words;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

pub use self::{
    connection::{Client, finish, serve},
    shares::{Share, Shares},
};
use crate::{access::Gate, domain::principal::Identity, schedule::Scheduler};

/// The longest line, without its end.
pub const LINE_BYTES_MAX: usize = 4096;
/// How long a client may take to authenticate, from its connection on.
pub const AUTH_TIMEOUT: Duration = Duration::from_secs(5);

/// What all connections have in common.
#[derive(Debug)]
pub struct Service {
    scheduler: Arc<Scheduler>,
    gate: Gate,
    settings: Settings,
    started: Instant,
    open: AtomicUsize,
    by_token: Arc<Shares<Identity>>,
}

/// How the protocol is spoken.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// After how much silence a connection is closed; none is never.
    pub idle: Option<Duration>,
    /// How many connections one token has.
    pub per_token: usize,
    /// How long a client may take to read the next part of an answer.
    pub write_timeout: Duration,
    /// Whether connections have TLS; for STAT.
    pub tls: bool,
    /// What keeps the jobs; for STAT.
    pub persistence: &'static str,
}

impl Service {
    /// Over a scheduler, behind a gate.
    #[must_use]
    pub fn new(scheduler: Arc<Scheduler>, gate: Gate, settings: Settings) -> Arc<Self> {
        let (started, open) = (Instant::now(), AtomicUsize::default());
        let by_token = Arc::new(Shares::new(usize::MAX, settings.per_token));
        Arc::new(Self { scheduler, gate, settings, started, open, by_token })
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// An open connection, counted for as long as it lives.
struct Counted<'a>(&'a Service);

impl<'a> Counted<'a> {
    fn new(service: &'a Service) -> Self {
        service.open.fetch_add(1, Ordering::Relaxed);
        Self(service)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
