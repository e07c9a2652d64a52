//! Which rule each RPC has, read from the descriptors. What is not in the
//! table does not exist; a table with a fault stops the start.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use prost_reflect::{
    DescriptorPool, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
};
use thiserror::Error;

pub use crate::pb::bailiwick::access::v1::RateClass;
use crate::{domain::Permission, pb::bailiwick::access::v1 as options};

const EXTENSION: &str = "bailiwick.access.v1.rule";

/// RPCs of libraries, whose descriptors are not ours to annotate, and why
/// they are public.
const FOREIGN_PUBLIC: &[(&str, &str, ServerStreaming, &str)] = &[
    ("grpc.health.v1.Health", "Check", ServerStreaming::No, PROBES),
    ("grpc.health.v1.Health", "Watch", ServerStreaming::Yes, PROBES),
    ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", ServerStreaming::Both, API),
    (
        "grpc.reflection.v1alpha.ServerReflection",
        "ServerReflectionInfo",
        ServerStreaming::Both,
        API,
    ),
];
const PROBES: &str = "probes have no credentials";
const API: &str = "the shape of the API is no secret";

#[derive(Clone, Copy, PartialEq, Eq)]
enum ServerStreaming {
    No,
    Yes,
    /// The client's messages too.
    Both,
}

/// Who may call an RPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Whoever holds the permission where the mode says.
    Permission {
        /// Which one.
        permission: Permission,
        /// How the namespace is found.
        mode: Mode,
    },
    /// Everybody; why.
    Public(Arc<str>),
    /// Every authenticated caller; why.
    Authenticated(Arc<str>),
    /// Root alone.
    Root,
    /// Registered nodes alone.
    Node,
}

/// How the namespace of a permission is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// This field of the request names it, or each of it.
    Namespace(Arc<str>),
    /// This field names an object; the look-up finds it.
    Object(Arc<str>),
    /// A list, cut down to the caller's scope.
    Filtered,
    /// It needs a grant with scope everything; why.
    Global(Arc<str>),
}

/// An RPC and its rule.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct MethodRule {
    /// As `bailiwick.v1.TaskService/CreateTask`.
    pub full_name: Arc<str>,
    /// As `/bailiwick.v1.TaskService/CreateTask`.
    pub path: Arc<str>,
    /// Who may call it.
    pub rule: Rule,
    /// Whether the field of its namespace names a job or a rule of the scheduler,
    /// which is its own namespace.
    pub identifier: bool,
    /// Whether a step token may call it.
    pub step: bool,
    /// The class whose rate limit applies.
    pub rate_class: RateClass,
    /// Whether the client sends a stream.
    pub client_streaming: bool,
    /// Whether the server answers with a stream.
    pub server_streaming: bool,
}

/// What is wrong with an RPC's rule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{method}: {problem}")]
pub struct Fault {
    /// The RPC.
    pub method: String,
    /// What is wrong and what to do.
    pub problem: Problem,
}

