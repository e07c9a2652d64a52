use prost_reflect::DescriptorPool;
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};

use super::*;
use crate::pb;

/// Our options and one file that a test writes.
struct Files(&'static str, String);

impl FileResolver for Files {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match name {
            "bailiwick/access/v1/access.proto" => File::from_source(name, self.0),
            "test.proto" => File::from_source(name, &self.1),
            _ => Err(protox::Error::file_not_found(name)),
        }
    }
}

/// The pool of a service whose one RPC has this option.
fn pool(option: &str, streaming: &str) -> DescriptorPool {
    let source = format!(
        "syntax = \"proto3\"; package test.v1;
         import \"bailiwick/access/v1/access.proto\";
         service Shop {{ rpc Buy({streaming} BuyRequest) returns (BuyResponse) {{ {option} }} }}
         message BuyRequest {{
           string namespace = 1; string item = 2; repeated string namespaces = 3;
           int32 count = 4; Inner inner = 5; repeated Inner inners = 6;
           oneof message {{ Inner open = 7; string text = 8; }}
           bytes raw = 9;
         }}
         message Inner {{ string namespace = 1; }}
         message BuyResponse {{}}"
    );
    let options = include_str!("../../../proto/bailiwick/access/v1/access.proto");
    let mut resolver = ChainFileResolver::new();
    resolver.add(Files(options, source));
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).open_file("test.proto").unwrap();
    DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice()).unwrap()
}

fn option(rule: &str) -> String {
    format!("option (bailiwick.access.v1.rule) = {{ {rule} }};")
}

fn read(rule: &str) -> Result<MethodRule, Problem> {
    read_option(&option(rule), "")
}

fn read_option(option: &str, streaming: &str) -> Result<MethodRule, Problem> {
    let foreign = BTreeSet::from([Arc::from("bundles:read")]);
    match Table::from_pool(&pool(option, streaming), &foreign) {
        Ok(table) => Ok(table.get("/test.v1.Shop/Buy").unwrap().as_ref().clone()),
        Err(faults) => {
            let [fault] = faults.as_slice() else { panic!("{faults:?}") };
            assert_eq!(fault.method, "test.v1.Shop/Buy");
            assert!(fault.to_string().starts_with("test.v1.Shop/Buy: "));
            Err(fault.problem.clone())
        }
    }
}

#[test]
fn a_rule_is_read_whole() {
    let rule = read(
        "permission: \"tasks:create\" namespace_field: \"namespace\" step: true \
         rate_class: RATE_CLASS_WORK",
    )
    .unwrap();
    assert_eq!(&*rule.full_name, "test.v1.Shop/Buy");
    assert_eq!(
        rule.rule,
        Rule::Permission {
            permission: Permission::TasksCreate,
            mode: Mode::Namespace("namespace".into()),
        }
    );
    assert!(rule.step && !rule.client_streaming && !rule.server_streaming);
    assert_eq!(rule.rate_class, RateClass::Work);
    let plain = read("authenticated: \"why\"").unwrap();
    assert_eq!(plain.rule, Rule::Authenticated("why".into()));
    assert_eq!((plain.step, plain.rate_class), (false, RateClass::Standard));
    assert_eq!(read("root: true").unwrap().rule, Rule::Root);
    assert_eq!(read("node: true").unwrap().rule, Rule::Node);
    assert_eq!(read("public: \"why\"").unwrap().rule, Rule::Public("why".into()));
}

#[test]
fn an_rpc_without_a_rule_is_a_fault() {
    assert_eq!(read_option("", ""), Err(Problem::NoRule));
    assert_eq!(read_option("option deprecated = true;", ""), Err(Problem::NoRule));
}

#[test]
fn a_rule_that_names_nothing_is_a_fault() {
    for nothing in ["", "public: \"\"", "authenticated: \"\"", "root: false", "step: true"] {
        assert_eq!(read(nothing), Err(Problem::Nothing), "{nothing}");
    }
}

#[test]
fn an_empty_reason_is_a_fault() {
    assert_eq!(read("public: \" \""), Err(Problem::EmptyReason("public")));
    assert_eq!(read("authenticated: \"\\t\""), Err(Problem::EmptyReason("authenticated")));
    let global = read("permission: \"tasks:read\" global: \" \"");
    assert_eq!(global, Err(Problem::EmptyReason("global")));
}

#[test]
fn an_unknown_permission_is_a_fault() {
    for name in ["tasks:raed", "tasks:*", "*", "tasks", "Tasks:Read"] {
        let found = read(&format!("permission: \"{name}\" filtered: true"));
        assert_eq!(found, Err(Problem::UnknownPermission(name.to_owned())));
    }
    let foreign = read("permission: \"bundles:read\" filtered: true");
    assert_eq!(foreign, Err(Problem::ForeignPermission("bundles:read".to_owned())));
}

