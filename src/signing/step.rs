//! The tokens of a step: one for our own API, and one for each audience
//! outside, all bound to the lease and dead with it.

use std::{collections::HashMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::Rng as _;
use serde::Serialize;

use super::keys::{Key, SigningKeys};
use crate::{
    authz::Standing,
    domain::{
        Clock, PermissionSet, Principal, TaskId,
        rights::{OWN_AUDIENCE, StepRights, step_subject},
    },
    storage::{TOKEN_LIFE, Tenure},
};

/// The purpose of the keys that sign them.
pub const STEP: &str = "step";
/// The type in their headers.
pub const TYPE: &str = "bwk-step+jwt";
/// Makes the tokens of steps.
#[derive(Debug)]
pub struct StepTokens {
    issuer: Arc<str>,
    keys: Arc<SigningKeys>,
    rights: Arc<StepRights>,
    standing: Arc<dyn Standing>,
    clock: Arc<dyn Clock>,
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'a str,
    kid: &'a str,
    typ: &'a str,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
    jti: String,
    namespace: &'a str,
    task_uuid: String,
    step_uuid: String,
    step: &'a str,
    attempt: u32,
    /// Only in the token for our own API.
    #[serde(skip_serializing_if = "Option::is_none")]
    permissions: Option<Vec<String>>,
}

/// What a step's token is worth at this moment: what its template declares,
/// within the namespace's ceiling, as far as its registrar still holds it
/// there (SE-30).
#[must_use]
pub fn worth(rights: &StepRights, tenure: &Tenure, registrar: Option<&Principal>) -> PermissionSet {
    let template = &tenure.template.template;
    let Some(spec) = template.steps.iter().find(|step| step.name == tenure.name) else {
        return PermissionSet::empty();
    };
    let Some(registrar) = registrar else { return PermissionSet::empty() };
    let ceiling = rights.ceiling(&tenure.namespace);
    let mut held = PermissionSet::empty();
    for permission in spec.asked.permissions.own() {
        if ceiling.contains(permission) && registrar.may(permission, &tenure.namespace) {
            held.add(permission.name(), &std::collections::BTreeSet::new());
        }
    }
    held
}

impl StepTokens {
    /// By these keys; `standing` says what registrars still hold. None where
    /// steps have no tokens.
    #[must_use]
    pub fn new(
        keys: Arc<SigningKeys>,
        rights: Arc<StepRights>,
        standing: Arc<dyn Standing>,
        clock: Arc<dyn Clock>,
    ) -> Option<Arc<Self>> {
        let issuer = Arc::clone(rights.issuer()?);
        Some(Arc::new(Self { issuer, keys, rights, standing, clock }))
    }

    /// The tokens of a lease that holds, by the short names of their
    /// audiences.
    #[must_use]
    pub fn mint(&self, tenure: &Tenure) -> HashMap<String, String> {
        let Some(key) = self.keys.signer(STEP) else { return HashMap::new() };
        let now = self.clock.now();
        let template = &tenure.template.template;
        let asked = template.steps.iter().find(|step| step.name == tenure.name);
        let registrar = tenure.template.registrar.as_ref();
        let registrar = registrar.and_then(|grant| self.standing.standing(grant, now));
        let worth = worth(&self.rights, tenure, registrar.as_deref());
        let task: TaskId = tenure.id.task;
        let subject = step_subject(&tenure.namespace, task, &tenure.name);
        let claims = |audience, permissions| Claims {
            iss: &self.issuer,
            sub: &subject,
            aud: audience,
            iat: now.seconds(),
            exp: tenure.deadline().min(now.plus(TOKEN_LIFE)).seconds(),
            jti: jti(&key, tenure),
            namespace: tenure.namespace.as_str(),
            task_uuid: task.to_string(),
            step_uuid: tenure.step.to_string(),
            step: &tenure.name,
            attempt: tenure.attempt,
            permissions,
        };
        let mut tokens = HashMap::new();
        let own = signed(&key, &claims(&self.issuer, Some(worth.names())));
        tokens.extend(own.map(|token| (OWN_AUDIENCE.to_owned(), token)));
        // Who vouched for the audiences is gone: so are they.
        let outside = asked.filter(|_| registrar.is_some()).map(|step| &step.asked.audiences);
        for name in outside.into_iter().flatten() {
            let Some(audience) = self.rights.audience(&tenure.namespace, name) else { continue };
            let token = signed(&key, &claims(audience, None));
            tokens.extend(token.map(|token| (name.to_string(), token)));
        }
        tokens
    }
}

/// Random, and bound to the very lease.
fn jti(key: &Key, tenure: &Tenure) -> String {
    let nonce: [u8; 8] = rand::rng().random();
    URL_SAFE_NO_PAD.encode([nonce.as_slice(), &key.tag(&nonce, tenure.id)].concat())
}

fn signed(key: &Key, claims: &Claims<'_>) -> Option<String> {
    let header = Header { alg: "EdDSA", kid: key.kid(), typ: TYPE };
    let header = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header).ok()?);
    let claims = URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims).ok()?);
    let message = format!("{header}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()));
    Some(format!("{message}.{signature}"))
}
