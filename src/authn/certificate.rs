//! Client certificates (SE-46). The handshake has verified the chain and that
//! the caller holds the key; here the name in the certificate becomes a
//! principal, or nothing.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _, time::ASN1Time,
};

use super::{Accepted, Fault, Rejected, Session};
use crate::{
    config::{CertificateRule, Certificates, spiffe_trust_domain},
    domain::{
        Grant, Principal, Timestamp,
        principal::{Identity, Method, Source},
        secret,
    },
};

/// The certificate that the other side of a connection has shown.
#[derive(Clone, Debug)]
pub struct ClientCertificate(Arc<Shown>);

#[derive(Debug)]
struct Shown {
    name: Result<Named, Fault>,
    /// What the authorities may name that its chain ends in.
    trust_domains: Vec<Arc<str>>,
    credential_id: Arc<str>,
    digest: [u8; 32],
    /// Whether it was accepted on this connection before.
    known: AtomicBool,
}

#[derive(Debug)]
struct Named {
    uri: Arc<str>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl ClientCertificate {
    /// Of these bytes, whose signature the handshake has checked; its chain
    /// ends in authorities that may name these trust domains.
    #[must_use]
    pub fn new(der: &[u8], trust_domains: Vec<Arc<str>>) -> Self {
        let digest: [u8; 32] = Sha256::digest(der).into();
        Self(Arc::new(Shown {
            name: named(der).map_err(Fault::Certificate),
            trust_domains,
            credential_id: secret::id_of_stranger(&digest),
            digest,
            known: AtomicBool::new(false),
        }))
    }
}

fn named(der: &[u8]) -> Result<Named, &'static str> {
    const MALFORMED: &str = "it cannot be read";
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| MALFORMED)?;
    if !rest.is_empty() {
        return Err(MALFORMED);
    }
    let names = certificate.subject_alternative_name().map_err(|_| MALFORMED)?;
    let mut uris = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None });
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err("it has not exactly one URI as its name");
    };
    if spiffe_trust_domain(uri).is_none() {
        return Err("its URI is no SPIFFE ID");
    }
    let seconds = |time: ASN1Time| Timestamp::from_seconds(time.timestamp());
    let validity = certificate.validity();
    Ok(Named {
        uri: uri.into(),
        not_before: seconds(validity.not_before),
        not_after: seconds(validity.not_after),
    })
}

/// Who a certificate's name is.
pub(super) struct Mapping {
    /// By SPIFFE ID; a last segment `*` stands for any one, and is in no ID.
    rules: HashMap<Arc<str>, CertificateRule>,
}

impl Mapping {
    pub(super) fn new(certificates: &Certificates) -> Self {
        let rules = &certificates.rules;
        Self { rules: rules.iter().map(|rule| (Arc::clone(&rule.spiffe), rule.clone())).collect() }
    }

    /// Every rule, in no order.
    pub(super) fn rules(&self) -> impl Iterator<Item = &CertificateRule> {
        self.rules.values()
    }

    /// The principal of a certificate; one without a rule is nobody.
    pub(super) fn accept(
        &self,
        certificate: &ClientCertificate,
        now: Timestamp,
        revoked: &CancellationToken,
    ) -> Result<Accepted, Rejected> {
        let shown = &certificate.0;
        let rejected =
            |fault: Fault| Rejected { why: fault.why(), method: Method::Certificate, fault };
        let named = shown.name.as_ref().map_err(|fault| rejected(fault.clone()))?;
        let domain = spiffe_trust_domain(&named.uri).unwrap_or_default();
        // Any authority can sign any name.
        if !shown.trust_domains.iter().any(|own| **own == *domain) {
            let problem = "its authority may not name its trust domain";
            return Err(rejected(Fault::Certificate(problem)));
        }
        // A connection outlives its handshake.
        if now >= named.not_after {
            return Err(rejected(Fault::Expired));
        }
        if now < named.not_before {
            return Err(rejected(Fault::NotYetValid));
        }
        let rule = self.rule(&named.uri);
        let rule = rule.ok_or_else(|| rejected(Fault::Certificate("no rule names it")))?;
        let principal = Principal {
            identity: Identity {
                source: Source::Certificate,
                issuer: "".into(),
                subject: Arc::clone(&named.uri),
            },
            method: Method::Certificate,
            grants: vec![Grant {
                permissions: rule.permissions.clone(),
                scope: rule.scope.clone(),
            }],
            not_after: Some(named.not_after),
            credential_id: Arc::clone(&shown.credential_id),
            worker_scope: None,
            issued_at: None,
        };
        Ok(Accepted {
            session: Arc::new(
                Session::new(Arc::new(principal), revoked.child_token()).with_digest(&shown.digest),
            ),
            fresh: !shown.known.swap(true, Ordering::Relaxed),
            unknown_permissions: Vec::new(),
            counted: None,
            tie: None,
        })
    }