#[test]
fn se_04_a_permission_without_a_namespace_mode_is_a_fault() {
    let found = read("permission: \"tasks:read\"");
    assert_eq!(found, Err(Problem::NoMode("tasks:read".to_owned())));
    // An empty text is no mode.
    let found = read("permission: \"tasks:read\" object: \"\"");
    assert_eq!(found, Err(Problem::NoMode("tasks:read".to_owned())));
}

#[test]
fn se_04_two_namespace_modes_are_a_fault() {
    for (modes, named) in [
        ("namespace_field: \"namespace\" object: \"item\"", ["namespace_field", "object"]),
        ("object: \"item\" filtered: true", ["object", "filtered"]),
        ("filtered: true global: \"why\"", ["filtered", "global"]),
    ] {
        let found = read(&format!("permission: \"tasks:read\" {modes}"));
        assert_eq!(found, Err(Problem::SeveralModes(named.to_vec())));
    }
}

#[test]
fn a_permission_beside_another_rule_is_a_fault() {
    for other in ["public", "authenticated"] {
        let found = read(&format!("permission: \"tasks:read\" filtered: true {other}: \"why\""));
        assert_eq!(found, Err(Problem::Mixed(vec!["permission", other])));
    }
    for other in ["root", "node"] {
        let found = read(&format!("permission: \"tasks:read\" filtered: true {other}: true"));
        assert_eq!(found, Err(Problem::Mixed(vec!["permission", other])));
    }
    let found = read("public: \"why\" root: true");
    assert_eq!(found, Err(Problem::Mixed(vec!["public", "root"])));
}

#[test]
fn a_mode_without_a_permission_is_a_fault() {
    assert_eq!(read("namespace_field: \"namespace\""), Err(Problem::ModeAlone("namespace_field")));
    assert_eq!(read("public: \"why\" filtered: true"), Err(Problem::ModeAlone("filtered")));
}

#[test]
fn a_field_that_the_request_lacks_is_a_fault() {
    for mode in ["namespace_field", "object"] {
        for field in [
            "absent",
            "count",
            "raw",
            "inner",
            "inner.absent",
            "inners.namespace",
            "item.namespace",
            "inner.",
            ".namespace",
        ] {
            let found = read(&format!("permission: \"tasks:read\" {mode}: \"{field}\""));
            let Err(Problem::NoField { field: named, request, .. }) = found else {
                panic!("{mode} {field}: {found:?}");
            };
            assert_eq!((named.as_str(), request.as_str()), (field, "test.v1.BuyRequest"));
        }
    }
    // An object is one; namespaces may be many.
    assert!(read("permission: \"tasks:read\" object: \"namespaces\"").is_err());
    for good in ["namespace", "namespaces", "inner.namespace", "open.namespace"] {
        assert!(read(&format!("permission: \"tasks:read\" namespace_field: \"{good}\"")).is_ok());
    }
}

#[test]
fn on_a_client_stream_the_field_is_that_of_its_first_message() {
    let rule = option("permission: \"work:lease\" namespace_field: \"open.namespace\"");
    let found = read_option(&rule, "stream").unwrap();
    assert!(found.client_streaming);
    let rule = option("permission: \"work:lease\" namespace_field: \"closed.namespace\"");
    assert!(matches!(read_option(&rule, "stream"), Err(Problem::NoField { .. })));
}

#[test]
fn descriptors_without_the_option_are_a_fault() {
    let faults = Table::from_pool(&DescriptorPool::new(), &BTreeSet::new()).unwrap_err();
    assert_eq!(faults[0].problem, Problem::NoExtension);
}

#[test]
fn our_own_protos_have_no_fault_and_libraries_are_listed() {
    let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
    let table = Table::from_pool(&pool, &BTreeSet::new()).unwrap();
    for service in pool.services() {
        for method in service.methods() {
            let path = format!("/{}/{}", service.full_name(), method.name());
            assert!(table.get(&path).is_some(), "{path}");
        }
    }
    for path in [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ] {
        assert!(matches!(table.get(path).unwrap().rule, Rule::Public(_)), "{path}");
    }
    let stream = table.get("/bailiwick.v1.WorkerService/StreamWork").unwrap();
    assert!(stream.client_streaming && stream.server_streaming);
    assert_eq!(stream.rate_class, RateClass::Work);
    for unknown in
        ["", "/", "/bailiwick.v1.TaskService/createTask", "bailiwick.v1.TaskService/GetTask"]
    {
        assert!(table.get(unknown).is_none(), "{unknown}");
    }
    assert_eq!(table.iter().count(), table.by_path.len());
}
