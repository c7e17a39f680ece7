//! The text of a JSON string that is a secret, or part of one.
//!
//! serde_json unescapes into its own buffer, which grows, moves and is freed without being wiped: copies of a private
//! key would stay in freed memory. Here the text is written once, into memory that is wiped.

use std::str::Chars;
use zeroize::Zeroizing;

/// Returns the text of `json`, which is one valid JSON value; nothing if it is not a string, or not valid Unicode (half
/// a surrogate pair, RFC 8259 section 8.2).
pub(super) fn text(json: &str) -> Option<Zeroizing<String>> {
    let escaped = json.strip_prefix('"')?.strip_suffix('"')?;
    // Unescaped text is never longer, so the buffer does not move.
    let mut text = Zeroizing::new(String::with_capacity(escaped.len()));
    let mut rest = escaped.chars();
    while let Some(next) = rest.next() {
        text.push(match next {
            '\\' => character(&mut rest)?,
            plain => plain,
        });
    }
    Some(text)
}

/// Reads the character that an escape stands for, after its backslash.
fn character(rest: &mut Chars<'_>) -> Option<char> {
    Some(match rest.next()? {
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => {
            let first = unit(rest)?;
            let second = match first {
                0xd800..=0xdbff => Some(rest.as_str().strip_prefix("\\u").and_then(|low| {
                    *rest = low.chars();
                    unit(rest)
                })?),
                _ => None,
            };
            let units = [first].into_iter().chain(second);
            return char::decode_utf16(units).next()?.ok();
        }
        itself => itself,
    })
}

/// Reads four hexadecimal digits, one unit of UTF-16.
fn unit(rest: &mut Chars<'_>) -> Option<u16> {
    let digits = rest.as_str().get(..4)?;
    *rest = rest.as_str().get(4..)?.chars();
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_escape_stands_for_its_character() {
        for (json, expected) in [
            (r#""""#, Some("")),
            (r#""-----BEGIN\nMII\/+\r\n""#, Some("-----BEGIN\nMII/+\r\n")),
            (r#""\"\\\b\f\t""#, Some("\"\\\u{8}\u{c}\t")),
            (r#""\u0041\u00e9\uD83D\uDE00ü""#, Some("Aé😀ü")),
            (r#""\ud83d""#, None),
            (r#""\ud83d!""#, None),
            (r#""\ud83d\u0041""#, None),
            (r#""\ude00""#, None),
            ("7", None),
            ("null", None),
            (r#"{"a":"b"}"#, None),
        ] {
            assert_eq!(
                text(json).as_deref().map(String::as_str),
                expected,
                "{json}"
            );
        }
    }

    proptest! {
        #[test]
        fn it_reads_what_serde_json_writes(value: String) {
            let json = serde_json::to_string(&value).expect("JSON");
            let text = text(&json);
            prop_assert_eq!(text.as_deref(), Some(&value));
        }

        #[test]
        fn it_reads_what_serde_json_reads(units in prop::collection::vec(any::<u16>(), 0..8), plain in "[a-zé😀/]{0,4}") {
            let escapes: String = units.iter().map(|unit| format!("\\u{unit:04X}{plain}")).collect();
            let json = format!("\"{escapes}\"");
            let expected = serde_json::from_str::<String>(&json).ok();
            let text = text(&json);
            prop_assert_eq!(text.as_deref(), expected.as_ref());
        }
    }
}
