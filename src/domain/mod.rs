//! What Bailiwick is about, as plain values: tasks, steps, templates,
//! principals, permissions, scopes and the state machines.
//!
//! Not here: anything that does I/O, reads a clock or draws a random number.

pub mod advance;
pub mod audit;
pub mod clock;
pub mod elevation;
pub mod history;
pub mod ids;
pub mod json;
pub mod judged;
pub mod namespace;
pub mod network;
pub mod permission;
pub mod principal;
pub mod rights;
pub mod schedule;
pub mod secret;
pub mod task;
pub mod template;

pub use clock::{Clock, Timestamp};
pub use ids::{LeaseId, RequestId, StepId, StepNo, TaskId};
pub use json::Json;
pub use namespace::{Area, Namespace, Scope};
pub use network::Network;
pub use permission::{Permission, PermissionSet};
pub use principal::{Grant, Principal};
