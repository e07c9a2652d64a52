//! As whom commands run.

use std::{ffi::CString, fmt::Write as _, path::PathBuf, str::FromStr};

use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};
use thiserror::Error;

/// As whom commands run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    name: String,
    home: PathBuf,
    /// None when it is the server's own user and nothing changes.
    ids: Option<Ids>,
}

/// Why commands cannot run as somebody.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RunAsError {
    /// No such user.
    #[error("there is no user `{0}` on this system")]
    Unknown(String),
    /// The system does not say.
    #[error("the user `{0}` cannot be looked up: {1}")]
    Lookup(String, String),
    /// Only root becomes somebody else.
    #[error("the server is not root, so it cannot run commands as `{0}`")]
    CannotBecome(String),
}

impl RunAs {
    /// The server's own user, with all that it may.
    #[must_use]
    pub fn own() -> Self {
        let user = User::from_uid(geteuid()).ok().flatten();
        let (name, home) = user.map_or_else(Default::default, |user| (user.name, user.dir));
        Self { name, home: home_or_root(home), ids: None }
    }

    /// A user of the system, with its groups.
    pub fn user(name: &str) -> Result<Self, RunAsError> {
        let lookup = |error: nix::Error| RunAsError::Lookup(name.to_owned(), error.to_string());
        let unknown = || RunAsError::Unknown(name.to_owned());
        let user = User::from_name(name).map_err(lookup)?.ok_or_else(unknown)?;
        let c_name = CString::new(name).map_err(|_| unknown())?;
        let groups = getgrouplist(&c_name, user.gid).map_err(lookup)?;
        Self::of(user, groups, geteuid())
    }

    fn of(user: User, groups: Vec<Gid>, me: Uid) -> Result<Self, RunAsError> {
        let ids = if me.is_root() {
            Some(Ids { uid: user.uid, gid: user.gid, groups })
        } else if me == user.uid {
            None
        } else {
            return Err(RunAsError::CannotBecome(user.name));
        };
        Ok(Self { name: user.name, home: home_or_root(user.dir), ids })
    }

    /// The user's name; empty when the system knows none.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether commands can do whatever they like on this machine.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.ids.as_ref().map_or_else(geteuid, |ids| ids.uid).is_root()
    }

    /// Whether commands run as the very user of the server.
    #[must_use]
    pub fn is_server(&self) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.uid == geteuid())
    }

    pub(super) fn home(&self) -> &std::path::Path {
        &self.home
    }

    pub(super) fn ids(&self) -> Option<&Ids> {
        self.ids.as_ref()
    }
}

fn home_or_root(home: PathBuf) -> PathBuf {
    if home.is_absolute() { home } else { "/".into() }
}

/// What to become; as a text `UID:GID:GROUP,GROUP`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) groups: Vec<Gid>,
}

impl Ids {
    pub(super) fn to_text(&self) -> String {
        let mut text = format!("{}:{}:", self.uid, self.gid);
        for (number, group) in self.groups.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            // A text takes all that is written.
            let _ = write!(text, "{comma}{group}");
        }
        text
    }
}

impl FromStr for Ids {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| text.parse::<u32>().map_err(|_| ());
        let (uid, rest) = text.split_once(':').ok_or(())?;
        let (gid, groups) = rest.split_once(':').ok_or(())?;
        let groups = groups.split(',').filter(|group| !group.is_empty());
        Ok(Self {
            uid: Uid::from_raw(number(uid)?),
            gid: Gid::from_raw(number(gid)?),
            groups: groups
                .map(|group| number(group).map(Gid::from_raw))
                .collect::<Result<_, ()>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn somebody() -> User {
        let mut user = User::from_uid(geteuid()).unwrap().unwrap();
        (user.name, user.uid, user.gid) = ("deploy".to_owned(), 4711.into(), 4712.into());
        user
    }

    #[test]
    fn se_61_only_root_becomes_somebody_else() {
        let groups = vec![Gid::from_raw(4712), Gid::from_raw(5)];
        let taken = |me: u32| RunAs::of(somebody(), groups.clone(), me.into());
        let ids = taken(0).unwrap().ids.unwrap();
        assert_eq!(ids.to_text(), "4711:4712:4712,5");
        assert_eq!(ids.to_text().parse(), Ok(ids));
        assert_eq!(taken(4711).unwrap().ids, None);
        let refused = taken(1000).unwrap_err();
        assert_eq!(refused, RunAsError::CannotBecome("deploy".to_owned()));
    }

    #[test]
    fn se_61_a_user_must_exist() {
        for name in ["no-such-user-here", "", "a\0b"] {
            let refused = RunAs::user(name).unwrap_err();
            assert!(!matches!(refused, RunAsError::CannotBecome(_)), "{name:?}: {refused}");
        }
        assert!(RunAs::own().is_server());
    }

    #[test]
    fn only_whole_ids_are_read() {
        for bad in ["", "1", "1:2", "x:2:", "1:2:x", "-1:2:", "1:4294967296:"] {
            assert_eq!(bad.parse::<Ids>(), Err(()), "{bad}");
        }
        assert_eq!("1:2:".parse::<Ids>().unwrap().groups, []);
    }
}
