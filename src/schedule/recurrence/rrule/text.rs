//! How rules are written.

use std::collections::BTreeMap;

use jiff::{
    Timestamp,
    civil::{DateTime, Weekday},
    tz::TimeZone,
};

use super::{Frequency, Rule, instant};
use crate::{domain::schedule::Nanos, schedule::recurrence};

/// A rule with a count is walked through to its end when it is read.
const COUNT_MAX: usize = 10_000;
const INTERVAL_MAX: i64 = 1_000_000_000;
const POSITION_MAX: i16 = 366;

/// What a text says.
pub(super) struct Parsed {
    pub(super) rule: Rule,
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
    let parts = Parts::read(rule)?;
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
    let until = parts.get("UNTIL").map(|text| until(text, &zone)).transpose()?;
    let count = parts.number("COUNT", 1..=COUNT_MAX)?;
    if until.is_some() && count.is_some() {
        return Err("a rule has COUNT or UNTIL, not both".to_owned());
    }
    let moves = count.is_some() || zone != TimeZone::UTC;
    let kept = (begun.is_none() && moves).then(|| {
        let name = zone.iana_name().unwrap_or("UTC");
        format!("DTSTART;TZID={name}:{} RRULE:{rule}", at.strftime("%Y%m%dT%H%M%S"))
    });
    Ok(Parsed { rule: parts.rule()?, zone, start: at, until, count, kept })
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
    let part = |text: Option<&str>| {
        let text = text?;
        if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse::<i16>().ok() } else { None }
    };
    let small = |text: Option<&str>| i8::try_from(part(text)?).ok();
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, time),
        None => (text, "000000"),
    };
    if date.len() != 8 || time.len() != 6 || (is_utc && !text.contains('T')) {
        return None;
    }
    let at = DateTime::new(
        part(date.get(..4))?,
        small(date.get(4..6))?,
        small(date.get(6..))?,
        small(time.get(..2))?,
        small(time.get(2..4))?,
        small(time.get(4..))?,
        0,
    );
    Some((at.ok()?, is_utc))
}

/// A date alone means all of that day.
fn until(text: &str, zone: &TimeZone) -> Result<i64, String> {
    let wrong = || "UNTIL is no time, as `UNTIL=20261231T235959Z`".to_owned();
    let (at, is_utc) = time(text).ok_or_else(wrong)?;
    let utc = TimeZone::UTC;
    let at = if text.contains('T') { at } else { at.date().at(23, 59, 59, 0) };
    instant(if is_utc { &utc } else { zone }, at).ok_or_else(wrong)
}

/// The parts of a rule by their names.
struct Parts<'a>(BTreeMap<&'a str, &'a str>);

const NAMES: [&str; 14] = [
    "FREQ",
    "INTERVAL",
    "COUNT",
    "UNTIL",
    "WKST",
    "BYSECOND",
    "BYMINUTE",
    "BYHOUR",
    "BYDAY",
    "BYMONTHDAY",
    "BYYEARDAY",
    "BYWEEKNO",
    "BYMONTH",
    "BYSETPOS",
];

