#![expect(clippy::disallowed_methods, reason = "the runtime ends with the test")]

use std::{fs, path::Path, time::SystemTime};

use bailiwick_client::pb::v1::Lease;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// Wide enough for a busy machine; no test waits for it to pass.
const PATIENCE: Duration = Duration::from_mins(1);

fn lease() -> Lease {
    let at = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
    Lease {
        lease_id: "secret-lease".to_owned(),
        task_uuid: "0197-task".to_owned(),
        step_uuid: "0197-step".to_owned(),
        namespace: "shop".to_owned(),
        name: "reserve".to_owned(),
        handler: "reserve_stock".to_owned(),
        attempt: 2,
        context: r#"{"sku":"A1","price":12345678901234567890.10}"#.to_owned(),
        results: [("validate".to_owned(), "[1, 2]".to_owned())].into(),
        initialization: r#"{"PATH":"/evil","mode":"$(touch owned)"}"#.to_owned(),
        deadline: Some(at.into()),
        timeout_at: Some(at.into()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        template_name: "order".to_owned(),
        template_version: "1.2.3".to_owned(),
        ..Lease::default()
    }
}

fn environment(variables: &[(&str, &str)], pass: &[&str]) -> Arc<Environment> {
    let pass: Vec<String> = pass.iter().map(|name| (*name).to_owned()).collect();
    let all = variables.iter().map(|(name, value)| (name.into(), value.into()));
    keep_files_from_children();
    Arc::new(Environment { variables: chosen(all, &pass) })
}

fn command(script: &str, own_timeout: Option<Duration>) -> Command {
    Command::new("reserve_stock", script, environment(&[], &[]), own_timeout).unwrap()
}

fn step(cancelled: &CancellationToken) -> StepContext {
    StepContext::new(lease(), cancelled.clone(), Instant::now() + PATIENCE)
}

async fn run(script: &str) -> Result<String, HandlerError> {
    let command = command(script, None);
    let done = command.run(step(&CancellationToken::new()));
    timeout(PATIENCE, done).await.expect("it hangs").map(|result| result.get().to_owned())
}

/// The failure of a script, which must be of this kind.
async fn failure(script: &str, retryable: bool) -> String {
    let error = run(script).await.unwrap_err();
    assert_eq!(error.is_retryable(), retryable, "{error}");
    error.message().to_owned()
}

/// Waits until the process is gone, or a zombie that nobody reaps.
async fn dies(pid: &str) {
    let stat = format!("/proc/{}/stat", pid.trim());
    let dead = async {
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            sleep(GROUP_POLL).await;
        }
    };
    timeout(PATIENCE, dead).await.unwrap_or_else(|_| panic!("process {pid} lives on"));
}

async fn written(file: &Path) -> String {
    let written = async {
        loop {
            match fs::read_to_string(file) {
                Ok(text) if text.ends_with('\n') => return text,
                _ => sleep(GROUP_POLL).await,
            }
        }
    };
    timeout(PATIENCE, written).await.expect("the handler did not begin")
}

#[tokio::test]
async fn inputs_come_on_stdin_with_every_digit() {
    let input = run("cat").await.unwrap();
    assert!(input.contains("12345678901234567890.10"), "{input}");
    assert!(!input.contains("secret-lease"), "the lease's id is nobody's business");
    let input: Value = serde_json::from_str(&input).unwrap();
    assert_eq!(input["context"]["sku"], "A1");
    assert_eq!(input["results"], json!({ "validate": [1, 2] }));
    assert_eq!(
        input["step"],
        json!({
            "task_uuid": "0197-task", "step_uuid": "0197-step", "name": "reserve", "attempt": 2,
            "namespace": "shop", "handler": "reserve_stock", "method": null,
            "template_name": "order", "template_version": "1.2.3",
            "initialization": { "PATH": "/evil", "mode": "$(touch owned)" },
            "deadline": "2027-01-15T08:00:00Z", "timeout_at": "2027-01-15T08:00:00Z",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        })
    );
}

