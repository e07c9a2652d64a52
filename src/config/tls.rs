//! TLS of the listeners, and the principals of client certificates. The files
//! themselves are read by `server`, which also reads them again.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Error, given, raw};
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
    /// The authorities of client certificates; without it none are asked for.
    pub client_ca: Option<PathBuf>,
}

/// Whom the certificates of clients make (SE-46).
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    /// The principals.
    pub rules: Vec<CertificateRule>,
    /// The only trust domains that count; any when there are none.
    pub trust_domains: Vec<String>,
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

/// `[server] tls_cert`, `tls_key` and `client_ca`.
pub(super) fn tls(raw: &raw::Server, base: &Path) -> Result<Option<Tls>, Error> {
    let file = |path: &Option<String>| given(path.clone()).map(|path| base.join(path));
    let client_ca = file(&raw.client_ca);
    if client_ca.is_none() && !raw.client_trust_domains.is_empty() {
        return Err(Error::invalid(
            "server.client_trust_domains",
            "is of no use without `server.client_ca`",
        ));
    }
    match (file(&raw.tls_cert), file(&raw.tls_key)) {
        (Some(cert), Some(key)) => Ok(Some(Tls { cert, key, client_ca })),
        (Some(_), None) => {
            Err(Error::invalid("server.tls_key", "is required with `server.tls_cert`"))
        }
        (None, Some(_)) => {
            Err(Error::invalid("server.tls_cert", "is required with `server.tls_key`"))
        }
        (None, None) if client_ca.is_some() => Err(Error::invalid(
            "server.client_ca",
            "needs `server.tls_cert` and `server.tls_key`: without TLS nobody shows a certificate",
        )),
        (None, None) => Ok(None),
    }
}

/// `[[auth.certificates]]` and `[server] client_trust_domains`.
pub(super) fn certificates(
    server: &raw::Server,
    auth: &raw::Auth,
    extra: &BTreeSet<Arc<str>>,
) -> Result<Certificates, Error> {
    for domain in &server.client_trust_domains {
        if !is_trust_domain(domain) {
            return Err(Error::invalid(
                "server.client_trust_domains",
                format!("`{}` is no trust domain, as shop.example", domain.escape_debug()),
            ));
        }
    }
    let trust_domains = server.client_trust_domains.clone();
    if !auth.certificates.is_empty() && given(server.client_ca.clone()).is_none() {
        return Err(Error::invalid(
            "auth.certificates",
            "needs `server.client_ca`, the authority of these certificates",
        ));
    }
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut rules = Vec::with_capacity(auth.certificates.len());
    for (entry, number) in auth.certificates.iter().zip(1_usize..) {
        let place = || format!("auth.certificates #{number} ({})", entry.spiffe.escape_debug());
        let rule = rule(entry, &trust_domains, extra)
            .map_err(|problem| Error::invalid(place(), problem))?;
        if let Some(other) = places.insert(&entry.spiffe, number) {
            let problem = format!("has the same `spiffe` as #{other}");
            return Err(Error::invalid(place(), problem));
        }
        rules.push(rule);
    }
    Ok(Certificates { rules, trust_domains })
}

fn rule(
    entry: &raw::CertificateRule,
    trust_domains: &[String],
    extra: &BTreeSet<Arc<str>>,
) -> Result<CertificateRule, String> {
    let exact = match entry.spiffe.strip_suffix("/*") {
        // Any word in its place: whether the rest is well formed.
        Some(parent) => format!("{parent}/any"),
        None => entry.spiffe.clone(),
    };
    let Some(domain) = spiffe_trust_domain(&exact) else {
        return Err(
            "`spiffe` must be spiffe://TRUST-DOMAIN/PATH; only its whole last segment may \
                    be `*`"
                .to_owned(),
        );
    };
    if !trust_domains.is_empty() && !trust_domains.iter().any(|known| known == domain) {
        return Err(format!("`server.client_trust_domains` does not list `{domain}`"));
    }
    let mut permissions = PermissionSet::empty();
    for name in &entry.permissions {
        if !permissions.add(name, extra) {
            return Err(format!("unknown permission `{}`", name.escape_debug()));
        }
    }
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
