//! Templates: what their store can do.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Listed, Page, Result};
use crate::domain::{
    Namespace, Scope, Timestamp,
    history::Stamp,
    principal::{GrantRef, Identity},
    template::Template,
};

/// A template as it is kept. Immutable.
#[derive(Clone, Debug)]
pub struct TemplateRecord {
    /// Its row.
    pub row: i64,
    /// Its namespace.
    pub namespace: Namespace,
    /// What the definition says.
    pub template: Arc<Template>,
    /// The YAML as it was registered.
    pub definition: Arc<str>,
    /// Who registered it.
    pub registered_by: Identity,
    /// When.
    pub registered_at: Timestamp,
    /// Who stands behind the rights that its steps ask for, where any does.
    pub registrar: Option<GrantRef>,
}

/// What became of a registration.
#[derive(Clone, Debug)]
pub enum Registered {
    /// It is new.
    New(Arc<TemplateRecord>),
    /// It was there with the same content.
    Unchanged(Arc<TemplateRecord>),
    /// The version exists with other content.
    Conflict,
}

/// Templates.
#[async_trait]
pub trait TemplateStore: Send + Sync {
    /// Keeps a template, and with it who stands behind the rights that its
    /// steps ask for; its namespace comes to be with its first one.
    async fn register(
        &self,
        namespace: &Namespace,
        template: Arc<Template>,
        definition: Arc<str>,
        registrar: Option<GrantRef>,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<Registered>;

    /// One version; with none the highest that is no pre-release, or if there
    /// are only pre-releases the highest of them.
    async fn template(
        &self,
        namespace: &Namespace,
        name: &str,
        version: Option<&semver::Version>,
    ) -> Result<Option<Arc<TemplateRecord>>>;

    /// Templates in the scope, newest first.
    async fn templates(
        &self,
        scope: &Scope,
        namespace: Option<&Namespace>,
        name: Option<&str>,
        page: &Page,
    ) -> Result<Listed<Arc<TemplateRecord>>>;
}
