//! Pages of lists, and tokens that are bound to their query and caller.
//!
//! Not here: where a page begins on disk; that place is the store's own.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use super::Error;
use crate::{
    domain::principal::Identity,
    storage::{Listed, Page},
};

/// How many items a page has when the caller does not say.
pub const PAGE_SIZE_DEFAULT: u32 = 50;
/// How many items a page may have.
pub const PAGE_SIZE_MAX: u32 = 500;

/// The digest needs no key: a token grants nothing, the store cuts each page
/// by the caller's scope. It keeps a token from a query it was not made for.
const DIGEST_BYTES: usize = 16;
/// No token of ours is longer.
const TOKEN_BYTES_MAX: usize = 4096;

/// Which page a caller asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// How many items at most; 0 means the default.
    pub size: u32,
    /// The token of the page before; empty is the beginning.
    pub token: String,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paged<T> {
    /// The items.
    pub items: Vec<T>,
    /// What to ask for next; empty at the end.
    pub next_token: String,
}

/// What a token is bound to: the list, its filter and its caller.
#[derive(Clone, Debug)]
pub(crate) struct Query(Sha256);

impl Query {
    pub(crate) fn new(list: &str, caller: &Identity) -> Self {
        Self(Sha256::new())
            .with(list)
            .with(caller.source.as_str())
            .with(&caller.issuer)
            .with(&caller.subject)
    }

    /// Adds one parameter of the query.
    pub(crate) fn with(mut self, part: &str) -> Self {
        // The length keeps `ab`, `c` apart from `a`, `bc`.
        self.0.update(part.len().to_be_bytes());
        self.0.update(part.as_bytes());
        self
    }

    /// Adds a parameter that may be absent.
    pub(crate) fn with_option(self, part: Option<&str>) -> Self {
        match part {
            Some(part) => self.with("some").with(part),
            None => self.with("none"),
        }
    }

    /// The page that the store is asked for.
    pub(crate) fn page(&self, request: &PageRequest) -> Result<Page, Error> {
        let size = match request.size {
            0 => PAGE_SIZE_DEFAULT,
            size @ 1..=PAGE_SIZE_MAX => size,
            size => {
                return Err(Error::FieldInvalid {
                    field: "page_size",
                    message: format!("{size} is too many; at most {PAGE_SIZE_MAX} a page"),
                });
            }
        };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let after = match request.token.as_str() {
            "" => None,
            token => Some(self.place(token).ok_or(Error::PageToken)?),
        };
        Ok(Page { size, after })
    }

    /// The page for the caller, from the store's.
    pub(crate) fn paged<T>(&self, listed: Listed<T>) -> Paged<T> {
        let next_token = listed.next.map_or_else(String::new, |place| self.token(&place));
        Paged { items: listed.items, next_token }
    }

    pub(crate) fn token(&self, place: &str) -> String {
        let mut bytes = self.digest(place).to_vec();
        bytes.extend_from_slice(place.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn place(&self, token: &str) -> Option<String> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (digest, place) = bytes.split_first_chunk::<DIGEST_BYTES>()?;
        let place = std::str::from_utf8(place).ok()?;
        (*digest == self.digest(place)).then(|| place.to_owned())
    }

    fn digest(&self, place: &str) -> [u8; DIGEST_BYTES] {
        let full = self.clone().with(place).0.finalize();
        let mut short = [0; DIGEST_BYTES];
        for (slot, byte) in short.iter_mut().zip(full) {
            *slot = byte;
        }
        short
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Principal;

    fn caller(subject: &str) -> Identity {
        Identity { subject: subject.into(), ..Principal::auth_off().identity }
    }

    #[test]
    fn a_token_is_bound_to_query_and_caller() {
        let query = Query::new("tasks", &caller("alice")).with_option(Some("shop"));
        let token = query.token("place");
        let ask = |query: &Query, token: &str| {
            query.page(&PageRequest { size: 0, token: token.to_owned() }).map(|page| page.after)
        };
        assert_eq!(ask(&query, &token).unwrap().as_deref(), Some("place"));
        for other in [
            Query::new("tasks", &caller("bob")).with_option(Some("shop")),
            Query::new("tasks", &caller("alice")).with_option(None),
            Query::new("tasks", &caller("alice")).with_option(Some("shop.x")),
            Query::new("steps", &caller("alice")).with_option(Some("shop")),
        ] {
            assert!(matches!(ask(&other, &token), Err(Error::PageToken)));
        }
        for wrong in ["x", "====", &token[1..], &format!("{token}AA"), &"A".repeat(5000)] {
            assert!(matches!(ask(&query, wrong), Err(Error::PageToken)), "{wrong}");
        }
    }

    #[test]
    fn page_sizes_have_a_default_and_a_limit() {
        let query = Query::new("tasks", &caller("alice"));
        let size =
            |size| query.page(&PageRequest { size, token: String::new() }).map(|page| page.size);
        assert_eq!(size(0).unwrap(), 50);
        assert_eq!(size(500).unwrap(), 500);
        assert!(matches!(size(501), Err(Error::FieldInvalid { field: "page_size", .. })));
    }
}
