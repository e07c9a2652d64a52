//! The JSON Schema that a task's context must meet.
//!
//! A schema is a tenant's: it fetches nothing, its patterns run in linear
//! time, and what it may unfold to is bounded. Not here: schemas of results;
//! nothing enforces them yet.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jsonschema::{PatternOptions, ValidationError, Validator};

use super::{
    super::Json,
    document::{Node, Value, check_free},
    fields::Field,
    findings::{Findings, Path, shortened, shown},
    metered::{Metered, with_fuel},
};

/// The longest input schema as JSON, in bytes.
pub const SCHEMA_BYTES_MAX: usize = 256 * 1024;
/// How many patterns an input schema has at most: each is compiled.
pub const PATTERNS_MAX: usize = 100;
/// How large a compiled pattern becomes at most, in bytes.
const PATTERN_BYTES_MAX: usize = 16 * 1024;
/// A context of at most so many bytes is checked in no time, but by patterns.
const QUICK_BYTES_MAX: usize = 8 * 1024;
/// How many subschemas one value is checked against at most, references
/// followed.
const UNFOLDED_MAX: u64 = 2_000;
/// How many violations of a context are told.
pub const VIOLATIONS_MAX: usize = 50;
/// How long the text of a violation becomes, in characters. What is not the
/// tenant's takes at least ten of them, so of that less than 100 come back.
const VIOLATION_CHARS_MAX: usize = 109;
/// How long the path in a violation becomes, in characters.
const VIOLATION_PATH_CHARS_MAX: usize = 45;
/// How often a check of one context looks at values: so often for any, and so
/// often again for each byte.
const CHECK_FUEL: u64 = 200_000;
const CHECK_FUEL_PER_BYTE: u64 = 16;
/// How deep the compiler goes into a schema at most: its own depth and those
/// of all that it refers to, together. It recurses, as checks do.
const COMPILED_DEPTH_MAX: usize = 200;
/// How deep a check goes at most: the depth of the context times the schemas
/// that are nested for one value.
const CHECKED_DEPTH_MAX: usize = 400;

/// Keywords whose value is data, never a schema.
const DATA_KEYWORDS: [&str; 5] = ["const", "enum", "default", "example", "examples"];
/// Keywords that lead to another schema by name in ways that are not
/// followed here.
const DYNAMIC_KEYWORDS: [&str; 2] = ["$dynamicRef", "$recursiveRef"];
/// Keywords whose schemas are for the same value as their own.
const IN_PLACE: [&str; 7] = ["allOf", "anyOf", "oneOf", "not", "if", "then", "else"];
/// Keywords whose maps hold schemas for the same value as their own.
const IN_PLACE_MAPS: [&str; 2] = ["dependentSchemas", "dependencies"];
/// Keywords whose value is a map from free names to schemas.
const SCHEMA_MAPS: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];

/// A compiled input schema.
#[derive(Clone)]
pub(super) struct InputSchema {
    json: Json,
    validator: Arc<Validator<Metered>>,
    /// Whether it has patterns, which read whole strings.
    patterns: bool,
    /// How many schemas are nested for one value; 0 where the schema refers
    /// to nothing and is itself the limit.
    nested: usize,
}

impl fmt::Debug for InputSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InputSchema").field(&self.json).finish()
    }
}

impl InputSchema {
    /// Compiles a schema; what makes it none is a fault.
    pub(super) fn read(field: &Field<'_>, findings: &mut Findings) -> Option<Self> {
        if !matches!(field.node.value, Value::Map(_)) {
            let kind = field.node.kind();
            field.fault(format!("expected a JSON Schema as a map, found {kind}"), findings);
            return None;
        }
        let mut survey = Survey { findings: Findings::default(), patterns: 0 };
        check_free(field.node, &field.path, &mut survey.findings);
        survey.schema(field.node, &field.path);
        if survey.patterns > PATTERNS_MAX {
            let message =
                format!("{} patterns; a schema has at most {PATTERNS_MAX}", survey.patterns);
            survey.findings.error(field.node.place, &field.path, message);
        }
        let patterns = survey.patterns > 0;
        let clean = !survey.findings.failed();
        findings.absorb(survey.findings);
        if !clean {
            return None;
        }
        match compile(field.node) {
            Ok(schema) => Some(Self { patterns, ..schema }),
            Err((pointer, message)) => {
                let (node, path) = locate(field, &pointer);
                findings.error(node.place, &path, message);
                None
            }
        }
    }

