//! The auth file of the line protocol, `[token.NAME]` with a secret and a
//! namespace. It is read at start alone (ZT-37), and nothing about it is
//! lenient: a file that cannot be taken as a whole stops the start (ZT-18).

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{Error, source};
use crate::domain::{Scope, schedule::IDENTIFIER_BYTES_MAX};

/// The longest line of the protocol, without its end.
pub const LINE_BYTES_MAX: usize = 4096;
/// The longest secret: what stands behind `AUTH ` on a line.
pub const SECRET_BYTES_MAX: usize = LINE_BYTES_MAX - 5;
/// The longest name of a token.
const NAME_BYTES_MAX: usize = 256;
/// The largest file: ten thousand tokens with the longest secrets.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Others may read it, or write to it.
const NOT_PRIVATE: u32 = 0o077;
/// What the fields of a token are called.
const FIELDS: [&str; 2] = ["secret", "namespace"];
/// A file that guards nothing is taken for a mistake.
const EMPTY: &str = "it holds no token; take `controller.auth_file` out if none is wanted";

/// A token of the file. The secret itself is gone: its digest is all that is
/// needed.
#[derive(Clone, PartialEq, Eq)]
pub struct LineToken {
    /// Its name: who calls.
    pub name: Arc<str>,
    /// The SHA-256 of its secret.
    pub digest: [u8; 32],
    /// Where it may: what begins with its namespace, or everything.
    pub scope: Scope,
    /// Whether its secret stands in documentation (SE-21).
    pub documented: bool,
}

impl fmt::Debug for LineToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LineToken({})", self.name)
    }
}

/// Secrets that stand in documentation.
const DOCUMENTED: &[&str] =
    &["sk_deploy_a1b2c3d4e5f6", "sk_backup_f6e5d4c3b2a1", "sk_admin_x9y8z7w6v5u4", "my secret"];

/// Reads the file; `strict` refuses one that others may read (ZT-39).
pub(super) fn read(
    path: &Path,
    strict: bool,
    rule_id_prefixes: &[String],
    warnings: &mut Vec<String>,
) -> Result<Vec<LineToken>, Error> {
    let failed = |source| Error::Read { what: "the auth file", path: path.to_owned(), source };
    // A pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file")));
    }
    let file = File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if about.len() > FILE_BYTES_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    if about.mode() & NOT_PRIVATE != 0 {
        let mode = about.mode() & 0o777;
        let problem = format!(
            "others than its owner may read or write it (mode {mode:03o}); run `chmod 600` on it"
        );
        if strict {
            return Err(wrong(path.display().to_string(), problem));
        }
        warnings.push(format!("the auth file `{}`: {problem}", path.display()));
    }
    let mut text = zeroize::Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    parse(&text, path, rule_id_prefixes, warnings)
}

