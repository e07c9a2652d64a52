//! `WorkerProcessService`: what a worker process tells about itself.
//!
//! Not here: where the templates come from (`worker`).

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;
use tonic::{Request, Response, Status};

use super::{call::answer, system_service::disabled};
use crate::{
    access::Refusal,
    domain::Namespace,
    pb::v1::{self as pb, worker_process_service_server},
};

/// Where the templates come from that a worker knows.
pub trait KnownTemplates: fmt::Debug + Send + Sync {
    /// All of them, whoever asks.
    fn all(&self) -> BoxFuture<'_, Result<Arc<[pb::WorkerTemplate]>, Refusal>>;
}

/// The worker process itself.
#[derive(Clone, Debug)]
pub(super) struct WorkerProcessService {
    config: Option<Arc<str>>,
    templates: Arc<dyn KnownTemplates>,
}

impl WorkerProcessService {
    /// `config` is the redacted configuration as a JSON object; none when the
    /// settings turn the endpoint off.
    pub(super) fn new(config: Option<Arc<str>>, templates: Arc<dyn KnownTemplates>) -> Self {
        Self { config, templates }
    }
}

#[tonic::async_trait]
impl worker_process_service_server::WorkerProcessService for WorkerProcessService {
    async fn get_worker_config(
        &self,
        request: Request<pb::GetWorkerConfigRequest>,
    ) -> Result<Response<pb::GetWorkerConfigResponse>, Status> {
        answer(request, |caller, request| async move {
            // First the right: who lacks it does not learn of the setting.
            caller.global(&request)?;
            let config = self.config.as_deref().ok_or_else(disabled)?.to_owned();
            Ok(pb::GetWorkerConfigResponse { config })
        })
        .await
    }

    async fn list_worker_templates(
        &self,
        request: Request<pb::ListWorkerTemplatesRequest>,
    ) -> Result<Response<pb::ListWorkerTemplatesResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let known = self.templates.all().await?;
            let visible = |template: &&pb::WorkerTemplate| {
                Namespace::parse(&template.namespace)
                    .is_ok_and(|namespace| claim.scope().contains(&namespace))
            };
            let templates = known.iter().filter(visible).cloned().collect();
            Ok(pb::ListWorkerTemplatesResponse { templates })
        })
        .await
    }

    async fn get_worker_template(
        &self,
        request: Request<pb::GetWorkerTemplateRequest>,
    ) -> Result<Response<pb::GetWorkerTemplateResponse>, Status> {
        answer(request, |caller, request| async move {
            let permit = caller.permit(&request)?;
            let known = self.templates.all().await?;
            let wanted = |template: &&pb::WorkerTemplate| {
                template.namespace == permit.namespace().as_str()
                    && template.name == request.name
                    && template.version == request.version
            };
            let template = known.iter().find(wanted).cloned().ok_or_else(|| {
                let pb::GetWorkerTemplateRequest { namespace, name, version } = &request;
                Refusal::not_found("template", &format!("{namespace}/{name}@{version}"))
            })?;
            Ok(pb::GetWorkerTemplateResponse { template: Some(template) })
        })
        .await
    }
}
