//! Faults and warnings with their places, and the words that help to mend
//! them.
//!
//! Not here: what is a fault; that is `check` and what it calls.

use std::fmt;

/// How many faults, and how many warnings, are told of one definition.
pub const FINDINGS_MAX: usize = 100;
/// How much of a tenant's text a message shows, in characters.
const SHOWN_CHARS_MAX: usize = 80;
/// Longer names get no suggestion: comparing them costs too much.
const COMPARED_BYTES_MAX: usize = 40;
/// How many suggestions are looked for in one definition.
const SUGGESTIONS_MAX: usize = 20;

/// A fault or a warning with its place in the YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong and what to do.
    pub message: String,
    /// The line, from 1; 0 where there is none.
    pub line: u32,
    /// The column, from 1; 0 where there is none.
    pub column: u32,
    /// The path of the field, as `steps[2].retry`.
    pub path: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, column {}: ", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// A place in the text, from 1; zeros where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: u32,
    pub(super) column: u32,
}

/// The path of a field.
#[derive(Clone, Debug, Default)]
pub(super) struct Path(String);

impl Path {
    /// The path of a field below this one.
    pub(super) fn field(&self, name: &str) -> Self {
        let name = shown(name);
        Self(if self.0.is_empty() { name } else { format!("{}.{name}", self.0) })
    }

    /// The path of an item of this list.
    pub(super) fn item(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }
}

/// What is found while a definition is read.
#[derive(Debug, Default)]
pub(super) struct Findings {
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
    suggested: usize,
    /// Whether any fault was found, told or not.
    failed: bool,
}

impl Findings {
    /// Adds a fault.
    pub(super) fn error(&mut self, place: Place, path: &Path, message: impl Into<String>) {
        self.failed = true;
        push(&mut self.errors, place, path, message.into(), "faults");
    }

    /// Adds a warning.
    pub(super) fn warning(&mut self, place: Place, path: &Path, message: impl Into<String>) {
        push(&mut self.warnings, place, path, message.into(), "warnings");
    }

    /// ` (did you mean …?)`, where a known name is near.
    pub(super) fn suggestion<'a>(
        &mut self,
        wanted: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> String {
        if self.suggested >= SUGGESTIONS_MAX {
            return String::new();
        }
        self.suggested += 1;
        nearest(wanted, known)
            .map_or_else(String::new, |name| format!("; did you mean `{}`?", shown(name)))
    }

    /// Whether any fault was found.
    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    /// Whether no more faults are told.
    pub(super) fn full(&self) -> bool {
        self.errors.len() > FINDINGS_MAX
    }

    /// Takes over the faults of a part.
    pub(super) fn absorb(&mut self, part: Self) {
        self.failed |= part.failed;
        for error in part.errors {
            let place = Place { line: error.line, column: error.column };
            push(&mut self.errors, place, &Path(error.path), error.message, "faults");
        }
    }

    /// The faults in the order of the text.
    pub(super) fn into_errors(self) -> Vec<Finding> {
        sorted(self.errors)
    }

    /// The warnings in the order of the text.
    pub(super) fn into_warnings(self) -> Vec<Finding> {
        sorted(self.warnings)
    }
}

fn push(findings: &mut Vec<Finding>, place: Place, path: &Path, message: String, what: &str) {
    if findings.len() < FINDINGS_MAX {
        findings.push(Finding {
            message,
            line: place.line,
            column: place.column,
            path: path.0.clone(),
        });
    } else if findings.len() == FINDINGS_MAX {
        let message = format!("there are more than {FINDINGS_MAX} {what}; the rest is not shown");
        findings.push(Finding { message, line: 0, column: 0, path: String::new() });
    }
}

fn sorted(mut findings: Vec<Finding>) -> Vec<Finding> {
    // What has no place comes last.
    findings.sort_by_key(|finding| (finding.line == 0, finding.line, finding.column));
    findings
}

/// A tenant's text, shortened and without control characters.
pub(super) fn shown(text: &str) -> String {
    shortened(text, SHOWN_CHARS_MAX)
}

/// A text of at most so many characters, without control characters.
pub(super) fn shortened(text: &str, chars_max: usize) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = chars.by_ref().take(chars_max).collect();
    if chars.next().is_some() {
        short.pop();
        short.push('…');
    }
    short
}

/// The known name that is nearest to the wanted one, if one is near.
fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if wanted.len() > COMPARED_BYTES_MAX {
        return None;
    }
    let near_max = (wanted.len() / 3).clamp(1, 3);
    known
        .into_iter()
        .filter(|name| name.len() <= COMPARED_BYTES_MAX)
        .filter(|name| name.len().abs_diff(wanted.len()) <= near_max)
        .map(|name| (distance(wanted.as_bytes(), name.as_bytes()), name))
        .filter(|(distance, _)| *distance <= near_max)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// How many letters to change, add or take away (Levenshtein).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, letter) in a.iter().enumerate() {
        let mut diagonal = line;
        let mut left = line + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, other) in row.iter_mut().skip(1).zip(b) {
            let changed = diagonal + usize::from(!letter.eq_ignore_ascii_case(other));
            diagonal = *cell;
            left = changed.min(left + 1).min(diagonal + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in
            [("", "", 0), ("a", "", 1), ("retries", "retry", 3), ("nmae", "name", 2), ("a", "A", 0)]
        {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), edits, "{a} {b}");
            assert_eq!(distance(b.as_bytes(), a.as_bytes()), edits, "{b} {a}");
        }
    }

    #[test]
    fn only_near_names_are_suggested() {
        let known = ["name", "version", "steps"];
        assert_eq!(nearest("step", known), Some("steps"));
        assert_eq!(nearest("verison", known), Some("version"));
        assert_eq!(nearest("zzz", known), None);
        assert_eq!(nearest(&"s".repeat(1_000_000), known), None);
    }

    #[test]
    fn tenants_text_is_shortened_and_made_harmless() {
        assert_eq!(shortened("a\u{1b}[2Jb\n", 10), "a [2Jb ");
        assert_eq!(shortened("ééééé", 3), "éé…");
        assert_eq!(shortened("ééé", 3), "ééé");
    }

    #[test]
    fn findings_are_bounded_and_say_so() {
        let mut findings = Findings::default();
        for _ in 0..FINDINGS_MAX * 3 {
            findings.error(Place { line: 3, column: 1 }, &Path::default(), "no");
        }
        assert!(findings.failed());
        let errors = findings.into_errors();
        assert_eq!(errors.len(), FINDINGS_MAX + 1);
        assert!(errors.last().unwrap().message.contains("more than 100 faults"));
    }
}
