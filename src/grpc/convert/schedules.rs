//! Jobs, runs and rules.

use std::sync::Arc;

use super::{owned, time};
use crate::{
    access::{Reason, Refusal},
    domain::{
        Namespace,
        schedule::{
            HttpMethod, Identifier, Job, JobStatus, RedisCommand, Rule, Run, RunOutcome, Runner,
            hides,
        },
        task::{Backoff, RetryPolicy},
    },
    pb::v1 as pb,
    schedule::{ScheduleCounts, When, jobs::Plan, rules::NewRule},
};

impl TryFrom<pb::SetJobRequest> for Plan {
    type Error = Refusal;

    fn try_from(request: pb::SetJobRequest) -> Result<Self, Refusal> {
        plan(&request.execution, request.recurrence)
    }
}

/// A time, which may be left out, and a recurrence.
pub(in crate::grpc) fn plan(execution: &str, recurrence: Option<String>) -> Result<Plan, Refusal> {
    let when = match execution {
        "" => None,
        text => Some(When::parse(text).map_err(|error| wrong("execution", error))?),
    };
    Ok(Plan { when, recurrence: recurrence.filter(|text| !text.is_empty()) })
}

/// The rule of a request.
pub(in crate::grpc) fn new_rule(
    id: Identifier,
    request: pb::SetRuleRequest,
) -> Result<NewRule, Refusal> {
    let pb::SetRuleRequest { id: _, pattern, runner, retry } = request;
    let runner = runner.ok_or_else(|| wrong("runner", "says what is done; it is missing"))?;
    let retry = retry.map_or(Ok(ONCE), TryInto::try_into)?;
    Ok(NewRule { id, pattern, runner: runner.try_into()?, retry })
}

/// One attempt.
const ONCE: RetryPolicy = RetryPolicy {
    retryable: true,
    max_attempts: 1,
    backoff: Backoff::Exponential,
    base_ms: 1_000,
    max_ms: 30_000,
};

impl TryFrom<pb::RetryPolicy> for RetryPolicy {
    type Error = Refusal;

    fn try_from(retry: pb::RetryPolicy) -> Result<Self, Refusal> {
        let backoff = match pb::RetryBackoff::try_from(retry.backoff) {
            Ok(pb::RetryBackoff::Unspecified | pb::RetryBackoff::Exponential) => {
                Backoff::Exponential
            }
            Ok(pb::RetryBackoff::Linear) => Backoff::Linear,
            Ok(pb::RetryBackoff::Fixed) => Backoff::Fixed,
            Err(_) => return Err(wrong("retry.backoff", "exponential, linear or fixed")),
        };
        Ok(Self {
            retryable: true,
            // As in templates, none means one.
            max_attempts: retry.max_attempts.unwrap_or(ONCE.max_attempts).max(1),
            backoff,
            base_ms: retry.backoff_base_ms.unwrap_or(ONCE.base_ms),
            max_ms: retry.max_backoff_ms.unwrap_or(ONCE.max_ms),
        })
    }
}

/// The fields of a runner's message, which are taken out one by one: what is
/// left does not belong to its type.
struct Fields(pb::Runner);

impl Fields {
    fn needed(field: &'static str, value: Option<String>) -> Result<Arc<str>, Refusal> {
        match value {
            Some(value) if !value.is_empty() => Ok(value.into()),
            Some(_) | None => Err(wrong(field, "is missing")),
        }
    }

