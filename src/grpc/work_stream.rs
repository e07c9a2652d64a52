//! `StreamWork`: a worker's connection. Credits, heartbeats and results go up;
//! leases, answers and revocations come down. What a slow reader has not
//! taken fills a short queue, and then nothing more is taken from its side.
//!
//! Not here: who gets which step (`engine`).

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};
use tracing::Instrument as _;

use super::{
    convert,
    status::{self, Error},
    step_tokens::Tokens,
};
use crate::{
    access::{Caller, Refusal, reason_name},
    authz::Claim,
    domain::{LeaseId, permission::right::WorkLease},
    engine::{self, CREDIT_MAX, Engine, Offer, Session, work},
    pb::v1::{
        self as pb, stream_work_request::Message as Up, stream_work_response::Message as Down,
    },
};

/// How long the first message may take.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// How many messages wait for the connection. What is beyond stays in the
/// session, which gives it back when the worker is gone.
const QUEUE_MAX: usize = 32;
/// How many heartbeats and results of one stream are handled at once.
const REPORTS_MAX: usize = 256;

/// What goes down to the worker.
#[derive(Debug)]
pub(super) struct Messages {
    queue: mpsc::Receiver<pb::StreamWorkResponse>,
    /// Why the stream ends, when it does not end well. It needs no place in
    /// the queue, so that a slow reader cannot keep a stream alive.
    end: oneshot::Receiver<Status>,
}

impl Stream for Messages {
    type Item = Result<pb::StreamWorkResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.queue.poll_recv(cx).map(|message| match message {
            Some(message) => Some(Ok(message)),
            None => self.end.try_recv().ok().map(Err),
        })
    }
}

/// Opens a stream: no header leaves before its first message has been checked.
pub(super) async fn open(
    engine: &Arc<Engine>,
    tokens: &Tokens,
    streams: &TaskTracker,
    caller: Caller,
    mut inbound: Streaming<pb::StreamWorkRequest>,
) -> Result<Messages, Error> {
    let opening = tokio::select! {
        biased;
        refusal = caller.ended() => return Err(refusal.into()),
        opening = first(&mut inbound) => opening?,
    };
    let Some(Up::Open(open)) = &opening.message else {
        return Err(status::protocol("the first message must be `open`"));
    };
    let info = open.clone().into();
    let (area, claim) = caller.area(&opening)?;
    let session = work::session(engine, claim, area, info).await?;

    let (output, queue) = mpsc::channel(QUEUE_MAX);
    let (ending, end) = oneshot::channel();
    let mut worker = Worker {
        engine: Arc::clone(engine),
        tokens: tokens.clone(),
        caller,
        opening,
        session: Some(session),
        reports: FuturesUnordered::new(),
        pending: VecDeque::from([Down::Opened(engine.terms().into())]),
        end: None,
    };
    let run = async move {
        let request = worker.caller.request();
        if let Err(error) = worker.run(inbound, &output).await {
            // Nobody listens any more when this fails.
            let _ = ending.send(error.status(Some(request)));
        }
    };
    streams.spawn(run.in_current_span());
    Ok(Messages { queue, end })
}

async fn first(
    inbound: &mut Streaming<pb::StreamWorkRequest>,
) -> Result<pb::StreamWorkRequest, Error> {
    let nothing = || status::protocol("the stream ended before its first message, `open`");
    match tokio::time::timeout(OPEN_WITHIN, inbound.message()).await {
        Ok(Ok(Some(opening))) => Ok(opening),
        Ok(Ok(None)) => Err(nothing()),
        Ok(Err(status)) => Err(status::unreadable(&status).unwrap_or_else(nothing)),
        Err(_) => Err(status::protocol("the first message, `open`, did not come in time")),
    }
}

/// One worker's stream.
struct Worker {
    engine: Arc<Engine>,
    tokens: Tokens,
    caller: Caller,
    /// The first message: it names the area that each later one is checked
    /// against.
    opening: pb::StreamWorkRequest,
    /// None once no more leases shall come.
    session: Option<Session>,
    /// Heartbeats and results that are on their way.
    reports: FuturesUnordered<BoxFuture<'static, Result<Answer, Error>>>,
    /// Answers that wait for a place in the queue.
    pending: VecDeque<Down>,
    /// Why the stream ends after what is on its way.
    end: Option<engine::Error>,
}

/// What is sent back for one message.
enum Answer {
    Result(pb::WorkResult),
    Heartbeats(Vec<pb::HeartbeatStepResponse>),
}

impl Worker {
    /// Until the client has ended its half and has all its answers, or
    /// something is wrong, or the credential ends (SE-17).
    async fn run(
        &mut self,
        inbound: Streaming<pb::StreamWorkRequest>,
        output: &mpsc::Sender<pb::StreamWorkResponse>,
    ) -> Result<(), Error> {
        let caller = self.caller.clone();
        tokio::select! {
            biased;
            refusal = caller.ended() => {
                caller.cut_off(&refusal).await;
                Err(refusal.into())
            }
            done = self.exchange(inbound, output) => done,
        }
    }

    async fn exchange(
        &mut self,
        mut inbound: Streaming<pb::StreamWorkRequest>,
        output: &mpsc::Sender<pb::StreamWorkResponse>,
    ) -> Result<(), Error> {
        loop {
            // First a place for the answer, then the cause of one.
            let Ok(place) = output.reserve().await else { return Ok(()) };
            let message = loop {
                if let Some(message) = self.pending.pop_front() {
                    break message;
                }
                if self.session.is_none() && self.reports.is_empty() {
                    return self.end.take().map_or(Ok(()), |error| Err(error.into()));
                }
                tokio::select! {
                    () = output.closed() => return Ok(()),
                    event = self.event(&mut inbound) => event?,
                }
            };
            place.send(pb::StreamWorkResponse { message: Some(message) });
        }
    }

