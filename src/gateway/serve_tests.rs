//! The gateway in front of a real tonic service, through requests and answers
//! alone.
#![expect(clippy::disallowed_methods, reason = "the tests play a server behind the gateway")]

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use http::Request;
use http_body_util::{BodyExt as _, Full, StreamBody};
use prost::Message as _;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::{
    gateway::{Classified, Routes},
    pb::{self, v1::task_service_server},
};

#[derive(Clone, Debug, Default)]
struct Tasks {
    created: Arc<Mutex<Vec<pb::v1::CreateTaskRequest>>>,
    seen: Arc<Mutex<Vec<tonic::metadata::MetadataMap>>>,
    listed: Arc<Mutex<Vec<pb::v1::ListTasksRequest>>>,
    cancelled: Arc<Mutex<Vec<pb::v1::CancelTaskRequest>>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Identity(&'static str);

fn task(id: &str) -> pb::v1::Task {
    pb::v1::Task {
        task_uuid: id.to_owned(),
        namespace: "shop".to_owned(),
        state: pb::v1::TaskState::WaitingForRetry.into(),
        created_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5_000_000 }),
        tags: vec!["a".to_owned(), "b".to_owned()],
        steps: Some(pb::v1::StepCounts { total: 3, ..Default::default() }),
        ..Default::default()
    }
}

fn event(seq: i64) -> pb::v1::WatchTaskResponse {
    pb::v1::WatchTaskResponse {
        seq,
        time: None,
        event: Some(pb::v1::watch_task_response::Event::Task(pb::v1::TaskChanged {
            task_uuid: "t".to_owned(),
            state: pb::v1::TaskState::Complete.into(),
        })),
    }
}

type Reply<T> = Result<tonic::Response<T>, Status>;

#[async_trait::async_trait]
impl task_service_server::TaskService for Tasks {
    async fn create_task(
        &self,
        request: tonic::Request<pb::v1::CreateTaskRequest>,
    ) -> Reply<pb::v1::CreateTaskResponse> {
        assert_eq!(request.extensions().get::<Identity>(), Some(&Identity("alice")));
        self.seen.lock().unwrap().push(request.metadata().clone());
        let request = request.into_inner();
        self.created.lock().unwrap().push(request);
        let mut reply =
            tonic::Response::new(pb::v1::CreateTaskResponse { task: Some(task("t-1")) });
        reply.metadata_mut().insert("x-secret", "inside".parse().unwrap());
        Ok(reply)
    }

    async fn get_task(
        &self,
        request: tonic::Request<pb::v1::GetTaskRequest>,
    ) -> Reply<pb::v1::GetTaskResponse> {
        let id = request.into_inner().task_uuid;
        if id == "absent" {
            let mut details = ErrorDetails::new();
            details.set_error_info("NOT_FOUND", "bailiwick", [("request_id".into(), "r".into())]);
            return Err(Status::with_error_details(Code::NotFound, "task not found", details));
        }
        Ok(tonic::Response::new(pb::v1::GetTaskResponse { task: Some(task(&id)) }))
    }

    async fn list_tasks(
        &self,
        request: tonic::Request<pb::v1::ListTasksRequest>,
    ) -> Reply<pb::v1::ListTasksResponse> {
        self.listed.lock().unwrap().push(request.into_inner());
        Ok(tonic::Response::new(pb::v1::ListTasksResponse::default()))
    }

    async fn cancel_task(
        &self,
        request: tonic::Request<pb::v1::CancelTaskRequest>,
    ) -> Reply<pb::v1::CancelTaskResponse> {
        self.cancelled.lock().unwrap().push(request.into_inner());
        Ok(tonic::Response::new(pb::v1::CancelTaskResponse { task: Some(task("t")) }))
    }

