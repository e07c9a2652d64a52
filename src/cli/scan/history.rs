//! What lies in git repositories: all objects that are there, also those
//! that no branch leads to any more. Git is asked for data only: a
//! repository's own settings cannot make it run or fetch anything.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, BufRead, Read, Seek as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use zeroize::Zeroizing;

use super::{Error, Leaks, Place, Result, shown};

/// The most of git's own words that are shown.
const COMPLAINT_BYTES: u64 = 500;

/// Searches the repositories of folders, each once.
pub(super) fn search(paths: &[PathBuf], leaks: &mut Leaks) -> Result {
    let mut done = HashSet::new();
    for path in paths.iter().filter(|path| path.as_os_str() != "-" && path.is_dir()) {
        let repository = repository(path)?;
        if done.insert(repository) {
            let name = shown(path.as_os_str().as_bytes());
            let names = names(path, leaks).unwrap_or_else(|(names, why)| {
                leaks.unread(&format!("the history of {name}"), why);
                names
            });
            if let Err(why) = objects(path, &names, leaks) {
                leaks.unread(&format!("the history of {name}"), why);
            }
        }
    }
    if done.is_empty() {
        return Err(Error::Usage("--history needs a folder in a git repository".to_owned()));
    }
    Ok(())
}

/// A run of git, with what it complains about.
struct Git {
    command: Command,
    complaints: File,
}

impl Git {
    fn new(path: &Path, args: &[&str]) -> io::Result<Self> {
        let complaints = tempfile::tempfile()?;
        let mut command = Command::new("git");
        command
            .args(["--no-replace-objects", "-c", "core.fsmonitor=false", "-C"])
            .arg(path)
            .args(args)
            .envs([
                ("LC_ALL", "C"),
                ("GIT_TERMINAL_PROMPT", "0"),
                ("GIT_OPTIONAL_LOCKS", "0"),
                ("GIT_NO_LAZY_FETCH", "1"),
                ("GIT_ALLOW_PROTOCOL", "none"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(complaints.try_clone()?);
        // Set in a hook, where they would lead away from the path.
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE"] {
            command.env_remove(name);
        }
        Ok(Self { command, complaints })
    }

    /// Waits for the end; git's own words when it was none.
    fn end(&mut self, mut child: Child) -> std::result::Result<(), String> {
        let status = child.wait().map_err(|error| error.to_string())?;
        if status.success() { Ok(()) } else { Err(self.complaint()) }
    }

    fn complaint(&mut self) -> String {
        let mut text = Vec::new();
        let read = self.complaints.rewind();
        let _ = read.and_then(|()| (&self.complaints).take(COMPLAINT_BYTES).read_to_end(&mut text));
        let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = shown(line);
        if line.is_empty() { "git failed".to_owned() } else { line }
    }
}

/// The repository that a folder is in.
fn repository(path: &Path) -> Result<Vec<u8>> {
    let name = shown(path.as_os_str().as_bytes());
    let args = ["rev-parse", "--path-format=absolute", "--git-common-dir"];
    let mut git = Git::new(path, &args)?;
    let output = git.command.output().map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            Error::Usage("--history needs git, which is not installed here".to_owned())
        } else {
            Error::Usage(format!("git does not start: {error}"))
        }
    })?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(Error::Usage(format!("the history of {name}: {}", git.complaint())))
    }
}

/// What the commits say about the objects.
#[derive(Default)]
struct Names {
    /// The commit and the path by which a blob came in.
    blobs: HashMap<String, (Arc<str>, String)>,
    /// How many commits come before one.
    ages: HashMap<Arc<str>, usize>,
}

/// Names every blob by the first commit that has it; also searches the paths.
fn names(path: &Path, leaks: &mut Leaks) -> std::result::Result<Names, (Names, String)> {
    let mut names = Names::default();
    match read_names(path, leaks, &mut names) {
        Ok(()) => Ok(names),
        Err(why) => Err((names, why)),
    }
}

fn read_names(
    path: &Path,
    leaks: &mut Leaks,
    names: &mut Names,
) -> std::result::Result<(), String> {
    let words = |error: io::Error| error.to_string();
    let args = ["rev-list", "--all", "--reflog", "--topo-order", "--reverse"];
    let mut list = Git::new(path, &args).map_err(words)?;
    let mut commits = list.command.spawn().map_err(words)?;
    let commit_ids = commits.stdout.take().ok_or("git has no output")?;
    let args = ["diff-tree", "--stdin", "--root", "-r", "-c", "--no-renames", "-z"];
    let mut tree = Git::new(path, &args).map_err(words)?;
    let mut changes = tree.command.stdin(commit_ids).spawn().map_err(words)?;
    // The command holds the pipe's end as well.
    tree.command.stdin(Stdio::null());
    let stdout = changes.stdout.take().ok_or("git has no output")?;
    let read = parse_names(io::BufReader::new(stdout), leaks, names);
    let ends = [tree.end(changes), list.end(commits)];
    read.map_err(words)?;
    ends.into_iter().collect()
}

