//! What is acknowledged is on disk, a stop loses nothing, and a data folder
//! that cannot be used is refused in words.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use bailiwick::pb::v1::{
    self as pb, stream_work_request::Message as Up, stream_work_response::Message as Down,
};
use bailiwick_client::Error;
use reqwest::{Method, StatusCode};
use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::harness::{
    Api, PATIENCE, Server, Setup,
    api::{self, NAMESPACE, refusal, yaml},
    refused_in,
};

/// Kills the server and starts it again, over what the kill left.
async fn killed(mut server: Server) -> Server {
    server.process.kill();
    let log = fs::metadata(server.path("data/bailiwick.db-wal")).unwrap();
    assert!(log.len() > 0, "a kill leaves the log behind");
    server.again().await
}

#[tokio::test]
async fn a_reply_means_that_it_is_on_disk() {
    let server = Server::with(Setup::steady()).await;
    let api = Api::root(&server).await;
    let steps = "  - name: only\n    handler: {callable: work}\n    retry: {max_attempts: 2}\n";
    let definition = yaml("kept", steps);

    // Each call is the last thing that the server did before it was killed.
    api.register(&definition).await;
    let server = killed(server).await;
    let api = Api::root(&server).await;
    assert!(api.try_register(&definition).await.unwrap().unchanged);

    let context = "{\"order\": 1.50}".to_owned();
    let created =
        api.try_create(pb::CreateTaskRequest { context: context.clone(), ..api::request("kept") });
    let id = created.await.unwrap().task_uuid;
    let server = killed(server).await;
    let api = Api::root(&server).await;
    let request = pb::GetTaskContextRequest { task_uuid: id.clone() };
    let kept = api.client.tasks().get_task_context(request).await.unwrap().into_inner();
    assert_eq!(kept.context, context);
    assert_eq!(api.task(&id).await.state(), pb::TaskState::Pending);

    let worker = pb::RegisterWorkerRequest {
        namespace: NAMESPACE.into(),
        name: "known".into(),
        handlers: vec!["work".into()],
        version: Some("1.2".into()),
    };
    api.client.workers().register_worker(worker).await.unwrap();
    let server = killed(server).await;
    let api = Api::root(&server).await;
    let listed = api.client.workers().list_workers(pb::ListWorkersRequest::default()).await;
    let workers = listed.unwrap().into_inner().workers;
    assert_eq!(workers.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["known"]);
    assert_eq!(workers[0].version(), "1.2");

    let lease = api.lease("work").await;
    let server = killed(server).await;
    let api = Api::root(&server).await;
    let step = api.step(&id, "only").await;
    assert_eq!((step.state(), step.attempts), (pb::StepState::InProgress, 1));
    assert!(api.lease_now("work").await.is_empty(), "the lease still holds");

    assert_eq!(api.heartbeat(&lease).await.state(), pb::LeaseState::Held);
    let server = killed(server).await;
    let api = Api::root(&server).await;
    assert_eq!(api.fail(&lease, "no luck", true).await, "waiting_for_retry");
    let server = killed(server).await;
    let api = Api::root(&server).await;
    let step = api.step(&id, "only").await;
    assert_eq!(step.last_error(), "no luck");
    assert!(api.try_fail(&lease, "no luck", true).await.unwrap().already);

    let lease = api.lease("work").await;
    assert_eq!(lease.attempt, 2);
    api.complete(&lease, "{\"n\": 1.50}").await;
    let server = killed(server).await;
    let api = Api::root(&server).await;
    let step = api.step(&id, "only").await;
    assert_eq!((step.state(), step.result()), (pb::StepState::Complete, "{\"n\": 1.50}"));
    assert!(api.try_complete(&lease, "{\"n\": 1.50}").await.unwrap());

    let (cancelled, cured) = (api.create("kept").await.task_uuid, api.create("kept").await);
    api.cancel(&cancelled).await.unwrap();
    let server = killed(server).await;
    let api = Api::root(&server).await;
    assert_eq!(api.task(&cancelled).await.state(), pb::TaskState::Cancelled);

    let step = api.step(&cured.task_uuid, "only").await;
    let action = pb::StepAction::CompleteManually;
    api.resolve(&step, action, Some("\"by hand\"")).await.unwrap();
    let server = killed(server).await;
    let api = Api::root(&server).await;
    assert_eq!(api.step(&cured.task_uuid, "only").await.result(), "\"by hand\"");
    assert_eq!(api.task(&cured.task_uuid).await.state(), pb::TaskState::Complete);
}

