#![doc = include_str!("../README.md")]
//!
//! What is not in here: the server, and the process that runs shell commands
//! as handlers (`bailiwick worker run`), which is built on this crate.

mod auth;
mod client;
mod error;
pub mod pb;
pub mod worker;

pub use auth::{API_KEY_HEADER, Auth, CallHeaders, Endpoint};
pub use client::{Client, ClientBuilder, Transport, connect_with_auth};
pub use error::{Error, FieldFault, Refusal};
pub use worker::{HandlerError, StepContext, Worker};
