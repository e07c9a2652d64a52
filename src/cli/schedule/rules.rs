//! `bailiwick schedule rules …`.

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use super::{
    super::{
        Connection, Error, Format, Result, credentials::incomplete, duration, output, read_text,
    },
    more, page_size, removed, view,
};
use crate::pb::v1 as pb;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Command {
    /// Set a rule, new or in place of the one of its id
    #[command(after_help = SET_EXAMPLES)]
    Set(Box<Set>),
    /// Show a rule
    #[command(after_help = "Examples:\n  bailiwick schedule rules get rule.deploy --format json")]
    Get {
        /// The rule's id
        id: String,
    },
    /// List rules by id
    #[command(
        after_help = "Examples:\n  bailiwick schedule rules list\n  bailiwick schedule rules list --prefix rule.deploy"
    )]
    List {
        /// Only rules whose ids begin with this
        #[arg(long, default_value = "")]
        prefix: String,
        /// How many at most
        #[arg(long, default_value_t = 500)]
        limit: usize,
    },
    /// Remove a rule; jobs without a rule fail when they are due
    #[command(after_help = "Examples:\n  bailiwick schedule rules remove rule.deploy")]
    Remove {
        /// The rule's id
        id: String,
    },
}

const SET_EXAMPLES: &str = "\
Of several rules the one with the longest pattern counts. What a rule does is done in the
name of who set it, for as long as that one may. A DSN or URL that is @FILE is read from the
file, which keeps its password out of the list of processes.

Examples:
  bailiwick schedule rules set rule.deploy --pattern deploy. --task shop/deploy@1.0.0
  bailiwick schedule rules set rule.ping --pattern ping. --http POST https://example.com/ping \\
      --max-attempts 5 --backoff-base 2s
  bailiwick schedule rules set rule.backup --pattern backup. --shell '/usr/local/bin/backup'
  bailiwick schedule rules set rule.tidy --pattern tidy. --direct /usr/bin/find /tmp/x -delete
  bailiwick schedule rules set rule.mail --pattern mail. --amqp @broker.dsn mails outgoing
  bailiwick schedule rules set rule.cache --pattern cache. --redis redis://localhost SET stale
  bailiwick schedule rules set rule.flow --pattern flow. --awf nightly --input region=eu";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Backoff {
    Exponential,
    Linear,
    Fixed,
}

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("runner").required(true).args(
    ["task", "http", "shell", "direct", "awf", "amqp", "redis"]
))]
pub(in crate::cli) struct Set {
    /// The rule's id; a leading `rule.` does not count for scopes
    id: String,
    /// What the ids of its jobs begin with; empty is every job
    #[arg(long)]
    pattern: String,
    /// Create a task from NAMESPACE/NAME or NAMESPACE/NAME@VERSION
    #[arg(long, value_name = "TEMPLATE")]
    task: Option<String>,
    /// Call a URL by GET, POST, PUT or DELETE
    #[arg(long, num_args = 2, value_names = ["METHOD", "URL"])]
    http: Option<Vec<String>>,
    /// Run a command line by /bin/sh -c
    #[arg(long, value_name = "COMMAND")]
    shell: Option<String>,
    /// Run a program; everything behind it is its arguments
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_names = ["EXECUTABLE", "ARGS"])]
    direct: Option<Vec<String>>,
    /// Run a workflow of awf; everything behind it is its arguments
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_names = ["WORKFLOW", "ARGS"])]
    awf: Option<Vec<String>>,
    /// Publish to an AMQP exchange
    #[arg(long, num_args = 3, value_names = ["DSN", "EXCHANGE", "ROUTING_KEY"])]
    amqp: Option<Vec<String>>,
    /// Send PUBLISH, RPUSH, LPUSH or SET to a Redis server
    #[arg(long, num_args = 3, value_names = ["URL", "COMMAND", "KEY"])]
    redis: Option<Vec<String>>,
    /// All attempts of one occurrence together; 1 by default
    #[arg(long, value_name = "NUMBER")]
    max_attempts: Option<u32>,
    /// How the pause between attempts grows; exponential by default
    #[arg(long, value_enum)]
    backoff: Option<Backoff>,
    /// The first pause; 1s by default
    #[arg(long, value_name = "DURATION", value_parser = milliseconds)]
    backoff_base: Option<u32>,
    /// The longest pause; 30s by default
    #[arg(long, value_name = "DURATION", value_parser = milliseconds)]
    max_backoff: Option<u32>,
}

fn milliseconds(text: &str) -> std::result::Result<u32, String> {
    let duration = duration::duration(text)?;
    u32::try_from(duration.as_millis()).map_err(|_| "the duration is too long".to_owned())
}

