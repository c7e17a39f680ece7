//! The volumes published on this node, and their records.

use crate::attest::cgroup::PodUid;
use crate::handover::make_directory;
use nix::errno::Errno;
use nix::sys::stat::{SFlag, lstat};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A volume of one pod. Nothing in it is secret.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Volume {
    /// The kubelet's name for it.
    pub(crate) id: String,
    pub(crate) pod: PodReference,
    /// Where the kubelet wants it.
    pub(crate) target: PathBuf,
    /// What it holds in addition to the socket, if the pod asks for files.
    #[serde(default)]
    pub(crate) files: Option<FilesAsked>,
}

/// The files that a pod wants in its volume.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct FilesAsked {
    /// The volume's attribute, as the pod wrote it: the agent parses it, the mounter does not.
    pub(crate) secrets: String,
    /// The group that owns them.
    pub(crate) group: Option<u32>,
}

/// A pod, as the kubelet describes it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct PodReference {
    pub(crate) uid: PodUid,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) service_account: String,
}

/// A volume's name in the store: the start of its id's SHA-256, short enough for a socket's path.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Key(String);

/// The volumes of this node, below the plugin's directory: a tmpfs that the mounter mounts, so that nothing in it
/// outlives a reboot of the node, and that only root can enter.
///
/// - `control.sock`, where the agent listens for the mounter
/// - `p/KEY/`, the directory that is mounted into the pod; a tmpfs of its own if the pod wants files
/// - `staging/KEY/`, where that is mounted for a moment before it is mounted into the pod
/// - `v/KEY`, the volume as JSON; it exists from when the directory is ready until the volume is unpublished
#[derive(Clone, Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// Only root may look into the store.
const ROOT_MODE: u32 = 0o700;

/// A pod may enter and list its own directory.
const POD_MODE: u32 = 0o755;

// === impl Volume ===

impl Volume {
    pub(crate) fn key(&self) -> Key {
        Key::of(&self.id)
    }

    /// The pod's name for it, from its target `.../kubernetes.io~csi/NAME/mount`.
    pub(crate) fn name(&self) -> &str {
        let name = self.target.parent().and_then(Path::file_name);
        name.and_then(OsStr::to_str).unwrap_or_default()
    }
}

// === impl Key ===

impl Key {
    pub(crate) fn of(volume_id: &str) -> Self {
        let digest = Sha256::digest(volume_id.as_bytes());
        let digits = digest.iter().take(8).map(|byte| format!("{byte:02x}"));
        Self(digits.collect())
    }

    fn from_name(name: &str) -> Option<Self> {
        let right = name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit());
        right.then(|| Self(name.to_owned()))
    }
}

// === impl Store ===

impl Store {
    /// The store of the plugin with this directory; it may not exist yet.
    pub(crate) fn of(directory: &Path) -> Self {
        Self {
            root: directory.join("run"),
        }
    }

    /// Where the tmpfs is mounted.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The agent's socket for the mounter.
    pub(crate) fn control(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// The directory that is mounted into the pod.
    pub(crate) fn directory(&self, key: &Key) -> PathBuf {
        self.root.join("p").join(&key.0)
    }

    /// Where the mounter makes a mount what it should be before a pod can see it.
    pub(crate) fn staging(&self, key: &Key) -> PathBuf {
        self.root.join("staging").join(&key.0)
    }

    /// The pod's own socket.
    pub(crate) fn socket(&self, key: &Key) -> PathBuf {
        self.directory(key).join("agent.sock")
    }

    /// Whether the store exists, as a tmpfs that is root's alone.
    ///
    /// # Errors
    ///
    /// If that cannot be determined.
    pub(crate) fn is_there(&self) -> io::Result<bool> {
        let stat = match lstat(&self.root) {
            Err(Errno::ENOENT) => return Ok(false),
            outcome => outcome?,
        };
        Ok(stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
            && stat.st_uid == 0
            && stat.st_mode & 0o077 == 0
            && statfs(&self.root)?.filesystem_type() == TMPFS_MAGIC)
    }

    /// Makes the directories of an empty store.
    ///
    /// # Errors
    ///
    /// If a directory cannot be made.
    pub(crate) fn furnish(&self) -> io::Result<()> {
        for name in ["p", "staging", "v"] {
            make_directory(&self.root.join(name), ROOT_MODE)?;
        }
        Ok(())
    }

    /// Makes the directory that will be mounted into the pod.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub(crate) fn make(&self, key: &Key) -> io::Result<()> {
        make_directory(&self.directory(key), POD_MODE)
    }

