//! Handlers: those that templates name and those that workers offer.
//!
//! Not here: which worker gets a step (`floor`).

use std::collections::BTreeMap;

use tracing::instrument;

use super::{Engine, Error, PageRequest, Paged, page::Query};
use crate::{
    authz::Claim,
    domain::{Namespace, permission::right::SystemHandlersRead},
    storage::{Listed, Page},
};

/// A handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handler {
    /// The namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
    /// How many templates name it.
    pub templates: u32,
    /// How many connected workers offer it.
    pub workers: u32,
}

/// Namespace and name: the order of the list.
type Key = (String, String);

/// Where a page of two merged lists begins: behind a handler, and the store's
/// page that it lay in.
#[derive(Default)]
struct Place {
    behind: Option<Key>,
    store: Option<String>,
}

impl Place {
    fn write(&self) -> String {
        serde_json::json!([self.behind, self.store]).to_string()
    }

    fn read(text: &str) -> Result<Self, Error> {
        let (behind, store) = serde_json::from_str(text).map_err(|_| Error::PageToken)?;
        Ok(Self { behind, store })
    }
}

/// Lists handlers by namespace and name.
#[instrument(name = "engine.handlers.list", skip_all)]
pub async fn list(
    engine: &Engine,
    claim: &Claim<SystemHandlersRead>,
    namespace: Option<&Namespace>,
    request: &PageRequest,
) -> Result<Paged<Handler>, Error> {
    let query =
        Query::new("handlers", claim.identity()).with_option(namespace.map(Namespace::as_str));
    let Page { size, after } = query.page(request)?;
    let mut place = after.as_deref().map(Place::read).transpose()?.unwrap_or_default();
    let mut offered = engine.floor.handlers_offered(|area| {
        claim.scope().contains(area) && namespace.is_none_or(|only| only == area)
    });
    if let Some(behind) = &place.behind {
        offered = offered.split_off(behind);
        offered.remove(behind);
    }
    let mut items = Vec::new();
    loop {
        let page = Page { size, after: place.store.clone() };
        let kept = engine.store.handlers(claim.scope(), namespace, &page).await?;
        let next = kept.next.clone();
        let (merged, last) = merge(engine, kept, &mut offered, place.behind.as_ref());
        for handler in merged {
            if items.len() == size {
                let next_token = query.token(&place.write());
                return Ok(Paged { items, next_token });
            }
            place.behind = Some(key(&handler));
            items.push(handler);
        }
        if next.is_none() {
            return Ok(Paged { items, next_token: String::new() });
        }
        place = Place { behind: last.or(place.behind), store: next };
    }
}

/// One page of the store's with the offered handlers that lie within it; also
/// the last key of the store's page.
fn merge(
    engine: &Engine,
    kept: Listed<crate::storage::HandlerRecord>,
    offered: &mut BTreeMap<Key, Namespace>,
    behind: Option<&Key>,
) -> (Vec<Handler>, Option<Key>) {
    let last = kept.items.last().map(|record| (record.namespace.to_string(), record.name.clone()));
    let mut merged: BTreeMap<Key, Handler> = BTreeMap::new();
    for record in kept.items {
        let key = (record.namespace.to_string(), record.name.clone());
        offered.remove(&key);
        if behind.is_some_and(|behind| key <= *behind) {
            continue;
        }
        let workers = engine.floor.workers_offering(&record.namespace, &record.name);
        let (namespace, name, templates) = (record.namespace, record.name, record.templates);
        merged.insert(key, Handler { namespace, name, templates, workers });
    }
    // What lies behind this page's last one belongs to a later page.
    let later = match (&last, &kept.next) {
        (Some(last), Some(_)) => offered.split_off(last),
        _ => BTreeMap::new(),
    };
    for (key, namespace) in std::mem::replace(offered, later) {
        let workers = engine.floor.workers_offering(&namespace, &key.1);
        let name = key.1.clone();
        merged.insert(key, Handler { namespace, name, templates: 0, workers });
    }
    (merged.into_values().collect(), last)
}

fn key(handler: &Handler) -> Key {
    (handler.namespace.to_string(), handler.name.clone())
}
