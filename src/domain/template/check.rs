//! Walks a definition and makes a template of it, or tells every fault.
//!
//! Not here: how steps hang together (`graph`), what an input schema says
//! (`schema`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    super::{
        Json, Namespace,
        json::PAYLOAD_BYTES_MAX,
        task::{Backoff, RetryPolicy, STEP_TIMEOUT_DEFAULT},
    },
    StepSpec, Template,
    document::{Node, Value, check_free},
    fields::{Field, Fields, NAME_BYTES_MAX},
    findings::{Findings, Path, shown},
    graph::{self, Reference},
    inert, rights,
    schema::InputSchema,
};

/// How many steps a template has at most.
pub const STEPS_MAX: usize = 1_000;
/// How many attempts a step gets at most.
pub const ATTEMPTS_MAX: u32 = 100;
/// The longest pause between attempts, in milliseconds: a day.
pub const BACKOFF_MS_MAX: u32 = 86_400_000;
/// The longest timeout of an attempt, in seconds: a day.
pub const TIMEOUT_SECONDS_MAX: u32 = 86_400;
/// What may stand in the name of a template, a step or a method beside
/// letters and digits.
pub(super) const NAME_MARKS: &str = "_.-";
/// What may stand in the name of a handler beside letters and digits.
pub(super) const HANDLER_MARKS: &str = "_.-:/";

const TEMPLATE_FIELDS: [&str; 12] = [
    "name",
    "namespace_name",
    "version",
    "description",
    "input_schema",
    "steps",
    "metadata",
    "lifecycle",
    "environments",
    "domain_events",
    "system_dependency",
    "system_dependencies",
];
const STEP_FIELDS: [&str; 17] = [
    "name",
    "description",
    "handler",
    "dependencies",
    "depends_on",
    "type",
    "retry",
    "timeout_seconds",
    "result_schema",
    "publishes_events",
    "lifecycle",
    "batch_config",
    "system_dependency",
    "metadata",
    "permissions",
    "audiences",
    "spawns",
];
const HANDLER_FIELDS: [&str; 4] = ["callable", "initialization", "method", "resolver"];
const RETRY_FIELDS: [&str; 8] = [
    "retryable",
    "max_attempts",
    "limit",
    "backoff",
    "backoff_base_ms",
    "initial_delay",
    "max_backoff_ms",
    "max_delay",
];
/// Tasker's kinds of steps that are not run yet.
const LATER_TYPES: [&str; 4] = ["decision", "deferred_convergence", "batchable", "batch_worker"];
const BACKOFFS: [(&str, Backoff); 3] =
    [("exponential", Backoff::Exponential), ("linear", Backoff::Linear), ("fixed", Backoff::Fixed)];

/// The template that a definition describes; none when it has faults.
pub(super) fn template(
    expected: &Namespace,
    root: &Node,
    findings: &mut Findings,
) -> Option<Template> {
    let path = Path::default();
    let fields = Fields::read(root, &path, &TEMPLATE_FIELDS, findings)?;
    let name = fields.require("name", findings).and_then(|field| field.name(NAME_MARKS, findings));
    let namespace = namespace(&fields, expected, findings);
    let version = version(&fields, findings);
    let description = fields.text("description", findings).unwrap_or_default().to_owned();
    let schema = fields.get("input_schema").and_then(|field| InputSchema::read(&field, findings));
    if let Some(metadata) = fields.get("metadata") {
        check_free(metadata.node, &metadata.path, findings);
    }
    let steps = steps(&fields, findings);
    inert::template(&fields, findings);
    if findings.failed() {
        return None;
    }
    Some(Template {
        namespace: namespace?,
        name: name?.into(),
        version: version?,
        description,
        steps: steps?,
        input_schema: schema,
    })
}

fn namespace(
    fields: &Fields<'_>,
    expected: &Namespace,
    findings: &mut Findings,
) -> Option<Namespace> {
    let field = fields.require("namespace_name", findings)?;
    match Namespace::parse(field.text(findings)?) {
        Ok(namespace) if namespace == *expected => return Some(namespace),
        // SE-08: one value given twice must be the same.
        Ok(namespace) => field.fault(
            format!(
                "`{namespace}` is not the namespace of the request, `{expected}`: make them the \
                 same"
            ),
            findings,
        ),
        Err(error) => field.fault(error.to_string(), findings),
    }
    None
}

fn version(fields: &Fields<'_>, findings: &mut Findings) -> Option<semver::Version> {
    let field = fields.require("version", findings)?;
    let text = match &field.node.value {
        Value::Text(text) | Value::Number(text) => text,
        Value::Null | Value::Bool(_) | Value::List(_) | Value::Map(_) => {
            return field.text(findings).and(None);
        }
    };
    if text.len() > NAME_BYTES_MAX {
        field.fault(format!("a version has at most {NAME_BYTES_MAX} bytes"), findings);
        return None;
    }
    semver::Version::parse(text)
        .map_err(|error| {
            let text = shown(text);
            let message = format!("`{text}` is not a semantic version such as 1.0.0: {error}");
            field.fault(message, findings);
        })
        .ok()
}

