//! What is kept, and the operations on it, each of them atomic: when one
//! answers, its changes are on disk. No transaction crosses these traits.
//!
//! Not here: who may do what (`authz`), and when to do it (`engine`). Every
//! method that touches tenants' data takes a namespace or a scope; what lies
//! outside of it is answered as if it did not exist.

mod audit;
#[cfg(test)]
pub(crate) mod conformance;
mod credentials;
mod elevations;
mod schedules;
mod signing;
pub mod sqlite;
mod templates;
mod tenure;
pub mod token_file;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use thiserror::Error as ThisError;

pub use self::{
    audit::{
        AuditDraft, AuditKept, AuditLetGo, AuditRow, AuditSeal, AuditState, AuditStore, ChainHead,
        Untold,
    },
    credentials::{
        CredentialKind, CredentialRecord, CredentialStore, LastUses, PermissionUse, Recall,
    },
    elevations::ElevationStore,
    schedules::{JobChange, JobCounts, NextState, RUNS_KEPT, RunEnd, ScheduleStore},
    signing::{SigningKeyRecord, SigningKeyStore},
    templates::{Registered, TemplateRecord, TemplateStore},
    tenure::{LeaseTerms, NotSpawned, Spawn, TOKEN_LIFE, Tenure},
};
use crate::domain::{
    Area, Json, LeaseId, Namespace, Scope, StepId, StepNo, TaskId, Timestamp,
    history::{Attempt, Event, Stamp},
    principal::Identity,
    task::{Labels, StepCore, Task, TaskState},
};

/// Why the store failed; says what a caller can do about it.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The disk is full: free room and try again.
    #[error("the disk of the data folder is full")]
    Full(#[source] Source),
    /// The store takes no writes: its folder or file is read-only.
    #[error("the data folder is read-only")]
    ReadOnly(#[source] Source),
    /// The store is busy or going down: try again later.
    #[error("the store cannot take the change now")]
    Unavailable(#[source] Source),
    /// What is on disk cannot be right, or the store has a fault.
    #[error("the store is damaged or has a fault")]
    Broken(#[source] Source),
}

/// The cause of an error, for the log alone.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// What the store did, or why it could not.
pub type Result<T> = std::result::Result<T, Error>;

/// Where a list goes on: an opaque place of the store's own, text that sorts
/// nothing for callers. The use case binds it to query and caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// How many items at most.
    pub size: usize,
    /// Behind this place; none is the beginning.
    pub after: Option<String>,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page begins; none at the end.
    pub next: Option<String>,
}

/// A task to be made.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// What it is a run of; its namespace is the task's.
    pub template: Arc<TemplateRecord>,
    /// What the caller says about it.
    pub labels: Labels,
    /// −100 to 100, higher first.
    pub priority: i32,
    /// What the steps work on.
    pub context: Json,
    /// The W3C trace context of the creating call.
    pub traceparent: Option<Arc<str>>,
    /// SHA-256 of the request, by which a repeated one is known.
    pub fingerprint: [u8; 32],
    /// Random bits for the id.
    pub entropy: u32,
    /// The step that makes it, when one does.
    pub spawn: Option<Spawn>,
}

/// What became of a creation.
#[derive(Clone, Debug)]
pub enum Created {
    /// It is new.
    New(Box<Task>),
    /// The same request had made it before.
    Existing(Box<Task>),
    /// The key was used for another request.
    IdempotencyConflict,
    /// A step may not make it.
    NotSpawned(NotSpawned),
}

/// Which tasks to list; empty lists and none mean all.
#[derive(Clone, Debug, Default)]
pub struct TaskFilter {
    /// Of this namespace.
    pub namespace: Option<Namespace>,
    /// Of the template with this name.
    pub name: Option<String>,
    /// In one of these states.
    pub states: Vec<TaskState>,
    /// That a step of this task made.
    pub parent: Option<TaskId>,
    /// That descend from this task.
    pub root: Option<TaskId>,
}

/// A step as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the state machine sees.
    pub core: StepCore,
    /// Its id.
    pub id: StepId,
    /// Its name.
    pub name: Arc<str>,
    /// The handler that does the work.
    pub handler: Arc<str>,
    /// The names of the steps that it waits for.
    pub depends_on: Vec<Arc<str>>,
    /// Its result once it is complete; null is none.
    pub result: Option<Json>,
    /// What the last failed attempt said.
    pub last_error: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When the present or last attempt began.
    pub started_at: Option<Timestamp>,
    /// When it became final.
    pub completed_at: Option<Timestamp>,
}

/// A step's name and state in a snapshot, without payloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepBrief {
    /// Its id.
    pub id: StepId,
    /// Its name.
    pub name: Arc<str>,
    /// What the state machine sees.
    pub core: StepCore,
}

/// What became of a cancellation.
#[derive(Clone, Debug)]
pub enum Cancelled {
    /// It is cancelled, now or since before.
    Done(Box<Task>),
    /// It had ended otherwise.
    Final(TaskState),
}

