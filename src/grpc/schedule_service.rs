//! `ScheduleService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{call::answer, convert};
use crate::{
    domain::Scope,
    pb::v1::{self as pb, schedule_service_server},
    schedule::{Paged, Scheduler, jobs, preview, rules},
};

/// How many jobs or rules a page has when the caller does not say: as many as
/// may be, for ztick's lists have no pages.
const PAGE_SIZE: u32 = crate::engine::page::PAGE_SIZE_MAX;

/// Jobs and rules.
#[derive(Clone, Debug)]
pub(super) struct ScheduleService {
    scheduler: Arc<Scheduler>,
}

impl ScheduleService {
    pub(super) fn new(scheduler: Arc<Scheduler>) -> Self {
        Self { scheduler }
    }
}

#[tonic::async_trait]
impl schedule_service_server::ScheduleService for ScheduleService {
    async fn set_job(
        &self,
        request: Request<pb::SetJobRequest>,
    ) -> Result<Response<pb::SetJobResponse>, Status> {
        answer(request, |caller, request| async move {
            let permit = caller.identified(&request)?;
            let plan = request.try_into()?;
            let job = jobs::set(&self.scheduler, &permit, &plan).await?;
            Ok(pb::SetJobResponse { job: Some(job.into()) })
        })
        .await
    }

    async fn get_job(
        &self,
        request: Request<pb::GetJobRequest>,
    ) -> Result<Response<pb::GetJobResponse>, Status> {
        answer(request, |caller, request| async move {
            let permit = caller.identified(&request)?;
            let job = jobs::get(&self.scheduler, &permit).await?;
            Ok(pb::GetJobResponse { job: Some(job.into()) })
        })
        .await
    }

    async fn list_jobs(
        &self,
        request: Request<pb::ListJobsRequest>,
    ) -> Result<Response<pb::ListJobsResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let page = convert::page(or_all(request.page_size), request.page_token);
            let Paged { items, next_token } =
                jobs::list(&self.scheduler, &claim, &request.prefix, &page).await?;
            let jobs = items.into_iter().map(Into::into).collect();
            Ok(pb::ListJobsResponse { jobs, next_page_token: next_token })
        })
        .await
    }

    async fn remove_job(
        &self,
        request: Request<pb::RemoveJobRequest>,
    ) -> Result<Response<pb::RemoveJobResponse>, Status> {
        answer(request, |caller, request| async move {
            let permit = caller.identified(&request)?;
            let job = jobs::remove(&self.scheduler, &permit).await?;
            Ok(pb::RemoveJobResponse { job: Some(job.into()) })
        })
        .await
    }

    async fn resume_job(
        &self,
        request: Request<pb::ResumeJobRequest>,
    ) -> Result<Response<pb::ResumeJobResponse>, Status> {
        answer(request, |caller, request| async move {
            let permit = caller.identified(&request)?;
            let job = jobs::resume(&self.scheduler, &permit).await?;
            Ok(pb::ResumeJobResponse { job: Some(job.into()) })
        })
        .await
    }

    async fn list_job_runs(
        &self,
        request: Request<pb::ListJobRunsRequest>,
    ) -> Result<Response<pb::ListJobRunsResponse>, Status> {
        answer(request, |caller, request| async move {
            let permit = caller.identified(&request)?;
            let page = convert::page(request.page_size, request.page_token);
            let Paged { items, next_token } = jobs::runs(&self.scheduler, &permit, &page).await?;
            let runs = items.into_iter().map(Into::into).collect();
            Ok(pb::ListJobRunsResponse { runs, next_page_token: next_token })
        })
        .await
    }

    async fn preview_recurrence(
        &self,
        request: Request<pb::PreviewRecurrenceRequest>,
    ) -> Result<Response<pb::PreviewRecurrenceResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let count = request.count;
            let plan = convert::plan(&request.execution, Some(request.recurrence))?;
            let next = preview(&self.scheduler, &claim, &plan, count)?;
            let executions = next.into_iter().map(|at| at.0).collect();
            Ok(pb::PreviewRecurrenceResponse { executions })
        })
        .await
    }

    async fn set_rule(
        &self,
        request: Request<pb::SetRuleRequest>,
    ) -> Result<Response<pb::SetRuleResponse>, Status> {
        answer(request, |caller, request| async move {
            let (id, claim) = caller.of_rule(&request)?;
            let rule = convert::new_rule(id, request)?;
            let rule = rules::set(&self.scheduler, &claim, rule).await?;
            Ok(pb::SetRuleResponse { rule: Some((&*rule).into()) })
        })
        .await
    }

    async fn get_rule(
        &self,
        request: Request<pb::GetRuleRequest>,
    ) -> Result<Response<pb::GetRuleResponse>, Status> {
        answer(request, |caller, request| async move {
            let (id, claim) = caller.of_rule(&request)?;
            let rule = rules::get(&self.scheduler, &claim, &id)?;
            Ok(pb::GetRuleResponse { rule: Some((&*rule).into()) })
        })
        .await
    }

    async fn list_rules(
        &self,
        request: Request<pb::ListRulesRequest>,
    ) -> Result<Response<pb::ListRulesResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let page = convert::page(or_all(request.page_size), request.page_token);
            let Paged { items, next_token } =
                rules::list(&self.scheduler, &claim, &request.prefix, &page)?;
            let rules = items.iter().map(|rule| (&**rule).into()).collect();
            Ok(pb::ListRulesResponse { rules, next_page_token: next_token })
        })
        .await
    }

    async fn remove_rule(
        &self,
        request: Request<pb::RemoveRuleRequest>,
    ) -> Result<Response<pb::RemoveRuleResponse>, Status> {
        answer(request, |caller, request| async move {
            let (id, claim) = caller.of_rule(&request)?;
            let rule = rules::remove(&self.scheduler, &claim, &id).await?;
            Ok(pb::RemoveRuleResponse { rule: Some((&*rule).into()) })
        })
        .await
    }

    async fn get_scheduler_stats(
        &self,
        request: Request<pb::GetSchedulerStatsRequest>,
    ) -> Result<Response<pb::GetSchedulerStatsResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let mut stats: pb::GetSchedulerStatsResponse =
                self.scheduler.counts(&claim).await?.into();
            // What the others have under way is nothing for a tenant (SE-11).
            if *claim.scope() == Scope::Everything {
                let figures = self.scheduler.figures();
                stats.executions_pending = u64::try_from(figures.pending).ok();
                stats.executions_inflight = u64::try_from(figures.inflight).ok();
            }
            Ok(stats)
        })
        .await
    }
}

const fn or_all(page_size: u32) -> u32 {
    if page_size == 0 { PAGE_SIZE } else { page_size }
}
