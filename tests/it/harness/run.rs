//! Programs that run to their end, and the shop that most tests work in.

use std::{fmt, process::Stdio};

use serde_json::Value;
use tokio::{process::Command, time::timeout};

use super::{PATIENCE, Server, process::bailiwick};

/// What a program said, and how it ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The exit code; none for a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit {:?}\nstdout:\n{}\nstderr:\n{}", self.code, self.out, self.err)
    }
}

impl Ran {
    /// Fails the test unless the program ended well; answers its output.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self}");
        self.out
    }

    /// Its output as one JSON value, after a good end.
    #[track_caller]
    pub fn json(self) -> Value {
        let out = self.good();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    /// Both outputs.
    pub fn said(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// Runs a program to its end; one that is missing is a failure that says how
/// to get it.
pub async fn run(mut command: Command) -> Ran {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let running = command.spawn().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; `make test` installs what the tests need")
    });
    let output = timeout(PATIENCE, running.wait_with_output()).await;
    let output = output.unwrap_or_else(|_| panic!("{command:?} does not end")).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// A program with arguments, in this process's environment.
pub fn program(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(args);
    command
}

/// `bailiwick` alone, with arguments and no environment.
pub async fn alone(args: &[&str]) -> Ran {
    let mut command = bailiwick();
    command.args(args);
    run(command).await
}

impl Server {
    /// Runs `bailiwick` as root of this server.
    pub async fn run(&self, args: &[&str]) -> Ran {
        let mut command = self.cli();
        command.args(args);
        run(command).await
    }

    /// The JSON that a command prints for root.
    pub async fn run_json(&self, args: &[&str]) -> Value {
        self.run(&[args, &["--format", "json"]].concat()).await.json()
    }

    /// Registers a template of the namespace `shop` from the YAML of its steps.
    pub async fn template(&self, name: &str, steps: &str) {
        let file = self.path(&format!("{name}.yaml"));
        let text = format!("name: {name}\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n{steps}\n");
        std::fs::write(&file, text).unwrap();
        self.run(&["template", "register", file.to_str().unwrap()]).await.good();
    }

    /// Creates a task of the namespace `shop`; answers its id.
    pub async fn task(&self, name: &str, context: &str) -> String {
        let template = format!("shop/{name}");
        let task = self.run_json(&["task", "create", &template, "--context", context]).await;
        task["task_uuid"].as_str().unwrap().to_owned()
    }

    /// Waits until a task ends or is blocked; answers it.
    pub async fn ended(&self, task: &str) -> Value {
        self.run(&["task", "watch", task, "--wait"]).await;
        self.run_json(&["task", "get", task]).await
    }

    /// A step of a task, by its name.
    pub async fn step(&self, task: &str, step: &str) -> Value {
        self.run_json(&["step", "get", task, step]).await
    }
}
