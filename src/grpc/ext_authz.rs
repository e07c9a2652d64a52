//! Envoy's external authorization: whether a request that a proxy holds may go
//! on. The route's `context_extensions` name the permission and the namespace.

use std::{borrow::Cow, collections::BTreeSet, fmt::Write as _, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use tonic::{Code, Request, Response, Status};

use super::{access_check::Asker, call::answer, status};
use crate::{
    access::{
        Caller, Gate, Guessing, Kind, Reason, Refusal, TOKEN_INACTIVE, Unauthenticated, Verdict,
        verdict,
    },
    domain::{
        Area, Principal,
        judged::{Judged, Judgement, Question},
    },
    pb::{
        envoy::service::auth::v3::{
            self as envoy, authorization_server, check_response::HttpResponse,
            header_value_option::HeaderAppendAction,
        },
        google::rpc,
    },
};

/// What stands in front of the headers that only this server sets.
const OWN_HEADERS: &str = "x-bailiwick-";

/// What the record says where the proxy's own settings refuse a request.
const ROUTE_INVALID: &str = "route_invalid";

/// Answers proxies.
#[derive(Clone, Debug)]
pub(super) struct ExtAuthz {
    gate: Gate,
    declared: Arc<BTreeSet<Arc<str>>>,
}

impl ExtAuthz {
    pub(super) fn new(gate: Gate, declared: BTreeSet<Arc<str>>) -> Self {
        Self { gate, declared: Arc::new(declared) }
    }

    /// Who makes the request; a refusal is what the proxy answers. What is known
    /// of the credential by then is noted in `judged`.
    async fn decide(
        &self,
        asker: Asker<'_>,
        attributes: &envoy::AttributeContext,
        judged: &mut Judged,
    ) -> Result<Arc<Principal>, Denied> {
        let source = attributes.source.as_ref().and_then(|peer| peer.address.as_ref());
        let client = source.and_then(|address| match address.address.as_ref()? {
            envoy::address::Address::SocketAddress(socket) => socket.address.parse().ok(),
        });
        judged.client = client;
        let request = attributes.request.as_ref().and_then(|request| request.http.as_ref());
        let request = request.ok_or_else(|| bad("There is no HTTP request to decide about"))?;
        if !is_normal(&request.path) {
            return Err(bad("The path is not in its normal form; write it without detours").into());
        }
        let named = |name: &str| attributes.context_extensions.get(name).map(String::as_str);
        let permission = named("permission").ok_or_else(|| {
            Denied::of_route("The proxy's route names no permission; set context_extensions")
        })?;
        let area = named("namespace").map(Area::parse).transpose();
        let area =
            area.map_err(|_| Denied::of_route("The proxy's route names no valid namespace"))?;
        let headers = credentials(request).ok_or_else(|| bad("a header cannot be read"))?;
        let token = self.gate.shown_in(&headers).map_err(Refusal::unauthenticated)?;
        judged.fingerprint = self.gate.fingerprint_of(token);
        let Asker { caller, claim } = asker;
        let found = self.gate.inspect(caller, claim, token, client, Guessing::GoesOn).await?;
        judged.active = Some(found.is_some());
        let found = found.ok_or_else(|| {
            let refusal = Refusal::unauthenticated(Unauthenticated::Invalid);
            Denied { refusal, verdict: TOKEN_INACTIVE.into() }
        })?;
        let principal = Arc::clone(&found.session.principal);
        judged.principal = Some(Arc::clone(&principal));
        match verdict(&principal, &self.declared, permission, area.as_ref()) {
            Verdict::Allowed => Ok(principal),
            verdict @ (Verdict::PermissionMissing
            | Verdict::NamespaceNotHeld
            | Verdict::PermissionUnknown) => {
                let message = format!("Missing required permission: {permission}");
                let refusal = Refusal::new(Kind::Forbidden, Reason::PermissionMissing, message);
                Err(Denied { refusal, verdict: verdict.as_str().into() })
            }
        }
    }
}

#[tonic::async_trait]
impl authorization_server::Authorization for ExtAuthz {
    async fn check(
        &self,
        request: Request<envoy::CheckRequest>,
    ) -> Result<Response<envoy::CheckResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.global(&request)?;
            let attributes = request.attributes.unwrap_or_default();
            let asker = Asker { caller: &caller, claim: &claim };
            let mut judged = Judged::default();
            let decided = self.decide(asker, &attributes, &mut judged).await;
            let named = |name: &str| attributes.context_extensions.get(name).map(String::as_str);
            let permission = named("permission");
            let said = match &decided {
                Ok(_) => Verdict::Allowed.as_str().into(),
                Err(denied) => denied.verdict.clone(),
            };
            judged.questions = vec![Question::new(permission, named("namespace"), said)];
            asker.judges(Judgement::of(judged));
            Ok(match decided {
                Ok(principal) => allowed(&principal, permission.unwrap_or_default(), &attributes),
                Err(Denied { refusal, .. }) => denied(&caller, &refusal),
            })
        })
        .await
    }
}

