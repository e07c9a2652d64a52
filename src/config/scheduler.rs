//! `[scheduler]`: which runners there are, and as whom commands run (SE-61).

use std::{num::NonZeroU64, time::Duration};

use super::{Error, given, number, raw, seconds, source};
use crate::{
    domain::schedule::RunnerKind,
    process::{RunAs, RunAsError},
};

/// The value of `run_as` for the server's own user.
const OWN_USER: &str = "self";
/// Ten years, which is as good as for ever.
const GRANT_HOURS_MAX: u64 = 10 * 365 * 24;

/// What the scheduler may do.
#[derive(Clone, Debug)]
pub struct Scheduler {
    /// The runners that rules may have.
    pub runners: Vec<RunnerKind>,
    /// As whom commands run; there when a runner that starts processes is
    /// listed, and only then.
    pub run_as: Option<RunAs>,
    /// How many runs there are at once.
    pub max_concurrent_runs: usize,
    /// How long the grants of a JWT stand behind a rule; none is until they
    /// are revoked.
    pub jwt_grant_hours: Option<NonZeroU64>,
    /// How long a command may run.
    pub command_timeout: Duration,
}

pub(super) fn scheduler(
    raw: raw::Scheduler,
    warnings: &mut Vec<String>,
) -> Result<Scheduler, Error> {
    let runners = runners(&raw.runners)?;
    let starts = runners.iter().copied().find(|kind| kind.starts_processes());
    let run_as = starts.map(|kind| run_as(kind, given(raw.run_as), warnings)).transpose()?;
    Ok(Scheduler {
        runners,
        run_as,
        max_concurrent_runs: number(
            "scheduler.max_concurrent_runs",
            raw.max_concurrent_runs,
            1,
            10_000,
        )?,
        jwt_grant_hours: NonZeroU64::new(number(
            "scheduler.jwt_grant_hours",
            raw.jwt_grant_hours,
            0,
            GRANT_HOURS_MAX,
        )?),
        command_timeout: seconds(
            "scheduler.command_timeout_seconds",
            raw.command_timeout_seconds,
            1,
        )?,
    })
}

fn runners(names: &[String]) -> Result<Vec<RunnerKind>, Error> {
    let mut runners = names
        .iter()
        .map(|name| match RunnerKind::parse(name) {
            Some(kind) if kind.is_built() => Ok(kind),
            Some(_) => Err(not_built(name)),
            None => Err(unknown_runner(name)),
        })
        .collect::<Result<Vec<_>, _>>()?;
    runners.sort_unstable();
    runners.dedup();
    Ok(runners)
}

fn not_built(name: &str) -> Error {
    let message = format!("this build has no runner `{name}`; its feature `{name}` is off");
    Error::invalid("scheduler.runners", message)
}

fn unknown_runner(name: &str) -> Error {
    let known = || RunnerKind::ALL.iter().map(|kind| kind.as_str().to_owned());
    let hint = source::nearest(name, known()).map_or_else(
        || format!("there are {}", known().collect::<Vec<_>>().join(", ")),
        |nearest| format!("did you mean `{nearest}`?"),
    );
    Error::invalid("scheduler.runners", format!("there is no runner `{name}`; {hint}"))
}

/// Who may set rules can run what they like as this user: that is never
/// decided by silence.
fn run_as(
    kind: RunnerKind,
    name: Option<String>,
    warnings: &mut Vec<String>,
) -> Result<RunAs, Error> {
    const KEY: &str = "scheduler.run_as";
    let Some(name) = name else {
        return Err(Error::invalid(
            KEY,
            format!(
                "is missing: the runner `{}` starts processes; name the user that they run as, \
                 or say \"{OWN_USER}\" for the server's own",
                kind.as_str()
            ),
        ));
    };
    let run_as = if name == OWN_USER { RunAs::own() } else { named(KEY, &name)? };
    if run_as.is_root() {
        warnings.push(format!(
            "{KEY} = \"{name}\" is root: commands of rules can do anything on this machine"
        ));
    } else if run_as.is_server() {
        warnings.push(format!(
            "{KEY} = \"{name}\" is the server's own user: commands of rules can read the store \
             and the configuration"
        ));
    }
    Ok(run_as)
}

