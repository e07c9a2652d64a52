//! The hand-written baseline of REST: two axum routes over the same engine
//! calls behind the same gate, without gateway, descriptors and figures.

use std::{net::SocketAddr, path::Path, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, Path as InPath, State},
    response::{IntoResponse as _, Response},
    routing::{get, post},
    serve::ListenerExt as _,
};
use bailiwick::{
    access::{Caller, Gate, Kind, MethodRule, Refusal, Table},
    authn::{Authenticator, Evidence},
    authz::System,
    config::{Settings, Storage},
    domain::{Clock, RequestId, TaskId, Timestamp, task::Task},
    engine::{self, Engine, Floor, tasks},
    pb::{self, v1},
    server::SystemClock,
    storage::sqlite,
};
use http::{HeaderMap, StatusCode, header};
use prost_reflect::DescriptorPool;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result, Tried as _, wrong};

/// What the routes work with.
#[derive(Clone)]
struct House {
    engine: Arc<Engine>,
    gate: Gate,
    get: Arc<MethodRule>,
    create: Arc<MethodRule>,
}

/// Serves with the settings of a server until the process is ended.
pub(crate) async fn serve(config: &Path) -> Result {
    let settings = Settings::load(Some(config), std::iter::empty()).map_err(broken)?;
    let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).map_err(broken)?;
    let table = Table::from_pool(&pool, &settings.auth.extra_permissions)
        .map_err(|faults| wrong(format!("{faults:?}")))?;
    let rule = |path| table.get(path).cloned().ok_or_else(|| wrong(format!("no rule for {path}")));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let authenticator = Authenticator::new(&settings.auth).map_err(broken)?;
    let gate = Gate::new(authenticator, None, &settings.limits.rates, Arc::clone(&clock), None);
    let floor = Floor::new();
    let Storage::Sqlite(path) = &settings.storage;
    let sqlite = sqlite::Settings::new(path.clone());
    let terms = sqlite.terms;
    let desk = Arc::<Floor>::clone(&floor);
    let store = sqlite::Sqlite::open(sqlite, desk, Arc::clone(&clock)).await.map_err(broken)?;
    let engine = Engine::new(store, floor, clock, terms);
    let loops = engine::loops::run(Arc::clone(&engine), System::permit(), CancellationToken::new());
    tokio::spawn(loops);

    let house = House {
        engine,
        gate,
        get: rule("/bailiwick.v1.TaskService/GetTask")?,
        create: rule("/bailiwick.v1.TaskService/CreateTask")?,
    };
    let routes = Router::new()
        .route("/v1/tasks/{task_uuid}", get(get_task))
        .route("/v1/tasks", post(create_task))
        .with_state(house)
        .into_make_service_with_connect_info::<SocketAddr>();
    let listener = TcpListener::bind(settings.server.http_listen).await.tried("bind")?;
    let listener = listener.tap_io(|stream| {
        // Without it replies wait; the server sets it too.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, routes).await.tried("serve")
}

fn broken(error: impl std::fmt::Display) -> Error {
    wrong(error.to_string())
}

impl House {
    async fn admit(
        &self,
        rule: &MethodRule,
        headers: &HeaderMap,
        peer: SocketAddr,
    ) -> Result<Caller, Failure> {
        let id = RequestId::from_random(rand::random());
        let evidence = Evidence { headers, certificate: None, peer: Some(peer.ip()) };
        let caller = self.gate.enter(rule, evidence, id).await?;
        caller.ok_or_else(|| Failure(StatusCode::UNAUTHORIZED, "no caller".to_owned()))
    }
}

async fn get_task(
    State(house): State<House>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    InPath(task_uuid): InPath<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let caller = house.admit(&house.get, &headers, peer).await?;
    let request = v1::GetTaskRequest { task_uuid };
    let claim = caller.claim(&request)?;
    let id = TaskId::parse(&request.task_uuid)
        .ok_or_else(|| Failure(StatusCode::NOT_FOUND, "task not found".to_owned()))?;
    let task = tasks::get(&house.engine, &claim, id).await?;
    json(StatusCode::OK, &task)
}

/// What a POST takes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTask<'a> {
    namespace: String,
    name: String,
    version: Option<String>,
    #[serde(borrow)]
    context: &'a RawValue,
    #[serde(default)]
    priority: i32,
}

