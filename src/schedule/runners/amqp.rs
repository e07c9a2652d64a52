//! The `amqp` runner: publishes one persistent message and waits until the
//! broker has confirmed it. Mandatory: what no queue takes is a failure.
//! `lapin` speaks AMQP, over a connection that is lent to it: the checked one,
//! TLS included.

mod lent;

use std::time::Duration;

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo},
};
use tokio::{
    io::{copy_bidirectional, duplex},
    time::timeout,
};

use super::{
    Ended, Firing,
    remote::{Failure, body, driven, limited, named, target},
};
use crate::{
    egress::{Closed, Duplex, Egress, Scheme, Target, decoded},
    schedule::Error,
};

const SCHEMES: &[Scheme] = &[
    Scheme { name: "amqp", tls: false, port: 5672 },
    Scheme { name: "amqps", tls: true, port: 5671 },
];

/// The longest name.
const SHORT_MAX: usize = 255;
/// The largest frame that is asked for: the least that the client and
/// `RabbitMQ` take. The client's buffers are 32 of them in each direction.
const FRAME_BYTES_MAX: u32 = 8 << 10;
/// How long the good-bye may take: by then the message is confirmed.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);
const PERSISTENT: u8 = 2;

pub(super) fn check(
    egress: &Egress,
    dsn: &str,
    exchange: &str,
    routing_key: &str,
) -> Result<(), Error> {
    const DSN: &str = "runner.amqp.dsn";
    let target = named(egress, DSN, dsn, SCHEMES)?;
    let wrong = |field, message: &str| Err(Error::FieldInvalid { field, message: message.into() });
    if target.query().is_some() || target.path().matches('/').count() > 1 {
        return wrong(DSN, "amqp://[user:password@]host[:port][/vhost], a slash in it as %2F");
    }
    if let Some(field) = [
        ("runner.amqp.exchange", exchange),
        ("runner.amqp.routing_key", routing_key),
        (DSN, &vhost(&target)),
    ]
    .into_iter()
    .find_map(|(field, text)| (text.len() > SHORT_MAX).then_some(field))
    {
        return wrong(field, "a name of AMQP has at most 255 bytes");
    }
    Ok(())
}

/// Publishes; a confirmation is a success.
pub(super) async fn run(
    egress: &Egress,
    firing: &Firing,
    dsn: &str,
    exchange: &str,
    routing_key: &str,
) -> Ended {
    let published = egress.exchange(async {
        let target = target(dsn, SCHEMES)?;
        // As everywhere with AMQP; a broker takes them from loopback alone.
        let guest = || ("guest".to_owned(), "guest".to_owned());
        let (username, password) = target.credentials().unwrap_or_else(guest);
        let login = AMQPUserInfo { username, password };
        let stream = egress.connect(&target).await?;
        let message = Message { exchange, routing_key, json: &body(firing) };
        publish(stream, login, vhost(&target), message).await
    });
    published.await.into()
}

struct Message<'a> {
    exchange: &'a str,
    routing_key: &'a str,
    json: &'a [u8],
}

/// Publishes over a connection. What the client reads and writes is copied
/// here, so that it loses its connection when this is dropped, whatever its
/// thread waits for.
async fn publish(
    stream: Box<dyn Duplex>,
    login: AMQPUserInfo,
    vhost: String,
    message: Message<'_>,
) -> Result<(), Failure> {
    let (ours, mut theirs) = duplex(usize::try_from(FRAME_BYTES_MAX).unwrap_or(usize::MAX));
    let mut stream = limited(stream);
    let driver = async move {
        // An end of either side is seen by the client.
        let _ = copy_bidirectional(&mut stream, &mut theirs).await;
    };
    let work = async {
        // Nothing of the address: the connection is there.
        let uri = AMQPUri {
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority { userinfo: login, host: String::new(), port: 0 },
            vhost,
            query: AMQPQueryString {
                frame_max: Some(FRAME_BYTES_MAX),
                channel_max: Some(1),
                ..AMQPQueryString::default()
            },
        };
        let properties = ConnectionProperties::default()
            .with_client_property("product".into(), "bailiwick".into());
        let connect = lent::once(ours);
        let connection = Connection::connector(uri, lent::runtime(), connect, properties).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let confirmed = confirmed(&channel, message).await;
        // That nothing was lost is known by now.
        let _ = timeout(CLOSE_TIME_MAX, connection.close(200, ShortString::default())).await;
        confirmed
    };
    driven(work, driver).await
}

