//! JWTs by the public keys of their issuers. Signatures are the library's; what a token
//! must look like is checked here, where nothing is optional by default
//! (SE-23). Keys within a token (`jwk`, `jku`, `x5u`) mean nothing; `kid`
//! chooses among the issuer's own. The claim `iss`, not verified yet, only
//! chooses whose keys and rules decide.

use std::{collections::BTreeSet, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value, value::RawValue};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::{
    Unauthenticated,
    claims::{Claims, applies, evidence, names, strings},
    json,
    jwks::Ring,
    pem::PublicKey,
};
use crate::{
    config::{ClaimRule, Jwt, Roles},
    domain::{Grant, PermissionSet, Scope, Timestamp},
};

/// The longest token.
pub(super) const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// The last second of the year 9999.
const SECONDS_MAX: i64 = 253_402_300_799;
/// The longest subject.
const SUBJECT_BYTES_MAX: usize = 256;
/// Types of other tokens, such as `bwk-step+jwt`, are not taken here (SE-32).
const TYPES: [&str; 2] = ["JWT", "at+jwt"];

/// What is wrong with a credential: for logs, metrics and `validate-token`,
/// never for the caller.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// There is none.
    #[error("no credential")]
    Missing,
    /// Two, or one that reads as two.
    #[error("credentials given twice")]
    Ambiguous,
    /// Another scheme than Bearer.
    #[error("the scheme of Authorization is not Bearer")]
    Scheme,
    /// No such API key.
    #[error("unknown API key")]
    UnknownKey,
    /// Neither a JWT nor a known key.
    #[error("unknown token")]
    UnknownToken,
    /// A JWT, but none are taken.
    #[error("a JWT, and no JWT key is configured")]
    NoJwtKey,
    /// It was taken back.
    #[error("revoked")]
    Revoked,
    /// It has been used as often as it may.
    #[error("used up")]
    UsedUp,
    /// It comes from a network that it is not for.
    #[error("the client's address is outside of its networks")]
    Network,
    /// It cannot be read.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The header names another algorithm than the key's.
    #[error("the algorithm is not {0}, which the key is for")]
    Algorithm(&'static str),
    /// A type that is not taken.
    #[error("the header's `typ` is not taken here")]
    Type,
    /// The header demands what is not understood.
    #[error("the header has `crit` or `b64`")]
    Critical,
    /// The signature is not the key's.
    #[error("the signature is not this key's")]
    Signature,
    /// No such key in the issuer's set.
    #[error("the issuer's key set has no such key")]
    UnknownKid,
    /// The issuer's keys were not fetched yet, or for too long.
    #[error("the issuer's keys are not there or too old")]
    KeysStale,
    /// A claim is missing.
    #[error("the claim `{0}` is missing")]
    ClaimMissing(&'static str),
    /// A claim has a value that is not allowed.
    #[error("the claim `{0}` is not {1}")]
    ClaimInvalid(String, &'static str),
    /// Another issuer.
    #[error("the issuer is another one")]
    Issuer,
    /// For another audience.
    #[error("the audience is another one")]
    Audience,
    /// Its time is over.
    #[error("expired")]
    Expired,
    /// Its time has not come.
    #[error("not valid yet")]
    NotYetValid,
    /// The lease of a step's token has ended.
    #[error("the step's lease has ended")]
    LeaseEnded,
    /// A client certificate that names nobody.
    #[error("the client certificate: {0}")]
    Certificate(&'static str),
    /// Permissions that nobody knows.
    #[error("unknown permissions: {}", .0.join(", "))]
    UnknownPermissions(Vec<String>),
}

impl Fault {
    /// The label of metrics; a small set.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Ambiguous => "ambiguous",
            Self::Scheme => "scheme",
            Self::UnknownKey => "unknown_key",
            Self::UnknownToken => "unknown_token",
            Self::NoJwtKey => "no_jwt_key",
            Self::Revoked => "revoked",
            Self::UsedUp => "used_up",
            Self::Network => "network",
            Self::Malformed(_) => "malformed",
            Self::Algorithm(_) => "algorithm",
            Self::Type => "type",
            Self::Critical => "critical",
            Self::Signature => "signature",
            Self::UnknownKid => "unknown_kid",
            Self::KeysStale => "keys_stale",
            Self::ClaimMissing(_) => "claim_missing",
            Self::ClaimInvalid(..) => "claim_invalid",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::LeaseEnded => "lease_ended",
            Self::Certificate(_) => "certificate",
            Self::UnknownPermissions(_) => "unknown_permissions",
        }
    }

    /// Every label, so that each counter stands from the start.
    pub(crate) const LABELS: [&'static str; 24] = [
        "ambiguous",
        "scheme",
        "unknown_key",
        "unknown_token",
        "no_jwt_key",
        "revoked",
        "used_up",
        "network",
        "malformed",
        "algorithm",
        "type",
        "critical",
        "signature",
        "unknown_kid",
        "keys_stale",
        "claim_missing",
        "claim_invalid",
        "issuer",
        "audience",
        "expired",
        "not_yet_valid",
        "lease_ended",
        "certificate",
        "unknown_permissions",
    ];

    /// What the caller is told.
    #[must_use]
    pub const fn why(&self) -> Unauthenticated {
        match self {
            Self::Missing => Unauthenticated::Missing,
            Self::Ambiguous => Unauthenticated::Ambiguous,
            Self::Expired => Unauthenticated::Expired,
            Self::NotYetValid => Unauthenticated::NotYetValid,
            Self::Revoked | Self::LeaseEnded => Unauthenticated::Revoked,
            Self::UsedUp => Unauthenticated::UsedUp,
            Self::Scheme
            | Self::UnknownKey
            | Self::UnknownToken
            | Self::NoJwtKey
            | Self::Network
            | Self::Malformed(_)
            | Self::Algorithm(_)
            | Self::Type
            | Self::Critical
            | Self::Signature
            | Self::UnknownKid
            | Self::KeysStale
            | Self::ClaimMissing(_)
            | Self::ClaimInvalid(..)
            | Self::Issuer
            | Self::Audience
            | Self::Certificate(_)
            | Self::UnknownPermissions(_) => Unauthenticated::Invalid,
        }
    }
}

/// What a token must say.
pub(super) struct Policy {
    pub(super) issuer: Option<Arc<str>>,
    pub(super) audience: Option<String>,
    pub(super) leeway_seconds: i64,
    pub(super) permissions_claim: String,
    pub(super) strict: bool,
    pub(super) default_scope: Scope,
    pub(super) permissions_ceiling: PermissionSet,
    pub(super) namespaces_ceiling: Scope,
    pub(super) roles: Roles,
    pub(super) rules: Vec<ClaimRule>,
    pub(super) foreign: BTreeSet<Arc<str>>,
}

impl Policy {
    pub(super) fn new(jwt: &Jwt, foreign: BTreeSet<Arc<str>>) -> Self {
        Self {
            issuer: Some(Arc::clone(&jwt.issuer)),
            audience: Some(jwt.audience.clone()),
            leeway_seconds: i64::try_from(jwt.leeway.as_secs()).unwrap_or(0),
            permissions_claim: jwt.permissions_claim.clone(),
            strict: jwt.strict,
            default_scope: jwt.default_scope.clone(),
            permissions_ceiling: jwt.permissions_ceiling.clone(),
            namespaces_ceiling: jwt.namespaces_ceiling.clone(),
            roles: jwt.roles.clone(),
            rules: jwt.rules.clone(),
            foreign,
        }
    }
}

/// Whose keys verify an issuer's tokens.
pub(super) enum Keys {
    Fixed(PublicKey, CancellationToken),
    Ring(Arc<Ring>),
}

impl Keys {
    fn key(
        &self,
        token: &Token<'_>,
        now: Timestamp,
    ) -> Result<(PublicKey, CancellationToken), Fault> {
        match self {
            Self::Fixed(key, gone) => Ok((key.clone(), gone.clone())),
            Self::Ring(ring) => ring.key(&token.header, now).map(|key| (key.key, key.gone)),
        }
    }
}

pub(super) struct Issuer {
    pub(super) keys: Keys,
    pub(super) policy: Policy,
}

/// A token that is good.
pub(super) struct Good {
    pub(super) claims: Claims,
    /// What the audit keeps of what it says.
    pub(super) evidence: Option<Box<RawValue>>,
    /// Cancelled when the key counts no more.
    pub(super) revoked: CancellationToken,
}

pub(super) struct Verifier {
    pub(super) issuers: Vec<Issuer>,
}

impl Verifier {
    pub(super) fn new(issuers: Vec<Issuer>) -> Self {
        Self { issuers }
    }

    /// The key sets that must be kept fresh.
    pub(super) fn rings(&self) -> impl Iterator<Item = &Arc<Ring>> {
        self.issuers.iter().filter_map(|issuer| match &issuer.keys {
            Keys::Fixed(..) => None,
            Keys::Ring(ring) => Some(ring),
        })
    }

    /// The first fault in an order that tells a stranger nothing: expiry
    /// counts only behind a good signature.
    pub(super) fn verify(&self, token: &str, now: Timestamp) -> Result<Good, Fault> {
        let token = Token::parse(token)?;
        let issuer = self.issuer(&token.claims)?;
        let (key, revoked) = issuer.keys.key(&token, now)?;
        let mut faults = Vec::new();
        token.check_header(&key, &mut faults);
        if let Some(fault) = faults.pop() {
            return Err(fault);
        }
        if !token.is_signed_by(&key) {
            return Err(Fault::Signature);
        }
        let claims = issuer.policy.check(&token.claims, now, &mut faults);
        match (faults.into_iter().next(), claims) {
            (None, Some(claims)) => {
                Ok(Good { claims, revoked, evidence: issuer.policy.evidence(&token.claims) })
            }
            (Some(fault), _) => Err(fault),
            (None, None) => Err(Fault::Malformed("claims")),
        }
    }

    /// Whose the token says it is. The only issuer also looks at what is not
    /// its own: its policy says what is wrong.
    fn issuer(&self, claims: &Map<String, Value>) -> Result<&Issuer, Fault> {
        if let [only] = self.issuers.as_slice() {
            return Ok(only);
        }
        let name = claims.get("iss").ok_or(Fault::ClaimMissing("iss"))?.as_str();
        let named = |issuer: &&Issuer| issuer.policy.issuer.as_deref() == name;
        name.and_then(|_| self.issuers.iter().find(named)).ok_or(Fault::Issuer)
    }
}

/// A token that can be read, which says nothing about its worth.
pub(super) struct Token<'a> {
    message: &'a str,
    signature: Vec<u8>,
    pub(super) header: Map<String, Value>,
    pub(super) claims: Map<String, Value>,
}

