//! A real identity provider: the keys, tokens and roles of Keycloak, through
//! its discovery document.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::harness::{self, PATIENCE, Process, Server, Setup, process};

const ADMIN: &str = "keycloak-admin";
const SECRET: &str = "a-secret-of-the-tests";
const AUDIENCE: &str = "bailiwick-api";
/// A machine with other work may take its time to start a Java server.
const START: Duration = Duration::from_mins(4);

/// A Keycloak of the test's own, in memory, which ends with it.
struct Keycloak {
    base: String,
    http: reqwest::Client,
    _process: Process,
    _home: TempDir,
}

/// Where tools/install.sh has put it.
fn installed() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let script = std::env::split_paths(&path).map(|folder| folder.join("kc.sh"));
    let script =
        script.filter(|script| script.exists()).find_map(|script| script.canonicalize().ok());
    let script = script.unwrap_or_else(|| {
        panic!(
            "there is no Keycloak on PATH: run `tools/install.sh keycloak`, then the tests with \
             `PATH=\"$(tools/install.sh --path):$PATH\"`, or `make test`, which does both"
        )
    });
    script.parent().and_then(Path::parent).unwrap().to_owned()
}

impl Keycloak {
    async fn start() -> Self {
        let installed = installed();
        // What it writes goes below a home of its own.
        let home = tempfile::tempdir().unwrap();
        for name in ["bin", "conf", "lib", "providers", "themes"] {
            symlink(installed.join(name), home.path().join(name)).unwrap();
        }
        // One process, not a script with one below it; it ends even when this
        // one is killed.
        let mut command = process::quiet("setpriv");
        command.args(["--pdeathsig", "KILL", "java", "-Xmx384m", "-XX:MaxMetaspaceSize=256m"]);
        command.args([
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:+ExitOnOutOfMemoryError",
        ]);
        command.arg(format!("-Dkc.home.dir={}", home.path().display()));
        command.arg(format!("-Djava.io.tmpdir={}", home.path().display()));
        command.arg(
            "-Djava.util.concurrent.ForkJoinPool.common.threadFactory=\
             io.quarkus.bootstrap.forkjoin.QuarkusForkJoinWorkerThreadFactory",
        );
        command.arg("-cp").arg(installed.join("lib/quarkus-run.jar"));
        command.arg("io.quarkus.bootstrap.runner.QuarkusEntryPoint");
        command.args(["start", "--optimized", "--cache=local", "--http-enabled=true"]);
        command.args(["--http-host=127.0.0.1", "--http-port=0", "--hostname-strict=false"]);
        command.env("KC_BOOTSTRAP_ADMIN_USERNAME", ADMIN);
        command.env("KC_BOOTSTRAP_ADMIN_PASSWORD", SECRET);
        let process = Process::start(command);
        let listening = async {
            loop {
                let found = process
                    .out
                    .wait_for(|line| Some(line.split_once("Listening on: ")?.1.trim().to_owned()));
                match found.await {
                    Some(base) => return base,
                    None if process.out.ended() => break,
                    None => {}
                }
            }
            let (out, err) = (process.out.all().join("\n"), process.err.all().join("\n"));
            panic!("Keycloak has ended:\n{out}\n{err}");
        };
        let base = timeout(START, listening).await.expect("Keycloak starts in time");
        let this = Self { base, http: harness::http(), _process: process, _home: home };
        this.admin("POST", "", Some(realm())).await;
        this
    }

    fn issuer(&self) -> String {
        format!("{}/realms/main", self.base)
    }

    async fn grant(&self, realm: &str, form: &[(&str, &str)]) -> String {
        let url = format!("{}/realms/{realm}/protocol/openid-connect/token", self.base);
        let body: Vec<String> =
            form.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let call = self.http.post(url).body(body.join("&"));
        let call = call.header("content-type", "application/x-www-form-urlencoded");
        let answer: Value = call.send().await.unwrap().json().await.unwrap();
        let token = answer["access_token"].as_str();
        token.unwrap_or_else(|| panic!("no token: {answer}")).to_owned()
    }

