//! `OpenAPI` 3.1 from the descriptors: routes, messages, comments and rules.
//!
//! Not here: how it is served (`server`), the page that shows it (`docs`).

mod schemas;

use std::collections::BTreeSet;

use prost_reflect::{DescriptorPool, ExtensionDescriptor, FieldDescriptor, MethodDescriptor};
use serde_json::{Map, Value, json};

use self::schemas::{Direction, Schemas};
use super::{
    Error, Routes,
    routes::{BodyRule, Route, Segment},
    schema::extension,
};

/// Nested messages in a query go this deep.
const QUERY_DEPTH_MAX: usize = 3;

/// The document of every REST route in the pool.
pub fn document(pool: &DescriptorPool) -> Result<Value, Error> {
    let routes = Routes::from_pool(pool)?;
    let rule = extension(pool, "bailiwick.access.v1.rule")?;
    let mut builder = Builder { schemas: Schemas::new(pool)?, rule };
    let (mut paths, mut tags) = (Map::new(), Vec::new());
    let mut operations = BTreeSet::new();
    for service in pool.services() {
        let mut served = false;
        for method in service.methods() {
            let grpc_path = format!("/{}/{}", service.full_name(), method.name());
            for route in routes.of_method(&grpc_path) {
                served = true;
                let mut operation = builder.operation(&method, route);
                // A method's further routes need names of their own.
                let (mut name, mut number) = (method.name().to_owned(), 1);
                while !operations.insert(name.clone()) {
                    number += 1;
                    name = format!("{}_{number}", method.name());
                }
                operation.insert("operationId".to_owned(), json!(name));
                let path = paths.entry(route.template.clone()).or_insert_with(|| json!({}));
                if let Some(path) = path.as_object_mut() {
                    let verb = route.verb.as_str().to_ascii_lowercase();
                    path.insert(verb, Value::Object(operation));
                }
            }
        }
        if served {
            let description = builder.schemas.comments.of_service(&service);
            tags.push(json!({"name": service.name(), "description": description}));
        }
    }
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Bailiwick",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Durable task orchestration with authority built in",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": builder.schemas.finish(),
            "responses": {"Error": error_response("The call was refused or failed.")},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A JWT, a token or an API key.",
                },
                "apiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-API-Key",
                    "description": "An API key; a bearer credential beside it wins.",
                },
            },
        },
    }))
}

struct Builder {
    schemas: Schemas,
    rule: ExtensionDescriptor,
}

impl Builder {
    fn operation(&mut self, method: &MethodDescriptor, route: &Route) -> Map<String, Value> {
        let comment = self.schemas.comments.of_method(method);
        let summary = comment.split_once(". ").map_or(comment.as_str(), |(first, _)| first);
        let mut operation = Map::new();
        operation.insert("summary".to_owned(), json!(summary.trim_end_matches('.')));
        operation.insert("description".to_owned(), json!(comment));
        operation.insert("tags".to_owned(), json!([method.parent_service().name()]));
        let parameters = self.parameters(method, route);
        if !parameters.is_empty() {
            operation.insert("parameters".to_owned(), Value::Array(parameters));
        }
        if let Some(body) = self.request_body(method, route) {
            operation.insert("requestBody".to_owned(), body);
        }
        let public = self.access(method, &mut operation);
        operation.insert("responses".to_owned(), self.responses(method, route, public));
        operation
    }

    /// Says who may call; the answer is whether everybody may.
    fn access(&self, method: &MethodDescriptor, operation: &mut Map<String, Value>) -> bool {
        let options = method.options();
        let rule = options.get_extension(&self.rule);
        let set = |name: &str| rule.as_message().is_some_and(|rule| rule.has_field_by_name(name));
        let permission = rule.as_message().and_then(|rule| {
            let permission = rule.get_field_by_name("permission")?.as_str()?.to_owned();
            (!permission.is_empty()).then_some(permission)
        });
        if let Some(permission) = permission {
            operation.insert("x-required-permission".to_owned(), json!(permission));
        } else {
            let access = ["public", "authenticated", "root", "node"].into_iter().find(|it| set(it));
            operation.insert("x-access".to_owned(), json!(access.unwrap_or("refused")));
        }
        let public = set("public");
        let security = if public { json!([]) } else { json!([{"bearer": []}, {"apiKey": []}]) };
        operation.insert("security".to_owned(), security);
        public
    }

    fn parameters(&mut self, method: &MethodDescriptor, route: &Route) -> Vec<Value> {
        let fields: Vec<FieldDescriptor> = method.input().fields().collect();
        let in_path = path_fields(route, &fields);
        let mut parameters: Vec<Value> = in_path
            .iter()
            .map(|field| {
                json!({
                    "name": field.name(),
                    "in": "path",
                    "required": true,
                    "description": self.schemas.comments.of_field(field),
                    "schema": {"type": "string", "minLength": 1},
                })
            })
            .collect();
        if route.body == BodyRule::None {
            for field in fields.iter().filter(|field| !in_path.contains(field)) {
                self.query_parameter(field, "", 0, &mut parameters);
            }
        }
        parameters
    }

    fn query_parameter(
        &mut self,
        field: &FieldDescriptor,
        prefix: &str,
        depth: usize,
        parameters: &mut Vec<Value>,
    ) {
        let name = format!("{prefix}{}", self.schemas.options.name(field));
        if depth > QUERY_DEPTH_MAX || field.is_map() || self.schemas.options.json_text(field) {
            return;
        }
        if let prost_reflect::Kind::Message(message) = field.kind()
            && !message.full_name().starts_with("google.protobuf.")
        {
            if !field.is_list() {
                for inner in message.fields() {
                    self.query_parameter(&inner, &format!("{name}."), depth + 1, parameters);
                }
            }
            return;
        }
        parameters.push(json!({
            "name": name,
            "in": "query",
            "required": false,
            "description": self.schemas.comments.of_field(field),
            "schema": self.schemas.of_field(field, Direction::Request, false),
        }));
    }

