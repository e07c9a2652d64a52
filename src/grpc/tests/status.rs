//! Every error as it leaves: code, reason, message and details.

use std::{fmt::Write as _, io, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    access::{Kind, Reason, Refusal, Unauthenticated},
    domain::{Permission, RequestId, json, task::TaskState, template::Finding},
    engine::{self, StoreError},
    grpc::status::{self, Error},
};

fn request() -> RequestId {
    RequestId::from_random([7; 16])
}

/// What a client sees, a line for each part.
fn shown(status: &Status) -> String {
    let details = status.get_error_details();
    let mut text = format!("{:?}: {}\n", status.code(), status.message());
    if let Some(info) = details.error_info() {
        let mut metadata: Vec<_> =
            info.metadata.iter().filter(|(key, _)| *key != "request_id").collect();
        metadata.sort();
        writeln!(text, "  {} {} {metadata:?}", info.domain, info.reason).unwrap();
        let id = request().to_string();
        assert_eq!(info.metadata.get("request_id"), Some(&id));
        assert_eq!(details.request_info().map(|info| &info.request_id), Some(&id));
    }
    for violation in details.bad_request().map_or(&[][..], |bad| &bad.field_violations) {
        writeln!(text, "  field `{}`: {}", violation.field, violation.description).unwrap();
    }
    for violation in details.precondition_failure().map_or(&[][..], |failure| &failure.violations) {
        let (kind, subject) = (&violation.r#type, &violation.subject);
        writeln!(text, "  precondition {kind} {subject}: {}", violation.description).unwrap();
    }
    if let Some(resource) = details.resource_info() {
        let (kind, name) = (&resource.resource_type, &resource.resource_name);
        writeln!(text, "  resource {kind} `{name}`: {}", resource.description).unwrap();
    }
    if let Some(retry) = details.retry_info() {
        writeln!(text, "  retry {:?}", retry.retry_delay).unwrap();
    }
    text
}

fn rendered(error: impl Into<Error>) -> Status {
    error.into().status(Some(request()))
}

fn secret() -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(io::Error::other("/srv/secret/path"))
}

fn failures() -> Vec<engine::Error> {
    use engine::Error;
    let finding = |line, path: &str, message: &str| Finding {
        message: message.to_owned(),
        line,
        column: line * 2,
        path: path.to_owned(),
    };
    vec![
        Error::NamespaceNotFound("shop".to_owned()),
        Error::TaskNotFound("0193e1c4-7a6b-7000-8000-00004000002a".to_owned()),
        Error::StepNotFound("x".to_owned()),
        Error::TemplateNotFound("order 1.0.0".to_owned()),
        Error::LeaseNotFound,
        Error::TemplateInvalid(vec![
            finding(3, "steps[0].handler", "unknown field `hander`"),
            finding(0, "", "no steps"),
        ]),
        Error::TemplateExists("order 1.0.0".to_owned()),
        Error::ContextInvalid(vec!["/total: not a number".to_owned(), "/id: missing".to_owned()]),
        Error::PayloadInvalid { field: "context", source: json::Error::TooDeep },
        Error::FieldInvalid { field: "priority", message: "101 is too high".to_owned() },
        Error::IdempotencyConflict,
        Error::LeaseLost,
        Error::TaskFinal(TaskState::Complete),
        Error::StepState("the step is complete".to_owned()),
        Error::PageToken,
        Error::ShuttingDown,
        Error::Storage(StoreError::Full(secret())),
        Error::Storage(StoreError::ReadOnly(secret())),
        Error::Storage(StoreError::Unavailable(secret())),
        Error::Storage(StoreError::Broken(secret())),
    ]
}

#[test]
fn every_failure_of_a_use_case() {
    let mut table = String::new();
    for error in failures() {
        let status = rendered(error);
        assert!(!format!("{status:?}").contains("secret"), "{status:?}");
        table += &shown(&status);
    }
    insta::assert_snapshot!(table);
}

