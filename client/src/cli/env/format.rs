//! Writes variables so that every value comes back as it was.

use crate::cli::failure::Failure;
use crate::cli::variables::{Variable, Wanted};
use clap::ValueEnum;
use zeroize::Zeroizing;

/// How variables are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(super) enum Format {
    /// NAME='value' in lines; what programs read as .env files
    Dotenv,
    /// One JSON object
    Json,
    /// export NAME='value' in lines, for eval in any POSIX shell
    Shell,
}

impl Format {
    /// Whether variables of these names can be written in this format.
    pub(super) fn check(self, wanted: &[Wanted]) -> Result<(), Failure> {
        if self == Self::Json {
            return Ok(());
        }
        match wanted.iter().find(|wanted| !wanted.is_for_shells()) {
            None => Ok(()),
            Some(wanted) => Err(wanted.refused("letters, digits and _, no digit first")),
        }
    }

    pub(super) fn write<'a>(
        self,
        text: &mut Zeroizing<Vec<u8>>,
        variables: impl Iterator<Item = Variable<'a>>,
    ) -> Result<(), Failure> {
        let mut begin: &[u8] = b"{";
        for variable in variables {
            let value = variable.expose()?;
            match self {
                Self::Dotenv => {
                    text.extend_from_slice(variable.name.as_bytes());
                    text.push(b'=');
                    dotenv(text, value);
                    text.push(b'\n');
                }
                Self::Json => {
                    let value = variable.secret.value.expose_text().ok_or_else(|| {
                        Failure::other(format!(
                            "{}: its value is no text, which JSON needs: use --format shell",
                            variable.secret.name
                        ))
                    })?;
                    text.extend_from_slice(begin);
                    begin = b",";
                    // Writing to memory does not fail.
                    let _ = serde_json::to_writer(&mut **text, variable.name);
                    text.push(b':');
                    let _ = serde_json::to_writer(&mut **text, value);
                }
                Self::Shell => {
                    text.extend_from_slice(b"export ");
                    text.extend_from_slice(variable.name.as_bytes());
                    text.push(b'=');
                    shell(text, value);
                    text.push(b'\n');
                }
            }
        }
        if self == Self::Json {
            if begin == b"{" {
                text.extend_from_slice(begin);
            }
            text.extend_from_slice(b"}\n");
        }
        Ok(())
    }
}

