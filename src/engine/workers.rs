//! Workers: make them known, list them.
//!
//! Not here: the work itself (`work`).

use std::sync::Arc;

use tracing::instrument;

use super::{Engine, Error, PageRequest, Paged, fields, page::Query};
use crate::{
    authz::Claim,
    domain::{
        Area,
        permission::right::{NodesRead, WorkLease},
    },
    storage::WorkerRecord,
};

/// What a worker says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Its name, unique in the area for one principal.
    pub name: String,
    /// The handlers that it offers.
    pub handlers: Vec<String>,
    /// Its program's version, in its own words.
    pub version: Option<String>,
}

/// A worker as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// As it is kept.
    pub record: WorkerRecord,
    /// Whether a session of it is open now.
    pub connected: bool,
}

/// Makes a worker known or says that it is still there.
#[instrument(name = "engine.workers.register", skip_all, fields(area = %area))]
pub async fn register(
    engine: &Engine,
    claim: &Claim<WorkLease>,
    area: Area,
    info: WorkerInfo,
) -> Result<Worker, Error> {
    let record = record(engine, claim, area, info)?;
    let record = engine.store.register_worker(record, Some(&claim.stamp())).await?;
    let connected = engine.floor.is_connected(&record);
    Ok(Worker { record, connected })
}

/// Lists workers, the ones seen last first.
#[instrument(name = "engine.workers.list", skip_all)]
pub async fn list(
    engine: &Engine,
    claim: &Claim<NodesRead>,
    area: Option<&Area>,
    request: &PageRequest,
) -> Result<Paged<Worker>, Error> {
    let shown = area.map(ToString::to_string);
    let query = Query::new("workers", claim.identity()).with_option(shown.as_deref());
    let page = query.page(request)?;
    let Paged { items, next_token } =
        query.paged(engine.store.workers(claim.scope(), area, &page).await?);
    let items = items
        .into_iter()
        .map(|record| Worker { connected: engine.floor.is_connected(&record), record })
        .collect();
    Ok(Paged { items, next_token })
}

/// The record of a worker whose claim covers the whole area (SE-18).
pub(super) fn record(
    engine: &Engine,
    claim: &Claim<WorkLease>,
    area: Area,
    info: WorkerInfo,
) -> Result<WorkerRecord, Error> {
    covers(claim, &area)?;
    let WorkerInfo { name, mut handlers, version } = info;
    fields::name("name", &name)?;
    fields::handlers(&handlers)?;
    fields::label("version", version.as_deref().unwrap_or_default())?;
    handlers.sort_unstable();
    handlers.dedup();
    let now = engine.now();
    Ok(WorkerRecord {
        area,
        name,
        handlers,
        version,
        identity: claim.identity().clone(),
        registered_at: now,
        last_seen_at: now,
        leases: 0,
    })
}

/// The whole area lies in the claim's scope, or it reads as absent.
pub(super) fn covers(claim: &Claim<WorkLease>, area: &Area) -> Result<(), Error> {
    if claim.scope().contains_area(area) {
        Ok(())
    } else {
        Err(Error::NamespaceNotFound(area.to_string()))
    }
}

/// Handlers once each, shared.
pub(super) fn shared(handlers: &[String]) -> Arc<[Arc<str>]> {
    let mut handlers: Vec<Arc<str>> = handlers.iter().map(|name| name.as_str().into()).collect();
    handlers.sort_unstable();
    handlers.dedup();
    handlers.into()
}
