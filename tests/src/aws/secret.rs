//! The secrets themselves: versions, stages, deletion. No HTTP here.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use super::iam::random_suffix;

/// A value to store.
#[derive(Clone)]
pub enum SecretInput {
    /// Answered as `SecretBinary`, in base64.
    Binary(Vec<u8>),
    /// Answered as `SecretString`.
    Text(String),
}

/// The secrets of all accounts, by account and region.
#[derive(Debug, Default)]
pub(super) struct Store {
    shelves: HashMap<String, HashMap<String, Shelf>>,
}

/// The secrets of one account in one region, in the order of their names.
pub(super) type Shelf = BTreeMap<String, Secret>;

/// One secret with all its versions.
#[derive(Debug)]
pub(super) struct Secret {
    pub(super) arn: String,
    pub(super) name: String,
    pub(super) created: Timestamp,
    pub(super) changed: Timestamp,
    /// When it was marked for deletion; until it is restored, it cannot be read.
    pub(super) marked_for_deletion: Option<Timestamp>,
    pub(super) versions: Vec<Version>,
}

/// One version of a secret.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) id: String,
    pub(super) value: SecretInput,
    pub(super) stages: Vec<String>,
    pub(super) created: Timestamp,
}

impl SecretInput {
    /// A text value.
    #[must_use]
    pub fn text(value: impl Into<String>) -> Self {
        Self::Text(value.into())
    }

    /// A binary value.
    #[must_use]
    pub fn binary(value: impl Into<Vec<u8>>) -> Self {
        Self::Binary(value.into())
    }
}

impl std::fmt::Debug for SecretInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Binary(_) => "SecretInput::Binary([redacted])",
            Self::Text(_) => "SecretInput::Text([redacted])",
        })
    }
}

impl Store {
    pub(super) fn shelf(&self, account: &str, region: &str) -> Option<&Shelf> {
        self.shelves.get(account)?.get(region)
    }

    pub(super) fn secret_mut(
        &mut self,
        account: &str,
        region: &str,
        name: &str,
    ) -> Option<&mut Secret> {
        self.shelves
            .get_mut(account)?
            .get_mut(region)?
            .get_mut(name)
    }

    /// Adds a version with `stages`, and the secret if it is new; a stage leaves the version that had it.
    pub(super) fn add_version(
        &mut self,
        account: &str,
        region: &str,
        name: &str,
        value: SecretInput,
        stages: &[&str],
        now: Timestamp,
    ) -> String {
        let shelf = self
            .shelves
            .entry(account.to_owned())
            .or_default()
            .entry(region.to_owned())
            .or_default();
        let secret = shelf.entry(name.to_owned()).or_insert_with(|| Secret {
            arn: format!(
                "{}-{}",
                arn_without_suffix(account, region, name),
                random_suffix()
            ),
            name: name.to_owned(),
            created: now,
            changed: now,
            marked_for_deletion: None,
            versions: Vec::new(),
        });
        let id = uuid::Uuid::new_v4().to_string();
        secret.versions.push(Version {
            id: id.clone(),
            value,
            stages: Vec::new(),
            created: now,
        });
        for stage in stages {
            secret.move_stage(stage, &id);
        }
        secret.changed = now;
        id
    }

    /// Removes a secret at once, as `ForceDeleteWithoutRecovery` does.
    pub(super) fn remove(&mut self, account: &str, region: &str, name: &str) -> bool {
        let shelf = self
            .shelves
            .get_mut(account)
            .and_then(|regions| regions.get_mut(region));
        shelf.is_some_and(|shelf| shelf.remove(name).is_some())
    }
}

impl Secret {
    /// Moves a stage to a version; moving `AWSCURRENT` makes the version that had it `AWSPREVIOUS`, as AWS does.
    pub(super) fn move_stage(&mut self, stage: &str, to: &str) -> bool {
        if !self.versions.iter().any(|version| version.id == to) {
            return false;
        }
        let held_by = self.version_at(stage).map(|version| version.id.clone());
        if held_by.as_deref() == Some(to) {
            return true;
        }
        for version in &mut self.versions {
            version.stages.retain(|held| held != stage);
            if version.id == to {
                version.stages.push(stage.to_owned());
            }
        }
        if let (Some(from), "AWSCURRENT") = (held_by, stage) {
            self.move_stage("AWSPREVIOUS", &from);
        }
        true
    }

    pub(super) fn version(&self, id: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.id == id)
    }

    pub(super) fn version_at(&self, stage: &str) -> Option<&Version> {
        self.versions
            .iter()
            .find(|version| version.stages.iter().any(|held| held == stage))
    }
}

/// The partition that a region belongs to.
pub(super) fn partition_of(region: &str) -> &'static str {
    match region {
        region if region.starts_with("cn-") => "aws-cn",
        region if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

/// A secret's ARN without the six random characters that AWS appends.
pub(super) fn arn_without_suffix(account: &str, region: &str, name: &str) -> String {
    format!(
        "arn:{}:secretsmanager:{region}:{account}:secret:{name}",
        partition_of(region)
    )
}
