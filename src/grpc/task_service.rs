//! `TaskService`.

use std::sync::Arc;

use futures::StreamExt as _;
use tonic::{Request, Response, Status};

use super::{
    call::{Answers, answer, open, recorded, traceparent, until_ended},
    convert,
    status::Error,
};
use crate::{
    access::Caller,
    domain::{RequestId, TaskId},
    engine::{Engine, Paged, tasks, watch},
    pb::v1::{self as pb, task_service_server},
};

/// Tasks: create, show, list, cancel, watch.
#[derive(Clone, Debug)]
pub(super) struct TaskService {
    engine: Arc<Engine>,
}

impl TaskService {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

type Watch = Answers<pb::WatchTaskResponse>;

#[tonic::async_trait]
impl task_service_server::TaskService for TaskService {
    type WatchTaskStream = Watch;

    async fn create_task(
        &self,
        request: Request<pb::CreateTaskRequest>,
    ) -> Result<Response<pb::CreateTaskResponse>, Status> {
        let traceparent = traceparent(&request);
        answer(request, |caller, request| async move {
            let permit = caller.permit(&request)?;
            let task = tasks::NewTask { traceparent, ..request.into() };
            let task = tasks::create(&self.engine, &permit, task).await?;
            Ok(pb::CreateTaskResponse { task: Some(task.into()) })
        })
        .await
    }

    async fn get_task(
        &self,
        request: Request<pb::GetTaskRequest>,
    ) -> Result<Response<pb::GetTaskResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let id = convert::task_id(&request.task_uuid)?;
            let task = tasks::get(&self.engine, &claim, id).await?;
            Ok(pb::GetTaskResponse { task: Some(task.into()) })
        })
        .await
    }

    async fn list_tasks(
        &self,
        request: Request<pb::ListTasksRequest>,
    ) -> Result<Response<pb::ListTasksResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let filter = convert::task_filter(&request)?;
            let page = convert::page(request.page_size, request.page_token);
            let Paged { items, next_token } =
                tasks::list(&self.engine, &claim, filter, &page).await?;
            let tasks = items.into_iter().map(Into::into).collect();
            Ok(pb::ListTasksResponse { tasks, next_page_token: next_token })
        })
        .await
    }

    async fn cancel_task(
        &self,
        request: Request<pb::CancelTaskRequest>,
    ) -> Result<Response<pb::CancelTaskResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let id = convert::task_id(&request.task_uuid)?;
            let task = tasks::cancel(&self.engine, &claim, id, request.reason).await?;
            Ok(pb::CancelTaskResponse { task: Some(task.into()) })
        })
        .await
    }

    async fn get_task_context(
        &self,
        request: Request<pb::GetTaskContextRequest>,
    ) -> Result<Response<pb::GetTaskContextResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let id = convert::task_id(&request.task_uuid)?;
            let context = tasks::context(&self.engine, &claim, id).await?;
            let (task_uuid, context) = (id.to_string(), context.as_str().to_owned());
            Ok(pb::GetTaskContextResponse { task_uuid, context })
        })
        .await
    }

    async fn watch_task(
        &self,
        request: Request<pb::WatchTaskRequest>,
    ) -> Result<Response<Watch>, Status> {
        let (caller, request) = open(request)?;
        let (call, object) = (caller.clone(), request.task_uuid.clone());
        let opened = self.watch(caller, request).await;
        recorded(&call, &object, opened).await.map(Response::new)
    }
}

impl TaskService {
    /// The look-up is done before the headers leave.
    async fn watch(&self, caller: Caller, request: pb::WatchTaskRequest) -> Result<Watch, Error> {
        let claim = caller.claim(&request)?;
        let task = convert::task_id(&request.task_uuid)?;
        let items = watch::watch(&self.engine, claim, task, request.after_seq).await?;
        let id = caller.request();
        Ok(until_ended(caller, items.map(move |item| message(id, task, item))))
    }
}

fn message(
    request: RequestId,
    task: TaskId,
    item: Result<watch::Item, crate::engine::Error>,
) -> Result<pb::WatchTaskResponse, Status> {
    match item {
        Ok(item) => Ok(convert::watched(task, item)),
        Err(error) => Err(Error::from(error).status(Some(request))),
    }
}
