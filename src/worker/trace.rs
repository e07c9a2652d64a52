//! The trace of a step goes on from its task's creation, through the worker's
//! span, into the handler.

use std::collections::HashMap;

use bailiwick_client::StepContext;
use opentelemetry::{propagation::TextMapPropagator, trace::TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: &str = "traceparent";

/// The span that a handler runs in, a child of the caller's span.
pub(super) fn step_span(step: &StepContext) -> Span {
    let span = info_span!(
        "worker.step",
        task_uuid = step.task_uuid(),
        step_uuid = step.step_uuid(),
        handler = step.handler(),
        attempt = step.attempt(),
        trace_id = step.trace_id(),
    );
    if let Some(traceparent) = step.traceparent() {
        let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
        // It fails where no traces are exported, and then there is no need.
        let _untraced = span.set_parent(TraceContextPropagator::new().extract(&carrier));
    }
    span
}

/// What the handler continues: the worker's own span where traces are
/// exported, else what the lease carries.
pub(super) fn traceparent(step: &StepContext) -> Option<String> {
    let context = Span::current().context();
    if context.span().span_context().is_valid() {
        let mut carrier = HashMap::new();
        TraceContextPropagator::new().inject_context(&context, &mut carrier);
        return carrier.remove(TRACEPARENT);
    }
    // An id was found in it, so it is one; nothing else becomes a variable.
    step.trace_id()?;
    step.traceparent().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use bailiwick_client::pb::v1::Lease;
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn step(traceparent: &str) -> StepContext {
        let lease = Lease { traceparent: Some(traceparent.to_owned()), ..Lease::default() };
        StepContext::new(lease, CancellationToken::new(), Instant::now())
    }

    #[test]
    fn the_handler_continues_the_callers_trace() {
        let step = step(CALLER);
        assert_eq!(step_span(&step).in_scope(|| traceparent(&step)).unwrap(), CALLER);

        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let own =
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                step_span(&step).in_scope(|| traceparent(&step))
            })
            .unwrap();
        let parts: Vec<&str> = own.split('-').collect();
        assert_eq!(parts[1], "0af7651916cd43dd8448eb211c80319c", "the trace is the caller's");
        assert_ne!(parts[2], "b7ad6b7169203331", "the parent is the worker's own span");
    }

    #[test]
    fn what_is_no_trace_context_is_left_out() {
        for text in ["", "00", "00-$(touch x)-1-01", "00-0af7\0-b7-01"] {
            let step = step(text);
            assert_eq!(step_span(&step).in_scope(|| traceparent(&step)), None, "{text}");
        }
    }
}
