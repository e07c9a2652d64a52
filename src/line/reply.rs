//! What is answered. A reply to an instruction begins with its request id;
//! `ERROR` is followed by a stable word and, for some, by an explanation.

use super::{instruction::Wrong, words};
use crate::{
    access::{self, Reason},
    domain::{
        Timestamp,
        audit::Outcome,
        schedule::{Identifier, Job, Nanos, Rule, Run, Runner},
    },
    schedule,
};

/// To AUTH.
pub(super) const OK: &[u8] = b"OK\n";
/// To a second AUTH.
pub(super) const ERROR: &[u8] = b"ERROR\n";
/// To anything but AUTH, where that must come first.
pub(super) const AUTH_REQUIRED: &[u8] = b"ERROR auth_required\n";
/// To a secret that nobody has.
pub(super) const AUTH_FAILED: &[u8] = b"ERROR auth_failed\n";
/// The token has as many connections as it may.
pub(super) const TOO_MANY_CONNECTIONS: &[u8] = b"ERROR too_many_connections\n";
/// To a line that does not end.
pub(super) const LINE_TOO_LONG: &[u8] = b"ERROR line_too_long\n";
/// To a line without a request id.
pub(super) const MALFORMED: &[u8] = b"ERROR malformed\n";

/// The word to too many calls.
const RATE_LIMITED: &str = "rate_limited";

/// Why an instruction was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is none: `ERROR` alone, as ztick says it.
    Absent,
    /// A stable word.
    Word(&'static str),
    /// A stable word and an explanation.
    Told(&'static str, String),
}

impl Failure {
    /// Outside of the caller's namespace, whether it exists or not.
    pub(super) const OUTSIDE: Self = Self::Word("auth_denied insufficient namespace scope");
    /// No name of a job or a rule.
    pub(super) const IDENTIFIER: Self = Self::Word("invalid_identifier");
}

impl Failure {
    /// What the audit says of it, in the words of every other refusal.
    pub(super) fn verdict(&self) -> (Outcome, Reason) {
        let word = match self {
            Self::Absent => return (Outcome::Denied, Reason::NotFound),
            outside if *outside == Self::OUTSIDE => {
                return (Outcome::Denied, Reason::NamespaceNotFound);
            }
            Self::Word(word) | Self::Told(word, _) => word,
        };
        match *word {
            "auth_denied" => (Outcome::Denied, Reason::PermissionMissing),
            "auth_failed" => (Outcome::Denied, Reason::CredentialsRevoked),
            RATE_LIMITED => (Outcome::Denied, Reason::RateLimited),
            "malformed" | "unknown_command" => (Outcome::Failed, Reason::RequestMalformed),
            "runner_disabled" => (Outcome::Failed, Reason::RunnerDisabled),
            "unavailable" => (Outcome::Failed, Reason::StorageUnavailable),
            "internal" => (Outcome::Failed, Reason::Internal),
            _ => (Outcome::Failed, Reason::FieldInvalid),
        }
    }
}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Self {
        Self::Word(match wrong {
            Wrong::UnknownCommand => "unknown_command",
            Wrong::Malformed => "malformed",
            Wrong::UnknownRunner => "unknown_runner",
            Wrong::InvalidRunner => "invalid_runner",
        })
    }
}

impl From<access::Refusal> for Failure {
    fn from(refusal: access::Refusal) -> Self {
        match refusal.kind {
            access::Kind::TooMany => Self::Word(RATE_LIMITED),
            access::Kind::Forbidden => Self::Told("auth_denied", refusal.message),
            access::Kind::Unauthenticated
            | access::Kind::NotFound
            | access::Kind::UnknownMethod
            | access::Kind::Invalid
            | access::Kind::Conflict
            | access::Kind::Precondition
            | access::Kind::Unavailable
            | access::Kind::Deadline
            | access::Kind::Internal => Self::Word("auth_failed"),
        }
    }
}

