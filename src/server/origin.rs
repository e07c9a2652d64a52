//! Browsers on the operator's machine (SE-15): which hosts and origins a call
//! may come by. With auth off a browser's page is the attacker that needs no
//! credential, so foreign names and foreign pages are turned away.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};

use crate::access::{Kind, Reason, Refusal};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// How long a browser may keep the answer to a preflight, in seconds.
const PREFLIGHT_MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// Which hosts and origins a call may come by.
#[derive(Clone, Debug)]
pub(super) struct Origins {
    /// With auth off hosts and origins are checked.
    pub(super) auth_off: bool,
    /// Names of this server beside localhost and loopback literals.
    pub(super) hosts: Vec<String>,
    /// Origins of web pages that may call (CORS); none by default.
    pub(super) pages: Vec<String>,
}

impl Origins {
    /// Whether the call may come in at all.
    pub(super) fn check<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        if !self.auth_off {
            return Ok(());
        }
        let target = request.uri().authority().map(http::uri::Authority::as_str);
        let mut hosts = request.headers().get_all(header::HOST).iter();
        // Given twice, or in the target and otherwise in the header: each must do.
        let known = hosts.all(|host| host.to_str().is_ok_and(|host| self.host_allowed(host)))
            && target.is_none_or(|target| self.host_allowed(target));
        if !known || (target.is_none() && !request.headers().contains_key(header::HOST)) {
            return Err(Refusal::new(
                Kind::Forbidden,
                Reason::HostNotAllowed,
                "This server answers to localhost only while auth is off; add the name to \
                 server.allowed_hosts or turn auth on",
            ));
        }
        let mut sites = request.headers().get_all(SEC_FETCH_SITE).iter();
        let cross_site = sites.any(|site| site.as_bytes().eq_ignore_ascii_case(b"cross-site"));
        let mut origins = request.headers().get_all(header::ORIGIN).iter();
        let foreign = origins.any(|origin| !self.origin_known(origin));
        if foreign || (cross_site && self.allowed_origin(request.headers()).is_none()) {
            return Err(Refusal::new(
                Kind::Forbidden,
                Reason::OriginNotAllowed,
                "Calls from foreign web pages are refused; add the page's origin to \
                 server.allowed_origins",
            ));
        }
        Ok(())
    }

    fn host_allowed(&self, authority: &str) -> bool {
        let Some(host) = without_port(authority) else { return false };
        is_local(host) || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
    }

    /// A page that this server served itself, or one that is configured.
    fn origin_known(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        let own = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"))
            .is_some_and(|authority| self.host_allowed(authority));
        own || self.pages.iter().any(|known| known == origin)
    }

    /// The configured origin that a call comes from (CORS).
    #[must_use]
    pub(super) fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        self.pages.iter().any(|known| known.as_bytes() == origin.as_bytes()).then(|| origin.clone())
    }

    /// The answer to a preflight from a configured origin.
    #[must_use]
    pub(super) fn preflight<B, R: Default>(&self, request: &Request<B>) -> Option<Response<R>> {
        let asks = request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if request.method() != Method::OPTIONS || !asks {
            return None;
        }
        let origin = self.allowed_origin(request.headers())?;
        let mut response = Response::new(R::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        allow(headers, origin);
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE"),
        );
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("authorization, content-type, x-api-key, traceparent"),
        );
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE);
        Some(response)
    }
}

/// Lets the page of an allowed origin read the answer.
pub(super) fn allow(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(
            "x-request-id, retry-after, x-ratelimit-limit, x-ratelimit-remaining, \
             x-ratelimit-reset",
        ),
    );
    headers.append(header::VARY, HeaderValue::from_static("origin"));
}

