//! Tokens and API keys.

use super::{owned, time};
use crate::{
    access::{Reason, Refusal},
    admin::{
        Exercised, Uses,
        api_keys::{Key, Made, NewKey, State},
        exchange::{Exchange, Exchanged, TOKEN_TYPE},
        tokens::{Minted, NewToken, Shown, Tightened},
    },
    domain::Timestamp,
    pb::v1 as pb,
};

impl From<pb::ExchangeTokenRequest> for Exchange {
    fn from(request: pb::ExchangeTokenRequest) -> Self {
        let pb::ExchangeTokenRequest {
            grant_type,
            subject_token: _,
            subject_token_type: _,
            requested_token_type,
            scope,
            namespaces,
            expires_in,
        } = request;
        Self { grant_type, requested_token_type, scope, namespaces, expires_in }
    }
}

impl From<Exchanged> for pb::ExchangeTokenResponse {
    fn from(given: Exchanged) -> Self {
        let Exchanged { minted: Minted { secret, record }, expires_in } = given;
        Self {
            access_token: secret.expose().to_owned(),
            issued_token_type: owned(TOKEN_TYPE),
            token_type: owned("Bearer"),
            expires_in,
            scope: record.scopes.join(" "),
            namespaces: record.namespaces,
            credential_id: owned(&record.id),
        }
    }
}

impl From<pb::MintTokenRequest> for NewToken {
    fn from(request: pb::MintTokenRequest) -> Self {
        let pb::MintTokenRequest {
            scopes,
            name,
            namespaces,
            expires_in_seconds,
            max_uses,
            client_networks,
            parent,
        } = request;
        Self { scopes, name, namespaces, expires_in_seconds, max_uses, client_networks, parent }
    }
}

/// With the token itself, and the namespaces that were asked for; after a
/// rotation, those that it has.
pub(in crate::grpc) fn minted(
    minted: &Minted,
    asked: Option<Vec<String>>,
) -> pb::MintTokenResponse {
    let record = &minted.record;
    let namespaces = asked.unwrap_or_else(|| record.namespaces.clone());
    pb::MintTokenResponse {
        token: minted.secret.expose().to_owned(),
        prefix: owned(&record.id),
        scopes: record.scopes.clone(),
        name: record.name.clone(),
        created_at: Some(time(record.created_at)),
        namespaces,
        expires_at: record.expires_at.map(time),
        max_uses: record.max_uses,
        client_networks: record.networks.clone(),
        parent: record.parent.as_deref().map(owned),
    }
}

impl From<Tightened> for pb::TightenTokenResponse {
    fn from(tightened: Tightened) -> Self {
        let Tightened { minted: successor, kept, dropped } = tightened;
        let token = successor.map(|successor| minted(&successor, None));
        Self { token, scopes: kept, dropped }
    }
}

/// Each permission with its last use, those that never were, and the seconds
/// since the last use of all.
fn usage(uses: Uses) -> (Vec<pb::PermissionUse>, Vec<String>, Option<u32>) {
    let one = |exercised: Exercised| pb::PermissionUse {
        permission: exercised.permission,
        last_used_at: exercised.at.map(time),
        observable: exercised.observable,
    };
    let unused = uses.unused.into_iter().map(|permission| permission.name().to_owned());
    let idle = u32::try_from(uses.idle.as_secs()).ok();
    (uses.permissions.into_iter().map(one).collect(), unused.collect(), idle)
}

impl From<&Shown> for pb::Token {
    fn from(shown: &Shown) -> Self {
        match shown {
            Shown::Configured(key) => {
                let grants = &key.principal.grants;
                Self {
                    prefix: owned(&key.id),
                    source: owned(key.principal.identity.source.as_str()),
                    scopes: grants.iter().flat_map(|grant| grant.permissions.names()).collect(),
                    name: Some(owned(&key.principal.identity.subject)),
                    namespaces: grants.iter().flat_map(|grant| grant.scope.to_strings()).collect(),
                    ..Self::default()
                }
            }
            Shown::Minted(issue, now) => {
                let record = &issue.record;
                let (permission_uses, unused_permissions, idle_seconds) =
                    usage(Uses::of(issue, *now));
                Self {
                    prefix: owned(&record.id),
                    source: owned(issue.principal().identity.source.as_str()),
                    scopes: record.scopes.clone(),
                    name: record.name.clone(),
                    // A line of the token file may not say when.
                    created_at: (record.created_at != Timestamp::default())
                        .then(|| time(record.created_at)),
                    namespaces: record.namespaces.clone(),
                    expires_at: issue.principal().not_after.map(time),
                    max_uses: record.max_uses,
                    uses: record.max_uses.map(|_| issue.uses()),
                    client_networks: record.networks.clone(),
                    parent: record.parent.as_deref().map(owned),
                    family: Some(owned(&record.family)),
                    last_used_at: issue.last_used_at().map(time),
                    permission_uses,
                    unused_permissions,
                    idle_seconds,
                    exchanged_by: issue.exchanged_by().map(ToString::to_string),
                }
            }
        }
    }
}

/// The end of the year 9999, the last that RFC 3339 can write.
const LAST_SECOND: i64 = 253_402_300_799;

impl TryFrom<pb::CreateApiKeyRequest> for NewKey {
    type Error = Refusal;

    fn try_from(request: pb::CreateApiKeyRequest) -> Result<Self, Refusal> {
        let pb::CreateApiKeyRequest { name, scopes, namespaces: _, expires_at, full_access } =
            request;
        let expires_at = expires_at.map(|at| {
            let micros = at
                .seconds
                .checked_mul(1_000_000)
                .filter(|_| at.seconds <= LAST_SECOND)
                .filter(|_| (0..1_000_000_000).contains(&at.nanos));
            micros
                .map(|micros| Timestamp::from_micros(micros + i64::from(at.nanos) / 1_000))
                .ok_or_else(|| {
                    Refusal::invalid(Reason::FieldInvalid, "expires_at", "is no point in time")
                })
        });
        Ok(Self { name, scopes, expires_at: expires_at.transpose()?, full_access })
    }
}

impl From<&Made> for pb::CreateApiKeyResponse {
    fn from(made: &Made) -> Self {
        let record = &made.record;
        Self {
            key: made.secret.expose().to_owned(),
            id: owned(&record.id),
            name: record.name.clone().unwrap_or_default(),
            scopes: record.scopes.clone(),
            namespaces: record.namespaces.clone(),
            created_at: Some(time(record.created_at)),
            expires_at: record.expires_at.map(time),
            state: pb::ApiKeyState::Active.into(),
        }
    }
}

impl From<&Key> for pb::ApiKey {
    fn from(key: &Key) -> Self {
        let record = &key.issue.record;
        let (permission_uses, unused_permissions, idle_seconds) =
            usage(Uses::of(&key.issue, key.at));
        Self {
            id: owned(&record.id),
            name: record.name.clone().unwrap_or_default(),
            scopes: record.scopes.clone(),
            namespaces: record.namespaces.clone(),
            state: match key.state {
                State::Active => pb::ApiKeyState::Active,
                State::Revoked => pb::ApiKeyState::Revoked,
                State::Expired => pb::ApiKeyState::Expired,
            }
            .into(),
            created_by: record.created_by.to_string(),
            created_at: Some(time(record.created_at)),
            expires_at: record.expires_at.map(time),
            revoked_at: record.revoked_at.map(time),
            last_used_at: key.issue.last_used_at().map(time),
            permission_uses,
            unused_permissions,
            idle_seconds,
        }
    }
}
