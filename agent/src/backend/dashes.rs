//! Names at vaults that allow no slash, Google Cloud's and Azure's: a slash is written `--` there.
//!
//! So that no two names lead to one secret, no segment may begin or end with a dash or contain two in a row: then each
//! `--` at the vault is a slash, and nothing else is.

use crate::secret::SecretName;

/// How names are written at one kind of vault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dashes {
    /// Whose vault it is, for people.
    pub whose: &'static str,
    /// The characters that a name may contain in addition to letters, digits and dashes.
    pub others: &'static str,
    /// Whether the vault ignores case; then names are written in lower case.
    pub ignores_case: bool,
    /// The maximum length of a name at the vault, with its prefix, in characters.
    pub limit: usize,
    /// The longest prefix, in characters, which leaves some for names.
    pub prefix_limit: usize,
}

/// Google Cloud Secret Manager (its API's `secretId`).
pub(crate) const GCP: Dashes = Dashes {
    whose: "Google Cloud",
    others: "_",
    ignores_case: false,
    limit: 255,
    prefix_limit: 128,
};

/// Azure Key Vault (its "object identifiers").
pub(crate) const AZURE: Dashes = Dashes {
    whose: "Azure",
    others: "",
    ignores_case: true,
    limit: 127,
    prefix_limit: 100,
};

impl Dashes {
    /// Returns `name` behind `prefix`, both as the application writes them, in the vault's form.
    ///
    /// # Errors
    ///
    /// If the vault can hold no secret of that name.
    pub(crate) fn write(&self, prefix: &str, name: &SecretName) -> Result<String, String> {
        self.check_characters(name.as_str())?;
        let mistakable =
            |part: &str| part.starts_with('-') || part.ends_with('-') || part.contains("--");
        if name.as_str().split('/').any(mistakable) {
            return Err(format!(
                "at {} a slash is written --, so no part of a name may begin or end with - or hold --",
                self.whose
            ));
        }
        let written = self.write_prefix(prefix)? + &self.with_dashes(name.as_str());
        if written.len() > self.limit {
            return Err(format!(
                "with its prefix the name is longer than the {} characters that {} allows, / as two",
                self.limit, self.whose
            ));
        }
        Ok(written)
    }

    /// Returns `prefix` in the vault's form.
    ///
    /// # Errors
    ///
    /// If the vault does not allow all of its characters.
    pub(crate) fn write_prefix(&self, prefix: &str) -> Result<String, String> {
        self.check_characters(prefix)?;
        Ok(self.with_dashes(prefix))
    }

    /// Returns the name that is written as `written` behind `prefix`, if there is one: not every secret has a name
    /// here.
    #[must_use]
    pub(crate) fn read(&self, prefix: &str, written: &str) -> Option<SecretName> {
        let rest = written.strip_prefix(&*self.write_prefix(prefix).ok()?)?;
        let name = SecretName::parse(&rest.replace("--", "/")).ok()?;
        // Only a name that is written back the same: `a---b` would be read in one way and written in another.
        (self.write(prefix, &name).ok()? == written).then_some(name)
    }

    /// Whether `text` may precede every name, as the application writes names.
    pub(crate) fn takes_prefix(&self, text: &str) -> bool {
        text.len() <= self.prefix_limit
            && self.check_characters(text).is_ok()
            && !text.starts_with('/')
            && !text.contains("//")
    }

    fn with_dashes(&self, text: &str) -> String {
        let text = text.replace('/', "--");
        if self.ignores_case {
            text.to_ascii_lowercase()
        } else {
            text
        }
    }

