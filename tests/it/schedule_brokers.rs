//! The runners `amqp` and `redis` against real brokers.

use std::{fs, sync::Arc};

use bailiwick::{
    config::{self, Authorities},
    domain::{
        Network, Principal, Timestamp,
        principal::{GrantRef, Method},
        schedule::{Identifier, Nanos, RedisCommand, Rule, Runner},
        task::RetryPolicy,
    },
    egress::Egress,
    schedule::{Ended, Firing, Tools},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{
        ROOT_KEY, Server, Setup,
        rabbitmq::{self, RabbitMq},
        redis::{self, Redis},
        run, steady_port,
    },
    schedule_process::{OVER, job, rule, run as ended},
    tls::generated,
};

const JOB: &str = "deploy.nightly \"ü\"";
const EXECUTION: i64 = 1_775_044_800_000_000_001;
const GOOD: Ended = Ended { error: None, retryable: false, output: None };

fn failed(error: &str, retryable: bool) -> Ended {
    Ended { error: Some(error.to_owned()), retryable, output: None }
}

/// Tools that may connect to loopback, and trust an authority.
fn tools(certs: Option<&TempDir>) -> Tools {
    let ca = certs.map(|certs| {
        let path = certs.path().join("ca.pem");
        Authorities { pem: fs::read_to_string(&path).unwrap(), origin: path.display().to_string() }
    });
    let allow = vec![Network::parse("127.0.0.1").unwrap()];
    let egress = Egress::new(&config::Egress { allow, ca }).unwrap();
    Tools::default().with_egress(Arc::new(egress))
}

async fn fire(tools: &Tools, runner: Runner) -> Ended {
    tools.check(&runner).unwrap();
    let rule = Rule {
        id: Identifier::parse("rule").unwrap(),
        pattern: "".into(),
        runner,
        retry: RetryPolicy::default(),
        owner: GrantRef {
            identity: Principal::auth_off().identity,
            method: Method::None,
            credential_id: "".into(),
            grants: Vec::new(),
            set_at: Timestamp::from_micros(0),
            issued_at: None,
            until: None,
        },
    };
    let job = Identifier::parse(JOB).unwrap();
    let execution = Nanos(EXECUTION);
    let firing = Firing { job, execution, attempt: 1, rule: Arc::new(rule) };
    tools.run(&firing).await
}

/// As a password stands in a URL.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |text, byte| format!("{text}%{byte:02X}"))
}

fn to_redis(url: &str, command: RedisCommand, key: &str) -> Runner {
    Runner::Redis { url: url.into(), command, key: key.into() }
}

fn to_rabbit(dsn: &str, exchange: &str, routing_key: &str) -> Runner {
    Runner::Amqp { dsn: dsn.into(), exchange: exchange.into(), routing_key: routing_key.into() }
}

#[tokio::test]
async fn zt_redis_commands_bear_the_job() {
    let certs = generated(&[]).await;
    let redis = Redis::start(Some(&certs)).await;
    let tools = tools(Some(&certs));
    let password = encoded(redis::PASSWORD);
    let url = format!("redis://:{password}@127.0.0.1:{}", redis.port);

    let listening = redis.subscribe("jobs").await;
    assert_eq!(fire(&tools, to_redis(&url, RedisCommand::Publish, "jobs")).await, GOOD);
    listening.out.wait_for(|line| (line == JOB).then_some(())).await.expect("the message comes");

    let list = |command| to_redis(&url, command, "a list");
    redis.ask(&["RPUSH", "a list", "between"]).await;
    assert_eq!(fire(&tools, list(RedisCommand::Rpush)).await, GOOD);
    assert_eq!(fire(&tools, list(RedisCommand::Lpush)).await, GOOD);
    assert_eq!(redis.ask(&["LRANGE", "a list", "0", "-1"]).await, json!([JOB, "between", JOB]));
    assert_eq!(fire(&tools, to_redis(&url, RedisCommand::Set, "last")).await, GOOD);
    assert_eq!(redis.ask(&["GET", "last"]).await, JOB);

    // Another database, a user by name, and TLS.
    let select = format!("{url}/3");
    assert_eq!(fire(&tools, to_redis(&select, RedisCommand::Set, "third")).await, GOOD);
    assert_eq!(redis.ask(&["GET", "third"]).await, Value::Null);
    assert_eq!(redis.ask(&["-n", "3", "GET", "third"]).await, JOB);
    redis.ask(&["ACL", "SETUSER", "runner", "on", ">p@ss", "~own:*", "+set"]).await;
    let user = format!("redis://runner:p%40ss@127.0.0.1:{}", redis.port);
    assert_eq!(fire(&tools, to_redis(&user, RedisCommand::Set, "own:a")).await, GOOD);
    assert_eq!(redis.ask(&["GET", "own:a"]).await, JOB);
    let tls = format!("rediss://:{password}@localhost:{}", redis.tls_port);
    assert_eq!(fire(&tools, to_redis(&tls, RedisCommand::Set, "tls")).await, GOOD);
    assert_eq!(redis.ask(&["GET", "tls"]).await, JOB);
}

