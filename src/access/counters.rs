//! The figures about credentials and decisions (TK-60 to TK-62). All labels
//! are known beforehand: none comes from a caller, and every counter stands
//! from the start.

use std::collections::HashMap;

use metrics::Counter;

use super::table::RateClass;
use crate::domain::{Permission, principal::Method};

const METHODS: [Method; 5] =
    [Method::ApiKey, Method::Jwt, Method::Token, Method::Certificate, Method::None];

/// What became of a call's credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    Success,
    Failure,
    /// There was none; that is no failed authentication.
    Missing,
}

impl Outcome {
    const fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Missing => "missing",
        }
    }
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Limited {
    Calls(RateClass),
    FailedAuth,
    /// Credentials that others asked about and that do not count.
    Inspections,
}

impl Limited {
    const ALL: [Self; 6] = [
        Self::Calls(RateClass::Standard),
        Self::Calls(RateClass::Heavy),
        Self::Calls(RateClass::Work),
        Self::Calls(RateClass::Credentials),
        Self::FailedAuth,
        Self::Inspections,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Calls(RateClass::Unspecified | RateClass::Standard) => "standard",
            Self::Calls(RateClass::Heavy) => "heavy",
            Self::Calls(RateClass::Work) => "work",
            Self::Calls(RateClass::Credentials) => "credentials",
            Self::FailedAuth => "failed_auth",
            Self::Inspections => "failed_introspections",
        }
    }
}

pub(super) struct Counters {
    limited: HashMap<Limited, Counter>,
    requests: HashMap<(Method, Outcome), Counter>,
    failures: HashMap<&'static str, Counter>,
    denials: HashMap<&'static str, Counter>,
}

impl Counters {
    /// The recorder must be installed before.
    pub(super) fn new(failures: &[&'static str]) -> Self {
        let mut requests = HashMap::new();
        let with_outcomes = METHODS
            .into_iter()
            .flat_map(|method| [(method, Outcome::Success), (method, Outcome::Failure)])
            .chain([(Method::None, Outcome::Missing)]);
        for (method, outcome) in with_outcomes {
            let counter = metrics::counter!(
                "bailiwick_auth_requests_total",
                "method" => method.as_str(),
                "result" => outcome.label()
            );
            requests.insert((method, outcome), counter);
        }
        let failure = |reason: &&'static str| {
            (*reason, metrics::counter!("bailiwick_auth_failures_total", "reason" => *reason))
        };
        let permissions = Permission::ALL.iter().map(|permission| permission.name());
        let denial = |name| {
            (name, metrics::counter!("bailiwick_permission_denials_total", "permission" => name))
        };
        let limited = |limit: Limited| {
            let class = limit.label();
            (limit, metrics::counter!("bailiwick_rate_limited_total", "class" => class))
        };
        Self {
            limited: Limited::ALL.into_iter().map(limited).collect(),
            requests,
            failures: failures.iter().map(failure).collect(),
            denials: permissions.chain(["root", "node", "step"]).map(denial).collect(),
        }
    }

    pub(super) fn authenticated(&self, method: Method, outcome: Outcome) {
        if let Some(counter) = self.requests.get(&(method, outcome)) {
            counter.increment(1);
        }
    }

    pub(super) fn failed(&self, reason: &str) {
        if let Some(counter) = self.failures.get(reason) {
            counter.increment(1);
        }
    }

    pub(super) fn limited(&self, limit: Limited) {
        if let Some(counter) = self.limited.get(&limit) {
            counter.increment(1);
        }
    }

    pub(super) fn denied(&self, permission: &str) {
        if let Some(counter) = self.denials.get(permission) {
            counter.increment(1);
        }
    }
}
