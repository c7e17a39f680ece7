//! What Secret Manager holds.

use std::collections::BTreeMap;

/// All projects, by id.
#[derive(Debug, Default)]
pub(super) struct Store {
    projects: BTreeMap<String, Project>,
    /// Counts up with every version, to tell the newest secret.
    created: u64,
}

#[derive(Debug)]
pub(super) struct Project {
    pub(super) number: String,
    pub(super) secrets: BTreeMap<String, Secret>,
}

#[derive(Debug)]
pub(super) struct Secret {
    pub(super) created: u64,
    /// The first is version 1.
    pub(super) versions: Vec<Version>,
}

#[derive(Debug)]
pub(super) struct Version {
    pub(super) state: VersionState,
    pub(super) data: Vec<u8>,
}

/// The state of a version.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum VersionState {
    /// It cannot be read until it is enabled again.
    Disabled,
    /// It is gone forever.
    Destroyed,
    /// It can be read.
    Enabled,
}

impl Store {
    pub(super) fn add_project(&mut self, id: &str, number: &str) {
        let project = Project {
            number: number.to_owned(),
            secrets: BTreeMap::new(),
        };
        self.projects.insert(id.to_owned(), project);
    }

    /// A project by its id or number.
    pub(super) fn project(&self, name: &str) -> Option<&Project> {
        let by_number = || {
            self.projects
                .values()
                .find(|project| project.number == name)
        };
        self.projects.get(name).or_else(by_number)
    }

    pub(super) fn project_mut(&mut self, id: &str) -> &mut Project {
        self.projects.get_mut(id).expect("the project exists")
    }

    /// Adds a version, and the secret if it is new; returns the version's number.
    pub(super) fn put(&mut self, project: &str, name: &str, data: &[u8]) -> usize {
        self.created += 1;
        let created = self.created;
        let secrets = &mut self.project_mut(project).secrets;
        let secret = secrets.entry(name.to_owned()).or_insert(Secret {
            created,
            versions: Vec::new(),
        });
        secret.versions.push(Version {
            state: VersionState::Enabled,
            data: data.to_vec(),
        });
        secret.versions.len()
    }
}