#[tokio::test]
async fn a_result_acknowledged_on_a_stream_is_on_disk() {
    let server = Server::with(Setup::steady()).await;
    let api = Api::root(&server).await;
    api.register(&api::one("work")).await;
    let id = api.create("work").await.task_uuid;
    let (up, mut down) = open_stream(&api).await;
    send(&up, Up::Credit(pb::WorkCredit { steps: 1 })).await;
    let Down::Lease(lease) = received(&mut down).await else { panic!("no lease") };
    let result = pb::CompleteStepRequest { lease_id: lease.lease_id.clone(), result: "7".into() };
    send(&up, Up::Complete(result)).await;
    let Down::Result(told) = received(&mut down).await else { panic!("no result") };
    assert_eq!((told.lease_id, told.already, told.refusal), (lease.lease_id, false, None));
    let server = killed(server).await;
    let api = Api::root(&server).await;
    assert_eq!(api.step(&id, "only").await.result(), "7");
}

async fn open_stream(
    api: &Api,
) -> (mpsc::Sender<pb::StreamWorkRequest>, Streaming<pb::StreamWorkResponse>) {
    let (up, messages) = mpsc::channel(16);
    let open = pb::WorkOpen {
        namespace: NAMESPACE.into(),
        name: "streamer".into(),
        handlers: vec!["work".into()],
        version: None,
    };
    send(&up, Up::Open(open)).await;
    let messages = ReceiverStream::new(messages);
    let mut down = api.client.workers().stream_work(messages).await.unwrap().into_inner();
    assert!(matches!(received(&mut down).await, Down::Opened(_)));
    (up, down)
}

async fn send(up: &mpsc::Sender<pb::StreamWorkRequest>, message: Up) {
    up.send(pb::StreamWorkRequest { message: Some(message) }).await.unwrap();
}

async fn received(down: &mut Streaming<pb::StreamWorkResponse>) -> Down {
    let message = timeout(PATIENCE, down.message()).await.unwrap().unwrap();
    message.unwrap().message.unwrap()
}

#[tokio::test]
async fn sigterm_finishes_calls_and_ends_streams() {
    let mut server = Server::start().await;
    let api = Api::root(&server).await;
    api.register(&api::one("work")).await;
    let id = api.create("work").await.task_uuid;
    api.register(&api::one("other")).await;
    let waiting = api.create("other").await.task_uuid;

    let (_up, mut down) = open_stream(&api).await;
    let request = pb::WatchTaskRequest { task_uuid: waiting, after_seq: None };
    let mut watch = api.client.tasks().watch_task(request).await.unwrap().into_inner();
    watch.message().await.unwrap().expect("a snapshot");
    let poll = api.try_lease(&["nobody"], 1, Duration::from_secs(50));
    // A call whose body is still on its way, seen by the server.
    let body = json!({ "namespace": NAMESPACE, "name": "work" }).to_string();
    let mut call = half_a_call(&server, &body).await;

    let down_goes = async {
        sleep(Duration::from_millis(300)).await;
        server.process.terminate();
        let going = |line: &str| line.contains("going down").then_some(());
        server.process.err.wait_for(going).await.expect("it says so");
        sleep(Duration::from_millis(300)).await;
        call.write_all(&body.as_bytes()[1..]).await.unwrap();
        let mut answer = String::new();
        call.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (poll, answer) = tokio::join!(poll, down_goes);
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");

    let stream = timeout(PATIENCE, down.message()).await.unwrap();
    assert_shutting_down(stream);
    assert_shutting_down(timeout(PATIENCE, watch.message()).await.unwrap());
    match poll {
        Ok(leases) => assert!(leases.is_empty()),
        Err(Error::Refused(refusal)) => {
            assert_eq!(refusal.reason.as_deref(), Some("SHUTTING_DOWN"));
        }
        Err(other) => panic!("{other:?}"),
    }
    assert_eq!(server.process.exit().await, Some(0));
    assert!(!server.path("data/bailiwick.db-wal").exists(), "the log was carried over");

    let server = server.again().await;
    let api = Api::root(&server).await;
    let tasks = api.list(pb::ListTasksRequest::default()).await;
    assert_eq!(tasks.len(), 3, "with the one whose call was under way");
    assert_eq!(api.task(&id).await.state(), pb::TaskState::Pending);
}

/// A creation over HTTP/1.1 without its body but for the first byte.
async fn half_a_call(server: &Server, body: &str) -> TcpStream {
    let mut tcp = TcpStream::connect(server.http).await.unwrap();
    let head = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        crate::harness::ROOT_KEY,
        body.len()
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    tcp.write_all(&body.as_bytes()[..1]).await.unwrap();
    tcp
}

fn assert_shutting_down<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) {
    let refusal = refusal(answer.map_err(Error::from));
    assert_eq!(refusal.code, Code::Unavailable);
    assert_eq!(refusal.reason.as_deref(), Some("SHUTTING_DOWN"));
}

