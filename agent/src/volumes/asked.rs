//! Parses the volume's attribute `secrets`: which files a pod wants in its volume.

use crate::csi::control::{Failure, FailureKind};
use crate::secret::SecretName;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashSet;

/// The attribute's name in errors.
const ATTRIBUTE: &str = "volumeAttributes.secrets";

/// The most files that a volume may hold.
const MOST_FILES: usize = 32;

/// The longest file name, in bytes: the kubelet's limit for the keys of Secrets.
const LONGEST_NAME: usize = 253;

/// What a file's mode may allow: reading, by owner, group and others.
const READABLE: u32 = 0o444;

/// Always readable by the agent, which compares the files with what the vault has.
const BY_OWNER: u32 = 0o400;

/// The mode of files that state none: readable by the pod's `fsGroup`.
const DEFAULT_MODE: u32 = 0o440;

/// A file that a pod wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FileAsked {
    /// The secret to put in it.
    pub(super) secret: SecretName,
    pub(super) backend: Option<String>,
    /// The member of the secret, if not the whole secret.
    pub(super) key: Option<String>,
    /// The file's name in the volume.
    pub(super) name: String,
    pub(super) mode: u32,
    /// Whether it may be absent.
    pub(super) optional: bool,
}

/// An entry as written, if it is more than a name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    file: Option<String>,
    key: Option<String>,
    backend: Option<String>,
    mode: Option<String>,
    #[serde(default)]
    optional: bool,
}

/// Parses the attribute into the files that it asks for.
///
/// # Errors
///
/// If it is wrong; the text names the entry and the key.
pub(super) fn parse(attribute: &str) -> Result<Vec<FileAsked>, Failure> {
    // Raw, since a `Value` would keep one of two equal keys and say nothing.
    let entries: Vec<&RawValue> = serde_json::from_str(attribute)
        .map_err(|error| wrong(ATTRIBUTE, &format!("is no list in JSON ({error})")))?;
    if entries.is_empty() || entries.len() > MOST_FILES {
        let text = format!("has {} entries, not 1 to {MOST_FILES}", entries.len());
        return Err(wrong(ATTRIBUTE, &text));
    }
    let mut names = HashSet::new();
    let mut files = Vec::with_capacity(entries.len());
    for (number, entry) in entries.into_iter().enumerate() {
        let place = format!("{ATTRIBUTE}[{number}]");
        let file = FileAsked::parse(entry, &place)?;
        if !names.insert(file.name.clone()) {
            let text = format!("is {:?}, as another entry has it", file.name);
            return Err(wrong(&format!("{place}.file"), &text));
        }
        files.push(file);
    }
    Ok(files)
}

// === impl FileAsked ===

impl FileAsked {
    fn parse(entry: &RawValue, place: &str) -> Result<Self, Failure> {
        let entry = match serde_json::from_str(entry.get()) {
            Ok(name) => Written {
                name,
                file: None,
                key: None,
                backend: None,
                mode: None,
                optional: false,
            },
            Err(_) => serde_json::from_str(entry.get())
                .map_err(|error| wrong(place, &format!("is no name and no entry: {error}")))?,
        };
        let of = |key: &str| format!("{place}.{key}");
        let secret = SecretName::parse(&entry.name)
            .map_err(|error| wrong(&of("name"), &format!("is wrong: {error}")))?;
        let last = || secret.as_str().rsplit('/').next().unwrap_or_default();
        let name = entry.file.unwrap_or_else(|| last().to_owned());
        check_file_name(&name).map_err(|text| wrong(&of("file"), text))?;
        let mode = match &entry.mode {
            None => DEFAULT_MODE,
            Some(text) => mode(text).ok_or_else(|| {
                let text =
                    "is no mode of a file to read, such as \"0440\": from \"0400\" to \"0444\"";
                wrong(&of("mode"), text)
            })?,
        };
        Ok(Self {
            secret,
            backend: entry.backend,
            key: entry.key,
            name,
            mode,
            optional: entry.optional,
        })
    }
}

/// Allows only a name in the volume itself, and none that the agent or the swap of files needs.
fn check_file_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > LONGEST_NAME {
        Err("is no name of 1 to 253 bytes")
    } else if name.contains('/') || name.chars().any(char::is_control) {
        Err("holds a slash or a control character: a file lies in the volume itself")
    } else if name == "." || name.starts_with("..") {
        Err("is \".\", or begins with \"..\"")
    } else if name.starts_with("agent.sock") || name.starts_with(".agent.sock") {
        Err("is the socket's, or begins like it")
    } else {
        Ok(())
    }
}

fn mode(text: &str) -> Option<u32> {
    let digits = text.len() <= 4 && text.bytes().all(|digit| digit.is_ascii_digit());
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| digits)?;
    (mode & !READABLE == 0 && mode & BY_OWNER != 0).then_some(mode)
}

