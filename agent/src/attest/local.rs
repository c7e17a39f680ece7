//! Outside of Kubernetes: a peer is the principal that the configuration gives its uid, if it is an ordinary process of
//! this machine.
//!
//! A uid proves nothing about a process in a container: whoever starts the container chooses it. So the peer must share
//! the agent's user and PID namespaces, and its cgroup must be in no container except those that the agent itself is
//! in. A process of a pod is always refused.

use super::cgroup::CgroupDenial;
use super::pods::Pod;
use super::{AttestError, Denial, Location};
use crate::peer::{Peer, PeerError, Pinning};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;

/// The limit on `/proc/PID/status` and on a user namespace's maps, in bytes; a map has at most 340 lines
/// (user_namespaces(7)).
const FILE_LIMIT: u64 = 64 * 1024;

/// This machine's principals by uid, and what a process must match to be one.
#[derive(Debug)]
pub(crate) struct Local {
    principals: HashMap<u32, Arc<Pod>>,
    own: Surroundings,
}

/// Where a process runs, as far as any process may see it.
#[derive(Debug, Eq, PartialEq)]
struct Surroundings {
    /// What its uids mean to the agent. Only root can make another namespace with the same map as the agent's.
    uid_map: Vec<u8>,
    /// How many PID namespaces deep it is.
    pid_depth: usize,
    /// The containers that its cgroup is in, outermost first.
    containers: BTreeSet<Vec<u8>>,
}

// === impl Local ===

impl Local {
    /// An attestor for these principals.
    ///
    /// # Errors
    ///
    /// If the agent cannot read about itself.
    pub(crate) fn new(principals: HashMap<u32, Arc<Pod>>) -> io::Result<Self> {
        let read = |file| std::fs::read(format!("/proc/self/{file}"));
        let own = Surroundings {
            uid_map: read("uid_map")?,
            pid_depth: pid_depth(&read("status")?).unwrap_or_default(),
            containers: containers(&read("cgroup")?).unwrap_or_default(),
        };
        Ok(Self { principals, own })
    }

    /// The entries of all principals.
    pub(super) fn principals(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.principals.values()
    }

    /// Locates a peer by its uid, if that has a principal and the peer is not in a container.
    pub(super) fn locate(&self, peer: &Peer) -> Result<Location, AttestError> {
        if !self.principals.contains_key(&peer.uid()) {
            return Err(AttestError::Denied(Denial::UnmappedUid));
        }
        self.admit(peer)?;
        Ok(Location::Local(peer.uid()))
    }

    /// The entry of the principal with that uid.
    pub(super) fn principal(&self, uid: u32) -> Option<&Arc<Pod>> {
        self.principals.get(&uid)
    }

    fn admit(&self, peer: &Peer) -> Result<(), AttestError> {
        let mut cgroup = Vec::with_capacity(512);
        peer.read_cgroup(&mut cgroup)?;
        let containers = containers(&cgroup).map_err(AttestError::Denied)?;
        if containers != self.own.containers {
            return Err(AttestError::Denied(Denial::Container));
        }
        let (mut uid_map, mut status) = (Vec::new(), Vec::new());
        peer.read("uid_map", FILE_LIMIT, &mut uid_map)?;
        peer.read("status", FILE_LIMIT, &mut status)?;
        if uid_map != self.own.uid_map || self.is_elsewhere(peer, "ns/user")? {
            return Err(AttestError::Denied(Denial::OtherUserNamespace));
        }
        // By number it may be another process than the one that connected, but then not another user's.
        if peer.pinning() == Pinning::ByNumber && uid(&status) != Some(peer.uid()) {
            return Err(PeerError::Recycled.into());
        }
        if pid_depth(&status) != Some(self.own.pid_depth) || self.is_elsewhere(peer, "ns/pid")? {
            return Err(AttestError::Denied(Denial::OtherPidNamespace));
        }
        Ok(peer.must_be_alive()?)
    }

