//! The recurrence rules of RFC 5545, by the library `rrule`.
//!
//! The library reads and checks a rule and finds its times. What is done here
//! makes its answers right on a time zone's calendar and bounds its work:
//!
//! - It walks the times of a clock without a zone; they become moments here.
//!   Its own treatment of zones leaves out or doubles times where the clocks
//!   change, and its zones' names are not those of the rest.
//! - It walks from its start. That is moved, by whole intervals, to just before
//!   the moment that is asked for.
//! - It ends at the year 10,000. Its clock is 7,600 years ahead, which are 19
//!   times the 400 after which the calendar repeats, days of the week
//!   included: so a rule that has no time any more ends in the year 2,400.
//! - A rule by the hour or faster is walked between two changes of the clock,
//!   where elapsed time and the clock agree, and without its conditions on
//!   days, which a second rule by the year answers: with both the library
//!   leaves out days.

mod text;

use chrono::TimeZone as _;
use jiff::{
    SignedDuration, Timestamp, ToSpan as _,
    civil::{Date, DateTime},
    tz::{AmbiguousOffset, Offset, TimeZone},
};
use rrule::{Frequency, NWeekday, RRule, RRuleSet, RRuleSetIter, Tz, Unvalidated, Weekday};

pub(super) use self::text::is_one;
use crate::domain::schedule::Nanos;

/// A rule with a COUNT is walked through to its end when it is read.
const COUNT_MAX: usize = 1_000;
const COUNT_MAX_COSTLY: usize = 200;

const DAY: i64 = 86_400;
const WEEK: i64 = 7;
/// How far the library's clock is ahead.
const AHEAD: i64 = 19 * 146_097 * DAY;
/// How many times a period may name, which the library lists.
const TIMES_MAX: usize = 20_000;
/// How often one search may change to another day or to behind a change of
/// the clock.
const TRIES_MAX: usize = 1_000;
/// How many changes of the clock are looked behind where a rule's steps meet
/// none of its times of day; zones go back and forth between two offsets.
const MISSES_MAX: usize = 2;

const DAYS_OF_WEEK: [Weekday; 7] = [
    Weekday::Mon,
    Weekday::Tue,
    Weekday::Wed,
    Weekday::Thu,
    Weekday::Fri,
    Weekday::Sat,
    Weekday::Sun,
];

