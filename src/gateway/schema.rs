//! The messages of the descriptors as tables that the codec reads: names in
//! both spellings, kinds, and what our options say.
//!
//! Not here: reading and writing values (`json`).

use std::collections::{BTreeMap, HashMap};

use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, ExtensionDescriptor, FieldDescriptor,
    MessageDescriptor, Value,
};

use super::Error;

/// Fields in one message at most; each has a bit in a `u128`.
const FIELDS_MAX: usize = 128;

/// Where a message stands in the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct MessageId(usize);

/// Where an enum stands in the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct EnumId(usize);

/// Every message that a route or the details of an error can hold.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Schema {
    messages: Vec<Message>,
    enums: Vec<Enum>,
    by_name: HashMap<String, MessageId>,
}

/// One message.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Message {
    pub(in crate::gateway) fields: Vec<Field>,
    /// Both spellings of each field.
    by_name: BTreeMap<String, usize>,
    by_number: BTreeMap<u32, usize>,
}

/// One field.
#[derive(Debug)]
pub(in crate::gateway) struct Field {
    /// As REST prints it.
    pub(in crate::gateway) name: String,
    /// The name as the key of a JSON object: quoted and with the colon.
    pub(in crate::gateway) key: String,
    pub(in crate::gateway) number: u32,
    pub(in crate::gateway) kind: Kind,
    pub(in crate::gateway) shape: Shape,
    /// Whether "not set" and the default are told apart.
    pub(in crate::gateway) presence: bool,
    /// The field's own bit among the fields of its message.
    pub(in crate::gateway) bit: u128,
    /// The bits of its oneof's other members.
    pub(in crate::gateway) rivals: u128,
    /// Takes an array, one string or a comma-separated string.
    pub(in crate::gateway) list_or_csv: bool,
}

/// How many values a field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Shape {
    One,
    List,
    /// By keys of this kind.
    Map(Kind),
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Kind {
    Bool,
    /// A number; `quoted` ones are strings in JSON.
    Number {
        number: Number,
        quoted: bool,
    },
    String,
    /// A string that holds JSON text.
    JsonText,
    Bytes,
    Enum(EnumId),
    Message(MessageId),
    Timestamp,
    Duration,
    Any,
}

/// The kinds of numbers, by how they stand on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Number {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
}

/// One enum.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Enum {
    words: BTreeMap<i32, String>,
    numbers: BTreeMap<String, i32>,
}

impl Enum {
    /// The short word of a number.
    pub(in crate::gateway) fn word(&self, number: i32) -> Option<&str> {
        self.words.get(&number).map(String::as_str)
    }

    /// The number of a short word or a full name.
    pub(in crate::gateway) fn number(&self, word: &str) -> Option<i32> {
        self.numbers.get(word).copied()
    }

    /// Every short word in the order of the numbers.
    pub(in crate::gateway) fn words(&self) -> impl Iterator<Item = &str> {
        self.words.values().map(String::as_str)
    }
}

impl Message {
    /// A field by either spelling.
    pub(in crate::gateway) fn field(&self, name: &str) -> Option<&Field> {
        self.by_name.get(name).and_then(|index| self.fields.get(*index))
    }

    /// Where a field of this number stands in `fields`.
    pub(in crate::gateway) fn index(&self, number: u32) -> Option<usize> {
        self.by_number.get(&number).copied()
    }
}

impl Schema {
    /// The tables of these messages and of all that they hold.
    pub(in crate::gateway) fn new(
        pool: &DescriptorPool,
        roots: impl IntoIterator<Item = MessageDescriptor>,
    ) -> Result<Self, Error> {
        let mut builder = Builder { options: Options::new(pool)?, schema: Self::default() };
        let details = pool.all_messages().filter(|message| {
            message.package_name() == "google.rpc" && message.parent_message().is_none()
        });
        for message in roots.into_iter().chain(details) {
            builder.message(&message)?;
        }
        Ok(builder.schema)
    }

    /// Where a message stands, by its full name.
    pub(in crate::gateway) fn find(&self, name: &str) -> Option<MessageId> {
        self.by_name.get(name).copied()
    }

    /// The message; ids are only made by the schema itself.
    pub(in crate::gateway) fn message(&self, id: MessageId) -> &Message {
        static NONE: Message =
            Message { fields: Vec::new(), by_name: BTreeMap::new(), by_number: BTreeMap::new() };
        self.messages.get(id.0).unwrap_or(&NONE)
    }

