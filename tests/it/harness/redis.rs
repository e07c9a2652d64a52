//! A real Redis of a test's own.

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::timeout;

use super::{PATIENCE, Process, process, steady_port};

/// The password of its default user.
pub const PASSWORD: &str = "r3dis p@ss/w:rd";

/// A Redis server in memory, which ends with the test.
#[derive(Debug)]
pub struct Redis {
    /// Where it speaks plain text.
    pub port: u16,
    /// Where it speaks TLS; 0 without certificates.
    pub tls_port: u16,
    _process: Process,
    _home: TempDir,
}

impl Redis {
    /// On loopback; with the files `server.pem` and `server-key.pem` of a
    /// folder it speaks TLS too.
    pub async fn start(certs: Option<&TempDir>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let port = steady_port();
        let tls_port = if certs.is_some() { steady_port() } else { 0 };
        // It ends even when this process is killed.
        let mut command = process::quiet("setpriv");
        command.args(["--pdeathsig", "KILL", "redis-server", "--bind", "127.0.0.1"]);
        command.args(["--port", &port.to_string(), "--tls-port", &tls_port.to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--requirepass", PASSWORD]);
        command.arg("--dir").arg(home.path());
        if let Some(certs) = certs {
            let file = |name: &str| certs.path().join(name);
            command.arg("--tls-cert-file").arg(file("server.pem"));
            command.arg("--tls-key-file").arg(file("server-key.pem"));
            command.arg("--tls-ca-cert-file").arg(file("ca.pem"));
            command.args(["--tls-auth-clients", "no"]);
        }
        let process = Process::start(command);
        let ready = process.out.wait_for(|line| line.contains("Ready to accept").then_some(()));
        assert!(
            ready.await.is_some(),
            "redis-server does not start; `tools/install.sh brokers` installs it: {:?} {:?}",
            process.out.all(),
            process.err.all()
        );
        Self { port, tls_port, _process: process, _home: home }
    }

    fn cli(&self) -> tokio::process::Command {
        let mut command = process::quiet("redis-cli");
        command.args(["-p", &self.port.to_string()]).env("REDISCLI_AUTH", PASSWORD);
        command
    }

    /// What `redis-cli` says to a command, as JSON.
    pub async fn ask(&self, words: &[&str]) -> Value {
        let mut command = self.cli();
        command.args(["-3", "--json"]).args(words);
        let ran = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
        let text = String::from_utf8(ran.stdout).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{words:?}: {text}"))
    }

    /// Listens on a channel; each message is a line.
    pub async fn subscribe(&self, channel: &str) -> Process {
        let mut command = self.cli();
        command.args(["SUBSCRIBE", channel]);
        let process = Process::start(command);
        let there = process.out.wait_for(|line| (line == channel).then_some(()));
        there.await.expect("the subscription is confirmed");
        process
    }
}