#[tokio::test]
async fn zt_redis_failures_show_no_secret() {
    let certs = generated(&[]).await;
    let redis = Redis::start(Some(&certs)).await;
    let trusting = tools(Some(&certs));
    let (port, password) = (redis.port, encoded(redis::PASSWORD));
    let set = |url: String, key: &str| to_redis(&url, RedisCommand::Set, key);
    redis.ask(&["ACL", "SETUSER", "runner", "on", ">pass", "~own:*", "+set"]).await;
    redis.ask(&["SET", "text", "text"]).await;

    for (url, key, says) in [
        (format!("redis://127.0.0.1:{port}"), "a", "NOAUTH"),
        (format!("redis://:wr0ng@127.0.0.1:{port}"), "a", "WRONGPASS"),
        (format!("redis://nobody:wr0ng@127.0.0.1:{port}"), "a", "WRONGPASS"),
        (format!("redis://runner:pass@127.0.0.1:{port}"), "else", "NOPERM"),
        (format!("redis://:{password}@127.0.0.1:{port}/99"), "a", "ERR"),
    ] {
        let ended = fire(&trusting, set(url, key)).await;
        assert_eq!(ended, failed(&format!("the server refused: {says}"), false));
    }
    let url = format!("redis://:{password}@127.0.0.1:{port}");
    let push = to_redis(&url, RedisCommand::Rpush, "text");
    let refused = failed("the server refused: WRONGTYPE", false);
    assert_eq!(fire(&trusting, push).await, refused);
    assert_eq!(redis.ask(&["DBSIZE"]).await, 1);

    // An authority that nobody knows.
    let tls = format!("rediss://:{password}@localhost:{}", redis.tls_port);
    let distrusted = failed("no connection: TLS failed", true);
    assert_eq!(fire(&tools(None), set(tls, "a")).await, distrusted);
    // A server that speaks something else, and none.
    let down = failed("no connection", true);
    let nobody = format!("redis://:{password}@127.0.0.1:{}", steady_port());
    assert_eq!(fire(&trusting, set(nobody, "a")).await, down);
    let plain = format!("redis://:{password}@127.0.0.1:{}", redis.tls_port);
    assert!(fire(&trusting, set(plain, "a")).await.error.is_some());
    let amqp = format!("amqp://127.0.0.1:{port}");
    assert!(fire(&trusting, to_rabbit(&amqp, "", "a")).await.error.is_some());
    assert_eq!(redis.ask(&["DBSIZE"]).await, 1);
}

