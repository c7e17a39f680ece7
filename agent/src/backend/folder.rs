//! A folder of files out of which no name leads: where `file` and `pass` keep their secrets.
//!
//! Names come from callers. They are resolved by the kernel below the open folder (openat2(2), `RESOLVE_BENEATH`), so
//! neither `..` nor a symbolic link reaches anything else, whoever changes the tree meanwhile.

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::unistd::geteuid;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// The bits of a mode that let others write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// How many entries of a folder one list looks at.
const ENTRIES: usize = 50_000;

/// How deep folders may lie in each other for a list to find what is in them.
const DEPTH: usize = 32;

/// A folder, held open.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

/// A file in the folder.
#[derive(Debug)]
pub(super) struct Found {
    file: File,
    stat: FileStat,
}

/// Why a folder, or a file in it, is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderError {
    /// There is no such file.
    #[error("there is no such file")]
    Absent,
    /// What is asked for is another namespace's.
    #[error("it is another namespace's")]
    Foreign,
    /// A symbolic link leads out of the folder.
    #[error("a symbolic link leads out of the folder")]
    Outside,
    /// The agent's user may not read it.
    #[error("the agent may not read it")]
    Unreadable,
    /// Somebody else could have written it.
    #[error("it belongs to another user, or others may write it")]
    Unsafe,
    /// There are too many entries to list.
    #[error("it holds more than {ENTRIES} entries")]
    TooMany,
    /// The file is larger than a secret may be.
    #[error("it is too large")]
    TooLarge,
    /// Anything else.
    #[error(transparent)]
    Io(io::Error),
}

// === impl Folder ===

