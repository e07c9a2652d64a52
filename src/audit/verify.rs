//! Verifies an export without a server: as a stream, with a head for each
//! chain and what waits for its checkpoint in memory, and nothing else.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    io::{self, BufRead, Read as _},
    str::FromStr,
};

use aws_lc_rs::digest::{Context, SHA256};
use thiserror::Error;

use super::{
    chain::{self, BEGINNING, CHECKPOINT_TAG, CLOSING_TAG, Checkpoint, Closing, Hash, hex},
    key::PublicKey,
    line::{CheckpointLine, ClosingLine, Line, RecordLine, unhex},
};
use crate::domain::Scope;

/// No line is longer; the longest is a checkpoint over many chains.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How many records may wait for their checkpoint.
const WAITING_MAX: usize = 1 << 20;

/// A checkpoint that was noted elsewhere: `number:hash`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    number: i64,
    hash: Hash,
}

impl FromStr for Expected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "a checkpoint is its number, a colon and 64 hex digits".to_owned();
        let (number, hash) = text.trim().split_once(':').ok_or_else(wrong)?;
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let number = number.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
        Ok(Self { number, hash: unhex(hash).ok_or_else(wrong)? })
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, hex(&self.hash))
    }
}

/// Why an export does not hold.
#[derive(Debug, Error)]
pub enum Error {
    /// It cannot be read at all.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It was touched, or is not whole.
    #[error("{0}")]
    Fault(Fault),
}

/// The first thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its line, from 1.
    pub line: u64,
    /// The number over all chains that stands there, where one can be read.
    pub seq: Option<i64>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if let Some(seq) = self.seq {
            write!(f, ", record {seq}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What an export that holds has in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How many records.
    pub records: u64,
    /// How many checkpoints.
    pub checkpoints: u64,
    /// How many chains.
    pub chains: usize,
    /// How many records at the end no checkpoint covers yet; the signature at
    /// the end of the export does.
    pub uncovered: usize,
    /// What the end of the export says.
    pub closing: Closing,
}

/// Verifies an export that ends with its closing record.
pub fn verify(
    mut input: impl BufRead,
    key: &PublicKey,
    expected: Option<&Expected>,
) -> Result<Summary, Error> {
    let mut state = Verifier::new(key, expected);
    let mut reader = Lines::default();
    let faulty = loop {
        let read = reader.next(&mut input)?;
        let Some(line) = read else { break state.cut() };
        match state.line(line) {
            Ok(()) => {}
            Err(what) => break Fault { line: state.lines + 1, seq: state.seq_here, what },
        }
        if let Some(closing) = state.closing.take() {
            if reader.next(&mut input)?.is_some() {
                break Fault {
                    line: state.lines + 1,
                    seq: None,
                    what: "something stands behind the closing record".to_owned(),
                };
            }
            return state.summary(closing).map_err(Error::Fault);
        }
    };
    // What came before may be wrong too; the end tells what was asked for.
    let said = reader.closing(&mut input)?;
    let earlier = said.and_then(|said| state.earlier(&said));
    Err(Error::Fault(earlier.unwrap_or(faulty)))
}

/// Lines with their ends, one at a time.
#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
}

impl Lines {
    /// The next line with its end; none behind the last one.
    fn next(&mut self, input: &mut impl BufRead) -> io::Result<Option<&[u8]>> {
        self.buffer.clear();
        input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.buffer)?;
        Ok(Some(&*self.buffer).filter(|line| !line.is_empty()))
    }

    /// What the last line says, if that is a closing record.
    fn closing(&mut self, input: &mut impl BufRead) -> io::Result<Option<Closing>> {
        let mut last = self.buffer.clone();
        while let Some(line) = self.next(input)? {
            last.clear();
            last.extend_from_slice(line);
        }
        let line = std::str::from_utf8(&last).ok().and_then(|line| line.strip_suffix('\n'));
        let read = line.and_then(|line| Line::read(line, &mut String::new()));
        Ok(match read {
            Some(Line::Closing(_, closing)) => Some(closing),
            Some(Line::Record(_) | Line::Checkpoint(..)) | None => None,
        })
    }
}

/// Where a chain stands.
struct Head {
    name: Box<str>,
    number: i64,
    hash: Hash,
    /// Where its leaf stands among those of the checkpoint in hand.
    place: Option<usize>,
}

/// A record that waits for its checkpoint.
struct Waiting {
    seq: i64,
    line: u64,
    chain: usize,
    number: i64,
    hash: Hash,
}

