//! Reads a logfile of ztick: records behind each other, all numbers with the
//! highest byte first. The last state of each job and rule counts.
//!
//! A record is a length of 4 bytes, which counts what follows it, a type, and
//! the type's fields; a text has a length of 2 bytes in front.
//!
//! Not here: where the file is, and what becomes of what it says.

use std::{collections::BTreeMap, fmt};

use thiserror::Error;

/// The bytes of a record's length.
const LENGTH_BYTES: usize = 4;

/// What a logfile says in the end. Texts are parts of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logfile<'f> {
    /// The jobs by their names.
    pub jobs: BTreeMap<&'f str, Job>,
    /// The rules by their names.
    pub rules: BTreeMap<&'f str, Rule<'f>>,
    /// How many records there are, the removed and the cut ones too.
    pub records: usize,
    /// The last record, when the file ends inside of it.
    pub cut: Option<Cut>,
}

/// A record whose end is missing: ztick was stopped while it wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Where it begins.
    pub offset: usize,
    /// How many of its bytes are there.
    pub bytes: usize,
}

/// A job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// When, in nanoseconds since 1970.
    pub execution: i64,
    /// Where it stands.
    pub status: Status,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It waits for its time.
    Planned,
    /// It was due, and had not run yet.
    Triggered,
    /// It ran.
    Executed,
    /// It failed.
    Failed,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule<'f> {
    /// What names of jobs begin with.
    pub pattern: &'f str,
    /// What is done.
    pub runner: Runner<'f>,
}

/// What is done with a job that is due.
#[derive(Clone, PartialEq, Eq)]
pub enum Runner<'f> {
    /// A command line.
    Shell(&'f str),
    /// A message to a broker.
    Amqp {
        /// The broker, with its credentials.
        dsn: &'f str,
        /// The exchange.
        exchange: &'f str,
        /// The routing key.
        routing_key: &'f str,
    },
    /// A program.
    Direct {
        /// Its path.
        executable: &'f str,
        /// Its arguments.
        args: Vec<&'f str>,
    },
    /// A workflow of awf.
    Awf {
        /// Its name.
        workflow: &'f str,
        /// What it works on.
        inputs: Vec<&'f str>,
    },
    /// A call of a URL.
    Http {
        /// The method.
        method: &'f str,
        /// Where, with its credentials.
        url: &'f str,
    },
    /// A command to a Redis server.
    Redis {
        /// The server, with its credentials.
        url: &'f str,
        /// The command.
        command: &'f str,
        /// The key or the channel.
        key: &'f str,
    },
}

impl Runner<'_> {
    /// Its kind's name.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Shell(_) => "shell",
            Self::Amqp { .. } => "amqp",
            Self::Direct { .. } => "direct",
            Self::Awf { .. } => "awf",
            Self::Http { .. } => "http",
            Self::Redis { .. } => "redis",
        }
    }
}

impl fmt::Debug for Runner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Commands and addresses may hold secrets.
        write!(f, "Runner({})", self.kind())
    }
}

/// Why a file is no logfile, or is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("byte {offset}: {what}")]
pub struct Fault {
    /// Where.
    pub offset: usize,
    /// What is wrong there.
    pub what: String,
}

/// Reads a whole file. What it takes in memory is bounded by the file.
pub fn parse(file: &[u8]) -> Result<Logfile<'_>, Fault> {
    let mut logfile = Logfile::default();
    let mut rest = Reader { bytes: file, offset: 0 };
    while !rest.bytes.is_empty() {
        let offset = rest.offset;
        let bytes = rest.bytes.len();
        logfile.records += 1;
        match record(&mut rest)? {
            Some(Record::Job(id, job)) => {
                logfile.jobs.insert(id, job);
            }
            Some(Record::Rule(id, rule)) => {
                logfile.rules.insert(id, rule);
            }
            Some(Record::JobRemoval(id)) => {
                logfile.jobs.remove(id);
            }
            Some(Record::RuleRemoval(id)) => {
                logfile.rules.remove(id);
            }
            None => {
                logfile.cut = Some(Cut { offset, bytes });
                break;
            }
        }
    }
    Ok(logfile)
}

