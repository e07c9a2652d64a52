//! Where a call comes from, through proxies that are trusted, and what the
//! answer says about the caller's limit.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};

use crate::{access::RateState, domain::Network};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
pub(super) const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
pub(super) const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The client's address: the peer's own, unless that is a trusted proxy; then
/// the rightmost address of `X-Forwarded-For` that is none. What stands left
/// of it anybody can write (SE-43). None when what a proxy wrote cannot be
/// read: its own address must not stand for a stranger's.
pub(super) fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> Option<IpAddr> {
    let is_trusted = |address| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    let lines = headers.get_all(FORWARDED_FOR).iter().rev();
    let mut hops = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    while is_trusted(client)
        && let Some(hop) = hops.next()
    {
        client = address(hop)?;
    }
    Some(client)
}

/// An address, which some proxies write with a port.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let parsed = bare.parse::<IpAddr>().ok();
    parsed
        .or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip()))
        .map(|address| address.to_canonical())
}

/// Says what is left (ZE-47); gRPC's metadata are the same headers.
pub(super) fn show(headers: &mut HeaderMap, rate: Option<RateState>) {
    if let Some(RateState { limit, remaining, reset }) = rate {
        headers.insert(LIMIT, limit.into());
        headers.insert(REMAINING, remaining.into());
        headers.insert(RESET, reset.into());
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn from(peer: &str, lines: &[&str]) -> String {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|text| Network::parse(text).unwrap());
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, HeaderValue::from_str(line).unwrap());
        }
        let client = client(peer.parse().unwrap(), &headers, &trusted);
        client.map_or_else(|| "nobody knows".to_owned(), |client| client.to_string())
    }

    #[test]
    fn se_43_forwarded_addresses_count_from_listed_proxies_alone() {
        assert_eq!(from("192.0.2.1", &["198.51.100.1"]), "192.0.2.1");
        assert_eq!(from("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(from("10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(from("::ffff:10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(from("fd00::1", &["2001:db8::1"]), "2001:db8::1");
    }

    #[test]
    fn se_43_the_rightmost_that_is_not_trusted_counts() {
        assert_eq!(from("10.0.0.1", &["203.0.113.9, 198.51.100.1"]), "198.51.100.1");
        assert_eq!(from("10.0.0.1", &["203.0.113.9,198.51.100.1,10.0.0.2"]), "198.51.100.1");
        let lines = ["203.0.113.9", "198.51.100.1, 10.0.0.3", "10.0.0.2"];
        assert_eq!(from("10.0.0.1", &lines), "198.51.100.1");
        assert_eq!(from("10.0.0.1", &["10.0.0.3, 10.0.0.2"]), "10.0.0.3");
    }

    #[test]
    fn se_43_garbage_of_a_proxy_is_no_address() {
        for garbage in ["unknown", "", "198.51.100", "198.51.100.1:x", "[::1", "_hidden"] {
            let line = format!("203.0.113.9, {garbage}, 10.0.0.2");
            assert_eq!(from("10.0.0.1", &[&line]), "nobody knows", "{garbage:?}");
        }
        assert_eq!(from("10.0.0.1", &["198.51.100.1:4711"]), "198.51.100.1");
        assert_eq!(from("10.0.0.1", &["[2001:db8::1]:4711"]), "2001:db8::1");
        assert_eq!(from("10.0.0.1", &["[2001:db8::1]"]), "2001:db8::1");
    }
}