    /// The recorded volumes; none before the store is [furnished](Self::furnish).
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub(crate) fn keys(&self) -> io::Result<Vec<Key>> {
        match names(&self.root.join("v")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            outcome => outcome,
        }
    }

    /// The volumes whose directories exist.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub(crate) fn directories(&self) -> io::Result<Vec<Key>> {
        names(&self.root.join("p"))
    }

    /// Loads the volume of this name, if it is recorded.
    ///
    /// # Errors
    ///
    /// If its record cannot be read; [`io::ErrorKind::InvalidData`] if it is no record.
    pub(crate) fn load(&self, key: &Key) -> io::Result<Option<Volume>> {
        match fs::read(self.record(key)) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(volume) => Ok(Some(volume)),
                Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How many bytes of the store the volume's record takes.
    ///
    /// # Errors
    ///
    /// If it cannot be written as JSON, or the store cannot be read.
    pub(crate) fn size_of(&self, volume: &Volume) -> io::Result<u64> {
        self.in_pages(serde_json::to_vec(volume)?.len() as u64)
    }

    /// How many bytes of the store the records of a pod's volumes take. An unreadable record counts for no pod: it must
    /// not block anybody.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub(crate) fn taken_by(&self, pod: PodUid) -> io::Result<u64> {
        let mut taken = 0;
        for key in self.keys()? {
            if let Ok(Some(volume)) = self.load(&key)
                && volume.pod.uid == pod
            {
                taken += self.in_pages(fs::metadata(self.record(&key))?.len())?;
            }
        }
        Ok(taken)
    }

    /// Records a volume, whole or not at all.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub(crate) fn save(&self, volume: &Volume) -> io::Result<()> {
        let key = volume.key();
        let temporary = self.half_record(&key);
        let _ = fs::remove_file(&temporary);
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(volume)?)?;
        fs::rename(&temporary, self.record(&key))
    }

    /// Removes a volume's record, even one that a killed mounter left half-written.
    ///
    /// # Errors
    ///
    /// If it cannot be removed.
    pub(crate) fn forget(&self, key: &Key) -> io::Result<()> {
        gone(fs::remove_file(self.half_record(key)))?;
        gone(fs::remove_file(self.record(key)))
    }

    /// Removes a volume's directory with the sockets in it.
    ///
    /// # Errors
    ///
    /// If it cannot be removed.
    pub(crate) fn remove(&self, key: &Key) -> io::Result<()> {
        gone(fs::remove_dir_all(self.directory(key)))
    }

    /// How many bytes of the store a file of this length takes: whole pages of the kernel's.
    fn in_pages(&self, length: u64) -> io::Result<u64> {
        let page = u64::try_from(statfs(&self.root)?.block_size()).unwrap_or(1);
        Ok(length.next_multiple_of(page.max(1)))
    }

    /// The volume's record, which no pod can open.
    pub(crate) fn record(&self, key: &Key) -> PathBuf {
        self.root.join("v").join(&key.0)
    }

    /// Where a record is written until it is whole.
    fn half_record(&self, key: &Key) -> PathBuf {
        self.root.join("v").join(format!(".{}", key.0))
    }
}

/// Whether whatever is written there stays in memory.
pub(crate) fn is_tmpfs(path: &Path) -> bool {
    statfs(path).is_ok_and(|statfs| statfs.filesystem_type() == TMPFS_MAGIC)
}

