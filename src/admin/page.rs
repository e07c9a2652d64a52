//! Pages of lists that lie in memory; tokens are bound to list and caller.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use super::Error;
use crate::{
    access::{Reason, Refusal},
    domain::principal::Identity,
    storage::CredentialRecord,
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

/// The page of a list that is sorted by this place, which no two items share.
/// It goes on behind the last place also when what stood there is gone.
pub(super) fn page<T>(
    list: &str,
    caller: &Identity,
    request: &PageRequest,
    all: Vec<T>,
    place: impl Fn(&T) -> String,
) -> Result<Paged<T>, Error> {
    let size = match usize::try_from(request.size).unwrap_or(usize::MAX) {
        0 => SIZE_DEFAULT,
        size if size <= SIZE_MAX => size,
        _ => return Err(super::invalid("page_size", format!("at most {SIZE_MAX} a page"))),
    };
    let bound = bound(list, caller);
    let mut rest = all;
    if !request.token.is_empty() {
        let after = read(&request.token, &bound).ok_or_else(|| {
            let what = "not for this query; begin without one";
            Refusal::invalid(Reason::PageTokenInvalid, "page_token", what)
        })?;
        rest.retain(|item| place(item) > after);
    }
    let mut rest = rest.into_iter();
    let items: Vec<T> = rest.by_ref().take(size).collect();
    let more = rest.next().is_some();
    let next_token = match items.last() {
        Some(last) if more => {
            URL_SAFE_NO_PAD.encode([bound.as_slice(), place(last).as_bytes()].concat())
        }
        _ => String::new(),
    };
    Ok(Paged { items, next_token })
}

/// The place of a credential in a list with the newest first.
pub(super) fn newest_first(record: &CredentialRecord) -> String {
    let age = i64::MAX.saturating_sub(record.created_at.micros());
    format!("{age:020} {}", record.id)
}

fn bound(list: &str, caller: &Identity) -> Vec<u8> {
    let mut digest = Sha256::digest(format!("{list}\n{caller}")).to_vec();
    digest.truncate(DIGEST_BYTES);
    digest
}

fn read(token: &str, bound: &[u8]) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    String::from_utf8(bytes.strip_prefix(bound)?.to_vec()).ok()
}
