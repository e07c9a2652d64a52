//! Whether secrets still live, and how they are taken back.

use std::time::Duration;

use bailiwick_client::{Client, Error as ClientError};
use tonic::Code;

use super::{Connection, Error, Leak, Result, output, shown};
use crate::pb::v1 as pb;

/// How often a server that is busy is asked again.
const TRIES: u32 = 6;
/// How long it may ask us to wait each time.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// From here on a wait is told.
const WAIT_TOLD: Duration = Duration::from_secs(3);

/// Whether a secret opens anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It does.
    Live,
    /// It was taken back.
    Revoked,
    /// Its time is over.
    Expired,
    /// It has been used as often as it may.
    UsedUp,
    /// The server says no more than no.
    Unknown,
    /// Nobody was asked, or nobody could say.
    Unchecked,
}

impl State {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::UsedUp => "used_up",
            Self::Unknown => "unknown",
            Self::Unchecked => "unchecked",
        }
    }
}

/// Asks about every secret; the first fault is answered, and what it left
/// open stays unchecked.
pub(super) async fn check(leaks: &mut [Leak], connection: &Connection) -> Result {
    let mut fault = None;
    for leak in leaks {
        let Some(secret) = &leak.secret else { continue };
        match state(connection, &leak.id, secret).await {
            Ok(state) => leak.state = state,
            Err(error @ Error::Client(ClientError::Unreachable { .. })) => return Err(error),
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    fault.map_or(Ok(()), Err)
}

/// Presents a secret to a call that is for root. No secret of ours is root,
/// so a good one is refused for its rights, before a use of it is counted.
async fn state(connection: &Connection, id: &str, secret: &str) -> Result<State> {
    let client = connection.client_with(secret).await?;
    let mut tries = 0;
    loop {
        tries += 1;
        let request = pb::GetTokenRequest { prefix: id.to_owned() };
        let error = match client.auth_admin().get_token(request).await {
            Ok(_) => return root(&client).await,
            Err(status) => ClientError::from(status),
        };
        return Ok(match (error.code(), error.reason()) {
            (Some(Code::PermissionDenied), Some("ROOT_REQUIRED")) => State::Live,
            (Some(Code::Unauthenticated), Some("CREDENTIALS_REVOKED")) => State::Revoked,
            (Some(Code::Unauthenticated), Some("CREDENTIALS_EXPIRED")) => State::Expired,
            (Some(Code::Unauthenticated), Some("CREDENTIALS_USED_UP")) => State::UsedUp,
            (Some(Code::Unauthenticated), _) => State::Unknown,
            (Some(Code::NotFound), _) => return root(&client).await,
            (Some(Code::ResourceExhausted), _) if tries < TRIES => {
                let wait = wait(&error);
                if wait >= WAIT_TOLD {
                    output::note(format!("the server asks to wait for {} s", wait.as_secs()));
                }
                tokio::time::sleep(wait).await;
                continue;
            }
            _ => return Err(error.into()),
        });
    }
}

fn wait(error: &ClientError) -> Duration {
    let told = if let ClientError::Refused(refusal) = error { refusal.retry_after } else { None };
    told.unwrap_or(Duration::from_secs(1)).min(WAIT_MAX)
}

/// Who may do everything is a key of the configuration, or anybody.
async fn root(client: &Client) -> Result<State> {
    let who = client.access().who_am_i(pb::WhoAmIRequest {}).await?.into_inner();
    Ok(if who.source == "disabled" { State::Unchecked } else { State::Live })
}

/// Takes back what lives, each by its kind, and proves that it does not live
/// any more.
pub(super) async fn revoke(
    leaks: &mut [Leak],
    connection: &Connection,
    own: &Client,
    cascade: bool,
) {
    let mut live: Vec<&mut Leak> =
        leaks.iter_mut().filter(|leak| leak.state == State::Live).collect();
    // The caller's own comes last: it is needed for the others.
    let own_one = |leak: &&mut Leak| leak.secret.as_ref().is_some_and(|it| connection.is_own(it));
    live.sort_by_cached_key(own_one);
    for leak in live {
        let Some(secret) = &leak.secret else { continue };
        let outcome = match take_back(own, &leak.id, cascade).await {
            Ok(()) => match state(connection, &leak.id, secret).await {
                Ok(State::Live) => "failed: it still lives".to_owned(),
                Ok(now) => {
                    leak.state = now;
                    "done".to_owned()
                }
                Err(error) => format!("sent; not proved: {error}"),
            },
            Err(error) => format!("failed: {error}"),
        };
        if outcome != "done" {
            output::note(format!("{}: {}", leak.id, shown(outcome.as_bytes())));
        }
        leak.revocation = Some(shown(outcome.as_bytes()));
    }
}

/// A token when there is one of this id, or else a key.
async fn take_back(own: &Client, id: &str, cascade: bool) -> Result {
    let mut admin = own.auth_admin();
    let token = admin.get_token(pb::GetTokenRequest { prefix: id.to_owned() }).await;
    match token.map_err(ClientError::from) {
        Ok(_) => {
            admin.revoke_token(pb::RevokeTokenRequest { prefix: id.to_owned(), cascade }).await?;
            return Ok(());
        }
        Err(error) if error.code() == Some(Code::NotFound) => {}
        Err(error) if error.reason() == Some("ROOT_REQUIRED") => {}
        Err(error) => return Err(error.into()),
    }
    admin.get_api_key(pb::GetApiKeyRequest { id: id.to_owned() }).await?;
    admin.revoke_api_key(pb::RevokeApiKeyRequest { id: id.to_owned(), cascade }).await?;
    Ok(())
}
