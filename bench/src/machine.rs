//! What the figures were measured on.

use std::{fs, path::Path, process::Command, thread};

/// One line for each part of the machine, and the commit.
pub(crate) fn description(folder: &Path) -> Vec<String> {
    let cores = thread::available_parallelism().map_or(0, std::num::NonZero::get);
    vec![
        format!("machine      {cores} cores, {}, {} MiB of memory", processor(), memory_mib()),
        format!("kernel       {}", read("/proc/sys/kernel/osrelease")),
        format!("file system  {}", file_system(folder)),
        format!("commit       {}", commit()),
    ]
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn processor() -> String {
    let text = read("/proc/cpuinfo");
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| "unknown processor".to_owned(), |(_, model)| model.trim().to_owned())
}

fn memory_mib() -> u64 {
    let text = read("/proc/meminfo");
    let kib =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// The kind and the device of the file system that a folder is on.
fn file_system(folder: &Path) -> String {
    let Ok(folder) = folder.canonicalize() else { return "unknown".to_owned() };
    let mounts = read("/proc/self/mounts");
    let mount = |line: &str| {
        let mut fields = line.split_whitespace();
        let (device, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        let length = folder.starts_with(point).then_some(point.len())?;
        Some((length, format!("{kind} on {device}")))
    };
    // The longest mount point that holds the folder; of two the later one.
    let found = mounts.lines().filter_map(mount).max_by_key(|(length, _)| *length);
    found.map_or_else(|| "unknown".to_owned(), |(_, name)| name)
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    match changed.as_deref() {
        Some("") => commit,
        Some(_) | None => format!("{commit} with changes"),
    }
}
