//! The node agent: proves which pod is calling, takes on that pod's own cloud role, and reads the secret.
//!
//! connection → peer → workload → role → session → secret → response: the modules are grouped by the steps in
//! `docs/architecture.md`. `Services::read` in [`handler`] names those steps from the workload on.

// Starts the agent, checks what it needs first, and hands over to its successor.
mod agent;
pub mod cli;
mod config;
mod handover;
mod kubernetes;
mod mountinfo;
mod preflight;

// A connection and the process at its other end.
mod passed;
mod peer;
mod server;

// Which pod that is, and how much it may request.
mod attest;
mod quota;
mod turns;

// What it requests, step by step, and the audit line.
mod audit;
mod handler;
mod request;

// The role it may take on.
mod account;
mod role;

// What is cached or already being read.
mod cache;
mod flight;

// Acting for it at a cloud.
mod backend;
mod secret;
mod session;
mod token;

// What it gets as an answer.
mod error;
mod response;

// A volume for each pod: its socket, its tokens, its files.
pub mod csi;
mod volumes;

// For operators, and shared helpers.
mod admin;
mod metrics;
mod stderr;
mod taint;
mod time;
mod waits;
