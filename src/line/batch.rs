//! A row of SET and REMOVE that came together: one commit, answered in order.

use super::{
    Service,
    answer::record,
    connection::Closed,
    reply::{self, Failure},
};
use crate::{
    access::line::{Asked, Session},
    schedule::jobs::{self, Change},
};

/// How many changes one commit takes: what is read at once, of short lines.
pub(super) const CHANGES_MAX: usize = 2048;
/// To read a recurrence costs as much as so many other changes.
const RECURRENCE_WEIGHT: usize = 64;

/// Answers that wait for the commit of the changes among them.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    session: &'a Session,
    changes: Vec<Change>,
    /// How many changes they are worth.
    weight: usize,
    entries: Vec<(&'a str, Entry)>,
}

#[derive(Debug)]
enum Entry {
    /// The next of the changes, and what it is about.
    Change(Option<Asked>, String),
    /// What was decided without the store.
    Failed(Option<Asked>, String, Failure),
    /// A line of its own, without a request id.
    Said(&'static [u8]),
}

impl<'a> Batch<'a> {
    pub(super) fn new(session: &'a Session) -> Self {
        Self { session, changes: Vec::new(), weight: 0, entries: Vec::new() }
    }

    /// A change that may be made; `object` is what it is about.
    pub(super) fn change(&mut self, id: &'a str, object: String, change: Change) {
        let recurs = matches!(&change, Change::Set(_, plan) if plan.recurrence.is_some());
        self.weight += if recurs { RECURRENCE_WEIGHT } else { 1 };
        self.changes.push(change);
        self.entries.push((id, Entry::Change(self.session.take_asked(), object)));
    }

    pub(super) fn failed(&mut self, id: &'a str, object: String, failure: Failure) {
        self.entries.push((id, Entry::Failed(self.session.take_asked(), object, failure)));
    }

    pub(super) fn said(&mut self, line: &'static [u8]) {
        self.entries.push(("", Entry::Said(line)));
    }

    /// Whether it must be made before more comes.
    pub(super) fn is_full(&self) -> bool {
        self.weight >= CHANGES_MAX || self.entries.len() >= 2 * CHANGES_MAX
    }

    /// Makes the changes and writes the answers.
    pub(super) async fn flush(
        &mut self,
        service: &Service,
        out: &mut Vec<u8>,
    ) -> Result<(), Closed> {
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
                Entry::Failed(asked, object, failure) => {
                    reply::failed(out, id, &failure);
                    record(self.session, asked, &object, Some(&failure)).await?;
                }
                Entry::Change(asked, object) => {
                    let failure = match (&failure, made.next()) {
                        (Some(failure), _) => failure.clone(),
                        // Its record is in its own transaction.
                        (None, Some(Ok(_))) => {
                            reply::done(out, id);
                            continue;
                        }
                        (None, Some(Err(error))) => error.into(),
                        (None, None) => Failure::Word("internal"),
                    };
                    reply::failed(out, id, &failure);
                    record(self.session, asked, &object, Some(&failure)).await?;
                }
            }
        }
        self.changes.clear();
        self.weight = 0;
        Ok(())
    }
}
