//! A line of the trail: what it says, and how it is written.
//!
//! Its JSON is assembled here. A line is written for each secret read, and a serializer that inspects every byte of
//! every name and text takes an eighth of a warm read's time. It is used only for what needs escaping.

use crate::attest::cgroup::{ContainerId, PodUid};
use serde::Serialize;

/// What happened, in the documented fields.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Serialize))]
pub(crate) struct Line<'a> {
    /// The trail's own fields, which it fills in itself.
    pub(crate) time: &'a str,
    pub(crate) target: &'a str,
    pub(crate) boot_id: &'a str,
    pub(crate) seq: u64,
    pub(crate) request_id: &'a str,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) service_account: Option<&'a str>,
    pub(crate) pod: Option<&'a str>,
    pub(crate) pod_uid: Option<PodUid>,
    pub(crate) container_id: Option<ContainerId>,
    pub(crate) container_confirmed: bool,
    /// Absent if no process made the request; so is the uid.
    pub(crate) pid: Option<i32>,
    pub(crate) uid: Option<u32>,
    /// The pod's volume for whose files it was read, by its name in the pod.
    #[cfg_attr(test, serde(skip_serializing_if = "Option::is_none"))]
    pub(crate) volume: Option<&'a str>,
    pub(crate) backend: Option<&'a str>,
    pub(crate) role: Option<&'a str>,
    pub(crate) secret: &'a str,
    pub(crate) version: Option<&'a str>,
    pub(crate) outcome: &'a str,
    pub(crate) code: Option<&'a str>,
    /// Why the peer is not a workload; never in the answer.
    pub(crate) reason: Option<&'a str>,
    pub(crate) cache: &'a str,
    pub(crate) shared_with: Option<&'a str>,
    pub(crate) cloud_request_id: Option<&'a str>,
    pub(crate) duration_ms: f64,
}

/// A JSON object that is being written.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    /// What precedes the next member.
    mark: u8,
}

impl Line<'_> {
    /// Appends the line as a JSON object.
    ///
    /// # Errors
    ///
    /// As in serde_json.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        let mut object = Object { out, mark: b'{' };
        object.text("time", self.time)?;
        object.text("target", self.target)?;
        object.text("boot_id", self.boot_id)?;
        object.value("seq", self.seq)?;
        object.text("request_id", self.request_id)?;
        object.text("namespace", self.namespace)?;
        object.text("service_account", self.service_account)?;
        object.text("pod", self.pod)?;
        object.value("pod_uid", self.pod_uid)?;
        object.value("container_id", self.container_id)?;
        object.value("container_confirmed", self.container_confirmed)?;
        object.value("pid", self.pid)?;
        object.value("uid", self.uid)?;
        if self.volume.is_some() {
            object.text("volume", self.volume)?;
        }
        object.text("backend", self.backend)?;
        object.text("role", self.role)?;
        object.text("secret", self.secret)?;
        object.text("version", self.version)?;
        object.text("outcome", self.outcome)?;
        object.text("code", self.code)?;
        object.text("reason", self.reason)?;
        object.text("cache", self.cache)?;
        object.text("shared_with", self.shared_with)?;
        object.text("cloud_request_id", self.cloud_request_id)?;
        object.value("duration_ms", self.duration_ms)?;
        object.out.push(b'}');
        Ok(())
    }
}

impl Object<'_> {
    fn text<'v>(
        &mut self,
        name: &'static str,
        text: impl Into<Option<&'v str>>,
    ) -> serde_json::Result<()> {
        match text.into() {
            Some(text) if is_plain(text) => {
                self.name(name);
                self.out.push(b'"');
                self.out.extend_from_slice(text.as_bytes());
                self.out.push(b'"');
                Ok(())
            }
            Some(text) => {
                self.name(name);
                self.escaped(text)
            }
            None => self.value(name, None::<&str>),
        }
    }

    /// Also escapes what JSON need not escape.
    fn escaped(&mut self, text: &str) -> serde_json::Result<()> {
        for c in serde_json::to_string(text)?.chars() {
            if is_misleading(c) {
                let escape = format!("\\u{:04x}", u32::from(c));
                self.out.extend_from_slice(escape.as_bytes());
            } else {
                self.out
                    .extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        Ok(())
    }

    fn value(&mut self, name: &'static str, value: impl Serialize) -> serde_json::Result<()> {
        self.name(name);
        serde_json::to_writer(&mut *self.out, &value)
    }

    /// Names are constants that need no escaping.
    fn name(&mut self, name: &'static str) {
        self.out.extend_from_slice(&[self.mark, b'"']);
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.mark = b',';
    }
}

/// Whether the text needs no escaping (RFC 8259, section 7). Anything but ASCII gets a closer look.
fn is_plain(text: &str) -> bool {
    // Always to the end of the text, so that the compiler can check many bytes at once.
    text.bytes().fold(true, |plain, byte| {
        plain & matches!(byte, 0x20..0x7f) & (byte != b'"') & (byte != b'\\')
    })
}

/// Whether JSON allows the character unescaped but it can disguise a line: terminals obey it (DEL and the second set of
/// ISO 6429), it reverses the direction of what follows (Unicode's bidirectional controls), or some readers take it for
/// the end of a line.
fn is_misleading(c: char) -> bool {
    matches!(c,
        '\u{7f}'..='\u{9f}'
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::option;
    use proptest::prelude::*;

    /// Texts, many of which need escaping.
    const TEXTS: &str =
        "[a-c\"\\\\/\n\u{0}\u{1f} \u{7f}\u{9b}\u{a0}é\u{2028}\u{202e}\u{2069}\u{61c}]{0,12}";

    proptest! {
        #[test]
        fn a_line_is_what_a_serializer_would_write(
            texts in prop::array::uniform6(TEXTS),
            maybe in prop::array::uniform11(option::of(TEXTS)),
            numbers in any::<(u64, Option<i32>, Option<u32>, bool)>(),
            duration_ms in 0.0..1e9_f64,
            has_ids in any::<bool>(),
        ) {
            let [time, target, boot_id, request_id, secret, outcome] = texts.each_ref().map(String::as_str);
            let maybe = maybe.each_ref().map(Option::as_deref);
            let (seq, pid, uid, container_confirmed) = numbers;
            let line = Line {
                time, target, boot_id, seq, request_id,
                namespace: maybe[0],
                service_account: maybe[1],
                pod: maybe[2],
                pod_uid: has_ids.then(|| PodUid::synthetic(0xa5)),
                container_id: has_ids.then(|| ContainerId::synthetic(0x5a)),
                container_confirmed, pid, uid,
                volume: maybe[10],
                backend: maybe[3],
                role: maybe[4],
                secret,
                version: maybe[5],
                outcome,
                code: maybe[6],
                reason: maybe[7],
                cache: time,
                shared_with: maybe[8],
                cloud_request_id: maybe[9],
                duration_ms,
            };
            let mut written = Vec::new();
            line.write(&mut written).expect("it is written");
            let written = String::from_utf8(written).expect("text");
            prop_assert!(!written.chars().any(char::is_control), "{}", written);
            let as_serialized = serde_json::to_string(&line).expect("it is written");
            let mut expected = as_serialized;
            for (character, escape) in [
                ('\u{7f}', "\\u007f"), ('\u{9b}', "\\u009b"), ('\u{2028}', "\\u2028"),
                ('\u{202e}', "\\u202e"), ('\u{2069}', "\\u2069"), ('\u{61c}', "\\u061c"),
            ] {
                expected = expected.replace(character, escape);
            }
            prop_assert_eq!(written, expected);
        }
    }
}
