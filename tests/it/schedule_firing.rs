//! Jobs fire on a real server: what was due while it was down, what a kill
//! came over, and what its owner may not do any more. Jobs and rules are put
//! into the folder of a server that does not run.

use bailiwick::domain::audit::Origin;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bailiwick::{
    authz::{self, Standing},
    domain::{
        Clock, Grant, Namespace, PermissionSet, Principal, RequestId, Scope, Timestamp,
        permission::right::{RulesWrite, SchedulesWrite},
        principal::{GrantRef, Identity, Method, Source},
        schedule::{Identifier, Nanos, Runner},
        secret,
        task::RetryPolicy,
    },
    engine::{Engine, Floor, LeaseTerms},
    schedule::{
        Scheduler, Settings, Tools, When,
        jobs::{self, Plan},
        rules::{self, NewRule},
    },
    server::SystemClock,
    storage::{Store, sqlite},
};
use rusqlite::Connection;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::{sleep, timeout};

use crate::harness::{PATIENCE, ROOT_KEY, Server, Setup};

/// Nobody asks while jobs and rules are put in.
#[derive(Debug)]
struct Nobody;

impl Standing for Nobody {
    fn standing(&self, _grant: &GrantRef, _now: Timestamp) -> Option<Arc<Principal>> {
        None
    }
}

fn principal(source: Source, subject: &str, credential: &str) -> Arc<Principal> {
    Arc::new(Principal {
        identity: Identity { source, issuer: "".into(), subject: subject.into() },
        method: Method::ApiKey,
        grants: vec![Grant { permissions: PermissionSet::star(), scope: Scope::Everything }],
        not_after: None,
        credential_id: credential.into(),
        worker_scope: None,
        issued_at: None,
    })
}

fn call(principal: &Arc<Principal>, id: [u8; 16]) -> Arc<Origin> {
    Arc::new(Origin::new(Arc::clone(principal), "test".into(), RequestId::from_random(id)))
}

fn root() -> Arc<Principal> {
    let digest = Sha256::digest(ROOT_KEY.as_bytes()).into();
    principal(Source::Config, "root of the tests", &secret::id_of_stranger(&digest))
}

/// The folder of a server that does not run.
struct Folder {
    store: Arc<dyn Store>,
    scheduler: Arc<Scheduler>,
}

impl Folder {
    async fn of(server: &mut Server) -> Self {
        server.process.kill();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let floor = Floor::new();
        let settings = sqlite::Settings::new(server.path("data/bailiwick.db"));
        let opened =
            sqlite::Sqlite::open(settings, Arc::<Floor>::clone(&floor), Arc::clone(&clock));
        let store: Arc<dyn Store> = opened.await.unwrap();
        let engine =
            Engine::new(Arc::clone(&store), floor, Arc::clone(&clock), LeaseTerms::default());
        let (settings, tools) = (Settings::default(), Tools::default());
        let scheduler =
            Scheduler::open(Arc::clone(&store), engine, Arc::new(Nobody), clock, settings, tools);
        Self { scheduler: scheduler.await.unwrap(), store }
    }

    /// A rule for all jobs that makes tasks of the template `order`.
    async fn rule(&self, owner: &Arc<Principal>) {
        let claim = authz::claim::<RulesWrite>(&call(owner, [1; 16])).unwrap();
        let new = NewRule {
            id: Identifier::parse("orders").unwrap(),
            pattern: String::new(),
            runner: Runner::Task {
                namespace: Namespace::parse("shop").unwrap(),
                template: "order".into(),
                version: None,
            },
            retry: RetryPolicy { retryable: false, max_attempts: 1, ..RetryPolicy::default() },
        };
        rules::set(&self.scheduler, &claim, new).await.unwrap();
    }

    async fn job(&self, name: &str, after: Duration) {
        let nanos = Nanos::from(SystemClock.now().plus(after)).0;
        let plan = Plan { when: Some(When::parse(&nanos.to_string()).unwrap()), recurrence: None };
        jobs::set(&self.scheduler, &permit(name), &plan).await.unwrap();
    }

    async fn close(self) {
        drop(self.scheduler);
        self.store.close().await;
    }
}

fn permit(name: &str) -> authz::Permit<SchedulesWrite, Identifier> {
    let claim = authz::claim::<SchedulesWrite>(&call(&root(), [2; 16])).unwrap();
    claim.over(&Identifier::parse(name).unwrap()).unwrap()
}

/// The status and the reason of a job, as they are on disk.
fn status(server: &Server, name: &str) -> (u8, Option<String>) {
    let disk = Connection::open(server.path("data/bailiwick.db")).unwrap();
    disk.busy_timeout(Duration::from_secs(10)).unwrap();
    let row = disk.query_row("SELECT status, reason FROM job WHERE id = ?1", [name], |row| {
        Ok((row.get(0)?, row.get(1)?))
    });
    row.unwrap()
}

