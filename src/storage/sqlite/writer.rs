//! The one writer: a thread that takes what waits, does it in one transaction
//! and answers after the commit. While the disk works on one batch the next
//! one gathers, so there is nothing to wait for.

use std::{
    cell::Cell,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use rusqlite::{Connection, hooks::Wal};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Shared,
    error::{broken, is_of_the_store, same, unavailable},
    namespaces::Numbered,
    open::Lock,
    schedules::Counted,
};
use crate::{
    domain::{Namespace, Timestamp},
    storage::{Effects, Error, Leased, Result, Seat},
};

/// How many operations wait at most; callers wait for room behind them.
const QUEUE_MAX: usize = 4096;
/// How many operations one commit holds at most.
const BATCH_MAX: usize = 512;
/// Past so many pages the writer itself starts the log again (64 MiB).
const LOG_PAGES_MAX: i32 = 16 * 1024;
/// After so many new pages the second connection carries them over.
const LOG_PAGES_STEP: i32 = 1024;

/// An operation under way, and what it did that others wait for.
pub(super) struct Operation<'a> {
    pub(super) conn: &'a Connection,
    pub(super) shared: &'a Shared,
    pub(super) effects: Effects,
    /// Seats taken from the desk, to be given back should it fail.
    taken: Vec<Seat>,
    /// Namespaces that it made.
    pub(super) namespaces: Vec<Numbered>,
    /// Templates that it registered, as namespace and name.
    pub(super) templates: Vec<TemplateName>,
    /// How many more or fewer jobs there are.
    pub(super) job_counts: Counted,
}

/// A namespace's number with the name of a template in it.
pub(super) type TemplateName = (crate::domain::ids::NamespaceNo, Arc<str>);

impl<'a> Operation<'a> {
    fn new(conn: &'a Connection, shared: &'a Shared) -> Self {
        Self {
            conn,
            shared,
            effects: Effects::default(),
            taken: Vec::new(),
            namespaces: Vec::new(),
            templates: Vec::new(),
            job_counts: Counted::default(),
        }
    }

    /// Takes a seat; it goes back by itself when the operation fails.
    pub(super) fn take_seat(&mut self, namespace: &Namespace, handler: &str) -> Option<Seat> {
        let seat = self.shared.desk.take(namespace, handler)?;
        self.taken.push(seat.clone());
        Some(seat)
    }

    /// Gives back a seat for which there was nothing after all.
    pub(super) fn give_back(&mut self, seat: Seat) {
        self.taken.retain(|taken| taken.ticket != seat.ticket);
        self.shared.desk.give_back(seat);
    }

    pub(super) fn grant(&mut self, seat: Seat, leased: Leased) {
        self.effects.granted.push((seat, leased));
    }

    pub(super) fn due(&mut self, at: Timestamp) {
        self.effects.due = Some(self.effects.due.map_or(at, |due| due.min(at)));
    }

    /// Forgets what it did, after a roll-back.
    fn undo(&mut self) {
        for seat in self.taken.drain(..) {
            self.shared.desk.give_back(seat);
        }
        self.effects = Effects::default();
        self.namespaces.clear();
        self.templates.clear();
        self.job_counts = Counted::default();
    }

    /// Takes over what an operation within the same commit did.
    fn absorb(&mut self, other: Self) {
        let Self { effects, taken, namespaces, templates, job_counts, .. } = other;
        self.job_counts.absorb(job_counts);
        self.taken.extend(taken);
        self.namespaces.extend(namespaces);
        self.templates.extend(templates);
        self.effects.granted.extend(effects.granted);
        self.effects.revoked.extend(effects.revoked);
        self.effects.changed.extend(effects.changed);
        self.effects.unserved.extend(effects.unserved);
        self.effects.finished.extend(effects.finished);
        self.effects.expired += effects.expired;
        if let Some(due) = effects.due {
            self.due(due);
        }
    }

    /// The commit is on disk: others learn of it.
    fn publish(self) {
        let Self { shared, effects, namespaces, templates, .. } = self;
        for (no, namespace) in namespaces {
            shared.namespaces.publish(no, namespace);
        }
        for (no, name) in templates {
            shared.shelf.forget_versions(no, &name);
        }
        // What else there is to tell comes with a change.
        let Effects { granted, revoked, changed, unserved, due, finished: _, expired: _ } =
            &effects;
        let nothing = granted.is_empty()
            && revoked.is_empty()
            && changed.is_empty()
            && unserved.is_empty()
            && due.is_none();
        // A fault of the desk's must not end the writer.
        if !nothing && catch_unwind(AssertUnwindSafe(|| shared.desk.committed(effects))).is_err() {
            tracing::error!("the desk panicked");
        }
    }
}

