//! The socket's path: checked, taken over without a gap, watched, and given back.
//!
//! A new agent listens on a temporary name, becomes ready, and then renames that name over the socket's: from that
//! moment it gets the new connections, and the old agent answers those already queued. The old agent leaves only when
//! told to. An agent that finds nobody answering on the path binds it again. So whenever either agent ends, a served
//! socket remains.

use crate::passed::{self, Listener};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The mode bits of a directory that let others replace the socket.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The mode bit of a directory that lets everybody enter it.
const OPEN_TO_ALL: u32 = 0o001;

/// The mode bits of a directory that let others enter it.
const OPEN_TO_OTHERS: u32 = 0o077;

/// How long to wait for a lock. A pod can lock whatever it can open, such as the socket's directory, so the lock orders
/// well-behaved agents but can stop nobody.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Connections that the kernel queues (listen(2)); beyond this a connect fails at once.
const BACKLOG: i32 = 4096;

/// Who can reach the socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    /// Everybody who mounts its directory or sees it: attestation decides who may make requests, and a pod with its own
    /// user namespace matches no uid here. Others may enter the directory, but only the agent or root may change it.
    Everybody,
    /// Whoever its directory already lets in: the kubelet's directory, or one made for a few users.
    AsItIs,
    /// The agent's own user.
    OwnUser,
    /// The containers of the agent's own pod, by a volume that no other pod has. Each of them may write to it, but
    /// could deceive only its own pod.
    OwnPod,
}

/// What happens to the agent's connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// They may stay.
    Serving,
    /// Another agent has the path: each one closes after its next answer.
    Replaced,
    /// The agent leaves: each one closes as soon as what it sent is answered.
    Draining,
}

/// The socket's path, with its directory held open so that nothing can replace it.
#[derive(Debug)]
pub(crate) struct SocketPath {
    directory: OwnedFd,
    name: String,
    path: PathBuf,
    access: Access,
}

/// A listener and the inode of its socket.
#[derive(Clone, Debug)]
pub(crate) struct Listening {
    pub(crate) listener: Arc<Listener>,
    inode: u64,
    temporary: String,
}

/// Who answers on the path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Holder {
    /// Nobody answers there.
    Nobody,
    /// The listener itself.
    Ours,
    /// Another listener, which answers.
    Another,
}

/// Why the socket's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketPathError {
    #[error("listen.socket {0} has no directory: give an absolute path")]
    NoDirectory(PathBuf),
    #[error("the socket's directory {0} is reached through a symbolic link: give its real path")]
    Symlink(PathBuf),
    #[error(
        "the socket's directory {0} belongs to uid {1}: it must belong to root or to the agent"
    )]
    Foreign(PathBuf, u32),
    #[error(
        "cannot make the socket's directory {0}: make the one above it, {1}, which is not there"
    )]
    NoParent(PathBuf, PathBuf),
    #[error(
        "uid {1} may not make the socket's directory {0}, or not enter one above it: as root, make it with install -d \
         -o {1} -m {2:04o} '{0}', or set listen.socket to a path in a directory of its own"
    )]
    NotAllowed(PathBuf, u32, u32),
    // It may be /tmp, /run or a home: never advise changing the mode of a directory that others use.
    #[error(
        "others cannot enter the socket's directory {0} (mode {1:o}): give the socket a directory of its own, \
         mode {2:04o}"
    )]
    Closed(PathBuf, u32, u32),
    #[error(
        "the socket's directory {0} can be written by others (mode {1:o}): give the socket a directory of its own, \
         mode {2:04o}"
    )]
    Writable(PathBuf, u32, u32),
    #[error(
        "others may enter the socket's directory {0} (mode {1:o}): give the socket a directory of its own, \
         mode {2:04o}"
    )]
    Enterable(PathBuf, u32, u32),
    #[error("listen.socket {0} is there and is no socket: move it away")]
    NoSocket(PathBuf),
    #[error("this kernel has no openat2(2), so no path can be trusted: the agent needs Linux 5.6")]
    Kernel,
    #[error(
        "openat2(2) is not permitted, so no path can be trusted: an old seccomp profile forbids it, so update the \
         container runtime"
    )]
    Forbidden,
    #[error("cannot use the socket's directory {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

