//! A server with something in it, and for each RPC a request that succeeds
//! for who may call it.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use bailiwick::pb::v1 as pb;
use bailiwick_client::{Auth, Client};
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::{
    call::{self, Answer, Seen, Surface},
    callers::{Caller, Kind},
    written,
};
use crate::harness::{self, Server, Setup, credentials::Token};

const NAMESPACE: &str = "shop";
const TEMPLATE: &str = "name: matrix\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n  - name: only\n    handler: {callable: work}\n";
/// A job, a rule, and a time at which nothing happens in these tests.
const JOB: &str = "shop.matrix";
const RULE: &str = "rule.shop.matrix";
const LATER: &str = "2199-01-01";

/// An RPC by one surface.
#[derive(Clone, Debug)]
pub struct Target {
    pub rpc: String,
    pub surface: Surface,
    /// Instead of the usual request.
    request: Option<Value>,
}

/// A server with a template, a worker and a task.
pub struct World {
    server: Server,
    root: Client,
    channel: Channel,
    http: reqwest::Client,
    task: String,
    step: String,
    /// A lease of root's on the shared task.
    lease: String,
    /// A minted token's prefix, and an API key's id in the namespace.
    token: String,
    key: String,
    /// Somebody's request for more rights, which nobody has decided.
    elevation: String,
    fresh: AtomicU64,
}

/// Somebody asks for `tasks:read` for a while; answers the request's id.
async fn asked(server: &Server, subject: &str) -> String {
    let token = Token::new(subject, &["steps:read"]).sign();
    let request = pb::RequestElevationRequest {
        permissions: vec!["tasks:read".into()],
        namespace: NAMESPACE.into(),
        seconds: 60,
        reason: "matrix".into(),
    };
    let client = server.client(Auth::Bearer(token)).await;
    let asked = client.auth_admin().request_elevation(request).await.unwrap().into_inner();
    asked.elevation.unwrap().id
}

impl World {
    pub async fn build() -> Self {
        Self::with(String::new()).await
    }

    /// With more of a configuration.
    pub async fn with(rest: String) -> Self {
        let server = "config_endpoint_enabled = true\n".to_owned();
        // Most calls here fail, all from one address.
        let rest = format!(
            "[limits]\nfailed_auth_per_minute = 0\nfailed_introspections_per_minute = 0\n{rest}"
        );
        let setup = Setup { server, rest, ..Setup::default() };
        let server = Server::with(setup).await;
        let root = server.root().await;
        let channel = Channel::from_shared(server.grpc_url()).unwrap().connect().await.unwrap();
        let request = pb::RegisterTemplateRequest {
            namespace: NAMESPACE.into(),
            definition: TEMPLATE.into(),
        };
        root.templates().register_template(request).await.unwrap();
        let worker = pb::RegisterWorkerRequest {
            namespace: NAMESPACE.into(),
            name: "known".into(),
            handlers: vec!["work".into()],
            version: None,
        };
        root.workers().register_worker(worker).await.unwrap();
        let mut world = Self {
            server,
            root,
            channel,
            http: harness::http(),
            task: String::new(),
            step: String::new(),
            lease: String::new(),
            token: String::new(),
            key: String::new(),
            elevation: String::new(),
            fresh: AtomicU64::new(0),
        };
        (world.task, world.step) = world.fresh_task().await;
        world.lease = lease(&world.root).await;
        world.token = world.used_token().await;
        world.key = world.fresh_key().await;
        world.elevation = asked(&world.server, "asker").await;
        world.set_job(JOB).await;
        world.set_rule(RULE).await;
        world
    }

    /// The file of the store.
    pub fn database(&self) -> PathBuf {
        self.server.path("data/bailiwick.db")
    }

    /// Each RPC of ours by each of its surfaces.
    pub fn targets() -> Vec<Target> {
        let ours = written().into_keys().filter(|rpc| rpc.starts_with("bailiwick."));
        ours.flat_map(|rpc| {
            call::surfaces(&rpc).into_iter().map(move |surface| Target {
                rpc: rpc.clone(),
                surface,
                request: None,
            })
        })
        .collect()
    }

