//! One REST call: its parts into one gRPC frame, and the answer back.
//!
//! Not here: which call it is (`routes`), who makes it (`access`).

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
    request::Parts,
};
use prost_reflect::DescriptorPool;
use tower::{Service, ServiceExt as _};

use super::{
    Error,
    fault::Fault,
    json::{Writer, field_from_json, message_from_json, write_delimited},
    query::query_to_message,
    reader::{drain, read},
    routes::{BodyRule, RestCall},
    schema::Schema,
    status::{Rendered, json_response},
    stream::{self, Ended, Format, Messages},
};
use crate::{access::Caller, pb::v1::Reason};

/// The body of requests to gRPC and of answers.
pub type Body = tonic::body::Body;

/// What the gateway passes on; everything else, as `grpc-timeout` or
/// `grpc-metadata-…`, stays outside (SE-13).
const REQUEST_HEADERS: [&str; 4] = ["traceparent", "tracestate", "user-agent", "x-request-id"];
/// What of an answer's headers reaches the caller.
const RESPONSE_HEADERS: [&str; 1] = ["x-request-id"];

/// What to ask for next, where the answer is the list alone.
const NEXT_PAGE: &str = "x-next-page-token";

/// What a body may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Its size.
    pub body_bytes: usize,
    /// The time until it is there as a whole.
    pub body_timeout: Duration,
}

/// Serves REST calls by the gRPC services.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// For the details of errors.
    details: Arc<Schema>,
    limits: Limits,
}

impl Gateway {
    /// A gateway for the services of this pool.
    pub fn new(pool: &DescriptorPool, limits: Limits) -> Result<Self, Error> {
        Ok(Self { details: Arc::new(Schema::new(pool, [])?), limits })
    }

    /// Serves one call that the gate let through. Who calls travels in the
    /// request's extensions, which go on to `inner` as they are.
    pub async fn serve<B, S, R>(
        &self,
        call: RestCall,
        request: Request<B>,
        inner: S,
    ) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes>,
        S: Service<Request<Body>, Response = Response<R>>,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<tonic::codegen::StdError>,
    {
        let (parts, body) = request.into_parts();
        let id = request_id(&parts);
        let format = Format::of(&parts.headers);
        let mut body = pin!(body);
        let frame = match self.frame(&call, &parts, body.as_mut()).await {
            Ok(frame) => frame,
            Err(fault) => {
                // Who waits for leave to write, or writes nothing, need not be drained.
                let writing = !parts.headers.contains_key(header::EXPECT)
                    && fault.http != StatusCode::REQUEST_TIMEOUT;
                if writing {
                    drain(body).await;
                }
                return Rendered::of_fault(&self.details, &fault, id.as_deref()).response();
            }
        };
        let Ok(reply) = inner.oneshot(grpc_request(&call, parts, frame)).await else {
            let ended = Ended::Broken("the services cannot be reached");
            return ended.render(&self.details, id.as_deref()).response();
        };
        let (head, body) = reply.map(Body::new).into_parts();
        let answer = match Messages::new(&head.headers, body) {
            Ok(messages) if call.route.streaming => {
                stream::response(messages, &call, format, id.clone()).await
            }
            Ok(messages) => unary(messages, &call).await,
            Err(ended) => Err(ended),
        };
        let mut answer =
            answer.unwrap_or_else(|ended| ended.render(&self.details, id.as_deref()).response());
        for name in RESPONSE_HEADERS {
            if let Some(value) = head.headers.get(name) {
                answer.headers_mut().insert(name, value.clone());
            }
        }
        answer
    }

    /// The request as one gRPC frame.
    async fn frame<B>(
        &self,
        call: &RestCall,
        parts: &Parts,
        body: Pin<&mut B>,
    ) -> Result<Bytes, Fault>
    where
        B: http_body::Body<Data = Bytes>,
    {
        let route = &*call.route;
        let form = route.form && matches!(content_type(&parts.headers), ContentType::Form);
        let body = self.body(route.body, form, &parts.headers, body).await?;
        let text = std::str::from_utf8(&body)
            .map_err(|_| Fault::malformed("The body is not valid UTF-8"))?;
        let json = if text.is_empty() { "{}" } else { text };

        // Not compressed; the length follows when it is known.
        let mut out = Vec::with_capacity(64 + body.len());
        out.extend_from_slice(&[0; 5]);
        let fields = route.path_fields(&call.schema);
        for (field, value) in fields.zip(&call.variables) {
            write_delimited(field.number, value.as_bytes(), &mut out);
        }
        let mut taken = route.path_bits;
        match route.body {
            BodyRule::None => {}
            BodyRule::Whole if form => {
                // Says nothing of what stands there: it may be a token.
                query_to_message(&call.schema, route.input, text, taken, &mut out).map_err(
                    |_| Fault::malformed("The form has a field that is unknown or stands twice"),
                )?;
            }
            BodyRule::Whole => {
                taken = message_from_json(&call.schema, route.input, json, taken, &mut out)?;
            }
            BodyRule::Field(index) => {
                if let Some(field) = call.schema.message(route.input).fields.get(index) {
                    field_from_json(&call.schema, field, json, &mut out)?;
                    taken |= field.bit;
                }
            }
        }
        if let Some(query) = parts.uri.query().filter(|query| !query.is_empty()) {
            query_to_message(&call.schema, route.input, query, taken, &mut out)?;
            if route.body == BodyRule::Whole {
                // Else a web page could call without a body, and so unasked.
                let what = "This call takes its fields in the body, none in the query";
                return Err(Fault::malformed(what));
            }
        }
        let length = u32::try_from(out.len().saturating_sub(5))
            .map_err(|_| Fault::too_large(self.limits.body_bytes))?;
        if let Some((_, rest)) = out.split_first_mut()
            && let Some(slot) = rest.first_chunk_mut::<4>()
        {
            *slot = length.to_be_bytes();
        }
        Ok(out.into())
    }

