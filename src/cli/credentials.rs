//! `bailiwick auth …` about credentials that a server gave out: tokens, which
//! root manages, and API keys.

use bailiwick_client::Client;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Connection, Error, Format, Result, output, view, work::duration};
use crate::pb::v1 as pb;

/// What stands on standard error beside a secret on standard output.
const NOTICE: &str = "save this — it won't be shown again";

#[derive(Args, Debug)]
pub(super) struct Mint {
    /// The permissions, separated by commas; may be given several times
    #[arg(
        long = "scope",
        alias = "scopes",
        required = true,
        value_delimiter = ',',
        value_name = "LIST"
    )]
    scopes: Vec<String>,
    /// What it is called in lists and logs
    #[arg(long)]
    name: Option<String>,
    /// Where the permissions hold, separated by commas [default: everywhere]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    namespaces: Vec<String>,
    /// How long it lives, as 24h [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    expires_in: Option<std::time::Duration>,
    /// How many calls it opens [default: any number]
    #[arg(long, value_name = "COUNT")]
    max_uses: Option<u32>,
    /// A network that it may be used from, as 10.1.0.0/16; may be given
    /// several times
    #[arg(long = "client-network", value_name = "NETWORK")]
    client_networks: Vec<String>,
    /// The prefix of the token that it descends from
    #[arg(long, value_name = "PREFIX")]
    parent: Option<String>,
}

#[derive(Args, Debug, Default)]
pub(super) struct List {
    /// Only tokens that were not used for so long, as 30d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    idle: Option<std::time::Duration>,
    /// Only tokens with permissions that were never used
    #[arg(long)]
    unused: bool,
}

#[derive(Args, Debug)]
pub(super) struct Tighten {
    /// The token's prefix, whole
    prefix: String,
    /// For how long the old one still counts, as 1h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    overlap: Option<std::time::Duration>,
    /// Only what was used in this time counts as used, as 30d [default: ever]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<std::time::Duration>,
    /// Only print what would be kept and dropped
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Create a key and print it, once
    #[command(
        after_help = "Examples:\n  bailiwick auth api-key create --name ci --scope tasks:create,tasks:read --namespaces shop\n  bailiwick auth api-key create --name backup --full-access --expires-in 24h"
    )]
    Create(CreateKey),
    /// List keys, newest first
    #[command(
        after_help = "Examples:\n  bailiwick auth api-key list\n  bailiwick auth api-key list --namespace shop --format json"
    )]
    List {
        /// Only keys that hold in this namespace
        #[arg(long)]
        namespace: Option<String>,
    },
    /// Show a key
    #[command(after_help = "Examples:\n  bailiwick auth api-key get 0k3v9x2m1q8z")]
    Get {
        /// Its id
        id: String,
    },
    /// Take a key back; its next call fails
    #[command(after_help = "Examples:\n  bailiwick auth api-key revoke 0k3v9x2m1q8z")]
    Revoke {
        /// Its id
        id: String,
        /// Also the keys that it made, and theirs
        #[arg(long)]
        cascade: bool,
    },
    /// Remove a key that was revoked or has expired
    #[command(after_help = "Examples:\n  bailiwick auth api-key delete 0k3v9x2m1q8z")]
    Delete {
        /// Its id
        id: String,
    },
}

#[derive(Args, Debug)]
pub(super) struct CreateKey {
    /// What it is called in lists and logs
    #[arg(long)]
    name: String,
    /// The permissions, separated by commas; may be given several times
    #[arg(
        long = "scope",
        alias = "scopes",
        value_delimiter = ',',
        value_name = "LIST",
        required_unless_present = "full_access"
    )]
    scopes: Vec<String>,
    /// Where the permissions hold, separated by commas [default: everywhere]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    namespaces: Vec<String>,
    /// How long it lives, as 24h [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    expires_in: Option<std::time::Duration>,
    /// Every permission; needs `*` in every namespace
    #[arg(long, conflicts_with = "scopes")]
    full_access: bool,
}

/// Prints a secret alone, so that it can go into a file or a pipe.
fn show_secret<T: Serialize>(secret: &str, whole: &T, format: Format) -> Result {
    output::note(NOTICE);
    match format {
        Format::Table => output::line(secret),
        Format::Json => output::json(whole),
    }
}

