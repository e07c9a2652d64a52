//! The `http` runner: one request over a connection of its own. No redirect
//! is followed, and of the answer the status alone counts (SE-64).

use std::{future, pin::pin, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    Ended, Firing,
    remote::{Failure, body, named, target},
};
use crate::{
    domain::schedule::HttpMethod,
    egress::{Egress, Scheme, Target},
    schedule::Error,
};

const SCHEMES: &[Scheme] = &[
    Scheme { name: "http", tls: false, port: 80 },
    Scheme { name: "https", tls: true, port: 443 },
];
/// The longest head of an answer.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How much of an answer's body is read, so that the server can finish.
const BODY_BYTES_MAX: usize = 64 << 10;
/// How long that may take: the status is known by then.
const BODY_TIME_MAX: Duration = Duration::from_secs(2);
/// Says which run a request is of, the same for each time that it is sent.
const RUN: &str = "x-bailiwick-run";
/// What stays as it is in that header.
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');

pub(super) fn check(egress: &Egress, url: &str) -> Result<(), Error> {
    named(egress, "runner.http.url", url, SCHEMES).map(|_| ())
}

/// Calls the URL; 2xx is a success.
pub(super) async fn run(egress: &Egress, firing: &Firing, method: HttpMethod, url: &str) -> Ended {
    let status = egress.exchange(async {
        let target = target(url, SCHEMES)?;
        let request = request(firing, method, &target)?;
        let stream = egress.connect(&target).await?;
        send(TokioIo::new(stream), request).await
    });
    status.await.and_then(judged).into()
}

