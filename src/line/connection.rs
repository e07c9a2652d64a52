//! One connection: AUTH, then lines and their answers until one side ends it.
//! Idle it holds next to nothing; its buffers grow with what comes and are
//! given back.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use futures::FutureExt as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Counted, LINE_BYTES_MAX, Service, Share, Shares, answer,
    batch::Batch,
    instruction::{self, Line, foreign, parse},
    reply,
};
use crate::{
    access::{Kind, line::Session},
    domain::{RequestId, principal::Identity},
};

/// How long an answer to a wrong secret waits where there were too many.
const BRAKE: Duration = Duration::from_secs(1);
/// What an idle connection reads into.
const IDLE_BYTES: usize = 512;
/// How much is read before it is answered.
const INBOX_BYTES_MAX: usize = 64 << 10;
/// How much is written before more is looked up.
const OUT_BYTES: usize = 64 << 10;
/// How long, and how much, a client may go on sending once it has its answer:
/// an end with unread bytes would take the answer away from it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 10;

/// Who connected.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// From where.
    pub peer: IpAddr,
    /// What its instructions are logged under.
    pub request: RequestId,
    /// Until when it must be authenticated.
    pub deadline: Instant,
}

/// The connection is at its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closed;

/// Serves a connection until its end.
pub async fn serve<S>(
    service: Arc<Service>,
    mut stream: S,
    client: Client,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let counted = Counted::new(&service);
    let Closed = converse(&service, &mut stream, client, &shutdown).await;
    Box::pin(finish(stream)).await;
    drop(counted);
}

async fn converse<S>(
    service: &Service,
    stream: &mut S,
    client: Client,
    shutdown: &CancellationToken,
) -> Closed
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let mut inbox = Inbox::default();
    let open = service.gate.line_open(client.request, client.peer);
    let (session, greeting, _share) = match open {
        Some(session) => (session, &b""[..], None),
        None => match Box::pin(authenticate(service, stream, &mut inbox, client, shutdown)).await {
            Ok((session, share)) => (session, reply::OK, Some(share)),
            Err(Closed) => return Closed,
        },
    };
    let mut greeting = Some(greeting.to_vec());
    loop {
        let (lines, rest) = inbox.lines();
        let last = ends_here(rest);
        let pending = greeting.take().unwrap_or_default();
        if !lines.is_empty() || !pending.is_empty() || last.is_some() {
            let mut out = Out { bytes: pending, stream, timeout: service.settings.write_timeout };
            let end = last.map(|Last(said)| said);
            let answered = Box::pin(answer_all(service, &session, lines, end, &mut out)).await;
            if answered.is_err() {
                return Closed;
            }
        }
        inbox.answered();
        let idle = service.settings.idle;
        let read = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Closed,
            read = patient(idle, inbox.fill(stream)) => read,
        };
        match read {
            Some(Ok(1..)) => {}
            Some(Ok(0) | Err(_)) | None => return Closed,
        }
    }
}

/// An unfinished line that ends the connection, and what is said to it.
struct Last(&'static [u8]);

fn ends_here(rest: &[u8]) -> Option<Last> {
    if foreign(rest) {
        Some(Last(b""))
    } else if rest.len() > LINE_BYTES_MAX + 1 {
        // One byte more: a carriage return is none of the line's.
        Some(Last(reply::LINE_TOO_LONG))
    } else {
        None
    }
}

async fn patient<T>(idle: Option<Duration>, work: impl Future<Output = T>) -> Option<T> {
    match idle {
        Some(idle) => timeout(idle, work).await.ok(),
        None => Some(work.await),
    }
}

/// Reads AUTH and nothing else, until the deadline. Who says nothing hears
/// nothing.
async fn authenticate<S>(
    service: &Service,
    stream: &mut S,
    inbox: &mut Inbox,
    client: Client,
    shutdown: &CancellationToken,
) -> Result<(Session, Share<Identity>), Closed>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let refusal = loop {
        let unread = inbox.unread();
        if foreign(unread) {
            return Err(Closed);
        }
        if let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line = unread.get(..end).unwrap_or_default();
            if is_too_long(line) {
                break reply::LINE_TOO_LONG;
            }
            let Line::Auth(rest) = parse(line) else { break reply::AUTH_REQUIRED };
            let secrets = instruction::secrets(rest);
            if secrets.is_empty() {
                break reply::AUTH_REQUIRED;
            }
            let secrets: Vec<&str> = secrets.iter().map(AsRef::as_ref).collect();
            match service.gate.line(&secrets, client.request, client.peer) {
                Ok(session) => {
                    let identity = session.identity().clone();
                    let Some(share) = Shares::take(&service.by_token, identity) else {
                        break reply::TOO_MANY_CONNECTIONS;
                    };
                    inbox.skip(end + 1);
                    return Ok((session, share));
                }
                Err(refusal) => {
                    // Who guesses is slowed down; a good secret never is.
                    if refusal.kind == Kind::TooMany {
                        tokio::time::sleep(BRAKE).await;
                    }
                    break reply::AUTH_FAILED;
                }
            }
        }
        if let Some(Last(said)) = ends_here(unread) {
            break said;
        }
        let read = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Err(Closed),
            read = timeout_at(client.deadline, inbox.fill(stream)) => read,
        };
        match read {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) | Err(_) => return Err(Closed),
        }
    };
    let _ = timeout(service.settings.write_timeout, send(stream, refusal)).await;
    Err(Closed)
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

