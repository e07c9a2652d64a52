//! What leaves through the services, over the generated clients and in
//! process: the only part left out is the gate, whose callers are made here.

mod access;
mod elevation;
mod health;
mod leases;
mod status;
mod stream;
mod tasks;
mod transport;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use prost_reflect::DescriptorPool;
use tempfile::TempDir;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body, service::Routes};
use tonic_types::StatusExt as _;
use tower::{Service, ServiceExt as _};

use crate::{
    access::{Caller, Gate, Rule, Table, explain::Explainer},
    admin::{
        Admin, Tokens,
        elevation::{Bounds, Elevating},
    },
    audit::{Ledger, Sealer, key::AuditKey},
    authn::{Authenticator, Session},
    authz::System,
    config::{Auth, Mode, Rates, Roles, TokenStore},
    domain::{
        Clock, PermissionSet, RequestId, Scope, Timestamp,
        principal::{Grant, Identity, Principal, Source},
    },
    engine::{Engine, Floor, LeaseTerms, loops},
    grpc::{Parts, Phase, Readiness, Rendered, routes},
    pb::{
        self,
        v1::{
            self, step_service_client::StepServiceClient, task_service_client::TaskServiceClient,
            template_service_client::TemplateServiceClient,
            worker_service_client::WorkerServiceClient,
        },
    },
    schedule::{self, Scheduler},
    storage::{
        Desk, Store,
        sqlite::{self, Sqlite},
    },
};

/// The limit on messages in these tests.
const BODY_BYTES: usize = 64 * 1024;
/// How soon what must happen within a second has to have happened.
const SOON: Duration = Duration::from_secs(1);

/// Two steps, the second after the first.
const PAIR: &str = "\
name: pair
namespace_name: shop
version: 1.0.0
steps:
  - name: first
    handler: {callable: work, initialization: {n: 1}}
  - name: second
    handler: {callable: work, method: finish}
    dependencies: [first]
";

/// A clock that moves when a test says so.
#[derive(Debug)]
struct Hands(AtomicI64);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

/// The services over a store of their own.
struct House {
    services: Rendered<Routes>,
    hands: Arc<Hands>,
    readiness: Readiness,
    elevating: Arc<Elevating>,
    /// The tasks of streams.
    streams: TaskTracker,
    shutdown: CancellationToken,
    _folder: TempDir,
}

