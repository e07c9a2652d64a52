//! What the runners that speak over the network have in common.

#[cfg(any(feature = "amqp", feature = "redis"))]
use std::pin::pin;

#[cfg(any(feature = "amqp", feature = "redis"))]
use futures::future::{Either, select};
use serde_json::json;
#[cfg(any(feature = "amqp", feature = "redis"))]
use tokio::io::{AsyncReadExt as _, join, split};

use super::{Ended, Firing};
#[cfg(any(feature = "amqp", feature = "redis"))]
use crate::egress::Duplex;
use crate::{
    domain::schedule::hides,
    egress::{Closed, Egress, Scheme, Target},
    schedule::Error,
};

/// How much a broker may say in a run.
#[cfg(any(feature = "amqp", feature = "redis"))]
const READ_BYTES_MAX: u64 = 64 << 10;

/// Why a run over the network failed. What it says was written here: never
/// what the other side answered, and not where it is (SE-64).
#[derive(Debug)]
pub(super) struct Failure {
    says: String,
    retryable: bool,
}

impl Failure {
    /// Another attempt may go better.
    pub(super) fn passing(says: impl Into<String>) -> Self {
        Self { says: says.into(), retryable: true }
    }

    /// It would go the same way again.
    pub(super) fn lasting(says: impl Into<String>) -> Self {
        Self { says: says.into(), retryable: false }
    }
}

impl From<Closed> for Failure {
    fn from(closed: Closed) -> Self {
        // Refused ones are tried again too: how often tells what they are.
        Self::passing(closed.to_string())
    }
}

/// The connection went away.
impl From<std::io::Error> for Failure {
    fn from(_: std::io::Error) -> Self {
        Closed::Unreachable.into()
    }
}

impl From<Result<(), Failure>> for Ended {
    fn from(result: Result<(), Failure>) -> Self {
        let (error, retryable) = match result {
            Ok(()) => (None, false),
            Err(Failure { says, retryable }) => (Some(says), retryable),
        };
        Self { error, retryable, output: None }
    }
}

/// What is sent to say which job is due.
pub(super) fn body(firing: &Firing) -> Vec<u8> {
    let Firing { job, execution, .. } = firing;
    json!({ "job_id": job.as_str(), "execution": execution.0 }).to_string().into_bytes()
}

/// Reads an address when a rule is set.
pub(super) fn named(
    egress: &Egress,
    field: &'static str,
    text: &str,
    schemes: &[Scheme],
) -> Result<Target, Error> {
    let wrong = |message: String| Error::FieldInvalid { field, message };
    if hides(text) {
        // What lists show would be kept as the password.
        return Err(wrong("write the secrets in the place of `***`".to_owned()));
    }
    let target = Target::parse(text, schemes).map_err(|problem| {
        let names: Vec<&str> = schemes.iter().map(|scheme| scheme.name).collect();
        wrong(format!("{problem}; {}://host:port/…", names.join(":// or ")))
    })?;
    if egress.may_name(&target) {
        Ok(target)
    } else {
        Err(wrong("the address is not allowed; `[limits] egress_allow` says which are".to_owned()))
    }
}

/// Reads the address of a rule that was set.
pub(super) fn target(text: &str, schemes: &[Scheme]) -> Result<Target, Failure> {
    Target::parse(text, schemes).map_err(Failure::lasting)
}

/// Does a client's work while its driver moves the bytes. When the driver has
/// ended, the client knows, and may still have the answer.
#[cfg(any(feature = "amqp", feature = "redis"))]
pub(super) async fn driven<T>(
    work: impl Future<Output = T>,
    driver: impl Future<Output = ()>,
) -> T {
    match select(pin!(work), pin!(driver)).await {
        Either::Left((done, _)) => done,
        Either::Right(((), work)) => work.await,
    }
}

/// Connects for a client that takes any connection; what it can be made to
/// read, and so to keep, has a limit.
#[cfg(any(feature = "amqp", feature = "redis"))]
pub(super) fn limited(stream: Box<dyn Duplex>) -> Box<dyn Duplex> {
    let (read, write) = split(stream);
    Box::new(join(read.take(READ_BYTES_MAX), write))
}

/// What tests of these runners share.
#[cfg(test)]
pub(super) mod testing {
    use std::{sync::Arc, time::Duration};

    use super::super::{Firing, Tools};
    use crate::{
        config,
        domain::{
            Network, Timestamp,
            principal::{GrantRef, Method, Principal},
            schedule::{Identifier, Nanos, Rule, Runner},
            task::RetryPolicy,
        },
        egress::Egress,
    };

    /// Tools that may connect to these networks, within so many milliseconds.
    pub(in super::super) fn tools(allow: &[&str], millis: u64) -> Tools {
        tools_with(
            &config::Egress {
                allow: allow.iter().map(|text| Network::parse(text).unwrap()).collect(),
                ca: None,
            },
            millis,
        )
    }

    pub(in super::super) fn tools_with(settings: &config::Egress, millis: u64) -> Tools {
        let egress = Egress::new(settings).unwrap().within(Duration::from_millis(millis));
        Tools::default().with_egress(Arc::new(egress))
    }

    /// A run of a job by this runner.
    pub(in super::super) fn firing(job: &str, runner: Runner) -> Firing {
        let rule = Rule {
            id: Identifier::parse("rule").unwrap(),
            pattern: "".into(),
            runner,
            retry: RetryPolicy::default(),
            owner: GrantRef {
                identity: Principal::auth_off().identity,
                method: Method::None,
                credential_id: "".into(),
                grants: Vec::new(),
                set_at: Timestamp::from_micros(0),
                issued_at: None,
                until: None,
            },
        };
        Firing {
            job: Identifier::parse(job).unwrap(),
            execution: Nanos(1_775_044_800_000_000_001),
            attempt: 2,
            rule: Arc::new(rule),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::testing::{firing, tools};
    use crate::domain::schedule::{HttpMethod, RedisCommand, Runner};

    #[tokio::test]
    async fn se_64_who_says_nothing_is_left_in_time() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let tools = tools(&["127.0.0.1"], 300);
        for runner in [
            Runner::Http { method: HttpMethod::Get, url: format!("http://{address}").into() },
            Runner::Http { method: HttpMethod::Get, url: format!("https://{address}").into() },
            Runner::Amqp {
                dsn: format!("amqp://{address}").into(),
                exchange: "".into(),
                routing_key: "a".into(),
            },
            Runner::Redis {
                url: format!("redis://{address}").into(),
                command: RedisCommand::Set,
                key: "a".into(),
            },
        ] {
            let ended = tools.run(&firing("job", runner)).await;
            assert_eq!(ended.error.as_deref(), Some("timed out"));
            assert!(ended.retryable && ended.output.is_none());
        }
    }

    #[tokio::test]
    async fn se_64_tools_that_nobody_set_up_reach_nothing_inside() {
        let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", there.local_addr().unwrap());
        let runner = Runner::Http { method: HttpMethod::Get, url: url.into() };
        let tools = super::super::Tools::default();
        assert!(tools.check(&runner).is_err());
        let ended = tools.run(&firing("job", runner)).await;
        assert_eq!(ended.error.as_deref(), Some("no connection"));
    }
}
