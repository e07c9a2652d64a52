//! Messages from the wire into JSON, straight into the buffer of the answer.

use std::collections::BTreeMap;

use prost::{
    Message as _,
    encoding::{WireType, decode_key, decode_varint},
};
use serde_json::value::RawValue;

use crate::gateway::schema::{Field, Kind, Message, MessageId, Number, Schema, Shape};

/// Messages nest at most this deep; `Any` could hold itself.
const DEPTH_MAX: usize = 64;

/// The bytes are no such message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct Corrupt;

impl From<prost::DecodeError> for Corrupt {
    fn from(_: prost::DecodeError) -> Self {
        Self
    }
}

/// A value as the wire holds it.
#[derive(Clone, Copy, Debug)]
enum Raw<'b> {
    Varint(u64),
    Four([u8; 4]),
    Eight([u8; 8]),
    Bytes(&'b [u8]),
}

impl<'b> Raw<'b> {
    fn varint(self) -> Result<u64, Corrupt> {
        match self {
            Self::Varint(value) => Ok(value),
            Self::Four(_) | Self::Eight(_) | Self::Bytes(_) => Err(Corrupt),
        }
    }

    fn bytes(self) -> Result<&'b [u8], Corrupt> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) | Self::Four(_) | Self::Eight(_) => Err(Corrupt),
        }
    }
}

/// Writes JSON by the schema's tables.
#[derive(Debug)]
pub(in crate::gateway) struct Writer<'s> {
    schema: &'s Schema,
    depth: usize,
}

impl<'s> Writer<'s> {
    /// A writer over these tables.
    pub(in crate::gateway) fn new(schema: &'s Schema) -> Self {
        Self { schema, depth: 0 }
    }

