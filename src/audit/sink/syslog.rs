//! Syslog, RFC 5424: a datagram each over UDP (RFC 5426) or a local socket,
//! octet counting over TCP (RFC 6587) and TLS (RFC 5425).

use std::{
    fmt::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::FutureExt as _;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket, UnixDatagram, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    Format, Sealed, Sink, Unsent,
    format::{Fields, Weight},
};
use crate::audit::chain::hex;

/// How long a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long all that is sent at once may take, over a slow line too.
const TIME_MAX: Duration = Duration::from_mins(1);
/// How long a connection must hold behind what was written before that counts
/// as sent: there is no other answer.
const SETTLE: Duration = Duration::from_millis(250);
/// The longest datagram; a longer one would never get through.
const DATAGRAM_BYTES_MAX: usize = 60_000;
/// The longest name of a host in a message.
const HOST_BYTES_MAX: usize = 255;
/// The number for examples (RFC 5612): there is none of our own.
const DATA_ID: &str = "bailiwick@32473";

/// Where it goes, and how.
#[derive(Clone, Debug)]
pub enum Transport {
    /// A datagram for each record, to this host and port.
    Udp(String, u16),
    /// A stream, to this host and port.
    Tcp(String, u16),
    /// A stream within TLS.
    Tls(String, u16, Arc<ClientConfig>),
    /// A datagram for each record, to the socket of this path.
    Unix(PathBuf),
}

impl Transport {
    async fn connect(&self) -> Result<Open, Unsent> {
        match self {
            Transport::Udp(host, port) => {
                let to = lookup_host((host.as_str(), *port)).await?.next();
                let to = to.ok_or_else(|| Unsent::new("the host has no address"))?;
                let from: SocketAddr = match to {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = UdpSocket::bind(from).await?;
                socket.connect(to).await?;
                Ok(Open::Udp(socket))
            }
            Transport::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                Ok(Open::Unix(socket))
            }
            Transport::Tcp(host, port) => {
                Ok(Open::Stream(Box::new(TcpStream::connect((host.as_str(), *port)).await?)))
            }
            Transport::Tls(host, port, config) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                let name = ServerName::try_from(host.clone()).map_err(Unsent::new)?;
                let connector = TlsConnector::from(Arc::clone(config));
                Ok(Open::Stream(Box::new(connector.connect(name, stream).await?)))
            }
        }
    }
}

/// Both directions of a stream.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What is open.
enum Open {
    Udp(UdpSocket),
    Unix(UnixDatagram),
    Stream(Box<dyn Duplex>),
}

/// Sends to a server of syslog.
pub struct Syslog {
    transport: Transport,
    format: Format,
    facility: u8,
    host: String,
    open: Option<Open>,
}

impl Syslog {
    /// Connects when there is something to send.
    #[must_use]
    pub fn new(transport: Transport, facility: u8, format: Format) -> Self {
        Self { transport, format, facility, host: host(), open: None }
    }

    /// Sends over what is open, or opens it.
    async fn hand_over(&mut self, records: &[Sealed]) -> Result<(), Unsent> {
        let mut open = self.open.take();
        if let Some(Open::Stream(stream)) = &mut open
            && is_over(&mut **stream).now_or_never().is_some()
        {
            open = None;
        }
        let mut open = match open {
            Some(open) => open,
            None => timeout(CONNECT_MAX, self.transport.connect())
                .await
                .unwrap_or_else(|_| Err(Unsent::new("no connection in time")))?,
        };
        match &mut open {
            Open::Udp(socket) => {
                for record in records {
                    socket.send(self.datagram(record).as_bytes()).await?;
                }
            }
            Open::Unix(socket) => {
                for record in records {
                    socket.send(self.datagram(record).as_bytes()).await?;
                }
            }
            Open::Stream(stream) => {
                let mut text = String::new();
                for record in records {
                    let message = self.message(record, true);
                    // Writing to a string cannot fail, here and below.
                    let _ = write!(text, "{} {message}", message.len());
                }
                stream.write_all(text.as_bytes()).await?;
                stream.flush().await?;
                if timeout(SETTLE, is_over(&mut **stream)).await.is_ok() {
                    return Err(Unsent::new("the other end has closed the connection"));
                }
            }
        }
        self.open = Some(open);
        Ok(())
    }

    /// A message that fits into a datagram: what is too long is left out, and
    /// its hash stays.
    fn datagram(&self, record: &Sealed) -> String {
        let message = self.message(record, true);
        if message.len() <= DATAGRAM_BYTES_MAX { message } else { self.message(record, false) }
    }

