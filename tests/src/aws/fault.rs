//! What can go wrong at AWS alone.

use super::call::{Call, Operation};
use crate::fake;

/// Something that goes wrong at AWS. `secret` is `SecretId` exactly as it is sent, `role` the role's ARN: the one asked
/// for (STS), or the signer's; `region` that of the signature's scope, which an STS call without a signature has not.
pub type Fault = fake::Fault<Call, Special>;

/// What happens to a call.
pub type Behaviour = fake::Behaviour<Special>;

/// What only AWS has.
#[derive(Clone, Debug)]
pub enum Special {
    /// `DecryptionFailure`, instead of a value that would have been given.
    DecryptionFailure,
    /// `AccessDeniedException: Access to KMS is not allowed`, instead of a value that would have been given.
    KmsDenied,
    /// Something on the way changes the request, so that it has another signature than its own.
    Tampered,
}

impl fake::Special for Special {
    fn name(&self) -> &'static str {
        match self {
            Self::DecryptionFailure => "DecryptionFailure",
            Self::KmsDenied => "AccessDeniedException",
            Self::Tampered => "InvalidSignatureException",
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
        self.role.as_deref()
    }

    fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }
}
