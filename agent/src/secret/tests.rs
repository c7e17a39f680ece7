//! Names of every kind, and memory after a secret is dropped.

use std::{fs::File, os::unix::fs::FileExt};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

use super::*;

/// Long enough that the allocator's own bookkeeping covers only a part of it, short enough that the memory stays
/// mapped.
const SECRET_BYTES: usize = 4096;

/// Reads one place in this process's memory through proc(5), which needs no unsafe code.
struct Look {
    memory: File,
    address: u64,
    /// Allocated beforehand: what is allocated after a drop may lie where the secret lay.
    seen: Vec<u8>,
}

impl Look {
    fn at(secret: &[u8]) -> Self {
        let memory = File::open("/proc/self/mem").expect("own memory");
        Self {
            memory,
            address: secret.as_ptr() as u64,
            seen: vec![0; SECRET_BYTES],
        }
    }

    /// Whether a piece of the secret is still there; memory given back to the kernel holds nothing.
    fn finds(&mut self, piece: &[u8]) -> bool {
        self.memory
            .read_exact_at(&mut self.seen, self.address)
            .is_ok()
            && self.seen.windows(piece.len()).any(|window| window == piece)
    }
}

/// A text that nothing else in this process holds, and a piece of it.
fn secret() -> (String, &'static [u8]) {
    // Split in two, so that no constant of the program contains all of it.
    (
        "hunter2-".repeat(SECRET_BYTES / 8),
        b"hunter2-hunter2-hunter2-",
    )
}

#[test]
fn a_dropped_value_leaves_nothing_in_memory() {
    let (text, piece) = secret();
    let value = SecretValue::from(text);
    let mut look = Look::at(value.expose());
    assert!(look.finds(piece), "the wrong place");
    drop(value);
    assert!(!look.finds(piece));
}

#[test]
fn a_dropped_token_leaves_nothing_in_memory() {
    let (text, piece) = secret();
    let token = SubjectToken::from(text);
    let mut look = Look::at(token.expose().as_bytes());
    assert!(look.finds(piece), "the wrong place");
    drop(token);
    assert!(!look.finds(piece));
}

#[test]
fn shared_bytes_stay_until_the_last_of_them_goes_and_then_leave_nothing() {
    let (text, piece) = secret();
    let body = SecretValue::from(Zeroizing::new(text.into_bytes())).into_bytes();
    let mut look = Look::at(&body);
    let part = body.slice(100..200);
    drop(body.clone());
    drop(body);
    assert!(look.finds(piece), "one of them is still in use");
    assert!(part.starts_with(b"er2-hunter2-"));
    drop(part);
    assert!(!look.finds(piece));
}

#[test]
fn secrets_are_taken_over_without_a_copy() {
    let text = "swordfish".to_owned();
    let address = text.as_ptr();
    assert_eq!(SecretValue::from(text).expose().as_ptr(), address);
    let bytes = Zeroizing::new(b"swordfish".to_vec());
    let address = bytes.as_ptr();
    assert_eq!(SecretValue::from(bytes).into_bytes().as_ptr(), address);
}

#[test]
fn secrets_print_as_nothing() {
    let value = SecretValue::from("swordfish".to_owned());
    let token = SubjectToken::from("swordfish".to_owned());
    let printed = format!("{value:?} {token:?} {:#?}", (&value, &token));
    assert!(
        printed.starts_with("SecretValue(..) SubjectToken(..)"),
        "{printed}"
    );
    assert!(
        !printed.contains("sword") && !printed.contains("115"),
        "{printed}"
    );
}

#[test]
fn a_value_is_text_only_if_it_is_utf_8() {
    assert_eq!(
        SecretValue::from("gr\u{fc}n".to_owned()).expose_str(),
        Some("gr\u{fc}n")
    );
    let binary = SecretValue::from(vec![0xff, 0x00]);
    assert_eq!(
        (
            binary.expose_str(),
            binary.expose().len(),
            binary.expose().is_empty()
        ),
        (None, 2, false)
    );
    assert!(SecretValue::from(String::new()).expose().is_empty());
}

#[test]
fn names_with_slashes_and_dots_in_them_are_names() {
    for text in [
        "a",
        "prod/database-password",
        "a/b/c",
        "..a",
        "a..",
        "...",
        "a.b",
        "\u{e9}t\u{e9}",
    ] {
        assert_eq!(
            SecretName::parse(text).map(|name| name.to_string()),
            Ok(text.to_owned())
        );
    }
    assert!(SecretName::parse(&"n".repeat(512)).is_ok());
}