    fn request_body(&mut self, method: &MethodDescriptor, route: &Route) -> Option<Value> {
        let input = method.input();
        let fields: Vec<FieldDescriptor> = input.fields().collect();
        let schema = match route.body {
            BodyRule::None => return None,
            BodyRule::Whole if route.path_bits == 0 => {
                self.schemas.of_message(&input, Direction::Request)
            }
            BodyRule::Whole => {
                let in_path = path_fields(route, &fields);
                let rest: Vec<FieldDescriptor> =
                    fields.into_iter().filter(|field| !in_path.contains(field)).collect();
                self.schemas.object(&rest, Direction::Request)
            }
            BodyRule::Field(index) => {
                self.schemas.of_field(fields.get(index)?, Direction::Request, true)
            }
        };
        Some(json!({
            "required": false,
            "content": {"application/json": {"schema": schema}},
        }))
    }

    fn responses(&mut self, method: &MethodDescriptor, route: &Route, public: bool) -> Value {
        let output = method.output();
        let field = route.response_body.and_then(|index| output.fields().nth(index));
        let schema = match &field {
            Some(field) => self.schemas.of_field(field, Direction::Answer, true),
            None => self.schemas.of_message(&output, Direction::Answer),
        };
        let content = if route.streaming {
            let events = "Each message is the `data` of one event. A failure on the way is an \
                          event `error` and the last one.";
            json!({
                "application/x-ndjson": {"schema": schema},
                "text/event-stream": {"schema": {"type": "string", "description": events}},
            })
        } else {
            json!({"application/json": {"schema": schema}})
        };
        let description = if route.streaming {
            "Messages, one a line. A failure on the way is the last line, an error by its `error`."
        } else {
            "Done."
        };
        let mut success = json!({"description": description});
        if route.success != http::StatusCode::NO_CONTENT
            && let Some(success) = success.as_object_mut()
        {
            success.insert("content".to_owned(), content);
        }
        let mut responses = Map::new();
        responses.insert(route.success.as_str().to_owned(), success);
        responses.insert("default".to_owned(), json!({"$ref": "#/components/responses/Error"}));
        if !public {
            let mut missing = error_response("No credential, or one that is not good.");
            if let Some(missing) = missing.as_object_mut() {
                let header = json!({"WWW-Authenticate": {"schema": {"type": "string"}}});
                missing.insert("headers".to_owned(), header);
            }
            responses.insert("401".to_owned(), missing);
            responses.insert("403".to_owned(), error_response("The permission is missing."));
        }
        Value::Object(responses)
    }
}

fn path_fields(route: &Route, fields: &[FieldDescriptor]) -> Vec<FieldDescriptor> {
    route
        .segments
        .iter()
        .filter_map(|segment| match segment {
            Segment::Fixed(_) => None,
            Segment::Variable(index) => fields.get(*index).cloned(),
        })
        .collect()
}

fn error_response(description: &str) -> Value {
    json!({
        "description": description,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> DescriptorPool {
        DescriptorPool::decode(crate::pb::FILE_DESCRIPTOR_SET).unwrap()
    }

    #[test]
    fn the_document_is_as_reviewed() {
        let document = document(&pool()).unwrap();
        insta::assert_json_snapshot!(document);
        // For a validator outside of the tests.
        if let Some(path) = std::env::var_os("BAILIWICK_OPENAPI_OUT") {
            std::fs::write(path, document.to_string()).unwrap();
        }
    }

    #[test]
    fn every_route_is_documented_with_who_may_call_it() {
        let document = document(&pool()).unwrap();
        let operation = |path: &str, verb: &str| document["paths"][path][verb].clone();
        let create = operation("/v1/tasks", "post");
        assert_eq!(create["x-required-permission"], "tasks:create");
        assert!(create.get("x-access").is_none());
        assert_eq!(create["operationId"], "CreateTask");
        assert!(create["responses"]["201"].is_object());
        let whoami = operation("/v1/whoami", "get");
        assert_eq!(whoami["x-access"], "authenticated");
        assert!(whoami.get("x-required-permission").is_none());
        let health = operation("/health", "get");
        assert_eq!((&health["x-access"], &health["security"]), (&json!("public"), &json!([])));
        let operations = document["paths"].as_object().unwrap().values();
        let count: usize = operations.map(|path| path.as_object().unwrap().len()).sum();
        let summary_and_config = 2;
        // `StreamWork`, and what Envoy asks.
        let without_routes = 2;
        let second_paths_of_tokens = 5;
        let zticks_paths = 8;
        let methods: usize = pool().services().map(|service| service.methods().len()).sum();
        let more = summary_and_config + second_paths_of_tokens + zticks_paths;
        assert_eq!(count, methods - without_routes + more);
    }

    #[test]
    fn schemas_tell_requests_from_answers() {
        let document = document(&pool()).unwrap();
        let schemas = &document["components"]["schemas"];
        let request = &schemas["CreateTaskRequest"];
        assert_eq!(request["additionalProperties"], false);
        assert_eq!(request["properties"]["context"]["type"], "object");
        assert!(request.get("required").is_none());
        let task = &schemas["Task"];
        assert!(task["required"].as_array().unwrap().contains(&json!("state")));
        assert!(!task["required"].as_array().unwrap().contains(&json!("initiator")));
        assert_eq!(task["properties"]["created_at"]["format"], "date-time");
        assert_eq!(schemas["TaskState"]["enum"][0], "pending");
        // Any JSON at all.
        assert!(schemas["Step"]["properties"]["result"].get("type").is_none());
    }
}
