//! What runs a step, and how its end is told.

use std::{any::Any, fmt, panic::AssertUnwindSafe, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use serde::Serialize;
use tokio::time::timeout;

use super::step::StepContext;

/// A result larger than this is refused by the server.
pub const RESULT_BYTES_MAX: usize = 1024 * 1024;
/// The server keeps this much of an error.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// Why a handler did not do its step.
///
/// `?` turns any error into a retryable one; say [`permanent`](Self::permanent)
/// where another attempt makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerError {
    message: String,
    retryable: bool,
}

impl HandlerError {
    /// A failure that another attempt may cure.
    pub fn retryable(message: impl Into<String>) -> Self {
        Self { message: message.into(), retryable: true }
    }

    /// A failure that every attempt would meet.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { message: message.into(), retryable: false }
    }

    /// What went wrong.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether another attempt makes sense.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::retryable(error.to_string())
    }
}

/// An async function from a step to its JSON result.
pub(super) trait Handler: Send + Sync + 'static {
    fn call(&self, step: StepContext) -> BoxFuture<'static, Result<String, HandlerError>>;
}

impl<F, Work, T> Handler for F
where
    F: Fn(StepContext) -> Work + Send + Sync + 'static,
    Work: Future<Output = Result<T, HandlerError>> + Send + 'static,
    T: Serialize,
{
    fn call(&self, step: StepContext) -> BoxFuture<'static, Result<String, HandlerError>> {
        let work = self(step);
        Box::pin(async move {
            let result = work.await?;
            let text = serde_json::to_string(&result).map_err(|error| {
                HandlerError::permanent(format!("the result cannot be written as JSON: {error}"))
            })?;
            if text.len() > RESULT_BYTES_MAX {
                return Err(HandlerError::permanent(format!(
                    "the result has {} bytes, more than {RESULT_BYTES_MAX}",
                    text.len()
                )));
            }
            Ok(text)
        })
    }
}

/// How a step ended, as the server is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Complete { result: String },
    Fail { error: String, retryable: bool },
}

impl From<Result<String, HandlerError>> for Outcome {
    fn from(done: Result<String, HandlerError>) -> Self {
        match done {
            Ok(result) => Self::Complete { result },
            Err(error) => Self::Fail {
                error: bounded(error.message, ERROR_BYTES_MAX),
                retryable: error.retryable,
            },
        }
    }
}

/// Runs a handler to its end. One that ignores its cancelled token, or its
/// timeout, is dropped after the grace.
pub(super) async fn run(handler: &dyn Handler, step: StepContext, grace: Duration) -> Outcome {
    let (cancelled, timeout_at) = (step.cancelled().clone(), step.timeout_at());
    // The call itself is inside: a handler may panic before its first await.
    let work = AssertUnwindSafe(async move { handler.call(step).await }).catch_unwind();
    tokio::pin!(work);
    let why = tokio::select! {
        done = &mut work => return outcome(done),
        () = cancelled.cancelled() => "was cancelled",
        () = tokio::time::sleep_until(timeout_at) => {
            cancelled.cancel();
            "timed out"
        }
    };
    match timeout(grace, &mut work).await {
        Ok(done) => outcome(done),
        Err(_) => Outcome::Fail {
            error: format!("the handler {why} and did not stop within {grace:?}"),
            retryable: true,
        },
    }
}

fn outcome(done: Result<Result<String, HandlerError>, Box<dyn Any + Send>>) -> Outcome {
    done.unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|message| (*message).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Err(HandlerError::retryable(format!("the handler panicked: {message}")))
    })
    .into()
}

fn bounded(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_retryable_unless_it_says_otherwise() {
        let error: HandlerError = "x".parse::<u8>().unwrap_err().into();
        assert!(error.is_retryable());
        assert!(!HandlerError::permanent("no").is_retryable());
    }

    #[test]
    fn an_error_is_cut_at_a_character() {
        assert_eq!(bounded("aé".to_owned(), 2), "a");
        assert_eq!(bounded("aé".to_owned(), 3), "aé");
        let Outcome::Fail { error, .. } =
            Outcome::from(Err(HandlerError::retryable("é".repeat(ERROR_BYTES_MAX))))
        else {
            panic!("an error is a failure");
        };
        assert_eq!(error.len(), ERROR_BYTES_MAX);
    }
}
