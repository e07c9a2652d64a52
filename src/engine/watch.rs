//! A task's events as they happen, without gaps or repeats.
//!
//! Not here: what an event is (`domain::history`), how it is sent.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, stream};
use tracing::instrument;

use super::{Engine, Error, fields, floor::Bell, tasks};
use crate::{
    authz::Claim,
    domain::{
        StepId, StepNo, TaskId,
        history::{Change, Event},
        permission::right::TasksRead,
        task::Task,
    },
    storage::StepBrief,
};

/// How many events are read at once.
const PAGE: usize = 100;
/// How often to look without being told.
const POLL: Duration = Duration::from_secs(1);

/// What a watch shows.
#[derive(Clone, Debug)]
pub enum Item {
    /// The task and its steps as they stand; first, or not at all.
    Snapshot {
        /// The place in the history up to which it counts.
        seq: i64,
        /// The task.
        task: Box<Task>,
        /// Its steps.
        steps: Vec<StepBrief>,
    },
    /// Something changed.
    Event {
        /// What; without an operator's reason, which `steps:read` shows alone.
        event: Event,
        /// The step that changed.
        step: Option<(StepId, Arc<str>)>,
    },
}

/// Watches a task until it is final: a snapshot and what follows, or what
/// follows an event. Without the task there is no stream.
#[instrument(name = "engine.watch", skip_all, fields(task = %id))]
pub async fn watch(
    engine: &Arc<Engine>,
    claim: Claim<TasksRead>,
    id: TaskId,
    after_seq: Option<i64>,
) -> Result<impl Stream<Item = Result<Item, Error>> + Send + 'static, Error> {
    // First the bell, then the look: nothing rings unheard between them.
    let bell = engine.floor.listen(id);
    let (task, steps) =
        engine.store.snapshot(claim.scope(), id).await?.ok_or_else(|| tasks::not_found(id))?;
    let seq = task.core.last_seq;
    if after_seq.is_some_and(|after| after < 0 || after > seq) {
        return Err(fields::invalid("after_seq", format!("the history goes from 0 to {seq} now")));
    }
    let mut watch = Watch {
        engine: Arc::clone(engine),
        claim,
        id,
        bell,
        after: after_seq.unwrap_or(seq),
        names: HashMap::new(),
        items: VecDeque::new(),
        last: task.core.state.is_final(),
        more: true,
    };
    watch.learn(&steps);
    if after_seq.is_none() {
        watch.items.push_back(Item::Snapshot { seq, task: Box::new(task), steps });
    }
    Ok(stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        match watch.next().await {
            Ok(Some(item)) => Some((Ok(item), Some(watch))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    }))
}

struct Watch {
    engine: Arc<Engine>,
    claim: Claim<TasksRead>,
    id: TaskId,
    bell: Bell,
    /// The place of the last event that was read.
    after: i64,
    names: HashMap<StepNo, (StepId, Arc<str>)>,
    items: VecDeque<Item>,
    /// The task is final: what is on disk now is all there will be to see.
    last: bool,
    /// There may be events that were not read.
    more: bool,
}

impl Watch {
    async fn next(&mut self) -> Result<Option<Item>, Error> {
        loop {
            if let Some(item) = self.items.pop_front() {
                return Ok(Some(item));
            }
            if self.more {
                self.bell.hush();
                self.read().await?;
                continue;
            }
            if self.last {
                return Ok(None);
            }
            tokio::select! {
                () = self.bell.rung() => {}
                () = tokio::time::sleep(POLL) => {}
                () = self.engine.closing.cancelled() => return Err(Error::ShuttingDown),
            }
            self.more = true;
        }
    }

    /// Reads one page of events behind the last one.
    async fn read(&mut self) -> Result<(), Error> {
        let scope = self.claim.scope();
        let events = self.engine.store.events(scope, self.id, self.after, PAGE).await?;
        let events = events.ok_or_else(|| tasks::not_found(self.id))?;
        self.more = events.len() == PAGE;
        for event in events {
            self.after = event.seq;
            let step = match event.change {
                Change::Task(state) => {
                    self.last |= state.is_final();
                    None
                }
                Change::Step { no, .. } => Some(self.step(no).await?),
            };
            self.items.push_back(Item::Event { event: Event { reason: None, ..event }, step });
        }
        Ok(())
    }

    /// A step by its number; one that came to be since is looked up.
    async fn step(&mut self, no: StepNo) -> Result<(StepId, Arc<str>), Error> {
        if !self.names.contains_key(&no)
            && let Some((_, steps)) =
                self.engine.store.snapshot(self.claim.scope(), self.id).await?
        {
            self.learn(&steps);
        }
        let known = self.names.get(&no).cloned();
        Ok(known.unwrap_or_else(|| (self.id.step(no), "".into())))
    }

    fn learn(&mut self, steps: &[StepBrief]) {
        for step in steps {
            self.names.insert(step.core.no, (step.id, Arc::clone(&step.name)));
        }
    }
}
