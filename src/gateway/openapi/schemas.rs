//! Messages, enums and comments as schemas.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
};

use prost_reflect::{
    DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    ServiceDescriptor,
};
use serde_json::{Map, Value, json};

use crate::gateway::{Error, schema::Options};

/// Which way a message goes: requests refuse unknown fields, answers print
/// their defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    Request,
    Answer,
}

/// The named schemas, as they are met.
pub(super) struct Schemas {
    pub(super) options: Options,
    pub(super) comments: Comments,
    named: BTreeMap<String, Value>,
    met: HashMap<String, Direction>,
}

impl Schemas {
    pub(super) fn new(pool: &DescriptorPool) -> Result<Self, Error> {
        Ok(Self {
            options: Options::new(pool)?,
            comments: Comments::new(pool),
            named: BTreeMap::from([("Error".to_owned(), error_schema())]),
            met: HashMap::new(),
        })
    }

    pub(super) fn finish(self) -> Value {
        Value::Object(self.named.into_iter().collect())
    }

    /// A reference to a message, whose schema is written when it is first met.
    pub(super) fn of_message(
        &mut self,
        message: &MessageDescriptor,
        direction: Direction,
    ) -> Value {
        let full_name = message.full_name().to_owned();
        let first = *self.met.entry(full_name).or_insert(direction);
        // What goes both ways has a schema for each.
        let mut name = message.name().to_owned();
        if first != direction {
            name.push_str(match direction {
                Direction::Request => "Input",
                Direction::Answer => "Output",
            });
        }
        if !self.named.contains_key(&name) {
            // First the name: a message may hold itself.
            self.named.insert(name.clone(), Value::Null);
            let fields: Vec<FieldDescriptor> = message.fields().collect();
            let mut schema = self.object(&fields, direction);
            describe(&mut schema, &self.comments.of_message(message));
            self.named.insert(name.clone(), schema);
        }
        reference(&name)
    }

