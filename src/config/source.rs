//! From the file and the environment to [`Raw`]: layers, unknown keys, types.

use std::{collections::BTreeMap, ffi::OsString, fs, path::Path};

use config::{Config, ConfigError, File, FileFormat};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Visitor, value},
    forward_to_deserialize_any,
};
use toml::{Table, Value};

use super::{
    Error,
    raw::{self, LATER, Raw},
};

/// Every scalar has a variable of this form: `BAILIWICK__TABLE__KEY`.
const PREFIX: &str = "BAILIWICK__";
/// The short name that Tasker's users know (TK-37).
const SHORT_KEY_PATH: &str = "BAILIWICK_JWT_PUBLIC_KEY_PATH";
/// The largest configuration file; far more than anyone writes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Scalars by table and key, with the variable that says them.
type Overrides = BTreeMap<(String, String), (String, String)>;

pub(super) fn read(
    path: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Raw, Error> {
    let mut file = path.map_or_else(|| Ok(Table::new()), read_file)?;
    check_keys(&mut file)?;
    let overrides = overrides(environment)?;

    let defaults = |error: ConfigError| type_error(error, &overrides);
    // As text again: the other way in loses empty lists.
    let text = toml::to_string(&file)
        .map_err(|_| Error::invalid("the configuration", "cannot be written as TOML again"))?;
    let mut builder = Config::builder().add_source(File::from_str(&text, FileFormat::Toml));
    for ((table, key), (_, value)) in &overrides {
        builder =
            builder.set_override(format!("{table}.{key}"), value.as_str()).map_err(defaults)?;
    }
    builder.build().and_then(Config::try_deserialize).map_err(defaults)
}

fn read_file(path: &Path) -> Result<Table, Error> {
    let failed = |source| Error::Read { what: "the configuration", path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    text.parse().map_err(|error: toml::de::Error| syntax(path, &text, &error))
}

/// Where the fault is, without the text that stands there: the error's own
/// shows the line, which may hold a key.
pub(super) fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Error::Syntax {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
        message: error.message().to_owned(),
    }
}

/// Refuses what is not known or not supported yet, and takes the harmless
/// remains out.
fn check_keys(file: &mut Table) -> Result<(), Error> {
    for (table, content) in file.iter_mut() {
        if !tables().contains(table.as_str()) {
            return Err(unknown(table, tables()));
        }
        let Value::Table(content) = content else {
            return Err(Error::Type { key: table.clone(), expected: "a table".to_owned() });
        };
        for (key, value) in content.iter() {
            check_key(table, key, value)?;
        }
        content.retain(|key, _| !is_later(table, key));
    }
    Ok(())
}

fn check_key(table: &str, key: &str, value: &Value) -> Result<(), Error> {
    let full = format!("{table}.{key}");
    if is_later(table, key) {
        return if is_off(value) { Ok(()) } else { Err(Error::NotYet { key: full }) };
    }
    if !keys(table).contains(&key) {
        return Err(unknown_key(&full));
    }
    // The layers below would round it.
    if matches!(value, Value::Float(_)) {
        return Err(Error::Type { key: full, expected: "no fraction".to_owned() });
    }
    match (table, key) {
        ("auth", "api_keys") => check_list::<raw::ApiKey>(&full, value, &["key", "permissions"]),
        ("auth", "issuers") => check_list::<raw::Issuer>(&full, value, &["issuer", "audience"]),
        ("auth", "claim_rules") => {
            check_list::<raw::ClaimRule>(&full, value, &["issuer", "claims", "permissions"])
        }
        ("auth", "certificates") => {
            check_list::<raw::CertificateRule>(&full, value, &["spiffe", "permissions"])
        }
        ("auth", "namespaces") => check_list::<raw::NamespaceRights>(&full, value, &["prefix"]),
        ("auth", "roles") => check_roles(&full, value),
        ("audit", "sinks") => check_list::<raw::AuditSink>(&full, value, &["name", "kind"]),
        ("server", "client_authorities") => {
            check_list::<raw::ClientAuthority>(&full, value, &["ca", "trust_domains"])
        }
        _ => Ok(()),
    }
}

/// Tables of one kind, `[[full]]`.
fn check_list<T: for<'de> Deserialize<'de>>(
    full: &str,
    value: &Value,
    required: &[&str],
) -> Result<(), Error> {
    let Value::Array(entries) = value else {
        return Err(Error::Type { key: full.to_owned(), expected: format!("tables [[{full}]]") });
    };
    for (entry, number) in entries.iter().zip(1..) {
        check_entry::<T>(format!("{full} #{number}"), entry, required)?;
    }
    Ok(())
}

fn check_roles(full: &str, value: &Value) -> Result<(), Error> {
    let Value::Table(roles) = value else {
        return Err(Error::Type {
            key: full.to_owned(),
            expected: format!("tables [{full}.NAME]"),
        });
    };
    roles.iter().try_for_each(|(name, role)| {
        check_entry::<raw::Role>(format!("{full}.{name}"), role, &["permissions"])
    })
}

fn check_entry<T: for<'de> Deserialize<'de>>(
    place: String,
    entry: &Value,
    required: &[&str],
) -> Result<(), Error> {
    let Value::Table(entry) = entry else {
        return Err(Error::Type { key: place, expected: "a table".to_owned() });
    };
    let known = field_names::<T>();
    if let Some(key) = entry.keys().find(|key| !known.contains(&key.as_str())) {
        let nearest = nearest(key, known.iter().map(|name| (*name).to_owned()));
        return Err(Error::Unknown { key: format!("{place}: {key}"), nearest });
    }
    match required.iter().find(|required| !entry.contains_key(**required)) {
        Some(required) => Err(Error::invalid(place, format!("`{required}` is missing"))),
        None => Ok(()),
    }
}

fn overrides(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Overrides, Error> {
    let mut overrides = Overrides::new();
    let mut short = None;
    for (name, value) in environment {
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with(PREFIX) && name != SHORT_KEY_PATH {
            continue;
        }
        let value = value
            .into_string()
            .map_err(|_| Error::invalid(name, "the variable is not valid UTF-8"))?;
        let Some(path) = name.strip_prefix(PREFIX) else {
            short = Some((name.to_owned(), value));
            continue;
        };
        let path = path.to_lowercase().replace("__", ".");
        let Some((table, key)) = path.split_once('.') else {
            return Err(unknown_key(&path));
        };
        if is_later(table, key) {
            if is_off_text(&value) {
                continue;
            }
            return Err(Error::NotYet { key: path });
        }
        if !keys(table).contains(&key) {
            return Err(unknown_key(&path));
        }
        overrides.insert((table.to_owned(), key.to_owned()), (name.to_owned(), value));
    }
    if let Some(short) = short {
        // The long name is the more exact one.
        overrides.entry(("auth".to_owned(), "jwt_public_key_path".to_owned())).or_insert(short);
    }
    Ok(overrides)
}

/// What the layers say about a type, without the value: it may be a secret.
fn type_error(error: ConfigError, overrides: &Overrides) -> Error {
    let (key, expected) = key_and_type(error);
    let key = key.unwrap_or_else(|| "the configuration".to_owned());
    let variable = key.split_once('.').and_then(|(table, name)| {
        overrides.get(&(table.to_owned(), name.to_owned())).map(|(variable, _)| variable)
    });
    match variable {
        Some(variable) if expected == "a sequence" => {
            Error::invalid(variable, "a list has no form in the environment; use the file")
        }
        Some(variable) => Error::Type { key: variable.clone(), expected },
        None => Error::Type { key, expected },
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library's enum may grow")]
fn key_and_type(error: ConfigError) -> (Option<String>, String) {
    match error {
        ConfigError::Type { key, expected, .. } => (key, expected.to_owned()),
        ConfigError::At { error, key, .. } => {
            let (inner, expected) = key_and_type(*error);
            (key.or(inner), expected)
        }
        ConfigError::NotFound(key) => (Some(key), "a value".to_owned()),
        // serde's words show the value first and what was expected behind it.
        ConfigError::Message(text) => {
            let expected = text.rsplit_once(", expected ").map(|(_, expected)| expected.to_owned());
            (None, expected.unwrap_or_else(|| "another type".to_owned()))
        }
        _ => (None, "another type".to_owned()),
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Boolean(on) => !on,
        Value::Integer(number) => *number == 0,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Table(items) => items.is_empty(),
        Value::Float(_) | Value::Datetime(_) => false,
    }
}

fn is_off_text(value: &str) -> bool {
    matches!(value, "" | "0") || value.eq_ignore_ascii_case("false")
}

fn is_later(table: &str, key: &str) -> bool {
    LATER.iter().any(|(of, keys)| *of == table && keys.contains(&key))
}

fn tables() -> impl Iterator<Item = &'static str> + Clone {
    let now = field_names::<Raw>().iter().copied();
    now.chain(LATER.iter().map(|(table, _)| *table).filter(|table| keys(table).is_empty()))
}

trait Contains {
    fn contains(self, name: &str) -> bool;
}

impl<I: Iterator<Item = &'static str>> Contains for I {
    fn contains(mut self, name: &str) -> bool {
        self.any(|known| known == name)
    }
}

pub(super) fn keys(table: &str) -> &'static [&'static str] {
    match table {
        "server" => field_names::<raw::Server>(),
        "storage" => field_names::<raw::Storage>(),
        "auth" => field_names::<raw::Auth>(),
        "controller" => field_names::<raw::Controller>(),
        "limits" => field_names::<raw::Limits>(),
        "scheduler" => field_names::<raw::Scheduler>(),
        "telemetry" => field_names::<raw::Telemetry>(),
        "audit" => field_names::<raw::Audit>(),
        _ => &[],
    }
}

fn unknown(name: &str, known: impl Iterator<Item = &'static str>) -> Error {
    Error::Unknown { key: name.to_owned(), nearest: nearest(name, known.map(str::to_owned)) }
}

fn unknown_key(full: &str) -> Error {
    let known = tables().flat_map(|table| {
        let later = LATER.iter().filter(move |(of, _)| *of == table);
        let later = later.flat_map(|(_, keys)| keys.iter());
        keys(table).iter().chain(later).map(move |key| format!("{table}.{key}"))
    });
    Error::Unknown { key: full.to_owned(), nearest: nearest(full, known) }
}

/// The known name with the fewest edits, when it is at all alike.
pub(super) fn nearest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let alike = name.len().max(6) / 2;
    known
        .map(|candidate| (edits(name, &candidate), candidate))
        .min()
        .filter(|(edits, _)| *edits <= alike)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, row by row.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (deleted, a) in from.chars().enumerate() {
        let mut next = vec![deleted + 1];
        let mut left = deleted + 1;
        for (b, pair) in to.chars().zip(row.windows(2)) {
            let &[diagonal, above] = pair else { continue };
            left = (diagonal + usize::from(a != b)).min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

/// The names of a struct's fields, as serde knows them.
fn field_names<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    struct Probe<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Probe<'_> {
        type Error = value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, value::Error> {
            Err(value::Error::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, value::Error> {
            *self.0 = fields;
            Err(value::Error::custom("only the names were asked for"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
            option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
            ignored_any
        }
    }

    let mut names: &'static [&'static str] = &[];
    // It always fails, after the names are taken.
    let _ = T::deserialize(Probe(&mut names));
    names
}
