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

/// Text without what moves a terminal's cursor, sets its title or hides what
/// stands before: errors and names are a tenant's. Our own colours stay, and
/// so do line breaks and tabs.
fn harmless(text: &str) -> Cow<'_, str> {
    let kept = |place: usize, letter: char| match letter {
        '\n' | '\t' => true,
        '\r' => text.get(place + 1..).is_some_and(|rest| rest.starts_with('\n')),
        '\x1b' => text
            .get(place..)
            .is_some_and(|rest| COLOURS.iter().any(|(_, colour)| rest.starts_with(colour))),
        letter => !letter.is_control() && !BIDI.contains(&letter),
    };
    if text.char_indices().all(|(place, letter)| kept(place, letter)) {
        return Cow::Borrowed(text);
    }
    let shown = text.char_indices().map(|(place, letter)| {
        if kept(place, letter) { letter } else { char::REPLACEMENT_CHARACTER }
    });
    Cow::Owned(shown.collect())
}

/// Letters that turn the direction of what follows.
const BIDI: [char; 9] = [
    '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}',
    '\u{2069}',
];
/// The states' colours and the end of each.
const COLOURS: [(&str, &str); 8] = [
    ("complete", "\x1b[32m"),
    ("error", "\x1b[31m"),
    ("blocked_by_failures", "\x1b[31m"),
    ("waiting_for_retry", "\x1b[33m"),
    ("in_progress", "\x1b[36m"),
    ("cancelled", "\x1b[35m"),
    ("resolved_manually", "\x1b[35m"),
    ("", "\x1b[0m"),
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

/// Rows under headings, as wide as they need to be.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> Result {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headings.get(column).map(|heading| heading.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let show = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        line(padded.join("   ").trim_end())
    };
    show(&mut headings.iter().copied())?;
    for row in rows {
        show(&mut row.iter().map(String::as_str))?;
    }
    Ok(())
}

/// A state in its colour, where standard output is a terminal.
pub(crate) fn state(text: &str) -> String {
    let Some((_, colour)) = COLOURS.iter().find(|(state, _)| *state == text) else {
        return text.to_owned();
    };
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain || !io::stdout().is_terminal() {
        text.to_owned()
    } else {
        format!("{colour}{text}\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_text_does_nothing_to_a_terminal() {
        for good in ["", "two\nlines\tand\r\nmore", "\x1b[31merror\x1b[0m", "größer 日本"] {
            assert!(matches!(harmless(good), Cow::Borrowed(text) if text == good), "{good:?}");
        }
        for (bad, shown) in [
            ("\x1b]0;title\x07", "\u{fffd}]0;title\u{fffd}"),
            ("\x1b[2J\x1b[31;1m", "\u{fffd}[2J\u{fffd}[31;1m"),
            ("\u{9b}2Jé", "\u{fffd}2Jé"),
            ("hidden\rshown\x08", "hidden\u{fffd}shown\u{fffd}"),
            ("\u{202e}txt.exe", "\u{fffd}txt.exe"),
        ] {
            assert_eq!(harmless(bad), shown, "{bad:?}");
        }
    }
}