// === impl Access ===

impl Access {
    fn socket_mode(self) -> Mode {
        Mode::from_bits_truncate(match self {
            Self::Everybody | Self::OwnPod | Self::AsItIs => 0o666,
            Self::OwnUser => 0o600,
        })
    }

    fn directory_mode(self) -> u32 {
        match self {
            Self::Everybody | Self::OwnPod | Self::AsItIs => 0o755,
            Self::OwnUser => 0o700,
        }
    }
}

// === impl SocketPath ===

impl SocketPath {
    /// Opens the directory of `socket`, which is made if missing, and checks it: reached without symbolic links and,
    /// unless it is the pod's own volume, owned by root or the agent's user, writable by the owner alone and, for
    /// [`Access::OwnUser`], enterable by the owner alone.
    ///
    /// # Errors
    ///
    /// Says what to change.
    pub(crate) fn open(socket: &Path, access: Access) -> Result<Self, SocketPathError> {
        let no_directory = || SocketPathError::NoDirectory(socket.to_owned());
        let path = socket
            .parent()
            .filter(|path| path.is_absolute())
            .ok_or_else(no_directory)?;
        let name = socket
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(no_directory)?;
        let failed = |error: io::Error| SocketPathError::Io(path.to_owned(), error);
        make_directory(path, access.directory_mode()).map_err(|error| match path.parent() {
            Some(above) if error.kind() == io::ErrorKind::NotFound => {
                SocketPathError::NoParent(path.to_owned(), above.to_owned())
            }
            _ if error.kind() == io::ErrorKind::PermissionDenied => {
                let (own, mode) = (geteuid().as_raw(), access.directory_mode());
                SocketPathError::NotAllowed(path.to_owned(), own, mode)
            }
            _ => failed(error),
        })?;
        let how = OpenHow::new()
            .flags(OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let directory = match openat2(nix::fcntl::AT_FDCWD, path, how) {
            Err(Errno::ELOOP) => return Err(SocketPathError::Symlink(path.to_owned())),
            Err(Errno::ENOSYS) => return Err(SocketPathError::Kernel),
            Err(Errno::EPERM) => return Err(SocketPathError::Forbidden),
            outcome => outcome.map_err(|errno| failed(errno.into()))?,
        };
        let stat = fstat(&directory).map_err(|errno| failed(errno.into()))?;
        let mode = stat.st_mode & 0o7777;
        let wanted = access.directory_mode();
        if access != Access::OwnPod {
            if stat.st_uid != 0 && stat.st_uid != geteuid().as_raw() {
                return Err(SocketPathError::Foreign(path.to_owned(), stat.st_uid));
            }
            if mode & WRITABLE_BY_OTHERS != 0 {
                return Err(SocketPathError::Writable(path.to_owned(), mode, wanted));
            }
        }
        if access == Access::OwnUser && mode & OPEN_TO_OTHERS != 0 {
            return Err(SocketPathError::Enterable(path.to_owned(), mode, wanted));
        }
        if access == Access::Everybody && mode & OPEN_TO_ALL == 0 {
            return Err(SocketPathError::Closed(path.to_owned(), mode, wanted));
        }
        let opened = Self {
            directory,
            name: name.to_owned(),
            path: path.to_owned(),
            access,
        };
        if let Some(stat) = opened.stat(name)
            && stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFSOCK.bits()
        {
            return Err(SocketPathError::NoSocket(socket.to_owned()));
        }
        Ok(opened)
    }

    /// Listens on a temporary name next to the socket's.
    pub(crate) fn listen(&self) -> io::Result<Listening> {
        self.listen_as(self.access.socket_mode())
    }

    /// Listens on the path itself at once, whoever had it before, with the given mode. For a directory that only agents
    /// or the mounter can change: it waits for no lock.
    pub(crate) fn claim(&self, mode: u32) -> io::Result<Listening> {
        // Any other name is listened on only for as long as this function takes, so these are leftovers.
        for name in self.leftovers() {
            let _ = unlinkat(&self.directory, name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        let listening = self.listen_as(Mode::from_bits_truncate(mode))?;
        self.rename(&listening)?;
        Ok(listening)
    }

    /// The path itself.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join(&self.name)
    }

    /// Whether the path leads to the listener.
    pub(crate) fn holds(&self, listening: &Listening) -> bool {
        self.is_there() == Some(true)
            && self
                .stat(&self.name)
                .is_some_and(|stat| stat.st_ino == listening.inode)
    }

    /// Checks that the directory is still there: nobody can reach a socket in one that has been removed.
    ///
    /// # Errors
    ///
    /// Says what to do.
    pub(crate) fn must_be_there(&self) -> io::Result<()> {
        if self.is_there() != Some(false) {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "the socket's directory {} has been removed, or there is another one now: start the agent again, to use \
             the one that is there then",
            self.path.display()
        )))
    }

