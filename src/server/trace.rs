//! W3C trace context (<https://www.w3.org/TR/trace-context/>): taken from the
//! caller, or begun here, and handed on with the server's own span.

use std::fmt;

use http::{HeaderMap, HeaderName};
use rand::Rng as _;

/// The header that carries it.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A trace, and a span of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TraceContext {
    /// The trace.
    pub(super) trace: u128,
    /// The span.
    pub(super) span: u64,
    /// The flags; the lowest bit says that the trace is recorded.
    pub(super) flags: u8,
}

impl TraceContext {
    /// The caller's context, when it sent exactly one well-formed header.
    #[must_use]
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        Self::parse(value.to_str().ok()?)
    }

    /// Reads `00-<32 hex>-<16 hex>-<2 hex>`; later versions may have more.
    #[must_use]
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version = hex(parts.next()?, 2)?;
        let trace = hex(parts.next()?, 32)?;
        let span = hex(parts.next()?, 16)?;
        let flags = hex(parts.next()?, 2)?;
        let well_formed = version != 0xff && (version != 0 || parts.next().is_none());
        (well_formed && trace != 0 && span != 0).then_some(())?;
        Some(Self { trace, span: u64::try_from(span).ok()?, flags: u8::try_from(flags).ok()? })
    }

    /// A new trace.
    #[must_use]
    pub(super) fn begin() -> Self {
        let mut rng = rand::rng();
        Self { trace: rng.random::<u128>().max(1), span: rng.random::<u64>().max(1), flags: 0 }
    }

    /// A new span of the same trace.
    #[must_use]
    pub(super) fn child(self) -> Self {
        Self { span: rand::rng().random::<u64>().max(1), ..self }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// Lower-case digits alone, as the recommendation asks.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (text.len() == digits && lower).then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn it_reads_back_and_keeps_the_trace() {
        let context = TraceContext::parse(GOOD).unwrap();
        assert_eq!(context.to_string(), GOOD);
        let child = context.child();
        assert_eq!((child.trace, child.flags), (context.trace, 1));
        assert_ne!(child.span, context.span);
    }

    #[test]
    fn what_is_not_well_formed_is_ignored() {
        for bad in [
            "",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
        let mut twice = HeaderMap::new();
        twice.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert!(TraceContext::of(&twice).is_some());
        twice.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert_eq!(TraceContext::of(&twice), None);
    }
}
