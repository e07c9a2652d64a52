//! What tonic answers by itself, and a route that the gate does not guard.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;
use tower::ServiceExt as _;

use super::{BODY_BYTES, House, reason};
use crate::pb::v1::{self, task_service_client::TaskServiceClient};

const CREATE: &str = "/bailiwick.v1.TaskService/CreateTask";

fn frame(flag: u8, bytes: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(flag);
    frame.put_u32(u32::try_from(bytes.len()).unwrap());
    frame.put_slice(bytes);
    frame.freeze()
}

/// The status of a call with this body, from headers or trailers.
async fn call(house: &House, path: &str, encoding: &str, body: Bytes) -> Status {
    let request = Request::post(path)
        .header("content-type", "application/grpc")
        .header("grpc-encoding", encoding)
        .body(Body::new(Full::new(body)))
        .unwrap();
    let response = house.through(Some(house.root())).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
    let found = |headers: &HeaderMap| Status::from_header_map(headers);
    found(&parts.headers).or_else(|| found(&trailers)).unwrap()
}

#[tokio::test]
async fn what_cannot_be_read_says_so_with_a_reason() {
    let house = House::new().await;
    let large = v1::CreateTaskRequest {
        context: "x".repeat(BODY_BYTES),
        ..v1::CreateTaskRequest::default()
    };
    let large = large.encode_to_vec();
    for (path, encoding, body, code, expected) in [
        (CREATE, "identity", frame(0, &large), Code::InvalidArgument, "BODY_TOO_LARGE"),
        (CREATE, "identity", frame(0, &[0xff; 9]), Code::InvalidArgument, "REQUEST_MALFORMED"),
        (CREATE, "identity", frame(7, b""), Code::InvalidArgument, "REQUEST_MALFORMED"),
        (
            CREATE,
            "identity",
            Bytes::from_static(b"\0\0"),
            Code::InvalidArgument,
            "REQUEST_MALFORMED",
        ),
        (CREATE, "br", frame(1, b""), Code::Unimplemented, "REQUEST_MALFORMED"),
        (
            "/bailiwick.v1.TaskService/No",
            "identity",
            frame(0, b""),
            Code::Unimplemented,
            "UNKNOWN_METHOD",
        ),
        ("/no.Service/No", "identity", frame(0, b""), Code::Unimplemented, "UNKNOWN_METHOD"),
    ] {
        let status = call(&house, path, encoding, body).await;
        assert_eq!((status.code(), reason(&status).as_str()), (code, expected), "{status:?}");
        let id = status.get_details_request_info().unwrap().request_id;
        assert_eq!(id, house.root().request().to_string());
    }
    // A stream's first message too.
    let path = "/bailiwick.v1.WorkerService/StreamWork";
    let status = call(&house, path, "identity", frame(0, &large)).await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::InvalidArgument, "BODY_TOO_LARGE")
    );
    let status = call(&house, path, "identity", Bytes::new()).await;
    assert_eq!(reason(&status), "STREAM_PROTOCOL");
}

#[tokio::test]
async fn gzip_is_taken() {
    let house = House::with_pair().await;
    let tasks = TaskServiceClient::new(house.through(Some(house.root())));
    let mut tasks = tasks.send_compressed(tonic::codec::CompressionEncoding::Gzip);
    let create = v1::CreateTaskRequest {
        namespace: "shop".to_owned(),
        name: "pair".to_owned(),
        ..v1::CreateTaskRequest::default()
    };
    assert!(tasks.create_task(create.clone()).await.is_ok());
    // The limit is on what comes out of it.
    let bomb = v1::CreateTaskRequest { context: "x".repeat(100 * BODY_BYTES), ..create };
    let status = tasks.create_task(bomb).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::InvalidArgument, "BODY_TOO_LARGE")
    );
}

#[tokio::test]
async fn a_service_without_a_gate_answers_nobody() {
    let house = House::new().await;
    let mut tasks = TaskServiceClient::new(house.through(None));
    let status = tasks.list_tasks(v1::ListTasksRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Internal, "INTERNAL"));
    let get = v1::WatchTaskRequest::default();
    assert_eq!(tasks.watch_task(get).await.unwrap_err().code(), Code::Internal);
}
