//! The text of a token file: what each line is worth, and the text with a
//! line added, replaced or removed. Whatever is not changed stays byte for
//! byte, also what cannot be read.
//!
//! Not here: reading and writing the file.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    slice::from_ref,
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use thiserror::Error as ThisError;
use zeroize::Zeroizing;

use crate::domain::{PermissionSet, Timestamp, secret};

/// The longest token of another form than ours.
const TOKEN_BYTES_MAX: usize = 1024;
/// The longest name.
const NAME_BYTES_MAX: usize = 256;
/// How secrets of ours begin.
const OURS: &str = "bwk_";

/// What a line grants; the token itself is not kept.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenLine {
    /// The public id: that of a token of ours, else twelve hex digits of the
    /// digest (SE-37).
    pub id: Arc<str>,
    /// The SHA-256 of the token.
    pub digest: [u8; 32],
    /// The permissions as they are written; `*` for a legacy line.
    pub scopes: Vec<String>,
    /// What it is called.
    pub name: Option<String>,
    /// When it was minted, where that is written.
    pub created_at: Option<Timestamp>,
}

impl fmt::Debug for TokenLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenLine({} {:?})", self.id, self.scopes)
    }
}

/// Why a line counts for nothing. Never shows what stands there: it may be a
/// secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ThisError)]
pub enum Fault {
    /// The last line has no end: it may be torn (SE-35).
    #[error("the last line does not end with a line feed and may be torn")]
    Unterminated,
    /// Not text.
    #[error("it is not UTF-8")]
    Encoding,
    /// A control character besides TAB.
    #[error("it has a control character")]
    Control,
    /// More columns than are known; one of them may restrict it (SE-34).
    #[error("it has a column that is not known")]
    Columns,
    /// The token is empty, too long, or could not be sent.
    #[error("its token is empty, longer than 1024 bytes, or has a letter that cannot be sent")]
    Token,
    /// Begins as a token of ours and is none.
    #[error("its token begins with bwk_ and is damaged")]
    Damaged,
    /// A token of ours without scopes, or an empty list.
    #[error("it names no scopes")]
    NoScopes,
    /// A scope is no permission.
    #[error("one of its scopes is no permission")]
    Scope,
    /// The name is blank or too long.
    #[error("its name is blank or longer than 256 bytes")]
    Name,
    /// The last column is no point in time.
    #[error("its time is not of the form of RFC 3339")]
    Time,
    /// The token or its public id stands further up already.
    #[error("its token stands in line {0} already")]
    Repeats(usize),
}

/// What a line is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    /// A comment, or blank.
    Aside,
    Token(TokenLine),
    Malformed(Fault),
}

struct Line<'a> {
    /// With its line feed.
    bytes: &'a [u8],
    /// That of the first column, where this could be a token at all.
    id: Option<Arc<str>>,
    content: Content,
}

/// A token file that was read.
pub struct Document<'a> {
    lines: Vec<Line<'a>>,
}

impl fmt::Debug for Document<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({} lines)", self.lines.len())
    }
}

/// Reads a token file. Never fails: a line that cannot be read counts for
/// nothing. `foreign` are the permissions that configuration declares.
#[must_use]
pub fn parse<'a>(bytes: &'a [u8], foreign: &BTreeSet<Arc<str>>) -> Document<'a> {
    let mut lines = Vec::new();
    let (mut digests, mut ids) = (HashMap::new(), HashMap::new());
    for (bytes, number) in bytes.split_inclusive(|byte| *byte == b'\n').zip(1_usize..) {
        let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let first = text.split(|byte| *byte == b'\t').next().unwrap_or_default();
        let digest: [u8; 32] = Sha256::digest(first).into();
        let id = str::from_utf8(first).ok().and_then(|first| public_id(first, &digest).ok());
        let content = if is_aside(text) {
            Content::Aside
        } else if text.len() == bytes.len() {
            Content::Malformed(Fault::Unterminated)
        } else {
            let token = token(text, digest, foreign).and_then(|token| {
                let digest = *digests.entry(token.digest).or_insert(number);
                let id = *ids.entry(Arc::clone(&token.id)).or_insert(number);
                match digest.min(id) {
                    before if before < number => Err(Fault::Repeats(before)),
                    _ => Ok(token),
                }
            });
            token.map_or_else(Content::Malformed, Content::Token)
        };
        lines.push(Line { bytes, id, content });
    }
    Document { lines }
}

