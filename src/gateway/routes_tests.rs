//! What a verb and a path mean, and which routes are refused at start.

use proptest::prelude::*;
use prost::Message as _;

use super::*;

fn routes() -> Routes {
    let pool = DescriptorPool::decode(crate::pb::FILE_DESCRIPTOR_SET).unwrap();
    Routes::from_pool(&pool).unwrap()
}

/// The method and its variables, the verbs, or nothing.
fn classified(verb: &str, path: &str) -> String {
    let Ok(uri) = path.parse::<Uri>() else { return "no URI".to_owned() };
    match routes().classify(&verb.parse().unwrap(), &uri) {
        Classified::Found(call) => {
            let method = call.grpc_path().rsplit('/').next().unwrap().to_owned();
            let variables = call.variables().map(|(name, value)| format!(" {name}={value}"));
            method + &variables.collect::<String>()
        }
        Classified::WrongVerb { allow } => format!("405 {allow}"),
        Classified::NotFound => "404".to_owned(),
    }
}

#[test]
fn every_route_means_one_method() {
    for (verb, path, expected) in [
        ("POST", "/v1/tasks", "CreateTask"),
        ("GET", "/v1/tasks", "ListTasks"),
        ("GET", "/v1/tasks/a", "GetTask task_uuid=a"),
        ("GET", "/v1/tasks/a/summary", "GetTask task_uuid=a"),
        ("DELETE", "/v1/tasks/a", "CancelTask task_uuid=a"),
        ("GET", "/v1/tasks/a/context", "GetTaskContext task_uuid=a"),
        ("GET", "/v1/tasks/a/workflow_steps", "ListSteps task_uuid=a"),
        ("GET", "/v1/tasks/a/workflow_steps/b", "GetStep task_uuid=a step_uuid=b"),
        ("PATCH", "/v1/tasks/a/workflow_steps/b", "ResolveStep task_uuid=a step_uuid=b"),
        ("GET", "/v1/tasks/a/workflow_steps/b/audit", "GetStepAudit task_uuid=a step_uuid=b"),
        ("GET", "/v1/templates", "ListTemplates"),
        ("POST", "/v1/templates/validate", "ValidateTemplate"),
        ("GET", "/v1/templates/n/t/1.0.0", "GetTemplate namespace=n name=t version=1.0.0"),
        ("GET", "/v1/templates/validate/t/1", "GetTemplate namespace=validate name=t version=1"),
        ("GET", "/config", "GetConfig"),
        ("GET", "/v1/config", "GetConfig"),
        ("GET", "/v1/handlers", "ListHandlers"),
        ("GET", "/health", "CheckHealth"),
        ("GET", "/health/detailed", "CheckDetailedHealth"),
        ("HEAD", "/health/live", "CheckLiveness"),
        ("POST", "/v1/work/lease", "LeaseSteps"),
    ] {
        assert_eq!(classified(verb, path), expected, "{verb} {path}");
    }
}

#[test]
fn se_12_paths_match_exactly_or_not_at_all() {
    for path in [
        "/",
        "//",
        "/v1",
        "/v1/",
        "/v1/tasks/",
        "/v1//tasks",
        "//v1/tasks",
        "/V1/tasks",
        "/v1/Tasks",
        "/v1/tasks/../tasks",
        "/v1/tasks/.",
        "/v1/tasks/..",
        "/v1/tasks/%2e%2e",
        "/v1/tasks/%2E",
        "/v1/./tasks",
        "/v1%2Ftasks",
        "/v1/tasks/%zz",
        "/v1/tasks/%f",
        "/v1/tasks/%ff",
        "/v1/tasks/a/b",
        "/health/",
        "/health/x",
        "/healthx",
        "/health;x",
        "/%68ealth",
        "/v1/%74asks",
        "/v1/tasks/a/%77atch",
        "/health/live/..",
        "/config/",
        "/bailiwick.v1.TaskService/GetTask",
        "/v1/tasks;a",
    ] {
        assert_eq!(classified("GET", path), "404", "{path}");
    }
    assert_eq!(classified("GET", "/v1/tasks/a%2Fb"), "GetTask task_uuid=a/b");
    assert_eq!(classified("GET", "/v1/tasks/..%2F..%2Fconfig"), "GetTask task_uuid=../../config");
    assert_eq!(classified("GET", "/v1/tasks/%61?x=/y"), "GetTask task_uuid=a");
    assert_eq!(classified("GET", "/v1/tasks/a+b"), "GetTask task_uuid=a+b");
}

#[test]
fn a_wrong_verb_is_told_the_right_ones() {
    for (verb, path, expected) in [
        ("PUT", "/v1/tasks", "405 GET, HEAD, POST"),
        ("OPTIONS", "/v1/tasks", "405 GET, HEAD, POST"),
        ("POST", "/v1/tasks/a", "405 DELETE, GET, HEAD"),
        ("GET", "/v1/templates/validate", "405 POST"),
        ("HEAD", "/v1/templates/validate", "405 POST"),
        ("CONNECT", "/health", "405 GET, HEAD"),
        ("get", "/health", "405 GET, HEAD"),
        ("DELETE", "/v1/nothing", "404"),
    ] {
        assert_eq!(classified(verb, path), expected, "{verb} {path}");
    }
}

