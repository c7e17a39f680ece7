//! The node agent: proves which pod is calling, takes on that pod's own cloud role, and reads the secret.
//!
//! connection → peer → workload → role → session → secret → response: behind what starts the agent, and before what
//! serves all of them, the modules stand in the order in which a request meets them, and `Services::read` in
//! [`handler`] names the steps from the workload on.

pub mod cli;
mod config;
pub mod csi;
mod preflight;

mod agent;
mod handover;
mod kubernetes;
mod server;
mod volumes;

mod handler;
mod request;

mod peer;

mod attest;

mod account;
mod role;

mod token;

mod session;

mod cache;
mod flight;

mod backend;
mod secret;

mod audit;
mod error;
mod response;

mod admin;
mod metrics;
mod quota;
mod readiness;
mod taint;
mod time;
mod turns;
