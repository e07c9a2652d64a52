//! Exports the audit as lines that are verified without the server.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use futures::{Stream, stream};
use sha2::{Digest as _, Sha256};

use super::{
    chain::{self, BEGINNING, CLOSING_TAG, Checkpoint, Closing, Hash, hex},
    ledger::{BATCH, Error, Ledger, checkpoint_text, sees},
    line::{write_checkpoint, write_closing, write_record},
    seal::{SealError, Signed},
};
use crate::{
    authz::Claim,
    domain::{Scope, Timestamp, audit::rfc3339_text, permission::right::AuditRead},
    storage::{AuditRow, AuditSeal, AuditState},
};

/// How many records may wait for the checkpoint that covers them.
const WAITING_MAX: usize = 1 << 20;
/// How much text is handed on at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// What is exported. Whole checkpoints are, so that a little more may be at
/// either end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// From this time on; none is from the first record that is kept.
    pub since: Option<Timestamp>,
    /// Before this time; none is until now.
    pub until: Option<Timestamp>,
    /// Namespaces with those below them; none is all that the caller sees.
    pub namespaces: Vec<String>,
}

/// Which numbers and chains an export has.
struct Range {
    first: i64,
    last: i64,
    scope: Scope,
}

impl Ledger {
    /// The lines of an export, some at a time, the closing record last. All
    /// that is there now is sealed first.
    pub async fn export(
        self: Arc<Self>,
        claim: &Claim<AuditRead>,
        request: &Request,
    ) -> Result<impl Stream<Item = Result<String, Error>> + Send + 'static, Error> {
        let scope = asked(claim.scope(), &request.namespaces)?;
        let state = self.sealed().await?;
        let (first, last) = self.range(&state, request).await?;
        let walk = Walk::new(self, &state, Range { first, last, scope })?;
        Ok(stream::try_unfold(Some(walk), |walk| async move {
            let Some(mut walk) = walk else { return Ok(None) };
            let text = walk.chunk().await?;
            let over = walk.over;
            Ok(Some((text, (!over).then_some(walk))))
        }))
    }

    /// From the beginning of one checkpoint to the row of another.
    async fn range(&self, state: &AuditState, request: &Request) -> Result<(i64, i64), Error> {
        let last = match request.until {
            // Behind it, as much as the order may differ.
            Some(until) => {
                let later = until.plus_ms(120_000);
                self.seek(state.first, state.sealed, later).await?.min(state.sealed)
            }
            None => state.sealed,
        };
        let first = match request.since {
            Some(since) => self.seek(state.first, state.sealed, since).await?,
            None => state.first,
        };
        let end = match self.store.audit_seal(last).await? {
            Some(seal) if last >= state.first => self.row_of(&seal).await?,
            Some(_) | None => state.first.saturating_sub(1),
        };
        if first > end {
            return Ok((end.saturating_add(1), end));
        }
        let seal = self.store.audit_seal(first).await?;
        let first = seal.map_or(first, |seal| *seal.covers.start());
        Ok((first.max(state.first), end))
    }

    /// The number of a checkpoint's own row: the first one of its kind behind
    /// what it covers with its number.
    async fn row_of(&self, seal: &AuditSeal) -> Result<i64, Error> {
        let mut next = seal.covers.end().saturating_add(1);
        loop {
            let rows = self.store.audit_from(next, BATCH).await?;
            let Some(last) = rows.last() else {
                return Err(SealError::Checkpoint(seal.number).into());
            };
            next = last.seq.saturating_add(1);
            let own = |row: &&AuditRow| row.chain.is_none() && row.body == seal.body;
            if let Some(row) = rows.iter().find(own) {
                return Ok(row.seq);
            }
        }
    }
}

/// The scope of an export: what is asked for, within what the caller sees.
fn asked(scope: &Scope, namespaces: &[String]) -> Result<Scope, Error> {
    let parse = |texts: &[String]| {
        Scope::parse(texts).map_err(|error| Error::FieldInvalid {
            field: "namespaces",
            message: error.to_string(),
        })
    };
    if namespaces.is_empty() {
        return match scope {
            Scope::Under(none) if none.is_empty() => Err(Error::OutsideScope("*".to_owned())),
            Scope::Under(_) | Scope::Everything => Ok(scope.clone()),
        };
    }
    if namespaces.len() > Scope::PLACES_MAX {
        let message = format!("has at most {} entries", Scope::PLACES_MAX);
        return Err(Error::FieldInvalid { field: "namespaces", message });
    }
    for one in namespaces {
        if !scope.covers(&parse(std::slice::from_ref(one))?) {
            return Err(Error::OutsideScope(one.clone()));
        }
    }
    parse(namespaces)
}

/// What a checkpoint says, and how it is named elsewhere.
fn read(body: &str) -> Option<(Checkpoint, String)> {
    let signed = Signed::read(body)?;
    let said: Checkpoint = serde_json::from_str(signed.checkpoint.get()).ok()?;
    let name = format!("{}:{}", said.number, hex(&signed.hash()));
    Some((said, name))
}

/// A record that no checkpoint has covered so far.
struct Waiting {
    seq: i64,
    chain: Arc<str>,
    number: i64,
    hash: Hash,
}

/// Where an export stands.
struct Walk {
    ledger: Arc<Ledger>,
    range: Range,
    /// The next number.
    next: i64,
    heads: HashMap<Arc<str>, (i64, Hash)>,
    /// Of all chains, whichever are exported.
    waiting: VecDeque<Waiting>,
    /// The first number that is kept.
    kept: i64,
    seal: Option<AuditSeal>,
    sealed: i64,
    checkpoint: String,
    digest: Sha256,
    lines: u64,
    over: bool,
}

