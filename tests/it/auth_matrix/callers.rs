//! The kinds of callers of the matrix.

use std::{collections::BTreeSet, fmt::Write as _};

use bailiwick::domain::Permission;

use crate::harness::credentials::{self, ROOT_KEY, Token};

/// What a caller is to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nobody: no credential, or none that counts.
    Stranger,
    /// Somebody whose grants hold in another namespace.
    Elsewhere,
    /// Somebody whose grants hold everywhere.
    Known,
}

/// A caller.
#[derive(Clone, Debug)]
pub struct Caller {
    pub name: String,
    pub kind: Kind,
    pub permissions: Vec<String>,
    /// The header that carries its credential.
    pub header: Option<(&'static str, String)>,
}

impl Caller {
    /// Whether it holds a permission, by itself or by a wildcard.
    pub fn holds(&self, permission: &str) -> bool {
        self.permissions.iter().any(|held| {
            held == "*" || held == permission || {
                let resource = permission.rsplit_once(':').map_or("", |(resource, _)| resource);
                held.strip_suffix(":*") == Some(resource)
            }
        })
    }
}

fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

fn stranger(name: &str, header: Option<(&'static str, String)>) -> Caller {
    Caller { name: name.to_owned(), kind: Kind::Stranger, permissions: Vec::new(), header }
}

fn known(name: &str) -> Caller {
    let token = Token::new(&format!("matrix-{name}"), &[name]).sign();
    Caller {
        name: name.to_owned(),
        kind: Kind::Known,
        permissions: vec![name.to_owned()],
        header: Some(bearer(&token)),
    }
}

/// May do everything, in a namespace where nothing is.
pub fn elsewhere() -> Caller {
    let token = Token::new("matrix-elsewhere", &["*"]).within(&["elsewhere"]).sign();
    Caller {
        name: "wrong namespace".to_owned(),
        kind: Kind::Elsewhere,
        permissions: vec!["*".to_owned()],
        header: Some(bearer(&token)),
    }
}

/// All of them.
pub fn all() -> Vec<Caller> {
    let star = Token::new("matrix-stranger", &["*"]);
    let expired = star.clone().claim("exp", (credentials::now() - 1).into()).sign();
    let mut callers = vec![
        stranger("no credential", None),
        stranger("garbage", Some(bearer("garbage"))),
        stranger("garbage key", Some(("x-api-key", "garbage".to_owned()))),
        stranger("expired", Some(bearer(&expired))),
        stranger("wrong key", Some(bearer(&star.sign_with(credentials::stranger())))),
        elsewhere(),
    ];
    callers.extend(Permission::ALL.iter().map(|permission| known(permission.name())));
    let resources: BTreeSet<&str> =
        Permission::ALL.iter().map(|permission| permission.resource()).collect();
    callers.extend(resources.into_iter().map(|resource| known(&format!("{resource}:*"))));
    callers.push(known("*"));
    callers.push(Caller {
        name: "root key".to_owned(),
        kind: Kind::Known,
        permissions: vec!["*".to_owned()],
        header: Some(("x-api-key", ROOT_KEY.to_owned())),
    });
    callers
}

/// What each built-in role is documented to hold (TK-52).
const ROLES: &[(&str, &[&str])] = &[
    (
        "read-only-operator",
        &[
            "tasks:read",
            "tasks:list",
            "steps:read",
            "templates:read",
            "nodes:read",
            "system:handlers_read",
        ],
    ),
    ("task-submitter", &["tasks:create", "tasks:read", "tasks:list"]),
    ("ops-admin", &["tasks:*", "steps:*", "templates:*", "nodes:read", "system:*"]),
    ("worker-service", &["work:lease"]),
    ("superuser", &["*"]),
];

/// Each role, by a token and by a key that have it alone; and what the
/// configuration needs for the keys.
pub fn roles() -> (Vec<Caller>, String) {
    let mut callers = Vec::new();
    let mut keys = String::new();
    for (role, permissions) in ROLES {
        let name = format!("role:{role}");
        let permissions: Vec<String> = permissions.iter().map(|&name| name.to_owned()).collect();
        let token = Token::new(&format!("matrix-{role}"), &[&name]).sign();
        for (how, header) in [("token", bearer(&token)), ("key", ("x-api-key", (*role).to_owned()))]
        {
            callers.push(Caller {
                name: format!("{name} by a {how}"),
                kind: Kind::Known,
                permissions: permissions.clone(),
                header: Some(header),
            });
        }
        let _ = writeln!(keys, "[[auth.api_keys]]\nkey = \"{role}\"\npermissions = [\"{name}\"]");
    }
    (callers, keys)
}
