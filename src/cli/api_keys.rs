//! `bailiwick auth api-key …`: API keys that a server gave out.

use std::time::Duration;

use bailiwick_client::Client;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Connection, Format, Result,
    credentials::{PermissionUse, incomplete, show_secret, unused, uses},
    duration::duration,
    output, view,
};
use crate::{
    domain::{Clock as _, Timestamp},
    pb::v1 as pb,
    server::SystemClock,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a key and print it, once
    #[command(
        after_help = "Examples:\n  bailiwick auth api-key create --name ci --scope tasks:create,tasks:read --namespaces shop\n  bailiwick auth api-key create --name backup --full-access --expires-in 24h"
    )]
    Create(Create),
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
pub(super) struct Create {
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
    expires_in: Option<Duration>,
    /// Every permission; needs `*` in every namespace
    #[arg(long, conflicts_with = "scopes")]
    full_access: bool,
}

#[derive(Serialize)]
struct Made {
    key: String,
    id: String,
    name: String,
    scopes: Vec<String>,
    namespaces: Vec<String>,
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    state: &'static str,
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
    revoked_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_seconds: Option<u32>,
    permission_uses: Vec<PermissionUse>,
    unused_permissions: Vec<String>,
}

fn state(state: pb::ApiKeyState) -> &'static str {
    match state {
        pb::ApiKeyState::Active => "active",
        pb::ApiKeyState::Revoked => "revoked",
        pb::ApiKeyState::Expired => "expired",
        pb::ApiKeyState::Unspecified => "unspecified",
    }
}

impl From<pb::ApiKey> for Key {
    fn from(key: pb::ApiKey) -> Self {
        Self {
            state: state(key.state()),
            revoked_at: view::times(key.revoked_at.as_ref()),
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

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    match command {
        Command::Create(args) => create(args, &client, format).await,
        Command::List { namespace } => list(namespace, &client, format).await,
        Command::Get { id } => {
            let request = pb::GetApiKeyRequest { id };
            let answer = client.auth_admin().get_api_key(request).await?.into_inner();
            show(answer.api_key, format)
        }
        Command::Revoke { id, cascade } => {
            let request = pb::RevokeApiKeyRequest { id, cascade };
            let answer = client.auth_admin().revoke_api_key(request).await?.into_inner();
            show(answer.api_key, format)
        }
        Command::Delete { id } => {
            client.auth_admin().delete_api_key(pb::DeleteApiKeyRequest { id: id.clone() }).await?;
            match format {
                Format::Json => output::json(&serde_json::json!({ "deleted": id })),
                Format::Table => output::line(format!("deleted {id}")),
            }
        }
    }
}

async fn create(args: Create, client: &Client, format: Format) -> Result {
    let expires_at = args.expires_in.map(|life| stamp(SystemClock.now().plus(life)));
    let request = pb::CreateApiKeyRequest {
        name: args.name,
        scopes: args.scopes,
        namespaces: args.namespaces,
        expires_at,
        full_access: args.full_access,
    };
    let made = client.auth_admin().create_api_key(request).await?.into_inner();
    let made = Made {
        state: state(made.state()),
        created_at: view::times(made.created_at.as_ref()),
        expires_at: view::times(made.expires_at.as_ref()),
        key: made.key,
        id: made.id,
        name: made.name,
        scopes: made.scopes,
        namespaces: made.namespaces,
    };
    show_secret(&made.key, &made, format)
}

fn stamp(at: Timestamp) -> prost_types::Timestamp {
    let nanos = at.micros().rem_euclid(1_000_000).saturating_mul(1_000);
    // Below 10⁹, so it always fits.
    let nanos = i32::try_from(nanos).unwrap_or_default();
    prost_types::Timestamp { seconds: at.seconds(), nanos }
}

async fn list(namespace: Option<String>, client: &Client, format: Format) -> Result {
    let mut keys = Vec::new();
    let mut request =
        pb::ListApiKeysRequest { namespace, page_size: 500, page_token: String::new() };
    loop {
        let page = client.auth_admin().list_api_keys(request.clone()).await?.into_inner();
        keys.extend(page.api_keys.into_iter().map(Key::from));
        if page.next_page_token.is_empty() {
            return match format {
                Format::Json => output::json(&serde_json::json!({ "api_keys": keys })),
                Format::Table => rows(keys),
            };
        }
        request.page_token = page.next_page_token;
    }
}

fn show(key: Option<pb::ApiKey>, format: Format) -> Result {
    let key: Key = key.ok_or_else(|| incomplete("key"))?.into();
    match format {
        Format::Json => output::json(&key),
        Format::Table => rows(vec![key]),
    }
}

fn rows(keys: Vec<Key>) -> Result {
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
