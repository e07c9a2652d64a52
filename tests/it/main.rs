//! The one integration-test binary: tests through the front door, and tests
//! of what surrounds the code.
#![expect(unreachable_pub, reason = "what modules of one test binary share is public to it alone")]

// `cfg(test)` says to clippy that helpers are tests too.
#[cfg(test)]
mod architecture;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod audit_api;
#[cfg(test)]
mod audit_sinks;
#[cfg(test)]
mod auth;
#[cfg(test)]
mod auth_matrix;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod corpora;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod credentials;
#[cfg(test)]
mod deploy;
#[cfg(test)]
mod descent;
#[cfg(test)]
mod docs;
#[cfg(test)]
mod durability;
#[cfg(test)]
mod elevation;
#[cfg(test)]
mod exchange;
#[cfg(test)]
mod explain;
#[cfg(test)]
mod ext_authz;
#[cfg(test)]
mod flows;
#[cfg(test)]
mod gate_attack;
#[cfg(test)]
mod hardening;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod introspect;
#[cfg(test)]
mod jwks;
#[cfg(test)]
mod keycloak;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod line;
#[cfg(test)]
mod line_auth;
#[cfg(test)]
mod line_limits;
#[cfg(test)]
mod quickstart;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod rest;
#[cfg(test)]
mod roles;
#[cfg(test)]
mod scan;
#[cfg(test)]
mod schedule_api;
#[cfg(test)]
mod schedule_brokers;
#[cfg(test)]
mod schedule_durable;
#[cfg(test)]
mod schedule_firing;
#[cfg(test)]
mod schedule_network;
#[cfg(test)]
mod schedule_process;
#[cfg(test)]
mod step_tokens;
#[cfg(test)]
mod telemetry;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod token_file;
#[cfg(test)]
mod usage;
#[cfg(test)]
mod worker;
#[cfg(test)]
mod worker_listeners;
