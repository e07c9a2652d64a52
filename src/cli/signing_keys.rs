//! `bailiwick auth signing-keys …`: the keys that sign step tokens.

use bailiwick_client::Client;
use clap::Subcommand;
use serde::Serialize;

use super::{Connection, Format, Result, credentials::incomplete, output, view};
use crate::pb::v1 as pb;

/// What all keys sign so far.
const PURPOSE: &str = "step";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List keys, newest first; never a private one
    #[command(
        after_help = "Examples:\n  bailiwick auth signing-keys list\n  bailiwick auth signing-keys list --format json"
    )]
    List,
    /// Make a key that signs from now on; former ones still verify
    #[command(after_help = "Examples:\n  bailiwick auth signing-keys create")]
    Create {
        /// What it shall sign
        #[arg(long, default_value = PURPOSE)]
        purpose: String,
    },
    /// Make a key that signs from now on, and say which ones to retire
    #[command(
        after_help = "Examples:\n  bailiwick auth signing-keys rotate\n  bailiwick auth signing-keys rotate --retire    # when a key may have leaked"
    )]
    Rotate {
        /// What it shall sign
        #[arg(long, default_value = PURPOSE)]
        purpose: String,
        /// Retire the former ones at once: running steps get new tokens with
        /// their next heartbeat
        #[arg(long)]
        retire: bool,
    },
    /// Retire a former key; nothing that it signed counts any more
    #[command(after_help = "Examples:\n  bailiwick auth signing-keys retire step-0f1e2d3c4b5a6978")]
    Retire {
        /// Its id
        kid: String,
    },
}

#[derive(Serialize)]
struct Key {
    kid: String,
    purpose: String,
    organisation: String,
    algorithm: String,
    public_key: String,
    state: &'static str,
    created_by: String,
    created_at: Option<String>,
    activated_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retired_at: Option<String>,
}

impl From<pb::SigningKey> for Key {
    fn from(key: pb::SigningKey) -> Self {
        Self {
            state: match key.state() {
                pb::SigningKeyState::Signs => "signs",
                pb::SigningKeyState::Verifies => "verifies",
                pb::SigningKeyState::Retired => "retired",
                pb::SigningKeyState::Unspecified => "unspecified",
            },
            created_at: view::times(key.created_at.as_ref()),
            activated_at: view::times(key.activated_at.as_ref()),
            retired_at: view::times(key.retired_at.as_ref()),
            kid: key.kid,
            purpose: key.purpose,
            organisation: key.organisation,
            algorithm: key.algorithm,
            public_key: key.public_key,
            created_by: key.created_by,
        }
    }
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    match command {
        Command::List => {
            let keys = all(&client).await?;
            show(keys, format)
        }
        Command::Create { purpose } => show(vec![create(&client, purpose).await?], format),
        Command::Rotate { purpose, retire: now } => {
            let mut keys = vec![create(&client, purpose.clone()).await?];
            let former = all(&client).await?.into_iter();
            for key in former.filter(|key| key.purpose == purpose && key.state == "verifies") {
                keys.push(if now { retire(&client, key.kid).await? } else { key });
            }
            show(keys, format)
        }
        Command::Retire { kid } => show(vec![retire(&client, kid).await?], format),
    }
}

async fn all(client: &Client) -> Result<Vec<Key>> {
    let answer = client.auth_admin().list_signing_keys(pb::ListSigningKeysRequest {}).await?;
    Ok(answer.into_inner().keys.into_iter().map(Key::from).collect())
}

async fn create(client: &Client, purpose: String) -> Result<Key> {
    let request = pb::CreateSigningKeyRequest { purpose };
    let answer = client.auth_admin().create_signing_key(request).await?.into_inner();
    answer.key.map(Key::from).ok_or_else(|| incomplete("key"))
}

async fn retire(client: &Client, kid: String) -> Result<Key> {
    let request = pb::RetireSigningKeyRequest { kid };
    let answer = client.auth_admin().retire_signing_key(request).await?.into_inner();
    answer.key.map(Key::from).ok_or_else(|| incomplete("key"))
}

fn show(keys: Vec<Key>, format: Format) -> Result {
    if matches!(format, Format::Json) {
        return output::json(&serde_json::json!({ "keys": keys }));
    }
    let rows: Vec<Vec<String>> = keys
        .into_iter()
        .map(|key| {
            let since = key.activated_at.unwrap_or_else(|| "-".to_owned());
            let retired = key.retired_at.unwrap_or_else(|| "-".to_owned());
            vec![key.kid, key.purpose, key.state.to_owned(), since, retired, key.created_by]
        })
        .collect();
    output::table(&["KID", "PURPOSE", "STATE", "SINCE", "RETIRED", "CREATED BY"], &rows)
}
