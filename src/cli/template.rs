//! `bailiwick template …`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Connection, Error, Format, Result, output, read_text, task::template_name, view};
use crate::pb::v1 as pb;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Register templates from YAML files; `-` reads standard input
    #[command(
        after_help = "Examples:\n  bailiwick template register order_fulfillment.yaml\n  bailiwick template register templates/*.yaml"
    )]
    Register {
        /// The files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Check YAML files and report every fault; registers nothing
    #[command(
        after_help = "Examples:\n  bailiwick template validate order_fulfillment.yaml\n  bailiwick template validate templates/*.yaml --format json"
    )]
    Validate {
        /// The files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// List templates, newest first
    #[command(
        after_help = "Examples:\n  bailiwick template list --namespace shop\n  bailiwick template list --name order_fulfillment"
    )]
    List(List),
    /// Show a template as it was registered
    #[command(after_help = "Examples:\n  bailiwick template get shop/order_fulfillment@1.0.0")]
    Get {
        /// The template, as NAMESPACE/NAME@VERSION
        template: String,
    },
}

#[derive(Args, Debug)]
pub(super) struct List {
    /// Only templates of this namespace
    #[arg(long)]
    namespace: Option<String>,
    /// Only templates of this name
    #[arg(long)]
    name: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

#[derive(Serialize)]
struct Registered {
    #[serde(flatten)]
    template: view::Template,
    unchanged: bool,
    warnings: Vec<view::Finding>,
}

#[derive(Serialize)]
struct Validated {
    file: PathBuf,
    valid: bool,
    errors: Vec<view::Finding>,
    warnings: Vec<view::Finding>,
}

#[derive(Serialize)]
struct Templates {
    templates: Vec<view::Template>,
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> Result {
    match command {
        Command::Register { files } => register(&files, connection, format).await,
        Command::Validate { files } => validate(&files, connection, format).await,
        Command::List(args) => list(args, connection, format).await,
        Command::Get { template } => get(&template, connection, format).await,
    }
}

/// The API asks for the namespace beside the definition; the file says it.
fn namespace_of(path: &Path, definition: &str) -> Result<String> {
    #[derive(serde::Deserialize)]
    struct Head {
        namespace_name: String,
    }
    serde_saphyr::from_str::<Head>(definition).map(|head| head.namespace_name).map_err(|error| {
        Error::Usage(format!("{}: no namespace_name can be read: {error}", path.display()))
    })
}

async fn register(files: &[PathBuf], connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    for path in files {
        let definition = read_text(path)?;
        let namespace = namespace_of(path, &definition)?;
        let request = pb::RegisterTemplateRequest { namespace, definition };
        let answer = match client.templates().register_template(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Err(faults(path, status.into())),
        };
        let template = answer.template.map(view::Template::from);
        let template = template
            .ok_or_else(|| Error::Failed("the server's answer has no template".to_owned()))?;
        let warnings: Vec<view::Finding> =
            answer.warnings.into_iter().map(view::Finding::from).collect();
        for warning in &warnings {
            output::note(format!("warning: {}", finding(path, warning)));
        }
        match format {
            Format::Json => {
                output::json(&Registered { template, unchanged: answer.unchanged, warnings })?;
            }
            Format::Table => output::line(format!(
                "{}/{}@{} {}",
                template.namespace,
                template.name,
                template.version,
                if answer.unchanged { "unchanged" } else { "registered" },
            ))?,
        }
    }
    Ok(())
}

/// A refused definition: each fault on a line of its own.
fn faults(path: &Path, error: bailiwick_client::Error) -> Error {
    if let bailiwick_client::Error::Refused(refusal) = &error
        && refusal.reason.as_deref() == Some("TEMPLATE_INVALID")
    {
        let faults: Vec<String> = refusal
            .fields
            .iter()
            .map(|fault| format!("\n  {}: {}", fault.field, fault.description))
            .collect();
        return Error::Failed(format!(
            "{}: {}{}",
            path.display(),
            refusal.message,
            faults.concat()
        ));
    }
    error.into()
}

fn finding(path: &Path, finding: &view::Finding) -> String {
    let view::Finding { message, line, column, path: field } = finding;
    let place = if field.is_empty() { String::new() } else { format!("{field}: ") };
    let text = format!("{}:{line}:{column}: {place}{message}", path.display());
    output::word(&text).into_owned()
}

async fn validate(files: &[PathBuf], connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let mut all_valid = true;
    for path in files {
        let definition = read_text(path)?;
        let namespace = namespace_of(path, &definition)?;
        let request = pb::ValidateTemplateRequest { namespace, definition };
        let answer = client.templates().validate_template(request).await?.into_inner();
        all_valid &= answer.valid;
        let checked = Validated {
            file: path.clone(),
            valid: answer.valid,
            errors: answer.errors.into_iter().map(view::Finding::from).collect(),
            warnings: answer.warnings.into_iter().map(view::Finding::from).collect(),
        };
        if format == Format::Json {
            output::json(&checked)?;
            continue;
        }
        for error in &checked.errors {
            output::line(format!("error: {}", finding(path, error)))?;
        }
        for warning in &checked.warnings {
            output::line(format!("warning: {}", finding(path, warning)))?;
        }
        if checked.valid {
            output::line(format!("{}: valid", path.display()))?;
        }
    }
    if all_valid { Ok(()) } else { Err(Error::Failed("not every template is valid".to_owned())) }
}

async fn list(args: List, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let mut request = pb::ListTemplatesRequest {
        namespace: args.namespace,
        name: args.name,
        page_size: 0,
        page_token: String::new(),
    };
    let mut templates: Vec<view::Template> = Vec::new();
    while templates.len() < args.limit {
        request.page_size = u32::try_from((args.limit - templates.len()).min(500)).unwrap_or(500);
        let page = client.templates().list_templates(request.clone()).await?.into_inner();
        templates.extend(page.templates.into_iter().map(view::Template::from));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if format == Format::Json {
        return output::json(&Templates { templates });
    }
    let rows: Vec<Vec<String>> = templates
        .into_iter()
        .map(|template| {
            vec![
                template.namespace,
                template.name,
                template.version,
                template.steps.len().to_string(),
                template.registered_at.unwrap_or_default(),
            ]
        })
        .collect();
    output::table(&["NAMESPACE", "NAME", "VERSION", "STEPS", "REGISTERED"], &rows)
}

async fn get(template: &str, connection: &Connection, format: Format) -> Result {
    let (namespace, name, version) = template_name(template)?;
    let version = version
        .ok_or_else(|| Error::Usage(format!("say which version: {namespace}/{name}@VERSION")))?;
    let request = pb::GetTemplateRequest { namespace, name, version };
    let answer = connection.client().await?.templates().get_template(request).await?.into_inner();
    let template: view::Template = answer
        .template
        .ok_or_else(|| Error::Failed("the server's answer has no template".to_owned()))?
        .into();
    match format {
        Format::Json => output::json(&template),
        Format::Table => {
            output::line(template.definition.as_deref().unwrap_or_default().trim_end())
        }
    }
}
