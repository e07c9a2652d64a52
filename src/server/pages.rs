//! The public pages that are no RPC: `/metrics`, `/openapi.json`, `/docs`, and
//! where step tokens are on what their verifiers read below `/.well-known`.
//! Each is matched exactly (SE-12) and holds no text that a tenant chose.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use tonic::body::Body;

use crate::{
    gateway::docs,
    signing::{STEP, SigningKeys},
};

const PROMETHEUS_TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The pages' contents.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    metrics: PrometheusHandle,
    openapi: Bytes,
    discovery: Option<Discovery>,
}

/// What verifiers of step tokens read.
#[derive(Clone, Debug)]
struct Discovery {
    document: Bytes,
    keys: Arc<SigningKeys>,
}

/// What a path means among the pages.
#[derive(Debug)]
pub(super) enum Page {
    /// The page.
    Found(Response<Body>),
    /// The page exists, for `GET` and `HEAD` alone.
    WrongVerb,
    /// No page.
    None,
}

impl Pages {
    /// The figures as they are rendered, and the document of the API.
    #[must_use]
    pub(super) fn new(metrics: PrometheusHandle, openapi: &serde_json::Value) -> Self {
        Self { metrics, openapi: openapi.to_string().into(), discovery: None }
    }

    /// With what verifiers of step tokens read, where there is an issuer. All
    /// addresses come from the settings, none from the call (SE-32).
    #[must_use]
    pub(super) fn with_discovery(self, issuer: Option<&Arc<str>>, keys: &Arc<SigningKeys>) -> Self {
        let discovery = issuer.map(|issuer| Discovery {
            document: serde_json::json!({
                "issuer": &**issuer,
                "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["EdDSA"],
                "claims_supported": [
                    "iss", "sub", "aud", "iat", "exp", "jti", "namespace", "task_uuid",
                    "step_uuid", "step", "attempt",
                ],
            })
            .to_string()
            .into(),
            keys: Arc::clone(keys),
        });
        Self { discovery, ..self }
    }

    /// The page at a path.
    #[must_use]
    pub(super) fn at(&self, method: &Method, path: &str) -> Page {
        let page = match (path, &self.discovery) {
            ("/metrics", _) => page(PROMETHEUS_TEXT, self.metrics.render().into()),
            ("/openapi.json", _) => page(JSON, self.openapi.clone()),
            ("/.well-known/openid-configuration", Some(discovery)) => {
                kept(page(JSON, discovery.document.clone()))
            }
            ("/.well-known/jwks.json", Some(discovery)) => {
                kept(page(JSON, discovery.keys.key_set(STEP).into()))
            }
            _ => match docs::asset(path) {
                Some(asset) => asset.map(Body::new),
                None => return Page::None,
            },
        };
        match *method {
            Method::GET => Page::Found(page),
            Method::HEAD => Page::Found(page.map(|_| Body::empty())),
            _ => Page::WrongVerb,
        }
    }
}

/// Verifiers may keep it for a minute; one that meets a key it does not know
/// looks again.
fn kept(mut page: Response<Body>) -> Response<Body> {
    page.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
    page
}

fn page(kind: HeaderValue, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::new(http_body_util::Full::new(body)));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
