//! Commands of rules as real processes: what they get, what they do not, and
//! that nothing of them stays (SE-61). With the program's own supervisor.

use std::{fs, os::fd::AsRawFd as _, process::Stdio, time::Duration};

use bailiwick::process::{Launcher, PATH, Report, RunAs};
use tokio::{
    io::AsyncReadExt as _,
    process::Command,
    time::{Instant, sleep, timeout},
};

use crate::harness::{self, BAILIWICK, PATIENCE, Setup};

/// Longer than any test waits.
const LONG: Duration = Duration::from_hours(1);

fn launcher(time_max: Duration) -> Launcher {
    Launcher::by(BAILIWICK.into(), RunAs::own(), time_max)
}

async fn run(command: &[&str], variables: &[(&str, String)]) -> Report {
    let launcher = launcher(LONG);
    timeout(PATIENCE, launcher.run(command, variables)).await.expect("it hangs")
}

/// What a script says that does well.
async fn says(script: &str) -> String {
    let Report { ended, output } = run(&["/bin/sh", "-c", script], &[]).await;
    assert_eq!(ended, Ok(()), "{output}");
    output
}

/// How a script ends that does not.
async fn fails(command: &[&str]) -> (String, String) {
    let Report { ended, output } = run(command, &[]).await;
    (ended.unwrap_err(), output)
}

/// Waits until the process is gone, or a zombie that nobody reaps.
async fn dies(pid: &str) {
    let stat = format!("/proc/{}/stat", pid.trim());
    assert!(pid.trim().parse::<u32>().is_ok(), "no process id: {pid:?}");
    let dead = async {
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, dead).await.unwrap_or_else(|_| panic!("process {pid} lives on"));
}

/// The lines of a file, once there are so many.
async fn lines(file: &std::path::Path, count: usize) -> Vec<String> {
    let written = async {
        loop {
            let text = fs::read_to_string(file).unwrap_or_default();
            if text.ends_with('\n') && text.lines().count() >= count {
                return text.lines().map(str::to_owned).collect();
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, written).await.expect("the command did not begin")
}

#[tokio::test]
async fn se_61_the_environment_is_this_and_no_more() {
    // The test's own has PATH and CARGO variables, and more.
    assert!(std::env::vars().count() > 3);
    let report = run(&["env"], &[("BAILIWICK_JOB_ID", "deploy.a".to_owned())]).await;
    let mut lines: Vec<&str> = report.output.lines().collect();
    lines.sort_unstable();
    let home = lines.iter().find(|line| line.starts_with("HOME=/")).copied().unwrap();
    let path = format!("PATH={PATH}");
    assert_eq!(lines, ["BAILIWICK_JOB_ID=deploy.a", home, "LANG=C.UTF-8", &path]);
}

#[tokio::test]
async fn se_61_a_job_is_data_and_never_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("owned");
    let id = format!("a'\"; $(touch {0}) `touch {0}` & touch {0} #", mark.display());
    let variables = [("BAILIWICK_JOB_ID", id.clone())];
    for script in ["printf %s \"$BAILIWICK_JOB_ID\"", "printf %s $BAILIWICK_JOB_ID >&2; :"] {
        let report = run(&["/bin/sh", "-c", script], &variables).await;
        assert_eq!(report.ended, Ok(()));
        assert_eq!(report.output.replace(' ', ""), id.replace(' ', ""));
    }
    assert!(!mark.exists());
}

#[tokio::test]
async fn se_61_a_command_stands_at_the_root_with_nothing_of_the_server() {
    // A file of the server that children would get.
    let file = tempfile::tempfile().unwrap();
    let open = rustix::io::dup(&file).unwrap();
    assert!(open.as_raw_fd() > 2);
    assert_eq!(says("pwd").await, "/");
    assert_eq!(says("readlink /proc/self/fd/0").await, "/dev/null");
    assert_eq!(says("umask").await, "0077");
    assert_eq!(says("ulimit -c").await, "0");
    assert!(says("grep NoNewPrivs /proc/self/status").await.ends_with('1'));
    // The last one is the folder that `ls` reads.
    assert_eq!(says("exec ls /proc/self/fd").await, "0\n1\n2\n3");
    drop(open);
}

#[tokio::test]
async fn se_61_a_command_has_a_group_and_no_terminal() {
    let stat = says("exec cat /proc/self/stat").await;
    let pid = stat.split(' ').next().unwrap();
    let rest: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let [_, parent, group, session, terminal, ..] = rest[..] else { panic!("{stat}") };
    assert_eq!(group, pid, "a group of its own");
    assert_eq!(session, parent, "the session of its supervisor");
    assert_eq!(terminal, "0");
    assert_ne!(parent, std::process::id().to_string());
}

#[tokio::test]
async fn se_61_a_command_is_the_named_user_with_its_groups_alone() {
    let nobody = RunAs::user("nobody");
    if !RunAs::own().is_root() {
        let refused = nobody.unwrap_err().to_string();
        assert!(refused.contains("the server is not root"), "{refused}");
        return;
    }
    let launcher = Launcher::by(BAILIWICK.into(), nobody.unwrap(), LONG);
    launcher.probe().await.unwrap();
    let report = launcher.run(&["cat", "/proc/self/status"], &[]).await;
    assert_eq!(report.ended, Ok(()), "{}", report.output);
    let field = |name: &str| -> Vec<u64> {
        let line = report.output.lines().find(|line| line.starts_with(name)).unwrap();
        let radix = if name.starts_with("Cap") { 16 } else { 10 };
        line.split_whitespace().skip(1).map(|id| u64::from_str_radix(id, radix).unwrap()).collect()
    };
    let id = |flag: &'static str| async move {
        let ran = Command::new("id").args([flag, "nobody"]).output().await.unwrap();
        let text = String::from_utf8(ran.stdout).unwrap();
        text.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<u64>>()
    };
    assert_eq!(field("Uid:"), [id("-u").await[0]; 4]);
    assert_eq!(field("Gid:"), [id("-g").await[0]; 4]);
    assert_eq!(field("Groups:"), id("-G").await);
    for none in ["CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(none), [0], "{none}");
    }
    let report = launcher.run(&["sh", "-c", "kill -0 $PPID && echo may"], &[]).await;
    assert!(!report.output.contains("may"), "its supervisor is out of its reach");
}

