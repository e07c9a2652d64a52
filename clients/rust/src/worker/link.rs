//! The worker's stream: opened, lost, opened again for ever. Not in here:
//! what the messages mean.

use std::{collections::VecDeque, pin::Pin, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::{
    client::Client,
    pb::v1::{
        StreamWorkRequest, StreamWorkResponse, WorkCredit, WorkHeartbeat, WorkOpen, WorkOpened,
        stream_work_request::Message as Up, stream_work_response::Message as Down,
    },
};

const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A refused credential is not cured by hurry.
const BACKOFF_REFUSED: Duration = Duration::from_secs(30);
/// A stream that lived this long starts the backoff afresh.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
const UP_QUEUE: usize = 64;
const CREDIT_MAX: u32 = 1_000;
const HEARTBEATS_PER_MESSAGE: usize = 1_000;

/// What is to be sent as soon as there is room. Bounded by its nature: one
/// sum of credits, one round of heartbeats, one result for each held lease.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) withdraw: bool,
    pub(super) credit: u32,
    pub(super) heartbeats: Vec<String>,
    pub(super) results: VecDeque<String>,
}

/// The next thing to send.
#[derive(Debug)]
pub(super) enum Intent {
    Message(Up),
    Result(String),
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        !self.withdraw && self.credit == 0 && self.heartbeats.is_empty() && self.results.is_empty()
    }

    /// Heartbeats first: a lease lost is work lost. Credit goes before
    /// results, so that the commit of a result can hand over the next step.
    pub(super) fn pop(&mut self) -> Option<Intent> {
        if !self.heartbeats.is_empty() {
            let rest = self.heartbeats.len().saturating_sub(HEARTBEATS_PER_MESSAGE);
            let lease_ids = self.heartbeats.split_off(rest);
            return Some(Intent::Message(Up::Heartbeat(WorkHeartbeat { lease_ids })));
        }
        if self.withdraw {
            self.withdraw = false;
            return Some(Intent::Message(Up::Credit(WorkCredit { steps: 0 })));
        }
        if self.credit > 0 {
            let steps = self.credit.min(CREDIT_MAX);
            self.credit -= steps;
            return Some(Intent::Message(Up::Credit(WorkCredit { steps })));
        }
        self.results.pop_front().map(Intent::Result)
    }
}

type Opening = Pin<Box<dyn Future<Output = Result<Open, Status>> + Send>>;

#[derive(Debug)]
struct Open {
    up: mpsc::Sender<StreamWorkRequest>,
    down: Streaming<StreamWorkResponse>,
    terms: WorkOpened,
    since: Instant,
}

enum State {
    Waiting(Instant),
    Opening(Opening),
    Up(Box<Open>),
}

/// What happened on the link.
#[expect(clippy::large_enum_variant, reason = "moved once, from the stream to its match")]
#[derive(Debug)]
pub(super) enum LinkEvent {
    Opened(WorkOpened),
    Message(Down),
    /// There is room for what stands in the outbox.
    Writable,
    /// The stream is gone, or did not come up; the next try is planned.
    Lost {
        status: Option<Status>,
        opened: bool,
        retry_in: Duration,
    },
}

pub(super) struct Link {
    client: Client,
    open: WorkOpen,
    state: State,
    failures: u32,
}

