//! Sets of keys that an issuer publishes. They are fetched by a task of their
//! own; a request only ever looks at what is there.
//!
//! Every key has a token that is cancelled when the key leaves the set: what
//! hangs on it, as the session of a verified token, ends with it, and a
//! verification that raced with the change too (SE-38).

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{Fault, PublicKey, json};
use crate::{
    config::{Algorithm, Jwks, Jwt},
    domain::{Clock, Timestamp},
    egress::{self, Fetcher},
};

/// How many keys a set may have.
const KEYS_MAX: usize = 64;
/// The longest name of a key.
const KID_BYTES_MAX: usize = 256;
/// The longest pause after a failure.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often unknown names of keys may make a set be fetched.
const ASKED_EVERY_SECONDS: i64 = 30;
/// The figure of fetches that failed.
const FETCH_FAILURES: &str = "bailiwick_auth_key_fetch_failures_total";
/// How long a refresh that is due may take before the keys count as stale.
const LATE: Duration = Duration::from_secs(10);

/// A key of a set.
#[derive(Clone, Debug)]
pub(super) struct Key {
    kid: Option<String>,
    material: Vec<u8>,
    pub(super) key: PublicKey,
    /// Cancelled when the key leaves the set.
    pub(super) gone: CancellationToken,
}

impl Key {
    fn is_same(&self, other: &Self) -> bool {
        self.kid == other.kid
            && self.material == other.material
            && self.key.algorithm() == other.key.algorithm()
    }
}

/// The keys of a set that verify signatures; what else is in it is skipped.
pub(super) fn parse(bytes: &[u8], allowed: Option<&[Algorithm]>) -> Result<Vec<Key>, String> {
    let set = json::object(bytes).ok_or("not a JSON object in which every name stands once")?;
    let listed = set.get("keys").and_then(Value::as_array).ok_or("`keys` is not a list")?;
    if listed.len() > KEYS_MAX {
        return Err(format!("more than {KEYS_MAX} keys"));
    }
    let mut keys: Vec<Key> = Vec::new();
    for entry in listed {
        let entry = entry.as_object().ok_or("a key is not an object")?;
        let Some(key) = usable(entry) else { continue };
        if allowed.is_some_and(|allowed| !allowed.contains(&key.key.algorithm())) {
            continue;
        }
        if key.kid.is_some() && keys.iter().any(|other| other.kid == key.kid) {
            return Err("two keys have the same `kid`".to_owned());
        }
        keys.push(key);
    }
    Ok(keys)
}

/// The key when it is public, for signatures, and of a kind that is taken.
fn usable(entry: &Map<String, Value>) -> Option<Key> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    // A private key that is published is everybody's.
    if ["d", "p", "q", "dp", "dq", "qi", "oth", "k"].iter().any(|name| entry.contains_key(*name)) {
        return None;
    }
    if entry.contains_key("use") && text("use") != Some("sig") {
        return None;
    }
    if let Some(operations) = entry.get("key_ops")
        && !operations.as_array()?.iter().any(|operation| operation == "verify")
    {
        return None;
    }
    let kid = match entry.get("kid") {
        None => None,
        Some(kid) => Some(kid.as_str().filter(|kid| kid.len() <= KID_BYTES_MAX)?.to_owned()),
    };
    let part = |name: &str| text(name).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let (key, material) = match (text("kty")?, text("crv")) {
        ("RSA", _) => {
            let (n, e) = (part("n")?, part("e")?);
            (PublicKey::from_rsa(&n, &e)?, [n, e].concat())
        }
        ("EC", Some("P-256")) => {
            let (x, y) = (part("x")?, part("y")?);
            (PublicKey::from_p256(&x, &y)?, [x, y].concat())
        }
        ("OKP", Some("Ed25519")) => {
            let x = part("x")?;
            (PublicKey::from_ed25519(&x)?, x)
        }
        _ => return None,
    };
    if entry.contains_key("alg") && text("alg") != Some(key.algorithm().name()) {
        return None;
    }
    Some(Key { kid, material, key, gone: CancellationToken::new() })
}

