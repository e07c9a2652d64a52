//! Explained refusals at the front door (SE-41): what each asker learns of a
//! decision, and what nobody learns.

use serde_json::{Value, json};

use crate::{
    audit_api::found,
    harness::{Api, ROOT_KEY, Server, Setup, alone, credentials::Token},
    line::{DENIED, DEPLOY, LATER, THREE, Wire, write_private},
};

/// A call with a bearer; the status, the reply and the call's id.
async fn call(server: &Server, token: &str, verb: &str, path: &str) -> (u16, Value, String) {
    let verb = reqwest::Method::from_bytes(verb.as_bytes()).unwrap();
    let answer = server.rest(verb, path).bearer_auth(token).send().await.unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    (answer.status().as_u16(), answer.json().await.unwrap(), id)
}

async fn explain(server: &Server, token: &str, id: &str) -> (u16, Value) {
    let (status, body, _) = call(server, token, "GET", &format!("/v1/decisions/{id}")).await;
    (status, body)
}

/// A refused call's id.
async fn refused(server: &Server, token: &str, path: &str, status: u16) -> String {
    let (got, body, id) = call(server, token, "GET", path).await;
    assert_eq!(got, status, "{body}");
    assert_eq!(body["request_id"], json!(id), "the refusal says its id");
    id
}

fn in_shop(subject: &str, permissions: &[&str]) -> String {
    Token::new(subject, permissions).within(&["shop"]).sign()
}

#[tokio::test]
async fn se_41_a_403_is_explained_by_rest_grpc_and_the_command_line() {
    let server = Server::start().await;
    let ci = in_shop("ci", &["tasks:read"]);
    let id = refused(&server, &ci, "/v1/tasks", 403).await;
    let (status, told) = explain(&server, &ci, &id).await;
    assert_eq!(status, 200, "{told}");
    assert_eq!(told["outcome"], "denied");
    assert_eq!(told["reason"], "PERMISSION_MISSING");
    assert_eq!(told["rpc"], "bailiwick.v1.TaskService/ListTasks");
    assert_eq!(told["subject"]["subject"], "ci");
    assert_eq!(told["rule"]["kind"], "permission");
    assert_eq!(told["rule"]["permission"], "tasks:list");
    assert_eq!(told["rule"]["mode"], "filtered");
    assert_eq!(told["held"], json!([{"permissions": ["tasks:read"], "namespaces": ["shop"]}]));
    assert_eq!(told["suggestion"]["permission"], "tasks:list");
    assert_eq!(told["suggestion"]["namespaces"], json!(["shop"]));
    assert_eq!(told["suggestion"]["text"], "add `tasks:list` in `shop`");
    let issuer = &told["granters"][0];
    assert_eq!(issuer["kind"], "issuer", "{told}");
    assert!(issuer["text"].as_str().unwrap().contains("by the claim `permissions`"), "{told}");
    // Others' credentials are not the caller's business.
    assert!(!told.to_string().contains("root of the tests"), "{told}");

    let bearer = format!("Bearer {ci}");
    let grpc = server
        .grpc(
            "AccessService/ExplainDecision",
            json!({"request_id": id}),
            &[("authorization", bearer.as_str())],
        )
        .await;
    assert!(grpc.is_ok(), "{grpc:?}");

    let url = server.grpc_url();
    let as_ci = ["--url", &url, "--token", &ci];
    let list = alone(&[&["task", "list"], &as_ci[..]].concat()).await;
    assert_eq!(list.code, Some(1), "{list}");
    let hint = list.err.split("why-denied ").nth(1).unwrap().get(..36).unwrap().to_owned();
    let said = alone(&[&["auth", "why-denied", &hint], &as_ci[..]].concat()).await.good();
    assert!(said.contains("add `tasks:list` in `shop`"), "{said}");
    let words = [&["auth", "why-denied", &hint, "--format", "json"], &as_ci[..]].concat();
    assert_eq!(alone(&words).await.json()["suggestion"]["namespaces"], json!(["shop"]));
}

