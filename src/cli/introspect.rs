//! `bailiwick auth introspect | check | exchange`: what a credential is worth
//! that somebody showed, and less of one's own.

use std::{
    io::{self, IsTerminal as _, Read as _},
    path::PathBuf,
};

use clap::Args;
use prost_types::Timestamp;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{Connection, Error, Format, Result, access, credentials, duration, output, view};
use crate::pb::v1 as pb;

/// The most bytes that a credential has.
const CREDENTIAL_BYTES_MAX: u64 = 64 * 1024;

/// A credential of somebody else's. Never an argument: those stand in the list
/// of processes.
#[derive(Args, Debug)]
pub(super) struct Shown {
    /// A file that holds the credential; `-` is standard input
    #[arg(long, default_value = "-", value_name = "FILE")]
    credential_file: PathBuf,
    /// Where its client comes from: one that counts in some networks alone
    /// does not count without it
    #[arg(long, value_name = "ADDRESS")]
    client_address: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct Check {
    /// The permissions, and behind them a namespace; anywhere without one
    #[arg(required = true, value_name = "PERMISSION… [NAMESPACE]")]
    permissions: Vec<String>,
    /// In this namespace
    #[arg(long)]
    namespace: Option<String>,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Args, Debug)]
pub(super) struct Exchange {
    /// The permissions, separated by commas; may be given several times
    #[arg(
        long = "scope",
        alias = "scopes",
        required = true,
        value_delimiter = ',',
        value_name = "LIST"
    )]
    scopes: Vec<String>,
    /// Where they hold, separated by commas [default: where all are held]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    namespaces: Vec<String>,
    /// How long it lives, at most 1h [default: 10m, or your credential's end]
    #[arg(long, value_name = "DURATION", value_parser = duration::seconds)]
    expires_in: Option<u32>,
}

impl Shown {
    fn read(&self) -> Result<Zeroizing<String>> {
        let Self { credential_file: path, client_address: _ } = self;
        let mut text = Zeroizing::new(String::new());
        let read = if path.as_os_str() == "-" {
            if io::stdin().is_terminal() {
                output::note("the credential, and Enter:");
                io::stdin().read_line(&mut text)
            } else {
                io::stdin().take(CREDENTIAL_BYTES_MAX).read_to_string(&mut text)
            }
        } else {
            std::fs::File::open(path)
                .and_then(|file| file.take(CREDENTIAL_BYTES_MAX).read_to_string(&mut text))
        };
        read.map_err(|error| Error::Usage(format!("{}: {error}", path.display())))?;
        let credential = text.trim();
        if credential.is_empty() {
            let place = path.display();
            return Err(Error::Usage(format!("{place} is empty; it must hold a credential")));
        }
        Ok(Zeroizing::new(credential.to_owned()))
    }
}

/// As RFC 7662 names it.
#[derive(Serialize)]
struct Introspected {
    active: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iat: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    grants: Vec<view::Grant>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aud: Vec<String>,
}

impl From<pb::IntrospectResponse> for Introspected {
    fn from(answer: pb::IntrospectResponse) -> Self {
        Self {
            active: answer.active,
            sub: answer.sub,
            iss: answer.iss,
            source: answer.source,
            credential_id: answer.credential_id,
            client_id: answer.client_id,
            username: answer.username,
            token_type: answer.token_type,
            exp: answer.exp,
            iat: answer.iat,
            scope: answer.scope,
            namespaces: answer.namespaces,
            grants: answer.grants.into_iter().map(Into::into).collect(),
            aud: answer.aud,
        }
    }
}

fn moment(seconds: Option<i64>) -> Option<String> {
    seconds.map(|seconds| view::time(&Timestamp { seconds, nanos: 0 }))
}

/// Says what a credential is worth; one that does not count ends with 1.
pub(super) async fn introspect(shown: Shown, connection: &Connection, format: Format) -> Result {
    let credential = shown.read()?;
    let client = connection.client().await?;
    let request = pb::IntrospectRequest {
        token: credential.to_string(),
        token_type_hint: None,
        client_address: shown.client_address,
    };
    let found: Introspected = client.access().introspect(request).await?.into_inner().into();
    if format == Format::Json {
        output::json(&found)?;
    }
    if !found.active {
        return Err(Error::Failed("the credential does not count".to_owned()));
    }
    if format == Format::Table {
        show(&found)?;
    }
    Ok(())
}

