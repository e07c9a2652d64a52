//! Holds the order of the modules: who may use whom. Within one crate the
//! compiler says nothing about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

/// The modules in order, each with those it may use. A new edge needs its own
/// commit with a sentence of reason. `clients/rust` is another crate and so
/// not in it.
const MODULES: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("pb", &[]),
    ("process", &[]),
    ("config", &["domain", "process"]),
    ("storage", &["domain"]),
    ("authz", &["domain"]),
    ("audit", &["domain", "storage", "authz"]),
    ("egress", &["domain", "config"]),
    ("signing", &["domain", "config", "storage", "authz"]),
    ("authn", &["domain", "config", "storage", "authz", "egress", "signing"]),
    ("access", &["domain", "pb", "config", "storage", "authz", "audit", "authn"]),
    ("admin", &["domain", "storage", "authz", "signing", "authn", "access"]),
    ("engine", &["domain", "storage", "authz"]),
    ("schedule", &["domain", "process", "storage", "authz", "engine", "egress"]),
    (
        "grpc",
        &[
            "domain", "pb", "config", "authz", "audit", "signing", "access", "admin", "engine",
            "schedule",
        ],
    ),
    ("gateway", &["pb", "access"]),
    ("line", &["domain", "access", "schedule"]),
    ("web", &["domain", "authz", "authn", "access", "admin", "engine", "schedule"]),
    ("worker", &["domain", "process", "pb", "config", "access", "grpc", "gateway"]),
    (
        "server",
        &[
            "domain", "process", "pb", "config", "storage", "authz", "audit", "egress", "signing",
            "authn", "access", "admin", "engine", "schedule", "grpc", "gateway", "line", "web",
            "worker",
        ],
    ),
    // `auth replay` decides as the gate does.
    ("cli", &["domain", "process", "pb", "config", "access", "audit", "authn", "worker", "server"]),
];

/// The longest a file may be without its tests; longer, it is two files.
const LINES_MAX: usize = 600;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every Rust file below a folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// A file's code without comments, strings and test modules; lines stay where
/// they are.
fn code(text: &str) -> String {
    without_tests(&without_text(text))
}

