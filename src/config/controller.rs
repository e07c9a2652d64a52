//! `[controller]`: the line protocol. Its presence alone opens the listener.

use std::{net::SocketAddr, path::Path, time::Duration};

use super::{Error, LineToken, Tls, auth_file, given, listen, number, raw};

/// What is taken off the names of rules where nothing else is said (ZT-32).
pub const RULE_ID_PREFIX: &str = "rule.";
/// The most connections.
const CONNECTIONS_MAX: u64 = 1_000_000;
/// The longest silence that can be asked for: a week.
const IDLE_SECONDS_MAX: u64 = 7 * 24 * 60 * 60;
const TLS_FILES: [&str; 2] = ["controller.tls_cert", "controller.tls_key"];
const PER_ADDRESS: &str = "controller.connections_per_address";
const PER_TOKEN: &str = "controller.connections_per_token";
const AUTH_FILE: &str = "controller.auth_file";

/// Where and how the line protocol is spoken.
#[derive(Clone, Debug)]
pub struct Controller {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The tokens of the auth file; none without one, and then everybody may
    /// do everything.
    pub tokens: Option<Vec<LineToken>>,
    /// The files of TLS; plain text without them.
    pub tls: Option<Tls>,
    /// What is taken off a rule's name before it is compared (ZT-32).
    pub rule_id_prefixes: Vec<String>,
    /// Connections open at once.
    pub connections: usize,
    /// Of these, those of one address, or of one /64 of IPv6.
    pub connections_per_address: usize,
    /// Of these, those of one token.
    pub connections_per_token: usize,
    /// After how much silence a connection is closed; none is never.
    pub idle: Option<Duration>,
}

/// What `[auth]` says that matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    /// Whether it is on.
    pub(super) auth_on: bool,
    /// `auth.allow_unauthenticated_remote`.
    pub(super) open_remote: bool,
    /// Whether a listener of gRPC or REST is reachable beyond loopback.
    pub(super) beyond: bool,
}

/// Validates the table.
pub(super) fn controller(
    raw: raw::Controller,
    base: &Path,
    guard: Guard,
    warnings: &mut Vec<String>,
) -> Result<Controller, Error> {
    let listen = listen("controller.listen", &raw.listen)?;
    let beyond = !listen.ip().to_canonical().is_loopback();
    let tls = tls(&raw, base)?;
    if raw.rule_id_prefixes.iter().any(String::is_empty) {
        return Err(Error::invalid("controller.rule_id_prefixes", "an empty prefix is none"));
    }
    let tokens = match given(raw.auth_file) {
        Some(file) => {
            let path = base.join(file);
            let prefixes = &raw.rule_id_prefixes;
            Some(auth_file::read(&path, raw.strict_file_mode, prefixes, warnings)?)
        }
        None => open(guard, beyond, warnings).map(|()| None)?,
    };
    if beyond || guard.beyond {
        check_documented(tokens.iter().flatten())?;
    }
    if beyond && tokens.is_some() && tls.is_none() {
        warnings.push(
            "the line protocol is reachable beyond loopback without TLS: secrets and commands \
             travel in clear; set `controller.tls_cert` and `controller.tls_key`"
                .to_owned(),
        );
    }
    let connections: usize = number("controller.connections", raw.connections, 1, CONNECTIONS_MAX)?;
    let per_address = number(PER_ADDRESS, raw.connections_per_address, 0, CONNECTIONS_MAX)?;
    let per_token = number(PER_TOKEN, raw.connections_per_token, 0, CONNECTIONS_MAX)?;
    // One address, or one token, never takes them all.
    let share = |of: usize| if of == 0 { (connections / 4 * 3).max(1) } else { of };
    let idle = number("controller.idle_seconds", raw.idle_seconds, 0, IDLE_SECONDS_MAX)?;
    Ok(Controller {
        listen,
        tokens,
        tls,
        rule_id_prefixes: raw.rule_id_prefixes,
        connections,
        connections_per_address: share(per_address),
        connections_per_token: share(per_token),
        idle: (idle > 0).then(|| Duration::from_secs(idle)),
    })
}

/// Without an auth file (SE-60).
fn open(guard: Guard, beyond: bool, warnings: &mut Vec<String>) -> Result<(), Error> {
    if guard.auth_on {
        return Err(Error::invalid(
            AUTH_FILE,
            "is needed with `auth.enabled = true`: without it everybody who reaches the line \
             protocol could do everything; name a file of tokens, or take [controller] out",
        ));
    }
    if beyond && !guard.open_remote {
        return Err(Error::invalid(
            "controller.listen",
            "is reachable beyond loopback, and no auth file guards it: set \
             `controller.auth_file`, listen on 127.0.0.1, or, if everybody may do everything, \
             set `auth.allow_unauthenticated_remote = true`",
        ));
    }
    let who = if beyond { "everybody who reaches it" } else { "every local program" };
    warnings.push(format!("the line protocol has no auth file: {who} may set jobs and rules"));
    Ok(())
}

/// SE-21: who reads documentation knows them.
fn check_documented<'a>(tokens: impl Iterator<Item = &'a LineToken>) -> Result<(), Error> {
    for token in tokens {
        if token.documented {
            return Err(Error::invalid(
                AUTH_FILE,
                format!(
                    "the secret of token `{}` stands in documentation, so everybody knows it; it \
                     is refused while a listener is reachable beyond loopback",
                    token.name.escape_debug()
                ),
            ));
        }
    }
    Ok(())
}

fn tls(raw: &raw::Controller, base: &Path) -> Result<Option<Tls>, Error> {
    let file = |path: &Option<String>| given(path.clone()).map(|path| base.join(path));
    match (file(&raw.tls_cert), file(&raw.tls_key)) {
        (Some(cert), Some(key)) => {
            Ok(Some(Tls { cert, key, clients: Vec::new(), settings: TLS_FILES, protocols: &[] }))
        }
        (Some(_), None) => {
            Err(Error::invalid("controller.tls_key", "is required with `controller.tls_cert`"))
        }
        (None, Some(_)) => {
            Err(Error::invalid("controller.tls_cert", "is required with `controller.tls_key`"))
        }
        (None, None) => Ok(None),
    }
}
