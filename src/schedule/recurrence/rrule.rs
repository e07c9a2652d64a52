//! The recurrence rules of RFC 5545.
//!
//! A rule is looked at period by period (its year, month, week, …) from the
//! one that the moment lies in, which is found by arithmetic. The days of a
//! period are few and are listed; its times of day may be 86,400 and are
//! counted, not listed.

mod text;

use jiff::{
    Timestamp, ToSpan as _,
    civil::{Date, DateTime, Time, Weekday},
    tz::{AmbiguousOffset, TimeZone},
};

pub(super) use self::text::is_one;
use crate::domain::schedule::Nanos;

/// How much one search looks at, in days and times. All days up to 2262, where
/// nanoseconds end, are less than half of it.
const WORK_MAX: u32 = 200_000;
const YEAR_MAX: i16 = 2262;
const DAY: i64 = 86_400;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Frequency {
    Yearly,
    Monthly,
    Weekly,
    Daily,
    Hourly,
    Minutely,
    Secondly,
}

impl Frequency {
    /// How many seconds a period has that is counted in elapsed time.
    const fn seconds(self) -> Option<i64> {
        match self {
            Self::Yearly | Self::Monthly | Self::Weekly | Self::Daily => None,
            Self::Hourly => Some(3_600),
            Self::Minutely => Some(60),
            Self::Secondly => Some(1),
        }
    }
}

/// A rule's parts; lists are sorted and have nothing twice, an empty one was
/// not given.
#[derive(Clone, Debug)]
struct Rule {
    frequency: Frequency,
    interval: i64,
    months: Vec<i16>,
    weeks: Vec<i16>,
    year_days: Vec<i16>,
    month_days: Vec<i16>,
    /// With the how manieth of its month or year; 0 is all of them.
    weekdays: Vec<(i16, i8)>,
    hours: Vec<i16>,
    minutes: Vec<i16>,
    seconds: Vec<i16>,
    positions: Vec<i16>,
    week_start: Weekday,
}

/// A rule with its start, on a time zone's calendar.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    rule: Rule,
    zone: TimeZone,
    start: DateTime,
    /// `start` in seconds since 1970.
    first: i64,
    /// No time is behind this one.
    last: Option<i64>,
}

impl Bound {
    /// Reads a rule; answers also with its text including the `DTSTART` where
    /// that is to be kept.
    pub(super) fn parse(
        text: &str,
        zone: Option<&TimeZone>,
        start: Nanos,
    ) -> Result<(Self, Option<String>), String> {
        let parsed = text::parse(text, zone, start)?;
        let text::Parsed { mut rule, zone, start, until, count, kept } = parsed;
        rule.complete(start);
        let first = instant(&zone, start).ok_or("the start is out of range")?;
        let mut bound = Self { rule, zone, start, first, last: until };
        if let Some(count) = count {
            bound.last = bound.ends_after(count)?.into_iter().chain(until).min();
        }
        Ok((bound, kept))
    }

    /// The time of the last one of so many.
    fn ends_after(&self, count: usize) -> Result<Option<i64>, String> {
        let mut walk = Walk::new(self, self.first.saturating_sub(1));
        let mut last = None;
        for _ in 0..count {
            match walk.next() {
                Some(time) => last = Some(time),
                None if walk.work == 0 => {
                    return Err("COUNT: it takes too long to find the last one".to_owned());
                }
                None => break,
            }
        }
        Ok(last)
    }

    /// The first time behind a second.
    pub(super) fn next_after(&self, after: i64) -> Option<i64> {
        let after = after.max(self.first.saturating_sub(1));
        let next = Walk::new(self, after).next()?;
        self.last.is_none_or(|last| next <= last).then_some(next)
    }

    fn civil(&self, second: i64) -> Option<DateTime> {
        Some(self.zone.to_datetime(Timestamp::from_second(second).ok()?))
    }
}

/// A time of a calendar in seconds since 1970: one that the clocks skip is the
/// moment behind the gap, one that they repeat the first of both.
pub(super) fn instant(zone: &TimeZone, at: DateTime) -> Option<i64> {
    let before = match zone.to_ambiguous_timestamp(at).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset,
        AmbiguousOffset::Fold { before, .. } => before,
        AmbiguousOffset::Gap { before, .. } => {
            let behind = before.to_timestamp(at).ok()?.checked_add(1.second()).ok()?;
            return Some(zone.preceding(behind).next()?.timestamp().as_second());
        }
    };
    Some(before.to_timestamp(at).ok()?.as_second())
}

