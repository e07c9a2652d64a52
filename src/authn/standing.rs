//! Who stands behind work that was set earlier, as of now: the credential is
//! looked up again (SE-63).
//!
//! Not here: what the work needs (`schedule`).

use std::sync::Arc;

use super::{Authenticator, Holders, Known, Recalls};
use crate::{
    domain::{
        Grant, Principal, Timestamp,
        principal::{GrantRef, Identity, Method, Source},
    },
    storage::CredentialKind,
};

impl Authenticator {
    /// The principal with what it holds now; none when its credential was
    /// taken back, has ended or is no more. Tokens of the line protocol are
    /// not known here.
    #[must_use]
    pub fn standing(&self, grant: &GrantRef, now: Timestamp) -> Option<Arc<Principal>> {
        let found = match (grant.identity.source, &self.known) {
            (Source::Disabled, Known::Everybody(session)) => Arc::clone(&session.principal),
            (Source::Config, Known::Holders(holders)) => {
                holders.configured(&grant.credential_id)?
            }
            (Source::Idp, Known::Holders(holders)) => {
                holders.promised(grant, &self.recalls, now)?
            }
            (Source::Certificate, Known::Holders(holders)) => holders.named(grant)?,
            (Source::Database | Source::File, known) => {
                let issue = self.issued.standing(&grant.credential_id, now)?;
                let key = issue.record.kind == CredentialKind::ApiKey;
                let keys_off = matches!(known, Known::Holders(all) if !all.api_keys_enabled);
                if key && keys_off {
                    return None;
                }
                Arc::clone(issue.principal())
            }
            (
                Source::Disabled
                | Source::Config
                | Source::Idp
                | Source::Certificate
                | Source::Line
                | Source::Agent
                | Source::Lease
                | Source::Session,
                _,
            ) => return None,
        };
        // An id that now is somebody else's stands for nobody.
        (found.identity == grant.identity).then_some(found)
    }
}

impl Holders {
    fn configured(&self, id: &str) -> Option<Arc<Principal>> {
        let mut keys = self.api_keys.values().map(|key| &key.session);
        let session = keys.find(|session| *session.principal.credential_id == *id)?;
        (!session.is_revoked()).then(|| Arc::clone(&session.principal))
    }

    /// Nobody keeps a JWT: what it held is in the grant, within what its
    /// issuer may give now.
    fn promised(
        &self,
        grant: &GrantRef,
        recalls: &Recalls,
        now: Timestamp,
    ) -> Option<Arc<Principal>> {
        let policy = self.jwt.as_ref()?.verifier.policy(&grant.identity.issuer)?;
        let over = grant.until.is_some_and(|until| until <= now);
        if over || recalls.covers(&grant.identity, Some(grant.set_at)) {
            return None;
        }
        let bounded = |held: &Grant| Grant {
            permissions: held.permissions.intersection(&policy.permissions_ceiling),
            scope: held.scope.intersection(&policy.namespaces_ceiling),
        };
        Some(Arc::new(Principal {
            identity: grant.identity.clone(),
            method: grant.method,
            grants: grant.grants.iter().map(bounded).collect(),
            not_after: grant.until,
            credential_id: Arc::clone(&grant.credential_id),
            worker_scope: None,
        }))
    }

    /// What the rule for a certificate's name gives now. Certificates live for
    /// hours and are renewed: the name counts, not the one that was shown.
    fn named(&self, grant: &GrantRef) -> Option<Arc<Principal>> {
        let rule = self.certificates.rule(&grant.identity.subject)?;
        Some(Arc::new(Principal {
            identity: Identity {
                source: Source::Certificate,
                issuer: "".into(),
                subject: Arc::clone(&grant.identity.subject),
            },
            method: Method::Certificate,
            grants: vec![Grant {
                permissions: rule.permissions.clone(),
                scope: rule.scope.clone(),
            }],
            not_after: None,
            credential_id: Arc::clone(&grant.credential_id),
            worker_scope: None,
        }))
    }
}
