//! Records as events of the Open Cybersecurity Schema Framework, 1.2.0: calls
//! are API Activity (6003), credentials that were refused or are in use are
//! Authentication (3002), and checkpoints, for which there is no class, are
//! Base Event (0). The record itself is the raw data, byte for byte.

use serde_json::{Map, Value, json};

use super::{
    Sealed,
    format::{Actor, Fields, Weight},
};
use crate::audit::chain::hex;

/// The version of the schema.
const VERSION: &str = "1.2.0";
/// What stands for whom nobody knows.
const UNKNOWN: &str = "unknown";
const OWN: &str = "bailiwick";

/// What was done, by the first word of a method's name.
const CREATES: &[&str] = &["Create", "Mint", "Register"];
const READS: &[&str] = &[
    "Can", "Check", "Explain", "Export", "Get", "List", "Preview", "Search", "Stream", "Validate",
    "Watch", "Who",
];
const UPDATES: &[&str] = &["Resolve", "Resume", "Rotate", "Set", "Tighten"];
const DELETES: &[&str] = &["Delete", "Remove", "Revoke"];

#[derive(Clone, Copy)]
struct Class {
    uid: u32,
    category: u32,
    name: &'static str,
    activity: u32,
}

/// The event of a record.
pub(super) fn event(record: &Sealed) -> Value {
    let fields = Fields::of(record);
    let class = class(record, &fields);
    let (severity, severity_name) = match fields.weight() {
        Weight::Allowed => (1, "Informational"),
        Weight::Failed => (2, "Low"),
        Weight::Denied => (3, "Medium"),
    };
    let mut event = json!({
        "activity_id": class.activity,
        "category_uid": class.category,
        "class_uid": class.uid,
        "class_name": class.name,
        "type_uid": class.uid * 100 + class.activity,
        "severity_id": severity,
        "severity": severity_name,
        "time": fields.micros().div_euclid(1000),
        "metadata": {
            "version": VERSION,
            "product": {
                "name": OWN,
                "vendor_name": OWN,
                "version": env!("CARGO_PKG_VERSION"),
            },
            "uid": record.seq.to_string(),
            "sequence": record.seq,
            "log_name": "audit",
            "original_time": fields.at,
        },
        "raw_data": &*record.body,
        "unmapped": unmapped(record, &fields),
    });
    if let Some(event) = event.as_object_mut() {
        if class.activity == 99 {
            let name = if class.uid == 0 { "Checkpoint" } else { fields.operation().1 };
            event.insert("activity_name".to_owned(), name.into());
        }
        if class.uid != 0 {
            call(event, class, &fields);
        }
    }
    event
}

fn class(record: &Sealed, fields: &Fields) -> Class {
    if record.place.is_none() {
        return Class { uid: 0, category: 0, name: "Base Event", activity: 99 };
    }
    let authentication =
        |activity| Class { uid: 3002, category: 3, name: "Authentication", activity };
    let refused = fields.reason.as_deref().is_some_and(|reason| reason.starts_with("CREDENTIALS_"));
    if refused && fields.weight() == Weight::Denied {
        return authentication(1);
    }
    if fields.rpc == "credential" {
        return authentication(99);
    }
    Class { uid: 6003, category: 6, name: "API Activity", activity: activity(fields.operation().1) }
}

fn activity(method: &str) -> u32 {
    let begins = |words: &[&str]| {
        words.iter().any(|word| {
            let rest = method.strip_prefix(word);
            rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_lowercase()))
        })
    };
    // A stream of work is no look at anything.
    if method == "StreamWork" {
        99
    } else if begins(CREATES) {
        1
    } else if begins(READS) {
        2
    } else if begins(UPDATES) {
        3
    } else if begins(DELETES) {
        4
    } else {
        99
    }
}

