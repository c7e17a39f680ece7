//! Secrets and tokens, which must not be printed, and the names of secrets.
//!
//! A [`SecretName`] is checked once, when it is made. Values and tokens print without their content, cannot be cloned,
//! can only be read through `expose` or as shared bytes, and are overwritten with zeroes when they are dropped.

use std::{fmt, io, str, sync::Arc};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::Serialize;
use zeroize::Zeroizing;

/// The name of a secret as the application writes it: 1 to 512 bytes, slashes between its segments.
///
/// The backend decides which characters it may contain, and what the secret is called at the vault.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct SecretName(Arc<str>);

/// Why something is not a secret's name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum NameError {
    /// It holds a backslash, a NUL or another control character.
    #[error("a secret's name holds no backslash and no control characters")]
    Character,
    /// It is empty.
    #[error("a secret's name is missing")]
    Empty,
    /// Its percent-encoding is invalid, or does not decode to UTF-8.
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
    /// The maximum length of a name, in bytes: AWS's, the longest of all clouds.
    pub(crate) const MAX_LENGTH: usize = 512;

    /// Parses a name that is no longer encoded.
    ///
    /// # Errors
    ///
    /// If it is empty or too long, or if whoever reads it next could take it for anything but one secret.
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

    /// Parses the name at the end of a request's path, decoded once: `%2F` is `/`, and `%252F` is `%2F`.
    ///
    /// # Errors
    ///
    /// If its encoding is invalid, otherwise as [`SecretName::parse`].
    pub(crate) fn from_path(tail: &str) -> Result<Self, NameError> {
        // The decoder leaves invalid escapes as they are, and two readers may disagree about those.
        let is_sound = |after: &str| {
            after.len() >= 2 && after.bytes().take(2).all(|byte| byte.is_ascii_hexdigit())
        };
        if !tail.split('%').skip(1).all(is_sound) {
            return Err(NameError::Encoding);
        }
        let decoded = percent_encoding::percent_decode_str(tail).decode_utf8();
        Self::parse(&decoded.map_err(|_| NameError::Encoding)?)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the same name in lower case.
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

    /// Returns the same memory as [`Bytes`], which can be shared and sliced.
    ///
    /// The memory is overwritten when the last clone or slice of those `Bytes` is dropped. `Bytes` prints its content,
    /// so it may go to the socket but never into a `{:?}`.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self.0)
    }
}

/// Takes over the text in place; no copy is left behind.
impl From<String> for SecretValue {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text.into_bytes()))
    }
}

/// Takes over the bytes in place; no copy is left behind.
impl From<Zeroizing<Vec<u8>>> for SecretValue {
    fn from(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}

/// Takes over the bytes in place; no copy is left behind.
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

    /// Returns the token's claims, in JSON (RFC 7519 section 3), if it has the form of a JWT. They are not verified:
    /// that is up to the token's audience. Without the signature they open nothing.
    pub(crate) fn payload(&self) -> Option<Zeroizing<Vec<u8>>> {
        let mut parts = self.0.split('.');
        let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
        // Allocated in full, because a buffer that grows leaves copies behind.
        let mut decoded = Zeroizing::new(Vec::with_capacity(payload.len()));
        URL_SAFE_NO_PAD.decode_vec(payload, &mut decoded).ok()?;
        Some(decoded)
    }
}

/// Takes over the text in place; no copy is left behind.
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

/// Writes a value that holds secrets as JSON. It is measured first and then written into a buffer of that size, because a
/// buffer that grows leaves copies behind.
pub(crate) fn json(value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    struct Measure(usize);
    impl io::Write for Measure {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0 += text.len();
            Ok(text.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut measure = Measure(0);
    // Writing strings and numbers into memory cannot fail.
    let _ = serde_json::to_writer(&mut measure, value);
    let mut text = Zeroizing::new(Vec::with_capacity(measure.0));
    let _ = serde_json::to_writer(&mut *text, value);
    text
}

#[cfg(test)]
mod tests;