    /// Writes a whole message as an object.
    pub(in crate::gateway) fn message(
        &mut self,
        id: MessageId,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Corrupt> {
        out.push(b'{');
        self.members(self.schema.message(id), bytes, true, out)?;
        out.push(b'}');
        Ok(())
    }

    /// Writes one field of a message as the whole answer; null when not set.
    pub(in crate::gateway) fn field(
        &mut self,
        field: &'s Field,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Corrupt> {
        let mut values = Vec::new();
        let mut rest = bytes;
        while let Some((number, raw)) = next(&mut rest)? {
            if number == field.number {
                values.push((0, raw));
            }
        }
        if values.is_empty() && field.presence {
            out.extend_from_slice(b"null");
            return Ok(());
        }
        self.values(field, &values, out)
    }

    /// Writes a `google.protobuf.Any` as its message with `@type`.
    pub(in crate::gateway) fn any(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Corrupt> {
        let any = prost_types::Any::decode(bytes)?;
        out.extend_from_slice(b"{\"@type\":");
        quote(&any.type_url, out);
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        if let Some(id) = self.schema.find(name) {
            self.members(self.schema.message(id), &any.value, false, out)?;
        } else {
            out.extend_from_slice(b",\"value\":");
            base64(&any.value, out);
        }
        out.push(b'}');
        Ok(())
    }

    fn members(
        &mut self,
        message: &'s Message,
        bytes: &[u8],
        mut first: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Corrupt> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Corrupt);
        }
        let mut found = Vec::with_capacity(message.fields.len());
        let mut rest = bytes;
        while let Some((number, raw)) = next(&mut rest)? {
            if let Some(index) = message.index(number) {
                found.push((index, raw));
            }
        }
        // The encoders write in order; the sort is stable and then does nothing.
        found.sort_by_key(|(index, _)| *index);
        let mut found = found.as_slice();
        for (index, field) in message.fields.iter().enumerate() {
            let count = found.iter().take_while(|(of, _)| *of == index).count();
            let (values, rest) = found.split_at_checked(count).ok_or(Corrupt)?;
            found = rest;
            if values.is_empty() && field.presence {
                continue;
            }
            if !first {
                out.push(b',');
            }
            first = false;
            out.extend_from_slice(field.key.as_bytes());
            self.values(field, values, out)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn values(
        &mut self,
        field: &'s Field,
        values: &[(usize, Raw<'_>)],
        out: &mut Vec<u8>,
    ) -> Result<(), Corrupt> {
        match field.shape {
            Shape::One => self.one(field, values, out),
            Shape::List => self.list(field, values, out),
            Shape::Map(key) => self.map(field, key, values, out),
        }
    }

    fn one(
        &mut self,
        field: &'s Field,
        values: &[(usize, Raw<'_>)],
        out: &mut Vec<u8>,
    ) -> Result<(), Corrupt> {
        match (field.kind, values) {
            // Parts of one message merge, which is the same as one after the other.
            (Kind::Message(id), [_, _, ..]) => {
                let mut whole = Vec::new();
                for (_, part) in values {
                    whole.extend_from_slice(part.bytes()?);
                }
                self.message(id, &whole, out)
            }
            (_, [.., (_, last)]) => self.value(field.kind, Some(*last), out),
            (_, []) => self.value(field.kind, None, out),
        }
    }

    fn list(
        &mut self,
        field: &'s Field,
        values: &[(usize, Raw<'_>)],
        out: &mut Vec<u8>,
    ) -> Result<(), Corrupt> {
        out.push(b'[');
        let mut first = true;
        let mut comma = |out: &mut Vec<u8>| {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
        };
        for (_, raw) in values {
            if let (Some(wire), Raw::Bytes(packed)) = (wire(field.kind), raw) {
                let mut rest = *packed;
                while !rest.is_empty() {
                    let element = payload(wire, &mut rest)?;
                    comma(out);
                    self.value(field.kind, Some(element), out)?;
                }
            } else {
                comma(out);
                self.value(field.kind, Some(*raw), out)?;
            }
        }
        out.push(b']');
        Ok(())
    }

    fn map(
        &mut self,
        field: &'s Field,
        key: Kind,
        values: &[(usize, Raw<'_>)],
        out: &mut Vec<u8>,
    ) -> Result<(), Corrupt> {
        // Sorted: the same map always reads the same.
        let mut entries = BTreeMap::new();
        for (_, raw) in values {
            let (mut name, mut value) = (None, None);
            let mut rest = raw.bytes()?;
            while let Some((number, raw)) = next(&mut rest)? {
                match number {
                    1 => name = Some(raw),
                    2 => value = Some(raw),
                    _ => {}
                }
            }
            let mut text = Vec::new();
            self.value(key, name, &mut text)?;
            entries.insert(text, value);
        }
        out.push(b'{');
        for (index, (name, value)) in entries.into_iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            if name.starts_with(b"\"") {
                out.extend_from_slice(&name);
            } else {
                out.push(b'"');
                out.extend_from_slice(&name);
                out.push(b'"');
            }
            out.push(b':');
            self.value(field.kind, value, out)?;
        }
        out.push(b'}');
        Ok(())
    }

    /// One value; none is the default.
    fn value(
        &mut self,
        kind: Kind,
        raw: Option<Raw<'_>>,
        out: &mut Vec<u8>,
    ) -> Result<(), Corrupt> {
        let bytes = || raw.map_or(Ok(&[][..]), Raw::bytes);
        let varint = || raw.map_or(Ok(0), Raw::varint);
        match kind {
            Kind::Bool => {
                out.extend_from_slice(if varint()? == 0 { b"false" } else { b"true" });
            }
            Kind::Number { number, quoted } => number_text(number, quoted, raw, out)?,
            Kind::String => quote(std::str::from_utf8(bytes()?).map_err(|_| Corrupt)?, out),
            Kind::JsonText => splice(std::str::from_utf8(bytes()?).map_err(|_| Corrupt)?, out),
            Kind::Bytes => base64(bytes()?, out),
            Kind::Enum(id) => {
                let number = i32::try_from(varint()?.cast_signed()).map_err(|_| Corrupt)?;
                match self.schema.enumeration(id).word(number) {
                    Some(word) => quote(word, out),
                    None => out.extend_from_slice(number.to_string().as_bytes()),
                }
            }
            Kind::Message(id) => self.message(id, bytes()?, out)?,
            Kind::Timestamp => {
                let time = prost_types::Timestamp::decode(bytes()?)?;
                quote(&time.to_string(), out);
            }
            Kind::Duration => {
                let duration = prost_types::Duration::decode(bytes()?)?;
                quote(&duration.to_string(), out);
            }
            Kind::Any => self.any(bytes()?, out)?,
        }
        Ok(())
    }
}

/// The next field of a message.
fn next<'b>(rest: &mut &'b [u8]) -> Result<Option<(u32, Raw<'b>)>, Corrupt> {
    if rest.is_empty() {
        return Ok(None);
    }
    let (number, wire) = decode_key(rest)?;
    payload(wire, rest).map(|raw| Some((number, raw)))
}

fn payload<'b>(wire: WireType, rest: &mut &'b [u8]) -> Result<Raw<'b>, Corrupt> {
    Ok(match wire {
        WireType::Varint => Raw::Varint(decode_varint(rest)?),
        WireType::ThirtyTwoBit => {
            let (bytes, after) = rest.split_first_chunk().ok_or(Corrupt)?;
            *rest = after;
            Raw::Four(*bytes)
        }
        WireType::SixtyFourBit => {
            let (bytes, after) = rest.split_first_chunk().ok_or(Corrupt)?;
            *rest = after;
            Raw::Eight(*bytes)
        }
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(rest)?).map_err(|_| Corrupt)?;
            let (bytes, after) = rest.split_at_checked(length).ok_or(Corrupt)?;
            *rest = after;
            Raw::Bytes(bytes)
        }
        WireType::StartGroup | WireType::EndGroup => return Err(Corrupt),
    })
}

/// How an element of a packed list stands; none for kinds that do not pack.
fn wire(kind: Kind) -> Option<WireType> {
    match kind {
        Kind::Bool | Kind::Enum(_) => Some(WireType::Varint),
        Kind::Number { number, .. } => Some(match number {
            Number::Double | Number::Fixed64 | Number::Sfixed64 => WireType::SixtyFourBit,
            Number::Float | Number::Fixed32 | Number::Sfixed32 => WireType::ThirtyTwoBit,
            Number::Int32
            | Number::Int64
            | Number::Uint32
            | Number::Uint64
            | Number::Sint32
            | Number::Sint64 => WireType::Varint,
        }),
        Kind::String
        | Kind::JsonText
        | Kind::Bytes
        | Kind::Message(_)
        | Kind::Timestamp
        | Kind::Duration
        | Kind::Any => None,
    }
}

fn number_text(
    number: Number,
    quoted: bool,
    raw: Option<Raw<'_>>,
    out: &mut Vec<u8>,
) -> Result<(), Corrupt> {
    let varint = || raw.map_or(Ok(0), Raw::varint);
    let four = || match raw {
        Some(Raw::Four(bytes)) => Ok(bytes),
        None => Ok([0; 4]),
        Some(Raw::Varint(_) | Raw::Eight(_) | Raw::Bytes(_)) => Err(Corrupt),
    };
    let eight = || match raw {
        Some(Raw::Eight(bytes)) => Ok(bytes),
        None => Ok([0; 8]),
        Some(Raw::Varint(_) | Raw::Four(_) | Raw::Bytes(_)) => Err(Corrupt),
    };
    let text = match number {
        Number::Double => return float(f64::from_le_bytes(eight()?), out),
        Number::Float => {
            let value = f32::from_le_bytes(four()?);
            // Through its own shortest text, so that 0.1 stays 0.1.
            return float(value.to_string().parse().unwrap_or(f64::NAN), out);
        }
        Number::Int32 | Number::Int64 => varint()?.cast_signed().to_string(),
        Number::Uint32 | Number::Uint64 => varint()?.to_string(),
        Number::Sint32 | Number::Sint64 => {
            let value = varint()?;
            ((value >> 1).cast_signed() ^ -(value & 1).cast_signed()).to_string()
        }
        Number::Fixed32 => u32::from_le_bytes(four()?).to_string(),
        Number::Fixed64 => u64::from_le_bytes(eight()?).to_string(),
        Number::Sfixed32 => i32::from_le_bytes(four()?).to_string(),
        Number::Sfixed64 => i64::from_le_bytes(eight()?).to_string(),
    };
    if quoted {
        quote(&text, out);
    } else {
        out.extend_from_slice(text.as_bytes());
    }
    Ok(())
}

fn float(value: f64, out: &mut Vec<u8>) -> Result<(), Corrupt> {
    if value.is_finite() {
        return serde_json::to_writer(out, &value).map_err(|_| Corrupt);
    }
    let name = match (value.is_nan(), value.is_sign_positive()) {
        (true, _) => "NaN",
        (false, true) => "Infinity",
        (false, false) => "-Infinity",
    };
    quote(name, out);
    Ok(())
}

/// A string with quotes and escapes.
fn quote(text: &str, out: &mut Vec<u8>) {
    // Writing a string into memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}

fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    use base64::Engine as _;
    quote(&base64::engine::general_purpose::STANDARD.encode(bytes), out);
}

/// JSON text in place, on one line. It was checked when it came in; it is
/// checked again, because text that is no JSON could forge its surroundings.
fn splice(text: &str, out: &mut Vec<u8>) {
    if text.is_empty() {
        out.extend_from_slice(b"null");
        return;
    }
    if serde_json::from_str::<&RawValue>(text).is_err() {
        quote(text, out);
        return;
    }
    let start = out.len();
    out.extend_from_slice(text.as_bytes());
    // Inside strings a line break is escaped: these are white space.
    for byte in out.iter_mut().skip(start) {
        if matches!(byte, b'\r' | b'\n') {
            *byte = b' ';
        }
    }
}