    /// Keeps the shared lease alive, however long the matrix takes.
    pub async fn heartbeat(&self) {
        let request = pb::HeartbeatStepRequest { lease_id: self.lease.clone() };
        let answer = self.root.workers().heartbeat_step(request).await.unwrap().into_inner();
        assert_eq!(answer.state(), pb::LeaseState::Held);
    }

    async fn fresh_task(&self) -> (String, String) {
        let request = pb::CreateTaskRequest {
            namespace: NAMESPACE.into(),
            name: "matrix".into(),
            ..pb::CreateTaskRequest::default()
        };
        let task = self.root.tasks().create_task(request).await.unwrap().into_inner();
        let task = task.task.unwrap().task_uuid;
        let request = pb::ListStepsRequest { task_uuid: task.clone(), ..Default::default() };
        let steps = self.root.steps().list_steps(request).await.unwrap().into_inner().steps;
        (task, steps[0].step_uuid.clone())
    }

    async fn fresh_token(&self) -> String {
        let request =
            pb::MintTokenRequest { scopes: vec!["tasks:read".into()], ..Default::default() };
        self.root.auth_admin().mint_token(request).await.unwrap().into_inner().prefix
    }

    /// A token that has exercised one permission of its two.
    async fn used_token(&self) -> String {
        let scopes = vec!["tasks:read".into(), "tasks:list".into()];
        let request = pb::MintTokenRequest { scopes, ..Default::default() };
        let minted = self.root.auth_admin().mint_token(request).await.unwrap().into_inner();
        let client = self.server.client(Auth::Bearer(minted.token)).await;
        client.tasks().list_tasks(pb::ListTasksRequest::default()).await.unwrap();
        minted.prefix
    }

    async fn fresh_key(&self) -> String {
        let request = pb::CreateApiKeyRequest {
            name: "matrix".into(),
            scopes: vec!["tasks:read".into()],
            namespaces: vec![NAMESPACE.into()],
            ..Default::default()
        };
        self.root.auth_admin().create_api_key(request).await.unwrap().into_inner().id
    }

    /// Everything that a call could change, as root sees it.
    pub async fn state(&self) -> Value {
        let mut state = Vec::new();
        for path in [
            "/v1/tasks?page_size=500",
            "/v1/templates?page_size=500",
            "/v1/workers?page_size=500",
            "/v1/auth/tokens?page_size=500",
            "/v1/api-keys?page_size=500",
            "/v1/jobs?page_size=500",
            "/v1/rules?page_size=500",
            "/v1/auth/elevations",
        ] {
            let answer = self.server.rest(reqwest::Method::GET, path).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let mut answer = answer.json::<Value>().await.unwrap();
            for list in ["tokens", "api_keys"] {
                for one in answer[list].as_array_mut().into_iter().flatten() {
                    // It goes on with the time.
                    one.as_object_mut().unwrap().remove("idle_seconds");
                }
            }
            state.push(answer);
        }
        let steps = format!("/v1/tasks/{}/workflow_steps", self.task);
        let answer = self.server.rest(reqwest::Method::GET, &steps).send().await.unwrap();
        state.push(answer.json().await.unwrap());
        state.into()
    }

    /// Makes the call; where it succeeds and uses something up, on something
    /// fresh of the caller's own.
    pub async fn call(&self, target: &Target, caller: &Caller, succeeds: bool) -> Seen {
        let seen = self.answer(target, caller, succeeds).await;
        // No job here has run: the history of one that may be seen is empty.
        let history = target.rpc.ends_with("/ListJobRuns") && seen.kind == Answer::Empty;
        if history { Seen { kind: Answer::Ok, ..seen } } else { seen }
    }

    async fn answer(&self, target: &Target, caller: &Caller, succeeds: bool) -> Seen {
        let request = self.request(&target.rpc, caller, succeeds).await;
        if target.surface == Surface::Grpc {
            return call::seen(&call::grpc(&self.channel, &target.rpc, &request, caller).await);
        }
        let base = format!("http://{}", self.server.http);
        let list = call::list_of(&target.rpc);
        call::rest_seen(
            call::rest(&self.http, &base, &target.surface, &request, caller),
            list.as_deref(),
        )
        .await
    }

