//! A secret as a program gets it: the value does not print, and is wiped when it is dropped.

use crate::error::ClientError;
use crate::protocol::{self, Encoding, in_a_tag};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::fmt;
use zeroize::Zeroizing;

/// One version of a secret.
#[derive(Debug)]
#[non_exhaustive]
pub struct Secret {
    /// The name in the request.
    pub name: String,
    /// The value.
    pub value: Value,
    /// The backend's id of this version.
    pub version: String,
    /// The name of the backend that holds the secret.
    pub backend: String,
    /// What to pass when [waiting](crate::Client::wait) for another version.
    pub tag: Tag,
}

/// The value of a secret. It has no `Display`, its `Debug` shows nothing, it is not `Clone`, and its memory is
/// overwritten when it is dropped.
///
/// ```
/// use latchkey_client::Value;
///
/// let value = Value::from(b"hunter2".to_vec());
/// assert_eq!(format!("{value:?}"), "Value(7 bytes)");
/// assert_eq!(value.expose(), b"hunter2");
/// assert_eq!(value.expose_text(), Some("hunter2"));
/// assert_eq!(Value::from(vec![0xff]).expose_text(), None);
/// ```
pub struct Value(Zeroizing<Vec<u8>>);

/// Which representation of a secret a program has: the `ETag` of the answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tag(pub(crate) String);

// === impl Secret ===

impl Secret {
    /// Decodes a secret from the wire, with the tag that came with it.
    pub(crate) fn of(mut wire: protocol::Secret, tag: Option<String>) -> Result<Self, ClientError> {
        let text = Zeroizing::new(std::mem::take(&mut wire.value));
        let value = match wire.encoding {
            None => Value::from(Zeroizing::new(text.as_bytes().to_vec())),
            Some(Encoding::Base64) => {
                // Reserved at full size: growing would leave half-written copies behind.
                let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
                BASE64
                    .decode_vec(text.as_bytes(), &mut bytes)
                    .map_err(|_| ClientError::Unreadable("its base64 is broken".to_owned()))?;
                Value(bytes)
            }
        };
        // A batch has no tags; the tag of a whole secret is its version.
        let tag = tag.map_or_else(|| Tag::of_version(&wire.version), Tag);
        Ok(Self {
            name: std::mem::take(&mut wire.name),
            value,
            version: std::mem::take(&mut wire.version),
            backend: std::mem::take(&mut wire.backend),
            tag,
        })
    }
}

// === impl Tag ===

impl Tag {
    /// The tag that the agent gives to a whole secret of this version.
    fn of_version(version: &str) -> Self {
        Self(format!("\"{}\"", in_a_tag(version)))
    }
}

// === impl Value ===

impl Value {
    /// The bytes. Search for this word to find every use of a secret in a program.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, if they are UTF-8.
    #[must_use]
    pub fn expose_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it is `""`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl From<Zeroizing<Vec<u8>>> for Value {
    fn from(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(json: &str) -> protocol::Secret {
        serde_json::from_str(json).expect("a secret")
    }

    #[test]
    fn a_secret_is_what_the_wire_says_and_does_not_print_its_value() {
        let text = wire(r#"{"name":"n","value":"hunter2","version":"v","backend":"aws","new":1}"#);
        let secret = Secret::of(text, Some("\"v;key=k\"".to_owned())).expect("a secret");
        assert_eq!(secret.value.expose_text(), Some("hunter2"));
        assert_eq!(secret.tag, Tag("\"v;key=k\"".to_owned()));
        let shown = format!("{secret:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn a_binary_secret_is_its_bytes() {
        let binary =
            r#"{"name":"n","value":"AP8=","encoding":"base64","version":"v","backend":"aws"}"#;
        let secret = Secret::of(wire(binary), None).expect("a secret");
        assert_eq!(secret.value.expose(), [0, 0xff]);
        assert_eq!(secret.value.expose_text(), None);
        assert_eq!(secret.tag, Tag("\"v\"".to_owned()));
        let broken = binary.replace("AP8=", "A?");
        assert!(Secret::of(wire(&broken), None).is_err());
    }
}