#[tokio::test]
async fn se_41_decisions_of_others_are_absent_like_those_that_never_were() {
    let server = Server::start().await;
    let (ci, eve) = (in_shop("ci", &["tasks:read"]), in_shop("eve", &["tasks:*", "steps:*"]));
    let auditor = in_shop("auditor", &["audit:read"]);
    let elsewhere = Token::new("elsewhere", &["audit:read"]).within(&["till"]).sign();
    let id = refused(&server, &ci, "/v1/tasks", 403).await;
    let never = "3b241101-e2bb-4255-8caf-4136c566a962";
    for asker in [&eve, &elsewhere] {
        let plain = async |id: &str| {
            let path = format!("/v1/decisions/{id}");
            let (status, body, own) = call(&server, asker, "GET", &path).await;
            format!("{status} {body}").replace(id, "ID").replace(&own, "OWN")
        };
        let foreign = plain(&id).await;
        assert_eq!(foreign, plain(never).await);
        assert!(foreign.starts_with("404"), "{foreign}");
    }
    for asker in [&auditor, &ROOT_KEY.to_owned()] {
        let (status, told) = explain(&server, asker, &id).await;
        assert_eq!((status, &told["complete"]), (200, &json!(true)), "{told}");
        assert!(told.to_string().contains("root of the tests"), "who may know is told: {told}");
    }
    for odd in ["x", "3B241101-E2BB-4255-8CAF-4136C566A962", "%00"] {
        assert_eq!(explain(&server, &ci, odd).await.0, 404, "{odd}");
    }
}

#[tokio::test]
async fn se_41_of_a_hidden_object_its_caller_learns_what_the_reply_said() {
    let server = Server::start().await.with_template().await;
    let task = server.order(json!({})).await;
    let stranger = Token::new("stranger", &["tasks:read"]).within(&["till"]).sign();
    let never = "01890a5d-ac96-774b-bcce-b302099a8057";
    let hidden = refused(&server, &stranger, &format!("/v1/tasks/{task}"), 404).await;
    let absent = refused(&server, &stranger, &format!("/v1/tasks/{never}"), 404).await;
    let plain = |told: Value, id: &str, object: &str| {
        let mut told = told;
        told["decided_at"] = Value::Null;
        told.to_string().replace(id, "ID").replace(object, "OBJECT")
    };
    let (status, of_hidden) = explain(&server, &stranger, &hidden).await;
    assert_eq!(status, 200, "{of_hidden}");
    assert_eq!(of_hidden["rule"]["kind"], "not_found_or_hidden");
    assert_eq!(of_hidden["complete"], false);
    assert!(of_hidden.get("suggestion").is_none(), "{of_hidden}");
    let (_, of_absent) = explain(&server, &stranger, &absent).await;
    assert_eq!(plain(of_hidden, &hidden, &task), plain(of_absent, &absent, never));

    // Who may read the audit of both the caller and the task learns all.
    let auditor = Token::new("auditor", &["audit:read"]).within(&["shop", "till"]).sign();
    let (_, told) = explain(&server, &auditor, &hidden).await;
    assert_eq!(told["rule"]["kind"], "namespace", "{told}");
    assert_eq!(told["suggestion"]["text"], "add `tasks:read` in `shop`", "{told}");
    assert_eq!(told["complete"], true);
    let (_, told) = explain(&server, &auditor, &absent).await;
    assert_eq!(told["rule"]["kind"], "not_found_or_hidden", "{told}");
    let (_, told) = explain(&server, ROOT_KEY, &absent).await;
    assert_eq!(told["rule"]["kind"], "not_found", "{told}");
    // The caller's own audit is not that of the task.
    let near = Token::new("near", &["audit:read"]).within(&["till"]).sign();
    let (_, told) = explain(&server, &near, &hidden).await;
    assert_eq!(told["rule"]["kind"], "not_found_or_hidden", "{told}");
    assert!(!told.to_string().contains("shop"), "{told}");
}

#[tokio::test]
async fn se_41_a_namespace_outside_and_root_are_told_apart_for_those_who_may_know() {
    let server = Server::start().await;
    let ci = in_shop("ci", &["templates:read"]);
    let path = "/v1/templates/till/order/1.0.0";
    let (status, body, id) = call(&server, &ci, "GET", path).await;
    assert_eq!((status, &body["reason"]), (404, &json!("NAMESPACE_NOT_FOUND")), "{body}");
    let (_, own) = explain(&server, &ci, &id).await;
    assert_eq!(own["rule"]["kind"], "not_found_or_hidden", "{own}");
    let (_, told) = explain(&server, ROOT_KEY, &id).await;
    assert_eq!(told["suggestion"]["text"], "add `templates:read` in `till`", "{told}");
    let id = refused(&server, &ci, "/v1/auth/tokens", 403).await;
    let (_, told) = explain(&server, &ci, &id).await;
    assert_eq!(told["rule"]["kind"], "root", "{told}");
    assert!(told.get("suggestion").is_none(), "no grant helps: {told}");
}