impl Walk {
    fn new(ledger: Arc<Ledger>, state: &AuditState, range: Range) -> Result<Self, Error> {
        let base = state.base.iter();
        let heads = base.map(|head| (Arc::clone(&head.chain), (head.number, head.hash))).collect();
        Ok(Self {
            ledger,
            // What comes before only counts in the chains.
            next: state.first,
            heads,
            waiting: VecDeque::new(),
            kept: state.first,
            seal: None,
            sealed: state.sealed,
            checkpoint: checkpoint_text(state.checkpoint.as_ref())?,
            range,
            digest: Sha256::new(),
            lines: 0,
            over: false,
        })
    }

    /// Some lines.
    async fn chunk(&mut self) -> Result<String, Error> {
        let mut text = String::new();
        while self.next <= self.range.last && text.len() < CHUNK_BYTES {
            let rows = self.ledger.store.audit_from(self.next, BATCH).await?;
            if rows.is_empty() {
                return Err(Error::LetGo);
            }
            let last = self.range.last;
            for row in rows.into_iter().take_while(|row| row.seq <= last) {
                if row.seq != self.next {
                    return Err(Error::LetGo);
                }
                let link = self.link(row.seq).await?;
                self.row(&mut text, &row, link)?;
                self.next = row.seq.saturating_add(1);
            }
        }
        self.digest.update(text.as_bytes());
        if self.next > self.range.last {
            self.close(&mut text);
            self.over = true;
        }
        Ok(text)
    }

    /// The hash of a record as it was sealed; none while it is not. It is not
    /// made again here, so that a record that was changed shows as that one.
    async fn link(&mut self, seq: i64) -> Result<Option<Hash>, Error> {
        if self.seal.as_ref().is_none_or(|seal| !seal.covers.contains(&seq)) {
            self.seal =
                if seq <= self.sealed { self.ledger.store.audit_seal(seq).await? } else { None };
        }
        let Some(seal) = &self.seal else { return Ok(None) };
        let place = usize::try_from(seq.saturating_sub(*seal.covers.start())).unwrap_or_default();
        let (links, _) = seal.links.as_chunks::<32>();
        links.get(place).copied().map(Some).ok_or_else(|| SealError::Gap(seq).into())
    }

    fn row(
        &mut self,
        text: &mut String,
        row: &AuditRow,
        link: Option<Hash>,
    ) -> Result<(), SealError> {
        let AuditRow { seq, chain, body } = row;
        let wanted = *seq >= self.range.first;
        let Some(chain) = chain else {
            let (said, name) = read(body).ok_or(SealError::Checkpoint(*seq))?;
            self.cover(&said)?;
            if wanted {
                write_checkpoint(text, *seq, body);
                self.lines += 1;
                self.checkpoint = name;
            }
            return Ok(());
        };
        let (number, prev) = self.heads.get(chain).copied().unwrap_or((0, BEGINNING));
        let number = number.saturating_add(1);
        let hash = link.unwrap_or_else(|| chain::record(*seq, chain, number, &prev, body));
        self.heads.insert(Arc::clone(chain), (number, hash));
        if self.waiting.len() >= WAITING_MAX {
            return Err(SealError::Gap(*seq));
        }
        self.waiting.push_back(Waiting { seq: *seq, chain: Arc::clone(chain), number, hash });
        if wanted && sees(&self.range.scope, chain) {
            write_record(text, (*seq, chain, number), &hex(&prev), &hex(&hash), body);
            self.lines += 1;
        }
        Ok(())
    }

    /// Finds the leaf of each chain that grew, and no others: nothing is
    /// signed here that the checkpoints do not have, in whichever chain. Only
    /// an export of all chains could be looked through like this later.
    fn cover(&mut self, said: &Checkpoint) -> Result<(), SealError> {
        if said.first < self.kept {
            // What it covers was let go.
            return Ok(());
        }
        let fault = SealError::Leaves(said.number);
        let mut grown: HashMap<Arc<str>, (i64, Hash)> = HashMap::new();
        while let Some(Waiting { seq, .. }) = self.waiting.front()
            && *seq <= said.last
        {
            let Some(Waiting { seq, chain, number, hash }) = self.waiting.pop_front() else {
                break;
            };
            if seq < said.first {
                return Err(fault);
            }
            grown.insert(chain, (number, hash));
        }
        let leaves: HashSet<&str> = said.leaves.iter().map(String::as_str).collect();
        let known = |(chain, (number, hash)): (&Arc<str>, &(i64, Hash))| {
            leaves.contains(hex(&chain::leaf(chain, *number, hash)).as_str())
        };
        let whole = leaves.len() == grown.len() && said.leaves.len() == grown.len();
        if whole && grown.iter().all(known) { Ok(()) } else { Err(fault) }
    }

    fn close(&mut self, text: &mut String) {
        let Range { first, last, scope } = &self.range;
        let chains = match scope {
            Scope::Everything => Vec::new(),
            Scope::Under(_) => scope.to_strings(),
        };
        let key = self.ledger.sealer.key();
        let closing = Closing {
            at: rfc3339_text(self.ledger.clock.now()),
            lines: self.lines,
            sha256: hex(&Hash::from(self.digest.clone().finalize())),
            first: *first,
            last: *last,
            chains,
            checkpoint: self.checkpoint.clone(),
            key: key.public().id().to_owned(),
        };
        // Strings and numbers alone: nothing in it can fail.
        let json = serde_json::to_string(&closing).unwrap_or_default();
        write_closing(text, &json, &key.sign(CLOSING_TAG, &json));
    }
}
