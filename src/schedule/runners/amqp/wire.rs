//! As much of AMQP 0-9-1 as one publication needs. A client of its own, since
//! the broker is an address that a tenant names: all that it sends is bounded,
//! and the connection is the checked one, TLS included.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::super::remote::Failure;
use crate::egress::Duplex;

/// The longest name.
pub(super) const SHORT_MAX: usize = 255;
/// The largest frame that is taken; we ask for no larger ones.
const FRAME_BYTES_MAX: u32 = 128 << 10;
/// The largest frame before that is agreed on, and the least that any broker
/// takes (4.2.3 of the specification).
const FRAME_BYTES_MIN: usize = 4096;
/// How many frames a broker may send before it confirms.
const FRAMES_MAX: usize = 64;
/// How long the good-bye may take: by then the message is confirmed.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);
const FRAME_END: u8 = 0xce;
/// Frames: a method, a content's header, its body, a heartbeat.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
/// We use one channel; 0 is the connection itself.
const CHANNEL: u16 = 1;
/// `content-type` and `delivery-mode` are there.
const PROPERTIES: u16 = 0x8000 | 0x1000;
const PERSISTENT: u8 = 2;
const MANDATORY: u8 = 1;

/// A method: its class and its number in it.
type Method = (u16, u16);
const START: Method = (10, 10);
const START_OK: Method = (10, 11);
const TUNE: Method = (10, 30);
const TUNE_OK: Method = (10, 31);
const OPEN: Method = (10, 40);
const OPEN_OK: Method = (10, 41);
const CLOSE: Method = (10, 50);
const CLOSE_OK: Method = (10, 51);
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const CHANNEL_CLOSE: Method = (20, 40);
const PUBLISH: Method = (60, 40);
const RETURN: Method = (60, 50);
const ACK: Method = (60, 80);
const NACK: Method = (60, 120);
const SELECT: Method = (85, 10);
const SELECT_OK: Method = (85, 11);