/// The line of a new token; the time is to the microsecond.
#[must_use]
pub fn line(
    token: &str,
    scopes: &[String],
    name: Option<&str>,
    created_at: Timestamp,
) -> Zeroizing<Vec<u8>> {
    let time = jiff::Timestamp::from_microsecond(created_at.micros()).unwrap_or_default();
    let rest = format!("\t{}\t{}\t{time}\n", scopes.join(","), name.unwrap_or_default());
    // Never grows, which would leave a copy of the token behind.
    let mut line = Zeroizing::new(Vec::with_capacity(token.len() + rest.len()));
    line.extend_from_slice(token.as_bytes());
    line.extend_from_slice(rest.as_bytes());
    line
}

impl<'a> Document<'a> {
    /// The tokens that count, in the order of their lines.
    pub fn tokens(&self) -> impl Iterator<Item = &TokenLine> {
        self.lines.iter().filter_map(|line| match &line.content {
            Content::Token(token) => Some(token),
            Content::Aside | Content::Malformed(_) => None,
        })
    }

    /// The lines that count for nothing, each by its number.
    pub fn faults(&self) -> impl Iterator<Item = (usize, Fault)> {
        self.lines.iter().zip(1..).filter_map(|(line, number)| match line.content {
            Content::Malformed(fault) => Some((number, fault)),
            Content::Aside | Content::Token(_) => None,
        })
    }

    /// The text again, byte for byte.
    #[must_use]
    pub fn serialise(&self) -> Zeroizing<Vec<u8>> {
        joined(self.lines.iter().map(|line| line.bytes))
    }

    /// The text with one line more. A last line without an end stays the
    /// last: an end would make it count.
    #[must_use]
    pub fn with(&self, new: &[u8]) -> Zeroizing<Vec<u8>> {
        let torn = self.lines.last().is_some_and(|line| !line.bytes.ends_with(b"\n"));
        let (whole, tail) = self.lines.split_at(self.lines.len() - usize::from(torn));
        let bytes = |line: &Line<'a>| line.bytes;
        let tail: Vec<&[u8]> = tail.iter().map(bytes).collect();
        joined(whole.iter().map(bytes).chain([new]).chain(tail))
    }

    /// The text without the tokens of these ids, wherever they stand, also
    /// where they count for nothing now: what is left makes none of them count
    /// again. None when none of them is there.
    #[must_use]
    pub fn without(&self, ids: &[Arc<str>]) -> Option<Zeroizing<Vec<u8>>> {
        let gone: Vec<Arc<str>> = self
            .tokens()
            .filter(|token| ids.contains(&token.id))
            .map(|token| Arc::clone(&token.id))
            .collect();
        let stays = |line: &&Line<'a>| !line.names_any(&gone);
        (!gone.is_empty()).then(|| joined(self.lines.iter().filter(stays).map(|line| line.bytes)))
    }

    /// The text with another line in the place of a token; none when that is
    /// not there.
    #[must_use]
    pub fn replaced(&self, id: &str, new: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let old = self.tokens().find(|token| *token.id == *id)?;
        let lines = self.lines.iter().filter_map(|line| match &line.content {
            Content::Token(token) if token == old => Some(new),
            Content::Aside | Content::Token(_) | Content::Malformed(_) => {
                (!line.names_any(from_ref(&old.id))).then_some(line.bytes)
            }
        });
        // Twice: how long it gets is known before a secret is copied.
        let lines: Vec<&[u8]> = lines.collect();
        Some(joined(lines.iter().copied()))
    }
}

impl Line<'_> {
    /// Whether the line holds one of these tokens, readable or not.
    fn names_any(&self, ids: &[Arc<str>]) -> bool {
        self.content != Content::Aside && self.id.as_ref().is_some_and(|id| ids.contains(id))
    }
}

