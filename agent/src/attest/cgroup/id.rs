//! The two ids in a cgroup path: of the pod, and of its container.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;
use uuid::Uuid;

/// A pod's UID, as the API server wrote it into `metadata.uid`: lower-case, with dashes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PodUid(Uuid);

/// A container's id: 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ContainerId([u8; 32]);

/// A text that is not the id it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a {0}")]
pub(crate) struct InvalidId(pub(super) &'static str);

/// Where a UUID's four separators are in its text.
const SEPARATORS: [usize; 4] = [8, 13, 18, 23];

impl PodUid {
    /// The UID as 32 hex digits without dashes.
    pub(crate) fn simple(&self) -> impl fmt::Display + fmt::Debug + use<> {
        self.0.simple()
    }

    #[cfg(test)]
    pub(crate) const fn synthetic(byte: u8) -> Self {
        Self(Uuid::from_bytes([byte; 16]))
    }

    /// Parses the UID in a cgroup name, where the systemd driver writes `_` for `-`.
    ///
    /// A kubelet never mixes the two, so it did not write a mix.
    pub(super) fn from_name(text: &[u8]) -> Option<Self> {
        if text.len() != 36 || !matches!(text[SEPARATORS[0]], b'-' | b'_') {
            return None;
        }
        let mut digits = [0; 32];
        let mut filled = 0;
        for (at, &byte) in text.iter().enumerate() {
            if SEPARATORS.contains(&at) {
                if byte != text[SEPARATORS[0]] {
                    return None;
                }
            } else {
                digits[filled] = byte;
                filled += 1;
            }
        }
        hex(&digits).map(|bytes| Self(Uuid::from_bytes(bytes)))
    }
}

impl FromStr for PodUid {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Some(text)
            .filter(|text| !text.contains('_'))
            .and_then(|text| Self::from_name(text.as_bytes()))
            .ok_or(InvalidId("pod UID (36 lower-case characters with dashes)"))
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.as_hyphenated(), f)
    }
}

impl Serialize for PodUid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        serializer.serialize_str(self.0.as_hyphenated().encode_lower(&mut text))
    }
}

impl<'de> Deserialize<'de> for PodUid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl ContainerId {
    /// Parses the id in a container status, which follows the runtime's name (`containerd://<id>`).
    pub(crate) fn from_status(text: &str) -> Option<Self> {
        let (runtime, id) = text.split_once("://")?;
        if runtime.is_empty() {
            None
        } else {
            Self::from_name(id.as_bytes())
        }
    }

    #[cfg(test)]
    pub(crate) const fn synthetic(byte: u8) -> Self {
        Self([byte; 32])
    }

    /// Parses the id in a cgroup name, from which the runtime's prefix and suffix have been removed.
    pub(super) fn from_name(text: &[u8]) -> Option<Self> {
        hex(text).map(Self)
    }
}

impl FromStr for ContainerId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::from_name(text.as_bytes()).ok_or(InvalidId("container id (64 lower-case hex digits)"))
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(digits(&mut [0; 64], &self.0))
    }
}

impl Serialize for ContainerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(digits(&mut [0; 64], &self.0))
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Writes the lower-case hex digits of `bytes` into `text`, which has room for all of them.
fn digits<'a>(text: &'a mut [u8; 64], bytes: &[u8; 32]) -> &'a str {
    let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble & 15)];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[digit(byte >> 4), digit(*byte)]);
    }
    std::str::from_utf8(text).unwrap_or_default()
}

/// Parses exactly `2 * N` lower-case hex digits into `N` bytes.
pub(super) fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}
