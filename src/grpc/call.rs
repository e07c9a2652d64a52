//! The way through a handler: the caller comes out of the request's
//! extensions, where the gate has put it, and every error goes through
//! `status`.

use std::pin::Pin;

use futures::{Stream, StreamExt as _, stream};
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

/// What a server stream sends.
pub(super) type Answers<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// The stream, cut off by an error when the caller's credential ends (SE-17).
pub(super) fn until_ended<M: Send + 'static>(
    caller: Caller,
    messages: impl Stream<Item = Result<M, Status>> + Send + 'static,
) -> Answers<M> {
    let id = caller.request();
    let ended = Box::pin(async move {
        let refusal = caller.ended().await;
        caller.cut_off(&refusal).await;
        refusal
    });
    let state = Some((ended, Box::pin(messages)));
    Box::pin(stream::unfold(state, move |state| async move {
        let (mut ended, mut messages) = state?;
        tokio::select! {
            biased;
            refusal = &mut ended => Some((Err(Error::from(refusal).status(Some(id))), None)),
            message = messages.next() => Some((message?, Some((ended, messages)))),
        }
    }))
}
