//! Outgoing connections. What the operator configures goes where it says and
//! nowhere else: no proxy of the environment, no redirect to another host, and
//! nothing without a bound (SE-64). What a tenant names goes through
//! [`Egress`], which looks at the address itself.

mod address;
mod connect;
mod target;

use std::time::Duration;

use reqwest::{Certificate, Client, Url, redirect};
use thiserror::Error;

pub use self::{
    connect::{Closed, Duplex, Egress, tls},
    target::{ADDRESS_BYTES_MAX, Scheme, Target, decoded},
};
use crate::config::Authorities;

/// How long a whole fetch may take.
pub const TIME_MAX: Duration = Duration::from_secs(5);
/// The longest body that is taken.
const BODY_BYTES_MAX: usize = 256 << 10;
/// How many redirects are followed, all to the same host.
const REDIRECTS_MAX: usize = 3;

/// Why nothing was fetched. Never shows a body.
#[derive(Debug, Error)]
pub enum Error {
    /// Not an address that may be asked.
    #[error("`{0}` is not an https URL; http must be allowed by its own setting")]
    Url(String),
    /// No connection, no answer in time, or a redirect that is not followed.
    #[error("{0}")]
    Failed(String),
    /// Not a PEM with certificates.
    #[error("{0} is not a PEM file with certificates")]
    Certificates(String),
    /// Another status than 200.
    #[error("the answer has status {0}")]
    Status(u16),
    /// Too long.
    #[error("the answer is longer than {BODY_BYTES_MAX} bytes")]
    TooLong,
}

/// Fetches documents that the operator named.
#[derive(Clone, Debug)]
pub struct Fetcher {
    client: Client,
    allow_http: bool,
}

impl Fetcher {
    /// `allow_http` is for plain HTTP, which anybody on the way can change;
    /// `ca` is who alone may vouch for servers.
    pub fn new(allow_http: bool, ca: Option<&Authorities>) -> Result<Self, Error> {
        let same_host = redirect::Policy::custom(|attempt| {
            let first = attempt.previous().first();
            let stays = first.is_some_and(|first| same_origin(first, attempt.url()));
            if !stays {
                attempt.error("a redirect to another host is not followed")
            } else if attempt.previous().len() > REDIRECTS_MAX {
                attempt.error("too many redirects")
            } else {
                attempt.follow()
            }
        });
        let mut client = Client::builder()
            .no_proxy()
            .redirect(same_host)
            .referer(false)
            .timeout(TIME_MAX)
            .https_only(!allow_http)
            .user_agent(concat!("bailiwick/", env!("CARGO_PKG_VERSION")));
        if let Some(ca) = ca {
            client = client.tls_certs_only(certificates(ca)?);
        }
        let client = client.build().map_err(|error| Error::Failed(causes(&error)))?;
        Ok(Self { client, allow_http })
    }

    /// The body behind a URL.
    pub async fn get(&self, url: &str) -> Result<Vec<u8>, Error> {
        let parsed = Url::parse(url).ok().filter(|url| self.may_ask(url));
        let url = parsed.ok_or_else(|| Error::Url(url.to_owned()))?;
        let failed = |error: reqwest::Error| Error::Failed(causes(&error.without_url()));
        let mut answer = self.client.get(url).send().await.map_err(failed)?;
        if answer.status() != reqwest::StatusCode::OK {
            return Err(Error::Status(answer.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(Error::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn may_ask(&self, url: &Url) -> bool {
        let scheme = url.scheme() == "https" || self.allow_http && url.scheme() == "http";
        scheme && url.has_host() && url.username().is_empty() && url.password().is_none()
    }
}

fn certificates(ca: &Authorities) -> Result<Vec<Certificate>, Error> {
    let all = Certificate::from_pem_bundle(ca.pem.as_bytes()).unwrap_or_default();
    if all.is_empty() { Err(Error::Certificates(ca.origin.clone())) } else { Ok(all) }
}

/// Whether two URLs have the same scheme, host and port.
#[must_use]
pub fn is_same_origin(one: &str, other: &str) -> bool {
    match (Url::parse(one), Url::parse(other)) {
        (Ok(one), Ok(other)) => same_origin(&one, &other),
        (Err(_), _) | (_, Err(_)) => false,
    }
}

fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// The error and what it comes from, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn se_64_only_https_unless_http_is_allowed() {
        let strict = Fetcher::new(false, None).unwrap();
        for url in
            ["http://127.0.0.1:1/", "http://localhost/", "ftp://a/", "file:///etc/passwd", "x", ""]
        {
            assert!(matches!(strict.get(url).await, Err(Error::Url(_))), "{url}");
        }
        let open = Fetcher::new(true, None).unwrap();
        assert!(matches!(open.get("http://a:b@127.0.0.1:1/").await, Err(Error::Url(_))));
        assert!(matches!(open.get("http://127.0.0.1:1/").await, Err(Error::Failed(_))));
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert!(is_same_origin("https://a/x", "https://a:443/y"));
        for other in ["http://a/x", "https://b/x", "https://a:444/x", "https://a.b/x", "a"] {
            assert!(!is_same_origin("https://a/x", other), "{other}");
        }
    }
}
