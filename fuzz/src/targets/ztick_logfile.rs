//! A logfile of ztick: it is read or refused, faults lie inside of it, and
//! what its records say does not depend on what is cut off behind them.

use bailiwick::cli::ztick::{Logfile, parse};

pub fn run(data: &[u8]) {
    match parse(data) {
        Ok(Logfile { jobs, rules, records, cut }) => {
            // Each has its length and its type at least.
            let whole = records - usize::from(cut.is_some());
            assert!(whole * 5 <= data.len() && jobs.len() + rules.len() <= whole);
            let Some(cut) = cut else { return };
            assert_eq!(cut.offset + cut.bytes, data.len());
            let until = parse(&data[..cut.offset]).unwrap();
            assert_eq!((until.cut, until.records), (None, whole));
            assert_eq!((until.jobs, until.rules), (jobs, rules));
        }
        Err(fault) => {
            assert!(fault.offset < data.len(), "{fault} of {}", data.len());
            // Names and secrets of the file are not in the message.
            assert!(fault.what.len() < 120 && fault.what.is_ascii());
        }
    }
}