#[tokio::test]
async fn zt_amqp_messages_are_confirmed_and_failures_show_no_secret() {
    let certs = generated(&[]).await;
    let rabbit = RabbitMq::start(Some(&certs)).await;
    let trusting = tools(Some(&certs));
    let login = format!("{}:{}", rabbitmq::USER, encoded(rabbitmq::PASSWORD));
    let dsn = format!("amqp://{login}@127.0.0.1:{}", rabbit.port);
    rabbit.queue("direct").await;
    rabbit.queue("bound").await;
    let exchange = json!({"type": "topic", "durable": true});
    rabbit.manage("PUT", "/exchanges/%2F/events", exchange).await;
    let binding = json!({"routing_key": "jobs.*"});
    rabbit.manage("POST", "/bindings/%2F/e/events/q/bound", binding).await;

    // The default exchange, one of its own, the vhost by name, and TLS.
    let tls = format!("amqps://{login}@localhost:{}", rabbit.tls_port);
    for (dsn, exchange, routing_key, queue) in [
        (&dsn, "", "direct", "direct"),
        (&dsn, "events", "jobs.due", "bound"),
        (&format!("{dsn}/%2F"), "events", "jobs.due", "bound"),
        (&tls, "", "direct", "direct"),
    ] {
        let ended = fire(&trusting, to_rabbit(dsn, exchange, routing_key)).await;
        assert_eq!(ended, GOOD, "{exchange} {routing_key}");
        let taken = rabbit.take(queue).await;
        assert_eq!(taken.len(), 1, "{taken:?}");
        let payload: Value = serde_json::from_str(taken[0]["payload"].as_str().unwrap()).unwrap();
        assert_eq!(payload, json!({"job_id": JOB, "execution": EXECUTION}));
        assert_eq!(taken[0]["properties"]["delivery_mode"], 2);
        assert_eq!(taken[0]["properties"]["content_type"], "application/json");
        assert_eq!(taken[0]["routing_key"], routing_key);
    }

    let refused = failed("the broker refused access: 403", false);
    let unroutable = failed("unroutable: no queue takes this routing key", true);
    let not_amqp = failed("the answer is not that of an AMQP broker", false);
    let (port, tls_port) = (rabbit.port, rabbit.tls_port);
    for (dsn, exchange, routing_key, ended) in [
        (format!("amqp://{}:wr0ng@127.0.0.1:{port}", rabbitmq::USER), "", "direct", &refused),
        (format!("amqp://nobody:wr0ng@127.0.0.1:{port}"), "", "direct", &refused),
        // The guest of all brokers is not there.
        (format!("amqp://127.0.0.1:{port}"), "", "direct", &refused),
        (dsn.clone(), "", "nowhere", &unroutable),
        (dsn.clone(), "events", "else", &unroutable),
        (dsn.clone(), "none", "direct", &failed("the broker has no such exchange: 404", true)),
        (dsn.clone(), "amq.rabbitmq.trace", "direct", &refused),
        (
            format!("{dsn}/none"),
            "",
            "direct",
            &failed("the broker closed the connection: 530", false),
        ),
        (format!("amqp://127.0.0.1:{}", steady_port()), "", "a", &failed("no connection", true)),
        (format!("amqp://127.0.0.1:{tls_port}"), "", "a", &not_amqp),
        (format!("amqps://127.0.0.1:{port}"), "", "a", &failed("no connection: TLS failed", true)),
    ] {
        assert_eq!(&fire(&trusting, to_rabbit(&dsn, exchange, routing_key)).await, ended);
    }
    let distrusted = failed("no connection: TLS failed", true);
    assert_eq!(fire(&tools(None), to_rabbit(&tls, "", "direct")).await, distrusted);
    assert_eq!(rabbit.take("direct").await.len() + rabbit.take("bound").await.len(), 0);
}

/// The job of `OVER` as a message.
fn message(id: &str) -> Value {
    json!({"job_id": id, "execution": 1_767_323_045_000_000_007_i64})
}