#[test]
fn every_kind_of_refusal() {
    let mut table = String::new();
    for why in [
        Unauthenticated::Missing,
        Unauthenticated::Invalid,
        Unauthenticated::Expired,
        Unauthenticated::Revoked,
        Unauthenticated::NotYetValid,
        Unauthenticated::Ambiguous,
    ] {
        table += &shown(&rendered(Refusal::unauthenticated(why)));
    }
    table += &shown(&rendered(Refusal::permission_missing(Permission::TasksCreate)));
    table += &shown(&rendered(Refusal::namespace_not_found("shop")));
    table += &shown(&rendered(Refusal::invalid(Reason::FieldInvalid, "namespace", "no")));
    for (kind, reason) in [
        (Kind::Forbidden, Reason::RootRequired),
        (Kind::UnknownMethod, Reason::UnknownMethod),
        (Kind::Conflict, Reason::TemplateExists),
        (Kind::Precondition, Reason::StepState),
        (Kind::TooMany, Reason::RateLimited),
        (Kind::Unavailable, Reason::Overloaded),
        (Kind::Deadline, Reason::Deadline),
        (Kind::Internal, Reason::Internal),
    ] {
        let refusal = Refusal {
            retry_after: (kind == Kind::TooMany).then(|| Duration::from_secs(3)),
            detail: Some("secret".to_owned()),
            ..Refusal::new(kind, reason, "why and what to do")
        };
        let status = rendered(refusal);
        assert!(!format!("{status:?}").contains("secret"), "{status:?}");
        table += &shown(&status);
    }
    insta::assert_snapshot!(table);
}

#[test]
fn se_10_a_hidden_namespace_reads_the_same_from_gate_and_use_case() {
    let gate = rendered(Refusal::namespace_not_found("shop"));
    let case = rendered(engine::Error::NamespaceNotFound("shop".to_owned()));
    assert_eq!(
        (gate.code(), gate.message(), gate.details()),
        (case.code(), case.message(), case.details())
    );
}

#[test]
fn what_tonic_says_itself_gets_a_reason() {
    let cases = [
        (Code::OutOfRange, "decoded message length too large", "BODY_TOO_LARGE"),
        (Code::ResourceExhausted, "Error decompressing: size limit", "BODY_TOO_LARGE"),
        (Code::Internal, "failed to decode Protobuf message", "REQUEST_MALFORMED"),
        (Code::Unimplemented, "", "UNKNOWN_METHOD"),
        (Code::Unimplemented, "Content is compressed with `x`", "REQUEST_MALFORMED"),
    ];
    for (code, message, reason) in cases {
        let status = status::transport(bare(code, message), Some(request()));
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, reason, "{code:?} {message}");
        let expected = if code == Code::Unimplemented { code } else { Code::InvalidArgument };
        assert_eq!(status.code(), expected, "{message}");
    }
    for code in [Code::Cancelled, Code::NotFound, Code::Unknown] {
        let status = status::transport(bare(code, "as it is"), Some(request()));
        assert_eq!((status.code(), status.message()), (code, "as it is"));
    }
    let own = rendered(engine::Error::Storage(StoreError::Broken(secret())));
    let again = status::transport(own.clone(), None);
    assert_eq!((again.code(), again.details()), (own.code(), own.details()));
}

/// A status as tonic makes it, over the wire: the constructors are `status`'s
/// alone.
fn bare(code: Code, message: &str) -> Status {
    let mut headers = http::HeaderMap::new();
    headers.insert("grpc-status", i32::from(code).into());
    headers.insert("grpc-message", message.parse().unwrap());
    Status::from_header_map(&headers).unwrap()
}

/// Some clients take 8 KiB of headers in all.
#[test]
fn a_status_fits_into_a_header_whatever_callers_write() {
    let long = "\u{e9}".repeat(100_000);
    let finding = Finding { message: long.clone(), line: 1, column: 1, path: "x".repeat(10_000) };
    for error in [
        engine::Error::TaskNotFound(long.clone()),
        engine::Error::TemplateNotFound(long.clone()),
        engine::Error::StepState(long.clone()),
        engine::Error::TemplateInvalid(vec![finding; 100]),
        engine::Error::ContextInvalid(vec!["short".to_owned(); 10_000]),
        engine::Error::FieldInvalid { field: "name", message: long },
    ] {
        let status = rendered(error);
        let mut headers = http::HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        let bytes: usize =
            headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        assert!(bytes < 8 * 1024, "{bytes} bytes: {:?}", status.code());
    }
    let many = rendered(engine::Error::ContextInvalid(vec!["short".to_owned(); 10_000]));
    let details = many.get_error_details();
    let last = details.bad_request().unwrap().field_violations.last().unwrap().clone();
    assert!(last.description.starts_with("and ") && last.description.ends_with(" more"));
}

#[test]
fn every_reason_is_named_without_its_prefix() {
    assert_eq!(status::reason_name(Reason::PermissionMissing), "PERMISSION_MISSING");
    for number in 0..=i32::from(Reason::NotReady) {
        let reason = Reason::try_from(number).unwrap();
        assert!(!status::reason_name(reason).starts_with("REASON_"));
    }
}
