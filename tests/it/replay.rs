//! A changed configuration before it is in force, at the front door (SE-41):
//! the same one changes nothing, and another says who loses or gains what.

use std::{collections::BTreeSet, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{Server, Setup, credentials::Token},
    line::{BACKUP, DENIED, DEPLOY, LATER, Wire, folder, write_private},
};

/// A key for what begins with `deploy.`.
const KEY: &str = "test-deploy-key-51c0de";

fn tokens(namespace: &str) -> String {
    format!(
        "[token.deploy]\nsecret = \"{DEPLOY}\"\nnamespace = \"{namespace}\"\n\
         [token.backup]\nsecret = \"{BACKUP}\"\nnamespace = \"backup.\"\n"
    )
}

fn key(places: &str, more: &str) -> String {
    format!(
        "[[auth.api_keys]]\nkey = \"{KEY}\"\ndescription = \"deploy\"\nnamespaces = [{places}]\n\
         permissions = [\"schedules:*\", \"rules:*\", \"tasks:list\"{more}]\n"
    )
}

async fn server(secrets: &TempDir) -> Server {
    let file = secrets.path().join("auth.toml");
    let rest = format!(
        "extra_permissions = [\"bundles:read\"]\n{}\
         [controller]\nlisten = \"127.0.0.1:0\"\nauth_file = \"{}\"\n",
        key("\"deploy.\"", ""),
        file.display()
    );
    Server::with(Setup { rest, ..Setup::default() }).await.with_template().await
}

/// Replays the last hour under a changed configuration: the exit code, and each
/// change in one line.
async fn replay(
    server: &Server,
    change: impl Fn(String) -> String,
) -> (Option<i32>, BTreeSet<String>) {
    let text = std::fs::read_to_string(server.path("bailiwick.toml")).unwrap();
    let path = server.path("new.toml");
    std::fs::write(&path, change(text)).unwrap();
    let path = path.to_str().unwrap();
    let words = ["auth", "replay", "--config", path, "--since", "1h", "--format", "json"];
    let ran = server.run(&words).await;
    let told: Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{ran}"));
    assert!(told["records"].as_u64().unwrap() > 0, "{told}");
    let text = |one: &Value, name: &str| one[name].as_str().unwrap_or("-").to_owned();
    let line = |one: &Value| {
        ["change", "identity", "what", "namespace"].map(|name| text(one, name)).join(" ")
    };
    (ran.code, told["changes"].as_array().unwrap().iter().map(line).collect())
}

fn lines(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|line| (*line).to_owned()).collect()
}

/// Writes the auth file anew, elsewhere; answers where.
fn elsewhere(secrets: &Path, namespace: &str) -> String {
    let path = secrets.join("other.toml");
    write_private(&path, &tokens(namespace));
    path.display().to_string()
}

/// What the journal gathers for a moment.
async fn written() {
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
}

async fn rest(server: &Server, token: &str, line: &str, body: Option<Value>, wanted: u16) -> Value {
    let (verb, path) = line.split_once(' ').unwrap();
    let bearer = format!("Bearer {token}");
    let (status, answer) = server.json(verb, path, &[("authorization", &bearer)], body).await;
    assert_eq!(status, wanted, "{line}: {answer}");
    answer
}

/// Calls of many kinds, allowed and refused, over REST and the line protocol.
async fn act(server: &Server) {
    let job = || Some(json!({"execution": "2199-04-10T12:00:00Z"}));
    rest(server, KEY, "PUT /v1/jobs/deploy.one", job(), 200).await;
    rest(server, KEY, "GET /v1/jobs/deploy.one", None, 200).await;
    rest(server, KEY, "GET /v1/jobs/deploy.one/runs", None, 200).await;
    rest(server, KEY, "GET /v1/jobs", None, 200).await;
    rest(server, KEY, "GET /v1/tasks", None, 200).await;
    rest(server, KEY, "GET /v1/jobs/deploy.none", None, 404).await;
    rest(server, KEY, "PUT /v1/jobs/backup.one", job(), 404).await;
    rest(server, KEY, "GET /v1/templates", None, 403).await;
    let http = json!({"type": "http", "method": "GET", "url": "https://example.com/"});
    let rule = |runner: &Value| Some(json!({"pattern": "deploy.", "runner": runner}));
    rest(server, KEY, "PUT /v1/rules/rule.deploy.r", rule(&http), 200).await;
    // For want of a second permission, and of who set it.
    let task = json!({"type": "task", "template": "deploy.app/order"});
    rest(server, KEY, "PUT /v1/rules/rule.deploy.t", rule(&task), 403).await;
    let wide = Some(json!({"pattern": "rule", "runner": http}));
    let (status, set) = server.as_root("PUT", "/v1/rules/deploy.root", rule(&http)).await;
    assert_eq!(status, 200, "{set}");
    rest(server, KEY, "DELETE /v1/rules/deploy.root", None, 404).await;
    rest(server, KEY, "PUT /v1/rules/rule.deploy.w", wide, 404).await;

    let logs = server.logs();
    let serving = logs.iter().find(|line| line["message"] == "serving").unwrap();
    let at = serving["controller"].as_str().unwrap();
    let mut wire = Wire::new(tokio::net::TcpStream::connect(at).await.unwrap());
    assert_eq!(wire.ask(&format!("AUTH {DEPLOY}")).await, "OK\n");
    for ask in [format!("SET deploy.two {LATER}"), "SET deploy.two 2098-01-01".to_owned()] {
        assert_eq!(wire.ask(&format!("r1 {ask}")).await, "r1 OK\n");
    }
    assert_ne!(wire.ask("r1 GET deploy.two").await, "r1 ERROR\n");
    assert_eq!(wire.ask(&format!("r1 SET backup.two {LATER}")).await, DENIED);
    assert_eq!(wire.ask("r1 SET deploy.two never").await.split(' ').nth(1), Some("ERROR"));

    let ci = Token::new("ci", &["tasks:list", "schedules:read"]).within(&["deploy."]).sign();
    rest(server, &ci, "GET /v1/tasks", None, 200).await;
    rest(server, &ci, "GET /v1/jobs/deploy.one", None, 200).await;
    rest(server, &ci, "GET /v1/templates", None, 403).await;
    let body = json!({"scopes": "tasks:list", "namespaces": "shop"});
    let (status, minted) = server.as_root("POST", "/v1/auth/tokens", Some(body)).await;
    assert_eq!(status, 201, "{minted}");
    rest(server, minted["token"].as_str().unwrap(), "GET /v1/tasks", None, 200).await;
    let body = json!({"scope": "tasks:list",
                      "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange"});
    let given = rest(server, KEY, "POST /v1/auth/token", Some(body), 200).await;
    rest(server, given["access_token"].as_str().unwrap(), "GET /v1/tasks", None, 200).await;

    let gateway = Token::new("gateway", &["tokens:introspect"]).sign();
    for (token, permission, place, allowed) in [
        (KEY, "schedules:read", Some("deploy.x"), true),
        (KEY, "schedules:read", Some("backup.x"), false),
        (KEY, "bundles:read", None, false),
        (&ci, "tasks:list", Some("deploy.x"), true),
    ] {
        let mut body = json!({"token": token, "permission": permission});
        if let Some(place) = place {
            body["namespace"] = place.into();
        }
        let said = rest(server, &gateway, "POST /v1/check", Some(body), 200).await;
        assert_eq!(said["allowed"], allowed, "{said}");
    }
    rest(server, &gateway, "POST /v1/auth/introspect", Some(json!({"token": KEY})), 200).await;
    written().await;
}