impl Drop for House {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn auth_off() -> Auth {
    Auth {
        mode: Mode::Off,
        extra_permissions: BTreeSet::new(),
        jwt_token_expiry: Duration::from_hours(1),
        token_store: TokenStore::Database,
        disable_unused_after_days: None,
    }
}

/// Use cases about credentials over nothing but the store.
fn admin(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Arc<Admin> {
    let authenticator = Authenticator::new(&auth_off()).unwrap();
    let keys = crate::signing::SigningKeys::none(Arc::clone(&store), Arc::clone(&clock));
    Arc::new(Admin {
        keys,
        store,
        tokens: Tokens::Database,
        issued: Arc::clone(authenticator.issued()),
        recalls: Arc::clone(authenticator.recalls()),
        configured: Vec::new(),
        foreign: BTreeSet::new(),
        issuers: std::collections::BTreeMap::new(),
        api_keys_enabled: true,
        auth_on: false,
        roles: std::collections::BTreeMap::new(),
        clock,
        unused_after_days: None,
        order: tokio::sync::Mutex::default(),
    })
}

/// Explains what nobody decides.
fn explainer(clock: &Arc<dyn Clock>, table: Table) -> Explainer {
    let authenticator = Authenticator::new(&auth_off()).unwrap();
    let clock = Arc::clone(clock);
    let gate = Gate::new(authenticator, None, &Rates::default(), clock, None);
    Explainer::new(gate, Arc::new(table), Roles::default())
}

#[derive(Debug)]
struct NoStanding;

impl crate::authz::Standing for NoStanding {
    fn standing(
        &self,
        _: &crate::domain::principal::GrantRef,
        _: Timestamp,
    ) -> Option<Arc<Principal>> {
        None
    }
}

async fn scheduler(
    store: Arc<dyn Store>,
    engine: &Arc<Engine>,
    clock: Arc<dyn Clock>,
) -> Arc<Scheduler> {
    let settings = schedule::Settings {
        runners: Vec::new(),
        max_concurrent_runs: 1,
        jwt_grant_hours: 0,
        rule_id_prefixes: vec!["rule.".to_owned()],
    };
    let tools = schedule::Tools::default();
    let (engine, standing) = (Arc::clone(engine), Arc::new(NoStanding));
    Scheduler::open(store, engine, standing, clock, settings, tools).await.unwrap()
}

impl House {
    async fn new() -> Self {
        Self::with_config(None).await
    }

    async fn with_config(config: Option<&str>) -> Self {
        let hands = Arc::new(Hands(AtomicI64::new(1_700_000_000_000_000)));
        let floor = Floor::new();
        let clock: Arc<dyn Clock> = Arc::<Hands>::clone(&hands);
        let folder = tempfile::tempdir().unwrap();
        let settings = sqlite::Settings::new(folder.path().join("bailiwick.db"));
        let desk: Arc<dyn Desk> = Arc::<Floor>::clone(&floor);
        let store = Sqlite::open(settings, desk, Arc::clone(&clock)).await.unwrap();
        let admin = admin(Arc::<Sqlite>::clone(&store), Arc::clone(&clock));
        let scheduling: Arc<dyn Store> = Arc::<Sqlite>::clone(&store);
        let key = AuditKey::from_seed(&[1; 32]).unwrap();
        let sealer = Sealer::open(Arc::clone(&scheduling), Arc::new(key), Arc::clone(&clock));
        let sealer = sealer.await.unwrap();
        let ledger = Ledger::new(Arc::clone(&scheduling), sealer, Arc::clone(&clock));
        let engine = Engine::new(store, floor, Arc::clone(&clock), LeaseTerms::default());
        let rates = Rates::default();
        let authenticator = Authenticator::new(&auth_off()).unwrap();
        let gate = Gate::new(authenticator, None, &rates, Arc::clone(&clock), None);
        let elevating = Elevating::open(
            Arc::clone(&scheduling),
            Arc::default(),
            Arc::clone(&admin.issued),
            Arc::clone(&clock),
            Bounds { longest: Duration::from_hours(1), issuers: std::collections::BTreeMap::new() },
        );
        let elevating = elevating.await.unwrap();
        let scheduler = scheduler(scheduling, &engine, Arc::clone(&clock)).await;
        let (streams, shutdown) = (TaskTracker::new(), CancellationToken::new());
        TaskTracker::new().spawn(loops::run(
            Arc::clone(&engine),
            System::permit(),
            shutdown.clone(),
        ));
        let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
        let declared = BTreeSet::from([Arc::from("bundles:read")]);
        let table = Table::from_pool(&pool, &declared).unwrap();
        let opens = table.iter().filter_map(|method| match method.rule {
            Rule::Permission { permission, .. } => Some((permission, method.full_name.to_string())),
            Rule::Public(_) | Rule::Authenticated(_) | Rule::Root | Rule::Node => None,
        });
        let readiness = Readiness::new(Arc::clone(&engine), Arc::clone(&admin));
        readiness.set(Phase::Serving);
        let services = routes(Parts {
            engine,
            scheduler,
            admin,
            ledger: Some(Arc::new(ledger)),
            tokens: None,
            explainer: explainer(&clock, table.clone()),
            readiness: readiness.clone(),
            streams: streams.clone(),
            body_bytes: BODY_BYTES,
            config: config.map(Into::into),
            declared,
            gate,
            elevating: Arc::clone(&elevating),
            opens: opens.collect(),
            started: tokio::time::Instant::now().into_std(),
        })
        .unwrap();
        Self { services, hands, readiness, elevating, streams, shutdown, _folder: folder }
    }

    /// With [`PAIR`] registered.
    async fn with_pair() -> Self {
        let house = Self::new().await;
        house.register(PAIR).await.unwrap();
        house
    }

    /// A caller with these permissions in these namespaces, and what revokes
    /// its credential.
    fn caller(&self, permissions: &[&str], namespaces: &[&str]) -> (Caller, CancellationToken) {
        self.caller_named("alice", permissions, namespaces)
    }

    fn caller_named(
        &self,
        subject: &str,
        permissions: &[&str],
        namespaces: &[&str],
    ) -> (Caller, CancellationToken) {
        let mut set = PermissionSet::empty();
        let declared = BTreeSet::from([Arc::from("bundles:read")]);
        for name in permissions {
            assert!(set.add(name, &declared), "{name}");
        }
        let grant = Grant { permissions: set, scope: Scope::parse(namespaces).unwrap() };
        let principal = Principal {
            identity: Identity {
                source: Source::Config,
                issuer: "".into(),
                subject: subject.into(),
            },
            grants: vec![grant],
            ..Principal::auth_off()
        };
        let revoked = CancellationToken::new();
        let session = Session::new(Arc::new(principal), revoked.clone());
        let clock: Arc<dyn Clock> = Arc::<Hands>::clone(&self.hands);
        let request = RequestId::from_random([7; 16]);
        (Caller::in_test(Arc::new(session), request, clock), revoked)
    }

    /// Everything everywhere.
    fn root(&self) -> Caller {
        self.caller(&["*"], &["*"]).0
    }

    /// The services as the gate would call them for this caller.
    fn through(
        &self,
        caller: Option<Caller>,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static {
        self.services.clone().map_request(move |mut request: Request<Body>| {
            if let Some(caller) = &caller {
                request.extensions_mut().insert(caller.clone());
            }
            request
        })
    }

    async fn register(&self, definition: &str) -> Result<v1::RegisterTemplateResponse, Status> {
        let request = v1::RegisterTemplateRequest {
            namespace: "shop".to_owned(),
            definition: definition.to_owned(),
        };
        let mut templates = TemplateServiceClient::new(self.through(Some(self.root())));
        templates.register_template(request).await.map(tonic::Response::into_inner)
    }

    /// A task of [`PAIR`].
    async fn create(&self) -> v1::Task {
        let request = v1::CreateTaskRequest {
            namespace: "shop".to_owned(),
            name: "pair".to_owned(),
            context: r#"{"order": 12345678901234567890.10}"#.to_owned(),
            ..v1::CreateTaskRequest::default()
        };
        let mut tasks = TaskServiceClient::new(self.through(Some(self.root())));
        tasks.create_task(request).await.unwrap().into_inner().task.unwrap()
    }

    async fn steps(&self, task: &str) -> Vec<v1::Step> {
        let request =
            v1::ListStepsRequest { task_uuid: task.to_owned(), ..v1::ListStepsRequest::default() };
        let mut steps = StepServiceClient::new(self.through(Some(self.root())));
        steps.list_steps(request).await.unwrap().into_inner().steps
    }

    async fn lease(&self, caller: Caller, wait_ms: u32) -> Result<Vec<v1::Lease>, Status> {
        let request = v1::LeaseStepsRequest {
            namespace: "shop".to_owned(),
            handlers: vec!["work".to_owned()],
            max_leases: 1,
            wait_ms,
            worker: None,
        };
        let mut workers = WorkerServiceClient::new(self.through(Some(caller)));
        workers.lease_steps(request).await.map(|reply| reply.into_inner().leases)
    }
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}
