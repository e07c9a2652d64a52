//! Callers and what they may.

use super::{owned, time};
use crate::{domain::Principal, pb::v1 as pb};

impl From<&Principal> for pb::WhoAmIResponse {
    fn from(principal: &Principal) -> Self {
        let identity = &principal.identity;
        let grants = principal.grants.iter().map(|grant| pb::Grant {
            permissions: grant.permissions.names(),
            namespaces: grant.scope.to_strings(),
        });
        Self {
            subject: owned(&identity.subject),
            source: owned(identity.source.as_str()),
            issuer: Some(&identity.issuer).filter(|text| !text.is_empty()).map(|text| owned(text)),
            method: owned(principal.method.as_str()),
            grants: grants.collect(),
            root: principal.is_root(),
            expires_at: principal.not_after.map(time),
        }
    }
}
