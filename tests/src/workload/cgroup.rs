//! Cgroups as a kubelet and a runtime make them, in whatever hierarchies this machine has.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{fs, io, process, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

/// How long a killed cgroup may take to empty.
const EMPTYING: Duration = Duration::from_secs(5);

/// The v1 hierarchies that a workload is put into. Not memory, to leave the machine's accounting alone, and not cpuset,
/// which refuses processes until it is told its processors.
const V1_HIERARCHIES: &[&str] = &["name=systemd", "pids", "freezer", "cpu", "blkio"];

/// Where a pod's container lies in the cgroup tree.
#[derive(Clone, Debug)]
pub struct PodCgroup {
    /// The path above `kubepods`: empty as on a node, or one of the sandbox's own.
    pub parent: String,
    /// Which driver names the cgroups.
    pub driver: Driver,
    /// Which runtime has made the container, which shows in the scope's name.
    pub runtime: Runtime,
    /// In which hierarchies.
    pub hierarchies: Hierarchies,
    /// The pod's quality of service.
    pub qos: Qos,
    /// The pod's UID.
    pub pod_uid: String,
    /// The container's id, 64 hex digits.
    pub container_id: String,
    /// The path below the container: empty, or for example `/init.scope`.
    pub below: String,
}

/// The kubelet's `cgroupDriver`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Driver {
    /// `kubepods/besteffort/pod…/…`.
    Cgroupfs,
    /// `kubepods.slice/kubepods-besteffort.slice/…`.
    Systemd,
}

/// The container runtime.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Runtime {
    /// `cri-containerd-….scope`.
    Containerd,
    /// `crio-….scope`.
    Crio,
    /// `docker-….scope`.
    Docker,
}

/// Which of the machine's hierarchies know the pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hierarchies {
    /// Only the v1 hierarchies.
    V1,
    /// Only the unified one.
    V2,
    /// All: v1, and the unified one as well.
    Hybrid,
}

/// The pod's quality of service class.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Qos {
    /// No requests and no limits.
    BestEffort,
    /// Some.
    Burstable,
    /// Requests that equal limits; it has no directory of its own.
    Guaranteed,
}

impl PodCgroup {
    /// A best-effort container under containerd on the unified hierarchy, by the cgroupfs driver.
    #[must_use]
    pub fn new(parent: &str, pod_uid: &str, container_id: &str) -> Self {
        Self {
            parent: parent.to_owned(),
            driver: Driver::Cgroupfs,
            runtime: Runtime::Containerd,
            hierarchies: Hierarchies::V2,
            qos: Qos::BestEffort,
            pod_uid: pod_uid.to_owned(),
            container_id: container_id.to_owned(),
            below: String::new(),
        }
    }

    /// The kubepods root above this pod, as the agent's `identity.kubepods_root` takes it.
    #[must_use]
    pub fn kubepods_root(&self) -> String {
        match self.driver {
            Driver::Cgroupfs => format!("{}/kubepods", self.parent),
            Driver::Systemd => format!("{}/kubepods.slice", self.parent),
        }
    }

    /// The container's path, as `/proc/PID/cgroup` shows it.
    #[must_use]
    pub fn path(&self) -> String {
        let (root, uid, id) = (self.kubepods_root(), &self.pod_uid, &self.container_id);
        let qos = match self.qos {
            Qos::BestEffort => "besteffort",
            Qos::Burstable => "burstable",
            Qos::Guaranteed => "",
        };
        let container = match self.driver {
            Driver::Cgroupfs if qos.is_empty() => format!("{root}/pod{uid}/{id}"),
            Driver::Cgroupfs => format!("{root}/{qos}/pod{uid}/{id}"),
            Driver::Systemd => {
                let uid = uid.replace('-', "_");
                let scope = match self.runtime {
                    Runtime::Containerd => "cri-containerd",
                    Runtime::Crio => "crio",
                    Runtime::Docker => "docker",
                };
                if qos.is_empty() {
                    format!("{root}/kubepods-pod{uid}.slice/{scope}-{id}.scope")
                } else {
                    format!(
                        "{root}/kubepods-{qos}.slice/kubepods-{qos}-pod{uid}.slice/{scope}-{id}.scope"
                    )
                }
            }
        };
        container + &self.below
    }
}

/// A cgroup that exists as long as this does; every process in it ends with it.
#[derive(Debug)]
pub(super) struct Cgroup {
    /// One directory in each hierarchy.
    directories: Vec<PathBuf>,
    mounts: Vec<PathBuf>,
}

impl Cgroup {
    pub(super) fn create(path: &str, hierarchies: Hierarchies) -> io::Result<Self> {
        let mounts = match hierarchies {
            Hierarchies::V1 => v1_mounts()?,
            Hierarchies::V2 => vec![v2_mount()?],
            Hierarchies::Hybrid => [v1_mounts()?, vec![v2_mount()?]].concat(),
        };
        let mut cgroup = Self {
            directories: Vec::new(),
            mounts,
        };
        for mount in &cgroup.mounts {
            let directory = mount.join(path.trim_start_matches('/'));
            create(&directory)?;
            cgroup.directories.push(directory);
        }
        Ok(cgroup)
    }

