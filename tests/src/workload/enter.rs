//! How a process becomes a pod's: cgroup, mounts, namespaces, user; each step while it still has the right to.
//!
//! This runs in the program `pod`, before it has any thread.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser as _;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::protocol::Line;
use super::serve;

/// The program's own file, even if the user may not see the path to it.
const SELF: &str = "/proc/self/exe";

#[derive(Debug, clap::Parser)]
enum Stage {
    Enter(Enter),
    Become(Become),
    Serve,
}

/// The stage that enters the cgroup and the namespaces.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Enter {
    /// A `cgroup.procs` to enter by; more than one on several hierarchies.
    #[arg(long)]
    pub(super) cgroup: Vec<PathBuf>,
    #[arg(long)]
    pub(super) network: bool,
    #[arg(long)]
    pub(super) pids: bool,
    #[arg(long)]
    pub(super) users: bool,
    /// A directory to mount read-only at `at`.
    #[arg(long, requires = "at")]
    pub(super) volume: Option<PathBuf>,
    #[arg(long)]
    pub(super) at: Option<PathBuf>,
    #[command(flatten)]
    pub(super) user: Become,
}

/// The stage that becomes the user.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Become {
    #[arg(long, default_value_t = 0)]
    pub(super) uid: u32,
    #[arg(long, default_value_t = 0)]
    pub(super) gid: u32,
    /// Whether `/proc` is to show this PID namespace.
    #[arg(long)]
    pub(super) proc: bool,
}

/// Runs the program `pod`.
///
/// # Errors
///
/// If a step into the pod fails.
pub fn run_pod() -> io::Result<ExitCode> {
    match Stage::parse() {
        Stage::Enter(enter) => enter.run(),
        Stage::Become(user) => user.run(),
        Stage::Serve => serve::run(control()?).map(|()| ExitCode::SUCCESS),
    }
}

/// The line to the test: a socket as standard input, so that what the pod prints disturbs nothing.
fn control() -> io::Result<UnixStream> {
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

fn say(control: &mut UnixStream, line: &Line) -> io::Result<()> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    control.write_all(&line)
}

impl Enter {
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["enter".to_owned()];
        for cgroup in &self.cgroup {
            arguments.extend(["--cgroup".to_owned(), cgroup.display().to_string()]);
        }
        if let (Some(volume), Some(at)) = (&self.volume, &self.at) {
            let (volume, at) = (volume.display().to_string(), at.display().to_string());
            arguments.extend(["--volume".to_owned(), volume, "--at".to_owned(), at]);
        }
        for (wanted, flag) in [
            (self.network, "--network"),
            (self.pids, "--pids"),
            (self.users, "--users"),
        ] {
            if wanted {
                arguments.push(flag.to_owned());
            }
        }
        arguments.extend(self.user.user_arguments());
        arguments
    }

    fn run(self) -> io::Result<ExitCode> {
        for entrance in &self.cgroup {
            // 0 is the writer itself, in whatever PID namespace it is (cgroups(7)).
            fs::write(entrance, "0")
                .map_err(|error| named(error, &format!("enter {}", entrance.display())))?;
        }
        if let (Some(volume), Some(at)) = (&self.volume, &self.at) {
            // Before the user namespace, in which the flags of inherited mounts can no longer be changed.
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount_volume(volume, at)?;
        }
        let mut flags =
            CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWCGROUP;
        flags.set(CloneFlags::CLONE_NEWNET, self.network);
        flags.set(CloneFlags::CLONE_NEWUSER, self.users);
        flags.set(
            CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS,
            self.pids,
        );
        unshare(flags).map_err(|error| named(error.into(), "make namespaces"))?;
        let mut control = control()?;
        if self.users {
            say(&mut control, &Line::MapUsers)?;
            control.read_exact(&mut [0])?;
            // At once: a program that starts as nobody loses its capabilities in the new namespace.
            set_user(0, 0)?;
        }
        let mut next = Command::new(SELF);
        next.arg("become").args(self.user.user_arguments());
        if !self.pids {
            return Err(next.exec());
        }
        let mut init = next.arg("--proc").spawn()?;
        say(&mut control, &Line::Launched { pid: init.id() })?;
        drop(control);
        let code = init.wait()?.code().and_then(|code| u8::try_from(code).ok());
        Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
    }
}

impl Become {
    fn user_arguments(&self) -> [String; 4] {
        [
            "--uid".to_owned(),
            self.uid.to_string(),
            "--gid".to_owned(),
            self.gid.to_string(),
        ]
    }

    fn run(self) -> io::Result<ExitCode> {
        if self.proc {
            mount_proc()?;
        }
        if (self.uid, self.gid) != (0, 0) {
            set_user(self.uid, self.gid)?;
        }
        // A new program: after a change of user, only execve makes the process an ordinary one of that user.
        Err(Command::new(SELF).arg("serve").exec())
    }
}

/// Mounts the `/proc` of the caller's own PID namespace, in a mount namespace of its own.
///
/// # Errors
///
/// If the kernel refuses.
pub(crate) fn mount_proc() -> io::Result<()> {
    private_mounts()?;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::empty(),
        None::<&str>,
    )
    .map_err(|error| named(error.into(), "mount /proc"))
}

fn private_mounts() -> io::Result<()> {
    let none = None::<&str>;
    Ok(mount(
        none,
        "/",
        none,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        none,
    )?)
}

/// Mounts `volume` read-only at `at`; if `at` does not exist, on a tmpfs that hides its parent.
fn mount_volume(volume: &Path, at: &Path) -> io::Result<()> {
    let none = None::<&str>;
    private_mounts()?;
    // Held by a descriptor, because the tmpfs may hide the path.
    let held =
        File::open(volume).map_err(|error| named(error, &format!("open {}", volume.display())))?;
    if !at.exists() {
        let parent = at.parent().ok_or(io::ErrorKind::InvalidInput)?;
        mount(
            Some("tmpfs"),
            parent,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=0755"),
        )
        .map_err(|error| {
            named(
                error.into(),
                &format!("mount a tmpfs at {}", parent.display()),
            )
        })?;
        fs::create_dir(at)?;
    }
    let source = format!("/proc/self/fd/{}", held.as_raw_fd());
    let bind = MsFlags::MS_BIND;
    mount(Some(source.as_str()), at, none, bind, none).map_err(|error| {
        named(
            error.into(),
            &format!("mount {} at {}", volume.display(), at.display()),
        )
    })?;
    Ok(mount(
        none,
        at,
        none,
        bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        none,
    )?)
}

fn set_user(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    Ok(setresuid(uid, uid, uid)?)
}

fn named(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what}: {error}"))
}