    fn check_characters(&self, text: &str) -> Result<(), String> {
        let fits =
            |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '/' || self.others.contains(c);
        match text.chars().find(|c| !fits(*c)) {
            None => Ok(()),
            Some(character) => {
                let others: String = self.others.chars().flat_map(|c| [c, ' ']).collect();
                Err(format!(
                    "a secret's name at {} has letters, digits, - {others}and / only, not {character:?}",
                    self.whose
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn name(text: &str) -> SecretName {
        SecretName::parse(text).expect("a name")
    }

    /// Names full of what could be mistaken for something else.
    fn names() -> impl Strategy<Value = SecretName> {
        let text = proptest::string::string_regex("[abA_/.-]{1,9}|[ -~é]{1,12}");
        text.expect("an expression")
            .prop_filter_map("no name", |text| SecretName::parse(&text).ok())
    }

    #[test]
    fn a_slash_is_two_dashes() {
        assert_eq!(
            GCP.write("", &name("test/db_Password-1")).as_deref(),
            Ok("test--db_Password-1")
        );
        assert_eq!(
            GCP.write("team/", &name("a/b")).as_deref(),
            Ok("team--a--b")
        );
        assert_eq!(
            AZURE.write("Team/", &name("A/b")).as_deref(),
            Ok("team--a--b")
        );
        assert_eq!(GCP.read("team/", "team--a--b"), Some(name("a/b")));
    }

    #[test]
    fn a_dash_that_could_be_half_of_a_slash_is_refused() {
        for wrong in ["-a", "a-", "a/-b", "a-/b", "a--b", "a/b--c", "-"] {
            let error = GCP.write("", &name(wrong)).expect_err(wrong);
            assert!(
                error.contains("at Google Cloud a slash is written --"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_the_vault_has_no_character_for_is_refused() {
        for wrong in [
            "a.b",
            "a b",
            "é",
            "a:b",
            "a?b",
            "a#b",
            "a%2fb",
            "a@b",
            "versions/1:access",
        ] {
            assert!(GCP.write("", &name(wrong)).is_err(), "{wrong}");
            assert!(AZURE.write("", &name(wrong)).is_err(), "{wrong}");
        }
        assert!(GCP.write("", &name("a_b")).is_ok());
        let error = AZURE.write("", &name("a_b")).expect_err("no underscore");
        assert_eq!(
            error,
            "a secret's name at Azure has letters, digits, - and / only, not '_'"
        );
    }

    #[test]
    fn the_length_counts_as_it_is_written() {
        let of = |length: usize| name(&format!("a/{}", "b".repeat(length - 3)));
        assert_eq!(
            GCP.write("", &of(255)).map(|written| written.len()),
            Ok(255)
        );
        for (prefix, too_long) in [("", 256), ("p/", 253)] {
            let error = GCP.write(prefix, &of(too_long)).expect_err("too long");
            assert!(
                error.contains("longer than the 255 characters that Google Cloud allows"),
                "{error}"
            );
        }
        assert!(AZURE.write("", &of(127)).is_ok() && AZURE.write("", &of(128)).is_err());
    }

    #[test]
    fn a_prefix_is_the_beginning_of_a_name_and_leaves_some_room_for_the_rest() {
        for dashes in [GCP, AZURE] {
            let longest = "a".repeat(dashes.prefix_limit);
            for right in ["", "team/", "team/a-", &longest] {
                assert!(dashes.takes_prefix(right), "{right}");
            }
            let longer = "a".repeat(dashes.prefix_limit + 1);
            for wrong in ["/", "/a", "a//", "a.b", "a b", "é", &longer] {
                assert!(!dashes.takes_prefix(wrong), "{wrong}");
            }
        }
        assert!(GCP.takes_prefix("a_") && !AZURE.takes_prefix("a_"));
    }

    #[test]
    fn a_secret_that_nobody_could_ask_for_has_no_name() {
        for foreign in ["a---b", "-a", "a-", "--a", "a--", "a----b", ""] {
            assert_eq!(GCP.read("", foreign), None, "{foreign}");
        }
        assert_eq!(GCP.read("team/", "other--x"), None);
        assert_eq!(GCP.read("team/", "team--"), None);
    }

    proptest! {
        #[test]
        fn no_two_names_meet_in_one_secret(all in proptest::collection::vec(names(), 2..40)) {
            for dashes in [GCP, AZURE] {
                let mut seen = HashMap::new();
                for name in &all {
                    let Ok(written) = dashes.write("pre/", name) else { continue };
                    let folded = if dashes.ignores_case {
                        name.as_str().to_ascii_lowercase()
                    } else {
                        name.as_str().to_owned()
                    };
                    let before = seen.entry(written).or_insert_with(|| folded.clone());
                    prop_assert_eq!(&*before, &folded);
                }
            }
        }

        #[test]
        fn what_is_written_is_within_the_vaults_rules_and_read_as_the_same_name(
            name in names(),
            prefix in "([ab]{1,3}/){0,2}[ab]?",
        ) {
            for dashes in [GCP, AZURE] {
                let Ok(written) = dashes.write(&prefix, &name) else { continue };
                let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || dashes.others.contains(c);
                prop_assert!(!written.is_empty() && written.len() <= dashes.limit);
                prop_assert!(written.chars().all(fits));
                let read = dashes.read(&prefix, &written).expect("a name");
                if dashes.ignores_case {
                    prop_assert!(read.as_str().eq_ignore_ascii_case(name.as_str()));
                } else {
                    prop_assert_eq!(&read, &name);
                }
            }
        }

        #[test]
        fn every_name_that_is_shown_can_be_asked_for(written in "[abA_-]{0,12}") {
            for dashes in [GCP, AZURE] {
                if let Some(name) = dashes.read("", &written) {
                    prop_assert_eq!(dashes.write("", &name), Ok(written.clone()));
                }
            }
        }
    }
}