#[tokio::test]
async fn issue5_a_servers_rules_reach_the_brokers_and_show_no_password() {
    const WRONG: &str = "wr0ng-p4ssw0rd";
    let (redis, rabbit) = tokio::join!(Redis::start(None), RabbitMq::start(None));
    rabbit.queue("bound").await;
    let exchange = json!({"type": "topic", "durable": true});
    rabbit.manage("PUT", "/exchanges/%2F/events", exchange).await;
    let binding = json!({"routing_key": "jobs.*"});
    rabbit.manage("POST", "/bindings/%2F/e/events/q/bound", binding).await;
    let rest = "[scheduler]\nrunners = [\"amqp\", \"redis\"]\n\
                [limits]\negress_allow = [\"127.0.0.1/32\"]\n";
    // What the clients would log has all that they send.
    let logs = ("BAILIWICK__TELEMETRY__LOG_LEVEL".to_owned(), "debug,lapin=trace".to_owned());
    let environment = vec![logs];
    let mut server =
        Server::with(Setup { rest: rest.to_owned(), environment, ..Setup::default() }).await;

    let url = |login: &str| format!("redis://{login}@127.0.0.1:{}", redis.port);
    let dsn = |login: &str| format!("amqp://{login}@127.0.0.1:{}", rabbit.port);
    let secrets = [encoded(redis::PASSWORD), encoded(rabbitmq::PASSWORD)];
    let push = |url| json!({"type": "redis", "url": url, "command": "RPUSH", "key": "due"});
    let publish =
        |dsn| json!({"type": "amqp", "dsn": dsn, "exchange": "events", "routing_key": "jobs.due"});
    let owner = |password: &str| format!("{}:{password}", rabbitmq::USER);
    for (id, runner, error) in [
        ("push", push(url(&format!(":{}", secrets[0]))), Value::Null),
        ("publish", publish(dsn(&owner(&secrets[1]))), Value::Null),
        ("push-wrong", push(url(&format!(":{WRONG}"))), "the server refused: WRONGPASS".into()),
        ("publish-wrong", publish(dsn(&owner(WRONG))), "the broker refused access: 403".into()),
    ] {
        rule(&server, id, runner).await;
        let id = format!("{id}.a");
        job(&server, &id).await;
        let ran = ended(&server, &id).await;
        let outcome = if error.is_null() { "executed" } else { "failed" };
        assert_eq!((&ran["outcome"], &ran["error"]), (&json!(outcome), &error), "{id}: {ran}");
    }
    assert_eq!(redis.ask(&["LRANGE", "due", "0", "-1"]).await, json!(["push.a"]));
    let taken = rabbit.take("bound").await;
    assert_eq!(taken.len(), 1, "{taken:?}");
    let payload: Value = serde_json::from_str(taken[0]["payload"].as_str().unwrap()).unwrap();
    assert_eq!(payload, message("publish.a"), "{OVER}");

    let mut texts = Vec::new();
    for words in [
        "schedule rules list",
        "schedule rules get push",
        "schedule rules get publish-wrong",
        "schedule list",
        "schedule runs push.a",
        "schedule runs publish-wrong.a",
    ] {
        for format in ["table", "json"] {
            let mut command = server.cli();
            command.args(words.split(' ')).args(["--format", format]);
            let said = run(command).await.good();
            let is_rules = words.contains("rules");
            assert_eq!(said.contains("://***@127.0.0.1"), is_rules, "{words}: {said}");
            texts.push(said);
        }
    }
    let key = [("x-api-key", ROOT_KEY)];
    let listed = server.grpc("ScheduleService/ListRules", json!({}), &key).await.unwrap();
    assert_eq!(listed["rules"].as_array().map(Vec::len), Some(4), "{listed}");
    texts.push(listed.to_string());
    texts.push(server.as_root("GET", "/v1/rules", None).await.1.to_string());
    server.assert_sound();
    let log = [server.process.err.all(), server.process.out.all()].concat().join("\n");
    assert!(log.contains("serving") && !log.contains("lapin"), "{log}");
    texts.push(log);
    for secret in [redis::PASSWORD, rabbitmq::PASSWORD, &secrets[0], &secrets[1], WRONG] {
        for text in &texts {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}