    /// The schema.
    pub(super) fn json(&self) -> &Json {
        &self.json
    }

    /// Whether a check of this context takes so little that it need not leave
    /// the thread of its caller.
    pub(super) fn is_quick(&self, context: &Json) -> bool {
        !self.patterns && context.as_str().len() <= QUICK_BYTES_MAX
    }

    /// Checks a context; every violation as `/place: what is wrong`.
    pub(super) fn check(&self, context: &Json) -> Result<(), Vec<String>> {
        let value = serde_json::from_str::<serde_json::Value>(context.as_str())
            .map_err(|error| vec![violation("", &format!("not readable: {error}"))])?;
        if depth(&value).saturating_mul(self.nested) > CHECKED_DEPTH_MAX {
            return Err(vec![
                "/: the input is nested too deep to check it against its schema".to_owned(),
            ]);
        }
        let bytes = u64::try_from(context.as_str().len()).unwrap_or(u64::MAX);
        let fuel = CHECK_FUEL.saturating_add(bytes.saturating_mul(CHECK_FUEL_PER_BYTE));
        let (told, exhausted) = with_fuel(fuel, || {
            let node = Metered::node(&value);
            // Most contexts are valid, and this answer is much cheaper.
            if self.validator.is_valid(node) {
                return Vec::new();
            }
            let mut errors = self.validator.iter_errors(node);
            let mut told: Vec<String> = errors
                .by_ref()
                .take(VIOLATIONS_MAX)
                .map(|error| violation(error.instance_path().as_str(), &wording(&error)))
                .collect();
            if errors.next().is_some() {
                told.push(format!("/: there are more than {VIOLATIONS_MAX} violations"));
            }
            told
        });
        // A check that was cut short has seen parts as if they were absent.
        if exhausted {
            return Err(vec!["/: the input is too costly to check against its schema".to_owned()]);
        }
        if told.is_empty() { Ok(()) } else { Err(told) }
    }
}

fn violation(path: &str, message: &str) -> String {
    let path = if path.is_empty() { "/" } else { path };
    let path = shortened(path, VIOLATION_PATH_CHARS_MAX);
    shortened(&format!("{path}: {message}"), VIOLATION_CHARS_MAX)
}

/// What is wrong, never with the value itself.
fn wording(error: &ValidationError<'_>) -> String {
    error.masked_with("the value").to_string()
}

type Refusal = (String, String);

fn compile(node: &Node) -> Result<InputSchema, Refusal> {
    let whole = |message: String| (String::new(), message);
    let text = node.to_json();
    if text.len() > SCHEMA_BYTES_MAX {
        let bytes = text.len();
        return Err(whole(format!("{bytes} bytes; a schema has at most {SCHEMA_BYTES_MAX}")));
    }
    let json = Json::parse_object(&text).map_err(|error| whole(error.to_string()))?;
    let schema: serde_json::Value = serde_json::from_str(json.as_str())
        .map_err(|error| whole(format!("not readable as JSON: {error}")))?;
    let nested = unfold(&schema)?;
    let validator = jsonschema::options_for::<Metered>()
        .offline()
        .with_pattern_options(
            // Linear in the input; look-around and back-references are refused.
            PatternOptions::regex().size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX),
        )
        .build(&schema)
        .map_err(|error| {
            let message = format!("not a valid JSON Schema: {}", shown(&error.to_string()));
            (error.instance_path().as_str().to_owned(), message)
        })?;
    Ok(InputSchema { json, validator: Arc::new(validator), patterns: false, nested })
}