    /// Whether its path leads to the directory: it may have been removed or moved away, or have a mount over it.
    fn is_there(&self) -> Option<bool> {
        match (nix::sys::stat::lstat(&self.path), fstat(&self.directory)) {
            // In a container the path leads to a mount, also of a directory that the host has removed.
            (Ok(there), Ok(held)) => Some(
                (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino) && held.st_nlink > 0,
            ),
            (Err(Errno::ENOENT), _) => Some(false),
            _ => None,
        }
    }

    /// Removes the listener's name if it is still its own. For a [claimed](Self::claim) path this takes no lock: a
    /// leaving agent has many of those, and a pod may hold the lock on each. Should the name have become a successor's
    /// meanwhile, that one binds it again within a second.
    pub(crate) fn release(&self, listening: &Listening) {
        for name in [&self.name, &listening.temporary] {
            if self
                .stat(name)
                .is_some_and(|stat| stat.st_ino == listening.inode)
            {
                let _ = unlinkat(&self.directory, name.as_str(), UnlinkatFlags::NoRemoveDir);
            }
        }
    }

    /// Sets the mode of the file `name` itself: whoever may write to the directory could put a link in its place.
    fn set_mode(&self, name: &str, mode: Mode) -> nix::Result<()> {
        fchmodat(&self.directory, name, mode, FchmodatFlags::NoFollowSymlink)
    }

