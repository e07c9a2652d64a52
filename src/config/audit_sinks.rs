//! `[[audit.sinks]]`: where the audit is sent.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{Authorities, Error, given, http_url, issuers::authorities, raw};

/// What the file of `ca_path` is.
const CA: &str = "the certificates of authorities (audit.sinks: ca_path)";
/// The longest name of a sink.
const NAME_BYTES_MAX: usize = 64;
/// The longest path of a socket that the system takes.
const SOCKET_BYTES_MAX: usize = 107;
/// Facilities of syslog that fit an audit.
const FACILITIES: &[(&str, u8)] = &[
    ("audit", 13),
    ("authpriv", 10),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];

/// One of `[[audit.sinks]]`.
#[derive(Clone, Debug)]
pub struct AuditSink {
    /// By which its position is kept.
    pub name: String,
    /// How a record is written.
    pub format: AuditFormat,
    /// Where it goes.
    pub to: AuditTarget,
}

/// How a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditFormat {
    /// As a line of an export.
    Lines,
    /// As an event of OCSF.
    Ocsf,
}

/// Where records go.
#[derive(Clone, Debug)]
pub enum AuditTarget {
    /// A file.
    File(PathBuf),
    /// A server of syslog.
    Syslog {
        /// Where it is.
        address: SyslogAddress,
        /// The number of the facility.
        facility: u8,
    },
    /// A collector of logs, by OTLP over gRPC.
    Otlp {
        /// Where it is.
        endpoint: String,
        /// Who alone vouches for it; the system's authorities when none.
        ca: Option<Authorities>,
    },
}

impl AuditTarget {
    /// Its `kind`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Syslog { .. } => "syslog",
            Self::Otlp { .. } => "otlp",
        }
    }
}

/// Where a server of syslog is.
#[derive(Clone, Debug)]
pub enum SyslogAddress {
    /// `udp://host:port`.
    Udp(String, u16),
    /// `tcp://host:port`.
    Tcp(String, u16),
    /// `tls://host:port`, and who alone vouches for it; the system's
    /// authorities when none.
    Tls(String, u16, Option<Authorities>),
    /// `unix:///path`, a socket for datagrams.
    Unix(PathBuf),
}

pub(super) fn audit_sinks(
    sinks: Vec<raw::AuditSink>,
    base: &Path,
) -> Result<Vec<AuditSink>, Error> {
    let mut names = BTreeSet::new();
    let mut all = Vec::with_capacity(sinks.len());
    for (raw, number) in sinks.into_iter().zip(1..) {
        let key = |name: &str| format!("audit.sinks #{number}: {name}");
        let sink = sink(raw, base, &key)?;
        if !names.insert(sink.name.clone()) {
            let problem = format!("there is another sink `{}`", sink.name);
            return Err(Error::invalid(key("name"), problem));
        }
        all.push(sink);
    }
    Ok(all)
}

fn sink(
    raw: raw::AuditSink,
    base: &Path,
    key: &dyn Fn(&str) -> String,
) -> Result<AuditSink, Error> {
    let raw::AuditSink { name, kind, format, path, address, facility, endpoint, ca_path } = raw;
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        let problem = "a name has 1 to 64 of a-z, 0-9, `-` and `_`";
        return Err(Error::invalid(key("name"), problem));
    }
    let format = match format.as_deref() {
        None | Some("jsonl") => AuditFormat::Lines,
        Some("ocsf") => AuditFormat::Ocsf,
        Some(_) => return Err(Error::invalid(key("format"), "neither `jsonl` nor `ocsf`")),
    };
    let said = Said {
        fields: [
            ("path", given(path)),
            ("address", given(address)),
            ("facility", given(facility)),
            ("endpoint", given(endpoint)),
            ("ca_path", given(ca_path)),
        ],
        kind: &kind,
        key,
        base,
    };
    let to = match kind.as_str() {
        "file" => said.file()?,
        "syslog" => said.syslog()?,
        "otlp" => said.otlp()?,
        _ => return Err(Error::invalid(key("kind"), "neither `file`, `syslog` nor `otlp`")),
    };
    Ok(AuditSink { name, format, to })
}

