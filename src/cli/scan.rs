//! `bailiwick auth scan`: finds secrets of ours that lie where they should
//! not, says whether they still live, and takes them back. A secret goes
//! nowhere but to the server that is asked about it: never to an output, nor
//! into an error.

mod files;
mod history;
mod live;
mod search;

use std::{
    collections::{HashMap, HashSet},
    io::{self, IsTerminal as _, Read, Write as _},
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use self::live::State;
use super::{Connection, Error, Format, Result, output};
use crate::domain::secret;

/// What stands under the help.
pub(super) const HELP: &str = "\
A folder is searched with everything below it but the insides of .git; links are not
followed. Found is what has the form and a checksum that fits, in any kind of file; what is
compressed, encrypted or encoded otherwise (UTF-16, base64) is not seen. A secret itself is
never printed: the table shows the public id that stands in it.

--check presents each secret once to the server, with a call that it is refused: no use of a
token with limited uses is spent, but the time of its last use moves, and the server logs the
call as denied. States: live; revoked; expired; used_up; unknown (the server does not know it,
or takes it from another network only); unchecked (no server was asked, or it asks nobody for
credentials).

--revoke takes back what is proved live, with your own credential: a token needs root, an
API key api_keys:admin. Afterwards each is presented again, to prove it.

Exit codes: 0 nothing found, 1 secrets found (also when all were revoked), 2 wrong usage or
something could not be read, 3 server unreachable.

Examples:
  bailiwick auth scan
  bailiwick auth scan --history --check ~/src/shop
  git diff --cached | bailiwick auth scan -
  bailiwick auth scan --format json /var/log
  bailiwick auth scan --history --revoke --cascade --yes";

/// Which leaks to look for, and what to do about them.
#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct Scan {
    /// Files and folders; `-` is standard input [default: .]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Also all that is in the git repositories of the folders: every version
    /// of every file, and messages; needs git
    #[arg(long)]
    history: bool,
    /// Ask the server which of the secrets still live
    #[arg(long)]
    check: bool,
    /// Take back those that live; implies --check
    #[arg(long)]
    revoke: bool,
    /// With a token, also take back what descends from it and keys that it
    /// made
    #[arg(long, requires = "revoke")]
    cascade: bool,
    /// Do not ask before taking back; must be given without a terminal
    #[arg(long, requires = "revoke")]
    yes: bool,
    /// Say at the end how much was searched, and how many strings have the
    /// form but no fitting checksum
    #[arg(long)]
    verbose: bool,
}

/// Where a secret is.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    /// The commit, in a history.
    commit: Option<String>,
    /// As it is shown.
    path: String,
    /// Line and column in bytes, from 1; none when it is in the name.
    position: Option<(u64, u64)>,
}

impl Place {
    fn shown(&self) -> String {
        let commit = self.commit.as_deref().map(|commit| format!("{commit}:")).unwrap_or_default();
        let path = &self.path;
        match self.position {
            Some((line, _)) if self.commit.is_some() => format!("{commit}{path}:{line}"),
            Some((line, column)) => format!("{path}:{line}:{column}"),
            None => format!("{commit}{path}"),
        }
    }
}

/// One secret, wherever it was found.
struct Leak {
    id: String,
    /// Kept only to be presented to a server.
    secret: Option<Zeroizing<String>>,
    state: State,
    revocation: Option<String>,
}

/// All that was found.
#[derive(Default)]
struct Leaks {
    leaks: Vec<Leak>,
    by_digest: HashMap<[u8; 32], usize>,
    /// Each with the secret's place among the leaks.
    places: Vec<(Place, usize)>,
    keep: bool,
    sources: u64,
    lookalikes: u64,
    unread: u64,
}

impl Leaks {
    /// Searches bytes; `place` says where a position is.
    fn search(
        &mut self,
        source: &mut impl Read,
        place: impl Fn(Option<(u64, u64)>) -> Place,
    ) -> io::Result<()> {
        self.sources += 1;
        let mut found = Vec::new();
        let searched = search::search(source, &mut |hit| match hit {
            search::Hit::Secret { text, position } => found.push((text, position)),
            search::Hit::Lookalike => self.lookalikes += 1,
        });
        for (text, position) in found {
            let leak = self.leak(&text);
            self.places.push((place(Some(position)), leak));
        }
        searched
    }

    /// Searches a name.
    fn search_name(&mut self, name: &[u8], place: impl FnOnce() -> Place) {
        let mut found = None;
        // Reading from memory does not fail.
        let _ = search::search(&mut &*name, &mut |hit| {
            if let search::Hit::Secret { text, .. } = hit {
                found = Some(text);
            }
        });
        if let Some(text) = found {
            let leak = self.leak(&text);
            self.places.push((place(), leak));
        }
    }

    fn leak(&mut self, text: &Zeroizing<String>) -> usize {
        let digest = Sha256::digest(text.as_bytes()).into();
        *self.by_digest.entry(digest).or_insert_with(|| {
            self.leaks.push(Leak {
                id: secret::id(text).unwrap_or_default().to_owned(),
                secret: self.keep.then(|| text.clone()),
                state: State::Unchecked,
                revocation: None,
            });
            self.leaks.len() - 1
        })
    }

