use proptest::prelude::*;

use super::*;

/// `toto` planned at 1605457800000000000.
const TOTO: &[u8] = b"\0\0\0\x10\0\0\x04toto\x16\x47\xbb\x5c\xee\xe1\x50\0\0";

fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap().to_be_bytes();
    [&length, text.as_bytes()].concat()
}

fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&length, body].concat()
}

fn job(id: &str, execution: i64, status: u8) -> Vec<u8> {
    framed(&[&[0], &*text(id), &execution.to_be_bytes(), &[status]].concat())
}

fn rule(id: &str, pattern: &str, runner: u8, fields: &[Vec<u8>]) -> Vec<u8> {
    framed(&[&[1], &*text(id), &text(pattern), &[runner], &fields.concat()].concat())
}

fn removal(kind: u8, id: &str) -> Vec<u8> {
    framed(&[&[kind], &*text(id)].concat())
}

fn count(count: u16) -> Vec<u8> {
    count.to_be_bytes().to_vec()
}

#[test]
fn the_example_record_is_read() {
    let logfile = parse(TOTO).unwrap();
    let toto = Job { execution: 1_605_457_800_000_000_000, status: Status::Planned };
    assert_eq!(logfile.jobs, BTreeMap::from([("toto", toto)]));
    assert_eq!((logfile.rules.len(), logfile.records, logfile.cut), (0, 1, None));
    assert_eq!(job("toto", 1_605_457_800_000_000_000, 0), TOTO);
    assert_eq!(parse(b""), Ok(Logfile::default()));
}

#[test]
fn every_runner_is_read() {
    let t = |it: &str| text(it);
    let file = [
        rule("a", "p", 0, &[t("true; false")]),
        rule("b", "", 1, &[t("amqp://u:p@h/v"), t(""), t("k")]),
        rule("c", "p", 2, &[t("/bin/x"), count(2), t("one"), t("")]),
        rule("d", "p", 3, &[t("w"), count(0)]),
        rule("e", "p", 4, &[t("POST"), t("http://h/")]),
        rule("f", "p", 5, &[t("redis://h"), t("SET"), t("key")]),
    ]
    .concat();
    let logfile = parse(&file).unwrap();
    let runners: Vec<&Runner<'_>> = logfile.rules.values().map(|rule| &rule.runner).collect();
    assert_eq!(
        runners,
        [
            &Runner::Shell("true; false"),
            &Runner::Amqp { dsn: "amqp://u:p@h/v", exchange: "", routing_key: "k" },
            &Runner::Direct { executable: "/bin/x", args: vec!["one", ""] },
            &Runner::Awf { workflow: "w", inputs: vec![] },
            &Runner::Http { method: "POST", url: "http://h/" },
            &Runner::Redis { url: "redis://h", command: "SET", key: "key" },
        ]
    );
    assert_eq!(logfile.rules["b"].pattern, "");
    assert!(!format!("{logfile:?}").contains("u:p"), "{logfile:?}");
}

#[test]
fn the_last_state_counts() {
    let file = [
        job("a", 1, 0),
        job("b", 2, 0),
        removal(2, "a"),
        removal(2, "never"),
        job("b", 3, 2),
        rule("r", "a", 0, &[text("x")]),
        // A rule and a job may have one name.
        rule("b", "a", 0, &[text("x")]),
        removal(3, "r"),
        removal(2, "c"),
        job("a", 4, 1),
    ]
    .concat();
    let logfile = parse(&file).unwrap();
    let jobs = [
        ("a", Job { execution: 4, status: Status::Triggered }),
        ("b", Job { execution: 3, status: Status::Executed }),
    ];
    assert_eq!(logfile.jobs, BTreeMap::from(jobs));
    assert_eq!(logfile.rules.keys().copied().collect::<Vec<_>>(), ["b"]);
    assert_eq!(logfile.records, 10);
}

#[test]
fn a_cut_record_is_skipped_and_a_damaged_one_is_named() {
    let second = rule("r", "p", 2, &[text("/x"), count(1), text("ü")]);
    let file = [TOTO, &second].concat();
    for end in TOTO.len() + 1..file.len() {
        let logfile = parse(&file[..end]).unwrap();
        let cut = Cut { offset: TOTO.len(), bytes: end - TOTO.len() };
        assert_eq!((logfile.cut, logfile.jobs.len(), logfile.rules.len()), (Some(cut), 1, 0));
    }
    let at = TOTO.len();
    let damaged = |offset: usize, byte: u8| {
        let mut file = [&file[..], TOTO].concat();
        file[offset] = byte;
        parse(&file).unwrap_err()
    };
    for (offset, byte, reported, what) in [
        // The length: too much by the bytes of the next record, or too little.
        (at + 3, 0x20, at, "the record has"),
        (at, 0x7f, at, "the record has"),
        (at + 3, 2, at, "the record has more"),
        (at + 3, 0, at, "says 0 bytes; the record has more"),
        (at + 4, 4, at + 4, "the type of record 4 is not known"),
        (11 + 8, 4, 19, "the status 4 is not known"),
        (at + 11, 6, at + 11, "the runner 6 is not known"),
        (9, 0xff, 9, "not UTF-8"),
    ] {
        let fault = damaged(offset, byte);
        assert!(fault.what.contains(what), "{offset} {byte}: {fault}");
        assert_eq!(fault.offset, reported, "{fault}");
    }
    // No length of a record can stand here: it is no cut one.
    let fault = parse(b"\x7fELF\x02\x01\x01\0").unwrap_err();
    assert_eq!((fault.offset, fault.to_string().is_empty()), (0, false));
    let fault = parse(b"SET a.b 2026-04-01").unwrap_err();
    assert_eq!(
        (fault.offset, &*fault.what),
        (4, "the type of record 97 is not known; they are 0 to 3")
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(file in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(logfile) = parse(&file) {
            prop_assert!(logfile.records <= file.len());
        }
    }

    /// One byte wrong in a good file: no panic, and faults lie in the file.
    #[test]
    fn any_damage_is_survived(
        ids in proptest::collection::vec("[a-zü.]{0,6}", 1..6),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut file: Vec<u8> = ids
            .iter()
            .flat_map(|id| {
                let args = [text(id), count(2), text("a"), text(id)];
                [job(id, -7, 3), rule(id, id, 2, &args), removal(2, id)].concat()
            })
            .collect();
        let whole = parse(&file).unwrap();
        prop_assert_eq!(whole.records, ids.len() * 3);
        prop_assert!(whole.jobs.is_empty() && whole.cut.is_none());
        let place = place.index(file.len());
        file[place] = byte;
        if let Err(fault) = parse(&file) {
            prop_assert!(fault.offset < file.len());
        }
    }

    /// What was cut off changes nothing in front of it.
    #[test]
    fn a_file_is_the_sum_of_its_whole_records(
        jobs in proptest::collection::vec(("[a-c]{1,2}", any::<i64>(), 0..4_u8), 0..8),
        keep in any::<prop::sample::Index>(),
    ) {
        let records: Vec<Vec<u8>> =
            jobs.iter().map(|(id, at, status)| job(id, *at, *status)).collect();
        let file = records.concat();
        let end = keep.index(file.len() + 1);
        let cut = parse(&file[..end]).unwrap();
        let whole = records.iter().scan(0, |sum, record| { *sum += record.len(); Some(*sum) });
        let whole = whole.take_while(|sum| *sum <= end).last().unwrap_or(0);
        let until = parse(&file[..whole]).unwrap();
        prop_assert_eq!(&cut.jobs, &until.jobs);
        prop_assert_eq!(cut.cut.is_some(), whole < end);
    }
}
