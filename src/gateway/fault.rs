//! What the gateway itself finds wrong with a request.
//!
//! Not here: how it looks on the wire (`status`).

use http::StatusCode;
use tonic::Code;

use crate::pb::v1::Reason;

/// A refusal of the gateway's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct Fault {
    pub(in crate::gateway) http: StatusCode,
    pub(in crate::gateway) code: Code,
    pub(in crate::gateway) reason: Reason,
    pub(in crate::gateway) message: String,
    /// The field that is wrong, and what is wrong with it.
    pub(in crate::gateway) field: Option<(String, String)>,
}

impl Fault {
    fn new(http: StatusCode, code: Code, reason: Reason, message: String) -> Self {
        Self { http, code, reason, message, field: None }
    }

    /// The request cannot be read.
    pub(in crate::gateway) fn malformed(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            Code::InvalidArgument,
            Reason::RequestMalformed,
            message.into(),
        )
    }

    /// A field is wrong.
    pub(in crate::gateway) fn field(reason: Reason, field: &str, what: &str) -> Self {
        Self {
            field: Some((field.to_owned(), what.to_owned())),
            ..Self::new(
                StatusCode::BAD_REQUEST,
                Code::InvalidArgument,
                reason,
                format!("{field}: {what}"),
            )
        }
    }

    /// The body is over the limit.
    pub(in crate::gateway) fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Code::InvalidArgument,
            Reason::BodyTooLarge,
            format!("The body is too large; at most {limit} bytes are taken"),
        )
    }

    /// The body is of another type.
    pub(in crate::gateway) fn content_type() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::InvalidArgument,
            Reason::ContentTypeNotSupported,
            "Send the body as application/json in UTF-8, without an encoding".to_owned(),
        )
    }

    /// The body took too long.
    pub(in crate::gateway) fn body_timeout() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            Code::DeadlineExceeded,
            Reason::Deadline,
            "The body did not arrive in time".to_owned(),
        )
    }

    /// Our own fault; the caller learns no more.
    pub(in crate::gateway) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Code::Internal,
            Reason::Internal,
            "Internal error; the log has more under the request id".to_owned(),
        )
    }

    /// No such path.
    pub(in crate::gateway) fn unknown_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            Code::NotFound,
            Reason::UnknownMethod,
            "There is no such path; /docs lists them".to_owned(),
        )
    }

    /// The path has other verbs.
    pub(in crate::gateway) fn wrong_verb(allow: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            Code::Unimplemented,
            Reason::VerbNotAllowed,
            format!("This path takes {allow}"),
        )
    }
}

/// The known name that is nearest to an unknown one, if any is near.
pub(in crate::gateway) fn nearest<'k>(
    name: &str,
    known: impl Iterator<Item = &'k str>,
) -> Option<&'k str> {
    // The distance costs length times length: strangers choose `name`.
    const NAME_MAX: usize = 64;
    if name.len() > NAME_MAX {
        return None;
    }
    known
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in bytes.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, from) in left.bytes().enumerate() {
        let mut diagonal = index;
        let mut before = index + 1;
        let mut next = vec![before];
        for (to, above) in right.bytes().zip(row.iter().skip(1)) {
            let here = (diagonal + usize::from(from != to)).min(before + 1).min(above + 1);
            diagonal = *above;
            before = here;
            next.push(here);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        let known = ["namespace", "name", "context"];
        assert_eq!(nearest("namspace", known.into_iter()), Some("namespace"));
        assert_eq!(nearest("nme", known.into_iter()), Some("name"));
        assert_eq!(nearest("zzzzzz", known.into_iter()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