/// The last checkpoint so far.
struct Last {
    number: i64,
    hash: Hash,
    covers: i64,
    seq: i64,
}

struct Verifier<'k> {
    key: &'k PublicKey,
    expected: Option<&'k Expected>,
    /// Whether the expected checkpoint was met.
    met: bool,
    /// How many lines hold.
    lines: u64,
    /// The number in the line in hand.
    seq_here: Option<i64>,
    digest: Context,
    scratch: String,
    first: Option<i64>,
    last: i64,
    records: u64,
    checkpoints: u64,
    names: HashMap<Box<str>, usize>,
    heads: Vec<Head>,
    waiting: Vec<Waiting>,
    checkpoint: Option<Last>,
    /// What is wrong if the export is one of everything.
    if_full: Option<Fault>,
    /// What is wrong if the export begins with the audit.
    if_first: Option<Fault>,
    closing: Option<Closing>,
}

type Checked<T = ()> = Result<T, String>;

impl<'k> Verifier<'k> {
    fn new(key: &'k PublicKey, expected: Option<&'k Expected>) -> Self {
        Self {
            key,
            expected,
            met: false,
            lines: 0,
            seq_here: None,
            digest: Context::new(&SHA256),
            scratch: String::new(),
            first: None,
            last: 0,
            records: 0,
            checkpoints: 0,
            names: HashMap::new(),
            heads: Vec::new(),
            waiting: Vec::new(),
            checkpoint: None,
            if_full: None,
            if_first: None,
            closing: None,
        }
    }

    fn cut(&self) -> Fault {
        let what = "the export ends without its closing record: it was cut".to_owned();
        Fault { line: self.lines + 1, seq: None, what }
    }

    /// Takes a line with its end.
    fn line(&mut self, bytes: &[u8]) -> Checked {
        self.seq_here = None;
        let unread = || "cannot be read".to_owned();
        let Some(text) = bytes.strip_suffix(b"\n") else {
            return Err("the line is not whole: the export was cut".to_owned());
        };
        let text = std::str::from_utf8(text).map_err(|_| unread())?;
        let mut scratch = std::mem::take(&mut self.scratch);
        let line = Line::read(text, &mut scratch);
        self.scratch = scratch;
        match line.ok_or_else(unread)? {
            Line::Record(line) => self.record(&line)?,
            Line::Checkpoint(line, checkpoint) => self.checkpoint(&line, &checkpoint)?,
            Line::Closing(line, closing) => return self.close(&line, closing),
        }
        self.digest.update(bytes);
        self.lines += 1;
        Ok(())
    }

    fn fault(&self, what: impl Into<String>) -> Fault {
        Fault { line: self.lines + 1, seq: self.seq_here, what: what.into() }
    }

    /// The number over all, which rises, and by one in an export of all.
    fn number(&mut self, seq: i64) -> Checked {
        self.seq_here = Some(seq);
        let next = self.last.saturating_add(1);
        match self.first {
            None if seq < 1 => return Err("the numbers begin with 1".to_owned()),
            None => self.first = Some(seq),
            Some(_) if seq < next => {
                return Err(format!("stands behind record {}: the order was changed", self.last));
            }
            Some(_) if seq > next && self.if_full.is_none() => {
                let what = format!("follows record {}: what was between is missing", self.last);
                self.if_full = Some(self.fault(what));
            }
            Some(_) => {}
        }
        self.last = seq;
        Ok(())
    }

    fn record(&mut self, line: &RecordLine<'_>) -> Checked {
        self.number(line.seq)?;
        let &RecordLine { seq, number, .. } = line;
        let (Some(prev), Some(hash)) = (unhex(line.prev), unhex(line.hash)) else {
            return Err("cannot be read: a hash is 64 lower-case hex digits".to_owned());
        };
        let chain = &*line.chain;
        let place = match self.names.get(chain) {
            Some(place) => *place,
            None => self.begin_chain(chain, number, prev)?,
        };
        let head = self.heads.get_mut(place).ok_or("cannot be read")?;
        if number != head.number.saturating_add(1) {
            let (is, was) = (number, head.number);
            return Err(format!("number {is} of chain `{chain}` follows its number {was}"));
        }
        if prev != head.hash {
            return Err(format!("does not follow the record before it in chain `{chain}`"));
        }
        if hash != chain::record(seq, chain, number, &prev, line.record.get()) {
            return Err("was changed: its hash is another".to_owned());
        }
        (head.number, head.hash) = (number, hash);
        if self.waiting.len() >= WAITING_MAX {
            return Err(format!("{WAITING_MAX} records stand there without a checkpoint"));
        }
        let line = self.lines + 1;
        self.waiting.push(Waiting { seq, line, chain: place, number, hash });
        self.records += 1;
        Ok(())
    }