    fn args(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.0.args).into_iter().map(Into::into).collect()
    }

    /// ztick's clients send it as the first of `args`.
    fn workflow(&mut self) -> Result<Arc<str>, Refusal> {
        let args = &mut self.0.args;
        if self.0.workflow.is_none() && args.first().is_some_and(|first| !first.starts_with('-')) {
            self.0.workflow = Some(args.remove(0));
        }
        Self::needed("runner.workflow", self.0.workflow.take())
    }

    fn command(&mut self) -> Result<Arc<str>, Refusal> {
        Self::needed("runner.command", self.0.command.take())
    }

    fn url(&mut self) -> Result<Arc<str>, Refusal> {
        Self::address("runner.url", self.0.url.take())
    }

    /// An answer that is sent back has no secrets any more.
    fn address(field: &'static str, value: Option<String>) -> Result<Arc<str>, Refusal> {
        let address = Self::needed(field, value)?;
        if hides(&address) {
            return Err(wrong(field, "its secrets are hidden by `***`; write them out"));
        }
        Ok(address)
    }

    fn http(&mut self) -> Result<Runner, Refusal> {
        let text = Self::needed("runner.method", self.0.method.take())?;
        let method =
            HttpMethod::ALL.iter().find(|method| text.eq_ignore_ascii_case(method.as_str()));
        let method = *method.ok_or_else(|| wrong("runner.method", "GET, POST, PUT or DELETE"))?;
        Ok(Runner::Http { method, url: self.url()? })
    }

    fn redis(&mut self) -> Result<Runner, Refusal> {
        let text = self.command()?;
        let mut known = RedisCommand::ALL.iter();
        let command = known
            .find(|command| text.eq_ignore_ascii_case(command.as_str()))
            .ok_or_else(|| wrong("runner.command", "PUBLISH, RPUSH, LPUSH or SET"))?;
        let key = Self::needed("runner.key", self.0.key.take())?;
        Ok(Runner::Redis { url: self.url()?, command: *command, key })
    }

    fn task(&mut self) -> Result<Runner, Refusal> {
        let text = Self::needed("runner.template", self.0.template.take())?;
        let (path, version) = match text.split_once('@') {
            Some((path, version)) => (path, Some(version)),
            None => (&*text, None),
        };
        let (namespace, template) = path
            .split_once('/')
            .filter(|(_, template)| !template.is_empty() && version != Some(""))
            .ok_or_else(|| wrong("runner.template", "namespace/name or namespace/name@version"))?;
        let namespace =
            Namespace::parse(namespace).map_err(|error| wrong("runner.template", error))?;
        Ok(Runner::Task { namespace, template: template.into(), version: version.map(Into::into) })
    }

    /// The fields that are still set.
    fn left(&self) -> Option<&'static str> {
        let pb::Runner {
            r#type: _,
            command,
            executable,
            args,
            method,
            url,
            workflow,
            dsn,
            exchange,
            routing_key,
            key,
            template,
        } = &self.0;
        [
            ("runner.command", command.is_some()),
            ("runner.executable", executable.is_some()),
            ("runner.args", !args.is_empty()),
            ("runner.method", method.is_some()),
            ("runner.url", url.is_some()),
            ("runner.workflow", workflow.is_some()),
            ("runner.dsn", dsn.is_some()),
            ("runner.exchange", exchange.is_some()),
            ("runner.routing_key", routing_key.is_some()),
            ("runner.key", key.is_some()),
            ("runner.template", template.is_some()),
        ]
        .into_iter()
        .find_map(|(name, set)| set.then_some(name))
    }
}

impl TryFrom<pb::Runner> for Runner {
    type Error = Refusal;

    fn try_from(runner: pb::Runner) -> Result<Self, Refusal> {
        const TYPES: &str = "task, http, shell, direct, awf, amqp or redis";
        let kind = runner.r#type();
        let mut fields = Fields(runner);
        let runner = match kind {
            pb::RunnerType::Unspecified => return Err(wrong("runner.type", TYPES)),
            pb::RunnerType::Task => fields.task()?,
            pb::RunnerType::Http => fields.http()?,
            pb::RunnerType::Shell => Self::Shell { command: fields.command()? },
            pb::RunnerType::Direct => Self::Direct {
                executable: Fields::needed("runner.executable", fields.0.executable.take())?,
                args: fields.args(),
            },
            pb::RunnerType::Awf => Self::Awf { workflow: fields.workflow()?, args: fields.args() },
            pb::RunnerType::Amqp => Self::Amqp {
                dsn: Fields::address("runner.dsn", fields.0.dsn.take())?,
                // The default exchange has no name.
                exchange: fields.0.exchange.take().unwrap_or_default().into(),
                // Empty where the exchange asks for none, as a fanout.
                routing_key: fields
                    .0
                    .routing_key
                    .take()
                    .ok_or_else(|| wrong("runner.routing_key", "is missing"))?
                    .into(),
            },
            pb::RunnerType::Redis => fields.redis()?,
        };
        match fields.left() {
            None => Ok(runner),
            Some(field) => Err(wrong(
                field,
                format!("a runner of the type {} has no such field", runner.kind().as_str()),
            )),
        }
    }
}

fn wrong(field: &str, what: impl std::fmt::Display) -> Refusal {
    Refusal::invalid(Reason::FieldInvalid, field, what)
}

impl From<JobStatus> for pb::JobStatus {
    fn from(status: JobStatus) -> Self {
        match status {
            JobStatus::Planned => Self::Planned,
            JobStatus::Triggered => Self::Triggered,
            JobStatus::Executed => Self::Executed,
            JobStatus::Failed => Self::Failed,
            JobStatus::Held => Self::Held,
        }
    }
}