impl Set {
    fn retry(&self) -> Option<pb::RetryPolicy> {
        let Self { max_attempts, backoff, backoff_base, max_backoff, .. } = self;
        let backoff = backoff.map(|backoff| match backoff {
            Backoff::Exponential => pb::RetryBackoff::Exponential,
            Backoff::Linear => pb::RetryBackoff::Linear,
            Backoff::Fixed => pb::RetryBackoff::Fixed,
        });
        let some = max_attempts.or(*backoff_base).or(*max_backoff).is_some() || backoff.is_some();
        some.then(|| pb::RetryPolicy {
            max_attempts: *max_attempts,
            backoff: backoff.unwrap_or_default().into(),
            backoff_base_ms: *backoff_base,
            max_backoff_ms: *max_backoff,
        })
    }

    fn runner(&mut self) -> Result<pb::Runner> {
        let of = |kind: pb::RunnerType| pb::Runner { r#type: kind.into(), ..Default::default() };
        let words = |given: &mut Option<Vec<String>>| given.take().map(Vec::into_iter);
        Ok(if let Some(template) = self.task.take() {
            pb::Runner { template: Some(template), ..of(pb::RunnerType::Task) }
        } else if let Some(command) = self.shell.take() {
            pb::Runner { command: Some(command), ..of(pb::RunnerType::Shell) }
        } else if let Some(mut words) = words(&mut self.http) {
            let (method, url) = (words.next(), address(words.next())?);
            pb::Runner { method, url, ..of(pb::RunnerType::Http) }
        } else if let Some(mut words) = words(&mut self.direct) {
            let executable = words.next();
            pb::Runner { executable, args: words.collect(), ..of(pb::RunnerType::Direct) }
        } else if let Some(mut words) = words(&mut self.awf) {
            let workflow = words.next();
            pb::Runner { workflow, args: words.collect(), ..of(pb::RunnerType::Awf) }
        } else if let Some(mut words) = words(&mut self.amqp) {
            let (dsn, exchange, routing_key) = (address(words.next())?, words.next(), words.next());
            pb::Runner { dsn, exchange, routing_key, ..of(pb::RunnerType::Amqp) }
        } else if let Some(mut words) = words(&mut self.redis) {
            let (url, command, key) = (address(words.next())?, words.next(), words.next());
            pb::Runner { url, command, key, ..of(pb::RunnerType::Redis) }
        } else {
            return Err(Error::Usage("say what the rule does, as --task or --http".to_owned()));
        })
    }
}

/// An address, or the one that stands in `@FILE`.
fn address(given: Option<String>) -> Result<Option<String>> {
    given
        .map(|text| match text.strip_prefix('@') {
            Some(path) => Ok(read_text(path.as_ref())?.trim().to_owned()),
            None => Ok(text),
        })
        .transpose()
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> Result {
    match command {
        Command::Set(mut args) => {
            let (retry, runner) = (args.retry(), args.runner()?);
            let Set { id, pattern, .. } = *args;
            let request = pb::SetRuleRequest { id, pattern, runner: Some(runner), retry };
            let mut schedules = connection.client().await?.schedules();
            show(schedules.set_rule(request).await?.into_inner().rule, format)
        }
        Command::Get { id } => {
            let mut schedules = connection.client().await?.schedules();
            show(schedules.get_rule(pb::GetRuleRequest { id }).await?.into_inner().rule, format)
        }
        Command::List { prefix, limit } => list(prefix, limit, connection, format).await,
        Command::Remove { id } => {
            let request = pb::RemoveRuleRequest { id: id.clone() };
            connection.client().await?.schedules().remove_rule(request).await?;
            removed(&id, format)
        }
    }
}

fn show(rule: Option<pb::Rule>, format: Format) -> Result {
    let rule = view::Rule::from(rule.ok_or_else(|| incomplete("rule"))?);
    match format {
        Format::Json => output::json(&rule),
        Format::Table => view::show_rules(vec![rule]),
    }
}

async fn list(prefix: String, limit: usize, connection: &Connection, format: Format) -> Result {
    let mut schedules = connection.client().await?.schedules();
    let mut request = pb::ListRulesRequest { prefix, ..Default::default() };
    let mut rules: Vec<view::Rule> = Vec::new();
    while rules.len() < limit {
        request.page_size = page_size(limit - rules.len());
        let page = schedules.list_rules(request.clone()).await?.into_inner();
        rules.extend(page.rules.into_iter().map(Into::into));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    more(&request.page_token, limit);
    match format {
        Format::Json => output::json(&serde_json::json!({ "rules": rules })),
        Format::Table => view::show_rules(rules),
    }
}
