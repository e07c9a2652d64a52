//! `bailiwick quickstart` as a stranger meets it: nothing is told to these
//! tests but what it prints.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::harness::{Process, Ran, credentials, process, process::bailiwick, program, run};

/// A machine's part that a quickstart sees: its home, its folder for temporary
/// files and where it is started.
struct Place {
    root: TempDir,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for name in ["home", "tmp", "here"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        fs::write(root.path().join("home/kept"), "as it was").unwrap();
        fs::set_permissions(root.path().join("home"), fs::Permissions::from_mode(0o555)).unwrap();
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = bailiwick();
        command.arg("quickstart").args(args).current_dir(self.path("here"));
        command.env("HOME", self.path("home")).env("TMPDIR", self.path("tmp"));
        command
    }

    /// The one folder that the quickstart has made.
    fn folder(&self) -> PathBuf {
        let made: Vec<PathBuf> =
            fs::read_dir(self.path("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [folder] = &made[..] else { panic!("{made:?}") };
        folder.clone()
    }

    /// Every path with its size, but for the quickstart's own folder.
    fn around(&self) -> BTreeSet<(PathBuf, u64)> {
        let mut found = BTreeSet::new();
        let mut todo = vec![self.root.path().to_owned()];
        while let Some(folder) = todo.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let (path, about) = (entry.as_ref().unwrap().path(), entry.unwrap().metadata());
                let about = about.unwrap();
                if path.parent() == Some(&self.path("tmp")) && about.is_dir() {
                    continue;
                }
                found.insert((path.clone(), if about.is_dir() { 0 } else { about.len() }));
                if about.is_dir() {
                    todo.push(path);
                }
            }
        }
        found
    }
}

fn is_order(outcome: &Value) {
    assert_eq!(outcome["task"]["state"], "complete", "{outcome}");
    assert_eq!(outcome["task"]["steps"]["complete"], 5, "{outcome}");
    let results = &outcome["results"];
    assert_eq!(results.as_object().unwrap().len(), 5);
    // What a parent found out has reached its children.
    assert_eq!(results["charge_payment"]["total_cents"], results["validate_order"]["total_cents"]);
    assert_eq!(results["ship_order"]["paid_with"], results["charge_payment"]["receipt"]);
    assert_eq!(results["charge_payment"]["receipt"], "receipt-o-1001-2", "the second attempt");
}

