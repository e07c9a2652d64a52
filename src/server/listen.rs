//! The accept loop: HTTP/1.1 and HTTP/2 with prior knowledge on one port,
//! with limits on everything that a stranger can make us wait for.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{first_line::FirstLine, stack::Stack, tls::Tls};
use crate::authn::ClientCertificate;

/// How an HTTP/2 connection begins (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long to wait for more of it: at first, and at most.
const PREFACE_PAUSE: Duration = Duration::from_millis(5);
const PREFACE_PAUSE_MAX: Duration = Duration::from_millis(160);
/// The first byte of a TLS handshake (RFC 8446, section 5.1).
pub(super) const HANDSHAKE: u8 = 22;
/// How long to pause when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Streams that a client opens and resets at once (CVE-2023-44487).
const RESET_STREAMS_MAX: usize = 64;

/// The limits of a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections open at once.
    pub(super) connections: usize,
    /// Calls in flight on one HTTP/2 connection.
    pub(super) streams: u32,
    /// All headers of a call together, in bytes.
    pub(super) header_bytes: u32,
    /// How long a client may take to say what it speaks, and to send headers.
    pub(super) header_timeout: Duration,
}

/// A bound port.
#[derive(Debug)]
pub(super) struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
}

impl Listener {
    /// Binds it; the system chooses a port for 0.
    pub(super) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        let address = tcp.local_addr()?;
        Ok(Self { tcp, address, tls: None })
    }

    /// With TLS instead of plain text.
    #[must_use]
    pub(super) fn secured(self, tls: Option<Arc<Tls>>) -> Self {
        Self { tls, ..self }
    }

    /// Where it listens.
    #[must_use]
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the shutdown; the connections then finish by themselves
    /// and are tracked by `tasks`.
    pub(super) async fn serve(
        self,
        stack: Arc<Stack>,
        limits: Limits,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) {
        let room = Arc::new(Semaphore::new(limits.connections));
        let builder = Arc::new(connection_builder(limits));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = accept(&self.tcp, &room) => accepted,
            };
            let (stream, peer, place) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (stack, builder) = (Arc::clone(&stack), Arc::clone(&builder));
            let (shutdown, tls) = (shutdown.clone(), self.tls.clone());
            tasks.spawn(async move {
                if let Some(tls) = tls {
                    let serving = secured(stream, peer, &tls, &builder, limits, stack, shutdown);
                    Box::pin(serving).await;
                    drop(place);
                    return;
                }
                let first = timeout(limits.header_timeout, speaks_http2(&stream)).await;
                // Replies are small and wait for nothing.
                let _ = stream.set_nodelay(true);
                match first {
                    Ok(Some(true)) => {
                        let builder = builder.as_ref().clone().http2_only();
                        connection(stream, peer, None, &builder, stack, shutdown).await;
                    }
                    Ok(Some(false)) => {
                        let builder = builder.as_ref().clone().http1_only();
                        let stream = FirstLine::new(stream);
                        connection(stream, peer, None, &builder, stack, shutdown).await;
                    }
                    Ok(None) | Err(_) => {}
                }
                drop(place);
            });
        }
    }
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(tcp: &TcpListener, room: &Arc<Semaphore>) -> io::Result<Accepted> {
    let place = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = tcp.accept().await?;
    Ok((stream, peer, place))
}

fn connection_builder(limits: Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(usize::try_from(limits.header_bytes).unwrap_or(usize::MAX).max(8 * 1024))
        .keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.header_bytes)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}

/// The stream once HTTP/2's preface is there, which it still gives: what reads
/// it next waits for it without an end. None when something else is there.
async fn begun(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Option<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
    let (mut reader, writer) = tokio::io::split(stream);
    let mut first = [0; PREFACE.len()];
    reader.read_exact(&mut first).await.ok()?;
    (first == PREFACE).then(|| tokio::io::join(io::Cursor::new(first).chain(reader), writer))
}

