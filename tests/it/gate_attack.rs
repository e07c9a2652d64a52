//! The gate under attack: forged, misspelt and swollen credentials, each by
//! REST and by gRPC. What an ordinary caller meets is in `auth`; odd scopes
//! and doubled headers are in `hardening`.

use std::{fmt::Write as _, time::Duration};

use bailiwick::{
    authn::tokens::{self, Claims, KeyKind},
    domain::secret::Secret,
    pb::v1 as pb,
};
use bailiwick_client::Auth;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use futures::{StreamExt as _, future::join_all};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::{
    Code, Status,
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
    transport::Channel,
};
use tonic_types::StatusExt as _;

use crate::{
    auth_matrix::call,
    harness::{
        self, PATIENCE, ROOT_KEY, Server, Setup,
        credentials::{self, AUDIENCE, ISSUER, READER_KEY, Token},
        wire::{self, Wire},
    },
};

const INVALID: (u16, &str) = (401, "CREDENTIALS_INVALID");
const AMBIGUOUS: (u16, &str) = (401, "CREDENTIALS_AMBIGUOUS");
const EXPIRED: (u16, &str) = (401, "CREDENTIALS_EXPIRED");
const EARLY: (u16, &str) = (401, "CREDENTIALS_NOT_YET_VALID");
const GOOD: (u16, &str) = (200, "");
/// The longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// The header of good tokens.
const HEADER: &str = r#"{"alg":"EdDSA","typ":"JWT"}"#;

/// A server, and a connection to each of its surfaces.
struct Gate {
    server: Server,
    channel: Channel,
}

/// What both surfaces said.
#[derive(Debug)]
struct Verdict {
    status: u16,
    reason: String,
    /// Everything that the caller got, but for ids, by REST and by gRPC.
    seen: [String; 2],
}

impl Verdict {
    fn brief(&self) -> (u16, &str) {
        (self.status, &self.reason)
    }
}

impl Gate {
    async fn open() -> Self {
        Self::with(Setup::default()).await
    }

    /// Refused calls are counted against their address; here that is off.
    async fn with(mut setup: Setup) -> Self {
        let off = ("BAILIWICK__LIMITS__FAILED_AUTH_PER_MINUTE".to_owned(), "0".to_owned());
        setup.environment.push(off);
        let server = Server::with(setup).await;
        let endpoint = Channel::from_shared(server.grpc_url()).unwrap();
        let channel = endpoint.connect().await.unwrap();
        Self { server, channel }
    }

    /// With this public key.
    async fn of_key(public: &str) -> Self {
        let lines = format!(
            "enabled = true\njwt_issuer = \"{ISSUER}\"\njwt_audience = \"{AUDIENCE}\"\n\
             jwt_public_key = '''\n{public}'''\n"
        );
        Self::with(Setup { auth: false, rest: lines, ..Setup::default() }).await
    }

    async fn grpc(&self, headers: &[(&str, &str)]) -> Result<(), Status> {
        let mut metadata = MetadataMap::new();
        for (name, value) in headers {
            let name: AsciiMetadataKey = name.parse().unwrap();
            metadata.append(name, AsciiMetadataValue::try_from(*value).unwrap());
        }
        let rpc = "bailiwick.v1.TaskService/ListTasks";
        call::grpc_with(&self.channel, rpc, &json!({}), metadata).await.map(drop)
    }

    /// Lists tasks with these headers; the surfaces must agree.
    async fn list(&self, headers: &[(&str, &str)]) -> Verdict {
        let answer = wire::send(self.server.http, wire::head("GET /v1/tasks", headers)).await;
        let body = answer.json();
        let grpc = self.grpc(headers).await;
        let Err(refused) = grpc else {
            assert_eq!(answer.status, 200, "gRPC took what REST did not: {answer:?}");
            return Verdict { status: 200, reason: String::new(), seen: Default::default() };
        };
        let wanted = match answer.status {
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            other => panic!("{other} {body} beside {refused:?}"),
        };
        assert_eq!(refused.code(), wanted, "{body}");
        assert_eq!(refused.message(), body["message"]);
        let mut details = refused.get_error_details();
        let reason = details.error_info().unwrap().reason.clone();
        assert_eq!(reason, body["reason"]);

        let id = details.request_info().map(|info| info.request_id.clone()).unwrap_or_default();
        let mut rest = String::from_utf8(answer.body.clone()).unwrap();
        let rest_id = body["request_id"].as_str().unwrap();
        assert!(!id.is_empty() && id != rest_id, "ids are each call's own");
        rest = rest.replace(rest_id, "ID");
        for (name, value) in &answer.headers {
            let value = if name == "date" { "" } else { value };
            write!(rest, "\n{name}: {}", value.replace(rest_id, "ID")).unwrap();
        }
        details.set_request_info("ID", "");
        let mut names: Vec<String> =
            refused.metadata().keys().map(|name| format!("{name:?}")).collect();
        names.sort();
        let grpc = format!("{} {details:?} {names:?}", refused.message()).replace(&id, "ID");
        Verdict { status: answer.status, reason, seen: [rest, grpc] }
    }

    async fn bearer(&self, token: &str) -> Verdict {
        self.list(&[("authorization", &format!("Bearer {token}"))]).await
    }

    /// Refused for good, with a look at every one of these tokens.
    async fn refuses(&self, what: &str, token: &str) {
        let shown = &token[..token.len().min(200)];
        assert_eq!(self.bearer(token).await.brief(), INVALID, "{what}: {shown}");
    }

    async fn takes(&self, what: &str, token: &str) {
        assert_eq!(self.bearer(token).await.brief(), GOOD, "{what}: {token}");
    }

    /// Nothing has panicked, and who has a good credential is served.
    async fn stands(mut self) {
        self.takes("a good token", &signed(HEADER, claims().to_string())).await;
        self.server.assert_sound();
    }
}

