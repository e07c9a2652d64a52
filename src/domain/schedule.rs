//! Jobs and rules of the scheduler, as plain values: a job is an identifier
//! with a time, a rule maps the identifiers that begin with its pattern to a
//! runner.

use std::{fmt, sync::Arc};

use thiserror::Error;

use super::{Namespace, Timestamp, principal::GrantRef, task::RetryPolicy};

/// The longest identifier or pattern, in bytes.
pub const IDENTIFIER_BYTES_MAX: usize = 512;

/// Why a text is no identifier.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "an identifier has 1 to {IDENTIFIER_BYTES_MAX} bytes, no control characters or line separators"
)]
pub struct NotAnIdentifier;

/// Whether a text is one line for everybody who reads it: no control
/// characters, none that end a line or turn the direction of what follows.
#[must_use]
pub fn is_plain(text: &str) -> bool {
    !text.chars().any(|letter| {
        letter.is_control()
            || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    })
}

/// The name of a job or a rule. For scopes it is its own namespace, compared
/// as text; the grammar of namespaces does not bind it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identifier(Arc<str>);

impl Identifier {
    /// Checks and takes a name.
    pub fn parse(text: &str) -> Result<Self, NotAnIdentifier> {
        let fits = !text.is_empty() && text.len() <= IDENTIFIER_BYTES_MAX;
        if fits && is_plain(text) { Ok(Self(text.into())) } else { Err(NotAnIdentifier) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands before the first dot: whose share of the runners it uses.
    #[must_use]
    pub fn segment(&self) -> &str {
        self.0.split_once('.').map_or(&*self.0, |(segment, _)| segment)
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A wall-clock time in nanoseconds since 1970-01-01T00:00:00Z, no leap
/// seconds: what the line protocol speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub i64);

impl From<Timestamp> for Nanos {
    fn from(at: Timestamp) -> Self {
        Self(at.micros().saturating_mul(1_000))
    }
}

impl Nanos {
    /// The first microsecond that is not before it.
    #[must_use]
    pub const fn timestamp(self) -> Timestamp {
        let micros = self.0.div_euclid(1_000);
        Timestamp::from_micros(if self.0.rem_euclid(1_000) == 0 { micros } else { micros + 1 })
    }
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobStatus {
    /// It waits for its time.
    Planned,
    /// Its run is under way; while a due job waits for its turn it is planned.
    Triggered,
    /// It ran, and that was a success.
    Executed,
    /// It could not run, or failed for good.
    Failed,
    /// It is due and is not run until somebody resumes it or sets it anew.
    Held,
}

impl JobStatus {
    /// All of them.
    pub const ALL: &'static [Self] =
        &[Self::Planned, Self::Triggered, Self::Executed, Self::Failed, Self::Held];

    /// As it is shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Triggered => "triggered",
            Self::Executed => "executed",
            Self::Failed => "failed",
            Self::Held => "held",
        }
    }

    /// As it is stored; the first four as in a ztick logfile.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Planned => 0,
            Self::Triggered => 1,
            Self::Executed => 2,
            Self::Failed => 3,
            Self::Held => 4,
        }
    }

    /// The status of a code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|status| status.code() == code)
    }
}

/// The reason of a job that is held because who set its rule may not any more.
pub const AUTHORIZATION_REVOKED: &str = "authorization_revoked";

/// A job as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its name.
    pub id: Identifier,
    /// The time that was asked for; of a recurring job the present occurrence.
    pub execution: Nanos,
    /// When it is looked at next: `execution`, or later while it is retried.
    pub due: Nanos,
    /// Where it stands.
    pub status: JobStatus,
    /// When it recurs, as it was written; none runs once.
    pub recurrence: Option<Arc<str>>,
    /// Why it is held or failed; a stable word.
    pub reason: Option<Arc<str>>,
    /// How many attempts of the present occurrence have begun.
    pub attempts: u32,
    /// Grows with every setting of the job: what happens under an older one
    /// changes it no more.
    pub version: i64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunOutcome {
    /// It runs still.
    Running,
    /// It was a success.
    Executed,
    /// It failed.
    Failed,
    /// The server went away while it ran; it was run again.
    Interrupted,
    /// It was not run: its rule's owner may not any more.
    Held,
}

impl RunOutcome {
    /// All of them.
    pub const ALL: &'static [Self] =
        &[Self::Running, Self::Executed, Self::Failed, Self::Interrupted, Self::Held];

    /// As it is shown and stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Executed => "executed",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Held => "held",
        }
    }
}

