//! Workloads: real processes in real cgroups and namespaces, which do what a test tells them.
//!
//! A [`Workload`] runs the program `pod` where a kubelet would have put it. It sends its requests to the agent over a
//! real socket, and the kernel says who it is. Dropping it kills everything in its cgroup, and removes the cgroup.

mod ask;
mod cgroup;
mod channel;
mod child;
mod descriptors;
mod enter;
mod protocol;
mod run;
mod serve;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io};

pub use cgroup::{Driver, Hierarchies, PodCgroup, Qos, Runtime};
pub use enter::run_pod;
pub use nix::sys::signal::Signal;
pub use protocol::{Command, Executed, Flood, Flooded, Raw, Received, Request, Response, Status};
pub use run::Running;

use cgroup::Cgroup;
use channel::{Channel, Opening};
use enter::{Become, Enter};
use protocol::Line;

use crate::binaries::sibling_binary;
use crate::pid_namespace::{PidNamespace, Program};

pub(crate) use enter::mount_proc;

/// The first of the host's user ids that a workload's own user namespace maps to, and how many.
const MAPPED_USERS: (u32, u32) = (200_000, 65_536);

/// A workload to start; `WorkloadSpec { uid: 10001, ..WorkloadSpec::pod(cgroup, socket) }`.
#[derive(Clone, Debug)]
pub struct WorkloadSpec {
    /// Where it is in the cgroup tree.
    pub place: Place,
    /// The agent's socket, as the workload sees it.
    pub socket: PathBuf,
    /// The user it runs as, in its own user namespace if it has one.
    pub uid: u32,
    /// The group it runs as.
    pub gid: u32,
    /// Whether it has a network namespace of its own.
    pub own_network: bool,
    /// Whether it is the first process of a PID namespace of its own.
    pub own_pids: bool,
    /// Whether it has a user namespace of its own, as with `hostUsers: false`.
    pub own_users: bool,
    /// What is mounted in it, in a mount namespace of its own.
    pub volume: Option<Volume>,
}

/// Where a workload is in the cgroup tree.
#[derive(Clone, Debug)]
pub enum Place {
    /// A pod's container.
    Pod(PodCgroup),
    /// Any path, such as a service's: `/system.slice/cron.service`.
    Path(String, Hierarchies),
    /// Where the test itself is: a process of the node.
    Host,
}

/// A directory of the node that a workload sees, read-only.
#[derive(Clone, Debug)]
pub struct Volume {
    /// The directory on the node.
    pub directory: PathBuf,
    /// Its path in the workload.
    pub at: PathBuf,
}

/// A running workload.
#[derive(Debug)]
pub struct Workload {
    spec: WorkloadSpec,
    channel: Channel,
    pid: u32,
    process: Process,
    cgroup: Option<Arc<Cgroup>>,
    /// Cgroups that it was moved into, which live as long as it does.
    visited: Mutex<Vec<Cgroup>>,
}

/// The process's parent, which can wait for its end.
#[derive(Debug)]
enum Process {
    Child(tokio::process::Child),
    Inside(PidNamespace),
    Ended,
}

impl WorkloadSpec {
    /// A root container of a pod, in a network namespace of its own.
    #[must_use]
    pub fn pod(cgroup: PodCgroup, socket: &Path) -> Self {
        Self {
            place: Place::Pod(cgroup),
            ..Self::host(socket)
        }
    }

    /// A root process of the node, in a network namespace of its own.
    #[must_use]
    pub fn host(socket: &Path) -> Self {
        Self {
            place: Place::Host,
            socket: socket.to_owned(),
            uid: 0,
            gid: 0,
            own_network: true,
            own_pids: false,
            own_users: false,
            volume: None,
        }
    }

    fn enter(&self, cgroup: Option<&Cgroup>) -> Enter {
        Enter {
            cgroup: cgroup.into_iter().flat_map(Cgroup::entrances).collect(),
            network: self.own_network,
            pids: self.own_pids,
            users: self.own_users,
            volume: self.volume.as_ref().map(|volume| volume.directory.clone()),
            at: self.volume.as_ref().map(|volume| volume.at.clone()),
            user: Become {
                uid: self.uid,
                gid: self.gid,
                ..Become::default()
            },
        }
    }
}