fn joined<'a>(lines: impl Iterator<Item = &'a [u8]> + Clone) -> Zeroizing<Vec<u8>> {
    let length = lines.clone().map(<[u8]>::len).sum();
    let mut text = Zeroizing::new(Vec::with_capacity(length));
    for line in lines {
        text.extend_from_slice(line);
    }
    text
}

fn is_aside(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    line.is_empty() || line.starts_with(b"#")
}

/// What a whole line without its line feed grants.
fn token(line: &[u8], digest: [u8; 32], foreign: &BTreeSet<Arc<str>>) -> Result<TokenLine, Fault> {
    let line = str::from_utf8(line).map_err(|_| Fault::Encoding)?;
    if line.chars().any(|letter| letter.is_control() && letter != '\t') {
        return Err(Fault::Control);
    }
    let mut columns = line.split('\t');
    let token = columns.next().unwrap_or_default();
    let (scopes, name, time) = (columns.next(), columns.next(), columns.next());
    if columns.next().is_some() {
        return Err(Fault::Columns);
    }
    let id = public_id(token, &digest)?;
    let scopes = match scopes {
        // A legacy line; SE-35: ours never was one.
        None if token.starts_with(OURS) => return Err(Fault::NoScopes),
        None => vec!["*".to_owned()],
        Some("") => return Err(Fault::NoScopes),
        Some(scopes) => scopes.split(',').map(str::to_owned).collect(),
    };
    let mut permissions = PermissionSet::empty();
    if !scopes.iter().all(|scope| permissions.add(scope, foreign)) {
        return Err(Fault::Scope);
    }
    let name = name.filter(|name| !name.is_empty());
    if name.is_some_and(|name| name.trim().is_empty() || name.len() > NAME_BYTES_MAX) {
        return Err(Fault::Name);
    }
    let created_at = time.map(|time| time.parse::<jiff::Timestamp>().map_err(|_| Fault::Time));
    let created_at = created_at.transpose()?.map(|at| Timestamp::from_micros(at.as_microsecond()));
    Ok(TokenLine { id, digest, scopes, name: name.map(str::to_owned), created_at })
}

