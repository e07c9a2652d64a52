//! One worker at work: which leases it holds, what it owes the server, when
//! it stops. It survives its streams.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::{Instrument, debug, info, warn};

use super::{
    Settings,
    handler::{self, Outcome},
    link::{Intent, Link, LinkEvent, Outbox, is_permanent, is_refusal, pause},
    step::{StepContext, Tokens},
};
use crate::{
    error::{Error, Refusal},
    pb::v1::{
        CompleteStepRequest, FailStepRequest, HeartbeatStepResponse, Lease, LeaseState, WorkOpened,
        WorkRefusal, WorkResult, WorkRevoked, stream_work_request::Message as Up,
        stream_work_response::Message as Down,
    },
};

/// Leases and due results are looked through this often.
const TICK: Duration = Duration::from_millis(200);
/// How long the last acknowledgements may take after the drain's grace.
const ACKNOWLEDGE_GRACE: Duration = Duration::from_secs(2);
/// How long the server may take to end a stream that we have ended.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// How long a step may be on its way when credit is taken back.
const CROSSING: Duration = Duration::from_millis(200);
/// Unacknowledged results for each slot before no more credit is given.
const UNACKNOWLEDGED_PER_SLOT: usize = 4;

/// For a lease without a timeout, which no server sends.
const UNBOUNDED: Duration = Duration::from_hours(365 * 24);

/// What stands between a lease and its end.
enum Work {
    Running,
    /// The handler has ended; the server has not said that it knows.
    Done {
        outcome: Outcome,
        refusals: u32,
        retry_at: Option<Instant>,
    },
}

struct Held {
    lease: Arc<Lease>,
    work: Work,
    cancelled: CancellationToken,
    /// Without a word from the server the lease is over at this time.
    alive_until: Instant,
    /// When the oldest heartbeat without an answer was sent.
    asked_at: Option<Instant>,
    /// Where the handler finds fresh tokens.
    tokens: watch::Sender<Tokens>,
}

struct Finished {
    lease_id: String,
    outcome: Outcome,
}

#[expect(clippy::large_enum_variant, reason = "moved once, from the select to its match")]
enum Event {
    Link(LinkEvent),
    Finished(Result<Finished, JoinError>),
    Tick,
    Heartbeat,
    Shutdown,
    /// The grace of the drain has run out.
    Overdue,
    Cut,
}

enum Phase {
    Working,
    /// No new steps; running ones may end until then.
    Draining(Instant),
    /// All handlers were told to stop; results may be told until then.
    Stopping(Instant),
}

pub(super) struct Session {
    settings: Arc<Settings>,
    link: Link,
    outbox: Outbox,
    running: JoinSet<Finished>,
    held: HashMap<String, Held>,
    /// How many steps the server may still send on this stream.
    granted: usize,
    unacknowledged: usize,
    lease_time: Duration,
    heartbeat_every: Duration,
    heartbeat_at: Instant,
    ever_opened: bool,
    phase: Phase,
    /// Until then a step may come that crossed the withdrawal of credit.
    quiet_until: Instant,
}

impl Session {
    pub(super) fn new(settings: Settings, link: Link) -> Self {
        Self {
            settings: Arc::new(settings),
            link,
            outbox: Outbox::default(),
            running: JoinSet::new(),
            held: HashMap::new(),
            granted: 0,
            unacknowledged: 0,
            lease_time: Duration::ZERO,
            heartbeat_every: Duration::MAX,
            heartbeat_at: Instant::now(),
            ever_opened: false,
            phase: Phase::Working,
            quiet_until: Instant::now(),
        }
    }

