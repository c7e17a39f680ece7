//! Secrets as variables: `NAME[=VAR]` on the command line, and the values for them.

use super::failure::{Failure, exit_of};
use super::terminal;
use crate::{Client, Secret, Value};
use std::collections::{HashMap, HashSet};
use std::str::FromStr;

/// How many secrets are read at once: three rounds of the agent's eight.
const AT_ONCE: usize = 24;

/// The longest variable that a program can be given, in bytes, including its name, `=` and a NUL: 32 pages (execve(2),
/// `MAX_ARG_STRLEN`), which are larger on some machines.
const VARIABLE_LIMIT: usize = 128 * 1024;

/// A secret, and the variable to put it in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) secret: String,
    pub(crate) variable: String,
}

/// A variable that has been read.
#[derive(Debug)]
pub(crate) struct Variable<'a> {
    pub(crate) name: &'a str,
    pub(crate) secret: &'a Secret,
}

/// The secrets by name.
#[derive(Debug)]
pub(crate) struct Secrets(HashMap<String, Secret>);

impl Wanted {
    /// The default variable of a secret: the whole name in capitals, with `_` for every character that no variable may
    /// have.
    fn variable_of(secret: &str) -> String {
        let capital = |c: char| match c.to_ascii_uppercase() {
            c if c.is_ascii_alphanumeric() => c,
            _ => '_',
        };
        secret.chars().map(capital).collect()
    }

    /// Whether a shell can have a variable of this name (POSIX, "Name").
    pub(crate) fn is_for_shells(&self) -> bool {
        self.is_name(b"_")
    }

    /// Whether a program can be expected to know a variable of this name: as in a pod's spec, which also allows the
    /// names of Java's properties.
    pub(crate) fn is_for_programs(&self) -> bool {
        self.is_name(b"_-.")
    }

    fn is_name(&self, marks: &[u8]) -> bool {
        let begins = |byte: u8| byte.is_ascii_alphabetic() || marks.contains(&byte);
        let mut bytes = self.variable.bytes();
        bytes.next().is_some_and(begins) && bytes.all(|byte| begins(byte) || byte.is_ascii_digit())
    }

    /// The failure for a variable's name that breaks this rule.
    pub(crate) fn refused(&self, rule: &str) -> Failure {
        let Self { secret, variable } = self;
        Failure::usage(format!(
            "{variable:?} is no variable's name ({rule}): name one with {secret}=VARIABLE"
        ))
    }
}

impl FromStr for Wanted {
    type Err = String;

    /// Splits at the last `=`, because a name may contain some. Nothing after it means the default.
    fn from_str(text: &str) -> Result<Self, String> {
        let (secret, variable) = text.rsplit_once('=').unwrap_or((text, ""));
        if secret.is_empty() {
            return Err("a secret's name is missing: write NAME or NAME=VARIABLE".to_owned());
        }
        if variable.contains('\0') {
            return Err("a variable's name holds no NUL".to_owned());
        }
        let variable = match variable {
            "" => Self::variable_of(secret),
            variable => variable.to_owned(),
        };
        Ok(Self {
            secret: secret.to_owned(),
            variable,
        })
    }
}

impl Secrets {
    /// Reads all, or says what is wrong with each that cannot be read.
    pub(crate) async fn read(
        client: &Client,
        backend: Option<&str>,
        wanted: &[Wanted],
    ) -> Result<Self, Failure> {
        check_once(wanted)?;
        let mut seen = HashSet::new();
        let mut names: Vec<&str> = wanted.iter().map(|wanted| &*wanted.secret).collect();
        names.retain(|name| seen.insert(*name));
        let progress = terminal::progress(names.len());
        let mut secrets = HashMap::new();
        let mut refused = Vec::new();
        for names in names.chunks(AT_ONCE) {
            let mut batch = client
                .batch_get_from(backend, names.iter().copied())
                .await?;
            refused.append(&mut batch.refused);
            for secret in batch.secrets {
                secrets.insert(secret.name.clone(), secret);
            }
            progress.inc(names.len() as u64);
        }
        progress.finish_and_clear();
        let exit = refused.first().map(|(_, refusal)| exit_of(refusal.code));
        let (Some(exit), Some((name, last))) = (exit, refused.pop()) else {
            let is_missing = |wanted: &&Wanted| !secrets.contains_key(&wanted.secret);
            if let Some(missing) = wanted.iter().find(is_missing) {
                let text = "the agent said nothing of it, so nothing is begun";
                return Err(Failure::other(text).of(&missing.secret));
            }
            return Ok(Self(secrets));
        };
        // One line for each, in the order of the request, and the exit code of the first.
        let others = refused
            .iter()
            .map(|(name, refusal)| format!("{name}: {refusal}"));
        let others = others.collect();
        Err(Failure::new(exit, last.to_string()).of(name).after(others))
    }

