//! TLS and client certificates at the front door.

use std::{fs, path::Path, time::Duration};

use bailiwick_client::{Auth, Client, ClientBuilder, pb::v1 as pb};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{self, PATIENCE, ROOT_KEY, Server, Setup, alone, credentials::Token};

const WORKER: &str = "spiffe://shop.example/worker";

/// Certificates that the command line has made, beside a server's settings.
pub fn files(folder: &Path) -> String {
    let file = |name: &str| folder.join(name).display().to_string();
    format!("tls_cert = \"{}\"\ntls_key = \"{}\"\n", file("server.pem"), file("server-key.pem"))
}

async fn generate(folder: &Path, more: &[&str]) {
    let folder = folder.to_str().unwrap();
    let args = [&["auth", "generate-certs", "--force", "--output-dir", folder], more].concat();
    alone(&args).await.good();
}

/// A folder of certificates, made by the command line.
pub async fn generated(more: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    generate(folder.path(), more).await;
    folder
}

/// A file of it.
pub fn read(folder: &TempDir, name: &str) -> Vec<u8> {
    fs::read(folder.path().join(name)).unwrap()
}

async fn secured(certs: &TempDir) -> Server {
    Server::with(Setup { server: files(certs.path()), ..Setup::default() }).await
}

/// A server that asks for certificates, with these rules.
async fn mutual(certs: &TempDir, rules: &str) -> Server {
    let ca = certs.path().join("ca.pem");
    let server = format!("{}client_ca = \"{}\"\n", files(certs.path()), ca.display());
    Server::with(Setup { server, rest: rules.to_owned(), ..Setup::default() }).await
}

/// A rule that gives a SPIFFE ID every permission.
pub fn rule(spiffe: &str) -> String {
    format!("[[auth.certificates]]\nspiffe = \"{spiffe}\"\npermissions = [\"*\"]\n")
}

/// A REST client that trusts the authority, and shows this certificate.
pub fn rest(ca: &[u8], identity: Option<(&[u8], &[u8])>) -> reqwest::ClientBuilder {
    let ca = reqwest::Certificate::from_pem(ca).unwrap();
    let builder = reqwest::Client::builder().tls_certs_only([ca]).timeout(PATIENCE);
    match identity {
        Some((cert, key)) => {
            let pem = [cert, key].concat();
            builder.identity(reqwest::Identity::from_pem(&pem).unwrap())
        }
        None => builder,
    }
}

fn grpc(server: &Server, ca: &[u8]) -> ClientBuilder {
    Client::builder(format!("https://{}", server.grpc)).ca_certificate(ca)
}

fn root() -> Auth {
    Auth::ApiKey { key: ROOT_KEY.to_owned(), header: None }
}

