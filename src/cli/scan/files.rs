//! What lies in files and folders.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::Path,
};

use super::{Leaks, Place, shown};

/// Searches a path from the command line; `-` is standard input.
pub(super) fn search(path: &Path, leaks: &mut Leaks) {
    let name = shown(path.as_os_str().as_bytes());
    let place = |position| Place { commit: None, path: name.clone(), position };
    if path.as_os_str() == "-" {
        if let Err(error) = leaks.search(&mut io::stdin().lock(), place) {
            leaks.unread("standard input", error);
        }
    } else if path.is_dir() {
        folder(path, leaks);
    } else if let Err(error) =
        // What is named may be a link or a pipe.
        File::open(path).and_then(|mut file| leaks.search(&mut file, place))
    {
        leaks.unread(&name, error);
    }
}

/// Everything below a folder, in the order of the names.
fn folder(root: &Path, leaks: &mut Leaks) {
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let below = path.strip_prefix(".").unwrap_or(&path).as_os_str().as_bytes();
        let name = shown(if below.is_empty() { b"." } else { below });
        let place = |position| Place { commit: None, path: name.clone(), position };
        if path != root
            && let Some(last) = path.file_name()
        {
            leaks.search_name(last.as_bytes(), || place(None));
        }
        let searched = (|| {
            // The root may be a link, as it was named.
            let kind = if path == root { path.metadata() } else { path.symlink_metadata() }?;
            if kind.is_dir() {
                let below = fs::read_dir(&path)?.map(|entry| Ok(entry?.path()));
                let mut below = below.collect::<io::Result<Vec<_>>>()?;
                below.retain(|path| !(path.ends_with(".git") && path.is_dir()));
                below.sort_by(|a, b| b.cmp(a));
                todo.append(&mut below);
                Ok(())
            } else if kind.is_file() {
                leaks.search(&mut plain(&path)?, place)
            } else {
                // Links lead elsewhere; pipes and devices have no end.
                Ok(())
            }
        })();
        if let Err(error) = searched {
            leaks.unread(&name, error);
        }
    }
}

/// Opens a file that may have become something else meanwhile.
fn plain(path: &Path) -> io::Result<File> {
    use rustix::fs::OFlags;
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is no longer a file"))
    }
}
