//! The help of every command, found by reading it as a user would.

use crate::harness::alone;

/// The names under `Commands:`.
fn commands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.take_while(|line| !line.is_empty()).filter(|line| line.starts_with("  "));
    let names = names.filter(|line| !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[tokio::test]
async fn every_command_has_its_help() {
    let mut todo: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(command) = todo.pop() {
        let args: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let help = alone(&args).await.good();
        assert!(!help.contains('\x1b'), "{help:?}");
        let name = [&["bailiwick".to_owned()], &command[..]].concat().join("_");
        insta::assert_snapshot!(name, help);
        let below = commands(&help);
        assert!(!below.is_empty() || help.contains("\nExamples:\n"), "no examples: {help}");
        for below in below {
            todo.push([&command[..], &[below]].concat());
        }
        seen += 1;
    }
    assert!(seen > 30, "only {seen} commands");
}

#[tokio::test]
async fn completions_and_the_version_are_printed() {
    let script = alone(&["completions", "bash"]).await.good();
    assert!(script.contains("bailiwick__subcmd__task") || script.contains("bailiwick__task"));
    let version = alone(&["--version"]).await.good();
    assert_eq!(version.trim(), concat!("bailiwick ", env!("CARGO_PKG_VERSION")));
}