impl Rule {
    /// What the rule leaves open is as in its start.
    fn complete(&mut self, start: DateTime) {
        let no_days = self.weeks.is_empty()
            && self.year_days.is_empty()
            && self.month_days.is_empty()
            && self.weekdays.is_empty();
        match self.frequency {
            Frequency::Yearly if no_days => {
                if self.months.is_empty() {
                    self.months.push(start.month().into());
                }
                self.month_days.push(start.day().into());
            }
            Frequency::Monthly if no_days => self.month_days.push(start.day().into()),
            Frequency::Weekly if self.weekdays.is_empty() => {
                self.weekdays.push((0, number(start.weekday())));
            }
            // A week's number alone means the start's day of the week.
            Frequency::Yearly
                if self.year_days.is_empty()
                    && self.month_days.is_empty()
                    && self.weekdays.is_empty() =>
            {
                self.weekdays.push((0, number(start.weekday())));
            }
            Frequency::Yearly
            | Frequency::Monthly
            | Frequency::Weekly
            | Frequency::Daily
            | Frequency::Hourly
            | Frequency::Minutely
            | Frequency::Secondly => {}
        }
        let defaults = [
            (Frequency::Hourly, &mut self.hours, start.hour()),
            (Frequency::Minutely, &mut self.minutes, start.minute()),
            (Frequency::Secondly, &mut self.seconds, start.second()),
        ];
        for (unit, list, value) in defaults {
            // What is not finer than the rule's own step is left open.
            if self.frequency < unit && list.is_empty() {
                list.push(value.into());
            }
        }
    }

    /// Whether the rule allows a day.
    fn allows(&self, date: Date) -> bool {
        let from_end = |day: i16, length: i16| day - length - 1;
        let (day, length) = (i16::from(date.day()), i16::from(date.days_in_month()));
        let (of_year, year_length) = (date.day_of_year(), date.days_in_year());
        let either = |list: &[i16], day: i16, length: i16| {
            list.is_empty() || list.contains(&day) || list.contains(&from_end(day, length))
        };
        let month = i16::from(date.month());
        (self.months.is_empty() || self.months.contains(&month))
            && either(&self.month_days, day, length)
            && either(&self.year_days, of_year, year_length)
            && (self.weekdays.is_empty() || self.allows_weekday(date))
            && (self.weeks.is_empty() || self.allows_week(date))
    }

    fn allows_weekday(&self, date: Date) -> bool {
        let of_year = self.frequency == Frequency::Yearly && self.months.is_empty();
        let (day, length) = if of_year {
            (date.day_of_year(), date.days_in_year())
        } else {
            (i16::from(date.day()), i16::from(date.days_in_month()))
        };
        let (place, from_end) = ((day - 1) / 7 + 1, -((length - day) / 7 + 1));
        let weekday = number(date.weekday());
        self.weekdays.iter().any(|(nth, wanted)| {
            *wanted == weekday && (*nth == 0 || *nth == place || *nth == from_end)
        })
    }

    /// A week is of the year that most of its days are of.
    fn allows_week(&self, date: Date) -> bool {
        let into_week = date.weekday().since(self.week_start);
        let Ok(middle) = date.checked_add((3 - i32::from(into_week)).days()) else { return false };
        let (day, length) = (middle.day_of_year(), middle.days_in_year());
        let week = (day - 1) / 7 + 1;
        let from_end = -((length - day) / 7 + 1);
        self.weeks.contains(&week) || self.weeks.contains(&from_end)
    }
}

const fn number(weekday: Weekday) -> i8 {
    weekday.to_monday_zero_offset()
}

/// One period: all its days with all its times of day, in order.
#[derive(Debug, Default)]
struct Period {
    days: Vec<Date>,
    hours: Vec<i16>,
    minutes: Vec<i16>,
    seconds: Vec<i16>,
    /// Of a rule in elapsed time: when the civil day began by the offset that
    /// holds in this period.
    midnight: Option<i64>,
    /// The places that BYSETPOS names, the last first.
    picked: Option<Vec<usize>>,
    at: usize,
}

impl Period {
    fn times(&self) -> usize {
        self.hours.len() * self.minutes.len() * self.seconds.len()
    }

    fn len(&self) -> usize {
        self.days.len() * self.times()
    }

    /// Picks by BYSETPOS.
    fn pick(&mut self, positions: &[i16]) {
        if positions.is_empty() {
            return;
        }
        let length = self.len();
        let place = |position: &i16| {
            let position = isize::from(*position);
            let from_start = position.checked_sub(1)?;
            if position > 0 {
                usize::try_from(from_start).ok()
            } else {
                length.checked_sub(position.unsigned_abs())
            }
        };
        let mut picked: Vec<usize> =
            positions.iter().filter_map(place).filter(|place| *place < length).collect();
        picked.sort_unstable_by(|a, b| b.cmp(a));
        picked.dedup();
        self.picked = Some(picked);
    }

