//! The key that encrypts signing keys. It comes from the environment or from a
//! file outside of the data folder, so that a copy of the data is worth
//! nothing (SE-48).

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    digest, rand,
};
use thiserror::Error as ThisError;
use zeroize::Zeroizing;

use super::hex_text;
use crate::{
    config::{KeySource, step_tokens::hex},
    storage,
};

/// How long the fingerprint of a key is, in bytes.
const FINGERPRINT_BYTES: usize = 8;
/// What others may do with the file: nothing.
const OTHERS: u32 = 0o077;
/// The largest file that can be one.
const FILE_BYTES_MAX: u64 = 1024;

/// Why signing keys cannot be used. Each says what to do.
#[derive(Debug, ThisError)]
pub enum Error {
    /// There are signing keys, and nothing to decrypt them with.
    #[error(
        "the store holds signing keys, and the key that decrypts them is not there: put it back \
         at `{}` (`auth.key_encryption_key_file`), or set BAILIWICK_KEY_ENCRYPTION_KEY", .0.display()
    )]
    Missing(PathBuf),
    /// The key is another one.
    #[error(
        "wrong key: {origin} is not the key that encrypts the signing keys of the store (its \
         fingerprint is {found}, and {wanted} is needed); give the one that they were made under"
    )]
    Wrong {
        /// Where the key is from.
        origin: String,
        /// Which one it is.
        found: Arc<str>,
        /// Which one is needed.
        wanted: Arc<str>,
    },
    /// Others can read the file.
    #[error(
        "`{}` holds the key that encrypts signing keys, and others can get at it (mode {mode:03o}); \
         run `chmod 600` on it", path.display()
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file would be in the data folder.
    #[error(
        "the key that encrypts signing keys would be at `{}`, within the data folder, so that a \
         copy of the data would hold it: set `auth.key_encryption_key_file` to a place outside, \
         or BAILIWICK_KEY_ENCRYPTION_KEY", .0.display()
    )]
    Within(PathBuf),
    /// The file is no key.
    #[error("`{}` must hold 64 hex digits, the key that encrypts signing keys", .0.display())]
    Content(PathBuf),
    /// The file cannot be read or made.
    #[error("`{}`, the key that encrypts signing keys: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A signing key is not what was stored.
    #[error("the signing key {0} is damaged: it cannot be decrypted")]
    Damaged(Arc<str>),
    /// The library failed.
    #[error("the cryptographic library failed to {0}")]
    Library(&'static str),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

/// The key, and how it is known.
pub(super) struct Master {
    key: RandomizedNonceKey,
    pub(super) fingerprint: Arc<str>,
    pub(super) origin: String,
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Master({})", self.fingerprint)
    }
}

impl Master {
    /// The key as it is configured; none when its file is not there.
    pub(super) fn open(source: &KeySource) -> Result<Option<Self>, Error> {
        match source {
            KeySource::Given(key) => {
                Self::new(key, "BAILIWICK_KEY_ENCRYPTION_KEY".to_owned()).map(Some)
            }
            KeySource::File(path) => {
                read(path)?.map(|key| Self::new(&key, format!("`{}`", path.display()))).transpose()
            }
            // Whatever lies there is not taken.
            KeySource::Within(path) => Err(Error::Within(path.clone())),
        }
    }

    /// The same; where its file is not there yet, it is made.
    pub(super) fn open_or_make(source: &KeySource) -> Result<Self, Error> {
        if let Some(found) = Self::open(source)? {
            return Ok(found);
        }
        if let KeySource::File(path) = source {
            make(path).map_err(|source| Error::File { path: path.clone(), source })?;
            tracing::info!(
                file = %path.display(),
                "made the key that encrypts signing keys; keep a copy of it apart from the data"
            );
        }
        Self::open(source)?.ok_or(Error::Library("keep the key that encrypts signing keys"))
    }

    fn new(key: &[u8; 32], origin: String) -> Result<Self, Error> {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"bailiwick key encryption key\0");
        context.update(key);
        let digest = context.finish();
        let short = digest.as_ref().iter().take(FINGERPRINT_BYTES);
        let fingerprint = hex_text(short);
        let key = RandomizedNonceKey::new(&AES_256_GCM, key)
            .map_err(|_| Error::Library("take the key that encrypts signing keys"))?;
        Ok(Self { key, fingerprint: fingerprint.into(), origin })
    }

    /// Encrypts; `name` says what it is, so that nothing can take its place.
    pub(super) fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut body = Zeroizing::new(plain.to_vec());
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(name.as_bytes()), &mut *body)
            .map_err(|_| Error::Library("encrypt a signing key"))?;
        Ok([nonce.as_ref().as_slice(), body.as_slice()].concat())
    }

    /// Decrypts what [`Self::seal`] made under the same name.
    pub(super) fn unseal(&self, name: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut body = Zeroizing::new(body.to_vec());
        let length =
            self.key.open_in_place(nonce, Aad::from(name.as_bytes()), &mut body).ok()?.len();
        body.truncate(length);
        Some(body)
    }
}

fn read(path: &Path) -> Result<Option<Zeroizing<[u8; 32]>>, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    // Of what was opened, and not of what lies there now.
    let about = file.metadata().map_err(failed)?;
    if about.mode() & OTHERS != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode: about.mode() & 0o777 });
    }
    if !about.is_file() || about.len() > FILE_BYTES_MAX {
        return Err(Error::Content(path.to_owned()));
    }
    let mut text = Zeroizing::new(Vec::new());
    file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
    let text = std::str::from_utf8(&text).map_err(|_| Error::Content(path.to_owned()))?;
    hex(text.trim()).map(Some).ok_or_else(|| Error::Content(path.to_owned()))
}

/// Appears whole or not at all; one that somebody else made meanwhile stays.
fn make(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut key = Zeroizing::new([0; 32]);
    rand::fill(&mut *key).map_err(|_| io::Error::other("no randomness"))?;
    let text = Zeroizing::new(hex_text(key.iter()));
    // Mode 0600 from the beginning.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => fs::File::open(folder)?.sync_all(),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn se_48_a_sealed_key_opens_under_its_name_and_key_alone() {
        let [one, two] = [1, 2].map(|byte| Master::new(&[byte; 32], "a test".to_owned()).unwrap());
        assert_ne!(one.fingerprint, two.fingerprint);
        let sealed = one.seal("a", b"private").unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"private"));
        assert_eq!(one.unseal("a", &sealed).unwrap().as_slice(), b"private");
        assert!(one.unseal("b", &sealed).is_none() && two.unseal("a", &sealed).is_none());
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert!(one.unseal("a", &changed).is_none(), "{place}");
        }
        assert!(one.unseal("a", &sealed[..5]).is_none() && one.unseal("a", &[]).is_none());
    }

    #[test]
    fn se_48_the_file_is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/deep/master.key");
        let source = KeySource::File(path.clone());
        assert!(Master::open(&source).unwrap().is_none());
        let made = Master::open_or_make(&source).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(Master::open_or_make(&source).unwrap().fingerprint, made.fingerprint);
        for mode in [0o640, 0o604, 0o620, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Master::open(&source).unwrap_err().to_string();
            assert!(error.contains("chmod 600"), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(Master::open(&source).unwrap().is_some());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "no key").unwrap();
        assert!(matches!(Master::open(&source).unwrap_err(), Error::Content(_)));
        let within = Master::open_or_make(&KeySource::Within(path)).unwrap_err().to_string();
        assert!(within.contains("data folder"), "{within}");
    }
}
