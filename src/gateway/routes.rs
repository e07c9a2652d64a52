//! Which RPC a REST request means: the routes of the descriptors, checked
//! against each other at start and matched exactly.

use std::{collections::BTreeMap, fmt, sync::Arc};

use http::{Method, StatusCode, Uri, uri::PathAndQuery};
use prost_reflect::{DescriptorPool, DynamicMessage, ExtensionDescriptor, MethodDescriptor, Value};

use super::{
    Error,
    query::percent_decode,
    schema::{Field, Kind, MessageId, Schema, Shape, extension},
};

/// Segments in one path at most; a route has fewer.
const SEGMENTS_MAX: usize = 16;

/// Every REST route of a pool.
#[derive(Debug)]
pub struct Routes {
    schema: Arc<Schema>,
    all: Vec<Arc<Route>>,
    root: Node,
}

/// What a verb and a path mean.
#[derive(Debug)]
pub enum Classified {
    /// This RPC.
    Found(RestCall),
    /// The path is there; it takes other verbs.
    WrongVerb {
        /// The value of the header `Allow`.
        allow: String,
    },
    /// There is no such path.
    NotFound,
}

/// One REST request's RPC, with what the path says.
#[derive(Clone, Debug)]
pub struct RestCall {
    pub(in crate::gateway) schema: Arc<Schema>,
    pub(in crate::gateway) route: Arc<Route>,
    pub(in crate::gateway) variables: Vec<String>,
    /// The answer goes without its body.
    pub(in crate::gateway) head: bool,
}

impl RestCall {
    /// The path of the gRPC method, as `/bailiwick.v1.TaskService/CreateTask`.
    #[must_use]
    pub fn grpc_path(&self) -> &str {
        self.route.grpc_path.as_str()
    }

    /// The route's template, as `/v1/tasks/{task_uuid}`: safe for labels.
    #[must_use]
    pub fn template(&self) -> &str {
        &self.route.template
    }

    /// The path's variables by the names of their fields, decoded.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        let fields = self.route.path_fields(&self.schema);
        fields.map(|field| field.name.as_str()).zip(self.variables.iter().map(String::as_str))
    }
}

/// One binding of one method.
#[derive(Debug)]
pub(in crate::gateway) struct Route {
    pub(in crate::gateway) grpc_path: PathAndQuery,
    pub(in crate::gateway) verb: Method,
    pub(in crate::gateway) template: String,
    pub(in crate::gateway) segments: Vec<Segment>,
    pub(in crate::gateway) input: MessageId,
    pub(in crate::gateway) output: MessageId,
    pub(in crate::gateway) body: BodyRule,
    /// Whether the body may be a form.
    pub(in crate::gateway) form: bool,
    /// The answer is this field of the message alone.
    pub(in crate::gateway) response_body: Option<usize>,
    pub(in crate::gateway) streaming: bool,
    pub(in crate::gateway) success: StatusCode,
    /// The bits of the fields that the path has.
    pub(in crate::gateway) path_bits: u128,
}

/// What the body of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum BodyRule {
    /// There is none.
    None,
    /// All fields but those of the path.
    Whole,
    /// One field, by its place.
    Field(usize),
}

/// One part of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Segment {
    Fixed(String),
    /// A field of the request, by its place.
    Variable(usize),
}

impl Route {
    /// The fields that the path sets, in its order.
    pub(in crate::gateway) fn path_fields<'s>(
        &self,
        schema: &'s Schema,
    ) -> impl Iterator<Item = &'s Field> {
        let fields = &schema.message(self.input).fields;
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Fixed(_) => None,
            Segment::Variable(index) => fields.get(*index),
        })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.verb, self.template, self.grpc_path)
    }
}

/// A point in the tree of segments.
#[derive(Debug, Default)]
struct Node {
    fixed: BTreeMap<String, Node>,
    variable: Option<Box<Node>>,
    routes: Vec<Arc<Route>>,
}

impl Node {
    /// The routes of a path; a fixed segment wins over a variable.
    fn find<'n>(&'n self, parts: &[Part<'_>], variables: &mut Vec<String>) -> Option<&'n Self> {
        let Some((part, rest)) = parts.split_first() else {
            return (!self.routes.is_empty()).then_some(self);
        };
        if let Some(node) = self.fixed.get(part.raw)
            && let Some(found) = node.find(rest, variables)
        {
            return Some(found);
        }
        let node = self.variable.as_ref()?;
        variables.push(part.decoded.clone());
        let found = node.find(rest, variables);
        if found.is_none() {
            variables.pop();
        }
        found
    }
}

impl Routes {
    /// Reads every binding of every method, and refuses what cannot be served.
    pub fn from_pool(pool: &DescriptorPool) -> Result<Self, Error> {
        let options = Options {
            http: extension(pool, "google.api.http")?,
            status: extension(pool, "bailiwick.access.v1.http_status")?,
            form: extension(pool, "bailiwick.access.v1.form")?,
        };
        let bound: Vec<(MethodDescriptor, Binding)> = pool
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>())
            .flat_map(|method| {
                let bindings = bindings(&method, &options.http);
                bindings.into_iter().map(move |binding| (method.clone(), binding))
            })
            .collect();
        let messages = bound.iter().flat_map(|(method, _)| [method.input(), method.output()]);
        let schema = Schema::new(pool, messages)?;