#[tokio::test]
async fn se_41_the_same_configuration_changes_nothing_and_another_does() {
    let secrets = folder(&tokens("deploy."));
    let server = server(&secrets).await;
    act(&server).await;
    assert_eq!(replay(&server, |text| text).await, (Some(0), BTreeSet::new()));

    let file = |text: String, namespace: &str| {
        let old = secrets.path().join("auth.toml").display().to_string();
        text.replace(&old, &elsewhere(secrets.path(), namespace))
    };
    let own = key("\"deploy.\"", "");
    // To another place.
    let (code, changes) =
        replay(&server, |text| file(text.replace(&own, &key("\"ship.\"", "")), "ship.")).await;
    assert_eq!(code, Some(1), "{changes:?}");
    let traded = changes.iter().find(|line| line.starts_with("lost database:")).cloned();
    let traded = traded.unwrap_or_else(|| panic!("{changes:?}"));
    assert!(traded.contains(" tasks:list "), "{traded}");
    let mut wanted = lines(&[
        "lost config:deploy rules:write deploy",
        "lost config:deploy schedules:read deploy",
        "lost config:deploy schedules:read deploy.x",
        "lost config:deploy schedules:write deploy",
        "lost line:deploy schedules:read deploy",
        "lost line:deploy schedules:write deploy",
    ]);
    wanted.insert(traded);
    assert_eq!(changes, wanted);

    // To more places, with more permissions.
    let more = ", \"tasks:create\", \"bundles:read\"";
    let (code, changes) = replay(&server, |text| {
        file(text.replace(&own, &key("\"deploy.\", \"backup.\"", more)), "*")
    })
    .await;
    let wanted = lines(&[
        "gained config:deploy bundles:read -",
        "gained config:deploy schedules:read backup.x",
        "gained config:deploy schedules:write backup",
        "gained config:deploy tasks:create deploy.app",
        "gained line:deploy schedules:write backup",
    ]);
    assert_eq!((code, changes), (Some(0), wanted));

    // The key that others were shown is gone, with all that it did.
    let (code, changes) = replay(&server, |text| text.replace(&own, "")).await;
    assert_eq!(code, Some(1), "{changes:?}");
    let introspected = "lost config:deploy bailiwick.v1.AccessService/Introspect -";
    assert!(changes.iter().any(|line| line == introspected), "{changes:?}");
}

#[tokio::test]
async fn se_41_a_changed_claim_rule_is_replayed() {
    let rule = |team: &str, permission: &str| {
        format!(
            "[[auth.claim_rules]]\nissuer = \"bailiwick\"\nclaims = {{ team = \"{team}\" }}\n\
             permissions = [\"{permission}\"]\nnamespaces = [\"shop\"]\n"
        )
    };
    let old = rule("build*", "templates:read");
    let server = Server::with(Setup { rest: old.clone(), ..Setup::default() }).await;
    let builder = Token::new("ada", &["tasks:list"]).within(&["shop"]);
    let builder = builder.claim("team", json!("builders")).sign();
    rest(&server, &builder, "GET /v1/templates", None, 200).await;
    rest(&server, &builder, "GET /v1/tasks", None, 200).await;
    rest(&server, &builder, "GET /v1/jobs", None, 403).await;
    written().await;
    assert_eq!(replay(&server, |text| text).await, (Some(0), BTreeSet::new()));
    let lost = lines(&["lost idp:bailiwick#ada templates:read -"]);
    let others = |text: String| text.replace(&old, &rule("ops", "templates:read"));
    assert_eq!(replay(&server, others).await, (Some(1), lost.clone()));
    let moved = |text: String| text.replace(&old, &rule("build*", "schedules:read"));
    let gained = lines(&["gained idp:bailiwick#ada schedules:read -"]);
    assert_eq!(replay(&server, moved).await, (Some(1), &lost | &gained));
}
