//! What surrounds every call that passed the gate, gRPC and REST alike: room,
//! time, a guard against panics, and figures. Sits between the gateway and
//! the tonic routes, so that it sees gRPC statuses alone.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{body::Body, service::Routes};
use tower::Service;
use tracing::Instrument as _;

use super::spawn::spawn;
use crate::{
    access::{Kind, MethodRule, Reason, Refusal, Rule},
    domain::RequestId,
    grpc::{Rendered, status},
};

/// How many streams callers without a credential have at once, as watches of
/// health and reflection.
const PUBLIC_STREAMS_MAX: usize = 1024;

/// The services whose changes are on disk first and then in memory.
const IN_MEMORY: [&str; 2] = ["bailiwick.v1.AuthAdminService/", "bailiwick.v1.ScheduleService/"];

/// How the figures call the two surfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Surface {
    /// gRPC.
    Grpc,
    /// REST.
    Rest,
}

impl Surface {
    const fn label(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Rest => "rest",
        }
    }
}

/// One call, for its figures.
#[derive(Clone, Debug)]
pub(super) struct Observation {
    method: Arc<MethodRule>,
    surface: Surface,
    begun: Instant,
}

impl Observation {
    /// A call begins.
    #[must_use]
    pub(super) fn begin(method: Arc<MethodRule>, surface: Surface) -> Self {
        Self { method, surface, begun: Instant::now() }
    }

    /// A call has ended with a gRPC code.
    pub(super) fn end(&self, code: tonic::Code) {
        let method: Arc<str> = Arc::clone(&self.method.full_name);
        metrics::counter!(
            "bailiwick_requests_total",
            "method" => method.clone(),
            "surface" => self.surface.label(),
            "code" => code_name(code),
        )
        .increment(1);
        metrics::histogram!("bailiwick_request_duration_seconds", "method" => method)
            .record(self.begun.elapsed().as_secs_f64());
    }
}

/// The limits that all calls share.
#[derive(Clone, Debug)]
pub(super) struct Room {
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Of strangers, who must not take the room of those that are known.
    public_streams: Arc<Semaphore>,
    call_timeout: Duration,
    shutdown: CancellationToken,
}

impl Room {
    /// So many calls and streams at once, each call no longer than this.
    #[must_use]
    pub(super) fn new(
        calls: usize,
        streams: usize,
        call_timeout: Duration,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            calls: Arc::new(Semaphore::new(calls)),
            streams: Arc::new(Semaphore::new(streams)),
            public_streams: Arc::new(Semaphore::new(PUBLIC_STREAMS_MAX)),
            call_timeout,
            shutdown,
        }
    }

    /// A place for the call. A public call that is no stream needs none: it
    /// asks for nothing but what is in memory, and a probe must get through.
    fn enter(&self, method: &MethodRule) -> Result<Option<OwnedSemaphorePermit>, Refusal> {
        let room = match (&method.rule, is_stream(method)) {
            (Rule::Public(_), false) => return Ok(None),
            (Rule::Public(_), true) => &self.public_streams,
            (_, true) => &self.streams,
            (_, false) => &self.calls,
        };
        Arc::clone(room).try_acquire_owned().map(Some).map_err(|_| Refusal {
            retry_after: Some(Duration::from_secs(1)),
            ..Refusal::new(
                Kind::Unavailable,
                Reason::Overloaded,
                "The server has too many calls in flight; try again",
            )
        })
    }
}

/// The tonic routes with what surrounds each call.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    routes: Rendered<Routes>,
    room: Room,
}

impl Observed {
    /// Surrounds the routes.
    #[must_use]
    pub(super) fn new(routes: Rendered<Routes>, room: Room) -> Self {
        Self { routes, room }
    }

    async fn answer(mut self, request: Request<Body>) -> Response<Body> {
        let id = request.extensions().get::<RequestId>().copied();
        let Some(call) = request.extensions().get::<Observation>().cloned() else {
            let refusal = Refusal::new(Kind::Internal, Reason::Internal, "call without a rule");
            return refused(refusal, id);
        };
        let place = match self.room.enter(&call.method) {
            Ok(place) => place,
            Err(refusal) => {
                call.end(status::code(refusal.kind));
                return refused(refusal, id);
            }
        };
        let answering = AssertUnwindSafe(self.routes.call(request)).catch_unwind();
        let answering = async {
            if !is_finished(&call.method) {
                return answering.await;
            }
            match spawn(answering.in_current_span()).await {
                Ok(answered) => answered,
                // The runtime ends, and this with it.
                Err(_) => std::future::pending().await,
            }
        };
        let response = match timeout(self.room.call_timeout, answering).await {
            Ok(Ok(Ok(response))) => response,
            Ok(Err(_panic)) => {
                let detail = Some("the handler panicked".to_owned());
                let refusal = Refusal::new(Kind::Internal, Reason::Internal, "internal error");
                refused(Refusal { detail, ..refusal }, id)
            }
            Err(_elapsed) => {
                let message = "The call took too long; it may still have taken effect";
                refused(Refusal::new(Kind::Deadline, Reason::Deadline, message), id)
            }
        };
        let code = response.headers().get(tonic::Status::GRPC_STATUS).map(code_of);
        if let Some(code) = code {
            call.end(code);
            return response;
        }
        let ending =
            is_stream(&call.method).then(|| Box::pin(self.room.shutdown.clone().cancelled_owned()));
        // A call is over with its answer: who does not read it keeps no place.
        let place = place.filter(|_| is_stream(&call.method));
        response
            .map(|body| Body::new(Watched { body, call: Some(call), id, ending, _place: place }))
    }
}

