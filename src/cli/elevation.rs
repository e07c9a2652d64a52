//! `bailiwick auth elevate | approve | deny | elevations | revoke-elevation`:
//! more rights for a while.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Connection, Error, Format, Result, access, credentials, duration, output, view};
use crate::pb::v1 as pb;

#[derive(Args, Debug)]
pub(super) struct Elevate {
    /// The permissions, and behind them the namespace, with a dot at its end
    /// all below it
    #[arg(required = true, value_name = "PERMISSION… NAMESPACE")]
    permissions: Vec<String>,
    /// The namespace, in the place of the last word
    #[arg(long)]
    namespace: Option<String>,
    /// For how long, at most `auth.elevation_max_minutes` of the server
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::seconds)]
    seconds: u32,
    /// Why; whoever decides reads it
    #[arg(long)]
    reason: String,
}

#[derive(Args, Debug)]
pub(super) struct List {
    /// Only those that stand there
    #[arg(long, value_enum)]
    state: Option<State>,
}

/// Where an elevation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    /// Nobody has decided yet.
    Pending,
    /// It was approved and is not over.
    Active,
    /// Somebody said no.
    Denied,
    /// It was taken back.
    Revoked,
    /// Its time is over.
    Expired,
}

impl State {
    const fn of(state: pb::ElevationState) -> Option<Self> {
        match state {
            pb::ElevationState::Unspecified => None,
            pb::ElevationState::Pending => Some(Self::Pending),
            pb::ElevationState::Active => Some(Self::Active),
            pb::ElevationState::Denied => Some(Self::Denied),
            pb::ElevationState::Revoked => Some(Self::Revoked),
            pb::ElevationState::Expired => Some(Self::Expired),
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Denied => "denied",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

#[derive(Serialize)]
struct Elevation {
    id: String,
    state: &'static str,
    requester: String,
    requested_with: String,
    permissions: Vec<String>,
    namespace: String,
    seconds: u32,
    reason: String,
    requested_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
}

impl From<pb::Elevation> for Elevation {
    fn from(one: pb::Elevation) -> Self {
        Self {
            state: State::of(one.state()).map_or("unspecified", State::as_str),
            requested_at: view::times(one.requested_at.as_ref()),
            decided_at: view::times(one.decided_at.as_ref()),
            until: view::times(one.until.as_ref()),
            ended_at: view::times(one.ended_at.as_ref()),
            id: one.id,
            requester: one.requester,
            requested_with: one.requested_with,
            permissions: one.permissions,
            namespace: one.namespace,
            seconds: one.seconds,
            reason: one.reason,
            decided_by: one.decided_by,
        }
    }
}

fn whole(elevation: Option<pb::Elevation>) -> Result<Elevation> {
    elevation.map(Into::into).ok_or_else(|| credentials::incomplete("elevation"))
}

/// Asks; prints the id, which whoever decides needs.
pub(super) async fn elevate(args: Elevate, connection: &Connection, format: Format) -> Result {
    let Elevate { permissions, namespace, seconds, reason } = args;
    let (permissions, namespace) = access::actions(permissions, namespace)?;
    let namespace =
        namespace.ok_or_else(|| Error::Usage("name a namespace behind them".to_owned()))?;
    let client = connection.client().await?;
    let request = pb::RequestElevationRequest { permissions, namespace, seconds, reason };
    let asked = client.auth_admin().request_elevation(request).await?.into_inner();
    let asked = whole(asked.elevation)?;
    match format {
        Format::Json => output::json(&asked),
        Format::Table => {
            output::note(format!(
                "it holds once somebody else approves it: bailiwick auth approve {}",
                asked.id
            ));
            output::line(&asked.id)
        }
    }
}

/// Says yes.
pub(super) async fn approve(id: String, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let request = pb::ApproveElevationRequest { id };
    let answer = client.auth_admin().approve_elevation(request).await?.into_inner();
    let approved = whole(answer.elevation)?;
    tell(&approved, format, || {
        let Elevation { requester, permissions, namespace, until, .. } = &approved;
        let until = until.as_deref().unwrap_or_default();
        format!("{requester} holds {} in {namespace} until {until}", permissions.join(", "))
    })
}

/// Says no.
pub(super) async fn deny(id: String, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let request = pb::DenyElevationRequest { id };
    let answer = client.auth_admin().deny_elevation(request).await?.into_inner();
    let denied = whole(answer.elevation)?;
    tell(&denied, format, || format!("denied {} of {}", denied.id, denied.requester))
}

/// Ends one, or takes a request back.
pub(super) async fn revoke(id: String, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let request = pb::RevokeElevationRequest { id };
    let answer = client.auth_admin().revoke_elevation(request).await?.into_inner();
    let ended = whole(answer.elevation)?;
    tell(&ended, format, || format!("revoked {} of {}", ended.id, ended.requester))
}

fn tell(one: &Elevation, format: Format, words: impl FnOnce() -> String) -> Result {
    match format {
        Format::Json => output::json(one),
        Format::Table => output::line(words()),
    }
}

/// Lists those that the caller may see.
pub(super) async fn list(args: List, connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let answer = client.auth_admin().list_elevations(pb::ListElevationsRequest {}).await?;
    let all = answer.into_inner().elevations.into_iter();
    let all =
        all.filter(|one| args.state.is_none_or(|state| State::of(one.state()) == Some(state)));
    let all: Vec<Elevation> = all.map(Into::into).collect();
    if format == Format::Json {
        return output::json(&serde_json::json!({ "elevations": all }));
    }
    let row = |one: Elevation| {
        let until = one.until.unwrap_or_else(|| format!("for {} s", one.seconds));
        vec![
            one.id,
            one.state.to_owned(),
            one.requester,
            one.permissions.join(","),
            one.namespace,
            until,
            one.decided_by.unwrap_or_else(|| "-".to_owned()),
            one.reason,
        ]
    };
    let rows: Vec<Vec<String>> = all.into_iter().map(row).collect();
    let headings =
        ["ID", "STATE", "REQUESTER", "PERMISSIONS", "NAMESPACE", "UNTIL", "DECIDED BY", "REASON"];
    output::table(&headings, &rows)
}