async fn create_task(
    State(house): State<House>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Failure> {
    let caller = house.admit(&house.create, &headers, peer).await?;
    let new: NewTask<'_> = serde_json::from_slice(&body)
        .map_err(|error| Failure(StatusCode::BAD_REQUEST, error.to_string()))?;
    let named = v1::CreateTaskRequest { namespace: new.namespace, ..Default::default() };
    let permit = caller.permit(&named)?;
    let task = tasks::NewTask {
        name: new.name,
        version: new.version,
        context: new.context.get().to_owned(),
        priority: new.priority,
        ..tasks::NewTask::default()
    };
    let task = tasks::create(&house.engine, &permit, task).await?;
    json(StatusCode::CREATED, &task)
}

/// A call that failed; the load client takes none for done.
struct Failure(StatusCode, String);

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.kind {
            Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::NotFound | Kind::UnknownMethod => StatusCode::NOT_FOUND,
            Kind::Invalid | Kind::Conflict | Kind::Precondition => StatusCode::BAD_REQUEST,
            Kind::TooMany | Kind::Unavailable | Kind::Deadline => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, refusal.message)
    }
}

impl From<engine::Error> for Failure {
    fn from(error: engine::Error) -> Self {
        let status = if matches!(error, engine::Error::TaskNotFound(_)) {
            StatusCode::NOT_FOUND
        } else if matches!(error, engine::Error::Storage(_)) {
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            StatusCode::BAD_REQUEST
        };
        Self(status, error.to_string())
    }
}

impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// A task as the gateway shows it.
#[derive(Serialize)]
struct View<'a> {
    task_uuid: String,
    namespace: &'a str,
    name: &'a str,
    version: &'a str,
    state: &'static str,
    priority: i32,
    tags: &'a [String],
    created_by: &'a str,
    created_at: String,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<String>,
    steps: Steps,
}

#[derive(Serialize)]
struct Steps {
    total: u32,
    pending: u32,
    ready: u32,
    in_progress: u32,
    waiting_for_retry: u32,
    complete: u32,
    error: u32,
    cancelled: u32,
    resolved_manually: u32,
}

fn json(status: StatusCode, task: &Task) -> Result<Response, Failure> {
    let counts = v1::StepCounts::from(&task.core.counts);
    let view = View {
        task_uuid: task.core.id.to_string(),
        namespace: task.namespace.as_str(),
        name: &task.name,
        version: &task.version,
        state: task.core.state.as_str(),
        priority: task.priority,
        tags: &task.labels.tags,
        created_by: &task.created_by.subject,
        created_at: time(task.created_at),
        updated_at: time(task.updated_at),
        completed_at: task.completed_at.map(time),
        steps: Steps {
            total: counts.total,
            pending: counts.pending,
            ready: counts.ready,
            in_progress: counts.in_progress,
            waiting_for_retry: counts.waiting_for_retry,
            complete: counts.complete,
            error: counts.error,
            cancelled: counts.cancelled,
            resolved_manually: counts.resolved_manually,
        },
    };
    let body = serde_json::to_vec(&view)
        .map_err(|error| Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok((status, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// As RFC 3339 has it.
fn time(at: Timestamp) -> String {
    let (seconds, micros) = (at.micros().div_euclid(1_000_000), at.micros().rem_euclid(1_000_000));
    let nanos = i32::try_from(micros * 1_000).unwrap_or(0);
    prost_types::Timestamp { seconds, nanos }.to_string()
}
