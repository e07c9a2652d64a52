//! `WorkerService`; its stream is in `work_stream`.

use std::sync::Arc;

use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::{
    call::{answer, open, recorded},
    convert,
    step_tokens::Tokens,
    work_stream::{self, Messages},
};
use crate::{
    engine::{Engine, Paged, work, workers},
    pb::v1::{self as pb, worker_service_server},
};

/// Workers: register, list, lease, report.
#[derive(Clone, Debug)]
pub(super) struct WorkerService {
    engine: Arc<Engine>,
    tokens: Tokens,
    streams: TaskTracker,
}

impl WorkerService {
    /// The tracker is where the tasks of streams run.
    pub(super) fn new(engine: Arc<Engine>, tokens: Tokens, streams: TaskTracker) -> Self {
        Self { engine, tokens, streams }
    }
}

#[tonic::async_trait]
impl worker_service_server::WorkerService for WorkerService {
    type StreamWorkStream = Messages;

    async fn register_worker(
        &self,
        request: Request<pb::RegisterWorkerRequest>,
    ) -> Result<Response<pb::RegisterWorkerResponse>, Status> {
        answer(request, |caller, request| async move {
            let (area, claim) = caller.area(&request)?;
            let worker = workers::register(&self.engine, &claim, area, request.into()).await?;
            Ok(pb::RegisterWorkerResponse { worker: Some(worker.into()) })
        })
        .await
    }

    async fn list_workers(
        &self,
        request: Request<pb::ListWorkersRequest>,
    ) -> Result<Response<pb::ListWorkersResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let area = convert::area_filter(request.namespace.as_deref())?;
            let page = convert::page(request.page_size, request.page_token);
            let Paged { items, next_token } =
                workers::list(&self.engine, &claim, area.as_ref(), &page).await?;
            let workers = items.into_iter().map(Into::into).collect();
            Ok(pb::ListWorkersResponse { workers, next_page_token: next_token })
        })
        .await
    }

    async fn stream_work(
        &self,
        request: Request<Streaming<pb::StreamWorkRequest>>,
    ) -> Result<Response<Messages>, Status> {
        let (caller, inbound) = open(request)?;
        let call = caller.clone();
        let opened =
            work_stream::open(&self.engine, &self.tokens, &self.streams, caller, inbound).await;
        recorded(&call, "", opened).await.map(Response::new)
    }

    async fn lease_steps(
        &self,
        request: Request<pb::LeaseStepsRequest>,
    ) -> Result<Response<pb::LeaseStepsResponse>, Status> {
        answer(request, |caller, request| async move {
            let (area, claim) = caller.area(&request)?;
            // Dropping the call gives back what it has leased by then. The
            // end of the credential comes first: it gets no lease (SE-17).
            let leases = tokio::select! {
                biased;
                refusal = caller.ended() => return Err(refusal.into()),
                leases = work::lease(&self.engine, &claim, area, request.into()) => leases?,
            };
            let leases = leases.iter().map(|one| convert::lease(one, self.tokens.of(one)));
            Ok(pb::LeaseStepsResponse { leases: leases.collect() })
        })
        .await
    }

    async fn heartbeat_step(
        &self,
        request: Request<pb::HeartbeatStepRequest>,
    ) -> Result<Response<pb::HeartbeatStepResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let lease = convert::lease_id(&request.lease_id)?;
            let beat = work::heartbeat(&self.engine, &claim, lease).await?;
            let beats = std::iter::once((lease, beat));
            let mut fresh = self.tokens.renewed(&self.engine, &claim, beats).await?;
            let tokens = fresh.remove(&lease).unwrap_or_default();
            Ok(convert::heartbeat(request.lease_id, beat, tokens))
        })
        .await
    }

    async fn complete_step(
        &self,
        request: Request<pb::CompleteStepRequest>,
    ) -> Result<Response<pb::CompleteStepResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let lease = convert::lease_id(&request.lease_id)?;
            Ok(work::complete(&self.engine, &claim, lease, &request.result).await?.into())
        })
        .await
    }

    async fn fail_step(
        &self,
        request: Request<pb::FailStepRequest>,
    ) -> Result<Response<pb::FailStepResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let lease = convert::lease_id(&request.lease_id)?;
            Ok(work::fail(&self.engine, &claim, lease, request.into()).await?.into())
        })
        .await
    }
}