impl Link {
    pub(super) fn new(client: Client, open: WorkOpen) -> Self {
        Self { client, open, state: State::Waiting(Instant::now()), failures: 0 }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Waits for the next event. Dropping the future loses nothing: what is
    /// under way is kept in the link.
    pub(super) async fn next(&mut self, wants_to_write: bool) -> LinkEvent {
        loop {
            match &mut self.state {
                State::Waiting(until) => {
                    sleep_until(*until).await;
                    self.state = State::Opening(opening(self.client.clone(), self.open.clone()));
                }
                State::Opening(opening) => match opening.await {
                    Ok(open) => {
                        let terms = open.terms;
                        self.state = State::Up(Box::new(open));
                        return LinkEvent::Opened(terms);
                    }
                    Err(status) => return self.lost(Some(status), false),
                },
                State::Up(open) => {
                    let received = tokio::select! {
                        received = open.down.message() => received,
                        room = open.up.reserve(), if wants_to_write => match room {
                            Ok(_) => return LinkEvent::Writable,
                            // The other direction tells why it was closed.
                            Err(_) => open.down.message().await,
                        },
                    };
                    match received {
                        Ok(Some(StreamWorkResponse { message: Some(message) })) => {
                            return LinkEvent::Message(message);
                        }
                        // A message of a later version of the protocol.
                        Ok(Some(StreamWorkResponse { message: None })) => {}
                        Ok(None) => return self.lost(None, true),
                        Err(status) => return self.lost(Some(status), true),
                    }
                }
            }
        }
    }

    /// Gives the message to the stream; gives it back when there is no room.
    pub(super) fn try_send(&mut self, message: Up) -> Result<(), Up> {
        let State::Up(open) = &self.state else {
            return Err(message);
        };
        match open.up.try_reserve() {
            Ok(room) => {
                room.send(StreamWorkRequest { message: Some(message) });
                Ok(())
            }
            Err(_) => Err(message),
        }
    }

    /// Whether a message could be given to the stream now.
    pub(super) fn has_room(&self) -> bool {
        match &self.state {
            State::Up(open) => !open.up.is_closed() && open.up.capacity() > 0,
            State::Waiting(_) | State::Opening(_) => false,
        }
    }

    /// Drops the stream because the server broke the protocol.
    pub(super) fn abandon(&mut self, why: &str) -> LinkEvent {
        self.lost(Some(Status::internal(why)), true)
    }

    /// Says goodbye: what was given to the stream still goes out.
    pub(super) async fn close(self, patience: Duration) {
        if let State::Up(open) = self.state {
            let Open { up, mut down, .. } = *open;
            drop(up);
            let end = async { while let Ok(Some(_)) = down.message().await {} };
            // It is the server's turn; without an end from it there is none.
            let _elapsed = timeout(patience, end).await;
        }
    }

    fn lost(&mut self, status: Option<Status>, opened: bool) -> LinkEvent {
        if let State::Up(open) = &self.state
            && open.since.elapsed() >= HEALTHY_AFTER
        {
            self.failures = 0;
        }
        let retry_in = pause(self.failures, status.as_ref().map(Status::code));
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting(Instant::now() + retry_in);
        LinkEvent::Lost { status, opened, retry_in }
    }
}

fn opening(client: Client, open: WorkOpen) -> Opening {
    Box::pin(async move {
        let exchange = async {
            let (up, messages) = mpsc::channel(UP_QUEUE);
            let first = StreamWorkRequest { message: Some(Up::Open(open)) };
            if up.send(first).await.is_err() {
                return Err(Status::internal("the stream closed before it was opened"));
            }
            let mut down =
                client.workers().stream_work(ReceiverStream::new(messages)).await?.into_inner();
            match down.message().await?.and_then(|first| first.message) {
                Some(Down::Opened(terms)) => Ok(Open { up, down, terms, since: Instant::now() }),
                Some(_) => Err(Status::internal("the first message was not `opened`")),
                None => Err(Status::unavailable("the stream ended before it was opened")),
            }
        };
        timeout(OPEN_TIMEOUT, exchange)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the stream did not open in time")))
    })
}

/// Exponential with full jitter above a half, so that a thousand workers do
/// not come back in the same instant.
pub(super) fn pause(failures: u32, code: Option<Code>) -> Duration {
    let whole = match code {
        Some(code) if is_refusal(code) => BACKOFF_REFUSED,
        _ => BACKOFF_FIRST.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX),
    };
    whole.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Whether the server refused this worker rather than being unable to serve.
pub(super) fn is_refusal(code: Code) -> bool {
    code == Code::Unauthenticated || is_permanent(code)
}

/// Whether only a change of the worker's settings or rights helps. A missing
/// credential is not among them: the server may learn of it at any time.
pub(super) fn is_permanent(code: Code) -> bool {
    matches!(
        code,
        Code::PermissionDenied
            | Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::Unimplemented
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_to_its_bound_and_is_jittered() {
        for failures in [0, 3, 40] {
            let bound = BACKOFF_FIRST.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
            for _ in 0..100 {
                let pause = pause(failures, Some(Code::Unavailable));
                assert!(pause >= bound / 2 && pause <= bound, "{failures}: {pause:?}");
            }
        }
        assert!(pause(0, Some(Code::Unauthenticated)) >= BACKOFF_REFUSED / 2);
    }

    #[test]
    fn credit_goes_before_results_and_heartbeats_before_both() {
        let mut outbox = Outbox {
            withdraw: false,
            credit: 1_500,
            heartbeats: (0..1_200).map(|n| n.to_string()).collect(),
            results: VecDeque::from(["a".to_owned()]),
        };
        let mut kinds = Vec::new();
        while let Some(intent) = outbox.pop() {
            kinds.push(match intent {
                Intent::Message(Up::Heartbeat(beat)) => {
                    format!("heartbeat {}", beat.lease_ids.len())
                }
                Intent::Message(Up::Credit(credit)) => format!("credit {}", credit.steps),
                Intent::Result(id) => format!("result {id}"),
                Intent::Message(other) => panic!("unexpected {other:?}"),
            });
        }
        assert_eq!(
            kinds,
            ["heartbeat 1000", "heartbeat 200", "credit 1000", "credit 500", "result a"]
        );
        assert!(outbox.is_empty());
    }
}