/// A rule with its start, on a time zone's calendar.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    /// With what it leaves open as in its start; without its conditions on
    /// days where those are apart.
    rule: RRule,
    /// The days a rule in elapsed time is limited to.
    days: Option<RRule>,
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
        let text::Parsed { rule, zone, start, until, count, kept } =
            text::parse(text, zone, start)?;
        let out_of_range = "the start is out of range";
        let first = instant(&zone, start).ok_or(out_of_range)?;
        let begun = seconds(start).and_then(ahead).ok_or(out_of_range)?;
        let (rule, days) = apart(of_start(rule, start));
        let refused = |error: rrule::RRuleError| format!("the rule is refused: {error}");
        let rule = rule.validate(begun).map_err(refused)?;
        let days = days.map(|days| days.validate(begun).map_err(refused)).transpose()?;
        let mut bound = Self { rule, days, zone, start, first, last: until };
        bound.fits()?;
        if let Some(count) = count {
            let greatest = bound.count_max();
            if count > greatest {
                return Err(format!("COUNT is at most {greatest} here; UNTIL has no bound"));
            }
            let last = bound.walk(first.saturating_sub(1)).take(count).last();
            bound.last = last.into_iter().chain(until).min();
        }
        Ok((bound, kept))
    }

    /// How many times are walked when a rule with a COUNT is read; those with
    /// conditions on the hour, minute or second cost the library more.
    fn count_max(&self) -> usize {
        let rule = &self.rule;
        let by = |unit, list: &[u8]| rule.get_freq() >= unit && !list.is_empty();
        let costly = self.days.is_some()
            || by(Frequency::Hourly, rule.get_by_hour())
            || by(Frequency::Minutely, rule.get_by_minute())
            || by(Frequency::Secondly, rule.get_by_second());
        if costly { COUNT_MAX_COSTLY } else { COUNT_MAX }
    }

    /// Whether the library finds the rule's times, and soon.
    fn fits(&self) -> Result<(), String> {
        let rule = &self.rule;
        let days = match rule.get_freq() {
            Frequency::Yearly => 366,
            Frequency::Monthly => 31,
            Frequency::Weekly => rule.get_by_weekday().len(),
            Frequency::Daily | Frequency::Hourly | Frequency::Minutely | Frequency::Secondly => 1,
        };
        let lists = [
            (Frequency::Hourly, rule.get_by_hour()),
            (Frequency::Minutely, rule.get_by_minute()),
            (Frequency::Secondly, rule.get_by_second()),
        ];
        // Those that are not finer than the rule's own step only limit it.
        let finer = lists.into_iter().filter(|(unit, _)| rule.get_freq() < *unit);
        let times: usize = finer.map(|(_, list)| list.len()).product();
        let places = rule.get_by_set_pos();
        let meets =
            |place: &i32| usize::try_from(place.unsigned_abs()).is_ok_and(|n| n <= times * days);
        if !places.is_empty() && !places.iter().any(meets) {
            return Err("BYSETPOS names none of a period's times".to_owned());
        }
        if places.is_empty() && times * days > TIMES_MAX {
            return Err("the rule names too many times of a day; a faster FREQ may do".to_owned());
        }
        // It goes on by one minute or hour at a time to those that are named.
        let even = |steps: u16| steps.is_multiple_of(60) || 60_u16.is_multiple_of(steps.max(1));
        let steps = rule.get_interval();
        let (hours, minutes) = (!rule.get_by_hour().is_empty(), !rule.get_by_minute().is_empty());
        let met = match rule.get_freq() {
            Frequency::Minutely => !hours || even(steps),
            Frequency::Secondly => {
                let in_hours = !hours || !steps.is_multiple_of(60) || even(steps / 60);
                (!hours && !minutes) || (even(steps) && in_hours)
            }
            Frequency::Yearly
            | Frequency::Monthly
            | Frequency::Weekly
            | Frequency::Daily
            | Frequency::Hourly => true,
        };
        if !met {
            return Err("this FREQ with BYHOUR or BYMINUTE needs an INTERVAL that divides 60 or \
                        is divided by it"
                .to_owned());
        }
        Ok(())
    }

    /// The first time behind a second.
    pub(super) fn next_after(&self, after: i64) -> Option<i64> {
        let after = after.max(self.first.saturating_sub(1));
        let next = self.walk(after).next()?;
        self.last.is_none_or(|last| next <= last).then_some(next)
    }

    /// The times behind a second.
    fn walk(&self, after: i64) -> Box<dyn Iterator<Item = i64> + '_> {
        match span(self.rule.get_freq()) {
            Some(span) => Box::new(Elapsed {
                bound: self,
                step: span * i64::from(self.rule.get_interval()),
                from: after.saturating_add(1),
                days: self.days.as_ref().map(|rule| Days { rule, walk: None, next: None }),
                stretch: None,
            }),
            None => Box::new(self.civil(after).into_iter().flatten()),
        }
    }

    /// The times of a rule of the calendar behind a second.
    fn civil(&self, after: i64) -> Option<impl Iterator<Item = i64> + '_> {
        let clock = self.zone.to_datetime(Timestamp::from_second(after).ok()?);
        let begun = seconds(self.period_of(clock.date())?.to_datetime(jiff::civil::Time::MIN))?;
        // No clock is changed by more than a day.
        let behind = seconds(clock)?.saturating_sub(2 * DAY);
        let mut last = after;
        let times = times(&self.rule, begun)?.skip_while(move |time| *time < behind);
        let moments = times.map_while(|time| instant(&self.zone, calendar(time)?));
        // Several that the clocks skip together are one moment.
        Some(moments.filter(move |time| {
            let later = *time > last;
            last = last.max(*time);
            later
        }))
    }

    /// The first day of the rule's period that a day lies in or behind.
    fn period_of(&self, date: Date) -> Option<Date> {
        let steps = i64::from(self.rule.get_interval());
        // Rounded down to whole steps.
        let whole = |passed: i64| passed.max(0) / steps * steps;
        let months = |date: Date| i64::from(date.year()) * 12 + i64::from(date.month()) - 1;
        let of_months = |months: i64| {
            let month = i8::try_from(months.rem_euclid(12) + 1).ok()?;
            Date::new(i16::try_from(months.div_euclid(12)).ok()?, month, 1).ok()
        };
        let start = self.start.date();
        let days = |from: Date| date.duration_since(from).as_secs().div_euclid(DAY);
        let behind =
            |from: Date, days: i64| from.checked_add(SignedDuration::from_hours(days * 24)).ok();
        match self.rule.get_freq() {
            Frequency::Yearly => {
                let passed = whole(i64::from(date.year()) - i64::from(start.year()));
                of_months((i64::from(start.year()) + passed) * 12)
            }
            Frequency::Monthly => of_months(months(start) + whole(months(date) - months(start))),
            Frequency::Weekly => {
                let into = i64::from(start.weekday().to_monday_zero_offset())
                    - i64::from(self.rule.get_week_start().num_days_from_monday());
                let week = start.checked_sub(into.rem_euclid(WEEK).days()).ok()?;
                behind(week, whole(days(week).div_euclid(WEEK)) * WEEK)
            }
            Frequency::Daily | Frequency::Hourly | Frequency::Minutely | Frequency::Secondly => {
                behind(start, whole(days(start)))
            }
        }
    }
}

