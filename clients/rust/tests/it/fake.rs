//! A server that does as the test says: it hands each worker's stream to the
//! test, which reads and writes its messages.

use std::{net::SocketAddr, sync::Mutex, time::Duration};

use bailiwick_client::pb::v1::{
    CompleteStepRequest, CompleteStepResponse, FailStepRequest, FailStepResponse,
    HeartbeatStepRequest, HeartbeatStepResponse, Lease, LeaseState, LeaseStepsRequest,
    LeaseStepsResponse, ListWorkersRequest, ListWorkersResponse, RegisterWorkerRequest,
    RegisterWorkerResponse, StreamWorkRequest, StreamWorkResponse, WorkOpen, WorkOpened,
    WorkRefusal, WorkResult, WorkRevoked,
    stream_work_request::Message as Up,
    stream_work_response::Message as Down,
    worker_service_server::{WorkerService, WorkerServiceServer},
};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap, transport::Server};

/// Wide enough for a busy machine; no test waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

struct Script {
    streams: mpsc::UnboundedSender<Stream>,
    refusals: Mutex<Vec<Status>>,
    refused: mpsc::UnboundedSender<()>,
}

#[tonic::async_trait]
impl WorkerService for Script {
    async fn register_worker(
        &self,
        _: Request<RegisterWorkerRequest>,
    ) -> Result<Response<RegisterWorkerResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        Ok(Response::new(ListWorkersResponse::default()))
    }

    type StreamWorkStream = ReceiverStream<Result<StreamWorkResponse, Status>>;

    async fn stream_work(
        &self,
        request: Request<Streaming<StreamWorkRequest>>,
    ) -> Result<Response<Self::StreamWorkStream>, Status> {
        if let Some(status) = self.refusals.lock().unwrap().pop() {
            self.refused.send(()).map_err(|_| Status::unavailable("the test is over"))?;
            return Err(status);
        }
        let (down, messages) = mpsc::channel(64);
        let metadata = request.metadata().clone();
        let stream = Stream { metadata, up: request.into_inner(), down };
        self.streams.send(stream).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn lease_steps(
        &self,
        _: Request<LeaseStepsRequest>,
    ) -> Result<Response<LeaseStepsResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn heartbeat_step(
        &self,
        _: Request<HeartbeatStepRequest>,
    ) -> Result<Response<HeartbeatStepResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn complete_step(
        &self,
        _: Request<CompleteStepRequest>,
    ) -> Result<Response<CompleteStepResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn fail_step(
        &self,
        _: Request<FailStepRequest>,
    ) -> Result<Response<FailStepResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

/// The scripted server.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    streams: mpsc::UnboundedReceiver<Stream>,
    refusals: mpsc::UnboundedReceiver<()>,
    _server: tokio::task::JoinHandle<()>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        Self::refusing(Vec::new()).await
    }

    /// Answers the first streams with these, the last one first.
    pub(crate) async fn refusing(refusals: Vec<Status>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::unbounded_channel();
        let (refused, refusals_made) = mpsc::unbounded_channel();
        let script = Script { streams: sender, refusals: Mutex::new(refusals), refused };
        let serve = Server::builder()
            .add_service(WorkerServiceServer::new(script))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { serve.await.unwrap() });
        Self { address, streams, refusals: refusals_made, _server: server }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until a worker was refused.
    pub(crate) async fn refused(&mut self) {
        timeout(PATIENCE, self.refusals.recv()).await.expect("no worker came").unwrap();
    }

    /// The next stream that a worker begins.
    pub(crate) async fn stream(&mut self) -> Stream {
        timeout(PATIENCE, self.streams.recv()).await.expect("no worker came").unwrap()
    }

    /// The next stream, opened on these terms.
    pub(crate) async fn opened(&mut self, lease_ms: i64, heartbeat_ms: i64) -> (Stream, WorkOpen) {
        let mut stream = self.stream().await;
        let Up::Open(open) = stream.next().await else { panic!("the first message is not open") };
        stream.send(Down::Opened(WorkOpened { lease_ms, heartbeat_ms })).await;
        (stream, open)
    }
}

/// The server's side of one stream.
pub(crate) struct Stream {
    pub(crate) metadata: MetadataMap,
    up: Streaming<StreamWorkRequest>,
    down: mpsc::Sender<Result<StreamWorkResponse, Status>>,
}

impl Stream {
    pub(crate) async fn send(&self, message: Down) {
        self.down.send(Ok(StreamWorkResponse { message: Some(message) })).await.unwrap();
    }

