//! Jobs: set, look at, list, remove, resume.

use std::sync::Arc;

use super::{
    Error, PageRequest, Paged, Recurrence, Scheduler, When,
    ahead::{self, Changing},
};
use crate::{
    authz::{Claim, Permit},
    domain::{
        permission::right::{SchedulesRead, SchedulesWrite},
        schedule::{Identifier, Job, JobStatus, Nanos, Run},
    },
    engine::page::Query,
    storage::JobChange,
};

/// When a job shall run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The first time; none is the recurrence's next.
    pub when: Option<When>,
    /// When it recurs; none runs once.
    pub recurrence: Option<String>,
}

/// Plans a job, new or anew; it is on disk when this answers.
pub async fn set(
    scheduler: &Scheduler,
    permit: &Permit<SchedulesWrite, Identifier>,
    plan: &Plan,
) -> Result<Job, Error> {
    let change = planned(scheduler, permit, plan).await?;
    let mut jobs = change_all(scheduler, permit, vec![change]).await?;
    jobs.pop().flatten().ok_or_else(|| Error::JobNotFound(permit.identifier().to_string()))
}

/// A change of one job, for [`many`].
#[derive(Debug)]
pub enum Change {
    /// [`set`].
    Set(Permit<SchedulesWrite, Identifier>, Plan),
    /// [`remove`].
    Remove(Permit<SchedulesWrite, Identifier>),
}

/// Makes several changes of one caller in their order and one commit: what a
/// client pipelines. A plan that is refused does not keep the others back.
pub async fn many(
    scheduler: &Scheduler,
    changes: &[Change],
) -> Result<Vec<Result<Job, Error>>, Error> {
    let mut made = Vec::with_capacity(changes.len());
    for change in changes {
        made.push(match change {
            Change::Set(permit, plan) => planned(scheduler, permit, plan).await,
            Change::Remove(permit) => Ok(JobChange::Remove(permit.identifier().clone())),
        });
    }
    let good: Vec<JobChange> = made.iter().filter_map(|made| made.as_ref().ok()).cloned().collect();
    let Some(permit) = changes.first().map(Change::permit) else { return Ok(Vec::new()) };
    let mut jobs = change_all(scheduler, permit, good).await?.into_iter();
    let answers = changes.iter().zip(made).map(|(change, made)| {
        made?;
        let absent = || Error::JobNotFound(change.permit().identifier().to_string());
        jobs.next().flatten().ok_or_else(absent)
    });
    Ok(answers.collect())
}

impl Change {
    fn permit(&self) -> &Permit<SchedulesWrite, Identifier> {
        match self {
            Self::Set(permit, _) | Self::Remove(permit) => permit,
        }
    }
}

/// One job.
pub async fn get(
    scheduler: &Scheduler,
    permit: &Permit<SchedulesRead, Identifier>,
) -> Result<Job, Error> {
    let id = permit.identifier();
    scheduler.store.job(id).await?.ok_or_else(|| Error::JobNotFound(id.to_string()))
}

/// The jobs in the scope whose names begin with a text, by name.
pub async fn list(
    scheduler: &Scheduler,
    claim: &Claim<SchedulesRead>,
    prefix: &str,
    request: &PageRequest,
) -> Result<Paged<Job>, Error> {
    let query = Query::new("jobs", claim.identity()).with(prefix);
    let page = query.page(request).map_err(paging)?;
    let listed = scheduler.store.jobs(claim.scope(), prefix, &page).await?;
    Ok(query.paged(listed))
}

/// Removes a job and its history; a run that is under way goes on.
pub async fn remove(
    scheduler: &Scheduler,
    permit: &Permit<SchedulesWrite, Identifier>,
) -> Result<Job, Error> {
    let id = permit.identifier();
    let mut jobs = change_all(scheduler, permit, vec![JobChange::Remove(id.clone())]).await?;
    jobs.pop().flatten().ok_or_else(|| Error::JobNotFound(id.to_string()))
}