        let mut routes: Vec<Arc<Route>> = Vec::new();
        for (method, binding) in &bound {
            let route = Arc::new(options.route(&schema, method, binding)?);
            if let Some(other) = routes.iter().find(|other| overlap(other, &route)) {
                return Err(Error::Overlap { first: other.to_string(), second: route.to_string() });
            }
            routes.push(route);
        }
        let mut root = Node::default();
        for route in &routes {
            let mut node = &mut root;
            for segment in &route.segments {
                node = match segment {
                    Segment::Fixed(text) => node.fixed.entry(text.clone()).or_default(),
                    Segment::Variable(_) => node.variable.get_or_insert_default(),
                };
            }
            node.routes.push(Arc::clone(route));
        }
        Ok(Self { schema: Arc::new(schema), all: routes, root })
    }

    /// The routes of one method, in the order of the descriptors.
    pub(in crate::gateway) fn of_method(&self, grpc_path: &str) -> Vec<&Route> {
        self.all.iter().map(|route| &**route).filter(|route| route.grpc_path == grpc_path).collect()
    }

    /// What a request means, from its verb and path alone.
    #[must_use]
    pub fn classify(&self, verb: &Method, uri: &Uri) -> Classified {
        let Some(parts) = parts(uri.path()) else { return Classified::NotFound };
        let mut variables = Vec::new();
        let Some(node) = self.root.find(&parts, &mut variables) else {
            return Classified::NotFound;
        };
        let head = verb == Method::HEAD;
        let wanted = if head { &Method::GET } else { verb };
        match node.routes.iter().find(|route| route.verb == *wanted) {
            Some(route) => Classified::Found(RestCall {
                schema: Arc::clone(&self.schema),
                route: Arc::clone(route),
                variables,
                head,
            }),
            None => Classified::WrongVerb { allow: allow(&node.routes) },
        }
    }
}

/// One part of a request's path. Fixed segments match it as it came, so that
/// what is in front of us and we read one path (SE-12); variables are decoded.
struct Part<'p> {
    raw: &'p str,
    decoded: String,
}

/// The parts of a path; none for one that no route can have.
fn parts(path: &str) -> Option<Vec<Part<'_>>> {
    let mut parts = Vec::new();
    for raw in path.strip_prefix('/')?.split('/') {
        let decoded = percent_decode(raw)?;
        if matches!(decoded.as_str(), "" | "." | "..") || parts.len() == SEGMENTS_MAX {
            return None;
        }
        parts.push(Part { raw, decoded });
    }
    Some(parts)
}

fn allow(routes: &[Arc<Route>]) -> String {
    let mut verbs: Vec<&str> = routes.iter().map(|route| route.verb.as_str()).collect();
    if verbs.contains(&"GET") {
        verbs.push("HEAD");
    }
    verbs.sort_unstable();
    verbs.join(", ")
}

/// Whether some path would fit both, and neither is plainly the nearer one.
fn overlap(left: &Route, right: &Route) -> bool {
    if left.segments.len() != right.segments.len() {
        return false;
    }
    let (mut left_nearer, mut right_nearer) = (false, false);
    for pair in left.segments.iter().zip(&right.segments) {
        match pair {
            (Segment::Fixed(left), Segment::Fixed(right)) if left != right => return false,
            (Segment::Fixed(_), Segment::Variable(_)) => left_nearer = true,
            (Segment::Variable(_), Segment::Fixed(_)) => right_nearer = true,
            (Segment::Fixed(_), Segment::Fixed(_))
            | (Segment::Variable(_), Segment::Variable(_)) => {}
        }
    }
    // The same shape may bear several verbs, each once.
    left_nearer == right_nearer && (left_nearer || left.verb == right.verb)
}

/// A binding as the option states it.
#[derive(Debug)]
struct Binding {
    verb: Option<Method>,
    template: String,
    body: String,
    response_body: String,
}

fn bindings(method: &MethodDescriptor, http: &ExtensionDescriptor) -> Vec<Binding> {
    let options = method.options();
    if !options.has_extension(http) {
        return Vec::new();
    }
    let value = options.get_extension(http);
    let Some(rule) = value.as_message() else { return Vec::new() };
    let mut found = vec![binding(rule)];
    if let Some(more) = rule.get_field_by_name("additional_bindings")
        && let Value::List(more) = &*more
    {
        found.extend(more.iter().filter_map(Value::as_message).map(binding));
    }
    found
}

