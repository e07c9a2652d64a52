//! A credential that is taken back, as its holder sees it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bailiwick_client::{Auth, Client, pb::v1 as pb};
use tokio::{task::JoinHandle, time::sleep};
use tonic::Code;

use super::{Bench, access::some_tasks};
use crate::{
    callers::Orders,
    error::{Result, refused, wrong},
    figure::{Figure, Measured, median},
    server::{Access, ISSUER, NAMESPACE, Setup},
};

/// How often a credential of each kind is taken back.
const ROUNDS: usize = 10;
/// Calls of which the baseline is the middle.
const CALLS: usize = 200;
/// How long stream and poll stand before the credential goes.
const STANDING: Duration = Duration::from_millis(300);
/// The last moment at which a round may see the end.
const AT_MOST: Duration = Duration::from_secs(20);
const POLL_MS: u32 = 60_000;

/// What one round saw, in milliseconds from the call that takes back.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Until that call's reply.
    reply: f64,
    /// Until a call was refused.
    call: f64,
    /// Calls that were let through behind the reply.
    late: u32,
    /// Until the watch ended.
    watch: f64,
    /// Until the poll ended.
    poll: f64,
}

impl Seen {
    fn last(&self) -> f64 {
        self.call.max(self.watch).max(self.poll)
    }
}

/// `revoke_seen_ms`: minted tokens, and JWTs that are recalled by subject.
pub(super) async fn seen(bench: &Bench) -> Result<Measured> {
    let setup = Setup::new(&bench.places, Access::Secured, None)?;
    let (server, _) = setup.serve(&bench.places).await?;
    let root = setup.connect(setup.root()).await?;
    setup.register(setup.root()).await?;
    let tasks = some_tasks(&root, &Orders::default()).await?;
    let task = tasks.first().cloned().ok_or_else(|| wrong("no task"))?;
    let base = round_trip(&root, &task).await?;
    let (mut minted, mut recalled) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (auth, prefix) = mint(&root, round).await?;
        let holder = Arc::new(setup.connect(&auth).await?);
        minted.push(take_back(&root, &holder, &task, TakeBack::Token(prefix)).await?);
        let subject = format!("bench-{round}");
        let holder = Arc::new(setup.connect(&setup.jwt_of(&subject)?).await?);
        recalled.push(take_back(&root, &holder, &task, TakeBack::Subject(subject)).await?);
    }
    server.stop().await?;
    let last = minted.iter().chain(&recalled).map(Seen::last).fold(0.0, f64::max);
    Ok(Measured::new(Figure::RevokeSeen, last, base)
        .note(shown("RevokeToken", &minted))
        .note(shown("RevokeSubject", &recalled)))
}

enum TakeBack {
    Token(String),
    Subject(String),
}

/// The middle of a call's time, in milliseconds.
pub(super) async fn round_trip(client: &Client, task: &str) -> Result<f64> {
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let begun = Instant::now();
        get(client, task).await.map_err(refused("GetTask"))?;
        times.push(millis(begun));
    }
    Ok(median(&times))
}

async fn mint(root: &Client, round: usize) -> Result<(Auth, String)> {
    let request = pb::MintTokenRequest {
        scopes: vec!["tasks:read".to_owned(), "work:lease".to_owned()],
        name: Some(format!("bench {round}")),
        ..pb::MintTokenRequest::default()
    };
    let minted = root.auth_admin().mint_token(request).await.map_err(refused("MintToken"))?;
    let minted = minted.into_inner();
    Ok((Auth::Bearer(minted.token), minted.prefix))
}

