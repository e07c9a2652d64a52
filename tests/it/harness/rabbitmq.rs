//! A real `RabbitMQ` of a test's own.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use super::{Process, http, process, steady_port};

/// Debian's wrapper insists on the system's user and folders; this is the
/// script behind it.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// Who may do everything.
pub const USER: &str = "owner";
/// Its password.
pub const PASSWORD: &str = "r@bbit p/ss:wrd";
/// A machine with other work may take its time to start Erlang.
const START: Duration = Duration::from_mins(3);

/// A broker with its folders and ports, which ends with the test.
#[derive(Debug)]
pub struct RabbitMq {
    /// Where it speaks plain AMQP.
    pub port: u16,
    /// Where it speaks AMQP over TLS; 0 without certificates.
    pub tls_port: u16,
    management: u16,
    client: reqwest::Client,
    _broker: Process,
    _names: Process,
    _home: TempDir,
}

impl RabbitMq {
    /// On loopback; with the files `server.pem` and `server-key.pem` of a
    /// folder it speaks TLS too.
    pub async fn start(certs: Option<&TempDir>) -> Self {
        assert!(
            Path::new(SERVER).exists(),
            "there is no RabbitMQ: run `tools/install.sh brokers`, or `make test`"
        );
        let home = tempfile::tempdir().unwrap();
        let [port, management, nodes, names] = [(); 4].map(|()| steady_port());
        let tls_port = if certs.is_some() { steady_port() } else { 0 };
        let config = settings(port, tls_port, management, certs);
        fs::write(home.path().join("rabbitmq.conf"), config).unwrap();
        fs::write(home.path().join("plugins"), "[rabbitmq_management].").unwrap();

        // Both end even when this process is killed. The broker would start
        // the daemon of names by itself, and leave it behind.
        let mut command = process::quiet("setpriv");
        command.args(["--pdeathsig", "KILL", "epmd", "-address", "127.0.0.1"]);
        command.args(["-port", &names.to_string()]);
        let names_daemon = Process::start(command);

        let mut command = process::quiet("setpriv");
        command.args(["--pdeathsig", "KILL", SERVER]);
        let path = |name: &str| home.path().join(name);
        command.env("HOME", home.path());
        command.env("RABBITMQ_NODENAME", format!("bailiwick-{port}@localhost"));
        command.env("RABBITMQ_DIST_PORT", nodes.to_string());
        command.env("ERL_EPMD_PORT", names.to_string());
        command.env("ERL_EPMD_ADDRESS", "127.0.0.1");
        command.env("RABBITMQ_MNESIA_BASE", path("data"));
        command.env("RABBITMQ_LOG_BASE", path("log"));
        command.env("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf"));
        command.env("RABBITMQ_ENABLED_PLUGINS_FILE", path("plugins"));
        command.env("RABBITMQ_CONF_ENV_FILE", path("none"));
        // So it is this process, and not one below it.
        command.env("RABBITMQ_ALLOW_INPUT", "1");
        command.env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "-noinput +S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        );
        let broker = Process::start(command);
        let ready = async {
            loop {
                let line = broker
                    .out
                    .wait_for(|line| line.contains("Server startup complete").then_some(()));
                match line.await {
                    Some(()) => return,
                    None if broker.out.ended() => break,
                    None => {}
                }
            }
            panic!("RabbitMQ has ended: {:#?} {:#?}", broker.out.all(), broker.err.all());
        };
        timeout(START, ready).await.expect("RabbitMQ starts in time");
        let client = http();
        Self {
            port,
            tls_port,
            management,
            client,
            _broker: broker,
            _names: names_daemon,
            _home: home,
        }
    }

    /// Its management API; answers the body.
    pub async fn manage(&self, verb: &str, path: &str, body: Value) -> Value {
        let url = format!("http://127.0.0.1:{}/api{path}", self.management);
        let call = self.client.request(verb.parse().unwrap(), &url).json(&body);
        let answer = call.basic_auth(USER, Some(PASSWORD)).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{verb} {url}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// Declares a queue of the virtual host `/`.
    pub async fn queue(&self, name: &str) {
        self.manage("PUT", &format!("/queues/%2F/{name}"), json!({"durable": true})).await;
    }

    /// Takes all messages of a queue.
    pub async fn take(&self, queue: &str) -> Vec<Value> {
        let body = json!({"count": 100, "ackmode": "ack_requeue_false", "encoding": "auto"});
        let taken = self.manage("POST", &format!("/queues/%2F/{queue}/get"), body).await;
        taken.as_array().unwrap().clone()
    }
}

fn settings(port: u16, tls_port: u16, management: u16, certs: Option<&TempDir>) -> String {
    let mut text = format!(
        "listeners.tcp.1 = 127.0.0.1:{port}\nlog.file = false\nlog.console = true\n\
         log.console.level = info\ndefault_user = {USER}\ndefault_pass = {PASSWORD}\n\
         management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n\
         vm_memory_high_watermark.absolute = 400MB\ndisk_free_limit.absolute = 1MB\n"
    );
    if let Some(certs) = certs {
        let file = |name: &str| certs.path().join(name).display().to_string();
        write!(
            text,
            "listeners.ssl.1 = 127.0.0.1:{tls_port}\nssl_options.cacertfile = {}\n\
             ssl_options.certfile = {}\nssl_options.keyfile = {}\n\
             ssl_options.verify = verify_none\n",
            file("ca.pem"),
            file("server.pem"),
            file("server-key.pem")
        )
        .unwrap();
    }
    text
}
