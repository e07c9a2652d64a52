//! Every error as REST shows it.
#![expect(clippy::disallowed_methods, reason = "the tests play a server behind the gateway")]

use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;

async fn read(response: Response<Body>) -> (StatusCode, http::HeaderMap, Value) {
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, serde_json::from_slice(&bytes).unwrap())
}

fn status(code: Code, reason: &str) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "bailiwick", std::collections::HashMap::new());
    Status::with_error_details(code, "why", details)
}

#[tokio::test]
async fn tk_54_missing_credentials_are_401_with_a_challenge() {
    let mut details = ErrorDetails::new();
    details.set_error_info("CREDENTIALS_MISSING", "bailiwick", [("a".into(), "b".into())]);
    let status = Status::with_error_details(
        Code::Unauthenticated,
        "Missing authentication credentials",
        details,
    );
    let (http, headers, body) = read(response(&status, Some("r-1"))).await;
    assert_eq!(http, 401);
    assert_eq!(headers["www-authenticate"], "Bearer");
    assert_eq!(headers["x-request-id"], "r-1");
    assert_eq!(
        body,
        json!({
            "error": "unauthorized",
            "message": "Missing authentication credentials",
            "code": "UNAUTHENTICATED",
            "reason": "CREDENTIALS_MISSING",
            "request_id": "r-1",
            "details": [{
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "CREDENTIALS_MISSING",
                "domain": "bailiwick",
                "metadata": {"a": "b"},
            }],
        })
    );
}

#[tokio::test]
async fn tk_55_a_missing_permission_is_403_without_a_challenge() {
    let status = Status::new(Code::PermissionDenied, "Missing required permission: tasks:create");
    let (http, headers, body) = read(response(&status, None)).await;
    assert_eq!(http, 403);
    assert!(!headers.contains_key("www-authenticate"));
    assert_eq!(body["error"], "forbidden");
    assert_eq!(body["message"], "Missing required permission: tasks:create");
    assert_eq!(body["reason"], "PERMISSION_MISSING");
    assert!(body.get("request_id").is_none());
}

#[tokio::test]
async fn tk_69_to_72_every_code_has_its_http_status() {
    let table = [
        (Code::Cancelled, 499, "client_closed_request"),
        (Code::Unknown, 500, "internal_server_error"),
        (Code::InvalidArgument, 400, "bad_request"),
        (Code::DeadlineExceeded, 504, "gateway_timeout"),
        (Code::NotFound, 404, "not_found"),
        (Code::AlreadyExists, 409, "conflict"),
        (Code::PermissionDenied, 403, "forbidden"),
        (Code::ResourceExhausted, 429, "too_many_requests"),
        (Code::FailedPrecondition, 400, "bad_request"),
        (Code::Aborted, 409, "conflict"),
        (Code::OutOfRange, 400, "bad_request"),
        (Code::Unimplemented, 501, "not_implemented"),
        (Code::Internal, 500, "internal_server_error"),
        (Code::Unavailable, 503, "service_unavailable"),
        (Code::DataLoss, 500, "internal_server_error"),
        (Code::Unauthenticated, 401, "unauthorized"),
    ];
    for (code, number, error) in table {
        let (http, headers, body) = read(response(&Status::new(code, "why"), None)).await;
        assert_eq!((http.as_u16(), body["error"].as_str()), (number, Some(error)), "{code:?}");
        assert_eq!(headers.contains_key("www-authenticate"), number == 401, "{code:?}");
        assert_eq!(body["code"].as_str(), Some(code_name(code)));
    }
}

#[tokio::test]
async fn some_reasons_have_an_http_status_of_their_own() {
    for (code, reason, number) in [
        (Code::InvalidArgument, "BODY_TOO_LARGE", 413),
        (Code::InvalidArgument, "CONTENT_TYPE_NOT_SUPPORTED", 415),
        (Code::Unimplemented, "VERB_NOT_ALLOWED", 405),
        (Code::PermissionDenied, "HOST_NOT_ALLOWED", 421),
        (Code::PermissionDenied, "ORIGIN_NOT_ALLOWED", 403),
    ] {
        let (http, _, body) = read(response(&status(code, reason), None)).await;
        assert_eq!((http.as_u16(), body["reason"].as_str()), (number, Some(reason)));
    }
}

#[tokio::test]
async fn retry_info_becomes_retry_after_rounded_up() {
    for (code, millis, header) in [
        (Code::ResourceExhausted, 1_200, Some("2")),
        (Code::Unavailable, 0, Some("1")),
        (Code::Internal, 5_000, None),
    ] {
        let mut details = ErrorDetails::new();
        details.set_retry_info(Some(Duration::from_millis(millis)));
        let status = Status::with_error_details(code, "later", details);
        let (_, headers, body) = read(response(&status, None)).await;
        assert_eq!(headers.get("retry-after").map(|value| value.to_str().unwrap()), header);
        let number = header.map(|text| text.parse::<u64>().unwrap());
        assert_eq!(body["retry_after"].as_u64(), number);
        assert_eq!(body.get("retry_after").is_some(), header.is_some());
        assert_eq!(body["details"][0]["@type"], "type.googleapis.com/google.rpc.RetryInfo");
    }
}

#[tokio::test]
async fn details_of_fields_are_shown_and_foreign_ones_kept() {
    let mut details = ErrorDetails::new();
    details.add_bad_request_violation("name", "must not be empty");
    let status = Status::with_error_details(Code::InvalidArgument, "name", details);
    let (_, _, body) = read(response(&status, None)).await;
    let violation = &body["details"][0]["field_violations"][0];
    assert_eq!(
        (&violation["field"], &violation["description"]),
        (&json!("name"), &json!("must not be empty"))
    );

    let foreign = tonic_types::Status {
        details: vec![prost_types::Any { type_url: "x/y.Z".into(), value: vec![1, 2] }],
        ..Default::default()
    };
    let status = Status::with_details(Code::Internal, "x", foreign.encode_to_vec().into());
    let (_, _, body) = read(response(&status, None)).await;
    assert_eq!(body["details"], json!([{"@type": "x/y.Z", "value": "AQI="}]));

    // Bytes that are no details do not hide the code.
    let status = Status::with_details(Code::NotFound, "x", Bytes::from_static(&[0xff; 9]));
    let (http, _, body) = read(response(&status, None)).await;
    assert_eq!((http.as_u16(), &body["details"]), (404, &json!([])));
}

#[tokio::test]
async fn an_unknown_path_is_404_and_a_wrong_verb_405_with_allow() {
    let (http, _, body) = read(unknown_path(Some("r"))).await;
    assert_eq!((http.as_u16(), &body["reason"]), (404, &json!("UNKNOWN_METHOD")));
    assert_eq!(body["details"][0]["metadata"], json!({"request_id": "r"}));
    let (http, headers, body) = read(verb_not_allowed("GET, HEAD", None)).await;
    assert_eq!((http.as_u16(), &body["error"]), (405, &json!("method_not_allowed")));
    assert_eq!(headers["allow"], "GET, HEAD");
}

#[tokio::test]
async fn se_20_no_error_is_kept() {
    for response in [unknown_path(None), response(&Status::new(Code::Internal, ""), None)] {
        let (_, headers, _) = read(response).await;
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert!(headers["vary"].to_str().unwrap().contains("Authorization"));
    }
}
