//! Tokens of steps, on a path of their own (SE-32): the general one for JWTs
//! refuses their type and our own issuer. A token counts only while the very
//! lease holds that it was made for, which is looked up at each call and
//! never kept (SE-38).

use std::{collections::BTreeSet, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header::AUTHORIZATION};
use serde_json::{Map, Value};

use super::{
    Accepted, Authenticator, Fault, Rejected, Session,
    jwt::{TOKEN_BYTES_MAX, Token},
};
use crate::{
    authz::Standing,
    config::Algorithm,
    domain::{
        Grant, Namespace, PermissionSet, Principal, Scope, StepId, StepNo, TaskId, Timestamp,
        principal::{GrantRef, Identity, Method, Source},
        rights::{StepRights, attempt_id, step_subject},
    },
    signing::{Key, STEP, SigningKeys, TYPE, worth},
    storage::Tenure,
};

/// How many bytes of a token's id are random.
const NONCE_BYTES: usize = 8;

/// What the tokens of steps are looked at with.
#[derive(Debug)]
pub(super) struct Steps {
    issuer: Arc<str>,
    keys: Arc<SigningKeys>,
    rights: Arc<StepRights>,
}

/// The lease that a token hangs on: it must be looked up before the call goes
/// on.
#[derive(Debug)]
pub struct Tie {
    task: TaskId,
    step: StepNo,
    attempt: u32,
    namespace: Namespace,
    name: Arc<str>,
    permissions: PermissionSet,
    key: Arc<Key>,
    nonce: Vec<u8>,
    tag: Vec<u8>,
}

impl Tie {
    /// The step of which the lease is.
    #[must_use]
    pub fn step(&self) -> (TaskId, StepNo) {
        (self.task, self.step)
    }

    /// Where it lies.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope::exactly(&self.namespace)
    }

    fn holds(&self, tenure: &Tenure, now: Timestamp) -> bool {
        tenure.id.task == self.task
            && tenure.id.step == self.step
            && tenure.attempt == self.attempt
            && tenure.namespace == self.namespace
            && tenure.name == self.name
            && now < tenure.deadline()
            && constant_time(&self.key.tag(&self.nonce, tenure.id), &self.tag)
    }
}

fn constant_time(one: &[u8], other: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}

/// Whether a bearer says that it is a step's token. What it says in vain is
/// refused as one.
pub(super) fn is_step(token: &str) -> bool {
    if token.len() > TOKEN_BYTES_MAX {
        return false;
    }
    let header = token.split('.').next().unwrap_or_default();
    let header = URL_SAFE_NO_PAD.decode(header).ok();
    let header: Option<Map<String, Value>> =
        header.and_then(|header| serde_json::from_slice(&header).ok());
    header
        .and_then(|header| header.get("typ")?.as_str().map(|typ| typ.eq_ignore_ascii_case(TYPE)))
        .unwrap_or_default()
}

impl Authenticator {
    /// With the tokens of steps, which these keys sign.
    #[must_use]
    pub fn with_step_tokens(mut self, keys: &Arc<SigningKeys>, rights: &Arc<StepRights>) -> Self {
        self.steps = rights.issuer().map(|issuer| Steps {
            issuer: Arc::clone(issuer),
            keys: Arc::clone(keys),
            rights: Arc::clone(rights),
        });
        self
    }

