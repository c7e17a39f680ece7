//! Key Vault's data: vaults with their secrets, and who may read what.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

/// The largest value, in bytes.
const MAX_VALUE: usize = 25 * 1024;

/// A new version of a secret.
#[derive(Clone, Debug)]
pub struct SecretSpec {
    /// Its value, which is always text.
    pub value: String,
    /// The declared type of its value.
    pub content_type: Option<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Whether it is enabled.
    pub enabled: bool,
    /// When it becomes valid, in seconds of Unix time; a hint, which Key Vault itself does not enforce.
    pub not_before: Option<i64>,
    /// When it expires; a hint likewise.
    pub expires: Option<i64>,
}

/// How a vault decides who may do what.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Access {
    /// By its own access policy, which does not distinguish secrets.
    Policy,
    /// By role assignments.
    #[default]
    Roles,
}

/// All vaults, by name.
#[derive(Debug, Default)]
pub(super) struct Vaults(BTreeMap<String, Vault>);

#[derive(Debug)]
pub(super) struct Vault {
    pub(super) tenant: String,
    pub(super) access: Access,
    /// Whether its firewall admits nobody.
    pub(super) is_closed: bool,
    /// Clients that may get every secret and list.
    readers: BTreeSet<String>,
    /// Clients that may list, but not get anything.
    listers: BTreeSet<String>,
    /// Clients and the names of single secrets that they may get.
    secret_readers: BTreeSet<(String, String)>,
    secrets: BTreeMap<String, Secret>,
}

#[derive(Debug)]
pub(super) struct Secret {
    /// As written when it was created; case does not matter.
    pub(super) name: String,
    pub(super) versions: Vec<Version>,
}

#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) id: String,
    pub(super) spec: SecretSpec,
    pub(super) created: i64,
}

impl SecretSpec {
    /// An enabled text.
    #[must_use]
    pub fn text(value: impl Into<String>) -> Self {
        Self {
            value: value.into(),
            content_type: None,
            tags: BTreeMap::new(),
            enabled: true,
            not_before: None,
            expires: None,
        }
    }
}

impl Vaults {
    pub(super) fn get(&self, name: &str) -> Option<&Vault> {
        self.0.get(name)
    }

    pub(super) fn make(&mut self, name: &str, tenant: &str, access: Access) {
        let vault = Vault {
            tenant: tenant.to_owned(),
            access,
            is_closed: false,
            readers: BTreeSet::new(),
            listers: BTreeSet::new(),
            secret_readers: BTreeSet::new(),
            secrets: BTreeMap::new(),
        };
        self.0.insert(name.to_owned(), vault);
    }

    /// A vault that a test has made.
    pub(super) fn vault(&mut self, name: &str) -> &mut Vault {
        let vault = self.0.get_mut(name);
        vault.unwrap_or_else(|| panic!("there is no vault {name}"))
    }
}

impl Vault {
    pub(super) fn admit(&mut self, client: &str, secret: Option<&str>) {
        match secret {
            None => {
                self.readers.insert(client.to_owned());
            }
            Some(secret) => {
                assert_eq!(
                    self.access,
                    Access::Roles,
                    "an access policy knows no secrets"
                );
                let pair = (client.to_owned(), secret.to_ascii_lowercase());
                self.secret_readers.insert(pair);
            }
        }
    }

    /// Lets a client list, as the role Key Vault Reader does.
    pub(super) fn show(&mut self, client: &str) {
        self.listers.insert(client.to_owned());
    }

    pub(super) fn expel(&mut self, client: &str) {
        self.readers.remove(client);
        self.listers.remove(client);
        self.secret_readers.retain(|(other, _)| other != client);
    }

    pub(super) fn may_get(&self, client: &str, secret: &str) -> bool {
        let pair = (client.to_owned(), secret.to_ascii_lowercase());
        self.readers.contains(client) || self.secret_readers.contains(&pair)
    }

    pub(super) fn may_list(&self, client: &str) -> bool {
        self.readers.contains(client) || self.listers.contains(client)
    }

    /// Adds a version; returns its id.
    pub(super) fn put(&mut self, name: &str, spec: SecretSpec, now: Timestamp) -> String {
        let right = (1..=127).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        assert!(right, "Key Vault takes no secret named {name}");
        assert!(
            spec.value.len() <= MAX_VALUE,
            "Key Vault's values end at 25 KiB"
        );
        let secret = self
            .secrets
            .entry(name.to_ascii_lowercase())
            .or_insert_with(|| Secret {
                name: name.to_owned(),
                versions: Vec::new(),
            });
        let id = uuid::Uuid::new_v4().simple().to_string();
        secret.versions.push(Version {
            id: id.clone(),
            spec,
            created: now.as_second(),
        });
        id
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.secrets.remove(&name.to_ascii_lowercase());
    }

    pub(super) fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.get(&name.to_ascii_lowercase())
    }

    /// All secrets, ordered by name.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.secrets.values()
    }
}

impl Secret {
    pub(super) fn version(&self, id: Option<&str>) -> Option<&Version> {
        match id {
            None => self.versions.last(),
            Some(id) => self.versions.iter().find(|version| version.id == id),
        }
    }
}