#[tokio::test]
async fn se_61_nothing_runs_when_rights_cannot_be_put_down() {
    for ids in ["x", "1:x:", "", "4711"] {
        let mut command = harness::process::bailiwick();
        command.args(["__supervise", ids, "/bin/sh", "-c", "echo ran"]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        let lifeline = child.stdin.take();
        let ran = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        drop(lifeline);
        assert_eq!(ran.status.code(), Some(126), "{ids}");
        assert_eq!(ran.stdout, b"");
        let said = String::from_utf8(ran.stderr).unwrap();
        assert!(said.contains("cannot be put down"), "{said}");
    }
}

#[tokio::test]
async fn a_command_ends_as_it_ends() {
    let sh = |script: &'static str| ["/bin/sh", "-c", script];
    assert_eq!(fails(&sh("echo no >&2; exit 3")).await, ("exit status 3".into(), "no".into()));
    assert_eq!(fails(&sh("kill -9 $$")).await.0, "killed by signal 9");
    assert_eq!(fails(&sh("kill -ABRT $$")).await.0, "killed by signal 6");
    let (error, output) = fails(&["no-such-program-here"]).await;
    assert_eq!(error, "exit status 127");
    assert!(output.contains("no-such-program-here cannot be started"), "{output}");
    assert_eq!(fails(&["/etc/passwd"]).await.0, "exit status 126");
    let absent = Launcher::by("/no/such/program".into(), RunAs::own(), LONG);
    let report = absent.run(&["true"], &[]).await;
    assert!(report.ended.unwrap_err().contains("no process can be started"));
    assert!(absent.probe().await.is_err());
    launcher(LONG).probe().await.unwrap();
}

#[tokio::test]
async fn output_is_drained_and_its_end_kept() {
    let began = Instant::now();
    let output = says("head -c 100000000 /dev/zero | tr '\\0' x; echo; echo END >&2").await;
    assert!(output.len() <= 4096, "{}", output.len());
    assert!(output.starts_with("xxx") && output.ends_with("x\nEND"), "{output}");
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(says("printf 'a\\033[2Jb\\000c\\nd'").await, "a\u{fffd}[2Jb\u{fffd}c\nd");
}

#[tokio::test]
async fn se_61_no_child_outlives_or_holds_its_run() {
    let began = Instant::now();
    let output = says(
        "sleep 3600 & echo $!; setsid sleep 3601 & echo $!; \
         (setsid sh -c 'trap \"\" TERM; echo $$; sleep 3602 & echo $!; wait' &) ; sleep 0.3",
    )
    .await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let pids: Vec<&str> = output.lines().collect();
    assert_eq!(pids.len(), 4, "{output}");
    for pid in pids {
        dies(pid).await;
    }
}

#[tokio::test]
async fn se_61_the_time_limit_ends_all_that_was_started() {
    let script = "trap '' TERM; echo $$; sh -c 'trap \"\" TERM; echo $$; sleep 3600' & \
                  setsid sleep 3601 & echo $!; wait";
    let began = Instant::now();
    let launcher = launcher(Duration::from_secs(1));
    let command = ["/bin/sh", "-c", script];
    let done = timeout(PATIENCE, launcher.run(&command, &[]));
    let Report { ended, output } = done.await.expect("it hangs");
    assert_eq!(ended, Err("timed out after 1 s".to_owned()));
    assert!(began.elapsed() >= Duration::from_secs(1));
    let pids: Vec<&str> = output.lines().collect();
    assert_eq!(pids.len(), 3, "{output}");
    for pid in pids {
        dies(pid).await;
    }
}

#[tokio::test]
async fn a_command_that_is_stopped_may_clean_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let script = format!(
        "exec 2> /dev/null; trap 'sleep 0.2; echo cleaned >> {0}; exit 0' TERM; echo began >> {0}; \
         while :; do sleep 0.05; done",
        file.display()
    );
    let launcher = launcher(LONG);
    {
        let command = ["/bin/sh", "-c", &script];
        let run = launcher.run(&command, &[]);
        tokio::select! {
            report = run => panic!("it ended: {report:?}"),
            _ = lines(&file, 1) => {}
        }
        // Dropped here: nobody waits for it, or reads what it says.
    }
    assert_eq!(lines(&file, 2).await, ["began", "cleaned"]);
}