fn is_too_long(line: &[u8]) -> bool {
    line.strip_suffix(b"\r").unwrap_or(line).len() > LINE_BYTES_MAX
}

/// Answers whole lines in their order, all at once where they let us; then
/// says `last`, if anything, and ends.
async fn answer_all<S>(
    service: &Service,
    session: &Session,
    lines: &[u8],
    last: Option<&'static [u8]>,
    out: &mut Out<'_, S>,
) -> Result<(), Closed>
where
    S: AsyncWrite + Unpin,
{
    let mut batch = Batch::new(session);
    let mut ended = last;
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        if foreign(line) {
            ended = Some(b"");
            break;
        }
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if is_too_long(line) {
            ended = Some(reply::LINE_TOO_LONG);
            break;
        }
        match parse(line) {
            Line::Malformed => batch.said(reply::MALFORMED),
            Line::Auth(_) if service.gate.line_is_open() => batch.said(reply::OK),
            Line::Auth(_) => batch.said(reply::ERROR),
            Line::Wrong(id, wrong) => batch.failed(id, String::new(), wrong.into()),
            Line::Instructed(id, instruction) => {
                let object = instruction.object().to_owned();
                match answer::change(session, instruction) {
                    Ok(Ok(change)) => batch.change(id, object, change),
                    Ok(Err(failure)) => batch.failed(id, object, failure),
                    Err(instruction) => {
                        batch.flush(service, &mut out.bytes).await?;
                        answer::now(service, session, id, instruction, out).await?;
                        out.relieve().await?;
                    }
                }
            }
        }
        if batch.is_full() {
            batch.flush(service, &mut out.bytes).await?;
            out.relieve().await?;
        }
    }
    batch.flush(service, &mut out.bytes).await?;
    out.bytes.extend_from_slice(ended.unwrap_or_default());
    out.flush().await?;
    if ended.is_some() { Err(Closed) } else { Ok(()) }
}

/// What was read and not yet answered.
#[derive(Debug, Default)]
struct Inbox {
    bytes: Vec<u8>,
    /// Up to here it was taken.
    start: usize,
    /// Up to here it was given out by `lines`.
    given: usize,
}

impl Inbox {
    fn unread(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    fn skip(&mut self, bytes: usize) {
        self.start = self.start.saturating_add(bytes).min(self.bytes.len());
    }

    /// The whole lines, and the beginning of another.
    fn lines(&mut self) -> (&[u8], &[u8]) {
        let unread = self.bytes.get(self.start..).unwrap_or_default();
        let end = unread.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.given = end;
        unread.split_at(end)
    }

    /// The lines that were given out are done.
    fn answered(&mut self) {
        self.skip(self.given);
        self.given = 0;
    }

    /// Waits for more and takes all that has come, up to a limit; 0 is the end
    /// of the stream.
    async fn fill<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> io::Result<usize> {
        self.bytes.drain(..self.start.min(self.bytes.len()));
        self.start = 0;
        let before = self.bytes.len();
        if self.bytes.capacity() - before < IDLE_BYTES {
            self.bytes.reserve(IDLE_BYTES);
        }
        let mut read = match stream.read_buf(&mut self.bytes).now_or_never() {
            Some(read) => read?,
            None => {
                // Nobody knows how long this takes.
                self.bytes.shrink_to(before + IDLE_BYTES);
                stream.read_buf(&mut self.bytes).await?
            }
        };
        while read > 0
            && self.bytes.len() == self.bytes.capacity()
            && self.bytes.len() < INBOX_BYTES_MAX
        {
            self.bytes.reserve(self.bytes.len().saturating_mul(3).min(INBOX_BYTES_MAX));
            match stream.read_buf(&mut self.bytes).now_or_never() {
                Some(Ok(more)) if more > 0 => read += more,
                Some(_) | None => break,
            }
        }
        Ok(read)
    }
}

/// What is to be written, and where to.
#[derive(Debug)]
pub(super) struct Out<'a, S> {
    pub(super) bytes: Vec<u8>,
    stream: &'a mut S,
    timeout: Duration,
}

impl<S: AsyncWrite + Unpin> Out<'_, S> {
    /// Writes when there is much: what is looked up next waits for the client
    /// to read.
    pub(super) async fn relieve(&mut self) -> Result<(), Closed> {
        if self.bytes.len() >= OUT_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Writes all of it; a client that reads nothing for too long is gone.
    async fn flush(&mut self) -> Result<(), Closed> {
        let mut left = self.bytes.as_slice();
        while !left.is_empty() {
            match timeout(self.timeout, self.stream.write(left)).await {
                Ok(Ok(written @ 1..)) => left = left.get(written..).unwrap_or_default(),
                Ok(Ok(0) | Err(_)) | Err(_) => return Err(Closed),
            }
        }
        self.bytes.clear();
        match timeout(self.timeout, self.stream.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Closed),
        }
    }
}

/// Ends a stream so that what was written arrives.
pub async fn finish<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let ending = async {
        stream.shutdown().await?;
        let mut sink = Vec::with_capacity(4096);
        let mut left = LINGER_BYTES;
        while left > 0 {
            sink.clear();
            match stream.read_buf(&mut sink).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        io::Result::Ok(())
    };
    // Whatever happens, it ends.
    let _ = timeout(LINGER, ending).await;
}
