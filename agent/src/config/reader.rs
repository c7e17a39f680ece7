//! Reads the settings key by key, and remembers what was wrong and which keys were read.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    fault::{Fault, Origin},
    settings::{Setting, Settings, Value},
    value::Wrong,
};

/// How similar (Jaro-Winkler) an unknown key must be to a known one for that to be suggested.
const ALIKE: f64 = 0.85;

/// The section that contains the backends' sections.
const BACKENDS: &str = "backends";

/// The settings while they are being read.
#[derive(Debug)]
pub(super) struct Reader {
    settings: Settings,
    /// Every key that was read; anything else in the settings is unknown.
    known: BTreeSet<String>,
    /// Sections that need no further reports.
    closed: Vec<String>,
    faults: Vec<Fault>,
}

impl Reader {
    pub(super) fn over(settings: Settings) -> Self {
        Self {
            settings,
            known: BTreeSet::new(),
            closed: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// The value of `key`, or `default` if it is not written or invalid.
    pub(super) fn read<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&Value) -> Result<T, Wrong>,
        default: T,
    ) -> T {
        self.known.insert(key.to_owned());
        let Some(setting) = self.settings.values.get(key) else {
            return default;
        };
        match parse(&setting.value) {
            Ok(value) => value,
            Err(wrong) => {
                let origin = setting.origin.clone();
                self.fault(origin, key, wrong);
                default
            }
        }
    }

