//! Limits on calls at the front door: ZE-45 to ZE-48 and SE-43. The clock is
//! the machine's, so buckets here fill slowly or are waited for.

use std::time::Duration;

use bailiwick::pb::v1::ListTasksRequest;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::{
    self, ROOT_KEY, Server, Setup,
    credentials::{READER_KEY, Token},
};

const LIMIT: &str = "x-ratelimit-limit";
const REMAINING: &str = "x-ratelimit-remaining";
const RESET: &str = "x-ratelimit-reset";
const READER: (&str, &str) = ("x-api-key", READER_KEY);
const ROOT: (&str, &str) = ("x-api-key", ROOT_KEY);

/// A server with this `[limits]` table.
async fn limited(limits: &str) -> Server {
    Server::with(Setup { rest: format!("[limits]\n{limits}\n"), ..Setup::default() }).await
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn number(&self, name: &str) -> u64 {
        self.header(name).unwrap_or_else(|| panic!("no {name}: {}", self.body)).parse().unwrap()
    }
}

async fn get(server: &Server, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut call = harness::http().get(server.url(path));
    for (name, value) in headers {
        call = call.header(*name, *value);
    }
    let answer = call.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let text = answer.text().await.unwrap();
    Answer { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

async fn list(server: &Server, headers: &[(&str, &str)]) -> Answer {
    get(server, "/v1/tasks", headers).await
}

async fn grpc_list(server: &Server, header: (&str, &str)) -> Result<Value, Status> {
    server.grpc("TaskService/ListTasks", json!({}), &[header]).await
}

#[tokio::test]
async fn ze_45_a_burst_passes_then_calls_come_back() {
    let server = limited("requests_per_second = 1\nburst = 5").await;
    let mut passed = 0;
    let over = loop {
        let answer = list(&server, &[READER]).await;
        if answer.status != 200 {
            break answer;
        }
        passed += 1;
        assert!(passed < 100, "there is no limit");
    };
    // One may have come back on a slow machine, each second.
    assert!(passed >= 5, "{passed}");
    assert_eq!(over.status, 429);
    let wait = over.number("retry-after");
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(list(&server, &[READER]).await.status, 200);
    // REST and gRPC draw from one bucket.
    while list(&server, &[READER]).await.status == 200 {}
    assert_eq!(grpc_list(&server, READER).await.unwrap_err().code(), Code::ResourceExhausted);
    assert!(server.figure("bailiwick_rate_limited_total{class=\"standard\"}").await >= Some(3.0));
}

/// A bucket which is full again after a minute for each call.
const SLOW: &str = "requests_per_second = 1\nburst = 3";

async fn exhaust(server: &Server, headers: &[(&str, &str)]) -> Answer {
    for _ in 0..200 {
        let answer = list(server, headers).await;
        if answer.status == 429 {
            return answer;
        }
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    panic!("there is no limit");
}

#[tokio::test]
async fn ze_46_two_keys_behind_one_address_are_independent() {
    let server = limited("requests_per_second = 1\nburst = 40").await;
    exhaust(&server, &[READER]).await;
    let other = list(&server, &[ROOT]).await;
    assert_eq!((other.status, other.number(REMAINING)), (200, 39));
    let token = format!("Bearer {}", Token::new("lister", &["tasks:list"]).sign());
    let third = list(&server, &[("authorization", &token)]).await;
    assert_eq!((third.status, third.number(REMAINING)), (200, 39));
}

#[tokio::test]
async fn se_43_a_new_token_of_the_same_subject_is_no_new_bucket() {
    let server = limited("requests_per_second = 1\nburst = 40").await;
    let bearer = |subject: &str, jti: &str| {
        let token = Token::new(subject, &["tasks:list"]).claim("jti", jti.into());
        format!("Bearer {}", token.sign())
    };
    exhaust(&server, &[("authorization", &bearer("lister", "1"))]).await;
    let again = list(&server, &[("authorization", &bearer("lister", "2"))]).await;
    // At most what came back meanwhile.
    assert!(again.number(REMAINING) < 20, "{:?}", again.headers);
    let other = list(&server, &[("authorization", &bearer("other", "3"))]).await;
    assert_eq!(other.number(REMAINING), 39);
}

#[tokio::test]
async fn ze_47_every_answer_says_what_is_left() {
    let server = limited("requests_per_second = 1\nburst = 30").await;
    let first = list(&server, &[READER]).await;
    assert_eq!(first.status, 200);
    assert_eq!((first.number(LIMIT), first.number(REMAINING)), (30, 29));
    assert_eq!(first.number(RESET), 1);
    let second = list(&server, &[READER]).await;
    assert!(second.number(REMAINING) < 30 && second.number(RESET) >= 1);

    let answer = server.root().await.tasks().list_tasks(ListTasksRequest::default()).await;
    let answer = answer.unwrap();
    let metadata = answer.metadata();
    let number = |name: &str| metadata.get(name).unwrap().to_str().unwrap().to_owned();
    assert_eq!([number(LIMIT), number(REMAINING), number(RESET)], ["30", "29", "1"]);

    // 404 behind the gate, 403 at it, 401 before it.
    let absent = get(&server, "/v1/tasks/0198c5a0-0000-7000-8000-000000000000", &[ROOT]).await;
    assert_eq!((absent.status, absent.number(LIMIT)), (404, 30));
    let forbidden = get(&server, "/v1/workers", &[READER]).await;
    assert_eq!((forbidden.status, forbidden.number(LIMIT)), (403, 30));
    let unknown = list(&server, &[("x-api-key", "garbage")]).await;
    assert_eq!((unknown.status, unknown.number(LIMIT)), (401, 120));
    assert_eq!(unknown.number(REMAINING), 119);
    let missing = list(&server, &[]).await;
    assert_eq!((missing.status, missing.number(LIMIT)), (401, 120));
    let refused = grpc_list(&server, ("x-api-key", "garbage")).await.unwrap_err();
    assert_eq!(refused.metadata().get(LIMIT).unwrap(), "120");
}

#[tokio::test]
async fn ze_47_off_by_default_nothing_is_said() {
    let server = Server::start().await;
    for headers in [&[READER][..], &[ROOT], &[("x-api-key", "garbage")], &[]] {
        let answer = list(&server, headers).await;
        for name in [LIMIT, REMAINING, RESET] {
            assert_eq!(answer.header(name), None, "{headers:?}");
        }
    }
}

#[tokio::test]
async fn ze_48_an_excess_is_429_with_when_to_come_again() {
    let server = limited(SLOW).await;
    let over = exhaust(&server, &[READER]).await;
    assert_eq!(over.body["reason"], "RATE_LIMITED");
    assert_eq!(over.body["error"], "too_many_requests");
    assert_eq!(over.body["retry_after"], 1);
    assert_eq!(over.header("retry-after"), Some("1"));
    assert_eq!((over.number(LIMIT), over.number(REMAINING)), (3, 0));

    let refused = loop {
        if let Err(refused) = grpc_list(&server, READER).await {
            break refused;
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let info = refused.get_details_error_info().unwrap();
    assert_eq!(info.reason, "RATE_LIMITED");
    let delay = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(delay > Duration::ZERO && delay <= Duration::from_secs(1), "{delay:?}");
    assert_eq!(refused.metadata().get(LIMIT).unwrap(), "3");
    assert_eq!(refused.metadata().get(REMAINING).unwrap(), "0");
    server.logged("too many calls", &[("subject", "reader of the tests")]).await;
}

#[tokio::test]
async fn ze_48_permission_comes_before_the_limit_and_the_limit_before_the_body() {
    let server = limited("requests_per_second = 1\nburst = 2").await;
    exhaust(&server, &[READER]).await;
    // What is forbidden stays so, and costs nothing.
    for _ in 0..10 {
        assert_eq!(get(&server, "/v1/workers", &[READER]).await.status, 403);
    }
    exhaust(&server, &[ROOT]).await;
    let garbage = || async {
        let call = server.rest(reqwest::Method::POST, "/v1/tasks").body("{");
        call.header("content-type", "application/json").send().await.unwrap().status()
    };
    let mut said = Vec::new();
    for _ in 0..20 {
        said.push(garbage().await.as_u16());
    }
    assert!(said.contains(&429), "{said:?}");
    assert!(said.iter().all(|status| [400, 429].contains(status)), "{said:?}");
}

#[tokio::test]
async fn ze_45_classes_have_their_own_and_public_calls_none() {
    let server = limited(
        "requests_per_second = 1\nburst = 2\nwork_requests_per_second = 500\nwork_burst = 700",
    )
    .await;
    exhaust(&server, &[ROOT]).await;
    let body = json!({"namespace": "shop", "handlers": ["x"], "max_leases": 1, "wait_ms": 0});
    let metadata =
        server.grpc("WorkerService/LeaseSteps", body, &[ROOT]).await.map_err(|e| e.to_string());
    assert!(metadata.is_ok(), "{metadata:?}");
    for _ in 0..20 {
        let health = get(&server, "/health", &[]).await;
        assert_eq!((health.status, health.header(LIMIT)), (200, None));
    }
}

#[tokio::test]
async fn ze_45_configured_keys_may_have_limits_of_their_own() {
    let key = |key: &str, limit: &str| {
        format!(
            "[[auth.api_keys]]\nkey = \"{key}\"\npermissions = [\"tasks:list\"]\n\
             description = \"{key}\"\n{limit}\n"
        )
    };
    let rest = [
        key("key-of-three", "requests_per_second = 1\nburst = 3"),
        key("key-of-nine", "requests_per_second = 1\nburst = 9"),
        key("key-of-all", "requests_per_second = 0"),
        "[limits]\nrequests_per_second = 1\nburst = 5\n".to_owned(),
    ];
    let server = Server::with(Setup { rest: rest.concat(), ..Setup::default() }).await;
    // Two at once, each with its own.
    let (three, nine) = tokio::join!(
        exhaust(&server, &[("x-api-key", "key-of-three")]),
        exhaust(&server, &[("x-api-key", "key-of-nine")]),
    );
    assert_eq!((three.number(LIMIT), nine.number(LIMIT)), (3, 9));
    assert_eq!(exhaust(&server, &[READER]).await.number(LIMIT), 5);
    for _ in 0..50 {
        let answer = list(&server, &[("x-api-key", "key-of-all")]).await;
        assert_eq!((answer.status, answer.header(LIMIT)), (200, None));
    }
    let refused = loop {
        if let Err(refused) = grpc_list(&server, ("x-api-key", "key-of-nine")).await {
            break refused;
        }
    };
    assert_eq!(refused.metadata().get(LIMIT).unwrap(), "9");
}

#[tokio::test]
async fn se_43_failed_authentications_are_limited_and_block_nobody() {
    let server = limited("failed_auth_per_minute = 3").await;
    let bad = ("x-api-key", "garbage");
    let mut said = Vec::new();
    for _ in 0..30 {
        said.push(list(&server, &[bad]).await.status);
    }
    assert_eq!(said[..3], [401, 401, 401]);
    assert!(said.contains(&429), "{said:?}");
    let over = loop {
        let over = list(&server, &[bad]).await;
        if over.status == 429 {
            break over;
        }
    };
    assert_eq!(over.body["reason"], "RATE_LIMITED");
    let wait = over.number("retry-after");
    assert!((1..=20).contains(&wait), "{wait}");
    assert_eq!(over.body["retry_after"], wait);
    // No limit on calls is set, so no answer says one.
    assert_eq!(over.header(LIMIT), None);
    let refused = loop {
        let refused = grpc_list(&server, bad).await.unwrap_err();
        if refused.code() != Code::Unauthenticated {
            break refused;
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    // A good credential from the same address passes, and none is no failure.
    for _ in 0..10 {
        assert_eq!(list(&server, &[READER]).await.status, 200);
        assert_eq!(list(&server, &[]).await.status, 401);
    }
    let figure = server.figure("bailiwick_rate_limited_total{class=\"failed_auth\"}").await;
    assert!(figure >= Some(1.0), "{figure:?}");
}

#[tokio::test]
async fn se_43_the_failures_of_an_address_are_no_other_address_s() {
    let limits = "failed_auth_per_minute = 1\ntrusted_proxies = [\"127.0.0.0/8\"]";
    let server = limited(limits).await;
    let from = async |forwarded: &str| {
        let headers = [("x-api-key", "garbage"), ("x-forwarded-for", forwarded)];
        list(&server, &headers).await.status
    };
    assert_eq!(from("192.0.2.1").await, 401);
    assert_eq!(from("192.0.2.1").await, 429);
    // Whatever the client wrote before the proxy did changes nothing.
    assert_eq!(from("198.51.100.7, 192.0.2.1").await, 429);
    assert_eq!(from("192.0.2.1, 127.0.0.2").await, 429);
    assert_eq!(from("192.0.2.2").await, 401);
    assert_eq!(from("2001:db8:0:1::1").await, 401);
    assert_eq!(from("2001:db8:0:1::2").await, 429);
}

#[tokio::test]
async fn se_43_forwarded_addresses_of_strangers_are_not_believed() {
    let limits = "failed_auth_per_minute = 1\ntrusted_proxies = [\"10.0.0.0/8\"]";
    let server = limited(limits).await;
    let mut said = Vec::new();
    for last in 1..6 {
        let forwarded = format!("192.0.2.{last}");
        let headers = [("x-api-key", "garbage"), ("x-forwarded-for", forwarded.as_str())];
        said.push(list(&server, &headers).await.status);
    }
    assert_eq!(said, [401, 429, 429, 429, 429]);
}

#[tokio::test]
async fn ze_46_with_auth_off_the_address_has_the_bucket() {
    let rest = "[limits]\nrequests_per_second = 1\nburst = 40\n\
                trusted_proxies = [\"127.0.0.1\"]\n";
    let server =
        Server::with(Setup { auth: false, rest: rest.to_owned(), ..Setup::default() }).await;
    exhaust(&server, &[("x-forwarded-for", "192.0.2.1")]).await;
    let other = list(&server, &[("x-forwarded-for", "192.0.2.2")]).await;
    assert_eq!((other.status, other.number(REMAINING)), (200, 39));
    // A credential is not looked at, so it makes no bucket.
    let headers = [("x-forwarded-for", "192.0.2.2"), ("x-api-key", "anything")];
    assert!(list(&server, &headers).await.number(REMAINING) < 40);
    assert!(list(&server, &headers).await.number(REMAINING) < 40);
}

#[tokio::test]
async fn ze_45_wrong_limits_stop_the_start() {
    for (line, name) in [
        ("requests_per_second = 0\nburst = 5", "limits.burst"),
        ("trusted_proxies = [\"10.0.0.1/8\"]", "limits.trusted_proxies"),
    ] {
        let rest = format!("[limits]\n{line}\n");
        let said = harness::refused(&Setup { rest, ..Setup::default() }).await;
        assert!(said.contains(name), "{said}");
    }
}