/// One run in a job's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its number in the job's history, from 1.
    pub number: i64,
    /// Which occurrence it was of.
    pub execution: Nanos,
    /// Which attempt of that occurrence, from 1.
    pub attempt: u32,
    /// The rule that matched; empty when none did.
    pub rule: Arc<str>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended; none while it runs.
    pub ended_at: Option<Timestamp>,
    /// How.
    pub outcome: RunOutcome,
    /// What went wrong, bounded; none after a success.
    pub error: Option<String>,
    /// The end of what it wrote, bounded; for `task` the task's id.
    pub output: Option<String>,
}

/// Maps the identifiers that begin with its pattern to a runner; of several
/// the one with the longest pattern counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub id: Identifier,
    /// What identifiers begin with; empty is all of them.
    pub pattern: Arc<str>,
    /// What is done.
    pub runner: Runner,
    /// What a failure is followed by; one attempt unless it says otherwise.
    pub retry: RetryPolicy,
    /// Who set it, to be decided again when a job is due.
    pub owner: GrantRef,
}

/// The methods of the `http` runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpMethod {
    /// Without a body.
    Get,
    /// With `{"job_id", "execution"}`.
    Post,
    /// With `{"job_id", "execution"}`.
    Put,
    /// Without a body.
    Delete,
}

impl HttpMethod {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Get, Self::Post, Self::Put, Self::Delete];

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }
}

/// The commands of the `redis` runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RedisCommand {
    /// To a channel.
    Publish,
    /// To a list's end.
    Rpush,
    /// To a list's beginning.
    Lpush,
    /// A value.
    Set,
}

impl RedisCommand {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Publish, Self::Rpush, Self::Lpush, Self::Set];

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "PUBLISH",
            Self::Rpush => "RPUSH",
            Self::Lpush => "LPUSH",
            Self::Set => "SET",
        }
    }
}

/// A kind of runner, as `[scheduler] runners` lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RunnerKind {
    /// Creates a task.
    Task,
    /// Calls a URL.
    Http,
    /// Runs a command line.
    Shell,
    /// Runs a program.
    Direct,
    /// Runs an awf workflow.
    Awf,
    /// Publishes to an AMQP exchange.
    Amqp,
    /// Sends a Redis command.
    Redis,
}

impl RunnerKind {
    /// All of them.
    pub const ALL: &'static [Self] =
        &[Self::Task, Self::Http, Self::Shell, Self::Direct, Self::Awf, Self::Amqp, Self::Redis];

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Http => "http",
            Self::Shell => "shell",
            Self::Direct => "direct",
            Self::Awf => "awf",
            Self::Amqp => "amqp",
            Self::Redis => "redis",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == name)
    }

    /// Whether this build has it: the runners that speak to brokers are features
    /// of the crate.
    #[must_use]
    pub const fn is_built(self) -> bool {
        match self {
            Self::Amqp => cfg!(feature = "amqp"),
            Self::Redis => cfg!(feature = "redis"),
            Self::Task | Self::Http | Self::Shell | Self::Direct | Self::Awf => true,
        }
    }

    /// Whether it starts processes, for which `commands:execute` is needed.
    #[must_use]
    pub const fn starts_processes(self) -> bool {
        match self {
            Self::Shell | Self::Direct | Self::Awf => true,
            Self::Task | Self::Http | Self::Amqp | Self::Redis => false,
        }
    }
}

/// What is done with a job that is due.
#[derive(Clone, PartialEq, Eq)]
pub enum Runner {
    /// Creates a task from a template.
    Task {
        /// The template's namespace.
        namespace: Namespace,
        /// The template's name.
        template: Arc<str>,
        /// Its version; none is the newest.
        version: Option<Arc<str>>,
    },
    /// Calls a URL.
    Http {
        /// How.
        method: HttpMethod,
        /// Where; may hold secrets.
        url: Arc<str>,
    },
    /// Runs a command line by `/bin/sh -c`.
    Shell {
        /// The command line.
        command: Arc<str>,
    },
    /// Runs a program.
    Direct {
        /// Its path.
        executable: Arc<str>,
        /// Its arguments.
        args: Vec<Arc<str>>,
    },
    /// Runs `awf run WORKFLOW ARGS…`.
    Awf {
        /// The workflow.
        workflow: Arc<str>,
        /// Further arguments, as `--input k=v`.
        args: Vec<Arc<str>>,
    },
    /// Publishes to an AMQP exchange.
    Amqp {
        /// The broker, with its credentials.
        dsn: Arc<str>,
        /// The exchange.
        exchange: Arc<str>,
        /// The routing key.
        routing_key: Arc<str>,
    },
    /// Sends a Redis command with the job's id as its value.
    Redis {
        /// The server, with its credentials.
        url: Arc<str>,
        /// Which command.
        command: RedisCommand,
        /// The key or channel.
        key: Arc<str>,
    },
}

