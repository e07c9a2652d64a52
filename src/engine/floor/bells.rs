//! Bells that ring when a task changed.
//!
//! Not here: what changed; a listener reads that from the store.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::domain::TaskId;

/// One channel for each task that somebody listens to.
#[derive(Default)]
pub(super) struct Bells(Mutex<HashMap<TaskId, watch::Sender<()>>>);

impl Bells {
    fn towers(&self) -> MutexGuard<'_, HashMap<TaskId, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn listen(bells: &Arc<Self>, task: TaskId) -> Bell {
        let rings = bells.towers().entry(task).or_insert_with(|| watch::channel(()).0).subscribe();
        Bell { bells: Arc::clone(bells), task, rings: Some(rings) }
    }

    pub(super) fn ring(&self, tasks: &[TaskId]) {
        let towers = self.towers();
        if towers.is_empty() {
            return;
        }
        for task in tasks {
            if let Some(tower) = towers.get(task) {
                tower.send_replace(());
            }
        }
    }
}

/// A listener's end; dropping it ends the listening.
pub(in crate::engine) struct Bell {
    bells: Arc<Bells>,
    task: TaskId,
    rings: Option<watch::Receiver<()>>,
}

impl Bell {
    /// What rang until now is known.
    pub(in crate::engine) fn hush(&mut self) {
        if let Some(rings) = &mut self.rings {
            rings.mark_unchanged();
        }
    }

    /// Resolves when it has rung since.
    pub(in crate::engine) async fn rung(&mut self) {
        if let Some(rings) = &mut self.rings
            && rings.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        let mut towers = self.bells.towers();
        // Under the lock, so that nobody subscribes between look and removal.
        drop(self.rings.take());
        if towers.get(&self.task).is_some_and(|tower| tower.receiver_count() == 0) {
            towers.remove(&self.task);
        }
    }
}