    /// By the client credentials grant.
    async fn token(&self, client: &str) -> String {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", client),
            ("client_secret", SECRET),
        ];
        self.grant("main", &form).await
    }

    /// Its admin API; answers the body.
    async fn admin(&self, verb: &str, path: &str, body: Option<Value>) -> Value {
        let form = [
            ("grant_type", "password"),
            ("client_id", "admin-cli"),
            ("username", ADMIN),
            ("password", SECRET),
        ];
        let token = self.grant("master", &form).await;
        let url = format!("{}/admin/realms{path}", self.base);
        let mut call = self.http.request(verb.parse().unwrap(), &url).bearer_auth(token);
        if let Some(body) = body {
            call = call.json(&body);
        }
        let answer = call.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{verb} {url}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// The settings of a key of the realm.
    async fn key(&self, name: &str) -> Value {
        let path = format!("/main/components?type=org.keycloak.keys.KeyProvider&name={name}");
        self.admin("GET", &path, None).await[0].clone()
    }

    async fn change_key(&self, name: &str, setting: &str, value: &str) {
        let mut key = self.key(name).await;
        key["config"][setting] = json!([value]);
        let path = format!("/main/components/{}", key["id"].as_str().unwrap());
        self.admin("PUT", &path, Some(key)).await;
    }

    async fn remove_key(&self, name: &str) {
        let id = self.key(name).await["id"].as_str().unwrap().to_owned();
        self.admin("DELETE", &format!("/main/components/{id}"), None).await;
    }
}

/// A client that gets tokens for itself.
fn client(name: &str, algorithm: &str, audience: &str) -> Value {
    json!({
        "clientId": name, "secret": SECRET, "publicClient": false,
        "serviceAccountsEnabled": true, "standardFlowEnabled": false,
        "attributes": {"access.token.signed.response.alg": algorithm},
        "protocolMappers": [{
            "name": "audience", "protocol": "openid-connect",
            "protocolMapper": "oidc-audience-mapper",
            "config": {"included.custom.audience": audience, "access.token.claim": "true"},
        }],
    })
}

fn account(client: &str, roles: &[&str]) -> Value {
    json!({
        "username": format!("service-account-{client}"), "enabled": true,
        "serviceAccountClientId": client, "realmRoles": roles,
    })
}

fn rsa(name: &str, priority: &str) -> Value {
    json!({
        "name": name, "providerId": "rsa-generated",
        "config": {"priority": [priority], "algorithm": ["RS256"], "keySize": ["2048"]},
    })
}

/// The realm `main`: a key of each kind, and clients with roles. It has a key
/// for encryption and a symmetric one too, as realms of their own accord do.
fn realm() -> Value {
    json!({
        "realm": "main", "enabled": true,
        "roles": {"realm": [
            {"name": "role:task-submitter"}, {"name": "role:ops-admin"}, {"name": "tasks:list"},
            {"name": "batch"},
        ]},
        "components": {"org.keycloak.keys.KeyProvider": [
            rsa("first", "100"),
            {"name": "curve", "providerId": "ecdsa-generated",
             "config": {"priority": ["100"], "ecdsaEllipticCurveKey": ["P-256"]}},
            {"name": "edwards", "providerId": "eddsa-generated",
             "config": {"priority": ["100"], "eddsaEllipticCurveKey": ["Ed25519"]}},
            {"name": "encryption", "providerId": "rsa-enc-generated",
             "config": {"priority": ["100"], "algorithm": ["RSA-OAEP"]}},
            {"name": "symmetric", "providerId": "hmac-generated",
             "config": {"priority": ["100"], "algorithm": ["HS512"]}},
        ]},
        "clients": [
            client("rs256", "RS256", AUDIENCE), client("es256", "ES256", AUDIENCE),
            client("eddsa", "EdDSA", AUDIENCE), client("rs384", "RS384", AUDIENCE),
            client("other-audience", "RS256", "somebody-else"), client("roleless", "EdDSA", AUDIENCE),
        ],
        "users": [
            account("rs256", &["role:task-submitter", "batch"]),
            account("es256", &["role:ops-admin"]), account("eddsa", &["tasks:list"]),
            account("rs384", &["role:ops-admin"]), account("other-audience", &["role:ops-admin"]),
            account("roleless", &["batch"]),
        ],
    })
}

async fn status(server: &Server, token: &str) -> u16 {
    let value = format!("Bearer {token}");
    server.json("GET", "/v1/tasks", &[("authorization", &value)], None).await.0
}

