//! The files in a volume: written as a set and put in place at once, as the kubelet does with a Secret's.
//!
//! A set has a directory of its own, `..ID`, and `..data` leads to the current one; each file's name in the volume is a
//! link to `..data/NAME`. One rename moves `..data`, so whoever opens a file gets it whole, from one set or the other,
//! and whoever opens a certificate and its key through one `..data` gets a matching pair.
//!
//! The volume is a tmpfs whose root has the set-group-ID bit and the pod's group, so all that is created in it has that
//! group too: the agent has no right to give files away. Pods see it read-only, so nothing here is anybody else's.

use bytes::Bytes;
use nix::fcntl::OFlag;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The link that leads to the current set.
const DATA: &str = "..data";

/// The same link before it is put in place.
const NEXT_DATA: &str = "..data_next";

/// Everybody in the pod may enter a set; the files' own modes say who may read them.
const SET_MODE: u32 = 0o755;

/// A file and what it should hold.
pub(super) struct FileMade {
    pub(super) name: String,
    pub(super) mode: u32,
    /// `Bytes` prints its content, hence the `Debug` below.
    pub(super) content: Bytes,
}

impl fmt::Debug for FileMade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileMade({:?}, {:o})", self.name, self.mode)
    }
}

/// A volume's files.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
}

// === impl Folder ===

impl Folder {
    /// The files of the volume with this directory.
    pub(super) fn of(root: PathBuf) -> Self {
        Self { root }
    }

    /// Whether a set has been put in place.
    pub(super) fn is_filled(&self) -> bool {
        fs::read_link(self.root.join(DATA)).is_ok()
    }

    /// Puts this set of files in place of the previous one, which stays until it is [swept](Self::sweep) away. Returns
    /// whether they differ.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or the pod has a lease on a file of the previous set; then that set stays current, unless
    /// only a link is missing.
    pub(super) fn put(&self, files: &[FileMade]) -> io::Result<bool> {
        let changes = !self.holds(files)?;
        if changes {
            let set = format!("..{}", uuid::Uuid::new_v4().simple());
            let outcome = self.write(&set, files).and_then(|()| self.switch_to(&set));
            if let Err(error) = outcome {
                let _ = fs::remove_dir_all(self.root.join(&set));
                return Err(error);
            }
        }
        // A previous agent may have been killed between two steps.
        self.link(files)?;
        Ok(changes)
    }

