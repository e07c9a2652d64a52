//! The gate: which rule a call has, who calls, and whether it may. Answers
//! with a [`Refusal`] and knows no transport.
//!
//! Not here: how a refusal is rendered (`grpc/status.rs`), what a permit is
//! (`authz`).

mod call;
mod counters;
mod decisions;
pub mod explain;
pub mod gate;
mod inspect;
mod limits;
mod refusal;
pub mod replay;
pub mod table;
mod throttle;

pub use call::{
    Authenticated, Caller, Ending, Global, Guarded, Namespaced, NamespacedMany, Recorded, RootOnly,
    Scoped,
};
pub use gate::{Gate, line};
pub use inspect::{Guessing, Inspected, TOKEN_INACTIVE, Verdict, verdict};
pub use limits::RateState;
pub use refusal::{Kind, Reason, Refusal, Unauthenticated, reason_name};
pub use table::{MethodRule, Rule, Table};
