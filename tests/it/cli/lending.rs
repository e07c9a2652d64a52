//! Introspection, checks, exchange and elevation as commands.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::harness::{
    Server, Setup,
    credentials::{READER_KEY, Token},
    process::bailiwick,
    run::{Ran, run},
};

/// Runs a command as somebody with a token in a file.
async fn run_as(server: &Server, token: &str, args: &[&str]) -> Ran {
    let file = server.path("own-token");
    std::fs::write(&file, token).unwrap();
    let mut command = bailiwick();
    command.args(["--url", &server.grpc_url(), "--token-file", file.to_str().unwrap()]).args(args);
    run(command).await
}

/// Runs a command of root's with a text on its standard input.
async fn piped(server: &Server, text: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = server.cli();
    command.args(args).stdin(std::process::Stdio::piped());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_bytes()).await.unwrap();
    drop(input);
    let done = child.wait_with_output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (done.status.code(), text(done.stdout), text(done.stderr))
}

async fn server() -> Server {
    let rest = "extra_permissions = [\"bundles:read\"]\nelevation_max_minutes = 5\n".to_owned();
    Server::with(Setup { rest, ..Setup::default() }).await
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

#[tokio::test]
async fn se_42_introspect_and_check_take_no_credential_as_an_argument() {
    let server = server().await;
    let file = server.path("shown");
    std::fs::write(&file, format!("{READER_KEY}\n")).unwrap();
    let from = ["--credential-file", file.to_str().unwrap()];
    let told = server.run_json(&[&["auth", "introspect"][..], &from].concat()).await;
    assert_eq!((&told["active"], &told["source"]), (&json!(true), &json!("config")));
    let (_, by_rest) =
        server.as_root("POST", "/v1/auth/introspect", Some(json!({"token": READER_KEY}))).await;
    assert_eq!(told, by_rest);
    let (code, table, err) = piped(&server, READER_KEY, &["auth", "introspect"]).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(table.contains("tasks:read, tasks:list in *"), "{table}");
    assert!(!format!("{table}{err}").contains(READER_KEY));

    let (code, out, err) =
        piped(&server, "garbage-garbage", &["auth", "introspect", "--format", "json"]).await;
    assert_eq!(code, Some(1), "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), json!({"active": false}));
    assert!(err.contains("does not count") && !err.contains("garbage-garbage"), "{err}");
    let (code, _, err) = piped(&server, " \n", &["auth", "introspect"]).await;
    assert_eq!(code, Some(2));
    assert!(err.contains("is empty"), "{err}");

    let args = ["auth", "check", "tasks:read", "bundles:read", "tasks:paint", "shop"];
    let ran = server.run(&[&args[..], &from, &["--format", "json"]].concat()).await;
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(ran.err.contains("not allowed: bundles:read, tasks:paint"), "{ran}");
    let answers: Value = serde_json::from_str(&ran.out).unwrap();
    let reasons: Vec<&str> =
        answers["answers"].as_array().unwrap().iter().map(|one| text(&one["reason"])).collect();
    assert_eq!(reasons, ["allowed", "permission_missing", "permission_unknown"]);
    let (code, table, _) = piped(&server, READER_KEY, &["auth", "check", "tasks:read"]).await;
    assert_eq!(code, Some(0));
    assert!(table.contains("anywhere") && table.contains("yes"), "{table}");

    let stranger = Token::new("stranger", &["tasks:*"]).sign();
    let ran = run_as(&server, &stranger, &[&["auth", "introspect"][..], &from].concat()).await;
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(ran.err.contains("tokens:introspect") && !ran.said().contains(READER_KEY), "{ran}");
}

#[tokio::test]
async fn se_39_exchange_prints_a_narrower_token_alone() {
    let server = server().await;
    let alice = Token::new("alice", &["tasks:*"]).within(&["shop", "lab"]).sign();
    let args = ["auth", "exchange", "--scope", "tasks:list,tasks:read", "--namespaces", "shop"];
    let ran = run_as(&server, &alice, &[&args[..], &["--expires-in", "1m"]].concat()).await;
    assert!(ran.err.contains("won't be shown again") && !ran.err.contains("bwk_"), "{ran}");
    let token = ran.good();
    assert_eq!(token.lines().count(), 1, "nothing else, so that it can go into a file");
    let whoami = ["auth", "whoami", "--format", "json"];
    let who = run_as(&server, token.trim(), &whoami).await.json();
    let grants = json!([{"permissions": ["tasks:read", "tasks:list"], "namespaces": ["shop"]}]);
    assert_eq!(who["grants"], grants);
    let whole = run_as(&server, &alice, &[&args[..], &["--format", "json"]].concat()).await.json();
    assert_eq!((&whole["token_type"], &whole["expires_in"]), (&json!("Bearer"), &json!(600)));
    for (more, wanted) in [
        (&["--scope", "steps:read"][..], "no namespace"),
        (&["--scope", "tasks:list", "--expires-in", "2h"], "3600"),
    ] {
        let ran = run_as(&server, &alice, &[&["auth", "exchange"], more].concat()).await;
        assert_eq!(ran.code, Some(1), "{ran}");
        assert!(ran.out.is_empty() && ran.err.contains(wanted), "{ran}");
        assert!(!ran.err.contains(&alice), "{ran}");
    }
}

#[tokio::test]
async fn se_17_rights_are_asked_for_approved_listed_and_taken_back() {
    let server = server().await;
    let alice = Token::new("alice", &["steps:read"]).within(&["shop"]).sign();
    let bob = Token::new("bob", &["tasks:list", "api_keys:admin"]).within(&["shop"]).sign();
    let elevate =
        ["auth", "elevate", "tasks:list", "shop", "--for", "2m", "--reason", "orders are stuck"];
    let ran = run_as(&server, &alice, &elevate).await;
    assert!(ran.err.contains("bailiwick auth approve"), "{ran}");
    let id = ran.good().trim().to_owned();
    let list = ["task", "list", "--namespace", "shop"];
    assert_eq!(run_as(&server, &alice, &list).await.code, Some(1));
    let own = run_as(&server, &alice, &["auth", "approve", &id]).await;
    assert_eq!(own.code, Some(1), "nobody approves one's own: {own}");

    let pending = ["auth", "elevations", "--state", "pending"];
    let table = run_as(&server, &bob, &pending).await.good();
    for shown in [id.as_str(), "alice", "tasks:list", "for 120 s", "orders are stuck"] {
        assert!(table.contains(shown), "{shown}: {table}");
    }
    let said = run_as(&server, &bob, &["auth", "approve", &id]).await.good();
    assert!(said.contains("alice holds tasks:list in shop until 2"), "{said}");
    run_as(&server, &alice, &list).await.good();
    let all = run_as(&server, &alice, &["auth", "elevations", "--format", "json"]).await.json();
    let one = &all["elevations"][0];
    assert_eq!((&one["state"], &one["seconds"]), (&json!("active"), &json!(120)), "{all}");
    assert!(text(&one["decided_by"]).ends_with("#bob"), "{all}");
    assert!(text(&one["until"]).ends_with('Z'), "{all}");
    let (_, by_rest) = server
        .json("GET", "/v1/auth/elevations", &[("authorization", &format!("Bearer {alice}"))], None)
        .await;
    assert_eq!(all, by_rest, "as REST says it");
    assert_eq!(run_as(&server, &bob, &pending).await.good().lines().count(), 1);

    let said = run_as(&server, &alice, &["auth", "revoke-elevation", &id]).await.good();
    assert!(said.contains("revoked"), "{said}");
    assert_eq!(run_as(&server, &alice, &list).await.code, Some(1));

    let id = run_as(&server, &alice, &elevate).await.good().trim().to_owned();
    let said = run_as(&server, &bob, &["auth", "deny", &id]).await.good();
    assert!(said.contains(&format!("denied {id}")), "{said}");
    let ran = run_as(&server, &bob, &["auth", "approve", &id]).await;
    assert!(ran.code == Some(1) && ran.err.contains("denied"), "{ran}");
    // What the command line is missing is said before anything is asked.
    let ran = run_as(&server, &alice, &["auth", "elevate", "tasks:list", "--for", "1m"]).await;
    assert_eq!(ran.code, Some(2), "{ran}");
    let no_place = ["auth", "elevate", "tasks:list", "--for", "1m", "--reason", "x"];
    let ran = run_as(&server, &alice, &no_place).await;
    assert!(ran.code == Some(2) && ran.err.contains("namespace"), "{ran}");
}