/// The part of the definition that a JSON pointer into the schema means.
fn locate<'a>(field: &Field<'a>, pointer: &str) -> (&'a Node, Path) {
    let (mut node, mut path) = (field.node, field.path.clone());
    for token in pointer.split('/').skip(1) {
        let token = token.replace("~1", "/").replace("~0", "~");
        let below = match &node.value {
            Value::Map(entries) => entries
                .iter()
                .find(|(key, _)| key.as_key().is_some_and(|key| key == token))
                .map(|(_, value)| (value, path.field(&token))),
            Value::List(items) => token
                .parse()
                .ok()
                .and_then(|index: usize| items.get(index).map(|item| (item, path.item(index)))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => None,
        };
        let Some(below) = below else { break };
        (node, path) = below;
    }
    (node, path)
}

/// Looks through a schema for what must not be in it.
struct Survey {
    findings: Findings,
    patterns: usize,
}

impl Survey {
    fn schema(&mut self, node: &Node, path: &Path) {
        match &node.value {
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {}
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.schema(item, &path.item(index));
                }
            }
            Value::Map(entries) => {
                for (key, value) in entries {
                    if let Some(keyword) = key.as_key() {
                        self.keyword(&keyword, value, &path.field(&keyword));
                    }
                }
            }
        }
    }

    fn keyword(&mut self, keyword: &str, value: &Node, path: &Path) {
        let mut refuse = |message: String| self.findings.error(value.place, path, message);
        match (keyword, &value.value) {
            _ if DATA_KEYWORDS.contains(&keyword) => {}
            ("$ref", Value::Text(target)) if !target.starts_with('#') => refuse(format!(
                "`{}` is outside of this schema; only references within it, as `#/$defs/name`, \
                 are followed",
                shown(target)
            )),
            ("$id" | "id", Value::Text(_)) => refuse(format!(
                "`{keyword}` is not supported: references within the schema begin with `#`"
            )),
            _ if DYNAMIC_KEYWORDS.contains(&keyword) => {
                refuse(format!("`{keyword}` is not supported; use `$ref`"));
            }
            (_, Value::Map(entries)) if SCHEMA_MAPS.contains(&keyword) => {
                if keyword == "patternProperties" {
                    self.patterns += entries.len();
                }
                for (key, value) in entries {
                    self.schema(value, &path.field(&key.as_key().unwrap_or_default()));
                }
            }
            _ => {
                self.patterns += usize::from(keyword == "pattern");
                self.schema(value, path);
            }
        }
    }
}

/// Refuses references that lead back to themselves without going into the
/// value, and those that unfold to too much: checks would never end. Tells how
/// many schemas are nested for one value; 0 without any reference.
fn unfold(schema: &serde_json::Value) -> Result<usize, Refusal> {
    let mut anchors = BTreeMap::new();
    let mut all = Vec::new();
    collect(schema, String::new(), &mut anchors, &mut all);
    let mut unfolding = Unfolding { root: schema, anchors: &anchors, costs: BTreeMap::new() };
    let mut targets = BTreeMap::new();
    for (pointer, subschema) in &all {
        if let Some(target) = unfolding.target_of(subschema) {
            targets.insert(std::ptr::from_ref(target), (pointer, target));
        }
    }
    let mut compiled = depth(schema);
    for (pointer, target) in targets.values() {
        compiled += depth(target);
        if compiled > COMPILED_DEPTH_MAX {
            return Err((
                (*pointer).clone(),
                format!(
                    "the schema and all that it refers to are nested more than \
                     {COMPILED_DEPTH_MAX} levels deep together; make it simpler"
                ),
            ));
        }
    }
    let mut nested = 0;
    for (pointer, subschema) in &all {
        let unfolded = unfolding.cost(subschema).map_err(|message| (pointer.clone(), message))?;
        nested = nested.max(unfolded.nested);
    }
    Ok(if targets.is_empty() { 0 } else { nested })
}

/// How deep a value nests; 1 for a scalar. The reader of JSON bounds it.
fn depth(value: &serde_json::Value) -> usize {
    1 + match value {
        serde_json::Value::Object(members) => members.values().map(depth).max().unwrap_or(0),
        serde_json::Value::Array(items) => items.iter().map(depth).max().unwrap_or(0),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => 0,
    }
}