impl<'a> Token<'a> {
    /// Three parts in canonical base64url, two of them JSON objects in which
    /// no name stands twice.
    pub(super) fn parse(text: &'a str) -> Result<Self, Fault> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(Fault::Malformed("too long"));
        }
        let (message, signature) =
            text.rsplit_once('.').ok_or(Fault::Malformed("not three parts"))?;
        let (header, claims) =
            message.split_once('.').ok_or(Fault::Malformed("not three parts"))?;
        if claims.contains('.') {
            return Err(Fault::Malformed("not three parts"));
        }
        let decode = |part: &str| {
            URL_SAFE_NO_PAD.decode(part).map_err(|_| Fault::Malformed("not base64url"))
        };
        let signature = decode(signature)?;
        let object = |part: &str| {
            json::object(&decode(part)?)
                .ok_or(Fault::Malformed("not a JSON object in which every name stands once"))
        };
        Ok(Self { message, signature, header: object(header)?, claims: object(claims)? })
    }

    /// What is signed.
    pub(super) fn message(&self) -> &str {
        self.message
    }

    /// The signature.
    pub(super) fn signature(&self) -> &[u8] {
        &self.signature
    }

    pub(super) fn check_header(&self, key: &PublicKey, faults: &mut Vec<Fault>) {
        let expected = key.algorithm().name();
        if self.header.get("alg").and_then(Value::as_str) != Some(expected) {
            faults.push(Fault::Algorithm(expected));
        }
        let allowed = |typ: &Value| {
            typ.as_str()
                .is_some_and(|typ| TYPES.iter().any(|known| known.eq_ignore_ascii_case(typ)))
        };
        if !self.header.get("typ").is_none_or(allowed) {
            faults.push(Fault::Type);
        }
        if self.header.contains_key("crit") || self.header.contains_key("b64") {
            faults.push(Fault::Critical);
        }
    }

    pub(super) fn is_signed_by(&self, key: &PublicKey) -> bool {
        key.verifies(self.message.as_bytes(), &self.signature)
    }
}

