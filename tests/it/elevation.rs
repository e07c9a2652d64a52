//! More rights for a while: asked for, approved by somebody else, over by
//! themselves (SE-17, SE-40).

use std::time::Duration;

use bailiwick::pb::v1 as pb;
use bailiwick_client::Auth;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::harness::{
    PATIENCE, Server, Setup,
    credentials::{AUDIENCE, ROOT_KEY, Token},
};

const PATH: &str = "/v1/auth/elevations";

async fn server() -> Server {
    let rest = "elevation_max_minutes = 5\n".to_owned();
    Server::with(Setup { rest, ..Setup::steady() }).await.with_template().await
}

/// Somebody with these permissions in a namespace.
fn person(name: &str, permissions: &[&str]) -> String {
    Token::new(name, permissions).within(&["shop"]).sign()
}

fn approver() -> String {
    person("bob", &["tasks:read", "tasks:list", "tasks:create", "api_keys:admin"])
}

async fn call(
    server: &Server,
    who: &str,
    verb: &str,
    path: &str,
    body: Option<Value>,
) -> (u16, Value) {
    server.json(verb, path, &[("authorization", &format!("Bearer {who}"))], body).await
}

async fn ask(server: &Server, who: &str, more: Value) -> (u16, Value) {
    let mut body = json!({"permissions": "tasks:list", "namespace": "shop", "seconds": 60,
                          "reason": "an incident"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    call(server, who, "POST", PATH, Some(body)).await
}

/// The id of a request.
async fn asked(server: &Server, who: &str, more: Value) -> String {
    let (status, made) = ask(server, who, more).await;
    assert_eq!((status, &made["state"]), (201, &json!("pending")), "{made}");
    made["id"].as_str().unwrap().to_owned()
}

async fn act(server: &Server, who: &str, id: &str, what: &str) -> (u16, Value) {
    call(server, who, "POST", &format!("{PATH}/{id}/{what}"), None).await
}

async fn lists(server: &Server, who: &str) -> u16 {
    call(server, who, "GET", "/v1/tasks", None).await.0
}

#[tokio::test]
async fn request_elevation_gives_its_grant_once_approved_and_to_nothing_made_by_it() {
    let mut server = server().await;
    let alice = person("alice", &["steps:read"]);
    assert_eq!(lists(&server, &alice).await, 403);
    let id = asked(&server, &alice, json!({})).await;
    assert_eq!(lists(&server, &alice).await, 403, "nothing before it is approved");
    let (status, approved) = act(&server, &person("holder", &["tasks:list"]), &id, "approve").await;
    assert_eq!((status, &approved["state"]), (200, &json!("active")), "{approved}");
    assert_eq!(lists(&server, &alice).await, 200);
    assert_eq!(lists(&server, &person("alice", &["steps:read"])).await, 200, "by identity");
    assert_eq!(lists(&server, &person("carol", &["steps:read"])).await, 403);
    let who = call(&server, &alice, "GET", "/v1/whoami", None).await.1;
    assert_eq!(who["grants"].as_array().unwrap().len(), 2);
    // What is made with it does not have it.
    let body = json!({"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
                      "scope": "tasks:list"});
    assert_eq!(call(&server, &alice, "POST", "/v1/auth/token", Some(body)).await.0, 403);
    server = server.again().await;
    assert_eq!(lists(&server, &alice).await, 200, "also after a restart");
    let (status, ended) = act(&server, &alice, &id, "revoke").await;
    assert_eq!((status, &ended["state"]), (200, &json!("revoked")), "{ended}");
    assert_eq!(lists(&server, &alice).await, 403);
    assert_eq!(act(&server, &approver(), &id, "approve").await.0, 400, "it is over");
}

#[tokio::test]
async fn se_40_only_somebody_else_who_holds_it_approves() {
    let server = server().await;
    let alice = person("alice", &["tasks:list", "api_keys:admin", "steps:read"]);
    let id = asked(&server, &alice, json!({"permissions": "tasks:list"})).await;
    let (status, _) = act(&server, &alice, &id, "approve").await;
    assert_eq!(status, 403, "oneself");
    // A key that she made is herself.
    let body = json!({"name": "k", "scopes": "tasks:list,api_keys:admin", "namespaces": "shop"});
    let (status, key) = call(&server, &alice, "POST", "/v1/api-keys", Some(body)).await;
    assert_eq!(status, 201, "{key}");
    let (status, _) = act(&server, key["key"].as_str().unwrap(), &id, "approve").await;
    assert_eq!(status, 404, "another credential of hers does not even see it");
    let without = person("ann", &["api_keys:admin", "steps:read"]);
    assert_eq!(act(&server, &without, &id, "approve").await.0, 404, "she does not even see it");
    let elsewhere = Token::new("dan", &["*"]).within(&["bank"]).sign();
    assert_eq!(act(&server, &elsewhere, &id, "approve").await.0, 404);
    // Nor does who has it for a while: approvals would beget each other.
    let carol = person("carol", &["steps:read"]);
    let more = json!({"permissions": "tasks:list,api_keys:admin"});
    let lent = asked(&server, &carol, more).await;
    assert_eq!(act(&server, &approver(), &lent, "approve").await.0, 200);
    assert_eq!(lists(&server, &carol).await, 200);
    assert_eq!(act(&server, &carol, &id, "approve").await.0, 404);
    let body = json!({"name": "k", "scopes": "tasks:list", "namespaces": "shop"});
    let (status, answer) = call(&server, &carol, "POST", "/v1/api-keys", Some(body)).await;
    assert_eq!(status, 403, "nor do keys that it makes hold it: {answer}");
    let auditor = person("eve", &["audit:read"]);
    assert_eq!(act(&server, &auditor, &id, "approve").await.0, 403);
    let listed = call(&server, &auditor, "GET", PATH, None).await.1;
    assert_eq!(listed["elevations"][1]["reason"], "an incident");
    assert_eq!(call(&server, &elsewhere, "GET", PATH, None).await.1["elevations"], json!([]));
    let (status, denied) = act(&server, &approver(), &id, "deny").await;
    assert_eq!((status, &denied["state"]), (200, &json!("denied")), "{denied}");
    for (more, wanted) in [
        (json!({"permissions": "*"}), 400),
        (json!({"permissions": "tasks:*"}), 400),
        (json!({"permissions": "auth:tokens"}), 400),
        (json!({"permissions": ""}), 400),
        (json!({"namespace": "sh op"}), 400),
        (json!({"seconds": 0}), 400),
        (json!({"seconds": 301}), 400),
        (json!({"reason": "  "}), 400),
        (json!({"reason": "a\nb"}), 400),
    ] {
        assert_eq!(ask(&server, &alice, more.clone()).await.0, wanted, "{more}");
    }
    // Root approves what others ask for.
    let id = asked(&server, &alice, json!({})).await;
    let (status, _) = server.as_root("POST", &format!("{PATH}/{id}/approve"), None).await;
    assert_eq!(status, 200);
    assert!(!server.process.err.all().join("\n").contains(ROOT_KEY));
}

#[tokio::test]
async fn se_40_nobody_lends_beyond_own_bounds_or_to_a_sibling() {
    let server = server().await;
    let bob = approver();
    let mint = async |name: &str, more: Value| {
        let mut body = json!({"name": name, "scopes": "tasks:list,api_keys:admin",
                              "namespaces": "shop"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, made) = server.as_root("POST", "/v1/auth/tokens", Some(body)).await;
        assert_eq!(status, 201, "{made}");
        made["token"].as_str().unwrap().to_owned()
    };
    let alice = person("alice", &["steps:read"]);
    let id = asked(&server, &alice, json!({})).await;
    for more in [json!({"max_uses": 50}), json!({"client_networks": ["127.0.0.0/8"]})] {
        let bound = mint("bound", more).await;
        let (status, answer) = act(&server, &bound, &id, "approve").await;
        assert_eq!(status, 403, "{answer}");
        assert!(answer.to_string().contains("lends nothing"), "{answer}");
    }
    // No longer than what approves it.
    let short = mint("short", json!({"expires_in_seconds": 3})).await;
    let (status, lent) = act(&server, &short, &id, "approve").await;
    assert_eq!(status, 200, "{lent}");
    assert_eq!(lists(&server, &alice).await, 200);
    let over = async {
        while lists(&server, &alice).await == 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(20), over)
        .await
        .expect("it ends with its approver, not after 60 s");
    // Two keys of one maker are one person; what is traded asks for nothing.
    let key = async |scopes: &str| {
        let body = json!({"name": "k", "scopes": scopes, "namespaces": "shop"});
        let (status, made) = call(&server, &bob, "POST", "/v1/api-keys", Some(body)).await;
        assert_eq!(status, 201, "{made}");
        made["key"].as_str().unwrap().to_owned()
    };
    let (one, two) = (key("tasks:read").await, key("tasks:list,api_keys:admin").await);
    let id = asked(&server, &one, json!({})).await;
    let (status, answer) = act(&server, &two, &id, "approve").await;
    assert!(matches!(status, 403 | 404), "{answer}");
    let body = json!({"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
                      "scope": "tasks:read"});
    let (_, traded) = call(&server, &bob, "POST", "/v1/auth/token", Some(body)).await;
    let traded = traded["access_token"].as_str().unwrap();
    assert_eq!(ask(&server, traded, json!({})).await.0, 400);
}

/// A server that trusts a second issuer, with this ceiling.
async fn of_two_issuers(ceiling: &str, before: Option<Server>) -> Server {
    let rest = format!(
        "elevation_max_minutes = 5\n[[auth.issuers]]\nissuer = \"{SECOND}\"\naudience = \"{AUDIENCE}\"\n\
         public_key_path = \"jwt-public-key.pem\"\npermissions_ceiling = [{ceiling}]\n"
    );
    let setup = Setup { rest, ..Setup::steady() };
    match before {
        Some(server) => server.again_with(setup).await,
        None => Server::with(setup).await.with_template().await,
    }
}

const SECOND: &str = "https://second.example";

fn of_second(name: &str, permissions: &[&str]) -> String {
    Token::new(name, permissions).within(&["shop"]).claim("iss", json!(SECOND)).sign()
}

#[tokio::test]
async fn se_40_nobody_approves_by_what_stands_for_somebody() {
    let server = of_two_issuers("\"tasks:*\", \"api_keys:admin\"", None).await;
    let id = asked(&server, &person("alice", &["steps:read"]), json!({})).await;
    let herself = of_second("alice", &["tasks:list", "api_keys:admin"]);
    let traded = async |of: &str| {
        let body = json!({"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
                          "scope": "tasks:list"});
        let (status, made) = call(&server, of, "POST", "/v1/auth/token", Some(body)).await;
        assert_eq!(status, 200, "{made}");
        made["access_token"].as_str().unwrap().to_owned()
    };
    let body = json!({"name": "k", "scopes": "tasks:list", "namespaces": "shop"});
    let (status, key) = call(&server, &herself, "POST", "/v1/api-keys", Some(body)).await;
    assert_eq!(status, 201, "{key}");
    let key = key["key"].as_str().unwrap();
    for (who, what) in [
        (&*herself, "the same name of another issuer"),
        (key, "what that name made"),
        (&traded(&herself).await, "what that name traded"),
        (&traded(&approver()).await, "what anybody traded"),
    ] {
        let (status, answer) = act(&server, who, &id, "approve").await;
        assert!(matches!(status, 403 | 404), "{what}: {answer}");
    }
    assert_eq!(act(&server, &approver(), &id, "approve").await.0, 200);
}

#[tokio::test]
async fn se_02_nothing_is_lent_beyond_the_ceiling_of_an_issuer() {
    let server = of_two_issuers("\"tasks:*\"", None).await;
    let eve = of_second("eve", &["tasks:read"]);
    let (status, answer) = ask(&server, &eve, json!({"permissions": "steps:read"})).await;
    assert_eq!(status, 403, "{answer}");
    let (waiting, active) =
        (asked(&server, &eve, json!({})).await, asked(&server, &eve, json!({})).await);
    assert_eq!(act(&server, &approver(), &active, "approve").await.0, 200);
    assert_eq!(lists(&server, &eve).await, 200);
    let server = of_two_issuers("\"tasks:read\"", Some(server)).await;
    assert_eq!(lists(&server, &eve).await, 403, "it ends with the ceiling");
    let (status, answer) = act(&server, &approver(), &waiting, "approve").await;
    assert_eq!(status, 403, "{answer}");
    let listed = call(&server, &eve, "GET", PATH, None).await.1;
    let states: Vec<_> = listed["elevations"].as_array().unwrap().iter().collect();
    assert!(states.iter().any(|one| one["id"] == *active && one["state"] == "expired"), "{listed}");
}

#[tokio::test]
async fn se_17_streams_end_with_the_elevation_that_opened_them() {
    let server = server().await;
    let task = server.order(json!({})).await;
    for revoked in [true, false] {
        let name = if revoked { "alice" } else { "anna" };
        let alice = person(name, &["steps:read"]);
        let seconds = if revoked { 60 } else { 3 };
        let more = json!({"permissions": "tasks:read", "seconds": seconds});
        let id = asked(&server, &alice, more).await;
        let request = pb::WatchTaskRequest { task_uuid: task.clone(), ..Default::default() };
        let client = server.client(Auth::Bearer(alice.clone())).await;
        let early = client.tasks().watch_task(request.clone()).await;
        assert_eq!(early.err().map(|status| status.code()), Some(Code::PermissionDenied));
        assert_eq!(act(&server, &approver(), &id, "approve").await.0, 200);
        let mut stream = client.tasks().watch_task(request).await.unwrap().into_inner();
        stream.message().await.unwrap().expect("the state as it is");
        let began = Instant::now();
        if revoked {
            assert_eq!(act(&server, &approver(), &id, "revoke").await.0, 200);
        }
        let end = async {
            loop {
                if let Err(status) = stream.message().await {
                    return status;
                }
            }
        };
        let status = timeout(PATIENCE, end).await.unwrap();
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        let bound = Duration::from_millis(if revoked { 1_000 } else { 4_000 });
        assert!(began.elapsed() < bound, "{:?}", began.elapsed());
        let path = format!("/v1/tasks/{task}");
        assert_eq!(call(&server, &alice, "GET", &path, None).await.0, 403, "gone for calls too");
    }
}

/// The records about an elevation, the first one first, once there are so many.
async fn records(server: &Server, id: &str, count: usize) -> Vec<Value> {
    for _ in 0..200 {
        let path = format!("/v1/audit/records?object={id}");
        let (status, answer) = server.as_root("GET", &path, None).await;
        assert_eq!(status, 200, "{answer}");
        let mut records = answer["records"].as_array().unwrap().clone();
        if records.len() >= count {
            records.reverse();
            return records;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not {count} records about {id}");
}

#[tokio::test]
async fn se_44_an_elevation_is_in_the_audit_from_its_request_to_its_end() {
    let server = server().await;
    let alice = person("alice", &["steps:read"]);
    let id = asked(&server, &alice, json!({"seconds": 1, "reason": "INC-7: stuck"})).await;
    assert_eq!(act(&server, &approver(), &id, "approve").await.0, 200);
    let records = records(&server, &id, 3).await;
    let told: Vec<_> = records
        .iter()
        .map(|record| {
            let rpc = record["rpc"].as_str().unwrap().rsplit('/').next().unwrap();
            let actor = record["actor"]["subject"].as_str();
            let state = record["record"]["detail"]["elevation"].as_str().unwrap();
            (rpc, actor, state, record["chain"].as_str().unwrap())
        })
        .collect();
    let wanted = [
        ("RequestElevation", Some("alice"), "pending", "shop"),
        ("ApproveElevation", Some("bob"), "active", "shop"),
        ("server", None, "expired", "shop"),
    ];
    assert_eq!(told, wanted);
    for record in &records {
        let detail = &record["record"]["detail"];
        assert_eq!(detail["permissions"], json!(["tasks:list"]), "{record}");
        assert!(detail["requester"].as_str().unwrap().ends_with("#alice"), "{record}");
        assert_eq!(detail["namespace"], "shop");
        let told = record.to_string().contains("INC-7");
        assert_eq!(
            told,
            record["record"]["detail"]["elevation"] == "pending",
            "the request alone: {record}"
        );
    }
    for record in &records[..2] {
        let actor = &record["record"]["actor"];
        assert!(actor["fingerprint"].is_string(), "by which credential: {record}");
    }

    // Nobody fills another's chain with requests.
    let id = asked(&server, &alice, json!({"namespace": "bank"})).await;
    assert_eq!(act(&server, &alice, &id, "revoke").await.0, 200);
    let records = self::records(&server, &id, 2).await;
    let chains: Vec<&Value> = records.iter().map(|record| &record["chain"]).collect();
    assert_eq!(chains, ["shop", "shop"]);
}

#[tokio::test]
async fn se_41_who_can_check_and_introspect_know_what_holds_for_a_while() {
    let server = server().await;
    let (status, key) = server
        .as_root(
            "POST",
            "/v1/api-keys",
            Some(json!({"name": "ci", "scopes": "steps:read", "namespaces": "shop"})),
        )
        .await;
    assert_eq!(status, 201, "{key}");
    let (secret, key) = (key["key"].as_str().unwrap().to_owned(), key["id"].clone());
    let able = async || {
        let path = "/v1/who-can?permission=tasks:list&namespace=shop";
        let (status, answer) = server.as_root("GET", path, None).await;
        assert_eq!(status, 200, "{answer}");
        let all = answer["credentials"].as_array().unwrap().clone();
        all.into_iter().find(|one| one["subject"]["credential_id"] == key)
    };
    let allowed = async || {
        let body = json!({"token": secret, "permission": "tasks:list", "namespace": "shop"});
        server.as_root("POST", "/v1/check", Some(body)).await.1["allowed"].clone()
    };
    assert_eq!((able().await, allowed().await), (None, json!(false)));
    let id = asked(&server, &secret, json!({})).await;
    assert_eq!((able().await, allowed().await), (None, json!(false)), "not before it is approved");
    let (status, approved) = act(&server, &approver(), &id, "approve").await;
    assert_eq!(status, 200, "{approved}");
    let one = able().await.expect("it can, for a while");
    assert!(one["text"].as_str().unwrap().contains("for a while"), "{one}");
    assert_eq!(allowed().await, json!(true));
    // A call that goes by it says so in the audit.
    assert_eq!(lists(&server, &secret).await, 200);
    let path = "/v1/audit/records?rpc=ListTasks&outcome=allowed";
    let mut found = Value::Null;
    for _ in 0..200 {
        found = server.as_root("GET", path, None).await.1["records"][0].clone();
        if found.is_object() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(found["record"]["elevated"], json!(true), "{found}");
    let body = json!({"token": secret});
    let (_, told) = server.as_root("POST", "/v1/auth/introspect", Some(body)).await;
    assert_eq!(told["scope"], "steps:read tasks:list", "{told}");
    assert!(told["exp"].is_i64(), "who keeps the answer must not keep it for longer: {told}");
    assert_eq!(act(&server, &approver(), &id, "revoke").await.0, 200);
    assert_eq!((able().await, allowed().await), (None, json!(false)), "at once");
}

#[tokio::test]
async fn se_30_what_a_template_asks_for_is_not_vouched_for_by_rights_for_a_while() {
    let mut setup = Setup::steady();
    setup.server = format!("public_url = \"http://127.0.0.1:{}\"", setup.ports[1]);
    setup.rest = "[[auth.namespaces]]\nprefix = \"shop\"\nceiling = [\"tasks:*\"]\n".to_owned();
    let server = Server::with(setup).await;
    let alice = person("alice", &["templates:register"]);
    let id = asked(&server, &alice, json!({"permissions": "tasks:create"})).await;
    let bob = person("bob", &["tasks:create", "api_keys:admin"]);
    assert_eq!(act(&server, &bob, &id, "approve").await.0, 200);
    let definition = "name: asks\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n  - name: only\n    \
                      handler: {callable: work}\n    permissions: [tasks:create]\n";
    let body = json!({"namespace": "shop", "definition": definition});
    let (status, answer) = call(&server, &alice, "POST", "/v1/templates", Some(body.clone())).await;
    assert_eq!(status, 403, "{answer}");
    let lasting = person("carol", &["templates:register", "tasks:create"]);
    assert_eq!(call(&server, &lasting, "POST", "/v1/templates", Some(body)).await.0, 201);
}
