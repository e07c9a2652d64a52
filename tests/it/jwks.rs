//! Keys that issuers publish, several issuers, and what claims are worth:
//! against a key server of the test's own.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bailiwick::{
    authn::tokens::{self, KeyKind, KeyPairPem},
    pb::v1 as pb,
    server::spawn,
};
use bailiwick_client::Auth;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tonic::Code;

use crate::harness::{
    self, Api, PATIENCE, Process, Server, Setup,
    api::{self, refusal},
    credentials::{self, AUDIENCE, Token},
    process,
};

#[derive(Clone, Debug)]
enum Reply {
    Body(String),
    Status(u16),
    Redirect(String),
    Hang,
}

/// Answers paths as it is told, and counts how often it is asked.
#[derive(Clone, Debug)]
struct KeyServer {
    address: SocketAddr,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    asked: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl KeyServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let this = Self { address, replies: Arc::default(), asked: Arc::default() };
        let serving = this.clone();
        spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                spawn(serving.clone().answer(stream));
            }
        });
        this
    }

    async fn answer(self, mut stream: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        let path = head.split(' ').nth(1).unwrap().to_owned();
        *self.asked.lock().unwrap().entry(path.clone()).or_default() += 1;
        let reply = self.replies.lock().unwrap().get(&path).cloned();
        let text = match reply.unwrap_or(Reply::Status(404)) {
            Reply::Body(body) => format!("200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
            Reply::Status(status) => format!("{status} Odd\r\ncontent-length: 0\r\n\r\n"),
            Reply::Redirect(to) => {
                format!("302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
            }
            Reply::Hang => {
                tokio::time::sleep(PATIENCE).await;
                return;
            }
        };
        // Whoever asked may be gone.
        let _ = stream.write_all(format!("HTTP/1.1 {text}").as_bytes()).await;
    }

    fn says(&self, path: &str, reply: Reply) {
        self.replies.lock().unwrap().insert(path.to_owned(), reply);
    }

    fn publishes(&self, keys: &[(&str, &KeyPairPem)]) {
        let keys: Vec<Value> = keys.iter().map(|(kid, pair)| jwk(kid, pair)).collect();
        self.says("/keys", Reply::Body(json!({"keys": keys}).to_string()));
    }

    fn asked(&self, path: &str) -> u32 {
        self.asked.lock().unwrap().get(path).copied().unwrap_or(0)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// `[auth]` with the keys of this server, refreshed so often.
    fn setup(&self, interval: u32, more: &str) -> Setup {
        let url = self.url("/keys");
        own(&format!(
            "jwks_url = \"{url}\"\njwks_refresh_interval_seconds = {interval}\n\
             jwt_issuer = \"https://idp\"\n{more}"
        ))
    }
}

fn own(lines: &str) -> Setup {
    let rest = format!(
        "enabled = true\njwt_verification_method = \"jwks\"\njwks_url_allow_http = true\n\
         jwt_audience = \"bailiwick-api\"\n{lines}\n"
    );
    Setup { auth: false, rest, ..Setup::default() }
}

fn pair() -> KeyPairPem {
    tokens::generate(KeyKind::Ed25519).unwrap()
}

/// The last 32 bytes of an Ed25519 key's DER are the key.
fn jwk(kid: &str, pair: &KeyPairPem) -> Value {
    let body: String = pair.public.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(body).unwrap();
    let x = URL_SAFE_NO_PAD.encode(&der[der.len() - 32..]);
    json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid, "x": x})
}

fn token(kid: Option<&str>, pair: &KeyPairPem, more: Value) -> String {
    let mut claims = json!({
        "sub": "alice", "iss": "https://idp", "aud": "bailiwick-api",
        "exp": credentials::now() + 600, "permissions": ["tasks:list"],
    });
    let Value::Object(more) = more else { panic!("claims: {more}") };
    claims.as_object_mut().unwrap().extend(more);
    let key = EncodingKey::from_ed_pem(pair.private.as_bytes()).unwrap();
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::EdDSA) };
    jsonwebtoken::encode(&header, &claims, &key).unwrap()
}

async fn status(server: &Server, token: &str) -> u16 {
    let value = format!("Bearer {token}");
    server.json("GET", "/v1/tasks", &[("authorization", &value)], None).await.0
}

async fn whoami(server: &Server, token: &str) -> Value {
    let value = format!("Bearer {token}");
    let (status, me) = server.json("GET", "/v1/whoami", &[("authorization", &value)], None).await;
    assert_eq!(status, 200, "{me}");
    me
}

/// Waits until a token gets this status.
async fn becomes(server: &Server, token: &str, wanted: u16) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while status(server, token).await != wanted {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(waited.await.is_ok(), "never {wanted}");
}

