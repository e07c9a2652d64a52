//! Keys that the server makes for itself at first need and keeps in files of
//! their own, outside of the data folder.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use zeroize::Zeroizing;

/// The longest file that is taken for a key.
const BYTES_MAX: u64 = 4096;
/// What the owner alone may have of a key.
const OTHERS: u32 = 0o077;

/// The bytes of a key's file. One that is not there is made: `make` gives its
/// bytes, and it is on disk when this answers. One that others can read is
/// refused: they may have it already.
pub(super) fn read_or_make(
    path: &Path,
    make: impl FnOnce() -> io::Result<Zeroizing<Vec<u8>>>,
) -> io::Result<Zeroizing<Vec<u8>>> {
    match File::open(path) {
        Ok(file) => read(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let bytes = make()?;
            match write(path, &bytes) {
                Ok(()) => Ok(bytes),
                // Another process was faster: its key is the key.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    read(File::open(path)?)
                }
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

fn read(file: File) -> io::Result<Zeroizing<Vec<u8>>> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    if metadata.permissions().mode() & OTHERS != 0 {
        let message = "others can read it; make a new key, or chmod 600 if nobody has";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Under another name first, so that nobody ever finds half of it.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = folder.join(name);
    // What a crash of an earlier process of this number left.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        // A link fails where the name is taken; a rename would not.
        .and_then(|()| fs::hard_link(&new, path))
        .and_then(|()| File::open(folder)?.sync_all());
    fs::remove_file(&new)?;
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(bytes: &[u8]) -> impl FnOnce() -> io::Result<Zeroizing<Vec<u8>>> {
        || Ok(Zeroizing::new(bytes.to_vec()))
    }

    #[test]
    fn se_44_a_key_is_made_once_and_is_the_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/audit.key");
        assert_eq!(*read_or_make(&path, made(b"one")).unwrap(), b"one");
        assert_eq!(*read_or_make(&path, made(b"two")).unwrap(), b"one");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = read_or_make(&path, made(b"two")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        let none = folder.path().join("keys");
        assert!(read_or_make(&none, made(b"two")).is_err());
    }
}