proptest! {
    #[test]
    fn se_12_a_found_path_encodes_back_to_itself(path in "/(v1|tasks|[a-z./%0-9]{0,8}|/){0,6}") {
        if let Ok(uri) = path.parse::<Uri>()
            && let Classified::Found(call) = routes_once().classify(&Method::GET, &uri)
        {
            prop_assert!(!path.ends_with('/') && !path.contains("//"));
            prop_assert_eq!(
                path.matches('/').count(),
                call.template().matches('/').count()
            );
        }
    }
}

fn routes_once() -> &'static Routes {
    static ROUTES: std::sync::LazyLock<Routes> = std::sync::LazyLock::new(routes);
    &ROUTES
}

/// What a start says to one more service with these routes: the verb, the
/// path, the body, the answer's body and whether the caller streams.
fn started_with(rules: &[(&str, &str, &str, &str, bool)]) -> String {
    use crate::gateway::json::write_delimited;
    use crate::pb::google::api::{HttpRule, http_rule::Pattern};
    let mut service = Vec::new();
    write_delimited(1, b"S", &mut service);
    for (index, (verb, path, body, response_body, streams)) in rules.iter().enumerate() {
        let path = (*path).to_owned();
        let rule = HttpRule {
            body: (*body).to_owned(),
            response_body: (*response_body).to_owned(),
            pattern: match *verb {
                "GET" => Some(Pattern::Get(path)),
                "POST" => Some(Pattern::Post(path)),
                _ => None,
            },
            ..Default::default()
        };
        // By hand: the structs of options drop extensions.
        let mut options = Vec::new();
        write_delimited(72_295_728, &rule.encode_to_vec(), &mut options);
        let mut method = Vec::new();
        write_delimited(1, format!("M{index}").as_bytes(), &mut method);
        write_delimited(2, b".bailiwick.v1.CreateTaskRequest", &mut method);
        write_delimited(3, b".bailiwick.v1.CreateTaskResponse", &mut method);
        write_delimited(4, &options, &mut method);
        method.extend_from_slice(&[5 << 3, u8::from(*streams)]);
        write_delimited(2, &method, &mut service);
    }
    let mut file = Vec::new();
    write_delimited(1, b"t.proto", &mut file);
    write_delimited(2, b"t", &mut file);
    write_delimited(3, b"google/api/annotations.proto", &mut file);
    write_delimited(3, b"bailiwick/v1/task_service.proto", &mut file);
    write_delimited(6, &service, &mut file);
    write_delimited(12, b"proto3", &mut file);
    let mut pool = DescriptorPool::decode(crate::pb::FILE_DESCRIPTOR_SET).unwrap();
    pool.decode_file_descriptor_proto(file.as_slice()).unwrap();
    Routes::from_pool(&pool).map_or_else(|error| error.to_string(), |_| "ok".to_owned())
}

#[test]
fn a_route_that_cannot_be_served_stops_the_start() {
    for (rule, expected) in [
        (("GET", "/t/{name}", "", "", false), "ok"),
        (("POST", "/t/{name}", "context", "task", false), "ok"),
        (("GET", "/t/{nme}", "", "", false), "t.S.M0: no field `nme`"),
        (("GET", "/t/{priority}", "", "", false), "t.S.M0: `priority` in the path is no string"),
        (("GET", "/t/{tags}", "", "", false), "t.S.M0: `tags` in the path is no string"),
        (("GET", "/t/{name}/{name}", "", "", false), "t.S.M0: `name` is in the path twice"),
        (
            ("GET", "/t/{name=a/*}", "", "", false),
            "t.S.M0: `{name=a` in the path is not understood",
        ),
        (("GET", "/t:cancel", "", "", false), "t.S.M0: `t:cancel` in the path is not understood"),
        (("GET", "t", "", "", false), "t.S.M0: the path does not begin with `/`"),
        (("GET", "/t/", "", "", false), "t.S.M0: `` in the path is not understood"),
        (("GET", "/t/..", "", "", false), "t.S.M0: `..` in the path is not understood"),
        (("GET", "/t", "*", "", false), "t.S.M0: GET has no body"),
        (("POST", "/t", "contxt", "", false), "t.S.M0: no field `contxt`"),
        (("POST", "/t", "*", "tsk", false), "t.S.M0: no field `tsk`"),
        (("POST", "/t", "*", "", true), "t.S.M0: a client stream has no form in REST"),
        (("", "/t", "", "", false), "t.S.M0: the route names no verb that is served"),
    ] {
        assert_eq!(started_with(&[rule]), expected, "{rule:?}");
    }
}

#[test]
fn se_12_routes_that_overlap_stop_the_start() {
    let overlap = |left, right| {
        let rules = [("GET", left, "", "", false), ("GET", right, "", "", false)];
        started_with(&rules).contains("overlap")
    };
    assert!(overlap("/t", "/t"));
    assert!(overlap("/t/{name}", "/t/{version}"));
    assert!(overlap("/t/{name}/x", "/t/y/{version}"));
    assert!(overlap("/v1/tasks", "/t"));
    assert!(!overlap("/t/{name}", "/t/x"));
    assert!(!overlap("/t/{name}/x", "/t/{name}/y"));
    assert!(!overlap("/t", "/t/{name}"));
    // One path may bear two verbs.
    let rules = [("GET", "/t/{name}", "", "", false), ("POST", "/t/{version}", "*", "", false)];
    assert_eq!(started_with(&rules), "ok");
}
