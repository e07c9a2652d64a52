//! The audit: what was decided and what became of it. Changes bring their
//! records into their own transactions (`storage`); reads and refusals gather
//! here and are kept in batches.
//!
//! Not here: who is allowed what (`access`, `authz`).

pub mod chain;
mod journal;
pub mod key;
mod repeated;
pub mod seal;
mod sealed;
mod sealer;

pub use self::{
    journal::{Inbox, Journal, Lost, Options, run},
    repeated::Repetition,
    sealer::{Sealer, Unsealed},
};