async fn confirmed(channel: &Channel, message: Message<'_>) -> Result<(), Failure> {
    let Message { exchange, routing_key, json } = message;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT);
    let published =
        channel.basic_publish(exchange.into(), routing_key.into(), options, json, properties);
    match published.await?.await? {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(_)) => {
            Err(Failure::passing("unroutable: no queue takes this routing key"))
        }
        Confirmation::Nack(_) => Err(Failure::passing("the broker did not take the message")),
        Confirmation::NotRequested => Err(not_amqp()),
    }
}

fn not_amqp() -> Failure {
    Failure::lasting("the answer is not that of an AMQP broker")
}

/// By the kind and the code alone: the text is the broker's.
impl From<lapin::Error> for Failure {
    fn from(error: lapin::Error) -> Self {
        if let ErrorKind::ProtocolError(said) = error.kind() {
            return match said.get_id() {
                403 => Self::lasting("the broker refused access: 403"),
                404 => Self::passing("the broker has no such exchange: 404"),
                code @ (311..=320 | 506 | 541) => {
                    Self::passing(format!("the broker closed the connection: {code}"))
                }
                code => Self::lasting(format!("the broker closed the connection: {code}")),
            };
        }
        if error.is_io_error() { Closed::Unreachable.into() } else { not_amqp() }
    }
}

