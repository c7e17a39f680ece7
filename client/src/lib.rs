//! What a program needs to ask latchkey's agent for its secrets.
//!
//! ```no_run
//! # async fn example() -> Result<(), latchkey_client::ClientError> {
//! use latchkey_client::Client;
//!
//! let client = Client::from_env();
//! let secret = client.get("prod/database-password").await?;
//! let password = secret.value.expose_text().unwrap_or_default();
//! # Ok(())
//! # }
//! ```
//!
//! No token and no key is needed: the agent knows from the kernel which pod is calling. [`Client`] sends its requests
//! over the node's Unix socket, retries where the contract says that this helps, and gives up at its deadline. What it
//! returns holds its value in a [`Value`], which does not print and is wiped when it is dropped; [`Value::expose`] is
//! the only way to it.
//!
//! The feature `http` (on by default) is the client; without it there is only the wire contract ([`protocol`]). The
//! feature `cli` is the command `latchkey`.

pub mod protocol;

#[cfg(feature = "http")]
mod ask;
#[cfg(feature = "http")]
mod client;
#[cfg(feature = "http")]
mod error;
#[cfg(feature = "http")]
mod retry;
#[cfg(feature = "http")]
mod secret;
#[cfg(feature = "http")]
mod transport;

#[cfg(feature = "cli")]
pub mod cli;

#[cfg(feature = "http")]
pub use ask::{Ask, ListAsk};
#[cfg(feature = "http")]
pub use client::{Batch, Client};
#[cfg(feature = "http")]
pub use error::{ClientError, Refusal};
#[cfg(feature = "http")]
pub use secret::{Secret, Tag, Value};
