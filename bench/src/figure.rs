//! The figures: their names, units and floors.

use clap::ValueEnum;
use serde::Serialize;

/// One figure of `target/bench.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Figure {
    /// Durable creation of tasks, 64 callers over 4 connections
    #[value(name = "create_task_64")]
    CreateTask,
    /// One-step tasks created, dispatched, completed and acknowledged
    #[value(name = "one_step_tasks")]
    OneStepTasks,
    /// A linear task of 4 steps, from its creation to the watch's last event
    #[value(name = "linear_4_p50")]
    Linear,
    /// Calls with an API key against calls with auth off
    #[value(name = "auth_api_key")]
    AuthApiKey,
    /// Calls with a cached JWT against calls with auth off
    #[value(name = "auth_cached_jwt")]
    AuthCachedJwt,
    /// Resident memory of an idle server
    #[value(name = "idle_resident_mib")]
    IdleResident,
    /// From start to ready with 100,000 finished tasks on disk
    #[value(name = "start_ready_100k_ms")]
    StartReady,
    /// GET of one task through the REST gateway
    #[value(name = "rest_get")]
    RestGet,
    /// POST of a new task through the REST gateway
    #[value(name = "rest_post")]
    RestPost,
    /// The gate, with a credential that it knows
    #[value(name = "gate_cached_us")]
    GateCached,
    /// The gate, with a JWT that it sees for the first time
    #[value(name = "gate_jwt")]
    GateJwt,
    /// The gate, with 100,000 tokens in the store
    #[value(name = "gate_100k_tokens")]
    GateTokens,
    /// From taking a credential back until its calls and streams end
    #[value(name = "revoke_seen_ms")]
    RevokeSeen,
    /// SET over one connection, each answer awaited
    #[value(name = "set_serial")]
    SetSerial,
    /// SET pipelined over one connection
    #[value(name = "set_pipelined")]
    SetPipelined,
    /// SET over 64 connections, one by one on each
    #[value(name = "set_64")]
    Set64,
    /// QUERY of 100 jobs with a million others
    #[value(name = "query_prefix")]
    QueryPrefix,
    /// From the due time to the runner's start, with a million planned jobs
    #[value(name = "firing_p99_ms")]
    Firing,
    /// Ten thousand jobs due within one second
    #[value(name = "due_10k")]
    Due,
    /// Memory for each of a million planned jobs
    #[value(name = "job_bytes")]
    JobBytes,
    /// Memory for ten thousand idle connections
    #[value(name = "idle_connections_mib")]
    IdleConnections,
    /// From start to ready with a million planned jobs
    #[value(name = "start_ready_1m_jobs_ms")]
    StartJobs,
    /// `create_task_64` and `one_step_tasks` with everything recorded
    #[value(name = "audit_cost")]
    AuditCost,
    /// Offline verification of an export of the audit, on one core
    #[value(name = "verify_rate")]
    VerifyRate,
    /// `ExplainDecision` of a refusal, with a thousand tokens in the store
    #[value(name = "explain_us")]
    Explain,
    /// `one_step_tasks` with a token for each step
    #[value(name = "step_token_cost")]
    StepTokenCost,
}

/// What a figure has to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Floor {
    /// Value by baseline, at least.
    RatioAtLeast(f64),
    /// Value by baseline, at most.
    RatioAtMost(f64),
    /// The value itself, at most.
    ValueAtMost(f64),
    /// The value itself, at least.
    ValueAtLeast(f64),
    /// Nothing: it is written down.
    None,
}

impl Figure {
    /// All of them, in the order in which they are measured.
    pub(crate) const ALL: [Self; 26] = [
        Self::CreateTask,
        Self::OneStepTasks,
        Self::Linear,
        Self::AuthApiKey,
        Self::AuthCachedJwt,
        Self::IdleResident,
        Self::StartReady,
        Self::RestGet,
        Self::RestPost,
        Self::GateCached,
        Self::GateJwt,
        Self::GateTokens,
        Self::RevokeSeen,
        Self::SetSerial,
        Self::SetPipelined,
        Self::Set64,
        Self::QueryPrefix,
        Self::Firing,
        Self::Due,
        Self::JobBytes,
        Self::IdleConnections,
        Self::StartJobs,
        Self::AuditCost,
        Self::VerifyRate,
        Self::Explain,
        Self::StepTokenCost,
    ];

