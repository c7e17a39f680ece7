//! What must not be printed, and the names of it.
//!
//! A [`SecretName`] is checked once, when it is made. Values and tokens print as nothing, cannot be
//! cloned, come out through `expose` or as shared bytes alone, and are overwritten with zeroes when they are dropped.

use std::{fmt, str, sync::Arc};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use zeroize::Zeroizing;

/// The name of a secret as the application writes it: 1 to 512 bytes, slashes between its segments.
///
/// Which characters it may hold, and what it is called at the vault, is the backend's to say.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct SecretName(Arc<str>);

/// Why something is no name of a secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum NameError {
    /// It holds a backslash, a NUL or another control character.
    #[error("a secret's name holds no backslash and no control characters")]
    Character,
    /// It is empty.
    #[error("a secret's name is missing")]
    Empty,
    /// What its percent signs encode is no UTF-8, or they encode nothing.
    #[error("a secret's name is UTF-8, its percent signs written as %25")]
    Encoding,
    /// It has more than 512 bytes.
    #[error("a secret's name has at most 512 bytes")]
    Length,
    /// A segment of it is empty, `.` or `..`.
    #[error("a secret's name has no segment that is empty, . or ..")]
    Segment,
}

/// The value of a secret, or bytes that hold one, such as an answer's body.
pub(crate) struct SecretValue(Zeroizing<Vec<u8>>);

/// A subject token: the pod's service account JWT, offered for exchange.
pub(crate) struct SubjectToken(Zeroizing<String>);

// === impl SecretName ===

impl SecretName {
    /// The longest name, in bytes; AWS has the longest of all clouds.
    pub(crate) const MAX_LENGTH: usize = 512;

    /// The name that `text` is, nothing in which is encoded any more.
    ///
    /// # Errors
    ///
    /// If it is too long, or could mean something else than one secret to whoever reads it next.
    pub(crate) fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > Self::MAX_LENGTH {
            return Err(NameError::Length);
        }
        if text.chars().any(|c| c == '\\' || c.is_control()) {
            return Err(NameError::Character);
        }
        if text
            .split('/')
            .any(|segment| matches!(segment, "" | "." | ".."))
        {
            return Err(NameError::Segment);
        }
        Ok(Self(text.into()))
    }

    /// The name at the end of a request's path, decoded once: `%2F` is `/`, and `%252F` is `%2F`.
    ///
    /// # Errors
    ///
    /// If it is not encoded rightly, else as [`SecretName::parse`].
    pub(crate) fn from_path(tail: &str) -> Result<Self, NameError> {
        // The decoder lets through what it does not understand; two readers may differ about it.
        let is_sound = |after: &str| {
            after.len() >= 2 && after.bytes().take(2).all(|byte| byte.is_ascii_hexdigit())
        };
        if !tail.split('%').skip(1).all(is_sound) {
            return Err(NameError::Encoding);
        }
        let decoded = percent_encoding::percent_decode_str(tail).decode_utf8();
        Self::parse(&decoded.map_err(|_| NameError::Encoding)?)
    }

    /// The name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The same name in small letters.
    #[must_use]
    pub(crate) fn lowercased(&self) -> Self {
        if self.0.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Self(self.0.to_ascii_lowercase().into())
        } else {
            self.clone()
        }
    }

    /// Whether the name is written as an ARN.
    pub(crate) fn is_arn(&self) -> bool {
        self.0.starts_with("arn:")
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl SecretValue ===

impl SecretValue {
    /// The value itself.
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The value itself, if it is text.
    pub(crate) fn expose_str(&self) -> Option<&str> {
        str::from_utf8(&self.0).ok()
    }

    /// The same memory as [`Bytes`], which can be shared and sliced.
    ///
    /// The last of the clones and slices of those `Bytes` to go overwrites them all. `Bytes` itself
    /// prints what it holds: it goes to the socket and never into a `{:?}`.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self.0)
    }
}

/// Takes the text over where it lies; no copy stays behind.
impl From<String> for SecretValue {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text.into_bytes()))
    }
}

/// Takes the bytes over where they lie; no copy stays behind.
impl From<Zeroizing<Vec<u8>>> for SecretValue {
    fn from(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}

/// Takes the bytes over where they lie; no copy stays behind.
impl From<Vec<u8>> for SecretValue {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(..)")
    }
}

// === impl SubjectToken ===

impl SubjectToken {
    /// The token itself.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// What the token says about itself, in JSON (RFC 7519 section 3), if it has the form of a JWT. Nobody has verified
    /// it: that is for whom the token is made out to. Without its signature it opens nothing.
    pub(crate) fn payload(&self) -> Option<Zeroizing<Vec<u8>>> {
        let mut parts = self.0.split('.');
        let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
        // With room for all of it, nothing is moved and left behind while it is decoded.
        let mut decoded = Zeroizing::new(Vec::with_capacity(payload.len()));
        URL_SAFE_NO_PAD.decode_vec(payload, &mut decoded).ok()?;
        Some(decoded)
    }
}

/// Takes the text over where it lies; no copy stays behind.
impl From<String> for SubjectToken {
    fn from(token: String) -> Self {
        Self(Zeroizing::new(token))
    }
}

impl fmt::Debug for SubjectToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubjectToken(..)")
    }
}

#[cfg(test)]
mod tests;
