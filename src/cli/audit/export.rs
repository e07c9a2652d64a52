//! `bailiwick audit export` and `public-key`.

use std::{
    io::{BufWriter, IsTerminal as _, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;

use super::{
    super::{Connection, Error, Format, Result, output},
    Moment, moment,
};
use crate::{audit::line::Line, pb::v1 as pb};

pub(super) const EXAMPLES: &str = "\
What is there is sealed first. The file appears under its name once it is whole; its last
line is signed, so that a cut shows. Whole checkpoints are exported: with --since and --until
a little more may be at either end. Keep the checkpoint that is printed where the server
cannot write: `audit verify --expect` compares with it.

Examples:
  bailiwick audit export --out audit.jsonl
  bailiwick audit export --out shop.jsonl --namespace shop --since 30d
  bailiwick audit export --out - | bailiwick audit verify - --public-key audit.pem";

#[derive(Args, Debug)]
pub(in crate::cli) struct Export {
    /// The file; - is standard output
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// From this time on: 2026-11-23T08:00:00Z, or how long ago, as 7d
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Moment>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Moment>,
    /// Only this namespace and those below it; may be given several times
    #[arg(long = "namespace", value_name = "NAMESPACE")]
    namespaces: Vec<String>,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct PublicKey {
    /// The file to write instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Serialize)]
struct Key {
    public_key: String,
    key_id: String,
    checkpoint: String,
}

#[derive(Serialize)]
struct Exported {
    file: PathBuf,
    lines: u64,
    first: i64,
    last: i64,
    checkpoint: String,
    key_id: String,
}

pub(super) async fn public_key(
    args: &PublicKey,
    connection: &Connection,
    format: Format,
) -> Result {
    let mut audit = connection.client().await?.audit();
    let answer = audit.get_audit_public_key(pb::GetAuditPublicKeyRequest {}).await?.into_inner();
    let pb::GetAuditPublicKeyResponse { public_key, key_id, checkpoint } = answer;
    if let Some(path) = &args.out {
        std::fs::write(path, &public_key).map_err(|error| unwritten(path, &error))?;
    }
    match (format, &args.out) {
        (Format::Json, _) => output::json(&Key { public_key, key_id, checkpoint }),
        (Format::Table, Some(path)) => {
            output::line(format!("{}: key {key_id}; last checkpoint {checkpoint}", path.display()))
        }
        (Format::Table, None) => output::line(public_key.trim_end()),
    }
}

pub(super) async fn export(args: Export, connection: &Connection, format: Format) -> Result {
    let Export { out, since, until, namespaces } = args;
    let mut audit = connection.client().await?.audit();
    let request = pb::ExportAuditRequest { since, until, namespaces };
    let mut answers = audit.export_audit(request).await?.into_inner();
    if out.as_os_str() == "-" {
        let mut file = BufWriter::new(std::io::stdout().lock());
        let exported = copy(&mut answers, &mut file, &out).await?;
        file.flush()?;
        output::note(exported.words());
        return Ok(());
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    let wrong = |error: &std::io::Error| unwritten(&out, error);
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|error| wrong(&error))?;
    let exported = {
        let mut buffered = BufWriter::new(file.as_file_mut());
        let exported = copy(&mut answers, &mut buffered, &out).await?;
        buffered.flush().map_err(|error| wrong(&error))?;
        exported
    };
    file.as_file().sync_all().map_err(|error| wrong(&error))?;
    file.persist(&out).map_err(|error| wrong(&error.error))?;
    match format {
        Format::Json => output::json(&exported),
        Format::Table => output::line(exported.words()),
    }
}

impl Exported {
    fn words(&self) -> String {
        let Self { file, lines, first, last, checkpoint, .. } = self;
        format!(
            "{}: {lines} lines, records {first} to {last}; checkpoint {checkpoint}",
            file.display()
        )
    }
}

/// Writes all lines; the last one must be the closing record.
async fn copy(
    answers: &mut tonic::Streaming<pb::ExportAuditResponse>,
    out: &mut impl Write,
    path: &Path,
) -> Result<Exported> {
    let progress = std::io::stderr().is_terminal() && path.as_os_str() != "-";
    let (mut bytes, mut last) = (0_usize, String::new());
    while let Some(pb::ExportAuditResponse { lines }) = answers.message().await? {
        out.write_all(lines.as_bytes()).map_err(|error| unwritten(path, &error))?;
        bytes += lines.len();
        if let Some(line) = lines.lines().next_back() {
            line.clone_into(&mut last);
        }
        report(progress, &format!("\r{} KiB", bytes / 1024));
    }
    report(progress, "\n");
    match Line::read(&last, &mut String::new()) {
        Some(Line::Closing(_, closing)) => Ok(Exported {
            file: path.to_owned(),
            lines: closing.lines + 1,
            first: closing.first,
            last: closing.last,
            checkpoint: closing.checkpoint,
            key_id: closing.key,
        }),
        Some(Line::Record(_) | Line::Checkpoint(..)) | None => {
            Err(Error::Failed("the server ended the export before its closing record".to_owned()))
        }
    }
}

/// For people who wait; our own figures alone.
fn report(on_terminal: bool, text: &str) {
    if on_terminal {
        let mut out = std::io::stderr().lock();
        // When standard error is gone there is nobody to tell.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

fn unwritten(path: &Path, error: &std::io::Error) -> Error {
    Error::Failed(format!("{}: {error}", path.display()))
}
