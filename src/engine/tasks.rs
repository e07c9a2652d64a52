//! Tasks: create, look at, list, cancel.
//!
//! Not here: their steps (`steps`), their events (`watch`).

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tracing::instrument;

use super::{Engine, Error, PageRequest, Paged, fields, figures, page::Query, spawns};
use crate::{
    authz::{Claim, Permit},
    domain::{
        Json, TaskId,
        permission::right::{TasksCancel, TasksContextRead, TasksCreate, TasksList, TasksRead},
        task::{Labels, Task},
        template::Template,
    },
    storage::{self, Cancelled, Created, TaskFilter},
};

/// The longest `traceparent` that is kept, in bytes.
const TRACEPARENT_BYTES_MAX: usize = 128;

/// A task to be made; its namespace is the permit's.
#[derive(Clone, Debug, Default)]
pub struct NewTask {
    /// The template's name.
    pub name: String,
    /// The template's version; none is the newest.
    pub version: Option<String>,
    /// A JSON object; empty is `{}`.
    pub context: String,
    /// What the caller says about it.
    pub labels: Labels,
    /// −100 to 100, higher first.
    pub priority: i32,
    /// The W3C trace context of the call.
    pub traceparent: Option<String>,
}

/// Creates a task, or answers with the one that the same request made before.
#[instrument(name = "engine.tasks.create", skip_all, fields(namespace = %permit.namespace()))]
pub async fn create(
    engine: &Engine,
    permit: &Permit<TasksCreate>,
    task: NewTask,
) -> Result<Task, Error> {
    fields::name("name", &task.name)?;
    fields::labels(&task.labels)?;
    fields::priority(task.priority)?;
    let version = task.version.as_deref().map(fields::version).transpose()?;
    let context = fields::object("context", &task.context)?;
    let spawn = spawns::of(engine, permit, &task.name).await?;
    let template =
        engine
            .store
            .template(permit.namespace(), &task.name, version.as_ref())
            .await?
            .ok_or_else(|| Error::TemplateNotFound(shown(&task.name, task.version.as_deref())))?;
    let checked = check(engine, &template.template, &context).await;
    let new = storage::NewTask {
        fingerprint: fingerprint(&task, &context),
        template,
        labels: task.labels,
        priority: task.priority,
        context,
        // Only a hint for tracing: one that is too long is none.
        traceparent: task
            .traceparent
            .filter(|text| text.len() <= TRACEPARENT_BYTES_MAX)
            .map(Into::into),
        entropy: rand::random(),
        spawn,
    };
    if let Err(refused) = checked {
        // A repeated request without a version may meet a newer, stricter
        // template: its answer is the first task all the same.
        return match engine.store.made_before(new).await? {
            Some(Created::New(task) | Created::Existing(task)) => Ok(*task),
            Some(Created::IdempotencyConflict) => Err(Error::IdempotencyConflict),
            Some(Created::NotSpawned(why)) => Err(spawns::not_spawned(why)),
            None => Err(refused),
        };
    }
    match engine.store.create(new, &permit.stamp(), engine.now()).await? {
        Created::New(task) => {
            figures::task_created();
            Ok(*task)
        }
        Created::Existing(task) => Ok(*task),
        Created::IdempotencyConflict => Err(Error::IdempotencyConflict),
        Created::NotSpawned(why) => Err(spawns::not_spawned(why)),
    }
}

/// Checks a context against its template's schema. What may take long waits
/// for one of few places and holds up nobody else: a tenant writes both.
async fn check(engine: &Engine, template: &Arc<Template>, context: &Json) -> Result<(), Error> {
    if template.checks_quickly(context) {
        return template.check_context(context).map_err(Error::ContextInvalid);
    }
    let place = Arc::clone(&engine.checks).acquire_owned().await;
    let (template, context) = (Arc::clone(template), context.clone());
    let checking = tokio::task::spawn_blocking(move || {
        let checked = template.check_context(&context);
        drop(place);
        checked
    });
    match checking.await {
        Ok(checked) => checked.map_err(Error::ContextInvalid),
        // The check broke off; what it was about is in the log.
        Err(_) => Err(Error::ContextInvalid(vec!["/: the check broke off".to_owned()])),
    }
}

/// Shows one task.
#[instrument(name = "engine.tasks.get", skip_all, fields(task = %id))]
pub async fn get(engine: &Engine, claim: &Claim<TasksRead>, id: TaskId) -> Result<Task, Error> {
    engine.store.task(claim.scope(), id).await?.ok_or_else(|| not_found(id))
}