/// Blanks comments and the inside of strings and characters out.
fn without_text(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < letters.len() {
        let end = text_end(&letters, at);
        if end == at {
            out.push(letters[at]);
            at += 1;
        } else {
            out.extend(letters[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment, string or character that begins here ends; `at` itself
/// when none begins.
fn text_end(letters: &[char], at: usize) -> usize {
    let starts =
        |word: &str| word.chars().enumerate().all(|(i, c)| letters.get(at + i) == Some(&c));
    let inside_word = at > 0 && (letters[at - 1].is_alphanumeric() || letters[at - 1] == '_');
    if starts("//") {
        return find(letters, at, |i| letters[i] == '\n');
    }
    if starts("/*") {
        let mut depth = 0;
        return find(letters, at, |i| {
            let pair = |a, b| letters[i - 1] == a && letters[i] == b;
            if i > at && pair('/', '*') {
                depth += 1;
            } else if i > at + 1 && pair('*', '/') {
                depth -= 1;
            }
            i > at + 1 && depth == 0
        }) + 1;
    }
    if letters[at] == '"' {
        let mut escaped = false;
        return find(letters, at + 1, |i| {
            let ends = letters[i] == '"' && !escaped;
            escaped = letters[i] == '\\' && !escaped;
            ends
        }) + 1;
    }
    if !inside_word && (letters[at] == 'r' || starts("br")) {
        let open = at + if letters[at] == 'b' { 2 } else { 1 };
        let hashes = letters[open..].iter().take_while(|c| **c == '#').count();
        if letters.get(open + hashes) == Some(&'"') {
            return find(letters, open + hashes + 1, |i| {
                letters[i] == '"' && (1..=hashes).all(|h| letters.get(i + h) == Some(&'#'))
            }) + hashes
                + 1;
        }
    }
    // A character, not a lifetime: 'x' or '\…'.
    if letters[at] == '\'' {
        if letters.get(at + 1) == Some(&'\\') {
            return find(letters, at + 3, |i| letters[i] == '\'') + 1;
        }
        if letters.get(at + 2) == Some(&'\'') {
            return at + 3;
        }
    }
    at
}

fn find(letters: &[char], from: usize, mut ends: impl FnMut(usize) -> bool) -> usize {
    (from..letters.len()).find(|i| ends(*i)).unwrap_or(letters.len())
}

/// Blanks out what stands under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    for range in test_ranges(code) {
        let blank: String =
            code[range.clone()].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(range, &blank);
    }
    out
}

/// Where the items under `#[cfg(test)]` stand, each up to its closing brace or
/// semicolon.
fn test_ranges(code: &str) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (start, mark) in code.match_indices("#[cfg(test)]") {
        if ranges.last().is_some_and(|last| last.contains(&start)) {
            continue;
        }
        let mut depth = 0;
        let end = code[start..].bytes().position(|c| {
            match c {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(c, b'}' | b';')
        });
        let end = end.map_or(code.len(), |end| (start + end + 1).max(start + mark.len()));
        ranges.push(start..end);
    }
    ranges
}

/// The words and signs of a piece of code; `::` is one sign.
fn tokens(code: &str) -> Vec<(usize, String)> {
    let mut tokens: Vec<(usize, String)> = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let length = match word {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                length => length,
            };
            tokens.push((number + 1, rest[..length].to_owned()));
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

/// The top-level modules that the code of a file uses, with the lines.
/// `module` is the path of the file's own module, as `["grpc", "status"]`.
fn uses(module: &[String], code: &str) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let word = |at: usize| tokens.get(at).map_or("", |(_, word)| word.as_str());
    let mut found = Vec::new();
    // Inline modules open since the file's beginning: what depth each began at.
    let mut inner: Vec<usize> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while at < tokens.len() {
        match word(at) {
            "{" => {
                if at >= 2 && word(at - 2) == "mod" {
                    inner.push(depth);
                }
                depth += 1;
            }
            "}" => {
                depth -= 1;
                if inner.last() == Some(&depth) {
                    inner.pop();
                }
            }
            "crate" if word(at + 1) == "::" => found.extend(heads(&tokens, at + 2)),
            "super" if word(at + 1) == "::" && word(at.wrapping_sub(1)) != "::" => {
                let mut up = 1;
                while word(at + 2 * up) == "super" && word(at + 2 * up + 1) == "::" {
                    up += 1;
                }
                // A chain that climbs to the crate's root leaves the module.
                if up == module.len() + inner.len() {
                    found.extend(heads(&tokens, at + 2 * up));
                }
                at += 2 * up - 1;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The first segments of the path or group of paths that begins here.
fn heads(tokens: &[(usize, String)], at: usize) -> Vec<(usize, String)> {
    let Some((_, first)) = tokens.get(at) else { return Vec::new() };
    if first != "{" {
        return vec![tokens[at].clone()];
    }
    let mut heads = Vec::new();
    let mut depth = 0;
    for (i, (_, word)) in tokens.iter().enumerate().skip(at) {
        match word.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ if depth == 1 && matches!(tokens[i - 1].1.as_str(), "{" | ",") => {
                heads.push(tokens[i].clone());
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

/// The module of a file below `src`; none for the crate's own two roots.
fn module_of(file: &Path) -> Option<Vec<String>> {
    let mut path: Vec<String> = file
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    if path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    (path != ["lib"] && path != ["main"]).then_some(path)
}

/// A file of tests: `tests.rs` or `…_tests.rs`, beside or below its module.
fn is_test(module: &[String]) -> bool {
    module.iter().any(|name| names_tests(name))
}

fn names_tests(name: &str) -> bool {
    name == "tests" || name.ends_with("_tests")
}

/// What is wrong with a file's uses; empty when nothing is.
fn faults(file: &Path, text: &str) -> Vec<String> {
    let Some(module) = module_of(file) else { return Vec::new() };
    if is_test(&module) {
        return Vec::new();
    }
    let Some((own, allowed)) = MODULES.iter().find(|(name, _)| *name == module[0]) else {
        return vec![format!("{}: module `{}` is not in the table", file.display(), module[0])];
    };
    let code = code(text);
    if tokens(&code).windows(2).any(|pair| pair[0].1 == "mod" && names_tests(&pair[1].1)) {
        return vec![format!("src/{}: tests without `#[cfg(test)]`", file.display())];
    }
    uses(&module, &code)
        .into_iter()
        .filter(|(_, used)| used != own && !allowed.contains(&used.as_str()))
        .map(|(line, used)| format!("src/{}:{line}: `{own}` may not use `{used}`", file.display()))
        .collect()
}

/// Walks on from a module; answers the circle that the walk runs into.
fn visit<'a>(
    at: &'a str,
    edges: &BTreeMap<&'a str, &[&'a str]>,
    path: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<Vec<String>> {
    if let Some(start) = path.iter().position(|name| *name == at) {
        return Some(path[start..].iter().map(|name| (*name).to_owned()).collect());
    }
    if !done.insert(at) {
        return None;
    }
    path.push(at);
    let next = edges.get(at).copied().unwrap_or_default();
    let found = next.iter().find_map(|next| visit(next, edges, path, done));
    path.pop();
    found
}

/// A circle among the modules; `None` when there is none.
fn circle(table: &[(&str, &[&str])]) -> Option<Vec<String>> {
    let edges: BTreeMap<&str, &[&str]> = table.iter().copied().collect();
    let mut done = BTreeSet::new();
    table.iter().find_map(|(name, _)| visit(name, &edges, &mut Vec::new(), &mut done))
}

#[test]
fn every_use_is_an_edge_of_the_table() {
    let source = source();
    let faults: Vec<String> = rust_files(&source)
        .iter()
        .flat_map(|file| {
            faults(file.strip_prefix(&source).unwrap(), &fs::read_to_string(file).unwrap())
        })
        .collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn the_table_has_no_circle_and_uses_only_what_stands_above() {
    assert_eq!(circle(MODULES), None);
    for (place, (name, used)) in MODULES.iter().enumerate() {
        for used in *used {
            let above = MODULES[..place].iter().any(|(above, _)| above == used);
            assert!(above, "`{name}` uses `{used}`, which does not stand above it");
        }
    }
}

#[test]
fn the_readme_shows_the_same_table() {
    let readme = fs::read_to_string(source().with_file_name("README.md")).unwrap();
    let (_, architecture) = readme.split_once("\n## Architecture\n").unwrap();
    let (architecture, _) = architecture.split_once("\n## ").unwrap();
    let rows: Vec<(&str, &str)> = architecture
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "))
        .filter(|(module, _)| module.contains('`'))
        .map(|(module, rest)| (module.trim_matches(['*', '`']), rest.rsplit_once(" | ").unwrap().1))
        .collect();
    assert_eq!(rows.len(), MODULES.len());
    for (place, ((module, shown), (name, used))) in rows.iter().zip(MODULES).enumerate() {
        let used = match used.len() {
            0 => "–".to_owned(),
            all if all == place => "all above".to_owned(),
            _ => used.join(", "),
        };
        assert_eq!((*module, *shown), (*name, used.as_str()));
    }
}

#[test]
fn every_module_of_the_crate_is_in_the_table() {
    for entry in fs::read_dir(source()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let known = ["lib", "main"].contains(&name.as_str())
            || MODULES.iter().any(|(module, _)| *module == name);
        assert!(known, "src/{name} is not in the table of modules");
    }
}

#[test]
fn no_file_is_too_long() {
    let source = source();
    let long: Vec<String> = rust_files(&source)
        .iter()
        .filter(|file| {
            module_of(file.strip_prefix(&source).unwrap()).is_none_or(|module| !is_test(&module))
        })
        .filter_map(|file| {
            let text = fs::read_to_string(file).unwrap();
            let lines = own_lines(&text);
            (lines > LINES_MAX).then(|| format!("{}: {lines} lines", file.display()))
        })
        .collect();
    assert!(long.is_empty(), "over {LINES_MAX} lines without tests:\n{}", long.join("\n"));
}

/// How many lines a file has without its test modules.
fn own_lines(text: &str) -> usize {
    let bare = without_text(text);
    let tests = test_ranges(&bare).into_iter().map(|range| bare[range].lines().count());
    text.lines().count() - tests.sum::<usize>()
}

#[test]
fn no_lint_is_allowed_silently_and_nothing_is_left_to_do() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["src", "tests", "clients/rust/src", "bench/src"];
    for file in folders.iter().flat_map(|folder| rust_files(&root.join(folder))) {
        let text = without_text(&fs::read_to_string(&file).unwrap());
        let flat: String = text.split_whitespace().collect();
        for bad in ["#[allow(", "#![allow(", "todo!(", "unimplemented!("] {
            assert!(!flat.contains(bad), "{}: {bad}", file.display());
        }
    }
}

mod self_test {
    use super::*;

    fn found(file: &str, text: &str) -> Vec<String> {
        faults(Path::new(file), text)
    }

    #[test]
    fn a_bad_edge_is_found_however_it_is_written() {
        for bad in [
            "use crate::storage::Store;",
            "use crate::{domain::Task, storage::Store};",
            "use crate::{\n    domain::{Task, Step},\n    storage,\n};",
            "fn f() -> crate::storage::Store { g() }",
            "pub(in crate::storage) fn f() {}",
            "use super::storage::Store;",
            "use super::{domain, storage};",
            "mod inner { use super::super::storage::Store; }",
            "const A: char = '\"'; use crate::storage; const B: char = '\"';",
            "/* a /* b */ c */ use crate::storage;",
            "#[cfg(test)] use crate::engine; use crate::storage;",
        ] {
            assert_eq!(
                found("gateway/mod.rs", bad).len(),
                bad.matches("domain").count() + 1,
                "{bad}"
            );
        }
        assert_eq!(found("gateway/a/b.rs", "use super::super::super::storage::X;").len(), 1);
        let faults = found("domain/task.rs", "\nuse crate::pb;\n");
        assert_eq!(faults, ["src/domain/task.rs:2: `domain` may not use `pb`"]);
    }

    #[test]
    fn what_is_no_use_is_not_taken_for_one() {
        for good in [
            "use crate::{access::Refusal, pb::v1};",
            "use self::routes::Route; use routes::Route;",
            "// use crate::storage;\n/* crate::storage */ /// [`crate::storage`]\n",
            "const A: &str = \"crate::storage\"; const B: &str = r#\"crate::\"storage\"#;",
            "#[cfg(test)]\nmod tests {\n use crate::storage; fn f() { {} }\n}\n",
            "#[cfg(test)]\nmod tests;",
            "mod inner { use super::storage_names; }",
            "fn f<'a>(crate_: &'a str) -> &'a str { crate_ }",
        ] {
            assert_eq!(found("gateway/mod.rs", good), [""; 0], "{good}");
        }
        assert_eq!(found("gateway/a.rs", "use super::super::gateway::b;"), [""; 0]);
        assert_eq!(found("main.rs", "use crate::whatever;"), [""; 0]);
        assert_eq!(found("gateway/tests.rs", "use crate::storage;"), [""; 0]);
        assert_eq!(found("gateway/serve_tests.rs", "use crate::storage;"), [""; 0]);
        assert_eq!(found("gateway/mod.rs", "mod tests;").len(), 1);
        assert_eq!(found("gateway/mod.rs", "mod serve_tests;").len(), 1);
        assert_eq!(found("gateway/mod.rs", "#[cfg(test)]\nmod serve_tests;"), [""; 0]);
    }

    #[test]
    fn an_unknown_module_is_found() {
        assert_eq!(found("util/mod.rs", ""), ["util/mod.rs: module `util` is not in the table"]);
        assert_eq!(found("util.rs", "").len(), 1);
    }

    #[test]
    fn a_circle_is_found() {
        assert_eq!(circle(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]).unwrap(), ["b", "c"]);
        assert_eq!(circle(&[("a", &["a"])]).unwrap(), ["a"]);
        assert_eq!(circle(&[("a", &[]), ("b", &["a"])]), None);
    }

    #[test]
    fn tests_do_not_count_as_lines() {
        assert_eq!(own_lines("fn a() {}\n\n// b\n"), 3);
        assert_eq!(own_lines("fn a() {}\n#[cfg(test)]\nmod tests {\n\n    fn b() {}\n}\n"), 1);
    }
}
