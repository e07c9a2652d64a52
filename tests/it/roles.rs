//! Named roles in everything that is given out, and where they are shown.

use std::fs;

use serde_json::{Value, json};

use crate::{
    harness::{
        ROOT_KEY, Server, Setup,
        credentials::{Token, issuer},
        refused, run,
    },
    tls,
};

const TOKENS: &str = "/api/auth/tokens";
const OWN: &str = "[auth.roles.own]\npermissions = [\"dlq:*\", \"tasks:list\"]\n\
    [auth.roles.empty]\npermissions = []\n[auth.roles.all]\npermissions = [\"*\"]\n";
/// What `role:own` stands for.
const OWN_HOLDS: [&str; 4] = ["tasks:list", "dlq:read", "dlq:update", "dlq:stats"];

fn setup(roles: &str) -> Setup {
    Setup { rest: roles.to_owned(), ..Setup::steady() }
}

async fn permissions(server: &Server, token: &str) -> Value {
    let value = format!("Bearer {token}");
    let (status, me) = server.json("GET", "/v1/whoami", &[("authorization", &value)], None).await;
    assert_eq!(status, 200, "{me}");
    me["grants"][0]["permissions"].clone()
}

#[tokio::test]
async fn tk_52_minted_tokens_keep_what_a_role_held() {
    let server = Server::with(setup(OWN)).await;
    let scopes = "role:worker-service,role:own,tasks:list";
    let minted = server.run_json(&["auth", "mint-token", "--scope", scopes]).await;
    let wanted = [&["work:lease"], &OWN_HOLDS[..]].concat();
    assert_eq!(minted["scopes"], json!(wanted), "{minted}");
    let token = minted["token"].as_str().unwrap();
    let held = json!(["tasks:list", "dlq:read", "dlq:update", "dlq:stats", "work:lease"]);
    assert_eq!(permissions(&server, token).await, held);

    for (scopes, why) in [
        ("role:superuser", "`*` cannot be minted"),
        ("role:all", "`*` cannot be minted"),
        ("role:empty", "name 1 to 100"),
        ("role:absent", "`role:absent` is no role"),
        ("role:", "`role:` is no role"),
        ("role:*", "`role:*` is no role"),
        ("ROLE:own", "`ROLE:own` is no permission"),
    ] {
        let body = json!({"scopes": ["tasks:read", scopes]});
        let body = if scopes == "role:empty" { json!({"scopes": scopes}) } else { body };
        let (status, answer) = server.as_root("POST", TOKENS, Some(body)).await;
        assert_eq!(status, 400, "{scopes}: {answer}");
        assert!(answer.to_string().contains(why), "{scopes}: {answer}");
    }

    // Neither a wider role nor none at all changes what was given out.
    let wider = OWN.replace("\"dlq:*\"", "\"dlq:*\", \"steps:resolve\"");
    let server = server.again_with(setup(&wider)).await;
    assert_eq!(permissions(&server, token).await, held);
    let fresh = server.run_json(&["auth", "mint-token", "--scope", "role:own"]).await;
    assert_eq!(
        fresh["scopes"],
        json!([&["tasks:list", "steps:resolve"], &OWN_HOLDS[1..]].concat())
    );
    let server = server.again_with(setup("")).await;
    assert_eq!(permissions(&server, token).await, held);
}

#[tokio::test]
async fn tk_52_the_token_file_holds_the_permissions_of_a_role() {
    let rest = format!("token_store = \"file\"\ntoken_file = \"auth.token\"\n{OWN}");
    let server = Server::with(setup(&rest)).await;
    let minted = server.run_json(&["auth", "mint-token", "--scope", "role:own"]).await;
    let text = fs::read_to_string(server.path("auth.token")).unwrap();
    assert!(text.contains(&OWN_HOLDS.join(",")) && !text.contains("role:"), "{text}");
    let held = permissions(&server, minted["token"].as_str().unwrap()).await;
    assert_eq!(held, json!(OWN_HOLDS));
}

#[tokio::test]
async fn tk_52_se_40_a_key_by_role_holds_no_more_than_its_maker() {
    let server = Server::with(setup(OWN)).await;
    let create = async |caller: &str, body: Value| {
        let value = format!("Bearer {caller}");
        let header = [("authorization", &*value)];
        server.json("POST", "/v1/api-keys", &header, Some(body)).await
    };
    let body = |scopes: Value| json!({"name": "ci", "scopes": scopes});
    let held = [&["api_keys:admin"], &OWN_HOLDS[..]].concat();
    let maker = Token::new("maker", &held).sign();
    let (status, made) = create(&maker, body(json!(["role:own"]))).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["scopes"], json!(OWN_HOLDS), "{made}");
    let lesser = Token::new("lesser", &held[..held.len() - 1]).sign();
    let (status, answer) = create(&lesser, body(json!(["role:own"]))).await;
    assert_eq!((status, &answer["reason"]), (403, &json!("PERMISSION_MISSING")), "{answer}");
    assert_eq!(create(&maker, body(json!(["role:ops-admin"]))).await.0, 403);

    let root = async |body: Value| server.as_root("POST", "/v1/api-keys", Some(body)).await;
    for scopes in [json!(["role:superuser"]), json!(["role:empty"]), json!(["role:absent"])] {
        let (status, answer) = root(body(scopes.clone())).await;
        assert_eq!(status, 400, "{scopes}: {answer}");
    }
    let both = json!({"name": "ci", "scopes": ["role:empty"], "full_access": true});
    assert_eq!(root(both).await.0, 400);

    let args = ["auth", "api-key", "create", "--name", "w", "--scope", "role:worker-service"];
    let made = server.run_json(&args).await;
    assert_eq!(made["scopes"], json!(["work:lease"]), "{made}");
}