fn binding(rule: &DynamicMessage) -> Binding {
    let text = |name: &str| {
        let value = rule.get_field_by_name(name);
        value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    };
    let verbs = [
        ("get", Method::GET),
        ("put", Method::PUT),
        ("post", Method::POST),
        ("delete", Method::DELETE),
        ("patch", Method::PATCH),
    ];
    let (verb, template) = verbs
        .into_iter()
        .find(|(name, _)| rule.has_field_by_name(name))
        .map_or((None, String::new()), |(name, verb)| (Some(verb), text(name)));
    Binding { verb, template, body: text("body"), response_body: text("response_body") }
}

struct Options {
    http: ExtensionDescriptor,
    status: ExtensionDescriptor,
    form: ExtensionDescriptor,
}

impl Options {
    fn route(
        &self,
        schema: &Schema,
        method: &MethodDescriptor,
        binding: &Binding,
    ) -> Result<Route, Error> {
        let fault = |what: String| Error::Route { method: method.full_name().to_owned(), what };
        if method.is_client_streaming() {
            return Err(fault("a client stream has no form in REST".to_owned()));
        }
        let verb = binding
            .verb
            .clone()
            .ok_or_else(|| fault("the route names no verb that is served".to_owned()))?;
        let find = |message: &prost_reflect::MessageDescriptor| {
            schema.find(message.full_name()).ok_or_else(|| fault("no such message".to_owned()))
        };
        let (input, output) = (find(&method.input())?, find(&method.output())?);
        let place = |id: MessageId, name: &str| {
            let fields = &schema.message(id).fields;
            let wanted = schema.message(id).field(name).map(|field| field.number);
            fields
                .iter()
                .position(|field| Some(field.number) == wanted)
                .ok_or_else(|| format!("no field `{name}`"))
        };
        let segments = template(&binding.template, &|name| place(input, name)).map_err(&fault)?;
        let path_bits = path_bits(schema, input, &segments).map_err(&fault)?;
        let body = match binding.body.as_str() {
            "" => BodyRule::None,
            "*" => BodyRule::Whole,
            name => BodyRule::Field(place(input, name).map_err(&fault)?),
        };
        if body != BodyRule::None && matches!(verb, Method::GET | Method::DELETE) {
            return Err(fault(format!("{verb} has no body")));
        }
        let response_body = match binding.response_body.as_str() {
            "" => None,
            name => Some(place(output, name).map_err(&fault)?),
        };
        if method.is_server_streaming() && schema.message(output).field("error").is_some() {
            return Err(fault("`error` in a stream marks its failure".to_owned()));
        }
        let service = method.parent_service();
        let grpc_path = format!("/{}/{}", service.full_name(), method.name());
        Ok(Route {
            grpc_path: grpc_path.parse().map_err(|_| fault("not a path".to_owned()))?,
            verb,
            template: binding.template.clone(),
            segments,
            input,
            output,
            form: method.options().get_extension(&self.form).as_bool().unwrap_or_default()
                && body == BodyRule::Whole,
            body,
            response_body,
            streaming: method.is_server_streaming(),
            success: self.success(method).map_err(&fault)?,
            path_bits,
        })
    }

    fn success(&self, method: &MethodDescriptor) -> Result<StatusCode, String> {
        let options = method.options();
        let status = options.get_extension(&self.status).as_u32().unwrap_or_default();
        if status == 0 {
            return Ok(StatusCode::OK);
        }
        u16::try_from(status)
            .ok()
            .and_then(|status| StatusCode::from_u16(status).ok())
            .filter(StatusCode::is_success)
            .ok_or_else(|| format!("{status} is no status of success"))
    }
}

/// The parts of a route's path; variables take one segment each.
fn template(
    text: &str,
    place: &dyn Fn(&str) -> Result<usize, String>,
) -> Result<Vec<Segment>, String> {
    let path = text.strip_prefix('/').ok_or("the path does not begin with `/`")?;
    let mut segments = Vec::new();
    for part in path.split('/') {
        let variable = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
        segments.push(match variable {
            Some(name) => Segment::Variable(place(name)?),
            None if part.is_empty()
                || part.starts_with('.') && part.trim_matches('.').is_empty()
                || part.contains(['{', '}', '*', ':', '%', '=']) =>
            {
                return Err(format!("`{part}` in the path is not understood"));
            }
            None => Segment::Fixed(part.to_owned()),
        });
    }
    if segments.len() > SEGMENTS_MAX {
        return Err(format!("the path has over {SEGMENTS_MAX} segments"));
    }
    Ok(segments)
}

fn path_bits(schema: &Schema, input: MessageId, segments: &[Segment]) -> Result<u128, String> {
    let fields = &schema.message(input).fields;
    let mut bits = 0;
    for segment in segments {
        let Segment::Variable(index) = segment else { continue };
        let Some(field) = fields.get(*index) else { continue };
        if (field.kind, field.shape) != (Kind::String, Shape::One) {
            return Err(format!("`{}` in the path is no string", field.name));
        }
        if bits & field.bit != 0 {
            return Err(format!("`{}` is in the path twice", field.name));
        }
        bits |= field.bit;
    }
    Ok(bits)
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
