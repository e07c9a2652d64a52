//! A file of lines: appended to, never rewritten, and made again when it was
//! moved away.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use thiserror::Error;

use super::{Format, Sealed, Sink, Unsent};

/// The file cannot be written.
#[derive(Debug, Error)]
#[error("`{}` cannot be written: {source}", path.display())]
pub struct FileError {
    path: PathBuf,
    source: io::Error,
}

/// Writes to a file.
#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    format: Format,
    /// None after a failure: how far it came shows the file itself.
    file: Option<File>,
}

impl FileSink {
    /// Opens the file, and makes it at first need, its owner's alone.
    pub fn open(path: PathBuf, format: Format) -> Result<Self, FileError> {
        match open(&path) {
            Ok(file) => Ok(Self { path, format, file: Some(file) }),
            Err(source) => Err(FileError { path, source }),
        }
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn send(&mut self, records: &[Sealed]) -> Result<(), Unsent> {
        let text: String = records.iter().map(|record| self.format.line(record)).collect();
        let (path, file) = (self.path.clone(), self.file.take());
        let written = tokio::task::spawn_blocking(move || write(&path, file, &text)).await;
        self.file = Some(written.map_err(Unsent::new)??);
        Ok(())
    }
}

/// On disk when this answers.
fn write(path: &Path, file: Option<File>, text: &str) -> io::Result<File> {
    let mut file = match file {
        Some(file) if is_there(path, &file)? => file,
        Some(_) | None => open(path)?,
    };
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    Ok(file)
}

/// Whether the open file is still the one of that name.
fn is_there(path: &Path, file: &File) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn open(path: &Path) -> io::Result<File> {
    // A pipe or a device would not keep what is written, or hold us up.
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => return Err(io::Error::other("it is not a regular file")),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.len() > 0 {
        end_line(&mut file)?;
    } else if let Some(folder) = path.parent() {
        // Its name must be on disk as well as what it holds.
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

/// What a crash or a full disk cut off is ended, and comes again behind it.
fn end_line(file: &mut File) -> io::Result<()> {
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    if last != *b"\n" {
        file.write_all(b"\n")?;
    }
    Ok(())
}
