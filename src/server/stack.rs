//! The way of one call, gRPC or REST alike: its id and trace, where it comes
//! from, which method it is, the gate, then the gateway or the tonic routes.
//! What is not in the table is refused (SE-12).

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use rand::Rng as _;
use tonic::body::Body;
use tower::Service as _;
use tracing::Instrument as _;

use super::{
    observe::{Observation, Observed, Surface},
    origin::{self, Origins},
    pages::{Page, Pages},
    peer, telemetry,
};
use crate::{
    access::{Caller, Gate, Kind, MethodRule, Reason, Refusal, Table},
    authn::{ClientCertificate, Evidence},
    domain::{Network, RequestId},
    gateway::{self, Classified, Gateway, RestCall, Routes},
    grpc::{TraceParent, status},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Everything that a call passes.
#[derive(Debug)]
pub(super) struct Stack {
    /// The rule of each method.
    pub(super) table: Arc<Table>,
    /// Who may call what.
    pub(super) gate: Gate,
    /// Where calls may come from.
    pub(super) origins: Origins,
    /// Proxies that say where a call comes from.
    pub(super) trusted_proxies: Vec<Network>,
    /// The REST routes.
    pub(super) routes: Routes,
    /// REST to gRPC and back.
    pub(super) gateway: Gateway,
    /// The tonic routes with what surrounds each call.
    pub(super) calls: Observed,
    /// The public pages.
    pub(super) pages: Pages,
}

/// What a call is, once it is classified.
enum Target {
    Grpc(Arc<MethodRule>),
    Rest(Arc<MethodRule>, RestCall),
    Page(Response<Body>),
}

/// A call that goes no further.
enum Rejected {
    /// Refused, by gRPC or REST.
    Refused(Refusal),
    /// REST: there is nothing at the path.
    UnknownPath,
    /// REST: the path takes these verbs.
    WrongVerb(String),
}

impl From<Refusal> for Rejected {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Stack {
    /// Answers one call; never fails.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Body> {
        let id = RequestId::from_random(rand::rng().random());
        let surface = surface(&request);
        let span = tracing::info_span!(
            "request",
            request_id = %id,
            trace_id = tracing::field::Empty,
            method = tracing::field::Empty,
        );
        let trace = telemetry::continue_trace(&span, request.headers());
        span.record("trace_id", tracing::field::display(format_args!("{:032x}", trace.trace)));
        let mut request = request;
        request.extensions_mut().insert(TraceParent(trace.to_string()));
        let id_value = HeaderValue::from_str(&id.to_string()).ok();
        // Whatever the caller called it: this is the id (SE-13).
        match id_value.clone() {
            Some(value) => request.headers_mut().insert(REQUEST_ID, value),
            None => request.headers_mut().remove(REQUEST_ID),
        };
        let cors = self.origins.allowed_origin(request.headers());
        let mut response = self.route(request, id, surface, peer).instrument(span).await;
        if let Some(value) = id_value {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        if let Some(page) = cors {
            origin::allow(response.headers_mut(), page);
        }
        response
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        id: RequestId,
        surface: Surface,
        peer: SocketAddr,
    ) -> Response<Body> {
        if let Err(refusal) = self.origins.check(&request) {
            return refuse(refusal.into(), id, surface, request).await;
        }
        if let Some(preflight) = self.origins.preflight(&request) {
            return preflight;
        }
        let target = match self.classify(&request, surface) {
            Ok(target) => target,
            Err(rejected) => return refuse(rejected, id, surface, request).await,
        };
        let (rule, rest) = match target {
            Target::Page(page) => return page,
            Target::Grpc(rule) => (rule, None),
            Target::Rest(rule, call) => (rule, Some(call)),
        };
        tracing::Span::current().record("method", &*rule.full_name);
        let call = Observation::begin(Arc::clone(&rule), surface);
        let evidence = Evidence {
            headers: request.headers(),
            certificate: request.extensions().get::<ClientCertificate>(),
            peer: peer::client(peer.ip(), request.headers(), &self.trusted_proxies),
        };
        let caller = match self.gate.enter(&rule, evidence, id).await {
            Ok(caller) => caller,
            Err(refusal) => {
                call.end(status::code(refusal.kind));
                let rate = refusal.rate;
                let mut response = refuse(refusal.into(), id, surface, request).await;
                peer::show(response.headers_mut(), rate);
                return response;
            }
        };
        let rate = caller.as_ref().and_then(Caller::rate);
        let mut request = request;
        let extensions = request.extensions_mut();
        extensions.insert(id);
        extensions.insert(call);
        let calling = caller.clone();
        if let Some(caller) = caller {
            extensions.insert(caller);
        }
        let mut response = match rest {
            Some(call) => {
                self.gateway.serve(call, request, self.calls.clone()).await.map(Body::new)
            }
            None => match self.calls.clone().call(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
        };
        if let Some(caller) = calling.filter(|caller| !caller.origin().is_settled()) {
            let reason = unanswered(&response);
            caller.unanswered(reason.as_deref()).await;
        }
        peer::show(response.headers_mut(), rate);
        response
    }

    /// One method from the table, or nothing (SE-12).
    fn classify(&self, request: &Request<Incoming>, surface: Surface) -> Result<Target, Rejected> {
        let path = request.uri().path();
        if surface == Surface::Grpc {
            let known = self.table.get(path).cloned().filter(|_| request.uri().query().is_none());
            return known.map(Target::Grpc).ok_or_else(|| {
                Refusal::new(Kind::UnknownMethod, Reason::UnknownMethod, "unknown method").into()
            });
        }
        match self.pages.at(request.method(), path) {
            Page::Found(page) => return Ok(Target::Page(page)),
            Page::WrongVerb => return Err(Rejected::WrongVerb("GET, HEAD".to_owned())),
            Page::None => {}
        }
        match self.routes.classify(request.method(), request.uri()) {
            Classified::Found(call) => {
                let rule = self.table.get(call.grpc_path()).cloned();
                rule.map(|rule| Target::Rest(rule, call)).ok_or(Rejected::UnknownPath)
            }
            Classified::WrongVerb { allow } => Err(Rejected::WrongVerb(allow)),
            Classified::NotFound => Err(Rejected::UnknownPath),
        }
    }
}

/// Why a call failed that no handler of ours has answered; none when it did
/// not, as one of reflection.
fn unanswered<B>(response: &Response<B>) -> Option<String> {
    let grpc = response.headers().get("grpc-status").and_then(|code| code.to_str().ok());
    match (grpc, response.status()) {
        (None | Some("0"), StatusCode::OK) => None,
        (Some(code), _) => Some(format!("GRPC_{code}")),
        (None, status) => Some(format!("HTTP_{}", status.as_u16())),
    }
}

/// gRPC says so itself; everything else is REST.
fn surface<B>(request: &Request<B>) -> Surface {
    let kind = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let grpc = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    match grpc.and_then(<[u8]>::first) {
        Some(b'+' | b';') => Surface::Grpc,
        None if grpc.is_some() => Surface::Grpc,
        _ => Surface::Rest,
    }
}

/// Refuses before the body is read. REST's body that is under way is taken off
/// the wire, so that the client reads the answer.
async fn refuse(
    rejected: Rejected,
    id: RequestId,
    surface: Surface,
    request: Request<Incoming>,
) -> Response<Body> {
    let rejected = match (surface, rejected) {
        (Surface::Grpc, Rejected::Refused(refusal)) => {
            return status::Error::from(refusal).status(Some(id)).into_http();
        }
        (_, rejected) => rejected,
    };
    // Who waits for leave to write would get it by that.
    if !request.headers().contains_key(header::EXPECT) {
        gateway::drain(request.into_body()).await;
    }
    let id_text = id.to_string();
    let response = match rejected {
        Rejected::Refused(refusal) => {
            let misdirected = refusal.reason == Reason::HostNotAllowed;
            let status = status::Error::from(refusal).status(Some(id));
            let mut response = gateway::status::response(&status, Some(&id_text));
            if misdirected {
                *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
            }
            response
        }
        Rejected::UnknownPath => gateway::status::unknown_path(Some(&id_text)),
        Rejected::WrongVerb(allow) => gateway::status::verb_not_allowed(&allow, Some(&id_text)),
    };
    response.map(Body::new)
}