#[tokio::test]
async fn stdout_is_the_result() {
    assert_eq!(run(r#"echo '{"a": 1.50}'"#).await.unwrap(), r#"{"a": 1.50}"#);
    assert_eq!(run("echo; echo ' 7 '; echo").await.unwrap(), "7");
    assert_eq!(run("exit 0").await.unwrap(), "null");
    assert_eq!(run("echo").await.unwrap(), "null");
    for script in ["echo done", "echo '{} {}'", "printf '\\377\\376'", "echo '{\"a\":'"] {
        let error = failure(script, false).await;
        assert!(error.contains("the handler's output is not"), "{script}: {error}");
    }
}

#[tokio::test]
async fn the_exit_status_tells_whether_to_try_again() {
    assert_eq!(failure("exit 65", false).await, "exit status 65");
    assert_eq!(failure("exit 1", true).await, "exit status 1");
    assert_eq!(failure("echo '{}'; exit 2", true).await, "exit status 2");
    assert_eq!(failure("kill -9 $$", true).await, "killed by signal 9");
    assert!(failure("/no/such/program", true).await.starts_with("exit status 127: "));
}

#[tokio::test]
async fn stderr_ends_in_the_error_bounded_and_printable() {
    assert_eq!(failure("echo why >&2; exit 1", true).await, "exit status 1: why");
    let error = failure("printf 'a\\033[31mb\\000c\\377' >&2; exit 65", false).await;
    assert_eq!(error, "exit status 65: a\u{fffd}[31mb\u{fffd}c\u{fffd}");
    let script = "i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done >&2; exit 1";
    let error = failure(script, true).await;
    assert!(error.ends_with("line 29999"), "the end is what is kept");
    assert!(error.len() <= STDERR_BYTES_IN_ERROR + 32, "{}", error.len());
    let error = failure("echo sorry >&2; echo no json", false).await;
    assert!(error.ends_with("sorry"), "{error}");
}

#[tokio::test]
async fn a_result_has_a_bound() {
    let long =
        |bytes: usize| format!("printf '\"'; head -c {bytes} /dev/zero | tr '\\0' x; echo '\"'");
    assert_eq!(run(&long(1_000_000)).await.unwrap().len(), 1_000_002);
    let error = failure(&long(2_000_000), false).await;
    assert!(error.contains("more than 1048576 bytes"), "{error}");
    // One that never ends is stopped.
    assert_eq!(failure("yes", false).await, error);
}

#[tokio::test]
async fn a_child_that_reads_nothing_is_no_trouble() {
    let context = format!(r#"{{"long":"{}"}}"#, "x".repeat(1_000_000));
    let lease = Lease { context, ..lease() };
    let step = StepContext::new(lease, CancellationToken::new(), Instant::now() + PATIENCE);
    let ignoring = command("exec <&-; echo 1", None);
    assert_eq!(timeout(PATIENCE, ignoring.run(step.clone())).await.unwrap().unwrap().get(), "1");
    let reading = command("wc -c", None);
    let read: usize =
        timeout(PATIENCE, reading.run(step)).await.unwrap().unwrap().get().parse().unwrap();
    assert!(read > 1_000_000, "{read}");
}

#[tokio::test]
async fn what_a_child_leaves_behind_is_killed() {
    let folder = TempDir::new().unwrap();
    let pid = folder.path().join("pid");
    // The grandchild holds stdout open.
    let script = format!("sleep 3600 & echo $! > {}; echo '\"done\"'", pid.display());
    assert_eq!(run(&script).await.unwrap(), "\"done\"");
    dies(&written(&pid).await).await;
}

#[tokio::test]
async fn a_grandchild_that_left_the_group_does_not_hold_the_step() {
    let folder = TempDir::new().unwrap();
    let pid = folder.path().join("pid");
    let script = format!(
        "setsid sh -c 'echo $$ > {0}; exec sleep 3600' & while [ ! -s {0} ]; do :; done; echo 5",
        pid.display()
    );
    assert_eq!(run(&script).await.unwrap(), "5");
    let left = written(&pid).await.trim().parse().unwrap();
    rustix::process::kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_timeout_ends_the_group_gently() {
    let folder = TempDir::new().unwrap();
    let (pid, clean) = (folder.path().join("pid"), folder.path().join("clean"));
    let script = format!(
        "trap 'echo cleaned > {}; echo bye >&2; exit 0' TERM; sleep 3600 & echo $! > {}; wait",
        clean.display(),
        pid.display()
    );
    // The step's own time; it must begin before that.
    let until = Instant::now() + Duration::from_secs(2);
    let step = StepContext::new(lease(), CancellationToken::new(), until);
    let error = timeout(PATIENCE, command(&script, None).run(step)).await.unwrap().unwrap_err();
    assert!(error.is_retryable());
    assert_eq!(error.message(), "timed out after 2 s: bye");
    assert!(Instant::now() >= until);
    assert_eq!(fs::read_to_string(&clean).unwrap(), "cleaned\n");
    dies(&written(&pid).await).await;
}

#[tokio::test]
async fn the_operators_timeout_binds_too_and_a_deaf_child_is_killed() {
    let folder = TempDir::new().unwrap();
    let pid = folder.path().join("pid");
    let script = format!("trap '' TERM; echo $$ > {}; while :; do sleep 3600; done", pid.display());
    let began = Instant::now();
    let deaf = command(&script, Some(Duration::from_secs(1)));
    let error = timeout(PATIENCE, deaf.run(step(&CancellationToken::new()))).await.unwrap();
    assert_eq!(error.unwrap_err().message(), "timed out after 1 s");
    assert!(began.elapsed() >= KILL_AFTER, "it was given its grace");
    dies(&written(&pid).await).await;
}

#[tokio::test]
async fn a_cancelled_step_ends_its_group() {
    let folder = TempDir::new().unwrap();
    let pid = folder.path().join("pid");
    let script = format!("sleep 3600 & echo $! > {}; wait", pid.display());
    let cancelled = CancellationToken::new();
    let (command, step) = (command(&script, None), step(&cancelled));
    let running = tokio::spawn(async move { command.run(step).await });
    let grandchild = written(&pid).await;
    cancelled.cancel();
    let error = timeout(PATIENCE, running).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.message(), "cancelled");
    dies(&grandchild).await;
}

#[tokio::test]
async fn a_dropped_step_kills_its_group() {
    let folder = TempDir::new().unwrap();
    let pid = folder.path().join("pid");
    let script = format!("trap '' TERM; sleep 3600 & echo $! > {}; wait", pid.display());
    let (command, step) = (command(&script, None), step(&CancellationToken::new()));
    let running = tokio::spawn(async move { command.run(step).await });
    let grandchild = written(&pid).await;
    running.abort();
    dies(&grandchild).await;
}

/// What a handler's `env` prints, as sorted names.
async fn names_in(environment: Arc<Environment>) -> Vec<String> {
    let command = Command::new(
        "h",
        "env | cut -d= -f1 | sort | tr '\\n' ' ' | sed 's/.*/\"&\"/'",
        environment,
        None,
    )
    .unwrap();
    let names = command.run(step(&CancellationToken::new())).await.unwrap();
    let names: String = serde_json::from_str(names.get()).unwrap();
    // What a shell sets for itself.
    let own = ["PWD", "OLDPWD", "SHLVL", "_"];
    names.split_whitespace().filter(|name| !own.contains(name)).map(str::to_owned).collect()
}

#[tokio::test]
async fn se_19_a_handler_gets_a_clean_environment() {
    let all = [
        ("PATH", "/usr/bin:/bin"),
        ("HOME", "/home/worker"),
        ("LANG", "C"),
        ("LC_ALL", "C"),
        ("BAILIWICK_WORKER_AUTH_TOKEN", "secret"),
        ("BAILIWICK_AUTH_TOKEN", "secret"),
        ("BAILIWICK_API_KEY", "secret"),
        ("BAILIWICK_URL", "http://127.0.0.1:9190"),
        ("LD_PRELOAD_X", "x"),
        ("HOMEX", "x"),
        ("SHOP_DB", "x"),
        ("OTHER", "x"),
    ];
    assert_eq!(names_in(environment(&all, &[])).await, ["HOME", "LANG", "LC_ALL", "PATH"]);
    let passed = ["HOME", "LANG", "LC_ALL", "PATH", "SHOP_DB"];
    assert_eq!(names_in(environment(&all, &["SHOP_DB", "ABSENT"])).await, passed);
    assert_eq!(names_in(environment(&[], &[])).await, ["PATH"]);
}

#[tokio::test]
async fn se_19_no_template_text_reaches_the_command_line() {
    // Neither names, nor settings, nor results reach the command line.
    let hostile = Lease {
        name: "$(touch owned)".to_owned(),
        handler: "; touch owned".to_owned(),
        template_name: "`touch owned`".to_owned(),
        traceparent: Some("00-$(touch owned)".to_owned()),
        ..lease()
    };
    let step = StepContext::new(hostile, CancellationToken::new(), Instant::now() + PATIENCE);
    let script = r"tr '\0' '\n' < /proc/$$/cmdline | grep -c owned";
    let count = Command::new("h", script, environment(&[], &[]), None).unwrap();
    // The script's own text holds the word once, and nothing adds to it.
    assert_eq!(count.run(step).await.unwrap().get(), "1");
    assert!(!Path::new("owned").exists());
}

/// Runs itself again under a shell that leaves files open, as a careless
/// parent would.
#[tokio::test]
async fn se_19_no_open_file_reaches_a_handler() {
    const AGAIN: &str = "BAILIWICK_TEST_WITH_OPEN_FILES";
    if env::var_os(AGAIN).is_some() {
        assert!(Path::new("/proc/self/fd/7").exists(), "the file is not open here");
    }
    // The fourth is the folder that `ls` reads.
    let error = failure("ls /proc/self/fd >&2; exit 1", true).await;
    assert_eq!(error, "exit status 1: 0\n1\n2\n3");
    if env::var_os(AGAIN).is_none() {
        let again = tokio::process::Command::new("/bin/sh")
            .args(["-c", r#"exec 5</dev/null 7<&5; exec "$0" --exact "$1""#])
            .arg(env::current_exe().unwrap())
            .arg("worker::exec::tests::se_19_no_open_file_reaches_a_handler")
            .env(AGAIN, "1")
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&again.stdout);
        assert!(again.status.success() && said.contains("1 passed"), "{said}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn se_19_a_handler_cannot_look_into_the_worker() {
    Environment::from_process(&[]).unwrap();
    let dumpable = rustix::process::dumpable_behavior().unwrap();
    assert_eq!(dumpable, rustix::process::DumpableBehavior::NotDumpable);
}
