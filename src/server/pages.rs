//! The public pages that are no RPC: `/metrics`, `/openapi.json`, `/docs`.
//! Each is matched exactly (SE-12) and holds no text that a tenant chose.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use tonic::body::Body;

use crate::gateway::docs;

const PROMETHEUS_TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The pages' contents.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    metrics: PrometheusHandle,
    openapi: Bytes,
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
        Self { metrics, openapi: openapi.to_string().into() }
    }

    /// The page at a path.
    #[must_use]
    pub(super) fn at(&self, method: &Method, path: &str) -> Page {
        let page = match path {
            "/metrics" => page(PROMETHEUS_TEXT, self.metrics.render().into()),
            "/openapi.json" => page(JSON, self.openapi.clone()),
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

fn page(kind: HeaderValue, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::new(http_body_util::Full::new(body)));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
