//! The token file: one line for each token, which operators may edit while
//! the server runs. Readers see it whole, as every change is a rename;
//! writers wait for one another, and see what others have changed.
//!
//! Not here: when it is read and what its tokens are worth in a call
//! (`admin`, `authn`).

mod parse;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags, fchmod, flock, open},
    io::Errno,
};
use sha2::{Digest as _, Sha256};
use thiserror::Error as ThisError;
use zeroize::Zeroizing;

pub use self::parse::{Document, Fault, TokenLine, line, parse};

/// The largest token file.
const BYTES_MAX: u64 = 4 << 20;
/// Its own user alone.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Others may write: whoever can, mints.
const WRITABLE: u32 = 0o022;
/// How often a change begins again because somebody edits the file.
const TRIES: usize = 5;
/// How long a change waits for that of another process, in steps.
const WAIT: Duration = Duration::from_millis(20);
const WAITS: usize = 250;

/// Why the file cannot be used; says what to do.
#[derive(Debug, ThisError)]
pub enum Error {
    /// It is a symbolic link (SE-36).
    #[error("the token file `{}` is a symbolic link; name the file itself", .0.display())]
    Link(PathBuf),
    /// It is a folder or a device.
    #[error("the token file `{}` is not a file", .0.display())]
    Kind(PathBuf),
    /// It belongs to another user (SE-36).
    #[error(
        "the token file `{}` belongs to user {uid}; make it the server's own (chown)",
        path.display()
    )]
    Owner {
        /// Which file.
        path: PathBuf,
        /// Whose.
        uid: u32,
    },
    /// Others may write to it (SE-36).
    #[error(
        "the token file `{}` is writable by others (mode {mode:03o}); run `chmod 600` on it",
        path.display()
    )]
    Writable {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is larger than any that is meant.
    #[error("the token file `{}` is larger than {BYTES_MAX} bytes", .0.display())]
    Large(PathBuf),
    /// Another process holds its lock, or somebody edits it on and on.
    #[error("the token file `{}` is being changed by others; try again", .0.display())]
    Busy(PathBuf),
    /// The disk or the system refuses.
    #[error("the token file: cannot {what} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What stood in the file at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The tokens that count.
    pub tokens: Vec<TokenLine>,
    /// The lines that count for nothing, each by its number.
    pub faults: Vec<(usize, Fault)>,
    /// Tells contents apart; no file is an empty one.
    pub digest: [u8; 32],
    /// Whether others than its user can read it.
    pub exposed: bool,
}

/// A token file.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
    foreign: BTreeSet<Arc<str>>,
}

/// What was read, and from which file.
struct Original {
    bytes: Zeroizing<Vec<u8>>,
    /// Device and inode; none when there is no file.
    place: Option<(u64, u64)>,
    exposed: bool,
}

impl Original {
    fn is(&self, other: &Self) -> bool {
        self.place == other.place && self.bytes == other.bytes
    }
}