/// The host alone; none where what follows it is no port, as in
/// `localhost:80@elsewhere`.
fn without_port(authority: &str) -> Option<&str> {
    let end = match authority.strip_prefix('[') {
        Some(_) => authority.find(']')? + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at_checked(end)?;
    let port = rest.strip_prefix(':').unwrap_or(rest);
    let port_alone = port.bytes().all(|byte| byte.is_ascii_digit());
    (port_alone && (rest.is_empty() || rest.len() > port.len())).then_some(host)
}

fn is_local(host: &str) -> bool {
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || literal.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins() -> Origins {
        Origins {
            auth_off: true,
            hosts: vec!["bailiwick.internal".to_owned()],
            pages: vec!["https://console.example".to_owned()],
        }
    }

    fn call(headers: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::new(());
        for (name, value) in headers {
            request.headers_mut().append(*name, HeaderValue::from_str(value).unwrap());
        }
        request
    }

    #[test]
    fn se_15_only_local_and_configured_hosts_are_answered() {
        for good in
            ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "bailiwick.internal"]
        {
            assert!(origins().check(&call(&[("host", good)])).is_ok(), "{good}");
        }
        for bad in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:8080",
            "localhost:80@evil.example",
            "127.0.0.1:evil.example",
            "[::1]evil.example",
            "[::1]:80@evil.example",
            "::1",
            "",
        ] {
            let refusal = origins().check(&call(&[("host", bad)])).unwrap_err();
            assert_eq!(refusal.reason, Reason::HostNotAllowed, "{bad}");
        }
        assert!(origins().check(&call(&[])).is_err());
    }

    #[test]
    fn se_15_every_host_and_origin_that_is_given_counts() {
        let hosts = [("host", "localhost"), ("host", "evil.example")];
        assert!(origins().check(&call(&hosts)).is_err());
        let mut absolute = call(&[("host", "evil.example")]);
        *absolute.uri_mut() = http::Uri::from_static("http://localhost/v1/tasks");
        assert!(origins().check(&absolute).is_err());
        absolute.headers_mut().clear();
        assert!(origins().check(&absolute).is_ok());
        for name in ["origin", "sec-fetch-site"] {
            let (good, bad) = match name {
                "origin" => ("http://localhost", "https://evil.example"),
                _ => ("same-origin", "cross-site"),
            };
            let both = [("host", "localhost"), (name, good), (name, bad)];
            let refusal = origins().check(&call(&both)).unwrap_err();
            assert_eq!(refusal.reason, Reason::OriginNotAllowed, "{name}");
        }
    }

    #[test]
    fn se_15_foreign_pages_are_turned_away() {
        let from = |headers: &[(&'static str, &str)]| {
            let mut all = vec![("host", "localhost:8080")];
            all.extend_from_slice(headers);
            origins().check(&call(&all))
        };
        assert!(from(&[("origin", "http://localhost:8080")]).is_ok());
        assert!(
            from(&[("origin", "https://console.example"), ("sec-fetch-site", "cross-site")])
                .is_ok()
        );
        assert!(from(&[("sec-fetch-site", "same-origin")]).is_ok());
        for bad in [
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
        ] {
            assert_eq!(from(&[bad]).unwrap_err().reason, Reason::OriginNotAllowed, "{bad:?}");
        }
    }

    #[test]
    fn ze_47_a_page_may_read_what_is_left() {
        let mut headers = HeaderMap::new();
        allow(&mut headers, HeaderValue::from_static("https://console.example"));
        let exposed = headers.get(header::ACCESS_CONTROL_EXPOSE_HEADERS).unwrap();
        let exposed: Vec<&str> = exposed.to_str().unwrap().split(", ").collect();
        for name in [crate::server::peer::LIMIT, crate::server::peer::REMAINING] {
            assert!(exposed.contains(&name.as_str()), "{name}: {exposed:?}");
        }
        assert!(exposed.contains(&crate::server::peer::RESET.as_str()), "{exposed:?}");
        assert!(exposed.contains(&"retry-after"), "{exposed:?}");
    }

    #[test]
    fn with_auth_on_hosts_are_free() {
        let origins = Origins { auth_off: false, ..origins() };
        assert!(origins.check(&call(&[("host", "anything.example")])).is_ok());
    }
}
