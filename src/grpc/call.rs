//! The way through a handler: the caller comes out of the request's
//! extensions, where the gate has put it, and every error goes through
//! `status`.

use tonic::{Request, Response, Status};

use super::{
    status::{self, Error},
    trace,
};
use crate::{access::Caller, domain::RequestId};

/// Answers a unary call: `handler` gets the caller and the message.
pub(super) async fn answer<Q, R, F>(
    request: Request<Q>,
    handler: impl FnOnce(Caller, Q) -> F,
) -> Result<Response<R>, Status>
where
    F: Future<Output = Result<R, Error>>,
{
    let (caller, message) = open(request)?;
    let id = caller.request();
    match handler(caller, message).await {
        Ok(reply) => Ok(Response::new(reply)),
        Err(error) => Err(error.status(Some(id))),
    }
}

/// Who calls and with what message.
pub(super) fn open<Q>(request: Request<Q>) -> Result<(Caller, Q), Status> {
    let (_, mut extensions, message) = request.into_parts();
    let caller = extensions.remove::<Caller>().ok_or_else(status::no_caller)?;
    Ok((caller, message))
}

/// The trace context of a call, for the task that it creates.
pub(super) fn traceparent<Q>(request: &Request<Q>) -> Option<String> {
    trace::traceparent(request.extensions(), request.metadata())
}

/// The id of a request: its caller's, or on a public route the stack's own.
pub(super) fn request_id(extensions: &http::Extensions) -> Option<RequestId> {
    extensions.get::<Caller>().map(Caller::request).or_else(|| extensions.get().copied())
}
