//! What tests of tasks do again and again, over gRPC as one principal in the
//! namespace `shop`.

use std::time::Duration;

use bailiwick::pb::v1 as pb;
use bailiwick_client::{Auth, Client, Error, Refusal};

use super::{PATIENCE, Server};

/// The namespace of these calls.
pub const NAMESPACE: &str = "shop";

/// Four steps, whose handlers have their names.
pub const DIAMOND: &str = "\
name: diamond
namespace_name: shop
version: 1.0.0
steps:
  - name: top
    handler: {callable: top}
  - name: left
    handler: {callable: left}
    dependencies: [top]
  - name: right
    handler: {callable: right}
    dependencies: [top]
  - name: bottom
    handler: {callable: bottom}
    dependencies: [left, right]
";

/// A template of the namespace `shop` with these steps.
pub fn yaml(name: &str, steps: &str) -> String {
    format!("name: {name}\nnamespace_name: {NAMESPACE}\nversion: 1.0.0\nsteps:\n{steps}")
}

/// One step whose handler has the template's name.
pub fn one(name: &str) -> String {
    yaml(name, &format!("  - name: only\n    handler: {{callable: {name}}}\n"))
}

/// The calls of one principal.
#[derive(Clone, Debug)]
pub struct Api {
    pub client: Client,
}

/// The refusal, which must be one of the server's.
pub fn refusal<T: std::fmt::Debug>(answer: Result<T, Error>) -> Refusal {
    match answer {
        Err(Error::Refused(refusal)) => *refusal,
        other => panic!("not refused: {other:?}"),
    }
}

/// The reason of a refusal.
pub fn reason<T: std::fmt::Debug>(answer: Result<T, Error>) -> String {
    refusal(answer).reason.unwrap()
}

impl Api {
    /// Root's.
    pub async fn root(server: &Server) -> Self {
        Self { client: server.root().await }
    }

    /// Somebody's.
    pub async fn of(server: &Server, auth: Auth) -> Self {
        Self { client: server.client(auth).await }
    }

    pub async fn try_register(
        &self,
        definition: &str,
    ) -> Result<pb::RegisterTemplateResponse, Error> {
        let request = pb::RegisterTemplateRequest {
            namespace: NAMESPACE.into(),
            definition: definition.into(),
        };
        Ok(self.client.templates().register_template(request).await?.into_inner())
    }

    pub async fn register(&self, definition: &str) {
        self.try_register(definition).await.unwrap();
    }

    pub async fn try_create(&self, request: pb::CreateTaskRequest) -> Result<pb::Task, Error> {
        Ok(self.client.tasks().create_task(request).await?.into_inner().task.unwrap())
    }

    /// Creates a task of the newest version without a context.
    pub async fn create(&self, name: &str) -> pb::Task {
        self.try_create(request(name)).await.unwrap()
    }

    pub async fn try_task(&self, task: &str) -> Result<pb::Task, Error> {
        let request = pb::GetTaskRequest { task_uuid: task.into() };
        Ok(self.client.tasks().get_task(request).await?.into_inner().task.unwrap())
    }

    pub async fn task(&self, task: &str) -> pb::Task {
        self.try_task(task).await.unwrap()
    }

    pub async fn cancel(&self, task: &str) -> Result<pb::Task, Error> {
        let request =
            pb::CancelTaskRequest { task_uuid: task.into(), reason: Some("a test".into()) };
        Ok(self.client.tasks().cancel_task(request).await?.into_inner().task.unwrap())
    }

    /// All steps of a task, of which there is one page.
    pub async fn steps(&self, task: &str) -> Vec<pb::Step> {
        let request =
            pb::ListStepsRequest { task_uuid: task.into(), page_size: 500, ..Default::default() };
        self.client.steps().list_steps(request).await.unwrap().into_inner().steps
    }

    pub async fn step(&self, task: &str, name: &str) -> pb::Step {
        let steps = self.steps(task).await;
        steps.into_iter().find(|step| step.name == name).unwrap()
    }

