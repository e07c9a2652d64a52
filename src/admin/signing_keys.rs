//! The keys that sign what the server itself vouches for: list, create, retire.
//!
//! Not here: how they are kept (`signing`).

use super::{Admin, Result, invalid};
use crate::{
    access::{Kind, Reason, Refusal},
    authz::Claim,
    domain::permission::right::SigningKeysAdmin,
    signing::{STEP, State},
    storage::SigningKeyRecord,
};

/// A key, and whether it signs.
#[derive(Clone, Debug)]
pub struct SigningKey {
    /// The key; nothing of its private part leaves.
    pub record: SigningKeyRecord,
    /// What it does.
    pub state: State,
}

/// All of them, newest first.
#[must_use]
pub fn list(admin: &Admin, _: &Claim<SigningKeysAdmin>) -> Vec<SigningKey> {
    let shown = |(record, state)| SigningKey { record, state };
    admin.keys.list().into_iter().map(shown).collect()
}

/// Makes a key that signs from now on.
pub async fn create(
    admin: &Admin,
    claim: &Claim<SigningKeysAdmin>,
    purpose: &str,
) -> Result<SigningKey> {
    if !matches!(purpose, "" | STEP) {
        return Err(invalid(
            "purpose",
            format!("the one purpose is `{STEP}`, the tokens of steps"),
        ));
    }
    let record = admin.keys.create(STEP, &claim.stamp()).await?;
    tracing::info!(kid = &*record.kid, by = %claim.identity(), "made a signing key");
    Ok(SigningKey { record, state: State::Signs })
}

/// Retires a key that does not sign any more.
pub async fn retire(
    admin: &Admin,
    claim: &Claim<SigningKeysAdmin>,
    kid: &str,
) -> Result<SigningKey> {
    let found = admin.keys.retire(kid, &claim.stamp()).await?;
    match found {
        None => Err(Refusal::not_found("signing key", &shown(kid)).into()),
        Some((_, State::Signs)) => Err(Refusal::new(
            Kind::Precondition,
            Reason::CredentialState,
            "The key signs; create another one first, which then signs in its place",
        )
        .into()),
        // A second time is as good as the first.
        Some((record, State::Verifies | State::Retired)) => {
            tracing::info!(kid, by = %claim.identity(), "retired a signing key");
            Ok(SigningKey { record, state: State::Retired })
        }
    }
}

fn shown(kid: &str) -> String {
    kid.chars().take(80).flat_map(char::escape_default).collect()
}