#[tokio::test]
async fn a_second_server_on_the_folder_is_refused() {
    let server = Server::start().await;
    let (code, said) = refused_in(server.folder.path(), &Setup::default()).await;
    assert_ne!(code, Some(0));
    assert_says(&said, &["another server uses", &shown(&server.path("data"))]);
    let api = Api::root(&server).await;
    api.register(&api::one("work")).await;
    let id = api.create("work").await.task_uuid;
    assert_eq!(api.task(&id).await.task_uuid, id, "the first one goes on");
    // The lock dies with its holder.
    let mut server = server;
    server.process.kill();
    let again = server.again().await;
    assert_eq!(Api::root(&again).await.task(&id).await.task_uuid, id);
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "`{part}` in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test]
async fn a_read_only_folder_is_refused() {
    let read_only = "mount --bind \"$DATA\" \"$DATA\"; mount -o remount,bind,ro \"$DATA\"";
    let setup = Setup { mounts: Some(read_only.to_owned()), ..Setup::default() };
    let empty = tempfile::tempdir().unwrap();
    let (code, said) = refused_in(empty.path(), &setup).await;
    assert_ne!(code, Some(0));
    assert_says(
        &said,
        &["cannot be used", &shown(&empty.path().join("data")), "change its rights"],
    );

    let folder = stopped_folder().await;
    let (code, said) = refused_in(&folder, &setup).await;
    assert_ne!(code, Some(0));
    assert_says(&said, &["cannot be used", &shown(&folder.join("data"))]);
    fs::remove_dir_all(folder).unwrap();
}

/// The folder of a server that has stopped, with a task in it.
async fn stopped_folder() -> PathBuf {
    let mut server = Server::start().await;
    let api = Api::root(&server).await;
    api.register(&api::one("work")).await;
    api.create("work").await;
    server.process.terminate();
    assert_eq!(server.process.exit().await, Some(0));
    let kept = tempfile::tempdir().unwrap().keep();
    fs::create_dir(kept.join("data")).unwrap();
    fs::copy(server.path("data/bailiwick.db"), kept.join("data/bailiwick.db")).unwrap();
    kept
}

#[tokio::test]
async fn a_damaged_or_newer_database_is_refused() {
    let folder = stopped_folder().await;
    let database = folder.join("data/bailiwick.db");
    let whole = fs::read(&database).unwrap();

    let schema = 100..4000;
    let mut damaged = whole.clone();
    damaged[schema].fill(0xa5);
    fs::write(&database, damaged).unwrap();
    let (code, said) = refused_in(&folder, &Setup::default()).await;
    assert_ne!(code, Some(0));
    assert_says(&said, &[&shown(&database), "is damaged", "put a backup in its place"]);

    fs::write(&database, "not a database at all, but some text\n".repeat(200)).unwrap();
    let (code, said) = refused_in(&folder, &Setup::default()).await;
    assert_ne!(code, Some(0));
    assert_says(&said, &[&shown(&database), "is no database of Bailiwick"]);
    assert!(fs::read(&database).unwrap().starts_with(b"not a database"), "left as it was");

    fs::write(&database, &whole[..whole.len() / 2]).unwrap();
    let (code, said) = refused_in(&folder, &Setup::default()).await;
    assert_ne!(code, Some(0));
    assert_says(&said, &[&shown(&database), "is damaged", "put a backup in its place"]);

    fs::write(&database, whole).unwrap();
    let conn = Connection::open(&database).unwrap();
    conn.execute("INSERT INTO migration VALUES (999, 'later', 'x', 0)", []).unwrap();
    conn.close().unwrap();
    let (code, said) = refused_in(&folder, &Setup::default()).await;
    assert_ne!(code, Some(0));
    assert_says(&said, &["schema 999", "use the newer release"]);
    fs::remove_dir_all(folder).unwrap();
}

/// The server's view of its data folder, which is a small disk of its own.
struct Disk {
    folder: PathBuf,
}

impl Disk {
    fn of(server: &Server) -> Self {
        let data = server.path("data");
        let inside = data.strip_prefix("/").unwrap();
        Self { folder: PathBuf::from(format!("/proc/{}/root", server.process.id())).join(inside) }
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut ballast = File::create(self.folder.join("ballast")).unwrap();
        for piece in [64 * 1024, 4096] {
            while ballast.write_all(&vec![1; piece]).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.folder.join("ballast")).unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_changes_and_serves_reads_until_there_is_room() {
    let disk = "mount -t tmpfs -o size=16m,mode=700 tmpfs \"$DATA\"";
    let setup = Setup { mounts: Some(disk.to_owned()), ..Setup::default() };
    let server = Server::with(setup).await;
    let api = Api::root(&server).await;
    api.register(&api::one("work")).await;
    let large = |number: usize| pb::CreateTaskRequest {
        context: json!({ "number": number, "filler": "x".repeat(100_000) }).to_string(),
        idempotency_key: Some(number.to_string()),
        ..api::request("work")
    };
    let mut kept = Vec::new();
    for number in 0..5 {
        kept.push(api.try_create(large(number)).await.unwrap().task_uuid);
    }
    let lease = api.lease("work").await;

    let disk = Disk::of(&server);
    disk.fill();
    // What the log still had room for is acknowledged, and counts.
    let mut full = None;
    for number in 5..1_000 {
        match api.try_create(large(number)).await {
            Ok(task) => kept.push(task.task_uuid),
            Err(error) => {
                full = Some((number, refusal(Err::<(), _>(error))));
                break;
            }
        }
    }
    let (number, refused) = full.expect("the disk is full");
    assert_eq!(refused.code, Code::ResourceExhausted);
    assert_eq!(refused.reason.as_deref(), Some("STORAGE_FULL"));
    assert!(refused.message.contains("free room there and try again"), "{refused}");
    let rest = server.rest(Method::POST, "/v1/tasks");
    let body =
        json!({ "namespace": NAMESPACE, "name": "work", "context": {"f": "x".repeat(90_000)} });
    let answer = rest.json(&body).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["reason"], "STORAGE_FULL");

    // Reads go on, and the probes tell.
    assert_eq!(api.task(&kept[0]).await.state(), pb::TaskState::InProgress);
    assert_eq!(api.list(pb::ListTasksRequest::default()).await.len(), kept.len());
    let ready = |code| until_ready(&server, code);
    ready(StatusCode::SERVICE_UNAVAILABLE).await;
    let live = server.rest(Method::GET, "/health/live").send().await.unwrap();
    assert_eq!(live.status(), StatusCode::OK);

    disk.empty();
    ready(StatusCode::OK).await;
    kept.push(api.try_create(large(number)).await.unwrap().task_uuid);
    api.complete(&lease, "1").await;
    for id in &kept {
        let request = pb::GetTaskContextRequest { task_uuid: id.clone() };
        let context = api.client.tasks().get_task_context(request).await.unwrap().into_inner();
        assert!(context.context.len() > 100_000);
    }
    assert_eq!(api.list(pb::ListTasksRequest::default()).await.len(), kept.len());
    for line in server.process.err.all() {
        assert!(!line.contains("panicked"), "{line}");
    }
}

async fn until_ready(server: &Server, code: StatusCode) {
    let reached = async {
        while server.rest(Method::GET, "/health/ready").send().await.unwrap().status() != code {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("/health/ready never said {code}"));
}

#[tokio::test]
async fn a_log_that_was_cut_off_counts_to_its_last_whole_commit() {
    let mut server = Server::with(Setup::steady()).await;
    let api = Api::root(&server).await;
    api.register(&api::one("work")).await;
    let id = api.create("work").await.task_uuid;
    server.process.kill();
    // A commit that the power cut in the middle.
    let mut log = OpenOptions::new()
        .read(true)
        .write(true)
        .open(server.path("data/bailiwick.db-wal"))
        .unwrap();
    let mut frame = vec![0; 24 + 4096];
    log.seek(SeekFrom::Start(32)).unwrap();
    log.read_exact(&mut frame).unwrap();
    log.seek(SeekFrom::End(0)).unwrap();
    log.write_all(&frame[..2000]).unwrap();
    drop(log);
    let server = server.again().await;
    let api = Api::root(&server).await;
    assert_eq!(api.task(&id).await.state(), pb::TaskState::Pending);
    assert_eq!(api.list(pb::ListTasksRequest::default()).await.len(), 1);
}
