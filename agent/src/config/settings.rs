//! What was written, layer over layer, before it is interpreted.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use toml::de::{DeArray, DeTable, DeValue};

use super::{
    DEFAULT_FILE,
    fault::{Fault, Faults, Origin},
};

/// The prefix of the agent's own variables; two underscores separate the levels of a key.
///
/// One underscore would not do: Kubernetes itself sets `LATCHKEY_AGENT_SERVICE_HOST` and the like.
const VARIABLE_PREFIX: &str = "LATCHKEY_AGENT__";

/// The one list whose items are sections.
pub(super) const TABLES: &str = "local.workload";

/// The largest file that is read, in bytes; a real one has a few kilobytes.
const MAX_FILE: u64 = 1 << 20;

/// All that was written: the final value of every key, and the other environment variables.
#[derive(Debug)]
pub(super) struct Settings {
    /// By dotted key.
    pub(super) values: BTreeMap<String, Setting>,
    /// The file's sections, by dotted key.
    pub(super) sections: BTreeMap<String, Origin>,
    /// The environment without the agent's own variables.
    pub(super) environment: BTreeMap<String, String>,
    /// Whether a file was read.
    pub(super) has_file: bool,
}

/// One value, and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

/// A value as it was written.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML integer, absent if it does not fit.
    Integer(Option<i64>),
    /// A TOML array.
    List(Vec<Value>),
    /// A type that no key has, by its name in TOML.
    Other(&'static str),
    /// A TOML string.
    String(String),
    /// From the environment or a flag, where only the key determines the type.
    Untyped(String),
}

// === impl Settings ===

impl Settings {
    /// Collects file, environment and flags.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or is not TOML: anything found beyond that would be guesswork.
    pub(super) fn collect(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: Vec<(String, String)>,
    ) -> Result<Self, Faults> {
        let mut settings = Self {
            values: BTreeMap::new(),
            sections: BTreeMap::new(),
            environment: BTreeMap::new(),
            has_file: true,
        };
        match file {
            Some(path) => {
                settings.add_file(path, &text_of(path).map_err(|e| no_file(path, &e))?)?
            }
            None => {
                let path = Path::new(DEFAULT_FILE);
                match text_of(path) {
                    Ok(text) => settings.add_file(path, &text)?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        settings.has_file = false;
                    }
                    Err(error) => return Err(no_file(path, &error)),
                }
            }
        }
        for (name, value) in env {
            settings.add_variable(name, value);
        }
        for (key, value) in flags {
            let origin = Origin::Flag(key.clone());
            settings.values.insert(
                key,
                Setting {
                    origin,
                    value: Value::Untyped(value),
                },
            );
        }
        Ok(settings)
    }

    fn add_file(&mut self, path: &Path, text: &str) -> Result<(), Faults> {
        let lines = Lines { path, text };
        let (document, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            self.add_table("", document.get_ref(), &lines);
            return Ok(());
        }
        let mut faults: Vec<Fault> = errors
            .iter()
            .map(|error| Fault {
                origin: lines.origin(error.span().map_or(0, |span| span.start)),
                key: String::new(),
                wrong: format!("is no TOML here: {}", error.message().replace('\n', ", ")),
                remedy: "correct the syntax".to_owned(),
            })
            .collect();
        // Further errors on the same line mostly repeat the first.
        faults.dedup_by(|next, first| match (&next.origin, &first.origin) {
            (Origin::File { line: a, .. }, Origin::File { line: b, .. }) => a == b,
            _ => false,
        });
        Err(Faults::of(faults))
    }

    fn add_table(&mut self, prefix: &str, table: &DeTable<'_>, lines: &Lines<'_>) {
        for (name, value) in table.iter() {
            let key = format!("{prefix}{}", bare(name.get_ref()));
            let origin = lines.origin(name.span().start);
            match value.get_ref() {
                DeValue::Table(inner) => {
                    self.add_table(&format!("{key}."), inner, lines);
                    self.sections.insert(key, origin);
                }
                DeValue::Array(items) if key == TABLES && tables_of(items).is_some() => {
                    // The tables of a list are sections named by their number, counted from zero.
                    for (number, (start, inner)) in
                        tables_of(items).into_iter().flatten().enumerate()
                    {
                        let key = format!("{key}.{number}");
                        self.add_table(&format!("{key}."), inner, lines);
                        self.sections.insert(key, lines.origin(start));
                    }
                }
                value => {
                    let value = Value::of(value);
                    self.values.insert(key, Setting { origin, value });
                }
            }
        }
    }

    fn add_variable(&mut self, name: String, value: String) {
        let Some(key) = name.strip_prefix(VARIABLE_PREFIX) else {
            self.environment.insert(name, value);
            return;
        };
        // Only upper case is converted; anything else is kept as written, and so reported as unknown.
        let key = if key.contains(|c: char| c.is_ascii_lowercase()) {
            key.to_owned()
        } else {
            key.split("__")
                .map(str::to_ascii_lowercase)
                .collect::<Vec<_>>()
                .join(".")
        };
        let origin = Origin::Variable(name);
        self.values.insert(
            key,
            Setting {
                origin,
                value: Value::Untyped(value),
            },
        );
    }
}

/// The tables in a list, each with where it begins, if there are any and nothing else.
fn tables_of<'a>(items: &'a DeArray<'_>) -> Option<Vec<(usize, &'a DeTable<'a>)>> {
    let table = |item: &'a toml::Spanned<DeValue<'_>>| match item.get_ref() {
        DeValue::Table(table) => Some((item.span().start, table)),
        _ => None,
    };
    let tables: Option<Vec<_>> = items.iter().map(table).collect();
    tables.filter(|tables| !tables.is_empty())
}

fn text_of(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

fn no_file(path: &Path, error: &io::Error) -> Faults {
    Faults::of(vec![Fault {
        origin: Origin::WholeFile(path.to_owned()),
        key: String::new(),
        wrong: format!("cannot be read: {error}"),
        remedy: "name a readable file of UTF-8 text with --config".to_owned(),
    }])
}

/// A part of a key as it may be between dots: a part that contains a dot itself keeps its quotes.
fn bare(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(is_bare) {
        name.to_owned()
    } else {
        format!("{name:?}")
    }
}

struct Lines<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Lines<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Origin::File {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

// === impl Value ===

impl Value {
    pub(super) fn of(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::Array(items) => {
                Self::List(items.iter().map(|item| Self::of(item.get_ref())).collect())
            }
            DeValue::Boolean(value) => Self::Boolean(*value),
            DeValue::Datetime(_) => Self::Other("a date or time"),
            DeValue::Float(_) => Self::Other("a floating-point number"),
            DeValue::Integer(integer) => {
                Self::Integer(i64::from_str_radix(integer.as_str(), integer.radix()).ok())
            }
            DeValue::String(text) => Self::String(text.clone().into_owned()),
            DeValue::Table(_) => Self::Other("a table"),
        }
    }

    /// What was written, in words for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Boolean(_) => "a boolean",
            Self::Integer(_) => "an integer",
            Self::List(_) => "a list",
            Self::Other(kind) => kind,
            Self::String(_) => "a string",
            Self::Untyped(_) => "text",
        }
    }
}
