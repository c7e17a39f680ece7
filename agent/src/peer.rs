//! The process at the other end of a connection, pinned so that its PID cannot come to mean another process.
//!
//! A PID is only a number: while a connection waits in the backlog, its process may exit and its PID may go to a
//! process of another pod. `SO_PEERPIDFD` (Linux 6.5) refers to the very process that called `connect(2)`, and the
//! kernel does not reuse a PID while its process lives. So whatever is read about the peer by PID counts only if that
//! pidfd still polls alive *afterwards*. On kernels without this option, [`Pinning::ByNumber`] is the fallback.

use nix::errno::Errno;
use nix::fcntl::readlink;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socketpair};
use nix::sys::stat::fstat;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

/// The limit on a cgroup file, in bytes. The longest seen on a real node is under 4 KiB.
const CGROUP_LIMIT: u64 = 64 * 1024;

/// The limit on the `/proc/PID/net/unix` that the fallback reads, in bytes: some 40,000 sockets in one pod.
const NET_UNIX_LIMIT: u64 = 4 * 1024 * 1024;

/// How a peer's PID is tied to the process that connected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Pinning {
    /// `SO_PEERPIDFD`: the kernel returns the very process that connected, so there is no race.
    ByPidfd,
    /// `pidfd_open(2)` on the PID; then the connection's own socket must be listed in that process's network namespace,
    /// which proves that whoever has the PID now is in the pod that connected. On the node's own network are many: its
    /// own processes, pods with `hostNetwork`, and for a moment each container that is being started. Who connects from
    /// there is denied.
    ByNumber,
}

/// A connected process that could be pinned.
#[derive(Debug)]
pub(crate) struct Peer {
    pid: i32,
    uid: u32,
    /// Absent where the kernel has no pidfd for a process that the agent cannot see.
    pidfd: Option<OwnedFd>,
    pinning: Pinning,
    on_nodes_network: bool,
}

/// A peer as the kernel names it when a connection has been accepted.
#[derive(Debug)]
pub(crate) enum Named {
    /// The process that connected, if the agent needs to know which one it was.
    Pinned(Peer),
    /// The process that has its number now.
    ByNumber(Claim),
}

/// A process that has the number of the one that connected, and keeps it; not yet proven to be in the same pod.
#[derive(Debug)]
pub(crate) struct Claim(Peer);

/// Why a peer could not be pinned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    /// It has exited, possibly while the agent was reading it.
    #[error("the peer has exited")]
    Gone,
    /// The kernel reports PID 0: the peer is outside the agent's PID namespace.
    #[error("the peer is outside the agent's PID namespace: run the agent with hostPID: true")]
    OutsidePidNamespace,
    /// The process that now has the peer's PID does not own the connection.
    #[error(
        "the process under the peer's number is not in the pod, or not of the user, that connected"
    )]
    Recycled,
    /// The kernel did not let the agent read the peer.
    #[error("cannot look at the peer: {0}")]
    Io(#[from] io::Error),
}

// === impl Pinning ===

