//! What a tenant's address says: the host, the port, the credentials.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use percent_encoding::percent_decode_str;
use reqwest::Url;

/// The longest address, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 2048;

/// A scheme that an address may have.
#[derive(Clone, Copy, Debug)]
pub struct Scheme {
    /// Its name.
    pub name: &'static str,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// The port when none is written.
    pub port: u16,
}

/// An address that was read. Its `Debug` shows no credentials.
pub struct Target {
    url: Url,
    host: String,
    scheme: Scheme,
}

impl Target {
    /// Reads an address with one of these schemes. What is wrong is said
    /// without a part of the address: any may be secret.
    pub fn parse(text: &str, schemes: &[Scheme]) -> Result<Self, &'static str> {
        if text.len() > ADDRESS_BYTES_MAX {
            return Err("an address has at most 2048 bytes");
        }
        // The parser would drop some of them in silence.
        if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
            return Err("an address has no spaces, control characters or backslashes");
        }
        let url = Url::parse(text).map_err(|_| "not an address, as scheme://host:port/path")?;
        let scheme = schemes.iter().find(|scheme| scheme.name == url.scheme());
        let scheme = *scheme.ok_or("the scheme is not one of this runner's")?;
        // The parser takes any number of slashes for two.
        let rest = text.get(scheme.name.len()..).and_then(|rest| rest.strip_prefix("://"));
        if rest.is_none_or(|rest| rest.starts_with('/')) {
            return Err("not an address, as scheme://host:port/path");
        }
        if url.fragment().is_some() {
            return Err("an address has no fragment (#…)");
        }
        let host = url.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if host.is_empty() || !(host.bytes().all(plain) || host.parse::<Ipv6Addr>().is_ok()) {
            return Err("an address has a host: a name or an IP address");
        }
        if url.port() == Some(0) {
            return Err("port 0 is no port");
        }
        Ok(Self { url, host, scheme })
    }

    /// The host, an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.url.port().unwrap_or(self.scheme.port)
    }

    /// Whether TLS is spoken.
    #[must_use]
    pub const fn tls(&self) -> bool {
        self.scheme.tls
    }

    /// The host when it is an IP address.
    #[must_use]
    pub fn literal(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// The host and, unless it is the scheme's, the port, as HTTP has it.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        match self.url.port() {
            Some(port) if port != self.scheme.port => format!("{host}:{port}"),
            Some(_) | None => host.to_owned(),
        }
    }

    /// The path, still encoded, with the query.
    #[must_use]
    pub fn path_and_query(&self) -> String {
        let path = self.path();
        let path = if path.is_empty() { "/" } else { path };
        match self.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        }
    }

    /// The path, still encoded.
    #[must_use]
    pub fn path(&self) -> &str {
        self.url.path()
    }

    /// What stands behind the question mark.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.url.query()
    }

    /// User and password, decoded; none when there are none.
    #[must_use]
    pub fn credentials(&self) -> Option<(String, String)> {
        let (user, password) = (self.url.username(), self.url.password());
        (!user.is_empty() || password.is_some())
            .then(|| (decoded(user), decoded(password.unwrap_or_default())))
    }
}

/// Without percent signs; bytes that are no UTF-8 are replaced.
#[must_use]
pub fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({}://{}:{})", self.scheme.name, self.host, self.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMES: &[Scheme] = &[
        Scheme { name: "http", tls: false, port: 80 },
        Scheme { name: "amqp", tls: false, port: 5672 },
        Scheme { name: "amqps", tls: true, port: 5671 },
    ];

    #[test]
    fn se_64_an_address_is_read_in_all_its_parts() {
        let read = |text: &str| Target::parse(text, SCHEMES).unwrap();
        let plain = read("http://example.org");
        assert_eq!((plain.host(), plain.port(), plain.tls()), ("example.org", 80, false));
        assert_eq!(plain.path_and_query(), "/");
        assert_eq!(plain.credentials(), None);
        let full = read("amqps://us%40er:p%2Fw:d@[::1]:99/v%2Fh");
        assert_eq!((full.host(), full.port(), full.tls()), ("::1", 99, true));
        assert_eq!(full.credentials(), Some(("us@er".to_owned(), "p/w:d".to_owned())));
        assert_eq!((full.path(), full.query()), ("/v%2Fh", None));
        assert_eq!(full.literal(), Some(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(format!("{full:?}"), "Target(amqps://::1:99)");
        let query = read("http://a:8080/b?c=d");
        assert_eq!(query.path_and_query(), "/b?c=d");
        assert_eq!(query.authority(), "a:8080");
        // Numbers in other forms are addresses too.
        for odd in ["http://2130706433/", "http://0x7f.1/", "http://127.1/"] {
            assert_eq!(read(odd).literal(), Some([127, 0, 0, 1].into()), "{odd}");
        }
    }

    #[test]
    fn se_64_what_is_no_address_is_refused_without_being_shown() {
        let long = format!("http://a/{}", "s3cret".repeat(400));
        for text in [
            "",
            "s3cret",
            "http://",
            "amqp://",
            "amqp:///s3cret",
            "http:s3cret",
            "http:/s3cret",
            "http:///s3cret",
            "https://a/",
            "file:///s3cret",
            "gopher://a:70/s3cret",
            "http://a/#s3cret",
            "http://a:0/",
            "http://a:65536/",
            "http://a b/",
            "http://a/\ns3cret",
            "http:\\\\a/",
            "http://a%zz/",
            "amqp://a%2fb/",
            "amqp://user:s3cret@/",
            "amqp://[::1%25eth0]/",
            "http://[::1",
            &long,
        ] {
            let refusal = Target::parse(text, SCHEMES).unwrap_err();
            assert!(!refusal.contains("s3cret"), "{text:?}: {refusal}");
        }
    }
}
