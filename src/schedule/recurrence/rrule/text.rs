//! How rules are written. What the library reads otherwise than RFC 5545 says
//! is read or refused here.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use rrule::{Frequency, NWeekday, RRule, Unvalidated};

use super::instant;
use crate::{domain::schedule::Nanos, schedule::recurrence};

/// What a text says.
pub(super) struct Parsed {
    /// Without its end.
    pub(super) rule: RRule<Unvalidated>,
    pub(super) zone: TimeZone,
    pub(super) start: DateTime,
    /// In seconds since 1970; it is the last that may be.
    pub(super) until: Option<i64>,
    pub(super) count: Option<usize>,
    /// The text with its start, where that is to be kept.
    pub(super) kept: Option<String>,
}

/// Whether a text means to be one.
pub(in crate::schedule::recurrence) fn is_one(text: &str) -> bool {
    ["FREQ=", "RRULE:", "DTSTART"].into_iter().any(|start| text.starts_with(start))
        || text.contains("FREQ=")
}

pub(super) fn parse(text: &str, zone: Option<&TimeZone>, start: Nanos) -> Result<Parsed, String> {
    let (mut begun, mut rule) = (None, None);
    for line in text.split_whitespace() {
        let twice = if let Some(value) = line.strip_prefix("DTSTART") {
            begun.replace(value).is_some()
        } else {
            rule.replace(line.strip_prefix("RRULE:").unwrap_or(line)).is_some()
        };
        if twice {
            return Err("there is more than one DTSTART and one RRULE".to_owned());
        }
    }
    let rule = rule.ok_or("behind DTSTART there is no RRULE")?;
    let (read, until_text, count) = parts(rule)?;
    let given = begun.map(|value| started(value, zone)).transpose()?;
    let (zone, at) = match given {
        Some(given) => given,
        None => {
            let zone = zone.cloned().unwrap_or(TimeZone::UTC);
            let start = Timestamp::from_second(start.0.div_euclid(1_000_000_000));
            let at = zone.to_datetime(start.map_err(|_| "the start is out of range")?);
            (zone, at)
        }
    };
    let until = until_text.map(|text| until(text, &zone)).transpose()?;
    let moves = count.is_some() || zone != TimeZone::UTC;
    let kept = (begun.is_none() && moves).then(|| {
        let name = zone.iana_name().unwrap_or("UTC");
        format!("DTSTART;TZID={name}:{} RRULE:{rule}", at.strftime("%Y%m%dT%H%M%S"))
    });
    Ok(Parsed { rule: read, zone, start: at, until, count, kept })
}

/// What stands behind `DTSTART`.
fn started(text: &str, zone: Option<&TimeZone>) -> Result<(TimeZone, DateTime), String> {
    let wrong = || "DTSTART is no time, as `DTSTART;TZID=Europe/Berlin:20260401T020000`".to_owned();
    let (options, value) = text.split_once(':').ok_or_else(wrong)?;
    let mut named = None;
    for option in options.split(';').skip(1) {
        match option.split_once('=') {
            Some(("TZID", name)) => named = Some(recurrence::zone(name)?),
            Some(("VALUE", "DATE" | "DATE-TIME")) => {}
            Some(_) | None => return Err(wrong()),
        }
    }
    if !options.is_empty() && !options.starts_with(';') {
        return Err(wrong());
    }
    let zone = match (named, zone) {
        (Some(_), Some(_)) => return Err("the time zone is given twice".to_owned()),
        (Some(named), None) => named,
        (None, zone) => zone.cloned().unwrap_or(TimeZone::UTC),
    };
    let (at, is_utc) = time(value).ok_or_else(wrong)?;
    if !is_utc {
        return Ok((zone, at));
    }
    let at = TimeZone::UTC.to_timestamp(at).map_err(|_| wrong())?;
    let at = zone.to_datetime(at);
    Ok((zone, at))
}

/// `20260401T020000`, with a `Z` for UTC, or `20260401`, which is midnight.
fn time(text: &str) -> Option<(DateTime, bool)> {
    let (text, is_utc) = text.strip_suffix('Z').map_or((text, false), |text| (text, true));
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, time),
        None if is_utc => return None,
        None => (text, "000000"),
    };
    let digits =
        |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(date, 8) || !digits(time, 6) {
        return None;
    }
    let at = DateTime::strptime("%Y%m%dT%H%M%S", format!("{date}T{time}")).ok()?;
    Some((at, is_utc))
}

