//! A runtime for `lapin` that connects to nothing: its connection is there
//! already, and is lent to it.

use std::{
    future::ready,
    io,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use futures::{AsyncRead, AsyncWrite, Stream, stream};
use lapin::{AsyncTcpStream, uri::AMQPUri};
use tokio::{io::DuplexStream, time::Sleep};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};

/// Tasks and timers are those of tokio.
pub(super) type Kit = RuntimeParts<Tokio, Lent>;

/// The runtime; must be called within that of tokio.
pub(super) fn runtime() -> Runtime<Kit> {
    Runtime::new(RuntimeParts::new(Tokio::current(), Lent))
}

/// Answers the connection the first time, and an error from then on.
pub(super) fn once(
    stream: DuplexStream,
) -> impl AsyncFn(AMQPUri, Runtime<Kit>) -> lapin::Result<AsyncTcpStream<Compat<DuplexStream>>>
+ Send
+ Sync
+ 'static {
    let lent = Mutex::new(Some(stream.compat()));
    async move |_, _| {
        let stream = lent.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(AsyncTcpStream::Plain(stream.ok_or_else(nothing)?))
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Lent;

impl Reactor for Lent {
    type TcpStream = Compat<DuplexStream>;
    type Sleep = Sleep;

    fn register<H>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Self::TcpStream, _>(nothing())
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        tokio::time::sleep(duration)
    }

    fn interval(&self, _: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        stream::pending()
    }

    fn tcp_connect_addr(
        &self,
        _: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        ready(Err(nothing()))
    }
}

fn nothing() -> io::Error {
    io::ErrorKind::NotConnected.into()
}
