//! The gate alone, in a process of its own: what one call costs there, with
//! the logs and the figures of a server. The process prints what it measured
//! as JSON; its log goes to standard error.

use std::{
    fs,
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bailiwick::{
    access::{Caller, Gate, MethodRule, Refusal, Table},
    authn::{
        Authenticator, Evidence,
        tokens::{self, Claims, KeyKind},
    },
    config::Settings,
    domain::{
        Clock, RequestId, Timestamp,
        principal::{Identity, Source},
        secret::Secret,
    },
    pb,
    server::{SystemClock, telemetry},
    storage::{CredentialKind, CredentialRecord, Recall},
};
use clap::ValueEnum;
use http::{HeaderMap, HeaderValue, header};
use jsonwebtoken::{Algorithm, DecodingKey};
use prost_reflect::DescriptorPool;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result, Tried as _, wrong},
    figure::float,
    report,
};

/// Tokens of one algorithm, none of which is presented twice to one gate.
const TOKENS: usize = 2_000;
/// Tokens between two looks at the clock.
const SLICE: usize = 50;
/// Each time with an empty cache.
const PASSES: usize = 3;
/// Calls between two looks at the clock.
const CALLS: u32 = 1_000;
/// Looks at each way in.
const LOOKS: usize = 201;
/// Stores that are compared.
const FEW: u64 = 10;
const MANY: u64 = 100_000;
/// So many callers of a large store, in turn.
const CALLERS: u64 = 1_000;
/// More than anybody can use up here.
const PER_SECOND: u32 = 1_000_000;

const ISSUER: &str = "https://login.bench.example";
const AUDIENCE: &str = "bailiwick";
const METHOD: &str = "/bailiwick.v1.TaskService/GetTask";
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Credentials that are known already
    Cached,
    /// Tokens that are presented for the first time
    Jwt,
    /// Both, with many tokens in the store
    Tokens,
}

impl Part {
    /// Its name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Jwt => "jwt",
            Self::Tokens => "tokens",
        }
    }
}

/// One comparison: microseconds a call, look by look, each beside the
/// baseline's at almost the same moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Looks {
    /// What was compared.
    pub(crate) name: String,
    /// What is measured.
    pub(crate) real: Vec<f64>,
    /// What it is measured against.
    pub(crate) base: Vec<f64>,
}

impl Looks {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}

/// Measures, and prints the looks.
pub(crate) async fn run(part: Part, folder: &Path) -> Result {
    let house = House::new(folder)?;
    let looks = match part {
        Part::Cached => cached(&house).await?,
        Part::Jwt => {
            let mut all = Vec::new();
            for key in house.keys()? {
                all.push(uncached(&house, &key).await?);
            }
            all
        }
        Part::Tokens => many_tokens(&house).await?,
    };
    report::line(serde_json::to_string(&looks).map_err(broken)?);
    Ok(())
}

/// What every gate is made of.
struct House {
    folder: PathBuf,
    rule: Arc<MethodRule>,
    clock: Arc<dyn Clock>,
    figures: Box<dyn Fn()>,
}

/// A kind of keys, as the server makes it and as the library reads it.
struct Kind {
    name: &'static str,
    make: KeyKind,
    algorithm: Algorithm,
    read: fn(&[u8]) -> jsonwebtoken::errors::Result<DecodingKey>,
}

const RS256: Kind = Kind {
    name: "RS256",
    make: KeyKind::Rsa(2048),
    algorithm: Algorithm::RS256,
    read: DecodingKey::from_rsa_pem,
};
const ES256: Kind = Kind {
    name: "ES256",
    make: KeyKind::P256,
    algorithm: Algorithm::ES256,
    read: DecodingKey::from_ec_pem,
};
const EDDSA: Kind = Kind {
    name: "EdDSA",
    make: KeyKind::Ed25519,
    algorithm: Algorithm::EdDSA,
    read: DecodingKey::from_ed_pem,
};

/// A pair of keys and tokens that were signed with it.
struct Key {
    name: &'static str,
    algorithm: Algorithm,
    public: DecodingKey,
    config: PathBuf,
    tokens: Vec<String>,
}

