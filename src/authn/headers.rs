//! Which credential a call presents (SE-14). The metadata of gRPC are the
//! same headers.

use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};

use super::{Fault, Rejected, Unauthenticated};
use crate::domain::principal::Method;

/// What a call presents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presented<'a> {
    /// Behind `Authorization: Bearer`.
    Bearer(&'a str),
    /// In the header for API keys.
    ApiKey(&'a str),
}

/// The one credential of a call. A bearer wins over a key, and a bad bearer
/// never falls back to it.
pub(super) fn presented<'a>(
    headers: &'a HeaderMap,
    api_key_header: &HeaderName,
) -> Result<Presented<'a>, Rejected> {
    let bearer = single(headers, &AUTHORIZATION, Method::Token)?;
    let key = single(headers, api_key_header, Method::ApiKey)?;
    match (bearer, key) {
        (Some(value), _) => token(value).map(Presented::Bearer),
        (None, Some(value)) => word(value.as_bytes(), Method::ApiKey).map(Presented::ApiKey),
        (None, None) => Err(Rejected {
            why: Unauthenticated::Missing,
            method: Method::None,
            fault: Fault::Missing,
        }),
    }
}

fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    method: Method,
) -> Result<Option<&'a HeaderValue>, Rejected> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    // Proxies join repeated headers by commas, so a comma is a repetition.
    let joined = first.is_some_and(|value| value.as_bytes().contains(&b','));
    if joined || values.next().is_some() {
        return Err(Rejected { why: Unauthenticated::Ambiguous, method, fault: Fault::Ambiguous });
    }
    Ok(first)
}

/// The token behind the scheme word, which has no case.
fn token(value: &HeaderValue) -> Result<&str, Rejected> {
    let bytes = value.as_bytes();
    let scheme = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Err(invalid(Method::Token, Fault::Scheme));
    }
    let rest = bytes.get(scheme.len()..).unwrap_or_default();
    word(rest.trim_ascii_start(), Method::Token)
}

/// One word of visible ASCII.
fn word(bytes: &[u8], method: Method) -> Result<&str, Rejected> {
    let visible = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_graphic);
    visible
        .then(|| std::str::from_utf8(bytes).ok())
        .flatten()
        .ok_or_else(|| invalid(method, Fault::Malformed("not one word of visible ASCII")))
}

fn invalid(method: Method, fault: Fault) -> Rejected {
    Rejected { why: Unauthenticated::Invalid, method, fault }
}