async fn until(server: &Server, name: &str, expected: u8) -> Option<String> {
    let reached = timeout(PATIENCE, async {
        loop {
            let (status, reason) = status(server, name);
            if status == expected {
                return reason;
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    let reached = reached.await;
    reached.unwrap_or_else(|_| panic!("{name} is {:?}", status(server, name)))
}

/// How many tasks there are by their reasons.
async fn tasks(server: &Server) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let mut token = String::new();
    loop {
        let path = format!("/v1/tasks?namespace=shop&page_size=500&page_token={token}");
        let (status, page) = server.as_root("GET", &path, None).await;
        assert_eq!(status, 200, "{page}");
        for task in page["tasks"].as_array().unwrap() {
            *counts.entry(task["reason"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        }
        token = page["next_page_token"].as_str().unwrap_or_default().to_owned();
        if token.is_empty() {
            return counts;
        }
    }
}

const EXECUTED: u8 = 2;
const HELD: u8 = 4;

#[tokio::test]
async fn issue5_a_killed_server_fires_each_job_once() {
    const JOBS: usize = 1_200;
    let mut server = Server::with(Setup::steady()).await.with_template().await;
    let folder = Folder::of(&mut server).await;
    folder.rule(&root()).await;
    for job in 0..JOBS {
        // Half of them were due while it was down, the others while it runs.
        let after = if job % 2 == 0 { 0 } else { u64::try_from(job).unwrap() * 3 };
        folder.job(&format!("s{}.{job}", job % 7), Duration::from_millis(after)).await;
    }
    folder.close().await;
    for pause in [0, 30, 100, 200, 400] {
        server = server.again().await;
        sleep(Duration::from_millis(pause)).await;
    }
    server = server.again().await;
    for job in 0..JOBS {
        until(&server, &format!("s{}.{job}", job % 7), EXECUTED).await;
    }
    let tasks = tasks(&server).await;
    assert_eq!((tasks.len(), tasks.values().max()), (JOBS, Some(&1)));
    server.assert_sound();
}

#[tokio::test]
async fn issue5_se_63_jobs_of_a_revoked_key_are_held_until_a_good_one_sets_the_rule() {
    let mut server = Server::with(Setup::steady()).await.with_template().await;
    let body = json!({"name": "ci", "scopes": ["rules:*", "tasks:create"], "namespaces": ["*"]});
    let (code, made) = server.as_root("POST", "/v1/api-keys", Some(body)).await;
    assert_eq!(code, 201, "{made}");
    let id = made["id"].as_str().unwrap();

    let folder = Folder::of(&mut server).await;
    folder.rule(&principal(Source::Database, id, id)).await;
    folder.job("shop.before", Duration::ZERO).await;
    folder.job("shop.after", Duration::from_secs(4)).await;
    folder.close().await;
    server = server.again().await;
    until(&server, "shop.before", EXECUTED).await;
    let (code, _) =
        server.as_root("POST", &format!("/v1/api-keys/{id}/revoke"), Some(json!({}))).await;
    assert_eq!(code, 200);
    let reason = until(&server, "shop.after", HELD).await;
    assert_eq!(reason.as_deref(), Some("authorization_revoked"));
    let line = server.logged("a job is held", &[("job", "\"shop.after\"")]).await;
    assert_eq!(line["credential"], id);
    assert_eq!(tasks(&server).await.len(), 1);

    let folder = Folder::of(&mut server).await;
    folder.rule(&root()).await;
    jobs::resume(&folder.scheduler, &permit("shop.after")).await.unwrap();
    folder.close().await;
    server = server.again().await;
    until(&server, "shop.after", EXECUTED).await;
    assert_eq!(tasks(&server).await.len(), 2);
    server.assert_sound();
}

#[tokio::test]
async fn issue5_the_health_and_the_figures_tell_of_the_scheduler() {
    let mut server = Server::with(Setup::steady()).await.with_template().await;
    let folder = Folder::of(&mut server).await;
    folder.rule(&root()).await;
    folder.job("a", Duration::ZERO).await;
    folder.close().await;
    server = server.again().await;
    until(&server, "a", EXECUTED).await;
    let (code, health) = server.as_root("GET", "/health/detailed", None).await;
    assert_eq!((code, &health["status"]), (200, &json!("healthy")), "{health}");
    let parts: &Value = &health["checks"]["scheduler"];
    assert_eq!(parts["status"], "healthy", "{health}");
    let line = "bailiwick_schedule_runs_total{runner=\"task\",outcome=\"executed\"}";
    timeout(PATIENCE, async {
        while server.figure(line).await != Some(1.0) {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(server.figure("bailiwick_schedule_lateness_seconds_count").await, Some(1.0));
    assert_eq!(server.figure("bailiwick_schedule_inflight_runs").await, Some(0.0));
}
