//! What a decision is known by: who asked for what, by which call. The gate
//! makes one for each call, proofs carry it, and the store keeps it with the
//! change that it led to.
//!
//! Not here: how records are kept, chained and signed (`audit`, `storage`).

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{
    Serialize, Serializer,
    ser::{SerializeMap as _, SerializeSeq as _},
};
use serde_json::value::RawValue;

use super::{
    Permission, Principal, RequestId, Timestamp, history::Change, judged::Judgement,
    principal::Identity,
};

/// A call, and who makes it.
pub struct Origin {
    /// Who calls, with all that it holds.
    pub principal: Arc<Principal>,
    /// The full name of the RPC, `bailiwick.v1.TaskService/CreateTask`, or
    /// what the line protocol calls it, or `scheduler` for its own runs.
    pub rpc: Arc<str>,
    /// The call's id, which is also the decision's.
    pub request: RequestId,
    /// What the rule of the call names.
    pub permission: Option<Permission>,
    /// The keyed fingerprint of the credential (SE-44): hex digits.
    pub fingerprint: Option<Arc<str>>,
    /// The client's address.
    pub peer: Option<IpAddr>,
    /// Who calls without the rights that it has for a while, where that is
    /// known: what is done later goes by these.
    pub lasting: Option<Arc<Principal>>,
    /// What became of it so far.
    pub trail: Trail,
}

/// As many places of a refused call are kept.
const ASKED_MAX: usize = 8;
/// As much of the text of each, in bytes.
const ASKED_BYTES_MAX: usize = 256;

/// What proofs and the store note about a call on its way.
#[derive(Debug, Default)]
pub struct Trail {
    /// Where the call was allowed, once a proof says so.
    place: OnceLock<Arc<str>>,
    /// The places that it asked for, once it was refused for them.
    asked: OnceLock<Vec<Arc<str>>>,
    /// What else it needed, once it was refused for want of that.
    missing: OnceLock<Missing>,
    /// What it answered about credentials of others.
    judged: OnceLock<Judgement>,
    /// Whether a change of this call was stored together with its record.
    recorded: AtomicBool,
    /// Whether what became of the call was noted.
    settled: AtomicBool,
}

/// What a call needed besides the right of its rule.
#[derive(Debug)]
struct Missing {
    /// None where that is no single permission.
    permission: Option<Permission>,
    places: Vec<Arc<str>>,
}

impl Origin {
    /// A call that was not yet allowed anywhere.
    #[must_use]
    pub fn new(principal: Arc<Principal>, rpc: Arc<str>, request: RequestId) -> Self {
        Self {
            principal,
            rpc,
            request,
            permission: None,
            fingerprint: None,
            peer: None,
            lasting: None,
            trail: Trail::default(),
        }
    }

    /// Notes where the call was allowed; the first place counts.
    pub fn allowed_in(&self, place: &str) {
        self.trail.place.get_or_init(|| place.into());
    }

    /// Where it was allowed; none before, or where that is no single place.
    #[must_use]
    pub fn place(&self) -> Option<&str> {
        self.trail.place.get().map(|place| &**place)
    }