#[test]
fn names_that_could_mean_something_else_are_refused() {
    let refused = [
        ("", NameError::Empty),
        ("/", NameError::Segment),
        ("/a", NameError::Segment),
        ("a/", NameError::Segment),
        ("a//b", NameError::Segment),
        (".", NameError::Segment),
        ("..", NameError::Segment),
        ("a/../b", NameError::Segment),
        ("a/./b", NameError::Segment),
        ("a\\b", NameError::Character),
        ("a\0", NameError::Character),
        ("a\nb", NameError::Character),
        ("a\u{7f}", NameError::Character),
        ("a\u{85}b", NameError::Character),
    ];
    for (text, error) in refused {
        assert_eq!(SecretName::parse(text), Err(error), "{text:?}");
    }
    assert_eq!(SecretName::parse(&"n".repeat(513)), Err(NameError::Length));
    // 512 characters, but more bytes.
    assert_eq!(
        SecretName::parse(&"\u{fc}".repeat(512)),
        Err(NameError::Length)
    );
}

#[test]
fn an_arn_is_known_by_its_beginning() {
    let arn = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:prod/db-AbCdEf";
    assert!(SecretName::parse(arn).expect("a name").is_arn());
    assert!(
        SecretName::from_path(&arn.replace(':', "%3A"))
            .expect("a name")
            .is_arn()
    );
    assert!(!SecretName::parse("warn:aws").expect("a name").is_arn());
    assert!(!SecretName::parse("arn/aws").expect("a name").is_arn());
}

#[test]
fn a_path_is_decoded_exactly_once() {
    let name = |tail| SecretName::from_path(tail).map(|name| name.to_string());
    assert_eq!(name("prod%2Fdb"), Ok("prod/db".to_owned()));
    assert_eq!(name("prod%252Fdb"), Ok("prod%2Fdb".to_owned()));
    assert_eq!(name("a+b"), Ok("a+b".to_owned()));
    assert_eq!(name("%2e%2E"), Err(NameError::Segment));
    assert_eq!(name("a%2F..%2Fb"), Err(NameError::Segment));
    assert_eq!(name("a%2F%2Fb"), Err(NameError::Segment));
    assert_eq!(name("a%00"), Err(NameError::Character));
    assert_eq!(name("a%5Cb"), Err(NameError::Character));
}

#[test]
fn a_path_that_is_encoded_wrongly_is_refused() {
    for tail in [
        "%",
        "a%",
        "a%2",
        "a%zz",
        "a%%41",
        "%2",
        "%ff",
        "%C3",
        "%c0%af",
        "a%\u{fc}1",
    ] {
        assert_eq!(
            SecretName::from_path(tail),
            Err(NameError::Encoding),
            "{tail:?}"
        );
    }
}

proptest! {
    #[test]
    fn a_name_survives_its_way_through_a_path(text in "\\PC{0,40}|([a-c./%\\\\]|\\.\\.){0,12}") {
        let encoded = utf8_percent_encode(&text, NON_ALPHANUMERIC).to_string();
        prop_assert_eq!(SecretName::from_path(&encoded), SecretName::parse(&text));
    }

    #[test]
    fn what_is_not_encoded_means_the_same_raw_and_decoded(text in "[a-z./-]{0,20}") {
        prop_assert_eq!(SecretName::from_path(&text), SecretName::parse(&text));
    }

    #[test]
    fn no_path_gives_a_name_that_parse_refuses(tail in "([a-b./]|%2[eEfF]|%5[cC]|%0[0-9]|%25){0,16}") {
        if let Ok(name) = SecretName::from_path(&tail) {
            prop_assert_eq!(SecretName::parse(name.as_str()), Ok(name.clone()));
            prop_assert!(!name.as_str().split('/').any(|s| s.is_empty() || s == "." || s == ".."));
        }
    }

    #[test]
    fn equal_names_are_equal_and_others_are_not(a in "[a-b/]{1,4}", b in "[a-b/]{1,4}") {
        if let (Ok(one), Ok(other)) = (SecretName::parse(&a), SecretName::parse(&b)) {
            prop_assert_eq!(one == other, a == b);
        }
    }
}