fn refused(refusal: Refusal, id: Option<RequestId>) -> Response<Body> {
    status::Error::from(refusal).status(id).into_http()
}

impl Service<Request<Body>> for Observed {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.answer(request).await) })
    }
}

/// A body whose end is counted; a stream's ends when the server goes down.
struct Watched {
    body: Body,
    call: Option<Observation>,
    id: Option<RequestId>,
    ending: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Watched {
    fn end(&mut self, code: tonic::Code) {
        if let Some(call) = self.call.take() {
            call.end(code);
        }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        if self.call.is_none() && self.ending.is_some() {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let code = frame.trailers_ref().map(|trailers| {
                    trailers.get(tonic::Status::GRPC_STATUS).map_or(tonic::Code::Ok, code_of)
                });
                if let Some(code) = code {
                    self.end(code);
                }
            }
            Poll::Ready(Some(Err(error))) => {
                let code = error.code();
                self.end(code);
            }
            Poll::Ready(None) => self.end(tonic::Code::Ok),
            Poll::Pending => {
                let going_down = self
                    .ending
                    .as_mut()
                    .is_some_and(|ending| ending.as_mut().poll(context).is_ready());
                if going_down {
                    self.end(tonic::Code::Unavailable);
                    return Poll::Ready(Some(Ok(Frame::trailers(going_down_trailers(self.id)))));
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // The client went away before the end.
        self.end(tonic::Code::Cancelled);
    }
}

fn going_down_trailers(id: Option<RequestId>) -> HeaderMap {
    let refusal = Refusal {
        retry_after: Some(Duration::from_secs(1)),
        ..Refusal::new(
            Kind::Unavailable,
            Reason::ShuttingDown,
            "The server is going down; connect again",
        )
    };
    let mut trailers = HeaderMap::new();
    // An encoded status cannot fail; a bare code is what is left if it did.
    if status::Error::from(refusal).status(id).add_header(&mut trailers).is_err() {
        trailers.insert(tonic::Status::GRPC_STATUS, HeaderValue::from_static("14"));
    }
    trailers
}

fn code_of(value: &HeaderValue) -> tonic::Code {
    tonic::Code::from_bytes(value.as_bytes())
}

/// gRPC's own names, as in `UNAVAILABLE`.
fn code_name(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "CANCELLED",
        tonic::Code::Unknown => "UNKNOWN",
        tonic::Code::InvalidArgument => "INVALID_ARGUMENT",
        tonic::Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        tonic::Code::NotFound => "NOT_FOUND",
        tonic::Code::AlreadyExists => "ALREADY_EXISTS",
        tonic::Code::PermissionDenied => "PERMISSION_DENIED",
        tonic::Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        tonic::Code::FailedPrecondition => "FAILED_PRECONDITION",
        tonic::Code::Aborted => "ABORTED",
        tonic::Code::OutOfRange => "OUT_OF_RANGE",
        tonic::Code::Unimplemented => "UNIMPLEMENTED",
        tonic::Code::Internal => "INTERNAL",
        tonic::Code::Unavailable => "UNAVAILABLE",
        tonic::Code::DataLoss => "DATA_LOSS",
        tonic::Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Whether a call goes on when its caller goes away or its time is up: what is
/// on disk must be so in memory too.
fn is_finished(method: &MethodRule) -> bool {
    !is_stream(method) && IN_MEMORY.iter().any(|service| method.full_name.starts_with(service))
}

fn is_stream(method: &MethodRule) -> bool {
    method.client_streaming || method.server_streaming
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::table::RateClass;

    fn method(rule: Rule, server_streaming: bool) -> MethodRule {
        MethodRule {
            full_name: "test.Service/Method".into(),
            path: "/test.Service/Method".into(),
            rule,
            identifier: false,
            step: false,
            rate_class: RateClass::Standard,
            client_streaming: false,
            server_streaming,
        }
    }

    #[test]
    fn strangers_take_no_room_from_callers_that_are_known() {
        let room = Room::new(1, 1, Duration::from_secs(1), CancellationToken::new());
        let public = |streaming| method(Rule::Public("why".into()), streaming);
        let known = |streaming| method(Rule::Authenticated("why".into()), streaming);
        let strangers: Vec<_> =
            (0..PUBLIC_STREAMS_MAX).map(|_| room.enter(&public(true)).unwrap()).collect();
        assert_eq!(room.enter(&public(true)).unwrap_err().reason, Reason::Overloaded);
        for streaming in [false, true] {
            let place = room.enter(&known(streaming)).unwrap();
            assert!(place.is_some());
            assert_eq!(room.enter(&known(streaming)).unwrap_err().reason, Reason::Overloaded);
            assert!(room.enter(&public(false)).unwrap().is_none());
        }
        drop(strangers);
        assert!(room.enter(&public(true)).is_ok());
    }
}
