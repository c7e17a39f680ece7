//! Mounts: the pod's directory at the path that the kubelet names, and the tmpfs that holds all directories.
//!
//! Each step may already be done, or half done: a mounter that is killed between two steps is followed by one that
//! starts from the first.

use super::publish::Target;
use super::volume::gone;
use crate::mountinfo;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat, stat};
use nix::unistd::{UnlinkatFlags, mkdir, unlinkat};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Forbids what nobody needs in one of our volumes.
const FLAGS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// The last component of each target's path.
const MOUNT: &str = "mount";

/// Opens a directory as a place, not to read it.
const DIRECTORY: OFlag = OFlag::O_PATH
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// More mounts than anybody has ever stacked on one path.
const MOST_STACKED: usize = 1 << 16;

const NONE: Option<&str> = None;

/// Mounts `source` read-only at `target`, unless it already is, by way of the directory `staging`. That is root's, and
/// for this source alone: two mounters on a node may be at work at once, in an upgrade.
///
/// The kernel makes a mount read-only in the mount namespace where that is asked for, and in no other: were it done at
/// the target, the node could still write there, as the kubelet does in a pod's name when it makes a missing `subPath`.
/// A new mount has the options of the one that it is made from, in every namespace.
///
/// # Errors
///
/// If the kernel refuses.
pub(super) fn bind(source: &Path, staging: &Path, target: &Target) -> io::Result<()> {
    let parent = open_parent(target)?;
    match mkdirat(&parent, MOUNT, Mode::from_bits_truncate(0o750)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    if let [options] = &options_at(&target.path)?[..]
        && is_confined(options)
        && is_same(source, &target.path)?
    {
        return Ok(());
    }
    // One that was killed may have left it mounted.
    clear(staging)?;
    mkdir(staging, Mode::S_IRWXU)?;
    let outcome = mount(Some(source), staging, NONE, MsFlags::MS_BIND, NONE)
        .map_err(io::Error::from)
        .and_then(|()| bind_confined(staging, &parent));
    clear(staging)?;
    outcome
}

/// Removes the directory `staging` and what is mounted there. Neither need exist.
///
/// # Errors
///
/// If the kernel refuses.
pub(super) fn clear(staging: &Path) -> io::Result<()> {
    unmount(staging)?;
    gone(fs::remove_dir(staging))
}

/// Confines what is mounted at `staging`, and mounts it at the target in `parent` in place of whatever is there. For the
/// moment between the two nothing is there, which a pod can meet only if its volume was not as it should be.
fn bind_confined(staging: &Path, parent: &OwnedFd) -> io::Result<()> {
    // By a descriptor: if another mounter unmounts it now, this fails, and does not mount the directory below.
    let staged = open(staging, DIRECTORY, Mode::empty())?;
    // Otherwise whatever somebody mounts on the target would be mounted on the store's directory, too.
    mount(NONE, &through(&staged), NONE, MsFlags::MS_PRIVATE, NONE)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | FLAGS;
    mount(NONE, &through(&staged), NONE, flags, NONE)?;
    unmount_all(parent)?;
    let below = open_in(parent, MOUNT)?;
    let (staged, below) = (through(&staged), through(&below));
    Ok(mount(Some(&staged), &below, NONE, MsFlags::MS_BIND, NONE)?)
}

/// Whether `source` is mounted at `target`, with whatever options: an older mounter left it writable for the node.
///
/// # Errors
///
/// If that cannot be determined.
pub(super) fn is_bound(source: &Path, target: &Target) -> io::Result<bool> {
    match is_same(source, &target.path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        outcome => outcome,
    }
}

/// Removes every mount at `target`, and its directory. Neither need exist.
///
/// # Errors
///
/// If the kernel refuses.
pub(super) fn release(target: &Target) -> io::Result<()> {
    let parent = match open_parent(target) {
        Ok(parent) => parent,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    unmount_all(&parent)?;
    match unlinkat(&parent, MOUNT, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Mounts a tmpfs with these options at `at`, unless something is there; off swap if the kernel can (Linux 6.4).
///
/// # Errors
///
/// If the kernel refuses.
pub(super) fn memory(at: &Path, options: &str) -> io::Result<()> {
    if !options_at(at)?.is_empty() {
        return Ok(());
    }
    let tmpfs = |options: &str| mount(Some("latchkey"), at, Some("tmpfs"), FLAGS, Some(options));
    match tmpfs(&format!("{options},noswap")) {
        Err(Errno::EINVAL) => Ok(tmpfs(options)?),
        outcome => Ok(outcome?),
    }
}

/// Gives the tmpfs at `at` these options, whatever it was mounted with. What it holds stays.
///
/// # Errors
///
/// If it holds more than that, or the kernel refuses.
pub(super) fn resize(at: &Path, options: &str) -> io::Result<()> {
    let flags = FLAGS | MsFlags::MS_REMOUNT;
    let remount = |options: &str| mount(NONE, at, NONE, flags, Some(options));
    match remount(options) {
        // From Linux 6.4 until late 2025 a tmpfs that is off swap can only be mounted again with that option, and one
        // that is not never can (`shmem_reconfigure` in mm/shmem.c).
        Err(Errno::EINVAL) => Ok(remount(&format!("{options},noswap"))?),
        outcome => Ok(outcome?),
    }
}

/// Removes every mount at `path`, which must be in a directory that is root's alone.
///
/// # Errors
///
/// If the kernel refuses.
pub(super) fn unmount(path: &Path) -> io::Result<()> {
    for _ in 0..MOST_STACKED {
        match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // A mount in use is detached now, and ends when the last file in it is closed.
            Err(Errno::EBUSY) => umount2(path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)?,
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::Error::other(format!(
        "there are too many mounts on {}",
        path.display()
    )))
}

fn unmount_all(parent: &OwnedFd) -> io::Result<()> {
    // Through the directory that is held open: nothing can be put in the path's place.
    unmount(&through(parent).join(MOUNT))
}

/// Opens the directory that the target is in, without following symbolic links.
fn open_parent(target: &Target) -> io::Result<OwnedFd> {
    let pods = open(&target.pods, DIRECTORY, Mode::empty())?;
    let how = OpenHow::new().flags(DIRECTORY).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    );
    Ok(openat2(&pods, target.parent.as_str(), how)?)
}

fn open_in(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = DIRECTORY | OFlag::O_NOFOLLOW;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

fn through(descriptor: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd()).into()
}

fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (stat(one)?, stat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

fn is_confined(options: &str) -> bool {
    ["ro", "nosuid", "nodev", "noexec"]
        .iter()
        .all(|wanted| options.split(',').any(|option| option == *wanted))
}

/// The options of every mount on exactly this path, oldest first.
fn options_at(path: &Path) -> io::Result<Vec<String>> {
    let mounts = mountinfo::mounts()?.into_iter();
    let there = mounts.filter(|mount| mount.point == path);
    Ok(there.map(|mount| mount.options).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_confined_by_all_four_options_and_no_fewer() {
        assert!(is_confined("ro,nosuid,nodev,noexec,relatime"));
        for options in ["rw", "rw,nosuid,nodev,noexec", "ro,nosuid,nodev,noexec2"] {
            assert!(!is_confined(options), "{options}");
        }
    }
}
