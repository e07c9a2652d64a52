//! `shell`, `direct` and `awf`: a job as a process.
//!
//! The job is in the environment and nowhere else: no part of it is ever a
//! part of a command.

use super::{Ended, Firing};
use crate::{
    domain::schedule::{Nanos, Runner},
    process::{Launcher, Report},
    schedule::Error,
};

/// The longest command, with its arguments, in bytes.
const COMMAND_BYTES_MAX: usize = 4_096;

/// What a runner starts; nothing when it starts no processes.
fn command(runner: &Runner) -> Vec<&str> {
    match runner {
        Runner::Shell { command } => vec!["/bin/sh", "-c", command],
        Runner::Direct { executable, args } => {
            std::iter::once(&**executable).chain(args.iter().map(AsRef::as_ref)).collect()
        }
        Runner::Awf { workflow, args } => {
            let first = ["awf", "run", workflow];
            first.into_iter().chain(args.iter().map(AsRef::as_ref)).collect()
        }
        Runner::Task { .. } | Runner::Http { .. } | Runner::Amqp { .. } | Runner::Redis { .. } => {
            Vec::new()
        }
    }
}

/// Whether a runner can be started as it is written.
pub(super) fn check(runner: &Runner) -> Result<(), Error> {
    let field = match runner {
        Runner::Shell { .. } => "runner.command",
        Runner::Direct { .. } => "runner.executable",
        Runner::Awf { .. } => "runner.workflow",
        Runner::Task { .. } | Runner::Http { .. } | Runner::Amqp { .. } | Runner::Redis { .. } => {
            return Ok(());
        }
    };
    match flaw(runner) {
        Some(message) => Err(Error::FieldInvalid { field, message }),
        None => Ok(()),
    }
}

fn flaw(runner: &Runner) -> Option<String> {
    let command = command(runner);
    if command.iter().any(|part| part.contains('\0')) {
        return Some("a command holds no NUL bytes".to_owned());
    }
    if command.iter().map(|part| part.len() + 1).sum::<usize>() > COMMAND_BYTES_MAX {
        return Some(format!("a command has at most {COMMAND_BYTES_MAX} bytes with its arguments"));
    }
    match runner {
        Runner::Shell { command } if command.trim().is_empty() => Some("is empty".to_owned()),
        Runner::Direct { executable, .. } if executable.trim().is_empty() => {
            Some("is empty".to_owned())
        }
        Runner::Direct { executable, .. }
            if executable.contains('/') && !executable.starts_with('/') =>
        {
            Some(format!(
                "`{executable}` is neither an absolute path nor a name that is looked up in {}",
                crate::process::PATH
            ))
        }
        Runner::Awf { workflow, .. } if workflow.trim().is_empty() => Some("is empty".to_owned()),
        Runner::Awf { workflow, .. } if workflow.starts_with('-') => {
            Some(format!("`{workflow}` is an option, not a workflow"))
        }
        Runner::Task { .. }
        | Runner::Http { .. }
        | Runner::Shell { .. }
        | Runner::Direct { .. }
        | Runner::Awf { .. }
        | Runner::Amqp { .. }
        | Runner::Redis { .. } => None,
    }
}

/// Runs a job's command to its end; dropped, it ends the command.
pub(super) async fn run(launcher: &Launcher, firing: &Firing) -> Ended {
    let Firing { job, execution, attempt, rule } = firing;
    let variables = [
        ("BAILIWICK_JOB_ID", job.to_string()),
        ("BAILIWICK_JOB_EXECUTION", rfc_3339(*execution)),
        ("BAILIWICK_JOB_ATTEMPT", attempt.to_string()),
    ];
    let Report { ended, output } = launcher.run(&command(&rule.runner), &variables).await;
    Ended { error: ended.err(), retryable: true, output: (!output.is_empty()).then_some(output) }
}

fn rfc_3339(at: Nanos) -> String {
    // Every such number is a time that it knows.
    jiff::Timestamp::from_nanosecond(at.0.into())
        .map_or_else(|_| String::new(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::schedule::HttpMethod;

    fn shell(command: &str) -> Runner {
        Runner::Shell { command: command.into() }
    }

    fn direct(executable: &str, args: &[&str]) -> Runner {
        Runner::Direct {
            executable: executable.into(),
            args: args.iter().map(|arg| Arc::from(*arg)).collect(),
        }
    }

    fn awf(workflow: &str, args: &[&str]) -> Runner {
        Runner::Awf {
            workflow: workflow.into(),
            args: args.iter().map(|arg| Arc::from(*arg)).collect(),
        }
    }

    #[test]
    fn commands_are_what_the_rule_says() {
        assert_eq!(command(&shell("a $(b)")), ["/bin/sh", "-c", "a $(b)"]);
        assert_eq!(command(&direct("/bin/a", &["b c", "-d"])), ["/bin/a", "b c", "-d"]);
        assert_eq!(command(&awf("w", &["--input", "k=v"])), ["awf", "run", "w", "--input", "k=v"]);
        let http = Runner::Http { method: HttpMethod::Get, url: "http://a".into() };
        assert!(command(&http).is_empty());
        assert!(check(&http).is_ok());
    }

    #[test]
    fn se_61_commands_that_cannot_be_right_are_refused() {
        let long = "x".repeat(COMMAND_BYTES_MAX);
        for bad in [
            shell(""),
            shell(" \n"),
            shell("a\0b"),
            shell(&long),
            direct("", &[]),
            direct("bin/tool", &[]),
            direct("./tool", &[]),
            direct("../tool", &[]),
            direct("to\0ol", &[]),
            direct("tool", &["a\0"]),
            direct("tool", &[&long]),
            awf("", &[]),
            awf("--help", &[]),
            awf("a\0", &[]),
        ] {
            let refused = check(&bad).unwrap_err();
            assert!(matches!(refused, Error::FieldInvalid { .. }), "{refused}");
        }
        for good in [
            shell("a; b"),
            shell(&"x".repeat(COMMAND_BYTES_MAX - 20)),
            direct("/usr/bin/tool", &["", "a b"]),
            direct("tool", &["x/y"]),
            awf("deploy", &["--input", "a=b"]),
        ] {
            assert!(check(&good).is_ok());
        }
    }

    #[test]
    fn a_time_is_shown_with_all_its_digits() {
        assert_eq!(rfc_3339(Nanos(1_700_000_000_000_000_001)), "2023-11-14T22:13:20.000000001Z");
        assert_eq!(rfc_3339(Nanos(0)), "1970-01-01T00:00:00Z");
        for extreme in [i64::MIN, i64::MAX] {
            assert!(rfc_3339(Nanos(extreme)).ends_with('Z'));
        }
    }
}