    /// The enum.
    pub(in crate::gateway) fn enumeration(&self, id: EnumId) -> &Enum {
        static NONE: Enum = Enum { words: BTreeMap::new(), numbers: BTreeMap::new() };
        self.enums.get(id.0).unwrap_or(&NONE)
    }
}

/// Our options on fields and enums.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct Options {
    json_text: ExtensionDescriptor,
    rest_name: ExtensionDescriptor,
    list_or_csv: ExtensionDescriptor,
    raw_number: ExtensionDescriptor,
    omit_empty: ExtensionDescriptor,
    rest_prefix: ExtensionDescriptor,
}

impl Options {
    pub(in crate::gateway) fn new(pool: &DescriptorPool) -> Result<Self, Error> {
        Ok(Self {
            json_text: extension(pool, "bailiwick.access.v1.json_text")?,
            rest_name: extension(pool, "bailiwick.access.v1.rest_name")?,
            list_or_csv: extension(pool, "bailiwick.access.v1.list_or_csv")?,
            raw_number: extension(pool, "bailiwick.access.v1.raw_number")?,
            omit_empty: extension(pool, "bailiwick.access.v1.omit_empty")?,
            rest_prefix: extension(pool, "bailiwick.access.v1.rest_prefix")?,
        })
    }

    pub(in crate::gateway) fn json_text(&self, field: &FieldDescriptor) -> bool {
        flag(&field.options(), &self.json_text)
    }

    pub(in crate::gateway) fn raw_number(&self, field: &FieldDescriptor) -> bool {
        flag(&field.options(), &self.raw_number)
    }

    pub(in crate::gateway) fn list_or_csv(&self, field: &FieldDescriptor) -> bool {
        flag(&field.options(), &self.list_or_csv)
    }

    pub(in crate::gateway) fn omit_empty(&self, field: &FieldDescriptor) -> bool {
        flag(&field.options(), &self.omit_empty)
    }

    /// The field's name in REST.
    pub(in crate::gateway) fn name(&self, field: &FieldDescriptor) -> String {
        let name = text(&field.options(), &self.rest_name);
        if name.is_empty() { field.name().to_owned() } else { name }
    }

    /// The short word of an enum's value.
    pub(in crate::gateway) fn word(&self, enumeration: &EnumDescriptor, value: &str) -> String {
        let prefix = text(&enumeration.options(), &self.rest_prefix);
        value.strip_prefix(prefix.as_str()).unwrap_or(value).to_ascii_lowercase()
    }
}

pub(in crate::gateway) fn extension(
    pool: &DescriptorPool,
    name: &'static str,
) -> Result<ExtensionDescriptor, Error> {
    pool.get_extension_by_name(name).ok_or(Error::OptionMissing(name))
}

fn flag(options: &DynamicMessage, extension: &ExtensionDescriptor) -> bool {
    matches!(&*options.get_extension(extension), Value::Bool(true))
}

fn text(options: &DynamicMessage, extension: &ExtensionDescriptor) -> String {
    options.get_extension(extension).as_str().unwrap_or_default().to_owned()
}

struct Builder {
    options: Options,
    schema: Schema,
}

impl Builder {
    fn message(&mut self, message: &MessageDescriptor) -> Result<MessageId, Error> {
        if let Some(id) = self.schema.find(message.full_name()) {
            return Ok(id);
        }
        // Before the fields, which may hold the message itself.
        let id = MessageId(self.schema.messages.len());
        self.schema.messages.push(Message::default());
        self.schema.by_name.insert(message.full_name().to_owned(), id);

        let mut table = Message::default();
        let fault = |what: &str| Error::Message {
            message: message.full_name().to_owned(),
            what: what.to_owned(),
        };
        if message.fields().len() > FIELDS_MAX {
            return Err(fault("has over 128 fields"));
        }
        for (index, field) in message.fields().enumerate() {
            let field = self.field(index, &field)?;
            for name in spellings(message, &field) {
                if table.by_name.insert(name, index).is_some_and(|other| other != index) {
                    return Err(fault(&format!("two fields are spelt `{}`", field.name)));
                }
            }
            table.by_number.insert(field.number, index);
            table.fields.push(field);
        }
        if let Some(slot) = self.schema.messages.get_mut(id.0) {
            *slot = table;
        }
        Ok(id)
    }

