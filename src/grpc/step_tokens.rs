//! The tokens that go to workers with leases and with the answers to
//! heartbeats.

use std::{collections::HashMap, sync::Arc};

use crate::{
    authz::Claim,
    domain::{LeaseId, permission::right::WorkLease},
    engine::{Engine, Error, Heartbeat, Leased, work},
    signing::StepTokens,
};

/// Where steps have tokens, what makes them.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens(Option<Arc<StepTokens>>);

impl Tokens {
    pub(super) fn new(tokens: Option<Arc<StepTokens>>) -> Self {
        Self(tokens)
    }

    /// Those of a new lease.
    pub(super) fn of(&self, leased: &Leased) -> HashMap<String, String> {
        self.0.as_ref().map_or_else(HashMap::new, |tokens| tokens.mint(&leased.into()))
    }

    /// Fresh ones for the leases that a heartbeat extended.
    pub(super) async fn renewed(
        &self,
        engine: &Engine,
        claim: &Claim<WorkLease>,
        beats: impl Iterator<Item = (LeaseId, Heartbeat)>,
    ) -> Result<HashMap<LeaseId, HashMap<String, String>>, Error> {
        let Some(tokens) = &self.0 else { return Ok(HashMap::new()) };
        let held = |(lease, beat)| matches!(beat, Heartbeat::Held(_)).then_some(lease);
        let held: Vec<LeaseId> = beats.filter_map(held).collect();
        if held.is_empty() {
            return Ok(HashMap::new());
        }
        let tenures = work::tenures(engine, claim, &held).await?;
        Ok(tenures.iter().map(|tenure| (tenure.id, tokens.mint(tenure))).collect())
    }
}