/// Reads the file's text; `path` is for messages, which name the line and
/// never have a secret in them.
pub fn parse(
    text: &str,
    path: &Path,
    rule_id_prefixes: &[String],
    warnings: &mut Vec<String>,
) -> Result<Vec<LineToken>, Error> {
    let table = DeTable::parse(text).map_err(|error| source::syntax(path, text, &error))?;
    let table = table.get_ref();
    let at =
        |fault: Fault| wrong(format!("{}:{}", path.display(), line(text, fault.at)), fault.problem);
    if let Some(key) = table.keys().find(|key| key.get_ref() != "token") {
        let problem = format!("`{}` is unknown: only [token.NAME] is", shown(key.get_ref()));
        return Err(at(Fault::of(key, problem)));
    }
    let Some((key, entries)) = table.get_key_value("token") else {
        return Err(wrong(path.display().to_string(), EMPTY));
    };
    let entries = entries.get_ref().as_table();
    let entries =
        entries.ok_or_else(|| at(Fault::of(key, "`token` must be tables, [token.NAME]")))?;
    if entries.is_empty() {
        return Err(at(Fault::of(key, EMPTY)));
    }
    let mut secrets: HashMap<[u8; 32], Place<'_>> = HashMap::with_capacity(entries.len());
    let mut tokens = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let (token, secret, remarks) = token(name, entry, rule_id_prefixes).map_err(|fault| {
            let problem = format!("token `{}`: {}", shown(name.get_ref()), fault.problem);
            at(Fault { problem, ..fault })
        })?;
        warnings.extend(remarks.into_iter().map(|remark| {
            let name = shown(name.get_ref());
            format!("the auth file `{}`: token `{name}`: {remark}", path.display())
        }));
        let place = Place { at: secret, name: name.get_ref() };
        if let Some(other) = secrets.insert(token.digest, place) {
            let (first, second) = if other.at < place.at { (other, place) } else { (place, other) };
            let problem = format!(
                "token `{}` and token `{}` of line {} have the same secret",
                shown(second.name),
                shown(first.name),
                line(text, first.at)
            );
            return Err(at(Fault { at: second.at, problem }));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// What is wrong, and how far into the text.
struct Fault {
    at: usize,
    problem: String,
}

impl Fault {
    fn of<T>(place: &Spanned<T>, problem: impl Into<String>) -> Self {
        Self { at: place.span().start, problem: problem.into() }
    }
}

/// Where a token's secret stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    at: usize,
    name: &'a str,
}

/// The line, from 1.
fn line(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count().saturating_add(1)
}

/// One token, where its secret stands, and what is worth a warning about it.
fn token(
    name: &Spanned<DeString<'_>>,
    entry: &Spanned<DeValue<'_>>,
    rule_id_prefixes: &[String],
) -> Result<(LineToken, usize, Vec<&'static str>), Fault> {
    let called = name.get_ref();
    if called.is_empty() || called.len() > NAME_BYTES_MAX || called.chars().any(char::is_control) {
        let problem = format!("a name has 1 to {NAME_BYTES_MAX} bytes and no control characters");
        return Err(Fault::of(name, problem));
    }
    let entry = entry.get_ref().as_table().ok_or_else(|| Fault::of(name, "must be a table"))?;
    if let Some(key) = entry.keys().find(|key| !FIELDS.contains(&&**key.get_ref())) {
        let unknown = shown(key.get_ref());
        let problem = format!("`{unknown}` is unknown: only `secret` and `namespace` are");
        return Err(Fault::of(key, problem));
    }
    let field = |field: &str| {
        let missing = || Fault::of(name, format!("`{field}` is missing"));
        let value = entry.get(field).ok_or_else(missing)?;
        match value.get_ref().as_str() {
            Some("") => Err(Fault::of(value, format!("`{field}` is empty"))),
            Some(text) => Ok((value, text)),
            None => Err(Fault::of(value, format!("`{field}` must be a string"))),
        }
    };
    let ((place, secret), (within, namespace)) = (field("secret")?, field("namespace")?);
    check_secret(secret).map_err(|problem| Fault::of(place, problem))?;
    let mut remarks = Vec::new();
    if secret.split_once("${").is_some_and(|(_, rest)| rest.contains('}')) {
        remarks.push(
            "the secret has `${…}` in it and is taken as it stands: nothing is put in its place",
        );
    }
    if namespace != "*" && namespace.contains('*') {
        remarks.push("a `*` within a namespace is a letter as any other");
    }
    let token = LineToken {
        name: (&**called).into(),
        digest: Sha256::digest(secret.as_bytes()).into(),
        scope: scope(namespace, rule_id_prefixes).map_err(|problem| Fault::of(within, problem))?,
        documented: DOCUMENTED.contains(&secret),
    };
    Ok((token, place.span().start, remarks))
}

/// Whatever a line can carry is a secret (ZT-11).
fn check_secret(secret: &str) -> Result<(), String> {
    if secret.len() > SECRET_BYTES_MAX {
        return Err(format!(
            "`secret` has more than {SECRET_BYTES_MAX} bytes, which no line of the protocol carries"
        ));
    }
    if secret.contains('\n') || secret.trim().is_empty() {
        return Err("`secret` is blank or has a line end in it: no line carries it".to_owned());
    }
    Ok(())
}

fn scope(namespace: &str, rule_id_prefixes: &[String]) -> Result<Scope, String> {
    if namespace == "*" {
        return Ok(Scope::Everything);
    }
    if namespace.len() > IDENTIFIER_BYTES_MAX || namespace.chars().any(char::is_control) {
        return Err(format!(
            "`namespace` has at most {IDENTIFIER_BYTES_MAX} bytes and no control characters"
        ));
    }
    if let Some(prefix) = rule_id_prefixes.iter().find(|prefix| namespace.starts_with(*prefix)) {
        // Its own rules would be cut to what no longer begins with it.
        return Err(format!(
            "`namespace` begins with `{}`, which `controller.rule_id_prefixes` takes off the \
             names of rules",
            shown(prefix)
        ));
    }
    Ok(Scope::beginning_with(namespace))
}

/// Bounded, and in one line.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

fn wrong(place: String, problem: impl Into<String>) -> Error {
    Error::Invalid { key: place, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    const THREE: &str = "[token.deploy]\nsecret = \"sk_deploy_a1b2c3d4e5f6\"\nnamespace = \"deploy.\"\n\
         \n[token.backup]\nsecret = \"sk_backup_f6e5d4c3b2a1\"\nnamespace = \"backup.\"\n\
         \n[token.admin]\nsecret = \"sk_admin_x9y8z7w6v5u4\"\nnamespace = \"*\"\n";

    fn prefixes() -> Vec<String> {
        vec!["rule.".to_owned()]
    }

    fn parsed(text: &str) -> Result<(Vec<LineToken>, Vec<String>), String> {
        let mut warnings = Vec::new();
        parse(text, Path::new("/etc/auth.toml"), &prefixes(), &mut warnings)
            .map(|tokens| (tokens, warnings))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn zt_08_zt_12_tokens_have_a_secret_and_a_namespace() {
        let (tokens, warnings) = parsed(THREE).unwrap();
        let scopes: Vec<_> =
            tokens.iter().map(|token| (&*token.name, token.scope.to_strings().join(","))).collect();
        let expected = [("admin", "*"), ("backup", "backup."), ("deploy", "deploy.")];
        assert_eq!(scopes, expected.map(|(name, scope)| (name, scope.to_owned())));
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(tokens[2].digest, <[u8; 32]>::from(Sha256::digest("sk_deploy_a1b2c3d4e5f6")));
        assert!(!format!("{tokens:?}").contains("sk_"));
    }

    #[test]
    fn zt_13_ten_thousand_tokens_are_read() {
        use std::fmt::Write as _;
        let mut text = String::new();
        for number in 0..10_000 {
            let _ = writeln!(
                text,
                "[token.t{number}]\nsecret = \"s-{number}\"\nnamespace = \"n{number}.\""
            );
        }
        assert_eq!(parsed(&text).unwrap().0.len(), 10_000);
    }

    #[test]
    fn zt_14_to_17_what_is_wrong_is_refused_and_no_secret_is_told() {
        let twice = "[token.one]\nsecret = \"s3cret-x\" # of one\nnamespace = \"a\"\n\
                     [token.two]\nsecret = \"s3cret-x\" # of two\nnamespace = \"b\"\n";
        // Neither the names' order nor what a table is written as matters.
        let order = "[token.b]\nsecret = \"s3cret-x\"\nnamespace = \"b\"\n\
                     [token]\na = { secret = \"s3cret-x\", namespace = \"a\" }\n";
        let secret = "[token.one]\nsecret = \"s3cret-x\"\n";
        let long = format!("s3cret-x{}", "y".repeat(SECRET_BYTES_MAX));
        for (text, words) in [
            (twice.to_owned(), &[":5`", "`two`", "`one` of line 2 ", "same secret"][..]),
            (order.to_owned(), &[":5`", "`a`", "`b` of line 2 ", "same secret"]),
            (format!("{secret}namespace = \"\"\n"), &[":3`", "`one`", "`namespace` is empty"]),
            (secret.to_owned(), &[":1`", "`one`", "`namespace` is missing"]),
            (format!("{}{secret}", "# a\n".repeat(9)), &[":10`", "`namespace` is missing"]),
            ("token.one.secret = \"s3cret-x\"".to_owned(), &[":1`", "`namespace` is missing"]),
            ("[token.one]\nnamespace = \"a\"\n".to_owned(), &[":1`", "`secret` is missing"]),
            ("[token.one]\nnamespace = \"a\"\nsecret = \"\"".to_owned(), &[":3`", "is empty"]),
            ("[token.one]\nnamespace = \"a\"\nsecret = \"  \"".to_owned(), &[":3`", "blank"]),
            ("[token.one]\nnamespace = \"a\"\nsecret = \"a\\nb\"".to_owned(), &["line end"]),
            ("[token.one]\nnamespace = \"a\"\nsecret = 5".to_owned(), &[":3`", "be a string"]),
            (format!("{secret}namespace = \"a\"\nadmin = true\n"), &[":4`", "`admin` is unknown"]),
            (format!("{secret}namespace = \"a\\u0000\"\n"), &[":3`", "control characters"]),
            (format!("{secret}namespace = \"rule.a.\"\n"), &[":3`", "`rule.`", "rule_id_prefixes"]),
            (format!("{secret}namespace = \"a\"\n[tokens.x]\n"), &[":4`", "`tokens` is unknown"]),
            (format!("[token.one]\nnamespace = \"a\"\nsecret = \"{long}\"\n"), &[":3`", "bytes"]),
            ("[token.\"\"]\nsecret = \"s3cret-x\"\nnamespace = \"a\"".to_owned(), &["a name has"]),
            ("token = \"s3cret-x\"".to_owned(), &[":1`", "must be tables"]),
            ("[token]\none = \"s3cret-x\"".to_owned(), &[":2`", "must be a table"]),
            (String::new(), &["auth.toml`", "holds no token"]),
            ("# only this\n[token]\n".to_owned(), &[":2`", "holds no token"]),
            (format!("{secret}{secret}"), &["auth.toml:3"]),
            (format!("{secret}secret = \"s3cret-y\"\n"), &["auth.toml:3"]),
            ("[token.one]\nsecret = \"s3cret-x\n".to_owned(), &["auth.toml:2"]),
            ("[token.one]\nsecret = s3cret-x\n".to_owned(), &["auth.toml:2"]),
        ] {
            let said = parsed(&text).unwrap_err();
            assert!(said.contains("/etc/auth.toml"), "{said}");
            for word in words {
                assert!(said.contains(word), "{word} not in {said}");
            }
            assert!(!said.contains("s3cret"), "{said}");
        }
        let most = "y".repeat(SECRET_BYTES_MAX);
        assert!(parsed(&format!("[token.a]\nsecret = \"{most}\"\nnamespace = \"a\"")).is_ok());
    }

    #[test]
    fn zt_42_a_variable_is_a_literal_and_worth_a_warning() {
        let text = "[token.ci]\nsecret = \"${ZTICK_TOKEN}\"\nnamespace = \"ci.*\"\n";
        let (tokens, warnings) = parsed(text).unwrap();
        assert_eq!(tokens[0].digest, <[u8; 32]>::from(Sha256::digest("${ZTICK_TOKEN}")));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("`ci`") && warnings[0].contains("as it stands"));
        assert!(!warnings[0].contains("ZTICK_TOKEN"));
    }

    #[test]
    fn zt_39_zt_44_the_file_must_be_there_and_should_be_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.toml");
        let read = |strict| {
            let mut warnings = Vec::new();
            read(&path, strict, &prefixes(), &mut warnings)
                .map(|tokens| (tokens.len(), warnings.len()))
                .map_err(|error| error.to_string())
        };
        assert!(read(false).unwrap_err().contains("the auth file"));
        fs::write(&path, THREE).unwrap();
        for (mode, warned) in [(0o600, 0), (0o400, 0), (0o640, 1), (0o604, 1), (0o622, 1)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(false), Ok((3, warned)), "{mode:o}");
            assert_eq!(read(true).is_err(), warned == 1, "{mode:o}");
        }
        assert!(read(true).unwrap_err().contains("chmod 600"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(read(false).unwrap_err().contains("not a file"));
    }
}
