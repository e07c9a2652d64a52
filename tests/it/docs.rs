//! Holds the docs to the source: links lead somewhere, every setting and every
//! figure is named.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file below a folder whose name ends so.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
    found
}

#[test]
fn every_link_within_the_docs_leads_somewhere() {
    let mut pages = files(&root().join("docs"), ".md");
    pages.push(root().join("README.md"));
    let mut links = 0;
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1) {
            let (target, _) = link.split_once(')').unwrap();
            let file = target.split_once('#').map_or(target, |(file, _)| file);
            if file.is_empty() || file.contains("://") {
                continue;
            }
            links += 1;
            assert!(page.with_file_name(file).exists(), "{}: {target}", page.display());
        }
    }
    assert!(links > 20, "only {links} links were found");
}

#[test]
fn every_setting_is_in_configuration_md() {
    let docs = read("docs/configuration.md");
    let settings = read("src/config/raw.rs");
    let (settings, _) = settings.split_once("const LATER").unwrap();
    let keys: BTreeSet<&str> = settings
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub(super) ")?.split_once(": "))
        .map(|(key, _)| key)
        .collect();
    assert!(keys.contains("grpc_listen") && keys.contains("jwt_issuer"), "{keys:?}");
    for key in keys {
        let named = [format!("`{key}`"), format!("[{key}]"), format!("[[auth.{key}]]")];
        assert!(named.iter().any(|name| docs.contains(name)), "`{key}` is not in the docs");
    }
}

#[test]
fn every_figure_is_in_operations_md() {
    let docs = read("docs/operations.md");
    let mut figures = BTreeSet::new();
    for file in files(&root().join("src"), ".rs") {
        let text = fs::read_to_string(&file).unwrap();
        for part in text.split("!(").skip(1) {
            let name = part.trim_start().strip_prefix("\"bailiwick_");
            if let Some((name, _)) = name.and_then(|name| name.split_once('"'))
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            {
                figures.insert(format!("bailiwick_{name}"));
            }
        }
    }
    assert!(figures.contains("bailiwick_requests_total"), "{figures:?}");
    for figure in figures {
        assert!(docs.contains(&format!("`{figure}`")), "`{figure}` is not in the docs");
    }
}
