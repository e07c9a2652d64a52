//! Namespaces, areas of them, and the scopes that grants hold (SE-06, SE-07).

use std::{fmt, sync::Arc};

use thiserror::Error;

/// The longest namespace, in bytes.
pub const NAMESPACE_BYTES_MAX: usize = 128;

/// Why a text is no namespace, area or scope.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// Not of the grammar.
    #[error(
        "`{0}` is not a namespace: segments of ASCII letters, digits, `_` and `-`, each beginning \
         with a letter or a digit, joined by dots, at most 128 bytes"
    )]
    Namespace(String),
    /// Not a scope prefix.
    #[error("`{0}` is not a scope: a namespace, a namespace with a dot behind it, or `*` alone")]
    Scope(String),
}

/// One tenant's room: segments `[A-Za-z0-9][A-Za-z0-9_-]*` joined by dots,
/// ASCII, at most 128 bytes, case-sensitive (SE-07).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Checks and takes a name.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.len() <= NAMESPACE_BYTES_MAX && text.split('.').all(is_segment) {
            Ok(Self(text.into()))
        } else {
            Err(Error::Namespace(excerpt(text)))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_segment(segment: &str) -> bool {
    let mut bytes = segment.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// Bounded, so that an error never carries a whole body back.
fn excerpt(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

/// Where a worker works: one namespace exactly, or everything below a prefix
/// that ends in a dot (SE-18).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    /// This namespace alone.
    Exactly(Namespace),
    /// The namespaces that begin with this one and a dot.
    Below(Namespace),
}

impl Area {
    /// `shop` is that namespace alone, `shop.` what is below it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        match text.strip_suffix('.') {
            Some(parent) => Namespace::parse(parent).map(Self::Below),
            None => Namespace::parse(text).map(Self::Exactly),
        }
    }

    /// Whether a namespace lies in it.
    #[must_use]
    pub fn contains(&self, namespace: &Namespace) -> bool {
        match self {
            Self::Exactly(this) => this == namespace,
            Self::Below(parent) => is_below(namespace.as_str(), parent.as_str()),
        }
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(namespace) => write!(f, "{namespace}"),
            Self::Below(namespace) => write!(f, "{namespace}."),
        }
    }
}

fn is_below(name: &str, parent: &str) -> bool {
    name.strip_prefix(parent).is_some_and(|rest| rest.starts_with('.'))
}

/// One prefix of a scope.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    /// `deploy` covers `deploy` and `deploy.x`, never `deployX`.
    Tree(Namespace),
    /// `deploy.` covers `deploy.x` and not `deploy`.
    Below(Namespace),
    /// `deploy` alone: the token of a step has it. Nothing that is parsed here
    /// becomes one.
    Exactly(Namespace),
    /// What begins with this text, whatever follows: the tokens of the line
    /// protocol have it (ZT-19). Nothing that is parsed here becomes one.
    Text(Arc<str>),
}

impl Prefix {
    /// Of names and of the scheduler's identifiers, which are their own
    /// namespace.
    fn contains(&self, name: &str) -> bool {
        match self {
            Self::Tree(root) => name == root.as_str() || is_below(name, root.as_str()),
            Self::Below(root) => is_below(name, root.as_str()),
            Self::Exactly(root) => name == root.as_str(),
            Self::Text(text) => name.starts_with(&**text),
        }
    }

