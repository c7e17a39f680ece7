//! Nodes as kubelets and runtimes lay them out: where a pod's processes are, and how a reader sees it.
//!
//! What a reader inside a cgroup namespace sees is derived from absolute paths as the kernel does it, independently of
//! the parser's own reasoning.

use super::super::{ContainerId, PodUid, QosClass};

/// A process, as it really is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pod: PodUid,
    pub(super) container: ContainerId,
}

/// The attacker, where there is one.
pub(super) const A: Process = Process::synthetic(0xaa);

/// The victim.
pub(super) const B: Process = Process::synthetic(0xbb);

impl Process {
    const fn synthetic(byte: u8) -> Self {
        Self {
            pod: PodUid::synthetic(byte),
            container: ContainerId::synthetic(byte),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Driver {
    Cgroupfs,
    Systemd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runtime {
    Containerd,
    CriDockerd,
    CriO,
    CriOBare,
}

/// How one kubelet lays out its pods.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    /// Where the node's own tree begins, if the node is itself a container.
    pub(super) prefix: &'static str,
    /// The kubelet's `--cgroup-root`, such as `/kubelet`.
    pub(super) cgroup_root: Option<&'static str>,
    pub(super) driver: Driver,
    pub(super) runtime: Runtime,
}

impl Node {
    pub(super) const PLAIN: Self = Self {
        prefix: "",
        cgroup_root: None,
        driver: Driver::Systemd,
        runtime: Runtime::Containerd,
    };

    pub(super) fn root(&self) -> String {
        let prefix = self.prefix;
        match (self.driver, self.cgroup_root) {
            (Driver::Cgroupfs, None) => format!("{prefix}/kubepods"),
            (Driver::Cgroupfs, Some(own)) => format!("{prefix}/{own}/kubepods"),
            (Driver::Systemd, None) => format!("{prefix}/kubepods.slice"),
            (Driver::Systemd, Some(own)) => format!("{prefix}/{own}.slice/{own}-kubepods.slice"),
        }
    }

    /// The absolute path of a process.
    pub(super) fn path(&self, process: Process, class: QosClass) -> String {
        format!(
            "{}/{}",
            self.pod_path(process.pod, class),
            self.container(process.container)
        )
    }

    pub(super) fn pod_path(&self, pod: PodUid, class: QosClass) -> String {
        let root = self.root();
        let directory = match class {
            QosClass::BestEffort => "besteffort",
            QosClass::Burstable => "burstable",
            QosClass::Guaranteed => "",
        };
        match (self.driver, class) {
            (Driver::Cgroupfs, QosClass::Guaranteed) => format!("{root}/pod{pod}"),
            (Driver::Cgroupfs, _) => format!("{root}/{directory}/pod{pod}"),
            (Driver::Systemd, _) => {
                let stem = match self.cgroup_root {
                    None => "kubepods".to_owned(),
                    Some(own) => format!("{own}-kubepods"),
                };
                let uid = pod.to_string().replace('-', "_");
                match class {
                    QosClass::Guaranteed => format!("{root}/{stem}-pod{uid}.slice"),
                    _ => {
                        format!("{root}/{stem}-{directory}.slice/{stem}-{directory}-pod{uid}.slice")
                    }
                }
            }
        }
    }

    fn container(&self, id: ContainerId) -> String {
        match (self.driver, self.runtime) {
            (Driver::Cgroupfs, Runtime::CriO | Runtime::CriOBare) => format!("crio-{id}"),
            (Driver::Cgroupfs, _) => id.to_string(),
            (Driver::Systemd, Runtime::Containerd) => format!("cri-containerd-{id}.scope"),
            (Driver::Systemd, Runtime::CriDockerd) => format!("docker-{id}.scope"),
            (Driver::Systemd, Runtime::CriO) => format!("crio-{id}.scope"),
            (Driver::Systemd, Runtime::CriOBare) => format!("crio-{id}"),
        }
    }
}

/// The path `target` as a reader whose cgroup namespace begins at `reader` sees it.
pub(super) fn seen_from(reader: &str, target: &str) -> String {
    let reader: Vec<_> = reader.split('/').filter(|name| !name.is_empty()).collect();
    let target: Vec<_> = target.split('/').filter(|name| !name.is_empty()).collect();
    let common = reader
        .iter()
        .zip(&target)
        .take_while(|(one, other)| one == other)
        .count();
    let path: String = std::iter::repeat_n("/..", reader.len() - common)
        .map(str::to_owned)
        .chain(target[common..].iter().map(|name| format!("/{name}")))
        .collect();
    if path.is_empty() {
        "/".to_owned()
    } else {
        path
    }
}

/// How many levels a path has.
pub(super) fn levels(path: &str) -> usize {
    path.split('/').filter(|name| !name.is_empty()).count()
}

/// A cgroup file of cgroup v2.
pub(super) fn v2(path: &str) -> Vec<u8> {
    format!("0::{path}\n").into_bytes()
}

/// A cgroup file of a hybrid host, whose v2 hierarchy no container is in.
pub(super) fn hybrid(path: &str) -> Vec<u8> {
    let mut text = String::new();
    for (id, controllers) in ["name=systemd", "cpu,cpuacct", "memory", "pids"]
        .iter()
        .enumerate()
    {
        text += &format!("{}:{controllers}:{path}\n", 9 - id);
    }
    text += "5:rdma:/\n0::/system.slice/containerd.service\n";
    text.into_bytes()
}