/// DK-32: who is not root reads what it lacks.
fn root_only(error: impl Into<Error>) -> Error {
    let error = error.into();
    if let Error::Client(bailiwick_client::Error::Refused(refusal)) = &error
        && refusal.reason.as_deref() == Some("ROOT_REQUIRED")
    {
        return Error::Failed("root token required".to_owned());
    }
    error
}

#[derive(Serialize)]
struct Minted {
    token: String,
    prefix: String,
    scopes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(rename = "createdAt")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

impl From<pb::MintTokenResponse> for Minted {
    fn from(answer: pb::MintTokenResponse) -> Self {
        Self {
            created_at: view::times(answer.created_at.as_ref()),
            expires_at: view::times(answer.expires_at.as_ref()),
            token: answer.token,
            prefix: answer.prefix,
            scopes: answer.scopes,
            name: answer.name,
        }
    }
}

fn seconds(life: Option<std::time::Duration>) -> Result<Option<u32>> {
    life.map(|life| u32::try_from(life.as_secs()))
        .transpose()
        .map_err(|_| Error::Usage("the duration is too long".to_owned()))
}

pub(super) async fn mint(args: Mint, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let request = pb::MintTokenRequest {
        scopes: args.scopes,
        name: args.name,
        namespaces: args.namespaces,
        expires_in_seconds: seconds(args.expires_in)?,
        max_uses: args.max_uses,
        client_networks: args.client_networks,
        parent: args.parent,
    };
    let minted = client.auth_admin().mint_token(request).await.map_err(root_only)?;
    let minted: Minted = minted.into_inner().into();
    show_secret(&minted.token, &minted, format)
}

pub(super) async fn rotate(
    prefix: String,
    overlap: Option<std::time::Duration>,
    connection: &Connection,
    format: Format,
) -> Result {
    let client = connection.client().await?;
    let overlap_seconds = seconds(overlap)?.unwrap_or(0);
    let request = pb::RotateTokenRequest { prefix, overlap_seconds };
    let answer = client.auth_admin().rotate_token(request).await.map_err(root_only)?.into_inner();
    let minted: Minted = answer
        .token
        .ok_or_else(|| Error::Failed("the server's answer has no token".to_owned()))?
        .into();
    show_secret(&minted.token, &minted, format)
}

#[derive(Serialize)]
struct Tightened {
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<Minted>,
    scopes: Vec<String>,
    dropped: Vec<String>,
}

pub(super) async fn tighten(args: Tighten, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let request = pb::TightenTokenRequest {
        prefix: args.prefix,
        overlap_seconds: seconds(args.overlap)?.unwrap_or(0),
        since_seconds: seconds(args.since)?,
        dry_run: args.dry_run,
    };
    let answer = client.auth_admin().tighten_token(request).await.map_err(root_only)?.into_inner();
    let pb::TightenTokenResponse { token, scopes, dropped } = answer;
    let tightened = Tightened { token: token.map(Minted::from), scopes, dropped };
    let (kept, dropped) = (tightened.scopes.join(","), tightened.dropped.join(","));
    match (&tightened.token, format) {
        (Some(minted), _) => {
            output::note(format!("kept {kept}; dropped {dropped}"));
            show_secret(&minted.token, &tightened, format)
        }
        (None, Format::Json) => output::json(&tightened),
        (None, Format::Table) => {
            output::line(format!("would keep {kept}"))?;
            output::line(format!("would drop {dropped}"))
        }
    }
}

pub(super) async fn revoke(prefix: String, cascade: bool, connection: &Connection) -> Result {
    let client = connection.client().await?;
    let request = pb::RevokeTokenRequest { prefix, cascade };
    let answer = client.auth_admin().revoke_token(request).await.map_err(root_only)?.into_inner();
    output::line(format!("revoked {}", answer.revoked.join(", ")))
}

pub(super) async fn revoke_subject(
    issuer: String,
    subject: Option<String>,
    cascade: bool,
    connection: &Connection,
) -> Result {
    let client = connection.client().await?;
    let request = pb::RevokeSubjectRequest { issuer, subject, cascade };
    let answer = client.auth_admin().revoke_subject(request).await.map_err(root_only)?.into_inner();
    let until = view::times(answer.revoked_before.as_ref()).unwrap_or_default();
    output::line(format!("revoked what was issued until {until}"))?;
    match answer.revoked.as_slice() {
        [] => Ok(()),
        made => output::line(format!("revoked {}", made.join(", "))),
    }
}

#[derive(Serialize)]
struct Token {
    prefix: String,
    source: String,
    scopes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(rename = "createdAt", skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_uses: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uses: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_seconds: Option<u32>,
    permission_uses: Vec<PermissionUse>,
    unused_permissions: Vec<String>,
}

#[derive(Serialize)]
struct PermissionUse {
    permission: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<String>,
    observable: bool,
}

fn uses(uses: Vec<pb::PermissionUse>) -> Vec<PermissionUse> {
    let shown = |used: pb::PermissionUse| PermissionUse {
        last_used_at: view::times(used.last_used_at.as_ref()),
        permission: used.permission,
        observable: used.observable,
    };
    uses.into_iter().map(shown).collect()
}

/// The most permissions that a cell of a table names.
const NAMED_MAX: usize = 4;

/// What was never used, in a cell; nothing is known about configured keys.
fn unused(unused: &[String], uses: &[PermissionUse]) -> String {
    let observable = uses.iter().filter(|used| used.observable).count();
    match unused.len() {
        0 => "-".to_owned(),
        1..=NAMED_MAX => unused.join(","),
        many => format!("{many} of {observable}"),
    }
}

impl From<pb::Token> for Token {
    fn from(token: pb::Token) -> Self {
        Self {
            created_at: view::times(token.created_at.as_ref()),
            expires_at: view::times(token.expires_at.as_ref()),
            last_used_at: view::times(token.last_used_at.as_ref()),
            prefix: token.prefix,
            source: token.source,
            scopes: token.scopes,
            name: token.name,
            namespaces: token.namespaces,
            max_uses: token.max_uses,
            uses: token.uses,
            parent: token.parent,
            idle_seconds: token.idle_seconds,
            permission_uses: uses(token.permission_uses),
            unused_permissions: token.unused_permissions,
        }
    }
}

async fn tokens(client: &Client) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut request = pb::ListTokensRequest { page_size: 500, page_token: String::new() };
    loop {
        let page = client.auth_admin().list_tokens(request.clone()).await.map_err(root_only)?;
        let page = page.into_inner();
        tokens.extend(page.tokens.into_iter().map(Token::from));
        if page.next_page_token.is_empty() {
            return Ok(tokens);
        }
        request.page_token = page.next_page_token;
    }
}

/// DK-34: no secret is anywhere in it.
pub(super) async fn list(args: &List, connection: &Connection, format: Format) -> Result {
    let mut tokens = tokens(&connection.client().await?).await?;
    let idle = seconds(args.idle)?;
    tokens.retain(|token| {
        idle.is_none_or(|least| token.idle_seconds.is_some_and(|idle| idle >= least))
            && (!args.unused || !token.unused_permissions.is_empty())
    });
    show(tokens, format)
}

pub(super) async fn get(prefix: String, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let request = pb::GetTokenRequest { prefix };
    let answer = client.auth_admin().get_token(request).await.map_err(root_only)?.into_inner();
    show(answer.token.into_iter().map(Token::from).collect(), format)
}

fn show(tokens: Vec<Token>, format: Format) -> Result {
    if format == Format::Json {
        return output::json(&serde_json::json!({ "tokens": tokens }));
    }
    let rows: Vec<Vec<String>> = tokens
        .into_iter()
        .map(|token| {
            let unused = unused(&token.unused_permissions, &token.permission_uses);
            let label = [token.name, token.created_at].into_iter().flatten();
            vec![
                token.prefix,
                token.source,
                token.scopes.join(","),
                label.collect::<Vec<_>>().join(" / "),
                token.namespaces.join(","),
                token.expires_at.unwrap_or_else(|| "never".to_owned()),
                token.last_used_at.unwrap_or_else(|| "-".to_owned()),
                unused,
            ]
        })
        .collect();
    let headings = [
        "PREFIX",
        "SOURCE",
        "SCOPES",
        "NAME / CREATED",
        "NAMESPACES",
        "EXPIRES",
        "LAST USED",
        "UNUSED",
    ];
    output::table(&headings, &rows)
}

#[derive(Serialize)]
struct Made {
    key: String,
    id: String,
    name: String,
    scopes: Vec<String>,
    namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

#[derive(Serialize)]
struct Key {
    id: String,
    name: String,
    scopes: Vec<String>,
    namespaces: Vec<String>,
    state: &'static str,
    created_by: String,
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_seconds: Option<u32>,
    permission_uses: Vec<PermissionUse>,
    unused_permissions: Vec<String>,
}

impl From<pb::ApiKey> for Key {
    fn from(key: pb::ApiKey) -> Self {
        let state = match key.state() {
            pb::ApiKeyState::Active => "active",
            pb::ApiKeyState::Revoked => "revoked",
            pb::ApiKeyState::Expired => "expired",
            pb::ApiKeyState::Unspecified => "unknown",
        };
        Self {
            state,
            created_at: view::times(key.created_at.as_ref()),
            expires_at: view::times(key.expires_at.as_ref()),
            last_used_at: view::times(key.last_used_at.as_ref()),
            id: key.id,
            name: key.name,
            scopes: key.scopes,
            namespaces: key.namespaces,
            created_by: key.created_by,
            idle_seconds: key.idle_seconds,
            permission_uses: uses(key.permission_uses),
            unused_permissions: key.unused_permissions,
        }
    }
}

pub(super) async fn key(command: KeyCommand, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    match command {
        KeyCommand::Create(args) => create_key(args, &client, format).await,
        KeyCommand::List { namespace } => list_keys(namespace, &client, format).await,
        KeyCommand::Get { id } => {
            let request = pb::GetApiKeyRequest { id };
            let answer = client.auth_admin().get_api_key(request).await?.into_inner();
            show_keys(answer.api_key.into_iter().map(Key::from).collect(), format)
        }
        KeyCommand::Revoke { id, cascade } => {
            let request = pb::RevokeApiKeyRequest { id, cascade };
            let answer = client.auth_admin().revoke_api_key(request).await?.into_inner();
            show_keys(answer.api_key.into_iter().map(Key::from).collect(), format)
        }
        KeyCommand::Delete { id } => {
            client.auth_admin().delete_api_key(pb::DeleteApiKeyRequest { id: id.clone() }).await?;
            output::line(format!("deleted {id}"))
        }
    }
}

async fn create_key(args: CreateKey, client: &Client, format: Format) -> Result {
    let expires_at =
        args.expires_in.map(|life| prost_types::Timestamp::from(std::time::UNIX_EPOCH + life));
    // Relative to now, which is the clock's.
    let now = crate::domain::Clock::now(&crate::server::SystemClock);
    let expires_at = expires_at.map(|life| prost_types::Timestamp {
        seconds: life.seconds.saturating_add(now.seconds()),
        nanos: life.nanos,
    });
    let request = pb::CreateApiKeyRequest {
        name: args.name,
        scopes: args.scopes,
        namespaces: args.namespaces,
        expires_at,
        full_access: args.full_access,
    };
    let made = client.auth_admin().create_api_key(request).await?.into_inner();
    let made = Made {
        expires_at: view::times(made.expires_at.as_ref()),
        key: made.key,
        id: made.id,
        name: made.name,
        scopes: made.scopes,
        namespaces: made.namespaces,
    };
    show_secret(&made.key, &made, format)
}

async fn list_keys(namespace: Option<String>, client: &Client, format: Format) -> Result {
    let mut keys = Vec::new();
    let mut request =
        pb::ListApiKeysRequest { namespace, page_size: 500, page_token: String::new() };
    loop {
        let page = client.auth_admin().list_api_keys(request.clone()).await?.into_inner();
        keys.extend(page.api_keys.into_iter().map(Key::from));
        if page.next_page_token.is_empty() {
            return show_keys(keys, format);
        }
        request.page_token = page.next_page_token;
    }
}

fn show_keys(keys: Vec<Key>, format: Format) -> Result {
    if format == Format::Json {
        return output::json(&serde_json::json!({ "api_keys": keys }));
    }
    let rows: Vec<Vec<String>> = keys
        .into_iter()
        .map(|key| {
            vec![
                key.id,
                key.name,
                key.scopes.join(","),
                key.namespaces.join(","),
                key.state.to_owned(),
                key.expires_at.unwrap_or_else(|| "never".to_owned()),
                key.last_used_at.unwrap_or_else(|| "-".to_owned()),
                unused(&key.unused_permissions, &key.permission_uses),
            ]
        })
        .collect();
    let headings =
        ["ID", "NAME", "SCOPES", "NAMESPACES", "STATE", "EXPIRES", "LAST USED", "UNUSED"];
    output::table(&headings, &rows)
}