    /// Whether every text that begins with this one is in it (SE-62).
    fn contains_all_of(&self, start: &str) -> bool {
        match self {
            Self::Tree(root) | Self::Below(root) => is_below(start, root.as_str()),
            Self::Exactly(_) => false,
            Self::Text(text) => start.starts_with(&**text),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tree(root) | Self::Exactly(root) => write!(f, "{root}"),
            Self::Below(root) => write!(f, "{root}."),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Where a grant holds: everything, or under some prefixes. No prefix is
/// nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `*`.
    Everything,
    /// Under each of these.
    Under(Vec<Prefix>),
}

/// A half-open range of namespace names, compared byte by byte.
pub type NameRange = (String, String);

impl Scope {
    /// The most places that one request may name.
    pub const PLACES_MAX: usize = 100;
    /// Nowhere.
    pub const NOWHERE: Self = Self::Under(Vec::new());

    /// One namespace and nothing below it.
    #[must_use]
    pub fn exactly(namespace: &Namespace) -> Self {
        Self::Under(vec![Prefix::Exactly(namespace.clone())])
    }

    /// Parses prefixes; `*` is special only as a whole string. An empty list
    /// is nowhere.
    pub fn parse<S: AsRef<str>>(prefixes: &[S]) -> Result<Self, Error> {
        let mut under = Vec::with_capacity(prefixes.len());
        let mut everything = false;
        for text in prefixes {
            let text = text.as_ref();
            if text == "*" {
                everything = true;
                continue;
            }
            let refused = |_| Error::Scope(excerpt(text));
            under.push(match text.strip_suffix('.') {
                Some(root) => Prefix::Below(Namespace::parse(root).map_err(refused)?),
                None => Prefix::Tree(Namespace::parse(text).map_err(refused)?),
            });
        }
        Ok(if everything { Self::Everything } else { Self::Under(under) })
    }

    /// What begins with a text, as the tokens of the line protocol say it.
    #[must_use]
    pub fn beginning_with(text: &str) -> Self {
        Self::Under(vec![Prefix::Text(text.into())])
    }

    /// Exactly one area.
    #[must_use]
    pub fn contains(&self, namespace: &Namespace) -> bool {
        self.contains_text(namespace.as_str())
    }

    /// Whether one of the scheduler's identifiers lies in it; its grammar is
    /// wider than a namespace's.
    #[must_use]
    pub fn contains_text(&self, identifier: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Under(prefixes) => prefixes.iter().any(|prefix| prefix.contains(identifier)),
        }
    }

    /// Whether every identifier that begins with a text lies in it: `deploy`
    /// holds all of `deploy.`, and not of `deploy` (SE-62).
    #[must_use]
    pub fn contains_all_of(&self, start: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Under(prefixes) => prefixes.iter().any(|prefix| prefix.contains_all_of(start)),
        }
    }

    /// Whether every namespace of an area lies in the scope.
    #[must_use]
    pub fn contains_area(&self, area: &Area) -> bool {
        match (self, area) {
            (Self::Everything, _) => true,
            (Self::Under(_), Area::Exactly(namespace)) => self.contains(namespace),
            (Self::Under(prefixes), Area::Below(parent)) => {
                let below = Prefix::Below(parent.clone());
                prefixes.iter().any(|prefix| covers(prefix, &below))
            }
        }
    }

    /// The scope as ranges of names for SQL; `None` is everything, an empty
    /// list nowhere. `/` is the byte after `.`.
    #[must_use]
    pub fn ranges(&self) -> Option<Vec<NameRange>> {
        let Self::Under(prefixes) = self else { return None };
        let mut ranges = Vec::new();
        for prefix in prefixes {
            let root = match prefix {
                Prefix::Tree(root) => {
                    // Nothing sorts between a name and itself with a NUL.
                    ranges.push((root.to_string(), format!("{root}\0")));
                    root
                }
                Prefix::Exactly(root) => {
                    ranges.push((root.to_string(), format!("{root}\0")));
                    continue;
                }
                Prefix::Below(root) => root,
                Prefix::Text(text) if text.is_empty() => return None,
                Prefix::Text(text) => {
                    ranges.push(range_of(text));
                    continue;
                }
            };
            ranges.push((format!("{root}."), format!("{root}/")));
        }
        Some(ranges)
    }

