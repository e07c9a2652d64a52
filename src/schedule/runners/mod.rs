//! The runners: what a rule does with a job that is due.

#[cfg(feature = "amqp")]
mod amqp;
mod http;
mod process;
#[cfg(feature = "redis")]
mod redis;
mod remote;
pub(super) mod task;

use std::sync::Arc;

use super::Error;
use crate::{
    domain::schedule::{Identifier, Nanos, Rule, Runner, is_plain},
    egress::Egress,
    process::Launcher,
};

#[cfg(not(all(feature = "amqp", feature = "redis")))]
const NOT_BUILT: &str = "this build has no such runner";

/// A job that is due, with the rule that is its own.
#[derive(Clone, Debug)]
pub struct Firing {
    /// The job.
    pub job: Identifier,
    /// Which occurrence of it.
    pub execution: Nanos,
    /// Which attempt of that, from 1.
    pub attempt: u32,
    /// What is done.
    pub rule: Arc<Rule>,
}

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// What went wrong; none is success.
    pub error: Option<String>,
    /// Whether another attempt may help.
    pub retryable: bool,
    /// The end of what it wrote, 4 KiB at most.
    pub output: Option<String>,
}

impl Ended {
    /// It failed, and another attempt may help.
    pub(in crate::schedule) fn failed(error: impl Into<String>) -> Self {
        Self { error: Some(error.into()), retryable: true, output: None }
    }
}

/// What runners work with.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    /// Unless it is set, nothing of the inside is allowed.
    egress: Arc<Egress>,
    /// None when no runner that starts processes is listed.
    processes: Option<Launcher>,
}

impl Tools {
    /// With the connector for what rules name.
    #[must_use]
    pub fn with_egress(self, egress: Arc<Egress>) -> Self {
        Self { egress, ..self }
    }

    /// With what starts processes.
    #[must_use]
    pub fn with_processes(self, launcher: Launcher) -> Self {
        Self { processes: Some(launcher), ..self }
    }

    /// Whether a runner can be used as it is written; looked at when a rule is
    /// set.
    pub fn check(&self, runner: &Runner) -> Result<(), Error> {
        for (field, text) in texts(runner) {
            if !is_plain(text) {
                let message = "control characters and line separators are not allowed".to_owned();
                return Err(Error::FieldInvalid { field, message });
            }
        }
        match runner {
            Runner::Http { url, .. } => http::check(&self.egress, url),
            Runner::Shell { .. } | Runner::Direct { .. } | Runner::Awf { .. } => {
                process::check(runner)
            }
            #[cfg(feature = "amqp")]
            Runner::Amqp { dsn, exchange, routing_key } => {
                amqp::check(&self.egress, dsn, exchange, routing_key)
            }
            #[cfg(feature = "redis")]
            Runner::Redis { url, key, .. } => redis::check(&self.egress, url, key),
            #[cfg(not(feature = "amqp"))]
            Runner::Amqp { .. } => Err(Error::RunnerDisabled(runner.kind())),
            #[cfg(not(feature = "redis"))]
            Runner::Redis { .. } => Err(Error::RunnerDisabled(runner.kind())),
            Runner::Task { .. } => Ok(()),
        }
    }

    /// Runs a job, until it has ended or this is dropped.
    pub async fn run(&self, firing: &Firing) -> Ended {
        match &firing.rule.runner {
            Runner::Http { method, url } => http::run(&self.egress, firing, *method, url).await,
            Runner::Shell { .. } | Runner::Direct { .. } | Runner::Awf { .. } => {
                match &self.processes {
                    Some(launcher) => process::run(launcher, firing).await,
                    None => Ended::failed("processes are not enabled"),
                }
            }
            #[cfg(feature = "amqp")]
            Runner::Amqp { dsn, exchange, routing_key } => {
                amqp::run(&self.egress, firing, dsn, exchange, routing_key).await
            }
            #[cfg(feature = "redis")]
            Runner::Redis { url, command, key } => {
                redis::run(&self.egress, firing, url, *command, key).await
            }
            #[cfg(not(feature = "amqp"))]
            Runner::Amqp { .. } => Ended::failed(NOT_BUILT),
            #[cfg(not(feature = "redis"))]
            Runner::Redis { .. } => Ended::failed(NOT_BUILT),
            // Its creation is its run: `task::run` is called for the whole of
            // what is due.
            Runner::Task { .. } => Ended::failed("a task is created, not run"),
        }
    }
}

/// What is one line in lists and logs. A shell's command may have several.
fn texts(runner: &Runner) -> Vec<(&'static str, &str)> {
    match runner {
        Runner::Task { template, version, .. } => {
            let version = version.iter().map(|version| ("runner.template", &**version));
            std::iter::once(("runner.template", &**template)).chain(version).collect()
        }
        Runner::Http { url, .. } => vec![("runner.url", url)],
        Runner::Shell { .. } => Vec::new(),
        Runner::Direct { executable, args } => {
            let args = args.iter().map(|arg| ("runner.args", &**arg));
            std::iter::once(("runner.executable", &**executable)).chain(args).collect()
        }
        Runner::Awf { workflow, args } => {
            let args = args.iter().map(|arg| ("runner.args", &**arg));
            std::iter::once(("runner.workflow", &**workflow)).chain(args).collect()
        }
        Runner::Amqp { dsn, exchange, routing_key } => vec![
            ("runner.dsn", dsn),
            ("runner.exchange", exchange),
            ("runner.routing_key", routing_key),
        ],
        Runner::Redis { url, key, .. } => vec![("runner.url", url), ("runner.key", key)],
    }
}

/// A runner of a test's own.
#[cfg(test)]
#[derive(Default)]
pub(in crate::schedule) struct Probe(std::sync::OnceLock<Run>);

#[cfg(test)]
type Run = Box<dyn Fn(Firing) -> futures::future::BoxFuture<'static, Ended> + Send + Sync>;

#[cfg(test)]
impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Probe")
    }
}

#[cfg(test)]
impl Probe {
    pub(in crate::schedule) fn put<F, R>(&self, run: F)
    where
        F: Fn(Firing) -> R + Send + Sync + 'static,
        R: Future<Output = Ended> + Send + 'static,
    {
        assert!(self.0.set(Box::new(move |firing| Box::pin(run(firing)))).is_ok(), "one probe");
    }

    pub(in crate::schedule) async fn run(&self, firing: &Firing) -> Option<Ended> {
        let run = self.0.get()?;
        Some(run(firing.clone()).await)
    }
}