    async fn request(&self, rpc: &str, caller: &Caller, succeeds: bool) -> Value {
        let method = rpc.rsplit_once('/').unwrap().1;
        let number = self.fresh.fetch_add(1, Ordering::Relaxed);
        let consumes = [
            "CancelTask",
            "ResolveStep",
            "HeartbeatStep",
            "CompleteStep",
            "FailStep",
            "LeaseSteps",
        ];
        let (task, step) = if succeeds && consumes.contains(&method) {
            self.fresh_task().await
        } else {
            (self.task.clone(), self.step.clone())
        };
        let lease = match method {
            "HeartbeatStep" | "CompleteStep" | "FailStep"
                if succeeds && caller.kind == Kind::Known =>
            {
                lease(&self.client(caller).await).await
            }
            _ => self.lease.clone(),
        };
        if let Some(request) = self.credential(method, succeeds).await {
            return request;
        }
        if let Some(request) = self.scheduled(method, succeeds).await {
            return request;
        }
        if let Some(request) = self.lent(method, caller, succeeds).await {
            return request;
        }
        match method {
            "CreateTask" => json!({"namespace": NAMESPACE, "name": "matrix"}),
            "GetTask" | "WatchTask" | "GetTaskContext" | "ListSteps" | "CancelTask" => {
                json!({"task_uuid": task})
            }
            "GetStep" | "GetStepAudit" => json!({"task_uuid": task, "step_uuid": step}),
            "ResolveStep" => json!({
                "task_uuid": task, "step_uuid": step,
                "action_type": "STEP_ACTION_RESOLVE_MANUALLY", "reason": "matrix",
            }),
            "RegisterTemplate" => json!({
                "namespace": NAMESPACE,
                "definition": TEMPLATE.replace("1.0.0", &format!("1.0.{number}")),
            }),
            "ValidateTemplate" => json!({"namespace": NAMESPACE, "definition": TEMPLATE}),
            "GetTemplate" => json!({"namespace": NAMESPACE, "name": "matrix", "version": "1.0.0"}),
            "RegisterWorker" => {
                json!({"namespace": NAMESPACE, "name": format!("w{number}"), "handlers": ["work"]})
            }
            "StreamWork" => {
                json!({"open": {"namespace": NAMESPACE, "name": "w", "handlers": ["other"]}})
            }
            "LeaseSteps" => json!({"namespace": NAMESPACE, "handlers": ["work"]}),
            "HeartbeatStep" | "CompleteStep" => json!({"lease_id": lease}),
            "FailStep" => json!({"lease_id": lease, "error": "matrix"}),
            // Not the records of the caller's own calls.
            "SearchAudit" => json!({"namespace": NAMESPACE}),
            // What was before: else it has nothing to say.
            "StreamAudit" => json!({"after_seq": "0"}),
            "CanI" => json!({"actions": [{"permission": "tasks:create"}]}),
            "WhoCan" => json!({"permission": "tasks:create", "namespace": NAMESPACE}),
            "ExplainDecision" => json!({"request_id": self.own_decision(caller).await}),
            _ => json!({}),
        }
    }

    /// The requests about what others' credentials are worth, and about rights
    /// that are traded or lent; none for other methods.
    async fn lent(&self, method: &str, caller: &Caller, succeeds: bool) -> Option<Value> {
        Some(match method {
            "Introspect" => json!({"token": "garbage"}),
            "Check" => json!({"token": "garbage", "permission": "tasks:read"}),
            "CheckBatch" => {
                json!({"token": "garbage", "questions": [{"permission": "tasks:read"}]})
            }
            "ExchangeToken" => {
                let held = caller.permissions.iter();
                let held = held.map(|name| if name == "*" { "tasks:list" } else { name });
                json!({
                    "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
                    "scope": held.collect::<Vec<_>>().join(" "),
                })
            }
            "RequestElevation" => json!({
                "permissions": ["tasks:read"], "namespace": NAMESPACE, "seconds": 60,
                "reason": "matrix",
            }),
            "ApproveElevation" | "DenyElevation" | "RevokeElevation" if succeeds => {
                let number = self.fresh.fetch_add(1, Ordering::Relaxed);
                json!({"id": asked(&self.server, &format!("asker-{number}")).await})
            }
            "ApproveElevation" | "DenyElevation" | "RevokeElevation" => {
                json!({"id": self.elevation})
            }
            _ => return None,
        })
    }