#[tokio::test]
async fn quickstart_exit_runs_a_task_and_writes_into_its_own_folder_alone() {
    let place = Place::new();
    let before = place.around();
    let outcome = run(place.command(&["--exit", "--format", "json"])).await.json();
    is_order(&outcome);
    assert_eq!(place.around(), before);
    let folder = place.folder();
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn quickstart_exit_shows_the_retry_and_the_result() {
    let place = Place::new();
    let dir = place.path("here/mine");
    let shown = run(place.command(&["--exit", "--dir", dir.to_str().unwrap()])).await.good();
    let (_, rest) = shown.split_once("The result:\n").unwrap();
    let outcome = serde_json::Deserializer::from_str(rest).into_iter::<Value>().next();
    is_order(&outcome.unwrap().unwrap());
    let retried = |line: &&str| line.contains("charge_payment") && line.contains("(attempt 2)");
    assert!(
        shown
            .lines()
            .any(|line| line.contains("charge_payment") && line.contains("waiting_for_retry")),
        "{shown}"
    );
    assert!(shown.lines().any(|line| retried(&line) && line.contains("complete")), "{shown}");
    assert!(!shown.contains(&fs::read_to_string(dir.join("token")).unwrap()), "no secret");
    assert!(!shown.contains('\x1b'), "{shown:?}");
    let again = run(place.command(&["--exit", "--dir", dir.to_str().unwrap()])).await;
    assert_eq!(again.code, Some(2), "a folder that is there: {again}");
}

/// A quickstart that serves.
struct Serving {
    place: Place,
    process: Process,
}

impl Serving {
    async fn start() -> Self {
        let place = Place::new();
        let process = Process::start(place.command(&[]));
        let ready = |line: &str| line.contains("Serving until Ctrl-C").then_some(());
        let ready = process.out.wait_for(ready).await;
        assert!(ready.is_some(), "{:?} {:?}", process.out.all(), process.err.all());
        Self { place, process }
    }

    /// The printed line that begins like this.
    fn line(&self, begin: &str) -> String {
        let all = self.process.out.all();
        let line = all.iter().find(|line| line.starts_with(begin));
        line.unwrap_or_else(|| panic!("no line begins with {begin}: {all:#?}")).clone()
    }
}

/// Runs a line as if it were pasted.
async fn paste(line: &str) -> Ran {
    let mut shell = program("sh", &["-c", line]);
    // Another terminal's variables must not help.
    shell.env_remove("BAILIWICK_URL").env_remove("BAILIWICK_AUTH_TOKEN").current_dir("/");
    run(shell).await
}

#[tokio::test]
async fn quickstart_prints_lines_that_work_when_pasted() {
    let mut serving = Serving::start().await;
    let cli = process::path();
    let by_grpcurl = paste(&serving.line("grpcurl ")).await.json();
    let by_curl = paste(&serving.line("curl ")).await.json();
    let by_cli = paste(&serving.line(&format!("{cli} task create "))).await.good();
    assert!(by_cli.trim_end().ends_with("complete"), "{by_cli}");
    let list = serving.line(&format!("{cli} task list "));
    let connection = list.strip_prefix(&format!("{cli} task list ")).unwrap();
    let made = [&by_grpcurl["task"]["taskUuid"], &by_curl["task_uuid"]];
    for task in made {
        let task = task.as_str().unwrap();
        paste(&format!("{cli} task watch {task} --wait {connection}")).await.good();
    }
    let listed = paste(&format!("{list} --format json")).await.json();
    let tasks = listed["tasks"].as_array().unwrap();
    assert_eq!(tasks.len(), 4, "its own and three pasted: {listed}");
    assert!(tasks.iter().all(|task| task["state"] == "complete"), "{listed}");
    assert_eq!(paste(&list).await.good().lines().count(), 5);

    serving.process.interrupt();
    assert_eq!(serving.process.exit().await, Some(0), "{:?}", serving.process.err.all());
    let serve = serving.process.out.all().into_iter().find(|line| line.ends_with(" serve"));
    let serve = serve.expect("the line that serves again");
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec {}", serve.trim())]).current_dir("/").kill_on_drop(true);
    let mut server = Process::start(shell);
    // At `warn` it says nothing when it is up: the CLI finds it.
    let up = async {
        loop {
            let listed = paste(&format!("{list} --format json")).await;
            if listed.code != Some(3) {
                return listed;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let listed = tokio::time::timeout(crate::harness::PATIENCE, up).await.unwrap().json();
    assert_eq!(listed["tasks"].as_array().unwrap().len(), 4, "the tasks are still there");
    server.interrupt();
    assert_eq!(server.exit().await, Some(0));
}

#[tokio::test]
async fn se_21_the_quickstarts_token_is_a_jwt_of_a_day() {
    let mut serving = Serving::start().await;
    let folder = serving.place.folder();
    let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("token"), mode("keys/jwt-private-key.pem")), (0o600, 0o600));
    let token = fs::read_to_string(folder.join("token")).unwrap();
    let claims = token.trim().split('.').nth(1).unwrap();
    let claims: Value =
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    let (from, to) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
    assert_eq!(to - from, 24 * 3600);
    assert!((credentials::now() - from).abs() < 120);
    assert_eq!(claims["namespaces"], json!(["shop"]));

    let rest = serving.process.out.all().iter().find_map(|line| {
        let address = line.trim().strip_prefix("REST")?.trim().split(' ').next()?;
        Some(address.to_owned())
    });
    let tasks = format!("{}/v1/tasks", rest.unwrap());
    let http = crate::harness::http();
    assert_eq!(http.get(&tasks).send().await.unwrap().status(), 401, "auth is on");
    let known = http.get(&tasks).bearer_auth(token.trim()).send().await.unwrap();
    assert_eq!(known.status(), 200);
    serving.process.interrupt();
    assert_eq!(serving.process.exit().await, Some(0));
}

/// A first and a second quickstart in a network of their own, where nobody
/// else has the usual ports.
const TWO: &str = r#"
set -eu
ip link set lo up
"$0" quickstart > first.out 2> first.err &
first=$!
until grep -q 'Serving until' first.out; do kill -0 "$first"; sleep 0.05; done
"$0" quickstart --exit > second.out 2> second.err
kill -TERM "$first"
wait "$first"
"#;

#[tokio::test]
async fn quickstart_takes_other_ports_and_says_which() {
    let place = Place::new();
    let here = place.path("here");
    let mut two = program("unshare", &["-rn", "sh", "-c", TWO, process::path()]);
    two.current_dir(&here).env("HOME", place.path("home")).env("TMPDIR", place.path("tmp"));
    run(two).await.good();
    let read = |name: &str| fs::read_to_string(here.join(name)).unwrap();
    let (first, second) = (read("first.out"), read("second.out"));
    assert_eq!(read("first.err"), "", "the usual ports are free");
    let said = read("second.err");
    for (usual, what) in [(9190, "gRPC"), (8080, "REST")] {
        assert!(first.contains(&format!("{what}  http://127.0.0.1:{usual}")), "{first}");
        let begin = format!("port {usual} is taken; using ");
        let used = said.lines().find_map(|line| line.strip_prefix(&begin));
        let used: u16 = used.unwrap_or_else(|| panic!("{said}")).trim().parse().unwrap();
        assert!(second.contains(&format!("{what}  http://127.0.0.1:{used}")), "{second}");
    }
}

#[tokio::test]
async fn quickstarts_at_once_do_not_clash() {
    let places: Vec<Place> = (0..4).map(|_| Place::new()).collect();
    let runs = places.iter().map(|place| run(place.command(&["--exit", "--format", "json"])));
    for ran in futures::future::join_all(runs).await {
        is_order(&ran.json());
    }
}

#[tokio::test]
async fn quickstart_ends_on_ctrl_c_before_its_task_does() {
    let place = Place::new();
    let mut process = Process::start(place.command(&[]));
    let begun = process.out.wait_for(|line| line.contains("REST").then_some(())).await;
    assert!(begun.is_some(), "{:?}", process.err.all());
    process.interrupt();
    assert_eq!(process.exit().await, Some(0), "{:?}", process.err.all());
}

/// The path of a program is quoted where a shell would split it.
#[tokio::test]
async fn quickstart_quotes_what_a_shell_would_split() {
    let place = Place::new();
    let odd = place.path("a folder; it's $HOME");
    fs::create_dir(&odd).unwrap();
    let copy = odd.join("bailiwick");
    fs::copy(process::path(), &copy).unwrap();
    let mut command = Command::new(&copy);
    command.args(["quickstart", "--dir"]).arg(odd.join("data")).current_dir(place.path("here"));
    command.env("HOME", place.path("home")).kill_on_drop(true);
    let mut process = Process::start(command);
    let ready = process.out.wait_for(|line| line.contains("Serving until").then_some(())).await;
    assert!(ready.is_some(), "{:?}", process.err.all());
    let begin = "'";
    let create =
        process.out.all().into_iter().find(|l| l.starts_with(begin) && l.contains(" create "));
    paste(&create.unwrap()).await.good();
    let curl = process.out.all().into_iter().find(|line| line.starts_with("curl ")).unwrap();
    assert_eq!(paste(&curl).await.json()["steps"]["total"], 5);
    process.interrupt();
    assert_eq!(process.exit().await, Some(0));
    assert!(Path::new(&odd.join("data/token")).exists());
}