    /// Leaves out what is not behind a time of the calendar.
    fn skip(&mut self, civil: DateTime) {
        let before = self.days.partition_point(|day| *day < civil.date());
        self.at = before * self.times();
        if self.days.get(before) == Some(&civil.date()) {
            self.at += self.times_up_to(civil.time());
        }
        if let Some(picked) = &mut self.picked {
            let at = self.at;
            picked.retain(|place| *place >= at);
        }
    }

    /// How many times of day are not behind one.
    fn times_up_to(&self, time: Time) -> usize {
        let split = |list: &[i16], value: i8| {
            let value = i16::from(value);
            (list.partition_point(|one| *one < value), list.contains(&value))
        };
        let (hours, this_hour) = split(&self.hours, time.hour());
        let (minutes, this_minute) = split(&self.minutes, time.minute());
        let (seconds, this_second) = split(&self.seconds, time.second());
        let mut sum = hours * self.minutes.len() * self.seconds.len();
        if this_hour {
            sum += minutes * self.seconds.len();
            if this_minute {
                sum += seconds + usize::from(this_second);
            }
        }
        sum
    }

    /// The next one, in seconds since 1970.
    fn next(&mut self, zone: &TimeZone) -> Option<i64> {
        let place = match &mut self.picked {
            Some(picked) => picked.pop()?,
            None => {
                self.at += 1;
                self.at - 1
            }
        };
        let times = self.times();
        let day = *self.days.get(place.checked_div(times)?)?;
        let time = place.checked_rem(times)?;
        let second = *self.seconds.get(time % self.seconds.len())?;
        let time = time / self.seconds.len();
        let minute = *self.minutes.get(time % self.minutes.len())?;
        let hour = *self.hours.get(time / self.minutes.len())?;
        if let Some(midnight) = self.midnight {
            let of_day = (i64::from(hour) * 60 + i64::from(minute)) * 60 + i64::from(second);
            return midnight.checked_add(of_day);
        }
        let part = |value: i16| i8::try_from(value).ok();
        let time = Time::new(part(hour)?, part(minute)?, part(second)?, 0).ok()?;
        instant(zone, day.to_datetime(time))
    }
}

/// The times of a rule behind a moment, in their order.
struct Walk<'a> {
    bound: &'a Bound,
    /// Seconds since 1970; what follows is behind.
    after: i64,
    /// The period that is looked at next, counted from the start's.
    index: i64,
    period: Period,
    work: u32,
}

impl<'a> Walk<'a> {
    fn new(bound: &'a Bound, after: i64) -> Self {
        let mut walk = Self { bound, after, index: 0, period: Period::default(), work: WORK_MAX };
        walk.index = walk.index_of(after).unwrap_or(0).max(0);
        walk
    }

    /// The period that a moment lies in, or the last one before it.
    fn index_of(&self, after: i64) -> Option<i64> {
        let Bound { rule, start, first, .. } = self.bound;
        let civil = self.bound.civil(after)?;
        let passed = match rule.frequency {
            Frequency::Yearly => i64::from(civil.year()) - i64::from(start.year()),
            Frequency::Monthly => months(civil.date()) - months(start.date()),
            Frequency::Weekly => days(rule.week_of(start.date())?, civil.date()).div_euclid(7),
            Frequency::Daily => days(start.date(), civil.date()),
            Frequency::Hourly | Frequency::Minutely | Frequency::Secondly => {
                (after - first).div_euclid(rule.frequency.seconds()?)
            }
        };
        Some(passed.div_euclid(rule.interval))
    }

    /// Takes up the period of the index, or says that none follows. One
    /// without days is empty.
    fn take_up(&mut self) -> Option<()> {
        let rule = &self.bound.rule;
        self.period = if rule.frequency.seconds().is_some() {
            self.elapsed()?
        } else {
            let (first, length) = self.calendar()?;
            if first.year() > YEAR_MAX {
                return None;
            }
            self.index = self.index.checked_add(1)?;
            self.work = self.work.saturating_sub(u32::from(length.unsigned_abs()));
            let mut days = Vec::new();
            let mut date = first;
            for _ in 0..length {
                if rule.allows(date) {
                    days.push(date);
                }
                date = date.tomorrow().ok()?;
            }
            let mut period = Period {
                days,
                hours: rule.hours.clone(),
                minutes: rule.minutes.clone(),
                seconds: rule.seconds.clone(),
                ..Period::default()
            };
            period.pick(&rule.positions);
            period.skip(self.bound.civil(self.after)?);
            period
        };
        Some(())
    }

