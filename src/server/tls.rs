//! TLS of the listeners: the certificate, its key and the clients'
//! authorities, read at start and again whenever the files change.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, pem, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use sha2::{Digest as _, Sha256};
use thiserror::Error as ThisError;
use tokio_util::sync::CancellationToken;

use crate::{authn::ClientCertificate, config};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The largest file: a bundle of all public authorities has a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why the files of TLS cannot be used. No variant holds a key.
#[derive(Debug, ThisError)]
pub enum Error {
    /// One of the files is wrong.
    #[error("`{setting}`: {}: {problem}", path.display())]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The library refuses its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Library(#[from] rustls::Error),
}

/// What connections are made with; exchanged when the files change.
#[derive(Debug)]
pub(super) struct Tls {
    files: config::Tls,
    current: RwLock<Current>,
}

/// One state of the files.
#[derive(Clone, Debug)]
pub(super) struct Current {
    /// For the handshake.
    pub(super) config: Arc<ServerConfig>,
    /// Cancelled when the authorities of clients are others: who was let in
    /// by the old ones must come again.
    pub(super) replaced: CancellationToken,
    authorities: Arc<[Authority]>,
    authorities_digest: [u8; 32],
    digest: [u8; 32],
}

type Verifier = Arc<dyn ClientCertVerifier>;

/// Authorities of clients that may name the same trust domains.
#[derive(Debug)]
struct Authority {
    verifier: Verifier,
    trust_domains: BTreeSet<Arc<str>>,
}

/// The contents of the files.
struct Contents {
    cert: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
    /// In the order of the settings.
    clients: Vec<Vec<u8>>,
}

impl Tls {
    /// Reads the files, if TLS is on; one that cannot be used is named.
    pub(super) fn load(files: Option<&config::Tls>) -> Result<Option<Arc<Self>>, Error> {
        let Some(files) = files else { return Ok(None) };
        let contents = read(files)?;
        let current = RwLock::new(Current::new(files, &contents)?);
        Ok(Some(Arc::new(Self { files: files.clone(), current })))
    }

    /// What a new connection is made with.
    pub(super) fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes changed files over until the shutdown: all of them or none.
    async fn watch(&self, shutdown: CancellationToken) {
        let mut seen = Some(self.current().digest);
        // The time is up: look again.
        while tokio::time::timeout(LOOK, shutdown.cancelled()).await.is_err() {
            let contents = read(&self.files);
            let now = contents.as_ref().ok().map(Contents::digest);
            if now == seen {
                continue;
            }
            seen = now;
            match contents.and_then(|contents| Current::new(&self.files, &contents)) {
                Ok(new) => {
                    self.exchange(new);
                    tracing::info!(cert = %self.files.cert.display(), "TLS files taken over");
                }
                Err(error) => {
                    tracing::warn!(%error, "changed TLS files are not taken; the old ones stay");
                }
            }
        }
    }

    fn exchange(&self, new: Current) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let same = new.authorities_digest == current.authorities_digest;
        let old = std::mem::replace(&mut *current, new);
        if same {
            current.replaced = old.replaced;
        } else {
            old.replaced.cancel();
        }
    }
}

/// Takes changed files over until the shutdown; ends at once without TLS.
pub(super) async fn watch(tls: Option<Arc<Tls>>, shutdown: CancellationToken) {
    if let Some(tls) = tls {
        tls.watch(shutdown).await;
    }
}

impl Contents {
    /// Tells one state of the files from another.
    fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for part in [&self.cert, &*self.key] {
            digest.update(Sha256::digest(part));
        }
        digest.update(self.clients_digest());
        digest.finalize().into()
    }

    /// Of the clients' authorities alone.
    fn clients_digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for pem in &self.clients {
            digest.update(Sha256::digest(pem));
        }
        digest.finalize().into()
    }
}

impl Current {
    fn new(files: &config::Tls, contents: &Contents) -> Result<Self, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certified = certified(files, contents, &provider)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let (union, authorities) = authorities(files, contents, &provider)?;
        let builder = match union {
            Some(union) => builder.with_client_cert_verifier(union),
            None => builder.with_no_client_auth(),
        };
        let single = rustls::sign::SingleCertAndKey::from(certified);
        let mut config = builder.with_cert_resolver(Arc::new(single));
        config.alpn_protocols = files.protocols.iter().map(|name| name.to_vec()).collect();
        Ok(Self {
            config: Arc::new(config),
            replaced: CancellationToken::new(),
            digest: contents.digest(),
            authorities,
            authorities_digest: contents.clients_digest(),
        })
    }

    /// What the other side has shown, with the trust domains that it may be
    /// of. The handshake says that some authority vouches for the chain, not
    /// which, so each is asked (SE-46).
    pub(super) fn certificate(&self, chain: &[CertificateDer<'_>]) -> Option<ClientCertificate> {
        let (own, between) = chain.split_first()?;
        let now = self.config.time_provider.current_time();
        let vouches = |authority: &&Authority| {
            let verify = |now| authority.verifier.verify_client_cert(own, between, now);
            now.is_some_and(|now| verify(now).is_ok())
        };
        let vouching = self.authorities.iter().filter(vouches);
        let trust_domains = vouching.flat_map(|authority| authority.trust_domains.iter().cloned());
        Some(ClientCertificate::new(own, trust_domains.collect()))
    }
}

