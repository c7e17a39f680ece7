//! Reading beneath a folder, which no name leads out of: where `file` and `pass` keep their secrets.
//!
//! Names come from callers. The kernel resolves them beneath the open folder (openat2(2), `RESOLVE_BENEATH`), so
//! neither `..` nor a symbolic link reaches anything else, even if someone changes the tree meanwhile.

use super::{BackendError, Fault};
use crate::error::RequestError;
use latchkey_client::protocol::Code;
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
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// The maximum size of a value, in bytes; no cloud accepts more than 64 KiB.
pub(super) const VALUE_LIMIT: usize = 1 << 20;

/// How often a value is read if it keeps being replaced meanwhile.
pub(super) const ATTEMPTS: usize = 3;

/// How many threads may wait for file systems.
static PLACES: Semaphore = Semaphore::const_new(16);

/// The bits of a mode that let its group or others write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// How many entries one list may look at.
const ENTRIES: usize = 50_000;

/// How deep folders may be nested for a list to find what is in them.
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
    /// It was written while it was read.
    #[error("it changes while it is read")]
    Changing,
    /// It belongs to another namespace.
    #[error("it is another namespace's")]
    Foreign,
    /// The folder itself, or one that should contain it, is a file.
    #[error("it is no folder")]
    NoFolder,
    /// A symbolic link leads out of the folder.
    #[error("a symbolic link leads out of the folder")]
    Outside,
    /// The agent's user may not read it.
    #[error("the agent may not read it")]
    Unreadable,
    /// Someone else could have written it.
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
    /// Opens the folder at `path`, which comes from the operator, and whose links are followed wherever they lead.
    pub(super) fn open(path: &Path) -> Result<Self, FolderError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty()) {
            Ok(folder) => Ok(Self(folder)),
            Err(Errno::ENOTDIR) => Err(FolderError::NoFolder),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Opens the folder at `path` and does `work` in it, off the agent's one thread and with a time limit: both may
    /// wait for a file system. A file system that hangs only blocks a limited number of the runtime's other threads;
    /// the rest stay free for others, such as the clouds' name resolution.
    pub(super) async fn visit<T: Send + 'static>(
        path: &Path,
        limit: Duration,
        work: impl FnOnce(&Self) -> Result<T, FolderError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let path = path.to_owned();
        let done = async {
            let place = PLACES.acquire().await;
            let work = move || {
                let _place = place;
                // If the folder itself is missing or closed, that says nothing about the requested secret.
                let folder = Self::open(&path);
                work(&folder.map_err(|error| FolderError::Io(io::Error::other(error)))?)
            };
            tokio::task::spawn_blocking(work).await
        };
        match timeout(limit, done).await {
            Ok(Ok(outcome)) => outcome.map_err(|error| failure(&error)),
            Ok(Err(_)) => Err(BackendError::died()),
            Err(elapsed) => Err(BackendError::new(
                Fault::Unreachable,
                RequestError::unavailable("the store's folder does not answer in time; try again")
                    .because(&elapsed),
            )),
        }
    }

    /// Checks that nobody but root and the agent's own user can change what is directly in it.
    pub(super) fn must_be_ours(&self) -> Result<(), FolderError> {
        must_be_ours(&fstat(&self.0)?)
    }

    /// Opens the file at `path` below the folder, if it is a regular file.
    pub(super) fn find(&self, path: &Path) -> Result<Found, FolderError> {
        // Without O_NONBLOCK, opening a pipe in the folder would block.
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

    /// Checks that nobody but root and the agent's own user can have written the file, or put it where it is.
    pub(super) fn must_own(&self, found: &Found) -> Result<(), FolderError> {
        must_be_ours(&found.stat)?;
        self.must_be_ours()?;
        // Where links inside the folder have led.
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

    /// Returns the files below `from` whose names end with `ending`, as paths below the folder without that ending, in
    /// order. It leaves out names that begin with a dot, and everything behind a link to a folder.
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
                // Gone meanwhile, or closed to the agent: there is nothing to list.
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
                    // A link, or a file system that does not report types.
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
    /// Returns what distinguishes this content from any other that the file has had: inode, size and time of the last
    /// change, never the value.
    pub(super) fn version(&self) -> Arc<str> {
        version(&self.stat)
    }

    /// Reads the whole file, if it has at most `limit` bytes and did not change meanwhile, as far as its size and time
    /// tell: a file that is written in place has none of its contents in between.
    pub(super) fn read(&self, limit: usize) -> Result<Zeroizing<Vec<u8>>, FolderError> {
        let size = usize::try_from(self.stat.st_size).unwrap_or(usize::MAX);
        if size > limit {
            return Err(FolderError::TooLarge);
        }
        // With room for one more byte, the buffer does not grow, which would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(size + 1));
        (&self.file)
            .take(limit as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(FolderError::Io)?;
        if version(&fstat(&self.file)?) != self.version() {
            return Err(FolderError::Changing);
        }
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

fn version(stat: &FileStat) -> Arc<str> {
    format!(
        "{:x}-{:x}-{:x}.{:x}",
        stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec
    )
    .into()
}

fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Returns where the kernel says that an open file is.
fn path_of(open: &impl AsFd) -> Result<PathBuf, FolderError> {
    std::fs::read_link(format!("/proc/self/fd/{}", open.as_fd().as_raw_fd()))
        .map_err(FolderError::Io)
}

fn without(path: &Path, ending: &str) -> Option<String> {
    path.to_str()?.strip_suffix(ending).map(str::to_owned)
}

/// Returns the caller's error about a file that is not read.
fn failure(error: &FolderError) -> BackendError {
    let (fault, told) = match error {
        FolderError::Absent => (
            Fault::Call,
            RequestError::new(Code::NotFound, "there is no such secret"),
        ),
        FolderError::Changing => (
            Fault::Call,
            RequestError::unavailable("the secret's file is being written; try again"),
        ),
        FolderError::Foreign => (
            Fault::Call,
            RequestError::new(
                Code::Denied,
                "this namespace reads only what is in the store's folder of its name, and its prefix is elsewhere",
            ),
        ),
        FolderError::Outside => (
            Fault::Refused,
            RequestError::new(
                Code::Denied,
                "the secret's file is a link that leads out of the store",
            ),
        ),
        FolderError::Unreadable => (
            Fault::Refused,
            RequestError::new(
                Code::Denied,
                "the agent's user may not read the secret's file",
            ),
        ),
        FolderError::Unsafe => (
            Fault::Refused,
            RequestError::new(
                Code::Denied,
                "the secret's file, or a folder that it lies in, could have been written by others: chown it to \
                 the agent's user or root, and chmod it go-w",
            ),
        ),
        FolderError::TooLarge => (
            Fault::Call,
            RequestError::new(
                Code::TooLarge,
                format!("the secret has more than {VALUE_LIMIT} bytes"),
            ),
        ),
        FolderError::TooMany => (
            Fault::Call,
            RequestError::new(
                Code::TooLarge,
                "the store has too many entries to be listed",
            ),
        ),
        FolderError::Io(_) | FolderError::NoFolder => (
            Fault::Unreachable,
            RequestError::unavailable("the store's folder cannot be read now; try again"),
        ),
    };
    BackendError::new(fault, told.because(error))
}

#[cfg(test)]
mod tests;