fn steps(fields: &Fields<'_>, findings: &mut Findings) -> Option<Vec<StepSpec>> {
    let field = fields.require("steps", findings)?;
    let items = field.list(findings)?;
    if items.is_empty() {
        field.fault("a template has at least one step", findings);
    }
    if items.len() > STEPS_MAX {
        let message = format!("{} steps; a template has at most {STEPS_MAX}", items.len());
        field.fault(message, findings);
        return None;
    }
    let names = step_names(&field, items, findings);
    let mut graph = Vec::with_capacity(items.len());
    let steps: Vec<Option<StepSpec>> = items
        .iter()
        .enumerate()
        .map(|(index, item)| {
            let item = field.item(index, item);
            let step = item.fields(&STEP_FIELDS, findings);
            let depends_on = step
                .as_ref()
                .map(|step| dependencies(step, index, &names, findings))
                .unwrap_or_default();
            graph.push(depends_on.clone());
            step.and_then(|step| self::step(&step, &depends_on, findings))
        })
        .collect();
    graph::refuse_cycles(&graph, &names.ordered, findings);
    steps.into_iter().collect()
}

/// The names of the steps and where each is.
struct StepNames<'a> {
    /// In the order of the text; empty where there is none.
    ordered: Vec<&'a str>,
    places: BTreeMap<&'a str, usize>,
}

fn step_names<'a>(field: &Field<'a>, items: &'a [Node], findings: &mut Findings) -> StepNames<'a> {
    let mut names = StepNames { ordered: Vec::with_capacity(items.len()), places: BTreeMap::new() };
    for (index, item) in items.iter().enumerate() {
        let written = written_name(item);
        names.ordered.push(written.map_or("", |(name, _)| name));
        let Some((name, node)) = written else { continue };
        if let Some(first) = names.places.get(name) {
            let path = field.item(index, item).path.field("name");
            let message = format!("`{}` is the name of steps[{first}] already", shown(name));
            findings.error(node.place, &path, message);
        } else {
            names.places.insert(name, index);
        }
    }
    names
}

/// The text of `name` in a map, faults aside: they are told when the step is
/// read.
pub(super) fn written_name(item: &Node) -> Option<(&str, &Node)> {
    let Value::Map(entries) = &item.value else { return None };
    let (_, node) = entries
        .iter()
        .find(|(key, _)| matches!(&key.value, Value::Text(text) if text == "name"))?;
    if let Value::Text(name) = &node.value { Some((name, node)) } else { None }
}

fn step(
    fields: &Fields<'_>,
    depends_on: &[Reference],
    findings: &mut Findings,
) -> Option<StepSpec> {
    let name = fields.require("name", findings).and_then(|field| field.name(NAME_MARKS, findings));
    let description = fields.text("description", findings).unwrap_or_default().to_owned();
    let handler = fields.require("handler", findings).and_then(|field| handler(&field, findings));
    let retry = fields
        .get("retry")
        .map_or_else(|| Some(RetryPolicy::default()), |field| retry(&field, findings));
    let timeout_ms = timeout_ms(fields, findings);
    refuse_later_types(fields, findings);
    let asked = rights::read(fields, findings);
    if let Some(metadata) = fields.get("metadata") {
        check_free(metadata.node, &metadata.path, findings);
    }
    inert::step(fields, findings);
    let (handler, method, initialization) = handler?;
    Some(StepSpec {
        name: name?.into(),
        description,
        handler,
        method,
        initialization,
        depends_on: depends_on.iter().map(|reference| reference.step).collect(),
        retry: retry?,
        timeout_ms: timeout_ms?,
        asked,
    })
}

type Handler = (Arc<str>, Option<Arc<str>>, Json);

fn handler(field: &Field<'_>, findings: &mut Findings) -> Option<Handler> {
    let fields = field.fields(&HANDLER_FIELDS, findings)?;
    let callable =
        fields.require("callable", findings).and_then(|field| field.name(HANDLER_MARKS, findings));
    let method = fields.get("method").map(|field| field.name(NAME_MARKS, findings));
    let initialization = fields
        .get("initialization")
        .map_or_else(|| Json::parse_object("").ok(), |field| initialization(&field, findings));
    fields.warn_without_effect(&["resolver"], findings);
    let method = match method {
        Some(name) => Some(name?.into()),
        None => None,
    };
    Some((callable?.into(), method, initialization?))
}

/// The settings of a handler as JSON.
pub(super) fn initialization(field: &Field<'_>, findings: &mut Findings) -> Option<Json> {
    if !matches!(field.node.value, Value::Map(_)) {
        field.fault(format!("expected a map, found {}", field.node.kind()), findings);
        return None;
    }
    check_free(field.node, &field.path, findings);
    let json = field.node.to_json();
    if json.len() > PAYLOAD_BYTES_MAX {
        let message =
            format!("{} bytes of settings; at most {PAYLOAD_BYTES_MAX} are taken", json.len());
        field.fault(message, findings);
        return None;
    }
    Json::parse_object(&json).map_err(|error| field.fault(error.to_string(), findings)).ok()
}