    /// Notes what the call asked for when it was refused for that, some of it;
    /// the first time counts.
    pub fn asked_for<'a>(&self, places: impl IntoIterator<Item = &'a str>) {
        self.trail.asked.get_or_init(|| kept(places));
    }

    /// What it asked for; nothing where it was not refused for that.
    #[must_use]
    pub fn asked(&self) -> &[Arc<str>] {
        match (self.trail.missing.get(), self.trail.asked.get()) {
            (Some(missing), _) => &missing.places,
            (None, asked) => asked.map_or(&[], Vec::as_slice),
        }
    }

    /// Notes that the call is refused for want of a permission in some places,
    /// which need not be that of its rule; the first time counts.
    pub fn lacks<'a>(&self, permission: Permission, places: impl IntoIterator<Item = &'a str>) {
        let missing = || Missing { permission: Some(permission), places: kept(places) };
        self.trail.missing.get_or_init(missing);
    }

    /// Notes that what it asked for is more than its caller holds, by no single
    /// permission that could be named.
    pub fn lacks_some(&self) {
        let missing = || Missing { permission: None, places: Vec::new() };
        self.trail.missing.get_or_init(missing);
    }

    /// Whether one of these was noted.
    #[must_use]
    pub fn is_lacking(&self) -> bool {
        self.trail.missing.get().is_some()
    }

    /// What it was refused for want of: what was noted, or what its rule names.
    #[must_use]
    pub fn wanted(&self) -> Option<Permission> {
        self.trail.missing.get().map_or(self.permission, |missing| missing.permission)
    }

    /// Notes what the call answered about credentials that somebody else was
    /// shown; the first time counts.
    pub fn judges(&self, judgement: Judgement) {
        self.trail.judged.get_or_init(|| judgement);
    }

    /// What it answered about them; none where it was not asked.
    #[must_use]
    pub fn judged(&self) -> Option<&Judgement> {
        self.trail.judged.get()
    }

    /// Notes that a change of this call has its record in its transaction.
    pub fn was_recorded(&self) {
        self.trail.recorded.store(true, Ordering::Relaxed);
    }

    /// Whether one has.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.trail.recorded.load(Ordering::Relaxed)
    }

    /// Notes that what became of the call is on its way into the audit.
    pub fn was_settled(&self) {
        self.trail.settled.store(true, Ordering::Relaxed);
    }

    /// Whether it is.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.trail.settled.load(Ordering::Relaxed)
    }

    /// Whether it goes by rights that its caller has for a while.
    #[must_use]
    pub fn is_elevated(&self) -> bool {
        self.lasting.as_ref().is_some_and(|lasting| !Arc::ptr_eq(lasting, &self.principal))
    }

    /// The chain of what was refused, or read in no single place: where the
    /// caller itself belongs, so that nobody fills another's chain (SE-44).
    /// Text of the only prefix of its scope; otherwise the server's chain, as
    /// for what was answered about credentials, which may be anybody's.
    #[must_use]
    pub fn own_chain(&self) -> Arc<str> {
        if self.judged().is_some() {
            return SERVER_CHAIN.into();
        }
        let lasting = self.lasting.as_ref().unwrap_or(&self.principal);
        let mut texts = lasting.grants.iter().map(|grant| grant.scope.to_strings());
        match (texts.next().as_deref(), texts.next()) {
            (Some([only]), None) if only != "*" => only.trim_end_matches('.').into(),
            _ => SERVER_CHAIN.into(),
        }
    }
}

/// What is kept of places that callers name.
fn kept<'a>(places: impl IntoIterator<Item = &'a str>) -> Vec<Arc<str>> {
    let cut = |place: &'a str| {
        let end = place.floor_char_boundary(ASKED_BYTES_MAX);
        Arc::from(place.get(..end).unwrap_or_default())
    };
    places.into_iter().take(ASKED_MAX).map(cut).collect()
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Origin({} by {}, {})", self.rpc, self.principal.identity, self.request)
    }
}

/// The chain of what belongs to no namespace.
pub const SERVER_CHAIN: &str = "*";

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was allowed, and done.
    Allowed,
    /// It was refused for want of a credential, a permission or a namespace.
    Denied,
    /// It was allowed and then not done: the request or the state was wrong,
    /// or something is broken.
    Failed,
}

impl Outcome {
    /// As it is shown and kept.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// One entry of the audit before it has its place in a chain. Its JSON is what
/// is hashed, kept and exported, byte for byte.
#[derive(Clone, Debug, Serialize)]
pub struct Record<'a> {
    /// When, RFC 3339 in UTC with microseconds.
    #[serde(serialize_with = "rfc3339")]
    pub at: Timestamp,
    /// The full name of the RPC; `server` where the server itself acted.
    pub rpc: &'a str,
    /// What became of it.
    pub outcome: Outcome,
    /// The stable reason of a refusal or failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// The call's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Shown<RequestId>>,
    /// Who; none is the server itself, or somebody unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor<'a>>,
    /// The permission that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission: Option<&'a str>,
    /// That the caller had it for a while alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub elevated: bool,
    /// Where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<&'a str>,
    /// The places that it asked for, where it was refused for them: at most 8,
    /// of each 256 bytes.
    #[serde(serialize_with = "texts", skip_serializing_if = "<[_]>::is_empty")]
    pub asked: &'a [Arc<str>],
    /// What it was about: an id or a name, never a payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<&'a str>,
    /// The client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
    /// What else belongs to it, never a payload or a secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail<'a>>,
}