fn claims() -> Value {
    let now = credentials::now();
    json!({
        "sub": "attacker", "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 3600,
        "permissions": ["tasks:list"],
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

/// The claims with the JSON text of one of them as it stands.
fn with_text(name: &str, text: &str) -> String {
    let mark = "4b1f0e-the-mark";
    with(name, mark.into()).to_string().replace(&format!("\"{mark}\""), text)
}

fn encode(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// Any text before the last dot, with the issuer's genuine signature.
fn signed_text(message: &str) -> String {
    let key = EncodingKey::from_ed_pem(credentials::issuer().private.as_bytes()).unwrap();
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::EdDSA);
    format!("{message}.{}", signature.unwrap())
}

/// A token of these very bytes, signed by the issuer.
fn signed(header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
    signed_text(&format!("{}.{}", encode(header), encode(claims)))
}

fn hmac(algorithm: Algorithm, header: &Value, secret: &[u8]) -> String {
    let message = format!("{}.{}", encode(header.to_string()), encode(claims().to_string()));
    let key = EncodingKey::from_secret(secret);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
    format!("{message}.{signature}")
}

/// What stands between the lines of a PEM.
fn der(pem: &str) -> Vec<u8> {
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    STANDARD.decode(base64).unwrap()
}

#[tokio::test]
async fn se_23_alg_none_in_every_spelling_is_refused() {
    let gate = Gate::open().await;
    let mut names: Vec<String> = (0_u8..16)
        .map(|bits| {
            let upper = |(at, letter): (usize, char)| {
                if bits >> at & 1 == 1 { letter.to_ascii_uppercase() } else { letter }
            };
            "none".chars().enumerate().map(upper).collect()
        })
        .collect();
    names.extend(["", " none", "none ", "none\0", "eddsa", "EDDSA", "EdDSA "].map(str::to_owned));
    let payload = encode(claims().to_string());
    for name in names {
        let header = json!({"alg": name, "typ": "JWT"}).to_string();
        let message = format!("{}.{payload}", encode(&header));
        // Without a signature, with a genuine one, and with one of zeroes.
        gate.refuses(&name, &format!("{message}.")).await;
        gate.refuses(&name, &message).await;
        gate.refuses(&name, &signed_text(&message)).await;
        gate.refuses(&name, &format!("{message}.{}", encode([0; 64]))).await;
    }
    for alg in ["null", "true", "0", "[]", "{}", "[\"EdDSA\"]", "[\"none\"]"] {
        let header = format!(r#"{{"alg":{alg}}}"#);
        gate.refuses(alg, &signed(&header, claims().to_string())).await;
        gate.refuses(alg, &format!("{}.{payload}.", encode(&header))).await;
    }
    gate.stands().await;
}

/// Everything of a public key that an attacker knows, as the secret of a MAC.
fn secrets(pem: &str) -> Vec<Vec<u8>> {
    let der = der(pem);
    let mut secrets = vec![
        pem.as_bytes().to_vec(),
        pem.trim().as_bytes().to_vec(),
        pem.replace('\n', "\r\n").into_bytes(),
        pem.replace('\n', "").into_bytes(),
        STANDARD.encode(&der).into_bytes(),
        Vec::new(),
    ];
    // What stands within an SPKI: PKCS#1, a point with and without its first
    // byte, the 32 bytes of Ed25519.
    let starts = [Some(24), der.len().checked_sub(65), der.len().checked_sub(64)];
    let starts = starts.into_iter().flatten().chain([der.len() - 32]);
    secrets.extend(starts.map(|at| der[at..].to_vec()));
    secrets.push(der);
    secrets
}

#[tokio::test]
async fn se_23_a_public_key_is_nobodys_secret() {
    let macs =
        [(Algorithm::HS256, "HS256"), (Algorithm::HS384, "HS384"), (Algorithm::HS512, "HS512")];
    for (kind, own) in
        [(KeyKind::Rsa(2048), "RS256"), (KeyKind::P256, "ES256"), (KeyKind::Ed25519, "EdDSA")]
    {
        let pair = tokens::generate(kind).unwrap();
        let gate = Gate::of_key(&pair.public).await;
        for secret in secrets(&pair.public) {
            for (algorithm, name) in macs {
                let token = hmac(algorithm, &json!({"alg": name, "typ": "JWT"}), &secret);
                gate.refuses(name, &token).await;
            }
            // A MAC under the name that the key is bound to.
            gate.refuses(own, &hmac(Algorithm::HS256, &json!({"alg": own}), &secret)).await;
        }
        let now = credentials::now();
        let good = tokens::sign(
            &pair.private,
            &Claims {
                sub: "s".to_owned(),
                iss: ISSUER.to_owned(),
                aud: AUDIENCE.to_owned(),
                iat: now,
                exp: now + 600,
                permissions: vec!["tasks:list".to_owned()],
                namespaces: None,
                worker_namespaces: Vec::new(),
            },
        )
        .unwrap();
        // Signatures that broken verifiers take: of zeroes, of ones, cut, longer.
        let (message, signature) = good.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let length = signature.len();
        let mut one = vec![0; length];
        one[length - 1] = 1;
        let mut flipped = signature.clone();
        flipped[0] ^= 1;
        for forged in [
            vec![0; length],
            vec![0xff; length],
            one,
            flipped,
            signature[..length - 1].to_vec(),
            [&signature[..], &[0]].concat(),
            [&[0], &signature[..]].concat(),
            signature.iter().rev().copied().collect(),
            Vec::new(),
        ] {
            let forged = format!("{message}.{}", encode(&forged));
            gate.refuses(own, &forged).await;
        }
        if own == "EdDSA" {
            let twin = format!("{message}.{}", encode(plus_order(&signature)));
            gate.refuses("S and the group's order", &twin).await;
        }
        gate.takes(own, &good).await;
    }
}

/// The other signature that a careless verifier of Ed25519 takes: S + L.
fn plus_order(signature: &[u8]) -> Vec<u8> {
    let mut order = [0_u8; 32];
    order[..16]
        .copy_from_slice(&27_742_317_777_372_353_535_851_937_790_883_648_493_u128.to_le_bytes());
    order[31] = 0x10;
    let mut twin = signature.to_vec();
    let mut carry = 0_u16;
    for (byte, addend) in twin[32..].iter_mut().zip(order) {
        carry += u16::from(*byte) + u16::from(addend);
        *byte = carry.to_le_bytes()[0];
        carry >>= 8;
    }
    assert_eq!(carry, 0, "S is below the order");
    twin
}

#[tokio::test]
async fn se_23_keys_that_a_token_brings_along_open_nothing() {
    let gate = Gate::open().await;
    // The stranger's key is to be had everywhere that a token could point to.
    let stranger = credentials::stranger();
    let point = der(&stranger.public);
    let point = encode(&point[point.len() - 32..]);
    let file = gate.server.path("stranger.pem");
    std::fs::write(&file, &stranger.public).unwrap();
    let file = file.to_str().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": "k", "x": point});
    let certificate = STANDARD.encode(der(&stranger.public));

    let mut headers = vec![
        json!({"jwk": jwk, "kid": "k"}),
        json!({"jwks": {"keys": [jwk]}, "kid": "k"}),
        json!({"jku": url}),
        json!({"jku": format!("file://{file}")}),
        json!({"x5u": url}),
        json!({"x5c": [certificate]}),
        json!({"x5t": "AAAA", "x5t#S256": "AAAA"}),
        json!({"iss": url, "cty": "JWT"}),
    ];
    let kids = [
        file,
        "jwt-public-key.pem",
        "stranger.pem",
        "../stranger.pem",
        "../../../../../../../dev/null",
        "/dev/null",
        "/proc/sys/kernel/randomize_va_space",
        "x' UNION SELECT 'AA' --",
        "' OR '1'='1",
        "x'; DROP TABLE tasks; --",
        "stranger.pem\0",
        "\0",
        "$(touch /tmp/x)",
        "|/bin/true",
        "%2e%2e%2fstranger.pem",
        "\r\nx-api-key: test-root-key-1f0c7f2f9a",
        "{{7*7}}",
        "",
        &url,
    ];
    headers.extend(kids.iter().map(|kid| json!({"kid": kid})));
    headers.extend([json!({"kid": null}), json!({"kid": 0}), json!({"kid": [file]})]);
    headers.push(json!({"kid": "k".repeat(10_000)}));
    let key = EncodingKey::from_ed_pem(stranger.private.as_bytes()).unwrap();
    for mut header in headers {
        header["alg"] = "EdDSA".into();
        let message = format!("{}.{}", encode(header.to_string()), encode(claims().to_string()));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::EdDSA);
        gate.refuses("a stranger's", &format!("{message}.{}", signature.unwrap())).await;
        header["alg"] = "HS256".into();
        for secret in ["", "\0", "AA", "0", "2"] {
            let token = hmac(Algorithm::HS256, &header, secret.as_bytes());
            gate.refuses("what a file or a row may hold", &token).await;
        }
    }
    let called = tokio::time::timeout(Duration::from_millis(300), listener.accept()).await;
    assert!(called.is_err(), "the server went where a token sent it: {called:?}");
    assert_eq!(gate.server.as_root("GET", "/v1/tasks", None).await.0, 200);
    gate.stands().await;
}

#[tokio::test]
async fn se_23_what_two_readers_may_read_in_two_ways_is_refused() {
    let gate = Gate::open().await;
    let text = claims().to_string();
    for doubled in [
        r#""permissions":["*"]"#,
        r#""permi\u0073sions":["*"]"#,
        r#""\u0070\u0065rmissions":[]"#,
        r#""sub":"attacker""#,
        r#""exp":4102444800"#,
        r#""nbf":0,"nbf":0"#,
        r#""aud":"bailiwick-api""#,
        r#""iss":"bailiwick""#,
        r#""namespaces":["*"],"namespaces":[]"#,
        r#""":1,"":1"#,
        r#""x":{"a":1,"a":1}"#,
        r#""x":[[{"a":{"b":0,"b":0}}]]"#,
    ] {
        let first = text.replacen('{', &format!("{{{doubled},"), 1);
        let last = format!("{},{doubled}}}", text.strip_suffix('}').unwrap());
        gate.refuses(doubled, &signed(HEADER, first)).await;
        gate.refuses(doubled, &signed(HEADER, last)).await;
    }
    for header in [
        r#"{"alg":"EdDSA","alg":"EdDSA"}"#,
        r#"{"alg":"none","alg":"EdDSA"}"#,
        r#"{"alg":"EdDSA","al\u0067":"none"}"#,
        r#"{"alg":"EdDSA","typ":"JWT","typ":"JWT"}"#,
        r#"{"alg":"EdDSA","kid":"a","kid":"b"}"#,
        r#"{"alg":"EdDSA","x":{"y":0,"y":0}}"#,
        r#"[{"alg":"EdDSA"}]"#,
        r#""EdDSA""#,
        "null",
        "",
    ] {
        gate.refuses(header, &signed(header, &text)).await;
    }
    // Texts that only some parsers take.
    let good = text.as_bytes();
    for odd in [
        [b"\xef\xbb\xbf", good].concat(),
        [good, b"{}"].concat(),
        [good, b"\0"].concat(),
        [good, b"//"].concat(),
        [b"/**/", good].concat(),
        [b"[", good, b"]"].concat(),
        text.replace('"', "'").into_bytes(),
        text.replacen('}', ",}", 1).into_bytes(),
        text.replacen('{', "{x:1,", 1).into_bytes(),
        text.replacen('{', "{\"x\":NaN,", 1).into_bytes(),
        text.replacen('{', "{\"x\":1e400,", 1).into_bytes(),
        text.replacen('{', r#"{"x":"\ud800","#, 1).into_bytes(),
        text.replacen('{', "{\"x\":\"\u{1}\",", 1).into_bytes(),
        text.replacen("attacker", "attack\ner", 1).into_bytes(),
        [&b"{\"x\":\"\xff\","[..], &good[1..]].concat(),
        [&b"{\"x\":\"\xc0\x80\","[..], &good[1..]].concat(),
        text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        Vec::new(),
        b"{}".to_vec(),
        b"null".to_vec(),
        b"7".to_vec(),
    ] {
        gate.refuses(&String::from_utf8_lossy(&odd), &signed(HEADER, &odd)).await;
    }
    // Another spelling of a name is another name, and means nothing.
    let spelt = text.replacen('{', r#"{"Permissions":["*"],"PERMISSIONS":["*"],"#, 1);
    let authorization = format!("Bearer {}", signed(HEADER, spelt));
    let headers = [("authorization", &*authorization)];
    assert_eq!(gate.list(&headers).await.brief(), GOOD);
    let (status, body) = gate.server.json("GET", "/v1/workers", &headers, None).await;
    assert_eq!(status, 403, "{body}");
    gate.stands().await;
}

/// The last letter of a part with its unused bits set.
fn with_trailing_bits(part: &str) -> String {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    assert_ne!(part.len() % 4, 0, "bits are left over");
    let (rest, last) = part.split_at(part.len() - 1);
    let at = LETTERS.find(last).unwrap();
    format!("{rest}{}", &LETTERS[at + 1..at + 2])
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one list of attacks")]
async fn se_23_a_token_has_one_spelling() {
    let gate = Gate::open().await;
    // Each part has bits left over, and both letters that the alphabets write
    // in two ways.
    let header = encode(r#"{"alg":"EdDSA","?":"~~?>~~?>"}"#);
    let header = if header.len().is_multiple_of(4) {
        encode(r#"{"alg":"EdDSA","?":"~~?>~~?>" }"#)
    } else {
        header
    };
    let text = claims().to_string().replacen('{', r#"{"x":"~~~~????>>>> ~~~?~~?>","#, 1);
    let payload = (0..3)
        .map(|blanks| encode(text.replacen('{', &format!("{{{}", " ".repeat(blanks)), 1)))
        .find(|part| !part.len().is_multiple_of(4))
        .unwrap();
    let good = signed_text(&format!("{header}.{payload}"));
    gate.takes("as it should be", &good).await;
    let (message, signature) = good.rsplit_once('.').unwrap();

    // All are signed as they stand: only the spelling is wrong.
    let pad = |part: &str| format!("{part}{}", "=".repeat(4 - part.len() % 4));
    let parts = [(&*header, "header"), (&*payload, "claims")];
    for (number, (part, what)) in parts.into_iter().enumerate() {
        let mut changed = vec![
            pad(part),
            format!("{part}="),
            format!("{part}==="),
            format!("={part}"),
            with_trailing_bits(part),
            format!("{part}%3D"),
            format!("{part}!"),
            format!("{part}*"),
            format!("{}~{}", &part[..8], &part[8..]),
            format!("{part}A"),
            String::new(),
        ];
        let standard = part.replace('-', "+").replace('_', "/");
        if standard != part {
            changed.push(standard);
        }
        for changed in changed {
            let message = if number == 0 {
                format!("{changed}.{payload}")
            } else {
                format!("{header}.{changed}")
            };
            gate.refuses(what, &signed_text(&message)).await;
        }
    }
    assert!(payload.contains('-') && payload.contains('_'), "{payload}");
    for changed in [
        pad(signature),
        with_trailing_bits(signature),
        format!("{signature}A"),
        format!("{signature}."),
        format!("{signature}.{signature}"),
        format!("{signature}..{signature}"),
        format!(".{signature}"),
        signature.to_ascii_lowercase(),
    ] {
        gate.refuses("signature", &format!("{message}.{changed}")).await;
    }
    for changed in [
        format!(".{good}"),
        format!("{good}."),
        good.replacen('.', "..", 1),
        good.replace('.', ":"),
        format!("\"{good}\""),
        format!("<{good}>"),
        format!("token={good}"),
        format!("Bearer={good}"),
        ".".to_owned(),
        "..".to_owned(),
        "....".to_owned(),
    ] {
        gate.refuses("the whole", &changed).await;
    }
    // White space makes two words of one.
    for blank in [" ", "\t", "  "] {
        for at in [1, header.len(), header.len() + 1, good.len() - 1] {
            let split = format!("{}{blank}{}", &good[..at], &good[at..]);
            gate.refuses("white space", &split).await;
        }
    }
    gate.stands().await;
}

/// A good token of exactly so many bytes.
fn of_length(bytes: usize) -> String {
    for blanks in 0..3 {
        let header = HEADER.replacen('{', &format!("{{{}", " ".repeat(blanks)), 1);
        let room = bytes - encode(&header).len() - 2 - encode([0; 64]).len();
        let empty = with("pad", "".into()).to_string().len();
        let padding = "p".repeat(room * 3 / 4 - empty);
        let token = signed(header, with("pad", padding.into()).to_string());
        if token.len() == bytes {
            return token;
        }
    }
    panic!("no token of {bytes} bytes")
}

#[tokio::test]
async fn se_23_tokens_have_16_kib_at_most() {
    let gate = Gate::open().await;
    gate.takes("16 KiB", &of_length(TOKEN_BYTES_MAX)).await;
    for more in [1, 2, 3, 1000, 8 * 1024] {
        gate.refuses("over 16 KiB", &of_length(TOKEN_BYTES_MAX + more)).await;
    }
    gate.refuses("many dots", &".".repeat(TOKEN_BYTES_MAX)).await;
    let key = "k".repeat(TOKEN_BYTES_MAX + 1);
    assert_eq!(gate.list(&[("x-api-key", &key)]).await.brief(), INVALID);

    // Well over the limit of headers, of which HTTP/1 reads one buffer more,
    // the gate is not even asked.
    for name in ["authorization", "x-api-key"] {
        for bytes in [70 * 1024, 100 * 1024, 1024 * 1024] {
            let value = format!("Bearer {}", "a".repeat(bytes));
            let mut wire = Wire::open(gate.server.http).await;
            let _ = wire.write(wire::head("GET /v1/tasks", &[(name, &value)])).await;
            if let Some(answer) = wire.answer(false).await {
                assert_eq!(answer.status, 431, "{answer:?}");
            }
            assert!(wire.closes_within(PATIENCE).await);
            let other = Channel::from_shared(gate.server.grpc_url()).unwrap();
            let mut metadata = MetadataMap::new();
            let name: AsciiMetadataKey = name.parse().unwrap();
            metadata.insert(name, value.parse().unwrap());
            let channel = other.connect().await.unwrap();
            let rpc = "bailiwick.v1.TaskService/ListTasks";
            let refused = call::grpc_with(&channel, rpc, &json!({}), metadata).await.unwrap_err();
            assert_ne!(refused.code(), Code::Ok, "{refused:?}");
        }
    }
    gate.stands().await;
}

#[tokio::test]
async fn se_23_deeply_nested_tokens_are_refused_without_harm() {
    let gate = Gate::open().await;
    let nested = |open: &str, close: &str, depth: usize| {
        format!("{}0{}", open.repeat(depth), close.repeat(depth))
    };
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        gate.takes("some depth", &signed(HEADER, with_text("x", &nested(open, close, 20)))).await;
        for depth in [200, 1_000] {
            let text = nested(open, close, depth);
            for name in ["x", "sub", "permissions", "aud", "exp", "namespaces"] {
                gate.refuses(name, &signed(HEADER, with_text(name, &text))).await;
            }
            let header = format!(r#"{{"alg":"EdDSA","x":{text}}}"#);
            gate.refuses("header", &signed(header, claims().to_string())).await;
        }
    }
    // As deep as 16 KiB allow, whole and torn.
    let deep = 5_500;
    gate.refuses("deep", &signed(HEADER, with_text("x", &nested("[", "]", deep)))).await;
    gate.refuses("deep and torn", &signed(HEADER, "[".repeat(11_000))).await;
    gate.refuses("deep and torn", &signed(HEADER, "{\"a\":".repeat(2_000))).await;
    gate.stands().await;
}

#[tokio::test]
async fn se_23_the_edges_of_a_tokens_time() {
    let setup = |leeway: u8| Setup {
        environment: vec![("BAILIWICK__AUTH__JWT_LEEWAY_SECONDS".into(), leeway.to_string())],
        ..Setup::default()
    };
    let token = |name: &str, seconds: i64| {
        signed(HEADER, with(name, (credentials::now() + seconds).into()).to_string())
    };
    let gate = Gate::with(setup(0)).await;
    for (name, seconds, wanted) in [
        ("exp", 60, GOOD),
        // The second itself is over: `exp` is the first moment that counts not.
        ("exp", 0, EXPIRED),
        ("exp", -1, EXPIRED),
        ("exp", -2, EXPIRED),
        ("nbf", 0, GOOD),
        ("nbf", -1, GOOD),
        ("nbf", 30, EARLY),
        ("nbf", 86_400, EARLY),
    ] {
        let verdict = gate.bearer(&token(name, seconds)).await;
        assert_eq!(verdict.brief(), wanted, "{name} {seconds}, no leeway");
    }
    let gate = Gate::with(setup(5)).await;
    for (name, seconds, wanted) in [
        ("exp", -1, GOOD),
        ("exp", -5, EXPIRED),
        ("exp", -6, EXPIRED),
        ("nbf", 4, GOOD),
        ("nbf", 30, EARLY),
    ] {
        let verdict = gate.bearer(&token(name, seconds)).await;
        assert_eq!(verdict.brief(), wanted, "{name} {seconds}, five seconds of leeway");
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one list of attacks")]
async fn se_23_numbers_and_audiences_of_wrong_types() {
    let gate = Gate::open().await;
    for odd in [
        "1e400",
        "-1e400",
        "1e-400",
        "4.1e9",
        "4102444800.0",
        "4102444800.5",
        "\"4102444800\"",
        "\"\"",
        "-1",
        "-0",
        "-0.0",
        "1e10",
        "0x7fffffff",
        "04102444800",
        "+4102444800",
        "4_102_444_800",
        "253402300800",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551616",
        "-9223372036854775809",
        "99999999999999999999999999999999999999",
        "true",
        "false",
        "null",
        "[4102444800]",
        "{}",
        "{\"$numberLong\":\"4102444800\"}",
        "Infinity",
        "NaN",
        "",
    ] {
        for name in ["exp", "nbf", "iat"] {
            let what = format!("{name} {odd}");
            gate.refuses(&what, &signed(HEADER, with_text(name, odd))).await;
        }
    }
    gate.takes("the last second", &signed(HEADER, with_text("exp", "253402300799"))).await;
    for name in ["aud", "iss", "sub"] {
        for odd in [
            "null",
            "true",
            "1",
            "{}",
            "[null]",
            "[[\"bailiwick-api\"]]",
            "[1]",
            "\"\"",
            "[\"\"]",
            "{\"bailiwick-api\":true}",
            "{\"0\":\"bailiwick-api\"}",
            "[{}]",
        ] {
            let what = format!("{name} {odd}");
            gate.refuses(&what, &signed(HEADER, with_text(name, odd))).await;
        }
    }
    for odd in ["{0} ", " {0}", "{0}\0", "{0}\n", "{0}/", "{0},x", "{0}{0}", "*", "%", ".*", "{1}"]
    {
        for (name, value) in [("aud", AUDIENCE), ("iss", ISSUER)] {
            let odd = odd.replace("{0}", value).replace("{1}", &value.to_uppercase());
            gate.refuses(name, &signed(HEADER, with(name, odd.as_str().into()).to_string())).await;
            let list = with(name, json!([odd])).to_string();
            gate.refuses(name, &signed(HEADER, list)).await;
        }
    }
    for odd in ["a\0b", "a\nb", "a\u{1b}[31m", "a\u{85}", &"s".repeat(257)] {
        let what = odd.escape_debug().to_string();
        gate.refuses(&what, &signed(HEADER, with("sub", odd.into()).to_string())).await;
    }
    gate.stands().await;
}

#[tokio::test]
async fn se_06_claims_of_scope_that_hide_something() {
    let gate = Gate::open().await;
    for odd in [
        json!(["shop", ""]),
        json!(["*", " "]),
        json!(["* "]),
        json!(["*\0"]),
        json!(["shop.*"]),
        json!(["*."]),
        json!(["."]),
        json!(["shop.."]),
        json!(["shop/"]),
        json!(["shop%2e"]),
        json!(["shop,till"]),
        json!(["shop till"]),
        json!(["shop\ttill"]),
        json!(["shop\n"]),
        json!([null]),
        json!([true]),
        json!([{}]),
        json!({}),
        json!(false),
        json!(0.5),
        json!("[]"),
        json!({"0": "shop"}),
        json!(["../shop"]),
        json!(["sh\u{2024}op"]),
        json!(["\u{ff53}hop"]),
        json!(["shop\u{200b}"]),
        json!(["-\u{2a}"]),
    ] {
        for name in ["namespaces", "worker_namespaces"] {
            let what = format!("{name} {odd}");
            gate.refuses(&what, &signed(HEADER, with(name, odd.clone()).to_string())).await;
        }
    }
    for odd in [
        json!("tasks:list,*"),
        json!("tasks:list\u{a0}*"),
        json!("tasks:list\0"),
        json!("**"),
        json!(null),
        json!({"tasks:list": true}),
        json!([null]),
        json!([["tasks:list"]]),
        json!(["tasks:list", 1]),
        json!(["tasks:list "]),
        json!(["**"]),
        json!(["tasks:list,*"]),
        json!(["tasks:list *"]),
        json!(["Tasks:List"]),
        json!([""]),
        json!(["tasks:"]),
        json!([":*"]),
        json!(["*:*"]),
        json!(["*:list"]),
        json!(["tasks:l*"]),
        json!(["root"]),
        json!(["tasks:list\0"]),
    ] {
        let what = format!("permissions {odd}");
        gate.refuses(&what, &signed(HEADER, with("permissions", odd).to_string())).await;
    }
    gate.stands().await;
}

#[tokio::test]
async fn se_32_tokens_of_other_kinds_are_not_taken() {
    let gate = Gate::open().await;
    for typ in [
        "bwk-step+jwt",
        "BWK-STEP+JWT",
        "Bwk-Step+Jwt",
        "bwk-node+jwt",
        "BWK-NODE+JWT",
        "application/bwk-step+jwt",
        "application/bwk-node+jwt",
        "bwk-step",
        "dpop+jwt",
        "logout+jwt",
        "secevent+jwt",
        "entity-statement+jwt",
        "JOSE",
        "JWE",
        "",
        " JWT",
        "JWT ",
        "JWT\0",
        "JWT;x=y",
        "J\u{2060}WT",
    ] {
        let header = json!({"alg": "EdDSA", "typ": typ}).to_string();
        gate.refuses(typ, &signed(header, claims().to_string())).await;
    }
    for header in [
        r#"{"alg":"EdDSA","typ":["JWT"]}"#,
        r#"{"alg":"EdDSA","typ":{"JWT":"JWT"}}"#,
        r#"{"alg":"EdDSA","typ":null}"#,
        r#"{"alg":"EdDSA","typ":true}"#,
        r#"{"alg":"EdDSA","crit":null}"#,
        r#"{"alg":"EdDSA","crit":"exp"}"#,
        r#"{"alg":"EdDSA","crit":["b64"],"b64":true}"#,
        r#"{"alg":"EdDSA","crit":["http://example.com/UNDEFINED"]}"#,
        r#"{"alg":"EdDSA","cr\u0069t":["exp"]}"#,
        r#"{"alg":"EdDSA","b64":true}"#,
        r#"{"alg":"EdDSA","b64":null}"#,
    ] {
        gate.refuses(header, &signed(header, claims().to_string())).await;
    }
    for typ in ["JWT", "jwt", "Jwt", "at+jwt", "AT+JWT"] {
        let header = json!({"alg": "EdDSA", "typ": typ}).to_string();
        gate.takes(typ, &signed(header, claims().to_string())).await;
    }
    gate.stands().await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one list of attacks")]
async fn se_14_a_bad_bearer_is_never_mended_by_what_stands_beside_it() {
    let gate = Gate::open().await;
    let token = signed(HEADER, claims().to_string());
    let good = format!("Bearer {token}");
    let expired = signed(HEADER, with("exp", (credentials::now() - 1).into()).to_string());
    let expired = format!("Bearer {expired}");
    let forged = format!("Bearer {}", Token::new("s", &["*"]).sign_with(credentials::stranger()));
    let doubled = format!("Bearer {good}");
    let semicolon = format!("{good};{token}");
    let tab = format!("Bearer\t{token}");
    let [equals, colon, quoted] =
        [format!("Bearer={token}"), format!("Bearer:{token}"), format!("Bearer \"{token}\"")];
    for (bad, wanted) in [
        ("", INVALID),
        ("Bearer", INVALID),
        ("bearer", INVALID),
        (&*token, INVALID),
        (&*forged, INVALID),
        (&*expired, EXPIRED),
        (&*doubled, INVALID),
        (&*semicolon, INVALID),
        (&*tab, INVALID),
        (&*equals, INVALID),
        (&*colon, INVALID),
        (&*quoted, INVALID),
        ("Bearer null", INVALID),
        ("Bearer undefined", INVALID),
        ("Basic dGVzdC1yb290LWtleS0xZjBjN2YyZjlhOg==", INVALID),
        ("Digest username=root", INVALID),
        ("Negotiate YII=", INVALID),
        ("DPoP a.b.c", INVALID),
        ("Bearers x", INVALID),
        ("Bea", INVALID),
        ("Bearer ,", AMBIGUOUS),
        (",", AMBIGUOUS),
    ] {
        let alone = [("authorization", bad)];
        assert_eq!(gate.list(&alone).await.brief(), wanted, "{bad:?}");
        let beside = [("authorization", bad), ("x-api-key", ROOT_KEY)];
        assert_eq!(gate.list(&beside).await.brief(), wanted, "{bad:?} beside root's key");
        let turned = [("x-api-key", ROOT_KEY), ("authorization", bad)];
        assert_eq!(gate.list(&turned).await.brief(), wanted, "{bad:?} after root's key");
        for twice in [[bad, &*good], [&*good, bad], [bad, bad]] {
            let twice = twice.map(|value| ("authorization", value));
            assert_eq!(gate.list(&twice).await.brief(), AMBIGUOUS, "{bad:?} twice");
        }
    }
    // A good bearer decides, whatever the key is, unless there are two.
    for key in ["garbage", "", READER_KEY, ROOT_KEY, "a b"] {
        let both = [("authorization", &*good), ("x-api-key", key)];
        assert_eq!(gate.list(&both).await.brief(), GOOD, "{key:?}");
        let doubled = [both[0], both[1], ("x-api-key", key)];
        assert_eq!(gate.list(&doubled).await.brief(), AMBIGUOUS, "{key:?}");
    }
    let reader_twice = format!("{READER_KEY} {READER_KEY}");
    let upper = READER_KEY.to_uppercase();
    let near = &READER_KEY[..READER_KEY.len() - 1];
    let longer = format!("{READER_KEY}0");
    let schemed = format!("Bearer {READER_KEY}");
    let joined = format!("{READER_KEY},");
    for (key, wanted) in [
        ("", INVALID),
        (&*reader_twice, INVALID),
        (&*upper, INVALID),
        (near, INVALID),
        (&*longer, INVALID),
        (&*schemed, INVALID),
        (&*token, INVALID),
        ("*", INVALID),
        ("%", INVALID),
        ("' OR 1=1 --", INVALID),
        (&*joined, AMBIGUOUS),
        (",", AMBIGUOUS),
    ] {
        assert_eq!(gate.list(&[("x-api-key", key)]).await.brief(), wanted, "{key:?}");
    }
    for pair in [["", READER_KEY], [READER_KEY, ""], ["", ""]] {
        let pair = pair.map(|value| ("x-api-key", value));
        assert_eq!(gate.list(&pair).await.brief(), AMBIGUOUS, "{pair:?}");
    }
    // Other places where a credential could stand are none.
    let query = format!("GET /v1/tasks?access_token={token}");
    let answer = wire::send(gate.server.http, wire::head(&query, &[])).await;
    assert_eq!(answer.reason(), "CREDENTIALS_MISSING");
    let cookie = format!("authorization={token}; x-api-key={ROOT_KEY}");
    for name in ["cookie", "proxy-authorization", "x-authorization", "x-forwarded-user", "api-key"]
    {
        let verdict = gate.list(&[(name, &cookie)]).await;
        assert_eq!(verdict.brief(), (401, "CREDENTIALS_MISSING"), "{name}");
    }
    gate.stands().await;
}

/// One HEADERS frame of HTTP/2 with headers as they stand, which no client
/// library would send, and the message that is empty.
fn http2(headers: &[(&str, &[u8])]) -> Vec<u8> {
    fn text(block: &mut Vec<u8>, bytes: &[u8]) {
        assert!(bytes.len() < 127 + 128, "a length of two bytes");
        match u8::try_from(bytes.len()) {
            Ok(short @ 0..127) => block.push(short),
            long => block.extend([127, long.unwrap() - 127]),
        }
        block.extend(bytes);
    }
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        text(&mut block, name.as_bytes());
        text(&mut block, value);
    }
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let message = pb::CreateTaskRequest {
        namespace: "shop".to_owned(),
        name: "order".to_owned(),
        ..Default::default()
    };
    let message = prost::Message::encode_to_vec(&message);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let data = [&[0][..], &length, &message].concat();
    [preface, frame(4, 0, 0, &[]), frame(1, 4, 1, &block), frame(0, 1, 1, &data)].concat()
}

#[tokio::test]
async fn se_14_control_characters_within_credentials() {
    let gate = Gate::open().await;
    let server = &gate.server;
    let body = json!({"namespace": "shop", "definition": harness::ORDER});
    assert_eq!(server.as_root("POST", "/v1/templates", Some(body)).await.0, 201);
    let order = json!({"namespace": "shop", "name": "order"}).to_string();
    let length = order.len();
    let tasks = async || {
        let (_, list) = server.as_root("GET", "/v1/tasks", None).await;
        list["tasks"].as_array().unwrap().len()
    };
    let grpc = async |name: &str, value: &[u8]| {
        let mut wire = Wire::open(server.grpc).await;
        let frames = http2(&[
            (":method", b"POST"),
            (":scheme", b"http"),
            (":path", b"/bailiwick.v1.TaskService/CreateTask"),
            (":authority", b"localhost"),
            ("content-type", b"application/grpc"),
            ("te", b"trailers"),
            (name, value),
        ]);
        let _ = wire.write(frames).await;
        // There is no telling how a broken stream ends; only what it does
        // counts, and that is done soon.
        wire.closes_within(Duration::from_millis(60)).await;
    };
    grpc("x-api-key", ROOT_KEY.as_bytes()).await;
    let done = async { while tasks().await != 1 {} };
    tokio::time::timeout(PATIENCE, done).await.expect("the frames do create a task");

    for control in (0..0x20_u8).chain([0x7f, 0x80, 0xff]) {
        let key = ROOT_KEY.as_bytes();
        let forms = [[&[control], key].concat(), [key, &[control]].concat(), {
            let (left, right) = key.split_at(9);
            [left, &[control], right].concat()
        }];
        for (place, key) in forms.into_iter().enumerate() {
            let mut values = vec![("x-api-key", key.clone())];
            values.push(("authorization", [b"Bearer ", &key[..]].concat()));
            values.push(("authorization", [b"Bearer", &key[..]].concat()));
            for (name, value) in values {
                // HTTP/1 takes a line's end and blanks around a value away.
                let blank = matches!(control, b'\t' | b'\n' | b'\r');
                if !(blank && (place != 2 || control != b'\t')) {
                    let head = format!(
                        "POST /v1/tasks HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                         content-length: {length}\r\n{name}: "
                    );
                    let request = [head.as_bytes(), &value, b"\r\n\r\n", order.as_bytes()].concat();
                    let mut wire = Wire::open(server.http).await;
                    wire.write(request).await.unwrap();
                    let answer = wire.answer(false).await.expect("an answer");
                    assert!(matches!(answer.status, 400 | 401), "{control:#x} {name}: {answer:?}");
                }
            }
        }
        let middle = [&ROOT_KEY.as_bytes()[..9], &[control], &ROOT_KEY.as_bytes()[9..]].concat();
        grpc("x-api-key", &middle).await;
        grpc("authorization", &[b"Bearer".as_slice(), &[control], ROOT_KEY.as_bytes()].concat())
            .await;
    }
    assert_eq!(tasks().await, 1, "a credential with a control character was taken");
    gate.stands().await;
}

#[tokio::test]
async fn se_10_the_refusal_tells_a_stranger_nothing_of_why() {
    let gate = Gate::open().await;
    let good = claims().to_string();
    let token = |claims: &Value| format!("Bearer {}", signed(HEADER, claims.to_string()));
    let stranger = |token: &Token| format!("Bearer {}", token.sign_with(credentials::stranger()));
    let own = Token::new("attacker", &["tasks:list"]);
    let past = json!(credentials::now() - 60);
    let to_come = json!(credentials::now() + 600);
    let bearers = [
        ("an unknown token", "Bearer sk-guess".to_owned()),
        ("near a known key", format!("Bearer {READER_KEY}x")),
        ("no JWT", "Bearer a.b.c".to_owned()),
        ("another scheme", "Basic eDp5".to_owned()),
        ("a bad signature", stranger(&own)),
        ("a bad signature, expired", stranger(&own.clone().claim("exp", past))),
        ("a bad signature, too early", stranger(&own.clone().claim("nbf", to_come))),
        ("a bad signature, another issuer", stranger(&own.clone().claim("iss", "x".into()))),
        ("another issuer", token(&with("iss", "x".into()))),
        ("another audience", token(&with("aud", "x".into()))),
        ("an empty subject", token(&with("sub", "".into()))),
        ("an odd scope", token(&with("namespaces", json!([""])))),
        ("an unknown permission", token(&with("permissions", json!(["x:y"])))),
        ("an odd end", token(&with("exp", "x".into()))),
        ("another algorithm", format!("Bearer {}", signed(r#"{"alg":"RS256"}"#, &good))),
        ("another kind", format!("Bearer {}", signed(r#"{"alg":"EdDSA","typ":"x"}"#, &good))),
        ("a demand", format!("Bearer {}", signed(r#"{"alg":"EdDSA","crit":[]}"#, &good))),
        ("too long", format!("Bearer {}", of_length(TOKEN_BYTES_MAX + 1))),
    ];
    let mut verdicts = Vec::new();
    for (what, value) in &bearers {
        verdicts.push((*what, gate.list(&[("authorization", value)]).await));
    }
    for (what, key) in [("an unknown key", "sk-guess"), ("no key", ""), ("two words", "a b")] {
        verdicts.push((what, gate.list(&[("x-api-key", key)]).await));
    }
    // A server that knows neither this key nor any JWT.
    let lines = "enabled = true\n[[auth.api_keys]]\nkey = \"sk-another\"\npermissions = [\"*\"]\n";
    let other = Setup { auth: false, rest: lines.to_owned(), ..Setup::default() };
    let other = Gate::with(other).await;
    verdicts.push(("no JWTs at all", other.list(&[("authorization", &bearers[4].1)]).await));
    verdicts.push(("a key of elsewhere", other.list(&[("x-api-key", ROOT_KEY)]).await));

    let (_, first) = &verdicts[0];
    assert!(first.seen[0].contains("Invalid authentication credentials"), "{first:?}");
    for (what, verdict) in &verdicts {
        assert_eq!(verdict.brief(), INVALID, "{what}");
        assert_eq!(verdict.seen, first.seen, "{what}");
    }
    // The log knows all of it.
    for reason in ["signature", "issuer", "audience", "unknown_key", "unknown_token", "algorithm"] {
        gate.server.logged("authentication failed", &[("reason", reason)]).await;
    }
    gate.stands().await;
}

/// The last status of a stream, and when it came in milliseconds since 1970.
async fn end_of<T>(mut stream: tonic::Streaming<T>) -> (Status, i64) {
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended well"),
            Err(status) => return (status, jiff::Timestamp::now().as_millisecond()),
        }
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "five kinds of calls at once")]
async fn se_16_and_se_17_fifty_calls_in_flight_end_with_their_credential() {
    let server = Server::start().await.with_template().await;
    let mut tasks = Vec::new();
    for _ in 0..5 {
        tasks.push(server.order(json!({})).await);
    }
    // Room to open all of them on a busy machine.
    let begun = credentials::now();
    let end = begun + 4;
    let token = Token::new("brief", &["*"]).claim("exp", end.into()).sign();
    let authorization = format!("Bearer {token}");
    let client = server.client(Auth::Bearer(token)).await;

    let mut watches = Vec::new();
    let mut works = Vec::new();
    for number in 0..10 {
        let task = tasks[number % tasks.len()].clone();
        let request = pb::WatchTaskRequest { task_uuid: task, after_seq: None };
        watches.push(client.tasks().watch_task(request).await.unwrap().into_inner());
        let open = pb::WorkOpen {
            namespace: "shop".to_owned(),
            name: format!("w{number}"),
            handlers: vec!["other".to_owned()],
            version: None,
        };
        let open =
            pb::StreamWorkRequest { message: Some(pb::stream_work_request::Message::Open(open)) };
        let up = futures::stream::iter([open]).chain(futures::stream::pending());
        works.push(client.workers().stream_work(up).await.unwrap().into_inner());
    }
    let parks = join_all((0..15).map(|_| {
        let mut workers = client.workers();
        async move {
            let park = pb::LeaseStepsRequest {
                namespace: "shop".to_owned(),
                handlers: vec!["other".to_owned()],
                max_leases: 1,
                wait_ms: 60_000,
                worker: None,
            };
            let refused = workers.lease_steps(park).await.unwrap_err();
            (refused, jiff::Timestamp::now().as_millisecond())
        }
    }));
    let headers = [("authorization", &*authorization)];
    let park = json!({"namespace": "shop", "handlers": ["other"], "wait_ms": 60_000});
    let polls = join_all((0..15).map(|_| async {
        let answer = server.json("POST", "/v1/work/lease", &headers, Some(park.clone())).await;
        (answer, jiff::Timestamp::now().as_millisecond())
    }));
    let watched = join_all(watches.into_iter().map(end_of));
    let worked = join_all(works.into_iter().map(end_of));
    // All are parked while the credential still lives.
    let parked = async {
        while server.figure("bailiwick_seats_waiting").await.unwrap_or_default() < 30.0 {
            assert!(credentials::now() < end, "the calls were not parked in time");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let all = async { tokio::join!(watched, worked, parks, polls, parked) };
    let (watched, worked, parks, polls, ()) =
        tokio::time::timeout(PATIENCE, all).await.expect("all of them to end");

    // Within a second by the rule; the bound is wide as machines are shared.
    let within = |what: &str, at: i64| {
        let late = at - end * 1000;
        assert!((0..5_000).contains(&late), "{what} ended {late} ms after its credential");
    };
    let calls = [("watch", watched), ("work", worked), ("lease", parks)];
    for (what, (status, at)) in
        calls.into_iter().flat_map(|(what, ends)| ends.into_iter().map(move |end| (what, end)))
    {
        assert_eq!(status.code(), Code::Unauthenticated, "{what}: {status:?}");
        within(what, at);
    }
    for ((status, body), at) in polls {
        assert_eq!((status, &body["reason"]), (401, &json!("CREDENTIALS_EXPIRED")));
        within("REST lease", at);
    }
    // No seat is left behind, and no step was given to any of them.
    let empty = async { while server.figure("bailiwick_seats_waiting").await != Some(0.0) {} };
    tokio::time::timeout(PATIENCE, empty).await.expect("no seat is left behind");
    let api = harness::Api::root(&server).await;
    assert_eq!(api.lease_now("work").await.len(), tasks.len());
}

#[tokio::test]
async fn se_16_fifty_bodies_in_flight_end_with_their_credential() {
    let server = Server::start().await.with_template().await;
    let end = credentials::now() + 3;
    let token = Token::new("slow", &["tasks:create"]).claim("exp", end.into()).sign();
    let authorization = format!("Bearer {token}");
    let order = json!({"namespace": "shop", "name": "order"}).to_string();
    let whole = wire::post("POST /v1/tasks", &[("authorization", &authorization)], &order);
    let (first, second) = whole.split_at(whole.len() - 5);
    let mut calls = Vec::new();
    for _ in 0..50 {
        let mut call = Wire::open(server.http).await;
        call.write(first).await.unwrap();
        calls.push(call);
    }
    while credentials::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for mut call in calls {
        call.write(second).await.unwrap();
        let answer = call.answer(false).await.unwrap();
        assert_eq!((answer.status, &*answer.reason()), EXPIRED);
    }
    let (_, list) = server.as_root("GET", "/v1/tasks", None).await;
    assert_eq!(list["tasks"], json!([]), "nothing was done");
}

#[tokio::test]
async fn tk_43_names_of_unknown_permissions_are_in_the_log_where_wished() {
    let names = ["acme:launch", "acme:land"];
    let token = Token::new("pilot", &["tasks:list", names[0], names[1]]).sign();
    for (strict, logged) in [(true, true), (true, false), (false, true), (false, false)] {
        let lines = format!("strict_validation = {strict}\nlog_unknown_permissions = {logged}\n");
        let gate = Gate::with(Setup { rest: lines, ..Setup::default() }).await;
        let wanted = if strict { INVALID } else { GOOD };
        assert_eq!(gate.bearer(&token).await.brief(), wanted);
        // Whether named or not, the refusal itself is always in the log.
        if strict {
            let line = [("reason", "unknown_permissions"), ("level", "WARN")];
            gate.server.logged("authentication failed", &line).await;
        } else if logged {
            let message = "the token names unknown permissions; they count for nothing";
            let line = gate.server.logged(message, &[("level", "WARN")]).await;
            assert!(names.iter().all(|name| line["permissions"].to_string().contains(name)));
        }
        // The log is read up to a line that comes after all of it.
        assert_eq!(gate.list(&[("x-api-key", READER_KEY)]).await.brief(), GOOD);
        let last = [("subject", "reader of the tests")];
        gate.server.logged("credential accepted", &last).await;
        let log = gate.server.process.err.all().join("\n");
        for name in names {
            assert_eq!(log.contains(name), logged, "{name}, strict {strict}, logged {logged}");
        }
    }
}

/// A service without a token, before, while and after the operator turns
/// authentication on over the same data.
#[tokio::test]
async fn tk_56_services_without_a_token_meet_401_once_it_is_on() {
    let off = Setup { auth: false, ..Setup::steady() };
    let on = Setup { auth: true, ..off.clone() };
    let server = Server::with(off.clone()).await;
    let body = json!({"namespace": "shop", "definition": harness::ORDER});
    assert_eq!(server.json("POST", "/v1/templates", &[], Some(body)).await.0, 201);
    let order = json!({"namespace": "shop", "name": "order"});
    let create = async |server: &Server, headers: &[(&str, &str)]| {
        let (status, body) = server.json("POST", "/v1/tasks", headers, Some(order.clone())).await;
        let grpc = server.grpc("TaskService/CreateTask", order.clone(), headers).await;
        (status, body, grpc.map_or_else(|status| status.code(), |_| Code::Ok))
    };
    let (status, body, code) = create(&server, &[]).await;
    assert_eq!((status, code), (201, Code::Ok), "{body}");

    let server = server.again_with(on).await;
    let (status, body, code) = create(&server, &[]).await;
    assert_eq!((status, code), (401, Code::Unauthenticated));
    assert_eq!(body["error"], "unauthorized");
    assert_eq!(body["message"], "Missing authentication credentials");
    let lister = format!("Bearer {}", Token::new("svc", &["tasks:create", "tasks:list"]).sign());
    let lister = [("authorization", &*lister)];
    let (status, body, code) = create(&server, &lister).await;
    assert_eq!((status, code), (201, Code::Ok), "{body}");
    // What was made before is still there, for whoever has a credential.
    let (status, body) = server.json("GET", "/v1/tasks", &lister, None).await;
    assert_eq!((status, body["tasks"].as_array().map(Vec::len)), (200, Some(4)), "{body}");

    let server = server.again_with(off).await;
    assert_eq!(create(&server, &[]).await.2, Code::Ok, "and back");
}

#[tokio::test]
async fn tk_77_lives_are_short_unless_told_otherwise_and_the_docs_advise() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let keys = keys.to_str().unwrap();
    harness::alone(&["auth", "generate-keys", "--output-dir", keys]).await.good();
    let private = format!("{keys}/jwt-private-key.pem");
    let line = [
        "auth",
        "generate-token",
        "--subject",
        "s",
        "--permissions",
        "tasks:read",
        "--private-key",
    ];
    let token = harness::alone(&[&line[..], &[&private]].concat()).await.good();
    let claims = URL_SAFE_NO_PAD.decode(token.trim().split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    let life = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert!((1..=24 * 3600).contains(&life), "{life} seconds");
    let security = include_str!("../../docs/security.md");
    let words = security.split_whitespace().collect::<Vec<_>>().join(" ");
    for advice in [
        "1 to 24 hours",
        "rights small",
        "rotate keys",
        "private keys out of repositories",
        "`bailiwick_auth_failures_total`",
        "`bailiwick_permission_denials_total`",
    ] {
        assert!(words.contains(advice), "docs/security.md does not advise: {advice}");
    }
}

/// A minted token, or an API key, with its public id.
async fn given_out(server: &Server, path: &str, body: Value) -> (String, String) {
    let (status, made) = server.as_root("POST", path, Some(body)).await;
    assert_eq!(status, 201, "{made}");
    let text = |names: [&str; 2]| {
        let found = names.iter().find_map(|name| made[name].as_str());
        found.unwrap_or_else(|| panic!("{names:?} in {made}")).to_owned()
    };
    (text(["token", "key"]), text(["prefix", "id"]))
}

const TOKENS: &str = "/api/auth/tokens";
const KEYS: &str = "/v1/api-keys";

/// What is nearly this secret; each of these is somebody's slip or guess.
fn nearly(secret: &str, id: &str) -> Vec<String> {
    let number = u64::from_str_radix(id, 36).unwrap();
    let swapped = |at: usize| {
        let mut text = secret.to_owned().into_bytes();
        let letter = &mut text[at];
        *letter = if letter.is_ascii_alphabetic() { *letter ^ 0x20 } else { b'x' };
        String::from_utf8(text).unwrap()
    };
    let mut near: Vec<String> = vec![
        // Known by its id alone, with a checksum that fits.
        Secret::new(number, &[0; 32]).expose().to_owned(),
        Secret::new(number, &[0xff; 32]).expose().to_owned(),
        Secret::new(number.wrapping_add(1), &[0; 32]).expose().to_owned(),
        id.to_owned(),
        format!("bwk_{id}"),
        format!("bwk_{id}_"),
        "bwk_".to_owned(),
        secret.to_ascii_uppercase(),
        secret.to_ascii_lowercase(),
        secret.replacen("bwk_", "BWK_", 1),
        secret.replacen("bwk_", "Bwk_", 1),
        secret.replacen("bwk_", "bwk-", 1),
        secret.replacen("bwk_", "", 1),
        secret.replacen(id, &id.to_ascii_uppercase(), 1),
        format!("{}000000", &secret[..secret.len() - 6]),
        secret[..secret.len() - 6].to_owned(),
        format!("{secret}0"),
        format!("{secret}="),
        format!("{secret}."),
        format!(".{secret}"),
        format!("{secret}.{secret}.{secret}"),
        format!("{secret}%00"),
        format!("{secret}\\0"),
        format!("\"{secret}\""),
        format!("{secret}{secret}"),
        format!("{secret};{secret}"),
        secret.chars().rev().collect(),
        secret.replacen('_', "%5F", 1),
        secret.replacen(id, "' OR 1=1 --", 1).replace(' ', ""),
        secret.replacen(id, "%", 1),
        secret.replacen(id, "____________", 1),
    ];
    near.extend([1, 10, 16, 17, 40, 66].map(|length| secret[..length].to_owned()));
    near.extend((0..secret.len()).step_by(7).map(swapped));
    // The same bytes again, where a letter of the secret part or of the id
    // has no case.
    near.retain(|text| text != secret);
    near
}

#[tokio::test]
async fn se_10_dk_49_nearly_a_secret_is_unknown_whatever_it_is_near_to() {
    let gate = Gate::open().await;
    let server = &gate.server;
    let lister = json!({"name": "n", "scopes": ["tasks:list"], "namespaces": ["*"]});
    let (token, token_id) = given_out(server, TOKENS, lister.clone()).await;
    let (key, key_id) = given_out(server, KEYS, lister.clone()).await;
    let (dead, dead_id) = given_out(server, TOKENS, lister.clone()).await;
    let revoked = server.as_root("DELETE", &format!("{TOKENS}/{dead_id}"), None).await;
    assert_eq!(revoked.0, 204);
    gate.takes("the token itself", &token).await;
    gate.takes("the key as a bearer", &key).await;
    assert_eq!(gate.list(&[("x-api-key", &key)]).await.brief(), GOOD);
    // Its holder is told what became of it; who has the id alone is not.
    let told = gate.bearer(&dead).await;
    assert_eq!(told.brief(), (401, "CREDENTIALS_REVOKED"));

    let unknown = gate.bearer("sk-guess").await;
    assert_eq!(unknown.brief(), INVALID);
    for (secret, id) in [(&token, &token_id), (&key, &key_id), (&dead, &dead_id)] {
        for near in nearly(secret, id) {
            let bearer = format!("Bearer {near}");
            for header in [("authorization", &*bearer), ("x-api-key", &*near)] {
                let verdict = gate.list(&[header]).await;
                assert_eq!(verdict.brief(), INVALID, "{header:?}");
                assert_eq!(verdict.seen, unknown.seen, "{header:?}");
            }
        }
    }
    // A token is no key, and whose it is nobody learns from that.
    for token in [&token, &dead] {
        let verdict = gate.list(&[("x-api-key", token)]).await;
        assert_eq!(verdict.seen, unknown.seen);
    }
    // A case of the header's name or of the scheme is no other credential.
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"] {
        let value = format!("{scheme} {token}");
        assert_eq!(gate.list(&[("authorization", &value)]).await.brief(), GOOD, "{scheme}");
    }
    for name in ["X-API-Key", "X-Api-Key", "x-api-KEY"] {
        let answer = wire::send(server.http, wire::head("GET /v1/tasks", &[(name, &key)])).await;
        assert_eq!(answer.status, 200, "{name}");
    }
    gate.stands().await;
}

/// NUL and its like within a secret, byte by byte over the wire.
#[tokio::test]
async fn se_14_control_characters_within_secrets_that_were_given_out() {
    let gate = Gate::open().await;
    let lister = json!({"name": "n", "scopes": ["tasks:list"], "namespaces": ["*"]});
    let (token, _) = given_out(&gate.server, TOKENS, lister.clone()).await;
    let (key, _) = given_out(&gate.server, KEYS, lister).await;
    for control in (0..0x20_u8).chain([0x7f, 0x80, 0xa0, 0xff]) {
        for (name, scheme, secret) in
            [("authorization", "Bearer ", &token), ("x-api-key", "", &key)]
        {
            for at in [4, 17, 40, secret.len() - 6, secret.len()] {
                // HTTP takes blanks and the ends of lines around a value away.
                if at == secret.len() && matches!(control, b'\t' | b'\n' | b'\r') {
                    continue;
                }
                let (left, right) = secret.as_bytes().split_at(at);
                let head = format!("GET /v1/tasks HTTP/1.1\r\nhost: x\r\n{name}: {scheme}");
                let request = [head.as_bytes(), left, &[control], right, b"\r\n\r\n"].concat();
                let mut wire = Wire::open(gate.server.http).await;
                wire.write(request).await.unwrap();
                let answer = wire.answer(false).await.expect("an answer");
                assert!(matches!(answer.status, 400 | 401), "{control:#x} {name}: {answer:?}");
            }
        }
    }
    gate.takes("the token itself", &token).await;
    gate.stands().await;
}

#[tokio::test]
async fn se_16_se_17_fifty_calls_in_flight_end_with_their_revocation() {
    let server = Server::start().await.with_template().await;
    let body = json!({"scopes": ["tasks:create", "work:lease"], "namespaces": ["shop"]});
    let (token, prefix) = given_out(&server, TOKENS, body).await;
    let authorization = format!("Bearer {token}");
    let headers = [("authorization", &*authorization)];
    // Half of them have sent their head and a part of their body.
    let order = json!({"namespace": "shop", "name": "order"}).to_string();
    let whole = wire::post("POST /v1/tasks", &headers, &order);
    let (first, second) = whole.split_at(whole.len() - 5);
    let mut bodies = Vec::new();
    for _ in 0..25 {
        let mut call = Wire::open(server.http).await;
        call.write(first).await.unwrap();
        bodies.push(call);
    }
    let park = json!({"namespace": "shop", "handlers": ["other"], "wait_ms": 60_000});
    let polls = join_all((0..25).map(|_| async {
        let answer = server.json("POST", "/v1/work/lease", &headers, Some(park.clone())).await;
        (answer, tokio::time::Instant::now())
    }));
    let revoke = async {
        while server.figure("bailiwick_seats_waiting").await.unwrap_or_default() < 25.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let revoked = server.as_root("DELETE", &format!("{TOKENS}/{prefix}"), None).await;
        assert_eq!(revoked.0, 204);
        tokio::time::Instant::now()
    };
    let both = async { tokio::join!(polls, revoke) };
    let (polls, revoked_at) = tokio::time::timeout(PATIENCE, both).await.expect("all to end");
    for ((status, body), at) in polls {
        assert_eq!((status, &body["reason"]), (401, &json!("CREDENTIALS_REVOKED")));
        // A second is what is promised; machines are shared.
        assert!(at.saturating_duration_since(revoked_at) < Duration::from_secs(5));
    }
    for mut call in bodies {
        call.write(second).await.unwrap();
        let answer = call.answer(false).await.unwrap();
        assert_eq!((answer.status, &*answer.reason()), (401, "CREDENTIALS_REVOKED"));
    }
    let (_, list) = server.as_root("GET", "/v1/tasks", None).await;
    assert_eq!(list["tasks"], json!([]), "nothing was done");
}

#[tokio::test]
async fn se_39_uses_are_counted_once_over_both_surfaces() {
    let gate = Gate::open().await;
    let body = json!({"scopes": ["tasks:list"], "max_uses": 9});
    let (token, prefix) = given_out(&gate.server, TOKENS, body).await;
    let authorization = format!("Bearer {token}");
    let headers = [("authorization", &*authorization)];
    let rest = join_all((0..25).map(|_| gate.server.json("GET", "/v1/tasks", &headers, None)));
    let grpc = join_all((0..25).map(|_| gate.grpc(&headers)));
    // What is refused for another reason spends nothing.
    let denied = join_all((0..10).map(|_| gate.server.json("GET", "/v1/workers", &headers, None)));
    let (rest, grpc, denied) = tokio::join!(rest, grpc, denied);
    let served = rest.iter().filter(|(status, _)| *status == 200).count();
    let served = served + grpc.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(served, 9);
    for (status, body) in rest.iter().filter(|(status, _)| *status != 200) {
        assert_eq!((*status, &body["reason"]), (401, &json!("CREDENTIALS_USED_UP")));
    }
    for refused in grpc.into_iter().filter_map(Result::err) {
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    }
    assert!(denied.iter().all(|(status, _)| matches!(status, 401 | 403)), "{denied:?}");
    let path = format!("{TOKENS}/{prefix}");
    let (_, shown) = gate.server.as_root("GET", &path, None).await;
    assert_eq!((&shown["uses"], &shown["max_uses"]), (&json!(9), &json!(9)));
}
