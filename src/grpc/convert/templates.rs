//! Templates and what is found in them.

use super::{owned, time};
use crate::{
    domain::template::Finding,
    engine::{
        TemplateRecord,
        templates::{Registration, Validation},
    },
    pb::v1 as pb,
};

/// A template as lists show it, without its definition.
pub(in crate::grpc) fn template(record: &TemplateRecord) -> pb::Template {
    let template = &record.template;
    let mut handlers: Vec<String> = Vec::new();
    for step in &template.steps {
        if !handlers.iter().any(|known| **known == *step.handler) {
            handlers.push(owned(&step.handler));
        }
    }
    pb::Template {
        namespace: record.namespace.to_string(),
        name: owned(&template.name),
        version: template.version.to_string(),
        description: template.description.clone(),
        steps: template.steps.iter().map(|step| owned(&step.name)).collect(),
        handlers,
        definition: None,
        registered_by: owned(&record.registered_by.subject),
        registered_at: Some(time(record.registered_at)),
    }
}

/// A template with the YAML as it was registered.
pub(in crate::grpc) fn template_with_definition(record: &TemplateRecord) -> pb::Template {
    pb::Template { definition: Some(owned(&record.definition)), ..template(record) }
}

impl From<Registration> for pb::RegisterTemplateResponse {
    fn from(registration: Registration) -> Self {
        Self {
            template: Some(template(&registration.record)),
            unchanged: registration.unchanged,
            warnings: findings(registration.warnings),
        }
    }
}

impl From<Validation> for pb::ValidateTemplateResponse {
    fn from(validation: Validation) -> Self {
        Self {
            valid: validation.errors.is_empty(),
            errors: findings(validation.errors),
            warnings: findings(validation.warnings),
        }
    }
}

impl From<Finding> for pb::TemplateFinding {
    fn from(finding: Finding) -> Self {
        let Finding { message, line, column, path } = finding;
        Self { message, line, column, path }
    }
}

fn findings(findings: Vec<Finding>) -> Vec<pb::TemplateFinding> {
    findings.into_iter().map(Into::into).collect()
}
