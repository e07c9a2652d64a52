//! JSON to the wire and back, over the real messages and over one that has
//! every kind.

use proptest::{collection::vec, option, prelude::*};
use prost::Message as _;
use prost_reflect::DescriptorPool;
use serde_json::{Value, json};

use super::*;
use crate::{
    gateway::{
        fault::Fault,
        query::query_to_message,
        schema::{MessageId, Schema},
    },
    pb::{self, v1},
};

fn pool() -> DescriptorPool {
    DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).unwrap()
}

fn schema() -> &'static Schema {
    static SCHEMA: std::sync::LazyLock<Schema> = std::sync::LazyLock::new(|| {
        let pool = pool();
        let messages =
            pool.all_messages().filter(|message| message.package_name() == "bailiwick.v1");
        Schema::new(&pool, messages.collect::<Vec<_>>()).unwrap()
    });
    &SCHEMA
}

fn id(name: &str) -> MessageId {
    schema().find(name).unwrap_or_else(|| panic!("no {name}"))
}

fn print(schema: &Schema, id: MessageId, bytes: &[u8]) -> String {
    let mut out = Vec::new();
    Writer::new(schema).message(id, bytes, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn read(schema: &Schema, id: MessageId, json: &str) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::new();
    message_from_json(schema, id, json, 0, &mut out).map(|_| out)
}

/// Through JSON and back; the JSON too.
fn through<M: prost::Message + Default + PartialEq>(name: &str, message: &M) -> (M, String) {
    let json = print(schema(), id(name), &message.encode_to_vec());
    let back = read(schema(), id(name), &json).unwrap_or_else(|fault| panic!("{fault:?}: {json}"));
    (M::decode(back.as_slice()).unwrap(), json)
}

fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((".{0,4}", inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
    .prop_map(|value| value.to_string())
}

fn timestamp() -> impl Strategy<Value = prost_types::Timestamp> {
    (-62_135_596_800_i64..=253_402_300_799, 0..1_000_000_000)
        .prop_map(|(seconds, nanos)| prost_types::Timestamp { seconds, nanos })
}

prop_compose! {
    fn lease()(
        texts in [".*", ".*", ".*"],
        attempt: u32,
        context in json_text(),
        results in proptest::collection::hash_map(".{0,6}", json_text(), 0..4),
        tokens in proptest::collection::hash_map(".{0,6}", ".{0,6}", 0..4),
        deadline in option::of(timestamp()),
        method in option::of(".*"),
    ) -> v1::Lease {
        let [lease_id, task_uuid, name] = texts;
        v1::Lease {
            lease_id, task_uuid, name, attempt, context: context.clone(),
            results, initialization: context, deadline, method, tokens,
            ..Default::default()
        }
    }
}

prop_compose! {
    fn step()(
        name in ".*",
        state in 0..9_i32,
        depends_on in vec(".*", 0..4),
        result in option::of(json_text()),
        started_at in option::of(timestamp()),
    ) -> v1::Step {
        v1::Step { name, state, depends_on, result, started_at, ..Default::default() }
    }
}

proptest! {
    #[test]
    fn what_is_printed_reads_back_the_same(
        leases in vec(lease(), 0..3), step in step(), seq: i64, priority: i32,
    ) {
        let message = v1::LeaseStepsResponse { leases };
        let (back, json) = through("bailiwick.v1.LeaseStepsResponse", &message);
        prop_assert_eq!(back, message);
        prop_assert!(!json.contains(['\n', '\r']));
        prop_assert!(serde_json::from_str::<Value>(&json).is_ok());

        let (back, _) = through("bailiwick.v1.Step", &step);
        prop_assert_eq!(back, step);
        let entry = v1::StepAuditEntry { seq, ..Default::default() };
        prop_assert_eq!(&through("bailiwick.v1.StepAuditEntry", &entry).0, &entry);
        let task = v1::Task { priority, ..Default::default() };
        prop_assert_eq!(&through("bailiwick.v1.Task", &task).0, &task);
    }

    #[test]
    fn no_bytes_panic_and_what_is_printed_is_json(bytes in vec(any::<u8>(), 0..200)) {
        for name in ["Task", "Lease", "WatchTaskResponse", "CheckDetailedHealthResponse"] {
            let mut out = Vec::new();
            let id = id(&format!("bailiwick.v1.{name}"));
            if Writer::new(schema()).message(id, &bytes, &mut out).is_ok() {
                prop_assert!(serde_json::from_slice::<Box<serde_json::value::RawValue>>(&out).is_ok());
            }
            let _ = Writer::new(schema()).any(&bytes, &mut out);
        }
    }

    #[test]
    fn no_text_panics(text in ".*", json in json_text(), query in "[a-z_.&=%+0-9]{0,60}") {
        for name in ["CreateTaskRequest", "StreamWorkRequest", "Lease", "ResolveStepRequest"] {
            let id = id(&format!("bailiwick.v1.{name}"));
            for text in [&text, &json] {
                let _ = read(schema(), id, text);
            }
            let _ = query_to_message(schema(), id, &query, 0, &mut Vec::new());
        }
    }

    #[test]
    fn no_member_panics(name in "(namespace|context|tags|priority|state|x)", json in json_text()) {
        let body = format!("{{\"{name}\":{json}}}");
        if let Ok(bytes) = read(schema(), id("bailiwick.v1.CreateTaskRequest"), &body) {
            prop_assert!(v1::CreateTaskRequest::decode(bytes.as_slice()).is_ok());
        }
    }
}

#[test]
fn payloads_in_a_map_stand_in_place() {
    let lease = v1::Lease {
        results: [("a".to_owned(), "{\"x\":\r\n1.50}".to_owned()), ("b".to_owned(), String::new())]
            .into(),
        tokens: [("t".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    let json = print(schema(), id("bailiwick.v1.Lease"), &lease.encode_to_vec());
    assert!(json.contains(r#""results":{"a":{"x":  1.50},"b":null}"#), "{json}");
    assert!(json.contains(r#""tokens":{"t":"1"}"#), "{json}");
    assert!(json.contains(r#""context":null"#), "{json}");
    assert!(!json.contains("deadline") && !json.contains("\"method\""), "{json}");
}

#[test]
fn se_08_repeated_keys_are_refused_at_every_depth() {
    for (name, body) in [
        ("Lease", r#"{"results":{"a":1,"a":2}}"#),
        ("Lease", r#"{"results":{"a":1,"\u0061":2}}"#),
        ("ResolveStepRequest", r#"{"completion_data":{"result":1,"result":1}}"#),
        ("CanIRequest", r#"{"actions":[{"permission":"a","permission":"b"}]}"#),
        ("StreamWorkRequest", r#"{"credit":{"steps":1},"heartbeat":{}}"#),
    ] {
        let fault = read(schema(), id(&format!("bailiwick.v1.{name}")), body).unwrap_err();
        assert_eq!(fault.reason, v1::Reason::FieldAmbiguous, "{body}");
    }
    // A tenant's own payload is not ours to judge.
    let body = r#"{"completion_data":{"result":{"a":1,"a":2}}}"#;
    assert!(read(schema(), id("bailiwick.v1.ResolveStepRequest"), body).is_ok());
}

#[test]
fn a_fault_names_its_place() {
    for (body, place) in [
        (r#"{"actions":[{"permission":"a"},{"permision":"b"}]}"#, "actions[1].permision"),
        (r#"{"actions":[1]}"#, "actions[0]"),
        (r#"{"actions":{}}"#, "actions"),
    ] {
        let fault = read(schema(), id("bailiwick.v1.CanIRequest"), body).unwrap_err();
        assert_eq!(fault.field.unwrap().0, place, "{body}");
    }
    let long = format!("{{\"{}\":1}}", "x".repeat(1_000_000));
    let fault = read(schema(), id("bailiwick.v1.CanIRequest"), &long).unwrap_err();
    assert!(fault.message.len() < 200, "a stranger's name is repeated in full");
}

#[test]
fn members_of_a_oneof_are_printed_only_when_set() {
    let json = print(schema(), id("bailiwick.v1.WatchTaskResponse"), &[]);
    assert_eq!(json, r#"{"seq":0}"#);
    let set = v1::WatchTaskResponse {
        event: Some(v1::watch_task_response::Event::Step(v1::StepChanged::default())),
        ..Default::default()
    };
    let json = print(schema(), id("bailiwick.v1.WatchTaskResponse"), &set.encode_to_vec());
    assert_eq!(
        json,
        r#"{"seq":0,"step":{"step_uuid":"","name":"","state":"unspecified","attempts":0}}"#
    );
}

/// A pool with a message that has every kind and option.
fn every_kind() -> (Schema, MessageId) {
    let fields: [(&str, u32, u8, u8, Option<u32>); 15] = [
        // Name, number, type, label (1 one, 3 many), and an option that is set.
        ("double", 1, 1, 1, None),
        ("float", 2, 2, 1, None),
        ("long", 3, 3, 1, None),
        ("unsigned_long", 4, 4, 1, None),
        ("raw_long", 5, 3, 1, Some(51_004)),
        ("fixed_long", 6, 6, 1, None),
        ("fixed", 7, 7, 1, None),
        ("data", 8, 12, 1, None),
        ("signed_fixed", 9, 15, 1, None),
        ("signed_fixed_long", 10, 16, 1, None),
        ("zigzag", 11, 17, 1, None),
        ("zigzag_long", 12, 18, 1, None),
        ("words", 13, 9, 3, Some(51_003)),
        ("numbers", 14, 17, 3, None),
        ("flag", 15, 8, 1, None),
    ];
    let mut message = Vec::new();
    write_delimited(1, b"Every", &mut message);
    for (name, number, kind, label, option) in fields {
        let mut field = Vec::new();
        write_delimited(1, name.as_bytes(), &mut field);
        field.extend_from_slice(&[
            3 << 3,
            u8::try_from(number).unwrap(),
            4 << 3,
            label,
            5 << 3,
            kind,
        ]);
        if let Some(option) = option {
            let mut options = Vec::new();
            prost::encoding::encode_key(option, prost::encoding::WireType::Varint, &mut options);
            options.push(1);
            write_delimited(8, &options, &mut field);
        }
        write_delimited(2, &field, &mut message);
    }
    let mut file = Vec::new();
    write_delimited(1, b"t.proto", &mut file);
    write_delimited(2, b"t", &mut file);
    write_delimited(3, b"bailiwick/access/v1/access.proto", &mut file);
    write_delimited(4, &message, &mut file);
    write_delimited(12, b"proto3", &mut file);
    let mut pool = pool();
    pool.decode_file_descriptor_proto(file.as_slice()).unwrap();
    let schema = Schema::new(&pool, pool.get_message_by_name("t.Every")).unwrap();
    let id = schema.find("t.Every").unwrap();
    (schema, id)
}

#[test]
fn every_kind_of_number_has_its_form() {
    let (schema, id) = every_kind();
    let body = json!({
        "double": 0.1, "float": 0.1, "long": "-9223372036854775808",
        "unsigned_long": "18446744073709551615", "raw_long": -9_223_372_036_854_775_808_i64,
        "fixed_long": "1", "fixed": 4_294_967_295_u32, "data": "-_8", "signed_fixed": -5,
        "signed_fixed_long": "-6", "zigzag": -2_147_483_648, "zigzag_long": "-9223372036854775808",
        "words": "a, b,,c", "numbers": [1, -1, 2_147_483_647], "flag": true,
    });
    let bytes = read(&schema, id, &body.to_string()).unwrap();
    let printed: Value = serde_json::from_str(&print(&schema, id, &bytes)).unwrap();
    let mut expected = body;
    expected["data"] = json!("+/8=");
    expected["words"] = json!(["a", "b", "c"]);
    assert_eq!(printed, expected);
    let array = read(&schema, id, r#"{"words":["a","b","c"]}"#).unwrap();
    assert_eq!(read(&schema, id, r#"{"words":"a,b,c"}"#).unwrap(), array);
    let mut query = Vec::new();
    query_to_message(&schema, id, "words=a,b&words=c", 0, &mut query).unwrap();
    assert_eq!(query, array);

    let defaults: Value = serde_json::from_str(&print(&schema, id, &[])).unwrap();
    assert_eq!((&defaults["long"], &defaults["raw_long"]), (&json!("0"), &json!(0)));
    assert_eq!((&defaults["words"], &defaults["double"]), (&json!([]), &json!(0.0)));
    // Packed lists are read too.
    let packed: Value = serde_json::from_str(&print(&schema, id, &[0x72, 2, 1, 2])).unwrap();
    assert_eq!(packed["numbers"], json!([-1, 1]));
}

#[test]
fn numbers_out_of_range_are_refused() {
    let (schema, id) = every_kind();
    for body in [
        r#"{"fixed":-1}"#,
        r#"{"fixed":4294967296}"#,
        r#"{"long":9223372036854775808}"#,
        r#"{"long":"1.5"}"#,
        r#"{"unsigned_long":-1}"#,
        r#"{"zigzag":2147483648}"#,
        r#"{"double":"x"}"#,
        r#"{"double":1e999}"#,
        r#"{"data":"*"}"#,
        r#"{"flag":"true"}"#,
        r#"{"flag":1}"#,
        r#"{"numbers":1}"#,
    ] {
        assert!(read(&schema, id, body).is_err(), "{body}");
    }
}

#[test]
fn one_field_can_be_the_whole_body_and_the_whole_answer() {
    let whole = |name: &str, field: &str, bytes: &[u8]| {
        let field = schema().message(id(name)).field(field).unwrap();
        let mut out = Vec::new();
        Writer::new(schema()).field(field, bytes, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let list = v1::ListHandlersResponse {
        handlers: vec![v1::Handler { name: "a".to_owned(), ..Default::default() }],
        ..Default::default()
    };
    assert_eq!(
        whole("bailiwick.v1.ListHandlersResponse", "handlers", &list.encode_to_vec()),
        r#"[{"namespace":"","name":"a","templates":0,"workers":0}]"#
    );
    assert_eq!(whole("bailiwick.v1.ListHandlersResponse", "handlers", &[]), "[]");
    assert_eq!(whole("bailiwick.v1.GetTaskResponse", "task", &[]), "null");
    let config = v1::GetConfigResponse { config: "{\"a\": 1}".to_owned() };
    assert_eq!(
        whole("bailiwick.v1.GetConfigResponse", "config", &config.encode_to_vec()),
        "{\"a\": 1}"
    );

    let request = schema().message(id("bailiwick.v1.ResolveStepRequest"));
    let field = request.field("completion_data").unwrap();
    let mut out = Vec::new();
    field_from_json(schema(), field, r#"{"result": [1]}"#, &mut out).unwrap();
    let read = v1::ResolveStepRequest::decode(out.as_slice()).unwrap();
    assert_eq!(read.completion_data.unwrap().result, "[1]");
    let fault = field_from_json(schema(), field, r#"{"reslt": 1}"#, &mut out).unwrap_err();
    assert_eq!(fault.field.unwrap().0, "completion_data.reslt");
}
