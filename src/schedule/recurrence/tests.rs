use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

/// Milliseconds where the code is optimized and the machine idle.
const BOUND: Duration = Duration::from_secs(10);

fn at(text: &str) -> Nanos {
    let at: jiff::Timestamp = text.parse().unwrap();
    Nanos(at.as_nanosecond().try_into().unwrap())
}

fn shown(at: Nanos) -> String {
    jiff::Timestamp::from_nanosecond(at.0.into()).unwrap().to_string()
}

fn read(text: &str, start: &str) -> Recurrence {
    Recurrence::parse(text, at(start)).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The next ones behind a moment, the start being there too.
fn next(text: &str, after: &str, wanted: &[&str]) {
    let found = read(text, after).upcoming(at(after), wanted.len());
    assert_eq!(found.into_iter().map(shown).collect::<Vec<_>>(), wanted, "{text}");
}

/// All there are of one, with its start.
fn all(text: &str, start: &str) -> Vec<String> {
    let start = at(start);
    let found = read(text, &shown(start)).upcoming(Nanos(start.0 - 1), 1_000);
    found.into_iter().map(shown).collect()
}

#[test]
fn a_span_is_counted_from_the_start() {
    let quarter = read("every 15m", "2026-04-01T12:00:00.5Z");
    for (after, wanted) in [
        ("2026-01-01T00:00:00Z", "2026-04-01T12:00:00.5Z"),
        ("2026-04-01T12:00:00.5Z", "2026-04-01T12:15:00.5Z"),
        ("2026-04-01T12:15:00.499999999Z", "2026-04-01T12:15:00.5Z"),
        // What was missed is skipped.
        ("2027-04-01T12:07:00Z", "2027-04-01T12:15:00.5Z"),
    ] {
        assert_eq!(quarter.next_after(at(after)).map(shown).as_deref(), Some(wanted), "{after}");
    }
    next("every 1h30m", "2026-01-01T00:00:00Z", &["2026-01-01T01:30:00Z", "2026-01-01T03:00:00Z"]);
    next("every 1w2d3h4m5s", "2026-01-01T00:00:00Z", &["2026-01-10T03:04:05Z"]);
    next("every 90s", "2026-01-01T00:00:00Z", &["2026-01-01T00:01:30Z"]);
    for bad in [
        "every",
        "every ",
        "every 15",
        "every m",
        "every 0s",
        "every -1s",
        "every 1s1s",
        "every 1m1h",
        "every 1.5h",
        "every 500ms",
        "every 1 h",
        "every 99999999999999999999s",
        "every 9223372036854775807s",
        "every 300000d",
        "TZ=Europe/Berlin every 1h",
        "every 1hü",
    ] {
        let refused = Recurrence::parse(bad, Nanos(0));
        assert!(refused.is_err(), "{bad}: {refused:?}");
    }
    assert_eq!(quarter.next_after(Nanos(i64::MAX)), None);
}

#[test]
fn names_and_cron_expressions() {
    let now = "2026-04-01T12:34:56.7Z";
    next("@hourly", now, &["2026-04-01T13:00:00Z"]);
    next("@daily", now, &["2026-04-02T00:00:00Z"]);
    next("@weekly", now, &["2026-04-05T00:00:00Z"]);
    next("@monthly", now, &["2026-05-01T00:00:00Z"]);
    next("@yearly", now, &["2027-01-01T00:00:00Z"]);
    next("0 3 * * *", now, &["2026-04-02T03:00:00Z", "2026-04-03T03:00:00Z"]);
    next("*/10 * * * * *", now, &["2026-04-01T12:35:00Z", "2026-04-01T12:35:10Z"]);
    next("57 34 12 * * *", now, &["2026-04-01T12:34:57Z", "2026-04-02T12:34:57Z"]);
    next(
        "0 0 13 * FRI",
        now,
        &["2026-04-03T00:00:00Z", "2026-04-10T00:00:00Z", "2026-04-13T00:00:00Z"],
    );
    next("0 0 L * *", now, &["2026-04-30T00:00:00Z", "2026-05-31T00:00:00Z"]);
    next("CRON_TZ=Europe/Berlin 0 3 * * *", now, &["2026-04-02T01:00:00Z"]);
    next("TZ=Asia/Kathmandu @daily", now, &["2026-04-01T18:15:00Z"]);
    // Before 1970, between two seconds, and from a start that is to come.
    next(
        "* * * * * *",
        "1969-12-31T23:59:58.5Z",
        &["1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z"],
    );
    let later = read("@daily", "2027-01-01T00:00:00Z");
    assert_eq!(later.next_after(at(now)).map(shown).as_deref(), Some("2027-01-01T00:00:00Z"));
    for bad in [
        "",
        "*",
        "* * * *",
        "* * * * * * *",
        "60 * * * *",
        "* * 32 * *",
        "@reboot",
        "@every 1h",
        "0 0 30 2 *",
        "0 0 31 4,6 *",
        "CRON_TZ=Mars/Base 0 3 * * *",
        "TZ=../UTC @daily",
        "TZ=UTC",
        "TZ= @daily",
        "0 0 * * ü",
        "0 0 * * @",
    ] {
        let refused = Recurrence::parse(bad, Nanos(0));
        assert!(refused.is_err(), "{bad}: {refused:?}");
    }
}

#[test]
fn skipped_times_come_behind_the_gap_and_doubled_ones_once() {
    // On 2026-03-29 Berlin goes from 02:00 to 03:00, at 01:00 UTC; on
    // 2026-10-25 from 03:00 back to 02:00.
    for text in [
        "CRON_TZ=Europe/Berlin 30 2 * * *",
        "TZ=Europe/Berlin FREQ=DAILY;BYHOUR=2;BYMINUTE=30;BYSECOND=0",
        "DTSTART;TZID=Europe/Berlin:20260101T023000 RRULE:FREQ=DAILY",
    ] {
        next(
            text,
            "2026-03-27T12:00:00Z",
            &["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
        );
        next(
            text,
            "2026-10-23T12:00:00Z",
            &["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
        );
        // From the second half past two on there is none that day.
        next(text, "2026-10-25T01:30:00Z", &["2026-10-26T01:30:00Z"]);
    }
    // Several that are skipped together come once.
    next(
        "TZ=Europe/Berlin FREQ=DAILY;BYHOUR=2;BYMINUTE=0,15,30;BYSECOND=0",
        "2026-03-29T00:00:00Z",
        &["2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"],
    );
    // A day that begins with a gap, and one that was not at all.
    next(
        "TZ=America/Havana FREQ=DAILY;BYHOUR=0;BYMINUTE=30;BYSECOND=0",
        "2026-03-08T00:00:00Z",
        &["2026-03-08T05:00:00Z", "2026-03-09T04:30:00Z"],
    );
    next(
        "TZ=Pacific/Apia FREQ=DAILY;BYHOUR=9;BYMINUTE=0;BYSECOND=0",
        "2011-12-29T12:00:00Z",
        &["2011-12-29T19:00:00Z", "2011-12-30T10:00:00Z", "2011-12-30T19:00:00Z"],
    );
}

#[test]
fn hours_go_on_through_changes_of_the_clock() {
    for text in
        ["CRON_TZ=Europe/Berlin 15 * * * *", "TZ=Europe/Berlin FREQ=HOURLY;BYMINUTE=15;BYSECOND=0"]
    {
        let times = ["2026-03-29T00:15:00Z", "2026-03-29T01:15:00Z", "2026-03-29T02:15:00Z"];
        next(text, "2026-03-29T00:00:00Z", &times);
        let times = ["2026-10-25T00:15:00Z", "2026-10-25T01:15:00Z", "2026-10-25T02:15:00Z"];
        next(text, "2026-10-25T00:00:00Z", &times);
    }
    // Days that are left out cost no more than themselves.
    next(
        "FREQ=MINUTELY;BYDAY=MO,FR;BYHOUR=9;BYMINUTE=0,30",
        "2026-04-03T09:10:00Z",
        &["2026-04-03T09:30:00Z", "2026-04-06T09:00:00Z", "2026-04-06T09:30:00Z"],
    );
    // Conditions are of the local clock.
    next(
        "DTSTART;TZID=Europe/Berlin:20261024T000000 RRULE:FREQ=MINUTELY;INTERVAL=30;BYHOUR=2",
        "2026-10-24T12:00:00Z",
        &[
            "2026-10-25T00:00:00Z",
            "2026-10-25T00:30:00Z",
            "2026-10-25T01:00:00Z",
            "2026-10-25T01:30:00Z",
            "2026-10-26T01:00:00Z",
        ],
    );
}

#[test]
fn a_rule_keeps_its_start() {
    let start = "2026-01-31T01:30:00.25Z";
    for (text, kept) in [
        ("FREQ=MONTHLY", "FREQ=MONTHLY"),
        ("RRULE:FREQ=DAILY;COUNT=3", "DTSTART;TZID=UTC:20260131T013000 RRULE:FREQ=DAILY;COUNT=3"),
        (
            "TZ=Europe/Berlin FREQ=DAILY",
            "DTSTART;TZID=Europe/Berlin:20260131T023000 RRULE:FREQ=DAILY",
        ),
        (
            " DTSTART:20260101\r\n\tRRULE:FREQ=DAILY;COUNT=90 ",
            "DTSTART:20260101 RRULE:FREQ=DAILY;COUNT=90",
        ),
        ("TZ=Europe/Berlin 0 3 * * *", "TZ=Europe/Berlin 0 3 * * *"),
    ] {
        let recurrence = read(text, start);
        assert_eq!(recurrence.text(), kept);
        // Read again at each of its times it goes the same way.
        let mut present = recurrence.clone();
        for wanted in recurrence.upcoming(at(start), 300) {
            let next = present.next_after(present.start.max(at(start)));
            assert_eq!(next, Some(wanted), "{text}");
            present = Recurrence::parse(present.text(), wanted).unwrap();
            assert_eq!(present.text(), kept);
        }
    }
    let days = read("FREQ=DAILY;COUNT=3", start);
    let found: Vec<_> = days.upcoming(at(start), 9).into_iter().map(shown).collect();
    assert_eq!(found, ["2026-02-01T01:30:00Z", "2026-02-02T01:30:00Z"]);
}

/// Those of RFC 5545, 3.8.5.3, with the first ones of each.
#[test]
fn the_examples_of_the_standard() {
    for (rule, times) in [
        ("19970902 FREQ=DAILY;COUNT=3", "0902 0903 0904"),
        ("19970902 FREQ=DAILY;INTERVAL=10;COUNT=5", "0902 0912 0922 1002 1012"),
        (
            "19970902 FREQ=WEEKLY;INTERVAL=2;COUNT=8;WKST=SU;BYDAY=TU,TH",
            "0902 0904 0916 0918 0930 1002 1014 1016",
        ),
        ("19970905 FREQ=MONTHLY;COUNT=4;BYDAY=1FR", "0905 1003 1107 1205"),
        ("19970907 FREQ=MONTHLY;INTERVAL=2;COUNT=4;BYDAY=1SU,-1SU", "0907 0928 1102 1130"),
        ("19970922 FREQ=MONTHLY;COUNT=4;BYDAY=-2MO", "0922 1020 1117 1222"),
        ("19970928 FREQ=MONTHLY;BYMONTHDAY=-3;COUNT=4", "0928 1029 1128 1229"),
        ("19970930 FREQ=MONTHLY;COUNT=5;BYMONTHDAY=1,-1", "0930 1001 1031 1101 1130"),
        (
            "19970902 FREQ=MONTHLY;INTERVAL=18;COUNT=4;BYMONTHDAY=10,11",
            "0910 0911 1999-0310 1999-0311",
        ),
        ("19970610 FREQ=YEARLY;COUNT=3;BYMONTH=6,7", "0610 0710 1998-0610"),
        ("19970101 FREQ=YEARLY;INTERVAL=3;COUNT=4;BYYEARDAY=1,100,200", "0101 0410 0719 2000-0101"),
        ("19970519 FREQ=YEARLY;BYDAY=20MO;COUNT=3", "0519 1998-0518 1999-0517"),
        ("19970512 FREQ=YEARLY;BYWEEKNO=20;BYDAY=MO;COUNT=3", "0512 1998-0511 1999-0517"),
        ("19970512 FREQ=YEARLY;BYWEEKNO=20;COUNT=3", "0512 1998-0511 1999-0517"),
        ("19970313 FREQ=YEARLY;BYMONTH=3;BYDAY=TH;COUNT=4", "0313 0320 0327 1998-0305"),
        ("19970902 FREQ=MONTHLY;BYDAY=FR;BYMONTHDAY=13;COUNT=3", "1998-0213 1998-0313 1998-1113"),
        ("19970913 FREQ=MONTHLY;BYDAY=SA;BYMONTHDAY=7,8,9,10,11,12,13;COUNT=3", "0913 1011 1108"),
        (
            "19961105 FREQ=YEARLY;INTERVAL=4;BYMONTH=11;BYDAY=TU;BYMONTHDAY=2,3,4,5,6,7,8;COUNT=3",
            "1996-1105 2000-1107 2004-1102",
        ),
        ("19970904 FREQ=MONTHLY;COUNT=3;BYDAY=TU,WE,TH;BYSETPOS=3", "0904 1007 1106"),
        ("19970929 FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-2;COUNT=4", "0929 1030 1127 1230"),
        ("19970805 FREQ=WEEKLY;INTERVAL=2;COUNT=4;BYDAY=TU,SU;WKST=MO", "0805 0810 0819 0824"),
        ("19970805 FREQ=WEEKLY;INTERVAL=2;COUNT=4;BYDAY=TU,SU;WKST=SU", "0805 0817 0819 0831"),
        (
            "20070115 FREQ=MONTHLY;BYMONTHDAY=15,30;COUNT=5",
            "2007-0115 2007-0130 2007-0215 2007-0315 2007-0330",
        ),
        ("19970902 FREQ=YEARLY;UNTIL=19991231T000000Z", "0902 1998-0902 1999-0902"),
        ("19970902 FREQ=DAILY;UNTIL=19970904", "0902 0903 0904"),
        ("19970902 FREQ=DAILY;UNTIL=19970904T085959Z", "0902 0903"),
    ] {
        let (start, rule) = rule.split_once(' ').unwrap();
        let text = format!("DTSTART:{start}T090000Z\nRRULE:{rule}");
        let wanted: Vec<_> = times
            .split(' ')
            .map(|time| {
                let (year, day) = time.split_once('-').unwrap_or(("1997", time));
                let (month, day) = day.split_at(2);
                format!("{year}-{month}-{day}T09:00:00Z")
            })
            .collect();
        assert_eq!(all(&text, "1990-01-01T00:00:00Z"), wanted, "{rule}");
    }
    let start = "1997-09-02T09:00:00Z";
    let hours = |text: &str| {
        all(text, start).iter().map(|at| at[5..16].to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        hours("FREQ=HOURLY;INTERVAL=3;UNTIL=19970902T170000Z"),
        "09-02T09:00 09-02T12:00 09-02T15:00"
    );
    assert_eq!(hours("FREQ=MINUTELY;INTERVAL=90;COUNT=3"), "09-02T09:00 09-02T10:30 09-02T12:00");
    assert_eq!(
        hours("FREQ=DAILY;BYHOUR=9,10;BYMINUTE=0,40;COUNT=5"),
        "09-02T09:00 09-02T09:40 09-02T10:00 09-02T10:40 09-03T09:00"
    );
    assert_eq!(
        hours("FREQ=HOURLY;BYMINUTE=0,20,40;BYSETPOS=-1,1;COUNT=3"),
        "09-02T09:00 09-02T09:40 09-02T10:00"
    );
}

#[test]
fn what_is_no_rule_is_refused() {
    for bad in [
        "FREQ=",
        "FREQ=FORTNIGHTLY",
        "RRULE:",
        "RRULE:INTERVAL=2",
        "DTSTART:20260101",
        "FREQ=DAILY;FREQ=DAILY",
        "FREQ=DAILY;X-NAME=1",
        "FREQ=DAILY;INTERVAL=0",
        "FREQ=DAILY;INTERVAL=-1",
        "FREQ=SECONDLY;INTERVAL=0.5",
        "FREQ=DAILY;INTERVAL=99999999999999999999",
        "FREQ=DAILY;COUNT=0",
        "FREQ=DAILY;INTERVAL=65536",
        "FREQ=DAILY;COUNT=1001",
        "FREQ=HOURLY;BYDAY=MO;COUNT=201",
        "FREQ=DAILY;BYSECOND=60",
        "FREQ=MONTHLY;BYDAY=MO,2TU",
        "FREQ=MONTHLY;BYWEEKDAY=MO",
        "FREQ=MINUTELY;INTERVAL=7;BYHOUR=3",
        "FREQ=SECONDLY;INTERVAL=420;BYHOUR=3",
        "FREQ=SECONDLY;BYSECOND=1;BYSETPOS=2",
        "FREQ=WEEKLY;BYSETPOS=2;BYHOUR=1",
        "FREQ=DAILY;COUNT=2;UNTIL=20270101",
        "FREQ=DAILY;UNTIL=tomorrow",
        "FREQ=DAILY;UNTIL=19690101",
        "FREQ=DAILY;BYHOUR=24",
        "FREQ=DAILY;BYHOUR=-1",
        "FREQ=DAILY;BYMONTH=0",
        "FREQ=DAILY;BYMONTH=-1",
        "FREQ=MONTHLY;BYMONTHDAY=0",
        "FREQ=MONTHLY;BYMONTHDAY=-32",
        "FREQ=MONTHLY;BYDAY=0MO",
        "FREQ=MONTHLY;BYDAY=XX",
        "FREQ=MONTHLY;BYDAY=54MO",
        "FREQ=MONTHLY;BYDAY=1ü",
        "FREQ=WEEKLY;BYDAY=1MO",
        "FREQ=DAILY;BYWEEKNO=1",
        "FREQ=WEEKLY;BYMONTHDAY=1",
        "FREQ=DAILY;BYYEARDAY=1",
        "FREQ=YEARLY;BYWEEKNO=1;BYDAY=1MO",
        "FREQ=DAILY;BYSETPOS=1",
        "FREQ=DAILY;WKST=XX",
        "FREQ=DAILY RRULE:FREQ=DAILY",
        "FREQ=DAILY EXDATE:20260101",
        "DTSTART:20260101 DTSTART:20260101 FREQ=DAILY",
        "DTSTART;TZID=Mars:20260101 FREQ=DAILY",
        "DTSTART;X=1:20260101 FREQ=DAILY",
        "DTSTARTX:20260101 FREQ=DAILY",
        "DTSTART:20260230 FREQ=DAILY",
        "DTSTART:2026010Z FREQ=DAILY",
        "TZ=UTC DTSTART;TZID=UTC:20260101 FREQ=DAILY",
        "freq=daily",
    ] {
        let refused = Recurrence::parse(bad, Nanos(0));
        assert!(refused.is_err(), "{bad}: {refused:?}");
    }
}

/// What never comes, or so rarely that the search ends before.
const HOSTILE: &[&str] = &[
    "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30",
    "FREQ=SECONDLY;BYMONTH=2;BYMONTHDAY=30",
    "FREQ=SECONDLY;BYMONTH=2;BYMONTHDAY=30;BYHOUR=3;COUNT=200",
    "DTSTART:19700101T000000Z FREQ=SECONDLY;INTERVAL=2;BYSECOND=1",
    "DTSTART:19700101T000000Z FREQ=MINUTELY;INTERVAL=2;BYMINUTE=1",
    "DTSTART:19700101T000000Z FREQ=HOURLY;INTERVAL=2;BYHOUR=1",
    "DTSTART:19700101T000000Z FREQ=DAILY;INTERVAL=7;BYDAY=MO",
    "FREQ=YEARLY;BYWEEKNO=53;BYYEARDAY=1;BYMONTH=12",
    "FREQ=MONTHLY;BYDAY=MO;BYSETPOS=6",
    "FREQ=YEARLY;BYDAY=MO;BYSETPOS=366,-366",
    "FREQ=YEARLY;BYMONTHDAY=31;BYMONTH=2,4,6,9,11",
    "FREQ=YEARLY;INTERVAL=1000000000;BYMONTH=2;BYMONTHDAY=29",
    "FREQ=SECONDLY;INTERVAL=1000000000;BYMONTH=2;BYMONTHDAY=30",
    "0 0 30 2 *",
    "0 0 0 31 2,4,6,9,11 *",
    "CRON_TZ=Europe/Berlin 0 0 30 2 *",
];

#[test]
fn what_never_comes_is_refused_soon() {
    for text in HOSTILE {
        let begun = Instant::now();
        let refused = Recurrence::parse(text, Nanos(0));
        assert!(refused.is_err(), "{text}: {refused:?}");
        assert!(begun.elapsed() < BOUND, "{text}: {:?}", begun.elapsed());
    }
    let all =
        |range: std::ops::Range<u8>| range.map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let wide = format!(
        "FREQ=YEARLY;BYHOUR={};BYMINUTE={};BYSECOND={};BYSETPOS=-1",
        all(0..24),
        all(0..60),
        all(0..60)
    );
    next(&wide, "2026-01-01T00:00:00Z", &["2026-01-01T23:59:59Z", "2027-01-01T23:59:59Z"]);
    let long = format!("FREQ=DAILY;BYHOUR={}", vec!["1"; 2_000].join(","));
    assert!(Recurrence::parse(&long, Nanos(0)).is_err());
    // So is one that would be too long with its start.
    let long = format!("FREQ=DAILY;COUNT=9;BYHOUR={}1", "1,".repeat(490));
    assert!(long.len() <= TEXT_BYTES_MAX);
    assert!(Recurrence::parse(&long, Nanos(0)).is_err());
    // A start long ago costs nothing.
    let begun = Instant::now();
    for text in
        ["FREQ=SECONDLY", "FREQ=MINUTELY;BYSECOND=5", "FREQ=DAILY", "every 1s", "* * * * * *"]
    {
        let recurrence = Recurrence::parse(text, Nanos(0)).unwrap();
        assert!(recurrence.next_after(at("2261-12-31T23:59:00Z")).is_some(), "{text}");
        assert_eq!(recurrence.next_after(Nanos(i64::MAX)), None, "{text}");
    }
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
}

fn rule_text() -> impl Strategy<Value = String> {
    let numbers = |range: std::ops::Range<i32>| {
        proptest::collection::vec(range, 1..6)
            .prop_map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
    };
    let part = prop_oneof![
        (1..400_i32).prop_map(|n| format!(";INTERVAL={n}")),
        (1..2_000_i32).prop_map(|n| format!(";COUNT={n}")),
        numbers(1..13).prop_map(|list| format!(";BYMONTH={list}")),
        numbers(-31..32).prop_map(|list| format!(";BYMONTHDAY={list}")),
        numbers(-366..367).prop_map(|list| format!(";BYYEARDAY={list}")),
        numbers(-53..54).prop_map(|list| format!(";BYWEEKNO={list}")),
        numbers(0..24).prop_map(|list| format!(";BYHOUR={list}")),
        numbers(0..60).prop_map(|list| format!(";BYMINUTE={list}")),
        numbers(0..61).prop_map(|list| format!(";BYSECOND={list}")),
        numbers(-10..10).prop_map(|list| format!(";BYSETPOS={list}")),
        proptest::sample::select(vec![";BYDAY=MO", ";BYDAY=2TU,-1SU", ";BYDAY=SA,SU", ";WKST=SU"])
            .prop_map(ToOwned::to_owned),
    ];
    let freq = proptest::sample::select(vec![
        "YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY", "SECONDLY",
    ]);
    let zone = proptest::sample::select(vec!["", "TZ=Europe/Berlin ", "TZ=Australia/Lord_Howe "]);
    (zone, freq, proptest::collection::vec(part, 0..5))
        .prop_map(|(zone, freq, parts)| format!("{zone}FREQ={freq}{}", parts.concat()))
}

fn bounded(text: &str, start: Nanos, after: Nanos) {
    let begun = Instant::now();
    if let Ok(recurrence) = Recurrence::parse(text, start) {
        let mut last = after;
        for time in recurrence.upcoming(after, 5) {
            assert!(time > last && time >= start, "{text}");
            last = time;
        }
        let again = Recurrence::parse(recurrence.text(), start).unwrap();
        assert_eq!(again.next_after(after), recurrence.next_after(after), "{text}");
    }
    assert!(begun.elapsed() < BOUND, "{text}: {:?}", begun.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_rule_takes_long(text in rule_text(), start in 0..4_102_444_800_i64, more in 0..500_000_000_i64) {
        bounded(&text, Nanos(start * NANOS), Nanos((start + more) * NANOS));
    }

    #[test]
    fn no_cron_expression_takes_long(
        text in "(CRON_TZ=Europe/Berlin )?([0-9*,/#LW-]{1,5} ){3,4}(\\*|[0-9]{1,2}|[0-9A-Z?]{1,3}) [0-9*LW#A-Z+]{1,5}",
        start in 0..4_102_444_800_i64,
    ) {
        bounded(&text, Nanos(start * NANOS), Nanos(start * NANOS));
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,60}", start: i64) {
        bounded(&text, Nanos(start), Nanos(start));
        bounded(&format!("every {text}"), Nanos(start), Nanos(start));
        bounded(&format!("FREQ={text}"), Nanos(start), Nanos(start));
        bounded(&format!("DTSTART{text} FREQ=DAILY"), Nanos(start), Nanos(start));
    }
}
