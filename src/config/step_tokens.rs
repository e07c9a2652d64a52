//! What steps' tokens may hold and be for (`[[auth.namespaces]]`), and the
//! key that encrypts signing keys.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use zeroize::Zeroizing;

use super::{Error, Mode, Roles, Server, Storage, given, number, raw};
use crate::domain::{
    PermissionSet, Scope,
    rights::{AUDIENCE_BYTES_MAX, NamespaceRights, StepRights, is_audience},
};

/// The variable that holds the key itself.
pub(super) const KEY_VARIABLE: &str = "BAILIWICK_KEY_ENCRYPTION_KEY";
const KEY_FILE: &str = "auth.key_encryption_key_file";
/// The file of the key where none is named.
const KEY_FILE_DEFAULT: &str = "keys/master.key";
/// The most tasks that one may have below it: a cancel reaches all at once.
const SPAWNED_MAX: u64 = 10_000;
/// The longest audience.
const AUDIENCE_TEXT_BYTES_MAX: usize = 512;

/// Steps' tokens and the keys that sign them.
#[derive(Clone, Debug)]
pub struct StepTokens {
    /// What they may hold and be for.
    pub rights: Arc<StepRights>,
    /// What encrypts the keys that sign them.
    pub key: KeySource,
}

/// Where the key comes from that encrypts signing keys (SE-48).
#[derive(Clone)]
pub enum KeySource {
    /// The environment.
    Given(Zeroizing<[u8; 32]>),
    /// This file, which is made when it is needed first.
    File(PathBuf),
    /// Nowhere: the file lies within the data folder.
    Within(PathBuf),
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(_) => f.write_str("Given"),
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Within(path) => write!(f, "Within({})", path.display()),
        }
    }
}

/// Validates both.
pub(super) fn step_tokens(
    raw: &raw::Auth,
    server: &Server,
    (base, storage): (&Path, &Storage),
    (roles, extra): (&Roles, &BTreeSet<Arc<str>>),
    variable: Option<&Zeroizing<String>>,
    spawned: u64,
) -> Result<StepTokens, Error> {
    let issuer: Option<Arc<str>> = server.public_url.as_deref().map(Into::into);
    let mut seen = BTreeSet::new();
    let mut all = Vec::with_capacity(raw.namespaces.len());
    for (entry, number) in raw.namespaces.iter().zip(1_usize..) {
        let place = format!("auth.namespaces #{number}");
        let wrong = |problem: String| Error::invalid(place.as_str(), problem);
        if !seen.insert(&entry.prefix) {
            return Err(wrong(format!("`prefix`: `{}` stands twice", entry.prefix.escape_debug())));
        }
        let scope = Scope::parse(&[&entry.prefix]).map_err(|error| wrong(error.to_string()))?;
        let ceiling = match &entry.ceiling {
            Some(names) => roles.set(names, extra).map_err(wrong)?,
            None => PermissionSet::star(),
        };
        let audiences = audiences(&entry.audiences, issuer.as_ref()).map_err(wrong)?;
        let prefix = entry.prefix.as_str().into();
        all.push(NamespaceRights { prefix, scope, ceiling, audiences });
    }
    let key = key_source(raw, base, storage, variable)?;
    let budget = number("limits.spawned_tasks_per_root", spawned, 1, SPAWNED_MAX)?;
    Ok(StepTokens { rights: Arc::new(StepRights::new(issuer, all, budget)), key })
}

fn audiences(
    raw: &BTreeMap<String, String>,
    issuer: Option<&Arc<str>>,
) -> Result<BTreeMap<Arc<str>, Arc<str>>, String> {
    let mut all: BTreeMap<Arc<str>, Arc<str>> = BTreeMap::new();
    for (name, audience) in raw {
        if !is_audience(name) {
            return Err(format!(
                "`audiences`: `{}` is not a short name: at most {AUDIENCE_BYTES_MAX} lower-case \
                 letters, digits and `_`, a letter first; `bailiwick` is the server itself",
                name.escape_debug()
            ));
        }
        let plain = audience.bytes().all(|byte| byte.is_ascii_graphic());
        if audience.is_empty() || audience.len() > AUDIENCE_TEXT_BYTES_MAX || !plain {
            return Err(format!(
                "`audiences`: `{name}` must be 1 to {AUDIENCE_TEXT_BYTES_MAX} visible ASCII \
                 characters, as https://vault.example.org"
            ));
        }
        let own =
            issuer.is_some_and(|own| own.trim_end_matches('/') == audience.trim_end_matches('/'));
        if own {
            return Err(format!(
                "`audiences`: `{name}` is `server.public_url`, the server itself; a step has its \
                 token for the server without it"
            ));
        }
        all.insert(name.as_str().into(), audience.as_str().into());
    }
    Ok(all)
}

