//! `bailiwick quickstart`: a secured server in a fresh folder, a worker, and
//! one real task from its creation to its result. Writes nothing outside of
//! its own folder.

mod handlers;

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, Permissions},
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use bailiwick_client::{Auth, Client, connect_with_auth};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    Error, Format, Result,
    auth::{write_keys, write_new},
    output,
    serve::until_told,
    step, task, view,
};
use crate::{
    authn::tokens::{self, Claims, KeyKind},
    config::Settings,
    domain::Clock as _,
    pb::v1 as pb,
    server::{self, Running, SystemClock, telemetry},
};

const TEMPLATE: &str = include_str!("order_fulfillment.yaml");
const CONTEXT: &str = r#"{"order_id": "o-1001", "items": [{"sku": "mug", "quantity": 2}]}"#;
const GRPC_PORT: u16 = 9190;
const HTTP_PORT: u16 = 8080;
/// How often free ports are looked for.
const PORT_TRIES: usize = 8;
/// How long the quickstart's own token lives (SE-21).
const TOKEN_SECONDS: i64 = 24 * 3600;

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  bailiwick quickstart            keeps serving until Ctrl-C\n  bailiwick quickstart --exit     ends with the task"
)]
pub(super) struct Args {
    /// End after the task
    #[arg(long)]
    exit: bool,
    /// The folder to make; a fresh one for temporary files by default
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// The folder's mode: what is in it is its owner's alone.
const FOLDER_MODE: u32 = 0o700;

/// What the quickstart has laid down.
struct Laid {
    folder: PathBuf,
    token: String,
}

impl Laid {
    fn token_file(&self) -> PathBuf {
        self.folder.join("token")
    }

    fn config(&self) -> PathBuf {
        self.folder.join("bailiwick.toml")
    }

    /// Writes the configuration, with ports that are free now.
    fn configure(&self) -> Result {
        write_new(&self.config(), &configuration(free(GRPC_PORT)?, free(HTTP_PORT)?), 0o600)
    }

    fn settings(&self) -> Result<Settings> {
        Settings::load(Some(&self.config()), std::iter::empty())
            .map_err(|error| Error::Failed(error.to_string()))
    }
}

#[derive(Serialize)]
struct Outcome {
    task: view::Task,
    results: BTreeMap<String, Option<view::Payload>>,
}

pub(super) async fn run(args: Args, format: Format) -> Result {
    let stop = until_told()?;
    let laid = lay_down(args.dir)?;
    let settings = laid.settings()?;
    let guard =
        telemetry::init(&settings.telemetry).map_err(|error| Error::Failed(error.to_string()))?;
    let running = start(&laid, settings).await?;
    note_ports(&running);
    say(format, &format!("A server with authentication on is up, in {}", laid.folder.display()))?;
    say(format, &format!("  gRPC  http://{}", running.grpc_address()))?;
    say(format, &format!("  REST  http://{}  (/docs shows the API)", running.http_address()))?;

    let done = with_server(&laid, &running, &args.exit, &stop, format).await;
    running.stop().await;
    guard.flush();
    if done.is_ok() && (args.exit || stop.is_cancelled()) {
        say(
            format,
            &format!(
                "\nThe server has stopped. Serve the same folder again with\n  {} -c {} serve",
                program(),
                laid.config().display()
            ),
        )?;
    }
    done
}

/// Starts the server. A port that was free a moment ago may be another's by
/// now: then others are taken.
async fn start(laid: &Laid, mut settings: Settings) -> Result<Running> {
    for _ in 1..PORT_TRIES {
        match server::start(&settings).await {
            Err(server::Error::Bind { source, .. }) if source.kind() == ErrorKind::AddrInUse => {}
            started => return started.map_err(|error| Error::Failed(error.to_string())),
        }
        laid.configure()?;
        settings = laid.settings()?;
    }
    server::start(&settings).await.map_err(|error| Error::Failed(error.to_string()))
}

/// Says which ports are not the usual ones.
fn note_ports(running: &Running) {
    for (usual, used) in [(GRPC_PORT, running.grpc_address()), (HTTP_PORT, running.http_address())]
    {
        if used.port() != usual {
            output::note(format!("port {usual} is taken; using {}", used.port()));
        }
    }
}

/// Prose is for people: with `--format json` standard output has the result
/// alone.
fn say(format: Format, text: &str) -> Result {
    match format {
        Format::Table => output::line(text),
        Format::Json => {
            output::note(text);
            Ok(())
        }
    }
}

async fn with_server(
    laid: &Laid,
    running: &Running,
    exit: &bool,
    stop: &CancellationToken,
    format: Format,
) -> Result {
    let url = format!("http://{}", running.grpc_address());
    let client = connect_with_auth(&url, Auth::Bearer(laid.token.clone())).await?;
    let drain = CancellationToken::new();
    let worker = server::spawn(handlers::worker(client.clone())?.run(drain.clone()));

    let shown = tokio::select! {
        shown = run_task(&client, format) => shown,
        () = stop.cancelled() => Ok(()),
    };
    if shown.is_ok() && !stop.is_cancelled() {
        say(format, &how_to_go_on(laid, running))?;
        if !exit {
            say(format, "\nServing until Ctrl-C.")?;
            stop.cancelled().await;
        }
    }
    drain.cancel();
    match worker.await {
        Ok(worked) => shown.and_then(|()| worked.map_err(Error::from)),
        Err(error) => Err(Error::Failed(format!("the worker broke: {error}"))),
    }
}

async fn run_task(client: &Client, format: Format) -> Result {
    let namespace = "shop".to_owned();
    let request = pb::RegisterTemplateRequest {
        namespace: namespace.clone(),
        definition: TEMPLATE.to_owned(),
    };
    client.templates().register_template(request).await?;
    say(format, "\nRegistered the template shop/order_fulfillment; running one order:\n")?;
    let request = pb::CreateTaskRequest {
        namespace,
        name: "order_fulfillment".to_owned(),
        context: CONTEXT.to_owned(),
        reason: Some("quickstart".to_owned()),
        ..pb::CreateTaskRequest::default()
    };
    let task = client.tasks().create_task(request).await?.into_inner().task.unwrap_or_default();
    let request = pb::WatchTaskRequest { task_uuid: task.task_uuid.clone(), after_seq: None };
    let mut events = client.tasks().watch_task(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        if format == Format::Table {
            task::show_event(&event.into())?;
        }
    }
    let outcome = outcome(client, task.task_uuid).await?;
    say(format, "\nThe result:")?;
    output::json(&outcome)?;
    match outcome.task.state {
        "complete" => Ok(()),
        state => Err(Error::Failed(format!("the task is {state}"))),
    }
}

async fn outcome(client: &Client, task_uuid: String) -> Result<Outcome> {
    let request = pb::GetTaskRequest { task_uuid: task_uuid.clone() };
    let task = client.tasks().get_task(request).await?.into_inner().task.unwrap_or_default();
    let steps = step::all(client, task_uuid).await?;
    let shown = |step: pb::Step| {
        let step: view::Step = step.into();
        (step.name, step.result)
    };
    Ok(Outcome { task: task.into(), results: steps.into_iter().map(shown).collect() })
}

/// Keys, a token, a configuration and the template, in a fresh folder.
fn lay_down(dir: Option<PathBuf>) -> Result<Laid> {
    let folder = fresh_folder(dir)?;
    let pair =
        tokens::generate(KeyKind::Ed25519).map_err(|error| Error::Failed(error.to_string()))?;
    write_keys(&folder.join("keys"), &pair)?;
    let now = SystemClock.now().seconds();
    let claims = Claims {
        sub: "quickstart".to_owned(),
        iss: "bailiwick-quickstart".to_owned(),
        aud: "bailiwick-quickstart".to_owned(),
        iat: now,
        exp: now + TOKEN_SECONDS,
        permissions: vec!["*".to_owned()],
        namespaces: Some(vec!["shop".to_owned()]),
        worker_namespaces: Vec::new(),
    };
    let token =
        tokens::sign(&pair.private, &claims).map_err(|error| Error::Failed(error.to_string()))?;
    let laid = Laid { folder, token };
    write_new(&laid.token_file(), &laid.token, 0o600)?;
    write_new(&laid.folder.join("order_fulfillment.yaml"), TEMPLATE, 0o644)?;
    laid.configure()?;
    Ok(laid)
}

fn fresh_folder(dir: Option<PathBuf>) -> Result<PathBuf> {
    let wrong = |path: &Path, error: std::io::Error| {
        Error::Usage(format!("{} cannot be made: {error}", path.display()))
    };
    match dir {
        Some(dir) => {
            let made = DirBuilder::new().mode(FOLDER_MODE).create(&dir);
            made.map_err(|error| wrong(&dir, error))?;
            std::path::absolute(&dir).map_err(|error| wrong(&dir, error))
        }
        None => {
            let made = tempfile::Builder::new()
                .prefix("bailiwick-quickstart-")
                .permissions(Permissions::from_mode(FOLDER_MODE))
                .tempdir();
            Ok(made.map_err(|error| wrong(&std::env::temp_dir(), error))?.keep())
        }
    }
}

/// The usual port, or a free one when that is taken.
fn free(usual: u16) -> Result<SocketAddr> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if TcpListener::bind(local(usual)).is_ok() {
        return Ok(local(usual));
    }
    Ok(TcpListener::bind(local(0)).and_then(|listener| listener.local_addr())?)
}