#[derive(Debug, Default)]
struct Held {
    keys: Vec<Key>,
    /// From when on they count no more; none while there never were any.
    until: Option<Timestamp>,
    /// The same once a refresh has failed: the interval and the stale time
    /// after they came.
    failed_until: Option<Timestamp>,
}

/// An issuer's keys, kept fresh by [`Ring::run`].
#[derive(Debug)]
pub struct Ring {
    issuer: Arc<str>,
    settings: Jwks,
    algorithms: Option<Vec<Algorithm>>,
    fetcher: Fetcher,
    /// The parent of every key's token.
    revoked: CancellationToken,
    held: RwLock<Arc<Held>>,
    ready: watch::Sender<bool>,
    /// Whether the last fetch failed.
    failing: AtomicBool,
    wanted: Notify,
    asked_at: AtomicI64,
}

impl Ring {
    pub(super) fn new(
        jwt: &Jwt,
        settings: &Jwks,
        revoked: &CancellationToken,
    ) -> Result<Self, egress::Error> {
        Ok(Self {
            issuer: Arc::clone(&jwt.issuer),
            settings: settings.clone(),
            algorithms: jwt.algorithms.clone(),
            fetcher: Fetcher::new(settings.allow_http, settings.ca.as_ref())?,
            revoked: revoked.clone(),
            held: RwLock::new(Arc::new(Held::default())),
            ready: watch::Sender::new(false),
            failing: AtomicBool::new(false),
            wanted: Notify::new(),
            asked_at: AtomicI64::new(i64::MIN),
        })
    }