/// Lists tasks, newest first.
#[instrument(name = "engine.tasks.list", skip_all)]
pub async fn list(
    engine: &Engine,
    claim: &Claim<TasksList>,
    filter: TaskFilter,
    request: &PageRequest,
) -> Result<Paged<Task>, Error> {
    if let Some(name) = &filter.name {
        fields::label("name", name)?;
    }
    let mut query = Query::new("tasks", claim.identity())
        .with_option(filter.namespace.as_ref().map(crate::domain::Namespace::as_str))
        .with_option(filter.name.as_deref());
    for above in [filter.parent, filter.root] {
        query = query.with_option(above.map(|id| id.to_string()).as_deref());
    }
    // The order in which states are asked for says nothing.
    let mut states = filter.states.clone();
    states.sort_unstable();
    states.dedup();
    for state in &states {
        query = query.with(state.as_str());
    }
    let filter = TaskFilter { states, ..filter };
    let page = query.page(request)?;
    Ok(query.paged(engine.store.tasks(claim.scope(), &filter, &page).await?))
}

/// Cancels a task; a second time is fine, another final state is not.
#[instrument(name = "engine.tasks.cancel", skip_all, fields(task = %id))]
pub async fn cancel(
    engine: &Engine,
    claim: &Claim<TasksCancel>,
    id: TaskId,
    reason: Option<String>,
) -> Result<Task, Error> {
    fields::reason(reason.as_deref().unwrap_or_default())?;
    let reason = reason.as_deref().filter(|reason| !reason.is_empty());
    let cancelled =
        engine.store.cancel(claim.scope(), id, reason, &claim.stamp(), engine.now()).await?;
    match cancelled.ok_or_else(|| not_found(id))? {
        Cancelled::Done(task) => Ok(*task),
        Cancelled::Final(state) => Err(Error::TaskFinal(state)),
    }
}

/// Shows what a task was created with.
#[instrument(name = "engine.tasks.context", skip_all, fields(task = %id))]
pub async fn context(
    engine: &Engine,
    claim: &Claim<TasksContextRead>,
    id: TaskId,
) -> Result<Json, Error> {
    let found = engine.store.context(claim.scope(), id).await?;
    found.map(|(_, context)| context).ok_or_else(|| not_found(id))
}

pub(super) fn not_found(id: TaskId) -> Error {
    Error::TaskNotFound(id.to_string())
}

pub(super) fn shown(name: &str, version: Option<&str>) -> String {
    version.map_or_else(|| name.to_owned(), |version| format!("{name} {version}"))
}

/// What a repeated request is known by. The version counts as it was asked
/// for: a newer template must not make a retry another request.
fn fingerprint(task: &NewTask, context: &Json) -> [u8; 32] {
    let Labels { initiator, source_system, reason, tags, correlation_id, idempotency_key } =
        &task.labels;
    let mut hash = Sha256::new();
    let mut add = |text: Option<&str>| {
        hash.update([u8::from(text.is_some())]);
        let text = text.unwrap_or_default();
        hash.update(text.len().to_be_bytes());
        hash.update(text.as_bytes());
    };
    add(Some(&task.name));
    for option in [&task.version, initiator, source_system, reason, correlation_id, idempotency_key]
    {
        add(option.as_deref());
    }
    add(Some(&task.priority.to_string()));
    add(Some(&without_white_space(context.as_str())));
    for tag in tags {
        add(Some(tag));
    }
    hash.finalize().into()
}

/// Valid JSON without the white space that says nothing.
fn without_white_space(text: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    text.chars()
        .filter(|letter| {
            match letter {
                _ if escaped => escaped = false,
                '\\' if in_string => escaped = true,
                '"' => in_string = !in_string,
                _ => {}
            }
            in_string || !letter.is_ascii_whitespace()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(task: &NewTask) -> [u8; 32] {
        fingerprint(task, &Json::parse_object(&task.context).unwrap())
    }

    #[test]
    fn a_fingerprint_ignores_white_space_and_the_trace_alone() {
        let base = NewTask {
            name: "order".to_owned(),
            context: r#"{"a": "x  \" y", "b": 1.0}"#.to_owned(),
            ..NewTask::default()
        };
        let same = NewTask {
            context: "{\"a\":\"x  \\\" y\",\n \"b\":1.0}".to_owned(),
            traceparent: Some("00-1".to_owned()),
            ..base.clone()
        };
        assert_eq!(print(&base), print(&same));
        let tagged = |tags: &[&str]| Labels {
            tags: tags.iter().map(ToString::to_string).collect(),
            ..Labels::default()
        };
        let others = [
            NewTask { context: r#"{"a": "x \" y", "b": 1.0}"#.to_owned(), ..base.clone() },
            NewTask { context: r#"{"a": "x  \" y", "b": 1.00}"#.to_owned(), ..base.clone() },
            NewTask { priority: 1, ..base.clone() },
            NewTask { version: Some("1.0.0".to_owned()), ..base.clone() },
            NewTask { labels: tagged(&["ab", "c"]), ..base.clone() },
            NewTask { labels: tagged(&["a", "bc"]), ..base.clone() },
            NewTask {
                labels: Labels { initiator: Some(String::new()), ..Labels::default() },
                ..base.clone()
            },
        ];
        let mut prints: Vec<_> = others.iter().chain([&base]).map(print).collect();
        prints.sort_unstable();
        prints.dedup();
        assert_eq!(prints.len(), others.len() + 1);
    }
}