enum Record<'f> {
    Job(&'f str, Job),
    Rule(&'f str, Rule<'f>),
    JobRemoval(&'f str),
    RuleRemoval(&'f str),
}

/// Why a part of a record was not read.
enum Stop {
    /// Its bytes are used up.
    End,
    /// It cannot be.
    Fault(Fault),
}

/// The next record; none when the file ends inside of it. What is there of
/// that one must be right all the same: a damaged length is no cut.
fn record<'f>(rest: &mut Reader<'f>) -> Result<Option<Record<'f>>, Fault> {
    let begin = rest.offset;
    let Ok(length) = rest.take(LENGTH_BYTES) else { return Ok(None) };
    let length = length.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
    let there = length.min(rest.bytes.len());
    let is_cut = there < length;
    let Ok(bytes) = rest.take(there) else { return Ok(None) };
    let mut body = Reader { bytes, offset: begin + LENGTH_BYTES };
    let fault = |what| Fault { offset: begin, what };
    match body.record() {
        Ok(_) if is_cut || !body.bytes.is_empty() => {
            let used = there - body.bytes.len();
            Err(fault(format!("a record's length says {length} bytes; the record has {used}")))
        }
        Ok(record) => Ok(Some(record)),
        Err(Stop::End) if is_cut && length <= longest(bytes.first()) => Ok(None),
        Err(Stop::End) if is_cut => Err(fault(format!(
            "a record's length says {length} bytes; none of its type is so long"
        ))),
        Err(Stop::End) => {
            Err(fault(format!("a record's length says {length} bytes; the record has more")))
        }
        Err(Stop::Fault(fault)) => Err(fault),
    }
}

/// How long a record of a type can be, as far as that is known.
fn longest(kind: Option<&u8>) -> usize {
    const TEXT: usize = 2 + 0xffff;
    match kind {
        Some(0) => 1 + TEXT + 9,
        Some(2 | 3) => 1 + TEXT,
        Some(_) | None => usize::MAX,
    }
}

/// Bytes that are left, and where in the file they are.
struct Reader<'f> {
    bytes: &'f [u8],
    offset: usize,
}

impl<'f> Reader<'f> {
    fn take(&mut self, count: usize) -> Result<&'f [u8], Stop> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(Stop::End)?;
        self.bytes = rest;
        self.offset += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        self.take(N)?.first_chunk().copied().ok_or(Stop::End)
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        self.array().map(|[byte]| byte)
    }

    fn text(&mut self) -> Result<&'f str, Stop> {
        let length = self.array().map(u16::from_be_bytes)?;
        let begin = self.offset;
        let bytes = self.take(length.into())?;
        std::str::from_utf8(bytes).map_err(|error| {
            let offset = begin + error.valid_up_to();
            Stop::Fault(Fault { offset, what: "a text is not UTF-8".to_owned() })
        })
    }

    fn texts(&mut self) -> Result<Vec<&'f str>, Stop> {
        let count = self.array().map(u16::from_be_bytes)?;
        // No room ahead: the count may be anything.
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(self.text()?);
        }
        Ok(texts)
    }

    /// A byte that says which; `of` are the known ones.
    fn unknown(&self, what: &str, byte: u8, most: u8) -> Stop {
        let what = format!("{what} {byte} is not known; they are 0 to {most}");
        Stop::Fault(Fault { offset: self.offset.saturating_sub(1), what })
    }

    fn record(&mut self) -> Result<Record<'f>, Stop> {
        Ok(match self.byte()? {
            0 => Record::Job(self.text()?, self.job()?),
            1 => Record::Rule(self.text()?, Rule { pattern: self.text()?, runner: self.runner()? }),
            2 => Record::JobRemoval(self.text()?),
            3 => Record::RuleRemoval(self.text()?),
            byte => return Err(self.unknown("the type of record", byte, 3)),
        })
    }

    fn job(&mut self) -> Result<Job, Stop> {
        let execution = self.array().map(i64::from_be_bytes)?;
        let status = match self.byte()? {
            0 => Status::Planned,
            1 => Status::Triggered,
            2 => Status::Executed,
            3 => Status::Failed,
            byte => return Err(self.unknown("the status", byte, 3)),
        };
        Ok(Job { execution, status })
    }

    fn runner(&mut self) -> Result<Runner<'f>, Stop> {
        Ok(match self.byte()? {
            0 => Runner::Shell(self.text()?),
            1 => Runner::Amqp {
                dsn: self.text()?,
                exchange: self.text()?,
                routing_key: self.text()?,
            },
            2 => Runner::Direct { executable: self.text()?, args: self.texts()? },
            3 => Runner::Awf { workflow: self.text()?, inputs: self.texts()? },
            4 => Runner::Http { method: self.text()?, url: self.text()? },
            5 => Runner::Redis { url: self.text()?, command: self.text()?, key: self.text()? },
            byte => return Err(self.unknown("the runner", byte, 5)),
        })
    }
}

#[cfg(test)]
mod tests;