/// One round: a watch and a poll stand, the credential is taken back.
async fn take_back(
    root: &Client,
    holder: &Arc<Client>,
    task: &str,
    what: TakeBack,
) -> Result<Seen> {
    get(holder, task).await.map_err(refused("GetTask"))?;
    let watch = watch(holder, task).await?;
    let poll = poll(holder);
    sleep(STANDING).await;
    if watch.is_finished() || poll.is_finished() {
        return Err(wrong("the watch or the poll ended while the credential was good"));
    }
    let begun = Instant::now();
    match what {
        TakeBack::Token(prefix) => {
            let request = pb::RevokeTokenRequest { prefix, cascade: false };
            let reply = root.auth_admin().revoke_token(request).await;
            reply.map_err(refused("RevokeToken")).map(drop)?;
        }
        TakeBack::Subject(subject) => {
            let request = pb::RevokeSubjectRequest {
                issuer: ISSUER.to_owned(),
                subject: Some(subject),
                cascade: false,
            };
            let reply = root.auth_admin().revoke_subject(request).await;
            reply.map_err(refused("RevokeSubject")).map(drop)?;
        }
    }
    let reply = millis(begun);
    let mut late = 0;
    loop {
        match get(holder, task).await {
            Ok(()) if begun.elapsed() < AT_MOST => late += 1,
            Ok(()) => return Err(wrong("the credential still opens calls")),
            Err(status) if status.code() == Code::Unauthenticated => break,
            Err(status) => return Err(refused("GetTask")(status)),
        }
    }
    let call = millis(begun);
    let (watch, poll) = (ended(watch, begun).await?, ended(poll, begun).await?);
    Ok(Seen { reply, call, late, watch, poll })
}

async fn get(client: &Client, task: &str) -> Result<(), tonic::Status> {
    let request = pb::GetTaskRequest { task_uuid: task.to_owned() };
    client.tasks().get_task(request).await.map(drop)
}

/// Watches a task that does not end; answers how the watch ended, and when.
async fn watch(holder: &Client, task: &str) -> Result<JoinHandle<(Code, Instant)>> {
    let request = pb::WatchTaskRequest { task_uuid: task.to_owned(), after_seq: None };
    let reply = holder.tasks().watch_task(request).await.map_err(refused("WatchTask"))?;
    let mut events = reply.into_inner();
    Ok(tokio::spawn(async move {
        loop {
            match events.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return (Code::Ok, Instant::now()),
                Err(status) => return (status.code(), Instant::now()),
            }
        }
    }))
}

/// Waits for a step that never comes.
fn poll(holder: &Arc<Client>) -> JoinHandle<(Code, Instant)> {
    let holder = Arc::clone(holder);
    let request = pb::LeaseStepsRequest {
        namespace: NAMESPACE.to_owned(),
        handlers: vec!["nobodys".to_owned()],
        max_leases: 1,
        wait_ms: POLL_MS,
        worker: None,
    };
    tokio::spawn(async move {
        let reply = holder.workers().lease_steps(request).await;
        (reply.err().map_or(Code::Ok, |status| status.code()), Instant::now())
    })
}

/// Milliseconds until it was ended as it must be.
async fn ended(standing: JoinHandle<(Code, Instant)>, begun: Instant) -> Result<f64> {
    let end = tokio::time::timeout(AT_MOST, standing).await;
    let end = end.map_err(|_| wrong("a call that stood goes on"))?;
    match end.map_err(|error| wrong(format!("a call broke: {error}")))? {
        (Code::Unauthenticated, at) => Ok(at.duration_since(begun).as_secs_f64() * 1e3),
        (code, _) => Err(wrong(format!("a call that stood ended with {code:?}"))),
    }
}

fn millis(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

fn shown(name: &str, seen: &[Seen]) -> String {
    let most = |of: fn(&Seen) -> f64| seen.iter().map(of).fold(0.0, f64::max);
    format!(
        "{name}, {} times, at most: reply {:.1} ms, next call refused {:.1}, watch ended {:.1}, \
         poll ended {:.1}; calls let through behind the reply: {}",
        seen.len(),
        most(|seen| seen.reply),
        most(|seen| seen.call),
        most(|seen| seen.watch),
        most(|seen| seen.poll),
        seen.iter().map(|seen| seen.late).sum::<u32>(),
    )
}
