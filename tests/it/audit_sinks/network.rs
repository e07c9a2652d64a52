//! Syslog and collectors.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::logs::v1::{
        ExportLogsServiceRequest, ExportLogsServiceResponse,
        logs_service_server::{LogsService, LogsServiceServer},
    },
    common::v1::{KeyValue, any_value::Value as Any},
    logs::v1::LogRecord,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::{TcpListener, UdpSocket, UnixDatagram},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tonic::{
    Request, Response, Status,
    transport::{Identity, ServerTlsConfig},
};

use super::{Sent, eventually, setup};
use crate::{
    harness::{PATIENCE, ROOT_KEY, Server, steady_port},
    tls,
};

/// What arrived, in order.
type Got = Arc<Mutex<Vec<String>>>;

fn syslog(address: &str, more: &str) -> String {
    let sink = "[[audit.sinks]]\nname = \"siem\"\nkind = \"syslog\"\n";
    format!("{sink}address = \"{address}\"\n{more}\n")
}

#[expect(clippy::disallowed_methods, reason = "the test's runtime ends with the test")]
fn spawn(work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(work)
}

/// A server of syslog over a stream; ends with its connections when dropped.
struct Collector {
    port: u16,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Collector {
    async fn listen(port: u16, tls: Option<TlsAcceptor>, got: &Got) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let (got, port) = (Arc::clone(got), listener.local_addr().unwrap().port());
        let serving = spawn(async move {
            // Dropped with this task, and its connections with it.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (got, tls) = (Arc::clone(&got), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => take(stream, &got).await,
                        // Some try without trust.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                take(stream, &got).await;
                            }
                        }
                    }
                });
            }
        });
        Self { port, tasks: vec![serving] }
    }
}

/// Octet counting: a length, a space, so many bytes.
async fn take(mut stream: impl AsyncRead + Unpin, got: &Got) {
    loop {
        let mut length = 0;
        loop {
            match stream.read_u8().await {
                Ok(b' ') => break,
                Ok(digit @ b'0'..=b'9') => length = length * 10 + usize::from(digit - b'0'),
                Ok(other) => panic!("{other} in a length"),
                Err(_) => return,
            }
        }
        let mut message = vec![0; length];
        if stream.read_exact(&mut message).await.is_err() {
            return;
        }
        got.lock().unwrap().push(String::from_utf8(message).unwrap());
    }
}

/// The head of a message and its lines' JSON.
fn parsed(message: &str) -> (String, Value) {
    let (head, line) = message.split_once("] {").unwrap_or_else(|| panic!("{message}"));
    (head.to_owned(), serde_json::from_str(&format!("{{{line}")).unwrap())
}

fn sent(got: &Got) -> Sent {
    let mut sent = Sent::default();
    got.lock().unwrap().iter().for_each(|message| sent.add(&parsed(message).1));
    sent
}

async fn arrived(got: &Got, task: &str) -> Sent {
    eventually(task, || {
        let sent = sent(got);
        sent.created().contains(&task.to_owned()).then_some(sent)
    })
    .await
}

fn assert_no_secret(got: &Got) {
    let text = got.lock().unwrap().join("\n");
    assert!(!text.contains("4111-1111") && !text.contains(ROOT_KEY));
}

