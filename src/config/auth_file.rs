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
use toml::{Table, Value};

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
            return Err(wrong(path, problem));
        }
        warnings.push(format!("the auth file `{}`: {problem}", path.display()));
    }
    let mut text = zeroize::Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    parse(&text, path, rule_id_prefixes, warnings)
}

/// Reads the file's text; `path` is for messages, none of which ever has a
/// secret in it.
pub fn parse(
    text: &str,
    path: &Path,
    rule_id_prefixes: &[String],
    warnings: &mut Vec<String>,
) -> Result<Vec<LineToken>, Error> {
    let table: Table =
        text.parse().map_err(|error: toml::de::Error| source::syntax(path, text, &error))?;
    if let Some(key) = table.keys().find(|key| *key != "token") {
        return Err(wrong(path, format!("`{}` is unknown: only [token.NAME] is", shown(key))));
    }
    let entries = match table.get("token") {
        Some(Value::Table(entries)) if !entries.is_empty() => entries,
        Some(Value::Table(_)) | None => {
            return Err(wrong(
                path,
                "it holds no token; take `controller.auth_file` out if none is wanted",
            ));
        }
        Some(_) => return Err(wrong(path, "`token` must be tables, [token.NAME]")),
    };
    let mut names: HashMap<[u8; 32], &str> = HashMap::with_capacity(entries.len());
    let mut tokens = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let refused = |problem: String| wrong(path, format!("token `{}`: {problem}", shown(name)));
        let (token, remarks) = token(name, entry, rule_id_prefixes).map_err(refused)?;
        warnings.extend(remarks.into_iter().map(|remark| {
            format!("the auth file `{}`: token `{}`: {remark}", path.display(), shown(name))
        }));
        if let Some(other) = names.insert(token.digest, name) {
            return Err(wrong(
                path,
                format!(
                    "token `{}` and token `{}` have the same secret",
                    shown(other),
                    shown(name)
                ),
            ));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// One token, and what is worth a warning about it.
fn token(
    name: &str,
    entry: &Value,
    rule_id_prefixes: &[String],
) -> Result<(LineToken, Vec<&'static str>), String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(format!("a name has 1 to {NAME_BYTES_MAX} bytes and no control characters"));
    }
    let Value::Table(entry) = entry else { return Err("must be a table".to_owned()) };
    if let Some(key) = entry.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        return Err(format!("`{}` is unknown: only `secret` and `namespace` are", shown(key)));
    }
    let field = |field: &str| match entry.get(field) {
        Some(Value::String(text)) if text.is_empty() => Err(format!("`{field}` is empty")),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(format!("`{field}` must be a string")),
        None => Err(format!("`{field}` is missing")),
    };
    let (secret, namespace) = (field("secret")?, field("namespace")?);
    check_secret(secret)?;
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
        name: name.into(),
        digest: Sha256::digest(secret.as_bytes()).into(),
        scope: scope(namespace, rule_id_prefixes)?,
        documented: DOCUMENTED.contains(&secret),
    };
    Ok((token, remarks))
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

fn wrong(path: &Path, problem: impl Into<String>) -> Error {
    Error::Invalid { key: path.display().to_string(), problem: problem.into() }
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
        let secret = "[token.one]\nsecret = \"s3cret-x\"\n";
        let long = format!("s3cret-x{}", "y".repeat(SECRET_BYTES_MAX));
        for (text, words) in [
            (twice.to_owned(), &["`one`", "`two`", "same secret"][..]),
            (format!("{secret}namespace = \"\"\n"), &["`one`", "`namespace` is empty"]),
            (secret.to_owned(), &["`one`", "`namespace` is missing"]),
            ("[token.one]\nnamespace = \"a\"\n".to_owned(), &["`one`", "`secret` is missing"]),
            ("[token.one]\nnamespace = \"a\"\nsecret = \"\"".to_owned(), &["`secret` is empty"]),
            ("[token.one]\nnamespace = \"a\"\nsecret = \"  \"".to_owned(), &["blank"]),
            ("[token.one]\nnamespace = \"a\"\nsecret = \"a\\nb\"".to_owned(), &["line end"]),
            ("[token.one]\nnamespace = \"a\"\nsecret = 5".to_owned(), &["must be a string"]),
            (format!("{secret}namespace = \"a\"\nadmin = true\n"), &["`admin` is unknown"]),
            (format!("{secret}namespace = \"a\\u0000\"\n"), &["control characters"]),
            (format!("{secret}namespace = \"rule.deploy.\"\n"), &["`rule.`", "rule_id_prefixes"]),
            (format!("{secret}namespace = \"a\"\n[tokens.x]\n"), &["`tokens` is unknown"]),
            (format!("[token.one]\nnamespace = \"a\"\nsecret = \"{long}\"\n"), &["bytes"]),
            ("[token.\"\"]\nsecret = \"s3cret-x\"\nnamespace = \"a\"".to_owned(), &["a name has"]),
            ("token = \"s3cret-x\"".to_owned(), &["must be tables"]),
            ("[token]\none = \"s3cret-x\"".to_owned(), &["must be a table"]),
            (String::new(), &["holds no token"]),
            ("# only this\n[token]\n".to_owned(), &["holds no token"]),
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
