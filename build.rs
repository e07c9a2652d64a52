//! Writes `rules.rs`: for the request of each RPC the right that its rule
//! names, so that a handler can only get the proof of its own method.

use std::{collections::BTreeMap, env, error::Error, fmt::Write as _, fs, path::PathBuf};

use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MethodDescriptor, Value};

fn main() -> Result<(), Box<dyn Error>> {
    let protos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo::rerun-if-changed={}", protos.display());

    let mut files: Vec<PathBuf> = fs::read_dir(protos.join("bailiwick/v1"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.push(protos.join("envoy/service/auth/v3/external_auth.proto"));
    files.sort();
    let mut compiler = protox::Compiler::new([&protos])?;
    compiler.include_imports(true);
    compiler.open_files(&files)?;
    let pool = DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice())?;
    let extension = pool
        .get_extension_by_name("bailiwick.access.v1.rule")
        .ok_or("proto/bailiwick/access/v1/access.proto has no extension `rule`")?;

    // Several RPCs may share a message only as a part of another; a request
    // belongs to one RPC, which buf's lint holds. `StreamWork` takes its
    // proof from its first message's `open`.
    let mut rules = BTreeMap::new();
    for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        if let Value::Message(rule) = &*method.options().get_extension(&extension) {
            rules.insert(method.full_name().to_owned(), implementations(&method, rule)?);
        }
    }
    let code: String = rules.into_values().collect();
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("rules.rs"), code)?;
    Ok(())
}

fn text(rule: &DynamicMessage, field: &str) -> String {
    rule.get_field_by_name(field)
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn implementations(
    method: &MethodDescriptor,
    rule: &DynamicMessage,
) -> Result<String, Box<dyn Error>> {
    let package = match method.parent_service().package_name() {
        "bailiwick.v1" => "v1".to_owned(),
        other => other.replace('.', "::"),
    };
    let request = format!("crate::pb::{package}::{}", method.input().name());
    let mut code = format!("// {}\n", method.full_name());
    let object = object_getter(method, rule);
    let kind = if object == "\"\"" { "&'static str" } else { "&str" };
    writeln!(
        code,
        "impl Recorded for {request} {{ fn object_text(&self) -> {kind} {{ {object} }} }}"
    )?;
    if !text(rule, "authenticated").is_empty() {
        writeln!(code, "impl Authenticated for {request} {{}}")?;
    }
    if rule.get_field_by_name("root").and_then(|value| value.as_bool()) == Some(true) {
        writeln!(code, "impl RootOnly for {request} {{}}")?;
    }
    let permission = text(rule, "permission");
    if permission.is_empty() {
        return Ok(code);
    }
    let right: String = permission.split([':', '_']).map(capitalised).collect();
    writeln!(
        code,
        "impl Guarded for {request} {{ type Right = crate::domain::permission::right::{right}; }}"
    )?;
    let namespace_field = text(rule, "namespace_field");
    let several =
        method.input().get_field_by_name(&namespace_field).is_some_and(|field| field.is_list());
    if several {
        writeln!(
            code,
            "impl NamespacedMany for {request} {{ fn namespace_texts(&self) -> &[String] {{ &self.{namespace_field} }} }}"
        )?;
    } else if rule.get_field_by_name("identifier").and_then(|value| value.as_bool()) == Some(true) {
        // A rule of the scheduler is judged by its name and its pattern.
        let of = if permission.starts_with("rules:") { "OfRule" } else { "Identified" };
        writeln!(
            code,
            "impl {of} for {request} {{ fn identifier_text(&self) -> &str {{ &self.{namespace_field} }} }}"
        )?;
    } else if !namespace_field.is_empty() {
        writeln!(
            code,
            "impl Namespaced for {request} {{ fn namespace_text(&self) -> &str {{ {} }} }}",
            namespace_getter(method, &namespace_field)?
        )?;
    }
    let filtered = rule.get_field_by_name("filtered").and_then(|value| value.as_bool());
    if !text(rule, "object").is_empty() || filtered == Some(true) {
        writeln!(code, "impl Scoped for {request} {{}}")?;
    }
    if !text(rule, "global").is_empty() {
        writeln!(code, "impl Global for {request} {{}}")?;
    }
    Ok(code)
}

/// The field that says what a call is about: the rule's object, the job or rule
/// that it names, or what is called `name` in a namespace. A lease's id proves
/// the lease, so it stands in no record (SE-18).
fn object_getter(method: &MethodDescriptor, rule: &DynamicMessage) -> String {
    let identifies = rule.get_field_by_name("identifier").and_then(|value| value.as_bool());
    let place = text(rule, "namespace_field");
    let field = match (text(rule, "object"), identifies) {
        (object, _) if !object.is_empty() => object,
        (_, Some(true)) => place,
        _ if place == "namespace" => "name".to_owned(),
        _ => String::new(),
    };
    let known = method.input().get_field_by_name(&field);
    let shown = known.is_some_and(|known| {
        let bare = !known.is_list() && !known.supports_presence();
        bare && known.kind() == Kind::String
    });
    if shown && field != "lease_id" { format!("&self.{field}") } else { "\"\"".to_owned() }
}

/// `open.namespace` of `StreamWorkRequest` becomes a match on its oneof.
fn namespace_getter(method: &MethodDescriptor, path: &str) -> Result<String, Box<dyn Error>> {
    let Some((outer, inner)) = path.split_once('.') else {
        return Ok(format!("&self.{path}"));
    };
    let field = method
        .input()
        .get_field_by_name(outer)
        .ok_or_else(|| format!("{}: no field `{outer}`", method.full_name()))?;
    Ok(match field.containing_oneof() {
        Some(oneof) => format!(
            "match &self.{oneof} {{ Some(crate::pb::v1::{module}::{variant}::{case}(inner)) => &inner.{inner}, _ => \"\" }}",
            oneof = oneof.name(),
            module = snake(method.input().name()),
            variant = capitalised(oneof.name()),
            case = capitalised(outer),
        ),
        None => format!("self.{outer}.as_ref().map_or(\"\", |inner| &inner.{inner})"),
    })
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
}

fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}