    /// A step's token among these headers, where auth is off.
    pub(super) fn step_bearer(
        &self,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Option<Result<Accepted, Rejected>> {
        self.steps.as_ref()?;
        let bearer = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (_, token) = bearer.split_once(' ')?;
        is_step(token).then(|| self.step(token, now))
    }

    /// Who a step's token is, as far as the token itself can say. It holds
    /// nothing before its lease is looked up.
    pub(super) fn step(&self, token: &str, now: Timestamp) -> Result<Accepted, Rejected> {
        let rejected = |fault: Fault| Rejected { why: fault.why(), method: Method::Jwt, fault };
        let steps = self.steps.as_ref().ok_or_else(|| rejected(Fault::Type))?;
        let (tie, not_after) = steps.read(token, now).map_err(rejected)?;
        let principal = Principal {
            identity: Identity {
                source: Source::Lease,
                issuer: "".into(),
                subject: step_subject(&tie.namespace, tie.task, &tie.name).into(),
            },
            method: Method::Jwt,
            grants: Vec::new(),
            not_after: Some(not_after),
            // Which attempt it is; a token of a step is never looked up by itself.
            credential_id: attempt_id(tie.task.step(tie.step), tie.attempt).into(),
            worker_scope: None,
            issued_at: None,
        };
        let session = Arc::new(Session::new(Arc::new(principal), self.revoked.child_token()));
        let (fresh, unknown_permissions) = (false, Vec::new());
        Ok(Accepted { session, fresh, unknown_permissions, counted: None, tie: Some(tie) })
    }

    /// The same with what it holds now, when its lease does.
    pub fn tied(
        &self,
        accepted: Accepted,
        tie: &Tie,
        tenure: Option<&Tenure>,
        now: Timestamp,
    ) -> Result<Accepted, Rejected> {
        let session = self.tied_session(&accepted.session, tie, tenure, now);
        let rejected = |fault: Fault| Rejected { why: fault.why(), method: Method::Jwt, fault };
        Ok(Accepted { session: session.map_err(rejected)?, ..accepted })
    }

    /// The session of a step's token with what it holds now, when its lease
    /// does.
    pub fn tied_session(
        &self,
        session: &Session,
        tie: &Tie,
        tenure: Option<&Tenure>,
        now: Timestamp,
    ) -> Result<Arc<Session>, Fault> {
        let steps = self.steps.as_ref().ok_or(Fault::Type)?;
        let tenure = tenure.filter(|tenure| tie.holds(tenure, now)).ok_or(Fault::LeaseEnded)?;
        let registrar = tenure.template.registrar.as_ref();
        let registrar = registrar.and_then(|grant| self.standing(grant, now));
        let worth = worth(&steps.rights, tenure, registrar.as_deref());
        let permissions = tie.permissions.intersection(&worth);
        let mut principal = (*session.principal).clone();
        principal.grants = vec![Grant { permissions, scope: Scope::exactly(&tie.namespace) }];
        Ok(Arc::new(Session::new(Arc::new(principal), session.revoked.clone())))
    }
}

impl Standing for Authenticator {
    fn standing(&self, grant: &GrantRef, now: Timestamp) -> Option<Arc<Principal>> {
        Self::standing(self, grant, now)
    }
}

impl Steps {
    fn read(&self, text: &str, now: Timestamp) -> Result<(Tie, Timestamp), Fault> {
        let token = Token::parse(text)?;
        let header = |name: &str| token.header.get(name).and_then(Value::as_str);
        if header("typ") != Some(TYPE) {
            return Err(Fault::Type);
        }
        if header("alg") != Some(Algorithm::EdDsa.name()) {
            return Err(Fault::Algorithm(Algorithm::EdDsa.name()));
        }
        if token.header.contains_key("crit") || token.header.contains_key("b64") {
            return Err(Fault::Critical);
        }
        // One that is for something else, or retired, is none.
        let key = header("kid").and_then(|kid| self.keys.verifier(kid, STEP));
        let key = key.ok_or(Fault::UnknownKid)?;
        if !key.verifies(token.message().as_bytes(), token.signature()) {
            return Err(Fault::Signature);
        }
        self.check(&token.claims, key, now)
    }

    /// The claims of a token that we made: one that lacks any is not for us.
    fn check(
        &self,
        claims: &Map<String, Value>,
        key: Arc<Key>,
        now: Timestamp,
    ) -> Result<(Tie, Timestamp), Fault> {
        let text = |name: &'static str| {
            claims.get(name).and_then(Value::as_str).ok_or(Fault::ClaimMissing(name))
        };
        if text("iss")? != &*self.issuer {
            return Err(Fault::Issuer);
        }
        // SE-31: what was made for somebody else is worth nothing here.
        if text("aud")? != &*self.issuer {
            return Err(Fault::Audience);
        }
        let number = |name: &'static str| {
            claims.get(name).and_then(Value::as_i64).ok_or(Fault::ClaimMissing(name))
        };
        let not_after = Timestamp::from_seconds(number("exp")?);
        if not_after <= now {
            return Err(Fault::Expired);
        }
        if Timestamp::from_seconds(number("iat")?) > now {
            return Err(Fault::NotYetValid);
        }
        let namespace = Namespace::parse(text("namespace")?);
        let task = TaskId::parse(text("task_uuid")?).ok_or(Fault::ClaimMissing("task_uuid"))?;
        let step = StepId::parse(text("step_uuid")?).and_then(|step| task.step_no(step));
        let attempt = u32::try_from(number("attempt")?).ok();
        let permissions = claims.get("permissions").and_then(Value::as_array);
        let permissions = permissions.ok_or(Fault::ClaimMissing("permissions"))?;
        let mut held = PermissionSet::empty();
        for name in permissions.iter().filter_map(Value::as_str) {
            held.add(name, &BTreeSet::new());
        }
        let id = URL_SAFE_NO_PAD.decode(text("jti")?).ok();
        let (nonce, tag) = id
            .as_deref()
            .and_then(|id| id.split_at_checked(NONCE_BYTES))
            .ok_or(Fault::ClaimMissing("jti"))?;
        let tie = Tie {
            task,
            step: step.ok_or(Fault::ClaimMissing("step_uuid"))?,
            attempt: attempt.ok_or(Fault::ClaimMissing("attempt"))?,
            namespace: namespace.map_err(|_| Fault::ClaimMissing("namespace"))?,
            name: text("step")?.into(),
            permissions: held,
            key,
            nonce: nonce.to_vec(),
            tag: tag.to_vec(),
        };
        Ok((tie, not_after))
    }
}