    fn message(&self, record: &Sealed, whole: bool) -> String {
        let fields = Fields::of(record);
        let severity = match fields.weight() {
            Weight::Allowed => 6,
            Weight::Failed => 5,
            Weight::Denied => 4,
        };
        let priority = u32::from(self.facility) * 8 + severity;
        let at = if fields.at.is_empty() { "-" } else { &fields.at };
        let (host, process) = (&self.host, std::process::id());
        let kind = if record.place.is_some() { "record" } else { "checkpoint" };
        let mut text = format!("<{priority}>1 {at} {host} bailiwick {process} {kind} ");
        data(&mut text, record, whole);
        if whole {
            text.push(' ');
            text.push_str(&self.format.text(record));
        }
        text
    }
}

/// What a message has as structured data.
fn data(text: &mut String, record: &Sealed, whole: bool) {
    let _ = write!(text, "[{DATA_ID} seq=\"{}\"", record.seq);
    if let Some(place) = &record.place {
        let (chain, number) = (escaped(&place.chain), place.number);
        let _ = write!(text, " chain=\"{chain}\" number=\"{number}\"");
        let _ = write!(text, " hash=\"{}\" prev=\"{}\"", hex(&place.hash), hex(&place.prev));
    }
    text.push_str(if whole { "]" } else { " left_out=\"message\"]" });
}

impl fmt::Debug for Syslog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Syslog").field("transport", &self.transport).finish_non_exhaustive()
    }
}

#[async_trait]
impl Sink for Syslog {
    async fn send(&mut self, records: &[Sealed]) -> Result<(), Unsent> {
        timeout(TIME_MAX, self.hand_over(records))
            .await
            .unwrap_or_else(|_| Err(Unsent::new("it took too long")))
    }
}

/// Answers once the other end is gone. What it says meanwhile is nothing to
/// us: syslog has no answers.
async fn is_over(stream: &mut dyn Duplex) {
    let mut said = [0; 256];
    while matches!(stream.read(&mut said).await, Ok(1..)) {}
}

/// The value of a parameter of structured data.
fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, letter| {
        if matches!(letter, '"' | '\\' | ']') {
            out.push('\\');
        }
        out.push(letter);
        out
    })
}

/// The name of this machine, `-` where it has none.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String =
        name.trim().chars().filter(char::is_ascii_graphic).take(HOST_BYTES_MAX).collect();
    if name.is_empty() { "-".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::sink::tests::{checkpoint, record};

    fn syslog() -> Syslog {
        let transport = Transport::Unix("/dev/null".into());
        Syslog { host: "node-1".to_owned(), ..Syslog::new(transport, 13, Format::Lines) }
    }

    #[test]
    fn se_44_a_message_has_the_form_of_rfc_5424() {
        let pid = std::process::id();
        let record = record(7, "sh]o\"p\\", "denied");
        let message = syslog().message(&record, true);
        let head = format!(
            "<108>1 2026-04-01T12:00:00.000001Z node-1 bailiwick {pid} record \
             [bailiwick@32473 seq=\"7\" chain=\"sh\\]o\\\"p\\\\\" number=\"3\" hash=\"{}\" prev=\"{}\"] ",
            "02".repeat(32),
            "01".repeat(32),
        );
        let line = message.strip_prefix(&head).unwrap_or_else(|| panic!("{message}\n{head}"));
        assert_eq!(format!("{line}\n"), Format::Lines.line(&record));
        for (outcome, priority) in [("allowed", 110), ("failed", 109)] {
            let message = syslog().message(&super::super::tests::record(7, "shop", outcome), true);
            assert!(message.starts_with(&format!("<{priority}>1 ")), "{message}");
        }
        let message = syslog().message(&checkpoint(8), true);
        let head = format!("<110>1 2026-04-01T12:00:01.000000Z node-1 bailiwick {pid} checkpoint ");
        assert!(message.starts_with(&format!("{head}[bailiwick@32473 seq=\"8\"] {{")), "{message}");
    }

    #[test]
    fn what_is_too_long_for_a_datagram_leaves_its_hash() {
        let mut long = record(7, "shop", "allowed");
        long.body = format!("{{\"object\":\"{}\"}}", "x".repeat(DATAGRAM_BYTES_MAX)).into();
        let message = syslog().datagram(&long);
        assert!(message.ends_with(&format!("prev=\"{}\" left_out=\"message\"]", "01".repeat(32))));
        assert!(syslog().datagram(&record(7, "shop", "allowed")).ends_with('}'));
    }
}