#[tokio::test]
async fn tk_52_certificates_hold_roles() {
    const PROBE: &str = "spiffe://shop.example/probe";
    let certs = tls::generated(&["--spiffe", PROBE]).await;
    let authority = certs.path().join("ca.pem");
    let with = |role: &str| Setup {
        server: format!("{}client_ca = {authority:?}\n", tls::files(certs.path())),
        rest: format!(
            "[[auth.certificates]]\nspiffe = \"{PROBE}\"\npermissions = [\"role:{role}\"]\n{OWN}"
        ),
        ..Setup::default()
    };
    let why = refused(&with("absent")).await;
    assert!(why.contains("auth.certificates #1") && why.contains("unknown role"), "{why}");

    let server = Server::with(with("own")).await;
    let (ca, cert) = (tls::read(&certs, "ca.pem"), tls::read(&certs, "client.pem"));
    let key = tls::read(&certs, "client-key.pem");
    let client = tls::rest(&ca, Some((&cert, &key))).build().unwrap();
    let url = format!("https://{}/v1/whoami", server.http);
    let answer = client.get(url).send().await.unwrap().text().await.unwrap();
    let me: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(me["grants"][0]["permissions"], json!(OWN_HOLDS), "{me}");
    // A rule for certificates has no public id, and is nobody without a name.
    let url = format!("https://{}/v1/can-i", server.http);
    let body = json!({"actions": [{"permission": "tasks:read"}], "as_subject": ""});
    let answer = client.post(url).header("x-api-key", ROOT_KEY).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn tk_52_generated_tokens_name_roles_which_the_server_resolves() {
    let server = Server::with(setup(OWN)).await;
    let (private, public) = (server.path("private.pem"), server.path("public.pem"));
    fs::write(&private, issuer().private.as_bytes()).unwrap();
    fs::write(&public, &issuer().public).unwrap();
    let file = server.path("bailiwick.toml");
    let generate = async |config: bool, permissions: &str| {
        let mut command = server.cli();
        if config {
            command.arg("-c").arg(&file);
        }
        command.args(["auth", "generate-token", "--subject", "ci", "--permissions", permissions]);
        run({
            command.arg("--private-key").arg(&private);
            command
        })
        .await
    };
    for config in [false, true] {
        let token = generate(config, "role:own,role:worker-service").await.good();
        let held = json!(["tasks:list", "dlq:read", "dlq:update", "dlq:stats", "work:lease"]);
        assert_eq!(permissions(&server, token.trim()).await, held);
        for wrong in ["role:", "role:Own", "roles:own", "role:own:x"] {
            let said = generate(config, wrong).await;
            assert_eq!(said.code, Some(2), "{wrong}: {said}");
        }
    }
    // Only who has the server's file knows which roles there are.
    let stray = generate(false, "role:absent").await.good();
    let said = generate(true, "role:absent").await;
    assert_eq!(said.code, Some(2), "{said}");
    assert!(said.err.contains("`role:absent` is no role"), "{said}");
    let value = format!("Bearer {}", stray.trim());
    let (status, _) = server.json("GET", "/v1/whoami", &[("authorization", &value)], None).await;
    assert_eq!(status, 401);

    let own = generate(true, "role:own").await.good();
    let validate = async |config: bool| {
        let mut command = server.cli();
        if config {
            command.arg("-c").arg(&file);
        }
        command.args(["auth", "validate-token", "--token", own.trim(), "--public-key"]);
        command.arg(&public);
        run(command).await.code
    };
    assert_eq!((validate(true).await, validate(false).await), (Some(0), Some(1)));
}

#[tokio::test]
async fn tk_52_show_permissions_lists_the_roles() {
    let server = Server::with(setup(OWN)).await;
    let find = |list: &Value, name: &str| {
        let roles = list["roles"].as_array().unwrap();
        roles.iter().find(|role| role["name"] == name).map(|role| role["permissions"].clone())
    };
    let built_in = server.run_json(&["auth", "show-permissions"]).await;
    assert_eq!(find(&built_in, "role:worker-service"), Some(json!(["work:lease"])));
    assert_eq!(find(&built_in, "role:superuser"), Some(json!(["*"])));
    assert_eq!(find(&built_in, "role:own"), None);
    let file = server.path("bailiwick.toml");
    let file = file.to_str().unwrap();
    let all = server.run_json(&["-c", file, "auth", "show-permissions"]).await;
    assert_eq!(find(&all, "role:own"), Some(json!(OWN_HOLDS)));
    assert_eq!(find(&all, "role:worker-service"), Some(json!(["work:lease"])));
    let table = server.run(&["-c", file, "auth", "show-permissions"]).await.good();
    for line in ["ROLE", "role:task-submitter", "role:own"] {
        assert!(table.lines().any(|known| known.starts_with(line)), "{table}");
    }
    assert!(table.contains(&OWN_HOLDS.join(", ")), "{table}");
}
