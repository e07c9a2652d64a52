//! What each instruction does: the claim of its right, what is inside of the
//! caller's namespace, the use case, the answer.

use std::borrow::Cow;

use tokio::io::AsyncWrite;

use super::{
    Service,
    connection::{Closed, Out},
    instruction::Instruction,
    reply::{self, Failure},
};
use crate::{
    access::{
        Ending, Reason,
        line::{
            self, Asked, Get, History, ListRules, Query, Remove, RemoveRule, Resume, RuleSet,
            Schedule, Session, Set, Stat,
        },
        reason_name,
    },
    domain::{
        Scope,
        audit::Outcome,
        permission::right::SchedulesWrite,
        schedule::{JobStatus, Runner},
        task::RetryPolicy,
    },
    schedule::{
        Figures, PageRequest, Paged, When,
        jobs::{self, Change, Plan},
        rules::{self, NewRule},
    },
};

/// How many lines are asked of the store at once.
const PAGE: u32 = 500;

/// Records how an instruction ended, which is not answered when that must be
/// and cannot.
pub(super) async fn record(
    session: &Session,
    asked: Option<Asked>,
    object: &str,
    failure: Option<&Failure>,
) -> Result<(), Closed> {
    let ending = match failure.map(Failure::verdict) {
        None => Ending { outcome: Outcome::Allowed, reason: None, object },
        // A flood of these has one record a minute.
        Some((_, reason @ Reason::RateLimited)) => {
            session.turned_away(asked, reason_name(reason));
            return Ok(());
        }
        Some((outcome, reason)) => Ending { outcome, reason: Some(reason_name(reason)), object },
    };
    session.ended(asked, ending).await.map_err(|_| Closed)
}

/// A change of a job, for the batch.
pub(super) fn change<'a>(
    session: &Session,
    instruction: Instruction<'a>,
) -> Result<Result<Change, Failure>, Instruction<'a>> {
    match instruction {
        Instruction::Set(job, when) => Ok(set::<Set>(session, &job, Some(&when), None)),
        Instruction::Schedule(job, recurrence, when) => {
            Ok(set::<Schedule>(session, &job, when.as_deref(), Some(recurrence)))
        }
        Instruction::Remove(job) => Ok(remove(session, &job)),
        other @ (Instruction::Get(_)
        | Instruction::Resume(_)
        | Instruction::History(_)
        | Instruction::Query(_)
        | Instruction::RuleSet(..)
        | Instruction::RemoveRule(_)
        | Instruction::ListRules(_)
        | Instruction::Stat) => Err(other),
    }
}

fn set<I: line::Instruction<Right = SchedulesWrite>>(
    session: &Session,
    job: &str,
    when: Option<&str>,
    recurrence: Option<String>,
) -> Result<Change, Failure> {
    let claim = session.instructed::<I>()?;
    let job = reply::identifier(job)?;
    let Some(permit) = claim.over(&job) else {
        session.outside::<I>(job.as_str());
        return Err(Failure::OUTSIDE);
    };
    let when = when.map(When::parse).transpose();
    let when = when.map_err(|message| Failure::Told("invalid_time", message))?;
    Ok(Change::Set(permit, Plan { when, recurrence }))
}

fn remove(session: &Session, job: &str) -> Result<Change, Failure> {
    let claim = session.instructed::<Remove>()?;
    let job = reply::identifier(job)?;
    let Some(permit) = claim.over(&job) else {
        session.outside::<Remove>(job.as_str());
        return Err(Failure::OUTSIDE);
    };
    Ok(Change::Remove(permit))
}

