//! The listener of the line protocol: who may connect, and how often.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    domain::RequestId,
    line::{self, Client, Service},
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
    room: Arc<Room>,
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
        let room = Arc::new(Room::new(settings.connections, settings.connections_per_address));
        Ok(Self { tcp, address, tls, room, idle: settings.idle })
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
            let Some(place) = Room::take(&self.room, peer) else {
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

/// How many connections there are, and whose.
#[derive(Debug)]
struct Room {
    connections: usize,
    per_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One connection's place.
#[derive(Debug)]
struct Place {
    room: Arc<Room>,
    address: IpAddr,
}

impl Room {
    fn new(connections: usize, per_address: usize) -> Self {
        Self { connections, per_address, taken: Mutex::default() }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(room: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut taken = room.taken();
        let of_address = taken.by_address.get(&address).copied().unwrap_or(0);
        if taken.all >= room.connections || of_address >= room.per_address {
            return None;
        }
        taken.all += 1;
        taken.by_address.insert(address, of_address + 1);
        Some(Place { room: Arc::clone(room), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        taken.all = taken.all.saturating_sub(1);
        if let Some(of_address) = taken.by_address.get_mut(&self.address) {
            *of_address = of_address.saturating_sub(1);
            if *of_address == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_never_takes_all_places_and_gives_its_own_back() {
        let room = Arc::new(Room::new(3, 2));
        let [a, b] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let first = Room::take(&room, a).unwrap();
        let second = Room::take(&room, a).unwrap();
        assert!(Room::take(&room, a).is_none());
        let third = Room::take(&room, b).unwrap();
        assert!(Room::take(&room, b).is_none());
        drop(first);
        let again = Room::take(&room, b).unwrap();
        drop((second, third, again));
        assert!(room.taken().by_address.is_empty() && room.taken().all == 0);
    }
}
