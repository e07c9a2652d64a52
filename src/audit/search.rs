//! Searches and follows the audit within a caller's scope.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{Stream, stream};

use super::ledger::{About, Asked, BATCH, Entry, Error, Ledger, sees};
use crate::{
    authz::Claim,
    domain::{Timestamp, audit::Outcome, permission::right::AuditRead},
    storage::AuditRow,
};

/// How many rows one page looks at at most; the next one goes on from there.
const SCAN_MAX: usize = 20_000;
/// How often a stream looks for new records.
const PAUSE: Duration = Duration::from_millis(250);

/// What is looked for; what is not said may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The subject of who acted, or whose credential was asked about.
    pub actor: Option<String>,
    /// The full name of an RPC, or what stands behind its slash.
    pub rpc: Option<String>,
    /// The permission that was asked for.
    pub permission: Option<String>,
    /// A namespace, and those below it: where it was, or what a refused call
    /// asked for.
    pub namespace: Option<String>,
    /// What it was about.
    pub object: Option<String>,
    /// What became of it.
    pub outcome: Option<Outcome>,
    /// The public id of a credential that was used or asked about, or its
    /// fingerprint.
    pub credential: Option<String>,
    /// The call's id.
    pub request_id: Option<String>,
    /// From this time on.
    pub since: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
}

impl Filter {
    fn takes(&self, chain: &str, entry: &Entry<'_>) -> bool {
        let rpc = self.rpc.as_deref().is_none_or(|asked| {
            entry.rpc == asked
                || entry.rpc.rsplit_once('/').is_some_and(|(_, method)| method == asked)
        });
        let (since, until) = (self.since, self.until);
        let in_time = (since.is_none() && until.is_none())
            || entry.time().is_some_and(|at| {
                since.is_none_or(|since| at >= since) && until.is_none_or(|until| at < until)
            });
        rpc && in_time
            && is(self.object.as_deref(), entry.object.as_deref())
            && is(self.request_id.as_deref(), entry.request_id.as_deref())
            && self.outcome.is_none_or(|outcome| entry.outcome == outcome.as_str())
            && (self.is_by(chain, entry) || entry.answered().iter().any(|one| self.is_about(one)))
    }

    /// Whether the call itself is meant.
    fn is_by(&self, chain: &str, entry: &Entry<'_>) -> bool {
        let who = entry.actor.as_ref();
        let credential = |asked: &str| {
            who.is_some_and(|who| {
                who.credential == asked || who.fingerprint.as_deref() == Some(asked)
            })
        };
        self.credential.as_deref().is_none_or(credential)
            && (self.is_there(entry.namespace.as_deref().unwrap_or(chain))
                || entry.asked.iter().any(|place| self.is_there(place)))
            && is(self.actor.as_deref(), who.map(|who| &*who.subject))
            && is(self.permission.as_deref(), entry.permission.as_deref())
    }

    /// Whether a credential is meant that the call was about.
    fn is_about(&self, about: &About<'_>) -> bool {
        let About { subject, credential, fingerprint, questions } = about;
        let named = |asked: &str| {
            credential.as_deref() == Some(asked) || fingerprint.as_deref() == Some(asked)
        };
        let asked = |question: &Asked<'_>| {
            is(self.permission.as_deref(), question.permission.as_deref())
                && self.is_there(question.namespace.as_deref().unwrap_or_default())
        };
        self.credential.as_deref().is_none_or(named)
            && is(self.actor.as_deref(), subject.as_deref())
            && (questions.iter().any(asked) || asked(&Asked::default()))
    }

    fn is_there(&self, place: &str) -> bool {
        self.namespace.as_deref().is_none_or(|asked| {
            place.strip_prefix(asked).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
}

/// A record that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number over all chains.
    pub seq: i64,
    /// Its chain.
    pub chain: Arc<str>,
    /// Its JSON.
    pub body: Box<str>,
}

/// One page of a search, the latest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundPage {
    /// The records.
    pub records: Vec<Found>,
    /// Before which number to go on; none at the end. A page may be short, or
    /// empty, and have more behind it.
    pub before: Option<i64>,
}

fn is(asked: Option<&str>, found: Option<&str>) -> bool {
    asked.is_none_or(|asked| found == Some(asked))
}

fn taken(claim: &Claim<AuditRead>, filter: &Filter, row: AuditRow) -> Option<Found> {
    let AuditRow { seq, chain, body } = row;
    let chain = chain.filter(|chain| sees(claim.scope(), chain))?;
    let entry = Entry::read(&body)?;
    filter.takes(&chain, &entry).then_some(())?;
    Some(Found { seq, chain, body })
}

impl Ledger {
    /// A page of records before a number, the latest first.
    pub async fn search(
        &self,
        claim: &Claim<AuditRead>,
        filter: &Filter,
        before: Option<i64>,
        size: usize,
    ) -> Result<FoundPage, Error> {
        let last = self.store.audit_before(i64::MAX, 1).await?.first().map_or(0, |row| row.seq);
        let first = match filter.since {
            Some(since) => {
                let first = self.store.audit_first().await?;
                self.seek(first, last, since).await?
            }
            None => 1,
        };
        let mut before = match (before, filter.until) {
            (Some(before), _) => before,
            (None, Some(until)) => self.behind(last, until).await?,
            (None, None) => i64::MAX,
        };
        let mut page = FoundPage::default();
        let mut scanned = 0;
        while scanned < SCAN_MAX {
            let rows = self.store.audit_before(before, BATCH).await?;
            let whole = rows.len() == BATCH;
            for row in rows {
                if row.seq < first {
                    return Ok(page);
                }
                (before, scanned) = (row.seq, scanned + 1);
                page.records.extend(taken(claim, filter, row));
                if page.records.len() >= size {
                    page.before = Some(before);
                    return Ok(page);
                }
            }
            if !whole {
                return Ok(page);
            }
        }
        page.before = Some(before);
        Ok(page)
    }

    /// A number behind all that was done before a time.
    async fn behind(&self, last: i64, until: Timestamp) -> Result<i64, Error> {
        // Twice: once as `seek` subtracts it, once for what is kept late.
        let later = until.plus(Duration::from_mins(2));
        let first = self.store.audit_first().await?;
        Ok(self.seek(first, last, later).await?.saturating_add(1))
    }

    /// The records behind a number as they come; without one the new ones.
    pub async fn follow(
        self: Arc<Self>,
        claim: Claim<AuditRead>,
        filter: Filter,
        after: Option<i64>,
    ) -> Result<impl Stream<Item = Result<Found, Error>> + Send + 'static, Error> {
        let after = match after {
            Some(after) => after,
            None => self.store.audit_before(i64::MAX, 1).await?.first().map_or(0, |row| row.seq),
        };
        let state = Following { ledger: self, claim, filter, after, found: VecDeque::new() };
        Ok(stream::try_unfold(
            state,
            |mut state| async move { Ok(Some((state.next().await?, state))) },
        ))
    }
}

struct Following {
    ledger: Arc<Ledger>,
    claim: Claim<AuditRead>,
    filter: Filter,
    after: i64,
    found: VecDeque<Found>,
}

impl Following {
    async fn next(&mut self) -> Result<Found, Error> {
        loop {
            if let Some(found) = self.found.pop_front() {
                return Ok(found);
            }
            let next = self.after.saturating_add(1);
            let rows = self.ledger.store.audit_from(next, BATCH).await?;
            let pause = rows.len() < BATCH;
            for row in rows {
                self.after = row.seq;
                self.found.extend(taken(&self.claim, &self.filter, row));
            }
            if pause && self.found.is_empty() {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
