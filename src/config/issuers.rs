//! Who issues JWTs, and what their tokens are worth: `[auth] jwt_…`,
//! `[[auth.issuers]]` and `[[auth.claim_rules]]`.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{Algorithm, Error, Roles, given, number, raw};
use crate::domain::{PermissionSet, Scope};

/// The largest file with a public key.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;
/// The largest file with certificates of authorities.
const CA_FILE_BYTES_MAX: u64 = 1 << 20;
/// Claims with a meaning of their own.
const RESERVED: &[&str] =
    &["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "namespaces", "worker_namespaces"];
/// What the file of `jwks_ca_path` is.
const CA: &str = "the certificates of authorities (jwks_ca_path)";

/// An issuer of JWTs: how its tokens are verified and what they are worth.
#[derive(Clone, Debug)]
pub struct Jwt {
    /// Where its keys come from.
    pub keys: Keys,
    /// What `iss` must be.
    pub issuer: Arc<str>,
    /// What `aud` must be or contain.
    pub audience: String,
    /// What is allowed; none means what the key's kind says.
    pub algorithms: Option<Vec<Algorithm>>,
    /// How far the issuer's clock may be off.
    pub leeway: Duration,
    /// The claim with the permissions.
    pub permissions_claim: String,
    /// Whether a token with an unknown permission is refused.
    pub strict: bool,
    /// Whether unknown permissions are logged.
    pub log_unknown: bool,
    /// The scope of a token without the claim `namespaces`.
    pub default_scope: Scope,
    /// What its tokens may at most.
    pub permissions_ceiling: PermissionSet,
    /// Where its tokens may at most.
    pub namespaces_ceiling: Scope,
    /// What the names of roles mean.
    pub roles: Roles,
    /// What its tokens hold by their claims.
    pub rules: Vec<ClaimRule>,
}

impl Jwt {
    /// An issuer with every setting as it is by default.
    #[must_use]
    pub fn new(keys: Keys, issuer: &str, audience: &str) -> Self {
        Self {
            keys,
            issuer: issuer.into(),
            audience: audience.to_owned(),
            algorithms: None,
            leeway: Duration::ZERO,
            permissions_claim: "permissions".to_owned(),
            strict: true,
            log_unknown: true,
            default_scope: Scope::Everything,
            permissions_ceiling: PermissionSet::star(),
            namespaces_ceiling: Scope::Everything,
            roles: Roles::default(),
            rules: Vec::new(),
        }
    }
}

/// Where an issuer's keys come from.
#[derive(Clone, Debug)]
pub enum Keys {
    /// One public key.
    Pem {
        /// The PEM.
        text: String,
        /// Where it was found, for messages.
        origin: String,
    },
    /// A set that is fetched, and again and again.
    Jwks(Jwks),
}

/// A set of keys that is fetched.
#[derive(Clone, Debug)]
pub struct Jwks {
    /// Where it is; the issuer's own discovery document says so when none.
    pub url: Option<String>,
    /// How often it is fetched.
    pub refresh_interval: Duration,
    /// How long keys that cannot be refreshed still count.
    pub max_stale: Duration,
    /// Whether plain HTTP will do.
    pub allow_http: bool,
    /// Who alone vouches for the server; the system's authorities when none.
    pub ca: Option<Authorities>,
}

/// Certificates of authorities.
#[derive(Clone, Debug)]
pub struct Authorities {
    /// The PEM.
    pub pem: String,
    /// Where it was found, for messages.
    pub origin: String,
}

/// What a token holds because of what its claims say.
#[derive(Clone, Debug)]
pub struct ClaimRule {
    /// Claims and what they must be like.
    pub claims: Vec<(String, Pattern)>,
    /// What it may then.
    pub permissions: PermissionSet,
    /// Where; the issuer's scope when none.
    pub namespaces: Option<Vec<Place>>,
}

/// A text in which `*` stands for any letters but `/`.
#[derive(Clone, Debug)]
pub struct Pattern(Vec<String>);

impl Pattern {
    fn new(text: &str) -> Self {
        Self(text.split('*').map(str::to_owned).collect())
    }

    /// Whether a text is like it.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = self.0.as_slice() else {
            return self.0.first().is_some_and(|only| only == text);
        };
        let Some(mut rest) = text.strip_prefix(first.as_str()) else { return false };
        // The earliest place for each part leaves the most to the others; but
        // a `*` never crosses a slash.
        for part in middle {
            let Some(at) = rest.find(part.as_str()) else { return false };
            let (skipped, found) = rest.split_at(at);
            if skipped.contains('/') {
                return false;
            }
            rest = found.get(part.len()..).unwrap_or_default();
        }
        rest.strip_suffix(last.as_str()).is_some_and(|skipped| !skipped.contains('/'))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("*"))
    }
}

