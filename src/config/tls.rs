//! TLS of the listeners, and the principals of client certificates. The files
//! themselves are read by `server`, which also reads them again.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Error, Roles, given, raw};
use crate::domain::{PermissionSet, Scope};

/// The longest SPIFFE ID (its specification, section 2.3).
const SPIFFE_BYTES_MAX: usize = 2048;

/// The files of TLS, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// The authorities of client certificates; without one none are asked for.
    pub clients: Vec<ClientAuthority>,
    /// The settings that name the certificate and the key.
    pub settings: [&'static str; 2],
    /// What is spoken behind it, for clients that choose (RFC 7301).
    pub protocols: &'static [&'static [u8]],
}

/// Whose certificates count, and for which names (SE-46).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuthority {
    /// The setting that names the file.
    pub setting: &'static str,
    /// Its certificates, PEM.
    pub ca: PathBuf,
    /// The trust domains that it may name, and no other may for it.
    pub trust_domains: BTreeSet<Arc<str>>,
    /// Whether several authorities of the file may all name several trust
    /// domains: only where the settings have put these side by side.
    pub shared: bool,
}

/// Whom the certificates of clients make (SE-46).
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    /// The principals.
    pub rules: Vec<CertificateRule>,
}

/// One of `[[auth.certificates]]`.
#[derive(Clone, Debug)]
pub struct CertificateRule {
    /// A SPIFFE ID; its last segment may be `*`, for any one segment.
    pub spiffe: Arc<str>,
    /// What it may.
    pub permissions: PermissionSet,
    /// Where.
    pub scope: Scope,
}

/// `[server] tls_cert`, `tls_key` and the authorities of clients.
pub(super) fn tls(
    raw: &raw::Server,
    certificates: &Certificates,
    base: &Path,
) -> Result<Option<Tls>, Error> {
    let file = |path: &Option<String>| given(path.clone()).map(|path| base.join(path));
    let clients = clients(raw, certificates, base)?;
    match (file(&raw.tls_cert), file(&raw.tls_key)) {
        (Some(cert), Some(key)) => {
            Ok(Some(Tls { cert, key, clients, settings: FILES, protocols: &[b"h2", b"http/1.1"] }))
        }
        (Some(_), None) => {
            Err(Error::invalid("server.tls_key", "is required with `server.tls_cert`"))
        }
        (None, Some(_)) => {
            Err(Error::invalid("server.tls_cert", "is required with `server.tls_key`"))
        }
        (None, None) => clients.first().map_or(Ok(None), |authority| {
            Err(Error::invalid(
                authority.setting,
                "needs `server.tls_cert` and `server.tls_key`: without TLS nobody shows a \
                 certificate",
            ))
        }),
    }
}

const FILES: [&str; 2] = ["server.tls_cert", "server.tls_key"];
const CLIENT_CA: &str = "server.client_ca";
const CLIENT_TRUST_DOMAINS: &str = "server.client_trust_domains";
const CLIENT_AUTHORITIES: &str = "server.client_authorities";

/// `client_authorities`, or its short form for one authority, `client_ca` with
/// `client_trust_domains`.
fn clients(
    raw: &raw::Server,
    certificates: &Certificates,
    base: &Path,
) -> Result<Vec<ClientAuthority>, Error> {
    let short = given(raw.client_ca.clone());
    if short.is_some() && !raw.client_authorities.is_empty() {
        return Err(Error::invalid(
            CLIENT_AUTHORITIES,
            "takes the place of `server.client_ca`; make that one of its entries",
        ));
    }
    if short.is_none() && !raw.client_trust_domains.is_empty() {
        return Err(Error::invalid(
            CLIENT_TRUST_DOMAINS,
            "is of no use without `server.client_ca`",
        ));
    }
    if let Some(ca) = short {
        // Without a list those count that have a rule: others are nobody.
        let ruled = certificates.rules.iter().filter_map(|rule| {
            let exact = exact(&rule.spiffe);
            spiffe_trust_domain(&exact).map(Arc::from)
        });
        let trust_domains = match raw.client_trust_domains.as_slice() {
            [] => ruled.collect(),
            listed => listed.iter().map(|domain| domain.as_str().into()).collect(),
        };
        let ca = base.join(ca);
        return Ok(vec![ClientAuthority { setting: CLIENT_CA, ca, trust_domains, shared: false }]);
    }
    let mut authorities = Vec::with_capacity(raw.client_authorities.len());
    for (entry, number) in raw.client_authorities.iter().zip(1_usize..) {
        let problem = if entry.ca.trim().is_empty() {
            "`ca` must be a PEM file"
        } else if entry.trust_domains.is_empty() {
            "`trust_domains` must list those that this authority may name"
        } else {
            authorities.push(ClientAuthority {
                setting: CLIENT_AUTHORITIES,
                ca: base.join(&entry.ca),
                trust_domains: entry
                    .trust_domains
                    .iter()
                    .map(|name| name.as_str().into())
                    .collect(),
                shared: true,
            });
            continue;
        };
        return Err(Error::invalid(format!("{CLIENT_AUTHORITIES} #{number}"), problem));
    }
    Ok(authorities)
}

