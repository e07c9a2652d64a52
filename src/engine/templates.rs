//! Templates: register, look at, list, validate.
//!
//! Not here: how a definition is read (`domain::template`).

use std::sync::Arc;

use tracing::instrument;

use super::{Engine, Error, PageRequest, Paged, fields, page::Query, tasks};
use crate::{
    authz::{Claim, Permit},
    domain::{
        Namespace,
        permission::right::{TemplatesRead, TemplatesRegister, TemplatesValidate},
        template::{Finding, Parsed, Template},
    },
    storage::{self, Registered, TemplateRecord},
};

/// What became of a registration.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The template.
    pub record: Arc<TemplateRecord>,
    /// It was there already with the same content.
    pub unchanged: bool,
    /// What is understood and not acted on yet.
    pub warnings: Vec<Finding>,
}

/// What there is to say about a definition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validation {
    /// Every fault; none when it could be registered.
    pub errors: Vec<Finding>,
    /// What is understood and not acted on yet.
    pub warnings: Vec<Finding>,
}

/// Which templates to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this namespace.
    pub namespace: Option<Namespace>,
    /// With this name.
    pub name: Option<String>,
}

/// Registers a template in the permit's namespace.
#[instrument(name = "engine.templates.register", skip_all, fields(namespace = %permit.namespace()))]
pub async fn register(
    engine: &Engine,
    permit: &Permit<TemplatesRegister>,
    definition: String,
) -> Result<Registration, Error> {
    let namespace = permit.namespace();
    let definition: Arc<str> = definition.into();
    let Parsed { template, warnings } =
        parse(namespace.clone(), Arc::clone(&definition)).await?.map_err(Error::TemplateInvalid)?;
    let shown = tasks::shown(&template.name, Some(&template.version.to_string()));
    let registered = engine
        .store
        .register(namespace, Arc::new(template), definition, &permit.stamp(), engine.now())
        .await?;
    match registered {
        Registered::New(record) => Ok(Registration { record, unchanged: false, warnings }),
        Registered::Unchanged(record) => Ok(Registration { record, unchanged: true, warnings }),
        Registered::Conflict => Err(Error::TemplateExists(shown)),
    }
}

/// Checks a definition and reports every fault in it; registers nothing.
#[instrument(name = "engine.templates.validate", skip_all, fields(namespace = %permit.namespace()))]
pub async fn validate(
    permit: &Permit<TemplatesValidate>,
    definition: String,
) -> Result<Validation, Error> {
    Ok(match parse(permit.namespace().clone(), definition.into()).await? {
        Ok(Parsed { warnings, .. }) => Validation { errors: Vec::new(), warnings },
        Err(errors) => Validation { errors, warnings: Vec::new() },
    })
}

/// Shows one version of a template with its definition.
#[instrument(name = "engine.templates.get", skip_all, fields(namespace = %permit.namespace()))]
pub async fn get(
    engine: &Engine,
    permit: &Permit<TemplatesRead>,
    name: &str,
    version: &str,
) -> Result<Arc<TemplateRecord>, Error> {
    fields::name("name", name)?;
    let parsed = fields::version(version)?;
    let found = engine.store.template(permit.namespace(), name, Some(&parsed)).await?;
    found.ok_or_else(|| Error::TemplateNotFound(tasks::shown(name, Some(version))))
}

/// Lists templates, newest first.
#[instrument(name = "engine.templates.list", skip_all)]
pub async fn list(
    engine: &Engine,
    claim: &Claim<TemplatesRead>,
    filter: &Filter,
    request: &PageRequest,
) -> Result<Paged<Arc<TemplateRecord>>, Error> {
    let Filter { namespace, name } = filter;
    let name = name.as_deref();
    fields::label("name", name.unwrap_or_default())?;
    let query = Query::new("templates", claim.identity())
        .with_option(namespace.as_ref().map(Namespace::as_str))
        .with_option(name);
    let page = query.page(request)?;
    let listed = engine.store.templates(claim.scope(), namespace.as_ref(), name, &page).await?;
    Ok(query.paged(listed))
}

/// Reading a large definition takes a while: not on a thread that others'
/// calls wait for.
async fn parse(
    namespace: Namespace,
    definition: Arc<str>,
) -> Result<Result<Parsed, Vec<Finding>>, Error> {
    tokio::task::spawn_blocking(move || Template::parse(&namespace, &definition))
        .await
        .map_err(|error| Error::Storage(storage::Error::Broken(Box::new(error))))
}
