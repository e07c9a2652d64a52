//! JSON onto the wire: one pass of serde, no tree. Payloads stay text.

use std::{borrow::Cow, collections::HashSet, fmt};

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde_json::value::RawValue;

use super::{Token, write_delimited, write_scalar};
use crate::{
    gateway::{
        fault::{Fault, nearest},
        schema::{Field, Kind, Message, MessageId, Schema, Shape},
    },
    pb::v1::Reason,
};

/// The deepest nesting of a payload; our own messages do not nest deep, and
/// their unknown fields are refused before they are read.
const DEPTH_MAX: usize = 128;

/// What is read, and where the reader stands in it.
#[derive(Debug)]
struct Reading<'s> {
    schema: &'s Schema,
    path: Vec<Part<'s>>,
    fault: Option<Fault>,
}

/// One step into a value; costs nothing until somebody asks for the place.
#[derive(Debug)]
enum Part<'s> {
    Field(&'s str),
    /// A name that a stranger chose.
    Name(String),
    Index(usize),
}

impl Part<'_> {
    /// A stranger's name, not too long for an answer.
    fn name(name: &str) -> Self {
        const CHARACTERS_MAX: usize = 64;
        Self::Name(name.chars().take(CHARACTERS_MAX).collect())
    }
}

impl<'s> Reading<'s> {
    /// At the start.
    fn new(schema: &'s Schema) -> Self {
        Self { schema, path: Vec::new(), fault: None }
    }

    fn place(&self) -> String {
        let mut place = String::new();
        for part in &self.path {
            let name = match part {
                Part::Field(name) => name,
                Part::Name(name) => name.as_str(),
                Part::Index(index) => {
                    place.push_str(&["[", &index.to_string(), "]"].concat());
                    continue;
                }
            };
            if !place.is_empty() {
                place.push('.');
            }
            place.push_str(name);
        }
        place
    }

    /// Keeps the fault and gives serde an error that ends the reading.
    fn fail<E: serde::de::Error>(&mut self, reason: Reason, what: &str) -> E {
        let place = self.place();
        self.fault.get_or_insert_with(|| Fault::field(reason, &place, what));
        E::custom(what)
    }

    fn finish(&mut self, result: Result<(), serde_json::Error>) -> Result<(), Fault> {
        let Err(error) = result else { return Ok(()) };
        Err(self.fault.take().unwrap_or_else(|| match (error.classify(), self.place()) {
            (serde_json::error::Category::Data, place) if !place.is_empty() => {
                Fault::field(Reason::FieldInvalid, &place, &error.to_string())
            }
            _ => Fault::malformed(format!("The body is not valid JSON: {error}")),
        }))
    }
}

/// Reads a whole body as a message. `taken` are the fields that the path has;
/// the answer adds those of the body.
pub(in crate::gateway) fn message_from_json(
    schema: &Schema,
    id: MessageId,
    json: &str,
    taken: u128,
    out: &mut Vec<u8>,
) -> Result<u128, Fault> {
    let mut reading = Reading::new(schema);
    let mut json = serde_json::Deserializer::from_str(json);
    let mut seen = taken;
    let seed = MessageSeed {
        reading: &mut reading,
        message: schema.message(id),
        taken,
        seen: &mut seen,
        out,
    };
    let result = json.deserialize_map(seed).and_then(|()| json.end());
    reading.finish(result)?;
    Ok(seen)
}

/// Reads a whole body as one field's value.
pub(in crate::gateway) fn field_from_json<'s>(
    schema: &'s Schema,
    field: &'s Field,
    json: &str,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let mut reading = Reading::new(schema);
    reading.path.push(Part::Field(&field.name));
    let mut json = serde_json::Deserializer::from_str(json);
    let result = FieldSeed { reading: &mut reading, field, out }
        .deserialize(&mut json)
        .and_then(|()| json.end());
    reading.finish(result)
}

struct MessageSeed<'r, 's> {
    reading: &'r mut Reading<'s>,
    message: &'s Message,
    /// What the path has given already.
    taken: u128,
    seen: &'r mut u128,
    out: &'r mut Vec<u8>,
}

impl<'de> Visitor<'de> for MessageSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { reading, message, taken, seen, out } = self;
        while let Some(Key(name)) = map.next_key()? {
            let Some(field) = message.field(&name) else {
                reading.path.push(Part::name(&name));
                let known = message.fields.iter().map(|field| field.name.as_str());
                let what = nearest(&name, known).map_or_else(
                    || "no such field".to_owned(),
                    |near| format!("no such field; did you mean `{near}`?"),
                );
                return Err(reading.fail(Reason::RequestMalformed, &what));
            };
            reading.path.push(Part::Field(&field.name));
            if taken & field.bit != 0 {
                return Err(reading.fail(Reason::FieldAmbiguous, "given in the path too"));
            }
            if *seen & field.bit != 0 {
                return Err(reading.fail(Reason::FieldAmbiguous, "given twice"));
            }
            if *seen & field.rivals != 0 {
                return Err(reading.fail(Reason::FieldAmbiguous, "another of its kind is given"));
            }
            *seen |= field.bit;
            map.next_value_seed(FieldSeed { reading, field, out })?;
            reading.path.pop();
        }
        Ok(())
    }
}

