//! The composition root: the only place which knows everything. Opens the
//! store, starts the engine, builds the stack of a call and binds the ports.

mod audit_sinks;
mod auditor;
mod clock;
mod core;
mod first_line;
mod jwt_keys;
mod key_file;
mod line;
mod listen;
mod observe;
mod origin;
mod pages;
mod peer;
mod scheduler;
mod spawn;
mod stack;
pub mod telemetry;
mod tls;
mod trace;
pub mod worker_api;

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use metrics_exporter_prometheus::PrometheusHandle;
use prost_reflect::DescriptorPool;
use thiserror::Error as ThisError;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    auditor::{Auditor, Keeping},
    core::Core,
    jwt_keys::JwtKeys,
    line::Port,
    listen::{Limits, Listener},
    observe::{Observed, Room},
    origin::Origins,
    pages::Pages,
    stack::Stack,
    tls::Tls,
};
pub use self::{clock::SystemClock, spawn::spawn, tls::Error as TlsError};
use crate::{
    access::{MethodRule, Rule, Table, explain::Explainer, table},
    admin,
    audit::Ledger,
    authn::{self, Authenticator, Ring},
    authz::System,
    config::{self, Mode, Settings},
    domain::{Clock, Permission},
    egress, engine,
    gateway::{self, Gateway, Routes, openapi},
    grpc::{self, Parts, Phase, Readiness, Watched},
    pb, schedule, signing,
    storage::{self, Store, sqlite},
};

/// How often the recorder of figures is tidied up.
const UPKEEP: Duration = Duration::from_secs(5);

/// How long the start waits for the keys of JWT issuers.
const KEYS_WAIT: Duration = Duration::from_secs(5);