/// What else is said of what was done: changes by their names, and for the
/// rest JSON that its maker has put together. Nothing of a payload has a place
/// here, and no text that an operator wrote.
#[derive(Clone, Copy, Debug)]
pub enum Detail<'a> {
    /// `{"changes":[{"step":0,"state":"complete","cause":"completed"}]}`: what
    /// became of a task and its steps.
    Changes(&'a [Change]),
    /// `{"change":"set"}`.
    Change(&'a str),
    /// What was answered about credentials of others.
    Judged(&'a Judgement),
    /// A JSON object.
    Object(&'a RawValue),
}

impl Serialize for Detail<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, mut map) = match self {
            Self::Object(object) => return object.serialize(serializer),
            Self::Judged(judgement) => return judgement.serialize(serializer),
            Self::Change(_) => ("change", serializer.serialize_map(Some(1))?),
            Self::Changes(_) => ("changes", serializer.serialize_map(Some(1))?),
        };
        match self {
            Self::Changes(changes) => map.serialize_entry(name, &Changes(changes))?,
            Self::Change(change) => map.serialize_entry(name, change)?,
            Self::Object(object) => map.serialize_entry(name, object)?,
            Self::Judged(judgement) => map.serialize_entry(name, judgement)?,
        }
        map.end()
    }
}

struct Changes<'a>(&'a [Change]);

impl Serialize for Changes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for change in self.0 {
            list.serialize_element(&OneChange(change))?;
        }
        list.end()
    }
}

struct OneChange<'a>(&'a Change);

impl Serialize for OneChange<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.0 {
            Change::Task(state) => map.serialize_entry("task", state.as_str())?,
            Change::Step { no, state, attempts: _, cause } => {
                map.serialize_entry("step", &no.0)?;
                map.serialize_entry("state", state.as_str())?;
                map.serialize_entry("cause", cause.as_str())?;
            }
        }
        map.end()
    }
}

/// Who acted, by which credential.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Actor<'a> {
    /// Where the credential comes from.
    pub source: &'static str,
    /// The issuer of a JWT.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub issuer: &'a str,
    /// The subject.
    pub subject: &'a str,
    /// How the credential was presented.
    pub method: &'static str,
    /// Its public id.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub credential: &'a str,
    /// Its keyed fingerprint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<&'a str>,
}

impl<'a> From<&'a Origin> for Actor<'a> {
    fn from(origin: &'a Origin) -> Self {
        let Principal { identity, method, credential_id, .. } = &*origin.principal;
        let Identity { source, issuer, subject } = identity;
        Self {
            source: source.as_str(),
            issuer,
            subject,
            method: method.as_str(),
            credential: credential_id,
            fingerprint: origin.fingerprint.as_deref(),
        }
    }
}

impl<'a> Record<'a> {
    /// What the server itself did.
    #[must_use]
    pub fn of_server(at: Timestamp) -> Self {
        Self {
            at,
            rpc: "server",
            outcome: Outcome::Allowed,
            reason: None,
            request_id: None,
            actor: None,
            permission: None,
            elevated: false,
            namespace: None,
            asked: &[],
            object: None,
            peer: None,
            detail: None,
        }
    }

