//! A row of SET and REMOVE that came together: one commit, answered in order.

use super::{
    Service,
    reply::{self, Failure},
};
use crate::schedule::jobs::{self, Change};

/// How many changes one commit takes: what is read at once, of short lines.
pub(super) const CHANGES_MAX: usize = 2048;
/// To read a recurrence costs as much as so many other changes.
const RECURRENCE_WEIGHT: usize = 64;

/// Answers that wait for the commit of the changes among them.
#[derive(Debug, Default)]
pub(super) struct Batch<'a> {
    changes: Vec<Change>,
    /// How many changes they are worth.
    weight: usize,
    entries: Vec<(&'a str, Entry)>,
}

#[derive(Debug)]
enum Entry {
    /// The next of the changes.
    Change,
    /// What was decided without the store.
    Failed(Failure),
    /// A line of its own, without a request id.
    Said(&'static [u8]),
}

impl<'a> Batch<'a> {
    pub(super) fn change(&mut self, id: &'a str, change: Change) {
        let recurs = matches!(&change, Change::Set(_, plan) if plan.recurrence.is_some());
        self.weight += if recurs { RECURRENCE_WEIGHT } else { 1 };
        self.changes.push(change);
        self.entries.push((id, Entry::Change));
    }

    pub(super) fn failed(&mut self, id: &'a str, failure: Failure) {
        self.entries.push((id, Entry::Failed(failure)));
    }

    pub(super) fn said(&mut self, line: &'static [u8]) {
        self.entries.push(("", Entry::Said(line)));
    }

    /// Whether it must be made before more comes.
    pub(super) fn is_full(&self) -> bool {
        self.weight >= CHANGES_MAX || self.entries.len() >= 2 * CHANGES_MAX
    }

    /// Makes the changes and writes the answers.
    pub(super) async fn flush(&mut self, service: &Service, out: &mut Vec<u8>) {
        let mut made = Vec::new();
        let mut failure = None;
        if !self.changes.is_empty() {
            match jobs::many(&service.scheduler, &self.changes).await {
                Ok(answers) => made = answers,
                Err(error) => failure = Some(Failure::from(error)),
            }
        }
        let mut made = made.into_iter();
        for (id, entry) in self.entries.drain(..) {
            match entry {
                Entry::Said(line) => out.extend_from_slice(line),
                Entry::Failed(failure) => reply::failed(out, id, &failure),
                Entry::Change => match (&failure, made.next()) {
                    (Some(failure), _) => reply::failed(out, id, failure),
                    (None, Some(Ok(_))) => reply::done(out, id),
                    (None, Some(Err(error))) => reply::failed(out, id, &error.into()),
                    (None, None) => reply::failed(out, id, &Failure::Word("internal")),
                },
            }
        }
        self.changes.clear();
        self.weight = 0;
    }
}