/// Why a server does not start. Each says what to do.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The descriptors in the binary cannot be read.
    #[error("the descriptors cannot be read: {0}")]
    Descriptors(#[from] prost_reflect::DescriptorError),
    /// RPCs without a rule, or with a wrong one.
    #[error("the access table is refused:{}", list(.0))]
    Table(Vec<table::Fault>),
    /// REST routes that cannot be served.
    #[error("the REST routes are refused: {0}")]
    Routes(#[from] gateway::Error),
    /// A credential of the configuration cannot be used.
    #[error("the configuration is refused: {0}")]
    Authn(#[from] authn::Error),
    /// The store cannot be opened.
    #[error("{0}")]
    Storage(#[from] sqlite::OpenError),
    /// The credentials that were given out cannot be read.
    #[error("the credentials that were given out cannot be read: {0}")]
    Credentials(#[source] admin::Error),
    /// The keys that sign step tokens cannot be used.
    #[error("{0}")]
    Signing(#[from] signing::Error),
    /// The scheduler cannot take up its rules and jobs.
    #[error("the scheduler cannot take up its rules and jobs: {0}")]
    Schedule(#[from] schedule::Error),
    /// The authorities for outgoing connections cannot be read.
    #[error("the configuration is refused: `limits.egress_ca_path`: {0}")]
    Egress(#[from] egress::Error),
    /// Commands cannot run as the settings say.
    #[error("the configuration is refused: `scheduler.run_as`: commands cannot be run: {0}")]
    Commands(String),
    /// A port cannot be bound.
    #[error(
        "{what} cannot listen on {address}: {source}; choose another address or end what uses it"
    )]
    Bind {
        /// Which listener.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The reflection service cannot be built.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The files of TLS cannot be used.
    #[error("the configuration is refused: {0}")]
    Tls(#[from] TlsError),
    /// The key of the audit cannot be used.
    #[error(
        "the key of the audit, `{}`: {source}; `audit.key_file` says where it is",
        path.display()
    )]
    AuditKey {
        /// Where it is.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What the audit is sent to cannot be used.
    #[error("the configuration is refused: `audit.sinks`: `{name}`: {source}")]
    AuditSink {
        /// Which sink.
        name: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What was recorded before cannot be read.
    #[error("the audit cannot be taken up: {0}")]
    Audit(#[source] storage::Error),
    /// Telemetry cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
}

fn list(faults: &[table::Fault]) -> String {
    faults.iter().fold(String::new(), |mut text, fault| {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {fault}");
        text
    })
}

/// A server that runs.
#[derive(Debug)]
pub struct Running {
    grpc: SocketAddr,
    http: SocketAddr,
    line: Option<SocketAddr>,
    grace: Duration,
    shutdown: CancellationToken,
    listeners: TaskTracker,
    loops: TaskTracker,
    streams: TaskTracker,
    keeping: Keeping,
    store: Arc<dyn Store>,
    readiness: Readiness,
}

/// Starts a server: all of it is ready when this answers.
pub async fn start(settings: &Settings) -> Result<Running, Error> {
    settings.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let (started, metrics) = (started(), telemetry::metrics()?);
    let (pool, table) = descriptors(settings)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let authenticator = authenticator(settings)?;
    let rings = authenticator.rings();
    let routes = Routes::from_pool(&pool)?;
    let tls = Tls::load(settings.server.tls.as_ref())?;
    // Bound before the store is opened, so that a taken port changes nothing.
    let ports = own_ports(settings).await?;
    let line = line_port(settings).await?;

    let shutdown = CancellationToken::new();
    let own = ports.iter().map(Listener::address).chain(line.as_ref().map(Port::address));
    let mut core = core::core(settings, own.collect(), authenticator, &clock).await?;
    let readiness = readiness(&core, JwtKeys::of(&rings, &clock));
    let streams = TaskTracker::new();
    let services = grpc::routes(Parts {
        engine: Arc::clone(&core.engine),
        admin: Arc::clone(&core.admin),
        tokens: core.tokens.clone(),
        scheduler: Arc::clone(&core.scheduler),
        ledger: ledger(&core, &clock),
        explainer: Explainer::new(core.gate.clone(), Arc::clone(&table), settings.roles.clone()),
        readiness: readiness.clone(),
        streams: streams.clone(),
        body_bytes: settings.limits.body_bytes,
        config: shown_config(settings),
        declared: settings.auth.extra_permissions.clone(),
        gate: core.gate.clone(),
        elevating: Arc::clone(&core.elevating),
        opens: opens(&table),
        started,
    })?;
    let limits = &settings.limits;
    let stack = Arc::new(Stack {
        table,
        gate: core.gate.clone(),
        origins: origins(settings),
        trusted_proxies: limits.trusted_proxies.clone(),
        routes,
        gateway: Gateway::new(&pool, limits.into())?,
        calls: Observed::new(services, room(limits, &shutdown)),
        pages: pages(&pool, &metrics, settings, &core)?,
    });

    let loops = loops(&core, metrics, tls.clone(), &shutdown);
    let keeping = keep_audit(&mut core, settings, &clock, (&loops, &shutdown));
    let [grpc, http] = ports.each_ref().map(Listener::address);
    let ports = ports.map(|port| port.secured(tls.clone()));
    let listeners = listen(ports, &stack, limits, &shutdown);
    let line = line.map(|port| serve_lines(port, &core, &listeners, &loops, &shutdown));
    readiness.begun().await;
    become_ready(rings, &clock, &readiness, &loops, &shutdown).await;
    loops.close();
    say_serving(settings, (grpc, http, line), tls.is_some());
    Ok(Running {
        grpc,
        http,
        line,
        grace: settings.server.shutdown_grace,
        shutdown,
        listeners,
        loops,
        streams,
        keeping,
        store: core.store,
        readiness,
    })
}

fn say_serving(
    settings: &Settings,
    (grpc, http, line): (SocketAddr, SocketAddr, Option<SocketAddr>),
    tls: bool,
) {
    let auth = if matches!(settings.auth.mode, Mode::Off) { "off" } else { "on" };
    let (controller, version) = (line.map(tracing::field::display), env!("CARGO_PKG_VERSION"));
    tracing::info!(%grpc, %http, controller, auth, tls, version, "serving");
}

fn pages(
    pool: &DescriptorPool,
    metrics: &PrometheusHandle,
    settings: &Settings,
    core: &Core,
) -> Result<Pages, Error> {
    let pages = Pages::new(metrics.clone(), &openapi::document(pool)?);
    Ok(pages.with_discovery(settings.step_tokens.rights.issuer(), &core.keys))
}

/// Starts to keep and to seal records, and to let old ones go.
fn keep_audit(
    core: &mut Core,
    settings: &Settings,
    clock: &Arc<dyn Clock>,
    (loops, shutdown): (&TaskTracker, &CancellationToken),
) -> Keeping {
    loops.spawn(Auditor::retain(&settings.audit, &core.store, clock, shutdown.clone()));
    core.auditor.start(&core.store, clock)
}

/// What the RPCs look like, and who may call them.
fn descriptors(settings: &Settings) -> Result<(DescriptorPool, Arc<Table>), Error> {
    let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET)?;
    let table = Table::from_pool(&pool, &settings.auth.extra_permissions).map_err(Error::Table)?;
    Ok((pool, Arc::new(table)))
}

/// The audit, to be read; none where it is off.
fn ledger(core: &Core, clock: &Arc<dyn Clock>) -> Option<Arc<Ledger>> {
    let sealer = core.auditor.sealer.as_ref()?;
    let (store, sealer) = (Arc::clone(&core.store), Arc::clone(sealer));
    Some(Arc::new(Ledger::new(store, sealer, Arc::clone(clock))))
}

fn readiness(core: &Core, keys: Arc<dyn Watched>) -> Readiness {
    let scheduler = scheduler::Part(Arc::clone(&core.scheduler));
    Readiness::new(Arc::clone(&core.engine), Arc::clone(&core.admin))
        .watching(keys)
        .watching(core.auditor.watched())
        .watching(Arc::new(scheduler))
}

/// What runs until the shutdown.
fn loops(
    core: &Core,
    metrics: PrometheusHandle,
    tls: Option<Arc<Tls>>,
    shutdown: &CancellationToken,
) -> TaskTracker {
    let Core { engine, admin, elevating, scheduler, .. } = core;
    let (system, stop) = (System::permit, || shutdown.clone());
    let loops = TaskTracker::new();
    loops.spawn(engine::loops::run(Arc::clone(engine), system(), stop()));
    loops.spawn(Arc::clone(scheduler).run(system(), stop()));
    loops.spawn(admin::watch(Arc::clone(admin), system(), stop()));
    loops.spawn(Arc::clone(elevating).run(system(), stop()));
    loops.spawn(admin::note_uses(Arc::clone(admin), system(), stop()));
    loops.spawn(tidy(metrics, stop()));
    loops.spawn(tls::watch(tls, stop()));
    loops
}

/// With the tokens of the auth file, which guard jobs and rules everywhere.
fn authenticator(settings: &Settings) -> Result<Authenticator, Error> {
    let authenticator = Authenticator::new(&settings.auth)?;
    let tokens = settings.controller.as_ref().and_then(|line| line.tokens.as_deref());
    Ok(match tokens {
        Some(tokens) => authenticator.with_line_tokens(tokens, scheduler::commands(settings)),
        None => authenticator,
    })
}

/// The port of the line protocol, where it is spoken.
async fn line_port(settings: &Settings) -> Result<Option<Port>, Error> {
    let Some(controller) = &settings.controller else { return Ok(None) };
    let tls = Tls::load(controller.tls.as_ref())?;
    let address = controller.listen;
    let bound = Port::bind(controller, tls).await;
    bound.map(Some).map_err(|source| Error::Bind { what: "the line protocol", address, source })
}

fn serve_lines(
    port: Port,
    core: &Core,
    listeners: &TaskTracker,
    loops: &TaskTracker,
    shutdown: &CancellationToken,
) -> SocketAddr {
    loops.spawn(tls::watch(port.tls(), shutdown.clone()));
    let (address, service) = (port.address(), port.service(&core.scheduler, &core.gate));
    listeners.spawn(port.serve(service, listeners.clone(), shutdown.clone()));
    address
}

fn listen(
    ports: [Listener; 2],
    stack: &Arc<Stack>,
    limits: &config::Limits,
    shutdown: &CancellationToken,
) -> TaskTracker {
    let listeners = TaskTracker::new();
    for port in ports {
        let stack = Arc::clone(stack);
        listeners.spawn(port.serve(stack, limits.into(), listeners.clone(), shutdown.clone()));
    }
    listeners
}

impl From<&config::Limits> for Limits {
    fn from(limits: &config::Limits) -> Self {
        Self {
            connections: limits.connections,
            streams: limits.concurrent_streams,
            header_bytes: limits.header_bytes,
            header_timeout: limits.header_timeout,
        }
    }
}

impl From<&config::Limits> for gateway::Limits {
    fn from(limits: &config::Limits) -> Self {
        Self { body_bytes: limits.body_bytes, body_timeout: limits.body_timeout }
    }
}

fn room(limits: &config::Limits, shutdown: &CancellationToken) -> Room {
    let config::Limits { concurrent_calls, connections, request_timeout, .. } = *limits;
    Room::new(concurrent_calls, connections, request_timeout, shutdown.clone())
}

fn origins(settings: &Settings) -> Origins {
    Origins {
        auth_off: matches!(settings.auth.mode, Mode::Off),
        hosts: settings.server.allowed_hosts.clone(),
        pages: settings.server.allowed_origins.clone(),
    }
}

/// Starts to keep the keys of JWT issuers fresh and waits for the first ones.
async fn become_ready(
    rings: Vec<Arc<Ring>>,
    clock: &Arc<dyn Clock>,
    readiness: &Readiness,
    loops: &TaskTracker,
    shutdown: &CancellationToken,
) {
    for ring in &rings {
        loops.spawn(Arc::clone(ring).run(Arc::clone(clock), shutdown.clone()));
    }
    if tokio::time::timeout(KEYS_WAIT, all_ready(&rings)).await.is_ok() {
        readiness.set(Phase::Serving);
    } else {
        tracing::warn!("not ready: the keys of a JWT issuer are not there yet");
        loops.spawn(serve_when_ready(rings, readiness.clone(), shutdown.clone()));
    }
    readiness.report().await;
    loops.spawn(readiness.clone().run(shutdown.clone()));
}

async fn all_ready(rings: &[Arc<Ring>]) {
    for ring in rings {
        ring.ready().await;
    }
}

async fn serve_when_ready(
    rings: Vec<Arc<Ring>>,
    readiness: Readiness,
    shutdown: CancellationToken,
) {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = all_ready(&rings) => readiness.set(Phase::Serving),
    }
}

/// Keeps the recorder of figures small.
async fn tidy(metrics: PrometheusHandle, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        metrics.run_upkeep();
        // The time is up or the server goes down: both mean to look again.
        let _ = tokio::time::timeout(UPKEEP, shutdown.cancelled()).await;
    }
}

async fn own_ports(settings: &Settings) -> Result<[Listener; 2], Error> {
    let config::Server { grpc_listen, http_listen, .. } = settings.server;
    Ok([bind("gRPC", grpc_listen).await?, bind("REST", http_listen).await?])
}

async fn bind(what: &'static str, address: SocketAddr) -> Result<Listener, Error> {
    Listener::bind(address).await.map_err(|source| Error::Bind { what, address, source })
}

/// The redacted configuration, when the settings show it.
fn shown_config(settings: &Settings) -> Option<Arc<str>> {
    settings.server.config_endpoint_enabled.then(|| settings.redacted().to_string().into())
}

/// The RPCs that each permission opens.
fn opens(table: &Table) -> Vec<(Permission, String)> {
    let opened = |rule: &Arc<MethodRule>| match rule.rule {
        Rule::Permission { permission, .. } => Some((permission, rule.full_name.to_string())),
        Rule::Public(_) | Rule::Authenticated(_) | Rule::Root | Rule::Node => None,
    };
    table.iter().filter_map(opened).collect()
}

#[expect(clippy::disallowed_methods, reason = "when the process began, for its uptime")]
fn started() -> Instant {
    Instant::now()
}

impl Running {
    /// Where gRPC listens.
    #[must_use]
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// Where REST listens.
    #[must_use]
    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    /// Where the line protocol is spoken, if it is.
    #[must_use]
    pub fn line_address(&self) -> Option<SocketAddr> {
        self.line
    }

    /// Goes down: takes no new connection, ends streams, lets calls finish
    /// within the grace, then closes the store.
    pub async fn stop(self) {
        self.readiness.set(Phase::Draining);
        self.shutdown.cancel();
        self.listeners.close();
        self.streams.close();
        let drained = async {
            self.listeners.wait().await;
            self.streams.wait().await;
        };
        if tokio::time::timeout(self.grace, drained).await.is_err() {
            tracing::warn!("some calls did not finish within the grace; they end now");
        }
        self.loops.wait().await;
        self.keeping.finish().await;
        self.store.close().await;
        tracing::info!("stopped");
    }
}
