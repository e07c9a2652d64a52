//! The audit: what was decided and what became of it. Changes bring their
//! records into their own transactions (`storage`); reads and refusals gather
//! here and are kept in batches.
//!
//! Not here: who is allowed what (`access`, `authz`).

pub mod chain;
mod export;
mod journal;
pub mod key;
mod ledger;
pub mod line;
mod repeated;
mod retention;
pub mod seal;
mod sealed;
mod sealer;
mod search;
pub mod sink;
pub mod verify;

pub use self::{
    export::Request as ExportRequest,
    journal::{Inbox, Journal, Lost, Options, run},
    ledger::{Entry, Error, Ledger, Who},
    repeated::Repetition,
    retention::{Retention, retain},
    sealer::{Sealer, Unsealed},
    search::{Filter, Found, FoundPage},
};

#[cfg(test)]
mod tests;