    /// The id of a call that the caller made; of none for a stranger.
    async fn own_decision(&self, caller: &Caller) -> String {
        if caller.header.is_none() {
            return "3b241101-e2bb-4255-8caf-4136c566a962".to_owned();
        }
        let asked = self.client(caller).await.access().who_am_i(pb::WhoAmIRequest {}).await;
        let said = match &asked {
            Ok(answer) => answer.metadata().get("x-request-id"),
            Err(refused) => refused.metadata().get("x-request-id"),
        };
        said.unwrap().to_str().unwrap().to_owned()
    }

    /// The requests about credentials; none for other methods.
    async fn credential(&self, method: &str, succeeds: bool) -> Option<Value> {
        let (token, key) = match method {
            "RevokeToken" | "RotateToken" if succeeds => (self.fresh_token().await, String::new()),
            "RevokeApiKey" if succeeds => (String::new(), self.fresh_key().await),
            "DeleteApiKey" if succeeds => {
                let id = self.fresh_key().await;
                let request = pb::RevokeApiKeyRequest { id: id.clone(), cascade: false };
                self.root.auth_admin().revoke_api_key(request).await.unwrap();
                (String::new(), id)
            }
            _ => (self.token.clone(), self.key.clone()),
        };
        Some(match method {
            "MintToken" => json!({"scopes": ["tasks:read"]}),
            "GetToken" | "RevokeToken" | "RotateToken" => json!({"prefix": token}),
            "TightenToken" => json!({"prefix": token, "dry_run": true}),
            "RevokeSubject" => json!({"issuer": "bailiwick", "subject": "matrix"}),
            "CreateApiKey" => json!({
                "name": "matrix", "scopes": ["api_keys:admin"], "namespaces": [NAMESPACE],
            }),
            "GetApiKey" | "RevokeApiKey" | "DeleteApiKey" => json!({"id": key}),
            "RetireSigningKey" => json!({"kid": self.signing_key().await}),
            _ => return None,
        })
    }

    /// The id of a signing key that another one has replaced.
    async fn signing_key(&self) -> String {
        let mut made = Vec::new();
        for _ in 0..2 {
            let request = pb::CreateSigningKeyRequest::default();
            let answer = self.root.auth_admin().create_signing_key(request).await.unwrap();
            made.push(answer.into_inner().key.unwrap().kid);
        }
        made.remove(0)
    }

    /// The requests about jobs and rules; none for other methods.
    async fn scheduled(&self, method: &str, succeeds: bool) -> Option<Value> {
        let number = self.fresh.fetch_add(1, Ordering::Relaxed);
        let fresh = format!("shop.fresh{number}");
        Some(match method {
            "SetJob" => json!({"id": fresh, "execution": LATER}),
            "SetRule" => json!({"id": fresh, "pattern": format!("{fresh}."), "runner": {
                "type": "RUNNER_TYPE_HTTP", "method": "GET", "url": "https://example.com/",
            }}),
            "RemoveJob" if succeeds => {
                self.set_job(&fresh).await;
                json!({"id": fresh})
            }
            "RemoveRule" if succeeds => {
                self.set_rule(&fresh).await;
                json!({"id": fresh})
            }
            "GetJob" | "RemoveJob" | "ResumeJob" | "ListJobRuns" => json!({"id": JOB}),
            "GetRule" | "RemoveRule" => json!({"id": RULE}),
            "PreviewRecurrence" => json!({"recurrence": "every 15m"}),
            _ => return None,
        })
    }

    async fn set_job(&self, id: &str) {
        let request =
            pb::SetJobRequest { id: id.into(), execution: LATER.into(), ..Default::default() };
        self.root.schedules().set_job(request).await.unwrap();
    }