async fn whoami(
    server: &Server,
    client: &reqwest::Client,
    headers: &[(&str, &str)],
) -> (u16, Value) {
    let mut call = client.get(format!("https://{}/v1/whoami", server.http));
    for (name, value) in headers {
        call = call.header(*name, *value);
    }
    let answer = call.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn both_listeners_speak_both_http_over_tls() {
    let certs = generated(&[]).await;
    let server = secured(&certs).await;
    let ca = read(&certs, "ca.pem");
    let headers = [("x-api-key", ROOT_KEY)];
    for (client, version) in [
        (rest(&ca, None).http1_only().build().unwrap(), reqwest::Version::HTTP_11),
        (rest(&ca, None).build().unwrap(), reqwest::Version::HTTP_2),
    ] {
        for address in [server.http, server.grpc] {
            let url = format!("https://{address}/v1/whoami");
            let answer = client.get(url).header("x-api-key", ROOT_KEY).send().await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
        }
    }
    // By its name too, and not without the authority.
    let named = rest(&ca, None).build().unwrap();
    let url = format!("https://localhost:{}/health", server.http.port());
    assert_eq!(named.get(url).send().await.unwrap().status(), 200);
    let stranger = generated(&[]).await;
    let mistrusting = rest(&read(&stranger, "ca.pem"), None).build().unwrap();
    assert!(mistrusting.get(format!("https://{}/health", server.http)).send().await.is_err());
    assert_eq!(whoami(&server, &named, &headers).await.0, 200);

    let client = grpc(&server, &ca).auth(root()).connect().await.unwrap();
    let identity = client.access().who_am_i(pb::WhoAmIRequest {}).await.unwrap().into_inner();
    assert!(identity.root);
    assert!(grpc(&server, &read(&stranger, "ca.pem")).connect().await.is_err());
}

#[tokio::test]
async fn plain_text_gets_no_byte_from_a_tls_port() {
    let certs = generated(&[]).await;
    let server = secured(&certs).await;
    for address in [server.http, server.grpc] {
        for said in [
            &b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x80\x00",
        ] {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(said).await.unwrap();
            let mut heard = Vec::new();
            // An end or a reset: both close it.
            let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await.unwrap();
            assert!(heard.is_empty(), "{heard:?}");
        }
    }
}

#[tokio::test]
async fn a_handshake_that_hangs_ends_and_holds_nobody_up() {
    let certs = generated(&[]).await;
    let mut setup = Setup { server: files(certs.path()), ..Setup::default() };
    setup.rest = "[limits]\nheader_timeout_seconds = 1\n".to_owned();
    let server = Server::with(setup).await;
    let mut silent = tokio::net::TcpStream::connect(server.http).await.unwrap();
    let mut half = tokio::net::TcpStream::connect(server.http).await.unwrap();
    half.write_all(&[22, 3, 1]).await.unwrap();
    let client = rest(&read(&certs, "ca.pem"), None).build().unwrap();
    assert_eq!(whoami(&server, &client, &[("x-api-key", ROOT_KEY)]).await.0, 200);
    for stream in [&mut silent, &mut half] {
        let mut heard = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await.unwrap();
    }
}

#[tokio::test]
async fn wrong_files_stop_the_start_and_are_named() {
    let certs = generated(&[]).await;
    let other = generated(&[]).await;
    let path = |folder: &TempDir, name: &str| folder.path().join(name).display().to_string();
    let (cert, key) = (path(&certs, "server.pem"), path(&certs, "server-key.pem"));
    fs::write(certs.path().join("empty.pem"), "").unwrap();
    let cut = String::from_utf8(read(&certs, "server.pem")).unwrap();
    fs::write(certs.path().join("cut.pem"), &cut[..cut.len() / 2]).unwrap();
    let secret = fs::read_to_string(&key).unwrap().lines().nth(1).unwrap().to_owned();
    let (absent, empty, cut) =
        (path(&certs, "absent.pem"), path(&certs, "empty.pem"), path(&certs, "cut.pem"));
    let other_key = path(&other, "server-key.pem");
    for (cert, key, ca, wrong, problem) in [
        (&absent, &key, None, &absent, "cannot be read"),
        (&cert, &absent, None, &absent, "cannot be read"),
        (&empty, &key, None, &empty, "holds no PEM certificate"),
        (&cut, &key, None, &cut, "the PEM is damaged"),
        (&key, &key, None, &key, "holds no PEM certificate"),
        (&cert, &cert, None, &cert, "holds no PEM private key"),
        (&cert, &other_key, None, &other_key, "does not fit the first certificate"),
        (&cert, &key, Some(&absent), &absent, "cannot be read"),
        (&cert, &key, Some(&key), &key, "holds no PEM certificate"),
    ] {
        let ca = ca.map(|ca| format!("client_ca = \"{ca}\"\n")).unwrap_or_default();
        let server = format!("tls_cert = \"{cert}\"\ntls_key = \"{key}\"\n{ca}");
        let said = harness::refused(&Setup { server, ..Setup::default() }).await;
        assert!(said.contains(wrong) && said.contains(problem), "{problem}: {said}");
        assert!(!said.contains(&secret), "{said}");
    }
    let said =
        harness::refused(&Setup { server: format!("tls_cert = \"{cert}\"\n"), ..Setup::default() })
            .await;
    assert!(said.contains("server.tls_key"), "{said}");
}

#[tokio::test]
async fn a_new_certificate_is_served_without_a_restart() {
    let certs = generated(&[]).await;
    let server = secured(&certs).await;
    let old = read(&certs, "ca.pem");
    let url = format!("https://{}/health", server.http);
    let served = async |ca: &[u8]| rest(ca, None).build().unwrap().get(&url).send().await.is_ok();
    assert!(served(&old).await);

    // A broken set changes nothing, and says so once.
    let cert = read(&certs, "server.pem");
    fs::write(certs.path().join("server.pem"), "broken").unwrap();
    server.logged("changed TLS files are not taken; the old ones stay", &[]).await;
    assert!(served(&old).await);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let warned = server.logs().iter().filter(|line| line["level"] == "WARN").count();
    assert_eq!(warned, 1, "{:?}", server.logs());
    fs::write(certs.path().join("server.pem"), cert).unwrap();

    generate(certs.path(), &[]).await;
    let new = read(&certs, "ca.pem");
    let taken = async {
        while !served(&new).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.expect("the new certificate");
    assert!(!served(&old).await);
}

#[tokio::test]
async fn se_46_a_certificate_is_a_principal() {
    let certs = generated(&["--spiffe", WORKER]).await;
    let server = mutual(&certs, &rule(WORKER)).await;
    let (ca, cert, key) =
        (read(&certs, "ca.pem"), read(&certs, "client.pem"), read(&certs, "client-key.pem"));
    let client = rest(&ca, Some((&cert, &key))).build().unwrap();
    let (status, me) = whoami(&server, &client, &[]).await;
    assert_eq!(status, 200, "{me}");
    assert_eq!(
        (&me["subject"], &me["source"], &me["method"]),
        (&json!(WORKER), &json!("certificate"), &json!("certificate"))
    );
    assert!(!me["root"].as_bool().unwrap_or(false), "{me}");
    assert!(me["expires_at"].is_string(), "{me}");

    let client = grpc(&server, &ca).client_identity(&cert, &key).connect().await.unwrap();
    let identity = client.access().who_am_i(pb::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!((identity.subject.as_str(), identity.root), (WORKER, false));
    // `*` everywhere, and yet not root (SE-05).
    let tasks = client.tasks().list_tasks(pb::ListTasksRequest::default()).await;
    assert!(tasks.is_ok(), "{tasks:?}");
    server.logged("credential accepted", &[("source", "certificate"), ("subject", WORKER)]).await;

    // And by the command line.
    let path = |name: &str| certs.path().join(name).display().to_string();
    let url = format!("https://{}", server.grpc);
    let (ca, cert, key) = (path("ca.pem"), path("client.pem"), path("client-key.pem"));
    let tls = ["--url", &url, "--tls-ca", &ca, "--tls-cert", &cert];
    let args = [&["auth", "whoami", "--format", "json"], &tls[..]].concat();
    let shown = alone(&[&args[..], &["--tls-key", &key]].concat()).await.json();
    assert_eq!(shown["subject"], WORKER);
    let half = alone(&args).await;
    assert_eq!(half.code, Some(2), "{half}");
    assert!(half.err.contains("--tls-key"), "{half}");
    let plain = alone(&["auth", "whoami", "--tls-ca", &ca]).await;
    assert_eq!(plain.code, Some(2), "{plain}");
}

#[tokio::test]
async fn se_46_a_certificate_without_a_rule_is_nobody() {
    let certs = generated(&["--spiffe", "spiffe://shop.example/other"]).await;
    let server = mutual(&certs, &rule(WORKER)).await;
    let (ca, cert, key) =
        (read(&certs, "ca.pem"), read(&certs, "client.pem"), read(&certs, "client-key.pem"));
    let client = rest(&ca, Some((&cert, &key))).build().unwrap();
    assert_eq!(whoami(&server, &client, &[]).await.0, 401);
    // What a proxy would say of a certificate counts for nothing.
    let forwarded = format!("Hash=a;URI={WORKER}");
    for (name, value) in [
        ("x-forwarded-client-cert", forwarded.as_str()),
        ("ssl-client-verify", "SUCCESS"),
        ("client-cert", ":AAAA:"),
        ("x-spiffe-id", WORKER),
    ] {
        assert_eq!(whoami(&server, &client, &[(name, value)]).await.0, 401, "{name}");
        let bare = rest(&ca, None).build().unwrap();
        let (status, answer) = whoami(&server, &bare, &[(name, value)]).await;
        assert_eq!((status, &answer["reason"]), (401, &json!("CREDENTIALS_MISSING")), "{name}");
    }
    let metrics = client.get(format!("https://{}/metrics", server.http)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let line = "bailiwick_auth_failures_total{reason=\"certificate\"} ";
    let failed = metrics.lines().find_map(|known| known.strip_prefix(line)?.parse::<f64>().ok());
    assert!(failed.is_some_and(|failed| failed >= 1.0), "{failed:?}");
}

#[tokio::test]
async fn se_46_a_credential_in_the_headers_wins_and_never_falls_back() {
    let certs = generated(&["--spiffe", WORKER]).await;
    let server = mutual(&certs, &rule(WORKER)).await;
    let (ca, cert, key) =
        (read(&certs, "ca.pem"), read(&certs, "client.pem"), read(&certs, "client-key.pem"));
    let client = rest(&ca, Some((&cert, &key))).build().unwrap();
    let bearer = format!("Bearer {}", Token::new("lister", &["tasks:list"]).sign());
    let (status, me) = whoami(&server, &client, &[("authorization", &bearer)]).await;
    assert_eq!((status, &me["subject"]), (200, &json!("lister")));
    let (status, me) = whoami(&server, &client, &[("x-api-key", ROOT_KEY)]).await;
    assert_eq!((status, &me["source"]), (200, &json!("config")));
    for bad in [
        ("authorization", "Bearer nonsense"),
        ("authorization", ""),
        ("authorization", "Basic YTpi"),
        ("x-api-key", "unknown"),
        ("x-api-key", ""),
    ] {
        assert_eq!(whoami(&server, &client, &[bad]).await.0, 401, "{bad:?}");
    }
    // A caller with a bearer needs no certificate.
    let bare = rest(&ca, None).build().unwrap();
    assert_eq!(whoami(&server, &bare, &[("authorization", &bearer)]).await.0, 200);
}

/// An authority of the test's own.
fn authority() -> (Vec<u8>, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "authority of the test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (pem.into_bytes(), Issuer::new(params, key))
}

/// A client's certificate with these URIs, and its key.
fn client(issuer: &Issuer<'static, KeyPair>, uris: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for uri in uris {
        params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
    }
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, issuer).unwrap();
    (cert.pem().into_bytes(), key.serialize_pem().into_bytes())
}

#[tokio::test]
async fn se_46_only_one_name_of_a_known_authority_counts() {
    let certs = generated(&[]).await;
    let ca = read(&certs, "ca.pem");
    let (own, issuer) = authority();
    fs::write(certs.path().join("clients.pem"), own).unwrap();
    let server = format!(
        "{}client_ca = \"{}\"\nclient_trust_domains = [\"shop.example\"]\n",
        files(certs.path()),
        certs.path().join("clients.pem").display()
    );
    let rest_of = format!("{}{}", rule(WORKER), rule("spiffe://shop.example/jobs/*"));
    let server = Server::with(Setup { server, rest: rest_of, ..Setup::default() }).await;
    for (uris, wanted) in [
        (&[WORKER][..], 200),
        (&["spiffe://shop.example/jobs/night"], 200),
        (&["spiffe://shop.example/jobs/night/1"], 401),
        (&[WORKER, "spiffe://shop.example/jobs/night"], 401),
        (&[WORKER, WORKER], 401),
        (&["spiffe://other.example/worker"], 401),
        (&["spiffe://shop.example/workers"], 401),
        (&["https://shop.example/worker"], 401),
        (&[], 401),
    ] {
        let (cert, key) = client(&issuer, uris);
        let client = rest(&ca, Some((&cert, &key))).build().unwrap();
        let (status, answer) = whoami(&server, &client, &[]).await;
        assert_eq!(status, wanted, "{uris:?}: {answer}");
    }
    // Another authority's: the handshake fails, whatever the headers say.
    let (_, stranger) = authority();
    let (cert, key) = client(&stranger, &[WORKER]);
    let client = rest(&ca, Some((&cert, &key))).build().unwrap();
    let call = client.get(format!("https://{}/health", server.http)).header("x-api-key", ROOT_KEY);
    assert!(call.send().await.is_err());
}

/// One of `[[server.client_authorities]]`.
fn may_name(ca: &Path, trust_domains: &[&str]) -> String {
    let ca = ca.display();
    format!("[[server.client_authorities]]\nca = \"{ca}\"\ntrust_domains = {trust_domains:?}\n")
}

/// A certificate between an authority and its clients.
fn between(issuer: &Issuer<'static, KeyPair>) -> (Vec<u8>, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "between");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.signed_by(&key, issuer).unwrap().pem();
    (pem.into_bytes(), Issuer::new(params, key))
}

const ADMIN: &str = "spiffe://acme.example/admin";
const PARTNER: &str = "spiffe://partner.example/job";

/// The status for a certificate, on its first connection and on those that go
/// on with its TLS session.
async fn status(server: &Server, ca: &[u8], (cert, key): &(Vec<u8>, Vec<u8>)) -> u16 {
    let client = rest(ca, Some((cert, key))).http1_only().build().unwrap();
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(whoami(server, &client, &[("connection", "close")]).await.0);
    }
    statuses.dedup();
    assert_eq!(statuses.len(), 1, "{statuses:?}");
    statuses[0]
}

#[tokio::test]
async fn se_46_an_authority_cannot_name_the_trust_domain_of_another() {
    let certs = generated(&[]).await;
    let ca = read(&certs, "ca.pem");
    // Of one subject: only the keys tell them apart.
    let ((acme_ca, acme), (partner_ca, partner)) = (authority(), authority());
    let (acme_file, partner_file) =
        (certs.path().join("acme-ca.pem"), certs.path().join("partner-ca.pem"));
    fs::write(&acme_file, &acme_ca).unwrap();
    fs::write(&partner_file, &partner_ca).unwrap();
    let rules = [
        may_name(&acme_file, &["acme.example"]),
        may_name(&partner_file, &["partner.example"]),
        rule(ADMIN),
        rule(PARTNER),
    ];
    let setup = Setup { server: files(certs.path()), rest: rules.concat(), ..Setup::default() };
    let server = Server::with(setup).await;
    for (issuer, uri, wanted) in [
        (&acme, ADMIN, 200),
        (&partner, PARTNER, 200),
        (&partner, ADMIN, 401),
        (&acme, PARTNER, 401),
    ] {
        let shown = client(issuer, &[uri]);
        assert_eq!(status(&server, &ca, &shown).await, wanted, "{uri}");
        let (cert, key) = &shown;
        let client = grpc(&server, &ca).client_identity(cert, key).connect().await.unwrap();
        let who = client.access().who_am_i(pb::WhoAmIRequest {}).await;
        assert_eq!(who.is_ok(), wanted == 200, "{uri}: {who:?}");
    }
    // With certificates between them, and with another's beside them.
    let ((acme_link, acme_below), (partner_link, partner_below)) =
        (between(&acme), between(&partner));
    for (issuer, chain, uri, wanted) in [
        (&acme_below, vec![&acme_link], ADMIN, 200),
        (&partner_below, vec![&partner_link], PARTNER, 200),
        (&partner_below, vec![&partner_link], ADMIN, 401),
        (&partner_below, vec![&partner_link, &acme_link, &acme_ca], ADMIN, 401),
        (&partner, vec![&acme_ca], ADMIN, 401),
    ] {
        let (mut cert, key) = client(issuer, &[uri]);
        for link in &chain {
            cert.extend_from_slice(link);
        }
        assert_eq!(status(&server, &ca, &(cert, key)).await, wanted, "{uri} {}", chain.len());
    }
    let failed = server.logged("authentication failed", &[("method", "certificate")]).await;
    let detail = failed["detail"].as_str().unwrap();
    assert!(detail.contains("its authority may not name its trust domain"), "{failed}");
}

#[tokio::test]
async fn se_46_an_authority_may_stand_in_two_entries() {
    let certs = generated(&[]).await;
    let ca = read(&certs, "ca.pem");
    let ((acme_ca, acme), (partner_ca, partner)) = (authority(), authority());
    let (acme_file, partner_file) = (certs.path().join("acme.pem"), certs.path().join("both.pem"));
    fs::write(&acme_file, &acme_ca).unwrap();
    fs::write(&partner_file, [&*partner_ca, &*acme_ca].concat()).unwrap();
    let shared = "spiffe://shared.example/job";
    let rules = [
        may_name(&acme_file, &["acme.example"]),
        may_name(&partner_file, &["partner.example", "shared.example"]),
        rule(ADMIN),
        rule(PARTNER),
        rule(shared),
    ];
    let setup = Setup { server: files(certs.path()), rest: rules.concat(), ..Setup::default() };
    let server = Server::with(setup).await;
    for (issuer, uri, wanted) in [
        (&acme, ADMIN, 200),
        (&acme, PARTNER, 200),
        (&acme, shared, 200),
        (&partner, PARTNER, 200),
        (&partner, shared, 200),
        (&partner, ADMIN, 401),
    ] {
        assert_eq!(status(&server, &ca, &client(issuer, &[uri])).await, wanted, "{uri}");
    }
}

#[tokio::test]
async fn se_46_a_reload_that_swaps_authorities_swaps_their_names() {
    let certs = generated(&[]).await;
    let ca = read(&certs, "ca.pem");
    let ((one_ca, one), (two_ca, two)) = (authority(), authority());
    let (acme_file, partner_file) = (certs.path().join("acme.pem"), certs.path().join("other.pem"));
    fs::write(&acme_file, &one_ca).unwrap();
    fs::write(&partner_file, &two_ca).unwrap();
    let rules = [
        may_name(&acme_file, &["acme.example"]),
        may_name(&partner_file, &["partner.example"]),
        rule(ADMIN),
    ];
    let setup = Setup { server: files(certs.path()), rest: rules.concat(), ..Setup::default() };
    let server = Server::with(setup).await;
    let (one, two) = (client(&one, &[ADMIN]), client(&two, &[ADMIN]));
    assert_eq!(status(&server, &ca, &one).await, 200);
    assert_eq!(status(&server, &ca, &two).await, 401);

    // One broken file: neither counts.
    fs::write(&acme_file, &two_ca).unwrap();
    fs::write(&partner_file, "broken").unwrap();
    server.logged("changed TLS files are not taken; the old ones stay", &[]).await;
    let kept = rest(&ca, Some((&one.0, &one.1))).build().unwrap();
    assert_eq!(whoami(&server, &kept, &[]).await.0, 200);

    fs::write(&partner_file, &one_ca).unwrap();
    let swapped = async {
        loop {
            let fresh = rest(&ca, Some((&two.0, &two.1))).build().unwrap();
            if whoami(&server, &fresh, &[]).await.0 == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, swapped).await.expect("the swapped authorities");
    assert_eq!(status(&server, &ca, &one).await, 401);
    assert_eq!(status(&server, &ca, &two).await, 200);
}

#[tokio::test]
async fn se_46_the_short_form_is_for_one_authority() {
    let certs = generated(&[]).await;
    let ca = read(&certs, "ca.pem");
    let ((acme_ca, acme), (partner_ca, partner)) = (authority(), authority());
    let file = certs.path().join("clients.pem");
    let short = |trust_domains: &[&str], rules: &[String]| Setup {
        server: format!(
            "{}client_ca = \"{}\"\nclient_trust_domains = {trust_domains:?}\n",
            files(certs.path()),
            file.display()
        ),
        rest: rules.concat(),
        ..Setup::default()
    };
    let both = ["acme.example", "partner.example"];
    let rules = [rule(ADMIN), rule(PARTNER)];
    let bundle = [&*acme_ca, &*partner_ca].concat();
    fs::write(&file, &bundle).unwrap();
    // Without a list the rules say which trust domains count.
    for domains in [&both[..], &[]] {
        let said = harness::refused(&short(domains, &rules)).await;
        let named = said.contains("server.client_ca") && said.contains("clients.pem");
        assert!(named && said.contains("[[server.client_authorities]]"), "{said}");
    }
    // One trust domain: an old and a new authority.
    let server = Server::with(short(&both[..1], &rules[..1])).await;
    for issuer in [&acme, &partner] {
        assert_eq!(status(&server, &ca, &client(issuer, &[ADMIN])).await, 200);
    }
    drop(server);
    // One authority, the same twice, names both; a second one is not taken.
    fs::write(&file, [&*acme_ca, &*acme_ca].concat()).unwrap();
    let server = Server::with(short(&both, &rules)).await;
    for uri in [ADMIN, PARTNER] {
        assert_eq!(status(&server, &ca, &client(&acme, &[uri])).await, 200, "{uri}");
    }
    fs::write(&file, &bundle).unwrap();
    server.logged("changed TLS files are not taken; the old ones stay", &[]).await;
    assert_eq!(status(&server, &ca, &client(&acme, &[ADMIN])).await, 200);
    let (cert, key) = client(&partner, &[ADMIN]);
    let stranger = rest(&ca, Some((&cert, &key))).build().unwrap();
    assert!(stranger.get(format!("https://{}/health", server.http)).send().await.is_err());
}

#[tokio::test]
async fn se_46_other_authorities_end_the_connections_of_the_old() {
    let certs = generated(&["--spiffe", WORKER]).await;
    let (ca, cert, key) =
        (read(&certs, "ca.pem"), read(&certs, "client.pem"), read(&certs, "client-key.pem"));
    fs::write(certs.path().join("clients.pem"), &ca).unwrap();
    let clients = certs.path().join("clients.pem");
    let setup = format!("{}client_ca = \"{}\"\n", files(certs.path()), clients.display());
    let server =
        Server::with(Setup { server: setup, rest: rule(WORKER), ..Setup::default() }).await;
    let client = rest(&ca, Some((&cert, &key))).build().unwrap();
    assert_eq!(whoami(&server, &client, &[]).await.0, 200);
    fs::write(&clients, authority().0).unwrap();
    server.logged("TLS files taken over", &[]).await;
    let gone = async {
        let url = format!("https://{}/v1/whoami", server.http);
        while client.get(&url).send().await.is_ok_and(|answer| answer.status() == 200) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the connection's end");
}

#[tokio::test]
async fn generated_keys_are_private_and_stay_unless_forced() {
    use std::os::unix::fs::PermissionsExt as _;
    let certs = generated(&["--spiffe", WORKER, "--spiffe", "spiffe://shop.example/b"]).await;
    for name in ["ca", "server", "client", "client-2"] {
        let mode =
            |file: String| fs::metadata(certs.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode(format!("{name}-key.pem")) & 0o777, 0o600);
        assert_eq!(mode(format!("{name}.pem")) & 0o777, 0o644);
    }
    let before = read(&certs, "ca-key.pem");
    let folder = certs.path().to_str().unwrap();
    let again = alone(&["auth", "generate-certs", "--output-dir", folder]).await;
    assert_eq!(again.code, Some(1), "{again}");
    assert!(again.err.contains("--force"), "{again}");
    assert_eq!(read(&certs, "ca-key.pem"), before);
    for bad in [["--spiffe", "https://a/b"], ["--host", "a b"], ["--host", ""]] {
        let args = [&["auth", "generate-certs", "--force", "--output-dir", folder], &bad[..]];
        assert_eq!(alone(&args.concat()).await.code, Some(2), "{bad:?}");
    }
    assert_eq!(read(&certs, "ca-key.pem"), before);
}
