//! A worker over `StreamWork` by the generated stubs: completes every step at
//! once, and counts a step when the server says that its result is on disk.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bailiwick_client::{
    Client,
    pb::v1::{
        self as pb, stream_work_request::Message as Up, stream_work_response::Message as Down,
    },
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::{
    error::{Result, refused, wrong},
    server::{HANDLER, NAMESPACE},
};

/// Steps that the server may send ahead.
const CREDIT: u32 = 256;
/// Credit is given back in parts, so that it costs little.
const CREDIT_PART: u32 = 32;
/// Room for a result of every step that may be here, and for the credit.
const UP_QUEUE: usize = 1024;

/// What workers and callers share.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Completions that the server acknowledged.
    pub(crate) acknowledged: Arc<AtomicU64>,
    /// Gets a place back for each.
    pub(crate) room: Arc<Semaphore>,
    /// Whether each lease must bring a token.
    pub(crate) tokens: bool,
}

/// A worker that runs.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: CancellationToken,
    running: JoinHandle<Result>,
}

impl Worker {
    /// Opens a stream on a connection and begins to work.
    pub(crate) async fn start(client: &Client, name: String, tally: Tally) -> Result<Self> {
        let (up, messages) = mpsc::channel(UP_QUEUE);
        let open = pb::WorkOpen {
            namespace: NAMESPACE.to_owned(),
            name,
            handlers: vec![HANDLER.to_owned()],
            version: None,
        };
        send(&up, Up::Open(open)).await?;
        send(&up, Up::Credit(pb::WorkCredit { steps: CREDIT })).await?;
        let reply = client.workers().stream_work(ReceiverStream::new(messages)).await;
        let down = reply.map_err(refused("StreamWork"))?.into_inner();
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let stop = stop.clone();
            async move { stop.run_until_cancelled(work(up, down, tally)).await.unwrap_or(Ok(())) }
        });
        Ok(Self { stop, running })
    }

    /// Ends it; an error that it met comes to light here.
    pub(crate) async fn stop(self) -> Result {
        self.stop.cancel();
        self.running.await.map_err(|error| wrong(format!("the worker broke: {error}")))?
    }
}

async fn work(
    up: mpsc::Sender<pb::StreamWorkRequest>,
    mut down: Streaming<pb::StreamWorkResponse>,
    tally: Tally,
) -> Result {
    let result = loop_over(&up, &mut down, &tally).await;
    // Callers that wait for room must not wait for ever.
    tally.room.close();
    result
}

async fn loop_over(
    up: &mpsc::Sender<pb::StreamWorkRequest>,
    down: &mut Streaming<pb::StreamWorkResponse>,
    tally: &Tally,
) -> Result {
    let mut used = 0;
    while let Some(message) = down.message().await.map_err(refused("StreamWork"))? {
        match message.message {
            Some(Down::Lease(lease)) if lease.tokens.is_empty() == tally.tokens => {
                return Err(wrong(format!("a lease has {} tokens", lease.tokens.len())));
            }
            Some(Down::Lease(lease)) => {
                used += 1;
                // Credit first: the commit of a result can then hand over
                // the next step.
                if used == CREDIT_PART {
                    used = 0;
                    send(up, Up::Credit(pb::WorkCredit { steps: CREDIT_PART })).await?;
                }
                let result = format!(r#"{{"done":"{}"}}"#, lease.step_uuid);
                let lease_id = lease.lease_id;
                send(up, Up::Complete(pb::CompleteStepRequest { lease_id, result })).await?;
            }
            Some(Down::Result(pb::WorkResult { refusal: None, already: false, .. })) => {
                tally.acknowledged.fetch_add(1, Ordering::Relaxed);
                tally.room.add_permits(1);
            }
            Some(Down::Result(result)) => {
                return Err(wrong(format!("a result was not taken: {result:?}")));
            }
            Some(Down::Revoked(revoked)) => {
                return Err(wrong(format!("a lease was revoked: {revoked:?}")));
            }
            Some(Down::Opened(_) | Down::Heartbeat(_)) | None => {}
        }
    }
    Err(wrong("the server ended the worker's stream"))
}

async fn send(up: &mpsc::Sender<pb::StreamWorkRequest>, message: Up) -> Result {
    let message = pb::StreamWorkRequest { message: Some(message) };
    up.send(message).await.map_err(|_| wrong("the worker's stream is closed"))
}
