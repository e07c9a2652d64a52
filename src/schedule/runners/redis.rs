//! The `redis` runner: one command with the job's id as its value, over a
//! connection of its own: the checked one, which the client is given.

use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, RedisConnectionInfo, RedisError, Value,
    aio::MultiplexedConnection, cmd,
};

use super::{
    Ended, Firing,
    remote::{Failure, driven, limited, named, target},
};
use crate::{
    domain::schedule::RedisCommand,
    egress::{Closed, Duplex, Egress, Scheme, Target, decoded},
    schedule::Error,
};

const SCHEMES: &[Scheme] = &[
    Scheme { name: "redis", tls: false, port: 6379 },
    Scheme { name: "rediss", tls: true, port: 6379 },
];
/// The longest key or channel.
const KEY_BYTES_MAX: usize = 1024;
/// The first words of errors that may be shown: the rest of a reply may hold
/// anything.
const PASSING: &[&str] = &[
    "LOADING",
    "BUSY",
    "OOM",
    "READONLY",
    "MISCONF",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "NOREPLICAS",
];
const LASTING: &[&str] =
    &["ERR", "NOAUTH", "WRONGPASS", "NOPERM", "WRONGTYPE", "MOVED", "ASK", "CROSSSLOT", "DENIED"];

pub(super) fn check(egress: &Egress, url: &str, key: &str) -> Result<(), Error> {
    const FIELD: &str = "runner.redis.url";
    let target = named(egress, FIELD, url, SCHEMES)?;
    if database(&target).is_none() || target.query().is_some() {
        let message = "redis://[user:password@]host[:port][/database], a number".to_owned();
        return Err(Error::FieldInvalid { field: FIELD, message });
    }
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let message = format!("1 to {KEY_BYTES_MAX} bytes");
        return Err(Error::FieldInvalid { field: "runner.redis.key", message });
    }
    Ok(())
}

/// Sends the command; an answer that is no error is a success.
pub(super) async fn run(
    egress: &Egress,
    firing: &Firing,
    url: &str,
    command: RedisCommand,
    key: &str,
) -> Ended {
    let sent = egress.exchange(async {
        let target = target(url, SCHEMES)?;
        let mut commands = Vec::new();
        if let Some((user, password)) = target.credentials() {
            let mut auth = cmd("AUTH");
            // Before ACLs there were passwords alone.
            if !user.is_empty() {
                auth.arg(user);
            }
            commands.push(auth.arg(password).clone());
        }
        let database = database(&target).ok_or_else(|| Failure::lasting("no database number"))?;
        if database > 0 {
            commands.push(cmd("SELECT").arg(database).clone());
        }
        commands.push(cmd(command.as_str()).arg(key).arg(firing.job.as_str()).clone());
        ask(egress.connect(&target).await?, &commands).await
    });
    sent.await.into()
}

/// The number in the path; 0 when there is none.
fn database(target: &Target) -> Option<u16> {
    match target.path().trim_start_matches('/') {
        "" => Some(0),
        number => decoded(number).parse().ok(),
    }
}

/// Sends commands, each after the answer to the one before it.
async fn ask(stream: Box<dyn Duplex>, commands: &[Cmd]) -> Result<(), Failure> {
    // The exchange has a limit of its own, and what is sent is ours alone.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let bare = RedisConnectionInfo::default().set_skip_set_lib_name();
    let (mut connection, driver) =
        MultiplexedConnection::new_with_config(&bare, limited(stream), config).await?;
    let work = async move {
        for command in commands {
            judged(&connection.send_packed_command(command).await?)?;
        }
        Ok(())
    };
    driven(work, driver).await
}

/// A simple string or a number; nothing else answers our commands.
fn judged(reply: &Value) -> Result<(), Failure> {
    if let Value::ServerError(error) = reply {
        return Err(refused(error.code()));
    }
    let known = matches!(reply, Value::Okay | Value::SimpleString(_) | Value::Int(_));
    if known { Ok(()) } else { Err(not_redis()) }
}