/// The library means all days of a week that is named by its number alone; it
/// is the start's day of it.
fn of_start(rule: RRule<Unvalidated>, start: DateTime) -> RRule<Unvalidated> {
    let days =
        rule.get_by_month_day().len() + rule.get_by_year_day().len() + rule.get_by_weekday().len();
    let into = usize::try_from(start.weekday().to_monday_zero_offset()).ok();
    match into.and_then(|into| DAYS_OF_WEEK.get(into)) {
        Some(day) if days == 0 && !rule.get_by_week_no().is_empty() => {
            rule.by_weekday(vec![NWeekday::Every(*day)])
        }
        Some(_) | None => rule,
    }
}

/// Takes the conditions on days out of a rule in elapsed time.
fn apart(rule: RRule<Unvalidated>) -> (RRule<Unvalidated>, Option<RRule<Unvalidated>>) {
    let any = !rule.get_by_month().is_empty()
        || !rule.get_by_month_day().is_empty()
        || !rule.get_by_year_day().is_empty()
        || !rule.get_by_weekday().is_empty();
    if span(rule.get_freq()).is_none() || !any {
        return (rule, None);
    }
    let mut days = rule.clone().freq(Frequency::Yearly).interval(1).by_set_pos(Vec::new());
    days = days.by_hour(vec![0]).by_minute(vec![0]).by_second(vec![0]);
    if days.get_by_weekday().is_empty() {
        // Otherwise a rule by the year would mean the start's day.
        days = days.by_weekday(DAYS_OF_WEEK.map(NWeekday::Every).to_vec());
    }
    let rule = rule.by_month(&[]).by_month_day(Vec::new()).by_year_day(Vec::new());
    (rule.by_weekday(Vec::new()), Some(days))
}

/// The times of a rule in elapsed time, in their order.
struct Elapsed<'a> {
    bound: &'a Bound,
    /// The seconds from one period to the next.
    step: i64,
    /// What follows is not before.
    from: i64,
    days: Option<Days<'a>>,
    stretch: Option<Stretch>,
}

/// The times between two changes of the clock, or of one day there.
struct Stretch {
    times: Times,
    /// What the clock is ahead of UTC.
    offset: i64,
    /// The first second that is behind.
    end: i64,
    /// The change of the clock.
    change: i64,
}