/// Plans a job that is held again, due at once; one that was resumed already
/// stays as it is.
pub async fn resume(
    scheduler: &Scheduler,
    permit: &Permit<SchedulesWrite, Identifier>,
) -> Result<Job, Error> {
    let id = permit.identifier();
    let mut jobs = change_all(scheduler, permit, vec![JobChange::Resume(id.clone())]).await?;
    if let Some(job) = jobs.pop().flatten() {
        return Ok(job);
    }
    let job = scheduler.store.job(id).await?;
    let job = job.ok_or_else(|| Error::JobNotFound(id.to_string()))?;
    match job.status {
        JobStatus::Planned | JobStatus::Triggered => Ok(job),
        // Of these, held only where it came to be so since.
        status @ (JobStatus::Executed | JobStatus::Failed | JobStatus::Held) => {
            let status = status.as_str();
            let message = format!("the job is {status}, not held; set it anew to run it again");
            Err(Error::FieldInvalid { field: "id", message })
        }
    }
}

/// A job's history, the latest run first.
pub async fn runs(
    scheduler: &Scheduler,
    permit: &Permit<SchedulesRead, Identifier>,
    request: &PageRequest,
) -> Result<Paged<Run>, Error> {
    let id = permit.identifier();
    let query = Query::new("runs", permit.identity()).with(id.as_str());
    let page = query.page(request).map_err(paging)?;
    let listed = scheduler.store.runs(id, &page).await?;
    Ok(query.paged(listed.ok_or_else(|| Error::JobNotFound(id.to_string()))?))
}

async fn planned(
    scheduler: &Scheduler,
    permit: &Permit<SchedulesWrite, Identifier>,
    plan: &Plan,
) -> Result<JobChange, Error> {
    let invalid = |field, message| Error::FieldInvalid { field, message };
    let now = scheduler.now().into();
    let first = plan.when.map(When::nanos);
    let (recurrence, next) = match &plan.recurrence {
        Some(text) => {
            let (text, next) = understood(scheduler, text.clone(), first.unwrap_or(now), now)
                .await?
                .map_err(|message| invalid("recurrence", message))?;
            (Some(text), next)
        }
        None => (None, None),
    };
    let execution = first.or(next).ok_or_else(|| {
        invalid("execution", "a time, or a recurrence that has a next one, is needed".to_owned())
    })?;
    Ok(JobChange::Set {
        id: permit.identifier().clone(),
        execution,
        recurrence,
        status: JobStatus::Planned,
    })
}

/// A recurrence as it is kept, and its next time. To read one may take
/// milliseconds of a processor: one at a time, and never on the threads that
/// serve everybody.
async fn understood(
    scheduler: &Scheduler,
    text: String,
    start: Nanos,
    now: Nanos,
) -> Result<Result<(Arc<str>, Option<Nanos>), String>, Error> {
    let _turn = scheduler.reading.lock().await;
    let read = tokio::task::spawn_blocking(move || {
        let recurrence = Recurrence::parse(&text, start)?;
        Ok((Arc::from(recurrence.text()), recurrence.next_after(now)))
    });
    read.await.map_err(|error| {
        tracing::error!(%error, "a recurrence could not be read");
        Error::FieldInvalid { field: "recurrence", message: "it cannot be read".to_owned() }
    })
}

async fn change_all(
    scheduler: &Scheduler,
    permit: &Permit<SchedulesWrite, Identifier>,
    changes: Vec<JobChange>,
) -> Result<Vec<Option<Job>>, Error> {
    let ids = changes.iter().map(JobChange::id).cloned().collect();
    let changing = Changing { scheduler, ids };
    let jobs = scheduler.store.change_jobs(changes, &permit.stamp(), scheduler.now()).await?;
    drop(changing);
    let planned = jobs.iter().flatten().filter(|job| job.status == JobStatus::Planned);
    if let Some(due) = planned.map(|job| job.due).min() {
        scheduler.alarm.arm(ahead::asked_at(due));
    }
    Ok(jobs)
}

pub(super) fn paging(error: crate::engine::Error) -> Error {
    if let crate::engine::Error::FieldInvalid { field, message } = error {
        return Error::FieldInvalid { field, message };
    }
    Error::PageToken
}
