//! What a program needs to ask latchkey's agent for secrets: the wire contract ([`protocol`]) and, with the
//! feature `http`, a client over the agent's Unix socket.

pub mod protocol;

#[cfg(feature = "http")]
mod client;
#[cfg(feature = "http")]
mod error;

#[cfg(feature = "http")]
pub use client::Client;
#[cfg(feature = "http")]
pub use error::ClientError;
