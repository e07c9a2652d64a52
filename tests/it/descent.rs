//! Credentials that come from credentials: children, successors, and what a
//! principal made (SE-39, SE-40).

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::harness::{Server, Setup, credentials::Token};

const TOKENS: &str = "/v1/auth/tokens";
const KEYS: &str = "/v1/api-keys";

/// A secret with its public id.
struct Given {
    secret: String,
    id: String,
}

async fn server() -> Server {
    // Most calls here fail, all from one address.
    let rest = "[limits]\nfailed_auth_per_minute = 0\n".to_owned();
    Server::with(Setup { rest, ..Setup::steady() }).await
}

async fn as_bearer(
    server: &Server,
    token: &str,
    verb: &str,
    path: &str,
    body: Option<Value>,
) -> (u16, Value) {
    server.json(verb, path, &[("authorization", &format!("Bearer {token}"))], body).await
}

async fn mint(server: &Server, body: Value) -> Given {
    let (status, minted) = server.as_root("POST", TOKENS, Some(body)).await;
    assert_eq!(status, 201, "{minted}");
    let text = |name: &str| minted[name].as_str().unwrap().to_owned();
    Given { secret: text("token"), id: text("prefix") }
}

/// A token that may make keys.
async fn admin(server: &Server) -> Given {
    mint(server, json!({"scopes": "api_keys:admin,tasks:list"})).await
}

async fn child(server: &Server, parent: &Given) -> Given {
    mint(server, json!({"scopes": "tasks:list", "parent": parent.id})).await
}

