//! Steps: look at them, and cure them by hand. A step is looked up under its
//! task alone (SE-09), and what is hidden reads as absent (SE-10).
//!
//! Not here: leases and results of workers (`work`).

use tracing::instrument;

use super::{Engine, Error, PageRequest, Paged, fields, page::Query, tasks};
use crate::{
    authz::Claim,
    domain::{
        StepId, TaskId,
        history::{Attempt, Event},
        permission::right::{StepsRead, StepsResolve},
    },
    storage::{Cure, Cured, Listed, Order, Step},
};

/// An operator's order to cure a step.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// Which step.
    pub step: StepId,
    /// How.
    pub action: Action,
    /// Why; kept in the history.
    pub reason: String,
}

/// How an operator cures a step.
#[derive(Clone, Debug)]
pub enum Action {
    /// As many attempts again as the template says.
    ResetForRetry,
    /// Go on without it.
    ResolveManually,
    /// Complete it.
    CompleteManually {
        /// JSON; empty is null.
        result: String,
    },
}

/// What happened to a step.
#[derive(Clone, Debug)]
pub struct History {
    /// Its changes, oldest first.
    pub events: Vec<Event>,
    /// Its finished attempts.
    pub attempts: Vec<Attempt>,
}

/// Lists a task's steps in the template's order.
#[instrument(name = "engine.steps.list", skip_all, fields(task = %id))]
pub async fn list(
    engine: &Engine,
    claim: &Claim<StepsRead>,
    id: TaskId,
    request: &PageRequest,
) -> Result<Paged<Step>, Error> {
    let query = Query::new("steps", claim.identity()).with(&id.to_string());
    let page = query.page(request)?;
    let (_, listed): (_, Listed<Step>) =
        engine.store.steps(claim.scope(), id, &page).await?.ok_or_else(|| tasks::not_found(id))?;
    Ok(query.paged(listed))
}

/// Shows one step of a task.
#[instrument(name = "engine.steps.get", skip_all, fields(task = %id, step = %step))]
pub async fn get(
    engine: &Engine,
    claim: &Claim<StepsRead>,
    id: TaskId,
    step: StepId,
) -> Result<Step, Error> {
    let found = engine.store.step(claim.scope(), id, step).await?;
    found.map(|(_, step)| step).ok_or_else(|| not_found(step))
}

/// Cures a step by hand.
#[instrument(name = "engine.steps.resolve", skip_all, fields(task = %id, step = %resolution.step))]
pub async fn resolve(
    engine: &Engine,
    claim: &Claim<StepsResolve>,
    id: TaskId,
    resolution: Resolution,
) -> Result<Step, Error> {
    let Resolution { step, action, reason } = resolution;
    fields::reason(&reason)?;
    let cure = match action {
        Action::ResetForRetry => Cure::Reset,
        Action::ResolveManually => Cure::Resolve,
        Action::CompleteManually { result } => {
            Cure::Complete(fields::payload("completion_data.result", &result)?)
        }
    };
    let order = Order { step, cure, reason };
    let cured = engine.store.cure(claim.scope(), id, order, &claim.stamp(), engine.now()).await?;
    match cured.ok_or_else(|| not_found(step))? {
        Cured::Done(step) => Ok(*step),
        Cured::Refused(why) => Err(Error::StepState(why)),
    }
}

/// Shows what happened to a step.
#[instrument(name = "engine.steps.history", skip_all, fields(task = %id, step = %step))]
pub async fn history(
    engine: &Engine,
    claim: &Claim<StepsRead>,
    id: TaskId,
    step: StepId,
) -> Result<History, Error> {
    let found = engine.store.step_history(claim.scope(), id, step).await?;
    let (_, events, attempts) = found.ok_or_else(|| not_found(step))?;
    Ok(History { events, attempts })
}

/// The same for a hidden task, an absent one and an absent step.
fn not_found(step: StepId) -> Error {
    Error::StepNotFound(step.to_string())
}