impl Folder {
    /// The folder at `path`, which is the operator's word and is followed wherever it leads.
    pub(super) fn open(path: &Path) -> Result<Self, FolderError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?;
        Ok(Self(folder))
    }

    /// The folder at `path`, for a read: where the folder itself is missing or closed, that says nothing about the
    /// secret that is asked for.
    pub(super) fn open_again(path: &Path) -> Result<Self, FolderError> {
        Self::open(path).map_err(|error| FolderError::Io(io::Error::other(error)))
    }

    /// Checks that nobody but root and the agent's own user can change what lies directly in it.
    pub(super) fn must_be_ours(&self) -> Result<(), FolderError> {
        must_be_ours(&fstat(&self.0)?)
    }

    /// The file at `path` below the folder. Only a regular file is one.
    pub(super) fn find(&self, path: &Path) -> Result<Found, FolderError> {
        // Without O_NONBLOCK, a pipe in the folder would hold whoever opens it.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = self.beneath(path, flags, ResolveFlag::RESOLVE_NO_MAGICLINKS)?;
        let stat = fstat(&file)?;
        if kind_of(&stat) != SFlag::S_IFREG {
            return Err(FolderError::Absent);
        }
        Ok(Found {
            file: File::from(file),
            stat,
        })
    }

    /// Checks that nobody but root and the agent's own user can have written the file, or have put it where it lies.
    pub(super) fn must_own(&self, found: &Found) -> Result<(), FolderError> {
        must_be_ours(&found.stat)?;
        self.must_be_ours()?;
        // Where links inside the folder have led to.
        let place = path_of(&found.file)?;
        let place = place
            .strip_prefix(path_of(&self.0)?)
            .map_err(|_| FolderError::Outside)?;
        let above = place.ancestors().skip(1);
        for folder in above.filter(|path| !path.as_os_str().is_empty()) {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let folder = self.beneath(folder, flags, ResolveFlag::RESOLVE_NO_SYMLINKS)?;
            must_be_ours(&fstat(&folder)?)?;
        }
        Ok(())
    }

    /// The files below `from` whose names end with `ending`, as paths below the folder without that ending, in order.
    /// What begins with a dot is left out, and so is what lies behind a link to a folder.
    pub(super) fn list(&self, from: &Path, ending: &str) -> Result<Vec<String>, FolderError> {
        let mut names = Vec::new();
        let mut left = ENTRIES;
        let mut folders = vec![(from.to_owned(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let opened = if folder.as_os_str().is_empty() {
                self.beneath(Path::new("."), flags, ResolveFlag::RESOLVE_NO_SYMLINKS)
            } else {
                self.beneath(&folder, flags, ResolveFlag::RESOLVE_NO_SYMLINKS)
            };
            let opened = match opened {
                Ok(opened) => opened,
                // Gone meanwhile, or closed to the agent: it has nothing to show.
                Err(FolderError::Absent | FolderError::Unreadable | FolderError::Outside) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            for entry in Dir::from_fd(opened)?.iter() {
                let entry = entry?;
                left = left.checked_sub(1).ok_or(FolderError::TooMany)?;
                let Some(name) = entry.file_name().to_str().ok() else {
                    continue;
                };
                if name.starts_with('.') {
                    continue;
                }
                let path = folder.join(name);
                match entry.file_type() {
                    Some(Type::Directory) if depth < DEPTH => folders.push((path, depth + 1)),
                    Some(Type::Directory) => {}
                    Some(Type::File) => names.extend(without(&path, ending)),
                    // A link, or a file system that does not say.
                    _ => match self.find(&path) {
                        Ok(_) => names.extend(without(&path, ending)),
                        Err(_) if entry.file_type().is_none() && depth < DEPTH => {
                            folders.push((path, depth + 1));
                        }
                        Err(_) => {}
                    },
                }
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn beneath(
        &self,
        path: &Path,
        flags: OFlag,
        resolve: ResolveFlag,
    ) -> Result<OwnedFd, FolderError> {
        let how = OpenHow::new()
            .flags(flags)
            .resolve(resolve | ResolveFlag::RESOLVE_BENEATH);
        Ok(openat2(&self.0, path, how)?)
    }
}

// === impl Found ===

impl Found {
    /// What tells this content from any other that the file has had: inode, size and time of the last change, never the
    /// value.
    pub(super) fn version(&self) -> Arc<str> {
        let stat = &self.stat;
        format!(
            "{:x}-{:x}-{:x}.{:x}",
            stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec
        )
        .into()
    }

    /// Everything in the file, if that is at most `limit` bytes.
    pub(super) fn read(&self, limit: usize) -> Result<Zeroizing<Vec<u8>>, FolderError> {
        let size = usize::try_from(self.stat.st_size).unwrap_or(usize::MAX);
        if size > limit {
            return Err(FolderError::TooLarge);
        }
        // With room for one more byte, nothing is moved and left behind while it is read.
        let mut bytes = Zeroizing::new(Vec::with_capacity(size + 1));
        (&self.file)
            .take(limit as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(FolderError::Io)?;
        if bytes.len() > limit {
            return Err(FolderError::TooLarge);
        }
        Ok(bytes)
    }
}

// === impl FolderError ===

impl From<Errno> for FolderError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ENXIO | Errno::ENAMETOOLONG => Self::Absent,
            Errno::EXDEV | Errno::ELOOP => Self::Outside,
            Errno::EACCES | Errno::EPERM => Self::Unreadable,
            errno => Self::Io(errno.into()),
        }
    }
}

fn must_be_ours(stat: &FileStat) -> Result<(), FolderError> {
    let owned = stat.st_uid == 0 || stat.st_uid == geteuid().as_raw();
    if owned && stat.st_mode & WRITABLE_BY_OTHERS == 0 {
        Ok(())
    } else {
        Err(FolderError::Unsafe)
    }
}

fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Where the kernel has what is open.
fn path_of(open: &impl AsFd) -> Result<PathBuf, FolderError> {
    std::fs::read_link(format!("/proc/self/fd/{}", open.as_fd().as_raw_fd()))
        .map_err(FolderError::Io)
}

fn without(path: &Path, ending: &str) -> Option<String> {
    path.to_str()?.strip_suffix(ending).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    fn folder_of(files: &[(&str, &str)]) -> (TempDir, Folder) {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(&path, text).expect("a file");
            mode(&path, 0o600);
            for above in path.ancestors().skip(1) {
                if above.starts_with(directory.path()) {
                    mode(above, 0o700);
                }
            }
        }
        let folder = Folder::open(directory.path()).expect("it is there");
        (directory, folder)
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    }

    fn text_at(folder: &Folder, path: &str) -> Result<String, FolderError> {
        let found = folder.find(Path::new(path))?;
        let bytes = found.read(1024)?;
        Ok(String::from_utf8(bytes.to_vec()).expect("text"))
    }

    #[test]
    fn a_file_below_the_folder_is_read() {
        let (_directory, folder) = folder_of(&[("prod/db", "hunter2")]);
        assert_eq!(text_at(&folder, "prod/db").expect("it is there"), "hunter2");
        assert!(matches!(text_at(&folder, "prod"), Err(FolderError::Absent)));
        assert!(matches!(
            text_at(&folder, "prod/db/x"),
            Err(FolderError::Absent)
        ));
    }

    #[test]
    fn neither_dots_nor_links_lead_out() {
        let (outside, _) = folder_of(&[("secret", "not ours")]);
        let (directory, folder) = folder_of(&[("prod/db", "hunter2")]);
        let at = |name: &str| directory.path().join(name);
        symlink(outside.path().join("secret"), at("absolute")).expect("a link");
        symlink(outside.path(), at("folder")).expect("a link");
        symlink("prod/db", at("inside")).expect("a link");
        let up = format!(
            "../{}/secret",
            outside.path().file_name().expect("a name").display()
        );
        symlink(&up, at("relative")).expect("a link");
        for path in ["absolute", "folder/secret", "relative", &up, "/etc/passwd"] {
            let outcome = text_at(&folder, path);
            assert!(
                matches!(outcome, Err(FolderError::Outside)),
                "{path}: {outcome:?}"
            );
        }
        assert_eq!(text_at(&folder, "inside").expect("it is there"), "hunter2");
        let names = folder.list(Path::new(""), "").expect("it is ours");
        assert_eq!(names, ["inside", "prod/db"]);
    }

    #[test]
    fn what_others_may_write_is_not_ours_wherever_a_link_leads() {
        let (directory, folder) = folder_of(&[("a/b/c", "1"), ("d", "2")]);
        let at = |name: &str| directory.path().join(name);
        symlink("a/b/c", at("link")).expect("a link");
        let ours = |path: &str| folder.must_own(&folder.find(Path::new(path)).expect("there"));
        for path in ["a/b/c", "link", "d"] {
            ours(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        for (open, bits) in [("a/b/c", 0o620), ("a/b", 0o702), ("a", 0o770), ("", 0o777)] {
            let before = fs::metadata(at(open)).expect("there").permissions();
            mode(&at(open), bits);
            for path in ["a/b/c", "link"] {
                assert!(
                    matches!(ours(path), Err(FolderError::Unsafe)),
                    "{path} while {open:?} has mode {bits:o}"
                );
            }
            fs::set_permissions(at(open), before).expect("ours");
        }
    }

    #[test]
    fn a_pipe_is_no_file_and_holds_nobody() {
        let (directory, folder) = folder_of(&[("x", "1")]);
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert!(matches!(text_at(&folder, "pipe"), Err(FolderError::Absent)));
    }

    #[test]
    fn a_file_over_the_limit_is_not_read_in_part() {
        let (_directory, folder) = folder_of(&[("x", "12345")]);
        let found = folder.find(Path::new("x")).expect("there");
        assert_eq!(&**found.read(5).expect("it fits"), b"12345");
        assert!(matches!(found.read(4), Err(FolderError::TooLarge)));
    }

    #[test]
    fn a_change_makes_another_version() {
        let (directory, folder) = folder_of(&[("x", "1")]);
        let version = || folder.find(Path::new("x")).expect("there").version();
        let before = version();
        assert_eq!(before, version());
        fs::write(directory.path().join("new"), "2").expect("a file");
        fs::rename(directory.path().join("new"), directory.path().join("x")).expect("ours");
        assert_ne!(before, version());
    }

    #[test]
    fn a_list_has_the_ending_taken_off_and_no_dotted_names() {
        let (_directory, folder) = folder_of(&[
            ("b.gpg", ""),
            ("prod/db.gpg", ""),
            ("prod/readme", ""),
            (".git/x.gpg", ""),
            (".hidden.gpg", ""),
        ]);
        let list = |from: &str| folder.list(Path::new(from), ".gpg").expect("it is ours");
        assert_eq!(list(""), ["b", "prod/db"]);
        assert_eq!(list("prod"), ["prod/db"]);
        assert_eq!(list("none"), Vec::<String>::new());
    }
}
