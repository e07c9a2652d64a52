//! The way through a handler: the caller comes out of the request's
//! extensions, where the gate has put it, and every error goes through
//! `status`.

use tonic::{Request, Response, Status};

use super::{
    status::{self, Error},
    trace,
};
use crate::{
    access::{Caller, Ending, Recorded},
    domain::{RequestId, audit::Outcome},
};

/// Answers a unary call: `handler` gets the caller and the message.
pub(super) async fn answer<Q, R, F>(
    request: Request<Q>,
    handler: impl FnOnce(Caller, Q) -> F,
) -> Result<Response<R>, Status>
where
    Q: Recorded,
    F: Future<Output = Result<R, Error>>,
{
    let (caller, message) = open(request)?;
    let (call, object) = (caller.clone(), message.object_text().to_owned());
    let reply = handler(caller, message).await;
    recorded(&call, &object, reply).await.map(Response::new)
}

/// Records how a call ended before it is answered.
pub(super) async fn recorded<R>(
    caller: &Caller,
    object: &str,
    reply: Result<R, Error>,
) -> Result<R, Status> {
    let id = Some(caller.request());
    let (reply, outcome, reason) = match reply {
        Ok(reply) => (Ok(reply), Outcome::Allowed, None),
        Err(error) => {
            let (outcome, reason, status) = error.verdict(id);
            (Err(status), outcome, Some(reason))
        }
    };
    let reason = reason.map(status::reason_name);
    let ending = Ending { outcome, reason, object };
    match caller.record(ending).await {
        // What was refused stays so, recorded or not.
        Err(refusal) if reply.is_ok() => Err(Error::from(refusal).status(id)),
        Ok(()) | Err(_) => reply,
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