impl Policy {
    /// Collects every fault; the claims when there is enough to make them.
    pub(super) fn check(
        &self,
        claims: &Map<String, Value>,
        now: Timestamp,
        faults: &mut Vec<Fault>,
    ) -> Option<Claims> {
        let issuer = self.check_issuer(claims, faults);
        self.check_audience(claims, faults);
        let subject = check_subject(claims, faults);
        let not_after = self.check_times(claims, now, faults);
        let (permissions, unknown_permissions) = self.check_permissions(claims, faults);
        let grants = self.grants(claims, permissions, scope(claims, "namespaces", faults).as_ref());
        // An empty list narrows nothing: tokens are made with it by default.
        let worker_scope = scope_of_list(claims, "worker_namespaces", faults)
            .filter(|scope| *scope != Scope::NOWHERE);
        Some(Claims {
            issuer: issuer?.into(),
            subject: subject?.into(),
            not_after: not_after?,
            issued_at: self.issued_at(claims),
            grants,
            worker_scope,
            unknown_permissions,
        })
    }

    fn check_issuer<'c>(
        &self,
        claims: &'c Map<String, Value>,
        faults: &mut Vec<Fault>,
    ) -> Option<&'c str> {
        let issuer = text(claims, "iss", faults)?;
        if self.issuer.as_ref().is_some_and(|expected| expected.as_ref() != issuer) {
            faults.push(Fault::Issuer);
        }
        Some(issuer)
    }

    fn check_audience(&self, claims: &Map<String, Value>, faults: &mut Vec<Fault>) {
        let audiences: Option<Vec<&str>> = match claims.get("aud") {
            None => {
                faults.push(Fault::ClaimMissing("aud"));
                return;
            }
            Some(Value::String(one)) => Some(vec![one.as_str()]),
            Some(Value::Array(many)) => many.iter().map(Value::as_str).collect(),
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => None,
        };
        let Some(audiences) = audiences else {
            faults.push(Fault::ClaimInvalid("aud".to_owned(), "a string or a list of strings"));
            return;
        };
        if self.audience.as_deref().is_some_and(|expected| !audiences.contains(&expected)) {
            faults.push(Fault::Audience);
        }
    }

    /// The moment from which the token counts no more, leeway included.
    fn check_times(
        &self,
        claims: &Map<String, Value>,
        now: Timestamp,
        faults: &mut Vec<Fault>,
    ) -> Option<Timestamp> {
        let expires = seconds(claims, "exp", faults);
        if !claims.contains_key("exp") {
            faults.push(Fault::ClaimMissing("exp"));
        }
        let not_before = seconds(claims, "nbf", faults);
        let issued = seconds(claims, "iat", faults);
        let not_after = expires.map(|at| Timestamp::from_seconds(at + self.leeway_seconds));
        if not_after.is_some_and(|end| end <= now) {
            faults.push(Fault::Expired);
        }
        // One from the future would outlive what is taken back now (SE-47).
        let early = |at: i64| Timestamp::from_seconds(at - self.leeway_seconds) > now;
        if not_before.is_some_and(early) || issued.is_some_and(early) {
            faults.push(Fault::NotYetValid);
        }
        not_after
    }

    /// What the audit keeps of the claims, with those that the rules read.
    fn evidence(&self, claims: &Map<String, Value>) -> Option<Box<RawValue>> {
        let rules = self.rules.iter().flat_map(|rule| &rule.claims);
        let read = rules.map(|(name, _)| name.as_str()).chain([self.permissions_claim.as_str()]);
        evidence(claims, &read.collect::<Vec<_>>())
    }

    /// The earliest moment at which the token can have been issued.
    fn issued_at(&self, claims: &Map<String, Value>) -> Option<Timestamp> {
        claims.get("iat")?.as_i64().map(|at| Timestamp::from_seconds(at - self.leeway_seconds))
    }

    /// What the token lists, and what each rule that fits gives: grants of
    /// their own (SE-01). The claim `namespaces` narrows them all, the
    /// issuer's ceiling cuts them.
    fn grants(
        &self,
        claims: &Map<String, Value>,
        permissions: PermissionSet,
        claimed: Option<&Scope>,
    ) -> Vec<Grant> {
        let by_default = claimed.unwrap_or(&self.default_scope);
        let mut grants = vec![Grant { permissions, scope: by_default.clone() }];
        for rule in &self.rules {
            let Some(mut scope) = applies(rule, claims, by_default) else { continue };
            if let Some(claimed) = claimed {
                scope = scope.intersection(claimed);
            }
            grants.push(Grant { permissions: rule.permissions.clone(), scope });
        }
        if grants.len() > 1 {
            grants.retain(|grant| !grant.permissions.is_empty());
        }
        for grant in &mut grants {
            grant.permissions = grant.permissions.intersection(&self.permissions_ceiling);
            grant.scope = grant.scope.intersection(&self.namespaces_ceiling);
        }
        grants
    }

    /// A token without the claim holds nothing.
    fn check_permissions(
        &self,
        claims: &Map<String, Value>,
        faults: &mut Vec<Fault>,
    ) -> (PermissionSet, Vec<String>) {
        let mut permissions = PermissionSet::empty();
        let mut unknown = Vec::new();
        let names = names(claims, &self.permissions_claim, faults).unwrap_or_default();
        for name in names {
            if !self.roles.add(&mut permissions, name, &self.foreign) {
                unknown.push(excerpt(name));
            }
        }
        if self.strict && !unknown.is_empty() {
            faults.push(Fault::UnknownPermissions(unknown.clone()));
        }
        (permissions, unknown)
    }
}

