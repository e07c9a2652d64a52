//! Whether the worker's stream to the server is open.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::figures;
use crate::grpc::{Health, Watched};

/// A handle to it; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Link(Arc<AtomicBool>);

impl Link {
    /// Says whether it is open now.
    pub(in crate::worker) fn set(&self, open: bool) {
        figures::connected(open);
        self.0.store(open, Ordering::Relaxed);
    }
}

impl Watched for Link {
    fn health(&self) -> Vec<(&'static str, Health)> {
        let health = if self.0.load(Ordering::Relaxed) {
            Health::Healthy("the stream to the server is open")
        } else {
            Health::Unhealthy("no stream to the server")
        };
        vec![("server", health)]
    }
}
