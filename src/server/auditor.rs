//! The audit in the server: its key, its journal and its sealer, and how it
//! does as a part of the process's health.

use std::{io, sync::Arc};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Error,
    audit_sinks::{self, Base},
    key_file,
};
use crate::{
    audit::{self, Inbox, Journal, Options, Retention, Sealer, key::AuditKey, sink::Outlet},
    authz::System,
    config,
    domain::Clock,
    grpc::{Health, Watched},
    storage::Store,
};

/// The part's name.
const PART: &str = "audit";

/// What records and seals; nothing where the audit is off.
pub(super) struct Auditor {
    /// Where decisions are recorded.
    pub(super) journal: Option<Journal>,
    /// What seals them.
    pub(super) sealer: Option<Arc<Sealer>>,
    inbox: Option<Inbox>,
    sinks: Vec<Outlet>,
    fail_closed: bool,
}

impl Auditor {
    /// With the key of the settings, which is made at first need.
    pub(super) async fn open(
        settings: &config::Audit,
        service: &str,
        store: &Arc<dyn Store>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let fail_closed = settings.fail_closed;
        if !settings.enabled {
            let (journal, sealer, inbox, sinks) = (None, None, None, Vec::new());
            return Ok(Self { journal, sealer, inbox, sinks, fail_closed });
        }
        let key = key(settings)?;
        let fingerprints = key.fingerprints().map_err(|error| key_error(settings, error))?;
        let options = Options { fail_closed, reads: settings.record_reads };
        let (journal, inbox) = Journal::new(options, fingerprints);
        let sealer = Sealer::open(Arc::clone(store), Arc::new(key), Arc::clone(clock)).await;
        let sealer = sealer.map_err(Error::Audit)?;
        let sinks =
            audit_sinks::open(&settings.sinks, &Base { store, sealer: &sealer, clock, service })?;
        let (journal, sealer, inbox) = (Some(journal), Some(sealer), Some(inbox));
        Ok(Self { journal, sealer, inbox, sinks, fail_closed })
    }

    /// Starts to keep and to seal.
    pub(super) fn start(&mut self, store: &Arc<dyn Store>, clock: &Arc<dyn Clock>) -> Keeping {
        let keeping = Keeping::default();
        if let Some(inbox) = self.inbox.take() {
            let (store, clock) = (Arc::clone(store), Arc::clone(clock));
            let end = keeping.calls.clone();
            keeping.journal.spawn(audit::run(inbox, store, clock, System::permit(), end));
        }
        if let Some(sealer) = &self.sealer {
            let run = Arc::clone(sealer).run(System::permit(), keeping.records.clone());
            keeping.sealer.spawn(run);
        }
        for sink in self.sinks.drain(..) {
            keeping.sinks.spawn(sink.run(System::permit(), keeping.seals.clone()));
        }
        keeping
    }

    /// Keeps within the bounds of the settings until the shutdown.
    pub(super) fn retain(
        settings: &config::Audit,
        store: &Arc<dyn Store>,
        clock: &Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let retention = Retention {
            days: settings.retention_days,
            mib: settings.retention_mb,
            min_days: settings.retention_min_days,
            sinks: settings.sinks.iter().map(|sink| sink.name.clone()).collect(),
            sinks_wait_days: settings.sinks_wait_days,
        };
        let (store, clock) = (Arc::clone(store), Arc::clone(clock));
        audit::retain(retention, store, clock, System::permit(), shutdown)
    }

    /// How it does, for the readiness.
    pub(super) fn watched(&self) -> Arc<dyn Watched> {
        Arc::new(Part { sealer: self.sealer.clone(), fail_closed: self.fail_closed })
    }
}

/// What keeps, seals and sends until nothing comes any more: not before each
/// call that was answered has its record, and each record its seal.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    calls: CancellationToken,
    journal: TaskTracker,
    records: CancellationToken,
    sealer: TaskTracker,
    seals: CancellationToken,
    sinks: TaskTracker,
}

impl Keeping {
    /// Ends it, once no call is under way.
    pub(super) async fn finish(self) {
        self.calls.cancel();
        self.journal.close();
        self.journal.wait().await;
        self.records.cancel();
        self.sealer.close();
        self.sealer.wait().await;
        self.seals.cancel();
        self.sinks.close();
        self.sinks.wait().await;
    }
}

fn key(settings: &config::Audit) -> Result<AuditKey, Error> {
    let make = || AuditKey::generate().map_err(io::Error::other);
    let bytes = key_file::read_or_make(&settings.key_file, make)
        .map_err(|error| key_error(settings, error))?;
    AuditKey::from_pkcs8(&bytes).map_err(|error| key_error(settings, error))
}

fn key_error(
    settings: &config::Audit,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::AuditKey { path: settings.key_file.clone(), source: Box::new(error) }
}

#[derive(Debug)]
struct Part {
    sealer: Option<Arc<Sealer>>,
    fail_closed: bool,
}

impl Watched for Part {
    fn health(&self) -> Vec<(&'static str, Health)> {
        let Some(sealer) = &self.sealer else { return Vec::new() };
        let fault = if !sealer.is_intact() {
            "what was sealed before this start is not as it was; see the log"
        } else if !sealer.works() {
            "records cannot be sealed; see the log"
        } else {
            return vec![(PART, Health::Healthy("every record is kept and sealed"))];
        };
        let bad = if self.fail_closed { Health::Unhealthy } else { Health::Degraded };
        vec![(PART, bad(fault))]
    }
}