impl Iterator for Elapsed<'_> {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        let mut misses = 0;
        for _ in 0..TRIES_MAX {
            let stretch = match &mut self.stretch {
                Some(stretch) => stretch,
                none => match self.bound.stretch(self.from, self.step, self.days.as_mut())? {
                    Ok(stretch) => none.insert(stretch),
                    Err(later) => {
                        self.from = later;
                        continue;
                    }
                },
            };
            let (from, offset) = (self.from, stretch.offset);
            match stretch.times.by_ref().map(|time| time - offset).find(|at| *at >= from) {
                Some(at) if at < stretch.end => {
                    self.from = at.checked_add(1)?;
                    return Some(at);
                }
                // There is none before it, if the clock does not change.
                Some(at) => self.from = at.min(stretch.change),
                None => {
                    misses += 1;
                    if misses == MISSES_MAX || stretch.change == i64::MAX {
                        return None;
                    }
                    self.from = stretch.change;
                }
            }
            self.stretch = None;
        }
        None
    }
}

impl Bound {
    /// The stretch of time that a second lies in, or the second at which to
    /// look again since no day before is allowed.
    fn stretch(
        &self,
        from: i64,
        step: i64,
        days: Option<&mut Days<'_>>,
    ) -> Option<Result<Stretch, i64>> {
        let moment = Timestamp::from_second(from).ok()?;
        let offset = i64::from(self.zone.to_offset(moment).seconds());
        let change =
            self.zone.following(moment).next().map_or(i64::MAX, |at| at.timestamp().as_second());
        let mut end = change;
        if let Some(days) = days {
            let today = from.checked_add(offset)?.div_euclid(DAY);
            let day = days.from(today)?;
            if day > today {
                return Some(Err((day * DAY - offset).min(change)));
            }
            end = end.min((today + 1) * DAY - offset);
        }
        let passed = from.checked_sub(self.first)?.div_euclid(step);
        let begun = self.first.checked_add(passed.checked_mul(step)?)?;
        let times = times(&self.rule, begun.checked_add(offset)?)?;
        Some(Ok(Stretch { times, offset, end, change }))
    }
}

/// The days that a rule allows, as days since 1970.
struct Days<'a> {
    rule: &'a RRule,
    walk: Option<Times>,
    next: Option<i64>,
}

impl Days<'_> {
    /// The first one that is not before a day; those asked for only grow.
    fn from(&mut self, day: i64) -> Option<i64> {
        let walk = match &mut self.walk {
            Some(walk) => walk,
            none => none.insert(times(self.rule, day * DAY)?),
        };
        while self.next.is_none_or(|next| next < day) {
            self.next = Some(walk.next()?.div_euclid(DAY));
        }
        self.next
    }
}

/// How many seconds a period has that is counted in elapsed time.
const fn span(frequency: Frequency) -> Option<i64> {
    match frequency {
        Frequency::Yearly | Frequency::Monthly | Frequency::Weekly | Frequency::Daily => None,
        Frequency::Hourly => Some(3_600),
        Frequency::Minutely => Some(60),
        Frequency::Secondly => Some(1),
    }
}

/// The times that a rule has from a start on, both by a clock without a zone,
/// in seconds.
fn times(rule: &RRule, start: i64) -> Option<Times> {
    let set = RRuleSet::new(ahead(start)?).rrule(rule.clone()).limit();
    Some(Times(set.into_iter()))
}

struct Times(RRuleSetIter);

impl Iterator for Times {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        Some(self.0.next()?.timestamp() - AHEAD)
    }
}

/// The time of a clock as the library has it.
fn ahead(time: i64) -> Option<chrono::DateTime<Tz>> {
    Tz::UTC.timestamp_opt(time.checked_add(AHEAD)?, 0).single()
}

fn seconds(at: DateTime) -> Option<i64> {
    Some(Offset::UTC.to_timestamp(at).ok()?.as_second())
}

fn calendar(time: i64) -> Option<DateTime> {
    Some(Offset::UTC.to_datetime(Timestamp::from_second(time).ok()?))
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