/// An operator's order to cure a step.
#[derive(Clone, Debug)]
pub struct Order {
    /// Which step.
    pub step: StepId,
    /// How.
    pub cure: Cure,
    /// Why.
    pub reason: String,
}

/// How an operator cures a step.
#[derive(Clone, Debug)]
pub enum Cure {
    /// New attempts.
    Reset,
    /// Go on without it.
    Resolve,
    /// Complete it with this result.
    Complete(Json),
}

/// What became of a cure.
#[derive(Clone, Debug)]
pub enum Cured {
    /// It took effect.
    Done(Box<Step>),
    /// The step's or the task's state does not allow it; says so.
    Refused(String),
}

/// Tasks and their steps.
#[async_trait]
pub trait TaskStore: Send + Sync {
    /// Makes a task with its steps. Steps without dependencies are ready, and
    /// leased at once where the desk has a seat.
    async fn create(&self, task: NewTask, stamp: &Stamp, now: Timestamp) -> Result<Created>;

    /// What the task's idempotency key stands for already; none without a key
    /// or when it is new.
    async fn made_before(&self, task: NewTask) -> Result<Option<Created>>;

    /// One task.
    async fn task(&self, scope: &Scope, id: TaskId) -> Result<Option<Task>>;

    /// What it was created with.
    async fn context(&self, scope: &Scope, id: TaskId) -> Result<Option<(Namespace, Json)>>;

    /// Tasks in the scope, newest first.
    async fn tasks(&self, scope: &Scope, filter: &TaskFilter, page: &Page) -> Result<Listed<Task>>;

    /// A task with the names and states of its steps, as one moment saw it.
    async fn snapshot(&self, scope: &Scope, id: TaskId) -> Result<Option<(Task, Vec<StepBrief>)>>;

    /// A task's steps by number, with results.
    async fn steps(
        &self,
        scope: &Scope,
        id: TaskId,
        page: &Page,
    ) -> Result<Option<(Namespace, Listed<Step>)>>;

    /// One step, looked up under its task (SE-09).
    async fn step(
        &self,
        scope: &Scope,
        id: TaskId,
        step: StepId,
    ) -> Result<Option<(Namespace, Step)>>;

    /// The events behind a place, at most `limit`, oldest first.
    async fn events(
        &self,
        scope: &Scope,
        id: TaskId,
        after: i64,
        limit: usize,
    ) -> Result<Option<Vec<Event>>>;

    /// A step's events and finished attempts.
    async fn step_history(
        &self,
        scope: &Scope,
        id: TaskId,
        step: StepId,
    ) -> Result<Option<(Namespace, Vec<Event>, Vec<Attempt>)>>;

    /// Cancels a task and all that descends from it: open steps at once,
    /// leases with them.
    async fn cancel(
        &self,
        scope: &Scope,
        id: TaskId,
        reason: Option<&str>,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<Option<Cancelled>>;

    /// Cures a step by hand.
    async fn cure(
        &self,
        scope: &Scope,
        id: TaskId,
        order: Order,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<Option<Cured>>;
}

/// A place of a worker that waits for one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The desk's own number for it.
    pub ticket: u64,
    /// Who would hold the lease.
    pub holder: Identity,
    /// The worker's name, in its own words.
    pub worker: Option<Arc<str>>,
    /// Random bits for the lease's id.
    pub entropy: u64,
}

/// A step that a worker may do.
#[derive(Clone, Debug)]
pub struct Leased {
    /// Proves the lease.
    pub id: LeaseId,
    /// The task's namespace.
    pub namespace: Namespace,
    /// The step's id.
    pub step: StepId,
    /// The step's name.
    pub name: Arc<str>,
    /// The handler to run.
    pub handler: Arc<str>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The task's context.
    pub context: Json,
    /// The results of the direct parents by name; null for a resolved one.
    pub results: Vec<(Arc<str>, Json)>,
    /// The template; it has the handler's settings.
    pub template: Arc<TemplateRecord>,
    /// When the lease ends unless a heartbeat extends it.
    pub expires_at: Timestamp,
    /// When the attempt times out.
    pub timeout_at: Timestamp,
    /// The trace context of the task's creation.
    pub traceparent: Option<Arc<str>>,
}

/// Why a lease ended before its result came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// The task was cancelled.
    Cancelled,
    /// It expired or timed out, or an operator acted on the step.
    Lost,
}

/// What a commit did that others wait for.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// Leases for waiting workers.
    pub granted: Vec<(Seat, Leased)>,
    /// Leases that ended, with their holders.
    pub revoked: Vec<(LeaseId, Revocation)>,
    /// Tasks whose history grew.
    pub changed: Vec<TaskId>,
    /// Queues that have a ready step and found no seat.
    pub unserved: Vec<(Namespace, Arc<str>)>,
    /// The earliest moment at which something it made is due.
    pub due: Option<Timestamp>,
    /// The states in which tasks ended.
    pub finished: Vec<TaskState>,
    /// How many leases expired or timed out.
    pub expired: usize,
}

