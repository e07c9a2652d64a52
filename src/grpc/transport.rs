//! What tonic answers by itself, before a handler runs, leaves as our own
//! errors do: with a reason and the request's id.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures::{TryFutureExt as _, future::BoxFuture};
use http::{HeaderMap, Request, Response};
use tonic::{Status, body::Body};
use tower::Service;

use super::{call::request_id, status};
use crate::domain::RequestId;

/// A service whose every error is rendered by `status`.
#[derive(Clone, Debug)]
pub struct Rendered<S>(pub(super) S);

impl<S, B> Service<Request<B>> for Rendered<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let id = request_id(request.extensions());
        Box::pin(self.0.call(request).map_ok(move |response| rendered(response, id)))
    }
}

fn rendered(response: Response<Body>, request: Option<RequestId>) -> Response<Body> {
    if !is_bare(response.headers()) {
        return response;
    }
    match Status::from_header_map(response.headers()) {
        Some(status) => status::transport(status, request).into_http(),
        None => response,
    }
}

/// An error in the headers without details; one of ours always has them.
fn is_bare(headers: &HeaderMap) -> bool {
    headers.get("grpc-status").is_some_and(|code| code != "0")
        && !headers.contains_key("grpc-status-details-bin")
}