    async fn get_task_context(
        &self,
        request: tonic::Request<pb::v1::GetTaskContextRequest>,
    ) -> Reply<pb::v1::GetTaskContextResponse> {
        let task_uuid = request.into_inner().task_uuid;
        let context = match task_uuid.as_str() {
            "empty" => "",
            "forged" => "1,\"task_uuid\":\"other\"",
            _ => "{\"n\":\n12345678901234567890.10}",
        };
        let context = context.to_owned();
        Ok(tonic::Response::new(pb::v1::GetTaskContextResponse { task_uuid, context }))
    }

    type WatchTaskStream =
        Pin<Box<dyn Stream<Item = Result<pb::v1::WatchTaskResponse, Status>> + Send>>;

    async fn watch_task(
        &self,
        request: tonic::Request<pb::v1::WatchTaskRequest>,
    ) -> Reply<Self::WatchTaskStream> {
        let request = request.into_inner();
        let lost = || Err(Status::unavailable("going down"));
        let events = match request.task_uuid.as_str() {
            "absent" => return Err(Status::not_found("task not found")),
            "early" => stream::iter(vec![lost()]).boxed(),
            "broken" => stream::iter(vec![Ok(event(1)), lost()]).boxed(),
            "quiet" => stream::pending().boxed(),
            _ => {
                let from = request.after_seq.unwrap_or_default();
                stream::iter(vec![Ok(event(from + 1)), Ok(event(from + 2))]).boxed()
            }
        };
        Ok(tonic::Response::new(events))
    }
}

const LIMIT: usize = 64 * 1024;

struct Rest {
    routes: Routes,
    gateway: Gateway,
    tasks: Tasks,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    fn reason(&self) -> String {
        self.json()["reason"].as_str().unwrap().to_owned()
    }
}

impl Rest {
    fn new() -> Self {
        let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
        let limits = Limits { body_bytes: LIMIT, body_timeout: Duration::from_millis(200) };
        Self {
            routes: Routes::from_pool(&pool).unwrap(),
            gateway: Gateway::new(&pool, limits).unwrap(),
            tasks: Tasks::default(),
        }
    }

    async fn response<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes>,
    {
        let Classified::Found(call) = self.routes.classify(request.method(), request.uri()) else {
            panic!("no route for {} {}", request.method(), request.uri());
        };
        let inner = task_service_server::TaskServiceServer::new(self.tasks.clone());
        self.gateway.serve(call, request, inner).await
    }

    async fn send<B>(&self, request: Request<B>) -> Answer
    where
        B: http_body::Body<Data = Bytes>,
    {
        let (head, body) = self.response(request).await.into_parts();
        let text = body.collect().await.unwrap().to_bytes();
        Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            text: String::from_utf8(text.to_vec()).unwrap(),
        }
    }

    async fn get(&self, uri: &str) -> Answer {
        self.send(Request::get(uri).body(Full::<Bytes>::default()).unwrap()).await
    }

    async fn create(&self, body: impl Into<Bytes>) -> Answer {
        self.send(create_request("/v1/tasks", Some("application/json"), body)).await
    }

    /// The one request that a good body made.
    async fn created(&self, body: &str) -> pb::v1::CreateTaskRequest {
        let answer = self.create(body.to_owned()).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        self.tasks.created.lock().unwrap().pop().unwrap()
    }

    async fn refused(&self, body: impl Into<Bytes>) -> (u16, String, String) {
        let answer = self.create(body).await;
        assert!(self.tasks.created.lock().unwrap().is_empty(), "something was done");
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        (answer.status, answer.reason(), message)
    }
}

fn create_request(
    uri: &str,
    content_type: Option<&str>,
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    let mut request = Request::post(uri).extension(Identity("alice"));
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    request.body(Full::new(body.into())).unwrap()
}