/// What is said of a sink beside its name, kind and format.
struct Said<'a> {
    fields: [(&'static str, Option<String>); 5],
    kind: &'a str,
    key: &'a dyn Fn(&str) -> String,
    base: &'a Path,
}

impl Said<'_> {
    fn invalid(&self, name: &str, problem: impl Into<String>) -> Error {
        Error::invalid((self.key)(name), problem)
    }

    fn get(&self, name: &str) -> Option<&String> {
        self.fields.iter().find(|(field, _)| *field == name)?.1.as_ref()
    }

    fn needed(&self, name: &str) -> Result<&str, Error> {
        let missing = || self.invalid(name, format!("a sink of the kind `{}` needs it", self.kind));
        self.get(name).map(String::as_str).ok_or_else(missing)
    }

    /// What would have no effect was meant for something.
    fn only(&self, allowed: &[&str]) -> Result<(), Error> {
        let other =
            |(name, text): &&(&str, Option<String>)| text.is_some() && !allowed.contains(name);
        match self.fields.iter().find(other) {
            Some((name, _)) => {
                Err(self.invalid(name, format!("a sink of the kind `{}` has none", self.kind)))
            }
            None => Ok(()),
        }
    }

    fn ca(&self, secured: bool) -> Result<Option<Authorities>, Error> {
        let path = self.get("ca_path");
        if path.is_some() && !secured {
            return Err(self.invalid("ca_path", "is for tls:// and https:// alone"));
        }
        authorities(CA, path, self.base)
    }

    fn file(&self) -> Result<AuditTarget, Error> {
        self.only(&["path"])?;
        let path = PathBuf::from(self.needed("path")?);
        if !path.is_absolute() {
            return Err(self.invalid("path", "must be absolute, as /var/log/audit.jsonl"));
        }
        Ok(AuditTarget::File(path))
    }

    fn syslog(&self) -> Result<AuditTarget, Error> {
        self.only(&["address", "facility", "ca_path"])?;
        let mut address = syslog_address(&(self.key)("address"), self.needed("address")?)?;
        let ca = self.ca(matches!(address, SyslogAddress::Tls(..)))?;
        if let SyslogAddress::Tls(_, _, authorities) = &mut address {
            *authorities = ca;
        }
        let facility = self.get("facility").map_or("audit", String::as_str);
        let facility = facility_of(&(self.key)("facility"), facility)?;
        Ok(AuditTarget::Syslog { address, facility })
    }

    fn otlp(&self) -> Result<AuditTarget, Error> {
        self.only(&["endpoint", "ca_path"])?;
        let endpoint = http_url(&(self.key)("endpoint"), self.needed("endpoint")?)?;
        let ca = self.ca(endpoint.starts_with("https://"))?;
        Ok(AuditTarget::Otlp { endpoint, ca })
    }
}

fn facility_of(key: &str, text: &str) -> Result<u8, Error> {
    let found = FACILITIES.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    found.ok_or_else(|| Error::invalid(key, "neither `audit`, `authpriv` nor `local0` to `local7`"))
}

fn syslog_address(key: &str, text: &str) -> Result<SyslogAddress, Error> {
    let wrong = || {
        let forms = "udp://host:port, tcp://host:port, tls://host:port or unix:///dev/log";
        Error::invalid(key, format!("must be {forms}"))
    };
    if let Some(path) = text.strip_prefix("unix://") {
        let path = PathBuf::from(path);
        let fits = path.is_absolute() && path.as_os_str().len() <= SOCKET_BYTES_MAX;
        return if fits { Ok(SyslogAddress::Unix(path)) } else { Err(wrong()) };
    }
    let uri: http::Uri = text.parse().map_err(|_| wrong())?;
    let authority = uri.authority().ok_or_else(wrong)?;
    let bare = text.ends_with(authority.as_str()) && !authority.as_str().contains('@');
    let port = authority.port_u16().filter(|port| *port != 0).ok_or_else(wrong)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    if !bare || host.is_empty() {
        return Err(wrong());
    }
    match uri.scheme_str() {
        Some("udp") => Ok(SyslogAddress::Udp(host, port)),
        Some("tcp") => Ok(SyslogAddress::Tcp(host, port)),
        Some("tls") => Ok(SyslogAddress::Tls(host, port, None)),
        Some(_) | None => Err(wrong()),
    }
}
