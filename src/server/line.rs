//! The listener of the line protocol: who may connect, and how often.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rand::Rng as _;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{listen::HANDSHAKE, tls::Tls};
use crate::{
    access::Gate,
    config,
    domain::{RequestId, network},
    line::{self, Client, Service, Share, Shares},
    schedule::Scheduler,
};

/// How long to pause when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a client may take to read the next part of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// A full house is worth one line of the log this often.
const LOGGED_EVERY: Duration = Duration::from_mins(1);

/// A bound port.
#[derive(Debug)]
pub(super) struct Port {
    tcp: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    room: Arc<Shares<IpAddr>>,
    per_token: usize,
    idle: Option<Duration>,
}

impl Port {
    /// Binds it; the system chooses a port for 0.
    pub(super) async fn bind(
        settings: &config::Controller,
        tls: Option<Arc<Tls>>,
    ) -> io::Result<Self> {
        let tcp = TcpListener::bind(settings.listen).await?;
        let address = tcp.local_addr()?;
        let room = Arc::new(Shares::new(settings.connections, settings.connections_per_address));
        let per_token = settings.connections_per_token;
        Ok(Self { tcp, address, tls, room, per_token, idle: settings.idle })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its files of TLS, to be watched.
    pub(super) fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// What its connections have in common.
    pub(super) fn service(&self, scheduler: &Arc<Scheduler>, gate: &Gate) -> Arc<Service> {
        let settings = line::Settings {
            idle: self.idle,
            per_token: self.per_token,
            write_timeout: WRITE_TIMEOUT,
            tls: self.tls.is_some(),
            persistence: "sqlite",
        };
        Service::new(Arc::clone(scheduler), gate.clone(), settings)
    }

    /// Serves until the shutdown; the connections then finish by themselves
    /// and are tracked by `tasks`.
    pub(super) async fn serve(
        self,
        service: Arc<Service>,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) {
        let mut logged: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = self.tcp.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let peer = peer.ip().to_canonical();
            let Some(place) = take(&self.room, peer) else {
                // Who is closed on at once need not wait and wonder.
                if logged.is_none_or(|at| at.elapsed() >= LOGGED_EVERY) {
                    logged = Some(Instant::now());
                    tracing::warn!(%peer, "too many connections of the line protocol");
                }
                continue;
            };
            let client = Client {
                peer,
                request: RequestId::from_random(rand::rng().random()),
                deadline: Instant::now() + line::AUTH_TIMEOUT,
            };
            let (service, tls, shutdown) =
                (Arc::clone(&service), self.tls.clone(), shutdown.clone());
            tasks.spawn(async move {
                connection(stream, tls, service, client, shutdown).await;
                drop(place);
            });
        }
    }
}

/// A place for a client, as far as its address tells it from another.
fn take(room: &Arc<Shares<IpAddr>>, peer: IpAddr) -> Option<Share<IpAddr>> {
    Shares::take(room, network::client(peer))
}

async fn connection(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    service: Arc<Service>,
    client: Client,
    shutdown: CancellationToken,
) {
    // Replies are small and wait for nothing.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return line::serve(service, stream, client, shutdown).await;
    };
    let shaken = tokio::select! {
        shaken = timeout_at(client.deadline, Box::pin(handshake(stream, &tls))) => shaken,
        () = shutdown.cancelled() => return,
    };
    match shaken {
        Ok(Ok(Some(stream))) => Box::pin(line::serve(service, stream, client, shutdown)).await,
        Ok(Err(error)) => tracing::debug!(peer = %client.peer, %error, "no TLS connection"),
        Ok(Ok(None)) | Err(_) => {}
    }
}

/// Who speaks plain text gets no byte to be puzzled by (ZT-36).
async fn handshake(stream: TcpStream, tls: &Tls) -> io::Result<Option<TlsStream<TcpStream>>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 || first != [HANDSHAKE] {
        line::finish(stream).await;
        return Ok(None);
    }
    TlsAcceptor::from(tls.current().config).accept(stream).await.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_has_its_share_whatever_addresses_of_its_network_it_uses() {
        let room = Arc::new(Shares::new(10, 2));
        let take = |peer: &str| take(&room, peer.parse().unwrap());
        let held = [take("2001:db8::1"), take("2001:db8::ffff:2")];
        assert!(held.iter().all(Option::is_some));
        assert!(take("2001:db8::3").is_none());
        let other = take("2001:db8:0:1::3");
        assert!(other.is_some());
        // An IPv4 address stands for itself, in its IPv6 form too.
        let held = [take("192.0.2.1"), take("::ffff:192.0.2.1")];
        assert!(held.iter().all(Option::is_some) && take("192.0.2.1").is_none());
        assert!(take("192.0.2.2").is_some());
    }
}