    pub async fn audit(&self, task: &str, step: &str) -> Vec<pb::StepAuditEntry> {
        let request = pb::GetStepAuditRequest { task_uuid: task.into(), step_uuid: step.into() };
        self.client.steps().get_step_audit(request).await.unwrap().into_inner().entries
    }

    /// Why a step changed, oldest first.
    pub async fn causes(&self, task: &str, step: &str) -> Vec<String> {
        self.audit(task, step).await.into_iter().map(|entry| entry.cause).collect()
    }

    pub async fn resolve(
        &self,
        step: &pb::Step,
        action: pb::StepAction,
        result: Option<&str>,
    ) -> Result<pb::Step, Error> {
        let request = pb::ResolveStepRequest {
            task_uuid: step.task_uuid.clone(),
            step_uuid: step.step_uuid.clone(),
            action_type: action.into(),
            reason: "a test".into(),
            completion_data: result.map(|result| pb::CompletionData { result: result.into() }),
        };
        Ok(self.client.steps().resolve_step(request).await?.into_inner().step.unwrap())
    }

    pub async fn try_lease(
        &self,
        handlers: &[&str],
        max_leases: u32,
        wait: Duration,
    ) -> Result<Vec<pb::Lease>, Error> {
        let request = pb::LeaseStepsRequest {
            namespace: NAMESPACE.into(),
            handlers: handlers.iter().map(|&name| name.to_owned()).collect(),
            max_leases,
            wait_ms: wait.as_millis().try_into().unwrap(),
            worker: None,
        };
        Ok(self.client.workers().lease_steps(request).await?.into_inner().leases)
    }

    /// What is ready now.
    pub async fn lease_now(&self, handler: &str) -> Vec<pb::Lease> {
        self.try_lease(&[handler], 100, Duration::ZERO).await.unwrap()
    }

    /// The next step of a handler, which must come.
    pub async fn lease(&self, handler: &str) -> pb::Lease {
        let leases = self.try_lease(&[handler], 1, PATIENCE).await.unwrap();
        leases.into_iter().next().unwrap_or_else(|| panic!("no step of `{handler}`"))
    }

    /// Whether the same had been taken before.
    pub async fn try_complete(&self, lease: &pb::Lease, result: &str) -> Result<bool, Error> {
        let request =
            pb::CompleteStepRequest { lease_id: lease.lease_id.clone(), result: result.into() };
        Ok(self.client.workers().complete_step(request).await?.into_inner().already)
    }

    pub async fn complete(&self, lease: &pb::Lease, result: &str) {
        assert!(!self.try_complete(lease, result).await.unwrap());
    }

    pub async fn try_fail(
        &self,
        lease: &pb::Lease,
        error: &str,
        retryable: bool,
    ) -> Result<pb::FailStepResponse, Error> {
        let request = pb::FailStepRequest {
            lease_id: lease.lease_id.clone(),
            error: error.into(),
            retryable: Some(retryable),
        };
        Ok(self.client.workers().fail_step(request).await?.into_inner())
    }

    /// Answers the step's state.
    pub async fn fail(&self, lease: &pb::Lease, error: &str, retryable: bool) -> String {
        self.try_fail(lease, error, retryable).await.unwrap().step_state
    }

    pub async fn heartbeat(&self, lease: &pb::Lease) -> pb::HeartbeatStepResponse {
        let request = pb::HeartbeatStepRequest { lease_id: lease.lease_id.clone() };
        self.client.workers().heartbeat_step(request).await.unwrap().into_inner()
    }

    /// All tasks, through all pages.
    pub async fn list(&self, filter: pb::ListTasksRequest) -> Vec<pb::Task> {
        let mut tasks = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = pb::ListTasksRequest { page_token, ..filter.clone() };
            let page = self.client.tasks().list_tasks(request).await.unwrap().into_inner();
            tasks.extend(page.tasks);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return tasks;
            }
        }
    }
}

/// A task of the newest version without a context.
pub fn request(name: &str) -> pb::CreateTaskRequest {
    pb::CreateTaskRequest { namespace: NAMESPACE.into(), name: name.into(), ..Default::default() }
}