    /// Waits until there are keys.
    pub async fn ready(&self) {
        // The sender lives as long as this.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Whether there are keys that count.
    #[must_use]
    pub fn has_keys(&self, now: Timestamp) -> bool {
        let held = self.held();
        !held.keys.is_empty() && held.until.is_some_and(|until| until > now)
    }

    /// Whether the last fetch failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// The key that a token's header names.
    pub(super) fn key(&self, header: &Map<String, Value>, now: Timestamp) -> Result<Key, Fault> {
        let held = self.held();
        if held.until.is_none_or(|until| until <= now) {
            return Err(Fault::KeysStale);
        }
        let kid = match header.get("kid") {
            None => None,
            Some(kid) => Some(kid.as_str().ok_or(Fault::Malformed("`kid` is not a string"))?),
        };
        let Some(kid) = kid else {
            let algorithm = header.get("alg").and_then(Value::as_str);
            let mut fitting =
                held.keys.iter().filter(|key| Some(key.key.algorithm().name()) == algorithm);
            return match (fitting.next(), fitting.next()) {
                (Some(only), None) => Ok(only.clone()),
                (None, _) | (Some(_), Some(_)) => Err(Fault::UnknownKid),
            };
        };
        let found = held.keys.iter().find(|key| key.kid.as_deref() == Some(kid));
        found.cloned().ok_or_else(|| {
            self.ask(now);
            Fault::UnknownKid
        })
    }

    /// Wishes for a refresh, at most every half minute whoever asks.
    fn ask(&self, now: Timestamp) {
        let last = self.asked_at.load(Ordering::Relaxed);
        let due = now.seconds().saturating_sub(last) >= ASKED_EVERY_SECONDS;
        let order = Ordering::Relaxed;
        if due && self.asked_at.compare_exchange(last, now.seconds(), order, order).is_ok() {
            self.wanted.notify_one();
        }
    }

    /// Keeps the keys fresh until the shutdown.
    pub async fn run(self: Arc<Self>, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
        let failures = metrics::counter!(FETCH_FAILURES);
        loop {
            let fetched = tokio::select! {
                fetched = tokio::time::timeout(egress::TIME_MAX, self.fetch()) => fetched,
                () = shutdown.cancelled() => return,
            };
            let fetched = fetched.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            let failed = fetched.is_err();
            let failing = self.failing.swap(failed, Ordering::Relaxed);
            let pause = match fetched {
                Ok(keys) => {
                    self.take(keys, clock.now());
                    if failing {
                        tracing::info!(issuer = %self.issuer, "the issuer's keys are there again");
                    }
                    self.settings.refresh_interval
                }
                Err(problem) => {
                    if failing {
                        tracing::debug!(issuer = %self.issuer, %problem, "still no keys");
                    } else {
                        tracing::warn!(
                            issuer = %self.issuer, %problem, "the issuer's keys cannot be fetched"
                        );
                    }
                    failures.increment(1);
                    self.fail(clock.now())
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wanted.notified() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let text = |error: egress::Error| error.to_string();
        let url = match &self.settings.url {
            Some(url) => url.clone(),
            None => self.discover().await?,
        };
        parse(&self.fetcher.get(&url).await.map_err(text)?, self.algorithms.as_deref())
    }

    /// Where the issuer's own document says that the keys are.
    async fn discover(&self) -> Result<String, String> {
        let base = self.issuer.trim_end_matches('/');
        let url = format!("{base}/.well-known/openid-configuration");
        let document = self.fetcher.get(&url).await.map_err(|error| error.to_string())?;
        discovered(&document, &self.issuer)
    }

    fn take(&self, mut keys: Vec<Key>, now: Timestamp) {
        let before = self.held();
        for key in &mut keys {
            let known = before.keys.iter().find(|old| old.is_same(key));
            key.gone = known.map_or_else(|| self.revoked.child_token(), |old| old.gone.clone());
        }
        let life = self.settings.refresh_interval + self.settings.max_stale;
        let some = !keys.is_empty();
        self.replace(Held {
            keys,
            until: Some(now.plus(life + LATE)),
            failed_until: Some(now.plus(life)),
        });
        if some {
            self.ready.send_replace(true);
        }
    }

    /// After a failure keys count for the stale time alone, and once it is
    /// over they are gone. Answers when to try again.
    fn fail(&self, now: Timestamp) -> Duration {
        let retry = self.settings.refresh_interval.min(RETRY_MAX).max(Duration::from_secs(1));
        let before = self.held();
        let Some(until) = before.until else { return retry };
        let until = before.failed_until.map_or(until, |sooner| until.min(sooner));
        if until <= now {
            if !before.keys.is_empty() {
                tracing::warn!(issuer = %self.issuer, "the issuer's keys are too old and count no more");
            }
            self.replace(Held { until: Some(until), ..Held::default() });
        } else if Some(until) != before.until {
            self.replace(Held {
                keys: before.keys.clone(),
                until: Some(until),
                failed_until: before.failed_until,
            });
        }
        retry
    }

    fn held(&self) -> Arc<Held> {
        Arc::clone(&self.held.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What hangs on a key that is gone ends after the key cannot be found.
    fn replace(&self, held: Held) {
        let held = Arc::new(held);
        let before = std::mem::replace(
            &mut *self.held.write().unwrap_or_else(PoisonError::into_inner),
            Arc::clone(&held),
        );
        for key in &before.keys {
            if !held.keys.iter().any(|now| now.is_same(key)) {
                key.gone.cancel();
            }
        }
    }
}

/// A document that names another issuer is not this one's, and keys of
/// another host are only taken from whoever configured them (SE-64).
fn discovered(document: &[u8], issuer: &str) -> Result<String, String> {
    let document = json::object(document).ok_or("the discovery document is not a JSON object")?;
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    if text("issuer") != Some(issuer) {
        return Err("the discovery document is of another issuer".to_owned());
    }
    let url = text("jwks_uri").ok_or("the discovery document has no `jwks_uri`")?;
    if !egress::is_same_origin(issuer, url) {
        return Err("the discovery document's `jwks_uri` is on another host than the issuer; if \
                    that is right, configure it as `jwks_url`"
            .to_owned());
    }
    Ok(url.to_owned())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use serde_json::json;

    use super::*;

    const X: &str = "11qYAycOkVx8CqYhKVZ0mMpbxZcvXAtrRN6bLnKmaf0";

    fn ed() -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    }

    fn with(base: Value, more: Value) -> Value {
        let (Value::Object(mut base), Value::Object(more)) = (base, more) else { unreachable!() };
        base.extend(more);
        base.into()
    }

    fn set(keys: &[Value]) -> Result<Vec<Key>, String> {
        parse(json!({"keys": keys}).to_string().as_bytes(), None)
    }

    /// RFC 7517 A.1 and RFC 8037 A.2.
    #[test]
    fn tk_39_each_kind_is_bound_to_its_algorithm() {
        let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
        let rsa = json!({"kty": "RSA", "n": n, "e": "AQAB"});
        let ec = json!({
            "kty": "EC", "crv": "P-256",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        });
        let keys = set(&[rsa.clone(), ec.clone(), ed()]).unwrap();
        let algorithms: Vec<Algorithm> = keys.iter().map(|key| key.key.algorithm()).collect();
        assert_eq!(algorithms, [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa]);

        for skipped in [
            with(rsa.clone(), json!({"alg": "RS512"})),
            with(rsa.clone(), json!({"alg": "ES256"})),
            with(rsa.clone(), json!({"use": "enc"})),
            with(rsa.clone(), json!({"key_ops": ["encrypt"]})),
            with(rsa.clone(), json!({"d": "AQAB"})),
            with(rsa.clone(), json!({"e": "AQ"})),
            with(rsa, json!({"n": &n[..170]})),
            with(ec.clone(), json!({"crv": "P-384"})),
            with(ec, json!({"x": X})),
            with(ed(), json!({"kid": 7})),
            with(ed(), json!({"x": "AAAA"})),
            with(ed(), json!({"alg": "none"})),
            json!({"kty": "oct", "k": "c2VjcmV0"}),
            json!({"kty": "unheard"}),
            json!({}),
        ] {
            assert_eq!(set(std::slice::from_ref(&skipped)).unwrap().len(), 0, "{skipped}");
        }
        let good = with(ed(), json!({"alg": "EdDSA", "use": "sig", "key_ops": ["verify"]}));
        assert_eq!(set(&[good]).unwrap().len(), 1);
        let document = json!({"keys": [ed()]}).to_string();
        assert!(parse(document.as_bytes(), Some(&[Algorithm::Rs256])).unwrap().is_empty());
    }

    #[test]
    fn tk_39_odd_sets_are_refused_as_a_whole() {
        let named = |kid: &str| with(ed(), json!({"kid": kid}));
        assert!(set(&[named("a"), named("b")]).is_ok());
        assert!(set(&[named("a"), named("a")]).unwrap_err().contains("same `kid`"));
        assert!(set(&vec![ed(); 64]).is_ok());
        assert!(set(&vec![ed(); 65]).is_err());
        for text in
            ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[1]}"#, r#"{"keys":[],"keys":[]}"#]
        {
            assert!(parse(text.as_bytes(), None).is_err(), "{text}");
        }
    }

    #[test]
    fn se_64_a_discovery_document_speaks_for_its_issuer_alone() {
        let found = |issuer: &str, url: &str| {
            let document = json!({"issuer": issuer, "jwks_uri": url}).to_string();
            discovered(document.as_bytes(), "https://idp/realm")
        };
        assert_eq!(found("https://idp/realm", "https://idp/keys").unwrap(), "https://idp/keys");
        assert!(found("https://idp/realm/", "https://idp/keys").is_err());
        assert!(found("https://idp/realm", "https://169.254.169.254/keys").is_err());
        assert!(found("https://idp/realm", "http://idp/keys").is_err());
        assert!(discovered(b"{}", "https://idp/realm").is_err());
    }

    /// However many strangers invent however many names.
    #[test]
    fn tk_40_unknown_names_ask_once_in_half_a_minute() {
        let settings = Jwks {
            url: Some("https://idp/keys".to_owned()),
            refresh_interval: Duration::from_hours(1),
            max_stale: Duration::from_hours(1),
            allow_http: false,
            ca: None,
        };
        let jwt = Jwt::new(crate::config::Keys::Jwks(settings.clone()), "https://idp", "a");
        let ring = Ring::new(&jwt, &settings, &CancellationToken::new()).unwrap();
        ring.take(set(&[with(ed(), json!({"kid": "a"}))]).unwrap(), Timestamp::from_seconds(0));
        let mut asked = Vec::new();
        for second in 0..=90 {
            for number in 0..5 {
                let header = json!({"alg": "EdDSA", "kid": format!("stray-{second}-{number}")});
                let now = Timestamp::from_seconds(second);
                let missed = ring.key(header.as_object().unwrap(), now).unwrap_err();
                assert_eq!(missed, Fault::UnknownKid);
                if ring.wanted.notified().now_or_never().is_some() {
                    asked.push(second);
                }
            }
        }
        assert_eq!(asked, [0, 30, 60, 90]);
        // A name that is known, none at all, and what is no name ask for nothing.
        for header in [json!({"alg": "EdDSA", "kid": "a"}), json!({}), json!({"kid": ["b"]})] {
            let _ = ring.key(header.as_object().unwrap(), Timestamp::from_seconds(200));
            assert!(ring.wanted.notified().now_or_never().is_none(), "{header}");
        }
    }

    /// A verification that has the key in hand when the key leaves the set
    /// makes nothing that lasts; the same key in the next set goes on.
    #[test]
    fn se_38_what_hangs_on_a_key_ends_with_it_and_with_nothing_else() {
        let revoked = CancellationToken::new();
        let settings = Jwks {
            url: Some("https://idp/keys".to_owned()),
            refresh_interval: Duration::from_mins(1),
            max_stale: Duration::from_mins(1),
            allow_http: false,
            ca: None,
        };
        let jwt = Jwt::new(crate::config::Keys::Jwks(settings.clone()), "https://idp", "a");
        let ring = Ring::new(&jwt, &settings, &revoked).unwrap();
        let named = |kid: &str| with(ed(), json!({"kid": kid}));
        // The key of RFC 8032, test 2.
        let x = "PUAXw-hDiVqStwqnTRt-vJyYLM8uxJaMwM1V8Sr0Zgw";
        let other = json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "a"});
        let at = Timestamp::from_seconds;
        let header = |kid: &str| with(json!({}), json!({"alg": "EdDSA", "kid": kid}));
        let key = |kid: &str, now| ring.key(header(kid).as_object().unwrap(), at(now));
        assert_eq!(key("a", 0).unwrap_err(), Fault::KeysStale);
        ring.take(set(&[named("a"), named("b")]).unwrap(), at(0));
        let (first, second) = (key("a", 1).unwrap(), key("b", 1).unwrap());

        ring.take(set(&[named("b"), named("a")]).unwrap(), at(2));
        assert!(!first.gone.is_cancelled() && !second.gone.is_cancelled());
        ring.take(set(&[named("b")]).unwrap(), at(3));
        assert!(first.gone.is_cancelled() && !second.gone.is_cancelled());
        assert_eq!(key("a", 3).unwrap_err(), Fault::UnknownKid);

        // One name with another key is another key.
        ring.take(set(&[named("a")]).unwrap(), at(4));
        let before = key("a", 4).unwrap();
        assert!(second.gone.is_cancelled() && !before.gone.is_cancelled());
        ring.take(set(&[other]).unwrap(), at(5));
        assert!(before.gone.is_cancelled() && !key("a", 5).unwrap().gone.is_cancelled());

        // Keys that are too old take theirs along, as all do in the end.
        ring.take(set(&[named("c")]).unwrap(), at(10));
        let last = key("c", 10).unwrap();
        ring.fail(at(70));
        assert!(!last.gone.is_cancelled());
        ring.fail(at(130));
        assert!(last.gone.is_cancelled());
        assert_eq!(key("c", 130).unwrap_err(), Fault::KeysStale);
        ring.take(set(&[named("c")]).unwrap(), at(131));
        let last = key("c", 131).unwrap();
        revoked.cancel();
        assert!(last.gone.is_cancelled());
    }
}