    fn field(&mut self, index: usize, field: &FieldDescriptor) -> Result<Field, Error> {
        let name = self.options.name(field);
        let shape = if field.is_map() {
            let prost_reflect::Kind::Message(entry) = field.kind() else {
                return Err(unsupported(field));
            };
            Shape::Map(self.kind(&entry.map_entry_key_field(), field)?)
        } else if field.is_list() {
            Shape::List
        } else {
            Shape::One
        };
        let kind = match (shape, field.kind()) {
            (Shape::Map(_), prost_reflect::Kind::Message(entry)) => {
                self.kind(&entry.map_entry_value_field(), field)?
            }
            _ => self.kind(field, field)?,
        };
        let own = bit(index);
        let rivals = field
            .containing_oneof()
            .filter(|oneof| !oneof.is_synthetic())
            .map(|oneof| {
                let members: Vec<u32> = oneof.fields().map(|member| member.number()).collect();
                field
                    .parent_message()
                    .fields()
                    .enumerate()
                    .filter(|(_, sibling)| members.contains(&sibling.number()))
                    .fold(0, |bits, (sibling, _)| bits | bit(sibling))
                    & !own
            })
            .unwrap_or_default();
        Ok(Field {
            key: format!("{}:", serde_json::Value::from(name.as_str())),
            name,
            number: field.number(),
            kind,
            shape,
            presence: shape == Shape::One && field.supports_presence()
                || self.options.omit_empty(field),
            bit: own,
            rivals,
            list_or_csv: self.options.list_or_csv(field),
        })
    }

    /// The kind of `value`, which is `field` itself or a part of its map.
    fn kind(&mut self, value: &FieldDescriptor, field: &FieldDescriptor) -> Result<Kind, Error> {
        use prost_reflect::Kind as Proto;
        let number = |number, quoted| Kind::Number { number, quoted };
        let quoted = !self.options.raw_number(field);
        Ok(match value.kind() {
            Proto::Double => number(Number::Double, false),
            Proto::Float => number(Number::Float, false),
            Proto::Int32 => number(Number::Int32, false),
            Proto::Int64 => number(Number::Int64, quoted),
            Proto::Uint32 => number(Number::Uint32, false),
            Proto::Uint64 => number(Number::Uint64, quoted),
            Proto::Sint32 => number(Number::Sint32, false),
            Proto::Sint64 => number(Number::Sint64, quoted),
            Proto::Fixed32 => number(Number::Fixed32, false),
            Proto::Fixed64 => number(Number::Fixed64, quoted),
            Proto::Sfixed32 => number(Number::Sfixed32, false),
            Proto::Sfixed64 => number(Number::Sfixed64, quoted),
            Proto::Bool => Kind::Bool,
            // Of a map, the option means the values.
            Proto::String
                if self.options.json_text(field) && (value == field || value.number() == 2) =>
            {
                Kind::JsonText
            }
            Proto::String => Kind::String,
            Proto::Bytes => Kind::Bytes,
            Proto::Enum(enumeration) => Kind::Enum(self.enumeration(&enumeration)),
            Proto::Message(_) if value.is_group() => return Err(unsupported(field)),
            Proto::Message(message) => match message.full_name() {
                "google.protobuf.Timestamp" => Kind::Timestamp,
                "google.protobuf.Duration" => Kind::Duration,
                "google.protobuf.Any" => Kind::Any,
                "google.protobuf.Empty" => Kind::Message(self.message(&message)?),
                name if name.starts_with("google.protobuf.") => return Err(unsupported(field)),
                _ => Kind::Message(self.message(&message)?),
            },
        })
    }

    fn enumeration(&mut self, enumeration: &EnumDescriptor) -> EnumId {
        let mut table = Enum::default();
        for value in enumeration.values() {
            let word = self.options.word(enumeration, value.name());
            table.numbers.insert(value.name().to_owned(), value.number());
            table.numbers.insert(word.clone(), value.number());
            table.words.entry(value.number()).or_insert(word);
        }
        self.schema.enums.push(table);
        EnumId(self.schema.enums.len() - 1)
    }
}

/// Both spellings of a field, and REST's own where there is one.
fn spellings(message: &MessageDescriptor, field: &Field) -> Vec<String> {
    let mut names = vec![field.name.clone()];
    if let Some(descriptor) = message.get_field(field.number) {
        names.push(descriptor.name().to_owned());
        names.push(descriptor.json_name().to_owned());
    }
    names
}

fn bit(index: usize) -> u128 {
    u32::try_from(index).ok().and_then(|index| 1_u128.checked_shl(index)).unwrap_or_default()
}

fn unsupported(field: &FieldDescriptor) -> Error {
    Error::Message {
        message: field.full_name().to_owned(),
        what: "its type has no form in REST".to_owned(),
    }
}
