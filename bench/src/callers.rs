//! The callers: what each one asks for, and how it knows that it was done.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bailiwick_client::{
    Client, Transport,
    pb::v1::{self as pb, task_service_client::TaskServiceClient},
};
use tokio::sync::Semaphore;

use crate::{
    error::{Result, refused, wrong},
    load::{CALLERS, Caller},
    server::NAMESPACE,
};

/// Makes the request of a caller's n-th task; no two are alike.
pub(crate) fn new_task(template: &str, order: u64) -> pb::CreateTaskRequest {
    pb::CreateTaskRequest {
        namespace: NAMESPACE.to_owned(),
        name: template.to_owned(),
        context: format!(
            r#"{{"order_id":"o-{order}","customer":"c-{}","items":[{{"sku":"mug","quantity":{}}}]}}"#,
            order % 9_973,
            order % 7 + 1
        ),
        ..pb::CreateTaskRequest::default()
    }
}

/// Orders are numbered through, over all callers of a run.
pub(crate) type Orders = Arc<AtomicU64>;

/// Checks that the reply shows a task; answers with its id.
pub(crate) fn created(reply: tonic::Response<pb::CreateTaskResponse>) -> Result<String> {
    let task = reply.into_inner().task.ok_or_else(|| wrong("CreateTask answered no task"))?;
    if task.task_uuid.is_empty() || task.namespace != NAMESPACE {
        return Err(wrong("CreateTask answered another task"));
    }
    Ok(task.task_uuid)
}

/// Creates tasks of one step.
#[derive(Debug)]
pub(crate) struct Creator {
    client: TaskServiceClient<Transport>,
    template: &'static str,
    orders: Orders,
    /// Room for tasks that are not complete yet; a worker gives it back.
    room: Option<Arc<Semaphore>>,
}

impl Creator {
    /// All callers, spread over the connections.
    pub(crate) fn all(
        connections: &[Client],
        template: &'static str,
        orders: &Orders,
        room: Option<&Arc<Semaphore>>,
    ) -> Vec<Self> {
        let clients = connections.iter().cycle().take(CALLERS);
        clients
            .map(|client| Self {
                client: client.tasks(),
                template,
                orders: Arc::clone(orders),
                room: room.cloned(),
            })
            .collect()
    }
}

impl Caller for Creator {
    async fn call(&mut self) -> Result {
        if let Some(room) = &self.room {
            let place = room.acquire().await.map_err(|_| wrong("the worker has ended"))?;
            place.forget();
        }
        let order = self.orders.fetch_add(1, Ordering::Relaxed);
        let reply = self.client.create_task(new_task(self.template, order)).await;
        created(reply.map_err(refused("CreateTask"))?).map(drop)
    }
}

/// Reads tasks, each time another one.
#[derive(Debug)]
pub(crate) struct Reader {
    client: TaskServiceClient<Transport>,
    ids: Arc<[String]>,
    next: usize,
}

impl Reader {
    /// All callers, spread over the connections and over the tasks.
    pub(crate) fn all(connections: &[Client], ids: &Arc<[String]>) -> Vec<Self> {
        let clients = connections.iter().cycle().take(CALLERS).enumerate();
        clients
            .map(|(at, client)| Self {
                client: client.tasks(),
                ids: Arc::clone(ids),
                next: at * ids.len() / CALLERS,
            })
            .collect()
    }
}

impl Caller for Reader {
    async fn call(&mut self) -> Result {
        let id = self.ids.get(self.next % self.ids.len()).cloned().unwrap_or_default();
        self.next += 1;
        let request = pb::GetTaskRequest { task_uuid: id.clone() };
        let reply = self.client.get_task(request).await.map_err(refused("GetTask"))?;
        match reply.into_inner().task {
            Some(task) if task.task_uuid == id => Ok(()),
            Some(_) | None => Err(wrong("GetTask answered another task")),
        }
    }
}