impl From<Job> for pb::Job {
    fn from(job: Job) -> Self {
        let Job { id, execution, due, status, recurrence, reason, attempts, version: _ } = job;
        Self {
            id: id.to_string(),
            status: pb::JobStatus::from(status).into(),
            execution: execution.0,
            recurrence: recurrence.map(|text| owned(&text)),
            // What is over is not looked at again.
            due: (due != execution && status == JobStatus::Planned).then_some(due.0),
            reason: reason.map(|text| owned(&text)),
            attempts: (attempts > 0).then_some(attempts),
        }
    }
}

impl From<RunOutcome> for pb::RunOutcome {
    fn from(outcome: RunOutcome) -> Self {
        match outcome {
            RunOutcome::Running => Self::Running,
            RunOutcome::Executed => Self::Executed,
            RunOutcome::Failed => Self::Failed,
            RunOutcome::Interrupted => Self::Interrupted,
            RunOutcome::Held => Self::Held,
        }
    }
}

impl From<Run> for pb::JobRun {
    fn from(run: Run) -> Self {
        Self {
            number: run.number,
            execution: run.execution.0,
            attempt: run.attempt,
            rule: Some(owned(&run.rule)).filter(|rule| !rule.is_empty()),
            started_at: Some(time(run.started_at)),
            ended_at: run.ended_at.map(time),
            outcome: pb::RunOutcome::from(run.outcome).into(),
            error: run.error,
            output: run.output,
        }
    }
}

impl From<&Runner> for pb::Runner {
    /// Never with credentials.
    fn from(runner: &Runner) -> Self {
        let text = |text: &Arc<str>| Some(owned(text));
        let texts = |texts: &[Arc<str>]| texts.iter().map(|text| owned(text)).collect();
        let of = |kind: pb::RunnerType| Self { r#type: kind.into(), ..Self::default() };
        match &runner.redacted() {
            Runner::Task { namespace, template, version } => {
                let version = version.as_ref().map(|version| format!("@{version}"));
                let version = version.unwrap_or_default();
                let template = Some(format!("{namespace}/{template}{version}"));
                Self { template, ..of(pb::RunnerType::Task) }
            }
            Runner::Http { method, url } => Self {
                method: Some(owned(method.as_str())),
                url: text(url),
                ..of(pb::RunnerType::Http)
            },
            Runner::Shell { command } => {
                Self { command: text(command), ..of(pb::RunnerType::Shell) }
            }
            Runner::Direct { executable, args } => Self {
                executable: text(executable),
                args: texts(args),
                ..of(pb::RunnerType::Direct)
            },
            Runner::Awf { workflow, args } => {
                Self { workflow: text(workflow), args: texts(args), ..of(pb::RunnerType::Awf) }
            }
            Runner::Amqp { dsn, exchange, routing_key } => Self {
                dsn: text(dsn),
                exchange: text(exchange),
                routing_key: text(routing_key),
                ..of(pb::RunnerType::Amqp)
            },
            Runner::Redis { url, command, key } => Self {
                url: text(url),
                command: Some(owned(command.as_str())),
                key: text(key),
                ..of(pb::RunnerType::Redis)
            },
        }
    }
}

impl From<RetryPolicy> for pb::RetryPolicy {
    fn from(retry: RetryPolicy) -> Self {
        let backoff = match retry.backoff {
            Backoff::Exponential => pb::RetryBackoff::Exponential,
            Backoff::Linear => pb::RetryBackoff::Linear,
            Backoff::Fixed => pb::RetryBackoff::Fixed,
        };
        Self {
            max_attempts: Some(retry.max_attempts),
            backoff: backoff.into(),
            backoff_base_ms: Some(retry.base_ms),
            max_backoff_ms: Some(retry.max_ms),
        }
    }
}

impl From<&Rule> for pb::Rule {
    fn from(rule: &Rule) -> Self {
        let again = rule.retry.retryable && rule.retry.max_attempts > 1;
        Self {
            id: rule.id.to_string(),
            pattern: owned(&rule.pattern),
            runner: Some((&rule.runner).into()),
            retry: again.then(|| rule.retry.into()),
            set_by: owned(&rule.owner.identity.subject),
            set_at: Some(time(rule.owner.set_at)),
        }
    }
}

impl From<ScheduleCounts> for pb::GetSchedulerStatsResponse {
    fn from(counts: ScheduleCounts) -> Self {
        let ScheduleCounts { jobs, rules } = counts;
        let [planned, triggered, executed, failed, held] = jobs;
        Self {
            jobs_total: jobs.iter().sum(),
            jobs_planned: planned,
            jobs_triggered: triggered,
            jobs_executed: executed,
            jobs_failed: failed,
            jobs_held: held,
            rules_total: rules,
            executions_pending: None,
            executions_inflight: None,
        }
    }
}
