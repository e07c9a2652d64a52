//! Tasks that a step makes by its token: only of templates that its own
//! template lists, never too deep, and of each root never too many (SE-45).

use super::{Engine, Error};
use crate::{
    authz::Permit,
    domain::{
        Scope, TaskId,
        permission::right::TasksCreate,
        principal::Source,
        rights::{attempt_of, task_of_step},
    },
    storage::{NotSpawned, Spawn},
};

/// The step behind the call, when it is one that may make a task of this
/// template.
pub(super) async fn of(
    engine: &Engine,
    permit: &Permit<TasksCreate>,
    template: &str,
) -> Result<Option<Spawn>, Error> {
    let principal = permit.principal();
    if principal.identity.source != Source::Lease {
        return Ok(None);
    }
    let refused = || Error::SpawnRefused(template.to_owned());
    let parent: TaskId = task_of_step(&principal.identity.subject).ok_or_else(refused)?;
    let (step, attempt) = attempt_of(&principal.credential_id).ok_or_else(refused)?;
    let step = parent.step_no(step).ok_or_else(refused)?;
    let found =
        engine.store.tenures(&Scope::exactly(permit.namespace()), &[(parent, step)]).await?;
    // It ended meanwhile; what holds now may be the lease of a later attempt.
    let tenure = found.into_iter().next().flatten();
    let tenure = tenure.filter(|tenure| tenure.attempt == attempt).ok_or(Error::LeaseLost)?;
    let mut steps = tenure.template.template.steps.iter();
    let listed = steps
        .find(|step| step.name == tenure.name)
        .is_some_and(|step| step.asked.spawns.iter().any(|name| **name == *template));
    if !listed {
        return Err(refused());
    }
    Ok(Some(Spawn { lease: tenure.id, budget: engine.rights.spawn_budget() }))
}

/// Why the store did not make the task.
pub(super) fn not_spawned(why: NotSpawned) -> Error {
    match why {
        NotSpawned::LeaseEnded => Error::LeaseLost,
        NotSpawned::TooDeep => Error::StepState(
            "the step's task is as far from its root as a task can be: it makes no other".into(),
        ),
        NotSpawned::BudgetSpent => Error::StepState(
            "the root of the step's task has as many descendants as \
             `limits.spawned_tasks_per_root` allows"
                .into(),
        ),
    }
}