/// A connection with TLS, whose handshake says which HTTP follows.
async fn secured(
    stream: TcpStream,
    peer: SocketAddr,
    tls: &Tls,
    builder: &auto::Builder<TokioExecutor>,
    limits: Limits,
    stack: Arc<Stack>,
    shutdown: CancellationToken,
) {
    let current = tls.current();
    let handshake = async {
        // Who speaks plain text gets no byte to be puzzled by.
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 || first != [HANDSHAKE] {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no TLS handshake"));
        }
        let _ = stream.set_nodelay(true);
        TlsAcceptor::from(Arc::clone(&current.config)).accept(stream).await
    };
    let stream = tokio::select! {
        stream = timeout(limits.header_timeout, handshake) => stream,
        () = shutdown.cancelled() => return,
    };
    let stream = match stream {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "no TLS connection");
            return;
        }
        Err(_) => return,
    };
    let session = stream.get_ref().1;
    let certificate = session.peer_certificates().and_then(|chain| current.certificate(chain));
    let http2 = session.alpn_protocol() == Some(b"h2");
    // Ends with the server, or when other authorities count.
    let end = shutdown.child_token();
    let serving = async {
        if http2 {
            let Ok(Some(stream)) = timeout(limits.header_timeout, begun(stream)).await else {
                return;
            };
            let builder = builder.clone().http2_only();
            connection(stream, peer, certificate, &builder, stack, end.clone()).await;
        } else {
            let builder = builder.clone().http1_only();
            let stream = FirstLine::new(stream);
            connection(stream, peer, certificate, &builder, stack, end.clone()).await;
        }
    };
    let replacement = async {
        current.replaced.cancelled().await;
        end.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! { () = serving => {}, () = replacement => {} }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: SocketAddr,
    certificate: Option<ClientCertificate>,
    builder: &auto::Builder<TokioExecutor>,
    stack: Arc<Stack>,
    shutdown: CancellationToken,
) {
    let service =
        hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
            if let Some(certificate) = certificate.clone() {
                request.extensions_mut().insert(certificate);
            }
            let stack = Arc::clone(&stack);
            async move { Ok::<_, std::convert::Infallible>(stack.answer(request, peer).await) }
        });
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        // Clients come and go; only the curious want to know.
        tracing::debug!(%peer, error = %error, "connection ended");
    }
}

/// Whether the first bytes are HTTP/2's; none when the client has gone. The
/// whole preface must be there: what reads it next waits for it without an end.
async fn speaks_http2(stream: &TcpStream) -> Option<bool> {
    let mut first = [0; PREFACE.len()];
    let mut pause = PREFACE_PAUSE;
    loop {
        let read = stream.peek(&mut first).await.ok().filter(|read| *read > 0)?;
        let seen = first.get(..read)?;
        if !PREFACE.starts_with(seen) {
            return Some(false);
        }
        if read == PREFACE.len() {
            return Some(true);
        }
        // `peek` answers at once while a byte is there: wait for more, and
        // longer each time, so that many slow clients cost little.
        sleep(pause).await;
        pause = PREFACE_PAUSE_MAX.min(pause * 2);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// What the first bytes say; none while they do not.
    async fn heard(sent: &[u8]) -> Option<Option<bool>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(sent).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        timeout(Duration::from_millis(400), speaks_http2(&stream)).await.ok()
    }

    #[tokio::test]
    async fn a_preface_counts_as_a_whole_or_the_wait_has_an_end() {
        assert_eq!(heard(PREFACE).await, Some(Some(true)));
        assert_eq!(heard(b"GET / HTTP/1.1\r\n").await, Some(Some(false)));
        assert_eq!(heard(b"PRI * HTTP/1.1\r\n").await, Some(Some(false)));
        for held_back in [&PREFACE[..3], &PREFACE[..PREFACE.len() - 1]] {
            assert_eq!(heard(held_back).await, None);
        }
    }

    #[tokio::test]
    async fn a_preface_behind_tls_is_waited_for_and_still_read() {
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(&PREFACE[..10]).await.unwrap();
        let (stream, ()) = tokio::join!(begun(server), async {
            client.write_all(&PREFACE[10..]).await.unwrap();
            client.write_all(b"more").await.unwrap();
        });
        let mut read = vec![0; PREFACE.len() + 4];
        let mut stream = stream.unwrap();
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(read, [PREFACE, b"more"].concat());
        stream.write_all(b"back").await.unwrap();
        client.read_exact(&mut read[..4]).await.unwrap();
        assert_eq!(&read[..4], b"back");

        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(&PREFACE[..PREFACE.len() - 1]).await.unwrap();
        assert!(timeout(Duration::from_millis(200), begun(server)).await.is_err());
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        assert!(begun(server).await.is_none());
    }
}