/// A scope's prefix of which some segments are claims.
#[derive(Clone, Debug)]
pub struct Place(Vec<Segment>);

#[derive(Clone, Debug)]
enum Segment {
    Literal(String),
    Claim(String),
}

impl Place {
    /// A claim is always a whole segment: beside other letters, two tokens
    /// could come to the same name.
    fn new(text: &str) -> Option<Self> {
        let mut segments = Vec::new();
        let mut rest = text;
        loop {
            let (segment, more) = if let Some(inner) = rest.strip_prefix('{') {
                let (claim, more) = inner.split_once('}').filter(|(claim, _)| !claim.is_empty())?;
                (Segment::Claim(claim.to_owned()), more)
            } else {
                let (literal, more) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
                (Segment::Literal(literal.to_owned()), more)
            };
            segments.push(segment);
            match more.strip_prefix('.') {
                Some(more) => rest = more,
                None if more.is_empty() => break,
                None => return None,
            }
        }
        let place = Self(segments);
        place.fill(|_| Some("x")).map(|_| place)
    }

    /// The prefix for a token; none when a claim is no segment.
    pub fn fill<'c>(&self, claim: impl Fn(&str) -> Option<&'c str>) -> Option<Scope> {
        let mut names = Vec::with_capacity(self.0.len());
        for segment in &self.0 {
            names.push(match segment {
                Segment::Literal(text) => text.as_str(),
                Segment::Claim(name) => claim(name).filter(|value| is_segment(value))?,
            });
        }
        Scope::parse(&[names.join(".")]).ok()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segment = |segment: &Segment| match segment {
            Segment::Literal(text) => text.clone(),
            Segment::Claim(name) => format!("{{{name}}}"),
        };
        f.write_str(&self.0.iter().map(segment).collect::<Vec<_>>().join("."))
    }
}

fn is_segment(text: &str) -> bool {
    !text.contains('.') && crate::domain::Namespace::parse(text).is_ok()
}

/// Every issuer; none when auth is off or none is configured.
pub(super) fn issuers(
    raw: &raw::Auth,
    base: &Path,
    roles: &Roles,
    foreign: &BTreeSet<Arc<str>>,
    warnings: &mut Vec<String>,
) -> Result<Vec<Jwt>, Error> {
    let main = main_issuer(raw, base, roles, warnings)?;
    let mut all: Vec<Jwt> = main.into_iter().collect();
    for (entry, number) in raw.issuers.iter().zip(1_usize..) {
        let place = format!("auth.issuers #{number}");
        let issuer = further(raw, entry, base, roles, foreign, &place)?;
        if all.iter().any(|other| other.issuer == issuer.issuer) {
            let problem = format!("the issuer `{}` is there twice", issuer.issuer.escape_debug());
            return Err(Error::invalid(place, problem));
        }
        all.push(issuer);
    }
    for (entry, number) in raw.claim_rules.iter().zip(1_usize..) {
        let place = format!("auth.claim_rules #{number}");
        let wrong = |problem: String| Error::invalid(place.as_str(), problem);
        let rule = claim_rule(entry, roles, foreign).map_err(wrong)?;
        if !raw.enabled {
            continue;
        }
        let issuer = all.iter_mut().find(|issuer| *issuer.issuer == *entry.issuer);
        let issuer = issuer
            .ok_or_else(|| wrong(format!("no issuer is `{}`", entry.issuer.escape_debug())))?;
        issuer.rules.push(rule);
    }
    if !raw.enabled {
        all.clear();
    }
    Ok(all)
}

