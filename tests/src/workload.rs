//! Workloads: real processes in real cgroups and namespaces, which do what a test tells them.
//!
//! A [`Workload`] runs the program `pod` where a kubelet would have put it. What it asks of the agent it asks over a
//! real socket, and who it is the kernel says. Its end kills everything in its cgroup and removes it.

mod cgroup;
mod channel;
mod enter;
mod protocol;
mod serve;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io};

pub use cgroup::{Driver, Hierarchies, PodCgroup, Qos, Runtime};
pub use enter::run_pod;
pub use nix::sys::signal::Signal;
pub use protocol::{Executed, Flood, Flooded, Raw, Received, Request, Response, Status};

use cgroup::Cgroup;
use channel::{Channel, Opening};
use enter::{Become, Enter};
use protocol::{Line, Outcome, Task};

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
    /// What it has mounted, in a mount namespace of its own.
    pub volume: Option<Volume>,
}

/// Where a workload is in the cgroup tree.
#[derive(Clone, Debug)]
pub enum Place {
    /// A pod's container.
    Pod(PodCgroup),
    /// Any path, such as a service's: `/system.slice/cron.service`.
    Path(String, Hierarchies),
    /// Wherever the test is: a process of the node.
    Host,
}

/// A directory of the node that a workload sees, read-only.
#[derive(Clone, Debug)]
pub struct Volume {
    /// The directory on the node.
    pub directory: PathBuf,
    /// Where the workload has it.
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

/// Who started the process, and so can wait for its end.
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
    /// If not: one line that says what is missing and how to run it.
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

    /// A path above `kubepods` that no other sandbox has.
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

    /// Starts a workload in a PID namespace, with the given PID if one is given.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start), and if the PID is taken; a user namespace of its own it cannot have there.
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
        // Otherwise its copy of the child's end would keep the line open beyond the child's end.
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

    /// What it was started from.
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

    /// The file by which another process enters its cgroup: to the kernel it is then a process of the same container.
    #[must_use]
    pub fn entrance(&self) -> Option<PathBuf> {
        self.cgroup.as_ref()?.entrances().next()
    }

    /// Asks for `path` on a new connection.
    ///
    /// # Errors
    ///
    /// If there is no response.
    pub async fn get(&self, path: &str) -> io::Result<Response> {
        self.request(Request::get(path)).await
    }

    /// Makes a request on a new connection.
    ///
    /// # Errors
    ///
    /// If there is no response.
    pub async fn request(&self, request: Request) -> io::Result<Response> {
        self.ask(None, request).await
    }

    /// Opens a connection and keeps it under a name.
    ///
    /// # Errors
    ///
    /// If nobody listens.
    pub async fn connect(&self, name: &str) -> io::Result<()> {
        let task = Task::Connect {
            name: name.to_owned(),
            socket: self.socket(),
        };
        self.channel.ask(task).await.map(drop)
    }

    /// Closes a named connection.
    ///
    /// # Errors
    ///
    /// If there is none of that name, or it is in use.
    pub async fn close(&self, name: &str) -> io::Result<()> {
        self.channel
            .ask(Task::Close {
                name: name.to_owned(),
            })
            .await
            .map(drop)
    }

    /// Makes a request on a named connection, which stays open.
    ///
    /// # Errors
    ///
    /// If there is no response; the connection is gone then.
    pub async fn send_on(&self, name: &str, request: Request) -> io::Result<Response> {
        self.ask(Some(name.to_owned()), request).await
    }

    /// Writes bytes as they are and reads what comes back.
    ///
    /// # Errors
    ///
    /// If it cannot connect, or the connection breaks.
    pub async fn raw(&self, raw: Raw) -> io::Result<Received> {
        match self
            .channel
            .ask(Task::Raw {
                socket: self.socket(),
                raw,
            })
            .await?
        {
            Outcome::Received(received) => Ok(received),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes many requests.
    ///
    /// # Errors
    ///
    /// If the workload is gone.
    pub async fn flood(&self, flood: Flood) -> io::Result<Flooded> {
        match self
            .channel
            .ask(Task::Flood {
                socket: self.socket(),
                flood,
            })
            .await?
        {
            Outcome::Flooded(flooded) => Ok(flooded),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs a program in the workload to its end.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub async fn execute(&self, program: &str, arguments: &[&str]) -> io::Result<Executed> {
        let arguments = arguments
            .iter()
            .map(|&argument| argument.to_owned())
            .collect();
        match self
            .channel
            .ask(Task::Execute {
                program: program.to_owned(),
                arguments,
            })
            .await?
        {
            Outcome::Executed(executed) => Ok(executed),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs `curl` on the agent's socket, with what else it needs, such as the URL `http://localhost/v1/secrets/x`.
    ///
    /// # Errors
    ///
    /// If there is no curl.
    pub async fn curl(&self, arguments: &[&str]) -> io::Result<Executed> {
        let socket = self.spec.socket.display().to_string();
        let arguments = [
            &["--silent", "--show-error", "--unix-socket", &socket],
            arguments,
        ]
        .concat();
        self.execute("curl", &arguments).await
    }

    /// Waits for another workload to [`pass`](Self::pass) a connection to the socket `at`, and keeps it under a name.
    ///
    /// # Errors
    ///
    /// If `at` cannot be bound, or no descriptor comes.
    pub async fn receive(&self, name: &str, at: &Path) -> io::Result<()> {
        let task = Task::Receive {
            name: name.to_owned(),
            at: at.to_owned(),
        };
        self.channel.ask(task).await.map(drop)
    }

    /// Passes a named connection, not yet used, to the workload that waits at the socket `to`.
    ///
    /// # Errors
    ///
    /// If nobody waits there.
    pub async fn pass(&self, name: &str, to: &Path) -> io::Result<()> {
        let task = Task::Pass {
            name: name.to_owned(),
            to: to.to_owned(),
        };
        self.channel.ask(task).await.map(drop)
    }

    /// What the process sees of itself.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub async fn status(&self) -> io::Result<Status> {
        match self.channel.ask(Task::Status).await? {
            Outcome::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
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

    /// Makes a cgroup of any path on the unified hierarchy and moves the process there.
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

    /// Moves the process into a cgroup below its container's, such as one that is named like another pod's.
    ///
    /// # Errors
    ///
    /// If the workload is no pod, or the kernel refuses.
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
                // In a PID namespace of its own it is the child's child, whose end ends the child.
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

    fn socket(&self) -> PathBuf {
        self.spec.socket.clone()
    }

    async fn ask(&self, connection: Option<String>, request: Request) -> io::Result<Response> {
        match self
            .channel
            .ask(Task::Request {
                socket: self.socket(),
                connection,
                request,
            })
            .await?
        {
            Outcome::Response(response) => Ok(response),
            other => Err(unexpected(&other)),
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
        // Inside a PID namespace, the end of the line is the process's end; the rest is its cgroup's.
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

fn unexpected(outcome: &Outcome) -> io::Error {
    io::Error::other(format!("the pod answered something else: {outcome:?}"))
}

#[cfg(test)]
mod tests;
