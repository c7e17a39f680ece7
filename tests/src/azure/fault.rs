//! What can go wrong at Azure alone.

use super::call::{Call, Operation};
use crate::fake;

/// Something that goes wrong at Azure; `role` is the client.
pub type Fault = fake::Fault<Call, Special>;

/// What happens to a call.
pub type Behaviour = fake::Behaviour<Special>;

/// What can go wrong only at Azure.
#[derive(Clone, Debug)]
pub enum Special {
    /// A challenge, or a link to the next page, that points to this host.
    Divert(String),
}

impl fake::Special for Special {
    fn name(&self) -> &'static str {
        match self {
            Self::Divert(_) => "fault: divert",
        }
    }
}

impl fake::Attempt for Call {
    type Operation = Operation;

    fn operation(&self) -> Operation {
        self.operation
    }

    fn secret(&self) -> Option<&str> {
        self.secret.as_deref()
    }

    fn role(&self) -> Option<&str> {
        self.client.as_deref()
    }

    fn error(&mut self) -> &mut Option<String> {
        &mut self.error
    }
}