    /// Something was not searched; the rest is.
    fn unread(&mut self, what: &str, why: impl std::fmt::Display) {
        self.unread += 1;
        output::note(format!("{what}: {why}"));
    }
}

#[derive(Serialize)]
struct Shown<'l> {
    place: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'l str>,
    path: &'l str,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<u64>,
    credential: &'l str,
    /// Always so: what does not fit is not listed.
    checksum: &'static str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    revocation: Option<&'l str>,
}

/// Finds, asks, takes back, tells.
pub(super) async fn run(mut args: Scan, connection: &Connection, format: Format) -> Result {
    if args.paths.is_empty() {
        args.paths.push(PathBuf::from("."));
    }
    let stdin = args.paths.iter().any(|path| path.as_os_str() == "-");
    let asks = io::stdin().is_terminal() && io::stderr().is_terminal() && !stdin;
    if args.revoke && !args.yes && !asks {
        return Err(Error::Usage("--revoke needs --yes where nobody can be asked".to_owned()));
    }
    // A server out of reach shows before the search.
    let own = if args.check || args.revoke { Some(connection.client().await?) } else { None };
    let mut leaks = Leaks { keep: own.is_some(), ..Leaks::default() };
    if args.history {
        history::search(&args.paths, &mut leaks)?;
    }
    for path in &args.paths {
        files::search(path, &mut leaks);
    }
    let mut failed = None;
    if let Some(own) = own {
        failed = live::check(&mut leaks.leaks, connection).await.err();
        if args.revoke && (args.yes || confirmed(&leaks.leaks)?) {
            live::revoke(&mut leaks.leaks, connection, &own, args.cascade).await;
        }
    }
    let mut seen = HashSet::new();
    leaks.places.retain(|found| seen.insert(found.clone()));
    let told = show(&leaks, args.revoke, format);
    if args.verbose {
        output::note(format!(
            "{} searched; {} of the form without a fitting checksum",
            count(leaks.sources, "source"),
            count(leaks.lookalikes, "string"),
        ));
    }
    if !args.history && io::stderr().is_terminal() && args.paths.iter().any(|path| in_git(path)) {
        output::note("hint: --history searches what git keeps, too");
    }
    // What was found counts, also when nobody reads it to its end.
    ending(&leaks, failed)?;
    told
}

/// Which exit code it is.
fn ending(leaks: &Leaks, failed: Option<Error>) -> Result {
    if let Some(failed) = failed {
        return Err(failed);
    }
    if leaks.unread > 0 {
        let what = count(leaks.unread, "source");
        return Err(Error::Usage(format!("{what} could not be searched")));
    }
    if leaks.places.is_empty() {
        output::note("no secrets found");
        return Ok(());
    }
    let secrets = count(leaks.leaks.len(), "secret");
    Err(Error::Failed(format!("{secrets} found in {}", count(leaks.places.len(), "place"))))
}

fn count(number: impl TryInto<u64>, what: &str) -> String {
    match number.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
}

fn show(leaks: &Leaks, revoke: bool, format: Format) -> Result {
    let found = leaks.places.iter().filter_map(|(place, leak)| {
        let leak = leaks.leaks.get(*leak)?;
        Some(Shown {
            place: place.shown(),
            commit: place.commit.as_deref(),
            path: &place.path,
            line: place.position.map(|(line, _)| line),
            column: place.position.map(|(_, column)| column),
            credential: &leak.id,
            checksum: "valid",
            state: leak.state.as_str(),
            revocation: leak.revocation.as_deref(),
        })
    });
    let found: Vec<Shown<'_>> = found.collect();
    if format == Format::Json {
        return output::json(&serde_json::json!({ "findings": found }));
    }
    if found.is_empty() {
        return Ok(());
    }
    let row = |one: &Shown<'_>| {
        let mut row = vec![one.place.clone(), one.credential.to_owned(), one.state.to_owned()];
        row.extend(revoke.then(|| one.revocation.unwrap_or("-").to_owned()));
        row
    };
    let rows: Vec<Vec<String>> = found.iter().map(row).collect();
    let headings = ["PLACE", "CREDENTIAL", "STATE", "REVOCATION"];
    output::table(headings.get(..if revoke { 4 } else { 3 }).unwrap_or(&headings), &rows)
}

/// Asks the person at the terminal.
fn confirmed(leaks: &[Leak]) -> Result<bool> {
    let live = leaks.iter().filter(|leak| leak.state == State::Live).map(|leak| &*leak.id);
    let live: Vec<&str> = live.collect();
    if live.is_empty() {
        return Ok(false);
    }
    let mut err = io::stderr().lock();
    write!(err, "revoke {}? [y/N] ", live.join(", "))?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn in_git(path: &Path) -> bool {
    let whole = path.canonicalize();
    whole.is_ok_and(|path| path.is_dir() && path.ancestors().any(|up| up.join(".git").exists()))
}

/// A path or a message to be shown: no secret that stands in it, nothing that
/// would break a line.
fn shown(text: &[u8]) -> String {
    let text = search::redacted(text);
    let text = String::from_utf8_lossy(&text);
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