    /// What a call did.
    #[must_use]
    pub fn of(origin: &'a Origin, at: Timestamp) -> Self {
        Self {
            rpc: &origin.rpc,
            request_id: Some(Shown(origin.request)),
            actor: Some(origin.into()),
            permission: origin.permission.map(Permission::name),
            elevated: origin.permission.is_some() && origin.is_elevated(),
            namespace: origin.place(),
            peer: origin.peer,
            detail: origin.judged().map(Detail::Judged),
            ..Self::of_server(at)
        }
    }

    /// What a call was refused for.
    #[must_use]
    pub fn of_refused(origin: &'a Origin, at: Timestamp) -> Self {
        Self {
            outcome: Outcome::Denied,
            permission: origin.wanted().map(Permission::name),
            asked: origin.asked(),
            ..Self::of(origin, at)
        }
    }

    /// Its JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut json = Vec::with_capacity(RECORD_BYTES);
        // Strings and numbers alone: nothing in it can fail.
        let _ = serde_json::to_writer(&mut json, self);
        String::from_utf8(json).unwrap_or_default()
    }
}

/// What most records take.
const RECORD_BYTES: usize = 640;

/// A value by its text.
#[derive(Clone, Copy, Debug)]
pub struct Shown<T>(pub T);

impl<T: fmt::Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

fn texts<S: Serializer>(texts: &[Arc<str>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(texts.iter().map(|text| &**text))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn rfc3339<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    match jiff::Timestamp::from_microsecond(at.micros()) {
        Ok(at) => serializer.collect_str(&format_args!("{at:.6}")),
        Err(_) => serializer.collect_str(&at.micros()),
    }
}

/// A time as the audit writes it: RFC 3339 in UTC with microseconds.
#[must_use]
pub fn rfc3339_text(at: Timestamp) -> String {
    jiff::Timestamp::from_microsecond(at.micros())
        .map_or_else(|_| at.micros().to_string(), |at| format!("{at:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Scope;

    fn origin() -> Origin {
        let principal = Arc::new(Principal::auth_off());
        Origin::new(
            principal,
            "bailiwick.v1.TaskService/GetTask".into(),
            RequestId::from_random([1; 16]),
        )
    }

    #[test]
    fn se_44_a_record_says_who_did_what_where_and_when() {
        let origin = origin();
        origin.allowed_in("shop");
        let record = Record {
            object: Some("a\"b"),
            ..Record::of(&origin, Timestamp::from_micros(1_000_001))
        };
        assert_eq!(
            record.to_json(),
            "{\"at\":\"1970-01-01T00:00:01.000001Z\",\"rpc\":\"bailiwick.v1.TaskService/GetTask\",\
             \"outcome\":\"allowed\",\"request_id\":\"01010101-0101-4101-8101-010101010101\",\
             \"actor\":{\"source\":\"disabled\",\"subject\":\"anonymous\",\"method\":\"none\"},\
             \"namespace\":\"shop\",\"object\":\"a\\\"b\"}"
        );
    }

    #[test]
    fn se_44_a_refusal_says_some_of_what_was_asked_for() {
        let origin = origin();
        let long = "é".repeat(200);
        origin.asked_for(["till", &long].into_iter().chain(["x"; 20]));
        let said = Record::of_refused(&origin, Timestamp::default()).to_json();
        let cut = "é".repeat(128);
        let wanted = format!("\"asked\":[\"till\",\"{cut}\",\"x\",\"x\",\"x\",\"x\",\"x\",\"x\"]");
        assert!(said.contains(&wanted), "{said}");
        assert!(!Record::of(&origin, Timestamp::default()).to_json().contains("asked"));
    }

    #[test]
    fn se_44_what_is_refused_lies_in_the_callers_own_chain() {
        let mut one = origin();
        assert_eq!(&*one.own_chain(), SERVER_CHAIN);
        let mut principal = Principal::auth_off();
        for grant in &mut principal.grants {
            grant.scope = Scope::parse(&["shop."]).unwrap();
        }
        one.principal = Arc::new(principal);
        assert_eq!(&*one.own_chain(), "shop");
        one.judges(Judgement::default());
        assert_eq!(&*one.own_chain(), SERVER_CHAIN, "whoever it was asked about");
    }
}