/// Bounded and printable: it goes into logs.
fn excerpt(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_default).collect()
}

fn check_subject<'c>(claims: &'c Map<String, Value>, faults: &mut Vec<Fault>) -> Option<&'c str> {
    let subject = text(claims, "sub", faults)?;
    if subject.len() > SUBJECT_BYTES_MAX || subject.chars().any(char::is_control) {
        faults.push(Fault::ClaimInvalid(
            "sub".to_owned(),
            "at most 256 bytes without control characters",
        ));
    }
    Some(subject)
}

/// A claim that must be there and be a text with something in it.
fn text<'c>(
    claims: &'c Map<String, Value>,
    name: &'static str,
    faults: &mut Vec<Fault>,
) -> Option<&'c str> {
    let Some(value) = claims.get(name) else {
        faults.push(Fault::ClaimMissing(name));
        return None;
    };
    let text = value.as_str().filter(|text| !text.is_empty());
    if text.is_none() {
        faults.push(Fault::ClaimInvalid(name.to_owned(), "a string with something in it"));
    }
    text
}

/// A point in time, when it is there: an integer within four-digit years.
fn seconds(claims: &Map<String, Value>, name: &str, faults: &mut Vec<Fault>) -> Option<i64> {
    let value = claims.get(name)?;
    let seconds = value.as_i64().filter(|seconds| (0..=SECONDS_MAX).contains(seconds));
    if seconds.is_none() {
        faults.push(Fault::ClaimInvalid(name.to_owned(), "whole seconds since 1970"));
    }
    seconds
}

/// SE-06: a missing claim is `None`; `[]` is nowhere; what is odd is a fault,
/// and then nowhere.
fn scope(claims: &Map<String, Value>, name: &str, faults: &mut Vec<Fault>) -> Option<Scope> {
    claims.contains_key(name).then(|| scope_of_list(claims, name, faults).unwrap_or(Scope::NOWHERE))
}

fn scope_of_list(
    claims: &Map<String, Value>,
    name: &str,
    faults: &mut Vec<Fault>,
) -> Option<Scope> {
    let names = strings(claims, name, faults)?;
    let scope = Scope::parse(&names).ok();
    if scope.is_none() {
        faults.push(Fault::ClaimInvalid(name.to_owned(), "a list of namespaces or `*`"));
    }
    scope
}