impl House {
    fn new(folder: &Path) -> Result<Self> {
        let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).map_err(broken)?;
        let table = Table::from_pool(&pool, &std::collections::BTreeSet::default())
            .map_err(|faults| wrong(format!("{faults:?}")))?;
        let rule = table.get(METHOD).cloned().ok_or_else(|| wrong("no rule"))?;
        // As in a server: figures are kept, and the log has its default level.
        let handle = telemetry::metrics().map_err(broken)?;
        let config = folder.join("default.toml");
        fs::write(&config, "[auth]\nenabled = false\n").tried("write the configuration")?;
        telemetry::init(&settings(&config)?.telemetry).map_err(broken)?;
        Ok(Self {
            folder: folder.to_owned(),
            rule,
            clock: Arc::new(SystemClock),
            figures: Box::new(move || handle.run_upkeep()),
        })
    }

    fn keys(&self) -> Result<Vec<Key>> {
        [RS256, ES256, EDDSA].iter().map(|kind| self.key(kind)).collect()
    }

    fn key(&self, kind: &Kind) -> Result<Key> {
        let Kind { name, make, algorithm, read } = *kind;
        let pair = tokens::generate(make).map_err(broken)?;
        fs::write(self.folder.join(format!("{name}.pem")), &pair.public).tried("write a key")?;
        let config = self.folder.join(format!("{name}.toml"));
        let text = format!(
            "[auth]\nenabled = true\njwt_public_key_path = \"{name}.pem\"\n\
             jwt_issuer = \"{ISSUER}\"\njwt_audience = \"{AUDIENCE}\"\n\n\
             [[auth.api_keys]]\nkey = \"{API_KEY}\"\npermissions = [\"tasks:*\"]\n\
             namespaces = [\"bench\"]\ndescription = \"bench\"\n"
        );
        fs::write(&config, text).tried("write the configuration")?;
        let public = read(pair.public.as_bytes()).map_err(broken)?;
        let tokens: Result<Vec<_>> =
            (0..TOKENS).map(|number| signed(&pair.private, number)).collect();
        Ok(Key { name, algorithm, public, config, tokens: tokens? })
    }

    /// A gate that has seen no token yet, with so many tokens in its store.
    fn gate(&self, key: &Key, tokens: u64, limits: bool, recalled: bool) -> Result<Gate> {
        let mut settings = settings(&key.config)?;
        if limits {
            let path = self.folder.join("limits.toml");
            let text = format!(
                "[auth]\nenabled = false\n\n[limits]\nrequests_per_second = {PER_SECOND}\n"
            );
            fs::write(&path, text).tried("write the configuration")?;
            settings.limits = self::settings(&path)?.limits;
        }
        let authenticator = Authenticator::new(&settings.auth).map_err(broken)?;
        authenticator.issued().load((0..tokens).map(Self::record).collect(), &[]);
        if recalled {
            authenticator.recalls().insert(Recall {
                issuer: ISSUER.to_owned(),
                subject: Some("somebody else".to_owned()),
                until: self.clock.now(),
            });
        }
        Ok(Gate::new(authenticator, None, &settings.limits.rates, Arc::clone(&self.clock), None))
    }

    fn record(number: u64) -> CredentialRecord {
        let secret = secret(number);
        let id = secret.id();
        CredentialRecord {
            id: Arc::clone(&id),
            digest: secret.digest(),
            kind: CredentialKind::Token,
            name: Some(format!("bench {number}")),
            scopes: vec!["tasks:read".to_owned(), "tasks:create".to_owned()],
            namespaces: vec!["bench".to_owned()],
            networks: Vec::new(),
            created_by: Identity {
                source: Source::Config,
                issuer: "".into(),
                subject: "bench".into(),
            },
            created_with: "bench".into(),
            created_at: Timestamp::from_seconds(1_700_000_000),
            expires_at: None,
            max_uses: None,
            uses: 0,
            parent: None,
            family: id,
            descent: Vec::new(),
            revoked_at: None,
            last_used_at: None,
        }
    }

    async fn enter(&self, gate: &Gate, headers: &HeaderMap) -> Result<Option<Caller>, Refusal> {
        let evidence = Evidence { headers, certificate: None, peer: Some(PEER) };
        gate.enter(&self.rule, evidence, RequestId::from_random([7; 16])).await
    }

    /// Microseconds of one call, with these in turn.
    async fn look(&self, gate: &Gate, turns: &[HeaderMap]) -> Result<f64> {
        let begun = Instant::now();
        for headers in turns.iter().cycle().zip(0..CALLS).map(|(headers, _)| headers) {
            black_box(self.enter(gate, black_box(headers)).await.map_err(turned_away)?);
        }
        Ok(each(begun.elapsed(), f64::from(CALLS)))
    }
}