/// A key of an object, borrowed where it holds no escape.
struct Key<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(name)))
            }
            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct FieldSeed<'r, 's> {
    reading: &'r mut Reading<'s>,
    field: &'s Field,
    out: &'r mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for FieldSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { reading, field, out } = self;
        match field.shape {
            Shape::One => {
                let value = ValueSeed {
                    reading,
                    kind: field.kind,
                    number: field.number,
                    null: Null::Absent,
                    out,
                };
                value.deserialize(deserializer)
            }
            Shape::List => deserializer.deserialize_any(ListVisitor { reading, field, out }),
            Shape::Map(key) => {
                deserializer.deserialize_any(MapVisitor { reading, field, key, out })
            }
        }
    }
}

/// What null means where it stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Null {
    /// The field is not given.
    Absent,
    /// An element cannot be null.
    Refused,
}

struct ValueSeed<'r, 's> {
    reading: &'r mut Reading<'s>,
    kind: Kind,
    number: u32,
    null: Null,
    out: &'r mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.kind {
            Kind::JsonText => {
                let text: &RawValue = serde::Deserialize::deserialize(deserializer)?;
                if too_deep(text.get()) {
                    let what = format!("JSON nested deeper than {DEPTH_MAX} levels");
                    return Err(self.reading.fail(Reason::PayloadInvalid, &what));
                }
                write_delimited(self.number, text.get().as_bytes(), self.out);
                Ok(())
            }
            Kind::Bool
            | Kind::Number { .. }
            | Kind::String
            | Kind::Bytes
            | Kind::Enum(_)
            | Kind::Message(_)
            | Kind::Timestamp
            | Kind::Duration
            | Kind::Any => deserializer.deserialize_any(self),
        }
    }
}

impl ValueSeed<'_, '_> {
    fn scalar<E: serde::de::Error>(self, token: &Token<'_>) -> Result<(), E> {
        if *token == Token::Null && self.null == Null::Absent {
            return Ok(());
        }
        write_scalar(self.reading.schema, self.kind, self.number, token, self.out)
            .map_err(|what| self.reading.fail(Reason::FieldInvalid, &what))
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self.kind, Kind::Message(_)) { "an object" } else { "a value" })
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        if matches!(self.kind, Kind::Message(_)) {
            return match self.null {
                Null::Absent => Ok(()),
                Null::Refused => Err(self.reading.fail(Reason::FieldInvalid, "must be an object")),
            };
        }
        self.scalar(&Token::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.scalar(&Token::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.scalar(&Token::Signed(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.scalar(&Token::Unsigned(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.scalar(&Token::Float(value))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.scalar(&Token::Text(Cow::Borrowed(value)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let Kind::Message(id) = self.kind else {
            return Err(A::Error::invalid_type(Unexpected::Map, &self));
        };
        let message = self.reading.schema.message(id);
        let mut inner = Vec::new();
        let mut seen = 0;
        MessageSeed {
            reading: &mut *self.reading,
            message,
            taken: 0,
            seen: &mut seen,
            out: &mut inner,
        }
        .visit_map(map)?;
        write_delimited(self.number, &inner, self.out);
        Ok(())
    }
}

struct ListVisitor<'r, 's> {
    reading: &'r mut Reading<'s>,
    field: &'s Field,
    out: &'r mut Vec<u8>,
}

impl<'de> Visitor<'de> for ListVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if !self.field.list_or_csv {
            return Err(E::invalid_type(Unexpected::Str(text), &self));
        }
        for word in comma_separated(text) {
            let token = Token::Word(word);
            write_scalar(self.reading.schema, self.field.kind, self.field.number, &token, self.out)
                .map_err(|what| self.reading.fail(Reason::FieldInvalid, &what))?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for index in 0_usize.. {
            self.reading.path.push(Part::Index(index));
            let element = ValueSeed {
                reading: &mut *self.reading,
                kind: self.field.kind,
                number: self.field.number,
                null: Null::Refused,
                out: &mut *self.out,
            };
            let more = seq.next_element_seed(element)?;
            self.reading.path.pop();
            if more.is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// The parts of a comma-separated list, without the spaces around them.
pub(in crate::gateway) fn comma_separated(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(|word| word.trim_matches(' ')).filter(|word| !word.is_empty())
}

struct MapVisitor<'r, 's> {
    reading: &'r mut Reading<'s>,
    field: &'s Field,
    key: Kind,
    out: &'r mut Vec<u8>,
}

impl<'de> Visitor<'de> for MapVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { reading, field, key, out } = self;
        let mut keys = HashSet::new();
        while let Some(Key(name)) = map.next_key()? {
            reading.path.push(Part::name(&name));
            let mut entry = Vec::new();
            write_scalar(reading.schema, key, 1, &Token::Word(&name), &mut entry)
                .map_err(|what| reading.fail(Reason::FieldInvalid, &what))?;
            if !keys.insert(name) {
                return Err(reading.fail(Reason::FieldAmbiguous, "given twice"));
            }
            map.next_value_seed(ValueSeed {
                reading: &mut *reading,
                kind: field.kind,
                number: 2,
                null: Null::Refused,
                out: &mut entry,
            })?;
            write_delimited(field.number, &entry, out);
            reading.path.pop();
        }
        Ok(())
    }
}

/// Whether valid JSON nests too deep; does not recurse.
fn too_deep(json: &str) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return true;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}
