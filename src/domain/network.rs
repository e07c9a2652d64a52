//! Networks of addresses, as 10.0.0.0/8.

use std::{fmt, net::IpAddr};

use thiserror::Error;

/// An address or a network in CIDR form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    /// Without the bits behind the prefix.
    address: IpAddr,
    prefix: u8,
}

/// The text is neither an address nor a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("neither an address nor a network, as 10.0.0.0/8")]
pub struct NotNetwork;

impl Network {
    /// Reads `10.0.0.1`, `10.0.0.0/8`, `::1` or `fd00::/8`. What stands behind
    /// the prefix must be zero: otherwise one of both is a mistake.
    pub fn parse(text: &str) -> Result<Self, NotNetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(decimal(prefix).ok_or(NotNetwork)?)),
            None => (text, None),
        };
        let written: IpAddr = address.parse().map_err(|_| NotNetwork)?;
        let address = written.to_canonical();
        // ::ffff:10.0.0.0/104 is 10.0.0.0/8.
        let mapped = if written == address { 0 } else { 96 };
        let prefix = match prefix {
            Some(prefix) => prefix.checked_sub(mapped).ok_or(NotNetwork)?,
            None => width(address),
        };
        let network = Self { address: masked(address, prefix), prefix };
        (prefix <= width(address) && network.address == address)
            .then_some(network)
            .ok_or(NotNetwork)
    }

    /// Whether the address is of this network. An IPv4 address counts as such
    /// in its IPv6 form too.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }
}

/// An address as far as it tells one client from another.
#[must_use]
pub fn client(peer: IpAddr) -> IpAddr {
    /// A client has at least this network for itself.
    const IPV6_PREFIX: u8 = 64;
    match peer.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        v6 @ IpAddr::V6(_) => masked(v6, IPV6_PREFIX),
    }
}

/// The address with nothing but its first bits.
#[must_use]
pub fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let behind = u32::from(width(address).saturating_sub(prefix));
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(behind).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(behind).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

const fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Digits alone: no sign, no leading zero.
fn decimal(text: &str) -> Option<u8> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = plain && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == width(self.address) {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_are_read_and_shown() {
        for (text, shown) in [
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.1/32", "10.0.0.1"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::1", "::1"),
            ("fd00::/8", "fd00::/8"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(Network::parse(text).unwrap().to_string(), shown, "{text}");
        }
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "/8",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "::/129",
            "::ffff:10.0.0.0/8",
            "10.0.0",
            "10.0.0.0/8/8",
            "host",
            "10.0.0.0/256",
            " ::1",
        ] {
            assert_eq!(Network::parse(text), Err(NotNetwork), "{text}");
        }
    }

    #[test]
    fn a_network_has_its_own_addresses_alone() {
        let has = |network: &str, address: &str| {
            Network::parse(network).unwrap().contains(address.parse().unwrap())
        };
        assert!(has("10.0.0.0/8", "10.255.0.1"));
        assert!(has("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(!has("10.0.0.0/8", "11.0.0.0"));
        assert!(has("0.0.0.0/0", "192.0.2.1"));
        assert!(!has("0.0.0.0/0", "::1"));
        assert!(!has("::/0", "192.0.2.1"));
        assert!(has("::/0", "2001:db8::1"));
        assert!(has("2001:db8:0:1::/64", "2001:db8:0:1:ffff::1"));
        assert!(!has("2001:db8:0:1::/64", "2001:db8:0:2::1"));
    }
}
