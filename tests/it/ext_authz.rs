//! Envoy's external authorization over gRPC (SE-42).

use std::collections::{BTreeSet, HashMap};

use bailiwick::pb::envoy::service::auth::v3::{
    self as envoy, authorization_client::AuthorizationClient, check_response::HttpResponse,
};
use serde_json::{Value, json};
use tonic::{Code, Request, transport::Channel};

use crate::harness::{
    Envoy, Server, Setup,
    credentials::{ROOT_KEY, Token},
    http,
};

async fn server(limits: &str) -> Server {
    let rest = format!("extra_permissions = [\"bundles:read\"]\n[limits]\n{limits}\n");
    Server::with(Setup { rest, ..Setup::steady() }).await
}

/// A request as a proxy shows it.
struct Shown {
    path: &'static str,
    headers: Vec<(&'static str, String)>,
    extensions: Vec<(&'static str, &'static str)>,
}

impl Shown {
    fn bearer(token: &str) -> Self {
        Self {
            path: "/bundles/1?full=yes",
            headers: vec![("authorization", format!("Bearer {token}"))],
            extensions: vec![("permission", "bundles:read"), ("namespace", "shop")],
        }
    }

    fn request(&self) -> envoy::CheckRequest {
        let own = |(name, value): &(&str, String)| ((*name).to_owned(), value.clone());
        let http = envoy::attribute_context::HttpRequest {
            method: "GET".into(),
            headers: self.headers.iter().map(own).collect(),
            path: self.path.into(),
        };
        let extensions = self.extensions.iter();
        envoy::CheckRequest {
            attributes: Some(envoy::AttributeContext {
                source: None,
                request: Some(envoy::attribute_context::Request { http: Some(http) }),
                context_extensions: extensions
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
            }),
        }
    }
}

/// As a proxy with this credential.
async fn try_check(
    server: &Server,
    credential: &str,
    shown: &Shown,
) -> Result<envoy::CheckResponse, tonic::Status> {
    let channel = Channel::from_shared(server.grpc_url()).unwrap().connect().await.unwrap();
    let mut request = Request::new(shown.request());
    let bearer = format!("Bearer {credential}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    AuthorizationClient::new(channel).check(request).await.map(tonic::Response::into_inner)
}

async fn check(server: &Server, shown: &Shown) -> envoy::CheckResponse {
    let proxy = Token::new("proxy", &["tokens:introspect"]).sign();
    try_check(server, &proxy, shown).await.unwrap()
}

/// The status, the headers and the body of a refusal.
fn denied(answer: envoy::CheckResponse) -> (i32, HashMap<String, String>, Value) {
    assert_ne!(answer.status.unwrap().code, 0);
    let Some(HttpResponse::DeniedResponse(denied)) = answer.http_response else {
        panic!("not denied")
    };
    let headers = denied.headers.into_iter().map(|option| {
        let header = option.header.unwrap();
        (header.key, header.value)
    });
    let body = serde_json::from_str(&denied.body).unwrap();
    (denied.status.unwrap().code, headers.collect(), body)
}

#[tokio::test]
async fn se_42_a_request_that_may_goes_on_with_our_headers_alone() {
    let server = server("").await;
    let token = Token::new("alice", &["bundles:read"]).within(&["shop", "lab."]).sign();
    let mut shown = Shown::bearer(&token);
    for forged in ["x-bailiwick-subject", "x-bailiwick-root", "X-Bailiwick-Role", "x_bailiwick_a"] {
        shown.headers.push((forged, "forged".to_owned()));
    }
    shown.headers.push(("x-other", "stays".to_owned()));
    let answer = check(&server, &shown).await;
    assert_eq!(answer.status.unwrap().code, 0);
    let Some(HttpResponse::OkResponse(ok)) = answer.http_response else { panic!("not allowed") };
    let mut set = HashMap::new();
    for option in ok.headers {
        // In the place of all that came.
        assert_eq!((option.append, option.append_action), (None, 2));
        let header = option.header.unwrap();
        set.insert(header.key, header.value);
    }
    assert_eq!(set["x-bailiwick-subject"], "alice");
    assert_eq!(set["x-bailiwick-namespaces"], "shop,lab.");
    assert_eq!(set["x-bailiwick-source"], "idp");
    assert_eq!(set["x-bailiwick-credential"].len(), 12);
    let removed: BTreeSet<&str> = ok.headers_to_remove.iter().map(String::as_str).collect();
    let wanted = ["x-bailiwick-root", "X-Bailiwick-Role", "x_bailiwick_a"];
    assert_eq!(removed, BTreeSet::from(wanted), "a proxy takes out after it has set");
}

#[tokio::test]
async fn se_42_who_may_not_is_told_so() {
    let server = server("").await;
    let good = Token::new("alice", &["bundles:read"]).within(&["shop"]).sign();
    let mut anonymous = Shown::bearer("");
    anonymous.headers.clear();
    let mut twice = Shown::bearer(&good);
    twice.headers[0].1 = format!("Bearer {good},Bearer {good}");
    for (shown, challenge, reason) in [
        (anonymous, "Bearer", "CREDENTIALS_MISSING"),
        (Shown::bearer("garbage"), "Bearer error=\"invalid_token\"", "CREDENTIALS_INVALID"),
        (twice, "Bearer error=\"invalid_token\"", "CREDENTIALS_AMBIGUOUS"),
    ] {
        let (status, headers, body) = denied(check(&server, &shown).await);
        assert_eq!((status, &body["reason"]), (401, &json!(reason)));
        assert_eq!(headers["www-authenticate"], challenge);
    }
    let mut elsewhere = Shown::bearer(&good);
    elsewhere.extensions = vec![("permission", "bundles:read"), ("namespace", "bank")];
    let mut other = Shown::bearer(&good);
    other.extensions = vec![("permission", "tasks:read"), ("namespace", "shop")];
    let mut unknown = Shown::bearer(&good);
    unknown.extensions = vec![("permission", "*"), ("namespace", "shop")];
    let mut nothing = Shown::bearer(&good);
    nothing.extensions.clear();
    let mut open = Shown::bearer(&good);
    open.extensions = vec![("permission", "bundles:read"), ("namespace", "sh op")];
    for shown in [elsewhere, other, unknown, nothing, open] {
        let (status, headers, body) = denied(check(&server, &shown).await);
        assert_eq!((status, &body["reason"]), (403, &json!("PERMISSION_MISSING")), "{body}");
        assert!(!headers.contains_key("www-authenticate"));
    }
    let mut key = Shown::bearer("");
    key.headers = vec![("x-api-key", ROOT_KEY.to_owned())];
    assert_eq!(check(&server, &key).await.status.unwrap().code, 0);
}

#[tokio::test]
async fn se_14_a_bearer_that_cannot_be_read_is_no_leave_for_another_credential() {
    let server = server("").await;
    for bearer in ["Bearer \u{e9}", "Bearer a\u{1}b"] {
        let key = ("x-api-key", ROOT_KEY.to_owned());
        let headers = vec![("authorization", bearer.to_owned()), key];
        let shown = Shown { headers, ..Shown::bearer("") };
        let answer = check(&server, &shown).await;
        assert_ne!(answer.status.unwrap().code, 0, "{bearer:?}");
    }
}

#[tokio::test]
async fn se_42_paths_that_are_not_normal_go_nowhere() {
    let server = server("").await;
    let good = Token::new("alice", &["bundles:read"]).within(&["shop"]).sign();
    for path in ["//bundles", "/a/../b", "/%2e%2e/b", "/a%2fb", "/a\\b", "/\u{e9}", "bundles", ""] {
        let shown = Shown { path, ..Shown::bearer(&good) };
        let (status, _, body) = denied(check(&server, &shown).await);
        assert_eq!((status, &body["reason"]), (400, &json!("REQUEST_MALFORMED")), "{path}");
    }
}

#[tokio::test]
async fn se_42_proxies_need_leave_and_strangers_shut_out_nobody() {
    let server = server("failed_introspections_per_minute = 2").await;
    let good = Token::new("alice", &["bundles:read"]).within(&["shop"]).sign();
    for (permissions, namespaces) in [
        (&["tasks:*", "bundles:read"], None),
        (&["tokens:introspect", "bundles:read"], Some("shop")),
    ] {
        let proxy = Token::new("p", permissions);
        let proxy = match namespaces {
            Some(namespace) => proxy.within(&[namespace]),
            None => proxy,
        };
        let answer = try_check(&server, &proxy.sign(), &Shown::bearer(&good)).await;
        assert_eq!(answer.unwrap_err().code(), Code::PermissionDenied);
    }
    let garbage = try_check(&server, "garbage", &Shown::bearer(&good)).await;
    assert_eq!(garbage.unwrap_err().code(), Code::Unauthenticated);
    for wanted in [401, 401, 429, 429] {
        let (status, headers, _) = denied(check(&server, &Shown::bearer("garbage")).await);
        assert_eq!(status, wanted);
        assert_eq!(headers.contains_key("retry-after"), wanted == 429);
    }
    let answer = check(&server, &Shown::bearer(&good)).await;
    assert_eq!(answer.status.unwrap().code, 0, "a good client goes on");
}

#[tokio::test]
async fn se_42_nothing_that_is_missing_or_broken_goes_on_or_leaks() {
    let server = server("").await;
    let good = Token::new("alice", &["bundles:read"]).within(&["shop"]).sign();
    let proxy = Token::new("proxy", &["tokens:introspect"]).sign();
    let whole = Shown::bearer(&good).request();
    let mut no_http = whole.clone();
    no_http.attributes.as_mut().unwrap().request.as_mut().unwrap().http = None;
    let mut no_request = whole.clone();
    no_request.attributes.as_mut().unwrap().request = None;
    for request in [envoy::CheckRequest::default(), no_http, no_request] {
        let channel = Channel::from_shared(server.grpc_url()).unwrap().connect().await.unwrap();
        let mut request = Request::new(request);
        let bearer = format!("Bearer {proxy}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let answer = AuthorizationClient::new(channel).check(request).await.unwrap();
        assert_eq!(denied(answer.into_inner()).0, 400);
    }
    // A bearer that is none, and two ways at once.
    for headers in [
        vec![("authorization", "Basic YWxpY2U6eA==".to_owned())],
        vec![("authorization", "Bearer".to_owned())],
        vec![("authorization", "Bearer garbage".to_owned()), ("x-api-key", ROOT_KEY.to_owned())],
        vec![("Authorization", format!("Bearer {good}")), ("authorization", "x".to_owned())],
    ] {
        let shown = Shown { headers, ..Shown::bearer("") };
        let (status, _, body) = denied(check(&server, &shown).await);
        assert_eq!(status, 401, "{body}");
    }
    // No answer and no log line has what was shown.
    let elsewhere = Token::new("alice", &["bundles:read"]).within(&["bank"]).sign();
    for (token, wanted) in [(&elsewhere, 403), (&"garbage-garbage".to_owned(), 401)] {
        let answer = check(&server, &Shown::bearer(token)).await;
        assert!(!format!("{answer:?}").contains(token.as_str()));
        let (status, _, body) = denied(answer);
        assert_eq!(status, wanted);
        assert!(!body.to_string().contains("bank"), "not what it holds elsewhere: {body}");
    }
    let log = server.process.err.all().join("\n");
    for secret in [good.as_str(), elsewhere.as_str(), "garbage-garbage", ROOT_KEY] {
        assert!(!log.contains(secret));
    }
}

#[tokio::test]
async fn se_42_se_44_records_say_whom_a_proxy_was_told_about() {
    let server = server("").await;
    let good = Token::new("alice", &["bundles:read"]).within(&["shop"]).sign();
    let mut elsewhere = Shown::bearer(&good);
    elsewhere.extensions = vec![("permission", "bundles:read"), ("namespace", "bank")];
    let mut route = Shown::bearer(&good);
    route.extensions = vec![("permission", "bundles:read"), ("namespace", "sh op")];
    let mut anonymous = Shown::bearer("");
    anonymous.headers.clear();
    let crooked = Shown { path: "//", ..Shown::bearer(&good) };
    for (shown, subject, active, verdict) in [
        (Shown::bearer(&good), json!("alice"), json!(true), "allowed"),
        (elsewhere, json!("alice"), json!(true), "namespace_not_held"),
        (Shown::bearer("garbage"), Value::Null, json!(false), "token_inactive"),
        (route, Value::Null, Value::Null, "route_invalid"),
        (anonymous, Value::Null, Value::Null, "credentials_missing"),
        (crooked, Value::Null, Value::Null, "request_malformed"),
    ] {
        let answer = check(&server, &shown).await;
        let refused = matches!(answer.http_response, Some(HttpResponse::DeniedResponse(_)));
        let by = if refused {
            let (.., body) = denied(answer);
            vec!["--request-id".to_owned(), body["request_id"].as_str().unwrap().to_owned()]
        } else {
            vec!["--actor".to_owned(), "alice".to_owned()]
        };
        let by: Vec<&str> = by.iter().map(String::as_str).collect();
        let records = crate::audit_api::found(&server, &by).await;
        let record = &records[0];
        assert_eq!(record["rpc"], "envoy.service.auth.v3.Authorization/Check");
        assert_eq!(record["actor"]["subject"], "proxy");
        let one = &record["record"]["detail"]["judged"][0];
        assert_eq!((&one["subject"], &one["active"]), (&subject, &active), "{verdict}: {one}");
        let question = &one["questions"][0];
        assert_eq!(question["permission"], "bundles:read");
        assert_eq!(question["verdict"], verdict, "{one}");
        assert_eq!(one["fingerprint"].is_string(), one["active"].is_boolean(), "{one}");
        assert!(!record.to_string().contains(&good));
    }
}

/// What somebody learns of a decision.
async fn explained(server: &Server, token: &str, id: &str) -> (u16, Value) {
    let bearer = format!("Bearer {token}");
    let path = format!("/v1/decisions/{id}");
    server.json("GET", &path, &[("authorization", &bearer)], None).await
}

#[tokio::test]
async fn se_41_what_a_proxy_was_told_is_explained_to_those_who_may_know() {
    let server = server("").await;
    let alice = Token::new("alice", &["bundles:read"]).within(&["shop"]).sign();
    let proxy = Token::new("proxy", &["tokens:introspect"]).sign();
    let refused = async |shown: &Shown| {
        let (.., body) = denied(check(&server, shown).await);
        body["request_id"].as_str().unwrap().to_owned()
    };
    let routed = |extensions| Shown { extensions, ..Shown::bearer(&alice) };
    let bank = routed(vec![("permission", "bundles:read"), ("namespace", "bank")]);
    let id = refused(&bank).await;

    // Whose credential it was: not where the proxy's route needs it.
    let (status, told) = explained(&server, &alice, &id).await;
    assert_eq!(status, 200, "{told}");
    assert_eq!(
        (&told["outcome"], &told["reason"]),
        (&json!("denied"), &json!("PERMISSION_MISSING"))
    );
    assert_eq!((&told["rule"]["kind"], &told["complete"]), (&json!("namespace"), &json!(false)));
    assert_eq!(told["rule"]["permission"], "bundles:read");
    assert_eq!(told["held"], json!([{"permissions": ["bundles:read"], "namespaces": ["shop"]}]));
    assert_eq!((&told["namespaces"], told.get("suggestion")), (&json!([]), None), "{told}");
    assert!(!told.to_string().contains("bank") && !told.to_string().contains("proxy\""), "{told}");

    // Who may read the audit of it, and who asked.
    let (_, told) = explained(&server, ROOT_KEY, &id).await;
    assert_eq!((&told["subject"]["subject"], &told["complete"]), (&json!("alice"), &json!(true)));
    assert_eq!(told["suggestion"]["text"], "add `bundles:read` in `bank`", "{told}");
    assert_eq!(told["granters"][0]["kind"], "issuer", "{told}");
    assert!(told["summary"].as_str().unwrap().contains("holds `bundles:read`, but not in `bank`"));
    let (_, told) = explained(&server, &proxy, &id).await;
    assert_eq!((&told["namespaces"], &told["complete"]), (&json!(["bank"]), &json!(false)));
    assert!(!told.to_string().contains("root of the tests"), "{told}");

    // Nobody else.
    let eve = Token::new("eve", &["tokens:introspect", "tasks:*"]).sign();
    let near = Token::new("near", &["audit:read"]).within(&["shop", "bank"]).sign();
    for other in [&eve, &near] {
        assert_eq!(explained(&server, other, &id).await.0, 404);
    }

    let missing = routed(vec![("permission", "tasks:read"), ("namespace", "shop")]);
    let id = refused(&missing).await;
    let url = server.grpc_url();
    let words = ["auth", "why-denied", &id, "--url", &url, "--token", &alice];
    let said = crate::harness::alone(&words).await.good();
    assert!(said.contains("does not hold `tasks:read`"), "{said}");

    // Of a credential that does not count nobody is known to hold it.
    let id = refused(&Shown::bearer("garbage")).await;
    assert_eq!(explained(&server, &alice, &id).await.0, 404);
    let (_, told) = explained(&server, ROOT_KEY, &id).await;
    assert_eq!(
        (&told["rule"]["kind"], told.get("subject")),
        (&json!("credential"), None),
        "{told}"
    );
    let id = refused(&routed(vec![("namespace", "shop")])).await;
    let (_, told) = explained(&server, ROOT_KEY, &id).await;
    assert!(told["summary"].as_str().unwrap().contains("context_extensions"), "{told}");
}

#[tokio::test]
async fn se_41_what_a_proxy_was_told_is_explained_out_of_the_audit_too() {
    let server = server("").await;
    let body = json!({"scopes": "bundles:read", "namespaces": "shop", "name": "ci"});
    let (status, minted) = server.as_root("POST", "/v1/auth/tokens", Some(body)).await;
    assert_eq!(status, 201, "{minted}");
    let token = minted["token"].as_str().unwrap().to_owned();
    let shown = Shown {
        extensions: vec![("permission", "bundles:read"), ("namespace", "bank")],
        ..Shown::bearer(&token)
    };
    let (.., body) = denied(check(&server, &shown).await);
    let id = body["request_id"].as_str().unwrap();
    // The journal gathers for a moment.
    crate::audit_api::found(&server, &["--request-id", id]).await;
    let server = server.again().await;
    let (status, told) = explained(&server, ROOT_KEY, id).await;
    assert_eq!(status, 200, "{told}");
    assert_eq!((&told["rule"]["kind"], &told["held_now"]), (&json!("namespace"), &json!(true)));
    assert_eq!(told["suggestion"]["text"], "add `bundles:read` in `bank`", "{told}");
    let (status, told) = explained(&server, &token, id).await;
    assert_eq!((status, &told["namespaces"]), (200, &json!([])), "{told}");
    // Who asked was shown the credential then, and learns nothing new of it.
    let proxy = Token::new("proxy", &["tokens:introspect"]).sign();
    let (status, told) = explained(&server, &proxy, id).await;
    assert_eq!((status, &told["held"]), (200, &json!([])), "{told}");
    assert_eq!(told["namespaces"], json!(["bank"]), "{told}");
}

#[tokio::test]
async fn se_42_a_real_envoy_asks_and_obeys() {
    let server = server("").await;
    let proxy = Token::new("proxy", &["tokens:introspect"]).sign();
    let port = format!("port_value: {}", server.grpc.port());
    let replaced = [("port_value: 9190", port.as_str()), ("PROXY_CREDENTIAL", &proxy)];
    let envoy = Envoy::start("ext-authz.yaml", &replaced).await;
    let get = async |path: &str, token: Option<&str>| {
        let mut request = http().get(format!("http://127.0.0.1:{}{path}", envoy.port));
        for forged in ["x-bailiwick-subject", "x-bailiwick-role", "x-bailiwick-namespaces"] {
            request = request.header(forged, "forged");
        }
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.send().await.unwrap()
    };
    let alice = Token::new("alice", &["bundles:read"]).within(&["shop", "lab."]).sign();
    let answer = get("/bundles/1?full=yes", Some(&alice)).await;
    let told = |name: &str| {
        let told = answer.headers().get(name).and_then(|value| value.to_str().ok());
        told.unwrap_or_default().to_owned()
    };
    let (subject, namespaces, role) =
        (told("told-subject"), told("told-namespaces"), told("told-role"));
    assert_eq!((answer.status().as_u16(), &*subject, &*namespaces), (200, "alice", "shop,lab."));
    assert_ne!(role, "forged", "only ours");
    assert_eq!(answer.text().await.unwrap(), "let in\n");

    let elsewhere = Token::new("alice", &["bundles:read"]).within(&["bank"]).sign();
    for (path, token, wanted, reason) in [
        ("/bundles/1", None, 401, "CREDENTIALS_MISSING"),
        ("/bundles/1", Some("garbage"), 401, "CREDENTIALS_INVALID"),
        ("/bundles/1", Some(elsewhere.as_str()), 403, "PERMISSION_MISSING"),
        ("/other", Some(alice.as_str()), 403, "PERMISSION_MISSING"),
        ("/bundles//1", Some(alice.as_str()), 400, "REQUEST_MALFORMED"),
        ("/bundles/a%2fb", Some(ROOT_KEY), 400, "REQUEST_MALFORMED"),
    ] {
        let answer = get(path, token).await;
        assert_eq!(answer.status(), wanted, "{path}");
        let challenged = answer.headers().contains_key("www-authenticate");
        assert_eq!(challenged, wanted == 401, "{path}");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["reason"], reason, "{path}");
        assert!(body["request_id"].is_string());
    }
    // Without leave to ask nobody comes in, nor while there is nobody to ask.
    let stranger = Token::new("proxy", &["tasks:*"]).sign();
    let replaced = [("port_value: 9190", port.as_str()), ("PROXY_CREDENTIAL", &stranger)];
    let shut = Envoy::start("ext-authz.yaml", &replaced).await;
    let url = format!("http://127.0.0.1:{}/bundles/1", shut.port);
    let answer = http().get(&url).bearer_auth(&alice).send().await.unwrap();
    assert_eq!(answer.status(), 403);
    drop(server);
    assert_eq!(get("/bundles/1", Some(&alice)).await.status(), 403);
}