type Anchors<'a> = BTreeMap<&'a str, &'a serde_json::Value>;

/// Every map in a schema with its pointer; some are no schemas, which does
/// not matter here.
fn collect<'a>(
    value: &'a serde_json::Value,
    pointer: String,
    anchors: &mut Anchors<'a>,
    all: &mut Vec<(String, &'a serde_json::Value)>,
) {
    match value {
        serde_json::Value::Object(members) => {
            if let Some(name) = members.get("$anchor").and_then(serde_json::Value::as_str) {
                anchors.insert(name, value);
            }
            for (name, member) in members {
                let name = name.replace('~', "~0").replace('/', "~1");
                collect(member, format!("{pointer}/{name}"), anchors, all);
            }
            all.push((pointer, value));
        }
        serde_json::Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                collect(item, format!("{pointer}/{index}"), anchors, all);
            }
        }
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}

/// What one value meets in a schema, without going into the value.
#[derive(Clone, Copy)]
struct Unfolded {
    /// How many schemas.
    schemas: u64,
    /// How deep they are nested.
    nested: usize,
}

struct Unfolding<'a> {
    root: &'a serde_json::Value,
    anchors: &'a Anchors<'a>,
    /// By address: the tree outlives this and does not move. None while it is
    /// being counted.
    costs: BTreeMap<*const serde_json::Value, Option<Unfolded>>,
}

impl<'a> Unfolding<'a> {
    fn cost(&mut self, schema: &'a serde_json::Value) -> Result<Unfolded, String> {
        let mut cost = Unfolded { schemas: 1, nested: 1 };
        let Some(members) = schema.as_object() else { return Ok(cost) };
        match self.costs.get(&std::ptr::from_ref(schema)) {
            Some(Some(cost)) => return Ok(*cost),
            Some(None) => {
                return Err("leads back to itself without going into the input".to_owned());
            }
            None => {}
        }
        self.costs.insert(std::ptr::from_ref(schema), None);
        let mut below: Vec<&serde_json::Value> = Vec::new();
        for keyword in IN_PLACE {
            match members.get(keyword) {
                Some(serde_json::Value::Array(items)) => below.extend(items),
                Some(item) => below.push(item),
                None => {}
            }
        }
        for keyword in IN_PLACE_MAPS {
            let map = members.get(keyword).and_then(serde_json::Value::as_object);
            below.extend(map.into_iter().flat_map(serde_json::Map::values));
        }
        below.extend(self.target_of(schema));
        for schema in below {
            let part = self.cost(schema)?;
            cost.schemas = cost.schemas.saturating_add(part.schemas);
            cost.nested = cost.nested.max(part.nested + 1);
        }
        if cost.schemas > UNFOLDED_MAX {
            return Err(format!(
                "unfolds to more than {UNFOLDED_MAX} schemas for one value; make it simpler"
            ));
        }
        self.costs.insert(std::ptr::from_ref(schema), Some(cost));
        Ok(cost)
    }

    /// What a schema refers to.
    fn target_of(&self, schema: &serde_json::Value) -> Option<&'a serde_json::Value> {
        self.target(schema.get("$ref")?.as_str()?)
    }

    /// What a reference means; the compiler complains where it means nothing.
    fn target(&self, reference: &str) -> Option<&'a serde_json::Value> {
        let fragment = reference.strip_prefix('#')?;
        let fragment = percent_decoded(fragment);
        if fragment.is_empty() || fragment.starts_with('/') {
            self.root.pointer(&fragment)
        } else {
            self.anchors.get(fragment.as_str()).copied()
        }
    }
}

/// A fragment of a URI as text.
fn percent_decoded(fragment: &str) -> String {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.bytes();
    while let Some(byte) = rest.next() {
        let mut ahead = rest.clone();
        let digits = (byte == b'%').then(|| (hex(ahead.next()), hex(ahead.next())));
        if let Some((Some(high), Some(low))) = digits {
            bytes.push(high * 16 + low);
            rest = ahead;
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: Option<u8>) -> Option<u8> {
    let digit = char::from(digit?).to_digit(16)?;
    u8::try_from(digit).ok()
}