/// Appends the parts of a frame.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn method((class, number): Method) -> Self {
        Self::default().short(class).short(number)
    }

    fn octet(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn short(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn long(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn text(self, text: &str) -> Result<Self, Failure> {
        let length =
            u8::try_from(text.len()).map_err(|_| Failure::lasting("a name is too long"))?;
        Ok(self.octet(length).bytes(text.as_bytes()))
    }

    fn long_bytes(self, bytes: &[u8]) -> Result<Self, Failure> {
        let length = u32::try_from(bytes.len()).map_err(|_| Failure::lasting("too long"))?;
        Ok(self.long(length).bytes(bytes))
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// A frame that came in.
struct Frame {
    kind: u8,
    payload: Vec<u8>,
}

impl Frame {
    /// Which method it is; none when it is another kind of frame.
    fn method(&self) -> Option<Method> {
        (self.kind == METHOD).then(|| Some((self.short(0)?, self.short(2)?))).flatten()
    }

    fn short(&self, at: usize) -> Option<u16> {
        let bytes = self.payload.get(at..at.checked_add(2)?)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    }

    fn long(&self, at: usize) -> Option<u32> {
        let bytes = self.payload.get(at..at.checked_add(4)?)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }
}

/// A connection to a broker.
pub(super) struct Broker {
    stream: Box<dyn Duplex>,
}

impl Broker {
    pub(super) const fn new(stream: Box<dyn Duplex>) -> Self {
        Self { stream }
    }

    /// Logs in, and opens a channel that confirms what is published.
    pub(super) async fn open(
        &mut self,
        user: &str,
        password: &str,
        vhost: &str,
    ) -> Result<(), Failure> {
        self.stream.write_all(b"AMQP\0\0\x09\x01").await?;
        self.stream.flush().await?;
        self.expect(START).await?;
        // With it a wrong password is said, not just hung up on.
        let capabilities = Writer::default().text("authentication_failure_close")?.bytes(b"t\x01");
        let properties = Writer::default()
            .text("product")?
            .octet(b'S')
            .long_bytes(b"bailiwick")?
            .text("capabilities")?
            .octet(b'F')
            .long_bytes(&capabilities.0)?;
        let login = format!("\0{user}\0{password}");
        let start_ok = Writer::method(START_OK)
            .long_bytes(&properties.0)?
            .text("PLAIN")?
            .long_bytes(login.as_bytes())?
            .text("en_US")?;
        self.send(METHOD, 0, &start_ok.0).await?;

        let tune = self.expect(TUNE).await?;
        let theirs = tune.long(6).filter(|most| *most > 0).unwrap_or(FRAME_BYTES_MAX);
        // One channel, and no heartbeats: the whole exchange has a limit.
        let frame_max = theirs.min(FRAME_BYTES_MAX);
        let tune_ok = Writer::method(TUNE_OK).short(CHANNEL).long(frame_max).short(0);
        self.send(METHOD, 0, &tune_ok.0).await?;
        let open = Writer::method(OPEN).text(vhost)?.text("")?.octet(0);
        self.send(METHOD, 0, &open.0).await?;
        self.expect(OPEN_OK).await?;
        let channel = Writer::method(CHANNEL_OPEN).text("")?;
        self.send(METHOD, CHANNEL, &channel.0).await?;
        self.expect(CHANNEL_OPEN_OK).await?;
        self.send(METHOD, CHANNEL, &Writer::method(SELECT).octet(0).0).await?;
        self.expect(SELECT_OK).await?;
        Ok(())
    }

    /// Publishes a JSON and waits until it is confirmed.
    pub(super) async fn publish(
        &mut self,
        exchange: &str,
        routing_key: &str,
        json: &[u8],
    ) -> Result<(), Failure> {
        let publish =
            Writer::method(PUBLISH).short(0).text(exchange)?.text(routing_key)?.octet(MANDATORY);
        let length = u32::try_from(json.len()).map_err(|_| Failure::lasting("too long"))?;
        let header = Writer::default()
            .short(PUBLISH.0)
            .short(0)
            .long(0)
            .long(length)
            .short(PROPERTIES)
            .text("application/json")?
            .octet(PERSISTENT);
        self.send(METHOD, CHANNEL, &publish.0).await?;
        self.send(HEADER, CHANNEL, &header.0).await?;
        for part in json.chunks(FRAME_BYTES_MIN - 8) {
            self.send(BODY, CHANNEL, part).await?;
        }

        let mut returned = false;
        for _ in 0..FRAMES_MAX {
            let frame = self.receive().await?;
            match frame.method() {
                Some(ACK) if returned => {
                    return Err(Failure::passing("unroutable: no queue takes this routing key"));
                }
                Some(ACK) => return Ok(()),
                Some(NACK) => return Err(Failure::passing("the broker did not take the message")),
                Some(RETURN) => returned = true,
                Some(CLOSE | CHANNEL_CLOSE) => return Err(closed(&frame)),
                // What was returned comes with its header and body.
                Some(_) | None => {}
            }
        }
        Err(not_amqp())
    }

    /// Says good-bye; that nothing was lost is known by now.
    pub(super) async fn close(&mut self) {
        let close = Writer::method(CLOSE).short(200).octet(0).short(0).short(0);
        let _ = timeout(CLOSE_TIME_MAX, async {
            self.send(METHOD, 0, &close.0).await?;
            self.expect(CLOSE_OK).await
        })
        .await;
    }

    async fn send(&mut self, kind: u8, channel: u16, payload: &[u8]) -> Result<(), Failure> {
        let frame = Writer::default().octet(kind).short(channel).long_bytes(payload)?;
        self.stream.write_all(&frame.octet(FRAME_END).0).await?;
        Ok(self.stream.flush().await?)
    }

    /// Waits for a method; others that mean no end are passed over.
    async fn expect(&mut self, method: Method) -> Result<Frame, Failure> {
        for _ in 0..FRAMES_MAX {
            let frame = self.receive().await?;
            match frame.method() {
                Some(found) if found == method => return Ok(frame),
                Some(CLOSE | CHANNEL_CLOSE) => return Err(closed(&frame)),
                Some(_) | None => {}
            }
        }
        Err(not_amqp())
    }

    async fn receive(&mut self) -> Result<Frame, Failure> {
        let kind = self.stream.read_u8().await?;
        // A broker of another version answers with its own header.
        if kind == b'A' {
            return Err(not_amqp());
        }
        let _channel = self.stream.read_u16().await?;
        let length = self.stream.read_u32().await?;
        if length > FRAME_BYTES_MAX {
            return Err(not_amqp());
        }
        let mut payload = vec![0; usize::try_from(length).map_err(|_| not_amqp())?];
        self.stream.read_exact(&mut payload).await?;
        if self.stream.read_u8().await? == FRAME_END {
            Ok(Frame { kind, payload })
        } else {
            Err(not_amqp())
        }
    }
}

fn not_amqp() -> Failure {
    Failure::lasting("the answer is not that of an AMQP broker")
}

/// By the code alone: the text is the broker's.
fn closed(frame: &Frame) -> Failure {
    match frame.short(4) {
        Some(403) => Failure::lasting("the broker refused access: 403"),
        Some(404) => Failure::passing("the broker has no such exchange: 404"),
        Some(code @ (311..=320 | 506 | 541)) => {
            Failure::passing(format!("the broker closed the connection: {code}"))
        }
        Some(code @ 400..=599) => {
            Failure::lasting(format!("the broker closed the connection: {code}"))
        }
        Some(_) | None => not_amqp(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Ended;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let frame = Writer::default().octet(kind).short(0).long_bytes(payload).unwrap();
        frame.octet(FRAME_END).0
    }

    fn method(method: Method, arguments: &[u8]) -> Vec<u8> {
        frame(METHOD, &Writer::method(method).bytes(arguments).0)
    }

    /// A broker that says all of this, whatever it is told; answers how that
    /// ended and what it was told.
    async fn meets(said: Vec<u8>, json: &[u8]) -> (Ended, Vec<u8>) {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        theirs.write_all(&said).await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut broker = Broker::new(Box::new(ours));
        let mut ended = broker.open("user", "s3cret", "/").await;
        if ended.is_ok() {
            ended = broker.publish("events", "key", json).await;
        }
        drop(broker);
        let mut told = Vec::new();
        theirs.read_to_end(&mut told).await.unwrap();
        (ended.into(), told)
    }

    fn welcome() -> Vec<u8> {
        let tune = Writer::default().short(2047).long(0).short(60);
        [
            method(START, b"\0\x09"),
            method(TUNE, &tune.0),
            method(OPEN_OK, b"\0"),
            method(CHANNEL_OPEN_OK, &[0; 4]),
            method(SELECT_OK, b""),
        ]
        .concat()
    }

    #[tokio::test]
    async fn zt_amqp_only_a_confirmation_is_a_success() {
        let closed = Writer::default().short(320).text("s3cret").unwrap().long(0);
        let returned = Writer::default().short(312).text("s3cret").unwrap();
        for (then, says, retryable) in [
            (method(ACK, &[0; 9]), None, false),
            ([frame(8, b""), method(ACK, &[0; 9])].concat(), None, false),
            (method(NACK, &[0; 9]), Some("the broker did not take the message"), true),
            (
                [method(RETURN, &returned.0), frame(HEADER, &[0; 14]), frame(BODY, b"{}")]
                    .into_iter()
                    .chain([method(ACK, &[0; 9])])
                    .flatten()
                    .collect(),
                Some("unroutable: no queue takes this routing key"),
                true,
            ),
            (method(CLOSE, &closed.0), Some("the broker closed the connection: 320"), true),
            (
                method(CHANNEL_CLOSE, b"\x01\x94\x06s3cret"),
                Some("the broker has no such exchange: 404"),
                true,
            ),
            (Vec::new(), Some("no connection"), true),
        ] {
            let (ended, _) = meets([welcome(), then].concat(), b"{}").await;
            assert_eq!((ended.error.as_deref(), ended.retryable), (says, retryable));
        }
    }

    #[tokio::test]
    async fn se_64_what_is_no_broker_is_left_and_not_shown() {
        let not = "the answer is not that of an AMQP broker";
        for (said, says) in [
            (b"AMQP\0\0\x09\x01".to_vec(), not),
            (b"HTTP/1.1 400 s3cret\r\n\r\n".to_vec(), not),
            (b"-ERR s3cret s3cret s3cret\r\n".to_vec(), not),
            (b"\x01\0\0\xff\xff\xff\xff".to_vec(), not),
            (b"\x01\0\0\0\0\0\x04\0\x0a\0\x0a\0".to_vec(), not),
            (frame(8, b"").repeat(1000), not),
            (frame(METHOD, b"").repeat(1000), not),
            (method(CLOSE, b"\x01\x93\x06s3cret"), "the broker refused access: 403"),
            (method(CLOSE, b""), not),
            (Vec::new(), "no connection"),
            (b"\x01\0".to_vec(), "no connection"),
        ] {
            let (ended, _) = meets(said, b"{}").await;
            assert_eq!(ended.error.as_deref(), Some(says));
        }
        let (ended, _) = meets([welcome(), frame(8, b"").repeat(1000)].concat(), b"{}").await;
        assert_eq!(ended.error.as_deref(), Some(not));
    }

    #[tokio::test]
    async fn zt_amqp_a_long_message_is_sent_in_frames_that_each_broker_takes() {
        let json = vec![b'7'; 10_000];
        let (ended, told) = meets([welcome(), method(ACK, &[0; 9])].concat(), &json).await;
        assert_eq!(ended.error, None);
        let mut rest = told.strip_prefix(b"AMQP\0\0\x09\x01").unwrap();
        let mut body = Vec::new();
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[3..7].try_into().unwrap());
            let (frame, next) = rest.split_at(usize::try_from(length).unwrap() + 8);
            assert!(frame.len() <= FRAME_BYTES_MIN && frame.ends_with(&[FRAME_END]));
            if frame[0] == BODY {
                body.extend_from_slice(&frame[7..frame.len() - 1]);
            }
            rest = next;
        }
        assert_eq!(body, json);
    }
}