/// What both classes of calls have.
fn call(event: &mut Map<String, Value>, class: Class, fields: &Fields) {
    let mut put = |name: &str, value: Value| event.insert(name.to_owned(), value);
    let good = fields.weight() == Weight::Allowed;
    let (status, status_name) = if good { (1, "Success") } else { (2, "Failure") };
    put("status_id", status.into());
    put("status", status_name.into());
    if let Some(reason) = &fields.reason {
        put("status_code", reason.as_str().into());
    }
    let by_server = fields.actor.is_none() && fields.rpc == "server";
    let user = fields.actor.as_ref().map_or_else(|| json!({ "name": UNKNOWN, "type_id": 0 }), user);
    let from = match &fields.peer {
        Some(ip) => json!({ "ip": ip }),
        None if by_server => json!({ "name": OWN }),
        None => json!({ "name": UNKNOWN }),
    };
    put("src_endpoint", from);
    let (service, method) = fields.operation();
    if class.uid == 3002 {
        put("user", user);
        put("service", json!({ "name": service.unwrap_or(OWN) }));
        return;
    }
    let actor = if by_server { json!({ "app_name": OWN }) } else { json!({ "user": user }) };
    put("actor", actor);
    let mut api = json!({ "operation": method, "service": { "name": service.unwrap_or(OWN) } });
    if let Some(api) = api.as_object_mut() {
        if let Some(id) = &fields.request_id {
            api.insert("request".to_owned(), json!({ "uid": id }));
        }
        if let Some(reason) = &fields.reason {
            api.insert("response".to_owned(), json!({ "error": reason }));
        }
    }
    put("api", api);
    if let Some(object) = &fields.object {
        let mut resource = json!({ "name": object });
        if let (Some(resource), Some(namespace)) = (resource.as_object_mut(), &fields.namespace) {
            resource.insert("namespace".to_owned(), namespace.as_str().into());
        }
        put("resources", json!([resource]));
    }
}

fn user(actor: &Actor) -> Value {
    let mut user = json!({ "name": actor.subject, "type_id": 0 });
    if let Some(user) = user.as_object_mut() {
        for (name, value) in [("domain", &actor.issuer), ("credential_uid", &actor.credential)] {
            if !value.is_empty() {
                user.insert(name.to_owned(), value.as_str().into());
            }
        }
    }
    user
}