    /// An object of these fields.
    pub(super) fn object(&mut self, fields: &[FieldDescriptor], direction: Direction) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in fields {
            let name = self.options.name(field);
            if direction == Direction::Answer
                && !self.options.omit_empty(field)
                && (field.is_list() || field.is_map() || !field.supports_presence())
            {
                required.push(name.clone());
            }
            properties.insert(name, self.of_field(field, direction, true));
        }
        let mut schema = json!({"type": "object", "properties": properties});
        if let Some(schema) = schema.as_object_mut() {
            if !required.is_empty() {
                schema.insert("required".to_owned(), json!(required));
            }
            if direction == Direction::Request {
                schema.insert("additionalProperties".to_owned(), json!(false));
            }
        }
        schema
    }

    /// A field's schema.
    pub(super) fn of_field(
        &mut self,
        field: &FieldDescriptor,
        direction: Direction,
        described: bool,
    ) -> Value {
        let mut schema = if field.is_map() {
            let Kind::Message(entry) = field.kind() else { return json!({}) };
            let value = self.of_value(&entry.map_entry_value_field(), field, direction);
            json!({"type": "object", "additionalProperties": value})
        } else if field.is_list() {
            let items = self.of_value(field, field, direction);
            let list = json!({"type": "array", "items": items});
            if direction == Direction::Request && self.options.list_or_csv(field) {
                json!({"oneOf": [list, {"type": "string", "description": "Comma-separated."}]})
            } else {
                list
            }
        } else {
            self.of_value(field, field, direction)
        };
        if described {
            describe(&mut schema, &self.comments.of_field(field));
        }
        schema
    }

    /// One value of `field`; of a map `value` is the entry's.
    fn of_value(
        &mut self,
        value: &FieldDescriptor,
        field: &FieldDescriptor,
        direction: Direction,
    ) -> Value {
        match value.kind() {
            Kind::Bool => json!({"type": "boolean"}),
            Kind::Double => json!({"type": "number", "format": "double"}),
            Kind::Float => json!({"type": "number", "format": "float"}),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                json!({"type": "integer", "format": "int32"})
            }
            Kind::Uint32 | Kind::Fixed32 => {
                json!({"type": "integer", "minimum": 0, "maximum": u32::MAX})
            }
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => self.long(field, "int64"),
            Kind::Uint64 | Kind::Fixed64 => self.long(field, "uint64"),
            // Any JSON; a context and a configuration are objects.
            Kind::String if self.options.json_text(field) => match field.name() {
                "context" | "config" => json!({"type": "object"}),
                _ => json!({}),
            },
            Kind::String => json!({"type": "string"}),
            Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
            Kind::Enum(enumeration) => self.of_enum(&enumeration),
            Kind::Message(message) => match message.full_name() {
                "google.protobuf.Timestamp" => json!({"type": "string", "format": "date-time"}),
                "google.protobuf.Duration" => {
                    json!({"type": "string", "pattern": r"^-?\d+(\.\d+)?s$"})
                }
                "google.protobuf.Any" => json!({"type": "object"}),
                _ => self.of_message(&message, direction),
            },
        }
    }

    fn long(&self, field: &FieldDescriptor, format: &str) -> Value {
        if self.options.raw_number(field) {
            json!({"type": "integer", "format": format})
        } else {
            json!({"type": "string", "format": format, "pattern": r"^-?\d+$"})
        }
    }

    fn of_enum(&mut self, enumeration: &EnumDescriptor) -> Value {
        let name = enumeration.name().to_owned();
        if !self.named.contains_key(&name) {
            let mut description = self.comments.of_enum(enumeration);
            let mut words = Vec::new();
            for value in enumeration.values().filter(|value| value.number() != 0) {
                let word = self.options.word(enumeration, value.name());
                let comment = self.comments.of(&value.parent_file(), value.path());
                // Writing into a string cannot fail.
                let _ = write!(description, "\n- `{word}`: {comment}");
                words.push(word);
            }
            let mut schema = json!({"type": "string", "enum": words});
            describe(&mut schema, &description);
            self.named.insert(name.clone(), schema);
        }
        reference(&name)
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn describe(schema: &mut Value, description: &str) {
    if let Some(schema) = schema.as_object_mut()
        && !description.is_empty()
    {
        schema.insert("description".to_owned(), json!(description));
    }
}

fn error_schema() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "Why a call was refused or failed.",
        "required": ["error", "message", "code", "reason", "details"],
        "properties": {
            "error": text("The HTTP reason, as `not_found`."),
            "message": text("What is wrong and what to do."),
            "code": text("The code of gRPC, as `NOT_FOUND`."),
            "reason": text("Why, stable; `bailiwick.v1.Reason` lists them."),
            "request_id": text("The id of the request and of its decision."),
            "retry_after": {
                "type": "integer",
                "description": "With 429 and 503: in how many seconds to come again.",
            },
            "details": {
                "type": "array",
                "description": "Messages of `google.rpc`, by their `@type`.",
                "items": {
                    "type": "object",
                    "required": ["@type"],
                    "properties": {"@type": {"type": "string"}},
                },
            },
        },
    })
}

/// The comments of the protos by file and place.
pub(super) struct Comments(HashMap<(String, Vec<i32>), String>);

impl Comments {
    fn new(pool: &DescriptorPool) -> Self {
        let mut comments = HashMap::new();
        for file in pool.file_descriptor_protos() {
            let locations = file.source_code_info.iter().flat_map(|info| &info.location);
            for location in locations {
                if let Some(comment) = &location.leading_comments {
                    // Lines that only fill a page's width are one text.
                    let lines: Vec<&str> = comment.lines().map(str::trim).collect();
                    let text = lines.join(" ").trim().to_owned();
                    comments.insert((file.name().to_owned(), location.path.clone()), text);
                }
            }
        }
        Self(comments)
    }

    fn of(&self, file: &prost_reflect::FileDescriptor, path: &[i32]) -> String {
        self.0.get(&(file.name().to_owned(), path.to_vec())).cloned().unwrap_or_default()
    }

    pub(super) fn of_service(&self, service: &ServiceDescriptor) -> String {
        self.of(&service.parent_file(), service.path())
    }

    pub(super) fn of_method(&self, method: &MethodDescriptor) -> String {
        self.of(&method.parent_file(), method.path())
    }

    pub(super) fn of_field(&self, field: &FieldDescriptor) -> String {
        self.of(&field.parent_file(), field.path())
    }

    fn of_message(&self, message: &MessageDescriptor) -> String {
        self.of(&message.parent_file(), message.path())
    }

    fn of_enum(&self, enumeration: &EnumDescriptor) -> String {
        self.of(&enumeration.parent_file(), enumeration.path())
    }
}