impl Pinning {
    /// Finds out which pinning this kernel supports by trying it on a socket pair: distributions backport, so the
    /// version says nothing.
    ///
    /// # Errors
    ///
    /// If no socket pair can be made, or the kernel returns neither a pidfd nor `ENOPROTOOPT`.
    pub(crate) fn probe() -> io::Result<Self> {
        let (one, _other) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        match getsockopt(&one, PeerPidfd) {
            Ok(_) => Ok(Self::ByPidfd),
            Err(Errno::ENOPROTOOPT) => Ok(Self::ByNumber),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Tries the fallback on this process.
    ///
    /// # Errors
    ///
    /// If the kernel refuses it.
    pub(crate) fn must_work(self) -> io::Result<()> {
        if self == Self::ByNumber {
            pidfd_of(getpid())?;
        }
        Ok(())
    }
}

// === impl Peer ===

impl Peer {
    /// The process that connected `stream`, by `SO_PEERCRED` and `SO_PEERPIDFD` (unix(7)).
    ///
    /// # Errors
    ///
    /// If the process cannot be tied to the connection, or is already reported as exited.
    pub(crate) fn of(stream: &impl AsFd, pinning: Pinning) -> Result<Self, PeerError> {
        match Self::named(stream, pinning)? {
            Named::Pinned(peer) => Ok(peer),
            Named::ByNumber(claim) => claim.prove(stream),
        }
    }

    /// The first part of [`Self::of`], which takes little time: the sooner after `connect(2)`, the fewer processes can
    /// have had the number. A process outside the agent's PID namespace has none.
    ///
    /// # Errors
    ///
    /// If the process has exited, or the kernel says nothing about it.
    pub(crate) fn named(stream: &impl AsFd, pinning: Pinning) -> Result<Named, PeerError> {
        let mut peer = Self::unseen(stream, pinning)?;
        match (pinning, Pid::from_raw(peer.pid)) {
            (Pinning::ByNumber, Some(number)) => {
                let pidfd = pidfd_of(number).map_err(|errno| match errno {
                    rustix::io::Errno::SRCH => PeerError::Gone,
                    errno => PeerError::Io(errno.into()),
                })?;
                peer.pidfd = Some(pidfd);
                Ok(Named::ByNumber(Claim(peer)))
            }
            // Nothing can be read about a process without a number, so it is refused as soon as anything is.
            _ => Ok(Named::Pinned(peer)),
        }
    }

    /// The process that connected `stream`, whether or not the agent can see it: for a socket that by itself proves who
    /// its peers are. Where the kernel offers pidfds, the process is still pinned by one.
    ///
    /// # Errors
    ///
    /// If the process has exited, or the kernel says nothing about it.
    pub(crate) fn unseen(stream: &impl AsFd, pinning: Pinning) -> Result<Self, PeerError> {
        // The pidfd first: only with it can the PID be checked.
        let pidfd = match pinning {
            Pinning::ByPidfd => Some(peer_pidfd(stream)?),
            Pinning::ByNumber => None,
        };
        let credentials = getsockopt(stream, PeerCredentials).map_err(io::Error::from)?;
        Ok(Self {
            pid: credentials.pid(),
            uid: credentials.uid(),
            pidfd,
            pinning,
            on_nodes_network: false,
        })
    }

    /// The process's PID in the agent's PID namespace, 0 if it is not in it.
    #[must_use]
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// The uid under which it connected, as the agent's user namespace sees it. In Kubernetes, never a reason to allow.
    #[must_use]
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// How the process is tied to the connection.
    #[must_use]
    pub(crate) fn pinning(&self) -> Pinning {
        self.pinning
    }

    /// Whether it is pinned by number and connected on the node's own network, where the number may have been another's.
    #[must_use]
    pub(crate) fn is_on_nodes_network(&self) -> bool {
        self.on_nodes_network
    }

    /// A descriptor that becomes readable when the process exits (`pidfd_open(2)`).
    #[must_use]
    pub(crate) fn pidfd(&self) -> Option<&OwnedFd> {
        self.pidfd.as_ref()
    }

    /// Whether the process that connected still runs, as far as it is pinned. A zombie counts as exited: `poll(2)` sees
    /// that, whereas signal 0 would still reach it.
    #[must_use]
    pub(crate) fn is_alive(&self) -> bool {
        let Some(pidfd) = &self.pidfd else {
            return true;
        };
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::ZERO) {
                // A signal came to the agent, such as the one to leave.
                Err(Errno::EINTR) => {}
                outcome => return outcome == Ok(0),
            }
        }
    }

    /// Confirms what was read about the process by its PID: see [`Self::is_alive`].
    ///
    /// # Errors
    ///
    /// If it has exited.
    pub(crate) fn must_be_alive(&self) -> Result<(), PeerError> {
        if self.is_alive() {
            Ok(())
        } else {
            Err(PeerError::Gone)
        }
    }

    /// Appends the process's cgroup file to `text`, proven to be that of the process that connected: it is still alive
    /// afterwards, so no other process can have had its PID meanwhile.
    ///
    /// # Errors
    ///
    /// If the process has exited or the file cannot be read.
    pub(crate) fn read_cgroup(&self, text: &mut Vec<u8>) -> Result<(), PeerError> {
        self.read("cgroup", CGROUP_LIMIT, text)?;
        self.must_be_alive()
    }

    /// Appends a file from the process's `/proc` directory; a file of `limit` bytes or more is refused as a whole.
    pub(crate) fn read(&self, file: &str, limit: u64, into: &mut Vec<u8>) -> Result<(), PeerError> {
        let file = self.open(file)?;
        self.read_from(&file, limit, into)
    }