/// What came before is done; this is done now, and written.
pub(super) async fn now<W: AsyncWrite + Unpin>(
    service: &Service,
    session: &Session,
    id: &str,
    instruction: Instruction<'_>,
    out: &mut Out<'_, W>,
) -> Result<(), Closed> {
    let object = instruction.object().to_owned();
    let done = match instruction {
        Instruction::Get(job) => get(service, session, id, &job, out).await,
        Instruction::Resume(job) => resume(service, session, id, &job, out).await,
        Instruction::History(job) => Box::pin(history(service, session, id, &job, out)).await?,
        Instruction::Query(prefix) => Box::pin(query(service, session, id, &prefix, out)).await?,
        Instruction::ListRules(prefix) => {
            Box::pin(list_rules(service, session, id, &prefix, out)).await?
        }
        Instruction::RuleSet(rule, pattern, runner) => {
            Box::pin(rule_set(service, session, &rule, pattern, runner))
                .await
                .map(|()| reply::done(&mut out.bytes, id))
        }
        Instruction::RemoveRule(rule) => Box::pin(remove_rule(service, session, &rule))
            .await
            .map(|()| reply::done(&mut out.bytes, id)),
        Instruction::Stat => Box::pin(stat(service, session, id, out)).await,
        // Made by the batch.
        Instruction::Set(..) | Instruction::Schedule(..) | Instruction::Remove(_) => {
            Err(Failure::Word("internal"))
        }
    };
    if let Err(failure) = &done {
        reply::failed(&mut out.bytes, id, failure);
    }
    record(session, session.take_asked(), &object, done.as_ref().err()).await
}

async fn get<W>(
    service: &Service,
    session: &Session,
    id: &str,
    job: &str,
    out: &mut Out<'_, W>,
) -> Result<(), Failure> {
    let claim = session.instructed::<Get>()?;
    let job = reply::identifier(job)?;
    let Some(permit) = claim.over(&job) else {
        session.outside::<Get>(job.as_str());
        return Err(Failure::OUTSIDE);
    };
    let job = jobs::get(&service.scheduler, &permit).await?;
    reply::state(&mut out.bytes, id, &job);
    Ok(())
}