/// The path without its slash, `/` when there is none.
fn vhost(target: &Target) -> String {
    match target.path().trim_start_matches('/') {
        "" => "/".to_owned(),
        path => decoded(path),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::{domain::schedule::Runner, schedule::runners::remote::testing::tools};

    #[test]
    fn se_64_a_dsn_is_looked_at_when_it_is_set() {
        let tools = tools(&["10.1.0.0/16"], 9_000);
        let check = |dsn: &str, exchange: &str, routing_key: &str| {
            let (exchange, routing_key) = (exchange.into(), routing_key.into());
            tools.check(&Runner::Amqp { dsn: dsn.into(), exchange, routing_key })
        };
        for good in ["amqp://a", "amqps://u:s3cret@a:1/", "amqp://10.1.0.1/v%2Fh", "amqp://a/v"] {
            check(good, "", "key").unwrap();
        }
        let long = format!("amqp://a/{}", "v".repeat(256));
        for bad in [
            "",
            "http://a",
            "amqp://",
            "amqp://a/b/s3cret",
            "amqp://a/?heartbeat=s3cret",
            "amqp://a/#s3cret",
            "amqp://10.2.0.1",
            "amqp://u:s3cret@127.0.0.1",
            "amqp://[::1]",
            "amqp://s3cret@0.0.0.0",
            &long,
        ] {
            let refusal = check(bad, "", "key").unwrap_err();
            assert!(matches!(refusal, Error::FieldInvalid { field: "runner.amqp.dsn", .. }));
            assert!(!refusal.to_string().contains("s3cret"), "{bad}: {refusal}");
        }
        let long = "n".repeat(256);
        check("amqp://a", &long, "key").unwrap_err();
        check("amqp://a", "", &long).unwrap_err();
    }

    const METHOD: u8 = 1;
    const HEADER: u8 = 2;
    const BODY: u8 = 3;
    const HEARTBEAT: u8 = 8;

    fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap();
        [&[kind][..], &channel.to_be_bytes(), &length.to_be_bytes(), payload, &[0xce]].concat()
    }

    fn method(channel: u16, class: u8, number: u8, arguments: &[u8]) -> Vec<u8> {
        frame(METHOD, channel, &[&[0, class, 0, number][..], arguments].concat())
    }

    /// What a broker says, each once it has read so many frames. It hangs up
    /// when it has nothing more to say, or else waits for the client to.
    type Said = Vec<(usize, Vec<u8>)>;

    async fn broker(mut stream: DuplexStream, said: Said, hangs_up: bool) -> Vec<u8> {
        let mut header = [0; 8];
        stream.read_exact(&mut header).await.unwrap();
        assert_eq!(&header, b"AMQP\0\0\x09\x01");
        let mut bodies = Vec::new();
        for (frames, say) in said {
            for _ in 0..frames {
                let Ok(kind) = stream.read_u8().await else { return bodies };
                stream.read_u16().await.unwrap();
                let length = usize::try_from(stream.read_u32().await.unwrap()).unwrap();
                assert!(length + 8 <= 8192, "{length}");
                let mut payload = vec![0; length + 1];
                stream.read_exact(&mut payload).await.unwrap();
                if kind == BODY {
                    bodies.extend_from_slice(&payload[..length]);
                }
            }
            // The client may be gone before all is said.
            let _ = stream.write_all(&say).await;
        }
        if !hangs_up {
            stream.read_to_end(&mut Vec::new()).await.unwrap();
        }
        bodies
    }

    /// How a publication at such a broker ends, and what bodies it was sent.
    async fn meets(said: Said, hangs_up: bool, json: &[u8]) -> (Ended, Vec<u8>) {
        let (ours, theirs) = duplex(1 << 20);
        let login = AMQPUserInfo { username: "user".to_owned(), password: "s3cret".to_owned() };
        let message = Message { exchange: "events", routing_key: "key", json };
        let exchange = publish(Box::new(ours), login, "/".to_owned(), message);
        let limited = timeout(Duration::from_secs(20), exchange);
        let (ended, bodies) = tokio::join!(limited, broker(theirs, said, hangs_up));
        (ended.expect("it ends by itself").into(), bodies)
    }

    fn start() -> Vec<u8> {
        let long =
            |text: &str| [&[0, 0, 0, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        let versions = [0, 9, 0, 0, 0, 0];
        method(0, 10, 10, &[&versions[..], &long("PLAIN"), &long("en_US")].concat())
    }

    /// All before the publication.
    fn welcome() -> Said {
        vec![
            (0, start()),
            (1, method(0, 10, 30, &[7, 255, 0, 0, 32, 0, 0, 60])),
            (2, method(0, 10, 41, b"\0")),
            (1, method(1, 20, 11, &[0; 4])),
            (1, method(1, 85, 11, b"")),
        ]
    }

    fn ack() -> Vec<u8> {
        method(1, 60, 80, &[0, 0, 0, 0, 0, 0, 0, 1, 0])
    }

    fn close_ok() -> Vec<u8> {
        method(0, 10, 51, b"")
    }

    #[tokio::test]
    async fn zt_amqp_only_a_confirmation_is_a_success() {
        let nack = method(1, 60, 120, &[0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let returned = [
            method(1, 60, 50, b"\x01\x38\x06s3cret\x06events\x03key"),
            frame(HEADER, 1, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0]),
            frame(BODY, 1, b"{}"),
            ack(),
        ];
        for (then, says, retryable) in [
            (ack(), None, false),
            ([frame(HEARTBEAT, 0, b""), ack()].concat(), None, false),
            (nack, Some("the broker did not take the message"), true),
            (returned.concat(), Some("unroutable: no queue takes this routing key"), true),
            (
                method(0, 10, 50, b"\x01\x40\x06s3cret\0\0\0\0"),
                Some("the broker closed the connection: 320"),
                true,
            ),
            (
                method(1, 20, 40, b"\x01\x94\x06s3cret\0\x3c\0\x28"),
                Some("the broker has no such exchange: 404"),
                true,
            ),
            (Vec::new(), Some("no connection"), true),
        ] {
            let hangs_up = then.is_empty();
            let mut said = [welcome(), vec![(3, then)]].concat();
            if !hangs_up {
                said.push((1, close_ok()));
            }
            let (ended, bodies) = meets(said, hangs_up, b"{}").await;
            assert_eq!((ended.error.as_deref(), ended.retryable), (says, retryable));
            assert_eq!(bodies, b"{}");
        }
    }

    #[tokio::test]
    async fn se_64_what_is_no_broker_is_left_and_not_shown() {
        let not = "the answer is not that of an AMQP broker";
        let heartbeats = frame(HEARTBEAT, 0, b"").repeat(20_000);
        for (said, says) in [
            (b"AMQP\0\0\x09\x01".to_vec(), not),
            (b"HTTP/1.1 400 s3cret\r\n\r\n".to_vec(), not),
            (b"-ERR s3cret s3cret s3cret\r\n".to_vec(), not),
            (b"\x01\0\0\xff\xff\xff\xff".to_vec(), "no connection"),
            (b"\x01\0\0\0\0\0\x04\0\x0a\0\x0a\0".to_vec(), not),
            (heartbeats.clone(), "no connection"),
            (frame(METHOD, 0, b"").repeat(1000), not),
            (method(0, 10, 50, b"\x01\x93\x06s3cret\0\0\0\0"), "the broker refused access: 403"),
            (method(0, 10, 50, b""), not),
            (Vec::new(), "no connection"),
            (b"\x01\0".to_vec(), "no connection"),
        ] {
            let shown = String::from_utf8_lossy(said.get(..20).unwrap_or(&said)).into_owned();
            let (ended, _) = meets(vec![(0, said)], !says.ends_with("403"), b"{}").await;
            assert_eq!(ended.error.as_deref(), Some(says), "{shown}");
        }
        let said = [welcome(), vec![(3, heartbeats)]].concat();
        let (ended, _) = meets(said, true, b"{}").await;
        assert_eq!(ended.error.as_deref(), Some("no connection"));
    }

    #[tokio::test]
    async fn zt_amqp_a_long_message_is_sent_in_frames_that_each_broker_takes() {
        let json = vec![b'7'; 10_000];
        let said = [welcome(), vec![(4, ack()), (1, close_ok())]].concat();
        let (ended, bodies) = meets(said, false, &json).await;
        assert_eq!(ended.error, None);
        assert_eq!(bodies, json);
    }

    fn threads_of_clients() -> usize {
        let threads = std::fs::read_dir("/proc/self/task").unwrap();
        let names =
            threads.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim() == "lapin-io-loop").count()
    }

    /// How many there are in a while, while the client still has its broker.
    async fn after(pause: Duration) -> usize {
        tokio::time::sleep(pause).await;
        threads_of_clients()
    }

    #[tokio::test]
    async fn se_64_a_client_that_is_left_ends_with_its_thread() {
        let mut seen = 0;
        for silent_after in 0..=welcome().len() {
            let (ours, theirs) = duplex(1 << 20);
            let login = AMQPUserInfo { username: String::new(), password: String::new() };
            let message = Message { exchange: "", routing_key: "key", json: b"{}" };
            let said = welcome().into_iter().take(silent_after).collect();
            let exchange = publish(Box::new(ours), login, "/".to_owned(), message);
            tokio::select! {
                result = exchange => unreachable!("{result:?}"),
                _ = broker(theirs, said, false) => unreachable!("it waits"),
                count = after(Duration::from_millis(200)) => seen = seen.max(count),
            }
        }
        assert!(seen > 0, "no client had a thread");
        // Those of other tests end too.
        for _ in 0..300 {
            if threads_of_clients() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{} threads are left", threads_of_clients());
    }

    #[test]
    fn zt_amqp_vhosts_are_read() {
        for (dsn, name) in
            [("amqp://a", "/"), ("amqp://a/", "/"), ("amqp://a/%2F", "/"), ("amqp://a/v%20", "v ")]
        {
            assert_eq!(vhost(&Target::parse(dsn, SCHEMES).unwrap()), name, "{dsn}");
        }
    }
}