    /// The body where the route has one; first its type, then its size.
    async fn body<B>(
        &self,
        rule: BodyRule,
        form: bool,
        headers: &HeaderMap,
        body: Pin<&mut B>,
    ) -> Result<Bytes, Fault>
    where
        B: http_body::Body<Data = Bytes>,
    {
        let Limits { body_bytes, body_timeout } = self.limits;
        if rule == BodyRule::None {
            let none = read(body, 0, body_timeout).await;
            return none.map_err(|fault| {
                let some = fault.reason == Reason::BodyTooLarge;
                if some { Fault::malformed("This call takes no body") } else { fault }
            });
        }
        if headers.contains_key(header::CONTENT_ENCODING) {
            return Err(Fault::content_type());
        }
        match content_type(headers) {
            ContentType::Json => read(body, body_bytes, body_timeout).await,
            ContentType::Form if form => read(body, body_bytes, body_timeout).await,
            ContentType::Form | ContentType::Other => Err(Fault::content_type()),
            // Only nothing at all may come without a type (SE-15).
            ContentType::Absent => {
                let none = read(body, 0, body_timeout).await;
                none.map_err(|fault| {
                    let some = fault.reason == Reason::BodyTooLarge;
                    if some { Fault::content_type() } else { fault }
                })
            }
        }
    }
}

enum ContentType {
    Absent,
    Json,
    Form,
    Other,
}

fn content_type(headers: &HeaderMap) -> ContentType {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(value) = values.next() else { return ContentType::Absent };
    let Ok(text) = value.to_str() else { return ContentType::Other };
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let utf8 = parts.all(|parameter| {
        parameter.eq_ignore_ascii_case("charset=utf-8")
            || parameter.eq_ignore_ascii_case("charset=\"utf-8\"")
    });
    if !utf8 || values.next().is_some() {
        ContentType::Other
    } else if name.eq_ignore_ascii_case("application/json") {
        ContentType::Json
    } else if name.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        ContentType::Form
    } else {
        ContentType::Other
    }
}

/// The id that the layers in front gave the request.
fn request_id(parts: &Parts) -> Option<String> {
    parts
        .extensions
        .get::<Caller>()
        .map(|caller| caller.request().to_string())
        .or_else(|| Some(parts.headers.get("x-request-id")?.to_str().ok()?.to_owned()))
}

fn grpc_request(call: &RestCall, parts: Parts, frame: Bytes) -> Request<Body> {
    let mut request = Request::new(Body::new(http_body_util::Full::new(frame)));
    *request.method_mut() = Method::POST;
    // From the table, never from the caller (SE-12).
    *request.uri_mut() = Uri::from(call.route.grpc_path.clone());
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    for name in REQUEST_HEADERS {
        for value in parts.headers.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    *request.extensions_mut() = parts.extensions;
    request
}

/// An answer of exactly one message.
async fn unary(mut messages: Messages, call: &RestCall) -> Result<Response<Body>, Ended> {
    let message = messages.next().await?.ok_or(Ended::Broken("it has no message"))?;
    // The status comes behind the message, and it decides.
    if messages.next().await?.is_some() {
        return Err(Ended::Broken("it has two messages"));
    }
    let success = call.route.success;
    let mut out = Vec::with_capacity(message.len() * 2 + 256);
    stream::write(&call.schema, &call.route, &message, &mut out)?;
    if success == StatusCode::NO_CONTENT {
        out.clear();
    }
    let length = out.len();
    let mut response = json_response(success, if call.head { Bytes::new() } else { out.into() });
    if success == StatusCode::NO_CONTENT {
        response.headers_mut().remove(header::CONTENT_TYPE);
    } else if call.head {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    if let Some(token) = next_page(call, &message)? {
        response.headers_mut().insert(NEXT_PAGE, token);
    }
    Ok(response)
}

/// The token of the page behind a list that the answer is alone: it would be
/// left out silently.
fn next_page(call: &RestCall, message: &[u8]) -> Result<Option<HeaderValue>, Ended> {
    let output = call.schema.message(call.route.output);
    let field = output.field("next_page_token").filter(|_| call.route.response_body.is_some());
    let Some(field) = field else { return Ok(None) };
    let mut json = Vec::new();
    Writer::new(&call.schema)
        .field(field, message, &mut json)
        .map_err(|_| Ended::Broken("a message cannot be read"))?;
    let token: String = serde_json::from_slice(&json)
        .map_err(|_| Ended::Broken("the token of a page is no text"))?;
    let value = HeaderValue::try_from(token).ok();
    Ok(value.filter(|value| !value.is_empty()))
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
