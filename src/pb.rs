//! Messages, services and descriptor bytes: one set of types, generated in
//! `clients/rust`.

pub use bailiwick_client::pb::*;
