//! The one connector for addresses that a tenant names (SE-64): a name is
//! looked up once, each of its addresses is checked, and the connection goes
//! to what was checked.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{address, target::Target};
use crate::{
    config::{self, Authorities},
    domain::Network,
};

/// How long all of one exchange may take, from the look-up to the answer.
const TIME_MAX: Duration = Duration::from_secs(30);
/// How many addresses of a name are tried.
const ADDRESSES_MAX: usize = 4;

/// Why there is no connection. Shows neither addresses nor what was answered:
/// who may set a rule need not know the network around the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Closed {
    /// No address of the host is allowed. Says no more than of a name that does
    /// not exist: which names there are inside is nobody's business.
    #[error("no connection")]
    Refused,
    /// The name has no address, or nobody takes the connection.
    #[error("no connection")]
    Unreachable,
    /// The server's certificate is not trusted, or it speaks no TLS.
    #[error("no connection: TLS failed")]
    Tls,
    /// It took too long.
    #[error("timed out")]
    TimedOut,
}

/// Both directions of a connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Connects to addresses that tenants name.
pub struct Egress {
    allow: Vec<Network>,
    ca: Option<Authorities>,
    tls: OnceLock<Option<Arc<ClientConfig>>>,
    own: RwLock<Vec<SocketAddr>>,
    time_max: Duration,
}

impl Egress {
    /// With `[limits] egress_allow` and `egress_ca_path`.
    pub fn new(settings: &config::Egress) -> Result<Self, super::Error> {
        if let Some(ca) = &settings.ca {
            super::certificates(ca)?;
        }
        Ok(Self { allow: settings.allow.clone(), ca: settings.ca.clone(), ..Self::default() })
    }

    /// With another limit on the time of one exchange.
    #[must_use]
    pub fn within(self, time_max: Duration) -> Self {
        Self { time_max, ..self }
    }

    /// The server's own listeners: nothing goes there, whatever is allowed.
    pub fn never_to(&self, listeners: impl IntoIterator<Item = SocketAddr>) {
        self.own.write().unwrap_or_else(PoisonError::into_inner).extend(listeners);
    }

    /// Runs an exchange, connecting included, within the limit on its time.
    pub async fn exchange<T, E: From<Closed>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        timeout(self.time_max, work).await.unwrap_or_else(|_| Err(Closed::TimedOut.into()))
    }

    /// Whether an address that is written as such may be asked; a name is
    /// looked at when it is looked up.
    #[must_use]
    pub fn may_name(&self, target: &Target) -> bool {
        target.literal().is_none_or(|ip| self.may_ask(SocketAddr::new(ip, target.port())))
    }

    fn may_ask(&self, to: SocketAddr) -> bool {
        let open =
            address::is_public(to.ip()) || self.allow.iter().any(|net| net.contains(to.ip()));
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        let own = own.iter().any(|own| address::leads_to(to, *own));
        open && !own && !address::is_no_host(to.ip())
    }

    /// Looks the host up, connects to the first of its allowed addresses that
    /// answers and, when the scheme says so, speaks TLS with it.
    pub async fn connect(&self, target: &Target) -> Result<Box<dyn Duplex>, Closed> {
        let stream = self.open(target).await?;
        if !target.tls() {
            return Ok(Box::new(stream));
        }
        let config = self.tls.get_or_init(|| client_config(self.ca.as_ref()));
        let connector = TlsConnector::from(Arc::clone(config.as_ref().ok_or(Closed::Tls)?));
        let name = ServerName::try_from(target.host().to_owned()).map_err(|_| Closed::Tls)?;
        let stream = connector.connect(name, stream).await.map_err(|_| Closed::Tls)?;
        Ok(Box::new(stream))
    }

    async fn open(&self, target: &Target) -> Result<TcpStream, Closed> {
        let found: Vec<SocketAddr> = match target.literal() {
            Some(address) => vec![SocketAddr::new(address, target.port())],
            None => {
                let found = lookup_host((target.host(), target.port())).await;
                found.map_err(|_| Closed::Unreachable)?.collect()
            }
        };
        let allowed: Vec<SocketAddr> = found
            .iter()
            .map(|to| SocketAddr::new(to.ip().to_canonical(), to.port()))
            .filter(|to| self.may_ask(*to))
            .take(ADDRESSES_MAX)
            .collect();
        if allowed.is_empty() {
            if found.is_empty() {
                return Err(Closed::Unreachable);
            }
            tracing::debug!(host = target.host(), "no address of this host is allowed");
            return Err(Closed::Refused);
        }
        let each = self.time_max / 3;
        for to in allowed {
            if let Ok(Ok(stream)) = timeout(each, TcpStream::connect(to)).await {
                // Requests are small and written at once.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
        }
        Err(Closed::Unreachable)
    }
}

/// Open to the public internet alone.
impl Default for Egress {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            ca: None,
            tls: OnceLock::new(),
            own: RwLock::default(),
            time_max: TIME_MAX,
        }
    }
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress").field("allow", &self.allow).finish_non_exhaustive()
    }
}

/// TLS for what the operator names, with these authorities alone or else with
/// the system's.
pub fn tls(ca: Option<&Authorities>) -> Result<Arc<ClientConfig>, super::Error> {
    if let Some(ca) = ca {
        super::certificates(ca)?;
    }
    client_config(ca).ok_or_else(|| super::Error::Failed("TLS cannot be set up".to_owned()))
}

