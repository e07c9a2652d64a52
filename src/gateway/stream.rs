//! Answers of gRPC taken apart into messages, and server streams as NDJSON or
//! server-sent events.
//!
//! Not here: single answers (`serve`).

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use futures::stream;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tonic::Status;

use super::{
    Body,
    fault::Fault,
    json::Writer,
    routes::{RestCall, Route},
    schema::Schema,
    status::{Rendered, api_headers},
};

/// One message of an answer at most: a lease's inputs, and room.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a quiet stream's headers wait for an early error.
const PEEK: Duration = Duration::from_millis(20);
/// Every message has in front of it whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Why an answer ended early.
#[derive(Debug)]
pub(in crate::gateway) enum Ended {
    /// The call's own error.
    Status(Box<Status>),
    /// The answer was no gRPC that we understand.
    Broken(&'static str),
}

impl Ended {
    pub(in crate::gateway) fn render(&self, schema: &Schema, id: Option<&str>) -> Rendered {
        match self {
            Self::Status(status) => Rendered::of_status(schema, status, id),
            Self::Broken(why) => {
                tracing::error!(request_id = id, why, "the answer of a call is broken");
                Rendered::of_fault(schema, &Fault::internal(), id)
            }
        }
    }
}

/// The messages of one answer.
#[derive(Debug)]
pub(in crate::gateway) struct Messages {
    body: Body,
    buffer: BytesMut,
    /// The headers had the status, and it was good.
    ended_well: bool,
}

impl Messages {
    /// Of an answer whose headers do not hold its status already.
    pub(in crate::gateway) fn new(headers: &HeaderMap, body: Body) -> Result<Self, Ended> {
        // A call that fails at once has its status in the headers.
        let mut ended_well = false;
        if let Some(status) = Status::from_header_map(headers) {
            if status.code() != tonic::Code::Ok {
                return Err(Ended::Status(Box::new(status)));
            }
            ended_well = true;
        }
        Ok(Self { body, buffer: BytesMut::new(), ended_well })
    }

    /// The next message; none at a good end. Loses nothing when it is dropped
    /// while it waits.
    pub(in crate::gateway) async fn next(&mut self) -> Result<Option<Bytes>, Ended> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if self.buffer.is_empty() => self.buffer = BytesMut::from(data),
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => return self.end(frame.trailers_ref()),
                },
                Some(Err(status)) => return Err(Ended::Status(Box::new(status))),
                None if self.ended_well && self.buffer.is_empty() => return Ok(None),
                None => return self.end(None),
            }
        }
    }

    fn end(&self, trailers: Option<&HeaderMap>) -> Result<Option<Bytes>, Ended> {
        match trailers.and_then(Status::from_header_map) {
            Some(status) if status.code() != tonic::Code::Ok => {
                Err(Ended::Status(Box::new(status)))
            }
            Some(_) if !self.buffer.is_empty() => Err(Ended::Broken("it ends inside a message")),
            Some(_) => Ok(None),
            None => Err(Ended::Broken("it has no status")),
        }
    }

    fn take(&mut self) -> Result<Option<Bytes>, Ended> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let [compressed, length @ ..] = *prefix;
        if compressed != 0 {
            return Err(Ended::Broken("it is compressed, unasked"));
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MESSAGE_BYTES_MAX {
            return Err(Ended::Broken("a message is too large"));
        }
        if self.buffer.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

/// How the messages of a stream stand in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Format {
    /// One JSON value a line.
    Lines,
    /// Server-sent events.
    Events,
}