/// What a proxy answers, and what the record says of it.
struct Denied {
    refusal: Refusal,
    verdict: Cow<'static, str>,
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        let verdict = status::reason_name(refusal.reason).to_ascii_lowercase().into();
        Self { refusal, verdict }
    }
}

impl Denied {
    fn of_route(message: &str) -> Self {
        let refusal = Refusal::new(Kind::Forbidden, Reason::PermissionMissing, message);
        Self { refusal, verdict: ROUTE_INVALID.into() }
    }
}

fn bad(message: &str) -> Refusal {
    Refusal::new(Kind::Invalid, Reason::RequestMalformed, message)
}

/// The headers of the request that may hold a credential. Names that differ in
/// case alone are one name, so that nothing hides behind another.
fn credentials(request: &envoy::attribute_context::HttpRequest) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in &request.headers {
        // Pseudo-headers as `:path` are none.
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
        // One that is left out would let another credential count (SE-14).
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    Some(headers)
}

/// Whether a path means one thing to everybody: no empty part but the last, no
/// detour by dots, nothing encoded that need not be, nothing that another
/// decoder reads in another way (SE-42).
fn is_normal(target: &str) -> bool {
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) || target.contains(['#', '\\']) {
        return false;
    }
    let path = target.split('?').next().unwrap_or_default();
    let Some(path) = path.strip_prefix('/') else { return false };
    let mut parts = path.split('/').peekable();
    while let Some(part) = parts.next() {
        let plain = part.split(';').next().unwrap_or_default();
        let last = parts.peek().is_none();
        if matches!(plain, "." | "..") || (plain.is_empty() && !(last && part.is_empty())) {
            return false;
        }
        if !is_normally_encoded(part) {
            return false;
        }
    }
    true
}

fn is_normally_encoded(part: &str) -> bool {
    let mut decoded = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return false };
        let Ok(byte) = u8::try_from(high * 16 + low) else { return false };
        let plain = byte.is_ascii_alphanumeric() || b"-._~/\\%;".contains(&byte);
        if plain || byte.is_ascii_control() {
            return false;
        }
        decoded.push(byte);
    }
    // Overlong forms of dots and slashes are no UTF-8.
    String::from_utf8(decoded).is_ok()
}

fn allowed(
    principal: &Principal,
    permission: &str,
    attributes: &envoy::AttributeContext,
) -> envoy::CheckResponse {
    let identity = &principal.identity;
    let places = principal.scope_of_named(permission).to_strings().join(",");
    let own = [
        ("subject", encoded(&identity.subject)),
        ("source", identity.source.as_str().into()),
        ("issuer", encoded(&identity.issuer)),
        ("credential", encoded(&principal.credential_id)),
        ("namespaces", places.into()),
    ];
    let own: Vec<(String, Cow<'_, str>)> =
        own.into_iter().map(|(name, value)| (format!("{OWN_HEADERS}{name}"), value)).collect();
    // What is set here takes the place of all that came: a proxy takes headers
    // out after it has set others.
    let headers = attributes.request.iter().flat_map(|request| &request.http);
    let headers_to_remove = headers
        .flat_map(|http| http.headers.keys())
        .filter(|name| {
            let same = name.to_ascii_lowercase().replace('_', "-");
            same.starts_with(OWN_HEADERS)
                && !own.iter().any(|(own, _)| name.eq_ignore_ascii_case(own))
        })
        .cloned()
        .collect();
    let headers = own.into_iter().map(|(key, value)| header(&key, &value)).collect();
    envoy::CheckResponse {
        status: Some(rpc::Status { code: Code::Ok.into(), ..rpc::Status::default() }),
        http_response: Some(HttpResponse::OkResponse(envoy::OkHttpResponse {
            headers,
            headers_to_remove,
        })),
    }
}

/// Text of another's choice as a header's value: what is not visible ASCII,
/// `%` and `,` are percent-encoded.
fn encoded(text: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'%' | b',');
    if text.bytes().all(plain) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out.into()
}

