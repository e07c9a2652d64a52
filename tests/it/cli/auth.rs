//! `bailiwick auth` without a server: keys and tokens.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::rows;
use crate::harness::{
    Ran, Server, alone, credentials,
    credentials::{AUDIENCE, ISSUER, Token, issuer, stranger},
    program, run,
};

/// Makes keys in a folder; answers the paths of both.
async fn keys(folder: &Path, args: &[&str]) -> (String, String) {
    let folder = folder.to_str().unwrap();
    let said = alone(&[&["auth", "generate-keys", "--output-dir", folder], args].concat()).await;
    let said = said.good();
    let paths: Vec<&str> = said.lines().collect();
    let [private, public] = paths[..] else { panic!("{said}") };
    (private.to_owned(), public.to_owned())
}

#[tokio::test]
async fn tk_04_generate_keys_writes_what_openssl_reads() {
    let work = tempfile::tempdir().unwrap();
    let ways: [&[&str]; 4] =
        [&[], &["--key-size", "3072"], &["--algorithm", "ES256"], &["--algorithm", "EdDSA"]];
    for (number, args) in ways.into_iter().enumerate() {
        let folder = work.path().join(number.to_string()).join("keys");
        let (private, public) = keys(&folder, args).await;
        assert_eq!(Path::new(&private), folder.join("jwt-private-key.pem"));
        assert_eq!(Path::new(&public), folder.join("jwt-public-key.pem"));
        let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&private), mode(folder.to_str().unwrap())), (0o600, 0o700));
        let derived = run(program("openssl", &["pkey", "-in", &private, "-pubout"])).await.good();
        assert_eq!(derived.trim(), fs::read_to_string(&public).unwrap().trim());
        let text = run(program("openssl", &["pkey", "-pubin", "-in", &public, "-noout", "-text"]));
        let text = text.await.good();
        let expected = match number {
            0 => "(2048 bit)",
            1 => "(3072 bit)",
            2 => "prime256v1",
            _ => "ED25519 Public-Key",
        };
        assert!(text.contains(expected), "{text}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "nothing else is left there");

        let before = fs::read(&private).unwrap();
        let again = [&["auth", "generate-keys", "--output-dir", folder.to_str().unwrap()], args];
        let again = again.concat();
        let refused = alone(&again).await;
        assert_eq!(refused.code, Some(1), "{refused}");
        assert!(refused.err.contains("--force"), "{refused}");
        assert_eq!(fs::read(&private).unwrap(), before, "the key is as it was");
        fs::set_permissions(&private, fs::Permissions::from_mode(0o644)).unwrap();
        alone(&[&again[..], &["--force"]].concat()).await.good();
        assert_ne!(fs::read(&private).unwrap(), before);
        assert_eq!(mode(&private), 0o600);
    }
    let odd =
        alone(&["auth", "generate-keys", "--key-size", "1024", "--output-dir", "/nonexistent"]);
    let odd = odd.await;
    assert_eq!(odd.code, Some(2), "{odd}");
    assert!(odd.err.contains("2048"), "{odd}");
}

