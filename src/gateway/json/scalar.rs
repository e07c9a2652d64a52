//! Single values onto the wire.

use base64::Engine as _;
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint},
};

use crate::gateway::schema::{Kind, Number, Schema};

/// A scalar as JSON or a query holds it.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::gateway) enum Token<'t> {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(std::borrow::Cow<'t, str>),
    /// From a path or a query, where everything is text.
    Word(&'t str),
}

impl Token<'_> {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Word(text) => Some(text),
            Self::Null | Self::Bool(_) | Self::Signed(_) | Self::Unsigned(_) | Self::Float(_) => {
                None
            }
        }
    }

    fn signed(&self) -> Option<i64> {
        match self {
            Self::Signed(number) => Some(*number),
            Self::Unsigned(number) => i64::try_from(*number).ok(),
            Self::Null | Self::Bool(_) | Self::Float(_) | Self::Text(_) | Self::Word(_) => {
                self.text()?.parse().ok()
            }
        }
    }

    fn unsigned(&self) -> Option<u64> {
        match self {
            Self::Signed(number) => u64::try_from(*number).ok(),
            Self::Unsigned(number) => Some(*number),
            Self::Null | Self::Bool(_) | Self::Float(_) | Self::Text(_) | Self::Word(_) => {
                self.text()?.parse().ok()
            }
        }
    }

    fn float(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            // Every integer of JSON is also a number with a fraction.
            Self::Signed(number) => number.to_string().parse().ok(),
            Self::Unsigned(number) => number.to_string().parse().ok(),
            Self::Text(_) | Self::Word(_) => match self.text()? {
                "Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                text => text.parse().ok(),
            },
            Self::Null | Self::Bool(_) => None,
        }
    }

    fn boolean(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            Self::Word("true") => Some(true),
            Self::Word("false") => Some(false),
            Self::Null
            | Self::Signed(_)
            | Self::Unsigned(_)
            | Self::Float(_)
            | Self::Text(_)
            | Self::Word(_) => None,
        }
    }
}

/// The key of a field on the wire.
fn field_tag(number: u32, wire: WireType, out: &mut Vec<u8>) {
    encode_key(number, wire, out);
}

/// A field whose value is bytes with their length in front.
pub(in crate::gateway) fn write_delimited(number: u32, value: &[u8], out: &mut Vec<u8>) {
    field_tag(number, WireType::LengthDelimited, out);
    encode_varint(u64::try_from(value.len()).unwrap_or_default(), out);
    out.extend_from_slice(value);
}

/// Writes a field with a scalar value, or says what was expected.
pub(in crate::gateway) fn write_scalar(
    schema: &Schema,
    kind: Kind,
    number: u32,
    token: &Token<'_>,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let expected = |what: &str| format!("must be {what}");
    match kind {
        Kind::Bool => {
            let value = token.boolean().ok_or_else(|| expected("true or false"))?;
            field_tag(number, WireType::Varint, out);
            encode_varint(u64::from(value), out);
        }
        Kind::Number { number: format, .. } => write_number(format, number, token, out)?,
        Kind::String => {
            let text = token.text().ok_or_else(|| expected("a string"))?;
            write_delimited(number, text.as_bytes(), out);
        }
        Kind::Bytes => {
            let bytes = token.text().and_then(base64).ok_or_else(|| expected("a base64 string"))?;
            write_delimited(number, &bytes, out);
        }
        Kind::Enum(id) => {
            let table = schema.enumeration(id);
            let value = match token {
                Token::Signed(_) | Token::Unsigned(_) => token
                    .signed()
                    .and_then(|value| i32::try_from(value).ok())
                    .filter(|value| table.word(*value).is_some()),
                Token::Text(_) | Token::Word(_) => token.text().and_then(|word| table.number(word)),
                Token::Null | Token::Bool(_) | Token::Float(_) => None,
            };
            let value = value.ok_or_else(|| {
                let words: Vec<&str> =
                    table.words().filter(|word| *word != "unspecified").collect();
                format!("must be one of {}", words.join(", "))
            })?;
            field_tag(number, WireType::Varint, out);
            encode_varint(i64::from(value).cast_unsigned(), out);
        }
        Kind::Timestamp => {
            let time: prost_types::Timestamp = token
                .text()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| expected("a time of RFC 3339, as 2026-01-31T12:00:00Z"))?;
            write_delimited(number, &time.encode_to_vec(), out);
        }
        Kind::Duration => {
            let duration: prost_types::Duration =
                token
                    .text()
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(|| expected("a duration in seconds, as 1.5s"))?;
            write_delimited(number, &duration.encode_to_vec(), out);
        }
        Kind::JsonText | Kind::Message(_) | Kind::Any => return Err(expected("in the body")),
    }
    Ok(())
}

fn write_number(
    format: Number,
    field: u32,
    token: &Token<'_>,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let signed = || token.signed().ok_or_else(|| "must be a whole number".to_owned());
    let unsigned = || token.unsigned().ok_or_else(|| "must be a whole number from 0".to_owned());
    let float = || token.float().ok_or_else(|| "must be a number".to_owned());
    let short =
        || i32::try_from(signed()?).map_err(|_| "must be a whole number of 32 bits".to_owned());
    let short_unsigned = || {
        u32::try_from(unsigned()?)
            .map_err(|_| "must be a whole number from 0 to 4294967295".to_owned())
    };
    let mut varint = |value: u64| {
        field_tag(field, WireType::Varint, out);
        encode_varint(value, out);
    };
    match format {
        Number::Int32 => varint(i64::from(short()?).cast_unsigned()),
        Number::Int64 => varint(signed()?.cast_unsigned()),
        Number::Uint32 => varint(u64::from(short_unsigned()?)),
        Number::Uint64 => varint(unsigned()?),
        Number::Sint32 => varint(zigzag(i64::from(short()?))),
        Number::Sint64 => varint(zigzag(signed()?)),
        Number::Fixed32 => fixed(field, &short_unsigned()?.to_le_bytes(), out),
        Number::Fixed64 => fixed(field, &unsigned()?.to_le_bytes(), out),
        Number::Sfixed32 => fixed(field, &short()?.to_le_bytes(), out),
        Number::Sfixed64 => fixed(field, &signed()?.to_le_bytes(), out),
        Number::Double => fixed(field, &float()?.to_le_bytes(), out),
        Number::Float => {
            // Through text: the nearest `f32` without a cast.
            let value: f32 = float()?.to_string().parse().unwrap_or(f32::NAN);
            fixed(field, &value.to_le_bytes(), out);
        }
    }
    Ok(())
}

fn fixed(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    let wire = if bytes.len() == 4 { WireType::ThirtyTwoBit } else { WireType::SixtyFourBit };
    field_tag(field, wire, out);
    out.extend_from_slice(bytes);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// Both alphabets, with or without padding, as proto3's JSON has it.
fn base64(text: &str) -> Option<Vec<u8>> {
    use base64::{
        alphabet::{STANDARD, URL_SAFE},
        engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    };
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabet = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    GeneralPurpose::new(alphabet, config).decode(text).ok()
}