fn header(key: &str, value: &str) -> envoy::HeaderValueOption {
    envoy::HeaderValueOption {
        header: Some(envoy::HeaderValue { key: key.to_owned(), value: value.to_owned() }),
        append: None,
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
    }
}

fn denied(caller: &Caller, refusal: &Refusal) -> envoy::CheckResponse {
    let (code, http, error) = match refusal.kind {
        Kind::Unauthenticated => {
            (Code::Unauthenticated, envoy::HttpStatusCode::Unauthorized, "unauthorized")
        }
        Kind::TooMany => {
            (Code::ResourceExhausted, envoy::HttpStatusCode::TooManyRequests, "too_many_requests")
        }
        Kind::Invalid => (Code::InvalidArgument, envoy::HttpStatusCode::BadRequest, "bad_request"),
        Kind::Forbidden
        | Kind::NotFound
        | Kind::UnknownMethod
        | Kind::Conflict
        | Kind::Precondition
        | Kind::Unavailable
        | Kind::Deadline
        | Kind::Internal => (Code::PermissionDenied, envoy::HttpStatusCode::Forbidden, "forbidden"),
    };
    let mut headers =
        vec![header("content-type", "application/json"), header("cache-control", "no-store")];
    if refusal.kind == Kind::Unauthenticated {
        let challenge = if refusal.reason == Reason::CredentialsMissing {
            "Bearer"
        } else {
            "Bearer error=\"invalid_token\""
        };
        headers.push(header("www-authenticate", challenge));
    }
    if let Some(wait) = refusal.retry_after {
        let seconds = wait.saturating_add(Duration::from_millis(999)).as_secs();
        headers.push(header("retry-after", &seconds.to_string()));
    }
    let body = json!({
        "error": error,
        "reason": status::reason_name(refusal.reason),
        "message": refusal.message,
        "request_id": caller.request().to_string(),
    });
    envoy::CheckResponse {
        status: Some(rpc::Status { code: code.into(), ..rpc::Status::default() }),
        http_response: Some(HttpResponse::DeniedResponse(envoy::DeniedHttpResponse {
            status: Some(envoy::HttpStatus { code: http.into() }),
            headers,
            body: body.to_string(),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn se_42_paths_that_are_not_normal_are_known() {
        for good in ["/", "/a", "/a/", "/a/b.c?x=//../%2e", "/a;v=1/b", "/%C3%A9/x", "/a%20b"] {
            assert!(is_normal(good), "{good}");
        }
        for bad in [
            "",
            "a",
            "*",
            "//",
            "//a",
            "/a//b",
            "/.",
            "/..",
            "/a/../b",
            "/a/./b",
            "/a/..",
            "/a/.",
            "/%2e%2e/a",
            "/%2E/a",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/a%",
            "/a%2",
            "/a%zz",
            "/%61dmin",
            "/a%00",
            "/a%0a",
            "/\u{e9}",
            "/a b",
            "/a\n",
            "/..;/a",
            "/.;x/a",
            "/;/a",
            "/%c0%ae/a",
            "/a#b",
            "/a%3b",
            "/a%25b",
            "http://h/a",
        ] {
            assert!(!is_normal(bad), "{bad}");
        }
    }

    #[test]
    fn se_42_no_text_of_a_token_becomes_another_header() {
        assert_eq!(encoded("alice@shop"), "alice@shop");
        assert_eq!(encoded("a\r\nx-bailiwick-root: 1"), "a%0D%0Ax-bailiwick-root:%201");
        assert_eq!(encoded("50%,\u{e9}"), "50%25%2C%C3%A9");
    }
}
