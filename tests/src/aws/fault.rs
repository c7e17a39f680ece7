//! What can go wrong at AWS alone.

use super::call::{Call, Operation};
use crate::fake;

/// Something that goes wrong at AWS. `secret` is `SecretId` exactly as sent, `role` the role's ARN: the requested one
/// (STS), or the signer's; `region` that of the signature's scope, which an unsigned STS call does not have.
pub type Fault = fake::Fault<Call, Special>;

/// What happens to a call.
pub type Behaviour = fake::Behaviour<Special>;

/// What can go wrong only at AWS.
#[derive(Clone, Debug)]
pub enum Special {
    /// `DecryptionFailure` instead of a value.
    DecryptionFailure,
    /// `AccessDeniedException: Access to KMS is not allowed` instead of a value.
    KmsDenied,
    /// Something on the way changes the request, so that its signature no longer fits.
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

    fn error(&mut self) -> &mut Option<String> {
        &mut self.error
    }
}
