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
        principal::GrantRef,
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
    let registrar = vouched(engine, permit, &template)?;
    let (template, stamp, now) = (Arc::new(template), permit.stamp(), engine.now());
    let registered =
        engine.store.register(namespace, template, definition, registrar, &stamp, now).await?;
    match registered {
        Registered::New(record) => Ok(Registration { record, unchanged: false, warnings }),
        Registered::Unchanged(record) => Ok(Registration { record, unchanged: true, warnings }),
        Registered::Conflict => Err(Error::TemplateExists(shown)),
    }
}

/// Who stands behind what the steps ask for: its registrar, who must hold all
/// of it in this namespace now (SE-30).
fn vouched(
    engine: &Engine,
    permit: &Permit<TemplatesRegister>,
    template: &Template,
) -> Result<Option<GrantRef>, Error> {
    let wrong = |message: String| Err(fields::invalid("definition", message));
    if !template.asks() {
        return Ok(None);
    }
    let (principal, namespace) = (permit.lasting(), permit.namespace());
    for step in &template.steps {
        if engine.rights.issuer().is_none() && !step.asked.is_nothing() {
            return wrong(format!(
                "the step `{}` asks for rights, and steps have tokens only where \
                 `server.public_url` is set in the server's configuration",
                step.name
            ));
        }
        let mut asked = step.asked.permissions.own();
        if let Some(permission) = asked.find(|asked| !principal.may(*asked, namespace)) {
            let permission = permit.lacks(permission, [namespace.as_str()]);
            return Err(Error::RightMissing { step: step.name.to_string(), permission });
        }
        let mut audiences = step.asked.audiences.iter();
        if let Some(name) = audiences.find(|name| engine.rights.audience(namespace, name).is_none())
        {
            return wrong(format!(
                "the step `{}` asks for a token for `{name}`, which is no audience of this \
                 namespace: `auth.namespaces` in the server's configuration lists them",
                step.name
            ));
        }
    }
    Ok(Some(GrantRef::of(principal, engine.now(), None)))
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