fn read(files: &config::Tls) -> Result<Contents, Error> {
    let clients = files.clients.iter().map(|entry| contents(entry.setting, &entry.ca));
    let [cert_setting, key_setting] = files.settings;
    Ok(Contents {
        cert: contents(cert_setting, &files.cert)?,
        key: contents(key_setting, &files.key)?.into(),
        clients: clients.collect::<Result<_, _>>()?,
    })
}

fn contents(setting: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let text = || {
        if fs::metadata(path)?.len() > FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        fs::read(path)
    };
    text().map_err(|error: io::Error| wrong(setting, path, format!("cannot be read: {error}")))
}

fn wrong(setting: &'static str, path: &Path, problem: impl Into<String>) -> Error {
    Error::File { setting, path: path.to_owned(), problem: problem.into() }
}

fn certificates(
    setting: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| wrong(setting, path, "the PEM is damaged"))?;
    if all.is_empty() {
        return Err(wrong(setting, path, "holds no PEM certificate (`BEGIN CERTIFICATE`)"));
    }
    Ok(all)
}

fn certified(
    files: &config::Tls,
    contents: &Contents,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Error> {
    let [cert_setting, key_setting] = files.settings;
    let chain = certificates(cert_setting, &files.cert, &contents.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|error| {
        let problem = match error {
            pem::Error::NoItemsFound => {
                "holds no PEM private key that is not encrypted (`BEGIN PRIVATE KEY`)"
            }
            // Its text may quote the file.
            pem::Error::MissingSectionEnd { .. }
            | pem::Error::IllegalSectionStart { .. }
            | pem::Error::Base64Decode(_)
            | pem::Error::Io(_)
            | pem::Error::SectionTooLarge
            | _ => "the PEM is damaged",
        };
        wrong(key_setting, &files.key, problem)
    })?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|_| wrong(key_setting, &files.key, "holds a private key that cannot be used"))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|error| {
        if matches!(error, rustls::Error::InconsistentKeys(_)) {
            let cert = files.cert.display();
            wrong(key_setting, &files.key, format!("does not fit the first certificate in {cert}"))
        } else {
            wrong(cert_setting, &files.cert, format!("the certificate cannot be used: {error}"))
        }
    })?;
    Ok(certified)
}

/// The clients' authorities, and all of them together for the handshake: a
/// caller with another credential needs no certificate, one that is shown must
/// be good.
fn authorities(
    files: &config::Tls,
    contents: &Contents,
    provider: &Arc<CryptoProvider>,
) -> Result<(Option<Verifier>, Arc<[Authority]>), Error> {
    let mut all = RootCertStore::empty();
    let mut authorities = Vec::with_capacity(files.clients.len());
    for (entry, pem) in files.clients.iter().zip(&contents.clients) {
        let roots = roots(entry, pem)?;
        for root in &roots.roots {
            if !all.roots.contains(root) {
                all.roots.push(root.clone());
            }
        }
        let verifier = client_verifier(entry, roots, provider)?;
        authorities.push(Authority { verifier, trust_domains: entry.trust_domains.clone() });
    }
    let first = files.clients.first();
    let union = first.map(|entry| client_verifier(entry, all, provider)).transpose()?;
    Ok((union, authorities.into()))
}

/// The authorities in one file.
fn roots(entry: &config::ClientAuthority, pem: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(entry.setting, &entry.ca, pem)? {
        roots.add(authority).map_err(|error| {
            wrong(entry.setting, &entry.ca, format!("an authority cannot be used: {error}"))
        })?;
    }
    // One that was only renewed is the same.
    let who = |anchor: &TrustAnchor<'static>| {
        (anchor.subject.clone(), anchor.subject_public_key_info.clone())
    };
    let different: HashSet<_> = roots.roots.iter().map(who).collect();
    if !entry.shared && different.len() > 1 && entry.trust_domains.len() > 1 {
        let problem = format!(
            "holds {} authorities, and each could name all of the {} trust domains; say with \
             `[[server.client_authorities]]` which may name which",
            different.len(),
            entry.trust_domains.len()
        );
        return Err(wrong(entry.setting, &entry.ca, problem));
    }
    Ok(roots)
}

fn client_verifier(
    entry: &config::ClientAuthority,
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Verifier, Error> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(entry.setting, &entry.ca, error.to_string()))
}