async fn ready(server: &Server) -> bool {
    server.json("GET", "/health/ready", &[], None).await.0 == 200
}

#[tokio::test]
async fn tk_39_tk_40_and_se_38_keys_of_a_set_count_and_change_without_a_restart() {
    let (old, new, idp) = (pair(), pair(), KeyServer::start().await);
    idp.publishes(&[("old", &old)]);
    let server = Server::with(idp.setup(1, "")).await;
    assert!(ready(&server).await);
    let (before, after) =
        (token(Some("old"), &old, json!({})), token(Some("new"), &new, json!({})));
    assert_eq!(status(&server, &before).await, 200);
    assert_eq!(status(&server, &token(None, &old, json!({}))).await, 200, "the only key");
    assert_eq!(status(&server, &token(Some("old"), &new, json!({}))).await, 401);
    assert_eq!(status(&server, &after).await, 401);

    idp.publishes(&[("old", &old), ("new", &new)]);
    becomes(&server, &after, 200).await;
    assert_eq!(status(&server, &before).await, 200);
    assert_eq!(status(&server, &token(None, &old, json!({"sub": "bob"}))).await, 401, "one of two");

    // SE-38: what was verified a moment ago does not outlive its key.
    idp.publishes(&[("new", &new)]);
    becomes(&server, &before, 401).await;
    assert_eq!(status(&server, &after).await, 200);
}

#[tokio::test]
async fn tk_40_an_unknown_key_asks_for_one_refresh_and_is_refused_at_once() {
    let (old, new, idp) = (pair(), pair(), KeyServer::start().await);
    idp.publishes(&[("old", &old)]);
    let server = Server::with(idp.setup(3600, "")).await;
    assert_eq!(idp.asked("/keys"), 1);
    idp.publishes(&[("new", &new)]);
    let good = token(Some("new"), &new, json!({}));
    assert_eq!(status(&server, &good).await, 401);
    becomes(&server, &good, 200).await;
    assert_eq!(idp.asked("/keys"), 2);
    for number in 0..20 {
        let stray = token(Some(&format!("stray-{number}")), &new, json!({}));
        assert_eq!(status(&server, &stray).await, 401);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(idp.asked("/keys"), 2, "within half a minute");
    let text = harness::http().get(server.url("/metrics")).send().await.unwrap();
    let text = text.text().await.unwrap();
    assert!(text.contains("\"unknown_kid\""), "{text}");
}

/// Names of keys as attackers write them, at an issuer with a key set: they
/// are compared with the names in the set, and nothing else.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one list of attacks")]
async fn se_23_tk_40_names_of_keys_open_no_file_no_table_and_no_address() {
    let (good, other, stranger) = (pair(), pair(), pair());
    let idp = KeyServer::start().await;
    idp.publishes(&[("a", &good), ("b", &other)]);
    let mut setup = idp.setup(3600, "");
    let off = ("BAILIWICK__LIMITS__FAILED_AUTH_PER_MINUTE".to_owned(), "0".to_owned());
    setup.environment.push(off);
    let mut server = Server::with(setup).await;
    let planted = idp.url("/stranger");
    idp.says("/stranger", Reply::Body(json!({"keys": [jwk("a", &stranger)]}).to_string()));
    let file = server.path("stranger.pem");
    std::fs::write(&file, &stranger.public).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(status(&server, &token(Some("a"), &good, json!({}))).await, 200);

    let long = "a".repeat(8_000);
    let kids = [
        file,
        "stranger.pem",
        "../stranger.pem",
        "../../../../../../dev/null",
        "/dev/null",
        "/proc/self/environ",
        "a' OR '1'='1",
        "a'; DROP TABLE credentials; --",
        "x' UNION SELECT 'AA' --",
        "%",
        "_",
        "*",
        "",
        "A",
        "a ",
        " a",
        "a\0",
        "a\0b",
        "a\nb",
        "a,b",
        "%61",
        "\u{430}",
        "0",
        "keys[0]",
        "$(touch /tmp/x)",
        "http://169.254.169.254/latest",
        &planted,
        &long,
    ];
    for kid in kids {
        // Not even the issuer's own key counts under another name.
        for key in [&good, &stranger] {
            assert_eq!(status(&server, &token(Some(kid), key, json!({}))).await, 401, "{kid:?}");
        }
    }
    // A known name, another's signature; a key and addresses brought along.
    assert_eq!(status(&server, &token(Some("a"), &stranger, json!({}))).await, 401);
    assert_eq!(status(&server, &token(Some("a"), &other, json!({}))).await, 401, "that of `b`");
    let key = EncodingKey::from_ed_pem(stranger.private.as_bytes()).unwrap();
    let claims = json!({
        "sub": "alice", "iss": "https://idp", "aud": "bailiwick-api",
        "exp": credentials::now() + 600, "permissions": ["tasks:list"],
    });
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let bare = jwk("a", &stranger);
    for header in [
        json!({"jwk": bare, "kid": "a"}),
        json!({"jwk": bare}),
        json!({"jwks": {"keys": [bare]}, "kid": "a"}),
        json!({"jku": planted, "kid": "a"}),
        json!({"x5u": planted, "kid": "a"}),
        json!({"kid": ["a"]}),
        json!({"kid": {"a": "a"}}),
        json!({"kid": null}),
        json!({"kid": 0}),
        json!({"kid": true}),
    ] {
        let mut header = header;
        header["alg"] = "EdDSA".into();
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::EdDSA).unwrap();
        assert_eq!(status(&server, &format!("{message}.{signature}")).await, 401, "{header}");
    }
    // Key confusion: all of this the world can read in the set.
    let public = jwk("a", &good);
    let x = public["x"].as_str().unwrap();
    let raw = URL_SAFE_NO_PAD.decode(x).unwrap();
    for secret in [x.as_bytes(), &raw, public.to_string().as_bytes(), good.public.as_bytes()] {
        for alg in ["HS256", "EdDSA"] {
            let header = json!({"alg": alg, "kid": "a", "typ": "JWT"});
            let message = format!("{}.{}", encode(&header), encode(&claims));
            let mac = EncodingKey::from_secret(secret);
            let signature =
                jsonwebtoken::crypto::sign(message.as_bytes(), &mac, Algorithm::HS256).unwrap();
            assert_eq!(status(&server, &format!("{message}.{signature}")).await, 401, "{alg}");
        }
    }
    // Of all these names one refresh came, to the one address that is set.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((idp.asked("/keys"), idp.asked("/stranger")), (2, 0));
    assert_eq!(status(&server, &token(Some("b"), &other, json!({}))).await, 200);
    server.assert_sound();
}