#[tokio::test]
async fn a_task_is_created_with_201_and_printed_with_defaults() {
    let rest = Rest::new();
    let answer = rest
        .create(r#"{"namespace":"shop","name":"n","context":{"a": 1e400},"priority":-3,"tags":["x","y"]}"#)
        .await;
    assert_eq!(answer.status, 201);
    assert_eq!(
        answer.json(),
        json!({
            "task_uuid": "t-1", "namespace": "shop", "name": "", "version": "",
            "state": "waiting_for_retry", "priority": 0, "tags": ["a", "b"], "created_by": "",
            "created_at": "2023-11-14T22:13:20.005Z",
            "steps": {
                "total": 3, "pending": 0, "ready": 0, "in_progress": 0, "waiting_for_retry": 0,
                "complete": 0, "error": 0, "cancelled": 0, "resolved_manually": 0,
            },
        })
    );
    assert!(!answer.headers.contains_key("x-secret"));
    let created = rest.tasks.created.lock().unwrap().pop().unwrap();
    assert_eq!(created.context, r#"{"a": 1e400}"#);
    assert_eq!((created.priority, created.tags), (-3, vec!["x".to_owned(), "y".to_owned()]));
    assert_eq!(created.initiator, None);
}

#[tokio::test]
async fn both_spellings_and_null_are_taken() {
    let rest = Rest::new();
    let created = rest.created(r#"{"sourceSystem":"s"}"#).await;
    assert_eq!(created.source_system.as_deref(), Some("s"));
    let created = rest.created(r#"{"source\u005fsystem":"s","reason":null,"tags":null}"#).await;
    assert_eq!((created.source_system.as_deref(), created.reason), (Some("s"), None));
    assert_eq!(rest.created("").await, pb::v1::CreateTaskRequest::default());
}

#[tokio::test]
async fn payloads_keep_every_character() {
    let rest = Rest::new();
    let context = r#"{"a":1,"a":2, "n": 12345678901234567890.10, "s":"\u0041\n"}"#;
    let created = rest.created(&format!(r#"{{"context": {context} }}"#)).await;
    assert_eq!(created.context, context);
    assert_eq!(rest.created(r#"{"context":null}"#).await.context, "null");
}

#[tokio::test]
async fn se_08_one_value_given_twice_is_400_and_nothing_is_done() {
    let rest = Rest::new();
    for body in [
        r#"{"name":"a","name":"a"}"#,
        r#"{"source_system":"a","sourceSystem":"b"}"#,
        r#"{"context":{},"context":{}}"#,
        r#"{"reason":null,"reason":"x"}"#,
    ] {
        let (status, reason, message) = rest.refused(body).await;
        assert_eq!((status, reason.as_str()), (400, "FIELD_AMBIGUOUS"), "{message}");
    }
    for uri in ["/v1/tasks?name=b", "/v1/tasks?namespace=b", "/v1/tasks?zzz=1"] {
        let request = create_request(uri, Some("application/json"), r#"{"name":"a"}"#);
        assert_eq!(rest.send(request).await.status, 400, "{uri}");
    }
    let request = create_request("/v1/tasks?name=b", Some("application/json"), r#"{"name":"a"}"#);
    assert_eq!(rest.send(request).await.reason(), "FIELD_AMBIGUOUS");
    assert!(rest.tasks.created.lock().unwrap().is_empty());
}

#[tokio::test]
async fn se_08_repeated_parameters_are_refused_unless_they_are_lists() {
    let rest = Rest::new();
    for (query, reason) in [
        ("page_size=1&page_size=1", "FIELD_AMBIGUOUS"),
        ("page_size=1&pageSize=1", "FIELD_AMBIGUOUS"),
        ("zzz=1", "REQUEST_MALFORMED"),
        ("page_size=x", "FIELD_INVALID"),
        ("page_size=", "FIELD_INVALID"),
        ("page_size=-1", "FIELD_INVALID"),
        ("state=done", "FIELD_INVALID"),
        ("name=%ff", "REQUEST_MALFORMED"),
        ("name=%f", "REQUEST_MALFORMED"),
        ("name.x=1", "REQUEST_MALFORMED"),
    ] {
        let answer = rest.get(&format!("/v1/tasks?{query}")).await;
        assert_eq!((answer.status, answer.reason().as_str()), (400, reason), "{query}");
    }
    assert!(rest.tasks.listed.lock().unwrap().is_empty());

    let answer =
        rest.get("/v1/tasks?state=complete&state=TASK_STATE_ERROR&pageSize=7&name=a+b%26c").await;
    assert_eq!(answer.json(), json!({"tasks": [], "next_page_token": ""}));
    let listed = rest.tasks.listed.lock().unwrap().pop().unwrap();
    assert_eq!(listed.state, [5, 6]);
    assert_eq!((listed.page_size, listed.name.as_deref()), (7, Some("a b&c")));
}

#[tokio::test]
async fn se_08_a_parameter_may_not_repeat_the_path() {
    let rest = Rest::new();
    let answer = rest.get("/v1/tasks/t-1?task_uuid=t-2").await;
    assert_eq!((answer.status, answer.reason().as_str()), (400, "FIELD_AMBIGUOUS"));
    let request = Request::delete("/v1/tasks/t%2F1?reason=over").body(Full::<Bytes>::default());
    assert_eq!(rest.send(request.unwrap()).await.status, 200);
    let cancelled = rest.tasks.cancelled.lock().unwrap().pop().unwrap();
    assert_eq!((cancelled.task_uuid.as_str(), cancelled.reason.as_deref()), ("t/1", Some("over")));
}

#[tokio::test]
async fn se_12_credentials_in_a_query_are_unknown_parameters() {
    let rest = Rest::new();
    for name in ["access_token", "token", "api_key", "x-api-key", "authorization"] {
        let answer = rest.get(&format!("/v1/tasks?{name}=sk-secret")).await;
        assert_eq!(answer.status, 400);
        assert!(!answer.text.contains("sk-secret"));
    }
}

#[tokio::test]
async fn se_13_only_the_allowed_headers_reach_the_services() {
    let rest = Rest::new();
    let mut request = create_request("/v1/tasks", Some("application/json"), "{}");
    for (name, value) in [
        ("grpc-timeout", "1n"),
        ("grpc-encoding", "gzip"),
        ("grpc-accept-encoding", "gzip"),
        ("grpc-metadata-x-user", "root"),
        ("authorization", "Bearer secret"),
        ("x-http-method-override", "DELETE"),
        ("x-forwarded-for", "1.2.3.4"),
        ("cookie", "a=b"),
        ("traceparent", "00-1-2-01"),
        ("x-request-id", "r-9"),
        ("user-agent", "test"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    assert_eq!(rest.send(request).await.status, 201);
    let seen = rest.tasks.seen.lock().unwrap().pop().unwrap().into_headers();
    let mut names: Vec<&str> = seen.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    names.retain(|name| !matches!(*name, "content-type" | "te"));
    assert_eq!(names, ["traceparent", "user-agent", "x-request-id"]);
}

#[tokio::test]
async fn se_15_a_body_must_be_json_by_its_type() {
    let rest = Rest::new();
    for content_type in [
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("application/json; charset=latin1"),
        Some("application/jsonp"),
        Some("text/plain; application/json"),
        Some(""),
        None,
    ] {
        let answer = rest.send(create_request("/v1/tasks", content_type, "{}")).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (415, "CONTENT_TYPE_NOT_SUPPORTED"),
            "{content_type:?}"
        );
    }
    // Also without a byte of body, as a form's post would come.
    let form = create_request("/v1/tasks?name=x", Some("multipart/form-data"), "");
    assert_eq!(rest.send(form).await.status, 415);
    assert_eq!(rest.send(create_request("/v1/tasks?name=x", None, "")).await.status, 400);
    assert!(rest.tasks.created.lock().unwrap().is_empty());
    for content_type in ["application/json; charset=utf-8", "Application/JSON;charset=\"UTF-8\""] {
        let request = create_request("/v1/tasks", Some(content_type), "{}");
        assert_eq!(rest.send(request).await.status, 201);
    }
    assert_eq!(rest.send(create_request("/v1/tasks", None, "")).await.status, 201);
    let mut twice = create_request("/v1/tasks", Some("application/json"), "{}");
    twice.headers_mut().append("content-type", "text/plain".parse().unwrap());
    assert_eq!(rest.send(twice).await.status, 415);
    let mut packed = create_request("/v1/tasks", Some("application/json"), "{}");
    packed.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    assert_eq!(rest.send(packed).await.status, 415);
}

#[tokio::test]
async fn bad_bodies_are_400_and_say_what_is_wrong() {
    let rest = Rest::new();
    let deep = format!(r#"{{"context":{}{}}}"#, "[".repeat(129), "]".repeat(129));
    for (body, reason, part) in [
        (r#"{"name":"#, "REQUEST_MALFORMED", "not valid JSON"),
        ("{} {}", "REQUEST_MALFORMED", "not valid JSON"),
        ("[]", "REQUEST_MALFORMED", "expected an object"),
        ("null", "REQUEST_MALFORMED", "expected an object"),
        (r#"{"namespce":"x"}"#, "REQUEST_MALFORMED", "did you mean `namespace`?"),
        (r#"{"zzzzzzzzzz":"x"}"#, "REQUEST_MALFORMED", "zzzzzzzzzz: no such field"),
        (r#"{"name":1}"#, "FIELD_INVALID", "name: must be a string"),
        (r#"{"name":{}}"#, "FIELD_INVALID", "name: "),
        (r#"{"tags":["a",null]}"#, "FIELD_INVALID", "tags[1]: must be a string"),
        (r#"{"tags":"a"}"#, "FIELD_INVALID", "tags: "),
        (r#"{"priority":1.5}"#, "FIELD_INVALID", "priority: must be a whole number"),
        (r#"{"priority":2147483648}"#, "FIELD_INVALID", "priority: "),
        (r#"{"context":{"a":}}"#, "REQUEST_MALFORMED", "not valid JSON"),
        (&deep, "PAYLOAD_INVALID", "128 levels"),
    ] {
        let (status, got, message) = rest.refused(body.to_owned()).await;
        assert_eq!((status, got.as_str()), (400, reason), "{body:.60}: {message}");
        assert!(message.contains(part), "{body:.60}: {message}");
    }
    let (status, _, message) = rest.refused(&b"{\"name\":\"\xff\"}"[..]).await;
    assert_eq!((status, message.as_str()), (400, "The body is not valid UTF-8"));
    let fits = format!(r#"{{"context":{}{}}}"#, "[".repeat(128), "]".repeat(128));
    rest.created(&fits).await;
}

#[tokio::test]
async fn a_field_in_a_refusal_is_also_in_its_details() {
    let rest = Rest::new();
    let body = rest.create(r#"{"name":1}"#).await.json();
    assert_eq!(body["details"][1]["field_violations"][0]["field"], "name");
    assert_eq!(body["details"][0]["reason"], "FIELD_INVALID");
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let rest = Rest::new();
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(LIMIT));
    let (status, reason, _) = rest.refused(long.clone()).await;
    assert_eq!((status, reason.as_str()), (413, "BODY_TOO_LARGE"));
    // Also when no length was declared.
    let pieces: Vec<_> = long
        .as_bytes()
        .chunks(1000)
        .map(|piece| Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    let request = Request::post("/v1/tasks").header("content-type", "application/json");
    let answer = rest.send(request.body(StreamBody::new(stream::iter(pieces))).unwrap()).await;
    assert_eq!(answer.status, 413);
}

#[tokio::test]
async fn a_body_in_pieces_is_put_together() {
    let rest = Rest::new();
    let pieces = [r#"{"na"#, "", r#"me":"#, r#""abc"}"#]
        .map(|piece| Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(piece))));
    let request = Request::post("/v1/tasks")
        .header("content-type", "application/json")
        .extension(Identity("alice"));
    let answer = rest.send(request.body(StreamBody::new(stream::iter(pieces))).unwrap()).await;
    assert_eq!(answer.status, 201);
    assert_eq!(rest.tasks.created.lock().unwrap()[0].name, "abc");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408() {
    let rest = Rest::new();
    let never = stream::pending::<Result<http_body::Frame<Bytes>, std::io::Error>>();
    let request = Request::post("/v1/tasks").header("content-type", "application/json");
    let answer = rest.send(request.body(StreamBody::new(never)).unwrap()).await;
    assert_eq!((answer.status, answer.reason().as_str()), (408, "DEADLINE"));
}

#[tokio::test]
async fn verbs_without_a_body_refuse_one() {
    let rest = Rest::new();
    for request in [Request::get("/v1/tasks"), Request::delete("/v1/tasks/t")] {
        let request = request.header("content-type", "application/json").body(Full::from("{}"));
        let answer = rest.send(request.unwrap()).await;
        assert_eq!((answer.status, answer.reason().as_str()), (400, "REQUEST_MALFORMED"));
    }
    assert!(rest.tasks.cancelled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn tk_71_an_error_of_the_service_keeps_its_code_and_details() {
    let rest = Rest::new();
    let answer = rest.get("/v1/tasks/absent").await;
    assert_eq!(answer.status, 404);
    let body = answer.json();
    assert_eq!((&body["error"], &body["code"]), (&json!("not_found"), &json!("NOT_FOUND")));
    assert_eq!((&body["message"], &body["request_id"]), (&json!("task not found"), &json!("r")));
}

#[tokio::test]
async fn payloads_stand_in_place_and_cannot_forge_their_surroundings() {
    let rest = Rest::new();
    let answer = rest.get("/v1/tasks/t/context").await;
    assert_eq!(answer.text, r#"{"task_uuid":"t","context":{"n": 12345678901234567890.10}}"#);
    let answer = rest.get("/v1/tasks/empty/context").await;
    assert_eq!(answer.text, r#"{"task_uuid":"empty","context":null}"#);
    let body = rest.get("/v1/tasks/forged/context").await.json();
    assert_eq!(body["task_uuid"], "forged");
    assert_eq!(body["context"], "1,\"task_uuid\":\"other\"");
}

#[tokio::test]
async fn se_20_answers_are_not_kept() {
    let rest = Rest::new();
    for uri in ["/v1/tasks/t", "/v1/tasks/absent", "/v1/tasks/t/watch"] {
        let headers = rest.get(uri).await.headers;
        assert_eq!(headers["cache-control"], "no-store", "{uri}");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert!(headers.contains_key("vary"));
    }
}

#[tokio::test]
async fn head_answers_without_a_body() {
    let rest = Rest::new();
    let full = rest.get("/v1/tasks/t").await;
    let request = Request::head("/v1/tasks/t").body(Full::<Bytes>::default()).unwrap();
    let answer = rest.send(request).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, ""));
    assert_eq!(answer.headers["content-length"], full.text.len().to_string());
}

#[tokio::test]
async fn a_stream_is_ndjson_by_default() {
    let rest = Rest::new();
    let answer = rest.get("/v1/tasks/t/watch?after_seq=4").await;
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    assert_eq!(
        answer.text,
        "{\"seq\":5,\"task\":{\"task_uuid\":\"t\",\"state\":\"complete\"}}\n\
         {\"seq\":6,\"task\":{\"task_uuid\":\"t\",\"state\":\"complete\"}}\n"
    );
}

#[tokio::test]
async fn a_stream_is_events_for_those_who_ask() {
    let rest = Rest::new();
    for (accept, events) in [
        ("text/event-stream", true),
        ("text/event-stream;q=0.5, application/x-ndjson", false),
        ("application/x-ndjson;q=0.1, Text/Event-Stream", true),
        ("text/event-stream;q=0", false),
        ("*/*", false),
    ] {
        let request = Request::get("/v1/tasks/broken/watch").header("accept", accept);
        let answer = rest.send(request.body(Full::<Bytes>::default()).unwrap()).await;
        assert_eq!(answer.headers["content-type"] == "text/event-stream", events, "{accept}");
        if events {
            assert!(answer.text.starts_with("data: {\"seq\":1,"), "{}", answer.text);
            let error = answer.text.split_once("\n\nevent: error\ndata: ").unwrap().1;
            let error: Value = serde_json::from_str(error.trim_end()).unwrap();
            assert_eq!(error["error"], "service_unavailable");
        }
    }
}

#[tokio::test]
async fn tk_72_an_early_error_of_a_stream_has_its_own_status() {
    let rest = Rest::new();
    assert_eq!(rest.get("/v1/tasks/absent/watch").await.status, 404);
    assert_eq!(rest.get("/v1/tasks/early/watch").await.status, 503);
}

#[tokio::test]
async fn a_later_error_is_the_last_line() {
    let rest = Rest::new();
    let answer = rest.get("/v1/tasks/broken/watch").await;
    assert_eq!(answer.status, 200);
    let lines: Vec<Value> =
        answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["seq"], 1);
    assert_eq!(lines[1]["error"], "service_unavailable");
}

#[tokio::test]
async fn a_quiet_streams_headers_leave() {
    let rest = Rest::new();
    let request = Request::get("/v1/tasks/quiet/watch").body(Full::<Bytes>::default()).unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(5), rest.response(request)).await;
    assert_eq!(waited.unwrap().status(), 200);
}

/// Answers that tonic would not give.
async fn from_answer(trailers: bool, body: Vec<u8>) -> Answer {
    let rest = Rest::new();
    let request = Request::get("/v1/tasks/t").body(Full::<Bytes>::default()).unwrap();
    let Classified::Found(call) = rest.routes.classify(request.method(), request.uri()) else {
        panic!("no route");
    };
    let inner = tower::service_fn(move |_: Request<Body>| {
        let mut frames = vec![Ok::<_, std::io::Error>(http_body::Frame::data(body.clone().into()))];
        if trailers {
            let mut end = HeaderMap::new();
            end.insert("grpc-status", HeaderValue::from_static("0"));
            frames.push(Ok(http_body::Frame::trailers(end)));
        }
        async { Ok::<_, std::io::Error>(Response::new(StreamBody::new(stream::iter(frames)))) }
    });
    let (head, body) = rest.gateway.serve(call, request, inner).await.into_parts();
    let text = body.collect().await.unwrap().to_bytes();
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        text: String::from_utf8(text.to_vec()).unwrap(),
    }
}

#[tokio::test]
async fn a_broken_answer_is_500_and_says_nothing_of_the_inside() {
    let message = pb::v1::GetTaskResponse { task: Some(task("t")) }.encode_to_vec();
    let mut good = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
    good.extend_from_slice(&message);
    assert_eq!(from_answer(true, good.clone()).await.status, 200);
    let mut compressed = good.clone();
    compressed[0] = 1;
    let mut wrong = good.clone();
    wrong[5] = 0xff;
    for (trailers, body) in [
        (false, good.clone()),
        (true, good[..20].to_vec()),
        (true, compressed),
        (true, [good.clone(), good.clone()].concat()),
        (true, wrong),
        (true, vec![0, 255, 255, 255, 255]),
        (true, Vec::new()),
    ] {
        let answer = from_answer(trailers, body).await;
        assert_eq!((answer.status, answer.reason().as_str()), (500, "INTERNAL"));
    }
}

#[tokio::test]
async fn a_refused_body_is_drained_up_to_a_mebibyte() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let piece = Bytes::from(vec![b' '; 65_536]);
    let endless = stream::repeat_with(move || {
        count.fetch_add(1, Ordering::Relaxed);
        Ok::<_, std::io::Error>(http_body::Frame::data(piece.clone()))
    });
    drain(StreamBody::new(endless)).await;
    assert_eq!(taken.load(Ordering::Relaxed), 17);
}