fn judged(status: StatusCode) -> Result<(), Failure> {
    let passing = [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
    let says = format!("status {}", status.as_u16());
    if status.is_success() {
        Ok(())
    } else if status.is_server_error() || passing.contains(&status) {
        Err(Failure::passing(says))
    } else {
        Err(Failure::lasting(says))
    }
}

fn request(
    firing: &Firing,
    method: HttpMethod,
    target: &Target,
) -> Result<Request<Full<Bytes>>, Failure> {
    let Firing { job, execution, attempt, .. } = firing;
    let run = utf8_percent_encode(job.as_str(), ENCODED);
    let mut request = Request::builder()
        .method(method.as_str())
        .uri(target.path_and_query())
        .header(HOST, target.authority())
        .header(USER_AGENT, concat!("bailiwick/", env!("CARGO_PKG_VERSION")))
        .header(RUN, format!("{run}/{}/{attempt}", execution.0));
    if let Some((user, password)) = target.credentials() {
        let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        let mut value = HeaderValue::try_from(basic).map_err(|_| wrong())?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    let content = match method {
        HttpMethod::Get | HttpMethod::Delete => Bytes::new(),
        HttpMethod::Post | HttpMethod::Put => {
            request = request.header(CONTENT_TYPE, "application/json");
            body(firing).into()
        }
    };
    request.body(Full::new(content)).map_err(|_| wrong())
}

fn wrong() -> Failure {
    Failure::lasting("the URL makes no request")
}

async fn send(
    stream: TokioIo<Box<dyn crate::egress::Duplex>>,
    request: Request<Full<Bytes>>,
) -> Result<StatusCode, Failure> {
    let handshake = http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(stream);
    let (mut sender, connection) = handshake.await.map_err(|_| broken())?;
    let talk = async {
        let answer = sender.send_request(request).await.map_err(|_| broken())?;
        let status = answer.status();
        // Whatever becomes of it, the status stands.
        let _ = tokio::time::timeout(BODY_TIME_MAX, drain(answer.into_body())).await;
        Ok(status)
    };
    let drive = async {
        // What goes wrong with it is told to who sends.
        let _ = connection.await;
        future::pending::<()>().await;
    };
    let (mut talk, mut drive) = (pin!(talk), pin!(drive));
    tokio::select! {
        biased;
        status = &mut talk => status,
        () = &mut drive => Err(broken()),
    }
}

/// Something answers, but no HTTP that can be read.
fn broken() -> Failure {
    Failure::passing("no connection")
}

async fn drain(mut body: Incoming) {
    let mut read = 0;
    while read < BODY_BYTES_MAX {
        let Some(Ok(frame)) = body.frame().await else { return };
        // Trailers count too, so that they end as well.
        read += frame.data_ref().map_or(1 << 10, Bytes::len);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{PrivateKeyDer, pem::PemObject as _},
    };
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::{
        config::{self, Authorities},
        domain::{Network, schedule::Runner},
        schedule::runners::{
            Tools,
            remote::testing::{firing, tools, tools_with},
        },
        server::spawn,
    };

    const OPEN: &[&str] = &["127.0.0.1"];

    /// Takes whole requests and answers each with the same bytes; then it
    /// sends `endless` for as long as somebody takes it.
    #[derive(Clone, Debug, Default)]
    struct Peer {
        answer: Vec<u8>,
        endless: Vec<u8>,
        hold: bool,
        asked: Arc<Mutex<Vec<String>>>,
        sent: Arc<Mutex<usize>>,
    }

    impl Peer {
        fn says(answer: &str) -> Self {
            Self { answer: answer.into(), ..Self::default() }
        }

        fn status(status: &str) -> Self {
            Self::says(&format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"))
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }

        async fn listen(&self, tls: Option<TlsAcceptor>) -> u16 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let this = self.clone();
            spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (this, tls) = (this.clone(), tls.clone());
                    spawn(async move {
                        match tls {
                            None => this.talk(stream).await,
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(stream).await {
                                    this.talk(stream).await;
                                }
                            }
                        }
                    });
                }
            });
            port
        }

        async fn talk(self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
            let mut request = Vec::new();
            loop {
                let Ok(byte) = stream.read_u8().await else { return };
                request.push(byte);
                // In the middle of a letter it goes on.
                let Ok(text) = String::from_utf8(request.clone()) else { continue };
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if body.len() == length.map_or(0, |length| length.parse().unwrap()) {
                    self.asked.lock().unwrap().push(text);
                    break;
                }
            }
            if stream.write_all(&self.answer).await.is_err() {
                return;
            }
            while !self.endless.is_empty() && stream.write_all(&self.endless).await.is_ok() {
                *self.sent.lock().unwrap() += self.endless.len();
                tokio::task::yield_now().await;
            }
            if self.hold {
                future::pending::<()>().await;
            }
        }
    }

    async fn call(tools: &Tools, method: HttpMethod, url: &str) -> Ended {
        let runner = Runner::Http { method, url: url.into() };
        tools.run(&firing("deploy.a/b c\"ü", runner)).await
    }

    fn failed(error: &str, retryable: bool) -> Ended {
        Ended { error: Some(error.to_owned()), retryable, output: None }
    }

    const GOOD: Ended = Ended { error: None, retryable: false, output: None };

    #[tokio::test]
    async fn zt_http_sends_what_each_method_sends() {
        let peer = Peer::status("204 No Content");
        let port = peer.listen(None).await;
        let tools = tools(OPEN, 9_000);
        for method in HttpMethod::ALL {
            let url = format!("http://us%40er:s3cret@127.0.0.1:{port}/a%20b?c=d&e=%26");
            assert_eq!(call(&tools, *method, &url).await, GOOD);
            let asked = peer.asked().pop().unwrap();
            let (head, body) = asked.split_once("\r\n\r\n").unwrap();
            let lines: Vec<&str> = head.lines().collect();
            assert_eq!(lines[0], format!("{} /a%20b?c=d&e=%26 HTTP/1.1", method.as_str()));
            let has = |line: &str| assert!(lines.contains(&line), "{line}: {head}");
            has(&format!("host: 127.0.0.1:{port}"));
            has(&format!("authorization: Basic {}", STANDARD.encode("us@er:s3cret")));
            has(concat!("user-agent: bailiwick/", env!("CARGO_PKG_VERSION")));
            has("x-bailiwick-run: deploy.a%2Fb%20c%22%C3%BC/1775044800000000001/2");
            match method {
                HttpMethod::Get | HttpMethod::Delete => assert_eq!(body, ""),
                HttpMethod::Post | HttpMethod::Put => {
                    has("content-type: application/json");
                    let body: Value = serde_json::from_str(body).unwrap();
                    let execution = 1_775_044_800_000_000_001_i64;
                    assert_eq!(body, json!({"job_id": "deploy.a/b c\"ü", "execution": execution}));
                }
            }
        }
    }

    #[tokio::test]
    async fn zt_http_success_is_2xx_alone() {
        let tools = tools(OPEN, 9_000);
        for (status, retryable) in [
            ("300 Choices", false),
            ("304 Same", false),
            ("400 Bad", false),
            ("401 Who", false),
            ("404 Not Found", false),
            ("408 Late", true),
            ("429 Many", true),
            ("500 Broken", true),
            ("503 Away", true),
        ] {
            let port = Peer::status(status).listen(None).await;
            let ended = call(&tools, HttpMethod::Get, &format!("http://127.0.0.1:{port}/")).await;
            assert_eq!(ended, failed(&format!("status {}", &status[..3]), retryable));
        }
        for status in ["200 OK", "202 Accepted", "299 Odd"] {
            let port = Peer::status(status).listen(None).await;
            let ended = call(&tools, HttpMethod::Get, &format!("http://127.0.0.1:{port}/")).await;
            assert_eq!(ended, GOOD, "{status}");
        }
    }

    #[tokio::test]
    async fn se_64_no_redirect_is_followed() {
        let other = Peer::status("200 OK");
        let to = other.listen(None).await;
        let tools = tools(OPEN, 9_000);
        for status in [301, 302, 303, 307, 308] {
            let answer = format!(
                "HTTP/1.1 {status} Over There\r\nlocation: http://127.0.0.1:{to}/\r\n\
                 content-length: 0\r\n\r\n"
            );
            let port = Peer::says(&answer).listen(None).await;
            let ended = call(&tools, HttpMethod::Post, &format!("http://127.0.0.1:{port}/")).await;
            assert_eq!(ended, failed(&format!("status {status}"), false));
        }
        assert_eq!(other.asked(), [""; 0]);
    }

    #[tokio::test]
    async fn se_64_what_is_refused_is_never_asked() {
        let peer = Peer::status("200 OK");
        let port = peer.listen(None).await;
        for (tools, host) in [
            (tools(&[], 9_000), "127.0.0.1"),
            (tools(&[], 9_000), "localhost"),
            (tools(&[], 9_000), "[::ffff:7f00:1]"),
            (tools(&["10.0.0.0/8"], 9_000), "127.0.0.1"),
        ] {
            let ended = call(&tools, HttpMethod::Get, &format!("http://{host}:{port}/")).await;
            assert_eq!(ended, failed("no connection", true), "{host}");
        }
        let own = tools(OPEN, 9_000);
        own.egress.never_to([([127, 0, 0, 1], port).into()]);
        let ended = call(&own, HttpMethod::Get, &format!("http://127.0.0.1:{port}/")).await;
        assert_eq!(ended, failed("no connection", true));
        assert_eq!(peer.asked(), [""; 0]);
    }

    #[tokio::test]
    async fn se_64_slow_and_endless_answers_are_cut() {
        let url = |port: u16| format!("http://127.0.0.1:{port}/");
        // Says nothing, or never comes to the head's end.
        for answer in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 103 Hints\r\n\r\n"] {
            let port = Peer { hold: true, ..Peer::says(answer) }.listen(None).await;
            let ended = call(&tools(OPEN, 300), HttpMethod::Get, &url(port)).await;
            assert_eq!(ended, failed("timed out", true), "{answer:?}");
        }
        // A head without an end takes no more than its room.
        let head = Peer { endless: vec![b'a'; 1024], ..Peer::says("HTTP/1.1 200 OK\r\nx: ") };
        let port = head.listen(None).await;
        let ended = call(&tools(OPEN, 9_000), HttpMethod::Get, &url(port)).await;
        assert_eq!(ended, failed("no connection", true));
        // A body without an end: the status stands, and little of it is read.
        let length = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n";
        let body = Peer { endless: vec![b'a'; 1024], ..Peer::says(length) };
        let port = body.listen(None).await;
        assert_eq!(call(&tools(OPEN, 9_000), HttpMethod::Get, &url(port)).await, GOOD);
        let sent = *body.sent.lock().unwrap();
        assert!(sent < 32 << 20, "{sent} bytes were taken, buffers of the kernel among them");
        // A body that does not come.
        let port = Peer { hold: true, ..Peer::says(length) }.listen(None).await;
        assert_eq!(call(&tools(OPEN, 9_000), HttpMethod::Get, &url(port)).await, GOOD);
    }

    #[tokio::test]
    async fn se_64_who_speaks_no_http_is_not_shown() {
        let tools = tools(OPEN, 9_000);
        for answer in ["SSH-2.0-s3cret\r\n", "+OK s3cret\r\n", "\0\0\0", "s3cret"] {
            let port = Peer::says(answer).listen(None).await;
            let ended = call(&tools, HttpMethod::Get, &format!("http://127.0.0.1:{port}/")).await;
            assert_eq!(ended, failed("no connection", true), "{answer:?}");
        }
        let secret = "HTTP/1.1 500 s3cret\r\nx-s3cret: s3cret\r\ncontent-length: 6\r\n\r\ns3cret";
        let port = Peer::says(secret).listen(None).await;
        let ended = call(&tools, HttpMethod::Get, &format!("http://127.0.0.1:{port}/")).await;
        assert_eq!(ended, failed("status 500", true));
    }

    /// A server certificate for a name, with its authority.
    fn certificate(name: &str) -> (String, TlsAcceptor) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([name.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let private = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], private)
            .unwrap();
        (ca.pem(), TlsAcceptor::from(Arc::new(config)))
    }

    #[tokio::test]
    async fn se_64_https_asks_whom_the_certificate_names() {
        let peer = Peer::status("200 OK");
        let (ca, acceptor) = certificate("localhost");
        let port = peer.listen(Some(acceptor)).await;
        let trusting = |pem: &str| {
            let allow = vec![Network::parse("127.0.0.1").unwrap()];
            let ca = Some(Authorities { pem: pem.to_owned(), origin: "test".to_owned() });
            tools_with(&config::Egress { allow, ca }, 9_000)
        };
        let url = format!("https://localhost:{port}/");
        assert_eq!(call(&trusting(&ca), HttpMethod::Put, &url).await, GOOD);
        assert_eq!(peer.asked().len(), 1);

        let tls = failed("no connection: TLS failed", true);
        let other_name = format!("https://127.0.0.1:{port}/");
        assert_eq!(call(&trusting(&ca), HttpMethod::Put, &other_name).await, tls);
        let (other_ca, _) = certificate("localhost");
        assert_eq!(call(&trusting(&other_ca), HttpMethod::Put, &url).await, tls);
        assert_eq!(call(&tools(OPEN, 9_000), HttpMethod::Put, &url).await, tls);
        let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plain_port = plain.local_addr().unwrap().port();
        spawn(async move {
            let (mut stream, _) = plain.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n").await;
        });
        let plain = format!("https://localhost:{plain_port}/");
        assert_eq!(call(&trusting(&ca), HttpMethod::Put, &plain).await, tls);
        assert_eq!(peer.asked().len(), 1);
    }

    #[test]
    fn se_64_a_url_is_looked_at_when_it_is_set() {
        let tools = tools(&["10.1.0.0/16"], 9_000);
        let check =
            |url: &str| tools.check(&Runner::Http { method: HttpMethod::Get, url: url.into() });
        for good in [
            "http://example.org/a?b=c",
            "https://user:password@example.org:8443/",
            "http://10.1.2.3/",
            "http://[2606:4700::1]/",
            "http://localhost/",
        ] {
            check(good).unwrap();
        }
        for bad in [
            "",
            "s3cret",
            "ftp://s3cret/",
            "file:///s3cret",
            "http://10.2.0.1/s3cret",
            "http://127.0.0.1/s3cret",
            "http://2130706433/s3cret",
            "http://[::1]/s3cret",
            "http://169.254.169.254/s3cret",
            "http://a/#s3cret",
            "http://u:s3cret@127.1/",
        ] {
            let refusal = check(bad).unwrap_err();
            assert!(matches!(refusal, Error::FieldInvalid { field: "runner.http.url", .. }));
            assert!(!refusal.to_string().contains("s3cret"), "{bad}: {refusal}");
        }
    }
}