const API_KEY: &str = "bench-5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8";

fn settings(path: &Path) -> Result<Settings> {
    Settings::load(Some(path), std::iter::empty()).map_err(broken)
}

/// The store's token of a number; the gate does not care what it is made of.
fn secret(number: u64) -> Secret {
    let mut bytes = [0xb5; 32];
    for (at, byte) in bytes.iter_mut().zip(number.to_le_bytes()) {
        *at = byte;
    }
    Secret::new(number, &bytes)
}

fn signed(private: &str, number: usize) -> Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let claims = Claims {
        sub: format!("service-{number:05}@bench.example"),
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        iat: now,
        exp: now + 3_600,
        permissions: ["tasks:create", "tasks:read", "tasks:list", "templates:read"]
            .map(str::to_owned)
            .to_vec(),
        namespaces: Some(vec!["bench".to_owned(), "shop".to_owned()]),
        worker_namespaces: Vec::new(),
    };
    tokens::sign(private, &claims).map_err(broken)
}

fn bearer(token: &str) -> Result<HeaderMap> {
    with(header::AUTHORIZATION.as_str(), &format!("Bearer {token}"))
}

/// The headers of a gRPC call with a credential among them.
fn with(name: &'static str, value: &str) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert("te", HeaderValue::from_static("trailers"));
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("user-agent", HeaderValue::from_static("bailiwick-bench tonic/0.14"));
    headers.insert(name, HeaderValue::from_str(value).map_err(broken)?);
    Ok(headers)
}

/// Asks nothing, and answers as the gate does.
#[inline(never)]
#[expect(clippy::unused_async, reason = "the shape of the gate's call")]
async fn empty(headers: &HeaderMap) -> Result<Option<Caller>, Refusal> {
    black_box(headers);
    Ok(None)
}

/// `gate_cached_us`: every kind of credential, without limits and with them.
async fn cached(house: &House) -> Result<Vec<Looks>> {
    // The longest of the tokens.
    let key = house.key(&RS256)?;
    let token = key.tokens.first().ok_or_else(|| wrong("no token"))?;
    let (jwt, minted) = (bearer(token)?, bearer(secret(3).expose())?);
    let api_key = with("x-api-key", API_KEY)?;
    let mut ways = Vec::new();
    for (limits, shown) in [(false, "limits off"), (true, "limits on")] {
        let gate = house.gate(&key, FEW, limits, false)?;
        let recalling = house.gate(&key, FEW, limits, true)?;
        for (name, gate, headers) in [
            ("cached JWT", &gate, &jwt),
            ("cached JWT where others were recalled", &recalling, &jwt),
            ("configured API key", &gate, &api_key),
            ("minted token", &gate, &minted),
        ] {
            let looks = Looks::new(format!("{name}, {shown}"));
            ways.push((gate.clone(), [headers.clone()], looks));
        }
    }
    for (gate, turns, _) in &ways {
        house.look(gate, turns).await?;
    }
    for _ in 0..LOOKS {
        for (gate, turns, looks) in &mut ways {
            looks.real.push(house.look(gate, turns).await?);
            let [headers] = turns;
            let begun = Instant::now();
            for _ in 0..CALLS {
                black_box(empty(black_box(headers)).await.map_err(turned_away)?);
            }
            looks.base.push(each(begun.elapsed(), f64::from(CALLS)));
        }
        (house.figures)();
    }
    Ok(ways.into_iter().map(|(.., looks)| looks).collect())
}

/// `gate_jwt`: every token once, and the library's own check of the same.
async fn uncached(house: &House, key: &Key) -> Result<Looks> {
    let mut looks = Looks::new(key.name);
    let headers: Vec<_> = key.tokens.iter().map(|token| bearer(token)).collect::<Result<_>>()?;
    for _ in 0..PASSES {
        let gate = house.gate(key, FEW, false, false)?;
        for (number, (headers, tokens)) in
            headers.chunks(SLICE).zip(key.tokens.chunks(SLICE)).enumerate()
        {
            // The second finds the tokens in the processor's caches: in turns.
            if number % 2 == 0 {
                looks.real.push(presented(house, &gate, headers).await?);
                looks.base.push(verified(key, tokens)?);
            } else {
                looks.base.push(verified(key, tokens)?);
                looks.real.push(presented(house, &gate, headers).await?);
            }
        }
        (house.figures)();
    }
    Ok(looks)
}