    /// Whether the peer is in another namespace of that kind than the agent. The link is readable only for processes of
    /// the agent's own user (proc_pid_ns(5)); for others, what any process may see has to suffice.
    fn is_elsewhere(&self, peer: &Peer, link: &str) -> Result<bool, AttestError> {
        let own = std::fs::read_link(format!("/proc/self/{link}"))
            .map_err(|error| AttestError::from(PeerError::Io(error)))?;
        match peer.read_link(link) {
            Ok(theirs) => Ok(theirs != own.as_os_str()),
            Err(PeerError::Io(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// How many PID namespaces deep a process is, by `NSpid` in its status (proc_pid_status(5)).
fn pid_depth(status: &[u8]) -> Option<usize> {
    Some(numbers(status, b"NSpid:")?.count())
}

/// The uid with whose rights a process runs, as the agent's user namespace sees it: the second of `Uid` in its status.
fn uid(status: &[u8]) -> Option<u32> {
    let effective = numbers(status, b"Uid:")?.nth(1)?;
    std::str::from_utf8(effective).ok()?.parse().ok()
}

/// The numbers in one line of a process's status.
fn numbers<'a>(status: &'a [u8], name: &[u8]) -> Option<impl Iterator<Item = &'a [u8]>> {
    let line = status
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(name))?;
    let numbers = line.split(u8::is_ascii_whitespace);
    Some(numbers.filter(|number| !number.is_empty()))
}

/// The names of containers in a cgroup file; fails if its process cannot be a principal of this machine, wherever the
/// agent is.
fn containers(text: &[u8]) -> Result<BTreeSet<Vec<u8>>, Denial> {
    let mut containers = BTreeSet::new();
    for line in text.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()) {
        // id:controllers:path, where the path may contain colons (cgroups(7)).
        let path = line.splitn(3, |byte| *byte == b':').nth(2);
        let path = path.ok_or(Denial::Cgroup(CgroupDenial::Malformed))?;
        for name in path.split(|byte| *byte == b'/') {
            if name == b".." {
                // Next to or above the agent in the tree, which its cgroup namespace hides.
                return Err(Denial::Container);
            }
            if has(name, b"kubepods") {
                return Err(Denial::Pod);
            }
            if is_container(name) {
                containers.insert(name.to_owned());
            }
        }
    }
    Ok(containers)
}

/// Whether a cgroup's name is one that container managers give.
fn is_container(name: &[u8]) -> bool {
    const WHOLE: [&[u8]; 8] = [
        b"buildkit",
        b"docker",
        b"ecs",
        b"garden",
        b"lxc",
        b"lxc.payload",
        b"machine",
        b"machine.slice",
    ];
    const BEGINNINGS: [&[u8]; 7] = [
        b"cri-containerd-",
        b"crio-",
        b"docker-",
        b"libpod",
        b"lxc.monitor.",
        b"lxc.payload.",
        b"systemd-nspawn@",
    ];
    // Docker, containerd, CRI-O and podman all name a container by 64 hexadecimal digits.
    let has_id = name
        .split(|byte| !byte.is_ascii_hexdigit())
        .any(|digits| digits.len() >= 64);
    has_id
        || WHOLE.contains(&name)
        || BEGINNINGS
            .iter()
            .any(|beginning| name.starts_with(beginning))
}

fn has(name: &[u8], part: &[u8]) -> bool {
    name.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::super::pods::{Facts, Settings};
    use super::*;
    use crate::peer::tests::{connected_child, pinned};

    const ID: &str = "3b5d4f1c0a9e8d7c6b5a493827160f5e4d3c2b1a09f8e7d6c5b4a39281706f5e";

    /// Its number may have gone to whoever is looked at.
    #[test]
    fn by_number_a_process_of_another_user_than_the_one_that_connected_is_nobody() {
        let own = nix::unistd::getuid().as_raw();
        let facts = || Facts::of_principal("test", "app", "");
        let principal = || Arc::new(Pod::new(None, facts(), &Settings::default()));
        let principals = [own, own + 1].map(|uid| (uid, principal()));
        let local = Local::new(HashMap::from(principals)).expect("what everybody may see");
        let (stream, _child) = connected_child();
        let locate = |pinning, uid| local.locate(&pinned(&stream, pinning).connected_by(uid));
        for pinning in [Pinning::ByPidfd, Pinning::ByNumber] {
            assert_eq!(locate(pinning, own), Ok(Location::Local(own)));
        }
        let denied = AttestError::Denied(Denial::RecycledPid);
        assert_eq!(locate(Pinning::ByNumber, own + 1), Err(denied));
        // The same process, which has become another user since.
        let located = locate(Pinning::ByPidfd, own + 1);
        assert_eq!(located, Ok(Location::Local(own + 1)));
    }

    /// The links to the namespaces can be read only of the agent's own user's processes.
    #[test]
    fn what_any_process_may_see_of_a_namespace_suffices_to_be_refused() {
        let own = nix::unistd::getuid().as_raw();
        let (stream, _child) = connected_child();
        let peer = pinned(&stream, Pinning::ByPidfd);
        let located = |change: fn(&mut Surroundings)| {
            let facts = Facts::of_principal("test", "app", "");
            let pod = Arc::new(Pod::new(None, facts, &Settings::default()));
            let mut local = Local::new(HashMap::from([(own, pod)])).expect("its own");
            change(&mut local.own);
            local.locate(&peer)
        };
        assert_eq!(located(|_| {}), Ok(Location::Local(own)));
        let denied = |denial| Err(AttestError::Denied(denial));
        let others = located(|own| own.uid_map.push(b' '));
        assert_eq!(others, denied(Denial::OtherUserNamespace));
        let others = located(|own| own.pid_depth += 1);
        assert_eq!(others, denied(Denial::OtherPidNamespace));
    }

    #[test]
    fn a_process_has_the_rights_of_its_effective_uid() {
        let status = "Name:\tcat\nUid:\t1000\t1001\t1002\t1003\nGid:\t1\t1\t1\t1\n";
        assert_eq!(uid(status.as_bytes()), Some(1001));
        assert_eq!(uid(b"Name:\tcat\n"), None);
    }

    fn found(path: &str) -> Result<usize, Denial> {
        containers(format!("0::{path}\n").as_bytes()).map(|found| found.len())
    }

    #[test]
    fn ordinary_processes_are_in_no_container() {
        for path in [
            "/",
            "/init.scope",
            "/user.slice/user-1000.slice/session-3.scope",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-a.scope",
            "/system.slice/docker.service",
            "/system.slice/containerd.service",
            "/system.slice/hosted-compute-agent.service",
            "/system.slice/run-r0123456789abcdef0123456789abcdef.scope",
        ] {
            assert_eq!(found(path), Ok(0), "{path}");
        }
        let hybrid = "12:memory:/user.slice\n1:name=systemd:/user.slice/a:b\n0::/user.slice\n";
        assert_eq!(containers(hybrid.as_bytes()), Ok(BTreeSet::new()));
    }

    #[test]
    fn containers_of_every_manager_are_seen() {
        for path in [
            format!("/docker/{ID}"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
            format!("/default/{ID}"),
            format!("/ecs/0123456789abcdef0123456789abcdef/{ID}"),
            "/lxc.payload.web".to_owned(),
            "/lxc/web/init.scope".to_owned(),
            "/machine.slice/machine-web.scope".to_owned(),
            "/machine.slice/systemd-nspawn@web.service/payload".to_owned(),
            "/docker/buildkit/x1".to_owned(),
        ] {
            assert_ne!(found(&path), Ok(0), "{path}");
        }
    }

    #[test]
    fn pods_and_what_a_namespace_hides_are_refused_wherever_the_agent_is() {
        for path in [
            format!("/kubepods/burstable/pod0/{ID}"),
            format!("/kubepods.slice/kubepods-pod0.slice/cri-containerd-{ID}.scope"),
            format!("/kubelet.slice/kubelet-kubepods.slice/{ID}"),
            format!("/docker/{ID}/kubelet/kubepods/pod0/{ID}"),
        ] {
            assert_eq!(found(&path), Err(Denial::Pod), "{path}");
        }
        assert_eq!(found(&format!("/../{ID}")), Err(Denial::Container));
        assert_eq!(found("/../../user.slice"), Err(Denial::Container));
        assert_eq!(
            containers(b"nonsense\n"),
            Err(Denial::Cgroup(CgroupDenial::Malformed))
        );
    }

    #[test]
    fn a_process_of_a_pid_namespace_below_is_deeper() {
        let status = |numbers: &str| format!("Name:\tcat\nNSpid:\t{numbers}\nNSpgid:\t1\n");
        assert_eq!(pid_depth(status("4711").as_bytes()), Some(1));
        assert_eq!(pid_depth(status("4711\t1").as_bytes()), Some(2));
        assert_eq!(pid_depth(b"Name:\tcat\n"), None);
    }
}