/// `[[auth.certificates]]`, and the trust domains of `[server]`.
pub(super) fn certificates(
    server: &raw::Server,
    auth: &raw::Auth,
    roles: &Roles,
    extra: &BTreeSet<Arc<str>>,
) -> Result<Certificates, Error> {
    let entries = server.client_authorities.iter().zip(1_usize..).flat_map(|(entry, number)| {
        let place = format!("{CLIENT_AUTHORITIES} #{number}");
        entry.trust_domains.iter().map(move |domain| (place.clone(), domain))
    });
    let short = server.client_trust_domains.iter();
    let mut trust_domains = Vec::new();
    for (place, domain) in short.map(|name| (CLIENT_TRUST_DOMAINS.to_owned(), name)).chain(entries)
    {
        if !is_trust_domain(domain) {
            let problem =
                format!("`{}` is no trust domain, as shop.example", domain.escape_debug());
            return Err(Error::invalid(place, problem));
        }
        trust_domains.push(domain.as_str());
    }
    let authority = given(server.client_ca.clone()).is_some();
    if !auth.certificates.is_empty() && !authority && server.client_authorities.is_empty() {
        return Err(Error::invalid(
            "auth.certificates",
            "needs `server.client_ca` or `server.client_authorities`, the authority of these \
             certificates",
        ));
    }
    let list = if authority { CLIENT_TRUST_DOMAINS } else { CLIENT_AUTHORITIES };
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut rules = Vec::with_capacity(auth.certificates.len());
    for (entry, number) in auth.certificates.iter().zip(1_usize..) {
        let place = || format!("auth.certificates #{number} ({})", entry.spiffe.escape_debug());
        let rule = rule(entry, list, &trust_domains, roles, extra)
            .map_err(|problem| Error::invalid(place(), problem))?;
        if let Some(other) = places.insert(&entry.spiffe, number) {
            let problem = format!("has the same `spiffe` as #{other}");
            return Err(Error::invalid(place(), problem));
        }
        rules.push(rule);
    }
    Ok(Certificates { rules })
}

/// A rule's SPIFFE ID with any word in the place of its `*`: whether the rest is
/// well formed.
fn exact(spiffe: &str) -> String {
    match spiffe.strip_suffix("/*") {
        Some(parent) => format!("{parent}/any"),
        None => spiffe.to_owned(),
    }
}

fn rule(
    entry: &raw::CertificateRule,
    list: &str,
    trust_domains: &[&str],
    roles: &Roles,
    extra: &BTreeSet<Arc<str>>,
) -> Result<CertificateRule, String> {
    let exact = exact(&entry.spiffe);
    let Some(domain) = spiffe_trust_domain(&exact) else {
        return Err(
            "`spiffe` must be spiffe://TRUST-DOMAIN/PATH; only its whole last segment may \
                    be `*`"
                .to_owned(),
        );
    };
    if !trust_domains.is_empty() && !trust_domains.contains(&domain) {
        return Err(format!("`{list}` does not list `{domain}`"));
    }
    let permissions = roles.set(&entry.permissions, extra)?;
    let scope = entry.namespaces.as_ref().map_or(Ok(Scope::Everything), |names| {
        Scope::parse(names).map_err(|error| error.to_string())
    })?;
    Ok(CertificateRule { spiffe: entry.spiffe.as_str().into(), permissions, scope })
}

/// The trust domain of a SPIFFE ID that names a workload; none when the text
/// is none. It has one spelling only: no port, user, query, escape or empty
/// segment.
#[must_use]
pub fn spiffe_trust_domain(uri: &str) -> Option<&str> {
    let (domain, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
    let segment = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let good = uri.len() <= SPIFFE_BYTES_MAX && is_trust_domain(domain);
    (good && path.split('/').all(segment)).then_some(domain)
}

fn is_trust_domain(name: &str) -> bool {
    let letter =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    !name.is_empty() && name.len() <= 255 && name.bytes().all(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn se_46_a_spiffe_id_has_one_spelling() {
        for good in ["spiffe://shop.example/a", "spiffe://shop/ns/A_b/sa/c-1.2"] {
            assert!(spiffe_trust_domain(good).is_some(), "{good}");
        }
        assert_eq!(spiffe_trust_domain("spiffe://shop.example/a/b"), Some("shop.example"));
        for bad in [
            "",
            "spiffe://shop",
            "spiffe://shop/",
            "spiffe:///a",
            "spiffe://shop/a/",
            "spiffe://shop//a",
            "spiffe://shop/../a",
            "spiffe://shop/./a",
            "spiffe://Shop/a",
            "SPIFFE://shop/a",
            "spiffe://shop:1/a",
            "spiffe://me@shop/a",
            "spiffe://shop/a?b",
            "spiffe://shop/a#b",
            "spiffe://shop/%61",
            "spiffe://shop/*",
            "https://shop/a",
        ] {
            assert_eq!(spiffe_trust_domain(bad), None, "{bad}");
        }
    }
}
