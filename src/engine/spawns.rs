//! Tasks that a step makes by its token: only of templates that its own
//! template lists (SE-45).

use super::{Engine, Error};
use crate::{
    authz::Permit,
    domain::{
        StepId, TaskId, permission::right::TasksCreate, principal::Source, rights::task_of_step,
    },
};

/// Whether the caller may make a task of this template, when it is a step.
pub(super) async fn check(
    engine: &Engine,
    permit: &Permit<TasksCreate>,
    template: &str,
) -> Result<(), Error> {
    let principal = permit.principal();
    if principal.identity.source != Source::Lease {
        return Ok(());
    }
    let refused = || Error::SpawnRefused(template.to_owned());
    let parent: TaskId = task_of_step(&principal.identity.subject).ok_or_else(refused)?;
    let step = StepId::parse(&principal.credential_id).and_then(|step| parent.step_no(step));
    let step = step.ok_or_else(refused)?;
    let scope = crate::domain::Scope::exactly(permit.namespace());
    let found = engine.store.tenures(&scope, &[(parent, step)]).await?;
    // It ended meanwhile.
    let tenure = found.into_iter().next().flatten().ok_or(Error::LeaseLost)?;
    let mut steps = tenure.template.template.steps.iter();
    let listed = steps
        .find(|step| step.name == tenure.name)
        .is_some_and(|step| step.asked.spawns.iter().any(|name| **name == *template));
    if listed { Ok(()) } else { Err(refused()) }
}
