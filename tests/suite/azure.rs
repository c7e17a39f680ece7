//! Azure: the exchange, the session, the vault, and what the cloud's refusals and failures become.

mod failures;
mod hanging;
mod names;
mod proxy;
mod refusals;
mod sessions;

use testkit::azure::{Call, Operation};
use testkit::sandbox::azure::AzureSandbox;

const SECRET: &str = "test/database-password";

/// What the secret is called at the vault.
const WRITTEN: &str = "test--database-password";

fn exchanges(node: &AzureSandbox) -> Vec<Call> {
    node.azure.calls_of(Operation::Token)
}

/// The calls to a vault that carried a token.
fn with_token(node: &AzureSandbox) -> Vec<Call> {
    node.azure.calls_where(|call| call.with_token)
}
