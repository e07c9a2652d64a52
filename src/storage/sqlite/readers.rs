//! A few connections that only read, each read in one transaction so that it
//! sees one moment.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::{
    error::{broken, unavailable},
    open,
};
use crate::storage::Result;

/// How many reads run at once.
const READERS_MAX: u32 = 4;

#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Connection>>>,
    places: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        let places = usize::try_from(READERS_MAX).unwrap_or(1);
        Self { path, idle: Arc::default(), places: Arc::new(Semaphore::new(places)) }
    }

    pub(super) async fn run<T, F>(&self, query: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .map_err(|_| unavailable("the store is closed"))?;
        let (idle, path) = (Arc::clone(&self.idle), self.path.clone());
        let read = tokio::task::spawn_blocking(move || {
            let conn = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let conn = match conn {
                Some(conn) => conn,
                None => open::reader(&path)?,
            };
            conn.prepare_cached("BEGIN")?.execute([])?;
            let answer = query(&conn);
            // Where the end fails the connection is dropped, and its
            // transaction with it.
            conn.prepare_cached("COMMIT")?.execute([])?;
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
            drop(place);
            answer
        });
        read.await.map_err(|error| broken(error.to_string()))?
    }

    /// Waits for the reads under way; later ones are refused.
    pub(super) async fn close(&self) {
        // Whoever holds all places is alone.
        if let Ok(all) = self.places.acquire_many(READERS_MAX).await {
            self.places.close();
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
            drop(all);
        }
    }
}