    /// The next message; `None` when the worker has ended its side.
    pub(crate) async fn try_next(&mut self) -> Option<Up> {
        let next = timeout(PATIENCE, self.up.message()).await.expect("the worker says nothing");
        next.ok().flatten().and_then(|next| next.message)
    }

    pub(crate) async fn next(&mut self) -> Up {
        self.try_next().await.expect("the worker has left")
    }

    pub(crate) async fn credit(&mut self) -> u32 {
        loop {
            match self.next().await {
                Up::Credit(credit) => return credit.steps,
                Up::Heartbeat(_) => {}
                other => panic!("not credit: {other:?}"),
            }
        }
    }

    /// The next result, whatever else comes before it.
    pub(crate) async fn result(&mut self) -> Up {
        loop {
            let next = self.next().await;
            if matches!(next, Up::Complete(_) | Up::Fail(_)) {
                return next;
            }
        }
    }

    pub(crate) async fn completed(&mut self) -> CompleteStepRequest {
        match self.result().await {
            Up::Complete(complete) => complete,
            other => panic!("not a completion: {other:?}"),
        }
    }

    pub(crate) async fn failed(&mut self) -> FailStepRequest {
        match self.result().await {
            Up::Fail(fail) => fail,
            other => panic!("not a failure: {other:?}"),
        }
    }

    pub(crate) async fn heartbeat(&mut self) -> Vec<String> {
        loop {
            if let Up::Heartbeat(heartbeat) = self.next().await {
                return heartbeat.lease_ids;
            }
        }
    }

    pub(crate) async fn lease(&self, lease_id: &str, handler: &str) {
        self.send(Down::Lease(lease(lease_id, handler))).await;
    }

    pub(crate) async fn acknowledge(&self, lease_id: &str, already: bool) {
        let lease_id = lease_id.to_owned();
        self.send(Down::Result(WorkResult { lease_id, already, refusal: None })).await;
    }

    pub(crate) async fn refuse(&self, lease_id: &str, code: tonic::Code, reason: &str) {
        let refusal = WorkRefusal {
            code: i32::from(code),
            reason: reason.to_owned(),
            message: "as the test says".to_owned(),
        };
        let lease_id = lease_id.to_owned();
        self.send(Down::Result(WorkResult { lease_id, already: false, refusal: Some(refusal) }))
            .await;
    }

    pub(crate) async fn answer(&self, lease_id: &str, state: LeaseState) {
        self.send(Down::Heartbeat(HeartbeatStepResponse {
            lease_id: lease_id.to_owned(),
            state: i32::from(state),
            deadline: None,
            tokens: std::collections::HashMap::new(),
        }))
        .await;
    }

    pub(crate) async fn revoke(&self, lease_id: &str) {
        self.send(Down::Revoked(WorkRevoked {
            lease_id: lease_id.to_owned(),
            reason: i32::from(LeaseState::Cancelled),
        }))
        .await;
    }

    /// Ends the stream with a status.
    pub(crate) async fn end(self, status: Status) {
        self.down.send(Err(status)).await.unwrap();
    }
}

pub(crate) fn lease(lease_id: &str, handler: &str) -> Lease {
    Lease {
        lease_id: lease_id.to_owned(),
        task_uuid: "0197-task".to_owned(),
        step_uuid: format!("step-of-{lease_id}"),
        namespace: "shop".to_owned(),
        name: handler.to_owned(),
        handler: handler.to_owned(),
        attempt: 1,
        context: r#"{"sku":"A1"}"#.to_owned(),
        results: [("validate".to_owned(), "[1,2]".to_owned())].into(),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        ..Lease::default()
    }
}

/// A relay between client and server whose connections can be cut.
pub(crate) struct Relay {
    pub(crate) url: String,
    cut: mpsc::UnboundedSender<()>,
}

impl Relay {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (cut, mut cuts) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut token = CancellationToken::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (mut client, _) = accepted.unwrap();
                        let cut = token.clone();
                        tokio::spawn(cut.run_until_cancelled_owned(async move {
                            let mut server = tokio::net::TcpStream::connect(to).await.unwrap();
                            let copied = tokio::io::copy_bidirectional(&mut client, &mut server);
                            // A broken connection is what the relay is for.
                            let _broken = copied.await;
                        }));
                    }
                    cut = cuts.recv() => {
                        if cut.is_none() {
                            return;
                        }
                        token.cancel();
                        token = CancellationToken::new();
                    }
                }
            }
        });
        Self { url, cut }
    }

    pub(crate) fn cut(&self) {
        self.cut.send(()).unwrap();
    }
}
