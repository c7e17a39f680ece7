//! AWS: the exchange, the session, and what the cloud's refusals and failures become.

mod endpoints;
mod failures;
mod regions;
mod sessions;

use testkit::aws::{Call, Operation};
use testkit::sandbox::Sandbox;

const SECRET: &str = "test/database-password";

fn exchanges(sandbox: &Sandbox) -> Vec<Call> {
    sandbox.aws.calls_of(Operation::AssumeRoleWithWebIdentity)
}

fn reads(sandbox: &Sandbox) -> Vec<Call> {
    sandbox.aws.calls_of(Operation::GetSecretValue)
}
