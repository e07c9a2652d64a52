//! `bailiwick audit verify`.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::PathBuf,
};

use clap::Args;
use serde::Serialize;

use super::super::{Error, Format, Result, output, read_text};
use crate::audit::{
    key::PublicKey,
    verify::{Error as Fault, Expected, Summary, verify as verify_lines},
};

pub(super) const EXAMPLES: &str = "\
Exit 0 says that every record is as it was sealed, in its order, and none is missing; exit 1
names the first bad line. The key is the one that `audit public-key` printed when you trusted
the server. --expect takes a checkpoint that was noted elsewhere, NUMBER:HASH, or a file
with one: it must be in the export, which shows that the server did not begin a new audit.

Examples:
  bailiwick audit verify audit.jsonl --public-key audit.pem
  bailiwick audit verify audit.jsonl --public-key audit.pem --expect checkpoint.txt
  bailiwick audit verify - --public-key audit.pem --format json < audit.jsonl";

/// How much of the file is read at once.
const READ_BYTES: usize = 1 << 18;

#[derive(Args, Debug)]
pub(in crate::cli) struct Verify {
    /// The export; - is standard input
    file: PathBuf,
    /// The key, as `audit public-key` prints it
    #[arg(long, value_name = "KEY")]
    public_key: PathBuf,
    /// A checkpoint that must be there: NUMBER:HASH, or a file with one
    #[arg(long, value_name = "CHECKPOINT")]
    expect: Option<String>,
}

#[derive(Serialize)]
struct Holds<'a> {
    holds: bool,
    records: u64,
    checkpoints: u64,
    chains: usize,
    uncovered: usize,
    first: i64,
    last: i64,
    namespaces: &'a [String],
    checkpoint: &'a str,
    key_id: &'a str,
    exported_at: &'a str,
}

pub(super) fn verify(args: &Verify, format: Format) -> Result {
    let Verify { file: path, public_key, expect } = args;
    let key = PublicKey::from_pem(&read_text(public_key)?)
        .map_err(|error| Error::Usage(format!("{}: {error}", public_key.display())))?;
    let expected = expect.as_deref().map(expected).transpose()?;
    let unread = |error: &std::io::Error| Error::Usage(format!("{}: {error}", path.display()));
    let input: Box<dyn BufRead> = if path.as_os_str() == "-" {
        Box::new(BufReader::with_capacity(READ_BYTES, std::io::stdin()))
    } else {
        let file = File::open(path).map_err(|error| unread(&error))?;
        Box::new(BufReader::with_capacity(READ_BYTES, file))
    };
    match verify_lines(input, &key, expected.as_ref()) {
        Ok(summary) => show(&summary, expected.as_ref(), format),
        Err(Fault::Io(error)) => Err(unread(&error)),
        Err(Fault::Fault(fault)) => {
            // What the file says stands in it.
            let what = format!("{}: {fault}", path.display());
            Err(Error::Failed(output::word(&what).into_owned()))
        }
    }
}

/// A checkpoint, or what a file says is one.
fn expected(text: &str) -> Result<Expected> {
    let parsed = text.parse::<Expected>();
    if parsed.is_ok() || text.contains(':') {
        return parsed.map_err(|what| Error::Usage(format!("--expect: {what}")));
    }
    let said = read_text(text.as_ref())?;
    said.parse().map_err(|what| Error::Usage(format!("{text}: {what}")))
}

fn show(summary: &Summary, expected: Option<&Expected>, format: Format) -> Result {
    let Summary { records, checkpoints, chains, uncovered, closing } = summary;
    if format == Format::Json {
        return output::json(&Holds {
            holds: true,
            records: *records,
            checkpoints: *checkpoints,
            chains: *chains,
            uncovered: *uncovered,
            first: closing.first,
            last: closing.last,
            namespaces: &closing.chains,
            checkpoint: &closing.checkpoint,
            key_id: &closing.key,
            exported_at: &closing.at,
        });
    }
    let of = match &*closing.chains {
        [] => String::new(),
        chains => format!(" of {}", chains.join(", ")),
    };
    output::line(format!(
        "holds: {records} records{of} in {chains} chains, {checkpoints} checkpoints, numbers {} to \
         {}, exported {}",
        closing.first, closing.last, closing.at
    ))?;
    if *uncovered > 0 {
        output::line(format!(
            "the last {uncovered} came while it was exported: its own signature holds them"
        ))?;
    }
    if let Some(expected) = expected {
        output::line(format!("the expected checkpoint is there: {expected}"))?;
    }
    output::line(format!("last checkpoint {}", closing.checkpoint))
}
