//! Templates: graphs of steps, read from the YAML that Tasker's users write.
//!
//! A definition is read once into a tree with places (`document`), walked
//! (`check`, `graph`, `inert`, `schema`) and becomes a [`Template`] or all of
//! its faults. Not here: where templates are kept, and who may register them.

use std::{collections::BTreeSet, sync::Arc};

use super::{Json, Namespace, task::RetryPolicy};

mod check;
mod document;
mod fields;
mod findings;
mod graph;
mod inert;
mod metered;
mod rights;
mod schema;
#[cfg(test)]
mod tests;

pub use check::{ATTEMPTS_MAX, BACKOFF_MS_MAX, STEPS_MAX, TIMEOUT_SECONDS_MAX};
pub use document::DEFINITION_BYTES_MAX;
pub use fields::NAME_BYTES_MAX;
pub use findings::{FINDINGS_MAX, Finding};
pub use rights::Asked;
pub use schema::{PATTERNS_MAX, SCHEMA_BYTES_MAX, VIOLATIONS_MAX};

/// What a definition says, checked.
#[derive(Clone, Debug)]
pub struct Template {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Arc<str>,
    /// Its version.
    pub version: semver::Version,
    /// What it is for.
    pub description: String,
    /// Its steps in the order in which they are written.
    pub steps: Vec<StepSpec>,
    /// What a task's context must meet, compiled.
    input_schema: Option<schema::InputSchema>,
}

/// One step of a template.
#[derive(Clone, Debug)]
pub struct StepSpec {
    /// Its name, unique in the template.
    pub name: Arc<str>,
    /// What it does.
    pub description: String,
    /// The handler that does the work.
    pub handler: Arc<str>,
    /// The handler's method, where one is named.
    pub method: Option<Arc<str>>,
    /// The handler's settings, a JSON object.
    pub initialization: Json,
    /// The places in `steps` of those that it waits for.
    pub depends_on: Vec<usize>,
    /// When a failed attempt is followed by another.
    pub retry: RetryPolicy,
    /// How long an attempt may take, in milliseconds.
    pub timeout_ms: u32,
    /// What its tokens shall be worth.
    pub asked: Asked,
}

/// A template with what its registrar should know.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The template.
    pub template: Template,
    /// What is understood and not acted on yet.
    pub warnings: Vec<Finding>,
}

impl Template {
    /// Reads a definition; every fault of it, not the first.
    pub fn parse(namespace: &Namespace, definition: &str) -> Result<Parsed, Vec<Finding>> {
        let root = document::read(definition)?;
        let mut findings = findings::Findings::default();
        match check::template(namespace, &root, &mut findings) {
            Some(template) => Ok(Parsed { template, warnings: findings.into_warnings() }),
            None => Err(findings.into_errors()),
        }
    }

    /// Checks a context against the input schema; every fault of it.
    pub fn check_context(&self, context: &Json) -> Result<(), Vec<String>> {
        self.input_schema.as_ref().map_or(Ok(()), |schema| schema.check(context))
    }

    /// Whether [`Self::check_context`] takes so little that it need not leave
    /// the thread of its caller.
    #[must_use]
    pub fn checks_quickly(&self, context: &Json) -> bool {
        self.input_schema.as_ref().is_none_or(|schema| schema.is_quick(context))
    }

    /// The input schema, where there is one.
    #[must_use]
    pub fn input_schema(&self) -> Option<&Json> {
        self.input_schema.as_ref().map(schema::InputSchema::json)
    }

    /// Whether any step asks for rights, which its registrar then vouches for.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.steps.iter().any(|step| !step.asked.is_nothing())
    }

    /// The handlers that its steps name, each once, sorted.
    #[must_use]
    pub fn handlers(&self) -> Vec<Arc<str>> {
        let names: BTreeSet<&Arc<str>> = self.steps.iter().map(|step| &step.handler).collect();
        names.into_iter().cloned().collect()
    }

    /// For each step the places in `steps` of those that wait for it, in
    /// order.
    #[must_use]
    pub fn dependants(&self) -> Vec<Vec<usize>> {
        let mut dependants = vec![Vec::new(); self.steps.len()];
        for (place, step) in self.steps.iter().enumerate() {
            for dependency in &step.depends_on {
                if let Some(waiting) = dependants.get_mut(*dependency) {
                    waiting.push(place);
                }
            }
        }
        dependants
    }
}