impl Runner {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> RunnerKind {
        match self {
            Self::Task { .. } => RunnerKind::Task,
            Self::Http { .. } => RunnerKind::Http,
            Self::Shell { .. } => RunnerKind::Shell,
            Self::Direct { .. } => RunnerKind::Direct,
            Self::Awf { .. } => RunnerKind::Awf,
            Self::Amqp { .. } => RunnerKind::Amqp,
            Self::Redis { .. } => RunnerKind::Redis,
        }
    }

    /// The same with `***` for the credentials of its address and the values of
    /// its query: what may be shown.
    #[must_use]
    pub fn redacted(&self) -> Self {
        let mut shown = self.clone();
        match &mut shown {
            Self::Http { url, .. } | Self::Redis { url, .. } => *url = without_secrets(url),
            Self::Amqp { dsn, .. } => *dsn = without_secrets(dsn),
            Self::Task { .. } | Self::Shell { .. } | Self::Direct { .. } | Self::Awf { .. } => {}
        }
        shown
    }
}

/// What stands for what is not shown.
const HIDDEN: &str = "***";

/// Whether a URL is as it is shown, with something hidden: it is none to call.
#[must_use]
pub fn hides(url: &str) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let values = query.split('&').map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value));
    url.contains(&format!("://{HIDDEN}")) || values.into_iter().any(|value| value == HIDDEN)
}

/// A URL with `***` for what stands before the last `@` of its authority, and
/// for each value of its query.
fn without_secrets(url: &str) -> Arc<str> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return if url.contains(['@', '?']) { HIDDEN.into() } else { url.into() };
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let shown = without_values(path);
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{HIDDEN}@{host}{shown}").into(),
        // A password with a slash in it: better too little than a part of it.
        None if path.contains('@') => format!("{scheme}://{HIDDEN}").into(),
        None => format!("{scheme}://{authority}{shown}").into(),
    }
}

/// A path with the names of its query alone; a lone word may be a secret too.
fn without_values(path: &str) -> String {
    let Some((path, query)) = path.split_once('?') else { return path.to_owned() };
    let shown = query.split('&').map(|pair| match pair.split_once('=') {
        Some((_, "")) => pair.to_owned(),
        Some((name, _)) => format!("{name}={HIDDEN}"),
        None if pair.is_empty() => String::new(),
        None => HIDDEN.to_owned(),
    });
    format!("{path}?{}", shown.collect::<Vec<_>>().join("&"))
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Commands and URLs may hold secrets.
        write!(f, "Runner({})", self.kind().as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_bounded_and_printable() {
        for good in ["a", "deploy.release.v1.2.3", "with space", "ünï", &"x".repeat(512)] {
            assert_eq!(Identifier::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "a\nb", "a\0", "\u{7f}", "a\u{2028}b", "\u{202e}a", &"x".repeat(513)] {
            assert_eq!(Identifier::parse(bad), Err(NotAnIdentifier), "{bad:?}");
        }
        let segment = |text: &str| Identifier::parse(text).unwrap().segment().to_owned();
        assert_eq!(segment("deploy.a.b"), "deploy");
        assert_eq!(segment("deploy"), "deploy");
    }

    #[test]
    fn secrets_of_addresses_are_not_shown() {
        for (url, shown) in [
            ("amqp://guest:s3cret@host:5672/v", "amqp://***@host:5672/v"),
            ("redis://:s3cret@host", "redis://***@host"),
            ("redis://host/0", "redis://host/0"),
            ("https://u:s3/cret@host/x", "https://***"),
            ("https://u:s3@cret@host/x?a=s3cret", "https://***@host/x?a=***"),
            ("https://u:s3?cret@host/x", "https://***"),
            ("https://host/x?key=s3cret&b=&&c=s3=cr?et", "https://host/x?key=***&b=&&c=***"),
            ("https://host?s3cret", "https://host?***"),
            ("u:s3cret@host", "***"),
            ("host/x?s3cret", "***"),
        ] {
            assert_eq!(&*without_secrets(url), shown);
            // What is shown is not taken back, what is meant is.
            assert_eq!(hides(shown), shown.contains("://***") || shown.contains('?'), "{shown}");
            assert!(!hides(url), "{url}");
        }
        assert!(!hides("https://host/***?a=b***&***c=d"));
    }

    #[test]
    fn codes_and_names_read_back() {
        for status in JobStatus::ALL {
            assert_eq!(JobStatus::from_code(status.code()), Some(*status));
        }
        for kind in RunnerKind::ALL {
            assert_eq!(RunnerKind::parse(kind.as_str()), Some(*kind));
        }
        assert_eq!(JobStatus::from_code(9), None);
        assert_eq!(Nanos(1_500).timestamp(), Timestamp::from_micros(2));
        assert_eq!(Nanos(-1_500).timestamp(), Timestamp::from_micros(-1));
    }
}
