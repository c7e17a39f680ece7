//! AWS: IAM roles and Secrets Manager, the sandbox's own.

use async_trait::async_trait;
use std::any::Any;

use super::{Cloud, Listener, Logged, Trouble};
use crate::agent::AgentSettings;
use crate::aws::{FakeAws, Operation, SecretInput};
use crate::sandbox::{ACCOUNT, REGION, Sandbox};

#[derive(Debug)]
pub(super) struct Aws(FakeAws);

impl Aws {
    pub(super) fn of(sandbox: &Sandbox) -> Self {
        Self(sandbox.aws.clone())
    }

    fn role(&self, namespace: &str) -> String {
        self.0.role_arn(&format!("{namespace}-{ACCOUNT}"))
    }
}

#[async_trait]
impl Cloud for Aws {
    fn settings(&self, settings: AgentSettings) -> AgentSettings {
        settings
    }

    fn namespace(&self, sandbox: &Sandbox, name: &str) {
        sandbox.aws_namespace(name);
    }

    fn impostor(&self, sandbox: &Sandbox, name: &str, of: &str) {
        let role = [("eks.amazonaws.com/role-arn", &*self.role(of))];
        sandbox.namespace(name, &role);
    }

    fn put(&self, name: &str, value: &[u8]) -> Option<String> {
        let input = match std::str::from_utf8(value) {
            Ok(text) => SecretInput::text(text),
            Err(_) => SecretInput::binary(value),
        };
        Some(self.0.put_secret(REGION, name, input))
    }

    fn trouble(&self, trouble: Trouble) -> Option<Box<dyn Any + Send>> {
        let (exchange, read) = (
            Operation::AssumeRoleWithWebIdentity,
            Operation::GetSecretValue,
        );
        super::trouble(&self.0, trouble, exchange, read)
    }

    fn listener(&self) -> Option<&Listener> {
        Some(self.0.listener())
    }

    fn expire_sessions(&self) -> bool {
        let roles = self.0.calls_of(Operation::AssumeRoleWithWebIdentity);
        let roles = roles.iter().filter_map(|call| call.role.as_deref());
        roles
            .map(|role| self.0.expire_role_sessions(role))
            .sum::<usize>()
            > 0
    }

    fn revoke(&self, namespace: &str) -> bool {
        self.0.delete_role(&self.role(namespace))
    }

    fn previous_stage(&self) -> Option<&'static str> {
        Some("AWSPREVIOUS")
    }

    fn log(&self) -> Vec<Logged> {
        let line = |call: crate::aws::Call| {
            let session = call.session_name.as_deref().unwrap_or_default();
            let what = call
                .secret
                .as_deref()
                .or(call.role.as_deref())
                .unwrap_or_default();
            let told = format!("{:?} {what} by {session}", call.operation);
            Logged::new(&told, call.error.as_deref())
        };
        self.0.calls().into_iter().map(line).collect()
    }
}
