//! The lines of an export: written by the server, read again by whoever
//! verifies them. There is one spelling of each; every other is refused.

use std::{borrow::Cow, fmt::Write as _};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::chain::{Checkpoint, Closing, Hash};

/// A record's line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordLine<'a> {
    /// Its number over all chains and checkpoints.
    pub seq: i64,
    /// Its chain.
    #[serde(borrow)]
    pub chain: Cow<'a, str>,
    /// Its number in the chain.
    pub number: i64,
    /// The hash of the record before it in the chain.
    pub prev: &'a str,
    /// Its own.
    pub hash: &'a str,
    /// Its JSON.
    pub record: &'a RawValue,
}

/// A checkpoint's line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointLine<'a> {
    /// Its number over all chains and checkpoints.
    pub seq: i64,
    /// What is signed.
    #[serde(borrow)]
    pub checkpoint: &'a RawValue,
    /// The signature in Base64.
    pub signature: &'a str,
}

/// The last line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClosingLine<'a> {
    /// What is signed.
    #[serde(borrow)]
    pub closing: &'a RawValue,
    /// The signature in Base64.
    pub signature: &'a str,
}

/// One line, without its end.
#[derive(Debug)]
pub enum Line<'a> {
    /// A record.
    Record(RecordLine<'a>),
    /// A checkpoint, read whole.
    Checkpoint(CheckpointLine<'a>, Checkpoint),
    /// The end, read whole.
    Closing(ClosingLine<'a>, Closing),
}

impl<'a> Line<'a> {
    /// Reads a line. `scratch` is only there to be used again.
    #[must_use]
    pub fn read(line: &'a str, scratch: &mut String) -> Option<Self> {
        let read = if line.starts_with("{\"closing\":") {
            let line: ClosingLine<'_> = serde_json::from_str(line).ok()?;
            let closing = canonical(line.closing)?;
            Self::Closing(line, closing)
        } else if is_checkpoint(line) {
            let line: CheckpointLine<'_> = serde_json::from_str(line).ok()?;
            let checkpoint = canonical(line.checkpoint)?;
            Self::Checkpoint(line, checkpoint)
        } else {
            let line: RecordLine<'_> = serde_json::from_str(line).ok()?;
            line.record.get().starts_with('{').then_some(Self::Record(line))?
        };
        scratch.clear();
        read.write(scratch);
        (scratch.strip_suffix('\n') == Some(line)).then_some(read)
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Record(RecordLine { seq, chain, number, prev, hash, record }) => {
                write_record(out, (*seq, chain, *number), prev, hash, record.get());
            }
            Self::Checkpoint(CheckpointLine { seq, checkpoint, signature }, _) => {
                let (checkpoint, quoted) = (checkpoint.get(), quoted(signature));
                // Writing to a string cannot fail, here and below.
                let _ = writeln!(
                    out,
                    "{{\"seq\":{seq},\"checkpoint\":{checkpoint},\"signature\":{quoted}}}"
                );
            }
            Self::Closing(ClosingLine { closing, signature }, _) => {
                write_closing(out, closing.get(), signature);
            }
        }
    }
}

/// Whether a line has a checkpoint where a record has its chain.
fn is_checkpoint(line: &str) -> bool {
    let rest = line.strip_prefix("{\"seq\":").unwrap_or_default();
    rest.trim_start_matches(|digit: char| digit.is_ascii_digit()).starts_with(",\"checkpoint\":")
}

/// Reads what is signed, in its only spelling.
fn canonical<T: DeserializeOwned + serde::Serialize>(json: &RawValue) -> Option<T> {
    let value: T = serde_json::from_str(json.get()).ok()?;
    (serde_json::to_string(&value).ok()? == json.get()).then_some(value)
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// Writes a record's line: its number over all, its chain, its number there.
pub fn write_record(
    out: &mut String,
    (seq, chain, number): (i64, &str, i64),
    prev: &str,
    hash: &str,
    record: &str,
) {
    let plain = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    let _ = write!(out, "{{\"seq\":{seq},\"chain\":");
    if chain.bytes().all(plain) {
        let _ = write!(out, "\"{chain}\"");
    } else {
        out.push_str(&quoted(chain));
    }
    let _ = writeln!(
        out,
        ",\"number\":{number},\"prev\":\"{prev}\",\"hash\":\"{hash}\",\"record\":{record}}}"
    );
}

/// Writes a checkpoint's line from its row.
pub fn write_checkpoint(out: &mut String, seq: i64, body: &str) {
    let rest = body.strip_prefix('{').unwrap_or(body);
    let _ = writeln!(out, "{{\"seq\":{seq},{rest}");
}

/// Writes the last line.
pub fn write_closing(out: &mut String, closing: &str, signature: &str) {
    let quoted = quoted(signature);
    let _ = writeln!(out, "{{\"closing\":{closing},\"signature\":{quoted}}}");
}

/// Reads a hash from its only spelling: 64 lower-case digits.
#[must_use]
pub fn unhex(text: &str) -> Option<Hash> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut hash = [0; 32];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != hash.len() || !rest.is_empty() {
        return None;
    }
    for (slot, [high, low]) in hash.iter_mut().zip(pairs) {
        *slot = digit(*high)? << 4 | digit(*low)?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::chain::hex;

    fn read(line: &str) -> bool {
        Line::read(line, &mut String::new()).is_some()
    }

    #[test]
    fn se_44_a_line_has_one_spelling() {
        let hash = "0".repeat(64);
        let good = format!(
            "{{\"seq\":7,\"chain\":\"sh\\\"op\",\"number\":3,\"prev\":\"{hash}\",\
             \"hash\":\"{hash}\",\"record\":{{\"a\":1}}}}"
        );
        assert!(read(&good));
        for (from, to) in [
            ("\"seq\":7,", "\"seq\": 7,"),
            ("\"seq\":7,", "\"seq\":7,\"seq\":7,"),
            ("\"seq\":7,", "\"seq\":7.0,"),
            ("\"seq\":7,", ""),
            ("{\"a\":1}", "{\"a\":1},\"more\":1"),
            ("{\"a\":1}", "[]"),
            ("{\"a\":1}", "{\"a\":1"),
            ("sh\\\"op", "sh\\u0022op"),
            ("\"number\":3", "\"number\":\"3\""),
        ] {
            let wrong = good.replace(from, to);
            assert_ne!(wrong, good);
            assert!(!read(&wrong), "{wrong}");
        }
        assert!(!read(&format!("{good} ")) && !read(&format!("{good}{good}")) && !read(""));
    }

    #[test]
    fn a_hash_has_one_spelling() {
        let text = hex(&[0xab; 32]);
        assert_eq!(unhex(&text), Some([0xab; 32]));
        for wrong in
            [&text.to_uppercase(), &text[1..], "", &format!("{text}0"), &text.replace('a', "g")]
        {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }
}