/// A date alone means all of that day.
fn until(text: &str, zone: &TimeZone) -> Result<i64, String> {
    let wrong = || "UNTIL is no time, as `UNTIL=20261231T235959Z`".to_owned();
    let (at, is_utc) = time(text).ok_or_else(wrong)?;
    let utc = TimeZone::UTC;
    let at = if text.contains('T') { at } else { at.date().at(23, 59, 59, 0) };
    instant(if is_utc { &utc } else { zone }, at).ok_or_else(wrong)
}

/// A rule with its UNTIL and COUNT, which the library does not see.
type Parts<'a> = (RRule<Unvalidated>, Option<&'a str>, Option<usize>);

/// Reads a rule by the library, but for its UNTIL and COUNT.
fn parts(text: &str) -> Result<Parts<'_>, String> {
    // The library takes characters apart by bytes.
    if !text.is_ascii() {
        return Err("a rule has no other characters than ASCII".to_owned());
    }
    let (mut until, mut count, mut rest) = (None, None, Vec::new());
    for part in text.trim_end_matches(';').split(';') {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let twice = match name {
            "UNTIL" => until.replace(value).is_some(),
            "COUNT" => count.replace(value).is_some(),
            "BYDAY" => {
                weekdays(value)?;
                rest.push(part);
                false
            }
            // The library has also other names, and reads them in any case.
            "FREQ" | "INTERVAL" | "WKST" | "BYSECOND" | "BYMINUTE" | "BYHOUR" | "BYMONTHDAY"
            | "BYYEARDAY" | "BYWEEKNO" | "BYMONTH" | "BYSETPOS" => {
                rest.push(part);
                false
            }
            _ => {
                let name = recurrence::excerpt(name);
                return Err(format!("`{name}` is no part of a rule that is known"));
            }
        };
        if value.is_empty() || twice {
            return Err(format!("{name} has no value or stands twice"));
        }
    }
    if until.is_some() && count.is_some() {
        return Err("a rule has COUNT or UNTIL, not both".to_owned());
    }
    let number = |text: &str| {
        let number = text.parse().ok().filter(|number| *number > 0);
        number.ok_or("COUNT is a number from 1 on")
    };
    let count = count.map(number).transpose()?;
    let rule: RRule<Unvalidated> = rest
        .join(";")
        .parse()
        .map_err(|error: rrule::RRuleError| format!("the rule is refused: {error}"))?;
    fits(&rule, rest.iter().any(|part| part.starts_with("BY") && !part.starts_with("BYSETPOS")))?;
    Ok((rule, until, count))
}

/// The library takes any text before a day's name for no number.
fn weekdays(text: &str) -> Result<(), String> {
    let fits = |day: &str| {
        let number = day.get(..day.len().checked_sub(2)?)?;
        (number.is_empty() || number.parse::<i16>().ok()? != 0).then_some(())
    };
    let all: Option<()> = text.split(',').map(fits).collect();
    all.ok_or_else(|| "BYDAY has days as MO, 2TU or -1FR".to_owned())
}

/// What RFC 5545 forbids or the library answers wrongly, and it does not say.
fn fits(rule: &RRule<Unvalidated>, by: bool) -> Result<(), String> {
    let days = rule.get_by_weekday();
    let numbered = days.iter().filter(|day| matches!(day, NWeekday::Nth(..))).count();
    let coarse = matches!(rule.get_freq(), Frequency::Yearly | Frequency::Monthly);
    let refused = [
        (rule.get_interval() == 0, "INTERVAL is a number from 1 to 65535"),
        (
            numbered > 0 && (!coarse || !rule.get_by_week_no().is_empty()),
            "BYDAY has numbers with MONTHLY or YEARLY alone, and not with BYWEEKNO",
        ),
        (
            numbered > 0 && numbered < days.len(),
            "BYDAY has a number with each of its days or with none",
        ),
        (rule.get_by_month_day().contains(&0), "BYMONTHDAY has numbers from 1 to 31"),
        (!rule.get_by_set_pos().is_empty() && !by, "BYSETPOS needs another BY part"),
    ];
    match refused.into_iter().find(|(wrong, _)| *wrong) {
        Some((_, why)) => Err(why.to_owned()),
        None => Ok(()),
    }
}
