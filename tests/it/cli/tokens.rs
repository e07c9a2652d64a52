//! What the command line shows of tokens and API keys: all that REST does, in
//! its form.

use serde_json::{Value, json};

use crate::harness::Server;

/// An answer of REST's to root.
async fn rest(server: &Server, path: &str) -> Value {
    let (status, body) = server.as_root("GET", path, None).await;
    assert_eq!(status, 200, "{body}");
    body
}

/// Without what changes from one look to the next.
fn still(mut value: Value) -> Value {
    value.as_object_mut().unwrap().remove("idle_seconds");
    value
}

fn names(object: &Value) -> Vec<&String> {
    object.as_object().unwrap().keys().collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

#[tokio::test]
async fn dk_31_34_a_token_as_json_has_every_field_of_rest() {
    let server = Server::start().await;
    let parent = server.run_json(&["auth", "mint-token", "--scope", "tasks:list,tasks:read"]).await;
    let parent = text(&parent["prefix"]);
    let body = json!({"scopes": ["tasks:list"], "name": "ci", "namespaces": ["shop"],
        "expires_in_seconds": 3600, "max_uses": 10, "client_networks": ["127.0.0.0/8"],
        "parent": parent});
    let (status, by_rest) = server.as_root("POST", "/v1/auth/tokens", Some(body)).await;
    assert_eq!(status, 201, "{by_rest}");
    let args = [
        &["auth", "mint-token", "--scope", "tasks:list", "--name", "ci", "--namespaces", "shop"],
        &["--expires-in", "1h", "--max-uses", "10", "--client-network", "127.0.0.0/8"][..],
        &["--parent", parent],
    ];
    let minted = server.run_json(&args.concat()).await;
    assert_eq!(names(&minted), names(&by_rest));
    for name in ["scopes", "name", "namespaces", "max_uses", "client_networks", "parent"] {
        assert_eq!(minted[name], by_rest[name], "{name}");
    }
    let prefix = text(&minted["prefix"]);
    let by_rest = rest(&server, &format!("/v1/auth/tokens/{prefix}")).await;
    assert!(by_rest["family"].is_string() && by_rest["client_networks"].is_array(), "{by_rest}");
    assert_eq!(still(server.run_json(&["auth", "show", prefix]).await), still(by_rest));
    let list = |list: &Value| -> Vec<Value> {
        list["tokens"].as_array().unwrap().iter().cloned().map(still).collect()
    };
    let by_rest = list(&rest(&server, "/v1/auth/tokens").await);
    assert_eq!(list(&server.run_json(&["auth", "list-tokens"]).await), by_rest);

    let table = server.run(&["auth", "show", prefix]).await.good();
    for shown in ["0/10", "127.0.0.0/8", parent] {
        assert!(table.contains(shown), "{shown}: {table}");
    }

    let revoked = server.run_json(&["auth", "revoke-token", prefix]).await;
    assert_eq!(revoked, json!({"revoked": [prefix]}));
    let revoked = server.run_json(&["auth", "revoke-subject", "--issuer", "bailiwick"]).await;
    assert_eq!(names(&revoked), ["revoked", "revoked_before"]);
    assert!(text(&revoked["revoked_before"]).ends_with('Z'), "{revoked}");
}

#[tokio::test]
async fn an_api_key_as_json_has_every_field_of_rest() {
    let server = Server::start().await;
    let body = json!({"name": "ci", "scopes": ["tasks:list"], "namespaces": ["shop"],
        "expires_at": "2100-01-01T00:00:00Z"});
    let (status, by_rest) = server.as_root("POST", "/v1/api-keys", Some(body)).await;
    assert_eq!(status, 201, "{by_rest}");
    let args = ["auth", "api-key", "create", "--name", "ci", "--scope", "tasks:list"];
    let more = ["--namespaces", "shop", "--expires-in", "1h"];
    let made = server.run_json(&[&args[..], &more].concat()).await;
    assert_eq!(names(&made), names(&by_rest));
    assert_eq!(made["state"], by_rest["state"]);
    // An hour from now, not from some other moment.
    let moment = |name: &str| text(&made[name]).parse::<jiff::Timestamp>().unwrap();
    let life = moment("expires_at").duration_since(moment("created_at"));
    assert!((3590..=3610).contains(&life.as_secs()), "{made}");

    let id = text(&made["id"]);
    let path = format!("/v1/api-keys/{id}");
    let shown = server.run_json(&["auth", "api-key", "get", id]).await;
    assert_eq!(still(shown), still(rest(&server, &path).await));
    let revoked = server.run_json(&["auth", "api-key", "revoke", id]).await;
    assert!(revoked["revoked_at"].is_string(), "{revoked}");
    assert_eq!(still(revoked), still(rest(&server, &path).await));
    let deleted = server.run_json(&["auth", "api-key", "delete", id]).await;
    assert_eq!(deleted, json!({"deleted": id}));
}