    fn begin_chain(&mut self, chain: &str, number: i64, prev: Hash) -> Checked<usize> {
        if number < 1 || (number == 1) != (prev == BEGINNING) {
            return Err(format!("is not the beginning of chain `{chain}`"));
        }
        if number > 1 && self.if_first.is_none() {
            let what =
                format!("the {} records before it in chain `{chain}` are missing", number - 1);
            self.if_first = Some(self.fault(what));
        }
        let place = self.heads.len();
        self.heads.push(Head { name: chain.into(), number: number - 1, hash: prev, place: None });
        self.names.insert(chain.into(), place);
        Ok(place)
    }

    fn checkpoint(&mut self, line: &CheckpointLine<'_>, said: &Checkpoint) -> Checked {
        self.number(line.seq)?;
        let number = said.number;
        self.signed(&said.key, CHECKPOINT_TAG, line.checkpoint.get(), line.signature)
            .map_err(|what| format!("checkpoint {number} {what}"))?;
        let prev = unhex(&said.prev).ok_or("cannot be read: no hash of a checkpoint before")?;
        let (follows, covers) = match &self.checkpoint {
            Some(last) => (last.number.saturating_add(1), Some(last.covers.saturating_add(1))),
            None => (number, (number == 1).then_some(1)),
        };
        if number != follows {
            return Err(format!("checkpoint {number} stands where {follows} should"));
        }
        let known = self.checkpoint.as_ref().map(|last| last.hash);
        if known.or_else(|| (number == 1).then_some(BEGINNING)).is_some_and(|known| known != prev) {
            return Err(format!("checkpoint {number} does not follow the one before it"));
        }
        let whole = covers.is_none_or(|first| first == said.first);
        if !whole || said.last < said.first || said.last >= line.seq {
            return Err(format!("checkpoint {number} does not cover what it should"));
        }
        let hash = chain::checkpoint(line.checkpoint.get());
        self.meet(number, &hash, &prev)?;
        self.cover(said)?;
        self.checkpoint = Some(Last { number, hash, covers: said.last, seq: line.seq });
        self.checkpoints += 1;
        Ok(())
    }

    fn signed(&self, key: &str, tag: &[u8], text: &str, signature: &str) -> Checked {
        if key != self.key.id() {
            return Err(format!("is signed by the key {key}, not by {}", self.key.id()));
        }
        if !self.key.verifies(tag, text, signature) {
            return Err("is not what was signed".to_owned());
        }
        Ok(())
    }

    /// Compares with the checkpoint that was noted elsewhere.
    fn meet(&mut self, number: i64, hash: &Hash, prev: &Hash) -> Checked {
        let Some(expected) = self.expected else { return Ok(()) };
        let found = match number.saturating_sub(expected.number) {
            0 => hash,
            1 if self.checkpoint.is_none() => prev,
            _ => return Ok(()),
        };
        self.met = true;
        if *found == expected.hash {
            return Ok(());
        }
        Err(format!("checkpoint {} is not the expected one: the audit is another", expected.number))
    }

    /// Finds the leaf of each chain that grew, and no others.
    fn cover(&mut self, said: &Checkpoint) -> Checked {
        let end = self.waiting.partition_point(|waiting| waiting.seq <= said.last);
        let mut grown: Vec<(usize, i64, Hash)> = Vec::new();
        for Waiting { seq, chain, number, hash, .. } in self.waiting.drain(..end) {
            if seq < said.first {
                return Err(format!("checkpoint {} comes too late for record {seq}", said.number));
            }
            let Some(head) = self.heads.get_mut(chain) else { continue };
            let place = *head.place.get_or_insert(grown.len());
            match grown.get_mut(place) {
                Some(leaf) => *leaf = (chain, number, hash),
                None => grown.push((chain, number, hash)),
            }
        }
        let leaves: HashSet<&str> = said.leaves.iter().map(String::as_str).collect();
        for (chain, number, hash) in &grown {
            let Some(head) = self.heads.get_mut(*chain) else { continue };
            head.place = None;
            let name = &head.name;
            if !leaves.contains(hex(&chain::leaf(name, *number, hash)).as_str()) {
                let said = said.number;
                return Err(format!(
                    "checkpoint {said} does not know record {number} of chain `{name}`: the chain \
                     was changed"
                ));
            }
        }
        let whole = self.first.is_some_and(|first| first <= said.first);
        if whole && grown.len() != said.leaves.len() && self.if_full.is_none() {
            let what = format!(
                "checkpoint {} covers {} chains, and {} are there",
                said.number,
                said.leaves.len(),
                grown.len()
            );
            self.if_full = Some(self.fault(what));
        }
        Ok(())
    }

