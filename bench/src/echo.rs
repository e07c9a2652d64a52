//! The raw tonic echo: `CreateTask` answered from the request alone, by a
//! server with tonic's own settings.

use std::{net::SocketAddr, pin::Pin};

use bailiwick_client::pb::v1::{
    self as pb,
    task_service_server::{TaskService, TaskServiceServer},
};
use futures::Stream;
use tonic::{Request, Response, Status, transport::Server};

use crate::error::{Result, wrong};

/// Serves until the process is ended.
pub(crate) async fn serve(listen: SocketAddr) -> Result {
    let service = TaskServiceServer::new(Echo);
    let serving = Server::builder().add_service(service).serve(listen).await;
    serving.map_err(|error| wrong(format!("the echo does not serve: {error}")))
}

#[derive(Debug)]
struct Echo;

type Watch = Pin<Box<dyn Stream<Item = Result<pb::WatchTaskResponse, Status>> + Send>>;

#[tonic::async_trait]
impl TaskService for Echo {
    type WatchTaskStream = Watch;

    /// A reply of the same shape and size as a real one.
    async fn create_task(
        &self,
        request: Request<pb::CreateTaskRequest>,
    ) -> Result<Response<pb::CreateTaskResponse>, Status> {
        let request = request.into_inner();
        let mut task_uuid = request.context;
        task_uuid.truncate(36);
        let time = prost_types::Timestamp { seconds: 1_800_000_000, nanos: 123_456_000 };
        let task = pb::Task {
            task_uuid,
            namespace: request.namespace,
            name: request.name,
            version: "1.0.0".to_owned(),
            state: pb::TaskState::Pending.into(),
            created_by: "anonymous".to_owned(),
            created_at: Some(time),
            updated_at: Some(time),
            steps: Some(pb::StepCounts { total: 1, ready: 1, ..pb::StepCounts::default() }),
            ..pb::Task::default()
        };
        Ok(Response::new(pb::CreateTaskResponse { task: Some(task) }))
    }

    async fn get_task(
        &self,
        _: Request<pb::GetTaskRequest>,
    ) -> Result<Response<pb::GetTaskResponse>, Status> {
        Err(not_here())
    }

    async fn list_tasks(
        &self,
        _: Request<pb::ListTasksRequest>,
    ) -> Result<Response<pb::ListTasksResponse>, Status> {
        Err(not_here())
    }

    async fn cancel_task(
        &self,
        _: Request<pb::CancelTaskRequest>,
    ) -> Result<Response<pb::CancelTaskResponse>, Status> {
        Err(not_here())
    }

    async fn get_task_context(
        &self,
        _: Request<pb::GetTaskContextRequest>,
    ) -> Result<Response<pb::GetTaskContextResponse>, Status> {
        Err(not_here())
    }

    async fn watch_task(
        &self,
        _: Request<pb::WatchTaskRequest>,
    ) -> Result<Response<Watch>, Status> {
        Err(not_here())
    }
}

fn not_here() -> Status {
    Status::unimplemented("the echo knows CreateTask alone")
}
