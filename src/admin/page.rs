//! Pages of lists that lie in memory; tokens are bound to list and caller.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use super::Error;
use crate::{
    access::{Reason, Refusal},
    domain::principal::Identity,
};

const SIZE_DEFAULT: usize = 50;
const SIZE_MAX: usize = 500;
const DIGEST_BYTES: usize = 16;

/// Which page a caller asks for.
#[derive(Clone, Debug, Default)]
pub struct PageRequest {
    /// How many items at most; 0 means the default.
    pub size: u32,
    /// The token of the page before; empty is the beginning.
    pub token: String,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Paged<T> {
    /// The items.
    pub items: Vec<T>,
    /// What to ask for next; empty at the end.
    pub next_token: String,
}

/// The page of a list whose items are told apart by these ids.
pub(super) fn page<T>(
    list: &str,
    caller: &Identity,
    request: &PageRequest,
    all: Vec<T>,
    id: impl Fn(&T) -> Arc<str>,
) -> Result<Paged<T>, Error> {
    let size = match usize::try_from(request.size).unwrap_or(usize::MAX) {
        0 => SIZE_DEFAULT,
        size if size <= SIZE_MAX => size,
        _ => return Err(super::invalid("page_size", format!("at most {SIZE_MAX} a page"))),
    };
    let bound = bound(list, caller);
    let mut rest = all.into_iter();
    if !request.token.is_empty() {
        let after = place(&request.token, &bound).ok_or_else(|| {
            let what = "not for this query; begin without one";
            Refusal::invalid(Reason::PageTokenInvalid, "page_token", what)
        })?;
        // What was removed since leaves no place to go on from: the end.
        rest.by_ref().find(|item| *id(item) == *after);
    }
    let items: Vec<T> = rest.by_ref().take(size).collect();
    let more = rest.next().is_some();
    let next_token = match items.last() {
        Some(last) if more => {
            URL_SAFE_NO_PAD.encode([bound.as_slice(), id(last).as_bytes()].concat())
        }
        _ => String::new(),
    };
    Ok(Paged { items, next_token })
}

fn bound(list: &str, caller: &Identity) -> Vec<u8> {
    let mut digest = Sha256::digest(format!("{list}\n{caller}")).to_vec();
    digest.truncate(DIGEST_BYTES);
    digest
}

fn place(token: &str, bound: &[u8]) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    String::from_utf8(bytes.strip_prefix(bound)?.to_vec()).ok()
}