    /// The variables, in the order of `wanted`.
    pub(crate) fn variables<'a>(
        &'a self,
        wanted: &'a [Wanted],
    ) -> impl Iterator<Item = Variable<'a>> {
        wanted.iter().filter_map(|wanted| {
            Some(Variable {
                name: &wanted.variable,
                secret: self.0.get(&wanted.secret)?,
            })
        })
    }

    /// The secrets, each once.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Secret> {
        self.0.values()
    }
}

impl Variable<'_> {
    /// The value, unless it contains a NUL, which no variable can hold.
    pub(crate) fn expose(&self) -> Result<&[u8], Failure> {
        let value: &Value = &self.secret.value;
        if value.expose().contains(&0) {
            return Err(Failure::other(format!(
                "{}: its value holds a NUL byte, which no variable can: use `latchkey get --out`",
                self.secret.name
            )));
        }
        Ok(value.expose())
    }

    /// The value for a program's environment, unless it is too long for a variable.
    pub(crate) fn expose_to_program(&self) -> Result<&[u8], Failure> {
        let value = self.expose()?;
        if self.name.len() + value.len() > VARIABLE_LIMIT - "=\0".len() {
            return Err(Failure::other(format!(
                "{}: its value is longer than a variable may be, which is 128 KiB: use \
                 `latchkey get --out`",
                self.secret.name
            )));
        }
        Ok(value)
    }
}

/// Makes sure that no two secrets go into the same variable.
fn check_once(wanted: &[Wanted]) -> Result<(), Failure> {
    let mut seen: HashMap<&str, &str> = HashMap::new();
    for Wanted { secret, variable } in wanted {
        if let Some(other) = seen.insert(variable, secret) {
            return Err(Failure::usage(format!(
                "{other} and {secret} are both for the variable {variable}: name another one with \
                 {secret}=VARIABLE"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> (String, String) {
        let wanted: Wanted = text.parse().expect("a name and a variable");
        (wanted.secret, wanted.variable)
    }

    #[test]
    fn a_variable_is_named_or_made_of_the_name() {
        let pair = |secret: &str, variable: &str| (secret.to_owned(), variable.to_owned());
        assert_eq!(
            wanted("prod/db-password"),
            pair("prod/db-password", "PROD_DB_PASSWORD")
        );
        assert_eq!(wanted("prod/db=DB"), pair("prod/db", "DB"));
        assert_eq!(wanted("a=b=C"), pair("a=b", "C"));
        assert_eq!(wanted("a=b="), pair("a=b", "A_B"));
        assert_eq!(wanted("stra\u{df}e"), pair("stra\u{df}e", "STRA_E"));
        assert!("=X".parse::<Wanted>().is_err());
        assert!("".parse::<Wanted>().is_err());
    }

    #[test]
    fn two_secrets_are_not_for_one_variable() {
        let both: Vec<Wanted> = ["a/b", "a-b"]
            .map(|text| text.parse().expect("a name"))
            .into();
        let failure = check_once(&both).expect_err("it is refused");
        assert!(failure.text().contains("A_B"), "{failure:?}");
        let same: Vec<Wanted> = ["a/b", "a/b=OTHER"]
            .map(|text| text.parse().expect("a name"))
            .into();
        assert!(check_once(&same).is_ok());
    }

    #[test]
    fn not_every_variable_is_for_shells() {
        let is_for_shells = |text: &str| text.parse::<Wanted>().expect("a name").is_for_shells();
        assert!(is_for_shells("a=_A1"));
        assert!(!is_for_shells("1a"));
        assert!(!is_for_shells("a=my.property"));
    }

    #[test]
    fn programs_know_more_names_than_shells_and_not_every_one() {
        let is_for_programs =
            |text: &str| text.parse::<Wanted>().expect("a name").is_for_programs();
        for name in ["a=_A1", "a=my.property", "a=my-property", "a=.1"] {
            assert!(is_for_programs(name), "{name}");
        }
        for name in ["1a", "a=1X", "a=A B", "a=\u{e4}", "a=A\n"] {
            assert!(!is_for_programs(name), "{name}");
        }
    }
}