/// Microseconds for each of these, through the gate.
async fn presented(house: &House, gate: &Gate, headers: &[HeaderMap]) -> Result<f64> {
    let begun = Instant::now();
    for headers in headers {
        black_box(house.enter(gate, headers).await.map_err(turned_away)?);
    }
    Ok(each(begun.elapsed(), count(headers.len())))
}

/// Microseconds for each of these, by the library.
fn verified(key: &Key, tokens: &[String]) -> Result<f64> {
    let begun = Instant::now();
    for token in tokens {
        let (message, signature) =
            token.rsplit_once('.').ok_or_else(|| wrong("a token without a signature"))?;
        let message = message.as_bytes();
        let good = jsonwebtoken::crypto::verify(signature, message, &key.public, key.algorithm);
        if !good.map_err(broken)? {
            return Err(wrong("the library takes no token of ours"));
        }
    }
    Ok(each(begun.elapsed(), count(tokens.len())))
}

/// `gate_100k_tokens`: the same gate with many tokens in its store and with
/// few.
async fn many_tokens(house: &House) -> Result<Vec<Looks>> {
    let key = house.key(&EDDSA)?;
    let headers: Vec<_> = key.tokens.iter().map(|token| bearer(token)).collect::<Result<_>>()?;
    let one = [bearer(secret(3).expose())?];
    let jwt = [headers.first().cloned().ok_or_else(|| wrong("no token"))?];
    let few: Vec<_> =
        (0..FEW).map(|number| bearer(secret(number).expose())).collect::<Result<_>>()?;
    let spread: Vec<_> = (0..CALLERS)
        .map(|number| bearer(secret(number * (MANY / CALLERS)).expose()))
        .collect::<Result<_>>()?;
    let (small, large) =
        (house.gate(&key, FEW, false, false)?, house.gate(&key, MANY, false, false)?);
    let mut all = Vec::new();
    for (name, with_few, with_many) in [
        ("minted token", one.as_slice(), one.as_slice()),
        ("cached JWT", jwt.as_slice(), jwt.as_slice()),
        (SPREAD, few.as_slice(), spread.as_slice()),
    ] {
        let mut looks = Looks::new(name);
        house.look(&small, with_few).await?;
        house.look(&large, with_many).await?;
        for number in 0..LOOKS {
            if number % 2 == 0 {
                looks.base.push(house.look(&small, with_few).await?);
                looks.real.push(house.look(&large, with_many).await?);
            } else {
                looks.real.push(house.look(&large, with_many).await?);
                looks.base.push(house.look(&small, with_few).await?);
            }
        }
        (house.figures)();
        all.push(looks);
    }
    let mut looks = Looks::new("JWT for the first time");
    for _ in 0..PASSES {
        let (small, large) =
            (house.gate(&key, FEW, false, false)?, house.gate(&key, MANY, false, false)?);
        for (number, headers) in headers.chunks(SLICE).enumerate() {
            if number % 2 == 0 {
                looks.base.push(presented(house, &small, headers).await?);
                looks.real.push(presented(house, &large, headers).await?);
            } else {
                looks.real.push(presented(house, &large, headers).await?);
                looks.base.push(presented(house, &small, headers).await?);
            }
        }
        (house.figures)();
    }
    all.push(looks);
    Ok(all)
}

/// A thousand callers in turn against ten: what the processor's caches do,
/// which is not the store's doing. Recorded alone.
pub(crate) const SPREAD: &str = "a thousand minted tokens in turn, against ten";

fn each(time: Duration, calls: f64) -> f64 {
    time.as_secs_f64() * 1e6 / calls
}

fn count(length: usize) -> f64 {
    float(u64::try_from(length).unwrap_or(u64::MAX))
}

#[expect(clippy::needless_pass_by_value, reason = "what `map_err` calls")]
fn turned_away(refusal: Refusal) -> Error {
    wrong(format!("the gate refused: {refusal:?}"))
}

fn broken(error: impl std::fmt::Display) -> Error {
    wrong(error.to_string())
}