async fn resume<W>(
    service: &Service,
    session: &Session,
    id: &str,
    job: &str,
    out: &mut Out<'_, W>,
) -> Result<(), Failure> {
    let claim = session.instructed::<Resume>()?;
    let job = reply::identifier(job)?;
    let Some(permit) = claim.over(&job) else {
        session.outside::<Resume>(job.as_str());
        return Err(Failure::OUTSIDE);
    };
    // One that is not held is as absent as one that is not there.
    match jobs::resume(&service.scheduler, &permit).await {
        Ok(_) => reply::done(&mut out.bytes, id),
        Err(crate::schedule::Error::FieldInvalid { field: "id", .. }) => {
            return Err(Failure::Absent);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Writes page after page, then the end. Each is read before the next is asked
/// for: a slow reader holds one.
async fn pages<W, T, F>(
    id: &str,
    out: &mut Out<'_, W>,
    ask: impl Fn(PageRequest) -> F,
    write: impl Fn(&mut Vec<u8>, &str, &T),
) -> Result<Result<(), Failure>, Closed>
where
    W: AsyncWrite + Unpin,
    F: Future<Output = Result<Paged<T>, crate::schedule::Error>>,
{
    let mut token = String::new();
    loop {
        let page = match ask(PageRequest { size: PAGE, token }).await {
            Ok(page) => page,
            Err(error) => return Ok(Err(error.into())),
        };
        page.items.iter().for_each(|item| write(&mut out.bytes, id, item));
        if page.next_token.is_empty() {
            break;
        }
        out.relieve().await?;
        token = page.next_token;
    }
    reply::done(&mut out.bytes, id);
    Ok(Ok(()))
}

async fn history<W: AsyncWrite + Unpin>(
    service: &Service,
    session: &Session,
    id: &str,
    job: &str,
    out: &mut Out<'_, W>,
) -> Result<Result<(), Failure>, Closed> {
    let permit = session.instructed::<History>().map_err(Failure::from).and_then(|claim| {
        let job = reply::identifier(job)?;
        claim.over(&job).ok_or_else(|| {
            session.outside::<History>(job.as_str());
            Failure::OUTSIDE
        })
    });
    let permit = match permit {
        Ok(permit) => permit,
        Err(failure) => return Ok(Err(failure)),
    };
    let (scheduler, permit) = (&service.scheduler, &permit);
    let ask = |request: PageRequest| async move { jobs::runs(scheduler, permit, &request).await };
    pages(id, out, ask, reply::run).await
}

async fn query<W: AsyncWrite + Unpin>(
    service: &Service,
    session: &Session,
    id: &str,
    prefix: &str,
    out: &mut Out<'_, W>,
) -> Result<Result<(), Failure>, Closed> {
    let claim = match session.instructed::<Query>() {
        Ok(claim) => claim,
        Err(refusal) => return Ok(Err(refusal.into())),
    };
    let (scheduler, claim) = (&service.scheduler, &claim);
    let ask =
        |request: PageRequest| async move { jobs::list(scheduler, claim, prefix, &request).await };
    pages(id, out, ask, reply::job).await
}

async fn list_rules<W: AsyncWrite + Unpin>(
    service: &Service,
    session: &Session,
    id: &str,
    prefix: &str,
    out: &mut Out<'_, W>,
) -> Result<Result<(), Failure>, Closed> {
    let claim = match session.instructed::<ListRules>() {
        Ok(claim) => claim,
        Err(refusal) => return Ok(Err(refusal.into())),
    };
    let (scheduler, claim) = (&service.scheduler, &claim);
    let ask = |request: PageRequest| async move { rules::list(scheduler, claim, prefix, &request) };
    pages(id, out, ask, |out, id, rule| reply::rule(out, id, rule)).await
}

async fn rule_set(
    service: &Service,
    session: &Session,
    rule: &str,
    pattern: Cow<'_, str>,
    runner: Runner,
) -> Result<(), Failure> {
    let claim = session.instructed::<RuleSet>()?;
    let retry = RetryPolicy { retryable: false, max_attempts: 1, ..RetryPolicy::default() };
    let id = reply::identifier(rule)?;
    let new = NewRule { id, pattern: pattern.into_owned(), runner, retry };
    let set = rules::set(&service.scheduler, &claim, new).await;
    set.map(drop).map_err(|error| denied::<RuleSet>(session, error))
}

async fn remove_rule(service: &Service, session: &Session, rule: &str) -> Result<(), Failure> {
    let claim = session.instructed::<RemoveRule>()?;
    let id = reply::identifier(rule)?;
    let removed = rules::remove(&service.scheduler, &claim, &id).await;
    removed.map(drop).map_err(|error| denied::<RemoveRule>(session, error))
}

fn denied<I: line::Instruction>(session: &Session, error: crate::schedule::Error) -> Failure {
    if let crate::schedule::Error::OutsideScope(place) = &error {
        session.outside::<I>(place);
    }
    error.into()
}

async fn stat<W>(
    service: &Service,
    session: &Session,
    id: &str,
    out: &mut Out<'_, W>,
) -> Result<(), Failure> {
    let claim = session.instructed::<Stat>()?;
    let counts = service.scheduler.counts(&claim).await?;
    let of = |status: JobStatus| {
        let place = JobStatus::ALL.iter().position(|known| *known == status);
        place.and_then(|place| counts.jobs.get(place)).copied().unwrap_or(0)
    };
    let triggered = of(JobStatus::Triggered);
    // Of the others' connections a narrower caller learns nothing.
    let everything = *claim.scope() == Scope::Everything;
    let connections = if everything { service.connections() } else { 1 };
    // Whose turn it is among others is nobody's business but the operator's.
    let (pending, inflight) = if *claim.scope() == Scope::Everything {
        let Figures { pending, inflight } = service.scheduler.figures();
        (pending.to_string(), inflight.to_string())
    } else {
        ("0".to_owned(), triggered.to_string())
    };
    let truth = |value: bool| if value { "true" } else { "false" }.to_owned();
    for (key, value) in [
        ("uptime_ns", service.started.elapsed().as_nanos().to_string()),
        ("connections", connections.to_string()),
        ("jobs_total", counts.jobs.iter().sum::<u64>().to_string()),
        ("jobs_planned", of(JobStatus::Planned).to_string()),
        ("jobs_triggered", triggered.to_string()),
        ("jobs_executed", of(JobStatus::Executed).to_string()),
        ("jobs_failed", of(JobStatus::Failed).to_string()),
        ("rules_total", counts.rules.to_string()),
        ("executions_pending", pending),
        ("executions_inflight", inflight),
        ("persistence", service.settings.persistence.to_owned()),
        ("compression", "off".to_owned()),
        ("auth_enabled", truth(!service.gate.line_is_open())),
        ("tls_enabled", truth(service.settings.tls)),
        ("framerate", FRAMERATE.to_owned()),
    ] {
        reply::figure(&mut out.bytes, id, key, &value);
    }
    reply::done(&mut out.bytes, id);
    Ok(())
}

/// There are no frames: the timer sleeps until something is due, to the
/// millisecond.
const FRAMERATE: &str = "1000";
