//! The node agent: proves which pod is calling, takes on that pod's own cloud role, and reads the secret.
//!
//! connection → peer → workload → role → session → secret → response: the groups stand in the order of the steps in
//! `docs/architecture.md`, and `Services::read` in [`handler`] names those steps from the workload on.

// What starts it, checks the ground first, and hands over to the next one.
mod agent;
pub mod cli;
mod config;
mod handover;
mod kubernetes;
mod mountinfo;
mod preflight;

// A connection, and the process at its other end.
mod peer;
mod server;

// Which pod that is, and how much it may ask.
mod attest;
mod quota;
mod turns;

// What it asks, step by step, and the line of the trail.
mod audit;
mod handler;
mod request;

// What it may become.
mod account;
mod role;

// What is there already, or on its way.
mod cache;
mod flight;

// In its name at a cloud.
mod backend;
mod secret;
mod session;
mod token;

// What it is told.
mod error;
mod response;

// A volume of each pod: its socket, its tokens, its files.
pub mod csi;
mod volumes;

// For whoever runs it.
mod admin;
mod metrics;
mod taint;
mod time;
mod waits;