fn parse_names(mut source: impl BufRead, leaks: &mut Leaks, names: &mut Names) -> io::Result<()> {
    let mut field = Zeroizing::new(Vec::new());
    let mut commit: Arc<str> = "".into();
    let mut leaky = HashSet::new();
    while next(&mut source, &mut field)? {
        let text = String::from_utf8_lossy(&field).into_owned();
        if !text.starts_with(':') {
            commit = text.trim().into();
            let age = names.ages.len();
            names.ages.insert(Arc::clone(&commit), age);
            continue;
        }
        // As many colons as parents, then modes, then ids, then what changed.
        let parents = text.bytes().take_while(|byte| *byte == b':').count();
        let blob = text.split(' ').nth(2 * parents + 1).unwrap_or_default().to_owned();
        if !next(&mut source, &mut field)? {
            break;
        }
        let path = shown(&field);
        if !leaky.contains(&path) {
            let commit = Some(commit.to_string());
            let place = || Place { commit, path: path.clone(), position: None };
            let before = leaks.places.len();
            leaks.search_name(&field, place);
            if leaks.places.len() > before {
                leaky.insert(path.clone());
            }
        }
        names.blobs.entry(blob).or_insert_with(|| (Arc::clone(&commit), path));
    }
    Ok(())
}

/// The next field; false at the end.
fn next(source: &mut impl BufRead, field: &mut Vec<u8>) -> io::Result<bool> {
    field.clear();
    source.read_until(0, field)?;
    Ok(field.pop_if(|last| *last == 0).is_some() || !field.is_empty())
}

/// Searches everything that git keeps. Of a secret in many versions of a file
/// the first counts.
fn objects(path: &Path, names: &Names, leaks: &mut Leaks) -> std::result::Result<(), String> {
    let words = |error: io::Error| error.to_string();
    let args = ["cat-file", "--batch-all-objects", "--batch", "--buffer", "--unordered"];
    let mut git = Git::new(path, &args).map_err(words)?;
    let mut child = git.command.spawn().map_err(words)?;
    let stdout = child.stdout.take().ok_or("git has no output")?;
    let before = leaks.places.len();
    let read = parse_objects(&mut Wiped::new(stdout), names, leaks);
    let end = git.end(child);
    let mut found = leaks.places.split_off(before);
    // By age; what has none comes last.
    found.sort_by_cached_key(|(place, _)| {
        let age = place.commit.as_deref().and_then(|commit| names.ages.get(commit).copied());
        (age.unwrap_or(usize::MAX), place.commit.clone(), place.path.clone(), place.position)
    });
    let mut seen = HashSet::new();
    found.retain(|(place, leak)| {
        // A message belongs to its commit alone.
        let commit = (place.path == MESSAGE).then(|| place.commit.clone());
        seen.insert((commit, place.path.clone(), *leak))
    });
    leaks.places.append(&mut found);
    read.map_err(words)?;
    end
}

const MESSAGE: &str = "(message)";

fn parse_objects(source: &mut impl BufRead, names: &Names, leaks: &mut Leaks) -> io::Result<()> {
    let mut header = Vec::new();
    loop {
        header.clear();
        source.take(1000).read_until(b'\n', &mut header)?;
        if header.is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&header).into_owned();
        let mut words = text.split_whitespace();
        let (id, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let Some(size) = words.next().and_then(|size| size.parse::<u64>().ok()) else {
            leaks.unread(&format!("object {}", shown(id.as_bytes())), "git cannot read it");
            continue;
        };
        let mut content = source.take(size);
        match kind {
            "blob" => {
                let place = |position| match names.blobs.get(id) {
                    Some((commit, path)) => {
                        Place { commit: Some(commit.to_string()), path: path.clone(), position }
                    }
                    None => Place { commit: None, path: format!("blob {id}"), position },
                };
                leaks.search(&mut content, place)?;
            }
            "commit" | "tag" => {
                let commit = || Some(id.to_owned());
                let place =
                    |_| Place { commit: commit(), path: MESSAGE.to_owned(), position: None };
                leaks.search(&mut content, place)?;
            }
            // The names in a tree were searched with the commits.
            _ => {
                io::copy(&mut content, &mut io::sink())?;
            }
        }
        // A line break ends each.
        let mut end = [0];
        source.read_exact(&mut end)?;
    }
}

/// A buffered reader whose buffer is wiped.
struct Wiped<R> {
    source: R,
    buffer: Zeroizing<Vec<u8>>,
    at: usize,
    filled: usize,
}

impl<R: Read> Wiped<R> {
    fn new(source: R) -> Self {
        Self { source, buffer: Zeroizing::new(vec![0; 64 * 1024]), at: 0, filled: 0 }
    }
}

impl<R: Read> Read for Wiped<R> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(room)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: Read> BufRead for Wiped<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at >= self.filled {
            (self.at, self.filled) = (0, 0);
            self.filled = self.source.read(&mut self.buffer)?;
        }
        Ok(self.buffer.get(self.at..self.filled).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}