    /// Its name in tables and files.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::CreateTask => "create_task_64",
            Self::OneStepTasks => "one_step_tasks",
            Self::Linear => "linear_4_p50",
            Self::AuthApiKey => "auth_api_key",
            Self::AuthCachedJwt => "auth_cached_jwt",
            Self::IdleResident => "idle_resident_mib",
            Self::StartReady => "start_ready_100k_ms",
            Self::RestGet => "rest_get",
            Self::RestPost => "rest_post",
            Self::GateCached => "gate_cached_us",
            Self::GateJwt => "gate_jwt",
            Self::GateTokens => "gate_100k_tokens",
            Self::RevokeSeen => "revoke_seen_ms",
            Self::SetSerial => "set_serial",
            Self::SetPipelined => "set_pipelined",
            Self::Set64 => "set_64",
            Self::QueryPrefix => "query_prefix",
            Self::Firing => "firing_p99_ms",
            Self::Due => "due_10k",
            Self::JobBytes => "job_bytes",
            Self::IdleConnections => "idle_connections_mib",
            Self::StartJobs => "start_ready_1m_jobs_ms",
            Self::AuditCost => "audit_cost",
            Self::VerifyRate => "verify_rate",
            Self::Explain => "explain_us",
            Self::StepTokenCost => "step_token_cost",
        }
    }

    /// The unit of value and baseline.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::CreateTask
            | Self::AuthApiKey
            | Self::AuthCachedJwt
            | Self::RestGet
            | Self::RestPost => "calls/s",
            Self::AuditCost => "calls/s or tasks/s",
            Self::OneStepTasks | Self::StepTokenCost => "tasks/s",
            Self::VerifyRate => "records/s",
            Self::SetSerial | Self::SetPipelined | Self::Set64 => "jobs/s",
            Self::Linear
            | Self::StartReady
            | Self::RevokeSeen
            | Self::Firing
            | Self::Due
            | Self::StartJobs => "ms",
            Self::GateCached
            | Self::GateJwt
            | Self::GateTokens
            | Self::QueryPrefix
            | Self::Explain => "us",
            Self::IdleResident | Self::IdleConnections => "MiB",
            Self::JobBytes => "bytes",
        }
    }

    /// What the value is measured against.
    pub(crate) const fn baseline(self) -> &'static str {
        match self {
            Self::CreateTask | Self::OneStepTasks => "tonic echo, 64 callers over 4 connections",
            Self::Linear | Self::Firing | Self::Due => "4 KiB append + fdatasync, p50",
            Self::AuthApiKey | Self::AuthCachedJwt => "the same calls with auth off",
            Self::IdleResident => "idle tonic echo",
            Self::StartReady | Self::StartJobs => "start with an empty data folder",
            Self::RestGet | Self::RestPost => "hand-written axum route, same engine call and auth",
            Self::GateCached => "an empty async call",
            Self::GateJwt => "the library's check of the same signatures",
            Self::GateTokens => "the same with 10 tokens in the store",
            Self::RevokeSeen | Self::Explain => "one GetTask, p50",
            Self::SetSerial => "4 KiB append + fdatasync, each second",
            Self::SetPipelined | Self::Set64 | Self::IdleConnections => "line echo",
            Self::QueryPrefix => "the same with a thousand others",
            Self::JobBytes => "MiB of a server without jobs",
            Self::AuditCost => "the same with `audit.enabled = false`",
            Self::VerifyRate => "the same lines read as JSON values",
            Self::StepTokenCost => "the same without `server.public_url`",
        }
    }

    /// What it has to reach.
    pub(crate) const fn floor(self) -> Floor {
        match self {
            Self::CreateTask => Floor::RatioAtLeast(0.35),
            Self::OneStepTasks => Floor::RatioAtLeast(0.15),
            Self::Linear => Floor::RatioAtMost(10.0),
            Self::AuthApiKey | Self::AuthCachedJwt => Floor::RatioAtLeast(0.95),
            Self::IdleResident => Floor::ValueAtMost(40.0),
            Self::StartReady => Floor::ValueAtMost(300.0),
            Self::RestGet | Self::RestPost | Self::Explain => Floor::None,
            Self::GateCached => Floor::ValueAtMost(2.0),
            Self::GateJwt => Floor::RatioAtMost(1.3),
            Self::GateTokens => Floor::RatioAtMost(1.1),
            Self::RevokeSeen => Floor::ValueAtMost(1_000.0),
            Self::SetSerial => Floor::RatioAtLeast(0.8),
            Self::SetPipelined => Floor::ValueAtLeast(40_000.0),
            Self::Set64 => Floor::ValueAtLeast(30_000.0),
            Self::QueryPrefix => Floor::RatioAtMost(1.2),
            Self::Firing => Floor::ValueAtMost(1.0),
            Self::Due => Floor::ValueAtMost(1_200.0),
            Self::JobBytes => Floor::ValueAtMost(200.0),
            Self::IdleConnections => Floor::ValueAtMost(150.0),
            Self::StartJobs => Floor::ValueAtMost(1_500.0),
            Self::AuditCost => Floor::RatioAtLeast(0.9),
            Self::VerifyRate => Floor::ValueAtLeast(200_000.0),
            Self::StepTokenCost => Floor::RatioAtLeast(0.85),
        }
    }
}

