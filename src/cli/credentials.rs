//! `bailiwick auth …` about tokens that a server gave out, which root manages.

use bailiwick_client::Client;
use clap::Args;
use serde::Serialize;

use super::{Connection, Error, Format, Result, duration::seconds, output, view};
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
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    expires_in: Option<u32>,
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
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    idle: Option<u32>,
    /// Only tokens with permissions that were never used
    #[arg(long)]
    unused: bool,
}

#[derive(Args, Debug)]
pub(super) struct Tighten {
    /// The token's prefix, whole
    prefix: String,
    /// For how long the old one still counts, as 1h
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    overlap: Option<u32>,
    /// Only what was used in this time counts as used, as 30d [default: ever]
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    since: Option<u32>,
    /// Only print what would be kept and dropped
    #[arg(long)]
    dry_run: bool,
}

/// Prints a secret alone, so that it can go into a file or a pipe.
pub(super) fn show_secret<T: Serialize>(secret: &str, whole: &T, format: Format) -> Result {
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_uses: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    client_networks: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
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
            namespaces: answer.namespaces,
            max_uses: answer.max_uses,
            client_networks: answer.client_networks,
            parent: answer.parent,
        }
    }
}

pub(super) async fn mint(args: Mint, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let request = pb::MintTokenRequest {
        scopes: args.scopes,
        name: args.name,
        namespaces: args.namespaces,
        expires_in_seconds: args.expires_in,
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
    overlap: Option<u32>,
    connection: &Connection,
    format: Format,
) -> Result {
    let client = connection.client().await?;
    let request = pb::RotateTokenRequest { prefix, overlap_seconds: overlap.unwrap_or_default() };
    let answer = client.auth_admin().rotate_token(request).await.map_err(root_only)?.into_inner();
    let minted: Minted = answer.token.ok_or_else(|| incomplete("token"))?.into();
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
        overlap_seconds: args.overlap.unwrap_or_default(),
        since_seconds: args.since,
        dry_run: args.dry_run,
    };
    let answer = client.auth_admin().tighten_token(request).await.map_err(root_only)?.into_inner();
    let pb::TightenTokenResponse { token, scopes, dropped } = answer;
    let tightened = Tightened { token: token.map(Minted::from), scopes, dropped };
    let (kept, dropped) = (tightened.scopes.join(","), tightened.dropped.join(","));
    let (kept, dropped) = (output::word(&kept), output::word(&dropped));
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

pub(super) async fn revoke(
    prefix: String,
    cascade: bool,
    connection: &Connection,
    format: Format,
) -> Result {
    let client = connection.client().await?;
    let request = pb::RevokeTokenRequest { prefix, cascade };
    let answer = client.auth_admin().revoke_token(request).await.map_err(root_only)?.into_inner();
    match format {
        Format::Json => output::json(&serde_json::json!({ "revoked": answer.revoked })),
        Format::Table => output::line(format!("revoked {}", answer.revoked.join(", "))),
    }
}

pub(super) async fn revoke_subject(
    issuer: String,
    subject: Option<String>,
    cascade: bool,
    connection: &Connection,
    format: Format,
) -> Result {
    let client = connection.client().await?;
    let request = pb::RevokeSubjectRequest { issuer, subject, cascade };
    let answer = client.auth_admin().revoke_subject(request).await.map_err(root_only)?.into_inner();
    let until = view::times(answer.revoked_before.as_ref()).unwrap_or_default();
    match (format, answer.revoked.as_slice()) {
        (Format::Json, revoked) => output::json(&serde_json::json!({
            "revoked_before": until,
            "revoked": revoked,
        })),
        (Format::Table, revoked) => {
            output::line(format!("revoked what was issued until {until}"))?;
            if revoked.is_empty() {
                return Ok(());
            }
            output::line(format!("revoked {}", revoked.join(", ")))
        }
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    client_networks: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_seconds: Option<u32>,
    permission_uses: Vec<PermissionUse>,
    unused_permissions: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exchanged_by: Option<String>,
}

#[derive(Serialize)]
pub(super) struct PermissionUse {
    permission: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<String>,
    observable: bool,
}

pub(super) fn uses(uses: Vec<pb::PermissionUse>) -> Vec<PermissionUse> {
    let shown = |used: pb::PermissionUse| PermissionUse {
        last_used_at: view::times(used.last_used_at.as_ref()),
        permission: used.permission,
        observable: used.observable,
    };
    uses.into_iter().map(shown).collect()
}

/// A cell of a table that has nothing to say.
fn or_dash(cell: String) -> String {
    if cell.is_empty() { "-".to_owned() } else { cell }
}

/// The most permissions that a cell of a table names.
const NAMED_MAX: usize = 4;

/// What was never used, in a cell; nothing is known about configured keys.
pub(super) fn unused(unused: &[String], uses: &[PermissionUse]) -> String {
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
            client_networks: token.client_networks,
            parent: token.parent,
            family: token.family,
            idle_seconds: token.idle_seconds,
            permission_uses: uses(token.permission_uses),
            unused_permissions: token.unused_permissions,
            exchanged_by: token.exchanged_by,
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
    tokens.retain(|token| {
        args.idle.is_none_or(|least| token.idle_seconds.is_some_and(|idle| idle >= least))
            && (!args.unused || !token.unused_permissions.is_empty())
    });
    match format {
        Format::Json => output::json(&serde_json::json!({ "tokens": tokens })),
        Format::Table => show(tokens),
    }
}

pub(super) async fn get(prefix: String, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let request = pb::GetTokenRequest { prefix };
    let answer = client.auth_admin().get_token(request).await.map_err(root_only)?.into_inner();
    let token: Token = answer.token.ok_or_else(|| incomplete("token"))?.into();
    match format {
        Format::Json => output::json(&token),
        Format::Table => show(vec![token]),
    }
}

pub(super) fn incomplete(what: &str) -> Error {
    Error::Failed(format!("the server's answer has no {what}"))
}

fn show(tokens: Vec<Token>) -> Result {
    let rows: Vec<Vec<String>> = tokens
        .into_iter()
        .map(|token| {
            let unused = unused(&token.unused_permissions, &token.permission_uses);
            let traded = token.exchanged_by.map(|who| format!("exchanged by {who}"));
            let label = [token.name.or(traded), token.created_at].into_iter().flatten();
            let uses = match (token.uses, token.max_uses) {
                (uses, Some(most)) => format!("{}/{most}", uses.unwrap_or_default()),
                (Some(uses), None) => uses.to_string(),
                (None, None) => "-".to_owned(),
            };
            vec![
                token.prefix,
                token.source,
                token.scopes.join(","),
                label.collect::<Vec<_>>().join(" / "),
                token.namespaces.join(","),
                or_dash(token.client_networks.join(",")),
                token.expires_at.unwrap_or_else(|| "never".to_owned()),
                uses,
                or_dash(token.parent.unwrap_or_default()),
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
        "NETWORKS",
        "EXPIRES",
        "USES",
        "PARENT",
        "LAST USED",
        "UNUSED",
    ];
    output::table(&headings, &rows)
}