#[tokio::test]
async fn se_41_a_refused_credential_is_explained_to_auditors_of_the_server_alone() {
    let server = Server::start().await;
    let old = Token::new("old", &["tasks:list"]).claim("exp", json!(1_700_000_000)).sign();
    let id = refused(&server, &old, "/v1/tasks", 401).await;
    assert_eq!(explain(&server, &in_shop("auditor", &["audit:read"]), &id).await.0, 404);
    let (status, told) = explain(&server, ROOT_KEY, &id).await;
    assert_eq!((status, &told["rule"]["kind"]), (200, &json!("credential")), "{told}");
    assert!(told["summary"].as_str().unwrap().contains("expired"), "{told}");
    assert!(told.get("subject").is_none(), "nobody is known: {told}");
}

#[tokio::test]
async fn se_41_what_was_allowed_is_explained_too_and_after_a_restart_from_the_audit() {
    let server = Server::start().await;
    let api = Api::root(&server).await;
    api.register(&crate::harness::api::one("only")).await;
    let ci = in_shop("ci", &["templates:read"]);
    let (status, _, id) = call(&server, &ci, "GET", "/v1/templates").await;
    assert_eq!(status, 200);
    let (_, told) = explain(&server, &ci, &id).await;
    assert_eq!(
        (&told["outcome"], &told["rule"]["kind"]),
        (&json!("allowed"), &json!("permission"))
    );
    let denied = refused(&server, ROOT_KEY, "/v1/tasks/01890a5d-ac96-774b-bcce-b302099a8057", 404);
    let denied = denied.await;
    // The journal gathers for a moment.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let server = server.again().await;
    let (status, told) = explain(&server, &ci, &id).await;
    assert_eq!((status, &told["outcome"]), (200, &json!("allowed")), "{told}");
    let (status, told) = explain(&server, ROOT_KEY, &denied).await;
    assert_eq!((status, &told["reason"]), (200, &json!("NOT_FOUND")), "{told}");
    assert_eq!(told["held_now"], true);
    let other = in_shop("other", &["templates:read"]);
    assert_eq!(explain(&server, &other, &id).await.0, 404);
}