fn wrong(place: &str, text: &str) -> Failure {
    Failure::new(FailureKind::Invalid, format!("{place} {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(attribute: &str) -> String {
        let failure = parse(attribute).expect_err(attribute);
        assert_eq!(failure.kind, FailureKind::Invalid, "{attribute}");
        failure.text
    }

    #[test]
    fn a_name_alone_is_a_file_called_like_its_last_part() {
        let files = parse(r#"["shop/database-password", "flat"]"#).expect("it is right");
        let [password, flat] = &files[..] else {
            panic!("{files:?}");
        };
        assert_eq!(password.secret.as_str(), "shop/database-password");
        assert_eq!(
            (&*password.name, password.mode),
            ("database-password", 0o440)
        );
        assert!(!password.optional && password.key.is_none() && password.backend.is_none());
        assert_eq!(flat.name, "flat");
    }

    #[test]
    fn an_entry_says_file_key_backend_mode_and_whether_it_may_be_absent() {
        let files = parse(
            r#"[
                {"name": "shop/tls", "key": "crt", "file": "tls.crt", "mode": "0444"},
                {"name": "shop/tls", "key": "key", "file": "tls.key", "mode": "400", "backend": "other", "optional": true}
            ]"#,
        )
        .expect("it is right");
        assert_eq!(
            files[1],
            FileAsked {
                secret: SecretName::parse("shop/tls").expect("a name"),
                backend: Some("other".into()),
                key: Some("key".into()),
                name: "tls.key".into(),
                mode: 0o400,
                optional: true,
            }
        );
        assert_eq!((files[0].mode, files[0].optional), (0o444, false));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_entry_and_key() {
        for (attribute, place) in [
            ("", "volumeAttributes.secrets is no list in JSON"),
            ("- a", "volumeAttributes.secrets is no list in JSON"),
            ("{}", "volumeAttributes.secrets is no list in JSON"),
            ("[]", "volumeAttributes.secrets has 0 entries"),
            ("[1]", "volumeAttributes.secrets[0] is no name"),
            (
                "[\"a\", {}]",
                "volumeAttributes.secrets[1] is no name and no entry: missing field `name`",
            ),
            (
                "[{\"name\": \"a\", \"path\": \"b\"}]",
                "volumeAttributes.secrets[0] is no name and no entry: unknown field `path`",
            ),
            (
                "[{\"name\": \"a\", \"name\": \"b\"}]",
                "volumeAttributes.secrets[0] is no name and no entry: duplicate field `name`",
            ),
            ("[\"a/../b\"]", "volumeAttributes.secrets[0].name is wrong"),
            ("[\"\"]", "volumeAttributes.secrets[0].name is wrong"),
            (
                "[\"a/x\", \"b/x\"]",
                "volumeAttributes.secrets[1].file is \"x\"",
            ),
        ] {
            let text = refused(attribute);
            assert!(text.starts_with(place), "{attribute}: {text}");
        }
        let many = format!("[{}\"a\"]", "\"a\",".repeat(32));
        assert!(refused(&many).contains("33 entries"));
    }

    #[test]
    fn a_file_is_in_the_volume_itself_and_takes_nothing_that_is_the_agents() {
        let long = "x".repeat(254);
        for file in [
            "",
            ".",
            "..",
            "..data",
            "..x",
            "a/b",
            "/etc/passwd",
            "a\\u0000",
            "a\\n",
            "agent.sock",
            "agent.sock.x",
            ".agent.sock.0",
            &long,
        ] {
            let text = refused(&format!(r#"[{{"name": "a", "file": "{file}"}}]"#));
            assert!(
                text.starts_with("volumeAttributes.secrets[0].file "),
                "{file}: {text}"
            );
        }
        for file in [".env", "a.b", "x@y", "a b"] {
            parse(&format!(r#"[{{"name": "a", "file": "{file}"}}]"#)).expect(file);
        }
        // The secret's own name may be one of these, too.
        assert!(refused(r#"["shop/agent.sock"]"#).contains(".file "));
    }

    #[test]
    fn a_mode_is_octal_digits_and_lets_nobody_write_or_execute() {
        for mode in ["0400", "0440", "0404", "0444", "444"] {
            parse(&format!(r#"[{{"name": "a", "mode": "{mode}"}}]"#)).expect(mode);
        }
        for mode in [
            "\"0040\"",
            "\"0600\"",
            "\"0640\"",
            "\"0500\"",
            "\"4440\"",
            "\"0445\"",
            "\"\"",
            "\"rw\"",
            "\"+440\"",
            "\"0o440\"",
            "\"00440\"",
            "288",
            "440",
        ] {
            let text = refused(&format!(r#"[{{"name": "a", "mode": {mode}}}]"#));
            assert!(text.contains("secrets[0]"), "{mode}: {text}");
        }
    }
}
