//! A worker: async handlers over one stream to the server, which it opens
//! again whenever it is lost. Not in here: shell commands as handlers.

mod handler;
mod link;
mod session;
mod step;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use self::{handler::Handler, link::Link, session::Session};
pub use self::{
    handler::{HandlerError, RESULT_BYTES_MAX},
    step::StepContext,
};
use crate::{client::Client, error::Error, pb::v1::WorkOpen};

/// The most steps that one worker runs at once.
pub const CONCURRENCY_MAX: usize = 1_000;
const CONCURRENCY: usize = 8;
const DRAIN_GRACE: Duration = Duration::from_secs(30);
const CANCEL_GRACE: Duration = Duration::from_secs(10);

type MakeSpan = Arc<dyn Fn(&StepContext) -> Span + Send + Sync>;
type OnConnection = Arc<dyn Fn(bool) + Send + Sync>;

struct Settings {
    handlers: HashMap<String, Box<dyn Handler>>,
    concurrency: usize,
    drain_grace: Duration,
    cancel_grace: Duration,
    make_span: MakeSpan,
    on_connection: OnConnection,
}

/// Runs handlers for the steps of a namespace.
///
/// ```no_run
/// # async fn example() -> Result<(), bailiwick_client::Error> {
/// use bailiwick_client::{Auth, HandlerError, StepContext, Worker, connect_with_auth};
/// use serde_json::{Value, json};
/// use tokio_util::sync::CancellationToken;
///
/// async fn reserve_stock(step: StepContext) -> Result<Value, HandlerError> {
///     let order: Value = step.context()?;
///     let Some(sku) = order["sku"].as_str() else {
///         return Err(HandlerError::permanent("the order names no sku"));
///     };
///     Ok(json!({ "reserved": sku, "attempt": step.attempt() }))
/// }
///
/// let client = connect_with_auth("http://127.0.0.1:9190", Auth::Bearer("…".to_owned())).await?;
/// let shutdown = CancellationToken::new();
/// Worker::builder(client)
///     .namespace("shop")
///     .name("stock-1")
///     .handler("reserve_stock", reserve_stock)
///     .concurrency(16)
///     .build()?
///     .run(shutdown)
///     .await
/// # }
/// ```
#[must_use]
pub struct Worker {
    client: Client,
    open: WorkOpen,
    settings: Settings,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("client", &self.client)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// Begins a worker that talks through this client.
    pub fn builder(client: Client) -> WorkerBuilder {
        WorkerBuilder {
            client,
            open: WorkOpen {
                version: Some(env!("CARGO_PKG_VERSION").to_owned()),
                ..WorkOpen::default()
            },
            settings: Settings {
                handlers: HashMap::new(),
                concurrency: CONCURRENCY,
                drain_grace: DRAIN_GRACE,
                cancel_grace: CANCEL_GRACE,
                make_span: Arc::new(step_span),
                on_connection: Arc::new(|_| {}),
            },
            twice: None,
        }
    }

    /// Works until `shutdown`, then drains: no new steps, running ones end
    /// within the grace and their results are told. An error only when the
    /// server refuses the worker for good before it was ever let in; a server
    /// that is away is waited for.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        self.run_until(shutdown, CancellationToken::new()).await
    }

    /// As [`run`](Self::run); `cut` ends a drain at once, which drops running
    /// handlers and lets their leases run out.
    pub async fn run_until(
        self,
        shutdown: CancellationToken,
        cut: CancellationToken,
    ) -> Result<(), Error> {
        let link = Link::new(self.client, self.open);
        Box::pin(Session::new(self.settings, link).run(shutdown, cut)).await
    }
}

/// What a worker is made of, before it runs.
#[must_use]
pub struct WorkerBuilder {
    client: Client,
    open: WorkOpen,
    settings: Settings,
    /// The name of a handler that was given twice.
    twice: Option<String>,
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder")
            .field("client", &self.client)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl WorkerBuilder {
    /// The namespace whose steps it does; one that ends in a dot takes those
    /// below it.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.open.namespace = namespace.into();
        self
    }

    /// The worker's name, one for each process.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.open.name = name.into();
        self
    }

    /// The program's version, as `ListWorkers` shows it.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.open.version = Some(version.into());
        self
    }

    /// Adds a handler: an async function from the step to anything that
    /// becomes JSON. A panic in it is a failure that is tried again.
    pub fn handler<F, Work, T>(mut self, name: impl Into<String>, handler: F) -> Self
    where
        F: Fn(StepContext) -> Work + Send + Sync + 'static,
        Work: Future<Output = Result<T, HandlerError>> + Send + 'static,
        T: Serialize,
    {
        let name = name.into();
        if self.settings.handlers.insert(name.clone(), Box::new(handler)).is_some() {
            self.twice = Some(name);
        }
        self
    }

    /// How many steps run at once; 8 by default, at most 1,000.
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.settings.concurrency = concurrency;
        self
    }

    /// How long running steps may take after the shutdown; 30 s by default.
    pub fn drain_grace(mut self, grace: Duration) -> Self {
        self.settings.drain_grace = grace;
        self
    }

    /// How long a handler may go on after its token is cancelled, before it
    /// is dropped; 10 s by default.
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.settings.cancel_grace = grace;
        self
    }

    /// Makes the span that a handler runs in; by default `worker.step` with
    /// the ids of task, step and trace.
    pub fn span(mut self, make: impl Fn(&StepContext) -> Span + Send + Sync + 'static) -> Self {
        self.settings.make_span = Arc::new(make);
        self
    }

    /// Hears whether the stream to the server is open, whenever that changes;
    /// must not block.
    pub fn on_connection(mut self, hear: impl Fn(bool) + Send + Sync + 'static) -> Self {
        self.settings.on_connection = Arc::new(hear);
        self
    }

    /// Checks the settings.
    pub fn build(self) -> Result<Worker, Error> {
        let Self { client, mut open, settings, twice } = self;
        let fault = |text: String| Err(Error::Setting(text));
        if open.namespace.is_empty() {
            return fault("the worker needs a namespace".to_owned());
        }
        if open.name.is_empty() {
            return fault("the worker needs a name".to_owned());
        }
        if let Some(name) = twice {
            return fault(format!("the handler `{name}` was given twice"));
        }
        if settings.handlers.is_empty() {
            return fault("the worker needs at least one handler".to_owned());
        }
        if settings.handlers.keys().any(String::is_empty) {
            return fault("a handler needs a name".to_owned());
        }
        if !(1..=CONCURRENCY_MAX).contains(&settings.concurrency) {
            return fault(format!("the concurrency must be from 1 to {CONCURRENCY_MAX}"));
        }
        open.handlers = settings.handlers.keys().cloned().collect();
        open.handlers.sort();
        Ok(Worker { client, open, settings })
    }
}

fn step_span(step: &StepContext) -> Span {
    tracing::info_span!(
        "worker.step",
        task_uuid = step.task_uuid(),
        step_uuid = step.step_uuid(),
        handler = step.handler(),
        attempt = step.attempt(),
        trace_id = step.trace_id(),
    )
}