    /// The first day of a period of the calendar, and how many it has.
    fn calendar(&self) -> Option<(Date, i16)> {
        let Bound { rule, start, .. } = self.bound;
        let passed = self.index.checked_mul(rule.interval)?;
        match rule.frequency {
            Frequency::Yearly => {
                let year = i64::from(start.year()).checked_add(passed)?;
                let first = Date::new(i16::try_from(year).ok()?, 1, 1).ok()?;
                Some((first, first.days_in_year()))
            }
            Frequency::Monthly => {
                let month = months(start.date()).checked_add(passed)?;
                let year = i16::try_from(month.div_euclid(12)).ok()?;
                let month = i8::try_from(month.rem_euclid(12) + 1).ok()?;
                let first = Date::new(year, month, 1).ok()?;
                Some((first, first.days_in_month().into()))
            }
            Frequency::Weekly => {
                let first = rule.week_of(start.date())?;
                Some((later(first, passed.checked_mul(7)?)?, 7))
            }
            Frequency::Daily | Frequency::Hourly | Frequency::Minutely | Frequency::Secondly => {
                Some((later(start.date(), passed)?, 1))
            }
        }
    }

    /// A period that is counted in elapsed time. Where the rule forbids its
    /// day, hour or minute, the next one is the first behind that.
    fn elapsed(&mut self) -> Option<Period> {
        let Bound { rule, first, .. } = self.bound;
        let unit = rule.frequency.seconds()?;
        let step = unit.checked_mul(rule.interval)?;
        let at = self.index.checked_mul(step)?.checked_add(*first)?;
        let civil = self.bound.civil(at)?;
        if civil.year() > YEAR_MAX {
            return None;
        }
        self.work = self.work.saturating_sub(1);
        let (minute, second) = (i64::from(civil.minute()), i64::from(civil.second()));
        let of_day = (i64::from(civil.hour()) * 60 + minute) * 60 + second;
        let given = |list: &[i16], value: i8| list.is_empty() || list.contains(&value.into());
        let behind = if !rule.allows(civil.date()) {
            let mut day = civil.date().tomorrow().ok()?;
            while !rule.allows(day) {
                self.work = self.work.checked_sub(1)?;
                day = day.tomorrow().ok()?;
            }
            Some(instant(&self.bound.zone, day.to_datetime(Time::midnight()))?)
        } else if !given(&rule.hours, civil.hour()) {
            Some(at + 3_600 - minute * 60 - second)
        } else if rule.frequency > Frequency::Hourly && !given(&rule.minutes, civil.minute()) {
            Some(at + 60 - second)
        } else if rule.frequency > Frequency::Minutely && !given(&rule.seconds, civil.second()) {
            Some(at + 1)
        } else {
            None
        };
        let next = self.index.checked_add(1)?;
        if let Some(behind) = behind {
            // Rounded up: the first period that does not begin before.
            let passed = behind.checked_sub(*first)?.checked_add(step - 1)?;
            self.index = next.max(passed.div_euclid(step));
            return Some(Period::default());
        }
        self.index = next;
        let or_own = |own: bool, list: &[i16], value: i8| {
            if own { vec![value.into()] } else { list.to_vec() }
        };
        let mut period = Period {
            days: vec![civil.date()],
            hours: vec![civil.hour().into()],
            minutes: or_own(unit <= 60, &rule.minutes, civil.minute()),
            seconds: or_own(unit == 1, &rule.seconds, civil.second()),
            midnight: Some(at - of_day),
            ..Period::default()
        };
        period.pick(&rule.positions);
        Some(period)
    }
}

impl Iterator for Walk<'_> {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        while self.work > 0 {
            self.work -= 1;
            match self.period.next(&self.bound.zone) {
                Some(time) if time > self.after => {
                    self.after = time;
                    return Some(time);
                }
                Some(_) => {}
                None => self.take_up()?,
            }
        }
        None
    }
}

impl Rule {
    /// The first day of a day's week.
    fn week_of(&self, date: Date) -> Option<Date> {
        let into_week = date.weekday().since(self.week_start);
        date.checked_sub(i32::from(into_week).days()).ok()
    }
}

fn months(date: Date) -> i64 {
    i64::from(date.year()) * 12 + i64::from(date.month()) - 1
}

/// How many days lie between two.
fn days(from: Date, to: Date) -> i64 {
    let seconds = to.duration_since(from).as_secs();
    seconds.div_euclid(DAY)
}

fn later(date: Date, days: i64) -> Option<Date> {
    let days = i32::try_from(days).ok()?;
    date.checked_add(jiff::Span::new().try_days(days).ok()?).ok()
}
