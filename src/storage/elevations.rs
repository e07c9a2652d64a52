//! Requests for more rights for a while.

use async_trait::async_trait;

use super::Result;
use crate::domain::{
    Timestamp,
    elevation::{Elevation, ElevationState},
    history::Stamp,
};

/// Elevations. Each change has its record in the audit in its own
/// transaction.
#[async_trait]
pub trait ElevationStore: Send + Sync {
    /// Keeps a new one; false when its id is taken. Those that ended before
    /// `forget` are removed.
    async fn add_elevation(
        &self,
        elevation: &Elevation,
        forget: Timestamp,
        stamp: &Stamp,
    ) -> Result<bool>;

    /// Moves one on from a state; false when it is not there, or in another.
    async fn move_elevation(
        &self,
        from: ElevationState,
        elevation: &Elevation,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<bool>;

    /// All of them, the oldest first.
    async fn elevations(&self) -> Result<Vec<Elevation>>;
}
