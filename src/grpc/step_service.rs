//! `StepService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{call::answer, convert};
use crate::{
    engine::{
        Engine, Paged,
        steps::{self, Resolution},
    },
    pb::v1::{self as pb, step_service_server},
};

/// Steps: show, list, cure, history.
#[derive(Clone, Debug)]
pub(super) struct StepService {
    engine: Arc<Engine>,
}

impl StepService {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl step_service_server::StepService for StepService {
    async fn list_steps(
        &self,
        request: Request<pb::ListStepsRequest>,
    ) -> Result<Response<pb::ListStepsResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let task = convert::task_id(&request.task_uuid)?;
            let page = convert::page(request.page_size, request.page_token);
            let Paged { items, next_token } =
                steps::list(&self.engine, &claim, task, &page).await?;
            let steps = items.into_iter().map(|step| convert::step(task, step)).collect();
            Ok(pb::ListStepsResponse { steps, next_page_token: next_token })
        })
        .await
    }

    async fn get_step(
        &self,
        request: Request<pb::GetStepRequest>,
    ) -> Result<Response<pb::GetStepResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let (task, id) = convert::step_ids(&request.task_uuid, &request.step_uuid)?;
            let step = steps::get(&self.engine, &claim, task, id).await?;
            Ok(pb::GetStepResponse { step: Some(convert::step(task, step)) })
        })
        .await
    }

    async fn resolve_step(
        &self,
        request: Request<pb::ResolveStepRequest>,
    ) -> Result<Response<pb::ResolveStepResponse>, Status> {
        answer(request, |caller, mut request| async move {
            let claim = caller.claim(&request)?;
            let action = (&mut request).try_into()?;
            let (task, id) = convert::step_ids(&request.task_uuid, &request.step_uuid)?;
            let resolution = Resolution { step: id, action, reason: request.reason };
            let step = steps::resolve(&self.engine, &claim, task, resolution).await?;
            Ok(pb::ResolveStepResponse { step: Some(convert::step(task, step)) })
        })
        .await
    }

    async fn get_step_audit(
        &self,
        request: Request<pb::GetStepAuditRequest>,
    ) -> Result<Response<pb::GetStepAuditResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let (task, id) = convert::step_ids(&request.task_uuid, &request.step_uuid)?;
            Ok(convert::audit(steps::history(&self.engine, &claim, task, id).await?))
        })
        .await
    }
}