#[tokio::test]
async fn se_44_syslog_gets_records_as_datagrams() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let local = UnixDatagram::bind(&path).unwrap();
    let (by_udp, by_path) = (Got::default(), Got::default());
    let (one, other) = (Arc::clone(&by_udp), Arc::clone(&by_path));
    spawn(async move {
        let mut datagram = vec![0; 65_536];
        while let Ok(length) = socket.recv(&mut datagram).await {
            one.lock().unwrap().push(String::from_utf8(datagram[..length].to_vec()).unwrap());
        }
    });
    spawn(async move {
        let mut datagram = vec![0; 65_536];
        while let Ok(length) = local.recv(&mut datagram).await {
            other.lock().unwrap().push(String::from_utf8(datagram[..length].to_vec()).unwrap());
        }
    });
    let audit = format!(
        "{}{}",
        syslog(&format!("udp://127.0.0.1:{port}"), ""),
        syslog(&format!("unix://{}", path.display()), "facility = \"authpriv\"")
            .replace("siem", "local"),
    );
    let server = Server::with(setup(&audit)).await.with_template().await;
    let task = server.order(json!({"card": "4111-1111"})).await;
    let (status, _) =
        server.as_root("GET", "/v1/tasks/00000000-0000-4000-8000-000000000000", None).await;
    assert_eq!(status, 404);
    let last = server.order(json!({})).await;
    for (got, facility) in [(&by_udp, 13), (&by_path, 10)] {
        arrived(got, &task).await;
        arrived(got, &last).await.assert_whole(1);
        assert_no_secret(got);
        for message in got.lock().unwrap().iter() {
            let (head, line) = parsed(message);
            let severity = match line["record"]["outcome"].as_str() {
                Some("denied") => 4,
                Some("failed") => 5,
                Some(_) | None => 6,
            };
            let kind = if line["checkpoint"].is_object() { "checkpoint" } else { "record" };
            let head: Vec<&str> = head.splitn(7, ' ').collect();
            assert_eq!(head[0], format!("<{}>1", facility * 8 + severity), "{message}");
            let at = [&line["record"]["at"], &line["checkpoint"]["at"]];
            assert!(at.iter().any(|at| *at == head[1]), "{message}");
            assert_eq!((head[3], head[5]), ("bailiwick", kind), "{message}");
            assert_eq!(head[4], server.process.id().to_string());
            let data = format!("[bailiwick@32473 seq=\"{}\"", line["seq"]);
            assert!(head[6].starts_with(&data), "{message}");
            if let Some(hash) = line["hash"].as_str() {
                assert!(head[6].contains(&format!(" hash=\"{hash}\"")), "{message}");
            }
        }
    }
    assert!(by_udp.lock().unwrap().iter().any(|message| message.starts_with("<108>1 ")));
}

#[tokio::test]
async fn se_44_a_collector_that_was_away_gets_all_and_nobody_waits_for_it() {
    let got = Got::default();
    let collector = Collector::listen(steady_port(), None, &got).await;
    let port = collector.port;
    let audit = syslog(&format!("tcp://127.0.0.1:{port}"), "");
    let server = Server::with(setup(&audit)).await.with_template().await;
    let mut tasks = vec![server.order(json!({"card": "4111-1111"})).await];
    arrived(&got, &tasks[0]).await;
    drop(collector);
    for _ in 0..5 {
        tasks.push(server.order(json!({})).await);
    }
    let message = "the audit cannot be sent; it is tried again";
    server.logged(message, &[("sink", "siem")]).await;
    tasks.push(server.order(json!({})).await);
    // Once for each outage; the figures have the rest.
    let failures = "bailiwick_audit_sink_failures_total{sink=\"siem\"}";
    figure(&server, failures, |failed| failed >= 2.0).await;
    let lag = "bailiwick_audit_sink_lag_records{sink=\"siem\"}";
    figure(&server, lag, |records| records >= 6.0).await;
    let log = server.process.err.all();
    assert_eq!(log.iter().filter(|line| line.contains(message)).count(), 1);
    // Killed meanwhile: it goes on from what was told.
    let server = server.again().await;
    tasks.push(server.order(json!({})).await);
    server.logged(message, &[("sink", "siem")]).await;
    let _collector = Collector::listen(port, None, &got).await;
    server.logged("the audit is sent again", &[("sink", "siem")]).await;
    let sent = arrived(&got, tasks.last().unwrap()).await;
    sent.assert_whole(1);
    let created = sent.created();
    assert!(tasks.iter().all(|task| created.contains(task)), "each one arrived");
    assert_no_secret(&got);
    figure(&server, lag, |records| records < 0.5).await;
}

