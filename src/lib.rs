//! Bailiwick: durable task orchestration with authority built in.
//!
//! The modules are a list, not a web: each uses only modules above it in the
//! table of `README.md#architecture`; `tests/it/architecture.rs` holds it.

pub mod domain;

pub mod pb;

pub mod process;

pub mod config;

pub mod storage;

pub mod authz;

pub mod egress;

pub mod audit;
pub mod signing;

pub mod authn;

pub mod access;

pub mod admin;

pub mod engine;

pub mod schedule;

pub mod grpc;

pub mod gateway;

pub mod line;

pub mod worker;

pub mod server;

pub mod cli;