impl TokenFile {
    /// At this path; `foreign` are the permissions that configuration
    /// declares.
    #[must_use]
    pub fn new(path: PathBuf, foreign: BTreeSet<Arc<str>>) -> Self {
        Self { path, foreign }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What stands in it; nothing when there is none yet.
    pub fn read(&self) -> Result<Snapshot, Error> {
        let original = self.original()?;
        Ok(self.snapshot(&original.bytes, original.exposed))
    }

    /// Adds a line.
    pub fn add(&self, line: &[u8]) -> Result<Snapshot, Error> {
        self.change(|document| Some(document.with(line))).map(|(_, snapshot)| snapshot)
    }

    /// Puts a line in the place of a token's; false when that is not there.
    pub fn replace(&self, id: &str, line: &[u8]) -> Result<(bool, Snapshot), Error> {
        self.change(|document| document.replaced(id, line))
    }

    /// Removes the lines of these tokens; false when none is there.
    pub fn remove(&self, ids: &[Arc<str>]) -> Result<(bool, Snapshot), Error> {
        self.change(|document| document.without(ids))
    }

    /// One change as a whole: what others wrote before is kept, and what they
    /// write meanwhile makes it begin again (SE-36).
    fn change(
        &self,
        change: impl Fn(&Document<'_>) -> Option<Zeroizing<Vec<u8>>>,
    ) -> Result<(bool, Snapshot), Error> {
        let _lock = self.lock()?;
        for _ in 0..TRIES {
            let original = self.original()?;
            let Some(changed) = change(&parse(&original.bytes, &self.foreign)) else {
                return Ok((false, self.snapshot(&original.bytes, original.exposed)));
            };
            if u64::try_from(changed.len()).is_ok_and(|length| length > BYTES_MAX) {
                return Err(Error::Large(self.path.clone()));
            }
            if self.put(&original, &changed)? {
                return Ok((true, self.snapshot(&changed, false)));
            }
        }
        Err(Error::Busy(self.path.clone()))
    }

    fn snapshot(&self, bytes: &[u8], exposed: bool) -> Snapshot {
        let document = parse(bytes, &self.foreign);
        let tokens = document.tokens().cloned().collect();
        let digest = Sha256::digest(bytes).into();
        Snapshot { tokens, faults: document.faults().collect(), digest, exposed }
    }

    /// Reads the file, unless it is one that others could have written.
    fn original(&self) -> Result<Original, Error> {
        let path = || self.path.clone();
        let failed = |source| Error::Io { what: "read", path: path(), source };
        // A FIFO would hold whoever opens it.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match open(&self.path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => {
                return Ok(Original { bytes: Zeroizing::default(), place: None, exposed: false });
            }
            Err(Errno::LOOP) => return Err(Error::Link(path())),
            Err(errno) => return Err(failed(errno.into())),
        };
        let about = file.metadata().map_err(failed)?;
        if !about.is_file() {
            return Err(Error::Kind(path()));
        }
        let ours = rustix::process::geteuid().as_raw();
        if about.uid() != ours && about.uid() != 0 {
            return Err(Error::Owner { path: path(), uid: about.uid() });
        }
        if about.mode() & WRITABLE != 0 {
            return Err(Error::Writable { path: path(), mode: about.mode() & 0o777 });
        }
        let room = usize::try_from(about.len().min(BYTES_MAX)).unwrap_or(0);
        // With room for the read that finds the end, it does not grow.
        let mut bytes = Zeroizing::new(Vec::with_capacity(room + 64));
        (&file).take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length > BYTES_MAX) {
            return Err(Error::Large(path()));
        }
        let place = Some((about.dev(), about.ino()));
        Ok(Original { bytes, place, exposed: about.mode() & 0o044 != 0 })
    }

    /// The kernel's lock beside the file; it ends with the process.
    fn lock(&self) -> Result<File, Error> {
        let path = self.beside(".lock");
        let failed =
            |errno: Errno| Error::Io { what: "lock", path: path.clone(), source: errno.into() };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(open(&path, flags, PRIVATE).map_err(failed)?);
        for _ in 0..WAITS {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK | Errno::INTR) => thread::sleep(WAIT),
                Err(errno) => return Err(failed(errno)),
            }
        }
        Err(Error::Busy(self.path.clone()))
    }

    /// Puts the new content in the place of the file (DK-36, DK-37); false
    /// when that is not what was read any more.
    fn put(&self, original: &Original, bytes: &[u8]) -> Result<bool, Error> {
        let temporary = self.beside(".tmp");
        let put = write(&temporary, bytes).and_then(|()| {
            let same = self.original()?.is(original);
            if same {
                let failed =
                    |source| Error::Io { what: "replace", path: self.path.clone(), source };
                fs::rename(&temporary, &self.path).map_err(failed)?;
            }
            Ok(same)
        });
        if !matches!(put, Ok(true)) {
            // It holds secrets; the next change would remove it as well.
            let _ = fs::remove_file(&temporary);
            return put;
        }
        let folder = self.folder();
        let failed = |source| Error::Io { what: "sync", path: folder.to_owned(), source };
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        put
    }

    fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            Some(_) | None => Path::new("."),
        }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }
}

fn write(temporary: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::Io { what: "write", path: temporary.to_owned(), source };
    // Of a writer that was killed: this one has the lock now.
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = open(temporary, flags, PRIVATE).map_err(|errno| failed(errno.into()))?;
    // Whatever the umask takes away.
    fchmod(&file, PRIVATE).map_err(|errno| failed(errno.into()))?;
    let mut file = File::from(file);
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests;