/// Writes a value in single quotes, in which a shell changes nothing. A single quote goes outside of them, and so does a
/// backslash: fish takes both for an escape in there. In double quotes they mean the same to it and to POSIX shells.
fn shell(text: &mut Zeroizing<Vec<u8>>, value: &[u8]) {
    text.push(b'\'');
    for &byte in value {
        match byte {
            b'\'' => text.extend_from_slice(br#"'"'"'"#),
            b'\\' => text.extend_from_slice(br#"'"\\"'"#),
            _ => text.push(byte),
        }
    }
    text.push(b'\'');
}

/// Writes a value in single quotes if they suffice, since every reader of such files takes those literally; a value
/// with a single quote or a backslash in double quotes, with a backslash before `"`, `$`, `` ` `` and `\`, as a POSIX
/// shell reads them. A line break is itself in both.
fn dotenv(text: &mut Zeroizing<Vec<u8>>, value: &[u8]) {
    if !value.iter().any(|byte| matches!(byte, b'\'' | b'\\')) {
        return shell(text, value);
    }
    text.push(b'"');
    for &byte in value {
        if matches!(byte, b'"' | b'$' | b'`' | b'\\') {
            text.push(b'\\');
        }
        text.push(byte);
    }
    text.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;
    use crate::{Secret, Value};
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt as _;
    use std::process::Command;

    fn secret(value: &[u8]) -> Secret {
        let wire = r#"{"name":"a","value":"","version":"1","backend":"aws"}"#;
        let wire: protocol::Secret = serde_json::from_str(wire).expect("a secret");
        let mut secret = Secret::of(wire, None).expect("a secret");
        secret.value = Value::from(value.to_vec());
        secret
    }

    fn written(format: Format, value: &[u8]) -> Vec<u8> {
        let secret = secret(value);
        let variable = Variable {
            name: "A_1",
            secret: &secret,
        };
        let mut text = Zeroizing::new(Vec::new());
        format
            .write(&mut text, std::iter::once(variable))
            .expect("it is written");
        text.to_vec()
    }

    /// What a shell has in the variable after running the lines.
    fn read_by(program: &str, lines: &[u8]) -> Vec<u8> {
        let mut script = lines.to_vec();
        // Printed by the script: a value may end with a line break, which `$()` would drop.
        script.extend_from_slice(b"printf %s \"$A_1\"");
        let output = Command::new(program)
            .arg("-c")
            .arg(std::ffi::OsString::from_vec(script))
            .env_clear()
            .output()
            .expect("a shell");
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        output.stdout
    }

    /// Reads a line by the documented grammar, on its own: quotes of either kind, and in double quotes a backslash that
    /// takes the next character as it is.
    fn read_dotenv(line: &[u8]) -> Vec<u8> {
        let rest = line.strip_prefix(b"A_1=").expect("the name");
        let rest = rest.strip_suffix(b"\n").expect("a line");
        let (quote, rest) = rest.split_first().expect("a quote");
        let (last, rest) = rest.split_last().expect("a quote");
        assert_eq!(quote, last);
        let mut value = Vec::new();
        let mut bytes = rest.iter();
        while let Some(byte) = bytes.next() {
            assert_ne!(byte, quote, "a bare quote ends the value");
            match byte {
                b'\\' if *quote == b'"' => value.push(*bytes.next().expect("a character")),
                _ => value.push(*byte),
            }
        }
        value
    }

    /// Values that have caused somebody trouble.
    const TROUBLE: [&str; 16] = [
        "",
        " ",
        "'",
        "\"",
        "\\",
        "it's",
        "a'\\''b",
        "$HOME `id` $(id) ${A}",
        "a\nb\n",
        "\r\n\t",
        "a=b # no comment",
        "!! !x",
        "~ * ? [a] {a,b}",
        "\\n \\\\ \\\" \\'",
        "--",
        "\u{fc}\u{1f511}",
    ];

    #[test]
    fn shells_read_trouble_as_it_was() {
        for program in ["sh", "bash"] {
            for value in TROUBLE {
                for format in [Format::Shell, Format::Dotenv] {
                    let lines = written(format, value.as_bytes());
                    assert_eq!(
                        read_by(program, &lines),
                        value.as_bytes(),
                        "{program} {format:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_every_reader_takes_literally_is_in_single_quotes() {
        assert_eq!(written(Format::Dotenv, b"a b$\"\n"), b"A_1='a b$\"\n'\n");
        assert_eq!(written(Format::Dotenv, b"it's"), b"A_1=\"it's\"\n");
    }

    #[test]
    fn nothing_in_single_quotes_is_an_escape_to_fish() {
        let line = written(Format::Shell, br"a\'; id #\'");
        let right = r#"export A_1='a'"\\"''"'"'; id #'"\\"''"'"''"#;
        assert_eq!(line, [right.as_bytes(), b"\n"].concat());
    }

    #[test]
    fn a_value_with_nul_is_refused() {
        let secret = secret(b"a\0b");
        for format in [Format::Dotenv, Format::Json, Format::Shell] {
            let variable = Variable {
                name: "A_1",
                secret: &secret,
            };
            let mut text = Zeroizing::new(Vec::new());
            let failure = format
                .write(&mut text, std::iter::once(variable))
                .expect_err("it is refused");
            assert!(failure.text().contains("NUL"), "{failure:?}");
            assert!(!failure.text().contains("a\0b"));
        }
    }

    #[test]
    fn no_variables_are_an_empty_object() {
        let mut text = Zeroizing::new(Vec::new());
        let none = std::iter::empty();
        Format::Json.write(&mut text, none).expect("it is written");
        assert_eq!(*text, b"{}\n");
    }

    proptest! {
        #[test]
        fn json_survives_every_text(value in "[^\0]*") {
            let text = written(Format::Json, value.as_bytes());
            let read: std::collections::BTreeMap<String, String> =
                serde_json::from_slice(&text).expect("JSON");
            prop_assert_eq!(&read["A_1"], &value);
        }

        #[test]
        fn dotenv_survives_every_value(value in prop::collection::vec(1..=255_u8, 0..200)) {
            let line = written(Format::Dotenv, &value);
            prop_assert_eq!(read_dotenv(&line), value);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_shell_reads_every_value_as_it_was(
            value in prop::collection::vec(prop_oneof![
                1..=255_u8,
                prop::sample::select(b"'\"\\$`!\n\r\t #=~*".to_vec()),
            ], 0..60),
        ) {
            for format in [Format::Shell, Format::Dotenv] {
                prop_assert_eq!(&read_by("sh", &written(format, &value)), &value);
            }
        }
    }
}