    fn close(&mut self, line: &ClosingLine<'_>, said: Closing) -> Checked {
        self.signed(&said.key, CLOSING_TAG, line.closing.get(), line.signature)
            .map_err(|what| format!("the closing record {what}"))?;
        if said.lines != self.lines {
            let (said, are) = (said.lines, self.lines);
            return Err(format!(
                "the export had {said} lines before this one, and {are} are there"
            ));
        }
        let digest = self.digest.clone().finish();
        if said.sha256 != hex(&<Hash>::try_from(digest.as_ref()).unwrap_or_default()) {
            return Err("the lines before are not those that were exported".to_owned());
        }
        let last = self.checkpoint.as_ref();
        if let Some(Last { number, hash, .. }) = last
            && said.checkpoint != format!("{number}:{}", hex(hash))
        {
            return Err("names another checkpoint as the last one".to_owned());
        }
        let sealed = last.map_or(0, |last| last.seq);
        if let Some(open) = self.waiting.iter().find(|waiting| waiting.seq > sealed) {
            return Err(format!("no checkpoint covers the record in line {}", open.line));
        }
        self.expect(&said)?;
        self.closing = Some(said);
        Ok(())
    }

    /// Whether the expected checkpoint was met at all.
    fn expect(&self, closing: &Closing) -> Checked {
        let Some(expected) = self.expected.filter(|_| !self.met) else { return Ok(()) };
        let last: Expected = closing.checkpoint.parse()?;
        if last == *expected {
            return Ok(());
        }
        let number = expected.number;
        Err(if last.number <= number {
            let last = last.number;
            format!(
                "the export ends with checkpoint {last}, before the expected {number} or beside \
                 it: its end is missing"
            )
        } else {
            format!(
                "the export begins behind checkpoint {number}, so that it cannot be compared; \
                 export from an earlier time"
            )
        })
    }

    /// What is wrong before the end, as only the end tells: which numbers and
    /// chains were asked for.
    fn earlier(&self, closing: &Closing) -> Option<Fault> {
        let full = closing.chains.is_empty();
        let begins = self.first.filter(|first| full && *first != closing.first).map(|first| {
            let what = format!("the export begins with record {}", closing.first);
            Fault { line: 1, seq: Some(first), what }
        });
        let from_first = self.if_first.clone().filter(|_| closing.first <= 1);
        let of_all = self.if_full.clone().filter(|_| full);
        let found = [begins, of_all, from_first].into_iter().flatten();
        found.min_by_key(|fault| fault.line)
    }

    fn summary(self, closing: Closing) -> Result<Summary, Fault> {
        if let Some(fault) = self.earlier(&closing) {
            return Err(fault);
        }
        let at_end = |what: String| Fault { line: self.lines + 1, seq: None, what };
        let full = closing.chains.is_empty();
        let last = self.first.map(|_| self.last);
        let ends = match last {
            Some(last) if full => last == closing.last,
            Some(last) => last <= closing.last,
            None => !full || closing.last < closing.first,
        };
        if !ends || self.first.is_some_and(|first| first < closing.first) {
            let what = "the first or the last record is not the one that was exported";
            return Err(at_end(what.to_owned()));
        }
        let asked = Scope::parse(&closing.chains);
        let asked = asked.map_err(|_| at_end("cannot be read".to_owned()))?;
        let strange = |head: &&Head| !full && !asked.contains_text(&head.name);
        if let Some(Head { name, .. }) = self.heads.iter().find(strange) {
            return Err(at_end(format!("chain `{name}` was not exported, and is there")));
        }
        Ok(Summary {
            records: self.records,
            checkpoints: self.checkpoints,
            chains: self.heads.len(),
            uncovered: self.waiting.len(),
            closing,
        })
    }
}