    /// Waits for whatever is next, and takes it in.
    async fn event(&mut self, inbound: &mut Streaming<pb::StreamWorkRequest>) -> Result<(), Error> {
        let (open, room) = (self.session.is_some(), self.reports.len() < REPORTS_MAX);
        let offer = async {
            match self.session.as_mut() {
                Some(session) => session.next().await,
                None => std::future::pending().await,
            }
        };
        // Reports before leases: many of them share one write to the disk.
        tokio::select! {
            biased;
            Some(answer) = self.reports.next(), if !self.reports.is_empty() => match answer? {
                Answer::Result(result) => self.pending.push_back(Down::Result(result)),
                Answer::Heartbeats(beats) => {
                    self.pending.extend(beats.into_iter().map(Down::Heartbeat));
                }
            },
            message = inbound.message(), if open && room => match message {
                Ok(Some(message)) => self.take(message)?,
                Ok(None) => self.session = None,
                Err(status) => {
                    self.session = None;
                    // Else the client went away, and so does the rest.
                    if let Some(error) = status::unreadable(&status) {
                        return Err(error);
                    }
                }
            },
            offer = offer => match offer {
                Ok(Offer::Lease(lease)) => {
                    let tokens = self.tokens.of(&lease);
                    self.pending.push_back(Down::Lease(convert::lease(&lease, tokens)));
                }
                Ok(Offer::Revoked(lease, why)) => {
                    self.pending.push_back(Down::Revoked(convert::revoked(lease, why)));
                }
                Err(error) => {
                    self.session = None;
                    self.end = Some(error);
                }
            },
        }
        Ok(())
    }

    /// Takes a message in, by what the caller may at this moment (SE-18).
    fn take(&mut self, message: pb::StreamWorkRequest) -> Result<(), Error> {
        let claim = self
            .claim()
            .inspect_err(|refusal| self.caller.turned_away(reason_name(refusal.reason)))?;
        let engine = Arc::clone(&self.engine);
        match message.message {
            Some(Up::Open(_)) => {
                return Err(status::protocol("`open` comes once, as the first message"));
            }
            Some(Up::Credit(pb::WorkCredit { steps })) => {
                if steps > CREDIT_MAX {
                    return Err(status::protocol("a `credit` is of at most 1,000 steps"));
                }
                if let Some(session) = &self.session {
                    session.credit(steps);
                }
            }
            Some(Up::Heartbeat(beat)) => {
                let tokens = self.tokens.clone();
                self.reports.push(Box::pin(heartbeat(engine, tokens, claim, beat.lease_ids)));
            }
            Some(Up::Complete(complete)) => {
                let (caller, request) = (self.caller.clone(), self.caller.request());
                self.reports.push(Box::pin(async move {
                    let pb::CompleteStepRequest { lease_id, result } = complete;
                    let taken = async {
                        let lease = convert::lease_id(&lease_id)?;
                        work::complete(&engine, &claim, lease, &result).await
                    };
                    let taken = taken.await;
                    let result = convert::work_result(lease_id, taken, request);
                    Ok(answer(&caller, result))
                }));
            }
            Some(Up::Fail(mut fail)) => {
                let (caller, request) = (self.caller.clone(), self.caller.request());
                self.reports.push(Box::pin(async move {
                    let lease_id = std::mem::take(&mut fail.lease_id);
                    let taken = async {
                        let lease = convert::lease_id(&lease_id)?;
                        work::fail(&engine, &claim, lease, fail.into()).await
                    };
                    let taken = taken.await;
                    let result = convert::work_result(lease_id, taken, request);
                    Ok(answer(&caller, result))
                }));
            }
            None => return Err(status::protocol("a message says nothing that this server knows")),
        }
        Ok(())
    }

    fn claim(&self) -> Result<Claim<WorkLease>, Refusal> {
        self.caller.area(&self.opening).map(|(_, claim)| claim)
    }
}

/// The answer to a result. One that was taken has its record with the change;
/// one that was refused gets its own.
fn answer(caller: &Caller, result: pb::WorkResult) -> Answer {
    if let Some(refusal) = &result.refusal {
        caller.turned_away(&refusal.reason);
    }
    Answer::Result(result)
}

/// Extends leases. One that cannot be a lease is answered as one that is lost.
async fn heartbeat(
    engine: Arc<Engine>,
    tokens: Tokens,
    claim: Claim<WorkLease>,
    lease_ids: Vec<String>,
) -> Result<Answer, Error> {
    let known: Vec<Option<LeaseId>> = lease_ids.iter().map(|text| LeaseId::parse(text)).collect();
    let asked: Vec<LeaseId> = known.iter().copied().flatten().collect();
    let beats = work::heartbeats(&engine, &claim, &asked).await?;
    let held = asked.iter().zip(&beats).filter_map(|(lease, beat)| Some((*lease, (*beat)?)));
    let mut fresh = tokens.renewed(&engine, &claim, held).await?;
    let mut beats = beats.into_iter();
    let answers = lease_ids.into_iter().zip(known).map(|(lease_id, lease)| {
        match lease.and_then(|_| beats.next()).flatten() {
            Some(beat) => {
                let tokens = lease.and_then(|lease| fresh.remove(&lease)).unwrap_or_default();
                convert::heartbeat(lease_id, beat, tokens)
            }
            None => convert::lost(lease_id),
        }
    });
    Ok(Answer::Heartbeats(answers.collect()))
}
