//! The one place that starts tasks of the runtime.

/// Starts a task that runs for as long as it likes; who must wait for it
/// keeps the handle.
#[expect(clippy::disallowed_methods, reason = "the one place that starts tasks")]
pub fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}