impl<'a> Parts<'a> {
    fn read(text: &'a str) -> Result<Self, String> {
        let mut parts = BTreeMap::new();
        for part in text.trim_end_matches(';').split(';') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if !NAMES.contains(&name) {
                let name = recurrence::excerpt(name);
                return Err(format!("`{name}` is no part of a rule that is known"));
            }
            if value.is_empty() || parts.insert(name, value).is_some() {
                return Err(format!("{name} has no value or stands twice"));
            }
        }
        Ok(Self(parts))
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied()
    }

    fn number<T: std::str::FromStr + PartialOrd + std::fmt::Display>(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<Option<T>, String> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number = text.parse::<T>().ok().filter(|number| range.contains(number));
        let wrong = || format!("{name} is a number from {} to {}", range.start(), range.end());
        number.map(Some).ok_or_else(wrong)
    }

    /// A list of numbers from a least one to a greatest one; where the least
    /// is 1 also from the end, as negative ones.
    fn list(&self, name: &str, least: i16, greatest: i16) -> Result<Vec<i16>, String> {
        let Some(text) = self.get(name) else { return Ok(Vec::new()) };
        let from_end = least == 1 && name != "BYMONTH";
        let read = |text: &str| {
            let number: i16 = text.parse().ok()?;
            let size = if from_end { number.checked_abs()? } else { number };
            (least..=greatest).contains(&size).then_some(number)
        };
        let mut list = text
            .split(',')
            .map(read)
            .collect::<Option<Vec<i16>>>()
            .ok_or_else(|| format!("{name} has numbers from {least} to {greatest}"))?;
        list.sort_unstable();
        list.dedup();
        Ok(list)
    }

    fn frequency(&self) -> Result<Frequency, String> {
        match self.get("FREQ") {
            Some("YEARLY") => Ok(Frequency::Yearly),
            Some("MONTHLY") => Ok(Frequency::Monthly),
            Some("WEEKLY") => Ok(Frequency::Weekly),
            Some("DAILY") => Ok(Frequency::Daily),
            Some("HOURLY") => Ok(Frequency::Hourly),
            Some("MINUTELY") => Ok(Frequency::Minutely),
            Some("SECONDLY") => Ok(Frequency::Secondly),
            Some(_) | None => Err("FREQ is YEARLY, MONTHLY, WEEKLY, DAILY, HOURLY, MINUTELY or \
                                   SECONDLY"
                .to_owned()),
        }
    }

    fn weekdays(&self) -> Result<Vec<(i16, i8)>, String> {
        let Some(text) = self.get("BYDAY") else { return Ok(Vec::new()) };
        let read = |text: &str| {
            let (nth, name) = text.split_at_checked(text.len().checked_sub(2)?)?;
            let nth =
                if nth.is_empty() { 0 } else { nth.parse::<i16>().ok().filter(|n| *n != 0)? };
            ((-53..=53).contains(&nth)).then_some((nth, super::number(weekday(name)?)))
        };
        let list = text.split(',').map(read).collect::<Option<Vec<_>>>();
        let mut list = list.ok_or("BYDAY has days as MO, 2TU or -1FR")?;
        list.sort_unstable();
        list.dedup();
        Ok(list)
    }

    fn rule(&self) -> Result<Rule, String> {
        let mut rule = Rule {
            frequency: self.frequency()?,
            interval: self.number("INTERVAL", 1..=INTERVAL_MAX)?.unwrap_or(1),
            months: self.list("BYMONTH", 1, 12)?,
            weeks: self.list("BYWEEKNO", 1, 53)?,
            year_days: self.list("BYYEARDAY", 1, 366)?,
            month_days: self.list("BYMONTHDAY", 1, 31)?,
            weekdays: self.weekdays()?,
            hours: self.list("BYHOUR", 0, 23)?,
            minutes: self.list("BYMINUTE", 0, 59)?,
            seconds: self.list("BYSECOND", 0, 60)?,
            positions: self.list("BYSETPOS", 1, POSITION_MAX)?,
            week_start: match self.get("WKST") {
                Some(name) => weekday(name).ok_or("WKST is a day as MO")?,
                None => Weekday::Monday,
            },
        };
        // There are no leap seconds here.
        rule.seconds.iter_mut().for_each(|second| *second = (*second).min(59));
        rule.seconds.dedup();
        self.fits(&rule)?;
        Ok(rule)
    }

    /// What RFC 5545 forbids, and what would name nothing.
    fn fits(&self, rule: &Rule) -> Result<(), String> {
        let frequency = rule.frequency;
        let numbered = rule.weekdays.iter().any(|(nth, _)| *nth != 0);
        let coarse = matches!(frequency, Frequency::Yearly | Frequency::Monthly);
        let in_between =
            matches!(frequency, Frequency::Monthly | Frequency::Weekly | Frequency::Daily);
        let by = self.0.keys().any(|name| name.starts_with("BY") && *name != "BYSETPOS");
        let refused = [
            (!rule.weeks.is_empty() && frequency != Frequency::Yearly, "BYWEEKNO needs YEARLY"),
            (!rule.year_days.is_empty() && in_between, "BYYEARDAY does not go with this FREQ"),
            (
                !rule.month_days.is_empty() && frequency == Frequency::Weekly,
                "BYMONTHDAY does not go with WEEKLY",
            ),
            (
                numbered && (!coarse || !rule.weeks.is_empty()),
                "BYDAY has numbers with MONTHLY or YEARLY alone, and not with BYWEEKNO",
            ),
            (!rule.positions.is_empty() && !by, "BYSETPOS needs another BY part"),
        ];
        match refused.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, why)) => Err(why.to_owned()),
            None => Ok(()),
        }
    }
}

fn weekday(name: &str) -> Option<Weekday> {
    Some(match name {
        "MO" => Weekday::Monday,
        "TU" => Weekday::Tuesday,
        "WE" => Weekday::Wednesday,
        "TH" => Weekday::Thursday,
        "FR" => Weekday::Friday,
        "SA" => Weekday::Saturday,
        "SU" => Weekday::Sunday,
        _ => return None,
    })
}