fn show(found: &Introspected) -> Result {
    let mut rows = Vec::new();
    let mut row = |name: &str, text: Option<String>| {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            rows.push(vec![name.to_owned(), text]);
        }
    };
    row("subject", found.sub.clone());
    row("source", found.source.clone());
    row("issuer", found.iss.clone());
    row("credential", found.credential_id.clone());
    row("name", found.username.clone());
    row("kind", found.token_type.clone());
    row("audience", Some(found.aud.join(", ")));
    row("issued", moment(found.iat));
    row("until", moment(found.exp));
    for grant in &found.grants {
        let places = grant.namespaces.join(", ");
        row("holds", Some(format!("{} in {places}", grant.permissions.join(", "))));
    }
    output::pairs(&rows)
}

/// Asks whether a credential may do something; exit 1 when not.
pub(super) async fn check(args: Check, connection: &Connection, format: Format) -> Result {
    #[derive(Serialize)]
    struct Answer {
        permission: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        allowed: bool,
        reason: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        subject: Option<String>,
    }
    let (permissions, namespace) = access::actions(args.permissions, args.namespace)?;
    let credential = args.shown.read()?;
    let client = connection.client().await?;
    let question = |permission: &String| pb::CheckQuestion {
        token: None,
        permission: permission.clone(),
        namespace: namespace.clone(),
    };
    let request = pb::CheckBatchRequest {
        token: Some(credential.to_string()),
        questions: permissions.iter().map(question).collect(),
        client_address: args.shown.client_address,
    };
    let answers = client.access().check_batch(request).await?.into_inner().answers;
    let answers: Vec<Answer> = permissions
        .into_iter()
        .zip(answers)
        .map(|(permission, answer)| Answer {
            permission,
            namespace: namespace.clone(),
            allowed: answer.allowed,
            reason: reason(answer.reason()),
            subject: answer.principal.map(|principal| principal.subject),
        })
        .collect();
    match format {
        Format::Json => output::json(&serde_json::json!({ "answers": answers }))?,
        Format::Table => {
            let row = |answer: &Answer| {
                let place = answer.namespace.clone().unwrap_or_else(|| "anywhere".to_owned());
                let allowed = if answer.allowed { "yes" } else { "no" };
                vec![answer.permission.clone(), place, allowed.to_owned(), answer.reason.to_owned()]
            };
            let rows: Vec<Vec<String>> = answers.iter().map(row).collect();
            output::table(&["PERMISSION", "NAMESPACE", "ALLOWED", "REASON"], &rows)?;
        }
    }
    let denied = answers.iter().filter(|answer| !answer.allowed);
    let denied: Vec<&str> = denied.map(|answer| answer.permission.as_str()).collect();
    if denied.is_empty() {
        Ok(())
    } else {
        Err(Error::Failed(format!("not allowed: {}", denied.join(", "))))
    }
}

/// The word of a check's reason.
const fn reason(reason: pb::CheckReason) -> &'static str {
    match reason {
        pb::CheckReason::Unspecified => "unspecified",
        pb::CheckReason::Allowed => "allowed",
        pb::CheckReason::TokenInactive => "token_inactive",
        pb::CheckReason::PermissionMissing => "permission_missing",
        pb::CheckReason::NamespaceNotHeld => "namespace_not_held",
        pb::CheckReason::PermissionUnknown => "permission_unknown",
    }
}

/// As RFC 8693 names it.
#[derive(Serialize)]
struct Exchanged {
    access_token: String,
    issued_token_type: String,
    token_type: String,
    expires_in: u32,
    scope: String,
    namespaces: Vec<String>,
    credential_id: String,
}

/// Trades the credential that the command calls with; prints the new one.
pub(super) async fn exchange(args: Exchange, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let request = pb::ExchangeTokenRequest {
        grant_type: "urn:ietf:params:oauth:grant-type:token-exchange".to_owned(),
        scope: args.scopes.join(" "),
        namespaces: args.namespaces,
        expires_in: args.expires_in,
        ..pb::ExchangeTokenRequest::default()
    };
    let given = client.auth_admin().exchange_token(request).await?.into_inner();
    let given = Exchanged {
        access_token: given.access_token,
        issued_token_type: given.issued_token_type,
        token_type: given.token_type,
        expires_in: given.expires_in,
        scope: given.scope,
        namespaces: given.namespaces,
        credential_id: given.credential_id,
    };
    credentials::show_secret(&given.access_token, &given, format)
}