impl Format {
    /// What the caller likes best; lines when in doubt.
    pub(in crate::gateway) fn of(headers: &HeaderMap) -> Self {
        let quality = |wanted: &str| {
            headers
                .get_all(header::ACCEPT)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split(','))
                .filter_map(|range| {
                    let mut parts = range.split(';').map(str::trim);
                    let name = parts.next()?;
                    let quality = parts
                        .find_map(|part| part.strip_prefix("q="))
                        .map_or(Some(1.0), |quality| quality.parse::<f32>().ok())?;
                    name.eq_ignore_ascii_case(wanted).then_some(quality)
                })
                .fold(0.0, f32::max)
        };
        if quality("text/event-stream") > quality("application/x-ndjson") {
            Self::Events
        } else {
            Self::Lines
        }
    }

    const fn content_type(self) -> HeaderValue {
        match self {
            Self::Lines => HeaderValue::from_static("application/x-ndjson"),
            Self::Events => HeaderValue::from_static("text/event-stream"),
        }
    }

    const fn before(self) -> &'static [u8] {
        match self {
            Self::Lines => b"",
            Self::Events => b"data: ",
        }
    }

    const fn before_error(self) -> &'static [u8] {
        match self {
            Self::Lines => b"",
            Self::Events => b"event: error\ndata: ",
        }
    }

    const fn after(self) -> &'static [u8] {
        match self {
            Self::Lines => b"\n",
            Self::Events => b"\n\n",
        }
    }
}

/// A server stream on its way out.
struct Outgoing {
    messages: Messages,
    /// What the peek found.
    first: Option<Result<Option<Bytes>, Ended>>,
    format: Format,
    schema: Arc<Schema>,
    route: Arc<Route>,
    request_id: Option<String>,
}

impl Outgoing {
    /// The next piece of the body, and the stream itself unless that was all.
    async fn next(mut self) -> Option<(Bytes, Option<Self>)> {
        let next = match self.first.take() {
            Some(first) => first,
            None => self.messages.next().await,
        };
        let mut out = Vec::new();
        let ended = match next {
            Ok(None) => return None,
            Ok(Some(message)) => {
                out.extend_from_slice(self.format.before());
                match write(&self.schema, &self.route, &message, &mut out) {
                    Ok(()) => {
                        out.extend_from_slice(self.format.after());
                        return Some((out.into(), Some(self)));
                    }
                    Err(ended) => ended,
                }
            }
            Err(ended) => ended,
        };
        out.clear();
        out.extend_from_slice(self.format.before_error());
        let rendered = ended.render(&self.schema, self.request_id.as_deref());
        out.extend_from_slice(&rendered.into_body());
        out.extend_from_slice(self.format.after());
        Some((out.into(), None))
    }
}

/// Writes one message of an answer as its route wants it.
pub(in crate::gateway) fn write(
    schema: &Schema,
    route: &Route,
    message: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Ended> {
    let mut writer = Writer::new(schema);
    let field =
        route.response_body.and_then(|index| schema.message(route.output).fields.get(index));
    match field {
        Some(field) => writer.field(field, message, out),
        None => writer.message(route.output, message, out),
    }
    .map_err(|_| Ended::Broken("a message cannot be read"))
}

/// Answers with a stream. Waits a moment for an early error, which then is an
/// ordinary answer with its own status.
pub(in crate::gateway) async fn response(
    mut messages: Messages,
    call: &RestCall,
    format: Format,
    request_id: Option<String>,
) -> Result<Response<Body>, Ended> {
    let first = match tokio::time::timeout(PEEK, messages.next()).await {
        Ok(Err(ended)) => return Err(ended),
        Ok(Ok(first)) => Some(Ok(first)),
        Err(_) => None,
    };
    let body = if call.head {
        Body::empty()
    } else {
        let outgoing = Outgoing {
            messages,
            first,
            format,
            schema: Arc::clone(&call.schema),
            route: Arc::clone(&call.route),
            request_id,
        };
        let pieces = stream::unfold(Some(outgoing), |state| async move {
            let (piece, state) = state?.next().await?;
            Some((Ok::<_, std::convert::Infallible>(Frame::data(piece)), state))
        });
        Body::new(StreamBody::new(pieces))
    };
    let mut response = Response::new(body);
    *response.status_mut() = call.route.success;
    api_headers(&mut response, format.content_type());
    // Proxies that gather what they pass on would hold events back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}