fn unmapped(record: &Sealed, fields: &Fields) -> Value {
    let mut map = Map::new();
    if let Some(place) = &record.place {
        map.insert("chain".to_owned(), (&*place.chain).into());
        map.insert("number".to_owned(), place.number.into());
        map.insert("prev".to_owned(), hex(&place.prev).into());
        map.insert("hash".to_owned(), hex(&place.hash).into());
    }
    let source = fields.actor.as_ref().map(|actor| &actor.source);
    let method = fields.actor.as_ref().map(|actor| &actor.method);
    for (name, value) in [
        ("permission", fields.permission.as_ref()),
        ("namespace", fields.namespace.as_ref()),
        ("source", source),
        ("method", method),
    ] {
        if let Some(value) = value {
            map.insert(name.to_owned(), value.as_str().into());
        }
    }
    if !fields.asked.is_empty() {
        map.insert("asked".to_owned(), fields.asked.clone().into());
    }
    map.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::sink::tests::{checkpoint, record};

    /// What each event must have, and what one of each group must.
    const BASE: &[&str] = &[
        "activity_id",
        "category_uid",
        "class_uid",
        "metadata",
        "severity_id",
        "time",
        "type_uid",
    ];
    const ACTORS: &[&str] = &["process", "user", "invoked_by", "session", "app_name", "app_uid"];
    const ENDPOINTS: &[&str] = &["ip", "uid", "name", "hostname", "svc_name"];
    const USERS: &[&str] = &["account", "name", "uid"];

    fn one_of(object: &Value, names: &[&str]) {
        assert!(names.iter().any(|name| object.get(name).is_some()), "{object}");
    }

    /// Holds an event against the schema: what is required and constrained.
    fn check(event: &Value) {
        for name in BASE {
            assert!(event.get(name).is_some(), "{name}: {event}");
        }
        let number = |name: &str| event[name].as_u64().unwrap();
        assert_eq!(number("type_uid"), number("class_uid") * 100 + number("activity_id"));
        assert_eq!(number("category_uid"), number("class_uid") / 1000);
        assert_eq!(event["metadata"]["version"], "1.2.0");
        assert!(event["metadata"]["product"]["vendor_name"].is_string());
        assert!(event["metadata"]["uid"].is_string());
        assert!((0..=6).contains(&number("severity_id")));
        assert_eq!(number("activity_id") == 99, event["activity_name"].is_string());
        match number("class_uid") {
            0 => {}
            3002 => {
                one_of(&event["user"], USERS);
                one_of(event, &["service", "dst_endpoint"]);
            }
            6003 => {
                one_of(&event["actor"], ACTORS);
                one_of(&event["src_endpoint"], ENDPOINTS);
                assert!(event["api"]["operation"].is_string());
                if let Some(request) = event["api"].get("request") {
                    assert!(request["uid"].is_string());
                }
            }
            other => panic!("{other}"),
        }
    }

    fn of(body: &str) -> Value {
        let mut record = record(9, "*", "allowed");
        record.body = body.into();
        event(&record)
    }

    #[test]
    fn a_call_is_api_activity() {
        let record = record(7, "shop", "denied");
        let event = event(&record);
        check(&event);
        let expected = json!({
            "activity_id": 1,
            "category_uid": 6,
            "class_uid": 6003,
            "class_name": "API Activity",
            "type_uid": 600_301,
            "severity_id": 3,
            "severity": "Medium",
            "status_id": 2,
            "status": "Failure",
            "status_code": "PERMISSION_MISSING",
            "time": 1_775_044_800_000_u64,
            "metadata": {
                "version": "1.2.0",
                "product": {
                    "name": "bailiwick",
                    "vendor_name": "bailiwick",
                    "version": env!("CARGO_PKG_VERSION"),
                },
                "uid": "7",
                "sequence": 7,
                "log_name": "audit",
                "original_time": "2026-04-01T12:00:00.000001Z",
            },
            "actor": {
                "user": {
                    "name": "ci",
                    "type_id": 0,
                    "domain": "https://idp",
                    "credential_uid": "abc",
                },
            },
            "src_endpoint": { "ip": "10.0.0.7" },
            "api": {
                "operation": "CreateTask",
                "service": { "name": "bailiwick.v1.TaskService" },
                "request": { "uid": "6f1c" },
                "response": { "error": "PERMISSION_MISSING" },
            },
            "resources": [{ "name": "order", "namespace": "shop" }],
            "raw_data": &*record.body,
            "unmapped": {
                "chain": "shop",
                "number": 3,
                "prev": "01".repeat(32),
                "hash": "02".repeat(32),
                "permission": "tasks:create",
                "namespace": "shop",
                "source": "idp",
                "method": "jwt",
            },
        });
        assert_eq!(event, expected);
    }

    #[test]
    fn se_44_a_refusal_says_what_was_asked_for() {
        let event = of("{\"at\":\"2026-04-01T12:00:00Z\",\"rpc\":\"a.B/GetTask\",\
             \"outcome\":\"denied\",\"reason\":\"NAMESPACE_NOT_FOUND\",\"asked\":[\"till\"]}");
        check(&event);
        assert_eq!(event["unmapped"]["asked"], json!(["till"]));
    }

    #[test]
    fn credentials_are_authentication_and_checkpoints_are_base_events() {
        let refused = of("{\"at\":\"2026-04-01T12:00:00Z\",\"rpc\":\"a.B/GetTask\",\
             \"outcome\":\"denied\",\"reason\":\"CREDENTIALS_INVALID\",\"peer\":\"::1\"}");
        check(&refused);
        assert_eq!((&refused["type_uid"], &refused["status_id"]), (&json!(300_201), &json!(2)));
        assert_eq!(refused["user"]["name"], "unknown");
        let used = of("{\"at\":\"2026-04-01T12:00:00Z\",\"rpc\":\"credential\",\
             \"outcome\":\"allowed\",\"actor\":{\"source\":\"idp\",\"subject\":\"ci\",\
             \"method\":\"jwt\"}}");
        check(&used);
        assert_eq!((&used["type_uid"], &used["status_id"]), (&json!(300_299), &json!(1)));
        let own = of("{\"at\":\"2026-04-01T12:00:00Z\",\"rpc\":\"server\",\
             \"outcome\":\"allowed\",\"object\":\"audit\"}");
        check(&own);
        assert_eq!(own["actor"]["app_name"], "bailiwick");
        let sealed = event(&checkpoint(8));
        check(&sealed);
        assert_eq!(
            (&sealed["class_uid"], &sealed["time"]),
            (&json!(0), &json!(1_775_044_801_000_u64))
        );
        assert!(sealed["raw_data"].as_str().unwrap().contains("\"signature\""));
    }

    #[test]
    fn the_activity_is_read_from_the_first_word() {
        for (method, expected) in [
            ("CreateTask", 1),
            ("MintToken", 1),
            ("CanI", 2),
            ("CancelTask", 99),
            ("ListTasks", 2),
            ("StreamAudit", 2),
            ("StreamWork", 99),
            ("SetJob", 3),
            ("RotateToken", 3),
            ("RevokeToken", 4),
            ("Settle", 99),
            ("LeaseSteps", 99),
        ] {
            assert_eq!(activity(method), expected, "{method}");
        }
    }
}
