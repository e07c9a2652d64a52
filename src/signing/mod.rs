//! What the server itself vouches for: the keys that sign, encrypted at rest
//! (SE-48), and the tokens of steps (SE-30, SE-31, SE-32).
//!
//! Not here: what a step's token opens (`authn`, `access`), who may manage
//! keys (`admin`).

mod keys;
mod master;
mod step;

use std::fmt::Write as _;

/// Lower-case hex digits.
fn hex_text<'a>(bytes: impl Iterator<Item = &'a u8>) -> String {
    bytes.fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub use self::{
    keys::{Key, ORGANISATION, SigningKeys, State},
    master::Error,
    step::{STEP, StepTokens, TYPE, worth},
};