/// A part of a token.
fn part(token: &str, number: usize) -> Value {
    let part = token.split('.').nth(number).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[tokio::test]
async fn tk_05_tk_34_tk_51_generate_token_prints_one_jwt_and_nothing_else() {
    let work = tempfile::tempdir().unwrap();
    for (algorithm, alg) in [("RS256", "RS256"), ("ES256", "ES256"), ("EdDSA", "EdDSA")] {
        let (private, public) =
            keys(&work.path().join(algorithm), &["--algorithm", algorithm]).await;
        let base = [
            "auth",
            "generate-token",
            "--subject",
            "s",
            "--private-key",
            &private,
            "--permissions",
        ];
        let made = alone(&[&base[..], &["tasks:create,tasks:read"]].concat()).await;
        assert_eq!(made.err, "");
        let out = made.good();
        let token = out.strip_suffix('\n').unwrap();
        assert!(!token.contains(char::is_whitespace) && token.split('.').count() == 3, "{out:?}");
        assert_eq!(part(token, 0)["alg"], alg);
        let claims = part(token, 1);
        assert_eq!((&claims["sub"], &claims["iss"]), (&json!("s"), &json!("bailiwick")));
        assert_eq!(claims["aud"], "bailiwick-api");
        assert_eq!(claims["permissions"], json!(["tasks:create", "tasks:read"]));
        assert_eq!(claims["worker_namespaces"], json!([]));
        let life =
            |claims: &Value| claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        assert_eq!(life(&claims), 86_400);
        assert!((credentials::now() - claims["iat"].as_i64().unwrap()).abs() < 60);

        let more = [
            "tasks:*",
            "--expiry-hours",
            "1",
            "--issuer",
            "i",
            "--audience",
            "a",
            "--namespaces",
            "shop,till.",
            "--worker-namespaces",
            "shop",
        ];
        let token = alone(&[&base[..], &more].concat()).await.good();
        let claims = part(token.trim(), 1);
        assert_eq!(
            (life(&claims), &claims["iss"], &claims["aud"]),
            (3600, &json!("i"), &json!("a"))
        );
        assert_eq!(claims["namespaces"], json!(["shop", "till."]));
        assert_eq!(claims["worker_namespaces"], json!(["shop"]));

        let check = ["auth", "validate-token", "--public-key", &public, "--token", token.trim()];
        assert_eq!(alone(&check).await.json(), claims);
    }
}

#[tokio::test]
async fn generate_token_refuses_what_no_server_would_take() {
    let work = tempfile::tempdir().unwrap();
    let (private, _) = keys(work.path(), &["--algorithm", "EdDSA"]).await;
    let make = async |args: &[&str]| {
        let base = ["auth", "generate-token", "--subject", "s", "--private-key", &private];
        alone(&[&base[..], args].concat()).await
    };
    for (wrong, says) in [
        (&["--permissions", "tasks:fly"][..], "`tasks:fly` is no permission"),
        (&["--permissions", "tasks:read", "--namespaces", "sh*p"], "sh*p"),
        (&["--permissions", "tasks:read", "--expiry-hours", "0"], "0"),
        (&[], "--permissions"),
    ] {
        let refused = make(wrong).await;
        assert_eq!(refused.code, Some(2), "{wrong:?}: {refused}");
        assert!(refused.err.contains(says), "{wrong:?}: {refused}");
        assert_eq!(refused.out, "");
    }
    make(&["--permissions", "tasks:fly", "--allow-unknown"]).await.good();
    let base = ["auth", "generate-token", "--subject", "s", "--permissions", "*", "--private-key"];
    for key in ["/nonexistent", "/etc/passwd"] {
        let refused = alone(&[&base[..], &[key]].concat()).await;
        assert_eq!(refused.code, Some(2), "{refused}");
        assert!(refused.err.contains(key) && !refused.err.contains("root:"), "{refused}");
    }
}

#[tokio::test]
async fn tk_06_show_permissions_prints_the_vocabulary() {
    let table = alone(&["auth", "show-permissions"]).await.good();
    let json = alone(&["auth", "show-permissions", "--format", "json"]).await.json();
    let listed = json["permissions"].as_array().unwrap();
    for name in [
        "tasks:create",
        "tasks:read",
        "tasks:list",
        "tasks:cancel",
        "tasks:context_read",
        "steps:read",
        "steps:resolve",
        "dlq:read",
        "dlq:update",
        "dlq:stats",
        "templates:read",
        "templates:validate",
        "system:config_read",
        "system:handlers_read",
        "system:analytics_read",
        "worker:config_read",
        "worker:templates_read",
    ] {
        assert!(rows(&table).iter().any(|row| row[0] == name && row.len() > 2), "{name}: {table}");
        let of = listed.iter().find(|permission| permission["name"] == name).expect(name);
        assert!(of["description"].as_str().unwrap().len() > 5, "{of}");
    }
}

/// Checks a token against the tests' issuer.
async fn validate(folder: &Path, token: &str, args: &[&str]) -> Ran {
    let public = folder.join("public.pem");
    fs::write(&public, &issuer().public).unwrap();
    let public = public.to_str().unwrap();
    let base = ["auth", "validate-token", "--public-key", public, "--token", token];
    alone(&[&base[..], args].concat()).await
}

#[tokio::test]
async fn tk_07_validate_token_prints_every_fault() {
    let work = tempfile::tempdir().unwrap();
    let good = Token::new("ci", &["tasks:read"]);
    let token = good.sign();
    let passed = validate(work.path(), &token, &["--issuer", ISSUER, "--audience", AUDIENCE]).await;
    assert_eq!(passed.json()["sub"], "ci");
    let json = validate(work.path(), &token, &["--format", "json"]).await.json();
    assert_eq!((&json["valid"], &json["faults"]), (&json!(true), &json!([])));

    let past = json!(credentials::now() - 10);
    let expired = good.clone().claim("exp", past.clone());
    let cut = format!("{}.", token.rsplit_once('.').unwrap().0);
    for (token, args, says) in [
        (expired.sign(), &[][..], &["expired"][..]),
        (good.sign_with(stranger()), &[], &["signature"]),
        (expired.clone().without("sub").sign(), &[], &["expired", "`sub`"]),
        (
            expired.clone().claim("permissions", json!(["tasks:fly"])).sign_with(stranger()),
            &["--issuer", "other", "--audience", "another"],
            &["signature", "expired", "issuer", "audience", "tasks:fly"],
        ),
        (cut, &[], &["signature"]),
        ("garbage".to_owned(), &[], &["malformed"]),
    ] {
        let refused = validate(work.path(), &token, args).await;
        assert_eq!(refused.code, Some(1), "{token}: {refused}");
        for fault in says {
            assert!(refused.err.contains(fault), "{fault}: {refused}");
        }
        let json = validate(work.path(), &token, &[args, &["--format", "json"]].concat()).await;
        let json: Value = serde_json::from_str(&json.out).unwrap();
        assert_eq!(json["valid"], false);
        assert!(json["faults"].as_array().unwrap().len() >= says.len(), "{json}");
        assert!(!refused.said().contains(&token), "the token is not printed: {refused}");
    }
}

#[tokio::test]
async fn a_generated_token_opens_a_server_with_the_generated_key() {
    let work = tempfile::tempdir().unwrap();
    for algorithm in ["RS256", "ES256", "EdDSA"] {
        let (private, public) =
            keys(&work.path().join(algorithm), &["--algorithm", algorithm]).await;
        let setup = crate::harness::Setup {
            auth: false,
            rest: format!(
                "enabled = true\njwt_public_key_path = \"{public}\"\njwt_issuer = \"{ISSUER}\"\njwt_audience = \"{AUDIENCE}\"\n"
            ),
            ..Default::default()
        };
        let server = Server::with(setup).await;
        let base = ["auth", "generate-token", "--subject", "s", "--private-key", &private];
        let token = alone(&[&base[..], &["--permissions", "tasks:list"]].concat()).await.good();
        let url = server.grpc_url();
        let list = alone(&["task", "list", "--url", &url, "--token", token.trim()]).await;
        list.good();
        let deeper = alone(&["worker", "list", "--url", &url, "--token", token.trim()]).await;
        assert_eq!(deeper.code, Some(1), "{deeper}");
    }
}
