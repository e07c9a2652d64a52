//! `bailiwick worker config`, `templates` and `health`: what a worker process
//! says on its own listener.

use clap::Args;
use serde::Serialize;

use super::{Connection, Error, Format, Result, output, system};
use crate::pb::v1 as pb;

/// Which worker process.
#[derive(Args, Debug)]
pub(super) struct Target {
    /// The worker's own gRPC address with its scheme [default: the client's
    /// file's, else that of port 9191 on this machine]
    #[arg(long, env = "BAILIWICK_WORKER_URL", value_name = "URL")]
    worker_url: Option<String>,
}

#[derive(Serialize)]
struct Template {
    namespace: String,
    name: String,
    version: String,
    handlers: Vec<String>,
}

impl Target {
    async fn client(&self, connection: &Connection) -> Result<bailiwick_client::Client> {
        let url = self.worker_url.as_deref().filter(|url| !url.trim().is_empty());
        connection.worker_client(url).await
    }
}

pub(super) async fn config(target: &Target, connection: &Connection) -> Result {
    let client = target.client(connection).await?;
    let answer = client.worker_process().get_worker_config(pb::GetWorkerConfigRequest {}).await?;
    let config: serde_json::Value = serde_json::from_str(&answer.into_inner().config)
        .map_err(|error| Error::Failed(format!("the worker's answer is not JSON: {error}")))?;
    output::json(&config)
}

pub(super) async fn templates(target: &Target, connection: &Connection, format: Format) -> Result {
    let client = target.client(connection).await?;
    let request = pb::ListWorkerTemplatesRequest {};
    let answer = client.worker_process().list_worker_templates(request).await?.into_inner();
    let templates = answer.templates.into_iter().map(|template| {
        let pb::WorkerTemplate { namespace, name, version, handlers } = template;
        Template { namespace, name, version, handlers }
    });
    if format == Format::Json {
        let templates: Vec<Template> = templates.collect();
        return output::json(&serde_json::json!({ "templates": templates }));
    }
    let rows: Vec<Vec<String>> = templates
        .map(|template| {
            let Template { namespace, name, version, handlers } = template;
            vec![namespace, name, version, handlers.join(",")]
        })
        .collect();
    output::table(&["NAMESPACE", "TEMPLATE", "VERSION", "HANDLERS"], &rows)
}

pub(super) async fn health(target: &Target, connection: &Connection, format: Format) -> Result {
    let client = target.client(connection).await?;
    system::detailed(&client, format, "worker").await
}