async fn becomes(server: &Server, token: &str, wanted: u16) {
    let waited = timeout(PATIENCE, async {
        while status(server, token).await != wanted {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(waited.await.is_ok(), "never {wanted}");
}

async fn grants(server: &Server, token: &str) -> Value {
    let value = format!("Bearer {token}");
    let (status, me) = server.json("GET", "/v1/whoami", &[("authorization", &value)], None).await;
    assert_eq!(status, 200, "{me}");
    me["grants"].clone()
}

/// What the documentation shows for Keycloak, and a claim rule.
fn setup(issuer: &str) -> Setup {
    let rest = format!(
        "[[auth.issuers]]\nissuer = \"{issuer}\"\naudience = \"{AUDIENCE}\"\n\
         permissions_claim = \"realm_access.roles\"\nstrict = false\n\
         jwks_url_allow_http = true\njwks_refresh_interval_seconds = 2\n\
         [[auth.claim_rules]]\nissuer = \"{issuer}\"\n\
         claims = {{ \"realm_access.roles\" = \"batch\" }}\n\
         permissions = [\"dlq:read\"]\nnamespaces = [\"clients.{{azp}}\"]\n"
    );
    Setup { rest, ..Setup::default() }
}

/// One Keycloak for all of it, as its start takes long.
#[tokio::test]
async fn tk_31_to_33_tk_39_to_41_and_tk_52_keycloak_issues_what_counts() {
    let keycloak = Keycloak::start().await;
    let server = Server::with(setup(&keycloak.issuer())).await;
    let ready = timeout(PATIENCE, async {
        while server.json("GET", "/health/ready", &[], None).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(ready.await.is_ok(), "{:?}", server.process.err.all());

    keys_of_each_kind_verify(&keycloak, &server).await;
    roles_are_permissions(&keycloak, &server).await;
    keys_rotate_without_a_restart(&keycloak, &server).await;
}

async fn keys_of_each_kind_verify(keycloak: &Keycloak, server: &Server) {
    for (client, algorithm) in [("rs256", "RS256"), ("es256", "ES256"), ("eddsa", "EdDSA")] {
        let token = keycloak.token(client).await;
        let header = jsonwebtoken::decode_header(&token).unwrap();
        assert_eq!(format!("{:?}", header.alg), algorithm, "as the client is set");
        assert_eq!(status(server, &token).await, 200, "{client}");
        let (start, signature) = token.rsplit_once('.').unwrap();
        let first = if signature.starts_with('A') { "B" } else { "A" };
        let forged = format!("{start}.{first}{}", &signature[1..]);
        assert_eq!(status(server, &forged).await, 401, "{client}");
    }
    // Whoever else the realm speaks to, and by what else it signs.
    assert_eq!(status(server, &keycloak.token("other-audience").await).await, 401);
    assert_eq!(status(server, &keycloak.token("rs384").await).await, 401);
    let form = [
        ("grant_type", "password"),
        ("client_id", "admin-cli"),
        ("username", ADMIN),
        ("password", SECRET),
    ];
    let other_realm = keycloak.grant("master", &form).await;
    assert_eq!(status(server, &other_realm).await, 401);
}

async fn roles_are_permissions(keycloak: &Keycloak, server: &Server) {
    let everywhere = |permissions: Value| json!({"permissions": permissions, "namespaces": ["*"]});
    let submits = everywhere(json!(["tasks:create", "tasks:read", "tasks:list"]));
    let batch = |client: &str| json!({"permissions": ["dlq:read"], "namespaces": [format!("clients.{client}")]});
    let rs256 = keycloak.token("rs256").await;
    assert_eq!(grants(server, &rs256).await, json!([submits, batch("rs256")]));
    let eddsa = keycloak.token("eddsa").await;
    assert_eq!(grants(server, &eddsa).await, json!([everywhere(json!(["tasks:list"]))]));
    let roleless = keycloak.token("roleless").await;
    let held = grants(server, &roleless).await;
    assert_eq!(held.as_array().unwrap().last(), Some(&batch("roleless")), "{held}");
    assert_eq!(status(server, &roleless).await, 403);
    let es256 = keycloak.token("es256").await;
    for (token, wanted) in [(&es256, 200), (&rs256, 403), (&eddsa, 403)] {
        let value = format!("Bearer {token}");
        let headers = [("authorization", value.as_str())];
        assert_eq!(server.json("GET", "/v1/templates", &headers, None).await.0, wanted);
    }
}

async fn keys_rotate_without_a_restart(keycloak: &Keycloak, server: &Server) {
    let kid = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
    let old = keycloak.token("rs256").await;
    let mut second = rsa("second", "200");
    second["providerType"] = json!("org.keycloak.keys.KeyProvider");
    keycloak.admin("POST", "/main/components", Some(second)).await;
    let new = keycloak.token("rs256").await;
    assert_ne!(kid(&old), kid(&new), "the active key is another");
    becomes(server, &new, 200).await;
    assert_eq!(status(server, &old).await, 200, "a passive key still counts");

    // Disabled and removed keys leave the set; tokens by them go with them.
    keycloak.change_key("first", "enabled", "false").await;
    becomes(server, &old, 401).await;
    assert_eq!(status(server, &new).await, 200);
    let es256 = keycloak.token("es256").await;
    assert_eq!(status(server, &es256).await, 200);
    keycloak.remove_key("curve").await;
    becomes(server, &es256, 401).await;
    assert_eq!(status(server, &new).await, 200);
    assert_eq!(status(server, &keycloak.token("eddsa").await).await, 200);
}
