//! Times as callers write them (ZT-43).

use crate::domain::schedule::Nanos;

/// A time of day of a date, to the nanosecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When(Nanos);

impl When {
    /// Reads `YYYY-MM-DD HH:MM:SS` (UTC), `YYYY-MM-DD` (midnight UTC), RFC
    /// 3339, or nanoseconds since 1970 as an integer.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{}` is not a time: YYYY-MM-DD HH:MM:SS (UTC), YYYY-MM-DD, RFC 3339, or \
                 nanoseconds since 1970",
                text.chars().take(80).collect::<String>()
            )
        };
        if let Ok(nanos) = text.parse::<i64>() {
            return Ok(Self(Nanos(nanos)));
        }
        let at = if let Ok(at) = text.parse::<jiff::Timestamp>() {
            at
        } else {
            // A date alone is midnight.
            let civil: jiff::civil::DateTime = text.parse().map_err(|_| wrong())?;
            let zoned = civil.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| wrong())?;
            zoned.timestamp()
        };
        i64::try_from(at.as_nanosecond()).map(|nanos| Self(Nanos(nanos))).map_err(|_| wrong())
    }

    /// In nanoseconds.
    #[must_use]
    pub const fn nanos(self) -> Nanos {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zt_43_times_as_they_are_written() {
        let nanos = |text: &str| When::parse(text).map(|when| when.nanos().0);
        for (text, expected) in [
            ("2026-04-01 12:00:00", 1_775_044_800_000_000_000),
            ("2026-04-01", 1_775_001_600_000_000_000),
            ("2026-04-01T12:00:00Z", 1_775_044_800_000_000_000),
            ("2026-04-01T14:00:00+02:00", 1_775_044_800_000_000_000),
            ("1605457800000000000", 1_605_457_800_000_000_000),
            ("0", 0),
            ("-1", -1),
            ("9223372036854775807", i64::MAX),
            ("1969-12-31 23:59:59", -1_000_000_000),
            ("2026-04-01T12:00:00.000000001Z", 1_775_044_800_000_000_001),
            ("2026-04-01 12:00:00.5", 1_775_044_800_500_000_000),
            ("2024-02-29", 1_709_164_800_000_000_000),
        ] {
            assert_eq!(nanos(text), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "tomorrow",
            "2026-13-01",
            "2026-02-30 00:00:00",
            "12:00:00",
            "9".repeat(30).as_str(),
            "9999-12-31",
            "9223372036854775808",
            "2262-04-11T23:47:16.854775808Z",
            "1677-09-20",
            "2026-04-01 25:00:00",
            "2026-04-01T12:00:00+99:00",
            "2026-04-01 12:00:00 tomorrow",
            "1.5",
            "ü",
        ] {
            assert!(nanos(bad).is_err(), "{bad}");
        }
    }
}