/// Waits until a figure is like this.
async fn figure(server: &Server, line: &str, fits: impl Fn(f64) -> bool) {
    let become_so = async {
        while !server.figure(line).await.is_some_and(&fits) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let value = timeout(PATIENCE, become_so).await;
    assert!(value.is_ok(), "{line} {:?}", server.figure(line).await);
}

fn acceptor(certs: &Path) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(certs.join("server.pem")).unwrap();
    let chain = chain.map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(certs.join("server-key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn se_64_syslog_over_tls_trusts_its_authority_alone() {
    let (certs, others) = (tls::generated(&[]).await, tls::generated(&[]).await);
    let got = Got::default();
    let collector = Collector::listen(0, Some(acceptor(certs.path())), &got).await;
    let address = format!("tls://localhost:{}", collector.port);
    let trusting = |folder: &Path| {
        let ca = folder.join("ca.pem");
        setup(&syslog(&address, &format!("ca_path = \"{}\"", ca.display())))
    };
    let server = Server::with(trusting(others.path())).await.with_template().await;
    let task = server.order(json!({})).await;
    server.logged("the audit cannot be sent; it is tried again", &[("sink", "siem")]).await;
    assert!(got.lock().unwrap().is_empty(), "no byte for whom nobody vouches");
    let _server = server.again_with(trusting(certs.path())).await;
    arrived(&got, &task).await.assert_whole(1);
}

/// A collector of logs: the service's name with each record.
struct Logs(Arc<Mutex<Vec<(String, LogRecord)>>>);

#[tonic::async_trait]
impl LogsService for Logs {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        for resource in request.into_inner().resource_logs {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let service = attribute(&attributes, "service.name").unwrap();
            for record in resource.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                self.0.lock().unwrap().push((service.clone(), record));
            }
        }
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|one| one.key == key)?;
    let value = found.value.clone()?.value?;
    if let Any::IntValue(number) = value {
        return Some(number.to_string());
    }
    let Any::StringValue(text) = value else { panic!("{value:?}") };
    Some(text)
}

fn body(record: &LogRecord) -> Value {
    let Some(Any::StringValue(text)) = record.body.clone().unwrap().value else {
        panic!("{record:?}")
    };
    serde_json::from_str(&text).unwrap()
}

async fn collector(got: &Arc<Mutex<Vec<(String, LogRecord)>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = LogsServiceServer::new(Logs(Arc::clone(got)));
    let serving =
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
    spawn(async move { serving.await.unwrap() });
    address
}

#[tokio::test]
async fn se_44_a_collector_gets_log_records_as_events_of_ocsf() {
    let got = Arc::default();
    let endpoint = format!("http://{}", collector(&got).await);
    let audit = setup(&otlp(&endpoint, "format = \"ocsf\""));
    let server = Server::with(audit).await.with_template().await;
    let task = server.order(json!({"card": "4111-1111"})).await;
    let (status, _) = server.json("GET", "/v1/tasks", &[("x-api-key", "guess-7")], None).await;
    assert_eq!(status, 401);
    let all = eventually("both records", || {
        let all = got.lock().unwrap().clone();
        let has = |class: u64| {
            all.iter().any(|(_, record): &(String, LogRecord)| {
                let event = body(record);
                let names = event["api"]["operation"] == "CreateTask"
                    && event["resources"][0]["name"] == task.as_str();
                event["class_uid"] == class && (class != 6003 || names)
            })
        };
        (has(6003) && has(3002) && has(0)).then_some(all)
    })
    .await;
    for (next, (service, record)) in (1..).zip(&all) {
        let event = body(record);
        assert_eq!(service, "bailiwick");
        let text = |key: &str| attribute(&record.attributes, key);
        assert_eq!(text("bailiwick.audit.seq"), Some(next.to_string()), "no gap");
        assert_eq!(event["metadata"]["sequence"], next);
        assert!(
            record.time_unix_nano > 0 && record.time_unix_nano <= record.observed_time_unix_nano
        );
        assert_eq!(Some(record.time_unix_nano / 1_000_000), event["time"].as_u64());
        if event["class_uid"] == 0 {
            assert_eq!(record.event_name, "bailiwick.audit.checkpoint");
            continue;
        }
        assert_eq!(record.event_name, "bailiwick.audit.record");
        assert_eq!(text("bailiwick.audit.hash").as_deref(), event["unmapped"]["hash"].as_str());
        let raw: Value = serde_json::from_str(event["raw_data"].as_str().unwrap()).unwrap();
        assert_eq!(text("bailiwick.audit.outcome").as_deref(), raw["outcome"].as_str());
        assert_eq!(text("client.address").as_deref(), raw["peer"].as_str());
        let weight = if raw["outcome"] == "denied" { 13 } else { 9 };
        assert_eq!(record.severity_number, weight, "{raw}");
    }
    let mut created = all.iter().map(|(_, record)| (record, body(record)));
    let (record, event) =
        created.rfind(|(_, event)| event["api"]["operation"] == "CreateTask").unwrap();
    assert_eq!(event["type_uid"], 600_301);
    assert_eq!(attribute(&record.attributes, "rpc.method").as_deref(), Some("CreateTask"));
    assert_eq!(
        attribute(&record.attributes, "rpc.service").as_deref(),
        Some("bailiwick.v1.TaskService")
    );
    let text = format!("{all:?}");
    assert!(!text.contains("4111-1111") && !text.contains("guess-7") && !text.contains(ROOT_KEY));
}

