//! JSON text that tenants bring: contexts, results, settings.

use std::{borrow::Cow, collections::HashSet, fmt, sync::Arc};

use serde_json::value::RawValue;
use thiserror::Error;

/// The deepest nesting that is taken.
pub const DEPTH_MAX: usize = 128;
/// The longest context or result, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// How much of a repeated key is shown, in characters.
const KEY_CHARS_SHOWN: usize = 64;

/// Why a text is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// Not JSON.
    #[error("not valid JSON: {0}")]
    Syntax(String),
    /// Nested too deep.
    #[error("JSON nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// Too long.
    #[error("JSON of {bytes} bytes; at most {max} are taken")]
    TooLarge {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: usize,
    },
    /// Not an object.
    #[error("the JSON must be an object")]
    NotAnObject,
    /// An object says one thing twice: who checks it and who uses it could
    /// read different values (SE-08).
    #[error("the key `{0}` is given twice in one object")]
    RepeatedKey(String),
}

/// One valid JSON value as text on a single line; every digit of its numbers
/// is kept. Tenants' data: `Debug` shows only its length.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Arc<str>);

impl Json {
    /// Checks syntax, depth and size. Empty text is null.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self::null());
        }
        if text.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::TooLarge { bytes: text.len(), max: PAYLOAD_BYTES_MAX });
        }
        // First the depth: the parser recurses, this scan does not.
        if depth(text) > DEPTH_MAX {
            return Err(Error::TooDeep);
        }
        serde_json::from_str::<&RawValue>(text)
            .map_err(|error| Error::Syntax(error.to_string()))?;
        // Outside of strings a line break is white space; inside it is not valid.
        let text = text.trim();
        Ok(Self(if text.contains(['\n', '\r']) {
            text.replace(['\n', '\r'], " ").into()
        } else {
            text.into()
        }))
    }

    /// As [`Self::parse`], and it must be an object in which no key stands
    /// twice, at any depth; empty text is `{}`.
    pub fn parse_object(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self("{}".into()));
        }
        let json = Self::parse(text)?;
        if !json.as_str().starts_with('{') {
            return Err(Error::NotAnObject);
        }
        match repeated_key(json.as_str()) {
            Some(key) => {
                Err(Error::RepeatedKey(key.escape_debug().take(KEY_CHARS_SHOWN).collect()))
            }
            None => Ok(json),
        }
    }

    /// Takes a text that has been checked before, as the store's.
    #[must_use]
    pub fn checked_before(text: String) -> Self {
        Self(text.into())
    }

    /// `null`.
    #[must_use]
    pub fn null() -> Self {
        Self("null".into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.0.len())
    }
}

/// How deep a text nests, right for valid JSON and safe for any text.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// The first key that one object of a valid text has twice.
fn repeated_key(text: &str) -> Option<Cow<'_, str>> {
    let mut objects: Vec<HashSet<Cow<'_, str>>> = Vec::new();
    let (mut begun, mut escaped, mut last) = (None, false, "");
    for (at, byte) in text.bytes().enumerate() {
        match (begun, byte) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(from), b'"') => {
                last = text.get(from..=at).unwrap_or_default();
                begun = None;
            }
            (None, b'"') => begun = Some(at),
            (None, b'{') => objects.push(HashSet::new()),
            (None, b'}') => drop(objects.pop()),
            // Outside of strings a colon stands behind a key alone.
            (None, b':') => {
                let key = unescaped(last);
                if objects.last_mut().is_some_and(|keys| !keys.insert(key.clone())) {
                    return Some(key);
                }
            }
            (Some(_) | None, _) => {}
        }
    }
    None
}

/// What a string says; two spellings of one key are one key.
fn unescaped(literal: &str) -> Cow<'_, str> {
    if literal.contains('\\') {
        // Half a surrogate pair is no text; as it is written it still tells.
        serde_json::from_str(literal).map_or(Cow::Borrowed(literal), Cow::Owned)
    } else {
        Cow::Borrowed(literal.trim_matches('"'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_limited_at_128_levels() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(Json::parse(&nested(DEPTH_MAX)).is_ok());
        assert_eq!(Json::parse(&nested(DEPTH_MAX + 1)), Err(Error::TooDeep));
        assert_eq!(Json::parse(&nested(1_000_000 / 2)), Err(Error::TooDeep));
        assert!(Json::parse(r#""[[[\"[[""#).is_ok());
    }

    #[test]
    fn it_stays_on_one_line_and_keeps_every_digit() {
        let json = Json::parse("{\"a\":\n 12345678901234567890.10}\r\n")
            .map(|json| json.as_str().to_owned());
        assert_eq!(json.as_deref(), Ok("{\"a\":  12345678901234567890.10}"));
    }

    #[test]
    fn se_08_no_object_of_a_context_says_one_thing_twice() {
        for (text, key) in [
            (r#"{"a": 1, "a": 2}"#, "a"),
            (r#"{"b": [{"a": 1}, {"c": {}, "a": ":", "a": 2}]}"#, "a"),
            (r#"{"a": 1, "\u0061": 2}"#, "a"),
            (r#"{"": 1, "": 1}"#, ""),
            (r#"{"x\"y": 1, "x\"y": 1}"#, "x\\\"y"),
        ] {
            assert_eq!(Json::parse_object(text), Err(Error::RepeatedKey(key.to_owned())), "{text}");
        }
        for good in [
            r#"{"a": {"a": {"a": 1}}, "b": {"a": 1}, "c": [{"a": 1}, {"a": 1}]}"#,
            r#"{"a": "a", "b": "a", "c": "\"a\":1,\"a\":1", "A": 1e999}"#,
            r#"{"a:": 1, "a": "{", "}": "a:"}"#,
        ] {
            assert!(Json::parse_object(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn only_objects_are_contexts() {
        assert_eq!(Json::parse_object("[1]"), Err(Error::NotAnObject));
        assert_eq!(
            Json::parse_object("").map(|json| json.as_str().to_owned()),
            Ok("{}".to_owned())
        );
        assert!(Json::parse_object("{} {}").is_err());
    }
}
