//! `SystemService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{call::answer, convert};
use crate::{
    access::{Kind, Reason, Refusal},
    engine::{Engine, Paged, handlers},
    pb::v1::{self as pb, system_service_server},
};

/// The server itself.
#[derive(Clone, Debug)]
pub(super) struct SystemService {
    engine: Arc<Engine>,
    config: Option<Arc<str>>,
}

impl SystemService {
    /// `config` is the redacted configuration as a JSON object; none when the
    /// settings turn the endpoint off.
    pub(super) fn new(engine: Arc<Engine>, config: Option<Arc<str>>) -> Self {
        Self { engine, config }
    }
}

#[tonic::async_trait]
impl system_service_server::SystemService for SystemService {
    async fn get_config(
        &self,
        request: Request<pb::GetConfigRequest>,
    ) -> Result<Response<pb::GetConfigResponse>, Status> {
        answer(request, |caller, request| async move {
            // First the right: who lacks it does not learn of the setting.
            caller.global(&request)?;
            let config = self.config.as_deref().ok_or_else(disabled)?;
            Ok(pb::GetConfigResponse { config: config.to_owned() })
        })
        .await
    }

    async fn list_handlers(
        &self,
        request: Request<pb::ListHandlersRequest>,
    ) -> Result<Response<pb::ListHandlersResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let namespace = convert::namespace_filter(request.namespace.as_deref())?;
            let page = convert::page(request.page_size, request.page_token);
            let Paged { items, next_token } =
                handlers::list(&self.engine, &claim, namespace.as_ref(), &page).await?;
            let handlers = items.into_iter().map(Into::into).collect();
            Ok(pb::ListHandlersResponse { handlers, next_page_token: next_token })
        })
        .await
    }
}

pub(super) fn disabled() -> Refusal {
    let message = "The setting `server.config_endpoint_enabled` turns this off";
    Refusal::new(Kind::NotFound, Reason::Disabled, message)
}