#[tokio::test]
async fn tk_40_keys_outlive_errors_for_the_stale_time_and_no_longer() {
    let (key, idp) = (pair(), KeyServer::start().await);
    idp.publishes(&[("a", &key)]);
    let server = Server::with(idp.setup(1, "jwks_max_stale_seconds = 3\n")).await;
    let good = token(Some("a"), &key, json!({}));
    idp.says("/keys", Reply::Status(500));
    server.logged("the issuer's keys cannot be fetched", &[]).await;
    assert_eq!(status(&server, &good).await, 200, "stale while there are errors");
    becomes(&server, &good, 401).await;
    idp.publishes(&[("a", &key)]);
    becomes(&server, &good, 200).await;
}

/// What `/health/detailed` says of the keys, at these REST addresses.
async fn keys_health(address: SocketAddr) -> (Value, Value, u16) {
    let get =
        async |path: &str| harness::http().get(format!("http://{address}{path}")).send().await;
    let detailed = get("/health/detailed").await.unwrap().text().await.unwrap();
    assert!(!detailed.contains("idp"), "no issuer's name: {detailed}");
    let detailed: Value = serde_json::from_str(&detailed).unwrap();
    let ready = get("/health/ready").await.unwrap().status().as_u16();
    (detailed["status"].clone(), detailed["checks"]["jwt_keys"].clone(), ready)
}