    /// The exact rule, or else the one for all of its siblings.
    pub(super) fn rule(&self, uri: &str) -> Option<&CertificateRule> {
        let siblings = || {
            let (parent, _) = uri.rsplit_once('/')?;
            self.rules.get(format!("{parent}/*").as_str())
        };
        self.rules.get(uri).or_else(siblings)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;
    use crate::{
        authn::Unauthenticated,
        domain::{PermissionSet, Scope},
    };

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn certificate(uris: &[&str], trust_domains: &[&str]) -> ClientCertificate {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2028, 1, 1);
        params.subject_alt_names.push(SanType::DnsName("shop.example".try_into().unwrap()));
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        let cert = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        ClientCertificate::new(cert.der(), trust_domains.iter().copied().map(Arc::from).collect())
    }

    fn mapping(spiffes: &[&str]) -> Mapping {
        let mut permissions = PermissionSet::empty();
        assert!(permissions.add("*", &BTreeSet::new()));
        let rule = |spiffe: &&str| CertificateRule {
            spiffe: (*spiffe).into(),
            permissions: permissions.clone(),
            scope: Scope::Everything,
        };
        Mapping::new(&Certificates { rules: spiffes.iter().map(rule).collect() })
    }

    fn accept(mapping: &Mapping, uris: &[&str]) -> Result<Arc<Principal>, Unauthenticated> {
        let shown = certificate(uris, &["shop.example"]);
        accept_shown(mapping, &shown)
    }

    fn accept_shown(
        mapping: &Mapping,
        shown: &ClientCertificate,
    ) -> Result<Arc<Principal>, Unauthenticated> {
        let accepted = mapping.accept(shown, NOW, &CancellationToken::new());
        accepted.map(|accepted| Arc::clone(&accepted.session.principal)).map_err(|no| no.why)
    }

    #[test]
    fn se_46_one_mapped_uri_is_a_principal_and_never_root() {
        let mapping = mapping(&["spiffe://shop.example/worker"]);
        let principal = accept(&mapping, &["spiffe://shop.example/worker"]).unwrap();
        assert_eq!(&*principal.identity.subject, "spiffe://shop.example/worker");
        assert_eq!(principal.identity.source, Source::Certificate);
        assert_eq!(principal.not_after, Some(Timestamp::from_seconds(1_830_297_600)));
        assert!(!principal.is_root());
        for bad in [
            &[][..],
            &["spiffe://shop.example/worker", "spiffe://shop.example/worker"],
            &["spiffe://shop.example/worker", "https://shop.example/"],
            &["spiffe://shop.example/worker2"],
            &["spiffe://shop.example/worker/2"],
            &["spiffe://shop.example/work"],
            &["spiffe://shop.example.evil/worker"],
            &["spiffe://shop.example/Worker"],
            &["spiffe://shop.example/%77orker"],
        ] {
            assert_eq!(accept(&mapping, bad).unwrap_err(), Unauthenticated::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn se_46_a_star_is_one_whole_segment() {
        let mapping = mapping(&["spiffe://shop.example/workers/*"]);
        assert!(accept(&mapping, &["spiffe://shop.example/workers/a"]).is_ok());
        for bad in ["workers", "workers/a/b", "workersa/b", "other/a", "workers/*"] {
            let uri = format!("spiffe://shop.example/{bad}");
            assert!(accept(&mapping, &[&uri]).is_err(), "{bad}");
        }
    }

    #[test]
    fn se_46_an_authority_names_its_own_trust_domains_alone() {
        let (own, other) = ("spiffe://shop.example/a", "spiffe://other.example/a");
        let mapping = mapping(&[own, other]);
        for (uri, trust_domains, good) in [
            (own, &["shop.example"][..], true),
            (other, &["shop.example"], false),
            (other, &["other.example"], true),
            (own, &["other.example"], false),
            (own, &["other.example", "shop.example"], true),
            (own, &["shop", "shop.example.evil", "Shop.example", ""], false),
            (own, &[], false),
        ] {
            let shown = certificate(&[uri], trust_domains);
            assert_eq!(accept_shown(&mapping, &shown).is_ok(), good, "{uri} {trust_domains:?}");
        }
    }

    #[test]
    fn se_46_a_certificate_ends_while_its_connection_lives() {
        let mapping = mapping(&["spiffe://shop.example/a"]);
        let shown = certificate(&["spiffe://shop.example/a"], &["shop.example"]);
        let at = |seconds| {
            let now = Timestamp::from_seconds(seconds);
            mapping.accept(&shown, now, &CancellationToken::new()).map_err(|no| no.why)
        };
        assert!(at(1_830_297_599).unwrap().fresh);
        assert!(!at(1_830_297_599).unwrap().fresh);
        assert_eq!(at(1_830_297_600).unwrap_err(), Unauthenticated::Expired);
        assert_eq!(at(1_700_000_000).unwrap_err(), Unauthenticated::NotYetValid);
    }
}
