//! A worker process's own listeners: the stack of the server, with the table,
//! the routes and the services of a worker (TK-03).
//!
//! Not here: what the worker does (`worker`).

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use prost_reflect::DescriptorPool;
use serde_json::Value;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Error, SystemClock,
    jwt_keys::JwtKeys,
    listen::Listener,
    observe::Observed,
    origins,
    pages::Pages,
    room,
    stack::Stack,
    started, telemetry, tidy,
    tls::{self, Tls},
};
use crate::{
    access::{Gate, Table},
    authn::Authenticator,
    config::{Mode, Settings},
    domain::Clock,
    gateway::{Gateway, Routes, openapi},
    grpc::{self, KnownTemplates, Phase, Readiness, Watched, WorkerParts},
    pb,
};

/// Where gRPC listens by default (TK-65).
pub const GRPC_LISTEN: &str = "127.0.0.1:9191";
/// Where REST listens by default (TK-03).
pub const HTTP_LISTEN: &str = "127.0.0.1:8081";

/// What the listeners of a worker are made of.
#[derive(Debug)]
pub struct Setup<'s> {
    /// Who may call, with which limits, and where it listens.
    pub settings: &'s Settings,
    /// Whether gRPC's address was asked for: if not, a free port does as well.
    pub grpc_given: bool,
    /// The same of REST's.
    pub http_given: bool,
    /// The worker's own settings, as `GetWorkerConfig` shows them.
    pub shown: Value,
    /// What the worker's readiness follows from.
    pub watched: Arc<dyn Watched>,
    /// The templates that it knows.
    pub templates: Arc<dyn KnownTemplates>,
    /// When the worker takes no more work.
    pub drain: CancellationToken,
}

/// The listeners of a worker.
#[derive(Debug)]
pub struct Listening {
    shutdown: CancellationToken,
    listeners: TaskTracker,
    loops: TaskTracker,
    grace: Duration,
}

/// Binds the ports and serves.
pub async fn start(setup: Setup<'_>) -> Result<Listening, Error> {
    let Setup { settings, grpc_given, http_given, shown, watched, templates, drain } = setup;
    let metrics = telemetry::metrics()?;
    let pool = DescriptorPool::decode(pb::WORKER_FILE_DESCRIPTOR_SET)?;
    let table = Table::from_pool(&pool, &settings.auth.extra_permissions).map_err(Error::Table)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let authenticator = Authenticator::new(&settings.auth)?;
    let rings = authenticator.rings();
    let gate = Gate::new(authenticator, None, &settings.limits.rates, Arc::clone(&clock), None);
    let tls = Tls::load(settings.server.tls.as_ref())?;
    let grpc_port = bind("gRPC", settings.server.grpc_listen, grpc_given).await?;
    let http_port = bind("REST", settings.server.http_listen, http_given).await?;
    let (grpc, http) = (grpc_port.address(), http_port.address());

    let shutdown = CancellationToken::new();
    let readiness = Readiness::of_worker(watched).watching(JwtKeys::of(&rings, &clock));
    let limits = &settings.limits;
    let services = grpc::worker_routes(WorkerParts {
        readiness: readiness.clone(),
        templates,
        body_bytes: limits.body_bytes,
        config: shown_config(settings, shown, [grpc, http]),
        started: started(),
    })?;
    let stack = Arc::new(Stack {
        table: Arc::new(table),
        gate,
        origins: origins(settings),
        trusted_proxies: limits.trusted_proxies.clone(),
        routes: Routes::from_pool(&pool)?,
        gateway: Gateway::new(&pool, limits.into())?,
        calls: Observed::new(services, room(limits, &shutdown)),
        pages: Pages::new(metrics.clone(), &openapi::document(&pool)?),
    });
    let loops = TaskTracker::new();
    loops.spawn(tidy(metrics, shutdown.clone()));
    loops.spawn(tls::watch(tls.clone(), shutdown.clone()));
    let ports = [grpc_port, http_port].map(|port| port.secured(tls.clone()));
    let listeners = super::listen(ports, &stack, limits, &shutdown);
    super::become_ready(rings, &clock, &readiness, &loops, &shutdown).await;
    loops.spawn(draining(readiness, drain, shutdown.clone()));
    loops.close();
    let auth = if matches!(settings.auth.mode, Mode::Off) { "off" } else { "on" };
    tracing::info!(%grpc, %http, auth, tls = tls.is_some(), "the worker's own listeners serve");
    Ok(Listening { shutdown, listeners, loops, grace: settings.server.shutdown_grace })
}

/// An address that nobody asked for is no reason not to start.
async fn bind(what: &'static str, address: SocketAddr, given: bool) -> Result<Listener, Error> {
    match Listener::bind(address).await {
        Err(error) if !given && error.kind() == io::ErrorKind::AddrInUse => {
            let listener = super::bind(what, (Ipv4Addr::LOCALHOST, 0).into()).await?;
            tracing::info!(
                taken = %address,
                instead = %listener.address(),
                "the usual {what} port of a worker is taken; it takes a free one"
            );
            Ok(listener)
        }
        bound => bound.map_err(|source| Error::Bind { what, address, source }),
    }
}

/// What is in force in a worker, when the settings show it.
fn shown_config(settings: &Settings, own: Value, at: [SocketAddr; 2]) -> Option<Arc<str>> {
    if !settings.server.config_endpoint_enabled {
        return None;
    }
    let mut shown = settings.redacted();
    let [grpc, http] = at.map(|address| Value::from(address.to_string()));
    if let Some(tables) = shown.as_object_mut() {
        // The server's alone: a worker stores nothing, and has flags for logs.
        tables.remove("storage");
        tables.remove("telemetry");
        tables.insert("worker".to_owned(), own);
        if let Some(server) = tables.get_mut("server").and_then(Value::as_object_mut) {
            server.insert("grpc_listen".to_owned(), grpc);
            server.insert("http_listen".to_owned(), http);
        }
    }
    Some(shown.to_string().into())
}

async fn draining(readiness: Readiness, drain: CancellationToken, shutdown: CancellationToken) {
    tokio::select! {
        () = drain.cancelled() => readiness.set(Phase::Draining),
        () = shutdown.cancelled() => {}
    }
}

impl Listening {
    /// Goes down, after the worker itself: takes no new connection, ends
    /// streams and lets calls finish within the grace or until the cut.
    pub async fn stop(self, cut: CancellationToken) {
        self.shutdown.cancel();
        self.listeners.close();
        let drained = tokio::time::timeout(self.grace, self.listeners.wait());
        tokio::select! {
            drained = drained => if drained.is_err() {
                tracing::warn!("some calls did not finish within the grace; they end now");
            },
            () = cut.cancelled() => return,
        }
        self.loops.wait().await;
    }
}