    /// Whether this is the set in place. It looks at the files themselves, so nothing need be remembered, and nothing
    /// that a killed agent left is trusted.
    fn holds(&self, files: &[FileMade]) -> io::Result<bool> {
        let set = self.root.join(DATA);
        let is_of_as_many = fs::read_dir(&set).is_ok_and(|entries| entries.count() == files.len());
        if !is_of_as_many {
            return Ok(false);
        }
        for file in files {
            if !file.is_at(&set.join(&file.name))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn write(&self, set: &str, files: &[FileMade]) -> io::Result<()> {
        let set = self.root.join(set);
        DirBuilder::new().mode(SET_MODE).create(&set)?;
        for file in files {
            let path = set.join(&file.name);
            let mut options = OpenOptions::new();
            let mut open = options
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(&path)?;
            open.write_all(&file.content)?;
            open.set_permissions(Permissions::from_mode(file.mode))?;
        }
        // The umask may have taken bits away. Last: it costs the directory its set-group-ID bit.
        fs::set_permissions(&set, Permissions::from_mode(SET_MODE))
    }

    fn switch_to(&self, set: &str) -> io::Result<()> {
        let next = self.root.join(NEXT_DATA);
        crate::csi::volume::gone(fs::remove_file(&next))?;
        symlink(set, &next)?;
        fs::rename(&next, self.root.join(DATA))
    }

    /// Makes the links with the files' own names, and removes those of files that no longer exist.
    fn link(&self, files: &[FileMade]) -> io::Result<()> {
        for file in files {
            let (link, target) = (self.root.join(&file.name), Path::new(DATA).join(&file.name));
            if fs::read_link(&link).ok().as_ref() != Some(&target) {
                // What the kubelet made of a `subPath` of that name, when it could write here and the file was absent.
                let _ = fs::remove_dir(&link);
                symlink(&target, &link).map_err(|error| {
                    io::Error::new(error.kind(), format!("{:?}: {error}", file.name))
                })?;
            }
        }
        for entry in fs::read_dir(&self.root)? {
            let (name, path) = entry.map(|entry| (entry.file_name(), entry.path()))?;
            let is_ours = fs::read_link(&path).is_ok_and(|target| target.starts_with(DATA));
            if is_ours && !files.iter().any(|file| *file.name == *name) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Removes all sets but the current one.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub(super) fn sweep(&self) -> io::Result<()> {
        let current = fs::read_link(self.root.join(DATA))?;
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            let is_set = name.as_encoded_bytes().starts_with(b"..");
            if is_set && name != OsStr::new(DATA) && *name != *current {
                let path = self.root.join(name);
                match fs::symlink_metadata(&path)?.is_dir() {
                    true => fs::remove_dir_all(path)?,
                    false => fs::remove_file(path)?,
                }
            }
        }
        Ok(())
    }
}

// === impl FileMade ===

impl FileMade {
    /// Whether it is there.
    ///
    /// A process of the pod with the file's uid may have a lease on it (`F_SETLEASE`, fcntl(2)), and without
    /// `O_NONBLOCK` everybody would wait for up to 45 s until the kernel takes that away. Such a file is not replaced
    /// before: a process that has each set open in turn would fill the volume's memory with them.
    ///
    /// # Errors
    ///
    /// If there is such a lease.
    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let mut options = OpenOptions::new();
        let without_waiting = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let mut open = match without_waiting.open(path) {
            Ok(open) => open,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let text = format!("a process of the pod has a lease on {:?}", self.name);
                return Err(io::Error::new(error.kind(), text));
            }
            Err(_) => return Ok(false),
        };
        let is_alike = open.metadata().is_ok_and(|there| {
            there.mode() & 0o7777 == self.mode
                && usize::try_from(there.len()) == Ok(self.content.len())
        });
        // Allocated at full size: a buffer that grows leaves copies behind.
        let mut content = Zeroizing::new(vec![0; self.content.len()]);
        Ok(is_alike && open.read_exact(&mut content).is_ok() && **content == *self.content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn file(name: &str, mode: u32, content: &str) -> FileMade {
        FileMade {
            name: name.into(),
            mode,
            content: Bytes::copy_from_slice(content.as_bytes()),
        }
    }

    fn folder() -> (TempDir, Folder) {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("agent.sock"), "").expect("a file");
        let folder = Folder::of(directory.path().to_owned());
        (directory, folder)
    }

    fn names(directory: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(directory.path())
            .expect("it can be read")
            .flatten();
        let mut names: Vec<_> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with("..") || name == DATA)
            .collect();
        names.sort();
        names
    }

    fn sets(directory: &TempDir) -> usize {
        let entries = fs::read_dir(directory.path())
            .expect("it can be read")
            .flatten();
        entries
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b".."))
            .filter(|entry| entry.file_name() != DATA)
            .count()
    }

    #[test]
    fn a_set_is_put_once_and_replaced_when_anything_of_it_is_another() {
        let (directory, folder) = folder();
        assert!(!folder.is_filled());
        let steps: [(&[FileMade], bool); 7] = [
            (&[file("a", 0o440, "1"), file("b", 0o444, "")], true),
            (&[file("a", 0o440, "1"), file("b", 0o444, "")], false),
            (&[file("a", 0o440, "2"), file("b", 0o444, "")], true),
            (&[file("a", 0o400, "2"), file("b", 0o444, "")], true),
            (&[file("a", 0o400, "2")], true),
            (&[file("c", 0o400, "2")], true),
            (&[], true),
        ];
        for (files, changes) in steps {
            assert_eq!(folder.put(files).expect("it is put"), changes, "{files:?}");
            folder.sweep().expect("it is swept");
            assert!(folder.is_filled());
            let mut wanted: Vec<_> = files.iter().map(|file| file.name.clone()).collect();
            wanted.extend([DATA.to_owned(), "agent.sock".to_owned()]);
            wanted.sort();
            assert_eq!((names(&directory), sets(&directory)), (wanted, 1));
            for file in files {
                let path = directory.path().join(&file.name);
                let mode = fs::metadata(&path).expect("it is there").mode();
                assert_eq!(fs::read(&path).expect("it can be read"), *file.content);
                assert_eq!(mode & 0o7777, file.mode);
            }
        }
    }

    #[test]
    fn what_somebody_left_who_was_killed_between_two_steps_is_put_right() {
        let (directory, folder) = folder();
        let at = |name: &str| directory.path().join(name);
        let files = [file("a", 0o440, "1"), file("b", 0o440, "2")];
        folder.put(&files).expect("it is put");
        // A half-written set, a link not swapped in yet, a link not made yet, and one too many.
        fs::create_dir(at("..half")).expect("a directory");
        fs::write(at("..half/a"), "x").expect("a file");
        symlink("..half", at(NEXT_DATA)).expect("a link");
        fs::remove_file(at("b")).expect("it is there");
        symlink("..data/gone", at("gone")).expect("a link");
        assert!(!folder.put(&files).expect("it is put right"));
        folder.sweep().expect("it is swept");
        assert_eq!(names(&directory), [DATA, "a", "agent.sock", "b"]);
        assert_eq!(sets(&directory), 1);
        assert_eq!(fs::read(at("b")).expect("it can be read"), b"2");
        // A set in place that is not as it should be is replaced.
        let set = at(&fs::read_link(at(DATA)).expect("a set").to_string_lossy());
        fs::write(set.join("more"), "x").expect("a file");
        assert!(folder.put(&files).expect("it is put right"));
    }

    #[test]
    fn who_is_on_the_way_to_a_file_of_the_set_before_finds_it_until_that_is_swept_away() {
        let (directory, folder) = folder();
        folder.put(&[file("a", 0o440, "1")]).expect("it is put");
        let before = directory
            .path()
            .join(fs::read_link(directory.path().join(DATA)).expect("a set"));
        assert!(folder.put(&[file("a", 0o440, "2")]).expect("it is put"));
        assert_eq!(fs::read(before.join("a")).expect("it is there"), b"1");
        folder.sweep().expect("it is swept");
        fs::read(before.join("a")).expect_err("it is gone");
    }

    #[test]
    fn a_directory_in_a_files_place_gives_way_if_it_is_empty_and_is_named_otherwise() {
        let (directory, folder) = folder();
        for name in ["a", "b"] {
            fs::create_dir(directory.path().join(name)).expect("a directory");
        }
        fs::write(directory.path().join("b/x"), "x").expect("a file");
        let files = [file("a", 0o440, "1"), file("b", 0o440, "2")];
        let error = folder.put(&files).expect_err("it is not empty");
        assert!(error.to_string().starts_with("\"b\": "), "{error}");
        let content = fs::read(directory.path().join("a")).expect("it can be read");
        assert_eq!(content, b"1");
    }

    #[test]
    fn a_set_that_cannot_be_written_changes_nothing() {
        let (directory, folder) = folder();
        folder.put(&[file("a", 0o440, "1")]).expect("it is put");
        let twice = [file("a", 0o440, "2"), file("a", 0o440, "3")];
        folder.put(&twice).expect_err("no two files have one name");
        let content = fs::read(directory.path().join("a")).expect("it can be read");
        assert_eq!((content, sets(&directory)), (b"1".to_vec(), 1));
    }
}