/// Where workers wait. The store asks it within an operation and tells it
/// after the commit, whether or not the caller still listens. It must answer
/// at once.
pub trait Desk: Send + Sync + fmt::Debug {
    /// Takes a seat that waits for this handler's steps in this namespace.
    fn take(&self, namespace: &Namespace, handler: &str) -> Option<Seat>;

    /// The operation that took the seat failed.
    fn give_back(&self, seat: Seat);

    /// The operation is on disk.
    fn committed(&self, effects: Effects);
}

/// What became of a worker's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// It is on disk; the step's state now.
    Done(crate::domain::task::StepState),
    /// The same report under the same lease had been taken before.
    Already(crate::domain::task::StepState),
    /// The lease has ended; the attempt to report is in the history.
    Dead,
}

/// What a worker says about an attempt.
#[derive(Clone, Debug)]
pub enum Report {
    /// It is done.
    Complete(Json),
    /// It failed.
    Fail {
        /// With what.
        error: String,
        /// Whether another attempt makes sense.
        retryable: bool,
        /// −100 to 100: per mille of jitter on the pause before the next one.
        jitter: i32,
    },
}

/// Where a lease stands after a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heartbeat {
    /// It holds until then.
    Held(Timestamp),
    /// The task was cancelled.
    Cancelled,
    /// It has ended otherwise.
    Lost,
}

/// The queue and its leases.
#[async_trait]
pub trait WorkStore: Send + Sync {
    /// Gives ready steps of these handlers in this area to seats of the desk,
    /// by priority and age, until one or the other runs out or `limit` is
    /// reached. The leases leave through [`Desk::committed`]; answers how many.
    async fn dispatch(
        &self,
        area: &Area,
        handlers: &[Arc<str>],
        limit: usize,
        now: Timestamp,
    ) -> Result<usize>;

    /// Takes a worker's report under a lease that this holder has or had;
    /// none when there never was one in its scope (SE-18).
    async fn report(
        &self,
        scope: &Scope,
        holder: &Identity,
        lease: LeaseId,
        report: Report,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<Option<Reported>>;

    /// Extends leases; none for one that this holder never had in its scope.
    async fn heartbeat(
        &self,
        scope: &Scope,
        holder: &Identity,
        leases: &[LeaseId],
        now: Timestamp,
    ) -> Result<Vec<Option<Heartbeat>>>;

    /// The lease of each of these steps that is in progress; none for one that
    /// is not, or lies outside of the scope.
    async fn tenures(
        &self,
        scope: &Scope,
        steps: &[(TaskId, StepNo)],
    ) -> Result<Vec<Option<Tenure>>>;

    /// Gives leased steps back that never reached their worker: the attempt
    /// is not used up.
    async fn release(&self, leases: &[LeaseId], now: Timestamp) -> Result<()>;

    /// Ends leases and begins attempts that are due, at most `limit`; answers
    /// when the next one is due.
    async fn expire(&self, limit: usize, jitter: i32, now: Timestamp) -> Result<Option<Timestamp>>;
}

/// A worker as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRecord {
    /// Where it works.
    pub area: Area,
    /// Its name, unique in the area for one principal.
    pub name: String,
    /// The handlers that it offers.
    pub handlers: Vec<String>,
    /// Its program's version, in its own words.
    pub version: Option<String>,
    /// Who it acts as.
    pub identity: Identity,
    /// When it was first seen.
    pub registered_at: Timestamp,
    /// When it was last heard of.
    pub last_seen_at: Timestamp,
    /// How many steps it holds now.
    pub leases: u32,
}

/// A handler that templates name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerRecord {
    /// The namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
    /// How many templates name it.
    pub templates: u32,
}

/// Workers and handlers.
#[async_trait]
pub trait WorkerStore: Send + Sync {
    /// Makes a worker known or says that it is still there.
    async fn register_worker(
        &self,
        worker: WorkerRecord,
        stamp: Option<&Stamp>,
    ) -> Result<WorkerRecord>;

    /// Workers whose whole area lies in the scope, the ones seen last first.
    async fn workers(
        &self,
        scope: &Scope,
        namespace: Option<&Area>,
        page: &Page,
    ) -> Result<Listed<WorkerRecord>>;

    /// Handlers that templates in the scope name, by namespace and name.
    async fn handlers(
        &self,
        scope: &Scope,
        namespace: Option<&Namespace>,
        page: &Page,
    ) -> Result<Listed<HandlerRecord>>;
}

/// A whole store.
#[async_trait]
pub trait Store:
    TemplateStore
    + TaskStore
    + WorkStore
    + WorkerStore
    + CredentialStore
    + ScheduleStore
    + ElevationStore
    + AuditStore
    + SigningKeyStore
    + fmt::Debug
    + Send
    + Sync
    + 'static
{
    /// Proves that a change reaches the disk.
    async fn check(&self) -> Result<()>;

    /// Finishes what is queued and closes.
    async fn close(&self);
}