fn configuration(grpc: SocketAddr, http: SocketAddr) -> String {
    format!(
        r#"# Written by `bailiwick quickstart`; the token beside it lives for 24 hours.
[server]
grpc_listen = "{grpc}"
http_listen = "{http}"

[storage]
url = "sqlite:data/bailiwick.db"

[auth]
enabled = true
jwt_public_key_path = "keys/jwt-public-key.pem"
jwt_issuer = "bailiwick-quickstart"
jwt_audience = "bailiwick-quickstart"

[telemetry]
log_level = "warn"
"#
    )
}

/// How the program was called, so that lines can be pasted.
fn program() -> String {
    std::env::current_exe().map_or_else(|_| "bailiwick".to_owned(), |path| quoted(&path))
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte);
    if text.bytes().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn how_to_go_on(laid: &Laid, running: &Running) -> String {
    let (grpc, http) = (running.grpc_address(), running.http_address());
    let (token, program) = (quoted(&laid.token_file()), program());
    format!(
        r#"
Now do the same yourself; paste these lines into another terminal.

# with grpcurl
grpcurl -plaintext -H "authorization: Bearer $(cat {token})" -d '{{"namespace": "shop", "name": "order_fulfillment", "context": "{{\"order_id\": \"o-1002\", \"items\": [{{\"sku\": \"mug\", \"quantity\": 1}}]}}"}}' {grpc} bailiwick.v1.TaskService/CreateTask

# with curl
curl -sS -H "Authorization: Bearer $(cat {token})" -H 'Content-Type: application/json' -d '{{"namespace": "shop", "name": "order_fulfillment", "context": {{"order_id": "o-1003", "items": [{{"sku": "lamp", "quantity": 3}}]}}}}' http://{http}/v1/tasks

# with the command line
{program} task create shop/order_fulfillment --url http://{grpc} --token-file {token} --context '{{"order_id": "o-1004", "items": [{{"sku": "desk", "quantity": 1}}]}}' --wait
{program} task list --url http://{grpc} --token-file {token}"#
    )
}