async fn keys_say(address: SocketAddr, text: &str) -> (Value, Value, u16) {
    let said = tokio::time::timeout(PATIENCE, async {
        loop {
            let health = keys_health(address).await;
            if health.1["message"].as_str().is_some_and(|message| message.contains(text)) {
                return health;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    said.await.unwrap_or_else(|_| panic!("never: {text}"))
}

async fn key_fetch_failures(address: SocketAddr) -> f64 {
    let text = harness::http().get(format!("http://{address}/metrics")).send().await.unwrap();
    let text = text.text().await.unwrap();
    let name = "bailiwick_auth_key_fetch_failures_total ";
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

#[tokio::test]
async fn tk_40_and_se_11_health_says_that_keys_are_old_or_gone() {
    let (key, idp) = (pair(), KeyServer::start().await);
    idp.publishes(&[("a", &key)]);
    let setup = idp.setup(
        1,
        "jwks_max_stale_seconds = 5\n[[auth.api_keys]]\nkey = \"root\"\n\
         permissions = [\"*\"]\n",
    );
    let server = Server::with(setup).await;
    let mut command = server.cli();
    command.arg("-c").arg(server.path("bailiwick.toml"));
    command.args(["worker", "run", "--log-json", "--namespace", "shop", "--handler", "a=true"]);
    command.args(["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
    command.env("BAILIWICK_API_KEY", "root");
    let worker = Process::start(command);
    let serving = worker.err.wait_for(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        (line["message"] == "the worker's own listeners serve").then_some(line)
    });
    let serving = serving.await.unwrap_or_else(|| panic!("{:?}", worker.err.all()));
    let both = [server.http, serving["http"].as_str().unwrap().parse().unwrap()];
    for address in both {
        let (_, part, _) = keys_say(address, "are there").await;
        assert_eq!(part["status"], "healthy");
        assert!(key_fetch_failures(address).await < 0.5);
    }

    idp.says("/keys", Reply::Status(500));
    for address in both {
        let (all, part, ready) = keys_say(address, "still count").await;
        assert_eq!((&all, &part["status"], ready), (&"degraded".into(), &"degraded".into(), 200));
        assert!(key_fetch_failures(address).await > 0.5);
    }
    for address in both {
        let (all, part, ready) = keys_say(address, "too old").await;
        assert_eq!((&all, &part["status"], ready), (&"degraded".into(), &"degraded".into(), 200));
    }
    let api_key = server.json("GET", "/v1/tasks", &[("x-api-key", "root")], None).await;
    assert_eq!(api_key.0, 200, "other credentials count all the same");
    let said = server.run(&["health"]).await;
    assert!(said.code == Some(1) && said.out.contains("jwt_keys"), "{said}");
    idp.publishes(&[("a", &key)]);
    for address in both {
        let (all, part, ready) = keys_say(address, "are there").await;
        assert_eq!((&all, &part["status"], ready), (&"healthy".into(), &"healthy".into(), 200));
    }
}

#[tokio::test]
async fn tk_39_a_server_without_keys_listens_and_is_not_ready() {
    let (key, idp) = (pair(), KeyServer::start().await);
    idp.says("/keys", Reply::Hang);
    let server = Server::with(idp.setup(1, "")).await;
    assert!(!ready(&server).await);
    let (all, part, _) = keys_health(server.http).await;
    assert_eq!((&all, &part["status"]), (&"degraded".into(), &"degraded".into()), "{part}");
    let good = token(Some("a"), &key, json!({}));
    assert_eq!(status(&server, &good).await, 401);
    idp.publishes(&[("a", &key)]);
    becomes(&server, &good, 200).await;
    let waited = tokio::time::timeout(PATIENCE, async {
        while !ready(&server).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(waited.await.is_ok());
}

#[tokio::test]
async fn se_64_redirects_stay_on_the_host_and_bodies_are_bounded() {
    let (key, idp, other) = (pair(), KeyServer::start().await, KeyServer::start().await);
    other.publishes(&[("a", &key)]);
    idp.says("/keys", Reply::Redirect(other.url("/keys")));
    let server = Server::with(idp.setup(1, "")).await;
    let good = token(Some("a"), &key, json!({}));
    assert_eq!(status(&server, &good).await, 401);
    assert_eq!(other.asked("/keys"), 0);

    let set = json!({"keys": [jwk("a", &key)], "more": "x".repeat(300 << 10)});
    idp.says("/keys", Reply::Body(set.to_string()));
    let before = idp.asked("/keys");
    let asked_again = tokio::time::timeout(PATIENCE, async {
        while idp.asked("/keys") < before + 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(asked_again.await.is_ok());
    assert_eq!(status(&server, &good).await, 401, "too long");

    let set = json!({"keys": [jwk("a", &key)]});
    idp.says("/moved", Reply::Body(set.to_string()));
    idp.says("/keys", Reply::Redirect("/moved".to_owned()));
    becomes(&server, &good, 200).await;
}

#[tokio::test]
async fn tk_39_discovery_finds_the_keys_of_the_issuer_itself() {
    let (key, idp) = (pair(), KeyServer::start().await);
    idp.publishes(&[("a", &key)]);
    let document = |issuer: &str| {
        Reply::Body(json!({"issuer": issuer, "jwks_uri": idp.url("/keys")}).to_string())
    };
    let path = "/.well-known/openid-configuration";
    idp.says(path, document("https://somebody-else"));
    let issuer = idp.url("");
    let lines = format!("jwt_issuer = \"{issuer}\"\njwks_refresh_interval_seconds = 1\n");
    let server = Server::with(own(&lines)).await;
    let good = token(Some("a"), &key, json!({"iss": issuer}));
    assert_eq!(status(&server, &good).await, 401);
    assert_eq!(idp.asked("/keys"), 0);
    idp.says(path, document(&issuer));
    becomes(&server, &good, 200).await;
    let closed = own(&lines);
    let closed = Setup { rest: closed.rest.replace("jwks_url_allow_http = true\n", ""), ..closed };
    let said = harness::refused(&closed).await;
    assert!(said.contains("plain http"), "{said}");
}

#[tokio::test]
async fn se_02_one_subject_of_two_issuers_is_two_principals_under_two_ceilings() {
    let (one, two, idp) = (pair(), pair(), KeyServer::start().await);
    idp.publishes(&[("a", &one)]);
    let set = json!({"keys": [jwk("a", &two)]});
    idp.says("/other", Reply::Body(set.to_string()));
    let more = format!(
        "[[auth.issuers]]\nissuer = \"https://other\"\naudience = \"other-api\"\n\
         jwks_url = \"{}\"\njwks_url_allow_http = true\npermissions_claim = \"scp\"\n\
         permissions_ceiling = [\"tasks:*\"]\nnamespaces_ceiling = [\"ci\"]\n",
        idp.url("/other")
    );
    let server = Server::with(idp.setup(3600, &more)).await;
    let first = token(Some("a"), &one, json!({"permissions": ["*"]}));
    let claims = json!({
        "iss": "https://other", "aud": "other-api", "scp": "tasks:list steps:read",
        "namespaces": ["ci.web", "shop"],
    });
    let second = token(Some("a"), &two, claims.clone());
    let (me, other) = (whoami(&server, &first).await, whoami(&server, &second).await);
    assert_eq!((&me["subject"], &other["subject"]), (&json!("alice"), &json!("alice")));
    assert_eq!((&me["issuer"], &other["issuer"]), (&json!("https://idp"), &json!("https://other")));
    assert_eq!(me["grants"][0]["permissions"], json!(["*"]));
    let cut = json!([{"permissions": ["tasks:list"], "namespaces": ["ci.web"]}]);
    assert_eq!(other["grants"], cut);
    assert_eq!(status(&server, &first).await, 200);
    // Neither's key speaks for the other, nor does its audience.
    assert_eq!(status(&server, &token(Some("a"), &one, claims)).await, 401);
    assert_eq!(status(&server, &token(Some("a"), &two, json!({}))).await, 401);
    assert_eq!(
        status(&server, &token(Some("a"), &two, json!({"iss": "https://other"}))).await,
        401
    );
    assert_eq!(
        status(&server, &token(Some("a"), &one, json!({"iss": "https://third"}))).await,
        401
    );
    // All of everything is under the ceiling too.
    let all = json!({"iss": "https://other", "aud": "other-api", "scp": "*"});
    let grant = &whoami(&server, &token(Some("a"), &two, all)).await["grants"][0];
    assert_eq!(grant["namespaces"], json!(["ci"]));
    assert!(!grant["permissions"].as_array().unwrap().contains(&json!("*")), "{grant}");
}

#[tokio::test]
async fn se_01_claim_rules_are_grants_of_their_own() {
    let (key, idp) = (pair(), KeyServer::start().await);
    idp.publishes(&[("a", &key)]);
    let rules = "[[auth.claim_rules]]\nissuer = \"https://idp\"\n\
         claims = { repository = \"acme/*\", ref = \"refs/heads/main\" }\n\
         permissions = [\"role:deployer\"]\nnamespaces = [\"ci.{repository_owner}\"]\n\
         [[auth.claim_rules]]\nissuer = \"https://idp\"\n\
         claims = { \"kubernetes.io.namespace\" = \"web\", groups = \"ops-*\" }\n\
         permissions = [\"tasks:read\"]\nnamespaces = [\"k8s.{kubernetes.io.namespace}\"]\n\
         [auth.roles.deployer]\npermissions = [\"tasks:create\", \"tasks:list\"]\n";
    let server = Server::with(idp.setup(3600, rules)).await;
    let grants = async |claims: Value| {
        let mut claims = claims;
        claims["permissions"] = json!([]);
        whoami(&server, &token(Some("a"), &key, claims)).await["grants"].clone()
    };
    let github = |repository: &str, owner: &str, branch: &str| json!({"repository": repository, "repository_owner": owner, "ref": branch});
    let deploys = json!([
        {"permissions": ["tasks:create", "tasks:list"], "namespaces": ["ci.acme"]},
    ]);
    assert_eq!(grants(github("acme/web", "acme", "refs/heads/main")).await, deploys);
    for claims in [
        github("acme/web", "acme", "refs/heads/other"),
        github("evil/web", "acme", "refs/heads/main"),
        github("acme/web/x", "acme", "refs/heads/main"),
        github("acme/web", "a.b", "refs/heads/main"),
        github("acme/web", "*", "refs/heads/main"),
        json!({"repository": "acme/web", "ref": "refs/heads/main"}),
        json!({"repository": "acme/web", "ref": "refs/heads/main", "repository_owner": ["acme"]}),
    ] {
        let found = grants(claims.clone()).await;
        let empty = &found[0]["permissions"];
        assert!(empty.as_array().is_none_or(Vec::is_empty), "{claims} {found}");
    }
    let mut both = github("acme/web", "acme", "refs/heads/main");
    both["kubernetes.io"] = json!({"namespace": "web"});
    both["groups"] = json!(["dev", "ops-eu"]);
    let pod = json!({"permissions": ["tasks:read"], "namespaces": ["k8s.web"]});
    assert_eq!(grants(both.clone()).await, json!([deploys[0], pod]));
    // The claim `namespaces` narrows what rules give.
    both["namespaces"] = json!(["k8s"]);
    assert_eq!(grants(both).await[1], pod);
}

#[tokio::test]
async fn tk_42_tk_43_and_tk_52_roles_in_tokens_and_keys() {
    let (key, idp) = (pair(), KeyServer::start().await);
    idp.publishes(&[("a", &key)]);
    let more = "strict_validation = false\npermissions_claim = \"realm_access.roles\"\n\
         [[auth.api_keys]]\nkey = \"reader\"\npermissions = [\"role:read-only-operator\"]\n\
         [[auth.api_keys]]\nkey = \"root\"\npermissions = [\"role:superuser\"]\n\
         [auth.roles.own]\npermissions = [\"dlq:read\"]\n";
    let server = Server::with(idp.setup(3600, more)).await;
    let roles = |names: Value| token(Some("a"), &key, json!({"realm_access": {"roles": names}}));
    let held = whoami(&server, &roles(json!(["role:own", "role:task-submitter", "offline"]))).await;
    let wanted = json!(["tasks:create", "tasks:read", "tasks:list", "dlq:read"]);
    assert_eq!(held["grants"][0]["permissions"], wanted);
    let line = server.process.err.wait_for(|line| line.contains("offline").then_some(()));
    assert!(line.await.is_some(), "the log names what is unknown");
    assert_eq!(status(&server, &roles(json!(["role:worker-service"]))).await, 403);
    assert_eq!(status(&server, &roles(json!(["role:ops-admin"]))).await, 200);
    let me = async |key| server.json("GET", "/v1/whoami", &[("x-api-key", key)], None).await.1;
    let reads = json!([
        "tasks:read",
        "tasks:list",
        "steps:read",
        "templates:read",
        "system:handlers_read",
        "nodes:read",
    ]);
    assert_eq!(me("reader").await["grants"][0]["permissions"], reads);
    assert_eq!(me("root").await["root"], json!(true));

    let strict = more.replace("strict_validation = false\n", "");
    let server = Server::with(idp.setup(3600, &strict)).await;
    assert_eq!(status(&server, &roles(json!(["role:task-submitter"]))).await, 200);
    assert_eq!(status(&server, &roles(json!(["role:task-submitter", "role:x"]))).await, 401);
}

/// A folder with two authorities, a certificate that the first made for this
/// host and one for another, and the key set that OpenSSL is to serve.
async fn https_folder(set: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keys"), set.to_string()).unwrap();
    let openssl = async |args: &str| {
        let args: Vec<&str> = args.split(' ').collect();
        let mut command = harness::program("openssl", &args);
        command.current_dir(&folder);
        harness::run(command).await.good();
    };
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for name in ["ours", "theirs"] {
        let files = format!("-keyout {name}.key -out {name}.pem -subj /CN={name} -days 2");
        openssl(&format!("req -x509 {new} {files}")).await;
    }
    for (name, host) in [("here", "IP:127.0.0.1"), ("elsewhere", "DNS:keys.example.com")] {
        let files = format!("-keyout {name}.key -out {name}.csr -subj /CN={name}");
        openssl(&format!("req {new} {files} -addext subjectAltName={host}")).await;
        let by = "-CA ours.pem -CAkey ours.key -CAcreateserial -copy_extensions copy -days 2";
        openssl(&format!("x509 -req -in {name}.csr -out {name}.pem {by}")).await;
    }
    folder
}

/// OpenSSL as a web server of a folder's files; answers where it listens.
async fn https_server(folder: &TempDir, certificate: &str) -> (Process, String) {
    let mut command = process::quiet("openssl");
    let key = format!("{certificate}.key");
    let certificate = format!("{certificate}.pem");
    command.args(["s_server", "-accept", "127.0.0.1:0", "-WWW"]);
    command.args(["-cert", &certificate, "-key", &key]).current_dir(folder);
    let server = Process::start(command);
    let address = server.out.wait_for(|line| Some(line.strip_prefix("ACCEPT ")?.to_owned()));
    let address = address.await.unwrap_or_else(|| panic!("{:?}", server.err.all()));
    (server, format!("https://{address}/keys"))
}

#[tokio::test]
async fn tk_39_and_se_64_https_counts_by_who_vouches_for_it() {
    let key = pair();
    let folder = https_folder(&json!({"keys": [jwk("a", &key)]})).await;
    let (_here, here) = https_server(&folder, "here").await;
    let (_elsewhere, elsewhere) = https_server(&folder, "elsewhere").await;
    let ca = |name: &str| format!("jwks_ca_path = \"{}\"\n", folder.path().join(name).display());
    let setup = |url: &str, ca: &str| Setup {
        auth: false,
        rest: format!(
            "enabled = true\njwt_verification_method = \"jwks\"\njwt_audience = \"bailiwick-api\"\n\
             jwt_issuer = \"https://idp\"\njwks_refresh_interval_seconds = 1\n\
             jwks_url = \"{url}\"\n{ca}"
        ),
        ..Setup::default()
    };
    let good = token(Some("a"), &key, json!({}));
    let server = Server::with(setup(&here, &ca("ours.pem"))).await;
    becomes(&server, &good, 200).await;
    assert!(ready(&server).await);
    drop(server);

    // Another authority, the system's, and a certificate for another host.
    for (url, ca) in
        [(&here, ca("theirs.pem")), (&here, String::new()), (&elsewhere, ca("ours.pem"))]
    {
        let server = Server::with(setup(url, &ca)).await;
        let line = server.logged("the issuer's keys cannot be fetched", &[]).await;
        let problem = line["problem"].as_str().unwrap();
        assert!(problem.contains("certificate"), "{problem}");
        assert_eq!(status(&server, &good).await, 401, "{ca}");
        assert!(!ready(&server).await);
    }

    for bad in ["keys", "ours.key", "absent.pem"] {
        let said = harness::refused(&setup(&here, &ca(bad))).await;
        assert!(said.contains(bad), "{said}");
    }

    // One of `[[auth.issuers]]` has its own.
    let of_its_own = format!(
        "[[auth.issuers]]\nissuer = \"https://idp\"\naudience = \"bailiwick-api\"\n\
         jwks_url = \"{here}\"\n{}",
        ca("ours.pem")
    );
    let server = Server::with(Setup { rest: of_its_own, ..Setup::default() }).await;
    becomes(&server, &good, 200).await;
}

/// Whoever has the name alone has nothing of the other's: not its leases, its
/// workers or what it made.
#[tokio::test]
async fn se_02_leases_and_workers_belong_to_issuer_and_subject() {
    let (key, idp) = (pair(), KeyServer::start().await);
    idp.publishes(&[("a", &key)]);
    let rest = format!(
        "[[auth.issuers]]\nissuer = \"https://idp\"\naudience = \"{AUDIENCE}\"\njwks_url = \"{}\"\n\
         jwks_url_allow_http = true\n\
         [[auth.api_keys]]\nkey = \"same-name\"\npermissions = [\"role:worker-service\"]\n\
         description = \"alice\"\n",
        idp.url("/keys")
    );
    let server = Server::with(Setup { rest, ..Setup::default() }).await;
    let permissions = ["work:lease", "tasks:create", "tasks:read"];
    let ours = Token::new("alice", &permissions).sign();
    let other = token(Some("a"), &key, json!({"permissions": permissions}));
    becomes(&server, &token(Some("a"), &key, json!({})), 200).await;
    let root = Api::root(&server).await;
    let owner = Api::of(&server, Auth::Bearer(ours.clone())).await;
    let namesakes = [
        Api::of(&server, Auth::Bearer(other.clone())).await,
        Api::of(&server, Auth::ApiKey { key: "same-name".to_owned(), header: None }).await,
        // Who may do everything is not who holds the lease.
        root.clone(),
    ];
    root.register(&api::one("work")).await;
    let task = root.create("work").await;
    let lease = owner.lease("work").await;
    for namesake in &namesakes {
        let heartbeat = pb::HeartbeatStepRequest { lease_id: lease.lease_id.clone() };
        let heartbeat = namesake.client.workers().heartbeat_step(heartbeat).await;
        for refusal in [
            refusal(namesake.try_complete(&lease, "1").await),
            refusal(namesake.try_fail(&lease, "no", false).await),
            refusal(heartbeat.map_err(Into::into)),
        ] {
            assert_eq!(refusal.code, Code::NotFound, "{refusal:?}");
        }
    }
    for verb in ["heartbeat", "complete", "fail"] {
        let body = json!({"lease_id": lease.lease_id});
        let value = format!("Bearer {other}");
        let headers = [("authorization", value.as_str())];
        let path = format!("/v1/work/{verb}");
        let (status, said) = server.json("POST", &path, &headers, Some(body)).await;
        assert_eq!(status, 404, "{verb}: {said}");
    }
    // A token that is new, of the same principal, is the holder.
    let again = Token::new("alice", &["work:lease"]).claim("jti", json!("another")).sign();
    let again = Api::of(&server, Auth::Bearer(again)).await;
    assert_eq!(again.heartbeat(&lease).await.state(), pb::LeaseState::Held);
    assert!(!owner.try_complete(&lease, "1").await.unwrap());
    assert_eq!(refusal(namesakes[0].try_complete(&lease, "1").await).code, Code::NotFound);
    assert!(again.try_complete(&lease, "1").await.unwrap(), "the same once more");
    assert_eq!(root.task(&task.task_uuid).await.state(), pb::TaskState::Complete);

    workers_and_keys_of_requests(&root, [&owner, &namesakes[0], &namesakes[1]]).await;
}

async fn workers_and_keys_of_requests(root: &Api, three: [&Api; 3]) {
    let [owner, other, _] = three;
    // One name of a worker, three workers.
    for worker in three {
        let request = pb::RegisterWorkerRequest {
            namespace: api::NAMESPACE.into(),
            name: "worker-1".into(),
            handlers: vec!["work".into()],
            version: None,
        };
        worker.client.workers().register_worker(request).await.unwrap();
    }
    let listed = root.client.workers().list_workers(pb::ListWorkersRequest::default()).await;
    let workers = listed.unwrap().into_inner().workers;
    let named: Vec<&str> = workers
        .iter()
        .filter(|worker| worker.name == "worker-1")
        .map(|worker| worker.subject.as_str())
        .collect();
    assert_eq!(named, ["alice"; 3]);

    // A key of a request is the namespace's and the template's (a retry may
    // come from another credential); who made the task stays who it was.
    let keyed = |context: &str| pb::CreateTaskRequest {
        idempotency_key: Some("order-7".into()),
        context: context.into(),
        ..api::request("work")
    };
    let first = owner.try_create(keyed("{}")).await.unwrap();
    let second = other.try_create(keyed("{}")).await.unwrap();
    assert_eq!(first.task_uuid, second.task_uuid);
    let conflict = refusal(other.try_create(keyed("{\"a\":1}")).await);
    assert_eq!(conflict.reason.as_deref(), Some("IDEMPOTENCY_CONFLICT"));
}

/// Streams and calls that wait end with the key of their token, at once.
#[tokio::test]
async fn se_38_and_se_17_a_key_takes_the_streams_of_its_tokens_along() {
    let (gone, stays, idp) = (pair(), pair(), KeyServer::start().await);
    idp.publishes(&[("gone", &gone), ("stays", &stays)]);
    let rest = format!(
        "[[auth.issuers]]\nissuer = \"https://idp\"\naudience = \"{AUDIENCE}\"\njwks_url = \"{}\"\n\
         jwks_url_allow_http = true\njwks_refresh_interval_seconds = 1\n",
        idp.url("/keys")
    );
    let server = Server::with(Setup { rest, ..Setup::default() }).await;
    let claims = json!({"permissions": ["tasks:read", "tasks:list", "work:lease"]});
    let (ends, lasts) =
        (token(Some("gone"), &gone, claims.clone()), token(Some("stays"), &stays, claims));
    becomes(&server, &ends, 200).await;
    let root = Api::root(&server).await;
    root.register(&api::one("work")).await;
    let task = root.create("work").await.task_uuid;
    let mut streams = Vec::new();
    for bearer in [&ends, &lasts] {
        let api = Api::of(&server, Auth::Bearer(bearer.clone())).await;
        let request = pb::WatchTaskRequest { task_uuid: task.clone(), after_seq: None };
        let mut stream = api.client.tasks().watch_task(request).await.unwrap().into_inner();
        stream.message().await.unwrap().expect("the state as it is");
        streams.push(stream);
    }
    let parked = Api::of(&server, Auth::Bearer(ends.clone())).await;
    let parked = parked.try_lease(&["never"], 1, Duration::from_secs(25));
    let change = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        idp.publishes(&[("stays", &stays)]);
        becomes(&server, &ends, 401).await;
        tokio::time::Instant::now()
    };
    let parked = async { (parked.await, tokio::time::Instant::now()) };
    let ((answer, answered), refused) = tokio::join!(parked, change);
    assert_eq!(refusal(answer).code, Code::Unauthenticated);
    assert!(answered < refused + Duration::from_secs(2), "{:?}", answered - refused);
    let end = tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            match streams[0].message().await {
                Ok(event) => assert!(event.is_some(), "the stream ended well"),
                Err(status) => return status,
            }
        }
    });
    assert_eq!(end.await.expect("the stream ends").code(), Code::Unauthenticated);

    // The other one goes on.
    root.cancel(&task).await.unwrap();
    let event = tokio::time::timeout(PATIENCE, streams[1].message()).await.unwrap();
    assert!(event.unwrap().is_some());
}
