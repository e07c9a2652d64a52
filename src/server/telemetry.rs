//! Logs, traces and figures: set up once for a process.

use std::{io::IsTerminal as _, sync::OnceLock};

use http::HeaderMap;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use thiserror::Error as ThisError;
use tracing::{Metadata, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::trace::TraceContext;
use crate::config::{LogFormat, Telemetry};

/// Seconds; from a cached answer to a call that waits for the disk.
const SECONDS_BUCKETS: &[f64] = &[
    0.000_01, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

/// Why telemetry could not be set up.
#[derive(Debug, ThisError)]
pub enum Error {
    /// `telemetry.log_level` cannot be read.
    #[error("telemetry.log_level: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// `telemetry.otlp_endpoint` cannot be used.
    #[error("telemetry.otlp_endpoint: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The recorder of figures exists already.
    #[error("metrics: {0}")]
    Recorder(String),
}

/// What runs as long as the process reports; flushes traces at the end.
#[derive(Debug)]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Guard {
    /// Sends what has not been sent yet.
    pub fn flush(self) {
        if let Some(provider) = self.provider {
            // At the very end there is nobody left to tell.
            let _ = provider.shutdown();
        }
    }
}

/// Logs to standard error, and traces to a collector when one is configured.
/// Must be called within the runtime.
pub fn init(settings: &Telemetry) -> Result<Guard, Error> {
    let filter = EnvFilter::try_new(&settings.log_level)?;
    let colours = std::io::stderr().is_terminal();
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    let filter = filter.and(filter_fn(is_ours_to_show).with_max_level_hint(LevelFilter::TRACE));
    let logs = match settings.log_format {
        LogFormat::Json => {
            logs.json().flatten_event(true).with_span_list(false).with_ansi(false).boxed()
        }
        LogFormat::Text => logs.boxed(),
    };
    let provider = settings.otlp_endpoint.as_deref().map(|endpoint| provider(settings, endpoint));
    let provider = provider.transpose()?;
    let traces = provider
        .as_ref()
        .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer("bailiwick")))
        .map(|traces| traces.with_filter(filter_fn(is_ours_to_show)));
    // A second server in one process keeps the first one's set-up.
    let _ = tracing_subscriber::registry().with(traces).with(logs.with_filter(filter)).try_init();
    Ok(Guard { provider })
}

/// The client of AMQP tells what brokers say, and at its lowest level what they
/// are told, passwords too; runs have the outcome (SE-64).
fn is_ours_to_show(metadata: &Metadata<'_>) -> bool {
    !metadata.target().starts_with("lapin")
}

fn provider(settings: &Telemetry, endpoint: &str) -> Result<SdkTracerProvider, Error> {
    let exporter =
        opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let resource = Resource::builder().with_service_name(settings.service_name.clone()).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// The recorder behind `/metrics`, one for the process.
pub fn metrics() -> Result<PrometheusHandle, Error> {
    static HANDLE: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
    let install = || {
        PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS_BUCKETS)
            .and_then(PrometheusBuilder::install_recorder)
            .map_err(|error| error.to_string())
    };
    HANDLE.get_or_init(install).clone().map_err(Error::Recorder)
}

/// Ties a request's span to its caller's trace; answers the context that the
/// server hands on.
#[must_use]
pub(super) fn continue_trace(span: &Span, headers: &HeaderMap) -> TraceContext {
    let caller = TraceContext::of(headers);
    if let Some(caller) = caller {
        let remote = SpanContext::new(
            TraceId::from_bytes(caller.trace.to_be_bytes()),
            SpanId::from_bytes(caller.span.to_be_bytes()),
            TraceFlags::new(caller.flags),
            true,
            TraceState::default(),
        );
        // Without a collector there is no layer to take it.
        let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(remote));
    }
    let context = span.context();
    let own = context.span().span_context().clone();
    if own.is_valid() && !own.is_remote() {
        return TraceContext {
            trace: u128::from_be_bytes(own.trace_id().to_bytes()),
            span: u64::from_be_bytes(own.span_id().to_bytes()),
            flags: own.trace_flags().to_u8(),
        };
    }
    caller.map_or_else(TraceContext::begin, TraceContext::child)
}