    /// What lies in this scope, in that one, or in both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        match (self, other) {
            (Self::Under(mut these), Self::Under(those)) => {
                these.extend(those);
                these.sort();
                these.dedup();
                Self::Under(these)
            }
            (Self::Everything, _) | (_, Self::Everything) => Self::Everything,
        }
    }

    /// What lies in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Everything, scope) | (scope, Self::Everything) => scope.clone(),
            (Self::Under(these), Self::Under(those)) => {
                let mut both: Vec<Prefix> = these
                    .iter()
                    .flat_map(|a| those.iter().filter_map(move |b| narrower(a, b)))
                    .cloned()
                    .collect();
                both.sort();
                both.dedup();
                Self::Under(both)
            }
        }
    }

    /// Whether all of another scope lies in this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Everything, _) => true,
            (Self::Under(_), Self::Everything) => false,
            (Self::Under(wide), Self::Under(narrow)) => {
                narrow.iter().all(|narrow| wide.iter().any(|wide| covers(wide, narrow)))
            }
        }
    }

    /// The prefixes as they are written; `*` for everything.
    #[must_use]
    pub fn to_strings(&self) -> Vec<String> {
        match self {
            Self::Everything => vec!["*".to_owned()],
            Self::Under(prefixes) => prefixes.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<&Area> for Scope {
    /// The scope that covers an area; for one namespace exactly it is that
    /// namespace and, as scopes are trees, what is below it: cut by the area
    /// itself where that matters.
    fn from(area: &Area) -> Self {
        Self::Under(vec![match area {
            Area::Exactly(namespace) => Prefix::Tree(namespace.clone()),
            Area::Below(parent) => Prefix::Below(parent.clone()),
        }])
    }
}

/// The texts that begin with one, as a half-open range. UTF-8 sorts as the
/// characters do.
#[must_use]
pub fn range_of(start: &str) -> NameRange {
    let mut end = start.to_owned();
    while let Some(last) = end.pop() {
        // Behind a character the surrogates are skipped; behind the last one
        // there is none.
        let next =
            (u32::from(last).saturating_add(1)..=u32::from(char::MAX)).find_map(char::from_u32);
        if let Some(next) = next {
            end.push(next);
            return (start.to_owned(), end);
        }
    }
    // Behind every identifier, which has 512 bytes at most.
    (start.to_owned(), "\u{10ffff}".repeat(129))
}

fn covers(wide: &Prefix, narrow: &Prefix) -> bool {
    if matches!(wide, Prefix::Exactly(_)) {
        return wide == narrow;
    }
    match narrow {
        Prefix::Exactly(name) => wide.contains(name.as_str()),
        Prefix::Tree(root) => wide.contains(root.as_str()),
        Prefix::Below(root) => {
            wide.contains(root.as_str()) || wide.contains_all_of(&format!("{root}."))
        }
        Prefix::Text(text) => wide.contains_all_of(text),
    }
}

/// The narrower of two prefixes when one lies in the other.
fn narrower<'a>(a: &'a Prefix, b: &'a Prefix) -> Option<&'a Prefix> {
    if covers(a, b) {
        Some(b)
    } else if covers(b, a) {
        Some(a)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns(text: &str) -> Namespace {
        Namespace::parse(text).unwrap_or_else(|error| unreachable!("{error}"))
    }

    #[test]
    fn se_07_only_the_grammar_is_a_namespace() {
        for good in ["shop", "Shop", "a.b-c.d_e", "0", &"x".repeat(128)] {
            assert!(Namespace::parse(good).is_ok(), "{good}");
        }
        let long = "x".repeat(129);
        for bad in ["", ".", "a.", ".a", "a..b", "-a", "_a", "a b", "a/b", "sh\u{43e}p", "*", &long]
        {
            assert!(Namespace::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn se_06_odd_scopes_are_refused() {
        for bad in ["", "deploy.*", " shop", "shop ", "**", "."] {
            assert!(Scope::parse(&[bad]).is_err(), "{bad:?}");
        }
        assert_eq!(Scope::parse::<&str>(&[]), Ok(Scope::NOWHERE));
        assert_eq!(Scope::parse(&["*", "shop"]), Ok(Scope::Everything));
    }

    #[test]
    fn se_30_exactly_one_namespace_is_no_tree() {
        let tree = Scope::parse(&["shop"]).unwrap_or(Scope::NOWHERE);
        let below = Scope::parse(&["shop."]).unwrap_or(Scope::NOWHERE);
        let only = Scope::exactly(&ns("shop"));
        assert!(only.contains(&ns("shop")) && !only.contains(&ns("shop.eu")));
        assert!(!only.contains(&ns("shopX")) && !only.contains_all_of("shop"));
        assert!(tree.covers(&only) && !only.covers(&tree) && !only.covers(&below));
        assert!(only.covers(&only) && !below.covers(&only));
        assert_eq!(tree.intersection(&only), only);
        assert_eq!(only.intersection(&tree), only);
        assert_eq!(only.intersection(&below), Scope::NOWHERE);
        assert_eq!(only.ranges(), Some(vec![("shop".to_owned(), "shop\0".to_owned())]));
        assert!(only.contains_area(&Area::Exactly(ns("shop"))));
        assert!(!only.contains_area(&Area::Below(ns("shop"))));
    }

    #[test]
    fn a_prefix_covers_its_tree_and_no_neighbour() {
        let tree = Scope::parse(&["deploy"]).unwrap_or(Scope::NOWHERE);
        assert!(tree.contains(&ns("deploy")) && tree.contains(&ns("deploy.x")));
        assert!(!tree.contains(&ns("deployX")) && !tree.contains(&ns("Deploy")));
        let below = Scope::parse(&["deploy."]).unwrap_or(Scope::NOWHERE);
        assert!(!below.contains(&ns("deploy")) && below.contains(&ns("deploy.x")));
    }

    #[test]
    fn ranges_say_the_same_as_contains() {
        let scope = Scope::parse(&["deploy", "shop."]).unwrap_or(Scope::NOWHERE);
        let ranges = scope.ranges().unwrap_or_default();
        for name in ["deploy", "deploy.x", "deploy-x", "deployX", "shop", "shop.a", "shop0", "a"] {
            let in_range =
                ranges.iter().any(|(from, to)| from.as_str() <= name && name < to.as_str());
            assert_eq!(in_range, scope.contains(&ns(name)), "{name}");
        }
    }

    #[test]
    fn zt_19_and_se_62_texts_and_what_begins_with_them() {
        let line = Scope::beginning_with("deploy.");
        for held in ["deploy.daily", "deploy.release.v1.2.3"] {
            assert!(line.contains_text(held), "{held}");
        }
        for other in ["deploy", "Deploy.x", "xdeploy.y", ""] {
            assert!(!line.contains_text(other), "{other}");
        }
        assert!(line.contains_all_of("deploy.") && line.contains_all_of("deploy.a"));
        assert!(!line.contains_all_of("deploy") && !line.contains_all_of(""));
        let tree = Scope::parse(&["deploy"]).unwrap_or(Scope::NOWHERE);
        assert!(tree.contains_text("deploy") && tree.contains_text("deploy.a b"));
        assert!(!tree.contains_all_of("deploy") && tree.contains_all_of("deploy."));
        assert!(line.covers(&Scope::parse(&["deploy."]).unwrap_or(Scope::NOWHERE)));
        assert!(!line.covers(&tree) && tree.covers(&line));
        assert!(Scope::beginning_with("deploy").covers(&tree));
        assert!(!Scope::beginning_with("deploy").covers(&Scope::Everything));
    }

    #[test]
    fn a_range_holds_what_begins_with_a_text() {
        for start in ["a", "a.", "a\u{d7ff}", "é", "a\u{10ffff}"] {
            let (from, to) = range_of(start);
            for rest in ["", "!", "z", "\u{10ffff}\u{10ffff}"] {
                let name = format!("{start}{rest}");
                assert!(from <= name && name < to, "{start:?} {rest:?}");
            }
            assert!(!(from.as_str() <= "b" && "b" < to.as_str()), "{start:?}");
        }
        for (start, longest) in [("", 128), ("\u{10ffff}", 128)] {
            let (from, to) = range_of(start);
            let name = "\u{10ffff}".repeat(longest);
            assert!(from <= name && name < to, "{start:?}");
        }
        assert_eq!(Scope::beginning_with("").ranges(), None);
    }

    #[test]
    fn intersection_keeps_the_narrower() {
        let parse = |texts: &[&str]| Scope::parse(texts).unwrap_or(Scope::NOWHERE);
        assert_eq!(parse(&["a"]).intersection(&parse(&["a.b", "c"])), parse(&["a.b"]));
        assert_eq!(parse(&["a"]).intersection(&parse(&["a."])), parse(&["a."]));
        assert_eq!(parse(&["a"]).intersection(&Scope::Everything), parse(&["a"]));
        assert_eq!(parse(&["a"]).intersection(&parse(&["ab"])), Scope::NOWHERE);
    }

    #[test]
    fn a_scope_covers_what_lies_in_it_as_a_whole() {
        let covers = |wide: &[&str], narrow: &[&str]| {
            let parse = |texts: &[&str]| Scope::parse(texts).unwrap_or(Scope::NOWHERE);
            parse(wide).covers(&parse(narrow))
        };
        assert!(covers(&["*"], &["*"]) && covers(&["*"], &["a"]) && covers(&["a"], &[]));
        assert!(covers(&["a", "b"], &["a.x", "b."]) && covers(&["a."], &["a."]));
        assert!(
            !covers(&["a"], &["*"]) && !covers(&["a."], &["a"]) && !covers(&["a"], &["a", "c"])
        );
    }
}