/// The issuer of `[auth] jwt_…`.
fn main_issuer(
    raw: &raw::Auth,
    base: &Path,
    roles: &Roles,
    warnings: &mut Vec<String>,
) -> Result<Option<Jwt>, Error> {
    const METHOD: &str = "auth.jwt_verification_method";
    let algorithms =
        algorithms("auth.jwt_allowed_algorithms", raw.jwt_allowed_algorithms.as_ref())?;
    let leeway = leeway(raw)?;
    let default_scope = scope("auth.jwt_namespaces", &raw.jwt_namespaces)?;
    let refresh_interval =
        interval("auth.jwks_refresh_interval_seconds", raw.jwks_refresh_interval_seconds)?;
    let max_stale = stale("auth.jwks_max_stale_seconds", raw.jwks_max_stale_seconds)?;
    check_claim("auth.permissions_claim", &raw.permissions_claim)?;
    let url = given(raw.jwks_url.clone());
    let jwks = match raw.jwt_verification_method.as_str() {
        "public_key" => false,
        "jwks" => true,
        other => {
            let problem = format!("`{other}` is neither `public_key` nor `jwks`");
            return Err(Error::invalid(METHOD, problem));
        }
    };
    if url.is_some() && !jwks {
        let problem = format!("counts only with `{METHOD} = \"jwks\"`");
        return Err(Error::invalid("auth.jwks_url", problem));
    }
    if !raw.enabled {
        return Ok(None);
    }
    let required = |key: &str, value: &Option<String>| {
        given(value.clone()).ok_or_else(|| {
            Error::invalid(key, "required with a JWT key: without it tokens made for others count")
        })
    };
    let keys = if jwks {
        if given(raw.jwt_public_key_path.clone()).is_some()
            || given(raw.jwt_public_key.clone()).is_some()
        {
            warnings.push(format!("{METHOD} is `jwks`: the JWT public key does not count"));
        }
        let issuer = required("auth.jwt_issuer", &raw.jwt_issuer)?;
        let allow_http = raw.jwks_url_allow_http;
        check_url("auth.jwks_url", url.as_ref(), "auth.jwt_issuer", &issuer, allow_http)?;
        let ca = authorities(CA, raw.jwks_ca_path.as_ref(), base)?;
        Keys::Jwks(Jwks { url, refresh_interval, max_stale, allow_http, ca })
    } else {
        match public_key(raw, base)? {
            Some((text, origin)) => Keys::Pem { text, origin },
            None => return Ok(None),
        }
    };
    let issuer = required("auth.jwt_issuer", &raw.jwt_issuer)?;
    let audience = required("auth.jwt_audience", &raw.jwt_audience)?;
    Ok(Some(Jwt {
        algorithms,
        leeway,
        permissions_claim: raw.permissions_claim.clone(),
        strict: raw.strict_validation,
        log_unknown: raw.log_unknown_permissions,
        default_scope,
        roles: roles.clone(),
        ..Jwt::new(keys, &issuer, &audience)
    }))
}

