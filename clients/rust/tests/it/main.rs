//! The client against a scripted server: what it sends, and how it behaves
//! when the server is away, refuses or breaks off.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test fails on every message but the one it waits for"
)]

// `cfg(test)` tells clippy that helpers beside the test functions are tests.
#[cfg(test)]
mod connect;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod worker;