fn public_id(token: &str, digest: &[u8; 32]) -> Result<Arc<str>, Fault> {
    // As with keys of the configuration: a comma would read as two (SE-14).
    let sendable = |byte: u8| byte.is_ascii_graphic() && byte != b',';
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX || !token.bytes().all(sendable) {
        return Err(Fault::Token);
    }
    match secret::id(token) {
        Some(id) => Ok(id.into()),
        None if token.starts_with(OURS) => Err(Fault::Damaged),
        None => Ok(secret::id_of_stranger(digest)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::secret::Secret;

    const LEGACY: &str = "legacy-token-of-long-ago";

    fn foreign() -> BTreeSet<Arc<str>> {
        BTreeSet::from([Arc::from("bundles:read")])
    }

    fn ours(number: u64) -> String {
        Secret::new(number, &[7; 32]).expose().to_owned()
    }

    /// The only line's token, or why it counts for nothing.
    fn only(text: &str) -> Result<TokenLine, Fault> {
        let foreign = foreign();
        let document = parse(text.as_bytes(), &foreign);
        assert_eq!(*document.serialise(), text.as_bytes());
        match document.faults().next() {
            Some((_, fault)) => Err(fault),
            None => Ok(document.tokens().next().unwrap().clone()),
        }
    }

    #[test]
    fn dk_01_two_three_and_four_columns() {
        let token = ours(1);
        for (rest, scopes, name, time) in [
            ("tasks:read", vec!["tasks:read"], None, None),
            ("tasks:read,bundles:read\tci", vec!["tasks:read", "bundles:read"], Some("ci"), None),
            ("tasks:*\tthe CI\t1970-01-01T00:00:02Z", vec!["tasks:*"], Some("the CI"), Some(2)),
            ("*\t\t1970-01-01T01:00:02.5+01:00", vec!["*"], None, Some(2)),
        ] {
            let read = only(&format!("{token}\t{rest}\n")).unwrap();
            assert_eq!(&*read.id, "000000000001");
            assert_eq!(
                (read.scopes, read.name.as_deref()),
                (scopes.into_iter().map(str::to_owned).collect(), name)
            );
            assert_eq!(read.created_at.map(Timestamp::seconds), time);
        }
    }

    #[test]
    fn dk_02_se_37_a_legacy_line_is_everything_under_an_id_that_tells_nothing() {
        let read = only(&format!("{LEGACY}\n")).unwrap();
        assert_eq!(read.scopes, ["*"]);
        assert_eq!(read.digest, <[u8; 32]>::from(Sha256::digest(LEGACY)));
        let digits =
            read.digest.iter().take(6).fold(String::new(), |all, b| format!("{all}{b:02x}"));
        assert_eq!(*read.id, *digits);
        assert!(!format!("{read:?}").contains(LEGACY));
    }

    #[test]
    fn se_34_se_35_what_is_malformed_is_never_broader() {
        let token = ours(1);
        let long = "x".repeat(1025);
        for (text, fault) in [
            (format!("{token}\n"), Fault::NoScopes),
            (format!("{token}\t\n"), Fault::NoScopes),
            (format!("{LEGACY}\t\n"), Fault::NoScopes),
            (format!("{LEGACY}\t\tname\n"), Fault::NoScopes),
            (format!("{}\t*\n", &token[..40]), Fault::Damaged),
            ("bwk_\n".to_owned(), Fault::Damaged),
            (LEGACY.to_owned(), Fault::Unterminated),
            (format!("{token}\ttasks:read"), Fault::Unterminated),
            (format!("{token}\ttasks:read\tci\t1970-01-01T00:00:00Z\tshop\n"), Fault::Columns),
            (format!("{token}\ttasks:read\t\t\t\n"), Fault::Columns),
            (format!("{token}\ttasks:read\tci\tyesterday\n"), Fault::Time),
            (format!("{token}\ttasks:read\tci\t\n"), Fault::Time),
            (format!("{token}\ttasks:read\t  \n"), Fault::Name),
            (format!("{token}\ttasks:read\t{}\n", "n".repeat(257)), Fault::Name),
            (format!("{token}\ttasks:read\ta\u{1b}b\n"), Fault::Control),
            (format!("{token}\ttasks:read\u{0}\n"), Fault::Control),
            (format!("{LEGACY}\r\n"), Fault::Control),
            (format!("{token}\ttasks:read,\n"), Fault::Scope),
            (format!("{token}\ttasks:read, tasks:list\n"), Fault::Scope),
            (format!("{token}\ttasks:read,auth:tokens:mint\n"), Fault::Scope),
            (format!("{token}\tnothing:known\n"), Fault::Scope),
            ("two words\n".to_owned(), Fault::Token),
            ("a,b\n".to_owned(), Fault::Token),
            ("\ttasks:read\n".to_owned(), Fault::Token),
            (format!("{long}\n"), Fault::Token),
        ] {
            assert_eq!(only(&text), Err(fault), "{text:?}");
        }
        let bytes = b"\xff\xfe\ttasks:read\n";
        let foreign = foreign();
        let document = parse(bytes, &foreign);
        assert_eq!(document.faults().collect::<Vec<_>>(), [(1, Fault::Encoding)]);
        assert_eq!(*document.serialise(), bytes);
    }

    #[test]
    fn dk_03_04_all_else_stays_byte_for_byte() {
        let (first, second, third) = (ours(1), ours(2), ours(3));
        let text = format!(
            "# tokens\n\n  \t\n{first}\ttasks:read\nbad line\n{second}\ttasks:list\n\t# aside\n\
             {first}\ttasks:list\n{first}\t?\ntorn"
        );
        let foreign = foreign();
        let document = parse(text.as_bytes(), &foreign);
        let faults = [
            (5, Fault::Token),
            (8, Fault::Repeats(4)),
            (9, Fault::Scope),
            (10, Fault::Unterminated),
        ];
        assert_eq!(document.faults().collect::<Vec<_>>(), faults);
        assert_eq!(*document.serialise(), text.as_bytes());
        let new = line(&third, &["tasks:read".to_owned()], Some("ci"), Timestamp::default());
        let added = document.with(&new);
        let new = String::from_utf8(new.to_vec()).unwrap();
        assert_eq!(new, format!("{third}\ttasks:read\tci\t1970-01-01T00:00:00Z\n"));
        assert_eq!(*added, text.replace("torn", &format!("{new}torn")).as_bytes());
        // Gone wherever it stands, so that nothing makes it count again.
        let removed = document.without(&["000000000001".into()]).unwrap();
        let left = format!("# tokens\n\n  \t\nbad line\n{second}\ttasks:list\n\t# aside\ntorn");
        assert_eq!(*removed, left.as_bytes());
        assert!(document.without(&["000000000009".into()]).is_none());
        // A public id belongs to one token: its namesake, which counted for
        // nothing, does not step into its place.
        let namesake = Secret::new(1, &[8; 32]);
        let pair = format!("{first}\ttasks:read\n{}\ttasks:list\n", namesake.expose());
        let pair = parse(pair.as_bytes(), &foreign);
        assert_eq!(pair.faults().collect::<Vec<_>>(), [(2, Fault::Repeats(1))]);
        assert!(pair.without(&["000000000001".into()]).unwrap().is_empty());
        assert_eq!(*pair.replaced("000000000001", new.as_bytes()).unwrap(), new.as_bytes());
        let replaced = document.replaced("000000000002", new.as_bytes()).unwrap();
        assert_eq!(*replaced, text.replace(&format!("{second}\ttasks:list\n"), &new).as_bytes());
        assert!(document.replaced("000000000009", b"").is_none());
    }

    #[test]
    fn a_public_id_counts_once() {
        let other = Secret::new(1, &[8; 32]);
        let text = format!("{}\ttasks:read\n{}\ttasks:list\n", ours(1), other.expose());
        let foreign = foreign();
        let document = parse(text.as_bytes(), &foreign);
        assert_eq!(document.faults().collect::<Vec<_>>(), [(2, Fault::Repeats(1))]);
    }

    proptest! {
        #[test]
        fn dk_03_05_any_bytes_come_back_the_same(bytes: Vec<u8>, lines in "(?s)[ab*#:,_\t\n\r]{0,60}") {
            for bytes in [bytes, lines.into_bytes()] {
                let foreign = foreign();
                let document = parse(&bytes, &foreign);
                let text = document.serialise();
                prop_assert_eq!(&*text, &bytes);
                let again = parse(&text, &foreign);
                prop_assert!(again.tokens().eq(document.tokens()));
                prop_assert_eq!(&*again.serialise(), &*text);
                // What is added counts, and changes nothing else.
                let new = line(&ours(1), &["tasks:read".to_owned()], None, Timestamp::default());
                let with = document.with(&new);
                let with = parse(&with, &foreign);
                prop_assert_eq!(with.tokens().count(), document.tokens().count() + 1);
                let without = with.without(&["000000000001".into()]).unwrap();
                prop_assert_eq!(&*without, &bytes);
            }
        }

        #[test]
        fn dk_01_05_what_is_written_is_read(
            number: u64, bytes: [u8; 32], name in proptest::option::of("[^\\pC\\s][^\\pC]{0,20}"),
            micros in 0..4_000_000_000_000_000_i64
        ) {
            let secret = Secret::new(number, &bytes);
            let scopes = vec!["tasks:read".to_owned(), "bundles:*".to_owned()];
            let at = Timestamp::from_micros(micros);
            let text = line(secret.expose(), &scopes, name.as_deref(), at);
            let foreign = foreign();
            let document = parse(&text, &foreign);
            let read: Vec<_> = document.tokens().cloned().collect();
            let (id, digest) = (secret.id(), secret.digest());
            let wanted = TokenLine { id, digest, scopes, name, created_at: Some(at) };
            prop_assert_eq!(read, vec![wanted]);
        }
    }
}
