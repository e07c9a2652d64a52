//! A real Envoy of a test's own.

use std::fs;

use tempfile::TempDir;

use super::{Process, process, steady_port};

/// An Envoy with a configuration of `deploy/envoy`, which ends with the test.
#[derive(Debug)]
pub struct Envoy {
    /// Where it listens.
    pub port: u16,
    _process: Process,
    _home: TempDir,
}

impl Envoy {
    /// Starts it; each pair of texts is replaced in the configuration, and the
    /// port on which it listens by a free one.
    pub async fn start(file: &str, replaced: &[(&str, &str)]) -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/envoy/");
        let mut text = fs::read_to_string(format!("{path}{file}")).unwrap();
        let port = steady_port();
        let listens = format!("port_value: {port}");
        for (old, new) in replaced.iter().chain(&[("port_value: 10000", &*listens)]) {
            assert!(text.contains(old), "{file} does not say `{old}`");
            text = text.replace(old, new);
        }
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("envoy.yaml");
        fs::write(&config, text).unwrap();
        // It ends even when this process is killed.
        let mut command = process::quiet("setpriv");
        command.args(["--pdeathsig", "KILL", "envoy", "--disable-hot-restart"]);
        command.args(["--concurrency", "1", "--log-level", "info", "-c"]).arg(&config);
        let process = Process::start(command);
        let runs = |line: &str| line.contains("starting main dispatch loop").then_some(());
        assert!(
            process.err.wait_for(runs).await.is_some(),
            "envoy does not start; `tools/install.sh envoy` installs it: {:?}",
            process.err.all()
        );
        Self { port, _process: process, _home: home }
    }

    /// What it answers to a request with this token: the status and the body.
    pub async fn answer(&self, token: Option<&str>) -> (u16, String) {
        let mut request = super::http().get(format!("http://127.0.0.1:{}/charge", self.port));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }
}