async fn try_key(server: &Server, maker: &str, more: Value) -> (u16, Value) {
    let mut body = json!({"name": "k", "scopes": "api_keys:admin,tasks:list"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    as_bearer(server, maker, "POST", KEYS, Some(body)).await
}

async fn key(server: &Server, maker: &str) -> Given {
    let (status, made) = try_key(server, maker, json!({})).await;
    assert_eq!(status, 201, "{made}");
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    Given { secret: text("key"), id: text("id") }
}

async fn rotate(server: &Server, old: &Given, overlap_seconds: u32) -> Given {
    let path = format!("{TOKENS}/{}/rotate", old.id);
    let body = json!({"overlap_seconds": overlap_seconds});
    let (status, next) = server.as_root("POST", &path, Some(body)).await;
    assert_eq!(status, 201, "{next}");
    let text = |name: &str| next[name].as_str().unwrap().to_owned();
    Given { secret: text("token"), id: text("prefix") }
}

async fn cascade(server: &Server, id: &str) -> u16 {
    server.as_root("DELETE", &format!("{TOKENS}/{id}?cascade=true"), None).await.0
}

/// What the list of tasks answers to each.
async fn answers(server: &Server, given: &[&Given]) -> Vec<u16> {
    let mut all = Vec::new();
    for one in given {
        all.push(as_bearer(server, &one.secret, "GET", "/v1/tasks", None).await.0);
    }
    all
}

#[tokio::test]
async fn se_39_a_cascade_reaches_all_from_either_end_of_a_rotation() {
    let server = server().await;
    for from_successor in [false, true] {
        let old = admin(&server).await;
        let (heir, made) = (child(&server, &old).await, key(&server, &old.secret).await);
        let grandchild = child(&server, &heir).await;
        let new = rotate(&server, &old, 600).await;
        let all = [&old, &new, &heir, &grandchild, &made];
        assert_eq!(answers(&server, &all).await, [200; 5]);
        let end = if from_successor { &new } else { &old };
        assert_eq!(cascade(&server, &end.id).await, 204);
        assert_eq!(answers(&server, &all).await, [401; 5], "{from_successor}");
    }
}

#[tokio::test]
async fn se_39_a_cascade_passes_what_is_gone_already() {
    let server = server().await;
    let first = admin(&server).await;
    let middle = child(&server, &first).await;
    let last = child(&server, &middle).await;
    let made = key(&server, &first.secret).await;
    let deeper = key(&server, &made.secret).await;
    assert_eq!(server.as_root("DELETE", &format!("{TOKENS}/{}", middle.id), None).await.0, 204);
    let path = format!("{KEYS}/{}", made.id);
    assert_eq!(server.as_root("POST", &format!("{path}/revoke"), None).await.0, 200);
    assert_eq!(server.as_root("DELETE", &path, None).await.0, 204);
    assert_eq!(server.as_root("DELETE", &format!("{TOKENS}/{}", first.id), None).await.0, 204);
    assert_eq!(answers(&server, &[&last, &deeper]).await, [200; 2], "no cascade yet");
    let server = server.again().await;
    assert_eq!(answers(&server, &[&last, &deeper]).await, [200; 2], "nor after a restart");
    assert_eq!(cascade(&server, &first.id).await, 204, "of a token that is over");
    assert_eq!(answers(&server, &[&last, &deeper]).await, [401; 2]);
    assert_eq!(cascade(&server, &first.id).await, 404, "there is nothing left");
}

#[tokio::test]
async fn se_39_keys_go_with_the_key_or_the_subject_that_made_them() {
    let server = server().await;
    let root_key = try_key(&server, &admin(&server).await.secret, json!({})).await.1;
    let maker = Given {
        secret: root_key["key"].as_str().unwrap().to_owned(),
        id: root_key["id"].as_str().unwrap().to_owned(),
    };
    let made = key(&server, &maker.secret).await;
    let path = format!("{KEYS}/{}/revoke", maker.id);
    assert_eq!(server.as_root("POST", &path, Some(json!({"cascade": true}))).await.0, 200);
    assert_eq!(answers(&server, &[&maker, &made]).await, [401; 2]);

    let jwt = |subject: &str| Token::new(subject, &["api_keys:admin", "tasks:list"]).sign();
    let (theirs, others) = (key(&server, &jwt("one")).await, key(&server, &jwt("two")).await);
    let below = key(&server, &theirs.secret).await;
    let body = json!({"issuer": "bailiwick", "subject": "one", "cascade": true});
    let (status, answer) = server.as_root("POST", "/v1/auth/revoke-subject", Some(body)).await;
    assert_eq!((status, answer["revoked"].as_array().map(Vec::len)), (200, Some(2)), "{answer}");
    assert_eq!(answers(&server, &[&theirs, &below, &others]).await, [401, 401, 200]);
    let body = json!({"issuer": "bailiwick/"});
    let (status, answer) = server.as_root("POST", "/v1/auth/revoke-subject", Some(body)).await;
    assert_eq!(status, 400);
    assert!(answer["message"].as_str().unwrap().contains("there are: bailiwick"), "{answer}");
}

#[tokio::test]
async fn se_39_children_outlive_a_rotation_and_a_restart() {
    let server = server().await;
    let body = json!({"scopes": "tasks:list", "expires_in_seconds": 3600});
    let parent = mint(&server, body).await;
    let heir = child(&server, &parent).await;
    let end = |answer: (u16, Value)| answer.1["expires_at"].clone();
    let whoami = async |server: &Server| {
        end(as_bearer(server, &heir.secret, "GET", "/v1/whoami", None).await)
    };
    let before = whoami(&server).await;
    rotate(&server, &parent, 0).await;
    assert_eq!(whoami(&server).await, before);
    let server = server.again().await;
    assert_eq!(whoami(&server).await, before, "also after a restart");
}

#[tokio::test]
async fn se_39_children_are_bound_to_the_networks_of_their_line() {
    let server = server().await;
    let far = json!({"scopes": "tasks:list", "client_networks": "192.0.2.0/24"});
    let far = mint(&server, far).await;
    let near = json!({
        "scopes": "tasks:list", "client_networks": "127.0.0.0/8", "parent": far.id,
    });
    let near = mint(&server, near).await;
    assert_eq!(answers(&server, &[&far, &near]).await, [401; 2]);
    let counted = mint(&server, json!({"scopes": "tasks:list", "max_uses": 1})).await;
    let body = json!({"scopes": "tasks:list", "parent": counted.id});
    let (status, answer) = server.as_root("POST", TOKENS, Some(body)).await;
    assert_eq!(status, 400, "its uses would be counted by nobody: {answer}");
}

#[tokio::test]
async fn se_39_a_line_is_not_longer_than_it_can_be_followed() {
    let server = server().await;
    let mut last = mint(&server, json!({"scopes": "tasks:list"})).await;
    for _ in 0..31 {
        last = child(&server, &last).await;
        assert_eq!(answers(&server, &[&last]).await, [200]);
    }
    let body = json!({"scopes": "tasks:list", "parent": last.id});
    let (status, answer) = server.as_root("POST", TOKENS, Some(body)).await;
    assert_eq!((status, &answer["reason"]), (400, &json!("CREDENTIAL_STATE")), "{answer}");
}

#[tokio::test]
async fn se_40_a_key_has_the_bounds_of_its_maker() {
    let server = server().await;
    let scopes = "api_keys:admin,tasks:list";
    let maker = mint(
        &server,
        json!({"scopes": scopes, "expires_in_seconds": 600, "client_networks": "127.0.0.0/8"}),
    )
    .await;
    let (_, end) = server.as_root("GET", &format!("{TOKENS}/{}", maker.id), None).await;
    let (status, made) = try_key(&server, &maker.secret, json!({})).await;
    assert_eq!((status, &made["expires_at"]), (201, &end["expires_at"]));
    let later = json!({"expires_at": "2099-01-01T00:00:00Z"});
    let (status, made) = try_key(&server, &maker.secret, later).await;
    assert_eq!((status, &made["expires_at"]), (201, &end["expires_at"]));
    let counted = mint(&server, json!({"scopes": scopes, "max_uses": 5})).await;
    assert_eq!(try_key(&server, &counted.secret, json!({})).await.0, 403);
    let far = mint(&server, json!({"scopes": scopes, "client_networks": "127.0.0.1/32"})).await;
    let near = mint(&server, json!({"scopes": scopes, "parent": far.id})).await;
    assert_eq!(try_key(&server, &near.secret, json!({})).await.0, 403);
    // Everything needs everything, a worker's part of it too.
    let some = Token::new("w", &["*"]).claim("worker_namespaces", json!(["shop"])).sign();
    let body = Some(json!({"name": "k", "full_access": true}));
    assert_eq!(as_bearer(&server, &some, "POST", KEYS, body).await.0, 403);
    for at in ["9223372036854-01-01T00:00:00Z", "+10000-01-01T00:00:00Z"] {
        let body = json!({"expires_at": at});
        assert_eq!(try_key(&server, &maker.secret, body).await.0, 400, "{at}");
    }
}

#[tokio::test]
async fn se_16_se_38_nothing_is_made_after_the_maker_is_revoked() {
    let server = server().await;
    let maker = admin(&server).await;
    let revoked = AtomicBool::new(false);
    let making = async || {
        let mut made = Vec::new();
        // A few tries after the revocation as well.
        let mut after = 0;
        while after < 3 {
            after += u32::from(revoked.load(Ordering::SeqCst));
            let (status, answer) = try_key(&server, &maker.secret, json!({})).await;
            if status == 201 {
                made.push(answer["key"].as_str().unwrap().to_owned());
            }
        }
        made
    };
    let revoking = async {
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        assert_eq!(cascade(&server, &maker.id).await, 204);
        revoked.store(true, Ordering::SeqCst);
    };
    let (made, ()) = tokio::join!(futures::future::join_all((0..12).map(|_| making())), revoking);
    let made: Vec<String> = made.into_iter().flatten().collect();
    assert!(!made.is_empty());
    for key in made {
        assert_eq!(as_bearer(&server, &key, "GET", "/v1/tasks", None).await.0, 401);
    }
}

#[tokio::test]
async fn se_40_what_was_made_while_auth_was_off_does_not_count() {
    let off = Setup { auth: false, ..Setup::steady() };
    let server = Server::with(off.clone()).await;
    let body = Some(json!({"name": "k", "full_access": true}));
    let (status, made) = server.json("POST", KEYS, &[], body).await;
    assert_eq!(status, 201, "{made}");
    let server = server.again_with(Setup { auth: true, ..off }).await;
    let key = made["key"].as_str().unwrap();
    assert_eq!(server.json("GET", "/v1/tasks", &[("x-api-key", key)], None).await.0, 401);
    let said = |line: &Value| line["message"].as_str().unwrap_or_default().contains("auth was off");
    assert!(server.logs().iter().any(said));
}

#[tokio::test]
async fn a_page_goes_on_behind_what_is_gone() {
    let server = server().await;
    for _ in 0..5 {
        mint(&server, json!({"scopes": "tasks:list"})).await;
    }
    let mut seen = 0;
    let mut path = format!("{TOKENS}?page_size=2");
    loop {
        let (_, page) = server.as_root("GET", &path, None).await;
        for token in page["tokens"].as_array().unwrap() {
            if token["source"] == "database" {
                seen += 1;
                let id = token["prefix"].as_str().unwrap();
                server.as_root("DELETE", &format!("{TOKENS}/{id}"), None).await;
            }
        }
        match page["next_page_token"].as_str() {
            Some(next) if !next.is_empty() => {
                path = format!("{TOKENS}?page_size=2&page_token={next}");
            }
            _ => break,
        }
    }
    assert_eq!(seen, 5);
}

#[tokio::test]
async fn dk_47_dk_51_a_secret_in_the_place_of_an_id_is_not_said_again() {
    let server = server().await;
    let token = mint(&server, json!({"scopes": "tasks:list"})).await;
    for path in [format!("{TOKENS}/{}", token.secret), format!("{KEYS}/{}", token.secret)] {
        for verb in ["GET", "DELETE"] {
            let (status, answer) = server.as_root(verb, &path, None).await;
            assert_eq!(status, 404, "{answer}");
            assert!(!answer.to_string().contains(&token.secret), "{verb} {path}");
        }
    }
}

#[tokio::test]
async fn se_47_a_token_from_the_future_does_not_count() {
    let server = server().await;
    let issued = crate::harness::credentials::now() + 3_000;
    let token = Token::new("early", &["tasks:list"]).claim("iat", json!(issued)).sign();
    let (status, answer) = as_bearer(&server, &token, "GET", "/v1/tasks", None).await;
    assert_eq!((status, answer["reason"].as_str()), (401, Some("CREDENTIALS_NOT_YET_VALID")));
}
