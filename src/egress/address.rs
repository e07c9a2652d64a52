//! Which addresses may be asked for somebody else (SE-64).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// What of IPv4 is not the public internet: networks and the bits of their
/// prefix (RFC 6890 and what came after it).
const V4_RESERVED: &[([u8; 4], u32)] = &[
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    // Where a cloud answers its own machines.
    ([168, 63, 129, 16], 32),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 3),
];

/// What of `2000::/3` is not the public internet: protocols with Teredo in it,
/// documentation, and 6to4, which leads to any IPv4 address.
const V6_RESERVED: &[([u16; 3], u32)] =
    &[([0x2001, 0, 0], 23), ([0x2001, 0xdb8, 0], 32), ([0x2002, 0, 0], 16), ([0x3fff, 0, 0], 20)];

/// Whether it is an address of the public internet.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match translated(address) {
            Some(inner) => is_public_v4(inner),
            None => is_public_v6(address),
        },
    }
}

/// Addresses of nobody or of many, which no setting opens: as a destination
/// the first ones mean this very machine.
pub(super) fn is_no_host(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            address.octets().first() == Some(&0) || address.is_multicast() || address.is_broadcast()
        }
        IpAddr::V6(address) => address.is_unspecified() || address.is_multicast(),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !V4_RESERVED.iter().any(|(network, prefix)| {
        let differs = address.to_bits() ^ Ipv4Addr::from(*network).to_bits();
        differs.leading_zeros() >= *prefix
    })
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let global = address.to_bits() >> 125 == 1;
    let reserved = V6_RESERVED.iter().any(|([a, b, c], prefix)| {
        let network = Ipv6Addr::new(*a, *b, *c, 0, 0, 0, 0, 0);
        (address.to_bits() ^ network.to_bits()).leading_zeros() >= *prefix
    });
    global && !reserved
}

/// The IPv4 address behind the well-known prefix of NAT64, `64:ff9b::/96`: where
/// there is no IPv4, names have such addresses (RFC 6052).
fn translated(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = address.segments() else { return None };
    Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
}

/// Whether a connection to `address` ends at the listener: one on all
/// addresses is at each of this machine's.
pub(super) fn leads_to(address: SocketAddr, listener: SocketAddr) -> bool {
    let inner = |ip: IpAddr| match ip.to_canonical() {
        IpAddr::V6(v6) => translated(v6).map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 @ IpAddr::V4(_) => v4,
    };
    let (to, own) = (inner(address.ip()), listener.ip().to_canonical());
    address.port() == listener.port()
        && (to == own || own.is_unspecified() && is_of_this_machine(to))
}

/// Nothing is sent: the kernel is asked from which address it would send.
fn is_of_this_machine(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    address.is_loopback() || from.is_ok_and(|from| from.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: &str = "\
        0.0.0.0 0.1.2.3 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.1 \
        127.255.255.255 169.254.0.0 169.254.169.254 172.16.0.0 172.31.255.255 \
        192.0.0.0 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.255 \
        198.18.0.0 198.19.255.255 198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.255 \
        240.0.0.1 255.255.255.255 :: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 \
        ::ffff:0.0.0.0 ::127.0.0.1 ::8.8.8.8 ::ffff:0:8.8.8.8 64:ff9b::127.0.0.1 \
        64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::8.8.8.8 \
        64:ff9b::1:808:808 100::1 2001::1 2001:0:1::1 2001:2::1 2001:10::1 \
        2001:1ff::1 2001:db8::1 2002:7f00:1:: 2002:808:808::1 3fff::1 3fff:fff::1 \
        4000::1 5f00::1 fc00::1 fd00::1 fdff::1 fe80::1 febf::1 fec0::1 feff::1 \
        ff02::1 ff0e::1";
    const OUTSIDE: &str = "\
        1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 \
        126.255.255.255 128.0.0.0 169.253.255.255 169.255.0.0 172.15.255.255 \
        172.32.0.0 192.0.1.0 192.0.3.0 192.88.98.255 192.167.255.255 192.169.0.0 \
        198.17.255.255 198.20.0.0 198.51.101.0 203.0.114.0 223.255.255.255 \
        ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2000::1 2001:200::1 2001:4860:4860::8888 \
        2003::1 2606:4700::1 3ffe::1";

    #[test]
    fn se_64_addresses_of_the_inside_are_known_in_each_form() {
        for inside in INSIDE.split(' ') {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in OUTSIDE.split(' ') {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn se_64_a_listener_is_known_by_each_of_its_addresses() {
        let leads =
            |to: &str, listener: &str| leads_to(to.parse().unwrap(), listener.parse().unwrap());
        for (to, listener) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
            ("127.0.0.1:80", "0.0.0.0:80"),
            ("127.9.9.9:80", "0.0.0.0:80"),
            ("127.0.0.1:80", "[::]:80"),
            ("[::1]:80", "[::]:80"),
        ] {
            assert!(leads(to, listener), "{to} {listener}");
        }
        for (to, listener) in [
            ("127.0.0.1:81", "127.0.0.1:80"),
            ("127.0.0.2:80", "127.0.0.1:80"),
            ("127.0.0.1:81", "0.0.0.0:80"),
            ("8.8.8.8:80", "0.0.0.0:80"),
        ] {
            assert!(!leads(to, listener), "{to} {listener}");
        }
    }

    #[test]
    fn se_64_no_setting_opens_what_is_no_host() {
        for none in ["0.0.0.0", "0.0.0.1", "::", "::ffff:0.0.0.0", "224.0.0.1", "ff02::1"] {
            assert!(is_no_host(none.parse().unwrap()), "{none}");
        }
        assert!(is_no_host("255.255.255.255".parse().unwrap()));
        for host in ["127.0.0.1", "::1", "10.0.0.1", "8.8.8.8"] {
            assert!(!is_no_host(host.parse().unwrap()), "{host}");
        }
    }
}