    /// The value of `key`; if empty or not written, that of the first of `variables` that is set.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        variables: &[&str],
        parse: impl Fn(&Value) -> Result<T, Wrong>,
    ) -> Option<T> {
        let or_nothing = |value: &Value| match value {
            Value::String(text) | Value::Untyped(text) if text.is_empty() => Ok(None),
            value => parse(value).map(Some),
        };
        if let Some(value) = self.read(key, or_nothing, None) {
            return Some(value);
        }
        if self.has_fault(key) {
            return None;
        }
        let said = |name: &&str| Some(((*name).to_owned(), self.variable(name)?.to_owned()));
        let (name, text) = variables.iter().find_map(said)?;
        let setting = Setting {
            origin: Origin::Variable(name),
            value: Value::Untyped(text),
        };
        self.settings.values.insert(key.to_owned(), setting);
        self.read(key, or_nothing, None)
    }

    /// Whether `key` is written anywhere.
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.settings.values.contains_key(key)
    }

    /// Whether a file was read: the one named, or the default one.
    pub(super) fn has_file(&self) -> bool {
        self.settings.has_file
    }

    /// An environment variable, if it is set and not empty.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        let text = self.settings.environment.get(name)?;
        Some(text.as_str()).filter(|text| !text.is_empty())
    }

    /// Whether an environment variable is set, but empty.
    pub(super) fn is_blank(&self, name: &str) -> bool {
        self.settings
            .environment
            .get(name)
            .is_some_and(String::is_empty)
    }

    /// Lets an environment variable override what the file says about `key`.
    pub(super) fn overrule(&mut self, key: &str, variable: &str) {
        let from_file = |setting: &Setting| matches!(setting.origin, Origin::File { .. });
        if let Some(text) = self.settings.environment.get(variable)
            && !text.is_empty()
            && self.settings.values.get(key).is_none_or(from_file)
        {
            let origin = Origin::Variable(variable.to_owned());
            let setting = Setting {
                origin,
                value: Value::Untyped(text.clone()),
            };
            self.settings.values.insert(key.to_owned(), setting);
        }
    }

    /// Where the file has this section, if it does.
    pub(super) fn section(&self, section: &str) -> Option<Origin> {
        self.settings.sections.get(section).cloned()
    }

    /// The names below `section`, each with the place where it was first written.
    pub(super) fn names_in(&self, section: &str) -> BTreeMap<String, Origin> {
        let mut names = BTreeMap::new();
        let values = self
            .settings
            .values
            .iter()
            .map(|(key, setting)| (key, &setting.origin));
        for (key, origin) in self.settings.sections.iter().chain(values) {
            let Some(rest) = key
                .strip_prefix(section)
                .and_then(|rest| rest.strip_prefix('.'))
            else {
                continue;
            };
            // A value directly in the section has no name below it: it is an unknown key.
            let is_section = rest.contains('.') || self.settings.sections.contains_key(key);
            if let Some(name) = rest.split('.').next()
                && is_section
            {
                names
                    .entry(name.to_owned())
                    .or_insert_with(|| origin.clone());
            }
        }
        names
    }

    /// Reports that a key or a whole section is wrong, and nothing else about it.
    pub(super) fn reject(&mut self, origin: Origin, key: &str, wrong: Wrong) {
        self.fault(origin, key, wrong);
        self.close(key);
    }

    /// Closes a section: the fault of one of its keys is enough.
    pub(super) fn close(&mut self, section: &str) {
        self.closed.push(section.to_owned());
    }

    /// Reports that `key` must be written, unless it already has a fault: in its section, if the file has that.
    pub(super) fn missing(&mut self, key: &str, wrong: &str, remedy: &str) {
        if self.has_fault(key) {
            return;
        }
        let origin = match (self.origin(key), key.rsplit_once('.')) {
            (Origin::Default, Some((section, _))) => {
                self.section(section).unwrap_or(Origin::Default)
            }
            (origin, _) => origin,
        };
        self.fault(origin, key, Wrong::new(wrong, remedy));
    }

    /// Reports that `key` is wrong for a reason beyond its own value, unless it already has a fault.
    pub(super) fn blame(&mut self, key: &str, wrong: Wrong) {
        if !self.has_fault(key) {
            self.fault(self.origin(key), key, wrong);
        }
    }

    /// Reports that an environment variable that belongs to no key is wrong.
    pub(super) fn blame_variable(&mut self, name: &str, wrong: Wrong) {
        self.fault(Origin::Variable(name.to_owned()), "", wrong);
    }

    /// Where `key` was written.
    pub(super) fn origin(&self, key: &str) -> Origin {
        self.settings
            .values
            .get(key)
            .map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// Reports that `key` contradicts `other`, unless either has a fault: then its value is the default, and there may
    /// be no contradiction.
    pub(super) fn contradict(&mut self, key: &str, other: &str, wrong: impl FnOnce() -> String) {
        if !self.has_fault(other) {
            let wrong = format!("contradicts {other}: it {}", wrong());
            self.blame(key, Wrong::new(wrong, format!("change {key} or {other}")));
        }
    }

    /// Whether `key`, or anything below it, has a fault.
    pub(super) fn has_fault(&self, key: &str) -> bool {
        self.faults.iter().any(|fault| is_within(&fault.key, key))
    }

    fn fault(&mut self, origin: Origin, key: &str, Wrong { wrong, remedy }: Wrong) {
        self.faults.push(Fault {
            origin,
            key: key.to_owned(),
            wrong,
            remedy,
        });
    }

    /// All faults, now that every key has been read.
    pub(super) fn finish(mut self) -> Vec<Fault> {
        self.find_unknown();
        self.faults
    }

    fn find_unknown(&mut self) {
        let values = std::mem::take(&mut self.settings.values);
        let sections = std::mem::take(&mut self.settings.sections);
        // Sections first, so that an unknown one is reported once and not key by key.
        for (key, origin) in sections {
            if self.is_closed(&key) || self.is_section(&key) {
                continue;
            }
            let wrong = self.unknown(&key, "section");
            self.reject(origin, &key, wrong);
        }
        for (key, Setting { origin, .. }) in values {
            if self.is_closed(&key) || self.known.contains(&key) {
                continue;
            }
            let wrong = self.unknown(&key, "key");
            self.fault(origin, &key, wrong);
        }
    }

    fn is_closed(&self, key: &str) -> bool {
        self.closed.iter().any(|section| is_within(key, section))
    }

    fn is_section(&self, key: &str) -> bool {
        [BACKENDS, "local"].contains(&key)
            || self
                .known
                .iter()
                .any(|known| known != key && is_within(known, key))
    }

    fn unknown(&self, key: &str, what: &str) -> Wrong {
        if self.is_section(key) {
            let first = self.known.iter().find(|known| is_within(known, key));
            let remedy = match first {
                Some(first) => format!("set one of its keys, such as {first}"),
                None => "leave it out".to_owned(),
            };
            return Wrong::new("is a section, not a value", remedy);
        }
        if let Some(known) = self.known.iter().find(|known| is_within(key, known)) {
            return Wrong::new(
                format!("is an unknown {what}: {known} is a value, not a section"),
                format!("set {known} itself"),
            );
        }
        // Operators choose the names of backends, so only the name of the section around them can be misspelt.
        if let Some((first, rest)) = key.split_once('.')
            && first != BACKENDS
            && strsim::jaro_winkler(BACKENDS, first) >= ALIKE
        {
            return Wrong::new(
                format!("is an unknown {what}"),
                format!("did you mean {BACKENDS}.{rest}?"),
            );
        }
        let candidates: BTreeSet<&str> = if what == "section" {
            let known = self.known.iter().filter_map(|known| known.rsplit_once('.'));
            known
                .map(|(section, _)| section)
                .chain([BACKENDS])
                .collect()
        } else {
            self.known.iter().map(String::as_str).collect()
        };
        let nearest = candidates
            .into_iter()
            .map(|candidate| (strsim::jaro_winkler(candidate, key), candidate))
            .filter(|(likeness, _)| *likeness >= ALIKE)
            .max_by(|(a, _), (b, _)| a.total_cmp(b));
        let remedy = match nearest {
            Some((_, candidate)) => format!("did you mean {candidate}?"),
            None => "leave it out".to_owned(),
        };
        Wrong::new(format!("is an unknown {what}"), remedy)
    }

    /// Every key that was read.
    #[cfg(test)]
    pub(super) fn known(&self) -> impl Iterator<Item = &str> {
        self.known.iter().map(String::as_str)
    }
}

/// Whether `key` is `section` or is within it.
fn is_within(key: &str, section: &str) -> bool {
    key.strip_prefix(section)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