    pub(super) async fn run(
        mut self,
        shutdown: CancellationToken,
        cut: CancellationToken,
    ) -> Result<(), Error> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.is_drained() {
            let deadline = match self.phase {
                Phase::Working => None,
                Phase::Draining(until) | Phase::Stopping(until) => Some(until),
            };
            let beats = self.link.is_up() && !self.held.is_empty();
            let wants_to_write = !self.outbox.is_empty();
            let event = tokio::select! {
                () = cut.cancelled() => Event::Cut,
                () = shutdown.cancelled(), if deadline.is_none() => Event::Shutdown,
                Some(done) = self.running.join_next() => Event::Finished(done),
                event = self.link.next(wants_to_write) => Event::Link(event),
                () = sleep_until(self.heartbeat_at), if beats => Event::Heartbeat,
                _ = tick.tick(), if deadline.is_some() || !self.held.is_empty() => Event::Tick,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some()
                    => Event::Overdue,
            };
            if self.apply(event)? == Flow::Leave {
                return Ok(());
            }
            self.top_up();
            self.flush();
        }
        self.link.close(CLOSE_PATIENCE).await;
        info!("the worker has drained");
        Ok(())
    }

    fn is_drained(&self) -> bool {
        !matches!(self.phase, Phase::Working)
            && self.running.is_empty()
            && self.held.is_empty()
            && (!self.link.is_up() || self.outbox.is_empty() && self.quiet_until <= Instant::now())
    }

    fn apply(&mut self, event: Event) -> Result<Flow, Error> {
        match event {
            Event::Link(event) => self.on_link(event)?,
            Event::Finished(done) => self.on_finished(done),
            Event::Tick => self.on_tick(),
            Event::Heartbeat => self.heartbeat(),
            Event::Shutdown => {
                info!(running = self.running.len(), "the worker drains");
                self.phase = Phase::Draining(Instant::now() + self.settings.drain_grace);
                self.outbox.credit = 0;
                self.outbox.withdraw = self.link.is_up();
                if self.granted > 0 {
                    self.quiet_until = Instant::now() + CROSSING;
                }
            }
            Event::Overdue => return Ok(self.on_overdue()),
            Event::Cut => {
                warn!(running = self.running.len(), "the worker is cut; its leases run out");
                return Ok(Flow::Leave);
            }
        }
        Ok(Flow::Stay)
    }

    fn on_overdue(&mut self) -> Flow {
        if matches!(self.phase, Phase::Stopping(_)) {
            warn!(unacknowledged = self.unacknowledged, "the worker leaves with results untold");
            return Flow::Leave;
        }
        warn!(running = self.running.len(), "the grace is over: handlers are told to stop");
        for held in self.held.values() {
            held.cancelled.cancel();
        }
        let patience = self.settings.cancel_grace + ACKNOWLEDGE_GRACE;
        self.phase = Phase::Stopping(Instant::now() + patience);
        Flow::Stay
    }

    fn on_link(&mut self, event: LinkEvent) -> Result<(), Error> {
        match event {
            LinkEvent::Opened(terms) => self.on_opened(terms),
            LinkEvent::Message(message) => match message {
                Down::Lease(lease) => return self.on_lease(lease),
                Down::Result(result) => self.on_result(&result),
                Down::Heartbeat(answer) => self.on_heartbeat(&answer),
                Down::Revoked(WorkRevoked { lease_id, reason }) => {
                    self.let_go(&lease_id, why(reason));
                }
                Down::Opened(_) => debug!("the server opened an open stream"),
            },
            LinkEvent::Writable => {}
            LinkEvent::Lost { status, opened, retry_in } => {
                (self.settings.on_connection)(false);
                self.outbox = Outbox::default();
                self.granted = 0;
                for held in self.held.values_mut() {
                    // No answer comes any more; the next one is to a question
                    // of the next stream.
                    held.asked_at = None;
                }
                return self.on_lost(status, opened, retry_in);
            }
        }
        Ok(())
    }

    /// A worker that was never let in and may never be tells so and ends;
    /// every other one comes back for ever.
    fn on_lost(
        &self,
        status: Option<tonic::Status>,
        opened: bool,
        retry_in: Duration,
    ) -> Result<(), Error> {
        let Some(status) = status else {
            info!(?retry_in, "the server ended the stream; the worker comes back");
            return Ok(());
        };
        let code = status.code();
        let refusal = Refusal::from(&status);
        if !opened && !self.ever_opened && is_permanent(code) {
            return Err(Error::Refused(Box::new(refusal)));
        }
        if code == Code::Unauthenticated {
            warn!(
                %refusal, ?retry_in,
                "the server does not accept the credential: give the worker one that holds \
                 work:lease, or have it renewed; the worker tries again"
            );
        } else if is_refusal(code) {
            warn!(%refusal, ?retry_in, "the server refuses the worker; it tries again");
        } else {
            let error = Error::from(status);
            warn!(%error, ?retry_in, "the stream is lost; the worker comes back");
        }
        Ok(())
    }

    fn on_opened(&mut self, terms: WorkOpened) {
        let millis = |value: i64| Duration::from_millis(u64::try_from(value).unwrap_or(0));
        self.lease_time = millis(terms.lease_ms).max(Duration::from_millis(1));
        self.heartbeat_every = millis(terms.heartbeat_ms).max(Duration::from_millis(1));
        self.ever_opened = true;
        (self.settings.on_connection)(true);
        info!(lease_ms = terms.lease_ms, heartbeat_ms = terms.heartbeat_ms, "the stream is open");
        self.heartbeat_at = Instant::now() + self.heartbeat_every;
        if !self.held.is_empty() {
            self.heartbeat();
        }
        // Whether the server took a result before the stream broke is not
        // known; telling it twice is harmless.
        for (lease_id, held) in &mut self.held {
            if let Work::Done { retry_at, .. } = &mut held.work {
                *retry_at = None;
                self.outbox.results.push_back(lease_id.clone());
            }
        }
    }

    fn on_lease(&mut self, lease: Lease) -> Result<(), Error> {
        if self.granted == 0 {
            let event = self.link.abandon("the server sent a step without credit");
            return self.on_link(event);
        }
        self.granted -= 1;
        let now = Instant::now();
        let timeout_at = now + time_left(&lease, self.lease_time);
        let lease = Arc::new(lease);
        let cancelled = CancellationToken::new();
        let (tokens, renewed) = watch::channel(Arc::new(lease.tokens.clone()));
        match self.held.entry(lease.lease_id.clone()) {
            Entry::Occupied(_) => {
                debug!(step_uuid = lease.step_uuid, "the server sent a lease twice");
                return Ok(());
            }
            Entry::Vacant(entry) => entry.insert(Held {
                lease: Arc::clone(&lease),
                work: Work::Running,
                cancelled: cancelled.clone(),
                alive_until: now + self.lease_time,
                asked_at: None,
                tokens,
            }),
        };
        if matches!(self.phase, Phase::Stopping(_)) {
            // It crossed our farewell; its attempt ends before it begins.
            cancelled.cancel();
        }
        let settings = Arc::clone(&self.settings);
        let step = StepContext::new(Arc::clone(&lease), cancelled, timeout_at).renewed_by(renewed);
        let span = (settings.make_span)(&step);
        let work = async move {
            let outcome = match settings.handlers.get(&lease.handler) {
                Some(handler) => handler::run(handler.as_ref(), step, settings.cancel_grace).await,
                None => Outcome::Fail {
                    error: format!("this worker has no handler `{}`", lease.handler),
                    retryable: true,
                },
            };
            Finished { lease_id: lease.lease_id.clone(), outcome }
        };
        self.running.spawn(work.instrument(span));
        Ok(())
    }

    fn on_finished(&mut self, done: Result<Finished, JoinError>) {
        let Finished { lease_id, outcome } = match done {
            Ok(finished) => finished,
            Err(error) => {
                // Panics of handlers are caught inside: this one is our own.
                warn!(%error, "a step's task failed; its lease runs out");
                return;
            }
        };
        let Some(held) = self.held.get_mut(&lease_id) else {
            debug!("a handler ended after its lease");
            return;
        };
        match &outcome {
            Outcome::Complete { result } => {
                debug!(step_uuid = held.lease.step_uuid, bytes = result.len(), "the step is done");
            }
            Outcome::Fail { error, retryable } => {
                let step_uuid = &held.lease.step_uuid;
                info!(step_uuid, attempt = held.lease.attempt, retryable, error, "the step failed");
            }
        }
        held.work = Work::Done { outcome, refusals: 0, retry_at: None };
        self.unacknowledged += 1;
        if self.link.is_up() {
            self.outbox.results.push_back(lease_id);
        }
    }

    fn on_result(&mut self, result: &WorkResult) {
        let Some(held) = self.held.get_mut(&result.lease_id) else {
            return;
        };
        let Work::Done { outcome, refusals, retry_at } = &mut held.work else {
            debug!("the server answered a result that was not sent");
            return;
        };
        let Some(refusal) = &result.refusal else {
            self.forget(&result.lease_id);
            return;
        };
        let code = Code::from_i32(refusal.code);
        let unstorable = matches!(code, Code::InvalidArgument | Code::OutOfRange);
        if unstorable && matches!(outcome, Outcome::Complete { .. }) {
            // Told as a failure the step ends with a reason, instead of
            // running out and being tried again.
            let error = format!("the server refused the result: {}", words(refusal));
            warn!(step_uuid = held.lease.step_uuid, error);
            *outcome = Outcome::Fail { error, retryable: false };
            self.outbox.results.push_back(result.lease_id.clone());
        } else if unstorable || is_permanent(code) {
            let step_uuid = &held.lease.step_uuid;
            warn!(step_uuid, refusal = words(refusal), "the result was refused and is dropped");
            self.forget(&result.lease_id);
        } else {
            let retry_in = pause(*refusals, Some(code));
            let step_uuid = &held.lease.step_uuid;
            warn!(step_uuid, refusal = words(refusal), ?retry_in, "the result is told again");
            *refusals = refusals.saturating_add(1);
            *retry_at = Some(Instant::now() + retry_in);
        }
    }

    fn on_heartbeat(&mut self, answer: &HeartbeatStepResponse) {
        match LeaseState::try_from(answer.state) {
            Ok(LeaseState::Held) => {
                let Some(held) = self.held.get_mut(&answer.lease_id) else { return };
                if !answer.tokens.is_empty() {
                    held.tokens.send_replace(Arc::new(answer.tokens.clone()));
                }
                if let Some(asked_at) = held.asked_at.take() {
                    // From the asking on, not from the answer: the answer may
                    // have taken long.
                    held.alive_until = held.alive_until.max(asked_at + self.lease_time);
                }
            }
            Ok(LeaseState::Cancelled | LeaseState::Lost) => {
                // A lease whose result was taken is over, too: there the
                // answer to the result decides.
                if let Some(Held { work: Work::Running, .. }) = self.held.get(&answer.lease_id) {
                    self.let_go(&answer.lease_id, why(answer.state));
                }
            }
            Ok(LeaseState::Unspecified) | Err(_) => {
                debug!(state = answer.state, "a heartbeat's answer says nothing");
            }
        }
    }

    fn heartbeat(&mut self) {
        let now = Instant::now();
        for held in self.held.values_mut() {
            held.asked_at.get_or_insert(now);
        }
        self.outbox.heartbeats = self.held.keys().cloned().collect();
        self.heartbeat_at = now + self.heartbeat_every;
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        let mut ended = Vec::new();
        let is_up = self.link.is_up();
        for (lease_id, held) in &mut self.held {
            if held.alive_until <= now {
                ended.push(lease_id.clone());
            } else if let Work::Done { retry_at, .. } = &mut held.work
                && is_up
                && retry_at.take_if(|at| *at <= now).is_some()
            {
                self.outbox.results.push_back(lease_id.clone());
            }
        }
        for lease_id in ended {
            self.let_go(&lease_id, "it ran out without a word from the server");
        }
    }

    /// The lease is over: its handler stops, its result is of no use.
    fn let_go(&mut self, lease_id: &str, why: &str) {
        let Some(held) = self.held.get(lease_id) else {
            return;
        };
        let lease = &held.lease;
        warn!(lease.step_uuid, lease.attempt, why, "the lease has ended");
        held.cancelled.cancel();
        self.forget(lease_id);
    }

    fn forget(&mut self, lease_id: &str) {
        if let Some(Held { work: Work::Done { .. }, .. }) = self.held.remove(lease_id) {
            self.unacknowledged -= 1;
        }
    }

    /// Asks for as many steps as there are free slots. A slot is free when its
    /// handler has ended, acknowledged or not, within a bound.
    fn top_up(&mut self) {
        let slots = self.settings.concurrency;
        let bound = slots.saturating_mul(UNACKNOWLEDGED_PER_SLOT);
        let working = matches!(self.phase, Phase::Working) && self.link.is_up();
        if !working || self.unacknowledged >= bound {
            return;
        }
        let free = slots.saturating_sub(self.running.len() + self.granted);
        self.granted += free;
        self.outbox.credit =
            self.outbox.credit.saturating_add(u32::try_from(free).unwrap_or(u32::MAX));
    }

    fn flush(&mut self) {
        while self.link.has_room()
            && let Some(intent) = self.outbox.pop()
        {
            let message = match intent {
                Intent::Message(message) => message,
                Intent::Result(lease_id) => {
                    let Some(Held { work: Work::Done { outcome, .. }, .. }) =
                        self.held.get(&lease_id)
                    else {
                        continue;
                    };
                    report(lease_id, outcome)
                }
            };
            // There was room, so the stream is closing if this fails; its
            // end follows and everything is told again on the next one.
            let _unsent = self.link.try_send(message);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Flow {
    Stay,
    Leave,
}

fn report(lease_id: String, outcome: &Outcome) -> Up {
    match outcome.clone() {
        Outcome::Complete { result } => Up::Complete(CompleteStepRequest { lease_id, result }),
        Outcome::Fail { error, retryable } => {
            Up::Fail(FailStepRequest { lease_id, error, retryable: Some(retryable) })
        }
    }
}

fn why(state: i32) -> &'static str {
    match LeaseState::try_from(state) {
        Ok(LeaseState::Cancelled) => "the task was cancelled",
        Ok(LeaseState::Lost | LeaseState::Held | LeaseState::Unspecified) | Err(_) => {
            "the server ended it"
        }
    }
}

fn words(refusal: &WorkRefusal) -> String {
    format!("{} ({})", refusal.message, refusal.reason)
}

/// How long the attempt may take. The server's times are compared with each
/// other and not with this machine's clock, which may be wrong: when it was
/// granted the lease had its full time to go. A timeout within the first
/// lease hides that; there the clock helps as far as it can be believed.
fn time_left(lease: &Lease, lease_time: Duration) -> Duration {
    let time = |at: Option<prost_types::Timestamp>| at.and_then(|at| SystemTime::try_from(at).ok());
    let (Some(timeout_at), Some(deadline)) = (time(lease.timeout_at), time(lease.deadline)) else {
        return UNBOUNDED;
    };
    match timeout_at.duration_since(deadline) {
        Ok(beyond) if !beyond.is_zero() => beyond + lease_time,
        _ => timeout_at
            .duration_since(SystemTime::now())
            .ok()
            .filter(|left| *left <= lease_time)
            .unwrap_or(lease_time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(deadline_ms: i64, timeout_ms: i64) -> Lease {
        let now = SystemTime::now();
        let at = |ms: i64| {
            let span = Duration::from_millis(ms.unsigned_abs());
            Some(if ms < 0 { now - span } else { now + span }.into())
        };
        Lease { deadline: at(deadline_ms), timeout_at: at(timeout_ms), ..Lease::default() }
    }

    #[test]
    fn a_wrong_clock_does_not_move_the_timeout() {
        let lease_time = Duration::from_secs(30);
        for skew in [-3_600_000, 0, 3_600_000] {
            let left = time_left(&lease(30_000 + skew, 300_000 + skew), lease_time);
            assert_eq!(left, Duration::from_mins(5));
            let short = time_left(&lease(5_000 + skew, 5_000 + skew), lease_time);
            assert!(short <= lease_time && short > Duration::from_secs(4), "{skew}: {short:?}");
        }
        assert!(time_left(&Lease::default(), lease_time) > Duration::from_hours(1));
    }
}
