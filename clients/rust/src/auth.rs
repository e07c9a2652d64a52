//! Which credential a call carries, and where it is found. Not in here: the
//! client's file, which the command line reads.

use std::fmt;

use tonic::{
    Request, Status,
    metadata::{AsciiMetadataKey, AsciiMetadataValue},
    service::Interceptor,
};

use crate::error::Error;

/// The header that carries an API key unless another is named.
pub const API_KEY_HEADER: &str = "X-API-Key";

const ENV_ORCHESTRATION_TOKEN: &str = "BAILIWICK_ORCHESTRATION_AUTH_TOKEN";
const ENV_WORKER_TOKEN: &str = "BAILIWICK_WORKER_AUTH_TOKEN";
const ENV_TOKEN: &str = "BAILIWICK_AUTH_TOKEN";
const ENV_API_KEY: &str = "BAILIWICK_API_KEY";
const ENV_API_KEY_HEADER: &str = "BAILIWICK_API_KEY_HEADER";

/// The credential that a client sends with every call.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// None: for a server that runs without authentication.
    #[default]
    None,
    /// A token, sent as `Authorization: Bearer …`.
    Bearer(String),
    /// An API key in a header of its own.
    ApiKey {
        /// The key.
        key: String,
        /// The header's name; `X-API-Key` when absent.
        header: Option<String>,
    },
}

impl fmt::Debug for Auth {
    /// Names the kind, never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Bearer(_) => "Bearer(…)",
            Self::ApiKey { .. } => "ApiKey(…)",
        })
    }
}

/// Which process a client talks to: each may have a token of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// The server.
    Orchestration,
    /// A worker process.
    Worker,
}

impl Auth {
    /// The credential in the environment: the endpoint's own token, then the
    /// token for all, then the API key with its header. An empty variable
    /// counts as unset. Without any the caller goes on to the client's file.
    ///
    /// ```
    /// use bailiwick_client::{Auth, Endpoint};
    ///
    /// let auth = Auth::from_env(Endpoint::Orchestration, |name| std::env::var(name).ok())
    ///     .unwrap_or_default();
    /// # let _ = auth;
    /// ```
    pub fn from_env(endpoint: Endpoint, lookup: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let set = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let own = match endpoint {
            Endpoint::Orchestration => ENV_ORCHESTRATION_TOKEN,
            Endpoint::Worker => ENV_WORKER_TOKEN,
        };
        if let Some(token) = set(own).or_else(|| set(ENV_TOKEN)) {
            return Some(Self::Bearer(token));
        }
        set(ENV_API_KEY).map(|key| Self::ApiKey { key, header: set(ENV_API_KEY_HEADER) })
    }
}

/// Adds the credential and the trace context to every call.
#[derive(Debug, Clone, Default)]
pub struct CallHeaders {
    credential: Option<(AsciiMetadataKey, AsciiMetadataValue)>,
    traceparent: Option<AsciiMetadataValue>,
}

impl CallHeaders {
    pub(crate) fn new(auth: &Auth) -> Result<Self, Error> {
        let (name, text) = match auth {
            Auth::None => return Ok(Self::default()),
            Auth::Bearer(token) => ("authorization".to_owned(), format!("Bearer {}", token.trim())),
            Auth::ApiKey { key, header } => (
                header.as_deref().unwrap_or(API_KEY_HEADER).trim().to_ascii_lowercase(),
                key.trim().to_owned(),
            ),
        };
        let key = AsciiMetadataKey::from_bytes(name.as_bytes())
            .map_err(|_| Error::Setting(format!("`{name}` cannot be the header of an API key")))?;
        // The parser's error is dropped on purpose: it could quote the secret.
        let mut value = AsciiMetadataValue::try_from(text).map_err(|_| {
            Error::Setting("the credential holds characters that no header can carry".to_owned())
        })?;
        value.set_sensitive(true);
        Ok(Self { credential: Some((key, value)), traceparent: None })
    }

    pub(crate) fn with_traceparent(mut self, traceparent: &str) -> Self {
        self.traceparent = AsciiMetadataValue::try_from(traceparent).ok();
        self
    }
}

impl Interceptor for CallHeaders {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        if let Some((key, value)) = &self.credential {
            metadata.insert(key.clone(), value.clone());
        }
        if let Some(traceparent) = &self.traceparent {
            metadata.insert("traceparent", traceparent.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(endpoint: Endpoint, set: &[(&str, &str)]) -> Option<Auth> {
        Auth::from_env(endpoint, |name| {
            set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn bearer(token: &str) -> Auth {
        Auth::Bearer(token.to_owned())
    }

    #[test]
    fn tk_49_own_token_then_global_token_then_api_key() {
        let all = [
            ("BAILIWICK_API_KEY", "key"),
            ("BAILIWICK_AUTH_TOKEN", "global"),
            ("BAILIWICK_WORKER_AUTH_TOKEN", "worker"),
            ("BAILIWICK_ORCHESTRATION_AUTH_TOKEN", "server"),
        ];
        assert_eq!(resolve(Endpoint::Orchestration, &all), Some(bearer("server")));
        assert_eq!(resolve(Endpoint::Worker, &all), Some(bearer("worker")));
        assert_eq!(resolve(Endpoint::Orchestration, &all[..3]), Some(bearer("global")));
        assert_eq!(resolve(Endpoint::Worker, &all[..2]), Some(bearer("global")));
        assert_eq!(
            resolve(Endpoint::Worker, &all[..1]),
            Some(Auth::ApiKey { key: "key".to_owned(), header: None })
        );
        assert_eq!(resolve(Endpoint::Worker, &[]), None, "the client's file comes last");
        assert_eq!(resolve(Endpoint::Worker, &[("BAILIWICK_AUTH_TOKEN", " ")]), None);
    }

    #[test]
    fn tk_50_the_header_of_the_key_can_be_named() {
        let set = [("BAILIWICK_API_KEY", "key"), ("BAILIWICK_API_KEY_HEADER", "X-Corp-Key")];
        let auth = resolve(Endpoint::Orchestration, &set).unwrap();
        let headers = CallHeaders::new(&auth).unwrap();
        assert_eq!(headers.credential.unwrap().0.as_str(), "x-corp-key");

        let auth = Auth::ApiKey { key: "key".to_owned(), header: None };
        let headers = CallHeaders::new(&auth).unwrap();
        assert_eq!(headers.credential.unwrap().0.as_str(), "x-api-key");
    }

    #[test]
    fn secrets_are_in_no_debug_and_no_error() {
        for auth in [
            Auth::Bearer("s3cret".to_owned()),
            Auth::ApiKey { key: "s3cret".to_owned(), header: None },
        ] {
            assert!(!format!("{auth:?}").contains("s3cret"));
            assert!(!format!("{:?}", CallHeaders::new(&auth).unwrap()).contains("s3cret"));
        }
        let error = CallHeaders::new(&Auth::Bearer("s3cret\n\u{1}x".to_owned())).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cret"));
        let binary = Auth::ApiKey { key: "k".to_owned(), header: Some("x-key-bin".to_owned()) };
        assert!(matches!(CallHeaders::new(&binary), Err(Error::Setting(_))));
    }
}