/// An operation that waits, with its caller.
trait Job: Send {
    /// Does it; may be called again after a roll-back.
    fn run(&mut self, operation: &mut Operation<'_>) -> Result<()>;

    /// Tells the caller: it is on disk, or why not.
    fn answer(self: Box<Self>, verdict: Result<()>);
}

struct Typed<F, T> {
    work: F,
    done: Option<T>,
    caller: oneshot::Sender<Result<T>>,
}

impl<F, T> Job for Typed<F, T>
where
    T: Send,
    F: Fn(&mut Operation<'_>) -> Result<T> + Send,
{
    fn run(&mut self, operation: &mut Operation<'_>) -> Result<()> {
        self.done = None;
        self.done = Some((self.work)(operation)?);
        Ok(())
    }

    fn answer(self: Box<Self>, verdict: Result<()>) {
        let Self { done, caller, .. } = *self;
        let answer =
            verdict.and_then(|()| done.ok_or_else(|| broken("an operation without an answer")));
        // A caller who went away does not undo what is on disk.
        let _ = caller.send(answer);
    }
}

enum Message {
    Do(Box<dyn Job>),
    Close,
}

/// The handle of the writer.
pub(super) struct Writer {
    queue: mpsc::Sender<Message>,
    ended: watch::Receiver<bool>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn start(
        shared: Arc<Shared>,
        mut conn: Connection,
        checkpointer: Connection,
        lock: Lock,
    ) -> std::io::Result<Self> {
        let (queue, mut waiting) = mpsc::channel(QUEUE_MAX);
        let (ending, ended) = watch::channel(false);
        let (nudge, nudged) = sync_channel::<()>(1);
        let carrier = thread::Builder::new().name("store-checkpoint".into()).spawn(move || {
            while nudged.recv().is_ok() {
                // What it could not carry over the writer does in the end.
                if let Err(error) = checkpoint(&checkpointer, "PASSIVE") {
                    tracing::debug!(%error, "a checkpoint was put off");
                }
            }
        })?;
        thread::Builder::new().name("store-writer".into()).spawn(move || {
            watch_log(&mut conn);
            let mut log = Log { nudge, carried: 0 };
            while let Some(first) = waiting.blocking_recv() {
                let (jobs, close) = gather(first, &mut waiting);
                commit(&shared, &conn, jobs);
                if close {
                    waiting.close();
                }
                log.bound(&conn);
            }
            drop(log);
            let _ = carrier.join();
            if let Err(error) = checkpoint(&conn, "TRUNCATE") {
                tracing::warn!(%error, "the log stays for the next start");
            }
            drop(conn);
            drop(lock);
            let _ = ending.send(true);
        })?;
        Ok(Self { queue, ended })
    }

    pub(super) async fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Operation<'_>) -> Result<T> + Send + 'static,
    {
        let (caller, answer) = oneshot::channel();
        let job = Box::new(Typed { work, done: None, caller });
        let closed = || unavailable("the store is closed");
        self.queue.send(Message::Do(job)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Finishes what is queued.
    pub(super) async fn close(&self) {
        // When it is closed already there is nothing to tell.
        let _ = self.queue.send(Message::Close).await;
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

/// The first message and what else waits, up to a batch.
fn gather(first: Message, waiting: &mut mpsc::Receiver<Message>) -> (Vec<Box<dyn Job>>, bool) {
    let mut jobs = Vec::new();
    let mut close = false;
    let mut next = Some(first);
    while let Some(message) = next {
        match message {
            Message::Do(job) => jobs.push(job),
            Message::Close => close = true,
        }
        next = if jobs.len() < BATCH_MAX { waiting.try_recv().ok() } else { None };
    }
    (jobs, close)
}

/// One batch: all of it in one transaction. When one operation fails, all are
/// rolled back and done again with a savepoint each, so that only that one
/// fails; the common case pays for no savepoints.
fn commit(shared: &Shared, conn: &Connection, mut jobs: Vec<Box<dyn Job>>) {
    if jobs.is_empty() {
        return;
    }
    let mut whole = Operation::new(conn, shared);
    let mut verdicts = Vec::new();
    let mut outcome =
        attempt(&mut whole, |whole| jobs.iter_mut().try_for_each(|job| run(job, whole)));
    if matches!(&outcome, Err(error) if !is_of_the_store(error)) {
        outcome = attempt(&mut whole, |whole| {
            verdicts.clear();
            for job in &mut jobs {
                verdicts.push(alone(job, whole)?);
            }
            Ok(())
        });
    }
    if outcome.is_ok() {
        whole.taken.clear();
        whole.publish();
    }
    let mut verdicts = verdicts.into_iter();
    for job in jobs {
        job.answer(match &outcome {
            Ok(()) => verdicts.next().unwrap_or(Ok(())),
            Err(error) => Err(same(error)),
        });
    }
    if let Err(error) = outcome {
        tracing::error!(%error, cause = %cause(&error), "a commit failed");
    }
}

fn cause(error: &Error) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

/// Runs within a transaction; leaves nothing behind when it fails.
fn attempt(
    whole: &mut Operation<'_>,
    work: impl FnOnce(&mut Operation<'_>) -> Result<()>,
) -> Result<()> {
    let conn = whole.conn;
    let done = execute(conn, "BEGIN IMMEDIATE")
        .and_then(|()| work(whole))
        .and_then(|()| whole.job_counts.keep(conn))
        .and_then(|()| execute(conn, "COMMIT"));
    if done.is_err() {
        // A full disk may have rolled back already.
        if !conn.is_autocommit()
            && let Err(error) = execute(conn, "ROLLBACK")
        {
            tracing::error!(%error, "a transaction could not be rolled back");
        }
        whole.undo();
    }
    done
}

fn execute(conn: &Connection, sql: &'static str) -> Result<()> {
    conn.prepare_cached(sql)?.execute([])?;
    Ok(())
}

/// A panic in an operation is that operation's failure alone.
fn run(job: &mut Box<dyn Job>, whole: &mut Operation<'_>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| job.run(whole)))
        .unwrap_or_else(|_| Err(broken("an operation panicked")))
}

/// Runs one operation behind a savepoint. The outer error is the store's.
fn alone(job: &mut Box<dyn Job>, whole: &mut Operation<'_>) -> Result<Result<()>> {
    let conn = whole.conn;
    execute(conn, "SAVEPOINT one")?;
    let mut one = Operation::new(conn, whole.shared);
    let verdict = run(job, &mut one);
    if let Err(error) = &verdict {
        one.undo();
        if is_of_the_store(error) {
            return Err(same(error));
        }
        tracing::error!(%error, cause = %cause(error), "an operation failed");
        execute(conn, "ROLLBACK TO one")?;
    }
    whole.absorb(one);
    execute(conn, "RELEASE one")?;
    Ok(verdict)
}

thread_local! {
    /// How many pages the log holds after the last commit of this thread.
    static LOG_PAGES: Cell<i32> = const { Cell::new(0) };
}

fn watch_log(conn: &mut Connection) {
    let hook = |_: &mut Wal, pages: i32| {
        LOG_PAGES.set(pages);
        Ok(())
    };
    if let Err(error) = conn.wal_hook(Some(hook)) {
        tracing::error!(%error, "the size of the log is not watched");
    }
}

/// Keeps the log within bounds. A log that is written over costs half of one
/// that grows, so it is never truncated under load.
struct Log {
    nudge: SyncSender<()>,
    /// The log's pages at the last nudge.
    carried: i32,
}

impl Log {
    fn bound(&mut self, conn: &Connection) {
        let pages = LOG_PAGES.get();
        if pages < self.carried {
            self.carried = 0;
        }
        if pages < self.carried.saturating_add(LOG_PAGES_STEP) {
            return;
        }
        self.carried = pages;
        if pages < LOG_PAGES_MAX {
            // When it is at work already it carries over these pages as well.
            let _ = self.nudge.try_send(());
        } else if let Err(error) = checkpoint(conn, "RESTART") {
            tracing::debug!(%error, "a checkpoint was put off");
        }
    }
}

fn checkpoint(conn: &Connection, mode: &'static str) -> rusqlite::Result<()> {
    conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
}