fn refused(code: &str) -> Failure {
    let known = |words: &[&'static str]| words.iter().copied().find(|word| *word == code);
    match (known(PASSING), known(LASTING)) {
        (Some(word), _) => Failure::passing(format!("the server refused: {word}")),
        (None, Some(word)) => Failure::lasting(format!("the server refused: {word}")),
        (None, None) => Failure::lasting("the server refused"),
    }
}

fn not_redis() -> Failure {
    Failure::lasting("the answer is not that of a Redis server")
}

/// By the kind and the code alone: the text is the server's.
impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        if let Some(code) = error.code() {
            refused(code)
        } else if error.kind() == ErrorKind::Parse {
            not_redis()
        } else {
            Closed::Unreachable.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;
    use crate::{domain::schedule::Runner, schedule::runners::remote::testing::tools};

    /// How a command ends at a server that answers this and hangs up; and
    /// what it was sent.
    async fn answered(said: &[u8], command: &Cmd) -> (Ended, String) {
        let (ours, mut theirs) = duplex(64 << 10);
        let server = async {
            let mut sent = vec![0; command.get_packed_command().len()];
            theirs.read_exact(&mut sent).await.unwrap();
            // The client may be gone before all is said.
            let _ = theirs.write_all(said).await;
            let _ = theirs.shutdown().await;
            sent
        };
        let ask = ask(Box::new(ours), std::slice::from_ref(command));
        let (ended, sent) = tokio::join!(ask, server);
        (ended.into(), String::from_utf8(sent).unwrap())
    }

    #[tokio::test]
    async fn se_64_replies_are_judged_and_not_shown() {
        let not_redis = "the answer is not that of a Redis server";
        let set = cmd("SET").arg("a").arg("b").clone();
        for good in ["+OK\r\n", ":0\r\n", ":12\r\n"] {
            assert_eq!(answered(good.as_bytes(), &set).await.0, Ended::default(), "{good}");
        }
        let long = format!("${}\r\n", i64::MAX);
        let many = format!("*{}\r\n:1\r\n", i64::MAX);
        let pairs = format!("%{}\r\n:1\r\n", i64::MAX / 2);
        let deep = "*1\r\n".repeat(10_000);
        for (reply, says, retryable) in [
            ("-WRONGPASS invalid s3cret\r\n", "the server refused: WRONGPASS", false),
            ("-OOM command not allowed\r\n", "the server refused: OOM", true),
            ("-READONLY s3cret\r\n", "the server refused: READONLY", true),
            ("-s3cret\r\n", "the server refused", false),
            ("-\r\n", "the server refused", false),
            ("$6\r\ns3cret\r\n", not_redis, false),
            ("$-1\r\n", not_redis, false),
            ("*0\r\n", not_redis, false),
            ("\r\n", not_redis, false),
            ("SSH-2.0-s3cret\r\n", not_redis, false),
            (&deep, not_redis, false),
            // These could go on, were the server not gone.
            (&long, "no connection", true),
            (&many, "no connection", true),
            (&pairs, "no connection", true),
            ("+OK", not_redis, false),
            ("", "no connection", true),
        ] {
            let (ended, _) = answered(reply.as_bytes(), &set).await;
            let found = (ended.error.as_deref(), ended.retryable);
            assert_eq!(found, (Some(says), retryable), "{reply:.40}");
        }
    }

    #[tokio::test]
    async fn se_64_a_server_that_never_ends_its_answer_is_left() {
        let (ours, mut theirs) = duplex(64 << 10);
        let endless = async {
            theirs.write_all(b"+").await.unwrap();
            let mut said: u64 = 1;
            while theirs.write_all(&[b'7'; 1024]).await.is_ok() {
                said += 1024;
            }
            said
        };
        let set = [cmd("SET").arg("a").arg("b").clone()];
        let (ended, said) = tokio::join!(ask(Box::new(ours), &set), endless);
        assert!(Ended::from(ended).error.is_some());
        assert!(said < 256 << 10, "{said}");
    }

    #[tokio::test]
    async fn se_64_words_cannot_leave_their_place() {
        let set = cmd("SET").arg("a\r\nFLUSHALL\r\n").arg("\u{fc}").clone();
        let (ended, sent) = answered(b"+OK\r\n", &set).await;
        assert_eq!(ended, Ended::default());
        assert_eq!(sent, "*3\r\n$3\r\nSET\r\n$13\r\na\r\nFLUSHALL\r\n\r\n$2\r\n\u{fc}\r\n");
    }

    #[test]
    fn se_64_a_redis_url_is_looked_at_when_it_is_set() {
        let tools = tools(&["10.1.0.0/16"], 9_000);
        let check = |url: &str, key: &str| {
            let command = RedisCommand::Set;
            tools.check(&Runner::Redis { url: url.into(), command, key: key.into() })
        };
        for good in ["redis://a", "rediss://:s3cret@a:1/", "redis://u:p@10.1.0.1/15"] {
            check(good, "key").unwrap();
        }
        for bad in [
            "",
            "http://a",
            "unix:///s3cret",
            "redis://",
            "redis://a/s3cret",
            "redis://a/0/1",
            "redis://a/-1",
            "redis://a/0?s3cret",
            "redis://a/#s3cret",
            "redis://10.2.0.1",
            "redis://:s3cret@127.0.0.1",
            "redis://[::1]:6379",
            "redis://s3cret@0.0.0.0",
        ] {
            let refusal = check(bad, "key").unwrap_err();
            assert!(matches!(refusal, Error::FieldInvalid { field: "runner.redis.url", .. }));
            assert!(!refusal.to_string().contains("s3cret"), "{bad}: {refusal}");
        }
        for key in ["", &"k".repeat(1025)] {
            let refusal = check("redis://a", key).unwrap_err();
            assert!(matches!(refusal, Error::FieldInvalid { field: "runner.redis.key", .. }));
        }
    }
}