/// Trusts the authorities of the settings alone, or else the system's.
fn client_config(ca: Option<&Authorities>) -> Option<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let certificates: Vec<CertificateDer<'static>> = match ca {
        Some(ca) => CertificateDer::pem_slice_iter(ca.pem.as_bytes()).flatten().collect(),
        None => rustls_native_certs::load_native_certs().certs,
    };
    let (_, ignored) = roots.add_parsable_certificates(certificates);
    if ignored > 0 {
        tracing::debug!(ignored, "certificates of authorities that cannot be read");
    }
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map(|builder| Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
        .ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::egress::Scheme;

    const SCHEMES: &[Scheme] = &[
        Scheme { name: "http", tls: false, port: 80 },
        Scheme { name: "redis", tls: false, port: 6379 },
        Scheme { name: "rediss", tls: true, port: 6379 },
    ];

    fn egress(allow: &[&str]) -> Egress {
        let allow = allow.iter().map(|text| Network::parse(text).unwrap()).collect();
        Egress::new(&config::Egress { allow, ca: None }).unwrap().within(Duration::from_secs(9))
    }

    fn target(text: &str) -> Target {
        Target::parse(text, SCHEMES).unwrap()
    }

    async fn listener() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    async fn outcome(egress: &Egress, text: &str) -> Result<(), Closed> {
        egress.connect(&target(text)).await.map(|_| ())
    }

    #[tokio::test]
    async fn se_64_inside_addresses_are_refused_at_connect_in_each_form() {
        let (_listener, port) = listener().await;
        let closed = egress(&[]);
        for host in [
            "127.0.0.1",
            "2130706433",
            "0x7f000001",
            "127.1",
            "0177.0.0.1",
            "[::ffff:127.0.0.1]",
            "[::1]",
            "0.0.0.0",
            "[::]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
        ] {
            let url = format!("http://{host}:{port}/");
            assert_eq!(outcome(&closed, &url).await, Err(Closed::Refused), "{url}");
            assert!(!closed.may_name(&target(&url)), "{url}");
        }
        // Where the parser leaves them as names, the look-up makes the same of
        // them.
        for host in ["127.0.0.1", "127.1", "2130706433", "0x7f000001"] {
            let url = format!("redis://{host}:{port}/");
            assert_eq!(outcome(&closed, &url).await, Err(Closed::Refused), "{url}");
        }
    }

    #[tokio::test]
    async fn se_64_a_name_that_leads_inside_is_refused() {
        let (_listener, port) = listener().await;
        let url = format!("http://localhost:{port}/");
        assert!(egress(&[]).may_name(&target(&url)));
        assert_eq!(outcome(&egress(&[]), &url).await, Err(Closed::Refused));
        assert_eq!(outcome(&egress(&["10.0.0.0/8"]), &url).await, Err(Closed::Refused));
        assert_eq!(outcome(&egress(&["127.0.0.1"]), &url).await, Ok(()));
    }

    #[tokio::test]
    async fn se_64_what_is_allowed_opens_that_network_alone() {
        let (_listener, port) = listener().await;
        let open = egress(&["127.0.0.1/32"]);
        for host in ["127.0.0.1", "[::ffff:127.0.0.1]", "127.1"] {
            assert_eq!(outcome(&open, &format!("http://{host}:{port}/")).await, Ok(()), "{host}");
        }
        for host in ["127.0.0.2", "[::1]", "10.0.0.1", "0.0.0.0"] {
            let url = format!("http://{host}:{port}/");
            assert_eq!(outcome(&open, &url).await, Err(Closed::Refused), "{host}");
        }
        // Not even everything is everything: these mean this machine.
        let all = egress(&["0.0.0.0/0", "::/0"]);
        for host in ["0.0.0.0", "0.0.0.1", "[::]", "[::ffff:0.0.0.0]", "255.255.255.255"] {
            let url = format!("http://{host}:{port}/");
            assert_eq!(outcome(&all, &url).await, Err(Closed::Refused), "{host}");
        }
    }

    #[tokio::test]
    async fn se_64_own_listeners_are_refused_whatever_is_allowed() {
        let (_own, own) = listener().await;
        let (_other, other) = listener().await;
        for address in ["127.0.0.1", "0.0.0.0", "::"] {
            let open = egress(&["0.0.0.0/0", "::/0"]);
            open.never_to([SocketAddr::new(address.parse().unwrap(), own)]);
            for host in ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost"] {
                let url = format!("http://{host}:{own}/");
                let refused = outcome(&open, &url).await;
                // A name may have another address, at which nobody listens.
                assert!(matches!(refused, Err(Closed::Refused | Closed::Unreachable)), "{url}");
                let url = format!("http://{host}:{other}/");
                assert_eq!(outcome(&open, &url).await, Ok(()), "{url}");
            }
        }
    }

    #[tokio::test]
    async fn se_64_nobody_there_and_no_such_name_look_the_same() {
        let (listener, port) = listener().await;
        drop(listener);
        let open = egress(&["127.0.0.1"]);
        let nobody = outcome(&open, &format!("http://127.0.0.1:{port}/")).await;
        assert_eq!(nobody, Err(Closed::Unreachable));
        assert_eq!(outcome(&open, "http://no.such.invalid/").await, Err(Closed::Unreachable));
        // Nor does one that leads inside say more.
        assert_eq!(Closed::Refused.to_string(), Closed::Unreachable.to_string());
    }

    #[tokio::test]
    async fn se_64_a_server_that_speaks_no_tls_in_time_is_left() {
        let (_listener, port) = listener().await;
        let open = egress(&["127.0.0.1"]).within(Duration::from_millis(300));
        let silent = target(&format!("rediss://127.0.0.1:{port}/"));
        let ended = open.exchange(async { open.connect(&silent).await.map(|_| ()) }).await;
        assert_eq!(ended, Err(Closed::TimedOut));
    }
}