/// One of `[[auth.issuers]]`.
fn further(
    raw: &raw::Auth,
    entry: &raw::Issuer,
    base: &Path,
    roles: &Roles,
    foreign: &BTreeSet<Arc<str>>,
    place: &str,
) -> Result<Jwt, Error> {
    let key = |name: &str| format!("{place}: {name}");
    for (name, value) in [("issuer", &entry.issuer), ("audience", &entry.audience)] {
        if value.trim().is_empty() {
            return Err(Error::invalid(key(name), "is empty"));
        }
    }
    let path = given(entry.public_key_path.clone());
    let url = given(entry.jwks_url.clone());
    let sources = [path.is_some(), url.is_some(), entry.discovery];
    if sources.into_iter().filter(|given| *given).count() > 1 {
        let problem = "give one of `public_key_path`, `jwks_url` and `discovery`";
        return Err(Error::invalid(place, problem));
    }
    let refresh_interval = interval(
        &key("jwks_refresh_interval_seconds"),
        entry.jwks_refresh_interval_seconds.unwrap_or(raw.jwks_refresh_interval_seconds),
    )?;
    let max_stale = stale(
        &key("jwks_max_stale_seconds"),
        entry.jwks_max_stale_seconds.unwrap_or(raw.jwks_max_stale_seconds),
    )?;
    let allow_http = entry.jwks_url_allow_http;
    let keys = match path {
        Some(path) => {
            let (text, origin) = key_file(&base.join(path))?;
            Keys::Pem { text, origin }
        }
        None => {
            let names = (key("jwks_url"), key("issuer"));
            check_url(&names.0, url.as_ref(), &names.1, &entry.issuer, allow_http)?;
            let ca = authorities(CA, entry.jwks_ca_path.as_ref(), base)?;
            Keys::Jwks(Jwks { url, refresh_interval, max_stale, allow_http, ca })
        }
    };
    let permissions_claim =
        entry.permissions_claim.clone().unwrap_or_else(|| raw.permissions_claim.clone());
    check_claim(&key("permissions_claim"), &permissions_claim)?;
    let everywhere = || vec!["*".to_owned()];
    let scope_of = |name: &str, names: &Option<Vec<String>>| {
        scope(&key(name), &names.clone().unwrap_or_else(everywhere))
    };
    let ceiling = entry.permissions_ceiling.clone().unwrap_or_else(everywhere);
    Ok(Jwt {
        algorithms: algorithms(&key("algorithms"), entry.algorithms.as_ref())?,
        leeway: leeway(raw)?,
        permissions_claim,
        strict: entry.strict.unwrap_or(raw.strict_validation),
        log_unknown: raw.log_unknown_permissions,
        default_scope: scope_of("namespaces", &entry.namespaces)?,
        permissions_ceiling: roles
            .set(&ceiling, foreign)
            .map_err(|problem| Error::invalid(key("permissions_ceiling"), problem))?,
        namespaces_ceiling: scope_of("namespaces_ceiling", &entry.namespaces_ceiling)?,
        roles: roles.clone(),
        ..Jwt::new(keys, &entry.issuer, &entry.audience)
    })
}

fn claim_rule(
    entry: &raw::ClaimRule,
    roles: &Roles,
    foreign: &BTreeSet<Arc<str>>,
) -> Result<ClaimRule, String> {
    if entry.claims.is_empty() {
        return Err("`claims` is empty: the rule would hold for every token".to_owned());
    }
    let claims =
        entry.claims.iter().map(|(name, text)| (name.clone(), Pattern::new(text))).collect();
    let place = |text: &String| {
        Place::new(text).ok_or_else(|| {
            format!(
                "`{}` is not a scope whose segments are names or `{{claim}}`",
                text.escape_debug()
            )
        })
    };
    let namespaces = entry.namespaces.as_ref().map(|names| names.iter().map(place).collect());
    Ok(ClaimRule {
        claims,
        permissions: roles.set(&entry.permissions, foreign)?,
        namespaces: namespaces.transpose()?,
    })
}

fn leeway(raw: &raw::Auth) -> Result<Duration, Error> {
    number("auth.jwt_leeway_seconds", raw.jwt_leeway_seconds, 0, 5).map(Duration::from_secs)
}

fn interval(key: &str, seconds: u64) -> Result<Duration, Error> {
    number(key, seconds, 1, 1 << 32).map(Duration::from_secs)
}

fn stale(key: &str, seconds: u64) -> Result<Duration, Error> {
    number(key, seconds, 0, 1 << 32).map(Duration::from_secs)
}

fn scope(key: &str, names: &[String]) -> Result<Scope, Error> {
    Scope::parse(names).map_err(|error| Error::invalid(key, error.to_string()))
}

fn check_claim(key: &str, name: &str) -> Result<(), Error> {
    if name.trim().is_empty() || RESERVED.contains(&name) {
        return Err(Error::invalid(key, "not the name of a claim of its own"));
    }
    Ok(())
}

/// SE-64: keys that came by plain HTTP are whoever's on the way.
fn check_url(
    url_key: &str,
    url: Option<&String>,
    issuer_key: &str,
    issuer: &str,
    allow_http: bool,
) -> Result<(), Error> {
    let (key, text) = url.map_or((issuer_key, issuer), |url| (url_key, url.as_str()));
    let uri: Option<http::Uri> = text.parse().ok();
    let authority = uri.as_ref().and_then(http::Uri::authority);
    let clean = authority.is_some_and(|host| !host.as_str().contains('@'));
    match uri.as_ref().and_then(http::Uri::scheme_str) {
        Some("https") if clean => Ok(()),
        Some("http") if clean && allow_http => Ok(()),
        Some("http") if clean => Err(Error::invalid(
            key,
            "plain http is refused, as anybody on the way could put in keys of their own; use \
             https, or set `jwks_url_allow_http = true`",
        )),
        Some(_) | None if url.is_some() => Err(Error::invalid(key, "not an https URL")),
        Some(_) | None => Err(Error::invalid(
            key,
            "without `jwks_url` the issuer must be an https URL, where its discovery document is",
        )),
    }
}