/// Starts a command whose server is another process, which is killed; and
/// asks whether all that the command started ends.
async fn without(kill: impl AsyncFnOnce(u32, &mut tokio::process::Child)) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let mut server = Command::new("sleep").arg("3600").stdout(Stdio::piped()).spawn().unwrap();
    let lifeline: Stdio = server.stdout.take().unwrap().try_into().unwrap();
    let script = format!("echo $$ >> {0}; sleep 3600 & echo $! >> {0}; wait", file.display());
    let mut command = harness::process::bailiwick();
    command.args(["__supervise", "-", "/bin/sh", "-c", &script]).stdin(lifeline);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut supervisor = command.spawn().unwrap();
    drop(command);
    let pids = lines(&file, 2).await;
    kill(server.id().unwrap(), &mut supervisor).await;
    dies(&pids[0]).await;
    let mut said = String::new();
    let mut pipe = supervisor.stderr.take().unwrap();
    if supervisor.try_wait().unwrap().is_none() {
        timeout(PATIENCE, supervisor.wait()).await.unwrap().unwrap();
        dies(&pids[1]).await;
        timeout(PATIENCE, pipe.read_to_string(&mut said)).await.unwrap().unwrap();
        assert_eq!(said, "");
    }
    let _gone = server.kill().await;
    let _gone = Command::new("kill").args(["-9", &pids[1]]).output().await;
}

#[tokio::test]
async fn se_61_commands_end_when_the_server_is_killed() {
    without(async |server: u32, _: &mut tokio::process::Child| {
        let pid = server.to_string();
        let killed = Command::new("kill").args(["-9", &pid]).status().await.unwrap();
        assert!(killed.success());
    })
    .await;
}

#[tokio::test]
async fn se_61_a_command_ends_when_its_supervisor_is_killed() {
    without(async |_: u32, supervisor: &mut tokio::process::Child| {
        supervisor.kill().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn se_61_a_server_without_run_as_does_not_start() {
    let with = |rest: &str| Setup { rest: rest.to_owned(), ..Setup::default() };
    for kind in ["shell", "direct", "awf"] {
        let said = harness::refused(&with(&format!("[scheduler]\nrunners = [\"{kind}\"]\n"))).await;
        assert!(said.contains("scheduler.run_as"), "{said}");
        assert!(said.contains("name the user that they run as"), "{said}");
    }
    let unknown = with("[scheduler]\nrunners = [\"shell\"]\nrun_as = \"no-such-user\"\n");
    let said = harness::refused(&unknown).await;
    assert!(said.contains("there is no user `no-such-user`"), "{said}");
    let said = harness::refused(&with("[scheduler]\nrunners = [\"shel\"]\n")).await;
    assert!(said.contains("did you mean `shell`?"), "{said}");
}