impl Place {
    fn cgroup(&self) -> io::Result<Option<Arc<Cgroup>>> {
        let created = match self {
            Self::Pod(pod) => Cgroup::create(&pod.path(), pod.hierarchies)?,
            Self::Path(path, hierarchies) => Cgroup::create(path, *hierarchies)?,
            Self::Host => return Ok(None),
        };
        Ok(Some(Arc::new(created)))
    }
}

impl Workload {
    /// Whether workloads can be started here.
    ///
    /// # Errors
    ///
    /// If they cannot; one line says what is missing and how to run it.
    pub fn supported() -> Result<(), String> {
        if !nix::unistd::geteuid().is_root() {
            return Err(
                "workloads need root, for their cgroups and namespaces: run it with sudo"
                    .to_owned(),
            );
        }
        cgroup::writable().map_err(|error| {
            format!(
                "workloads need a writable cgroup2, outside of any unprivileged container: {error}"
            )
        })
    }

    /// A path to put `kubepods` under that no other sandbox has.
    #[must_use]
    pub fn unique_parent() -> String {
        let id = uuid::Uuid::new_v4().simple().to_string();
        format!("/latchkey-test-{}", &id[..12])
    }

    /// Starts a workload.
    ///
    /// # Errors
    ///
    /// If its cgroup cannot be made, or its process ends before it takes tasks.
    pub async fn start(spec: WorkloadSpec) -> io::Result<Self> {
        let cgroup = spec.place.cgroup()?;
        Self::start_child(spec, cgroup).await
    }

    /// Starts a workload in a PID namespace, with the given PID if there is one.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start), and if the PID is taken, or the workload wants a user namespace, impossible there.
    pub async fn start_in(
        namespace: &PidNamespace,
        spec: WorkloadSpec,
        pid: Option<u32>,
    ) -> io::Result<Self> {
        if spec.own_users || spec.own_pids {
            let text = "inside a PID namespace a workload has no user or PID namespace of its own";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let cgroup = spec.place.cgroup()?;
        let program = Program {
            pid,
            arguments: spec.enter(cgroup.as_deref()).arguments(),
            ..Program::new(&sibling_binary("pod")?)
        };
        let (pid, stream) = namespace.spawn_with_line(program).await?;
        let mut opening = Opening::new(stream);
        let Line::Ready { .. } = opening.next().await? else {
            return Err(io::Error::other(
                "the pod said something else than that it is ready",
            ));
        };
        Ok(Self {
            spec,
            channel: opening.ready(),
            pid,
            process: Process::Inside(namespace.clone()),
            cgroup,
            visited: Mutex::default(),
        })
    }

    /// Starts a second process in the same container, as `kubectl exec` does.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn exec_into(&self) -> io::Result<Self> {
        Self::start_child(self.spec.clone(), self.cgroup.clone()).await
    }

