//! Every error as REST shows it: the HTTP status, the headers and the body.
//!
//! Not here: which error it is (`access`, `grpc/status.rs`).

use std::{borrow::Cow, sync::LazyLock, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use prost::Message as _;
use prost_reflect::DescriptorPool;
use tonic::{Code, Status};

use super::{Body, fault::Fault, json::Writer, schema::Schema};
use crate::pb::{FILE_DESCRIPTOR_SET, google::rpc, v1::Reason};

/// The domain of our reasons.
const DOMAIN: &str = "bailiwick";

/// How the details of errors are written, where no gateway is at hand.
static DETAILS: LazyLock<Schema> = LazyLock::new(|| {
    DescriptorPool::decode(FILE_DESCRIPTOR_SET)
        .ok()
        .and_then(|pool| Schema::new(&pool, []).ok())
        .unwrap_or_default()
});

/// Renders a status, as that of a refusal of the gate, for REST. Without an
/// id the status's own details may have it.
#[must_use]
pub fn response(status: &Status, request_id: Option<&str>) -> Response<Body> {
    Rendered::of_status(&DETAILS, status, request_id).response()
}

/// The answer for a path that is not in the table: 404.
#[must_use]
pub fn unknown_path(request_id: Option<&str>) -> Response<Body> {
    Rendered::of_fault(&DETAILS, &Fault::unknown_path(), request_id).response()
}

/// The answer for a verb that the path does not take: 405 with `Allow`.
#[must_use]
pub fn verb_not_allowed(allow: &str, request_id: Option<&str>) -> Response<Body> {
    let fault = Fault::wrong_verb(allow);
    let mut response = Rendered::of_fault(&DETAILS, &fault, request_id).response();
    if let Ok(allow) = HeaderValue::from_str(allow) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

/// An error on its way out.
#[derive(Debug)]
pub(in crate::gateway) struct Rendered {
    http: StatusCode,
    /// In seconds.
    retry_after: Option<u64>,
    request_id: Option<String>,
    /// The JSON.
    body: Vec<u8>,
}

/// What a body is made of.
struct Parts<'p> {
    http: StatusCode,
    code: Code,
    reason: &'p str,
    message: &'p str,
    details: &'p [prost_types::Any],
}

impl Rendered {
    /// A status, its details taken apart.
    pub(in crate::gateway) fn of_status(
        schema: &Schema,
        status: &Status,
        request_id: Option<&str>,
    ) -> Self {
        // Details that cannot be read are left out; the code still counts.
        let details = tonic_types::Status::decode(status.details()).unwrap_or_default().details;
        let info: rpc::ErrorInfo = detail(&details, "google.rpc.ErrorInfo").unwrap_or_default();
        let retry: Option<rpc::RetryInfo> = detail(&details, "google.rpc.RetryInfo");
        let request: rpc::RequestInfo =
            detail(&details, "google.rpc.RequestInfo").unwrap_or_default();
        let request_id = request_id
            .or_else(|| info.metadata.get("request_id").map(String::as_str))
            .or_else(|| Some(request.request_id.as_str()).filter(|id| !id.is_empty()));
        let reason = if info.reason.is_empty() {
            name(fallback_reason(status.code()))
        } else {
            Cow::Borrowed(info.reason.as_str())
        };
        let parts = Parts {
            http: http_status(status.code(), &reason),
            code: status.code(),
            reason: &reason,
            message: status.message(),
            details: &details,
        };
        let retry_after = retry
            .and_then(|retry| retry.retry_delay)
            .and_then(|delay| Duration::try_from(delay).ok());
        Self::new(schema, &parts, retry_after, request_id)
    }

    /// A fault of the gateway's own, with the same details.
    pub(in crate::gateway) fn of_fault(
        schema: &Schema,
        fault: &Fault,
        request_id: Option<&str>,
    ) -> Self {
        let reason = name(fault.reason);
        let mut details = vec![packed(
            "google.rpc.ErrorInfo",
            &rpc::ErrorInfo {
                reason: reason.clone().into_owned(),
                domain: DOMAIN.to_owned(),
                metadata: request_id
                    .map(|id| ("request_id".to_owned(), id.to_owned()))
                    .into_iter()
                    .collect(),
            },
        )];
        if let Some((field, what)) = &fault.field {
            let violation = rpc::bad_request::FieldViolation {
                field: field.clone(),
                description: what.clone(),
                ..Default::default()
            };
            let bad = rpc::BadRequest { field_violations: vec![violation] };
            details.push(packed("google.rpc.BadRequest", &bad));
        }
        let parts = Parts {
            http: fault.http,
            code: fault.code,
            reason: &reason,
            message: &fault.message,
            details: &details,
        };
        Self::new(schema, &parts, None, request_id)
    }

    fn new(
        schema: &Schema,
        parts: &Parts<'_>,
        retry_after: Option<Duration>,
        request_id: Option<&str>,
    ) -> Self {
        let mut body = Vec::with_capacity(256);
        let member = |key: &str, value: &str, body: &mut Vec<u8>| {
            body.push(if body.is_empty() { b'{' } else { b',' });
            for (text, after) in [(key, &b":"[..]), (value, b"")] {
                // Writing a string into memory cannot fail.
                let _ = serde_json::to_writer(&mut *body, text);
                body.extend_from_slice(after);
            }
        };
        member("error", &http_reason(parts.http), &mut body);
        member("message", parts.message, &mut body);
        member("code", code_name(parts.code), &mut body);
        member("reason", parts.reason, &mut body);
        if let Some(id) = request_id {
            member("request_id", id, &mut body);
        }
        let retry_after = retry_after.filter(|_| says_when(parts.http)).map(whole_seconds);
        if let Some(seconds) = retry_after {
            body.extend_from_slice(format!(",\"retry_after\":{seconds}").as_bytes());
        }
        body.extend_from_slice(b",\"details\":[");
        let mut first = true;
        for detail in parts.details {
            let mut text = Vec::new();
            if Writer::new(schema).any(&detail.encode_to_vec(), &mut text).is_ok() {
                if !std::mem::take(&mut first) {
                    body.push(b',');
                }
                body.append(&mut text);
            }
        }
        body.extend_from_slice(b"]}");
        Self { http: parts.http, retry_after, request_id: request_id.map(str::to_owned), body }
    }

    /// The JSON alone, as the last line of a stream.
    pub(in crate::gateway) fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// The whole answer.
    pub(in crate::gateway) fn response(self) -> Response<Body> {
        let mut response = json_response(self.http, self.body.into());
        let headers = response.headers_mut();
        if self.http == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(id) = self.request_id.and_then(|id| HeaderValue::try_from(id).ok()) {
            headers.insert("x-request-id", id);
        }
        response
    }
}

/// Whether an answer of this status says when to come again.
fn says_when(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

/// Up: whoever comes on time must not be too early.
fn whole_seconds(delay: Duration) -> u64 {
    (delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).max(1)
}

/// An answer in JSON with the headers that every answer of the API has.
pub(in crate::gateway) fn json_response(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::new(http_body_util::Full::new(body)));
    *response.status_mut() = status;
    api_headers(&mut response, HeaderValue::from_static("application/json"));
    response
}

/// What every answer of the API says of itself: nothing keeps it (SE-20).
pub(in crate::gateway) fn api_headers(response: &mut Response<Body>, content_type: HeaderValue) {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Authorization, X-API-Key"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

fn detail<M: prost::Message + Default>(details: &[prost_types::Any], name: &str) -> Option<M> {
    let any = details.iter().find(|any| any.type_url.rsplit('/').next() == Some(name))?;
    M::decode(any.value.as_slice()).ok()
}

fn packed(name: &str, message: &impl prost::Message) -> prost_types::Any {
    prost_types::Any {
        type_url: format!("type.googleapis.com/{name}"),
        value: message.encode_to_vec(),
    }
}

/// The reason as callers see it.
fn name(reason: Reason) -> Cow<'static, str> {
    let name = reason.as_str_name();
    Cow::Borrowed(name.strip_prefix("REASON_").unwrap_or(name))
}

/// The reason of a status that came without one.
const fn fallback_reason(code: Code) -> Reason {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Reason::RequestMalformed,
        Code::DeadlineExceeded => Reason::Deadline,
        Code::NotFound => Reason::NotFound,
        Code::PermissionDenied => Reason::PermissionMissing,
        Code::ResourceExhausted => Reason::RateLimited,
        Code::Unimplemented => Reason::UnknownMethod,
        Code::Unavailable => Reason::Overloaded,
        Code::Unauthenticated => Reason::CredentialsInvalid,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Internal
        | Code::DataLoss => Reason::Internal,
    }
}

/// The HTTP status of a code; some reasons have their own.
fn http_status(code: Code, reason: &str) -> StatusCode {
    match reason {
        "BODY_TOO_LARGE" => return StatusCode::PAYLOAD_TOO_LARGE,
        "CONTENT_TYPE_NOT_SUPPORTED" => return StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "VERB_NOT_ALLOWED" => return StatusCode::METHOD_NOT_ALLOWED,
        "HOST_NOT_ALLOWED" => return StatusCode::MISDIRECTED_REQUEST,
        _ => {}
    }
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
            StatusCode::BAD_REQUEST
        }
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// The reason phrase in snake case, as `not_found`.
fn http_reason(status: StatusCode) -> String {
    if status.as_u16() == 499 {
        return "client_closed_request".to_owned();
    }
    status.canonical_reason().unwrap_or("error").to_ascii_lowercase().replace([' ', '-'], "_")
}

const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
