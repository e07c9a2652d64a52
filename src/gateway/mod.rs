//! The gateway from REST to gRPC, built at run time from the descriptors:
//! which RPC a request means, its JSON into one gRPC frame, the answer back
//! into JSON, NDJSON or server-sent events, and `OpenAPI`.
//!
//! Not here: who may call (`access`), what a call does (`grpc`), and the order
//! of the layers (`server`).

pub mod docs;
mod fault;
mod json;

pub mod openapi;
mod query;
mod reader;
mod routes;
mod schema;
mod serve;
pub mod status;
mod stream;

pub use reader::drain;
pub use routes::{Classified, RestCall, Routes};
pub use serve::{Body, Gateway, Limits};

/// Why the descriptors cannot be served; found at start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The pool lacks an option that the gateway reads.
    #[error("the descriptors lack `{0}`")]
    OptionMissing(&'static str),
    /// A method's route cannot be served.
    #[error("{method}: {what}")]
    Route {
        /// The method's full name.
        method: String,
        /// What is wrong with it.
        what: String,
    },
    /// Two routes take the same path.
    #[error("{first} and {second} overlap")]
    Overlap {
        /// One of them, with its verb.
        first: String,
        /// The other.
        second: String,
    },
    /// A message has no form in JSON here.
    #[error("{message}: {what}")]
    Message {
        /// Its full name, perhaps with the field.
        message: String,
        /// What is wrong with it.
        what: String,
    },
}
