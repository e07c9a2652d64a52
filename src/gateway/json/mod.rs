//! JSON to the bytes of a message and back, without a tree in between.
//!
//! Not here: where a request's parts come from (`serve`, `query`).

mod read;
mod scalar;
mod write;

pub(in crate::gateway) use read::{comma_separated, field_from_json, message_from_json};
pub(in crate::gateway) use scalar::{Token, write_delimited, write_scalar};
pub(in crate::gateway) use write::Writer;

#[cfg(test)]
mod tests;