/// What can be wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// There is none.
    #[error("no access rule; add `option (bailiwick.access.v1.rule)`")]
    NoRule,
    /// It is empty.
    #[error(
        "the rule says nothing; it needs a permission, or a reason that is not empty for \
         `public` or `authenticated`, or `root`, or `node`"
    )]
    Nothing,
    /// Several rules in one.
    #[error("{} cannot stand together", .0.join(" and "))]
    Mixed(Vec<&'static str>),
    /// A reason of white space.
    #[error("the reason of `{0}` is empty")]
    EmptyReason(&'static str),
    /// A permission outside the vocabulary.
    #[error("unknown permission `{0}`")]
    UnknownPermission(String),
    /// A permission of another service.
    #[error("`{0}` is a permission of another service and opens no RPC of this one")]
    ForeignPermission(String),
    /// No namespace mode.
    #[error("`{0}` has no namespace mode: one of namespace_field, object, filtered, global")]
    NoMode(String),
    /// More than one.
    #[error("several namespace modes: {}; exactly one is needed", .0.join(", "))]
    SeveralModes(Vec<&'static str>),
    /// A mode for a rule that names no permission.
    #[error("`{0}` without a permission")]
    ModeAlone(&'static str),
    /// The request has no such field.
    #[error("{mode} `{field}`: the request {request} has no such string field")]
    NoField {
        /// Which mode.
        mode: &'static str,
        /// What it names.
        field: String,
        /// The request.
        request: String,
    },
    /// The descriptors lack the option itself.
    #[error("the descriptors do not define bailiwick.access.v1.rule")]
    NoExtension,
}

/// The rules of all RPCs.
#[derive(Clone)]
pub struct Table {
    methods: Vec<Arc<MethodRule>>,
    by_path: HashMap<Arc<str>, Arc<MethodRule>>,
}

impl Table {
    /// Reads the rules; every fault at once. `foreign` are the permissions
    /// that configuration declares for other services.
    pub fn from_pool(
        pool: &DescriptorPool,
        foreign: &BTreeSet<Arc<str>>,
    ) -> Result<Self, Vec<Fault>> {
        let Some(extension) = pool.get_extension_by_name(EXTENSION) else {
            let method = "(all)".to_owned();
            return Err(vec![Fault { method, problem: Problem::NoExtension }]);
        };
        let mut methods = Vec::new();
        let mut faults = Vec::new();
        for service in pool.services() {
            for method in service.methods() {
                match method_rule(&method, &extension, foreign) {
                    Ok(rule) => methods.push(Arc::new(rule)),
                    Err(problem) => faults.push(Fault { method: full_name(&method), problem }),
                }
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        methods.extend(FOREIGN_PUBLIC.iter().map(foreign_public).map(Arc::new));
        let by_path =
            methods.iter().map(|rule| (Arc::clone(&rule.path), Arc::clone(rule))).collect();
        Ok(Self { methods, by_path })
    }

    /// The rule of a path as gRPC has it; none when there is no such RPC.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Arc<MethodRule>> {
        self.by_path.get(path)
    }

    /// All rules, in the order of the protos.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<MethodRule>> {
        self.methods.iter()
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({} RPCs)", self.methods.len())
    }
}

fn full_name(method: &MethodDescriptor) -> String {
    format!("{}/{}", method.parent_service().full_name(), method.name())
}

fn foreign_public(
    (service, method, streaming, why): &(&str, &str, ServerStreaming, &str),
) -> MethodRule {
    let full_name = format!("{service}/{method}");
    MethodRule {
        path: format!("/{full_name}").into(),
        full_name: full_name.into(),
        rule: Rule::Public(Arc::from(*why)),
        identifier: false,
        step: false,
        rate_class: RateClass::Standard,
        client_streaming: *streaming == ServerStreaming::Both,
        server_streaming: *streaming != ServerStreaming::No,
    }
}

fn method_rule(
    method: &MethodDescriptor,
    extension: &ExtensionDescriptor,
    foreign: &BTreeSet<Arc<str>>,
) -> Result<MethodRule, Problem> {
    let method_options = method.options();
    if !method_options.has_extension(extension) {
        return Err(Problem::NoRule);
    }
    let option: options::Rule = method_options
        .get_extension(extension)
        .as_message()
        .and_then(|message| message.transcode_to().ok())
        .ok_or(Problem::NoRule)?;
    let full_name = full_name(method);
    Ok(MethodRule {
        path: format!("/{full_name}").into(),
        full_name: full_name.into(),
        rule: rule(&option, &method.input(), foreign)?,
        identifier: option.identifier,
        step: option.step,
        rate_class: match option.rate_class() {
            RateClass::Unspecified => RateClass::Standard,
            class @ (RateClass::Standard
            | RateClass::Heavy
            | RateClass::Work
            | RateClass::Credentials) => class,
        },
        client_streaming: method.is_client_streaming(),
        server_streaming: method.is_server_streaming(),
    })
}

fn rule(
    option: &options::Rule,
    request: &MessageDescriptor,
    foreign: &BTreeSet<Arc<str>>,
) -> Result<Rule, Problem> {
    let kinds = named(&[
        ("permission", !option.permission.is_empty()),
        ("public", !option.public.is_empty()),
        ("authenticated", !option.authenticated.is_empty()),
        ("root", option.root),
        ("node", option.node),
    ]);
    let modes = named(&[
        ("namespace_field", !option.namespace_field.is_empty()),
        ("object", !option.object.is_empty()),
        ("filtered", option.filtered),
        ("global", !option.global.is_empty()),
    ]);
    let kind = match kinds.as_slice() {
        [] if modes.is_empty() => return Err(Problem::Nothing),
        &[kind] => kind,
        [] => "",
        _ => return Err(Problem::Mixed(kinds)),
    };
    if let (false, Some(mode)) = (kind == "permission", modes.first()) {
        return Err(Problem::ModeAlone(mode));
    }
    match kind {
        "permission" => Ok(Rule::Permission {
            permission: permission(&option.permission, foreign)?,
            mode: mode(option, &modes, request)?,
        }),
        "public" => reason("public", &option.public).map(Rule::Public),
        "authenticated" => reason("authenticated", &option.authenticated).map(Rule::Authenticated),
        "root" => Ok(Rule::Root),
        _ => Ok(Rule::Node),
    }
}

fn named(flags: &[(&'static str, bool)]) -> Vec<&'static str> {
    flags.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect()
}

fn reason(of: &'static str, text: &str) -> Result<Arc<str>, Problem> {
    if text.trim().is_empty() { Err(Problem::EmptyReason(of)) } else { Ok(text.into()) }
}

fn permission(name: &str, foreign: &BTreeSet<Arc<str>>) -> Result<Permission, Problem> {
    Permission::parse(name).ok_or_else(|| {
        if foreign.contains(name) {
            Problem::ForeignPermission(name.to_owned())
        } else {
            Problem::UnknownPermission(name.to_owned())
        }
    })
}

fn mode(
    option: &options::Rule,
    modes: &[&'static str],
    request: &MessageDescriptor,
) -> Result<Mode, Problem> {
    match modes {
        [] => Err(Problem::NoMode(option.permission.clone())),
        &[mode @ "namespace_field"] => {
            field(request, mode, &option.namespace_field, Many::Allowed).map(Mode::Namespace)
        }
        &[mode @ "object"] => field(request, mode, &option.object, Many::Refused).map(Mode::Object),
        &["filtered"] => Ok(Mode::Filtered),
        &[_] => reason("global", &option.global).map(Mode::Global),
        several => Err(Problem::SeveralModes(several.to_vec())),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Many {
    Allowed,
    Refused,
}

/// Checks that the path leads through single messages to a string.
fn field(
    request: &MessageDescriptor,
    mode: &'static str,
    path: &str,
    many: Many,
) -> Result<Arc<str>, Problem> {
    let missing = || Problem::NoField {
        mode,
        field: path.to_owned(),
        request: request.full_name().to_owned(),
    };
    let (outer, last) = match path.rsplit_once('.') {
        Some((outer, last)) => (Some(outer), last),
        None => (None, path),
    };
    let mut message = request.clone();
    for name in outer.into_iter().flat_map(|outer| outer.split('.')) {
        let inner = message.get_field_by_name(name).filter(|field| !field.is_list());
        message = inner.and_then(|field| field.kind().as_message().cloned()).ok_or_else(missing)?;
    }
    let fits = |field: &FieldDescriptor| {
        field.kind() == Kind::String && (many == Many::Allowed || !field.is_list())
    };
    message.get_field_by_name(last).filter(fits).ok_or_else(missing)?;
    Ok(path.into())
}

#[cfg(test)]
mod tests;