#[tokio::test]
async fn se_41_who_can_lists_who_could_for_auditors_of_the_namespace() {
    let server = Server::start().await;
    let path = "/v1/who-can?permission=tasks:read&namespace=shop";
    let auditor = in_shop("auditor", &["audit:read"]);
    let (status, who, _) = call(&server, &auditor, "GET", path).await;
    assert_eq!(status, 200, "{who}");
    let names: Vec<&str> = who["credentials"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(names, ["reader of the tests", "root of the tests", "bailiwick"], "{who}");
    assert!(who["roles"].to_string().contains("role:task-submitter"), "{who}");
    assert!(!who.to_string().contains(ROOT_KEY));
    let (_, who, _) =
        call(&server, &auditor, "GET", "/v1/who-can?permission=tasks:create&namespace=shop").await;
    assert_eq!(who["credentials"][0]["name"], "root of the tests", "{who}");
    let till = "/v1/who-can?permission=tasks:read&namespace=till";
    assert_eq!(call(&server, &auditor, "GET", till).await.0, 404);
    let plain = in_shop("ci", &["tasks:read"]);
    assert_eq!(call(&server, &plain, "GET", path).await.0, 403);
    let shown = server.run(&["auth", "who-can", "tasks:read", "shop"]).await.good();
    assert!(shown.contains("reader of the tests"), "{shown}");
}

#[tokio::test]
async fn se_41_can_i_asks_for_somebody_else_with_audit_read_alone() {
    let server = Server::start().await;
    let ci = in_shop("ci", &["tasks:read"]);
    assert_eq!(call(&server, &ci, "GET", "/v1/whoami").await.0, 200);
    let ask = async |words: &[&str]| server.run(&[&["auth", "can-i"], words].concat()).await;
    let reader = "config:reader of the tests";
    let yes = ask(&["tasks:read", "shop", "--as", reader]).await;
    assert_eq!(yes.code, Some(0), "{yes}");
    let no = ask(&["tasks:create", "shop", "--as", reader]).await;
    assert_eq!(no.code, Some(1), "{no}");
    // The journal gathers for a moment.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let seen = ask(&["tasks:read", "shop", "--as", "idp:bailiwick#ci"]).await;
    assert!(seen.code == Some(0) && seen.out.contains("token of"), "{seen}");
    for name in ["idp:bailiwick#nobody", ""] {
        let never = ask(&["tasks:read", "shop", "--as", name]).await;
        assert!(never.code == Some(1) && never.err.contains("not found"), "{never}");
    }

    let url = server.grpc_url();
    for (token, wanted) in
        [(&ci, "audit:read"), (&in_shop("a", &["audit:read"]), "not found: till")]
    {
        let words = ["auth", "can-i", "tasks:read", "till", "--as", reader];
        let refused = alone(&[&words[..], &["--url", &url, "--token", token]].concat()).await;
        assert_eq!(refused.code, Some(1), "{refused}");
        assert!(refused.err.contains(wanted), "{refused}");
    }
}

#[tokio::test]
async fn se_41_a_replay_names_who_would_lose_what_and_ends_with_1() {
    let server = Server::start().await.with_template().await;
    let ci = in_shop("ci", &["tasks:list", "tasks:read"]);
    assert_eq!(call(&server, &ci, "GET", "/v1/tasks").await.0, 200);
    assert_eq!(call(&server, &ci, "GET", "/v1/templates").await.0, 403);
    let body = json!({"name": "k", "scopes": ["tasks:list"], "namespaces": ["shop"]});
    let (status, key) = server.as_root("POST", "/v1/api-keys", Some(body)).await;
    assert_eq!(status, 201, "{key}");
    let made = key["id"].as_str().unwrap().to_owned();
    let key = key["key"].as_str().unwrap_or_else(|| panic!("{key}")).to_owned();
    let body = json!({"scope": "tasks:list",
                      "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange"});
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let (status, given) = server.json("POST", "/v1/auth/token", &headers, Some(body)).await;
    assert_eq!(status, 200, "{given}");
    let given = given["access_token"].as_str().unwrap().to_owned();
    let (_, me, _) = call(&server, &given, "GET", "/v1/whoami").await;
    let traded = me["subject"].as_str().unwrap_or_else(|| panic!("{me}")).to_owned();
    for credential in [&key, &given] {
        assert_eq!(call(&server, credential, "GET", "/v1/tasks").await.0, 200);
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let config = |change: &dyn Fn(String) -> String| {
        let text = std::fs::read_to_string(server.path("bailiwick.toml")).unwrap();
        let path = server.path("new.toml");
        std::fs::write(&path, change(text)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let replay = async |path: &str| {
        let words = ["auth", "replay", "--config", path, "--since", "1h", "--format", "json"];
        server.run(&words).await
    };
    let same = replay(&config(&|text| text)).await;
    assert_eq!(same.code, Some(0), "{same}");
    let key = "jwt_issuer = ";
    // Where keys that were given out are not taken, theirs is lost.
    let off = |text: String| text.replace(key, &format!("api_keys_enabled = false\n{key}"));
    let lost = replay(&config(&off)).await;
    assert_eq!(lost.code, Some(1), "{lost}");
    let told: Value = serde_json::from_str(&lost.out).unwrap();
    for id in [&made, &traded] {
        let changes = told["changes"].as_array().unwrap();
        let of = changes.iter().find(|one| {
            one["identity"] == json!(format!("database:{id}")) && one["what"] == "tasks:list"
        });
        let of = of.unwrap_or_else(|| panic!("{id}: {told}"));
        assert_eq!(of["change"], "lost", "{told}");
        assert!(of["why"].as_str().unwrap().contains("api_keys_enabled"), "{told}");
    }
    let cut = |text: String| text.replace(key, &format!("permissions_claim = \"roles\"\n{key}"));
    let lost = replay(&config(&cut)).await;
    assert_eq!(lost.code, Some(1), "{lost}");
    let told: Value = serde_json::from_str(&lost.out).unwrap();
    let changes = told["changes"].as_array().unwrap();
    let of_ci = changes.iter().find(|one| one["identity"] == "idp:bailiwick#ci").unwrap();
    assert_eq!(
        (&of_ci["change"], &of_ci["what"]),
        (&json!("lost"), &json!("tasks:list")),
        "{told}"
    );
}

#[tokio::test]
async fn se_41_a_small_auditor_learns_of_nobody_who_holds_nothing_there() {
    let server = Server::start().await;
    let body =
        |name: &str, at: &[&str]| json!({"name": name, "scopes": ["tasks:read"], "namespaces": at});
    let make = async |name: &str, at: &[&str]| {
        let (status, made) = server.as_root("POST", "/v1/api-keys", Some(body(name, at))).await;
        assert_eq!(status, 201, "{made}");
        made["id"].as_str().unwrap().to_owned()
    };
    let (bank, both) = (make("bank", &["bank.core"]).await, make("both", &["bank", "shop"]).await);
    let auditor = Token::new("auditor", &["audit:read"]).within(&["shop"]).sign();
    let bearer = format!("Bearer {auditor}");
    let ask = async |subject: &str| {
        let body = json!({
            "actions": [{"permission": "tasks:read", "namespace": "shop"}],
            "as_subject": subject,
        });
        let (status, answer) =
            server.json("POST", "/v1/can-i", &[("authorization", &bearer)], Some(body)).await;
        (status, answer["message"].as_str().unwrap_or_default().replace(subject, "ID"))
    };
    assert_eq!(ask(&both).await.0, 200);
    let (status, hidden) = ask(&bank).await;
    assert_eq!((status, &hidden), (404, &ask("000000000000").await.1), "as one that never was");
    let (status, who) = server
        .json(
            "GET",
            "/v1/who-can?permission=tasks:read&namespace=shop",
            &[("authorization", &bearer)],
            None,
        )
        .await;
    assert_eq!(status, 200, "{who}");
    assert!(who.to_string().contains("both") && !who.to_string().contains("bank"), "{who}");
}

/// A refused call with a body: its reason, its id and what its caller is told
/// about it.
async fn told_of(server: &Server, token: &str, line: &str, body: Value) -> (Value, String, Value) {
    let (verb, path) = line.split_once(' ').unwrap();
    let verb = reqwest::Method::from_bytes(verb.as_bytes()).unwrap();
    let answer = server.rest(verb, path).bearer_auth(token).json(&body).send().await.unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let (status, said): (u16, Value) = (answer.status().as_u16(), answer.json().await.unwrap());
    assert!(status == 403 || status == 404, "{status} {said}");
    let (status, told) = explain(server, token, &id).await;
    assert_eq!(status, 200, "{told}");
    (said["reason"].clone(), id, told)
}

/// With shell runners and tokens for steps.
fn wide() -> Setup {
    let mut setup = Setup::steady();
    setup.server = format!("public_url = \"http://127.0.0.1:{}\"", setup.ports[1]);
    setup.rest = "[[auth.namespaces]]\nprefix = \"shop\"\nceiling = [\"tasks:*\"]\n\
                  [scheduler]\nrunners = [\"task\", \"shell\"]\nrun_as = \"self\"\n"
        .to_owned();
    setup
}

#[tokio::test]
async fn se_41_a_permission_that_the_rpc_does_not_name_is_the_one_that_is_missing() {
    let server = Server::with(wide()).await;
    let shell = json!({"pattern": "shop.", "runner": {"type": "shell", "command": "true"}});
    let task = json!({"pattern": "shop.",
                      "runner": {"type": "task", "template": "shop/order"}});
    let key = json!({"name": "k", "scopes": ["tasks:read"], "namespaces": ["shop"]});
    let template = json!({"namespace": "shop",
        "definition": "name: a\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n  - name: only\n    \
                       handler: {callable: work}\n    permissions: [tasks:cancel]\n"});
    for (own, line, body, wanted, place) in [
        ("rules:write", "PUT /v1/rules/shop.r", shell, "commands:execute", "shop."),
        ("rules:write", "PUT /v1/rules/shop.r", task, "tasks:create", "shop"),
        ("api_keys:admin", "POST /v1/api-keys", key, "tasks:read", "shop"),
        ("templates:register", "POST /v1/templates", template, "tasks:cancel", "shop"),
    ] {
        let places = ["shop", "shop."];
        let held = Token::new("ada", &[own]).within(&places).sign();
        let (reason, id, told) = told_of(&server, &held, line, body.clone()).await;
        assert_eq!(reason, "PERMISSION_MISSING");
        assert_eq!(told["rule"]["permission"], wanted, "{told}");
        assert_eq!(told["rule"]["kind"], "permission", "{told}");
        let summary = told["summary"].as_str().unwrap();
        assert!(summary.contains(&format!("does not hold `{wanted}`")), "{told}");
        assert_eq!(told["suggestion"]["permission"], wanted, "{told}");
        assert_eq!(told["suggestion"]["namespaces"], json!([place]), "{told}");

        // It is in the record, too, and what is proposed helps.
        let records = found(&server, &["--permission", wanted, "--outcome", "denied"]).await;
        let record = records.as_array().unwrap().iter().find(|one| one["request_id"] == id);
        let record = record.unwrap();
        assert_eq!(record["asked"], json!([place]), "{record}");
        assert_eq!(record["record"]["asked"], json!([place]), "{record}");
        let given = Token::new("ada", &[own, wanted]).within(&places).sign();
        let (verb, path) = line.split_once(' ').unwrap();
        let bearer = format!("Bearer {given}");
        let answer = server.json(verb, path, &[("authorization", &bearer)], Some(body)).await;
        assert!(answer.0 < 300, "{answer:?}");
    }
}

#[tokio::test]
async fn se_41_a_rule_for_tasks_of_another_namespace_lacks_tasks_create_there() {
    let server = Server::with(wide()).await;
    let ada = Token::new("ada", &["rules:write", "tasks:create"]).within(&["till", "till."]).sign();
    let task = json!({"pattern": "till.", "runner": {"type": "task", "template": "shop/order"}});
    let (reason, id, own) = told_of(&server, &ada, "PUT /v1/rules/till.r", task.clone()).await;
    assert_eq!(reason, "NAMESPACE_NOT_FOUND");
    assert_eq!(own["rule"]["kind"], "not_found_or_hidden", "{own}");
    let (_, told) = explain(&server, ROOT_KEY, &id).await;
    assert_eq!(told["rule"]["kind"], "namespace", "{told}");
    assert_eq!(told["rule"]["permission"], "tasks:create", "{told}");
    assert_eq!(told["suggestion"]["text"], "add `tasks:create` in `shop`", "{told}");
    assert_eq!(told["object"], "till.r", "{told}");

    // So it is with a pattern that reaches further than the name.
    let mut wider = task;
    wider["pattern"] = json!("bank.");
    let (_, id, _) = told_of(&server, &ada, "PUT /v1/rules/till.r", wider).await;
    let (_, told) = explain(&server, ROOT_KEY, &id).await;
    assert_eq!(told["suggestion"]["text"], "add `rules:write` in `bank.`", "{told}");
}

#[tokio::test]
async fn se_41_what_no_single_permission_would_mend_is_said_to_be_too_much() {
    let server = Server::start().await;
    let ada = in_shop("ada", &["api_keys:admin", "tasks:read"]);
    let all = json!({"name": "k", "full_access": true, "namespaces": ["shop"]});
    let key = json!({"name": "k", "scopes": ["tasks:read"], "namespaces": ["shop"]});
    let (status, key) = server.as_root("POST", "/v1/api-keys", Some(key)).await;
    assert_eq!(status, 201, "{key}");
    let trade = json!({"scope": "tasks:create",
                       "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange"});
    for (token, line, body) in [
        (&*ada, "POST /v1/api-keys", all),
        (key["key"].as_str().unwrap(), "POST /v1/auth/token", trade),
    ] {
        let (reason, _, told) = told_of(&server, token, line, body).await;
        assert_eq!(reason, "PERMISSION_MISSING");
        let summary = told["summary"].as_str().unwrap();
        assert!(summary.starts_with("what was asked for is more than"), "{told}");
        assert!(told["rule"].get("permission").is_none(), "{told}");
        assert!(told.get("suggestion").is_none(), "{told}");
    }
}

#[tokio::test]
async fn se_41_a_namespace_outside_is_explained_after_a_restart_and_found_by_its_name() {
    let server = Server::with(Setup::steady()).await;
    let ci = in_shop("ci", &["templates:read", "schedules:write"]);
    let path = "/v1/templates/till/order/1.0.0";
    let (_, _, template) = call(&server, &ci, "GET", path).await;
    let plan = json!({"execution": "2099-04-01T12:00:00Z"});
    let (reason, job, _) = told_of(&server, &ci, "PUT /v1/jobs/till.nightly", plan).await;
    assert_eq!(reason, "NAMESPACE_NOT_FOUND");
    let records = found(&server, &["--namespace", "till", "--outcome", "denied"]).await;
    let records = records.as_array().unwrap();
    let of = |id: &str| records.iter().find(|one| one["request_id"] == id).unwrap();
    assert_eq!((&of(&job)["object"], &of(&job)["chain"]), (&json!("till.nightly"), &json!("shop")));
    assert_eq!(of(&template)["object"], "order");
    // Who may not read the caller's chain finds nothing of it.
    for (at, wanted) in [("till", 0), ("shop", 2)] {
        let reader = Token::new("reader", &["audit:read"]).within(&[at]).sign();
        let path = "/v1/audit/records?namespace=till&outcome=denied";
        let (status, seen, _) = call(&server, &reader, "GET", path).await;
        assert_eq!((status, seen["records"].as_array().unwrap().len()), (200, wanted), "{seen}");
    }

    let server = server.again_gently().await;
    let (status, told) = explain(&server, ROOT_KEY, &template).await;
    assert_eq!((status, &told["rule"]["kind"]), (200, &json!("namespace")), "{told}");
    assert_eq!(told["suggestion"]["text"], "add `templates:read` in `till`", "{told}");
    assert!(told["held"].to_string().contains("templates:read"), "{told}");
    let (_, told) = explain(&server, ROOT_KEY, &job).await;
    assert_eq!(told["suggestion"]["text"], "add `schedules:write` in `till.nightly`", "{told}");
    assert_eq!(told["object"], "till.nightly", "{told}");
    let (_, own) = explain(&server, &ci, &template).await;
    assert_eq!(own["rule"]["kind"], "not_found_or_hidden", "{own}");
}

#[tokio::test]
async fn se_41_a_refusal_of_the_line_protocol_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("auth.toml");
    write_private(&file, THREE);
    let path = file.display();
    let mut setup = Setup::steady();
    setup.rest = format!("[controller]\nlisten = \"127.0.0.1:0\"\nauth_file = \"{path}\"\n");
    let server = Server::with(setup).await;
    let serving = server.logged("serving", &[]).await;
    let at = serving["controller"].as_str().unwrap().to_owned();
    let mut wire = Wire::new(tokio::net::TcpStream::connect(at).await.unwrap());
    assert_eq!(wire.ask(&format!("AUTH {DEPLOY}")).await, "OK\n");
    for sent in ["SET backup.x", "SCHEDULE backup.x every 1h AT"] {
        assert_eq!(wire.ask(&format!("r1 {sent} {LATER}")).await, DENIED, "{sent}");
    }
    let rule = "RULE SET backup.r backup. http POST https://hooks.example/x";
    assert_eq!(wire.ask(&format!("r1 {rule}")).await, DENIED);
    let mut ids = Vec::new();
    for (rpc, permission, object) in [
        ("SET", "schedules:write", "backup.x"),
        ("SCHEDULE", "schedules:write", "backup.x"),
        ("RULE SET", "rules:write", "backup.r"),
    ] {
        let records = found(&server, &["--rpc", rpc, "--outcome", "denied"]).await;
        assert_eq!(records.as_array().unwrap().len(), 1, "{records}");
        let record = &records[0];
        assert_eq!(record["reason"], "NAMESPACE_NOT_FOUND", "{record}");
        assert_eq!(record["object"], object, "{record}");
        ids.push((record["request_id"].as_str().unwrap().to_owned(), permission, object));
    }
    let explained = async |server: &Server| {
        for (id, permission, object) in &ids {
            let (status, told) = explain(server, ROOT_KEY, id).await;
            assert_eq!((status, &told["rule"]["kind"]), (200, &json!("namespace")), "{told}");
            let text = format!("add `{permission}` in `{object}`");
            assert_eq!(told["suggestion"]["text"], text, "{told}");
        }
    };
    explained(&server).await;
    explained(&server.again_gently().await).await;
}