    fn listen_as(&self, mode: Mode) -> io::Result<Listening> {
        let temporary = format!(".{}.{}", self.name, uuid::Uuid::new_v4().simple());
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        passed::refuse(&socket)?;
        // Through the open directory, which cannot be replaced meanwhile and keeps the path short (unix(7): 107 bytes).
        let address = UnixAddr::new(&self.through(&temporary))?;
        bind(socket.as_raw_fd(), &address)?;
        self.set_mode(&temporary, mode)?;
        listen(&socket, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN))?;
        let inode = self
            .stat(&temporary)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?
            .st_ino;
        Ok(Listening {
            listener: Arc::new(Listener::new(socket.into())?),
            inode,
            temporary,
        })
    }

    /// Renames the listener to the socket's path, whoever had it before.
    pub(crate) async fn take(&self, listening: &Listening) -> io::Result<()> {
        let _lock = self.lock().await;
        self.rename(listening).map_err(|error| {
            let path = self.socket();
            let text = format!("cannot take the socket's path {}: {error}", path.display());
            io::Error::new(error.kind(), text)
        })
    }

    fn rename(&self, listening: &Listening) -> io::Result<()> {
        renameat(
            &self.directory,
            listening.temporary.as_str(),
            &self.directory,
            self.name.as_str(),
        )?;
        Ok(())
    }

    /// [Connects](passed::dial) to whoever listens on the path.
    ///
    /// # Errors
    ///
    /// If nobody does, or the kernel refuses.
    pub(crate) fn dial(&self) -> io::Result<OwnedFd> {
        passed::dial(&self.through(&self.name))
    }

    /// Finds out who answers on the path.
    pub(crate) fn look(&self, listening: &Listening) -> Holder {
        use io::ErrorKind::{ConnectionRefused as Refused, NotFound};
        match self.dial() {
            Ok(connection) => passed::let_go(connection),
            Err(error) if matches!(error.kind(), Refused | NotFound) => return Holder::Nobody,
            // The backlog is full, or there is no descriptor to connect with: somebody may be there.
            Err(_) => {}
        }
        match self.stat(&self.name) {
            Some(stat) if stat.st_ino == listening.inode => Holder::Ours,
            Some(_) => Holder::Another,
            None => Holder::Nobody,
        }
    }

    /// Removes the listener's name if it is still its own. Under the lock: if the name were that of a successor about
    /// to [take](Self::take) the path, no pod of the node would find anybody.
    pub(crate) async fn leave(&self, listening: &Listening) {
        let _lock = self.lock().await;
        self.release(listening);
    }

    /// Removes the names that dead agents left behind.
    pub(crate) fn sweep(&self) {
        for name in self.leftovers() {
            match passed::dial(&self.through(&name)) {
                Ok(connection) => passed::let_go(connection),
                // A starting agent listens on its name.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    let _ = unlinkat(&self.directory, name.as_str(), UnlinkatFlags::NoRemoveDir);
                }
                Err(_) => {}
            }
        }
    }

    /// The temporary names on which agents listen before they take the path.
    fn leftovers(&self) -> Vec<String> {
        let beginning = format!(".{}.", self.name);
        let entries = std::fs::read_dir(self.through("."))
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(&beginning))
            .collect()
    }

    /// Takes the lock under which agents change the path; none if somebody else keeps it.
    async fn lock(&self) -> Option<Flock<OwnedFd>> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let directory = openat(&self.directory, ".", flags, Mode::empty()).ok()?;
        lock(directory, &self.path).await
    }

    fn stat(&self, name: &str) -> Option<nix::sys::stat::FileStat> {
        fstatat(
            &self.directory,
            name,
            nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .ok()
    }

    fn through(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()).into()
    }
}

/// Locks what is open, which `path` leads to; none if somebody else keeps the lock.
pub(crate) async fn lock(mut open: OwnedFd, path: &Path) -> Option<Flock<OwnedFd>> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        open = match Flock::lock(open, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((open, _)) => open,
        };
        if Instant::now() >= deadline {
            tracing::warn!(
                path = %path.display(),
                "somebody holds a lock on the path; going on without it"
            );
            return None;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Makes the directory if it is missing; its parent must exist.
///
/// # Errors
///
/// If it cannot be made.
pub(crate) fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        // The umask may have removed the bits that let pods enter.
        Ok(()) => std::fs::set_permissions(path, PermissionsExt::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn a_mode_is_not_set_through_a_link_that_somebody_put_in_the_sockets_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, "").expect("it is ours");
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o600)).expect("it is ours");
        symlink(&elsewhere, directory.path().join("link")).expect("it is ours");
        let path = SocketPath::open(&directory.path().join("agent.sock"), Access::AsItIs);
        let path = path.expect("it is there");
        assert!(
            path.set_mode("link", Mode::from_bits_truncate(0o666))
                .is_err()
        );
        let mode = || {
            fs::metadata(&elsewhere)
                .expect("it is there")
                .permissions()
                .mode()
        };
        assert_eq!(mode() & 0o777, 0o600);
        path.set_mode("elsewhere", Mode::from_bits_truncate(0o666))
            .expect("it is no link");
        assert_eq!(mode() & 0o777, 0o666);
    }
}