fn named(key: &str, name: &str) -> Result<RunAs, Error> {
    RunAs::user(name).map_err(|error| {
        let hint = match &error {
            RunAsError::CannotBecome(_) => "; run the server as that user and say \"self\"",
            RunAsError::Unknown(_) | RunAsError::Lookup(..) => "",
        };
        Error::invalid(key, format!("{error}{hint}"))
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::config::Settings;

    fn load(text: &str) -> Result<Settings, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bailiwick.toml");
        std::fs::write(&path, format!("[scheduler]\n{text}\n")).unwrap();
        Settings::load(Some(&path), std::iter::empty::<(OsString, OsString)>())
    }

    fn problem(text: &str) -> String {
        load(text).unwrap_err().to_string()
    }

    fn me() -> String {
        RunAs::own().name().to_owned()
    }

    #[test]
    fn se_61_by_default_no_runner_starts_processes() {
        let settings = load("").unwrap().scheduler;
        assert_eq!(settings.runners, [RunnerKind::Task, RunnerKind::Http]);
        assert_eq!(settings.run_as, None);
        assert_eq!(settings.max_concurrent_runs, 64);
        assert_eq!(settings.jwt_grant_hours, None);
        assert_eq!(settings.command_timeout, Duration::from_mins(5));
        assert!(load("runners = []").unwrap().scheduler.runners.is_empty());
    }

    #[test]
    fn se_61_without_run_as_the_start_is_refused_and_says_why() {
        for kind in RunnerKind::ALL {
            let text = format!("runners = [\"{}\"]", kind.as_str());
            if !kind.is_built() {
                let refused = problem(&text);
                assert!(refused.contains("this build has no runner"), "{refused}");
                continue;
            }
            if kind.starts_processes() {
                for run_as in ["", "run_as = \"\"", "run_as = \" \""] {
                    let refused = problem(&format!("{text}\n{run_as}"));
                    assert!(refused.contains("scheduler.run_as"), "{refused}");
                    assert!(refused.contains(&format!("`{}` starts processes", kind.as_str())));
                }
                assert!(load(&format!("{text}\nrun_as = \"self\"")).is_ok());
            } else {
                assert_eq!(load(&text).unwrap().scheduler.runners, [*kind]);
            }
        }
    }

    #[test]
    fn se_61_run_as_is_a_user_that_the_server_can_become() {
        let refused = problem("runners = [\"shell\"]\nrun_as = \"no-such-user-here\"");
        assert!(refused.contains("there is no user `no-such-user-here`"), "{refused}");
        let other = load("runners = [\"shell\"]\nrun_as = \"nobody\"");
        if RunAs::own().is_root() {
            let settings = other.unwrap();
            assert_eq!(settings.scheduler.run_as.unwrap().name(), "nobody");
            assert!(!settings.warnings.iter().any(|line| line.contains("run_as")));
        } else {
            let refused = other.unwrap_err().to_string();
            assert!(refused.contains("the server is not root"), "{refused}");
        }
    }

    #[test]
    fn se_61_the_servers_own_user_is_warned_about() {
        for name in ["self".to_owned(), me()] {
            let settings = load(&format!("runners = [\"direct\"]\nrun_as = \"{name}\"")).unwrap();
            let warned = settings.warnings.iter().any(|line| line.contains("scheduler.run_as"));
            assert!(warned, "{name}: {:?}", settings.warnings);
        }
    }

    #[test]
    fn unknown_runners_are_refused_with_the_nearest() {
        assert!(problem("runners = [\"shel\"]").contains("did you mean `shell`?"));
        assert!(problem("runners = [\"kubernetes-operator\"]").contains("there are task, http"));
        let twice = load("runners = [\"http\", \"task\", \"http\"]").unwrap().scheduler;
        assert_eq!(twice.runners, [RunnerKind::Task, RunnerKind::Http]);
    }

    #[test]
    fn numbers_have_bounds() {
        for (good, bad) in [
            ("max_concurrent_runs = 1", "max_concurrent_runs = 0"),
            ("max_concurrent_runs = 10000", "max_concurrent_runs = 10001"),
            ("jwt_grant_hours = 87600", "jwt_grant_hours = 87601"),
            ("command_timeout_seconds = 86400", "command_timeout_seconds = 86401"),
            ("command_timeout_seconds = 1", "command_timeout_seconds = 0"),
        ] {
            assert!(load(good).is_ok(), "{good}");
            assert!(problem(bad).contains("is not within"), "{bad}");
        }
        let hours = load("jwt_grant_hours = 12").unwrap().scheduler.jwt_grant_hours;
        assert_eq!(hours.map(NonZeroU64::get), Some(12));
    }
}