    async fn start_child(spec: WorkloadSpec, cgroup: Option<Arc<Cgroup>>) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = tokio::process::Command::new(sibling_binary("pod")?);
        command.args(spec.enter(cgroup.as_deref()).arguments());
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .kill_on_drop(true);
        let child = command.spawn()?;
        // Otherwise its copy of the child's end would keep the line open after the child has ended.
        drop(command);
        let launcher = child
            .id()
            .ok_or_else(|| io::Error::other("the pod ended at once"))?;
        let mut opening = Opening::new(tokio::net::UnixStream::from_std(ours)?);
        let (mut ready, mut pid) = (false, (!spec.own_pids).then_some(launcher));
        while !ready || pid.is_none() {
            match opening.next().await? {
                Line::MapUsers => {
                    map_users(launcher)?;
                    opening.go_on().await?;
                }
                Line::Launched { pid: inner } => pid = Some(inner),
                Line::Ready { .. } => ready = true,
                Line::Done { .. } => {}
            }
        }
        Ok(Self {
            spec,
            channel: opening.ready(),
            pid: pid.unwrap_or(launcher),
            process: Process::Child(child),
            cgroup,
            visited: Mutex::default(),
        })
    }

    /// Its PID, as the test and the agent see it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The specification that it was started with.
    #[must_use]
    pub fn spec(&self) -> &WorkloadSpec {
        &self.spec
    }

    /// `/proc/PID/cgroup` of its process, as the test reads it.
    ///
    /// # Errors
    ///
    /// If the process is gone.
    pub fn cgroup_lines(&self) -> io::Result<String> {
        match &self.process {
            Process::Inside(namespace) => namespace.read(&format!("/proc/{}/cgroup", self.pid)),
            Process::Child(_) | Process::Ended => {
                fs::read_to_string(format!("/proc/{}/cgroup", self.pid))
            }
        }
    }

    /// The file by which another process enters its cgroup: to the kernel, that process is then in the same container.
    #[must_use]
    pub fn entrance(&self) -> Option<PathBuf> {
        self.cgroup.as_ref()?.entrances().next()
    }

    /// A command in this container, as `kubectl exec` runs one: the kernel says of its process what it says of the
    /// workload's own. Its namespaces and its environment are the test's.
    ///
    /// # Errors
    ///
    /// If the workload has no cgroup of its own.
    pub fn command(&self, program: &Path) -> io::Result<tokio::process::Command> {
        let entrance = self.entrance().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = tokio::process::Command::new("/bin/sh");
        // The shell enters and then becomes the program, so the program's process is inside from its start.
        command.args(["-c", "echo 0 > \"$0\" && exec \"$@\""]);
        command.arg(entrance).arg(program).kill_on_drop(true);
        Ok(command)
    }

    /// Moves the process into another workload's cgroup.
    ///
    /// # Errors
    ///
    /// If the other one has none, or the kernel refuses.
    pub fn move_into(&self, other: &Self) -> io::Result<()> {
        let cgroup = other.cgroup.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        cgroup.admit(self.pid)
    }

    /// Makes a cgroup with any path on the unified hierarchy and moves the process there.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn move_to(&self, path: &str) -> io::Result<()> {
        let cgroup = Cgroup::create(path, Hierarchies::V2)?;
        cgroup.admit(self.pid)?;
        self.visited
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(cgroup);
        Ok(())
    }

    /// Moves the process into a cgroup below its container's, for example one with the name of another pod's.
    ///
    /// # Errors
    ///
    /// If the workload is not a pod, or the kernel refuses.
    pub fn nest(&self, below: &str) -> io::Result<()> {
        let Place::Pod(pod) = &self.spec.place else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.move_to(&format!("{}/{}", pod.path(), below.trim_start_matches('/')))
    }

    /// Sends the process a signal.
    ///
    /// # Errors
    ///
    /// If it has ended.
    pub async fn signal(&self, signal: Signal) -> io::Result<()> {
        match &self.process {
            Process::Child(_) => send_signal(self.pid, signal),
            Process::Inside(namespace) => namespace.signal(self.pid, signal).await,
            Process::Ended => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Kills the process and reaps it: when this returns, its PID is free.
    ///
    /// # Errors
    ///
    /// If it cannot be killed.
    pub async fn kill(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.process, Process::Ended) {
            Process::Child(mut child) => {
                // In a PID namespace of its own it is the child's child, and the child ends with it.
                let _already_gone = send_signal(self.pid, Signal::SIGKILL);
                child.wait().await.map(drop)
            }
            Process::Inside(namespace) => {
                let _already_gone = namespace.signal(self.pid, Signal::SIGKILL).await;
                namespace.wait(self.pid).await.map(drop)
            }
            Process::Ended => Ok(()),
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        if let Process::Child(child) = &mut self.process {
            // Not reaped yet, so the PID is still this process's.
            if let Ok(None) = child.try_wait() {
                let _already_gone = send_signal(self.pid, Signal::SIGKILL);
            }
        }
        // Inside a PID namespace, the process ends with the line; its cgroup kills the rest.
    }
}

fn send_signal(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    Ok(nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        signal,
    )?)
}

/// Maps the user and group ids of a process's new user namespace (user_namespaces(7)).
fn map_users(pid: u32) -> io::Result<()> {
    let (first, number) = MAPPED_USERS;
    let map = format!("0 {first} {number}");
    fs::write(format!("/proc/{pid}/uid_map"), &map)?;
    fs::write(format!("/proc/{pid}/gid_map"), &map)
}

#[cfg(test)]
mod tests;
