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
        let mut policies = self.jwt.as_ref()?.verifier.issuers.iter().map(|issuer| &issuer.policy);
        let name = Some(&*grant.identity.issuer);
        let policy = policies.find(|policy| policy.issuer.as_deref() == name)?;
        let over = grant.until.is_some_and(|until| until <= now);
        if over || recalls.covers(&grant.identity, grant.issued_at) {
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
            issued_at: None,
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
            issued_at: None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use http::HeaderName;

    use super::*;
    use crate::{
        authn::tokens::{self, KeyKind},
        config::{
            self, ApiKey, Auth, CertificateRule, Certificates, Credentials, Jwt, Mode, OwnRate,
            TokenStore,
        },
        domain::{Permission, PermissionSet, Scope, secret},
        storage::{CredentialRecord, Recall},
    };

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const SPIFFE: &str = "spiffe://shop.example/worker";

    fn permissions(names: &[&str]) -> PermissionSet {
        let mut set = PermissionSet::empty();
        assert!(names.iter().all(|name| set.add(name, &BTreeSet::new())));
        set
    }

    fn credentials() -> Credentials {
        let public = tokens::generate(KeyKind::Ed25519).unwrap().public;
        let keys = config::Keys::Pem { text: public, origin: "a test".to_owned() };
        let mut issuer = Jwt::new(keys, "idp", "bailiwick-api");
        issuer.permissions_ceiling = permissions(&["rules:write", "tasks:create"]);
        issuer.namespaces_ceiling = Scope::parse(&["shop"]).unwrap();
        let rule = CertificateRule {
            spiffe: SPIFFE.into(),
            permissions: permissions(&["rules:write"]),
            scope: Scope::Everything,
        };
        Credentials {
            certificates: Certificates { rules: vec![rule] },
            issuers: vec![issuer],
            api_key_header: HeaderName::from_static("x-api-key"),
            api_keys_enabled: true,
            api_keys: vec![ApiKey {
                subject: "ops".into(),
                digest: [1; 32],
                permissions: permissions(&["rules:write"]),
                scope: Scope::Everything,
                rate: OwnRate::None,
            }],
        }
    }

    fn authenticator(mode: Mode) -> Authenticator {
        Authenticator::new(&Auth {
            mode,
            extra_permissions: BTreeSet::new(),
            jwt_token_expiry: Duration::from_hours(1),
            token_store: TokenStore::Database,
            disable_unused_after_days: None,
        })
        .unwrap()
    }

    fn on() -> Authenticator {
        authenticator(Mode::On(Box::new(credentials())))
    }

    fn grant(source: Source, issuer: &str, subject: &str, credential: &str) -> GrantRef {
        GrantRef {
            identity: Identity { source, issuer: issuer.into(), subject: subject.into() },
            method: Method::None,
            credential_id: credential.into(),
            grants: Vec::new(),
            set_at: NOW,
            issued_at: None,
            until: None,
        }
    }

    fn record(id: &str, family: &str, created_at: Timestamp) -> CredentialRecord {
        let mut digest = [9; 32];
        digest[0] = id.bytes().last().unwrap();
        CredentialRecord {
            id: id.into(),
            digest,
            kind: CredentialKind::ApiKey,
            name: None,
            scopes: vec!["rules:write".to_owned()],
            namespaces: vec!["shop".to_owned()],
            networks: Vec::new(),
            created_by: Principal::auth_off().identity,
            created_with: "root".into(),
            created_at,
            expires_at: None,
            max_uses: None,
            uses: 0,
            parent: None,
            family: family.into(),
            descent: Vec::new(),
            revoked_at: None,
            last_used_at: None,
        }
    }

    #[test]
    fn se_63_nobody_stands_for_auth_off_once_it_is_on() {
        let anonymous = grant(Source::Disabled, "", "anonymous", "");
        let off = authenticator(Mode::Off).standing(&anonymous, NOW).unwrap();
        assert_eq!(*off, Principal::auth_off());
        assert_eq!(on().standing(&anonymous, NOW), None);
        for source in [Source::Line, Source::Agent, Source::Lease, Source::Session] {
            let other = grant(source, "", "anonymous", "");
            assert_eq!(authenticator(Mode::Off).standing(&other, NOW), None, "{source:?}");
        }
    }

    #[test]
    fn se_63_a_key_of_the_configuration_stands_while_it_is_there() {
        let id = secret::id_of_stranger(&[1; 32]);
        let standing = on().standing(&grant(Source::Config, "", "ops", &id), NOW).unwrap();
        assert!(standing.holds(Permission::RulesWrite));
        let renamed = grant(Source::Config, "", "somebody", &id);
        assert_eq!(on().standing(&renamed, NOW), None);
        assert_eq!(on().standing(&grant(Source::Config, "", "ops", "other"), NOW), None);
        assert_eq!(
            authenticator(Mode::Off).standing(&grant(Source::Config, "", "ops", &id), NOW),
            None
        );
    }

    #[test]
    fn se_63_what_was_given_out_stands_while_it_is_live() {
        let authenticator = on();
        let issued = authenticator.issued();
        let later = NOW.plus(Duration::from_mins(1));
        issued.insert(record("a", "a", NOW));
        let of = |id: &str, family: &str| grant(Source::Database, "", family, id);
        let scope = authenticator.standing(&of("a", "a"), NOW).unwrap();
        assert!(scope.scope_of(Permission::RulesWrite).contains_text("shop.x"));
        assert_eq!(authenticator.standing(&of("missing", "a"), NOW), None);
        assert_eq!(authenticator.standing(&of("a", "b"), NOW), None, "another line");
        let file = grant(Source::File, "", "a", "a");
        assert_eq!(authenticator.standing(&file, NOW), None, "another store");
        // What it holds now counts, not what it held.
        issued.change("a", |record| record.scopes = vec!["tasks:read".to_owned()]);
        let standing = authenticator.standing(&of("a", "a"), NOW).unwrap();
        assert!(!standing.holds(Permission::RulesWrite));
        // A rotation goes on behind the end of what it follows.
        issued.change("a", |record| record.expires_at = Some(later));
        assert_eq!(authenticator.standing(&of("a", "a"), later), None);
        issued.insert(record("b", "a", later));
        let standing = authenticator.standing(&of("a", "a"), later).unwrap();
        assert_eq!(&*standing.credential_id, "b");
        issued.change("b", |record| record.max_uses = Some(0));
        assert_eq!(authenticator.standing(&of("b", "a"), later), None, "used up");
        issued.change("b", |record| record.max_uses = None);
        // Not behind its revocation.
        issued.change("a", |record| record.revoked_at = Some(NOW));
        assert_eq!(authenticator.standing(&of("a", "a"), later), None);
        issued.change("b", |record| record.revoked_at = Some(NOW));
        assert_eq!(authenticator.standing(&of("b", "a"), later), None);
    }

    #[test]
    fn se_63_api_keys_that_are_not_taken_stand_for_nobody() {
        let off = Credentials { api_keys_enabled: false, ..credentials() };
        let authenticator = authenticator(Mode::On(Box::new(off)));
        authenticator.issued().insert(record("a", "a", NOW));
        let token = CredentialRecord { kind: CredentialKind::Token, ..record("t", "t", NOW) };
        authenticator.issued().insert(token);
        let of = |id: &str| grant(Source::Database, "", id, id);
        assert_eq!(authenticator.standing(&of("a"), NOW), None);
        assert!(authenticator.standing(&of("t"), NOW).is_some());
    }

    #[test]
    fn se_63_a_jwt_stands_within_its_issuers_present_ceiling_until_it_is_recalled() {
        let authenticator = on();
        let later = NOW.plus(Duration::from_hours(1));
        let of = |issuer: &str, until| GrantRef {
            grants: vec![Grant {
                permissions: permissions(&["rules:write", "commands:execute"]),
                scope: Scope::Everything,
            }],
            until,
            ..grant(Source::Idp, issuer, "ada", "jwt")
        };
        let standing = authenticator.standing(&of("idp", None), later).unwrap();
        assert_eq!(standing.scope_of(Permission::RulesWrite), Scope::parse(&["shop"]).unwrap());
        assert!(!standing.holds(Permission::CommandsExecute), "above the ceiling");
        assert!(!standing.holds(Permission::TasksCreate), "it never held it");
        assert_eq!(authenticator.standing(&of("other", None), NOW), None);
        assert!(authenticator.standing(&of("idp", Some(later)), NOW).is_some());
        assert_eq!(authenticator.standing(&of("idp", Some(later)), later), None);
        let recall = |subject: &str, until| Recall {
            issuer: "idp".to_owned(),
            subject: Some(subject.to_owned()),
            until,
        };
        authenticator.recalls().insert(recall("eve", later));
        assert!(authenticator.standing(&of("idp", None), later).is_some());
        authenticator.recalls().insert(recall("ada", later));
        assert_eq!(authenticator.standing(&of("idp", None), later), None);
        // What counts is when the token was issued, not when the rule was set.
        let issued = |at| GrantRef { issued_at: Some(at), set_at: later, ..of("idp", None) };
        assert_eq!(authenticator.standing(&issued(NOW), later), None);
        assert!(authenticator.standing(&issued(later.plus_ms(1)), later.plus_ms(2)).is_some());
    }

    #[test]
    fn se_63_a_certificate_stands_while_its_name_has_a_rule() {
        let standing = on().standing(&grant(Source::Certificate, "", SPIFFE, "c"), NOW).unwrap();
        assert!(standing.holds(Permission::RulesWrite));
        let other = grant(Source::Certificate, "", "spiffe://shop.example/other", "c");
        assert_eq!(on().standing(&other, NOW), None);
    }
}
