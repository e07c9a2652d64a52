//! The YAML as a tree in which every value knows its place.
//!
//! serde's derived readers stop at the first fault and lose places behind
//! flattening; a registrar wants all of them, so the tree comes first and
//! `check` walks it. Not here: what any field means.

use std::{borrow::Cow, cell::Cell, fmt};

use serde::{Deserialize, Deserializer, de};
use serde_saphyr::{
    Location, Spanned,
    options::{DuplicateKeyPolicy, MergeKeyPolicy},
};

use super::findings::{Finding, Findings, Path, Place, shortened, shown};

/// The longest definition, in bytes.
pub const DEFINITION_BYTES_MAX: usize = 1024 * 1024;
/// How deep lists and maps nest in a definition at most. The reader recurses:
/// this much takes about half of a usual stack where nothing is optimised.
const DEPTH_MAX: usize = 24;
/// How many values a definition has at most, as written.
const NODES_MAX: usize = 200_000;
/// How many aliases a definition has at most.
const ALIASES_MAX: usize = 10_000;
/// How many merge keys (`<<`) a definition has at most.
const MERGES_MAX: usize = 1_000;
/// How many values its aliases stand for at most.
const REPLAYED_MAX: usize = 100_000;
/// How much text a definition comes to at most once aliases are unfolded, in
/// bytes.
const UNFOLDED_BYTES_MAX: usize = 4 * DEFINITION_BYTES_MAX;
/// How much of the parser's message is shown, in characters.
const SYNTAX_CHARS_MAX: usize = 300;

/// A value with its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// A value of YAML's core schema.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// As JSON writes it, every digit kept.
    Number(String),
    Text(String),
    List(Vec<Node>),
    /// In the order of the text; a repeated key is still there twice.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// What kind of value it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a truth value",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// Whether nothing is written.
    pub(super) fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// The value as the key of a map; none for lists and maps.
    pub(super) fn as_key(&self) -> Option<Cow<'_, str>> {
        match &self.value {
            Value::Text(text) | Value::Number(text) => Some(Cow::Borrowed(text)),
            Value::Bool(value) => Some(Cow::Borrowed(if *value { "true" } else { "false" })),
            Value::Null => Some(Cow::Borrowed("null")),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    /// The value as JSON; keys that are no text are shown as text.
    pub(super) fn to_json(&self) -> String {
        let mut json = String::new();
        self.write_json(&mut json);
        json
    }

    fn write_json(&self, json: &mut String) {
        match &self.value {
            Value::Null => json.push_str("null"),
            Value::Bool(value) => json.push_str(if *value { "true" } else { "false" }),
            Value::Number(number) => json.push_str(number),
            Value::Text(text) => push_string(json, text),
            Value::List(items) => {
                json.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        json.push(',');
                    }
                    item.write_json(json);
                }
                json.push(']');
            }
            Value::Map(entries) => {
                json.push('{');
                for (index, (key, value)) in entries.iter().enumerate() {
                    if index > 0 {
                        json.push(',');
                    }
                    push_string(json, &key.as_key().unwrap_or_default());
                    json.push(':');
                    value.write_json(json);
                }
                json.push('}');
            }
        }
    }
}

fn push_string(json: &mut String, text: &str) {
    json.push_str(&serde_json::Value::from(text).to_string());
}

/// Reads a definition; what is no YAML, or too much of it, is one finding.
pub(super) fn read(definition: &str) -> Result<Node, Vec<Finding>> {
    let whole = |message: String| {
        let mut findings = Findings::default();
        findings.error(Place::default(), &Path::default(), message);
        findings.into_errors()
    };
    if definition.len() > DEFINITION_BYTES_MAX {
        return Err(whole(format!(
            "the definition has {} bytes; at most {DEFINITION_BYTES_MAX} are taken: move large \
             settings out of it",
            definition.len()
        )));
    }
    SPARE_BYTES.set(UNFOLDED_BYTES_MAX);
    let raw: Raw = serde_saphyr::from_str_with_options(definition, options())
        .map_err(|error| refused(&error))?;
    Ok(raw.into_node(definition))
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 2 * NODES_MAX,
            max_nodes: NODES_MAX,
            max_aliases: ALIASES_MAX,
            max_anchors: ALIASES_MAX,
            max_recorded_anchor_events: REPLAYED_MAX * 4,
            max_recorded_anchor_bytes: UNFOLDED_BYTES_MAX,
            max_depth: DEPTH_MAX,
            flow_nesting_limit: DEPTH_MAX,
            max_documents: 1,
            max_total_scalar_bytes: UNFOLDED_BYTES_MAX,
            max_merge_keys: MERGES_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: REPLAYED_MAX,
            max_replay_stack_depth: DEPTH_MAX,
        },
        // Repeated keys come through, so that all of them are told.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Merge,
        // As Tasker's reader: YAML 1.2, where `no` is text.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        emit_comments: false,
        with_snippet: false,
    }
}

