#![expect(clippy::disallowed_methods, reason = "the tests play the server")]

use bailiwick_client::pb::v1::{
    CompleteStepRequest, CompleteStepResponse, FailStepRequest, FailStepResponse,
    HeartbeatStepRequest, HeartbeatStepResponse, Lease, LeaseStepsRequest, LeaseStepsResponse,
    ListWorkersRequest, ListWorkersResponse, RegisterWorkerRequest, RegisterWorkerResponse,
    StreamWorkRequest, StreamWorkResponse, WorkOpened, WorkResult,
    stream_work_request::Message as Up,
    stream_work_response::Message as Down,
    worker_service_server::{WorkerService, WorkerServiceServer},
};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::*;

#[test]
fn a_handler_is_a_name_and_a_command() {
    assert_eq!(
        parse_handler("reserve_stock=./reserve.sh --mode=fast").unwrap(),
        ("reserve_stock".to_owned(), "./reserve.sh --mode=fast".to_owned())
    );
    for text in ["reserve_stock", "=x", "reserve_stock=", "reserve_stock=  "] {
        assert!(parse_handler(text).unwrap_err().to_string().contains(text));
    }
    assert!(default_name().ends_with(&format!("-{}", process::id())));
}

#[tokio::test]
async fn settings_are_checked_before_the_server_is_asked() {
    let options = |handler: &str, pass: &str| Options {
        client: Client::builder("http://127.0.0.1:1").connect_lazy().unwrap(),
        namespace: "shop".to_owned(),
        name: None,
        handlers: vec![("a".to_owned(), handler.to_owned())],
        concurrency: 1,
        pass_env: vec![pass.to_owned()],
        timeout: None,
        drain_grace: None,
        link: Link::default(),
    };
    for (handler, pass, expected) in
        [("true", "A=B", "A=B"), ("true", "", "variable"), ("tr\0ue", "A", "`a`")]
    {
        let error = run(options(handler, pass), Stop::default()).await.unwrap_err();
        assert!(matches!(error, Error::Setting(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

type Messages = mpsc::UnboundedSender<Up>;

/// Opens the stream, hands out one step and keeps what comes back.
struct OneStep(Messages, Lease);

#[tonic::async_trait]
impl WorkerService for OneStep {
    type StreamWorkStream = ReceiverStream<Result<StreamWorkResponse, Status>>;

    async fn stream_work(
        &self,
        request: Request<Streaming<StreamWorkRequest>>,
    ) -> Result<Response<Self::StreamWorkStream>, Status> {
        let (down, messages) = mpsc::channel(8);
        let (seen, lease, mut up) = (self.0.clone(), self.1.clone(), request.into_inner());
        tokio::spawn(async move {
            let send = |message| {
                down.try_send(Ok(StreamWorkResponse { message: Some(message) })).unwrap();
            };
            while let Ok(Some(StreamWorkRequest { message: Some(message) })) = up.message().await {
                match &message {
                    Up::Open(_) => {
                        send(Down::Opened(WorkOpened { lease_ms: 60_000, heartbeat_ms: 20_000 }));
                    }
                    Up::Credit(credit) if credit.steps == 3 => send(Down::Lease(lease.clone())),
                    Up::Complete(complete) => send(Down::Result(WorkResult {
                        lease_id: complete.lease_id.clone(),
                        ..WorkResult::default()
                    })),
                    Up::Credit(_) | Up::Heartbeat(_) | Up::Fail(_) => {}
                }
                seen.send(message).unwrap();
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn register_worker(
        &self,
        _: Request<RegisterWorkerRequest>,
    ) -> Result<Response<RegisterWorkerResponse>, Status> {
        Err(Status::unimplemented("the worker does not call it"))
    }

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        Err(Status::unimplemented("the worker does not call it"))
    }

    async fn lease_steps(
        &self,
        _: Request<LeaseStepsRequest>,
    ) -> Result<Response<LeaseStepsResponse>, Status> {
        Err(Status::unimplemented("the worker does not call it"))
    }

    async fn heartbeat_step(
        &self,
        _: Request<HeartbeatStepRequest>,
    ) -> Result<Response<HeartbeatStepResponse>, Status> {
        Err(Status::unimplemented("the worker does not call it"))
    }

    async fn complete_step(
        &self,
        _: Request<CompleteStepRequest>,
    ) -> Result<Response<CompleteStepResponse>, Status> {
        Err(Status::unimplemented("the worker does not call it"))
    }

    async fn fail_step(
        &self,
        _: Request<FailStepRequest>,
    ) -> Result<Response<FailStepResponse>, Status> {
        Err(Status::unimplemented("the worker does not call it"))
    }
}

#[tokio::test]
async fn a_leased_step_is_run_by_its_command() {
    let lease = Lease {
        lease_id: "l-1".to_owned(),
        namespace: "shop".to_owned(),
        handler: "count".to_owned(),
        attempt: 1,
        context: r#"{"items":[1,2,3]}"#.to_owned(),
        ..Lease::default()
    };
    let (seen, mut messages) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder()
        .add_service(WorkerServiceServer::new(OneStep(seen, lease)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(async move { server.await.unwrap() });

    let stop = Stop::default();
    let worker = tokio::spawn(run(
        Options {
            client: Client::builder(url).connect_lazy().unwrap(),
            namespace: "shop".to_owned(),
            name: None,
            handlers: vec![("count".to_owned(), "wc -l; exit 0".to_owned())],
            concurrency: 3,
            pass_env: Vec::new(),
            timeout: None,
            drain_grace: None,
            link: Link::default(),
        },
        stop.clone(),
    ));
    let mut opened_as = String::new();
    let result = loop {
        let message = timeout(Duration::from_mins(1), messages.recv()).await.unwrap().unwrap();
        match message {
            Up::Open(open) => opened_as = open.name,
            Up::Complete(complete) => break complete,
            Up::Fail(fail) => panic!("it failed: {}", fail.error),
            Up::Credit(_) | Up::Heartbeat(_) => {}
        }
    };
    assert_eq!(opened_as, default_name());
    assert_eq!((result.lease_id.as_str(), result.result.as_str()), ("l-1", "0"));
    stop.drain.cancel();
    timeout(Duration::from_mins(1), worker).await.unwrap().unwrap().unwrap();
}