fn otlp(endpoint: &str, more: &str) -> String {
    let sink = "[[audit.sinks]]\nname = \"otel\"\nkind = \"otlp\"\n";
    format!("{sink}endpoint = \"{endpoint}\"\n{more}\n")
}

/// The bodies that arrived.
fn lines(got: &Mutex<Vec<(String, LogRecord)>>) -> Sent {
    let mut sent = Sent::default();
    got.lock().unwrap().iter().for_each(|(_, record)| sent.add(&body(record)));
    sent
}

#[tokio::test]
async fn se_44_a_collector_that_hangs_holds_up_neither_calls_nor_the_end() {
    // Connections are taken, and nobody ever answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hangs = format!("http://{}", listener.local_addr().unwrap());
    let mut server = Server::with(setup(&otlp(&hangs, ""))).await.with_template().await;
    let mut tasks = Vec::new();
    for _ in 0..10 {
        tasks.push(timeout(Duration::from_secs(20), server.order(json!({}))).await.unwrap());
    }
    let lag = "bailiwick_audit_sink_lag_records{sink=\"otel\"}";
    figure(&server, lag, |records| records >= 10.0).await;
    server.process.terminate();
    let ended = timeout(Duration::from_secs(30), server.process.exit()).await;
    assert_eq!(ended.unwrap(), Some(0), "{:?}", server.process.err.all().last());
    let got = Arc::default();
    let endpoint = format!("http://{}", collector(&got).await);
    let _server = server.again_with(setup(&otlp(&endpoint, ""))).await;
    let sent = eventually("the last task", || {
        let sent = lines(&got);
        sent.created().contains(tasks.last().unwrap()).then_some(sent)
    })
    .await;
    sent.assert_whole(1);
    assert!(tasks.iter().all(|task| sent.created().contains(task)));
}

#[tokio::test]
async fn se_64_a_collector_over_tls_needs_the_trust_of_its_authority() {
    let (certs, others) = (tls::generated(&[]).await, tls::generated(&[]).await);
    let got: Arc<Mutex<Vec<(String, LogRecord)>>> = Arc::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let identity =
        Identity::from_pem(tls::read(&certs, "server.pem"), tls::read(&certs, "server-key.pem"));
    let serving = tonic::transport::Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .unwrap()
        .add_service(LogsServiceServer::new(Logs(Arc::clone(&got))))
        .serve_with_incoming(incoming);
    spawn(async move { serving.await.unwrap() });
    let trusting = |folder: &Path| {
        let ca = folder.join("ca.pem");
        setup(&otlp(&endpoint, &format!("ca_path = \"{}\"", ca.display())))
    };
    let server = Server::with(trusting(others.path())).await.with_template().await;
    let task = server.order(json!({})).await;
    server.logged("the audit cannot be sent; it is tried again", &[("sink", "otel")]).await;
    assert!(got.lock().unwrap().is_empty(), "nothing for whom nobody vouches");
    let _server = server.again_with(trusting(certs.path())).await;
    eventually("the task", || lines(&got).created().contains(&task).then_some(())).await;
    lines(&got).assert_whole(1);
}