    async fn set_rule(&self, id: &str) {
        let request = pb::SetRuleRequest {
            id: id.into(),
            pattern: format!("{id}."),
            runner: Some(pb::Runner {
                r#type: pb::RunnerType::Http.into(),
                method: Some("GET".into()),
                url: Some("https://example.com/".into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.root.schedules().set_rule(request).await.unwrap();
    }

    async fn client(&self, caller: &Caller) -> Client {
        let (name, value) = caller.header.clone().unwrap();
        let auth = match value.strip_prefix("Bearer ") {
            Some(token) => Auth::Bearer(token.to_owned()),
            None => Auth::ApiKey { key: value, header: Some(name.to_owned()) },
        };
        self.server.client(auth).await
    }

    /// The same call on an object that does not exist; none for RPCs that
    /// name no object.
    pub fn absent(&self, target: &Target) -> Option<Target> {
        let shared = self.shared(&target.rpc)?;
        // The same namespace number and the same time: only the rest differs.
        let other = |id: &str| {
            let last = if id.ends_with('0') { "1" } else { "0" };
            format!("{}{last}", &id[..id.len() - 1])
        };
        let mut request = shared;
        for field in ["task_uuid", "lease_id", "id"] {
            if let Some(Value::String(id)) = request.get_mut(field) {
                *id = other(id);
            }
        }
        Some(Target { request: Some(request), ..target.clone() })
    }

    fn shared(&self, rpc: &str) -> Option<Value> {
        let (task, step, lease) = (&self.task, &self.step, &self.lease);
        match rpc.rsplit_once('/').unwrap().1 {
            "GetTask" | "WatchTask" | "GetTaskContext" | "ListSteps" | "CancelTask" => {
                Some(json!({"task_uuid": task}))
            }
            "GetStep" | "GetStepAudit" => Some(json!({"task_uuid": task, "step_uuid": step})),
            "ResolveStep" => Some(json!({
                "task_uuid": task, "step_uuid": step,
                "action_type": "STEP_ACTION_RESOLVE_MANUALLY", "reason": "matrix",
            })),
            "HeartbeatStep" | "CompleteStep" => Some(json!({"lease_id": lease})),
            "FailStep" => Some(json!({"lease_id": lease, "error": "matrix"})),
            "GetApiKey" | "RevokeApiKey" | "DeleteApiKey" => Some(json!({"id": self.key})),
            "GetJob" | "RemoveJob" | "ResumeJob" | "ListJobRuns" => Some(json!({"id": JOB})),
            "GetRule" | "RemoveRule" => Some(json!({"id": RULE})),
            _ => None,
        }
    }

    /// Everything that a caller can see of an answer, without the request's
    /// id, times and the id that was asked for.
    pub async fn raw(&self, target: &Target, caller: &Caller) -> String {
        let request = target.request.clone().or_else(|| self.shared(&target.rpc)).unwrap();
        let mut text = if target.surface == Surface::Grpc {
            let answer = call::grpc(&self.channel, &target.rpc, &request, caller).await;
            let status = answer.expect_err("hidden");
            let mut headers = status.metadata().clone().into_headers();
            let id = headers.remove("x-request-id").unwrap();
            headers.remove("date");
            // The details hold the id too: compare what they say besides.
            let details =
                String::from_utf8_lossy(status.details()).replace(id.to_str().unwrap(), "ID");
            let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
            names.sort();
            format!("{:?} {} {names:?} {details}", status.code(), status.message())
        } else {
            let base = format!("http://{}", self.server.http);
            let answer = call::rest(&self.http, &base, &target.surface, &request, caller)
                .send()
                .await
                .unwrap();
            let mut headers = answer.headers().clone();
            let id = headers.remove("x-request-id").unwrap();
            headers.remove("date");
            let status = answer.status();
            let body = answer.text().await.unwrap().replace(id.to_str().unwrap(), "ID");
            format!("{status} {headers:?} {body}")
        };
        for field in ["task_uuid", "step_uuid", "lease_id", "id"] {
            if let Some(Value::String(id)) = request.get(field) {
                text = text.replace(id.as_str(), field);
            }
        }
        text
    }
}

async fn lease(client: &Client) -> String {
    let request = pb::LeaseStepsRequest {
        namespace: NAMESPACE.into(),
        handlers: vec!["work".into()],
        max_leases: 1,
        wait_ms: 5_000,
        worker: None,
    };
    let leases = client.workers().lease_steps(request).await.unwrap().into_inner().leases;
    leases[0].lease_id.clone()
}
