//! What callers may write into the fields of a request.
//!
//! Not here: who may, and what templates say about a context.

use super::Error;
use crate::domain::{
    Json, json,
    task::{Labels, PRIORITY_RANGE},
};

/// The longest name, label, tag or key, in bytes.
pub(super) const LABEL_BYTES_MAX: usize = 256;
/// How many tags a task may have.
pub(super) const TAGS_MAX: usize = 32;
/// The longest reason, in bytes.
pub(super) const REASON_BYTES_MAX: usize = 4 * 1024;
/// How many handlers a worker may offer.
pub(super) const HANDLERS_MAX: usize = 100;
/// How much of a failed attempt's error is kept, in bytes.
pub(super) const ERROR_BYTES_MAX: usize = 64 * 1024;

pub(super) fn invalid(field: &'static str, message: impl Into<String>) -> Error {
    Error::FieldInvalid { field, message: message.into() }
}

/// A text on one line. Control characters could forge lines of logs and
/// terminals.
pub(super) fn label(field: &'static str, text: &str) -> Result<(), Error> {
    if text.len() > LABEL_BYTES_MAX {
        return Err(invalid(field, format!("longer than {LABEL_BYTES_MAX} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(field, "control characters are not allowed"));
    }
    Ok(())
}

/// A label that must say something.
pub(super) fn name(field: &'static str, text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(invalid(field, "must not be empty"));
    }
    label(field, text)
}

/// An operator's reason: lines of text.
pub(super) fn reason(text: &str) -> Result<(), Error> {
    if text.len() > REASON_BYTES_MAX {
        return Err(invalid("reason", format!("longer than {REASON_BYTES_MAX} bytes")));
    }
    if text.chars().any(|letter| letter.is_control() && !matches!(letter, '\n' | '\t')) {
        return Err(invalid("reason", "control characters are not allowed"));
    }
    Ok(())
}

pub(super) fn labels(labels: &Labels) -> Result<(), Error> {
    let Labels { initiator, source_system, reason: why, tags, correlation_id, idempotency_key } =
        labels;
    let each = [
        ("initiator", initiator),
        ("source_system", source_system),
        ("correlation_id", correlation_id),
    ];
    for (field, text) in each {
        label(field, text.as_deref().unwrap_or_default())?;
    }
    if let Some(key) = idempotency_key {
        name("idempotency_key", key)?;
    }
    reason(why.as_deref().unwrap_or_default())?;
    if tags.len() > TAGS_MAX {
        return Err(invalid("tags", format!("more than {TAGS_MAX} tags")));
    }
    tags.iter().try_for_each(|tag| name("tags", tag))
}

pub(super) fn priority(priority: i32) -> Result<(), Error> {
    if PRIORITY_RANGE.contains(&priority) {
        return Ok(());
    }
    let (low, high) = (PRIORITY_RANGE.start(), PRIORITY_RANGE.end());
    Err(invalid("priority", format!("{priority} is not between {low} and {high}")))
}

pub(super) fn version(text: &str) -> Result<semver::Version, Error> {
    label("version", text)?;
    semver::Version::parse(text)
        .map_err(|error| invalid("version", format!("not a semantic version: {error}")))
}

pub(super) fn handlers(handlers: &[String]) -> Result<(), Error> {
    if handlers.is_empty() {
        return Err(invalid("handlers", "name at least one handler"));
    }
    if handlers.len() > HANDLERS_MAX {
        return Err(invalid("handlers", format!("more than {HANDLERS_MAX} handlers")));
    }
    handlers.iter().try_for_each(|handler| name("handlers", handler))
}

pub(super) fn object(field: &'static str, text: &str) -> Result<Json, Error> {
    Json::parse_object(text).map_err(|source| Error::PayloadInvalid { field, source })
}

pub(super) fn payload(field: &'static str, text: &str) -> Result<Json, Error> {
    Json::parse(text).map_err(|source: json::Error| Error::PayloadInvalid { field, source })
}

/// The error of an attempt, cut to what is kept. No store takes a NUL.
pub(super) fn error_text(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(labels: &Labels) -> Option<&'static str> {
        match super::labels(labels) {
            Err(Error::FieldInvalid { field, .. }) => Some(field),
            Err(error) => panic!("{error}"),
            Ok(()) => None,
        }
    }

    #[test]
    fn labels_are_bounded_and_hold_no_control_characters() {
        let long = "x".repeat(LABEL_BYTES_MAX);
        assert_eq!(refused(&Labels { initiator: Some(long.clone()), ..Labels::default() }), None);
        for bad in [format!("{long}x"), "a\u{1b}[2J".to_owned(), "a\nb".to_owned()] {
            let of = |labels: Labels| refused(&labels);
            let some = Some(bad.clone());
            let labels = Labels::default;
            assert_eq!(of(Labels { initiator: some.clone(), ..labels() }), Some("initiator"));
            assert_eq!(
                of(Labels { source_system: some.clone(), ..labels() }),
                Some("source_system")
            );
            assert_eq!(
                of(Labels { correlation_id: some.clone(), ..labels() }),
                Some("correlation_id")
            );
            assert_eq!(of(Labels { idempotency_key: some, ..labels() }), Some("idempotency_key"));
            assert_eq!(of(Labels { tags: vec![bad], ..labels() }), Some("tags"));
        }
        let tags = |count| Labels { tags: vec!["t".to_owned(); count], ..Labels::default() };
        assert_eq!((refused(&tags(TAGS_MAX)), refused(&tags(TAGS_MAX + 1))), (None, Some("tags")));
        let empty = Labels { idempotency_key: Some(String::new()), ..Labels::default() };
        assert_eq!(refused(&empty), Some("idempotency_key"));
    }

    #[test]
    fn a_reason_has_lines_and_a_limit() {
        assert!(reason("two\nlines").is_ok());
        assert!(reason("\u{7}").is_err());
        assert!(reason(&"x".repeat(REASON_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn priorities_are_bounded_on_both_sides() {
        for (value, good) in [(-101, false), (-100, true), (100, true), (101, false)] {
            assert_eq!(priority(value).is_ok(), good, "{value}");
        }
    }

    #[test]
    fn an_error_text_is_cut_between_letters() {
        let text = error_text("é".repeat(ERROR_BYTES_MAX));
        assert!(text.len() <= ERROR_BYTES_MAX && text.chars().all(|letter| letter == 'é'));
        assert_eq!(error_text("a\0b".to_owned()), "a\u{fffd}b");
    }
}
