//! How results are printed: a table for people, JSON for programs, colours
//! only on a terminal.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write as _},
};

use clap::ValueEnum;
use serde::Serialize;

use super::error::{Error, Result};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; streams are one object a line.
    Json,
}

/// A line on standard output.
pub(crate) fn line(text: impl AsRef<str>) -> Result {
    let mut out = io::stdout().lock();
    out.write_all(harmless(text.as_ref()).as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// A line for people on standard error, where it disturbs no program.
pub(crate) fn note(text: impl AsRef<str>) {
    // When standard error is gone there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{}", harmless(text.as_ref()));
}

/// A line about a state, which has its colour where standard output is a
/// terminal.
pub(crate) fn line_of_state(before: &str, state: &str, after: &str) -> Result {
    let mut out = io::stdout().lock();
    writeln!(out, "{}{}{}", harmless(before), coloured(word(state)), harmless(after))?;
    Ok(out.flush()?)
}

/// Text of data within a line: with nothing that could begin another one, or
/// that does anything to a terminal.
pub(crate) fn word(text: &str) -> Cow<'_, str> {
    if !text.chars().any(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if acts(letter) {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    Cow::Owned(shown)
}

/// The same among other words, from which it is told apart: in quotes, unless
/// it is one.
pub(crate) fn quoted(text: &str) -> Cow<'_, str> {
    let one =
        !text.is_empty() && !text.contains(|letter: char| letter == '"' || letter.is_whitespace());
    if one { word(text) } else { Cow::Owned(format!("\"{}\"", word(text).replace('"', "\\\""))) }
}

/// Whether a letter does something instead of being shown.
fn acts(letter: char) -> bool {
    letter.is_control() || BIDI.contains(&letter)
}

/// Text of several lines without what moves a terminal's cursor, sets its
/// title or hides what stands before: errors and names are a tenant's.
fn harmless(text: &str) -> Cow<'_, str> {
    let kept = |place: usize, letter: char| match letter {
        '\n' | '\t' => true,
        '\r' => text.get(place + 1..).is_some_and(|rest| rest.starts_with('\n')),
        letter => !acts(letter),
    };
    if text.char_indices().all(|(place, letter)| kept(place, letter)) {
        return Cow::Borrowed(text);
    }
    let shown = text.char_indices().map(|(place, letter)| {
        if kept(place, letter) { letter } else { char::REPLACEMENT_CHARACTER }
    });
    Cow::Owned(shown.collect())
}

/// Letters that turn the direction of what follows, or end a line.
const BIDI: [char; 14] = [
    '\u{061c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}', '\u{202a}', '\u{202b}', '\u{202c}',
    '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}',
];
/// The column of states, which have colours.
const STATE: &str = "STATE";
/// The states' colours.
const COLOURS: [(&str, &str); 7] = [
    ("complete", "\x1b[32m"),
    ("error", "\x1b[31m"),
    ("blocked_by_failures", "\x1b[31m"),
    ("waiting_for_retry", "\x1b[33m"),
    ("in_progress", "\x1b[36m"),
    ("cancelled", "\x1b[35m"),
    ("resolved_manually", "\x1b[35m"),
];

/// A value as JSON, indented.
pub(crate) fn json(value: &impl Serialize) -> Result {
    line(serde_json::to_string_pretty(value).map_err(|error| encoding(&error))?)
}

/// A value as JSON on one line.
pub(crate) fn json_line(value: &impl Serialize) -> Result {
    line(serde_json::to_string(value).map_err(|error| encoding(&error))?)
}

fn encoding(error: &serde_json::Error) -> Error {
    Error::Failed(format!("the answer cannot be shown as JSON: {error}"))
}

/// Rows under headings, as wide as they need to be. Each row has one line,
/// whatever stands in it.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> Result {
    print(&lines(headings, rows))
}

/// Names and what they stand for, one below the other.
pub(crate) fn pairs(rows: &[Vec<String>]) -> Result {
    print(lines(&["", ""], rows).get(1..).unwrap_or_default())
}

fn print(lines: &[String]) -> Result {
    lines.iter().try_for_each(|line| {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        Ok(out.flush()?)
    })
}

fn lines(headings: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let rows: Vec<Vec<Cow<'_, str>>> =
        rows.iter().map(|row| row.iter().map(|cell| word(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headings.get(column).map(|heading| heading.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let padded = |(cell, width): (&str, usize)| format!("{cell:width$}");
    let first: Vec<String> =
        headings.iter().copied().zip(widths.iter().copied()).map(padded).collect();
    let mut shown = vec![first.join("   ").trim_end().to_owned()];
    for row in rows {
        let columns = headings.iter().zip(widths.iter().copied());
        let cells = row.into_iter().zip(columns).map(|(cell, (heading, width))| {
            let room = " ".repeat(width.saturating_sub(cell.chars().count()));
            let cell = if *heading == STATE { coloured(cell) } else { cell };
            format!("{cell}{room}")
        });
        shown.push(cells.collect::<Vec<_>>().join("   ").trim_end().to_owned());
    }
    shown
}

/// A state in its colour, where standard output is a terminal.
fn coloured(text: Cow<'_, str>) -> Cow<'_, str> {
    let Some((_, colour)) = COLOURS.iter().find(|(state, _)| *state == text) else {
        return text;
    };
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain || !io::stdout().is_terminal() {
        text
    } else {
        Cow::Owned(format!("{colour}{text}\x1b[0m"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_text_does_nothing_to_a_terminal() {
        for good in ["", "two\nlines\tand\r\nmore", "größer 日本"] {
            assert!(matches!(harmless(good), Cow::Borrowed(text) if text == good), "{good:?}");
        }
        for (bad, shown) in [
            ("\x1b]0;title\x07", "\u{fffd}]0;title\u{fffd}"),
            ("\x1b[2J\x1b[31m", "\u{fffd}[2J\u{fffd}[31m"),
            ("\u{9b}2Jé", "\u{fffd}2Jé"),
            ("hidden\rshown\x08", "hidden\u{fffd}shown\u{fffd}"),
            ("\u{202e}txt.exe", "\u{fffd}txt.exe"),
        ] {
            assert_eq!(harmless(bad), shown, "{bad:?}");
        }
    }

    #[test]
    fn a_tenants_text_makes_no_line_of_its_own() {
        let forged = "-  denied\n7   2026-01-01T00:00:00Z   alice\x1b[31m\r\t\u{2028}";
        let row = vec!["6".to_owned(), forged.to_owned(), "\x1b[32mcomplete\x1b[0m".to_owned()];
        let shown = lines(&["SEQ", "OBJECT", "STATE"], &[row]);
        assert_eq!(shown.len(), 2);
        assert_eq!(
            shown[1],
            "6     -  denied\\n7   2026-01-01T00:00:00Z   alice\\u{1b}[31m\\r\\t\\u{2028}   \
             \\u{1b}[32mcomplete\\u{1b}[0m"
        );
        assert_eq!(quoted("o-7"), "o-7");
        assert_eq!(quoted(""), "\"\"");
        assert_eq!(quoted("a  denied\n\"b"), "\"a  denied\\n\\\"b\"");
    }
}
