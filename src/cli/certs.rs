//! `bailiwick auth generate-certs`: certificates to try TLS with. In earnest
//! they come from an authority of one's own.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::{Error, Result, auth::write_new, output};
use crate::{config::spiffe_trust_domain, domain::Clock as _, server::SystemClock};

/// For machines whose clock is a little behind.
const BACKDATED_SECONDS: u64 = 300;

#[derive(Args, Debug)]
pub(super) struct GenerateCerts {
    /// Where the files go
    #[arg(long, default_value = "./certs", value_name = "FOLDER")]
    output_dir: PathBuf,
    /// A name or address of the server besides localhost and loopback; may be
    /// given again
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// Also make a client's certificate with this SPIFFE ID; may be given
    /// again
    #[arg(long, value_name = "URI")]
    spiffe: Vec<String>,
    /// How long they live
    #[arg(long, default_value_t = 30, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=825))]
    days: u32,
    /// Overwrite certificates that are there
    #[arg(long)]
    force: bool,
}

/// A certificate and its key as PEM, and the files' names.
struct Made {
    name: String,
    cert: String,
    key: zeroize::Zeroizing<String>,
}

pub(super) fn generate(args: &GenerateCerts) -> Result {
    let mut names = vec!["ca".to_owned(), "server".to_owned()];
    for (number, uri) in (1_usize..).zip(&args.spiffe) {
        if spiffe_trust_domain(uri).is_none() {
            return Err(Error::Usage(format!(
                "`{uri}` is no SPIFFE ID, as spiffe://shop.example/worker"
            )));
        }
        names.push(if number == 1 { "client".to_owned() } else { format!("client-{number}") });
    }
    for path in names.iter().flat_map(|name| paths(&args.output_dir, name)) {
        if path.exists() && !args.force {
            return Err(Error::Failed(format!(
                "{} is there already; --force overwrites it, and what trusts it ends",
                path.display()
            )));
        }
    }
    let made = make(args, names)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.output_dir)
        .map_err(|error| Error::Usage(format!("{}: {error}", args.output_dir.display())))?;
    for Made { name, cert, key } in &made {
        let [cert_path, key_path] = paths(&args.output_dir, name);
        write_new(&key_path, key, 0o600)?;
        write_new(&cert_path, cert, 0o644)?;
        output::line(format!("{}\n{}", cert_path.display(), key_path.display()))?;
    }
    Ok(())
}

fn paths(folder: &Path, name: &str) -> [PathBuf; 2] {
    [folder.join(format!("{name}.pem")), folder.join(format!("{name}-key.pem"))]
}

fn make(args: &GenerateCerts, names: Vec<String>) -> Result<Vec<Made>> {
    let mut names = names.into_iter();
    let mut next = || names.next().unwrap_or_default();

    let mut authority = params(args, "Bailiwick try-out authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_key = KeyPair::generate().map_err(failed)?;
    let authority_cert = authority.self_signed(&authority_key).map_err(failed)?;
    let mut made = vec![Made {
        name: next(),
        cert: authority_cert.pem(),
        key: authority_key.serialize_pem().into(),
    }];
    let issuer = Issuer::new(authority, authority_key);

    let mut server = params(args, "Bailiwick server");
    let local = ["localhost", "127.0.0.1", "::1"].into_iter();
    for host in local.chain(args.host.iter().map(String::as_str)) {
        server.subject_alt_names.push(host_name(host)?);
    }
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    made.push(sign(next(), server, &issuer)?);

    for uri in &args.spiffe {
        let mut client = params(args, "Bailiwick client");
        let name = uri.as_str().try_into().map_err(failed)?;
        client.subject_alt_names.push(SanType::URI(name));
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        made.push(sign(next(), client, &issuer)?);
    }
    Ok(made)
}

fn params(args: &GenerateCerts, name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = u64::try_from(SystemClock.now().seconds()).unwrap_or_default();
    let begin = Duration::from_secs(now.saturating_sub(BACKDATED_SECONDS));
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + begin;
    params.not_after = params.not_before
        + Duration::from_secs(BACKDATED_SECONDS + u64::from(args.days) * 24 * 60 * 60);
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn host_name(host: &str) -> Result<SanType> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let dns = host.strip_prefix("*.").unwrap_or(host);
    match host.try_into() {
        Ok(name) if dns.split('.').all(label) => Ok(SanType::DnsName(name)),
        _ => Err(Error::Usage(format!("`{host}` is neither a host's name nor an address"))),
    }
}

fn sign(name: String, mut params: CertificateParams, issuer: &Issuer<'_, KeyPair>) -> Result<Made> {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(failed)?;
    let cert = params.signed_by(&key, issuer).map_err(failed)?;
    Ok(Made { name, cert: cert.pem(), key: key.serialize_pem().into() })
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Failed(format!("a certificate cannot be made: {error}"))
}