/// Treats a missing file as removed.
pub(crate) fn gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn names(directory: &Path) -> io::Result<Vec<Key>> {
    let mut keys = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        keys.extend(name.to_str().and_then(Key::from_name));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn volume(target: &str) -> Volume {
        Volume {
            id: "csi-0123".into(),
            pod: PodReference {
                uid: "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
                    .parse()
                    .expect("a UID"),
                namespace: "test".into(),
                name: "web".into(),
                service_account: "app".into(),
            },
            target: target.into(),
            files: None,
        }
    }

    #[test]
    fn a_volume_of_before_there_were_files_is_read() {
        let mut written = serde_json::to_value(volume("/one")).expect("JSON");
        written.as_object_mut().expect("an object").remove("files");
        let read: Volume = serde_json::from_value(written).expect("a volume");
        assert_eq!(read, volume("/one"));
    }

    #[test]
    fn a_volume_is_remembered_as_it_was_until_it_is_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("run")).expect("a directory");
        let store = Store::of(directory.path());
        store.furnish().expect("directories");
        for volume in [volume("/one"), volume("/other")] {
            store.save(&volume).expect("it is written");
            let key = volume.key();
            assert_eq!(store.load(&key).expect("it can be read"), Some(volume));
            assert_eq!(store.keys().expect("names"), [key]);
        }
        let key = Key::of("csi-0123");
        // What a mounter that is killed while writing a record leaves.
        fs::write(store.half_record(&key), "{").expect("it is written");
        for _ in 0..2 {
            store.forget(&key).expect("it is gone");
        }
        assert_eq!(store.load(&key).expect("nothing is wrong"), None);
        let records = fs::read_dir(directory.path().join("run/v")).expect("it is there");
        assert_eq!(records.count(), 0);
    }

    #[test]
    fn a_pods_records_are_counted_in_pages_and_as_they_are_written() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("run")).expect("a directory");
        let store = Store::of(directory.path());
        store.furnish().expect("directories");
        let plain = volume("/one");
        let pod = plain.pod.uid;
        assert_eq!(store.taken_by(pod).expect("it can be read"), 0);
        // The longest attribute. In JSON each line feed takes two bytes.
        let padded = Volume {
            id: "csi-padded".into(),
            files: Some(FilesAsked {
                secrets: "\n".repeat(32 * 1024),
                group: None,
            }),
            ..plain.clone()
        };
        let mut anothers = Volume {
            id: "csi-anothers".into(),
            ..plain.clone()
        };
        anothers.pod.uid = PodUid::synthetic(1);
        for volume in [&plain, &padded, &anothers] {
            store.save(volume).expect("it is written");
        }
        let page = store.in_pages(1).expect("it is there");
        // An unreadable record, which is nobody's.
        fs::write(store.record(&Key::of("csi-broken")), "{").expect("it is written");
        let both = store.taken_by(pod).expect("it can be read");
        assert_eq!(both, page + (64 * 1024 + page));
        store.forget(&padded.key()).expect("it is gone");
        assert_eq!(store.taken_by(pod).expect("it can be read"), page);
    }

    #[test]
    fn the_path_of_a_pods_socket_stays_under_a_hundred_bytes() {
        let longest = format!("/{}", "d".repeat(64));
        let socket = Store::of(Path::new(&longest)).socket(&Key::of(&"x".repeat(128)));
        assert_eq!(socket.as_os_str().len(), 99);
    }

    #[test]
    fn a_directory_on_a_disk_or_open_to_others_is_no_store() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::of(directory.path());
        assert!(!store.is_there().expect("it can be seen"));
        // Whatever holds temporary files: this directory's mode lets others in.
        fs::create_dir(store.root()).expect("a directory");
        fs::set_permissions(store.root(), PermissionsExt::from_mode(0o755)).expect("a mode");
        assert!(!store.is_there().expect("it can be seen"));
    }
}
