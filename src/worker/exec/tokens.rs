//! The step's tokens as its child finds them: in variables as they were at the
//! start, and in files of its own that follow every renewal.
//!
//! An audience's variable is the operator's short name for it; nothing of a
//! template is part of one (SE-19).

use std::{
    collections::HashMap, convert::Infallible, ffi::OsString, future, io, io::Write as _,
    os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc,
};

use tempfile::{NamedTempFile, TempDir};
use tokio::sync::watch;
use tracing::warn;

use crate::domain::rights::{OWN_AUDIENCE, is_audience};

/// The variable with the token for Bailiwick itself.
const OWN: &str = "BAILIWICK_STEP_TOKEN";
/// What the variables with those for other audiences begin with.
const OTHERS: &str = "BAILIWICK_TOKEN_";
/// What follows the name of the variable that says where the file is.
const FILE: &str = "_FILE";

/// A step's tokens by the short names of their audiences.
type Tokens = Arc<HashMap<String, String>>;

/// The files, gone when this is dropped.
#[derive(Debug)]
pub(super) struct TokenFiles(Option<TempDir>);

/// The variable for an audience; none for what cannot be one.
fn variable(audience: &str) -> Option<String> {
    if audience == OWN_AUDIENCE {
        return Some(OWN.to_owned());
    }
    is_audience(audience).then(|| format!("{OTHERS}{}", audience.to_ascii_uppercase()))
}

impl TokenFiles {
    /// In a new folder that belongs to this user alone; none without tokens.
    pub(super) fn new(tokens: &Tokens) -> io::Result<Self> {
        if tokens.is_empty() {
            return Ok(Self(None));
        }
        let only_mine = std::fs::Permissions::from_mode(0o700);
        let mut folder = tempfile::Builder::new();
        let folder = folder.prefix("bailiwick-step-").permissions(only_mine).tempdir()?;
        let this = Self(Some(folder));
        this.write(tokens)?;
        Ok(this)
    }

    fn path(&self, audience: &str) -> Option<PathBuf> {
        self.0.as_ref().map(|folder| folder.path().join(audience))
    }

    /// What the child's environment gets.
    pub(super) fn variables(&self, tokens: &Tokens) -> Vec<(OsString, OsString)> {
        let mut variables = Vec::new();
        for (audience, token) in tokens.iter() {
            let (Some(name), Some(path)) = (variable(audience), self.path(audience)) else {
                continue;
            };
            variables.push((format!("{name}{FILE}").into(), path.into()));
            variables.push((name.into(), token.into()));
        }
        variables
    }

    /// Each file is replaced as a whole: who reads it sees one token.
    fn write(&self, tokens: &Tokens) -> io::Result<()> {
        let Some(folder) = &self.0 else { return Ok(()) };
        for (audience, token) in tokens.iter().filter(|(name, _)| variable(name).is_some()) {
            // Mode 0600 from the beginning.
            let mut file = NamedTempFile::new_in(folder.path())?;
            file.write_all(token.as_bytes())?;
            file.persist(folder.path().join(audience)).map_err(|error| error.error)?;
        }
        Ok(())
    }

    /// Follows the renewals; never ends.
    pub(super) async fn follow(&self, mut tokens: watch::Receiver<Tokens>) -> Infallible {
        while tokens.changed().await.is_ok() {
            let now = Arc::clone(&tokens.borrow_and_update());
            if let Err(error) = self.write(&now) {
                warn!(%error, "a step's fresh tokens cannot be written");
            }
        }
        future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tokens(all: &[(&str, &str)]) -> Tokens {
        Arc::new(all.iter().map(|(name, token)| ((*name).into(), (*token).into())).collect())
    }

    #[tokio::test]
    async fn se_19_tokens_come_under_names_of_the_operator_alone() {
        let first =
            tokens(&[("bailiwick", "own"), ("vault", "v"), ("LD_PRELOAD", "x"), ("a=b", "")]);
        let files = TokenFiles::new(&first).unwrap();
        let folder = files.0.as_ref().unwrap().path().to_owned();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let mut found: Vec<_> = files.variables(&first);
        found.sort();
        let names: Vec<_> = found.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "BAILIWICK_STEP_TOKEN",
                "BAILIWICK_STEP_TOKEN_FILE",
                "BAILIWICK_TOKEN_VAULT",
                "BAILIWICK_TOKEN_VAULT_FILE",
            ]
        );
        assert_eq!((&*found[0].1, &*found[2].1), ("own".as_ref(), "v".as_ref()));
        let own = folder.join("bailiwick");
        assert_eq!(found[1].1, own);
        assert_eq!(fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);

        let (sender, receiver) = watch::channel(first);
        sender.send_replace(tokens(&[("bailiwick", "fresh"), ("vault", "w")]));
        let written = async {
            while fs::read_to_string(&own).unwrap() != "fresh" {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            never = files.follow(receiver) => match never {},
            () = written => {}
        }
        assert_eq!(fs::read_to_string(folder.join("vault")).unwrap(), "w");
        drop(files);
        assert!(!folder.exists());
        let none = TokenFiles::new(&tokens(&[])).unwrap();
        assert!(none.variables(&tokens(&[])).is_empty() && none.0.is_none());
    }
}
