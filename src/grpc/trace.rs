//! The W3C trace context of a call: what the server's stack made of it, or
//! else what the caller sent.

use tonic::{Extensions, metadata::MetadataMap};

/// The `traceparent` of the server's own span, put into a request's
/// extensions by the stack when traces are on.
#[derive(Clone, Debug)]
pub struct TraceParent(pub String);

pub(super) fn traceparent(extensions: &Extensions, metadata: &MetadataMap) -> Option<String> {
    if let Some(TraceParent(own)) = extensions.get() {
        return Some(own.clone());
    }
    let text = metadata.get("traceparent")?.to_str().ok()?;
    is_traceparent(text).then(|| text.to_owned())
}

/// `00-<32 hex>-<16 hex>-<2 hex>` in lower case, neither id all zeros. It is
/// handed on to workers, so nothing else passes.
fn is_traceparent(text: &str) -> bool {
    let mut parts = text.split('-');
    let (Some("00"), Some(trace), Some(span), Some(flags), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let hex = |part: &str, digits: usize| {
        part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    hex(trace, 32) && hex(span, 16) && hex(flags, 2) && !zero(trace) && !zero(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_the_standards_form_passes() {
        assert!(is_traceparent(GOOD));
        for bad in [
            "",
            &GOOD[1..],
            &GOOD.to_uppercase(),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &format!("{GOOD}-00"),
            &GOOD.replacen("00", "01", 1),
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }

    #[test]
    fn the_servers_own_span_wins() {
        let mut metadata = MetadataMap::new();
        let mut extensions = Extensions::new();
        assert_eq!(traceparent(&extensions, &metadata), None);
        metadata.insert("traceparent", GOOD.parse().unwrap());
        assert_eq!(traceparent(&extensions, &metadata).as_deref(), Some(GOOD));
        extensions.insert(TraceParent("own".to_owned()));
        assert_eq!(traceparent(&extensions, &metadata).as_deref(), Some("own"));
    }
}
