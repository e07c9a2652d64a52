//! Between messages and what the use cases take and answer with, one file for
//! each family: `TryFrom` where a message may be wrong, `From` where nothing
//! can be.
//!
//! Not here: what a value may be beyond its type; the use cases check that.

mod access;
mod audit;
mod credentials;
mod elevations;
mod ids;
mod schedules;
mod signing_keys;
mod states;
mod steps;
mod tasks;
mod templates;
mod work;

pub(super) use credentials::minted;
pub(super) use ids::{area_filter, lease_id, namespace_filter, step_ids, task_id};
pub(super) use schedules::{new_rule, plan};
pub(super) use steps::{audit, step};
pub(super) use tasks::{task_filter, watched};
pub(super) use templates::{template, template_with_definition};
pub(super) use work::{heartbeat, lease, lost, revoked, work_result};

use crate::{domain::Timestamp, engine::PageRequest};

/// Which page a list's request asks for.
pub(super) fn page(size: u32, token: String) -> PageRequest {
    PageRequest { size, token }
}

pub(super) fn time(at: Timestamp) -> prost_types::Timestamp {
    const MICROS: i64 = 1_000_000;
    let micros = at.micros();
    // Below one second, so it always fits.
    let nanos = i32::try_from(micros.rem_euclid(MICROS) * 1_000).unwrap_or(0);
    prost_types::Timestamp { seconds: micros.div_euclid(MICROS), nanos }
}

fn owned(text: &str) -> String {
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_the_epoch() {
        for (micros, seconds, nanos) in
            [(0, 0, 0), (1_500_001, 1, 500_001_000), (-1, -1, 999_999_000), (-1_000_000, -1, 0)]
        {
            let at = time(Timestamp::from_micros(micros));
            assert_eq!(at, prost_types::Timestamp { seconds, nanos }, "{micros}");
        }
    }
}
