//! A worker's session: how many steps it takes, and what comes for it.
//!
//! Not here: the worker's wire (`grpc`), who gets which step (`floor`).

use std::{fmt, future, sync::Arc};

use futures::future::BoxFuture;

use super::{
    Engine, Error,
    floor::{DispatchOrder, Stay},
};
use crate::domain::LeaseId;
use crate::storage::{Leased, Revocation};

/// How many steps a session may ask for and not have fetched.
pub const CREDIT_MAX: u32 = 1_000;

/// What comes for a worker.
#[derive(Clone, Debug)]
pub enum Offer {
    /// A step to do.
    Lease(Box<Leased>),
    /// Stop: the lease has ended.
    Revoked(LeaseId, Revocation),
}

/// A worker's open session.
pub struct Session {
    engine: Arc<Engine>,
    stay: Stay,
    /// Kept here and not in `next`, so that dropping that call repeats no
    /// dispatch; and there is never more than one.
    dispatching: Option<BoxFuture<'static, ()>>,
}

impl Session {
    pub(super) fn new(engine: Arc<Engine>, stay: Stay) -> Self {
        Self { engine, stay, dispatching: None }
    }

    /// Takes so many steps more; 0 takes all credit back, and what was leased
    /// and not fetched goes back to the queue.
    pub fn credit(&self, steps: u32) {
        match steps {
            0 => self.stay.recall(),
            steps => self.stay.credit(steps),
        }
    }

    /// What comes next. Dropping the call loses nothing. Fails only when the
    /// server goes down.
    pub async fn next(&mut self) -> Result<Offer, Error> {
        loop {
            if let Some(offer) = self.stay.next_offer() {
                return Ok(offer);
            }
            if self.engine.closing.is_cancelled() {
                return Err(Error::ShuttingDown);
            }
            if self.dispatching.is_none()
                && let Some(order) = self.stay.order()
            {
                self.dispatching = Some(Box::pin(dispatch_logged(
                    Arc::clone(&self.engine),
                    self.stay.ticket(),
                    order,
                )));
            }
            let dispatched = async {
                match self.dispatching.as_mut() {
                    Some(dispatching) => dispatching.await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                () = self.stay.bell().notified() => {}
                () = dispatched => self.dispatching = None,
                () = self.engine.closing.cancelled() => {}
            }
        }
    }
}

/// A failure is logged; the dispatcher's next round tries again.
async fn dispatch_logged(engine: Arc<Engine>, sitter: u64, order: DispatchOrder) {
    if let Err(error) = dispatch(&engine, sitter, &order).await {
        tracing::warn!(error = %error, "a dispatch failed; it is tried again");
    }
}

/// Looks in the queues once for a sitter that wants it. Its seats were
/// registered before, so no step can slip between looking and waiting.
pub(super) async fn dispatch(
    engine: &Engine,
    sitter: u64,
    order: &DispatchOrder,
) -> Result<(), Error> {
    let limit = usize::try_from(order.limit).unwrap_or(usize::MAX);
    let done = engine.store.dispatch(&order.area, &order.handlers, limit, engine.now()).await;
    let drained = done.as_ref().map_or(true, |leases| *leases < limit);
    engine.floor.dispatched(sitter, order, drained);
    done?;
    Ok(())
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.stay.ticket())
    }
}
