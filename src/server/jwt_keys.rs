//! How the keys of JWT issuers do, as a part of the process's health. No text
//! names an issuer (SE-11).

use std::sync::Arc;

use crate::{
    authn::Ring,
    domain::Clock,
    grpc::{Health, Watched},
};

/// The part's name.
const PART: &str = "jwt_keys";

/// The key sets of every issuer that publishes one.
#[derive(Debug)]
pub(super) struct JwtKeys {
    rings: Vec<Arc<Ring>>,
    clock: Arc<dyn Clock>,
}

impl JwtKeys {
    /// Of these rings.
    pub(super) fn of(rings: &[Arc<Ring>], clock: &Arc<dyn Clock>) -> Arc<dyn Watched> {
        Arc::new(Self { rings: rings.to_vec(), clock: Arc::clone(clock) })
    }
}

impl Watched for JwtKeys {
    /// Never worse than degraded: other credentials work all the same, and
    /// another process would fetch from the same issuer.
    fn health(&self) -> Vec<(&'static str, Health)> {
        let now = self.clock.now();
        if self.rings.is_empty() {
            return Vec::new();
        }
        let health = if self.rings.iter().any(|ring| !ring.has_keys(now)) {
            Health::Degraded(
                "an issuer's keys are missing or too old: its tokens are refused; see the log",
            )
        } else if self.rings.iter().any(|ring| ring.is_failing()) {
            Health::Degraded(
                "an issuer's keys cannot be fetched; the ones from before still count; see the log",
            )
        } else {
            Health::Healthy("the keys of every issuer are there")
        };
        vec![(PART, health)]
    }
}