fn key_source(
    raw: &raw::Auth,
    base: &Path,
    storage: &Storage,
    variable: Option<&Zeroizing<String>>,
) -> Result<KeySource, Error> {
    let file = given(raw.key_encryption_key_file.clone());
    if let Some(text) = variable.filter(|text| !text.trim().is_empty()) {
        if file.is_some() {
            let problem = format!("stands beside {KEY_VARIABLE}; use one of them");
            return Err(Error::invalid(KEY_FILE, problem));
        }
        let wrong = || {
            Error::invalid(KEY_VARIABLE, "must be 64 hex digits, as `openssl rand -hex 32` prints")
        };
        return hex(text.trim()).map(KeySource::Given).ok_or_else(wrong);
    }
    let named = file.is_some();
    let path = base.join(file.as_deref().unwrap_or(KEY_FILE_DEFAULT));
    let Storage::Sqlite(store) = storage;
    let within = store.parent().is_some_and(|data| lies_within(&path, data));
    match (within, named) {
        (false, _) => Ok(KeySource::File(path)),
        // It may never be needed.
        (true, false) => Ok(KeySource::Within(path)),
        (true, true) => Err(Error::invalid(
            KEY_FILE,
            "lies within the data folder, so that a copy of the data would hold its key; put it \
             somewhere else",
        )),
    }
}

/// Whether a place is in a folder or below it, also through links as far as
/// the place exists.
pub(super) fn lies_within(place: &Path, folder: &Path) -> bool {
    let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let real = |path: &Path| {
        let path = whole(path);
        let existing = path.ancestors().find_map(|known| {
            let rest = path.strip_prefix(known).ok()?;
            known.canonicalize().ok().map(|known| known.join(rest))
        });
        existing.unwrap_or(path)
    };
    real(place).starts_with(real(folder))
}

/// 64 hex digits.
pub(crate) fn hex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut key = Zeroizing::new([0; 32]);
    for (slot, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let &[high, low] = pair else { return None };
        *slot = digit(high)? << 4 | digit(low)?;
    }
    Some(key)
}

/// SE-32: nobody else issues in our name.
pub(super) fn refuse_own_issuer(server: &Server, mode: &Mode) -> Result<(), Error> {
    let (Some(own), Mode::On(known)) = (&server.public_url, mode) else { return Ok(()) };
    if known.issuers.iter().any(|jwt| jwt.issuer.trim_end_matches('/') == own) {
        return Err(Error::invalid(
            "server.public_url",
            "is also a JWT issuer's name in `[auth]`; the tokens of steps are issued under it, so \
             no other key may vouch for it: give one of them another name",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn se_48_a_key_is_64_hex_digits() {
        assert_eq!(*hex(&"0f".repeat(32)).unwrap(), [15; 32]);
        assert_eq!(*hex(&"A0".repeat(32)).unwrap(), [160; 32]);
        for bad in ["", "0f", &"0g".repeat(32), &"0f".repeat(33), &format!("+f{}", "0f".repeat(31))]
        {
            assert!(hex(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn se_48_a_place_within_the_data_folder_is_found_through_links() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, folder.path().join("link")).unwrap();
        for within in ["data/k", "data/deep/k", "link/k", "link/deep/k"] {
            assert!(lies_within(&folder.path().join(within), &data), "{within}");
        }
        for outside in ["k", "database/k", "keys/k"] {
            assert!(!lies_within(&folder.path().join(outside), &data), "{outside}");
        }
    }
}
