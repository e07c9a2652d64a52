//! The `redis` runner: one command with the job's id as its value, over a
//! connection of its own. It speaks RESP by itself: four commands and replies
//! of one line need no client, and so the connection is the checked one.

use std::fmt::Write as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    Ended, Firing,
    remote::{Failure, named, target},
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
/// The longest reply; all of them are short.
const REPLY_BYTES_MAX: usize = 4 << 10;
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
        let mut stream = egress.connect(&target).await?;
        if let Some((user, password)) = target.credentials() {
            // Before ACLs there were passwords alone.
            let words: &[&str] =
                if user.is_empty() { &["AUTH", &password] } else { &["AUTH", &user, &password] };
            ask(&mut stream, words).await?;
        }
        let database = database(&target).ok_or_else(|| Failure::lasting("no database number"))?;
        if database > 0 {
            ask(&mut stream, &["SELECT", &database.to_string()]).await?;
        }
        ask(&mut stream, &[command.as_str(), key, firing.job.as_str()]).await
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

/// Sends one command and reads its reply.
async fn ask(stream: &mut Box<dyn Duplex>, words: &[&str]) -> Result<(), Failure> {
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        // Writing to a string cannot fail.
        let _ = write!(command, "${}\r\n{word}\r\n", word.len());
    }
    stream.write_all(command.as_bytes()).await?;
    stream.flush().await?;
    judged(&line(stream).await?)
}

/// A simple string, an error or a number; nothing else answers our commands.
fn judged(line: &[u8]) -> Result<(), Failure> {
    match line.split_first() {
        Some((b'+' | b':', _)) => Ok(()),
        Some((b'-', text)) => {
            let word = text.split(|byte| *byte == b' ').next().unwrap_or_default();
            let known = |words: &[&'static str]| {
                words.iter().copied().find(|known| known.as_bytes() == word)
            };
            Err(match (known(PASSING), known(LASTING)) {
                (Some(word), _) => Failure::passing(format!("the server refused: {word}")),
                (None, Some(word)) => Failure::lasting(format!("the server refused: {word}")),
                (None, None) => Failure::lasting("the server refused"),
            })
        }
        Some(_) | None => Err(Failure::lasting("the answer is not that of a Redis server")),
    }
}

/// Reads to the next line's end.
async fn line(stream: &mut Box<dyn Duplex>) -> Result<Vec<u8>, Failure> {
    let mut line = Vec::new();
    let mut some = [0; 512];
    loop {
        let read = stream.read(&mut some).await?;
        if read == 0 {
            return Err(Closed::Unreachable.into());
        }
        line.extend_from_slice(some.get(..read).unwrap_or_default());
        // One command at a time: what follows the line is not for us.
        if let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") {
            line.truncate(end);
            return Ok(line);
        }
        if line.len() > REPLY_BYTES_MAX {
            return Err(Failure::lasting("the answer is not that of a Redis server"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::schedule::Runner, schedule::runners::remote::testing::tools};

    #[test]
    fn se_64_replies_are_judged_and_not_shown() {
        for good in [&b"+OK"[..], b":0", b":12"] {
            assert!(judged(good).is_ok());
        }
        for (reply, says, retryable) in [
            (&b"-WRONGPASS invalid s3cret"[..], "the server refused: WRONGPASS", false),
            (b"-OOM command not allowed", "the server refused: OOM", true),
            (b"-READONLY s3cret", "the server refused: READONLY", true),
            (b"-s3cret", "the server refused", false),
            (b"-", "the server refused", false),
            (b"$6", "the answer is not that of a Redis server", false),
            (b"", "the answer is not that of a Redis server", false),
            (b"SSH-2.0-s3cret", "the answer is not that of a Redis server", false),
        ] {
            let ended = Ended::from(judged(reply));
            assert_eq!((ended.error.as_deref(), ended.retryable), (Some(says), retryable));
        }
    }

    #[tokio::test]
    async fn se_64_a_server_that_never_ends_its_line_is_left() {
        for (sent, says) in [
            ("s3cret".repeat(4096), "the answer is not that of a Redis server"),
            ("+OK".to_owned(), "no connection"),
            (String::new(), "no connection"),
        ] {
            let (ours, mut theirs) = tokio::io::duplex(64 << 10);
            theirs.write_all(sent.as_bytes()).await.unwrap();
            theirs.shutdown().await.unwrap();
            let mut ours: Box<dyn Duplex> = Box::new(ours);
            let ended = Ended::from(ask(&mut ours, &["SET", "a", "b"]).await);
            assert_eq!(ended.error.as_deref(), Some(says));
        }
    }

    #[tokio::test]
    async fn se_64_words_cannot_leave_their_place() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        theirs.write_all(b"+OK\r\n").await.unwrap();
        let mut ours: Box<dyn Duplex> = Box::new(ours);
        ask(&mut ours, &["SET", "a\r\nFLUSHALL\r\n", "\u{fc}"]).await.unwrap();
        drop(ours);
        let mut sent = String::new();
        theirs.read_to_string(&mut sent).await.unwrap();
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