impl From<schedule::Error> for Failure {
    fn from(error: schedule::Error) -> Self {
        match error {
            schedule::Error::OutsideScope(_) => Self::OUTSIDE,
            schedule::Error::JobNotFound(_) | schedule::Error::RuleNotFound(_) => Self::Absent,
            schedule::Error::FieldInvalid { field, message } => {
                let word = match field {
                    "execution" => "invalid_time",
                    "recurrence" => "invalid_recurrence",
                    "pattern" => "invalid_pattern",
                    "id" => "conflict",
                    _ => "invalid_runner",
                };
                Self::Told(word, message)
            }
            schedule::Error::RunnerDisabled(kind) => {
                Self::Told("runner_disabled", kind.as_str().to_owned())
            }
            schedule::Error::PermissionMissing(permission) => {
                Self::Told("auth_denied", format!("Missing required permission: {permission}"))
            }
            schedule::Error::PageToken => Self::Word("internal"),
            schedule::Error::Storage(error) => {
                tracing::error!(%error, "an instruction of the line protocol failed");
                Self::Word("unavailable")
            }
        }
    }
}

/// `<id> OK`.
pub(super) fn done(out: &mut Vec<u8>, id: &str) {
    line(out, id, |out| out.extend_from_slice(b"OK"));
}

/// `<id> ERROR …`.
pub(super) fn failed(out: &mut Vec<u8>, id: &str, failure: &Failure) {
    line(out, id, |out| {
        out.extend_from_slice(b"ERROR");
        let (word, text) = match failure {
            Failure::Absent => return,
            Failure::Word(word) => (word, ""),
            Failure::Told(word, text) => (word, text.as_str()),
        };
        out.push(b' ');
        out.extend_from_slice(word.as_bytes());
        if !text.is_empty() {
            out.push(b' ');
            let printable = |letter: char| if letter.is_control() { ' ' } else { letter };
            let told: String = text.chars().take(500).map(printable).collect();
            out.extend_from_slice(told.as_bytes());
        }
    });
}

/// `<id> OK <status> <ns>`.
pub(super) fn state(out: &mut Vec<u8>, id: &str, job: &Job) {
    line(out, id, |out| {
        out.extend_from_slice(b"OK ");
        standing(out, job);
    });
}

/// `<id> <job> <status> <ns>`.
pub(super) fn job(out: &mut Vec<u8>, id: &str, job: &Job) {
    line(out, id, |out| {
        words::write(out, job.id.as_str());
        out.push(b' ');
        standing(out, job);
    });
}