/// A measured figure, as it is written to the file.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    /// The figure's name.
    pub(crate) name: &'static str,
    /// What was measured.
    pub(crate) value: f64,
    /// The unit of value and baseline.
    pub(crate) unit: &'static str,
    /// The baseline, measured in the same run.
    pub(crate) baseline: f64,
    /// Value by baseline.
    pub(crate) ratio: f64,
    #[serde(skip)]
    floor: Floor,
    #[serde(skip)]
    notes: Vec<String>,
}

impl Measured {
    /// The figure with its value and its baseline.
    pub(crate) fn new(figure: Figure, value: f64, baseline: f64) -> Self {
        Self {
            name: figure.name(),
            value: rounded(value),
            unit: figure.unit(),
            baseline: rounded(baseline),
            ratio: rounded(if baseline > 0.0 { value / baseline } else { f64::NAN }),
            floor: figure.floor(),
            notes: Vec::new(),
        }
    }

    /// Adds what the table says below the figure.
    #[must_use]
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// What the table says below the figure.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether the figure reaches its floor; none when it has none.
    pub(crate) fn reached(&self) -> Option<bool> {
        match self.floor {
            Floor::RatioAtLeast(least) => Some(self.ratio >= least),
            Floor::RatioAtMost(most) => Some(self.ratio <= most),
            Floor::ValueAtMost(most) => Some(self.value <= most),
            Floor::ValueAtLeast(least) => Some(self.value >= least),
            Floor::None => None,
        }
    }

    /// The floor in words.
    pub(crate) fn floor(&self) -> String {
        match self.floor {
            Floor::RatioAtLeast(least) => format!("ratio >= {least}"),
            Floor::RatioAtMost(most) => format!("ratio <= {most}"),
            Floor::ValueAtMost(most) => format!("value <= {most}"),
            Floor::ValueAtLeast(least) => format!("value >= {least}"),
            Floor::None => "-".to_owned(),
        }
    }
}

/// Four digits behind the point: what is behind them is noise.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The value in the middle; of an even number the mean of the two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    if sorted.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half.wrapping_sub(1)), at(half)) }
}

/// A count as a number that can be divided; counts here are small.
pub(crate) fn float(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_figure_knows_whether_it_reaches_its_floor() {
        let reached = |figure, value, baseline| Measured::new(figure, value, baseline).reached();
        assert_eq!(reached(Figure::CreateTask, 36.0, 100.0), Some(true));
        assert_eq!(reached(Figure::CreateTask, 34.0, 100.0), Some(false));
        assert_eq!(reached(Figure::Linear, 2.0, 0.25), Some(true));
        assert_eq!(reached(Figure::Linear, 2.0, 0.19), Some(false));
        assert_eq!(reached(Figure::IdleResident, 40.5, 10.0), Some(false));
        assert_eq!(reached(Figure::RestGet, 1.0, 2.0), None);
        // Without a baseline no ratio is good enough.
        assert_eq!(reached(Figure::CreateTask, 36.0, 0.0), Some(false));
    }

    #[test]
    fn the_names_on_the_command_line_are_those_in_the_file() {
        for figure in Figure::ALL {
            let value = figure.to_possible_value().unwrap();
            assert_eq!(value.get_name(), figure.name());
        }
        assert_eq!(Figure::ALL.len(), Figure::value_variants().len());
    }
}
