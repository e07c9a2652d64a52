//! The parts that Tasker's users write and that have no effect yet: their
//! fields are checked, then they are warned about.
//!
//! Not here: anything that the engine acts on.

use std::collections::BTreeSet;

use super::{
    check::{self, HANDLER_MARKS, NAME_MARKS},
    document::{Value, check_free},
    fields::{Field, Fields},
    findings::{Findings, shown},
};

const LIFECYCLE_FIELDS: [&str; 4] = [
    "max_duration_minutes",
    "max_waiting_for_dependencies_minutes",
    "max_waiting_for_retry_minutes",
    "max_steps_in_process_minutes",
];
const STEP_LIFECYCLE_FIELDS: [&str; 6] = [
    "max_duration_minutes",
    "max_waiting_for_dependencies_minutes",
    "max_waiting_for_retry_minutes",
    "max_steps_in_process_minutes",
    "max_retries",
    "backoff_multiplier",
];
const SYSTEM_FIELDS: [&str; 2] = ["primary", "secondary"];
const BATCH_FIELDS: [&str; 5] =
    ["batch_size", "parallelism", "cursor_field", "worker_template", "failure_strategy"];
const EVENT_FIELDS: [&str; 6] =
    ["name", "description", "condition", "delivery_mode", "publisher", "schema"];
const ENVIRONMENT_FIELDS: [&str; 1] = ["steps"];
const OVERRIDE_FIELDS: [&str; 4] = ["name", "handler", "retry", "timeout_seconds"];
const OVERRIDE_HANDLER_FIELDS: [&str; 3] = ["callable", "method", "initialization"];
/// How many environments a template has at most.
const ENVIRONMENTS_MAX: usize = 100;
/// An override for every step.
const EVERY_STEP: &str = "ALL";

/// The inert parts of a template.
pub(super) fn template(fields: &Fields<'_>, findings: &mut Findings) {
    if let Some(field) = fields.get("lifecycle") {
        lifecycle(&field, &LIFECYCLE_FIELDS, findings);
    }
    if let Some(field) = fields.get("environments") {
        environments(&field, &step_names(fields), findings);
    }
    systems(fields, findings);
    if let Some(field) = fields.get("domain_events") {
        check_free(field.node, &field.path, findings);
    }
    fields.warn_without_effect(
        &["lifecycle", "environments", "domain_events", "system_dependency", "system_dependencies"],
        findings,
    );
}

/// The inert parts of a step.
pub(super) fn step(fields: &Fields<'_>, findings: &mut Findings) {
    if let Some(field) = fields.get("lifecycle") {
        lifecycle(&field, &STEP_LIFECYCLE_FIELDS, findings);
    }
    if let Some(field) = fields.get("result_schema") {
        check_free(field.node, &field.path, findings);
    }
    if let Some(field) = fields.get("batch_config") {
        check_free(field.node, &field.path, findings);
        field.fields(&BATCH_FIELDS, findings);
    }
    if let Some(field) = fields.get("publishes_events") {
        for (index, item) in field.list(findings).unwrap_or_default().iter().enumerate() {
            let item = field.item(index, item);
            if let Some(event) = item.fields(&EVENT_FIELDS, findings) {
                event.require("name", findings);
                if let Some(schema) = event.get("schema") {
                    check_free(schema.node, &schema.path, findings);
                }
            }
        }
    }
    systems(fields, findings);
    fields.warn_without_effect(
        &["lifecycle", "result_schema", "batch_config", "publishes_events", "system_dependency"],
        findings,
    );
}

fn lifecycle(field: &Field<'_>, known: &[&str], findings: &mut Findings) {
    let Some(fields) = field.fields(known, findings) else { return };
    for name in known {
        let Some(field) = fields.get(name) else { continue };
        if !matches!(field.node.value, Value::Number(_)) {
            field.fault(format!("expected a number, found {}", field.node.kind()), findings);
        }
    }
}

fn systems(fields: &Fields<'_>, findings: &mut Findings) {
    fields.text("system_dependency", findings);
    let systems = fields.get("system_dependencies");
    let systems = systems.and_then(|field| field.fields(&SYSTEM_FIELDS, findings));
    for field in systems.iter().flat_map(|systems| SYSTEM_FIELDS.map(|name| systems.get(name))) {
        let Some(field) = field else { continue };
        // One system or several.
        if let Value::List(items) = &field.node.value {
            for (index, item) in items.iter().enumerate() {
                field.item(index, item).text(findings);
            }
        } else {
            field.text(findings);
        }
    }
}

fn step_names<'a>(fields: &Fields<'a>) -> BTreeSet<&'a str> {
    let Some(field) = fields.get("steps") else { return BTreeSet::new() };
    let Value::List(items) = &field.node.value else { return BTreeSet::new() };
    items.iter().filter_map(check::written_name).map(|(name, _)| name).collect()
}

/// `environments.<name>.steps[]`, each for a step of the template or for
/// [`EVERY_STEP`].
fn environments(field: &Field<'_>, steps: &BTreeSet<&str>, findings: &mut Findings) {
    let Value::Map(entries) = &field.node.value else {
        field.fault(format!("expected a map, found {}", field.node.kind()), findings);
        return;
    };
    if entries.len() > ENVIRONMENTS_MAX {
        let message =
            format!("{} environments; a template has at most {ENVIRONMENTS_MAX}", entries.len());
        field.fault(message, findings);
        return;
    }
    // Their names are free, so every one of them is known.
    let names: Vec<_> = entries.iter().filter_map(|(key, _)| key.as_key()).collect();
    let known: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    let Some(fields) = field.fields(&known, findings) else { return };
    let mut seen = BTreeSet::new();
    for name in known.into_iter().filter(|name| seen.insert(*name)) {
        let Some(environment) = fields.get(name) else { continue };
        let Some(environment) = environment.fields(&ENVIRONMENT_FIELDS, findings) else { continue };
        let Some(list) = environment.get("steps") else { continue };
        for (index, item) in list.list(findings).unwrap_or_default().iter().enumerate() {
            step_override(&list.item(index, item), steps, findings);
        }
    }
}

fn step_override(item: &Field<'_>, steps: &BTreeSet<&str>, findings: &mut Findings) {
    let Some(fields) = item.fields(&OVERRIDE_FIELDS, findings) else { return };
    let name = fields.require("name", findings);
    if let Some((field, name)) =
        name.and_then(|field| field.text(findings).map(|name| (field, name)))
        && name != EVERY_STEP
        && !steps.contains(name)
    {
        let known = steps.iter().copied().chain([EVERY_STEP]);
        let hint = findings.suggestion(name, known);
        field.fault(format!("there is no step `{}`{hint}", shown(name)), findings);
    }
    if let Some(handler) =
        fields.get("handler").and_then(|field| field.fields(&OVERRIDE_HANDLER_FIELDS, findings))
    {
        if let Some(field) = handler.get("callable") {
            field.name(HANDLER_MARKS, findings);
        }
        if let Some(field) = handler.get("method") {
            field.name(NAME_MARKS, findings);
        }
        if let Some(field) = handler.get("initialization") {
            check::initialization(&field, findings);
        }
    }
    if let Some(field) = fields.get("retry") {
        check::retry(&field, findings);
    }
    check::timeout_ms(&fields, findings);
}