fn standing(out: &mut Vec<u8>, job: &Job) {
    out.extend_from_slice(job.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(job.execution.0.to_string().as_bytes());
}

/// `<id> <number> <attempt> <outcome> <execution> <started> <ended> <rule>`.
pub(super) fn run(out: &mut Vec<u8>, id: &str, run: &Run) {
    let ns = |at: Timestamp| Nanos::from(at).0;
    let figures = format!(
        "{} {} {} {} {} {} ",
        run.number,
        run.attempt,
        run.outcome.as_str(),
        run.execution.0,
        ns(run.started_at),
        run.ended_at.map_or(0, ns),
    );
    line(out, id, |out| {
        out.extend_from_slice(figures.as_bytes());
        words::write(out, &run.rule);
    });
}

/// `<id> <rule> <pattern> <runner> <arguments…>`, without credentials.
pub(super) fn rule(out: &mut Vec<u8>, id: &str, rule: &Rule) {
    line(out, id, |out| {
        words::write(out, rule.id.as_str());
        out.push(b' ');
        words::write(out, &rule.pattern);
        out.push(b' ');
        let runner = rule.runner.redacted();
        out.extend_from_slice(runner.kind().as_str().as_bytes());
        arguments(&runner, |word| {
            out.push(b' ');
            words::write(out, word);
        });
    });
}

fn arguments(runner: &Runner, mut write: impl FnMut(&str)) {
    match runner {
        Runner::Task { namespace, template, version } => {
            let version = version.as_ref().map(|version| format!("@{version}"));
            write(&format!("{namespace}/{template}{}", version.unwrap_or_default()));
        }
        Runner::Http { method, url } => {
            write(method.as_str());
            write(url);
        }
        Runner::Shell { command } => write(command),
        Runner::Direct { executable, args } => {
            write(executable);
            for arg in args {
                write(arg);
            }
        }
        Runner::Awf { workflow, args } => {
            write(workflow);
            for arg in args {
                write(arg);
            }
        }
        Runner::Amqp { dsn, exchange, routing_key } => {
            write(dsn);
            write(exchange);
            write(routing_key);
        }
        Runner::Redis { url, command, key } => {
            write(url);
            write(command.as_str());
            write(key);
        }
    }
}

/// `<id> <key> <value>`.
pub(super) fn figure(out: &mut Vec<u8>, id: &str, key: &str, value: &str) {
    line(out, id, |out| {
        out.extend_from_slice(key.as_bytes());
        out.push(b' ');
        out.extend_from_slice(value.as_bytes());
    });
}

fn line(out: &mut Vec<u8>, id: &str, rest: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(id.as_bytes());
    out.push(b' ');
    rest(out);
    out.push(b'\n');
}

/// A name as scopes see it, or why it is none.
pub(super) fn identifier(text: &str) -> Result<Identifier, Failure> {
    Identifier::parse(text).map_err(|_| Failure::IDENTIFIER)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::{Principal, principal::GrantRef, schedule::JobStatus, task::RetryPolicy};

    fn told(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn zt_33_replies_begin_with_the_request_id() {
        let planned = Job {
            id: Identifier::parse("a b").unwrap(),
            execution: Nanos(12),
            due: Nanos(12),
            status: JobStatus::Planned,
            recurrence: None,
            reason: None,
            attempts: 0,
            version: 1,
        };
        assert_eq!(told(|out| done(out, "r1")), "r1 OK\n");
        assert_eq!(told(|out| state(out, "r1", &planned)), "r1 OK planned 12\n");
        assert_eq!(told(|out| job(out, "r1", &planned)), "r1 \"a b\" planned 12\n");
        assert_eq!(told(|out| failed(out, "r1", &Failure::Absent)), "r1 ERROR\n");
        assert_eq!(
            told(|out| failed(out, "r1", &Failure::OUTSIDE)),
            "r1 ERROR auth_denied insufficient namespace scope\n"
        );
        let told_on = Failure::Told("invalid_time", "a\nb".to_owned());
        assert_eq!(told(|out| failed(out, "r1", &told_on)), "r1 ERROR invalid_time a b\n");
    }

    #[test]
    fn se_41_refusals_are_recorded_by_the_reasons_of_every_other_one() {
        let missing = schedule::Error::PermissionMissing(crate::domain::Permission::TasksCreate);
        let invalid = |field| schedule::Error::FieldInvalid { field, message: String::new() };
        for (failure, wanted) in [
            (Failure::OUTSIDE, (Outcome::Denied, Reason::NamespaceNotFound)),
            (Failure::Absent, (Outcome::Denied, Reason::NotFound)),
            (missing.into(), (Outcome::Denied, Reason::PermissionMissing)),
            (invalid("pattern").into(), (Outcome::Failed, Reason::FieldInvalid)),
            (Failure::from(Wrong::Malformed), (Outcome::Failed, Reason::RequestMalformed)),
        ] {
            assert_eq!(failure.verdict(), wanted, "{failure:?}");
        }
    }

    #[test]
    fn a_rule_is_shown_without_credentials_and_reads_back() {
        let who = Principal::auth_off();
        let with = |runner: Runner| Rule {
            id: Identifier::parse("rule.a").unwrap(),
            pattern: "".into(),
            runner,
            retry: RetryPolicy::default(),
            owner: GrantRef {
                identity: who.identity.clone(),
                method: who.method,
                credential_id: Arc::clone(&who.credential_id),
                grants: Vec::new(),
                set_at: Timestamp::default(),
                issued_at: None,
                until: None,
            },
        };
        let redis = with(Runner::Redis {
            url: "redis://:s3cret@h".into(),
            command: crate::domain::schedule::RedisCommand::Set,
            key: "k".into(),
        });
        assert_eq!(
            told(|out| rule(out, "r1", &redis)),
            "r1 rule.a \"\" redis redis://***@h SET k\n"
        );
        let shell = with(Runner::Shell { command: "echo \"a\"".into() });
        assert_eq!(
            told(|out| rule(out, "r1", &shell)),
            "r1 rule.a \"\" shell \"echo \\\"a\\\"\"\n"
        );
    }
}
