//! `/docs`: a page that shows `/openapi.json`, from files inside the binary.
//!
//! Not here: the document itself (`openapi`).

use bytes::Bytes;
use http::{HeaderValue, Response, header};

use super::Body;

/// Nothing but our own files; no script or style within the page.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// The answer for `/docs` and the files that it needs; none for other paths.
#[must_use]
pub fn asset(path: &str) -> Option<Response<Body>> {
    let (content_type, bytes) = match path {
        "/docs" => ("text/html; charset=utf-8", &include_bytes!("docs/index.html")[..]),
        "/docs/docs.js" => ("text/javascript; charset=utf-8", &include_bytes!("docs/docs.js")[..]),
        "/docs/docs.css" => ("text/css; charset=utf-8", &include_bytes!("docs/docs.css")[..]),
        _ => return None,
    };
    let body = http_body_util::Full::new(Bytes::from_static(bytes));
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        // Another version of the server has another page.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn text(path: &str) -> String {
        let bytes = asset(path).unwrap().into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn the_page_needs_nothing_but_its_own_files() {
        let page = text("/docs").await;
        // A strict policy would stop these, silently for whoever wrote them.
        for inline in ["<style", "style=", "onclick=", "onload=", "<script>", "http://", "https://"]
        {
            assert!(!page.contains(inline), "{inline}");
        }
        let mut linked = 0;
        for part in page.split(['"']) {
            if part.starts_with("docs/") {
                assert!(asset(&format!("/{part}")).is_some(), "{part}");
                linked += 1;
            }
        }
        assert_eq!(linked, 2);
        let script = text("/docs/docs.js").await;
        for risky in ["innerHTML", "eval(", "document.write", ".style.", "https://", "http://"] {
            assert!(!script.contains(risky), "{risky}");
        }
        assert!(!text("/docs/docs.css").await.contains("url("));
    }

    #[test]
    fn only_its_own_paths_answer_and_with_a_strict_policy() {
        for path in ["/docs/", "/docs/x", "/docs/../docs", "/docs/docs.js/", "/doc", ""] {
            assert!(asset(path).is_none(), "{path}");
        }
        let response = asset("/docs").unwrap();
        let policy = response.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"));
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    }

    #[tokio::test]
    async fn the_page_has_landmarks_and_a_language() {
        let page = text("/docs").await;
        for part in
            ["<html lang=\"en\"", "<header", "<nav aria-label", "<main id", "<h1", "<noscript"]
        {
            assert!(page.contains(part), "{part}");
        }
    }
}