/// When a failed attempt is followed by another.
pub(super) fn retry(field: &Field<'_>, findings: &mut Findings) -> Option<RetryPolicy> {
    let fields = field.fields(&RETRY_FIELDS, findings)?;
    let default = RetryPolicy::default();
    let retryable =
        fields.get("retryable").map_or(Some(default.retryable), |field| field.truth(findings));
    let max_attempts = fields
        .either("max_attempts", "limit", findings)
        .map_or(Some(default.max_attempts), |field| field.whole(0..=ATTEMPTS_MAX, findings));
    let backoff =
        fields.get("backoff").map_or(Some(default.backoff), |field| backoff(&field, findings));
    let base_ms = fields
        .either("backoff_base_ms", "initial_delay", findings)
        .map_or(Some(default.base_ms), |field| field.whole(0..=BACKOFF_MS_MAX, findings));
    let longest = fields.either("max_backoff_ms", "max_delay", findings);
    let max_ms = longest.as_ref().map_or_else(
        // A first pause above the usual limit is meant as it stands.
        || base_ms.map(|base_ms| default.max_ms.max(base_ms)),
        |field| field.whole(0..=BACKOFF_MS_MAX, findings),
    );
    let policy = RetryPolicy {
        retryable: retryable?,
        // None stands for the first attempt alone; so does 0.
        max_attempts: if retryable? { max_attempts?.max(1) } else { 1 },
        backoff: backoff?,
        base_ms: base_ms?,
        max_ms: max_ms?,
    };
    if let Some(longest) = longest.filter(|_| policy.max_ms < policy.base_ms) {
        let message = format!(
            "shorter than the first pause of {} ms: every pause takes {} ms",
            policy.base_ms, policy.max_ms
        );
        findings.warning(longest.node.place, &longest.path, message);
    }
    Some(policy)
}

fn backoff(field: &Field<'_>, findings: &mut Findings) -> Option<Backoff> {
    let text = field.text(findings)?;
    let known = BACKOFFS.iter().find(|(name, _)| *name == text).map(|(_, backoff)| *backoff);
    if known.is_none() {
        let hint = findings.suggestion(text, BACKOFFS.map(|(name, _)| name));
        let text = shown(text);
        let message = format!("`{text}` is not a backoff: exponential, linear or fixed{hint}");
        field.fault(message, findings);
    }
    known
}

/// How long an attempt may take, in milliseconds.
pub(super) fn timeout_ms(fields: &Fields<'_>, findings: &mut Findings) -> Option<u32> {
    let timeout = match fields.get("timeout_seconds") {
        Some(field) => {
            let seconds = field.whole(1..=TIMEOUT_SECONDS_MAX, findings)?;
            Duration::from_secs(u64::from(seconds))
        }
        None => STEP_TIMEOUT_DEFAULT,
    };
    u32::try_from(timeout.as_millis()).ok()
}

fn refuse_later_types(fields: &Fields<'_>, findings: &mut Findings) {
    let Some(field) = fields.get("type") else { return };
    let Some(text) = field.text(findings) else { return };
    if text == "standard" {
        return;
    }
    if LATER_TYPES.contains(&text) {
        let message =
            format!("steps of type `{text}` are not supported yet; only `standard` ones are");
        field.fault(message, findings);
    } else {
        let known = LATER_TYPES.iter().copied().chain(["standard"]);
        let hint = findings.suggestion(text, known);
        let message = format!("`{}` is not a type of step{hint}", shown(text));
        field.fault(message, findings);
    }
}

/// The steps that a step waits for; those that cannot be are told and left
/// out.
fn dependencies(
    fields: &Fields<'_>,
    own: usize,
    names: &StepNames<'_>,
    findings: &mut Findings,
) -> Vec<Reference> {
    let Some(field) = fields.either("depends_on", "dependencies", findings) else {
        return Vec::new();
    };
    let Some(items) = field.list(findings) else { return Vec::new() };
    let mut found = BTreeSet::new();
    let mut references = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let item = field.item(index, item);
        let Some(name) = item.text(findings) else { continue };
        let Some(&step) = names.places.get(name) else {
            let hint = findings.suggestion(name, names.places.keys().copied());
            item.fault(format!("there is no step `{}`{hint}", shown(name)), findings);
            continue;
        };
        if step == own {
            item.fault(format!("`{}` cannot wait for itself", shown(name)), findings);
        } else if !found.insert(step) {
            item.fault(format!("`{}` is given twice", shown(name)), findings);
        } else {
            references.push(Reference { step, place: item.node.place, path: item.path });
        }
    }
    references
}