fn refused(error: &serde_saphyr::Error) -> Vec<Finding> {
    let place = error.location().map_or_else(Place::default, |location| place(&location));
    let text = error.without_snippet().to_string();
    // The place has its own fields.
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    let mut findings = Findings::default();
    let message = format!("not readable as YAML: {}", shortened(message, SYNTAX_CHARS_MAX));
    findings.error(place, &Path::default(), message);
    findings.into_errors()
}

fn place(location: &Location) -> Place {
    Place {
        line: u32::try_from(location.line()).unwrap_or(0),
        column: u32::try_from(location.column()).unwrap_or(0),
    }
}

/// Complains of repeated keys, and of keys that are lists or maps, in a part
/// whose fields are free.
pub(super) fn check_free(node: &Node, path: &Path, findings: &mut Findings) {
    match &node.value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {}
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                check_free(item, &path.item(index), findings);
            }
        }
        Value::Map(entries) => {
            let mut seen = std::collections::BTreeSet::new();
            for (key, value) in entries {
                let Some(name) = checked_key(key, path, findings) else { continue };
                let path = path.field(&name);
                if !seen.insert(name.clone()) {
                    let message = format!("`{}` is given twice", shown(&name));
                    findings.error(key.place, &path, message);
                }
                check_free(value, &path, findings);
            }
        }
    }
}

/// The key as text; a list or a map as a key is a fault.
pub(super) fn checked_key<'a>(
    key: &'a Node,
    path: &Path,
    findings: &mut Findings,
) -> Option<Cow<'a, str>> {
    let name = key.as_key();
    if name.is_none() {
        findings.error(key.place, path, format!("{} cannot be a key; write text", key.kind()));
    }
    name
}

thread_local! {
    /// How much text the definition that this thread reads may still come to.
    /// The parser's budgets count text as written; an alias to a long text
    /// costs nothing there. serde offers no way to hand the count down.
    static SPARE_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// A value as the parser hands it over.
struct Raw(Spanned<RawValue>);

enum RawValue {
    Null,
    Bool(bool),
    Integer(String),
    Float(f64),
    Text(String),
    List(Vec<Raw>),
    Map(Vec<(Raw, Raw)>),
}

impl Raw {
    fn into_node(self, definition: &str) -> Node {
        let Spanned { value, referenced, defined } = self.0;
        let value = match value {
            RawValue::Null => Value::Null,
            RawValue::Bool(value) => Value::Bool(value),
            RawValue::Integer(number) => Value::Number(number),
            RawValue::Float(number) => Value::Number(spelling(&defined, definition, number)),
            RawValue::Text(text) => Value::Text(text),
            RawValue::List(items) => {
                Value::List(items.into_iter().map(|item| item.into_node(definition)).collect())
            }
            RawValue::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| (key.into_node(definition), value.into_node(definition)))
                    .collect(),
            ),
        };
        Node { place: place(&referenced), value }
    }
}

/// The number as it is written where JSON writes it so too: a double has not
/// all its digits.
fn spelling(location: &Location, definition: &str, number: f64) -> String {
    let written = location.span().byte_offset().zip(location.span().byte_len()).and_then(
        |(offset, length)| {
            let start = usize::try_from(offset).ok()?;
            definition.get(start..start.checked_add(usize::try_from(length).ok()?)?)
        },
    );
    match written.map(str::trim) {
        Some(written)
            if written.parse::<f64>().is_ok_and(|read| read.total_cmp(&number).is_eq())
                && serde_json::from_str::<serde_json::Number>(written).is_ok() =>
        {
            written.to_owned()
        }
        Some(_) | None => serde_json::Number::from_f64(number)
            .map_or_else(|| "null".to_owned(), |n| n.to_string()),
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Raw)
    }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> de::Visitor<'de> for RawVisitor {
    type Value = RawValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number, a truth value, a list or a map")
    }

    fn visit_unit<E: de::Error>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<RawValue, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<RawValue, E> {
        Ok(RawValue::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<RawValue, E> {
        Ok(RawValue::Integer(number.to_string()))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<RawValue, E> {
        Ok(RawValue::Integer(number.to_string()))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<RawValue, E> {
        Ok(RawValue::Float(number))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<RawValue, E> {
        match SPARE_BYTES.get().checked_sub(text.len()) {
            Some(spare) => SPARE_BYTES.set(spare),
            None => {
                return Err(E::custom(format_args!(
                    "aliases unfold to more than {UNFOLDED_BYTES_MAX} bytes of text"
                )));
            }
        }
        Ok(RawValue::Text(text.to_owned()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<RawValue, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(RawValue::List(items))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<RawValue, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(RawValue::Map(entries))
    }
}
