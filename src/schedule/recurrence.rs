//! When a job recurs.

use crate::domain::schedule::Nanos;

const UNITS: [(&str, i64); 4] = [
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// A recurrence that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recurrence {
    start: Nanos,
    every: i64,
}

impl Recurrence {
    /// Reads `every 15m`; `start` is what the steps are counted from.
    pub fn parse(text: &str, start: Nanos) -> Result<Self, String> {
        let every = text.strip_prefix("every ").and_then(|span| {
            UNITS.iter().find_map(|(unit, nanos)| {
                span.trim().strip_suffix(unit)?.parse::<i64>().ok()?.checked_mul(*nanos)
            })
        });
        let every = every.filter(|every| *every > 0);
        every
            .map(|every| Self { start, every })
            .ok_or_else(|| format!("`{text}` is no recurrence, as `every 15m`"))
    }

    /// The first time behind a moment.
    #[must_use]
    pub fn next_after(&self, after: Nanos) -> Option<Nanos> {
        let steps =
            after.0.checked_sub(self.start.0)?.div_euclid(self.every).checked_add(1)?.max(0);
        self.start.0.checked_add(steps.checked_mul(self.every)?).map(Nanos)
    }
}