fn algorithms(key: &str, names: Option<&Vec<String>>) -> Result<Option<Vec<Algorithm>>, Error> {
    let Some(names) = names else { return Ok(None) };
    let known = |name: &String| {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name).ok_or_else(|| {
            Error::invalid(key, format!("`{name}` is none of RS256, ES256 and EdDSA"))
        })
    };
    if names.is_empty() {
        return Err(Error::invalid(key, "an empty list would refuse every token; leave it out"));
    }
    names.iter().map(known).collect::<Result<_, _>>().map(Some)
}

/// The PEM and where it comes from; the path wins (TK-35).
fn public_key(raw: &raw::Auth, base: &Path) -> Result<Option<(String, String)>, Error> {
    let Some(path) = given(raw.jwt_public_key_path.clone()) else {
        let inline = given(raw.jwt_public_key.clone());
        return Ok(inline.map(|pem| (pem, "auth.jwt_public_key".to_owned())));
    };
    key_file(&base.join(path)).map(Some)
}

fn key_file(path: &PathBuf) -> Result<(String, String), Error> {
    let what = "the JWT public key (auth.jwt_public_key_path)";
    Ok((pem_file(what, path, KEY_FILE_BYTES_MAX)?, path.display().to_string()))
}

/// The certificates of who may vouch for servers (SE-64).
pub(super) fn authorities(
    what: &'static str,
    path: Option<&String>,
    base: &Path,
) -> Result<Option<Authorities>, Error> {
    let Some(path) = given(path.cloned()) else { return Ok(None) };
    let path = base.join(path);
    let pem = pem_file(what, &path, CA_FILE_BYTES_MAX)?;
    Ok(Some(Authorities { pem, origin: path.display().to_string() }))
}

fn pem_file(what: &'static str, path: &PathBuf, bytes_max: u64) -> Result<String, Error> {
    let failed = |source| Error::Read { what, path: path.clone(), source };
    if fs::metadata(path).map_err(failed)?.len() > bytes_max {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    fs::read_to_string(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_letters_but_no_slash() {
        for (pattern, yes, no) in [
            ("acme/*", "acme/web", "acme/web/x"),
            ("acme/*", "acme/", "acmex/web"),
            ("refs/heads/main", "refs/heads/main", "refs/heads/main2"),
            ("refs/*/v*", "refs/tags/v1", "refs/heads/feature/v1"),
            ("*-ci", "web-ci", "a/web-ci"),
            ("a*b*c", "aXbYc", "aXcYb"),
            ("ab*b", "abb", "ab"),
            ("*", "anything", "a/b"),
        ] {
            assert!(Pattern::new(pattern).matches(yes), "{pattern} {yes}");
            assert!(!Pattern::new(pattern).matches(no), "{pattern} {no}");
        }
        assert!(!Pattern::new("").matches("x"));
    }

    #[test]
    fn se_06_a_claim_in_a_place_is_one_whole_segment() {
        let place = Place::new("ci.{repository_owner}").unwrap();
        let fill = |value: &'static str| place.fill(move |_| Some(value));
        assert_eq!(fill("acme"), Scope::parse(&["ci.acme"]).ok());
        for bad in ["", "a.b", "*", "-a", "a b", "../x", ".", "a."] {
            assert_eq!(fill(bad), None, "{bad:?}");
        }
        assert_eq!(place.fill(|_| None), None);
        for bad in ["ci.{a}-{b}", "ci{a}", "{}", "{a", "ci..{a}", "", "ci.{a}x", "*.{a}"] {
            assert!(Place::new(bad).is_none(), "{bad}");
        }
        let nested = Place::new("k8s.{kubernetes.io.namespace}.").unwrap();
        assert_eq!(nested.fill(|_| Some("web")), Scope::parse(&["k8s.web."]).ok());
    }
}
