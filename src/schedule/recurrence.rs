//! When a job recurs: a fixed span, a cron expression or an RRULE, on the
//! calendar of a time zone.
//!
//! Whatever the text is, the work is bounded: nothing here walks from the
//! beginning of time to the present.

mod rrule;
#[cfg(test)]
mod tests;

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Zoned, tz::TimeZone};

use self::rrule::Bound;
use crate::domain::schedule::Nanos;

/// The longest text.
const TEXT_BYTES_MAX: usize = 1024;
const ZONE_BYTES_MAX: usize = 64;

const NANOS: i64 = 1_000_000_000;
const UNITS: [(&str, i64); 5] =
    [("w", 7 * 86_400), ("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];

/// A recurrence that was understood.
#[derive(Clone, Debug)]
pub struct Recurrence {
    text: String,
    start: Nanos,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Elapsed time, in nanoseconds.
    Every(i64),
    Cron(Box<Cron>, TimeZone),
    Rule(Box<Bound>),
}

impl Recurrence {
    /// Reads one of
    ///
    /// - `every 15m`, `every 1h30m`: of `w`, `d`, `h`, `m` and `s`, at least
    ///   one second, counted from `start` in elapsed time;
    /// - `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`, or a cron
    ///   expression of five fields, or of six with the seconds first;
    /// - `FREQ=…` or `RRULE:FREQ=…` (RFC 5545), counted from `start`, or from
    ///   a `DTSTART…` that stands before it, parted by white space.
    ///
    /// The last two are of UTC unless `CRON_TZ=Europe/Berlin ` or `TZ=… `
    /// stands first, or the rule's `DTSTART;TZID=…:` says so. A time that the
    /// clocks skip comes at the moment behind the gap, once; one that they
    /// repeat comes the first time only. What recurs by the hour or faster
    /// goes on evenly through both.
    ///
    /// So that each call is soon done a rule has an `INTERVAL` up to 65,535, a
    /// `COUNT` up to 1,000, or 200 where it recurs by the hour or faster with
    /// conditions, and at most 20,000 times in one period. What the library
    /// would answer wrongly is refused: leap seconds, days in `BYDAY` of which
    /// some have a number, and by the minute or second with `BYHOUR` or
    /// `BYMINUTE` an `INTERVAL` that neither divides 60 nor is divided by it.
    ///
    /// Refused is also what has no time at or behind `start`.
    pub fn parse(text: &str, start: Nanos) -> Result<Self, String> {
        let too_long = || format!("a recurrence has at most {TEXT_BYTES_MAX} bytes");
        if text.len() > TEXT_BYTES_MAX {
            return Err(too_long());
        }
        // Of one line, whatever parts it was written in.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let (zone, rest) = zone_of(&text)?;
        let (kept, kind) = if let Some(span) = rest.strip_prefix("every ") {
            if zone.is_some() {
                return Err("`every` counts elapsed time and has no time zone".to_owned());
            }
            (None, Kind::Every(span_of(span)?))
        } else if rrule::is_one(rest) {
            let (bound, kept) = Bound::parse(rest, zone.as_ref(), start)?;
            (kept, Kind::Rule(Box::new(bound)))
        } else {
            let zone = zone.unwrap_or(TimeZone::UTC);
            (None, Kind::Cron(Box::new(cron_of(rest)?), zone))
        };
        if kept.as_ref().is_some_and(|kept| kept.len() > TEXT_BYTES_MAX) {
            return Err(too_long());
        }
        let rest = excerpt(rest);
        let recurrence = Self { text: kept.unwrap_or(text), start, kind };
        match recurrence.next_after(Nanos(start.0.saturating_sub(1))) {
            Some(_) => Ok(recurrence),
            None => Err(format!("`{rest}` has no time any more")),
        }
    }

    /// What is to be kept, in one line: the text as it was written, or with
    /// the `DTSTART` that it had from its start where it would count from
    /// elsewhere without one.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first time behind a moment and not before the start; what lies
    /// between the start and that moment is skipped.
    #[must_use]
    pub fn next_after(&self, after: Nanos) -> Option<Nanos> {
        let after = after.max(Nanos(self.start.0.saturating_sub(1)));
        match &self.kind {
            Kind::Every(span) => {
                let passed = i128::from(after.0) - i128::from(self.start.0);
                let span = i128::from(*span);
                let next = i128::from(self.start.0) + (passed.div_euclid(span) + 1) * span;
                i64::try_from(next).ok().map(Nanos)
            }
            Kind::Cron(cron, zone) => {
                let after = jiff::Timestamp::from_nanosecond(after.0.into()).ok()?;
                // Its search is by whole seconds.
                let second = jiff::Timestamp::from_second(after.as_second()).ok()?;
                let second = if second > after { before(second)? } else { second };
                let next = cron
                    .find_next_occurrence(&Zoned::new(second, zone.clone()), false)
                    .ok()?
                    .timestamp();
                i64::try_from(next.as_nanosecond()).ok().map(Nanos)
            }
            Kind::Rule(rule) => {
                let next = rule.next_after(after.0.div_euclid(NANOS))?;
                next.checked_mul(NANOS).map(Nanos)
            }
        }
    }

    /// The next times behind a moment, at most so many.
    #[must_use]
    pub fn upcoming(&self, after: Nanos, limit: usize) -> Vec<Nanos> {
        let mut last = after;
        std::iter::from_fn(|| {
            last = self.next_after(last)?;
            Some(last)
        })
        .take(limit)
        .collect()
    }
}

fn before(second: jiff::Timestamp) -> Option<jiff::Timestamp> {
    second.checked_sub(jiff::SignedDuration::from_secs(1)).ok()
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Takes the time zone off the beginning.
fn zone_of(text: &str) -> Result<(Option<TimeZone>, &str), String> {
    let Some(rest) = text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ=")) else {
        return Ok((None, text));
    };
    let (name, rest) = rest
        .split_once(char::is_whitespace)
        .ok_or_else(|| "behind the time zone there is no recurrence".to_owned())?;
    Ok((Some(zone(name)?), rest.trim_start()))
}

/// A time zone by its name in the IANA database.
fn zone(name: &str) -> Result<TimeZone, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+-".contains(&byte);
    let fits = !name.is_empty() && name.len() <= ZONE_BYTES_MAX && name.bytes().all(plain);
    let found = if fits { TimeZone::get(name).ok() } else { None };
    found.ok_or_else(|| format!("`{}` is no time zone, as Europe/Berlin", excerpt(name)))
}

/// `1h30m`, in nanoseconds.
fn span_of(text: &str) -> Result<i64, String> {
    let wrong = || format!("`every {}` is no span, as `every 1h30m`", excerpt(text));
    let mut rest = text.trim();
    let mut sum = 0_i64;
    // Each unit once, the largest first.
    for (unit, seconds) in UNITS {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let Some((number, behind)) = rest.split_at_checked(digits) else { continue };
        let Some(behind) = behind.strip_prefix(unit) else { continue };
        let part = number.parse::<i64>().ok().and_then(|number| number.checked_mul(seconds));
        sum = part.and_then(|part| sum.checked_add(part)).ok_or_else(wrong)?;
        rest = behind;
    }
    if !rest.is_empty() {
        return Err(wrong());
    }
    if sum < 1 {
        return Err("`every` needs at least one second".to_owned());
    }
    sum.checked_mul(NANOS).ok_or_else(wrong)
}

fn cron_of(text: &str) -> Result<Cron, String> {
    let wrong = |why: &str| {
        format!(
            "`{}` is no recurrence ({why}); `every 15m`, `@daily`, a cron expression or \
             `FREQ=…` are",
            excerpt(text)
        )
    };
    // The library takes characters apart by bytes.
    if !text.is_ascii() {
        return Err(wrong("it has other characters than ASCII"));
    }
    let named = ["@hourly", "@daily", "@weekly", "@monthly", "@yearly", "@annually"];
    if !named.contains(&text) && !matches!(text.split_whitespace().count(), 5 | 6) {
        return Err(wrong("a cron expression has five fields, or six with the seconds first"));
    }
    let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
    parser.parse(text).map_err(|error| wrong(&error.to_string()))
}
