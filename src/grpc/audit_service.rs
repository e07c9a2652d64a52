//! `AuditService`.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use tonic::{Request, Response, Status};

use super::{
    call::{Answers, answer, open, recorded, until_ended},
    convert,
    status::Error,
};
use crate::{
    access::{Caller, Kind, Reason, Refusal},
    audit::{ExportRequest, Filter, Ledger},
    engine::page::Query,
    pb::v1::{self as pb, audit_service_server},
};

/// The audit, read.
#[derive(Clone, Debug)]
pub(super) struct AuditService {
    ledger: Option<Arc<Ledger>>,
}

impl AuditService {
    /// None is an audit that is off.
    pub(super) fn new(ledger: Option<Arc<Ledger>>) -> Self {
        Self { ledger }
    }

    fn ledger(&self) -> Result<&Arc<Ledger>, Refusal> {
        let off = || {
            let message = "The audit is off; `audit.enabled` in the server's configuration";
            Refusal::new(Kind::NotFound, Reason::Disabled, message)
        };
        self.ledger.as_ref().ok_or_else(off)
    }
}

#[tonic::async_trait]
impl audit_service_server::AuditService for AuditService {
    type StreamAuditStream = Answers<pb::StreamAuditResponse>;
    type ExportAuditStream = Answers<pb::ExportAuditResponse>;

    async fn search_audit(
        &self,
        request: Request<pb::SearchAuditRequest>,
    ) -> Result<Response<pb::SearchAuditResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let page = convert::page(request.page_size, request.page_token.clone());
            let filter = Filter::try_from(request)?;
            let query = Query::new("audit", claim.identity()).with(&format!("{filter:?}"));
            let page = query.page(&page)?;
            let before = page.after.and_then(|place| place.parse().ok());
            let found = self.ledger()?.search(&claim, &filter, before, page.size).await?;
            let next = found.before.map(|before| query.token(&before.to_string()));
            let records = found.records.iter().map(Into::into).collect();
            Ok(pb::SearchAuditResponse { records, next_page_token: next.unwrap_or_default() })
        })
        .await
    }

    async fn stream_audit(
        &self,
        request: Request<pb::StreamAuditRequest>,
    ) -> Result<Response<Self::StreamAuditStream>, Status> {
        let (caller, request) = open(request)?;
        let begun = self.follow(&caller, request).await;
        recorded(&caller, "", begun).await.map(Response::new)
    }

    async fn export_audit(
        &self,
        request: Request<pb::ExportAuditRequest>,
    ) -> Result<Response<Self::ExportAuditStream>, Status> {
        let (caller, request) = open(request)?;
        let begun = self.export(&caller, request).await;
        recorded(&caller, "", begun).await.map(Response::new)
    }

    async fn get_audit_public_key(
        &self,
        request: Request<pb::GetAuditPublicKeyRequest>,
    ) -> Result<Response<pb::GetAuditPublicKeyResponse>, Status> {
        answer(request, |caller, request| async move {
            caller.authenticated(&request)?;
            let ledger = self.ledger()?;
            let key = ledger.public_key();
            Ok(pb::GetAuditPublicKeyResponse {
                public_key: key.to_pem(),
                key_id: key.id().to_owned(),
                checkpoint: ledger.last_checkpoint().await?,
            })
        })
        .await
    }
}

impl AuditService {
    async fn follow(
        &self,
        caller: &Caller,
        request: pb::StreamAuditRequest,
    ) -> Result<Answers<pb::StreamAuditResponse>, Error> {
        let claim = caller.claim(&request)?;
        let after = request.after_seq;
        let filter = Filter::try_from(request)?;
        let found = Arc::clone(self.ledger()?).follow(claim, filter, after).await?;
        let id = Some(caller.request());
        let messages = found
            .map_ok(|found| pb::StreamAuditResponse { record: Some((&found).into()) })
            .map_err(move |error| Error::from(error).status(id));
        Ok(until_ended(caller.clone(), messages))
    }

    async fn export(
        &self,
        caller: &Caller,
        request: pb::ExportAuditRequest,
    ) -> Result<Answers<pb::ExportAuditResponse>, Error> {
        let claim = caller.claim(&request)?;
        let request = ExportRequest::try_from(request)?;
        let lines = Arc::clone(self.ledger()?).export(&claim, &request).await?;
        let id = Some(caller.request());
        let messages = lines.map(move |lines| match lines {
            Ok(lines) => Ok(pb::ExportAuditResponse { lines }),
            Err(error) => Err(Error::from(error).status(id)),
        });
        Ok(until_ended(caller.clone(), messages))
    }
}