    /// The files by which a process enters it.
    pub(super) fn entrances(&self) -> impl Iterator<Item = PathBuf> {
        self.directories
            .iter()
            .map(|directory| directory.join("cgroup.procs"))
    }

    /// Moves a process into it.
    pub(super) fn admit(&self, pid: u32) -> io::Result<()> {
        self.entrances()
            .try_for_each(|entrance| fs::write(entrance, pid.to_string()))
    }

    /// Kills everything in it and below it, and waits until it is empty.
    pub(super) fn kill(&self) {
        let deadline = Instant::now() + EMPTYING;
        for directory in &self.directories {
            while !kill_in(directory) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.kill();
        let deadline = Instant::now() + EMPTYING;
        for (directory, mount) in self.directories.iter().zip(&self.mounts) {
            // A process that is exiting is no longer listed, but still keeps the cgroup busy for a moment.
            while remove(directory).is_err() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            // Up to the first that others still use: the kernel refuses to remove one that is not empty.
            let ancestors = directory.ancestors().skip(1);
            for ancestor in ancestors.take_while(|ancestor| ancestor != mount) {
                if fs::remove_dir(ancestor).is_err() && ancestor.exists() {
                    break;
                }
            }
        }
    }
}

/// Checks whether this process may make cgroups.
pub(super) fn writable() -> io::Result<()> {
    let probe = format!("/latchkey-probe-{}", uuid::Uuid::new_v4().simple());
    Cgroup::create(&probe, Hierarchies::V2).map(drop)
}

/// Makes a directory with its parents, while another workload that ends may be removing the same parents.
fn create(directory: &Path) -> io::Result<()> {
    let mut attempts = 0;
    loop {
        match fs::create_dir_all(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < 100 => {
                attempts += 1
            }
            result => return result,
        }
    }
}

/// Kills what is in the directory and below; true once nothing is.
fn kill_in(directory: &Path) -> bool {
    // `cgroup.kill` (v2, Linux 5.14) includes those that are forking; elsewhere the loop around this does.
    let at_once = fs::write(directory.join("cgroup.kill"), "1").is_ok();
    let mut empty = true;
    for child in children(directory) {
        empty &= kill_in(&child);
    }
    let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse().ok()) {
        empty = false;
        if !at_once {
            // If it is gone by now, so much the better.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    empty
}

/// Removes a cgroup with those below it.
fn remove(directory: &Path) -> io::Result<()> {
    for child in children(directory) {
        remove(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn children(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

/// The unified hierarchy's mount.
pub(super) fn v2_mount() -> io::Result<PathBuf> {
    let found = mounts()?.into_iter().find(|mount| mount.kind == "cgroup2");
    found.map(|mount| mount.point).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            "this machine has no cgroup2 mounted",
        )
    })
}

/// The mounts of the v1 hierarchies that a workload is put into; one of this process's own, where none is mounted.
pub(super) fn v1_mounts() -> io::Result<Vec<PathBuf>> {
    let wanted = |mount: &Mount| {
        let options: Vec<_> = mount.options.split(',').collect();
        mount.kind == "cgroup" && V1_HIERARCHIES.iter().any(|name| options.contains(name))
    };
    let found: Vec<_> = mounts()?
        .into_iter()
        .filter(wanted)
        .map(|mount| mount.point)
        .collect();
    if found.is_empty() {
        return own_hierarchy().map(|own| vec![own]);
    }
    Ok(found)
}

/// A v1 hierarchy with a name and no controller, which the kernel gives beside a unified one that has them all. Its
/// mount is nowhere but in this process, and ends with it.
fn own_hierarchy() -> io::Result<PathBuf> {
    static HELD: OnceLock<rustix::io::Result<OwnedFd>> = OnceLock::new();
    let held = HELD.get_or_init(|| {
        let hierarchy = fsopen("cgroup", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_flag(&hierarchy, "none")?;
        fsconfig_set_string(&hierarchy, "name", "latchkey")?;
        fsconfig_create(&hierarchy)?;
        fsmount(
            &hierarchy,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
    });
    match held {
        // By its PID, since workloads enter by this path themselves.
        Ok(held) => Ok(format!("/proc/{}/fd/{}", process::id(), held.as_raw_fd()).into()),
        Err(error) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this machine has no cgroup v1 mounted, and its kernel gives none: {error}"),
        )),
    }
}

struct Mount {
    point: PathBuf,
    kind: String,
    options: String,
}

/// Parses `/proc/self/mountinfo` (proc_pid_mountinfo(5)): the point is field 5, type and options follow the lone `-`.
fn mounts() -> io::Result<Vec<Mount>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let mut tail = tail.split(' ');
        Some(Mount {
            point: head.split(' ').nth(4)?.into(),
            kind: tail.next()?.to_owned(),
            options: tail.nth(1)?.to_owned(),
        })
    };
    Ok(text.lines().filter_map(mount).collect())
}
