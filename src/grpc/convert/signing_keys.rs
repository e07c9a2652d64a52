//! Signing keys.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{owned, time};
use crate::{admin::signing_keys::SigningKey, pb::v1 as pb, signing::State};

impl From<State> for pb::SigningKeyState {
    fn from(state: State) -> Self {
        match state {
            State::Signs => Self::Signs,
            State::Verifies => Self::Verifies,
            State::Retired => Self::Retired,
        }
    }
}

impl From<SigningKey> for pb::SigningKey {
    fn from(key: SigningKey) -> Self {
        let SigningKey { record, state } = key;
        Self {
            kid: owned(&record.kid),
            purpose: owned(&record.purpose),
            organisation: owned(&record.organisation),
            algorithm: owned("EdDSA"),
            public_key: URL_SAFE_NO_PAD.encode(&record.public_key),
            state: pb::SigningKeyState::from(state).into(),
            created_by: owned(&record.created_by.subject),
            created_at: Some(time(record.created_at)),
            activated_at: Some(time(record.activated_at)),
            retired_at: record.retired_at.map(time),
        }
    }
}
