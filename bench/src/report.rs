//! The table and the file. Not in here: how a figure is measured.
#![expect(clippy::print_stdout, reason = "the table is what the program is for")]

use std::{fs, path::Path};

use crate::{
    error::{Result, Tried as _, wrong},
    figure::{Figure, Measured},
};

/// Prints one line.
pub(crate) fn line(text: impl AsRef<str>) {
    println!("{}", text.as_ref());
}

/// Prints the names of the figures and what each is measured against.
pub(crate) fn names() {
    for figure in Figure::ALL {
        line(format!("{:<20} {:<8} against: {}", figure.name(), figure.unit(), figure.baseline()));
    }
}

/// Prints the table.
pub(crate) fn table(figures: &[Measured]) {
    line(format!(
        "{:<20} {:>12} {:>12} {:<8} {:>8}  {:<15} result",
        "name", "value", "baseline", "unit", "ratio", "floor"
    ));
    for figure in figures {
        let result = match figure.reached() {
            Some(true) => "pass",
            Some(false) => "MISS",
            None => "recorded",
        };
        line(format!(
            "{:<20} {:>12} {:>12} {:<8} {:>8.3}  {:<15} {result}",
            figure.name,
            shown(figure.value),
            shown(figure.baseline),
            figure.unit,
            figure.ratio,
            figure.floor(),
        ));
        for note in figure.notes() {
            line(format!("  {note}"));
        }
    }
}

/// Writes the figures as a list.
pub(crate) fn file(path: &Path, figures: &[Measured]) -> Result {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).tried(format!("make {}", folder.display()))?;
    }
    let mut text = serde_json::to_string_pretty(figures)
        .map_err(|error| wrong(format!("a figure is no number: {error}")))?;
    text.push('\n');
    fs::write(path, text).tried(format!("write {}", path.display()))
}

fn shown(value: f64) -> String {
    let digits = if value >= 1000.0 { 0 } else { 3 };
    format!("{value:.digits$}")
}
