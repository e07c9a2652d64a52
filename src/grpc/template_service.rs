//! `TemplateService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{call::answer, convert};
use crate::{
    engine::{
        Engine, Paged,
        templates::{self, Filter},
    },
    pb::v1::{self as pb, template_service_server},
};

/// Templates: register, show, list, validate.
#[derive(Clone, Debug)]
pub(super) struct TemplateService {
    engine: Arc<Engine>,
}

impl TemplateService {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl template_service_server::TemplateService for TemplateService {
    async fn register_template(
        &self,
        request: Request<pb::RegisterTemplateRequest>,
    ) -> Result<Response<pb::RegisterTemplateResponse>, Status> {
        answer(request, |caller, request| async move {
            let permit = caller.permit(&request)?;
            Ok(templates::register(&self.engine, &permit, request.definition).await?.into())
        })
        .await
    }

    async fn list_templates(
        &self,
        request: Request<pb::ListTemplatesRequest>,
    ) -> Result<Response<pb::ListTemplatesResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let namespace = convert::namespace_filter(request.namespace.as_deref())?;
            let filter = Filter { namespace, name: request.name };
            let page = convert::page(request.page_size, request.page_token);
            let Paged { items, next_token } =
                templates::list(&self.engine, &claim, &filter, &page).await?;
            let templates = items.iter().map(|record| convert::template(record)).collect();
            Ok(pb::ListTemplatesResponse { templates, next_page_token: next_token })
        })
        .await
    }

    async fn get_template(
        &self,
        request: Request<pb::GetTemplateRequest>,
    ) -> Result<Response<pb::GetTemplateResponse>, Status> {
        answer(request, |caller, request| async move {
            let permit = caller.permit(&request)?;
            let record =
                templates::get(&self.engine, &permit, &request.name, &request.version).await?;
            Ok(pb::GetTemplateResponse {
                template: Some(convert::template_with_definition(&record)),
            })
        })
        .await
    }

    async fn validate_template(
        &self,
        request: Request<pb::ValidateTemplateRequest>,
    ) -> Result<Response<pb::ValidateTemplateResponse>, Status> {
        answer(request, |caller, request| async move {
            let permit = caller.permit(&request)?;
            Ok(templates::validate(&permit, request.definition).await?.into())
        })
        .await
    }
}