    /// The target of a link in the process's `/proc` directory, such as a namespace. It counts only if the process is
    /// alive afterwards.
    pub(crate) fn read_link(&self, link: &str) -> Result<OsString, PeerError> {
        readlink(self.proc(link)?.as_str()).map_err(|errno| self.unreadable(errno.into()))
    }

    /// What a failed read about the process means. A missing file does not prove that the process has exited: `/proc`
    /// may hide it (`hidepid`, proc(5)).
    fn unreadable(&self, error: io::Error) -> PeerError {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ESRCH) if !self.is_alive() => PeerError::Gone,
            _ => PeerError::Io(error),
        }
    }

    fn proc(&self, file: &str) -> Result<String, PeerError> {
        match self.pid {
            0 => Err(PeerError::OutsidePidNamespace),
            pid => Ok(format!("/proc/{pid}/{file}")),
        }
    }

    fn open(&self, file: &str) -> Result<File, PeerError> {
        File::open(self.proc(file)?).map_err(|error| self.unreadable(error))
    }

    fn read_from(&self, file: &File, limit: u64, into: &mut Vec<u8>) -> Result<(), PeerError> {
        let read = file.take(limit).read_to_end(into);
        if read.map_err(|error| self.unreadable(error))? as u64 == limit {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge).into());
        }
        Ok(())
    }
}

// === impl Claim ===

impl Claim {
    /// The peer, if the process that has its number is in the network namespace that `stream` was connected in.
    ///
    /// # Errors
    ///
    /// If it is not, or has exited.
    pub(crate) fn prove(mut self, stream: &impl AsFd) -> Result<Peer, PeerError> {
        let table = self.must_own(stream)?;
        self.0.must_be_alive()?;
        self.0.on_nodes_network = nodes_table().is_none_or(|nodes| nodes == table);
        Ok(self.0)
    }

    /// An accepted `AF_UNIX` socket belongs to the network namespace of the process that connected it, so its inode is
    /// in that process's `/proc/PID/net/unix` (proc_pid_net(5)) and in no other pod's. Returns which table it is in.
    fn must_own(&self, stream: &impl AsFd) -> Result<u64, PeerError> {
        let inode = fstat(stream).map_err(io::Error::from)?.st_ino.to_string();
        let file = self.0.open("net/unix")?;
        let mut table = Vec::new();
        self.0.read_from(&file, NET_UNIX_LIMIT, &mut table)?;
        // Num RefCount Protocol Flags Type St Inode Path
        let listed = table.split(|byte| *byte == b'\n').skip(1).any(|line| {
            let mut columns = line
                .split(|byte| *byte == b' ')
                .filter(|column| !column.is_empty());
            columns.nth(6) == Some(inode.as_bytes())
        });
        if listed {
            Ok(file.metadata()?.ino())
        } else {
            Err(PeerError::Recycled)
        }
    }
}

/// The socket table of the node's first process; none if it cannot be seen.
///
/// Tables have inodes of their own in each network namespace (`proc_alloc_inum` in fs/proc/generic.c). Any process may
/// see them, but links to namespaces only with the rights of a debugger (ptrace(2)).
fn nodes_table() -> Option<u64> {
    let table = std::fs::metadata("/proc/1/net/unix").ok()?;
    Some(table.ino())
}

fn pidfd_of(process: Pid) -> Result<OwnedFd, rustix::io::Errno> {
    pidfd_open(process, PidfdFlags::empty())
}

fn peer_pidfd(stream: &impl AsFd) -> Result<OwnedFd, PeerError> {
    match getsockopt(stream, PeerPidfd) {
        Ok(pidfd) => Ok(pidfd),
        // Before Linux 6.16 the kernel refuses a pidfd for a peer that has been reaped.
        Err(Errno::EINVAL | Errno::ESRCH | Errno::ENODATA) => Err(PeerError::Gone),
        Err(errno) => Err(io::Error::from(errno).into()),
    }
}

/// Whether the machine has run out of descriptors, memory or what a user may watch with epoll (`ENOSPC`, epoll_ctl(2)),
/// which says nothing about a peer.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS | Errno::ENOSPC)
    )
}

#[cfg(test)]
pub(crate) mod tests;
